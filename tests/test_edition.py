"""What a configuration comes to: nothing that is routed is without an answer."""

from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock

from bakerygw.config.routes import builtin_routes
from bakerygw.config.settings import load_settings
from bakerygw.core.routing import Action, Route
from bakerygw.edge.proxy import Proxy
from bakerygw.edition import check_answered, make_edition
from bakerygw.state import make_state
from bakerygw.upstream.names import Names
from tests.minting import Issuer
from tests.tokens.token_fakes import Told

PEM = Issuer(algorithm="EdDSA").public_pem
PAGES = {"/health", "/api/v1/health", "/openapi.json", "/docs", "/bakerygw.js"}
ACTIONS: set[Action] = {"alerts", "ticket", "training", "geocode", "limits"}


def test_all_that_the_gateway_answers_by_itself_is_needed_for_its_own_routes() -> None:
    check_answered(builtin_routes(), PAGES, ACTIONS)
    for missing in sorted(PAGES):
        with pytest.raises(ValueError, match=rf"^nothing answers {missing}$"):
            check_answered(builtin_routes(), PAGES - {missing}, ACTIONS)
    for action in sorted(ACTIONS):
        with pytest.raises(ValueError, match=r"^nothing answers /api/v1/[a-z/]+$"):
            check_answered(builtin_routes(), PAGES, ACTIONS - {action})


def test_what_a_service_answers_needs_no_handler() -> None:
    login = Route(prefix="/login", template="/login", kind="proxy", service="auth", action="login")
    check_answered([login], {}, {})


def test_a_gateway_without_a_handler_for_one_of_its_routes_is_not_made() -> None:
    reactor: Any = MemoryReactorClock()
    telemetry: Any = Told()
    settings = load_settings({"JWT_ALGORITHM": "EdDSA", "JWT_PUBLIC_KEY": PEM})
    state = make_state(settings, reactor, telemetry, telemetry)
    with pytest.raises(ValueError, match=r"^nothing answers .*/api/v1/alerts/stream"):
        make_edition(
            settings,
            reactor,
            state=state,
            names=Names(reactor),
            assets={},
            pages={},
            telemetry=telemetry,
            proxy=Proxy(reactor),
            handlers={},
            audit=lambda *_, **__: None,
        )
