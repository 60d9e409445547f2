"""The composition root's part for what stays open: alerts, training, and what is sent on to be notified."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, succeed

from bakerygw.config.settings import Settings
from bakerygw.core.routing import Action
from bakerygw.edge.gateway import Handler
from bakerygw.ports import AlertSource, Placed
from bakerygw.realtime.intake import Intake
from bakerygw.state import SharedState
from bakerygw.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """All that streams, and how it begins and ends."""

    source: AlertSource
    intake: Intake
    handlers: Mapping[Action, Handler] = field(default_factory=dict)

    def open(self) -> None:
        """Begin to listen for alerts."""
        self.source.start(self.intake)

    def drain(self, window_s: float) -> "Deferred[None]":
        """Say goodbye to all streams and sockets, spread over the window; fires when the last has been told."""
        return succeed(None)

    def close(self) -> "Deferred[None]":
        """Listen no more; fires when that is done, and what was heard is stored."""

        async def close() -> None:
            await self.source.stop()
            await self.intake.close()

        return Deferred.fromCoroutine(close())


def make_streaming(settings: Settings, reactor: Any, *, state: SharedState, metrics: Metrics) -> Streaming:
    """What the settings ask for; nothing is opened."""
    intake = Intake(state.events, _NoStreams(), reactor, metrics.alerts, missed=state.alerts.missed)
    return Streaming(source=state.alerts, intake=intake)


class _NoStreams:
    """`realtime.intake.Hub` of a gateway that streams to nobody."""

    def stored(self, tenant_id: str, placed: Placed, payload: bytes) -> None:
        """Nobody waits for it."""

    def degraded(self) -> None:
        """Nobody is there."""

    def restored(self) -> None:
        """Nobody is there."""
