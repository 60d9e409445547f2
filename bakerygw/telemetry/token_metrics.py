"""Metrics of checking tokens: the issuer's key set, and the seals that instances share."""

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric

from bakerygw.telemetry.series import Counters, Label

KEY_SET_RESULTS: Final = ("ok", "unreachable", "timeout", "status", "too-large", "invalid")
SHARED_RESULTS: Final = ("hit", "miss", "foreign", "refused", "unavailable")


class TokenMetrics:
    """`ports.TokenTelemetry`, and the age of the key set. Reactor thread only."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._fetches = Counters(registry, "gateway_key_set_fetches", "Attempts to fetch the key set.", ("result",))
        self._seals = Counters(
            registry, "gateway_shared_tokens", "Look-ups of tokens that another instance has verified.", ("result",)
        )
        self._fetch_results, self._seal_results = Label(KEY_SET_RESULTS), Label(SHARED_RESULTS)
        self.key_set_age_s: float | None = None
        """Since a good set was fetched; `None`, and no sample, where there is none."""
        registry.register(self)
        for result in KEY_SET_RESULTS:
            self._fetches.child(result)
        for result in SHARED_RESULTS:
            self._seals.child(result)

    def key_set(self, result: str) -> None:
        """One attempt to fetch the key set."""
        self._fetches.child(self._fetch_results.of(result)).inc()

    def shared_token(self, result: str) -> None:
        """One look-up among the seals, or one that could not be left there."""
        self._seals.child(self._seal_results.of(result)).inc()

    def collect(self) -> Iterable[Metric]:
        """The gauge, for the registry."""
        family = GaugeMetricFamily(
            "gateway_key_set_age_seconds", "Time since a good key set was fetched; no sample while there is none."
        )
        if self.key_set_age_s is not None:
            family.add_metric((), self.key_set_age_s)
        yield family
