"""`EventLog` in the memory of a single instance: what stores/events.py does in Redis."""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Final

from bakerygw.core.alerts import Alert, Position
from bakerygw.core.claims import is_id
from bakerygw.ports import Page, Placed, Stored

MAX_TENANTS: Final = 10_000
MAX_BYTES: Final = 256 * 1024 * 1024
"""Of payloads; beyond these bounds the tenant that was used longest ago is forgotten, and begins anew."""
MAX_SEEN: Final = 100_000
SEEN_S: Final = 60.0
MAX_PAGE: Final = 1000


class _History:
    """One tenant's alerts, all of the same epoch and in order."""

    __slots__ = ("epoch", "era", "ids", "ids_until", "kept", "offset")

    def __init__(self, era: int, epoch: int) -> None:
        self.era, self.epoch, self.offset = era, epoch, 0
        self.kept: deque[tuple[float, bytes]] = deque()
        """When each came, and what it says; the newest is that of `offset`."""
        self.ids: OrderedDict[str, Position] = OrderedDict()
        self.ids_until = 0.0

    @property
    def head(self) -> Position:
        return Position(epoch=self.epoch, offset=self.offset)

    @property
    def first(self) -> int:
        return self.offset - len(self.kept) + 1


class MemoryEventLog:
    """`EventLog` for a single instance. Raises ValueError for what is no tenant's id."""

    def __init__(
        self,
        now: Callable[[], float],
        *,
        history_events: int,
        history_s: float,
        seconds: Callable[[], float] | None = None,
        tell: Callable[[str, bytes], None] | None = None,
        notify: Callable[[str, bytes], None] | None = None,
        seen_s: float = SEEN_S,
        max_tenants: int = MAX_TENANTS,
        max_bytes: int = MAX_BYTES,
        max_seen: int = MAX_SEEN,
    ) -> None:
        """`now` is Unix seconds, which ids are made of; `seconds` a clock that nobody sets, `now` itself if `None`.

        `tell` is told the tenant and the payload of what is published; `notify` is given what belongs into the outbox
        of notifications, by `{tenant_id}:{epoch}-{offset}`. Neither raises.
        """
        self._now, self._seconds = now, now if seconds is None else seconds
        self._tell, self._notify = tell, notify
        self._keep, self._keep_s, self._seen_s = history_events, history_s, seen_s
        self._max_tenants, self._max_bytes, self._max_seen = max_tenants, max_bytes, max_seen
        self._histories: OrderedDict[str, _History] = OrderedDict()
        self._seen: OrderedDict[tuple[str, str], tuple[float, Position]] = OrderedDict()
        self._bytes = 0
        self._greatest = self._era = self._milliseconds()

    def __len__(self) -> int:
        """The number of tenants that have a history."""
        return len(self._histories)

    async def append(self, alerts: Sequence[Alert]) -> list[Placed]:
        """Place alerts that were heard."""
        return [self._place(alert) for alert in alerts]

    async def publish(self, alert: Alert) -> Placed:
        """Place an alert that nobody has heard yet, and have all hear it."""
        history = self._history(alert.tenant_id)
        if not self._seconds() < history.ids_until:
            history.ids.clear()
        earlier = history.ids.get(alert.alert_id) if alert.alert_id is not None else None
        if earlier is not None:
            return Placed(position=earlier, fresh=False)
        placed = self._place(alert)
        if placed.fresh:
            if alert.alert_id is not None:
                history.ids[alert.alert_id] = placed.position
                history.ids_until = self._seconds() + self._keep_s
                while len(history.ids) > self._keep:
                    history.ids.popitem(last=False)
            if self._tell is not None:
                self._tell(alert.tenant_id, alert.payload)
        return placed

    async def head(self, tenant_id: str) -> Position:
        """Where the history of this tenant stands; begins one if there is none."""
        return self._history(tenant_id).head

    async def read(self, tenant_id: str, after: Position, *, count: int, max_bytes: int) -> Page:
        """What stands behind `after`: of an earlier epoch than the head's, all that is kept. `count` is cut to 1000."""
        history = self._history(tenant_id)
        self._trim(history)
        begin = first = history.first
        if after.epoch == history.epoch:
            begin = max(first, after.offset + 1)
        events: list[Stored] = []
        size = 0
        for offset in range(begin, min(history.offset, begin + min(count, MAX_PAGE) - 1) + 1):
            payload = history.kept[offset - first][1]
            size += len(payload)
            if after.epoch > history.epoch or (size > max_bytes and events):
                break
            events.append(Stored(position=Position(epoch=history.epoch, offset=offset), payload=payload))
        return Page(head=history.head, first=first, events=tuple(events))

    async def era(self) -> int:
        """The number of the present era."""
        return self._era

    async def begin_era(self, seen: int) -> int:
        """Begin an era, unless another one than `seen` has begun. The present one."""
        if seen == self._era:
            self._era = self._greater()
        return self._era

    def _place(self, alert: Alert) -> Placed:
        history, now = self._history(alert.tenant_id), self._seconds()
        key = alert.tenant_id, alert.digest
        until, earlier = self._seen.get(key, (0.0, None))
        if earlier is not None and now < until:
            return Placed(position=earlier, fresh=False)
        history.offset += 1
        history.kept.append((now, alert.payload))
        self._bytes += len(alert.payload)
        position = history.head
        self._remember(key, position, now)
        if alert.notify and self._notify is not None:
            self._notify(f"{alert.tenant_id}:{position.text}", alert.payload)
        self._trim(history)
        self._make_room(history)
        return Placed(position=position, fresh=True)

    def _remember(self, key: tuple[str, str], position: Position, now: float) -> None:
        seen = self._seen
        seen[key] = now + self._seen_s, position
        seen.move_to_end(key)
        while len(seen) > self._max_seen or not now < next(iter(seen.values()))[0]:
            seen.popitem(last=False)

    def _history(self, tenant_id: str) -> _History:
        if not is_id(tenant_id):
            raise ValueError(f"no tenant's id: {tenant_id!a:.80}")
        history = self._histories.get(tenant_id)
        if history is None or history.era != self._era:
            self._forget(tenant_id)
            history = self._histories[tenant_id] = _History(self._era, self._greater())
            if len(self._histories) > self._max_tenants:
                self._forget(next(iter(self._histories)))
        else:
            self._histories.move_to_end(tenant_id)
        return history

    def _trim(self, history: _History) -> None:
        kept, oldest = history.kept, self._seconds() - self._keep_s
        while kept and (len(kept) > self._keep or kept[0][0] <= oldest):
            self._bytes -= len(kept.popleft()[1])

    def _make_room(self, used: _History) -> None:
        """Forget tenants, and of the one that is left its oldest alerts."""
        while self._bytes > self._max_bytes and len(self._histories) > 1:
            self._forget(next(iter(self._histories)))
        while self._bytes > self._max_bytes and len(used.kept) > 1:
            self._bytes -= len(used.kept.popleft()[1])

    def _forget(self, tenant_id: str) -> None:
        history = self._histories.pop(tenant_id, None)
        if history is not None:
            self._bytes -= sum(len(payload) for _, payload in history.kept)

    def _greater(self) -> int:
        """A number greater than that of any era and epoch so far."""
        self._greatest = max(self._milliseconds(), self._greatest + 1)
        return self._greatest

    def _milliseconds(self) -> int:
        return int(self._now() * 1000)
