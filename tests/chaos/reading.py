"""A reader of one tenant's stream that believes nothing: each event follows from the one before, or a gap says not."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Self

GAP = -1
"""Among the numbers that a reader has seen."""
SILENCE_S = 25.0
"""A stream says something every 15 s."""


@dataclass(frozen=True, order=True)
class Position:
    """Where an event stands, by its id."""

    epoch: int
    offset: int

    @classmethod
    def of(cls, text: str) -> Self:
        """Raises ValueError for what is no id of ours."""
        epoch, _, offset = text.partition("-")
        return cls(int(epoch), int(offset))

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"


class EventParser:
    """Bytes of a chunked `text/event-stream` into events (WHATWG HTML 9.2.6)."""

    def __init__(self) -> None:
        self._raw, self._text = bytearray(), bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, str]]:
        """The events that are whole with these bytes, as their fields."""
        self._raw += data
        while (size_end := self._raw.find(b"\r\n")) >= 0:
            size = int(bytes(self._raw[:size_end]).split(b";")[0], 16)
            end = size_end + 2 + size
            if len(self._raw) < end + 2:
                break
            self._text += self._raw[size_end + 2 : end]
            del self._raw[: end + 2]
        *whole, rest = bytes(self._text).split(b"\n\n")
        self._text = bytearray(rest)
        for block in whole:
            fields: dict[str, str] = {}
            for line in block.decode().split("\n"):
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                fields[name] = fields[name] + "\n" + value if name == "data" and "data" in fields else value
            if "event" in fields:
                yield fields


@dataclass
class Ledger:
    """What all readers of one tenant agree on: which alert stands where."""

    tenant: str
    keeps: int
    """So many alerts the history holds."""
    at: dict[Position, int] = field(default_factory=dict)
    places: dict[int, Position] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    gaps: Counter[str] = field(default_factory=Counter)
    delays: list[float] = field(default_factory=list)
    delivered: int = 0

    def place(self, position: Position, number: int) -> None:
        """A reader has seen this alert there."""
        if self.at.setdefault(position, number) != number:
            self.faults.append(f"{self.tenant}: {position} is {self.at[position]} to one and {number} to another")
        if self.places.setdefault(number, position) != position:
            self.faults.append(f"{self.tenant}: alert {number} stands at {self.places[number]} and at {position}")


class Reader:
    """One user's stream, over all its connections."""

    def __init__(self, name: str, ledger: Ledger, clock: Callable[[], float] = monotonic) -> None:
        self.name, self.ledger, self._clock = name, ledger, clock
        self.last: Position | None = None
        """Of the latest event that had an id: where it goes on."""
        self.seen: list[int] = []
        """The numbers of alerts in order, and `GAP`."""
        self._broken = False
        """The stream has said that it could not be bridged, and now owes the gap."""
        self._resumed = self._greeted = False
        self.said: Counter[str] = Counter()

    def is_at(self, end: Position) -> bool:
        """Whether it has got so far."""
        return self.last is not None and self.last >= end and not self._broken

    def connected(self) -> None:
        """A new connection, that names the last id if there is one."""
        self._resumed, self._greeted, self._broken = self.last is not None, False, False

    def take(self, fields: dict[str, str]) -> None:
        """The next event."""
        name, data = fields["event"], json.loads(fields["data"])
        position = Position.of(fields["id"]) if "id" in fields else None
        self.said[name] += 1
        match name:
            case "hello":
                self._hello(position, data)
            case "gap" if position is not None:
                self._gap(position, data)
            case "alert" if position is not None:
                self._alert(position, data)
            case "gap" | "alert":
                self._fault(f"{name} without id")

    def _fault(self, what: str) -> None:
        self.ledger.faults.append(f"{self.name}: {what}")

    def _hello(self, position: Position | None, data: dict[str, Any]) -> None:
        first, self._greeted = not self._greeted, True
        if first and not self._resumed:
            self.last = position
        elif first and not data["recovered"]:
            self._broken = True
        elif position != self.last:
            self._fault(f"was at {self.last}, and hello says {position}")

    def _gap(self, position: Position, data: dict[str, Any]) -> None:
        reason = str(data.get("reason"))
        self.ledger.gaps[reason] += 1
        before = self.last
        if before is not None and position < before:
            self._fault(f"a gap leads back from {before} to {position}")
        within = before is not None and position.epoch == before.epoch
        if self._broken and reason == "trimmed" and within and position.offset - before.offset <= self.ledger.keeps:
            self._fault(f"a gap from {before} to {position}, which the history still held")
        self._broken = False
        self.seen.append(GAP)
        self.last = position

    def _alert(self, position: Position, data: dict[str, Any]) -> None:
        number, before = int(data["seq"]), self.last
        if data["tenant"] != self.ledger.tenant:
            self._fault(f"an alert of {data['tenant']}")
        if self._broken or before is None:
            self._fault(f"{position} came where a gap or hello was due")
        elif position.epoch != before.epoch or position.offset != before.offset + 1:
            self._fault(f"{position} came behind {before}, and no gap between")
        self.last = position
        self.seen.append(number)
        self.ledger.place(position, number)
        self.ledger.delivered += 1
        self.ledger.delays.append(self._clock() - data["at"])

    async def read(self, host: str, port: int, token: str, connections: Counter[str]) -> None:
        """Read one connection to its end. Raises OSError, EOFError; counts the statuses of answers."""
        self.connected()
        reading, writing = await asyncio.open_connection(host, port, limit=1 << 20)
        try:
            lines = ["GET /api/v1/alerts/stream HTTP/1.1", "Host: gateway", f"Authorization: Bearer {token}"]
            lines += [f"Last-Event-ID: {self.last}"] if self.last is not None else []
            writing.write("\r\n".join([*lines, "", ""]).encode())
            async with asyncio.timeout(10):
                head = await reading.readuntil(b"\r\n\r\n")
            status = head.split(b" ", 2)[1].decode()
            connections[status] += 1
            if status != "200":
                raise EOFError(status)
            parser = EventParser()
            while True:
                async with asyncio.timeout(SILENCE_S):
                    data = await reading.read(1 << 16)
                if not data:
                    return
                for fields in parser.feed(data):
                    self.take(fields)
        finally:
            writing.transport.abort()
            with contextlib.suppress(OSError):
                await writing.wait_closed()


def in_turn(seen: list[int], posted: Collection[int]) -> list[int]:
    """What a reader has seen without what was posted: that is tried until it is stored, maybe long after its turn."""
    return [number for number in seen if number not in posted]


def unannounced(lost: int, seen: list[int], slack: int) -> bool:
    """Whether a reader has passed the place of a lost alert without a gap.

    Alerts may have been stored in another order than they were published in, by at most `slack`.
    """
    after = next((at for at, number in enumerate(seen) if number > lost + slack), None)
    before = max((at for at, number in enumerate(seen) if GAP < number < lost - slack), default=None)
    if after is None or before is None:
        return False
    return GAP not in seen[min(before, after) : max(before, after) + 1]
