"""The socket of one client, whoever speaks on it: written, paused, and handed over."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from typing import Protocol as Port

from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from bakerygw.edge.framer import Framer
from bakerygw.runtime.sockets import ServerSocket, bound_buffers

if TYPE_CHECKING:
    from bakerygw.edge.exchange import Exchange

READ_AHEAD_BYTES: Final = 16 * 1024
"""Pipelined bytes kept while a reply is under way; a client with more waits."""
UNHEEDED_BYTES: Final = 64 * 1024
"""What a client may send behind its last request while the reply lasts; pipelined requests are less."""


Send = Callable[[bytes], int]
"""A socket's `send`: how many bytes the kernel took. OSError if it takes none, or the connection is lost."""


class Successor(Port):
    """Who takes the connection over once a request has been answered with 101 (RFC 9110 §7.8)."""

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the client."""

    def connectionLost(self, reason: Failure) -> None:
        """The connection is lost; called once."""

    def shutdown(self) -> None:
        """The gateway stops: come to an end."""


class Unheeded:
    """Drops what a client sends while its last reply lasts, and calls `cut` where it goes on and on."""

    __slots__ = ("_cut", "_left")

    def __init__(self, cut: Callable[[str], None]) -> None:
        self._cut, self._left = cut, UNHEEDED_BYTES

    def dataReceived(self, data: bytes) -> None:
        """Bytes that nobody asked for."""
        self._left -= len(data)
        if self._left < 0:
            self._cut("unasked-bytes")

    def connectionLost(self, reason: Failure) -> None:
        """The reply is told of that by itself."""

    def shutdown(self) -> None:
        """So it is of this."""


class Line(Protocol):
    """What a channel does to its socket. Its attributes are set by `EdgeChannel`."""

    transport: Any  # twisted types it as ITransport | None, without producers and aborting
    successor: Successor | None = None
    """Whoever has the client's bytes in place of the channel's parser."""
    gone: bool
    _unfed: bytes
    _last_read: bool
    _reading_paused: bool
    _framer: Framer
    _receiving: "Exchange | None"

    def write(self, data: bytes) -> None:
        """Bytes of the reply under way."""
        if not self.gone:
            self.transport.write(data)

    def push(self, data: bytes) -> Send | None:
        """As `write`, but at once, and not at the end of the turn, where nothing waits to leave before it.

        Returns the socket's `send` if nothing is left waiting. Until something is written here it does what this does,
        without the checks.
        """
        if self.gone:
            return None
        transport = self.transport
        if type(transport) is ServerSocket:
            send: Send = transport.socket.send
            return send if transport.push(data) else None
        transport.write(data)
        return None

    def pause_reading(self) -> None:
        """Stop reading the socket."""
        if not self._reading_paused and not self.gone:
            self._reading_paused = True
            self.transport.pauseProducing()

    def resume_reading(self) -> None:
        """Read the socket again, unless there is enough already for when the reply has ended."""
        if self._reading_paused and not self.gone and len(self._unfed) <= READ_AHEAD_BYTES:
            self._reading_paused = False
            self.transport.resumeProducing()

    def abort(self, cause: str) -> None:
        """End the connection at once."""
        raise NotImplementedError

    def settle(self) -> None:
        """The reply under way is the last and may take hours: what the client sends meanwhile is not kept.

        Who sends more than `UNHEEDED_BYTES` is cut.
        """
        self._last_read, self._unfed, self.successor = True, b"", Unheeded(self.abort)
        self.resume_reading()
        if self._receiving is None:
            self._framer.close()
        # Below TLS there is the same kind of transport.
        for transport in (self.transport, getattr(self.transport, "transport", None)):
            if type(transport) is ServerSocket:
                transport.last()

    def hand_over(self, successor: Successor) -> bytes:
        """Parse nothing more: `successor` gets what the client sends. Returns what it has sent already.

        The channel stays the transport's protocol and its producer. So the connection is counted until it is lost,
        and a client that takes nothing is still dropped.
        """
        self._last_read, self.successor = True, successor
        behind, self._unfed = self._unfed, b""
        bound_buffers(self.transport)
        self.resume_reading()
        return behind
