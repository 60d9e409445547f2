"""A bridge between a client and a service in memory, both spoken for by the test, frame by frame."""

from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from bakerygw.core.outcome import SocketNotes
from bakerygw.ports import Heir, UpstreamFailed
from bakerygw.realtime.held import Held
from bakerygw.realtime.training.bridge import Bridge
from bakerygw.realtime.training.legs import Leg
from bakerygw.realtime.training.sides import LegFactories
from tests.frames import parsed

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
OVER = Failure(ConnectionDone())


class Wire(StringTransport):
    """A transport that notes how it was closed, and loses its handshake."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()

    @property
    def closing(self) -> bool:
        return self.disconnecting

    @property
    def reading(self) -> bool:
        return bool(self.producerState == "producing")


class FakeOnward:
    """A service's connection after its 101."""

    def __init__(self, behind: bytes = b"") -> None:
        self.transport: Any = Wire()
        self.transport.pauseProducing()
        self._behind = behind
        self.judgements: list[UpstreamFailed | None] = []

    def judge(self, failure: UpstreamFailed | None = None) -> None:
        self.judgements.append(failure)

    def hear(self, judged: Callable[[UpstreamFailed | None], None]) -> None:
        """Nobody counts here."""

    def take(self, heir: Heir) -> None:
        if self._behind:
            heir.dataReceived(self._behind)


class Telemetry:
    def __init__(self) -> None:
        self.told: list[object] = []

    def opened(self) -> None:
        self.told.append("opened")

    def closed(self, code: int, messages_in: int, messages_out: int) -> None:
        self.told.append((code, messages_in, messages_out))


class Place:
    left = 0

    def hold(self, held: Held, *, returning: bool = False) -> None:
        """Nothing to watch."""

    def leave(self) -> None:
        self.left += 1


class Peer:
    """Who is on the other end of one leg."""

    def __init__(self, leg: Leg, wire: Wire) -> None:
        self.leg, self.wire = leg, wire

    def says(self, *frames: bytes) -> None:
        self.leg.dataReceived(b"".join(frames))

    def hears(self) -> list[tuple[int, bytes]]:
        """The frames since the last time."""
        data = self.wire.value()
        self.wire.clear()
        return parsed(data)

    def is_lost(self) -> None:
        self.leg.connectionLost(OVER)

    def stalls(self) -> None:
        self.wire.producer.pauseProducing()

    def takes(self) -> None:
        self.wire.producer.resumeProducing()


class BusyClock(Clock):
    """Half a millisecond passes whenever somebody looks."""

    def seconds(self) -> float:
        self.rightNow += 0.0005
        return self.rightNow


class Span:
    """The bridge and its two ends."""

    def __init__(self, behind: bytes = b"", clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.telemetry, self.place, self.notes = Telemetry(), Place(), SocketNotes()
        factories = LegFactories(self.clock)
        service, client = factories.service(), factories.client()
        service.prepare()
        wire, self.onward = Wire(), FakeOnward(behind)
        client.shake_hands(wire, KEY)
        wire.clear()
        self.bridge = Bridge(
            client, service, place=self.place, notes=self.notes, telemetry=self.telemetry, clock=self.clock
        )
        self.client, self.service = Peer(client, wire), Peer(service, self.onward.transport)
        self.bridge.begin(wire, self.onward)

    @property
    def ended(self) -> tuple[int, str, str | None]:
        return self.notes.close_code, self.notes.closed_by, self.notes.why
