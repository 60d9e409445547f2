"""The writer in front of pipes nobody reads, full disks and sockets: it never waits and never tears a line."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from twisted.internet.task import Clock

from bakerygw.telemetry.writer import LogWriter, Stamper

PIPE_BYTES = 65_536
"""What the kernel holds for a pipe that nobody reads."""


def line(number: int, size: int = 200) -> bytes:
    return orjson.dumps({"n": number, "fill": "x" * size}) + b"\n"


def numbers(data: bytes) -> list[int]:
    return [record["n"] for record in map(orjson.loads, data.splitlines()) if "n" in record]


def reports(data: bytes) -> list[int]:
    return [record["lines"] for record in map(orjson.loads, data.splitlines()) if record.get("event") == "log.dropped"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    for fd in (reader, writer):
        with contextlib.suppress(OSError):  # a test may have closed it
            os.close(fd)


def read_all(fd: int) -> bytes:
    parts = []
    while True:
        try:
            part = os.read(fd, 1 << 20)
        except BlockingIOError:
            return b"".join(parts)
        if not part:
            return b"".join(parts)
        parts.append(part)


def drain(reader: int, clock: Clock, turns: int = 200) -> bytes:
    data = b""
    for _ in range(turns):
        data += read_all(reader)
        clock.advance(0.3)
    return data + read_all(reader)


def test_lines_of_one_turn_are_written_together_at_its_end(clock: Clock, pipe: tuple[int, int]) -> None:
    log = LogWriter(pipe[1], clock)
    log.write(line(1))
    log.write(line(2))
    assert read_all(pipe[0]) == b""
    clock.advance(0)
    assert numbers(read_all(pipe[0])) == [1, 2]
    assert clock.getDelayedCalls() == []
    log.close()


def test_a_large_turn_is_written_before_its_end(clock: Clock, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        log = LogWriter(file.fileno(), clock)
        for number in range(1000):
            log.write(line(number))
        assert (tmp_path / "log").stat().st_size > 100_000
        log.close()
    assert numbers((tmp_path / "log").read_bytes()) == list(range(1000))


@pytest.mark.parametrize("reopen", [True, False])
def test_a_pipe_nobody_reads_stops_nothing_and_tears_no_line(
    clock: Clock, pipe: tuple[int, int], *, reopen: bool
) -> None:
    reader, writer = pipe
    log = LogWriter(writer, clock, max_bytes=100_000, reopen=reopen)
    began = time.monotonic()
    for number in range(20_000):
        log.write(line(number))
        if number % 50 == 0:
            clock.advance(0)
    assert time.monotonic() - began < 30
    assert log.dropped > 15_000

    data = drain(reader, clock)
    assert len(data) < 100_000 + PIPE_BYTES + 1000
    log.write(line(99_999))
    clock.advance(0)
    data += read_all(reader)

    kept = numbers(data)
    assert kept == [*range(len(kept) - 1), 99_999]
    assert len(kept) - 1 + log.dropped == 20_000
    assert reports(data) == [log.dropped]
    log.close()


def test_the_flags_of_the_shared_pipe_stay_as_they_are(clock: Clock, pipe: tuple[int, int]) -> None:
    log = LogWriter(pipe[1], clock)
    assert not fcntl.fcntl(pipe[1], fcntl.F_GETFL) & os.O_NONBLOCK
    log.close()


def test_a_stalled_reader_is_asked_ever_less_often(clock: Clock, pipe: tuple[int, int]) -> None:
    log = LogWriter(pipe[1], clock)
    for number in range(1000):
        log.write(line(number))
    tries = 0
    while clock.seconds() < 10:
        clock.advance(clock.getDelayedCalls()[0].getTime() - clock.seconds())
        tries += 1
    assert tries < 60
    drain(pipe[0], clock)
    log.close()


@pytest.mark.parametrize("reopen", [True, False])
def test_a_reader_that_has_gone_costs_lines_not_errors(clock: Clock, pipe: tuple[int, int], *, reopen: bool) -> None:
    log = LogWriter(pipe[1], clock, reopen=reopen)
    os.close(pipe[0])
    for number in range(10):
        log.write(line(number))
    clock.advance(0)
    assert log.dropped == 10
    log.close()


def test_a_full_disk_costs_lines_not_errors(clock: Clock) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    log = LogWriter(full, clock)
    for number in range(10):
        log.write(line(number))
    clock.advance(0)
    log.write(line(11))
    log.flush_now()
    assert log.dropped == 11
    log.close()
    os.close(full)


class Outlet:
    """A descriptor's stand-in that takes so many bytes, then fails."""

    def __init__(self) -> None:
        self.data = b""
        self.room = 0
        self.error: Callable[[], OSError] = lambda: OSError(errno.ENOSPC, "full")

    def __call__(self, data: bytes) -> int:
        taken = data[: self.room]
        if not taken:
            raise self.error()
        self.room -= len(taken)
        self.data += taken
        return len(taken)


def with_outlet(clock: Clock, fd: int) -> tuple[LogWriter, Outlet]:
    outlet = Outlet()
    return LogWriter(fd, clock, outlet=outlet), outlet


def test_a_line_torn_by_a_full_disk_is_finished_before_the_next(clock: Clock, pipe: tuple[int, int]) -> None:
    log, outlet = with_outlet(clock, pipe[1])
    outlet.room = 300
    for number in range(5):
        log.write(line(number))
    clock.advance(0)
    assert log.dropped == 3
    outlet.room = 10_000
    log.write(line(5))
    clock.advance(0)
    assert numbers(outlet.data) == [0, 1, 5]
    assert reports(outlet.data) == [3]
    log.close()


def test_the_report_of_lost_lines_may_be_torn_too(clock: Clock, pipe: tuple[int, int]) -> None:
    log, outlet = with_outlet(clock, pipe[1])
    log.count_dropped(7)
    outlet.room = len(line(0)) + 10
    outlet.error = BlockingIOError
    log.write(line(0))
    clock.advance(0)
    outlet.room = 10_000
    clock.advance(1)
    assert numbers(outlet.data) == [0]
    assert reports(outlet.data) == [7]
    log.close()


def test_every_short_write_leaves_whole_lines(clock: Clock, pipe: tuple[int, int]) -> None:
    log, outlet = with_outlet(clock, pipe[1])
    outlet.error = BlockingIOError
    for number in range(50):
        log.write(line(number, size=number))
        outlet.room += 17
        clock.advance(0.3)
    outlet.room = 100_000
    clock.advance(1)
    assert numbers(outlet.data) == list(range(50))
    assert clock.getDelayedCalls() == []
    log.close()


def test_a_socket_nobody_reads_stops_nothing(clock: Clock) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        log = LogWriter(ours.fileno(), clock, max_bytes=10_000)
        for number in range(10_000):
            log.write(line(number))
            clock.advance(0)
        assert log.dropped > 0
        theirs.setblocking(False)
        kept = numbers(drain(theirs.fileno(), clock))
        assert kept == list(range(len(kept)))
        log.close()


def test_a_file_is_appended_to_where_its_other_users_write(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb", buffering=0) as file:
        file.write(b'{"n":0}\n')
        log = LogWriter(file.fileno(), clock)
        log.write(b'{"n":1}\n')
        clock.advance(0)
        file.write(b'{"n":2}\n')
        log.close()
    assert numbers(path.read_bytes()) == [0, 1, 2]


def test_closing_writes_what_is_queued_and_waits_a_bounded_time(clock: Clock, pipe: tuple[int, int]) -> None:
    log = LogWriter(pipe[1], clock)
    log.write(line(1))
    log.flush_now()
    assert numbers(read_all(pipe[0])) == [1]
    for number in range(2000):
        log.write(line(number))
    began = time.monotonic()
    log.flush_now(0.1)
    assert time.monotonic() - began < 15
    log.close()
    log.write(line(1))
    assert log.dropped == 1
    assert clock.getDelayedCalls() == []


def test_a_line_beyond_the_bound_is_dropped_and_smaller_ones_pass(clock: Clock, pipe: tuple[int, int]) -> None:
    log = LogWriter(pipe[1], clock, max_bytes=1000)
    log.write(line(1, size=2000))
    log.write(line(2))
    clock.advance(0)
    data = read_all(pipe[0])
    assert numbers(data) == [2]
    assert reports(data) == [1]
    log.close()


def test_timestamps_are_utc_with_microseconds() -> None:
    times = iter([1_700_000_000.25, 1_700_000_000.5, 1_700_000_001.0])
    stamp = Stamper(lambda: next(times))
    assert [stamp(), stamp(), stamp()] == [
        "2023-11-14T22:13:20.250000Z",
        "2023-11-14T22:13:20.500000Z",
        "2023-11-14T22:13:21.000000Z",
    ]
