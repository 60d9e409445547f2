"""What a connection to a service writes, and what it writes to."""

from typing import Final, Protocol

from bakerygw.core.http import BodySource
from bakerygw.ports import UpstreamRequest

LAST_CHUNK: Final = b"0\r\n\r\n"

_BODY_EXPECTED: Final = frozenset({"POST", "PUT", "PATCH"})
"""Methods for which an absent body is announced with `Content-Length: 0` (RFC 9110 section 8.6)."""


def request_head(request: UpstreamRequest, host: bytes) -> bytes:
    """The request's head on the wire, framing written anew (RFC 9112 section 6)."""
    lines = [b"%b %b HTTP/1.1\r\nHost: %b" % (request.method.encode(), request.target, host)]
    lines += map(b": ".join, request.headers)
    if request.upgrade is not None:
        lines.append(b"Connection: Upgrade\r\nUpgrade: " + request.upgrade)
    lines.append(_framing(request.method, request.body))
    return b"\r\n".join(lines)


def _framing(method: str, body: BodySource | None) -> bytes:
    """The field that tells how long the body is, and the end of the head."""
    length = 0 if body is None else body.length
    if length is None:
        return b"Transfer-Encoding: chunked\r\n\r\n"
    if length or method in _BODY_EXPECTED:
        return b"Content-Length: %d\r\n\r\n" % length
    return b"\r\n"


def chunk(data: bytes) -> bytes:
    """`data` as one chunk (RFC 9112 section 7.1); nothing for no data, because an empty chunk is the last."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


class Wire(Protocol):
    """What the connection uses of its transport, TCP or TLS."""

    def write(self, data: bytes, /) -> None:
        """Send in order, after what is buffered."""

    def loseConnection(self) -> None:
        """Close once the buffer is sent."""

    def abortConnection(self) -> None:
        """Close at once."""

    def pauseProducing(self) -> None:
        """Stop reading the socket."""

    def resumeProducing(self) -> None:
        """Read the socket again."""

    def registerProducer(self, producer: object, streaming: bool, /) -> None:
        """Pause and resume `producer` as the buffer fills and empties."""

    def unregisterProducer(self) -> None:
        """Leave the producer alone from here on."""
