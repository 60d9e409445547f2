"""The way of a `Reply` to the client: nothing else writes to it."""

from typing import Final

from twisted.internet.defer import Deferred

from bakerygw.core.http import BodySink, BodySource, Reply
from bakerygw.edge.exchange import BODILESS, ReplyWriter

PIECE_BYTES: Final = 64 * 1024
"""A larger body in memory goes out in pieces of this size, so that no client is owed a copy of all of it."""


class _Relay:
    """Copies a body to the client; the client's pace comes to the source by `ReplyWriter.relay`."""

    def __init__(self, writer: ReplyWriter, source: BodySource) -> None:
        self._writer = writer
        self.finished: Deferred[str | None] = Deferred(lambda _: source.stop())

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def done(self) -> None:
        self._writer.end()
        self.finished.callback(None)

    def cut(self, reason: str) -> None:
        self._writer.abort()
        self.finished.callback(reason)


class _Pieces:
    """A body in memory as a `BodySource`."""

    def __init__(self, body: bytes) -> None:
        self._body, self._at, self.length = body, 0, len(body)
        self._sink: BodySink | None = None
        self._paused = self._pushing = False

    def whole(self) -> bytes | None:
        return None

    def start(self, sink: BodySink) -> None:
        self._sink = sink
        self._push()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._push()

    def stop(self) -> None:
        self._sink = None

    def _push(self) -> None:
        if self._pushing:
            return
        self._pushing = True
        while self._sink is not None and not self._paused and self._at < self.length:
            piece = self._body[self._at : self._at + PIECE_BYTES]
            self._at += len(piece)
            self._sink.write(piece)
        self._pushing = False
        if self._at == self.length and self._sink is not None:
            sink, self._sink = self._sink, None
            sink.done()


async def deliver(writer: ReplyWriter, reply: Reply) -> str | None:
    """Give the whole reply to the client, as fast as it takes it.

    Returns `None` when it was complete, else what cut it short. Cancelling stops the source.
    """
    bodiless = writer.bodiless or reply.status in BODILESS
    body = reply.body
    if not isinstance(body, bytes):
        whole = body.whole()
        if whole is None and bodiless:
            body.stop()
            whole = b""
        body = body if whole is None else whole
    if isinstance(body, bytes):
        if bodiless or len(body) <= PIECE_BYTES:
            writer.send(reply if body is reply.body else reply.with_body(body))
            return None
        body = _Pieces(body)
    relay = _Relay(writer, body)
    writer.begin(reply, body.length)
    writer.relay(body, relay)
    return await relay.finished
