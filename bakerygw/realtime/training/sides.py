"""The two sides of a bridged WebSocket, and how each comes by its handshake."""

from typing import Any, Final

from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from twisted.internet.interfaces import IReactorTime

from bakerygw.core.websocket import accept_of
from bakerygw.realtime.training.legs import Leg

MAX_MESSAGE_BYTES: Final = 1024 * 1024
"""Of a message, whole or in frames."""
_REQUEST: Final = (
    b"GET / HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n%b\r\n"
)
_ANSWER: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n"
)


class ClientLeg(Leg, WebSocketServerProtocol):  # type: ignore[misc]
    """The client's side, where the gateway is the server."""

    name = "client"
    subprotocol: str | None = None

    def onConnect(self, request: Any) -> str | None:
        """The subprotocol that has been agreed on."""
        return self.subprotocol

    def shake_hands(self, transport: Any, key: bytes) -> None:
        """Write the 101 for this key; `subprotocol` with it."""
        self.makeConnection(transport)
        named = "" if self.subprotocol is None else f"Sec-WebSocket-Protocol: {self.subprotocol}\r\n"
        self.data = _REQUEST % (key, named.encode("ascii"))
        self.consumeData()


class ServiceLeg(Leg, WebSocketClientProtocol):  # type: ignore[misc]
    """The service's side, where the gateway is the client."""

    name = "service"

    def prepare(self) -> bytes:
        """Make ready before there is a connection; returns the key of the handshake."""
        self.makeConnection(_Nowhere())
        key: bytes = self.websocket_key
        return key

    def begin(self, transport: Any) -> None:
        """The service has accepted the key: from here on frames pass."""
        self.data = _ANSWER % accept_of(self.websocket_key)
        self.consumeData()
        self.transport, self._reading = transport, False


class _Nowhere:
    """Takes autobahn's own request, in place of which goes that of the gateway."""

    def write(self, data: bytes) -> None:
        """Nothing."""


class LegFactories:
    """Makes legs with the options that hold for all of them."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._clients = WebSocketServerFactory(reactor=clock, server="")
        self._services = WebSocketClientFactory(reactor=clock)
        self._clients.setProtocolOptions(webStatus=False)
        for factory in (self._clients, self._services):
            # A bridge has timers of its own: autobahn's are those of the process's one reactor.
            factory.setProtocolOptions(
                maxFramePayloadSize=MAX_MESSAGE_BYTES,
                maxMessagePayloadSize=MAX_MESSAGE_BYTES,
                failByDrop=False,
                openHandshakeTimeout=0,
                closeHandshakeTimeout=0,
            )
        self._services.setProtocolOptions(serverConnectionDropTimeout=0)

    def client(self) -> ClientLeg:
        """A leg to a client."""
        leg = ClientLeg()
        leg.factory, leg.clock = self._clients, self._clock
        return leg

    def service(self) -> ServiceLeg:
        """A leg to a service."""
        leg = ServiceLeg()
        leg.factory, leg.clock = self._services, self._clock
        return leg
