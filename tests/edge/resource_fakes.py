"""The same resources under a stock `Site` and under the gateway's own channel, in memory."""

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from zope.interface import implementer

from bakerygw.core.http import Reply
from bakerygw.core.outcome import Outcome, Trace
from bakerygw.edge.conversation import Conversation, standing_headers
from bakerygw.edge.exchange import Exchange
from bakerygw.edge.resource import ResourceHandler
from tests.edge.edge_fakes import Wire, dechunked, make_site

MAX_BODY_BYTES = 1000
OURS = {b"date", b"server", b"x-request-id", b"x-content-type-options", b"connection", b"transfer-encoding"}
"""Header fields that are the server's own affair."""


@implementer(IPushProducer)
class StockWire(Wire):
    @property
    def disconnecting(self) -> bool:
        return self.closed

    def writeSequence(self, pieces: list[bytes]) -> None:
        self.write(b"".join(pieces))


class End:
    """The client's end of one connection to a server in memory."""

    clock: Clock
    protocol: Any
    wire: Wire

    def send(self, *pieces: bytes) -> "End":
        for piece in pieces:
            self.protocol.dataReceived(piece)
            self.turn()
        return self

    def turn(self) -> "End":
        """A few turns of the reactor."""
        for _ in range(4):
            self.clock.advance(0)
        return self

    def leave(self) -> None:
        producer, self.wire.producer = self.wire.producer, None
        if producer is not None:
            producer.stopProducing()  # as Twisted's transports do
        self.protocol.connectionLost(Failure(ConnectionDone()))

    def replies(self, *, bodiless: bool = False) -> list[tuple[int, dict[bytes, list[bytes]], bytes]]:
        """Status, end-to-end fields and body of each reply."""
        data, found = self.wire.written, []
        while data:
            head, end, data = data.partition(b"\r\n\r\n")
            assert end, f"no whole head: {head!r}"
            start, *lines = head.split(b"\r\n")
            fields: dict[bytes, list[bytes]] = {}
            for line in lines:
                name, _, value = line.partition(b": ")
                fields.setdefault(name.lower(), []).append(value)
            status = int(start.split(b" ")[1])
            if bodiless or status in (204, 304):
                body = b""
            elif fields.get(b"transfer-encoding") == [b"chunked"]:
                body, data = dechunked(data)
            elif b"content-length" in fields:
                length = int(fields[b"content-length"][0])
                body, data = data[:length], data[length:]
                assert len(body) == length
            else:
                assert self.wire.closed, "only the end of the connection tells the end of this body"
                body, data = data, b""
            found.append((status, {name: fields[name] for name in fields if name not in OURS}, body))
        return found


class Stock(End):
    """A stock `Site`."""

    def __init__(self, resource: Resource, *, stalled: bool = False) -> None:
        self.clock = Clock()
        site = Site(resource, reactor=self.clock, parsePOSTFormSubmission=False)
        self.protocol, self.wire = site.buildProtocol(IPv4Address("TCP", "192.0.2.1", 4711)), StockWire(stalled=stalled)
        self.protocol.makeConnection(self.wire)


class Own(End):
    """The gateway's own channel, with the conversation and its outcomes."""

    def __init__(self, resource: Resource, *, stalled: bool = False, upgrade: bytes | None = None) -> None:
        self.clock = Clock()
        self.outcomes: list[Outcome] = []
        self.resource, self.upgrade = resource, upgrade
        self.handler = ResourceHandler(clock=self.clock, max_body_bytes=MAX_BODY_BYTES)
        conversation = Conversation(
            self.reply_to,
            standing=lambda head, trace: standing_headers(trace),
            ended=self.outcomes.append,
            clock=self.clock,
        )
        self.site = make_site(conversation, self.clock)
        self.protocol, self.wire = self.site.buildProtocol(IPv4Address("TCP", "192.0.2.1", 4711)), Wire(stalled=stalled)
        self.protocol.makeConnection(self.wire)

    async def reply_to(self, exchange: Exchange, trace: Trace) -> Reply:
        return await self.handler.reply_to(exchange, self.resource, upgrade=self.upgrade)


class Waiting(Resource):
    """Keeps its requests, to be answered by hand."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Any] = []
        self.ended: list[str] = []

    def render(self, request: Any) -> int:
        self.requests.append(request)
        finish: Deferred[None] = request.notifyFinish()
        finish.addCallbacks(lambda _: self.ended.append("finished"), lambda _: self.ended.append("left"))
        return NOT_DONE_YET


class Pushing:
    """A push producer that notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")
