"""What passes the gateway in either direction, byte for byte, whatever it is."""

import re
import string
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.e2e.harness import Answer, Recorded
from tests.e2e.stage import Pairs, Stage, staged
from tests.minting import Issuer

EXAMPLES = settings(max_examples=60, deadline=None)
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


@pytest.fixture(scope="module")
def stage(issuer: Issuer) -> Iterator[Stage]:
    with staged(issuer) as it:
        yield it


def the_one(stage: Stage) -> Recorded:
    (request,) = stage.upstream.wait_for(1)
    return request


GATEWAYS_OWN = {
    *("x-user-id", "x-user-email", "x-user-role", "x-tenant-id", "x-subscription-tier", "x-subscription-status"),
    *("x-is-demo", "x-request-id", "traceparent", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "via"),
}


class TestRequests:
    @EXAMPLES
    @given(target=TARGETS, sent=fields(NOT_FORWARDED, FIELD_VALUES))
    @example(target=b"/api/v1/sales", sent=[])
    @example(target=b"/api/v1/sales?", sent=[(b"X-Empty", b""), (b"x-EMPTY", b"")])
    @example(target=b"/api/v1/sales/a%2eb/%c3%A9/;x=1?q=/../%2f%00//\\", sent=[(b"X-Latin", b"caf\xe9")])
    def test_target_and_end_to_end_fields_arrive_as_sent(
        self, stage: Stage, target: bytes, sent: list[tuple[bytes, bytes]]
    ) -> None:
        stage.reset()

        assert stage.get(target, *sent).status == 200

        request = the_one(stage)
        assert request.head.startswith(b"GET " + target + b" HTTP/1.1\r\n")
        own = [(b"Host", stage.upstream.url[7:].encode()), (b"Authorization", b"Bearer " + stage.token.encode())]
        assert request.headers[: 2 + len(sent)] == [*own, *sent]
        assert {name.decode().lower() for name, _ in request.headers[2 + len(sent) :]} == GATEWAYS_OWN

    @EXAMPLES
    @given(
        method=st.sampled_from([b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"]),
        body=BODIES,
        sizes=st.none() | CUTS,
    )
    @example(method=b"POST", body=b"", sizes=None)
    @example(method=b"POST", body=b"", sizes=[])
    @example(method=b"DELETE", body=b"0\r\n\r\n", sizes=[1, 1, 1])
    @example(method=b"PUT", body=bytes(range(256)) * 4096, sizes=[65536] * 8)
    def test_bodies_arrive_as_sent_in_the_framing_they_came_in(
        self, stage: Stage, method: bytes, body: bytes, sizes: list[int] | None
    ) -> None:
        stage.reset()
        framing = (b"Transfer-Encoding", b"chunked") if sizes is not None else (b"Content-Length", b"%d" % len(body))
        data = chunked(body, sizes) if sizes is not None else body

        assert stage.ask(stage.head(b"/api/v1/sales/body", framing, method=method) + data).status == 200

        request = the_one(stage)
        assert request.body == body
        assert request.method == method.decode()
        if sizes is not None:
            assert (request.value("transfer-encoding"), request.values("content-length")) == (b"chunked", [])
        elif body:
            assert (request.value("content-length"), request.values("transfer-encoding")) == (b"%d" % len(body), [])

    def test_spaces_around_values_are_no_part_of_them(self, stage: Stage) -> None:
        stage.reset()
        token = stage.token.encode()
        head = b"POST /api/v1/sales/x HTTP/1.1\r\nHost: \tgw \r\nContent-Length:  2\t \r\nX-A: \t a b\t \r\n"

        assert stage.ask(head + b"Authorization: Bearer " + token + b" \r\n\r\nhi").status == 200

        request = the_one(stage)
        assert b"\r\nX-A: a b\r\n" in request.head
        assert (request.body, request.value("x-forwarded-host")) == (b"hi", b"gw")


def answered(status: int, headers: Pairs, framing: bytes, body: bytes) -> bytes:
    lines = b"".join(b"%b: %b\r\n" % field for field in headers)
    return b"HTTP/1.1 %d Some Phrase\r\n" % status + lines + framing + b"\r\n" + body


class TestAnswers:
    @EXAMPLES
    @given(
        status=st.sampled_from(
            [200, 201, 202, 206, 226, 300, 301, 302, 400, 401, 404, 409, 418, 422, 429, 500, 503, 599]
        )
        | st.integers(200, 599).filter(lambda status: status not in (204, 205, 304)),
        sent=fields(NOT_RETURNED, FIELD_VALUES),
        body=BODIES,
        sizes=st.none() | CUTS,
    )
    @example(status=200, sent=[(b"Set-Cookie", b"a=1; Path=/"), (b"set-cookie", b"b=2"), (b"Set-Cookie", b"a=1")],
             body=b"", sizes=None)  # fmt: skip
    @example(status=207, sent=[(b"X-Odd_Name", b"1"), (b"Warning", b'199 - "\xe4"')], body=b"\0" * 70_000, sizes=[9])
    def test_status_fields_and_body_come_back_as_sent(
        self, stage: Stage, status: int, sent: list[tuple[bytes, bytes]], body: bytes, sizes: list[int] | None
    ) -> None:
        stage.reset()
        framing = b"Transfer-Encoding: chunked\r\n" if sizes is not None else b"Content-Length: %d\r\n" % len(body)
        data = chunked(body, sizes) if sizes is not None else body
        stage.upstream.next(Answer(pieces=(answered(status, sent, framing, data),)))

        received = stage.get()

        assert received.status == status
        assert received.headers[: len(sent)] == sent
        assert received.body == body
        assert received.rest == b""
        if sizes is None:
            assert received.values("content-length") == [b"%d" % len(body)]

    def test_an_answer_in_many_small_pieces_is_the_same_answer(self, stage: Stage) -> None:
        stage.reset()
        data = answered(200, [(b"X-A", b"1")], b"Transfer-Encoding: chunked\r\n", chunked(b"panes", [2, 1]))
        stage.upstream.next(Answer(pieces=tuple(data[at : at + 1] for at in range(len(data))), between_s=0.002))

        received = stage.get()

        assert (received.headers[0], received.body) == ((b"X-A", b"1"), b"panes")
