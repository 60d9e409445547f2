"""Lets in, watches and ends all that is held open: by its quotas, its credentials, and the state of its tenants."""

from collections.abc import Callable, Collection
from math import inf
from random import Random
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from bakerygw.core.claims import Claims
from bakerygw.core.problem import refuse
from bakerygw.core.tenancy import carried_until
from bakerygw.edge.admission import Grant
from bakerygw.ports import AdmissionStore, Changed, Hierarchy, Watch
from bakerygw.realtime.deadlines import Deadlines
from bakerygw.realtime.held import HeldKind, Place
from bakerygw.realtime.place import HeldPlace
from bakerygw.realtime.quotas import Quotas
from bakerygw.realtime.rechecks import Rechecks

DRAIN_TICK_S: Final = 0.05
DRAIN_EACH_S: Final = 0.5
"""Of a drain's window no more is used than this for each one: two streams need not be spread over half a minute."""
AT_ONCE: Final = 100
"""So many are ended in one turn of the reactor where a key has opened all there are."""


class StreamGuard:
    """The `Guard` of one instance.

    `now` is Unix seconds; `trusted` tells whether `watch` is sure to tell of every change. `signers` gives one of which
    `Claims.signer` is of every credential in force, where the issuer's keys are known, `grace_days` for how
    long a subscription carries on after its end.
    """

    def __init__(
        self,
        quotas: Quotas,
        *,
        store: AdmissionStore,
        hierarchy: Hierarchy,
        watch: Watch,
        trusted: Callable[[], bool],
        signers: Callable[[], Collection[bytes] | None],
        grace_days: Callable[[], float],
        clock: IReactorTime,
        now: Callable[[], float],
        random: Random,
    ) -> None:
        self._quotas, self._clock, self._now, self._random = quotas, clock, now, random
        self._signers, self._grace_days = signers, grace_days
        self._places: dict[HeldPlace, None] = {}
        self._by_tenant: dict[str, dict[HeldPlace, None]] = {}
        self._by_digest: dict[str, dict[HeldPlace, None]] = {}
        self._inherited: dict[HeldPlace, None] = {}
        self._deadlines: Deadlines[HeldPlace] = Deadlines(clock, now, due=self._due, gone=lambda place: place.left)
        self._rechecks = Rechecks(clock, store, hierarchy, trusted=trusted, places=lambda: self._places)
        self._draining = False
        self._leaving: list[HeldPlace] = []
        self._drained: list[Callable[[], None]] = []
        self._drain_timer: IDelayedCall | None = None
        watch.on_change(self._changed)

    # Guard

    def enter(self, kind: HeldKind, grant: Grant) -> Place:
        """Take a place before anything is sent.

        Raises `Refused`: too-many-streams (429 for user and tenant), service-unavailable (503 for the instance, and
        for too many new ones in a second), token-expired (in its leeway), token-invalid (its key was taken away since
        it was checked).
        """
        claims, view = grant.claims, grant.view
        if claims is None or view is None:
            raise refuse("internal-error", "This route needs a token and a tenant; report the request_id.")
        if self._draining:
            raise self._quotas.not_now("This gateway is about to stop", "draining")
        now = self._now()
        if claims.exp <= now:
            raise refuse("token-expired", "The access token has expired; refresh it or sign in again.", reason="leeway")
        if not _is_signed(claims, self._signers()):
            raise refuse("token-invalid", "The access token is not acceptable; sign in again.", reason="key-withdrawn")
        self._quotas.take(kind, claims, view.tenant_id)
        paid_until = carried_until(view.subscription, self._grace_days())
        if paid_until <= now:
            paid_until = inf  # who was let in all the same is on a route that asks for no subscription
        place = HeldPlace(self, kind, claims, view.tenant_id, now=now, paid_until=paid_until)
        self._places[place] = None
        for tenant_id in {claims.tenant_id, view.tenant_id}:
            self._by_tenant.setdefault(tenant_id, {})[place] = None
        self._by_digest.setdefault(claims.digest, {})[place] = None
        if place.via is not None:
            self._inherited[place] = None
        return place

    def keys_changed(self) -> None:
        """Tokens are checked with other keys: end what was opened by one that is good by none of them, within a moment.

        While it is not known which keys there are nothing ends.
        """
        signers = self._signers()
        self._end_some([place for place in self._places if not _is_signed(place.claims, signers)])

    def _end_some(self, unsigned: list[HeldPlace]) -> None:
        for _ in range(min(AT_ONCE, len(unsigned))):
            unsigned.pop().end("token-invalid")
        if unsigned:
            self._clock.callLater(0, self._end_some, unsigned)

    def cut(self, tenant_id: str) -> int:
        """End all of a tenant's; how many there were."""
        return sum(place.end("disconnected") for place in self._of(tenant_id))

    def of(self, tenant_id: str) -> dict[HeldKind, int]:
        """How many of a tenant's are open here."""
        found: dict[HeldKind, int] = {"stream": 0, "socket": 0}
        for place in self._of(tenant_id):
            found[place.kind] += 1
        return found

    def drain(self, window_s: float, done: Callable[[], None]) -> None:
        """Let nobody in any more, and end all, spread at random over the window; then call `done`.

        A further call changes the window of what has not been told yet.
        """
        self._draining = True
        self._drained.append(done)
        self._leaving = list(self._places)
        self._random.shuffle(self._leaving)
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
        window_s = min(window_s, DRAIN_EACH_S * len(self._leaving))
        self._say_goodbye(len(self._leaving), self._clock.seconds(), window_s)

    def _say_goodbye(self, count: int, began: float, window_s: float) -> None:
        """End as many of the `count` as it is time for, and go on until all are told."""
        self._drain_timer = None
        passed = (self._clock.seconds() - began) / window_s if window_s > 0 else 1.0
        while self._leaving and count - len(self._leaving) < count * passed:
            self._leaving.pop().end("draining")
        if self._leaving:
            self._drain_timer = self._clock.callLater(DRAIN_TICK_S, self._say_goodbye, count, began, window_s)
            return
        told, self._drained = self._drained, []
        for done in told:
            done()

    # Keeper

    def held(self, place: HeldPlace) -> None:
        """Somebody holds the place: watch it, and tell what has come up since it was entered."""
        if place.ending is not None:
            self._clock.callLater(0, self._end_late, place)
            return
        self._deadlines.add(place.next_moment(), place)
        self._rechecks.soon((place,))
        self._rechecks.start()

    def left(self, place: HeldPlace) -> None:
        """The place is free."""
        self._quotas.give(place.kind, place.claims, place.tenant_id)
        del self._places[place]
        for tenant_id in {place.claims.tenant_id, place.tenant_id}:
            _drop(self._by_tenant, tenant_id, place)
        _drop(self._by_digest, place.claims.digest, place)
        self._inherited.pop(place, None)
        self._deadlines.left()

    # parts

    def _of(self, tenant_id: str) -> list[HeldPlace]:
        return [place for place in self._by_tenant.get(tenant_id, ()) if place.tenant_id == tenant_id]

    def _end_late(self, place: HeldPlace) -> None:
        """End what was to end before anybody held it."""
        if place.held is not None and place.ending is not None:
            place.held.end(place.ending)

    def _due(self, place: HeldPlace) -> None:
        if place.tick(self._now()):
            self._deadlines.add(place.next_moment(), place)

    def _changed(self, changed: Changed | None) -> None:
        if changed is None:
            self._rechecks.all_soon()
            return
        for tenant_id in changed.tenants:
            if tenant_id in self._by_tenant:
                self._rechecks.soon(self._by_tenant[tenant_id])
        for digest in changed.digests:
            if digest in self._by_digest:
                self._rechecks.soon(self._by_digest[digest])
        if changed.parents and self._inherited:
            self._rechecks.soon(self._inherited)


def _is_signed(claims: Claims, signers: Collection[bytes] | None) -> bool:
    """Whether what the credential was checked with is in force, as far as that can be told."""
    return not claims.signer or signers is None or claims.signer in signers


def _drop(index: dict[str, dict[HeldPlace, None]], name: str, place: HeldPlace) -> None:
    places = index.get(name)
    if places is not None:
        places.pop(place, None)
        if not places:
            del index[name]
