"""A small HTTP/1.1 client on raw sockets: keep-alive connections, one request at a time on each, and paced load.

It reads what the services and the gateway of these scripts send: answers that announce their length.
"""

import asyncio
import re
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
TICK_S: Final = 0.002
"""How often paced load looks which requests are due."""
MAX_WAITING: Final = 10_000
"""Requests that may wait for a free connection; with more the gateway is not keeping up, and the run is over."""
ANSWER_S: Final = 30.0


def parse_answer(data: bytes) -> tuple[int, int] | None:
    """(status, bytes in all) of the answer that `data` begins with; `None` while it is not whole.

    Raises `ValueError` for what is no HTTP/1.1 answer with a length.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    announced = _LENGTH.search(data, 0, end + 2)
    if not data.startswith(b"HTTP/1.1 ") or announced is None:
        raise ValueError(f"not an answer with a length: {data[:200]!r}")
    whole = end + 4 + int(announced[1])
    return (int(data[9:12]), whole) if len(data) >= whole else None


class Connection(asyncio.Protocol):
    """One connection. After a failure it is closed, and every further question fails."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._got = b""
        self._answer: asyncio.Future[int] | None = None
        self.lost: str | None = None
        """Why it is closed."""

    async def ask(self, request: bytes, timeout_s: float = ANSWER_S) -> int:
        """The status of the answer. Raises `ConnectionError`, or `TimeoutError` after `timeout_s`."""
        if self._transport is None or self.lost is not None:
            raise ConnectionError(self.lost or "not connected")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[int] = loop.create_future()
        self._answer = answer
        late = loop.call_later(timeout_s, self._fail, TimeoutError("no answer in time"))
        self._transport.write(request)
        try:
            return await answer
        finally:
            late.cancel()

    def close(self) -> None:
        """Done with it."""
        self.lost = self.lost or "closed by us"
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """From asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """From asyncio."""
        self._got += data
        try:
            parsed = parse_answer(self._got)
        except ValueError as error:
            self._fail(ConnectionError(str(error)))
            return
        if parsed is None:
            return
        status, size = parsed
        if len(self._got) > size or self._answer is None or self._answer.done():
            self._fail(ConnectionError(f"bytes that nobody asked for: {self._got[:200]!r}"))
            return
        self._got = b""
        self._answer.set_result(status)

    def connection_lost(self, exc: Exception | None) -> None:
        """From asyncio."""
        self._fail(ConnectionError(str(exc or "closed by the gateway")))

    def _fail(self, error: Exception) -> None:
        self.lost = self.lost or str(error)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        if self._transport is not None:
            self._transport.abort()


async def connect(port: int, source: str = "127.0.0.1") -> Connection:
    """A connection to a loopback port from a loopback address. Raises `OSError`."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, "127.0.0.1", port, local_addr=(source, 0))
    return connection


@dataclass(slots=True, kw_only=True)
class Planned:
    """A request, and the status that is right for it."""

    request: bytes
    status: int


@dataclass(slots=True)
class Tally:
    """What became of the requests of a paced run."""

    answers: Counter[int] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    """Anything but the right answer, by what it was."""
    latencies_ms: "array[float]" = field(default_factory=lambda: array("f"))
    """From the moment at which each was due: waiting for a free connection counts."""
    seconds: float = 0.0
    """How long it lasted."""
    latest_tick_ms: float = 0.0
    """How far the load itself was behind at worst."""

    def percentile(self, share: float) -> float:
        """Milliseconds within which that share of the requests was answered."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`rate` requests a second, evenly, over so many connections."""

    port: int
    rate: float
    connections: int


async def paced_load(load: Load, plan: Iterator[Planned], *, seconds: float) -> Tally:
    """Send at the load's rate, whatever the gateway does; each request waits for a free connection.

    Ends early if too many wait. Lost connections are counted as wrong and opened anew.
    """
    tally = Tally()
    due: asyncio.Queue[tuple[float, Planned]] = asyncio.Queue()
    workers = [asyncio.ensure_future(_work(load.port, due, tally)) for _ in range(load.connections)]
    began, sent = time.perf_counter(), 0
    try:
        while (passed := time.perf_counter() - began) < seconds:
            wanted = int(passed * load.rate)
            tally.latest_tick_ms = max(tally.latest_tick_ms, (wanted - sent) / load.rate * 1000)
            for number in range(sent, wanted):
                due.put_nowait((began + number / load.rate, next(plan)))
            sent = wanted
            if due.qsize() > MAX_WAITING:
                tally.wrong["too many requests wait: overloaded"] += 1
                break
            await asyncio.sleep(TICK_S)
        await asyncio.wait_for(due.join(), ANSWER_S + 5)
    except TimeoutError:
        tally.wrong["requests left over at the end"] += due.qsize()
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    tally.seconds = time.perf_counter() - began
    return tally


async def _work(port: int, due: "asyncio.Queue[tuple[float, Planned]]", tally: Tally) -> None:
    connection: Connection | None = None
    try:
        while True:
            moment, planned = await due.get()
            try:
                if connection is None or connection.lost is not None:
                    connection = await connect(port)
                status = await connection.ask(planned.request)
                tally.answers[status] += 1
                if status != planned.status:
                    tally.wrong[f"{status} instead of {planned.status}"] += 1
            except (OSError, TimeoutError) as error:
                tally.wrong[f"{type(error).__name__}: {error}"[:200]] += 1
            finally:
                due.task_done()
            tally.latencies_ms.append((time.perf_counter() - moment) * 1000)
    finally:
        if connection is not None:
            connection.close()
