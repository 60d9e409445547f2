"""The budget for second tries."""

from bakerygw.core.retries import RetryBudget


def granted(budget: RetryBudget, now: float, total: int, asked: int = 10_000) -> int:
    return sum(budget.spend(now, total) for _ in range(asked))


def test_a_lone_request_may_be_repeated() -> None:
    assert RetryBudget(0.0).spend(0.0, 1)
    assert RetryBudget(0.0).spend(3600.0, 1)


def test_a_few_are_granted_however_little_there_is_to_do() -> None:
    assert granted(RetryBudget(0.0), 5.0, 1) == 30


def test_beyond_those_it_is_a_tenth_of_the_recent_requests() -> None:
    assert granted(RetryBudget(0.0), 10.0, 10_000) == 30 + 1000


def test_requests_of_long_ago_count_for_nothing() -> None:
    """An hour with ten requests a second leaves those of the last ten seconds."""
    assert granted(RetryBudget(0.0), 3600.0, 36_000) == 30 + 10


def test_what_was_spent_fades_with_the_window() -> None:
    budget = RetryBudget(0.0)
    granted(budget, 0.0, 0)
    assert granted(budget, 5.0, 0) == 15
    assert granted(budget, 15.0, 0) == 30


def test_over_a_long_time_the_share_holds() -> None:
    budget = RetryBudget(0.0)
    repeated = sum(granted(budget, second / 10, 100 * second, asked=100) for second in range(1, 601))
    assert 0.1 * 60_000 <= repeated <= 0.1 * 60_000 + 3 * 60 + 130


def test_a_clock_set_back_grants_nothing_by_itself() -> None:
    budget = RetryBudget(100.0)
    granted(budget, 100.0, 0)
    assert granted(budget, 50.0, 0) == 0
