"""Streams with all that surrounds them in memory: a history, a hub, clients that read what was written."""

from collections.abc import Sequence
from random import Random

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from bakerygw.core.alerts import Alert, Position, parse_position
from bakerygw.core.outcome import Trace
from bakerygw.core.tenancy import TenantFlags
from bakerygw.edge.line import Send
from bakerygw.ports import StoreUnavailable
from bakerygw.ports.events import Page, Placed, Stored
from bakerygw.realtime.alerts.hub import Hub
from bakerygw.realtime.alerts.stream import Resume, Stream
from bakerygw.realtime.held import Held
from tests.realtime.sse_client import EventClient

TENANT = "t1"
HISTORY_S = 600.0


class History:
    """What all instances share: one tenant's alerts."""

    def __init__(self, epoch: int = 7) -> None:
        self.epoch, self.first = epoch, 1
        self.payloads: list[bytes] = []
        self.truth: dict[Position, bytes] = {}

    @property
    def head(self) -> Position:
        return Position(epoch=self.epoch, offset=self.first + len(self.payloads) - 1)

    def add(self, payload: bytes) -> Position:
        self.payloads.append(payload)
        self.truth[self.head] = payload
        return self.head

    def trim(self, keep: int) -> None:
        drop = max(0, len(self.payloads) - keep)
        del self.payloads[:drop]
        self.first += drop

    def begin_era(self) -> None:
        self.epoch, self.first, self.payloads = self.epoch + 1, 1, []

    def page(self, after: Position, count: int, max_bytes: int) -> Page:
        begin = max(self.first, after.offset + 1) if after.epoch == self.epoch else self.first
        events: list[Stored] = []
        size = 0
        for offset in range(begin, min(self.head.offset, begin + count - 1) + 1):
            payload = self.payloads[offset - self.first]
            size += len(payload)
            if events and size > max_bytes:
                break
            events.append(Stored(position=Position(epoch=self.epoch, offset=offset), payload=payload))
        return Page(head=self.head, first=self.first, events=tuple(events))


class FakeLog:
    """One instance's way to the history. With `slow`, answers wait in `asked` for `look` and then `answer`."""

    def __init__(self, history: History, *, slow: bool = False) -> None:
        self.history, self.slow, self.away = history, slow, False
        self.reads = self.heads = 0
        self.asked: list[_Asked] = []
        self.page_events: int | None = None

    async def head(self, tenant_id: str) -> Position:
        self.heads += 1
        page = await self._ask(Position(epoch=0, offset=0), 0, 0)
        return page.head

    async def read(self, tenant_id: str, after: Position, *, count: int, max_bytes: int) -> Page:
        self.reads += 1
        return await self._ask(after, min(count, self.page_events or count), max_bytes)

    async def _ask(self, after: Position, count: int, max_bytes: int) -> Page:
        if self.away:
            raise StoreUnavailable("away")
        asked = _Asked(self, after, count, max_bytes)
        if not self.slow:
            asked.look()
            asked.answer()
        else:
            self.asked.append(asked)
        return await asked.done

    async def append(self, alerts: Sequence[Alert]) -> list[Placed]:
        raise NotImplementedError

    async def publish(self, alert: Alert) -> Placed:
        raise NotImplementedError

    async def era(self) -> int:
        raise NotImplementedError

    async def begin_era(self, seen: int) -> int:
        raise NotImplementedError


class _Asked:
    def __init__(self, log: FakeLog, after: Position, count: int, max_bytes: int) -> None:
        self._log, self._after, self._count, self._max_bytes = log, after, count, max_bytes
        self._page: Page | None = None
        self.done: Deferred[Page] = Deferred()

    def look(self) -> None:
        if self._page is None:
            self._page = self._log.history.page(self._after, self._count, self._max_bytes)

    def answer(self) -> None:
        self.look()
        if self in self._log.asked:
            self._log.asked.remove(self)
        if self.done.called:
            return
        if self._log.away or self._page is None:
            self.done.errback(StoreUnavailable("away"))
        else:
            self.done.callback(self._page)


class Told:
    """What was reported."""

    def __init__(self) -> None:
        self.open = self.frames = self.from_history = 0
        self.gaps: list[str] = []
        self.drops: list[str] = []

    def streams(self, number: int) -> None:
        self.open = number

    def sent(self, events: int) -> None:
        self.frames += events

    def replayed(self, events: int) -> None:
        self.from_history += events

    def gap(self, reason: str) -> None:
        self.gaps.append(reason)

    def dropped(self, reason: str) -> None:
        self.drops.append(reason)


class FakePlace:
    def __init__(self, flags: TenantFlags | None = None) -> None:
        self.held: Held | None = None
        self.returning = False
        self.left = 0
        self._flags = flags

    def hold(self, held: Held, *, returning: bool = False) -> None:
        self.held, self.returning = held, returning
        if self._flags is not None:
            held.tenant_state(self._flags)

    def leave(self) -> None:
        self.left += 1


class FakeChannel:
    def settle(self) -> None:
        pass


class FakeExchange:
    """The way to one client, which takes everything that is written, or blocks."""

    def __init__(self, *, chunked: bool = False) -> None:
        self.chunked = chunked
        self.channel = FakeChannel()
        self.written: list[bytes] = []
        self.carried = self.pushes = 0
        self.send: Send | None = None
        """What does the same as `push`, once it was called."""

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def push(self, data: bytes) -> Send | None:
        self.written.append(data)
        self.pushes += 1
        return self.send

    def pushed(self, size: int) -> None:
        self.carried += size


class Reading:
    """A client with an open stream, and the sink of its body."""

    def __init__(self, instance: "Instance", client: EventClient, place: FakePlace, tenant_id: str = TENANT) -> None:
        self.instance, self.client, self.place, self.tenant_id = instance, client, place, tenant_id
        self.exchange = FakeExchange()
        self.trace = Trace(request_id="r", started=0.0)
        self.stream: Stream | None = None
        self.end: str | None = None
        self.failed: Exception | None = None
        self.opening: Deferred[None] | None = None

    def write(self, data: bytes) -> None:
        self.exchange.write(data)

    def done(self) -> None:
        assert self.end is None
        self.end = "done"

    def cut(self, reason: str) -> None:
        assert self.end is None
        self.end = reason

    async def open(self, resume: Resume | None) -> None:
        hub = self.instance.hub
        try:
            feed, resume = await hub.open(self.tenant_id, resume)
        except CancelledError:
            return
        except StoreUnavailable as error:
            self.failed, self.end = error, "refused"
            return
        self.stream = Stream(
            hub,
            feed,
            self.exchange,
            place=self.place,
            trace=self.trace,
            resume=resume,
        )
        self.stream.start(self)

    def read(self, up_to: int | None = None) -> list[tuple[str, str]]:
        """The kind and last id of what has come since; `up_to`: only so many of the bytes arrive."""
        data = b"".join(self.exchange.written)
        self.exchange.written.clear()
        return [(event.kind, event.last_id) for event in self.client.feed(data[:up_to])]

    def leave(self) -> None:
        if self.end is None:
            if self.stream is not None:
                self.stream.stop()
            elif self.opening is not None:
                self.opening.cancel()
        self.end = self.end or "left"


class Instance:
    """One hub, over a history that others may share."""

    def __init__(self, history: History | None = None, *, slow: bool = False, listening: bool = True) -> None:
        self.history = history or History()
        self.clock, self.told = Clock(), Told()
        self.log = FakeLog(self.history, slow=slow)
        self.hub = Hub(
            self.log, clock=self.clock, heartbeat_s=15.0, history_s=HISTORY_S, telemetry=self.told, random=Random(1)
        )
        if listening:
            self.hub.restored()

    def publish(self, payload: bytes = b"{}") -> Position:
        """Stored, and heard here."""
        position = self.history.add(payload)
        self.hear(position)
        return position

    def hear(self, position: Position) -> None:
        self.hub.stored(TENANT, Placed(position=position, fresh=True), self.history.truth[position])

    def open(self, last_id: str | None = None, *, flags: TenantFlags | None = None, tenant_id: str = TENANT) -> Reading:
        resume = None if last_id is None else Resume(position=parse_position(last_id.encode()))
        reading = Reading(self, EventClient(last_id or ""), FakePlace(flags), tenant_id)
        reading.opening = Deferred.fromCoroutine(reading.open(resume))
        self.turn()
        return reading

    def turn(self, seconds: float = 0.0) -> None:
        """Let what is due happen."""
        self.clock.advance(seconds)
        for _ in range(20):
            self.clock.advance(0)
