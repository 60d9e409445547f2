"""A service's answers: sound ones out of a grammar, and what spoils them.

As for streams, everything comes from one `Random`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.fuzz.streams import Shape, cut, framed, mutated

STATUSES: Final = (200, 200, 200, 200, 201, 206, 204, 205, 304, 302, 404, 500, 503, 599)
INTERIM: Final = (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n")
EVIL: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Tag: evil\r\n\r\nevil"
"""Stands behind an answer now and then, or in its body: never to be anybody's answer."""
_SHAPE: Final = Shape(targets=lambda _: b"", lines=())


@dataclass(frozen=True, kw_only=True)
class AnswerStream:
    """What a service sends for one request, in which pieces, and how it goes on."""

    data: bytes
    pieces: tuple[bytes, ...]
    sound: bool
    """It is as the grammar made it."""
    closes: bool
    resets: bool
    """Where it closes, it does so with a reset."""


def answer_stream(random: Random, *, to_head: bool = False, fields: Sequence[bytes] = ()) -> AnswerStream:
    """An answer with these lines in its head, where nothing has spoilt them."""
    sound = random.random() < 0.4
    data = _answer(random, to_head, fields)
    closes = b"content-length" not in data.lower() and b"chunked" not in data.lower()
    if not sound:
        data = mutated(random, data) if random.random() < 0.8 else data + random.choice((EVIL, b"x", b"\r\n", data))
        if random.random() < 0.1:
            data = data[: random.randrange(len(data) + 1)]
        closes = closes or random.random() < 0.3
    return AnswerStream(
        data=data, pieces=cut(random, data), sound=sound, closes=closes, resets=closes and random.random() < 0.3
    )


def _answer(random: Random, to_head: bool, fields: Sequence[bytes]) -> bytes:
    status = random.choice(STATUSES)
    framing, body = framed(random, _SHAPE)
    if status in (204, 205):
        framing, body = ([b"Content-Length: 0"] if status == 205 else []), b""
    elif not framing and not to_head and status != 304:
        framing = random.choice(([b"Content-Length: 0"], []))
        body = b"" if framing else random.choice((b"", b"until the end", EVIL))
    if to_head or status == 304:
        body = b""
    lines = [*fields, *framing, *random.choice(((), (b"Connection: close",), (b"X-Empty:",), (b"Set-Cookie: a=b",)))]
    random.shuffle(lines)
    interim = random.choice(
        (b"",) * 8 + (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n")
    )
    return interim + b"\r\n".join([b"HTTP/1.1 %d Some Phrase" % status, *lines, b"", b""]) + body
