"""The short form of Twisted's transports keeps their contract."""

from typing import Any

import pytest
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST

from bakerygw.runtime.sockets import ServerSocket


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
