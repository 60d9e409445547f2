"""The connections to one URL of a service: kept while they are good, bounded in number and in who may wait."""

from collections import deque
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from bakerygw.ports import UpstreamFailed, UpstreamRequest, UpstreamResponse
from bakerygw.upstream.connection import UpstreamConnection
from bakerygw.upstream.deadline import Deadlines
from bakerygw.upstream.dial import Dialler
from bakerygw.upstream.names import Names

MAX_IDLE: Final = 100
"""Idle connections kept."""
MAX_EXCHANGES: Final = 1000
"""Exchanges on one connection, so that services behind a balancer get a fair share again."""
MAX_CONNECTIONS: Final = 256
"""Connections to one URL at a time, busy or being opened: one slow service must not take all file descriptors."""
MAX_QUEUED: Final = 256
"""Requests that may wait for one of them."""


class TurnedAway(UpstreamFailed):
    """The request waited for a connection and is not to wait any longer; nothing of it was sent."""


class Pool:
    """Connections to one URL. The last one used is the next one taken, so that surplus ones grow old and go."""

    def __init__(
        self,
        reactor: Any,
        url: str,
        *,
        deadlines: Deadlines,
        keepalive_s: float,
        trust: Any = None,
        names: Names | None = None,
        max_connections: int = MAX_CONNECTIONS,
        max_queued: int = MAX_QUEUED,
        max_idle: int = MAX_IDLE,
        max_exchanges: int = MAX_EXCHANGES,
    ) -> None:
        """`url` is `http[s]://host[:port]` without a path. `trust`: as `trust_root` gives it, `None` for the system's.

        `reactor` gives TCP and time (`IReactorTCP`, `IReactorTime`, `IReactorPluggableNameResolver` for names).
        `names`: where look-ups are shared, `None` for some of its own. Raises `ValueError` for any other URL.
        """
        self.url = url
        self._dialler = Dialler(reactor, url, timeout_s=deadlines.connect_s, trust=trust, names=names or Names(reactor))
        self.authority = self._dialler.authority
        self._clock: IReactorTime = reactor
        self._deadlines, self._keepalive_s = deadlines, keepalive_s
        self._max_connections, self._max_queued = max_connections, max_queued
        self._max_idle, self._max_exchanges = max_idle, max_exchanges
        self._idle: list[UpstreamConnection] = []
        self._busy: set[UpstreamConnection] = set()
        self._opening = 0
        self._queue: deque[Deferred[UpstreamConnection | None]] = deque()
        self._sweep: IDelayedCall | None = None
        self._closed = False
        self._retired = False
        self.sockets = 0
        """Connections that go on in another protocol."""
        self.requests = 0
        """Exchanges begun."""

    @property
    def outstanding(self) -> int:
        """Requests given to this pool whose response is not complete."""
        return len(self._busy) + self._opening + len(self._queue)

    @property
    def in_use(self) -> int:
        """Connections with an exchange under way."""
        return len(self._busy)

    @property
    def idle(self) -> int:
        """Connections ready for use."""
        return len(self._idle)

    async def request(self, request: UpstreamRequest, *, fresh: bool = False) -> UpstreamResponse:
        """One exchange, on a new connection if `fresh`. Raises `UpstreamFailed`; cancelling ends it at once."""
        connection = None if fresh else self._take_idle()
        if connection is None:
            connection = await self._acquire()
        self.requests += 1
        return await connection.send(request)

    def retire(self) -> None:
        """Keep no connection: the idle ones end here, each other one when its exchange is over.

        Nothing is cut and nobody refused: a request that was admitted before may ask later, and still gets its answer.
        """
        self._retired = True
        self._stop_sweeping()
        for connection in list(self._idle):
            connection.close()

    def close(self) -> None:
        """End every connection at once, cut what is under way, and refuse whatever comes later."""
        self._closed = True
        self._stop_sweeping()
        while self._queue:
            self._queue.popleft().errback(_unavailable("closing"))
        for connection in list(self._idle):
            connection.close()
        for connection in list(self._busy):
            connection.abort()

    def turn_away(self) -> None:
        """Refuse, with `TurnedAway`, whoever waits for a connection."""
        while self._queue:
            self._queue.popleft().errback(TurnedAway("service-unavailable", "destination_unavailable", "breaker open"))

    # The connections' side.

    def freed(self, connection: UpstreamConnection) -> None:
        """Give the connection to the next in the queue, else keep it."""
        if self._closed or connection.served >= self._max_exchanges:
            connection.close()
        elif self._queue:
            self._queue.popleft().callback(connection)
        elif self._retired or len(self._idle) >= self._max_idle:
            connection.close()
        else:
            self._busy.discard(connection)
            self._idle.append(connection)
            connection.idle_since = self._clock.seconds()
            if self._sweep is None:
                self._sweep = self._clock.callLater(self._keepalive_s, self._sweep_idle)

    def gone(self, connection: UpstreamConnection) -> None:
        """Forget the connection; its place goes to the next in the queue."""
        if connection in self._busy:
            self._busy.remove(connection)
            self._admit_next()
        elif connection in self._idle:
            self._idle.remove(connection)

    def switched(self, by: int) -> None:
        """So many connections more, or less, are of another protocol. They are not among those bounded."""
        self.sockets += by

    # Getting a connection.

    def _take_idle(self) -> UpstreamConnection | None:
        if not self._idle:
            return None
        connection = self._idle.pop()
        if self._clock.seconds() - connection.idle_since > self._keepalive_s:
            connection.close()
            return None
        self._busy.add(connection)
        return connection

    async def _acquire(self) -> UpstreamConnection:
        """A connection, opened or waited for."""
        self._check_open()
        if len(self._busy) + self._opening >= self._max_connections:
            connection = await self._wait()
            if connection is not None:
                return connection
        else:
            self._opening += 1
        try:
            connection = await self._dialler.dial(self._build)
        except BaseException:
            self._opening -= 1
            self._admit_next()
            raise
        self._opening -= 1
        if self._closed:
            connection.close()
        self._check_open()
        self._busy.add(connection)
        return connection

    def _check_open(self) -> None:
        if self._closed:
            raise _unavailable("closing")

    async def _wait(self) -> UpstreamConnection | None:
        """A connection that another request freed, or `None` with leave to open one, already counted in `_opening`."""
        if len(self._queue) >= self._max_queued:
            raise _unavailable("queue full")
        turn = Deferred[UpstreamConnection | None]()
        self._queue.append(turn)
        turn.addTimeout(self._deadlines.connect_s, self._clock)
        try:
            return await turn
        except (CancelledError, DeferredTimeoutError) as error:
            self._queue.remove(turn)
            if isinstance(error, CancelledError):
                raise
            raise _unavailable("no connection free in time") from None

    def _admit_next(self) -> None:
        if self._queue and len(self._busy) + self._opening < self._max_connections:
            self._opening += 1
            self._queue.popleft().callback(None)

    def _build(self) -> UpstreamConnection:
        return UpstreamConnection(clock=self._clock, authority=self.authority, deadlines=self._deadlines, owner=self)

    # Growing old.

    def _stop_sweeping(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _sweep_idle(self) -> None:
        self._sweep = None
        oldest_allowed = self._clock.seconds() - self._keepalive_s
        for connection in [old for old in self._idle if old.idle_since <= oldest_allowed]:
            connection.close()
        if self._idle:
            self._sweep = self._clock.callLater(self._keepalive_s, self._sweep_idle)


def _unavailable(cause: str) -> UpstreamFailed:
    return UpstreamFailed("service-unavailable", "connection_limit_reached", cause)
