"""The circuit breaker: when it opens, what it lets through, how it closes."""

from bakerygw.core.breaker import Breaker


def opened(at: float = 100.0) -> Breaker:
    breaker = Breaker(failures=3, within_s=10.0, open_s=1.0)
    for _ in range(3):
        breaker.failure(at)
    return breaker


def test_it_opens_at_the_last_of_enough_failures_and_says_so() -> None:
    breaker = Breaker(failures=3, within_s=10.0, open_s=1.0)
    assert [breaker.failure(now) for now in (0.0, 5.0, 10.0)] == [False, False, True]
    assert breaker.state(10.0) == "open"
    assert not breaker.allow(10.5)


def test_failures_spread_over_longer_do_not_open_it() -> None:
    breaker = Breaker(failures=3, within_s=10.0, open_s=1.0)
    assert not any(breaker.failure(now) for now in (0.0, 6.0, 12.0, 18.0, 24.0))
    assert breaker.state(24.0) == "closed"


def test_successes_between_failures_do_not_hide_them() -> None:
    breaker = Breaker(failures=2, within_s=10.0, open_s=1.0)
    breaker.failure(0.0)
    breaker.success()
    assert breaker.failure(1.0)


def test_after_the_pause_exactly_one_probe_passes() -> None:
    breaker = opened()
    assert breaker.state(101.0) == "half-open"
    assert [breaker.allow(101.0) for _ in range(3)] == [True, False, False]
    assert breaker.state(101.0) == "half-open"


def test_a_good_probe_closes_it_and_forgets_the_failures() -> None:
    breaker = opened()
    breaker.allow(101.0)
    breaker.success()
    assert breaker.state(101.0) == "closed"
    assert not breaker.failure(101.0)
    assert breaker.allow(101.0)


def test_a_bad_probe_opens_it_again_for_the_whole_pause() -> None:
    breaker = opened()
    breaker.allow(101.0)
    assert breaker.failure(101.2)
    assert not breaker.allow(102.1)
    assert breaker.allow(102.2)


def test_a_probe_that_never_reports_is_followed_by_another() -> None:
    breaker = opened()
    assert breaker.allow(101.0)
    assert not breaker.allow(101.9)
    assert breaker.allow(102.0)
    assert not breaker.allow(102.0)


def test_stragglers_from_before_it_opened_change_nothing() -> None:
    breaker = opened()
    breaker.success()
    assert breaker.state(100.5) == "open"
    assert not breaker.failure(100.9)
    assert breaker.allow(101.0)


def test_a_clock_set_back_delays_the_probe_by_one_pause_only() -> None:
    breaker = opened()
    assert not breaker.allow(50.0)
    assert breaker.allow(51.0)
    assert not breaker.allow(20.0)
    assert breaker.allow(21.0)


def test_it_tells_how_long_to_wait() -> None:
    breaker = opened()
    assert breaker.retry_in_s(100.25) == 0.75
    assert breaker.retry_in_s(101.0) == 0.0
    breaker.allow(101.0)
    assert breaker.retry_in_s(101.5) == 0.5
    breaker.success()
    assert breaker.retry_in_s(101.5) == 0.0
