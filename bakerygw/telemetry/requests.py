"""Where the pipeline tells what it did: the log and the metrics behind one port."""

from collections.abc import Callable

from bakerygw.core.outcome import Outcome, Trace
from bakerygw.telemetry.metrics import Metrics
from bakerygw.telemetry.request_log import RequestLog


class RequestTelemetry:
    """Log lines and metrics of every request (`ports.Telemetry`)."""

    def __init__(self, log: RequestLog, metrics: Metrics, *, unwell: Callable[[Outcome], None] | None = None) -> None:
        """`unwell` is told of what was refused or went wrong, a few of many requests, besides."""
        self._log, self._metrics, self._unwell = log, metrics, unwell

    def began(self, trace: Trace) -> None:
        """The line before."""
        self._log.began(trace)

    def ended(self, outcome: Outcome) -> None:
        """The metrics, then the line after."""
        self._metrics.ended(outcome)
        self._log.ended(outcome)
        if (outcome.status >= 400 or outcome.trace.reason is not None) and self._unwell is not None:
            self._unwell(outcome)

    def auth_attempt(self, status: str) -> None:
        """`ok` or the code of a token problem."""
        self._metrics.auth_attempt(status)

    def token_cache(self, hit: bool) -> None:
        """One look-up in the cache of verified tokens."""
        (self._metrics.auth_cache_hits if hit else self._metrics.auth_cache_misses).inc()
