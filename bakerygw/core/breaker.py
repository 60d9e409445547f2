"""A circuit breaker as pure state: after enough failures, spare a sick peer and its callers for a while."""

from collections import deque
from typing import Literal

BreakerState = Literal["closed", "open", "half-open"]


class Breaker:
    """Opens after `failures` failures within `within_s` seconds; `open_s` later lets one probe pass.

    Every `now` is in seconds on one clock of the caller's choice. Ask `allow` before each call, and report each
    allowed call with `success` or `failure`. Successes do not forgive failures while the breaker is closed.
    """

    __slots__ = ("_failed_at", "_open_s", "_opened_at", "_probed_at", "_within_s")

    def __init__(self, failures: int = 5, within_s: float = 10.0, open_s: float = 1.0) -> None:
        self._within_s, self._open_s = within_s, open_s
        self._failed_at: deque[float] = deque(maxlen=failures)
        self._opened_at: float | None = None
        self._probed_at: float | None = None

    def allow(self, now: float) -> bool:
        """Whether a call may be made. In half-open exactly one may, and if it never reports, one more per `open_s`."""
        if self._opened_at is None:
            return True
        if self._waits(now):
            return False
        self._probed_at = now
        return True

    def success(self) -> None:
        """A call went well: a probe's success closes the breaker."""
        if self._probed_at is not None:
            self._opened_at = self._probed_at = None
            self._failed_at.clear()

    def failure(self, now: float) -> bool:
        """A call failed. Returns whether this failure opened the breaker, for the first time or again."""
        if self._opened_at is None:
            self._failed_at.append(now)
            full = len(self._failed_at) == self._failed_at.maxlen
            if not full or now - self._failed_at[0] > self._within_s:
                return False
        elif self._probed_at is None:
            return False  # a straggler from before it opened
        self._opened_at, self._probed_at = now, None
        return True

    def state(self, now: float) -> BreakerState:
        """closed; open (calls are refused); half-open (a probe may pass or is on its way)."""
        if self._opened_at is None:
            return "closed"
        if self._probed_at is None and self._waits(now):
            return "open"
        return "half-open"

    def retry_in_s(self, now: float) -> float:
        """Seconds until the next call may be allowed; 0 if one is allowed now."""
        if self._opened_at is None or not self._waits(now):
            return 0.0
        since = self._opened_at if self._probed_at is None else self._probed_at
        return since + self._open_s - now

    def _waits(self, now: float) -> bool:
        """Whether the opening or the latest probe is less than `open_s` ago; a clock set back starts that anew."""
        if self._probed_at is not None:
            self._probed_at = min(self._probed_at, now)
            return now - self._probed_at < self._open_s
        self._opened_at = now if self._opened_at is None else min(self._opened_at, now)
        return now - self._opened_at < self._open_s
