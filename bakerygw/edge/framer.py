"""Bytes of one connection into requests, by llhttp, and the limits that llhttp leaves to its user (RFC 9112).

llhttp refuses conflicting framing, bare line feeds and bad characters by itself. What it
lets through and this module does not: other codings than `chunked`, sizes of any kind,
HTTP/1.0 chunking, and whatever `read_head` finds wrong with target or Host.
"""

from dataclasses import dataclass
from typing import ClassVar, Final, Protocol, cast

from httptools import HttpRequestParser
from httptools.parser.errors import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserUpgrade,
)
from twisted.logger import Logger

from bakerygw.core.heads import TrustedProxies, bad_method, read_head
from bakerygw.core.http import RequestHead
from bakerygw.core.problem import Refused, refuse
from bakerygw.core.values import value
from bakerygw.edge.body import RequestBody

TRAILER_BYTES: Final = 4096
FREE_OVERHEAD_BYTES: Final = 16 * 1024
"""After so many bytes of chunk sizes, chunk extensions and trailers they must not outweigh the body."""
FREE_CHUNKS: Final = 1024
"""After so many chunks of a body they must hold 16 bytes each on average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelLimits:
    """How much, and how slowly, a client may send."""

    head_bytes: int = 16 * 1024
    headers: int = 100
    uri_bytes: int = 8 * 1024
    head_s: float = 10.0
    keepalive_s: float = 75.0
    body_grace_s: float = 10.0
    """After this a body must have come at `body_bytes_per_s` on the whole."""
    body_bytes_per_s: int = 1024
    write_stall_s: float = 60.0
    """A client that takes nothing of its reply for so long is dropped."""
    linger_s: float = 2.0


@value
class Framing:
    """What the reply needs to know of the request's framing."""

    version: str
    persistent: bool
    expects_continue: bool


class Listener(Protocol):
    """Who takes the requests."""

    def head_began(self) -> None:
        """The first byte of a request has come."""

    def request_began(self, head: RequestHead, framing: Framing) -> RequestBody:
        """A head is whole; its body goes into what is returned."""

    def request_complete(self) -> None:
        """The last byte of the body has been pushed, but `finish` not been called."""


class _Left(Exception):
    """A callback has had enough; `_refusal` says of what."""


class Framer:
    """One connection's parser. `feed` raises `Refused` where the bytes stop making sense."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self, listener: Listener, limits: ChannelLimits, proxies: TrustedProxies, *, peer: str, tls: bool
    ) -> None:
        self._listener, self._limits, self._proxies = listener, limits, proxies
        self._peer = peer
        self.tls = tls
        """The client speaks TLS to us."""
        self._parser = HttpRequestParser(self)
        self._refusal: Refused | None = None
        self._priming = False
        self.in_head = False
        """A head has begun and is not whole."""
        self.last_read = False
        """The client said that this request is its last: what follows is nothing."""
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_size = self._unfinished_bytes = self._overhead_bytes = self._chunks = 0
        self._body: RequestBody | None = None
        self._begun = 0
        """Requests begun on this connection."""

    def feed(self, data: bytes) -> bytes | None:
        """The next bytes from the client, never from within a callback. Raises `Refused`; no more may be fed then.

        Stops behind a request that offers to upgrade and could be taken at its word: returns the bytes behind it,
        which are HTTP, and to be fed in their turn, only if the offer is not taken. Else returns `None`.
        """
        begun, body = self._begun, self._body
        received = 0 if body is None else body.received
        in_head_before = self.in_head
        behind = self._parse(data)
        while behind is not None and (self._body is not None or self.last_read):
            behind = self._parse(behind) if behind else None
        if behind is not None:
            return behind
        if in_head_before and self.in_head and begun == self._begun:
            # llhttp tells of a field only once it is whole; this bounds the one that it still collects
            self._unfinished_bytes += len(data)
            if self._unfinished_bytes > 2 * self._limits.head_bytes:
                raise self._head_too_large()
        elif body is not None and body is self._body:
            # the same for a chunk extension or a trailer without end
            self._overhead_bytes += len(data) - (body.received - received)
            if self._overhead_bytes > FREE_OVERHEAD_BYTES + body.received:
                raise refuse("bad-request", "Send larger chunks than these.", reason="chunk-overhead", close=True)
        return None

    def close(self) -> None:
        """Nothing more is fed: let go of all that it holds.

        So a lost connection goes with all that it still holds at once, and not when the collector of cycles comes,
        which counts objects and not their bytes.
        """
        self._body = self._refusal = None
        self._parser, self._listener = HttpRequestParser(None), cast(Listener, None)

    def _parse(self, data: bytes) -> bytes | None:
        """Let llhttp have `data`; returns what stands behind an offer to upgrade."""
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._stay_http()
            return data[upgrade.args[0] :]
        except HttpParserCallbackError:
            self._refusal = self._refusal or self._defect()
        except HttpParserError as error:
            if self.last_read and self._body is None and not self.in_head:
                return None
            if isinstance(error, HttpParserInvalidMethodError):
                raise bad_method(data.lstrip(b"\r\n")) from None
            detail = "Mend the request: it is not well-formed HTTP/1.1, and nothing of it was processed."
            raise refuse("bad-request", detail, reason=str(error)[:80], close=True) from None
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)  # whose frames hold it, and the connection, in a cycle
        return None

    def _stay_http(self) -> None:
        """Be ready to go on as HTTP/1.1 after a request that offered to upgrade, for few such offers are taken.

        llhttp ends such a message at its head, body or not, so a fresh parser is put at
        the place where the body begins, as ready as the old one to end with this request.
        """
        self._parser = HttpRequestParser(self)
        body = self._body
        if body is None and not self.last_read:
            return
        framing = b"Content-Length: 0"
        if body is not None:
            framing = b"Transfer-Encoding: chunked" if body.length is None else b"Content-Length: %d" % body.length
        if self.last_read:
            framing += b"\r\nConnection: close"
        self._priming = True
        self._parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")
        self._priming = False

    # llhttp's callbacks

    def on_message_begin(self) -> None:
        """A request line begins."""
        if self._priming:
            return
        self.in_head = True
        self._begun += 1
        self._target = b""
        self._headers = []
        self._head_size = self._unfinished_bytes = self._overhead_bytes = self._chunks = 0
        self._listener.head_began()

    def on_url(self, piece: bytes) -> None:
        """A piece of the request target."""
        if self._priming:
            return
        self._target += piece
        if len(self._target) > self._limits.uri_bytes:
            detail = f"The request target may have at most {self._limits.uri_bytes} bytes; send the rest in a body."
            self._leave(refuse("uri-too-long", detail, close=True))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or a trailer, which is dropped."""
        if self._priming:
            return
        self._head_size += len(name) + len(value) + 4
        if not self.in_head:
            if self._head_size > TRAILER_BYTES:
                self._leave(refuse("headers-too-large", "Send fewer or shorter trailers.", close=True))
            return
        if value[-1:] in (b" ", b"\t"):  # white space around a value is no part of it (RFC 9112 §5.1)
            value = value.rstrip(b" \t")
        self._headers.append((name, value))
        if self._head_size > self._limits.head_bytes or len(self._headers) > self._limits.headers:
            self._leave(self._head_too_large())

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if self._priming:
            return
        parser = self._parser
        version = parser.get_http_version()
        try:
            head = read_head(
                method=parser.get_method(),
                target=self._target,
                headers=tuple(self._headers),
                version=version,
                peer=self._peer,
                tls=self.tls,
                proxies=self._proxies,
            )
            framing = Framing(
                version=version,
                persistent=version == "1.1" and parser.should_keep_alive(),
                expects_continue=_expects_continue(head, version),
            )
        except Refused as refusal:
            self._leave(refusal)
        self.in_head = False
        self._head_size = 0
        self.last_read = not framing.persistent
        self._body = self._listener.request_began(head, framing)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self._body is not None:
            self._body.push(data)

    def on_chunk_header(self) -> None:
        """One more chunk: many tiny ones cost more than they carry."""
        self._chunks += 1
        if self._body is not None and self._chunks > FREE_CHUNKS and self._chunks * 16 > self._body.received:
            self._leave(refuse("bad-request", "Send larger chunks than these.", reason="tiny-chunks", close=True))

    def on_message_complete(self) -> None:
        """The request is whole."""
        body = self._body
        if self._priming or body is None:
            return
        if not body.complete and self._parser.should_upgrade():
            return  # the body is still to come, see `_stay_http`
        self._body = None
        self._listener.request_complete()

    def _defect(self) -> Refused:
        """What whoever listens to the parser raised and should not have: a fault of ours, not of the client's."""
        self._log.failure("parsing.crashed")
        return refuse("internal-error", "The gateway itself failed here; report the request_id.", close=True)

    def _leave(self, refusal: Refused) -> None:
        """Out of the parser, from inside one of its callbacks."""
        self._refusal = refusal
        raise _Left

    def _head_too_large(self) -> Refused:
        limits = self._limits
        detail = f"Send less in the head: {limits.headers} fields and {limits.head_bytes} bytes at most."
        return refuse("headers-too-large", detail, close=True)


def _expects_continue(head: RequestHead, version: str) -> bool:
    values = head.fields.get(b"expect")
    if values is None or version == "1.0":
        return False
    if len(values) == 1 and values[0].lower() == b"100-continue":
        return True
    refusal = refuse("expectation-failed", "Send no Expect but `100-continue`.", close=True)
    refusal.head = head
    raise refusal
