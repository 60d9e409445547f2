"""Cookie sessions of browsers: what the browser gets, what stays here, and who may use it."""

import json
from dataclasses import replace
from hashlib import sha256

import pytest
from twisted.internet.defer import Deferred

from bakerygw.core.claims import TenantAccess
from bakerygw.core.refresh_tokens import OPAQUE_S, refresh_token
from bakerygw.core.sessions import Session, Tokens
from bakerygw.core.tenancy import TenantFlags
from bakerygw.edge.signin.sessions import IDLE_S
from bakerygw.ports import UpstreamFailed
from tests.deferreds import success_of
from tests.edge.edge_fakes import Source, request
from tests.edge.port_fakes import NOW, USER, response
from tests.edge.signing_fakes import (
    CONTENT,
    JSON,
    LEEWAY_S,
    LOGIN,
    LOGOUT,
    REFRESH,
    SECRET,
    SESSION,
    SIGNED_IN,
    SigningStage,
)

SALES = b"/api/v1/sales/today"
NEW_SECRET = "n" * 32
LATER = replace(USER, exp=NOW + 5000, iat=NOW + 800, digest="digest-next")
RENEWED = b'{"access_token": "next", "refresh_token": "r-2"}'


def stage_of(other=None):
    stage = SigningStage().with_sessions(other)
    stage.tokens.claims[b"next"] = LATER
    return stage


def code(answer):
    return answer.status, answer.problem()["code"]


def sent_headers(stage):
    _, sent = stage.services.requests[-1]
    return [(name.lower(), value) for name, value in sent.headers]


def digest_of(browser):
    return sha256(browser.cookie.partition(b"=")[2]).hexdigest()


# signing in


def test_the_tokens_stay_here_and_the_browser_gets_a_cookie():
    browser = stage_of().sign_in()
    document = json.loads(browser.told.body)
    assert document == {"token_type": "bearer", "user": {"name": "Ana"}, "csrf_token": browser.csrf.decode()}
    (cookie,) = browser.told.headers[b"set-cookie"]
    assert cookie.startswith(b"__Host-bakery-session=")
    assert cookie.endswith(b"; Path=/; Secure; HttpOnly; SameSite=Lax")
    assert len(browser.cookie.partition(b"=")[2]) == 43
    assert browser.told.headers[b"cache-control"] == [b"no-store"]
    assert browser.told.headers[b"content-type"] == [b"application/json"]


def test_no_token_leaks_by_another_way():
    stage = stage_of()
    body = json.dumps(
        {
            "access_token": "good", "refresh_token": "r-1", "id_token": "x", "tokens": {"a": 1}, "data": ["r-1", "ok"],
            "nested": {"jwt": "y", "url": "https://x.example/?t=good", "kept": 1},
        }
    ).encode()  # fmt: skip
    fields = (CONTENT, (b"Set-Cookie", b"refresh_token=r-1"), (b"X-Auth", b"good"), (b"Cache-Control", b"public"),
              (b"ETag", b'"1"'), (b"X-Kept", b"1"))  # fmt: skip
    stage.services.response = response(200, fields, body)
    answer = stage.ask(LOGIN, JSON, method=b"POST", body=b"{}")
    assert json.loads(answer.body).keys() == {"data", "nested", "csrf_token"}
    assert json.loads(answer.body)["nested"] == {"kept": 1}
    assert json.loads(answer.body)["data"] == ["ok"]
    assert len(answer.headers[b"set-cookie"]) == 1
    assert b"x-auth" not in answer.headers
    assert b"etag" not in answer.headers
    assert answer.headers[b"x-kept"] == [b"1"]


def test_who_reads_the_shared_state_finds_neither_token_nor_session():
    stage = stage_of()
    browser = stage.sign_in()
    (key,) = [name for name in stage.records._values if name.startswith("session:")]
    value = stage.records._values[key][0]
    assert key == "session:" + digest_of(browser)
    assert b"good" not in value
    assert b"r-1" not in value


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b'{"detail": "no"}'),
        (200, b'{"mfa_required": true}'),
        (200, b'{"access_token": "bad", "refresh_token": "r-1"}'),
        (200, b'{"access_token": "good", "refresh_token": 7}'),
        (200, b'{"access_token": "good", "access_token": "good"}'),
        (200, b'["access_token"]'),
        (204, b""),
        (200, b"\x1f\x8b\x00"),
    ],
)
def test_any_other_answer_passes_as_it_is(status, body):
    stage = stage_of()
    stage.services.response = response(status, (CONTENT, (b"Set-Cookie", b"a=1")), body)
    answer = stage.ask(LOGIN, JSON, method=b"POST", body=b"{}")
    assert (answer.status, answer.body) == (status, body)
    assert answer.headers[b"set-cookie"] == [b"a=1"]


def test_an_answer_that_is_cut_makes_no_session():
    stage = stage_of()
    source = Source(length=100)
    stage.services.response = response(200, (CONTENT,), source)
    client = stage.client(request(b"POST", LOGIN, JSON, body=b"{}"))
    source.sink.write(SIGNED_IN)
    source.sink.cut("upstream closed early")
    assert code(client.only()) == (502, "upstream-invalid")
    assert stage.records._values == {}


@pytest.mark.parametrize("length", [70_000, None])
def test_tokens_in_an_answer_that_is_too_long_do_not_reach_the_page(length):
    stage = stage_of()
    source = Source(length=length)
    stage.services.response = response(200, (CONTENT,), source)
    client = stage.client(request(b"POST", LOGIN, JSON, body=b"{}"))
    source.sink.write(SIGNED_IN[:-1] + b', "x": "' + b"x" * (70_000 - len(SIGNED_IN) - 8) + b'"}')
    assert code(client.only()) == (502, "upstream-invalid")


def test_the_service_is_asked_for_an_answer_that_can_be_read():
    stage = stage_of()
    stage.sign_in(b"Accept-Encoding: gzip, br")
    assert b"accept-encoding" not in dict(sent_headers(stage))


def test_a_sign_in_that_can_not_be_kept_says_so():
    stage = stage_of()
    stage.records.left = 0
    answer = stage.sign_in().told
    assert code(answer) == (503, "state-unavailable")
    assert b"set-cookie" not in answer.headers


def test_a_new_sign_in_takes_the_place_of_the_old_session():
    stage = stage_of()
    old = stage.sign_in()
    new = stage.sign_in(b"Cookie: " + old.cookie)
    assert new.cookie != old.cookie
    assert new.ask(SALES).status == 200
    assert old.ask(SALES).status == 401
    assert [key for key in stage.records._values if key.startswith("session:")] == ["session:" + digest_of(new)]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((b"Sec-Fetch-Site: cross-site",), "csrf"),
        ((b"Origin: https://evil.example",), "origin-forbidden"),
        ((b"Origin: null",), "origin-forbidden"),
    ],
)
def test_no_page_of_another_site_signs_a_user_in(lines, expected):
    stage = stage_of()
    answer = stage.sign_in(*lines).told
    assert code(answer) == (403, expected)
    assert stage.services.requests == []


# using it


def test_the_service_learns_who_asks_and_gets_the_token_but_not_the_cookie():
    stage = stage_of()
    assert stage.sign_in().ask(SALES).status == 200
    sent = sent_headers(stage)
    assert [value for name, value in sent if name == b"authorization"] == [b"Bearer good"]
    assert [value for name, value in sent if name == b"cookie"] == [b"a=1"]
    assert dict(sent)[b"x-user-id"] == b"user-1"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ((), b"private"),
        ((b"public, max-age=60",), b"max-age=60, private"),
        ((b"max-age=60", b"S-MaxAge=600"), b"max-age=60, private"),
        ((b"Private, max-age=9",), b"Private, max-age=9"),
        ((b"no-store",), b"no-store"),
    ],
)
def test_no_shared_cache_keeps_what_a_session_was_told(said, told):
    stage = stage_of()
    browser = stage.sign_in()
    fields = [(b"Cache-Control", value) for value in said]
    stage.services.response = response(200, [*fields, (b"Surrogate-Control", b"max-age=9")])
    answer = browser.ask(SALES)
    assert answer.headers[b"cache-control"] == [told]
    assert b"surrogate-control" not in answer.headers
    assert answer.headers[b"vary"] == [b"Cookie", b"Origin"]
    bearer = stage.ask(SALES, token=b"good")
    assert bearer.headers.get(b"cache-control", []) == list(said)
    assert bearer.headers[b"vary"] == [b"Origin"]


def test_other_services_are_asked_about_its_user_with_the_token_behind_it():
    stage = stage_of()
    stage.tokens.claims[b"good"] = replace(USER, subscription=None)
    assert stage.sign_in().ask(SALES).status == 200
    assert (b"Authorization", b"Bearer good") in stage.answers.headers[0]


def test_another_instance_knows_it_too():
    here = stage_of()
    there = stage_of(here)
    assert here.sign_in().ask(SALES, stage=there).status == 200


def test_a_known_session_costs_no_look_up():
    stage = stage_of()
    browser = stage.sign_in()
    browser.ask(SALES)
    stage.records.left = 0
    assert browser.ask(SALES).status == 200
    assert stage.store.spent[-1] == "default:user:user-1"
    assert stage.store.asked[-1].digests == (digest_of(browser),)


def test_a_session_is_not_known_longer_than_the_token_behind_it():
    stage = stage_of()
    browser = stage.sign_in()
    assert browser.ask(SALES).status == 200
    stage.tokens.verified.discard(b"good")  # as when its key was taken away
    del stage.tokens.claims[b"good"]
    stage.services.response = response(401)
    assert code(browser.ask(SALES)) == (401, "token-expired")


def is_known_for(seconds, stage, session_id):
    stage.pass_s(seconds - 1)
    assert stage.sessions.known(session_id) is not None
    stage.pass_s(1)
    assert stage.sessions.known(session_id) is None


@pytest.mark.parametrize("ahead_s", [-86_400, 600])
def test_a_wall_clock_that_is_set_changes_nothing_of_how_long_a_session_is_known(ahead_s):
    stage = stage_of()
    browser = stage.sign_in()
    session_id = browser.cookie.partition(b"=")[2]
    assert browser.ask(SALES).status == 200
    stage.set_clock(ahead_s)
    is_known_for(900, stage, session_id)


def test_a_wall_clock_that_is_set_back_keeps_no_session_known_beyond_the_token_behind_it():
    stage = stage_of()
    stage.tokens.claims[b"good"] = replace(USER, exp=NOW + 60)
    browser = stage.sign_in()
    session_id = browser.cookie.partition(b"=")[2]
    assert browser.ask(SALES).status == 200
    stage.set_clock(-3600)
    is_known_for(60, stage, session_id)


def test_a_session_tells_what_its_token_was_checked_with_and_what_its_record_is_sealed_with():
    stage = stage_of()
    stage.tokens.claims[b"good"] = replace(USER, signer=b"old key")
    stage.tokens.claims[b"next"] = replace(LATER, signer=b"new key")
    browser = stage.sign_in()
    session_id = browser.cookie.partition(b"=")[2]
    assert browser.ask(SALES).status == 200
    changing = SigningStage().with_sessions(stage, secrets=(NEW_SECRET, SECRET))
    changed = SigningStage().with_sessions(stage, secrets=(NEW_SECRET,))

    signer = stage.sessions.known(session_id).signer
    assert signer in stage.sessions.signers({b"old key"})
    assert signer in changing.sessions.signers({b"old key", b"new key"})
    assert signer not in changing.sessions.signers({b"new key"})
    assert signer not in changed.sessions.signers({b"old key"})
    assert signer not in SigningStage().with_sessions(stage, secrets=()).sessions.signers({b"old key"})

    changing.tokens.claims |= stage.tokens.claims
    stage.services.response = response(200, (CONTENT,), RENEWED)
    claims = success_of(Deferred.fromCoroutine(changing.sessions.renew(session_id)))
    assert claims.signer in changed.sessions.signers({b"new key"})


def test_an_authorization_header_hides_the_cookie():
    stage = stage_of()
    browser = stage.sign_in()
    assert browser.ask(SALES, token=b"demo").status == 200
    assert dict(sent_headers(stage))[b"x-user-id"] == b"demo-1"
    assert code(browser.ask(SALES, token=b"wrong")) == (401, "token-invalid")


@pytest.mark.parametrize("value", [b"", b"x", b"A" * 43, b"A" * 42 + b"!", b"A" * 5000])
def test_a_cookie_that_is_no_session_is_refused_and_taken_away(value):
    answer = stage_of().ask(SALES, b"Cookie: __Host-bakery-session=" + value)
    assert code(answer) == (401, "token-invalid")
    assert b"Max-Age=0" in answer.headers[b"set-cookie"][0]


def test_two_cookies_are_none():
    stage = stage_of()
    browser = stage.sign_in()
    answer = browser.ask(SALES, b"Cookie: __Host-bakery-session=" + b"A" * 43)
    assert code(answer) == (401, "token-invalid")


def test_without_a_cookie_it_is_as_without_sessions():
    assert code(stage_of().ask(SALES)) == (401, "token-missing")
    assert stage_of().ask(SALES, token=b"good").status == 200


def test_where_sessions_are_off_cookies_and_sign_ins_are_as_ever():
    stage = SigningStage()
    stage.services.response = response(200, (CONTENT,), SIGNED_IN)
    answer = stage.ask(LOGIN, JSON, method=b"POST", body=b"{}")
    assert (answer.body, b"set-cookie" in answer.headers) == (SIGNED_IN, False)
    assert code(stage.ask(SALES, b"Cookie: __Host-bakery-session=" + b"A" * 43)) == (401, "token-missing")


def test_without_the_shared_state_an_unknown_session_can_not_be_judged():
    here = stage_of()
    there = stage_of(here)
    browser = here.sign_in()
    here.records.left = 0
    assert code(browser.ask(SALES, stage=there)) == (503, "state-unavailable")


@pytest.mark.parametrize("value", [b"", b"x", b"\x01" + b"x" * 40, b"\x02" * 100, b"\x01" * 100_000])
def test_a_record_that_was_tampered_with_is_no_session(value):
    stage = stage_of()
    browser = stage.sign_in()
    stage.records._put("session:" + digest_of(browser), value, None)
    assert code(browser.ask(SALES)) == (401, "token-invalid")


def test_the_record_of_one_session_is_good_for_no_other():
    stage = stage_of()
    mine, yours = stage.sign_in(), stage.sign_in()
    stage.records._put("session:" + digest_of(mine), stage.records._values["session:" + digest_of(yours)][0], None)
    assert code(mine.ask(SALES)) == (401, "token-invalid")


def test_a_session_that_is_not_used_ends():
    stage = stage_of()
    browser = stage.sign_in()
    assert stage.records.puts["session:" + digest_of(browser)] == IDLE_S


# writing


def test_a_write_needs_the_token_of_its_session():
    stage = stage_of()
    browser, other = stage.sign_in(), stage.sign_in()
    assert browser.write(SALES).status == 200
    for lines in ((), (b"X-CSRF-Token: ",), (b"X-CSRF-Token: " + other.csrf,), (b"X-CSRF-Token: \xff",),
                  (b"X-CSRF-Token: " + browser.csrf, b"X-CSRF-Token: " + browser.csrf)):  # fmt: skip
        for method in (b"POST", b"PUT", b"PATCH", b"DELETE"):
            assert code(browser.ask(SALES, *lines, method=method)) == (403, "csrf")
    assert len(stage.services.requests) == 3


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((b"Sec-Fetch-Site: cross-site",), "csrf"),
        ((b"Sec-Fetch-Site: cross-site", b"Origin: https://app.example"), "csrf"),
        ((b"Origin: https://evil.example",), "origin-forbidden"),
        ((b"Origin: https://app.example.evil.example",), "origin-forbidden"),
        ((b"Origin: null",), "origin-forbidden"),
        ((b"Origin: http://bakery.example", b"Origin: https://evil.example"), "origin-forbidden"),
    ],
)
def test_a_write_from_a_page_of_another_site_is_refused_even_with_the_token(lines, expected):
    stage = stage_of()
    assert code(stage.sign_in().write(SALES, *lines)) == (403, expected)


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (b"Sec-Fetch-Site: same-origin", b"Origin: http://bakery.example"),
        (b"Sec-Fetch-Site: same-site", b"Origin: https://app.example"),
    ],
)
def test_a_write_from_a_page_of_this_site_passes(lines):
    assert stage_of().sign_in().write(SALES, *lines).status == 200


def test_a_bearer_token_needs_no_other_proof():
    stage = stage_of()
    assert stage.ask(SALES, b"Sec-Fetch-Site: cross-site", method=b"POST", token=b"good").status == 200


def test_a_page_that_was_loaded_anew_learns_its_token():
    stage = stage_of()
    browser = stage.sign_in()
    answer = browser.ask(SESSION)
    assert json.loads(answer.body) == {
        "csrf_token": browser.csrf.decode(), "user_id": "user-1", "tenant_id": "t-own",
    }  # fmt: skip
    assert answer.headers[b"cache-control"] == [b"no-store"]
    assert len(stage.services.requests) == 1
    assert stage.ask(SESSION, token=b"good").body == b"answer"  # the service's


# renewal


def expired(stage):
    """A browser whose access token has ended."""
    browser = stage.sign_in()
    stage.pass_s(901)
    stage.services.response = response(200, (CONTENT,), RENEWED)
    return browser


def refreshes(stage):
    return [sent for _, sent in stage.services.requests if sent.target == REFRESH]


def test_an_ended_access_token_is_renewed_and_the_request_goes_on():
    stage = stage_of()
    browser = expired(stage)
    assert browser.ask(SALES).status == 200
    (sent,) = refreshes(stage)
    assert (sent.method, sent.body.whole()) == ("POST", b'{"refresh_token": "r-1"}')
    assert dict(sent_headers(stage))[b"authorization"] == b"Bearer next"
    browser.ask(SALES)
    assert len(refreshes(stage)) == 1


def test_the_refresh_token_of_a_session_works_once():
    stage = stage_of()
    expired(stage).ask(SALES)
    assert code(stage.refresh("r-1")) == (401, "token-revoked")


def test_many_requests_at_once_on_two_instances_renew_once():
    here = stage_of()
    there = stage_of(here)
    browser = here.sign_in()
    for stage in (here, there):
        stage.pass_s(901)
    here.services.response = None
    lines = b"Cookie: " + browser.cookie
    clients = [stage.client(request(b"GET", SALES, lines)) for stage in (here, here, there, there)]
    (waiting,) = here.services.waiting
    here.services.response = response(200, (CONTENT,), RENEWED)
    waiting.callback(response(200, (CONTENT,), RENEWED))
    there.background.advance(0.1)
    assert [client.only().status for client in clients] == [200] * 4
    assert len(refreshes(here)) == 1
    assert [sent.target for _, sent in here.services.requests].count(SALES) == 4


def renewed_elsewhere(here, **claims):
    """A browser known on two instances, whose session `here` has then renewed."""
    there = stage_of(here)
    there.tokens = here.tokens
    there.with_sessions(here)
    browser = here.sign_in()
    assert [browser.ask(SALES, stage=stage).status for stage in (here, there)] == [200, 200]
    here.tokens.claims[b"next"] = replace(LATER, iat=NOW, **claims)
    here.services.response = response(200, (CONTENT,), RENEWED)
    assert browser.write(REFRESH).status == 200
    here.services.response = response(200)
    return browser, there


def test_a_request_that_is_judged_again_is_paid_for_once():
    browser, there = renewed_elsewhere(stage_of())
    there.store.flags[USER.tenant_id] = TenantFlags(changed_at=NOW)
    before = len(there.store.asked)
    assert browser.ask(SALES, stage=there).status == 200
    asked = [ask for ask in there.store.asked[before:] if ask.buckets]
    assert [ask.peek for ask in asked] == [False, True]


@pytest.mark.parametrize("tenant", [USER.tenant_id, "t-other", "t-child"])
def test_a_session_renewed_after_its_subscription_changed_is_good_on_every_instance(tenant):
    parent = TenantAccess(
        tenant_id="t-chain", role="admin", tier="starter", status="active", valid_until=NOW + 9, include_children=True
    )
    here = stage_of()
    entries = (*USER.tenant_access, parent)
    here.tokens.claims[b"good"] = replace(USER, tenant_access=entries)
    browser, there = renewed_elsewhere(here, tenant_access=entries)
    there.tree.chains["t-child"] = ("t-chain",)
    there.store.flags[tenant] = TenantFlags(changed_at=NOW - 1)
    asked = b"X-Tenant-ID: " + tenant.encode()
    assert [browser.ask(SALES, asked, stage=there).status for _ in range(2)] == [200, 200]
    assert dict(sent_headers(there))[b"authorization"] == b"Bearer next"


def test_a_session_that_nobody_has_renewed_stays_stale():
    stage = stage_of()
    browser = stage.sign_in()
    browser.ask(SALES)
    stage.store.flags[USER.tenant_id] = TenantFlags(changed_at=NOW - 1)
    assert [code(browser.ask(SALES)) for _ in range(2)] == [(401, "token-stale")] * 2


def stale(changed_at=NOW - 1):
    """A stage, and a browser of it whose subscription has changed."""
    stage = stage_of()
    browser = stage.sign_in()
    stage.store.flags[USER.tenant_id] = TenantFlags(changed_at=changed_at)
    stage.services.response = response(200, (CONTENT,), RENEWED)
    return stage, browser


@pytest.mark.parametrize("known", [True, False])
def test_a_stale_session_is_renewed_for_a_page_that_was_loaded_anew(known):
    stage, browser = stale()
    if known:
        assert code(browser.ask(SALES)) == (401, "token-stale")
    assert json.loads(browser.ask(SESSION).body)["csrf_token"] == browser.csrf.decode()
    assert browser.ask(SALES).status == 200
    assert len(refreshes(stage)) == 1


def test_who_signs_out_of_a_stale_session_has_signed_out():
    stage, browser = stale()
    answer = browser.write(LOGOUT)
    assert answer.status == 200
    assert b"Max-Age=0" in answer.headers[b"set-cookie"][0]
    assert stage.services.requests[-1][1].body.whole() == b'{"refresh_token": "r-2"}'
    assert code(browser.ask(SALES)) == (401, "token-invalid")


def test_a_session_that_is_stale_even_with_new_tokens_is_renewed_once_for_each_question():
    stage, browser = stale(changed_at=NOW + 900)
    assert code(browser.ask(SESSION)) == (401, "token-stale")
    assert len(refreshes(stage)) == 1


@pytest.mark.parametrize(("said", "expected"), [(500, (503, "service-unavailable")), (401, (401, "token-expired"))])
def test_a_stale_session_that_is_not_renewed_says_why(said, expected):
    stage, browser = stale()
    stage.services.response = response(said, (CONTENT,), b"{}")
    answer = browser.ask(SESSION)
    assert code(answer) == expected
    assert (b"set-cookie" in answer.headers) is (said == 401)


def test_a_stale_session_is_not_renewed_without_the_shared_state():
    stage, browser = stale()
    browser.ask(SALES)
    stage.records.left = 0
    assert code(browser.ask(SESSION)) == (503, "state-unavailable")


def test_a_request_that_is_given_up_ends_no_renewal():
    stage = stage_of()
    browser = expired(stage)
    stage.services.response = None
    leaving = stage.client(request(b"GET", SALES, b"Cookie: " + browser.cookie))
    staying = stage.client(request(b"GET", SALES, b"Cookie: " + browser.cookie))
    leaving.leave()
    stage.services.response = response(200)
    stage.services.waiting[0].callback(response(200, (CONTENT,), RENEWED))
    assert stage.services.cancelled == 0
    assert staying.only().status == 200


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_session_that_the_service_does_not_renew_has_ended(status):
    stage = stage_of()
    browser = expired(stage)
    stage.services.response = response(status)
    answer = browser.ask(SALES)
    assert code(answer) == (401, "token-expired")
    assert b"Max-Age=0" in answer.headers[b"set-cookie"][0]
    assert code(browser.ask(SALES)) == (401, "token-invalid")
    assert len(refreshes(stage)) == 1


@pytest.mark.parametrize(
    "failure",
    [500, 302, 429, b"rubbish", b'{"access_token": "demo", "refresh_token": "r-2"}', b'{"access_token": "bad"}',
     UpstreamFailed("upstream-timeout", "http_response_timeout", "late")],
    ids=str,
)  # fmt: skip
def test_a_failure_of_the_service_ends_no_session(failure):
    stage = stage_of()
    browser = expired(stage)
    if isinstance(failure, UpstreamFailed):
        stage.services.failure = failure
    else:
        stage.services.response = response(failure) if isinstance(failure, int) else response(200, (), failure)
    answer = browser.ask(SALES)
    assert code(answer) == (503, "service-unavailable")
    assert answer.headers[b"retry-after"] == [b"10"]  # before that the auth service is not asked again
    assert b"set-cookie" not in answer.headers
    stage.services.failure, stage.services.response = None, response(200, (CONTENT,), RENEWED)
    stage.pass_s(10.1)
    assert browser.ask(SALES).status == 200


@pytest.mark.parametrize("status", [500, 408, 425, 429])
def test_while_a_renewal_has_no_clear_answer_the_service_is_left_in_peace(status):
    stage = stage_of()
    browser = expired(stage)
    stage.services.response = response(status)
    browser.ask(SALES)
    answer = browser.ask(SALES)
    assert (code(answer), answer.headers[b"retry-after"]) == ((503, "service-unavailable"), [b"10"])
    assert len(refreshes(stage)) == 1


def test_a_renewal_does_not_wait_for_ever():
    stage = stage_of()
    browser = expired(stage)
    stage.services.response = None
    client = stage.client(request(b"GET", SALES, b"Cookie: " + browser.cookie))
    stage.background.advance(10.1)
    assert code(client.only()) == (503, "service-unavailable")
    assert stage.services.cancelled == 1


def pass_slowly(stage, seconds):
    for _ in range(10 * seconds):
        stage.background.advance(0.1)


def renewing_here_and_asked_there():
    """Two instances, and a client of each: the first renews the session, for nine seconds by now; the second waits."""
    here = stage_of()
    there = stage_of(here)
    browser = here.sign_in()
    for stage in (here, there):
        stage.pass_s(901)
    here.services.response = None
    clients = [stage.client(request(b"GET", SALES, b"Cookie: " + browser.cookie)) for stage in (here, there)]
    pass_slowly(there, 9)
    return here, there, clients


def test_it_waits_for_another_instance_as_long_as_the_service_may_take():
    here, there, (first, second) = renewing_here_and_asked_there()
    (waiting,) = here.services.waiting
    here.services.response = response(200)
    waiting.callback(response(200, (CONTENT,), RENEWED))
    pass_slowly(there, 1)
    assert [first.only().status, second.only().status] == [200, 200]
    assert len(refreshes(here)) == 1


def test_a_token_that_was_used_a_moment_before_its_record_is_replaced_ends_no_session():
    here, there, (first, second) = renewing_here_and_asked_there()
    here.records._put("refresh:" + refresh_token("r-1").digest, b"spent", None)
    pass_slowly(there, 1)
    (waiting,) = here.services.waiting
    here.services.response = response(200)
    waiting.callback(response(200, (CONTENT,), RENEWED))
    pass_slowly(there, 1)
    assert [first.only().status, second.only().status] == [200, 200]


def test_a_session_whose_new_tokens_were_lost_has_ended():
    stage = stage_of()
    browser = expired(stage)
    stage.records._put("refresh:" + refresh_token("r-1").digest, b"spent", None)
    client = stage.client(request(b"GET", SALES, b"Cookie: " + browser.cookie))
    pass_slowly(stage, 4)
    assert code(client.only()) == (401, "token-expired")


def test_nor_for_another_instance_which_is_replaced_when_it_has_died():
    here = stage_of()
    there = stage_of(here)
    browser = here.sign_in()
    for stage in (here, there):
        stage.pass_s(901)
    here.services.response = None
    here.client(request(b"GET", SALES, b"Cookie: " + browser.cookie))  # and the instance dies
    waiting = there.client(request(b"GET", SALES, b"Cookie: " + browser.cookie))
    pass_slowly(there, 14)
    assert code(waiting.only()) == (503, "service-unavailable")
    here.pass_s(30.1)
    here.services.response = response(200, (CONTENT,), RENEWED)
    assert browser.ask(SALES, stage=there).status == 200


def test_a_session_that_ends_during_its_renewal_stays_ended():
    stage = stage_of()
    browser = expired(stage)
    stage.services.response = None
    client = stage.client(request(b"GET", SALES, b"Cookie: " + browser.cookie))
    stage.records._values.pop("session:" + digest_of(browser))
    stage.services.waiting[0].callback(response(200, (CONTENT,), RENEWED))
    assert code(client.only()) == (401, "token-invalid")
    assert "session:" + digest_of(browser) not in stage.records._values


def test_new_tokens_are_kept_as_soon_as_redis_is_back():
    stage = stage_of()
    browser = expired(stage)
    stage.services.response = None
    client = stage.client(request(b"GET", SALES, b"Cookie: " + browser.cookie))
    stage.records.left = 0
    stage.services.response = response(200)
    stage.services.waiting[0].callback(response(200, (CONTENT,), RENEWED))
    stage.records.left = None
    stage.background.advance(0.1)
    assert client.only().status == 200


def renewing(stage):
    """A browser in the middle of a renewal, the client that has caused it, and the service's answer to come."""
    browser = expired(stage)
    stage.services.response = None
    client = stage.client(request(b"GET", SALES, b"Cookie: " + browser.cookie))
    stage.services.response = response(200)
    return browser, client, stage.services.waiting[0]


def test_new_tokens_are_kept_though_redis_is_away_for_longer_than_requests_wait():
    stage = stage_of()
    browser, client, waiting = renewing(stage)
    stage.records.left = 0
    waiting.callback(response(200, (CONTENT,), RENEWED))
    pass_slowly(stage, 5)
    answer = client.only()
    assert code(answer) == (503, "state-unavailable")
    assert b"set-cookie" not in answer.headers
    stage.records.left = None
    pass_slowly(stage, 5)
    assert browser.ask(SALES).status == 200
    assert len(refreshes(stage)) == 1
    assert code(stage.refresh("r-1")) == (401, "token-revoked")


def test_new_tokens_that_were_written_unheard_end_no_session():
    stage = stage_of()
    browser, client, waiting = renewing(stage)
    stage.records.late = True
    waiting.callback(response(200, (CONTENT,), RENEWED))
    stage.records.late = False
    stage.background.advance(0.1)
    assert client.only().status == 200
    assert browser.ask(SALES).status == 200


def test_without_a_refresh_token_a_session_ends_with_its_access_token():
    stage = stage_of()
    browser = stage.sign_in(answer=b'{"access_token": "good"}')
    assert browser.ask(SALES).status == 200
    stage.pass_s(901)
    assert browser.ask(SALES).status == 401
    assert refreshes(stage) == []


def test_a_refresh_token_that_the_service_does_not_replace_goes_on():
    stage = stage_of()
    browser = expired(stage)
    stage.services.response = response(200, (CONTENT,), b'{"access_token": "next"}')
    assert browser.ask(SALES).status == 200
    stage.pass_s(4200)
    stage.tokens.claims[b"third"] = replace(LATER, exp=NOW + 90_000)
    stage.services.response = response(200, (CONTENT,), b'{"access_token": "third"}')
    assert browser.ask(SALES).status == 200
    assert len(refreshes(stage)) == 2


def test_a_page_may_have_its_session_renewed_at_any_time():
    stage = stage_of()
    browser = stage.sign_in()
    stage.services.response = response(200, (CONTENT,), RENEWED)
    answer = browser.write(REFRESH)
    assert json.loads(answer.body)["csrf_token"] == browser.csrf.decode()
    assert len(refreshes(stage)) == 1
    browser.ask(SALES)
    assert dict(sent_headers(stage))[b"authorization"] == b"Bearer next"
    assert code(browser.ask(REFRESH, method=b"POST")) == (403, "csrf")
    assert code(browser.write(REFRESH, token=b"good")) == (400, "bad-request")  # with a token it is not looked at


def test_what_one_instance_has_renewed_holds_on_the_others_as_soon_as_it_matters():
    here = stage_of()
    there = stage_of(here)
    browser = here.sign_in()
    assert browser.ask(SALES, stage=there).status == 200
    there.store.flags["t-own"] = TenantFlags(changed_at=NOW + 500)
    assert code(browser.ask(SALES, stage=there)) == (401, "token-stale")
    here.services.response = response(200, (CONTENT,), RENEWED)
    assert browser.write(REFRESH).status == 200
    assert browser.ask(SALES, stage=there).status == 200
    assert dict(sent_headers(here))[b"authorization"] == b"Bearer next"
    there.store.flags["t-own"] = TenantFlags(changed_at=NOW + 850)
    assert code(browser.ask(SALES, stage=there)) == (401, "token-stale")
    here.records.left = 0
    assert code(browser.ask(SALES, stage=there)) == (401, "token-stale")
    assert len(there.notes.begun) == len(there.notes.outcomes) == 5


# signing out


def test_signing_out_ends_the_session_and_its_tokens_everywhere():
    here = stage_of()
    there = stage_of(here)
    browser = here.sign_in()
    assert browser.ask(SALES, stage=there).status == 200
    answer = browser.write(LOGOUT)
    assert answer.status == 200
    assert b"Max-Age=0" in answer.headers[b"set-cookie"][0]
    _, sent = here.services.requests[-1]
    assert sent.body.whole() == b'{"refresh_token": "r-1"}'
    assert code(browser.ask(SALES, stage=there)) == (401, "token-revoked")
    assert code(browser.ask(SALES)) == (401, "token-invalid")
    assert here.revocations.until == {
        digest_of(browser): NOW + OPAQUE_S,
        USER.digest: USER.exp + LEEWAY_S,
        refresh_token("r-1").digest: NOW + OPAQUE_S,
    }
    assert code(here.refresh("r-1")) == (401, "token-revoked")


def test_a_sign_out_that_can_not_be_told_to_others_takes_the_cookie_away_all_the_same():
    stage = stage_of()
    browser = stage.sign_in()
    stage.revocations.away = True
    stage.services.response = response(204)
    answer = browser.write(LOGOUT)
    assert code(answer) == (503, "state-unavailable")
    assert b"Max-Age=0" in answer.headers[b"set-cookie"][0]
    stage.revocations.away = False
    stage.background.advance(0.1)
    assert "session:" + digest_of(browser) not in stage.records._values


def test_a_record_that_is_put_back_after_that_is_of_no_use():
    stage = stage_of()
    browser = stage.sign_in()
    key = "session:" + digest_of(browser)
    value = stage.records._values[key][0]
    browser.write(LOGOUT)
    stage.records._put(key, value, None)
    assert code(browser.ask(SALES)) == (401, "token-revoked")


def test_signing_out_from_another_site_is_refused():
    stage = stage_of()
    browser = stage.sign_in()
    assert code(browser.ask(LOGOUT, method=b"POST")) == (403, "csrf")
    assert browser.ask(SALES).status == 200


@pytest.mark.parametrize("method", [b"GET", b"OPTIONS"])
def test_a_link_on_another_site_signs_nobody_out(method):
    stage = stage_of()
    browser = stage.sign_in()
    assert code(browser.ask(LOGOUT, method=method)) == (405, "method-not-allowed")
    assert browser.ask(SALES).status == 200
    assert stage.ask(LOGOUT, method=method, token=b"good").status == 200


def test_secrets_are_not_in_what_values_say_of_themselves():
    stage = stage_of()
    browser = stage.sign_in()
    browser.ask(SALES)
    (entry,) = stage.sessions._good.values()
    session = Session(access="secret", refresh=refresh_token("secret"), until=1.0, user_id="u")
    for value in (entry, session, Tokens(access="secret", refresh="secret")):
        assert "secret" not in repr(value)
        assert "b'good'" not in repr(value)


def test_a_sign_out_that_the_service_refuses_ends_nothing():
    stage = stage_of()
    browser = stage.sign_in()
    stage.services.response = response(503)
    assert browser.write(LOGOUT).status == 503
    assert browser.ask(SALES).status == 503
    stage.services.response = response(200)
    assert browser.ask(SALES).status == 200


def test_no_service_can_set_the_session_cookie():
    stage = stage_of()
    values = (b"__Host-bakery-session=evil; Path=/; Secure", b" __host-Bakery-Session=x", b"kept=1")
    stage.services.response = response(200, [(b"Set-Cookie", value) for value in values])
    assert stage.ask(SALES, token=b"good").headers[b"set-cookie"] == [b"kept=1"]


def test_what_a_service_says_to_a_session_that_signs_out_is_for_nobody_else():
    stage = stage_of()
    browser = stage.sign_in()
    stage.services.response = response(200, [(b"Cache-Control", b"public, max-age=60")])
    answer = browser.write(LOGOUT)
    assert answer.status == 200
    assert answer.headers[b"cache-control"] == [b"max-age=60, private"]
