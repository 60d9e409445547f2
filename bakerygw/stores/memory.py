"""The embedded store: what Redis holds for many instances, in the memory of one."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from bakerygw.core.flags import changed_at_text, parse_changed_at, parse_read_only, read_only_json
from bakerygw.core.limits import Level, take
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.ports import AdmissionAsk, AdmissionState

MAX_BUCKETS = 100_000
"""About 20 MB; one that is dropped for want of room becomes a full bucket."""

_NO_FLAGS = TenantFlags()


class MemoryStore:
    """`AdmissionStore`, `TenantStore` and `StoreLink` for a single instance."""

    def __init__(self, clock_us: Callable[[], int], max_keys: int = MAX_BUCKETS) -> None:
        """`clock_us` tells the time in microseconds; `max_keys` bounds the buckets that are not full."""
        self._clock_us, self._max_keys = clock_us, max_keys
        self._full_at: OrderedDict[str, int] = OrderedDict()
        self._flags: dict[str, TenantFlags] = {}

    @property
    def status(self) -> Literal["embedded"]:
        """There is no link that could break."""
        return "embedded"

    def __len__(self) -> int:
        """The number of buckets held."""
        return len(self._full_at)

    async def admit(self, ask: AdmissionAsk) -> AdmissionState:
        """Take tokens and read flags, at once and without fail."""
        levels = self._take(ask) if ask.buckets else ()
        return AdmissionState(
            levels=levels, flags={tenant_id: self._flags.get(tenant_id, _NO_FLAGS) for tenant_id in ask.tenants}
        )

    async def flags(self, tenant_id: str) -> TenantFlags:
        """The flags now."""
        return self._flags.get(tenant_id, _NO_FLAGS)

    async def set_read_only(self, tenant_id: str, read_only: ReadOnly) -> None:
        """Put the tenant on hold, replacing an earlier hold; texts are cleaned and bounded as in Redis."""
        self._change(tenant_id, read_only=parse_read_only(read_only_json(read_only).encode()))

    async def clear_read_only(self, tenant_id: str) -> None:
        """End the hold."""
        self._change(tenant_id, read_only=None)

    async def subscription_changed(self, tenant_id: str, at: float) -> None:
        """Make every token issued before `at` (Unix seconds) stale. Raises ValueError for what is no time."""
        self._change(tenant_id, changed_at=parse_changed_at(changed_at_text(at).encode()))

    async def set_demo(self, tenant_id: str, demo: bool) -> None:
        """Mark the tenant as a demo tenant, or take the mark away."""
        self._change(tenant_id, demo=demo)

    def _take(self, ask: AdmissionAsk) -> tuple[Level, ...]:
        held, now_us = self._full_at, self._clock_us()
        before = tuple(held.get(bucket.key, 0) for bucket in ask.buckets)
        after, levels = take(tuple(bucket.rule for bucket in ask.buckets), before, now_us)
        for bucket, old_us, new_us in zip(ask.buckets, before, after, strict=True):
            if new_us != old_us:
                held[bucket.key] = new_us
                held.move_to_end(bucket.key)
        self._forget(now_us)
        return levels

    def _forget(self, now_us: int) -> None:
        """Drop what is full again among the least recently used, and whatever exceeds the bound.

        Looking at two for each request keeps up with one new bucket per request.
        """
        held = self._full_at
        for _ in range(2):
            key = next(iter(held), None)
            if key is None or held[key] > now_us:
                break
            del held[key]
        while len(held) > self._max_keys:
            held.popitem(last=False)

    def _change(self, tenant_id: str, **values: object) -> None:
        flags = replace(self._flags.get(tenant_id, _NO_FLAGS), **values)  # type: ignore[arg-type]
        if flags == _NO_FLAGS:
            self._flags.pop(tenant_id, None)
        else:
            self._flags[tenant_id] = flags
