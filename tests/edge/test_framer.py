"""What bytes mean, and which mean nothing: each refusal ends the connection, and nothing behind it is a request."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bakerygw.core.heads import TrustedProxies
from bakerygw.core.http import RequestHead
from bakerygw.core.problem import Refused
from bakerygw.edge.body import RequestBody
from bakerygw.edge.framer import ChannelLimits, Framer, Framing
from tests.edge.edge_fakes import HOST, OK, Client, Sink, give, request

SMUGGLED = request(b"GET", b"/smuggled")
CHUNKED = b"Transfer-Encoding: chunked"


def head(*lines: bytes, start: bytes = b"POST / HTTP/1.1", host: bytes = HOST) -> bytes:
    return start + b"\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def one_by_one(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def cuts(data: bytes) -> list[list[bytes]]:
    """`data` whole, byte by byte, and in two pieces, cut at every place (long data: at one in 97)."""
    step = 1 if len(data) < 1000 else 97
    return [[data], one_by_one(data), *([data[:at], data[at:]] for at in range(1, len(data), step))]


def refused(data: bytes, status: int, code: str) -> None:
    """However it is cut up, `data` gets this one answer, and the connection is over."""
    for pieces in cuts(data + SMUGGLED):
        client = Client()
        client.send(*pieces)
        answer = client.only()
        assert (answer.status, answer.problem()["code"]) == (status, code)
        assert answer.headers[b"connection"] == [b"close"]
        assert client.wire.half_closed
        assert client.app.targets == []
        client.send(SMUGGLED)
        assert client.app.targets == []
        client.wait(3)
        assert client.wire.closed


MALFORMED_HEADS = {
    "length and chunked": head(b"Content-Length: 4", CHUNKED),
    "chunked and length": head(CHUNKED, b"Content-Length: 4"),
    "two lengths": head(b"Content-Length: 4", b"Content-Length: 4"),
    "listed lengths": head(b"Content-Length: 4, 4"),
    "plus": head(b"Content-Length: +4"),
    "minus": head(b"Content-Length: -4"),
    "hexadecimal length": head(b"Content-Length: 0x4"),
    "empty length": head(b"Content-Length:"),
    "spaced length": head(b"Content-Length: 4 4"),
    "5000 digits": head(b"Content-Length: " + b"1" * 5000),
    "sixteen digits": head(b"Content-Length: " + b"9" * 16),
    "many zeros": head(b"Content-Length: " + b"0" * 16),
    "identity": head(b"Transfer-Encoding: identity"),
    "identity with length": head(b"Transfer-Encoding: identity", b"Content-Length: 0"),
    "gzip, chunked": head(b"Transfer-Encoding: gzip, chunked"),
    "chunked twice": head(CHUNKED, CHUNKED),
    "chunked, chunked": head(b"Transfer-Encoding: chunked, chunked"),
    "chunked, identity": head(b"Transfer-Encoding: chunked, identity"),
    "other coding": head(b"Transfer-Encoding: xchunked"),
    "vertical tab": head(b"Transfer-Encoding: \x0bchunked"),
    "chunked in 1.0": head(CHUNKED, start=b"POST / HTTP/1.0"),
    "space before colon": head(b"Content-Length : 0"),
    "obs-fold": head(b"A: b\r\n c"),
    "obs-fold with tab": head(b"A: b\r\n\tc"),
    "folded coding": head(b"Transfer-Encoding:\r\n chunked"),
    "bare LF after the request line": b"GET / HTTP/1.1\n" + HOST + b"\r\n",
    "bare LF after a field": head(b"A: b\nC: d"),
    "bare LF at the end": b"GET / HTTP/1.1\r\n" + HOST + b"\n",
    "bare CR": head(b"A: b\rC: d"),
    "NUL": head(b"A: \x00"),
    "control character": head(b"A: \x01"),
    "DEL": head(b"A: \x7f"),
    "8-bit name": head(b"A\xe9: b"),
    "no name": head(b": b"),
    "no colon": head(b"nonsense"),
    "no Host": head(host=b""),
    "two Hosts": head(b"Host: bakery.example"),
    "empty Host": head(host=b"Host:\r\n"),
    "Host with a user": head(host=b"Host: user@bakery.example\r\n"),
    "Host with a path": head(host=b"Host: a/b\r\n"),
    "Host with a space": head(host=b"Host: a b\r\n"),
    "Host with a bad port": head(host=b"Host: a:x\r\n"),
    "open bracket": head(host=b"Host: [::1\r\n"),
    "absolute form": head(start=b"GET http://bakery.example/ HTTP/1.1"),
    "authority in the target": head(start=b"GET @evil/ HTTP/1.1"),
    "no slash": head(start=b"GET admin HTTP/1.1"),
    "asterisk for GET": head(start=b"GET * HTTP/1.1"),
    "fragment": head(start=b"GET /a#b HTTP/1.1"),
    "8-bit target": head(start=b"GET /\xe9 HTTP/1.1"),
    "DEL in the target": head(start=b"GET /\x7f HTTP/1.1"),
    "dot segments": head(start=b"GET /a/../b HTTP/1.1"),
    "encoded slash": head(start=b"GET /a%2fb HTTP/1.1"),
    "backslash": head(start=b"GET /a\\b HTTP/1.1"),
    "two spaces in the request line": head(start=b"GET /a b HTTP/1.1"),
    "HTTP/1.2": head(start=b"GET / HTTP/1.2"),
    "HTTP/2.0": head(start=b"GET / HTTP/2.0"),
    "other protocol": head(start=b"GET / XTTP/1.1"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("data", MALFORMED_HEADS.values(), ids=MALFORMED_HEADS)
def test_a_malformed_head_is_400_and_the_end(data):
    refused(data, 400, "bad-request")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (head(start=b"CONNECT a.example:443 HTTP/1.1"), 405, "method-not-allowed"),
        (head(start=b"TRACE / HTTP/1.1"), 405, "method-not-allowed"),
        (head(start=b"PURGE / HTTP/1.1"), 501, "method-not-implemented"),
        (head(start=b"BAKE / HTTP/1.1"), 501, "method-not-implemented"),
        (head(start=b"get / HTTP/1.1"), 501, "method-not-implemented"),
        (head(b"Expect: 200-ok"), 417, "expectation-failed"),
        (head(b"Expect: 100-continue", b"Expect: 100-continue"), 417, "expectation-failed"),
        (head(start=b"GET /" + b"a" * 8192 + b" HTTP/1.1"), 414, "uri-too-long"),
        (head(*[b"A: b"] * 100), 431, "headers-too-large"),
        (head(b"A: " + b"b" * 16_400), 431, "headers-too-large"),
        (head(*[b"A: " + b"b" * 1000] * 17), 431, "headers-too-large"),
    ],
)
def test_other_refusals_have_their_own_codes(data, status, code):
    refused(data, status, code)


def test_405_names_the_methods_that_there_are():
    client = Client().send(head(start=b"TRACE / HTTP/1.1"))
    assert client.only().headers[b"allow"] == [b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"]


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nA: ", b"GET / HTTP/1.1\r\n" + HOST, b"GET /"])
def test_a_head_that_never_ends_is_refused_before_it_is_large(start):
    client = Client().send(start)
    sent = 0
    while not client.wire.written:
        client.send(b"b" * 1000)
        sent += 1000
        assert sent < 40_000
    assert client.only().status in (414, 431)


MALFORMED_CHUNKS = {
    "space before the size": b" 3\r\nabc\r\n0\r\n\r\n",
    "space after the size": b"3 \r\nabc\r\n0\r\n\r\n",
    "0x": b"0x3\r\nabc\r\n0\r\n\r\n",
    "minus": b"-3\r\nabc\r\n0\r\n\r\n",
    "overflow": b"FFFFFFFFFFFFFFFFF\r\nabc",
    "bare LF after the size": b"3\nabc\r\n0\r\n\r\n",
    "bare LF in an extension": b"3;a\nabc\r\n0\r\n\r\n",
    "control character in an extension": b"3;\x01\r\nabc\r\n0\r\n\r\n",
    "bare LF after the data": b"3\r\nabc\n0\r\n\r\n",
    "more than its size": b"3\r\nabcd\r\n0\r\n\r\n",
    "control character in a trailer": b"0\r\nA: \x01\r\n\r\n",
    "a length in a trailer": b"0\r\nContent-Length: 3\r\n\r\n",
    "bare LF in a trailer": b"0\r\nA: b\n\r\n",
    "large trailers": b"0\r\n" + (b"A: " + b"b" * 500 + b"\r\n") * 9 + b"\r\n",
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("chunks", MALFORMED_CHUNKS.values(), ids=MALFORMED_CHUNKS)
def test_a_malformed_chunk_cuts_the_body_and_ends_the_connection(chunks, last):
    data = head(CHUNKED, *[b"Connection: close"] * last) + chunks + SMUGGLED
    for pieces in cuts(data):
        sink = Sink()
        client = Client()
        client.app.respond = lambda exchange, sink=sink: exchange.body.start(sink)
        client.send(*pieces)
        assert client.app.targets == [b"/"]
        assert sink.end in ("bad-request", "headers-too-large")
        assert b"GET" not in sink.data


@pytest.mark.parametrize(
    "chunks",
    [
        b"1\r\na\r\n" * 2000,
        b"1;" + b"e" * 1000 + b"\r\na\r\n",
        b"1;" + b"e" * 1000,
        b"0\r\nTrailer: " + b"t" * 1000,
    ],
)
def test_framing_that_outweighs_the_body_ends_it(chunks):
    sink = Sink()
    client = Client()
    client.app.respond = lambda exchange: exchange.body.start(sink)
    client.send(head(CHUNKED))
    sent = 0
    following = chunks if chunks.endswith(b"a\r\n") else b"e" * 1000
    client.send(chunks)
    while sink.end is None:
        client.send(following)
        sent += len(following)
        assert sent < 64_000
    assert sink.end == "bad-request"


def body_of(data: bytes) -> tuple[bytes, Client]:
    """The body, cut up in both ways, of the one request in `data`."""
    bodies = set()
    for pieces in cuts(data):
        sink = Sink()
        client = Client()
        client.app.respond = lambda exchange, sink=sink: exchange.body.start(sink)
        client.send(*pieces)
        assert len(client.app.exchanges) == 1
        assert sink.end == "done"
        bodies.add(sink.data)
    (body,) = bodies
    return body, client


def test_bodies_arrive_as_they_were_sent_in_either_framing():
    assert body_of(head(b"Content-Length: 5") + b"hello")[0] == b"hello"
    assert body_of(head(b"Content-Length: 005") + b"hello")[0] == b"hello"
    assert body_of(head(CHUNKED) + b"3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n")[0] == b"hello"
    assert body_of(head(b"Transfer-Encoding: Chunked ") + b"5\r\nhello\r\n000\r\n\r\n")[0] == b"hello"


def test_many_small_chunks_end_the_body_even_in_one_read():
    sink = Sink()
    client = Client()
    client.app.respond = lambda exchange: exchange.body.start(sink)
    client.send(head(CHUNKED), b"a\r\n0123456789\r\n" * 2000)
    assert sink.end == "bad-request"


def test_a_thousand_small_chunks_pass():
    assert body_of(head(CHUNKED) + b"1\r\na\r\n" * 1000 + b"0\r\n\r\n")[0] == b"a" * 1000


class Heard:
    """A framer's listener that keeps nothing but the targets."""

    def __init__(self) -> None:
        self.targets: list[bytes] = []
        self.complete = 0

    def head_began(self) -> None:
        pass

    def request_began(self, head: RequestHead, framing: Framing) -> RequestBody:
        self.targets.append(head.target)
        return RequestBody(self, head.length)  # type: ignore[arg-type]

    def request_complete(self) -> None:
        self.complete += 1


class Broken(Heard):
    """A listener with a defect."""

    def request_complete(self) -> None:
        raise ZeroDivisionError


def test_a_defect_of_whoever_listens_is_logged_and_not_told_as_the_clients(logged_failures):
    framer = Framer(Broken(), ChannelLimits(), TrustedProxies(()), peer="192.0.2.1", tls=False)
    with pytest.raises(Refused) as refused:
        framer.feed(request())
    assert (refused.value.problem.code, refused.value.problem.close) == ("internal-error", True)
    assert isinstance(logged_failures.pop().value.__context__, ZeroDivisionError)


@pytest.mark.parametrize("offer", [(), (b"Upgrade: h2c",)])
@pytest.mark.parametrize("body", [b"", b"hello"])
def test_nothing_behind_a_last_request_is_parsed(offer, body):
    heard = Heard()
    framer = Framer(heard, ChannelLimits(), TrustedProxies(()), peer="192.0.2.1", tls=False)
    data = request(b"POST", b"/a", b"Connection: upgrade, close", *offer, body=body) + SMUGGLED + b"\x00"
    for byte in one_by_one(data):
        framer.feed(byte)
    framer.feed(SMUGGLED)
    assert (heard.targets, heard.complete) == ([b"/a"], 1)


def test_large_chunks_and_signed_ones_pass():
    signed = b"10000;chunk-signature=" + b"f" * 64 + b"\r\n" + b"x" * 65_536 + b"\r\n"
    sink = Sink()
    client = Client()
    client.app.respond = lambda exchange: exchange.body.start(sink)
    data = head(CHUNKED) + signed * 40 + b"0\r\n\r\n"
    client.send(*(data[at : at + 1400] for at in range(0, len(data), 1400)))
    assert (len(sink.data), sink.end) == (40 * 65_536, "done")


def test_a_trailer_is_no_header():
    trailers = b"Authorization: Bearer stolen\r\nHost: evil\r\n"
    body, client = body_of(head(CHUNKED) + b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n")
    assert body == b"hello"
    fields = client.app.exchanges[0].head.fields
    assert b"authorization" not in fields
    assert fields[b"host"] == (b"bakery.example",)


def test_a_trailer_does_not_leak_into_the_next_request():
    client = Client().send(head(CHUNKED) + b"0\r\nX-User-Id: admin\r\n\r\n" + SMUGGLED)
    assert client.app.targets == [b"/", b"/smuggled"]
    assert b"x-user-id" not in client.app.exchanges[1].head.fields


def test_space_around_a_value_is_no_part_of_it_and_other_bytes_are():
    client = Client().send(head(b"A: \t b \xe9 c \t", b"Empty: \t", start=b"GET / HTTP/1.1"))
    fields = client.app.exchanges[0].head.fields
    assert fields[b"a"] == (b"b \xe9 c",)
    assert fields[b"empty"] == (b"",)


def test_empty_lines_before_a_request_are_skipped():
    assert Client().send(b"\r\n\r\n" + request()).only().status == 200


UPGRADES = [
    (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"),
    (
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZQ==",
    ),
]


@pytest.mark.parametrize("offer", UPGRADES)
def test_an_offer_to_upgrade_is_not_taken(offer):
    data = request(b"GET", b"/a", *offer) + request(b"GET", b"/b", *offer) + request(b"GET", b"/c")
    for pieces in ([data], one_by_one(data)):
        client = Client().send(*pieces)
        assert client.app.targets == [b"/a", b"/b", b"/c"]
        assert [answer.status for answer in client.answers()] == [200, 200, 200]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("offer", UPGRADES)
@pytest.mark.parametrize("framing", [b"Content-Length: 5", CHUNKED])
def test_the_body_of_a_request_that_offers_to_upgrade_is_read(offer, framing, last):
    offer = tuple(line.replace(b"Upgrade,", b"close, Upgrade,") for line in offer) if last else offer
    offer = (*offer, b"Connection: close") if last else offer
    body = b"hello" if framing != CHUNKED else b"5\r\nhello\r\n0\r\n\r\n"
    data = head(framing, *offer) + body + request(b"GET", b"/after")
    for pieces in ([data], one_by_one(data)):
        sink = Sink()
        client = Client()

        client.app.respond = lambda exchange, sink=sink: exchange.body.start(sink)
        client.send(*pieces)
        assert (sink.data, sink.end) == (b"hello", "done")
        assert client.app.targets == [b"/"]
        sent, client.app.respond = client.app.exchanges[0], lambda _: OK
        give(sent, OK)
        assert client.app.targets == ([b"/"] if last else [b"/", b"/after"])


def test_a_thousand_offers_to_upgrade_in_one_read_are_answered():
    data = request(b"GET", b"/", b"Connection: upgrade", b"Upgrade: x") * 1000
    client = Client().send(data).turns(200)
    assert len(client.answers()) == 1000


def test_what_follows_the_last_request_is_nothing():
    client = Client().send(request(b"GET", b"/", b"Connection: keep-alive, close") + b"\x00GARBAGE" + SMUGGLED)
    assert client.only().status == 200
    assert client.app.targets == [b"/"]
    assert client.wire.closed


def test_a_read_that_ends_in_the_next_head_is_not_a_large_head():
    client = Client()
    big = request(b"POST", b"/a", body=b"x" * 60_000)
    client.send(big[:20], big[20:] + request()[:10], request()[10:])
    assert client.app.targets == [b"/a", b"/"]


TOKENS = st.text("abcdefXYZ-!#$%&'*+.^`|~0123456789", min_size=1, max_size=20).map(str.encode)
VALUES = st.binary(max_size=60).map(lambda raw: bytes(b for b in raw if b >= 0x21 and b != 0x7F))
FRAMING = {b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"}


@given(
    pairs=st.lists(st.tuples(TOKENS.filter(lambda name: name.lower() not in FRAMING), VALUES), max_size=20),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
@settings(max_examples=80, deadline=None)
def test_fields_are_read_as_sent_wherever_the_bytes_are_cut(pairs, cuts):
    data = request(b"GET", b"/", *(name + b": " + value for name, value in pairs))
    edges = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    client = Client().send(*(data[a:b] for a, b in pairwise(edges)))
    (exchange,) = client.app.exchanges
    assert exchange.head.headers == ((b"Host", b"bakery.example"), *pairs)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
@settings(max_examples=200, deadline=None)
def test_no_bytes_break_the_channel_and_every_answer_is_whole(junk, cuts):
    data = b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n\r\n" + junk if len(junk) % 2 else junk
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    client = Client().send(*(data[a:b] for a, b in pairwise(edges)))
    for answer in client.answers():
        assert answer.status in (200, 400, 405, 501)
