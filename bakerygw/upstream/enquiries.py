"""What tokens leave out, asked of the tenant and the auth service: short questions, bounded answers, strictly read."""

from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IReactorTime

from bakerygw.core.claims import ClaimsError, Subscription
from bakerygw.core.facts import read_email, read_subscription
from bakerygw.core.http import Pairs
from bakerygw.ports import LookupFailed, LookupFailure, UpstreamFailed, UpstreamRequest, Upstreams
from bakerygw.runtime.gathering import NotWhole, gather

SUBSCRIPTION_TIMEOUT_S: Final = 2.0
"""From asking to the last byte of the answer."""
EMAIL_TIMEOUT_S: Final = 1.0
"""Less, since requests go on without it."""
MAX_ANSWER_BYTES: Final = 64 * 1024

_SAID: Final[dict[int, LookupFailure]] = {401: "unauthorized", 403: "forbidden", 404: "unknown"}
_FAILURES: Final[dict[str, LookupFailure]] = {
    "upstream-timeout": "timeout",
    "upstream-unreachable": "unreachable",
    "upstream-invalid": "invalid",
    "service-unavailable": "unavailable",
}


class ServiceEnquiries:
    """Implements `ports.Enquiries` over the services' own connections, so that breakers and balancing hold here too.

    The deadlines here end before those of the connections would: a slow answer to a question is no reason to open
    the breaker for everything else that the service does.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock

    async def subscription(self, upstreams: Upstreams, tenant_id: str, *, demo: bool, headers: Pairs) -> Subscription:
        """`GET /api/v1/tenants/{id}/subscription/status` of the tenant service."""
        if tenant_id in (".", ".."):
            raise LookupFailed("invalid", "an id that is a dot segment")  # it would name another path (RFC 3986 5.2.4)
        target = b"/api/v1/tenants/" + tenant_id.encode("ascii") + b"/subscription/status"
        body = await self._ask(upstreams, _service("tenant", upstreams, demo), target, headers, SUBSCRIPTION_TIMEOUT_S)
        try:
            return read_subscription(body)
        except ClaimsError as error:
            raise LookupFailed("invalid", error.reason) from None

    async def email(self, upstreams: Upstreams, user_id: str, *, demo: bool, headers: Pairs) -> str | None:
        """`GET /api/v1/auth/me` of the auth service, of which the member `email` is read."""
        service = _service("auth", upstreams, demo)
        body = await self._ask(upstreams, service, b"/api/v1/auth/me", headers, EMAIL_TIMEOUT_S)
        try:
            return read_email(body, user_id)
        except ClaimsError as error:
            raise LookupFailed("invalid", error.reason) from None

    async def _ask(self, upstreams: Upstreams, service: str, target: bytes, headers: Pairs, timeout_s: float) -> bytes:
        request = UpstreamRequest(
            method="GET", target=target, headers=headers, body=None, first_byte_timeout_s=2 * timeout_s
        )
        asking = Deferred.fromCoroutine(_exchange(upstreams, service, request))
        asking.addTimeout(timeout_s, self._clock)
        try:
            return await asking
        except DeferredTimeoutError:
            raise LookupFailed("timeout", f"{service}: no whole answer in time") from None
        except UpstreamFailed as failed:
            kind = _FAILURES[failed.code]
            raise LookupFailed(kind, f"{service}: {failed.cause}", retry_after_s=failed.retry_after_s) from None


def _service(name: str, upstreams: Upstreams, demo: bool) -> str:
    """Whom to ask."""
    apart = "demo:" + name
    service = apart if demo and upstreams.has(apart) else name
    if not upstreams.has(service):
        raise LookupFailed("unavailable", f"no URL for {service}")
    return service


async def _exchange(upstreams: Upstreams, service: str, request: UpstreamRequest) -> bytes:
    """The body of a 200."""
    response = await upstreams.request(service, request)
    body = response.body
    if response.status != 200:
        body.stop()
        raise LookupFailed(_SAID.get(response.status, "unavailable"), f"{service}: answered {response.status}")
    if body.length is not None and body.length > MAX_ANSWER_BYTES:
        body.stop()
        raise LookupFailed("invalid", f"{service}: answer too long")
    found = await gather(body, MAX_ANSWER_BYTES)
    if isinstance(found, NotWhole):
        raise LookupFailed("invalid", f"{service}: answer {found.why}")
    return found
