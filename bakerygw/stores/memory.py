"""The embedded store: what Redis holds for many instances, in the memory of one."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from heapq import heappop, heappush
from typing import Literal

from bakerygw.core.flags import (
    changed_at_text,
    limit_text,
    parse_changed_at,
    parse_limit,
    parse_read_only,
    read_only_json,
)
from bakerygw.core.limits import Level, TenantLimit, take
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.ports import AdmissionAsk, AdmissionState, Changed, with_limit

MAX_BUCKETS = 100_000
"""About 20 MB; one that is dropped for want of room becomes a full bucket."""
MAX_REVOKED = 200_000
"""About 60 MB; if there are more, those that end first go first."""

_NO_FLAGS = TenantFlags()


class MemoryStore:
    """`AdmissionStore`, `TenantStore`, `TenantLimits`, `RevocationStore`, `StoreLink`, `Watch` for one instance."""

    def __init__(
        self, clock_us: Callable[[], int], max_keys: int = MAX_BUCKETS, max_revoked: int = MAX_REVOKED
    ) -> None:
        """`clock_us` tells the time in microseconds since 1970.

        `max_keys` bounds the buckets that are not full, `max_revoked` the revocations that have not ended.
        """
        self._clock_us, self._max_keys, self._max_revoked = clock_us, max_keys, max_revoked
        self._full_at: OrderedDict[str, int] = OrderedDict()
        self._flags: dict[str, TenantFlags] = {}
        self._revoked: dict[str, float] = {}
        self._endings: list[tuple[float, str]] = []
        self._told: Callable[[Changed | None], None] | None = None

    def on_change(self, told: Callable[[Changed | None], None]) -> None:
        """Call `told` at each change, before anything has been read again."""
        self._told = told

    @property
    def status(self) -> Literal["embedded"]:
        """There is no link that could break."""
        return "embedded"

    def __len__(self) -> int:
        """The number of buckets held."""
        return len(self._full_at)

    async def admit(self, ask: AdmissionAsk) -> AdmissionState:
        """Take tokens and read flags and revocations, at once and without fail."""
        now_us = self._clock_us()
        flags: dict[str, TenantFlags | None] = {name: self._flags_of(name, now_us) for name in ask.tenants}
        if ask.limit_of is not None:
            ask = with_limit(ask, flags[ask.limit_of])
        return AdmissionState(
            levels=self._take(ask, now_us) if ask.buckets else (),
            flags=flags,
            revoked={digest: self._revoked.get(digest, 0.0) * 1e6 > now_us for digest in ask.digests},
        )

    async def flags(self, tenant_id: str) -> TenantFlags:
        """The flags now."""
        return self._flags_of(tenant_id, self._clock_us())

    async def limit(self, tenant_id: str) -> TenantLimit | None:
        """The tenant's limit for a time now."""
        return self._flags_of(tenant_id, self._clock_us()).limit

    async def set_limit(self, tenant_id: str, limit: TenantLimit) -> None:
        """Limit the tenant until the rule's end. Raises ValueError for what is no end."""
        self._change(tenant_id, limit=parse_limit(limit_text(limit).encode()))

    async def clear_limit(self, tenant_id: str) -> None:
        """End the limit."""
        self._change(tenant_id, limit=None)

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

    async def revoke(self, digest: str, until_unix_s: float) -> None:
        """Refuse the token from here on until `until_unix_s`."""
        revoked, endings = self._revoked, self._endings
        revoked[digest] = until_unix_s
        heappush(endings, (until_unix_s, digest))
        now_s = self._clock_us() / 1e6
        while endings and (endings[0][0] <= now_s or len(endings) > self._max_revoked):
            ended_s, other = heappop(endings)
            if revoked.get(other) == ended_s:  # else a later call has replaced the moment
                del revoked[other]
        if self._told is not None:
            self._told(Changed(digests=(digest,)))

    async def revoked(self, digest: str) -> bool:
        """Whether the token is revoked."""
        return self._revoked.get(digest, 0.0) * 1e6 > self._clock_us()

    def _take(self, ask: AdmissionAsk, now_us: int) -> tuple[Level, ...]:
        held = self._full_at
        before = tuple(held.get(bucket.key, 0) for bucket in ask.buckets)
        after, levels = take(tuple(bucket.rule for bucket in ask.buckets), before, now_us, peek=ask.peek)
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

    def _flags_of(self, tenant_id: str, now_us: int) -> TenantFlags:
        flags = self._flags.get(tenant_id, _NO_FLAGS)
        if flags.limit is not None and (flags.limit.rule.until or 0.0) * 1e6 <= now_us:
            self._change(tenant_id, limit=None)  # it has ended
            flags = self._flags.get(tenant_id, _NO_FLAGS)
        return flags

    def _change(self, tenant_id: str, **values: object) -> None:
        flags = replace(self._flags.get(tenant_id, _NO_FLAGS), **values)  # type: ignore[arg-type]
        if flags == _NO_FLAGS:
            self._flags.pop(tenant_id, None)
        else:
            self._flags[tenant_id] = flags
        if self._told is not None:
            self._told(Changed(tenants=(tenant_id,)))
