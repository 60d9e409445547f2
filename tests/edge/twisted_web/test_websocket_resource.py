"""autobahn's WebSocket resource over the gateway's channel, on real sockets, with `websockets` as the client."""

import base64
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import trustme
from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionDeny
from OpenSSL.SSL import TLS_SERVER_METHOD, Connection, Context
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.threads import deferToThread
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from zope.interface import implementer

from bakerygw.core.http import Reply
from bakerygw.core.outcome import Outcome, Trace
from bakerygw.edge.conversation import Conversation, standing_headers
from bakerygw.edge.exchange import Exchange
from bakerygw.edge.resource import ResourceHandler
from tests.edge.edge_fakes import make_site


class Echo(WebSocketServerProtocol):
    """Greets, says everything again, and closes when told to."""

    def onConnect(self, request: Any) -> None:
        if request.path == "/denied":
            raise ConnectionDeny(403, "No")

    def onOpen(self) -> None:
        self.factory.opened.append(self)
        self.sendMessage(b"hello")

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if payload == b"close":
            self.sendClose(4000, "as you wish")
        elif payload == b"reset":
            self.transport.abortConnection()
        else:
            self.sendMessage(payload, isBinary)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self.factory.closed.append((wasClean, code))


@implementer(IOpenSSLServerConnectionCreator)
class ServerContext:
    """The server's side of TLS. Twisted's own warns of what pyOpenSSL has deprecated."""

    def __init__(self, chain: Path, key: Path) -> None:
        self._context = Context(TLS_SERVER_METHOD)
        self._context.use_certificate_chain_file(str(chain))
        self._context.use_privatekey_file(str(key))

    def serverConnectionForTLS(self, tlsProtocol: object) -> Connection:
        return Connection(self._context, None)


class House:
    """A listening site whose every path is the echo."""

    def __init__(self, folder: Path) -> None:
        self.outcomes: list[Outcome] = []
        self.connections = 0
        self.factory = WebSocketServerFactory(reactor=reactor)
        self.factory.protocol = Echo
        self.factory.opened, self.factory.closed = [], []
        self._resource = WebSocketResource(self.factory)
        self._handler = ResourceHandler(clock=reactor, max_body_bytes=1000)
        self._changed: list[Deferred[None]] = []
        conversation = Conversation(
            self._reply_to,
            standing=lambda head, trace: standing_headers(trace),
            ended=self.outcomes.append,
            clock=reactor,
        )
        self.site = make_site(conversation, reactor, on_connections=self._count)
        self.site.noisy = False
        self._folder = folder
        self._ports: list[Any] = []

    async def _reply_to(self, exchange: Exchange, trace: Trace) -> Reply:
        return await self._handler.reply_to(exchange, self._resource, upgrade=b"websocket")

    def _count(self, connections: int) -> None:
        self.connections = connections
        if not connections:
            waiting, self._changed = self._changed, []
            for deferred in waiting:
                reactor.callLater(0, deferred.callback, None)  # once the channel has told everybody else of its end

    async def listen(self, *, tls: bool) -> tuple[str, int, ssl.SSLContext | None]:
        context = None
        if tls:
            authority = trustme.CA()
            issued = authority.issue_cert("localhost")
            issued.private_key_pem.write_to_path(str(self._folder / "key.pem"))
            issued.cert_chain_pems[0].write_to_path(str(self._folder / "cert.pem"))
            context = ssl.create_default_context()
            authority.configure_trust(context)
            creator = ServerContext(self._folder / "cert.pem", self._folder / "key.pem")
            endpoint: Any = SSL4ServerEndpoint(reactor, 0, creator, interface="127.0.0.1")
        else:
            endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        port = await endpoint.listen(self.site)
        self._ports.append(port)
        number = port.getHost().port
        return f"{'wss' if tls else 'ws'}://localhost:{number}/", number, context

    async def all_gone(self) -> None:
        if self.connections:
            deferred: Deferred[None] = Deferred()
            self._changed.append(deferred)
            deferred.addTimeout(5, reactor)
            await deferred

    async def end(self) -> None:
        self.site.abort()
        await self.all_gone()
        for port in self._ports:
            await port.stopListening()


@pytest_twisted.async_yield_fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    yield house
    await house.end()


def talk(url: str, context: ssl.SSLContext | None, conversation: Callable[[Any], Any]) -> Any:
    with connect(url, ssl=context, compression=None, proxy=None, open_timeout=30) as socket_:
        return conversation(socket_)


def echoed(client: Any) -> list[str | bytes]:
    said: list[str | bytes] = [client.recv(5)]
    for message in ("text", b"binary", "", b"x" * 300_000):
        client.send(message)
        said.append(client.recv(5))
    return said


def closed_by_the_server(client: Any, message: str) -> int | None:
    client.recv(5)
    client.send(message)
    try:
        client.recv(5)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd is not None else None
    raise AssertionError("still open")


@pytest.mark.parametrize("tls", [False, True])
@pytest_twisted.ensureDeferred
async def test_messages_pass_both_ways_and_the_end_is_told(house: House, tls: bool) -> None:
    url, _, context = await house.listen(tls=tls)
    said = await deferToThread(talk, url, context, echoed)
    assert said == ["hello", "text", b"binary", "", b"x" * 300_000]
    await house.all_gone()
    assert house.factory.closed == [(True, 1000)]
    (outcome,) = house.outcomes
    assert (outcome.status, outcome.trace.reason) == (101, None)
    assert outcome.bytes_in > 300_000
    assert outcome.bytes_out > 300_000


@pytest_twisted.ensureDeferred
async def test_a_close_code_of_the_server_arrives(house: House) -> None:
    url, _, _ = await house.listen(tls=False)
    code = await deferToThread(talk, url, None, partial(closed_by_the_server, message="close"))
    await house.all_gone()
    assert code == 4000
    assert house.outcomes[0].trace.reason is None


@pytest_twisted.ensureDeferred
async def test_a_reset_by_the_server_arrives(house: House) -> None:
    url, _, _ = await house.listen(tls=False)
    assert await deferToThread(talk, url, None, partial(closed_by_the_server, message="reset")) is None
    await house.all_gone()
    assert house.factory.closed[0][0] is False
    assert house.outcomes[0].status == 101


@pytest_twisted.ensureDeferred
async def test_a_denied_handshake_is_a_reply_of_the_gateway(house: House) -> None:
    url, _, _ = await house.listen(tls=False)
    with pytest.raises(InvalidStatus) as denied:
        await deferToThread(talk, url + "denied", None, echoed)
    await house.all_gone()
    assert denied.value.response.status_code == 403
    assert "X-Request-ID" in denied.value.response.headers
    assert house.factory.opened == []
    assert [outcome.status for outcome in house.outcomes] == [403]


def frame(payload: bytes) -> bytes:
    """A whole text frame of a client (RFC 6455 §5.2)."""
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes([0x81, 0x80 | len(payload)]) + mask + masked


def in_one_segment(port: int, *payloads: bytes, key: bytes | None = None) -> bytes:
    """What the server says to a handshake with frames right behind it, and a request to close."""
    nonce = base64.b64encode(os.urandom(16)) if key is None else key
    handshake = (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + nonce + b"\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(handshake + b"".join(map(frame, payloads)))
        answer = b""
        with suppress(ConnectionResetError):  # autobahn ends by a reset once both have closed
            while data := client.recv(65536):
                answer += data
                if answer.endswith(b"as you wish"):
                    client.sendall(b"\x88\x80\0\0\0\0")
    return answer


@pytest_twisted.ensureDeferred
async def test_frames_in_the_segment_of_the_handshake_are_not_lost(house: House) -> None:
    _, port, _ = await house.listen(tls=False)
    answer = await deferToThread(in_one_segment, port, b"first", b"second", b"close")
    head, _, frames = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert frames.startswith(b"\x81\x05hello\x81\x05first\x81\x06second\x88")


@pytest_twisted.ensureDeferred
async def test_frames_behind_a_refused_handshake_are_read_as_nothing(house: House) -> None:
    _, port, _ = await house.listen(tls=False)
    answer = await deferToThread(in_one_segment, port, b"first", key=b"too short")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"\r\nX-Request-ID: " in answer
    assert house.factory.opened == []


@pytest_twisted.ensureDeferred
async def test_a_plain_request_is_told_to_upgrade(house: House) -> None:
    _, port, _ = await house.listen(tls=False)

    def plain() -> bytes:
        with socket.create_connection(("127.0.0.1", port), 5) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return b"".join(iter(lambda: client.recv(65536), b""))

    answer = await deferToThread(plain)
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert head.startswith(b"http/1.1 426 ")
    assert b"\r\nupgrade: websocket" in head
    assert b"\r\nconnection: upgrade" in head


@pytest_twisted.ensureDeferred
async def test_back_pressure_reaches_the_server(house: House) -> None:
    url, _, _ = await house.listen(tls=False)
    calls: list[str] = []

    class Noting:
        def pauseProducing(self) -> None:
            calls.append("pause")

        def resumeProducing(self) -> None:
            calls.append("resume")

        def stopProducing(self) -> None:
            calls.append("stop")

    def flood() -> None:
        (server,) = house.factory.opened
        server.unregisterProducer()
        server.registerProducer(Noting(), True)
        for _ in range(600):
            server.sendMessage(b"x" * 65536, True)

    def read_late(client: Any) -> int:
        client.recv(5)
        done: list[int] = []
        reactor.callFromThread(lambda: (flood(), done.append(len(calls))))
        size = 0
        for _ in range(600):
            size += len(client.recv(5))
        return size

    assert await deferToThread(talk, url, None, read_late) == 600 * 65536
    await house.all_gone()
    assert calls[0] == "pause"
    assert "resume" in calls
