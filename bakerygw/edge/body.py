"""The body of one request: from the channel's parser to whoever reads it, at the reader's pace."""

from typing import Protocol

from bakerygw.core.http import BodySink, BodySource
from bakerygw.core.problem import Problem, Refused
from bakerygw.runtime.gathering import gather

MAX_UNREAD_BYTES = 64 * 1024
"""What is kept for a reader that has not started or has paused, before the socket is no longer read."""


class Tap(Protocol):
    """What a body may ask of the connection that it arrives on."""

    def body_started(self) -> None:
        """Somebody wants the body: `100 Continue` is due, if it was asked for, and time counts from here."""

    def pause_reading(self) -> None:
        """Read nothing more from the socket."""

    def resume_reading(self) -> None:
        """Read on."""


class RequestBody:
    """A `BodySource` that the channel fills.

    At most `cap` bytes pass; the byte after them fails the body with `failure`, which
    the gateway then answers instead of whatever its service said meanwhile.
    """

    def __init__(self, tap: Tap, length: int | None) -> None:
        self._tap = tap
        self.length = length
        self.cap: int | None = None
        self.received = 0
        self.complete = length == 0
        self.failure: Problem | None = None
        self.started = False
        self.paused = False
        self._sink: BodySink | None = None
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._ended = False
        self._stopped = False

    # the reader's side

    def whole(self) -> bytes | None:
        """The body, if it is all here already."""
        if not self.complete or self.started or self.failure is not None:
            return None
        self.started = self._ended = True
        return b"".join(self._unread)

    def start(self, sink: BodySink) -> None:
        """Push into `sink` from now on."""
        self.started = True
        if self.failure is not None:
            self._ended = True
            sink.cut(self.failure.code)
            return
        self._sink = sink
        if not self.complete:
            self._tap.body_started()
        self.resume()

    def pause(self) -> None:
        """Push nothing; the socket is read on only until the bound is reached."""
        self.paused = True

    def resume(self) -> None:
        """Push what waited, then let the socket be read."""
        self.paused = False
        self._flush()
        if not self.paused:
            self._tap.resume_reading()

    def stop(self) -> None:
        """Nobody reads any more: the rest is dropped as it comes."""
        self._stopped = self._ended = True
        self._sink = None
        self._unread.clear()
        self._unread_bytes = 0
        self._tap.resume_reading()

    # the channel's side

    def push(self, data: bytes) -> None:
        """The next bytes from the wire."""
        self.received += len(data)
        if self._stopped or self.failure is not None:
            return
        if self.cap is not None and self.received > self.cap:
            self.fail(too_large(self.cap))
            return
        if self._sink is not None and not self.paused and not self._unread:
            self._sink.write(data)
            return
        self._unread.append(data)
        self._unread_bytes += len(data)
        if self._unread_bytes > MAX_UNREAD_BYTES:
            self._tap.pause_reading()

    def finish(self) -> None:
        """All of it has arrived."""
        self.complete = True
        if not self.paused:
            self._flush()

    def fail(self, problem: Problem) -> None:
        """It will never be complete; `problem` is what to tell the client, if it can still be told."""
        if self.complete or self.failure is not None:
            return
        self.failure = problem
        self._unread.clear()
        sink, self._sink = self._sink, None
        if sink is not None and not self._ended:
            self._ended = True
            sink.cut(problem.code)

    def _flush(self) -> None:
        sink = self._sink
        if sink is None or self._ended:
            return
        while self._unread and not self.paused:
            data = self._unread.pop(0)
            self._unread_bytes -= len(data)
            sink.write(data)
        if self.complete and not self._unread and not self.paused and not self._ended:
            self._ended = True
            self._sink = None
            sink.done()


def too_large(cap: int) -> Problem:
    """The problem for a body over `cap` bytes."""
    return Problem(
        code="body-too-large",
        detail=f"At most {cap} bytes are accepted here; send less, or in parts.",
        members={"max_bytes": cap},
        close=True,
    )


async def collect(body: BodySource, cap: int) -> bytes:
    """The whole body, for handlers of the gateway's own.

    Raises `Refused` if it is longer than `cap` bytes or ends early.
    """
    if body.length is not None and body.length > cap:
        raise Refused(too_large(cap))
    collected = await gather(body, cap)
    if isinstance(collected, bytes):
        return collected
    if collected.cut is None:
        raise Refused(too_large(cap))
    early = Problem(code="bad-request", detail="Send the whole body: it ended early.", reason=collected.cut, close=True)
    raise Refused(getattr(body, "failure", None) or early)
