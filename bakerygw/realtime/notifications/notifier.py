"""One attempt to have the notification service accept an alert."""

from collections.abc import Callable
from typing import Final
from uuid import UUID

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IReactorTime

from bakerygw.core.http import Pairs
from bakerygw.core.notifications import SERVICE, TARGET, Verdict, idempotency_key, retry_after_s, verdict_on
from bakerygw.core.values import value
from bakerygw.edge.body_sources import HeldBody
from bakerygw.ports import Notification, UpstreamFailed, UpstreamRequest, Upstreams

ATTEMPT_S: Final = 10.0
"""From asking for a connection to the status of the answer."""


@value
class Attempt:
    """How an attempt ended."""

    verdict: Verdict
    cause: str
    """In a few words, for the log; empty where it was accepted."""
    away: bool
    """No answer came, or one that tells to stay away: others will hardly fare better now."""
    asked_s: float | None
    """How long the service asks to be left alone."""
    request_id: str


class Notifier:
    """Sends over the services' own connections, so that breakers, balancing and names hold here too.

    The deadline here ends before that of the connections would: slow notifications are no reason to open the breaker
    for what else the service does.
    """

    def __init__(
        self,
        upstreams: Callable[[], Upstreams],
        *,
        clock: IReactorTime,
        now: Callable[[], float],
        token: Callable[[int], str],
    ) -> None:
        """`upstreams` gives those of the configuration in force; `now` is Unix seconds; `token` gives so many random
        bytes in hexadecimal."""
        self._upstreams, self._clock, self._now, self._token = upstreams, clock, now, token

    def service_of(self, *, demo: bool) -> str | None:
        """The service that alerts go to; `None` while it has no URL."""
        upstreams = self._upstreams()
        apart = "demo:" + SERVICE
        name = apart if demo and upstreams.has(apart) else SERVICE
        return name if upstreams.has(name) else None

    async def send(self, service: str, notification: Notification, *, demo: bool) -> Attempt:
        """Send it once. Cancelling ends the exchange at once."""
        request_id = str(UUID(self._token(16), version=4))
        request = UpstreamRequest(
            method="POST",
            target=TARGET,
            headers=self._headers(notification, request_id, demo=demo),
            body=HeldBody(notification.payload),
            first_byte_timeout_s=2 * ATTEMPT_S,
        )
        asking = Deferred.fromCoroutine(self._upstreams().request(service, request))
        asking.addTimeout(ATTEMPT_S, self._clock)
        try:
            response = await asking
        except DeferredTimeoutError:
            return _missed("no answer in time", request_id)
        except UpstreamFailed as failed:
            return _missed(failed.cause, request_id, failed.retry_after_s)
        if response.body.whole() is None:
            response.body.stop()  # the status has said all
        verdict = verdict_on(response.status)
        return Attempt(
            verdict=verdict,
            cause="" if verdict == "accepted" else f"answered {response.status}",
            away=response.status in (429, 503),
            asked_s=retry_after_s(response.headers, self._now()),
            request_id=request_id,
        )

    def _headers(self, notification: Notification, request_id: str, *, demo: bool) -> Pairs:
        trace = f"00-{self._token(16)}-{self._token(8)}-00"
        return (
            (b"Content-Type", b"application/json"),
            (b"Accept", b"application/json"),
            (b"User-Agent", b"bakerygw"),
            (b"Idempotency-Key", idempotency_key(notification.name, notification.payload)),
            (b"X-Tenant-Id", notification.tenant_id.encode("ascii")),
            (b"X-Is-Demo", b"true" if demo else b"false"),
            (b"X-Request-ID", request_id.encode("ascii")),
            (b"traceparent", trace.encode("ascii")),
        )


def _missed(cause: str, request_id: str, asked_s: float | None = None) -> Attempt:
    return Attempt(verdict="later", cause=cause, away=True, asked_s=asked_s, request_id=request_id)
