"""What becomes of notifications, in numbers."""

from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from bakerygw.telemetry.series import Counters, Label

RESULTS: Final = ("accepted", "retried", "refused", "expired", "overflow", "unreadable")


class NotificationMetrics:
    """Implements `ports.NotificationTelemetry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._notified = Counters(
            registry,
            "gateway_notifications",
            "Alerts for the notification service, by what became of them.",
            ("result",),
        )
        self._waiting = Gauge(
            "gateway_notifications_waiting", "Alerts that it has not accepted yet.", registry=registry
        )
        self._oldest = Gauge(
            "gateway_notifications_oldest_seconds", "Since when the oldest of them waits.", registry=registry
        )
        self._results = Label(RESULTS)
        for result in RESULTS:
            self._notified.child(result)

    def notified(self, result: str, number: int = 1) -> None:
        """One of `RESULTS`."""
        self._notified.child(self._results.of(result)).inc(number)

    def notifications_waiting(self, number: int, oldest_s: float) -> None:
        """How the outbox stood when it was looked at last."""
        self._waiting.set(number)
        self._oldest.set(oldest_s)
