"""One request on a connection, and the way back: the only place where replies are framed (RFC 9112 §6, §7)."""

from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING

from bakerygw.core.http import BodySink, BodySource, Pairs, Reply, RequestHead
from bakerygw.edge.body import RequestBody
from bakerygw.edge.framer import Framing
from bakerygw.edge.line import Send

if TYPE_CHECKING:
    from bakerygw.edge.channel import EdgeChannel

BODILESS = frozenset({204, 304})


@lru_cache(1024)
def status_line(status: int) -> bytes:
    """`HTTP/1.1 200 OK` with its line end; the phrase is ours, never a service's."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode("ascii")


def render_head(status: int, headers: Pairs, framing: bytes, date: bytes) -> bytes:
    """The bytes of a reply's head. `framing` holds the framing fields, each with its line end."""
    for name, _ in headers:
        if len(name) == 4 and name.lower() == b"date":
            break  # a service's own stays (RFC 9110 §6.6.1)
    else:
        headers = (*headers, (b"Date", date))
    return b"%b%b\r\n%b\r\n" % (status_line(status), b"\r\n".join(map(b": ".join, headers)), framing)


class ReplyWriter:
    """Gives one reply to the client: `send` at once, or `begin`, `write`… and `end` or `abort`."""

    unreadable = True
    """Its request could not be read, so more of it may still be under way."""

    def __init__(self, channel: "EdgeChannel", *, method: str, version: str, persistent: bool) -> None:
        self._channel = channel
        self.bodiless = method == "HEAD"
        self._version = version
        self._chunked = False
        self._promised: int | None = None
        self.persistent = persistent
        """Whether the connection may be used again after this reply."""
        self.begun = False
        self.ended = False
        self.bytes_out = 0
        self.source: BodySource | None = None
        self.lost_by = "client-left"
        """Why the connection was lost, if it was."""

    @property
    def chunked(self) -> bool:
        """The body that was begun goes out in chunks (RFC 9112 §7.1)."""
        return self._chunked

    @property
    def gone(self) -> bool:
        """The connection is lost: nothing can be sent any more."""
        return self._channel.gone

    def send(self, reply: Reply) -> None:
        """A whole reply with its body in memory, in one write."""
        body = reply.body
        assert isinstance(body, bytes)  # noqa: S101  what `deliver` dispatched on
        self.begun = True
        self._settle(reply)
        announced = len(body) if body or reply.length is None else reply.length
        bodiless = self.bodiless or reply.status in BODILESS
        unknown = reply.length is None and not body  # what a GET would have got, of which nobody has told
        if reply.status == 204 or (unknown and (self.bodiless or reply.status == 304)):
            framing = self._connection()
        else:
            framing = b"Content-Length: %d\r\n" % announced + self._connection()
        head = render_head(reply.status, reply.headers, framing, self._channel.date())
        if bodiless or not body:
            self._channel.write(head)
        else:
            self.bytes_out = len(body)
            self._channel.write(head + body)
        self.end()

    def begin(self, reply: Reply, length: int | None) -> None:
        """The head of a reply whose body follows by `write`; `length` if it is promised.

        The body of a 101 is whatever the other protocol has to say (RFC 9110 §7.8).
        """
        self.begun = True
        self._promised = length
        self._settle(reply)
        if reply.status == 101:
            self.persistent = False  # what follows is not HTTP
            self._write_head(reply, b"Connection: Upgrade\r\n")
            return
        if length is not None:
            framing = b"Content-Length: %d\r\n" % length
        elif self._version == "1.1":
            self._chunked = True
            framing = b"Transfer-Encoding: chunked\r\n"
        else:
            framing = b""
        self._write_head(reply, framing + self._connection())

    def write(self, data: bytes) -> None:
        """The next piece of the body."""
        if not data or self.ended or self.gone:
            return
        self.bytes_out += len(data)
        if self._chunked:
            self._channel.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._channel.write(data)

    def push(self, data: bytes) -> Send | None:
        """As `write`, of what was framed once for many clients, as `chunked` says; it leaves at once if it can.

        Returns what does the same for what comes next, as `Line.push`. Its bytes are counted by `pushed`.
        """
        return None if self.ended else self._channel.push(data)

    def pushed(self, size: int) -> None:
        """So many bytes of the body left by `push`, or by what it returned."""
        self.bytes_out += size

    def end(self) -> None:
        """The reply is complete."""
        if self.ended:
            return
        if self._promised is not None and self._promised != self.bytes_out:
            self.abort()  # the next reply would be read as the rest of this one
            return
        self.ended = True
        self.source = None
        if self._chunked:
            self._channel.write(b"0\r\n\r\n")
        self._channel.ended(self)

    def abort(self) -> None:
        """The reply will never be complete: reset the connection, so that it does not look so."""
        if self.ended:
            return
        self.ended = True
        self.source = None
        self._channel.abort()

    def relay(self, source: BodySource, sink: BodySink) -> None:
        """Start `source` into `sink`, which writes here, and let it push only as fast as the client takes it."""
        self.source = source
        source.start(sink)
        if self.source is not None and self._channel.blocked:
            source.pause()

    def lost(self) -> None:
        """The client left."""
        self.ended = True
        self.source = None

    def _settle(self, reply: Reply) -> None:
        if reply.close:
            self.persistent = False

    def _write_head(self, reply: Reply, framing: bytes) -> None:
        self._channel.write(render_head(reply.status, reply.headers, framing, self._channel.date()))

    def _connection(self) -> bytes:
        return b"" if self.persistent else b"Connection: close\r\n"


class Exchange(ReplyWriter):
    """A request and the writer of its reply."""

    unreadable = False
    offers_upgrade = False
    """The client would go on in another protocol, and nothing of what it sent behind this request has been read."""

    def __init__(self, channel: "EdgeChannel", head: RequestHead, body: RequestBody, framing: Framing) -> None:
        super().__init__(channel, method=head.method, version=framing.version, persistent=framing.persistent)
        self.head, self.body = head, body
        self.expects_continue = framing.expects_continue
        self.on_lost: Callable[[], None] | None = None
        """Called once if the client leaves before the reply has ended."""
        self.party: set[Exchange] | None = None
        """Those among whom it is counted until it ends."""

    @property
    def channel(self) -> "EdgeChannel":
        """The connection, for whoever takes it over."""
        return self._channel

    @property
    def protocol(self) -> bytes:
        """`HTTP/1.1`, or what else the client speaks."""
        return b"HTTP/" + self._version.encode("ascii")

    def _settle(self, reply: Reply) -> None:
        super()._settle(reply)
        if not self.body.complete:
            # The channel reads no further request after this one, so the client must hear it (RFC 9112 §9.6): it
            # would take the connection for the next request, and lose it.
            self.persistent = False

    def lost(self) -> None:
        """The client left."""
        super().lost()
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost()
