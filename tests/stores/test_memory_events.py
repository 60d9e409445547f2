"""The bounds of the history of alerts in memory."""

import json

import pytest
from twisted.internet.defer import Deferred

from bakerygw.core.alerts import Position, parse_alert
from bakerygw.ports import Placed
from bakerygw.stores.memory_events import MemoryEventLog
from tests.deferreds import success_of

NOW = 1_700_000_000.0
START = Position(epoch=0, offset=0)


class Log:
    def __init__(self, **bounds):
        self.now = NOW
        self.log = MemoryEventLog(lambda: self.now, **{"history_events": 100, "history_s": 60, **bounds})
        self._number = 0

    def place(self, tenant_id, size=0):
        self._number += 1
        payload = json.dumps({"message": self._number, "": "x" * size}).encode()
        (placed,) = self.ask(self.log.append([parse_alert(tenant_id, payload)]))
        return placed.position

    def page(self, tenant_id):
        return self.ask(self.log.read(tenant_id, START, count=1000, max_bytes=10**9))

    def ask(self, call):
        return success_of(Deferred.fromCoroutine(call))


def test_with_too_many_tenants_the_one_used_longest_ago_begins_anew_under_greater_ids():
    log = Log(max_tenants=2)
    first, second = log.place("a"), log.place("b")
    log.page("a")
    log.place("c")
    assert len(log.log) == 2
    assert log.page("a").head == first
    again = log.place("b")
    assert (again.epoch > second.epoch, again.offset) == (True, 1)
    assert len(log.log) == 2


def test_with_too_many_bytes_other_tenants_go_first_and_then_the_oldest_alerts():
    log = Log(max_bytes=10_000)
    log.place("a", 3000)
    head = log.place("b", 3000)
    assert log.place("b", 3000).offset == 2
    assert log.page("a").head.offset == 1
    for _ in range(5):
        head = log.place("b", 3000)
    assert len(log.log) == 1
    page = log.page("b")
    assert (page.head, page.first, len(page.events)) == (head, 5, 3)
    assert log.place("b", 60_000).offset == 8
    assert [event.position.offset for event in log.page("b").events] == [8]


def test_what_is_let_go_makes_room():
    log = Log(history_events=2, max_bytes=10_000)
    for _ in range(50):
        log.place("a", 3000)
        log.place("b", 100)
    assert (log.page("a").head.offset, log.page("b").head.offset) == (50, 50)
    log.now += 61
    log.page("a"), log.page("b")
    assert log.log._bytes == 0


def test_the_memory_of_repeats_is_bounded():
    log = Log(max_seen=10)
    for _ in range(20):
        log.place("a")
    assert len(log.log._seen) == 10
    log.now += 60
    log.place("a")
    assert len(log.log._seen) == 1


@pytest.mark.parametrize("step", [0, -3600])
def test_ids_grow_while_the_clock_stands_or_is_set_back(step):
    log = Log(max_tenants=1)
    places = []
    for number in range(6):
        log.now += step
        places.append(log.place("ab"[number % 2]))
    assert sorted({place.epoch for place in places}) == [place.epoch for place in places]
    assert len({place.epoch for place in places}) == 6


@pytest.mark.parametrize("jump_s", [7200.0, -7200.0])
def test_a_wall_clock_that_jumps_neither_ends_nor_prolongs_what_is_remembered(jump_s):
    log, seconds = Log(), [0.0]
    log.log = MemoryEventLog(lambda: log.now, history_events=100, history_s=100, seen_s=60, seconds=lambda: seconds[0])
    said = parse_alert("a", b'{"alert_id":"1"}')
    published = log.ask(log.log.publish(said))
    log.now += jump_s
    seconds[0] = 59.9

    assert log.ask(log.log.append([said])) == [Placed(position=published.position, fresh=False)]
    seconds[0] = 60.0
    (again,) = log.ask(log.log.append([said]))
    assert (again.position.offset, again.fresh) == (2, True)
    assert len(log.page("a").events) == 2
    seconds[0] = 100.0
    assert len(log.page("a").events) == 1
    assert log.ask(log.log.publish(said)).position == again.position  # remembered by its words
    seconds[0] = 160.0
    assert log.page("a").events == ()
    assert log.ask(log.log.publish(said)).position.offset == 3


def test_a_process_that_begins_later_begins_with_greater_ids():
    earlier = Log()
    old = earlier.place("a")
    later = Log()
    later.now += 1
    later.log = MemoryEventLog(lambda: later.now, history_events=10, history_s=10)
    assert later.place("a").epoch > old.epoch
