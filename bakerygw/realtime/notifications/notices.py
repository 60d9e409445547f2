"""What operators are told of notifications that don't get on: what it is, once, and not at each attempt."""

from collections.abc import Callable
from typing import ClassVar, Final, Literal

from twisted.logger import Logger

from bakerygw.core.recent import Seldom
from bakerygw.ports import Haul, Notification, NotificationTelemetry
from bakerygw.realtime.notifications.notifier import Attempt

PATIENCE_S: Final = 10.0
"""So long the outbox may be away before that is told: what is shorter, `alerts.link` tells of."""
AGAIN_S: Final = 60.0
"""A service that fails with some alerts and takes others is told of so often at most."""
HELD_AGAIN_S: Final = 600.0

Act = Literal["take", "finish"]
"""What is asked of the outbox: what is due, and to forget what was accepted."""


class Notices:
    """Log lines, and how the outbox stands.

    While nobody can look into the outbox, its oldest notification ages all the same: whoever watches that number is
    to learn that nothing is sent.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(self, seconds: Callable[[], float], telemetry: NotificationTelemetry) -> None:
        """`seconds` is a monotonic clock."""
        self._seconds, self._telemetry = seconds, telemetry
        self._seldom: Seldom[tuple[str, str]] = Seldom(AGAIN_S, 100)
        self._held: Seldom[str] = Seldom(HELD_AGAIN_S, 1000)
        self._failing: set[str] = set()
        """Services of which was told that they fail, and not yet that they don't."""
        self._stuck: set[Act] = set()
        self._off = False
        self._seen_at = seconds()
        self._waiting, self._oldest_s = 0, 0.0
        """As the outbox stood when it was seen last, at that moment."""

    def seen(self, haul: Haul, *, off: bool) -> None:
        """The outbox was looked into; `off`: there is no service to send to."""
        self._seen_at, self._waiting, self._oldest_s = self._seconds(), haul.waiting, haul.oldest_s
        self._telemetry.notifications_waiting(haul.waiting, haul.oldest_s)
        self.serves("take")
        for why, number in haul.given_up.items():
            self._telemetry.notified(why, number)
            self._log.warn("notifications.given_up", reason=why, number=number)
        off = off and bool(haul.waiting)
        if off and not self._off:
            self._log.warn("notifications.off", reason="no URL for the notification service", waiting=haul.waiting)
        self._off = off

    def ended(self, lost: int) -> None:
        """Nothing more is sent by this process, and so many end with it."""
        if lost:
            self._log.warn("notifications.given_up", reason="stopped", number=lost)

    def unseen(self, error: Exception) -> None:
        """The outbox could not be looked into."""
        self._telemetry.notifications_waiting(self._waiting, self._oldest_s + self._seconds() - self._seen_at)
        self.stuck("take", self._seen_at, error)

    def stuck(self, act: Act, since: float, error: Exception) -> None:
        """The outbox has not done this since then."""
        if act not in self._stuck and self._seconds() - since >= PATIENCE_S:
            self._stuck.add(act)
            self._log.warn("notifications.store", state="failing", act=act, reason=str(error)[:200])

    def serves(self, act: Act) -> None:
        """The outbox has done this."""
        if act in self._stuck:
            self._stuck.remove(act)
            self._log.info("notifications.store", state="serving", act=act, reason="")

    def failed(self, service: str, attempt: Attempt) -> None:
        """An attempt has failed for the moment."""
        if service not in self._failing and self._seldom.is_due(("failing", service), self._seconds()):
            self._failing.add(service)
            self._log.warn("notifications.failing", service=service, cause=attempt.cause, request_id=attempt.request_id)

    def answered(self, service: str) -> None:
        """An attempt was accepted or refused."""
        if service in self._failing:
            self._failing.remove(service)
            self._log.info("notifications.resumed", service=service)

    def refused(self, notification: Notification, attempt: Attempt) -> None:
        """The service will not have this one."""
        self._log.warn(
            "notification.refused",
            tenant_id=notification.tenant_id,
            alert=notification.name.rpartition(":")[2],
            cause=attempt.cause,
            request_id=attempt.request_id,
        )

    def held(self, notification: Notification, error: Exception) -> None:
        """It waits for a value in the shared state that somebody has to mend."""
        if self._held.is_due(notification.tenant_id, self._seconds()):
            self._log.warn("notification.held", tenant_id=notification.tenant_id, reason=str(error)[:200])
