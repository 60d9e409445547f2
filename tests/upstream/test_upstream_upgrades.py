"""A service that goes on in another protocol: only where that was offered, and then its connection is the taker's."""

from typing import Any

import pytest
from deferreds import failure_of, success_of
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from upstream_fakes import Line

from bakerygw.ports import UpstreamFailed, UpstreamRequest, UpstreamResponse
from bakerygw.upstream.onward import Onward

ACCEPTED = b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Own: 1\r\n\r\n"
OVER = Failure(ConnectionDone())


class Heir:
    def __init__(self) -> None:
        self.heard: list[object] = []

    def dataReceived(self, data: bytes) -> None:
        self.heard.append(data)

    def connectionLost(self, reason: Any) -> None:
        self.heard.append("lost")


def offered(line: Line) -> Any:
    request = UpstreamRequest(method="GET", target=b"/ws", headers=((b"A", b"b"),), body=None, upgrade=b"websocket")
    return line.connection.send(request)


def onward_of(response: UpstreamResponse) -> Onward:
    assert isinstance(response.onward, Onward)
    return response.onward


def test_the_offer_is_on_the_wire() -> None:
    line = Line()
    offered(line)
    assert line.written == (
        b"GET /ws HTTP/1.1\r\nHost: sales:8000\r\nA: b\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )


def test_a_101_hands_the_connection_over_with_what_came_behind_it() -> None:
    line, heir = Line(), Heir()
    answer = offered(line)
    line.receive(ACCEPTED + b"\x81\x01x")
    response = success_of(answer)
    assert (response.status, dict(response.headers)[b"X-Own"], response.body.whole()) == (101, b"1", b"")
    assert line.transport.producerState == "paused"
    assert line.owner.heard == ["gone", "switched 1"]
    onward_of(response).take(heir)
    line.receive(b"more")
    line.connection.connectionLost(OVER)
    assert heir.heard == [b"\x81\x01x", b"more", "lost"]
    assert line.owner.heard[2:] == ["switched -1"]
    assert not line.transport.aborted


def test_what_is_lost_before_it_is_taken_is_told_then() -> None:
    line, heir = Line(), Heir()
    answer = offered(line)
    line.receive(ACCEPTED)
    line.connection.connectionLost(OVER)
    onward_of(success_of(answer)).take(heir)
    assert heir.heard == ["lost"]


def test_no_deadline_holds_any_more() -> None:
    line = Line()
    offered(line)
    line.receive(ACCEPTED)
    line.clock.advance(3600)
    assert not line.transport.aborted


def test_another_answer_is_an_answer_like_any() -> None:
    line = Line()
    answer = offered(line)
    line.receive(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")
    response = success_of(answer)
    assert (response.status, response.body.whole(), response.onward) == (403, b"no", None)
    assert line.owner.heard == ["freed"]


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 101 Go\r\n\r\n",
        b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.0 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
)
def test_a_101_that_does_not_upgrade_is_invalid(said: bytes) -> None:
    line = Line()
    answer = offered(line)
    line.receive(said)
    error = failure_of(answer, UpstreamFailed)
    assert isinstance(error, UpstreamFailed)
    assert error.code == "upstream-invalid"
    assert line.transport.aborted


def test_a_101_to_who_did_not_offer_is_invalid() -> None:
    line = Line()
    answer = line.send()
    line.receive(ACCEPTED)
    assert isinstance(failure_of(answer), UpstreamFailed)
    assert line.transport.aborted
