"""How Redis is brought to tell of changes, and when it is not trusted to; synchronous, on a clock moved by hand."""

from collections.abc import Iterator
from typing import ClassVar

import pytest
from deferreds import success_of
from redis_peer import TellingRedis
from store_fakes import RecordingTelemetry
from twisted.internet.task import Clock

from bakerygw.core.tenancy import TenantFlags
from bakerygw.stores.invalidation import PING_S, RETRY_SELDOM_S, RETRY_SOON_S, Invalidations
from bakerygw.stores.mirror import Mirror
from bakerygw.stores.mirror_table import TRUST_S, Found
from bakerygw.stores.redis_line import RedisAccess
from bakerygw.stores.redis_link import RedisLink

HELD = TenantFlags(demo=True)
TRACK = (
    b"CLIENT TRACKING ON REDIRECT 42 BCAST PREFIX tenant: PREFIX bakerygw:revoked: PREFIX bakerygw:limits:",
    b"SET bakerygw:revoked:canary-me 1 PX 1000",
)


class Bench:
    """A mirror between two connections to a Redis of the test's."""

    started: ClassVar[list["Bench"]] = []

    def __init__(self, *, mute: bool = False, signals=None, **refuse: bytes | None) -> None:
        self.clock, self.redis, self.mirror = Clock(), TellingRedis(), Mirror()
        self.redis.mute = mute
        self.redis.refuse = {name.replace("_", " ").encode(): error for name, error in refuse.items()}
        self.clock.advance(1000)
        data, subscriber = (
            RedisAccess(reactor=self.clock, endpoint=endpoint, jitter=lambda: 1.0)
            for endpoint in (self.redis.data, self.redis.subscriber)
        )
        self.link = RedisLink(data, timeout_s=0.05, telemetry=RecordingTelemetry())
        self.invalidations = Invalidations(subscriber, self.link, self.mirror, name="me", signals=signals)
        self.link.start()
        self.invalidations.start()
        self.started.append(self)
        self.redis.pump()

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 100)):
            self.clock.advance(0.01)
            self.redis.pump()

    @property
    def trusted(self) -> bool:
        return self.mirror.trusted(self.clock.seconds())

    def put(self, tenant_id: str) -> None:
        read = self.mirror.begin((tenant_id,), (), self.clock.seconds())
        self.mirror.keep(read, {tenant_id: Found(value=HELD, ttl_s=100.0)}, {})
        self.mirror.end(read)

    def holds(self, tenant_id: str) -> bool:
        return self.mirror.held((tenant_id,), (), self.clock.seconds()) is not None

    def lose(self, side: str) -> None:
        getattr(self.redis, side).protocols[-1].transport.abortConnection()


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    while Bench.started:
        bench = Bench.started.pop()
        bench.invalidations.stop()
        bench.link.stop()


@pytest.fixture
def bench():
    bench = Bench()
    bench.pass_time(2 * PING_S)
    assert bench.trusted
    bench.redis.commands.clear()
    bench.put("t")
    assert bench.holds("t")
    return bench


def test_every_change_is_asked_for_and_tried_before_the_mirror_is_trusted():
    bench = Bench()
    bench.pass_time(2 * PING_S)
    assert bench.redis.take("subscriber")[:4] == [b"PING", b"PING", b"CLIENT ID", b"SUBSCRIBE __redis__:invalidate"]
    assert bench.redis.take("data")[:4] == [b"PING", b"CLIENT TRACKING OFF", *TRACK]
    assert bench.trusted


def test_what_redis_tells_reaches_the_mirror(bench):
    bench.put("u")
    bench.redis.change(b"tenant:t:demo", b"tenant:x:demo")
    assert not bench.holds("t")
    assert bench.holds("u")
    bench.redis.change()
    assert not bench.holds("u")
    assert bench.trusted


def test_what_anybody_publishes_on_the_channel_does_no_harm(bench):
    bench.redis.publish(b"$3\r\nabc\r\n")
    assert not bench.holds("t")
    assert bench.trusted
    assert bench.redis.subscriber.protocols[-1].connected


def test_both_connections_are_pinged_and_trust_goes_on_as_long_as_they_answer(bench):
    bench.pass_time(30.0)
    assert 95 <= bench.redis.take("subscriber").count(b"PING") <= 101
    assert bench.redis.take("data").count(b"PING") >= 95
    assert bench.holds("t")


@pytest.mark.parametrize("side", ["data", "subscriber"])
def test_without_answers_trust_ends_in_time(bench, side):
    bench.redis.silent = {side}
    bench.pass_time(TRUST_S)
    assert not bench.trusted


def test_a_subscriber_connection_that_went_silent_is_made_anew_and_the_mirror_begins_empty(bench):
    bench.redis.silent = {"subscriber"}
    bench.pass_time(PING_S + TRUST_S + 0.05)
    assert bench.redis.subscriber.protocols[0].transport.aborted
    bench.redis.silent = set()
    bench.pass_time(1.0)
    assert len(bench.redis.subscriber.protocols) == 2
    assert bench.trusted
    assert not bench.holds("t")


def test_a_data_connection_that_was_only_late_is_trusted_again_with_what_was_held(bench):
    bench.redis.silent = {"data"}
    bench.pass_time(TRUST_S + 0.05)
    assert not bench.trusted
    bench.redis.silent = set()
    bench.pass_time(2 * PING_S)
    assert len(bench.redis.data.protocols) == 1
    assert bench.holds("t")


@pytest.mark.parametrize("side", ["data", "subscriber"])
def test_a_lost_connection_ends_trust_at_once_and_the_next_begins_empty(bench, side):
    bench.lose(side)
    assert not bench.trusted
    bench.pass_time(1.0)
    assert bench.trusted
    assert not bench.holds("t")
    assert bench.redis.take("data")[-4:].count(b"PING") > 0


@pytest.mark.parametrize("side", ["data", "subscriber"])
def test_tracking_is_asked_for_again_on_each_new_connection(bench, side):
    for _ in range(3):
        bench.lose(side)
        bench.pass_time(1.0)
        assert list(TRACK) == [command for command in bench.redis.take("data") if command in TRACK]
        asked = bench.redis.take("subscriber")
        assert (b"SUBSCRIBE __redis__:invalidate" in asked) == (side == "subscriber")


def test_a_data_connection_lost_while_a_ping_of_the_subscriber_is_under_way_is_not_confirmed(bench):
    bench.redis.silent = {"subscriber"}
    bench.clock.advance(PING_S)
    bench.lose("data")
    bench.redis.silent = set()
    bench.redis.pump()
    assert not bench.trusted


def test_a_subscriber_that_stays_with_another_server_than_new_data_is_made_anew(bench):
    first = bench.redis.subscriber.protocols[-1]
    bench.redis.refuse = {b"CLIENT TRACKING ON": b"ERR The client ID you want redirect to does not exist"}
    bench.lose("data")
    bench.pass_time(2 * PING_S)
    assert first.transport.aborted
    bench.redis.refuse = {}
    bench.pass_time(2.0)
    assert len(bench.redis.subscriber.protocols) == 2
    assert bench.trusted


def test_redis_that_tells_nothing_is_never_trusted():
    bench = Bench(mute=True)
    bench.pass_time(10.0)
    assert bench.redis.take("data").count(TRACK[0]) > 1
    assert not bench.trusted


@pytest.mark.parametrize(
    "refused", ["CLIENT_ID", "CLIENT_TRACKING", "SUBSCRIBE", "SET"], ids=lambda name: name.replace("_", " ")
)
@pytest.mark.parametrize(
    "error",
    [
        b"NOPERM this user has no permissions",
        b"ERR unknown command 'CLIENT', with args beginning with: 'TRACKING' ",
        b"ERR Unknown subcommand or wrong number of arguments for 'TRACKING'. Try CLIENT HELP",
        b"ERR wrong number of arguments for 'client|tracking' command",
        b"ERR syntax error",
    ],
)
def test_redis_that_refuses_for_good_is_asked_ever_more_seldom_on_the_same_connections(refused, error):
    bench = Bench(**{refused: error})
    bench.pass_time(200.0)
    words = refused.replace("_", " ").encode()
    attempts = [command for _, command in bench.redis.commands if command.startswith(words)]
    assert 5 <= len(attempts) <= 10
    assert not bench.trusted
    assert len(bench.redis.subscriber.protocols) == len(bench.redis.data.protocols) == 1
    bench.redis.refuse = {}
    bench.pass_time(RETRY_SELDOM_S + PING_S)
    assert bench.trusted


@pytest.mark.parametrize(
    "error",
    [
        b"OOM command not allowed when used memory > 'maxmemory'.",
        b"LOADING Redis is loading the dataset in memory",
        b"READONLY You can't write against a read only replica.",
        b"MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
        b"ERR max number of clients reached",
    ],
)
def test_what_passes_by_itself_is_tried_again_soon_however_long_it_lasted(error):
    bench = Bench(SET=error)
    bench.pass_time(200.0)
    assert not bench.trusted
    assert bench.redis.take("data").count(TRACK[1]) >= 200 / (RETRY_SOON_S + PING_S)
    bench.redis.refuse = {}
    bench.pass_time(RETRY_SOON_S + PING_S + 0.05)
    assert bench.trusted


def test_a_redis_that_did_not_tell_for_long_is_tried_again_soon():
    bench = Bench(mute=True)
    bench.pass_time(200.0)
    bench.redis.mute = False
    bench.pass_time(RETRY_SOON_S + PING_S + 0.05)
    assert bench.trusted


def test_a_proxy_that_closes_connections_over_it_is_bothered_seldom():
    bench = Bench(mute=True)
    closed = 0
    for _ in range(2000):
        bench.clock.advance(0.1)
        bench.redis.pump()
        if TRACK[0] in bench.redis.take("data"):
            bench.lose("data")
            closed += 1
    assert 4 <= closed <= 10


def test_stopping_leaves_no_timer_and_no_trust(bench):
    success_of(bench.invalidations.stop())
    success_of(bench.link.stop())
    assert bench.clock.getDelayedCalls() == []
    assert not bench.trusted


@pytest.mark.parametrize("moment", ["subscriber", "data"])
def test_stopping_in_the_midst_of_a_ping_leaves_no_timer(bench, moment):
    bench.redis.silent = {moment}
    bench.pass_time(PING_S + 0.1)
    success_of(bench.invalidations.stop())
    success_of(bench.link.stop())
    assert bench.clock.getDelayedCalls() == []


def test_a_subscriber_lost_while_the_own_change_is_awaited_ends_that_attempt():
    bench = Bench(mute=True)
    bench.pass_time(PING_S + 0.1)
    bench.lose("subscriber")
    bench.redis.mute = False
    bench.redis.change(b"bakerygw:revoked:canary-me")
    assert not bench.trusted
    bench.pass_time(2.0)
    assert bench.trusted


def test_a_data_connection_lost_while_the_own_change_is_awaited_is_not_trusted_for_it():
    bench = Bench(mute=True)
    bench.lose("data")
    bench.redis.publish(b"*1\r\n$26\r\nbakerygw:revoked:canary-me\r\n")
    assert not bench.trusted
    bench.redis.mute = False
    bench.pass_time(2.0)
    assert bench.trusted


class TestSignals:
    def heard_by(self, **refuse):
        heard = []
        bench = Bench(signals=heard.append, **refuse)
        bench.pass_time(2 * PING_S)
        return bench, heard

    def test_messages_of_the_channel_of_signals_are_no_invalidations(self):
        bench, heard = self.heard_by()
        bench.put("t")
        bench.redis.publish(b"$3\r\nabc\r\n", b"bakerygw:signals")
        assert heard == [b"abc"]
        assert bench.holds("t")

    def test_they_are_heard_on_each_new_connection(self):
        bench, _ = self.heard_by()
        bench.redis.commands.clear()
        bench.lose("subscriber")
        bench.pass_time(1.0)
        assert bench.redis.take("subscriber").count(b"SUBSCRIBE bakerygw:signals") == 1

    def test_where_they_are_refused_the_mirror_goes_on(self):
        bench, _ = self.heard_by(**{"SUBSCRIBE bakerygw:signals": b"NOPERM no channel"})
        bench.pass_time(10.0)
        assert bench.trusted
        assert bench.redis.take("subscriber").count(b"SUBSCRIBE bakerygw:signals") == 1

    def test_a_redis_that_does_not_answer_is_met_anew(self):
        bench, _ = self.heard_by(**{"SUBSCRIBE bakerygw:signals": None})
        bench.pass_time(TRUST_S + 0.5)
        assert bench.redis.subscriber.protocols[0].transport.aborted
