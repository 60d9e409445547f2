"""One side of a bridged WebSocket: autobahn's protocol, without what it leaves open, logs, or times by itself."""

from math import inf
from typing import Any, ClassVar, Final, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from bakerygw.core.websocket import MAX_REASON_BYTES, close_fault

PIECE_BYTES: Final = 2048
"""Of what begins with a frame's head, parsed at once; autobahn copies all that is left for every frame."""
SLICE_S: Final = 0.001
"""For the frames of one peer in a turn of the reactor: ten thousand fit in one read, and others wait meanwhile."""
_MAX_CONTROL_BYTES: Final = 125


class Ear(Protocol):
    """Who hears what comes from a leg's peer."""

    def message(self, leg: "Leg", payload: bytes, binary: bool) -> None:
        """A whole message."""

    def closed(self, leg: "Leg", code: int | None, reason: bytes) -> None:
        """The peer has begun to close, and has been answered."""

    def violated(self, leg: "Leg", code: int) -> None:
        """The peer broke the protocol or a bound, and has been told so by this code."""

    def finished(self, leg: "Leg") -> None:
        """Both close frames have passed."""

    def lost(self, leg: "Leg") -> None:
        """The connection is gone, however that came about; nothing follows."""


class _Silence:
    """Autobahn's log: what is worth telling of a socket, its bridge tells."""

    def debug(self, *_: object, **__: object) -> None:
        """Nothing."""

    trace = info = warn = error = critical = failure = debug


class Leg:
    """What both sides have in common; mixed in before autobahn's protocol.

    Text is checked to be UTF-8, fragments are joined, pings are answered. A peer that breaks the protocol is told by a
    close frame, and what it sends then is read but not kept.
    """

    log: ClassVar[Any] = _Silence()
    _log: ClassVar[Logger] = Logger()
    name: ClassVar[str]
    ear: Ear
    heard = False
    """Something has come since this was last set to `False`."""
    blocked = False
    """The peer does not take what is written."""
    pausing = False
    """What the peer sends is not wanted for now."""
    clock: IReactorTime
    _reading = True
    _unfed = b""
    """Read, and not parsed yet."""
    _feeding: IDelayedCall | None = None
    _owed_pong: bytes | None = None
    _message: bytes | bytearray = b""
    """What has come of the message under way, its fragments joined at once: they may be many, and empty."""

    # autobahn's, untyped
    transport: Any
    state: int
    data: bytes
    failedByMe: bool
    message_is_binary: bool
    message_data_total_length: int
    current_frame: Any
    current_frame_masker: Any
    STATE_OPEN: int
    STATE_CLOSED: int
    consumeData: Any
    sendFrame: Any
    sendCloseFrame: Any
    sendPong: Any

    # To the peer.

    @property
    def open(self) -> bool:
        """No close frame has been sent, nor the connection lost."""
        return self.state == self.STATE_OPEN

    def close(self, code: int | None, reason: bytes = b"") -> None:
        """Begin to close, if that has not begun. What the peer still sends is dropped, so it is read."""
        if self.open:
            self.resume_reading()
            self.sendCloseFrame(code=code, reasonUtf8=reason[:MAX_REASON_BYTES], isReply=False)

    def drop(self, *, abort: bool) -> None:
        """End the connection, at once if `abort`, else when all is written."""
        first = self.state != self.STATE_CLOSED
        if first:
            self.state = self.STATE_CLOSED
            self.transport.unregisterProducer()
        if abort:
            self.transport.abortConnection()
        elif first:
            self.transport.loseConnection()

    def pause_reading(self) -> None:
        """Take nothing more from the peer for now; its silence then is no sign of its death."""
        if self.open:
            self.pausing = self.heard = True
            self.follow_pace()

    def resume_reading(self) -> None:
        """Go on."""
        if self.pausing:
            self.pausing = False
            self.heard = True
            self.follow_pace()

    def follow_pace(self) -> None:
        """Read, or not, as it is due; what was read first comes first."""
        if self._unfed and not self.pausing and self._feeding is None:
            self._feeding = self.clock.callLater(0, self._go_on)
        reading = not self.pausing and not self._unfed
        if reading != self._reading and self.state != self.STATE_CLOSED:
            self._reading = reading
            if reading:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()

    def block(self) -> None:
        """The peer takes no more for now."""
        self.blocked = True

    def unblock(self) -> None:
        """It takes more. Of the pings that came meanwhile the last is answered (RFC 6455 section 5.5.3)."""
        self.blocked = False
        owed, self._owed_pong = self._owed_pong, None
        if owed is not None and self.open:
            self.sendPong(owed)

    # From the transport.

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the peer."""
        self.heard = True
        if self._unfed:
            self._unfed += data
        else:
            self._feed(data, self.clock.seconds() + SLICE_S)

    def _go_on(self) -> None:
        self._feeding = None
        data, self._unfed = self._unfed, b""
        self._feed(data, self.clock.seconds() + SLICE_S)
        self.follow_pace()

    def _feed(self, data: bytes, until: float) -> None:
        """Have it parsed, as much of it as there is time for, and as the other side takes."""
        at = 0
        try:
            while at < len(data) and self.state != self.STATE_CLOSED:
                size = PIECE_BYTES
                if self.current_frame is not None:
                    size = max(size, self.current_frame.length - self.current_frame_masker.pointer())
                piece = data[at : at + size]
                at += size
                self.data = self.data + piece if self.data else piece
                self.consumeData()
                if at < len(data) and (self.pausing or self.clock.seconds() > until):
                    self._unfed = data[at:]
                    self.follow_pace()
                    return
        except Exception:
            self._log.failure("socket.crashed", side=self.name)
            self.data = b""
            self._fail_connection(1011, "")

    def connectionLost(self, reason: Failure | None = None) -> None:
        """The end of it; what came before it is still heard."""
        if self._feeding is not None:
            self._feeding.cancel()
            self._feeding = None
        self.pausing = False
        while self._unfed:
            unfed, self._unfed = self._unfed, b""
            self._feed(unfed, inf)
            self.pausing = False  # the other side may have it set at every piece
        self.state = self.STATE_CLOSED
        self.data = self._message = b""
        self.ear.lost(self)

    # From autobahn, in place of its own.

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Straight to the transport."""
        self.transport.write(data)

    def dropConnection(self, abort: bool = False) -> None:
        """End the connection."""
        self.drop(abort=abort)

    def onFrameData(self, payload: bytes) -> bool | None:
        """Keep nothing of what a peer that broke the protocol calls a control frame."""
        if self.failedByMe and self.current_frame.length > _MAX_CONTROL_BYTES:
            return None
        result: bool | None = super().onFrameData(payload)  # type: ignore[misc]
        return result

    def onMessageBegin(self, isBinary: bool) -> None:
        """The first frame of a message."""
        self.message_is_binary, self.message_data_total_length = isBinary, 0
        self._message = b""

    def onMessageFrameData(self, payload: bytes) -> None:
        """Some bytes of it."""
        if not payload or not self.open:
            return
        if not self._message:
            self._message = payload
            return
        if isinstance(self._message, bytes):
            self._message = bytearray(self._message)
        self._message += payload

    def onMessageFrameEnd(self) -> None:
        """Nothing to do before the last one."""

    def onMessageEnd(self) -> None:
        """A whole message."""
        message, self._message = self._message, b""
        if self.open:
            self.ear.message(self, bytes(message), self.message_is_binary)

    def onPing(self, payload: bytes) -> None:
        """Answer, once the peer takes what is written: one that only sends pings must not pile up pongs."""
        if self.blocked:
            self._owed_pong = payload
        elif self.open:
            self.sendPong(payload)

    def onPong(self, payload: bytes) -> None:
        """Heard already."""

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> bool:
        """The peer's close frame, the first one or its answer to ours."""
        reason = reasonRaw or b""
        if self.open:
            fault = close_fault(code, reason)
            if fault is not None:
                self._fail_connection(*fault)
            else:
                self.sendCloseFrame(code=code, reasonUtf8=reason, isReply=True)
                self.ear.closed(self, code, reason)
        self.ear.finished(self)
        return True

    def _fail_connection(self, code: int = 1002, reason: str = "") -> None:
        if self.open and not self.failedByMe:
            self.failedByMe = True
            self.resume_reading()
            self.sendCloseFrame(code=code, reasonUtf8=reason.encode()[:MAX_REASON_BYTES], isReply=False)
            self.ear.violated(self, code)
