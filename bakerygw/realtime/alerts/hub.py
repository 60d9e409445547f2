"""All feeds of this instance, and what they share."""

from random import Random
from typing import Final

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IReactorTime

from bakerygw.ports import StoreUnavailable
from bakerygw.ports.events import EventLog, Placed
from bakerygw.ports.telemetry import StreamTelemetry
from bakerygw.realtime.alerts.fanout import Fanout
from bakerygw.realtime.alerts.feed import READS_AT_ONCE, Feed, forget
from bakerygw.realtime.alerts.ring import RING_BYTES, RING_FRAMES
from bakerygw.realtime.alerts.stream import Resume, Stream
from bakerygw.realtime.alerts.wheel import Wheel

PATIENCE_S: Final = 2.0
"""A new stream waits so long for alerts to be heard again, and for its place in the history."""
SLOW_S: Final = 5.0
"""A stream that the ring has left behind is ended if its client takes nothing for so long."""
KEPT_S: Final = 30.0
"""A feed without readers is kept for so long: those who were cut come back to what it has."""


class Hub:
    """Brings what is heard to the streams of its tenant. Nothing here raises but `open`."""

    def __init__(
        self,
        log: EventLog,
        *,
        clock: IReactorTime,
        heartbeat_s: float,
        history_s: float,
        telemetry: StreamTelemetry,
        random: Random,
    ) -> None:
        """What came more than `history_s` ago is given only as far as the history still has it."""
        self.log, self.clock, self.telemetry, self.random = log, clock, telemetry, random
        self.reads = DeferredSemaphore(READS_AT_ONCE)
        self.listening = False
        """All that is published is heard, and stored."""
        self.bounds = RING_FRAMES, RING_BYTES
        self.heartbeat_s = int(heartbeat_s) if heartbeat_s.is_integer() else heartbeat_s
        """How long a stream is silent at most, in seconds."""
        self.wheel = Wheel(clock, heartbeat_s, ticked=self._sweep)
        self.feeds: dict[str, Feed] = {}
        self.fan_out = Fanout(clock).add
        self.gap, self.sent = telemetry.gap, telemetry.sent
        self._history_s = history_s
        self._empty: dict[Feed, float] = {}
        """Feeds without readers, and since when; the oldest first."""
        self._doubted: dict[Stream, float] = {}
        """Streams whose clients may have stopped reading, and when that is certain; the soonest first."""
        self._streams = 0
        self._hopeful: list[Deferred[None]] = []
        """Requests that wait until all is heard again."""

    # from whoever listens to what is published

    def stored(self, tenant_id: str, placed: Placed, payload: bytes) -> None:
        """An alert that was heard here and stands in the history; in any order, and repeated."""
        feed = self.feeds.get(tenant_id)
        if feed is not None:
            feed.stored(placed.position, payload)

    def degraded(self) -> None:
        """What is published may not be heard, or not be stored: streams are told, once."""
        self.listening = False
        for feed in list(self.feeds.values()):
            feed.degraded()

    def restored(self) -> None:
        """All is heard again: every feed compares with the history, fills what was missed or tells of a gap."""
        self.listening = True
        for feed in list(self.feeds.values()):
            if feed.empty:
                self.drop(feed)
            else:
                feed.compare().addErrback(forget)
        hopeful, self._hopeful = self._hopeful, []
        for waiter in hopeful:
            if not waiter.called:
                waiter.callback(None)

    # for the handler

    async def open(self, tenant_id: str, resume: Resume | None) -> tuple[Feed, Resume | None]:
        """The tenant's feed, counted as `opening`, and what is missing if a stream resumes.

        The `Stream` that is made for it sees to the rest. Raises `StoreUnavailable`.
        """
        await self._ready()
        feed = self.feeds.get(tenant_id)
        if feed is None:
            feed = self.feeds[tenant_id] = Feed(tenant_id, self)
            self.wheel.start()
        self._empty.pop(feed, None)
        feed.opening += 1
        try:
            return feed, await self._prepared(feed, resume)
        except BaseException:
            self.opened(feed)
            raise

    def opened(self, feed: Feed) -> None:
        """What was opening will never be a reader."""
        feed.opening -= 1
        self._settle(feed)

    def began(self, feed: Feed) -> None:
        """What was opening is one of the feed's readers."""
        feed.opening -= 1
        self._streams += 1
        self.telemetry.streams(self._streams)

    def ended(self, feed: Feed) -> None:
        """A stream of this feed has ended."""
        self._streams -= 1
        self.telemetry.streams(self._streams)
        self._settle(feed)

    def close(self) -> None:
        """Nothing is timed any more."""
        self.wheel.stop()
        for feed in self.feeds.values():
            feed.close()
        self.feeds.clear()
        self._empty.clear()

    async def _ready(self) -> None:
        """Wait a moment until what is published is heard."""
        if self.listening:
            return
        waiter: Deferred[None] = Deferred()
        self._hopeful.append(waiter)
        try:
            await waiter.addTimeout(PATIENCE_S, self.clock)
        except DeferredTimeoutError:
            raise StoreUnavailable("alerts are not heard") from None
        finally:
            if waiter in self._hopeful:
                self._hopeful.remove(waiter)

    async def _prepared(self, feed: Feed, resume: Resume | None) -> Resume | None:
        position = None if resume is None else resume.position
        if not feed.known:
            await self._soon(feed.learn())
        if position is None:
            return resume
        if position.epoch > feed.epoch or (position.epoch == feed.epoch and position.offset > feed.offset):
            await self._soon(feed.compare())  # another instance may have been quicker
        if position.epoch != feed.epoch or position.offset > feed.offset or self._remembered(feed, position.offset):
            return Resume(position=position)
        return Resume(position=position, page=await feed.read(position))

    def _remembered(self, feed: Feed, offset: int) -> bool:
        """All alerts behind this one are in memory, and none is so old that the history may have let go of it."""
        number = feed.ring.behind(offset)
        if number is None:
            return False
        since = feed.ring.since(number)
        return since is None or since > self.clock.seconds() - self._history_s

    async def _soon(self, learnt: "Deferred[None]") -> None:
        try:
            await learnt.addTimeout(PATIENCE_S, self.clock)
        except DeferredTimeoutError:
            raise StoreUnavailable("the history did not answer") from None

    # streams that may be too slow

    def doubt(self, stream: Stream) -> None:
        """End this stream as slow soon, unless it is trusted again."""
        self._doubted[stream] = self.clock.seconds() + SLOW_S

    def trust(self, stream: Stream) -> None:
        """Its client reads, or has left."""
        self._doubted.pop(stream, None)

    # feeds come and go

    def _settle(self, feed: Feed) -> None:
        if feed.empty and self.feeds.get(feed.tenant_id) is feed:
            if feed.known and self.listening:
                self._empty[feed] = self.clock.seconds()
            else:
                self.drop(feed)

    def _sweep(self) -> None:
        """End the streams whose clients do not read, and let go of feeds that nobody has come back to."""
        now = self.clock.seconds()
        while self._doubted:
            stream, ends_at = next(iter(self._doubted.items()))
            if ends_at > now:
                break
            self.trust(stream)
            stream.slow()
        until = now - KEPT_S
        while self._empty:
            feed, since = next(iter(self._empty.items()))
            if since > until:
                break
            self.drop(feed)

    def drop(self, feed: Feed) -> None:
        """Let go of a feed that has no readers."""
        feed.close()
        self._empty.pop(feed, None)
        if self.feeds.get(feed.tenant_id) is feed:
            del self.feeds[feed.tenant_id]
        if not self.feeds:
            self.wheel.stop()
