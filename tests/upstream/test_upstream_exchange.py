"""Requests on the wire, bodies at the reader's pace, and every wait with its end."""

import pytest
from deferreds import failure_of, success_of
from twisted.internet.defer import CancelledError
from upstream_fakes import FakeSource, Line, RecordingSink, read

from bakerygw.ports import UpstreamFailed
from bakerygw.upstream.connection import Unanswered
from tests.collector import goes_by_itself

OK = b"HTTP/1.1 200 OK\r\n"
SMALL = OK + b"Content-Length: 2\r\n\r\nhi"


@pytest.mark.parametrize(
    ("method", "body", "tail"),
    [
        ("GET", None, b"\r\n"),
        ("DELETE", None, b"\r\n"),
        ("POST", None, b"Content-Length: 0\r\n\r\n"),
        ("PUT", None, b"Content-Length: 0\r\n\r\n"),
        ("PATCH", None, b"Content-Length: 0\r\n\r\n"),
        ("GET", FakeSource(0, b""), b"\r\n"),
        ("POST", FakeSource(0, b""), b"Content-Length: 0\r\n\r\n"),
        ("POST", FakeSource(3, b"abc"), b"Content-Length: 3\r\n\r\nabc"),
        ("DELETE", FakeSource(3, b"abc"), b"Content-Length: 3\r\n\r\nabc"),
        ("POST", FakeSource(None, b"abc"), b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        ("POST", FakeSource(None, b""), b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ],
)
def test_a_request_is_framed_anew_under_the_services_own_host(
    method: str, body: FakeSource | None, tail: bytes
) -> None:
    line = Line()
    line.send(method, headers=((b"aB", b"c"), (b"aB", b"d")), body=body)
    assert line.written == method.encode() + b" /x?y HTTP/1.1\r\nHost: sales:8000\r\naB: c\r\naB: d\r\n" + tail


def test_small_requests_leave_without_delay() -> None:
    assert Line().transport.no_delay


@pytest.mark.parametrize(("length", "wire"), [(5, b"hello"), (None, b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n")])
def test_a_request_body_is_streamed_in_its_own_framing(length: int | None, wire: bytes) -> None:
    line, body = Line(), FakeSource(length)
    answer = line.send("POST", body=body)
    assert body.sink is not None
    for piece in (b"he", b"", b"llo"):
        body.sink.write(piece)
    body.sink.done()
    assert line.written.partition(b"\r\n\r\n")[2] == wire
    line.receive(SMALL)
    assert success_of(answer).body.whole() == b"hi"
    assert line.owner.heard == ["freed"]
    assert line.transport.producer is None


def test_a_request_body_waits_while_the_service_does_not_read() -> None:
    line, body = Line(), FakeSource(None)
    line.send("POST", body=body)
    line.transport.producer.pauseProducing()
    assert body.calls[-1] == "pause"
    line.transport.producer.resumeProducing()
    assert body.calls[-1] == "resume"


def test_the_first_byte_deadline_waits_for_the_buffer_to_empty() -> None:
    line, body = Line(), FakeSource(2)
    answer = line.send("POST", body=body)
    assert body.sink is not None
    body.sink.write(b"hi")
    line.transport.producer.pauseProducing()
    body.sink.done()
    line.clock.advance(20)
    assert not answer.called
    line.transport.producer.resumeProducing()
    line.clock.advance(14.9)
    assert not answer.called
    line.clock.advance(0.2)
    assert failure_of(answer, UpstreamFailed).error == "http_response_timeout"  # type: ignore[attr-defined]


@pytest.mark.parametrize("length", [9, None])
def test_a_cut_request_body_never_looks_complete(length: int | None) -> None:
    line, body = Line(), FakeSource(length)
    answer = line.send("POST", body=body)
    assert body.sink is not None
    body.sink.write(b"half")
    body.sink.cut("client left")
    failure_of(answer, UpstreamFailed)
    assert line.transport.aborted
    assert not line.written.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("pieces", [[b"abc"], [b"abc", b"de"]])
def test_a_body_unlike_its_promised_length_aborts_the_connection(pieces: list[bytes]) -> None:
    line, body = Line(), FakeSource(4)
    answer = line.send("POST", body=body)
    assert body.sink is not None
    for piece in pieces:
        body.sink.write(piece)
    body.sink.done()
    failure_of(answer, UpstreamFailed)
    assert line.transport.aborted
    assert line.written.partition(b"\r\n\r\n")[2] == b"abc"


@pytest.mark.parametrize("rest", [b"", b"late"])
def test_an_early_answer_stops_the_request_and_is_the_last(rest: bytes) -> None:
    line, body = Line(), FakeSource(None)
    answer = line.send("POST", body=body)
    assert body.sink is not None
    body.sink.write(b"half")
    line.receive(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\n" + rest)
    response = success_of(answer)
    assert body.calls[-1] == "stop"
    body.sink.write(b"more")
    body.sink.done()
    sink = read(response)
    if not rest:
        line.receive(b"late")
    assert (response.status, sink.data, sink.end) == (413, b"late", "done")
    assert line.written.endswith(b"4\r\nhalf\r\n")
    assert line.transport.aborted
    assert line.owner.heard == ["gone"]


def test_the_transports_end_stops_the_request_body() -> None:
    line, body = Line(), FakeSource(None)
    answer = line.send("POST", body=body)
    line.lose(cleanly=False)
    failure_of(answer, UpstreamFailed)
    assert body.calls[-1] == "stop"


# Response bodies.


def test_nothing_is_pushed_before_start_and_the_socket_is_not_read_on() -> None:
    line = Line()
    answer = line.send()
    line.receive(OK + b"Content-Length: 9\r\n\r\nabc")
    response = success_of(answer)
    assert line.transport.producerState == "paused"
    assert response.body.whole() is None
    sink = read(response)
    assert sink.data == b"abc"
    assert line.transport.producerState == "producing"
    line.receive(b"defghi")
    assert (sink.data, sink.end) == (b"abcdefghi", "done")


def test_a_slow_reader_pauses_the_service_and_holds_back_what_had_come() -> None:
    line = Line()
    answer = line.send()
    line.receive(OK + b"Content-Length: 4\r\n\r\na")
    body = success_of(answer).body
    sink = RecordingSink(body, slow=True)
    body.start(sink)
    assert (sink.data, line.transport.producerState) == (b"a", "paused")
    line.receive(b"b")
    line.receive(b"c")
    assert sink.data == b"a"
    body.resume()
    assert (sink.data, line.transport.producerState) == (b"abc", "paused")
    line.receive(b"d")
    assert sink.end is None
    body.resume()
    assert sink.data == b"abcd"
    body.resume()
    assert sink.end == "done"


def test_a_body_outlives_its_connections_next_exchange() -> None:
    line = Line()
    answer = line.send()
    line.receive(OK + b"Content-Length: 2\r\n\r\na")
    body = success_of(answer).body
    sink = RecordingSink(body, slow=True)
    body.start(sink)
    line.receive(b"b")
    assert line.owner.heard == ["freed"]
    assert line.transport.producerState == "producing", "an idle connection is watched"
    following = line.send()
    body.resume()
    body.stop()
    line.receive(SMALL)
    assert success_of(following).body.whole() == b"hi"
    assert not line.transport.aborted


def test_a_reader_that_leaves_ends_an_unfinished_exchange_only() -> None:
    line = Line()
    answer = line.send()
    line.receive(OK + b"Content-Length: 4\r\n\r\nab")
    body = success_of(answer).body
    sink = RecordingSink()
    body.start(sink)
    body.stop()
    assert line.transport.aborted
    assert line.owner.heard == ["gone"]
    line.receive(b"cd")
    assert (sink.data, sink.end) == (b"ab", None)


def test_a_reader_may_leave_as_soon_as_it_has_the_head() -> None:
    line = Line()
    line.send().addCallback(lambda response: response.body.stop())
    line.receive(OK + b"Content-Length: 4\r\n\r\nab")
    assert line.transport.aborted
    assert line.owner.heard == ["gone"]


def test_a_whole_body_is_given_once() -> None:
    line = Line()
    answer = line.send()
    line.receive(SMALL)
    body = success_of(answer).body
    assert (body.whole(), body.whole()) == (b"hi", None)


# Deadlines.


@pytest.mark.parametrize(("wait_s", "after_s"), [(None, 15.0), (3.0, 3.0), (40.0, 40.0)])
def test_no_answer_in_time_is_a_timeout(wait_s: float | None, after_s: float) -> None:
    line = Line()
    answer = line.send(wait_s=wait_s)
    line.clock.advance(after_s - 0.1)
    line.receive(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 2")
    assert not answer.called
    line.clock.advance(0.2)
    failure = failure_of(answer, UpstreamFailed)
    assert (failure.code, failure.error) == ("upstream-timeout", "http_response_timeout")  # type: ignore[attr-defined]
    assert line.transport.aborted


def test_a_deadline_moves_with_each_exchange_though_its_timer_does_not() -> None:
    line = Line()
    for _ in range(5):
        answer = line.send()
        line.clock.advance(10)
        line.receive(SMALL)
        success_of(answer)
        assert len(line.clock.getDelayedCalls()) == 1
    short = line.send(wait_s=1)
    line.clock.advance(1)
    failure_of(short, UpstreamFailed)


def test_an_idle_connection_has_no_deadline_and_a_lost_one_no_timer() -> None:
    line = Line()
    answer = line.send()
    line.receive(SMALL)
    success_of(answer)
    line.clock.pump([10] * 10)
    assert line.owner.heard == ["freed"]
    line.send().addErrback(lambda _: None)
    line.lose()
    assert line.clock.getDelayedCalls() == []


def test_a_response_body_that_stalls_is_cut() -> None:
    line = Line()
    answer = line.send()
    line.receive(OK + b"Content-Length: 9\r\n\r\n")
    sink = read(success_of(answer))
    line.clock.advance(29)
    line.receive(b"x")
    line.clock.advance(29)
    assert sink.end is None
    line.clock.advance(2)
    assert sink.end == "cut: upstream idle"
    assert line.transport.aborted


def test_the_clients_slowness_is_not_held_against_the_service() -> None:
    line = Line()
    answer = line.send()
    line.receive(OK + b"Content-Length: 9\r\n\r\nabc")
    body = success_of(answer).body
    sink = RecordingSink(body, slow=True)
    body.start(sink)
    line.receive(b"d")
    line.clock.advance(100)
    assert not line.transport.aborted
    assert sink.end is None
    body.resume()
    body.resume()
    line.clock.advance(31)
    body.resume()
    assert sink.end == "cut: upstream idle"


def test_a_body_that_nobody_takes_does_not_hold_its_connection() -> None:
    line = Line()
    line.send()
    line.receive(OK + b"Content-Length: 9\r\n\r\n")
    line.clock.advance(31)
    assert line.transport.aborted


@pytest.mark.parametrize("paused", [True, False])
def test_sending_has_a_deadline_too(paused: bool) -> None:
    line, body = Line(), FakeSource(None)
    answer = line.send("POST", body=body)
    assert body.sink is not None
    line.clock.advance(29)
    body.sink.write(b"x")
    line.clock.advance(29)
    assert not answer.called
    if paused:
        line.transport.producer.pauseProducing()
    line.clock.advance(2)
    failure = failure_of(answer, UpstreamFailed)
    assert (failure.code, failure.error) == ("upstream-timeout", "connection_write_timeout")  # type: ignore[attr-defined]
    assert str(failure) == ("service stopped reading" if paused else "request body stalled")
    assert body.calls[-1] == "stop"


# Ends.


@pytest.mark.parametrize("cleanly", [True, False])
def test_a_connection_that_ends_without_a_byte_left_the_request_unanswered(cleanly: bool) -> None:
    line = Line()
    answer = line.send()
    line.lose(cleanly=cleanly)
    failure = failure_of(answer, Unanswered)
    assert (failure.code, failure.error) == ("upstream-unreachable", "connection_terminated")  # type: ignore[attr-defined]


def test_a_connection_that_ends_within_the_head_answered_badly() -> None:
    line = Line()
    answer = line.send()
    line.receive(b"HTTP/1.1 200")
    line.lose()
    failure = failure_of(answer, UpstreamFailed)
    assert not isinstance(failure, Unanswered)
    assert (failure.code, failure.error) == ("upstream-invalid", "http_response_incomplete")  # type: ignore[attr-defined]


def test_cancelling_ends_the_exchange_at_once() -> None:
    line, body = Line(), FakeSource(None)
    answer = line.send("POST", body=body)
    answer.cancel()
    failure_of(answer, CancelledError)
    assert line.transport.aborted
    assert line.owner.heard == ["gone"]
    assert body.calls[-1] == "stop"


def test_an_orderly_close_that_drags_on_is_an_abort() -> None:
    line = Line()
    line.connection.close()
    assert line.transport.disconnecting
    assert not line.transport.aborted
    line.clock.advance(6)
    assert line.transport.aborted
    assert line.owner.heard == ["gone"]


def test_an_abort_fails_what_waits_and_cuts_what_flows() -> None:
    waiting, flowing = Line(), Line()
    answer = waiting.send()
    waiting.connection.abort()
    assert not isinstance(failure_of(answer, UpstreamFailed), Unanswered)
    answer = flowing.send()
    flowing.receive(OK + b"Content-Length: 9\r\n\r\n")
    sink = read(success_of(answer))
    flowing.connection.abort()
    assert sink.end == "cut: aborted"


@pytest.mark.parametrize("said", [b"", SMALL, SMALL[:-1], b"nonsense"])
def test_a_lost_connection_goes_with_all_it_holds_and_waits_for_no_collector(said: bytes) -> None:
    def lost() -> object:
        line = Line()
        line.send().addBoth(lambda _: None)
        line.receive(said)
        line.lose()
        return line.connection

    assert goes_by_itself(lost)
