"""One contract for the outbox of notifications, in Redis and in this process."""

import itertools
import time

import pytest
import pytest_twisted
from redis import Redis
from store_fakes import RecordingTelemetry, link_to, pause
from test_tenant_acl import rules
from twisted.internet.task import Clock

from bakerygw.core.alerts import MAX_ALERT_BYTES, parse_alert
from bakerygw.core.notifications import MAX_WAIT_S
from bakerygw.ports import StoreUnavailable
from bakerygw.stores.events import RedisEventLog
from bakerygw.stores.outbox import BODY, DUE, HOLDER, SINCE, MemoryOutbox, RedisOutbox
from tests.patience import PATIENCE_S
from tests.redis_server import RedisServer

ONE, TWO, THREE = "t1:1-1", "t1:1-2", "t2:1-1"


class Box:
    """An outbox, and the way that the histories put something into it."""

    def __init__(self, outbox, put):
        self.outbox, self.put = outbox, put


class InRedis:
    """Outboxes of several instances over one Redis."""

    def __init__(self, server):
        self.redis = Redis(port=server.port)
        self.redis.delete(DUE, BODY, HOLDER, SINCE)
        self.link = link_to(server, RecordingTelemetry())
        self._names = itertools.count()

    def outbox(self, **bounds):
        return RedisOutbox(self.link, **{"token": lambda: f"lease {next(self._names)}", "doubt_s": 0.05, **bounds})

    def put(self, name, payload, age_s=0.0):
        self.redis.hset(BODY, name, payload)
        self.redis.zadd(DUE, {name: int((time.time() - age_s) * 1000)})

    def left(self):
        return [self.redis.zcard(DUE), self.redis.hlen(BODY), self.redis.hlen(HOLDER), self.redis.zcard(SINCE)]


@pytest_twisted.async_yield_fixture
async def in_redis(redis_server):
    there = InRedis(redis_server)
    await there.link.start()
    yield there
    await there.link.stop()
    there.redis.close()


@pytest_twisted.async_yield_fixture(params=["memory", "redis"])
async def box(request):
    if request.param == "memory":
        outbox = MemoryOutbox(time.time)
        yield Box(outbox, outbox.put)
        return
    there = InRedis(request.getfixturevalue("redis_server"))
    await there.link.start()
    yield Box(there.outbox(), there.put)
    await there.link.stop()
    there.redis.close()


def names(haul):
    return [it.name for it in haul.taken]


@pytest_twisted.ensureDeferred
async def test_an_empty_outbox_gives_nothing(box):
    haul = await box.outbox.take(4, lease_s=60)
    assert (haul.taken, haul.waiting, haul.oldest_s, haul.next_s, haul.given_up) == ((), 0, 0.0, None, {})


@pytest_twisted.ensureDeferred
async def test_what_was_put_is_taken_as_it_is_and_by_one_alone(box):
    payload = b'{"message": "\xc3\xa9\\u0000",\r\n "n": 1}'
    box.put(ONE, payload)
    first, second = await box.outbox.take(4, lease_s=60), await box.outbox.take(4, lease_s=60)
    (notification,) = first.taken
    assert (notification.name, notification.tenant_id, notification.payload) == (ONE, "t1", payload)
    assert notification.failed == 0
    assert second.taken == ()
    assert second.waiting == 1
    assert 55 < (second.next_s or 0) <= 60


@pytest_twisted.ensureDeferred
async def test_each_is_of_the_tenant_that_its_name_tells(box):
    tenants = ["t", "T", "t.1", "-t", "t" * 64]
    for tenant_id in tenants:
        box.put(f"{tenant_id}:1-1", b"{}")
        box.put(f"{tenant_id}:1-1", b"{}")  # the same, which is there
    haul = await box.outbox.take(9, lease_s=60)
    assert {it.name: it.tenant_id for it in haul.taken} == {f"{tenant_id}:1-1": tenant_id for tenant_id in tenants}
    assert (len(haul.taken), haul.waiting) == (5, 5)


@pytest_twisted.ensureDeferred
async def test_the_oldest_are_taken_first_and_no_more_than_asked_for(box):
    for name in (ONE, TWO, THREE):
        box.put(name, b"{}")
        await pause(0.003)
    haul = await box.outbox.take(2, lease_s=60)
    assert names(haul) == [ONE, TWO]
    assert haul.waiting == 3
    assert haul.next_s == 0.0
    assert names(await box.outbox.take(2, lease_s=60)) == [THREE]


@pytest_twisted.ensureDeferred
async def test_a_look_without_taking_leases_nothing(box):
    box.put(ONE, b"{}")
    look = await box.outbox.take(0, lease_s=60)
    assert (look.taken, look.waiting, look.next_s) == ((), 1, 0.0)
    assert names(await box.outbox.take(1, lease_s=60)) == [ONE]


@pytest_twisted.ensureDeferred
async def test_what_is_finished_is_gone(box):
    box.put(ONE, b"{}")
    (notification,) = (await box.outbox.take(1, lease_s=0.02)).taken
    await box.outbox.finish(notification)
    await box.outbox.finish(notification)
    await pause(0.1)
    haul = await box.outbox.take(4, lease_s=60)
    assert (haul.taken, haul.waiting) == ((), 0)


@pytest_twisted.ensureDeferred
async def test_what_is_postponed_comes_again_when_it_is_due_and_knows_its_failures(box):
    box.put(ONE, b"{}")
    (notification,) = (await box.outbox.take(1, lease_s=60)).taken
    await box.outbox.postpone(notification, 1.0, failed=3)
    haul = await box.outbox.take(1, lease_s=60)
    assert haul.taken == ()
    assert 0 < (haul.next_s or 0) <= 1.0
    assert haul.oldest_s < 1.0
    await pause(1.05)
    later = await box.outbox.take(1, lease_s=60)
    assert [it.failed for it in later.taken] == [3]
    assert later.oldest_s >= 1.0


@pytest_twisted.ensureDeferred
async def test_when_its_taker_dies_another_takes_it_after_the_lease(box):
    box.put(ONE, b"{}")
    (dead,) = (await box.outbox.take(1, lease_s=1.0)).taken
    assert (await box.outbox.take(1, lease_s=60)).taken == ()
    deadline = time.monotonic() + PATIENCE_S
    while not (haul := await box.outbox.take(1, lease_s=60)).taken:
        assert time.monotonic() < deadline
        await pause(0.01)
    (living,) = haul.taken
    assert living.name == dead.name
    assert living.lease != dead.lease


@pytest_twisted.ensureDeferred
async def test_who_has_lost_its_lease_can_not_postpone_for_the_next_holder(box):
    box.put(ONE, b"{}")
    (late,) = (await box.outbox.take(1, lease_s=0.01)).taken
    taken = ()
    while not taken:
        await pause(0.02)
        taken = (await box.outbox.take(1, lease_s=60)).taken
    await box.outbox.postpone(late, 0.0, failed=1)
    assert (await box.outbox.take(1, lease_s=60)).taken == ()


@pytest_twisted.ensureDeferred
async def test_who_learnt_of_the_acceptance_finishes_it_even_after_its_lease(box):
    box.put(ONE, b"{}")
    (late,) = (await box.outbox.take(1, lease_s=0.01)).taken
    await pause(0.03)
    await box.outbox.finish(late)
    await pause(0.1)
    assert (await box.outbox.take(1, lease_s=60)).waiting == 0


@pytest_twisted.ensureDeferred
async def test_another_alert_under_the_same_name_is_not_finished_for_it(box):
    box.put(ONE, b'{"old": 1}')
    (old,) = (await box.outbox.take(1, lease_s=60)).taken
    await box.outbox.finish(old)
    box.put(ONE, b'{"new": 1}')
    await box.outbox.finish(old)
    assert [it.payload for it in (await box.outbox.take(1, lease_s=60)).taken] == [b'{"new": 1}']


# Redis alone


@pytest_twisted.ensureDeferred
async def test_a_lease_that_ran_out_is_doubted_before_it_is_given_to_another(in_redis):
    """Redis may have been away for longer than the lease: its holder gets to say first that it was accepted."""
    outbox = in_redis.outbox(doubt_s=0.2)
    in_redis.put(ONE, b"{}")
    (held,) = (await outbox.take(1, lease_s=0.01)).taken
    await pause(0.03)
    assert (await outbox.take(1, lease_s=60)).taken == ()
    await outbox.finish(held)
    await pause(0.25)
    assert (await outbox.take(1, lease_s=60)).waiting == 0
    assert in_redis.left() == [0, 0, 0, 0]


@pytest_twisted.ensureDeferred
async def test_what_is_in_doubt_is_given_to_nobody_and_keeps_no_other_waiting(in_redis):
    outbox = in_redis.outbox(doubt_s=60)
    for number in range(10):
        in_redis.put(f"t1:1-{number}", b"{}", 10)
    assert len((await outbox.take(10, lease_s=0)).taken) == 10
    in_redis.put(THREE, b"{}")

    hauls = [await outbox.take(1, lease_s=90) for _ in range(2)]

    assert [names(haul) for haul in hauls] == [[THREE], []]
    assert 30 < hauls[1].next_s <= 60


@pytest_twisted.ensureDeferred
async def test_a_clock_of_redis_that_is_set_back_keeps_nothing_waiting(in_redis):
    """Which makes all moments that are stored lie ahead by as much."""
    outbox = in_redis.outbox()
    for name in (ONE, TWO, THREE):
        in_redis.put(name, b"{}")
    leased, postponed, _ = (await outbox.take(3, lease_s=15)).taken
    await outbox.postpone(postponed, 0.0, failed=4)
    in_redis.put(THREE, b"{}")
    in_redis.redis.hdel(HOLDER, THREE)  # as if it had never been taken
    for name, at in in_redis.redis.zrange(DUE, 0, -1, withscores=True):
        in_redis.redis.zadd(DUE, {name: at + 3_600_000})

    found = list((await outbox.take(3, lease_s=15)).taken)
    await pause(0.2)
    found += (await outbox.take(3, lease_s=15)).taken  # once the doubt is over

    assert sorted((it.name, it.failed) for it in found) == [(leased.name, 0), (postponed.name, 4), (THREE, 0)]


@pytest_twisted.ensureDeferred
async def test_what_is_put_off_as_long_as_anything_is_waits(in_redis):
    outbox = in_redis.outbox()
    in_redis.put(ONE, b"{}")
    (taken,) = (await outbox.take(1, lease_s=15)).taken
    await outbox.postpone(taken, MAX_WAIT_S, failed=9)

    haul = await outbox.take(1, lease_s=15)

    assert haul.taken == ()
    assert MAX_WAIT_S - 30 < haul.next_s <= MAX_WAIT_S


@pytest_twisted.ensureDeferred
async def test_in_doubt_the_holder_can_still_postpone(in_redis):
    outbox = in_redis.outbox(doubt_s=0.1)
    in_redis.put(ONE, b"{}")
    (held,) = (await outbox.take(1, lease_s=0.01)).taken
    await pause(0.03)
    await outbox.take(1, lease_s=60)
    await outbox.postpone(held, 0.0, failed=2)
    assert [it.failed for it in (await outbox.take(1, lease_s=60)).taken] == [2]


@pytest_twisted.ensureDeferred
async def test_beyond_the_bound_the_oldest_is_given_up_in_redis(in_redis):
    outbox = in_redis.outbox(max_waiting=2)
    for age_s, name in ((3, ONE), (2, TWO)):
        in_redis.put(name, b"{}", age_s)
    (held,) = (await outbox.take(1, lease_s=60)).taken
    await outbox.postpone(held, 30, failed=1)
    in_redis.put(THREE, b"{}", 1)
    haul = await outbox.take(4, lease_s=60)
    assert held.name == ONE
    assert haul.given_up == {"overflow": 1}
    assert names(haul) == [TWO, THREE]
    assert in_redis.redis.hexists(HOLDER, ONE) is False
    assert in_redis.redis.hexists(BODY, ONE) is False


@pytest_twisted.ensureDeferred
async def test_what_is_too_old_is_given_up_in_redis(in_redis):
    outbox = in_redis.outbox(max_age_s=1000)
    in_redis.put(ONE, b"{}", 1100)
    in_redis.put(TWO, b"{}", 900)
    haul = await outbox.take(4, lease_s=60)
    assert haul.given_up == {"expired": 1}
    assert names(haul) == [TWO]
    assert 900 <= haul.oldest_s < 1000


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("no position", b"{}"),
        ("t 1:1-1", b"{}"),
        ("t1\r\nX-Evil: 1:1-1", b"{}"),
        ("x" * 65 + ":1-1", b"{}"),
        ("t1:1-" + "9" * 200, b"{}"),
        (ONE, b""),
        (ONE, b"x" * (MAX_ALERT_BYTES + 1)),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_no_gateway_has_put_there_is_removed_and_keeps_nothing_waiting(in_redis, name, payload):
    in_redis.put(name, payload, 100)
    in_redis.put(TWO, b"{}")
    haul = await in_redis.outbox().take(2, lease_s=60)
    assert names(haul) == [TWO]
    assert haul.given_up == {"unreadable": 1}
    assert haul.waiting == 1
    assert haul.oldest_s < 50
    assert in_redis.left() == [1, 1, 1, 1]


@pytest_twisted.ensureDeferred
async def test_a_holder_that_means_nothing_counts_as_none(in_redis):
    in_redis.put(ONE, b"{}")
    in_redis.redis.hset(HOLDER, ONE, "nonsense")
    assert names(await in_redis.outbox().take(1, lease_s=60)) == [ONE]


@pytest_twisted.ensureDeferred
async def test_a_name_whose_due_time_was_deleted_by_hand_is_forgotten(in_redis):
    in_redis.put(ONE, b"{}")
    outbox = in_redis.outbox()
    await outbox.take(1, lease_s=60)
    in_redis.redis.zrem(DUE, ONE)
    haul = await outbox.take(1, lease_s=60)
    assert (haul.waiting, haul.oldest_s) == (0, 0.0)
    assert in_redis.left() == [0, 0, 0, 0]


@pytest_twisted.ensureDeferred
async def test_a_key_of_another_kind_is_an_outbox_that_is_away(in_redis):
    in_redis.redis.set(DUE, "nonsense")
    with pytest.raises(StoreUnavailable):
        await in_redis.outbox().take(1, lease_s=60)


# Memory alone


@pytest_twisted.ensureDeferred
async def test_in_memory_the_oldest_is_given_up_beyond_number_and_bytes():
    outbox = MemoryOutbox(lambda: 0.0, max_waiting=2, max_bytes=10)
    for number in range(1, 4):
        outbox.put(f"t:1-{number}", b"abc")
    assert (await outbox.take(0, lease_s=1)).given_up == {"overflow": 1}
    outbox.put("t:1-4", b"abcdefgh")
    haul = await outbox.take(4, lease_s=1)
    assert names(haul) == ["t:1-4"]
    assert haul.given_up == {"overflow": 2}


@pytest_twisted.ensureDeferred
async def test_in_memory_what_is_there_is_not_put_there_again():
    outbox = MemoryOutbox(lambda: 0.0, max_bytes=10)
    outbox.put(ONE, b"12345")
    (held,) = (await outbox.take(1, lease_s=60)).taken
    outbox.put(ONE, b"67890")
    outbox.put(TWO, b"12345")
    haul = await outbox.take(2, lease_s=60)
    assert (names(haul), haul.waiting, haul.given_up) == ([TWO], 2, {})
    await outbox.finish(held)
    assert outbox.perishable == 1


@pytest_twisted.ensureDeferred
async def test_in_memory_what_is_too_old_is_given_up():
    now = [0.0]
    outbox = MemoryOutbox(lambda: now[0], max_age_s=10)
    outbox.put(ONE, b"{}")
    now[0] = 5.0
    outbox.put(TWO, b"{}")
    now[0] = 11.0
    haul = await outbox.take(4, lease_s=1)
    assert (names(haul), haul.given_up, haul.oldest_s) == ([TWO], {"expired": 1}, 6.0)


@pytest_twisted.ensureDeferred
async def test_only_what_waits_in_memory_ends_with_the_process(in_redis):
    kept, held = in_redis.outbox(), MemoryOutbox(time.time)
    in_redis.put(ONE, b"{}")
    held.put(ONE, b"{}")
    assert (kept.perishable, held.perishable) == (0, 1)
    await held.finish((await held.take(1, lease_s=5)).taken[0])
    assert held.perishable == 0


@pytest_twisted.ensureDeferred
async def test_in_memory_being_put_and_finished_again_and_again_leaves_nothing():
    outbox = MemoryOutbox(lambda: 0.0)
    for number in range(500):
        outbox.put(f"t:1-{number}", b"{}")
        (taken,) = (await outbox.take(1, lease_s=60)).taken
        await outbox.finish(taken)
    assert outbox._entries == {}
    assert outbox._bytes == 0
    assert len(outbox._due) <= 102


@pytest_twisted.ensureDeferred
async def test_the_gateways_redis_user_may_do_all_that_the_outbox_needs():
    """And what the history puts in comes out, under the names that both know."""
    with RedisServer() as server, Redis(port=server.port) as redis:
        assert server.command("ACL", "SETUSER", "bakerygw", *rules("operators.md", "bakerygw")) == b"+OK"
        link = link_to(server, RecordingTelemetry(), username="bakerygw", password="PASSWORD")
        await link.start()
        outbox = RedisOutbox(link, token=lambda: "lease", doubt_s=0.0, max_waiting=2)
        history = RedisEventLog(link, clock=Clock(), history_events=10, history_s=60)
        payloads = [b'{"channels":["email"],"n":%d}' % number for number in range(4)]
        await history.append([parse_alert("t1", payload) for payload in payloads])
        await history.append([parse_alert("t1", b'{"channels":["sse"]}')])
        redis.hset(BODY, ONE, b"")
        redis.zadd(DUE, {ONE: 1})
        haul = await outbox.take(4, lease_s=0.01)
        assert [it.payload for it in haul.taken] == payloads[2:]
        assert haul.given_up == {"overflow": 3}
        await pause(0.03)
        await outbox.take(4, lease_s=60)
        await outbox.postpone(haul.taken[0], 5, failed=1)
        await outbox.finish(haul.taken[1])
        assert redis.zcard(DUE) == 1
        await link.stop()
