"""The factory of client connections: how many there may be, and their deadlines on one coarse timer."""

from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from typing import ClassVar, Final, Literal
from typing import Protocol as Port

from twisted.internet.interfaces import IAddress, IProtocolNegotiationFactory, IReactorTime
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from bakerygw.core.heads import UNKNOWN, TrustedProxies, client_subject, plain_address
from bakerygw.core.http import Reply
from bakerygw.core.problem import Refused
from bakerygw.core.recent import Seldom
from bakerygw.edge.channel import EdgeChannel
from bakerygw.edge.exchange import Exchange
from bakerygw.edge.framer import ChannelLimits

SWEEP_S = 0.5
TELL_EVERY_S: Final = 60.0
"""Who is over a bound comes again and again: a line so often at most for each bound."""

Bound = Literal["all", "client"]
"""Which bound of connections was met: that of all, or that of one client."""


class Application(Port):
    """Who answers requests."""

    def serve(self, exchange: Exchange) -> None:
        """Give `exchange` its reply, now or later. Never raises."""

    def unreadable(self, refusal: Refused, peer: str) -> Reply:
        """The reply to what could not be read as a request, from this peer."""


@implementer(IProtocolNegotiationFactory)
class EdgeSite(Factory):
    """Builds an `EdgeChannel` for each accepted connection.

    `max_connections` and `max_per_client` close further ones at once; trusted proxies, and
    whoever sits behind a UNIX socket, speak for many clients and are not counted. One sweep, twice a second, serves the
    deadlines of all connections: ten thousand timers cost more than ten thousand looks.
    """

    _log: ClassVar[Logger] = Logger()
    noisy = False
    sweep_s = SWEEP_S

    def __init__(
        self,
        application: Application,
        *,
        clock: IReactorTime,
        now: Callable[[], float],
        proxies: TrustedProxies,
        limits: ChannelLimits,
        max_connections: int | None = None,
        max_per_client: int | None = None,
        on_connections: Callable[[int], None] | None = None,
        on_refused: Callable[[Bound], None] | None = None,
    ) -> None:
        self.application, self.clock, self.proxies, self.limits = application, clock, proxies, limits
        self._now = now
        self._max, self._max_per_client = max_connections, max_per_client
        self._on_connections, self._on_refused = on_connections, on_refused
        self._channels: set[EdgeChannel] = set()
        self._per_client: Counter[str] = Counter()
        self._date: tuple[int, bytes] = (0, b"")
        self._sweeping = LoopingCall(self._sweep)
        self._sweeping.clock = clock
        self.refused_connections = 0
        self._untold: Counter[Bound] = Counter()
        self._told: Seldom[Bound] = Seldom(TELL_EVERY_S, 2)

    def acceptableProtocols(self) -> list[bytes]:
        """What TLS clients may agree on (RFC 7301). Twisted turns away all that ask where nothing is offered."""
        return [b"http/1.1"]

    def doStart(self) -> None:
        """Begin to keep deadlines."""
        super().doStart()
        if not self._sweeping.running:
            self._sweeping.start(SWEEP_S, now=False)

    def doStop(self) -> None:
        """No port is left; connections that are still open keep their deadlines until they end."""
        super().doStop()
        self._stop_when_empty()

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """A channel, or `None` (which closes the connection) where there are too many."""
        peer = plain_address(str(getattr(addr, "host", "") or UNKNOWN))
        bound = self._met(peer)
        if bound is not None:
            self._refuse(bound, peer)
            return None
        channel = EdgeChannel(self, peer)
        channel.factory = self
        self._channels.add(channel)
        self._per_client[client_subject(peer)] += 1
        self._count()
        return channel

    def _met(self, peer: str) -> Bound | None:
        if self._max is not None and len(self._channels) >= self._max:
            return "all"
        if self._max_per_client is None or self.proxies.trusts(peer):
            return None
        return "client" if self._per_client[client_subject(peer)] >= self._max_per_client else None

    def _refuse(self, bound: Bound, peer: str) -> None:
        self.refused_connections += 1
        self._untold[bound] += 1
        if self._on_refused is not None:
            self._on_refused(bound)
        if self._told.is_due(bound, self.clock.seconds()):
            most = self._max if bound == "all" else self._max_per_client
            self._log.warn("connections.refused", limit=bound, max=most, client=peer, refused=self._untold.pop(bound))

    def forget(self, channel: EdgeChannel) -> None:
        """This connection is lost."""
        if channel not in self._channels:
            return
        self._channels.discard(channel)
        subject = client_subject(channel.peer)
        self._per_client[subject] -= 1
        if not self._per_client[subject]:
            del self._per_client[subject]
        self._count()
        if not self.numPorts:
            self._stop_when_empty()

    def date(self) -> bytes:
        """The `Date` header's value, formatted once a second."""
        second = int(self._now())
        if self._date[0] != second:
            self._date = (second, formatdate(second, usegmt=True).encode("ascii"))
        return self._date[1]

    def shutdown(self) -> None:
        """Close idle connections now and the others after their reply; all are `busy` until they are gone."""
        for channel in list(self._channels):
            channel.shutdown()

    def abort(self) -> None:
        """End every connection at once."""
        for channel in list(self._channels):
            channel.abort("drained")

    @property
    def busy(self) -> int:
        """Connections with a reply under way or not yet taken."""
        return sum(1 for channel in self._channels if channel.busy)

    def connections(self) -> dict[str, object]:
        """For operators: how many connections there are, and from whom most."""
        return {
            "open": len(self._channels),
            "busy": self.busy,
            "refused": self.refused_connections,
            "max": self._max,
            "max_per_client": self._max_per_client,
            "clients": [{"client": client, "connections": count} for client, count in self._per_client.most_common(50)],
        }

    def _count(self) -> None:
        if self._on_connections is not None:
            self._on_connections(len(self._channels))

    def _stop_when_empty(self) -> None:
        if not self._channels and self._sweeping.running:
            self._sweeping.stop()

    def _sweep(self) -> None:
        now = self.clock.seconds()
        for channel in list(self._channels):
            try:
                channel.sweep(now)
            except Exception:  # one connection's trouble must not stop the others' deadlines
                self._log.failure("sweeping a connection failed")
                channel.abort()
