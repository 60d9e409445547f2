"""Services' names into addresses: one look-up for all who ask, and an answer that outlives a resolver's bad minute.

Look-ups block threads of the reactor and can't be ended once begun, so their number is what has to be bounded.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IProtocol,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IReactorTime,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from zope.interface import implementer

from bakerygw.runtime.resolver import Resolution

FRESH_S: Final = 5.0
"""How long an answer is used without asking again: the delay with which a service's new address is in force."""
STALE_S: Final = 60.0
"""How long after it came an answer is used while look-ups hang or fail. Longer, and the address may be another's."""
FAILED_S: Final = 1.0
"""How long after a failed look-up the next one is made."""
PATIENCE_S: Final = 0.1
"""How long a look-up may take before a stale answer does instead: a working resolver needs a few milliseconds."""
LATE_S: Final = 5.0
"""How long a look-up may take before whoever has no other answer is refused without a wait."""
MAX_LOOK_UPS: Final = 8
"""Look-ups at a time, each in a thread, that services may have; Redis has another of its own."""

Address = IPv4Address | IPv6Address


class LookUpLate(DNSLookupError):
    """A look-up has been under way for too long, and there is no earlier answer."""


class _Name:
    """What is known of one name."""

    __slots__ = ("addresses", "asked_at", "good_until", "host", "look_at", "looking", "waiting")

    def __init__(self, host: str, now: float) -> None:
        self.host = host
        self.addresses: tuple[Address, ...] = ()
        """The last good answer, or nothing if it is too old."""
        self.good_until = self.look_at = self.asked_at = now
        """The ends of its use and of the time without a new look-up; and the beginning of the last one."""
        self.looking = False
        self.waiting: dict[Deferred[None], None] = {}


class Names:
    """Looks names up by the reactor's resolver, never one twice at a time, and remembers."""

    def __init__(self, reactor: Any, *, max_look_ups: int = MAX_LOOK_UPS) -> None:
        """`reactor` gives time and `nameResolver` (`IReactorTime`, `IReactorPluggableNameResolver`)."""
        self._reactor, self._max_look_ups = reactor, max_look_ups
        self._clock: IReactorTime = reactor
        self._names: dict[str, _Name] = {}
        self._queue: deque[_Name] = deque()
        self._running = 0

    async def look_up(self, host: str) -> tuple[Address, ...]:
        """At least one address. Cancelling ends the wait, not the look-up, which others may wait for.

        Raises `LookUpLate`, and `DNSLookupError` for every other failure.
        """
        now = self._clock.seconds()
        name = self._names.get(host) or self._add(host, now)
        if now > name.good_until:
            name.addresses = ()
        if not name.looking and now >= name.look_at:
            self._begin(name, now)
        if name.looking:
            await self._wait(name, now)
        if name.addresses:
            return name.addresses
        raise LookUpLate(f"no answer yet for {host}") if name.looking else DNSLookupError(f"no address for {host}")

    def _add(self, host: str, now: float) -> _Name:
        """A name that was not known; those that nobody has asked for lately are forgotten, as reloads bring others."""
        known = self._names.items()
        for old in [key for key, name in known if not name.looking and now > max(name.good_until, name.look_at)]:
            del self._names[old]
        name = self._names[host] = _Name(host, now)
        return name

    async def _wait(self, name: _Name, now: float) -> None:
        """Until the look-up ends, or for as long as it is worth waiting."""
        patience_s = PATIENCE_S if name.addresses else LATE_S
        left_s = name.asked_at + patience_s - now
        if left_s <= 0:
            return
        turn = Deferred[None]()
        turn.addTimeout(left_s, self._clock)
        name.waiting[turn] = None
        try:
            await turn
        except DeferredTimeoutError:
            return
        finally:
            name.waiting.pop(turn, None)

    def _begin(self, name: _Name, now: float) -> None:
        name.looking, name.asked_at = True, now
        if self._running < self._max_look_ups:
            self._ask(name)
        else:
            self._queue.append(name)

    def _ask(self, name: _Name) -> None:
        self._running += 1
        resolver: IHostnameResolver = self._reactor.nameResolver
        resolver.resolveHostName(_Receiver(lambda found: self._ended(name, found)), name.host)

    def _ended(self, name: _Name, found: Sequence[Address]) -> None:
        now = self._clock.seconds()
        self._running -= 1
        name.looking = False
        if found:
            name.addresses = tuple(found)
            name.look_at, name.good_until = now + FRESH_S, now + STALE_S
        else:
            name.look_at = now + FAILED_S
        if self._queue:
            self._ask(self._queue.popleft())
        for turn in tuple(name.waiting):
            turn.callback(None)


@implementer(IStreamClientEndpoint)
class NameEndpoint:
    """`HostnameEndpoint`, with addresses from `Names`: several are tried one after another (RFC 8305)."""

    def __init__(self, reactor: Any, names: Names, host: str, port: int, *, timeout_s: float) -> None:
        """`reactor` gives TCP and time. `timeout_s` is for each attempt, without the look-up."""
        self._reactor, self._names = reactor, names
        self._host, self._port, self._timeout_s = host, port, timeout_s

    def connect(self, protocolFactory: IProtocolFactory) -> "Deferred[IProtocol]":
        """Connect to the first address that answers. Fails with `DNSLookupError` or why the last attempt failed."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        addresses = await self._names.look_up(self._host)
        way: IStreamClientEndpoint
        if len(addresses) == 1:
            # HostnameEndpoint would wait 0.3 s for another address before it tells that the only one refused.
            kind = TCP6ClientEndpoint if isinstance(addresses[0], IPv6Address) else TCP4ClientEndpoint
            way = kind(self._reactor, addresses[0].host, self._port, timeout=self._timeout_s)
        else:
            known = _Known(self._reactor, addresses)
            way = HostnameEndpoint(known, self._host, self._port, timeout=self._timeout_s)
        return await way.connect(factory)


@implementer(IResolutionReceiver)
class _Receiver:
    """Collects the addresses of one look-up."""

    def __init__(self, ended: Callable[[Sequence[Address]], None]) -> None:
        self._ended = ended
        self._found: list[Address] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """Nothing to keep: Twisted's own can't be cancelled."""

    def addressResolved(self, address: IAddress) -> None:
        if isinstance(address, IPv4Address | IPv6Address):
            self._found.append(address)

    def resolutionComplete(self) -> None:
        self._ended(self._found)


@implementer(IReactorPluggableNameResolver, IHostnameResolver)
class _Known:
    """The part of a reactor that `HostnameEndpoint` uses, and a resolver that has the answer."""

    def __init__(self, reactor: Any, addresses: Sequence[Address]) -> None:
        self.connectTCP, self.callLater, self.seconds = reactor.connectTCP, reactor.callLater, reactor.seconds
        self.nameResolver: IHostnameResolver = self
        self._addresses = addresses

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        """Not for this one."""
        raise NotImplementedError

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """All of them at once, with the port that is asked for."""
        resolution = Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        for address in self._addresses:
            resolutionReceiver.addressResolved(type(address)("TCP", address.host, portNumber))
        resolutionReceiver.resolutionComplete()
        return resolution
