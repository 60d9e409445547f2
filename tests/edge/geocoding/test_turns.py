"""Turns at what all instances share: one at a time, a second apart, a short line, and pauses that all keep."""

from itertools import pairwise
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from bakerygw.edge.geocoding.turns import COURTESY_S, HOLD_S, LOOK_EVERY_S, PATIENCE_S, REST_S, NoTurn, Turns
from bakerygw.ports import StoreUnavailable
from tests.deferreds import failure_of, success_of
from tests.edge.record_fakes import Shared

KEY = "geocode:slot"


class House:
    """Instances over the same records."""

    def __init__(self, instances: int = 1) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.records = Shared(self.clock.seconds)
        self._names = iter(range(10_000))
        self.turns = [self._instance() for _ in range(instances)]
        self.taken: list[tuple[float, str]] = []

    def _instance(self) -> Turns:
        now = self.clock.seconds
        return Turns(self.records, KEY, clock=self.clock, now=now, token=lambda: f"turn-{next(self._names)}")

    def take(self, at: int = 0) -> "Deferred[None]":
        return Deferred.fromCoroutine(self.turns[at].take())

    def give(self, at: int = 0, **how: Any) -> None:
        success_of(Deferred.fromCoroutine(self.turns[at].give_back(**how)))

    def use(self, name: str, at: int = 0, work_s: float = 0.2) -> "Deferred[None]":
        """Take a turn, work, and give it back."""

        async def using() -> None:
            await self.turns[at].take()
            self.taken.append((self.clock.seconds(), name))
            done: Deferred[None] = Deferred()
            self.clock.callLater(work_s, done.callback, None)
            await done
            await self.turns[at].give_back()

        return Deferred.fromCoroutine(using())

    def run(self, seconds: float) -> None:
        self.clock.pump([0.05] * round(seconds / 0.05))


@pytest.fixture
def house() -> House:
    return House()


def test_a_free_turn_is_taken_at_once(house: House) -> None:
    success_of(house.take())


def test_turns_are_a_second_apart_from_the_end_of_one_to_the_beginning_of_the_next(house: House) -> None:
    uses = [house.use(name, work_s=0.4) for name in "abc"]
    house.run(6)

    assert [name for _, name in house.taken] == ["a", "b", "c"]
    assert all(later - sooner >= 0.4 + REST_S for (sooner, _), (later, _) in pairwise(house.taken))
    for use in uses:
        success_of(use)


def test_instances_take_turns_one_at_a_time_and_none_is_forgotten() -> None:
    house = House(instances=3)
    uses = [house.use(f"{at}{number}", at=at) for number in range(2) for at in range(3)]
    house.run(10)

    times = [at for at, _ in house.taken]
    assert len(times) == 6
    assert all(later - sooner >= 0.2 + REST_S - 1e-9 for sooner, later in pairwise(times))
    first = [name[0] for _, name in house.taken[:3]]
    assert len(set(first)) >= 2, "one instance had every turn"
    for use in uses:
        success_of(use)


def test_a_turn_that_was_not_used_is_free_at_once(house: House) -> None:
    success_of(house.take())
    house.give(used=False)

    success_of(house.take())


def test_whoever_leaves_the_line_gives_up_the_place(house: House) -> None:
    success_of(house.take())
    second, third = house.take(), house.take()
    second.cancel()
    failure_of(second, CancelledError)
    house.give()
    house.run(REST_S + 2 * LOOK_EVERY_S + COURTESY_S)

    success_of(third)


def test_whoever_leaves_while_first_in_the_line_lets_the_next_go_on(house: House) -> None:
    house.use("x", work_s=0.1)
    house.run(0.2)
    first, second = house.take(), house.take()
    first.cancel()
    failure_of(first, CancelledError)
    house.run(REST_S + COURTESY_S)

    success_of(second)


def test_a_turn_of_an_instance_that_died_ends_by_itself() -> None:
    house = House(instances=2)
    success_of(house.take(0))
    house.run(HOLD_S - 5)
    waiting = house.take(1)
    house.run(4)
    assert not waiting.called
    house.run(1.2)

    success_of(waiting)


def test_nobody_waits_longer_than_the_line_allows_and_the_wait_is_told() -> None:
    house = House(instances=2)
    success_of(house.take(0))
    first, second = house.take(1), house.take(1)
    house.run(PATIENCE_S + 0.1)

    for waited in (first, second):
        error = failure_of(waited, NoTurn)
        assert isinstance(error, NoTurn)
        assert error.why == "busy"
        assert error.wait_s > 0


def test_a_long_line_is_refused_without_a_wait(house: House) -> None:
    success_of(house.take())
    waiting = [house.take() for _ in range(12)]
    refused = [each for each in waiting if each.called]

    assert 2 <= len(refused) <= 6
    error = failure_of(refused[0], NoTurn)
    assert isinstance(error, NoTurn)
    assert PATIENCE_S < error.wait_s < 20
    for each in waiting:
        each.addErrback(lambda _: None)
        each.cancel()


def test_a_pause_of_one_instance_is_no_others() -> None:
    house = House(instances=2)
    success_of(house.take(0))
    waiting = house.take(0)
    house.give(0, pause_s=5)
    failure_of(waiting, NoTurn)
    failure_of(house.take(0), NoTurn)
    house.run(REST_S + 0.1)
    success_of(house.take(1))
    house.give(1)
    house.run(5)

    success_of(house.take(0))


def test_a_rest_is_kept_though_somebody_deletes_the_record() -> None:
    house = House(instances=2)
    success_of(house.take(0))
    success_of(Deferred.fromCoroutine(house.records.delete(KEY)))
    house.give(0)
    waiting = house.take(1)
    house.run(REST_S - 0.1)
    assert not waiting.called
    house.run(0.2)

    success_of(waiting)


def test_a_pause_that_is_deleted_is_over(house: House) -> None:
    success_of(house.take())
    house.give(pause_s=600, for_all=True)
    success_of(Deferred.fromCoroutine(house.records.delete(KEY)))
    house.run(2)

    success_of(house.take())


def test_a_pause_that_the_store_did_not_take_is_kept_here(house: House) -> None:
    success_of(house.take())
    house.records.down = True
    house.give(pause_s=600, for_all=True)
    house.records.down = False
    house.run(HOLD_S)

    failure_of(house.take(), NoTurn)


def test_a_pause_is_kept_by_all_instances_and_ends() -> None:
    house = House(instances=2)
    success_of(house.take(0))
    house.give(0, pause_s=60, for_all=True)
    house.run(2)
    for at in range(2):
        error = failure_of(house.take(at), NoTurn)
        assert isinstance(error, NoTurn)
        assert error.why == "paused"
        assert 57 < error.wait_s < 60
    house.run(60)

    success_of(house.take(1))


def test_whoever_waits_hears_of_a_pause_too(house: House) -> None:
    success_of(house.take())
    waiting = [house.take() for _ in range(3)]
    house.give(pause_s=60, for_all=True)
    house.run(2)

    for each in waiting:
        failure_of(each, NoTurn)


@pytest.mark.parametrize("value", [b"pause:", b"pause:x", b"pause:-5", b"pause:1", b"pause:" + b"9" * 5000, b"\xff"])
def test_what_others_wrote_is_no_pause(house: House, value: bytes) -> None:
    success_of(Deferred.fromCoroutine(house.records.put(KEY, value, ttl_s=2)))
    waiting = house.take()
    assert not waiting.called
    house.run(2.2)

    success_of(waiting)


def test_without_the_store_there_is_no_turn_and_the_line_goes_on(house: House) -> None:
    success_of(house.take())
    waiting = [house.take() for _ in range(2)]
    house.records.down = True
    house.give()
    house.run(REST_S + COURTESY_S + 0.1)
    for each in waiting:
        failure_of(each, StoreUnavailable)
    house.records.down = False
    house.run(HOLD_S)

    success_of(house.take())


def test_a_claim_that_nobody_waited_for_is_undone() -> None:
    house = House(instances=2)

    class Slow(Shared):
        async def claim(self, key: str, value: bytes, *, ttl_s: float | None) -> bool:
            claimed = await super().claim(key, value, ttl_s=ttl_s)
            await Deferred()  # the answer is on its way for ever
            return claimed

    slow = Slow(house.clock.seconds)
    slow._values = house.records._values
    leaving = Turns(slow, KEY, clock=house.clock, now=house.clock.seconds, token=lambda: "leaving")
    taking = Deferred.fromCoroutine(leaving.take())
    waiting = house.take(1)
    assert not waiting.called
    taking.cancel()
    failure_of(taking, CancelledError)
    house.run(2 * LOOK_EVERY_S)

    success_of(waiting)
