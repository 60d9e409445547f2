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
    assert not breaker.success()  # it was closed before
    assert breaker.failure(1.0)


def test_after_the_pause_exactly_one_probe_passes() -> None:
    breaker = opened()
    assert breaker.state(101.0) == "half-open"
    assert [breaker.allow(101.0) for _ in range(3)] == [True, False, False]
    assert breaker.state(101.0) == "half-open"


def test_a_good_probe_closes_it_and_forgets_the_failures() -> None:
    breaker = opened()
    breaker.allow(101.0)
    assert breaker.success()
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


def test_a_probe_before_its_time_passes_only_when_asked_for_and_one_at_a_time() -> None:
    breaker = opened()
    assert not breaker.allow(100.1)
    assert [breaker.allow(100.1, early=True) for _ in range(3)] == [True, False, False]
    assert breaker.failure(100.2)
    assert breaker.allow(100.2, early=True)
    breaker.success()
    assert breaker.closed


def test_an_abandoned_probe_makes_room_for_the_next_at_once() -> None:
    breaker = opened()
    breaker.allow(101.0)
    breaker.abandon(breaker.mark)
    assert breaker.state(101.0) == "half-open"
    assert [breaker.allow(101.0) for _ in range(2)] == [True, False]


def test_abandoning_another_call_than_the_probe_makes_no_room() -> None:
    breaker = opened()
    early_call = breaker.mark - 1
    breaker.allow(101.0)
    breaker.abandon(early_call)
    assert not breaker.allow(101.0)


def test_calls_from_before_the_probe_do_not_speak_for_it() -> None:
    breaker = opened()
    early_call = breaker.mark
    breaker.allow(101.0)
    assert not breaker.failure(101.1, early_call)
    breaker.success(early_call)
    assert breaker.state(101.1) == "half-open"
    breaker.success(breaker.mark)
    assert breaker.state(101.1) == "closed"


def test_calls_from_before_it_closed_do_not_open_it_again() -> None:
    breaker = opened()
    early_call = breaker.mark
    breaker.allow(101.0)
    breaker.success()
    assert not any(breaker.failure(101.0, early_call) for _ in range(10))
    assert breaker.closed


def failures_among(successes: int) -> bool:
    """Whether five calls that began before `successes` others, and fail together after them, open it."""
    breaker = Breaker(failures=5, within_s=10.0, share=0.1)
    began = breaker.mark
    breaker.mark += successes
    return [breaker.failure(15.0, began) for _ in range(5)][-1]


def test_with_a_share_it_opens_only_if_so_many_of_the_calls_failed() -> None:
    assert failures_among(0)
    assert failures_among(45)
    assert not failures_among(46)


def test_with_a_share_old_successes_do_not_keep_it_closed() -> None:
    breaker = Breaker(failures=5, within_s=10.0, share=0.1)
    breaker.failure(0.0)
    breaker.mark += 1000
    assert [breaker.failure(1.0) for _ in range(5)] == [False, False, False, False, True]


def test_whether_it_is_closed_is_an_attribute() -> None:
    breaker = opened()
    assert not breaker.closed
    breaker.allow(101.0)
    assert not breaker.closed
    breaker.success()
    assert breaker.closed


def test_a_probe_that_is_not_firm_keeps_no_firm_call_waiting() -> None:
    breaker = opened()
    assert [breaker.allow(101.0, firm=False) for _ in range(2)] == [True, False]
    assert [breaker.allow(101.5) for _ in range(2)] == [True, False]
    assert not breaker.allow(102.0, firm=False)
    breaker.success(breaker.mark)
    assert breaker.closed


def test_before_its_time_a_firm_call_passes_beside_the_probe_only_when_asked_for() -> None:
    breaker = opened()
    assert breaker.allow(100.1, early=True, firm=False)
    assert not breaker.allow(100.2)
    assert not breaker.allow(100.2, early=True, firm=False)
    assert [breaker.allow(100.2, early=True) for _ in range(2)] == [True, False]


def test_a_probe_that_others_followed_still_closes_it() -> None:
    breaker = opened()
    breaker.allow(101.0)
    first = breaker.mark
    breaker.allow(102.0)
    second = breaker.mark
    breaker.success(first)
    assert breaker.closed
    assert not any(breaker.failure(102.1, second) for _ in range(10))


def test_a_probe_from_before_a_later_one_failed_does_not_close_it() -> None:
    breaker = opened()
    breaker.allow(101.0)
    first = breaker.mark
    breaker.allow(102.0)
    assert breaker.failure(102.1, breaker.mark)
    breaker.success(first)
    assert breaker.state(102.2) == "open"


def test_it_tells_for_how_long_it_has_been_open() -> None:
    breaker = opened()
    assert (breaker.open_for_s(100.0), breaker.open_for_s(103.5), breaker.open_for_s(50.0)) == (0.0, 3.5, 0.0)
    breaker.allow(104.0)
    assert breaker.open_for_s(104.0) == 4.0
    breaker.failure(105.0)
    assert breaker.open_for_s(106.0) == 1.0
    breaker.allow(106.0)
    breaker.success()
    assert breaker.open_for_s(107.0) == 0.0
