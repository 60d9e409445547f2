"""API keys on the public port: the same decisions in the same order, and those that only keys meet."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from bakerygw.core.api_keys import key_id_from, spelt
from bakerygw.core.claims import MAX_UNIX_S, Claims
from bakerygw.core.key_terms import KeyTerms
from bakerygw.core.limits import LimitRule
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.edge.credentials.keys import USED_EVERY_S
from bakerygw.ports import LookupFailed, StoreUnavailable, TokenRefused
from tests.edge.edge_fakes import request
from tests.edge.port_fakes import DEMO, NOW, PRO, STRICT, USER, Stage, TokenTable

SALES = b"/api/v1/sales/today"
KEY_ID = key_id_from(b"0123456789")
KEY = spelt(KEY_ID, bytes(range(32)))
TERMS = KeyTerms(key_id=KEY_ID, paths=None, methods=None, networks=None, limit=None)
OWN = LimitRule(name="key", requests=7, window_s=60)
TILL = Claims(
    user_id=f"key-{KEY_ID}", email=None, tenant_id="t-own", role="pos", subscription=PRO, tenant_access=(),
    exp=MAX_UNIX_S, iat=MAX_UNIX_S, nbf=None, is_demo=False, demo_session_id=None, jti=None, digest="digest-key",
    key=TERMS,
)  # fmt: skip
CHALLENGE = [b'ApiKey error="invalid_token"']


class KeyTable(TokenTable):
    """`Credentials` of one key, which tells nothing of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.claims = {KEY: TILL}
        self.failure: Exception | None = None
        self.asked = 0
        self.aged = False
        """What was verified has to be read again."""

    def known(self, token: bytes) -> Claims | None:
        return None if self.aged else super().known(token)

    def peek(self, token: bytes) -> Claims | None:
        return super().known(token)

    async def verify(self, token: bytes) -> Claims:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return await super().verify(token)


class KeyStage(Stage):
    """A stage that takes keys; `ask` sends one."""

    def __init__(self, terms: KeyTerms = TERMS, *, known: bool = True, **claims) -> None:
        super().__init__()
        self.keys = KeyTable()
        self.keys.claims = {KEY: replace(TILL, key=terms, **claims)}
        self.keys.verified = {KEY} if known else set()
        self.gateway.policies = replace(self.policies, credentials={"bearer": self.tokens, "key": self.keys})

    def ask(self, target=SALES, *lines, method=b"GET", body=b"", key=KEY, peer="192.0.2.1"):
        own = (b"Authorization: ApiKey " + key,)
        return self.client(request(method, target, *own, *lines, body=body), peer=peer).only()


def code(answer) -> tuple[int, str]:
    return answer.status, answer.problem()["code"]


def test_a_key_reaches_the_service_as_its_user_with_role_and_tenant_and_stays_here():
    stage = KeyStage()
    assert stage.ask().status == 200
    sent = dict(stage.forwarded.headers)
    assert (sent[b"X-User-Id"], sent[b"X-User-Role"]) == (f"key-{KEY_ID}".encode(), b"pos")
    assert (sent[b"X-Tenant-Id"], sent[b"X-Is-Demo"]) == (b"t-own", b"false")
    assert not {b"Authorization", b"X-User-Email"} & set(sent)
    assert KEY not in repr(stage.forwarded).encode()
    assert (stage.outcome.trace.user_id, stage.outcome.trace.tenant_id) == (f"key-{KEY_ID}", "t-own")
    assert (stage.notes.auth, stage.desk.attempts) == (["ok"], ["ok"])


@pytest.mark.parametrize("scheme", [b"ApiKey", b"apikey", b"APIKEY"])
def test_the_scheme_has_no_case(scheme):
    stage = KeyStage()
    assert stage.client(request(b"GET", SALES, b"Authorization: " + scheme + b" " + KEY)).only().status == 200


@pytest.mark.parametrize(
    "lines",
    [
        (b"Authorization: ApiKey",),
        (b"Authorization: ApiKey  " + KEY,),
        (b"Authorization: ApiKey\t" + KEY,),
        (b"Authorization: ApiKey " + KEY, b"Authorization: ApiKey " + KEY),
        (b"Authorization: ApiKey " + KEY, b"Authorization: Bearer good"),
        (b"Authorization: Bearer good", b"Authorization: ApiKey " + KEY),
        (b"Authorization: ApiKeys " + KEY,),
        (b"Authorization: " + KEY,),
        (b"Authorization: Bearer " + KEY,),
    ],
)
def test_a_key_in_any_other_form_is_refused_and_spends_the_addresss_budget(lines):
    stage = KeyStage()
    stage.tokens.verified = {b"good"}
    answer = stage.client(request(b"GET", SALES, *lines)).only()
    assert code(answer) == (401, "token-invalid")
    assert stage.store.spent == ["default:addr:192.0.2.1"]
    assert KEY not in answer.body
    assert stage.services.requests == []


@pytest.mark.parametrize("line", [b"X-Api-Key: " + KEY, b"Cookie: key=" + KEY])
def test_a_key_that_is_sent_elsewhere_is_no_credential(line):
    assert code(KeyStage().client(request(b"GET", SALES, line)).only()) == (401, "token-missing")


def test_a_key_sent_as_a_token_is_told_where_it_belongs():
    answer = KeyStage().client(request(b"GET", SALES, b"Authorization: Bearer " + KEY)).only()
    assert "Authorization: ApiKey" in answer.problem()["detail"]


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (TokenRefused("token-invalid", "key-unknown"), "no API key that is known"),
        (TokenRefused("token-invalid", "key-wrong-secret"), "no API key that is known"),
        (TokenRefused("token-invalid", "key-form"), "copy it again"),
        (TokenRefused("token-expired", "key-expired"), "has expired"),
        (TokenRefused("token-revoked", "key-replaced"), "replaced by a newer one"),
        (TokenRefused("token-revoked", "key-revoked"), "revoked"),
    ],
)
def test_a_bad_key_is_refused_in_words_about_keys_and_audited(refused, words):
    stage = KeyStage(known=False)
    stage.keys.failure = refused
    answer = stage.ask()
    assert code(answer) == (401, refused.code)
    assert words in answer.problem()["detail"]
    assert "sign in" not in answer.problem()["detail"]
    assert answer.headers[b"www-authenticate"] == CHALLENGE
    assert stage.store.spent == ["default:addr:192.0.2.1"]
    told = {"client": "192.0.2.1", "code": refused.code, "reason": refused.reason}
    assert stage.desk.audited == [("key.refused", {"key_id": KEY_ID, **told})]
    assert (stage.notes.auth, stage.desk.attempts) == ([refused.code], [refused.code])


def test_bad_keys_are_asked_for_only_while_their_address_has_a_budget():
    stage = KeyStage(known=False)
    stage.store.empty = {"default"}
    assert code(stage.ask()) == (429, "rate-limited")
    assert stage.keys.asked == 0


def test_a_key_that_cannot_be_looked_up_is_not_called_bad():
    stage = KeyStage(known=False)
    stage.keys.failure = StoreUnavailable("gone")
    answer = stage.ask()
    assert (code(answer), answer.headers[b"retry-after"]) == ((503, "state-unavailable"), [b"2"])
    assert stage.desk.audited == []


def test_a_revoked_key_is_refused_at_once_although_it_is_remembered():
    stage = KeyStage()
    stage.store.revoked = {TILL.digest: True}
    answer = stage.ask()
    assert code(answer) == (401, "token-revoked")
    assert answer.headers[b"www-authenticate"] == CHALLENGE
    assert "sign in" not in answer.problem()["detail"]
    assert stage.desk.audited[0][1]["code"] == "token-revoked"


def test_all_about_a_key_seen_for_the_first_time_is_asked_once_it_is_verified():
    stage = KeyStage(known=False)
    stage.store.flags = {"t-own": TenantFlags(read_only=ReadOnly(reason="x"))}
    assert code(stage.ask(method=b"POST")) == (403, "tenant-read-only")
    first, second = stage.store.asked
    assert (first.tenants, first.digests, first.verified) == ((), (), False)
    assert (second.tenants, second.digests, second.buckets) == (("t-own",), (TILL.digest,), ())
    stage.store.asked.clear()
    stage.ask()
    assert len(stage.store.asked) == 1


def test_a_key_has_a_bucket_of_its_own():
    stage = KeyStage()
    stage.ask()
    stage.ask(b"/api/v1/reports/x")
    assert stage.store.spent == [f"default:key:{KEY_ID}", f"reports:key:{KEY_ID}"]


def test_a_key_that_is_read_again_spends_its_own_bucket_and_asks_all_at_once():
    stage = KeyStage()
    stage.keys.aged = True
    assert stage.ask(method=b"POST").status == 200
    (ask,) = stage.store.asked
    assert [bucket.key for bucket in ask.buckets] == [f"default:key:{KEY_ID}"]
    assert (ask.tenants, ask.digests, ask.verified) == (("t-own",), (TILL.digest,), True)
    assert stage.keys.asked == 1


def test_a_keys_own_limit_stands_for_the_general_one_and_beside_that_of_a_route():
    stage = KeyStage(replace(TERMS, limit=OWN))
    answer = stage.ask()
    assert answer.headers[b"ratelimit-policy"] == [b'"key";q=7;w=60']
    stage.ask(b"/api/v1/reports/x")
    assert stage.store.spent == [f"key:{KEY_ID}", f"key:{KEY_ID}", f"reports:key:{KEY_ID}"]
    stage.store.empty = {"key"}
    answer = stage.ask()
    assert (code(answer), answer.problem()["limit"]) == ((429, "rate-limited"), 7)


def test_whoever_has_found_a_key_spends_their_addresss_budget_and_learns_nothing():
    stage = KeyStage(replace(TERMS, networks=(ip_network("198.51.100.0/24"),), paths=(b"/api/v1/orders",), limit=OWN))
    answer = stage.ask()
    assert code(answer) == (403, "tenant-forbidden")
    assert "192.0.2.1" in answer.problem()["detail"]
    assert b"orders" not in answer.body
    assert b"198.51" not in answer.body
    assert stage.store.spent == ["default:addr:192.0.2.1"]
    stage.keys.aged = True
    stage.ask()
    assert stage.store.spent == ["default:addr:192.0.2.1"] * 2
    stage.ask(peer="198.51.100.9")
    assert stage.store.spent[2:] == [f"key:{KEY_ID}"]


def test_the_address_is_the_one_that_a_trusted_proxy_vouches_for():
    stage = KeyStage(replace(TERMS, networks=(ip_network("198.51.100.0/24"),)))
    data = request(b"GET", SALES, b"Authorization: ApiKey " + KEY, b"X-Forwarded-For: 198.51.100.9")
    assert stage.client(data, peer="10.0.0.1", trusted=(ip_network("10.0.0.0/8"),)).only().status == 200
    assert code(stage.client(data, peer="10.0.0.1").only()) == (403, "tenant-forbidden")


@pytest.mark.parametrize(
    ("terms", "method", "target"),
    [
        (replace(TERMS, paths=(b"/api/v1/orders",)), b"GET", SALES),
        (replace(TERMS, methods=frozenset({"GET"})), b"POST", SALES),
        (TERMS, b"DELETE", b"/api/v1/tenants/t-own"),
        (TERMS, b"POST", b"/api/v1/tenants/t-own/subscription"),
        (TERMS, b"GET", b"/api/v1/tenants/t-other/x"),
    ],
)
def test_what_a_key_is_not_for_is_refused_audited_and_not_forwarded(terms, method, target):
    stage = KeyStage(terms)
    answer = stage.ask(target, method=method)
    assert code(answer) == (403, "tenant-forbidden")
    assert "sign in again" not in answer.problem()["detail"]
    assert stage.services.requests == []
    ((event, told),) = stage.desk.audited
    assert (event, told["key_id"], told["tenant_id"], told["code"]) == (
        "key.refused",
        KEY_ID,
        "t-own",
        "tenant-forbidden",
    )
    assert all(told.values())  # what is not known is left out
    assert (stage.notes.auth, stage.desk.attempts) == (["ok"], ["tenant-forbidden"])


@pytest.mark.parametrize("lines", [(b"X-Tenant-ID: t-other",), (b"X-Tenant-ID: t-own", b"X-Tenant-ID: t-other")])
def test_a_key_opens_no_other_tenant_by_header(lines):
    assert KeyStage().ask(SALES, *lines).status in (400, 403)


def test_the_subscription_of_a_keys_tenant_is_looked_up_once_without_any_token():
    stage = KeyStage(subscription=None)
    stage.answers.subscriptions["t-own"] = PRO
    for _ in range(3):
        assert stage.ask().status == 200
    assert stage.answers.asked == [("subscription", "t-own", False)]
    told = dict(stage.answers.headers[0])
    assert (told[b"X-User-Id"], told[b"X-Tenant-Id"]) == (f"key-{KEY_ID}".encode(), b"t-own")
    assert b"Authorization" not in told
    assert dict(stage.services.requests[-1][1].headers)[b"X-Subscription-Tier"] == b"professional"


@pytest.mark.parametrize("kind", ["timeout", "unauthorized", "forbidden"])
def test_a_machine_whose_tenant_cannot_be_looked_up_is_told_nothing_of_tokens(kind):
    stage = KeyStage(subscription=None)
    stage.answers.subscriptions["t-own"] = LookupFailed(kind, "test")
    answer = stage.ask()
    assert code(answer) == (503, "critical-check-unavailable")
    assert "token" not in answer.problem()["detail"]
    assert "sign in" not in answer.problem()["detail"]


def test_a_tenant_that_has_become_a_demo_is_closed_to_its_keys():
    stage = KeyStage()
    stage.store.flags = {"t-own": TenantFlags(demo=True)}
    assert code(stage.ask()) == (403, "demo-isolation")
    assert stage.desk.audited[0][1]["code"] == "demo-isolation"


def test_a_key_does_not_go_stale():
    stage = KeyStage()
    stage.store.flags = {"t-own": TenantFlags(changed_at=NOW + 1000)}
    assert stage.ask().status == 200


@pytest.mark.parametrize("unknown", ["flags", "revoked"])
def test_a_key_writes_nothing_while_its_tenants_state_is_unknown(unknown):
    stage = KeyStage()
    stage.store.flags = {"t-own": None} if unknown == "flags" else {}
    stage.store.revoked = {TILL.digest: None} if unknown == "revoked" else {}
    assert stage.ask().status == 200
    assert code(stage.ask(method=b"POST")) == (503, "state-unavailable")


def test_on_a_public_route_a_key_is_neither_looked_at_nor_passed_on():
    stage = KeyStage()
    stage.ask(b"/api/v1/auth/login", method=b"POST")
    assert stage.store.spent == ["default:addr:192.0.2.1", f"{STRICT.name}:addr:192.0.2.1"]
    assert KEY not in repr(stage.forwarded).encode()
    assert stage.desk.audited == []


def test_the_use_of_a_key_is_audited_once_a_minute_for_each_address_and_noted_once_a_minute():
    stage = KeyStage()
    for peer in ("192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.2"):
        stage.ask(peer=peer)
    used = {"key_id": KEY_ID, "tenant_id": "t-own"}
    assert stage.desk.audited == [("key.used", {**used, "client": f"192.0.2.{end}"}) for end in (1, 2)]
    assert stage.desk.uses == [(KEY_ID, NOW)]
    stage.desk.now += USED_EVERY_S
    stage.ask()
    assert len(stage.desk.audited) == 3
    assert stage.desk.uses[1:] == [(KEY_ID, NOW + USED_EVERY_S)]
    stage.desk.now -= 1000  # a clock that was set back silences nobody
    stage.ask()
    assert len(stage.desk.audited) == 4


def test_a_use_that_cannot_be_noted_disturbs_nobody():
    stage = KeyStage()
    stage.desk.deaf = True
    assert stage.ask().status == 200


def test_other_callers_are_no_concern_of_the_desk():
    stage = KeyStage()
    stage.tokens.verified = {b"good", b"demo"}
    for token in (b"good", b"demo", b"bad", b"expired"):
        stage.client(request(b"GET", SALES, b"Authorization: Bearer " + token))
    assert (stage.desk.audited, stage.desk.attempts, stage.desk.uses) == ([], [], [])
    assert (USER.key, DEMO.key) == (None, None)


def test_without_keys_among_what_is_accepted_the_scheme_is_refused():
    stage = Stage()
    answer = stage.client(request(b"GET", SALES, b"Authorization: ApiKey " + KEY)).only()
    assert code(answer) == (401, "token-invalid")
