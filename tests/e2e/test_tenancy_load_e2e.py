"""Flags that change while both instances are busy: how long the old answer is given, and that it never returns."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Self

import httpx
import pytest
import redis

from tests.e2e.asked import settled_cost
from tests.e2e.calling import SALES, WITHIN_S, until
from tests.e2e.harness import Gateway, RecordingUpstream
from tests.e2e.relay import Relay
from tests.e2e.tenancy_rules import metric, revoked_key
from tests.minting import OTHER_TENANT_ID, TENANT_ID, Issuer
from tests.patience import PATIENCE_S
from tests.redis_server import RedisServer

PAUSE_S = 0.002
RIGHT_IN_A_ROW = 25
OK = "200"


@dataclass(kw_only=True)
class Busy:
    """One client that writes for one tenant again and again: when it asked, and what it was answered."""

    gateway: Gateway
    token: str
    tenant: str
    sent: list[float] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    fault: BaseException | None = None

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(2 * PATIENCE_S)
        assert not self._thread.is_alive(), "a call never ended"

    def settle(self, expected: str) -> None:
        """Wait until so many answers in a row are the expected one."""

        def settled() -> bool:
            return self.fault is not None or self.answers[-RIGHT_IN_A_ROW:] == [expected] * RIGHT_IN_A_ROW

        until(settled, every_s=0.005)
        assert self.fault is None

    def delay(self, since: float, expected: str) -> float:
        """How long after `since` the last request was sent that was not answered so; AssertionError if it came back."""
        after = [(sent, answer) for sent, answer in zip(self.sent, self.answers, strict=False) if sent > since]
        wrong = [sent for sent, answer in after if answer != expected]
        right = [sent for sent, answer in after if answer == expected]
        assert right
        assert not wrong or min(right) > max(wrong), "a right answer was followed by a wrong one"
        return max(wrong) - since if wrong else 0.0

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=PATIENCE_S)
        headers = {"Authorization": f"Bearer {self.token}", "X-Tenant-ID": self.tenant}
        try:
            while not self._over.is_set():
                sent = time.monotonic()
                connection.request("POST", SALES, b"{}", headers)
                response = connection.getresponse()
                body = response.read()
                self.sent.append(sent)
                self.answers.append(OK if response.status == 200 else json.loads(body)["code"])
                time.sleep(PAUSE_S)
        except Exception as error:
            self.fault = error
        finally:
            connection.close()


class Pair:
    """Two busy instances on one Redis; the second reaches it through a relay."""

    def __init__(self, running: ExitStack, server: RedisServer, issuer: Issuer, service: RecordingUpstream) -> None:
        self.relay = running.enter_context(Relay(server.host, server.port))
        self.program = running.enter_context(redis.Redis(host=server.host, port=server.port))
        self.program.set(f"tenant:{OTHER_TENANT_ID}:parent", "chain")
        paid = {"role": "admin", "tier": "starter", "status": "active", "valid_until": "2090-01-01T00:00:00Z"}
        self.token = issuer.token(tenant_access=[{"id": "chain", "include_children": True, **paid}])
        self.gateways = [
            running.enter_context(
                Gateway(
                    {
                        "JWT_PUBLIC_KEY": issuer.public_pem,
                        "SALES_SERVICE_URL": service.url,
                        "RATE_LIMIT_REQUESTS": "1000000",
                        "LOG_LEVEL": "WARNING",
                        "REDIS_HOST": "127.0.0.1",
                        "REDIS_PORT": str(port),
                        "REDIS_TIMEOUT_MS": "500",
                    }
                )
            )
            for port in (server.port, self.relay.port)
        ]
        self.admins = [running.enter_context(gateway.admin()) for gateway in self.gateways]
        self.until_trusted()

    def until_trusted(self) -> None:
        until(lambda: all(metric(admin, "gateway_mirror_trusted") == 1 for admin in self.admins))

    def cut(self) -> None:
        """End every invalidation connection."""
        self.program.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    @contextmanager
    def busy(self, tenant: str = TENANT_ID) -> Iterator[list[Busy]]:
        with ExitStack() as running:
            loads = [
                running.enter_context(Busy(gateway=gateway, token=self.token, tenant=tenant))
                for gateway in self.gateways
            ]
            for load in loads:
                load.settle(OK)
            yield loads


Change = Callable[[Pair], object]


def operator(method: str, path: str, body: object = None) -> Change:
    """Asks the first instance's admin port."""

    def change(pair: Pair) -> None:
        admin: httpx.Client = pair.admins[0]
        assert admin.request(method, f"/api/tenants/{TENANT_ID}/{path}", json=body).status_code == 200

    return change


def key(name: str, tenant: str = TENANT_ID) -> str:
    return f"tenant:{tenant}:{name}"


HELD, STALE, REVOKED = "tenant-read-only", "token-stale", "token-revoked"
PROGRAM_HOLDS: Change = lambda pair: pair.program.set(key("read_only"), "held")  # noqa: E731
PROGRAM_RELEASES: Change = lambda pair: pair.program.delete(key("read_only"))  # noqa: E731
CHANGES: dict[str, tuple[Change, Change, str]] = {
    "held by an operator": (operator("PUT", "read-only", {"reason": "x"}), operator("DELETE", "read-only"), HELD),
    "held by a program": (PROGRAM_HOLDS, PROGRAM_RELEASES, HELD),
    "changed": (
        lambda pair: pair.program.set(key("subscription_changed_at"), time.time() + 5),
        lambda pair: pair.program.delete(key("subscription_changed_at")),
        STALE,
    ),
    "revoked": (
        lambda pair: pair.program.set(revoked_key(pair.token), "1", ex=60),
        lambda pair: pair.program.delete(revoked_key(pair.token)),
        REVOKED,
    ),
}


@pytest.fixture(scope="module")
def pair(issuer: Issuer, service: RecordingUpstream) -> Iterator[Pair]:
    with RedisServer() as server, ExitStack() as running:
        yield Pair(running, server, issuer, service)


def in_force_soon(pair: Pair, loads: list[Busy], change: Change, expected: str) -> None:
    """After the change both answer so, within a second and for good."""
    change(pair)
    changed = time.monotonic()
    for load in loads:
        load.settle(expected)
    assert max(load.delay(changed, expected) for load in loads) < WITHIN_S


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_in_force_on_both_busy_instances_within_a_second(pair: Pair, name: str) -> None:
    strike, undo, refused = CHANGES[name]
    with pair.busy() as loads:
        for _ in range(3):
            in_force_soon(pair, loads, strike, refused)
            in_force_soon(pair, loads, undo, OK)


def test_a_parent_taken_away_is_in_force_on_both_busy_instances_within_a_second(pair: Pair) -> None:
    with pair.busy(OTHER_TENANT_ID) as loads:
        for _ in range(3):
            in_force_soon(
                pair, loads, lambda pair: pair.program.delete(key("parent", OTHER_TENANT_ID)), "tenant-forbidden"
            )
            in_force_soon(pair, loads, lambda pair: pair.program.set(key("parent", OTHER_TENANT_ID), "chain"), OK)


def test_a_known_chain_of_parents_costs_a_request_no_round_trip(pair: Pair) -> None:
    headers = {"X-Tenant-ID": OTHER_TENANT_ID}
    with pair.gateways[0].client(pair.token, headers=headers) as client:

        def ask() -> None:
            assert {client.post(SALES).status_code for _ in range(50)} == {200}

        ask()
        assert settled_cost(pair.program, ask) == {"EVALSHA": 50}


def test_with_invalidation_connections_killed_nothing_stale_is_trusted_and_it_heals(pair: Pair) -> None:
    with pair.busy() as loads:
        for _ in range(3):
            pair.cut()
            in_force_soon(pair, loads, PROGRAM_HOLDS, HELD)
            pair.cut()
            in_force_soon(pair, loads, PROGRAM_RELEASES, OK)
        pair.until_trusted()
        in_force_soon(pair, loads, *CHANGES["held by an operator"][::2])
        in_force_soon(pair, loads, CHANGES["held by an operator"][1], OK)


def test_with_an_invalidation_connection_that_swallows_all_nothing_stale_is_trusted_and_it_heals(pair: Pair) -> None:
    with pair.busy() as loads:
        pair.relay.swallowing.set()
        for _ in range(2):
            in_force_soon(pair, loads, PROGRAM_HOLDS, HELD)
            in_force_soon(pair, loads, PROGRAM_RELEASES, OK)
        until(lambda: [metric(admin, "gateway_mirror_trusted") for admin in pair.admins] == [1, 0])
        pair.relay.swallowing.clear()
        pair.until_trusted()
        in_force_soon(pair, loads, PROGRAM_HOLDS, HELD)
        in_force_soon(pair, loads, PROGRAM_RELEASES, OK)
        rates = [len(load.sent) / (load.sent[-1] - load.sent[0]) for load in loads]
        print("requests a second:", rates)
        assert min(rates) > 10, "each waits for what does not come"
