"""Streams of a client: requests out of a grammar, most of them then spoilt a little, and cut into pieces.

Everything comes from one `Random`, so a seed and a number name a stream for ever.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Final

from tests.fuzz.corpus import CORPUS

SMUGGLED: Final = b"/smuggled"

METHODS: Final = (b"GET", b"GET", b"GET", b"POST", b"POST", b"PUT", b"HEAD", b"DELETE", b"PATCH", b"OPTIONS")
ODD_LINES: Final = (
    b"Content-Length: 0", b"Content-Length: 5", b"Content-Length: 05", b"Content-Length: +5", b"Content-Length: -5",
    b"Content-Length: 5, 5", b"Content-Length: 0x5", b"Content-Length:", b"Content-Length : 5", b"content-length: 5 5",
    b"Content-Length: 99999999999999999999", b"Content-Length: 999999999999999", b"Content_Length: 5",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: Chunked ", b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: identity", b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding:\tchunked", b"Transfer-Encoding : chunked", b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding:", b"Transfer-Encoding: chunked;q=1", b"X: y\r\n Transfer-Encoding: chunked", b"\tfolded",
    b"X: y\nTransfer-Encoding: chunked", b"X: y\rTransfer-Encoding: chunked", b"X: \0", b"X: \x7f", b"X: \xe9", b"X:",
    b"Connection: close", b"Connection: keep-alive, Close", b"Connection: keep-alive", b"Connection: closer",
    b"Connection: close ,x", b"Connection: \"close\"", b"Connection: x-a,,close", b"Connection: Transfer-Encoding",
    b"Connection: Upgrade, HTTP2-Settings", b"Connection: upgrade, close", b"Upgrade: h2c", b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13", b"Expect: 100-continue", b"Expect: 100-Continue", b"Expect: x", b"Host: other",
    b"Host:", b"Trailer: X", b"TE: trailers", b"X-Forwarded-For: 1.2.3.4", b"no colon", b": x", b"X-A : b",
    b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA", b"Keep-Alive: timeout=5", b"Proxy-Connection: close",
)  # fmt: skip
TOKENS: Final = (
    b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\n\n", b"\r\r\n", b"\n\r", b" ", b"\t", b"\0", b"\x0b", b"\x85", b"\xc2\xa0",
    b":", b";", b",", b"0\r\n\r\n", b"0\r\n", b"\r\n0\r\n\r\n", b"1\r\nx\r\n", b"ffffffffffffffff\r\n", b"-1\r\n",
    b"7fffffffffffffff\r\n", b"0x1\r\n", b"00000000000000000\r\n", b"10000000000000000\r\n", b"5;a=b\r\n",
    b"HTTP/1.1", b"HTTP/1.0", b" HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /smuggled HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET ", b"POST ", b"/", b"//", b"/../", b"%2e%2e", b"%00", b"#", b"\\", b"?",
    b"http://x/", b"a" * 300, b"A: b\r\n" * 120, b"\xff" * 5, b"chunked", b"close", b"100-continue",
)  # fmt: skip
LINE_ENDS: Final = (
    b"\n",
    b"\r",
    b"\r\r\n",
    b"\n\r",
    b"\r\n ",
    b"\r\n\t",
    b" \r\n",
    b"\r\n\r\n",
    b"",
    b"\0\r\n",
    b"\t\r\n",
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the requests have in common."""

    targets: Callable[[int], bytes]
    """The target of the n-th request of a stream."""
    lines: tuple[bytes, ...] = (b"Host: bakery.example",)
    """In every head."""
    substitute: tuple[bytes, bytes] | None = None
    """Put in at the end, when nothing can spoil it any more: the placeholder, and what it stands for."""
    large: int = 3000
    """The size of large bodies."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What a client sends, and in which pieces."""

    data: bytes
    pieces: tuple[bytes, ...]
    sound: bool
    """It is as the grammar made it, so all of it must be understood."""


def stream(random: Random, shape: Shape) -> Stream:
    """One stream."""
    known = random.random() < 0.1
    count = random.choice((1, 1, 2, 2, 3, 5))
    if known:
        data = known_stream(random.choice(CORPUS), shape)
    else:
        data = b"".join(request(random, shape, number, last=number == count - 1) for number in range(count))
    sound = not known and random.random() < 0.2
    if not sound and not (known and random.random() < 0.2):
        for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
            data = random.choice(MUTATIONS)(random, data)
    if shape.substitute is not None:
        data = data.replace(*shape.substitute)
    return Stream(data=data, pieces=cut(random, data), sound=sound)


def known_stream(entry: bytes, shape: Shape) -> bytes:
    """A stream of the corpus in this shape."""
    data = entry.replace(b"{H}", b"\r\n".join([b" HTTP/1.1", *shape.lines, b""]))
    for number in range(3):
        data = data.replace(b"{%d}" % number, shape.targets(number))
    return data


def request(random: Random, shape: Shape, number: int, *, last: bool) -> bytes:
    """One sound request, with a request hidden in its body now and then."""
    method = random.choice(METHODS)
    version = b"1.0" if last and random.random() < 0.05 else b"1.1"
    lines = [method + b" " + shape.targets(number) + b" HTTP/" + version, *shape.lines]
    lines += [b"X-%d: %b" % (at, random.choice((b"", b"a b", b"\xe9", b"x" * 40))) for at in range(random.randrange(3))]
    framing, body = framed(random, shape, chunked=version == b"1.1")
    lines += framing
    if last and random.random() < 0.2:
        lines.append(b"Connection: close")
    if body and random.random() < 0.1:
        lines.append(b"Expect: 100-continue")
    head, fields = lines[0], lines[1:]
    random.shuffle(fields)
    return b"\r\n".join([head, *fields, b"", b""]) + body


def framed(random: Random, shape: Shape, *, chunked: bool = True) -> tuple[list[bytes], bytes]:
    """The framing fields of a body, and the body as they frame it."""
    kind = random.random()
    if kind < 0.35:
        return [], b""
    content = _content(random, shape)
    if kind < 0.65 or not chunked:
        return [b"Content-Length: %d" % len(content)], content
    body, at = b"", 0
    while at < len(content):
        size = random.choice((1, 3, 16, 100, 1 << 16))
        piece = content[at : at + size]
        at += len(piece)
        extension = random.choice((b"", b"", b"", b";a", b';a="b c"', b";" + b"e" * 50))
        body += b"%x%b\r\n%b\r\n" % (len(piece), extension, piece)
    trailers = random.choice((b"", b"", b"", b"T: u\r\n", b"X-User-Id: admin\r\n"))
    return [b"Transfer-Encoding: " + random.choice((b"chunked", b"Chunked"))], body + b"0\r\n" + trailers + b"\r\n"


def _content(random: Random, shape: Shape) -> bytes:
    kind = random.random()
    if kind < 0.4:
        own = b"\r\n".join([b"GET " + SMUGGLED + b" HTTP/1.1", *shape.lines, b"", b""])
        return random.choice((own, b"0\r\n\r\n" + own, b"\r\n" + own, b"x\r\n0\r\n\r\n" + own))
    if kind < 0.5:
        return b""
    if kind < 0.6:
        return random.randbytes(random.randrange(1, shape.large))
    return random.randbytes(random.randrange(1, 40))


# Spoiling


def _replace(random: Random, data: bytes) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + random.randbytes(1) + data[at + 1 :]


def _drop(random: Random, data: bytes) -> bytes:
    at, size = random.randrange(len(data) + 1), random.choice((1, 1, 2, 9, 60))
    return data[:at] + data[at + size :]


def _insert(random: Random, data: bytes) -> bytes:
    at = random.choice(_edges(data)) if random.random() < 0.6 else random.randrange(len(data) + 1)
    return data[:at] + random.choice(TOKENS) + data[at:]


def _add_line(random: Random, data: bytes) -> bytes:
    at = random.choice(_edges(data))
    return data[:at] + random.choice(ODD_LINES) + b"\r\n" + data[at:]


def _swap_line(random: Random, data: bytes) -> bytes:
    lines = data.split(b"\r\n")
    one, two = random.randrange(len(lines)), random.randrange(len(lines))
    lines[one], lines[two] = lines[two], lines[one]
    return b"\r\n".join(lines)


def _double_line(random: Random, data: bytes) -> bytes:
    lines = data.split(b"\r\n")
    lines.insert(random.randrange(len(lines)), random.choice(lines))
    return b"\r\n".join(lines)


def _odd_line_end(random: Random, data: bytes) -> bytes:
    ends = [at for at in range(len(data)) if data.startswith(b"\r\n", at)]
    if not ends:
        return data
    at = random.choice(ends)
    return data[:at] + random.choice(LINE_ENDS) + data[at + 2 :]


def _other_number(random: Random, data: bytes) -> bytes:
    digits = [at for at, byte in enumerate(data) if 0x30 <= byte <= 0x39]
    if not digits:
        return data
    at = random.choice(digits)
    put = random.choice(
        (b"0", b"1", b"9", b"+1", b"-1", b"0x1", b" 1", b"1 ", b"1,1", b"", b"f", b"00000000001", b"1\t")
    )
    return data[:at] + put + data[at + random.randrange(2) :]


def _other_case(random: Random, data: bytes) -> bytes:
    at, size = random.randrange(len(data) + 1), random.choice((1, 4, 20))
    return data[:at] + data[at : at + size].swapcase() + data[at + size :]


def _repeat(random: Random, data: bytes) -> bytes:
    at, size = random.randrange(len(data) + 1), random.randrange(1, 80)
    return data[: at + size] + data[at:]


def _end_early(random: Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _edges(data: bytes) -> list[int]:
    """Where lines begin, and the end."""
    return [0, *(at + 2 for at in range(len(data)) if data.startswith(b"\r\n", at)), len(data)]


MUTATIONS: Final[Sequence[Callable[[Random, bytes], bytes]]] = (
    _replace, _drop, _insert, _insert, _insert, _add_line, _add_line, _add_line, _swap_line, _double_line,
    _odd_line_end, _odd_line_end, _other_number, _other_number, _other_case, _repeat, _end_early,
)  # fmt: skip


def mutated(random: Random, data: bytes) -> bytes:
    """The same bytes, spoilt once or a few times."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = random.choice(MUTATIONS)(random, data)
    return data


def cut(random: Random, data: bytes) -> tuple[bytes, ...]:
    """The same bytes in pieces: one, two, some, or each byte by itself."""
    kind = random.random()
    if kind < 0.3 or len(data) < 2:
        return (data,)
    if kind < 0.4 and len(data) < 1500:
        return tuple(data[at : at + 1] for at in range(len(data)))
    number = 1 if kind < 0.7 else random.randrange(1, 12)
    edges = sorted({0, len(data), *(random.randrange(1, len(data)) for _ in range(number))})
    return tuple(data[one:two] for one, two in pairwise(edges))
