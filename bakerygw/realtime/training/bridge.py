"""A WebSocket between a client and a service: what either says reaches the other, in order and at its pace."""

from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from bakerygw.core.outcome import SocketNotes
from bakerygw.core.tenancy import TenantFlags
from bakerygw.edge.kernel import Stall
from bakerygw.ports import Onward, SocketTelemetry, UpstreamFailed
from bakerygw.realtime.held import Ending, Place
from bakerygw.realtime.training.legs import Leg
from bakerygw.realtime.training.sides import MAX_MESSAGE_BYTES, ClientLeg, ServiceLeg

PING_S: Final = 25.0
"""Between two pings to a peer; below the half minute after which many middleboxes forget an idle connection."""
PONG_S: Final = 10.0
"""For any sign of life after a ping."""
CLOSE_S: Final = 5.0
"""For a peer's answer to a close frame, from when it takes what is written."""
SERVICE_CLOSE_S: Final = 1.0
"""For a service to close its connection once both close frames have passed, or once its client is gone."""
LINGER_S: Final = 1.0
"""For a peer that broke the rules to take its close frame, and to answer it if it still can."""
STALL_S: Final = 60.0
"""How long a service may take nothing; a client is cut by the rule that holds for all connections of clients."""
TRIAL_S: Final = 2.0
"""For a service that has accepted a socket and says nothing to show that it has not died of it."""
STALL_LOOK_S: Final = 2.0
"""How often a stalled service is looked at, and whether its client is still there."""

ENDINGS: Final[dict[Ending, tuple[int, bytes]]] = {
    "token-expired": (1008, b"token expired"),
    "token-revoked": (1008, b"token revoked"),
    "token-invalid": (1008, b"token invalid"),
    "token-stale": (1008, b"token stale"),
    "forbidden": (1008, b"access ended"),
    "disconnected": (1008, b"disconnected"),
    "draining": (1012, b"restarting"),
}
"""What a client is told, by close code and reason, when the gateway ends its socket."""
_TOO_BIG: Final = b"the service's message was over %d bytes" % MAX_MESSAGE_BYTES
GOING_AWAY: Final = 1001
"""What a service is told whenever its client has ended without a close frame, or the gateway has ended it."""


class Bridge:
    """Implements `realtime.held.Held`, and `realtime.training.legs.Ear` for both of its legs."""

    def __init__(
        self,
        client: ClientLeg,
        service: ServiceLeg,
        *,
        place: Place,
        notes: SocketNotes,
        telemetry: SocketTelemetry,
        clock: IReactorTime,
    ) -> None:
        """`place` is left, once, when both connections are gone."""
        self._client, self._service = client, service
        client.ear = service.ear = self
        self._place, self._notes, self._telemetry, self._clock = place, notes, telemetry, clock
        self._stall = Stall(STALL_S)
        self._beat: IDelayedCall | None = None
        """The next pings, or the look whether they were answered."""
        self._looking: IDelayedCall | None = None
        """The next look at a service that takes nothing, and whether its client is still there."""
        self._onward: Onward | None = None
        """Until it is told how the service does."""
        self._trial: IDelayedCall | None = None
        self._drops: dict[Leg, IDelayedCall] = {}
        """When the connection of a side that is on its way out is ended, if it does not end by itself."""
        self._connections = 2
        """So many are not lost yet."""

    def begin(self, client: Any, onward: Onward) -> None:
        """Go on over these: the client's transport, by which the 101 has gone, and the service's connection."""
        self._telemetry.opened()
        self._onward, self._trial = onward, self._clock.callLater(TRIAL_S, self._judge)
        self._service.begin(onward.transport)
        client.registerProducer(_Pace(self._client, self), True)
        onward.transport.registerProducer(_Pace(self._service, self), True)
        self._beat = self._clock.callLater(PING_S, self._ping)
        onward.take(self._service)
        self._service.follow_pace()

    # As the legs' ear.

    def message(self, leg: Leg, payload: bytes, binary: bool) -> None:
        """To the other side."""
        if leg is self._client:
            self._notes.messages_in += 1
            other: Leg = self._service
        else:
            self._notes.messages_out += 1
            other = self._client
        if other.open:
            other.sendFrame(2 if binary else 1, payload)

    def closed(self, leg: Leg, code: int | None, reason: bytes) -> None:
        """One side has begun to close: so does the other, by the same code."""
        self._judge()
        self._note(code, leg.name)
        self._close(self._other(leg), code, reason)

    def violated(self, leg: Leg, code: int) -> None:
        """One side broke the rules, and is on its way out."""
        self._judge()
        self._note(code, "gateway")
        self._drop_in(LINGER_S, leg)
        if leg is self._client:
            self._close(self._service, GOING_AWAY)
        elif code == 1009:
            self._close(self._client, 1009, _TOO_BIG)
        else:
            self._close(self._client, 1011, b"the service broke the protocol")

    def finished(self, leg: Leg) -> None:
        """Both close frames have passed: the server's side closes the connection (RFC 6455 section 7.1.1)."""
        if leg is self._client:
            leg.drop(abort=False)
        else:
            self._drop_in(SERVICE_CLOSE_S, leg)

    def lost(self, leg: Leg) -> None:
        """One side is gone, and the other is told if it does not know."""
        self._connections -= 1
        self._forget_drop(leg)
        if leg is self._service and not (self._notes.messages_in or self._notes.messages_out):
            # With a message of the client's before, that may have been what brought it about.
            self._judge(UpstreamFailed("upstream-unreachable", "connection_terminated", "lost right behind its 101"))
        self._judge()
        if self._connections == 0:
            self._over()
        elif leg is self._client:
            self._note(None, "client", lost=True)
            if self._service.open:
                self._service.close(GOING_AWAY)
                self._drop_in(SERVICE_CLOSE_S, self._service)
        else:
            self._stop_looking()
            self._note(None, "service", lost=True)
            self._close(self._client, 1011, b"the service was lost")

    # As what its guard holds.

    def expiring(self, in_s: float) -> None:
        """A socket has no room for notices."""

    def tenant_state(self, flags: TenantFlags) -> None:
        """Nor for these."""

    def end(self, why: Ending) -> None:
        """Close both sides, saying why to the client."""
        code, reason = ENDINGS[why]
        self._judge()
        self._note(code, "gateway", why)
        self._close(self._client, code, reason)
        self._close(self._service, GOING_AWAY)

    # Pace.

    def pause(self, leg: Leg) -> None:
        """This side does not take what the other sends."""
        leg.block()
        self._other(leg).pause_reading()
        if leg is self._service:
            self._stall.begin(self._clock.seconds())
            if self._looking is None:
                self._looking = self._clock.callLater(STALL_LOOK_S, self._look)

    def resume(self, leg: Leg) -> None:
        """It does again."""
        leg.unblock()
        self._other(leg).resume_reading()
        if leg is self._service:
            self._stop_looking()
        if not leg.open and leg in self._drops:
            self._drop_in(CLOSE_S, leg)

    def _look(self) -> None:
        self._looking = None
        if self._stall.over(self._service.transport, self._clock.seconds()):
            self._fall_silent(self._service, "service-stalled")
            return
        self._looking = self._clock.callLater(STALL_LOOK_S, self._look)
        client = self._client
        if client.open and not client.blocked:
            # One that has left may have its end behind what is not read; its system answers this by a reset.
            client.sendPing()

    def _stop_looking(self) -> None:
        self._stall.end()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    # Signs of life.

    def _ping(self) -> None:
        for leg in (self._client, self._service):
            if leg.open:
                leg.heard = leg.blocked or leg.pausing  # neither could answer in time
                if not leg.heard:
                    leg.sendPing()
        self._beat = self._clock.callLater(PONG_S, self._check)

    def _check(self) -> None:
        self._beat = self._clock.callLater(PING_S - PONG_S, self._ping)
        for leg in (self._client, self._service):
            if leg.open and not (leg.heard or leg.blocked or leg.pausing):
                self._fall_silent(leg, f"{leg.name}-silent")

    def _judge(self, failure: UpstreamFailed | None = None) -> None:
        """Tell how the service does; once."""
        onward, self._onward = self._onward, None
        trial, self._trial = self._trial, None
        if trial is not None and trial.active():
            trial.cancel()
        if onward is not None:
            onward.judge(failure)

    def _fall_silent(self, leg: Leg, why: str) -> None:
        """Nothing can be said to this side any more."""
        self._note(None, leg.name, why, lost=True)
        leg.drop(abort=True)

    # The end.

    def _other(self, leg: Leg) -> Leg:
        return self._service if leg is self._client else self._client

    def _close(self, leg: Leg, code: int | None, reason: bytes = b"") -> None:
        if leg.open:
            leg.close(code, reason)
            self._await_close(leg)

    def _await_close(self, leg: Leg) -> None:
        """Give it time to answer the close frame; as long as it takes nothing, the stall's rule is enough."""
        self._drop_in(STALL_S if leg.blocked else CLOSE_S, leg)

    def _drop_in(self, seconds: float, leg: Leg) -> None:
        self._forget_drop(leg)
        self._drops[leg] = self._clock.callLater(seconds, self._drop, leg)

    def _drop(self, leg: Leg) -> None:
        del self._drops[leg]
        leg.drop(abort=True)

    def _forget_drop(self, leg: Leg) -> None:
        call = self._drops.pop(leg, None)
        if call is not None:
            call.cancel()

    def _note(self, code: int | None, by: str, why: str | None = None, *, lost: bool = False) -> None:
        """How it ended is how it first began to."""
        if not self._notes.ended:
            self._notes.ended = True
            self._notes.close_code = 1006 if lost else 1005 if code is None else code
            self._notes.closed_by, self._notes.why = by, why

    def _over(self) -> None:
        self._stop_looking()
        if self._beat is not None:
            self._beat.cancel()
        notes = self._notes
        self._telemetry.closed(notes.close_code, notes.messages_in, notes.messages_out)
        self._place.leave()


@implementer(IPushProducer)
class _Pace:
    """What one side's transport tells of its peer's pace."""

    def __init__(self, leg: Leg, bridge: Bridge) -> None:
        self._leg, self._bridge = leg, bridge

    def pauseProducing(self) -> None:
        """It takes no more."""
        self._bridge.pause(self._leg)

    def resumeProducing(self) -> None:
        """It takes more."""
        self._bridge.resume(self._leg)

    def stopProducing(self) -> None:
        """It is going; its protocol hears of it."""
