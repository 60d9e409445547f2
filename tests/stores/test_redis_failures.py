"""A real Redis that hangs, dies, comes back, or wants a password."""

import time
from statistics import median

import pytest
import pytest_twisted
from store_fakes import RecordingTelemetry, link_to, pause, store_over, until
from twisted.internet.defer import Deferred

from bakerygw.core.limits import Bucket, LimitRule
from bakerygw.ports import AdmissionAsk, StoreUnavailable
from tests.patience import PATIENCE_S
from tests.redis_server import RedisServer

DEADLINE_S = 0.25
ASK = AdmissionAsk(buckets=(Bucket(key="u", rule=LimitRule(name="r", requests=1000, window_s=3600)),), tenants=("t",))


@pytest.fixture
def telemetry():
    return RecordingTelemetry()


@pytest_twisted.async_yield_fixture
async def link(own_redis, telemetry):
    link = link_to(own_redis, telemetry, timeout_s=DEADLINE_S)
    await link.start()
    yield link
    await link.stop()


@pytest.fixture
def store(link):
    return store_over(link)


async def refused_in(store) -> float:
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await store.admit(ASK)
    return time.monotonic() - begun


async def recovered(store, link, within_s: float = PATIENCE_S) -> None:
    begun = time.monotonic()
    while True:
        assert time.monotonic() - begun < within_s, link.status
        try:
            await store.admit(ASK)
        except StoreUnavailable:
            await pause(0.02)
        else:
            assert link.status == "connected"
            return


@pytest_twisted.ensureDeferred
async def test_a_hung_redis_costs_its_deadline_then_nothing_and_is_found_again(own_redis, link, store, telemetry):
    await store.admit(ASK)
    own_redis.suspend()
    waits = [await refused_in(store) for _ in range(5)]
    assert all(wait > 0.9 * DEADLINE_S for wait in waits)
    assert median(waits) < 2 * DEADLINE_S
    assert telemetry.failures == ["timeout"] * 5
    assert link.status == "disconnected"
    assert median([await refused_in(store) for _ in range(20)]) < DEADLINE_S / 5
    own_redis.resume()
    await recovered(store, link)


@pytest_twisted.ensureDeferred
async def test_a_short_hang_puts_no_reply_out_of_step(own_redis, link, store):
    await link.call("SET", "a", "1")
    await link.call("SET", "b", "2")
    own_redis.suspend()
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await link.call("GET", "a")
    own_redis.resume()
    await pause(0.05)
    assert [await link.call("GET", key) for key in ("b", "a", "b")] == [b"2", b"1", b"2"]


@pytest_twisted.ensureDeferred
async def test_a_hung_redis_is_noticed_without_traffic(own_redis, link):
    own_redis.suspend()
    await until(link, "disconnected")
    own_redis.resume()
    await until(link, "connected")


@pytest_twisted.ensureDeferred
async def test_a_killed_redis_is_found_again_on_the_same_port_without_its_scripts(own_redis, link, store):
    await store.admit(ASK)
    own_redis.kill()
    await until(link, "disconnected")
    assert await refused_in(store) < DEADLINE_S
    own_redis.start()
    await recovered(store, link)
    assert (await store.admit(ASK)).levels[0].remaining >= 990


@pytest_twisted.ensureDeferred
async def test_a_redis_that_is_away_at_the_start_is_found_when_it_comes(own_redis, telemetry):
    own_redis.stop()
    link = link_to(own_redis, telemetry)
    await link.start()
    assert link.status == "disconnected"
    own_redis.start()
    await until(link, "connected")
    await link.stop()


@pytest.mark.parametrize("password", [None, "wrong"])
@pytest_twisted.ensureDeferred
async def test_without_the_right_password_the_link_is_down_and_keeps_trying(telemetry, password):
    with RedisServer(password="secret") as server:
        link = link_to(server, telemetry, password=password)
        await link.start()
        assert link.status == "disconnected"
        with pytest.raises(StoreUnavailable):
            await link.call("GET", "k")
        server.command("CONFIG", "SET", "requirepass", password or "")
        await until(link, "connected")
        await link.stop()


@pytest_twisted.ensureDeferred
async def test_password_user_and_database_are_used(telemetry):
    with RedisServer(password="secret") as server:
        server.command("ACL", "SETUSER", "gw", "on", ">pw", "~*", "+@all")
        link = link_to(server, telemetry, username="gw", password="pw", db=2)
        await link.start()
        assert await link.call("ACL", "WHOAMI") == b"gw"
        await link.call("SET", "k", "v")
        assert b"db2:keys=1" in server.command("INFO", "keyspace")
        await link.stop()


@pytest_twisted.ensureDeferred
async def test_a_replica_that_takes_no_writes_is_unavailable_until_it_does(own_redis, link, store, telemetry):
    own_redis.command("REPLICAOF", "127.0.0.1", "1")
    own_redis.command("CONFIG", "SET", "replica-serve-stale-data", "yes")
    for _ in range(5):
        await refused_in(store)
    assert telemetry.failures == ["error"] * 5
    assert link.status == "disconnected"
    own_redis.command("REPLICAOF", "NO", "ONE")
    await recovered(store, link)


@pytest_twisted.ensureDeferred
async def test_a_redis_out_of_memory_is_unavailable_until_it_has_some(own_redis, link, store):
    own_redis.command("CONFIG", "SET", "maxmemory", "1")
    await refused_in(store)
    own_redis.command("CONFIG", "SET", "maxmemory", "0")
    await recovered(store, link)


@pytest_twisted.ensureDeferred
async def test_a_connection_killed_by_the_server_is_made_anew(own_redis, link, store):
    own_redis.command("CLIENT", "KILL", "TYPE", "normal")
    await pause(0.01)
    await recovered(store, link)


@pytest_twisted.ensureDeferred
async def test_a_busy_reactor_is_not_taken_for_a_slow_redis(link, telemetry):
    from twisted.internet import reactor  # noqa: PLC0415

    for _ in range(5):
        call = Deferred.fromCoroutine(link.call("SET", "k", "v"))
        reactor.callLater(0, time.sleep, 1.2 * DEADLINE_S)
        assert await call == b"OK"
    assert telemetry.failures == []
