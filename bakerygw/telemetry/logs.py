"""structlog and Twisted's log as one stream of JSON lines, redacted, with a level that changes at run time.

`configure_logging` is called once, with the real descriptor, before twistd redirects standard output: a logger that
writes to the redirected stream would feed itself.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

import orjson
import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger
from twisted.python.failure import Failure

from bakerygw.telemetry.observer import TwistedObserver
from bakerygw.telemetry.redaction import Redactor
from bakerygw.telemetry.request_log import RequestLog
from bakerygw.telemetry.writer import LogWriter

LEVELS: Final[Mapping[str, int]] = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40}
MAX_RECORD: Final = 64 * 1024
"""Bytes of one line; a longer one (a very deep traceback) keeps its first fields only."""

_BREAKS: Final = re.compile(rb"\xe2\x80[\xa8\xa9]|\xc2[\x80-\x9f]|\x7f")
"""In UTF-8: U+2028, U+2029, the C1 controls and DEL, which JSON allows bare and readers take for line ends or more."""
_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROLS_BUT_NEWLINE: Final = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_METHODS: Final = {
    "debug": 10,
    "info": 20,
    "warn": 30,
    "warning": 30,
    "error": 40,
    "exception": 40,
    "critical": 50,
    "fatal": 50,
}


class _ExceptionFormat(Protocol):
    def __call__(self, error: BaseException, failure: Failure | None) -> object: ...


class _Sink:
    """What structlog calls a logger: takes finished lines, whatever the level's name."""

    def __init__(self, write: Callable[[bytes], None], name: str | None = None) -> None:
        self.name = name
        self.debug = self.info = self.warning = self.error = self.critical = self.msg = write


class LogSystem:
    """The configured log: its level, its Twisted observer and the chain that every record passes."""

    def __init__(self, writer: LogWriter, *, level: str, pretty: bool, secrets: Iterable[str]) -> None:
        self.writer = writer
        self.pretty = pretty
        self.redactor = Redactor(secrets)
        self.disguise: Callable[[dict[str, object]], dict[str, object]] | None = None
        """Makes the fields of a line anonymous; `None`: they are not."""
        self._render = _console(colors=writer.isatty) if pretty else _json
        self.threshold = 0
        """Numeric level (10, 20, 30, 40) below which nothing is written."""
        self._name = ""
        self.level = level
        self.observer = TwistedObserver(self.logger(), lost=lambda: writer.count_dropped(1))

    @property
    def level(self) -> str:
        """DEBUG, INFO, WARNING or ERROR; may be set at any time. Raises ValueError for another word."""
        return self._name

    @level.setter
    def level(self, name: str) -> None:
        name = name.upper()
        if name not in LEVELS:
            raise ValueError(f"log level: expected one of {', '.join(LEVELS)}, got {name!r}")
        self._name, self.threshold = name, LEVELS[name]

    def processors(self) -> list[Processor]:
        """The chain, from a caller's keywords to one finished line."""
        return [
            self._enabled,
            structlog.contextvars.merge_contextvars,
            self._stamped,
            _exceptions(_traceback_text if self.pretty else _traceback_data()),
            self._redacted,
            self._render,
        ]

    def logger(self, name: str | None = None) -> FilteringBoundLogger:
        """A logger bound to this system, whatever structlog is configured to."""
        logger: FilteringBoundLogger = structlog.wrap_logger(
            _Sink(self.writer.write, name),
            processors=self.processors(),
            wrapper_class=structlog.make_filtering_bound_logger(0),
            context_class=dict,
        )
        return logger

    def emit(self, method: str, fields: dict[str, object]) -> None:
        """Redact and write one record that has its timestamp, level and event. `method` is the level's name."""
        self.writer.write(self._render(None, method, self.redactor.record(fields)))

    def _enabled(self, _logger: WrappedLogger, method: str, fields: EventDict) -> EventDict:
        if _METHODS.get(method, 0) < self.threshold:
            raise structlog.DropEvent
        return fields

    def _stamped(self, logger: WrappedLogger, method: str, fields: EventDict) -> EventDict:
        """Timestamp, level and event first, as a person reads them."""
        number = _METHODS.get(method, 20)
        level = {10: "debug", 20: "info", 30: "warning", 40: "error"}.get(number, "critical")
        head: EventDict = {"timestamp": self.writer.stamp(), "level": level, "event": fields.pop("event", "")}
        name = getattr(logger, "name", None)
        if name:
            head["logger"] = name
        head.update(fields)
        return head

    def _redacted(self, _logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
        record = self.redactor.record(fields)
        return record if self.disguise is None else self.disguise(record)


def configure_logging(
    writer: LogWriter, *, level: str = "INFO", pretty: bool = False, secrets: Iterable[str] = ()
) -> LogSystem:
    """Make structlog write through `writer`.

    `secrets` are configured values (passwords, admin token) to mask wherever they appear. Raises ValueError for an
    unknown level. The caller installs `LogSystem.observer` as twistd's ILogObserver.
    """
    system = LogSystem(writer, level=level, pretty=pretty, secrets=secrets)
    structlog.configure(
        processors=system.processors(),
        wrapper_class=structlog.make_filtering_bound_logger(0),
        context_class=dict,
        logger_factory=lambda *names: _Sink(writer.write, names[0] if names and isinstance(names[0], str) else None),
        cache_logger_on_first_use=False,
    )
    return system


def escape_breaks(line: bytes) -> bytes:
    """JSON with what could end a line or steer a terminal written as escapes; its value stays the same."""
    return _BREAKS.sub(lambda found: b"\\u%04x" % ord(found[0].decode()), line)


class _Renderer(Protocol):
    def __call__(self, logger: WrappedLogger, method: str, fields: EventDict, /) -> bytes: ...


def _json(_logger: WrappedLogger, _method: str, fields: EventDict) -> bytes:
    line = orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
    if len(line) > MAX_RECORD:
        kept = {name: value for name, value in fields.items() if not isinstance(value, list | dict)}
        line = orjson.dumps(dict(list(kept.items())[:16]) | {"truncated": True}, option=orjson.OPT_APPEND_NEWLINE)
    return escape_breaks(line)


def _console(*, colors: bool) -> _Renderer:
    """People's format: one line a record, tracebacks below it."""
    renderer = structlog.dev.ConsoleRenderer(colors=colors)

    def render(logger: WrappedLogger, method: str, fields: EventDict) -> bytes:
        for name, value in fields.items():
            if isinstance(value, str):
                unsafe = _CONTROLS_BUT_NEWLINE if name == "exception" else _CONTROLS
                fields[name] = unsafe.sub(lambda found: ascii(found[0])[1:-1], value)
        return renderer(logger, method, fields).encode("utf-8", "backslashreplace") + b"\n"

    return render


def _exceptions(show: _ExceptionFormat) -> Processor:
    """`exc_info` (True, an exception or a triple) or `failure` (a Twisted Failure) into `exception`."""

    def processor(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
        failure = fields.pop("failure", None)
        error = fields.pop("exc_info", None)
        if isinstance(failure, Failure):
            error = failure.value
        elif isinstance(error, tuple):
            error = error[1]
        elif error and not isinstance(error, BaseException):
            error = sys.exc_info()[1]
        if isinstance(error, BaseException):
            fields["exception"] = show(error, failure if isinstance(failure, Failure) else None)
        return fields

    return processor


def _traceback_data() -> _ExceptionFormat:
    """Stacks as data; never with local variables, which hold tokens and bodies."""
    transform = ExceptionDictTransformer(show_locals=False)

    def show(error: BaseException, failure: Failure | None) -> object:
        trace = failure.getTracebackObject() if failure is not None else error.__traceback__
        return transform((type(error), error, trace))

    return show


def _traceback_text(error: BaseException, failure: Failure | None) -> str:
    return (failure if failure is not None else Failure(error)).getTraceback()


__all__ = ["LEVELS", "LogSystem", "LogWriter", "RequestLog", "configure_logging", "escape_breaks"]
