"""The two lines that every request leaves, built without structlog's chain: they are on the hot path."""

import re
from collections.abc import Callable
from typing import Final, Protocol

import orjson

from bakerygw.core.outcome import Outcome, SocketNotes, Trace
from bakerygw.telemetry.redaction import MAX_TEXT, Redactor
from bakerygw.telemetry.writer import LogWriter

INFO: Final = 20
ERROR: Final = 40

_SUSPICIOUS: Final = re.compile(r"eyJ|[%@=;]|[Bb](?:earer|[Kk][Rr][Yy]_)|[^\x20-\x7e]").search
"""What a path may hold that could be a secret, an address or unprintable. Most paths match nothing, in 0.5 us."""


class Rules(Protocol):
    """The part of the log's state that decides about a line (`LogSystem`)."""

    writer: LogWriter
    redactor: Redactor
    pretty: bool
    threshold: int

    def emit(self, method: str, fields: dict[str, object]) -> None:
        """Write a record through the whole chain."""


class Disguise(Protocol):
    """What makes a line anonymous."""

    def tell(self, fields: dict[str, object], put: Callable[[dict[str, object]], None]) -> None:
        """Hand the fields to `put`, now or in a moment, without what tells who it was."""


def _about(socket: SocketNotes) -> dict[str, object]:
    about: dict[str, object] = {
        "close_code": socket.close_code,
        "closed_by": socket.closed_by,
        "messages_in": socket.messages_in,
        "messages_out": socket.messages_out,
    }
    if socket.unread_s:
        about["unread_ms"] = round(socket.unread_s * 1000)
    if socket.why is not None:
        about["closed_for"] = socket.why
    return about


class RequestLog:
    """Writes `request.start` and `request.done`; absent fields are left out. Status 5xx is an error, the rest info."""

    def __init__(self, system: Rules, disguise: Disguise | None = None) -> None:
        """`disguise` makes lines anonymous; `None`: they are not."""
        self._system, self._disguise = system, disguise
        self._put: Callable[[dict[str, object]], None] = self._write_line if disguise is None else self._tell_disguised
        self._write = system.writer.write
        self._stamp = system.writer.stamp
        self._knows = system.redactor.knows

    def began(self, trace: Trace) -> None:
        """The line before: method, route, path, client."""
        if self._system.threshold > INFO:
            return
        fields: dict[str, object] = {
            "timestamp": self._stamp(),
            "level": "info",
            "event": "request.start",
            "request_id": trace.request_id,
            "method": trace.method,
            "route": trace.route,
            "path": self._printable(trace.path),
            "client": trace.client,
        }
        self._put(fields)

    def ended(self, outcome: Outcome) -> None:
        """The line after: how it ended, how long it took, who it was for."""
        failed = outcome.status >= 500
        if self._system.threshold > (ERROR if failed else INFO):
            return
        trace = outcome.trace
        fields: dict[str, object] = {
            "timestamp": self._stamp(),
            "level": "error" if failed else "info",
            "event": "request.done",
            "request_id": trace.request_id,
            "method": trace.method,
            "route": trace.route,
            "path": self._printable(trace.path),
            "status": outcome.status,
            "duration_ms": round(outcome.duration_s * 1000, 3),
            "bytes_in": outcome.bytes_in,
            "bytes_out": outcome.bytes_out,
            "client": trace.client,
        }
        if trace.upstream_s is not None:
            fields["upstream_ms"] = round(trace.upstream_s * 1000, 3)
        if trace.user_id is not None:
            fields["user_id"] = trace.user_id
        if trace.tenant_id is not None:
            fields["tenant_id"] = trace.tenant_id
        if trace.service is not None:
            fields["service"] = trace.service
        if trace.reason is not None:
            fields["reason"] = trace.reason
        if trace.limited is not None:
            fields["limited"] = trace.limited
        if trace.socket is not None:
            fields.update(_about(trace.socket))
        if trace.cause is not None:
            # Text from outside, such as an exception's: only the chain knows what it may hold.
            fields["cause"] = self._system.redactor.text(trace.cause)
        self._put(fields)

    def _printable(self, path: str) -> str:
        if len(path) <= MAX_TEXT and _SUSPICIOUS(path) is None and not self._knows(path):
            return path
        return self._system.redactor.text(path)

    def _tell_disguised(self, fields: dict[str, object]) -> None:
        if self._disguise is not None:
            self._disguise.tell(fields, self._write_line)

    def _write_line(self, fields: dict[str, object]) -> None:
        if self._system.pretty:
            self._slowly(fields)
            return
        try:
            line = orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError:  # JSONEncodeError: a lone surrogate
            self._slowly(fields)
            return
        if line.isascii():
            self._write(line)
        else:
            self._slowly(fields)

    def _slowly(self, fields: dict[str, object]) -> None:
        self._system.emit("error" if fields["level"] == "error" else "info", fields)
