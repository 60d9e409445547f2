"""How an instance begins to listen, how it is in doubt, and what others vouch for."""

import pytest
from twisted.internet.defer import Deferred

from bakerygw.stores.alert_channel import LONGEST_SILENCE_S, PING_S, RETRY_MAX_S, SILENT_BEATS, STALE_BEATS
from bakerygw.stores.vouching import LISTENING, MAX_PENDING, VOUCH_S
from tests.realtime.alert_sim import Instance, SimRedis, go, packed


class Scene:
    """One Redis, and instances that are closed in the end."""

    def __init__(self) -> None:
        self.redis, self.instances = SimRedis(), []

    def start(self, seconds: float = 0.2) -> Instance:
        instance = Instance(self.redis)
        self.instances.append(instance)
        self.go(seconds)
        return instance

    def go(self, seconds: float) -> None:
        go(self.instances, seconds)


@pytest.fixture
def scene():
    scene = Scene()
    yield scene
    for instance in scene.instances:
        instance.close()


def test_the_first_to_listen_begins_an_era_at_once(scene):
    first = scene.start()

    assert first.is_listening
    assert scene.redis.era == 2
    assert first.telemetry.eras == 1
    assert first.telemetry.states == [True]
    assert first.hub.told == ["restored"]


def test_another_is_vouched_for_and_begins_none(scene):
    scene.start()
    second = scene.start()

    assert second.is_listening
    assert scene.redis.era == 2
    assert second.telemetry.eras == 0


def test_two_that_start_together_begin_one_era(scene):
    first, second = Instance(scene.redis), Instance(scene.redis)
    scene.instances += [first, second]
    for _ in range(6):
        for instance in (first, second):
            instance.connection.serve()
            instance.connection.deliver()
    scene.go(VOUCH_S - 0.1)
    assert not first.is_listening
    scene.go(VOUCH_S + 0.2)

    assert first.is_listening
    assert second.is_listening
    assert scene.redis.era == 2


def test_who_hangs_does_not_vouch_and_a_new_era_begins(scene):
    hanging = scene.start()
    scene.instances.remove(hanging)
    second = scene.start(VOUCH_S - 0.1)
    assert not second.is_listening
    scene.go(0.3)
    scene.instances.append(hanging)

    assert second.is_listening
    assert scene.redis.era == 3


def test_who_could_not_store_what_it_heard_vouches_only_when_it_has(scene):
    first = scene.start()
    first.link.set_up(False)
    scene.redis.alert(b"1")
    first.flow()
    second = scene.start(0.3)
    assert not second.is_listening
    first.link.set_up(True)
    scene.go(0.6)

    assert second.is_listening
    assert len(scene.redis.stored) == 1
    assert scene.redis.era == 2


def test_a_connection_that_is_lost_is_told_at_once_and_made_good_by_who_went_on(scene):
    first, second = scene.start(), scene.start()
    second.connection.cut()
    assert not second.is_listening
    assert second.hub.told[-1] == "degraded"
    scene.redis.alert(b"1")
    scene.go(0.5)

    assert second.is_listening
    assert second.hub.told[-2:] == ["degraded", "restored"]
    assert scene.redis.era == 2
    assert [payload for _, _, payload in first.hub.stored_] == [b'{"alert_id":"1"}']


def test_of_one_that_is_alone_it_begins_an_era(scene):
    only = scene.start()
    only.connection.cut()
    scene.go(0.5)

    assert only.is_listening
    assert scene.redis.era == 3


def test_a_redis_that_pauses_is_in_doubt_within_a_second_and_costs_no_era(scene):
    only = scene.start()
    only.link.set_up(False)
    only.clock.pump([PING_S] * (SILENT_BEATS + 1))
    assert not only.is_listening
    only.clock.pump([PING_S] * (STALE_BEATS + 5))
    only.link.set_up(True)
    scene.redis.alert(b"1")
    scene.go(0.5)

    assert only.is_listening
    assert len(only.connections) == 1
    assert scene.redis.era == 2
    assert [payload for _, _, payload in only.hub.stored_] == [b'{"alert_id":"1"}']


def test_a_connection_that_leads_nowhere_is_made_anew_while_the_other_goes_on(scene):
    only = scene.start()
    only.clock.pump([PING_S] * (STALE_BEATS + 3))

    assert len(only.connections) == 2


def test_a_redis_that_is_silent_for_long_is_met_anew(scene):
    only = scene.start()
    only.link.set_up(False)
    only.clock.pump([PING_S] * (round(LONGEST_SILENCE_S / PING_S) - 3))
    assert len(only.connections) == 1
    only.clock.pump([PING_S] * 10)

    assert len(only.connections) > 1


def test_a_ping_that_is_refused_ends_the_connection(scene):
    only = scene.start()
    only.clock.advance(PING_S)
    only.connection.transport.clear()
    only.connection.protocol.dataReceived(b"-ERR unknown command\r\n")
    scene.go(0.5)

    assert len(only.connections) == 2
    assert only.is_listening


def test_a_redis_that_is_busy_with_a_script_costs_neither_the_connection_nor_an_era(scene):
    only = scene.start()
    for _ in range(2 * SILENT_BEATS):
        only.clock.advance(PING_S)
        only.connection.transport.clear()
        only.connection.protocol.dataReceived(b"-BUSY Redis is busy running a script.\r\n")
    scene.redis.alert(b"1")
    scene.go(0.5)

    assert only.is_listening
    assert len(only.connections) == 1
    assert scene.redis.era == 2
    assert [payload for _, _, payload in only.hub.stored_] == [b'{"alert_id":"1"}']


def test_an_answer_to_the_question_of_another_vouches_for_nothing(scene):
    hanging = scene.start()
    scene.instances.remove(hanging)
    second = scene.start(0.1)
    scene.redis.publish(LISTENING.encode(), b"sure " + b"f" * 16)
    scene.go(VOUCH_S / 2)
    scene.instances.append(hanging)

    assert not second.is_listening


def test_what_may_be_older_than_the_history_remembers_is_not_heard(scene):
    only = scene.start()
    scene.redis.alert(b"1")
    only.clock.advance(LONGEST_SILENCE_S + 1)  # as for a process that was stopped
    only.connection.serve()
    while only.connection is not None and only.connection.replies:
        only.connection.deliver()

    assert only.telemetry.heards == 0
    assert len(only.connections) == 1
    scene.go(3.0)
    assert only.is_listening
    assert scene.redis.era == 3


def test_a_process_that_was_stopped_for_less_goes_on_where_it_was(scene):
    only = scene.start()
    scene.redis.alert(b"1")
    only.clock.advance(LONGEST_SILENCE_S - 5)
    scene.go(0.5)

    assert len(only.connections) == 1
    assert len(only.hub.stored_) == 1
    assert scene.redis.era == 2


def test_connections_that_lead_to_two_servers_are_not_relied_on(scene):
    only = scene.start()
    elsewhere = SimRedis()
    only.link.set_up(False)
    only.link.redis = elsewhere
    only.link.set_up(True)
    scene.go(1.0)

    assert len(only.connections) > 1
    assert not only.is_listening


def test_another_server_that_others_listen_to_is_found_out_too(scene):
    only = scene.start()
    elsewhere = Scene()
    elsewhere.start()
    only.link.set_up(False)
    only.link.redis = elsewhere.redis
    only.link.set_up(True)
    scene.go(3.0)
    elsewhere.instances[0].close()

    assert len(only.connections) > 1
    assert not only.is_listening


def test_what_could_not_be_kept_is_asked_for_and_vouched_for(scene):
    first, second = scene.start(), scene.start()
    second.channel.missed()
    assert not second.is_listening
    scene.go(1.0)

    assert second.is_listening
    assert scene.redis.era == 2
    assert first.is_listening


def test_what_nobody_has_kept_begins_an_era(scene):
    only = scene.start()
    only.channel.missed()
    scene.go(1.0)

    assert only.is_listening
    assert scene.redis.era == 3


def test_a_flood_that_nobody_can_store_begins_an_era_only_every_few_seconds(scene):
    only = scene.start()
    only.link.append = lambda alerts: Deferred()
    scene.redis.alert(b"1")
    for _ in range(12 * 20):
        only.channel.missed()
        scene.go(0.05)

    assert only.telemetry.eras - 1 == 2
    assert scene.redis.era == 4


def test_an_alert_goes_by_its_channel_to_its_tenant_alone(scene):
    only = scene.start()
    scene.redis.alert(b"1")
    names = (
        b"",
        b"a/b",
        b"x" * 65,
        b"\xff",
        b"\xfft-1",
        b" t-1",
        b"t-1\n",
        b"x:t-1",
        b"alerts:tenant:t-1",
        b"*",
        b"t-?",
    )
    for name in names:
        scene.redis.publish(b"alerts:tenant:" + name, b"{}")
    only.flow()
    scene.go(0.1)

    assert [tenant_id for tenant_id, _, _ in only.hub.stored_] == ["t-1"]
    assert only.telemetry.drops == ["invalid"] * len(names)


def test_tenants_whose_names_are_alike_are_told_apart(scene):
    only = scene.start()
    names = ["T-1", "t-1", "t-10", "t-", "t-1.", "-t-1", "t_1"]
    for name in names:
        scene.redis.publish(b"alerts:tenant:" + name.encode(), b'{"of":"%s"}' % name.encode())
    only.flow()
    scene.go(0.1)

    assert [(tenant_id, payload) for tenant_id, _, payload in only.hub.stored_] == [
        (name, b'{"of":"%s"}' % name.encode()) for name in names
    ]


def test_what_is_published_elsewhere_is_nobodys_alert(scene):
    only = scene.start()
    for channel in (b"t-1", b"alerts:t-1", b"alerts:tenants:t-1", b"x:alerts:tenant:t-1", b"Alerts:tenant:t-1"):
        scene.redis.publish(channel, b"{}")
    only.flow()
    scene.go(0.1)

    assert only.hub.stored_ == []
    assert only.telemetry.drops == []


@pytest.mark.parametrize(
    "said",
    [b"", b"ask", b"ask x", b"sure", b"sure " + b"0" * 15, b"ask " + b"0" * 16 + b"\n", b"\xff" * 100_000,
     b"ask" + b" 0123456789abcdef" * 17],
)  # fmt: skip
def test_what_is_no_question_and_no_answer_is_ignored(scene, said):
    only = scene.start()
    before = scene.redis.moment
    scene.redis.publish(LISTENING.encode(), said)
    only.flow()

    assert scene.redis.moment == before
    assert only.is_listening


def test_a_flood_of_questions_is_answered_in_few_messages(scene):
    only = scene.start()
    for number in range(1000):
        scene.redis.publish(LISTENING.encode(), b"ask %016x" % (1 << 40 | number))
    while only.connection.replies:
        only.connection.deliver()
    before = scene.redis.moment
    only.flow()

    assert 1 <= scene.redis.moment - before <= 2 + MAX_PENDING // 16


def test_a_message_whose_parts_are_of_another_kind_is_ignored(scene):
    only = scene.start()
    only.connection.protocol.dataReceived(
        b"*4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$17\r\nalerts:tenant:t-1\r\n*1\r\n:1\r\n"
    )
    only.connection.protocol.dataReceived(b"*4\r\n$8\r\npmessage\r\n$1\r\n*\r\n:5\r\n$1\r\nx\r\n")

    assert only.telemetry.heards == 0
    assert only.is_listening


def test_where_listening_is_not_allowed_it_is_tried_again_and_nothing_is_said_to_be_heard(scene):
    scene.redis.refuses = b"NOPERM this user has no permissions to access one of the channels"
    only = scene.start(30.0)
    assert not only.is_listening
    assert only.hub.told == ["degraded"]
    assert len(only.connections) == 1
    scene.redis.refuses = None
    scene.go(RETRY_MAX_S + 0.3)

    assert only.is_listening


def test_the_log_says_which_channel_is_refused_and_says_it_once(scene, logged):
    scene.redis.refuses = b"NOPERM no permissions"
    scene.start(60)

    (line,) = logged("alerts.interrupted")
    assert line["reason"] == "PSUBSCRIBE alerts:tenant:*: NOPERM no permissions"


def test_a_way_that_stays_silent_is_told_of_in_a_few_lines_and_anew_after_it_was_well(scene, logged):
    only = scene.start()
    for times in (1, 2):
        scene.redis.silent = True
        scene.go(120)
        assert not only.is_listening
        assert times <= len(logged("alerts.interrupted")) <= 4 * times
        scene.redis.silent = False
        scene.go(10)
        assert only.is_listening
    assert len(only.connections) > 20


def test_the_link_that_fails_meanwhile_is_waited_for(scene):
    only = Instance(scene.redis)
    scene.instances.append(only)
    only.link.set_up(False)
    scene.go(5.0)
    assert not only.is_listening
    only.link.set_up(True)
    scene.go(6.0)

    assert only.is_listening
    assert len(only.connections) == 1


def test_streams_are_told_where_redis_was_never_there(scene):
    scene.redis.up = False
    only = scene.start()

    assert only.hub.told == ["degraded"]
    scene.redis.up = True
    scene.go(3.0)
    assert only.hub.told == ["degraded", "restored"]


def test_what_is_missed_while_there_is_no_connection_needs_no_proof_of_its_own(scene):
    only = scene.start()
    scene.redis.up = False
    only.connection.cut()
    only.channel.missed()
    scene.redis.up = True
    scene.go(3.0)

    assert only.is_listening
    assert scene.redis.era == 3


def test_stopping_leaves_no_timer(scene):
    only = scene.start()
    only.channel.stop()

    assert not only.is_listening
    assert only.clock.getDelayedCalls() == []


def test_stopping_while_it_asks_leaves_no_timer(scene):
    scene.start()
    second = Instance(scene.redis)
    second.flow()
    second.channel.stop()

    assert second.clock.getDelayedCalls() == []
    second.close()


def test_a_simulated_message_has_the_form_of_redis():
    assert packed(b"pong", 1) == b"*2\r\n$4\r\npong\r\n:1\r\n"
