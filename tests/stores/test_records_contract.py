"""One contract for records in Redis and in this process."""

import pytest
import pytest_twisted
from redis import Redis
from store_fakes import RecordingTelemetry, link_to, pause
from twisted.internet.defer import Deferred, gatherResults

from bakerygw.ports import StoreUnavailable
from bakerygw.stores.records import MAX_BYTES, MemoryRecords, RedisRecords


@pytest_twisted.ensureDeferred
async def test_a_record_is_what_was_put_last_until_it_is_deleted(records):
    assert await records.get("a") is None
    await records.put("a", b"1", ttl_s=None)
    await records.put("a", b"\x00\xff", ttl_s=60)
    assert await records.get("a") == b"\x00\xff"
    await records.delete("a")
    await records.delete("a")
    assert await records.get("a") is None


@pytest_twisted.ensureDeferred
async def test_a_record_ends_by_itself(records):
    await records.put("short", b"1", ttl_s=0.05)
    await records.claim("long", b"1", ttl_s=60)
    await pause(0.1)
    assert await records.get("short") is None
    assert await records.get("long") == b"1"
    assert await records.claim("short", b"2", ttl_s=None)


@pytest_twisted.ensureDeferred
async def test_of_several_claims_one_succeeds_and_stays(records):
    claims = [Deferred.fromCoroutine(records.claim("c", b"%d" % number, ttl_s=60)) for number in range(5)]
    assert await gatherResults(claims) == [True, False, False, False, False]
    assert await records.get("c") == b"0"


@pytest_twisted.ensureDeferred
async def test_only_what_is_still_as_expected_is_replaced(records):
    assert not await records.replace("r", b"1", b"2", ttl_s=None)
    await records.put("r", b"1", ttl_s=60)
    assert not await records.replace("r", b"0", b"2", ttl_s=60)
    assert await records.get("r") == b"1"
    assert await records.replace("r", b"1", b"2", ttl_s=0.5)
    assert await records.get("r") == b"2"
    await pause(0.55)
    assert await records.get("r") is None
    await records.put("r", b"3", ttl_s=None)
    assert not await records.replace("r", b"2", None, ttl_s=None)
    assert await records.replace("r", b"3", None, ttl_s=None)
    assert await records.get("r") is None


@pytest_twisted.ensureDeferred
async def test_a_set_has_what_was_put_in_and_not_taken_out(records):
    assert await records.members("s") == frozenset()
    for member in ("a", "b", "b"):
        await records.add("s", member)
    await records.remove("s", "a")
    await records.remove("s", "absent")
    assert await records.members("s") == {"b"}
    await records.remove("s", "b")
    assert await records.members("s") == frozenset()


@pytest_twisted.ensureDeferred
async def test_all_keys_in_redis_are_below_the_gateways_own_prefix(redis_server):
    link = link_to(redis_server, RecordingTelemetry())
    await link.start()
    await RedisRecords(link).put("mine", b"1", ttl_s=60)
    await RedisRecords(link).add("set", "member")
    await link.stop()
    with Redis(port=redis_server.port) as redis:
        assert sorted(redis.scan_iter("*mine")) == [b"bakerygw:mine"]
        assert sorted(redis.scan_iter("*set")) == [b"bakerygw:set"]


@pytest_twisted.ensureDeferred
async def test_of_what_no_gateway_would_write_little_is_read(redis_server):
    link = link_to(redis_server, RecordingTelemetry())
    await link.start()
    records = RedisRecords(link)
    with Redis(port=redis_server.port) as redis:
        redis.set("bakerygw:long", b"x" * (MAX_BYTES + 1))
        redis.rpush("bakerygw:list", "x")
    with pytest.raises(StoreUnavailable):
        await records.get("list")
    assert await records.get("long") == b"x" * MAX_BYTES
    await link.stop()


@pytest_twisted.ensureDeferred
async def test_a_key_of_another_kind_keeps_nobody_from_the_others(redis_server):
    link = link_to(redis_server, RecordingTelemetry())
    await link.start()
    records = RedisRecords(link)
    await records.put("good", b"1", ttl_s=60)
    await records.add("set", "member")
    for _ in range(20):
        with pytest.raises(StoreUnavailable):
            await records.get("set")
    assert await records.get("good") == b"1"
    await link.stop()


def test_beyond_its_bound_the_memory_drops_what_ends_first():
    now = [0.0]
    records = MemoryRecords(lambda: now[0], max_records=2)
    for key, ttl_s in (("for ever", None), ("soon", 10.0), ("later", 20.0)):
        records._put(key, b"1", ttl_s)
    assert [records._get(key) for key in ("for ever", "soon", "later")] == [b"1", None, b"1"]


def test_putting_one_record_again_and_again_takes_no_more_memory():
    records = MemoryRecords(lambda: 0.0)
    for _ in range(1000):
        records._put("one", b"1", 60.0)
    assert len(records._endings) <= 103
    assert records._get("one") == b"1"
