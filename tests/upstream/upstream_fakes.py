"""Bodies, a transport and an owner for connections to services, all in memory."""

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from bakerygw.core.http import BodySink, BodySource, Pairs
from bakerygw.ports import UpstreamRequest, UpstreamResponse
from bakerygw.upstream.connection import UpstreamConnection
from bakerygw.upstream.deadline import Deadlines

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
DEADLINES = Deadlines(connect_s=2, first_byte_s=15, idle_s=30)


class FakeSource:
    """A request body that the test pushes by hand."""

    def __init__(self, length: int | None = None, whole: bytes | None = None) -> None:
        self._length, self._whole = length, whole
        self.sink: BodySink | None = None
        self.calls: list[str] = []

    @property
    def length(self) -> int | None:
        return self._length

    @property
    def complete(self) -> bool:
        return self._length == 0 or self._whole is not None

    def whole(self) -> bytes | None:
        self.calls.append("whole")
        return self._whole

    def start(self, sink: BodySink) -> None:
        self.calls.append("start")
        self.sink = sink

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")

    def stop(self) -> None:
        self.calls.append("stop")


class RecordingSink:
    """Keeps what a body pushes; pauses its source after each piece if `slow`."""

    def __init__(self, source: BodySource | None = None, *, slow: bool = False) -> None:
        self._source, self._slow = source, slow
        self.data = b""
        self.end: str | None = None

    def write(self, data: bytes) -> None:
        assert self.end is None
        self.data += data
        if self._slow and self._source is not None:
            self._source.pause()

    def done(self) -> None:
        assert self.end is None
        self.end = "done"

    def cut(self, reason: str) -> None:
        assert self.end is None
        self.end = f"cut: {reason}"


class Owner:
    """What a pool would hear of its connections."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def freed(self, connection: UpstreamConnection) -> None:
        self.heard.append("freed")

    def gone(self, connection: UpstreamConnection) -> None:
        self.heard.append("gone")

    def switched(self, by: int) -> None:
        self.heard.append(f"switched {by}")


@implementer(ITCPTransport)
class WireTransport(StringTransport):
    """A TCP transport that remembers whether it was aborted, which StringTransport takes for closed."""

    aborted = False
    no_delay = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()


class Line:
    """One connection on a transport in memory."""

    def __init__(self, authority: str = "sales:8000") -> None:
        self.clock, self.owner, self.transport = Clock(), Owner(), WireTransport()
        self.connection = UpstreamConnection(
            clock=self.clock, authority=authority, deadlines=DEADLINES, owner=self.owner
        )
        self.connection.makeConnection(self.transport)

    def send(
        self, method: str = "GET", *, headers: Pairs = (), body: BodySource | None = None, wait_s: float | None = None
    ) -> Deferred[UpstreamResponse]:
        """Begin an exchange."""
        request = UpstreamRequest(
            method=method, target=b"/x?y", headers=headers, body=body, first_byte_timeout_s=wait_s
        )
        return self.connection.send(request)

    def receive(self, data: bytes, *, at_a_time: int = 0) -> None:
        """Let the service say something."""
        step = at_a_time or len(data) or 1
        for at in range(0, len(data), step):
            self.connection.dataReceived(data[at : at + step])

    def lose(self, *, cleanly: bool = True) -> None:
        """Let the service close, or the network break."""
        self.connection.connectionLost(Failure(ConnectionDone() if cleanly else ConnectionLost()))

    @property
    def written(self) -> bytes:
        return self.transport.value()


def read(response: UpstreamResponse) -> RecordingSink:
    """Start the response's body into a recording sink."""
    sink = RecordingSink()
    response.body.start(sink)
    return sink


class Peer:
    """The service's end of one connection that the gateway opened."""

    def __init__(self, factory: object) -> None:
        address = IPv4Address("TCP", "127.0.0.1", 1)
        self.protocol = factory.buildProtocol(address)  # type: ignore[attr-defined]
        self.transport = WireTransport()
        self.protocol.makeConnection(self.transport)

    def answer(self, data: bytes = OK) -> None:
        self.protocol.dataReceived(data)

    def close(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))


class Net:
    """All connections attempted through one reactor in memory."""

    def __init__(self) -> None:
        self.reactor = MemoryReactorClock()

    @property
    def attempts(self) -> list[str]:
        return [f"{client[0]}:{client[1]}" for client in self.reactor.tcpClients]

    def accept(self, index: int = -1) -> Peer:
        return Peer(self.reactor.tcpClients[index][2])

    def fail(self, error: Exception, index: int = -1) -> None:
        self.reactor.tcpClients[index][2].clientConnectionFailed(None, Failure(error))
