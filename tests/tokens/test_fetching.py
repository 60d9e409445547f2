import gzip

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.interfaces import IProtocol, IProtocolFactory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from bakerygw.tokens.fetching import MAX_BYTES, MAX_HEAD_BYTES, TIMEOUT_S, Fetch, Fetched, FetchFailed, max_age_of
from tests.deferreds import failure_of, success_of


class Line(StringTransport):
    """A connection that tells how it was ended."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = self.disconnected = True


class Server:
    """The endpoint, and the connections to it."""

    def __init__(self, reachable: str = "yes") -> None:
        """`reachable`: yes, no, or hangs."""
        self.reachable, self.lines, self.cancelled = reachable, list[Line](), 0
        self.protocols: list[IProtocol] = []
        self.clock = Clock()
        self.fetch = Fetch(self.clock, "http://auth.example:8000/jwks.json?a=1", self)  # type: ignore[arg-type]

    def connect(self, factory: IProtocolFactory) -> "Deferred[IProtocol]":
        opened: Deferred[IProtocol] = Deferred(self._cancel)
        if self.reachable == "no":
            opened.errback(ConnectionRefusedError())
        elif self.reachable == "yes":
            protocol = factory.buildProtocol(None)  # type: ignore[arg-type]
            assert protocol is not None
            line = Line()
            self.lines.append(line)
            self.protocols.append(protocol)
            protocol.makeConnection(line)
            opened.callback(protocol)
        return opened

    def _cancel(self, opened: object) -> None:
        self.cancelled += 1

    def begin(self) -> "Deferred[Fetched]":
        return Deferred.fromCoroutine(self.fetch())

    def send(self, data: bytes) -> None:
        self.protocols[-1].dataReceived(data)

    def hang_up(self) -> None:
        self.protocols[-1].connectionLost(Failure(ConnectionDone()))

    @property
    def request(self) -> bytes:
        return self.lines[-1].value()


def answer(body: bytes, *lines: bytes, status: bytes = b"200 OK") -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 " + status, length, *lines, b"", body])


def refusal(fetching: "Deferred[Fetched]") -> tuple[str, str]:
    error = failure_of(fetching, FetchFailed)
    assert isinstance(error, FetchFailed)
    return error.result, str(error)


def test_the_document_comes_whole_with_its_age() -> None:
    server = Server()
    fetching = server.begin()
    server.send(answer(b'{"keys": []}', b"Cache-Control: public, max-age=600"))
    assert success_of(fetching) == Fetched(body=b'{"keys": []}', max_age_s=600)
    assert server.request.startswith(b"GET /jwks.json?a=1 HTTP/1.1\r\n")
    assert b"Host: auth.example:8000\r\n" in server.request
    assert server.lines[-1].disconnected
    assert server.clock.getDelayedCalls() == []


def test_a_body_without_length_ends_with_the_connection() -> None:
    server = Server()
    fetching = server.begin()
    server.send(b"HTTP/1.0 200 OK\r\n\r\n{}")
    assert not fetching.called
    server.hang_up()
    assert success_of(fetching).body == b"{}"


def test_a_packed_body_is_not_asked_for_and_not_unpacked() -> None:
    server = Server()
    fetching = server.begin()
    assert b"\r\nAccept-Encoding: identity\r\n" in server.request
    server.send(answer(gzip.compress(b"x" * 10_000_000), b"Content-Encoding: gzip"))
    assert refusal(fetching) == ("invalid", "the document is packed, although that was not asked for")
    assert server.lines[-1].aborted


@pytest.mark.parametrize("status", [b"404 Not Found", b"500 Oops", b"204 No Content", b"206 Partial Content"])
def test_another_status_is_no_document(status: bytes) -> None:
    server = Server()
    fetching = server.begin()
    server.send(answer(b"" if status.startswith(b"204") else b"{}", status=status))
    assert refusal(fetching) == ("status", f"answered {status[:3].decode()}")
    assert server.lines[-1].aborted


def test_a_redirect_is_not_followed() -> None:
    server = Server()
    fetching = server.begin()
    server.send(answer(b"", b"Location: http://evil.example/keys", status=b"302 Found"))
    assert refusal(fetching) == ("status", "answered 302")
    assert len(server.lines) == 1


def test_cookies_are_not_kept() -> None:
    server = Server()
    for _ in range(2):
        fetching = server.begin()
        server.send(answer(b"{}", b"Set-Cookie: a=b; Path=/"))
        success_of(fetching)
    assert len(server.lines) == 2
    assert b"ookie" not in server.request


@pytest.mark.parametrize("announced", [True, False])
def test_a_document_that_is_too_large_is_refused_before_it_is_all_here(announced: bool) -> None:
    server = Server()
    fetching = server.begin()
    length = b"Content-Length: %d\r\n" % (10 * MAX_BYTES) if announced else b""
    server.send(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n")
    server.send(b"x" * MAX_BYTES)
    assert not fetching.called
    server.send(b"x")
    assert refusal(fetching)[0] == "too-large"
    assert server.lines[-1].aborted


def test_a_head_without_end_is_refused() -> None:
    server = Server()
    fetching = server.begin()
    server.send(b"HTTP/1.1 200 OK\r\n")
    field = b"X-Padding: " + b"x" * 1000 + b"\r\n"
    for _ in range((MAX_BYTES + MAX_HEAD_BYTES) // len(field) + 1):
        assert not server.lines[-1].aborted
        server.send(field)
    assert server.lines[-1].aborted
    server.hang_up()
    assert refusal(fetching) == ("too-large", "the answer is too large")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    ],
    ids=["nothing", "half a head", "half a body", "half the chunks"],
)
def test_a_peer_that_hangs_is_left_after_five_seconds(sent: bytes) -> None:
    server = Server()
    fetching = server.begin()
    server.send(sent)
    server.clock.advance(TIMEOUT_S - 0.1)
    assert not fetching.called
    server.clock.advance(0.1)
    assert refusal(fetching) == ("timeout", "no document within 5 s")
    assert server.lines[-1].aborted


def test_one_byte_now_and_then_does_not_make_it_last() -> None:
    server = Server()
    fetching = server.begin()
    server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    for _ in range(10):
        server.clock.advance(0.49)
        server.send(b"x")
    server.clock.advance(0.2)
    assert refusal(fetching)[0] == "timeout"


def test_a_connection_that_does_not_come_is_given_up() -> None:
    server = Server("hangs")
    fetching = server.begin()
    server.clock.advance(TIMEOUT_S)
    assert refusal(fetching)[0] == "timeout"
    assert server.cancelled == 1


def test_a_refused_connection_says_so_in_one_word() -> None:
    assert refusal(Server("no").begin()) == ("unreachable", "ConnectionRefusedError")


@pytest.mark.parametrize(
    "sent",
    [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", b"HTTP/1.1 200 OK\r\nCont"],
    ids=["nothing", "no HTTP", "cut short", "half a head"],
)
def test_an_answer_that_is_none_is_unreachable(sent: bytes) -> None:
    server = Server()
    fetching = server.begin()
    server.send(sent)
    if not fetching.called:
        server.hang_up()
    result, why = refusal(fetching)
    assert result == "unreachable"
    assert "garbage" not in why


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"], ids=["head", "body"])
def test_a_fetch_that_is_cancelled_ends_its_connection(sent: bytes) -> None:
    server = Server()
    fetching = server.begin()
    server.send(sent)
    fetching.cancel()
    failure_of(fetching, CancelledError)
    assert server.lines[-1].aborted
    assert server.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ([], None),
        (["no-store"], None),
        (["max-age=60"], 60),
        (["Public, Max-Age=60"], 60),
        (["public", "max-age=60"], 60),
        (['max-age="60"'], 60),
        (["s-maxage=5"], None),
        (["x-max-age=5"], None),
        (["max-age=-5"], None),
        (["max-age=5.5"], None),
        (["max-age=" + "9" * 30], None),
        (["max-age=x"], None),
    ],
)
def test_max_age_is_read_where_it_is_sound(values: list[str], seconds: int | None) -> None:
    assert max_age_of(values) == seconds
