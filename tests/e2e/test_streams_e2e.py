"""Streams of alerts from outside: two gateways over one Redis, and one with the store inside."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import redis

from bakerygw.realtime.alerts.intake import LAST_CHANCE_S
from tests.e2e.calling import WITHIN_S, until
from tests.e2e.harness import Gateway, RecordingUpstream
from tests.e2e.listening import STREAM, Reader
from tests.e2e.stage import paired
from tests.minting import OTHER_TENANT_ID, TENANT_ID, Issuer
from tests.patience import PATIENCE_S
from tests.redis_server import RedisServer

SETTINGS = {"SSE_HEARTBEAT_SECONDS": "0.5", "SSE_MAX_PER_USER": "100", "PUBLISH_TOKEN": "published-by-tests-0123456789"}


class Stand:
    """Two gateways and a publisher."""

    def __init__(self, gateways: tuple[Gateway, Gateway], store: RedisServer, issuer: Issuer) -> None:
        self.one, self.two = gateways
        self.redis = redis.Redis(store.host, store.port, decode_responses=True)
        self.issuer = issuer
        self._number = 0

    def publish(self, number: int, tenant_id: str = TENANT_ID) -> None:
        self.redis.publish(
            f"alerts:tenant:{tenant_id}", json.dumps({"alert_id": f"a{time.monotonic_ns()}", "n": number})
        )

    def token(self, **claims: Any) -> str:
        self._number += 1
        return self.issuer.token(user_id=f"reader-{self._number}", **claims)


@contextmanager
def standing(issuer: Issuer, service: RecordingUpstream, store: RedisServer, **env: str) -> Iterator[Stand]:
    with paired(issuer, store, {"SALES_SERVICE_URL": service.url, **SETTINGS, **env}) as gateways:
        yield Stand(gateways, store, issuer)


@pytest.fixture(scope="module")
def stand(issuer: Issuer, service: RecordingUpstream, module_redis: RedisServer) -> Iterator[Stand]:
    with standing(issuer, service, module_redis) as stand:
        yield stand


def test_an_alert_reaches_every_stream_of_its_tenant_on_both_instances_once_under_one_id(stand: Stand) -> None:
    elsewhere = stand.token(tenant_id=OTHER_TENANT_ID)
    with (
        Reader(stand.one, stand.token()) as a,
        Reader(stand.two, stand.token()) as b,
        Reader(stand.one, elsewhere) as c,
    ):
        for number in range(20):
            stand.publish(number)
        stand.publish(99, OTHER_TENANT_ID)
        a.has(*range(20))
        b.has(*range(20))
        c.has(99)
        ids = [[event.last_id for event in reader.events.events if event.kind == "alert"] for reader in (a, b)]

    assert ids[0] == ids[1]
    assert a.response.headers["content-type"] == "text/event-stream"
    assert a.response.headers["cache-control"] == "no-store"
    assert a.response.headers["x-accel-buffering"] == "no"


def test_a_client_goes_on_at_either_instance_without_loss_or_repeat(stand: Stand) -> None:
    token = stand.token()
    seen: list[int] = []
    last_id = ""
    for number in range(8):
        gateway = (stand.one, stand.two)[number % 2]
        with Reader(gateway, token, last_id) as reader:
            assert "gap" not in reader.kinds
            stand.publish(2 * number)
            until(lambda: 2 * number in reader.alerts)  # noqa: B023
            seen += reader.alerts
        last_id = reader.events.last_id
        stand.publish(2 * number + 1)

    assert seen == list(range(15))


def test_what_is_published_with_nobody_connected_is_replayed_by_query_too(stand: Stand) -> None:
    token = stand.token(tenant_id="nobody-here")
    with Reader(stand.one, token) as reader:
        pass
    for number in range(300):
        stand.publish(number, "nobody-here")

    with Reader(stand.two, token, params={"last_event_id": reader.events.last_id}) as back:
        back.has(*range(300))
    hello = back.first("hello").json
    assert hello["recovered"] is True
    assert hello["missed"] <= 300


@pytest.mark.parametrize("last_id", ["1-1", "nonsense", "x" * 200])
def test_a_place_that_there_is_not_is_a_gap_at_the_head(stand: Stand, last_id: str) -> None:
    with Reader(stand.one, stand.token(), last_id) as reader:
        gap = reader.first("gap")
        stand.publish(1)
        reader.has(1)

    epoch, offset = gap.last_id.split("-")
    assert (gap.json["epoch"], gap.json["offset"]) == (int(epoch), int(offset))


def test_streams_begin_at_once_and_get_heartbeats(stand: Stand) -> None:
    began = time.monotonic()
    with Reader(stand.one, stand.token()) as reader:
        assert reader.chunks[0] - began < WITHIN_S
        assert reader.events.retry_ms is not None
        until(lambda: reader.events.comments >= 2)


@pytest.mark.parametrize("method", ["HEAD", "POST"])
def test_only_get_opens_a_stream(stand: Stand, method: str) -> None:
    with stand.one.client(stand.token()) as client:
        assert client.request(method, STREAM).status_code == 405


def test_a_stream_ends_when_its_tenant_is_disconnected_and_says_so(stand: Stand) -> None:
    with (
        Reader(stand.one, stand.token(tenant_id="cut-off")) as a,
        Reader(stand.two, stand.token(tenant_id="cut-off")) as b,
    ):
        with stand.one.admin() as admin:
            assert admin.post("/api/tenants/cut-off/disconnect").is_success
        for reader in (a, b):
            assert reader.first("bye").json["reason"] == "disconnected"
            assert reader.ended.wait(PATIENCE_S)
            assert reader.error is None


def test_a_hold_is_told_on_the_stream(stand: Stand) -> None:
    with Reader(stand.two, stand.token(tenant_id="on-hold")) as reader, stand.one.admin() as admin:
        admin.put("/api/tenants/on-hold/read-only", json={"reason": "unpaid"})
        told = reader.first("tenant-state").json
        admin.delete("/api/tenants/on-hold/read-only")
        until(lambda: reader.kinds.count("tenant-state") == 2)

    assert told["read_only"]["reason"] == "unpaid"
    assert reader.events.events[-1].json["read_only"] is None
    with Reader(stand.one, stand.token(tenant_id="on-hold"), reader.events.last_id) as returned:
        assert returned.first("tenant-state").json["read_only"] is None


def test_a_reader_that_stops_reading_is_dropped_and_others_notice_nothing(stand: Stand) -> None:
    token, tenant = stand.token(tenant_id="slow"), "slow"
    with Reader(stand.one, token) as quick, stand.one.client(token) as client:
        with client.stream("GET", STREAM) as stuck:
            pieces = stuck.iter_raw()
            next(pieces)
            for number in range(220):
                text = json.dumps({"alert_id": f"s{number}", "n": number, "text": "x" * 60_000})
                stand.redis.publish(f"alerts:tenant:{tenant}", text)
                if number % 20 == 19:
                    until(lambda: len(quick.alerts) == number + 1)  # noqa: B023
            line = stand.one.wait_for_event("request.done", lambda it: it.get("reason") == "slow")
            assert (line["status"], line["route"]) == (200, STREAM)
            with pytest.raises(httpx.HTTPError):
                for _ in pieces:
                    pass
        assert quick.alerts == list(range(220))


def test_a_burst_far_beyond_the_bound_reaches_those_who_read(stand: Stand) -> None:
    token, number = stand.token(tenant_id="burst"), 200
    with ExitStack() as running:
        readers = [running.enter_context(Reader(gateway, token)) for gateway in (stand.one, stand.two) * 2]
        pipeline = stand.redis.pipeline(transaction=False)
        for n in range(number):
            pipeline.publish("alerts:tenant:burst", json.dumps({"alert_id": f"b{n}", "n": n, "text": "x" * 65_000}))
        pipeline.execute()
        for reader in readers:
            until(lambda: len(reader.alerts) >= number or reader.ended.is_set())  # noqa: B023
            assert reader.alerts == list(range(number))
            assert "gap" not in reader.kinds
            assert not reader.ended.is_set()


def test_streams_stay_while_redis_is_away_and_go_on_afterwards(
    issuer: Issuer, service: RecordingUpstream, own_redis: RedisServer
) -> None:
    with standing(issuer, service, own_redis) as stand, Reader(stand.one, stand.token()) as reader:
        stand.publish(1)
        reader.has(1)
        own_redis.suspend()
        reader.first("degraded")
        began = time.monotonic()
        with stand.one.client(stand.token()) as client:
            refused = client.get(STREAM)
        assert (refused.status_code, refused.json()["code"]) == (503, "state-unavailable")
        assert 2 <= int(refused.headers["retry-after"]) <= 10
        assert time.monotonic() - began < 15
        own_redis.resume()
        until(lambda: reader.kinds.count("hello") == 2)
        stand.publish(2)
        until(lambda: 2 in reader.alerts)
        assert reader.error is None


def test_what_an_instance_heard_before_it_stops_is_stored_while_it_drains_and_read_elsewhere(
    issuer: Issuer, service: RecordingUpstream, own_redis: RedisServer
) -> None:
    numbers = list(range(500))
    with standing(issuer, service, own_redis, DRAIN_TIMEOUT_SECONDS="25") as stand:
        for gateway in (stand.one, stand.two):
            gateway.wait_for_event("alerts.listening")
        with Reader(stand.two, stand.token()) as reader, stand.one.admin() as admin:
            stand.two.signal(signal.SIGSTOP)  # what it is sent waits for it, so that the other has to store all
            stand.redis.config_set("min-replicas-to-write", 1)  # nothing can be stored
            for number in numbers:
                stand.publish(number)
            until(lambda: "gateway_alerts_heard_total 500.0" in admin.get("/metrics").text)
            stand.one.signal(signal.SIGTERM)
            stand.one.wait_for_event("gateway.draining")
            time.sleep(1.5 * LAST_CHANCE_S)
            stand.redis.config_set("min-replicas-to-write", 0)
            assert stand.one.wait() == 0
            kept: Any = stand.redis.xrange(f"bakerygw:alerts:kept:{TENANT_ID}")
            assert [json.loads(fields["p"])["n"] for _, fields in kept] == numbers
            stand.two.signal(signal.SIGCONT)
            reader.has(*numbers)
            assert "gap" not in reader.kinds


def test_the_drain_says_goodbye_and_the_stream_ends_whole(issuer: Issuer, service: RecordingUpstream) -> None:
    """With the store inside."""
    settings = {
        "JWT_PUBLIC_KEY": issuer.public_pem,
        "SALES_SERVICE_URL": service.url,
        "DRAIN_GRACE_SECONDS": "0",
        "DRAIN_TIMEOUT_SECONDS": "5",
        **SETTINGS,
    }
    with Gateway(settings) as gateway:
        publisher = {"Authorization": f"Bearer {SETTINGS['PUBLISH_TOKEN']}"}
        with Reader(gateway, issuer.token()) as reader, gateway.admin() as admin:
            alert = {"alert_id": "1", "severity": "low", "message": "m", "timestamp": "2026-11-24T05:12:00Z", "n": 1}
            stored = admin.post(f"/api/tenants/{TENANT_ID}/alerts", json=alert, headers=publisher)
            assert stored.is_success, stored.text
            reader.has(1)
            admin.post("/api/drain")
            assert reader.first("bye").json["reason"] == "draining"
            assert reader.ended.wait(PATIENCE_S)
            assert reader.error is None
