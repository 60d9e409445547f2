"""Moments of the wall clock, with both clocks in the test's hand."""

import pytest
from twisted.internet.task import Clock

from bakerygw.realtime.deadlines import AT_ONCE, LOOK_AGAIN_S, Deadlines


class Desk:
    """Deadlines of numbers, and when each was dealt with by the wall clock."""

    def __init__(self) -> None:
        self.clock, self.wall_s = Clock(), 1000.0
        self.dealt: list[tuple[float, int]] = []
        self.gone: set[int] = set()
        self.deadlines: Deadlines[int] = Deadlines(
            self.clock, lambda: self.wall_s, due=self._deal, gone=lambda number: number in self.gone
        )

    def _deal(self, number: int) -> None:
        self.dealt.append((self.wall_s, number))

    def passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self.wall_s += 1
            self.clock.advance(1)


def test_each_is_dealt_with_at_its_moment_and_none_before() -> None:
    desk = Desk()
    for at, number in ((1030, 3), (1010, 1), (1020, 2), (1010, 4)):
        desk.deadlines.add(at, number)
    desk.passes(40)

    assert desk.dealt == [(1010, 1), (1010, 4), (1020, 2), (1030, 3)]
    assert desk.clock.getDelayedCalls() == []


def test_what_is_past_is_dealt_with_in_a_later_turn() -> None:
    desk = Desk()
    desk.deadlines.add(900, 1)
    assert desk.dealt == []
    desk.clock.advance(0)
    assert desk.dealt == [(1000, 1)]


def test_of_many_that_are_due_together_some_wait_for_the_next_turn() -> None:
    desk = Desk()
    for number in range(AT_ONCE + 10):
        desk.deadlines.add(1001, number)
    desk.wall_s = 1001
    (look,) = desk.clock.getDelayedCalls()
    look.func()
    assert len(desk.dealt) == AT_ONCE
    desk.clock.advance(0)
    assert len(desk.dealt) == AT_ONCE + 10


@pytest.mark.parametrize("step_s", [500, -500])
def test_a_wall_clock_that_is_set_is_noticed(step_s: int) -> None:
    desk = Desk()
    desk.deadlines.add(1400, 1)
    desk.passes(10)
    desk.wall_s += step_s
    desk.passes(int(LOOK_AGAIN_S))
    assert len(desk.dealt) == (step_s > 0)
    desk.passes(1000)
    assert len(desk.dealt) == 1
    assert desk.dealt[0][0] >= 1400


def test_of_what_is_gone_nothing_is_due_and_little_is_kept() -> None:
    desk = Desk()
    for number in range(1000):
        desk.deadlines.add(1010 + number % 2 * 10_000, number)
    desk.gone = set(range(10, 1000))
    for _ in desk.gone:
        desk.deadlines.left()

    assert len(desk.deadlines) < 300
    desk.passes(20)
    assert desk.dealt == [(1010, number) for number in range(0, 10, 2)]


def test_what_is_dealt_with_may_come_again() -> None:
    desk = Desk()
    deal = desk._deal

    def again(number: int) -> None:
        deal(number)
        if number < 3:
            desk.deadlines.add(desk.wall_s + 5, number + 1)

    desk.deadlines._due = again  # type: ignore[method-assign]
    desk.deadlines.add(1005, 1)
    desk.passes(30)
    assert desk.dealt == [(1005, 1), (1010, 2), (1015, 3)]
