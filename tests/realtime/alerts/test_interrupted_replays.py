"""Streams whose history goes away, ends or moves on while they are given it; and what goes on beside a fault."""

from collections import Counter
from typing import Any

import pytest
from twisted.internet.task import Clock

from bakerygw.ports.events import Page
from bakerygw.realtime.alerts.fanout import SLICE_S, Fanout
from bakerygw.realtime.alerts.feed import MAX_RETRY_S, READS_AT_ONCE, RETRY_S
from tests.realtime.stream_fakes import Instance, Reading


def alerts(reading: Reading) -> list[str]:
    reading.read()
    return [event.last_id for event in reading.client.events if event.kind == "alert"]


def gaps(reading: Reading) -> list[tuple[str, str]]:
    reading.read()
    return [(event.json["reason"], event.last_id) for event in reading.client.events if event.kind == "gap"]


def with_history(number: int, *, page: int) -> Instance:
    """An instance that has to fetch what somebody has missed, page by page."""
    here = Instance()
    here.log.page_events = page
    for _ in range(number):
        here.history.add(b"{}")
    return here


def in_replay(here: Instance) -> Reading:
    """A stream that has the first page, while the second is being asked for."""
    here.log.slow = True
    reading = here.open("7-0")
    while here.log.reads < 2:
        here.log.asked[0].answer()
        here.turn()
    return reading


def test_a_replay_goes_on_where_it_was_when_the_history_is_back() -> None:
    here = with_history(30, page=10)
    reading = in_replay(here)
    here.log.away = True
    here.log.asked[0].answer()
    here.log.slow = False
    for _ in range(40):
        here.turn(RETRY_S / 2)
    reads = here.log.reads
    assert len(alerts(reading)) == 10
    assert reading.end is None
    assert reads <= 10, "a history that is away is asked less and less often"

    here.publish()
    here.log.away = False
    here.turn(MAX_RETRY_S)

    assert alerts(reading) == [f"7-{number}" for number in range(1, 32)]
    assert gaps(reading) == []


def kinds(reading: Reading) -> list[str]:
    reading.read()
    return [event.kind for event in reading.client.events if event.kind != "alert"]


def test_who_is_in_a_replay_is_told_once_that_the_history_is_away_and_when_it_is_back() -> None:
    here = with_history(30, page=10)
    reading = in_replay(here)
    here.log.away, here.log.slow = True, False
    here.hub.degraded()
    here.log.asked[0].answer()
    for _ in range(10):
        here.turn(RETRY_S)
    assert kinds(reading) == ["hello", "degraded"]

    here.log.away = False
    here.hub.restored()
    here.turn(MAX_RETRY_S)

    assert alerts(reading) == [f"7-{number}" for number in range(1, 31)]
    assert kinds(reading) == ["hello", "degraded", "hello"]


def test_who_was_in_a_replay_has_recovered_nothing_behind_a_gap() -> None:
    here = with_history(30, page=10)
    reading = in_replay(here)
    here.log.away, here.log.slow = True, False
    here.hub.degraded()
    here.log.asked[0].answer()
    here.turn(RETRY_S)

    here.log.away = False
    here.history.begin_era()
    here.hub.restored()
    here.turn(MAX_RETRY_S)

    assert kinds(reading)[:4] == ["hello", "degraded", "gap", "hello"]
    behind = [event.json for event in reading.client.events if event.kind == "hello"][1:]
    assert {(hello["recovered"], hello["missed"]) for hello in behind} == {(False, None)}


def test_a_history_that_fails_now_and_then_is_no_degraded_stream() -> None:
    here = with_history(30, page=10)
    reading = in_replay(here)
    here.log.away, here.log.slow = True, False
    here.log.asked[0].answer()
    here.turn(RETRY_S)
    here.log.away = False
    here.turn(MAX_RETRY_S)

    assert len(alerts(reading)) == 30
    assert kinds(reading) == ["hello"]


def test_who_leaves_while_a_page_is_on_its_way_is_not_read_for_any_more() -> None:
    here = with_history(30, page=10)
    reading = in_replay(here)
    reading.leave()
    reads = here.log.reads
    for asked in list(here.log.asked):
        asked.answer()
    here.turn()

    assert here.log.reads == reads
    assert len(alerts(reading)) == 10
    assert reading.place.left == 1


def test_who_leaves_while_the_history_is_away_is_not_read_for_any_more() -> None:
    here = with_history(30, page=10)
    reading = in_replay(here)
    here.log.away = True
    here.log.asked[0].answer()
    reading.leave()
    here.log.away = False
    reads = here.log.reads
    here.turn(MAX_RETRY_S)

    assert here.log.reads == reads


def test_what_is_trimmed_during_a_replay_is_told() -> None:
    here = with_history(30, page=10)
    reading = in_replay(here)
    here.history.trim(5)
    for asked in list(here.log.asked):
        asked.answer()
    here.log.slow = False
    here.turn(1)

    assert gaps(reading) == [("trimmed", "7-25")]
    assert here.told.gaps == ["trimmed"]
    assert alerts(reading) == [f"7-{number}" for number in [*range(1, 11), *range(26, 31)]]


@pytest.mark.parametrize("read_before", [True, False])
def test_a_new_epoch_during_a_replay_is_told_and_nothing_of_the_old_one_follows(read_before: bool) -> None:
    here = with_history(30, page=10)
    reading = in_replay(here)
    if read_before:
        here.log.asked[0].look()
    here.history.begin_era()
    for _ in range(15):
        here.publish()
    here.turn()
    here.log.slow = False
    for asked in list(here.log.asked):
        asked.answer()
    here.turn(1)

    assert [reason for reason, _ in gaps(reading)] == ["epoch"]
    assert alerts(reading) == [*(f"7-{n}" for n in range(1, 11)), *(f"8-{n}" for n in range(1, 16))]


def test_a_history_that_loses_its_end_while_somebody_comes_back_is_a_gap() -> None:
    here = with_history(30, page=10)
    here.hub.bounds = (5, 10_000)
    first = here.open()
    first.read()
    here.log.slow = True
    reading = here.open("7-20")
    (asked,) = here.log.asked
    del here.history.payloads[15:]  # what Redis wrote last is lost
    asked.answer()
    here.log.slow = False
    here.turn(1)

    assert gaps(reading)[0][0] == "unknown"
    assert alerts(reading) == []


def test_what_a_client_does_not_take_for_a_moment_comes_from_the_history_if_the_ring_is_past_it() -> None:
    here = Instance()
    here.hub.bounds = (5, 10_000)
    slow = here.open()
    slow.read()
    assert slow.stream is not None
    slow.stream.pause()
    for _ in range(5):
        here.publish()
        here.turn(2)
    for _ in range(3):
        here.publish()
    here.turn()
    slow.stream.resume()
    here.turn(1)

    assert alerts(slow) == [f"7-{number}" for number in range(1, 9)]
    assert slow.end is None


def test_nothing_is_timed_once_the_hub_has_closed() -> None:
    here = Instance()
    reading = here.open()
    here.history.add(b"{}")
    here.publish()  # behind a hole, which would be looked into soon
    assert reading.stream is not None
    here.hub.close()

    here.clock.advance(0)
    assert here.clock.getDelayedCalls() == []
    assert here.hub.feeds == {}


class Turn:
    """A feed with so many parts to serve, each of which takes a while."""

    def __init__(self, clock: Clock, name: str, parts: int, served: list[str], takes_s: float = 0.0) -> None:
        self.queued = False
        self._clock, self._name, self._parts, self._served, self._takes_s = clock, name, parts, served, takes_s

    def advance(self, number: int) -> bool:
        self._served.append(self._name)
        self._clock.rightNow += self._takes_s
        self._parts -= 1
        if self._parts < 0:
            raise ValueError("broken")
        return self._parts > 0


def test_feeds_take_turns_and_each_slice_of_time_ends() -> None:
    clock, served = Clock(), list[str]()
    fanout = Fanout(clock)
    many, few = Turn(clock, "many", 4, served, SLICE_S), Turn(clock, "few", 1, served, SLICE_S)
    for feed in (many, few, many):
        fanout.add(feed)
    clock.callLater(0, served.append, "what else the reactor has to do")
    for _ in range(10):
        clock.advance(0)

    assert served == ["many", "what else the reactor has to do", "few", "many", "many", "many"]
    assert not many.queued
    assert clock.getDelayedCalls() == []


def test_what_a_slice_has_time_for_is_done_in_it() -> None:
    clock, served = Clock(), list[str]()
    fanout = Fanout(clock)
    for name in "abc":
        fanout.add(Turn(clock, name, 2, served, SLICE_S / 4))
    clock.callLater(0, served.append, "what else the reactor has to do")
    clock.advance(0)
    assert served == ["a", "b", "c", "a", "what else the reactor has to do", "b", "c"]


def test_a_feed_that_is_broken_holds_up_no_other(logged_failures: list[Any]) -> None:
    clock, served = Clock(), list[str]()
    fanout = Fanout(clock)
    broken, well = Turn(clock, "broken", 0, served), Turn(clock, "well", 2, served)
    for feed in (broken, well):
        fanout.add(feed)
    for _ in range(3):
        clock.advance(0)

    assert served == ["broken", "well", "well"]
    assert not broken.queued, "so that it has its turn again when something is new"
    assert [failure.getErrorMessage() for failure in logged_failures] == ["broken"]
    logged_failures.clear()


def test_thousands_who_wait_for_the_history_are_all_told_that_it_is_away() -> None:
    here = with_history(3, page=10)
    here.open()
    here.log.slow = True
    readings = [here.open("7-1") for _ in range(2000)]
    assert len(here.log.asked) == READS_AT_ONCE

    here.hub.degraded()
    for asked in list(here.log.asked):
        asked.answer()
    for _ in range(10):
        here.turn()

    ends = Counter(reading.end for reading in readings)
    assert ends == {"refused": len(readings) - READS_AT_ONCE, None: READS_AT_ONCE}
    assert here.hub.feeds["t1"].opening == 0
    assert here.hub.reads.tokens == READS_AT_ONCE


def told_of_both_ends(here: Instance, reading: Reading) -> None:
    """That alerts may be late has been told, and will be once they are not any more."""
    assert kinds(reading) == ["hello", "degraded"]

    here.log.slow = False
    here.hub.restored()
    here.turn()
    assert kinds(reading) == ["hello", "degraded", "hello"]


@pytest.mark.parametrize("known", [True, False])
def test_a_stream_that_begins_just_as_alerts_are_heard_no_more_is_told_and_told_of_the_end(known: bool) -> None:
    here = with_history(3, page=10)
    if known:
        here.open()
    here.log.slow = True
    reading = here.open("7-1") if known else here.open()
    here.hub.degraded()
    here.log.asked[0].answer()
    here.turn()
    told_of_both_ends(here, reading)
    assert reading.end is None


def test_a_stream_whose_last_page_was_on_its_way_then_is_told_too() -> None:
    here = with_history(30, page=10)
    reading = in_replay(here)
    while len(here.log.asked) == 1 and here.log.reads < 3:
        here.log.asked[0].answer()
        here.turn()
    here.hub.degraded()
    here.log.asked[0].answer()
    here.turn()

    assert len(alerts(reading)) == 30
    assert kinds(reading) == ["hello", "degraded"]


def test_a_history_that_breaks_is_reported_and_the_next_alert_asks_it_again(logged_failures: list[Any]) -> None:
    here = Instance()
    reading = here.open()
    read = here.log.read

    async def broken(*_: object, **__: object) -> Page:
        raise ValueError("broken")

    here.log.read = broken  # type: ignore[method-assign]
    here.history.add(b"elsewhere")
    here.publish()
    here.turn(0.1)
    assert [failure.getErrorMessage() for failure in logged_failures] == ["broken"]
    logged_failures.clear()

    here.log.read = read  # type: ignore[method-assign]
    here.history.add(b"elsewhere")
    here.publish()
    here.turn(0.1)
    assert alerts(reading) == ["7-1", "7-2", "7-3", "7-4"]


@pytest.mark.parametrize(("last_id", "told"), [(None, []), ("7-0", ["7-1"])])
def test_an_alert_that_comes_while_the_head_is_asked_for_is_not_lost(last_id: str | None, told: list[str]) -> None:
    here = Instance(slow=True)
    reading = here.open(last_id)
    here.log.asked[0].look()
    here.publish()
    while here.log.asked:
        here.log.asked[0].answer()
        here.turn()

    assert alerts(reading) == told
    here.publish()
    here.turn()
    assert alerts(reading) == [*told, "7-2"]


def test_who_compares_with_the_history_while_alerts_are_heard_no_more_does_not_say_that_they_are() -> None:
    here = Instance()
    reading = here.open()
    here.hub.degraded()
    here.log.slow = True
    here.hub.restored()
    here.turn()
    here.hub.degraded()
    here.log.asked[0].answer()
    here.turn()
    told_of_both_ends(here, reading)


def test_a_history_that_is_away_is_not_asked_for_a_hole_that_nobody_reads_any_more() -> None:
    here = Instance()
    reading = here.open()
    here.log.away = True
    here.history.add(b"elsewhere")
    here.publish()
    here.turn(0.1)
    reading.leave()
    here.turn(RETRY_S)
    reads = here.log.reads
    for _ in range(10):
        here.turn(MAX_RETRY_S)

    assert here.log.reads == reads
    assert here.hub.feeds == {}
    assert here.clock.getDelayedCalls() == []
