"""One HTTP/1.1 connection to a service: one exchange at a time, each wait bounded, each end accounted for."""

from typing import Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHandshakeListener, IReactorTime, ITCPTransport
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from bakerygw.core.http import BodySource
from bakerygw.ports import UpstreamFailed, UpstreamRequest, UpstreamResponse
from bakerygw.runtime.sockets import bound_buffers
from bakerygw.runtime.task import Pending
from bakerygw.upstream.body import RequestBodyPump, ResponseBody
from bakerygw.upstream.deadline import Deadline, Deadlines
from bakerygw.upstream.onward import Onward
from bakerygw.upstream.response import ResponseReader, Rogue
from bakerygw.upstream.wire import LAST_CHUNK, Wire, chunk, request_head

CLOSE_GRACE_S: Final = 5.0
"""How long an orderly close may take before the connection is aborted."""


class Unanswered(UpstreamFailed):
    """The connection ended before any byte of a response."""


class Blameless(UpstreamFailed):
    """The exchange ended early, and not for a fault of the service: the client's body, or the gateway's own will."""


class ConnectionOwner(Protocol):
    """Whoever keeps connections. Exactly one of the two ends an exchange."""

    def freed(self, connection: "UpstreamConnection") -> None:
        """An exchange is over and the connection good for another."""

    def gone(self, connection: "UpstreamConnection") -> None:
        """The connection takes no further exchange; told once."""

    def switched(self, by: int) -> None:
        """So many more connections, or with -1 one less, serve another protocol; besides being `gone`."""


@implementer(IHandshakeListener)
class UpstreamConnection(TwistedProtocol):
    """A client's end of HTTP/1.1 (RFC 9112).

    States: idle; waiting (`_waiting` set: a request is under way and its final head has not come); streaming (`_body`
    set: the head was delivered, the body flows); gone (`_gone`). Failures before the head fire the exchange's Deferred
    with `UpstreamFailed`, failures after it cut the body.
    """

    transport: Wire  # type: ignore[assignment]  # Twisted says ITransport, which knows nothing of producers

    def __init__(self, *, clock: IReactorTime, authority: str, deadlines: Deadlines, owner: ConnectionOwner) -> None:
        """`authority` is the service's own `host[:port]`, for `Host`."""
        self._authority, self._deadlines, self._owner = authority, deadlines, owner
        self._host = authority.encode()
        self._reader = ResponseReader()
        self._waiting: Deferred[UpstreamResponse] | None = None
        self._body: ResponseBody | None = None
        self._pump: RequestBodyPump | None = None
        self._reading_paused = False
        self._sent = False
        self._first_byte_s = 0.0
        self._deadline = Deadline(clock, self._expire)
        self._gone = False
        self._open = False
        self._secured: Deferred[None] | None = None
        self._onward: Onward | None = None
        self.served = 0
        """Exchanges begun."""
        self.idle_since = 0.0
        """For the owner: when the last exchange ended."""

    # An exchange, as the owner sees it.

    def send(self, request: UpstreamRequest) -> Deferred[UpstreamResponse]:
        """Begin an exchange on an idle connection. Fails with `UpstreamFailed`; cancelling aborts the connection."""
        waiting = self._waiting = Pending[UpstreamResponse](self._cancelled)
        self.served += 1
        self._reader.begin(request.method, request.upgrade is not None)
        self._sent = False
        self._first_byte_s = request.first_byte_timeout_s or self._deadlines.first_byte_s
        head = request_head(request, self._host)
        body = request.body
        if body is None or body.length == 0:
            self.transport.write(head)
            self.request_sent()
        elif (whole := body.whole()) is not None:
            self.transport.write(head + (whole if body.length is not None else chunk(whole) + LAST_CHUNK))
            self.request_sent()
        else:
            self.transport.write(head)
            self._stream(body)
        return waiting

    def secured(self) -> Deferred[None]:
        """Fires once TLS stands; fails with the transport's reason. Ask as soon as TCP stands."""
        self._secured = Deferred[None](self._unsecured)
        return self._secured

    def _unsecured(self, _: object) -> None:
        self._drop()

    def close(self) -> None:
        """End an idle connection in order."""
        if self._gone:
            return
        self._gone = True
        self._owner.gone(self)
        if self._open:
            self._deadline.put(CLOSE_GRACE_S)
            self.transport.loseConnection()

    def abort(self) -> None:
        """End the connection at once, whatever it is doing. A body under way is cut, a waiting request fails."""
        self._fail(Blameless("upstream-unreachable", "connection_terminated", "closed by the gateway"), "aborted")

    def _stream(self, body: BodySource) -> None:
        pump = self._pump = RequestBodyPump(body, self)
        self._deadline.put(self._deadlines.idle_s)
        self.transport.registerProducer(pump, True)
        pump.begin()

    def _cancelled(self, waiting: Deferred[UpstreamResponse]) -> None:
        self._waiting = None  # the Deferred fails by itself, with CancelledError
        self._drop()

    # The request's body, as `RequestBodyPump` sees the connection.

    def write_piece(self, data: bytes) -> None:
        """Send bytes of the body; progress puts the idle deadline off."""
        self.transport.write(data)
        self._deadline.put(self._deadlines.idle_s)

    def request_sent(self) -> None:
        """The whole request is out: from here on the service owes an answer."""
        self._sent = True
        if self._pump is not None:
            self._pump = None
            self.transport.unregisterProducer()
        if self._waiting is not None:
            self._deadline.put(self._first_byte_s)

    def request_cut(self, reason: str) -> None:
        """Without its end the request must never look complete, so the connection goes too."""
        self._fail(Blameless("upstream-unreachable", "http_request_error", f"request body {reason}"), reason)

    # The response's body, as `ResponseBody` sees the connection.

    def pause_reading(self) -> None:
        """The client is slow: leave the rest with the service, and don't hold it against it."""
        self._deadline.clear()
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pauseProducing()

    def resume_reading(self) -> None:
        """The client has room again."""
        if self._reading_paused:
            self._reading_paused = False
            self._deadline.put(self._deadlines.idle_s)
            self.transport.resumeProducing()

    def abandon(self) -> None:
        """The client has gone; the service is to stop as well."""
        self._body = None
        self._drop()

    # The transport.

    def connectionMade(self) -> None:
        """Send small requests without delay."""
        self._open = True
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)

    def handshakeCompleted(self) -> None:
        """TLS stands and the certificate is good."""
        if self._secured is not None:
            self._secured.callback(None)

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the response; at any other time the service has lost its way."""
        if self._gone:
            if self._onward is not None:
                self._onward.dataReceived(data)
            return
        reader = self._reader
        if self._waiting is None and self._body is None:
            self._drop()
            return
        try:
            reader.feed(data)
        except Rogue as fault:
            invalid = UpstreamFailed("upstream-invalid", "http_protocol_error", str(fault))
            self._fail(invalid, "upstream sent a malformed body")
            return
        if self._waiting is not None:
            if reader.head_done:
                self._deliver()
            return
        body = self._body
        if body is None:
            return
        pieces, reader.pieces = reader.pieces, []
        if reader.complete:
            self._finish()
            body.end("", pieces)
        elif pieces:
            if not self._reading_paused:
                self._deadline.put(self._deadlines.idle_s)
            body.feed(pieces)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end of a body that only the end can tell, or a failure of whatever was under way."""
        self._open = False
        self._deadline.cancel()
        if self._onward is not None:
            self._owner.switched(-1)
            self._onward.connectionLost(reason)
            return
        if self._secured is not None and not self._secured.called:
            self._secured.errback(reason)
        elif self._body is not None and self._reader.until_close and reason.check(ConnectionDone):
            self._end_body("")
        elif self._waiting is not None and self._reader.touched:
            self._fail(UpstreamFailed("upstream-invalid", "http_response_incomplete", "closed within the head"), "")
        else:
            cause = f"closed before the response: {reason.type.__name__ if reason.type else reason}"
            self._fail(Unanswered("upstream-unreachable", "connection_terminated", cause), "upstream closed early")

    # How an exchange ends.

    def _deliver(self) -> None:
        """Hand over the final head, and the body as far as it has come."""
        reader = self._reader
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        if reader.status == 101:
            waiting.callback(self._go_over())
            return
        if not self._sent:
            self._halt_request()
        pieces, reader.pieces = reader.pieces, []
        body = ResponseBody(None if reader.complete else self, reader.length, pieces)
        response = UpstreamResponse(status=reader.status, headers=reader.headers, body=body, authority=self._authority)
        if reader.complete:
            self._finish()  # first, so that whoever is woken by the response finds the connection free
            waiting.callback(response)
            return
        self._body = body
        self._deadline.put(self._deadlines.idle_s)
        waiting.callback(response)
        if self._holds(body) and body.waits:
            self.pause_reading()
            self._deadline.put(self._deadlines.idle_s)  # a body that nobody takes must not hold its connection for ever

    def _go_over(self) -> UpstreamResponse:
        """The 101 with the connection, which is nobody's until it is taken."""
        reader = self._reader
        onward = self._onward = Onward(self.transport, reader.behind)
        self._gone = True
        self._deadline.clear()
        self._owner.gone(self)
        self._owner.switched(1)
        self.transport.pauseProducing()
        bound_buffers(self.transport)
        body = ResponseBody(None, 0, [])
        return UpstreamResponse(status=101, headers=reader.headers, body=body, authority=self._authority, onward=onward)

    def _holds(self, body: ResponseBody) -> bool:
        return self._body is body

    def _finish(self) -> None:
        """The response is complete: the connection goes back to its owner, or away."""
        self._body = None
        self._deadline.clear()
        if self._sent and self._reader.reusable:
            if self._reading_paused:
                self._reading_paused = False
                self.transport.resumeProducing()
            self._owner.freed(self)
        else:
            self._drop()

    def _halt_request(self) -> None:
        """Send no more of the request's body. What was sent is not a whole request, so this exchange is the last."""
        pump, self._pump = self._pump, None
        if pump is not None:
            if self._open:
                self.transport.unregisterProducer()
            pump.halt()

    def _fail(self, failure: UpstreamFailed, reason: str) -> None:
        """End the exchange under way, if any: `failure` before the head, a body ended with `reason` after it."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            self._end_body(reason)
            return
        self._drop()
        waiting.errback(failure)

    def _end_body(self, reason: str) -> None:
        """End the body under way, if any, and the connection; an empty `reason` ends it well."""
        body, self._body = self._body, None
        self._drop()
        if body is not None:
            body.end(reason, self._reader.pieces)

    def _drop(self) -> None:
        """Take no further exchange, and free the socket at once."""
        if self._gone:
            return
        self._gone = True
        self._deadline.clear()
        self._halt_request()
        self._owner.gone(self)
        if self._open:
            self.transport.abortConnection()

    def _expire(self) -> None:
        if self._gone:
            self.transport.abortConnection()
        elif self._sent or self._waiting is None:
            failure = UpstreamFailed("upstream-timeout", "http_response_timeout", "no response head in time")
            self._fail(failure, "upstream idle")
        else:
            kind: type[UpstreamFailed] = Blameless
            stalled = "request body stalled"
            if self._pump is not None and self._pump.paused:
                kind, stalled = UpstreamFailed, "service stopped reading"
            self._fail(kind("upstream-timeout", "connection_write_timeout", stalled), stalled)
