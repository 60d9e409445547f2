"""The operators' port: who may call it, what each call does, and what Prometheus is told."""

import os
import re
import stat
import string
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import httpx
import pytest

from tests.e2e.calling import SALES, code_of, until
from tests.e2e.harness import Gateway, RecordingUpstream, free_ports, raw_request
from tests.minting import TENANT_ID, Issuer
from tests.redis_server import RedisServer

StartGateway = Callable[..., Gateway]

PROMISED_METRICS = (
    "gateway_requests_total",
    "gateway_request_duration_seconds_bucket",
    "gateway_request_size_bytes_bucket",
    "gateway_response_size_bytes_bucket",
    "gateway_auth_attempts_total",
    "gateway_auth_cache_hits_total",
    "gateway_auth_cache_misses_total",
    "gateway_rate_limit_exceeded_total",
    "gateway_service_health",
    "gateway_internal_duration_seconds_bucket",
    "gateway_upstream_duration_seconds_bucket",
    "gateway_sse_connections",
    "gateway_ws_connections",
    "gateway_events_sent_total",
    "gateway_redis_round_trips_total",
    "gateway_redis_failures_total",
    "gateway_upstream_pool_connections",
    "gateway_build_info",
    "gateway_log_lines_dropped_total",
    "process_resident_memory_bytes",
)

GUARDED = ("/", "/api/services", "/api/routes", "/api/config", "/api/connections", "/api/log-level", "/api/tenants/t")
OPEN = ("/metrics", "/health", "/live", "/ready")


@pytest.fixture(scope="module")
def gateway(issuer: Issuer, service: RecordingUpstream) -> Iterator[Gateway]:
    settings = {
        "JWT_PUBLIC_KEY": issuer.public_pem,
        "SALES_SERVICE_URL": service.url,
        "ORDERS_SERVICE_URL": f"http://127.0.0.1:{free_ports(1)[0]}",
        "AUTH_SERVICE_URL": service.url,
        "RATE_LIMIT_REQUESTS": "100000",
        "AUTH_RATE_LIMIT_REQUESTS": "1",
        "HEALTH_CHECK_INTERVAL": "0.2",
    }
    with Gateway(settings) as running:
        yield running


@pytest.fixture
def admin(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.admin() as client:
        yield client


def exposed(admin: httpx.Client) -> list[str]:
    """The lines with values."""
    return [line for line in admin.get("/metrics").text.splitlines() if line and not line.startswith("#")]


class TestEntry:
    @pytest.mark.parametrize("path", GUARDED)
    @pytest.mark.parametrize(
        ("headers", "code"),
        [
            ({}, "token-missing"),
            ({"Authorization": "Bearer wrong"}, "token-invalid"),
            ({"Authorization": "Basic {token}"}, "token-invalid"),
            ({"Authorization": "Bearer {token}x"}, "token-invalid"),
            ({"Authorization": "Bearer {token}", "Host": "evil.example"}, "origin-forbidden"),
            ({"Authorization": "Bearer {token}", "Origin": "http://evil.example"}, "origin-forbidden"),
            ({"Authorization": "Bearer {token}", "Origin": "null"}, "origin-forbidden"),
        ],
    )
    def test_calls_need_the_token_a_known_name_and_no_foreign_origin(
        self, gateway: Gateway, path: str, headers: dict[str, str], code: str
    ) -> None:
        sent = {name: value.format(token=gateway.admin_token) for name, value in headers.items()}

        with httpx.Client(trust_env=False) as client:
            response = client.get(gateway.admin_url + path, headers=sent)

        assert code_of(response) == (403 if code == "origin-forbidden" else 401, code)
        assert gateway.admin_token not in response.text

    @pytest.mark.parametrize("path", OPEN)
    def test_probes_and_prometheus_need_nothing(self, gateway: Gateway, path: str) -> None:
        with httpx.Client(trust_env=False) as client:
            assert client.get(gateway.admin_url + path, headers={"Host": "10.1.2.3:9000"}).status_code == 200

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST:9000"])
    def test_loopback_names_are_known(self, gateway: Gateway, admin: httpx.Client, host: str) -> None:
        assert admin.get("/api/config", headers={"Host": host}).status_code == 200

    def test_the_users_token_opens_nothing(self, gateway: Gateway, issuer: Issuer) -> None:
        with httpx.Client(trust_env=False) as client:
            response = client.get(
                f"{gateway.admin_url}/api/config", headers={"Authorization": f"Bearer {issuer.token()}"}
            )

        assert code_of(response) == (401, "token-invalid")

    def test_a_change_needs_json_so_that_no_form_can_send_it(self, admin: httpx.Client) -> None:
        as_form = admin.put(
            "/api/tenants/t1/read-only", content='{"reason": "x"}', headers={"Content-Type": "text/plain"}
        )

        assert code_of(as_form) == (400, "bad-request")
        assert admin.get("/api/tenants/t1").json()["read_only"] is None

    @pytest.mark.parametrize("path", ["/metrics", "/live", "/ready", "/", *GUARDED[1:], "/api/drain"])
    def test_the_public_port_knows_none_of_it(self, gateway: Gateway, path: str) -> None:
        with gateway.client(headers={"Authorization": f"Bearer {gateway.admin_token}"}) as client:
            for method in ("GET", "POST", "PUT"):
                assert code_of(client.request(method, path)) == (404, "not-found")

        assert gateway.status_of("/ready") == 200

    def test_the_admin_port_serves_no_tenants_data(self, gateway: Gateway, admin: httpx.Client) -> None:
        assert code_of(admin.get(SALES)) == (404, "not-found")

    def test_no_cors_is_spoken(self, gateway: Gateway) -> None:
        received = raw_request(
            "127.0.0.1",
            gateway.admin_port,
            b"OPTIONS /api/config HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n"
            b"Access-Control-Request-Method: GET\r\n\r\n",
        )

        assert not received.startswith(b"HTTP/1.1 2")
        assert b"access-control-" not in received.lower()

    @pytest.mark.parametrize(
        ("data", "status"),
        [
            (b"GET /live HTTP/1.1\r\n\r\n", b"400"),
            (b"GET /live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
            (b"TRACE /live HTTP/1.1\r\nHost: a\r\n\r\n", b"405"),
            (b"BREW /live HTTP/1.1\r\nHost: a\r\n\r\n", b"501"),
            (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"414"),
            (b"GET /live HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", b"431"),
        ],
    )
    def test_what_cannot_be_read_is_a_problem_here_too(self, gateway: Gateway, data: bytes, status: bytes) -> None:
        received = raw_request("127.0.0.1", gateway.admin_port, data)

        assert received.split(b" ", 2)[1] == status
        assert b"application/problem+json" in received


class TestCalls:
    def test_every_call_is_listed_for_people_and_programs(self, admin: httpx.Client) -> None:
        listed = {(call["method"], call["path"]) for call in admin.get("/").json()["calls"]}
        page = admin.get("/", headers={"Accept": "text/html"})

        assert listed >= {
            ("GET", "/metrics"),
            ("GET", "/api/tenants/{id}"),
            ("PUT", "/api/tenants/{id}/read-only"),
            ("DELETE", "/api/tenants/{id}/read-only"),
            ("POST", "/api/tenants/{id}/subscription-changed"),
            ("GET", "/api/services"),
            ("GET", "/api/routes"),
            ("GET", "/api/config"),
            ("GET", "/api/connections"),
            ("GET", "/api/log-level"),
            ("PUT", "/api/log-level"),
            ("POST", "/api/drain"),
        }
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["content-security-policy"]

    def test_services_show_state_and_urls(self, admin: httpx.Client, service: RecordingUpstream) -> None:
        until(
            lambda: (
                admin.get("/health").json()["services"]
                == {"auth": "healthy", "orders": "unhealthy", "sales": "healthy"}
            )
        )
        services = admin.get("/api/services").json()

        assert set(services) == {"auth", "orders", "sales"}
        assert services["sales"]["health"]["status"] == "healthy"
        assert services["orders"]["health"]["status"] == "unhealthy"
        assert service.url in str(services["sales"]["urls"])

    def test_routes_show_the_whole_table(self, admin: httpx.Client) -> None:
        routes = {route["prefix"]: route for route in admin.get("/api/routes").json()}

        assert routes["/api/v1/sales"]["service"] == "sales"
        assert routes["/api/v1/sales"]["auth"] is True
        assert routes["/api/v1/auth/login"]["auth"] is False
        assert len(routes) > 20

    def test_the_configuration_is_shown_with_secrets_masked(
        self, start_gateway: StartGateway, own_redis: RedisServer
    ) -> None:
        secrets = {
            "ADMIN_TOKEN": "admin-secret-4711",
            "REDIS_PASSWORD": "redis-secret-4711",
            "TOKEN_CACHE_SECRET": "cache-secret-4711-of-32-characters",
        }
        gateway = start_gateway({**secrets, "REDIS_HOST": own_redis.host, "REDIS_PORT": str(own_redis.port)})

        with gateway.admin() as admin:
            shown = admin.get("/api/config")

        assert shown.json()["redis_port"] == own_redis.port
        assert shown.json()["rate_limit_requests"] == 300
        assert shown.json()["services"]["sales"]
        assert [name for name in secrets if shown.json()[name.lower()] != "***"] == []
        assert "secret-4711" not in shown.text
        assert "secret-4711" not in gateway.output

    def test_connections_are_counted(self, gateway: Gateway, admin: httpx.Client) -> None:
        with gateway.client() as one, gateway.client() as two:
            one.get("/health")
            two.get("/health")

            shown = admin.get("/api/connections").json()
            assert shown["open"] >= 2
            assert {"client": "127.0.0.1", "connections": shown["open"]} in shown["clients"]
            assert f"gateway_connections {float(shown['open'])}" in exposed(admin)
        until(lambda: admin.get("/api/connections").json()["open"] == 0)

    def test_the_log_level_changes_at_once(self, gateway: Gateway, admin: httpx.Client) -> None:
        def logged(request_id: str) -> bool:
            return any(event.get("request_id") == request_id for event in gateway.log)

        with gateway.client() as client:
            assert admin.get("/api/log-level").json() == {"level": "INFO"}
            try:
                assert admin.put("/api/log-level", json={"level": "WARNING"}).status_code == 200
                silent = client.get("/api/v1/none", headers={"X-Request-ID": "while-silent"})
            finally:
                assert admin.put("/api/log-level", json={"level": "INFO"}).json() == {"level": "INFO"}
            client.get("/api/v1/none", headers={"X-Request-ID": "while-talking"})

        assert silent.status_code == 404
        until(lambda: logged("while-talking"))
        assert not logged("while-silent")
        assert code_of(admin.put("/api/log-level", json={"level": "LOUD"})) == (400, "bad-request")
        assert code_of(admin.put("/api/log-level", json={})) == (400, "bad-request")

    @pytest.mark.parametrize(
        ("method", "path", "body", "status"),
        [
            ("PUT", "/api/tenants/a:b/read-only", "{}", 400),
            ("PUT", "/api/tenants/t1/read-only", "[]", 400),
            ("PUT", "/api/tenants/t1/read-only", "{", 400),
            ("PUT", "/api/tenants/t1/read-only", '{"until": "soon"}', 400),
            ("PUT", "/api/tenants/t1/read-only", '{"until": "2001-01-01T00:00:00Z"}', 400),
            ("PUT", "/api/tenants/t1/read-only", '{"reason": 7}', 400),
            ("PUT", "/api/tenants/t1/read-only", '{"colour": "red"}', 400),
            ("POST", "/api/tenants/t1/read-only", "{}", 405),
            ("GET", "/api/tenants/t1/nothing", "", 404),
            ("DELETE", "/api/drain", "", 405),
        ],
    )
    def test_wrong_calls_are_problems_and_no_intrusion(
        self, gateway: Gateway, admin: httpx.Client, *, method: str, path: str, body: str, status: int
    ) -> None:
        response = admin.request(method, path, content=body, headers={"Content-Type": "application/json"})

        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"
        request_id = response.headers["x-request-id"]
        told = gateway.wait_for_event("admin.not_done", lambda event: event["request_id"] == request_id)
        assert (told["status"], told["reason"]) == (status, response.json()["code"])
        assert all(event.get("request_id") != request_id for event in gateway.events("admin.refused"))


class TestTenants:
    def test_a_hold_is_in_force_with_its_answer_and_ends_with_its_end(
        self, gateway: Gateway, admin: httpx.Client, issuer: Issuer
    ) -> None:
        with gateway.client(issuer.token()) as client:
            assert client.post(SALES).status_code == 200
            put = admin.put(
                f"/api/tenants/{TENANT_ID}/read-only",
                json={"reason": "stock-taking", "until": "2099-01-01T00:00:00Z", "by": "Eva"},
            )
            refused = client.post(SALES)
            shown = admin.get(f"/api/tenants/{TENANT_ID}").json()
            deleted = admin.delete(f"/api/tenants/{TENANT_ID}/read-only")

            assert put.status_code == deleted.status_code == 200
            assert code_of(refused) == (403, "tenant-read-only")
            assert refused.json()["read_only_reason"] == "stock-taking"
            assert refused.json()["read_only_until"] == "2099-01-01T00:00:00Z"
            assert (shown["read_only"]["reason"], shown["read_only"]["by"]) == ("stock-taking", "Eva")
            assert client.post(SALES).status_code == 200

        told = gateway.wait_for_event("admin.tenant.read_only.set", lambda event: event["tenant_id"] == TENANT_ID)
        assert (told["who"], told["client"], told["before"]["read_only"]) == ("admin", "127.0.0.1", None)
        assert told["after"]["read_only"]["reason"] == "stock-taking"
        assert gateway.wait_for_event("admin.tenant.read_only.cleared")["after"]["read_only"] is None

    def test_a_changed_subscription_ends_older_tokens_at_once(
        self, gateway: Gateway, admin: httpx.Client, issuer: Issuer
    ) -> None:
        tenant_id = "tenant-that-upgrades"
        with gateway.client(issuer.token(tenant_id=tenant_id)) as client:
            assert client.get(SALES).status_code == 200

            assert admin.post(f"/api/tenants/{tenant_id}/subscription-changed").status_code == 200

            assert code_of(client.get(SALES)) == (401, "token-stale")

    def test_over_redis_both_instances_obey_at_once(
        self, start_gateway: StartGateway, issuer: Issuer, redis_server: RedisServer
    ) -> None:
        settings = {
            "REDIS_HOST": redis_server.host,
            "REDIS_PORT": str(redis_server.port),
            "REDIS_TIMEOUT_MS": "1000",
        }
        one, two = start_gateway(settings), start_gateway(settings)
        path = f"/api/tenants/{TENANT_ID}"
        with one.admin() as admin, two.admin() as second_admin, two.client(issuer.token()) as client:
            assert client.post(SALES).status_code == 200
            assert admin.put(f"{path}/read-only", json={"reason": "audit"}).status_code == 200
            assert code_of(client.post(SALES)) == (403, "tenant-read-only")
            assert second_admin.get(path).json()["read_only"]["reason"] == "audit"
            assert second_admin.delete(f"{path}/read-only").status_code == 200
            assert client.post(SALES).status_code == 200
            assert admin.post(f"{path}/subscription-changed").status_code == 200
            assert code_of(client.get(SALES)) == (401, "token-stale")
        assert b"." in redis_server.command("GET", f"tenant:{TENANT_ID}:subscription_changed_at")

    def test_without_redis_a_change_is_refused_and_said_to_be(
        self, start_gateway: StartGateway, own_redis: RedisServer
    ) -> None:
        gateway = start_gateway({"REDIS_HOST": own_redis.host, "REDIS_PORT": str(own_redis.port)})
        own_redis.kill()
        with gateway.admin() as admin:
            until(lambda: admin.get("/health").json()["redis"] == "disconnected")
            for call in (admin.put, admin.post):
                name = "read-only" if call == admin.put else "subscription-changed"
                response = call(f"/api/tenants/{TENANT_ID}/{name}")
                assert code_of(response) == (503, "state-unavailable")
                assert int(response.headers["retry-after"]) >= 1
            assert admin.get("/api/config").status_code == 200


class TestToken:
    def test_without_one_set_it_is_made_for_this_user_alone(self, start_gateway: StartGateway) -> None:
        gateway = start_gateway({"ADMIN_TOKEN": None})
        file = gateway.folder / "bakerygw-admin-token"
        token = file.read_text().strip()

        assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
        assert len(token) >= 32
        assert gateway.wait_for_event("gateway.started")["admin_token_file"] == str(file)
        assert token not in gateway.output
        with httpx.Client(base_url=gateway.admin_url, trust_env=False) as client:
            assert client.get("/api/config", headers={"Authorization": f"Bearer {token}"}).status_code == 200
            assert client.get("/api/config").status_code == 401
        gateway.terminate()
        assert not file.exists()

    def test_without_a_runtime_folder_it_goes_to_the_working_directory(self, start_gateway: StartGateway) -> None:
        gateway = start_gateway({"ADMIN_TOKEN": None, "XDG_RUNTIME_DIR": ""})

        assert gateway.wait_for_event("gateway.started")["admin_token_file"] == str(
            gateway.folder / "bakerygw-admin-token"
        )

    def test_a_link_laid_in_its_place_is_not_followed(self, start_gateway: StartGateway, tmp_path: Any) -> None:
        target = tmp_path / "precious"
        target.write_text("keep me")
        runtime = tmp_path / "run"
        runtime.mkdir()
        (runtime / "bakerygw-admin-token").symlink_to(target)

        start_gateway({"ADMIN_TOKEN": None, "XDG_RUNTIME_DIR": str(runtime)})

        assert target.read_text() == "keep me"
        assert not (runtime / "bakerygw-admin-token").is_symlink()


class TestMetrics:
    def test_every_promised_metric_is_there_after_traffic(
        self, gateway: Gateway, admin: httpx.Client, issuer: Issuer
    ) -> None:
        with gateway.client(issuer.token()) as client:
            client.post(SALES, content=b"x" * 3000)
            client.get(SALES)
            client.get("/api/v1/orders/1")
            for _ in range(3):
                client.post("/api/v1/auth/login", json={})
            client.get(SALES, headers={"Authorization": "Bearer nonsense"})
        lines = exposed(admin)

        assert [name for name in PROMISED_METRICS if not any(line.startswith(name) for line in lines)] == []
        build = "compiled" if gateway.wait_for_event("gateway.started")["compiled"] else "plain"
        assert any(line.startswith(f'gateway_build_info{{build="{build}",') for line in lines)
        assert any(
            re.fullmatch(
                r'gateway_requests_total{method="GET",path="/api/v1/sales/\*\*",status_code="200"} \d+.0', line
            )
            for line in lines
        )
        assert any(
            line.startswith('gateway_requests_total{method="GET",path="/api/v1/orders/**",status_code="502"}')
            for line in lines
        )
        assert any(line.startswith('gateway_auth_attempts_total{status="token-invalid"}') for line in lines)
        assert any(line.startswith('gateway_rate_limit_exceeded_total{endpoint="/api/v1/auth/login') for line in lines)

    def test_health_and_cache_are_told_as_they_are(self, gateway: Gateway, admin: httpx.Client, issuer: Issuer) -> None:
        def value(name: str) -> float:
            return float(next(line for line in exposed(admin) if line.startswith(f"{name} ")).rpartition(" ")[2])

        hits, misses = value("gateway_auth_cache_hits_total"), value("gateway_auth_cache_misses_total")
        with gateway.client(issuer.token(user_id="cached")) as client:
            for _ in range(5):
                client.get(SALES)

        assert value("gateway_auth_cache_hits_total") - hits == 4
        assert value("gateway_auth_cache_misses_total") - misses == 1
        until(lambda: value('gateway_service_health{service_name="orders",status="unhealthy"}') == 1.0)
        assert value('gateway_service_health{service_name="sales",status="healthy"}') == 1.0
        assert value('gateway_service_health{service_name="sales",status="unhealthy"}') == 0.0

    def test_random_requests_add_no_series(self, gateway: Gateway, admin: httpx.Client, issuer: Issuer) -> None:
        random = Random(7)

        def word() -> str:
            return "".join(random.choices(string.ascii_letters + string.digits, k=12))

        def storm(count: int) -> None:
            with gateway.client() as client:
                for number in range(count):
                    token = issuer.token(user_id=word(), tenant_id=word())
                    path = (f"/{word()}/{word()}", f"/api/v1/sales/{word()}", f"/api/v1/{word()}")[number % 3]
                    method = ("GET", "POST", "DELETE")[number % 3]
                    headers = {"Authorization": f"Bearer {token}", "X-Tenant-ID": word(), "Host": f"{word()}.example"}
                    client.request(method, path, headers=headers, params={word(): word()})

        storm(30)
        for _ in range(3):
            gateway.raw(f"{word().upper()} /x HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        before = {line.rpartition(" ")[0] for line in exposed(admin)}
        storm(200)
        for _ in range(10):
            gateway.raw(f"{word().upper()} /x HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        after = {line.rpartition(" ")[0] for line in exposed(admin)}

        assert after - before == set()
        assert TENANT_ID not in "".join(after)
