"""Fetching a document from one URL, whole or not at all, within a time and a size."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, RequestTransmissionFailed, ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

TIMEOUT_S: Final = 5.0
"""For all of it, from the look-up of the name to the last byte."""
MAX_BYTES: Final = 256 * 1024
MAX_HEAD_BYTES: Final = 64 * 1024
"""Of the answer, and of what frames its body: `Agent` has no bound for the number of fields."""

_MAX_AGE: Final = re.compile(r'(?:^|[,\s])max-age="?([0-9]{1,9})"?(?=$|[,\s])', re.IGNORECASE)


class FetchFailed(Exception):
    """No document came. `result` is a short constant for metrics; the text says why, without what was received."""

    def __init__(self, result: str, why: str) -> None:
        """`result`: unreachable, timeout, status, too-large or invalid."""
        super().__init__(why)
        self.result = result


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A document."""

    body: bytes
    max_age_s: int | None
    """For how long its server says that it holds (RFC 9111 5.2.2.1)."""


class Fetch:
    """`GET` of one URL, on a connection of its own each time. Redirects are not followed, and cookies not kept."""

    def __init__(
        self,
        reactor: Any,
        url: str,
        endpoint: IStreamClientEndpoint,
        *,
        timeout_s: float = TIMEOUT_S,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """`endpoint` leads to the URL's host, through TLS where the URL says so."""
        self._clock: IReactorTime = reactor
        self._reactor, self._url, self._endpoint = reactor, url, endpoint
        self._timeout_s, self._max_bytes = timeout_s, max_bytes

    async def __call__(self) -> Fetched:
        """The document. Raises `FetchFailed`. Whatever comes of it, no connection is left behind."""
        way = _OneWay(self._endpoint, self._max_bytes + MAX_HEAD_BYTES)
        begun = self._clock.seconds()
        getting = Deferred.fromCoroutine(self._get(way))
        getting.addTimeout(self._timeout_s, self._clock)
        try:
            return await getting
        except (CancelledError, FetchFailed):
            raise
        except Exception as error:  # a broken peer shows in many ways, and all of them mean the same here
            if way.overrun:
                raise FetchFailed("too-large", "the answer is too large") from error
            if self._clock.seconds() - begun >= self._timeout_s:
                raise FetchFailed("timeout", f"no document within {self._timeout_s:g} s") from error
            cause = _cause(error)
            if isinstance(cause, CancelledError | ConnectingCancelledError):
                raise CancelledError from error
            # Its name alone: a text could quote the peer.
            raise FetchFailed("unreachable", type(cause).__name__) from error
        finally:
            way.abort()

    async def _get(self, way: "_OneWay") -> Fetched:
        # A client anew each time, for a client keeps cookies.
        response = await HTTPClient(_Plain(Agent.usingEndpointFactory(self._reactor, way))).get(
            self._url,
            headers=Headers({"Accept": ["application/jwk-set+json, application/json"], "User-Agent": ["bakerygw"]}),
            allow_redirects=False,
            unbuffered=True,
            reactor=self._reactor,
        )
        if response.code != 200:
            raise FetchFailed("status", f"answered {response.code}")
        body = _Body(self._max_bytes)
        response.deliverBody(body)
        data = await body.done
        return Fetched(body=data, max_age_s=max_age_of(response.headers.getRawHeaders("cache-control", ())))


@implementer(IAgent)
class _Plain:
    """An agent that takes bodies only as they are: unpacked by the client, 100 KB may become 100 MB at once."""

    def __init__(self, agent: IAgent) -> None:
        self._agent = agent

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> "Deferred[IResponse]":
        """As `IAgent` says. Fails with `FetchFailed` for an answer that is packed all the same."""
        asked = Headers() if headers is None else headers.copy()
        asked.setRawHeaders(b"Accept-Encoding", [b"identity"])
        return self._agent.request(method, uri, asked, bodyProducer).addCallback(self._taken)

    def _taken(self, response: IResponse) -> IResponse:
        if response.headers.hasHeader(b"content-encoding"):
            raise FetchFailed("invalid", "the document is packed, although that was not asked for")
        return response


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _OneWay:
    """Gives an `Agent` the one endpoint, counts what comes, and can abort, which the agent itself can't."""

    def __init__(self, endpoint: IStreamClientEndpoint, max_bytes: int) -> None:
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

    way: _OneWay

    def dataReceived(self, data: bytes) -> None:
        if self.way.take(len(data)):
            super().dataReceived(data)


class _Body(Protocol):
    """Collects a body of bounded size."""

    def __init__(self, max_bytes: int) -> None:
        self.done: Deferred[bytes] = Deferred()
        self._left, self._parts = max_bytes, bytearray()

    def dataReceived(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left >= 0:
            self._parts += data
        elif not self.done.called:
            self.done.errback(FetchFailed("too-large", "the document is too large"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        # A body that ends with the connection may be cut short; then it is no JSON.
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(bytes(self._parts))
        else:
            self.done.errback(reason)


def max_age_of(values: Iterable[str]) -> int | None:
    """The seconds of `max-age` in `Cache-Control` fields, if they are there."""
    found = _MAX_AGE.search(", ".join(values))
    return int(found[1]) if found else None


def _cause(error: BaseException) -> BaseException:
    """What went wrong at the bottom."""
    if isinstance(error, ResponseFailed | RequestTransmissionFailed) and error.reasons:
        return _cause(error.reasons[0].value)
    return error
