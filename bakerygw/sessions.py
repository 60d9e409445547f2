"""The composition root's part for refresh tokens, signing out, and the sessions of browsers."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bakerygw.config.settings import Settings
from bakerygw.config.values import session_secrets
from bakerygw.core.routing import Action
from bakerygw.edge.gateway import Handler
from bakerygw.edge.policies import Policies
from bakerygw.edge.proxy import Proxy
from bakerygw.edge.signin.refreshing import Refreshing
from bakerygw.edge.signin.renewal import Renewal
from bakerygw.edge.signin.session_calls import SessionCalls
from bakerygw.edge.signin.sessions import Sessions
from bakerygw.edge.signin.spending import Spending
from bakerygw.ports import Audit
from bakerygw.state import SharedState
from bakerygw.tokens.session_seal import SessionSeal


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionParts:
    """Policies that know of sessions, where there are some, and the handlers of the auth service's routes."""

    sessions: Sessions | None
    policies: Policies
    handlers: Mapping[Action, Handler]


def make_session_parts(
    settings: Settings, reactor: Any, *, state: SharedState, proxy: Proxy, policies: Policies, audit: Audit
) -> SessionParts:
    """What the settings ask for, over these policies."""
    leeway_s = settings.jwt_leeway_seconds
    spending = Spending(
        state.records, state.revocations, state.admission, clock=reactor, now=time.time, leeway_s=leeway_s
    )
    sessions = _sessions(settings, reactor, state=state, policies=policies, spending=spending)
    calls = SessionCalls(proxy, sessions) if sessions is not None else None
    refreshing = Refreshing(
        proxy,
        spending,
        state.revocations,
        sessions=calls,
        audit=audit,
        exchange_s=_exchange_s(settings),
        leeway_s=leeway_s,
    )
    handlers: dict[Action, Handler] = {"refresh": refreshing.refresh, "logout": refreshing.logout}
    if sessions is None or calls is None:
        return SessionParts(sessions=None, policies=policies, handlers=handlers)
    return SessionParts(
        sessions=sessions,
        policies=replace(policies, credentials={**policies.credentials, "session": sessions}, sessions=sessions),
        handlers={**handlers, "login": calls.login, "session": calls.session},
    )


def _sessions(
    settings: Settings, reactor: Any, *, state: SharedState, policies: Policies, spending: Spending
) -> Sessions | None:
    if not settings.session_cookies:
        return None
    secrets = session_secrets(settings.session_secret) if settings.session_secret is not None else ()
    return Sessions(
        policies.credentials["bearer"],
        SessionSeal(secrets),
        state.records,
        revocations=state.revocations,
        spending=spending,
        renewal=Renewal(policies.upstreams, spending, reactor),
        origins=policies.cors.origins,
        now=time.time,
        seconds=reactor.seconds,
        leeway_s=settings.jwt_leeway_seconds,
        cache_ttl_s=settings.token_cache_ttl_seconds,
    )


def _exchange_s(settings: Settings) -> float:
    """More than any exchange can take: two tries to connect, the upload, the wait for an answer, and some slack."""
    connecting_s = 2 * settings.upstream_connect_timeout
    return connecting_s + settings.upstream_idle_timeout + settings.upstream_first_byte_timeout + 10
