"""`EventLog` in Redis: the tenants' histories of alerts, which all instances share."""

import hashlib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from math import ceil
from typing import ClassVar, Final, cast

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bakerygw.core.alerts import CHANNEL_PREFIX, Alert, Position
from bakerygw.core.claims import is_id
from bakerygw.core.recent import Recent, Seldom
from bakerygw.ports import Page, Placed, Stored, StoreUnavailable
from bakerygw.stores.outbox import BODY, DUE
from bakerygw.stores.redis_link import RedisLink
from bakerygw.stores.redis_wire import Argument, Script

PREFIX: Final = "bakerygw:alerts:"
SEEN_S: Final = 60
"""For so long an alert that is heard again, by another instance or this one, is known to be the same."""
HEAD_S: Final = 7 * 86_400
"""So long after its last alert is forgotten a tenant's place in its own order is still known."""
MAX_BATCH: Final = 64
MAX_BATCH_BYTES: Final = 512 * 1024
"""Of one call: a script keeps all others waiting, here for a millisecond or two."""
MAX_PAGE: Final = 1000
KNOWN: Final = 10_000
"""Tenants whose newest place is remembered here, to notice that Redis has lost it."""
TELL_EVERY_S: Final = 60.0


class RedisEventLog:
    """`EventLog` over one `RedisLink`. Raises ValueError for what is no tenant's id."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self, link: RedisLink, *, clock: IReactorTime, history_events: int, history_s: float, seen_s: float = SEEN_S
    ) -> None:
        """Of each tenant at most `history_events` alerts are kept, and each for `history_s`."""
        self._link, self._clock = link, clock
        keep_ms = max(1, ceil(history_s * 1000))
        self._bounds: tuple[Argument, ...] = (history_events, keep_ms, keep_ms + HEAD_S * 1000)
        self._seen_ms = max(1, ceil(seen_s * 1000))
        self._script = Script.of(files("bakerygw.stores").joinpath("events.lua").read_bytes())
        self._known: Recent[str, Position] = Recent(KNOWN)
        self._greatest = self._era = 0
        """The greatest number of any era or epoch, and the newest era, that Redis has told of."""
        self._told: Seldom[str] = Seldom(TELL_EVERY_S, 100)

    async def append(self, alerts: Sequence[Alert]) -> list[Placed]:
        """Place alerts that were heard, in as few calls as their bounds allow. Raises `StoreUnavailable`.

        Then some of them may be placed; they keep their places when the same are brought again.
        """
        placed: list[Placed] = []
        for batch in _batches(alerts):
            keys, arguments = self._placing(batch)
            placed += _places(await self._run("place", keys, arguments), batch)
            self._learn(batch, placed[-len(batch) :])
        return placed

    async def publish(self, alert: Alert) -> Placed:
        """Place an alert that nobody has heard yet, and have all hear it. Raises `StoreUnavailable`."""
        tenant_id, alert_id = alert.tenant_id, alert.alert_id
        keys, arguments = self._placing([alert])
        keys += [f"{PREFIX}ids:{tenant_id}", f"{PREFIX}ids-order:{tenant_id}"]
        digest = "" if alert_id is None else hashlib.sha256(alert_id.encode("utf-8", "surrogatepass")).hexdigest()
        reply = await self._run("publish", keys, [*arguments, CHANNEL_PREFIX + tenant_id, digest])
        placed = _places(reply, [alert])
        self._learn([alert], placed)
        return placed[0]

    async def head(self, tenant_id: str) -> Position:
        """Where the history of this tenant stands; begins one if there is none. Raises `StoreUnavailable`."""
        return (await self.read(tenant_id, Position(epoch=0, offset=0), count=0, max_bytes=0)).head

    async def read(self, tenant_id: str, after: Position, *, count: int, max_bytes: int) -> Page:
        """What stands behind `after`: of an earlier epoch than the head's, all that is kept. `count` is cut to 1000.

        Raises `StoreUnavailable`.
        """
        asked: list[Argument] = [after.epoch, after.offset, max(0, min(count, MAX_PAGE)), max_bytes]
        keys = [_head(tenant_id), _stream(tenant_id)]
        reply = await self._run("read", keys, [*self._known_of(tenant_id), *asked])
        page = _page(reply)
        self._meet(tenant_id, page.head)
        return page

    async def era(self) -> int:
        """The number of the present era. Raises `StoreUnavailable`."""
        return await self.begin_era(-1)

    async def begin_era(self, seen: int) -> int:
        """Begin an era, unless another one than `seen` has begun. The present one. Raises `StoreUnavailable`."""
        reply = await self._run("era", [], [seen])
        if len(reply) != 1 or not isinstance(reply[0], int):
            raise StoreUnavailable("unreadable era")
        self._era = max(self._era, reply[0])
        self._greatest = max(self._greatest, reply[0])
        return reply[0]

    def _placing(self, alerts: Sequence[Alert]) -> tuple[list[str], list[Argument]]:
        """The keys and arguments of events.lua for alerts to be placed."""
        numbers = {tenant_id: number for number, tenant_id in enumerate({alert.tenant_id: None for alert in alerts}, 1)}
        keys = [DUE, BODY]
        arguments: list[Argument] = [self._seen_ms, len(numbers)]
        for tenant_id in numbers:
            keys += (_head(tenant_id), _stream(tenant_id))
            arguments += (tenant_id, *self._known_of(tenant_id))
        for alert in alerts:
            keys.append(f"{PREFIX}seen:{alert.tenant_id}:{alert.digest}")
            arguments += (numbers[alert.tenant_id], int(alert.notify), alert.payload)
        return keys, arguments

    async def _run(self, what: str, keys: list[str], arguments: Sequence[Argument]) -> list[object]:
        """What the script replies, without the first, which is seen to here."""
        known: list[Argument] = [what, self._greatest, self._era, *self._bounds]
        reply = await self._link.run(self._script, [f"{PREFIX}era", *keys], [*known, *arguments])
        if not isinstance(reply, list) or not reply:
            raise StoreUnavailable("unreadable reply")
        if isinstance(reply[0], bytes):
            reason = reply[0][:200].decode("utf-8", "replace")
            self._tell("refused", reason)
            raise StoreUnavailable(reason)
        if reply[0] != 0:
            self._tell("mended", "a key held what no gateway has put there, and was emptied")
        return cast("list[object]", reply[1:])

    def _tell(self, state: str, reason: str) -> None:
        if self._told.is_due(state, self._clock.seconds()):
            self._log.warn("alerts.history", state=state, reason=reason)

    def _known_of(self, tenant_id: str) -> tuple[int, int]:
        known = self._known.get(tenant_id)
        return (known.epoch, known.offset) if known is not None else (0, 0)

    def _learn(self, alerts: Sequence[Alert], placed: Sequence[Placed]) -> None:
        for alert, its in zip(alerts, placed, strict=True):
            self._meet(alert.tenant_id, its.position)

    def _meet(self, tenant_id: str, position: Position) -> None:
        """Remember the newest place of a tenant that Redis has told of."""
        if (position.epoch, position.offset) >= self._known_of(tenant_id):
            self._known.put(tenant_id, position)
        self._greatest = max(self._greatest, position.epoch)


def _head(tenant_id: str) -> str:
    if not is_id(tenant_id):
        raise ValueError(f"no tenant's id: {tenant_id!a:.80}")
    return f"{PREFIX}head:{tenant_id}"


def _stream(tenant_id: str) -> str:
    return f"{PREFIX}kept:{tenant_id}"


def _batches(alerts: Sequence[Alert]) -> Iterator[Sequence[Alert]]:
    """The alerts in order, as many together as one call may have."""
    start = size = 0
    for end, alert in enumerate(alerts):
        size += len(alert.payload)
        if end > start and (end - start == MAX_BATCH or size > MAX_BATCH_BYTES):
            yield alerts[start:end]
            start, size = end, len(alert.payload)
    if start < len(alerts):
        yield alerts[start:]


def _places(reply: list[object], alerts: Sequence[Alert]) -> list[Placed]:
    """The places in the script's flat reply. Raises `StoreUnavailable` for any other."""
    if len(reply) != 3 * len(alerts) or not all(isinstance(number, int) for number in reply):
        raise StoreUnavailable("unreadable places")
    numbers = iter(cast("list[int]", reply))
    return [
        Placed(position=Position(epoch=epoch, offset=offset), fresh=fresh == 1)
        for epoch, offset, fresh in zip(numbers, numbers, numbers, strict=True)
    ]


def _page(reply: list[object]) -> Page:
    """The page in the script's flat reply. Raises `StoreUnavailable` for any other."""
    numbers, payloads = reply[:4], reply[4:]
    if len(numbers) != 4 or not all(isinstance(number, int) for number in numbers):
        raise StoreUnavailable("unreadable page")
    if not all(isinstance(payload, bytes) for payload in payloads):
        raise StoreUnavailable("unreadable page")
    epoch, offset, first, begin = cast("list[int]", numbers)
    return Page(
        head=Position(epoch=epoch, offset=offset),
        first=first,
        events=tuple(
            Stored(position=Position(epoch=epoch, offset=its), payload=payload)
            for its, payload in enumerate(cast("list[bytes]", payloads), begin)
        ),
    )
