"""The way to Redis, and one connection at a time along it, made anew whenever it ends, for ever.

txredisapi brings the protocol, but not its factory: that gives up for good after one failed AUTH or SELECT, and lets
commands wait for ever while there is no connection.
"""

import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint, ITCPTransport
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import Logger

from bakerygw.stores.redis_protocol import protocol_class
from bakerygw.stores.redis_wire import Argument, Connection, ask

CONNECT_TIMEOUT_S = 1.0
HANDSHAKE_TIMEOUT_S = 1.0
RETRY_MIN_S = 0.1
RETRY_MAX_S = 2.0
LASTING_S = 2.0
"""A connection that ends sooner counts as a failed attempt, so that one that is useless is not made ten times a second.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAccess:
    """Where Redis is, and as whom to speak with it: the same for every connection of a gateway."""

    reactor: IReactorTime
    endpoint: IStreamClientEndpoint
    """Leads to Redis, through TLS where wanted."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    jitter: Callable[[], float] = random.random
    """From 0 to 1: spreads the attempts of many instances to connect again."""

    @property
    def greeting(self) -> tuple[tuple[Argument, ...], ...]:
        """The commands that make a connection usable; any error among the answers ends that connection alone."""
        commands: list[tuple[Argument, ...]] = []
        if self.password is not None:
            by_name = () if self.username is None else (self.username,)
            commands.append(("AUTH", *by_name, self.password))
        if self.db:
            commands.append(("SELECT", self.db))
        return (*commands, ("PING",))


class RedisLine:
    """Connects, greets, hands the connection over until it is gone, waits, and begins again."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        access: RedisAccess,
        *,
        attend: Callable[[Connection], Coroutine[Any, Any, None]],
        report: Callable[[str, str], None],
    ) -> None:
        """`attend` is awaited with each connection that has passed the greeting, and ends when that connection is gone.

        `report` is told (state, reason): connected, lost, or unreachable.
        """
        self._access, self._clock = access, access.reactor
        self._attend, self._report = attend, report
        self._current: Connection | None = None
        self._stopping = False
        self._running: Deferred[None] | None = None
        self._first_try: Deferred[None] = Deferred()

    def start(self) -> "Deferred[None]":
        """Begin to connect, and to reconnect for ever; fires when the first attempt ended, well or not."""
        self._stopping = False
        self._first_try = Deferred()
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(lambda failure: self._log.failure("store.loop_failed", failure))
        return self._first_try

    def stop(self) -> "Deferred[None]":
        """End the connection and all attempts; fires when both are over."""
        self._stopping = True
        running, self._running = self._running, None
        stopped: Deferred[None] = Deferred()
        if running is None:
            stopped.callback(None)
            return stopped
        running.addCallback(stopped.callback)
        if self._current is not None:
            self._current.transport.abortConnection()
        else:
            running.cancel()
        return stopped

    async def _run(self) -> None:
        """Ends only when stopping."""
        factory = Factory.forProtocol(protocol_class())
        factory.noisy = False
        attempts = 0
        while not self._stopping:
            try:
                connection = await self._connect(factory)
                self._tell("connected", "")
                since = self._clock.seconds()
                await self._stay(connection)
                if self._clock.seconds() - since >= LASTING_S:
                    attempts = 0
                self._tell("lost", "")
            except CancelledError:
                break
            except Exception as error:  # whatever a resolver, TLS or a peer comes up with: try again
                self._tell("unreachable", f"{type(error).__name__}: {error}"[:200])
            self._tried()
            attempts += 1
            if not self._stopping:
                try:
                    await deferLater(self._clock, self._delay_s(attempts))
                except CancelledError:
                    break
        self._tried()

    async def _connect(self, factory: Factory) -> Connection:
        """A connection that has passed the greeting; any other is ended."""
        connecting = self._access.endpoint.connect(factory).addTimeout(CONNECT_TIMEOUT_S, self._clock)
        connection = self._current = cast("Connection", await connecting)
        if ITCPTransport.providedBy(connection.transport):
            connection.transport.setTcpNoDelay(True)
        try:
            for command in self._access.greeting:
                await ask(self._clock, connection, command, HANDSHAKE_TIMEOUT_S)
        except BaseException:
            connection.transport.abortConnection()
            await connection.gone
            self._current = None
            raise
        return connection

    async def _stay(self, connection: Connection) -> None:
        try:
            attending = Deferred.fromCoroutine(self._attend(connection))  # runs to its first wait, so it is in use
            self._tried()
            await attending
        except Exception:
            connection.transport.abortConnection()
            raise
        finally:
            self._current = None

    def _delay_s(self, attempts: int) -> float:
        longest = min(RETRY_MAX_S, RETRY_MIN_S * 2.0 ** min(attempts - 1, 10))
        return max(RETRY_MIN_S, longest * (0.5 + 0.5 * self._access.jitter()))

    def _tried(self) -> None:
        if not self._first_try.called:
            self._first_try.callback(None)

    def _tell(self, state: str, reason: str) -> None:
        if not self._stopping:
            self._report(state, reason)
