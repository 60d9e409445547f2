"""Names, values and the bounded number of series."""

import random

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from bakerygw.core.outcome import Outcome, Trace
from bakerygw.ports import StoreTelemetry
from bakerygw.telemetry.metrics import AUTH_STATUSES, Metrics
from bakerygw.telemetry.series import OTHER
from bakerygw.telemetry.store_metrics import StoreMetrics

ROUTES = ("/api/v1/sales/**", "/api/v1/auth/login")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry(), routes=ROUTES, services=["sales", "auth"], version="1.2.3")


def series(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.exposition()[0].decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return series(metrics)[name, tuple(sorted(labels.items()))]


def done(*, status: int = 200, duration_s: float = 0.02, **fields: object) -> Outcome:
    known: dict[str, object] = {"request_id": "r", "started": 0.0, "method": "GET", "route": ROUTES[0]}
    trace = Trace(**{**known, **fields})  # type: ignore[arg-type]
    return Outcome(trace=trace, status=status, bytes_in=100, bytes_out=5000, duration_s=duration_s)


def test_a_request_is_counted_and_measured_by_method_route_and_status(metrics: Metrics) -> None:
    metrics.ended(done(service="sales", upstream_s=0.015))
    metrics.ended(done(service="sales", upstream_s=0.015, status=404))
    by = {"method": "GET", "path": ROUTES[0]}
    assert value(metrics, "gateway_requests_total", **by, status_code="200") == 1
    assert value(metrics, "gateway_requests_total", **by, status_code="404") == 1
    assert value(metrics, "gateway_request_duration_seconds_count", **by) == 2
    assert value(metrics, "gateway_request_duration_seconds_sum", **by) == pytest.approx(0.04)
    assert value(metrics, "gateway_request_size_bytes_sum", **by) == 200
    assert value(metrics, "gateway_response_size_bytes_sum", **by) == 10_000
    assert value(metrics, "gateway_internal_duration_seconds_sum", path=ROUTES[0]) == pytest.approx(0.01)
    assert value(metrics, "gateway_upstream_duration_seconds_sum", service="sales") == pytest.approx(0.03)


def test_api_keys_are_counted_by_how_it_ended(metrics: Metrics) -> None:
    name = "gateway_api_key_attempts_total"
    assert value(metrics, name, status="ok") == 0
    for status in ("ok", "token-revoked", "tenant-forbidden", "tenant-forbidden", "bkry_x", "y"):
        metrics.key_attempt(status)
    assert value(metrics, name, status="tenant-forbidden") == 2
    assert value(metrics, name, status="token-revoked") == 1
    assert {dict(labels)["status"] for its, labels in series(metrics) if its == name} == {
        *AUTH_STATUSES,
        "tenant-forbidden",
        OTHER,
    }


def test_buckets_are_cumulative_and_their_bounds_inclusive(metrics: Metrics) -> None:
    for duration_s in (0.001, 0.0011, 100.0):
        metrics.ended(done(duration_s=duration_s))
    by = {"method": "GET", "path": ROUTES[0]}
    name = "gateway_request_duration_seconds_bucket"
    assert value(metrics, name, **by, le="0.001") == 1
    assert value(metrics, name, **by, le="0.0025") == 2
    assert value(metrics, name, **by, le="60.0") == 2
    assert value(metrics, name, **by, le="+Inf") == 3


def test_time_without_a_service_is_the_gateways_own(metrics: Metrics) -> None:
    metrics.ended(done(upstream_s=None, duration_s=0.5))
    metrics.ended(done(upstream_s=0.7, duration_s=0.5))
    assert value(metrics, "gateway_internal_duration_seconds_sum", path=ROUTES[0]) == pytest.approx(0.5)


def test_how_long_a_stream_stays_open_is_not_the_gateways_own_time(metrics: Metrics) -> None:
    metrics.ended(done(begun_s=0.25, duration_s=3600.0))
    by = {"method": "GET", "path": ROUTES[0]}
    assert value(metrics, "gateway_internal_duration_seconds_sum", path=ROUTES[0]) == pytest.approx(0.25)
    assert value(metrics, "gateway_request_duration_seconds_sum", **by) == pytest.approx(3600.0)


def test_limits_are_counted_by_name_too_and_shadows_apart() -> None:
    metrics = Metrics(CollectorRegistry(), routes=ROUTES, limits=["default", "bakery"])
    metrics.ended(done(limited="default, bakery", exceeded=(("default", False), ("bakery", True))))
    metrics.ended(done(limited="made up", exceeded=(("made up", False),)))
    name = "gateway_rate_limit_policy_exceeded_total"
    assert value(metrics, name, policy="default", shadow="false") == 1
    assert value(metrics, name, policy="bakery", shadow="true") == 1
    assert value(metrics, name, policy="OTHER", shadow="false") == 1
    assert value(metrics, "gateway_rate_limit_exceeded_total", endpoint=ROUTES[0]) == 2
    metrics.allow(limits=["made up"])
    metrics.ended(done(limited="made up", exceeded=(("made up", False),)))
    assert value(metrics, name, policy="made up", shadow="false") == 1


def test_limits_and_refusals_are_counted(metrics: Metrics) -> None:
    metrics.ended(done(status=429, reason="rate-limited", limited="default"))
    metrics.ended(done(limited="shadow"))
    metrics.ended(done(reason="cut-by-client"))
    metrics.refused("bad-request")
    assert value(metrics, "gateway_rate_limit_exceeded_total", endpoint=ROUTES[0]) == 2
    assert value(metrics, "gateway_refused_total", reason="rate-limited") == 1
    assert value(metrics, "gateway_refused_total", reason="bad-request") == 1
    assert sum(n for (name, _), n in series(metrics).items() if name == "gateway_refused_total") == 2


def anything(metrics: Metrics, noise: random.Random) -> None:
    word = "".join(noise.choices('abc/{}"\n\\é%', k=8))
    metrics.ended(
        done(method=word, route=word, status=noise.choice([0, -1, 99, 600, 1000 + noise.randrange(9999)]), service=word)
    )
    metrics.ended(done(method=word, route=word, upstream_s=0.1, service=word, reason=word, limited=word))
    metrics.auth_attempt(word)
    metrics.refused(word)
    metrics.event_dropped(word)
    metrics.service_health(word, word)
    metrics.pool_connections(word, idle=1, active=1)
    metrics.breaker_state(word, [word])
    StoreMetrics(metrics).failure(word)


def test_random_input_adds_no_series(metrics: Metrics) -> None:
    noise = random.Random(1)
    anything(metrics, noise)
    for status in (0, 200):
        metrics.ended(done(method="?", route="?", status=status))
    before = set(series(metrics))
    for _ in range(10_000):
        anything(metrics, noise)
    assert set(series(metrics)) == before


def test_routes_of_a_reloaded_configuration_are_known_after_allow(metrics: Metrics) -> None:
    metrics.ended(done(route="/new"))
    metrics.allow(routes=["/new"], services=["stock"])
    metrics.ended(done(route="/new"))
    assert value(metrics, "gateway_requests_total", method="GET", path="OTHER", status_code="200") == 1
    assert value(metrics, "gateway_requests_total", method="GET", path="/new", status_code="200") == 1


def test_a_services_health_is_a_set_of_states(metrics: Metrics) -> None:
    for status in ("healthy", "unhealthy"):
        metrics.service_health("sales", status)
        states = {
            state: value(metrics, "gateway_service_health", service_name="sales", status=state)
            for state in ("healthy", "unhealthy", "unknown")
        }
        assert states == {"healthy": 0, "unhealthy": 0, "unknown": 0} | {status: 1}


def test_the_stores_reports_are_counted(metrics: Metrics) -> None:
    store: StoreTelemetry = StoreMetrics(metrics)
    store.round_trip(0.0002)
    store.failure("timeout")
    store.degraded(yes=True)
    assert value(metrics, "gateway_redis_round_trips_total") == 1
    assert value(metrics, "gateway_redis_duration_seconds_bucket", le="0.00025") == 1
    assert value(metrics, "gateway_redis_failures_total", kind="timeout") == 1
    assert value(metrics, "gateway_redis_failures_total", kind="open") == 0
    assert value(metrics, "gateway_redis_degraded") == 1
    store.degraded(yes=False)
    assert value(metrics, "gateway_redis_degraded") == 0


def test_pools_breakers_and_streams_are_shown(metrics: Metrics) -> None:
    metrics.pool_connections("sales", idle=3, active=2)
    metrics.breaker_state("sales", ["open", "closed", "open"])
    metrics.events_sent.inc(4)
    metrics.event_dropped("slow")
    metrics.connections.inc()
    assert value(metrics, "gateway_upstream_pool_connections", service="sales", state="idle") == 3
    assert value(metrics, "gateway_upstream_pool_connections", service="sales", state="active") == 2
    breakers = {
        state: value(metrics, "gateway_breaker_state", service_name="sales", state=state)
        for state in ("closed", "half-open", "open")
    }
    assert breakers == {"closed": 1, "half-open": 0, "open": 2}
    assert value(metrics, "gateway_events_sent_total") == 4
    assert value(metrics, "gateway_events_dropped_total", reason="slow") == 1
    assert value(metrics, "gateway_connections") == 1


def test_lines_that_the_log_lost_are_read_at_each_scrape() -> None:
    lost = [0]
    metrics = Metrics(CollectorRegistry(), log_lines_dropped=lambda: lost[0])
    lost[0] = 7
    assert value(metrics, "gateway_log_lines_dropped_total") == 7


def test_the_exposition_names_the_build_and_the_process_and_has_no_created_series(metrics: Metrics) -> None:
    metrics.ended(done())
    text, content_type = metrics.exposition()
    assert content_type.startswith("text/plain")
    assert b'gateway_build_info{build="plain",python="' in text
    assert b'version="1.2.3"' in text
    assert b"process_resident_memory_bytes" in text
    assert b"_created" not in text


def test_the_exposition_tells_a_compiled_build() -> None:
    text, _ = Metrics(CollectorRegistry(), compiled=True).exposition()

    assert b'gateway_build_info{build="compiled",' in text


def test_two_gateways_in_one_process_share_nothing() -> None:
    one, two = Metrics(CollectorRegistry(), routes=ROUTES), Metrics(CollectorRegistry(), routes=ROUTES)
    one.ended(done())
    assert not any(name == "gateway_requests_total" for name, _ in series(two))


def test_gauges_of_services_that_are_gone_go_too(metrics: Metrics) -> None:
    asked = iter(["sales", "auth", "auth", "auth"])
    metrics.before_scrape(lambda: metrics.pool_connections("auth", idle=1, active=2))
    metrics.before_scrape(lambda: metrics.service_health(next(asked), "healthy"))
    metrics.breaker_state("sales", ["open"])
    metrics.pool_connections("sales", idle=1, active=0)
    assert value(metrics, "gateway_service_health", service_name="sales", status="healthy") == 1

    metrics.forget_services()

    left = {labels for name, labels in series(metrics) if name.startswith(("gateway_service", "gateway_upstream_pool"))}
    assert not [labels for labels in left if ("service", "sales") in labels or ("service_name", "sales") in labels]
    assert not [labels for name, labels in series(metrics) if name == "gateway_breaker_state"]
    assert value(metrics, "gateway_upstream_pool_connections", service="auth", state="active") == 2


def test_look_ups_of_addresses_are_counted_by_how_they_ended():
    metrics = Metrics(CollectorRegistry())
    metrics.geocoded("asked")
    metrics.geocoded("asked")
    metrics.geocoded("a stranger's word")
    text = metrics.exposition()[0].decode()
    assert 'gateway_geocoded_total{result="asked"} 2.0' in text
    assert "stranger" not in text
