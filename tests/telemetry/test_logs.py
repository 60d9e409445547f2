"""One stream of JSON lines from structlog and from Twisted."""

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import structlog
from twisted.internet import defer
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, Logger, LogPublisher, globalLogPublisher
from twisted.python import failure, log
from zope.interface.verify import verifyObject

from bakerygw.telemetry.logs import LogSystem, LogWriter, configure_logging

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ1c2VyLTEifQ.c2lnbmF0dXJl"


class Log:
    """A configured system that writes to a file."""

    def __init__(self, path: Path, *, level: str = "DEBUG", pretty: bool = False) -> None:
        self.path = path
        self._file = path.open("wb")
        self.writer = LogWriter(self._file.fileno(), Clock(), now=lambda: 1_700_000_000.0)
        self._file.close()
        self.system: LogSystem = configure_logging(self.writer, level=level, pretty=pretty, secrets=["sesame-99"])

    def text(self) -> str:
        self.writer.flush_now()
        return self.path.read_text()

    def records(self) -> list[dict[str, object]]:
        return [orjson.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path / "log")
    yield made
    made.writer.close()
    structlog.reset_defaults()


@pytest.fixture
def observed(journal: Log) -> Iterator[Log]:
    globalLogPublisher.addObserver(journal.system.observer)
    yield journal
    globalLogPublisher.removeObserver(journal.system.observer)


def test_a_record_is_one_json_object_with_time_level_and_event_first(journal: Log) -> None:
    structlog.get_logger("bakerygw.upstream").info("upstream.open", service="sales", port=8001)
    assert journal.records() == [
        {
            "timestamp": "2023-11-14T22:13:20.000000Z",
            "level": "info",
            "event": "upstream.open",
            "logger": "bakerygw.upstream",
            "service": "sales",
            "port": 8001,
        }
    ]
    assert list(journal.records()[0])[:3] == ["timestamp", "level", "event"]


def test_bound_context_is_part_of_a_record(journal: Log) -> None:
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        structlog.get_logger().warning("x.y")
    assert journal.records()[0]["request_id"] == "r-1"


def test_the_level_changes_at_run_time_for_loggers_that_exist_already(journal: Log) -> None:
    early = structlog.get_logger().bind(a=1)
    early.info("one")
    journal.system.level = "warning"
    early.info("two")
    structlog.get_logger().info("three")
    early.warning("four")
    journal.system.level = "DEBUG"
    early.debug("five")
    assert [record["event"] for record in journal.records()] == ["one", "four", "five"]
    assert journal.system.level == "DEBUG"


def test_an_unknown_level_is_refused_and_the_old_one_stays(journal: Log) -> None:
    with pytest.raises(ValueError, match="LOUD"):
        journal.system.level = "loud"
    assert journal.system.level == "DEBUG"


def test_secrets_never_appear(journal: Log) -> None:
    structlog.get_logger().info(
        f"event with {JWT}",
        headers={"Authorization": "Basic abcdef", "Cookie": "s=abcdef"},
        pairs=[(b"authorization", b"abcdef")],
        url="/s?token=abcdef",
        note="the door opens with sesame-99",
        user="ann.baker@example.com",
    )
    text = journal.text()
    for secret in ("abcdef", "eyJ", "sesame-99", "ann.baker"):
        assert secret not in text


def fail_with(token: str) -> None:
    raise ValueError(f"cannot read Bearer {token}")


def test_exceptions_have_their_stack_but_no_locals_and_no_secret(journal: Log) -> None:
    try:
        fail_with(JWT)
    except ValueError:
        structlog.get_logger().exception("edge.crashed")
    (record,) = journal.records()
    stack = record["exception"][0]  # type: ignore[index]
    assert record["level"] == "error"
    assert stack["exc_type"] == "ValueError"
    assert stack["frames"][-1]["name"] == "fail_with"
    assert "locals" not in stack["frames"][-1]
    assert "eyJ" not in journal.text()


HOSTILE = [
    'a\n{"event":"forged"}',
    "a\r\nb",
    "\x1b[2J\x1b[31mred",
    "a\u2028b\u2029c\x85d\x0b\x0ce\x1cf\x9b31m\x7f",
    "\ud800 lone",
    "\x00",
    '"}\\',
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_within_its_record(journal: Log, text: str) -> None:
    structlog.get_logger().info(text, field=text, raw=text.encode("utf-8", "surrogatepass"), **{text: text})
    written = journal.text()
    assert len(written.splitlines()) == 1
    assert written.isprintable() or written.rstrip("\n").isprintable()
    assert orjson.loads(written)["level"] == "info"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_on_its_line_in_the_pretty_format(tmp_path: Path, text: str) -> None:
    pretty = Log(tmp_path / "log", pretty=True)
    structlog.get_logger().info(text, field=text)
    pretty.system.redactor.record({})
    assert len(pretty.text().splitlines()) == 1
    assert "\x1b" not in pretty.text()
    pretty.writer.close()


def test_the_pretty_format_shows_tracebacks_without_secrets(tmp_path: Path) -> None:
    pretty = Log(tmp_path / "log", pretty=True)
    try:
        fail_with(JWT)
    except ValueError:
        structlog.get_logger().exception("edge.crashed", token="abcdef")
    text = pretty.text()
    assert "edge.crashed" in text
    assert "in fail_with" in text
    assert "eyJ" not in text
    assert "abcdef" not in text
    pretty.writer.close()


def test_fields_and_records_are_bounded(journal: Log) -> None:
    structlog.get_logger().info("big", one="x" * 10_000, many=["y" * 2000] * 500, request_id="r-1")
    (record,) = journal.records()
    assert len(record["one"]) <= 2049  # type: ignore[arg-type]
    assert record["truncated"] is True
    assert record["request_id"] == "r-1"
    assert len(journal.text()) < 64 * 1024


def test_the_observer_is_what_twistd_looks_for(journal: Log) -> None:
    assert verifyObject(ILogObserver, journal.system.observer)


def test_twisted_events_become_records(observed: Log) -> None:
    Logger(namespace="twisted.test").warn("port {port} is odd", port=7)
    log.msg("old style", system="HTTPChannel,1")
    (new, old) = observed.records()
    assert (new["level"], new["event"], new["logger"]) == ("warning", "port 7 is odd", "twisted.test")
    assert (old["level"], old["event"], old["logger"]) == ("info", "old style", "HTTPChannel,1")


def test_twisted_failures_keep_their_stack_and_lose_their_secrets(observed: Log, logged_failures: list[object]) -> None:
    try:
        fail_with(JWT)
    except ValueError:
        Logger(namespace="twisted.test").failure("while serving /s?ticket=abcdef")
    (record,) = observed.records()
    assert record["level"] == "critical"
    assert record["exception"][0]["frames"][-1]["name"] == "fail_with"  # type: ignore[index]
    assert "eyJ" not in observed.text()
    assert "abcdef" not in observed.text()
    logged_failures.clear()


def test_a_failure_that_lost_its_traceback_object_is_told_with_its_stack(observed: Log) -> None:
    try:
        fail_with("x")
    except ValueError:
        found = failure.Failure()
    found.cleanFailure()
    log.err(found, "while late")
    (record,) = observed.records()
    assert (record["level"], record["event"]) == ("critical", "while late")
    assert record["exception"][0]["frames"][-1]["name"] == "fail_with"  # type: ignore[index]


def test_an_unhandled_error_in_a_deferred_is_a_record(observed: Log, logged_failures: list[object]) -> None:
    defer.fail(KeyError("lost"))
    gc.collect()
    records = observed.records()
    assert any("Unhandled" in str(record["event"]) for record in records)
    assert "KeyError" in observed.text()
    assert {record["level"] for record in records} == {"critical"}
    logged_failures.clear()


def test_the_chatter_of_factories_is_debug(observed: Log) -> None:
    for text in ("Starting factory <x>", "Stopping factory <x>", "Site starting on 8000", "(TCP Port 8000 Closed)"):
        Logger(namespace="x").info(text)
    Logger(namespace="x").info("Starting the day")
    assert [record["level"] for record in observed.records()] == ["debug"] * 4 + ["info"]


def test_hostile_twisted_text_stays_within_its_record(observed: Log) -> None:
    log.msg('x\n{"event":"forged"}\u2028y\ud800 Bearer abcdef')
    assert len(observed.records()) == 1
    assert "abcdef" not in observed.text()


def test_an_event_that_logs_while_it_is_told_cannot_recurse(observed: Log) -> None:
    class Chatty:
        def __str__(self) -> str:
            log.msg("inner")
            return "outer"

    Logger(namespace="x").info("{chatty}", chatty=Chatty())
    assert [record["event"] for record in observed.records()] == ["outer", "log.dropped"]
    assert observed.writer.dropped == 1


def test_an_observer_that_cannot_tell_counts_and_never_raises(journal: Log) -> None:
    class Broken:
        def log(self, *_: object, **__: object) -> None:
            raise RuntimeError

    lost: list[int] = []
    observer = type(journal.system.observer)(Broken(), lost=lambda: lost.append(1))  # type: ignore[arg-type]
    LogPublisher(observer)({"log_format": "x"})
    assert lost == [1]


def test_other_threads_may_log(observed: Log) -> None:
    threads = [threading.Thread(target=log.msg, args=(f"thread {n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(observed.records()) == 8


TWISTD_LIKE = """
import os, sys, warnings
from twisted.internet import reactor
from twisted.logger import globalLogBeginner
from bakerygw.telemetry.logs import LogWriter, configure_logging
import structlog
writer = LogWriter(1, reactor)
system = configure_logging(writer)
globalLogBeginner.beginLoggingTo([system.observer])
def talk():
    print("printed")
    sys.stderr.write("complained\\n")
    warnings.warn("careful", stacklevel=1)
    structlog.get_logger().info("native")
    1 / 0
reactor.callLater(0, talk)
reactor.callInThread(print, "from a thread")
reactor.callLater(0.1, reactor.stop)
reactor.run()
writer.close()
"""


def test_with_standard_output_redirected_into_the_log_everything_is_json_and_nothing_hangs() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", TWISTD_LIKE],
        capture_output=True,
        timeout=20,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    records = [orjson.loads(line) for line in done.stdout.splitlines()]
    events = [record["event"] for record in records]
    assert done.stderr == b""
    for expected in ("printed", "complained", "native", "from a thread"):
        assert expected in events
    assert any("careful" in event for event in events)
    assert any(record.get("exception", [{}])[0].get("exc_type") == "ZeroDivisionError" for record in records)
