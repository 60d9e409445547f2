"""A refresh token works once; signing out ends what it names."""

import json
from dataclasses import replace

import pytest
from twisted.internet.defer import Deferred

from bakerygw.core.key_terms import KeyTerms
from bakerygw.core.refresh_tokens import OPAQUE_S, refresh_token
from bakerygw.edge.admission import Grant
from bakerygw.ports import UpstreamFailed
from tests.deferreds import success_of
from tests.edge.edge_fakes import Source, request
from tests.edge.port_fakes import NOW, USER, response
from tests.edge.signing_fakes import EXCHANGE_S, JSON, LEEWAY_S, LOGOUT, REFRESH, SigningStage
from tests.minting import b64

TOKEN = refresh_token("abc")
KEY = "refresh:" + TOKEN.digest
JWT = ".".join((b64(b'{"alg":"RS256"}'), b64(json.dumps({"sub": "u-7", "exp": NOW + 500}).encode()), "c2ln"))


def code(answer):
    return answer.status, answer.problem()["code"]


def test_the_service_gets_the_request_byte_for_byte_and_the_client_its_answer():
    stage = SigningStage()
    body = b' {"refresh_token":\t"abc", "x": [1,2 ]}\n'
    answer = stage.ask(REFRESH, JSON, b"X-Mine: 1", method=b"POST", body=body)
    assert (answer.status, answer.body) == (200, b'{"access_token": "new"}')
    assert stage.forwarded.body.whole() == body
    assert stage.forwarded.target == REFRESH
    assert (b"X-Mine", b"1") in stage.forwarded.headers


def test_a_token_that_was_used_is_refused_and_the_service_not_asked():
    stage = SigningStage()
    assert stage.refresh().status == 200
    answer = stage.refresh()
    assert code(answer) == (401, "token-revoked")
    assert "sign in again" in answer.problem()["detail"]
    assert len(stage.services.requests) == 1
    assert stage.audited[0][1].pop("request_id") == answer.problem()["request_id"]
    assert stage.audited == [
        (
            "refresh.reused",
            {"user_id": None, "digest": TOKEN.digest[:16], "client": "192.0.2.1", "code": "token-revoked",
             "state": "spent"},
        )
    ]  # fmt: skip


def test_reuse_names_the_user_once_a_service_has_taken_the_token():
    stage = SigningStage()
    stage.refresh(JWT)
    stage.refresh(JWT)
    ((_, fields),) = stage.audited
    assert fields["user_id"] == "u-7"


def test_another_spelling_of_the_signature_is_the_same_token():
    stage = SigningStage()
    stage.refresh(JWT)
    assert code(stage.refresh(JWT + "=")) == (401, "token-revoked")


def test_a_used_token_is_remembered_to_its_end_and_an_opaque_one_for_thirty_days():
    stage = SigningStage()
    stage.refresh(JWT)
    stage.refresh("abc")
    stage.pass_s(500 + LEEWAY_S - 1)
    assert code(stage.refresh(JWT)) == (401, "token-revoked")
    stage.pass_s(2)
    assert stage.refresh(JWT).status == 200
    stage.pass_s(OPAQUE_S - 600)
    assert stage.refresh("abc").status == 401


def test_of_two_at_the_same_moment_one_goes_through():
    stage = SigningStage()
    stage.services.response = None
    first = stage.client(request(b"POST", REFRESH, JSON, body=b'{"refresh_token": "abc"}'))
    second = stage.client(request(b"POST", REFRESH, JSON, body=b'{"refresh_token": "abc"}'))
    assert code(second.only()) == (401, "token-revoked")
    assert second.only().headers[b"retry-after"] == [b"10"]
    stage.services.waiting[0].callback(response())
    assert first.only().status == 200
    assert len(stage.services.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 429])
def test_a_token_that_the_service_refused_can_be_used_again(status):
    stage = SigningStage()
    stage.services.response = response(status)
    assert stage.refresh().status == status
    stage.services.response = response(200)
    assert stage.refresh().status == 200


@pytest.mark.parametrize(
    "failure",
    [
        UpstreamFailed("upstream-timeout", "http_response_timeout", "late"),
        UpstreamFailed("upstream-unreachable", "connection_terminated", "closed"),
        UpstreamFailed("upstream-invalid", "http_protocol_error", "rubbish"),
        500,
        503,
    ],
    ids=str,
)
def test_after_a_failure_of_the_service_the_token_works_again_in_ten_seconds(failure):
    stage = SigningStage()
    if isinstance(failure, int):
        stage.services.response = response(failure)
    else:
        stage.services.failure = failure
    assert stage.refresh().status >= 500
    stage.services.failure, stage.services.response = None, response(200)
    stage.pass_s(9.9)
    answer = stage.refresh()
    assert (code(answer), answer.headers[b"retry-after"]) == ((401, "token-revoked"), [b"10"])
    stage.pass_s(0.2)
    assert stage.refresh().status == 200


def test_where_the_service_could_not_be_asked_nothing_has_happened():
    stage = SigningStage()
    stage.services.failure = UpstreamFailed("service-unavailable", "destination_unavailable", "breaker open")
    assert stage.refresh().status == 503
    stage.services.failure = None
    assert stage.refresh().status == 200


def test_an_answer_that_the_service_cuts_leaves_it_unknown():
    stage = SigningStage()
    source = Source(length=10)
    stage.services.response = response(200, body=source)
    client = stage.client(request(b"POST", REFRESH, JSON, body=b'{"refresh_token": "abc"}'))
    source.sink.write(b"half")
    source.sink.cut("upstream closed early")
    assert client.wire.aborted
    stage.services.response = response(200)
    assert stage.refresh().status == 401
    stage.pass_s(10.1)
    assert stage.refresh().status == 200


def test_who_leaves_during_the_answer_has_used_the_token():
    stage = SigningStage()
    source = Source(length=10)
    stage.services.response = response(200, body=source)
    client = stage.client(request(b"POST", REFRESH, JSON, body=b'{"refresh_token": "abc"}'))
    source.sink.write(b"half")
    client.leave()
    assert "stop" in source.calls
    stage.pass_s(EXCHANGE_S + 1)
    stage.services.response = response(200)
    assert code(stage.refresh()) == (401, "token-revoked")


def test_who_leaves_before_the_answer_may_try_again_in_ten_seconds():
    stage = SigningStage()
    stage.services.response = None
    client = stage.client(request(b"POST", REFRESH, JSON, body=b'{"refresh_token": "abc"}'))
    client.leave()
    assert stage.services.cancelled == 1
    stage.services.response = response(200)
    assert stage.refresh().status == 401
    stage.pass_s(10.1)
    assert stage.refresh().status == 200


def test_who_leaves_while_the_token_is_claimed_may_try_again_at_once():
    stage = SigningStage()
    stage.records.slow = Deferred()
    stage.client(request(b"POST", REFRESH, JSON, body=b'{"refresh_token": "abc"}')).leave()
    assert stage.services.requests == []
    stage.records.slow = None
    stage.background.advance(0.1)
    assert stage.refresh().status == 200


@pytest.mark.parametrize("status", [200, 400, 500])
def test_who_leaves_before_it_is_kept_what_became_of_the_token_leaves_no_answer_behind(status):
    stage = SigningStage()
    source = Source()
    stage.services.response = None
    client = stage.client(request(b"POST", REFRESH, JSON, body=b'{"refresh_token": "abc"}'))
    stage.records.slow = Deferred()
    stage.services.waiting[0].callback(response(status, body=source))
    client.leave()
    assert source.calls == ["stop"]


@pytest.mark.parametrize("down", ["records", "revocations"])
def test_without_the_shared_state_nothing_is_sent(down):
    stage = SigningStage()
    if down == "records":
        stage.records.left = 0
    else:
        stage.store.revoked[TOKEN.digest] = None
    answer = stage.refresh()
    assert code(answer) == (503, "state-unavailable")
    assert answer.headers[b"retry-after"] == [b"2"]
    assert stage.services.requests == []


def test_a_claim_that_was_confirmed_too_late_is_withdrawn():
    stage = SigningStage()
    stage.records.late = True
    assert code(stage.refresh()) == (503, "state-unavailable")
    stage.records.late = False
    stage.background.advance(0.1)
    assert stage.refresh().status == 200


def test_a_claim_whose_instance_is_gone_ends_by_itself():
    stage = SigningStage()
    stage.records.left = 1  # the claim, and nothing after it
    stage.services.response = response(500)
    assert stage.refresh().status == 500
    stage.records.left = None
    stage.services.response = response(200)
    stage.pass_s(EXCHANGE_S - 1)
    assert stage.refresh().status == 401
    stage.pass_s(2)
    assert stage.refresh().status == 200


def test_that_a_token_was_used_is_written_as_soon_as_redis_is_back():
    stage = SigningStage()
    stage.records.left = 1
    assert stage.refresh().status == 200
    stage.records.left = None
    stage.background.advance(0.1)
    stage.pass_s(EXCHANGE_S + 1)
    assert code(stage.refresh()) == (401, "token-revoked")


def test_a_token_that_was_revoked_elsewhere_is_refused():
    stage = SigningStage()
    stage.store.revoked[TOKEN.digest] = True
    assert code(stage.refresh()) == (401, "token-revoked")
    assert stage.services.requests == []


@pytest.mark.parametrize(
    ("lines", "body", "status"),
    [
        ((JSON, b"Authorization: Bearer abc"), b"", 400),
        ((JSON, b"Cookie: token=abc"), b"", 400),
        ((JSON,), b"{}", 400),
        ((JSON,), b'{"refresh_token": "a", "refresh_token": "b"}', 400),
        ((b"Content-Type: application/x-www-form-urlencoded",), b"refresh_token=abc", 400),
        ((JSON, b"Content-Encoding: gzip"), b"\x1f\x8b", 400),
        ((JSON,), b'{"refresh_token": "' + b"x" * 16_400 + b'"}', 413),
        ((JSON, b"Cookie: refresh_token=other"), b'{"refresh_token": "abc"}', 400),
    ],
)
def test_what_can_not_be_read_is_not_sent(lines, body, status):
    stage = SigningStage(max_body_bytes=100_000)
    answer = stage.ask(REFRESH, *lines, method=b"POST", body=body)
    assert answer.status == status
    assert stage.services.requests == []


def test_a_request_that_can_hold_no_token_is_for_the_service_to_refuse():
    stage = SigningStage()
    assert [stage.ask(REFRESH, JSON, method=b"POST").status for _ in range(2)] == [200, 200]


def test_a_cookie_serves_as_well():
    stage = SigningStage()
    assert stage.ask(REFRESH, b"Cookie: refresh_token=abc", method=b"POST").status == 200
    assert stage.ask(REFRESH, b"Cookie: refresh_token=abc", method=b"POST").status == 401
    assert stage.refresh().status == 401


def test_a_slash_at_the_end_passes_nothing_by():
    stage = SigningStage()
    body = b'{"refresh_token": "abc"}'
    assert stage.ask(REFRESH + b"/", JSON, method=b"POST", body=body).status == 401
    assert stage.ask(REFRESH + b"/", JSON, method=b"POST", body=body, token=b"good").status == 200
    assert code(stage.ask(REFRESH + b"/", JSON, method=b"POST", body=body, token=b"good")) == (401, "token-revoked")


@pytest.mark.parametrize("target", [b"/api/v1/auth/%72efresh", b"/api/v1/auth/refresh;x", b"/api/v1/auth;x/refresh"])
def test_other_spellings_of_the_path_reach_no_service(target):
    stage = SigningStage()
    answer = stage.ask(target, JSON, method=b"POST", body=b'{"refresh_token": "abc"}', token=b"good")
    assert code(answer) == (400, "bad-request")
    assert stage.services.requests == []


def sign_out(stage, body=b'{"refresh_token": "abc"}', *lines):
    return stage.ask(LOGOUT, JSON, *lines, method=b"POST", body=body, token=b"good")


def test_signing_out_ends_both_tokens():
    stage = SigningStage()
    stage.services.response = response(204, body=b"")
    assert sign_out(stage).status == 204
    assert stage.forwarded.body.whole() == b'{"refresh_token": "abc"}'
    assert stage.revocations.until == {
        USER.digest: USER.exp + LEEWAY_S, TOKEN.digest: NOW + OPAQUE_S,
    }  # fmt: skip
    assert code(stage.ask(b"/api/v1/sales", token=b"good")) == (401, "token-revoked")
    stage.store.revoked.pop(TOKEN.digest)
    assert code(stage.refresh()) == (401, "token-revoked")
    assert stage.audited[0][1].pop("request_id")
    assert stage.audited[0] == (
        "auth.logout", {"user_id": "user-1", "tenant_id": "t-own", "client": "192.0.2.1"},
    )  # fmt: skip


def test_who_leaves_while_signing_out_is_signed_out():
    stage = SigningStage()
    source = Source()
    stage.services.response = None
    body = b'{"refresh_token": "abc"}'
    client = stage.client(request(b"POST", LOGOUT, JSON, b"Authorization: Bearer good", body=body))
    client.leave()
    assert stage.services.cancelled == 0
    stage.services.waiting[0].callback(response(200, body=source))
    assert set(stage.revocations.until) == {USER.digest, TOKEN.digest}
    assert source.calls == ["stop"]


@pytest.mark.parametrize("body", [b"", b"{}", b"rubbish", b'{"refresh_token": ["x"]}'])
def test_signing_out_without_a_refresh_token_ends_the_access_token(body):
    stage = SigningStage()
    assert sign_out(stage, body).status == 200
    assert list(stage.revocations.until) == [USER.digest]


def test_an_api_key_is_not_ended_by_signing_out():
    stage = SigningStage()
    claims = replace(USER, key=KeyTerms(key_id="k", paths=None, methods=None, networks=None, limit=None))
    success_of(Deferred.fromCoroutine(stage.refreshing._end(Grant(claims=claims, view=None), None)))
    assert stage.revocations.until == {}


@pytest.mark.parametrize("status", [302, 400, 401, 500])
def test_a_sign_out_that_the_service_refused_changes_nothing(status):
    stage = SigningStage()
    stage.services.response = response(status)
    assert sign_out(stage).status == status
    assert stage.revocations.until == {}
    assert stage.audited == []


def test_a_sign_out_that_can_not_be_told_to_others_says_so_and_is_told_later():
    stage = SigningStage()
    source = Source()
    stage.services.response = response(200, body=source)
    stage.revocations.away = True
    answer = sign_out(stage)
    assert code(answer) == (503, "state-unavailable")
    assert "does not hold everywhere yet" in answer.problem()["detail"]
    assert source.calls == ["stop"]
    stage.revocations.away = False
    stage.background.advance(0.1)
    assert set(stage.revocations.until) == {USER.digest, TOKEN.digest}
