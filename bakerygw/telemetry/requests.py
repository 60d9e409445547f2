"""Where the pipeline tells what it did: the log and the metrics behind one port."""

from bakerygw.core.outcome import Outcome, Trace
from bakerygw.telemetry.metrics import Metrics
from bakerygw.telemetry.request_log import RequestLog


class RequestTelemetry:
    """Log lines and metrics of every request (`ports.Telemetry`)."""

    def __init__(self, log: RequestLog, metrics: Metrics) -> None:
        self._log, self._metrics = log, metrics

    def began(self, trace: Trace) -> None:
        """The line before."""
        self._log.began(trace)

    def ended(self, outcome: Outcome) -> None:
        """The metrics, then the line after."""
        self._metrics.ended(outcome)
        self._log.ended(outcome)

    def auth_attempt(self, status: str) -> None:
        """`ok` or the code of a token problem."""
        self._metrics.auth_attempt(status)

    def token_cache(self, hit: bool) -> None:
        """One look-up in the cache of verified tokens."""
        (self._metrics.auth_cache_hits if hit else self._metrics.auth_cache_misses).inc()
