"""The composition root's part for the handlers of routes with an action."""

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from bakerygw import __version__
from bakerygw.config.checks import is_public_nominatim, may_geocode
from bakerygw.config.settings import Settings
from bakerygw.core.routing import Action
from bakerygw.edge.gateway import Handler
from bakerygw.edge.geocoding.answers import Answers
from bakerygw.edge.geocoding.handler import Geocoding
from bakerygw.edge.geocoding.turns import Turns
from bakerygw.edge.limits.page import LimitsPage
from bakerygw.edge.proxy import Proxy
from bakerygw.edge.tenants.changes import SubscriptionChanges
from bakerygw.edge.tenants.lookups import Lookups
from bakerygw.edge.tenants.subscriptions import SubscriptionHandler
from bakerygw.ports import Audit, SharedFacts
from bakerygw.state import SharedState
from bakerygw.stores.sealed import SealedRecords
from bakerygw.telemetry.metrics import Metrics
from bakerygw.upstream.enquiries import ServiceEnquiries
from bakerygw.upstream.nominatim import Nominatim


def make_handlers(
    settings: Settings,
    reactor: Any,
    *,
    state: SharedState,
    proxy: Proxy,
    changes: SubscriptionChanges,
    audit: Audit,
    geocoded: Callable[[str], None],
) -> Mapping[Action, Handler]:
    """The handlers by their routes' action; `geocoded` counts look-ups of addresses."""
    return {
        "subscription": SubscriptionHandler(proxy, changes, audit).reply_to,
        "limits": LimitsPage(state.admission).reply_to,
        "geocode": make_geocoding(settings, reactor, state, geocoded).reply_to,
    }


def make_geocoding(settings: Settings, reactor: Any, state: SharedState, count: Callable[[str], None]) -> Geocoding:
    """What looks addresses up, at the server that the settings name."""
    public = is_public_nominatim(settings.nominatim_url)
    geocoder = None
    if may_geocode(settings):
        geocoder = Nominatim(
            reactor,
            settings.nominatim_url,
            user_agent=settings.nominatim_user_agent or f"bakerygw/{__version__}",
            now=time.time,
            ca_file=None if public else settings.upstream_ca_file,
        )
    return Geocoding(
        geocoder,
        Answers(state.records if state.embedded is None else None, now=time.time),
        Turns(state.records, "geocode:slot", clock=reactor, now=time.time, token=lambda: secrets.token_hex(8)),
        clock=reactor,
        count=count,
    )


def make_lookups(settings: Settings, reactor: Any, state: SharedState, metrics: Metrics) -> Lookups:
    """What asks services for what tokens leave out."""
    return Lookups(
        ServiceEnquiries(reactor),
        state.tenants,
        revocations=state.revocations,
        shared=shared_facts(settings, state, metrics),
        telemetry=metrics.lookups,
        now=time.time,
    )


def shared_facts(settings: Settings, state: SharedState, metrics: Metrics) -> SharedFacts | None:
    """What is looked up is shared with other instances only under a seal."""
    secret = settings.token_cache_secret
    if secret is None or state.embedded is not None:
        return None
    return SealedRecords(state.records, secret.get_secret_value(), metrics.lookups.forged)
