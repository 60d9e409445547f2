"""Replies as bytes: one framing each, no body where none may be, and nothing that is cut looks complete."""

import pytest
from deferreds import failure_of, success_of
from twisted.internet.defer import CancelledError, Deferred

from bakerygw.core.http import Reply
from tests.edge.edge_fakes import App, Client, Source, answers, give, request

OLD = b"GET / HTTP/1.0\r\nHost: a\r\n\r\n"


def asked(data: bytes = request()) -> Client:
    return Client(App(lambda _: None)).send(data)


def delivered(reply: Reply, data: bytes = request()) -> tuple[Client, "Deferred[str | None]"]:
    client = asked(data)
    return client, give(client.app.exchanges[0], reply)


def test_a_reply_in_memory_goes_out_in_one_piece_with_its_length():
    client, end = delivered(Reply(status=200, headers=((b"A", b"b"),), body=b"hello"))
    assert success_of(end) is None
    assert client.wire.written == (
        b"HTTP/1.1 200 OK\r\nA: b\r\nDate: Tue, 14 Nov 2023 22:13:20 GMT\r\nContent-Length: 5\r\n\r\nhello"
    )
    assert client.app.exchanges[0].bytes_out == 5


def test_a_service_dates_its_own_replies():
    client, _ = delivered(Reply(status=200, headers=((b"date", b"yesterday"),)))
    assert client.only().headers[b"date"] == [b"yesterday"]


def test_the_date_moves_on():
    client = Client().send(request())
    client.clock.advance(61)
    client.send(request())
    assert [answer.headers[b"date"] for answer in client.answers()] == [
        [b"Tue, 14 Nov 2023 22:13:20 GMT"],
        [b"Tue, 14 Nov 2023 22:14:21 GMT"],
    ]


def test_an_unknown_status_has_no_phrase():
    assert delivered(Reply(status=299))[0].wire.written.startswith(b"HTTP/1.1 299 \r\n")


def test_an_empty_reply_says_so():
    assert delivered(Reply(status=200))[0].only().headers[b"content-length"] == [b"0"]


def test_a_body_that_is_here_is_not_streamed():
    client, end = delivered(Reply(status=200, body=Source(None, b"hello")))
    assert client.only().headers[b"content-length"] == [b"5"]
    assert success_of(end) is None


def test_a_body_of_unknown_length_is_chunked():
    source = Source()
    client, end = delivered(Reply(status=200, body=source))
    source.sink.write(b"hello")
    source.sink.write(b"")
    source.sink.write(b" world")
    assert not end.called
    source.sink.done()
    answer = client.only()
    assert answer.body == b"hello world"
    assert b"content-length" not in answer.headers
    assert success_of(end) is None
    assert client.app.exchanges[0].bytes_out == 11


def test_a_body_of_known_length_is_not_chunked():
    source = Source(5)
    client, _ = delivered(Reply(status=200, body=source))
    source.sink.write(b"hello")
    source.sink.done()
    assert client.only().headers[b"content-length"] == [b"5"]
    assert b"transfer-encoding" not in client.only().headers


def test_http_1_0_is_told_the_end_by_the_end_of_the_connection():
    source = Source()
    client, _ = delivered(Reply(status=200, body=source), OLD)
    source.sink.write(b"hello")
    source.sink.done()
    assert client.wire.written.endswith(b"Connection: close\r\n\r\nhello")
    assert b"Transfer-Encoding" not in client.wire.written
    assert client.wire.closed


@pytest.mark.parametrize("length", [None, 10])
@pytest.mark.parametrize("data", [request(), OLD])
def test_a_cut_body_resets_the_connection_and_never_looks_complete(length, data):
    source = Source(length)
    client, end = delivered(Reply(status=200, body=source), data)
    source.sink.write(b"hello")
    source.sink.cut("upstream_truncated")
    assert success_of(end) == "upstream_truncated"
    assert client.wire.aborted
    assert not client.wire.closed
    assert not client.wire.written.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("body", [b"hell", b"hello!"])
def test_a_source_that_breaks_its_promise_of_a_length_resets_the_connection(body):
    source = Source(5)
    client, _ = delivered(Reply(status=200, body=source))
    client.send(request(b"GET", b"/next"))
    source.sink.write(body)
    source.sink.done()
    assert client.wire.aborted
    assert client.app.targets == [b"/"]


HEAD = request(b"HEAD")


@pytest.mark.parametrize(
    ("reply", "length"),
    [
        (Reply(status=200, body=b"hello"), [b"5"]),
        (Reply(status=200, body=Source(None, b""), length=7), [b"7"]),
        (Reply(status=200, body=Source(7), length=7), [b"7"]),
        (Reply(status=200, body=Source(), length=0), [b"0"]),
        (Reply(status=200, body=Source(None, b"")), None),
        (Reply(status=200, body=Source()), None),
        (Reply(status=200, body=b"x" * 500_000), [b"500000"]),
    ],
)
def test_head_tells_the_length_that_is_known_and_sends_no_body(reply, length):
    client, end = delivered(reply, HEAD + request(b"GET", b"/next"))
    assert success_of(end) is None
    (answer,) = answers(client.wire.written, bodiless=True)
    assert answer.headers.get(b"content-length") == length
    assert b"transfer-encoding" not in answer.headers
    assert client.app.targets == [b"/", b"/next"]


@pytest.mark.parametrize(("status", "length", "told"), [(204, 5, None), (304, None, None), (304, 5, [b"5"])])
@pytest.mark.parametrize("body", [b"", b"hello", Source(), Source(5)])
def test_204_and_304_have_no_body(status, length, told, body):
    if status == 304 and length is None and body == b"hello":
        told = [b"5"]
    client, _ = delivered(Reply(status=status, body=body, length=length))
    (answer,) = answers(client.wire.written, bodiless=True)
    if status == 204 or body != b"hello":
        assert answer.headers.get(b"content-length") == told
    assert b"transfer-encoding" not in answer.headers


def test_an_unwanted_stream_is_stopped():
    source = Source()
    delivered(Reply(status=200, body=source), HEAD)
    assert source.calls == ["stop"]


def test_cancelling_stops_the_source():
    source = Source()
    _, end = delivered(Reply(status=200, body=source))
    end.cancel()
    failure_of(end, CancelledError)
    assert source.calls == ["start", "stop"]


def test_a_reply_may_end_the_connection():
    client, _ = delivered(Reply(status=200, close=True))
    assert client.only().headers[b"connection"] == [b"close"]
    assert client.wire.closed


def test_a_stream_may_end_before_it_is_started_whole():
    class Sudden(Source):
        def start(self, sink):
            super().start(sink)
            sink.write(b"x" * 200_000)
            sink.done()

    source = Sudden()
    client = Client(App(lambda _: None), stalled=True).send(request())
    assert success_of(give(client.app.exchanges[0], Reply(status=200, body=source))) is None
    assert source.calls == ["start", "pause"]
    assert client.only().body == b"x" * 200_000


def test_a_large_body_in_memory_has_its_length():
    client, end = delivered(Reply(status=200, body=b"x" * 300_001))
    assert success_of(end) is None
    assert client.only().headers[b"content-length"] == [b"300001"]
    assert client.only().body == b"x" * 300_001


def test_a_large_body_in_memory_is_let_go_when_the_client_leaves():
    client = Client(App(lambda _: None), stalled=True).send(request())
    end = give(client.app.exchanges[0], Reply(status=200, body=b"x" * 300_001))
    end.cancel()
    failure_of(end, CancelledError)
    written = len(client.wire.written)
    client.wire.drain()
    assert len(client.wire.written) == written
