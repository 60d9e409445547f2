"""One timer for the heartbeats of all streams, spread over their interval."""

from collections.abc import Callable
from typing import Final, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

SLOTS: Final = 128
"""Ten thousand streams are 78 a tick, which are written to in less than a millisecond."""


class Beating(Protocol):
    """What is to say something now and then."""

    slot: int
    spoke: int

    def beat(self) -> None:
        """Nothing was said for an interval."""


class Wheel:
    """Each member stands in one slot; a tick looks at one slot, and those that spoke meanwhile move to a later one."""

    def __init__(self, clock: IReactorTime, interval_s: float, *, ticked: Callable[[], None]) -> None:
        """`ticked` is called at each tick."""
        self.clock = clock
        self.tick = 0
        self._tick_s = interval_s / SLOTS
        self._ticked = ticked
        self._slots: list[set[Beating]] = [set() for _ in range(SLOTS)]
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Turn."""
        if self._timer is None:
            self._timer = self.clock.callLater(self._tick_s, self._turn)

    def stop(self) -> None:
        """Stand still."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def add(self, member: Beating) -> None:
        """It has spoken just now."""
        member.spoke = self.tick
        self._put(member)

    def remove(self, member: Beating) -> None:
        """It needs no heartbeat any more."""
        self._slots[member.slot].discard(member)

    def _put(self, member: Beating) -> None:
        member.slot = member.spoke % SLOTS
        self._slots[member.slot].add(member)

    def _turn(self) -> None:
        self._timer = self.clock.callLater(self._tick_s, self._turn)
        self.tick += 1
        due, self._slots[self.tick % SLOTS] = self._slots[self.tick % SLOTS], set()
        for member in due:
            if self.tick - member.spoke >= SLOTS:
                member.beat()
                member.spoke = self.tick
            self._put(member)
        self._ticked()
