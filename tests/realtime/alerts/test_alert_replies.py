"""The handler of streams behind a connection of HTTP: what a client sees, and what it cannot break."""

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from bakerygw.core.http import Reply
from bakerygw.core.outcome import Outcome, Trace
from bakerygw.core.problem import Refused, refuse
from bakerygw.core.tenancy import TenantView
from bakerygw.edge.admission import Grant
from bakerygw.edge.conversation import Conversation, standing_headers
from bakerygw.edge.exchange import Exchange
from bakerygw.edge.line import UNHEEDED_BYTES
from bakerygw.realtime.alerts.handler import RETRY_AFTER_S, AlertStreams, resume_of
from bakerygw.realtime.alerts.hub import PATIENCE_S, SLOW_S
from bakerygw.runtime.sockets import LASTING_BYTES, ServerSocket
from tests.edge.edge_fakes import Client, dechunked, make_site, request
from tests.heads import make_head
from tests.realtime.sse_client import EventClient
from tests.realtime.stream_fakes import TENANT, FakePlace, Instance
from tests.runtime.test_plain_sockets import connected

GRANT = Grant(claims=None, view=TenantView(tenant_id=TENANT, role=None, subscription=None, own=True))


class Doorkeeper:
    """A guard that lets everybody in, or nobody."""

    def __init__(self) -> None:
        self.places: list[FakePlace] = []
        self.refusal: Refused | None = None

    def enter(self, kind: str, grant: Grant) -> FakePlace:
        if self.refusal is not None:
            raise self.refusal
        self.places.append(FakePlace())
        return self.places[-1]


class Door:
    """A site whose every request opens a stream."""

    def __init__(self, *, listening: bool = True) -> None:
        self.here = Instance(listening=listening)
        self.guard: Any = Doorkeeper()
        self.outcomes: list[Outcome] = []
        streams = AlertStreams(self.here.hub, self.guard)

        async def reply_to(exchange: Exchange, trace: Trace) -> Reply:
            nothing: Any = None
            return await streams.open(exchange, nothing, GRANT, nothing, trace)

        app = Conversation(
            reply_to,
            standing=lambda _, trace: standing_headers(trace),
            ended=self.outcomes.append,
            clock=self.here.clock,
        )
        self.site = make_site(app, self.here.clock)

    def client(self, *lines: bytes, target: bytes = b"/", version: bytes = b"HTTP/1.1", behind: bytes = b"") -> Client:
        client = Client(site=self.site)
        client.send(request(b"GET", target, *lines).replace(b"HTTP/1.1", version) + behind)
        self.here.turn()
        return client


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    assert all(place.left == 1 for place in door.guard.places)
    assert door.here.told.open == 0


def parts(client: Client) -> tuple[bytes, list[str]]:
    head, _, body = client.wire.written.partition(b"\r\n\r\n")
    reader = EventClient()
    if b"chunked" in head:
        body, _ = dechunked(body if body.endswith(b"0\r\n\r\n") else body + b"0\r\n\r\n")
    reader.feed(body)
    return head, [f"{event.kind} {event.last_id}".strip() for event in reader.events]


def test_a_stream_begins_at_once_and_says_that_it_is_one(door: Door) -> None:
    client = door.client()
    door.here.publish()
    door.here.turn()

    head, events = parts(client)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    for line in (b"Content-Type: text/event-stream", b"Cache-Control: no-store", b"X-Accel-Buffering: no"):
        assert line in head.split(b"\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert events == ["hello 7-0", "alert 7-1"]
    assert door.outcomes == []
    door.here.clock.advance(3)
    client.leave()
    (outcome,) = door.outcomes
    assert (outcome.status, outcome.trace.reason) == (200, "client-left")
    assert outcome.trace.begun_s is not None
    assert outcome.trace.begun_s < 1 < outcome.duration_s
    assert outcome.bytes_out > len("event: alert")


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
def test_the_log_has_the_bytes_of_all_events_without_their_framing(door: Door, version: bytes) -> None:
    client = door.client(version=version)
    for _ in range(3):
        door.here.publish()
        door.here.turn()
    client.leave()

    _, _, body = client.wire.written.partition(b"\r\n\r\n")
    if version == b"HTTP/1.1":
        body, _ = dechunked(body + b"0\r\n\r\n")
    (outcome,) = door.outcomes
    assert outcome.bytes_out == len(body)


def test_a_client_of_http_1_0_gets_the_bare_events(door: Door) -> None:
    client = door.client(version=b"HTTP/1.0")
    door.here.publish()
    door.here.turn()
    door.guard.places[0].held.end("draining")

    head, events = parts(client)
    assert b"chunked" not in head
    assert events == ["hello 7-0", "alert 7-1", "bye 7-1"]
    assert client.wire.closed


def test_a_stream_that_the_gateway_ends_is_whole_and_told_with_its_reason(door: Door) -> None:
    client = door.client()
    door.guard.places[0].held.end("token-expired")

    assert client.wire.written.endswith(b"\r\n0\r\n\r\n")
    assert client.wire.closed
    assert not client.wire.aborted
    (outcome,) = door.outcomes
    assert outcome.trace.reason == "token-expired"
    client.leave()


def test_a_slow_stream_is_cut_and_told_with_its_reason(door: Door) -> None:
    client = door.client()
    client.channel.pauseProducing()
    door.here.turn(2)
    for _ in range(1100):
        door.here.publish()
        door.here.turn()
    door.here.turn(SLOW_S + 0.2)

    assert client.wire.aborted
    (outcome,) = door.outcomes
    assert (outcome.trace.reason, outcome.trace.cause) == ("slow", "slow")
    client.leave()


def test_what_is_sent_behind_a_stream_request_breaks_nothing_and_is_not_kept(door: Door) -> None:
    client = door.client(behind=request(b"GET", b"/second") * 3 + b"\xff nonsense \r\n\r\n")
    for _ in range(100):
        client.send(b"x" * (UNHEEDED_BYTES // 100))
    door.here.publish()
    door.here.turn()

    _, events = parts(client)
    assert events == ["hello 7-0", "alert 7-1"]
    assert client.wire.reading, "that it leaves must be noticed"
    assert client.channel._unfed == b""
    assert len(door.guard.places) == 1
    door.guard.places[0].held.end("draining")
    assert client.wire.written.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("lines", [[], [b"Content-Length: 1000000"], [b"Transfer-Encoding: chunked"]])
def test_a_client_that_goes_on_sending_is_cut_and_told_with_its_reason(door: Door, lines: list[bytes]) -> None:
    client = door.client(*lines)
    client.send(b"x" * UNHEEDED_BYTES)
    assert not client.wire.aborted
    assert door.outcomes == []

    client.send(b"x")

    assert client.wire.aborted
    client.leave()
    (outcome,) = door.outcomes
    assert (outcome.status, outcome.trace.reason) == (200, "unasked-bytes")


def test_a_client_that_leaves_while_its_stream_opens_leaves_nothing() -> None:
    door = Door(listening=False)
    client = door.client()
    client.leave()
    door.here.turn(PATIENCE_S + 1)

    assert [place.left for place in door.guard.places] == [1]
    assert door.here.hub.feeds == {}
    assert door.here.clock.getDelayedCalls() == []


def test_no_stream_is_begun_that_could_miss_alerts() -> None:
    door = Door(listening=False)
    client = door.client()
    door.here.turn(PATIENCE_S + 0.1)

    answer = client.only()
    assert (answer.status, answer.problem()["code"]) == (503, "state-unavailable")
    wait_s = int(answer.headers[b"retry-after"][0])
    assert RETRY_AFTER_S[0] <= wait_s <= RETRY_AFTER_S[1]
    assert f"in {wait_s} seconds" in answer.problem()["detail"]
    assert [place.left for place in door.guard.places] == [1]


def test_the_guard_is_asked_before_anything_else() -> None:
    door = Door(listening=False)
    door.guard.refusal = refuse("too-many-streams", "Close one.")

    assert door.client().only().status == 429
    assert door.here.hub.feeds == {}


def test_a_client_goes_on_where_it_was(door: Door) -> None:
    for _ in range(3):
        door.here.history.add(b"{}")
    by_header = door.client(b"Last-Event-ID: 7-1", target=b"/?last_event_id=7-3")
    by_query = door.client(target=b"/?tenant_id=t1&last_event_id=7-2")

    assert parts(by_header)[1] == ["hello 7-1", "alert 7-2", "alert 7-3"]
    assert parts(by_query)[1] == ["hello 7-2", "alert 7-3"]
    by_header.leave()
    by_query.leave()


@pytest.mark.parametrize(
    ("headers", "target", "position"),
    [
        ([], b"/", None),
        ([], b"/?last_event_id=", None),
        ([(b"Last-Event-ID", b"")], b"/?last_event_id=3-4", (3, 4)),
        ([], b"/?last_event_id=3-4", (3, 4)),
        ([], b"/?name=Caf%C3%A9&x=%ff", None),
        ([], b"/?name=Caf%C3%A9&last_event_id=3-4", (3, 4)),
        ([], b"/?last_event_id=%C3%A9", "unknown"),
        ([], b"/?last%5Fevent_id=3-4", (3, 4)),
        ([(b"last-event-id", b"3-4")], b"/?last_event_id=1-1", (3, 4)),
        ([(b"Last-Event-ID", b"3-4\xff")], b"/", "unknown"),
        ([(b"Last-Event-ID", b"3-4" + b"0" * 130)], b"/", "unknown"),
        ([], b"/?last_event_id=..%2f..", "unknown"),
        ([], b"/?last_event_id=1-1" + b"&a=b" * 200, "unknown"),
    ],
)
def test_where_a_client_was_is_read_or_is_unknown(headers: Any, target: bytes, position: Any) -> None:
    resume = resume_of(make_head("GET", target, headers))

    if position is None:
        assert resume is None
        return
    assert resume is not None
    named = resume.position
    assert ("unknown" if named is None else (named.epoch, named.offset)) == position


@pytest.mark.parametrize("over_tls", [False, True])
def test_what_lasts_is_bounded_in_the_kernel_under_tls_too(over_tls: bool) -> None:
    client = Client()
    transport: Any = ServerSocket.__new__(ServerSocket)
    with socket.socket() as transport.socket:
        transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
        client.channel.transport = SimpleNamespace(transport=transport) if over_tls else transport

        client.channel.settle()

        assert transport.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * LASTING_BYTES


def test_an_event_leaves_by_the_socket_itself_at_once() -> None:
    client = Client()
    client.channel.transport = connected(100)

    send = client.channel.push(b"event")

    assert client.channel.transport.socket.sent == b"event"
    assert send == client.channel.transport.socket.send


def test_past_what_waits_for_the_socket_nothing_is_sent() -> None:
    client = Client()
    client.channel.transport = connected(2)

    assert client.channel.push(b"event") is None
    assert client.channel.push(b"event") is None


def test_what_is_no_socket_has_no_way_past_it() -> None:
    client = Client()

    assert client.channel.push(b"event") is None
    assert client.wire.written.endswith(b"event")
