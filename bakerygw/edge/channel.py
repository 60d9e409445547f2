"""One client connection: its requests in order, its deadlines, its pace.

The channel knows nothing of routes or policies. It gives `Exchange`s to the application
one after the other, and their replies back to the socket.
"""

from collections import deque
from typing import TYPE_CHECKING, Final

from twisted.internet.interfaces import IPushProducer, ISSLTransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from bakerygw.core.heads import UNKNOWN
from bakerygw.core.http import RequestHead
from bakerygw.core.problem import Problem, Refused, refuse
from bakerygw.edge.body import RequestBody
from bakerygw.edge.exchange import Exchange, ReplyWriter
from bakerygw.edge.framer import Framer, Framing
from bakerygw.edge.kernel import Stall
from bakerygw.edge.line import READ_AHEAD_BYTES, Line

if TYPE_CHECKING:
    from bakerygw.edge.site import EdgeSite

PIECE_BYTES: Final = 2048
"""Fed to the parser at once where requests begin: an ordinary head, or 75 of the smallest requests."""

SERVED_A_TURN: Final = 8
"""Pipelined requests that one client has answered before others have their turn."""

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@implementer(IPushProducer)
class EdgeChannel(Line):
    """Constructed by `EdgeSite`, which also sweeps its deadlines.

    Bytes are parsed only while no reply is under way, and in small pieces, so a client can't
    queue more requests than one piece holds; they are answered in order, a few in each turn
    of the reactor, and none is begun while the client has not taken the replies before it.
    """

    def __init__(self, site: "EdgeSite", peer: str) -> None:
        self.peer = peer
        self.gone = False
        """The connection is lost."""
        self.blocked = False
        """The client has not taken what was written."""
        self._site, self._limits, self._tls = site, site.limits, False
        self._framer = Framer(self, site.limits, site.proxies, peer=peer, tls=False)
        self._queue: deque[Exchange | Refused] = deque()
        self._active: ReplyWriter | None = None
        self._receiving: Exchange | None = None
        self._unfed = b""
        self._last_read = False
        """Nothing more is parsed; replies that are owed are still given."""
        self._closing = self._lingering = self._advancing = self._reading_paused = False
        # deadlines, in seconds of the site's clock, swept
        self._deadline: float | None = site.clock.seconds() + site.limits.head_s
        self._body_since: float | None = None
        self._stall = Stall(site.limits.write_stall_s)

    # from the socket

    def connectionMade(self) -> None:
        """The client is there."""
        self._tls = self._framer.tls = ISSLTransport.providedBy(self.transport)
        set_no_delay = getattr(self.transport, "setTcpNoDelay", None)
        if set_no_delay is not None and self.peer != UNKNOWN:
            set_no_delay(True)
        self.transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the client: parsed at once, or kept while a reply is under way."""
        if self._closing or self._last_read:
            if self.successor is not None and not self._closing:
                self.successor.dataReceived(data)
            return
        busy = self._active is not None or self._queue or self._unfed or self.blocked
        self._unfed += data
        if self._receiving is None and busy:
            if len(self._unfed) > READ_AHEAD_BYTES:
                self.pause_reading()
            return
        self._advancing = True  # a reply that ends within the parser's callbacks must not feed the parser again
        self._parse()
        self._advancing = False
        self._advance()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client is gone; whoever works for it is told to stop."""
        self.gone = self._closing = True
        self._queue.clear()
        self._framer.close()
        self._site.forget(self)
        active, self._active, self._receiving = self._active, None, None
        if active is not None:
            active.lost()
        successor, self.successor = self.successor, None
        if successor is not None:
            successor.connectionLost(reason)

    def _parse(self) -> None:
        """Parse what was read, until a request is whole. llhttp can't be paused, so it is fed in pieces."""
        while self._unfed and not self._last_read and not self._closing:
            receiving = self._receiving
            if receiving is None:
                if self._queue:
                    return
                size = PIECE_BYTES
            elif receiving.body.length is None:
                size = 2 * PIECE_BYTES
            else:
                size = receiving.body.length - receiving.body.received
            data, self._unfed = self._unfed[:size], self._unfed[size:]
            try:
                behind = self._framer.feed(data)
            except Refused as refusal:
                self._broken(refusal)
            else:
                if behind is not None:
                    self._offered(behind)

    def _offered(self, behind: bytes) -> None:
        """The latest request offers to upgrade. What stands behind it is not read until that has been answered."""
        self._unfed = behind + self._unfed
        latest = self._queue[-1]
        if isinstance(latest, Exchange):
            latest.offers_upgrade = True

    def _broken(self, refusal: Refused) -> None:
        """What follows can't be read: answer what was whole, then this, then close."""
        self._last_read = True
        receiving = self._receiving
        if receiving is None:
            self._queue.append(refusal)
        else:
            receiving.persistent = False
            receiving.body.fail(refusal.problem)

    # from the framer (Listener)

    def head_began(self) -> None:
        """The time for a head runs from its first byte; what stands behind a last reply has none of its own."""
        if not self._closing:
            self._deadline = self._site.clock.seconds() + self._limits.head_s

    def request_began(self, head: RequestHead, framing: Framing) -> RequestBody:
        """A new exchange, in line behind those before it."""
        self._deadline = self._deadline if self._closing else None
        exchange = Exchange(self, head, RequestBody(self, head.length), framing)
        self._receiving = exchange
        self._queue.append(exchange)
        return exchange.body

    def request_complete(self) -> None:
        """All of the request is here."""
        receiving, self._receiving = self._receiving, None
        self._body_since = None
        if receiving is not None:
            self._last_read = self._last_read or self._framer.last_read
            receiving.body.finish()

    # exchanges, in order

    def _advance(self) -> None:
        """Serve what is in line, then read on; a reply that ends at once only lets the loop go on."""
        if self._advancing:
            return
        self._advancing = True
        served = 0
        try:
            while not self._closing and self._active is None and not self.blocked:
                if served == SERVED_A_TURN:
                    self._site.clock.callLater(0, self._advance)  # others have a turn, too
                    break
                if self._queue:
                    self._serve(self._queue.popleft())
                    served += 1
                elif self._unfed and not self._last_read:
                    self._parse()
                else:
                    self.resume_reading()
                    break
        finally:
            self._advancing = False

    def _serve(self, item: Exchange | Refused) -> None:
        if isinstance(item, Exchange):
            self._active = item
            self._site.application.serve(item)
        else:
            method = "GET" if item.head is None else item.head.method
            self._active = ReplyWriter(self, method=method, version="1.1", persistent=False)
            self._active.send(self._site.application.unreadable(item, self.peer))

    def ended(self, writer: ReplyWriter) -> None:
        """`writer` has given its whole reply."""
        self._active = None
        if self.gone:
            return
        receiving = self._receiving
        if writer.unreadable or receiving is writer:
            if receiving is not None:
                receiving.body.stop()
            self._linger()
        elif not writer.persistent:
            if self._unfed:
                self._linger()
            else:
                self._close()
        else:
            wait_s = self._limits.head_s if self._framer.in_head else self._limits.keepalive_s
            self._deadline = self._site.clock.seconds() + wait_s
            self._advance()

    def _close(self) -> None:
        """Close once everything written has left; `sweep` gives up on a client that does not take it."""
        self._end_input(None)
        self._stall.begin(self._site.clock.seconds())
        self.transport.loseConnection()

    def _linger(self) -> None:
        """Say that nothing more comes, and read on for a moment.

        Closing while the client still sends makes its kernel drop our reply unread (RFC 9112 §9.6).
        """
        self._lingering = True
        self._end_input(self._site.clock.seconds() + self._limits.linger_s)
        self.resume_reading()
        half_close = getattr(self.transport, "loseWriteConnection", None)
        if half_close is not None and not self._tls:
            half_close()

    def _end_input(self, deadline: float | None) -> None:
        """No request is read any more, and no other deadline holds than this one."""
        self._closing, self._unfed = True, b""
        self._deadline, self._body_since = deadline, None
        self._stall.end()
        self.transport.unregisterProducer()

    def shutdown(self) -> None:
        """Close as soon as nothing is under way."""
        if self.successor is not None:
            self.successor.shutdown()
        last = self._queue[-1] if self._queue else self._active
        if isinstance(last, ReplyWriter):
            last.persistent = False
        elif last is None and not self._closing:
            self._close()

    def abort(self, cause: str = "aborted") -> None:
        """End the connection at once, by a reset, so that no reply looks complete that is not."""
        self._closing = True
        if self._active is not None:
            self._active.lost_by = cause
        self._deadline = self._body_since = None
        self._stall.end()
        if not self.gone:
            self.transport.unregisterProducer()
            self.transport.abortConnection()

    @property
    def busy(self) -> bool:
        """Whether a reply is under way, or not yet taken."""
        return self._active is not None or self._closing or self.blocked

    # time

    def sweep(self, now: float) -> None:
        """Act on whatever deadline has passed; called about twice a second."""
        if self._stall.over(self.transport, now):
            self.abort("write-stalled")
        elif self._body_since is not None:
            self._check_body_rate(now)
        elif self._deadline is not None and now > self._deadline:
            self._expired()

    def _check_body_rate(self, now: float) -> None:
        receiving = self._receiving
        if receiving is None or self._body_since is None:
            return
        if receiving.body.paused or self._reading_paused:
            self._body_since += self._site.sweep_s  # the service is slow, not the client
            return
        counted_s = now - self._body_since - self._limits.body_grace_s
        if counted_s > 0 and receiving.body.received < counted_s * self._limits.body_bytes_per_s:
            self._body_since = None
            detail = f"Send the body at {self._limits.body_bytes_per_s} bytes a second or faster."
            self._broken(Refused(Problem(code="request-timeout", detail=detail, close=True)))

    def _expired(self) -> None:
        self._deadline = None
        if self._lingering:
            self._lingering = False
            self._close()
        elif self._active is not None or self._queue:
            return  # it is we who don't read; the time begins anew with the end of the reply
        elif self._framer.in_head:
            detail = f"Send the request's head within {self._limits.head_s:g} seconds."
            self._broken(refuse("request-timeout", detail, close=True))
            self._advance()
        else:
            self._close()

    # for request bodies (Tap)

    def body_started(self) -> None:
        """The body is wanted: ask for it if the client waits to be asked, and watch its pace."""
        receiving = self._receiving
        if receiving is None:
            return
        self._body_since = self._site.clock.seconds()
        if receiving.expects_continue and not receiving.begun and receiving.body.received == 0:
            self.write(CONTINUE)
        receiving.expects_continue = False

    # for replies

    def date(self) -> bytes:
        """The `Date` of now."""
        return self._site.date()

    # as the transport's push producer

    def pauseProducing(self) -> None:
        """The client does not take its replies fast enough."""
        self.blocked = True
        self._stall.begin(self._site.clock.seconds())
        if self._active is not None and self._active.source is not None:
            self._active.source.pause()

    def resumeProducing(self) -> None:
        """It has taken all that was written."""
        self.blocked = False
        self._stall.end()
        if self._active is None:
            self._advance()
        elif self._active.source is not None:
            self._active.source.resume()

    def stopProducing(self) -> None:
        """The connection is going; `connectionLost` tells the rest."""
