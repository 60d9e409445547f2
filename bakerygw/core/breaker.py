"""A circuit breaker as pure state: after enough failures, spare a sick peer and its callers for a while."""

from collections import deque
from typing import Literal

BreakerState = Literal["closed", "open", "half-open"]


class Breaker:
    """Opens after `failures` failures within `within_s` seconds; `open_s` later lets one probe pass.

    Every `now` is in seconds on one clock of the caller's choice. Ask `allow` before each call unless `closed`, and
    report each allowed call with `success`, `failure` or `abandon`. While the breaker is closed a success changes
    nothing by itself, and may be reported by adding 1 to `mark`.

    Calls that overlap hand in the `mark` read just before they began. It tells a call from before the latest change,
    whose failure says nothing new, a probe from a call that began before the breaker opened, and how many calls went
    well while others failed.

    A call that is not `firm` may take as long as a third party likes. As a probe it keeps no firm call waiting.
    """

    __slots__ = (
        "_failed",
        "_firm",
        "_floor",
        "_open_s",
        "_opened_at",
        "_opening",
        "_probed_at",
        "_spare",
        "_within_s",
        "closed",
        "mark",
    )

    def __init__(self, failures: int = 5, within_s: float = 10.0, open_s: float = 1.0, share: float = 0.0) -> None:
        """`share`: it stays closed while the failures are less than this part of all calls since the first of them
        began, so that one call in a thousand can't take the peer from the others. It needs `mark` to be kept."""
        self._within_s, self._open_s = within_s, open_s
        self._spare = failures / share - failures if share else float("inf")
        self._failed: deque[tuple[float, int]] = deque(maxlen=failures)
        self._opened_at: float | None = None
        self._probed_at: float | None = None
        self._firm = True
        self._floor = self._opening = 0
        self.closed = True
        """Every call may be made."""
        self.mark = 0
        """Rises with each success and each change."""

    def allow(self, now: float, *, early: bool = False, firm: bool = True) -> bool:
        """Whether a call may be made. In half-open exactly one may, and if it never reports, one more per `open_s`.

        `early` shortens the pause before the probe to nothing: one call at a time. A firm call passes beside a probe
        that is not.
        """
        if self._opened_at is None:
            return True
        beside = firm and not self._firm
        if self._waits(now, beside=beside) and not (early and (self._probed_at is None or beside)):
            return False
        self._probed_at, self._firm = now, firm
        self._change()
        return True

    def success(self, mark: int | None = None) -> bool:
        """A call went well: a probe's success closes the breaker, even if others have followed it meanwhile.

        Else a peer that takes longer than `open_s` over each answer would stay open for as long as it is asked.
        Returns whether it closed the breaker.
        """
        is_probe = self._probed_at is not None if mark is None else mark > self._opening
        if self._opened_at is None or not is_probe:
            return False
        self._opened_at = self._probed_at = None
        self._failed.clear()
        self._change()
        return True

    def failure(self, now: float, mark: int | None = None) -> bool:
        """A call failed. Returns whether this failure opened the breaker, for the first time or again."""
        began = self.mark if mark is None else mark
        if began < self._floor:
            return False
        if self._opened_at is None:
            self._failed.append((now, began))
            first_at, first_mark = self._failed[0]
            enough = len(self._failed) == self._failed.maxlen and now - first_at <= self._within_s
            if not enough or self.mark - first_mark > self._spare:
                return False
        elif self._probed_at is None:
            return False  # a straggler from before it opened
        self._opened_at, self._probed_at = now, None
        self._change()
        self._opening = self.mark
        return True

    def abandon(self, mark: int) -> None:
        """A call ended without saying anything of the peer: if it was the probe, the next call may be."""
        if mark >= self._floor:
            self._probed_at = None

    def state(self, now: float) -> BreakerState:
        """closed; open (calls are refused); half-open (a probe may pass or is on its way)."""
        if self._opened_at is None:
            return "closed"
        if self._probed_at is None and self._waits(now):
            return "open"
        return "half-open"

    def open_for_s(self, now: float) -> float:
        """Seconds since it opened or a probe failed, whichever was later; 0 while it is closed."""
        return 0.0 if self._opened_at is None else max(0.0, now - self._opened_at)

    def retry_in_s(self, now: float) -> float:
        """Seconds until the next call may be allowed; 0 if one is allowed now."""
        if self._opened_at is None or not self._waits(now):
            return 0.0
        since = self._opened_at if self._probed_at is None else self._probed_at
        return since + self._open_s - now

    def _change(self) -> None:
        self.closed = self._opened_at is None
        self.mark += 1
        self._floor = self.mark

    def _waits(self, now: float, *, beside: bool = False) -> bool:
        """Whether the opening or the latest probe is less than `open_s` ago; a clock set back starts that anew.

        `beside`: the probe does not count.
        """
        if self._probed_at is not None and not beside:
            self._probed_at = min(self._probed_at, now)
            return now - self._probed_at < self._open_s
        self._opened_at = now if self._opened_at is None else min(self._opened_at, now)
        return now - self._opened_at < self._open_s
