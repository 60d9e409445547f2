"""A connection that goes on in another protocol (RFC 9110 §7.8)."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IConsumer, IProtocol, IPushProducer, IReactorTime, ITransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from bakerygw.core.http import BodySink, Pairs, Reply
from bakerygw.edge.exchange import Exchange
from bakerygw.edge.twisted_web.producing import Producing

_LOG = Logger()

ANSWER_BYTES: Final = 64 * 1024
"""The most that a taker may say, its refusal's body included, before it has changed the protocol."""

FRAMING: Final = frozenset(
    {
        b"connection",
        b"content-length",
        b"date",
        b"keep-alive",
        b"proxy-connection",
        b"server",
        b"te",
        b"trailer",
        b"transfer-encoding",
    }
)
"""Fields of a reply that are the connection's to write, and the name of the software behind it."""


@implementer(ITransport, IConsumer, IPushProducer)
class Tunnel:
    """The transport that may be taken from under a request, and the body of the 101 that its taker then sends.

    To its taker it is the client's transport; what is not named here is the real one's. It provides no
    `ISSLTransport`, for autobahn takes whatever does to be Twisted's own object.

    Nothing that the taker writes reaches the client as it is before a whole head with status 101. That head, and any
    other answer, becomes `reply`, to be given like every reply. After 101 bytes pass as they are, both ways, those
    first that the client sent behind its request.

    `protocol` is assigned by the taker, as to a Twisted transport. `answered` is called once `reply` or `failure`
    is there, `ended` with the reason when the connection is lost or was refused.
    """

    length: int | None = None

    def __init__(
        self,
        exchange: Exchange,
        clock: IReactorTime,
        *,
        answered: Callable[[], object],
        ended: Callable[[Failure], object],
    ) -> None:
        self.protocol: IProtocol | None = None
        self.reply: Reply | None = None
        self.failure: Failure | None = None
        """Why there will be no reply."""
        self._exchange, self._channel = exchange, exchange.channel
        self._answered, self._ended = answered, ended
        self._producing = Producing(clock)
        self._sink: BodySink | None = None
        self._held = b""  # written before the 101 has gone
        self._behind = b""  # from the client, while the taker does not read
        self._closing = self._over = self._lost = self._reading_paused = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel.transport, name)

    # ITransport, for the taker

    def write(self, data: bytes) -> None:
        """Bytes to the client; before 101, of the taker's answer."""
        if self._over or self._closing:
            return
        if self._sink is not None:
            self._sink.write(data)
            return
        self._held += data
        if self.reply is None:
            self._read_answer(whole=False)

    def writeSequence(self, pieces: Iterable[bytes]) -> None:
        """The same, in pieces."""
        self.write(b"".join(pieces))

    def loseConnection(self) -> None:
        """Close once all is written. Before 101: what was written is the answer."""
        if self._over or self._closing:
            return
        self._closing = True
        if self._sink is not None:
            self._finish()
        elif self.reply is None:
            self._read_answer(whole=True)

    def abortConnection(self) -> None:
        """Reset the connection. After 101 that is an end like another: autobahn closes so, its own closing done."""
        if self._over:
            return
        self._over = True
        self._exchange.abort()
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.done()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """`producer` is told of the client's pace."""
        self._producing.register(producer, streaming, lambda _: self.abortConnection())

    def unregisterProducer(self) -> None:
        """Nobody is; harmless if nobody was."""
        self._producing.unregister()

    def pauseProducing(self) -> None:
        """Give nothing more of what the client sends."""
        self._reading_paused = True
        if self._sink is not None:
            self._channel.pause_reading()

    def resumeProducing(self) -> None:
        """Go on giving it."""
        self._reading_paused = False
        if self._sink is None:
            return
        behind, self._behind = self._behind, b""
        if behind:
            self.dataReceived(behind)
        if not self._reading_paused:
            self._channel.resume_reading()

    def stopProducing(self) -> None:
        """Nobody reads any more."""
        self.loseConnection()

    def take_reply(self) -> Reply | None:
        """The answer, if there is one. One that is no 101 is the end of the connection for its taker."""
        reply, self.reply = self.reply, None
        if reply is not None and reply.status != 101:
            self.connectionLost(Failure(ConnectionDone()))
        return reply

    def decline(self) -> None:
        """It was not taken, and cannot be any more."""
        self._over, self._ended, self._answered = True, _nobody, _nobody

    # Successor, for the channel

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the new protocol from the client."""
        if self._reading_paused:
            self._behind += data
        elif self.protocol is not None and not self._over:
            self._exchange.body.received += len(data)
            self.protocol.dataReceived(data)

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone; the taker is told once, whether or not it has said 101."""
        if self._lost:
            return
        self._lost = self._over = True
        self._sink = self.reply = None
        self._producing.stop()
        ended, self._ended, self._answered = self._ended, _nobody, _nobody
        ended(reason)
        try:
            if self.protocol is not None:
                self.protocol.connectionLost(reason)
        except Exception:  # whoever else is to hear of the end must
            _LOG.failure("protocol.failed")

    def shutdown(self) -> None:
        """The gateway stops. A protocol with a method `shutdown` is told; another has until connections are reset."""
        told = getattr(self.protocol, "shutdown", None)
        if told is not None:
            told()

    # BodySource, for the reply

    def whole(self) -> bytes | None:
        """Never."""
        return None

    def start(self, sink: BodySink) -> None:
        """The 101 has gone: from now on bytes pass."""
        self._sink = sink
        behind = self._channel.hand_over(self)
        held, self._held = self._held, b""
        if held:
            sink.write(held)
        if self._closing:
            self._finish()
            return
        if self._reading_paused:
            self._channel.pause_reading()
        if behind:
            self.dataReceived(behind)

    def pause(self) -> None:
        """The client does not take what is written."""
        self._producing.pause()

    def resume(self) -> None:
        """It does again."""
        self._producing.resume()

    def stop(self) -> None:
        """The client has left; `connectionLost` follows."""
        self._sink, self._over = None, True

    # the answer

    def _finish(self) -> None:
        sink, self._sink, self._over = self._sink, None, True
        if sink is not None:
            sink.done()

    def _read_answer(self, *, whole: bool) -> None:
        """What the taker has said so far; `whole` if it says no more."""
        head, end, rest = self._held.partition(b"\r\n\r\n")
        try:
            if end:
                self._read(head, rest, whole=whole)
            elif whole or len(head) > ANSWER_BYTES:
                raise ValueError("no answer to the upgrade")
        except ValueError:
            self.failure = Failure()
        if self.reply is not None or self.failure is not None:
            self._answered()

    def _read(self, head: bytes, rest: bytes, *, whole: bool) -> None:
        status, headers = parse_answer(head)
        if status == 101:
            if self.protocol is None:
                raise ValueError("nobody to speak the new protocol")
            self._held = rest
            self.reply = Reply(status=101, headers=headers, body=self)
        elif status < 200:
            raise ValueError("an interim answer to the upgrade")
        elif whole:
            # No upgrade. The connection ends with this reply, so nothing behind the offer is read as anything.
            self.reply = Reply(status=status, headers=headers, body=rest, close=True)
        elif len(rest) > ANSWER_BYTES:
            raise ValueError("an endless refusal of the upgrade")


def _nobody(*_: object) -> None:
    """Has no more to hear, and holds nothing."""


def parse_answer(head: bytes) -> tuple[int, Pairs]:
    """Status and fields of a response head without its blank line. Raises `ValueError` if it is none."""
    start, *lines = head.split(b"\r\n")
    version, _, rest = start.partition(b" ")
    status = rest[:3]
    if version != b"HTTP/1.1" or len(status) != 3 or not status.isdigit() or rest[3:4] not in (b"", b" "):
        raise ValueError("not a response head")
    fields = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name.strip() != name or b"\n" in line or b"\r" in line:
            raise ValueError("not a header field")
        if name.lower() not in FRAMING:
            fields.append((name, value.strip()))
    return int(status), tuple(fields)
