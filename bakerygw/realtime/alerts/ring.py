"""The newest frames of one feed, which all its streams are given from: no stream has a queue of its own."""

from bisect import bisect_right
from operator import attrgetter
from typing import Final

from bakerygw.core.sse import chunk

RING_FRAMES: Final = 1000
RING_BYTES: Final = 256 * 1024
"""A client that is further behind than this, or than `RING_FRAMES`, is dropped, unless that is but for a moment."""
BURST: Final = 16
"""So many times as much is kept for a moment, for clients whose connection a burst has filled."""

_OFFSET: Final = attrgetter("offset")


class Frame:
    """One event as it is sent to all, with and without the framing of HTTP/1.1."""

    __slots__ = ("at", "chunk", "offset", "plain")

    def __init__(self, plain: bytes, offset: int, at: float) -> None:
        """`offset`: of the last alert up to and including this frame. `at`: when it came, by the hub's clock."""
        self.plain, self.chunk, self.offset, self.at = plain, chunk(plain), offset, at


class Ring:
    """Frames by their numbers, which grow by one; streams keep the number of the frame that they need next."""

    __slots__ = ("_bytes", "_frames", "_max_bytes", "_max_frames", "end", "first", "reach", "run")

    def __init__(self, offset: int, max_frames: int = RING_FRAMES, max_bytes: int = RING_BYTES) -> None:
        """Empty, behind the alert with this offset."""
        self._max_frames, self._max_bytes = max_frames, max_bytes
        self._frames: list[Frame] = []
        self._bytes = 0
        self.first = self.end = 0
        """The numbers of the oldest frame, and of the next to come."""
        self.run = -1
        """The number of the frame that begins the present run of offsets without a hole; that of no frame at first."""
        self.reach = offset
        """All alerts of the run behind this offset are here."""

    def append(self, frame: Frame) -> None:
        """Add the newest frame. Nothing is let go of before `shed`."""
        self._frames.append(frame)
        self._bytes += len(frame.plain)
        self.end += 1

    def begin_run(self, frame: Frame) -> None:
        """Add a frame that says that there is a hole; offsets begin anew behind the frame's."""
        self.run, self.reach = self.end, frame.offset
        self.append(frame)

    def shed(self, lowest: int, patient: int) -> None:
        """Let go of what is beyond the bounds, but of nothing from the number `lowest` on.

        And of nothing from `patient` on that is not beyond `BURST` times the bounds.
        """
        surplus, size = 0, self._bytes
        number = len(self._frames)
        while surplus < number and (number - surplus > self._max_frames or size > self._max_bytes):
            if self.first + surplus >= lowest:
                break
            kept = number - surplus <= BURST * self._max_frames and size <= BURST * self._max_bytes
            if kept and self.first + surplus >= patient:
                break
            size -= len(self._frames[surplus].plain)
            surplus += 1
        if not surplus:
            return
        last = self.first + surplus - 1
        if last >= self.run:
            self.reach = self._frames[surplus - 1].offset
        del self._frames[:surplus]
        self.first += surplus
        self._bytes = size

    def frame(self, number: int) -> Frame:
        """One that is here."""
        return self._frames[number - self.first]

    def some(self, number: int, max_bytes: int) -> list[Frame]:
        """Those from `number` on, at least one and then as many as fit."""
        taken: list[Frame] = []
        size = 0
        for frame in self._frames[number - self.first :]:
            size += len(frame.plain)
            if taken and size > max_bytes:
                break
            taken.append(frame)
        return taken

    def since(self, number: int) -> float | None:
        """When the oldest frame from `number` on came; `None` if there is none."""
        return None if number == self.end else self.frame(number).at

    def behind(self, offset: int) -> int | None:
        """The number from which all alerts of the run behind `offset` follow; `None` if not all are here."""
        if offset < self.reach:
            return None
        lo = max(self.run - self.first, 0)
        return self.first + bisect_right(self._frames, offset, lo=lo, key=_OFFSET)
