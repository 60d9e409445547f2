"""The composition root's part for the shared state: in Redis, or in this process."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS

from bakerygw.config.settings import Settings
from bakerygw.ports import (
    AdmissionStore,
    Hierarchy,
    KeyStore,
    Records,
    RevocationStore,
    Signals,
    StoreLink,
    StoreTelemetry,
    TenantLimits,
    TenantStore,
    Watch,
)
from bakerygw.stores.api_keys import StoredKeys
from bakerygw.stores.hierarchy import MemoryHierarchy, RedisHierarchy
from bakerygw.stores.invalidation import Invalidations
from bakerygw.stores.memory import MemoryStore
from bakerygw.stores.mirror import Mirror
from bakerygw.stores.records import MemoryRecords, RedisRecords
from bakerygw.stores.redis import RedisStore
from bakerygw.stores.redis_link import RedisLink
from bakerygw.stores.resilient import ResilientAdmission
from bakerygw.stores.signals import LocalSignals, RedisSignals
from bakerygw.upstream.dial import trust_root
from bakerygw.upstream.names import NameEndpoint, Names


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


def make_state(settings: Settings, reactor: Any, telemetry: StoreTelemetry) -> SharedState:
    """The shared state that the settings ask for; nothing is opened."""
    local = MemoryStore(_microseconds)
    if settings.redis_host is not None:
        return _in_redis(settings, reactor, telemetry, local)
    records = MemoryRecords(time.time)
    return SharedState(
        admission=local,
        tenants=local,
        limits=local,
        hierarchy=MemoryHierarchy(),
        revocations=local,
        records=records,
        keys=StoredKeys(records, time.time),
        signals=LocalSignals(),
        status=local,
        embedded=local,
        mirror=Mirror(),
        watch=local,
        open=lambda: succeed(None),
        close=lambda: succeed(None),
    )


def _in_redis(settings: Settings, reactor: Any, telemetry: StoreTelemetry, local: MemoryStore) -> SharedState:
    username = settings.redis_username
    password = settings.redis_password.get_secret_value() if settings.redis_password else None
    endpoint = redis_endpoint(settings, reactor)
    mirror = Mirror()
    link = RedisLink(
        reactor,
        endpoint,
        username=username,
        password=password,
        db=settings.redis_db,
        timeout_s=settings.redis_timeout_ms / 1000,
        telemetry=telemetry,
    )
    signals = RedisSignals(link)
    invalidations = Invalidations(
        reactor,
        endpoint,
        link,
        mirror,
        username=username,
        password=password,
        name=secrets.token_hex(8),
        signals=signals.heard,
    )
    store = RedisStore(link, mirror, reactor, time.time)
    admission = ResilientAdmission(
        store,
        on_failure=settings.rate_limit_on_store_failure,
        local=local,
        mirror=mirror,
        clock=reactor,
        telemetry=telemetry,
    )
    records = RedisRecords(link)

    def start() -> "Deferred[None]":
        invalidations.start()
        return link.start()

    async def stop() -> None:
        await invalidations.stop()
        await link.stop()

    return SharedState(
        admission=admission,
        tenants=store,
        limits=store,
        hierarchy=RedisHierarchy(link, mirror, reactor),
        revocations=store,
        records=records,
        keys=StoredKeys(records, time.time),
        signals=signals,
        status=store,
        embedded=None,
        mirror=mirror,
        watch=mirror,
        open=start,
        close=lambda: Deferred.fromCoroutine(stop()),
    )


def redis_endpoint(settings: Settings, reactor: Any) -> IStreamClientEndpoint:
    """The way to Redis, through TLS where the settings ask for it."""
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
