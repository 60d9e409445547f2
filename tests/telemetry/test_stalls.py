"""Turns of the reactor that take too long are counted, and told without flooding the log."""

from typing import Any

import pytest
from twisted.internet.task import Clock

from bakerygw.telemetry.stalls import EVERY_S, STALL_S, StallWatch


class Log:
    """Keeps what is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.told.append({"event": event, **fields})


class Watched:
    """A watch on a clock of its own."""

    def __init__(self) -> None:
        self.clock, self.log, self.stalls = Clock(), Log(), 0
        self.watch = StallWatch(self.clock, self.log, stalled=self._count)  # type: ignore[arg-type]
        self.watch.start()

    def _count(self) -> None:
        self.stalls += 1

    def idle(self, seconds: float) -> None:
        """Time in which every timer comes when it is due."""
        self.clock.pump([EVERY_S / 2] * round(seconds / EVERY_S * 2))


def test_timers_that_come_in_time_are_nothing_to_tell() -> None:
    watched = Watched()
    watched.idle(60)
    watched.clock.advance(EVERY_S + STALL_S - 0.01)
    assert (watched.stalls, watched.log.told) == (0, [])


@pytest.mark.parametrize("into_the_wait", [0.0, 0.4, 0.9])
def test_a_turn_that_takes_too_long_is_seen_wherever_it_begins(into_the_wait: float) -> None:
    watched = Watched()
    watched.idle(1)
    watched.clock.advance(EVERY_S * into_the_wait)
    watched.clock.advance(STALL_S + EVERY_S + 0.001)
    assert watched.stalls == 1
    (told,) = watched.log.told
    assert told["event"] == "reactor.stalled"
    assert told["stalls"] == 1
    assert STALL_S * 1000 <= told["longest_ms"] <= (STALL_S + EVERY_S) * 1000 + 1


def test_many_stalls_are_one_line_a_second_with_their_number_and_the_longest() -> None:
    watched = Watched()
    for seconds in (0.3, 0.2, 0.5, 0.2):
        watched.clock.advance(seconds)
    assert watched.stalls == 4
    assert [told["stalls"] for told in watched.log.told] == [1]
    watched.idle(1)
    assert [(told["stalls"], told["longest_ms"]) for told in watched.log.told] == [(1, 250), (3, 450)]


def test_a_watch_that_was_stopped_leaves_nothing_behind() -> None:
    watched = Watched()
    watched.watch.stop()
    watched.watch.stop()
    assert watched.clock.getDelayedCalls() == []
    watched.clock.advance(10)
    assert watched.stalls == 0
