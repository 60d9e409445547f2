"""What a token leaves out is looked up once, and only where a route needs it; critical operations are confirmed."""

from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from bakerygw.core.claims import TenantAccess
from bakerygw.core.outcome import Trace
from bakerygw.core.problem import Refused
from bakerygw.core.tenancy import ReadOnly, TenantFlags, TenantView, effective_tenant
from bakerygw.edge.admission import Caller
from bakerygw.edge.tenants.lookups import Inquiry
from bakerygw.ports import AdmissionState, LookupFailed
from tests.deferreds import success_of
from tests.edge.edge_fakes import request
from tests.edge.port_fakes import DAY_S, DEMO, NOW, PRO, ROUTES, USER, Stage, response
from tests.heads import make_head

SALES = b"/api/v1/sales/today"
PLAN = b"/api/v1/tenants/t-own/subscription"
TENANT = b"/api/v1/tenants/t-own"
OLD = replace(USER, subscription=None)
BARE = TenantAccess(tenant_id="t-bare", role="admin", tier=None, status=None, valid_until=None, include_children=False)
LAPSED = replace(PRO, valid_until=NOW - 30 * DAY_S)
ASKED = ("subscription", "t-own", False)


def staged(claims: Any = OLD, **answers: Any) -> Stage:
    stage = Stage()
    stage.tokens.claims[b"good"] = claims
    stage.answers.subscriptions.update(answers)
    return stage


def code(answer: Any) -> tuple[int, str]:
    return answer.status, answer.problem()["code"]


def sent(stage: Stage, name: bytes) -> bytes | None:
    return dict(stage.services.requests[-1][1].headers).get(name)


def failed(kind: str) -> LookupFailed:
    return LookupFailed(kind, "test")


# subscriptions


def test_a_complete_token_asks_nobody():
    stage = staged(USER)
    for method in (b"GET", b"POST"):
        assert stage.ask(SALES, method=method, token=b"good").status == 200
    assert stage.answers.asked == []
    assert stage.answers.counted == []


def test_an_old_token_is_looked_up_once_and_served_like_any_other():
    stage = staged()
    for _ in range(3):
        assert stage.ask(SALES, token=b"good").status == 200
    assert stage.answers.asked == [ASKED]
    assert sent(stage, b"X-Subscription-Tier") == b"professional"
    assert sent(stage, b"X-Subscription-Status") == b"active"
    assert stage.answers.counted == [
        ("token", "subscription"),
        ("subscription", "answered"),
        ("subscription", "memory"),
        ("subscription", "memory"),
    ]


def test_the_question_says_who_asks():
    stage = staged()
    stage.ask(SALES, b"X-Request-ID: till-7-000123", b"X-User-Role: forged", b"Cookie: a=1", token=b"good")
    told = dict(stage.answers.headers[0])
    assert told[b"Authorization"] == b"Bearer good"
    assert told[b"X-User-Id"] == b"user-1"
    assert told[b"X-User-Role"] == b"owner"
    assert told[b"X-Tenant-Id"] == b"t-own"
    assert told[b"X-Request-ID"] == b"till-7-000123"
    assert told[b"traceparent"].startswith(b"00-")
    assert b"Cookie" not in told
    assert b"X-Subscription-Tier" not in told


@pytest.mark.parametrize(
    ("found", "target", "expected"),
    [
        (LAPSED, SALES, (402, "subscription-expired")),
        (replace(PRO, status="canceled"), SALES, (402, "subscription-inactive")),
        (replace(PRO, valid_until=None), SALES, (402, "subscription-inactive")),
        (PRO, b"/api/v1/gold/x", (403, "tier-required")),
    ],
)
def test_what_was_looked_up_is_judged_like_what_tokens_say(found, target, expected):
    stage = staged(**{"t-own": found})
    assert code(stage.ask(target, token=b"good")) == expected
    assert stage.services.requests == []


def test_the_grace_of_what_was_looked_up_is_told():
    answer = staged(**{"t-own": replace(PRO, valid_until=NOW - DAY_S)}).ask(SALES, token=b"good")
    assert answer.status == 200
    assert answer.headers[b"x-subscription-grace"] == [b"2023-11-20T22:13:20Z"]


@pytest.mark.parametrize("target", [PLAN, PLAN + b"/invoices", b"/api/v1/auth/me"])
def test_routes_that_need_no_subscription_ask_for_none(target):
    stage = staged()
    assert stage.ask(target, token=b"good").status == 200
    assert stage.answers.asked == []


def test_a_further_tenant_whose_entry_says_nothing_is_looked_up_by_itself():
    stage = staged(replace(USER, tenant_access=(BARE,)), **{"t-bare": replace(PRO, tier="enterprise")})
    assert stage.ask(SALES, b"X-Tenant-ID: t-bare", token=b"good").status == 200
    assert stage.answers.asked == [("subscription", "t-bare", False)]
    assert sent(stage, b"X-Subscription-Tier") == b"enterprise"
    assert stage.answers.counted[0] == ("token", "entry")


def test_nothing_is_asked_about_a_tenant_that_is_not_open_or_a_token_that_does_not_hold():
    stage = staged()
    stage.ask(SALES, b"X-Tenant-ID: t-else", token=b"good")
    stage.store.revoked = {USER.digest: True}
    stage.ask(SALES, token=b"good")
    stage.store.revoked, stage.store.flags = {}, {"t-own": TenantFlags(changed_at=NOW)}
    stage.ask(SALES, token=b"good")
    assert stage.answers.asked == []


def test_demo_sessions_have_answers_of_their_own():
    stage = staged(**{"t-demo": PRO})
    stage.tokens.claims[b"demo"] = replace(DEMO, subscription=None)
    stage.tokens.claims[b"good"] = replace(OLD, tenant_id="t-demo")
    assert stage.ask(SALES, token=b"demo").status == 200
    assert stage.ask(SALES, token=b"good").status == 200
    assert stage.answers.asked == [("subscription", "t-demo", True), ("subscription", "t-demo", False)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        *((kind, (503, "critical-check-unavailable")) for kind in ("timeout", "unreachable", "unavailable", "invalid")),
        ("unauthorized", (401, "token-stale")),
        ("forbidden", (403, "tenant-forbidden")),
        ("unknown", (402, "subscription-inactive")),
    ],
)
def test_without_an_answer_nothing_passes_and_a_failing_service_is_not_hammered(kind, expected):
    stage = staged(**{"t-own": failed(kind)})
    for _ in range(3):
        answer = stage.ask(SALES, token=b"good")
        assert code(answer) == expected
        assert answer.headers.get(b"retry-after") == ([b"2"] if expected[0] == 503 else None)
    assert stage.answers.asked == [ASKED]
    stage.now += 2.1
    stage.answers.subscriptions["t-own"] = PRO
    assert stage.ask(SALES, token=b"good").status == 200
    assert stage.services.requests != []


def test_a_tenant_service_that_fails_for_one_tenant_is_asked_about_the_others():
    stage = staged(**{"t-own": failed("timeout"), "t-two": PRO})
    stage.tokens.claims[b"two"] = replace(OLD, tenant_id="t-two", digest="d2")
    assert stage.ask(SALES, token=b"good").status == 503
    assert stage.ask(SALES, token=b"two").status == 200


def test_what_one_user_may_not_ask_is_asked_for_the_next():
    stage = staged(**{"t-own": failed("forbidden")})
    stage.tokens.claims[b"chef"] = replace(OLD, user_id="chef", digest="d2")
    assert code(stage.ask(SALES, token=b"good")) == (403, "tenant-forbidden")
    stage.answers.subscriptions["t-own"] = PRO
    assert stage.ask(SALES, token=b"chef").status == 200
    assert stage.ask(SALES, token=b"good").status == 200
    assert len(stage.answers.asked) == 2


def test_an_answer_is_of_no_use_once_the_subscription_has_changed():
    stage = staged()
    new = replace(OLD, iat=NOW + 60)
    stage.tokens.claims[b"new"] = replace(new, digest="d2")
    assert stage.ask(SALES, token=b"good").status == 200
    stage.answers.subscriptions["t-own"] = replace(PRO, status="canceled")
    stage.now += 10
    stage.store.flags = {"t-own": TenantFlags(changed_at=stage.now)}
    assert code(stage.ask(SALES, token=b"new")) == (402, "subscription-inactive")
    assert len(stage.answers.asked) == 2


@pytest.mark.parametrize("later", [NOW - 1.2, NOW, NOW + 0.4])
def test_an_answer_asked_for_around_the_change_may_be_older_than_it(later):
    stage = staged(replace(OLD, iat=NOW + 60))
    stage.ask(SALES, token=b"good")
    stage.store.flags = {"t-own": TenantFlags(changed_at=later)}
    stage.ask(SALES, token=b"good")
    assert len(stage.answers.asked) == 2


def test_answers_last_for_five_minutes():
    stage = staged(**{"t-own": replace(PRO, valid_until=NOW + 30 * DAY_S)})
    for later in (0, 299, 301):
        stage.now = NOW + later
        stage.ask(SALES, token=b"good")
    assert len(stage.answers.asked) == 2


def test_all_that_ask_at_the_same_time_share_one_question():
    stage = staged(**{"t-own": None})
    waiting = [stage.client(request(b"GET", SALES, b"Authorization: Bearer good")) for _ in range(5)]
    assert stage.answers.asked == [ASKED]
    waiting[0].leave()
    assert stage.answers.cancelled == 0
    stage.answers.waiting[0].callback(PRO)
    assert [client.only().status for client in waiting[1:]] == [200] * 4
    assert stage.answers.asked == [ASKED]


def test_the_question_ends_when_the_last_who_wants_the_answer_has_left():
    stage = staged(**{"t-own": None})
    for client in [stage.client(request(b"GET", SALES, b"Authorization: Bearer good")) for _ in range(2)]:
        client.leave()
    assert stage.answers.cancelled == 1
    assert [outcome.status for outcome in stage.notes.outcomes] == [499, 499]
    stage.answers.subscriptions["t-own"] = PRO
    assert stage.ask(SALES, token=b"good").status == 200


def test_nobody_is_refused_for_what_somebody_else_may_not_ask():
    stage = staged(**{"t-own": None})
    stage.tokens.claims[b"chef"] = replace(OLD, user_id="chef", digest="d2")
    first = stage.client(request(b"GET", SALES, b"Authorization: Bearer good"))
    second = stage.client(request(b"GET", SALES, b"Authorization: Bearer chef"))
    stage.answers.subscriptions["t-own"] = PRO
    stage.answers.waiting[0].errback(failed("forbidden"))
    assert code(first.only()) == (403, "tenant-forbidden")
    assert second.only().status == 200


def test_a_question_from_before_the_change_does_not_answer_a_later_request():
    stage = staged(replace(OLD, iat=NOW + 60), **{"t-own": None})
    early = stage.client(request(b"GET", SALES, b"Authorization: Bearer good"))
    stage.now += 5
    stage.store.flags = {"t-own": TenantFlags(changed_at=stage.now)}
    late = stage.client(request(b"GET", SALES, b"Authorization: Bearer good"))
    stage.answers.subscriptions["t-own"] = replace(PRO, status="canceled")
    stage.answers.waiting[0].callback(PRO)
    assert early.only().status == 200
    assert code(late.only()) == (402, "subscription-inactive")


def test_right_after_a_change_many_share_a_question_that_was_asked_since_they_came():
    stage = staged(replace(OLD, iat=NOW + 60), **{"t-own": None})
    stage.store.flags = {"t-own": TenantFlags(changed_at=NOW)}
    first = stage.client(request(b"GET", SALES, b"Authorization: Bearer good"))
    stage.now += 0.1
    others = [stage.client(request(b"GET", SALES, b"Authorization: Bearer good")) for _ in range(20)]
    stage.answers.waiting[0].callback(PRO)
    assert first.only().status == 200
    assert len(stage.answers.asked) == 2
    stage.answers.waiting[1].callback(PRO)
    assert [client.only().status for client in others] == [200] * 20


# e-mail


NAMELESS = replace(USER, email=None)


@pytest.mark.parametrize("lacks", ["email", "subscription"])
def test_a_question_that_failed_is_logged_once_and_not_for_each_request(lacks):
    stage = staged(replace(USER, **{lacks: None}), **{"t-own": failed("timeout")})
    stage.answers.emails["user-1"] = failed("timeout")
    with capturedLogs() as events:
        for _ in range(3):
            stage.ask(SALES, token=b"good")
        stage.now += 60
        stage.ask(SALES, token=b"good")
    told = [event for event in events if event["log_format"] == "lookup.failed"]
    assert [(event["what"], event["cause"]) for event in told] == [(lacks, "test")] * 2


@pytest.mark.parametrize(("down", "up"), [(b"demo", b"good"), (b"good", b"demo")])
def test_an_auth_service_of_the_demo_that_is_down_costs_nobody_else_an_address_nor_the_other_way_round(down, up):
    stage = staged(NAMELESS)
    stage.tokens.claims[b"demo"] = replace(DEMO, email=None)
    users = {b"good": "user-1", b"demo": "demo-1"}
    stage.answers.emails = {users[down]: failed("timeout"), users[up]: "ana@b.example"}
    assert [stage.ask(SALES, token=token).status for token in (down, up)] == [200, 200]
    assert sent(stage, b"X-User-Email") == b"ana@b.example"


def test_an_email_address_is_looked_up_once():
    stage = staged(NAMELESS)
    stage.answers.emails["user-1"] = "ana@b.example"
    for _ in range(2):
        assert stage.ask(SALES, token=b"good").status == 200
        assert sent(stage, b"X-User-Email") == b"ana@b.example"
    assert stage.answers.asked == [("email", "user-1", False)]
    assert dict(stage.answers.headers[0])[b"Authorization"] == b"Bearer good"
    assert ("token", "email") in stage.answers.counted


@pytest.mark.parametrize("kind", ["timeout", "unreachable", "unavailable", "invalid", "unauthorized", "unknown"])
def test_a_request_goes_on_without_an_email_address_that_cannot_be_had_and_it_is_asked_for_later(kind):
    stage = staged(NAMELESS)
    stage.answers.emails["user-1"] = failed(kind)
    for _ in range(2):
        assert stage.ask(SALES, token=b"good").status == 200
        assert sent(stage, b"X-User-Email") is None
    assert len(stage.answers.asked) == 1
    stage.now += 11
    stage.answers.emails["user-1"] = "ana@b.example"
    assert stage.ask(SALES, token=b"good").status == 200
    assert sent(stage, b"X-User-Email") == b"ana@b.example"


@pytest.mark.parametrize(("kind", "asked"), [("timeout", 1), ("unreachable", 1), ("invalid", 2), ("unauthorized", 2)])
def test_an_auth_service_that_hangs_delays_one_request_and_not_one_for_each_user(kind, asked):
    stage = staged(NAMELESS)
    stage.tokens.claims[b"chef"] = replace(NAMELESS, user_id="chef", digest="d2")
    stage.answers.emails = {"user-1": failed(kind), "chef": failed(kind)}
    stage.ask(SALES, token=b"good")
    stage.ask(SALES, token=b"chef")
    assert len(stage.answers.asked) == asked


def test_a_user_without_an_address_is_not_asked_about_again():
    stage = staged(NAMELESS)
    for _ in range(3):
        assert stage.ask(SALES, token=b"good").status == 200
    assert len(stage.answers.asked) == 1


@pytest.mark.parametrize("target", [b"/api/v1/auth/me", b"/api/v1/geocode"])
def test_nobody_is_asked_for_an_address_that_no_service_gets_or_that_it_knows(target):
    stage = staged(NAMELESS)
    stage.ask(target, method=b"POST", token=b"good")
    assert stage.answers.asked == []


# critical operations


@pytest.mark.parametrize(("target", "method"), [(TENANT, b"DELETE"), (PLAN, b"POST"), (PLAN, b"DELETE")])
def test_a_critical_operation_is_confirmed_each_time_whatever_is_remembered(target, method):
    stage = staged(USER)
    for _ in range(2):
        assert stage.ask(target, method=method, token=b"good").status == 200
    assert stage.answers.asked == [ASKED, ASKED]
    assert dict(stage.answers.headers[0])[b"Authorization"] == b"Bearer good"
    assert len(stage.services.requests) == 2


@pytest.mark.parametrize(("target", "method"), [(TENANT, b"GET"), (PLAN, b"GET"), (SALES, b"DELETE")])
def test_nothing_else_is(target, method):
    stage = staged(USER)
    stage.ask(target, method=method, token=b"good")
    assert stage.answers.asked == []


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        *((kind, (503, "critical-check-unavailable")) for kind in ("timeout", "unreachable", "unavailable", "invalid")),
        ("unauthorized", (401, "token-stale")),
        ("forbidden", (403, "tenant-forbidden")),
        ("unknown", (404, "not-found")),
    ],
)
def test_without_confirmation_nothing_critical_is_done(kind, expected):
    stage = staged(USER, **{"t-own": failed(kind)})
    for _ in range(2):
        answer = stage.ask(TENANT, method=b"DELETE", token=b"good")
        assert code(answer) == expected
        assert answer.headers.get(b"retry-after") == ([b"5"] if expected[0] == 503 else None)
    assert stage.answers.asked == [ASKED, ASKED]
    assert stage.services.requests == []


@pytest.mark.parametrize("change", [{"tier": "starter"}, {"tier": "enterprise"}, {"status": "past_due"}])
@pytest.mark.parametrize("target", [TENANT, PLAN])
def test_a_token_that_says_something_else_is_stale_also_where_one_can_pay(change, target):
    stage = staged(USER, **{"t-own": replace(PRO, **change)})
    assert code(stage.ask(target, method=b"DELETE", token=b"good")) == (401, "token-stale")
    assert stage.services.requests == []


def test_where_one_can_pay_expiry_is_of_no_matter():
    stage = staged(replace(USER, subscription=LAPSED), **{"t-own": LAPSED})
    assert stage.ask(PLAN, method=b"POST", token=b"good").status == 200
    assert code(stage.ask(TENANT, method=b"DELETE", token=b"good")) == (402, "subscription-expired")


def test_elsewhere_it_is_the_services_end_that_counts():
    stage = staged(USER, **{"t-own": LAPSED})
    assert code(stage.ask(TENANT, method=b"DELETE", token=b"good")) == (402, "subscription-expired")
    assert stage.ask(PLAN, method=b"POST", token=b"good").status == 200


def test_an_old_token_is_judged_by_what_the_service_says_then_and_the_answer_is_remembered():
    stage = staged()
    assert stage.ask(SALES, token=b"good").status == 200
    stage.now += 1
    stage.answers.subscriptions["t-own"] = replace(PRO, tier="enterprise")
    assert stage.ask(TENANT, method=b"DELETE", token=b"good").status == 200
    assert sent(stage, b"X-Subscription-Tier") == b"enterprise"
    assert stage.ask(SALES, token=b"good").status == 200
    assert sent(stage, b"X-Subscription-Tier") == b"enterprise"
    assert len(stage.answers.asked) == 2
    stage.answers.subscriptions["t-own"] = LAPSED
    assert code(stage.ask(TENANT, method=b"DELETE", token=b"good")) == (402, "subscription-expired")


def test_an_old_token_may_pay_without_a_look_up_before():
    stage = staged()
    assert stage.ask(PLAN, method=b"POST", token=b"good").status == 200
    assert stage.answers.asked == [ASKED]


def test_the_shared_state_is_asked_itself_not_what_is_last_known():
    stage = staged(USER)
    stage.tenants.down = True
    answer = stage.ask(TENANT, method=b"DELETE", token=b"good")
    assert code(answer) == (503, "state-unavailable")
    assert answer.headers[b"retry-after"] == [b"2"]
    assert stage.answers.asked == []
    assert stage.services.requests == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (TenantFlags(changed_at=NOW), (401, "token-stale")),
        (TenantFlags(read_only=ReadOnly(reason="x")), (403, "tenant-read-only")),
        (TenantFlags(demo=True), (403, "demo-isolation")),
    ],
)
def test_what_the_shared_state_says_just_then_counts(flags, expected):
    stage = staged(USER)

    async def fresh(tenant_id: str) -> TenantFlags:
        return flags

    stage.tenants.flags = fresh
    assert code(stage.ask(TENANT, method=b"DELETE", token=b"good")) == expected
    assert stage.answers.asked == []


def test_a_token_that_was_revoked_unnoticed_does_nothing_critical():
    stage = staged(USER)

    async def fresh(digest: str) -> bool:
        return digest == USER.digest

    stage.tenants.revoked = fresh
    assert code(stage.ask(TENANT, method=b"DELETE", token=b"good")) == (401, "token-revoked")
    assert (stage.answers.asked, stage.services.requests) == ([], [])


def test_nor_does_one_whose_own_tenant_has_changed_unnoticed():
    stage = staged(USER, **{"t-other": replace(PRO, tier="starter")})
    other = b"/api/v1/tenants/t-other"
    assert stage.ask(other, method=b"DELETE", token=b"good").status == 200

    async def fresh(tenant_id: str) -> TenantFlags:
        return TenantFlags(changed_at=NOW if tenant_id == "t-own" else None)

    stage.tenants.flags = fresh
    assert code(stage.ask(other, method=b"DELETE", token=b"good")) == (401, "token-stale")
    assert len(stage.services.requests) == 1


def test_a_hold_does_not_keep_anybody_from_paying():
    stage = staged(USER)
    stage.store.flags = {"t-own": TenantFlags(read_only=ReadOnly(reason="unpaid"))}
    assert stage.ask(PLAN, method=b"POST", token=b"good").status == 200


def test_a_lower_tier_that_was_found_only_now_is_too_low():
    stage = staged(OLD, **{"t-own": replace(PRO, tier="starter")})
    about, view = machine(stage)
    about = replace(about, route=replace(about.route, min_tier="professional"))
    with pytest.raises(Refused) as caught:
        success_of(Deferred.fromCoroutine(stage.lookups.confirm(about, view)))
    assert caught.value.problem.code == "tier-required"


def test_read_only_comes_first_and_the_service_last():
    stage = staged(USER)
    stage.store.flags = {"t-own": TenantFlags(read_only=ReadOnly(reason="x"))}
    assert code(stage.ask(TENANT, method=b"DELETE", token=b"good")) == (403, "tenant-read-only")
    assert stage.answers.asked == []
    assert stage.services.requests == []


def test_demo_sessions_are_refused_before_anybody_is_asked():
    stage = staged(USER)
    assert code(stage.ask(b"/api/v1/tenants/t-demo", method=b"DELETE", token=b"demo")) == (403, "demo-isolation")
    assert stage.answers.asked == []


def test_a_client_that_leaves_ends_the_question_and_nothing_is_done():
    stage = staged(USER, **{"t-own": None})
    client = stage.client(request(b"DELETE", TENANT, b"Authorization: Bearer good"))
    client.leave()
    assert stage.answers.cancelled == 1
    assert stage.services.requests == []
    assert stage.outcome.status == 499


def test_no_refusal_tells_of_the_inside():
    for kind in ("timeout", "invalid"):
        stage = staged(USER, **{"t-own": LookupFailed(kind, "tenant: 10.0.0.9:8000 said secret")})
        answer = stage.ask(TENANT, method=b"DELETE", token=b"good")
        assert b"10.0.0.9" not in answer.body
        assert b"secret" not in answer.body


def test_the_answer_of_a_service_passes_unchanged_behind_a_confirmation():
    stage = staged(USER)
    stage.services.response = response(status=409, body=b"no")
    answer = stage.ask(TENANT, method=b"DELETE", token=b"good")
    assert (answer.status, answer.body) == (409, b"no")


def test_many_incomplete_tokens_are_counted_once_each():
    stage = staged()
    stage.tokens.claims[b"other"] = replace(OLD, digest="d2")
    for token in (b"good", b"other", b"good", b"other"):
        stage.ask(SALES, token=token)
    assert stage.answers.counted.count(("token", "subscription")) == 2


def test_a_confirmed_tier_of_an_entry_is_the_entrys():
    entry = replace(BARE, tier="starter")
    stage = staged(replace(USER, tenant_access=(entry,)), **{"t-bare": PRO})
    assert code(stage.ask(b"/api/v1/tenants/t-bare", method=b"DELETE", token=b"good")) == (401, "token-stale")


# machines


@pytest.mark.parametrize("kind", ["unauthorized", "forbidden", "timeout"])
def test_a_machine_has_no_token_that_could_be_stale(kind):
    stage = staged(**{"t-own": failed(kind)})
    about, view = machine(stage)
    with pytest.raises(Refused) as caught:
        success_of(Deferred.fromCoroutine(stage.lookups.complete(about, view, NOTHING)))
    assert caught.value.problem.code == "critical-check-unavailable"
    with pytest.raises(Refused) as caught:
        success_of(Deferred.fromCoroutine(stage.lookups.confirm(about, view)))
    assert caught.value.problem.code == "critical-check-unavailable"


def test_a_machine_is_looked_up_without_authorization_or_address_and_is_no_old_token():
    stage = staged()
    about, view = machine(stage)
    found = success_of(Deferred.fromCoroutine(stage.lookups.complete(about, view, NOTHING)))
    assert found.subscription == PRO
    assert stage.answers.asked == [ASKED]
    assert b"Authorization" not in dict(stage.answers.headers[0])
    assert stage.answers.counted == [("subscription", "answered")]


NOTHING = AdmissionState(levels=(), flags={}, revoked={})


def machine(stage: Stage) -> tuple[Inquiry, TenantView]:
    claims = replace(OLD, user_id="key-1", email=None)
    about = Inquiry(
        head=make_head(method="DELETE"),
        route=next(route for route in ROUTES if route.prefix == "/api/v1/sales"),
        claims=claims,
        caller=Caller(scheme="key", secret=b"bkry_1", known=claims, said=claims),
        policies=stage.policies,
        trace=Trace(request_id="r-12345678", started=0.0),
    )
    return about, effective_tenant(claims, None, ())
