"""What a service may say, and what the connection makes of it."""

import pytest
from deferreds import failure_of, success_of
from upstream_fakes import Line, read

from bakerygw.ports import UpstreamFailed

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

SOUND = [
    ("GET", OK + b"Content-Length: 2\r\n\r\nhi", 200, b"hi"),
    ("GET", OK + b"Content-Length: 002 \r\n\r\nhi", 200, b"hi"),
    ("GET", OK + b"content-length: 0\r\n\r\n", 200, b""),
    ("GET", CHUNKED + b"1\r\nh\r\n1;ext=1\r\ni\r\n0\r\n\r\n", 200, b"hi"),
    ("GET", CHUNKED + b"0\r\n\r\n", 200, b""),
    ("GET", CHUNKED + b"2\r\nhi\r\n0\r\nX-Trailer: 1\r\n\r\n", 200, b"hi"),
    ("GET", CHUNKED + b"0\r\nConnection: close\r\n\r\n", 200, b""),
    ("HEAD", OK + b"Content-Length: 5\r\n\r\n", 200, b""),
    ("HEAD", CHUNKED, 200, b""),
    ("HEAD", OK + b"\r\n", 200, b""),
    ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n", 204, b""),
    ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n", 304, b""),
    ("GET", b"HTTP/1.1 205 Reset\r\nContent-Length: 0\r\n\r\n", 205, b""),
    ("GET", b"HTTP/1.1 599\r\nContent-Length: 0\r\n\r\n", 599, b""),
]
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 7\r\n\r\n"


@pytest.mark.parametrize("at_a_time", [0, 1, 2, 7])
@pytest.mark.parametrize(("method", "raw", "status", "body"), SOUND)
def test_a_sound_response_arrives_whole_and_frees_the_connection(
    method: str, raw: bytes, status: int, body: bytes, at_a_time: int
) -> None:
    line = Line()
    answer = line.send(method)
    line.receive(raw, at_a_time=at_a_time)
    response = success_of(answer)
    sink = read(response)
    assert (response.status, response.authority, sink.data, sink.end) == (status, "sales:8000", body, "done")
    assert line.owner.heard == ["freed"]
    again = line.send()
    line.receive(OK + b"Content-Length: 3\r\n\r\nbye")
    assert success_of(again).body.whole() == b"bye"


@pytest.mark.parametrize("at_a_time", [0, 1])
def test_interim_responses_are_consumed(at_a_time: int) -> None:
    line = Line()
    answer = line.send()
    line.receive(b"HTTP/1.1 100 Continue\r\n\r\n" + INTERIM * 9, at_a_time=at_a_time)
    assert not answer.called
    line.receive(OK + b"A: b\r\nContent-Length: 1\r\n\r\nx", at_a_time=at_a_time)
    response = success_of(answer)
    assert response.headers == ((b"A", b"b"), (b"Content-Length", b"1"))
    assert read(response).data == b"x"


@pytest.mark.parametrize(
    ("method", "raw", "length"),
    [
        ("GET", OK + b"Content-Length: 5\r\n\r\nhello", 5),
        ("GET", CHUNKED + b"0\r\n\r\n", None),
        ("HEAD", OK + b"Content-Length: 5\r\n\r\n", 5),
        ("HEAD", OK + b"\r\n", None),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n", 4),
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n", 0),
        ("GET", OK + b"\r\nuntil the end", None),
    ],
)
def test_the_promised_length_is_told(method: str, raw: bytes, length: int | None) -> None:
    line = Line()
    answer = line.send(method)
    line.receive(raw)
    assert success_of(answer).body.length == length


def test_headers_come_as_sent_and_a_trailer_never_becomes_one() -> None:
    line = Line()
    answer = line.send()
    line.receive(OK + b"x-A:  1 \t\r\nX-a:\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nSet-Cookie: evil=1\r\n\r\n")
    assert success_of(answer).headers == ((b"x-A", b"1"), (b"X-a", b""), (b"Transfer-Encoding", b"chunked"))


ROGUE = {
    "not HTTP": b"hello\r\n\r\n",
    "another protocol": b"RTSP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "line end before the status line": b"\r\n" + OK + b"Content-Length: 0\r\n\r\n",
    "HTTP/2": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
    "status 600": b"HTTP/1.1 600 No\r\nContent-Length: 0\r\n\r\n",
    "status 999": b"HTTP/1.1 999 No\r\nContent-Length: 0\r\n\r\n",
    "status 099": b"HTTP/1.1 099 No\r\nContent-Length: 0\r\n\r\n",
    "status 99999": b"HTTP/1.1 99999 No\r\nContent-Length: 0\r\n\r\n",
    "unsolicited 101": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nraw",
    "bare 101": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "eleven interim": INTERIM * 11,
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    "two different lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi!",
    "listed lengths": OK + b"Content-Length: 2, 2\r\n\r\nhi",
    "signed length": OK + b"Content-Length: +2\r\n\r\nhi",
    "empty length": OK + b"Content-Length:\r\n\r\n",
    "endless length": OK + b"Content-Length: 1" + b"0" * 15 + b"\r\n\r\nhi",
    "length and coding": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding and length": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "two codings": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "gzip, chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "gzip": OK + b"Transfer-Encoding: gzip\r\n\r\nhi",
    "identity": OK + b"Transfer-Encoding: identity\r\n\r\nhi",
    "tab behind chunked": OK + b"Transfer-Encoding: chunked\t\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "xchunked": OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked in 1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "bare LF in a value": OK + b"A: b\nC: d\r\n\r\n",
    "folded line": OK + b"A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "NUL in a value": OK + b"A: \0\r\nContent-Length: 0\r\n\r\n",
    "escape in a value": OK + b"A: \x1b[2J\r\nContent-Length: 0\r\n\r\n",
    "DEL in a value": OK + b"A: \x7f\r\nContent-Length: 0\r\n\r\n",
    "CR in a value": OK + b"A: a\rb\r\nContent-Length: 0\r\n\r\n",
    "space before the colon": OK + b"Content-Length : 0\r\n\r\n",
    "no name": OK + b": a\r\nContent-Length: 0\r\n\r\n",
    "101 header fields": OK + b"A: b\r\n" * 100 + b"Content-Length: 0\r\n\r\n",
    "large head": OK + b"A: " + b"b" * 33_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "head without end": OK + b"A: " + b"b" * 33_000,
    "reason without end": b"HTTP/1.1 200 " + b"b" * 33_000,
}


@pytest.mark.parametrize("at_a_time", [0, 1])
@pytest.mark.parametrize("raw", ROGUE.values(), ids=ROGUE.keys())
def test_a_rogue_response_is_refused_and_ends_the_connection(raw: bytes, at_a_time: int) -> None:
    line = Line()
    answer = line.send()
    line.receive(raw, at_a_time=at_a_time)
    failure = failure_of(answer, UpstreamFailed)
    assert (failure.code, failure.error) == ("upstream-invalid", "http_protocol_error")
    assert line.transport.aborted
    assert line.owner.heard == ["gone"]


@pytest.mark.parametrize("raw", [OK + b"A: b\r\n" * 99, OK + b"A: " + b"b" * 32_000 + b"\r\n"])
def test_a_large_head_within_the_limits_passes(raw: bytes) -> None:
    line = Line()
    answer = line.send()
    line.receive(raw + b"Content-Length: 0\r\n\r\n")
    assert success_of(answer).status == 200


UNFIT = {
    "close": ("GET", OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi"),
    "Close among others": ("GET", OK + b"Connection: keep-alive, ClOsE\r\nContent-Length: 2\r\n\r\nhi"),
    "close in a second field": ("GET", OK + b"Connection: x\r\nconnection: close\r\nContent-Length: 2\r\n\r\nhi"),
    "HTTP/1.0": ("GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi"),
    "HTTP/1.0 kept alive": ("GET", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi"),
    "surplus text": ("GET", OK + b"Content-Length: 2\r\n\r\nhi!"),
    "surplus line end": ("GET", OK + b"Content-Length: 2\r\n\r\nhi\r\n"),
    "surplus response": ("GET", OK + b"Content-Length: 2\r\n\r\nhi" + OK + b"Content-Length: 2\r\n\r\nno"),
    "surplus after chunks": ("GET", CHUNKED + b"2\r\nhi\r\n0\r\n\r\n\r\n"),
    "surplus text after chunks": ("GET", CHUNKED + b"2\r\nhi\r\n0\r\n\r\nxx"),
    "body to HEAD": ("HEAD", OK + b"Content-Length: 2\r\n\r\nhi"),
    "chunks to HEAD": ("HEAD", CHUNKED + b"2\r\nhi\r\n0\r\n\r\n"),
    "half a chunk to HEAD": ("HEAD", CHUNKED + b"2"),
    "body in 204": ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nhi"),
    "body in 205": ("GET", b"HTTP/1.1 205 Reset\r\nContent-Length: 2\r\n\r\nhi"),
    "body in 304": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nhi"),
}


@pytest.mark.parametrize(("method", "raw"), UNFIT.values(), ids=UNFIT.keys())
def test_the_response_stands_but_its_connection_is_not_used_again(method: str, raw: bytes) -> None:
    line = Line()
    answer = line.send(method)
    line.receive(raw)
    response = success_of(answer)
    bodiless = method == "HEAD" or response.status != 200
    assert response.body.whole() == (b"" if bodiless else b"hi")
    assert line.transport.aborted
    assert line.owner.heard == ["gone"]


def test_surplus_bytes_are_seen_in_whatever_pieces_they_come() -> None:
    for cut in range(1, 40):
        line = Line()
        answer = line.send()
        raw = OK + b"Content-Length: 2\r\n\r\n\r\n\r\n"
        line.receive(raw[:cut])
        line.receive(raw[cut:])
        assert read(success_of(answer)).data == b"\r\n"
        assert line.owner.heard[-1] == "gone", cut
        assert line.transport.aborted


@pytest.mark.parametrize("surplus", [b"\r\n", b"\n", b"\r", b"\n\r\n\r\n", b"\r\n" * 9])
def test_surplus_line_ends_behind_chunks_are_seen_wherever_the_bytes_are_cut(surplus: bytes) -> None:
    raw = CHUNKED + b"2\r\nhi\r\n0\r\n\r\n" + surplus
    for cut in range(len(raw)):
        line = Line()
        answer = line.send()
        line.receive(raw[:cut])
        line.receive(raw[cut:])
        assert read(success_of(answer)).data == b"hi"
        assert line.owner.heard[-1] == "gone", cut


def test_bytes_while_idle_end_the_connection() -> None:
    line = Line()
    line.receive(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert line.transport.aborted
    assert line.owner.heard == ["gone"]


@pytest.mark.parametrize(
    ("raw", "cleanly", "data", "end"),
    [
        (OK + b"\r\nall of it", True, b"all of it", "done"),
        (OK + b"Connection: close\r\n\r\nall of it", True, b"all of it", "done"),
        (OK + b"\r\nnot all", False, b"not all", "cut: upstream closed early"),
        (OK + b"Content-Length: 9\r\n\r\nnot all", True, b"not all", "cut: upstream closed early"),
        (CHUNKED + b"7\r\nnot all\r\n", True, b"not all", "cut: upstream closed early"),
        (CHUNKED + b"9\r\nnot all", True, b"not all", "cut: upstream closed early"),
        (CHUNKED + b"7\r\nnot all\r\n0\r\n", True, b"not all", "cut: upstream closed early"),
    ],
)
def test_the_end_of_the_connection_ends_a_body_as_it_deserves(raw: bytes, cleanly: bool, data: bytes, end: str) -> None:
    line = Line()
    answer = line.send()
    line.receive(raw)
    sink = read(success_of(answer))
    line.lose(cleanly=cleanly)
    assert (sink.data, sink.end) == (data, end)
    assert line.owner.heard == ["gone"]


def test_a_body_that_turns_malformed_is_cut_after_what_was_sound() -> None:
    line = Line()
    answer = line.send()
    line.receive(CHUNKED + b"2\r\nhi\r\n")
    sink = read(success_of(answer))
    line.receive(b"1\r\n!\r\nzz\r\n")
    assert (sink.data, sink.end) == (b"hi!", "cut: upstream sent a malformed body")
    assert line.transport.aborted


@pytest.mark.parametrize("raw", [b"1;" + b"x" * 40_000, b"0\r\nA: " + b"b" * 40_000, b"0\r\n" + b"A: b\r\n" * 102])
def test_endless_framing_is_cut(raw: bytes) -> None:
    line = Line()
    answer = line.send()
    line.receive(CHUNKED + b"2\r\nhi\r\n")
    sink = read(success_of(answer))
    line.receive(raw, at_a_time=1000)
    assert sink.end == "cut: upstream sent a malformed body"
