"""The built-in route table, and what a routes file makes of it."""

from pathlib import Path

import pytest

from bakerygw.config.routes import (
    KNOWN_SERVICES,
    ConfigError,
    build_router,
    builtin_routes,
    load_routes,
    merge_routes,
)
from bakerygw.config.settings import load_settings
from bakerygw.core.http import WRITING_METHODS
from bakerygw.core.limits import LimitRule
from bakerygw.core.routing import Match, Route, Router

ROUTER = Router(builtin_routes(["loyalty_cards"]))
EXAMPLE = Path(__file__).parents[2] / "etc" / "routes.toml.example"


def at(path: str, router: Router = ROUTER) -> Route:
    match = router.match(path.encode())
    assert isinstance(match, Match), path
    return match.route


def file_routes(tmp_path: Path, text: str) -> tuple[Route, ...]:
    file = tmp_path / "routes.toml"
    file.write_text(text)
    return load_routes(str(file), ["loyalty_cards"])


def merged(tmp_path: Path, text: str) -> Router:
    return Router(merge_routes(builtin_routes(["loyalty_cards"]), file_routes(tmp_path, text)))


def mistakes(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        file_routes(tmp_path, text)
    return error.value.problems


def test_every_known_service_has_its_path() -> None:
    for path in set(KNOWN_SERVICES) - {"ai_insights", "notification", "tenant"}:
        route = at(f"/api/v1/{path}/x/y")
        assert (route.service, route.kind, route.auth, route.template) == (path, "proxy", True, f"/api/v1/{path}/**")
    assert at("/api/v1/ai-insights/x").service == "ai_insights"
    assert at("/api/v1/notifications").service == "notification"
    assert at("/api/v1/tenants").service == "tenant"
    assert at("/api/v1/loyalty-cards/1").service == "loyalty_cards"
    assert {route.service for route in ROUTER.routes} == {*KNOWN_SERVICES, "loyalty_cards", None}


@pytest.mark.parametrize("name", ["login", "register", "refresh"])
def test_sign_in_is_public_and_limited_by_exact_path_and_method(name: str) -> None:
    route = at(f"/api/v1/auth/{name}")
    assert (route.auth, route.tenant, route.auth_limit, route.methods) == (False, False, True, {"POST"})
    slashed = at(f"/api/v1/auth/{name}/")
    assert (slashed.auth, slashed.auth_limit, slashed.action) == (True, True, route.action)
    assert route.action is not None
    for path in (f"/api/v1/auth/{name}.json", f"/api/v1/auth/{name}/x"):
        assert (at(path).auth, at(path).auth_limit) == (True, False)


def test_a_customer_can_always_sign_in_and_pay() -> None:
    for path in ("/api/v1/auth/logout", "/api/v1/auth/login", "/api/v1/tenants/t/subscription/plan"):
        assert at(path).subscription_exempt
        assert at(path).read_only_exempt
    for path in ("/api/v1/tenants/t", "/api/v1/tenants/t/settings", "/api/v1/sales"):
        assert not at(path).subscription_exempt
        assert not at(path).read_only_exempt


def test_deleting_a_tenant_and_subscription_writes_are_critical() -> None:
    assert at("/api/v1/tenants/t").critical == at("/api/v1/tenants/t/").critical == {"DELETE"}
    assert at("/api/v1/tenants/t/subscription").critical == WRITING_METHODS
    assert at("/api/v1/tenants/t/subscription/plan").critical == WRITING_METHODS
    assert at("/api/v1/tenants/t/sales").critical == frozenset()


@pytest.mark.parametrize(
    "path", ["/health", "/api/v1/health", "/openapi.json", "/docs", "/docs/swagger-ui.css", "/bakerygw.js"]
)
def test_the_gateways_own_pages_are_public_and_read_only(path: str) -> None:
    route = at(path)
    assert (route.kind, route.auth, route.tenant, route.methods) == ("local", False, False, {"GET", "HEAD"})


@pytest.mark.parametrize(
    ("path", "method", "kind", "read_only_exempt"),
    [
        ("/api/v1/alerts/stream", "GET", "stream", False),
        ("/api/v1/alerts/ticket", "POST", "local", True),
        ("/api/v1/training/ws", "GET", "stream", False),
        ("/api/v1/geocode", "POST", "local", True),
    ],
)
def test_what_the_gateway_does_itself_is_known_and_authenticated(
    path: str, method: str, kind: str, read_only_exempt: bool
) -> None:
    route = at(path)
    assert (route.kind, route.auth, route.read_only_exempt) == (kind, True, read_only_exempt)
    assert method in (route.methods or ())


def test_a_file_adds_longer_prefixes_that_take_after_the_built_in_ones(tmp_path: Path) -> None:
    router = merged(
        tmp_path,
        """
        [[route]]
        prefix = "/api/v1/sales/reports"
        methods = ["GET"]
        min_tier = "professional"
        limit = { requests = 5, window_seconds = 30, shadow = true }
        first_byte_timeout = 60
        max_body = 1000
        [[route]]
        prefix = "/api/v1/tenants/{id}/subscription/invoices"
        [[route]]
        prefix = "/api/v1/auth/sessions"
        """,
    )
    reports = at("/api/v1/sales/reports/2025", router)
    assert (reports.service, reports.template) == ("sales", "/api/v1/sales/reports/**")
    assert (reports.methods, reports.min_tier) == ({"GET"}, "professional")
    assert reports.limit == LimitRule(name="/api/v1/sales/reports", requests=5, window_s=30, shadow=True)
    assert (reports.first_byte_timeout_s, reports.max_body) == (60.0, 1000)
    invoices = at("/api/v1/tenants/t/subscription/invoices", router)
    assert (invoices.subscription_exempt, invoices.critical) == (True, WRITING_METHODS)
    assert at("/api/v1/auth/sessions", router).subscription_exempt
    assert at("/api/v1/sales/other", router) == at("/api/v1/sales")


def test_a_file_replaces_a_built_in_route_of_the_same_prefix(tmp_path: Path) -> None:
    router = merged(
        tmp_path,
        """
        [[route]]
        prefix = "/api/v1/auth/login"
        first_byte_timeout = 5
        [[route]]
        prefix = "/api/v1/sales"
        service = "loyalty_cards"
        critical = true
        read_only_exempt = true
        [[route]]
        prefix = "/api/v1/tenants/{id}/subscription"
        critical = false
        """,
    )
    login = at("/api/v1/auth/login", router)
    assert (login.exact, login.auth, login.auth_limit, login.first_byte_timeout_s) == (True, False, True, 5.0)
    sales = at("/api/v1/sales/1", router)
    assert (sales.service, sales.critical, sales.read_only_exempt) == ("loyalty_cards", WRITING_METHODS, True)
    assert at("/api/v1/tenants/t/subscription", router).critical == frozenset()
    assert len(router.routes) == len(ROUTER.routes)


def test_a_public_route_needs_no_tenant(tmp_path: Path) -> None:
    text = '[[route]]\nprefix = "/hooks"\nservice = "external"\nauth = "public"\nmethods = ["POST"]\n'
    hooks = at("/hooks/x", merged(tmp_path, text))
    assert (hooks.auth, hooks.tenant, hooks.service) == (False, False, "external")


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("limit = {requests = 0, window_seconds = 1}", "route[1].limit.requests"),
        ("limit = {requests = true, window_seconds = 1}", "route[1].limit.requests"),
        ("limit = {requests = 1}", "route[1].limit.window_seconds"),
        ("limit = {requests = 1, window_seconds = 1, burst = 2}", "route[1].limit.burst"),
        ("pirority = 1", "route[1].pirority"),
        ('auth = "none"', "route[1].auth"),
        ('tenant = "public"', "route[1].tenant"),
        ('methods = ["get"]', "route[1].methods[0]"),
        ("methods = []", "route[1].methods"),
        ('min_tier = "gold"', "route[1].min_tier"),
        ('critical = "yes"', "route[1].critical"),
        ("first_byte_timeout = 0", "route[1].first_byte_timeout"),
        ("first_byte_timeout = inf", "route[1].first_byte_timeout"),
        ("max_body = -1", "route[1].max_body"),
        ('service = "unheard"', "route[1].service"),
        ('auth = "public"\ntenant = "required"', "route[1].tenant"),
        ('auth = "public"\nmin_tier = "starter"', "route[1].min_tier"),
        ('tenant = "none"\ncritical = true', "route[1].critical"),
    ],
)
def test_a_mistake_is_told_with_its_path(tmp_path: Path, line: str, where: str) -> None:
    text = f'[[route]]\nprefix = "/api/v1/pos"\n[[route]]\nprefix = "/api/v1/sales/x"\n{line}\n'
    [problem] = mistakes(tmp_path, text)
    assert problem.startswith(f"{where}: ")


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "/",
        "api",
        "/api/",
        "/a//b",
        "/a/../b",
        "/a/.",
        "/a%20b",
        "/a b",
        "/a?b",
        "/é",
        "/" + "a" * 200,
        "/x/{id}",
        "/api/v1/tenants/a/{id}",
        "/api/v1/tenants/{id}/x/{id}",
        "/health",
        "/api/v1/health",
        "/docs",
        "/docs/x",
        "/openapi.json",
        "/api/v1/alerts/stream",
        "/api/v1/training/ws",
        "/api/v1/limits",
    ],
)
def test_a_prefix_that_cannot_be_is_refused(tmp_path: Path, prefix: str) -> None:
    [problem] = mistakes(tmp_path, f'[[route]]\nprefix = "{prefix}"\nservice = "sales"\n')
    assert problem.startswith("route[0].prefix: ")


def test_every_entrys_problems_are_told(tmp_path: Path) -> None:
    text = '[[route]]\nprefix = "/x"\n[[route]]\nprefix = "/api/v1/pos"\n[[route]]\nprefix = "/api/v1/pos"\n'
    assert [line.partition(":")[0] for line in mistakes(tmp_path, text)] == ["route[0].service", "route[2].prefix"]


@pytest.mark.parametrize(("text", "word"), [("[[route", "TOML"), ("routes = 1", "routes: unknown key")])
def test_a_file_that_is_no_routes_file_is_told(tmp_path: Path, text: str, word: str) -> None:
    [problem] = mistakes(tmp_path, text)
    assert word in problem


def test_the_example_holds_what_it_says() -> None:
    router = build_router(load_settings({"ROUTES_FILE": str(EXAMPLE)}, demo=True))
    assert at("/api/v1/sales/reports/x", router).limit is not None
    assert at("/webhooks/payments", router).auth is False
    assert at("/api/v1/procurement/orders", router).critical == WRITING_METHODS
    register = router.match(b"/api/v1/tenants/register")
    assert register is not None
    assert register.tenant_id is None
