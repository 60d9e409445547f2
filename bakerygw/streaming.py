"""The composition root's part for what stays open: alerts, training, and what is sent on to be notified."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, succeed

from bakerygw.config.settings import Settings
from bakerygw.core.routing import Action
from bakerygw.edge.admission import Grant
from bakerygw.edge.gateway import Handler
from bakerygw.edge.proxy import Proxy
from bakerygw.ports import SocketTelemetry
from bakerygw.realtime.held import Held, HeldKind
from bakerygw.realtime.training import Training
from bakerygw.state import SharedState


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """All that streams, and how it begins and ends."""

    handlers: Mapping[Action, Handler] = field(default_factory=dict)

    def open(self) -> None:
        """Begin to listen for alerts."""

    def drain(self, window_s: float) -> "Deferred[None]":
        """Say goodbye to all streams and sockets, spread over the window; fires when the last has been told."""
        return succeed(None)

    def close(self) -> "Deferred[None]":
        """Listen no more; fires when that is done."""
        return succeed(None)


def make_streaming(
    settings: Settings, reactor: Any, *, state: SharedState, proxy: Proxy, sockets: SocketTelemetry
) -> Streaming:
    """What the settings ask for; nothing is opened."""
    guard = _Everyone()
    return Streaming(handlers={"training": Training(proxy, guard, sockets, reactor).reply_to})


class _Everyone:
    """A guard that lets everybody in."""

    def enter(self, kind: HeldKind, grant: Grant) -> "_Everyone":
        """A place."""
        return self

    def hold(self, held: Held) -> None:
        """Nothing."""

    def leave(self) -> None:
        """Nothing."""

    def cut(self, tenant_id: str) -> int:
        """None."""
        return 0

    def of(self, tenant_id: str) -> dict[HeldKind, int]:
        """None."""
        return {}

    def drain(self, window_s: float, done: Callable[[], None]) -> None:
        """At once."""
        done()
