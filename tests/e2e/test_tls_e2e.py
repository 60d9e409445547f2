"""TLS by endpoint string, and what production demands of the transport."""

import json
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import trustme

from tests.e2e.calling import SALES, code_of, from_address, until
from tests.e2e.harness import Gateway, RecordingUpstream, answer, free_ports, run_twistd
from tests.minting import Issuer
from tests.patience import PATIENCE_S

StartGateway = Callable[..., Gateway]

PROXY = "127.0.0.2"
HSTS = "strict-transport-security"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with key.pem and cert.pem for localhost."""
    folder = tmp_path_factory.mktemp("certificate")
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    for pem in issued.cert_chain_pems:
        pem.write_to_path(folder / "cert.pem", append=True)
    return folder


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def ssl_endpoint(certificate: Path, port: int) -> str:
    return f"ssl:{port}:interface=127.0.0.1:privateKey={certificate}/key.pem:certKey={certificate}/cert.pem"


@pytest.fixture(scope="module")
def over_tls(issuer: Issuer, service: RecordingUpstream, certificate: Path) -> Iterator[Gateway]:
    """A production gateway with TLS of its own."""
    port = free_ports(1)[0]
    settings = {
        "ENVIRONMENT": "prod",
        "PORT": str(port),
        "LISTEN": ssl_endpoint(certificate, port),
        "JWT_PUBLIC_KEY": issuer.public_pem,
        "SALES_SERVICE_URL": service.url,
    }
    with Gateway(settings) as running:
        yield running


@pytest.fixture(scope="module")
def behind_proxy(issuer: Issuer, service: RecordingUpstream) -> Iterator[Gateway]:
    """A production gateway that leaves TLS to a proxy."""
    settings = {
        "ENVIRONMENT": "prod",
        "TRUSTED_PROXIES": f"{PROXY}/32",
        "JWT_PUBLIC_KEY": issuer.public_pem,
        "SALES_SERVICE_URL": service.url,
        "RATE_LIMIT_REQUESTS": "1000",
        "RATE_LIMIT_WINDOW_SECONDS": "86400",
    }
    with Gateway(settings) as running:
        yield running


class TestOwnTls:
    def test_requests_over_tls_are_served_and_known_as_such(
        self, over_tls: Gateway, authority: trustme.CA, service: RecordingUpstream, issuer: Issuer
    ) -> None:
        with httpx.Client(verify=trusting(authority), trust_env=False) as client:
            response = client.get(
                f"https://localhost:{over_tls.port}{SALES}", headers={"Authorization": f"Bearer {issuer.token()}"}
            )

        assert response.status_code == 200
        assert response.headers[HSTS].startswith("max-age=31536000")
        assert service.requests[-1].value("X-Forwarded-Proto") == b"https"
        assert over_tls.status_of("/ready") == 200

    @pytest.mark.parametrize("offered", [["h2", "http/1.1"], ["http/1.1"], []])
    def test_http_2_is_never_agreed_on(self, over_tls: Gateway, authority: trustme.CA, offered: list[str]) -> None:
        context = trusting(authority)
        if offered:
            context.set_alpn_protocols(offered)

        with (
            socket.create_connection(("127.0.0.1", over_tls.port), PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            assert secure.selected_alpn_protocol() == ("http/1.1" if offered else None)
            secure.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert secure.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")

    def test_a_client_that_knows_nothing_but_http_2_is_turned_away(
        self, over_tls: Gateway, authority: trustme.CA
    ) -> None:
        context = trusting(authority)
        context.set_alpn_protocols(["h2"])

        with socket.create_connection(("127.0.0.1", over_tls.port), PATIENCE_S) as plain, pytest.raises(ssl.SSLError):
            context.wrap_socket(plain, server_hostname="localhost")

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_current_versions_of_tls_are_spoken(
        self, over_tls: Gateway, authority: trustme.CA, version: ssl.TLSVersion
    ) -> None:
        context = trusting(authority)
        context.minimum_version = context.maximum_version = version

        with httpx.Client(verify=context, trust_env=False) as client:
            assert client.get(f"https://localhost:{over_tls.port}/health").status_code == 200

    def test_old_versions_of_tls_are_not(self, over_tls: Gateway) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            context.minimum_version = ssl.TLSVersion.TLSv1
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1

        with socket.create_connection(("127.0.0.1", over_tls.port), PATIENCE_S) as plain, pytest.raises(ssl.SSLError):
            context.wrap_socket(plain, server_hostname="localhost")

    def test_plain_http_on_the_tls_port_gets_nothing(self, over_tls: Gateway) -> None:
        received = over_tls.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", answers=None)

        assert b"HTTP/1.1 200" not in received
        assert over_tls.status_of("/ready") == 200

    def test_a_large_body_survives_both_ways(
        self, over_tls: Gateway, authority: trustme.CA, service: RecordingUpstream, issuer: Issuer
    ) -> None:
        large = bytes(range(256)) * 8192
        service.next(answer(200, large))
        with httpx.Client(verify=trusting(authority), trust_env=False) as client:
            response = client.post(
                f"https://localhost:{over_tls.port}{SALES}",
                content=large,
                headers={"Authorization": f"Bearer {issuer.token()}"},
            )

        assert response.content == large
        assert service.requests[-1].body == large

    def test_connections_beyond_the_cap_are_closed_at_once(
        self, issuer: Issuer, service: RecordingUpstream, certificate: Path
    ) -> None:
        port = free_ports(1)[0]
        settings = {
            "LISTEN": ssl_endpoint(certificate, port),
            "MAX_CONNECTIONS_PER_CLIENT": "2",
            "JWT_PUBLIC_KEY": issuer.public_pem,
            "SALES_SERVICE_URL": service.url,
        }
        with Gateway({**settings, "PORT": str(port)}) as gateway, ExitStack() as opened:
            before = len(list(Path(f"/proc/{gateway.pid}/fd").iterdir()))
            clients = [
                opened.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE_S)) for _ in range(20)
            ]
            assert [client.recv(1) for client in clients[2:]] == [b""] * 18
            until(lambda: len(list(Path(f"/proc/{gateway.pid}/fd").iterdir())) <= before + 4)

    def test_a_missing_certificate_ends_the_start_with_one_clear_line(self, issuer: Issuer, tmp_path: Path) -> None:
        public, admin = free_ports(2)
        ended = run_twistd(
            env={
                "JWT_PUBLIC_KEY": issuer.public_pem,
                "LISTEN": ssl_endpoint(tmp_path, public),
                "ADMIN_PORT": str(admin),
            }
        )

        assert ended.returncode == 1
        assert "Traceback (most recent" not in ended.stdout
        (line,) = ended.stdout.splitlines()
        assert line.startswith("bakerygw: LISTEN: ")
        assert line.endswith(f"{tmp_path}/key.pem: cannot be read: No such file or directory")


class TestProduction:
    @pytest.mark.parametrize("claimed", [None, "http", "https"])
    def test_plain_http_from_outside_is_refused_whatever_it_claims(
        self, behind_proxy: Gateway, service: RecordingUpstream, issuer: Issuer, claimed: str | None
    ) -> None:
        reached = len(service.requests)
        headers = {"X-Forwarded-Proto": claimed} if claimed else {}

        with behind_proxy.client(issuer.token(), headers=headers) as client:
            for path in (SALES, "/openapi.json", "/api/v1/nowhere", "/api/v1/health"):
                response = client.get(path)
                assert code_of(response) == (403, "insecure-transport")
                assert HSTS in response.headers

        assert len(service.requests) == reached

    def test_health_is_answered_plainly(self, behind_proxy: Gateway) -> None:
        with behind_proxy.client() as client:
            assert client.get("/health").status_code == 200

    def test_a_trusted_proxy_is_believed(
        self, behind_proxy: Gateway, service: RecordingUpstream, issuer: Issuer
    ) -> None:
        forwarded = {
            "X-Forwarded-Proto": "https",
            "X-Forwarded-For": "203.0.113.7",
            "X-Forwarded-Host": "api.bakery.example",
        }
        with from_address(behind_proxy, PROXY, issuer.token()) as client:
            response = client.get(SALES, headers=forwarded)

        assert response.status_code == 200
        assert HSTS in response.headers
        arrived = service.requests[-1]
        assert arrived.value("X-Forwarded-Proto") == b"https"
        assert arrived.value("X-Forwarded-For") == f"203.0.113.7, {PROXY}".encode()
        assert (
            behind_proxy.wait_for_event(
                "request.done", lambda event: event["request_id"] == response.headers["x-request-id"]
            )["client"]
            == "203.0.113.7"
        )

    @pytest.mark.parametrize("claimed", [None, "http", "https, http", "wss"])
    def test_a_trusted_proxy_that_speaks_of_plain_http_is_believed_too(
        self, behind_proxy: Gateway, issuer: Issuer, claimed: str | None
    ) -> None:
        headers = {"X-Forwarded-Proto": claimed} if claimed else {}
        with from_address(behind_proxy, PROXY, issuer.token()) as client:
            assert code_of(client.get(SALES, headers=headers)) == (403, "insecure-transport")

    def test_the_client_behind_the_proxy_pays_not_the_proxy(self, behind_proxy: Gateway) -> None:
        with from_address(behind_proxy, PROXY) as client:

            def left(address: str) -> int:
                headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": address}
                return int(client.get(SALES, headers=headers).headers["x-ratelimit-remaining"])

            assert [left("198.51.100.1"), left("198.51.100.1"), left("198.51.100.2")] == [999, 998, 999]
            # Of one customer's IPv6 addresses all count as one, and what a client put in front is not believed.
            assert [left("2001:db8::1"), left("2001:db8::ffff:2"), left("2001:db8:0:1::1")] == [999, 998, 999]
            assert left("192.0.2.1, 198.51.100.1") == 997

    def test_outside_production_plain_http_is_served_without_hsts(
        self, start_gateway: StartGateway, issuer: Issuer
    ) -> None:
        with start_gateway().client(issuer.token()) as client:
            response = client.get(SALES)

        assert response.status_code == 200
        assert HSTS not in response.headers


class TestOtherEndpoints:
    def test_a_unix_socket_serves_and_is_removed(
        self, start_gateway: StartGateway, issuer: Issuer, tmp_path: Path
    ) -> None:
        path = tmp_path / "public.sock"
        gateway = start_gateway({"LISTEN": f"unix:{path}:mode=660"})
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        transport = httpx.HTTPTransport(uds=str(path))
        headers = {"Authorization": f"Bearer {issuer.token()}"}
        with httpx.Client(transport=transport, base_url="http://gateway.example", headers=headers) as client:
            assert client.get(SALES).status_code == 200
            assert json.loads(client.get("/health").content)["status"] in ("healthy", "degraded")

        gateway.terminate()
        assert not path.exists()

    def test_the_admin_port_too_takes_an_endpoint(self, start_gateway: StartGateway) -> None:
        port = free_ports(1)[0]
        gateway = start_gateway({"ADMIN_PORT": str(port), "ADMIN_LISTEN": f"tcp:{port}:interface=127.0.0.1"})

        with gateway.admin() as admin:
            assert admin.get("/api/config").json()["admin_listen"] == f"tcp:{port}:interface=127.0.0.1"

    @pytest.mark.skipif(not has_ipv6(), reason="needs IPv6 on the loopback interface")
    def test_ipv6_loopback_serves(self, start_gateway: StartGateway, issuer: Issuer) -> None:
        gateway = start_gateway({"HOST": "::1"})
        with httpx.Client(trust_env=False) as client:
            response = client.get(
                f"http://[::1]:{gateway.port}{SALES}", headers={"Authorization": f"Bearer {issuer.token()}"}
            )

        assert response.status_code == 200
