"""How many requests of one subject are under way: counted in, and out however they end."""

import pytest

from bakerygw.edge.limits.crowd import SUBJECTS
from bakerygw.ports import UpstreamFailed
from tests.edge.edge_fakes import Source, request
from tests.edge.port_fakes import PRO, Stage, response

SALES = b"/api/v1/sales/today"
GOOD = (b"Authorization: Bearer good",)
DEMO = (b"Authorization: Bearer demo",)


def waiting(**policies):
    """A stage whose services answer only when the test says so."""
    stage = Stage(**policies)
    stage.services.response = None
    return stage


def begin(stage, *lines, target=SALES, method=b"GET", peer="192.0.2.1"):
    return stage.client(request(method, target, *(lines or GOOD)), peer=peer)


def parties(stage):
    return {name: len(party) for name, party in stage.gateway.crowd._parties.items() if party}


def test_requests_under_way_are_counted_by_tenant_until_they_are_answered():
    stage = waiting()
    clients = [begin(stage), begin(stage), begin(stage, *GOOD, b"X-Tenant-ID: t-other")]
    assert [stage.gateway.crowd.of(name) for name in ("t-own", "t-other", "t-else")] == [2, 1, 0]
    for answered in stage.services.waiting:
        answered.callback(response())
    assert [client.only().status for client in clients] == [200] * 3
    assert parties(stage) == {}


def test_one_more_than_allowed_is_refused_and_other_tenants_are_not():
    stage = waiting(max_concurrent=2)
    begin(stage), begin(stage)
    refused = begin(stage).only()
    problem = refused.problem()
    assert (refused.status, problem["code"], problem["policy"], problem["scope"]) == (
        429, "rate-limited", "concurrency", "tenant",
    )  # fmt: skip
    assert (refused.headers[b"retry-after"], problem["limit"], problem["retry_after"]) == ([b"1"], 2, 1)
    assert stage.notes.outcomes[-1].trace.exceeded == (("concurrency", False),)
    assert begin(stage, *GOOD, b"X-Tenant-ID: t-other").answers() == []
    assert len(stage.services.requests) == 3


def test_when_one_has_ended_the_next_is_let_pass():
    stage = waiting(max_concurrent=1)
    first = begin(stage)
    assert begin(stage).only().status == 429
    stage.services.waiting[0].callback(response())
    assert first.only().status == 200
    assert begin(stage).answers() == []


def test_public_requests_to_services_are_counted_by_address():
    stage = waiting(max_concurrent=1)
    login = {"target": b"/api/v1/auth/login", "method": b"POST"}
    begin(stage, b"X: y", **login)
    assert begin(stage, b"X: y", **login).only().problem()["scope"] == "address"
    assert begin(stage, b"X: y", **login, peer="192.0.2.2").answers() == []
    assert begin(stage).answers() == []
    assert Stage(max_concurrent=0).ask(b"/docs").status == 200


def test_demo_sessions_take_no_place_of_the_tenants_other_callers():
    stage = waiting(max_concurrent=1)
    begin(stage, *DEMO)
    assert parties(stage) == {"demo:t-demo": 1}
    assert stage.gateway.crowd.of("t-demo") == 1


def test_who_waits_for_a_critical_operation_to_be_confirmed_takes_a_place_and_only_one():
    stage = waiting(max_concurrent=1)
    stage.answers.subscriptions["t-own"] = None
    delete = {"target": b"/api/v1/tenants/t-own", "method": b"DELETE"}
    first = begin(stage, **delete)
    assert begin(stage, **delete).only().problem()["policy"] == "concurrency"
    assert len(stage.answers.asked) == 1
    stage.answers.waiting[0].callback(PRO)
    assert parties(stage) == {"t-own": 1}
    stage.services.waiting[0].callback(response())
    assert first.only().status == 200
    begin(stage, **delete).leave()
    assert parties(stage) == {}


def test_what_is_refused_takes_no_place():
    stage = waiting()
    begin(stage, b"Authorization: Bearer bad")
    begin(stage, *GOOD, b"X-Tenant-ID: t-else")
    begin(stage, target=b"/api/v1/gold/x")
    assert parties(stage) == {}


def leave(stage, client):
    client.leave()


def fail(stage, client):
    stage.services.waiting[0].errback(UpstreamFailed("upstream-timeout", "timeout", "late"))


def crash(stage, client):
    stage.services.waiting[0].errback(RuntimeError("defect"))


@pytest.mark.parametrize("end", [leave, fail, crash])
def test_a_place_is_free_again_however_the_request_ended(end, logged_failures):
    stage = waiting(max_concurrent=1)
    client = begin(stage)
    assert parties(stage) == {"t-own": 1}
    end(stage, client)
    assert parties(stage) == {}
    assert [failure.type for failure in logged_failures] == ([RuntimeError] if end is crash else [])
    logged_failures.clear()


def test_an_answer_counts_until_its_last_byte():
    stage = Stage()
    source = Source(length=10)
    stage.services.response = response(body=source)
    client = begin(stage)
    assert parties(stage) == {"t-own": 1}
    source.sink.write(b"01234")
    assert parties(stage) == {"t-own": 1}
    source.sink.write(b"56789")
    source.sink.done()
    assert parties(stage) == {}
    assert client.only().body == b"0123456789"


def test_an_answer_that_a_service_cuts_short_frees_its_place():
    stage = Stage()
    source = Source(length=10)
    stage.services.response = response(body=source)
    begin(stage)
    source.sink.cut("closed early")
    assert parties(stage) == {}


def test_a_client_that_leaves_in_the_middle_of_an_answer_frees_its_place():
    stage = Stage()
    stage.services.response = response(body=Source(length=10))
    begin(stage).leave()
    assert parties(stage) == {}


def test_a_tenants_requests_can_be_cut_off_and_no_others():
    stage = waiting()
    clients = [begin(stage), begin(stage), begin(stage, *GOOD, b"X-Tenant-ID: t-other")]
    assert stage.gateway.crowd.cut("t-own") == 2
    assert [client.wire.aborted for client in clients] == [True, True, False]
    for client in clients[:2]:
        client.leave()
    assert parties(stage) == {"t-other": 1}
    assert stage.services.cancelled == 2
    assert {outcome.trace.reason for outcome in stage.notes.outcomes} == {"disconnected"}
    assert stage.gateway.crowd.cut("t-own") == 0


def test_answers_on_their_way_can_be_cut_off_as_well():
    stage = Stage()
    source = Source(length=10)
    stage.services.response = response(body=source)
    client = begin(stage)
    source.sink.write(b"01234")
    assert stage.gateway.crowd.cut("t-own") == 1
    client.leave()
    assert "stop" in source.calls
    assert parties(stage) == {}


def test_who_has_nothing_under_way_is_forgotten_in_time():
    stage = waiting()
    login = {"target": b"/api/v1/auth/login", "method": b"POST"}
    busy = begin(stage, b"X: y", **login)
    crowd = stage.gateway.crowd
    crowd._parties |= {f"addr:{number}": set() for number in range(SUBJECTS)}
    begin(stage, b"X: y", **login, peer="192.0.2.2")
    assert set(crowd._parties) == {"addr:192.0.2.1", "addr:192.0.2.2"}
    stage.services.waiting[0].callback(response())
    assert busy.only().status == 200
    assert parties(stage) == {"addr:192.0.2.2": 1}
