"""Services by name, with a resolver that hangs for one of the names."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.harness import RecordingUpstream
from tests.e2e.stage import Stage, staged
from tests.minting import Issuer
from tests.patience import PATIENCE_S

HANG_S = 6.0
CONNECT_S = 0.5
SLACK_S = 2.0
RESOLVER = f"""
import socket, time

real = socket.getaddrinfo

def getaddrinfo(host, *args, **named):
    if host in ("hanging.test", "served.test"):
        print("looking up", host, flush=True)
    if host == "hanging.test":
        time.sleep({HANG_S})
    return real("127.0.0.1" if host == "served.test" else host, *args, **named)

socket.getaddrinfo = getaddrinfo
"""
"""Python runs a `sitecustomize` before anything else, so Twisted finds this one."""


@pytest.fixture(scope="module")
def stage(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder: Path = tmp_path_factory.mktemp("resolver")
    (folder / "sitecustomize.py").write_text(RESOLVER, encoding="utf-8")
    with RecordingUpstream() as served:
        env = {
            "PYTHONPATH": str(folder),
            "ORDERS_SERVICE_URL": f"http://served.test:{served.port}",
            "EXTERNAL_SERVICE_URL": "http://hanging.test:9",
            "UPSTREAM_CONNECT_TIMEOUT": str(CONNECT_S),
            "UPSTREAM_KEEPALIVE_SECONDS": "0.01",
        }
        with staged(issuer, env) as stage:
            yield stage


def test_a_look_up_that_hangs_does_not_keep_the_process_from_ending(issuer: Issuer, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(RESOLVER.replace(str(HANG_S), "60"), encoding="utf-8")
    env = {"PYTHONPATH": str(tmp_path), "EXTERNAL_SERVICE_URL": "http://hanging.test:9"}
    with staged(issuer, env) as stage:
        stage.gateway.wait_for_event("looking up hanging.test")
        assert stage.gateway.terminate() == 0


def look_ups(stage: Stage, name: str) -> int:
    return len(stage.gateway.events(f"looking up {name}"))


def test_a_hanging_name_costs_neither_threads_nor_the_other_services(stage: Stage) -> None:
    with ExitStack() as waiting:
        for _ in range(40):
            client = waiting.enter_context(socket.create_connection(("127.0.0.1", stage.gateway.port), PATIENCE_S))
            client.sendall(stage.head(b"/api/v1/external/x"))

        for _ in range(5):
            began = time.monotonic()
            assert stage.get(b"/api/v1/orders/x").status == 200
            assert time.monotonic() - began < CONNECT_S + SLACK_S
            # unreachable, or spared by its breaker
            assert stage.get(b"/api/v1/external/x").status in (502, 503)
            assert time.monotonic() - began < 2 * CONNECT_S + SLACK_S

    assert 1 <= look_ups(stage, "hanging.test") <= 2, "requests and probes wait for the same look-up"
    assert 1 <= look_ups(stage, "served.test") < 5, "answers are kept"
