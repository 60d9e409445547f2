"""The composition root's part for what stays open: alerts, training, and what is sent on to be notified."""

import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from twisted.internet.defer import Deferred

from bakerygw.config.settings import Settings
from bakerygw.core.routing import Action
from bakerygw.edge.credentials.tickets import Tickets
from bakerygw.edge.gateway import Handler
from bakerygw.edge.proxy import Proxy
from bakerygw.ports import AlertSource, EventLog, Upstreams
from bakerygw.realtime.alerts.handler import AlertStreams
from bakerygw.realtime.alerts.hub import Hub
from bakerygw.realtime.alerts.intake import Intake
from bakerygw.realtime.guard import StreamGuard
from bakerygw.realtime.held import Guard
from bakerygw.realtime.notifications.dispatch import Notifications
from bakerygw.realtime.notifications.notifier import Notifier
from bakerygw.realtime.notifications.waking_log import WakingLog
from bakerygw.realtime.quotas import Quota, Quotas
from bakerygw.realtime.training.handler import Training
from bakerygw.state import SharedState
from bakerygw.telemetry.metrics import Metrics
from bakerygw.tokens.session_seal import TICKETS, SessionSeal


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """All that streams, and how it begins and ends."""

    hub: Hub
    """Who brings what is published to the streams."""
    guard: Guard
    """Who may hold a stream or socket open, and until when."""
    tickets: Tickets
    source: AlertSource
    intake: Intake
    events: EventLog
    """The histories; what is placed by it is notified at once."""
    notifications: Notifications
    handlers: Mapping[Action, Handler] = field(default_factory=dict)

    def open(self) -> None:
        """Begin to listen for alerts."""
        self.source.start(self.intake)
        self.notifications.start()

    def drain(self, window_s: float) -> "Deferred[None]":
        """Say goodbye to all streams and sockets, spread over the window; fires when the last has been told."""
        told: Deferred[None] = Deferred()
        self.guard.drain(window_s, lambda: told.callback(None))

        async def drain() -> None:
            await self.notifications.drain(window_s)
            await told

        return Deferred.fromCoroutine(drain())

    async def stop_hearing(self) -> None:
        """Listen no more; ends when that is done. `intake.busy` tells whether what was heard is stored."""
        await self.source.stop()

    def close(self) -> "Deferred[None]":
        """Listen no more; fires when that is done, and what was heard is stored or had its last chance."""

        async def close() -> None:
            await self.notifications.close()
            await self.stop_hearing()
            await self.intake.close()
            self.hub.close()

        return Deferred.fromCoroutine(close())


def make_streaming(
    settings: Settings,
    reactor: Any,
    *,
    state: SharedState,
    metrics: Metrics,
    proxy: Proxy,
    upstreams: Callable[[], Upstreams],
    signers: Callable[[], Collection[bytes] | None],
    grace_days: Callable[[], float],
) -> Streaming:
    """What the settings ask for; nothing is opened. What is handed over as a call gives what is in force."""
    tickets = Tickets(state.records, SessionSeal(purpose=TICKETS), time.time)
    guard = make_guard(settings, reactor, state, signers=signers, grace_days=grace_days)
    hub = make_hub(settings, reactor, state, metrics)
    notifications = make_notifications(reactor, state, metrics, upstreams)
    events = WakingLog(state.events, notifications.wake)
    return Streaming(
        source=state.alerts,
        intake=Intake(events, hub, reactor, metrics.alerts, missed=state.alerts.missed),
        hub=hub,
        guard=guard,
        events=events,
        notifications=notifications,
        tickets=tickets,
        handlers={
            "alerts": AlertStreams(hub, guard).open,
            "ticket": tickets.reply_to,
            "training": Training(proxy, guard, metrics.sockets, reactor).reply_to,
        },
    )


def make_hub(settings: Settings, reactor: Any, state: SharedState, metrics: Metrics) -> Hub:
    """The hub that the settings ask for."""
    return Hub(
        state.events,
        clock=reactor,
        heartbeat_s=settings.sse_heartbeat_seconds,
        history_s=settings.sse_history_seconds,
        telemetry=metrics.streams,
        random=Random(),  # noqa: S311  spreads, and keeps nothing secret
    )


def make_guard(
    settings: Settings,
    reactor: Any,
    state: SharedState,
    *,
    signers: Callable[[], Collection[bytes] | None],
    grace_days: Callable[[], float],
) -> Guard:
    """The guard that the settings ask for."""
    random = Random()  # noqa: S311  spreads, and keeps nothing secret
    quotas = Quotas(
        {
            "stream": Quota(
                per_user=settings.sse_max_per_user,
                per_tenant=settings.sse_max_per_tenant,
                in_all=settings.sse_max_streams,
            ),
            "socket": Quota(
                per_user=settings.ws_max_per_user,
                per_tenant=settings.ws_max_per_tenant,
                in_all=settings.ws_max_sockets,
            ),
        },
        new_per_second=settings.sse_new_per_second,
        seconds=reactor.seconds,
        jitter=random.random,
    )
    return StreamGuard(
        quotas,
        store=state.admission,
        hierarchy=state.hierarchy,
        watch=state.watch,
        trusted=lambda: state.embedded is not None or state.mirror.trusted(reactor.seconds()),
        signers=signers,
        grace_days=grace_days,
        clock=reactor,
        now=time.time,
        random=random,
    )


def make_notifications(
    reactor: Any, state: SharedState, metrics: Metrics, upstreams: Callable[[], Upstreams]
) -> Notifications:
    """What sends alerts on to the notification service."""
    notifier = Notifier(upstreams, clock=reactor, now=time.time, token=secrets.token_hex)
    chance = Random().random  # noqa: S311  spreads, and keeps nothing secret
    return Notifications(
        state.outbox, notifier, state.tenants, clock=reactor, chance=chance, telemetry=metrics.notifications
    )
