"""Turns of the reactor that take too long, seen by how late a timer comes."""

from collections.abc import Callable
from typing import Final

from structlog.typing import FilteringBoundLogger
from twisted.internet.interfaces import IDelayedCall, IReactorTime

STALL_S: Final = 0.1
"""Everybody who is connected has waited for so long: by an order above what a turn takes under load."""
EVERY_S: Final = 0.05
"""A turn of `STALL_S` and this is always seen. Twenty timers a second cost 0.03 % of a core."""
TELL_EVERY_S: Final = 1.0


class StallWatch:
    """Counts, and tells in the log, when timers come more than `STALL_S` late.

    The cause is what ran meanwhile: work of ours that does not yield, or a machine that gave us no time. At most one
    line in `TELL_EVERY_S` is written: how many stalls there were since the last one, and the longest.
    """

    def __init__(self, clock: IReactorTime, log: FilteringBoundLogger, *, stalled: Callable[[], None]) -> None:
        """`stalled` is called for each stall."""
        self._clock, self._log, self._stalled = clock, log, stalled
        self._due = 0.0
        self._timer: IDelayedCall | None = None
        self._untold = 0
        self._longest_s = 0.0
        self._told_at = float("-inf")

    def start(self) -> None:
        """Watch from now on."""
        self._await(self._clock.seconds())

    def stop(self) -> None:
        """Watch no more."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _await(self, now: float) -> None:
        self._due = now + EVERY_S
        self._timer = self._clock.callLater(EVERY_S, self._look)

    def _look(self) -> None:
        now = self._clock.seconds()
        late_s = now - self._due
        self._await(now)
        if late_s > STALL_S:
            self._untold += 1
            self._longest_s = max(self._longest_s, late_s)
            self._stalled()
        if self._untold and now - self._told_at >= TELL_EVERY_S:
            self._log.warning("reactor.stalled", stalls=self._untold, longest_ms=round(self._longest_s * 1000))
            self._untold, self._longest_s, self._told_at = 0, 0.0, now
