"""Subscriptions that have changed: told to all instances, however long the shared state is away."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.edge.admission import Confirmed
from bakerygw.ports import LookupFailed, LookupTelemetry, StoreUnavailable, TenantStore

MAX_PENDING: Final = 1_000
"""Tenants whose change waits for the shared state; beyond it the oldest is given up."""
MAX_DOUBTS: Final = 100
"""Questions under way about writes whose outcome is not known."""
FIRST_RETRY_S: Final = 0.2
LAST_RETRY_S: Final = 5.0
DOUBT_AFTER_S: Final = 1.0
"""How long a service is given to end what it may have begun, before it is asked."""
DOUBTS: Final = 3
"""How often it is asked, if it does not answer."""


class SubscriptionChanges:
    """Makes tokens stale whose tenant's subscription was changed through the gateway."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self, tenants: TenantStore, telemetry: LookupTelemetry, *, clock: IReactorTime, now: Callable[[], float]
    ) -> None:
        """`now` gives Unix seconds."""
        self._tenants, self._telemetry, self._clock, self._now = tenants, telemetry, clock, now
        self._pending: OrderedDict[str, None] = OrderedDict()
        self._delay_s = FIRST_RETRY_S
        self._timer: IDelayedCall | None = None
        self._doubts: dict[str, IDelayedCall] = {}
        self._doubted_again: set[str] = set()
        """Another write to the same tenant was doubted while the first doubt was not resolved."""
        self._stopped = False

    def changed(self, tenant_id: str) -> "Deferred[bool]":
        """Make the tenant's tokens stale on every instance; fires once that was tried, with whether it is done.

        What could not be written is tried again until it is, and cancelling the result changes nothing about that.
        """
        tried: Deferred[bool] = Deferred()
        writing = Deferred.fromCoroutine(self._write(tenant_id))
        writing.addErrback(self._broken)
        writing.addCallback(partial(self._tried, tried, tenant_id))
        return tried

    def doubted(self, tenant_id: str, confirmed: Confirmed) -> None:
        """Nobody knows whether a write was carried out: find out in a while, and treat it as one if it was.

        `confirmed` is what held before it. Whoever could make tokens stale by leaving early would lock out others.
        """
        self._telemetry.subscription_change("unknown")
        if tenant_id in self._doubts:
            self._doubted_again.add(tenant_id)
        if self._stopped or tenant_id in self._doubts or len(self._doubts) >= MAX_DOUBTS:
            return
        self._ask_later(tenant_id, confirmed, DOUBTS)

    def stop(self) -> None:
        """Try nothing more; what is left is logged."""
        self._stopped = True
        for timer in (self._timer, *self._doubts.values()):
            if timer is not None and timer.active():
                timer.cancel()
        self._timer, self._doubts = None, {}
        for tenant_id in self._pending:
            self._log.error("subscription.change_lost", tenant_id=tenant_id)

    # writing

    async def _write(self, tenant_id: str) -> bool:
        """The moment of writing counts, since one from before could put a later change by others out of force."""
        try:
            await self._tenants.subscription_changed(tenant_id, self._now())
        except StoreUnavailable:
            return False
        self._telemetry.subscription_change("written")
        return True

    def _tried(self, tried: "Deferred[bool]", tenant_id: str, done: bool) -> None:
        if not done:
            self._log.warn("subscription.change_waits", tenant_id=tenant_id)
            self._later(tenant_id)
        tried.callback(done)

    def _later(self, tenant_id: str) -> None:
        self._pending[tenant_id] = None
        if len(self._pending) > MAX_PENDING:
            lost, _ = self._pending.popitem(last=False)
            self._telemetry.subscription_change("dropped")
            self._log.error("subscription.change_lost", tenant_id=lost)
        self._wait()

    def _wait(self) -> None:
        if self._timer is None and self._pending and not self._stopped:
            self._timer = self._clock.callLater(self._delay_s, self._retry)

    def _retry(self) -> None:
        self._timer = None
        retrying = Deferred.fromCoroutine(self._write_pending())
        retrying.addErrback(self._broken)
        retrying.addCallback(self._retried)

    async def _write_pending(self) -> bool:
        """Those that wait, until one fails; whether none did."""
        for tenant_id in list(self._pending):
            self._telemetry.subscription_change("retried")
            if not await self._write(tenant_id):
                return False
            self._pending.pop(tenant_id, None)
            self._log.info("subscription.change_written", tenant_id=tenant_id)
        return True

    def _retried(self, done: bool) -> None:
        self._delay_s = FIRST_RETRY_S if done else min(2 * self._delay_s, LAST_RETRY_S)
        self._wait()

    # doubts

    def _ask_later(self, tenant_id: str, confirmed: Confirmed, left: int) -> None:
        if not self._stopped:
            self._doubts[tenant_id] = self._clock.callLater(DOUBT_AFTER_S, self._ask, tenant_id, confirmed, left)

    def _ask(self, tenant_id: str, confirmed: Confirmed, left: int) -> None:
        asking = Deferred.fromCoroutine(self._resolve(tenant_id, confirmed, left))
        asking.addErrback(self._broken)

    async def _resolve(self, tenant_id: str, confirmed: Confirmed, left: int) -> None:
        try:
            changed = await confirmed.again() != confirmed.subscription
        except LookupFailed as failed:
            if failed.kind in ("unauthorized", "forbidden", "unknown"):
                changed = False
            elif left > 1:
                self._ask_later(tenant_id, confirmed, left - 1)
                return
            else:
                changed = True  # nothing is known: a needless refresh does less harm than a plan that was given up
        if not changed and tenant_id in self._doubted_again:
            self._doubted_again.discard(tenant_id)
            self._ask_later(tenant_id, confirmed, DOUBTS)
            return
        self._doubts.pop(tenant_id, None)
        self._doubted_again.discard(tenant_id)
        if changed and not self._stopped:
            await self.changed(tenant_id)

    def _broken(self, failure: Failure) -> bool:
        """A fault in here is logged; the change counts as not written."""
        if not failure.check(CancelledError):
            self._log.failure("subscription.change_failed", failure)
        return False
