"""Alerts that are published while instances die, hang and come back: kept once, or an era tells of what was missed."""

import json
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import redis

from tests.e2e.calling import until
from tests.e2e.harness import Gateway
from tests.minting import Issuer
from tests.redis_server import RedisServer

TENANT = "t-1"


class Publisher(threading.Thread):
    """A service that publishes some hundred alerts a second; a context manager."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.client = redis.Redis(port=port)
        self.published: list[bytes] = []
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.003):
            number = len(self.published)
            payload = b'{"alert_id":"%d","n":%d,"message":"%s"}' % (number, number, b"x" * 200)
            self.client.publish(f"alerts:tenant:{TENANT}", payload)
            self.published.append(payload)

    def __enter__(self) -> "Publisher":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


class Bakery:
    """A Redis of its own, and instances on it."""

    def __init__(self, server: RedisServer) -> None:
        self.server, self.client = server, redis.Redis(port=server.port)
        issuer = Issuer()
        self.env = {"REDIS_HOST": server.host, "REDIS_PORT": str(server.port), "JWT_PUBLIC_KEY": issuer.public_pem}

    def gateway(self) -> Gateway:
        return Gateway({**self.env, "SSE_HISTORY_EVENTS": "100000"})

    @property
    def kept(self) -> list[bytes]:
        return [fields[b"p"] for _, fields in self.client.xrange(f"bakerygw:alerts:kept:{TENANT}")]

    @property
    def era(self) -> bytes:
        return self.client.get("bakerygw:alerts:era").split()[0]

    def wait_for(self, number: int) -> list[bytes]:
        return until(lambda: (kept := self.kept)[number - 1 :] and kept)


@pytest.fixture
def bakery() -> Iterator[Bakery]:
    with RedisServer() as server:
        yield Bakery(server)


def again(gateway: Gateway) -> None:
    """Killed and started again; listening when this returns."""
    before = len(gateway.events("alerts.listening"))
    gateway.process.kill()
    gateway.process.wait()
    gateway.start()
    until(lambda: len(gateway.events("alerts.listening")) > before)


def test_with_one_always_listening_every_alert_is_kept_once_and_no_era_begins(bakery):
    with bakery.gateway() as first, bakery.gateway() as second:
        first.wait_for_event("alerts.listening")
        second.wait_for_event("alerts.listening")
        era = bakery.era
        with Publisher(bakery.server.port) as publisher:
            for gateway in (first, second, first):
                again(gateway)
            second.signal(signal.SIGSTOP)
            time.sleep(0.7)
            second.signal(signal.SIGCONT)
            bakery.client.client_kill_filter(_type="normal", skipme=True)  # all but what hears
            until(lambda: len(publisher.published) > 300)
        kept = bakery.wait_for(len(publisher.published))

        # An instance that has just begun to listen may be quicker than the other with what both have heard.
        assert sorted(kept, key=lambda payload: json.loads(payload)["n"]) == publisher.published
        assert bakery.era == era
        with second.admin() as admin:
            metrics = admin.get("/metrics").text
        assert "gateway_alerts_listening 1.0" in metrics
        assert 'gateway_alerts_placed_total{result="fresh"}' in metrics


def test_with_nobody_to_vouch_an_era_begins_and_what_one_that_hung_has_heard_is_stored(bakery):
    with bakery.gateway() as first:
        first.wait_for_event("alerts.listening")
        era = bakery.era
        bakery.client.publish(f"alerts:tenant:{TENANT}", b'{"alert_id":"1"}')
        first.signal(signal.SIGSTOP)
        bakery.client.publish(f"alerts:tenant:{TENANT}", b'{"alert_id":"2"}')
        with bakery.gateway() as second:
            assert second.wait_for_event("alerts.era")["reason"]
            second.wait_for_event("alerts.listening")
            assert bakery.era > era
            first.signal(signal.SIGCONT)
            until(lambda: bakery.kept[-1:] == [b'{"alert_id":"2"}'])  # until then the era before may still be there


def test_what_nobody_could_store_for_a_while_is_stored_when_redis_takes_it(bakery):
    with bakery.gateway() as gateway:
        gateway.wait_for_event("alerts.listening")
        era = bakery.era
        bakery.client.execute_command("CONFIG", "SET", "min-replicas-to-write", "1")
        for number in range(50):
            bakery.client.publish(f"alerts:tenant:{TENANT}", b'{"alert_id":"%d"}' % number)
        bakery.client.publish(f"alerts:tenant:{TENANT}", b"no alert")
        gateway.wait_for_event("alerts.store", lambda event: event["state"] == "failing")
        assert gateway.wait_for_event("alerts.refused")["tenant_id"] == TENANT
        bakery.client.execute_command("CONFIG", "SET", "min-replicas-to-write", "0")
        gateway.wait_for_event("alerts.store", lambda event: event["state"] == "storing")

        assert len(bakery.wait_for(50)) == 50
        assert bakery.era == era
        assert b"no alert" not in gateway.output.encode()
