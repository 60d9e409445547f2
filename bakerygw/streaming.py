"""The composition root's part for what stays open: alerts, training, and what is sent on to be notified."""

import random
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred

from bakerygw.config.settings import Settings
from bakerygw.core.routing import Action
from bakerygw.edge.gateway import Handler
from bakerygw.ports import Upstreams
from bakerygw.realtime.notifications import Notifications
from bakerygw.realtime.notifier import Notifier
from bakerygw.state import SharedState
from bakerygw.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """All that streams, and how it begins and ends."""

    notifications: Notifications
    handlers: Mapping[Action, Handler] = field(default_factory=dict)

    def open(self) -> None:
        """Begin to listen for alerts."""
        self.notifications.start()

    def drain(self, window_s: float) -> "Deferred[None]":
        """Say goodbye to all streams and sockets, spread over the window; fires when the last has been told."""
        return self.notifications.drain(window_s)

    def close(self) -> "Deferred[None]":
        """Listen no more; fires when that is done."""
        return Deferred.fromCoroutine(self.notifications.close())


def make_streaming(
    settings: Settings,
    reactor: Any,
    *,
    state: SharedState,
    metrics: Metrics,
    upstreams: Callable[[], Upstreams],
) -> Streaming:
    """What the settings ask for; nothing is opened. `upstreams` gives those of the configuration in force."""
    return Streaming(notifications=make_notifications(reactor, state, metrics, upstreams))


def make_notifications(
    reactor: Any, state: SharedState, metrics: Metrics, upstreams: Callable[[], Upstreams]
) -> Notifications:
    """What sends alerts on to the notification service."""
    notifier = Notifier(upstreams, clock=reactor, now=time.time, token=secrets.token_hex)
    return Notifications(
        state.outbox, notifier, state.tenants, clock=reactor, chance=random.random, telemetry=metrics.notifications
    )
