"""The client's end of a connection, and an application behind it, all in memory."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from bakerygw.core.heads import TrustedProxies
from bakerygw.core.http import BodySink, Reply
from bakerygw.core.problem import Refused, problem_reply
from bakerygw.edge.channel import EdgeChannel
from bakerygw.edge.deliver import deliver
from bakerygw.edge.exchange import Exchange
from bakerygw.edge.framer import ChannelLimits
from bakerygw.edge.site import EdgeSite

HOST = b"Host: bakery.example\r\n"
OK = Reply(status=200, body=b"ok")
BUFFER_BYTES = 64 * 1024
"""What a transport holds before it pauses its producer, as Twisted's does."""


class Wire:
    """A transport: what was written to the client, and what was done to the connection."""

    def __init__(self, *, stalled: bool = False) -> None:
        self._written: list[bytes] = []
        self.unsent = 0
        self.stalled = stalled
        """The client takes nothing; `drain` takes all."""
        self.paused = False
        self.reading = True
        self.closed = self.half_closed = self.aborted = False
        self.producer: Any = None

    def write(self, data: bytes) -> None:
        assert not self.half_closed, "written after the end of output"
        self._written.append(data)
        if not self.stalled:
            return
        self.unsent += len(data)
        if self.unsent > BUFFER_BYTES and self.producer is not None and not self.paused:
            self.paused = True
            self.producer.pauseProducing()

    @property
    def written(self) -> bytes:
        """All that was written so far."""
        self._written = [b"".join(self._written)]
        return self._written[0]

    def drain(self) -> None:
        """The client takes everything that was written so far."""
        self.unsent = 0
        if self.paused:
            self.paused = False
            if self.producer is not None:
                self.producer.resumeProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        assert self.producer is None
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def loseConnection(self) -> None:
        self.closed = True

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def abortConnection(self) -> None:
        self.aborted = True

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", 4711)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.100", 80)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[bytes, list[bytes]]
    body: bytes

    def problem(self) -> dict[str, Any]:
        assert self.headers[b"content-type"] == [b"application/problem+json"]
        document = json.loads(self.body)
        assert document["status"] == self.status
        return document


def answers(data: bytes, *, bodiless: bool = False) -> list[Answer]:
    """All of `data` as replies; whatever is left over or cut short is an AssertionError."""
    found = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, f"no whole head: {head!r}"
        start, *lines = head.split(b"\r\n")
        version, status, _ = start.split(b" ", 2)
        assert version == b"HTTP/1.1"
        headers: dict[bytes, list[bytes]] = {}
        for line in lines:
            name, _, value = line.partition(b": ")
            headers.setdefault(name.lower(), []).append(value)
        body = b""
        if headers.get(b"transfer-encoding") == [b"chunked"]:
            body, data = dechunked(data)
        elif b"content-length" in headers and not bodiless and status != b"304":
            length = int(headers[b"content-length"][0])
            body, data = data[:length], data[length:]
            assert len(body) == length, "the body is cut short"
        found.append(Answer(int(status), headers, body))
    return found


def dechunked(data: bytes) -> tuple[bytes, bytes]:
    """A chunked body and what follows it."""
    body = b""
    while True:
        size, end, data = data.partition(b"\r\n")
        assert end, "the chunked body is cut short"
        length = int(size, 16)
        assert data[length : length + 2] == b"\r\n"
        body, data = body + data[:length], data[length + 2 :]
        if not length:
            return body, data


class App:
    """An application that gives each request what `respond` returns: a reply, or `None` to leave it waiting."""

    def __init__(self, respond: Callable[[Exchange], Reply | None] = lambda _: OK) -> None:
        self.respond = respond
        self.exchanges: list[Exchange] = []
        self.refusals: list[Refused] = []

    def serve(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        reply = self.respond(exchange)
        if reply is not None:
            give(exchange, reply)

    def unreadable(self, refusal: Refused, peer: str) -> Reply:
        self.refusals.append(refusal)
        return problem_reply(refusal.problem, instance="", request_id="r")

    @property
    def targets(self) -> list[bytes]:
        return [exchange.head.target for exchange in self.exchanges]


def give(exchange: Exchange, reply: Reply) -> "Deferred[str | None]":
    """Deliver `reply`; fires with what cut it short."""
    return Deferred.fromCoroutine(deliver(exchange, reply))


class Client:
    """One connection to a site of its own, or to `site`."""

    def __init__(
        self,
        app: App | None = None,
        *,
        site: EdgeSite | None = None,
        peer: str = "192.0.2.1",
        stalled: bool = False,
        trusted: tuple[Any, ...] = (),
        limits: ChannelLimits | None = None,
    ) -> None:
        self.app = app or App()
        self.clock = Clock() if site is None else site.clock  # type: ignore[assignment]
        self.site = site or make_site(self.app, self.clock, trusted=trusted, limits=limits)
        address = UNIXAddress("/run/x") if peer == "unix" else IPv4Address("TCP", peer, 4711)
        channel = self.site.buildProtocol(address)
        assert isinstance(channel, EdgeChannel)
        self.channel = channel
        self.wire = Wire(stalled=stalled)
        channel.makeConnection(self.wire)

    def send(self, *pieces: bytes) -> "Client":
        for piece in pieces:
            self.channel.dataReceived(piece)
        return self

    def turns(self, number: int) -> "Client":
        """So many turns of the reactor, without time passing."""
        for _ in range(number):
            self.clock.advance(0)  # type: ignore[attr-defined]
        return self

    def leave(self) -> None:
        self.wire.producer = None
        self.channel.connectionLost(Failure(ConnectionDone()))

    def wait(self, seconds: float) -> None:
        """Let time pass, with the site's look at deadlines twice a second."""
        for _ in range(round(seconds * 2)):
            self.clock.advance(0.5)  # type: ignore[attr-defined]
            for channel in list(self.site._channels):
                channel.sweep(self.clock.seconds())

    def answers(self) -> list[Answer]:
        return answers(self.wire.written)

    def only(self) -> Answer:
        (answer,) = self.answers()
        return answer


def make_site(app: Any, clock: Any, *, trusted: tuple[Any, ...] = (), limits: ChannelLimits | None = None, **more: Any):
    return EdgeSite(
        app,
        clock=clock,
        now=lambda: 1_700_000_000.5 + clock.seconds(),
        proxies=TrustedProxies(trusted),
        limits=limits or ChannelLimits(),
        **more,
    )


def request(method: bytes = b"GET", target: bytes = b"/", *lines: bytes, body: bytes = b"") -> bytes:
    """A request as bytes, with a Host and these lines."""
    if body:
        lines = (*lines, b"Content-Length: %d" % len(body))
    return (
        method + b" " + target + b" HTTP/1.1\r\n" + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body
    )


class Sink:
    """Where a body goes: what came, and how it ended."""

    def __init__(self) -> None:
        self.data = b""
        self.end: str | None = None

    def write(self, data: bytes) -> None:
        assert self.end is None
        self.data += data

    def done(self) -> None:
        assert self.end is None
        self.end = "done"

    def cut(self, reason: str) -> None:
        assert self.end is None
        self.end = reason


class Source:
    """A reply's body that the test pushes by hand."""

    def __init__(self, length: int | None = None, whole: bytes | None = None) -> None:
        self.length, self._whole = length, whole
        self.sink: BodySink | None = None
        self.calls: list[str] = []

    def whole(self) -> bytes | None:
        return self._whole

    def start(self, sink: BodySink) -> None:
        self.calls.append("start")
        self.sink = sink

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")

    def stop(self) -> None:
        self.calls.append("stop")
