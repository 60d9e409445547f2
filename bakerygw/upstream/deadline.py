"""How long to wait, and one deadline that is put off again and again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

_SLACK_S: Final = 0.001
"""A deadline this near counts as reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long each wait on a service may take, in seconds."""

    connect_s: float
    """Until the connection stands, TLS and name look-up included."""
    first_byte_s: float
    """From the last byte of the request sent until the final response's head."""
    idle_s: float
    """Between two pieces of a body, either way."""


def _nobody() -> None:
    """Is called by a deadline that was given up."""


class Deadline:
    """Calls back once if a moment passes that nobody has put off or taken back.

    The reactor's timer stays where it is and compares times when it fires: moving it with every request would cost
    more than everything else here.
    """

    __slots__ = ("_at", "_clock", "_fires_at", "_reached", "_timer")

    def __init__(self, clock: IReactorTime, reached: Callable[[], None]) -> None:
        self._clock, self._reached = clock, reached
        self._at: float | None = None
        self._timer: IDelayedCall | None = None
        self._fires_at = 0.0

    def put(self, seconds: float) -> None:
        """The moment is `seconds` from here, whatever it was before."""
        now = self._clock.seconds()
        self._at = now + seconds
        if self._timer is None:
            self._schedule(now, seconds)
        elif self._at < self._fires_at:
            self._timer.cancel()
            self._schedule(now, seconds)

    def clear(self) -> None:
        """There is no deadline for now."""
        self._at = None

    def cancel(self) -> None:
        """There is none any more: leave no timer behind, and let go of whoever was to be called."""
        self._at, self._reached = None, _nobody
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _schedule(self, now: float, seconds: float) -> None:
        self._fires_at = now + seconds
        self._timer = self._clock.callLater(seconds, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._at is None:
            return
        now = self._clock.seconds()
        left = self._at - now
        if left > _SLACK_S:
            self._schedule(now, left)
        else:
            self._at = None
            self._reached()
