"""Whose budgets a request spends: stacked limits, limits for a time, and what callers are told of them."""

import json
from dataclasses import replace

import pytest

from bakerygw.core.limits import Level, LimitRule, TenantLimit, level_of, tenant_rule
from bakerygw.core.routing import Route, Router
from bakerygw.core.stacks import LimitPolicy, stacks_of
from bakerygw.core.tenancy import TenantFlags
from bakerygw.edge.limits.budgets import limit_refusal, limit_row
from bakerygw.edge.limits.page import LimitsPage
from bakerygw.ports import AdmissionState
from tests.edge.port_fakes import DEMO, GENERAL, PRO, ROUTES, SALES_LIMIT, STRICT, USER, Stage

SALES = b"/api/v1/sales/today"
LIMITS = Route(prefix="/api/v1/limits", template="/api/v1/limits", kind="local", exact=True, action="limits")
UNTIL = 1_900_000_000.0
WILD = TenantLimit(rule=tenant_rule(50, 60, shadow=False, until=UNTIL))


def policy(name, by, *, tier=None, prefix=None, shadow=False):
    rule = LimitRule(name=name, requests=30, window_s=60, shadow=shadow, by=by)
    return LimitPolicy(rule=rule, tier=tier, prefix=prefix)


def stacked(*policies, stage=Stage):
    routes = (*ROUTES, LIMITS)
    made = stage(stacks=stacks_of(policies, routes), router=Router(routes))
    made.gateway.handlers = {"limits": LimitsPage(made.store).reply_to}
    return made


def spent(stage, target=SALES, *lines, token=b"good", verified=True, method=b"GET"):
    """The keys that the latest of the requests spent from."""
    if verified and token:
        stage.ask(SALES, token=token)
    stage.ask(target, *lines, token=token, method=method)
    return [bucket.key for bucket in stage.store.asked[-1].buckets]


BY_EACH = (policy("u", "user"), policy("t", "tenant"), policy("a", "address"))


def test_a_verified_callers_request_is_under_all_limits_at_once():
    stage = stacked(*BY_EACH)
    assert spent(stage) == ["default:user:user-1", "u:user:user-1", "t:tenant:t-own", "a:addr:192.0.2.1"]
    assert len(stage.store.asked) == 2


def test_a_routes_limit_that_is_only_tried_leaves_the_general_one_in_force():
    tried = replace(SALES_LIMIT, name="tried", shadow=True)
    route = Route(prefix="/api/v1/tried", template="/api/v1/tried/**", kind="proxy", service="sales", limit=tried)
    stage = Stage(router=Router((*ROUTES, route)))
    stage.store.empty |= {"tried"}
    answer = stage.ask(b"/api/v1/tried/x", token=b"good")
    assert stage.store.spent == ["default:addr:192.0.2.1", "tried:addr:192.0.2.1"]
    assert (answer.status, answer.headers[b"ratelimit-policy"]) == (200, [b'"default";q=300;w=60'])


@pytest.mark.parametrize("token", [b"good", b"bad", b""])
def test_who_is_not_verified_yet_spends_the_addresss_budgets_alone(token):
    stage = stacked(*BY_EACH)
    assert spent(stage, token=token, verified=False) == ["default:addr:192.0.2.1", "a:addr:192.0.2.1"]
    assert stage.store.asked[0].limit_of is None


def test_a_public_route_is_under_the_limits_by_address():
    stage = stacked(*BY_EACH)
    keys = spent(stage, b"/api/v1/auth/login", method=b"POST", token=b"good")
    assert keys == ["default:addr:192.0.2.1", "auth:addr:192.0.2.1", "a:addr:192.0.2.1"]


@pytest.mark.parametrize(
    ("target", "lines", "tenant"),
    [
        (SALES, (b"X-Tenant-ID: t-other",), "t-other"),
        (b"/api/v1/tenants/t-other/subscription", (), "t-other"),
        (SALES, (b"X-Tenant-ID: t-else",), "t-own"),
        (SALES, (b"X-Tenant-ID: :*",), "t-own"),
        (b"/nowhere", (), "t-own"),
        (b"/api/v1/auth/me", (b"X-Tenant-ID: t-other",), "t-own"),
    ],
)
def test_the_tenant_that_pays_is_the_one_asked_for_if_the_token_opens_it(target, lines, tenant):
    stage = stacked(policy("t", "tenant"))
    assert spent(stage, target, *lines)[1:] == [f"t:tenant:{tenant}"]
    assert stage.store.asked[-1].limit_of == (None if target == b"/nowhere" else tenant)


def test_demo_sessions_have_buckets_of_their_own_in_each_limit():
    stage = stacked(*BY_EACH)
    keys = spent(stage, token=b"demo")
    assert keys == ["default:demo:demo-1", "u:demo:demo-1", "t:demo-tenant:t-demo", "a:demo-addr:192.0.2.1"]
    assert stage.store.asked[-1].demo


@pytest.mark.parametrize(
    ("lines", "expected"), [((), ["pro:tenant:t-own"]), ((b"X-Tenant-ID: t-other",), ["small:tenant:t-other"])]
)
def test_a_tiers_limit_is_for_tenants_of_that_tier(lines, expected):
    stage = stacked(policy("pro", "tenant", tier="professional"), policy("small", "tenant", tier="starter"))
    assert spent(stage, SALES, *lines)[1:] == expected


def test_a_tiers_limit_by_address_needs_to_know_the_tier():
    stage = stacked(policy("pro", "address", tier="professional"))
    assert spent(stage, verified=False)[1:] == []
    assert spent(stage)[1:] == ["pro:addr:192.0.2.1"]


def test_who_tells_no_tier_is_not_taken_for_one_that_has_paid_less():
    stage = stacked(policy("small", "tenant", tier="starter"))
    stage.tokens.claims[b"good"] = replace(USER, subscription=None)
    assert spent(stage)[1:] == []


def test_a_limit_with_a_prefix_holds_there_alone():
    stage = stacked(policy("r", "user", prefix="/api/v1/reports"))
    assert spent(stage)[1:] == []
    assert spent(stage, b"/api/v1/reports/x") == ["reports:user:user-1", "r:user:user-1"]


def test_every_limit_but_a_shadow_is_in_the_headers_and_the_tightest_apart():
    stage = stacked(policy("u", "user"), policy("quiet", "user", shadow=True))
    stage.ask(SALES, token=b"good")
    answer = stage.ask(SALES, token=b"good")
    assert answer.headers[b"ratelimit-policy"] == [b'"default";q=300;w=60, "u";q=30;w=60']
    assert answer.headers[b"x-ratelimit-limit"] == [b"30"]


def test_a_shadow_that_is_exceeded_is_noted_as_one_and_refuses_nobody():
    stage = stacked(policy("quiet", "user", shadow=True), policy("t", "tenant"))
    stage.ask(SALES, token=b"good")
    stage.store.empty = {"quiet"}
    assert stage.ask(SALES, token=b"good").status == 200
    assert stage.notes.outcomes[-1].trace.exceeded == (("quiet", True),)
    stage.store.empty = {"quiet", "t"}
    refused = stage.ask(SALES, token=b"good")
    assert (refused.status, refused.problem()["policy"]) == (429, "t")
    trace = stage.notes.outcomes[-1].trace
    assert (trace.limited, trace.exceeded) == ("quiet, t", (("quiet", True), ("t", False)))


@pytest.mark.parametrize(
    ("rule", "known", "scope", "words"),
    [
        (GENERAL, True, "user", "You may send 300 requests in 60 seconds"),
        (GENERAL, False, "address", "from your network address together"),
        (replace(STRICT, by="address"), True, "address", "from your network address together"),
        (BY_EACH[1].rule, True, "tenant", "All users of this tenant together"),
    ],
)
def test_a_refusal_says_whose_limit_it_is_and_what_to_do(rule, known, scope, words):
    problem = limit_refusal(level_of(rule, 60_000_000, 1_500_000), known).problem
    assert (problem.code, problem.retry_after_s) == ("rate-limited", 2)
    assert words in problem.detail
    assert "wait 2 seconds" in problem.detail
    assert problem.members == {"policy": rule.name, "scope": scope, "limit": rule.requests, "window_seconds": 60}
    assert "wait 1 second," in limit_refusal(level_of(rule, 60_000_000, 500_000), known).problem.detail


def test_a_refusal_by_a_limit_for_a_time_says_until_when_it_holds():
    problem = limit_refusal(level_of(WILD.rule, 60_000_000, 1_500_000), True).problem
    assert problem.members["until"] == "2030-03-17T17:46:40.000Z"
    assert "holds until 2030-03-17T17:46:40.000Z" in problem.detail


# the page of one's own limits


class Looked:
    """A store over the stage's, that answers a limit for a time as well."""

    def __init__(self, inner):
        self.inner = inner

    async def admit(self, ask):
        state = await self.inner.admit(ask)
        if ask.limit_of is None:
            return state
        level = Level(rule=WILD.rule, allowed=True, remaining=0, reset_us=60_000_000, retry_us=1_200_000)
        return AdmissionState(levels=(*state.levels, level), flags=state.flags, revoked=state.revoked)


def rows(answer):
    assert answer.status == 200
    return {row["policy"]: row for row in json.loads(answer.body)["limits"]}


def test_the_page_of_limits_tells_each_without_a_token_taken():
    stage = stacked(policy("t", "tenant"), policy("quiet", "user", shadow=True))
    stage.ask(SALES, token=b"good")
    answer = stage.ask(b"/api/v1/limits", token=b"good")
    assert rows(answer) == {
        "default": {"policy": "default", "scope": "user", "limit": 300, "window_seconds": 60, "remaining": 299,
                    "reset_seconds": 1},
        "t": {"policy": "t", "scope": "tenant", "limit": 30, "window_seconds": 60, "remaining": 29,
              "reset_seconds": 2},
    }  # fmt: skip
    document = json.loads(answer.body)
    assert (document["tenant_id"], document["concurrent_requests"]) == ("t-own", 100)
    assert [ask.peek for ask in stage.store.asked] == [False, True]


def test_a_new_tokens_first_look_is_charged_to_its_address_and_tells_its_own_limits():
    stage = stacked(policy("t", "tenant"))
    answer = stage.ask(b"/api/v1/limits", b"X-Tenant-ID: t-other", token=b"good")
    charged, looked = stage.store.asked
    assert ([bucket.key for bucket in charged.buckets], charged.peek) == (["default:addr:192.0.2.1"], False)
    assert [bucket.key for bucket in looked.buckets] == ["default:user:user-1", "t:tenant:t-other"]
    assert (looked.peek, looked.limit_of) == (True, "t-other")
    assert json.loads(answer.body)["tenant_id"] == "t-other"
    assert rows(answer)["default"]["scope"] == "user"


@pytest.mark.parametrize("token", [b"bad", b""])
def test_bad_tokens_pay_for_looking_and_see_nothing(token):
    stage = stacked()
    assert stage.ask(b"/api/v1/limits", token=token).status == 401
    assert [(ask.peek, len(ask.buckets)) for ask in stage.store.asked] == [(False, 1)]


def test_the_page_tells_of_a_limit_for_a_time_and_when_the_next_request_passes():
    stage = stacked()
    stage.gateway.handlers = {"limits": LimitsPage(Looked(stage.store)).reply_to}
    row = rows(stage.ask(b"/api/v1/limits", token=b"good"))["tenant"]
    assert row == {"policy": "tenant", "scope": "tenant", "limit": 50, "window_seconds": 60, "remaining": 0,
                   "reset_seconds": 60, "retry_after": 2, "until": "2030-03-17T17:46:40.000Z"}  # fmt: skip


def test_a_row_of_a_bucket_with_tokens_left_says_nothing_of_waiting():
    assert "retry_after" not in limit_row(level_of(SALES_LIMIT, 0, 0), "user")


def test_the_tenants_plan_does_not_change_what_the_page_shows():
    stage = stacked(policy("t", "tenant", tier="professional"))
    stage.tokens.claims[b"good"] = replace(USER, subscription=PRO)
    stage.store.flags = {"t-own": TenantFlags(limit=WILD)}
    assert set(rows(stage.ask(b"/api/v1/limits", token=b"good"))) == {"default", "t"}
    assert DEMO.is_demo
