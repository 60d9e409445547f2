"""One request under a `twisted.web` resource.

`ResourceChannel` is to a stock `twisted.web.server.Request` what `H2Stream` of `twisted.web` is to it under HTTP/2: it
stands in for an `HTTPChannel`.
"""

from typing import Any, NoReturn

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.error import UnsupportedMethod
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET, Request, Site

from bakerygw.core.http import BodySink, Reply
from bakerygw.core.problem import Problem, Refused
from bakerygw.edge.exchange import BODILESS, Exchange
from bakerygw.edge.twisted_web.producing import Producing
from bakerygw.edge.twisted_web.tunnel import FRAMING, Tunnel

_LOG = Logger()


class ResourceChannel:
    """The channel under one `Request`, and the `BodySource` of what its resource writes.

    The reply begins one turn of the reactor after its head, so a short one that is written in pieces goes out whole.
    Replies without a body, to HEAD or of 204 and 304, go out when the resource has finished. A resource that writes
    without a producer has what the client does not take kept in memory.
    """

    factory = None  # nobody's access log

    def __init__(
        self, exchange: Exchange, resource: IResource, site: Site, clock: IReactorTime, upgradable: bool
    ) -> None:
        self.resource, self.site = resource, site
        self.length: int | None = None
        self._exchange, self._clock = exchange, clock
        self._tunnel = Tunnel(exchange, clock, answered=self._progress, ended=self._lost) if upgradable else None
        self.transport = self._tunnel
        """`None`, or what may be taken from here, leaving `None`."""
        self._head: Reply | None = None
        self._failure: Failure | None = None
        self._waiting: Deferred[None] | None = None
        self._written: list[bytes] = []
        self._ended = self._pushing = False
        self._sink: BodySink | None = None
        self._producing = Producing(clock)
        self._request = OwnRequest(self, parsePOSTFormSubmission=False)

    async def reply(self, content: bytes) -> Reply:
        """The resource's reply to the request with this body; see `ResourceHandler.reply_to`."""
        head, request = self._exchange.head, self._request
        for name, value in head.headers:
            request.requestHeaders.addRawHeader(name, value)
        request.parseCookies()
        request.gotLength(len(content))
        request.handleContentChunk(content)
        request.requestReceived(head.method.encode("ascii"), head.target, self._exchange.protocol)
        if not self._settled:
            self._waiting = Deferred()
            try:
                await self._waiting
            except CancelledError:
                self._leave(Failure(ConnectionLost()))
                raise
        if self._failure is not None:
            self._give_up(self._failure)
        if self._tunnel is not None:
            reply = self._tunnel.take_reply()
            if reply is not None:
                return reply
            self._tunnel.decline()
        return self._own_reply()

    def _give_up(self, failure: Failure) -> NoReturn:
        if self._tunnel is not None:
            if self.transport is None:  # taken: what stands behind the offer may be of another protocol
                self._exchange.persistent = False
            self._tunnel.connectionLost(failure)
        failure.raiseException()

    @property
    def _settled(self) -> bool:
        """Whether it is known what to reply."""
        tunnel, head = self._tunnel, self._head
        if self._exchange.ended:
            return False  # the connection was reset, and its loss will be told
        if self._failure is not None or self._ended or (tunnel is not None and tunnel.reply is not None):
            return True
        return head is not None and not (self._exchange.bodiless or head.status in BODILESS)

    def _own_reply(self) -> Reply:
        head = self._head
        assert head is not None  # noqa: S101  nothing ends before its head
        if not self._ended:
            return Reply(status=head.status, headers=head.headers, body=self, close=head.close)
        bodiless = self._exchange.bodiless or head.status in BODILESS
        body = b"".join(self._written)
        self._written.clear()
        if not bodiless and self.length is not None and self.length != len(body):
            raise RuntimeError(f"{self.length} bytes were promised, {len(body)} written")
        # `Request.render` gives a 304 the length of its own empty body, which would be told of the page (RFC 9110 §8.6)
        length = None if head.status == 304 and self.length == 0 else self.length
        return Reply(status=head.status, headers=head.headers, body=body, length=length, close=head.close)

    def _progress(self) -> None:
        """Something has happened: go on, in a turn of its own, if that was waited for."""
        if self._tunnel is not None and self._failure is None:
            self._failure = self._tunnel.failure
        waiting = self._waiting
        if waiting is not None and self._settled:
            self._waiting = None
            self._clock.callLater(0, _fire, waiting)

    # for the Request: the reply

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """The head of the reply; its framing, `Date` and reason phrase are the gateway's."""
        if self._failure is not None or self._head is not None:
            return
        self._request.chunked = 0  # or it would frame what it writes
        try:
            self._head, self.length = _head_of(int(code), headers)
        except ValueError:
            self.failed(Failure())
        else:
            self._progress()

    def write(self, data: bytes) -> None:
        """The next bytes of the body."""
        if data and not self._ended:
            self._written.append(data)
            self._push()

    def writeSequence(self, pieces: list[bytes]) -> None:
        """The next bytes of the body."""
        self.write(b"".join(pieces))

    def requestDone(self, request: Request) -> None:
        """The reply is complete."""
        self._ended = True
        self._producing.unregister()
        self._push()
        self._progress()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """`producer` is told of the client's pace."""
        self._producing.register(producer, streaming, self.failed)

    def unregisterProducer(self) -> None:
        """Nobody is told of it."""
        self._producing.unregister()

    def loseConnection(self) -> None:
        """The reply will not be completed, and must not look as if it were."""
        self.abortConnection()

    def abortConnection(self) -> None:
        """Reset the connection."""
        if self._ended:
            return
        self._cut("aborted")
        self._clock.callLater(0, self._leave, Failure(ConnectionAborted()))

    def failed(self, failure: Failure) -> None:
        """The resource has failed: raised from `reply`, or, once the reply has begun, logged and the reply cut."""
        if self._ended or self._failure is not None:
            _LOG.failure("resource.failed", failure)
        elif self._sink is None:
            self._failure = failure
            self._progress()
        else:
            _LOG.failure("resource.failed", failure)
            self._cut("resource-failed")

    # for the Request: the connection

    def getPeer(self) -> IAddress:
        """Who has connected; behind a proxy that is the proxy."""
        peer: IAddress = self._exchange.channel.transport.getPeer()
        return peer

    def getHost(self) -> IAddress:
        """Where."""
        host: IAddress = self._exchange.channel.transport.getHost()
        return host

    def isSecure(self) -> bool:
        """Whether the client speaks TLS, to the gateway or to a trusted proxy."""
        return self._exchange.head.secure

    # BodySource

    def whole(self) -> bytes | None:
        """A body that is whole is part of the reply."""
        return None

    def start(self, sink: BodySink) -> None:
        """Push what was written, and what will be."""
        self._sink = sink
        self._push()

    def pause(self) -> None:
        """The client does not take what was written."""
        self._producing.pause()

    def resume(self) -> None:
        """It does again."""
        self._producing.paused = False
        self._push()
        if not self._producing.paused:
            self._producing.resume()

    def stop(self) -> None:
        """The client has left."""
        self._leave(Failure(ConnectionLost()))

    def _push(self) -> None:
        if self._pushing:
            return
        self._pushing = True
        while self._written and self._sink is not None and not self._producing.paused:
            self._sink.write(self._written.pop(0))
        self._pushing = False
        if self._ended and self._sink is not None and not self._written:
            sink, self._sink = self._sink, None
            sink.done()

    def _cut(self, reason: str) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.cut(reason)
        else:
            self._exchange.abort()

    def _leave(self, reason: Failure) -> None:
        """Nobody takes the reply any more."""
        self._sink = None
        self._written.clear()
        if self._tunnel is not None:
            self._tunnel.connectionLost(reason)
        self._lost(reason)

    def _lost(self, reason: Failure) -> None:
        """The resource is told, once."""
        if not self._ended:
            self._ended = True
            self._producing.stop()
            self._request.connectionLost(reason)


def _head_of(status: int, headers: Headers) -> tuple[Reply, int | None]:
    """A reply without what is the connection's to write, and its length if it is told. Raises `ValueError`."""
    fields: list[tuple[bytes, bytes]] = []
    length, close = None, False
    if not 200 <= status <= 599:
        raise ValueError(f"{status} is no status of a final reply")
    for name, values in headers.getAllRawHeaders():
        lower = name.lower()
        if lower == b"content-length":
            if len(values) != 1 or not values[0].isdigit():
                raise ValueError("not a Content-Length")
            length = int(values[0])
        elif lower == b"connection":
            close = any(token.strip().lower() == b"close" for value in values for token in value.split(b","))
        elif lower not in FRAMING:
            fields.extend((name, value) for value in values)
            if lower == b"upgrade":
                fields.append((b"Connection", b"Upgrade"))  # RFC 9110 §7.8
    return Reply(status=status, headers=tuple(fields), close=close), length


def _fire(waiting: Deferred[None]) -> None:
    if not waiting.called:
        waiting.callback(None)


class OwnRequest(Request):
    """A stock request whose failures are the gateway's to tell, and never a page with what failed."""

    channel: ResourceChannel  # type: ignore[assignment]  # which does for an HTTPChannel

    def render(self, resrc: IResource) -> None:
        """As ever; but a result of a wrong type is an error like any other."""
        super().render(_Rendered(resrc))

    def processingFailed(self, reason: Failure) -> None:
        """Nothing more comes from this request; its channel tells the client."""
        if self._disconnected or self.finished:
            if not reason.check(CancelledError):
                _LOG.failure("resource.failed", reason)
            return
        if self.producer:
            self.unregisterProducer()
        self.channel.failed(reason)
        if not self._disconnected and not self.finished:
            self.finish()


class _Rendered:
    """A resource as `Request.render` asks it."""

    def __init__(self, resource: IResource) -> None:
        self._resource = resource

    def render(self, request: Request) -> bytes | int:
        """Bytes, or `NOT_DONE_YET`."""
        try:
            body: bytes | int = self._resource.render(request)
        except UnsupportedMethod as unsupported:
            if request.method == b"HEAD" and b"GET" in unsupported.allowedMethods:
                raise  # `Request` then asks for a GET and sends its head
            allow = b", ".join(unsupported.allowedMethods)
            detail = f"Use another method here: {allow.decode()}."
            raise Refused(Problem(code="method-not-allowed", detail=detail, headers=((b"Allow", allow),))) from None
        if not isinstance(body, bytes) and body is not NOT_DONE_YET:
            raise TypeError(f"{self._resource!r} did not return bytes")
        return body
