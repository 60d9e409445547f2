"""Sockets in a poller of their own: the same events as from Twisted's loop, one turn at a time, driven by hand."""

import select
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReactorFDSet, IReactorTime
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import ClientContextFactory
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from bakerygw.runtime.poller import EVENTS, TurnPoller
from bakerygw.runtime.sockets import TLSOrNothing


@implementer(IReactorTime)
class Outer(Clock):
    """The reactor around the poller: it polls when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []
        self.scheduled = 0

    def callLater(self, when: float, what: Callable[..., object], *args: object, **kw: object) -> Any:
        self.scheduled += 1
        return super().callLater(when, what, *args, **kw)

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def turn(self) -> None:
        """What a reactor's iteration does: timers, then readable descriptors."""
        self.advance(0)
        for reader in self.readers:
            if select.select([reader], [], [], 0.01)[0]:
                reader.doRead()


class Side(Protocol):
    """A protocol that keeps what it is told."""

    def __init__(self) -> None:
        self.received, self.lost = b"", list[Failure]()
        self.on_data: Callable[[bytes], object] = lambda _: None

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self.on_data(data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.lost.append(reason)


class House:
    """A listening poller and clients to it."""

    def __init__(self) -> None:
        self.outer = Outer()
        self.poller = TurnPoller(self.outer)
        self.sides: list[Side] = []
        self.opened: list[socket.socket] = []
        factory = Factory.forProtocol(self.build)
        factory.noisy = False
        self.port: Any = self.poller.listenTCP(0, factory, interface="127.0.0.1")

    def build(self) -> Side:
        self.sides.append(Side())
        return self.sides[-1]

    def client(self) -> tuple[socket.socket, Side]:
        """A connected socket and the protocol that serves it."""
        end = socket.create_connection(("127.0.0.1", self.port.getHost().port))
        end.settimeout(30)
        self.opened.append(end)
        count = len(self.sides)
        self.until(lambda: len(self.sides) > count)
        return end, self.sides[-1]

    def until(self, reached: Callable[[], object]) -> None:
        for _ in range(300):
            if reached():
                return
            self.outer.turn()
        raise AssertionError("not reached")

    def close(self) -> None:
        for end in self.opened:
            end.close()
        self.poller.connectionLost(Failure(ConnectionLost()))
        self.outer.advance(1)


def read_to_end(end: socket.socket) -> None:
    while end.recv(1 << 20):
        pass


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    house.close()


def test_nothing_is_opened_before_the_first_socket() -> None:
    outer = Outer()
    assert TurnPoller(outer).fileno() == -1
    assert outer.readers == []


def test_it_is_the_outer_reactor_in_everything_else(house: House) -> None:
    assert IReactorTime.providedBy(house.poller)
    assert IReactorFDSet.providedBy(house.poller)
    house.outer.advance(3)
    assert house.poller.seconds() == 3


def test_data_comes_to_the_protocol_and_answers_leave_in_the_same_turn(house: House) -> None:
    end, side = house.client()
    side.on_data = lambda data: side.transport.write(data.upper())
    end.sendall(b"bread")
    house.until(lambda: side.received)
    assert end.recv(100) == b"BREAD"


def test_all_that_came_is_seen_before_anything_is_written(house: House) -> None:
    pairs = [house.client() for _ in range(3)]
    events: list[str] = []
    for _, side in pairs:
        side.on_data = lambda _, side=side: (events.append("read"), side.transport.write(b"x"))
    house.poller.soon(lambda: None)
    for end, _ in pairs:
        end.sendall(b"go")
    for _, side in pairs:
        send = side.transport.writeSomeData
        side.transport.writeSomeData = lambda data, send=send: (events.append("write"), send(data))[1]
    house.until(lambda: len(events) >= 6)
    assert events == ["read"] * 3 + ["write"] * 3


def test_calls_for_soon_come_between_reading_and_writing_and_may_write(house: House) -> None:
    end, side = house.client()
    side.on_data = lambda _: house.poller.soon(lambda: side.transport.write(b"later"))
    end.sendall(b"x")
    house.until(lambda: side.received)
    assert end.recv(100) == b"later"


def test_soon_and_writes_work_without_any_event_of_a_socket(house: House) -> None:
    end, side = house.client()
    called: list[int] = []
    house.poller.soon(lambda: called.append(1))
    side.transport.write(b"by a timer")
    assert called == []
    house.outer.advance(0)
    assert called == [1]
    assert end.recv(100) == b"by a timer"


def test_calls_that_call_for_more_do_not_keep_the_reactor_from_its_turn(house: House) -> None:
    called: list[int] = []

    def again() -> None:
        called.append(house.outer.scheduled)
        if len(called) < 20:
            house.poller.soon(again)

    house.poller.soon(again)
    house.outer.advance(0)
    assert len(called) == 20
    assert len(set(called)) >= 5


def test_what_the_kernel_does_not_take_waits_and_arrives(house: House) -> None:
    end, side = house.client()
    body = bytes(range(256)) * 40_000
    side.transport.write(body)
    house.outer.turn()
    assert side.transport in house.poller.getWriters()
    received = b""
    while len(received) < len(body):
        house.outer.turn()
        received += end.recv(1 << 20)
    assert received == body
    house.outer.turn()
    assert house.poller.getWriters() == []


def test_a_producer_pauses_and_resumes_as_ever(house: House) -> None:
    end, side = house.client()
    told: list[str] = []

    class Source:
        def pauseProducing(self) -> None:
            told.append("pause")

        def resumeProducing(self) -> None:
            told.append("resume")

        def stopProducing(self) -> None:
            told.append("stop")

    side.transport.registerProducer(Source(), True)
    side.transport.write(b"x" * 10_000_000)
    assert told == ["pause"]
    read = 0
    while read < 10_000_000:
        house.outer.turn()
        read += len(end.recv(1 << 20))
    house.until(lambda: len(told) == 2)
    assert told == ["pause", "resume"]
    side.transport.unregisterProducer()


def test_reading_pauses_and_resumes(house: House) -> None:
    end, side = house.client()
    side.transport.pauseProducing()
    end.sendall(b"x")
    house.outer.turn()
    assert side.received == b""
    side.transport.resumeProducing()
    house.until(lambda: side.received)


def test_a_client_that_closes_is_lost_cleanly(house: House) -> None:
    end, side = house.client()
    end.close()
    house.until(lambda: side.lost)
    assert side.lost[0].check(ConnectionDone)
    assert side.transport not in house.poller.getReaders()


def test_a_client_that_resets_is_lost(house: House) -> None:
    end, side = house.client()
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    end.close()
    house.until(lambda: side.lost)
    assert side.lost[0].check(ConnectionLost)


def test_a_reset_is_noticed_while_reading_is_paused(house: House) -> None:
    end, side = house.client()
    side.transport.pauseProducing()
    side.transport.write(b"x" * 20_000_000)
    house.outer.turn()
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    end.close()
    house.until(lambda: side.lost)


@pytest.mark.parametrize("behind", [b"", b"unread"])
def test_a_client_that_closes_while_reading_is_paused_is_lost(house: House, behind: bytes) -> None:
    end, side = house.client()
    side.transport.pauseProducing()
    end.sendall(behind)
    house.outer.turn()
    assert (side.received, side.lost) == (b"", [])
    end.close()
    house.until(lambda: side.lost)
    assert side.received == b""


def test_a_closing_connection_gives_all_it_has_to_a_client_that_sends_no_more(house: House) -> None:
    end, side = house.client()
    side.transport.pauseProducing()
    side.transport.write(b"x" * 5_000_000)
    side.transport.loseConnection()
    end.shutdown(socket.SHUT_WR)
    received = 0
    while received < 5_000_000:
        house.outer.turn()
        received += len(end.recv(1 << 20))
    house.until(lambda: side.lost)


def test_what_epoll_refuses_costs_its_socket_and_no_other(house: House, logged_failures: list[Any]) -> None:
    (_, side), (other_end, other) = house.client(), house.client()
    epoll = house.poller.__dict__["_epoll"]

    class Full:
        """No more room for watches."""

        def modify(self, fd: int, events: int) -> None:
            raise OSError(28, "no space")

        def __getattr__(self, name: str) -> Any:
            return getattr(epoll, name)

    house.poller.__dict__["_epoll"] = Full()
    side.transport.write(b"x" * 20_000_000)
    house.outer.turn()
    house.poller.__dict__["_epoll"] = epoll
    house.until(lambda: side.lost)
    other_end.sendall(b"y")
    house.until(lambda: other.received)
    assert {str(failure.value) for failure in logged_failures} == {"[Errno 28] no space"}
    logged_failures.clear()


def test_no_protocol_means_a_closed_connection_under_tls_too() -> None:
    class Full(Factory):
        def buildProtocol(self, addr: object) -> None:
            return None

    assert TLSOrNothing(ClientContextFactory(), False, Full()).buildProtocol(None) is None
    factory = TLSOrNothing(ClientContextFactory(), False, Factory.forProtocol(Side))
    assert isinstance(factory.buildProtocol(None), TLSMemoryBIOProtocol)


def test_closing_waits_for_what_was_written(house: House) -> None:
    end, side = house.client()
    side.transport.write(b"last words")
    side.transport.loseConnection()
    house.until(lambda: side.lost)
    assert (end.recv(100), end.recv(100)) == (b"last words", b"")


def test_aborting_does_not(house: House) -> None:
    end, side = house.client()
    side.transport.write(b"x" * 20_000_000)
    side.transport.abortConnection()
    house.until(lambda: side.lost)
    with pytest.raises(ConnectionResetError):
        read_to_end(end)


def test_a_protocol_that_fails_loses_its_connection_and_nobody_elses(house: House, logged_failures: list[Any]) -> None:
    (end, side), (other_end, other) = house.client(), house.client()

    def fail(_: bytes) -> None:
        raise RuntimeError("mine")

    side.on_data = fail
    end.sendall(b"x")
    other_end.sendall(b"y")
    house.until(lambda: side.lost and other.received)
    assert side.lost[0].check(RuntimeError)
    assert other.lost == []
    assert [str(failure.value) for failure in logged_failures] == ["mine"]
    logged_failures.clear()


def test_a_fault_while_a_connection_is_lost_ends_no_turn(house: House, logged_failures: list[Any]) -> None:
    (end, side), (other_end, other) = house.client(), house.client()

    def fail(_: Failure) -> None:
        raise RuntimeError("in the end")

    side.connectionLost = fail  # type: ignore[method-assign, assignment]
    end.close()
    other_end.sendall(b"y")
    house.until(lambda: other.received)
    house.outer.turn()
    other_end.sendall(b"z")
    house.until(lambda: other.received == b"yz")
    assert [str(failure.value) for failure in logged_failures] == ["in the end"]
    logged_failures.clear()


def test_more_sockets_than_a_turn_serves_are_all_served() -> None:
    outer = Outer()
    poller = TurnPoller(outer)
    served: set[int] = set()
    pairs = [socket.socketpair() for _ in range(EVENTS // 2 + 20)]

    class Reader:
        def __init__(self, number: int, end: socket.socket) -> None:
            self.number, self.fileno, self.end = number, end.fileno, end

        def doRead(self) -> None:
            served.add(self.number)
            self.end.recv(10)

        def connectionLost(self, reason: Failure) -> None:
            self.end.close()

    for number, (near, far) in enumerate(pairs):
        poller.addReader(Reader(number, near))
        far.send(b"x")
    for _ in range(3):
        outer.turn()
    assert len(served) == len(pairs)
    poller.connectionLost(Failure(ConnectionDone()))
    for _, far in pairs:
        far.close()
    assert poller.getReaders() == []


def test_a_number_that_another_socket_has_taken_over_stays_its(house: House) -> None:
    class Reader:
        def __init__(self, end: socket.socket) -> None:
            self.end, self.read = end, 0

        def fileno(self) -> int:
            return self.end.fileno()

        def doRead(self) -> None:
            self.read += 1
            self.end.recv(10)

    near, far = socket.socketpair()
    old = Reader(near)
    house.poller.addReader(old)
    number = near.fileno()
    near.close()  # without a word to the poller
    again, far_again = socket.socketpair()
    taken = next(end for end in (again, far_again) if end.fileno() == number)
    new = Reader(taken)
    house.poller.addReader(new)
    house.poller.removeReader(old)
    (far_again if taken is again else again).send(b"x")
    house.until(lambda: new.read)
    house.poller.removeReader(new)
    for end in (far, again, far_again):
        end.close()


def test_the_end_of_the_reactor_ends_every_connection(house: House) -> None:
    _, side = house.client()
    house.poller.connectionLost(Failure(ConnectionLost()))
    house.outer.advance(1)
    assert side.lost
    assert house.poller.removeAll() == []


def test_connections_of_our_own_are_served_too(house: House) -> None:
    built: list[Side] = []

    class Client(Factory):
        noisy = False

        def buildProtocol(self, addr: object) -> Side:
            built.append(Side())
            return built[-1]

        def startedConnecting(self, connector: object) -> None:
            """The connector tells."""

        def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
            failed.append(reason)

        def clientConnectionLost(self, connector: object, reason: Failure) -> None:
            """So does the protocol."""

    failed: list[Failure] = []
    house.poller.connectTCP("127.0.0.1", house.port.getHost().port, Client())
    house.until(lambda: built and house.sides)
    built[0].transport.write(b"hello")
    house.until(lambda: house.sides[0].received == b"hello")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        house.poller.connectTCP("127.0.0.1", unused.getsockname()[1], Client())
        house.until(lambda: failed)
