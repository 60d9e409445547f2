"""Twisted's own log events through structlog."""

import re
from collections.abc import Callable
from threading import local
from typing import Final

from structlog.typing import FilteringBoundLogger
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer

_LEVELS: Final = {LogLevel.debug: 10, LogLevel.info: 20, LogLevel.warn: 30, LogLevel.error: 40, LogLevel.critical: 50}
_NOISE: Final = re.compile(r"(?:Starting|Stopping) factory |\S+ starting on |\(.{1,200} Port .{1,200} Closed\)")
"""What every listener and client connection says of itself."""


_OWN: Final = "bakerygw."
"""Namespaces whose events are told with their fields; others may carry anything."""
_TAKEN: Final = frozenset(
    {"timestamp", "level", "event", "logger", "exception", "exc_info", "failure", "why"}  # the record's own
    | {"format", "isError", "message", "system", "time"}  # what Twisted adds for old observers
)


class _Busy(local):
    now = False


@implementer(ILogObserver)
class TwistedObserver:
    """Re-emits each event of `twisted.logger`, `twisted.python.log`, `print` and `warnings` as one record.

    The text is the `event`, the namespace or system is the `logger`, a Failure becomes `exception`; events of the
    gateway's own modules keep their plain fields. Never raises; what cannot be told, or is said while telling another
    event on the same thread, is reported to `lost`.
    """

    def __init__(self, logger: FilteringBoundLogger, *, lost: Callable[[], None]) -> None:
        self._logger = logger
        self._lost = lost
        self._busy = _Busy()

    def __call__(self, event: LogEvent) -> None:
        """Take one event, from any thread."""
        if self._busy.now:
            self._lost()
            return
        self._busy.now = True
        try:
            self._emit(event)
        except Exception:
            # Twisted would report an observer's error through this very observer.
            self._lost()
        finally:
            self._busy.now = False

    def _emit(self, event: LogEvent) -> None:
        failure = event.get("log_failure")
        if failure is None and event.get("isError") and isinstance(event.get("failure"), Failure):
            # log.err: its text would hold the whole traceback once more
            failure, text = event["failure"], str(event.get("why") or "Unhandled error")
        else:
            text = formatEvent(event)
        if not text and failure is None:
            return
        level = _LEVELS.get(event.get("log_level", LogLevel.info), 20)
        if level == 20 and _NOISE.match(text):
            level = 10
        source = _source(event)
        fields: dict[str, object] = {"logger": source}
        if source.startswith(_OWN):
            fields.update(_plain_fields(event))
        if isinstance(failure, Failure):
            fields["failure"] = failure
            level = max(level, 40)
        self._logger.log(level, text or "failure", **fields)


def _plain_fields(event: LogEvent) -> dict[str, object]:
    """The fields that the caller gave, as far as they are text, numbers or booleans."""
    return {
        name: value
        for name, value in event.items()
        if isinstance(value, str | int | float) and name not in _TAKEN and not name.startswith("log_")
    }


def _source(event: LogEvent) -> str:
    """The namespace; for old-style events, the system that the sender named."""
    namespace = event.get("log_namespace")
    if namespace in {None, "log_legacy"}:
        system = event.get("log_system") or event.get("system")
        return system if isinstance(system, str) and system != "-" else "twisted"
    return str(namespace)
