"""Streams from their greeting to their end, over one hub."""

import pytest

from bakerygw.core.alerts import Position
from bakerygw.core.tenancy import ReadOnly, TenantFlags
from bakerygw.ports.events import Placed
from bakerygw.realtime.alerts.feed import MAX_EARLY, MOMENT_S, RETRY_S
from bakerygw.realtime.alerts.hub import KEPT_S, PATIENCE_S, SLOW_S
from bakerygw.realtime.alerts.ring import BURST, RING_BYTES, RING_FRAMES
from bakerygw.realtime.alerts.stream import RETRY_MS
from tests.realtime.stream_fakes import HISTORY_S, History, Instance, Reading


def kinds(reading: Reading) -> list[str]:
    return [f"{kind} {last_id}".strip() for kind, last_id in reading.read()]


def test_a_new_stream_is_greeted_at_once_with_the_head_and_a_wait() -> None:
    here = Instance()
    here.history.add(b"{}")

    reading = here.open()

    assert kinds(reading) == ["hello 7-1"]
    assert reading.client.events[0].json == {
        "epoch": 7,
        "offset": 1,
        "recovered": False,
        "missed": 0,
        "heartbeat_seconds": 15,
    }
    assert reading.client.retry_ms is not None
    assert RETRY_MS[0] <= reading.client.retry_ms <= RETRY_MS[1]


def test_alerts_come_as_published_and_the_same_bytes_go_to_all() -> None:
    here = Instance()
    one, two = here.open(), here.open()
    one.read(), two.read()

    here.publish(b'{\n"a": 1}')
    here.turn()

    (first,), (second,) = one.exchange.written, two.exchange.written
    assert first is second
    assert kinds(one) == ["alert 7-1"]
    assert one.client.events[-1].data == '{\n"a": 1}'
    assert here.told.frames == 2


def test_a_client_of_http_1_1_gets_the_chunks_that_were_framed_once() -> None:
    here = Instance()
    one, two = here.open(), here.open()
    for reading in (one, two):
        assert reading.stream is not None
        reading.stream._chunked = True
        reading.read()

    here.publish(b"{}")
    here.turn()

    (first,), (second,) = one.exchange.written, two.exchange.written
    assert first is second
    assert first == b"%x\r\nevent: alert\nid: 7-1\ndata: {}\n\n\r\n" % 31
    one.leave()
    assert one.exchange.carried == 31


def test_what_the_history_has_let_go_of_for_its_age_is_not_told_out_of_memory() -> None:
    here = Instance()
    watching = here.open()
    here.publish()
    here.turn(HISTORY_S)
    here.history.trim(0)
    here.publish()
    here.turn()

    assert kinds(watching) == ["hello 7-0", "alert 7-1", "alert 7-2"]
    assert kinds(here.open("7-0")) == ["hello 7-0", "gap 7-2"]
    assert kinds(here.open("7-1")) == ["hello 7-1", "alert 7-2"]


def test_what_is_in_memory_is_not_read_from_the_history() -> None:
    here = Instance()
    here.open()
    here.publish()
    here.turn(HISTORY_S - 1)
    reads = here.log.reads

    assert kinds(here.open("7-0")) == ["hello 7-0", "alert 7-1"]
    here.turn(2)
    assert kinds(here.open("7-1")) == ["hello 7-1"]
    assert here.log.reads == reads


def test_another_tenants_alerts_are_not_heard() -> None:
    here = Instance()
    reading = here.open()
    reading.read()
    here.hub.stored("t2", Placed(position=Position(epoch=7, offset=1), fresh=True), b"{}")
    here.turn()

    assert reading.read() == []
    assert list(here.hub.feeds) == ["t1"]


def test_what_comes_out_of_order_and_repeated_is_delivered_in_order_and_once() -> None:
    here = Instance()
    reading = here.open()
    positions = [here.history.add(b"%d" % number) for number in range(3)]

    for number in (2, 0, 0, 2, 1, 1):
        here.hear(positions[number])
    here.turn(1)

    assert kinds(reading) == ["hello 7-0", "alert 7-1", "alert 7-2", "alert 7-3"]
    assert here.log.reads == 0


def test_a_hole_is_filled_from_the_history_before_anything_behind_it() -> None:
    here = Instance()
    reading = here.open()
    here.history.add(b"elsewhere")
    here.publish(b"here")
    here.turn()

    assert kinds(reading) == ["hello 7-0"]
    here.turn(0.1)
    assert kinds(reading) == ["alert 7-1", "alert 7-2"]
    assert here.log.reads == 1


def test_a_hole_is_asked_for_until_the_history_answers() -> None:
    here = Instance()
    reading = here.open()
    here.history.add(b"elsewhere")
    here.log.away = True
    here.publish(b"here")
    here.turn(0.1)
    here.log.away = False
    here.turn(RETRY_S)

    assert kinds(reading) == ["hello 7-0", "alert 7-1", "alert 7-2"]


def test_alerts_behind_a_hole_are_kept_up_to_a_bound_and_come_all_the_same() -> None:
    here = Instance()
    reading = here.open()
    here.history.add(b"elsewhere")
    for _ in range(MAX_EARLY + 10):
        here.publish()
    assert len(here.hub.feeds["t1"]._early) == MAX_EARLY
    for _ in range(20):
        here.turn(0.1)

    assert len(kinds(reading)) == MAX_EARLY + 12


def test_a_hole_that_the_history_no_longer_has_is_a_gap() -> None:
    here = Instance()
    reading = here.open()
    for _ in range(5):
        here.history.add(b"elsewhere")
    here.history.trim(2)
    here.publish()
    here.turn(0.1)

    assert kinds(reading) == ["hello 7-0", "gap 7-3", "alert 7-4", "alert 7-5", "alert 7-6"]
    assert reading.client.events[1].json == {"reason": "trimmed", "epoch": 7, "offset": 3}
    assert here.told.gaps == ["trimmed"]


def test_a_hole_of_which_the_history_has_nothing_left_is_a_gap_too() -> None:
    here = Instance()
    reading = here.open()
    here.history.add(b"elsewhere")
    here.publish()
    here.history.trim(0)
    here.turn(0.1)

    assert kinds(reading) == ["hello 7-0", "gap 7-2"]
    here.publish()
    here.turn()
    assert kinds(reading) == ["alert 7-3"]
    assert here.log.reads == 1


def test_a_new_epoch_is_a_gap_and_older_ones_are_ignored() -> None:
    here = Instance()
    reading = here.open()
    old = here.publish()
    here.history.begin_era()
    here.publish(b"new")
    here.hear(old)
    here.turn(0.1)

    assert kinds(reading) == ["hello 7-0", "alert 7-1", "gap 8-0", "alert 8-1"]
    assert reading.client.events[2].json["reason"] == "epoch"


def test_a_history_that_has_lost_its_end_is_a_gap() -> None:
    here = Instance()
    reading = here.open()
    here.publish()
    here.publish()
    here.turn()
    here.history.payloads.pop()
    here.hub.degraded()
    here.hub.restored()
    here.turn(0.1)

    assert kinds(reading) == ["hello 7-0", "alert 7-1", "alert 7-2", "degraded 7-2", "gap 7-1", "hello 7-1"]
    assert reading.client.events[-1].json["recovered"] is False


def test_a_resumed_stream_gets_what_it_has_missed_without_the_history_if_the_ring_has_it() -> None:
    here = Instance()
    here.open()
    for _ in range(5):
        here.publish()
    here.turn()

    reading = here.open("7-2")
    here.publish()
    here.turn()

    assert kinds(reading) == ["hello 7-2", "alert 7-3", "alert 7-4", "alert 7-5", "alert 7-6"]
    assert reading.client.events[0].json == {
        "epoch": 7,
        "offset": 5,
        "recovered": True,
        "missed": 3,
        "heartbeat_seconds": 15,
    }
    assert here.log.reads == 0


def test_a_long_absence_is_replayed_page_by_page_at_the_clients_pace() -> None:
    here = Instance()
    here.log.page_events = 10
    for _ in range(100):
        here.history.add(b"{}")
    reading = here.open()
    reading.leave()

    resumed = here.open("7-0")
    assert resumed.stream is not None
    assert here.log.reads >= 10
    assert kinds(resumed) == ["hello 7-0", *(f"alert 7-{number}" for number in range(1, 101))]
    assert here.told.from_history == 100


def test_a_client_that_takes_nothing_is_not_read_for_and_is_not_dropped_while_it_is_replayed_to() -> None:
    here = Instance()
    here.log.page_events = 10
    for _ in range(30):
        here.history.add(b"{}")
    here.hub.bounds = (5, 10_000)
    here.log.slow = True
    resumed = here.open("7-0")
    while here.log.asked and here.log.reads < 2:
        here.log.asked[0].answer()
    assert resumed.stream is not None
    resumed.stream.pause()
    for asked in list(here.log.asked):
        asked.answer()
    reads = here.log.reads
    for _ in range(20):
        here.publish()
        here.turn(0.1)

    assert here.log.reads == reads
    assert resumed.end is None
    here.log.slow = False
    resumed.stream.resume()
    here.turn(0.1)
    assert kinds(resumed)[-1] == "alert 7-50"


@pytest.mark.parametrize(
    ("last_id", "reason"),
    [("6-3", "epoch"), ("7-9", "unknown"), ("9-1", "unknown"), ("nonsense", "unknown"), ("7-1", "trimmed")],
)
def test_what_cannot_be_bridged_is_a_gap_at_the_head(last_id: str, reason: str) -> None:
    here = Instance()
    for _ in range(5):
        here.history.add(b"{}")
    here.history.trim(2)

    reading = here.open(last_id)
    here.publish()
    here.turn()

    hello, gap, alert = reading.read() and reading.client.events
    assert (hello.kind, hello.json["recovered"], hello.json["missed"]) == ("hello", False, None)
    assert hello.last_id == last_id, "a cut between greeting and gap must not hide the gap"
    assert (gap.last_id, gap.json) == ("7-5", {"reason": reason, "epoch": 7, "offset": 5})
    assert alert.last_id == "7-6"
    assert here.told.gaps == [reason]


def test_a_client_that_another_instance_has_told_more_goes_on_there() -> None:
    history = History()
    here = Instance(history)
    here.open()
    ahead = history.add(b"told elsewhere")

    resumed = here.open(ahead.text)
    here.hear(ahead)
    here.publish()
    here.turn(0.1)

    assert kinds(resumed) == ["hello 7-1", "alert 7-2"]


def test_so_does_one_that_was_told_of_an_epoch_there_that_has_not_been_heard_of_here() -> None:
    history = History()
    here = Instance(history)
    other = here.open()
    history.begin_era()
    history.add(b"told elsewhere")
    ahead = history.add(b"and this")

    resumed = here.open(ahead.text)
    here.publish()
    here.turn(0.1)

    assert kinds(resumed) == ["hello 8-2", "alert 8-3"]
    assert kinds(other) == ["hello 7-0", "gap 8-0", "alert 8-1", "alert 8-2", "alert 8-3"]


def test_the_head_is_asked_for_once_for_all_who_come_together() -> None:
    here = Instance(slow=True)
    readings = [here.open() for _ in range(5)]
    for asked in list(here.log.asked):
        asked.answer()

    assert [kinds(reading) for reading in readings] == [["hello 7-0"]] * 5
    assert here.log.heads == 1


def test_no_stream_begins_while_nothing_is_heard() -> None:
    here = Instance(listening=False)
    early, late = here.open(), here.open()
    here.turn(PATIENCE_S - 0.5)
    assert early.end is None
    early.leave()
    here.turn(1)

    assert late.end == "refused"
    assert here.hub.feeds == {}


def test_who_was_refused_since_nothing_is_heard_is_forgotten() -> None:
    here = Instance(listening=False)
    here.open()
    assert len(here.hub._hopeful) == 1
    here.turn(PATIENCE_S)
    assert here.hub._hopeful == []


def test_a_stream_that_waited_a_moment_begins() -> None:
    here = Instance(listening=False)
    reading = here.open()
    here.turn(1)
    here.hub.restored()
    here.turn()

    assert kinds(reading) == ["hello 7-0"]


def test_a_history_that_is_away_refuses_and_leaves_nothing_behind() -> None:
    here = Instance()
    here.log.away = True

    reading = here.open()

    assert reading.end == "refused"
    here.turn(KEPT_S + 1)
    assert here.hub.feeds == {}


def test_a_history_that_does_not_answer_refuses() -> None:
    here = Instance(slow=True)
    reading = here.open()
    here.turn(PATIENCE_S + 0.1)

    assert reading.end == "refused"


def test_open_streams_are_told_once_that_they_may_miss_something_and_get_it_afterwards() -> None:
    here = Instance()
    reading = here.open()
    here.hub.degraded()
    here.hub.degraded()
    here.history.add(b"missed")
    here.turn(1)
    assert kinds(reading) == ["hello 7-0", "degraded 7-0"]

    here.hub.restored()
    here.turn(0.1)
    assert kinds(reading) == ["alert 7-1", "hello 7-1"]
    assert reading.client.events[-1].json == {"epoch": 7, "offset": 1, "recovered": True, "missed": 1}


def test_a_slow_reader_is_dropped_at_the_bound_and_others_notice_nothing() -> None:
    here = Instance()
    slow, quick = here.open(), here.open()
    assert slow.stream is not None
    slow.stream.pause()
    here.turn(MOMENT_S)
    for _ in range(RING_FRAMES):
        here.publish()
        here.turn()
    assert slow.end is None
    for _ in range(2):
        here.publish()
        here.turn()
    here.turn(SLOW_S - 0.2)
    assert slow.end is None
    here.turn(0.4)

    assert slow.end == "slow"
    assert slow.trace.reason == "slow"
    assert slow.place.left == 1
    assert here.told.drops == ["slow"]
    assert len(kinds(quick)) == RING_FRAMES + 3


def test_a_slow_reader_is_dropped_by_bytes_too() -> None:
    here = Instance()
    slow = here.open()
    assert slow.stream is not None
    slow.stream.pause()
    here.turn(MOMENT_S)
    for _ in range(7):
        here.publish(b"x" * 60_000)
        here.turn()
    here.turn(SLOW_S + 0.2)

    assert slow.end == "slow"
    assert here.hub.feeds["t1"].ring._bytes <= RING_BYTES


def test_a_reader_that_was_slow_for_a_moment_gets_all_in_few_writes() -> None:
    here = Instance()
    reading = here.open()
    reading.read()
    assert reading.stream is not None
    reading.stream.pause()
    for _ in range(100):
        here.publish()
        here.turn()
    assert reading.exchange.written == []
    reading.stream.resume()
    here.turn()

    assert len(reading.exchange.written) == 1
    assert len(reading.read()) == 100


def test_a_burst_is_not_mistaken_for_a_slow_reader() -> None:
    here = Instance()
    reading = here.open()
    for _ in range(3 * RING_FRAMES):
        here.publish()
    here.turn()

    assert len(reading.read()) == 3 * RING_FRAMES + 1
    assert len(here.hub.feeds["t1"].ring._frames) == RING_FRAMES


def test_a_connection_that_a_burst_has_filled_is_not_slow_yet() -> None:
    here = Instance()
    reading = here.open()
    assert reading.stream is not None
    reading.stream.pause()
    for _ in range(3 * RING_FRAMES):
        here.publish()
        here.turn()
    reading.stream.resume()
    here.turn()

    assert len(reading.read()) == 3 * RING_FRAMES + 1
    assert len(here.hub.feeds["t1"].ring._frames) == RING_FRAMES


def test_a_burst_has_a_bound_too() -> None:
    here = Instance()
    here.hub.bounds = (10, 10_000)
    reading = here.open()
    assert reading.stream is not None
    reading.stream.pause()
    for _ in range(10 * BURST + 1):
        here.publish()
        here.turn()
    assert len(here.hub.feeds["t1"].ring._frames) == 10
    here.turn(SLOW_S + 0.2)

    assert reading.end == "slow"


def test_a_client_that_stays_blocked_after_a_burst_is_dropped_though_nothing_more_comes() -> None:
    here = Instance()
    reading = here.open()
    assert reading.stream is not None
    reading.stream.pause()
    for _ in range(2 * RING_FRAMES):
        here.publish()
        here.turn()
    assert reading.end is None
    for _ in range(200):
        here.turn(0.12)

    assert reading.end == "slow"


def test_only_silent_streams_get_heartbeats_from_one_timer() -> None:
    here = Instance()
    readings = [here.open() for _ in range(50)]
    assert len(here.clock.getDelayedCalls()) == 1
    for _ in range(200):
        here.turn(0.12)
    for reading in readings:
        reading.read()
        assert 1 <= reading.client.comments <= 2
    talked = readings[0]
    before = talked.client.comments
    for number in range(300):
        if number % 10 == 0:
            here.publish()
        here.turn(0.12)
    talked.read()
    assert talked.client.comments == before


def test_a_blocked_client_gets_no_heartbeats() -> None:
    here = Instance()
    reading = here.open()
    reading.read()
    assert reading.stream is not None
    reading.stream.pause()
    for _ in range(400):
        here.turn(0.12)

    assert reading.exchange.written == []


def test_a_tenant_on_hold_is_told_at_once_and_of_every_change() -> None:
    here = Instance()
    flags = TenantFlags(read_only=ReadOnly(reason="audit", until="2026-12-01T00:00:00Z", by="olga"))
    reading = here.open(flags=flags)
    assert reading.place.held is not None
    reading.place.held.tenant_state(TenantFlags(changed_at=17.5))

    assert [kind for kind, _ in reading.read()] == ["hello", "tenant-state", "tenant-state"]
    _, held, lifted = reading.client.events
    assert held.json == {
        "read_only": {"reason": "audit", "since": None, "until": "2026-12-01T00:00:00Z"},
        "subscription_changed_at": None,
    }
    assert lifted.json == {"read_only": None, "subscription_changed_at": 17.5}


@pytest.mark.parametrize(("last_id", "returning"), [(None, False), ("7-0", True), ("nonsense", True)])
def test_who_names_a_place_is_known_to_return(last_id: str | None, returning: bool) -> None:
    assert Instance().open(last_id).place.returning is returning


def test_a_blocked_client_is_told_of_the_last_state_only() -> None:
    here = Instance()
    reading = here.open()
    reading.read()
    assert reading.stream is not None
    reading.stream.pause()
    for moment in range(1000):
        reading.stream.tenant_state(TenantFlags(changed_at=float(moment)))
    reading.stream.resume()

    assert [kind for kind, _ in reading.read()] == ["tenant-state"]
    assert reading.client.events[-1].json["subscription_changed_at"] == 999


@pytest.mark.parametrize(("why", "comes_back"), [("draining", True), ("token-expired", True), ("forbidden", False)])
def test_an_ended_stream_says_goodbye_and_ends_whole(why: str, comes_back: bool) -> None:
    here = Instance()
    reading = here.open()
    assert reading.stream is not None
    reading.stream.expiring(59.7)
    reading.stream.end(why)  # type: ignore[arg-type]
    reading.stream.end(why)  # type: ignore[arg-type]
    here.publish()
    here.turn(20)

    assert kinds(reading) == ["hello 7-0", "token-expiring 7-0", "bye 7-0"]
    _, expiring, bye = reading.client.events
    assert expiring.json == {"in": 60}
    assert bye.json["reason"] == why
    assert (bye.json["retry"] is not None) == comes_back
    assert reading.end == "done"
    assert reading.trace.reason == why
    assert reading.place.left == 1
    assert here.told.open == 0


def test_a_feed_without_readers_costs_no_reads_and_goes_after_a_while() -> None:
    here = Instance()
    here.open().leave()
    here.history.add(b"elsewhere")
    for _ in range(20):
        here.publish()
    here.turn(1)
    assert here.log.reads == 0
    assert here.hub.feeds == {}, "it has a hole, which nobody needs filled"
    here.open().leave()
    here.publish()
    assert len(here.hub.feeds) == 1
    for _ in range(2):
        here.turn(KEPT_S)

    assert here.hub.feeds == {}
    assert here.clock.getDelayedCalls() == []


def test_a_tenant_nobody_reads_costs_nothing() -> None:
    here = Instance()
    for _ in range(100):
        here.publish()
    here.turn(1)

    assert here.hub.feeds == {}
    assert (here.log.reads, here.log.heads) == (0, 0)


def test_a_history_whose_epochs_have_gone_back_leaves_no_stream_behind() -> None:
    here = Instance()
    reading = here.open()
    here.publish()
    here.turn()
    here.history.epoch, here.history.payloads = 3, []
    here.publish()
    here.turn(0.1)
    here.publish()
    here.turn(0.1)

    assert kinds(reading) == ["hello 7-0", "alert 7-1", "gap 3-0", "alert 3-1", "alert 3-2"]


def test_an_alert_of_an_earlier_epoch_that_comes_late_changes_nothing() -> None:
    here = Instance()
    reading = here.open()
    late = here.history.add(b"{}")
    here.history.begin_era()
    here.publish()
    here.turn()
    here.hear(late)
    here.turn(0.1)

    assert kinds(reading) == ["hello 7-0", "gap 8-0", "alert 8-1"]
