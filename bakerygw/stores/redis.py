"""Admission state and tenant flags in Redis; all requests of one reactor turn share one call."""

from collections.abc import Iterable, Sequence
from functools import partial
from importlib.resources import files
from typing import Literal, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.core.flags import changed_at_text, parse_flags, read_only_json
from bakerygw.core.limits import Level, level_of
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.ports import AdmissionAsk, AdmissionState, StoreUnavailable
from bakerygw.runtime.task import Pending, Task
from bakerygw.stores.redis_link import RedisLink
from bakerygw.stores.redis_wire import Argument, Script

MAX_BATCH = 256
"""Requests in one call: some milliseconds of Redis' time at most, so that no other client waits for long."""

_Waiter = tuple[AdmissionAsk, "Deferred[AdmissionState]"]


class RedisStore:
    """`AdmissionStore`, `TenantStore` and `StoreLink` over one `RedisLink`."""

    _log = Logger()

    def __init__(self, link: RedisLink, reactor: IReactorTime) -> None:
        self._link, self._reactor = link, reactor
        self._script = Script.of(files("bakerygw.stores").joinpath("admission.lua").read_bytes())
        self._waiting: list[_Waiter] = []

    @property
    def status(self) -> Literal["connected", "disconnected"]:
        """The state of the link now."""
        return self._link.status

    async def admit(self, ask: AdmissionAsk) -> AdmissionState:
        """Take tokens and read flags, together with all who ask in this turn. Raises `StoreUnavailable`."""
        answer: Pending[AdmissionState] = Pending()
        if not self._waiting:
            self._reactor.callLater(0, self._flush)
        self._waiting.append((ask, answer))
        return await answer

    async def flags(self, tenant_id: str) -> TenantFlags:
        """The flags now. Raises `StoreUnavailable`, also for a value that cannot be read."""
        flags = (await self.admit(AdmissionAsk(tenants=(tenant_id,)))).flags[tenant_id]
        if flags is None:
            raise StoreUnavailable("unreadable flags")
        return flags

    async def set_read_only(self, tenant_id: str, read_only: ReadOnly) -> None:
        """Put the tenant on hold, replacing an earlier hold. Raises `StoreUnavailable`."""
        await self._link.call("SET", f"tenant:{tenant_id}:read_only", read_only_json(read_only))

    async def clear_read_only(self, tenant_id: str) -> None:
        """End the hold. Raises `StoreUnavailable`."""
        await self._link.call("DEL", f"tenant:{tenant_id}:read_only")

    async def subscription_changed(self, tenant_id: str, at: float) -> None:
        """Make every token issued before `at` (Unix seconds) stale.

        Raises `StoreUnavailable`; ValueError for what is no time.
        """
        await self._link.call("SET", f"tenant:{tenant_id}:subscription_changed_at", changed_at_text(at))

    def _flush(self) -> None:
        waiting = [waiter for waiter in self._waiting if not waiter[1].called]  # less those who gave up
        self._waiting = []
        for start in range(0, len(waiting), MAX_BATCH):
            batch = waiting[start : start + MAX_BATCH]
            Task(self._admit_all(batch), partial(self._broken, batch))

    async def _admit_all(self, batch: list[_Waiter]) -> None:
        asks = [ask for ask, _ in batch]
        tenants = list(dict.fromkeys(tenant_id for ask in asks for tenant_id in ask.tenants))
        try:
            reply = await self._link.run(self._script, _keys(asks, tenants), _arguments(asks))
        except StoreUnavailable as error:
            _fail(batch, str(error))
            return
        for (_, answer), state in zip(batch, _states(asks, tenants, cast("list[object]", reply)), strict=True):
            if not answer.called:
                answer.callback(state)

    def _broken(self, batch: list[_Waiter], failure: Failure) -> None:
        """The last resort: a fault in here is logged, and nobody is left waiting."""
        self._log.failure("store.batch_failed", failure)
        _fail(batch, "batch failed")


def _fail(batch: list[_Waiter], reason: str) -> None:
    for _, answer in batch:
        if not answer.called:
            answer.errback(StoreUnavailable(reason))


def _keys(asks: Iterable[AdmissionAsk], tenants: Iterable[str]) -> list[str]:
    """The keys as admission.lua wants them. The braces put all that one subject has on one node of a cluster."""
    keys = ["bakerygw:limit:{" + bucket.key + "}" for ask in asks for bucket in ask.buckets]
    for tenant_id in tenants:
        stem = "tenant:" + tenant_id
        keys += (stem + ":subscription_changed_at", stem + ":read_only", stem + ":demo")
    return keys


def _arguments(asks: Iterable[AdmissionAsk]) -> list[Argument]:
    """The arguments as admission.lua wants them: each rule once, then who asks for which."""
    numbers: dict[int, int] = {}
    rules: list[Argument] = []
    plan: list[Argument] = []
    for ask in asks:
        plan.append(len(ask.buckets))
        for bucket in ask.buckets:
            rule = bucket.rule
            number = numbers.get(id(rule))  # by identity: rules are few and live as long as the asks that hold them
            if number is None:
                number = numbers[id(rule)] = len(numbers) + 1
                rules += (rule.cost_us, rule.capacity_us, int(rule.shadow))
            plan.append(number)
    return [len(numbers), *rules, *plan]


def _states(asks: Iterable[AdmissionAsk], tenants: Sequence[str], reply: list[object]) -> list[AdmissionState]:
    """The script's flat reply, as one state for each ask."""
    numbers = cast("list[int]", reply)
    at = 0
    levels: list[tuple[Level, ...]] = []
    for ask in asks:
        of_ask = []
        for bucket in ask.buckets:
            of_ask.append(level_of(bucket.rule, numbers[at], numbers[at + 1]))
            at += 2
        levels.append(tuple(of_ask))
    flags = {
        tenant_id: _flags(*reply[at + 3 * index : at + 3 * index + 3])  # type: ignore[arg-type]
        for index, tenant_id in enumerate(tenants)
    }
    return [
        AdmissionState(levels=of_ask, flags={tenant_id: flags[tenant_id] for tenant_id in ask.tenants})
        for ask, of_ask in zip(asks, levels, strict=True)
    ]


def _flags(changed_at: bytes | None, read_only: bytes | None, demo: int) -> TenantFlags | None:
    """One tenant's flags; `None` if a value cannot be read, which is no other tenant's trouble."""
    try:
        return parse_flags(changed_at, read_only, demo == 1)
    except ValueError:
        return None
