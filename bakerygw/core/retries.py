"""How many second tries a service is worth, as pure state."""


class RetryBudget:
    """Allows second tries up to a share of the requests of the last `window_s` seconds, and a few in any case.

    Where many requests fail, repeating all of them doubles the load on whoever is in trouble. What was counted fades
    with time instead of falling out of the window at its end, so that nothing needs a timer or a call for each request.
    """

    __slots__ = ("_at", "_few", "_recent", "_repeated", "_share", "_total", "_window_s")

    def __init__(self, began: float, *, share: float = 0.1, few_per_s: float = 3.0, window_s: float = 10.0) -> None:
        """`began`: when the first request may have come, in seconds on the clock of `spend`."""
        self._share, self._few, self._window_s = share, few_per_s * window_s, window_s
        self._at = began
        self._total = 0
        self._recent = self._repeated = 0.0

    def spend(self, now: float, total: int) -> bool:
        """Whether one more second try may be made, counted then. `total`: all requests so far; `now` in seconds."""
        passed = max(0.0, now - self._at)
        left = max(0.0, 1.0 - passed / self._window_s)
        within = 1.0 if passed <= self._window_s else self._window_s / passed
        self._recent = self._recent * left + (total - self._total) * within
        self._repeated *= left
        self._at, self._total = now, total
        if self._repeated + 1 > self._few + self._share * self._recent:
            return False
        self._repeated += 1
        return True
