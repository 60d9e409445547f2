"""Twisted's TCP transports, with the two calls that each message makes in their shortest form."""

from contextlib import suppress
from errno import ENOBUFS
from socket import IPPROTO_TCP, SO_RCVBUF, SO_SNDBUF, SOL_SOCKET
from typing import Any, Final

from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.tcp import Client, Connector, Port, Server
from twisted.protocols.tls import TLSMemoryBIOFactory

READ_BYTES: Final = 64 * 1024
LASTING_BYTES: Final = 64 * 1024
"""Of the kernel's memory for a client that takes nothing; by itself it would give megabytes."""
SWITCHED_BYTES: Final = 128 * 1024
"""The same, each way, of a connection in another protocol. Less than a loopback's segment of 64 KiB would let every
write wait for an acknowledgement; Linux counts twice as much, its own bookkeeping included."""
LASTING_TIMEOUT_MS: Final = 30_000
"""After this without an acknowledgement the kernel gives a client up; by itself it tries for a quarter of an hour."""
TCP_USER_TIMEOUT: Final = 18
"""Of tcp(7), which only Linux has."""


class _Plain:
    """Overrides of `tcp.Connection` without its slices, retries and indirections; 3 µs a request."""

    socket: Any
    protocol: Any

    def bound(self, size: int) -> None:
        """Bound what the kernel keeps each way, in bytes; by itself it gives more and more to one that is fast."""
        with suppress(OSError):
            self.socket.setsockopt(SOL_SOCKET, SO_SNDBUF, size)
            self.socket.setsockopt(SOL_SOCKET, SO_RCVBUF, size)

    def doRead(self) -> Any:
        """Give the protocol what has come; returns why the connection is lost, if it is."""
        try:
            data = self.socket.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        self.protocol.dataReceived(data)
        return None

    def writeSomeData(self, data: bytes) -> Any:
        """How many bytes the kernel took, or why the connection is lost."""
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            return 0 if error.errno == ENOBUFS else CONNECTION_LOST


class ServerSocket(_Plain, Server):
    """An accepted connection."""

    reactor: Any
    dataBuffer: bytes
    _tempDataBuffer: list[bytes]

    def push(self, data: bytes) -> bool:
        """As `write`, but tried at once where nothing waits before it; whether nothing waits behind it either.

        That is one call of the kernel; `write` costs a list, a join and a round of the poller besides, 2 µs in all.
        """
        if self.dataBuffer or self._tempDataBuffer or not self.connected or self.disconnecting:
            self.write(data)
            return False
        try:
            sent = self.socket.send(data)
        except OSError:
            sent = 0  # whatever is the matter, the next attempt is the poller's, and it says so
        if sent < len(data):
            self.write(data[sent:])
        return bool(sent == len(data))

    def last(self) -> None:
        """What is sent from here on is little and may go on for hours: bound what the kernel keeps, and how long."""
        with suppress(OSError):
            self.socket.setsockopt(SOL_SOCKET, SO_SNDBUF, LASTING_BYTES)
            self.socket.setsockopt(IPPROTO_TCP, TCP_USER_TIMEOUT, LASTING_TIMEOUT_MS)

    def pauseProducing(self) -> None:
        """Read no more, but notice if the client leaves; its service must not work on for nobody."""
        self.reactor.pauseReader(self)


class ClientSocket(_Plain, Client):
    """A connection that the gateway opened."""


class TLSOrNothing(TLSMemoryBIOFactory):
    """TLS around the wrapped factory's protocols, and a closed connection where it gives none.

    Twisted's would wrap that as well, and forget the socket.
    """

    def buildProtocol(self, addr: Any) -> Any:
        """The protocol for a connection from `addr`, or `None`."""
        wrapped = self.wrappedFactory.buildProtocol(addr)
        return None if wrapped is None else self.protocol(self, wrapped)


class PlainPort(Port):
    """Accepts `ServerSocket`s."""

    transport = ServerSocket


class PlainConnector(Connector):
    """Opens `ClientSocket`s."""

    def _makeTransport(self) -> Any:
        return ClientSocket(self.host, self.port, self.bindAddress, self, self.reactor)


def bound_buffers(transport: Any) -> None:
    """Bound what the kernel keeps each way of a connection that goes on in another protocol, TLS or not.

    Either end of it may stop taking what comes, and so make the gateway hold both its own side and the other's.
    """
    for each in (transport, getattr(transport, "transport", None)):
        if isinstance(each, _Plain):
            each.bound(SWITCHED_BYTES)
