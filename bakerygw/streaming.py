"""The composition root's part for what stays open: alerts, training, and what is sent on to be notified."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, succeed

from bakerygw.config.settings import Settings
from bakerygw.core.routing import Action
from bakerygw.edge.gateway import Handler
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


def make_streaming(settings: Settings, reactor: Any, *, state: SharedState) -> Streaming:
    """What the settings ask for; nothing is opened."""
    return Streaming()
