"""What the process prints: one JSON object a line, two lines a request, no secret, and never a reason to wait."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.calling import SALES, until
from tests.e2e.harness import TWISTD, Gateway, RecordingUpstream, answer, clean_environment, free_ports
from tests.minting import TENANT_ID, USER_ID, Issuer
from tests.patience import PATIENCE_S
from tests.redis_server import RedisServer

StartGateway = Callable[..., Gateway]


@pytest.fixture(scope="module")
def gateway(issuer: Issuer, service: RecordingUpstream) -> Iterator[Gateway]:
    settings = {
        "JWT_PUBLIC_KEY": issuer.public_pem,
        "SALES_SERVICE_URL": service.url,
        "AUTH_SERVICE_URL": service.url,
        "ORDERS_SERVICE_URL": f"http://127.0.0.1:{free_ports(1)[0]}",
        "RATE_LIMIT_REQUESTS": "100000",
    }
    with Gateway(settings) as running:
        yield running


def lines_of(gateway: Gateway, request_id: str) -> list[dict[str, Any]]:
    """The two lines of one request, once they are there."""

    def found() -> list[dict[str, Any]]:
        return [event for event in gateway.log if event.get("request_id") == request_id]

    until(lambda: any(event["event"] == "request.done" for event in found()))
    return found()


class TestLines:
    def test_each_request_has_a_line_before_and_one_after(
        self, gateway: Gateway, issuer: Issuer, service: RecordingUpstream
    ) -> None:
        with gateway.client(issuer.token(), headers={"X-Request-ID": "of-the-caller.1"}) as client:
            client.post(f"{SALES}?page=2", content=b"x" * 100)

        began, done = lines_of(gateway, "of-the-caller.1")

        assert (began["event"], done["event"]) == ("request.start", "request.done")
        for line in (began, done):
            assert (line["method"], line["route"], line["path"]) == ("POST", "/api/v1/sales/**", SALES)
            assert (line["client"], line["level"]) == ("127.0.0.1", "info")
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["timestamp"])
        assert (done["status"], done["user_id"], done["tenant_id"]) == (200, USER_ID, TENANT_ID)
        assert (done["bytes_in"], done["bytes_out"]) == (100, 12)
        assert 0 < done["upstream_ms"] <= done["duration_ms"] < 30_000
        assert service.requests[-1].value("X-Request-ID") == b"of-the-caller.1"

    @pytest.mark.parametrize(
        ("path", "token", "reason", "level"),
        [
            (SALES, None, "token-missing", "info"),
            ("/api/v1/none", None, "not-found", "info"),
            ("/api/v1/orders/1", "good", "upstream-unreachable", "error"),
            ("/api/v1/sales/../auth", None, "bad-request", "info"),
        ],
    )
    def test_a_refusal_says_why(
        self, gateway: Gateway, issuer: Issuer, *, path: str, token: str | None, reason: str, level: str
    ) -> None:
        bearer = f"Authorization: Bearer {issuer.token()}\r\n" if token else ""
        received = gateway.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\n{bearer}\r\n".encode())
        request_id = json.loads(received.partition(b"\r\n\r\n")[2])["request_id"]

        done = lines_of(gateway, request_id)[-1]

        assert (done["reason"], done["level"]) == (reason, level)

    def test_every_line_of_the_output_is_one_json_object(self, gateway: Gateway, issuer: Issuer) -> None:
        with gateway.client(issuer.token()) as client:
            client.get(SALES)
        for target in (
            b"/\x1b[31mred",
            b"/a\xe2\x80\xa8b",
            b"/%0d%0a%7b%22event%22:%22forged%22%7d",
            b'/"},{"a":"',
            b"/\xff",
        ):
            gateway.raw(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nUser-Agent: \x22a\\\r\n\r\n")
        gateway.raw(b"nonsense\r\n\r\n")
        with gateway.client() as client:
            last = client.get("/health").headers["x-request-id"]
        lines_of(gateway, last)

        lines = gateway.output.splitlines()
        events = [json.loads(line) for line in lines]
        assert all(isinstance(event, dict) for event in events)
        assert all({"timestamp", "level", "event"} <= event.keys() for event in events)
        assert "forged" not in {event["event"] for event in events}
        assert gateway.output.isascii()
        assert "\x1b" not in gateway.output

    def test_pretty_lines_are_for_people(self, start_gateway: StartGateway, issuer: Issuer) -> None:
        gateway = start_gateway({"STRUCTLOG_PRETTY_PRINT": "true"})
        with gateway.client(issuer.token()) as client:
            client.get(SALES)

        until(lambda: "request.done" in gateway.output)
        assert gateway.log == []

    @pytest.mark.parametrize(("level", "told"), [("DEBUG", True), ("INFO", True), ("WARNING", False), ("ERROR", False)])
    def test_the_level_of_the_settings_holds(self, start_gateway: StartGateway, level: str, told: bool) -> None:
        gateway = start_gateway({"LOG_LEVEL": level, "ORDERS_SERVICE_URL": f"http://127.0.0.1:{free_ports(1)[0]}"})
        with gateway.client() as client:
            client.get("/api/v1/none")
            client.get("/health")
        gateway.terminate()

        assert (gateway.events("request.done") != []) is told


SECRETS = {
    "password": "pa55word-4711",
    "ticket": "ticket-4711",
    "query token": "query-token-4711",
    "cookie": "cookie-4711",
    "api key": "api-key-4711",
    "basic": "YmFzaWM6NDcxMQ",
    "answer": "answer-4711",
    "set-cookie": "set-cookie-4711",
    "url password": "url-password-4711",
    "page": "page-4711",
}


class TestSecrets:
    def test_no_secret_of_a_request_is_in_the_whole_output(
        self, gateway: Gateway, service: RecordingUpstream, issuer: Issuer
    ) -> None:
        good, bad = issuer.token(), Issuer().token()
        login = {"email": "ana@panaderia.example", "password": SECRETS["password"]}
        service.next(
            answer(200, json.dumps({"access_token": SECRETS["answer"]}).encode(), ("Set-Cookie", SECRETS["set-cookie"]))
        )
        with gateway.client() as client:
            assert client.post("/api/v1/auth/login", json=login).status_code == 200
            client.get(SALES, headers={"Authorization": f"Bearer {good}", "Cookie": f"session={SECRETS['cookie']}"})
            page = f"https://app.example/board?token={SECRETS['page']}"
            client.get(SALES, headers={"Authorization": f"Bearer {good}", "Referer": page})
            assert service.requests[-1].value("Referer") == b"https://app.example/board"
            client.get("/api/v1/nowhere", headers={"Referer": page})
            client.get(SALES, headers={"Authorization": f"Bearer {bad}", "X-API-Key": SECRETS["api key"]})
            client.get(SALES, headers={"Authorization": f"Basic {SECRETS['basic']}"})
            client.get(f"/api/v1/alerts/stream?ticket={SECRETS['ticket']}&token={SECRETS['query token']}")
            client.get(f"/api/v1/sales/x?password={SECRETS['password']}")
            client.get(f"/api/v1/nowhere/{good}", headers={"Authorization": f"Bearer {good}"})
            client.get("/api/v1/orders/1", headers={"Authorization": f"Bearer {good}"})
            last = client.get("/health").headers["x-request-id"]
        gateway.raw(f"GET http://u:{SECRETS['url password']}@evil/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        gateway.raw(f"GET /a b?token={SECRETS['query token']} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        lines_of(gateway, last)

        with gateway.admin() as admin:
            told = gateway.output + admin.get("/metrics").text
        found = [name for name, secret in SECRETS.items() if secret in told]
        found += [part for token in (good, bad) for part in token.split(".")[1:] if part in gateway.output]
        assert found == []
        assert gateway.admin_token not in gateway.output
        assert "ana@panaderia.example" not in gateway.output

    def test_no_secret_of_the_settings_either(
        self, start_gateway: StartGateway, own_redis: RedisServer, issuer: Issuer
    ) -> None:
        gateway = start_gateway(
            {
                "REDIS_HOST": own_redis.host,
                "REDIS_PORT": str(own_redis.port),
                "REDIS_PASSWORD": "redis-password-4711",
                "ADMIN_TOKEN": "admin-token-4711",
                "TOKEN_CACHE_SECRET": "cache-secret-4711-of-32-characters",
                "LOG_LEVEL": "DEBUG",
            }
        )
        with gateway.client(issuer.token()) as client, gateway.admin() as admin:
            client.get(SALES)
            admin.get("/api/config")
            client.get(f"{SALES}/admin-token-4711")
            client.get("/api/v1/none/redis-password-4711")
        gateway.signal(signal.SIGHUP)
        gateway.wait_for_event("reload.done")
        gateway.terminate()

        assert "-4711" not in gateway.output


class TestStalledReader:
    @pytest.fixture
    def deaf(self, issuer: Issuer, service: RecordingUpstream, tmp_path: Path) -> Iterator[tuple[str, int, int]]:
        """A gateway whose standard output is a pipe that nobody reads: its URL, the pipe's end and its admin port."""
        public, admin = free_ports(2)
        reading, writing = os.pipe()
        settings = {
            "JWT_PUBLIC_KEY": issuer.public_pem,
            "SALES_SERVICE_URL": service.url,
            "HOST": "127.0.0.1",
            "PORT": str(public),
            "ADMIN_PORT": str(admin),
            "ADMIN_TOKEN": "token-of-the-deaf",
            "RATE_LIMIT_REQUESTS": "1000000",
            "DRAIN_GRACE_SECONDS": "0",
        }
        process = subprocess.Popen(
            [str(TWISTD), "-n", "--pidfile=", "bakerygw"],
            cwd=tmp_path,
            env=clean_environment(settings, tmp_path),
            stdout=writing,
            stderr=writing,
        )
        os.close(writing)
        url = f"http://127.0.0.1:{public}"
        try:
            with httpx.Client(trust_env=False) as client:
                until(lambda: answers(client, f"{url}/health"))
            yield url, reading, admin
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
        finally:
            os.close(reading)
            process.kill()
            process.wait()

    def test_requests_go_on_and_what_is_lost_is_counted(self, deaf: tuple[str, int, int], issuer: Issuer) -> None:
        url, reading, admin_port = deaf
        slowest = 0.0
        # Long paths: each request logs some 3 KB, and the queue holds 8 MB.
        path = f"{SALES}/{'x' * 1400}"
        with httpx.Client(
            base_url=url, trust_env=False, timeout=PATIENCE_S, headers={"Authorization": f"Bearer {issuer.token()}"}
        ) as client:
            for _ in range(3500):
                began = time.monotonic()
                assert client.get(path).status_code == 200
                slowest = max(slowest, time.monotonic() - began)
            lost = dropped(admin_port)

            assert slowest < 5.0
            assert lost > 0
            began = time.monotonic()
            drained = drain(reading)
            until(lambda: len(drain(reading, drained)) > 4_000_000)
            assert time.monotonic() - began < PATIENCE_S  # a reader that is back gets what waited without delay
            client.get("/health")
            until(lambda: b"log.dropped" in drain(reading, drained))

        for line in bytes(drained).splitlines()[1:-1]:
            assert isinstance(json.loads(line), dict)  # whole lines only, however many were lost

    def test_it_also_ends_although_nobody_reads(self, deaf: tuple[str, int, int], issuer: Issuer) -> None:
        url, _, _ = deaf
        with httpx.Client(
            base_url=url, trust_env=False, headers={"Authorization": f"Bearer {issuer.token()}"}
        ) as client:
            for _ in range(200):  # more than the pipe holds
                assert client.get(f"{SALES}/{'x' * 1400}").status_code == 200


def answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def dropped(admin_port: int) -> float:
    with httpx.Client(trust_env=False) as client:
        lines = client.get(f"http://127.0.0.1:{admin_port}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("gateway_log_lines_dropped_total ")).split()[1])


def drain(reading: int, into: bytearray | None = None) -> bytearray:
    """Read what is in the pipe, and what follows while it is made room for."""
    received = bytearray() if into is None else into
    os.set_blocking(reading, False)
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 0.5:
        try:
            received += os.read(reading, 1 << 20)
            quiet_since = time.monotonic()
        except BlockingIOError:
            time.sleep(0.005)
    return received
