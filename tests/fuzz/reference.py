"""A second reading of HTTP/1.1 by RFC 9112's grammar, to compare the gateway's with: slow, whole messages, no leniency.

It shares nothing with the gateway or its parser. Of a stream with two possible readings it makes none: that is a fault.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

Pairs = tuple[tuple[bytes, bytes], ...]

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TEXT: Final = rb"[\t \x21-\x7e\x80-\xff]*"
_REQUEST_LINE: Final = re.compile(rb"(%b) +([\x21-\x7e]+) +HTTP/(1\.[01])" % _TOKEN)
_STATUS_LINE: Final = re.compile(rb"HTTP/(1\.[01]) ([0-9]{3})(?: [^\r\n]*)?")
"""A phrase is for nobody to read or relay, so it may hold anything (RFC 9112 §4)."""
_FIELD: Final = re.compile(rb"(%b):(%b)" % (_TOKEN, _TEXT))
_CHUNK_LINE: Final = re.compile(rb"0*([0-9A-Fa-f]{1,16})(?:[ \t]*;%b)?" % _TEXT)
_BODILESS: Final = frozenset({204, 205, 304})

Length = int | None
"""Bytes of a body, `None` for a chunked one."""


class Fault(Exception):
    """The bytes are not HTTP/1.1, or could be read in two ways."""


class Incomplete(Exception):
    """What is there is sound so far."""


@dataclass(frozen=True, kw_only=True)
class ReadRequest:
    """A request, or the beginning of one: its head is whole, its body maybe not."""

    method: bytes
    target: bytes
    fields: Pairs
    body: bytes
    complete: bool

    @property
    def identity(self) -> tuple[bytes, bytes, bytes]:
        return self.method, self.target, self.body


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The requests in a client's stream."""

    requests: tuple[ReadRequest, ...]
    """The whole ones."""
    partial: ReadRequest | None
    """One whose head alone is whole."""
    end: Literal["open", "closed", "fault"]
    """More may follow; the last request was the last by its own word; what follows makes no sense."""

    @property
    def begun(self) -> tuple[ReadRequest, ...]:
        return self.requests if self.partial is None else (*self.requests, self.partial)


@dataclass(frozen=True, kw_only=True)
class ReadAnswer:
    """A final response, or the beginning of one."""

    status: int
    fields: Pairs
    body: bytes
    complete: bool
    until_close: bool
    """Only the end of the connection ends the body."""
    end: int
    """Where in the stream it ends; -1 where its body makes no sense."""

    def values(self, name: bytes) -> list[bytes]:
        """The values of one field, by its name in lower case."""
        return _values(self.fields, name)


def read_requests(data: bytes) -> Reading:
    """All requests in what a client has sent."""
    requests: list[ReadRequest] = []
    at = 0
    while True:
        while data[at : at + 1] in (b"\r", b"\n"):  # RFC 9112 §2.2
            at += 1
        try:
            request, at, last = read_request(data, at)
        except Incomplete:
            return Reading(requests=tuple(requests), partial=None, end="open")
        except Fault:
            return Reading(requests=tuple(requests), partial=None, end="fault")
        if not request.complete:
            return Reading(requests=tuple(requests), partial=request, end="fault" if at < 0 else "open")
        requests.append(request)
        if last:
            return Reading(requests=tuple(requests), partial=None, end="closed")


def read_request(data: bytes, start: int) -> tuple[ReadRequest, int, bool]:
    """The request at `start`; where it ends (-1: its body is faulty); whether the client wants no further one."""
    line, fields, at = _head(data, start)
    parsed = _REQUEST_LINE.fullmatch(line)
    if parsed is None:
        raise Fault("request line")
    method, target, version = parsed.groups()
    if len(_values(fields, b"host")) != 1:
        raise Fault("host")
    length = _length(fields, version)
    if length is _ABSENT:
        length = 0
    assert length is None or isinstance(length, int)
    complete = True
    try:
        body, at = _body(data, at, length)
    except _BodyEnds as early:
        body, complete, at = early.so_far, False, -1 if early.faulty else len(data)
    last = version == b"1.0" or b"close" in _options(fields)
    return ReadRequest(method=method, target=target, fields=fields, body=body, complete=complete), at, last


def read_answer(data: bytes, start: int = 0, *, to_head: bool = False, closed: bool = False) -> ReadAnswer:
    """The final response at `start`, 1xx before it skipped. `closed`: nothing follows `data`, by an orderly end.

    Raises `Fault`, or `Incomplete` where no head is whole.
    """
    while True:
        line, fields, at = _head(data, start)
        parsed = _STATUS_LINE.fullmatch(line)
        if parsed is None:
            raise Fault("status line")
        version, status = parsed[1], int(parsed[2])
        if not 100 <= status <= 599 or status == 101:
            raise Fault("status")
        if status >= 200:
            break
        start = at
        while data[start : start + 1] in (b"\r", b"\n"):  # between two messages, where they mean nothing
            start += 1
    length = _length(fields, version)
    if to_head or status in _BODILESS:
        return ReadAnswer(status=status, fields=fields, body=b"", complete=True, until_close=False, end=at)
    if length is _ABSENT:
        body = data[at:]
        return ReadAnswer(status=status, fields=fields, body=body, complete=closed, until_close=True, end=len(data))
    assert length is None or isinstance(length, int)
    try:
        body, at = _body(data, at, length)
    except _BodyEnds as early:
        end = -1 if early.faulty else len(data)
        return ReadAnswer(status=status, fields=fields, body=early.so_far, complete=False, until_close=False, end=end)
    return ReadAnswer(status=status, fields=fields, body=body, complete=True, until_close=False, end=at)


class _BodyEnds(Exception):
    """A body that is not whole: the rest has not come, or makes no sense."""

    def __init__(self, so_far: bytes, *, faulty: bool) -> None:
        super().__init__()
        self.so_far, self.faulty = so_far, faulty


_ABSENT: Final = object()


def _head(data: bytes, start: int) -> tuple[bytes, Pairs, int]:
    """First line, fields, and where the body begins."""
    end = data.find(b"\r\n\r\n", start)
    if end < 0:
        raise Incomplete
    line, *lines = data[start:end].split(b"\r\n")
    return line, tuple(map(_field, lines)), end + 4


def _field(line: bytes) -> tuple[bytes, bytes]:
    parsed = _FIELD.fullmatch(line)
    if parsed is None:
        raise Fault("field")
    return parsed[1], parsed[2].strip(b" \t")


def _values(fields: Pairs, name: bytes) -> list[bytes]:
    return [value for known, value in fields if known.lower() == name]


def _options(fields: Pairs) -> set[bytes]:
    return {option.strip(b" \t").lower() for value in _values(fields, b"connection") for option in value.split(b",")}


def _length(fields: Pairs, version: bytes) -> object:
    """Bytes of the body, `None` where it is chunked, `_ABSENT` where nothing tells (RFC 9112 §6)."""
    codings, lengths = _values(fields, b"transfer-encoding"), _values(fields, b"content-length")
    if len(codings) + len(lengths) > 1:
        raise Fault("framing twice")
    if codings:
        if version == b"1.0" or codings[0].lower() != b"chunked":
            raise Fault("transfer coding")
        return None
    if not lengths:
        return _ABSENT
    if not re.fullmatch(rb"[0-9]+", lengths[0]):
        raise Fault("length")
    return int(lengths[0][-30:]) if len(lengths[0]) < 4000 else 10**30


def _body(data: bytes, at: int, length: Length) -> tuple[bytes, int]:
    if length is None:
        return _chunked(data, at)
    if len(data) - at < length:
        raise _BodyEnds(data[at:], faulty=False)
    return data[at : at + length], at + length


def _chunked(data: bytes, at: int) -> tuple[bytes, int]:
    """A chunked body and where its trailer section ends (RFC 9112 §7.1)."""
    body = b""
    while True:
        end = data.find(b"\r\n", at)
        parsed = _CHUNK_LINE.fullmatch(data[at:end]) if end >= 0 else None
        if parsed is None:
            raise _BodyEnds(body, faulty=end >= 0)
        size, at = int(parsed[1], 16), end + 2
        if size == 0:
            break
        if len(data) < at + size + 2:
            so_far = body + data[at : at + size]
            raise _BodyEnds(so_far, faulty=not b"\r\n".startswith(data[at + size : at + size + 2]))
        if data[at + size : at + size + 2] != b"\r\n":
            raise _BodyEnds(body + data[at : at + size], faulty=True)
        body, at = body + data[at : at + size], at + size + 2
    while not data.startswith(b"\r\n", at):
        end = data.find(b"\r\n", at)
        if end < 0:
            raise _BodyEnds(body, faulty=False)
        if _FIELD.fullmatch(data[at:end]) is None:
            raise _BodyEnds(body, faulty=True)
        at = end + 2
    return body, at + 2
