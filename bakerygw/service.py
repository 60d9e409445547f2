"""The composition root: every object of the gateway is constructed here, and handed what it needs."""

import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred

from bakerygw import __version__, is_compiled
from bakerygw.admin.alerts import AlertCalls
from bakerygw.admin.application import AdminGateway
from bakerygw.admin.keys import KeyCalls
from bakerygw.admin.limits import Standing, TenantLimitCalls
from bakerygw.admin.site import AdminApp, LifecycleView
from bakerygw.admin.state import routes_view, services_view
from bakerygw.admin.tenants import TenantCalls
from bakerygw.auditing import Auditing
from bakerygw.config.settings import Settings, masked
from bakerygw.core.heads import TrustedProxies
from bakerygw.core.http import Reply
from bakerygw.core.routing import Action
from bakerygw.core.tenancy import TenantFlags
from bakerygw.demo.page import ROUTE
from bakerygw.demo.services import DemoServices
from bakerygw.edge.admission import Admission
from bakerygw.edge.credentials.keys import KeyDesk
from bakerygw.edge.framer import ChannelLimits
from bakerygw.edge.gateway import Gateway, Handler, LocalPage
from bakerygw.edge.kernel import connections_allowed
from bakerygw.edge.pages.apidocs import load_swagger_ui
from bakerygw.edge.proxy import Proxy
from bakerygw.edge.site import EdgeSite
from bakerygw.edge.tenants.changes import SubscriptionChanges
from bakerygw.edge.tenants.inheritance import Inheritance
from bakerygw.edition import Edition, limit_names, make_edition, pepper, refresh_gauges, service_names, templates
from bakerygw.handlers import make_handlers, make_lookups, shared_facts
from bakerygw.lifecycle import GatewayService
from bakerygw.state import make_state
from bakerygw.streaming import Streaming, make_streaming
from bakerygw.telemetry.logs import LogSystem
from bakerygw.telemetry.metrics import Metrics
from bakerygw.telemetry.request_log import RequestLog
from bakerygw.telemetry.requests import RequestTelemetry
from bakerygw.telemetry.stalls import StallWatch
from bakerygw.telemetry.store_metrics import StoreMetrics
from bakerygw.upstream.names import Names

ADMIN_CONNECTIONS = 100
"""Enough for operators, probes and Prometheus; the files for them are kept free of clients."""


def build(settings: Settings, reactor: Any, logs: LogSystem, read_settings: Callable[[], Settings]) -> GatewayService:
    """The gateway as a service. What can be built without a running reactor is; nothing is opened."""

    def house(lifecycle: LifecycleView, settings: Settings, token: str) -> House:
        pages = {ROUTE.prefix: demo.page.reply_to} if demo is not None else {}
        return House(settings, reactor, logs, lifecycle, token, pages)

    demo = DemoServices(reactor, now=time.time, random=Random()) if settings.demo else None  # noqa: S311
    return GatewayService(settings, reactor, logs, build=house, demo=demo, read_settings=read_settings)


class House:
    """All parts of one gateway, as `lifecycle.GatewayService` knows them. Opens nothing before `open`."""

    def __init__(  # noqa: PLR0917
        self,
        settings: Settings,
        reactor: Any,
        logs: LogSystem,
        lifecycle: LifecycleView,
        token: str,
        pages: Mapping[str, LocalPage] | None = None,
    ) -> None:
        """`pages` answers public routes besides the gateway's own, by their prefix."""
        self._reactor, self.logs = reactor, logs
        self._assets, self._pages = load_swagger_ui(), pages or {}
        self._names, self._proxy = Names(reactor), Proxy(reactor)
        self.metrics = Metrics(
            CollectorRegistry(),
            version=__version__,
            compiled=is_compiled(),
            log_lines_dropped=lambda: logs.writer.dropped,
            routes=templates(settings),
            services=service_names(settings),
            limits=limit_names(settings),
        )
        self.state = make_state(settings, reactor, StoreMetrics(self.metrics), self.metrics.alerts)
        self.auditing = Auditing(settings, reactor, self.state, logs, self.metrics)
        self.telemetry = RequestTelemetry(
            RequestLog(logs, self.auditing.anonymous), self.metrics, unwell=self.auditing.unwell
        )
        self.stalls = StallWatch(reactor, logs.logger("bakerygw.stalls"), stalled=self.metrics.reactor_stalls.inc)
        self.changes = SubscriptionChanges(self.state.tenants, self.metrics.lookups, clock=reactor, now=time.time)
        self.lookups = make_lookups(settings, self._reactor, self.state, self.metrics)
        self.streaming = self._make_streaming(settings)
        self.edition = self._make_edition(settings)
        self.metrics.before_scrape(
            lambda: refresh_gauges(self.metrics, self.state, self.edition, self._reactor.seconds())
        )
        self.gateway = Gateway(
            self.edition.policies,
            admission=Admission(self.state.admission, self.telemetry, self._key_desk()),
            proxy=self._proxy,
            pages=self.edition.pages,
            handlers=self.edition.handlers,
            telemetry=self.telemetry,
            clock=reactor,
            now=time.time,
            inheritance=self._make_inheritance(),
            lookups=self.lookups,
            tickets=self.streaming.tickets,
        )
        self.state.signals.on("disconnect", self._cut)
        self.public_site = self._make_public_site(settings)
        self.admin_site = EdgeSite(
            AdminGateway(self._admin_app(lifecycle, token), clock=reactor),
            clock=reactor,
            now=time.time,
            proxies=TrustedProxies(()),
            limits=ChannelLimits(),
            max_connections=ADMIN_CONNECTIONS,
        )

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.edition.settings

    @property
    def store_status(self) -> str:
        """The state of the way to the shared store: connected, disconnected or embedded."""
        return self.state.status.status

    def open(self) -> "Deferred[None]":
        """Begin to probe services and to keep Redis connected; fires when its first attempt ended, well or not."""
        self.edition.signing.begin(self.streaming.guard.keys_changed)
        self.edition.health.start()
        self.stalls.start()
        self.auditing.open()
        self.streaming.open()
        return self.state.open()

    def drain_streams(self, window_s: float) -> "Deferred[None]":
        """Say goodbye to all that is held open; fires when the last has been told."""
        return self.streaming.drain(window_s)

    @property
    def busy(self) -> bool:
        """Alerts are being sent on, or were heard last and are not stored yet."""
        return self.streaming.notifications.busy or self.streaming.intake.busy

    def stop_hearing(self) -> "Deferred[None]":
        """Hear no more alerts; fires when that is done."""
        return Deferred.fromCoroutine(self.streaming.stop_hearing())

    def close_services(self) -> None:
        """No service is asked any more."""
        self.edition.close()

    def close_state(self) -> "Deferred[None]":
        """Write the rest of the audit trail, and leave Redis."""
        self.stalls.stop()
        self.changes.stop()

        async def close() -> None:
            await self.streaming.close()
            await self.auditing.close()
            await self.state.close()

        return Deferred.fromCoroutine(close())

    async def seed(self, flags: Mapping[str, TenantFlags]) -> None:
        """Put the demo's flags into the embedded store."""
        store = self.state.embedded
        if store is None:
            return
        for tenant_id, its in flags.items():
            await store.set_demo(tenant_id, its.demo)
            if its.read_only is not None:
                await store.set_read_only(tenant_id, its.read_only)

    async def publish(self, tenant_id: str, payload: bytes) -> None:
        """Publish an alert as a service would."""
        await self.state.publisher.publish(tenant_id, payload)

    def swap(self, settings: Settings) -> None:
        """Put another configuration in force for requests to come; those under way end under the old one, uncut."""
        edition = self._make_edition(settings, self.edition)
        edition.upstreams.take_over(self.edition.upstreams)
        old, self.edition = self.edition, edition
        self.metrics.allow(routes=templates(settings), services=service_names(settings), limits=limit_names(settings))
        self.gateway.pages, self.gateway.handlers = edition.pages, edition.handlers
        self.gateway.policies = edition.policies
        self.lookups.share(shared_facts(settings, self.state, self.metrics))
        self.public_site.proxies = TrustedProxies(settings.trusted_proxies)
        edition.signing.begin(self.streaming.guard.keys_changed, old.signing)
        edition.health.start()
        old.retire()
        self.metrics.forget_services()

    def _make_public_site(self, settings: Settings) -> EdgeSite:
        return EdgeSite(
            self.gateway,
            clock=self._reactor,
            now=time.time,
            proxies=TrustedProxies(settings.trusted_proxies),
            limits=ChannelLimits(),
            max_connections=settings.max_connections or connections_allowed(reserve=2 * ADMIN_CONNECTIONS),
            max_per_client=settings.max_connections_per_client,
            on_connections=self.metrics.connections.set,
            on_refused=self.metrics.connection_refused,
        )

    def _make_edition(self, settings: Settings, older: Edition | None = None) -> Edition:
        return make_edition(
            settings,
            self._reactor,
            state=self.state,
            names=self._names,
            assets=self._assets,
            pages=self._pages,
            telemetry=self.metrics.tokens,
            proxy=self._proxy,
            handlers=self._make_handlers(settings),
            audit=self.auditing.trail,
            older=older,
        )

    def _make_streaming(self, settings: Settings) -> Streaming:
        return make_streaming(
            settings,
            self._reactor,
            state=self.state,
            metrics=self.metrics,
            proxy=self._proxy,
            upstreams=lambda: self.edition.upstreams,
            signers=lambda: self.edition.signers,
            grace_days=lambda: self.edition.policies.grace_days,
        )

    def _make_inheritance(self) -> Inheritance:
        return Inheritance(self.state.hierarchy, self.state.admission, self.auditing.trail, self._reactor.seconds)

    def _key_desk(self) -> KeyDesk:
        return KeyDesk(
            audit=self.auditing.trail, attempted=self.metrics.key_attempt, used=self.state.keys.used, now=time.time
        )

    def _key_calls(self) -> KeyCalls:
        return KeyCalls(
            keys=self.state.keys,
            revocations=self.state.revocations,
            tenants=self.state.tenants,
            router=lambda: self.edition.policies.router,
            pepper=lambda: pepper(self.edition.settings),
            clock=self._reactor,
            now=time.time,
            audit=self.auditing.trail,
        )

    def _make_handlers(self, settings: Settings) -> Mapping[Action, Handler]:
        handlers = make_handlers(
            settings,
            self._reactor,
            state=self.state,
            proxy=self._proxy,
            changes=self.changes,
            audit=self.auditing.trail,
            geocoded=self.metrics.geocoded,
        )
        return {**handlers, **self.streaming.handlers}

    def _admin_app(self, lifecycle: LifecycleView, token: str) -> AdminApp:
        standing = self._standing()
        limit_calls = TenantLimitCalls(
            limits=self.state.limits, standing=standing, now=time.time, audit=self.auditing.trail
        )
        alert_calls = AlertCalls(self.streaming.events, lambda result: self.metrics.alerts_posted.child(result).inc())
        publish_token = self.edition.settings.publish_token
        return AdminApp(
            token=token,
            publish_token=publish_token.get_secret_value() if publish_token is not None else None,
            hosts=self.edition.settings.admin_hosts,
            metrics=self.metrics.exposition,
            health=self._health,
            lifecycle=lifecycle,
            services=self._services,
            routes=self._routes,
            config=lambda: masked(self.edition.settings),
            connections=self.public_site.connections,
            log_level=self.logs,
            tables=(
                self._tenant_calls(standing).table(),
                limit_calls.table(),
                self._key_calls().table(),
                alert_calls.table(),
            ),
            now=time.time,
            audit=self.auditing.trail,
        )

    def _tenant_calls(self, standing: Standing) -> TenantCalls:
        notes = self.auditing.notes
        return TenantCalls(
            tenants=self.state.tenants,
            now=time.time,
            audit=self.auditing.trail,
            signals=self.state.signals,
            cut=self._cut,
            sections={
                "open": self._open,
                "limits": standing.of,
                "refusals": notes.refusals,
                "errors": notes.errors,
                "audit": self.auditing.about,
            },
        )

    def _cut(self, tenant_id: str) -> int:
        """End all that is under way and all that is held open for a tenant on this instance; how much that was."""
        return self.streaming.guard.cut(tenant_id) + self.gateway.crowd.cut(tenant_id)

    async def _open(self, tenant_id: str) -> object:
        held = self.streaming.guard.of(tenant_id)
        return {"streams": held["stream"], "sockets": held["socket"]}

    def _standing(self) -> Standing:
        state, gateway = self.state, self.gateway
        return Standing(
            store=state.admission, limits=state.limits, policies=lambda: gateway.policies, crowd=gateway.crowd
        )

    def _health(self) -> Reply:
        return self.edition.health_pages.public()

    def _services(self) -> object:
        return services_view(self.edition.health.services(), self.edition.upstreams.stats())

    def _routes(self) -> object:
        return routes_view(self.edition.policies.router.routes)
