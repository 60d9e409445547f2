"""What stays open, over TLS on both sides of a real gateway."""

import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from tests.e2e.calling import until
from tests.e2e.harness import Gateway, free_ports
from tests.e2e.sockets import PATH
from tests.e2e.stage import NO_LIMITS
from tests.minting import TENANT_ID, Issuer
from tests.patience import PATIENCE_S

PUBLISHING = "a-token-that-only-publishes"
PIECES, PIECE_BYTES = 800, 65536


def trainer(connection: ServerConnection) -> None:
    """Echoes, but for `all`: what follows is a lot, each message with its number in front."""
    try:
        for message in connection:
            if message == "all":
                for number in range(PIECES):
                    connection.send(number.to_bytes(4, "big") + bytes(PIECE_BYTES))
            else:
                connection.send(message)
    except ConnectionClosed:
        pass


@dataclass
class Stage:
    gateway: Gateway
    trusting: ssl.SSLContext
    headers: dict[str, str]

    def connect(self) -> ClientConnection:
        url = f"wss://localhost:{self.gateway.port}{PATH}"
        return connect(url, ssl=self.trusting, additional_headers=self.headers, max_size=None, compression=None)


@pytest.fixture(scope="module")
def stage(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder: Path = tmp_path_factory.mktemp("certificate")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    serving, trusting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    issued.configure_cert(serving)
    authority.configure_trust(trusting)
    (port,) = free_ports(1)
    with serve(trainer, "127.0.0.1", 0, ssl=serving, compression=None) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        settings = {
            "PORT": str(port),
            "LISTEN": f"ssl:{port}:interface=127.0.0.1:privateKey={folder}/key.pem:certKey={folder}/cert.pem",
            "JWT_PUBLIC_KEY": issuer.public_pem,
            "TRAINING_SERVICE_URL": f"https://localhost:{service.socket.getsockname()[1]}",
            "UPSTREAM_CA_FILE": str(folder / "ca.pem"),
            "PUBLISH_TOKEN": PUBLISHING,
            **NO_LIMITS,
        }
        with Gateway(settings) as gateway:
            yield Stage(gateway, trusting, {"Authorization": f"Bearer {issuer.token()}"})


def test_messages_and_close_codes_pass(stage: Stage) -> None:
    with stage.connect() as client:
        for message in ("", "ñandú", b"\0" * 300_000):
            client.send(message)
            assert client.recv(PATIENCE_S) == message
        client.close(4001, "seen enough")
    done = until(lambda: [it for it in stage.gateway.events("request.done") if it.get("close_code") == 4001])[-1]
    assert (done["closed_by"], done["messages_in"], done["messages_out"]) == ("client", 3, 3)


def test_a_client_that_reads_late_gets_all_in_order_and_costs_little(stage: Stage) -> None:
    with stage.connect() as client:
        before = stage.gateway.rss()
        client.send("all")
        time.sleep(0.5)  # enough for all of it to come to the gateway, if that took it
        assert stage.gateway.rss() - before < PIECES * PIECE_BYTES // 3
        assert [int.from_bytes(client.recv(PATIENCE_S, decode=False)[:4], "big") for _ in range(PIECES)] == list(
            range(PIECES)
        )


def test_alerts_arrive(stage: Stage) -> None:
    base = f"https://localhost:{stage.gateway.port}"
    alert = {"alert_id": "a1", "severity": "low", "message": "m", "timestamp": "2026-01-01T00:00:00Z"}
    with (
        httpx.Client(verify=stage.trusting, headers=stage.headers, timeout=PATIENCE_S) as client,
        client.stream("GET", f"{base}/api/v1/alerts/stream") as response,
    ):
        lines = response.iter_lines()
        assert "event: hello" in (next(lines) for _ in range(5))
        told = httpx.post(
            f"{stage.gateway.admin_url}/api/tenants/{TENANT_ID}/alerts",
            json=alert,
            headers={"Authorization": f"Bearer {PUBLISHING}"},
        )
        assert told.status_code == 201
        assert "event: alert" in (next(lines) for _ in range(20))
