"""The short form of Twisted's transports keeps their contract."""

import socket
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST

from bakerygw.runtime.sockets import (
    LASTING_BYTES,
    LASTING_TIMEOUT_MS,
    SWITCHED_BYTES,
    TCP_USER_TIMEOUT,
    ClientSocket,
    ServerSocket,
    bound_buffers,
)


class Kernel:
    """A socket of which one read is tried."""

    def __init__(self, told: bytes | Exception) -> None:
        self._told = told

    def recv(self, _: int) -> bytes:
        if isinstance(self._told, Exception):
            raise self._told
        return self._told


class Peculiar:
    """A protocol that returns what nobody asked for."""

    received = b""

    def dataReceived(self, data: bytes) -> object:
        self.received += data
        return CONNECTION_LOST


@pytest.mark.parametrize(
    ("told", "lost"),
    [(b"x", None), (BlockingIOError(), None), (b"", CONNECTION_DONE), (ConnectionResetError(), CONNECTION_LOST)],
)
def test_a_read_tells_why_the_connection_is_lost_and_nothing_else(told: bytes | Exception, lost: object) -> None:
    transport: Any = ServerSocket.__new__(ServerSocket)
    transport.socket, transport.protocol = Kernel(told), Peculiar()

    assert transport.doRead() is lost
    assert transport.protocol.received == (told if isinstance(told, bytes) else b"")


class Taking:
    """A socket that takes so many bytes at once, or fails."""

    def __init__(self, takes: int | OSError) -> None:
        self._takes = takes
        self.sent = b""

    def send(self, data: bytes) -> int:
        if isinstance(self._takes, OSError):
            raise self._takes
        self.sent += data[: self._takes]
        return min(self._takes, len(data))


class Poller:
    """A reactor that is told who has something to write."""

    def __init__(self) -> None:
        self.writers: list[object] = []

    def addWriter(self, writer: object) -> None:
        self.writers.append(writer)


def connected(takes: int | OSError) -> Any:
    transport: Any = ServerSocket.__new__(ServerSocket)
    transport.socket, transport.reactor, transport.connected = Taking(takes), Poller(), True
    transport._tempDataBuffer, transport._tempDataLen = [], 0
    return transport


def test_what_is_pushed_leaves_at_once() -> None:
    transport = connected(100)

    assert transport.push(b"abc")

    assert transport.socket.sent == b"abc"
    assert (transport.reactor.writers, transport._tempDataBuffer) == ([], [])


@pytest.mark.parametrize(
    ("takes", "left"), [(2, b"c"), (0, b"abc"), (BlockingIOError(), b"abc"), (ConnectionResetError(), b"abc")]
)
def test_what_the_kernel_does_not_take_waits_for_its_turn(takes: int | OSError, left: bytes) -> None:
    transport = connected(takes)

    assert not transport.push(b"abc")

    assert b"".join(transport._tempDataBuffer) == left
    assert transport.reactor.writers == [transport]


def test_what_is_pushed_stays_behind_what_waits() -> None:
    transport = connected(100)
    transport.write(b"first")

    assert not transport.push(b"second")

    assert transport.socket.sent == b""
    assert transport._tempDataBuffer == [b"first", b"second"]


def test_nothing_is_pushed_into_a_connection_that_ends() -> None:
    transport = connected(100)
    transport.disconnecting = True
    assert not transport.push(b"one")
    transport.connected = False
    assert not transport.push(b"two")

    assert transport.socket.sent == b""


def test_a_reply_that_lasts_is_bounded_in_the_kernel() -> None:
    with socket.socket() as ours:
        transport: Any = ServerSocket.__new__(ServerSocket)
        transport.socket = ours
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)

        transport.last()

        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * LASTING_BYTES
        assert ours.getsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT) == LASTING_TIMEOUT_MS


@pytest.mark.parametrize("kind", [ServerSocket, ClientSocket])
@pytest.mark.parametrize("over_tls", [False, True])
def test_what_goes_on_in_another_protocol_is_bounded_both_ways(kind: type, over_tls: bool) -> None:
    transport: Any = kind.__new__(kind)
    with socket.socket() as ours:
        transport.socket = ours
        options = (socket.SO_SNDBUF, socket.SO_RCVBUF)
        for option in options:
            ours.setsockopt(socket.SOL_SOCKET, option, 200_000)

        bound_buffers(SimpleNamespace(transport=transport) if over_tls else transport)

        for option in options:
            assert SWITCHED_BYTES <= ours.getsockopt(socket.SOL_SOCKET, option) <= 2 * SWITCHED_BYTES


def test_where_the_kernel_knows_no_such_bound_a_reply_lasts_all_the_same() -> None:
    transport: Any = ServerSocket.__new__(ServerSocket)
    with socket.socket(socket.AF_UNIX) as transport.socket:
        transport.last()
