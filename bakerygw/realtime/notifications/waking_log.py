"""The histories, with somebody who is told when they put something into the outbox."""

from collections.abc import Callable, Sequence

from bakerygw.core.alerts import Alert, Position
from bakerygw.ports import EventLog, Page, Placed


class WakingLog:
    """Another `EventLog`, as it is; `wake` is called after a call that placed an alert with a notification."""

    def __init__(self, log: EventLog, wake: Callable[[], None]) -> None:
        self._log, self._wake = log, wake

    async def append(self, alerts: Sequence[Alert]) -> list[Placed]:
        """Place alerts that were heard."""
        placed = await self._log.append(alerts)
        if any(alert.notify and its.fresh for alert, its in zip(alerts, placed, strict=False)):
            self._wake()
        return placed

    async def publish(self, alert: Alert) -> Placed:
        """Place an alert, and tell all who listen."""
        placed = await self._log.publish(alert)
        if alert.notify and placed.fresh:
            self._wake()
        return placed

    async def head(self, tenant_id: str) -> Position:
        """Where the history of this tenant stands."""
        return await self._log.head(tenant_id)

    async def read(self, tenant_id: str, after: Position, *, count: int, max_bytes: int) -> Page:
        """What stands behind `after`."""
        return await self._log.read(tenant_id, after, count=count, max_bytes=max_bytes)

    async def era(self) -> int:
        """The number of the present era."""
        return await self._log.era()

    async def begin_era(self, seen: int) -> int:
        """Begin an era, unless another one than `seen` has begun."""
        return await self._log.begin_era(seen)
