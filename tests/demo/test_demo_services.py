"""The demo's services over real HTTP on the real reactor."""

import json
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import jwt
import pytest
import pytest_twisted
import treq
from demo_calls import NOW
from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool

from bakerygw.core.tenancy import TenantFlags
from bakerygw.demo.accounts import PASSWORD
from bakerygw.demo.services import DemoServices
from bakerygw.demo.web import MAX_BODY_BYTES, LoopbackSite

NAMES = {
    "auth",
    "sales",
    "forecasting",
    "training",
    "inventory",
    "production",
    "recipes",
    "orders",
    "suppliers",
    "procurement",
    "pos",
    "external",
    "notification",
    "ai_insights",
    "orchestrator",
    "tenant",
    "demo:sales",
    "demo:inventory",
}


class Raw(Protocol):
    """Collects what comes until the other side closes."""

    def __init__(self) -> None:
        self.received = b""
        self.closed: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.closed.callback(self.received)


@pytest_twisted.async_yield_fixture
async def demo() -> AsyncIterator[DemoServices]:
    timers = set(reactor.getDelayedCalls())
    services = DemoServices(reactor, now=lambda: NOW, random=Random(1))
    await services.start()
    yield services
    await services.stop()
    assert set(reactor.getDelayedCalls()) <= timers


@pytest.fixture
def client() -> HTTPClient:
    return HTTPClient(Agent(reactor, pool=HTTPConnectionPool(reactor, persistent=False)))


async def connected(url: str) -> Raw:
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", int(url.rpartition(":")[2]))
    raw: Raw = await connectProtocol(endpoint, Raw())
    return raw


async def exchanged(url: str, request: bytes) -> bytes:
    raw = await connected(url)
    raw.transport.write(request)
    return await raw.closed


@pytest_twisted.ensureDeferred
async def test_every_service_listens_on_loopback_and_is_healthy(demo: DemoServices, client: HTTPClient) -> None:
    assert set(demo.urls) == NAMES
    assert len(set(demo.urls.values())) == len(NAMES)
    for name, url in demo.urls.items():
        assert url.startswith("http://127.0.0.1:")
        response = await client.get(f"{url}/health")
        assert response.code == 200
        assert await treq.json_content(response) == {"status": "healthy", "service": name.removeprefix("demo:")}


@pytest_twisted.ensureDeferred
async def test_a_login_over_http_gives_a_token_of_the_published_key(demo: DemoServices, client: HTTPClient) -> None:
    credentials = json.dumps({"email": "ana@espiga.example", "password": PASSWORD}).encode()
    response = await client.post(f"{demo.urls['auth']}/api/v1/auth/login", data=credentials)
    token = (await treq.json_content(response))["access_token"]
    claims = jwt.decode(
        token, demo.public_pem, algorithms=["RS256"], options={"verify_exp": False, "verify_iat": False}
    )
    assert response.headers.getRawHeaders("Cache-Control") == ["no-store"]
    assert claims["user_id"] == demo.accounts[0].user_id
    assert jwt.get_unverified_header(token)["alg"] == "RS256"


@pytest_twisted.ensureDeferred
async def test_writes_are_kept_and_demo_instances_are_apart(demo: DemoServices, client: HTTPClient) -> None:
    tenant = demo.accounts[0].tenant_id
    headers = {"X-Tenant-Id": tenant, "Content-Type": "application/json"}
    sale = '{"product":"Crème brûlée","quantity":2}'.encode()
    made = await client.post(f"{demo.urls['sales']}/api/v1/sales", data=sale, headers=headers)
    location = made.headers.getRawHeaders("Location")[0]
    again = await client.get(demo.urls["sales"] + location, headers=headers)
    assert (made.code, again.code) == (201, 200)
    assert (await treq.json_content(again))["product"] == "Crème brûlée"
    assert (await client.get(demo.urls["demo:sales"] + location, headers=headers)).code == 404


@pytest_twisted.ensureDeferred
async def test_head_has_the_headers_of_get_and_no_body(demo: DemoServices) -> None:
    head = b"%s /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    got, asked = [
        (await exchanged(demo.urls["sales"], head % method)).partition(b"\r\n\r\n") for method in (b"GET", b"HEAD")
    ]
    assert asked[2] == b""
    assert b"Content-Length: %d" % len(got[2]) in asked[0]


@pytest_twisted.ensureDeferred
async def test_no_content_is_sent_without_framing(demo: DemoServices, client: HTTPClient) -> None:
    tenant = demo.accounts[0].tenant_id
    listed = await client.get(f"{demo.urls['orders']}/api/v1/orders", headers={"X-Tenant-Id": tenant})
    record = (await treq.json_content(listed))["items"][0]["id"]
    request = (
        f"DELETE /api/v1/orders/{record} HTTP/1.1\r\nHost: x\r\nX-Tenant-Id: {tenant}\r\nConnection: close\r\n\r\n"
    )
    answer = await exchanged(demo.urls["orders"], request.encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 204")
    assert body == b""
    assert b"content-length" not in head.lower()
    assert b"transfer-encoding" not in head.lower()


@pytest.mark.parametrize("chunked", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_body_past_the_limit_is_413(demo: DemoServices, chunked: bool) -> None:
    body = b"x" * (MAX_BODY_BYTES + 1)
    head = b"POST /api/v1/sales HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    framed = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    plain = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    answer = await exchanged(demo.urls["sales"], head + (framed if chunked else plain))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"detail"' in answer


@pytest_twisted.ensureDeferred
async def test_stop_closes_ports_and_cuts_idle_connections(demo: DemoServices) -> None:
    url = demo.urls["recipes"]
    idle = await connected(url)
    idle.transport.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    other = await connected(url)
    other.transport.loseConnection()
    await other.closed
    await demo.stop()
    assert b"healthy" in await idle.closed
    assert dict(demo.urls) == {}
    with pytest.raises(ConnectionRefusedError):
        await connected(url)
    await demo.stop()


@pytest_twisted.ensureDeferred
async def test_a_fault_of_a_service_is_a_bare_500(logged_failures: list[Any]) -> None:
    def broken(call: object) -> Any:
        raise ZeroDivisionError("secret")

    site = LoopbackSite("broken", broken, reactor)
    port = reactor.listenTCP(0, site, interface="127.0.0.1")
    request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await exchanged(f"http://127.0.0.1:{port.getHost().port}", request)
    await port.stopListening()
    await site.drop_all()
    assert answer.startswith(b"HTTP/1.1 500")
    assert b"secret" not in answer
    assert [failure.type for failure in logged_failures] == [ZeroDivisionError]
    logged_failures.clear()


class Refusing:
    """A reactor on which the third port is taken."""

    def __init__(self) -> None:
        self.listened: list[Any] = []

    def listenTCP(self, *args: Any, **named: Any) -> Any:
        if len(self.listened) == 2:
            raise OSError("address in use")
        self.listened.append(reactor.listenTCP(*args, **named))
        return self.listened[-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


@pytest_twisted.ensureDeferred
async def test_if_one_service_cannot_listen_none_stays() -> None:
    refusing = Refusing()
    services = DemoServices(refusing, now=lambda: NOW, random=Random(1))
    with pytest.raises(OSError, match="address in use"):
        await services.start()
    assert len(refusing.listened) == 2
    assert all(port.disconnected for port in refusing.listened)
    assert dict(services.urls) == {}


def test_the_flags_are_one_tenant_on_hold_and_one_demo_tenant() -> None:
    services = DemoServices(reactor, now=lambda: NOW, random=Random(1))
    by_name = {services.tenants[tenant_id].name: flags for tenant_id, flags in services.flags.items()}
    assert set(by_name) == {"Panificio Rossi", "Demo Bakery"}
    assert by_name["Demo Bakery"] == TenantFlags(demo=True)
    assert by_name["Panificio Rossi"].read_only is not None
    assert by_name["Panificio Rossi"].read_only.reason
