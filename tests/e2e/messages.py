"""Random messages of all kinds, as strategies, and what of them passes a gateway."""

import re
import string

from hypothesis import strategies as st

from tests.e2e.stage import Pairs

MAX_BODY = 1 << 20

TOKEN = string.ascii_letters + string.digits + "!#$%&'*+-.^`|~"
PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
SEGMENT = "".join(sorted(set(PRINTABLE) - set("/?#\\%;")))
ESCAPES = [f"%{byte:02x}" for byte in range(256) if byte not in (0x00, 0x0A, 0x0D, 0x25, 0x2E, 0x2F, 0x5C)]

NOT_FORWARDED = re.compile(
    rb"(?i)(connection|keep-alive|proxy.*|te|trailer|transfer-encoding|upgrade|http2-settings|content-length|expect|host"
    rb"|forwarded|via|traceparent|tracestate|authorization|cookie|origin|x-real-ip|x-request-id|x-is-demo"
    rb"|x-(http-)?method.*|x-(user|tenant|demo|forwarded|gateway|internal|original|rewrite|subscription)-.*)\Z"
)
NOT_RETURNED = re.compile(
    rb"(?i)(connection|keep-alive|proxy.*|te|trailer|transfer-encoding|upgrade|content-length|server|x-powered-by|date"
    rb"|x-request-id|x-content-type-options|vary|access-control-.*|(x-)?ratelimit.*|x-internal-.*|location)\Z"
)


def fields(taboo: re.Pattern[bytes], values: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[tuple[bytes, bytes]]]:
    """Header fields, many of them twice in different case."""
    names = st.text(TOKEN, min_size=1, max_size=24).map(str.encode) | st.sampled_from([b"X-Dup", b"x-dup", b"Accept"])
    return st.lists(st.tuples(names.filter(lambda name: not taboo.match(name)), values), max_size=30)


FIELD_VALUES = st.text(
    [chr(byte) for byte in range(256) if byte == 9 or (byte >= 32 and byte != 127)], max_size=60
).map(lambda text: text.encode("latin-1").strip(b" \t"))


def is_no_dot_segment(text: str) -> bool:
    return not re.match(r"\.{1,2}(;|\Z)", text)


SEGMENTS = (
    st.lists(
        st.text(SEGMENT, min_size=1, max_size=8) | st.sampled_from([*ESCAPES, ";", ";v=1", "a%2Eb", "%25-"]),
        min_size=1,
        max_size=6,
    )
    .map("".join)
    .filter(is_no_dot_segment)
)
PATHS = st.builds(
    lambda segments, slash: "/".join(["/api/v1/sales", *segments]) + slash,
    st.lists(SEGMENTS, max_size=6),
    st.sampled_from(["", "/"]),
)
QUERIES = st.none() | st.text(PRINTABLE.replace("#", ""), max_size=80)
TARGETS = st.builds(lambda path, query: (path if query is None else f"{path}?{query}").encode(), PATHS, QUERIES)

SMALL_BODIES = st.binary(max_size=200)
LARGE_BODIES = st.builds(
    lambda piece, size: (piece * (size // len(piece) + 1))[:size],
    st.binary(min_size=1, max_size=61),
    st.integers(60_000, MAX_BODY),
)
BODIES = st.one_of(SMALL_BODIES, SMALL_BODIES, LARGE_BODIES)
CUTS = st.lists(st.integers(1, 100_000), max_size=8)


def chunked(body: bytes, sizes: list[int]) -> bytes:
    """The body in chunks of these sizes, the rest in one."""
    out, at = b"", 0
    for size in [*sizes, len(body)]:
        piece = body[at : at + size]
        at += len(piece)
        out += b"%X;e=1\r\n%b\r\n" % (len(piece), piece) if piece else b""
    return out + b"0\r\nT: trailer\r\n\r\n"


GATEWAYS_OWN = {
    *("x-user-id", "x-user-email", "x-user-role", "x-tenant-id", "x-subscription-tier", "x-subscription-status"),
    *("x-is-demo", "x-request-id", "traceparent", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "via"),
}


def answered(status: int, headers: Pairs, framing: bytes, body: bytes) -> bytes:
    lines = b"".join(b"%b: %b\r\n" % field for field in headers)
    return b"HTTP/1.1 %d Some Phrase\r\n" % status + lines + framing + b"\r\n" + body
