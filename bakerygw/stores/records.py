"""`Records` in Redis and in this process: small values under a key each, that end by themselves."""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import ceil, inf
from typing import Final, cast

from bakerygw.stores.redis_link import RedisLink
from bakerygw.stores.redis_wire import Argument, Script

PREFIX: Final = "bakerygw:"
"""Of every key that is the gateway's own."""
MAX_BYTES: Final = 256 * 1024
"""A longer value was not written by a gateway; the rest of it is not read."""
MAX_RECORDS: Final = 200_000
"""In this process; beyond it the record that ends first goes first."""

_REPLACE: Final = Script.of(
    b"""-- Replaces KEYS[1] if it is ARGV[1]: by ARGV[2] ('' deletes), for ARGV[3] milliseconds ('': for ever)
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
elseif ARGV[3] == '' then
  redis.call('SET', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
"""
)


class RedisRecords:
    """`Records` over one `RedisLink`."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    async def get(self, key: str) -> bytes | None:
        """What is there now."""
        return cast("bytes", await self._link.call("GETRANGE", PREFIX + key, 0, MAX_BYTES - 1)) or None

    async def put(self, key: str, value: bytes, *, ttl_s: float | None) -> None:
        """Put it there, whatever was there before."""
        await self._link.call("SET", PREFIX + key, value, *_expiry(ttl_s))

    async def claim(self, key: str, value: bytes, *, ttl_s: float | None) -> bool:
        """Put it there if nothing is."""
        return await self._link.call("SET", PREFIX + key, value, "NX", *_expiry(ttl_s)) is not None

    async def replace(self, key: str, expected: bytes, value: bytes | None, *, ttl_s: float | None) -> bool:
        """Put it there, or delete what is there, if that is still `expected`."""
        left = "" if ttl_s is None else _milliseconds(ttl_s)
        return await self._link.run(_REPLACE, [PREFIX + key], [expected, value or b"", left]) == 1

    async def delete(self, key: str) -> None:
        """Have nothing there."""
        await self._link.call("DEL", PREFIX + key)

    async def add(self, key: str, member: str) -> None:
        """Put a member into the set."""
        await self._link.call("SADD", PREFIX + key, member)

    async def remove(self, key: str, member: str) -> None:
        """Take it out again."""
        await self._link.call("SREM", PREFIX + key, member)

    async def members(self, key: str) -> frozenset[str]:
        """All that are in the set."""
        found = cast("list[bytes]", await self._link.call("SMEMBERS", PREFIX + key))
        return frozenset(member.decode("utf-8", "replace") for member in found)


class MemoryRecords:
    """`Records` for a single instance; `now` is seconds of any clock, best of one that nobody sets."""

    def __init__(self, now: Callable[[], float], max_records: int = MAX_RECORDS) -> None:
        self._now, self._max = now, max_records
        self._values: dict[str, tuple[bytes, float]] = {}
        self._endings: list[tuple[float, str]] = []
        self._sets: dict[str, set[str]] = {}

    async def get(self, key: str) -> bytes | None:
        """What is there now."""
        return self._get(key)

    async def put(self, key: str, value: bytes, *, ttl_s: float | None) -> None:
        """Put it there, whatever was there before."""
        self._put(key, value, ttl_s)

    async def claim(self, key: str, value: bytes, *, ttl_s: float | None) -> bool:
        """Put it there if nothing is."""
        if self._get(key) is not None:
            return False
        self._put(key, value, ttl_s)
        return True

    async def replace(self, key: str, expected: bytes, value: bytes | None, *, ttl_s: float | None) -> bool:
        """Put it there, or delete what is there, if that is still `expected`."""
        if self._get(key) != expected:
            return False
        if value is None:
            del self._values[key]
        else:
            self._put(key, value, ttl_s)
        return True

    async def delete(self, key: str) -> None:
        """Have nothing there."""
        self._values.pop(key, None)

    async def add(self, key: str, member: str) -> None:
        """Put a member into the set."""
        self._sets.setdefault(key, set()).add(member)

    async def remove(self, key: str, member: str) -> None:
        """Take it out again."""
        members = self._sets.get(key, set())
        members.discard(member)
        if not members:
            self._sets.pop(key, None)

    async def members(self, key: str) -> frozenset[str]:
        """All that are in the set."""
        return frozenset(self._sets.get(key, ()))

    def _get(self, key: str) -> bytes | None:
        value, until = self._values.get(key, (None, inf))
        return value if self._now() < until else None

    def _put(self, key: str, value: bytes, ttl_s: float | None) -> None:
        now = self._now()
        until = inf if ttl_s is None else now + ttl_s
        self._values[key] = value, until
        values, endings = self._values, self._endings
        heappush(endings, (until, key))
        while endings and (endings[0][0] <= now or len(values) > self._max):
            ended, other = heappop(endings)
            if values.get(other, (b"", -inf))[1] == ended:  # else it was put anew, or deleted
                del values[other]
        if len(endings) > 2 * len(values) + 100:
            self._endings = [(until, key) for key, (_, until) in values.items()]
            heapify(self._endings)


def _expiry(ttl_s: float | None) -> tuple[Argument, ...]:
    return () if ttl_s is None else ("PX", _milliseconds(ttl_s))


def _milliseconds(ttl_s: float) -> int:
    return max(1, ceil(ttl_s * 1000))
