"""A service's response as bytes to be judged: the parser's events in, a head and pieces of a body out. No I/O."""

from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from bakerygw.core.http import Pairs

MAX_HEADERS: Final = 100
MAX_HEAD_BYTES: Final = 32 * 1024
MAX_INTERIM: Final = 10
"""Interim (1xx) responses before the final one."""


class Rogue(Exception):  # a judgement on the service, not an error of ours
    """The response can't be trusted from here on. `str()` is a short cause for the log."""


class ResponseReader:
    """Reads one response at a time; `begin` makes it ready for the next.

    llhttp refuses most malformed input by itself; the rest is decided here. Nothing may be acted upon inside the
    parser's callbacks: a fault may follow in the same piece of data, so callers look at the attributes after `feed`.
    """

    __slots__ = (
        "_bodiless",
        "_chunked",
        "_count",
        "_fault",
        "_headers",
        "_interim",
        "_length_fields",
        "_method",
        "_parser",
        "_quiet_bytes",
        "_size",
        "_tail",
        "_te_fields",
        "_upgradable",
        "behind",
        "complete",
        "head_done",
        "headers",
        "length",
        "pieces",
        "reusable",
        "status",
        "touched",
        "until_close",
    )

    def begin(self, method: str, upgradable: bool = False) -> None:
        """Expect the response to a request with this method, which may be 101 if `upgradable`."""
        # A fresh parser costs 0.3 µs and knows nothing of earlier messages, nor that HEAD is answered without a body.
        self._parser = HttpResponseParser(self)
        self._method, self._upgradable = method, upgradable
        self._bodiless = self._chunked = False
        self._count = self._size = self._interim = self._quiet_bytes = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._length_fields: list[bytes] = []
        self._te_fields: list[bytes] = []
        self._fault: str | None = None
        self._tail = b""
        self.status = 0
        """Of the final response, once `head_done`."""
        self.headers: Pairs = ()
        self.length: int | None = None
        """Bytes promised; to HEAD and in a 304, what a GET would have got."""
        self.pieces: list[bytes] = []
        """Body bytes not yet taken; whoever takes them empties the list."""
        self.head_done = self.complete = False
        self.touched = False
        """At least one byte has come."""
        self.until_close = False
        """Only the end of the connection ends the body."""
        self.reusable = True
        """Nothing speaks against another exchange on this connection."""
        self.behind = b""
        """What came behind a 101, in the other protocol."""

    def feed(self, data: bytes) -> None:
        """Read the next bytes. Raises `Rogue`; pieces read before the fault are kept."""
        if not self.touched:
            self.touched = True
            if data[:1] != b"H":  # llhttp also takes RTSP, ICE and empty lines before the status line
                raise Rogue("not an HTTP response")
        head_was_done = self.head_done
        pieces_before = len(self.pieces)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self.reusable = False
            if not self.complete:
                raise Rogue("malformed upgrade") from None
            self.behind = data[upgrade.args[0] :]
            return
        except HttpParserError as error:
            self.reusable = False
            if not self.complete:  # surplus bytes spoil the connection, not the response before them
                raise Rogue(self._fault or f"malformed response: {error}") from None
            return
        if self.complete:
            if self.reusable and not self._ended_exactly(data, head_was_done, pieces_before):
                self.reusable = False
            return
        self._tail = (self._tail + data[-3:])[-3:]
        # Also bounds what hides between the pieces of a body: chunk extensions and trailers.
        self._quiet_bytes = self._quiet_bytes + len(data) if len(self.pieces) == pieces_before else 0
        if self._quiet_bytes > MAX_HEAD_BYTES:
            raise Rogue("response head or framing too large")

    def _ended_exactly(self, data: bytes, head_was_done: bool, pieces_before: int) -> bool:
        """Whether the response's last byte is the last of `data`. llhttp skips line ends between messages silently."""
        if self._chunked and not self._bodiless:
            end = (self._tail + data[-16:])[-16:]
            return end[len(end.rstrip(b"\r\n")) :] == b"\r\n\r\n"
        fed = sum(map(len, self.pieces[pieces_before:]))
        if not head_was_done:
            fed += (self._tail + data).find(b"\r\n\r\n") + 4 - len(self._tail)
        return fed == len(data)

    def _refuse(self, fault: str) -> None:
        self._fault = fault
        raise Rogue(fault)

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        """Another message after a complete one is surplus."""
        if self.complete:
            self.reusable = False
            self._refuse("surplus bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field of the head; drop a trailer (RFC 9110 section 6.5.1 lets recipients do so)."""
        self._count += 1
        self._size += len(name) + len(value) + 4
        if self._count > MAX_HEADERS or self._size > MAX_HEAD_BYTES:
            self._refuse("too many or too large header fields")
        if self.head_done:
            return
        sent = value
        if value[-1:] in (b" ", b"\t"):
            value = value.rstrip(b" \t")
        self._headers.append((name, value))
        size = len(name)
        if size == 14 and name.lower() == b"content-length":
            self._length_fields.append(value)
        elif size == 17 and name.lower() == b"transfer-encoding":
            self._te_fields.append(sent.rstrip(b" "))  # behind a tab llhttp sees another coding, and no chunks
        elif size == 10 and name.lower() == b"connection" and b"close" in value.lower():
            self.reusable = False

    def on_headers_complete(self) -> None:
        """Judge the head as a whole; an interim one is consumed (RFC 9110 section 15.2)."""
        parser = self._parser
        status = parser.get_status_code()
        version = parser.get_http_version()
        if version != "1.1":
            self.reusable = False
            if version != "1.0" or self._te_fields:
                self._refuse("unsupported HTTP version or framing")
        if status < 200:
            if status == 101 and self._upgradable and version == "1.1" and parser.should_upgrade():
                self.status, self.headers = status, tuple(self._headers)
                self.head_done = self.complete = True
                self.reusable = False
                return
            self._interim += 1
            if status < 100 or status == 101 or self._interim > MAX_INTERIM:
                self._refuse("unsolicited or too many interim responses")
            return
        if status > 599:
            self._refuse("status out of range")
        self.status = status
        self.headers = tuple(self._headers)
        self._frame(status)
        self.head_done = True
        self._count = self._size = 0

    def _frame(self, status: int) -> None:
        """Decide how long the body is (RFC 9112 section 6.3)."""
        lengths, codings = self._length_fields, self._te_fields
        if len(lengths) + len(codings) > 1:
            self._refuse("ambiguous framing")
        if codings:
            if codings[0].lower() != b"chunked":
                self._refuse("unsupported transfer coding")
            self._chunked = True
        elif lengths:
            if not lengths[0].isdigit() or len(lengths[0]) > 15:
                self._refuse("invalid content length")
            self.length = int(lengths[0])
        if status in (204, 205, 304) or self._method == "HEAD":
            if status in (204, 205):
                # A 205 has no content (RFC 9110 section 15.3.6); bytes that come all the same are surplus.
                self.length = 0
            self._bodiless = self.complete = True
        elif not lengths and not codings:
            self.until_close = True
            self.reusable = False

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body."""
        if self._bodiless:
            self.reusable = False
            return
        self.pieces.append(data)

    def on_message_complete(self) -> None:
        """The final response is complete, or an interim one makes room for the next head."""
        if self.head_done:
            self.complete = True
            return
        self._headers = []
        self._length_fields = []
        self._te_fields = []
        self._count = self._size = 0
