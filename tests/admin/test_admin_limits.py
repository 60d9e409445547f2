"""Operators' calls on a tenant's limits."""

import json

import pytest
from twisted.internet.defer import Deferred

from bakerygw.core.limits import Bucket, LimitRule, TenantLimit, tenant_rule
from bakerygw.core.stacks import LimitPolicy
from bakerygw.core.tenancy import TenantFlags
from bakerygw.ports import AdmissionAsk
from bakerygw.stores.memory import MemoryStore
from tests.admin.admin_fakes import NOW, NOW_TEXT, Admin, FakeTenants
from tests.deferreds import success_of

PATH = b"/api/tenants/bakery-1/limits"
WANTED = {"requests": 600, "window_seconds": 60, "for_seconds": 3600}
UNTIL = 1_700_003_601.0  # an hour from now, rounded up
UNTIL_TEXT = "2023-11-14T23:13:21.000Z"


def test_a_limit_is_stored_answered_and_audited():
    admin = Admin()
    reply = admin.call("PUT", PATH, {**WANTED, "shadow": True, "reason": " till ", "by": "ana"}, client="192.0.2.9")
    rule = tenant_rule(600, 60, shadow=True, until=UNTIL)
    stored = TenantLimit(rule=rule, reason="till", since=NOW_TEXT, by="ana")
    assert admin.tenants.held["bakery-1"] == TenantFlags(limit=stored)
    after = {"requests": 600, "window_seconds": 60, "shadow": True, "until": UNTIL_TEXT, "since": NOW_TEXT,
             "by": "ana", "reason": "till"}  # fmt: skip
    assert (reply.status, json.loads(reply.body)) == (200, {"tenant_id": "bakery-1", "for_a_time": after})
    who = {"who": "admin", "client": "192.0.2.9", "when": NOW_TEXT, "tenant_id": "bakery-1"}
    assert admin.audited == [("admin.tenant.limit.set", {**who, "before": None, "after": after, "outcome": "done"})]


def test_ending_a_limit_is_audited_with_what_it_was():
    admin = Admin()
    admin.call("PUT", PATH, WANTED)
    reply = admin.call("DELETE", PATH)
    assert json.loads(reply.body) == {"tenant_id": "bakery-1", "for_a_time": None}
    assert admin.tenants.held["bakery-1"].limit is None
    event, fields = admin.audited[1]
    assert (event, fields["before"]["requests"], fields["after"]) == ("admin.tenant.limit.cleared", 600, None)
    assert admin.call("DELETE", PATH).status == 200


@pytest.mark.parametrize(
    ("until", "told"),
    [
        ("2023-11-15T00:00:00+01:00", "2023-11-14T23:00:00.000Z"),
        ("2023-11-14T22:13:20.700Z", "2023-11-14T22:13:21.000Z"),
        ("2024-02-12T22:13:20Z", "2024-02-12T22:13:20.000Z"),
    ],
)
def test_the_end_may_be_a_moment(until, told):
    reply = Admin().call("PUT", PATH, {"requests": 1, "window_seconds": 1, "until": until})
    assert json.loads(reply.body)["for_a_time"]["until"] == told


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"requests": 0}, "requests"),
        ({"requests": 1_000_001}, "requests"),
        ({"requests": "5"}, "requests"),
        ({"requests": True}, "requests"),
        ({"requests": 1.5}, "requests"),
        ({"requests": None}, "requests"),
        ({"window_seconds": 0}, "window_seconds"),
        ({"window_seconds": 86_401}, "window_seconds"),
        ({"for_seconds": 0}, "for_seconds"),
        ({"for_seconds": 90 * 86_400 + 1}, "for_seconds"),
        ({"for_seconds": 1e3}, "for_seconds"),
        ({"for_seconds": None}, "until"),
        ({"until": "2023-12-01T00:00:00Z"}, "until"),
        ({"for_seconds": None, "until": "2023-12-01T00:00:00"}, "until"),
        ({"for_seconds": None, "until": "2023-11-14T22:13:20Z"}, "until"),
        ({"for_seconds": None, "until": "2024-02-13T22:13:20Z"}, "until"),
        ({"for_seconds": None, "until": "9999-12-31T23:59:59Z"}, "until"),
        ({"for_seconds": None, "until": "tomorrow"}, "until"),
        ({"for_seconds": None, "until": 1_700_000_100}, "until"),
        ({"shadow": "yes"}, "shadow"),
        ({"shadow": None}, "shadow"),
        ({"reason": "x" * 201}, "reason"),
        ({"reason": "two\nlines"}, "reason"),
        ({"by": 5}, "by"),
        ({"name": "mine"}, "name"),
    ],
)
def test_what_is_wrong_is_named_and_changes_nothing(change, field):
    admin = Admin()
    problem = admin.refusal("PUT", PATH, {**WANTED, **change})
    assert (problem.code, problem.members["field"]) == ("bad-request", field)
    assert (admin.tenants.held, admin.audited) == ({}, [])


def test_a_store_that_does_not_answer_is_told_and_what_may_have_happened_is_audited():
    admin = Admin(tenants=FakeTenants(fail_reads=True))
    for method, document in (("GET", None), ("PUT", WANTED), ("DELETE", None)):
        assert admin.refusal(method, PATH, document).code == "state-unavailable"
    assert admin.audited == []
    admin = Admin(tenants=FakeTenants(fail_writes=True))
    assert admin.refusal("PUT", PATH, WANTED).code == "state-unavailable"
    assert [fields["outcome"] for _, fields in admin.audited] == ["unconfirmed"]


def standing(admin):
    return json.loads(admin.call("GET", PATH).body)


def test_how_a_tenants_limits_stand_is_told_without_cost():
    admin = Admin(tenants=MemoryStore(lambda: int(NOW * 1e6)))
    rule = LimitRule(name="bakery", requests=10, window_s=60, by="tenant")
    mine, theirs = LimitPolicy(rule=rule, tier="starter"), LimitPolicy(rule=LimitRule(name="u", requests=1, window_s=1))
    admin.policies.stacks = {"/api/v1/sales": (mine, theirs), "": (mine,)}
    assert standing(admin)["for_a_time"] is None
    admin.call("PUT", PATH, WANTED)
    spend = AdmissionAsk(
        buckets=(Bucket(key="bakery:tenant:bakery-1", rule=rule),), tenants=("bakery-1",), limit_of="bakery-1"
    )
    success_of(Deferred.fromCoroutine(admin.store.admit(spend)))
    for _ in range(2):
        told = standing(admin)
    assert told == {
        "tenant_id": "bakery-1",
        "for_a_time": {"requests": 600, "window_seconds": 60, "shadow": False, "until": UNTIL_TEXT, "since": NOW_TEXT,
                       "by": "admin", "reason": None, "remaining": 599, "reset_seconds": 1},
        "stacked": [{"policy": "bakery", "scope": "tenant", "limit": 10, "window_seconds": 60, "remaining": 9,
                     "reset_seconds": 6, "tier": "starter", "prefix": None, "shadow": False}],
        "under_way": {"limit": 100, "now": 0},
    }  # fmt: skip


def test_of_a_demo_tenant_the_budgets_of_demo_sessions_are_told():
    store = MemoryStore(lambda: int(NOW * 1e6))
    admin = Admin(tenants=store)
    success_of(Deferred.fromCoroutine(store.set_demo("bakery-1", True)))
    admin.call("PUT", PATH, WANTED)
    ask = AdmissionAsk(tenants=("bakery-1",), limit_of="bakery-1", demo=True, verified=True)
    success_of(Deferred.fromCoroutine(store.admit(ask)))
    assert standing(admin)["for_a_time"]["remaining"] == 599
