"""The audit trail in Redis: a stream for each ledger, and a key for each person."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Final, cast

from bakerygw.ports import Ledger, Signals, StoreUnavailable
from bakerygw.stores.records import PREFIX
from bakerygw.stores.redis_link import RedisLink

STREAMS: Final[Mapping[Ledger, str]] = {"events": f"{PREFIX}audit", "refusals": f"{PREFIX}audit:refusals"}
KEY_PREFIX: Final = f"{PREFIX}audit-key:"
MAX_ENTRIES: Final[Mapping[Ledger, int]] = {"events": 1_000_000, "refusals": 250_000}
"""At some 500 bytes each. The oldest go first; so many refusals take a flood of weeks, or a very large bakery."""
PAGE: Final = 500
DAY_MS: Final = 86_400_000

# Sent whole: once a second that is nothing, and no script can be missing.
_APPEND: Final = b"""-- Appends ARGV[4...] to the stream KEYS[1] of at most about ARGV[3], none older than ARGV[1] ms.
-- ARGV[2]: the most that are let go of for their age in one call.
local now = redis.call('TIME')
local oldest = now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[1]
for i = 4, #ARGV do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', 'e', ARGV[i])
end
local old = redis.call('XRANGE', KEYS[1], '-', string.format('%.0f', oldest), 'COUNT', ARGV[2])
for _, entry in ipairs(old) do
  redis.call('XDEL', KEYS[1], entry[1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return #old
"""
_KEYS: Final = b"""-- The values of KEYS, where there is none ARGV[1 + its number]; all live for ARGV[1] ms.
-- '': of another type.
local values = {}
for i, key in ipairs(KEYS) do
  local value = redis.pcall('GET', key)
  if type(value) == 'table' then
    value = ''
  elseif not value then
    value = ARGV[1 + i]
    redis.call('SET', key, value)
  end
  redis.call('PEXPIRE', key, ARGV[1])
  values[i] = value
end
return values
"""


class RedisAudit:
    """`AuditStore` over a link of its own, so that nothing that goes wrong here is in any request's way."""

    def __init__(self, link: RedisLink, signals: Signals, *, days: int) -> None:
        self._link, self._signals = link, signals
        self._keep_ms = days * DAY_MS

    async def append(self, ledger: Ledger, entries: Sequence[bytes]) -> None:
        """Keep these entries, and let go of what is too old. Raises `StoreUnavailable`."""
        await self._link.call("EVAL", _APPEND, 1, STREAMS[ledger], self._keep_ms, PAGE, MAX_ENTRIES[ledger], *entries)

    async def keys(self, fresh: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """The key of each name, kept for a day longer than the youngest entry. Raises `StoreUnavailable`."""
        if not fresh:
            return {}
        names = list(fresh)
        keys = [KEY_PREFIX + name for name in names]
        values = await self._link.call("EVAL", _KEYS, len(keys), *keys, self._keep_ms + DAY_MS, *fresh.values())
        if not isinstance(values, list) or len(values) != len(names):
            raise StoreUnavailable("no list of keys")
        return {name: value for name, value in zip(names, values, strict=True) if isinstance(value, bytes) and value}

    async def key(self, name: str) -> bytes | None:
        """The key of one name. Raises `StoreUnavailable`."""
        value = await self._link.call("GET", KEY_PREFIX + name)
        return value if isinstance(value, bytes) else None

    async def erase(self, name: str) -> bool:
        """Forget a key for good, and tell all instances. Raises `StoreUnavailable`."""
        erased = await self._link.call("DEL", KEY_PREFIX + name)
        with suppress(StoreUnavailable):  # the key is gone; instances give it up by themselves after a while
            await self._signals.send("erased", name)
        return erased == 1

    async def entries(self, ledger: Ledger) -> AsyncIterator[bytes]:
        """All that is kept, oldest first. Raises `StoreUnavailable`."""
        start = "-"
        while True:
            page = _entries(await self._link.call("XRANGE", STREAMS[ledger], start, "+", "COUNT", PAGE))
            for _, data in page:
                if data is not None:
                    yield data
            if len(page) < PAGE:
                return
            milliseconds, _, number = page[-1][0].partition("-")
            start = f"{milliseconds}-{int(number) + 1}"

    async def latest(self, ledger: Ledger, count: int) -> Sequence[bytes]:
        """The last so many, newest first. Raises `StoreUnavailable`."""
        page = _entries(await self._link.call("XREVRANGE", STREAMS[ledger], "+", "-", "COUNT", count))
        return [data for _, data in page if data is not None]


def _entries(reply: object) -> list[tuple[str, bytes | None]]:
    """Ids, and what the gateway has put there; others may put in anything. Raises `StoreUnavailable`."""
    try:
        page = cast("list[list[bytes | list[bytes]]]", reply)
        return [(cast("bytes", its_id).decode(), _data(cast("list[bytes]", pairs))) for its_id, pairs in page]
    except (TypeError, ValueError, AttributeError) as error:
        raise StoreUnavailable("no page of a stream") from error


def _data(pairs: list[bytes]) -> bytes | None:
    return pairs[1] if pairs and len(pairs) == 2 and pairs[0] == b"e" else None
