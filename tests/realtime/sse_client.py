"""Server-sent events as a client reads them: the algorithm of WHATWG HTML §9.2.6, written from its text."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    kind: str
    data: str
    last_id: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class EventClient:
    """Fed with bytes; keeps the events, the last id that it would send, and the time that it would wait."""

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self.retry_ms: int | None = None
        self.comments = 0
        self.events: list[Event] = []
        self._rest = b""
        self._kind, self._id = "", last_id
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Event]:
        """The events that are complete now."""
        before = len(self.events)
        self._rest += data
        while True:
            at = min((i for i in (self._rest.find(b"\r"), self._rest.find(b"\n")) if i >= 0), default=-1)
            if at < 0 or (self._rest[at : at + 1] == b"\r" and at + 1 == len(self._rest)):
                break
            line = self._rest[:at].decode("utf-8", "replace")
            at += 2 if self._rest[at : at + 2] == b"\r\n" else 1
            self._rest = self._rest[at:]
            self._line(line)
        return self.events[before:]

    def _line(self, line: str) -> None:
        if not line:
            self._dispatch()
            return
        if line.startswith(":"):
            self.comments += 1
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._kind = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isdigit():
            self.retry_ms = int(value)

    def _dispatch(self) -> None:
        self.last_id = self._id
        if self._data:
            self.events.append(Event(self._kind or "message", "\n".join(self._data), self.last_id))
        self._kind, self._data = "", []
