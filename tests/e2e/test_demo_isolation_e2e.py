"""Every route, walked by a demo session, by an ordinary user towards a demo tenant, and by one at home."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import redis

from bakerygw.config.routes import KNOWN_SERVICES
from tests.e2e.calling import code_of, until
from tests.e2e.harness import Gateway, Recorded, RecordingUpstream
from tests.e2e.tenancy_rules import metric, subscription_as_in_the_token
from tests.minting import Issuer
from tests.redis_server import RedisServer

SHARED = {"pos", "external"}
"""Services without a demo service: the one there is serves both."""
SERVICES = (*KNOWN_SERVICES, "custom")
METHODS = ("GET", "POST", "PUT", "DELETE")
TENANTS = 1_000
PAID = {"role": "admin", "tier": "enterprise", "status": "active", "valid_until": "2090-01-01T00:00:00Z"}


@dataclass(frozen=True)
class Seen:
    """An answer, and what reached which service of it: `sales`, or `demo:sales`."""

    answer: httpx.Response
    reached: list[tuple[str, Recorded]]

    @property
    def services(self) -> list[str]:
        return [service for service, _ in self.reached]

    def told(self, name: str) -> str | None:
        ((_, request),) = self.reached
        value = {name.lower(): value for name, value in request.headers}.get(name.lower().encode())
        return None if value is None else value.decode()


class Walk:
    """A gateway with a recording service for each name and, where it has one, for its demo."""

    def __init__(self, running: ExitStack, server: RedisServer, issuer: Issuer) -> None:
        names = [*SERVICES, *(f"demo:{name}" for name in SERVICES if name not in SHARED)]
        self.services = {name: running.enter_context(RecordingUpstream()) for name in names}
        for name in ("tenant", "demo:tenant"):
            self.services[name].always(subscription_as_in_the_token)
        urls = {f"{name.replace(':', '_').upper()}_SERVICE_URL": its.url for name, its in self.services.items()}
        limits = {"RATE_LIMIT_REQUESTS": "1000000", "AUTH_RATE_LIMIT_REQUESTS": "1000000"}
        stores = {"REDIS_HOST": server.host, "REDIS_PORT": str(server.port)}
        gateway = running.enter_context(
            Gateway({"JWT_PUBLIC_KEY": issuer.public_pem, **urls, **limits, **stores, "LOG_LEVEL": "WARNING"})
        )
        self.issuer, self.client = issuer, running.enter_context(gateway.client())
        with redis.Redis(host=server.host, port=server.port) as program:
            program.mset({f"tenant:demo-{number}:demo": "1" for number in range(TENANTS)})
        with gateway.admin() as admin:
            until(lambda: metric(admin, "gateway_mirror_trusted") == 1)
            self.routes: list[dict[str, Any]] = admin.get("/api/routes").json()
        self._numbers = itertools.count()

    def steps(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Each route with each of its methods."""
        for route in self.routes:
            for method in METHODS:
                if route["methods"] is None or method in route["methods"]:
                    yield route, method

    def demo_session(self, route: dict[str, Any], method: str) -> Seen:
        tenant = f"demo-{next(self._numbers)}"
        return self._ask(route, method, tenant, tenant, is_demo=True, demo_session_id="session-1")

    def ordinary_towards_demo(self, route: dict[str, Any], method: str) -> Seen:
        number = next(self._numbers)
        entry = {"id": f"demo-{number}", **PAID}
        return self._ask(route, method, f"real-{number}", entry["id"], tenant_access=[entry])

    def ordinary_at_home(self, route: dict[str, Any], method: str) -> Seen:
        tenant = f"real-{next(self._numbers)}"
        return self._ask(route, method, tenant, tenant)

    def _ask(self, route: dict[str, Any], method: str, own: str, tenant: str, **claims: Any) -> Seen:
        token = self.issuer.token(tenant_id=own, user_id=f"user-{own}", **claims)
        path = route["prefix"].replace("{id}", tenant) + ("" if route["exact"] else "/x")
        if path.startswith("/api/v1/tenants/x"):
            path = path.replace("/x", f"/{tenant}", 1) + "/x"
        headers = {"Authorization": f"Bearer {token}", "X-Tenant-ID": tenant}
        # What a refresh can't do without; no other route looks at it.
        body = None if route["auth"] or method == "GET" else {"refresh_token": f"of-{tenant}"}
        answer = self.client.request(method, path, headers=headers, json=body)
        wanted = answer.headers["x-request-id"].encode()
        reached = [
            (name, request)
            for name, service in self.services.items()
            for request in service.requests
            if dict(request.headers).get(b"X-Request-ID") == wanted
            and not request.target.endswith(b"/subscription/status")
        ]
        return Seen(answer, reached)


@pytest.fixture(scope="module")
def walk(issuer: Issuer) -> Iterator[Walk]:
    with RedisServer() as server, ExitStack() as running:
        yield Walk(running, server, issuer)


def about_a_tenant(route: dict[str, Any]) -> bool:
    return bool(route["auth"] and route["tenant"])


def proxied(route: dict[str, Any]) -> bool:
    return bool(route["kind"] == "proxy" and about_a_tenant(route))


def test_the_walk_is_of_every_service(walk: Walk) -> None:
    walked = {route["service"] for route, _ in walk.steps() if proxied(route)}
    assert walked == set(SERVICES)


def test_a_demo_session_reaches_demo_services_and_may_do_nothing_critical(walk: Walk) -> None:
    for route, method in filter(lambda step: proxied(step[0]), walk.steps()):
        seen = walk.demo_session(route, method)
        where = f"{method} {route['prefix']}"
        if method in route["critical"]:
            assert code_of(seen.answer) == (403, "demo-isolation"), where
            assert seen.services == [], where
            continue
        service = route["service"]
        assert seen.services == [service if service in SHARED else f"demo:{service}"], where
        assert (seen.told("X-Is-Demo"), seen.told("X-Demo-Session-Id")) == ("true", "session-1"), where


def test_an_ordinary_user_reaches_no_demo_tenant_on_any_route(walk: Walk) -> None:
    for route, method in filter(lambda step: about_a_tenant(step[0]), walk.steps()):
        seen = walk.ordinary_towards_demo(route, method)
        assert code_of(seen.answer) == (403, "demo-isolation"), f"{method} {route['prefix']}"
        assert seen.services == []


def test_at_home_an_ordinary_user_reaches_the_real_services_alone(walk: Walk) -> None:
    for route, method in filter(lambda step: proxied(step[0]), walk.steps()):
        seen = walk.ordinary_at_home(route, method)
        assert seen.services == [route["service"]], f"{method} {route['prefix']}"
        assert (seen.told("X-Is-Demo"), seen.told("X-Demo-Session-Id")) == ("false", None)


def test_what_the_gateway_answers_by_itself_reaches_no_service_of_either_kind(walk: Walk) -> None:
    own = [step for step in walk.steps() if step[0]["kind"] == "local"]
    assert len(own) > 6
    for route, method in own:
        for seen in (walk.demo_session(route, method), walk.ordinary_at_home(route, method)):
            assert seen.services == [], f"{method} {route['prefix']}"


def test_public_routes_know_nobody_so_they_are_the_real_services_and_told_nothing(walk: Walk) -> None:
    public = [step for step in walk.steps() if step[0]["kind"] == "proxy" and not step[0]["auth"]]
    assert {route["prefix"] for route, _ in public} == {
        f"/api/v1/auth/{name}" for name in ("login", "register", "refresh")
    }
    for route, method in public:
        seen = walk.demo_session(route, method)
        assert seen.services == ["auth"]
        assert [seen.told(name) for name in ("X-User-Id", "X-Tenant-Id", "X-Is-Demo")] == [None, None, None]
