"""The composition root's part for what is built anew when the configuration is read again."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bakerygw import __version__
from bakerygw.config.routes import build_router
from bakerygw.config.settings import Settings
from bakerygw.core.cors import CorsPolicy
from bakerygw.core.limits import LimitRule
from bakerygw.core.routing import Action
from bakerygw.edge.apidocs import ApiDocs, Asset
from bakerygw.edge.conversation import UNREADABLE
from bakerygw.edge.gateway import Handler, LocalPage
from bakerygw.edge.healthpages import HealthPages
from bakerygw.edge.policies import Policies
from bakerygw.ports import Audit, Credentials, Scheme
from bakerygw.signing import make_signing
from bakerygw.state import SharedState
from bakerygw.tokens.bearer import BearerTokens
from bakerygw.tokens.keys import PemKey, load_public_key
from bakerygw.tokens.verifier import TokenVerifier
from bakerygw.upstream.client import UpstreamClient
from bakerygw.upstream.health import HealthChecks, HttpProbe
from bakerygw.upstream.names import Names


@dataclass(frozen=True, slots=True, kw_only=True)
class Edition:
    """What is built anew when the configuration is read again."""

    settings: Settings
    policies: Policies
    upstreams: UpstreamClient
    probe: HttpProbe
    health: HealthChecks
    health_pages: HealthPages
    pages: Mapping[str, LocalPage]
    handlers: Mapping[Action, Handler]

    def retire(self) -> None:
        """Stop probing and keep no connection to services; requests under way go on."""
        self.health.stop()
        self.probe.close()
        self.upstreams.retire()

    def close(self) -> None:
        """Stop probing and end every connection to services."""
        self.health.stop()
        self.probe.close()
        self.upstreams.close()


def make_edition(
    settings: Settings, reactor: Any, *, state: SharedState, names: Names, assets: Mapping[str, Asset], audit: Audit
) -> Edition:
    """The edition that the settings ask for; nothing is opened."""
    services = {**settings.services, **{f"demo:{name}": urls for name, urls in settings.demo_services.items()}}
    upstreams = UpstreamClient(
        reactor,
        services,
        connect_timeout_s=settings.upstream_connect_timeout,
        first_byte_timeout_s=settings.upstream_first_byte_timeout,
        idle_timeout_s=settings.upstream_idle_timeout,
        keepalive_s=settings.upstream_keepalive_seconds,
        ca_file=settings.upstream_ca_file,
        names=names,
    )
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
    policies = make_policies(settings, upstreams)
    signing = make_signing(settings, reactor, state=state, policies=policies, audit=audit)
    return Edition(
        settings=settings,
        policies=signing.policies,
        upstreams=upstreams,
        probe=probe,
        health=health,
        health_pages=health_pages,
        pages=_pages(health_pages, settings, assets),
        handlers=signing.handlers,
    )


def make_policies(settings: Settings, upstreams: UpstreamClient) -> Policies:
    """The policies that the settings ask for."""
    window_s = settings.rate_limit_window_seconds
    return Policies(
        router=build_router(settings),
        cors=CorsPolicy(
            origins=frozenset(origin.encode("ascii") for origin in settings.cors_origins),
            credentials=settings.cors_allow_credentials,
        ),
        credentials=make_credentials(settings),
        upstreams=upstreams,
        general_limit=LimitRule(name="default", requests=settings.rate_limit_requests, window_s=window_s),
        auth_limit=LimitRule(name="auth", requests=settings.auth_rate_limit_requests, window_s=window_s),
        grace_days=settings.subscription_grace_days,
        max_body_bytes=settings.max_request_body_bytes,
        https_only=settings.environment == "prod",
    )


def make_credentials(settings: Settings) -> Mapping[Scheme, Credentials]:
    """What callers may identify themselves by."""
    verifier = TokenVerifier(
        PemKey(load_public_key(settings.jwt_public_key or "", settings.jwt_algorithm)),
        algorithm=settings.jwt_algorithm,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        leeway_s=settings.jwt_leeway_seconds,
        cache_ttl_s=settings.token_cache_ttl_seconds,
        now=time.time,
    )
    return {"bearer": BearerTokens(verifier)}


def _pages(health: HealthPages, settings: Settings, assets: Mapping[str, Asset]) -> Mapping[str, LocalPage]:
    docs = ApiDocs(routes=settings.routes, version=__version__, assets=assets)
    answers: dict[str, Callable[..., Any]] = {
        "/health": health.reply_to,
        "/api/v1/health": health.reply_to,
        "/openapi.json": docs.reply_to,
        "/docs": docs.reply_to,
    }
    return answers


def templates(settings: Settings) -> list[str]:
    """The labels of all routes, for metrics."""
    return [UNREADABLE, *(route.template for route in settings.routes)]


def service_names(settings: Settings) -> list[str]:
    """The names of all services, for metrics; those of demo sessions begin with `demo:`."""
    return [*settings.services, *(f"demo:{name}" for name in settings.demo_services)]
