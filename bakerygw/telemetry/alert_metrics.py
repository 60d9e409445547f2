"""The way of alerts into the history, in numbers."""

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from bakerygw.telemetry.series import Counters

PLACES: Final = ("fresh", "known")


class AlertMetrics:
    """Implements `ports.AlertTelemetry`. Reactor thread only."""

    def __init__(self, registry: CollectorRegistry, dropped: Callable[[str], None]) -> None:
        """`dropped` counts events that never became ones of a stream, by reason."""
        self._heard = Counters(registry, "gateway_alerts_heard", "What was published for tenants, as heard.").child()
        placed = Counters(
            registry,
            "gateway_alerts_placed",
            "Alerts in the history; fresh: written by this instance, known: it stood there already.",
            ("result",),
        )
        self._fresh, self._known = (placed.child(place) for place in PLACES)
        self._eras = Counters(registry, "gateway_alert_eras", "Eras begun, as alerts may have been missed.").child()
        self._listening = Gauge(
            "gateway_alerts_listening", "1 while all alerts that are published are heard.", registry=registry
        )
        self._dropped = dropped

    def heard(self) -> None:
        """One message for a tenant."""
        self._heard.inc()

    def placed(self, fresh: int, known: int) -> None:
        """The outcome of one call."""
        self._fresh.inc(fresh)
        self._known.inc(known)

    def dropped(self, reason: str) -> None:
        """One message that is not kept: invalid, too-large or store."""
        self._dropped(reason)

    def listening(self, yes: bool) -> None:
        """Whether all is heard now."""
        self._listening.set(yes)

    def era(self) -> None:
        """One more."""
        self._eras.inc()
