"""Two gateways on one Redis: each alert for the notification service is accepted by it exactly once."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import redis

from tests.e2e.calling import until
from tests.e2e.harness import Gateway, RecordingUpstream, answer
from tests.e2e.recording import Answer, Recorded
from tests.minting import Issuer
from tests.redis_server import RedisServer

DUE = "bakerygw:notify:due"
TAKEN = answer(202)
HANGS = Answer(never=True)


class World:
    """Two instances, their notification service and their Redis."""

    def __init__(self, instances: list[Gateway], service: RecordingUpstream, client: redis.Redis) -> None:
        self.instances, self.service, self.redis = instances, service, client
        self.number = 0

    def publish(
        self, count: int = 1, *, tenant: str = "t1", channels: tuple[str, ...] = ("sse", "email")
    ) -> list[bytes]:
        """Alerts as other services publish them."""
        payloads = []
        for _ in range(count):
            self.number += 1
            alert = {"alert_id": f"a-{self.number}", "message": "Ofen 3: 260 °C", "channels": channels}
            payloads.append(json.dumps(alert, ensure_ascii=False, indent=1).encode())
            assert self.redis.publish(f"alerts:tenant:{tenant}", payloads[-1]) > 0
        return payloads

    def empty(self) -> bool:
        return self.redis.keys("bakerygw:notify:*") == []

    def settled(self, count: int) -> None:
        """Wait until so many requests have come, and nothing is left to be sent."""
        until(lambda: len(self.service.requests) >= count and self.empty())

    def accepted(self, payload: bytes) -> list[Recorded]:
        return [request for request in self.service.requests if request.body == payload]

    def metric(self, instance: Gateway, name: str) -> float:
        with instance.admin() as admin:
            lines = admin.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def busy(self) -> list[Gateway]:
        """The instances with a request to the notification service under way."""
        name = 'gateway_upstream_pool_connections{service="notification",state="active"}'
        living = [it for it in self.instances if it.process.poll() is None]
        return [it for it in living if self.metric(it, name) > 0]


@pytest.fixture(scope="module")
def whole(issuer: Issuer) -> Iterator[World]:
    with ExitStack() as running:
        server = running.enter_context(RedisServer())
        service = running.enter_context(RecordingUpstream())
        settings = {
            "JWT_PUBLIC_KEY": issuer.public_pem,
            "NOTIFICATION_SERVICE_URL": service.url,
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(server.port),
        }
        instances = [running.enter_context(Gateway(settings)) for _ in range(2)]
        client = running.enter_context(redis.Redis(host=server.host, port=server.port))
        for instance in instances:
            instance.wait_for_event("alerts.listening")
        yield World(instances, service, client)


@pytest.fixture
def world(whole: World) -> World:
    whole.service.reset()
    whole.service.always(TAKEN)
    return whole


def test_each_alert_with_such_a_channel_arrives_once_as_it_was_published(world: World) -> None:
    payloads = world.publish(20) + world.publish(20, tenant="t2", channels=("whatsapp",))
    world.publish(5, channels=("sse",))
    world.settled(40)
    requests = list(world.service.requests)

    assert sorted(request.body for request in requests) == sorted(payloads)
    assert len({request.value("idempotency-key") for request in requests}) == 40
    assert {(request.method, request.target) for request in requests} == {("POST", b"/api/v1/notifications/alerts")}
    first = world.accepted(payloads[0])[0]
    assert first.value("content-type") == b"application/json"
    assert first.value("x-tenant-id") == b"t1"
    assert first.value("x-is-demo") == b"false"
    assert first.value("authorization") is None
    accepted = 'gateway_notifications_total{result="accepted"}'
    until(lambda: sum(world.metric(it, accepted) for it in world.instances) == 40)
    assert len(world.service.requests) == 40


def test_what_fails_comes_again_under_the_same_key_and_what_is_refused_does_not(world: World) -> None:
    world.service.next(answer(503), answer(500))
    (payload,) = world.publish()
    world.settled(3)
    assert len(world.accepted(payload)) == 3
    assert len({request.value("idempotency-key") for request in world.accepted(payload)}) == 1

    world.service.next(answer(422))
    (unwanted,) = world.publish()
    world.settled(4)
    assert len(world.accepted(unwanted)) == 1
    told = until(lambda: [event for it in world.instances for event in it.events("notification.refused")])
    assert [(event["tenant_id"], event["cause"]) for event in told] == [("t1", "answered 422")]


def test_alerts_wait_for_a_service_that_is_down(world: World) -> None:
    world.service.stop()
    payloads = world.publish(5)
    until(lambda: world.redis.zcard(DUE) == 5)
    time.sleep(0.3)
    world.service.start()
    world.settled(5)
    assert [len(world.accepted(payload)) for payload in payloads] == [1] * 5


def test_when_the_instance_that_sends_is_killed_the_other_does_it(world: World) -> None:
    """The end of its lease is brought forward; all else takes its time."""
    world.service.next(HANGS)
    (payload,) = world.publish()
    until(lambda: len(world.accepted(payload)) == 1)
    (holder,) = until(world.busy)
    holder.signal(signal.SIGKILL)
    holder.kill()
    (name,) = world.redis.zrange(DUE, 0, -1)
    world.redis.zadd(DUE, {name: time.time() * 1000 - 1}, xx=True)
    world.settled(2)
    first, second = world.accepted(payload)
    assert first.value("idempotency-key") == second.value("idempotency-key")
    world.publish(3)
    world.settled(5)
    assert len(world.service.requests) == 5
