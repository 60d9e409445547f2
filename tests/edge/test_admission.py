"""The order of decisions: whoever comes first answers, and nobody spends another's budget."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from bakerygw.core.claims import Subscription
from bakerygw.core.limits import LimitRule
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from tests.edge.edge_fakes import request
from tests.edge.port_fakes import DAY_S, DEMO, GENERAL, NOW, PRO, USER, Stage

SALES = b"/api/v1/sales/today"
HOLD = ReadOnly(reason="unpaid", until="2026-01-01T00:00:00Z")
EXPIRED = Subscription(tier="professional", status="active", valid_until=NOW - 30 * DAY_S)
ADDRESS = "default:addr:192.0.2.1"


def code(answer) -> tuple[int, str]:
    return answer.status, answer.problem()["code"]


def worst_case() -> Stage:
    """A stage at which every decision about a write to sales would be a refusal."""
    stage = Stage()
    stage.store.empty = {"default"}
    stage.tokens.claims = {b"good": replace(USER, subscription=EXPIRED)}
    stage.store.flags = {
        "t-own": TenantFlags(changed_at=NOW, read_only=HOLD),
        "t-else": TenantFlags(read_only=HOLD),
    }
    stage.store.revoked = {USER.digest: True}
    return stage


def test_decisions_are_taken_in_their_order():
    stage = worst_case()
    seen = []

    def next_refusal(token: bytes = b"good", *lines: bytes) -> None:
        answer = stage.ask(SALES, *lines, method=b"POST", token=token)
        seen.append(answer.problem()["code"] if answer.status != 200 else "passed")

    two = (b"X-Tenant-ID: t-else", b"X-Tenant-ID: t-own")
    next_refusal(b"bad", *two)
    stage.store.empty = set()
    next_refusal(b"bad", *two)
    next_refusal(b"good", *two)
    stage.store.revoked = {}
    next_refusal(b"good", *two)
    stage.store.flags["t-own"] = TenantFlags(read_only=HOLD)
    next_refusal(b"good", *two)
    next_refusal(b"good", b"X-Tenant-ID: t-else")
    next_refusal()
    stage.tokens.claims = {b"good": USER}
    next_refusal()
    assert stage.services.requests == []
    stage.store.flags = {}
    next_refusal()
    assert seen == [
        "rate-limited",
        "token-invalid",
        "token-revoked",
        "token-stale",
        "tenant-ambiguous",
        "tenant-forbidden",
        "subscription-expired",
        "tenant-read-only",
        "passed",
    ]
    assert len(stage.services.requests) == 1


# whose budget


def test_a_token_not_seen_before_spends_the_addresss_budget_and_a_verified_one_its_users():
    stage = Stage()
    stage.ask(SALES, token=b"good")
    stage.ask(SALES, token=b"good")
    assert stage.store.spent == [ADDRESS, "default:user:user-1"]
    assert stage.notes.cache == [False, True]
    assert stage.notes.auth == ["ok", "ok"]


def test_bad_tokens_spend_their_senders_budget_however_often():
    stage = Stage()
    for token in (b"bad", b"bad", b"expired", b""):
        stage.ask(SALES, token=token)
    stage.ask(SALES, b"Authorization: Basic eA==")
    stage.ask(SALES, b"Authorization: Bearer good", b"Authorization: Bearer good")
    assert set(stage.store.spent) == {ADDRESS}
    assert stage.notes.auth == [*["token-invalid"] * 2, "token-expired", "token-missing", *["token-invalid"] * 2]


def test_demo_users_have_their_own_budget():
    stage = Stage()
    stage.tokens.verified = {b"demo"}
    stage.ask(SALES, token=b"demo")
    assert stage.store.spent == ["default:demo:demo-1"]


@pytest.mark.parametrize("name", [b"login", b"refresh"])
def test_sign_in_spends_both_budgets_of_the_address_even_with_a_known_token(name):
    stage = Stage()
    stage.tokens.verified = {b"good"}
    stage.ask(b"/api/v1/auth/" + name, method=b"POST", token=b"good")
    assert stage.store.spent == [ADDRESS, "auth:addr:192.0.2.1"]
    assert len(stage.store.asked) == 1
    stage.store.empty = {"auth"}
    answer = stage.ask(b"/api/v1/auth/" + name, method=b"POST")
    assert code(answer) == (429, "rate-limited")
    assert answer.problem()["policy"] == "auth"


def test_an_unknown_path_spends_the_addresss_budget_before_it_is_404():
    stage = Stage()
    stage.tokens.verified = {b"good"}
    assert code(stage.ask(b"/nowhere", token=b"good")) == (404, "not-found")
    stage.store.empty = {"default"}
    assert code(stage.ask(b"/nowhere")) == (429, "rate-limited")
    assert code(stage.ask(b"/api/v1/salesx")) == (429, "rate-limited")


def test_ipv6_clients_share_the_budget_of_their_64_and_proxied_ones_have_their_own():
    stage = Stage()
    for peer in ("2001:db8::1", "2001:db8::ffff:1"):
        stage.client(request(b"GET", SALES), peer=peer)
    stage.client(
        request(b"GET", SALES, b"X-Forwarded-For: 203.0.113.7"), peer="10.0.0.1", trusted=(ip_network("10.0.0.0/8"),)
    )
    assert stage.store.spent == ["default:addr:2001:db8::/64"] * 2 + ["default:addr:203.0.113.7"]


def test_a_client_cannot_choose_its_budget():
    stage = Stage()
    stage.ask(SALES, b"X-Forwarded-For: 9.9.9.9", b"X-User-Id: x", b"X-Tenant-ID: y", b"User-Agent: z", token=b"bad")
    assert stage.store.spent == [ADDRESS]


@pytest.mark.parametrize(
    ("target", "method", "lines"),
    [
        (SALES, b"OPTIONS", (b"Origin: https://app.example", b"Access-Control-Request-Method: PUT")),
        (b"/nowhere", b"OPTIONS", (b"Origin: https://evil.example", b"Access-Control-Request-Method: PUT")),
        (b"/health", b"GET", ()),
        (b"/health", b"HEAD", ()),
        (b"*", b"OPTIONS", ()),
    ],
)
def test_preflights_and_health_spend_nothing(target, method, lines):
    stage = Stage()
    stage.store.down = True
    client = stage.client(request(method, target, *lines))
    assert client.wire.written.startswith((b"HTTP/1.1 200", b"HTTP/1.1 204"))
    assert stage.store.asked == []


def test_an_options_request_that_is_no_preflight_is_like_any_other():
    assert code(Stage().ask(SALES, method=b"OPTIONS")) == (401, "token-missing")


def test_a_routes_own_limit_takes_the_place_of_the_general_one():
    stage = Stage()
    answer = stage.ask(b"/api/v1/reports/x", token=b"good")
    assert stage.store.spent == ["reports:addr:192.0.2.1"]
    assert answer.headers[b"ratelimit-policy"] == [b'"reports";q=5;w=60']


def test_a_shadow_limit_refuses_nobody_and_is_noted():
    stage = Stage(general_limit=replace(GENERAL, shadow=True))
    stage.store.empty = {"default"}
    answer = stage.ask(SALES, token=b"good")
    assert answer.status == 200
    assert b"ratelimit" not in answer.headers
    assert stage.outcome.trace.limited == "default"


def test_all_that_a_request_asks_of_the_shared_state_is_asked_at_once():
    stage = Stage()
    stage.ask(SALES, b"X-Tenant-ID: t-other", token=b"good")
    (ask,) = stage.store.asked
    assert len(ask.buckets) == 1
    assert ask.tenants == ("t-own", "t-other")
    assert ask.digests == (USER.digest,)


def test_the_shared_state_is_told_whether_it_is_certain_who_asks():
    stage = Stage()
    for token in (b"good", b"good", b"bad", b""):
        stage.ask(SALES, token=token)
    assert [ask.verified for ask in stage.store.asked] == [False, True, False, False]


@pytest.mark.parametrize("token", [b"good", b"demo"])
@pytest.mark.parametrize("named", [b"t-else", b"a:b*", b""])
def test_nothing_is_asked_about_tenants_that_the_token_does_not_open(token, named):
    stage = Stage()
    for _ in range(2):
        assert stage.ask(SALES, b"X-Tenant-ID: " + named, token=token).status in (400, 403)
    own = stage.tokens.claims[token].tenant_id
    assert [ask.tenants for ask in stage.store.asked] == [(own,)] * 2


@pytest.mark.parametrize(
    ("target", "token"), [(b"/nowhere", b"good"), (b"/docs", b"good"), (SALES, b""), (SALES, b"x")]
)
def test_no_revocation_is_asked_for_where_no_token_is_used_or_none_can_be_read(target, token):
    stage = Stage()
    stage.ask(target, token=token)
    assert stage.store.asked[0].digests == ()


# limit headers


@pytest.mark.parametrize(
    ("target", "token", "status"),
    [(SALES, b"good", 200), (SALES, b"", 401), (SALES, b"bad", 401), (b"/nowhere", b"", 404), (b"/docs", b"", 200)],
)
def test_every_limited_answer_tells_of_the_limit(target, token, status):
    answer = Stage().ask(target, token=token)
    assert answer.status == status
    assert answer.headers[b"ratelimit-policy"] == [b'"default";q=300;w=60']
    assert answer.headers[b"ratelimit"] == [b'"default";r=299;t=1']
    assert answer.headers[b"x-ratelimit-limit"] == [b"300"]
    assert answer.headers[b"x-ratelimit-remaining"] == [b"299"]
    assert answer.headers[b"x-ratelimit-reset"] == [b"1"]


def test_429_tells_when_to_come_back():
    stage = Stage()
    stage.store.empty = {"default"}
    answer = stage.ask(SALES, token=b"good")
    document = answer.problem()
    assert answer.status == 429
    assert answer.headers[b"retry-after"] == [b"2"]
    assert answer.headers[b"x-ratelimit-remaining"] == [b"0"]
    assert (document["retry_after"], document["limit"], document["window_seconds"]) == (2, 300, 60)
    assert stage.services.requests == []
    assert stage.outcome.trace.limited == "default"


def test_limits_that_cannot_be_asked_for_refuse_with_503():
    stage = Stage()
    stage.store.down = True
    answer = stage.ask(SALES, token=b"good")
    assert code(answer) == (503, "state-unavailable")
    assert answer.headers[b"retry-after"] == [b"2"]


# who


def test_tokens_are_refused_with_their_challenge():
    for token, refused, challenge in [
        (b"", "token-missing", b"Bearer"),
        (b"bad", "token-invalid", b'Bearer error="invalid_token"'),
        (b"expired", "token-expired", b'Bearer error="invalid_token"'),
    ]:
        stage = Stage()
        answer = stage.ask(SALES, token=token)
        assert code(answer) == (401, refused)
        assert answer.headers[b"www-authenticate"] == [challenge]
        assert stage.services.requests == []
        assert b"signature" not in answer.body


def test_a_public_route_reads_no_token():
    stage = Stage()
    assert stage.ask(b"/api/v1/auth/login", method=b"POST", token=b"bad").status == 200
    assert stage.notes.auth == []
    assert stage.store.asked[0].tenants == ()


@pytest.mark.parametrize("target", [b"/api/v1/auth/login/", b"/api/v1/auth/login.json", b"/api/v1/auth/loginx"])
def test_what_resembles_a_public_path_is_not_public(target):
    assert code(Stage().ask(target, method=b"POST")) == (401, "token-missing")


def test_a_route_that_takes_other_methods_says_which():
    answer = Stage().ask(b"/api/v1/orders/1", method=b"PATCH", token=b"good")
    assert code(answer) == (405, "method-not-allowed")
    assert answer.headers[b"allow"] == [b"DELETE, GET, POST"]


# which tenant


@pytest.mark.parametrize(
    ("target", "lines", "expected"),
    [
        (SALES, (), "t-own"),
        (SALES, (b"X-Tenant-ID: t-other",), "t-other"),
        (b"/api/v1/tenants/t-other/staff", (), "t-other"),
        (b"/api/v1/tenants/t-other/staff", (b"X-Tenant-ID: t-other",), "t-other"),
        (b"/api/v1/tenants/t-other/staff", (b"X-Tenant-ID: t-own",), (400, "tenant-ambiguous")),
        (SALES, (b"X-Tenant-ID: t-own", b"X-Tenant-ID: t-other"), (400, "tenant-ambiguous")),
        (SALES, (b"X-Tenant-ID: t-else",), (403, "tenant-forbidden")),
        (b"/api/v1/tenants/t-else/staff", (), (403, "tenant-forbidden")),
        (b"/api/v1/tenants/%74-own/staff", (), (400, "bad-request")),
    ],
)
def test_the_tenant_is_the_paths_then_the_headers_then_the_tokens(target, lines, expected):
    stage = Stage()
    answer = stage.ask(target, *lines, token=b"good")
    if isinstance(expected, str):
        assert dict(stage.forwarded.headers)[b"X-Tenant-Id"] == expected.encode()
        assert stage.outcome.trace.tenant_id == expected
    else:
        assert code(answer) == expected
        assert stage.services.requests == []


@pytest.mark.parametrize("known", [True, False])
def test_a_refusal_names_the_user_and_their_tenant_from_the_first_request_on(known):
    stage = Stage()
    stage.tokens.verified = {b"good"} if known else set()
    assert code(stage.ask(SALES, b"X-Tenant-ID: t-else", token=b"good")) == (403, "tenant-forbidden")
    assert (stage.outcome.trace.user_id, stage.outcome.trace.tenant_id) == (USER.user_id, USER.tenant_id)


def test_a_stale_token_is_refused_for_its_own_and_for_the_effective_tenant():
    for tenant in ("t-own", "t-other"):
        stage = Stage()
        stage.store.flags[tenant] = TenantFlags(changed_at=USER.iat + 0.5)
        assert code(stage.ask(SALES, b"X-Tenant-ID: t-other", token=b"good")) == (401, "token-stale")
        assert stage.notes.auth == ["token-stale"]
        assert stage.services.requests == []


def test_a_token_as_new_as_the_change_passes():
    stage = Stage()
    stage.store.flags["t-own"] = TenantFlags(changed_at=USER.iat)
    assert stage.ask(SALES, token=b"good").status == 200


# demo


@pytest.mark.parametrize(
    ("target", "lines", "method", "token", "expected"),
    [
        (SALES, (), b"GET", b"demo", 200),
        (SALES, (), b"POST", b"demo", 200),
        (SALES, (b"X-Tenant-ID: t-own",), b"GET", b"demo", 403),
        (SALES, (b"X-Tenant-ID: t-demo",), b"GET", b"good", 403),
        (b"/api/v1/tenants/t-demo", (), b"GET", b"demo", 200),
        (b"/api/v1/tenants/t-demo", (), b"DELETE", b"demo", 403),
        (b"/api/v1/tenants/t-demo/", (), b"DELETE", b"demo", 403),
        (b"/api/v1/tenants/t-demo/subscription", (), b"POST", b"demo", 403),
    ],
)
def test_demo_and_real_tenants_are_kept_apart(target, lines, method, token, expected):
    stage = Stage()
    stage.tokens.claims = {
        b"demo": DEMO,
        b"good": replace(USER, tenant_access=(replace(USER.tenant_access[0], tenant_id="t-demo"),)),
    }
    stage.store.flags = {"t-demo": TenantFlags(demo=True)}
    answer = stage.ask(target, *lines, method=method, token=token)
    assert answer.status == expected
    assert stage.notes.auth == ["ok"]
    if expected == 403:
        assert answer.problem()["code"] == "demo-isolation"
        assert stage.services.requests == []


# subscription


@pytest.mark.parametrize(
    ("subscription", "target", "expected"),
    [
        (PRO, SALES, 200),
        (replace(PRO, status="trialing"), SALES, 200),
        (replace(PRO, status="cancelled"), SALES, (402, "subscription-inactive")),
        (EXPIRED, SALES, (402, "subscription-expired")),
        (EXPIRED, b"/api/v1/tenants/t-own/subscription", 200),
        (EXPIRED, b"/api/v1/tenants/t-own/subscription/invoices", 200),
        (EXPIRED, b"/api/v1/tenants/t-own/subscriptions", (402, "subscription-expired")),
        (EXPIRED, b"/api/v1/auth/me", 200),
        (PRO, b"/api/v1/gold/x", (403, "tier-required")),
        (replace(PRO, tier="enterprise"), b"/api/v1/gold/x", 200),
    ],
)
def test_a_subscription_opens_what_it_pays_for(subscription, target, expected):
    stage = Stage()
    stage.tokens.claims[b"good"] = replace(USER, subscription=subscription)
    answer = stage.ask(target, token=b"good")
    if expected == 200:
        assert answer.status == 200
        assert b"x-subscription-grace" not in answer.headers
    else:
        assert code(answer) == expected
        assert stage.services.requests == []


@pytest.mark.parametrize("status", ["active", "past_due"])
def test_grace_is_told_with_its_end(status):
    stage = Stage()
    valid_until = NOW - DAY_S if status == "active" else NOW + DAY_S
    lapsed = Subscription(tier="professional", status=status, valid_until=valid_until)
    stage.tokens.claims[b"good"] = replace(USER, subscription=lapsed)
    answer = stage.ask(SALES, token=b"good")
    assert answer.status == 200
    end = b"2023-11-20T22:13:20Z" if status == "active" else b"2023-11-22T22:13:20Z"
    assert answer.headers[b"x-subscription-grace"] == [end]


def test_a_later_refusal_still_tells_of_the_grace():
    stage = Stage()
    stage.tokens.claims[b"good"] = replace(USER, subscription=replace(PRO, valid_until=NOW - DAY_S))
    stage.store.flags["t-own"] = TenantFlags(read_only=HOLD)
    answer = stage.ask(SALES, method=b"POST", token=b"good")
    assert code(answer) == (403, "tenant-read-only")
    assert b"x-subscription-grace" in answer.headers


# read-only


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        *((method, SALES, 200) for method in (b"GET", b"OPTIONS")),
        *((method, SALES, 403) for method in (b"POST", b"PUT", b"PATCH", b"DELETE")),
        (b"POST", b"/api/v1/tenants/t-own/subscription", 200),
        (b"POST", b"/api/v1/tenants/t-own/staff", 403),
        (b"POST", b"/api/v1/auth/logout", 200),
        (b"POST", b"/api/v1/geocode", 200),
    ],
)
def test_read_only_tenants_are_read(method, target, status):
    stage = Stage()
    stage.store.flags["t-own"] = TenantFlags(read_only=HOLD)
    answer = stage.ask(target, method=method, token=b"good")
    assert answer.status == status
    if status == 403:
        document = answer.problem()
        assert document["code"] == "tenant-read-only"
        assert document["read_only_until"] == "2026-01-01T00:00:00Z"
        assert document["read_only_reason"] == "unpaid"


def test_no_override_makes_a_write_a_read_or_a_read_a_write():
    stage = Stage()
    stage.store.flags["t-own"] = TenantFlags(read_only=HOLD)
    override = b"X-HTTP-Method-Override: "
    assert stage.ask(SALES + b"?_method=GET", override + b"GET", method=b"POST", token=b"good").status == 403
    assert stage.ask(SALES + b"?_method=DELETE", override + b"DELETE", token=b"good").status == 200


@pytest.mark.parametrize("target", [SALES, b"/api/v1/auth/me", b"/api/v1/geocode"])
def test_a_revoked_token_is_refused_known_or_not(target):
    stage = Stage()
    stage.store.revoked[USER.digest] = True
    for _ in range(2):
        answer = stage.ask(target, token=b"good")
        assert code(answer) == (401, "token-revoked")
        assert answer.headers[b"www-authenticate"] == [b'Bearer error="invalid_token"']
    assert stage.notes.auth == ["token-revoked"] * 2
    assert stage.services.requests == []
    assert stage.ask(SALES, token=b"demo").status == 200


@pytest.mark.parametrize("method", [b"GET", b"POST", b"PUT", b"PATCH", b"DELETE"])
def test_while_it_is_unknown_whether_a_token_is_revoked_reads_pass_and_writes_do_not(method):
    stage = Stage()
    stage.store.revoked[USER.digest] = None
    answer = stage.ask(SALES, method=method, token=b"good")
    if method == b"GET":
        assert answer.status == 200
    else:
        assert code(answer) == (503, "state-unavailable")
        assert stage.outcome.trace.cause == "revocation"
        assert stage.services.requests == []


@pytest.mark.parametrize("tenant", ["t-own", "t-other"])
@pytest.mark.parametrize("method", [b"GET", b"POST", b"PUT", b"PATCH", b"DELETE"])
def test_without_known_flags_reads_pass_and_writes_do_not(tenant, method):
    stage = Stage()
    stage.store.flags[tenant] = None
    answer = stage.ask(SALES, b"X-Tenant-ID: t-other", method=method, token=b"good")
    if method == b"GET":
        assert answer.status == 200
    else:
        assert code(answer) == (503, "state-unavailable")
        assert answer.headers[b"retry-after"] == [b"2"]
        assert stage.services.requests == []


def test_the_limit_rule_of_a_request_is_the_one_it_began_with():
    stage = Stage()
    stage.gateway.policies = replace(stage.policies, general_limit=LimitRule(name="new", requests=1, window_s=1))
    stage.ask(SALES, token=b"good")
    assert stage.store.spent == ["new:addr:192.0.2.1"]
