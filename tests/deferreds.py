"""Results of Deferreds that have already fired, without a reactor."""

from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


def success_of(deferred: Deferred[T]) -> T:
    """The result. A failure is raised as the exception it holds; no result yet is an AssertionError."""
    results: list[T] = []
    failures: list[Failure] = []
    deferred.addCallbacks(results.append, failures.append)
    if failures:
        failures[0].raiseException()
    assert results, "the Deferred has no result yet"
    return results[0]


def failure_of(deferred: Deferred[object], *kinds: type[BaseException]) -> BaseException:
    """The exception it failed with, one of `kinds` if any are given; AssertionError if it did not fail."""
    results: list[object] = []
    failures: list[Failure] = []
    deferred.addCallbacks(results.append, failures.append)
    assert failures, f"the Deferred did not fail: {results or 'no result yet'}"
    error = failures[0].value
    assert not kinds or isinstance(error, kinds), f"failed with {error!r}"
    return error
