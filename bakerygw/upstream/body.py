"""The two bodies of an exchange with a service: the response's on its way back, the request's on its way out."""

from typing import Protocol

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from bakerygw.core.http import BodySink, BodySource
from bakerygw.upstream.wire import LAST_CHUNK, chunk


class BodyCarrier(Protocol):
    """What a response body needs of the connection that it comes from."""

    def pause_reading(self) -> None:
        """Take no more from the service for now."""

    def resume_reading(self) -> None:
        """Go on."""

    def abandon(self) -> None:
        """Nobody wants the rest."""


class ResponseBody:
    """A `BodySource` that a connection fills. It outlives the connection if it was complete before it was read."""

    __slots__ = ("_carrier", "_length", "_outcome", "_paused", "_pieces", "_sink", "_spent")

    def __init__(self, carrier: BodyCarrier | None, length: int | None, pieces: list[bytes]) -> None:
        """`carrier` is `None` for a body that is complete in `pieces`."""
        self._carrier, self._length, self._pieces = carrier, length, pieces
        self._sink: BodySink | None = None
        self._outcome: str | None = None if carrier else ""
        self._paused = self._spent = False

    @property
    def length(self) -> int | None:
        """Bytes promised by `Content-Length`; in answers to HEAD and in a 304 what a GET would have got."""
        return self._length

    @property
    def waits(self) -> bool:
        """Nobody has begun to read."""
        return self._sink is None and not self._spent

    def whole(self) -> bytes | None:
        """The body, if it is all here, unread and uncut; spent then."""
        if self._outcome != "" or self._sink is not None or self._spent:
            return None
        self._spent = True
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def start(self, sink: BodySink) -> None:
        """Push what is here, and the rest as it comes."""
        self._sink = sink
        self.resume()

    def pause(self) -> None:
        """Push nothing until `resume`. At most one read of the socket is kept meanwhile."""
        self._paused = True
        if self._carrier is not None:
            self._carrier.pause_reading()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._paused = False
        self._flush()
        if self._carrier is not None and not self._paused and self._sink is not None:
            self._carrier.resume_reading()

    def stop(self) -> None:
        """The reader has gone; an unfinished exchange ends with its connection."""
        self._sink, self._spent, self._pieces = None, True, []
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.abandon()

    # The connection's side.

    def feed(self, pieces: list[bytes]) -> None:
        """Take bytes that have come."""
        self._pieces += pieces
        self._flush()

    def end(self, reason: str, pieces: list[bytes]) -> None:
        """Nothing will come after `pieces`; an empty `reason` says that the body is complete, another that it is cut.

        The connection may already serve another exchange, so the body must not touch it again.
        """
        self._carrier = None
        self._outcome = reason
        self._pieces += pieces
        self._flush()

    def _flush(self) -> None:
        while self._pieces and self._sink is not None and not self._paused:
            pieces, self._pieces = self._pieces, []
            self._sink.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._outcome is None or self._sink is None or self._paused:
            return
        sink, self._sink, self._spent = self._sink, None, True
        if self._outcome:
            sink.cut(self._outcome)
        else:
            sink.done()


class RequestCarrier(Protocol):
    """What a request body needs of the connection that it goes to."""

    def write_piece(self, data: bytes) -> None:
        """Send bytes as they are."""

    def request_sent(self) -> None:
        """All of the request has left for the socket."""

    def request_cut(self, reason: str) -> None:
        """The body can't be completed."""


@implementer(IPushProducer)
class RequestBodyPump:
    """The sink of a request's body: frames it, and passes the transport's wishes on to the source."""

    __slots__ = ("_body", "_carrier", "_done", "_ended", "_left", "paused")

    def __init__(self, body: BodySource, carrier: RequestCarrier) -> None:
        self._body, self._carrier = body, carrier
        self._left = body.length
        self._done = self._ended = False
        self.paused = False
        """The service does not read as fast as the client sends."""

    def begin(self) -> None:
        """Let the body flow."""
        self._body.start(self)

    def halt(self) -> None:
        """Nobody wants the rest: stop the source. Safe to call again."""
        if not self._ended:
            self._ended = True
            if not self._done:
                self._body.stop()

    def write(self, data: bytes) -> None:
        """Send one piece, as a chunk where no length was promised (RFC 9112 section 7.1)."""
        if self._ended or not data:  # an empty chunk would end the body
            return
        if self._left is None:
            self._carrier.write_piece(chunk(data))
            return
        self._left -= len(data)
        if self._left < 0:
            self._fail("longer than promised")
        else:
            self._carrier.write_piece(data)

    def done(self) -> None:
        """The source has given all."""
        if self._ended:
            return
        if self._left:
            self._fail("shorter than promised")
            return
        self._done = True
        if self._left is None:
            self._carrier.write_piece(LAST_CHUNK)
        if not self.paused:
            self._finish()

    def cut(self, reason: str) -> None:
        """The client did not send it all, so the service must not take it for complete."""
        if not self._ended:
            self._ended = True
            self._carrier.request_cut(reason)

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        self.paused = True
        if not self._done and not self._ended:
            self._body.pause()

    def resumeProducing(self) -> None:
        """The transport's buffer is empty."""
        self.paused = False
        if self._ended:
            return
        if self._done:
            self._finish()
        else:
            self._body.resume()

    def stopProducing(self) -> None:
        """The transport is gone."""
        self.halt()

    def _finish(self) -> None:
        self._ended = True
        self._carrier.request_sent()

    def _fail(self, reason: str) -> None:
        self.halt()
        self._carrier.request_cut(reason)
