"""A stream, as its feed sees it; and what a feed needs of all that feeds share."""

from typing import TYPE_CHECKING, Final, Protocol

from twisted.internet.defer import DeferredSemaphore
from twisted.internet.interfaces import IReactorTime

from bakerygw.edge.line import Send
from bakerygw.ports.events import EventLog
from bakerygw.realtime.alerts.ring import Ring
from bakerygw.realtime.alerts.wheel import Wheel

if TYPE_CHECKING:
    from bakerygw.realtime.alerts.feed import Feed

PIECE_BYTES: Final = 64 * 1024
"""Written at once to a client that is behind."""


class Lasting(Protocol):
    """A connection whose reply lasts."""

    def settle(self) -> None:
        """The reply under way is the last and may take hours."""


class Way(Protocol):
    """A reply, as a stream writes it (`Exchange`)."""

    @property
    def chunked(self) -> bool:
        """The body goes out in chunks."""

    @property
    def channel(self) -> Lasting:
        """The connection."""

    def write(self, data: bytes) -> None:
        """The next piece of the body."""

    def push(self, data: bytes) -> Send | None:
        """What was framed once for many; returns what does the same for what comes next, if anything does."""

    def pushed(self, size: int) -> None:
        """So many bytes of the body left by `push`, or by what it returned."""


class Reader:
    """A stream, as its feed sees it: where it is in the feed's ring, and its way to the socket.

    Among a thousand streams each object of one is out of the processor's caches. So all that an ordinary delivery needs
    is here, besides the socket.
    """

    __slots__ = (
        "_carried", "_chunked", "_exchange", "_offset", "_send", "blocked", "blocked_since", "live", "next", "spoke",
    )  # fmt: skip

    def __init__(self, exchange: Way) -> None:
        self.next = 0
        """The number of the frame that it needs next."""
        self.live = False
        """It gets its frames from the ring, not from the history."""
        self.blocked = False
        """Its client has not taken what was written."""
        self._chunked = False
        self.spoke = 0
        """The wheel's tick when it last had something to say."""
        self._offset = 0
        """Of the last alert that it was given."""
        self._carried = 0
        """Bytes of frames that were given, and that the reply has not counted yet."""
        self._send: Send | None = None
        """The socket's own `send`, while nothing waits to leave before it."""
        self._exchange = exchange
        self.blocked_since = 0.0
        """Since when, by the clock."""

    def give(self, ring: Ring, tick: int) -> int:
        """Write what it lacks of the ring, or a part of it, at the wheel's `tick`; how many frames that is."""
        number = self.next
        if number == ring.end - 1:
            frame = ring.frame(number)
            self.next, self._offset = ring.end, frame.offset
            self._carried += len(frame.plain)
            data, given = frame.chunk if self._chunked else frame.plain, 1
        else:
            frames = ring.some(number, PIECE_BYTES)
            given = len(frames)
            self.next, self._offset = number + given, frames[-1].offset
            self._carried += sum([len(it.plain) for it in frames])
            data = b"".join([it.chunk for it in frames] if self._chunked else [it.plain for it in frames])
        self.spoke = tick
        send = self._send
        if send is not None:
            try:
                sent = send(data)
            except OSError:
                sent = 0  # `push` finds out what is the matter
            if sent == len(data):
                return given
            data = data[sent:]
        self._send = self._exchange.push(data)
        return given

    def behind(self) -> None:
        """The ring no longer has what it needs: it is live no more, or has ended."""
        raise NotImplementedError

    def moved(self) -> None:
        """The feed has come to where this stream, which is not live, waits for it, or has begun another run."""
        raise NotImplementedError


class Surroundings(Protocol):
    """What feeds share (`Hub`)."""

    clock: IReactorTime
    log: EventLog
    reads: DeferredSemaphore
    wheel: Wheel
    """Of the streams' heartbeats."""
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
