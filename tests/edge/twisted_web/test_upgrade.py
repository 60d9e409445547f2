"""A connection that goes on in another protocol: nothing is lost, nothing passes before 101, and the end is told."""

from typing import Any

import pytest
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from bakerygw.edge.line import READ_AHEAD_BYTES
from tests.collector import goes_by_itself
from tests.edge.edge_fakes import BUFFER_BYTES, request
from tests.edge.resource_fakes import Own, Pushing

OFFER = (b"Connection: keep-alive, Upgrade", b"Upgrade: echo")
SWITCH = b"HTTP/1.1 101 Whatever\r\nServer: Taker\r\nUpgrade: echo\r\nConnection: Upgrade\r\nX-Own: 1\r\n\r\n"
REFUSAL = b"HTTP/1.1 403 No\r\nContent-Type: text/plain\r\nContent-Length: 9\r\nConnection: close\r\n\r\nforbidden"
HELD = request(b"GET", b"/behind")


class Spoken(Protocol):
    """The new protocol: keeps what comes."""

    def __init__(self) -> None:
        self.data = b""
        self.pieces: list[bytes] = []
        self.reasons: list[Failure] = []
        self.shut = 0

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self.pieces.append(data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.reasons.append(reason)

    def shutdown(self) -> None:
        self.shut += 1


class Taker(Resource):
    """Takes the connection where it is given one, as autobahn's resource does, and answers as `answer` says."""

    isLeaf = True

    def __init__(self, *answer: bytes) -> None:
        super().__init__()
        self.answer = answer
        self.spoken = Spoken()
        self.finished: list[str] = []

    def render(self, request: Any) -> bytes | int:
        if request.channel.transport is None:
            return b"over HTTP"
        request.notifyFinish().addErrback(lambda _: self.finished.append("lost"))
        transport, request.channel.transport = request.channel.transport, None
        transport.protocol = self.spoken
        self.spoken.makeConnection(transport)
        for piece in self.answer:
            transport.write(piece)
        return NOT_DONE_YET


def taken(*answer: bytes, behind: bytes = b"", stalled: bool = False) -> tuple[Own, Any, Spoken]:
    """A connection whose client has offered an upgrade and sent `behind` with it."""
    taker = Taker(*(answer or (SWITCH,)))
    end = Own(taker, upgrade=b"echo", stalled=stalled)
    end.send(request(b"GET", b"/", *OFFER) + behind)
    return end, taker.spoken.transport, taker.spoken


def test_a_taken_connection_speaks_the_new_protocol_both_ways():
    end, transport, spoken = taken()
    end.send(b"ping")
    transport.write(b"po")
    transport.writeSequence([b"n", b"g"])
    assert spoken.data == b"ping"
    assert end.wire.written.endswith(b"\r\n\r\npong")


def test_the_101_is_a_reply_of_the_gateway():
    end, _, _ = taken()
    head = end.wire.written
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nX-Own: 1\r\nX-Request-ID: ")
    assert head.count(b"Connection: ") == 1
    assert b"\r\nConnection: Upgrade\r\n" in head
    assert b"Taker" not in head
    assert b"Content-Length" not in head
    assert b"chunked" not in head


@pytest.mark.parametrize("behind", [b"x", b"frames", HELD, b"\x00\xff" * 3000])
def test_what_came_with_the_offer_is_delivered_first(behind):
    end, _, spoken = taken(behind=behind)
    end.send(b" and more")
    assert spoken.data == behind + b" and more"
    assert end.protocol.busy


def test_what_comes_while_the_taker_thinks_waits_for_its_101():
    taker = Taker()
    end = Own(taker, upgrade=b"echo").send(request(b"GET", b"/", *OFFER) + b"one ", b"two ")
    assert (end.wire.written, taker.spoken.data) == (b"", b"")
    taker.spoken.transport.write(SWITCH[:20])
    taker.spoken.transport.write(SWITCH[20:] + b"hello")
    taker.spoken.transport.write(b" you")
    end.turn().send(b"three")
    assert taker.spoken.data == b"one two three"
    assert end.wire.written.endswith(b"\r\n\r\nhello you")


def test_reading_goes_on_once_the_connection_is_taken():
    taker = Taker()
    end = Own(taker, upgrade=b"echo").send(request(b"GET", b"/", *OFFER), b"x" * (READ_AHEAD_BYTES + 1))
    assert not end.wire.reading
    taker.spoken.transport.write(SWITCH)
    assert end.turn().wire.reading
    assert len(taker.spoken.data) == READ_AHEAD_BYTES + 1


def test_the_new_protocol_is_never_called_from_within_its_own_writing():
    taker = Taker()
    end = Own(taker, upgrade=b"echo").send(request(b"GET", b"/", *OFFER) + b"early")
    taker.spoken.transport.write(SWITCH)
    assert taker.spoken.data == b""
    assert end.turn() is end
    assert taker.spoken.data == b"early"


def test_an_offer_waits_for_the_replies_before_it():
    taker = Taker(SWITCH)
    end = Own(taker, upgrade=b"echo").send(request() + request(b"GET", b"/", *OFFER) + b"frames")
    assert end.wire.written.index(b"upgrade-required") < end.wire.written.index(b"101 Switching")
    assert taker.spoken.data == b"frames"


# where there is no upgrade


@pytest.mark.parametrize(
    "asked",
    [
        request(),
        request(b"GET", b"/", b"Upgrade: echo"),
        request(b"GET", b"/", b"Connection: Upgrade", b"Upgrade: h2c"),
        request(b"POST", b"/", *OFFER),
        request(b"GET", b"/", *OFFER, body=b"hello"),
        request(b"GET", b"/", *OFFER, b"Connection: close"),
        b"GET / HTTP/1.0\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n",
    ],
)
def test_without_a_fitting_offer_an_upgrade_is_required(asked):
    end = Own(Taker(SWITCH), upgrade=b"echo").send(asked)
    ((status, fields, _),) = end.replies()
    assert (status, fields[b"upgrade"], fields[b"content-type"]) == (426, [b"echo"], [b"application/problem+json"])
    assert b"\r\nConnection: Upgrade\r\n" in end.wire.written


def test_nothing_is_taken_where_no_upgrade_is_asked_for():
    end = Own(Taker(SWITCH)).send(request(b"GET", b"/", *OFFER) + HELD)
    assert [body for _, _, body in end.replies()] == [b"over HTTP", b"over HTTP"]


def test_a_resource_that_leaves_the_offer_answers_over_http():
    class Declining(Resource):
        isLeaf = True

        def render(self, request: Any) -> bytes:
            return b"no, thanks"

    end = Own(Declining(), upgrade=b"echo").send(request(b"GET", b"/", *OFFER) * 2)
    assert [body for _, _, body in end.replies()] == [b"no, thanks", b"no, thanks"]


def test_a_refused_upgrade_is_an_ordinary_reply_and_nothing_behind_it_is_read():
    taker = Taker(REFUSAL[:60], REFUSAL[60:])
    end = Own(taker, upgrade=b"echo").send(request(b"GET", b"/", *OFFER) + HELD)
    assert end.wire.written == b""
    taker.spoken.transport.loseConnection()
    end.turn()
    assert end.replies() == [(403, {b"content-type": [b"text/plain"], b"content-length": [b"9"]}, b"forbidden")]
    assert b"X-Request-ID" in end.wire.written
    assert b"\r\nConnection: close\r\n" in end.wire.written
    assert end.wire.half_closed
    assert taker.spoken.data == b""
    assert (len(taker.spoken.reasons), taker.finished) == (1, ["lost"])
    assert [outcome.status for outcome in end.outcomes] == [403]
    end.leave()
    assert len(taker.spoken.reasons) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 101 x\r\nUpgrade: echo\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.0 101 x\r\n\r\n",
        b"HTTP/1.1 1010\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 403 x\r\nno field\r\n\r\n",
        b"HTTP/1.1 101 x\r\nA: b\nC: d\r\n\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_no_answer_is_an_internal_error_and_nothing_behind_is_read(answer, logged_failures):
    taker = Taker(answer)
    end = Own(taker, upgrade=b"echo").send(request(b"GET", b"/", *OFFER) + HELD)
    taker.spoken.transport.loseConnection()
    end.turn()
    assert [status for status, _, _ in end.replies()] == [500]
    assert end.wire.half_closed
    assert len(logged_failures) == 1
    logged_failures.clear()
    end.leave()
    end.turn()
    assert len(taker.spoken.reasons) == 1


def test_a_taker_that_resets_before_its_answer_resets_the_client():
    taker = Taker()
    end = Own(taker, upgrade=b"echo").send(request(b"GET", b"/", *OFFER))
    taker.spoken.transport.abortConnection()
    assert end.wire.aborted
    end.leave()
    assert (end.wire.written, len(taker.spoken.reasons)) == (b"", 1)
    assert [outcome.status for outcome in end.outcomes] == [499]


def test_a_client_that_leaves_before_the_answer_is_told_of():
    taker = Taker()
    end = Own(taker, upgrade=b"echo").send(request(b"GET", b"/", *OFFER))
    end.leave()
    taker.spoken.transport.write(SWITCH)
    end.turn()
    assert (len(taker.spoken.reasons), taker.finished) == (1, ["lost"])
    assert [outcome.status for outcome in end.outcomes] == [499]


def test_an_answer_whose_client_leaves_in_the_same_turn_goes_nowhere():
    taker = Taker()
    end = Own(taker, upgrade=b"echo").send(request(b"GET", b"/", *OFFER) + b"frames")
    taker.spoken.transport.write(SWITCH)
    end.leave()
    end.turn()
    assert (taker.spoken.data, len(taker.spoken.reasons), end.wire.written) == (b"", 1, b"")


# the end


def test_the_outcome_is_told_when_the_new_protocol_ends():
    end, transport, spoken = taken(behind=b"12345")
    transport.write(b"123")
    assert end.outcomes == []
    transport.loseConnection()
    (outcome,) = end.outcomes
    assert (outcome.status, outcome.bytes_in, outcome.bytes_out, outcome.trace.reason) == (101, 5, 3, None)
    assert end.wire.closed
    assert spoken.reasons == []
    transport.write(b"too late")
    end.send(b"too late")
    end.leave()
    assert (spoken.data, len(spoken.reasons)) == (b"12345", 1)
    assert end.wire.written.endswith(b"\r\n\r\n123")


def test_a_protocol_may_end_before_its_101_has_gone():
    taker = Taker(SWITCH + b"bye")
    end = Own(taker, upgrade=b"echo")
    taker.spoken.connectionMade = lambda: taker.spoken.transport.setTcpNoDelay  # type: ignore[union-attr]
    end.wire.setTcpNoDelay = lambda on: None  # type: ignore[attr-defined]
    render = taker.render

    def render_and_close(request: Any) -> bytes | int:
        result = render(request)
        taker.spoken.transport.loseConnection()
        return result

    taker.render = render_and_close  # type: ignore[method-assign]
    end.send(request(b"GET", b"/", *OFFER) + b"frames")
    assert end.wire.written.endswith(b"\r\n\r\nbye")
    assert end.wire.closed
    assert taker.spoken.data == b""
    assert [outcome.status for outcome in end.outcomes] == [101]


def test_the_outcome_tells_that_the_client_has_left():
    end, _, spoken = taken()
    end.leave()
    (outcome,) = end.outcomes
    assert (outcome.status, outcome.trace.reason) == (101, "client-left")
    assert len(spoken.reasons) == 1


def test_a_reset_by_the_new_protocol_is_its_end():
    end, transport, spoken = taken()
    transport.abortConnection()
    assert end.wire.aborted
    end.leave()
    assert [(outcome.status, outcome.trace.reason) for outcome in end.outcomes] == [(101, None)]
    assert len(spoken.reasons) == 1


def test_a_taken_connection_is_counted_until_it_is_lost():
    end, transport, _ = taken()
    assert end.site.connections()["open"] == 1
    transport.loseConnection()
    assert (end.site.connections()["open"], end.site.busy) == (1, 1)
    end.leave()
    assert end.site.connections()["open"] == 0


def test_a_stopping_site_tells_the_new_protocol_and_may_reset_it():
    end, _, spoken = taken()
    end.site.shutdown()
    assert (spoken.shut, end.wire.closed, end.site.busy) == (1, False, 1)
    end.site.abort()
    assert end.wire.aborted
    end.leave()
    assert end.outcomes[0].trace.reason == "drained"
    assert len(spoken.reasons) == 1


def test_a_protocol_that_cannot_be_told_of_the_stop_goes_on():
    taker = Taker(SWITCH)
    taker.spoken.shutdown = None  # type: ignore[assignment,method-assign]
    end = Own(taker, upgrade=b"echo").send(request(b"GET", b"/", *OFFER))
    end.site.shutdown()
    end.send(b"on")
    assert taker.spoken.data == b"on"


# deadlines and pace


def sweep(end: Own, seconds: float) -> None:
    for _ in range(round(seconds * 2)):
        end.clock.advance(0.5)
        for channel in list(end.site._channels):
            channel.sweep(end.clock.seconds())


def test_no_deadline_of_http_ends_a_taken_connection():
    end, _, spoken = taken()
    sweep(end, 1000)
    end.send(b"G")
    sweep(end, 1000)
    assert (end.wire.closed, end.wire.aborted, spoken.data) == (False, False, b"G")


def test_a_client_that_takes_nothing_is_dropped_still():
    end, transport, spoken = taken(stalled=True)
    transport.write(b"x" * (BUFFER_BYTES + 1))
    sweep(end, 59)
    assert not end.wire.aborted
    sweep(end, 2)
    assert end.wire.aborted
    end.leave()
    assert (end.outcomes[0].trace.reason, len(spoken.reasons)) == ("write-stalled", 1)


def test_a_producer_of_the_new_protocol_is_paused_while_the_client_does_not_read():
    end, transport, _ = taken(stalled=True)
    producer = Pushing()
    transport.unregisterProducer()
    transport.registerProducer(producer, True)
    with pytest.raises(RuntimeError):
        transport.registerProducer(producer, True)
    transport.write(b"x" * (BUFFER_BYTES + 1))
    end.wire.drain()
    assert producer.calls == ["pause", "resume"]
    end.leave()
    assert producer.calls[-1] == "stop"


def test_the_new_protocol_may_stop_reading():
    end, transport, spoken = taken()
    transport.pauseProducing()
    assert not end.wire.reading
    end.send(b"sent before it was heard")
    assert spoken.data == b""
    transport.resumeProducing()
    assert spoken.data == b"sent before it was heard"
    assert end.wire.reading


def test_what_came_with_the_offer_waits_for_a_taker_that_does_not_read_yet():
    taker = Taker()
    end = Own(taker, upgrade=b"echo").send(request(b"GET", b"/", *OFFER) + b"frames")
    taker.spoken.transport.pauseProducing()
    taker.spoken.transport.write(SWITCH)
    end.turn()
    assert (taker.spoken.data, end.wire.reading) == (b"", False)
    taker.spoken.transport.resumeProducing()
    assert (taker.spoken.data, end.wire.reading) == (b"frames", True)


@pytest.mark.parametrize("switched", [False, True])
def test_a_lost_connection_goes_with_its_tunnel(switched):
    def lost() -> object:
        taker = Taker(*([SWITCH] if switched else []))
        end = Own(taker, upgrade=b"echo").send(request(b"GET", b"/", *OFFER) + b"frames")
        end.leave()
        end.turn()
        taker.spoken.transport = None
        channel, end.protocol = end.protocol, None
        return channel

    assert goes_by_itself(lost)
