"""How a service's answer comes back where more than copying is asked for, and what is asked of a service twice."""

from collections.abc import Iterator

import pytest

from tests.e2e.harness import Answer, answer
from tests.e2e.stage import Stage, staged
from tests.minting import Issuer


@pytest.fixture(scope="module")
def shared_stage(issuer: Issuer) -> Iterator[Stage]:
    with staged(issuer, moves=20) as it:
        yield it


@pytest.fixture
def stage(shared_stage: Stage) -> Stage:
    shared_stage.reset()
    return shared_stage


LAST = (b"Connection", b"close")


def head(status: int, *lines: str) -> Answer:
    """An answer of a head alone."""
    return Answer(pieces=("\r\n".join([f"HTTP/1.1 {status} Phrase", *lines, "", ""]).encode(),))


class TestBodilessAnswers:
    def test_head_keeps_the_length_that_get_would_have(self, stage: Stage) -> None:
        stage.upstream.next(head(200, "Content-Length: 12345", "ETag: x"))

        received = stage.ask(stage.head(b"/api/v1/sales/x", LAST, method=b"HEAD"), answers=None)

        assert (received.status, received.values("content-length"), received.rest) == (200, [b"12345"], b"")
        assert stage.upstream.wait_for(1)[0].method == "HEAD"

    @pytest.mark.parametrize("framing", [["Transfer-Encoding: chunked"], []])
    def test_head_of_unknown_length_promises_none(self, stage: Stage, framing: list[str]) -> None:
        stage.upstream.next(head(200, *framing))

        received = stage.ask(stage.head(b"/api/v1/sales/x", LAST, method=b"HEAD"), answers=None)

        assert (received.status, received.values("content-length"), received.rest) == (200, [], b"")

    def test_204_has_neither_body_nor_length(self, stage: Stage) -> None:
        stage.upstream.next(head(204, "X-A: 1"))

        received = stage.ask(stage.head(b"/api/v1/sales/x", LAST), answers=None)

        assert (received.status, received.rest, received.headers[0]) == (204, b"", (b"X-A", b"1"))
        assert not received.values("content-length")
        assert not received.chunked

    @pytest.mark.parametrize(("line", "length"), [("Content-Length: 99", [b"99"]), ("X-A: 1", [])])
    def test_304_keeps_its_length_and_has_no_body(self, stage: Stage, line: str, length: list[bytes]) -> None:
        stage.upstream.next(head(304, 'ETag: "v1"', line))

        received = stage.ask(stage.head(b"/api/v1/sales/x", LAST), answers=None)

        assert (received.status, received.rest) == (304, b"")
        assert received.values("etag") == [b'"v1"']
        assert received.values("content-length") == length

    def test_a_connection_goes_on_after_each_kind_of_answer(self, stage: Stage) -> None:
        stage.upstream.next(
            head(204), head(304), answer(200, b"one"), head(205, "Content-Length: 0"), answer(200, b"2")
        )

        raw = stage.gateway.raw(stage.head() * 5, answers=5)

        statuses = [int(part[:3]) for part in raw.split(b"HTTP/1.1 ")[1:]]
        assert statuses == [204, 304, 200, 205, 200]
        assert len({request.connection for request in stage.upstream.requests}) == 1


class TestFieldsOfAnswers:
    def test_what_belongs_to_one_hop_or_to_the_gateway_does_not_pass(self, stage: Stage) -> None:
        removed = {
            "Server": "secret/1.0",
            "X-Powered-By": "Python",
            "Keep-Alive": "timeout=5",
            "X-Hop": "1",
            "Connection": "x-hop, keep-alive",
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Allow-Credentials": "true",
            "X-Internal-Host": "10.0.0.7",
            "Upgrade": "h2c",
            "Proxy-Authenticate": "Basic",
        }
        stage.upstream.next(answer(200, b"{}", *removed.items(), ("X-Kept", "1")))

        received = stage.get()

        arrived = {name.lower() for name, _ in received.headers}
        assert not arrived & {name.lower().encode() for name in removed}
        assert received.values("x-kept") == [b"1"]
        assert received.values("x-content-type-options") == [b"nosniff"]

    def test_the_services_date_is_the_only_one(self, stage: Stage) -> None:
        date = "Sun, 06 Nov 1994 08:49:37 GMT"
        stage.upstream.next(answer(200, b"{}", ("date", date)))

        assert stage.get().values("date") == [date.encode()]

    def test_an_answer_without_date_gets_one(self, stage: Stage) -> None:
        assert len(stage.get().values("date")) == 1

    def test_the_request_id_and_the_limit_are_the_gateways(self, stage: Stage) -> None:
        stage.upstream.next(answer(200, b"{}", ("X-Request-ID", "of-the-service"), ("RateLimit", '"x";r=0;t=9')))

        received = stage.get(b"/api/v1/sales/x", (b"X-Request-ID", b"abc-DEF_1.2"))

        assert received.values("x-request-id") == [b"abc-DEF_1.2"]
        assert len(received.values("ratelimit")) == 1
        assert b"r=0" not in received.values("ratelimit")[0]

    def test_two_cookies_stay_two(self, stage: Stage) -> None:
        cookies = [("Set-Cookie", "a=1; Expires=Sun, 06 Nov 1994 08:49:37 GMT"), ("set-cookie", "b=2; HttpOnly")]
        stage.upstream.next(answer(200, b"{}", *cookies))

        assert stage.get().values("set-cookie") == [value.encode() for _, value in cookies]


class TestRedirects:
    @pytest.mark.parametrize(
        ("location", "seen"),
        [
            ("http://{own}/api/v1/sales/7?a=b#c", b"/api/v1/sales/7?a=b#c"),
            ("HTTP://{own}", b"/"),
            ("//{own}/x", b"/x"),
            ("http://{own}//evil.example/x", b"/.//evil.example/x"),
            ("/api/v1/sales/7", b"/api/v1/sales/7"),
            ("https://pay.example/x?back=http://{own}/", b"https://pay.example/x?back=http://{own}/"),
            ("http://{own}.evil.example/x", b"http://{own}.evil.example/x"),
        ],
    )
    def test_a_location_at_the_service_itself_is_made_relative(self, stage: Stage, location: str, seen: bytes) -> None:
        own = stage.upstream.url.removeprefix("http://")
        stage.upstream.next(answer(302, b"", ("Location", location.replace("{own}", own))))

        received = stage.get()

        assert received.status == 302
        assert received.values("location") == [seen.replace(b"{own}", own.encode())]

    def test_a_redirect_is_not_followed(self, stage: Stage) -> None:
        stage.upstream.next(answer(307, b"", ("Location", stage.upstream.url + "/api/v1/sales/other")))

        assert stage.get(b"/api/v1/sales/first").status == 307
        assert [request.target for request in stage.arrived()] == [b"/api/v1/sales/first"]


class TestKeepAlive:
    def test_requests_of_many_clients_share_a_connection(self, stage: Stage) -> None:
        for _ in range(5):
            assert stage.get().status == 200

        assert len({request.connection for request in stage.upstream.requests}) == 1

    def test_a_service_that_closes_gets_a_new_connection(self, stage: Stage) -> None:
        stage.upstream.next(answer(200, b"{}", ("Connection", "Close")))

        assert [stage.get().status for _ in range(2)] == [200, 200]
        first, second = stage.upstream.requests
        assert first.connection != second.connection


HANGS_UP = Answer(close=True)


class TestRetries:
    @pytest.fixture
    def stage(self, shared_stage: Stage) -> Stage:
        shared_stage.reset()
        shared_stage.move()
        return shared_stage

    @pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"])
    def test_an_idempotent_request_is_repeated_once_when_its_connection_dies(self, stage: Stage, method: bytes) -> None:
        stage.get(stage.base + b"/warm")
        stage.upstream.next(HANGS_UP)

        assert stage.ask(stage.head(stage.base + b"/again", method=method)).status == 200

        _, dead, alive = stage.arrived()
        assert dead.head == alive.head
        assert dead.connection != alive.connection

    @pytest.mark.parametrize("method", [b"POST", b"PATCH"])
    def test_what_may_have_changed_something_is_not_repeated(self, stage: Stage, method: bytes) -> None:
        stage.get(stage.base + b"/warm")
        stage.upstream.next(HANGS_UP)

        received = stage.ask(stage.head(stage.base + b"/once", (b"Content-Length", b"0"), method=method))

        assert (received.status, b"upstream-unreachable" in received.body) == (502, True)
        assert [request.target for request in stage.arrived()] == [stage.base + b"/warm", stage.base + b"/once"]

    def test_a_body_that_was_taken_is_not_sent_again(self, stage: Stage) -> None:
        stage.upstream.next(HANGS_UP)

        received = stage.ask(stage.head(stage.base + b"/once", (b"Content-Length", b"2"), method=b"PUT") + b"hi")

        assert received.status == 502
        assert len(stage.arrived()) == 1

    def test_twice_is_enough(self, stage: Stage) -> None:
        stage.upstream.next(HANGS_UP, HANGS_UP, HANGS_UP)

        received = stage.get(stage.base + b"/never")

        assert received.status == 502
        assert received.values("proxy-status") == [b"bakerygw; error=connection_terminated"]
        assert len(stage.upstream.requests) == 2

    def test_an_answer_that_has_begun_is_not_asked_for_again(self, stage: Stage) -> None:
        stage.upstream.next(Answer(pieces=(b"HTTP/1.1 200 OK\r\nConte",), close=True))

        assert stage.get(stage.base + b"/once").status == 502
        assert len(stage.arrived()) == 1
