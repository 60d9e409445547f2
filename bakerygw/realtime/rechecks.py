"""Asks the shared state, again and again, whether who holds a place still may; at once where something has changed."""

from collections.abc import Callable, Iterable
from math import ceil
from typing import Any, ClassVar, Final

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from bakerygw.ports import AdmissionAsk, AdmissionState, AdmissionStore, Hierarchy, StoreUnavailable
from bakerygw.realtime.place import HeldPlace

ROUND_S: Final = 50.0
"""Every place is looked at once in this time, should a change not have been told of."""
DISTRUST_ROUND_S: Final = 4.0
"""The same while changes are not told of for certain."""
TICK_S: Final = 1.0
DISTRUST_TICK_S: Final = 0.25
MAX_AT_ONCE: Final = 200
"""Places that are looked at in one turn: what is asked for them takes Redis less than a millisecond."""


class Rechecks:
    """Has each place judged anew (`HeldPlace.judge`) when asked to, and besides once in a round.

    No method raises. What the shared state can't tell changes nothing.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: AdmissionStore,
        hierarchy: Hierarchy,
        *,
        trusted: Callable[[], bool],
        places: Callable[[], Iterable[HeldPlace]],
    ) -> None:
        """`places` gives all there are; `trusted`: changes are told of for certain, so that rounds may be long."""
        self._clock, self._store, self._hierarchy = clock, store, hierarchy
        self._trusted, self._places = trusted, places
        self._due: dict[HeldPlace, None] = {}
        self._looking = False
        self._round: list[HeldPlace] = []
        self._round_size = 0
        self._unsure = 0
        """So many places are to be looked at soon, since nobody knows whether something was missed about them."""
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Go on looking at all places, until there are none."""
        if self._timer is None:
            self._timer = self._clock.callLater(TICK_S if self._trusted() else DISTRUST_TICK_S, self._tick)

    def soon(self, places: Iterable[HeldPlace]) -> None:
        """Look at these in the next turn of the reactor."""
        for place in places:
            self._due[place] = None
        if self._due and not self._looking:
            self._looking = True
            self._clock.callLater(0, self._begin)

    def all_soon(self) -> None:
        """Look at all soon, beginning now: anything may have changed."""
        self._round = list(self._places())
        self._unsure = self._round_size = len(self._round)

    def _tick(self) -> None:
        self._timer = None
        if not self._round:
            self._round = list(self._places())
            self._round_size = len(self._round)
        if not self._round:
            return
        trusted = self._trusted()
        if not trusted:
            self._unsure = self._round_size  # a whole round after it was
        soon = self._unsure > 0
        tick_s, round_s = (DISTRUST_TICK_S, DISTRUST_ROUND_S) if soon else (TICK_S, ROUND_S)
        some = [self._round.pop() for _ in range(min(len(self._round), ceil(self._round_size * tick_s / round_s)))]
        if trusted:
            self._unsure = max(0, self._unsure - len(some))
        self.soon(place for place in some if not place.left)
        self._timer = self._clock.callLater(tick_s, self._tick)

    def _begin(self) -> None:
        Deferred.fromCoroutine(self._look())

    async def _look(self) -> None:
        """Look at what is due, one part after the other: an older answer must not come behind a newer one."""
        try:
            while self._due:
                due, self._due = list(self._due), {}
                for start in range(0, len(due), MAX_AT_ONCE):
                    await self._recheck_safely(due[start : start + MAX_AT_ONCE])
        finally:
            self._looking = False

    async def _recheck_safely(self, places: list[HeldPlace]) -> None:
        try:
            await self._recheck([place for place in places if not place.left])
        except CancelledError:
            raise
        except Exception:
            self._log.failure("streams.look_failed")

    async def _recheck(self, places: list[HeldPlace]) -> None:
        tenants = dict.fromkeys(name for place in places for name in (place.claims.tenant_id, place.tenant_id))
        digests = dict.fromkeys(place.claims.digest for place in places)
        children = list(dict.fromkeys(place.tenant_id for place in places if place.via is not None))
        # Apart from each other, so that the one which is known here is not asked for since the other is not.
        asked: list[Deferred[Any]] = [
            Deferred.fromCoroutine(self._ask(AdmissionAsk(tenants=tuple(tenants), verified=True))),
            Deferred.fromCoroutine(self._ask(AdmissionAsk(digests=tuple(digests), verified=True))),
            *(Deferred.fromCoroutine(self._ancestors(child)) for child in children),
        ]
        flags, revoked, *chains = await gatherResults(asked, consumeErrors=True)
        state = AdmissionState(levels=(), flags=flags.flags, revoked=revoked.revoked)
        ancestors = dict(zip(children, chains, strict=True))
        for place in places:
            try:
                place.judge(state, ancestors.get(place.tenant_id))
            except Exception:  # one's fault must not keep the others open
                self._log.failure("streams.judge_failed")

    async def _ask(self, ask: AdmissionAsk) -> AdmissionState:
        try:
            return await self._store.admit(ask)
        except StoreUnavailable:
            return AdmissionState(levels=(), flags={}, revoked={})

    async def _ancestors(self, tenant_id: str) -> tuple[str, ...] | None:
        try:
            return await self._hierarchy.ancestors(tenant_id)
        except StoreUnavailable:
            return None
