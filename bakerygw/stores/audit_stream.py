"""The audit trail in Redis: a stream for each ledger, and a key for each person."""

import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, cast

from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from bakerygw.ports import Ledger, Signals, StoreUnavailable
from bakerygw.stores.records import PREFIX
from bakerygw.stores.redis_link import RedisLink

STREAMS: Final[Mapping[Ledger, str]] = {"events": f"{PREFIX}audit", "refusals": f"{PREFIX}audit:refusals"}
KEY_PREFIX: Final = f"{PREFIX}audit-key:"
MAX_ENTRIES: Final[Mapping[Ledger, int]] = {"events": 1_000_000, "refusals": 250_000}
"""At some 500 bytes each. The oldest go first; so many refusals take a flood of weeks, or a very large bakery."""
PAGE: Final = 500
DAY_MS: Final = 86_400_000


class RedisAudit:
    """`AuditStore` over a link of its own, so that nothing that goes wrong here is in any request's way."""

    def __init__(self, link: RedisLink, signals: Signals, *, days: int, now: Callable[[], float] = time.time) -> None:
        """`now` is Unix seconds."""
        self._link, self._signals, self._now = link, signals, now
        self._keep_ms = days * DAY_MS

    async def append(self, ledger: Ledger, entries: Sequence[bytes]) -> None:
        """Keep these entries. Raises `StoreUnavailable`."""
        stream, bound = STREAMS[ledger], ("MAXLEN", "~", MAX_ENTRIES[ledger])
        await _all_of([self._link.call("XADD", stream, *bound, "*", "e", entry) for entry in entries])
        await self._link.call("PEXPIRE", stream, self._keep_ms)

    async def trim(self, ledger: Ledger) -> None:
        """Let go of what is too old. Raises `StoreUnavailable`."""
        oldest = int(self._now() * 1000) - self._keep_ms
        while True:
            page = _entries(await self._link.call("XRANGE", STREAMS[ledger], "-", oldest, "COUNT", PAGE))
            if page:
                await self._link.call("XDEL", STREAMS[ledger], *(its_id for its_id, _ in page))
            if len(page) < PAGE:
                return

    async def keys(self, fresh: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """The key of each name, kept for a day longer than the youngest entry. Raises `StoreUnavailable`."""
        values = await _all_of([self._key_made(name, key) for name, key in fresh.items()])
        return {name: value for name, value in zip(fresh, values, strict=True) if isinstance(value, bytes) and value}

    async def _key_made(self, name: str, fresh: bytes) -> object:
        """The key of one name; `None` if something else is in its place."""
        key, keep_ms = KEY_PREFIX + name, self._keep_ms + DAY_MS
        if await self._link.call("SET", key, fresh, "NX", "PX", keep_ms) is not None:
            return fresh
        try:
            found = await self._link.call("GET", key)
        except StoreUnavailable as error:
            if str(error).startswith("WRONGTYPE"):
                return None
            raise
        await self._link.call("PEXPIRE", key, keep_ms)
        return found

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


async def _all_of(calls: Sequence[Coroutine[Any, Any, object]]) -> list[object]:
    """The results of calls that are made together. Raises what the first to fail raises, once all have ended."""
    results = await DeferredList([Deferred.fromCoroutine(call) for call in calls], consumeErrors=True)
    for done, result in results:
        if not done:
            cast("Failure", result).raiseException()
    return [result for _, result in results]


def _entries(reply: object) -> list[tuple[str, bytes | None]]:
    """Ids, and what the gateway has put there; others may put in anything. Raises `StoreUnavailable`."""
    try:
        page = cast("list[list[bytes | list[bytes]]]", reply)
        return [(cast("bytes", its_id).decode(), _data(cast("list[bytes]", pairs))) for its_id, pairs in page]
    except (TypeError, ValueError, AttributeError) as error:
        raise StoreUnavailable("no page of a stream") from error


def _data(pairs: list[bytes]) -> bytes | None:
    return pairs[1] if pairs and len(pairs) == 2 and pairs[0] == b"e" else None
