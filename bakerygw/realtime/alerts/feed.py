"""One tenant's alerts on this instance, in order and without holes, and the streams that they go to."""

from typing import ClassVar, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.core import sse
from bakerygw.core.alerts import Position
from bakerygw.ports import StoreUnavailable
from bakerygw.ports.events import Page
from bakerygw.realtime.alerts.controls import GapReason, gap_event
from bakerygw.realtime.alerts.reader import Reader, Surroundings
from bakerygw.realtime.alerts.ring import Frame, Ring

PAGE_EVENTS: Final = 250
PAGE_BYTES: Final = 64 * 1024
READS_AT_ONCE: Final = 16
"""Reads of history that one instance has under way; more wait, for requests need Redis, too."""
HOLE_S: Final = 0.02
"""How long a missing alert may be on its way here before the history is asked for it."""
RETRY_S: Final = 0.5
MAX_RETRY_S: Final = 5.0
MOMENT_S: Final = 1.0
"""A client that has taken nothing for less than this is not slow yet."""
MAX_EARLY: Final = 100
"""Alerts kept that are ahead of a hole; the others come from the history."""


class Feed:
    """Puts what is heard in order, fills holes from the history or tells of them, and gives all of it to the readers.

    Offsets are those of the tenant's history; the numbers of frames are the ring's. Only `read` raises.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(self, tenant_id: str, hub: Surroundings) -> None:
        self.tenant_id = tenant_id
        self.known = False
        """Where the history stands has been learnt."""
        self.epoch = self.offset = 0
        """Of the newest alert in the ring."""
        self.ring = Ring(0)
        self.readers: dict[Reader, None] = {}
        self.waiting: dict[Reader, None] = {}
        """Those of the readers that wait until the feed moves on."""
        self.opening = 0
        """Requests that are about to become readers."""
        self.queued = False
        """It is in the line for fanning out."""
        self.told_degraded = False
        """Its streams were told so, and not yet that all is well."""
        self._hub = hub
        self._early: dict[int, bytes] = {}
        """Alerts ahead of a hole, by their offsets."""
        self._comparing: Deferred[None] | None = None
        """Fires when the comparison with the history that is under way has ended."""
        self._again = False
        """Something has come that this comparison may not have seen: it has to go on."""
        self._grace: IDelayedCall | None = None
        """When what is missing is asked for, should it not come by itself."""
        self._round: list[Reader] = []
        """The readers as the round of fanning out that is under way began; those before `_at` have been served."""
        self._at = self._lowest = self._patient = self._stuck = 0
        """Then the lowest numbers that are still needed, as far as the round has come: by readers that take frames, by
        those that have been blocked for a moment, and by all that are blocked."""

    @property
    def head(self) -> Position:
        """The newest alert's place."""
        return Position(epoch=self.epoch, offset=self.offset)

    @property
    def empty(self) -> bool:
        """Nobody reads it, or is about to."""
        return not self.readers and not self.opening

    # what comes

    def stored(self, position: Position, payload: bytes) -> None:
        """An alert of the history, heard here; in any order, and repeated."""
        if not self.known:
            self._again = True  # whether it is before or behind what is being read is not known
            return
        if position.epoch < self.epoch:
            self.compare().addErrback(forget)  # it is late, or epochs were counted by a clock that went wrong
            return
        if position.epoch == self.epoch and position.offset <= self.offset:
            return
        if position.epoch > self.epoch:
            self.begin_run(Position(epoch=position.epoch, offset=0), "epoch")
        if position.offset == self.offset + 1:
            self._append(position.offset, payload)
            self._absorb()
            return
        if self.empty:
            self._hub.drop(self)  # whoever comes begins anew; nobody reads what is missing
            return
        if len(self._early) < MAX_EARLY:
            self._early[position.offset] = payload
        else:
            self._again = True
        if self._grace is None and self._comparing is None:
            self._grace = self._hub.clock.callLater(HOLE_S, self._overdue)

    def degraded(self) -> None:
        """What is published may not be heard: tell, once."""
        if self.known and not self.told_degraded:
            self.told_degraded = True
            self._say("degraded", {}, named=False)

    def learn(self) -> "Deferred[None]":
        """Learn where the history stands, while that is not `known`. Fails only with `StoreUnavailable`."""
        waiter: Deferred[None] = Deferred()
        if self._comparing is not None:
            self._comparing.addBoth(_pass_on, waiter)
            return waiter
        self._comparing = Deferred()
        self._comparing.addBoth(_pass_on, waiter)
        Deferred.fromCoroutine(self._compare()).addBoth(self._compared)
        return waiter

    def compare(self) -> "Deferred[None]":
        """Learn from the history what was missed; fires when that is here. Fails only with `StoreUnavailable`."""
        if self._comparing is not None:
            self._again = True
        return self.learn()

    def close(self) -> None:
        """Nobody needs it any more."""
        if self._grace is not None and self._grace.active():
            self._grace.cancel()
        self._grace = None
        self._early.clear()

    def begin_run(self, base: Position, reason: GapReason) -> None:
        """Tell of a hole in what follows; it goes on behind `base`."""
        self.epoch, self.offset = base.epoch, base.offset
        self._early.clear()
        self._hub.gap(reason)
        self.ring.begin_run(self._frame(gap_event(base, reason)))
        self._moved()

    # how it goes out

    def more(self, number: int) -> None:
        """Some reader lacks what the ring has from this number on; it need not be in the round under way."""
        self._lowest = min(self._lowest, number)
        self._hub.fan_out(self)

    def advance(self, number: int) -> bool:
        """Give up to `number` readers what they lack; whether some still lack anything."""
        ring = self.ring
        if not self._round:
            self._round, self._at = list(self.readers), 0
            self._lowest = self._patient = self._stuck = ring.end
        at, sent, end, tick = self._at, 0, ring.end, self._hub.wheel.tick
        upto = self._at = min(at + number, len(self._round))
        lately = self._hub.clock.seconds() - MOMENT_S
        for reader in self._round[at:upto]:
            if reader.next == end or not reader.live:
                continue
            if reader.next < ring.first:
                reader.behind()
            elif not reader.blocked:
                sent += reader.give(ring, tick)
                self._lowest = min(self._lowest, reader.next)
            else:
                self._stuck = min(self._stuck, reader.next)
                if reader.blocked_since > lately:
                    self._patient = min(self._patient, reader.next)
        if sent:
            self._hub.sent(sent)
        if upto < len(self._round):
            return True
        self._round = []
        ring.shed(self._lowest, self._patient)
        return self._lowest < ring.end or self._stuck < ring.first

    def _append(self, offset: int, payload: bytes) -> None:
        self.offset = offset
        text = f"{self.epoch}-{offset}"
        self.ring.append(self._frame(sse.event("alert", payload, text)))
        self._moved()

    def _say(self, name: str, members: dict[str, object], *, named: bool) -> None:
        self.ring.append(self._frame(sse.control(name, members, self.head.text if named else None)))
        self._moved()

    def _frame(self, plain: bytes) -> Frame:
        return Frame(plain, self.offset, self._hub.clock.seconds())

    def _moved(self) -> None:
        if self.waiting:
            waiting, self.waiting = self.waiting, {}
            for reader in waiting:
                reader.moved()
        if self.readers:
            self._hub.fan_out(self)
        else:
            self.ring.shed(self.ring.end, self.ring.end)

    def _absorb(self) -> None:
        """What was ahead of a hole that has been filled."""
        early = self._early
        while early:
            payload = early.pop(self.offset + 1, None)
            if payload is None:
                break
            self._append(self.offset + 1, payload)
        for offset in [it for it in early if it <= self.offset]:
            del early[offset]
        if not early and self._grace is not None:
            self._grace.cancel()
            self._grace = None

    # the history

    def _overdue(self) -> None:
        self._grace = None
        if self._early:
            self.compare().addErrback(forget)

    async def read(self, after: Position) -> Page:
        """A page of the history. Raises `StoreUnavailable`."""
        reads = self._hub.reads
        await reads.acquire()
        try:
            if not self._hub.listening:
                raise StoreUnavailable("alerts are not heard")  # all who wait here are to be told, not each to wait
            return await self._hub.log.read(self.tenant_id, after, count=PAGE_EVENTS, max_bytes=PAGE_BYTES)
        finally:
            if reads.waiting:
                # In a turn of its own: of thousands who wait in vain, each would let in the next from its stack.
                self._hub.clock.callLater(0, reads.release)
            else:
                reads.release()

    async def _compare(self) -> None:
        wait_s, missed, run = RETRY_S, 0, self.ring.run
        while True:
            self._again = False
            if not self.known:
                self._start(await self._hub.log.head(self.tenant_id))
                if not self._again:
                    return
                continue
            if self.empty:
                return
            before, ahead = self.head, max(self._early, default=0)
            try:
                page = await self.read(before)
            except StoreUnavailable:
                if not self._hub.listening or self.empty:
                    raise
                await deferLater(self._hub.clock, wait_s)
                wait_s = min(2 * wait_s, MAX_RETRY_S)
                continue
            if before.epoch != self.epoch:
                continue
            missed += self._take(page, before, ahead)
            done = self.epoch == page.head.epoch and self.offset >= page.head.offset
            if done and not self._early and not self._again:
                break
            while self.queued:  # no reader is to fall behind for what comes from the history
                await deferLater(self._hub.clock, 0.001)
        if self.told_degraded and self._hub.listening:
            self.told_degraded = False
            recovered = run == self.ring.run
            members = {"epoch": self.epoch, "offset": self.offset, "recovered": recovered}
            self._say("hello", {**members, "missed": missed if recovered else None}, named=True)

    def _start(self, head: Position) -> None:
        self.epoch, self.offset, self.known = head.epoch, head.offset, True
        self.told_degraded = not self._hub.listening  # its streams are, as they begin
        self.ring = Ring(head.offset, *self._hub.bounds)

    def _take(self, page: Page, before: Position, ahead: int) -> int:
        """What the history had behind `before`, and was said to have up to `ahead`; how many of it are new here."""
        if page.head.epoch != before.epoch:
            self.begin_run(Position(epoch=page.head.epoch, offset=page.first - 1), "epoch")
            return 0
        if page.head.offset < max(before.offset, ahead):
            self.begin_run(page.head, "rewound")
            return 0
        taken = 0
        for event in page.events:
            offset = event.position.offset
            if offset <= self.offset:
                continue
            if offset > self.offset + 1:
                self.begin_run(Position(epoch=self.epoch, offset=offset - 1), "trimmed")
            self._append(offset, event.payload)
            taken += 1
        if not page.events and page.head.offset > self.offset:
            self.begin_run(page.head, "trimmed")
        self._absorb()
        return taken

    def _compared(self, result: object) -> None:
        comparing, self._comparing = self._comparing, None
        if self.empty:
            self._hub.drop(self)  # it may lack something, and whoever comes next must not
        if isinstance(result, Failure) and not result.check(StoreUnavailable, CancelledError):
            self._log.failure("feed.failed", result)
        if comparing is not None:
            comparing.addErrback(forget)  # behind those who wait, who have all been told
            comparing.callback(result if isinstance(result, Failure) else None)


def _pass_on(result: object, waiter: "Deferred[None]") -> object:
    if not waiter.called:
        if isinstance(result, Failure):
            waiter.errback(result)
        else:
            waiter.callback(None)
    return result


def forget(_: Failure) -> None:
    """It is tried again as soon as Redis is back."""
