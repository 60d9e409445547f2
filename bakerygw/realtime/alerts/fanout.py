"""What is new in many feeds, given to their readers in slices, so that requests wait for no more than one of them."""

from collections import deque
from typing import ClassVar, Final, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

SLICE_S: Final = 0.001
READERS: Final = 16
"""Served between two looks at the clock; a tenth of a slice, of ordinary alerts."""


class Advancing(Protocol):
    """A feed, as it goes out."""

    queued: bool

    def advance(self, number: int) -> bool:
        """Serve up to `number` readers; whether there is more to do."""


class Fanout:
    """Feeds take turns, so that a tenant with many readers holds up no other."""

    _log: ClassVar[Logger] = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._line: deque[Advancing] = deque()
        self._scheduled = False

    def add(self, feed: Advancing) -> None:
        """Serve its readers soon; harmless if it is in line."""
        if feed.queued:
            return
        feed.queued = True
        self._line.append(feed)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._slice)

    def _slice(self) -> None:
        self._scheduled = False
        line, seconds = self._line, self._clock.seconds
        until = seconds() + SLICE_S
        while line:
            feed = line.popleft()
            try:
                more = feed.advance(READERS)
            except Exception:  # no fault of one feed's may stop the others
                self._log.failure("fanout.failed")
                more = False
            if more:
                line.append(feed)
            else:
                feed.queued = False
            if seconds() >= until:
                break
        if line:
            self._schedule()
