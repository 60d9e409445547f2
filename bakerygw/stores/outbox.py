"""The outbox of notifications: in Redis, filled by the script that stores alerts, and in this process."""

import hashlib
from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush
from importlib.resources import files
from typing import Final

from bakerygw.core.alerts import MAX_ALERT_BYTES
from bakerygw.core.claims import is_id
from bakerygw.core.notifications import MAX_WAIT_S
from bakerygw.ports import Haul, Notification, StoreUnavailable
from bakerygw.stores.redis_link import RedisLink
from bakerygw.stores.redis_wire import Argument, Script

DUE: Final = "bakerygw:notify:due"
"""When the next attempt of each is due: a sorted set of Unix milliseconds."""
BODY: Final = "bakerygw:notify:body"
"""What each says: a hash."""
HOLDER: Final = "bakerygw:notify:holder"
"""Whose each is, and after how many failures: a hash."""
SINCE: Final = "bakerygw:notify:since"
"""Since when those wait that were taken before, of which the due time no longer says it: as `DUE`."""

DOUBT_S: Final = 2.0
"""How long after its end a lease's holder can still say that its notification was accepted."""
MAX_WAITING: Final = 100_000
"""Beyond it the oldest is given up."""
MAX_AGE_S: Final = 7 * 86_400.0
"""Nobody is helped by an alert of last week."""
LONGEST_S: Final = 2 * MAX_WAIT_S
"""Nothing is put off for longer: what is due later was so by a clock of Redis that has been set back since."""
MAX_BYTES: Final = 64 * 1024 * 1024
"""Of all payloads in this process's memory; beyond it the oldest is given up."""
GIVEN_UP_AT_ONCE: Final = 1_000

_REASONS: Final = ("expired", "overflow", "unreadable")

_FINISH: Final = Script.of(
    b"""-- Removes ARGV[1] from the outbox (KEYS as in outbox.lua) if its payload still has the SHA-1 ARGV[2]: whoever
-- knows that it was accepted may do so, whether the lease is still theirs or not
local payload = redis.call('HGET', KEYS[2], ARGV[1])
if not payload or redis.sha1hex(payload) ~= ARGV[2] then
  return 0
end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
return 1
"""
)
_POSTPONE: Final = Script.of(
    b"""-- Ends the lease ARGV[2] of ARGV[1] (KEYS as in outbox.lua), if it is still held; it is due again in ARGV[3]
-- milliseconds, with ARGV[4] failed attempts
local state, held = string.match(redis.call('HGET', KEYS[3], ARGV[1]) or '', '^([LD]):%d+:(.*)$')
if not state or held ~= ARGV[2] then
  return 0
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HSET', KEYS[3], ARGV[1], 'W:' .. ARGV[4] .. ':')
redis.call('ZADD', KEYS[1], 'XX', now + tonumber(ARGV[3]), ARGV[1])
return 1
"""
)


class RedisOutbox:
    """`Outbox` over one `RedisLink`; times are those of Redis, which all instances share."""

    def __init__(
        self,
        link: RedisLink,
        *,
        token: Callable[[], str],
        doubt_s: float = DOUBT_S,
        max_waiting: int = MAX_WAITING,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        """`token` names each lease, unlike any other's."""
        self._link, self._token = link, token
        self._doubt_ms = _ms(doubt_s)
        self._bounds = (max_waiting, _ms(max_age_s), MAX_ALERT_BYTES, GIVEN_UP_AT_ONCE, _ms(LONGEST_S))
        self._take = Script.of(files("bakerygw.stores").joinpath("outbox.lua").read_bytes())

    async def take(self, count: int, *, lease_s: float) -> Haul:
        """Take at most `count` that are due."""
        lease = self._token()
        reply = await self._link.run(
            self._take,
            [DUE, BODY, HOLDER, SINCE],
            [count, _ms(lease_s), self._doubt_ms, lease, *self._bounds],
        )
        return _haul(reply, lease)

    async def finish(self, notification: Notification) -> None:
        """Remove it."""
        digest = hashlib.sha1(notification.payload, usedforsecurity=False).hexdigest()
        await self._link.run(_FINISH, [DUE, BODY, HOLDER, SINCE], [notification.name, digest])

    async def postpone(self, notification: Notification, in_s: float, *, failed: int) -> None:
        """Give the lease back."""
        arguments: list[Argument] = [notification.name, notification.lease, _ms(in_s), failed]
        await self._link.run(_POSTPONE, [DUE, BODY, HOLDER, SINCE], arguments)

    @property
    def perishable(self) -> int:
        """Redis keeps them."""
        return 0


class _Entry:
    """One notification in this process."""

    __slots__ = ("due", "failed", "lease", "payload", "since")

    def __init__(self, payload: bytes, now: float) -> None:
        self.payload, self.since, self.due = payload, now, now
        self.failed, self.lease = 0, ""


class MemoryOutbox:
    """`Outbox` for a single instance, with the bounds of Redis and one for its bytes.

    `now` is seconds of any clock, best of one that nobody sets: it alone decides when something is due. Whoever takes
    here dies with what is taken, so that a lease that ends needs no doubt.
    """

    def __init__(
        self,
        now: Callable[[], float],
        *,
        max_waiting: int = MAX_WAITING,
        max_age_s: float = MAX_AGE_S,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._now, self._most, self._max_age_s, self._max_bytes = now, max_waiting, max_age_s, max_bytes
        self._entries: dict[str, _Entry] = {}
        self._due: list[tuple[float, str]] = []
        self._bytes = self._leases = 0
        self._given_up = dict.fromkeys(_REASONS, 0)

    def put(self, name: str, payload: bytes) -> None:
        """Put it in, due at once. `name` is `{tenant_id}:{epoch}-{offset}`."""
        if name in self._entries:
            return
        entry = self._entries[name] = _Entry(payload, self._now())
        self._bytes += len(payload)
        heappush(self._due, (entry.due, name))
        while len(self._entries) > self._most or self._bytes > self._max_bytes:
            self._give_up("overflow")
        if len(self._due) > 2 * len(self._entries) + 100:  # most of it is of those that are gone
            self._due = [(entry.due, name) for name, entry in self._entries.items()]
            heapify(self._due)

    async def take(self, count: int, *, lease_s: float) -> Haul:
        """Take at most `count` that are due."""
        now = self._now()
        taken: list[Notification] = []
        while self._entries and now - next(iter(self._entries.values())).since > self._max_age_s:
            self._give_up("expired")
        self._leases += 1
        while len(taken) < count and (next_s := self._next(now)) is not None and next_s <= 0:
            name = self._due[0][1]
            entry = self._entries[name]
            entry.lease = str(self._leases)
            self._move(name, entry, now + lease_s)
            notification = _notification(name, entry.payload, entry.failed, entry.lease)
            if notification is None:
                self._remove(name)
                self._given_up["unreadable"] += 1
            else:
                taken.append(notification)
        given_up, self._given_up = self._given_up, dict.fromkeys(_REASONS, 0)
        return Haul(
            taken=tuple(taken),
            waiting=len(self._entries),
            oldest_s=now - next(iter(self._entries.values())).since if self._entries else 0.0,
            next_s=self._next(now),
            given_up=_some(given_up),
        )

    async def finish(self, notification: Notification) -> None:
        """Remove it."""
        entry = self._entries.get(notification.name)
        if entry is not None and entry.payload == notification.payload:
            self._remove(notification.name)

    async def postpone(self, notification: Notification, in_s: float, *, failed: int) -> None:
        """Give the lease back."""
        entry = self._entries.get(notification.name)
        if entry is not None and entry.lease == notification.lease:
            entry.lease, entry.failed = "", failed
            self._move(notification.name, entry, self._now() + in_s)

    @property
    def perishable(self) -> int:
        """All that wait."""
        return len(self._entries)

    def _next(self, now: float) -> float | None:
        """Seconds until the first is due, 0 if it is; it is then `_due[0]`."""
        while self._due:
            due, name = self._due[0]
            entry = self._entries.get(name)
            if entry is not None and entry.due == due:
                return max(0.0, due - now)
            heappop(self._due)
        return None

    def _move(self, name: str, entry: _Entry, due: float) -> None:
        entry.due = due
        heappush(self._due, (due, name))

    def _give_up(self, why: str) -> None:
        self._remove(next(iter(self._entries)))
        self._given_up[why] += 1

    def _remove(self, name: str) -> None:
        self._bytes -= len(self._entries.pop(name).payload)


def _haul(reply: object, lease: str) -> Haul:
    """The script's reply. Raises `StoreUnavailable` for any other."""
    if not isinstance(reply, list) or len(reply) < 4 or not isinstance(reply[3], list) or len(reply[3]) != 3:
        raise StoreUnavailable("unreadable outbox")
    waiting, oldest_ms, next_ms, given_up, *found = reply
    if not all(isinstance(number, int) for number in (waiting, oldest_ms, next_ms, *given_up)):
        raise StoreUnavailable("unreadable outbox")
    return Haul(
        taken=tuple(_taken(*each, lease) for each in zip(found[::3], found[1::3], found[2::3], strict=False)),
        waiting=waiting,
        oldest_s=oldest_ms / 1000,
        next_s=next_ms / 1000 if next_ms >= 0 else None,
        given_up=_some(dict(zip(_REASONS, given_up, strict=True))),
    )


def _taken(name: object, payload: object, failed: object, lease: str) -> Notification:
    if not isinstance(name, bytes) or not isinstance(payload, bytes) or not isinstance(failed, int):
        raise StoreUnavailable("unreadable outbox")
    notification = _notification(name.decode("latin-1"), payload, failed, lease)
    if notification is None:
        raise StoreUnavailable("unreadable outbox")
    return notification


def _notification(name: str, payload: bytes, failed: int, lease: str) -> Notification | None:
    """`None` where the name is of no tenant."""
    tenant_id = name.partition(":")[0]
    if not is_id(tenant_id):
        return None
    return Notification(name=name, tenant_id=tenant_id, payload=payload, failed=failed, lease=lease)


def _some(numbers: Mapping[str, int]) -> Mapping[str, int]:
    return {why: number for why, number in numbers.items() if number}


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
