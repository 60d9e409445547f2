"""One client's stream of alerts: a reply's body that ends only with the client, its credential or the gateway."""

from typing import TYPE_CHECKING, ClassVar, Final

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.core import sse
from bakerygw.core.alerts import Position
from bakerygw.core.http import BodySink
from bakerygw.core.outcome import Trace
from bakerygw.core.tenancy import TenantFlags
from bakerygw.core.values import value
from bakerygw.ports import StoreUnavailable
from bakerygw.ports.events import Page
from bakerygw.realtime.alerts.controls import GapReason, gap_event, standing_event, state_event
from bakerygw.realtime.alerts.feed import MAX_RETRY_S, RETRY_S, Feed, forget
from bakerygw.realtime.alerts.reader import Reader, Way
from bakerygw.realtime.alerts.ring import Ring
from bakerygw.realtime.held import Ending, Place

if TYPE_CHECKING:
    from bakerygw.realtime.alerts.hub import Hub

NO_RUN: Final = -2
"""The run of a stream that was not given the event which begins the ring's present one."""
RETRY_MS: Final = (1000, 5000)
"""Between these, at random, so that those cut together do not come back together."""
FOR_GOOD: Final = frozenset({"token-revoked", "forbidden"})
"""Endings after which nobody need come back with the same credential."""


@value
class Resume:
    """Where a client wants to go on."""

    position: Position | None
    """`None`: it names a place that is none of ours."""
    page: Page | None = None
    """What the history has behind it, where that had to be asked."""


class Stream(Reader):
    """Both the source of a reply's body and what is `Held`. It is a reader of its feed from `start` to its end.

    It is `live` as long as it gets frames from the feed's ring. Else it is given pages of the history, or waits: for
    its client to take what was written, or among the feed's `waiting` for the feed to come to where it is.
    """

    __slots__ = (
        "_feed", "_fell", "_flags", "_hub", "_left", "_place", "_resume", "_sink", "_started", "_trace", "_waits",
        "_warned", "run", "slot",
    )  # fmt: skip
    length = None
    _log: ClassVar[Logger] = Logger()

    def __init__(
        self, hub: "Hub", feed: Feed, exchange: Way, *, place: Place, trace: Trace, resume: Resume | None
    ) -> None:
        """`feed` as `Hub.open` gave it, and still counted as opening."""
        super().__init__(exchange)
        self._hub, self._feed, self._place, self._trace = hub, feed, place, trace
        self._resume = resume
        self._sink: BodySink | None = None
        self._flags: TenantFlags | None = None
        self._started = self._left = False
        self._waits = False
        """It goes on as soon as its client takes more."""
        self._fell = False
        """The ring has left it behind, so it is told how it stands once it is live again."""
        self._warned = False
        """It was told that alerts may be late, which its feed tells those that are live."""
        self.run = self.slot = 0
        """The run of offsets that it is in, by the number of its first frame; and its place on the wheel."""

    # BodySource

    def whole(self) -> bytes | None:
        """There is no end in sight."""
        return None

    def start(self, sink: BodySink) -> None:
        """Greet, and from this moment on miss nothing."""
        self._sink, self._started = sink, True
        exchange, feed, hub = self._exchange, self._feed, self._hub
        self._chunked = exchange.chunked
        exchange.channel.settle()
        self.run = feed.ring.run
        self._warned = feed.told_degraded
        greeting = sse.retry(hub.random.randint(*RETRY_MS)) + self._greet()
        if self._warned:
            greeting += sse.control("degraded", {})
        resume, self._resume = self._resume, None
        feed.readers[self] = None
        hub.wheel.add(self)
        hub.began(feed)
        sink.write(greeting)
        self._place.hold(self, returning=resume is not None)
        if self._sink is not None and not self.live:
            page = None if resume is None else resume.page
            Deferred.fromCoroutine(self._replay(page)).addErrback(self._failed)

    def pause(self) -> None:
        """The client does not take what was written."""
        self.blocked, self.blocked_since = True, self._hub.clock.seconds()

    def resume(self) -> None:
        """It does again: it gets what it has missed meanwhile."""
        self.blocked = False
        if self._sink is None:
            return
        flags, self._flags = self._flags, None
        if flags is not None:
            self._write(state_event(flags))
        if self._waits:
            self.moved()
        elif self.live:
            if self.next < self._feed.ring.first:
                self.behind()
            else:
                self._feed.more(self.next)

    def stop(self) -> None:
        """The client has left."""
        self._leave()

    # Held

    def expiring(self, in_s: float) -> None:
        """Its credential ends soon."""
        self._write(sse.control("token-expiring", {"in": max(0, round(in_s))}))

    def tenant_state(self, flags: TenantFlags) -> None:
        """Its tenant's flags are others. A client that takes nothing is told of the last of them only."""
        if self.blocked:
            self._flags = flags
        else:
            self._write(state_event(flags))

    def end(self, why: Ending) -> None:
        """Say goodbye, and end the reply as a whole one."""
        sink = self._sink
        if sink is None:
            return
        wait_ms = None if why in FOR_GOOD else self._hub.random.randint(*RETRY_MS)
        self._write(sse.control("bye", {"reason": why, "retry": wait_ms}))
        self._trace.reason = self._trace.reason or why
        self._leave()
        sink.done()

    # reader of the feed

    def behind(self) -> None:
        """Go on with the history, which waits for its client; who takes nothing for a while is `slow`."""
        ring = self._feed.ring
        self.live, self._warned, self._fell = False, False, True
        self.run = ring.run if self.next > ring.run else NO_RUN
        if self.blocked:
            self._waits = True  # `resume` goes on
            self._hub.doubt(self)
        else:
            self.moved()

    def slow(self) -> None:
        """It takes nothing: end it, so that it comes back and reads the history."""
        sink = self._sink
        if sink is None:
            return
        self._trace.reason = "slow"
        self._hub.telemetry.dropped("slow")
        self._leave()
        sink.cut("slow")

    def moved(self) -> None:
        """The feed may have come to where it is, or its client takes more."""
        self._waits = False
        self._hub.trust(self)
        if self._sink is not None and not self._join():
            Deferred.fromCoroutine(self._replay(None)).addErrback(self._failed)

    def beat(self) -> None:
        """Nothing was said for a while."""
        if self.blocked:
            self._feed.more(self.next)  # which finds out whether it is too slow
        else:
            self._write(sse.HEARTBEAT)

    # how it begins

    def _greet(self) -> bytes:
        """The first events, and with them where the stream stands. Only what has been told may be named by an id."""
        feed, resume = self._feed, self._resume
        head, position = feed.head, None if resume is None else resume.position
        members: dict[str, object] = {
            "epoch": head.epoch,
            "offset": head.offset,
            "recovered": False,
            "missed": 0,
            "heartbeat_seconds": self._hub.heartbeat_s,
        }
        self._offset = head.offset
        if resume is None:
            self.next, self.live = feed.ring.end, True
            return sse.control("hello", members, head.text)
        gap = self._gap(resume)
        if gap is not None or position is None:
            self.next, self.live = feed.ring.end, True
            reason = gap or "unknown"
            self._hub.telemetry.gap(reason)
            return sse.control("hello", {**members, "missed": None}) + gap_event(head, reason)
        self._offset = position.offset
        self._join()
        return sse.control(
            "hello", {**members, "recovered": True, "missed": max(0, head.offset - position.offset)}, position.text
        )

    def _gap(self, resume: Resume) -> GapReason | None:
        """Why what it has missed can't be given."""
        feed, position, page = self._feed, resume.position, resume.page
        if position is None or position.epoch > feed.epoch:
            return "unknown"
        if position.epoch < feed.epoch:
            return "epoch"
        if page is None:
            return "unknown" if position.offset > feed.offset else None
        if page.head.epoch != feed.epoch:
            return "epoch"
        if page.head.offset < position.offset:
            return "unknown"
        return "trimmed" if page.first > position.offset + 1 else None

    def _join(self) -> bool:
        """Go on with the feed, if its ring has all that comes next, or a gap that says so."""
        feed = self._feed
        ring = feed.ring
        gap = self.run != ring.run
        if gap:
            number: int | None = self._tell_gap(ring)
        elif self._offset > feed.offset:
            return False
        else:
            number = ring.behind(self._offset)
        if number is None:
            return False
        self.next, self.run, self.live = number, ring.run, True
        if self._fell or self._warned != feed.told_degraded:
            self._fell = self._warned = False
            self._write(standing_event(feed.head, self._offset, gap=gap, degraded=feed.told_degraded))
        if number < ring.end:
            feed.more(number)
        return True

    def _tell_gap(self, ring: Ring) -> int:
        """Tell of the hole before the feed's present run; the number of the frame that comes next."""
        if ring.run >= ring.first:
            frame = ring.frame(ring.run)
            self._offset = frame.offset
            self._write(frame.plain)
            return ring.run + 1
        self._offset = ring.reach
        self._write(gap_event(Position(epoch=self._feed.epoch, offset=ring.reach), "epoch"))
        return ring.first

    async def _replay(self, page: Page | None) -> None:
        """Give what the history has, page by page and as fast as the client takes it, until the feed can go on."""
        feed, wait_s = self._feed, RETRY_S
        while self._sink is not None:
            if page is None:
                try:
                    page = await feed.read(Position(epoch=feed.epoch, offset=self._offset))
                except StoreUnavailable:
                    self._warn()
                    await deferLater(self._hub.clock, wait_s)
                    wait_s = min(2 * wait_s, MAX_RETRY_S)
                continue
            if self.run == feed.ring.run and page.head.epoch == feed.epoch:
                self._give_page(page)
            if self.blocked:
                self._waits = True  # `resume` goes on
                return
            if self._join():
                return
            if page.head.epoch != feed.epoch or self._offset > feed.offset:
                # The history is ahead of the feed, which will be there in a moment.
                feed.waiting[self] = None
                feed.compare().addErrback(forget)
                return
            page = None

    def _warn(self) -> None:
        """Tell once that alerts may be late: the feed tells only those that it serves."""
        if self._feed.told_degraded and not self._warned:
            self._warned = True
            self._write(sse.control("degraded", {}))

    def _give_page(self, page: Page) -> None:
        frames = []
        if page.first > self._offset + 1:
            base = Position(epoch=page.head.epoch, offset=page.first - 1)
            self._offset = base.offset
            self._hub.telemetry.gap("trimmed")
            frames.append(gap_event(base, "trimmed"))
        for event in page.events:
            if event.position.offset > self._offset:
                self._offset = event.position.offset
                frames.append(sse.event("alert", event.payload, event.position.text))
        if frames:
            self._write(b"".join(frames))
            self._hub.telemetry.replayed(len(frames))
            self._hub.telemetry.sent(len(frames))

    # how it goes on and ends

    def _write(self, data: bytes) -> None:
        if self._sink is not None:
            self.spoke = self._hub.wheel.tick
            self._send = None  # nothing may overtake this
            self._exchange.write(data)

    def _leave(self) -> None:
        """Give back all that it holds; once."""
        self._sink = self._send = None
        self.live = False
        if self._left:
            return
        self._left = True
        self._exchange.pushed(self._carried)
        feed, hub = self._feed, self._hub
        if self._started:
            hub.trust(self)
            hub.wheel.remove(self)
            feed.readers.pop(self, None)
            feed.waiting.pop(self, None)
            hub.ended(feed)
        else:
            hub.opened(feed)
        self._place.leave()

    def _failed(self, failure: Failure) -> None:
        self._log.failure("stream.failed", failure)
        sink = self._sink
        if sink is not None:
            self._leave()
            sink.cut("failed")
