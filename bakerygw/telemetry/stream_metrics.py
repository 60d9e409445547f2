"""The streams of alerts in numbers."""

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from bakerygw.telemetry.series import Count, Counters, Label

GAPS: Final = ("epoch", "trimmed", "rewound", "unknown")


class StreamMetrics:
    """Implements `ports.StreamTelemetry`."""

    def __init__(
        self, registry: CollectorRegistry, open_now: Gauge, sent: Count, dropped: Callable[[str], None]
    ) -> None:
        """The three are told of what others count, too."""
        self.streams: Callable[[int], None] = open_now.set
        """So many are open now."""
        self.sent: Callable[[int], None] = sent.inc
        """So many events were written."""
        self.dropped = dropped
        """An event was not sent, for this reason."""
        self._replayed = Counters(
            registry, "gateway_events_replayed", "Events sent to streams from the history, of those sent."
        ).child()
        self._gaps = Counters(
            registry, "gateway_event_gaps", "Holes in what a stream, or all of a tenant's, could be given.", ("reason",)
        )
        self._gap_reasons = Label(GAPS)
        for reason in GAPS:
            self._gaps.child(reason)

    def replayed(self, events: int) -> None:
        """So many of them came from the history."""
        self._replayed.inc(events)

    def gap(self, reason: str) -> None:
        """`epoch`, `trimmed`, `rewound` or `unknown`."""
        self._gaps.child(self._gap_reasons.of(reason)).inc()
