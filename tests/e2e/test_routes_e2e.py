"""Every path of the gateway as a client reaches it: which service answers, and what is answered without one."""

import json
from collections.abc import Iterator

import pytest

from tests.e2e.harness import Answer, Gateway
from tests.e2e.stage import NO_LIMITS, Received, Stage, staged
from tests.minting import TENANT_ID, Issuer

PREFIXES = {
    "auth": "auth",
    "sales": "sales",
    "forecasting": "forecasting",
    "training": "training",
    "inventory": "inventory",
    "production": "production",
    "recipes": "recipes",
    "orders": "orders",
    "suppliers": "suppliers",
    "procurement": "procurement",
    "pos": "pos",
    "external": "external",
    "notifications": "notification",
    "ai-insights": "ai_insights",
    "orchestrator": "orchestrator",
    "tenants": "tenant",
    "loyalty-cards": "loyalty_cards",
}
"""Path segment -> service; the last one is known by its variable alone."""

OPENED = [
    (b"GET", b"/api/v1/alerts/stream"),
    (b"POST", b"/api/v1/alerts/ticket"),
    (b"GET", b"/api/v1/training/ws"),
]
ANONYMOUS = b"Host: gateway.example\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture(scope="module")
def shared_stage(issuer: Issuer) -> Iterator[Stage]:
    with staged(issuer, services=PREFIXES.values()) as it:
        yield it


@pytest.fixture
def stage(shared_stage: Stage) -> Stage:
    shared_stage.reset()
    return shared_stage


def asked_of(stage: Stage) -> dict[str, list[bytes]]:
    """The targets that each service was asked for, services that were not left out."""
    arrived = {"sales": stage.arrived()}  # first, so that nothing is on its way any more
    requests = {name: service.requests for name, service in stage.services.items()} | arrived
    return {name: [request.target for request in asked] for name, asked in requests.items() if asked}


def code(received: Received) -> str:
    """The code of a problem, whose form is checked too."""
    problem = json.loads(received.body)
    assert received.values("content-type") == [b"application/problem+json"]
    assert problem["status"] == received.status
    assert problem["type"] == "https://bakery-ia.example/problems/" + problem["code"]
    assert problem["request_id"].encode() == received.values("x-request-id")[0]
    return str(problem["code"])


class TestServices:
    @pytest.mark.parametrize(("segment", "service"), PREFIXES.items())
    def test_each_prefix_leads_to_its_service_alone(self, stage: Stage, segment: str, service: str) -> None:
        base = f"/api/v1/{segment}".encode()

        statuses = [stage.get(base + rest).status for rest in (b"", b"?a=1", b"/", b"/" + TENANT_ID.encode())]

        assert statuses == [200] * 4
        assert asked_of(stage) == {service: [base, base + b"?a=1", base + b"/", base + b"/" + TENANT_ID.encode()]}

    @pytest.mark.parametrize("segment", [segment for segment in PREFIXES if segment != "sales"])
    def test_none_is_reached_without_a_token(self, stage: Stage, segment: str) -> None:
        received = stage.ask(b"GET /api/v1/%b/x HTTP/1.1\r\n" % segment.encode() + ANONYMOUS)

        assert (received.status, code(received)) == (401, "token-missing")
        assert received.values("www-authenticate") == [b"Bearer"]
        assert asked_of(stage) == {}

    @pytest.mark.parametrize("name", [b"login", b"register"])
    def test_signing_in_needs_no_token(self, stage: Stage, name: bytes) -> None:
        target = b"/api/v1/auth/" + name

        received = stage.ask(b"POST %b?next=x HTTP/1.1\r\n" % target + ANONYMOUS)

        assert received.status == 200
        assert asked_of(stage) == {"auth": [target + b"?next=x"]}

    def test_refreshing_needs_no_access_token(self, stage: Stage) -> None:
        body = b'{"refresh_token": "opaque"}'
        lines = b"Content-Type: application/json\r\n" + ANONYMOUS.replace(b": 0", b": %d" % len(body))

        received = stage.ask(b"POST /api/v1/auth/refresh HTTP/1.1\r\n" + lines + body)

        assert received.status == 200
        assert asked_of(stage) == {"auth": [b"/api/v1/auth/refresh"]}

    @pytest.mark.parametrize(
        "target",
        [
            *(b"/api/v1/auth/login/", b"/api/v1/auth/login.json", b"/api/v1/auth/login/x", b"/api/v1/auth/Login"),
            *(b"/api/v1/auth/logout", b"/api/v1/auth"),
        ],
    )
    def test_what_only_looks_like_signing_in_does(self, stage: Stage, target: bytes) -> None:
        received = stage.ask(b"POST %b HTTP/1.1\r\n" % target + ANONYMOUS)

        assert (received.status, code(received)) == (401, "token-missing")
        assert asked_of(stage) == {}

    def test_signing_in_is_a_post(self, stage: Stage) -> None:
        received = stage.ask(b"GET /api/v1/auth/login HTTP/1.1\r\n" + ANONYMOUS)

        assert (received.status, code(received), received.values("allow")) == (405, "method-not-allowed", [b"POST"])
        assert asked_of(stage) == {}

    @pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"])
    def test_every_method_reaches_a_service_as_itself(self, stage: Stage, method: bytes) -> None:
        assert stage.ask(stage.head(b"/api/v1/orders/7", method=method)).status == 200

        assert [request.method for request in stage.services["orders"].requests] == [method.decode()]


class TestOwnPages:
    @pytest.mark.parametrize(("method", "target"), OPENED)
    def test_what_stays_open_needs_a_token(self, stage: Stage, method: bytes, target: bytes) -> None:
        received = stage.ask(method + b" " + target + b" HTTP/1.1\r\n" + ANONYMOUS)

        assert (received.status, code(received)) == (401, "token-missing")

    def test_health_names_every_service_and_is_public(self, stage: Stage) -> None:
        with stage.gateway.client() as client:
            short, long = client.get("/health"), client.get("/api/v1/health")

        assert (short.status_code, long.status_code) == (200, 200)
        assert set(short.json()) == {"status", "version", "services", "redis", "timestamp"}
        names = {service.replace("_", "-") for service in PREFIXES.values()}
        assert set(short.json()["services"]) == set(long.json()["services"]) == names
        assert asked_of(stage) == {}

    @pytest.mark.parametrize("target", [b"/health", b"/api/v1/health", b"/openapi.json"])
    def test_head_of_a_page_is_its_head(self, stage: Stage, target: bytes) -> None:
        received = stage.ask(b"HEAD %b HTTP/1.1\r\nConnection: close\r\n" % target + ANONYMOUS, answers=None)

        assert (received.status, received.rest) == (200, b"")
        assert int(received.values("content-length")[0]) > 50

    def test_the_description_and_its_page_are_public(self, stage: Stage) -> None:
        with stage.gateway.client() as client:
            description, page = client.get("/openapi.json"), client.get("/docs", follow_redirects=True)

        assert description.json()["openapi"].startswith("3.1")
        assert (page.status_code, page.headers["content-type"].split(";")[0]) == (200, "text/html")

    @pytest.mark.parametrize("target", [b"/metrics", b"/ready", b"/live", b"/api/services", b"/api/drain"])
    def test_nothing_of_the_admin_port_is_here(self, stage: Stage, target: bytes) -> None:
        assert stage.get(target).status == 404


class TestPaths:
    @pytest.mark.parametrize(
        "target",
        [
            *(b"/", b"/api", b"/api/v1", b"/api/v1/", b"/api/v1/unknown", b"/api/v1/salesx", b"/api/v1/sales.evil"),
            *(b"/API/V1/sales", b"/api/v1/Sales", b"/api/v2/sales"),
            *(b"/healthz", b"/health/x", b"/api/v1/loyalty_cards", b"/sales"),
        ],
    )
    def test_other_paths_are_not_found(self, stage: Stage, target: bytes) -> None:
        received = stage.get(target)

        assert (received.status, code(received)) == (404, "not-found")
        assert asked_of(stage) == {}

    @pytest.mark.parametrize(
        "path",
        [
            *(b"/api/v1/sales/../auth", b"/api/v1/sales/..", b"/api/v1/sales/./x", b"/api/v1/sales/..;/auth"),
            *(b"/api/v1/sales/..%2f..%2fauth", b"/api/v1/sales/%2e%2e/auth", b"/api/v1/sales/%2E./auth"),
            *(
                b"/api/v1/sales/%252e%252e/auth",
                b"/api/v1/sales/a%252fb",
                b"/api/v1/sales/a%5Cb",
                b"/api/v1/sales/a\\b",
            ),
            *(b"/api/v1/sales/%00", b"/api/v1/sales/%0d%0aX:1", b"/api/v1/sales/x%0A", b"/api/v1//auth", b"//evil/x"),
            *(b"/api/v1/sales/%zz", b"/api/v1/sales/%2", b"/api/v1/sales/caf\xc3\xa9", b"/api/v1/sales/\x7f"),
            *(b"/api/v1/sales;x=1/y", b"/api/v1/%73ales", b"/api/v1/auth/logi%6e", b"/api/v1/auth/login;a=b"),
            *(b"/api/v1/sales/x#y", b"/api/v1/sales/%25252e%25252e/x", b"/api/v1/sales/%2e%2e%3b/x"),
        ],
    )
    @pytest.mark.parametrize("query", [b"", b"?q=/x"])
    def test_a_path_of_two_meanings_is_refused(self, stage: Stage, path: bytes, query: bytes) -> None:
        received = stage.get(path + query)

        assert (received.status, code(received)) == (400, "bad-request")
        assert asked_of(stage) == {}

    def test_in_the_query_all_of_that_is_data(self, stage: Stage) -> None:
        target = b"/api/v1/sales/x?to=//evil/../%2e%2e/%2f&p=\\&n=%00"

        assert stage.get(target).status == 200
        assert asked_of(stage) == {"sales": [target]}


class TestWithoutAddresses:
    def test_a_known_service_without_url_is_unavailable(self, issuer: Issuer) -> None:
        with Gateway({"JWT_PUBLIC_KEY": issuer.public_pem, **NO_LIMITS}) as gateway:
            stage = Stage(gateway, {}, issuer)
            for segment in list(PREFIXES)[:-1]:
                received = stage.get(f"/api/v1/{segment}".encode())
                assert (received.status, code(received)) == (503, "service-unavailable")

            assert stage.get(b"/api/v1/loyalty-cards").status == 404


ROUTES = """
[[route]]
prefix = "/api/v1/sales/reports"
service = "orders"
methods = ["GET"]

[[route]]
prefix = "/api/v1/sales/quick"
service = "orders"
first_byte_timeout = 0.2

[[route]]
prefix = "/partners"
service = "sales"
auth = "public"
tenant = "none"
"""


@pytest.fixture(scope="module")
def own_routes(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    file = tmp_path_factory.mktemp("routes") / "routes.toml"
    file.write_text(ROUTES)
    with staged(issuer, {"ROUTES_FILE": str(file)}, services=("sales", "orders", "demo_sales")) as it:
        yield it


class TestConfiguredRoutes:
    @pytest.fixture
    def stage(self, own_routes: Stage) -> Stage:
        own_routes.reset()
        return own_routes

    def test_the_longest_prefix_wins(self, stage: Stage) -> None:
        for target in (b"/api/v1/sales/reports/1", b"/api/v1/sales/reports", b"/api/v1/sales/reportsx"):
            assert stage.get(target).status == 200

        assert asked_of(stage) == {
            "orders": [b"/api/v1/sales/reports/1", b"/api/v1/sales/reports"],
            "sales": [b"/api/v1/sales/reportsx"],
        }

    def test_a_route_takes_its_methods_only(self, stage: Stage) -> None:
        received = stage.ask(stage.head(b"/api/v1/sales/reports", method=b"DELETE"))

        assert (received.status, received.values("allow")) == (405, [b"GET"])
        assert asked_of(stage) == {}

    def test_a_route_has_its_own_patience(self, stage: Stage) -> None:
        stage.services["orders"].next(Answer(never=True))

        received = stage.get(b"/api/v1/sales/quick")

        assert (received.status, code(received)) == (504, "upstream-timeout")

    def test_a_public_route_needs_no_token_and_forwards_no_identity(self, stage: Stage) -> None:
        assert stage.ask(b"GET /partners/7 HTTP/1.1\r\nX-User-Id: forged\r\n" + ANONYMOUS).status == 200

        (request,) = stage.arrived()
        assert request.values("x-user-id") == []

    def test_a_demo_session_is_served_by_the_demo_service(self, stage: Stage) -> None:
        token = stage.issuer.token(is_demo=True, demo_session_id="demo-1").encode()

        received = stage.ask(b"GET /api/v1/sales/x HTTP/1.1\r\nAuthorization: Bearer %b\r\n" % token + ANONYMOUS)

        assert received.status == 200
        assert asked_of(stage) == {"demo_sales": [b"/api/v1/sales/x"]}
