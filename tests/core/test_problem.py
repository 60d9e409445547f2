"""Errors as callers see them (RFC 9457)."""

import json
from http import HTTPStatus

import pytest

from bakerygw.core.problem import BEARER_CHALLENGE, PROBLEMS, Problem, Refused, problem_reply, refuse

PROMISED = """
400 bad-request tenant-ambiguous
401 token-missing token-invalid token-expired token-stale token-revoked
402 subscription-expired subscription-inactive
403 tier-required tenant-forbidden tenant-read-only demo-isolation insecure-transport csrf origin-forbidden
404 not-found
405 method-not-allowed
408 request-timeout
413 body-too-large
414 uri-too-long
417 expectation-failed
426 upgrade-required
429 rate-limited too-many-streams
431 headers-too-large
500 internal-error
501 method-not-implemented
502 upstream-unreachable upstream-invalid
503 service-unavailable critical-check-unavailable state-unavailable
504 upstream-timeout
"""


def reply(problem: Problem):
    return problem_reply(problem, instance="/api/v1/sales", request_id="request-1")


def test_every_code_has_the_status_that_callers_were_promised():
    promised = {code: int(line.split()[0]) for line in PROMISED.strip().splitlines() for code in line.split()[1:]}
    assert {code: status for code, (status, _) in PROBLEMS.items()} == promised


@pytest.mark.parametrize("code", PROBLEMS)
def test_a_problem_has_every_member(code):
    answer = reply(Problem(code=code, detail="A sentence."))
    status, title = PROBLEMS[code]
    assert answer.status == status == Problem(code=code, detail="").status
    assert HTTPStatus(status)
    headers = dict(answer.headers)
    assert headers[b"Content-Type"] == b"application/problem+json"
    assert headers[b"Cache-Control"] == b"no-store"
    assert (b"WWW-Authenticate" in headers) == (status == 401) == (code in BEARER_CHALLENGE)
    assert json.loads(answer.body) == {
        "type": f"https://bakery-ia.example/problems/{code}",
        "title": title,
        "status": status,
        "detail": "A sentence.",
        "instance": "/api/v1/sales",
        "code": code,
        "request_id": "request-1",
    }


def test_a_bad_token_is_told_from_none():
    assert BEARER_CHALLENGE["token-missing"] == b"Bearer"
    assert BEARER_CHALLENGE["token-expired"] == b'Bearer error="invalid_token"'


def test_what_helps_is_told_and_the_reason_is_not():
    problem = Problem(
        code="rate-limited",
        detail="Wait.",
        members={"limit": 5},
        headers=((b"X-A", b"b"),),
        retry_after_s=7,
        reason="secret cause",
        close=True,
    )
    answer = reply(problem)
    document = json.loads(answer.body)
    assert (document["limit"], document["retry_after"]) == (5, 7)
    assert dict(answer.headers)[b"Retry-After"] == b"7"
    assert (b"X-A", b"b") in answer.headers
    assert answer.close
    assert b"secret" not in answer.body


def test_a_path_with_quotes_and_controls_stays_one_json_text():
    answer = problem_reply(Problem(code="not-found", detail="?"), instance='/"\r\n\u2028', request_id="r")
    assert json.loads(answer.body)["instance"] == '/"\r\n\u2028'
    assert b"\n" not in answer.body


def test_refuse_makes_a_refusal():
    refusal = refuse("tier-required", "Upgrade.", reason="why", close=True, required_tier="enterprise")
    assert isinstance(refusal, Refused)
    assert refusal.problem == Problem(
        code="tier-required", detail="Upgrade.", members={"required_tier": "enterprise"}, close=True, reason="why"
    )


@pytest.mark.parametrize("code", ["token-missing", "token-invalid", "token-expired", "token-revoked"])
def test_titles_are_true_of_refresh_tokens_and_api_keys_too(code: str) -> None:
    assert "token or key" in PROBLEMS[code][1].lower()
