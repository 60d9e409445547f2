"""The body of a request: bounded, paced, and never complete when it was cut."""

import pytest
from deferreds import failure_of, success_of
from twisted.internet.defer import CancelledError, Deferred

from bakerygw.core.problem import Problem, Refused
from bakerygw.edge.body import MAX_UNREAD_BYTES, RequestBody, collect
from tests.edge.edge_fakes import Sink


class Tap:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def body_started(self) -> None:
        self.calls.append("started")

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")


BROKEN = Problem(code="bad-request", detail="No.")


def make(length: int | None = None, *pieces: bytes) -> RequestBody:
    body = RequestBody(Tap(), length)
    for piece in pieces:
        body.push(piece)
    return body


def test_a_body_that_is_all_here_is_had_at_once_and_only_once():
    body = make(4, b"ab", b"cd")
    assert body.whole() is None
    body.finish()
    assert body.whole() == b"abcd"
    assert body.whole() is None


def test_a_request_without_a_body_has_an_empty_one():
    assert make(0).whole() == b""


def test_what_came_before_the_reader_is_pushed_first():
    body, sink = make(None, b"ab"), Sink()
    body.start(sink)
    body.push(b"cd")
    body.finish()
    assert (sink.data, sink.end) == (b"abcd", "done")


def test_nothing_is_pushed_while_the_reader_pauses_and_the_end_waits_too():
    body, sink = make(), Sink()
    body.start(sink)
    body.pause()
    body.push(b"ab")
    body.finish()
    assert (sink.data, sink.end) == (b"", None)
    body.resume()
    assert (sink.data, sink.end) == (b"ab", "done")


def test_a_reader_may_pause_in_the_middle_of_what_waited():
    body = make(None, b"a", b"b")

    class Pausing(Sink):
        def write(self, data: bytes) -> None:
            super().write(data)
            body.pause()

    sink = Pausing()
    body.start(sink)
    assert sink.data == b"a"
    body.push(b"c")
    body.resume()
    body.resume()
    assert sink.data == b"abc"


def test_unread_bytes_are_bounded():
    body = make(None, b"x" * MAX_UNREAD_BYTES)
    assert "pause" not in body._tap.calls
    body.push(b"x")
    assert body._tap.calls == ["pause"]


def test_after_the_reader_has_gone_the_rest_is_dropped():
    body, sink = make(), Sink()
    body.start(sink)
    body.stop()
    body.push(b"ab")
    body.finish()
    assert (sink.data, sink.end) == (b"", None)
    assert body.received == 2


def test_the_byte_after_the_cap_cuts_the_body():
    body, sink = make(), Sink()
    body.cap = 3
    body.start(sink)
    body.push(b"abc")
    assert sink.end is None
    body.push(b"d")
    assert (sink.data, sink.end) == (b"abc", "body-too-large")
    assert body.failure.status == 413
    assert body.failure.close


def test_a_cut_body_never_becomes_complete():
    body, sink = make(), Sink()
    body.start(sink)
    body.fail(BROKEN)
    body.push(b"more")
    body.finish()
    assert (sink.data, sink.end) == (b"", "bad-request")


def test_a_body_that_was_cut_before_it_was_wanted_tells_its_reader():
    body, sink = make(None, b"ab"), Sink()
    body.fail(BROKEN)
    assert body.whole() is None
    body.start(sink)
    assert (sink.data, sink.end) == (b"", "bad-request")


def collected(body: RequestBody, cap: int) -> "Deferred[bytes]":
    return Deferred.fromCoroutine(collect(body, cap))


def test_collect_gives_the_whole_body_however_it_arrives():
    ready = make(2, b"ab")
    ready.finish()
    assert success_of(collected(ready, 2)) == b"ab"
    body = make(None, b"a")
    result = collected(body, 2)
    body.push(b"b")
    body.finish()
    assert success_of(result) == b"ab"


@pytest.mark.parametrize("length", [None, 5])
def test_collect_refuses_more_than_its_cap(length):
    body = make(length)
    result = collected(body, 4)
    if length is None:
        for piece in (b"abc", b"de", b"f"):
            body.push(piece)
    refused = failure_of(result, Refused)
    assert refused.problem.code == "body-too-large"


def test_collect_refuses_more_than_its_cap_that_is_all_here():
    body = make(None, b"abcde")
    body.finish()
    assert failure_of(collected(body, 4), Refused).problem.code == "body-too-large"


def test_collect_tells_what_broke_the_body():
    body = make(None, b"a")
    result = collected(body, 4)
    body.fail(Problem(code="request-timeout", detail="Slow."))
    assert failure_of(result, Refused).problem.code == "request-timeout"


def test_collect_lets_go_when_cancelled():
    body = make(None, b"a")
    result = collected(body, 4)
    result.cancel()
    failure_of(result, CancelledError)
    body.push(b"b" * 100)
    body.finish()
