"""What holds while the shared store is away: buckets by policy, flags as last seen."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal, Protocol

from bakerygw.core.limits import Level, level_of
from bakerygw.core.tenancy import TenantFlags
from bakerygw.ports import AdmissionAsk, AdmissionState, AdmissionStore, StoreTelemetry, StoreUnavailable
from bakerygw.stores.memory import MemoryStore

FLAGS_MAX_AGE_S = 60.0
"""How long flags last seen may stand in for those that cannot be read."""
REMEMBERED_TENANTS = 10_000

OnFailure = Literal["local", "open", "closed"]


class Seconds(Protocol):
    """A clock in seconds: what `IReactorTime` offers of use here."""

    def seconds(self) -> float:
        """The time."""


class ResilientAdmission:
    """An `AdmissionStore` over another, that goes on when the other raises `StoreUnavailable`."""

    def __init__(
        self,
        primary: AdmissionStore,
        *,
        on_failure: OnFailure,
        local: MemoryStore,
        clock: Seconds,
        telemetry: StoreTelemetry,
    ) -> None:
        """`on_failure`: take from the buckets of `local`, let everything pass, or raise `StoreUnavailable`."""
        self._primary, self._local, self._on_failure = primary, local, on_failure
        self._clock, self._telemetry = clock, telemetry
        self._seen: OrderedDict[str, tuple[float, TenantFlags]] = OrderedDict()
        self._degraded = False

    async def admit(self, ask: AdmissionAsk) -> AdmissionState:
        """As the primary answers, else by policy. Raises `StoreUnavailable` only for buckets under `closed`."""
        try:
            state = await self._primary.admit(ask)
        except StoreUnavailable:
            self._tell(True)
            if ask.buckets and self._on_failure == "closed":
                raise
            return AdmissionState(levels=await self._levels(ask), flags=self._last_known(ask.tenants))
        self._tell(False)
        if state.flags:
            self._remember(state.flags)
        return state

    async def _levels(self, ask: AdmissionAsk) -> tuple[Level, ...]:
        if self._on_failure == "open":
            return tuple(level_of(bucket.rule, 0, 0) for bucket in ask.buckets)
        return (await self._local.admit(AdmissionAsk(buckets=ask.buckets))).levels

    def _remember(self, flags: Mapping[str, TenantFlags | None]) -> None:
        now = self._clock.seconds()
        for tenant_id, known in flags.items():
            if known is not None:
                self._seen[tenant_id] = (now, known)
                self._seen.move_to_end(tenant_id)
        while len(self._seen) > REMEMBERED_TENANTS:
            self._seen.popitem(last=False)

    def _last_known(self, tenants: tuple[str, ...]) -> dict[str, TenantFlags | None]:
        """Values of at most FLAGS_MAX_AGE_S; under a clock that was set back their age is unknown, so they are."""
        now = self._clock.seconds()
        known: dict[str, TenantFlags | None] = {}
        for tenant_id in tenants:
            seen = self._seen.get(tenant_id)
            known[tenant_id] = seen[1] if seen is not None and 0 <= now - seen[0] <= FLAGS_MAX_AGE_S else None
        return known

    def _tell(self, degraded: bool) -> None:
        if degraded != self._degraded:
            self._degraded = degraded
            self._telemetry.degraded(degraded)
