"""Cookie sessions of browsers, over two instances and a real Redis."""

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from tests.e2e.calling import SALES, WITHIN_S, at_once, code_of, until
from tests.e2e.harness import Answer, Gateway, Recorded, RecordingUpstream, answer
from tests.e2e.listening import Reader
from tests.e2e.stage import NO_LIMITS, paired
from tests.minting import TENANT_ID, USER_ID, Issuer
from tests.redis_server import RedisServer

OLD, NEW = "o" * 32, "n" * 40
REFRESH, LOGOUT, SESSION = "/api/v1/auth/refresh", "/api/v1/auth/logout", "/api/v1/auth/session"


@dataclass
class AuthService:
    """Signs in anybody, with rotating refresh tokens; a scripted service for `RecordingUpstream`."""

    issuer: Issuer
    lifetime_s: float = 1800.0
    age_s: int = 60
    """Of tokens as they are given."""
    status: int = 200
    """Of the next refreshes."""
    delay_s: float = 0.0
    ends_at: float = 0.0
    """When the latest access token does."""
    renewals: int = 0
    number: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, request: Recorded) -> Answer:
        path = request.target.decode().rpartition("/")[2]
        if path == "login":
            return self.tokens(self.lifetime_s)
        if path != "refresh":
            return answer(204, b"", delay_s=self.delay_s) if path == "logout" else answer(200, b'{"service": true}')
        with self.lock:
            self.renewals += 1
        if self.status != 200:
            return answer(self.status, b"{}")
        return self.tokens(1800.0)

    def tokens(self, lifetime_s: float) -> Answer:
        with self.lock:
            self.number += 1
            number = self.number
            self.ends_at = time.time() + lifetime_s
        access = self.issuer.token(jti=f"a-{number}", iat=int(time.time()) - self.age_s, exp=self.ends_at)
        body = {"access_token": access, "refresh_token": f"r-{number}-{id(self)}", "token_type": "bearer"}
        cookie = ("Set-Cookie", f"refresh_token=r-{number}-{id(self)}; Path=/")
        return answer(200, json.dumps(body).encode(), cookie, delay_s=self.delay_s)


@dataclass
class Browser:
    """Keeps a session's cookie, which by its `Secure` a client would not send over plain HTTP to an address."""

    cookie: str
    csrf: str

    def ask(self, gateway: Gateway, path: str = SALES, method: str = "GET", **headers: str) -> httpx.Response:
        told = {"Cookie": self.cookie, **{name.replace("_", "-"): value for name, value in headers.items()}}
        with gateway.client(verify=False) as client:
            return client.request(method, path, headers=told)

    def write(self, gateway: Gateway, path: str = SALES, method: str = "POST", **headers: str) -> httpx.Response:
        return self.ask(gateway, path, method, **{"X_CSRF_Token": self.csrf, **headers})


def sign_in(gateway: Gateway, **headers: str) -> tuple[Browser, httpx.Response]:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    with gateway.client() as client:
        response = client.post("/api/v1/auth/login", json={"email": "a@b.example"}, headers=told)
    cookie = response.headers.get("set-cookie", "").partition(";")[0]
    return Browser(cookie, response.json().get("csrf_token", "")), response


@pytest.fixture(scope="module")
def pair(issuer: Issuer, service: RecordingUpstream, module_redis: RedisServer) -> Iterator[tuple[Gateway, Gateway]]:
    """Two instances over one Redis, the second in the middle of a change of the secret."""
    env = {
        "SESSION_SECRET": f"{OLD},{NEW}",
        "AUTH_SERVICE_URL": service.url,
        "SALES_SERVICE_URL": service.url,
        "REDIS_TIMEOUT_MS": "2000",
        "SESSION_COOKIES": "true",
        "JWT_LEEWAY_SECONDS": "0",
        "CORS_ORIGINS": "https://app.example",
        **NO_LIMITS,
    }
    with paired(issuer, module_redis, env, second={"SESSION_SECRET": f"{NEW},{OLD}"}) as gateways:
        yield gateways


@pytest.fixture
def auth(service: RecordingUpstream, issuer: Issuer) -> AuthService:
    service.reset()
    it = AuthService(issuer)
    service.always(it)
    return it


def test_a_session_begun_on_one_instance_is_good_on_both(
    pair: tuple[Gateway, Gateway], auth: AuthService, service: RecordingUpstream, module_redis: RedisServer
) -> None:
    for here, there in (pair, pair[::-1]):
        browser, response = sign_in(here)
        assert response.json().keys() == {"token_type", "csrf_token"}
        assert response.headers.get_list("set-cookie") == [f"{browser.cookie}; Path=/; Secure; HttpOnly; SameSite=Lax"]
        assert response.headers["cache-control"] == "no-store"
        for gateway in (there, here):
            service.reset()
            service.always(auth)
            assert browser.ask(gateway).status_code == 200
            assert browser.write(gateway).status_code == 200
            (first, _) = service.requests
            assert first.value("Cookie") is None
            assert first.value("X-User-Id") == USER_ID.encode()
            assert (first.value("Authorization") or b"").startswith(b"Bearer eyJ")
    key = "bakerygw:session:" + sha256(browser.cookie.partition("=")[2].encode()).hexdigest()
    kept = module_redis.command("GET", key)
    assert b"eyJ" not in kept
    assert f"r-{auth.number}-".encode() not in kept
    assert 0 < int(module_redis.command("TTL", key)[1:]) <= 7 * 86_400
    assert all(browser.cookie.partition("=")[2] not in gateway.output for gateway in pair)
    assert all(browser.csrf not in gateway.output for gateway in pair)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X_CSRF_Token": ""}, (403, "csrf")),
        ({"X_CSRF_Token": "A" * 43}, (403, "csrf")),
        ({"Sec_Fetch_Site": "cross-site"}, (403, "csrf")),
        ({"Origin": "https://evil.example"}, (403, "origin-forbidden")),
        ({"Origin": "null"}, (403, "origin-forbidden")),
        ({"Origin": "https://app.example", "Sec_Fetch_Site": "same-site"}, (200, "")),
    ],
)
def test_only_pages_of_the_same_site_write(
    pair: tuple[Gateway, Gateway], auth: AuthService, service: RecordingUpstream,
    headers: dict[str, str], expected: tuple[int, str],
) -> None:  # fmt: skip
    browser, _ = sign_in(pair[0])
    for method in ("POST", "DELETE"):
        assert code_of(browser.write(pair[1], method=method, **headers)) == expected
    assert len(service.requests) == (3 if expected[0] == 200 else 1)
    if "Origin" in headers:
        assert code_of(sign_in(pair[0], Origin=headers["Origin"])[1]) == expected


def test_after_a_change_of_subscription_one_renewal_is_enough_for_both_instances(
    pair: tuple[Gateway, Gateway], auth: AuthService, module_redis: RedisServer
) -> None:
    here, there = pair
    browser, _ = sign_in(here)
    assert [browser.ask(gateway).status_code for gateway in pair] == [200, 200]
    with here.admin() as admin:
        assert admin.post(f"/api/tenants/{TENANT_ID}/subscription-changed").status_code == 200
    changed = time.time()
    try:
        until(lambda: [code_of(browser.ask(gateway)) for gateway in pair] == [(401, "token-stale")] * 2)
        auth.age_s = 0
        until(lambda: int(time.time()) > changed)
        assert browser.write(here, REFRESH).status_code == 200
        assert [browser.ask(gateway).status_code for gateway in (there, here)] == [200, 200]
        assert auth.renewals == 1
    finally:
        module_redis.command("DEL", f"tenant:{TENANT_ID}:subscription_changed_at")
        until(lambda: [browser.ask(gateway).status_code for gateway in pair] == [200, 200])


def test_a_page_that_was_loaded_anew_asks_for_its_token(pair: tuple[Gateway, Gateway], auth: AuthService) -> None:
    browser, _ = sign_in(pair[0])
    told = browser.ask(pair[1], SESSION, Origin="https://app.example")
    assert told.headers["access-control-allow-credentials"] == "true"
    browser.csrf = told.json()["csrf_token"]
    assert browser.write(pair[0]).status_code == 200
    with pair[0].client() as client:
        assert code_of(client.get(SESSION)) == (401, "token-missing")


def test_many_requests_on_both_instances_renew_an_ended_token_once(
    pair: tuple[Gateway, Gateway], auth: AuthService, service: RecordingUpstream
) -> None:
    auth.lifetime_s, auth.delay_s = 2.0, 0.1
    browser, _ = sign_in(pair[0])
    until(lambda: time.time() > auth.ends_at)
    responses = at_once([lambda gateway=gateway: browser.ask(gateway) for gateway in pair * 10])
    assert {code_of(response) for response in responses} == {(200, "")}
    assert auth.renewals == 1
    assert browser.write(pair[1]).status_code == 200


def test_a_session_that_one_instance_has_renewed_is_not_stale_on_the_other(
    pair: tuple[Gateway, Gateway], auth: AuthService, module_redis: RedisServer
) -> None:
    browser, _ = sign_in(pair[0])
    assert [browser.ask(gateway).status_code for gateway in pair] == [200, 200]
    auth.age_s = 0
    key = f"tenant:{TENANT_ID}:subscription_changed_at"
    module_redis.command("SET", key, str(int(time.time()) - 30))
    try:
        for gateway in pair:
            until(lambda gateway=gateway: code_of(browser.ask(gateway)) == (401, "token-stale"))
        assert browser.write(pair[0], REFRESH).status_code == 200
        assert [code_of(browser.ask(gateway)) for gateway in pair] == [(200, ""), (200, "")]
        assert auth.renewals == 1
    finally:
        module_redis.command("DEL", key)


def test_a_failing_auth_service_ends_no_session_and_a_refusal_does(
    pair: tuple[Gateway, Gateway], auth: AuthService, module_redis: RedisServer
) -> None:
    auth.lifetime_s, auth.status = 2.0, 500
    browser, _ = sign_in(pair[0])
    until(lambda: time.time() > auth.ends_at)
    failed = browser.ask(pair[0])
    assert code_of(failed) == (503, "service-unavailable")
    assert "retry-after" in failed.headers
    assert "set-cookie" not in failed.headers
    module_redis.command("DEL", "bakerygw:refresh:" + sha256(f"r-{auth.number}-{id(auth)}".encode()).hexdigest())
    auth.status = 401
    refused = browser.ask(pair[1])
    assert code_of(refused) == (401, "token-expired")
    assert "Max-Age=0" in refused.headers["set-cookie"]
    assert code_of(browser.ask(pair[0])) == (401, "token-invalid")


def test_signing_out_on_one_instance_ends_it_on_the_other_within_a_second(
    pair: tuple[Gateway, Gateway], auth: AuthService, service: RecordingUpstream
) -> None:
    browser, _ = sign_in(pair[0])
    assert [browser.ask(gateway).status_code for gateway in pair] == [200, 200]
    began = time.monotonic()
    out = browser.write(pair[0], LOGOUT)
    assert out.status_code == 204
    assert "Max-Age=0" in out.headers["set-cookie"]
    until(lambda: browser.ask(pair[1]).status_code == 401, every_s=0.01)
    assert time.monotonic() - began < WITHIN_S
    assert browser.ask(pair[0]).status_code == 401
    told = next(request for request in service.requests if request.target == LOGOUT.encode())
    refresh = json.loads(told.body)["refresh_token"]
    with pair[1].client() as client:
        assert code_of(client.post(REFRESH, json={"refresh_token": refresh})) == (401, "token-revoked")


def test_signing_out_on_one_instance_ends_the_stream_on_the_other(
    pair: tuple[Gateway, Gateway], auth: AuthService
) -> None:
    browser, _ = sign_in(pair[0])
    with Reader(pair[1], headers={"Cookie": browser.cookie}) as read:
        assert browser.write(pair[0], LOGOUT).status_code == 204

        assert read.bye() == "token-revoked"


def test_what_a_session_has_opened_ends_when_the_secret_that_seals_it_is_taken_away(
    auth: AuthService, service: RecordingUpstream, issuer: Issuer, tmp_path: Path
) -> None:
    file = tmp_path / "gateway.toml"
    env = {"SESSION_COOKIES": "true", "AUTH_SERVICE_URL": service.url, "SALES_SERVICE_URL": service.url}
    file.write_text(f'session_secret = "{OLD}"\n')
    with Gateway({"JWT_PUBLIC_KEY": issuer.public_pem, **env}, config=file) as gateway:

        def reload(secret: str) -> None:
            file.write_text(f'session_secret = "{secret}"\n')
            before = len(gateway.events("reload.done"))
            gateway.signal(signal.SIGHUP)
            until(lambda: len(gateway.events("reload.done")) > before)

        browser, _ = sign_in(gateway)
        with Reader(gateway, headers={"Cookie": browser.cookie}) as read, Reader(gateway, issuer.token()) as other:
            reload(f"{NEW},{OLD}")
            assert browser.ask(gateway).status_code == 200
            assert read.named("bye") == []
            reload(NEW)
            assert read.bye() == "token-invalid"
            assert code_of(browser.ask(gateway)) == (401, "token-invalid")
            assert other.named("bye") == []


def test_who_closes_the_page_while_signing_out_is_signed_out_on_both(
    pair: tuple[Gateway, Gateway], auth: AuthService, service: RecordingUpstream
) -> None:
    browser, _ = sign_in(pair[0])
    assert [browser.ask(gateway).status_code for gateway in pair] == [200, 200]
    auth.delay_s = 0.3
    lines = (f"POST {LOGOUT} HTTP/1.1", "Host: x", f"Cookie: {browser.cookie}", f"X-CSRF-Token: {browser.csrf}", "", "")
    with socket.create_connection(("127.0.0.1", pair[0].port)) as page:
        page.sendall("\r\n".join(lines).encode())
        until(lambda: any(request.target == LOGOUT.encode() for request in service.requests))
    for gateway in pair:
        until(lambda gateway=gateway: browser.ask(gateway).status_code == 401)


def test_without_redis_known_sessions_go_on_and_others_wait(
    pair: tuple[Gateway, Gateway], auth: AuthService, module_redis: RedisServer
) -> None:
    browser, _ = sign_in(pair[0])
    assert browser.ask(pair[0]).status_code == 200
    module_redis.kill()
    assert browser.ask(pair[0]).status_code == 200
    unknown = browser.ask(pair[1])
    assert code_of(unknown) == (503, "state-unavailable")
    assert "retry-after" in unknown.headers
    assert code_of(sign_in(pair[1])[1]) == (503, "state-unavailable")
    module_redis.start()
    until(lambda: sign_in(pair[1])[1].status_code == 200, every_s=0.1)
