"""How many frames a peer may send: who sends more is read later, and loses nothing."""

from typing import Final

BURST_S: Final = 1.0
"""So many seconds' frames may come at once."""
LEAST_REST_S: Final = 0.01
"""What is overdrawn is saved up until it is worth a timer."""


class FrameBudget:
    """A token bucket that may be overdrawn: frames are known once they have come (the generic cell rate algorithm)."""

    def __init__(self, per_second: int) -> None:
        self._cost_s = 1 / per_second
        self._full_at = 0.0

    def spend(self, frames: int, now: float) -> float:
        """Take so many, and tell for how many seconds to read nothing. Those are over whenever this is called again."""
        # Bounded, so that a clock that was set back delays nothing.
        missing_s = min(max(self._full_at - now, 0.0), BURST_S + LEAST_REST_S) + frames * self._cost_s
        self._full_at = now + missing_s
        rest_s = missing_s - BURST_S
        return rest_s if rest_s >= LEAST_REST_S else 0.0
