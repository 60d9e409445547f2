"""What the rehearsed day accepts for an answer: each promise that is broken is found."""

import json
from typing import Any

import pytest

from bakerygw.core.problem import Problem, problem_reply
from tests.load.answers import Answer, Level, Wanted, complaints, levels

ID = "3f6f9a0e-request"
LIMITS = {
    "ratelimit-policy": '"default";q=300;w=60',
    "ratelimit": '"default";r=287;t=3',
    "x-ratelimit-remaining": "287",
}
HEADERS = {"x-request-id": ID, "x-content-type-options": "nosniff", "content-type": "application/json", **LIMITS}


def answer(status: int = 200, body: Any = None, **changes: str | None) -> Answer:
    """An answer with nothing wrong but for the header fields named, `_` for `-`; `None` takes one away."""
    fields = HEADERS | {name.replace("_", "-"): value for name, value in changes.items()}
    kept = {name: value for name, value in fields.items() if value is not None}
    return Answer(status=status, headers=kept, body=json.dumps(body if body is not None else {}).encode())


def refusal(code: str, retry_after_s: int | None = None, **changes: str | None) -> Answer:
    """The gateway's own problem."""
    made = problem_reply(Problem(code=code, detail="No.", retry_after_s=retry_after_s), instance="/", request_id=ID)
    own = {name.decode().lower().replace("-", "_"): value.decode() for name, value in made.headers}
    return answer(made.status, json.loads(bytes(made.body)), **(own | changes))  # type: ignore[arg-type]


def test_an_answer_that_keeps_every_promise_is_right() -> None:
    assert complaints(answer(), Wanted(), ID) == []


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (answer(500), "500 by the service"),
        (refusal("not-found"), "404 not-found"),
        (answer(x_request_id="another"), "X-Request-ID"),
        (answer(x_content_type_options=None), "X-Content-Type-Options"),
        (answer(ratelimit=None, ratelimit_policy=None), "no RateLimit"),
        (answer(ratelimit=None), "different limits"),
        (answer(ratelimit="287"), "cannot read"),
        (answer(ratelimit='"default";r=287'), "RateLimit lacks 't'"),
        (answer(ratelimit='"default";r=301;t=0', x_ratelimit_remaining="301"), "more left than there is"),
        (answer(x_ratelimit_remaining="5"), "X-RateLimit-Remaining"),
    ],
)
def test_a_broken_promise_is_named(wrong: Answer, says: str) -> None:
    found = complaints(wrong, Wanted(), ID)

    assert len(found) == 1
    assert says in found[0]


def test_a_refusal_with_the_right_code_is_right() -> None:
    wanted = Wanted(statuses=(), codes=("token-expired", "rate-limited"))

    assert complaints(refusal("token-expired"), wanted, ID) == []
    assert complaints(refusal("rate-limited", retry_after_s=3), wanted, ID) == []
    assert complaints(answer(), wanted, ID) == ["200 by the service"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (refusal("token-expired", www_authenticate=None), "401 without WWW-Authenticate"),
        (refusal("method-not-allowed"), "405 without Allow"),
        (refusal("rate-limited", retry_after_s=3, retry_after="4"), "429 whose Retry-After"),
        (Answer(status=418, headers=refusal("not-found").headers, body=refusal("not-found").body), "problem's status"),
    ],
)
def test_a_refusal_without_what_a_client_needs_is_wrong(wrong: Answer, says: str) -> None:
    (found,) = complaints(wrong, Wanted(statuses=(), codes=(wrong.code,)), ID)

    assert says in found


def test_a_refusal_of_another_request_is_wrong() -> None:
    found = complaints(refusal("not-found", x_request_id="other"), Wanted(codes=("not-found",)), "other")

    assert found == ["the problem has another request id"]


def test_an_error_of_a_service_is_not_taken_for_the_gateways() -> None:
    wrong = answer(404, {"code": "not-found"})

    assert wrong.code == ""
    assert complaints(wrong, Wanted(codes=("not-found",)), ID) == ["404 by the service"]


def test_grace_must_be_told_while_it_lasts() -> None:
    told = answer(x_subscription_grace="2026-11-28T11:21:21Z")

    assert complaints(told, Wanted(grace=True), ID) == []
    assert complaints(answer(), Wanted(grace=True), ID) == ["no X-Subscription-Grace"]


def test_records_of_another_tenant_are_found() -> None:
    own, foreign = {"items": [{"tenant_id": "t-1"}, {}]}, {"items": [{"tenant_id": "t-1"}, {"tenant_id": "t-2"}]}

    assert complaints(answer(body=own), Wanted(tenant_id="t-1"), ID) == []
    assert complaints(answer(body=foreign), Wanted(tenant_id="t-1"), ID) == ["ANOTHER TENANT'S RECORDS"]


def test_what_is_not_limited_needs_no_limits() -> None:
    bare = answer(ratelimit=None, ratelimit_policy=None, x_ratelimit_remaining=None)

    assert complaints(bare, Wanted(limited=False), ID) == []


def test_all_limits_are_read() -> None:
    told = answer(
        ratelimit_policy='"default";q=300;w=60, "auth";q=20;w=60', ratelimit='"default";r=9;t=58, "auth";r=2;t=54'
    )

    assert levels(told) == (
        Level(name="default", quota=300, window_s=60, left=9, full_in_s=58),
        Level(name="auth", quota=20, window_s=60, left=2, full_in_s=54),
    )


@pytest.mark.parametrize(
    ("left", "full_in_s", "wait_s"), [(300, 0, 0), (100, 40, 0), (60, 48, 0), (30, 54, 6), (0, 60, 12)]
)
def test_one_waits_until_a_share_of_the_limit_is_there_again(left: int, full_in_s: int, wait_s: float) -> None:
    level = Level(name="default", quota=300, window_s=60, left=left, full_in_s=full_in_s)

    assert level.wait_s(reserve=0.2) == pytest.approx(wait_s)
