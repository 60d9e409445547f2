"""Lines to a file descriptor without ever waiting for whoever reads it."""

import errno
import os
import select
import socket
import stat
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from threading import get_ident
from typing import Final, Protocol

import orjson
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime

MAX_BYTES: Final = 8 * 1024 * 1024
BATCH_BYTES: Final = 64 * 1024
"""Bytes of one write, and what one reactor turn gathers before it writes early: a pipe holds as much."""
RETRY_FIRST_S: Final = 0.002
"""Also how soon a reader that took something is offered more: a pipe's 64 KiB each time make 30 MB a second."""
RETRY_MAX_S: Final = 0.25
TTY_CHUNK: Final = 256
"""A terminal that polls as writable takes at least this much without waiting (Linux: WAKEUP_CHARS)."""


class Stamper:
    """Wall-clock time as ISO 8601 in UTC with microseconds; the part down to the second is formatted once a second."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._second = -1
        self._prefix = ""

    def __call__(self) -> str:
        """The time now, e.g. `2026-01-31T09:30:00.000125Z`."""
        moment = self._now()
        second = int(moment)
        if second != self._second:
            self._second = second
            self._prefix = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._prefix}.{int((moment - second) * 1e6):06d}Z"


class Outlet(Protocol):
    """One attempt to write. Raises `BlockingIOError` where it would wait, else `OSError`."""

    def __call__(self, data: bytes) -> int: ...


class _Socket:
    """Standard output is a socket (systemd's journal): each send says that it does not wait."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)

    def __call__(self, data: bytes) -> int:
        return self._socket.send(data, socket.MSG_DONTWAIT)

    def close(self) -> None:
        self._socket.close()


class _Polled:
    """The open file description is shared, so its flags stay as they are: ask first, then write little."""

    def __init__(self, fd: int, chunk: int) -> None:
        self._fd, self._chunk = fd, chunk
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def __call__(self, data: bytes) -> int:
        sent = 0
        while sent < len(data) and self._poll.poll(0):
            sent += os.write(self._fd, data[sent : sent + self._chunk])
        if not sent:
            raise BlockingIOError(errno.EAGAIN, "not writable")
        return sent

    def close(self) -> None:
        os.close(self._fd)


class _Plain:
    """A regular file, or a description of our own that does not block."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self, data: bytes) -> int:
        return os.write(self._fd, data)

    def close(self) -> None:
        os.close(self._fd)


def _open(fd: int, *, reopen: bool) -> tuple[int, _Socket | _Polled | _Plain]:
    """A descriptor of our own for what `fd` refers to, and how to write to it.

    O_NONBLOCK belongs to the open file description, which a terminal's or pipe's other users share; so it is set only
    on one that is opened anew through /proc. Regular files keep theirs, and with it their offset and O_APPEND.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        own = os.dup(fd)
        return own, _Plain(own)
    if stat.S_ISSOCK(mode):
        own = os.dup(fd)
        return own, _Socket(own)
    try:
        if not reopen:
            raise PermissionError
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # no /proc, or the pipe or terminal belongs to another user
        own = os.dup(fd)
        return own, _Polled(own, select.PIPE_BUF if stat.S_ISFIFO(mode) else TTY_CHUNK)
    return own, _Plain(own)


class LogWriter:
    """A bounded queue of lines in front of a descriptor.

    Lines are written together, once per reactor turn. What does not fit into `max_bytes` because the reader stalls,
    and what cannot be written because the disk is full or the reader has gone, is dropped as whole lines and counted;
    a `log.dropped` line tells of it once writing works again. No method but `flush_now` waits and none raises OSError.
    """

    def __init__(
        self,
        fd: int,
        clock: IReactorTime,
        *,
        max_bytes: int = MAX_BYTES,
        now: Callable[[], float] = time.time,
        reopen: bool = True,
        outlet: Outlet | None = None,
    ) -> None:
        """`fd` stays the caller's and may be closed or redirected; `now` is the wall clock in Unix seconds;
        without `reopen` a pipe or terminal is polled, never opened anew; `outlet` replaces the writing itself."""
        self.stamp = Stamper(now)
        self.isatty = os.isatty(fd)
        self._fd, self._opened = _open(fd, reopen=reopen)
        self._outlet: Outlet = outlet or self._opened
        self._closed = False
        self._clock = clock
        self._max_bytes = max_bytes
        self._home_thread = get_ident()
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._torn = False
        """The first in the queue is the rest of a line whose beginning is written."""
        self._fresh = 0
        """Bytes queued since the last attempt to write."""
        self._timer: IDelayedCall | None = None
        self._blocked = False
        self._retry_s = RETRY_FIRST_S
        self._dropped = 0
        self._untold = 0

    @property
    def dropped(self) -> int:
        """Lines lost so far."""
        return self._dropped

    def write(self, line: bytes) -> None:
        """Queue one line, newline included. Any thread may call."""
        if get_ident() != self._home_thread and IReactorFromThreads.providedBy(self._clock):
            self._clock.callFromThread(self.write, line)
            return
        size = len(line)
        if self._closed or self._queued + size > self._max_bytes:
            self.count_dropped(1)
            return
        self._queue.append(line)
        self._queued += size
        self._fresh += size
        if self._timer is None:
            self._timer = self._clock.callLater(0, self._turn)
        elif self._fresh >= BATCH_BYTES and not self._blocked:
            self._flush()

    def count_dropped(self, lines: int) -> None:
        """Note lines that were lost before they got here, too."""
        self._dropped += lines
        self._untold += lines

    def flush_now(self, timeout_s: float = 0.5) -> None:
        """Write what is queued, waiting at most `timeout_s` for the reader: for the end of the process only."""
        if self._closed:
            return
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        ends = time.monotonic() + timeout_s
        while not self._flush():
            left = ends - time.monotonic()
            if left <= 0:
                return
            poll.poll(min(left, 0.05) * 1000)

    def close(self) -> None:
        """Flush and let go of the descriptor; later lines are dropped and counted."""
        if self._closed:
            return
        self.flush_now()
        self._closed = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._opened.close()

    def _turn(self) -> None:
        self._timer = None
        waiting = self._queued
        done = self._flush()
        self._retry_s = RETRY_FIRST_S if done or self._queued < waiting else min(self._retry_s * 2, RETRY_MAX_S)
        if not done:
            self._timer = self._clock.callLater(self._retry_s, self._turn)

    def _flush(self) -> bool:
        """Write until nothing is left, or until the reader must catch up: then False."""
        self._fresh = 0
        self._blocked = False
        try:
            while self._queue or self._untold:
                if self._queue:
                    self._write_batch()
                else:
                    self._tell()
        except (BlockingIOError, InterruptedError):
            self._blocked = True
        except OSError as error:
            self._give_up(error)
        return not self._blocked

    def _write_batch(self) -> None:
        """One write. What it leaves of a torn line stays first in the row."""
        lines, size = [], 0
        for line in self._queue:
            lines.append(line)
            size += len(line)
            if size >= BATCH_BYTES:
                break
        sent = self._outlet(b"".join(lines))
        self._queued -= sent
        self._torn = self._torn and not sent
        for line in lines:
            if sent < len(line):
                break
            sent -= len(line)
            self._queue.popleft()
        if sent:
            self._queue[0] = self._queue[0][sent:]
            self._torn = True

    def _tell(self) -> None:
        """Write the `log.dropped` line; it is owed until its first byte is written."""
        fields = {"timestamp": self.stamp(), "level": "warning", "event": "log.dropped", "lines": self._untold}
        line = orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
        sent = self._outlet(line)
        self._untold = 0
        if sent < len(line):
            self._queue.append(line[sent:])
            self._queued += len(line) - sent
            self._torn = True

    def _give_up(self, error: OSError) -> None:
        """Drop what is queued: the disk is full or the reader has gone.

        The rest of a torn line is kept for a disk that gets room again, so that the next line begins a line; a reader
        that has gone took the beginning with it.
        """
        kept = self._queue.popleft() if self._torn and error.errno != errno.EPIPE else None
        self.count_dropped(len(self._queue))
        self._queue.clear()
        self._queued = 0
        self._torn = kept is not None
        if kept is not None:
            self._queue.append(kept)
            self._queued = len(kept)
