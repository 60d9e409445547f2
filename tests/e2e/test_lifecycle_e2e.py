"""Starting, reloading, draining and ending, as init systems and operators see it."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.calling import SALES, Load, code_of, until
from tests.e2e.harness import (
    REPOSITORY,
    TWISTD,
    Answer,
    Gateway,
    Recorded,
    RecordingUpstream,
    answer,
    clean_environment,
    free_ports,
    run_twistd,
)
from tests.minting import Issuer
from tests.patience import PATIENCE_S

StartGateway = Callable[..., Gateway]


@contextlib.contextmanager
def under_way(gateway: Gateway, token: str, upstream: RecordingUpstream) -> Iterator[list[httpx.Response | Exception]]:
    """A request that has reached the service; inside, it is not yet answered. What came of it is in the list."""
    outcome: list[httpx.Response | Exception] = []
    reached = len(upstream.requests)

    def call() -> None:
        try:
            with gateway.client(token) as client:
                outcome.append(client.get(SALES))
        except httpx.HTTPError as error:
            outcome.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    until(lambda: len(upstream.requests) > reached)
    yield outcome
    thread.join(PATIENCE_S)


def held(release: threading.Event) -> Callable[[Recorded], object]:
    """A script that answers once it is released."""

    def script(_: Recorded) -> object:
        release.wait(PATIENCE_S)
        return answer(200, b'{"late": true}')

    return script


def refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE_S).close()
    except ConnectionRefusedError:
        return True
    return False


class TestDraining:
    @pytest.mark.parametrize("by", ["SIGTERM", "admin call"])
    def test_what_is_under_way_finishes_and_then_the_process_ends_with_0(
        self, start_gateway: StartGateway, upstream: RecordingUpstream, issuer: Issuer, by: str
    ) -> None:
        release = threading.Event()
        upstream.next(held(release))  # type: ignore[arg-type]
        gateway = start_gateway({"DRAIN_GRACE_SECONDS": "2", "DRAIN_TIMEOUT_SECONDS": str(PATIENCE_S)})

        with under_way(gateway, issuer.token(), upstream) as outcome, gateway.client() as client:
            if by == "SIGTERM":
                gateway.signal(signal.SIGTERM)
            else:
                with gateway.admin() as admin:
                    response = admin.post("/api/drain")
                    assert (response.status_code, response.json()) == (202, {"status": "draining"})
            # Load balancers need a while to notice: not ready, but still serving.
            until(lambda: gateway.status_of("/ready") == 503)
            assert gateway.status_of("/live") == 200
            assert client.get("/health").status_code == 200
            # Then nothing new is taken, while the old goes on and operators can look.
            until(lambda: refuses_connections(gateway.port))
            assert gateway.status_of("/ready") == 503
            assert gateway.process.poll() is None
            assert outcome == []
            release.set()

        (response_late,) = outcome
        assert isinstance(response_late, httpx.Response)
        assert (response_late.status_code, response_late.json()) == (200, {"late": True})
        assert gateway.wait() == 0
        assert [event["event"] for event in gateway.log][-1] == "gateway.stopped"

    def test_an_idle_gateway_ends_as_soon_as_the_grace_is_over(self, start_gateway: StartGateway) -> None:
        gateway = start_gateway({"DRAIN_GRACE_SECONDS": "0.3", "DRAIN_TIMEOUT_SECONDS": "30"})
        with gateway.client() as client:
            client.get("/health")  # its idle keep-alive connection must not hold up the end
            began = time.monotonic()

            assert gateway.terminate() == 0
            assert 0.3 <= time.monotonic() - began < 15

    def test_a_request_that_does_not_end_is_cut_at_the_timeout(
        self, start_gateway: StartGateway, upstream: RecordingUpstream, issuer: Issuer
    ) -> None:
        upstream.next(answer(never=True))
        gateway = start_gateway({"DRAIN_TIMEOUT_SECONDS": "0.5"})

        with under_way(gateway, issuer.token(), upstream) as outcome:
            began = time.monotonic()
            assert gateway.terminate() == 0
            assert 0.5 <= time.monotonic() - began < 15

        assert isinstance(outcome[0], httpx.HTTPError)
        assert gateway.events("drain.cut")[0]["requests"] == 1
        assert upstream.requests[-1].left.wait(PATIENCE_S)

    def test_a_second_sigterm_does_not_wait(
        self, start_gateway: StartGateway, upstream: RecordingUpstream, issuer: Issuer
    ) -> None:
        upstream.next(answer(never=True))
        gateway = start_gateway({"DRAIN_GRACE_SECONDS": "30", "DRAIN_TIMEOUT_SECONDS": "30"})

        with under_way(gateway, issuer.token(), upstream):
            gateway.signal(signal.SIGTERM)
            gateway.wait_for_event("gateway.draining")
            assert gateway.status_of("/ready") == 503
            gateway.signal(signal.SIGTERM)

            assert gateway.wait(15) == 0

    def test_ctrl_c_does_not_wait_for_load_balancers(self, start_gateway: StartGateway) -> None:
        gateway = start_gateway({"DRAIN_GRACE_SECONDS": "30"})

        gateway.signal(signal.SIGINT)

        assert gateway.wait(15) == 0

    def test_a_keep_alive_connection_is_told_that_it_ends(
        self, start_gateway: StartGateway, upstream: RecordingUpstream, issuer: Issuer
    ) -> None:
        release = threading.Event()
        upstream.next(held(release))  # type: ignore[arg-type]
        gateway = start_gateway()

        with under_way(gateway, issuer.token(), upstream) as outcome:
            gateway.signal(signal.SIGTERM)
            until(lambda: refuses_connections(gateway.port))
            release.set()

        assert isinstance(outcome[0], httpx.Response)
        assert outcome[0].headers["connection"] == "close"

    def test_nothing_is_left_behind(self, start_gateway: StartGateway, tmp_path: Path) -> None:
        gateway = start_gateway({"ADMIN_TOKEN": None})
        assert (gateway.folder / "bakerygw-admin-token").exists()

        gateway.terminate()

        assert list(gateway.folder.iterdir()) == []


class TestStarting:
    @pytest.mark.parametrize("busy", [False, True])
    def test_twistds_pid_file_goes_with_the_process(self, issuer: Issuer, tmp_path: Path, busy: bool) -> None:
        with contextlib.ExitStack() as held_open:
            public, admin = free_ports(2)
            if busy:
                held_open.enter_context(socket.create_server(("127.0.0.1", public)))
            settings = {"JWT_PUBLIC_KEY": issuer.public_pem, "HOST": "127.0.0.1", "DRAIN_GRACE_SECONDS": "0"}
            process = subprocess.Popen(
                [str(TWISTD), "-n", "bakerygw"],
                cwd=tmp_path,
                env=clean_environment({**settings, "PORT": str(public), "ADMIN_PORT": str(admin)}, tmp_path),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                if not busy:
                    until(lambda: not refuses_connections(public))
                    assert (tmp_path / "twistd.pid").exists()
                    process.terminate()
                assert process.wait(PATIENCE_S) == (1 if busy else 0)
            finally:
                process.kill()
                process.wait()

        assert list(tmp_path.iterdir()) == []

    def test_a_busy_port_ends_it_with_1_and_one_clear_line(self, issuer: Issuer) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            for name, other in (("PORT", "ADMIN_PORT"), ("ADMIN_PORT", "PORT")):
                ended = run_twistd(
                    env={
                        "JWT_PUBLIC_KEY": issuer.public_pem,
                        "HOST": "127.0.0.1",
                        name: str(port),
                        other: str(free_ports(1)[0]),
                        "DRAIN_GRACE_SECONDS": "30",
                    }
                )

                assert ended.returncode == 1
                (line,) = [line for line in ended.stdout.splitlines() if '"level":"error"' in line]
                assert f'"address":"127.0.0.1:{port}"' in line
                assert "Address already in use" in line
                assert "Traceback" not in ended.stdout

    def test_an_endpoint_that_cannot_be_had_ends_it_with_1_and_one_clear_line(self, issuer: Issuer) -> None:
        ended = run_twistd(
            env={
                "JWT_PUBLIC_KEY": issuer.public_pem,
                "ADMIN_PORT": str(free_ports(1)[0]),
                "LISTEN": "systemd:domain=INET:index=0",
                "DRAIN_GRACE_SECONDS": "30",
            }
        )

        assert ended.returncode == 1
        (line,) = [line for line in ended.stdout.splitlines() if '"level":"error"' in line]
        assert '"event":"listen.failed"' in line
        assert '"address":"systemd:domain=INET:index=0"' in line
        assert "frames" not in ended.stdout
        assert "Traceback" not in ended.stdout

    def test_a_second_gateway_on_the_same_ports_does_no_harm_to_the_first(
        self, start_gateway: StartGateway, issuer: Issuer
    ) -> None:
        first = start_gateway({"ADMIN_TOKEN": None})
        file = first.folder / "bakerygw-admin-token"
        token = file.read_text().strip()

        second = run_twistd(
            env={
                "JWT_PUBLIC_KEY": issuer.public_pem,
                "HOST": "127.0.0.1",
                "PORT": str(first.port),
                "ADMIN_PORT": str(first.admin_port),
                "XDG_RUNTIME_DIR": str(first.folder),
            }
        )

        assert second.returncode == 1
        assert file.read_text().strip() == token
        with httpx.Client(
            base_url=first.admin_url, headers={"Authorization": f"Bearer {token}"}, trust_env=False
        ) as admin:
            assert admin.get("/api/config").status_code == 200

    def test_what_cannot_be_built_is_told_in_one_line(self, issuer: Issuer, tmp_path: Path) -> None:
        program = (
            "from OpenSSL import crypto\nfrom bakerygw import tap\n"
            "def build(*_): raise crypto.Error('no\\nway')\n"
            "tap.build = build\noptions = tap.Options()\noptions.parseOptions([])\ntap.makeService(options)\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={**clean_environment({"JWT_PUBLIC_KEY": issuer.public_pem}, tmp_path), "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=False,
        )

        assert (ended.returncode, ended.stderr) == (1, "bakerygw: cannot be built: Error: no way\n")

    def test_every_problem_of_the_configuration_is_told_at_once_without_secrets(self, issuer: Issuer) -> None:
        ended = run_twistd(
            env={
                "PORT": "eighty",
                "SALES_SERVICE_URL": "ftp://operator:hunter22@sales/path",
                "JWT_PUBLIC_KEY": issuer.private_pem,
                "ADMIN_HOST": "0.0.0.0",
                "LOG_LEVEL": "loud",
                "REDIS_PASSWORD": "swordfish-1",
                "REDIS_PORT": "0",
                "CORS_ORIGINS": "*",
            }
        )

        assert ended.returncode == 1
        told = {line.removeprefix("bakerygw: ").partition(":")[0] for line in ended.stdout.splitlines()}
        assert told >= {
            "PORT",
            "SALES_SERVICE_URL",
            "JWT_PUBLIC_KEY",
            "ADMIN_HOST",
            "LOG_LEVEL",
            "REDIS_PORT",
            "CORS_ORIGINS",
        }
        assert "hunter22" not in ended.stdout
        assert "swordfish-1" not in ended.stdout
        assert "PRIVATE" not in ended.stdout
        assert "Traceback" not in ended.stdout

    def test_without_a_key_it_does_not_start(self) -> None:
        ended = run_twistd(env={"PORT": str(free_ports(1)[0])})

        assert ended.returncode == 1
        assert ended.stdout.startswith("bakerygw: JWT_PUBLIC_KEY: not set")
        assert len(ended.stdout.splitlines()) == 1

    @pytest.mark.parametrize("algorithm", ["HS256", "none", "ES256"])
    def test_an_algorithm_that_does_not_fit_the_key_does_not_start(self, issuer: Issuer, algorithm: str) -> None:
        ended = run_twistd(env={"JWT_PUBLIC_KEY": issuer.public_pem, "JWT_ALGORITHM": algorithm})

        assert ended.returncode == 1
        assert "JWT_ALGORITHM" in ended.stdout

    def test_check_says_yes_with_0_and_no_with_1(self, issuer: Issuer, tmp_path: Path) -> None:
        good = run_twistd("--check", env={"JWT_PUBLIC_KEY": issuer.public_pem, "SALES_SERVICE_URL": "http://sales"})
        bad = run_twistd("--check", env={"PORT": "x", "JWT_PUBLIC_KEY": "pem"})
        file = tmp_path / "gateway.toml"
        file.write_text('port = 70000\nsales_service_url = "http://sales"\n')
        from_file = run_twistd("--check", env={"JWT_PUBLIC_KEY": issuer.public_pem}, config=file)

        assert (good.returncode, good.stdout.startswith("configuration ok: ")) == (0, True)
        assert bad.returncode == 1
        assert [line.partition(":")[0] for line in bad.stdout.splitlines()] == ["PORT", "JWT_PUBLIC_KEY"]
        assert (from_file.returncode, from_file.stdout.partition(":")[0]) == (1, "PORT")

    def test_check_opens_no_port(self, issuer: Issuer) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            ended = run_twistd("--check", env={"JWT_PUBLIC_KEY": issuer.public_pem, "PORT": port, "HOST": "127.0.0.1"})

        assert ended.returncode == 0

    def test_prod_without_tls_is_no_configuration(self, issuer: Issuer) -> None:
        settings = {"JWT_PUBLIC_KEY": issuer.public_pem, "ENVIRONMENT": "prod"}

        assert run_twistd("--check", env=settings).returncode == 1
        assert run_twistd("--check", env={**settings, "TRUSTED_PROXIES": "10.0.0.0/8"}).returncode == 0

    def test_a_key_with_escaped_newlines_and_one_from_a_file_work(
        self, start_gateway: StartGateway, issuer: Issuer, tmp_path: Path
    ) -> None:
        file = tmp_path / "key.pem"
        file.write_text(issuer.public_pem)
        for settings in (
            {"JWT_PUBLIC_KEY": issuer.public_pem.replace("\n", "\\n")},
            {"JWT_PUBLIC_KEY": None, "JWT_PUBLIC_KEY_FILE": str(file)},
        ):
            with start_gateway(settings).client(issuer.token()) as client:
                assert client.get(SALES).status_code == 200

    def test_the_environment_wins_over_the_file(self, start_gateway: StartGateway, tmp_path: Path) -> None:
        file = tmp_path / "gateway.toml"
        file.write_text("rate_limit_requests = 7\nrate_limit_window_seconds = 30\n")

        gateway = start_gateway({"RATE_LIMIT_REQUESTS": "9"}, config=file)

        with gateway.client() as client:
            assert client.get(SALES).headers["ratelimit-policy"] == '"default";q=9;w=30'

    def test_several_urls_share_the_work(
        self, start_gateway: StartGateway, upstream: RecordingUpstream, issuer: Issuer
    ) -> None:
        with RecordingUpstream() as second:
            gateway = start_gateway({"SALES_SERVICE_URL": f"{upstream.url},{second.url}"})
            with gateway.client(issuer.token()) as client:
                assert {client.get(SALES).status_code for _ in range(60)} == {200}

            assert len(upstream.requests) > 5
            assert len(second.requests) > 5

    def test_any_service_url_makes_a_service(
        self, start_gateway: StartGateway, upstream: RecordingUpstream, issuer: Issuer
    ) -> None:
        gateway = start_gateway({"OVEN_CONTROL_SERVICE_URL": upstream.url})

        with gateway.client(issuer.token()) as client:
            assert client.get("/api/v1/oven-control/7/heat").status_code == 200

        assert upstream.requests[-1].target == b"/api/v1/oven-control/7/heat"


class TestReloading:
    @pytest.fixture
    def files(self, tmp_path: Path, issuer: Issuer, upstream: RecordingUpstream) -> Path:
        (tmp_path / "key.pem").write_text(issuer.public_pem)
        (tmp_path / "routes.toml").write_text("")
        self.configure(tmp_path, upstream)
        return tmp_path

    def configure(self, files: Path, upstream: RecordingUpstream, *more: str) -> None:
        lines = [
            f'jwt_public_key_file = "{files}/key.pem"',
            f'routes_file = "{files}/routes.toml"',
            f'sales_service_url = "{upstream.url}"',
            *more,
        ]
        (files / "gateway.toml").write_text("\n".join(lines) + "\n")

    @pytest.fixture
    def gateway(self, start_gateway: StartGateway, files: Path) -> Gateway:
        settings = {"JWT_PUBLIC_KEY": None, "SALES_SERVICE_URL": None}
        return start_gateway(settings, config=files / "gateway.toml")

    def reload(self, gateway: Gateway, event: str = "reload.done") -> dict[str, object]:
        told = len(gateway.events(event))
        gateway.signal(signal.SIGHUP)
        until(lambda: len(gateway.events(event)) > told)
        return gateway.events(event)[-1]

    def test_changed_routes_take_effect(self, gateway: Gateway, files: Path, issuer: Issuer) -> None:
        with gateway.client(issuer.token()) as client:
            assert client.post("/api/v1/sales/archive").status_code == 200
            assert code_of(client.get("/api/v1/cakes")) == (404, "not-found")
            (files / "routes.toml").write_text(
                '[[route]]\nprefix = "/api/v1/sales/archive"\nservice = "sales"\nmethods = ["GET"]\n'
                '[[route]]\nprefix = "/api/v1/cakes"\nservice = "sales"\nauth = "public"\ntenant = "none"\n'
            )

            assert "routes" in str(self.reload(gateway)["changed"])

            assert code_of(client.post("/api/v1/sales/archive")) == (405, "method-not-allowed")
            assert client.get("/api/v1/sales/archive").status_code == 200
            assert client.get("/api/v1/cakes").status_code == 200

    def test_another_key_takes_effect_and_the_old_ones_tokens_end(
        self, gateway: Gateway, files: Path, issuer: Issuer
    ) -> None:
        successor = Issuer()
        with gateway.client(issuer.token()) as old, gateway.client(successor.token()) as new:
            assert [old.get(SALES).status_code, new.get(SALES).status_code] == [200, 401]
            (files / "key.pem").write_text(successor.public_pem)

            self.reload(gateway)

            assert [old.get(SALES).status_code, new.get(SALES).status_code] == [401, 200]

    def test_cors_limits_level_and_services_take_effect(
        self, gateway: Gateway, files: Path, issuer: Issuer, upstream: RecordingUpstream
    ) -> None:
        from_app = {"Origin": "https://app.example"}
        with RecordingUpstream() as other, gateway.client(issuer.token(), headers=from_app) as client:
            assert "access-control-allow-origin" not in client.get(SALES).headers
            self.configure(files, other, 'cors_origins = "https://app.example"', "rate_limit_requests = 50")

            told = self.reload(gateway)

            response = client.get(SALES)
            assert response.headers["access-control-allow-origin"] == "https://app.example"
            assert response.headers["x-ratelimit-limit"] == "50"
            assert len(other.requests) == 1
            assert told["changed"] == ["cors_origins", "rate_limit_requests", "services"]
            with gateway.admin() as admin:
                assert admin.get("/api/config").json()["rate_limit_requests"] == 50

    def test_what_needs_a_restart_is_named(self, gateway: Gateway, files: Path, upstream: RecordingUpstream) -> None:
        self.configure(files, upstream, 'redis_host = "redis.example"')

        told = self.reload(gateway)

        assert (told["changed"], told["needs_restart"]) == ([], ["redis_host"])

    @pytest.mark.parametrize("fault", ["routes", "key", "setting", "syntax", "file gone"])
    def test_a_bad_configuration_keeps_the_old_and_says_why(
        self, gateway: Gateway, files: Path, issuer: Issuer, *, upstream: RecordingUpstream, fault: str
    ) -> None:
        if fault == "routes":
            (files / "routes.toml").write_text('[[route]]\nprefix = "/api/v1/x"\nservice = "nobody"\n')
        elif fault == "key":
            (files / "key.pem").write_text(issuer.private_pem)
        elif fault == "setting":
            self.configure(files, upstream, "rate_limit_requests = 0", 'log_level = "loud"')
        elif fault == "syntax":
            (files / "gateway.toml").write_text("this is = = not TOML\n")
        else:
            (files / "gateway.toml").unlink()

        told = self.reload(gateway, "reload.failed")

        problems = told["problems"]
        assert isinstance(problems, list)
        assert problems
        assert all(isinstance(problem, str) and len(problem) > 10 for problem in problems)
        if fault == "setting":
            assert {problem.partition(":")[0] for problem in problems} == {"RATE_LIMIT_REQUESTS", "LOG_LEVEL"}
        assert "PRIVATE" not in gateway.output
        assert gateway.status_of("/ready") == 200
        with gateway.client(issuer.token()) as client:
            response = client.get(SALES)
        assert (response.status_code, response.headers["x-ratelimit-limit"]) == (200, "300")

    def test_a_request_under_way_is_not_disturbed(
        self, gateway: Gateway, files: Path, issuer: Issuer, upstream: RecordingUpstream
    ) -> None:
        release = threading.Event()
        upstream.next(held(release))  # type: ignore[arg-type]
        with RecordingUpstream() as other:
            with under_way(gateway, issuer.token(), upstream) as outcome:
                self.configure(files, other)
                self.reload(gateway)
                with gateway.client(issuer.token()) as client:
                    assert client.get(SALES).status_code == 200
                release.set()

            assert isinstance(outcome[0], httpx.Response)
            assert outcome[0].json() == {"late": True}
            assert len(other.requests) == 1

    def test_a_download_arrives_whole_however_long_it_takes(
        self, start_gateway: StartGateway, files: Path, issuer: Issuer, upstream: RecordingUpstream
    ) -> None:
        settings = {"JWT_PUBLIC_KEY": None, "SALES_SERVICE_URL": None, "DRAIN_TIMEOUT_SECONDS": "0"}
        gateway = start_gateway(settings, config=files / "gateway.toml")
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n"
        upstream.next(Answer(pieces=(head, *[b"0123456789"] * 4), between_s=0.3))

        with gateway.client(issuer.token()) as client, client.stream("GET", SALES) as response:
            pieces = response.iter_raw()
            body = next(pieces)
            self.configure(files, upstream, "rate_limit_requests = 50")
            self.reload(gateway)
            body += b"".join(pieces)

        assert body == b"0123456789" * 4
        assert gateway.wait_for_event("request.done")["status"] == 200

    def test_a_malformed_file_to_trust_keeps_the_old_configuration(
        self, gateway: Gateway, files: Path, issuer: Issuer, upstream: RecordingUpstream
    ) -> None:
        (files / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n")
        self.configure(files, upstream, f'upstream_ca_file = "{files}/ca.pem"', "rate_limit_requests = 7")

        told = self.reload(gateway, "reload.failed")

        problems = told["problems"]
        assert isinstance(problems, list)
        assert [problem.partition(":")[0] for problem in problems] == ["UPSTREAM_CA_FILE"]
        with gateway.client(issuer.token()) as client:
            assert client.get(SALES).headers["x-ratelimit-limit"] == "300"

    def test_gauges_of_a_service_that_is_gone_go_too(
        self, gateway: Gateway, files: Path, issuer: Issuer, upstream: RecordingUpstream
    ) -> None:
        with gateway.client(issuer.token()) as client, gateway.admin() as admin:
            client.get(SALES)
            assert 'gateway_service_health{service_name="sales"' in admin.get("/metrics").text
            self.configure(files, upstream, f'orders_service_url = "{upstream.url}"')
            text = (files / "gateway.toml").read_text().replace("\nsales_service_url", "\n# sales_service_url")
            (files / "gateway.toml").write_text(text)

            self.reload(gateway)

            gauges = [
                line
                for line in admin.get("/metrics").text.splitlines()
                if line.startswith(("gateway_service_health{", "gateway_upstream_pool_connections{"))
            ]
        assert [line for line in gauges if '"orders"' in line]
        assert [line for line in gauges if '"sales"' in line] == []

    def test_many_reloads_under_load_fail_no_request(
        self, gateway: Gateway, files: Path, issuer: Issuer, upstream: RecordingUpstream
    ) -> None:
        with gateway.client(issuer.token()) as client, Load(client=client) as load:
            for number in range(5):
                self.configure(files, upstream, f"rate_limit_requests = {100_000 + number}")
                self.reload(gateway)
                load.go_on(5)

        assert (load.errors, set(load.statuses)) == ([], {200})
