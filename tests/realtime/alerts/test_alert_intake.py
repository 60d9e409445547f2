"""What becomes of alerts between being heard and being stored."""

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from bakerygw.core.alerts import MAX_ALERT_BYTES, Position
from bakerygw.ports import Placed, StoreUnavailable
from bakerygw.realtime.alerts.intake import (
    BATCH,
    BATCH_BYTES,
    LAST_CHANCE_S,
    LINGER_S,
    MAX_AGE_S,
    PATIENCE_S,
    QUIET_S,
    RETRY_MAX_S,
    Intake,
)
from tests.deferreds import success_of
from tests.realtime.alert_sim import Hub, Telemetry


class History:
    """An `EventLog` for appending that answers as told."""

    def __init__(self) -> None:
        self.batches = []
        self.stored = []
        self.answers = lambda: succeed(None)

    async def append(self, alerts):
        self.batches.append([alert.payload for alert in alerts])
        await self.answers()
        placed = []
        for alert in alerts:
            fresh = alert.digest not in self.stored
            if fresh:
                self.stored.append(alert.digest)
            placed.append(Placed(position=Position(epoch=1, offset=self.stored.index(alert.digest) + 1), fresh=fresh))
        return placed


class Bench:
    def __init__(self, **about) -> None:
        self.clock, self.history, self.hub, self.telemetry = Clock(), History(), Hub(), Telemetry()
        self.missed = []
        self.intake = Intake(
            self.history, self.hub, self.clock, self.telemetry,
            missed=lambda: self.missed.append(self.clock.seconds()), jitter=lambda: 1.0, **about,
        )  # fmt: skip

    def hear(self, *payloads: bytes, tenant_id: str = "t") -> None:
        for payload in payloads:
            self.intake.heard(tenant_id, payload)

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 20)):
            self.clock.advance(0.05)

    def away(self) -> None:
        self.history.answers = lambda: fail(StoreUnavailable("away"))

    def back(self) -> None:
        self.history.answers = lambda: succeed(None)

    @property
    def told(self) -> list[bytes]:
        return [payload for _, _, payload in self.hub.stored_]


@pytest.fixture
def bench():
    bench = Bench()
    bench.intake.listening()
    bench.hub.told.clear()
    return bench


def alert(number: int, size: int = 0) -> bytes:
    return b'{"alert_id":"%d","message":"%s"}' % (number, b"x" * size)


def test_what_arrives_together_is_stored_by_one_call_and_told_in_order(bench):
    bench.hear(alert(1), alert(2), alert(3))
    bench.clock.advance(LINGER_S)

    assert bench.history.batches == [[alert(1), alert(2), alert(3)]]
    assert bench.told == [alert(1), alert(2), alert(3)]
    assert [placed.position.offset for _, placed, _ in bench.hub.stored_] == [1, 2, 3]
    assert (bench.telemetry.heards, bench.telemetry.fresh, bench.telemetry.known) == (3, 3, 0)
    assert bench.clock.getDelayedCalls() == []


def test_what_arrives_during_a_call_waits_for_the_next(bench):
    answer = Deferred()
    bench.history.answers = lambda: answer
    bench.hear(alert(1))
    bench.clock.advance(LINGER_S)
    bench.hear(alert(2), alert(3))
    bench.back()
    answer.callback(None)
    assert bench.history.batches == [[alert(1)]]
    bench.clock.advance(LINGER_S)

    assert bench.history.batches == [[alert(1)], [alert(2), alert(3)]]


def test_what_follows_at_once_goes_together(bench):
    bench.hear(alert(1))
    bench.clock.advance(0)
    for number in (2, 3, 4):
        bench.hear(alert(number))
        bench.clock.advance(LINGER_S / 4)
    assert bench.told == [alert(1)]
    bench.clock.advance(LINGER_S)

    assert bench.history.batches == [[alert(1)], [alert(2), alert(3), alert(4)]]


def test_an_alert_that_comes_alone_does_not_wait(bench):
    bench.hear(alert(1))
    bench.clock.advance(LINGER_S)
    bench.clock.advance(1.0)
    bench.hear(alert(2))
    bench.clock.advance(0)

    assert bench.told == [alert(1), alert(2)]


def test_what_stands_in_the_history_already_is_told_too(bench):
    bench.hear(alert(1), alert(1))
    bench.clock.advance(LINGER_S)

    assert [placed.fresh for _, placed, _ in bench.hub.stored_] == [True, False]
    assert (bench.telemetry.fresh, bench.telemetry.known) == (1, 1)


def test_calls_are_bounded_in_number_and_bytes(bench):
    bench.hear(*(alert(number) for number in range(BATCH + 1)))
    bench.hear(*(alert(number, 60_000) for number in range(20)))
    bench.pass_time(1.0)

    assert len(bench.history.batches[0]) == BATCH
    assert max(sum(map(len, batch)) for batch in bench.history.batches) <= BATCH_BYTES
    assert len(bench.told) == BATCH + 21


@pytest.mark.parametrize(
    ("payload", "reason"),
    [(b"nonsense", "invalid"), (b"[]", "invalid"), (b"", "invalid"), (b"[" * 50_000, "invalid"),
     (b"\xff\xfe{}", "invalid"), (b"x" * (MAX_ALERT_BYTES + 1), "too-large")],
)  # fmt: skip
def test_what_is_no_alert_is_counted_and_the_others_go_on(bench, payload, reason):
    bench.hear(payload, alert(1))
    bench.clock.advance(LINGER_S)

    assert bench.telemetry.drops == [reason]
    assert bench.told == [alert(1)]
    assert bench.missed == []


def test_while_the_store_is_away_alerts_wait_and_are_stored_once_and_in_order(bench):
    bench.away()
    bench.hear(alert(1))
    bench.pass_time(5.0)
    bench.hear(alert(2))
    bench.back()
    bench.pass_time(RETRY_MAX_S)

    assert bench.told == [alert(1), alert(2)]
    assert bench.missed == []
    assert bench.hub.told == ["degraded", "restored"]


def test_the_store_is_asked_ever_more_seldom_while_it_is_away(bench):
    bench.away()
    bench.hear(alert(1))
    bench.pass_time(10.0)

    assert 10 <= len(bench.history.batches) <= 14


def test_short_failures_are_not_told(bench):
    bench.away()
    bench.hear(alert(1))
    bench.pass_time(PATIENCE_S - 0.5)
    bench.back()
    bench.pass_time(1.0)

    assert bench.told == [alert(1)]
    assert bench.hub.told == []


def test_any_failure_of_the_history_is_as_good_as_no_answer(bench):
    bench.history.answers = lambda: fail(ValueError("nonsense from Redis"))
    bench.hear(alert(1))
    bench.pass_time(0.5)
    bench.back()
    bench.pass_time(1.0)

    assert bench.told == [alert(1)]


def test_an_answer_about_another_number_of_alerts_is_none(bench):
    async def append(alerts):
        return []

    bench.history.append, right = append, bench.history.append
    bench.hear(alert(1))
    bench.pass_time(0.5)
    assert bench.told == []
    bench.history.append = right
    bench.pass_time(1.0)
    assert bench.told == [alert(1)]


def test_what_waited_too_long_is_given_up_counted_and_told_to_the_source(bench):
    bench.away()
    bench.hear(alert(1), alert(2))
    bench.pass_time(MAX_AGE_S - 2)
    assert bench.missed == []
    bench.hear(alert(3))
    bench.pass_time(4)
    assert len(bench.missed) == 1
    assert bench.telemetry.drops == ["store", "store"]
    bench.back()
    bench.pass_time(2)

    assert bench.told == [alert(3)]


def test_a_store_that_fails_for_less_than_a_moment_is_no_news(bench, logged):
    bench.away()
    bench.hear(alert(1))
    bench.pass_time(PATIENCE_S / 2)
    assert logged("alerts.store") == []
    bench.pass_time(PATIENCE_S + RETRY_MAX_S)
    bench.back()
    bench.pass_time(RETRY_MAX_S)
    assert [line["state"] for line in logged("alerts.store")] == ["failing", "storing"]


def test_of_much_that_is_given_up_is_told_in_few_lines(logged):
    bench = Bench(max_waiting=1)
    bench.away()
    bench.hear(*(alert(number) for number in range(5)))
    assert [line["alerts"] for line in logged("alerts.given_up")] == [1]
    bench.pass_time(QUIET_S)
    bench.hear(alert(5))
    assert [line["alerts"] for line in logged("alerts.given_up")] == [1, 4]


def test_what_does_not_fit_is_given_up_at_once_and_takes_no_memory():
    bench = Bench(max_waiting=2)
    bench.away()
    bench.hear(alert(1), alert(2), alert(3), b"nonsense")
    assert len(bench.missed) == 2
    assert bench.telemetry.drops == ["store", "store"]
    bench.back()
    bench.clock.advance(LINGER_S)

    assert bench.told == [alert(1), alert(2)]


def test_waiting_bytes_are_bounded(bench):
    bench.away()
    bench.hear(*(alert(number, 60_000) for number in range(1200)))

    assert bench.intake._bytes <= 64 * 1024 * 1024
    assert bench.telemetry.drops
    bench.back()
    bench.pass_time(10.0)
    assert bench.intake._bytes == 0
    assert len(bench.told) + len(bench.telemetry.drops) == 1200


def test_what_is_larger_than_all_that_may_wait_is_no_alert_that_was_lost(bench):
    bench.hear(b"x" * (64 * 1024 * 1024 + 1), alert(1))
    bench.clock.advance(LINGER_S)

    assert bench.telemetry.drops == ["too-large"]
    assert bench.missed == []
    assert bench.told == [alert(1)]


def test_settled_is_when_all_heard_until_then_is_stored(bench):
    success_of(bench.intake.settled())
    answer = Deferred()
    bench.history.answers = lambda: answer
    bench.hear(alert(1))
    settled = bench.intake.settled()
    bench.clock.advance(LINGER_S)
    bench.hear(alert(2))
    assert not settled.called
    bench.history.answers = Deferred
    answer.callback(None)

    success_of(settled)
    assert not bench.intake.settled().called


def test_settled_is_also_when_it_was_given_up_and_the_source_has_been_told(bench):
    bench.away()
    bench.hear(alert(1))
    told = []
    bench.intake.settled().addCallback(lambda _: told.extend(bench.missed))
    bench.pass_time(MAX_AGE_S + 2)

    assert len(told) == 1


def test_an_interruption_is_told_at_once_and_its_end_even_if_it_was_short(bench):
    bench.intake.interrupted()
    assert bench.hub.told == ["degraded"]
    bench.intake.interrupted()
    bench.intake.listening()
    bench.intake.listening()

    assert bench.hub.told == ["degraded", "restored"]


def test_all_is_well_only_when_what_was_heard_before_is_stored(bench):
    answer = Deferred()
    bench.history.answers = lambda: answer
    bench.hear(alert(1))
    bench.clock.advance(LINGER_S)
    bench.intake.interrupted()
    bench.intake.listening()
    bench.hear(alert(2))
    assert bench.hub.told == ["degraded"]
    bench.history.answers = Deferred
    answer.callback(None)

    assert bench.hub.told == ["degraded", "restored"]


def test_all_is_well_also_if_nothing_is_left_to_store(bench):
    bench.away()
    bench.hear(alert(1))
    bench.pass_time(MAX_AGE_S + 2)
    bench.intake.interrupted()
    bench.intake.listening()

    assert bench.hub.told == ["degraded", "restored"]


def test_a_fault_in_one_stream_does_not_keep_the_next_alert(bench, logged_failures):
    told = []

    def stored(tenant_id, placed, payload):
        told.append(payload)
        raise ValueError("a defect")

    bench.hub.stored = stored
    bench.hear(alert(1), alert(2))
    bench.clock.advance(LINGER_S)

    assert told == [alert(1), alert(2)]
    assert len(logged_failures) == 2
    logged_failures.clear()


def test_it_is_busy_while_nothing_is_heard_and_something_waits(bench):
    bench.intake.listening()
    bench.away()
    bench.hear(alert(1))
    assert not bench.intake.busy  # under a steady flow something always waits

    bench.intake.interrupted()
    assert bench.intake.busy

    bench.back()
    bench.pass_time(RETRY_MAX_S)
    assert not bench.intake.busy


def test_stopping_stores_what_waits(bench):
    bench.hear(alert(1))
    closing = Deferred.fromCoroutine(bench.intake.close())
    bench.clock.advance(LINGER_S)

    success_of(closing)
    assert bench.told == [alert(1)]
    assert bench.clock.getDelayedCalls() == []


def test_stopping_does_not_wait_long_for_a_store_that_is_away(bench):
    bench.away()
    bench.hear(alert(1))
    closing = Deferred.fromCoroutine(bench.intake.close())
    bench.pass_time(LAST_CHANCE_S + 0.1)

    success_of(closing)
    assert bench.clock.getDelayedCalls() == []
