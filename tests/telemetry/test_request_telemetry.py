"""The two lines of a request, and what the metrics make of it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
import structlog
from prometheus_client import CollectorRegistry
from twisted.internet.task import Clock

from bakerygw.core.outcome import Outcome, Trace
from bakerygw.ports import Telemetry
from bakerygw.telemetry.logs import LogSystem, LogWriter, RequestLog, configure_logging
from bakerygw.telemetry.metrics import Metrics
from bakerygw.telemetry.requests import RequestTelemetry

ROUTE = "/api/v1/sales/**"


def trace(**more: object) -> Trace:
    fields: dict[str, object] = {
        "request_id": "req-12345678",
        "started": 1.0,
        "method": "GET",
        "path": "/api/v1/sales/1",
        "route": ROUTE,
        "client": "192.0.2.7",
    }
    return Trace(**{**fields, **more})  # type: ignore[arg-type]


def outcome(status: int = 200, **more: object) -> Outcome:
    return Outcome(trace=trace(**more), status=status, bytes_in=10, bytes_out=2000, duration_s=0.0123456)


class Rig:
    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("wb") as file:
            self.writer = LogWriter(file.fileno(), Clock(), now=lambda: 1_700_000_000.0)
        self.system: LogSystem = configure_logging(self.writer)
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, routes=[ROUTE], services=["sales"])
        self.telemetry: Telemetry = RequestTelemetry(RequestLog(self.system), self.metrics)

    def text(self) -> str:
        self.writer.flush_now()
        return self.path.read_text()

    def records(self) -> list[dict[str, object]]:
        return [orjson.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "log")
    yield made
    made.writer.close()
    structlog.reset_defaults()


def test_a_request_leaves_a_line_before_and_a_line_after(rig: Rig) -> None:
    rig.telemetry.began(trace())
    rig.telemetry.ended(outcome(user_id="u-1", tenant_id="t-1", service="sales", upstream_s=0.01, limited="default"))
    before, after = rig.records()
    shared = {"timestamp": "2023-11-14T22:13:20.000000Z", "level": "info", "request_id": "req-12345678"} | {
        "method": "GET",
        "route": ROUTE,
        "path": "/api/v1/sales/1",
        "client": "192.0.2.7",
    }
    assert before == shared | {"event": "request.start"}
    assert after == shared | {
        "event": "request.done",
        "status": 200,
        "duration_ms": 12.346,
        "upstream_ms": 10.0,
        "bytes_in": 10,
        "bytes_out": 2000,
        "user_id": "u-1",
        "tenant_id": "t-1",
        "service": "sales",
        "limited": "default",
    }


@pytest.mark.parametrize(
    ("status", "level"), [(200, "info"), (401, "info"), (429, "info"), (500, "error"), (504, "error")]
)
def test_only_server_errors_are_errors(rig: Rig, status: int, level: str) -> None:
    rig.telemetry.ended(outcome(status, reason="some-code"))
    assert [(record["level"], record["reason"]) for record in rig.records()] == [(level, "some-code")]


def test_the_log_level_holds_for_request_lines_and_metrics_go_on(rig: Rig) -> None:
    rig.system.level = "WARNING"
    rig.telemetry.began(trace())
    rig.telemetry.ended(outcome(200))
    rig.telemetry.ended(outcome(502))
    assert [record["status"] for record in rig.records()] == [502]
    assert rig.registry.get_sample_value(
        "gateway_requests_total", {"method": "GET", "path": ROUTE, "status_code": "200"}
    )


@pytest.mark.parametrize(
    "path",
    [
        "/x/eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ1In0.sig",
        "/x;token=eyJsecret1",
        "/x%3Ftoken%3DeyJsecret",
        "/users/eyJ.b@example.com",
    ],
)
def test_a_path_with_a_secret_is_masked(rig: Rig, path: str) -> None:
    rig.telemetry.began(trace(path=path))
    rig.telemetry.ended(outcome(path=path))
    assert "eyJ" not in rig.text()
    assert len(rig.records()) == 2


@pytest.mark.parametrize("path", ["/till/bkry_secret", "/bkry_secret/x", "/BKRY_secret", "/%62kry_secret"])
def test_a_path_with_an_api_key_is_masked(rig: Rig, path: str) -> None:
    rig.telemetry.began(trace(path=path))
    rig.telemetry.ended(outcome(path=path))
    assert "secret" not in rig.text()


@pytest.mark.parametrize("text", ["/a\u2028b", "/a\ud800", '/a"\n{}', "/" + "x" * 9000, "/\x1b[2J"])
def test_hostile_fields_stay_within_their_record(rig: Rig, text: str) -> None:
    rig.telemetry.began(trace(path=text, client=text))
    rig.telemetry.ended(outcome(500, path=text, cause=text, user_id=text))
    assert len(rig.records()) == 2
    assert all(len(str(record["path"])) <= 2049 for record in rig.records())


def test_the_cause_is_redacted(rig: Rig) -> None:
    rig.telemetry.ended(outcome(503, cause="cannot reach redis://:abcdef@cache:6379"))
    assert rig.records()[0]["cause"] == "cannot reach redis://***@cache:6379"


def test_request_lines_have_the_pretty_format_too(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        writer = LogWriter(file.fileno(), Clock())
    log = RequestLog(configure_logging(writer, pretty=True))
    log.ended(outcome())
    writer.close()
    assert "request.done" in (tmp_path / "log").read_text()
    assert not (tmp_path / "log").read_text().startswith("{")
    structlog.reset_defaults()


def test_token_notes_reach_the_metrics(rig: Rig) -> None:
    rig.telemetry.auth_attempt("token-expired")
    rig.telemetry.token_cache(hit=True)
    rig.telemetry.token_cache(hit=False)
    rig.telemetry.token_cache(hit=False)
    value = rig.registry.get_sample_value
    assert value("gateway_auth_attempts_total", {"status": "token-expired"}) == 1
    assert value("gateway_auth_cache_hits_total") == 1
    assert value("gateway_auth_cache_misses_total") == 2


def test_an_outcome_is_not_changed_by_telling_it(rig: Rig) -> None:
    told = outcome()
    copy = replace(told, trace=replace(told.trace))
    rig.telemetry.ended(told)
    assert told == copy
