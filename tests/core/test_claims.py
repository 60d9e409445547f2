import json
import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakerygw.core.claims import (
    MAX_DEPTH,
    MAX_TENANT_ACCESS,
    MAX_TOKEN_BYTES,
    Claims,
    ClaimsError,
    Subscription,
    TenantAccess,
    bearer_token,
    check_time,
    claims_from,
    strict_object,
)
from bakerygw.core.problem import Refused

ABSENT = object()
MINIMAL = {"user_id": "u1", "tenant_id": "t1", "exp": 2000, "iat": 1000}


def payload(**overrides: object) -> bytes:
    members = {name: value for name, value in {**MINIMAL, **overrides}.items() if value is not ABSENT}
    return json.dumps(members).encode()


def parsed(data: bytes) -> Claims:
    """As the verifier reads a token's payload."""
    return claims_from(strict_object(data))


def reason_of(data: bytes) -> str:
    with pytest.raises(ClaimsError) as caught:
        parsed(data)
    return caught.value.reason


def test_every_claim_is_read() -> None:
    entry = {"id": "t2", "role": "admin", "tier": "starter", "status": "active", "include_children": True}
    claims = parsed(
        payload(
            email="ana@panaderia.example",
            tenant_role="owner",
            subscription={"tier": "professional", "status": "active", "valid_until": "2025-12-31T23:59:59Z"},
            tenant_access=[{**entry, "valid_until": "1970-01-01T02:00:01.5+02:00"}, {"id": "t3"}],
            nbf=900.5,
            is_demo=True,
            demo_session_id="d-1",
            jti="j_1",
            type="access",
        )
    )
    assert claims == Claims(
        user_id="u1",
        email="ana@panaderia.example",
        tenant_id="t1",
        role="owner",
        subscription=Subscription(tier="professional", status="active", valid_until=1767225599.0),
        tenant_access=(
            TenantAccess(
                tenant_id="t2", role="admin", tier="starter", status="active", valid_until=1.5, include_children=True
            ),
            TenantAccess(tenant_id="t3", role=None, tier=None, status=None, valid_until=None, include_children=False),
        ),
        exp=2000.0,
        iat=1000.0,
        nbf=900.5,
        is_demo=True,
        demo_session_id="d-1",
        jti="j_1",
    )


def test_optional_claims_may_be_absent_or_null() -> None:
    names = ("email", "tenant_role", "subscription", "tenant_access", "nbf", "demo_session_id", "jti", "type", "sub")
    assert parsed(payload()) == parsed(payload(**dict.fromkeys(names)))


def test_sub_is_an_alias_of_user_id() -> None:
    assert parsed(payload(user_id=ABSENT, sub="u9")).user_id == "u9"
    assert parsed(payload(user_id="u9", sub="u9")).user_id == "u9"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"user_id": ABSENT}, "user_id"),
        ({"user_id": "a", "sub": "b"}, "user_id"),
        ({"user_id": "1", "sub": 1}, "user_id"),
        ({"user_id": 7}, "user_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "x" * 65}, "user_id"),
        ({"user_id": "a\r\nX-User-Id: root"}, "user_id"),
        ({"user_id": "a\n"}, "user_id"),
        ({"user_id": "\u0661"}, "user_id"),
        ({"tenant_id": ABSENT}, "tenant_id"),
        ({"tenant_id": "../t1"}, "tenant_id"),
        ({"tenant_id": ["t1"]}, "tenant_id"),
        ({"tenant_role": "owner\n"}, "tenant_role"),
        ({"tenant_role": 1}, "tenant_role"),
        ({"jti": 1}, "jti"),
        ({"jti": "a b"}, "jti"),
        ({"demo_session_id": "a/b"}, "demo_session_id"),
        ({"is_demo": "true"}, "is_demo"),
        ({"is_demo": 1}, "is_demo"),
        ({"is_demo": None}, "is_demo"),
        ({"email": "a@b.example\r\nX-Is-Demo: true"}, "email"),
        ({"email": "a@b\x00"}, "email"),
        ({"email": "a@b\u2028"}, "email"),
        ({"email": "\ud800@b"}, "email"),
        ({"email": ""}, "email"),
        ({"email": "a" * 255}, "email"),
        ({"email": {"a": 1}}, "email"),
    ],
)
def test_claim_that_is_not_what_it_should_be_refuses_the_token(overrides: dict[str, object], reason: str) -> None:
    assert reason_of(payload(**overrides)) == reason


@pytest.mark.parametrize("name", ["exp", "iat"])
@pytest.mark.parametrize(
    "text", ["null", '"2000"', "true", "[2000]", "{}", "1e400", "-1e400", "-1", "253402300800", "1" * 5000]
)
def test_time_that_is_no_sane_number_is_refused(name: str, text: str) -> None:
    data = payload(**{name: "@"}).replace(b'"@"', text.encode())
    assert reason_of(data) in {name, "not-json"}


@pytest.mark.parametrize("name", ["exp", "iat"])
def test_missing_time_is_refused(name: str) -> None:
    assert reason_of(payload(**{name: ABSENT})) == name


@pytest.mark.parametrize("nbf", ["1000", True, [1000], -1])
def test_not_before_that_is_no_number_is_refused(nbf: object) -> None:
    assert reason_of(payload(nbf=nbf)) == "nbf"


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_number_that_json_does_not_know_is_refused(constant: str) -> None:
    assert reason_of(payload(other="@").replace(b'"@"', constant.encode())) == "not-finite"


@pytest.mark.parametrize(
    "subscription",
    [
        "professional",
        [],
        {},
        {"tier": "professional"},
        {"status": "active"},
        {"tier": "platinum", "status": "active"},
        {"tier": "Professional", "status": "active"},
        {"tier": ["starter"], "status": "active"},
        {"tier": "starter", "status": "two words"},
        {"tier": "starter", "status": "a" * 33},
        {"tier": "starter", "status": 1},
    ],
)
def test_malformed_subscription_refuses_the_token(subscription: object) -> None:
    assert reason_of(payload(subscription=subscription)) == "subscription"


@pytest.mark.parametrize(
    "valid_until",
    [
        1767225599,
        "",
        "2025-12-31",
        "2025-12-31T23:59:59",
        "2025-12-31 23:59:59Z",
        "2025-12-31T23:59Z",
        "20251231T235959Z",
        "2025-W52-1T00:00:00Z",
        "2025-02-30T00:00:00Z",
        "2025-12-31T24:00:01Z",
        "2025-12-31T23:59:59+25:00",
        "2025-12-31T23:59:59Z\n",
        "0001-01-01T00:00:00+01:00",
    ],
)
def test_end_of_subscription_is_read_strictly(valid_until: object) -> None:
    subscription = {"tier": "starter", "status": "active", "valid_until": valid_until}
    assert reason_of(payload(subscription=subscription)) == "subscription"


@pytest.mark.parametrize(
    "access",
    [
        {},
        "t2",
        ["t2"],
        [{}],
        [{"id": "t 2"}],
        [{"id": 2}],
        [{"id": "t2", "role": ""}],
        [{"id": "t2", "tier": "gold"}],
        [{"id": "t2", "status": "!"}],
        [{"id": "t2", "valid_until": "soon"}],
        [{"id": "t2", "include_children": 1}],
        [{"id": "t2", "include_children": None}],
        [{"id": "t2"}, {"id": "t3"}, {"id": "t2"}],
    ],
)
def test_malformed_tenant_access_refuses_the_token(access: object) -> None:
    assert reason_of(payload(tenant_access=access)) == "tenant_access"


def test_tenant_access_is_bounded() -> None:
    entries = [{"id": f"t{n}"} for n in range(MAX_TENANT_ACCESS + 1)]
    assert len(parsed(payload(tenant_access=entries[:-1])).tenant_access) == MAX_TENANT_ACCESS
    assert reason_of(payload(tenant_access=entries)) == "tenant_access"


@pytest.mark.parametrize("name", ["type", "typ", "token_use"])
@pytest.mark.parametrize("kind", ["refresh", "Refresh", "id", "logout+jwt", "", 1, ["access"], False])
def test_other_kinds_of_token_are_no_access_tokens(name: str, kind: object) -> None:
    assert reason_of(payload(**{name: kind})) == "not-an-access-token"


@pytest.mark.parametrize("name", ["type", "typ", "token_use"])
@pytest.mark.parametrize("kind", ["access", "JWT", "at+jwt", "Bearer"])
def test_access_tokens_may_say_so(name: str, kind: str) -> None:
    assert parsed(payload(**{name: kind})).user_id == "u1"


@pytest.mark.parametrize(
    "data",
    [
        b'{"exp": 2000, "exp": 9000, "iat": 1000, "user_id": "u1", "tenant_id": "t1"}',
        b'{"exp": 2000, "iat": 1000, "user_id": "u1", "tenant_id": "t1", "x": {"a": 1, "a": 1}}',
        b'{"exp": 2000, "iat": 1000, "user_id": "u1", "tenant_id": "t1", "x": [[{"a": 1, "\\u0061": 2}]]}',
    ],
)
def test_name_given_twice_is_refused_at_any_level(data: bytes) -> None:
    assert reason_of(data) == "duplicate-name"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not-json"),
        (b"{", "not-json"),
        (payload() + b"x", "not-json"),
        (payload() + payload(), "not-json"),
        (b"\xef\xbb\xbf" + payload(), "not-json"),
        (payload().replace(b"u1", b"\xff"), "not-json"),
        (payload().replace(b"u1", b"\xed\xa0\x80"), "not-json"),
        (payload().replace(b"u1", b"a\nb"), "not-json"),
        (payload().decode().encode("utf-16"), "not-json"),
        (b"[]", "not-an-object"),
        (b"null", "not-an-object"),
        (b'"text"', "not-an-object"),
        (b"[" * 100_000, "too-deep"),
        (b'{"a":' * 100_000, "too-deep"),
    ],
)
def test_payload_that_is_no_strict_json_object_is_refused(data: bytes, reason: str) -> None:
    assert reason_of(data) == reason


def test_depth_is_bounded_and_brackets_in_text_do_not_count() -> None:
    deepest = '{"a":' * (MAX_DEPTH - 1) + "{}" + "}" * (MAX_DEPTH - 1)
    assert strict_object(deepest.encode())
    with pytest.raises(ClaimsError, match="too-deep"):
        strict_object(b'{"b":' + deepest.encode() + b"}")
    text = {"a": "[" * 100 + '\\"{' * 100}
    assert strict_object(json.dumps(text).encode()) == text


_members = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*MINIMAL, "sub", "subscription", "tenant_access", "is_demo"]), _members))
def test_any_json_object_is_claims_or_a_claims_error(said: dict[str, object]) -> None:
    try:
        claims = parsed(json.dumps(said).encode())
    except ClaimsError:
        return
    assert set(claims.user_id + claims.tenant_id) <= set(string.ascii_letters + string.digits + "._-")
    assert math.isfinite(claims.exp)
    assert math.isfinite(claims.iat)


@given(st.binary(max_size=200))
def test_any_bytes_are_claims_or_a_claims_error(data: bytes) -> None:
    with pytest.raises(ClaimsError):
        parsed(data)


@pytest.mark.parametrize(
    ("now", "leeway_s", "reason"),
    [
        (2000, 0, "expired"),
        (2000.5, 0, "expired"),
        (2010, 10, "expired"),
        (949.9, 0, "not-yet-valid"),
        (989, 10, "issued-in-future"),
    ],
)
def test_token_outside_its_time_is_refused(now: float, leeway_s: float, reason: str) -> None:
    claims = parsed(payload(nbf=950))
    with pytest.raises(ClaimsError) as caught:
        check_time(claims, now, leeway_s)
    assert caught.value.reason == reason


@pytest.mark.parametrize(("now", "leeway_s"), [(1999.9, 0), (2009.9, 10), (1000, 0), (990, 10)])
def test_token_within_its_time_and_leeway_passes(now: float, leeway_s: float) -> None:
    check_time(parsed(payload(nbf=1000)), now, leeway_s)


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER", b"bEaReR"])
def test_bearer_scheme_is_taken_in_any_case(scheme: bytes) -> None:
    assert bearer_token((scheme + b" a.b.c",)) == b"a.b.c"


@pytest.mark.parametrize(
    ("values", "code", "reason"),
    [
        ((), "token-missing", ""),
        ((b"Bearer a.b.c", b"Bearer a.b.c"), "token-invalid", "repeated-header"),
        ((b"Bearer a.b.c", b""), "token-invalid", "repeated-header"),
        ((b"",), "token-invalid", "other-scheme"),
        ((b"Basic dXNlcg==",), "token-invalid", "other-scheme"),
        ((b"a.b.c",), "token-invalid", "other-scheme"),
        ((b" Bearer a.b.c",), "token-invalid", "other-scheme"),
        ((b"Bearer\ta.b.c",), "token-invalid", "other-scheme"),
        ((b"Bearer",), "token-invalid", "malformed-header"),
        ((b"Bearer ",), "token-invalid", "malformed-header"),
        ((b"Bearer  a.b.c",), "token-invalid", "malformed-header"),
        ((b"Bearer \ta.b.c",), "token-invalid", "malformed-header"),
        ((b"Bearer " + b"a" * (MAX_TOKEN_BYTES + 1),), "token-invalid", "too-long"),
    ],
)
def test_authorization_that_is_not_one_bearer_token_is_refused(
    values: tuple[bytes, ...], code: str, reason: str
) -> None:
    with pytest.raises(Refused) as caught:
        bearer_token(values)
    assert (caught.value.problem.code, caught.value.problem.reason) == (code, reason)


def test_longest_token_is_taken() -> None:
    assert len(bearer_token((b"Bearer " + b"a" * MAX_TOKEN_BYTES,))) == MAX_TOKEN_BYTES
