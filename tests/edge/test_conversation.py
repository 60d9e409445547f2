"""From a request's head to its outcome: names and traces, crashes, and clients that leave."""

import re

import pytest

from bakerygw.core.http import Reply
from bakerygw.edge.conversation import Entropy, identify, printable
from tests.edge.edge_fakes import Source, answers, request
from tests.edge.port_fakes import Stage, response
from tests.heads import make_head

SALES = b"/api/v1/sales/today"
UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


@pytest.mark.parametrize("offered", [b"abcd-EFGH", b"a" * 128, b"01.2_3-xx"])
def test_an_acceptable_request_id_is_kept(offered):
    assert identify(make_head(headers=[(b"X-Request-ID", offered)]), Entropy().digits())[0] == offered.decode()


@pytest.mark.parametrize(
    "offered",
    [
        (),
        (b"short",),
        (b"a" * 129,),
        (b"spaced out id",),
        (b"quote\"'quote",),
        (b"x" * 8, b"y" * 8),
        (b"\xe9" * 9,),
        (b"bkry_key",),
        (b"x-bkry_key",),
    ],
)
def test_any_other_request_id_is_replaced_by_a_uuid(offered):
    head = make_head(headers=[(b"X-Request-ID", value) for value in offered])
    assert UUID4.fullmatch(identify(head, Entropy().digits())[0])
    assert identify(head, Entropy().digits())[0] != identify(head, Entropy().digits())[0]


def test_a_trace_is_continued_with_a_span_of_ours():
    continued = identify(make_head(headers=[(b"traceparent", TRACE)]), Entropy().digits())[1]
    assert continued[:36] == TRACE[:36]
    assert continued[52:] == b"-00"
    assert continued[36:52] != TRACE[36:52]
    assert re.fullmatch(rb"[0-9a-f]{16}", continued[36:52])


@pytest.mark.parametrize(
    "offered",
    [
        (),
        (TRACE, TRACE),
        (TRACE.upper(),),
        (b"01" + TRACE[2:],),
        (TRACE + b"-extra",),
        (b"00-" + b"0" * 32 + TRACE[35:],),
        (TRACE[:36] + b"0" * 16 + b"-01",),
    ],
)
def test_any_other_trace_is_begun_anew(offered):
    begun = identify(make_head(headers=[(b"traceparent", value) for value in offered]), Entropy().digits())[1]
    assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-01", begun)
    assert begun[3:35] != TRACE[3:35]


def test_a_path_is_printable():
    assert printable(b"/a\xff\r") == "/a\\xff\r"


def test_one_id_names_the_request_everywhere():
    stage = Stage()
    answer = stage.ask(SALES, b"X-Request-ID: caller-id-1", b"traceparent: " + TRACE, token=b"good")
    sent = dict(stage.forwarded.headers)
    assert answer.headers[b"x-request-id"] == [b"caller-id-1"]
    assert sent[b"X-Request-ID"] == b"caller-id-1"
    assert sent[b"traceparent"][:36] == TRACE[:36]
    assert stage.outcome.trace.request_id == "caller-id-1"
    assert stage.ask(SALES, b"X-Request-ID: caller-id-1").problem()["request_id"] == "caller-id-1"


@pytest.mark.parametrize(
    ("target", "token", "status"),
    [(SALES, b"good", 200), (SALES, b"", 401), (b"/nowhere", b"", 404), (b"/health", b"", 200)],
)
def test_every_answer_has_an_id_and_nosniff(target, token, status):
    answer = Stage().ask(target, token=token)
    assert answer.status == status
    assert answer.headers[b"x-content-type-options"] == [b"nosniff"]
    assert UUID4.fullmatch(answer.headers[b"x-request-id"][0].decode())


def test_what_cannot_be_read_has_an_outcome_too():
    stage = Stage()
    answer = stage.client(request(b"GET", b"/a/../b")).only()
    assert answer.status == 400
    assert answer.headers[b"x-content-type-options"] == [b"nosniff"]
    assert answer.problem()["request_id"].encode() == answer.headers[b"x-request-id"][0]
    outcome = stage.outcome
    assert (outcome.status, outcome.trace.route, outcome.trace.client) == (400, "(unreadable)", "192.0.2.1")
    assert outcome.trace.reason == "bad-request"
    assert outcome.trace.cause == "path-dot-segment"
    assert outcome.bytes_out == len(answer.body)
    assert (outcome.trace.method, outcome.trace.path) == ("GET", "/a/../b")


def test_a_sound_head_with_a_bad_target_is_answered_as_every_other_request():
    stage = Stage()
    lines = (b"X-Request-ID: my-request-1", b"Origin: https://app.example")
    answer = stage.client(request(b"GET", b"/a//b?token=secret", *lines)).only()
    assert answer.problem()["request_id"] == "my-request-1"
    assert answer.problem()["instance"] == "/a//b"
    assert answer.headers[b"vary"] == [b"Origin"]


def test_a_refused_expectation_keeps_the_callers_id():
    stage = Stage()
    lines = (b"X-Request-ID: my-request-1", b"Expect: the-moon", b"Content-Length: 1")
    answer = stage.client(request(b"POST", b"/x", *lines)).only()
    assert answer.status == 417
    assert answer.problem()["request_id"] == "my-request-1"


def test_a_head_that_is_not_understood_gets_no_body():
    assert Stage().client(request(b"HEAD", b"/a//b")).wire.written.endswith(b"\r\n\r\n")


def test_an_outcome_tells_what_became_of_the_request():
    stage = Stage()
    stage.ask(SALES + b"?token=secret", method=b"POST", body=b"12345", token=b"good")
    outcome, trace = stage.outcome, stage.outcome.trace
    assert (outcome.status, outcome.bytes_in, outcome.bytes_out) == (200, 5, 6)
    assert (trace.method, trace.path, trace.route) == ("POST", SALES.decode(), "/api/v1/sales/**")
    assert (trace.user_id, trace.tenant_id, trace.service) == ("user-1", "t-own", "sales")
    assert (trace.reason, trace.upstream_s) == (None, 0)
    assert stage.notes.begun == [trace]


def test_a_refusals_outcome_has_its_code_and_cause():
    stage = Stage()
    stage.ask(SALES, token=b"bad")
    assert (stage.outcome.status, stage.outcome.trace.reason, stage.outcome.trace.cause) == (
        401,
        "token-invalid",
        "signature",
    )


def test_a_crash_is_a_problem_without_a_traceback_and_is_logged(logged_failures):
    stage = Stage()

    def crash(head: object) -> Reply:
        raise ZeroDivisionError("secret detail")

    stage.gateway.pages = {"/docs": crash}
    answer = stage.ask(b"/docs", b"Origin: https://app.example")
    assert (answer.status, answer.problem()["code"]) == (500, "internal-error")
    assert b"secret" not in answer.body
    assert b"ZeroDivision" not in answer.body
    assert answer.headers[b"access-control-allow-origin"] == [b"https://app.example"]
    assert stage.outcome.trace.reason == "internal-error"
    assert [failure.type for failure in logged_failures] == [ZeroDivisionError]
    logged_failures.clear()


def test_a_crash_while_replying_resets_the_connection(logged_failures):
    class Broken(Source):
        def start(self, sink):
            raise ZeroDivisionError

    stage = Stage()
    stage.services.response = response(body=Broken())
    client = stage.client(request(b"GET", SALES, b"Authorization: Bearer good"))
    assert client.wire.aborted
    assert [failure.type for failure in logged_failures] == [ZeroDivisionError]
    logged_failures.clear()


def waiting() -> Stage:
    stage = Stage()
    stage.services.response = None
    return stage


def test_a_client_that_leaves_cancels_its_upstream_request():
    stage = waiting()
    client = stage.client(request(b"GET", SALES, b"Authorization: Bearer good"))
    assert stage.services.cancelled == 0
    client.leave()
    assert stage.services.cancelled == 1
    assert (stage.outcome.status, stage.outcome.trace.reason) == (499, "client-left")


def test_a_client_that_leaves_while_its_answer_streams_stops_the_source():
    stage, source = Stage(), Source()
    stage.services.response = response(body=source)
    client = stage.client(request(b"GET", SALES, b"Authorization: Bearer good"))
    source.sink.write(b"abc")
    client.leave()
    assert source.calls == ["start", "stop"]
    assert (stage.outcome.status, stage.outcome.trace.reason, stage.outcome.bytes_out) == (200, "client-left", 3)


def test_a_cut_answer_is_told_with_what_cut_it():
    stage, source = Stage(), Source(10)
    stage.services.response = response(body=source)
    client = stage.client(request(b"GET", SALES, b"Authorization: Bearer good"))
    source.sink.write(b"abc")
    source.sink.cut("upstream_truncated")
    assert client.wire.aborted
    assert (stage.outcome.trace.reason, stage.outcome.trace.cause) == ("cut", "upstream_truncated")


def test_time_is_told_in_whole_and_upstream():
    stage = waiting()
    client = stage.client(request(b"GET", SALES, b"Authorization: Bearer good"))
    stage.services.waiting[0].callback(response())
    assert client.only().status == 200
    assert stage.outcome.duration_s >= (stage.outcome.trace.upstream_s or 0)


def test_pipelined_requests_have_their_own_outcomes():
    stage = Stage()
    client = stage.client(request(b"GET", SALES, b"Authorization: Bearer good") + request(b"GET", b"/nowhere"))
    assert [answer.status for answer in answers(client.wire.written)] == [200, 404]
    assert [outcome.status for outcome in stage.notes.outcomes] == [200, 404]


def test_no_digits_are_given_twice():
    entropy = Entropy()
    drawn = {entropy.digits() for _ in range(300)}
    assert len(drawn) == 300
    assert {len(digits) for digits in drawn} == {80}
