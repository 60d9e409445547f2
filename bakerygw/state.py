"""The composition root's part for the shared state: in Redis, or in this process."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS

from bakerygw.config.settings import Settings
from bakerygw.ports import (
    AdmissionStore,
    AlertPublisher,
    AlertSource,
    AlertTelemetry,
    EventLog,
    Hierarchy,
    KeyStore,
    Outbox,
    Records,
    RevocationStore,
    Signals,
    StoreLink,
    StoreTelemetry,
    TenantLimits,
    TenantStore,
    Watch,
)
from bakerygw.stores.alert_channel import RedisAlertChannel, RedisAlertPublisher
from bakerygw.stores.api_keys import StoredKeys
from bakerygw.stores.events import RedisEventLog
from bakerygw.stores.hierarchy import MemoryHierarchy, RedisHierarchy
from bakerygw.stores.invalidation import Invalidations
from bakerygw.stores.learning import Learner
from bakerygw.stores.local_alerts import LocalAlertChannel
from bakerygw.stores.memory import MemoryStore
from bakerygw.stores.memory_events import MemoryEventLog
from bakerygw.stores.mirror import Mirror
from bakerygw.stores.outbox import MemoryOutbox, RedisOutbox
from bakerygw.stores.records import MemoryRecords, RedisRecords
from bakerygw.stores.redis import RedisStore
from bakerygw.stores.redis_line import RedisAccess
from bakerygw.stores.redis_link import RedisLink
from bakerygw.stores.resilient import ResilientAdmission
from bakerygw.stores.signals import LocalSignals, RedisSignals
from bakerygw.upstream.dial import trust_root
from bakerygw.upstream.names import NameEndpoint, Names

HISTORY_TIMEOUT_S: Final = 0.5
"""At least, of a call on the history of alerts: no request waits for it, and an alert late is better than none."""


class Uncounted:
    """`StoreTelemetry` that nobody reads: such calls are not calls of requests."""

    def round_trip(self, seconds: float) -> None:
        """Not counted."""

    def failure(self, kind: str) -> None:
        """Not counted; the link tells by itself."""

    def degraded(self, yes: bool) -> None:
        """No concern of theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedState:
    """The shared state by its ports, and how it is opened and closed."""

    admission: AdmissionStore
    tenants: TenantStore
    limits: TenantLimits
    hierarchy: Hierarchy
    revocations: RevocationStore
    records: Records
    signals: Signals
    keys: KeyStore
    events: EventLog
    alerts: AlertSource
    publisher: AlertPublisher
    outbox: Outbox
    status: StoreLink
    embedded: MemoryStore | None
    """The state itself, where there is no Redis."""
    mirror: Mirror
    """Unused where there is no Redis."""
    watch: Watch
    """Tells of changes: the mirror, or the state itself."""
    open: Callable[[], "Deferred[None]"]
    """Begin to keep Redis connected; fires when the first attempt ended, well or not."""
    close: Callable[[], "Deferred[None]"]
    """Leave Redis; fires when that is done."""


def make_state(settings: Settings, reactor: Any, telemetry: StoreTelemetry, alerts: AlertTelemetry) -> SharedState:
    """The shared state that the settings ask for; nothing is opened."""
    local = MemoryStore(_microseconds)
    if settings.redis_host is not None:
        return _in_redis(settings, reactor, telemetry, local, alerts)
    # By the clock that nobody sets: what lives in this process neither ends nor stays with a wall clock that jumps.
    records, outbox = MemoryRecords(reactor.seconds), MemoryOutbox(reactor.seconds)

    def tell(tenant_id: str, payload: bytes) -> None:
        channel.tell(tenant_id, payload)

    events = MemoryEventLog(
        time.time,
        history_events=settings.sse_history_events,
        history_s=settings.sse_history_seconds,
        seconds=reactor.seconds,
        notify=outbox.put,
        tell=tell,
    )
    channel = LocalAlertChannel(events, alerts)
    return SharedState(
        admission=local,
        tenants=local,
        limits=local,
        hierarchy=MemoryHierarchy(),
        revocations=local,
        records=records,
        keys=StoredKeys(records, time.time),
        events=events,
        alerts=channel,
        publisher=channel,
        outbox=outbox,
        signals=LocalSignals(),
        status=local,
        embedded=local,
        mirror=Mirror(),
        watch=local,
        open=lambda: succeed(None),
        close=lambda: succeed(None),
    )


def _in_redis(
    settings: Settings, reactor: Any, telemetry: StoreTelemetry, local: MemoryStore, alerts: AlertTelemetry
) -> SharedState:
    access = redis_access(settings, reactor)
    mirror = Mirror()
    link = _link(settings, access, 0.0, telemetry=telemetry, event="store.link")
    # A connection for alerts alone: pages of a history are large, and no request's limit may wait behind them.
    history = _link(settings, access, HISTORY_TIMEOUT_S, telemetry=Uncounted(), event="alerts.link")
    signals = RedisSignals(link)
    invalidations = Invalidations(access, link, mirror, name=secrets.token_hex(8), signals=signals.heard)
    store = RedisStore(link, mirror, reactor, time.time)
    Learner(store.look, mirror)
    admission = ResilientAdmission(
        store,
        on_failure=settings.rate_limit_on_store_failure,
        local=local,
        mirror=mirror,
        clock=reactor,
        telemetry=telemetry,
    )
    records = RedisRecords(link)
    events = _events(settings, reactor, history)

    def start() -> "Deferred[None]":
        invalidations.start()
        history.start()
        return link.start()

    async def stop() -> None:
        for stopping in (invalidations.stop, history.stop, link.stop):
            await stopping()

    return SharedState(
        admission=admission,
        tenants=store,
        limits=store,
        hierarchy=RedisHierarchy(link, mirror, reactor),
        revocations=store,
        records=records,
        keys=StoredKeys(records, time.time),
        events=events,
        alerts=RedisAlertChannel(access, history, events, alerts),
        publisher=RedisAlertPublisher(history),
        outbox=RedisOutbox(history, token=lambda: secrets.token_hex(8)),
        signals=signals,
        status=store,
        embedded=None,
        mirror=mirror,
        watch=mirror,
        open=start,
        close=lambda: Deferred.fromCoroutine(stop()),
    )


def _link(
    settings: Settings, access: RedisAccess, least_s: float, *, telemetry: StoreTelemetry, event: str
) -> RedisLink:
    timeout_s = max(least_s, settings.redis_timeout_ms / 1000)
    return RedisLink(access, timeout_s=timeout_s, telemetry=telemetry, event=event)


def _events(settings: Settings, reactor: Any, link: RedisLink) -> RedisEventLog:
    kept, kept_s = settings.sse_history_events, settings.sse_history_seconds
    return RedisEventLog(link, clock=reactor, history_events=kept, history_s=kept_s)


def redis_access(settings: Settings, reactor: Any) -> RedisAccess:
    """The way to Redis that the settings name, through TLS where they ask for it."""
    password = settings.redis_password
    return RedisAccess(
        reactor=reactor,
        endpoint=_endpoint(settings, reactor),
        username=settings.redis_username,
        password=password.get_secret_value() if password is not None else None,
        db=settings.redis_db,
    )


def _endpoint(settings: Settings, reactor: Any) -> IStreamClientEndpoint:
    host = settings.redis_host or ""
    # Names of its own: hanging names of services must not make it wait for its turn.
    endpoint = NameEndpoint(reactor, Names(reactor), host, settings.redis_port, timeout_s=2)
    if not settings.redis_tls:
        return endpoint
    options = optionsForClientTLS(host, trustRoot=trust_root(settings.redis_ca_file))
    wrapped: IStreamClientEndpoint = wrapClientTLS(options, endpoint)
    return wrapped


def _microseconds() -> int:
    return time.time_ns() // 1000
