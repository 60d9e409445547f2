"""Services that fail, lie, stall or die: what the client is told, and that nobody else notices."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from tests.e2e.calling import until
from tests.e2e.harness import Answer, RecordingUpstream, answer
from tests.e2e.stage import NO_LIMITS, Received, Stage, staged
from tests.minting import Issuer
from tests.patience import PATIENCE_S

FIRST_BYTE_S, IDLE_S, CONNECT_S = 1.0, 1.5, 1.0
TIMEOUTS = {
    "UPSTREAM_FIRST_BYTE_TIMEOUT": str(FIRST_BYTE_S),
    "UPSTREAM_IDLE_TIMEOUT": str(IDLE_S),
    "UPSTREAM_CONNECT_TIMEOUT": str(CONNECT_S),
    "UPSTREAM_KEEPALIVE_SECONDS": "60",
}
SLACK_S = 5.0
"""For a machine that is busy with other things."""


@pytest.fixture(scope="module")
def shared_stage(issuer: Issuer) -> Iterator[Stage]:
    with silent_port() as silent:
        settings = {"EXTERNAL_SERVICE_URL": f"http://127.0.0.1:{silent}", "HEALTH_CHECK_INTERVAL": "60"}
        with staged(issuer, {**TIMEOUTS, **settings}, services=("sales", "orders"), moves=100) as it:
            yield it


@pytest.fixture
def stage(shared_stage: Stage) -> Stage:
    shared_stage.reset()
    shared_stage.move()
    return shared_stage


@contextmanager
def silent_port() -> Iterator[int]:
    """A port where connecting neither succeeds nor fails: its queue of connections is full."""
    with ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port: int = listener.getsockname()[1]
        for _ in range(4):
            filler = held.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        time.sleep(0.05)
        yield port


def failed(received: Received, status: int, code: str, error: str) -> None:
    """Assert that the answer is this problem and says as much in `Proxy-Status`, and nothing of the service."""
    problem = json.loads(received.body)
    assert (received.status, problem["code"]) == (status, code)
    assert received.values("proxy-status") == [f"bakerygw; error={error}".encode()]
    assert received.values("content-type") == [b"application/problem+json"]
    assert b"127.0.0.1" not in received.head + received.body


def raw(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


ROGUE = {
    "no HTTP": b"hello there\r\n\r\n",
    "HTTP/0.9": b"<html></html>",
    "HTTP/2": raw("HTTP/2.0 200 OK", "Content-Length: 0"),
    "HTTP/1.2": raw("HTTP/1.2 200 OK", "Content-Length: 0"),
    "RTSP": raw("RTSP/1.0 200 OK", "Content-Length: 0"),
    "no status": raw("HTTP/1.1 OK"),
    "status 99": raw("HTTP/1.1 99 Low", "Content-Length: 0"),
    "status 600": raw("HTTP/1.1 600 High", "Content-Length: 0"),
    "status 99999": raw("HTTP/1.1 99999 Far", "Content-Length: 0"),
    "unsolicited 101": raw("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"),
    "eleven interim answers": raw("HTTP/1.1 103 Early Hints") * 11 + raw("HTTP/1.1 200 OK", "Content-Length: 0"),
    "two lengths": raw("HTTP/1.1 200 OK", "Content-Length: 2", "Content-Length: 2", body=b"ok"),
    "different lengths": raw("HTTP/1.1 200 OK", "Content-Length: 2", "Content-Length: 3", body=b"ok!"),
    "a list of lengths": raw("HTTP/1.1 200 OK", "Content-Length: 2, 2", body=b"ok"),
    "length of words": raw("HTTP/1.1 200 OK", "Content-Length: two", body=b"ok"),
    "negative length": raw("HTTP/1.1 200 OK", "Content-Length: -2", body=b"ok"),
    "length and chunked": raw("HTTP/1.1 200 OK", "Content-Length: 2", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "two codings": raw(
        "HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"
    ),
    "compressed transfer": raw("HTTP/1.1 200 OK", "Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "identity": raw("HTTP/1.1 200 OK", "Transfer-Encoding: identity", "Content-Length: 0"),
    "NUL in a value": raw("HTTP/1.1 200 OK", "X-A: a\0b", "Content-Length: 0"),
    "control in a value": raw("HTTP/1.1 200 OK", "X-A: a\x01b", "Content-Length: 0"),
    "DEL in a value": raw("HTTP/1.1 200 OK", "X-A: a\x7fb", "Content-Length: 0"),
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "bare carriage return": raw("HTTP/1.1 200 OK", "X-A: a\rX-B: b", "Content-Length: 0"),
    "folded field": raw("HTTP/1.1 200 OK", "X-A: a", " b", "Content-Length: 0"),
    "space in a name": raw("HTTP/1.1 200 OK", "X A: 1", "Content-Length: 0"),
    "space before the colon": raw("HTTP/1.1 200 OK", "Content-Length : 0"),
    "too many fields": raw("HTTP/1.1 200 OK", *[f"X-{at}: 1" for at in range(101)], "Content-Length: 0"),
    "too large a head": raw("HTTP/1.1 200 OK", *[f"X-{at}: {'a' * 4000}" for at in range(9)], "Content-Length: 0"),
    "an endless field": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 100_000,
    "malformed chunk at once": raw("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", body=b"zz\r\nab\r\n0\r\n\r\n"),
}


class TestInvalidAnswers:
    @pytest.mark.parametrize("name", ROGUE)
    def test_the_client_gets_a_502_and_the_connection_is_not_used_again(self, stage: Stage, name: str) -> None:
        stage.upstream.next(Answer(pieces=(ROGUE[name],)))

        failed(stage.get(), 502, "upstream-invalid", "http_protocol_error")

        assert stage.get().body == b'{"ok": true}'
        rogue, good = stage.upstream.requests
        assert rogue.connection != good.connection

    def test_a_head_that_breaks_off(self, stage: Stage) -> None:
        stage.upstream.next(Answer(pieces=(b"HTTP/1.1 200 OK\r\nContent-Le",), close=True))

        failed(stage.get(), 502, "upstream-invalid", "http_response_incomplete")


class TestCutBodies:
    @pytest.mark.parametrize("reset", [False, True])
    @pytest.mark.parametrize(
        "pieces",
        [
            (raw("HTTP/1.1 200 OK", "Content-Length: 100"), b"only this"),
            (raw("HTTP/1.1 200 OK", "Content-Length: 100", body=b"only this"),),
            (raw("HTTP/1.1 200 OK", "Transfer-Encoding: chunked"), b"5\r\nonly \r\n"),
            (raw("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", body=b"9\r\nonly "),),
            (raw("HTTP/1.1 200 OK", "Transfer-Encoding: chunked"), b"5\r\nonly \r\n", b"0\r\n"),
        ],
    )
    def test_a_cut_body_is_cut_for_the_client(self, stage: Stage, pieces: tuple[bytes, ...], reset: bool) -> None:
        stage.upstream.always(Answer(pieces=pieces, between_s=0.05, close=True, reset=reset))

        with stage.gateway.client(stage.token) as client, pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            client.get(stage.base.decode() + "/x")
        received = stage.gateway.raw(stage.head(), answers=None)

        assert not received.endswith(b"\r\n0\r\n\r\n")
        assert received.count(b"HTTP/1.1 ") <= 1

    @pytest.mark.parametrize("rest", [b"zz\r\n", b"2\r\nabc\r\n0\r\n\r\n", b"-1\r\n", b"2\nab\r\n0\r\n\r\n"])
    def test_a_malformed_chunk_later_on_cuts_the_body(self, stage: Stage, rest: bytes) -> None:
        good = b"4\r\ngood\r\n"
        stage.upstream.next(
            Answer(pieces=(raw("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", body=good), rest), between_s=0.05)
        )

        with stage.gateway.client(stage.token) as client, pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            client.get(stage.base.decode() + "/x")

    def test_a_body_that_ends_with_its_connection_is_whole(self, stage: Stage) -> None:
        stage.upstream.next(
            Answer(pieces=(raw("HTTP/1.1 200 OK", "X-A: 1"), b"some", b" more"), between_s=0.05, close=True)
        )

        received = stage.get()

        assert (received.status, received.body, received.rest) == (200, b"some more", b"")

    def test_unless_the_end_is_a_reset(self, stage: Stage) -> None:
        stage.upstream.next(
            Answer(pieces=(raw("HTTP/1.1 200 OK"), b"some", b" more"), between_s=0.05, close=True, reset=True)
        )

        with stage.gateway.client(stage.token) as client, pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            client.get(stage.base.decode() + "/x")

    def test_a_cut_is_logged_as_one(self, stage: Stage) -> None:
        stage.upstream.next(
            Answer(pieces=(raw("HTTP/1.1 200 OK", "Content-Length: 9"), b"x"), between_s=0.05, close=True)
        )

        stage.gateway.raw(stage.head(), answers=None)

        done = stage.gateway.wait_for_event("request.done", lambda event: event["path"] == stage.base.decode() + "/x")
        assert done["reason"] == "cut"


class TestSurplus:
    EVIL = raw("HTTP/1.1 200 OK", "Content-Length: 4", body=b"evil")

    @pytest.mark.parametrize(
        "first",
        [
            raw("HTTP/1.1 200 OK", "Content-Length: 2", body=b"ok"),
            raw("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", body=b"2\r\nok\r\n0\r\n\r\n"),
        ],
    )
    @pytest.mark.parametrize("between_s", [0.0, 0.1])
    @pytest.mark.parametrize("surplus", [EVIL, b"x", b"\r\n"])
    def test_bytes_behind_an_answer_answer_nobody(
        self, stage: Stage, first: bytes, between_s: float, surplus: bytes
    ) -> None:
        pieces = (first, surplus) if between_s else (first + surplus,)
        stage.upstream.next(Answer(pieces=pieces, between_s=between_s))

        one = stage.get()
        # What is behind an answer is seen behind it, and then nothing more is asked on that connection.
        until(lambda: stage.upstream.requests[0].connection in stage.upstream.ended)
        two = stage.get()

        assert (one.status, one.body, one.rest) == (200, b"ok", b"")
        assert (two.status, two.body) == (200, b'{"ok": true}')
        first_asked, second_asked = stage.upstream.requests
        assert first_asked.connection != second_asked.connection

    @pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
    def test_a_body_where_none_may_be_answers_nobody(self, stage: Stage, status: str) -> None:
        stage.upstream.next(Answer(pieces=(raw("HTTP/1.1 " + status, body=self.EVIL),)))

        one, two = stage.get(), stage.get()

        assert (one.status, one.rest) == (int(status[:3]), b"")
        assert two.body == b'{"ok": true}'

    def test_a_body_behind_the_answer_to_head_answers_nobody(self, stage: Stage) -> None:
        stage.upstream.next(Answer(pieces=(raw("HTTP/1.1 200 OK", "Content-Length: 4", body=b"evil"),)))

        one = stage.ask(stage.head(b"", (b"Connection", b"close"), method=b"HEAD"), answers=None)

        assert (one.status, one.rest) == (200, b"")
        assert stage.get().body == b'{"ok": true}'


class TestInterimAndOldAnswers:
    def test_interim_answers_are_not_the_answer(self, stage: Stage) -> None:
        interim = raw("HTTP/1.1 100 Continue") + raw("HTTP/1.1 103 Early Hints", "Link: </x>")
        stage.upstream.next(Answer(pieces=(interim, answer(201, b"made").pieces[0]), between_s=0.05))

        received = stage.get()

        assert (received.status, received.interim, received.body) == (201, b"", b"made")
        assert received.values("link") == []

    def test_http_1_0_is_understood_and_not_kept(self, stage: Stage) -> None:
        old = raw("HTTP/1.0 200 OK", "Content-Length: 3", "Connection: keep-alive", body=b"old")
        stage.upstream.next(Answer(pieces=(old,)))

        one, two = stage.get(), stage.get()

        assert (one.head.split()[0], one.body, two.status) == (b"HTTP/1.1", b"old", 200)
        first, second = stage.upstream.requests
        assert first.connection != second.connection


class TestDeadlines:
    def test_a_late_answer_is_a_504(self, stage: Stage) -> None:
        stage.upstream.next(Answer(never=True))
        began = time.monotonic()

        failed(stage.get(), 504, "upstream-timeout", "http_response_timeout")

        assert FIRST_BYTE_S <= time.monotonic() - began < FIRST_BYTE_S + SLACK_S
        assert stage.upstream.requests[0].left.wait(PATIENCE_S)
        assert len(stage.arrived()) == 1

    def test_a_head_in_drops_is_a_504_too(self, stage: Stage) -> None:
        data = answer(200).pieces[0]
        stage.upstream.next(Answer(pieces=tuple(data[at : at + 1] for at in range(len(data))), between_s=0.05))

        failed(stage.get(), 504, "upstream-timeout", "http_response_timeout")

    def test_a_body_that_stalls_is_cut(self, stage: Stage) -> None:
        stage.upstream.next(
            Answer(pieces=(raw("HTTP/1.1 200 OK", "Content-Length: 9"), b"some", b" more"), between_s=20 * IDLE_S)
        )
        began = time.monotonic()

        received = stage.gateway.raw(stage.head(), answers=None)

        assert IDLE_S <= time.monotonic() - began < IDLE_S + FIRST_BYTE_S + SLACK_S
        assert b" more" not in received

    def test_a_slow_but_steady_body_is_whole(self, stage: Stage) -> None:
        pieces = (raw("HTTP/1.1 200 OK", "Content-Length: 6"), *[b"a"] * 6)
        stage.upstream.next(Answer(pieces=pieces, between_s=IDLE_S / 3))

        assert stage.get().body == b"aaaaaa"

    def test_a_service_that_does_not_read_is_a_504(self, stage: Stage) -> None:
        stage.upstream.next(Answer(stop_reading=True))
        size = 9 << 20
        began = time.monotonic()

        received = stage.ask(
            stage.head(b"", (b"Content-Length", b"%d" % size), method=b"POST") + bytes(size),
            answers=None,
        )

        failed(received, 504, "upstream-timeout", "connection_write_timeout")
        assert time.monotonic() - began < IDLE_S + 2 * SLACK_S

    def test_connecting_has_a_deadline(self, stage: Stage) -> None:
        began = time.monotonic()

        failed(stage.get(b"/api/v1/external/x"), 502, "upstream-unreachable", "connection_timeout")

        assert CONNECT_S - 0.05 <= time.monotonic() - began < CONNECT_S + SLACK_S


class TestADeadService:
    def test_it_is_a_502_at_once_others_go_on_and_it_is_found_again(self, issuer: Issuer) -> None:
        with staged(issuer, TIMEOUTS, services=("sales", "orders")) as stage:
            assert [stage.get(path).status for path in (b"/api/v1/orders/1", b"/api/v1/sales/1")] == [200, 200]
            stage.services["orders"].stop()
            began = time.monotonic()

            failed(stage.get(b"/api/v1/orders/2"), 502, "upstream-unreachable", "connection_refused")

            assert time.monotonic() - began < CONNECT_S, "it was waited for"
            assert stage.get(b"/api/v1/sales/2").status == 200

            stage.services["orders"].start()
            until(lambda: stage.get(b"/api/v1/orders/3").status == 200)

    def test_a_hanging_service_delays_nobody_else(self, stage: Stage) -> None:
        stage.upstream.always(Answer(never=True))
        with ExitStack() as waiting:
            for _ in range(50):
                client = waiting.enter_context(socket.create_connection(("127.0.0.1", stage.gateway.port), PATIENCE_S))
                client.sendall(stage.head())
            until(lambda: len(stage.upstream.requests) >= 50)
            began = time.monotonic()

            assert stage.get(b"/api/v1/orders/1").status == 200

            assert time.monotonic() - began < FIRST_BYTE_S, "it has waited with them"


class TestSeveralAddresses:
    @contextmanager
    def two(self, issuer: Issuer) -> Iterator[tuple[Stage, RecordingUpstream, RecordingUpstream]]:
        with RecordingUpstream() as one, RecordingUpstream() as two:
            env = {**NO_LIMITS, "SALES_SERVICE_URL": f"{one.url},{two.url}"}
            with staged(issuer, env, services=("orders",)) as stage:
                yield stage, one, two

    def test_all_get_their_share_and_a_dead_one_is_passed_over(self, issuer: Issuer) -> None:
        with self.two(issuer) as (stage, one, two):
            assert {stage.get().status for _ in range(100)} == {200}
            assert len(one.requests) + len(two.requests) == 100
            assert min(len(one.requests), len(two.requests)) >= 20

            one.stop()
            before = len(two.requests)
            assert {stage.get().status for _ in range(20)} == {200}
            assert len(two.requests) - before == 20

            posts = [stage.ask(stage.head(method=b"POST") + b"") for _ in range(20)]
            assert {received.status for received in posts} == {200}

    def test_the_busier_one_gets_less(self, issuer: Issuer) -> None:
        with self.two(issuer) as (stage, one, two), ExitStack() as waiting:
            one.always(Answer(never=True))
            while not one.requests:
                asked = len(two.requests)
                client = waiting.enter_context(socket.create_connection(("127.0.0.1", stage.gateway.port), PATIENCE_S))
                client.sendall(stage.head())
                until(lambda asked=asked: len(one.requests) + len(two.requests) > asked)  # type: ignore[misc]

            assert {stage.get().status for _ in range(30)} == {200}

            assert len(one.requests) == 1
