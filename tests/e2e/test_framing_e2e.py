"""Rogue clients on raw sockets: whatever they send, a service sees whole, single, well-framed requests or nothing."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.e2e.calling import until
from tests.e2e.harness import Answer, answer
from tests.e2e.stage import Received, Stage, staged
from tests.minting import Issuer
from tests.patience import PATIENCE_S

MAX_BODY = 1 << 20


@pytest.fixture(scope="module")
def shared_stage(issuer: Issuer) -> Iterator[Stage]:
    with staged(issuer, {"MAX_REQUEST_BODY_BYTES": str(MAX_BODY)}, services=("sales", "auth")) as it:
        yield it


@pytest.fixture
def stage(shared_stage: Stage) -> Stage:
    shared_stage.reset()
    return shared_stage


def post(stage: Stage, *lines: bytes, version: bytes = b"1.1", host: bytes = b"Host: x\r\n") -> bytes:
    """The head of a POST with a good token and these lines, taken as they are."""
    token = b"Authorization: Bearer " + stage.token.encode()
    return b"\r\n".join([b"POST /api/v1/sales/x HTTP/" + version, host + token, *lines, b"", b""])


def smuggled(stage: Stage) -> bytes:
    """A whole good request, to be hidden behind another one."""
    return stage.head(b"/api/v1/sales/smuggled")


def refused(stage: Stage, data: bytes | list[bytes], status: int = 400) -> Received:
    """The only answer to `data`: a refusal, and the connection closed. No service has seen a whole request."""
    received = stage.ask(data, answers=None)
    assert (received.status, received.rest) == (status, b"")
    assert received.values("connection") == [b"close"]
    assert received.values("content-type") == [b"application/problem+json"]
    assert [request.target for request in stage.arrived() if request.complete] == []
    assert stage.services["auth"].requests == []
    return received


class TestAmbiguousFraming:
    @pytest.mark.parametrize(
        "lines",
        [
            [b"Content-Length: 4", b"Transfer-Encoding: chunked"],
            [b"Transfer-Encoding: chunked", b"Content-Length: 4"],
            [b"Transfer-Encoding: chunked", b"Content-Length: 0"],
            [b"Content-Length: 0", b"Content-Length: 0"],
            [b"Content-Length: 0", b"content-length: 44"],
            [b"Content-Length: 44", b"Content-Length: 0"],
            [b"Content-Length: 0, 0"],
            [b"Content-Length: +0"],
            [b"Content-Length: -1"],
            [b"Content-Length: 0x0"],
            [b"Content-Length: 0 0"],
            [b"Content-Length: 1e1"],
            [b"Content-Length:"],
            [b"Content-Length: " + b"9" * 16],
            [b"Content-Length: " + b"0" * 5000],
            [b"Content-Length: \xc2\xb2"],
            [b"Content-Length : 0"],
            [b"Transfer-Encoding: identity"],
            [b"Transfer-Encoding: identity", b"Content-Length: 0"],
            [b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"],
            [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
            [b"Transfer-Encoding: chunked, chunked"],
            [b"Transfer-Encoding: gzip, chunked"],
            [b"Transfer-Encoding: chunked, identity"],
            [b"Transfer-Encoding: xchunked"],
            [b"Transfer-Encoding: chunked;q=1"],
            [b"Transfer-Encoding: \x0bchunked"],
            [b'Transfer-Encoding: "chunked"'],
            [b"Transfer-Encoding:"],
            [b"Transfer-Encoding : chunked"],
            [b"Transfer-Encoding\t: chunked"],
            [b"Transfer-Encoding:\r\n chunked"],
            [b"X-A: 1\r\n Transfer-Encoding: chunked"],
            [b"X-A: 1\r\n\tfolded"],
            [b"X-A: 1\nTransfer-Encoding: chunked"],
            [b"X-A: 1\rTransfer-Encoding: chunked"],
            [b"X-A: a\0b"],
            [b"X-A: a\x01b"],
            [b"X-A: a\x7fb"],
            [b"X A: 1"],
            [b": 1"],
            [b"no colon"],
            [b"X-\xe4: 1"],
        ],
    )
    def test_it_is_refused_and_nothing_behind_it_is_a_request(self, stage: Stage, lines: list[bytes]) -> None:
        refused(stage, post(stage, *lines) + b"0\r\n\r\n" + smuggled(stage))

    @pytest.mark.parametrize(
        "host",
        [
            *(b"", b"Host: x\r\nHost: x\r\n", b"Host: x\r\nhost: y\r\n", b"Host:\r\n", b"Host: a b\r\n"),
            *(b"Host: a/b\r\n", b"Host: user@evil\r\n", b"Host: x:port\r\n", b"Host: [::1\r\n"),
        ],
    )
    def test_exactly_one_host(self, stage: Stage, host: bytes) -> None:
        refused(stage, post(stage, b"Content-Length: 0", host=host) + smuggled(stage))

    def test_chunked_is_unknown_to_http_1_0(self, stage: Stage) -> None:
        refused(stage, post(stage, b"Transfer-Encoding: chunked", version=b"1.0") + b"0\r\n\r\n" + smuggled(stage))

    @pytest.mark.parametrize("version", [b"1.2", b"2.0", b"0.9", b"1.10", b"x", b"1"])
    def test_other_versions(self, stage: Stage, version: bytes) -> None:
        refused(stage, post(stage, b"Content-Length: 0", version=version) + smuggled(stage))

    def test_only_one_spelling_of_a_length_arrives(self, stage: Stage) -> None:
        assert stage.ask(post(stage, b"Content-Length: 0002") + b"hi").status == 200

        (request,) = stage.arrived()
        assert (request.values("content-length"), request.body) == ([b"2"], b"hi")


NAMES = st.sampled_from(
    [
        *(
            b"Content-Length",
            b"content-length",
            b"CONTENT-LENGTH",
            b"Content_Length",
            b"Content-Length ",
            b" Content-Length",
        ),
        *(
            b"Transfer-Encoding",
            b"transfer-encoding",
            b"Transfer_Encoding",
            b"Transfer-Encoding\t",
            b"X",
            b"X-A\0",
            b"",
        ),
        *(b"Connection", b"Upgrade", b"Expect", b"TE", b"\xefContent-Length", b"Content-Length:\r\nX"),
    ]
)
COLONS = st.sampled_from([b": ", b":", b":\t", b" : ", b":\x0b", b":\r\n ", b" ", b"=", b": \0"])
VALUES = st.sampled_from(
    [
        *(
            b"%d",
            b"0%d",
            b"+%d",
            b"%d, %d",
            b"0x%x",
            b"0",
            b"%d ",
            b"-%d",
            b"%d;x",
            b"chunked",
            b"Chunked",
            b"chunked ",
        ),
        *(
            b"identity",
            b"chunked, chunked",
            b"gzip, chunked",
            b"chunked, gzip",
            b"xchunked",
            b"chunked\x0b",
            b"",
            b"h2c",
        ),
        *(
            b"close",
            b"keep-alive",
            b"upgrade",
            b"Transfer-Encoding",
            b"Content-Length, close",
            b"100-continue",
            b"trailers",
        ),
    ]
)
LINE_ENDS = st.sampled_from([b"\r\n"] * 6 + [b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\t", b"\0\r\n"])


class TestHiddenRequests:
    @settings(max_examples=150, deadline=None)
    @given(lines=st.lists(st.tuples(NAMES, COLONS, VALUES, LINE_ENDS), min_size=1, max_size=4), chunk_end=LINE_ENDS)
    def test_a_request_within_a_body_stays_a_body(
        self, shared_stage: Stage, lines: list[tuple[bytes, bytes, bytes, bytes]], chunk_end: bytes
    ) -> None:
        """However the head describes the body, by its length or as chunks, the hidden request lies within it."""
        stage = shared_stage
        stage.reset()
        hidden = smuggled(stage)
        body = b"%x%b%b\r\n0\r\n\r\n" % (len(hidden), chunk_end, hidden)
        head = b"POST /api/v1/sales/x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n" % stage.token.encode()
        for name, colon, value, end in lines:
            head += name + colon + value.replace(b"%d", b"%d" % len(body)).replace(b"%x", b"%x" % len(body)) + end

        stage.ask(head + b"\r\n" + body)

        assert {request.target for request in stage.arrived() if request.complete} <= {b"/api/v1/sales/x"}


class TestRequestLines:
    @pytest.mark.parametrize(
        ("line", "status"),
        [
            (b"GET http://sales/api/v1/sales/x HTTP/1.1", 400),
            (b"GET http://evil.example/ HTTP/1.1", 400),
            (b"GET @evil.example/api/v1/sales HTTP/1.1", 400),
            (b"GET evil HTTP/1.1", 400),
            (b"GET * HTTP/1.1", 400),
            (b"GET /api/v1/sales/a b HTTP/1.1", 400),
            (b"GET /api/v1/sales/x", 400),
            (b"get /api/v1/sales/x HTTP/1.1", 501),
            (b"PRI * HTTP/2.0", 400),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
            (b"CONNECT sales:80 HTTP/1.1", 405),
            (b"TRACE /api/v1/sales/x HTTP/1.1", 405),
            (b"FOO /api/v1/sales/x HTTP/1.1", 501),
            (b"PROPFIND /api/v1/sales/x HTTP/1.1", 501),
            (b"SOURCE /api/v1/sales/x ICE/1.0", 501),
            (b"GET /api/v1/sales/x ICE/1.0", 400),
        ],
    )
    def test_what_is_no_request_of_ours(self, stage: Stage, line: bytes, status: int) -> None:
        token = b"Authorization: Bearer " + stage.token.encode()

        received = stage.ask(line + b"\r\nHost: x\r\n" + token + b"\r\n\r\n" + smuggled(stage), answers=None)

        assert received.status == status
        assert received.values("connection") == [b"close"]
        assert received.rest == b""
        assert stage.arrived() == []

    def test_405_names_the_methods_that_there_are(self, stage: Stage) -> None:
        received = refused(stage, b"TRACE /api/v1/sales/x HTTP/1.1\r\nHost: x\r\n\r\n", 405)

        assert received.values("allow") == [b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"]
        assert json.loads(received.body)["code"] == "method-not-allowed"

    def test_an_upgrade_is_ignored_and_goes_no_further(self, stage: Stage) -> None:
        upgrade = [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"]

        raw = stage.gateway.raw(post(stage, *upgrade, b"Content-Length: 2") + b"hi" + smuggled(stage), answers=2)

        assert raw.count(b"HTTP/1.1 200 OK\r\n") == 2
        first, second = stage.arrived()
        assert (first.body, second.target) == (b"hi", b"/api/v1/sales/smuggled")
        assert not first.values("upgrade") + first.values("http2-settings") + first.values("connection")


class TestChunks:
    @pytest.mark.parametrize(
        "body",
        [
            *(
                b" 3\r\nabc\r\n0\r\n\r\n",
                b"0x3\r\nabc\r\n0\r\n\r\n",
                b"-3\r\nabc\r\n0\r\n\r\n",
                b"+3\r\nabc\r\n0\r\n\r\n",
            ),
            *(b"3\nabc\r\n0\r\n\r\n", b"3\r\nabc\n0\r\n\r\n", b"3\r\nabcd\r\n0\r\n\r\n", b"3\r\nabc0\r\n\r\n", b"\r\n"),
            *(b"g\r\n", b"FFFFFFFFFFFFFFFFFFFF\r\nabc", b"3;a\nb\r\nabc\r\n0\r\n\r\n", b"3;\0\r\nabc\r\n0\r\n\r\n"),
            *(b"3\r\nabc\r\n0\r\nBad Trailer: 1\r\n\r\n", b"3\r\nabc\r\n0\r\nT: a\nb\r\n\r\n"),
        ],
    )
    def test_a_malformed_one_ends_the_request_unfinished(self, stage: Stage, body: bytes) -> None:
        refused(stage, post(stage, b"Transfer-Encoding: chunked") + body + smuggled(stage))
        refused(stage, [post(stage, b"Transfer-Encoding: chunked"), body + smuggled(stage)])

        assert all(
            request.left.wait(PATIENCE_S) for request in stage.upstream.requests if request.target == b"/api/v1/sales/x"
        )

    def test_trailers_and_extensions_stay_here(self, stage: Stage) -> None:
        body = b'3;x="y"\r\nabc\r\n0\r\nX-User-Id: forged\r\n\r\n'

        assert stage.ask(post(stage, b"Transfer-Encoding: chunked", b"Trailer: X-User-Id") + body).status == 200

        (request,) = stage.arrived()
        assert (request.body, request.values("trailer")) == (b"abc", [])
        assert b"forged" not in request.head + request.raw_body

    def test_dust_is_refused(self, stage: Stage) -> None:
        dust = b"".join(b"1;%b\r\nx\r\n" % (b"e" * 200) for _ in range(3000))

        refused(stage, post(stage, b"Transfer-Encoding: chunked") + dust)

    def test_large_trailers_are_refused(self, stage: Stage) -> None:
        trailers = b"".join(b"T%d: %b\r\n" % (at, b"x" * 100) for at in range(60))

        refused(stage, post(stage, b"Transfer-Encoding: chunked") + b"0\r\n" + trailers + b"\r\n", 431)


class TestSizes:
    def test_a_body_over_the_cap_is_refused_before_it_is_read(self, stage: Stage) -> None:
        received = refused(stage, post(stage, b"Content-Length: %d" % (MAX_BODY + 1)), 413)

        assert json.loads(received.body)["max_bytes"] == MAX_BODY
        assert stage.upstream.requests[:-1] == []

    def test_an_astronomic_length_is_just_too_large(self, stage: Stage) -> None:
        refused(stage, post(stage, b"Content-Length: " + b"9" * 15) + smuggled(stage), 413)

    def test_a_chunked_body_over_the_cap_is_cut_at_the_service(self, stage: Stage) -> None:
        chunks = b"10000\r\n%b\r\n" % bytes(65536) * 17 + b"0\r\n\r\n"

        refused(stage, post(stage, b"Transfer-Encoding: chunked") + chunks, 413)

    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_body_of_exactly_the_cap_passes(self, stage: Stage, chunked: bool) -> None:
        body = b"10000\r\n%b\r\n" % bytes(65536) * 16 + b"0\r\n\r\n" if chunked else bytes(MAX_BODY)
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % MAX_BODY

        assert stage.ask(post(stage, framing) + body).status == 200
        assert len(stage.arrived()[0].body) == MAX_BODY

    def test_a_routes_own_cap_holds_for_a_body_that_comes_with_its_head(self, issuer: Issuer, tmp_path: Path) -> None:
        routes = tmp_path / "routes.toml"
        routes.write_text('[[route]]\nprefix = "/api/v1/sales"\nservice = "sales"\nmax_body = 1000\n')
        with staged(issuer, {"ROUTES_FILE": str(routes)}, services=("sales", "auth")) as stage:
            for size, status in ((1000, 200), (1001, 413)):
                chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (size, bytes(size))

                assert stage.ask(post(stage, b"Transfer-Encoding: chunked") + chunks).status == status

            assert len(stage.arrived()) == 1

    def test_a_hundred_fields_pass_and_one_more_does_not(self, stage: Stage) -> None:
        fields = [(b"X-%d" % at, b"v") for at in range(99)]

        assert stage.get(b"/api/v1/sales/x", *fields[:98]).status == 200
        stage.reset()
        refused(stage, stage.head(b"/api/v1/sales/x", *fields), 431)

    @pytest.mark.parametrize("fields", [[(b"X-A", b"a" * 16_400)], [(b"X-%d" % at, b"a" * 2000) for at in range(9)]])
    def test_a_huge_head_is_refused(self, stage: Stage, fields: list[tuple[bytes, bytes]]) -> None:
        refused(stage, stage.head(b"/api/v1/sales/x", *fields), 431)

    def test_an_endless_field_is_not_waited_for(self, stage: Stage) -> None:
        begun = b"GET /api/v1/sales/x HTTP/1.1\r\nHost: x\r\nX-A: "

        refused(stage, [begun, *[b"a" * 16_000] * 4], 431)

    def test_a_long_target_passes_and_a_longer_one_does_not(self, stage: Stage) -> None:
        base = b"/api/v1/sales/x?"

        assert stage.get(base + b"a" * (8192 - len(base))).status == 200
        stage.reset()
        refused(stage, stage.head(base + b"a" * (8193 - len(base))), 414)


class TestConnections:
    def test_pipelined_requests_are_answered_in_order(self, stage: Stage) -> None:
        stage.upstream.always(
            lambda request: answer(200, request.target, delay_s=0.05 if b"/0" in request.target else 0)
        )

        raw = stage.gateway.raw(b"".join(stage.head(b"/api/v1/sales/%d" % at) for at in range(5)), answers=5)

        bodies = [part.rpartition(b"\r\n\r\n")[2] for part in raw.split(b"HTTP/1.1 ")[1:]]
        assert bodies == [b"/api/v1/sales/%d" % at for at in range(5)]
        assert [request.target for request in stage.arrived()] == bodies

    def test_one_pipelined_requests_token_is_not_anothers(self, stage: Stage) -> None:
        anonymous = b"GET /api/v1/sales/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"

        raw = stage.gateway.raw(stage.head() + anonymous + stage.head(), answers=3)

        assert [int(part[:3]) for part in raw.split(b"HTTP/1.1 ")[1:]] == [200, 401, 200]
        assert [request.target for request in stage.arrived()] == [b"/api/v1/sales/x"] * 2

    def test_what_stands_behind_a_last_request_is_nothing(self, stage: Stage) -> None:
        last = stage.head(b"/api/v1/sales/last", (b"Connection", b"x, CLOSE"))

        received = stage.ask(last + smuggled(stage), answers=None)

        assert (received.status, received.values("connection"), received.rest) == (200, [b"close"], b"")
        assert [request.target for request in stage.arrived()] == [b"/api/v1/sales/last"]

    def test_a_request_in_single_bytes_is_one_request(self, stage: Stage) -> None:
        data = post(stage, b"Content-Length: 2") + b"hi"
        with socket.create_connection(("127.0.0.1", stage.gateway.port), PATIENCE_S) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(len(data)):
                client.sendall(data[at : at + 1])
            assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")

        (request,) = stage.arrived()
        assert request.body == b"hi"

    @pytest.mark.parametrize("part", [0.2, 0.99])
    def test_half_a_head_is_no_request(self, stage: Stage, part: float) -> None:
        data = stage.head()
        with socket.create_connection(("127.0.0.1", stage.gateway.port), PATIENCE_S) as client:
            client.sendall(data[: int(len(data) * part)])

        assert stage.arrived() == []

    @pytest.mark.parametrize(
        ("framing", "sent"),
        [
            (b"Content-Length: 10", b"12345"),
            (b"Transfer-Encoding: chunked", b"5\r\n12345\r\n"),
            (b"Content-Length: 1", b""),
        ],
    )
    def test_half_a_body_is_never_a_whole_request(self, stage: Stage, framing: bytes, sent: bytes) -> None:
        with socket.create_connection(("127.0.0.1", stage.gateway.port), PATIENCE_S) as client:
            client.sendall(post(stage, framing) + sent)
            until(lambda: stage.upstream.requests != [])

        (request,) = stage.arrived()
        assert request.left.wait(PATIENCE_S)
        assert not request.complete

    def test_a_client_that_only_closes_its_sending_side_gets_no_half_answer(self, stage: Stage) -> None:
        stage.upstream.next(answer(200, b"x" * 1000, delay_s=0.1))
        with socket.create_connection(("127.0.0.1", stage.gateway.port), PATIENCE_S) as client:
            client.sendall(stage.head())
            until(lambda: stage.upstream.requests != [])
            client.shutdown(socket.SHUT_WR)
            received = b"".join(iter(lambda: client.recv(65536), b""))

        assert received == b"" or received.endswith(b"x" * 1000)

    def test_an_http_1_0_client_is_answered_and_left(self, stage: Stage) -> None:
        pieces = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n")
        stage.upstream.next(Answer(pieces=pieces, between_s=0.05))

        received = stage.ask(stage.head().replace(b"HTTP/1.1", b"HTTP/1.0"), answers=None)

        assert (received.status, received.chunked, received.raw_body) == (200, False, b"abc")
        assert received.values("connection") == [b"close"]


class TestExpect:
    def head(self, stage: Stage, length: int = 2, expect: bytes = b"100-continue") -> bytes:
        return post(stage, b"Content-Length: %d" % length, b"Expect: " + expect)

    def test_a_good_request_is_told_to_go_on(self, stage: Stage) -> None:
        with socket.create_connection(("127.0.0.1", stage.gateway.port), PATIENCE_S) as client:
            client.sendall(self.head(stage))
            assert client.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(b"hi")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")

        (request,) = stage.arrived()
        assert (request.body, request.values("expect")) == (b"hi", [])

    def test_a_bad_token_is_refused_without(self, stage: Stage) -> None:
        received = stage.ask(self.head(stage).replace(b"Bearer ", b"Bearer x"), answers=None)

        assert (received.status, received.interim) == (401, b"")
        assert stage.arrived() == []

    def test_a_body_too_large_is_refused_without(self, stage: Stage) -> None:
        assert refused(stage, self.head(stage, MAX_BODY + 1), 413).interim == b""

    @pytest.mark.parametrize("expect", [b"200-ok", b"100-continue, x", b""])
    def test_other_expectations_fail(self, stage: Stage, expect: bytes) -> None:
        refused(stage, self.head(stage, expect=expect) + b"hi" + smuggled(stage), 417)


class TestRefusalsBeforeTheBody:
    def test_the_client_sees_the_refusal_though_it_still_sends(self, stage: Stage) -> None:
        head = post(stage, b"Content-Length: %d" % MAX_BODY).replace(b"Bearer ", b"Bearer x")

        received = stage.ask([head, *[bytes(1 << 18)] * 4], answers=None)

        assert (received.status, json.loads(received.body)["code"]) == (401, "token-invalid")
        assert stage.arrived() == []


class TestSlowClients:
    def test_head_and_body_have_their_time(self, stage: Stage) -> None:
        """All cases at once, because each takes ten seconds."""
        head = stage.head()
        cases = {
            "nothing": (b"", b""),
            "half a head": (head[:-2], b""),
            "dripping head": (head[:-2] + b"X: ", b"x"),
            "no body": (post(stage, b"Content-Length: 100000"), b""),
            "dripping body": (post(stage, b"Transfer-Encoding: chunked"), b"1\r\nx\r\n"),
            "dripping extension": (post(stage, b"Transfer-Encoding: chunked") + b"1;", b"x"),
            "dripping trailer": (post(stage, b"Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\nT: ", b"x"),
        }

        with ThreadPoolExecutor(len(cases)) as pool:
            ends = dict(zip(cases, pool.map(lambda case: drip(stage, *case), cases.values()), strict=True))

        assert ends["nothing"][0] == b""
        timed_out = {name: Received(raw).status for name, (raw, _) in ends.items() if name != "nothing"}
        assert set(timed_out.values()) == {408}
        assert all(9.5 < seconds < 25 for _, seconds in ends.values()), ends
        assert [request for request in stage.arrived() if request.complete] == []


def drip(stage: Stage, data: bytes, piece: bytes) -> tuple[bytes, float]:
    """Send `data`, then a `piece` each half second; what came back, and after how many seconds the end."""
    began, received = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", stage.gateway.port), PATIENCE_S) as client:
        client.sendall(data)
        client.settimeout(0.5)
        while time.monotonic() - began < PATIENCE_S:
            try:
                more = client.recv(65536)
            except TimeoutError:
                with contextlib.suppress(OSError):
                    client.sendall(piece)
                continue
            except ConnectionResetError:
                break
            if not more:
                break
            received += more
    return received, time.monotonic() - began
