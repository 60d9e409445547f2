"""What answers to notifications mean, and when to ask again."""

import pytest

from bakerygw.core.notifications import MAX_WAIT_S, idempotency_key, retry_after_s, verdict_on, wait_s

NOW = 1_795_432_881.0


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_success_is_an_acceptance(status):
    assert verdict_on(status) == "accepted"


@pytest.mark.parametrize("status", [400, 410, 413, 414, 415, 422, 431, 451])
def test_a_refusal_of_the_alert_is_for_good(status):
    assert verdict_on(status) == "refused"


@pytest.mark.parametrize(
    "status", [301, 302, 307, 401, 403, 404, 405, 408, 409, 421, 425, 429, 500, 502, 503, 504, 599]
)
def test_troubles_of_the_moment_are_not(status):
    assert verdict_on(status) == "later"


def test_waits_double_up_to_the_longest_and_are_spread():
    assert [wait_s(failed, 1.0) for failed in (1, 2, 3, 9, 10, 10_000)] == [1, 2, 4, 256, 300, 300]
    assert [wait_s(failed, 0.0) for failed in (1, 2, 3, 9, 10, 10_000)] == [0.5, 1, 2, 128, 150, 150]
    assert wait_s(10, 1.0, most_s=30) == 30


def test_the_service_may_ask_for_more_time_but_not_for_ever():
    assert wait_s(1, 0.0, asked_s=20) == 20
    assert wait_s(10, 0.0, asked_s=20) == 150
    assert wait_s(1, 0.0, asked_s=1e9) == MAX_WAIT_S


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"120", 120),
        (b" 0 ", 0),
        (b"9" * 400, 999_999_999),
        (b"Mon, 23 Nov 2026 11:21:51 GMT", 30),
        (b"Mon, 23 Nov 2020 11:21:51 GMT", 0),
        (b"-5", None),
        (b"soon", None),
        (b"\xb2", None),
        (b"", None),
    ],
)
def test_retry_after_is_read_in_both_forms_and_nonsense_is_none(value, seconds):
    assert retry_after_s(((b"Date", b"x"), (b"retry-After", value)), NOW) == seconds
    assert retry_after_s((), NOW) is None


def test_the_key_is_that_of_one_alert_at_one_place():
    key = idempotency_key("t1:1-1", b"{}")
    assert key == idempotency_key("t1:1-1", b"{}")
    assert len({key, idempotency_key("t1:1-2", b"{}"), idempotency_key("t2:1-1", b"{}")}) == 3
    assert key != idempotency_key("t1:1-1", b'{"another": 1}')
    assert key.startswith(b"alert-")
    assert key.decode().replace("-", "").isalnum()
