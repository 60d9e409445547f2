"""Commands and replies on one connection to Redis: what is sent, who waits for what, and for how long."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

Argument = str | bytes | int | float


LAST_LOOK = 0.1
"""The part of a deadline that is always spent looking, however long the reactor was busy before."""


class ReplyError(Exception):
    """Redis answered a command with an error."""


class GoneError(Exception):
    """The connection ended before the answer came."""


class LateError(Exception):
    """The answer did not come in time."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the SHA-1 by which Redis knows it."""

    source: bytes
    sha1: str

    @classmethod
    def of(cls, source: bytes) -> "Script":
        """The script with this text."""
        return cls(source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


class Connection(Protocol):
    """What the link needs of its protocol class."""

    gone: Deferred[None]
    transport: Any
    heard: Callable[[object, object], None] | None
    """Told the channel and the payload of each message on a channel that was subscribed to. `None`: there are no
    messages."""

    def send(self, command: tuple[Argument, ...]) -> "Deferred[object]":
        """Write a command; the Deferred fires with its reply, which may be an exception as a value."""


class Waiting:
    """One caller waiting for one reply, apart from the reply's own place in the connection's queue.

    Whoever gives up (by deadline or cancellation) leaves that place alone, so replies stay in step.
    """

    __slots__ = ("_clock", "_last_look_s", "_timer", "answered")

    def __init__(self, clock: IReactorTime, reply: "Deferred[object]", timeout_s: float) -> None:
        self._clock, self._last_look_s = clock, timeout_s * LAST_LOOK
        self.answered: Deferred[object] = Deferred(lambda _: self._stop())
        self._timer: IDelayedCall | None = clock.callLater(timeout_s * (1 - LAST_LOOK), self._expiring)
        reply.addCallback(self._replied)

    def _replied(self, reply: object) -> None:
        if not self.answered.called:
            self._stop()
            self.answered.callback(reply)

    def _expiring(self) -> None:
        # After a long turn of the reactor timers run before sockets: leave time to write, answer and read.
        self._timer = self._clock.callLater(self._last_look_s, self._expired)

    def _expired(self) -> None:
        self._timer = None
        if not self.answered.called:
            self.answered.callback(LateError("no answer in time"))

    def _stop(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


async def ask(clock: IReactorTime, connection: Connection, command: tuple[Argument, ...], timeout_s: float) -> object:
    """The reply to one command. Raises `ReplyError`, `GoneError` or `LateError`."""
    reply = await Waiting(clock, connection.send(command), timeout_s).answered
    if isinstance(reply, Exception):
        raise reply if isinstance(reply, ReplyError | LateError) else GoneError(str(reply))
    return reply
