"""Moments of the wall clock at which something is due, for any number of things by one timer."""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime

LOOK_AGAIN_S: Final = 30.0
"""The wall clock may be set at any time, which no timer notices: it is looked at again at least so often."""
AT_ONCE: Final = 100
"""So many are dealt with in one turn of the reactor: all tokens of a busy second end together."""

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Calls `due` with each thing at its moment, and never before it by `now`, in Unix seconds."""

    def __init__(
        self,
        clock: IReactorTime,
        now: Callable[[], float],
        *,
        due: Callable[[T], None],
        gone: Callable[[T], bool],
    ) -> None:
        """`due` may add the thing again for a later moment. Of things that are `gone` nothing is due any more."""
        self._clock, self._now, self._due, self._gone = clock, now, due, gone
        self._heap: list[tuple[float, int, T]] = []
        self._number = 0
        self._timer: IDelayedCall | None = None
        self._left = 0

    def __len__(self) -> int:
        """How many moments are waited for, some of them of things that are gone."""
        return len(self._heap)

    def add(self, at: float, thing: T) -> None:
        """It is due at this moment; in a later turn of the reactor if that has passed."""
        self._number += 1
        heappush(self._heap, (at, self._number, thing))
        if self._heap[0][1] == self._number:
            self._arm()

    def left(self) -> None:
        """One of the things is gone. Their moments may be far away: they are taken out once they are the most."""
        self._left += 1
        if self._left > 100 + len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if not self._gone(entry[2])]
            heapify(self._heap)
            self._left = 0
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            wait_s = min(LOOK_AGAIN_S, max(0.0, self._heap[0][0] - self._now()))
            self._timer = self._clock.callLater(wait_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now, heap = self._now(), self._heap
        try:
            for _ in range(AT_ONCE):
                if not heap or heap[0][0] > now:
                    break
                thing = heappop(heap)[2]
                if not self._gone(thing):
                    self._due(thing)
                heap = self._heap
        finally:
            self._arm()
