"""The composition root's part for what is built anew when the configuration is read again."""

import time
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bakerygw import __version__
from bakerygw.config.routes import build_router
from bakerygw.config.settings import Settings
from bakerygw.core.cors import CorsPolicy
from bakerygw.core.limits import TENANT_RULE, LimitRule
from bakerygw.core.routing import Action, Route
from bakerygw.core.stacks import stacks_of
from bakerygw.edge.conversation import UNREADABLE
from bakerygw.edge.gateway import Handler, LocalPage
from bakerygw.edge.geocoding.handler import SERVICE as GEOCODER
from bakerygw.edge.limits.crowd import CONCURRENCY
from bakerygw.edge.pages.apidocs import ApiDocs, Asset
from bakerygw.edge.pages.browser_module import load_browser_module
from bakerygw.edge.pages.health import HealthPages
from bakerygw.edge.policies import Policies
from bakerygw.edge.proxy import Proxy
from bakerygw.edge.signin.sessions import Sessions
from bakerygw.ports import Audit, Credentials, Scheme, TokenTelemetry
from bakerygw.sessions import make_session_parts
from bakerygw.signing import Signing, make_signing
from bakerygw.state import SharedState
from bakerygw.telemetry.metrics import Metrics
from bakerygw.tokens.api_keys import ApiKeys
from bakerygw.upstream.client import UpstreamClient
from bakerygw.upstream.health import HealthChecks, HttpProbe
from bakerygw.upstream.names import Names


@dataclass(frozen=True, slots=True, kw_only=True)
class Edition:
    """What is built anew when the configuration is read again."""

    settings: Settings
    policies: Policies
    signing: Signing
    keys: ApiKeys
    sessions: Sessions | None
    upstreams: UpstreamClient
    probe: HttpProbe
    health: HealthChecks
    health_pages: HealthPages
    pages: Mapping[str, LocalPage]
    handlers: Mapping[Action, Handler]

    def __post_init__(self) -> None:
        """Raises `ValueError` if nothing would answer one of the routes."""
        check_answered(self.policies.router.routes, self.pages, self.handlers)

    @property
    def signers(self) -> Collection[bytes] | None:
        """`Claims.signer` of all credentials in force is one of these; `None` while the issuer's keys are not known."""
        of_tokens = self.signing.verifier.signers
        if of_tokens is None:
            return None
        of_sessions = () if self.sessions is None else self.sessions.signers(of_tokens)
        return {*of_tokens, *of_sessions, self.keys.signer}

    def retire(self) -> None:
        """Stop probing and keep no connection to services; requests under way go on."""
        self.health.stop()
        self.probe.close()
        self.upstreams.retire()

    def close(self) -> None:
        """Stop probing and end every connection to services."""
        self.signing.close()
        self.health.stop()
        self.probe.close()
        self.upstreams.close()


def make_edition(
    settings: Settings,
    reactor: Any,
    *,
    state: SharedState,
    names: Names,
    assets: Mapping[str, Asset],
    pages: Mapping[str, LocalPage],
    telemetry: TokenTelemetry,
    proxy: Proxy,
    handlers: Mapping[Action, Handler],
    audit: Audit,
    older: Edition | None = None,
) -> Edition:
    """The edition that the settings ask for, after `older`; nothing is opened.

    Raises `ValueError` if a route of it would be answered by nobody.
    """
    signing = make_signing(
        settings, reactor, state=state, names=names, telemetry=telemetry, older=older.signing if older else None
    )
    upstreams = _upstreams(settings, reactor, names)
    urls = [url for service_urls in settings.services.values() for url in service_urls]
    probe = HttpProbe(reactor, urls, ca_file=settings.upstream_ca_file, names=names)
    health = HealthChecks(
        probe,
        settings.services,
        reactor,
        time.time,
        every_s=settings.health_check_interval,
        ttl_s=settings.health_cache_ttl_seconds,
        on_look=upstreams.looked,
    )
    health_pages = HealthPages(
        health=health,
        link=state.status,
        services=settings.services,
        breaker=upstreams.breaker,
        version=__version__,
        now=time.time,
    )
    keys = ApiKeys(state.keys, pepper=pepper(settings), now=time.time, clock=reactor.seconds)
    policies = make_policies(settings, upstreams, {"bearer": signing.bearer, "key": keys})
    sessions = make_session_parts(settings, reactor, state=state, proxy=proxy, policies=policies, audit=audit)
    return Edition(
        settings=settings,
        policies=sessions.policies,
        signing=signing,
        keys=keys,
        sessions=sessions.sessions,
        upstreams=upstreams,
        probe=probe,
        health=health,
        health_pages=health_pages,
        pages={**_pages(health_pages, settings, assets), **pages},
        handlers={**handlers, **sessions.handlers},
    )


def check_answered(routes: Iterable[Route], pages: Container[str], handlers: Container[Action]) -> None:
    """Raises `ValueError` that names each route which neither a service, nor a page, nor a handler would answer."""
    own = [route for route in routes if route.kind != "proxy" and route.prefix not in pages]
    forgotten = [route.prefix for route in own if route.action is None or route.action not in handlers]
    if forgotten:
        raise ValueError(f"nothing answers {', '.join(forgotten)}")


def make_policies(settings: Settings, upstreams: UpstreamClient, credentials: Mapping[Scheme, Credentials]) -> Policies:
    """The policies that the settings ask for."""
    window_s = settings.rate_limit_window_seconds
    return Policies(
        router=build_router(settings),
        cors=CorsPolicy(
            origins=frozenset(origin.encode("ascii") for origin in settings.cors_origins),
            credentials=settings.cors_allow_credentials,
        ),
        credentials=credentials,
        upstreams=upstreams,
        general_limit=LimitRule(name="default", requests=settings.rate_limit_requests, window_s=window_s),
        auth_limit=LimitRule(name="auth", requests=settings.auth_rate_limit_requests, window_s=window_s, by="address"),
        grace_days=settings.subscription_grace_days,
        max_body_bytes=settings.max_request_body_bytes,
        stacks=stacks_of(settings.limit_policies, settings.routes),
        max_concurrent=settings.tenant_max_concurrent,
        https_only=settings.environment == "prod",
    )


def _upstreams(settings: Settings, reactor: Any, names: Names) -> UpstreamClient:
    services = {**settings.services, **{f"demo:{name}": urls for name, urls in settings.demo_services.items()}}
    return UpstreamClient(
        reactor,
        services,
        connect_timeout_s=settings.upstream_connect_timeout,
        first_byte_timeout_s=settings.upstream_first_byte_timeout,
        idle_timeout_s=settings.upstream_idle_timeout,
        keepalive_s=settings.upstream_keepalive_seconds,
        ca_file=settings.upstream_ca_file,
        names=names,
    )


def pepper(settings: Settings) -> bytes:
    """What the records of API keys are sealed with, besides the keys themselves."""
    return settings.api_key_secret.get_secret_value().encode() if settings.api_key_secret is not None else b""


def _pages(health: HealthPages, settings: Settings, assets: Mapping[str, Asset]) -> Mapping[str, LocalPage]:
    docs = ApiDocs(routes=settings.routes, version=__version__, assets=assets)
    answers: dict[str, Callable[..., Any]] = {
        "/health": health.reply_to,
        "/api/v1/health": health.reply_to,
        "/openapi.json": docs.reply_to,
        "/docs": docs.reply_to,
        "/bakerygw.js": load_browser_module().reply_to,
    }
    return answers


def templates(settings: Settings) -> list[str]:
    """The labels of all routes, for metrics."""
    return [UNREADABLE, *(route.template for route in settings.routes)]


def limit_names(settings: Settings) -> list[str]:
    """The names of all limits, for metrics."""
    of_routes = [route.limit.name for route in settings.routes if route.limit is not None]
    return ["default", "auth", TENANT_RULE, CONCURRENCY, *of_routes, *(it.rule.name for it in settings.limit_policies)]


def service_names(settings: Settings) -> list[str]:
    """The names of all services, for metrics; those of demo sessions begin with `demo:`."""
    return [*settings.services, *(f"demo:{name}" for name in settings.demo_services), GEOCODER]


def refresh_gauges(metrics: Metrics, state: SharedState, edition: Edition, now: float) -> None:
    """Bring up to date what is looked at only when metrics are asked for; `now` in seconds of the reactor's clock."""
    mirror = state.mirror
    trusted = state.embedded is not None or mirror.trusted(now)
    metrics.mirror(trusted, hits=mirror.hits, misses=mirror.misses)
    keys = edition.signing.keys
    metrics.tokens.key_set_age_s = None if keys is None else keys.age_s
    for name, health in edition.health.services().items():
        metrics.service_health(name, health.status)
    for name, urls in edition.upstreams.stats().items():
        idle, active = sum(url.idle for url in urls), sum(url.in_use for url in urls)
        metrics.pool_connections(name, idle=idle, active=active)
        metrics.breaker_state(name, [url.breaker for url in urls])
