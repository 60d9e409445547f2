"""What passes the gateway in either direction, byte for byte, whatever it is."""

from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.e2e.harness import Answer, Recorded
from tests.e2e.messages import (
    BODIES,
    CUTS,
    FIELD_VALUES,
    GATEWAYS_OWN,
    NOT_FORWARDED,
    NOT_RETURNED,
    TARGETS,
    answered,
    chunked,
    fields,
)
from tests.e2e.stage import Stage, staged
from tests.minting import Issuer

EXAMPLES = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="module")
def stage(issuer: Issuer) -> Iterator[Stage]:
    with staged(issuer) as it:
        yield it


def the_one(stage: Stage) -> Recorded:
    (request,) = stage.upstream.wait_for(1)
    return request


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
