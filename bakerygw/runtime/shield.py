"""Work that goes on when whoever waits for it gives up."""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from bakerygw.runtime.task import Task

T = TypeVar("T")


def shielded(work: Coroutine[Deferred[Any], Any, T], unwanted: Callable[[T], object] | None = None) -> "Deferred[T]":
    """The result of `work`, which runs to its end even if the Deferred is cancelled; a failure is nobody's then.

    `unwanted` gets a result for which nobody waits any more.
    """
    result: Deferred[T] = Deferred()

    async def run() -> None:
        its = await work
        if unwanted is not None and result.called:  # cancelled
            unwanted(its)
        else:
            result.callback(its)

    def failed(failure: Failure) -> None:
        result.errback(failure)

    Task(run(), failed)
    return result
