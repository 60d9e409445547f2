"""Which stacked limits a route is under."""

from dataclasses import replace

import pytest

from bakerygw.core.claims import Claims, Subscription, TenantAccess
from bakerygw.core.limits import LimitRule
from bakerygw.core.routing import Route
from bakerygw.core.stacks import UNROUTED, LimitPolicy, holds_below, stacks_of, tier_in


def route(prefix: str, **more: object) -> Route:
    return Route(prefix=prefix, template=prefix, kind="proxy", service="sales", **more)  # type: ignore[arg-type]


def policy(name: str, prefix: str | None = None) -> LimitPolicy:
    return LimitPolicy(rule=LimitRule(name=name, requests=1, window_s=1), prefix=prefix)


ROUTES = (
    route("/api/v1/sales"),
    route("/api/v1/sales/export"),
    route("/api/v1/salesforce"),
    route("/health", unlimited=True),
    route("/api/v1/tenants/{id}/subscription"),
)


def test_a_policy_holds_on_the_routes_at_its_prefix_and_below_by_whole_segments() -> None:
    everywhere, sales, export = policy("all"), policy("sales", "/api/v1/sales"), policy("x", "/api/v1/sales/export")
    stacks = stacks_of((everywhere, sales, export), ROUTES)
    assert stacks == {
        "/api/v1/sales": (everywhere, sales),
        "/api/v1/sales/export": (everywhere, sales, export),
        "/api/v1/salesforce": (everywhere,),
        "/api/v1/tenants/{id}/subscription": (everywhere,),
        UNROUTED: (everywhere,),
    }


def test_routes_without_any_policy_and_unlimited_ones_are_left_out() -> None:
    assert stacks_of((), ROUTES) == {}
    assert list(stacks_of((policy("t", "/api/v1/tenants"),), ROUTES)) == ["/api/v1/tenants/{id}/subscription"]


@pytest.mark.parametrize(
    ("prefix", "path", "covered"),
    [(None, "/x", True), ("/a", "/a", True), ("/a", "/a/b", True), ("/a", "/ab", False), ("/a/b", "/a", False)],
)
def test_a_prefix_covers_whole_segments(prefix: str | None, path: str, covered: bool) -> None:
    assert holds_below(prefix, path) is covered


def test_the_tier_is_that_of_the_tenant_asked_for_if_it_is_told() -> None:
    entries = [
        TenantAccess(tenant_id=name, role=None, tier=tier, status=None, valid_until=None, include_children=False)
        for name, tier in (("other", "professional"), ("silent", None))
    ]
    claims = Claims(
        user_id="u", email=None, tenant_id="own", role=None,
        subscription=Subscription(tier="enterprise", status="active", valid_until=None), tenant_access=tuple(entries),
        exp=2.0, iat=1.0, nbf=None, is_demo=False, demo_session_id=None, jti=None,
    )  # fmt: skip
    tiers = [tier_in(claims, name) for name in ("own", "other", "silent", "unknown")]
    assert tiers == ["enterprise", "professional", None, None]
    assert tier_in(replace(claims, subscription=None), "own") is None
