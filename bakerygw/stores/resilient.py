"""What holds while the shared store is away: buckets by policy, flags and revocations as last known."""

from typing import Literal, Protocol

from bakerygw.core.limits import Level, level_of
from bakerygw.ports import AdmissionAsk, AdmissionState, AdmissionStore, StoreTelemetry, StoreUnavailable, with_limit
from bakerygw.stores.memory import MemoryStore
from bakerygw.stores.mirror import Mirror

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
        mirror: Mirror,
        clock: Seconds,
        telemetry: StoreTelemetry,
    ) -> None:
        """`on_failure`: take from the buckets of `local`, let everything pass, or raise `StoreUnavailable`.

        `mirror` remembers what the primary has read.
        """
        self._primary, self._local, self._mirror, self._on_failure = primary, local, mirror, on_failure
        self._clock, self._telemetry = clock, telemetry
        self._degraded = False

    async def admit(self, ask: AdmissionAsk) -> AdmissionState:
        """As the primary answers, else by policy. Raises `StoreUnavailable` only for buckets under `closed`."""
        try:
            state = await self._primary.admit(ask)
        except StoreUnavailable:
            self._tell(True)
            if ask.buckets and self._on_failure == "closed":
                raise
            flags, revoked = self._mirror.last_known(ask.tenants, ask.digests, self._clock.seconds())
            if ask.limit_of is not None:
                ask = with_limit(ask, flags[ask.limit_of])
            return AdmissionState(levels=await self._levels(ask), flags=flags, revoked=revoked)
        self._tell(False)
        return state

    async def _levels(self, ask: AdmissionAsk) -> tuple[Level, ...]:
        if self._on_failure == "open":
            return tuple(level_of(bucket.rule, 0, 0) for bucket in ask.buckets)
        return (await self._local.admit(AdmissionAsk(buckets=ask.buckets, peek=ask.peek))).levels

    def _tell(self, degraded: bool) -> None:
        if degraded != self._degraded:
            self._degraded = degraded
            self._telemetry.degraded(degraded)
