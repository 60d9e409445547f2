"""A write to a tenant's subscription makes older tokens stale before the client hears of it, however it goes on."""

from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bakerygw.core.claims import Subscription
from bakerygw.core.routing import Router
from bakerygw.edge.admission import Confirmed
from bakerygw.edge.proxy import Proxy
from bakerygw.edge.tenants.changes import LAST_RETRY_S, MAX_DOUBTS, MAX_PENDING, SubscriptionChanges
from bakerygw.edge.tenants.subscriptions import SubscriptionHandler
from bakerygw.ports import LookupFailed, StoreUnavailable, UpstreamFailed
from tests.deferreds import success_of
from tests.edge.edge_fakes import Source, request
from tests.edge.port_fakes import NOW, PRO, ROUTES, USER, Answers, Stage, Store, Tenants, response

PLAN = b"/api/v1/tenants/t-own/subscription"
CHANGED = ("t-own", NOW)
AUTHORIZED = b"Authorization: Bearer good"


class Staged(Stage):
    """A stage whose tenants' subscriptions are handled."""

    def __init__(self) -> None:
        routes = [replace(it, action="subscription") if "subscription" in it.prefix else it for it in ROUTES]
        super().__init__(router=Router(routes))
        self.audited: list[tuple[str, dict[str, Any]]] = []
        self.later = Clock()
        self.changes = SubscriptionChanges(self.tenants, self.answers, clock=self.later, now=lambda: self.now)
        handler = SubscriptionHandler(Proxy(self.clock), self.changes, self._audit)
        self.gateway.handlers = {"subscription": handler.reply_to}
        self.tokens.claims[b"good"] = USER

    def _audit(self, event: str, **fields: Any) -> None:
        self.audited.append((event, fields))


class Slow(Tenants):
    """Tenants whose changes wait for the test."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.writing: list[Deferred[None]] = []

    async def subscription_changed(self, tenant_id: str, at: float) -> None:
        self.changed.append((tenant_id, at))
        waiting: Deferred[None] = Deferred()
        self.writing.append(waiting)
        await waiting


def slow() -> tuple[Staged, Slow]:
    stage = Staged()
    tenants = Slow(stage.store)
    stage.changes._tenants = tenants
    return stage, tenants


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_a_successful_write_makes_older_tokens_stale(status):
    stage = Staged()
    stage.services.response = response(status=status, body=b"" if status == 204 else b"paid")
    assert stage.ask(PLAN, method=b"POST", body=b"{}", token=b"good").status == status
    assert stage.tenants.changed == [CHANGED]
    ((event, fields),) = stage.audited
    assert event == "subscription.changed"
    assert (fields["user_id"], fields["tenant_id"], fields["outcome"]) == ("user-1", "t-own", "done")


@pytest.mark.parametrize(("method", "status"), [(b"GET", 200), (b"POST", 302), (b"POST", 402), (b"POST", 500)])
def test_nothing_else_does(method, status):
    stage = Staged()
    stage.services.response = response(status=status)
    assert stage.ask(PLAN, method=method, token=b"good").status == status
    assert stage.tenants.changed == []
    assert stage.audited == []


def test_the_client_hears_nothing_before():
    stage, tenants = slow()
    client = stage.client(request(b"POST", PLAN, AUTHORIZED))
    assert tenants.changed == [CHANGED]
    assert client.wire.written == b""
    tenants.writing[0].callback(None)
    assert client.only().status == 200


def test_the_body_streams_untouched_behind_the_change():
    stage, tenants = slow()
    body = Source(length=10)
    stage.services.response = response(body=body)
    client = stage.client(request(b"POST", PLAN, AUTHORIZED))
    assert body.calls == []
    tenants.writing[0].callback(None)
    assert body.calls == ["start"]
    body.sink.write(b"01234")
    body.sink.write(b"56789")
    body.sink.done()
    assert client.only().body == b"0123456789"


def test_an_answer_that_is_cut_is_a_change_all_the_same():
    stage = Staged()
    body = Source(length=10)
    stage.services.response = response(body=body)
    client = stage.client(request(b"POST", PLAN, AUTHORIZED))
    body.sink.write(b"01234")
    body.sink.cut("closed early")
    assert client.wire.aborted
    assert stage.tenants.changed == [CHANGED]


def test_a_client_that_leaves_while_it_is_written_stops_the_body_but_not_the_change():
    stage, tenants = slow()
    body = Source(length=10)
    stage.services.response = response(body=body)
    client = stage.client(request(b"POST", PLAN, AUTHORIZED))
    client.leave()
    assert body.calls == ["stop"]
    tenants.writing[0].errback(StoreUnavailable())
    stage.later.advance(1)
    assert len(tenants.changed) == 2
    tenants.writing[1].callback(None)
    assert ("change", "written") in stage.answers.counted
    assert stage.audited[0][1]["outcome"] == "pending"


def test_without_the_shared_state_the_answer_goes_out_and_the_change_follows():
    stage = Staged()

    class Away(Tenants):
        async def subscription_changed(self, tenant_id: str, at: float) -> None:
            raise StoreUnavailable

    stage.changes._tenants = Away(stage.store)
    assert stage.ask(PLAN, method=b"POST", token=b"good").status == 200
    assert stage.audited[0][1]["outcome"] == "pending"
    stage.later.advance(30)
    stage.changes._tenants = stage.tenants
    stage.now += 40
    stage.later.advance(LAST_RETRY_S)
    assert stage.tenants.changed == [("t-own", NOW + 40)]
    assert stage.later.getDelayedCalls() == []
    assert stage.answers.counted[-1] == ("change", "written")


# what is not known


UNKNOWN = [
    UpstreamFailed("upstream-timeout", "http_response_timeout", "late"),
    UpstreamFailed("upstream-unreachable", "connection_terminated", "gone"),
    UpstreamFailed("upstream-invalid", "http_protocol_error", "rubbish"),
]


@pytest.mark.parametrize("failure", UNKNOWN)
@pytest.mark.parametrize(("then", "changes"), [(PRO, 0), (replace(PRO, valid_until=NOW + 9e6), 1)])
def test_whether_a_write_without_an_answer_was_one_is_found_out(failure, then, changes):
    stage = Staged()
    stage.services.failure = failure
    assert stage.ask(PLAN, method=b"POST", token=b"good").status in (502, 504)
    assert stage.tenants.changed == []
    stage.answers.subscriptions["t-own"] = then
    stage.later.advance(1)
    assert len(stage.tenants.changed) == changes
    assert stage.later.getDelayedCalls() == []


def test_a_service_that_was_asked_nothing_leaves_no_doubt():
    stage = Staged()
    stage.services.failure = UpstreamFailed("service-unavailable", "destination_unavailable", "breaker open")
    stage.ask(PLAN, method=b"POST", token=b"good")
    assert stage.later.getDelayedCalls() == []


@pytest.mark.parametrize(("then", "changes"), [(PRO, 0), (replace(PRO, tier="enterprise"), 1)])
def test_so_is_that_of_a_client_that_left_who_could_else_lock_out_others(then, changes):
    stage = Staged()
    stage.services.response = None
    stage.client(request(b"POST", PLAN, AUTHORIZED)).leave()
    assert stage.services.cancelled == 1
    stage.answers.subscriptions["t-own"] = then
    stage.later.advance(1)
    assert len(stage.tenants.changed) == changes


def test_a_service_that_stays_silent_counts_as_a_change():
    stage = Staged()
    stage.services.failure = UNKNOWN[0]
    stage.ask(PLAN, method=b"POST", token=b"good")
    stage.answers.subscriptions["t-own"] = LookupFailed("timeout", "test")
    stage.later.pump([1, 1])
    assert stage.tenants.changed == []
    stage.later.advance(1)
    assert stage.tenants.changed == [CHANGED]


@pytest.mark.parametrize("kind", ["unauthorized", "forbidden", "unknown"])
def test_one_that_turns_the_question_down_does_not(kind):
    stage = Staged()
    stage.services.failure = UNKNOWN[0]
    stage.ask(PLAN, method=b"POST", token=b"good")
    stage.answers.subscriptions["t-own"] = LookupFailed(kind, "test")
    stage.later.pump([1] * 5)
    assert stage.tenants.changed == []


# bounds


class Bench:
    """Changes by themselves."""

    def __init__(self) -> None:
        self.clock, self.told, self.tenants = Clock(), Answers(), Tenants(Store())
        self.changes = SubscriptionChanges(self.tenants, self.told, clock=self.clock, now=self.clock.seconds)

    def doubt(self, tenant_id: str, then: Subscription) -> None:
        async def again() -> Subscription:
            return then

        self.changes.doubted(tenant_id, Confirmed(subscription=PRO, again=again))


def test_no_more_changes_wait_than_fit_and_the_oldest_is_given_up():
    bench = Bench()
    bench.tenants.down = True
    for number in range(MAX_PENDING + 2):
        success_of(bench.changes.changed(f"t{number}"))
    assert bench.told.counted == [("change", "dropped")] * 2
    bench.tenants.down = False
    bench.clock.advance(1)
    assert [tenant_id for tenant_id, _ in bench.tenants.changed] == [f"t{n}" for n in range(2, MAX_PENDING + 2)]


def test_a_store_that_is_away_is_asked_less_and_less_often_and_by_one_tenant_at_a_time():
    bench = Bench()
    bench.tenants.down = True
    for name in ("a", "b"):
        success_of(bench.changes.changed(name))
    for _ in range(600):
        bench.clock.advance(0.1)
    retried = bench.told.counted.count(("change", "retried"))
    assert 10 <= retried <= 17
    bench.tenants.down = False
    bench.clock.advance(LAST_RETRY_S)
    assert [tenant_id for tenant_id, _ in bench.tenants.changed] == ["a", "b"]


def test_only_so_many_doubts_are_looked_into_and_one_for_each_tenant():
    bench = Bench()
    for number in range(MAX_DOUBTS + 5):
        bench.doubt(f"t{number}", replace(PRO, tier="starter"))
    bench.doubt("t0", PRO)
    assert len(bench.clock.getDelayedCalls()) == MAX_DOUBTS
    bench.clock.advance(1)
    assert len(bench.tenants.changed) == MAX_DOUBTS


def test_a_second_doubt_meanwhile_is_looked_into_after_the_first():
    bench = Bench()
    answers = iter([PRO, replace(PRO, tier="starter")])

    async def again() -> Subscription:
        return next(answers)

    for _ in range(2):
        bench.changes.doubted("t1", Confirmed(subscription=PRO, again=again))
    bench.clock.advance(1)
    assert bench.tenants.changed == []
    bench.clock.advance(1)
    assert [tenant_id for tenant_id, _ in bench.tenants.changed] == ["t1"]
    assert bench.clock.getDelayedCalls() == []


def test_nothing_is_tried_after_the_stop():
    bench = Bench()
    bench.tenants.down = True
    success_of(bench.changes.changed("a"))
    bench.doubt("b", replace(PRO, tier="starter"))
    bench.changes.stop()
    assert bench.clock.getDelayedCalls() == []
    bench.doubt("c", PRO)
    success_of(bench.changes.changed("d"))
    assert bench.clock.getDelayedCalls() == []


def test_a_defect_in_writing_is_logged_and_the_change_is_tried_again(logged_failures):
    bench = Bench()

    async def broken(tenant_id: str, at: float) -> None:
        raise ValueError("defect")

    good = bench.tenants.subscription_changed
    bench.tenants.subscription_changed = broken
    assert success_of(bench.changes.changed("a")) is False
    assert len(logged_failures) == 1
    logged_failures.clear()
    bench.tenants.subscription_changed = good
    bench.clock.advance(1)
    assert [tenant_id for tenant_id, _ in bench.tenants.changed] == ["a"]
