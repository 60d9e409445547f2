"""Admission state, tenant flags and revocations in Redis; all requests of one reactor turn share one call."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.resources import files
from math import ceil, inf
from typing import ClassVar, Final, Literal, cast

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.core.flags import changed_at_text, limit_text, parse_flags, read_only_json
from bakerygw.core.limits import MAX_REQUESTS, MAX_WINDOW_S, Level, TenantLimit, level_of, tenant_key, tenant_rule
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.ports import AdmissionAsk, AdmissionState, StoreUnavailable, StoreUnreadable, with_limit
from bakerygw.runtime.poller import soon_of
from bakerygw.runtime.task import Pending, Task
from bakerygw.stores.mirror import FLAG_NAMES, LIMITS_PREFIX, REVOKED_PREFIX, TENANT_PREFIX, Known, Mirror
from bakerygw.stores.mirror_table import Found, Read
from bakerygw.stores.redis_link import RedisLink
from bakerygw.stores.redis_wire import Argument, Script

MAX_BATCH = 256
"""Requests in one call: some milliseconds of Redis' time at most, so that no other client waits for long."""

CHANGED_AT, READ_ONLY, _ = FLAG_NAMES

VALUES_OF_TENANT: Final = len(FLAG_NAMES) + 2
"""What admission.lua replies of one tenant: its flags, its limit for a time, and when the first of them expires."""

ABSENT: Final = -2
"""What PTTL says of a key that is not there."""

_Names = tuple[tuple[str, ...], tuple[str, ...]]
"""Ids of tenants and digests of tokens."""
_NO_NAMES: Final[_Names] = (), ()

_Places = Mapping[str | None, int]
"""The tenants whose limits for a time are read in this call: only there can it tell which rule they are under."""

_Waiter = tuple[AdmissionAsk, Known | None, Pending[AdmissionState]]
"""Who asks, what the mirror holds of it (`None`: to be read), and who waits for the answer."""


class RedisStore:
    """`AdmissionStore`, `TenantStore`, `TenantLimits`, `RevocationStore` and `StoreLink` over one `RedisLink`."""

    _log: ClassVar[Logger] = Logger()

    def __init__(self, link: RedisLink, mirror: Mirror, reactor: IReactorTime, now: Callable[[], float]) -> None:
        """`mirror` answers what it can and is given whatever is read; `now` is Unix seconds."""
        self._link, self._mirror, self._reactor, self._now = link, mirror, reactor, now
        self._soon = soon_of(reactor)
        self._script = Script.of(files("bakerygw.stores").joinpath("admission.lua").read_bytes())
        self._waiting: list[_Waiter] = []

    @property
    def status(self) -> Literal["connected", "disconnected"]:
        """The state of the link now."""
        return self._link.status

    async def admit(self, ask: AdmissionAsk) -> AdmissionState:
        """Take tokens, and read what the mirror does not hold, together with all who ask in this turn.

        Raises `StoreUnavailable`.
        """
        known = self._mirror.held(ask.tenants, ask.digests, self._reactor.seconds())
        if known is not None:
            if ask.limit_of is not None:
                flags = known[0][ask.limit_of]
                if flags is None:  # not readable, which must not let anybody escape the limit that may be beside
                    return await self._queued(ask, None)
                if flags.limit is not None:
                    ask = with_limit(ask, flags)
            if not ask.buckets:
                return AdmissionState(levels=(), flags=known[0], revoked=known[1])
        return await self._queued(ask, known)

    async def flags(self, tenant_id: str) -> TenantFlags:
        """The flags now, from Redis itself. Raises `StoreUnavailable`, also for a value that cannot be read."""
        flags = (await self._queued(AdmissionAsk(tenants=(tenant_id,), verified=True), None)).flags[tenant_id]
        if flags is None:
            raise StoreUnreadable(f"{TENANT_PREFIX}{tenant_id}:{CHANGED_AT} in Redis is no time")
        return flags

    async def set_read_only(self, tenant_id: str, read_only: ReadOnly) -> None:
        """Put the tenant on hold, replacing an earlier hold. Raises `StoreUnavailable`."""
        await self._change(tenant_id, READ_ONLY, read_only_json(read_only))

    async def clear_read_only(self, tenant_id: str) -> None:
        """End the hold. Raises `StoreUnavailable`."""
        await self._change(tenant_id, READ_ONLY, None)

    async def subscription_changed(self, tenant_id: str, at: float) -> None:
        """Make every token issued before `at` (Unix seconds) stale.

        Raises `StoreUnavailable`; ValueError for what is no time.
        """
        await self._change(tenant_id, CHANGED_AT, changed_at_text(at))

    async def limit(self, tenant_id: str) -> TenantLimit | None:
        """The tenant's limit for a time now. Raises `StoreUnavailable`."""
        return (await self.flags(tenant_id)).limit

    async def set_limit(self, tenant_id: str, limit: TenantLimit) -> None:
        """Limit the tenant until the rule's end. Raises `StoreUnavailable`; ValueError for what is no end."""
        text, until = limit_text(limit), limit.rule.until or 0.0
        await self._put(LIMITS_PREFIX + tenant_id, text, max(1, ceil((until - self._now()) * 1000)))

    async def clear_limit(self, tenant_id: str) -> None:
        """End the limit. Raises `StoreUnavailable`."""
        await self._put(LIMITS_PREFIX + tenant_id, None)

    async def revoke(self, digest: str, until_unix_s: float) -> None:
        """Refuse the token from here on, on all instances until `until_unix_s`. Raises `StoreUnavailable`."""
        left_s = until_unix_s - self._now()
        if left_s <= 0:
            return
        self._mirror.revoke(digest, self._reactor.seconds() + left_s)
        await self._link.call("SET", REVOKED_PREFIX + digest, "1", "PX", ceil(left_s * 1000))

    async def revoked(self, digest: str) -> bool:
        """Whether the token is revoked, from Redis itself. Raises `StoreUnavailable`."""
        asked = await self._queued(AdmissionAsk(digests=(digest,), verified=True), None)
        return asked.revoked[digest] is not False

    async def look(self, digests: tuple[str, ...]) -> None:
        """Bring into the mirror whether these tokens are revoked, in nobody's stead. Raises `StoreUnavailable`."""
        await self._queued(AdmissionAsk(digests=digests), None)

    async def _change(self, tenant_id: str, name: str, text: str | None) -> None:
        await self._put(f"{TENANT_PREFIX}{tenant_id}:{name}", text)

    async def _put(self, key: str, text: str | None, ttl_ms: int | None = None) -> None:
        """Set or delete one of a tenant's keys; when it returns, no older value is in the mirror."""
        expiry: tuple[Argument, ...] = () if ttl_ms is None else ("PX", ttl_ms)
        await (self._link.call("DEL", key) if text is None else self._link.call("SET", key, text, *expiry))
        # Redis will tell so too, by the other connection; and reads that were under way are forgotten here as well.
        self._mirror.invalidate([key.encode()])

    def _queued(self, ask: AdmissionAsk, known: Known | None) -> Pending[AdmissionState]:
        answer: Pending[AdmissionState] = Pending()
        if not self._waiting:
            self._soon(self._flush)
        self._waiting.append((ask, known, answer))
        return answer

    def _flush(self) -> None:
        waiting = [waiter for waiter in self._waiting if not waiter[2].called]  # less those who gave up
        self._waiting = []
        for start in range(0, len(waiting), MAX_BATCH):
            batch = waiting[start : start + MAX_BATCH]
            Task(self._admit_all(batch), partial(self._broken, batch))

    async def _admit_all(self, batch: list[_Waiter]) -> None:
        asks = [ask for ask, _, _ in batch]
        unknown = [ask for ask, known, _ in batch if known is None]
        names = _names(unknown)
        reads = self._begin(unknown)
        try:
            places: _Places = {tenant_id: -1 - place for place, tenant_id in enumerate(names[0])}
            keys, arguments = _keys(asks, names, places), _arguments(asks, places)
            reply = cast("list[object]", await self._link.run(self._script, keys, arguments))
            levels, end = _levels(asks, cast("list[int]", reply), places)
            found = self._found(reads, names, reply[end:])
        except StoreUnavailable as error:
            _fail(batch, str(error))
            return
        finally:
            for read in reads:
                self._mirror.end(read)
        for (ask, known, answer), of_ask in zip(batch, levels, strict=True):
            flags, revoked = known or _part(found, ask)
            if not answer.called:
                answer.callback(AdmissionState(levels=of_ask, flags=flags, revoked=revoked))

    def _begin(self, unknown: list[AdmissionAsk]) -> list[Read]:
        """Of the names that anybody may have made up the mirror keeps few, which push out none of real users."""
        now = self._reactor.seconds()
        reads = []
        for verified in (True, False) if unknown else ():
            names = _names([ask for ask in unknown if ask.verified == verified])
            if names != _NO_NAMES:
                reads.append(self._mirror.begin(*names, now, verified=verified))
        return reads

    def _found(self, reads: list[Read], names: _Names, reply: list[object]) -> Known:
        """What was found of these names, which the mirror is given too."""
        tenants, digests = names
        flags = {
            tenant_id: _flags(*reply[at : at + VALUES_OF_TENANT])  # type: ignore[arg-type]
            for tenant_id, at in zip(tenants, range(0, len(reply), VALUES_OF_TENANT), strict=False)
        }
        revoked: dict[str, Found[bool | None]] = {
            digest: Found(value=ttl_ms != ABSENT, ttl_s=_seconds(ttl_ms))
            for digest, ttl_ms in zip(digests, cast("list[int]", reply[VALUES_OF_TENANT * len(flags) :]), strict=True)
        }
        for read in reads:
            self._mirror.keep(read, flags, revoked)
        return (
            {tenant_id: its.value for tenant_id, its in flags.items()},
            {
                digest: its.value or self._mirror.revoked_here(digest, self._reactor.seconds())
                for digest, its in revoked.items()
            },
        )

    def _broken(self, batch: list[_Waiter], failure: Failure) -> None:
        """The last resort: a fault in here is logged, and nobody is left waiting."""
        self._log.failure("store.batch_failed", failure)
        _fail(batch, "batch failed")


def _fail(batch: list[_Waiter], reason: str) -> None:
    for _, _, answer in batch:
        if not answer.called:
            answer.errback(StoreUnavailable(reason))


def _part(found: Known, ask: AdmissionAsk) -> Known:
    """What one of all who asked wants to know."""
    flags, revoked = found
    return {name: flags[name] for name in ask.tenants}, {name: revoked[name] for name in ask.digests}


def _names(asks: list[AdmissionAsk]) -> _Names:
    """All that they want to know, each once."""
    if not asks:
        return _NO_NAMES
    return (
        tuple(dict.fromkeys(tenant_id for ask in asks for tenant_id in ask.tenants)),
        tuple(dict.fromkeys(digest for ask in asks for digest in ask.digests)),
    )


def _keys(asks: Iterable[AdmissionAsk], names: _Names, places: _Places) -> list[str]:
    """The keys as admission.lua wants them. The braces put all that one subject has on one node of a cluster."""
    if not places:
        keys = ["bakerygw:limit:{" + bucket.key + "}" for ask in asks for bucket in ask.buckets]
        return keys + [REVOKED_PREFIX + digest for digest in names[1]]
    keys = []
    for tenant_id in names[0]:
        stem = TENANT_PREFIX + tenant_id + ":"
        keys += [stem + name for name in FLAG_NAMES]
        keys.append(LIMITS_PREFIX + tenant_id)
    for ask in asks:
        keys += ["bakerygw:limit:{" + bucket.key + "}" for bucket in ask.buckets]
        if ask.limit_of in places:
            keys.append("bakerygw:limit:{" + tenant_key(ask.limit_of or "", demo=ask.demo) + "}")
    keys += [REVOKED_PREFIX + digest for digest in names[1]]
    return keys


def _arguments(asks: Iterable[AdmissionAsk], places: _Places) -> list[Argument]:
    """The arguments as admission.lua wants them: how many tenants, each rule once, then who asks for which."""
    numbers: dict[int, int] = {}
    rules: list[Argument] = []
    plan: list[Argument] = []
    for ask in asks:
        limit_of = places.get(ask.limit_of)
        count = len(ask.buckets) + (limit_of is not None)
        plan.append(-1 - count if ask.peek else count)
        for bucket in ask.buckets:
            rule = bucket.rule
            number = numbers.get(id(rule))  # by identity: rules are few and live as long as the asks that hold them
            if number is None:
                number = numbers[id(rule)] = len(numbers) + 1
                rules += (rule.cost_us, rule.capacity_us, int(rule.shadow))
            plan.append(number)
        if limit_of is not None:
            plan.append(limit_of)
    return [len(places), len(numbers), *rules, *plan]


def _levels(asks: Iterable[AdmissionAsk], numbers: list[int], places: _Places) -> tuple[list[tuple[Level, ...]], int]:
    """The first part of the script's flat reply, by ask, and where it ends."""
    at = 0
    levels: list[tuple[Level, ...]] = []
    for ask in asks:
        of_ask = []
        for bucket in ask.buckets:
            of_ask.append(level_of(bucket.rule, numbers[at], numbers[at + 1], ask.peek))
            at += 2
        if ask.limit_of in places:
            reset_us, retry_us, requests, window_s, shadow, until = numbers[at : at + 6]
            at += 6
            if 0 < requests <= MAX_REQUESTS and 0 < window_s <= MAX_WINDOW_S:
                rule = tenant_rule(requests, window_s, shadow=shadow == 1, until=float(until))
                of_ask.append(level_of(rule, reset_us, retry_us, ask.peek))
        levels.append(tuple(of_ask))
    return levels, at


def _flags(
    changed_at: bytes | None, read_only: bytes | None, demo: int, limit: bytes | None, ttl_ms: int
) -> Found[TenantFlags | None]:
    """One tenant's flags; `None` if a value cannot be read, which is no other tenant's trouble."""
    try:
        flags: TenantFlags | None = parse_flags(changed_at, read_only, demo == 1, limit)
    except ValueError:
        flags = None
    return Found(value=flags, ttl_s=_seconds(ttl_ms))


def _seconds(ttl_ms: int) -> float:
    return ttl_ms / 1000 if ttl_ms >= 0 else inf
