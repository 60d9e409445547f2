"""The handler of the stream of alerts."""

from typing import Final
from urllib.parse import parse_qsl

from bakerygw.core.alerts import parse_position
from bakerygw.core.http import Pairs, Reply, RequestHead
from bakerygw.core.outcome import Trace
from bakerygw.core.problem import Problem, Refused, refuse
from bakerygw.core.routing import Route
from bakerygw.edge.admission import Grant
from bakerygw.edge.exchange import Exchange
from bakerygw.edge.policies import Policies
from bakerygw.ports import StoreUnavailable
from bakerygw.realtime.alerts.hub import Hub
from bakerygw.realtime.alerts.stream import Resume, Stream
from bakerygw.realtime.held import Guard
from bakerygw.realtime.quotas import RETRY_FROM_S, RETRY_UNTIL_S

HEADERS: Final[Pairs] = (
    (b"Content-Type", b"text/event-stream"),
    (b"Cache-Control", b"no-store"),
    (b"X-Accel-Buffering", b"no"),
)
RETRY_AFTER_S: Final = (RETRY_FROM_S, RETRY_UNTIL_S)
MAX_POSITION: Final = 128


class AlertStreams:
    """Opens streams. Each takes its place with the guard before anything is read or sent for it."""

    def __init__(self, hub: Hub, guard: Guard) -> None:
        self._hub, self._guard = hub, guard

    async def open(self, exchange: Exchange, route: Route, grant: Grant, policies: Policies, trace: Trace) -> Reply:
        """The endless reply. Raises `Refused`: the guard's, and state-unavailable while alerts can't be followed."""
        view, hub = grant.view, self._hub
        if view is None:
            raise refuse("not-found", "Alerts are of a tenant.", reason="no-tenant")
        resume = resume_of(exchange.head)
        place = self._guard.enter("stream", grant)
        try:
            feed, resume = await hub.open(view.tenant_id, resume)
        except StoreUnavailable:
            place.leave()
            raise self._unavailable() from None
        except BaseException:
            place.leave()
            raise
        stream = Stream(hub, feed, exchange, place=place, trace=trace, resume=resume)
        trace.begun_s = hub.clock.seconds() - trace.started
        return Reply(status=200, headers=HEADERS, body=stream, close=True)

    def _unavailable(self) -> Refused:
        wait_s = self._hub.random.randint(*RETRY_AFTER_S)
        detail = (
            f"Alerts can't be followed at the moment; connect again in {wait_s} seconds, with your last id: "
            "what you have missed follows, or a gap is told."
        )
        return Refused(Problem(code="state-unavailable", detail=detail, retry_after_s=wait_s, reason="alerts"))


def resume_of(head: RequestHead) -> Resume | None:
    """Where the client wants to go on: its `Last-Event-ID`, else `?last_event_id=`; `None` if it begins."""
    text = head.first(b"last-event-id") or _asked(head.query)
    if not text:
        return None
    return Resume(position=parse_position(text) if len(text) <= MAX_POSITION else None)


def _asked(query: bytes | None) -> bytes:
    if not query:
        return b""
    try:
        # As text, for of bytes it takes none that are beyond ASCII once decoded.
        pairs = parse_qsl(query.decode("latin-1"), max_num_fields=100)
    except ValueError:
        return b"?"
    return next((value.encode() for name, value in pairs if name == "last_event_id"), b"")
