from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakerygw.core.claims import Claims, Subscription, TenantAccess
from bakerygw.core.http import Pairs
from bakerygw.core.problem import Problem, Refused
from bakerygw.core.tenancy import (
    DAY_S,
    ReadOnly,
    TenantView,
    carried_until,
    check_demo,
    check_fresh,
    check_subscription,
    check_tier,
    check_writable,
    confirmed,
    effective_tenant,
    identity_headers,
    with_email,
    with_subscription,
)

VALID_UNTIL = 1_767_225_599.0  # 2025-12-31T23:59:59Z
OWN = Subscription(tier="professional", status="active", valid_until=VALID_UNTIL)


def entry(tenant_id: str, **fields: object) -> TenantAccess:
    bare = TenantAccess(
        tenant_id=tenant_id, role=None, tier=None, status=None, valid_until=None, include_children=False
    )
    return replace(bare, **fields)


CLAIMS = Claims(
    user_id="u1",
    email="ana@panaderia.example",
    tenant_id="t1",
    role="owner",
    subscription=OWN,
    tenant_access=(
        entry("t2", role="admin", tier="starter", status="active", valid_until=VALID_UNTIL),
        entry("t3", role="viewer", tier="enterprise", status="past_due", valid_until=5.0),
        entry("t4"),
        entry("t1", role="viewer", tier="starter"),
    ),
    exp=2000.0,
    iat=1000.0,
    nbf=None,
    is_demo=False,
    demo_session_id=None,
    jti=None,
)
DEMO = replace(CLAIMS, is_demo=True, demo_session_id="d1")


def refused(caught: pytest.ExceptionInfo[Refused]) -> Problem:
    return caught.value.problem


@pytest.mark.parametrize(("path", "header"), [(None, ()), ("t1", ()), (None, (b"t1",)), ("t1", (b"t1", b"t1"))])
def test_own_tenant_has_the_tokens_own_role_and_subscription(path: str | None, header: tuple[bytes, ...]) -> None:
    view = effective_tenant(CLAIMS, path, header)
    assert view == TenantView(tenant_id="t1", role="owner", subscription=OWN, own=True)


@pytest.mark.parametrize(("path", "header"), [("t2", ()), (None, (b"t2",)), ("t2", (b"t2",))])
def test_entry_gives_its_own_role_and_tier(path: str | None, header: tuple[bytes, ...]) -> None:
    view = effective_tenant(CLAIMS, path, header)
    assert (view.tenant_id, view.role, view.own) == ("t2", "admin", False)
    assert view.subscription == Subscription(tier="starter", status="active", valid_until=VALID_UNTIL)


def test_entry_with_status_and_end_is_judged_by_them() -> None:
    view = effective_tenant(CLAIMS, "t3", ())
    assert view.subscription == Subscription(tier="enterprise", status="past_due", valid_until=5.0)


@pytest.mark.parametrize("lacks", ["tier", "status", "valid_until"])
def test_an_entry_that_leaves_anything_out_borrows_nothing_from_the_own_tenant(lacks: str) -> None:
    claims = replace(CLAIMS, tenant_access=(replace(CLAIMS.tenant_access[1], **{lacks: None}),))
    view = effective_tenant(claims, "t3", ())
    assert view.subscription is None
    assert not view.looked_up


def test_the_tier_of_an_entry_stays_in_force_whatever_is_looked_up() -> None:
    found = Subscription(tier="enterprise", status="trialing", valid_until=7.0)
    bare = effective_tenant(replace(CLAIMS, tenant_access=(entry("t9"),)), "t9", ())
    tiered = effective_tenant(replace(CLAIMS, tenant_access=(entry("t9", tier="starter"),)), "t9", ())
    assert with_subscription(bare, found).subscription == found
    assert with_subscription(tiered, found).subscription == replace(found, tier="starter")
    assert with_subscription(bare, found).looked_up


@pytest.mark.parametrize("change", [{"tier": "starter"}, {"status": "past_due"}])
def test_what_the_token_says_must_be_what_the_tenant_service_confirms(change: dict[str, str]) -> None:
    view = effective_tenant(CLAIMS, None, ())
    assert confirmed(view, replace(OWN, valid_until=5.0)) == view
    with pytest.raises(Refused) as caught:
        confirmed(view, replace(OWN, **change))
    assert refused(caught).code == "token-stale"


def test_what_was_looked_up_gives_way_to_what_is_confirmed() -> None:
    older = with_subscription(effective_tenant(replace(CLAIMS, subscription=None), None, ()), OWN)
    newer = replace(OWN, tier="starter", status="past_due")
    assert confirmed(older, newer).subscription == newer
    assert confirmed(replace(older, subscription=None), newer).subscription == newer


def test_the_tier_of_an_entry_must_be_confirmed_even_where_the_rest_was_looked_up() -> None:
    claims = replace(CLAIMS, tenant_access=(entry("t9", tier="enterprise"),))
    view = with_subscription(effective_tenant(claims, "t9", ()), OWN)
    with pytest.raises(Refused) as caught:
        confirmed(view, OWN)
    assert refused(caught).code == "token-stale"


@pytest.mark.parametrize(
    ("path", "header"),
    [("t1", (b"t2",)), ("t2", (b"t1",)), (None, (b"t1", b"t2")), ("t2", (b"t2", b"t1")), ("t9", (b"t1",))],
)
def test_two_different_tenants_are_ambiguous(path: str | None, header: tuple[bytes, ...]) -> None:
    with pytest.raises(Refused) as caught:
        effective_tenant(CLAIMS, path, header)
    assert refused(caught).code == "tenant-ambiguous"


@pytest.mark.parametrize(
    ("path", "header"),
    [
        ("", ()),
        ("t1%2f..", ()),
        ("%74%31", ()),
        ("a" * 65, ()),
        (None, (b"",)),
        (None, (b"t1, t2",)),
        (None, (b"t1\n",)),
        (None, (b"\xfft1",)),
        ("t1", (b"t 1",)),
    ],
)
def test_what_is_no_tenant_id_is_a_bad_request(path: str | None, header: tuple[bytes, ...]) -> None:
    with pytest.raises(Refused) as caught:
        effective_tenant(CLAIMS, path, header)
    assert refused(caught).code == "bad-request"


@pytest.mark.parametrize(
    ("path", "header"),
    [
        ("t9", ()),
        (None, (b"t9",)),
        ("T1", ()),
        ("T2", ()),
        (None, (b"T2",)),
        (None, (b"t22",)),
        ("t", ()),
        ("t2.", ()),
        ("-t2", ()),
    ],
)
def test_foreign_tenant_is_forbidden(path: str | None, header: tuple[bytes, ...]) -> None:
    with pytest.raises(Refused) as caught:
        effective_tenant(CLAIMS, path, header)
    assert refused(caught).code == "tenant-forbidden"


def test_demo_token_reaches_only_its_own_tenant() -> None:
    assert effective_tenant(DEMO, "t1", ()).own
    with pytest.raises(Refused) as caught:
        effective_tenant(DEMO, "t2", ())
    assert refused(caught).code == "demo-isolation"


def test_ordinary_token_stays_out_of_demo_tenants() -> None:
    check_demo(DEMO, True)
    check_demo(DEMO, False)
    check_demo(CLAIMS, False)
    with pytest.raises(Refused) as caught:
        check_demo(CLAIMS, True)
    assert refused(caught).code == "demo-isolation"


@pytest.mark.parametrize(("iat", "changed_at"), [(100, None), (100, 100), (100, 99.2), (100, 100.0), (100.5, 99.9)])
def test_token_issued_since_the_change_is_fresh(iat: float, changed_at: float | None) -> None:
    check_fresh(iat, changed_at)


@pytest.mark.parametrize(("iat", "changed_at"), [(99, 100), (100, 100.001), (100.9, 100.5)])
def test_token_issued_before_the_change_is_stale(iat: float, changed_at: float) -> None:
    with pytest.raises(Refused) as caught:
        check_fresh(iat, changed_at)
    assert refused(caught).code == "token-stale"


@pytest.mark.parametrize("status", ["active", "trialing"])
def test_paid_subscription_passes_silently_until_its_end_and_in_grace_after(status: str) -> None:
    subscription = replace(OWN, status=status)
    assert check_subscription(subscription, VALID_UNTIL - 0.1, 7) is None
    assert check_subscription(subscription, VALID_UNTIL, 7) == "2026-01-07T23:59:59Z"
    assert check_subscription(subscription, VALID_UNTIL + 7 * DAY_S - 0.1, 7) == "2026-01-07T23:59:59Z"


def test_past_due_subscription_is_in_grace_until_the_same_end() -> None:
    subscription = replace(OWN, status="past_due")
    assert check_subscription(subscription, VALID_UNTIL - 30 * DAY_S, 7) == "2026-01-07T23:59:59Z"
    assert check_subscription(subscription, VALID_UNTIL + 7 * DAY_S - 0.1, 7) == "2026-01-07T23:59:59Z"


@pytest.mark.parametrize("status", ["active", "trialing", "past_due"])
@pytest.mark.parametrize("grace_days", [0, 7])
def test_subscription_ends_with_its_grace(status: str, grace_days: int) -> None:
    with pytest.raises(Refused) as caught:
        check_subscription(replace(OWN, status=status), VALID_UNTIL + grace_days * DAY_S, grace_days)
    assert carried_until(OWN, grace_days) == VALID_UNTIL + grace_days * DAY_S
    assert refused(caught).code == "subscription-expired"
    assert refused(caught).members == {
        "subscription_status": status,
        "tier": "professional",
        "valid_until": "2025-12-31T23:59:59Z",
        "grace_until": "2026-01-07T23:59:59Z" if grace_days else "2025-12-31T23:59:59Z",
    }


@pytest.mark.parametrize(
    ("subscription", "reason", "members"),
    [
        (None, "no-subscription-claim", {}),
        (
            replace(OWN, status="canceled"),
            "status",
            {"subscription_status": "canceled", "tier": "professional", "valid_until": "2025-12-31T23:59:59Z"},
        ),
        (
            replace(OWN, status="Active"),
            "status",
            {"subscription_status": "Active", "tier": "professional", "valid_until": "2025-12-31T23:59:59Z"},
        ),
        (
            replace(OWN, valid_until=None),
            "no-valid-until",
            {"subscription_status": "active", "tier": "professional"},
        ),
    ],
)
def test_subscription_that_carries_nothing_is_inactive(
    subscription: Subscription | None, reason: str, members: dict[str, object]
) -> None:
    with pytest.raises(Refused) as caught:
        check_subscription(subscription, 0.0, 7)
    problem = refused(caught)
    assert (problem.code, problem.reason, problem.members) == ("subscription-inactive", reason, members)


def test_end_of_grace_after_the_last_year_is_told_as_the_last_second() -> None:
    subscription = replace(OWN, status="past_due", valid_until=253_402_300_799.0)
    assert check_subscription(subscription, 0.0, 7) == "9999-12-31T23:59:59Z"


@pytest.mark.parametrize(
    ("tier", "min_tier"),
    [
        ("starter", None),
        (None, None),
        ("starter", "starter"),
        ("enterprise", "professional"),
        ("enterprise", "enterprise"),
    ],
)
def test_tier_at_or_above_the_routes_passes(tier: str | None, min_tier: str | None) -> None:
    check_tier(tier, min_tier)


@pytest.mark.parametrize(
    ("tier", "min_tier"),
    [("starter", "professional"), ("starter", "enterprise"), ("professional", "enterprise"), (None, "starter")],
)
def test_lower_tier_is_told_which_one_it_needs(tier: str | None, min_tier: str) -> None:
    with pytest.raises(Refused) as caught:
        check_tier(tier, min_tier)
    assert refused(caught).code == "tier-required"
    assert refused(caught).members == {"required_tier": min_tier, "current_tier": tier}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_writing_to_a_tenant_on_hold_is_refused_with_reason_and_end(method: str) -> None:
    hold = ReadOnly(reason="stocktaking", until="2026-01-01T00:00:00Z", by="ops")
    check_writable(method, None)
    with pytest.raises(Refused) as caught:
        check_writable(method, hold)
    assert refused(caught).code == "tenant-read-only"
    assert refused(caught).members == {"read_only_reason": "stocktaking", "read_only_until": "2026-01-01T00:00:00Z"}
    assert "2026-01-01T00:00:00Z" in refused(caught).detail


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_reading_from_a_tenant_on_hold_passes(method: str) -> None:
    check_writable(method, ReadOnly())


def test_services_read_who_asks_for_which_tenant() -> None:
    assert identity_headers(CLAIMS, effective_tenant(CLAIMS, "t2", ())) == (
        (b"X-User-Id", b"u1"),
        (b"X-User-Email", b"ana@panaderia.example"),
        (b"X-User-Role", b"admin"),
        (b"X-Tenant-Id", b"t2"),
        (b"X-Subscription-Tier", b"starter"),
        (b"X-Subscription-Status", b"active"),
        (b"X-Is-Demo", b"false"),
    )


def test_demo_sessions_are_marked() -> None:
    headers = dict(identity_headers(DEMO, effective_tenant(DEMO, None, ())))
    assert headers[b"X-Is-Demo"] == b"true"
    assert headers[b"X-Demo-Session-Id"] == b"d1"
    ordinary = replace(CLAIMS, demo_session_id="d1")
    assert b"X-Demo-Session-Id" not in dict(identity_headers(ordinary, None))


def test_an_email_that_was_looked_up_is_told_like_the_tokens_own() -> None:
    bare = replace(CLAIMS, email=None)
    view = with_email(effective_tenant(bare, None, ()), "josé@b.example")
    assert dict(identity_headers(bare, view))[b"X-User-Email"] == b"jos%C3%A9@b.example"
    assert dict(identity_headers(CLAIMS, view))[b"X-User-Email"] == b"ana@panaderia.example"


def test_nothing_is_said_that_is_not_known() -> None:
    bare = replace(CLAIMS, email=None, role=None, subscription=None)
    own: Pairs = ((b"X-User-Id", b"u1"), (b"X-Tenant-Id", b"t1"), (b"X-Is-Demo", b"false"))
    assert identity_headers(bare, effective_tenant(bare, None, ())) == own
    assert identity_headers(bare, None) == ((b"X-User-Id", b"u1"), (b"X-Is-Demo", b"false"))


@pytest.mark.parametrize(
    ("email", "sent"),
    [
        ("josé@panadería.example", b"jos%C3%A9@panader%C3%ADa.example"),
        ("a%b@c.example", b"a%25b@c.example"),
        ('"a b"+x@c.example', b'"a%20b"+x@c.example'),
    ],
)
def test_email_is_sent_as_visible_ascii(email: str, sent: bytes) -> None:
    assert dict(identity_headers(replace(CLAIMS, email=email), None))[b"X-User-Email"] == sent


@given(st.text(min_size=1, max_size=60).filter(str.isprintable))
def test_no_email_can_leave_its_header(email: str) -> None:
    sent = dict(identity_headers(replace(CLAIMS, email=email), None))[b"X-User-Email"]
    assert all(0x21 <= byte <= 0x7E for byte in sent)
