"""The composition root's part for signing in and out: refresh tokens and the browsers' sessions."""

import time
from collections.abc import Mapping
from typing import Any

from bakerygw.config.settings import Settings
from bakerygw.core.routing import Action
from bakerygw.edge.gateway import Handler
from bakerygw.edge.proxy import Proxy
from bakerygw.edge.refreshing import Refreshing
from bakerygw.edge.spending import Spending
from bakerygw.ports import Audit
from bakerygw.state import SharedState


def make_spending(settings: Settings, reactor: Any, state: SharedState) -> Spending:
    """The uses of refresh tokens."""
    return Spending(
        state.records,
        state.revocations,
        state.admission,
        clock=reactor,
        now=time.time,
        leeway_s=settings.jwt_leeway_seconds,
    )


def signing_handlers(
    settings: Settings, reactor: Any, *, state: SharedState, spending: Spending, audit: Audit
) -> Mapping[Action, Handler]:
    """The handlers of the auth service's routes beside which the gateway acts."""
    refreshing = Refreshing(
        Proxy(reactor),
        spending,
        state.revocations,
        sessions=None,
        audit=audit,
        now=time.time,
        # Two tries to connect, the upload, the wait for an answer, and some slack.
        exchange_s=2 * settings.upstream_connect_timeout
        + settings.upstream_idle_timeout
        + settings.upstream_first_byte_timeout
        + 10,
        leeway_s=settings.jwt_leeway_seconds,
    )
    return {"refresh": refreshing.refresh, "logout": refreshing.logout}
