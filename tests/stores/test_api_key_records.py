"""The records of API keys, in this process and in a real Redis."""

import time
from dataclasses import replace

import pytest
import pytest_twisted
from redis import Redis
from store_fakes import RecordingTelemetry, link_to

from bakerygw.core.api_keys import ApiKey, key_id_from, record_json, sealed, spelt
from bakerygw.ports import KeyUnreadable
from bakerygw.stores.api_keys import KEEP_S, StoredKeys
from bakerygw.stores.records import RedisRecords


def made(number: int = 0, **facts) -> ApiKey:
    key_id = key_id_from(b"%010d" % number)
    bare = ApiKey(**{
        "key_id": key_id, "tenant_id": "bakery-1", "name": "Till", "role": "pos", "routes": None, "methods": None,
        "addresses": None, "limit": None, "created_at": time.time(), "created_by": "admin", "expires_at": None,
        "revoked_at": None, "secrets": (), **facts,
    })  # fmt: skip
    return replace(bare, secrets=(sealed(bare, spelt(key_id, bytes(32)), b"", bare.created_at),))


@pytest.fixture
def keys(records) -> StoredKeys:
    return StoredKeys(records, time.time)


@pytest_twisted.ensureDeferred
async def test_a_record_is_found_and_listed_once_it_is_made(keys):
    one, two, other = made(1), made(2), made(3, tenant_id="bakery-2")
    assert await keys.find(one.key_id) is None
    for record in (one, two, other):
        assert await keys.create(record)
    assert await keys.find(one.key_id) == one
    assert await keys.ids("bakery-1") == sorted([one.key_id, two.key_id])
    assert await keys.ids(None) == sorted([one.key_id, two.key_id, other.key_id])
    assert await keys.ids("bakery-3") == []


@pytest_twisted.ensureDeferred
async def test_an_id_is_given_once(keys):
    assert await keys.create(made(1))
    assert not await keys.create(made(1, role="owner"))
    assert (await keys.find(made(1).key_id)).role == "pos"


@pytest_twisted.ensureDeferred
async def test_of_two_changes_of_one_record_one_counts(keys):
    before = made(1)
    await keys.create(before)
    assert await keys.change(before, replace(before, revoked_at=5.0))
    assert not await keys.change(before, replace(before, name="Other"))
    assert await keys.find(before.key_id) == replace(before, revoked_at=5.0)


@pytest_twisted.ensureDeferred
async def test_a_record_of_another_key_under_this_id_is_not_read(keys, records):
    one, two = made(1), made(2)
    await records.put(f"apikey:{one.key_id}", record_json(two), ttl_s=None)
    with pytest.raises(KeyUnreadable):
        await keys.find(one.key_id)


@pytest_twisted.ensureDeferred
async def test_rubbish_in_the_list_is_left_out_and_what_has_ended_can_be_unlisted(keys, records):
    record = made(1)
    await keys.create(record)
    for member in ("", "../x", "a b", "x" * 16 + "\n", "\N{SNOWMAN}"):
        await records.add("apikeys", member)
    assert await keys.ids(None) == [record.key_id]
    await keys.unlist(record.key_id, "bakery-1")
    assert (await keys.ids(None), await keys.ids("bakery-1")) == ([], [])


@pytest_twisted.ensureDeferred
async def test_a_dropped_record_is_gone(keys):
    record = made(1)
    await keys.create(record)
    await keys.drop(record.key_id)
    assert await keys.find(record.key_id) is None
    assert await keys.ids(None) == []


@pytest_twisted.ensureDeferred
async def test_the_last_use_is_what_was_told_last_and_rubbish_is_none(keys, records):
    key_id = made(1).key_id
    assert await keys.last_used(key_id) is None
    await keys.used(key_id, 1_700_000_000.4)
    assert await keys.last_used(key_id) == 1_700_000_000
    for rubbish in (b"", b"-5", b"nan", b"9" * 400, b"\xb2", b"1e9"):
        await records.put(f"apikey-used:{key_id}", rubbish, ttl_s=None)
        assert await keys.last_used(key_id) is None


@pytest_twisted.ensureDeferred
async def test_a_key_that_has_ended_is_remembered_for_a_while_and_others_for_ever(redis_server):
    link = link_to(redis_server, RecordingTelemetry())
    await link.start()
    keys, now = StoredKeys(RedisRecords(link), time.time), time.time()
    lasting, ending = made(1), made(2, expires_at=now + 100)
    await keys.create(lasting)
    await keys.create(ending)
    with Redis(port=redis_server.port) as redis:
        assert redis.ttl(f"bakerygw:apikey:{lasting.key_id}") == -1
        assert redis.ttl(f"bakerygw:apikey:{ending.key_id}") == pytest.approx(KEEP_S + 100, abs=5)
        await keys.change(lasting, replace(lasting, revoked_at=now))
        assert redis.ttl(f"bakerygw:apikey:{lasting.key_id}") == pytest.approx(KEEP_S, abs=5)
    await link.stop()
