"""Alerts on their way to the notification service: each sent by one instance, and again until it is accepted."""

from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.core.notifications import wait_s
from bakerygw.ports import Notification, NotificationTelemetry, Outbox, StoreUnavailable, StoreUnreadable, TenantStore
from bakerygw.realtime.notifications.notices import Notices
from bakerygw.realtime.notifications.notifier import Attempt

LEASE_S: Final = 15.0
"""Longer than an attempt takes with all that belongs to it, so that nobody sends what is still being sent."""
BEFORE_S: Final = 3.0
"""An attempt that has not begun so long after its lease did, because this process was held up, is left to others."""
SLOTS: Final = 4
"""Attempts at a time: enough for thousands of alerts a minute, and few enough for a service that is slow."""
IDLE_S: Final = 2.0
"""How often is looked for what other instances left, when nothing is known to be due sooner."""
SOON_S: Final = 0.05
SETTLE_S: Final = 0.5
"""How often Redis is told again that something was accepted, while it does not answer."""
MAX_PAUSE_S: Final = 30.0
"""The longest time without a look whether a service that failed is back."""
PATIENCE: Final = 5
"""So many failures in a row count as a service that is away, whatever it answers."""
CLOSE_S: Final = 1.0
"""At the end Redis has so long to take in what was accepted."""


class Sender(Protocol):
    """Who asks the service, as `notifier.Notifier` does."""

    def service_of(self, *, demo: bool) -> str | None:
        """The service that alerts go to; `None` while it has no URL."""

    async def send(self, service: str, notification: Notification, *, demo: bool) -> Attempt:
        """Send it once."""


class Pace:
    """How one service does: none of its alerts is sent while it is given time."""

    def __init__(self) -> None:
        self._failures, self._failed_at, self.until = 0, float("-inf"), float("-inf")

    @property
    def well(self) -> bool:
        """The latest attempt was answered."""
        return self._failures == 0

    def answered(self) -> None:
        """It has accepted or refused something."""
        self._failures, self.until = 0, float("-inf")

    def failed(self, attempt: Attempt, *, began: float, now: float, chance: float) -> None:
        """An attempt that began then has failed; those that failed together count once."""
        if began < self._failed_at:
            return
        self._failures, self._failed_at = self._failures + 1, now
        if attempt.away or self._failures >= PATIENCE:
            pause_s = wait_s(self._failures, chance, most_s=MAX_PAUSE_S, asked_s=attempt.asked_s)
            self.until = now + pause_s


class Notifications:
    """Takes from the outbox what is due and sends it, a few at a time."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        outbox: Outbox,
        sender: Sender,
        tenants: TenantStore,
        *,
        clock: IReactorTime,
        chance: Callable[[], float],
        telemetry: NotificationTelemetry,
    ) -> None:
        """`tenants` tells which are demos; `chance` is 0 to 1, and spreads attempts."""
        self._outbox, self._sender, self._tenants = outbox, sender, tenants
        self._clock, self._chance, self._telemetry = clock, chance, telemetry
        self._notices = Notices(clock.seconds, telemetry)
        self._paces: dict[str, Pace] = {}
        self._under_way: dict[str, Deferred[None]] = {}
        self._look: IDelayedCall | None = None
        self._looking = self._again = False
        self._open = False
        self._enders: list[Deferred[None]] = []

    @property
    def busy(self) -> bool:
        """Something is under way, or about to be."""
        return bool(self._under_way) or self._looking

    def start(self) -> None:
        """Begin to look."""
        self._open = True
        self._look_in(0.0)

    def wake(self) -> None:
        """Something was put into the outbox. While nothing may be taken, the next look is soon enough."""
        if self._count(self._clock.seconds())[0]:
            self._look_now()

    def drain(self, window_s: float) -> "Deferred[None]":
        """Take nothing more; fires when what is under way has ended, at the latest after the window."""
        self._open = False
        if self._look is not None:
            self._look.cancel()
            self._look = None
        ended: Deferred[None] = Deferred()
        ended.addTimeout(window_s, self._clock, onTimeoutCancel=_in_time_or_not)
        self._enders.append(ended)
        self._all_ended()
        return ended

    async def close(self) -> None:
        """Take nothing more, and end what is under way; what is not known to be accepted will be sent again."""
        await self.drain(CLOSE_S)
        for work in list(self._under_way.values()):
            work.cancel()
        self._notices.ended(self._outbox.perishable)

    def _all_ended(self) -> None:
        if self.busy or self._open:
            return
        enders, self._enders = self._enders, []
        for ended in enders:
            ended.callback(None)

    # looking

    def _look_in(self, delay_s: float) -> None:
        """Look then, or sooner if that is planned."""
        if not self._open or self._looking:
            return
        if self._look is not None:
            if self._look.getTime() <= self._clock.seconds() + delay_s:
                return
            self._look.cancel()
        self._look = self._clock.callLater(delay_s, self._begin)

    def _look_now(self) -> None:
        if self._looking:
            self._again = True
        self._look_in(0.0)

    def _begin(self) -> None:
        self._look = None
        if len(self._under_way) >= SLOTS:
            return  # the first that ends looks again
        self._looking = True
        Deferred.fromCoroutine(self._round()).addCallbacks(self._looked, self._crashed)

    def _looked(self, delay_s: float) -> None:
        self._looking = False
        if self._again:
            delay_s, self._again = 0.0, False
        self._look_in(delay_s)
        self._all_ended()

    def _crashed(self, failure: Failure) -> None:
        self._log.failure("notifications.crashed", failure)
        self._looked(IDLE_S)

    async def _round(self) -> float:
        """Take what is due and begin to send it; seconds until the next look."""
        began = self._clock.seconds()
        count, pause_s = self._count(began)
        try:
            haul = await self._outbox.take(count, lease_s=LEASE_S)
        except StoreUnavailable as error:
            self._notices.unseen(error)
            return IDLE_S * (0.5 + self._chance() / 2)
        self._notices.seen(haul, off=self._sender.service_of(demo=False) is None)
        for notification in haul.taken:
            self._undertake(notification, began)
        if haul.given_up:
            return SOON_S  # there may be more of it
        if not count or len(haul.taken) == count:
            # Nothing may be taken until the pause ends, or an attempt does.
            return min(IDLE_S, pause_s)
        return IDLE_S if haul.next_s is None else min(IDLE_S, max(SOON_S, haul.next_s))

    def _count(self, now: float) -> tuple[int, float]:
        """How many may be taken, and for how long that is so."""
        services = {it for it in (self._sender.service_of(demo=False), self._sender.service_of(demo=True)) if it}
        if not services:
            return 0, IDLE_S
        paces = [self._pace(service) for service in services]
        pause_s = min(pace.until for pace in paces) - now
        if pause_s > 0:
            return 0, max(SOON_S, pause_s)
        slots = SLOTS if all(pace.well for pace in paces) else 1
        return max(0, slots - len(self._under_way)), IDLE_S

    # sending

    def _undertake(self, notification: Notification, began: float) -> None:
        name = notification.name
        if name in self._under_way:
            return  # accepted meanwhile, or about to be: only Redis does not know it yet
        work = Deferred.fromCoroutine(
            self._deliver(notification, began) if self._open else self._postpone(notification, 0.0, notification.failed)
        )
        self._under_way[name] = work
        work.addErrback(self._undelivered).addBoth(self._ended, name)

    def _undelivered(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._log.failure("notifications.crashed", failure)

    def _ended(self, _: object, name: str) -> None:
        del self._under_way[name]
        self._look_now()
        self._all_ended()

    async def _deliver(self, notification: Notification, began: float) -> None:
        demo = await self._is_demo(notification)
        service = None if demo is None else self._sender.service_of(demo=demo)
        now = self._clock.seconds()
        if now - began > BEFORE_S:
            return
        failed = notification.failed + 1
        if demo is None or service is None or self._pace(service).until > now:
            await self._postpone(notification, wait_s(failed, self._chance()), failed)
            return
        attempt = await self._sender.send(service, notification, demo=demo)
        self._learn(service, attempt, began=now)
        if attempt.verdict == "later":
            self._telemetry.notified("retried")
            await self._postpone(notification, wait_s(failed, self._chance(), asked_s=attempt.asked_s), failed)
            return
        self._telemetry.notified(attempt.verdict)
        if attempt.verdict == "refused":
            self._notices.refused(notification, attempt)
        await self._finish(notification)

    async def _is_demo(self, notification: Notification) -> bool | None:
        """`None` while nobody knows: a demo's alerts must not go where others' go."""
        try:
            return (await self._tenants.flags(notification.tenant_id)).demo
        except StoreUnavailable as error:
            if isinstance(error, StoreUnreadable):
                self._notices.held(notification, error)
            return None

    def _pace(self, service: str) -> Pace:
        return self._paces.setdefault(service, Pace())

    def _learn(self, service: str, attempt: Attempt, *, began: float) -> None:
        if attempt.verdict == "later":
            self._pace(service).failed(attempt, began=began, now=self._clock.seconds(), chance=self._chance())
            if self._open:  # else this instance may be the one that has ended it
                self._notices.failed(service, attempt)
        else:
            self._pace(service).answered()
            self._notices.answered(service)

    async def _finish(self, notification: Notification) -> None:
        """Until Redis knows it, or this instance ends: else it would be sent again."""
        began = self._clock.seconds()
        while True:
            try:
                await self._outbox.finish(notification)
            except StoreUnavailable as error:
                self._notices.stuck("finish", began, error)
                await deferLater(self._clock, SETTLE_S)
            else:
                self._notices.serves("finish")
                return

    async def _postpone(self, notification: Notification, in_s: float, failed: int) -> None:
        """Give it back. Where Redis is away the end of the lease does it."""
        with suppress(StoreUnavailable):
            await self._outbox.postpone(notification, in_s, failed=failed)


def _in_time_or_not(_result: object, _window_s: float) -> None:
    """What is not over by then will be ended, or not begun again."""
