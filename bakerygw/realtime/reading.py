"""What a feed knows of its readers, and of what all feeds share."""

from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import DeferredSemaphore
from twisted.internet.interfaces import IReactorTime

from bakerygw.ports.events import EventLog
from bakerygw.realtime.ring import Ring

if TYPE_CHECKING:
    from bakerygw.realtime.feed import Feed


class Reader(Protocol):
    """A stream, as its feed sees it."""

    next: int
    """The number of the frame that it needs next."""
    live: bool
    """It gets its frames from the ring, not from the history."""
    blocked: bool
    """Its client has not taken what was written."""
    blocked_since: float
    """Since when, by the clock."""

    def give(self, ring: Ring) -> int:
        """Write what it lacks, or a part of it; how many frames that were."""

    def behind(self) -> None:
        """The ring no longer has what it needs: it is live no more, or has ended."""

    def moved(self) -> None:
        """The feed has come to where this stream, which is not live, waits for it, or has begun another run."""


class Surroundings(Protocol):
    """What feeds share (`Hub`)."""

    clock: IReactorTime
    log: EventLog
    reads: DeferredSemaphore
    listening: bool
    """All that is published is heard."""
    bounds: tuple[int, int]
    """Frames and bytes that a ring keeps."""

    def fan_out(self, feed: "Feed") -> None:
        """Let the feed's streams have what is new, in slices."""

    def drop(self, feed: "Feed") -> None:
        """Nobody needs this feed."""

    def gap(self, reason: str) -> None:
        """A gap was told to a feed's streams."""

    def sent(self, frames: int) -> None:
        """So many frames were written to streams."""
