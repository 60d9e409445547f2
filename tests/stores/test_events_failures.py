"""The history of alerts in a Redis that loses, forges or refuses."""

import json
import time

import pytest
import pytest_twisted
from redis import Redis
from store_fakes import RecordingTelemetry, link_to
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from bakerygw.core.alerts import Position, parse_alert
from bakerygw.ports import StoreUnavailable
from bakerygw.stores.events import RedisEventLog
from tests.patience import PATIENCE_S

ERA, HEAD, KEPT = "bakerygw:alerts:era", "bakerygw:alerts:head:t", "bakerygw:alerts:kept:t"
START = Position(epoch=0, offset=0)
FAR = int(time.time() * 1000) + 10**9
"""A number of an era that the clock does not reach: as though Redis' clock stood still."""


def alert(message="m", **members):
    return parse_alert("t", json.dumps({"message": message, **members}).encode())


def some(*messages):
    return [alert(message) for message in messages]


def order(position):
    return position.epoch, position.offset


class Instance:
    """An instance's log, and the Redis under it."""

    def __init__(self, server, **about):
        self.telemetry = RecordingTelemetry()
        self.link = link_to(server, self.telemetry, **about)
        self.log = RedisEventLog(self.link, clock=Clock(), history_events=100, history_s=60)

    async def place(self, *messages):
        return [placed.position for placed in await self.log.append(some(*messages))]

    async def kept(self, after=START):
        page = await self.log.read("t", after, count=100, max_bytes=10**6)
        assert page.first + len(page.events) == page.head.offset + 1 or after != START
        return [json.loads(event.payload)["message"] for event in page.events]


@pytest_twisted.async_yield_fixture
async def one(redis_server):
    instance = Instance(redis_server)
    await instance.link.start()
    yield instance
    await instance.link.stop()


@pytest_twisted.async_yield_fixture
async def other(redis_server):
    instance = Instance(redis_server)
    await instance.link.start()
    yield instance
    await instance.link.stop()


@pytest.fixture
def redis(redis_server):
    with Redis(port=redis_server.port) as client:
        yield client


@pytest.fixture
def told():
    events = []

    def observe(event):
        if event.get("log_format") == "alerts.history":
            events.append((event["state"], event["reason"]))

    globalLogPublisher.addObserver(observe)
    yield events
    globalLogPublisher.removeObserver(observe)


def lose_head(redis):
    redis.delete(HEAD)


def lose_era(redis):
    redis.delete(ERA)


def lose_all(redis):
    redis.flushall()


def spoil_head(redis):
    redis.set(HEAD, "not ours")


def spoil_head_type(redis):
    redis.delete(HEAD)
    redis.rpush(HEAD, "x")


def spoil_head_numbers(redis):
    redis.set(HEAD, "9" * 16 + " 1 1")


def spoil_era(redis):
    redis.set(ERA, "x" * 100_000)


def spoil_era_type(redis):
    redis.delete(ERA)
    redis.sadd(ERA, "x")


def turn_back(redis):
    era, epoch, _ = redis.get(HEAD).split()
    redis.set(HEAD, b" ".join((era, epoch, b"1")))


def turn_back_epoch(redis):
    era, epoch, _ = redis.get(HEAD).split()
    redis.set(HEAD, b"%b %d 9" % (era, int(epoch) - 1))


LOSSES = [
    lose_head,
    lose_era,
    lose_all,
    spoil_head,
    spoil_head_type,
    spoil_head_numbers,
    spoil_era,
    spoil_era_type,
    turn_back,
    turn_back_epoch,
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("clock", ["runs", "stands"])
@pytest_twisted.ensureDeferred
async def test_after_any_loss_ids_go_on_in_a_new_epoch_from_which_nothing_is_missing(one, other, redis, loss, clock):
    if clock == "stands":
        redis.set(ERA, f"{FAR} {FAR}")
    before = await one.place("a", "b", "c")
    assert await other.kept() == ["a", "b", "c"]
    loss(redis)
    after = await other.place("d", "e")
    assert after[0].epoch > before[0].epoch
    assert [position.offset for position in after] == [1, 2]
    assert await one.kept() == await other.kept() == ["d", "e"]
    assert await one.kept(before[-1]) == ["d", "e"]
    assert (await other.log.append(some("d")))[0].position == after[0]


@pytest_twisted.ensureDeferred
async def test_a_place_that_is_told_again_is_not_taken_for_the_newest(one, redis):
    before = await one.place("a", "b", "c")
    assert await one.place("a") == before[:1]
    turn_back(redis)
    (after,) = await one.place("d")
    assert after.epoch > before[0].epoch


@pytest.mark.parametrize("loss", [lose_head, lose_all, turn_back])
@pytest_twisted.ensureDeferred
async def test_whoever_looks_first_after_a_loss_begins_the_epoch_of_all(one, other, redis, loss):
    before = await one.place("a", "b")
    loss(redis)
    head = await one.log.head("t")
    assert (head.epoch > before[0].epoch, head.offset) == (True, 0)
    assert await other.log.head("t") == head
    assert await other.place("c") == [Position(epoch=head.epoch, offset=1)]


@pytest_twisted.ensureDeferred
async def test_eras_never_go_back(one, redis):
    redis.set(ERA, f"{FAR} {FAR}")
    assert await one.log.era() == FAR
    redis.flushall()
    assert await one.log.era() > FAR
    redis.set(ERA, "5 5")
    assert await one.log.era() > FAR + 1
    assert await one.log.begin_era(5) == await one.log.era()


@pytest.mark.parametrize("forged", [10**15 - 1, 10**15, 2**53, FAR + 10**11], ids=["e15-1", "e15", "2e53", "far"])
@pytest_twisted.ensureDeferred
async def test_a_number_that_no_clock_gives_is_not_believed_and_does_no_lasting_harm(one, other, redis, forged):
    await one.place("a")
    redis.set(ERA, f"{forged} {forged}")
    redis.set(HEAD, f"{forged} {forged} {forged}")
    first = await other.place("b", "c")
    assert abs(first[0].epoch - time.time() * 1000) < 20_000
    assert [position.offset for position in first] == [1, 2]
    assert await one.place("d") == [Position(epoch=first[0].epoch, offset=3)]
    assert await one.log.era() == await other.log.era() <= first[0].epoch


@pytest.mark.parametrize("forged", [10**15 - 1, FAR + 10**11], ids=["e15-1", "far"])
@pytest_twisted.ensureDeferred
async def test_nor_is_such_an_epoch_of_the_present_era(one, redis, forged):
    era = await one.log.era()
    redis.set(HEAD, f"{era} {forged} 3")
    (placed,) = await one.place("a")
    assert abs(placed.epoch - time.time() * 1000) < 20_000
    assert placed.offset == 1


@pytest_twisted.ensureDeferred
async def test_what_a_lying_redis_has_told_is_forgotten_with_it(one, redis):
    log = RedisEventLog(Answers([0, 10**17, 5, 1]), clock=Clock(), history_events=10, history_s=10)
    await log.append(some("a"))
    log._link = one.link
    (placed,) = await log.append(some("b"))
    (next_placed,) = await log.append(some("c"))
    assert placed.position.epoch == next_placed.position.epoch < FAR


@pytest_twisted.ensureDeferred
async def test_the_memory_of_a_place_that_cannot_be_is_none(one, redis):
    (placed,) = await one.place("a")
    memory = f"bakerygw:alerts:seen:t:{alert('b').digest}"
    for forged in (f"{placed.epoch}-9", f"{placed.epoch + 1}-1", "x", "", "9" * 400, "1-1-1"):
        redis.set(memory, forged)
        (its,) = await one.log.append(some("b"))
        assert its.fresh
    redis.delete(memory)
    redis.rpush(memory, "x")
    (its,) = await one.log.append(some("b"))
    assert its.fresh


@pytest_twisted.ensureDeferred
async def test_a_memory_of_before_the_clock_was_set_back_swallows_nothing(one, redis):
    """Of Redis: what was to be remembered for a minute would be for as long as it was set back, too."""
    (placed,) = await one.place("a")
    memory = f"bakerygw:alerts:seen:t:{alert('a').digest}"
    left_ms = redis.pttl(memory)
    redis.pexpire(memory, left_ms + 30_000)  # a small step, after which the other instance hears the same message
    (heard_again,) = await one.log.append(some("a"))
    redis.pexpire(memory, left_ms + 3_600_000)
    (its,) = await one.log.append(some("a"))
    (again,) = await one.log.append(some("a"))
    redis.pexpire(memory, left_ms + 3_600_000)
    published = await one.log.publish(alert("a"))

    assert (heard_again.position, heard_again.fresh) == (placed, False)
    assert (its.position.offset, its.fresh, again.fresh) == (2, True, False)
    assert (published.position.offset, published.fresh) == (3, True)


def empty(redis):
    redis.delete(KEPT)


def other_type(redis):
    redis.delete(KEPT)
    redis.set(KEPT, "x")


def hole(redis):
    entries = redis.xrange(KEPT)
    redis.xdel(KEPT, entries[1][0])


def no_end(redis):
    entries = redis.xrange(KEPT)
    redis.xdel(KEPT, entries[-1][0])


def ahead(redis):
    redis.xadd(KEPT, {"t": 1, "p": "x"}, id="999999999999999-5")


def garbage(redis):
    first = redis.xrange(KEPT)[0][0]
    redis.delete(KEPT)
    for number in range(1, 4):
        redis.xadd(KEPT, {"x": "y"}, id=f"{first.decode().split('-')[0]}-{number}")


def foreign(redis):
    redis.delete(KEPT)
    redis.xadd(KEPT, {"t": "1", "p": "x"}, id="5-1")


def long_ago(redis):
    first = redis.xrange(KEPT)[0][0]
    redis.delete(KEPT)
    redis.xadd(KEPT, {"t": "no time", "p": "x"}, id=first)


@pytest.mark.parametrize("spoil", [empty, other_type, hole, no_end, ahead, garbage, foreign, long_ago])
@pytest.mark.parametrize("first", ["append", "read"])
@pytest_twisted.ensureDeferred
async def test_what_is_kept_and_spoilt_is_dropped_and_said_to_be_gone(one, redis, told, spoil, first):
    before = await one.place("a", "b", "c")
    spoil(redis)
    if first == "read":
        page = await one.log.read("t", Position(epoch=before[0].epoch, offset=0), count=10, max_bytes=1000)
        assert page.head == before[-1]
        messages = [json.loads(event.payload)["message"] for event in page.events]
        assert messages == (["a", "b", "c"] if spoil is ahead else [])
        assert page.first == before[-1].offset + 1 - len(page.events)
    after = await one.place("d")
    assert after == [Position(epoch=before[0].epoch, offset=4)]
    page = await one.log.read("t", before[-1], count=10, max_bytes=1000)
    assert [json.loads(event.payload)["message"] for event in page.events] in ([], ["d"])
    whole = await one.log.read("t", START, count=10, max_bytes=1000)
    assert [event.position.offset for event in whole.events] == list(range(whole.first, 5))
    assert len(told) <= 1
    again = await one.place("e")
    assert again == [Position(epoch=before[0].epoch, offset=5)]
    assert (await one.kept())[-1] == "e"
    assert len(one.telemetry.failures) == 0


@pytest.mark.parametrize("key", ["bakerygw:notify:due", "bakerygw:notify:body"])
@pytest_twisted.ensureDeferred
async def test_an_outbox_of_another_type_is_emptied_and_used(one, redis, told, key):
    redis.set(key, "x")
    said = alert(channels=["email"])
    (placed,) = await one.log.append([said])
    assert redis.hgetall("bakerygw:notify:body") == {f"t:{placed.position.text}".encode(): said.payload}
    assert redis.zcard("bakerygw:notify:due") == 1
    assert told == [("mended", "a key held what no gateway has put there, and was emptied")]


@pytest.mark.parametrize("key", ["bakerygw:alerts:ids:t", "bakerygw:alerts:ids-order:t"])
@pytest_twisted.ensureDeferred
async def test_ids_of_another_type_are_forgotten(one, redis, key):
    redis.set(key, "x")
    assert (await one.log.publish(alert(alert_id="a"))).fresh
    redis.delete(f"bakerygw:alerts:seen:t:{alert(alert_id='a').digest}")
    assert not (await one.log.publish(alert(alert_id="a"))).fresh


@pytest.mark.parametrize(
    ("rules", "refused"),
    [
        (["+publish", "resetchannels"], "publish"),
        (["-publish", "allchannels"], "publish"),
        (["+publish", "allchannels", "-xadd"], "both"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_its_user_may_not_do_is_said_and_keeps_nobody_from_redis(redis_server, redis, told, rules, refused):
    redis.execute_command("ACL", "SETUSER", "narrow", "reset", "on", ">pw", "~*", "+@all", *rules)
    instance = Instance(redis_server, username="narrow", password="pw")
    await instance.link.start()
    try:
        for _ in range(7):
            with pytest.raises(StoreUnavailable):
                await instance.log.publish(alert(alert_id="a"))
        if refused == "publish":
            assert (await instance.log.append(some("heard")))[0].position.offset == 1
            assert "PUBLISH on alerts:tenant:t: " in told[0][1]
        else:
            with pytest.raises(StoreUnavailable):
                await instance.place("heard")
        assert [state for state, _ in told] == ["refused"]
        assert await instance.link.call("PING") == b"PONG"
        assert instance.link.status == "connected"
        assert await instance.kept() == (["heard"] if refused == "publish" else [])
    finally:
        await instance.link.stop()
        redis.execute_command("ACL", "DELUSER", "narrow")


@pytest_twisted.ensureDeferred
async def test_who_may_not_read_spoils_nothing_for_others(one, redis_server, redis):
    await one.place("a")
    redis.execute_command("ACL", "SETUSER", "blind", "reset", "on", ">pw", "~*", "&*", "+@all", "-xrange")
    instance = Instance(redis_server, username="blind", password="pw")
    await instance.link.start()
    with pytest.raises(StoreUnavailable):
        await instance.kept()
    await instance.link.stop()
    redis.execute_command("ACL", "DELUSER", "blind")
    assert await one.kept() == ["a"]


@pytest_twisted.ensureDeferred
async def test_a_lower_bound_holds_at_once_and_takes_no_more_room_from_the_next_alert_on(one, redis):
    await one.place(*"abcde")
    log = RedisEventLog(one.link, clock=Clock(), history_events=2, history_s=60)
    page = await log.read("t", START, count=100, max_bytes=10_000)
    assert (page.first, len(page.events), redis.xlen(KEPT)) == (4, 2, 5)
    await log.append(some("f"))
    assert redis.xlen(KEPT) == 2


@pytest.mark.parametrize("young", [0, 1, 30])
@pytest_twisted.ensureDeferred
async def test_what_is_past_its_age_takes_no_room(one, redis, young):
    await one.place(*map(str, range(40 + young)))
    entries = redis.xrange(KEPT)
    redis.delete(KEPT)
    for number, (entry, fields) in enumerate(entries):
        came = int(fields[b"t"]) - (61_000 if number < 40 else 0)
        redis.xadd(KEPT, {"t": came, "p": fields[b"p"]}, id=entry)
    page = await one.log.read("t", START, count=100, max_bytes=10_000)
    assert (page.first, len(page.events), redis.xlen(KEPT)) == (41, young, young)


@pytest_twisted.ensureDeferred
async def test_a_full_redis_refuses_and_loses_nothing(one, redis):
    before = await one.place("a", "b")
    heard = redis.pubsub()
    heard.psubscribe("alerts:*")
    heard.get_message(timeout=PATIENCE_S)
    redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailable, match="OOM"):
            await one.place("c")
        with pytest.raises(StoreUnavailable, match="OOM"):
            await one.log.publish(alert("d", alert_id="d"))
    finally:
        redis.config_set("maxmemory", "0")
    assert heard.get_message(timeout=0.05) is None
    heard.close()
    assert await one.kept() == ["a", "b"]
    assert (await one.place("c"))[0].offset == before[-1].offset + 1
    assert (await one.log.publish(alert("d", alert_id="d"))).fresh


@pytest_twisted.ensureDeferred
async def test_a_replica_is_no_place_for_alerts(one, redis):
    await one.place("a")
    redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(StoreUnavailable, match="READONLY"):
            await one.place("b")
    finally:
        redis.execute_command("REPLICAOF", "NO", "ONE")


@pytest_twisted.ensureDeferred
async def test_every_key_ends_but_the_era_and_the_outbox_and_a_head_outlives_its_alerts(one, redis):
    await one.place("a")
    await one.log.publish(alert("b", alert_id="b", channels=["email"]))
    lasting = {key for key in redis.keys("*") if redis.ttl(key) < 0}
    assert lasting == {ERA.encode(), b"bakerygw:notify:due", b"bakerygw:notify:body"}
    assert redis.ttl(HEAD) > redis.ttl(KEPT) + 6 * 86_400
    assert 55 <= redis.ttl(KEPT) <= 60


@pytest_twisted.ensureDeferred
async def test_who_looks_keeps_a_head_alive(one, redis):
    await one.place("a")
    redis.expire(HEAD, 5)
    await one.log.head("t")
    assert redis.ttl(HEAD) > 86_400


class Answers:
    """A link that answers as the test says."""

    def __init__(self, reply):
        self.reply = reply

    async def run(self, script, keys, args):
        return self.reply


@pytest.mark.parametrize(
    "reply",
    [None, [], b"x", 5, [0], [0, 1], [0, 1, 2], [0, b"1", 2, 1], [0, [1], 2, 3], [0, 1, 2, 3, "x"], [b"refused"]],
)
@pytest_twisted.ensureDeferred
async def test_an_answer_that_makes_no_sense_is_no_answer(reply):
    log = RedisEventLog(Answers(reply), clock=Clock(), history_events=10, history_s=10)
    with pytest.raises(StoreUnavailable):
        await log.append([alert(), alert("b")])
    with pytest.raises(StoreUnavailable):
        await log.read("t", START, count=10, max_bytes=10)
    if reply != [0, 1]:
        with pytest.raises(StoreUnavailable):
            await log.era()


@pytest_twisted.ensureDeferred
async def test_what_is_refused_again_and_again_is_logged_once_a_minute(told):
    clock = Clock()
    log = RedisEventLog(Answers([b"NOPERM no"]), clock=clock, history_events=10, history_s=10)
    for wait in (0, 59, 1):
        clock.advance(wait)
        with pytest.raises(StoreUnavailable, match="NOPERM no"):
            await log.head("t")
    assert told == [("refused", "NOPERM no")] * 2
