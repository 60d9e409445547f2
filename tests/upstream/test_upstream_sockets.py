"""The client against scripted services on real sockets of this machine."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_twisted
import trustme
from OpenSSL.SSL import TLS_SERVER_METHOD, Connection, Context
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from upstream_fakes import OK, FakeSource, RecordingSink
from zope.interface import implementer

from bakerygw.ports import UpstreamFailed, UpstreamRequest, UpstreamResponse
from bakerygw.upstream.client import UpstreamClient

Script = Callable[["ServiceEnd"], None]


class ServiceEnd(Protocol):
    """A service's end of a connection: keeps what came, and lets the script act whenever something does."""

    def __init__(self, service: "Service") -> None:
        self.service = service
        self.data = b""
        self.lost: Deferred[Failure] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self.service.script(self)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.lost.callback(reason.value)

    def say(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[union-attr]

    def hang_up(self) -> None:
        self.transport.loseConnection()  # type: ignore[union-attr]

    def break_off(self) -> None:
        self.transport.abortConnection()  # type: ignore[union-attr]


class Service(Factory):
    """Listens on a free port of the loopback and answers as its script says."""

    noisy = False

    def __init__(self, script: Script) -> None:
        self.script = script
        self.ends: list[ServiceEnd] = []
        self.port = 0

    def buildProtocol(self, addr: object) -> ServiceEnd:
        end = ServiceEnd(self)
        self.ends.append(end)
        return end


@implementer(IOpenSSLServerConnectionCreator)
class ServerContext:
    """A service's side of TLS. Twisted's own warns of what pyOpenSSL has deprecated."""

    def __init__(self, chain: Path, key: Path) -> None:
        self._context = Context(TLS_SERVER_METHOD)
        self._context.use_certificate_chain_file(str(chain))
        self._context.use_privatekey_file(str(key))

    def serverConnectionForTLS(self, tlsProtocol: object) -> Connection:
        return Connection(self._context, None)


class Town:
    """Services and clients of one test, all ended with it."""

    def __init__(self) -> None:
        self.ports: list[object] = []
        self.clients: list[UpstreamClient] = []
        self.services: list[Service] = []

    async def service(self, script: Script, certificate: ServerContext | None = None) -> Service:
        service = Service(script)
        if certificate is None:
            endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        else:
            endpoint = SSL4ServerEndpoint(reactor, 0, certificate, interface="127.0.0.1")
        port = await endpoint.listen(service)
        self.ports.append(port)
        self.services.append(service)
        service.port = port.getHost().port
        return service

    def client(self, *urls: str, ca_file: Path | None = None, connect_s: float = 30) -> UpstreamClient:
        client = UpstreamClient(
            reactor,
            {"sales": urls},
            connect_timeout_s=connect_s,
            first_byte_timeout_s=30,
            idle_timeout_s=30,
            keepalive_s=4,
            ca_file=str(ca_file) if ca_file else None,
        )
        self.clients.append(client)
        return client

    async def end(self) -> None:
        for client in self.clients:
            client.close()
        for service in self.services:
            for end in service.ends:
                if not end.lost.called:
                    end.break_off()
                    await end.lost
        for port in self.ports:
            await port.stopListening()  # type: ignore[attr-defined]


@pytest_twisted.async_yield_fixture
async def town() -> AsyncIterator[Town]:
    town = Town()
    yield town
    await town.end()


class Reading(RecordingSink):
    """A recording sink that can be waited for."""

    def __init__(self, response: UpstreamResponse) -> None:
        super().__init__()
        self.ended: Deferred[None] = Deferred()
        response.body.start(self)

    def done(self) -> None:
        super().done()
        self.ended.callback(None)

    def cut(self, reason: str) -> None:
        super().cut(reason)
        self.ended.callback(None)


async def body_of(response: UpstreamResponse) -> tuple[bytes, str | None]:
    sink = Reading(response)
    await sink.ended
    return sink.data, sink.end


def ask(method: str = "GET", body: FakeSource | None = None) -> UpstreamRequest:
    return UpstreamRequest(method=method, target=b"/a%20b?c=%2f", headers=((b"X-A", b"b"),), body=body)


def polite(end: ServiceEnd) -> None:
    if end.data.endswith(b"\r\n\r\n"):
        end.data = b""
        end.say(OK)


@pytest_twisted.ensureDeferred
async def test_one_connection_serves_request_after_request(town: Town) -> None:
    service = await town.service(polite)
    client = town.client(f"http://127.0.0.1:{service.port}")
    for _ in range(3):
        response = await client.request("sales", ask())
        assert await body_of(response) == (b"hi", "done")
    assert len(service.ends) == 1
    assert client.stats()["sales"][0].requests == 3


@pytest_twisted.ensureDeferred
async def test_a_host_name_is_resolved(town: Town) -> None:
    service = await town.service(polite)
    client = town.client(f"http://localhost:{service.port}")
    assert (await client.request("sales", ask())).authority == f"localhost:{service.port}"


@pytest_twisted.ensureDeferred
async def test_a_large_response_arrives_at_the_readers_pace(town: Town) -> None:
    size = 8 * 1024 * 1024
    service = await town.service(
        lambda end: end.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    )
    client = town.client(f"http://127.0.0.1:{service.port}")
    body = (await client.request("sales", ask())).body

    class Sipping(RecordingSink):
        """Asks for more only in another turn of the reactor."""

        largest = 0

        def __init__(self) -> None:
            super().__init__()
            self.size = 0
            self.ended: Deferred[None] = Deferred()

        def write(self, data: bytes) -> None:
            self.size += len(data)
            self.largest = max(self.largest, len(data))
            body.pause()
            reactor.callLater(0, body.resume)

        def done(self) -> None:
            self.ended.callback(None)

    sink = Sipping()
    body.start(sink)
    await sink.ended
    assert sink.size == size
    assert sink.largest <= 128 * 1024, "no more than a read or two is ever kept"


@pytest_twisted.ensureDeferred
async def test_a_service_that_does_not_read_pauses_the_request_body(town: Town) -> None:
    service = await town.service(lambda end: end.transport.pauseProducing())  # type: ignore[union-attr]
    client = town.client(f"http://127.0.0.1:{service.port}")
    paused: Deferred[None] = Deferred()

    class Gushing(FakeSource):
        """Sends until it is paused."""

        def start(self, sink: object) -> None:
            super().start(sink)  # type: ignore[arg-type]
            self.gush()

        def gush(self) -> None:
            assert self.sink is not None
            while "pause" not in self.calls:
                self.sink.write(b"x" * 65536)

        def pause(self) -> None:
            super().pause()
            if self.calls.count("pause") == 1:
                reactor.callLater(0, paused.callback, None)

    body = Gushing(1 << 40)
    asking = Deferred.fromCoroutine(client.request("sales", ask("POST", body)))
    await paused
    asking.cancel()
    with pytest.raises(CancelledError):
        await asking
    assert body.calls[-1] == "stop"


CUT = "cut: upstream closed early"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nall", (b"all", "done")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", (b"half", CUT)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", (b"half", CUT)),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_was_promised_decides_whether_an_orderly_end_is_the_bodys_end(
    town: Town, raw: bytes, expected: tuple[bytes, str]
) -> None:
    def script(end: ServiceEnd) -> None:
        end.say(raw)
        end.hang_up()

    service = await town.service(script)
    response = await town.client(f"http://127.0.0.1:{service.port}").request("sales", ask())
    assert await body_of(response) == expected


@pytest_twisted.ensureDeferred
async def test_a_reset_never_completes_a_body_that_only_the_end_could(town: Town) -> None:
    service = await town.service(lambda end: end.say(b"HTTP/1.1 200 OK\r\n\r\nhalf"))
    response = await town.client(f"http://127.0.0.1:{service.port}").request("sales", ask())
    sink = Reading(response)
    service.ends[0].break_off()
    await sink.ended
    assert sink.end == CUT


@pytest_twisted.ensureDeferred
async def test_a_stale_connection_costs_an_idempotent_request_nothing(town: Town) -> None:
    def script(end: ServiceEnd) -> None:
        if end.data.count(b"\r\n\r\n") == 2:
            end.hang_up()
        else:
            end.say(OK)

    service = await town.service(script)
    client = town.client(f"http://127.0.0.1:{service.port}")
    await client.request("sales", ask())
    assert (await client.request("sales", ask())).status == 200
    assert len(service.ends) == 2


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_ends_the_exchange_at_the_service(town: Town) -> None:
    arrived: Deferred[None] = Deferred()
    service = await town.service(lambda end: arrived.callback(None))
    client = town.client(f"http://127.0.0.1:{service.port}")
    asking = Deferred.fromCoroutine(client.request("sales", ask()))
    await arrived
    asking.cancel()
    with pytest.raises(CancelledError):
        await asking
    assert isinstance(await service.ends[0].lost, ConnectionLost)


@pytest_twisted.ensureDeferred
async def test_a_closed_port_is_a_refused_connection(town: Town) -> None:
    service = await town.service(polite)
    await town.ports.pop().stopListening()  # type: ignore[attr-defined]
    with pytest.raises(UpstreamFailed) as caught:
        await town.client(f"http://127.0.0.1:{service.port}").request("sales", ask())
    assert (caught.value.code, caught.value.error) == ("upstream-unreachable", "connection_refused")


@pytest_twisted.ensureDeferred
async def test_an_unknown_name_is_a_dns_error(town: Town) -> None:
    with pytest.raises(UpstreamFailed) as caught:
        await town.client("http://nowhere.invalid:1", connect_s=10).request("sales", ask())
    assert (caught.value.code, caught.value.error) == ("upstream-unreachable", "dns_error")


# TLS.


class Authority:
    """A certificate authority for one test, its certificate in a file among others."""

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self.ca_file = directory / "ca.pem"
        other = trustme.CA().cert_pem.bytes()
        self.ca_file.write_bytes(b"# services\n" + other + self._ca.cert_pem.bytes())

    def certificate(self, name: str) -> "ServerContext":
        issued = self._ca.issue_cert(name)
        chain, key = self.ca_file.with_name("chain.pem"), self.ca_file.with_name("key.pem")
        chain.write_bytes(issued.cert_chain_pems[0].bytes())
        key.write_bytes(issued.private_key_pem.bytes())
        return ServerContext(chain, key)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest_twisted.ensureDeferred
async def test_https_with_a_good_certificate_works(town: Town, tmp_path: Path, host: str) -> None:
    authority = Authority(tmp_path)
    service = await town.service(polite, authority.certificate(host))
    client = town.client(f"https://{host}:{service.port}", ca_file=authority.ca_file)
    for _ in range(2):
        assert await body_of(await client.request("sales", ask())) == (b"hi", "done")
    assert len(service.ends) == 1


@pytest.mark.parametrize("named", ["other.example", "127.0.0.2"])
@pytest_twisted.ensureDeferred
async def test_a_certificate_for_another_name_is_refused(town: Town, tmp_path: Path, named: str) -> None:
    authority = Authority(tmp_path)
    service = await town.service(polite, authority.certificate(named))
    with pytest.raises(UpstreamFailed) as caught:
        await town.client(f"https://127.0.0.1:{service.port}", ca_file=authority.ca_file).request("sales", ask())
    assert (caught.value.code, caught.value.error) == ("upstream-unreachable", "tls_certificate_error")
    assert service.ends[0].data == b"", "nothing is sent to a stranger"


@pytest.mark.parametrize("own_file", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_certificate_of_an_unknown_authority_is_refused(town: Town, tmp_path: Path, own_file: bool) -> None:
    (tmp_path / "theirs").mkdir()
    service = await town.service(polite, Authority(tmp_path / "theirs").certificate("127.0.0.1"))
    ca_file = Authority(tmp_path).ca_file if own_file else None
    with pytest.raises(UpstreamFailed) as caught:
        await town.client(f"https://127.0.0.1:{service.port}", ca_file=ca_file).request("sales", ask())
    assert caught.value.error == "tls_certificate_error"


@pytest_twisted.ensureDeferred
async def test_plain_http_where_tls_was_expected_is_a_tls_error(town: Town, tmp_path: Path) -> None:
    service = await town.service(lambda end: end.say(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    client = town.client(f"https://127.0.0.1:{service.port}", ca_file=Authority(tmp_path).ca_file)
    with pytest.raises(UpstreamFailed) as caught:
        await client.request("sales", ask())
    assert (caught.value.code, caught.value.error) == ("upstream-unreachable", "tls_protocol_error")


@pytest_twisted.ensureDeferred
async def test_the_connect_deadline_covers_the_handshake(town: Town, tmp_path: Path) -> None:
    service = await town.service(lambda end: None)
    client = town.client(f"https://127.0.0.1:{service.port}", ca_file=Authority(tmp_path).ca_file, connect_s=0.1)
    with pytest.raises(UpstreamFailed) as caught:
        await client.request("sales", ask())
    assert (caught.value.code, caught.value.error) == ("upstream-unreachable", "connection_timeout")


def test_a_ca_file_without_certificates_is_refused_at_start(tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    empty.write_text("nothing here")
    with pytest.raises(ValueError, match="no certificate"):
        Town().client("https://127.0.0.1:1", ca_file=empty)
