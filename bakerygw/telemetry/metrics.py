"""What Prometheus is told. Labels come from fixed sets and the configuration, never from a request's bytes."""

import platform
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version as installed
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, Metric

from bakerygw.core.geocoding import OUTCOMES
from bakerygw.core.outcome import Outcome
from bakerygw.core.problem import PROBLEMS
from bakerygw.telemetry.alert_metrics import AlertMetrics
from bakerygw.telemetry.lookups import LookupMetrics
from bakerygw.telemetry.notifications import NotificationMetrics
from bakerygw.telemetry.series import OTHER, Count, Counters, Label, Spread, Spreads
from bakerygw.telemetry.socket_metrics import SocketMetrics
from bakerygw.telemetry.stream_metrics import StreamMetrics
from bakerygw.telemetry.token_metrics import TokenMetrics

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
NO_ROUTE: Final = "(none)"
AUTH_STATUSES: Final = (
    "ok",
    "csrf",
    "origin-forbidden",
    *sorted(code for code in PROBLEMS if code.startswith("token-")),
)
HEALTH_STATES: Final = ("healthy", "unhealthy", "unknown")
BREAKER_STATES: Final = ("closed", "half-open", "open")
POOL_STATES: Final = ("idle", "active")
REDIS_FAILURES: Final = ("timeout", "disconnected", "error", "open")
AUDIT_RESULTS: Final = ("written", "dropped")
EVENT_DROPS: Final = ("slow", "invalid", "too-large", "store", "closed")

SECONDS: Final[tuple[float, ...]] = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
SHORT_SECONDS: Final[tuple[float, ...]] = (0.0001, 0.00025, 0.0005, *SECONDS[:10])
"""The gateway's own time and Redis: well under a millisecond when all is well."""
BYTES: Final = (0, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 10_485_760, 104_857_600)


class _Route:
    """The series of one method and route, looked up once per request."""

    __slots__ = ("duration", "internal", "request_size", "response_size", "statuses")

    def __init__(self, metrics: "Metrics", method: str, route: str) -> None:
        self.duration: Spread = metrics.request_duration.child(method, route)
        self.request_size: Spread = metrics.request_size.child(method, route)
        self.response_size: Spread = metrics.response_size.child(method, route)
        self.internal: Spread = metrics.internal_duration.child(route)
        self.statuses: dict[int, Count] = {}


class Metrics:
    """Every metric of the gateway on one registry. Reactor thread only; no method raises for an unknown label."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        routes: Iterable[str] = (),
        services: Iterable[str] = (),
        limits: Iterable[str] = (),
        version: str = "unknown",
        compiled: bool = False,
        log_lines_dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        """`routes` are the templates, `services` and `limits` the names that are configured; all others are `OTHER`.

        `log_lines_dropped` is asked at each scrape; `version` and `compiled` tell of the gateway's own build.
        """
        self._registry = registry
        self._methods = Label(METHODS)
        self._routes = Label((NO_ROUTE, *routes))
        self._services = Label(services)
        self._limits = Label(limits)
        self._codes = Label(PROBLEMS)
        self._by_route: dict[tuple[str, str], _Route] = {}
        self._before_scrape: list[Callable[[], None]] = []
        self._request_families()
        self._policy_families()
        self._redis_families()
        self.tokens = TokenMetrics(registry)
        self.lookups = LookupMetrics(registry)
        self.alerts = AlertMetrics(registry, self.event_dropped)
        self.notifications = NotificationMetrics(registry)
        self._gauges(version, "compiled" if compiled else "plain")
        self.streams = StreamMetrics(registry, self.sse_connections, self.events_sent, self.event_dropped)
        self.reactor_stalls = Counters(
            registry, "gateway_reactor_stalls", "Turns of the reactor that held up everything for more than 0.1 s."
        ).child()
        registry.register(_Asked("gateway_log_lines_dropped", "Log lines lost to a stalled reader.", log_lines_dropped))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)

    def _request_families(self) -> None:
        registry, by = self._registry, ("method", "path")
        self.requests = Counters(registry, "gateway_requests", "Requests answered.", (*by, "status_code"))
        self.request_duration = Spreads(
            registry, "gateway_request_duration_seconds", "Time from a request's head to its end.", SECONDS, by
        )
        self.request_size = Spreads(registry, "gateway_request_size_bytes", "Request body bytes taken.", BYTES, by)
        self.response_size = Spreads(registry, "gateway_response_size_bytes", "Response body bytes sent.", BYTES, by)
        self.internal_duration = Spreads(
            registry,
            "gateway_internal_duration_seconds",
            "Request time less the wait for the service's response head.",
            SHORT_SECONDS,
            ("path",),
        )
        self.upstream_duration = Spreads(
            registry, "gateway_upstream_duration_seconds", "Wait for a service's response head.", SECONDS, ("service",)
        )

    def _policy_families(self) -> None:
        registry = self._registry
        self._auth_status = Label(AUTH_STATUSES)
        self.auth_attempts = Counters(registry, "gateway_auth_attempts", "Access tokens presented.", ("status",))
        self._key_status = Label(("ok", *PROBLEMS))
        self.key_attempts = Counters(registry, "gateway_api_key_attempts", "API keys presented.", ("status",))
        self.auth_cache_hits = Counters(
            registry, "gateway_auth_cache_hits", "Tokens found in the cache of verified tokens."
        ).child()
        self.auth_cache_misses = Counters(
            registry, "gateway_auth_cache_misses", "Tokens not found in the cache of verified tokens."
        ).child()
        self.rate_limit_exceeded = Counters(
            registry, "gateway_rate_limit_exceeded", "Requests over a limit, shadow limits included.", ("endpoint",)
        )
        self.policy_exceeded = Counters(
            registry,
            "gateway_rate_limit_policy_exceeded",
            "Requests over a limit by its name; shadow: counted, but not refused for it.",
            ("policy", "shadow"),
        )
        self.refusals = Counters(
            registry, "gateway_refused", "Requests that the gateway answered with a problem of its own.", ("reason",)
        )
        self._geocoded = Counters(registry, "gateway_geocoded", "Addresses looked up, by how that ended.", ("result",))
        self._geocode_outcomes = Label(OUTCOMES)
        self.alerts_posted = Counters(registry, "gateway_alerts_posted", "Alerts published by calls.", ("result",))
        self.events_sent = Counters(registry, "gateway_events_sent", "Events sent to streams.").child()
        self._event_drops = Counters(
            registry, "gateway_events_dropped", "Events not kept, or not sent to a stream.", ("reason",)
        )
        self._drop_reasons = Label(EVENT_DROPS)
        self.audit_entries = Counters(registry, "gateway_audit_entries", "Entries of the audit trail.", ("result",))
        for result in AUDIT_RESULTS:
            self.audit_entries.child(result)
        for status in AUTH_STATUSES:
            self.auth_attempts.child(status)
            self.key_attempts.child(status)

    def _redis_families(self) -> None:
        registry = self._registry
        self.redis_round_trips = Counters(registry, "gateway_redis_round_trips", "Calls that Redis answered.").child()
        self.redis_duration = Spreads(
            registry, "gateway_redis_duration_seconds", "Time that Redis took to answer.", SHORT_SECONDS
        ).child()
        self.redis_failures = Counters(
            registry, "gateway_redis_failures", "Calls without an answer; open: spared by the breaker.", ("kind",)
        )
        self.redis_degraded = Gauge(
            "gateway_redis_degraded", "1 while admission runs on local state.", registry=registry
        )
        self._mirror_trusted = Gauge(
            "gateway_mirror_trusted", "1 while tenants' flags are known without asking Redis.", registry=registry
        )
        self._mirror_hits = Counters(
            registry, "gateway_mirror_hits", "Requests whose flags and revocation were known without asking Redis."
        ).child()
        self._mirror_misses = Counters(
            registry, "gateway_mirror_misses", "Requests whose flags or revocation had to be asked of Redis."
        ).child()
        for kind in REDIS_FAILURES:
            self.redis_failures.child(kind)

    def _gauges(self, version: str, kind: str) -> None:
        registry = self._registry
        self.connections = Gauge("gateway_connections", "Open client connections.", registry=registry)
        self._refused_connections = Counters(
            registry, "gateway_connections_refused", "Client connections over a bound, closed at once.", ("limit",)
        )
        for bound in ("all", "client"):
            self._refused_connections.child(bound)
        self.sse_connections = Gauge("gateway_sse_connections", "Open event streams.", registry=registry)
        self.ws_connections = Gauge("gateway_ws_connections", "Open WebSockets.", registry=registry)
        self.sockets = SocketMetrics(registry, self.ws_connections)
        self._health = Gauge(
            "gateway_service_health",
            "1 for the status that a service is in, else 0.",
            ("service_name", "status"),
            registry=registry,
        )
        self._pool = Gauge(
            "gateway_upstream_pool_connections", "Connections to services.", ("service", "state"), registry=registry
        )
        self._breaker = Gauge(
            "gateway_breaker_state",
            "How many of a service's URLs have a breaker in that state.",
            ("service_name", "state"),
            registry=registry,
        )
        build = Gauge(
            "gateway_build_info",
            "1, with the versions at work; build: compiled or plain.",
            ("version", "build", "python", "twisted"),
            registry=registry,
        )
        build.labels(version, kind, platform.python_version(), installed("twisted")).set(1)

    def allow(self, *, routes: Iterable[str] = (), services: Iterable[str] = (), limits: Iterable[str] = ()) -> None:
        """Know further templates, services and limits, after the configuration was reloaded."""
        self._limits.allow(limits)
        self._routes.allow(routes)
        self._services.allow(services)

    def forget_services(self) -> None:
        """Drop the gauges of all services; those that are still there appear again at the next scrape.

        Counters and histograms stay: a counter that goes away and comes back looks like a restart.
        """
        for gauge in (self._health, self._pool, self._breaker):
            gauge.clear()

    def ended(self, outcome: Outcome) -> None:
        """Count one request. Takes about 1 us."""
        trace = outcome.trace
        series = self._by_route.get((trace.method, trace.route)) or self._series(trace.method, trace.route)
        (series.statuses.get(outcome.status) or self._status(series, trace.method, trace.route, outcome.status)).inc()
        series.duration.observe(outcome.duration_s)
        series.request_size.observe(outcome.bytes_in)
        series.response_size.observe(outcome.bytes_out)
        duration_s = outcome.duration_s if trace.begun_s is None else trace.begun_s
        if trace.upstream_s is None:
            series.internal.observe(duration_s)
        else:
            if outcome.status != 101:  # a WebSocket's duration is its users' affair
                series.internal.observe(max(0.0, duration_s - trace.upstream_s))
            self.upstream_duration.child(self._services.of(trace.service or "")).observe(trace.upstream_s)
        if trace.limited is not None:
            self.rate_limit_exceeded.child(self._routes.of(trace.route)).inc()
            for policy, shadow in trace.exceeded:
                self.policy_exceeded.child(self._limits.of(policy), "true" if shadow else "false").inc()
        if trace.reason in PROBLEMS:
            self.refusals.child(trace.reason).inc()

    def refused(self, reason: str) -> None:
        """Count a refusal that never became a request with an outcome. `reason` is a problem code."""
        self.refusals.child(self._codes.of(reason)).inc()

    def auth_attempt(self, status: str) -> None:
        """`ok` or the code of a token problem."""
        self.auth_attempts.child(self._auth_status.of(status)).inc()

    def audited(self, result: str, number: int) -> None:
        """Count entries of the audit trail: `written` or `dropped`."""
        self.audit_entries.child(result).inc(number)

    def key_attempt(self, status: str) -> None:
        """`ok`, or the code of the problem that an API key met."""
        self.key_attempts.child(self._key_status.of(status)).inc()

    def event_dropped(self, reason: str) -> None:
        """`slow`, `invalid`, `too-large`, `store` or `closed`."""
        self._event_drops.child(self._drop_reasons.of(reason)).inc()

    def connection_refused(self, limit: str) -> None:
        """Count a client's connection that was closed at once; `limit` is all or client."""
        self._refused_connections.child(limit).inc()

    def geocoded(self, outcome: str) -> None:
        """Count a request for an address, by one of `core.geocoding.OUTCOMES`."""
        self._geocoded.child(self._geocode_outcomes.of(outcome)).inc()

    def service_health(self, service: str, status: str) -> None:
        """Set the status that a service is in: healthy, unhealthy, else unknown."""
        name, now = self._services.of(service), status if status in HEALTH_STATES else "unknown"
        for state in HEALTH_STATES:
            self._health.labels(name, state).set(state == now)

    def pool_connections(self, service: str, *, idle: int, active: int) -> None:
        """Set how many connections a service's pools hold: ready for use, and in use."""
        name = self._services.of(service)
        for state, number in zip(POOL_STATES, (idle, active), strict=True):
            self._pool.labels(name, state).set(number)

    def breaker_state(self, service: str, states: Sequence[str]) -> None:
        """Set the states of the breakers of a service's URLs, one each: closed, half-open or open."""
        name = self._services.of(service)
        for state in BREAKER_STATES:
            self._breaker.labels(name, state).set(states.count(state))

    def mirror(self, trusted: bool, *, hits: int, misses: int) -> None:
        """Set the state of the mirror of Redis, and its look-ups since the start."""
        self._mirror_trusted.set(trusted)
        self._mirror_hits.value, self._mirror_misses.value = hits, misses

    def before_scrape(self, refresh: Callable[[], None]) -> None:
        """Call `refresh` before each exposition, to bring gauges up to date."""
        self._before_scrape.append(refresh)

    def exposition(self) -> tuple[bytes, str]:
        """The text format and its content type."""
        for refresh in self._before_scrape:
            refresh()
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _series(self, method: str, route: str) -> _Route:
        """The series of this pair; those of unknown methods and routes are shared and not remembered by name."""
        key = (self._methods.of(method), self._routes.of(route))
        found = self._by_route.get(key)
        if found is None:
            found = self._by_route[key] = _Route(self, *key)
        return found

    def _status(self, series: _Route, method: str, route: str, status: int) -> Count:
        if not 100 <= status <= 599:
            return self.requests.child(self._methods.of(method), self._routes.of(route), OTHER)
        count = self.requests.child(self._methods.of(method), self._routes.of(route), str(status))
        series.statuses[status] = count
        return count


class _Asked:
    """A counter that is kept elsewhere."""

    def __init__(self, name: str, text: str, ask: Callable[[], int]) -> None:
        self._name, self._text, self._ask = name, text, ask

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(self._name, self._text, value=self._ask())
