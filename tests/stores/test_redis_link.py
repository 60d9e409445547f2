"""The link to Redis, synchronous: deadlines, handshake, breaker and recovery on a clock moved by hand."""

from collections.abc import Callable, Iterator
from math import ceil
from typing import Any, ClassVar

import pytest
from deferreds import failure_of, success_of
from redis_peer import Endpoint, Transport
from store_fakes import RecordingTelemetry
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from bakerygw.ports import StoreUnavailable
from bakerygw.stores.redis_line import RETRY_MAX_S, RedisAccess
from bakerygw.stores.redis_link import RedisLink
from bakerygw.stores.redis_wire import Script

PING = b"*1\r\n$4\r\nPING\r\n"
SCRIPT = Script.of(b"return 1")


class Bench:
    """A link on a clock, whose peer the test plays."""

    started: ClassVar[list["Bench"]] = []

    def __init__(self, *, ready: bool = True, **credentials) -> None:
        self.clock, self.endpoint, self.telemetry = Clock(), Endpoint(), RecordingTelemetry()
        access = RedisAccess(reactor=self.clock, endpoint=self.endpoint, jitter=lambda: 1.0, **credentials)
        self.link = RedisLink(access, timeout_s=0.05, telemetry=self.telemetry)
        self.first_try = self.link.start()
        self.started.append(self)
        if ready:
            self.answer(b"+PONG\r\n")
            self.sent()

    @property
    def transport(self) -> Transport:
        return self.endpoint.protocols[-1].transport

    def sent(self) -> bytes:
        data = self.transport.value()
        self.transport.clear()
        return data

    def answer(self, data: bytes) -> None:
        self.endpoint.protocols[-1].dataReceived(data)

    def call(self, *command):
        return Deferred.fromCoroutine(self.link.call(*command))

    def pass_time(self, seconds: float) -> None:
        """Time in small steps, so that what a timer starts gets its own time."""
        for _ in range(ceil(seconds * 64)):
            self.clock.advance(1 / 64)


READONLY = b"-READONLY x"


def refuse(bench: Bench, error: bytes, times: int = 1) -> None:
    """So many calls get this reply, as far as they are made at all."""
    for _ in range(times):
        call = bench.call("SET", "k", "v")
        if bench.sent():
            bench.answer(error + b"\r\n")
        failure_of(call, StoreUnavailable)


def respond(bench: Bench, refusal: bytes | None) -> bool:
    """Answer what the link asks by itself: pings well, proofs with this error if any. Whether it asked for a proof."""
    if not bench.endpoint.protocols[-1].connected:
        return False
    sent = bench.sent()
    if PING in sent:
        bench.answer(b"+PONG\r\n")
        sent += bench.sent()
    if proof := b"EVAL" in sent:
        bench.answer((refusal or b"+OK") + b"\r\n")
    return proof


@pytest.fixture
def link_log(logged: Callable[[str], list[dict[str, Any]]]) -> Callable[[], list[tuple[str, str]]]:
    """What was logged of the link's state until now."""
    return lambda: [(event["state"], event["reason"]) for event in logged("store.link")]


@pytest.fixture(autouse=True)
def no_link_is_left() -> Iterator[None]:
    """A link that is thrown away while it runs complains when it is collected, during whatever test that may be."""
    yield
    while Bench.started:
        Bench.started.pop().link.stop()


def test_a_reply_is_bytes_as_sent():
    bench = Bench()
    call = bench.call("GET", "k")
    assert bench.sent() == b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"
    bench.answer(b"$5\r\n00123\r\n")
    assert success_of(call) == b"00123"
    assert len(bench.telemetry.round_trips) == 1


def test_calls_are_pipelined_and_answered_in_order():
    bench = Bench()
    calls = [bench.call("GET", str(n)) for n in range(3)]
    bench.answer(b"$1\r\na\r\n:2\r\n*2\r\n$-1\r\n+OK\r\n")
    assert [success_of(call) for call in calls] == [b"a", 2, [None, b"OK"]]


def test_the_handshake_authenticates_selects_and_pings_before_any_use():
    bench = Bench(ready=False, username="gw", password="secret", db=3)
    assert bench.sent() == b"*3\r\n$4\r\nAUTH\r\n$2\r\ngw\r\n$6\r\nsecret\r\n"
    bench.answer(b"+OK\r\n")
    assert bench.sent() == b"*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n"
    failure_of(bench.call("GET", "k"), StoreUnavailable)
    bench.answer(b"+OK\r\n")
    assert bench.sent() == PING
    assert (bench.link.status, bench.first_try.called) == ("disconnected", False)
    bench.answer(b"+PONG\r\n")
    assert (bench.link.status, bench.first_try.called) == ("connected", True)


@pytest.mark.parametrize("refusal", [b"-NOAUTH x\r\n", b"-LOADING x\r\n", b"-ERR max number of clients\r\n", b"!\r\n"])
def test_a_failed_handshake_ends_that_connection_and_another_is_tried(refusal):
    bench = Bench(ready=False)
    bench.answer(refusal)
    assert bench.transport.aborted
    assert bench.first_try.called
    assert bench.link.status == "disconnected"
    bench.pass_time(0.2)
    assert len(bench.endpoint.protocols) == 2
    bench.answer(b"+PONG\r\n")
    assert bench.link.status == "connected"


def test_a_handshake_without_answer_is_given_up_after_a_second():
    bench = Bench(ready=False)
    bench.pass_time(0.9)
    assert not bench.transport.aborted
    bench.pass_time(0.2)
    assert bench.endpoint.protocols[0].transport.aborted


def test_a_connect_without_answer_is_given_up_and_tried_again():
    bench = Bench()
    bench.endpoint.mode = "silent"
    bench.transport.abortConnection()
    bench.pass_time(0.5)
    bench.endpoint.mode = "accept"
    bench.pass_time(1.5)
    assert len(bench.endpoint.protocols) == 2


def test_without_a_connection_calls_fail_at_once_and_nothing_is_kept():
    bench = Bench()
    bench.endpoint.mode = "refuse"
    bench.transport.abortConnection()
    failure_of(bench.call("GET", "k"), StoreUnavailable)
    assert bench.telemetry.failures == ["disconnected"]
    bench.endpoint.mode = "accept"
    bench.pass_time(RETRY_MAX_S)
    assert bench.sent() == PING


def test_attempts_come_ever_slower_but_at_least_every_two_seconds():
    bench = Bench()
    bench.endpoint.mode = "refuse"
    bench.transport.abortConnection()
    bench.pass_time(60)
    bench.endpoint.mode = "accept"
    waits = [call.getTime() - bench.clock.seconds() for call in bench.clock.getDelayedCalls()]
    assert len(waits) == 1
    bench.pass_time(RETRY_MAX_S + 0.02)
    bench.answer(b"+PONG\r\n")
    assert bench.link.status == "connected"


def test_those_who_wait_learn_at_once_that_the_connection_is_gone():
    bench = Bench()
    call = bench.call("GET", "k")
    bench.transport.abortConnection()
    failure_of(call, StoreUnavailable)
    assert bench.telemetry.failures == ["disconnected"]


def test_a_call_has_its_deadline_and_its_late_reply_goes_to_nobody_else():
    bench = Bench()
    late, following = bench.call("GET", "a"), None
    bench.pass_time(0.04)
    assert not late.called
    following = bench.call("GET", "b")
    bench.pass_time(0.03)
    failure_of(late, StoreUnavailable)
    bench.answer(b"$4\r\nlate\r\n$3\r\nown\r\n")
    assert success_of(following) == b"own"
    assert bench.telemetry.failures == ["timeout"]


def test_a_cancelled_call_leaves_replies_in_step_and_no_timer_behind():
    bench = Bench()
    timers = len(bench.clock.getDelayedCalls())
    leaver, stayer = bench.call("GET", "a"), bench.call("GET", "b")
    leaver.cancel()
    failure_of(leaver, CancelledError)
    bench.answer(b"$1\r\na\r\n$1\r\nb\r\n")
    assert success_of(stayer) == b"b"
    assert len(bench.clock.getDelayedCalls()) == timers


def test_a_reply_that_came_in_while_the_reactor_was_busy_is_in_time():
    bench = Bench()
    call = bench.call("GET", "k")
    bench.clock.advance(0.5)  # one long turn: timers run before anybody can look at the socket
    bench.answer(b"$1\r\nv\r\n")
    assert success_of(call) == b"v"


@pytest.mark.parametrize("error", [b"-OOM x", b"-BUSY x", b"-EXECABORT x", b"-ERR no READONLY x"])
def test_an_error_reply_is_unavailable_and_counts_but_keeps_the_connection(error):
    bench = Bench()
    for _ in range(5):
        call = bench.call("SET", "k", "v")
        bench.answer(error + b"\r\n")
        failure_of(call, StoreUnavailable)
    failure_of(bench.call("SET", "k", "v"), StoreUnavailable)
    assert bench.telemetry.failures == ["error"] * 5 + ["open"]
    assert bench.link.status == "disconnected"
    assert not bench.transport.aborted


IN_A_SCRIPT_OF_REDIS_6 = (
    b"-ERR Error running script (call to f_0a): @user_script:56: @user_script: 56: "
    b"-READONLY You can't write against a read only replica."
)


@pytest.mark.parametrize(
    "error",
    [
        b"-READONLY You can't write against a read only replica. script: 0a, on @user_script:56.",
        IN_A_SCRIPT_OF_REDIS_6,
        b"-MASTERDOWN x",
        b"-LOADING x",
        b"-NOREPLICAS x",
        b"-MISCONF x",
        b"-NOAUTH x",
        b"-NOPERM x",
        b"-CLUSTERDOWN x",
        b"-MOVED 1 h:1",
    ],
)
def test_five_replies_of_an_unfit_server_end_the_connection(error):
    bench = Bench()
    refuse(bench, error, times=4)
    assert not bench.transport.aborted
    refuse(bench, error)
    assert bench.endpoint.protocols[0].transport.aborted
    assert bench.link.status == "disconnected"


def test_an_unfit_reply_in_a_script_ends_the_connection_too():
    bench = Bench()
    for _ in range(5):
        call = Deferred.fromCoroutine(bench.link.run(SCRIPT, [], []))
        bench.answer(IN_A_SCRIPT_OF_REDIS_6 + b"\r\n")
        failure_of(call, StoreUnavailable)
    assert bench.endpoint.protocols[0].transport.aborted


def test_after_an_unfit_server_the_next_has_to_take_a_write_before_any_use():
    bench = Bench()
    refuse(bench, READONLY, times=5)
    bench.pass_time(0.11)
    bench.sent()
    bench.answer(b"+PONG\r\n")
    assert bench.sent().startswith(b"*4\r\n$4\r\nEVAL\r\n")
    failure_of(bench.call("GET", "k"), StoreUnavailable)
    assert bench.telemetry.failures[-1] == "disconnected"
    bench.answer(b"$2\r\nOK\r\n")
    assert bench.link.status == "disconnected"  # what the calls ask may still be refused
    bench.clock.advance(0.9)
    call = bench.call("GET", "k")
    bench.answer(b"$1\r\nv\r\n")
    assert success_of(call) == b"v"
    assert bench.link.status == "connected"


def test_unfit_servers_are_met_ever_more_seldom():
    bench = Bench()
    refuse(bench, READONLY, times=5)
    for _ in range(64 * 60):
        bench.clock.advance(1 / 64)
        respond(bench, READONLY)
    assert 30 <= len(bench.endpoint.protocols) <= 40
    assert all(protocol.transport.aborted for protocol in bench.endpoint.protocols[:-1])


def test_a_lasting_connection_that_is_lost_is_made_anew_at_once():
    bench = Bench()
    for lost in range(1, 4):
        bench.pass_time(0.9)
        bench.answer(b"+PONG\r\n" * bench.sent().count(PING))
        bench.pass_time(1.5)
        bench.answer(b"+PONG\r\n" * bench.sent().count(PING))
        bench.transport.abortConnection()
        bench.pass_time(0.11)
        assert len(bench.endpoint.protocols) == 1 + lost
        bench.answer(b"+PONG\r\n")
        bench.sent()


def test_one_unfit_reply_is_followed_up_without_further_calls():
    bench = Bench()
    refuse(bench, READONLY)
    assert bench.link.status == "connected"
    bench.sent()
    bench.pass_time(1.0)
    assert respond(bench, READONLY)
    assert bench.endpoint.protocols[0].transport.aborted
    assert bench.link.status == "disconnected"


def test_without_calls_a_proof_tells_that_redis_serves_again():
    bench = Bench()
    refuse(bench, b"-OOM x", times=5)
    bench.sent()
    for _ in range(64 * 3):
        bench.clock.advance(1 / 64)
        respond(bench, b"-OOM x")
    assert bench.link.status == "disconnected"
    for _ in range(64 * 4):
        bench.clock.advance(1 / 64)
        respond(bench, None)
    assert bench.link.status == "connected"
    assert len(bench.endpoint.protocols) == 1


def test_while_calls_are_refused_a_proof_tells_nothing():
    bench = Bench()
    refuse(bench, b"-EXECABORT x", times=5)
    bench.sent()
    for step in range(64 * 10):
        bench.clock.advance(1 / 64)
        respond(bench, None)
        if step % 16 == 0:
            call = bench.call("GET", "k")
            if bench.sent():
                bench.answer(b"-EXECABORT x\r\n")
            failure_of(call, StoreUnavailable)
        assert bench.link.status == "disconnected"


def test_the_log_says_failing_with_the_reply_once_and_connected_once_it_serves(link_log):
    bench = Bench()
    refuse(bench, b"-READONLY You can't write" + b"!" * 300, times=7)
    for _ in range(64 * 10):
        bench.clock.advance(1 / 64)
        respond(bench, READONLY)
    assert link_log() == [("connected", ""), ("failing", ("READONLY You can't write" + "!" * 300)[:200])]
    for _ in range(64 * 8):
        bench.clock.advance(1 / 64)
        respond(bench, None)
    assert bench.link.status == "connected"
    assert link_log()[2:] == [("connected", "")]
    refuse(bench, READONLY, times=5)
    assert link_log()[3:] == [("failing", "READONLY x")]


def test_the_log_says_failing_after_five_timeouts(link_log):
    bench = Bench()
    calls = [bench.call("GET", "k") for _ in range(5)]
    bench.pass_time(0.07)
    for call in calls:
        failure_of(call, StoreUnavailable)
    assert link_log() == [("connected", ""), ("failing", "no answer in time")]


def test_a_loss_of_a_serving_connection_is_logged_as_such(link_log):
    bench = Bench()
    bench.transport.abortConnection()
    assert link_log() == [("connected", ""), ("lost", "")]


def test_after_five_timeouts_calls_cost_nothing_and_the_connection_is_made_anew():
    bench = Bench()
    calls = [bench.call("GET", "k") for _ in range(5)]
    bench.pass_time(0.07)
    for call in calls:
        failure_of(call, StoreUnavailable)
    assert bench.endpoint.protocols[0].transport.aborted
    bench.pass_time(0.15)
    bench.answer(b"+PONG\r\n")
    bench.sent()
    failure_of(bench.call("GET", "k"), StoreUnavailable)
    assert bench.sent() == b""
    assert bench.telemetry.failures == ["timeout"] * 5 + ["open"]
    bench.clock.advance(0.85)
    probe = bench.call("GET", "k")
    bench.answer(b"$1\r\nv\r\n")
    assert success_of(probe) == b"v"
    assert bench.link.status == "connected"


def test_a_missing_script_is_loaded_also_by_the_probe_of_an_open_breaker():
    bench = Bench()
    for _ in range(5):
        call = bench.call("GET", "k")
        bench.answer(b"-BUSY x\r\n")
        failure_of(call, StoreUnavailable)
    bench.sent()
    bench.clock.advance(1.0)
    bench.answer(b"$2\r\nOK\r\n")  # to the heartbeat
    bench.sent()
    probe = Deferred.fromCoroutine(bench.link.run(SCRIPT, [], []))
    assert b"EVALSHA" in bench.sent()
    bench.answer(b"-NOSCRIPT No matching script.\r\n")
    assert bench.sent() == b"*3\r\n$4\r\nEVAL\r\n$8\r\nreturn 1\r\n$1\r\n0\r\n"
    bench.answer(b":1\r\n")
    assert success_of(probe) == 1


def test_an_idle_connection_that_went_silent_is_noticed():
    bench = Bench()
    bench.pass_time(1.0)
    assert bench.sent() == PING
    bench.pass_time(1.05)
    assert bench.endpoint.protocols[0].transport.aborted
    assert bench.link.status == "disconnected"


def test_an_idle_connection_that_answers_stays():
    bench = Bench()
    for _ in range(5):
        bench.pass_time(1.0)
        assert bench.sent() == PING
        bench.answer(b"+PONG\r\n")
    assert len(bench.endpoint.protocols) == 1


@pytest.mark.parametrize("junk", [b"+unasked\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_peer_that_says_what_nobody_asked_is_dropped(junk):
    bench = Bench()
    bench.answer(junk)
    assert bench.transport.aborted


@pytest.mark.parametrize("moment", ["connecting", "greeting", "connected", "waiting"])
def test_stopping_ends_everything_at_any_moment(moment):
    bench = Bench(ready=moment != "greeting")
    if moment in ("connecting", "waiting"):
        bench.endpoint.mode = "silent" if moment == "connecting" else "refuse"
        bench.transport.abortConnection()
        bench.pass_time(0.15)
    success_of(bench.link.stop())
    assert bench.transport.aborted
    assert bench.clock.getDelayedCalls() == []
    assert bench.link.status == "disconnected"
    failure_of(bench.call("GET", "k"), StoreUnavailable)


def test_stopping_in_the_midst_of_a_proof_ends_everything():
    bench = Bench()
    refuse(bench, READONLY, times=5)
    bench.pass_time(0.11)
    bench.answer(b"+PONG\r\n")
    assert b"EVAL" in bench.sent()
    success_of(bench.link.stop())
    assert bench.transport.aborted
    assert bench.clock.getDelayedCalls() == []


def test_stopping_what_never_started_is_no_trouble():
    bench = Bench()
    success_of(bench.link.stop())
    success_of(bench.link.stop())


@pytest.mark.parametrize(
    ("credentials", "answer", "why"),
    [
        ({}, None, "GoneError: Lost connection"),
        ({"password": "no"}, b"-WRONGPASS no such user\r\n", "WRONGPASS no such user"),
    ],
)
def test_who_calls_without_a_connection_is_told_why_there_is_none(credentials, answer, why):
    bench = Bench(ready=False, **credentials)
    if answer is None:
        bench.endpoint.protocols[-1].transport.abortConnection()
    else:
        bench.answer(answer)
    assert why in str(failure_of(bench.call("GET", "k"), StoreUnavailable))


def test_the_way_to_redis_does_not_show_its_password():
    access = RedisAccess(reactor=Clock(), endpoint=Endpoint(), username="gw", password="not-to-be-seen")
    assert "gw" in repr(access)
    assert "not-to-be-seen" not in repr(access)
