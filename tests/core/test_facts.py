"""Answers of other services and of Redis: strictly read, and the same after a round trip."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakerygw.core.claims import MAX_UNIX_S, ClaimsError, Subscription, email_from, subscription_from
from bakerygw.core.facts import read_email, read_fact, read_subscription, write_fact

GOOD = {"tier": "professional", "status": "active", "valid_until": "2026-01-01T00:00:00Z"}

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
WORDS = st.sampled_from(["tier", "status", "valid_until", "subscription", "asked_at", "value", "email"])


def test_the_answer_is_the_claim_of_tokens():
    assert read_subscription(json.dumps({**GOOD, "plan_name": "Gold"}).encode()) == Subscription(
        tier="professional", status="active", valid_until=1_767_225_600.0
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"active"',
        b"{}",
        b"\xff\xfe",
        b'{"tier":"enterprise","tier":"starter","status":"active","valid_until":null}',
        json.dumps({**GOOD, "tier": "platinum"}).encode(),
        json.dumps({**GOOD, "tier": None}).encode(),
        json.dumps({**GOOD, "status": "active\r\nX-Evil: 1"}).encode(),
        json.dumps({**GOOD, "status": 1}).encode(),
        json.dumps({**GOOD, "valid_until": 4_102_444_800}).encode(),
        json.dumps({**GOOD, "valid_until": "2099-01-01"}).encode(),
        json.dumps({"subscription": GOOD}).encode(),
        b"[" * 10_000,
        b'{"tier":"enterprise","status":"active","valid_until":NaN}',
    ],
)
def test_anything_else_is_no_subscription(body):
    with pytest.raises(ClaimsError):
        read_subscription(body)


@pytest.mark.parametrize(
    ("said", "email"),
    [
        ({"email": "ana@b.example", "user_id": "u1", "full_name": "Ana"}, "ana@b.example"),
        ({"email": "ana@b.example"}, "ana@b.example"),
        ({"email": "ana@b.example", "sub": "u1"}, "ana@b.example"),
        ({"email": None, "user_id": "u1"}, None),
        ({"user_id": "u1"}, None),
    ],
)
def test_the_email_address_of_the_user_is_read(said, email):
    assert read_email(json.dumps(said).encode(), "u1") == email


@pytest.mark.parametrize(
    "said",
    [
        {"email": "eve@b.example", "user_id": "u2"},
        {"email": "eve@b.example", "sub": "u2"},
        {"email": "eve@b.example", "user_id": None},
        {"email": "a@b\r\nX-User-Role: owner"},
        {"email": "a" * 255},
        {"email": ""},
        {"email": ["a@b.example"]},
        [],
    ],
)
def test_an_answer_about_somebody_else_or_no_address_is_refused(said):
    with pytest.raises(ClaimsError):
        read_email(json.dumps(said).encode(), "u1")


@given(
    st.sampled_from(["starter", "professional", "enterprise"]),
    st.from_regex(r"[A-Za-z0-9_-]{1,32}", fullmatch=True),
    st.none() | st.floats(min_value=0, max_value=MAX_UNIX_S - 1),
    st.floats(min_value=0, max_value=MAX_UNIX_S),
)
def test_what_was_written_is_read_again(tier, status, valid_until, asked_at):
    subscription = Subscription(tier=tier, status=status, valid_until=valid_until)
    value, when = read_fact(write_fact(subscription, asked_at))
    found = subscription_from(value)
    assert (found.tier, found.status, when) == (tier, status, asked_at)
    assert found.valid_until == (None if valid_until is None else pytest.approx(valid_until, abs=1e-4))


@given(st.none() | st.text(min_size=1, max_size=254).filter(str.isprintable))
def test_so_is_an_email_address(email):
    assert email_from(read_fact(write_fact(email, 5.0))[0]) == email


@given(
    st.binary(max_size=200) | st.dictionaries(WORDS | st.text(), ANYTHING, max_size=6).map(json.dumps).map(str.encode)
)
def test_no_bytes_do_anything_but_parse_or_be_refused(data):
    for read in (read_subscription, lambda it: read_email(it, "u1"), lambda it: subscription_from(read_fact(it)[0])):
        try:
            found = read(data)
        except ClaimsError:
            continue
        assert found is None or isinstance(found, str | Subscription)
