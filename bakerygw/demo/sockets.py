"""The demo's training over WebSocket (RFC 6455), beside the HTTP of the training service."""

import json
from typing import Any, Final

from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionDeny
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.server import Request

from bakerygw.demo.training import BadCommand, Message, TrainingRuns
from bakerygw.demo.web import Connections, LoopbackChannel, scope_of

TRAINING_SOCKET: Final = "/api/v1/training/ws"
MAX_MESSAGE_BYTES: Final = 4096
PING_S: Final = 20.0
PONG_S: Final = 10.0


class TrainingSocket(WebSocketServerProtocol):
    """One client: commands in, messages of its bakery's runs out; all JSON texts."""

    factory: "TrainingSockets"

    def __init__(self) -> None:
        super().__init__()
        self._scope = ""
        self._tell = self._say

    def connectionMade(self) -> None:
        """Enrol."""
        super().connectionMade()
        self.factory.connections.add(self)

    def abort(self) -> None:
        """Cut the connection at once."""
        transport: Any = self.transport
        transport.abortConnection()

    def onConnect(self, request: Any) -> None:
        """Take only whom the gateway has identified; the refusal is an HTTP answer."""
        scope = scope_of(request.headers.get)
        if scope is None:
            raise ConnectionDeny(400, "no X-Tenant-Id, call through the gateway")
        self._scope = "/".join(scope)

    def onOpen(self) -> None:
        """Tell what goes on."""
        # What was the HTTP channel's: left there, it would be asked to pause what it has no more.
        transport: Any = self.transport
        transport.unregisterProducer()
        self.factory.runs.watch(self._scope, self._tell)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Do as told; what cannot be done is answered with an `error`."""
        try:
            self.factory.runs.command(self._scope, payload)
        except BadCommand as fault:
            self._say({"type": "error", "detail": str(fault)})

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Leave."""
        super().connectionLost(reason)
        self.factory.runs.leave(self._scope, self._tell)
        self.factory.connections.discard(self)

    def _say(self, message: Message) -> None:
        self.sendMessage(json.dumps(message).encode())


class TrainingSockets(WebSocketServerFactory):
    """Makes the server's side of each connection. `connections` knows them while they are open."""

    protocol = TrainingSocket  # type: ignore[assignment]
    noisy = False

    def __init__(self, runs: TrainingRuns, connections: Connections, reactor: object) -> None:
        super().__init__(reactor=reactor)
        self.runs, self.connections = runs, connections
        self.setProtocolOptions(
            maxFramePayloadSize=MAX_MESSAGE_BYTES,
            maxMessagePayloadSize=MAX_MESSAGE_BYTES,
            failByDrop=False,
            autoPingInterval=PING_S,
            autoPingTimeout=PONG_S,
            openHandshakeTimeout=5,
            closeHandshakeTimeout=2,
        )


class TrainingResource(WebSocketResource):
    """Takes a request over from the HTTP channel, which is forgotten: the socket is enrolled in its place."""

    def render(self, request: Request) -> Any:
        """Shake hands, and go on as a WebSocket."""
        channel = request.channel
        assert isinstance(channel, LoopbackChannel)  # noqa: S101  of our own site
        rendered = super().render(request)
        channel.site.connections.discard(channel)
        return rendered
