"""Requests to services, and their answers and failures back."""

import pytest

from bakerygw.ports import UpstreamFailed
from tests.edge.edge_fakes import Sink, Source, answers, request
from tests.edge.port_fakes import DEMO, Stage, response

SALES = b"/api/v1/sales/today"
BEARER = b"Authorization: Bearer good"
CHUNKED = b"Transfer-Encoding: chunked"


def chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def test_target_method_and_body_go_as_they_came():
    stage = Stage()
    stage.services.sink = sink = Sink()
    stage.ask(SALES + b"?a=%20&b=%zz", method=b"PATCH", body=b"\x00\xff", token=b"good")
    sent = stage.forwarded
    assert (sent.method, sent.target) == ("PATCH", SALES + b"?a=%20&b=%zz")
    assert (sink.data, sink.end) == (b"\x00\xff", "done")


def test_a_request_without_a_body_has_none():
    stage = Stage()
    stage.ask(SALES, b"Content-Length: 0", method=b"POST", token=b"good")
    assert stage.forwarded.body is None


def test_a_get_with_a_body_keeps_it():
    stage = Stage()
    stage.services.sink = sink = Sink()
    stage.ask(SALES, body=b"query", token=b"good")
    assert sink.data == b"query"


def test_the_service_learns_who_asks_from_the_gateway_alone():
    stage = Stage()
    forged = (
        b"X-User-Id: root",
        b"X_User_Id: root",
        b"X-Tenant-Id: t-own",
        b"X-Forwarded-For: 9.9.9.9",
        b"X-Is-Demo: true",
    )
    stage.ask(SALES, *forged, b"Connection: x-user-id, x-tenant-id", token=b"good")
    sent = [(name.lower(), value) for name, value in stage.forwarded.headers]
    assert [value for name, value in sent if name == b"x-user-id"] == [b"user-1"]
    assert [value for name, value in sent if name == b"x-tenant-id"] == [b"t-own"]
    assert [value for name, value in sent if name == b"x-forwarded-for"] == [b"192.0.2.1"]
    assert [value for name, value in sent if name == b"x-is-demo"] == [b"false"]
    assert [value for name, value in sent if name == b"authorization"] == [b"Bearer good"]
    assert not [name for name, _ in sent if b"_" in name or name == b"connection"]


def test_a_public_route_vouches_for_nobody():
    stage = Stage()
    stage.ask(b"/api/v1/auth/login", b"X-User-Id: root", method=b"POST", token=b"good")
    assert not [name for name, _ in stage.forwarded.headers if name.lower().startswith((b"x-user", b"x-tenant"))]


def test_an_answer_comes_back_as_it_is_less_what_is_the_gateways():
    stage = Stage()
    service = (
        *((b"Content-Length", b"6"), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2"), (b"Server", b"uvicorn")),
        *((b"X-Request-ID", b"theirs"), (b"Location", b"http://10.0.0.9:8000/x"), (b"Connection", b"keep-alive")),
        (b"Date", b"yesterday"),
    )
    stage.services.response = response(418, service)
    answer = stage.ask(SALES, token=b"good")
    assert (answer.status, answer.body) == (418, b"answer")
    assert answer.headers[b"set-cookie"] == [b"a=1", b"b=2"]
    assert answer.headers[b"location"] == [b"/x"]
    assert answer.headers[b"content-length"] == [b"6"]
    assert answer.headers[b"date"] == [b"yesterday"]
    assert answer.headers[b"x-request-id"] != [b"theirs"]
    assert b"server" not in answer.headers
    assert b"connection" not in answer.headers


def test_a_location_on_any_service_becomes_relative():
    stage = Stage()
    stage.services.response = response(302, ((b"Location", b"http://orders.internal:8000/api/v1/orders/7"),))
    assert stage.ask(SALES, token=b"good").headers[b"location"] == [b"/api/v1/orders/7"]


def test_a_slash_behind_a_tenants_path_reaches_the_service_as_sent():
    stage = Stage()
    stage.ask(b"/api/v1/tenants/t-own/", method=b"DELETE", token=b"good")
    assert (stage.forwarded.method, stage.forwarded.target) == ("DELETE", b"/api/v1/tenants/t-own/")


@pytest.mark.parametrize(
    ("method", "status", "headers", "length"),
    [
        (b"HEAD", 200, ((b"Content-Length", b"77"),), [b"77"]),
        (b"HEAD", 200, ((b"Content-Length", b"0"),), [b"0"]),
        (b"HEAD", 200, ((b"Transfer-Encoding", b"chunked"),), None),
        (b"GET", 304, ((b"Content-Length", b"77"),), [b"77"]),
        (b"GET", 304, (), None),
        (b"GET", 204, (), None),
    ],
)
def test_answers_without_a_body_keep_the_length_they_told(method, status, headers, length):
    stage = Stage()
    stage.services.response = response(status, headers, b"")
    client = stage.client(request(method, SALES, BEARER))
    (answer,) = answers(client.wire.written, bodiless=True)
    assert answer.status == status
    assert answer.headers.get(b"content-length") == length
    assert not client.wire.closed


def test_a_streamed_answer_is_relayed_as_it_comes():
    stage, source = Stage(), Source()
    stage.services.response = response(body=source)
    client = stage.client(request(b"GET", SALES, BEARER))
    source.sink.write(b"first")
    assert client.wire.written.endswith(b"\r\n5\r\nfirst\r\n")
    source.sink.done()
    assert client.only().body == b"first"


@pytest.mark.parametrize(
    ("code", "error", "status", "retry"),
    [
        ("upstream-unreachable", "connection_refused", 502, None),
        ("upstream-invalid", "http_protocol_error", 502, None),
        ("upstream-timeout", "http_response_timeout", 504, None),
        ("service-unavailable", "connection_limit_reached", 503, [b"5"]),
    ],
)
def test_a_failure_is_told_by_code_and_proxy_status_and_no_more(code, error, status, retry):
    stage = Stage()
    stage.services.failure = UpstreamFailed(code, error, "10.0.0.9:8000: errno 111")
    answer = stage.ask(SALES, token=b"good")
    assert (answer.status, answer.problem()["code"]) == (status, code)
    assert answer.headers[b"proxy-status"] == [b"bakerygw; error=" + error.encode()]
    assert answer.headers.get(b"retry-after") == retry
    assert b"10.0.0.9" not in answer.body
    assert b"ratelimit" in answer.headers
    assert stage.outcome.trace.cause == "10.0.0.9:8000: errno 111"
    assert stage.outcome.trace.upstream_s == (None if status == 503 else 0), "no wait where nothing was sent"


def test_a_service_is_told_whether_the_body_has_all_come():
    for sent, complete in ((b"12", False), (b"12345", True)):
        stage = Stage()
        head = request(b"POST", SALES, BEARER, b"Content-Length: 5")
        stage.client(head + sent)
        assert stage.forwarded.body.complete is complete


def test_a_failure_that_knows_when_to_ask_again_says_so():
    stage = Stage()
    stage.services.failure = UpstreamFailed("service-unavailable", "destination_unavailable", "open", retry_after_s=3)
    answer = stage.ask(SALES, token=b"good")
    assert answer.headers[b"retry-after"] == [b"3"]
    assert answer.problem()["retry_after"] == 3


def test_a_route_whose_service_has_no_address_is_503():
    stage = Stage()
    stage.services.names = set()
    answer = stage.ask(SALES, token=b"good")
    assert (answer.status, answer.problem()["code"]) == (503, "service-unavailable")


@pytest.mark.parametrize(("names", "service"), [({"sales"}, "sales"), ({"sales", "demo:sales"}, "demo:sales")])
def test_demo_sessions_go_to_the_demo_service_if_there_is_one(names, service):
    stage = Stage()
    stage.services.names = names
    stage.ask(SALES, token=b"demo")
    assert stage.services.requests[0][0] == service
    assert dict(stage.forwarded.headers)[b"X-Demo-Session-Id"] == DEMO.demo_session_id.encode()


def test_others_never_go_to_the_demo_service():
    stage = Stage()
    stage.services.names = {"demo:sales"}
    assert stage.ask(SALES, token=b"good").status == 503


# the cap


def test_a_body_that_says_it_is_too_large_is_413_before_the_service_hears_of_it():
    stage = Stage()
    client = stage.client(request(b"POST", SALES, BEARER, b"Content-Length: 1001", b"Expect: 100-continue"))
    answer = client.only()
    assert (answer.status, answer.problem()["code"], answer.problem()["max_bytes"]) == (413, "body-too-large", 1000)
    assert answer.headers[b"connection"] == [b"close"]
    assert client.wire.half_closed
    assert stage.services.requests == []


def test_a_body_of_just_the_cap_passes():
    stage = Stage()
    assert stage.ask(SALES, method=b"POST", body=b"x" * 1000, token=b"good").status == 200


@pytest.mark.parametrize("end", [b"", b"0\r\n\r\n"])
@pytest.mark.parametrize(("target", "cap"), [(SALES, 1000), (b"/api/v1/small/x", 10)])
def test_a_chunked_body_over_the_cap_is_413_even_if_it_is_all_here(target, cap, end):
    stage = Stage()
    stage.services.sink = sink = Sink()
    data = request(b"POST", target, BEARER, CHUNKED) + chunks(b"x" * cap, b"x") + end
    answer = stage.client(data).only()
    assert (answer.status, answer.problem()["max_bytes"]) == (413, cap)
    assert sink.end != "done"


def test_a_chunked_body_that_grows_over_the_cap_is_cut_and_413():
    stage = Stage()
    stage.services.response, stage.services.sink = None, Sink()
    client = stage.client(request(b"POST", SALES, BEARER, CHUNKED) + chunks(b"x" * 999))
    client.send(chunks(b"xx"))
    assert stage.services.sink.end == "body-too-large"
    stage.services.waiting[0].errback(UpstreamFailed("upstream-invalid", "connection_terminated", "cut"))
    answer = client.only()
    assert (answer.status, answer.problem()["code"]) == (413, "body-too-large")
    assert b"proxy-status" not in answer.headers
    assert client.wire.half_closed


def test_a_body_that_breaks_is_the_clients_fault_and_not_the_services():
    stage = Stage()
    stage.services.response, stage.services.sink = None, Sink()
    client = stage.client(request(b"POST", SALES, BEARER, CHUNKED) + chunks(b"x"))
    client.send(b"nonsense\r\n" + request(b"GET", b"/health"))
    assert stage.services.sink.end == "bad-request"
    stage.services.waiting[0].errback(UpstreamFailed("upstream-invalid", "connection_terminated", "cut"))
    assert (client.only().status, client.only().problem()["code"]) == (400, "bad-request")
    assert client.only().headers[b"connection"] == [b"close"]


def test_a_body_that_is_broken_from_the_start_never_reaches_the_service():
    stage = Stage()
    answer = stage.client(request(b"POST", SALES, BEARER, CHUNKED) + b"nonsense\r\n").only()
    assert (answer.status, answer.problem()["code"]) == (400, "bad-request")
    assert stage.services.requests == []


def test_a_body_that_stalls_is_408():
    stage = Stage()
    stage.services.response, stage.services.sink = None, Sink()
    client = stage.client(request(b"POST", SALES, BEARER, b"Content-Length: 100"))
    client.wait(11)
    assert stage.services.sink.end == "request-timeout"
    stage.services.waiting[0].errback(UpstreamFailed("upstream-invalid", "connection_terminated", "cut"))
    assert (client.only().status, client.only().problem()["code"]) == (408, "request-timeout")


def test_an_early_answer_is_relayed_and_ends_the_connection():
    stage = Stage()
    client = stage.client(request(b"POST", SALES, BEARER, b"Content-Length: 100") + b"x")
    assert client.only().body == b"answer"
    assert client.only().headers[b"connection"] == [b"close"]
    assert client.wire.half_closed


def test_100_continue_waits_for_every_decision():
    for token, continued in ((b"good", True), (b"bad", False)):
        stage = Stage()
        stage.services.response, stage.services.sink = None, Sink()
        bearer = b"Authorization: Bearer " + token
        client = stage.client(request(b"POST", SALES, bearer, b"Expect: 100-continue", b"Content-Length: 5"))
        assert client.wire.written.startswith(b"HTTP/1.1 100 Continue\r\n\r\n") == continued
        assert b"expect" not in [name.lower() for _, sent in stage.services.requests for name, _ in sent.headers]
