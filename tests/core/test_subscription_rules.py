"""The rules for subscriptions, each at its exact second, and claims that nobody should have made."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakerygw.core.claims import TIERS, ClaimsError, Subscription, claims_from
from bakerygw.core.problem import Refused, problem_reply
from bakerygw.core.tenancy import DAY_S, check_subscription, check_tier, effective_tenant, identity_headers

END = 1_800_000_000.0
GRACE_DAYS = 7
GRACE_END = END + GRACE_DAYS * DAY_S
GRACE = "2027-01-22T08:00:00Z"
PAST = "subscription-expired"
NONE = "subscription-inactive"

RULES = [
    # status, now, what happens: None passes, a time passes in grace, a code refuses
    ("active", 0.0, None),
    ("active", END - 0.001, None),
    ("active", END, GRACE),
    ("active", GRACE_END - 0.001, GRACE),
    ("active", GRACE_END, PAST),
    ("trialing", END - 0.001, None),
    ("trialing", END, GRACE),
    ("trialing", GRACE_END, PAST),
    ("past_due", 0.0, GRACE),
    ("past_due", END - 1, GRACE),
    ("past_due", END, GRACE),
    ("past_due", GRACE_END - 0.001, GRACE),
    ("past_due", GRACE_END, PAST),
    *(
        (status, 0.0, NONE)
        for status in ("canceled", "paused", "unpaid", "incomplete", "ACTIVE", "Active", "none", "-")
    ),
]


@pytest.mark.parametrize(("status", "now", "expected"), RULES)
def test_each_status_holds_to_the_second(status: str, now: float, expected: str | None) -> None:
    subscription = Subscription(tier="starter", status=status, valid_until=END)
    if expected in (PAST, NONE):
        with pytest.raises(Refused) as caught:
            check_subscription(subscription, now, GRACE_DAYS)
        assert caught.value.problem.code == expected
    else:
        assert check_subscription(subscription, now, GRACE_DAYS) == expected


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("needed", [None, *TIERS])
def test_each_tier_opens_what_is_no_higher(tier: str, needed: str | None) -> None:
    order = ["starter", "professional", "enterprise"]
    if needed is None or order.index(tier) >= order.index(needed):
        check_tier(tier, needed)
        return
    with pytest.raises(Refused) as caught:
        check_tier(tier, needed)
    problem = caught.value.problem
    assert problem.members == {"required_tier": needed, "current_tier": tier}
    assert needed in problem.detail
    assert tier in problem.detail
    assert "upgrade" in problem.detail


def test_a_refusal_says_what_happened_until_when_and_what_to_do() -> None:
    with pytest.raises(Refused) as caught:
        check_subscription(Subscription(tier="starter", status="active", valid_until=END), GRACE_END, GRACE_DAYS)
    problem = caught.value.problem
    assert "2027-01-15T08:00:00Z" in problem.detail
    assert GRACE in problem.detail
    assert "renew" in problem.detail
    assert problem.members == {
        "subscription_status": "active",
        "tier": "starter",
        "valid_until": "2027-01-15T08:00:00Z",
        "grace_until": GRACE,
    }
    assert problem_reply(problem, instance="/x", request_id="r").status == 402


def test_an_inactive_subscription_is_named() -> None:
    with pytest.raises(Refused) as caught:
        check_subscription(Subscription(tier="starter", status="canceled", valid_until=END), 0.0, GRACE_DAYS)
    assert "canceled" in caught.value.problem.detail
    assert "renew" in caught.value.problem.detail


WILD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
MEMBERS = st.fixed_dictionaries(
    {},
    optional={
        "tier": st.sampled_from([*TIERS, "Starter", "gold", ""]) | WILD,
        "status": st.sampled_from(["active", "trialing", "past_due", "canceled", "active\n", "é"]) | WILD,
        "valid_until": st.sampled_from(
            ["2099-01-01T00:00:00Z", "2099-13-01T00:00:00Z", "2099-01-01", "0001-01-01T00:00:00+23:59", 4e9, 1e400]
        )
        | WILD,
    },
)


@given(subscription=MEMBERS | WILD, entry=MEMBERS, now=st.floats(min_value=0, max_value=4e9))
def test_claims_of_any_kind_are_refused_or_judged_and_never_open_more_than_they_say(
    subscription: Any, entry: dict[str, Any], now: float
) -> None:
    said = {
        "user_id": "u1",
        "tenant_id": "t1",
        "subscription": subscription,
        "tenant_access": [{**entry, "id": "t2"}],
        "exp": 5e9,
        "iat": 1.0,
    }
    try:
        claims = claims_from(said)
    except ClaimsError:
        return
    for tenant_id, told in (("t1", subscription), ("t2", entry)):
        view = effective_tenant(claims, tenant_id, ())
        for _, value in identity_headers(claims, view):
            assert all(0x21 <= byte <= 0x7E for byte in value)
        if view.subscription is None:
            assert told is None or tenant_id == "t2"
            continue
        assert view.subscription.tier == told["tier"]
        assert view.subscription.status == told["status"]
        try:
            check_subscription(view.subscription, now, GRACE_DAYS)
        except Refused:
            continue
        else:
            assert told["status"] in ("active", "trialing", "past_due")
            assert isinstance(told["valid_until"], str)
