"""What the way to the shared store reports, as metrics."""

from bakerygw.telemetry.metrics import REDIS_FAILURES, Metrics
from bakerygw.telemetry.series import Label


class StoreMetrics:
    """What the store's adapter reports, as metrics (`ports.StoreTelemetry`)."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._kinds = Label(REDIS_FAILURES)

    def round_trip(self, seconds: float) -> None:
        """One call answered."""
        self._metrics.redis_round_trips.inc()
        self._metrics.redis_duration.observe(seconds)

    def failure(self, kind: str) -> None:
        """One call without an answer: timeout, disconnected, error or open."""
        self._metrics.redis_failures.child(self._kinds.of(kind)).inc()

    def degraded(self, yes: bool) -> None:
        """Whether admission runs on local state now."""
        self._metrics.redis_degraded.set(yes)
