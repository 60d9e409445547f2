"""What was asked of other services, in numbers."""

from typing import Final

from prometheus_client import CollectorRegistry

from bakerygw.telemetry.series import Counters, Label

ASKED_FOR: Final = ("subscription", "email", "critical")
RESULTS: Final = (
    "memory", "shared", "answered", "paused",
    "timeout", "unreachable", "unavailable", "invalid", "unauthorized", "forbidden", "unknown",
)  # fmt: skip
LACKS: Final = ("subscription", "entry", "email")
CHANGES: Final = ("written", "retried", "dropped", "unknown")


class LookupMetrics:
    """Implements `ports.LookupTelemetry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lookups = Counters(
            registry, "gateway_lookups", "What tokens leave out, asked of other services.", ("what", "result")
        )
        self._incomplete = Counters(
            registry, "gateway_incomplete_tokens", "Tokens first seen here that leave something out.", ("lacks",)
        )
        self._changes = Counters(
            registry, "gateway_subscription_changes", "Changed subscriptions, as told to all instances.", ("result",)
        )
        self._forged = Counters(registry, "gateway_lookup_seals_refused", "Shared answers whose seal is not ours.")
        self._what, self._results, self._lacks = Label(ASKED_FOR), Label(RESULTS), Label(LACKS)
        self._kinds = Label(CHANGES)
        for lacks in LACKS:
            self._incomplete.child(lacks)

    def looked_up(self, what: str, result: str) -> None:
        """One look-up, and where it ended."""
        self._lookups.child(self._what.of(what), self._results.of(result)).inc()

    def incomplete_token(self, lacks: str) -> None:
        """One token that this instance sees for the first time."""
        self._incomplete.child(self._lacks.of(lacks)).inc()

    def subscription_change(self, result: str) -> None:
        """One change that all instances are to know of."""
        self._changes.child(self._kinds.of(result)).inc()

    def forged(self) -> None:
        """One shared answer that was not believed."""
        self._forged.child().inc()
