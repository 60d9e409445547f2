"""A connection's requests in order, its deadlines, its pace, and its end."""

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bakerygw.core.http import Reply
from bakerygw.core.problem import Problem, problem_reply
from bakerygw.edge.body import MAX_UNREAD_BYTES, collect, too_large
from bakerygw.edge.channel import PIECE_BYTES, READ_AHEAD_BYTES, SERVED_A_TURN
from tests.collector import goes_by_itself
from tests.edge.edge_fakes import BUFFER_BYTES, HOST, OK, App, Client, Sink, Source, answers, give, make_site, request

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
EXPECTING = request(b"POST", b"/", b"Expect: 100-continue", b"Content-Length: 5")
WAITING = App(lambda _: None).respond
TOO_LARGE = problem_reply(too_large(1), instance="/", request_id="r")


def waiting() -> Client:
    return Client(App(WAITING))


def refusing(code: str) -> App:
    problem = Problem(code=code, detail="No.")
    return App(lambda _: problem_reply(problem, instance="/", request_id="r"))


# in order


def test_pipelined_requests_are_answered_one_after_the_other():
    client = waiting()
    client.send(request(b"GET", b"/a") + request(b"GET", b"/b"), request(b"GET", b"/c"))
    assert client.app.targets == [b"/a"]
    give(client.app.exchanges[0], Reply(status=200, body=b"A"))
    assert client.app.targets == [b"/a", b"/b"]
    give(client.app.exchanges[1], Reply(status=200, body=b"B"))
    give(client.app.exchanges[2], Reply(status=200, body=b"C"))
    assert [answer.body for answer in client.answers()] == [b"A", b"B", b"C"]


def test_pipelined_bytes_behind_a_waiting_reply_are_bounded_by_not_reading():
    client = waiting().send(request(b"GET", b"/a"), b"x" * READ_AHEAD_BYTES)
    assert client.wire.reading
    client.send(b"x")
    assert not client.wire.reading


def test_a_finished_body_does_not_let_more_be_read_ahead():
    client = waiting().send(request(b"POST", b"/a", body=b"x"), b"x" * (READ_AHEAD_BYTES + 1))
    client.app.exchanges[0].body.stop()
    assert not client.wire.reading


def test_reading_goes_on_after_the_reply():
    client = waiting().send(request(b"GET", b"/a"), request(b"GET", b"/" + b"b" * 8000) * 3)
    assert not client.wire.reading
    client.app.respond = lambda _: OK
    give(client.app.exchanges[0], OK)
    assert client.wire.reading
    assert len(client.answers()) == 4


def test_what_was_whole_is_answered_before_what_is_malformed_behind_it():
    client = waiting().send(request(b"GET", b"/a") + b"BAKE / HTTP/1.1\r\n" + request(b"GET", b"/b"))
    assert client.wire.written == b""
    give(client.app.exchanges[0], OK)
    assert [answer.status for answer in client.answers()] == [200, 501]
    assert client.app.targets == [b"/a"]


def test_a_connection_serves_many_requests():
    client = Client()
    for _ in range(3):
        client.send(request())
    assert [answer.headers.get(b"connection") for answer in client.answers()] == [None, None, None]
    assert not client.wire.closed


@pytest.mark.parametrize(
    "last",
    [
        request(b"GET", b"/", b"Connection: close"),
        request(b"GET", b"/", b"Connection: keep-alive, Close"),
        request(b"GET", b"/", b"Connection: keep-alive", b"Connection: close"),
        b"GET / HTTP/1.0\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n" + HOST + b"\r\n",
    ],
)
def test_the_connection_ends_after_a_last_request(last):
    client = Client().send(last, request(b"GET", b"/after"))
    assert client.only().headers[b"connection"] == [b"close"]
    assert client.wire.closed
    assert len(client.app.exchanges) == 1


def test_pipelined_bytes_behind_a_closing_reply_do_not_reset_it():
    client = waiting().send(request(), request() * 1000)
    assert not client.wire.reading
    give(client.app.exchanges[0], Reply(status=200, close=True))
    assert client.wire.half_closed
    assert client.wire.reading
    assert not client.wire.closed
    assert len(client.app.exchanges) == 1


def test_bytes_behind_a_last_request_are_dropped_as_they_come_so_that_its_leaving_is_seen():
    client = waiting().send(request(b"GET", b"/", b"Connection: close"), b"x" * 100_000)
    assert client.wire.reading
    give(client.app.exchanges[0], OK)
    assert client.wire.closed


# the client leaves


def test_work_is_cancelled_when_the_client_leaves():
    left = []
    client = waiting().send(request(b"GET", b"/a") + request(b"GET", b"/b"))
    client.app.exchanges[0].on_lost = lambda: left.append("a")
    client.leave()
    assert left == ["a"]
    assert client.app.exchanges[0].gone
    assert client.app.targets == [b"/a"]


def test_nobody_is_told_of_a_client_that_leaves_after_its_reply():
    left = []
    client = Client().send(request())
    client.app.exchanges[0].on_lost = lambda: left.append("a")
    client.leave()
    assert left == []


def test_a_reply_to_a_client_that_left_goes_nowhere():
    client = waiting().send(request())
    client.leave()
    give(client.app.exchanges[0], OK)
    assert client.wire.written == b""


# 100 Continue


def test_100_continue_is_sent_when_the_body_is_wanted_and_not_before():
    client = waiting().send(EXPECTING)
    assert client.wire.written == b""
    sink = Sink()
    client.app.exchanges[0].body.start(sink)
    assert client.wire.written == CONTINUE
    client.send(b"hello")
    assert (sink.data, sink.end) == (b"hello", "done")
    give(client.app.exchanges[0], OK)
    assert answers(client.wire.written.removeprefix(CONTINUE))[0].status == 200


def test_a_refusal_takes_the_place_of_100_continue_and_ends_the_connection():
    client = Client(refusing("token-missing")).send(EXPECTING)
    assert client.only().status == 401
    assert client.only().headers[b"connection"] == [b"close"]
    assert client.wire.half_closed


def test_no_100_continue_once_the_body_has_begun():
    client = waiting().send(EXPECTING + b"he")
    client.app.exchanges[0].body.start(Sink())
    assert client.wire.written == b""


def test_no_100_continue_for_http_1_0():
    client = waiting().send(EXPECTING.replace(b"HTTP/1.1", b"HTTP/1.0"))
    client.app.exchanges[0].body.start(Sink())
    assert client.wire.written == b""


def test_100_continue_waits_for_the_replies_before_it():
    client = waiting().send(request(b"GET", b"/a") + EXPECTING)
    client.app.respond = lambda exchange: exchange.body.start(Sink())
    assert client.wire.written == b""
    give(client.app.exchanges[0], OK)
    assert client.wire.written.endswith(b"ok" + CONTINUE)


# early replies and what the client still sends


def test_a_reply_before_the_body_was_read_lingers_then_closes():
    client = Client().send(request(b"POST", b"/", b"Content-Length: 1000") + b"x")
    assert client.only().headers[b"connection"] == [b"close"]
    assert (client.wire.half_closed, client.wire.closed, client.wire.reading) == (True, False, True)
    client.send(b"x" * 999 + request(b"GET", b"/after"))
    assert client.app.targets == [b"/"]
    client.wait(3)
    assert client.wire.closed


def test_lingering_ends_in_time_however_much_of_the_body_came():
    client = waiting().send(request(b"POST", b"/", b"Content-Length: 99999999"))
    exchange = client.app.exchanges[0]
    exchange.body.start(Sink())
    client.send(b"x" * 5_000_000)
    give(exchange, OK)
    client.wait(3)
    assert client.wire.closed
    client.wait(62)
    assert client.wire.aborted


def test_lingering_ends_in_time_even_if_the_reader_had_paused():
    client = waiting().send(request(b"POST", b"/", b"Content-Length: 99999999"))
    exchange = client.app.exchanges[0]
    exchange.body.start(Sink())
    exchange.body.pause()
    client.send(b"x" * 100_000)
    assert not client.wire.reading
    give(exchange, OK)
    assert client.wire.reading
    client.wait(3)
    assert client.wire.closed


def test_a_body_that_is_all_here_does_not_end_the_connection():
    client = Client().send(request(b"POST", b"/a", body=b"unread"), request(b"GET", b"/b"))
    assert [answer.headers.get(b"connection") for answer in client.answers()] == [None, None]


# back-pressure


def test_an_unread_body_stops_the_reading_and_a_reader_starts_it_again():
    client = waiting().send(request(b"POST", b"/", b"Content-Length: 1000000"))
    body = client.app.exchanges[0].body
    client.send(b"x" * MAX_UNREAD_BYTES)
    assert client.wire.reading
    client.send(b"x")
    assert not client.wire.reading
    sink = Sink()
    body.start(sink)
    assert client.wire.reading
    assert len(sink.data) == MAX_UNREAD_BYTES + 1
    body.pause()
    client.send(b"y" * (MAX_UNREAD_BYTES + 1))
    assert not client.wire.reading
    assert b"y" not in sink.data
    body.resume()
    assert sink.data.count(b"y") == MAX_UNREAD_BYTES + 1


def test_a_streamed_reply_is_paced_by_its_reader():
    client, source = Client(App(WAITING), stalled=True), Source()
    client.send(request())
    give(client.app.exchanges[0], Reply(status=200, body=source))
    source.sink.write(b"x" * (BUFFER_BYTES + 1))
    assert source.calls == ["start", "pause"]
    client.wire.drain()
    assert source.calls == ["start", "pause", "resume"]


def test_a_large_body_in_memory_is_not_copied_for_a_client_that_takes_nothing():
    client = Client(App(lambda _: Reply(status=200, body=b"x" * 5_000_000)), stalled=True)
    client.send(request())
    assert len(client.wire.written) < 4 * BUFFER_BYTES
    while client.wire.paused:
        client.wire.drain()
    assert client.only().body == b"x" * 5_000_000


def test_a_client_that_reads_no_replies_gets_no_more_requests_served():
    client = Client(App(lambda _: Reply(status=200, body=b"x" * 20_000)), stalled=True)
    client.send(request() * 100)
    assert len(client.wire.written) < 3 * BUFFER_BYTES
    served = len(client.app.exchanges)
    while client.wire.reading:
        client.send(request() * 10)
    assert len(client.app.exchanges) == served
    client.wire.drain()
    assert len(client.app.exchanges) > served
    while client.wire.paused:
        client.wire.drain()
    assert len(client.answers()) == len(client.app.exchanges) > 400
    assert client.wire.reading


def test_a_reply_that_begins_on_a_full_connection_waits_for_its_client():
    client, source = Client(App(lambda _: Reply(status=200, body=source)), stalled=True), Source()
    client.wire.unsent = BUFFER_BYTES
    client.send(request())
    assert source.calls == ["start", "pause"]


# deadlines


def test_a_head_must_be_whole_within_ten_seconds_however_it_drips():
    client = Client()
    client.send(b"GET / HT")
    for piece in range(9):
        client.wait(1)
        client.send(b"TP/1.1\r\nA: b"[piece : piece + 1])
    assert client.wire.written == b""
    client.wait(2)
    assert (client.only().status, client.only().problem()["code"]) == (408, "request-timeout")
    assert client.wire.half_closed


def test_a_client_that_says_nothing_is_closed_without_a_word():
    client = Client()
    client.wait(9.5)
    assert not client.wire.closed
    client.wait(1)
    assert client.wire.closed
    assert client.wire.written == b""


def test_empty_lines_do_not_keep_a_connection_open():
    client = Client()
    for _ in range(11):
        client.wait(1)
        client.send(b"\r\n")
    assert client.wire.closed


def test_an_idle_connection_is_closed_without_a_word_after_the_keep_alive():
    client = Client().send(request())
    written = client.wire.written
    client.wait(74.5)
    assert not client.wire.closed
    client.wait(1)
    assert client.wire.closed
    assert client.wire.written == written


def test_a_waiting_request_has_no_deadline_of_the_connections():
    client = waiting().send(request())
    client.wait(300)
    assert not client.wire.closed
    assert not client.wire.aborted


def test_the_time_of_a_pipelined_head_does_not_run_while_it_is_not_read():
    client = waiting().send(request(b"GET", b"/a") + b"GET /b HTTP/1.1\r\n", HOST + b"\r\n")
    client.wait(20)
    client.app.respond = lambda _: OK
    give(client.app.exchanges[0], OK)
    assert [answer.status for answer in client.answers()] == [200, 200]


def test_the_time_of_a_pipelined_head_runs_from_the_reply_before_it():
    client = waiting().send(request(b"GET", b"/a") + b"GET /b HTTP/1.1\r\n")
    client.wait(20)
    give(client.app.exchanges[0], OK)
    client.wait(9)
    assert len(client.answers()) == 1
    client.wait(2)
    assert [answer.status for answer in client.answers()] == [200, 408]


def slow_body(bytes_per_s: int, seconds: int) -> tuple[Client, Sink]:
    client, sink = waiting().send(request(b"POST", b"/", b"Content-Length: 1000000")), Sink()
    client.app.exchanges[0].body.start(sink)
    for _ in range(seconds):
        client.wait(1)
        client.send(b"x" * bytes_per_s)
    return client, sink


def test_a_body_slower_than_the_minimum_is_cut_after_its_grace():
    assert slow_body(100, 10)[1].end is None
    assert slow_body(1, 11)[1].end == "request-timeout"
    assert slow_body(500, 25)[1].end == "request-timeout"


def test_nothing_is_read_behind_a_body_that_was_too_slow():
    client, sink = slow_body(0, 11)
    assert sink.end == "request-timeout"
    client.send(b"x" * 1_000_000 + request(b"GET", b"/after"))
    give(client.app.exchanges[0], OK)
    assert client.only().headers[b"connection"] == [b"close"]
    assert client.wire.half_closed
    assert client.app.targets == [b"/"]


def test_a_body_of_the_minimum_rate_goes_on():
    assert slow_body(1024, 100)[1].end is None


def test_chunk_framing_does_not_count_as_body():
    client, sink = waiting().send(request(b"POST", b"/", b"Transfer-Encoding: chunked")), Sink()
    client.app.exchanges[0].body.start(sink)
    client.send(b"1;")
    for _ in range(11):
        client.wait(1)
        client.send(b"e" * 1000)
    assert sink.end == "request-timeout"


def test_a_slow_reader_of_a_body_is_not_its_clients_fault():
    client, sink = waiting().send(request(b"POST", b"/", b"Content-Length: 1000000")), Sink()
    body = client.app.exchanges[0].body
    body.start(sink)
    body.pause()
    client.wait(60)
    body.resume()
    client.wait(5)
    assert sink.end is None


def test_the_time_of_a_body_runs_from_when_it_is_wanted():
    client, sink = waiting().send(request(b"POST", b"/", b"Content-Length: 1000000")), Sink()
    client.wait(60)
    client.app.exchanges[0].body.start(sink)
    client.wait(9)
    assert sink.end is None


def test_a_client_that_takes_nothing_of_a_streamed_reply_is_dropped():
    client, source = Client(App(WAITING), stalled=True), Source()
    client.send(request())
    give(client.app.exchanges[0], Reply(status=200, body=source))
    client.wait(100)
    source.sink.write(b"x" * (BUFFER_BYTES + 1))
    client.wait(59)
    assert not client.wire.aborted
    client.wait(2)
    assert client.wire.aborted


def test_a_client_that_takes_nothing_of_its_whole_replies_is_dropped():
    client = Client(App(lambda _: Reply(status=200, body=b"x" * 40_000)), stalled=True)
    client.send(request() * 10)
    client.wait(61)
    assert client.wire.aborted


def test_a_client_that_takes_a_little_has_the_time_again():
    client, source = Client(App(WAITING), stalled=True), Source()
    client.send(request())
    give(client.app.exchanges[0], Reply(status=200, body=source))
    for _ in range(4):
        source.sink.write(b"x" * (BUFFER_BYTES + 1))
        client.wait(40)
        client.wire.drain()
    assert not client.wire.aborted


def test_a_client_that_does_not_take_the_last_reply_is_dropped():
    client = Client().send(request(b"GET", b"/", b"Connection: close"))
    client.wait(59)
    assert not client.wire.aborted
    client.wait(2)
    assert client.wire.aborted


# shutdown


def test_shutdown_closes_idle_connections_and_lets_busy_ones_finish():
    app = App(WAITING)
    site = make_site(app, Clock())
    idle, busy, half, piped = (Client(app, site=site, peer=f"192.0.2.{n}") for n in range(4))
    busy.send(request(b"GET", b"/busy"))
    half.send(b"GET / HT")
    piped.send(request(b"GET", b"/1") + request(b"GET", b"/2"))
    site.shutdown()
    assert (idle.wire.closed, busy.wire.closed, half.wire.closed, piped.wire.closed) == (True, False, True, False)
    for exchange in app.exchanges:  # grows by the second pipelined one
        give(exchange, OK)
    assert busy.only().headers[b"connection"] == [b"close"]
    assert [answer.headers.get(b"connection") for answer in piped.answers()] == [None, [b"close"]]
    assert busy.wire.closed
    assert piped.wire.closed


def test_a_stream_under_way_at_shutdown_is_finished_and_closed():
    client, source = waiting(), Source()
    client.send(request())
    give(client.app.exchanges[0], Reply(status=200, body=source))
    client.site.shutdown()
    source.sink.write(b"rest")
    source.sink.done()
    assert client.only().body == b"rest"
    assert client.wire.closed


def test_abort_resets_every_connection():
    app = App(WAITING)
    site = make_site(app, Clock())
    clients = [Client(app, site=site), Client(app, site=site)]
    clients[0].send(request())
    assert site.busy == 1
    site.abort()
    assert [client.wire.aborted for client in clients] == [True, True]


def test_one_client_has_few_requests_answered_in_a_turn():
    client = Client().send(request() * 40)
    assert len(client.answers()) == SERVED_A_TURN
    assert len(client.turns(5).answers()) == 40


def test_unanswered_requests_are_kept_as_the_bytes_they_came_in():
    client = waiting().send(request() * 2000)
    assert len(client.channel._queue) * len(request()) <= PIECE_BYTES


def test_a_turn_that_is_due_when_the_client_leaves_does_nothing():
    client = Client().send(request() * 40)
    answered = len(client.answers())
    client.leave()
    assert len(client.turns(5).answers()) == answered


def test_a_reply_that_was_not_taken_keeps_the_connection_busy():
    client = Client().send(request(b"GET", b"/", b"Connection: close"))
    assert client.wire.closed
    assert client.channel.busy
    assert client.site.busy == 1
    client.leave()
    assert client.site.busy == 0


# replies that end while their request is parsed


def answer_once_read(exchange):
    Deferred.fromCoroutine(collect(exchange.body, 999)).addCallback(lambda _: give(exchange, OK))


def test_a_reply_that_ends_with_the_last_byte_of_a_body_leaves_the_parser_to_what_follows():
    client = Client(App(answer_once_read)).send(request(b"POST", b"/a", b"Content-Length: 5"))
    client.send(b"hello" + request(b"PUT", b"/b", body=b"x" * 300)[:-200], b"x" * 200 + request(b"GET", b"/c"))
    assert client.app.targets == [b"/a", b"/b", b"/c"]
    assert client.app.exchanges[1].body.received == 300
    assert [answer.status for answer in client.answers()] == [200, 200, 200]


def test_lingering_ends_in_time_though_a_request_stands_behind_the_refused_body():
    client = waiting().send(request(b"POST", b"/a", b"Transfer-Encoding: chunked"))
    exchange = client.app.exchanges[0]
    exchange.body.cap = 1
    Deferred.fromCoroutine(collect(exchange.body, 100)).addErrback(lambda _: give(exchange, TOO_LARGE))
    client.send(b"2\r\nab\r\n0\r\n\r\n" + request(b"GET", b"/b") + b"GET /c HTTP/1.1\r\n")
    assert client.only().status == 413
    assert client.wire.half_closed
    client.wait(3)
    assert client.wire.closed
    assert client.app.targets == [b"/a"]


# what is left of a lost connection


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HT",
        request(),
        request() * 100,
        request(b"POST", b"/", b"Content-Length: 5") + b"he",
        request(b"POST", b"/", b"Connection: upgrade", b"Upgrade: x", body=b"hello"),
        b"nonsense\r\n",
        request(b"GET", b"/", b"Content-Length: x"),
        request(b"GET", b"/", b"Host: another"),
        request(b"GET", b"/" + b"a" * 9000),
        request(b"POST", b"/", b"Transfer-Encoding: chunked") + b"1;" + b"x" * 90_000,
    ],
)
@pytest.mark.parametrize("answered", [False, True])
def test_a_lost_connection_goes_with_all_it_holds_and_waits_for_no_collector(sent, answered):
    def lost():
        app = App(lambda _: OK if answered else None)
        client = Client(app).send(sent)
        client.leave()
        client.turns(1)
        app.exchanges.clear()
        app.refusals.clear()
        return client.channel

    assert goes_by_itself(lost)
