"""Tenants below those of a token: who reaches them, with what, and who is told of it."""

from dataclasses import replace

import pytest
from twisted.internet.defer import Deferred

from bakerygw.core.claims import TenantAccess
from bakerygw.core.limits import LimitRule
from bakerygw.core.stacks import LimitPolicy
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.edge.tenants.inheritance import MAX_AUDITED
from bakerygw.ports import AdmissionAsk, StoreUnavailable
from tests.edge.edge_fakes import request
from tests.edge.port_fakes import DAY_S, DEMO, NOW, PRO, USER, Stage

CHAIN = TenantAccess(
    tenant_id="chain", role="area-manager", tier="enterprise", status=None, valid_until=None, include_children=True
)
SHOP = b"/api/v1/tenants/shop/products"
SALES = b"/api/v1/sales/today"
NAMED = b"X-Tenant-ID: shop"


def stage(entry=CHAIN, chain=("region", "chain"), **policies):
    built = Stage(**policies)
    built.tokens.claims[b"good"] = replace(USER, tenant_access=(entry,))
    built.tree.chains["shop"] = chain
    built.answers.subscriptions["shop"] = PRO
    return built


def problem(answer):
    return answer.status, answer.problem()["code"]


@pytest.mark.parametrize("ask", [(SHOP,), (SALES, NAMED)])
def test_a_tenant_below_an_entry_is_open_with_the_entrys_role_and_tier(ask):
    built = stage()
    assert built.ask(*ask, token=b"good").status == 200
    sent = dict(built.forwarded.headers)
    assert sent[b"X-Tenant-Id"] == b"shop"
    assert sent[b"X-User-Role"] == b"area-manager"
    assert sent[b"X-Subscription-Tier"] == b"enterprise"
    assert built.outcome.trace.tenant_id == "shop"


@pytest.mark.parametrize(
    ("entry", "chain"),
    [
        (CHAIN, ()),
        (CHAIN, ("region", "group")),
        (replace(CHAIN, include_children=False), ("region", "chain")),
        (replace(CHAIN, tenant_id="shop-2"), ("chain",)),
    ],
)
def test_no_other_is(entry, chain):
    built = stage(entry, chain)
    assert problem(built.ask(SHOP, token=b"good")) == (403, "tenant-forbidden")
    assert (built.services.requests, built.audited) == ([], [])


def test_a_token_without_such_an_entry_has_no_parent_read():
    built = stage(replace(CHAIN, include_children=False))
    built.ask(SHOP, token=b"good")
    assert built.tree.asked == []
    assert [ask.tenants for ask in built.store.asked] == [("t-own",)]


def test_what_nobody_has_signed_has_no_parent_and_no_flags_read():
    built = stage()
    built.tokens.claims[b"forged"] = built.tokens.claims[b"good"]

    async def refuse(_):
        from bakerygw.ports import TokenRefused  # noqa: PLC0415

        raise TokenRefused("token-invalid", "signature")

    built.tokens.verify = refuse
    assert built.ask(SHOP, token=b"forged").status == 401
    assert built.tree.asked == []
    assert [ask.tenants for ask in built.store.asked] == [("t-own",)]


def test_flags_are_read_only_of_a_tenant_that_is_open():
    built = stage(chain=())
    built.ask(SHOP, token=b"good")
    assert all("shop" not in ask.tenants for ask in built.store.asked)
    open_to_it = stage()
    open_to_it.ask(SHOP, token=b"good")
    assert open_to_it.store.asked[-1] == AdmissionAsk(tenants=("shop",), verified=True, limit_of="shop")


@pytest.mark.parametrize(
    ("flags", "method", "expected"),
    [
        (TenantFlags(read_only=ReadOnly()), b"POST", (403, "tenant-read-only")),
        (TenantFlags(demo=True), b"GET", (403, "demo-isolation")),
        (TenantFlags(changed_at=NOW), b"GET", (401, "token-stale")),
        (None, b"POST", (503, "state-unavailable")),
    ],
)
def test_its_own_flags_hold(flags, method, expected):
    built = stage()
    built.store.flags["shop"] = flags
    assert problem(built.ask(SHOP, method=method, token=b"good")) == expected
    assert built.services.requests == []


def test_the_flags_of_those_between_do_not():
    built = stage()
    for between in ("region", "chain"):
        built.store.flags[between] = TenantFlags(changed_at=NOW, read_only=ReadOnly(), demo=True)
    assert built.ask(SHOP, method=b"POST", token=b"good").status == 200


@pytest.mark.parametrize(
    ("status", "valid_until", "expected"),
    [("active", NOW - 8 * DAY_S, 402), ("cancelled", None, 402), ("active", NOW, 200)],
)
def test_status_and_end_of_the_entry_hold_for_it(status, valid_until, expected):
    built = stage(replace(CHAIN, status=status, valid_until=valid_until))
    assert built.ask(SHOP, token=b"good").status == expected


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_while_parents_cannot_be_asked_it_is_not_open(method):
    built = stage()
    built.tree.down = True
    answer = built.ask(SHOP, method=method, token=b"good")
    assert problem(answer) == (503, "state-unavailable")
    assert answer.headers[b"retry-after"] == [b"2"]
    assert (built.services.requests, built.audited) == ([], [])


def test_a_demo_session_inherits_nothing():
    built = stage()
    built.tokens.claims[b"demo"] = replace(DEMO, tenant_access=(CHAIN,))
    assert problem(built.ask(SHOP, token=b"demo")) == (403, "demo-isolation")
    assert built.tree.asked == []


@pytest.mark.parametrize("spoil", ["revoked", "stale"])
def test_a_token_that_does_not_hold_is_refused_as_such_without_a_look(spoil):
    built = stage()
    if spoil == "revoked":
        built.store.revoked["digest-good"] = True
    else:
        built.store.flags["t-own"] = TenantFlags(changed_at=NOW)
    assert problem(built.ask(SHOP, token=b"good")) == (401, f"token-{spoil}")
    assert (built.tree.asked, built.audited) == ([], [])


def test_each_use_is_audited_once_a_minute_for_each_user_and_tenant():
    built = stage()
    built.tree.chains["shop-2"] = ("chain",)
    built.answers.subscriptions["shop-2"] = PRO
    for _ in range(3):
        built.ask(SHOP, token=b"good")
    built.ask(SHOP.replace(b"shop", b"shop-2"), token=b"good")
    told = {"user_id": "user-1", "tenant_id": "shop", "via": "chain", "client": "192.0.2.1"}
    assert built.audited == [("tenant.parent_used", told), ("tenant.parent_used", {**told, "tenant_id": "shop-2"})]
    built.seconds = 60.0
    built.ask(SHOP, token=b"good")
    assert len(built.audited) == 3


def test_a_store_that_fails_for_the_childs_flags_grants_nothing():
    built = stage()
    admit = built.store.admit

    async def failing(ask):
        if ask.tenants == ("shop",):
            raise StoreUnavailable
        return await admit(ask)

    built.store.admit = failing
    assert problem(built.ask(SHOP, token=b"good")) == (503, "state-unavailable")
    assert built.services.requests == []


PER_TENANT = LimitRule(name="together", requests=100, window_s=60, by="tenant")


def limited(tier=None):
    policies = LimitPolicy(rule=PER_TENANT, tier=tier), LimitPolicy(rule=replace(PER_TENANT, name="each", by="user"))
    return stage(stacks={"/api/v1/tenants": policies})


def test_a_request_by_inheritance_spends_what_all_users_of_that_tenant_have_in_common():
    built = limited()
    answer = built.ask(SHOP, token=b"good")
    assert answer.status == 200
    ask = built.store.asked[-1]
    assert ([bucket.key for bucket in ask.buckets], ask.limit_of, ask.peek) == (["together:tenant:shop"], "shop", False)
    assert b'"together"' in answer.headers[b"ratelimit-policy"][0]


@pytest.mark.parametrize("target", [SHOP, b"/api/v1/tenants/t-own/products"])
def test_a_request_by_inheritance_spends_nothing_of_the_tokens_own_tenant(target):
    built = limited()
    built.ask(target, token=b"good")
    before = len(built.store.asked)
    answer = built.ask(target, token=b"good")
    asked = built.store.asked[before:]
    tenant = "shop" if target is SHOP else "t-own"
    spent = [bucket.key for ask in asked for bucket in ask.buckets]
    assert sorted(spent) == sorted(["default:user:user-1", "each:user:user-1", f"together:tenant:{tenant}"])
    assert [ask.limit_of for ask in asked if ask.limit_of is not None] == [tenant]
    assert answer.headers[b"ratelimit-policy"][0].count(b'"together"') == 1


def test_where_that_is_spent_it_is_refused():
    built = limited()
    built.store.empty.add("together")
    answer = built.ask(SHOP, token=b"good")
    assert problem(answer) == (429, "rate-limited")
    assert answer.problem()["scope"] == "tenant"
    assert built.services.requests == []


def test_a_limit_for_another_tier_than_the_entrys_is_not_spent():
    built = limited(tier="starter")
    assert built.ask(SHOP, token=b"good").status == 200
    assert built.store.asked[-1].buckets == ()
    assert limited(tier="enterprise").ask(SHOP, token=b"good").status == 200


def test_nobody_spends_anything_of_a_tenant_that_is_not_open_to_them():
    built = limited()
    built.tree.chains["shop"] = ("other-chain",)
    assert built.ask(SHOP, token=b"good").status == 403
    assert not [key for key in built.store.spent if "shop" in key]


def test_a_client_that_leaves_while_parents_are_asked_ends_the_question_and_nothing_else():
    built = stage()
    waiting, cancelled = [], []

    async def slow(tenant_id):
        question = Deferred(lambda _: cancelled.append(tenant_id))
        waiting.append(question)
        return await question

    built.tree.ancestors = slow
    client = built.client(request(b"GET", SHOP, b"Authorization: Bearer good"))
    assert len(waiting) == 1
    client.leave()
    assert cancelled == ["shop"]
    assert (built.outcome.status, built.services.requests, built.audited) == (499, [], [])


def test_what_was_told_is_remembered_in_a_bounded_room():
    built = stage()
    inheritance = built.gateway._inheritance
    for number in range(MAX_AUDITED + 1):
        inheritance._tell(USER, f"shop-{number}", "chain", "192.0.2.1")
    inheritance._tell(USER, f"shop-{MAX_AUDITED}", "chain", "192.0.2.1")
    assert len(built.audited) == MAX_AUDITED + 1
    inheritance._tell(USER, "shop-0", "chain", "192.0.2.1")
    assert len(built.audited) == MAX_AUDITED + 2
    assert len(inheritance._told) == MAX_AUDITED
