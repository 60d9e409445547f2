"""One question over a connection of its own, whose answer is bounded from its first byte: what `Agent` lacks for it."""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import URI, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class OneWay:
    """Gives an `Agent` the one endpoint, counts what comes, and can abort, which the agent itself can't.

    Whoever uses it aborts it in the end, whatever became of the question.
    """

    def __init__(self, endpoint: IStreamClientEndpoint, max_bytes: int) -> None:
        """After `max_bytes`, head and framing included, the connection is aborted."""
        self._endpoint, self._left = endpoint, max_bytes
        self._connection: Any = None

    @property
    def overrun(self) -> bool:
        """Whether more came than may."""
        return self._left < 0

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """The way to the only URL that is asked for."""
        return self

    def connect(self, protocolFactory: IProtocolFactory) -> "Deferred[IProtocol]":
        """Connect, and remember."""
        factory = WrappingFactory(protocolFactory)
        factory.noisy = False
        factory.protocol = self._counting
        return self._endpoint.connect(factory).addCallback(self._connected)

    def abort(self) -> None:
        """End the connection at once, if there is one."""
        transport = getattr(self._connection, "transport", None)
        if transport is not None:
            transport.abortConnection()

    def take(self, size: int) -> bool:
        """Count so many bytes; whether they may be read."""
        self._left -= size
        if self.overrun:
            self.abort()
        return not self.overrun

    def _counting(self, factory: Any, protocol: Any) -> "_Counting":
        counting = self._connection = _Counting(factory, protocol)
        counting.way = self
        return counting

    def _connected(self, counting: Any) -> IProtocol:
        protocol: IProtocol = counting.wrappedProtocol
        return protocol


class _Counting(ProtocolWrapper):
    """Between a connection and the agent's protocol."""

    way: OneWay

    def dataReceived(self, data: bytes) -> None:
        if self.way.take(len(data)):
            super().dataReceived(data)


@implementer(IAgent)
class PlainBodies:
    """An agent that takes bodies only as they are: unpacked by the client, 100 KB may become 100 MB at once."""

    def __init__(self, agent: IAgent, packed: Callable[[], Exception]) -> None:
        """`packed` makes the failure for an answer that is packed all the same."""
        self._agent, self._packed = agent, packed

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> "Deferred[IResponse]":
        """As `IAgent` says."""
        asked = Headers() if headers is None else headers.copy()
        asked.setRawHeaders(b"Accept-Encoding", [b"identity"])
        return self._agent.request(method, uri, asked, bodyProducer).addCallback(self._taken)

    def _taken(self, response: IResponse) -> IResponse:
        if response.headers.hasHeader(b"content-encoding"):
            raise self._packed()
        return response


class WholeBody(Protocol):
    """Collects a body of bounded size."""

    def __init__(self, max_bytes: int, too_large: Callable[[], Exception]) -> None:
        """`too_large` makes the failure for a longer one."""
        self.done: Deferred[bytes] = Deferred()
        """Fails if the body does not come to its end; of one that ends with the connection that can't be known."""
        self._left, self._parts, self._too_large = max_bytes, bytearray(), too_large

    def dataReceived(self, data: bytes) -> None:
        """The next bytes."""
        self._left -= len(data)
        if self._left >= 0:
            self._parts += data
        elif not self.done.called:
            self.done.errback(self._too_large())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end."""
        if self.done.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(bytes(self._parts))
        else:
            self.done.errback(reason)
