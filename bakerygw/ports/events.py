"""Alerts on their way from who publishes them to who looks at them."""

from collections.abc import Awaitable, Callable, Sequence
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
