"""Names looked up in threads that hold nobody up: a look-up that hangs must not keep the process from ending."""

import socket
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any, Final, Literal

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IReactorFromThreads,
    IResolutionReceiver,
)
from zope.interface import implementer

_KINDS: Final[dict[int, type[IPv4Address] | type[IPv6Address]]] = {
    socket.AF_INET: IPv4Address,
    socket.AF_INET6: IPv6Address,
}

Found = Sequence[tuple[Any, ...]]


@implementer(IHostResolution)
class Resolution:
    """One look-up, under way or at its end."""

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """Nothing: `getaddrinfo` can't be ended, and its answer is told all the same."""


@implementer(IHostnameResolver)
class DaemonResolver:
    """`getaddrinfo` in a daemon thread for each look-up.

    Twisted's own takes threads of the reactor's pool, and all of those are joined when the reactor stops. How many
    look-ups there are at a time is the callers' affair.
    """

    def __init__(self, reactor: IReactorFromThreads, getaddrinfo: Callable[..., Found] | None = None) -> None:
        """`getaddrinfo` as in `socket`, whose own is used without one."""
        self._reactor, self._getaddrinfo = reactor, getaddrinfo

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """Tell the receiver of every address, in the order of the system; of none where the look-up fails."""
        look_up = Resolution(hostName)
        resolutionReceiver.resolutionBegan(look_up)
        kind_of_transport: Literal["TCP", "UDP"] = "UDP" if transportSemantics == "UDP" else "TCP"
        wanted = tuple(_KINDS.values()) if addressTypes is None else tuple(addressTypes)

        def tell(found: Found) -> None:
            for family, _, _, _, address in found:
                kind = _KINDS.get(family)
                if kind is not None and kind in wanted:
                    resolutionReceiver.addressResolved(kind(kind_of_transport, address[0], portNumber))
            resolutionReceiver.resolutionComplete()

        def look() -> None:
            getaddrinfo = self._getaddrinfo or socket.getaddrinfo
            try:
                found = getaddrinfo(hostName, portNumber, 0, socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                found = ()
            self._reactor.callFromThread(tell, found)

        Thread(target=look, name=f"look-up {hostName}", daemon=True).start()
        return look_up


def install_resolver(reactor: Any) -> None:
    """Let the reactor look all names up this way."""
    reactor.installNameResolver(DaemonResolver(reactor))
