"""Two gateways in a row: what is end to end passes both unchanged, what belongs to one hop does not."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.e2e.calling import until
from tests.e2e.harness import Answer, Gateway, Recorded, RecordingUpstream, answer
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
from tests.e2e.stage import NO_LIMITS, Received, Stage
from tests.minting import Issuer
from tests.patience import PATIENCE_S

EXAMPLES = settings(max_examples=30, deadline=None)
CLIENT = "127.0.0.9"
TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
LAST = (b"Connection", b"close")


@pytest.fixture(scope="module")
def chain(issuer: Issuer) -> Iterator[Stage]:
    """The outer gateway, whose service is an inner one that trusts it, before the recording service."""
    with ExitStack() as running:
        service = running.enter_context(RecordingUpstream())
        common = {"JWT_PUBLIC_KEY": issuer.public_pem, **NO_LIMITS}
        inner = running.enter_context(
            Gateway({**common, "SALES_SERVICE_URL": service.url, "TRUSTED_PROXIES": "127.0.0.1/32"})
        )
        outer = running.enter_context(Gateway({**common, "SALES_SERVICE_URL": inner.base_url}))
        yield Stage(outer, {"sales": service}, issuer)


def asked(chain: Stage, data: bytes) -> Received:
    """The answer to a client that is at an address of its own."""
    source = (CLIENT, 0)
    with socket.create_connection(("127.0.0.1", chain.gateway.port), PATIENCE_S, source_address=source) as client:
        client.sendall(data)
        return Received(b"".join(iter(lambda: client.recv(65536), b"")), to_head=data.startswith(b"HEAD "))


def the_one(chain: Stage) -> Recorded:
    (request,) = chain.upstream.wait_for(1)
    return request


class TestRequests:
    @EXAMPLES
    @given(target=TARGETS, sent=fields(NOT_FORWARDED, FIELD_VALUES))
    @example(target=b"/api/v1/sales?", sent=[(b"X-Dup", b"1"), (b"x-dup", b""), (b"X-DUP", b"1"), (b"Accept", b"\xe9")])
    def test_target_and_end_to_end_fields_arrive_as_sent(
        self, chain: Stage, target: bytes, sent: list[tuple[bytes, bytes]]
    ) -> None:
        chain.reset()

        assert chain.get(target, *sent).status == 200

        request = the_one(chain)
        assert request.target == target
        own = [(b"Host", chain.upstream.url[7:].encode()), (b"Authorization", b"Bearer " + chain.token.encode())]
        assert request.headers[: 2 + len(sent)] == [*own, *sent]
        added = [name.decode().lower() for name, _ in request.headers[2 + len(sent) :]]
        assert (len(added), set(added)) == (len(GATEWAYS_OWN), GATEWAYS_OWN)

    @EXAMPLES
    @given(body=BODIES, sizes=st.none() | CUTS)
    @example(body=b"", sizes=None)
    @example(body=b"", sizes=[])
    @example(body=bytes(range(256)) * 4096, sizes=None)
    @example(body=bytes(range(256)) * 4096, sizes=[65536] * 8)
    def test_bodies_arrive_as_sent(self, chain: Stage, body: bytes, sizes: list[int] | None) -> None:
        chain.reset()
        framing, data = (b"Content-Length", b"%d" % len(body)), body
        if sizes is not None:
            framing, data = (b"Transfer-Encoding", b"chunked"), chunked(body, sizes)

        assert chain.ask(chain.head(b"/api/v1/sales/body", framing, method=b"PUT") + data).status == 200

        request = the_one(chain)
        assert (request.method, request.body) == ("PUT", body)
        framings = request.values("content-length"), request.values("transfer-encoding")
        assert framings == (([framing[1]], []) if sizes is None else ([], [b"chunked"]))

    def test_both_hops_are_told_and_the_request_is_one(self, chain: Stage) -> None:
        chain.reset()
        offered = ((b"X-Request-ID", b"one-request"), (b"traceparent", b"00-%b-00f067aa0ba902b7-01" % TRACE))

        received = asked(chain, chain.head(b"/api/v1/sales/x", LAST, *offered))

        request = the_one(chain)
        assert request.value("x-forwarded-for") == CLIENT.encode() + b", 127.0.0.1"
        assert request.value("via") == b"1.1 bakerygw, 1.1 bakerygw"
        assert request.value("x-forwarded-host") == b"gateway.example"
        assert request.value("x-forwarded-proto") == b"http"
        assert request.value("x-request-id") == b"one-request"
        assert received.values("x-request-id") == [b"one-request"]
        assert (request.value("traceparent") or b"")[3:35] == TRACE

    def test_an_id_and_a_trace_that_the_outer_one_makes_are_kept_by_the_inner_one(self, chain: Stage) -> None:
        chain.reset()

        received = asked(chain, chain.head(b"/api/v1/sales/x", LAST))

        request = the_one(chain)
        (request_id,) = received.values("x-request-id")
        assert request.value("x-request-id") == request_id
        done = chain.gateway.wait_for_event("request.done", lambda event: event["request_id"] == request_id.decode())
        assert done["client"] == CLIENT

    def test_what_belongs_to_one_hop_stays_there(self, chain: Stage) -> None:
        chain.reset()
        hop = [
            *((b"Connection", b"x-private, keep-alive"), (b"X-Private", b"1"), (b"Keep-Alive", b"timeout=5")),
            *((b"TE", b"trailers"), (b"Trailer", b"X-T"), (b"Upgrade", b"h2c"), (b"Proxy-Authorization", b"Basic x")),
        ]

        assert chain.get(b"/api/v1/sales/x", *hop, (b"X-Kept", b"1")).status == 200

        arrived = {name.lower() for name, _ in the_one(chain).headers}
        assert b"x-kept" in arrived
        assert not arrived & {name.lower() for name, _ in hop}

    def test_a_forgery_passes_neither(self, chain: Stage) -> None:
        chain.reset()

        assert chain.get(b"/api/v1/sales/x", (b"X-User-Id", b"forged"), (b"X_User_Id", b"forged")).status == 200

        request = the_one(chain)
        assert len(request.values("x-user-id")) == 1
        assert b"forged" not in request.head

    def test_a_body_waits_to_be_asked_for_and_trailers_stay_here(self, chain: Stage) -> None:
        chain.reset()
        head = chain.head(
            b"/api/v1/sales/x", (b"Transfer-Encoding", b"chunked"), (b"Expect", b"100-continue"), method=b"POST"
        )
        with socket.create_connection(("127.0.0.1", chain.gateway.port), PATIENCE_S) as client:
            client.sendall(head)
            assert client.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(b"2\r\nhi\r\n0\r\nX-User-Id: forged\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")

        request = the_one(chain)
        assert (request.body, request.values("expect")) == (b"hi", [])
        assert b"forged" not in request.head + request.raw_body

    def test_a_body_that_is_cut_is_cut_at_the_service(self, chain: Stage) -> None:
        chain.reset()
        with socket.create_connection(("127.0.0.1", chain.gateway.port), PATIENCE_S) as client:
            client.sendall(chain.head(b"/api/v1/sales/x", (b"Transfer-Encoding", b"chunked"), method=b"POST"))
            client.sendall(b"5\r\nhello\r\n")
            until(lambda: chain.upstream.requests and chain.upstream.requests[0].raw_body)

        (request,) = chain.upstream.requests
        assert request.left.wait(PATIENCE_S)
        assert not request.complete


class TestAnswers:
    @EXAMPLES
    @given(
        status=st.sampled_from([200, 206, 302, 418, 503]),
        sent=fields(NOT_RETURNED, FIELD_VALUES),
        body=BODIES,
        sizes=st.none() | CUTS,
    )
    @example(status=200, sent=[(b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"Set-Cookie", b"a=1")],
             body=b"", sizes=None)  # fmt: skip
    def test_status_fields_and_body_come_back_as_sent(
        self, chain: Stage, status: int, sent: list[tuple[bytes, bytes]], body: bytes, sizes: list[int] | None
    ) -> None:
        chain.reset()
        framing, data = b"Content-Length: %d\r\n" % len(body), body
        if sizes is not None:
            framing, data = b"Transfer-Encoding: chunked\r\n", chunked(body, sizes)
        chain.upstream.next(Answer(pieces=(answered(status, sent, framing, data),)))

        received = chain.get()

        assert (received.status, received.body, received.rest) == (status, body, b"")
        assert received.headers[: len(sent)] == sent
        assert b"Some Phrase" not in received.head
        for name in ("x-request-id", "date", "x-content-type-options", "ratelimit", "x-ratelimit-limit"):
            assert len(received.values(name)) == 1, name

    @pytest.mark.parametrize(
        ("method", "status", "lines", "length"),
        [
            (b"HEAD", 200, [b"Content-Length: 12345"], [b"12345"]),
            (b"HEAD", 200, [b"Transfer-Encoding: chunked"], []),
            (b"HEAD", 404, [], []),
            (b"GET", 204, [], []),
            (b"GET", 304, [b"Content-Length: 99"], [b"99"]),
            (b"GET", 304, [], []),
            (b"DELETE", 205, [b"Content-Length: 0"], [b"0"]),
        ],
    )
    def test_answers_without_a_body_have_none_and_promise_what_they_did(
        self, chain: Stage, method: bytes, status: int, lines: list[bytes], length: list[bytes]
    ) -> None:
        chain.reset()
        head = b"\r\n".join([b"HTTP/1.1 %d Phrase" % status, b'ETag: "v1"', *lines, b"", b""])
        chain.upstream.next(Answer(pieces=(head,)))

        received = chain.ask(chain.head(b"/api/v1/sales/x", LAST, method=method), answers=None)

        assert (received.status, received.rest, received.chunked) == (status, b"", False)
        assert received.values("content-length") == length
        assert received.values("etag") == [b'"v1"']
        assert the_one(chain).method == method.decode()

    def test_interim_answers_and_trailers_do_not_come_back(self, chain: Stage) -> None:
        chain.reset()
        interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2\r\nhi\r\n0\r\nX-T: 1\r\n\r\n"
        chain.upstream.next(Answer(pieces=(interim, final), between_s=0.02))

        received = chain.get()

        assert (received.interim, received.status, received.body) == (b"", 200, b"hi")
        assert received.values("link") + received.values("trailer") + received.values("x-t") == []

    def test_what_belongs_to_one_hop_stays_there(self, chain: Stage) -> None:
        chain.reset()
        hop = {
            "Connection": "x-hop", "X-Hop": "1", "Keep-Alive": "timeout=5", "Upgrade": "h2c",
            "Server": "s", "X-Powered-By": "p", "Proxy-Authenticate": "Basic",
        }  # fmt: skip
        chain.upstream.next(answer(200, b"{}", *hop.items(), ("X-Kept", "1")))

        received = chain.get()

        assert not {name.lower() for name, _ in received.headers} & {name.lower().encode() for name in hop}
        assert received.values("x-kept") == [b"1"]

    def test_a_compressed_body_stays_compressed(self, chain: Stage) -> None:
        chain.reset()
        squeezed = b"\x1f\x8b\x08\x00not really\x00\xff"
        chain.upstream.next(answer(200, squeezed, ("Content-Encoding", "gzip"), ("ETag", '"x"')))

        received = chain.get(b"/api/v1/sales/x", (b"Accept-Encoding", b"gzip"))

        assert (received.body, received.values("content-encoding")) == (squeezed, [b"gzip"])
        assert the_one(chain).value("accept-encoding") == b"gzip"

    def test_a_failure_behind_the_inner_one_is_told_by_it_and_a_cut_stays_a_cut(self, chain: Stage) -> None:
        chain.reset()
        chain.upstream.next(Answer(pieces=(b"nonsense\r\n\r\n",)))

        received = chain.get()

        assert (received.status, json.loads(received.body)["code"]) == (502, "upstream-invalid")
        assert received.values("proxy-status") == [b"bakerygw; error=http_protocol_error"]
        cut = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nonly \r\n")
        chain.upstream.always(Answer(pieces=cut, between_s=0.05, close=True))
        assert not chain.gateway.raw(chain.head(), answers=None).endswith(b"0\r\n\r\n")

    def test_a_large_body_streams_through_both_either_way(self, chain: Stage) -> None:
        chain.reset()
        body = bytes(range(256)) * 16384
        chain.upstream.next(answer(200, body))
        head = chain.head(b"/api/v1/sales/x", (b"Content-Length", b"%d" % len(body)), method=b"PUT")

        received = chain.ask(head + body)

        assert received.body == body
        assert the_one(chain).body == body
