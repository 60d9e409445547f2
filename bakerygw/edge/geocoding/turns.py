"""Turns at something that all instances together may use only now and then."""

from collections import deque
from collections.abc import Callable
from math import ceil
from typing import ClassVar, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.ports import Records, StoreUnavailable

REST_S: Final = 1.0
"""From the end of one turn to the beginning of the next, wherever that is."""
COURTESY_S: Final = 0.15
"""So much later an instance takes two turns in a row: another one that waits has looked before."""
LOOK_EVERY_S: Final = 0.1
"""How often whoever is first in an instance's line looks whether it is its turn."""
HOLD_S: Final = 12.0
"""After this a turn ends by itself, as its instance must have died; longer than any work in one."""
PATIENCE_S: Final = 10.0
"""Longer nobody waits for a turn."""
_USUAL_S: Final = 1.5
"""A turn with its rest, before any was seen."""
_PAUSE: Final = b"pause:"


class NoTurn(Exception):
    """There is no turn within `PATIENCE_S`; `wait_s` until it is worth asking again."""

    def __init__(self, why: str, wait_s: float) -> None:
        """`why`: busy (too many wait) or paused (somebody has asked for a pause)."""
        super().__init__(why)
        self.why, self.wait_s = why, wait_s


class Turns:
    """One turn at a time among all instances, and `REST_S` between two; first come, first served on an instance.

    Whose turn it is stands in one of the shared `Records`. Every `take` that returns is followed by one `give_back`.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        records: Records,
        key: str,
        *,
        clock: IReactorTime,
        now: Callable[[], float],
        token: Callable[[], str],
    ) -> None:
        """`key` is the record; `now` gives Unix seconds; `token` a text that nobody has given before."""
        self._records, self._key = records, key
        self._clock, self._now, self._token = clock, now, token
        self._line: deque[Deferred[None]] = deque()
        self._busy = False
        """Somebody of this instance has the turn, or is first in its line."""
        self._began = self._not_before = self._paused_until = 0.0
        self._mine = b""
        self._pace_s = _USUAL_S

    def wait_s(self) -> float:
        """How long the next to come will wait, as far as this instance can tell."""
        if not self._busy:
            return max(0.0, self._not_before - self._clock.seconds())
        current_s = max(0.0, self._pace_s - (self._clock.seconds() - self._began))
        return current_s + self._pace_s * len(self._line)

    async def take(self) -> None:
        """Wait for a turn. Raises `NoTurn` or `StoreUnavailable`; whoever is cancelled leaves the line."""
        give_up_at = self._clock.seconds() + PATIENCE_S
        await self._queue()
        self._mine = self._token().encode("ascii")
        try:
            await self._claim(give_up_at)
        except NoTurn:
            self._next()
            raise
        except BaseException:
            # Whether it was claimed all the same is not known if the answer was not waited for, or did not come.
            Deferred.fromCoroutine(self._release(None, None)).addErrback(self._failed)
            self._next()
            raise

    async def give_back(self, *, used: bool = True, pause_s: float = 0.0, for_all: bool = False) -> None:
        """End the turn: the next one begins in `REST_S`, or at once if this one was not `used`.

        After a pause, if one is asked for: of this instance, or of all.
        """
        now = self._clock.seconds()
        self._not_before = now + REST_S + COURTESY_S if used else now
        self._paused_until = now + pause_s
        try:
            if not used:
                await self._release(None, None)
            elif not for_all:
                await self._release(b"rest", REST_S)
            elif await self._release(b"%b%d" % (_PAUSE, ceil(self._now() + pause_s)), pause_s):
                self._paused_until = now  # it is told by the record, which operators may delete
        finally:
            self._next()

    async def _queue(self) -> None:
        """Wait until nobody of this instance is before."""
        self._check_pause()
        if not self._busy:
            self._busy, self._began = True, self._clock.seconds()
            return
        wait_s = self.wait_s()
        if wait_s > PATIENCE_S:
            raise NoTurn("busy", wait_s)
        place: Deferred[None] = Deferred()
        place.addTimeout(PATIENCE_S, self._clock)
        self._line.append(place)
        try:
            await place
        except DeferredTimeoutError:
            raise NoTurn("busy", self.wait_s()) from None
        finally:
            if place in self._line:
                self._line.remove(place)

    async def _claim(self, give_up_at: float) -> None:
        """Wait until it is this instance's turn."""
        self._check_pause()
        while True:
            wait_s = self._not_before - self._clock.seconds()
            if wait_s > 0:
                await deferLater(self._clock, wait_s, _nothing)
            if await self._records.claim(self._key, self._mine, ttl_s=HOLD_S):
                return
            pause_s = self._pause_in(await self._records.get(self._key))
            if pause_s > 0:
                raise NoTurn("paused", pause_s)
            if self._clock.seconds() + LOOK_EVERY_S > give_up_at:
                raise NoTurn("busy", self._pace_s * (len(self._line) + 1))
            await deferLater(self._clock, LOOK_EVERY_S, _nothing)

    def _check_pause(self) -> None:
        left_s = self._paused_until - self._clock.seconds()
        if left_s > 0:
            raise NoTurn("paused", left_s)

    def _pause_in(self, value: bytes | None) -> float:
        """Seconds that a pause will last, 0 if the value is none. Others can write there, so little is believed."""
        digits = value[len(_PAUSE) :] if value is not None and value.startswith(_PAUSE) else b""
        return float(digits) - self._now() if digits.isdigit() and len(digits) <= 12 else 0.0

    async def _release(self, value: bytes | None, ttl_s: float | None) -> bool:
        """Let go of the turn, leaving `value` for so long; `False` without the store, where it ends by itself."""
        try:
            if not await self._records.replace(self._key, self._mine, value, ttl_s=ttl_s) and value is not None:
                await self._records.claim(self._key, value, ttl_s=ttl_s)  # somebody has deleted the record
        except StoreUnavailable:
            return False
        return True

    def _next(self) -> None:
        """Let the next in the line go on."""
        now = self._clock.seconds()
        self._pace_s = max(REST_S, 0.7 * self._pace_s + 0.3 * (now - self._began))
        self._began = now
        if self._line:
            self._line.popleft().callback(None)
        else:
            self._busy = False

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("turns.failed", failure)


def _nothing() -> None:
    """What is to be done after a wait."""
