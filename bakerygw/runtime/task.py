"""Coroutines driven directly: what `Deferred.fromCoroutine` does, without a chain of callbacks at each step.

A request waits twice, for its admission and for its service. Through `Deferred` each wait took 6 µs, and starting and
ending the coroutine 4 µs more; here it is 1 µs each.
"""

from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


def _nobody(_: Failure) -> None:
    """Is told of failures that somebody else has dealt with, or that cannot come any more."""


def _forget_frames(failure: Failure) -> None:
    """A dealt-with exception's traceback holds the frames that hold it, and with them all that the coroutine had."""
    if failure.value is not None:
        failure.value.__traceback__ = None


class Pending(Deferred[T]):
    """A Deferred that one coroutine awaits, and nobody adds callbacks to. Driven by a `Task` it wakes that directly.

    Under any other driver it is an ordinary Deferred.
    """

    _task: "Task | None" = None

    def __await__(self) -> Generator[Deferred[T], None, T]:
        while not self.called:
            yield self
        result: Any = self.result
        if isinstance(result, Failure):
            self.addErrback(_nobody)  # taken here: else Deferred would log what failed before it was awaited
            result.raiseException()
        return result  # type: ignore[no-any-return]

    def callback(self, result: Any) -> None:
        """The result is there."""
        task = self._task
        if task is None:
            super().callback(result)
            return
        self._task = None
        self.called = True
        self.result = result
        task.step()

    def errback(self, fail: Failure | BaseException | None = None) -> None:
        """There will be none."""
        task = self._task
        if task is None:
            super().errback(fail)
            return
        self._task = None
        self.called = True
        failure = fail if isinstance(fail, Failure) else Failure(fail)
        self.result = failure
        task.step()
        _forget_frames(failure)


class Task:
    """One coroutine on its way to its end."""

    __slots__ = ("_coroutine", "_failed", "_waiting", "done")

    def __init__(self, coroutine: Coroutine[Deferred[Any], Any, object], failed: Callable[[Failure], object]) -> None:
        """Runs the coroutine as far as it goes; `failed` takes the exception that it does not catch, if any."""
        self._coroutine, self._failed = coroutine, failed
        self._waiting: Deferred[Any] | None = None
        self.done = False
        """It has returned, or failed."""
        self.step()

    def step(self, failure: Failure | None = None) -> None:
        """Go on, until there is something to wait for; with `failure`, by raising its exception in the coroutine."""
        self._waiting = None
        try:
            if failure is None:
                waiting = self._coroutine.send(None)
            else:
                waiting = failure.throwExceptionIntoGenerator(self._coroutine)
                _forget_frames(failure)
        except StopIteration:
            self._end()
            if failure is not None:
                _forget_frames(failure)
            return
        except BaseException:
            failed = self._failed
            self._end()
            failed(Failure())
            return
        self._waiting = waiting
        if type(waiting) is Pending:
            waiting._task = self
        else:
            waiting.addBoth(self._woken)

    def cancel(self) -> None:
        """Cancel what the coroutine waits for, which raises `CancelledError` in it."""
        if self._waiting is not None:
            self._waiting.cancel()

    def _end(self) -> None:
        # Let go of whoever was to be told: it may hold this, and all that a lost connection still has, in a cycle.
        self.done, self._failed = True, _nobody

    def _woken(self, result: object) -> None:
        # A result is still in its Deferred here, and the `await` takes it from there.
        self.step(result if isinstance(result, Failure) else None)
