"""One contract for the history of alerts in Redis and in this process."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_twisted
from redis import Redis
from store_fakes import RecordingTelemetry, link_to, pause
from twisted.internet.task import Clock

from bakerygw.core.alerts import Position, parse_alert
from bakerygw.ports import StoreUnavailable
from bakerygw.stores.events import MAX_BATCH, MAX_BATCH_BYTES, RedisEventLog
from bakerygw.stores.memory_events import MemoryEventLog

START = Position(epoch=0, offset=0)
EVENTS, HISTORY_S, SEEN_S = 5, 300.0, 60.0
SOON_S = 0.4
"""In place of `SEEN_S`, where a test waits for its end."""


def alert(tenant_id="t", message="m", **members):
    return parse_alert(tenant_id, json.dumps({"message": message, **members}).encode())


def payloads(page):
    return [json.loads(event.payload)["message"] for event in page.events]


@dataclass
class Logs:
    """The same history as two instances have it, and what was published and is to be notified."""

    one: Any
    other: Any
    told: Callable[[], list[tuple[str, bytes]]]
    notes: Callable[[], dict[str, bytes]]


def memory_logs(**options):
    told, notes = [], {}
    log = MemoryEventLog(
        time.time,
        **{"history_events": EVENTS, "history_s": HISTORY_S, "seen_s": SEEN_S, **options},
        tell=lambda tenant_id, payload: told.append((tenant_id, payload)),
        notify=notes.__setitem__,
    )
    return Logs(log, log, lambda: told, lambda: notes)


def outbox_of(redis):
    """What Redis holds to be notified, due now, as a dictionary."""
    due = dict(redis.zrange("bakerygw:notify:due", 0, -1, withscores=True))
    assert all(abs(score / 1000 - time.time()) < 20 for score in due.values())
    bodies = redis.hgetall("bakerygw:notify:body")
    assert bodies.keys() == due.keys()
    return {member.decode(): body for member, body in bodies.items()}


def listener_of(redis):
    """A function that gives all that was published on Redis since this call."""
    heard, told = redis.pubsub(), []
    heard.psubscribe("alerts:tenant:*")
    heard.get_message(timeout=1)

    def all_told():
        while (said := heard.get_message(timeout=0.02)) is not None:
            told.append((said["channel"].decode().removeprefix("alerts:tenant:"), said["data"]))
        return told

    return all_told


@pytest_twisted.async_yield_fixture(params=["memory", "redis"])
async def make(request):
    """A function that gives `Logs` with these options."""
    if request.param == "memory":
        yield memory_logs
        return
    server = request.getfixturevalue("redis_server")
    links = [link_to(server, RecordingTelemetry()) for _ in range(2)]
    for link in links:
        await link.start()
    with Redis(port=server.port) as redis:

        def redis_logs(**options):
            options = {"history_events": EVENTS, "history_s": HISTORY_S, "seen_s": SEEN_S, **options}
            one, other = (RedisEventLog(link, clock=Clock(), **options) for link in links)
            return Logs(one, other, listener_of(redis), lambda: outbox_of(redis))

        yield redis_logs
    for link in links:
        await link.stop()


@pytest.fixture
def logs(make):
    return make()


@pytest_twisted.ensureDeferred
async def test_alerts_get_places_one_after_the_other(logs):
    began = time.time() * 1000
    placed = await logs.one.append([alert(message="a"), alert(message="b")])
    placed += await logs.other.append([alert(message="c")])
    assert [(its.position.offset, its.fresh) for its in placed] == [(1, True), (2, True), (3, True)]
    (epoch,) = {its.position.epoch for its in placed}
    assert abs(epoch - began) < 10_000
    page = await logs.other.read("t", Position(epoch=epoch, offset=1), count=10, max_bytes=1000)
    assert (page.head, page.first, payloads(page)) == (Position(epoch=epoch, offset=3), 1, ["b", "c"])
    assert [event.position.offset for event in page.events] == [2, 3]


@pytest_twisted.ensureDeferred
async def test_nothing_is_no_call(logs):
    assert await logs.one.append([]) == []


@pytest_twisted.ensureDeferred
async def test_what_two_instances_hear_is_placed_once_and_both_know_where(logs):
    heard = [alert(message=text) for text in "abab"]
    first, second = await logs.one.append(heard[:3]), await logs.other.append(heard)
    assert [its.fresh for its in first] == [True, True, False]
    assert [its.fresh for its in second] == [False] * 4
    assert [its.position for its in second] == [first[0].position, first[1].position] * 2


@pytest_twisted.ensureDeferred
async def test_the_same_words_a_while_later_are_another_alert(make):
    logs = make(seen_s=SOON_S)
    (first,) = await logs.one.append([alert()])
    await pause(SOON_S + 0.05)
    (second,) = await logs.other.append([alert()])
    assert (second.fresh, second.position.offset) == (True, first.position.offset + 1)


@pytest_twisted.ensureDeferred
async def test_tenants_have_nothing_of_each_other(logs):
    placed = await logs.one.append([alert("a"), alert("b"), alert("a", "second")])
    assert [(its.position.offset, its.fresh) for its in placed] == [(1, True), (1, True), (2, True)]
    assert payloads(await logs.one.read("a", START, count=9, max_bytes=999)) == ["m", "second"]
    assert payloads(await logs.one.read("b", START, count=9, max_bytes=999)) == ["m"]
    assert payloads(await logs.one.read("c", START, count=9, max_bytes=999)) == []


@pytest_twisted.ensureDeferred
async def test_tenants_whose_names_are_alike_share_neither_words_nor_ids_nor_places(logs):
    names = ["t", "T", "t1", "t.", "t-", "_t", "t-ids", "ids", "era"]
    heard = await logs.one.append([alert(name, "heard", channels=["email"]) for name in names])
    published = [await logs.other.publish(alert(name, "stored", alert_id="1")) for name in names]
    assert [(its.position.offset, its.fresh) for its in heard] == [(1, True)] * len(names)
    assert [(its.position.offset, its.fresh) for its in published] == [(2, True)] * len(names)
    assert len({its.position.epoch for its in heard}) == len(names)
    assert [tenant_id for tenant_id, _ in logs.told()] == names
    assert logs.notes().keys() == {f"{name}:{its.position.text}" for name, its in zip(names, heard, strict=True)}
    for name, its, foreign in zip(names, heard, [*heard[1:], heard[0]], strict=True):
        assert payloads(await logs.other.read(name, its.position, count=9, max_bytes=999)) == ["stored"]
        assert (await logs.other.read(name, foreign.position, count=9, max_bytes=999)).head.epoch == its.position.epoch


@pytest_twisted.ensureDeferred
async def test_a_history_begins_when_it_is_asked_for_and_stays(logs):
    head = await logs.one.head("t")
    assert (head.offset, await logs.other.head("t")) == (0, head)
    page = await logs.other.read("t", head, count=9, max_bytes=999)
    assert (page.head, page.first, page.events) == (head, 1, ())
    (placed,) = await logs.other.append([alert()])
    assert placed.position == Position(epoch=head.epoch, offset=1)
    assert await logs.one.head("t") == placed.position


@pytest_twisted.ensureDeferred
async def test_no_more_than_the_bound_is_kept_and_what_is_left_is_told(logs):
    placed = await logs.one.append([alert(message=str(number)) for number in range(1, 13)])
    head = placed[-1].position
    assert head.offset == 12
    page = await logs.one.read("t", Position(epoch=head.epoch, offset=2), count=99, max_bytes=9999)
    assert (page.head, page.first, payloads(page)) == (head, 8, ["8", "9", "10", "11", "12"])


@pytest_twisted.ensureDeferred
async def test_what_is_past_its_age_is_not_told_again(make):
    logs = make(history_s=2.4)
    await logs.one.append([alert(message="old"), alert(message="older")])
    await pause(1.4)
    (young,) = await logs.one.append([alert(message="young")])
    assert len((await logs.one.read("t", START, count=9, max_bytes=999)).events) == 3
    await pause(1.1)
    page = await logs.other.read("t", START, count=9, max_bytes=999)
    assert (page.first, payloads(page)) == (3, ["young"])
    await pause(1.5)
    page = await logs.other.read("t", START, count=9, max_bytes=999)
    assert (page.head, page.first, page.events) == (young.position, 4, ())
    (later,) = await logs.one.append([alert(message="later")])
    assert later.position == Position(epoch=young.position.epoch, offset=4)


@pytest_twisted.ensureDeferred
async def test_a_page_is_bounded_by_count_and_by_bytes_but_never_empty(make):
    logs = make(history_events=100)
    many = [alert(message=f"{number:04}") for number in range(100)]
    head = (await logs.one.append(many))[-1].position
    size = len(many[0].payload)

    async def page(after, **bounds):
        return payloads(await logs.one.read("t", Position(epoch=head.epoch, offset=after), **bounds))

    assert await page(0, count=3, max_bytes=9999) == ["0000", "0001", "0002"]
    assert await page(40, count=40, max_bytes=99999) == [f"{number:04}" for number in range(40, 80)]
    assert await page(0, count=99, max_bytes=2 * size) == ["0000", "0001"]
    assert await page(0, count=99, max_bytes=2 * size - 1) == ["0000"]
    assert await page(7, count=99, max_bytes=0) == ["0007"]
    assert await page(99, count=99, max_bytes=9999) == ["0099"]
    assert await page(0, count=0, max_bytes=9999) == []
    assert await page(100, count=9, max_bytes=9999) == []
    assert await page(5000, count=9, max_bytes=9999) == []


@pytest_twisted.ensureDeferred
async def test_behind_another_epoch_is_all_or_nothing(logs):
    (placed,) = await logs.one.append([alert()])
    head = placed.position
    before, after = Position(epoch=head.epoch - 1, offset=7), Position(epoch=head.epoch + 1, offset=0)
    assert payloads(await logs.one.read("t", before, count=9, max_bytes=999)) == ["m"]
    page = await logs.one.read("t", after, count=9, max_bytes=999)
    assert (page.head, page.first, page.events) == (head, 1, ())


@pytest_twisted.ensureDeferred
async def test_an_era_ends_all_epochs_and_begins_once(logs):
    era = await logs.one.era()
    assert await logs.other.era() == era
    (old,) = await logs.one.append([alert(message="old")])
    idle = await logs.one.head("idle")
    began = await logs.one.begin_era(era)
    assert began > era
    assert [await logs.other.begin_era(era), await logs.other.era()] == [began, began]
    page = await logs.other.read("t", old.position, count=9, max_bytes=999)
    assert page.head.epoch > old.position.epoch
    assert (page.head.offset, page.first, page.events) == (0, 1, ())
    (young,) = await logs.one.append([alert(message="young")])
    assert (young.position, young.fresh) == (Position(epoch=page.head.epoch, offset=1), True)
    assert (await logs.one.head("idle")).epoch > idle.epoch


@pytest_twisted.ensureDeferred
async def test_what_was_placed_before_an_era_ended_is_not_placed_again(logs):
    (first,) = await logs.one.append([alert()])
    await logs.one.begin_era(await logs.one.era())
    (again,) = await logs.other.append([alert()])
    assert (again.position, again.fresh) == (first.position, False)


@pytest_twisted.ensureDeferred
async def test_a_publish_is_placed_and_told_to_all(logs):
    said = alert("t", alert_id="a-1")
    placed = await logs.one.publish(said)
    assert (placed.position.offset, placed.fresh) == (1, True)
    assert logs.told() == [("t", said.payload)]
    (heard,) = await logs.other.append([said])
    assert (heard.position, heard.fresh) == (placed.position, False)


@pytest_twisted.ensureDeferred
async def test_a_publish_with_the_same_id_is_a_repeat_whatever_it_says_and_whenever(make):
    logs = make(seen_s=SOON_S)
    said = alert("t", alert_id="a-1")
    first = await logs.one.publish(said)
    await pause(SOON_S + 0.05)
    again = await logs.other.publish(alert("t", "other words", alert_id="a-1"))
    assert (again.position, again.fresh) == (first.position, False)
    assert logs.told() == [("t", said.payload)]
    elsewhere = await logs.other.publish(alert("u", alert_id="a-1"))
    another = await logs.other.publish(alert("t", "other words", alert_id="a-2"))
    assert (elsewhere.fresh, another.fresh, another.position.offset) == (True, True, 2)


@pytest_twisted.ensureDeferred
async def test_a_publish_without_an_id_is_a_repeat_by_its_words(logs):
    first, again = await logs.one.publish(alert()), await logs.other.publish(alert())
    assert (again.position, again.fresh) == (first.position, False)
    assert len((await logs.one.read("t", START, count=9, max_bytes=999)).events) == 1


@pytest_twisted.ensureDeferred
async def test_what_was_heard_already_is_not_told_again_by_a_publish(logs):
    (heard,) = await logs.one.append([alert(alert_id="a-1")])
    published = await logs.one.publish(alert(alert_id="a-1"))
    assert (published.position, published.fresh) == (heard.position, False)
    assert logs.told() == []


@pytest_twisted.ensureDeferred
async def test_as_many_ids_are_remembered_as_alerts_are_kept(make):
    logs = make(history_events=3, seen_s=0.05)
    for number in range(4):
        await logs.one.publish(alert(message=str(number), alert_id=f"a-{number}"))
    await pause(0.1)
    assert not (await logs.one.publish(alert(alert_id="a-1"))).fresh
    assert (await logs.one.publish(alert(alert_id="a-0"))).fresh


@pytest_twisted.ensureDeferred
async def test_the_ids_of_each_tenant_are_counted_by_themselves(make):
    logs = make(history_events=2)
    for number in "123":
        for tenant_id in "tu":
            await logs.one.publish(alert(tenant_id, number, alert_id=number))
    for tenant_id in "tu":
        known = [await logs.one.publish(alert(tenant_id, "again" + number, alert_id=number)) for number in "231"]
        assert [its.fresh for its in known] == [False, False, True]


@pytest_twisted.ensureDeferred
async def test_ids_are_forgotten_with_the_history(make):
    logs = make(history_s=1.5, seen_s=0.05)
    await logs.one.publish(alert(message="a", alert_id="a"))
    await pause(0.5)
    assert not (await logs.one.publish(alert(message="a", alert_id="a"))).fresh
    await pause(1.1)
    assert (await logs.other.publish(alert(message="a", alert_id="a"))).fresh


@pytest_twisted.ensureDeferred
async def test_what_is_to_be_notified_goes_into_the_outbox_once(logs):
    mail = alert("t", "mail", channels=["email", "sse"])
    placed = await logs.one.append([alert("t", "quiet", channels=["sse"]), mail, alert("u", "plain")])
    await logs.other.append([mail])
    by_post = alert("u", "stored", channels=["whatsapp"], alert_id="w")
    published = await logs.one.publish(by_post)
    await logs.other.append([by_post])
    expected = {
        f"t:{placed[1].position.text}": mail.payload,
        f"u:{published.position.text}": by_post.payload,
    }
    assert logs.notes() == expected


@pytest_twisted.ensureDeferred
async def test_payloads_come_back_byte_for_byte(logs):
    said = parse_alert("t", b'{"message":\r\n "\xc3\xbc\\u0000\xf0\x9f\x8d\x9e" }\n')
    await logs.one.append([said])
    (event,) = (await logs.other.read("t", START, count=9, max_bytes=999)).events
    assert event.payload == said.payload


@pytest_twisted.ensureDeferred
async def test_more_than_a_call_may_have_is_placed_in_order(make):
    logs = make(history_events=1000)
    many = [alert(message=str(number)) for number in range(2 * MAX_BATCH + 1)]
    many += [alert(message=str(number) + "x" * 60_000) for number in range(2 * MAX_BATCH_BYTES // 60_000)]
    placed = await logs.one.append(many)
    assert [its.position.offset for its in placed] == list(range(1, len(many) + 1))
    page = await logs.one.read("t", START, count=1000, max_bytes=10_000_000)
    assert [event.payload for event in page.events] == [its.payload for its in many]


@pytest.mark.parametrize("tenant_id", ["", "a b", "a:b", "*", "x" * 65, "a\n", "ü"])
@pytest_twisted.ensureDeferred
async def test_what_is_no_id_never_becomes_part_of_a_key(logs, tenant_id):
    with pytest.raises(ValueError, match="no tenant's id"):
        await logs.one.append([alert(tenant_id)])
    with pytest.raises(ValueError, match="no tenant's id"):
        await logs.one.publish(alert(tenant_id))
    with pytest.raises(ValueError, match="no tenant's id"):
        await logs.one.head(tenant_id)


@pytest_twisted.ensureDeferred
async def test_a_history_as_long_as_can_be_set_is_kept(make):
    logs = make(history_events=2**40, history_s=2**40)
    placed = await logs.one.append([alert(message="a"), alert(message="b")])
    assert [its.position.offset for its in placed] == [1, 2]
    assert payloads(await logs.one.read("t", START, count=9, max_bytes=999)) == ["a", "b"]


@pytest_twisted.ensureDeferred
async def test_redis_away_is_unavailable(own_redis):
    link = link_to(own_redis, RecordingTelemetry())
    await link.start()
    log = RedisEventLog(link, clock=Clock(), history_events=EVENTS, history_s=HISTORY_S)
    await log.append([alert()])
    own_redis.kill()
    for call in (log.append([alert()]), log.publish(alert()), log.head("t"), log.era(), log.begin_era(1)):
        with pytest.raises(StoreUnavailable):
            await call
    await link.stop()
