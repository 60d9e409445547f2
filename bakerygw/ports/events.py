"""Alerts on their way from who publishes them to who looks at them."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from bakerygw.core.alerts import Alert, Position
from bakerygw.core.values import value


@value
class Placed:
    """Where an alert stands in its tenant's history."""

    position: Position
    fresh: bool
    """This call has put it there; else it was there already."""


@value
class Stored:
    """An alert of the history."""

    position: Position
    payload: bytes


@value
class Page:
    """A part of one tenant's history behind a position, and what all of it is at this moment."""

    head: Position
    """The newest alert's, or (epoch, 0) where there is none."""
    first: int
    """The offset of the oldest alert that is still kept; one more than the head's if none is."""
    events: tuple[Stored, ...]
    """Those of the head's epoch behind the position asked for, in order and without holes, as many as fit."""


class EventLog(Protocol):
    """The tenants' histories, which all instances share. Each call raises `StoreUnavailable`."""

    async def append(self, alerts: Sequence[Alert]) -> list[Placed]:
        """Place alerts that were heard, each once however many instances hear it, by its digest for a minute.

        What is `notify` is put into the outbox of notifications by the same step.
        """

    async def publish(self, alert: Alert) -> Placed:
        """Place an alert, once by its `alert_id` (without one by its digest), and tell all who listen."""

    async def head(self, tenant_id: str) -> Position:
        """Where the history of this tenant stands; begins one if there is none."""

    async def read(self, tenant_id: str, after: Position, *, count: int, max_bytes: int) -> Page:
        """What stands behind `after`, at most `count` alerts and, but for the first, `max_bytes` of payload."""

    async def era(self) -> int:
        """The number of the present era: all tenants' epochs are of it, and end with it."""

    async def begin_era(self, seen: int) -> int:
        """Begin an era, as alerts may have been missed; unless another one than `seen` has begun. The present one."""


class Listener(Protocol):
    """Who is told what is published. No method raises."""

    def heard(self, tenant_id: str, payload: bytes) -> None:
        """Something was published for a tenant, well or ill formed; in the order of publication."""

    def listening(self) -> None:
        """From here on all that is published is heard; whatever may have been missed before has begun a new era."""

    def interrupted(self) -> None:
        """What is published is not heard, or nobody can tell."""

    def settled(self) -> Awaitable[None]:
        """Ends when all that was heard until this call is stored, or has been told to the source as `missed`."""


class AlertSource(Protocol):
    """Where published alerts come from."""

    def start(self, listener: Listener) -> None:
        """Begin to listen, and go on until `stop`."""

    def stop(self) -> Awaitable[None]:
        """Listen no more; ends when that is done."""

    def missed(self) -> None:
        """Something that was heard could not be kept: see that another instance has it, or begin an era.

        The listener is told `interrupted`, and `listening` when that is done.
        """


class AlertPublisher(Protocol):
    """Where alerts are published to all who listen at this moment."""

    async def publish(self, tenant_id: str, payload: bytes) -> None:
        """Tell all who listen; what nobody hears is lost. Raises `StoreUnavailable`."""


@value
class Changed:
    """What may be different from now on."""

    tenants: tuple[str, ...] = ()
    """Tenants one of whose flags was written."""
    digests: tuple[str, ...] = ()
    """Credentials that were revoked, or are no longer."""
    parents: tuple[str, ...] = ()
    """Tenants that are part of another one than before."""


class Watch(Protocol):
    """Tells of changes of the shared state as soon as this instance learns of them."""

    def on_change(self, told: Callable[[Changed | None], None]) -> None:
        """Call `told` at each change, before anything has been read again; `None`: anything may have changed."""


@value
class Notification:
    """An alert for the notification service, leased to who took it."""

    name: str
    """`{tenant_id}:{epoch}-{offset}`: what the outbox knows it by."""
    tenant_id: str
    payload: bytes
    """The JSON as it was published."""
    failed: int
    """Attempts that are known to have failed."""
    lease: str
    """Tells this taking from every other one."""


@value
class Haul:
    """What was taken out of the outbox, and how it stands."""

    taken: tuple[Notification, ...]
    waiting: int
    """All that are in it, those under a lease too."""
    oldest_s: float
    """For how long the oldest has been in it."""
    next_s: float | None
    """Until the next of those that were not taken is due; `None` where there is none."""
    given_up: Mapping[str, int]
    """How many were removed unsent, by why: expired, overflow or unreadable."""


class Outbox(Protocol):
    """Alerts that the notification service has not accepted yet, which all instances share.

    Each call raises `StoreUnavailable`. A lease that ends unfinished leaves its notification to be taken again, after
    a moment in which its holder, if it lives, can still finish it.
    """

    async def take(self, count: int, *, lease_s: float) -> Haul:
        """Take at most `count` that are due, oldest first, for so long; of several takers each gets others."""

    async def finish(self, notification: Notification) -> None:
        """Remove it: it was accepted, or never will be. Harmless if it is gone."""

    async def postpone(self, notification: Notification, in_s: float, *, failed: int) -> None:
        """Give the lease back; it is due again in so long. Does nothing if somebody else has taken it meanwhile."""

    @property
    def perishable(self) -> int:
        """How many are lost when this process ends: none where they are kept outside it."""


class NotificationTelemetry(Protocol):
    """Where is told what becomes of notifications. Never raises, never waits."""

    def notified(self, result: str, number: int = 1) -> None:
        """`result`: accepted, retried, refused, expired, overflow or unreadable."""

    def notifications_waiting(self, number: int, oldest_s: float) -> None:
        """How many are in the outbox, and for how long the oldest."""
