"""Pools and the client over them, on a reactor in memory."""

from collections import Counter
from random import Random

import pytest
from deferreds import failure_of, success_of
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError, NoRouteError, TimeoutError
from upstream_fakes import DEADLINES, FakeSource, Net, read

from bakerygw.core.http import BodySource
from bakerygw.ports import UpstreamFailed, UpstreamRequest, UpstreamResponse
from bakerygw.upstream.client import UpstreamClient
from bakerygw.upstream.connection import Unanswered
from bakerygw.upstream.pool import MAX_CONNECTIONS, Pool

PART = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh"


def ask(method: str = "GET", body: BodySource | None = None) -> UpstreamRequest:
    return UpstreamRequest(method=method, target=b"/", headers=(), body=body)


def pool_on(net: Net, **options: int) -> Pool:
    return Pool(net.reactor, "http://127.0.0.1:8000", deadlines=DEADLINES, keepalive_s=4, **options)


def through(pool: Pool, request: UpstreamRequest | None = None) -> Deferred[UpstreamResponse]:
    return Deferred.fromCoroutine(pool.request(request or ask()))


def client_on(net: Net, *urls: str) -> UpstreamClient:
    return UpstreamClient(
        net.reactor,
        {"demo:sales": urls},
        connect_timeout_s=2,
        first_byte_timeout_s=15,
        idle_timeout_s=30,
        keepalive_s=4,
        random=Random(1),
    )


def via(client: UpstreamClient, request: UpstreamRequest | None = None) -> Deferred[UpstreamResponse]:
    return Deferred.fromCoroutine(client.request("demo:sales", request or ask()))


# Reuse.


def test_the_last_used_connection_is_taken_first() -> None:
    net = Net()
    pool = pool_on(net)
    answers = [through(pool), through(pool)]
    peers = [net.accept(0), net.accept(1)]
    for peer in peers:
        peer.answer()
    assert [success_of(answer).body.whole() for answer in answers] == [b"hi", b"hi"]
    assert (pool.idle, pool.outstanding) == (2, 0)
    peers[0].transport.clear()
    peers[1].transport.clear()
    third = through(pool)
    assert (peers[0].transport.value(), bool(peers[1].transport.value())) == (b"", True)
    peers[1].answer()
    assert success_of(third).status == 200
    assert len(net.attempts) == 2


def test_a_connection_is_busy_until_its_body_has_ended() -> None:
    net = Net()
    pool = pool_on(net)
    answer = through(pool)
    peer = net.accept()
    peer.answer(PART)
    sink = read(success_of(answer))
    assert (pool.idle, pool.outstanding) == (0, 1)
    peer.answer(b"i")
    assert (sink.end, pool.idle, pool.outstanding) == ("done", 1, 0)


def test_idle_connections_are_closed_before_the_service_would() -> None:
    net = Net()
    pool = pool_on(net)
    through(pool)
    peer = net.accept()
    peer.answer()
    net.reactor.advance(4)
    assert peer.transport.disconnecting
    assert pool.idle == 0


def test_a_connection_past_its_time_is_not_used_before_the_sweep_comes() -> None:
    net = Net()
    pool = pool_on(net)
    first = through(pool)
    peer = net.accept()
    net.reactor.advance(1)
    peer.answer()
    success_of(first)
    net.reactor.rightNow += 4.5
    through(pool)
    assert peer.transport.disconnecting
    assert len(net.attempts) == 2


def test_the_sweep_stops_when_nothing_is_idle() -> None:
    net = Net()
    pool = pool_on(net)
    through(pool)
    peer = net.accept()
    peer.answer()
    net.reactor.advance(4)
    peer.close()
    net.reactor.advance(60)
    assert net.reactor.getDelayedCalls() == []


def test_a_connection_that_the_service_closes_is_forgotten() -> None:
    net = Net()
    pool = pool_on(net)
    through(pool)
    peer = net.accept()
    peer.answer()
    peer.close()
    assert pool.idle == 0
    through(pool)
    assert len(net.attempts) == 2


def test_a_connection_serves_a_bounded_number_of_requests() -> None:
    net = Net()
    pool = pool_on(net, max_exchanges=2)
    first = through(pool)
    peer = net.accept()
    peer.answer()
    second = through(pool)
    peer.answer()
    assert [success_of(answer).status for answer in (first, second)] == [200, 200]
    assert peer.transport.disconnecting
    through(pool)
    assert len(net.attempts) == 2


def test_idle_connections_are_bounded() -> None:
    net = Net()
    pool = pool_on(net, max_idle=1)
    answers = [through(pool), through(pool)]
    peers = [net.accept(0), net.accept(1)]
    for peer in peers:
        peer.answer()
    assert len([success_of(answer) for answer in answers]) == 2
    assert (pool.idle, peers[1].transport.disconnecting) == (1, True)


# Bounds.


def test_requests_beyond_the_bound_wait_in_order_and_then_are_refused() -> None:
    net = Net()
    pool = pool_on(net, max_connections=1, max_queued=2)
    first, second, third, fourth = (through(pool) for _ in range(4))
    assert failure_of(fourth, UpstreamFailed).code == "service-unavailable"  # type: ignore[attr-defined]
    assert (len(net.attempts), pool.outstanding) == (1, 3)
    peer = net.accept()
    for answer in (first, second, third):
        peer.answer()
        assert success_of(answer).body.whole() == b"hi"
    assert len(net.attempts) == 1
    assert pool.outstanding == 0


def test_a_lost_connection_makes_room_for_the_next_in_the_queue() -> None:
    net = Net()
    pool = pool_on(net, max_connections=1)
    first, second = through(pool), through(pool)
    net.accept().close()
    failure_of(first, Unanswered)
    net.accept().answer()
    assert success_of(second).status == 200
    assert len(net.attempts) == 2


def test_a_failed_connect_makes_room_for_the_next_in_the_queue() -> None:
    net = Net()
    pool = pool_on(net, max_connections=1)
    first, second = through(pool), through(pool)
    net.fail(ConnectionRefusedError())
    failure_of(first, UpstreamFailed)
    net.accept().answer()
    assert success_of(second).status == 200


def test_waiting_for_a_connection_has_an_end() -> None:
    net = Net()
    pool = pool_on(net, max_connections=1)
    through(pool)
    peer = net.accept()
    second = through(pool)
    net.reactor.advance(2.1)
    assert failure_of(second, UpstreamFailed).code == "service-unavailable"  # type: ignore[attr-defined]
    assert pool.outstanding == 1
    peer.answer()
    assert pool.outstanding == 0


def test_a_cancelled_wait_leaves_the_queue() -> None:
    net = Net()
    pool = pool_on(net, max_connections=1)
    through(pool)
    peer = net.accept()
    second, third = through(pool), through(pool)
    second.cancel()
    failure_of(second, CancelledError)
    peer.answer()
    peer.answer()
    assert success_of(third).status == 200


# Connecting.


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError(), "connection_refused"),
        (TimeoutError(), "connection_timeout"),
        (NoRouteError(), "destination_ip_unroutable"),
    ],
)
def test_a_failed_connect_says_why(error: Exception, kind: str) -> None:
    net = Net()
    answer = through(pool_on(net))
    net.fail(error)
    failure = failure_of(answer, UpstreamFailed)
    assert (failure.code, failure.error) == ("upstream-unreachable", kind)  # type: ignore[attr-defined]


def test_connecting_has_a_deadline() -> None:
    net = Net()
    answer = through(pool_on(net))
    net.reactor.advance(2.1)
    failure = failure_of(answer, UpstreamFailed)
    assert (failure.code, failure.error) == ("upstream-unreachable", "connection_timeout")  # type: ignore[attr-defined]


def test_cancelling_while_connecting_is_no_failure_of_the_service() -> None:
    net = Net()
    client = client_on(net, "http://127.0.0.1:8000")
    answer = via(client)
    answer.cancel()
    failure_of(answer, CancelledError)
    assert client.stats()["demo:sales"][0].failures == 0
    assert client.stats()["demo:sales"][0].in_flight == 0


@pytest.mark.parametrize(
    "url",
    ["ftp://a", "http://", "http://a/path", "http://a?q", "http://a#f", "http://u:p@a", "sales:8000", "http://a:x"],
)
def test_only_a_base_url_is_taken(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # urllib's own wording for some
        Pool(Net().reactor, url, deadlines=DEADLINES, keepalive_s=4)


def test_the_authority_is_the_urls_own() -> None:
    net = Net()
    pool = Pool(net.reactor, "http://[::1]:8000/", deadlines=DEADLINES, keepalive_s=4)
    through(pool)
    peer = net.accept()
    assert b"\r\nHost: [::1]:8000\r\n" in peer.transport.value()
    assert net.attempts == ["::1:8000"]


# The client.


def test_only_configured_services_are_there() -> None:
    client = UpstreamClient(
        Net().reactor, {"sales": []}, connect_timeout_s=2, first_byte_timeout_s=15, idle_timeout_s=30, keepalive_s=4
    )
    assert not client.has("sales")
    assert client_on(Net(), "http://127.0.0.1:1").has("demo:sales")
    failure = failure_of(Deferred.fromCoroutine(client.request("sales", ask())), UpstreamFailed)
    assert failure.code == "service-unavailable"  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("body", [None, FakeSource(0, b"")])
def test_an_unanswered_idempotent_request_is_sent_once_more_on_a_new_connection(
    method: str, body: FakeSource | None
) -> None:
    net = Net()
    client = client_on(net, "http://127.0.0.1:8000")
    answer = via(client, ask(method, body))
    net.accept().close()
    assert not answer.called
    net.accept().close()
    failure_of(answer, Unanswered)
    assert len(net.attempts) == 2
    (stats,) = client.stats()["demo:sales"]
    assert (stats.requests, stats.failures, stats.in_flight, stats.idle) == (2, 2, 0, 0)


def test_the_second_try_takes_no_idle_connection() -> None:
    net = Net()
    client = client_on(net, "http://127.0.0.1:8000")
    via(client)
    via(client)
    peers = [net.accept(0), net.accept(1)]
    for peer in peers:
        peer.answer()
    answer = via(client)
    peers[1].close()
    net.accept(2).answer()
    assert success_of(answer).status == 200


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("POST", None),
        ("PATCH", None),
        ("PUT", FakeSource(3, b"abc")),
        ("DELETE", FakeSource(None)),
        ("GET", FakeSource(9)),
    ],
)
def test_a_request_that_may_have_had_effect_is_not_repeated(method: str, body: FakeSource | None) -> None:
    net = Net()
    answer = via(client_on(net, "http://127.0.0.1:8000"), ask(method, body))
    net.accept().close()
    failure_of(answer, Unanswered)
    assert len(net.attempts) == 1


@pytest.mark.parametrize("said", [b"H", b"HTTP/1.1 103 Hints\r\n\r\n", b"garbage"])
def test_a_request_is_not_repeated_once_the_service_has_spoken(said: bytes) -> None:
    net = Net()
    answer = via(client_on(net, "http://127.0.0.1:8000"))
    peer = net.accept()
    peer.answer(said)
    peer.close()
    failure_of(answer, UpstreamFailed)
    assert len(net.attempts) == 1


def test_a_request_that_timed_out_is_not_repeated() -> None:
    net = Net()
    answer = via(client_on(net, "http://127.0.0.1:8000"))
    net.accept()
    net.reactor.advance(16)
    failure_of(answer, UpstreamFailed)
    assert len(net.attempts) == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_url_that_refuses_leaves_the_request_to_another(method: str) -> None:
    net = Net()
    body = FakeSource(3, b"abc")
    answer = via(client_on(net, "http://127.0.0.1:1", "http://127.0.0.1:2"), ask(method, body))
    net.fail(ConnectionRefusedError())
    assert body.calls == []
    net.accept().answer()
    assert success_of(answer).status == 200
    assert sorted(net.attempts) == ["127.0.0.1:1", "127.0.0.1:2"]


def test_the_only_url_is_not_dialled_twice() -> None:
    net = Net()
    answer = via(client_on(net, "http://127.0.0.1:1"))
    net.fail(ConnectionRefusedError())
    failure_of(answer, UpstreamFailed)
    assert len(net.attempts) == 1


def test_the_less_busy_url_is_preferred() -> None:
    net = Net()
    client = client_on(net, "http://127.0.0.1:1", "http://127.0.0.1:2")
    for _ in range(20):
        via(client).addErrback(lambda _: None)
    assert Counter(net.attempts) == {"127.0.0.1:1": 10, "127.0.0.1:2": 10}


def test_the_authorities_of_all_services_are_known() -> None:
    client = client_on(Net(), "http://127.0.0.1:1", "http://127.0.0.1:2/")
    assert client.all_authorities() == {"127.0.0.1:1", "127.0.0.1:2"}


def test_cancelling_a_request_aborts_its_connection_at_once() -> None:
    net = Net()
    client = client_on(net, "http://127.0.0.1:1")
    answer = via(client)
    peer = net.accept()
    answer.cancel()
    failure_of(answer, CancelledError)
    assert peer.transport.aborted
    assert client.stats()["demo:sales"][0].in_flight == 0


def test_closing_ends_everything_and_lets_nothing_begin() -> None:
    net = Net()
    client = client_on(net, "http://127.0.0.1:1")
    idle, waiting, flowing, dialling = (via(client) for _ in range(4))
    peers = [net.accept(index) for index in range(3)]
    peers[0].answer()
    assert success_of(idle).status == 200
    peers[2].answer(PART)
    sink = read(success_of(flowing))
    client.close()
    failure_of(waiting, UpstreamFailed)
    assert sink.end == "cut: aborted"
    assert [peer.transport.disconnecting for peer in peers] == [True] * 3
    late = net.accept(3)
    failure_of(dialling, UpstreamFailed)
    assert late.transport.disconnecting
    failure_of(via(client), UpstreamFailed)
    assert len(net.attempts) == 4


# Retiring.


def test_a_retired_pool_ends_idle_connections_at_once_and_busy_ones_when_they_are_free() -> None:
    net = Net()
    pool = pool_on(net)
    quick, slow = through(pool), through(pool)
    peers = [net.accept(0), net.accept(1)]
    peers[0].answer()
    assert success_of(quick).status == 200
    peers[1].answer(PART)
    sink = read(success_of(slow))

    pool.retire()

    assert (peers[0].transport.disconnecting, peers[1].transport.disconnecting) == (True, False)
    net.reactor.advance(10)
    assert sink.end is None
    peers[1].answer(b"i")
    assert (sink.data, sink.end) == (b"hi", "done")
    assert peers[1].transport.disconnecting
    assert (pool.idle, pool.in_use, pool.outstanding) == (0, 0, 0)


def test_a_retired_pool_still_serves_who_waits_and_who_comes_late_and_keeps_nothing() -> None:
    net = Net()
    pool = pool_on(net, max_connections=1)
    first, waiting = through(pool), through(pool)
    peer = net.accept()
    pool.retire()

    peer.answer()
    peer.answer()
    late = through(pool)
    last = net.accept(1)
    last.answer()

    assert [success_of(answer).status for answer in (first, waiting, late)] == [200, 200, 200]
    assert peer.transport.disconnecting
    assert last.transport.disconnecting
    assert pool.idle == 0


def test_connections_in_use_do_not_count_who_waits() -> None:
    net = Net()
    client = client_on(net, "http://127.0.0.1:8000")
    answers = [via(client) for _ in range(MAX_CONNECTIONS + 3)]
    for number in range(MAX_CONNECTIONS):
        net.accept(number)

    [stats] = client.stats()["demo:sales"]

    assert (stats.in_use, stats.in_flight) == (MAX_CONNECTIONS, len(answers))
    client.close()
    for answer in answers:
        failure_of(answer, UpstreamFailed)


def test_a_retired_client_retires_every_pool() -> None:
    net = Net()
    client = client_on(net, "http://127.0.0.1:8000")
    answer = via(client)
    peer = net.accept()
    peer.answer()
    assert success_of(answer).status == 200

    client.retire()

    assert peer.transport.disconnecting
