"""The way of a `Reply` to the client: nothing else writes to it."""

from dataclasses import replace

from twisted.internet.defer import Deferred

from bakerygw.core.http import BodySource, Reply
from bakerygw.edge.exchange import BODILESS, ReplyWriter


class _Relay:
    """Copies a body to the client; the client's pace comes to the source by `ReplyWriter.pace`."""

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


async def deliver(writer: ReplyWriter, reply: Reply) -> str | None:
    """Give the whole reply to the client, as fast as it takes it.

    Returns `None` when it was complete, else what cut it short. Cancelling stops the source.
    """
    body = reply.body
    if isinstance(body, bytes):
        writer.send(reply)
        return None
    whole = body.whole()
    if whole is None and (writer.bodiless or reply.status in BODILESS):
        body.stop()
        whole = b""
    if whole is not None:
        writer.send(replace(reply, body=whole))
        return None
    relay = _Relay(writer, body)
    writer.begin(reply, body.length)
    writer.pace(body)
    body.start(relay)
    return await relay.finished
