"""One connection to Redis that is found again by itself: every call has a deadline and a typed failure.

Connecting is done by `RedisLine`.
"""

import re
from collections.abc import Callable
from typing import ClassVar, Literal

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from bakerygw.core.breaker import Breaker
from bakerygw.ports import StoreTelemetry, StoreUnavailable
from bakerygw.stores.redis_line import RedisAccess, RedisLine
from bakerygw.stores.redis_wire import Argument, Connection, GoneError, LateError, ReplyError, Script, ask

HEARTBEAT_S = 1.0
"""An idle connection is asked this often whether it lives, so that its state is known without traffic."""
HEARTBEAT_TIMEOUT_S = 1.0
QUIET_S = 2.0
"""So long after the last failure a proof may stand in for calls, if none is made that could show it themselves."""

PROOF: tuple[Argument, ...] = (
    "EVAL",
    "return redis.call('SET', KEYS[1], '0', 'PX', 1)",
    1,
    "bakerygw:limit:{proof}",
)
"""A script that writes, as admission does: what a replica, a server without its data and a narrow ACL all refuse."""

_UNFIT = re.compile(
    "(?:^|: ?-)(?:READONLY|MASTERDOWN|LOADING|NOREPLICAS|MISCONF|NOAUTH|NOPERM|CLUSTERDOWN|MOVED)(?: |$)"
)
"""Errors of a server that is not, or is no longer, the one to ask. Redis 6 quotes those met in a script after its own
"ERR Error running script"."""


class RedisLink:
    """Calls to one Redis over one pipelined connection. Also a `StoreLink`."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        access: RedisAccess,
        *,
        timeout_s: float,
        telemetry: StoreTelemetry,
        breaker: Breaker | None = None,
        event: str = "store.link",
    ) -> None:
        """`timeout_s` is the budget of each call, `event` what the log calls a change of the link's state."""
        self._event = event
        self._clock, self._telemetry, self._timeout_s = access.reactor, telemetry, timeout_s
        self._breaker = breaker if breaker is not None else Breaker(failures=5, within_s=10.0, open_s=1.0)
        self._line = RedisLine(access, attend=self._attend, report=self._report)
        self._current: Connection | None = None
        self._watchers: list[Callable[[Connection | None], None]] = []
        self._told: tuple[str, str] | None = None
        self._failed_at: float | None = None
        """When the latest failure was that opened the breaker; `None` once Redis has been seen to serve since."""
        self._unfit = False
        """A reply said that this is not the server to ask, and none has proven otherwise."""

    @property
    def status(self) -> Literal["connected", "disconnected"]:
        """connected: there is a connection, and Redis has not been failing since it last served."""
        return "connected" if self._current is not None and self._failed_at is None else "disconnected"

    def start(self) -> "Deferred[None]":
        """Begin to connect, and to reconnect for ever; fires when the first attempt ended, well or not."""
        return self._line.start()

    def stop(self) -> "Deferred[None]":
        """End the connection and all attempts; fires when both are over."""
        return self._line.stop()

    def watch(self, watcher: Callable[[Connection | None], None]) -> None:
        """Tell `watcher` of each connection as it comes into use, and `None` when it is gone."""
        self._watchers.append(watcher)

    async def call(self, *command: Argument) -> object:
        """The reply to one command. Raises `StoreUnavailable`, at once where there is no connection."""
        try:
            return await self._call(command)
        except ReplyError as error:
            raise self._refused(error) from error

    async def run(self, script: Script, keys: list[str], args: list[Argument]) -> object:
        """The reply of a Lua script, which is loaded where Redis does not know it. Raises `StoreUnavailable`."""
        try:
            return await self._call(("EVALSHA", script.sha1, len(keys), *keys, *args))
        except ReplyError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise self._refused(error) from error
        self._breaker.success()  # it did answer; and a probe must not fail for the script's sake
        return await self.call("EVAL", script.source, len(keys), *keys, *args)

    async def _call(self, command: tuple[Argument, ...]) -> object:
        """As `call`, but raises `ReplyError` for an error and does not count it."""
        connection = self._current
        if connection is None:
            self._telemetry.failure("disconnected")
            why = self._told[1] if self._told is not None else ""
            raise StoreUnavailable(f"not connected: {why}" if why else "not connected")
        begun = self._clock.seconds()
        if not self._breaker.allow(begun):
            self._telemetry.failure("open")
            raise StoreUnavailable("spared by the breaker")
        try:
            reply = await ask(self._clock, connection, command, self._timeout_s)
        except GoneError as error:
            self._telemetry.failure("disconnected")
            raise StoreUnavailable("connection lost") from error
        except LateError as error:
            if self._failed("timeout", "no answer in time") and connection is self._current:
                # A peer that hangs or has silently vanished is met anew.
                connection.transport.abortConnection()
            raise StoreUnavailable("no answer in time") from error
        self._breaker.success()
        if self._failed_at is not None and not self._unfit:
            self._serves()
        self._telemetry.round_trip(self._clock.seconds() - begun)
        return reply

    def _refused(self, error: ReplyError) -> StoreUnavailable:
        """Count an error reply. If such replies open the breaker and another server may be meant, look for it.

        That one key holds a value of another kind says nothing about the server, and keeps nobody else waiting.
        """
        reason = str(error)[:200]
        if reason.startswith("WRONGTYPE"):
            self._telemetry.failure("error")
            self._breaker.success()
            return StoreUnavailable(reason)
        unfit = _is_unfit(error)
        self._unfit |= unfit
        if self._failed("error", reason) and unfit and self._current is not None:
            self._current.transport.abortConnection()
        return StoreUnavailable(reason)

    def _failed(self, kind: str, reason: str) -> bool:
        """Count a failure; whether it opened the breaker."""
        self._telemetry.failure(kind)
        opened = self._breaker.failure(self._clock.seconds())
        if opened:
            self._fails(reason)
        return opened

    def _fails(self, reason: str) -> None:
        self._failed_at = self._clock.seconds()
        if self._told is None or self._told[0] != "failing":
            self._tell("failing", reason)

    def _serves(self) -> None:
        self._failed_at = None
        if self._current is not None:
            self._tell("connected", "")

    async def _attend(self, connection: Connection) -> None:
        """Offer a connection that has passed the greeting, until it is gone; after refusals it has to prove itself."""
        try:
            if self._unfit:
                await self._prove(connection)
        except ReplyError:
            connection.transport.abortConnection()
            await connection.gone
            return
        heartbeat = LoopingCall(lambda: Deferred.fromCoroutine(self._beat(connection)))
        heartbeat.clock = self._clock
        beating = heartbeat.start(HEARTBEAT_S, now=False)
        beating.addErrback(lambda failure: self._log.failure("store.heartbeat_failed", failure))
        self._use(connection)
        if self._failed_at is None:
            self._tell("connected", "")
        await connection.gone
        heartbeat.stop()
        self._use(None)

    async def _beat(self, connection: Connection) -> None:
        try:
            if self._unfit or self._failed_at is not None:
                await self._prove(connection)
                self._forgive()
            else:
                await ask(self._clock, connection, ("PING",), HEARTBEAT_TIMEOUT_S)
        except (ReplyError, GoneError, LateError):
            connection.transport.abortConnection()

    async def _prove(self, connection: Connection) -> None:
        """See whether this server takes writes. Raises `GoneError`, `LateError`, and `ReplyError` if it is unfit."""
        try:
            await ask(self._clock, connection, PROOF, self._timeout_s)
        except ReplyError as error:
            self._fails(str(error)[:200])
            if _is_unfit(error):
                self._unfit = True
                raise
        self._unfit = False

    def _forgive(self) -> None:
        """After a proof Redis serves again, but only if no call since could tell: it may yet refuse what they ask."""
        now = self._clock.seconds()
        if self._failed_at is not None and now - self._failed_at >= QUIET_S and self._breaker.allow(now):
            self._breaker.success()
            self._serves()

    def _use(self, connection: Connection | None) -> None:
        self._current = connection
        for watcher in self._watchers:
            watcher(connection)

    def _report(self, state: str, reason: str) -> None:
        """What the line says; whether a connection serves is known here, and a lost one that did not is no news."""
        if state != "connected" and (state != "lost" or self._failed_at is None):
            self._tell(state, reason)

    def _tell(self, state: str, reason: str) -> None:
        """Log what changed, once."""
        if (state, reason) != self._told:
            self._told = state, reason
            tell = self._log.info if state == "connected" else self._log.warn
            tell(self._event, state=state, reason=reason)


def _is_unfit(error: ReplyError) -> bool:
    """Whether the reply means that this server is the wrong one, and not that the command is."""
    return _UNFIT.search(str(error)) is not None
