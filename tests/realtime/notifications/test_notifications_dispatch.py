"""The way of alerts to the notification service: each accepted once, whatever fails on the way."""

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bakerygw.core.alerts import Alert
from bakerygw.core.tenancy import TenantFlags
from bakerygw.ports import Haul, Placed, StoreUnavailable, StoreUnreadable
from bakerygw.realtime.notifications.dispatch import (
    BEFORE_S,
    CLOSE_S,
    IDLE_S,
    LEASE_S,
    MAX_PAUSE_S,
    PATIENCE,
    SLOTS,
    Notifications,
    Pace,
)
from bakerygw.realtime.notifications.notices import PATIENCE_S
from bakerygw.realtime.notifications.notifier import ATTEMPT_S, Attempt
from bakerygw.realtime.notifications.waking_log import WakingLog
from bakerygw.stores.outbox import MemoryOutbox
from tests.deferreds import success_of


def attempt(verdict="accepted", *, away=False, asked_s=None):
    cause = "" if verdict == "accepted" else "answered 5xx"
    return Attempt(verdict=verdict, cause=cause, away=away, asked_s=asked_s, request_id="r-1")


class Service:
    """A `Sender` that answers what the test says, or nothing."""

    def __init__(self, answer=None):
        self.answer = answer
        self.names = {"notification"}
        self.sent = []
        self.waiting = []
        self.most = 0

    def service_of(self, *, demo):
        name = "demo:notification" if demo and "demo:notification" in self.names else "notification"
        return name if name in self.names else None

    async def send(self, service, notification, *, demo):
        self.sent.append((service, notification.name))
        if self.answer is not None:
            return self.answer
        answered = Deferred()
        self.waiting.append(answered)
        self.most = max(self.most, len(self.waiting))
        try:
            return await answered
        finally:
            self.waiting.remove(answered)

    def answers(self, said=None):
        self.waiting[0].callback(said or attempt())


class Tenants:
    def __init__(self):
        self.demos = set()
        self.away = False
        self.spoilt = set()

    async def flags(self, tenant_id):
        if self.away:
            raise StoreUnavailable("away")
        if tenant_id in self.spoilt:
            raise StoreUnreadable("that key is no time")
        return TenantFlags(demo=tenant_id in self.demos)


class Counted:
    def __init__(self):
        self.results = {}
        self.waiting = None

    def notified(self, result, number=1):
        self.results[result] = self.results.get(result, 0) + number

    def notifications_waiting(self, number, oldest_s):
        self.waiting = number, oldest_s


class Fragile:
    """An outbox that can be away."""

    def __init__(self, outbox):
        self._outbox = outbox
        self.away = False
        self.takes = 0

    def _asked(self):
        if self.away:
            raise StoreUnavailable("away")

    async def take(self, count, *, lease_s):
        self.takes += 1
        self._asked()
        return await self._outbox.take(count, lease_s=lease_s)

    @property
    def perishable(self):
        return self._outbox.perishable

    async def finish(self, notification):
        self._asked()
        await self._outbox.finish(notification)

    async def postpone(self, notification, in_s, *, failed):
        self._asked()
        await self._outbox.postpone(notification, in_s, failed=failed)


class Rig:
    """Some instances over one outbox and one service; the first has started."""

    def __init__(self, answer=None, instances=1):
        self.clock = Clock()
        self.kept = MemoryOutbox(self.clock.seconds)
        self.service, self.tenants, self.counted = Service(answer), Tenants(), Counted()
        self.ways = [Fragile(self.kept) for _ in range(instances)]
        self.instances = [self.instance(way) for way in self.ways]
        self.one, self.way = self.instances[0], self.ways[0]

    def instance(self, way):
        return Notifications(
            way, self.service, self.tenants, clock=self.clock, chance=lambda: 1.0, telemetry=self.counted
        )

    def started(self):
        for each in self.instances:
            each.start()
        self.pump(0)
        return self

    def put(self, *names):
        for name in names:
            self.kept.put(name, b"{}")
        self.one.wake()
        self.pump(0)

    def pump(self, seconds, step=0.05):
        self.clock.pump([0.0] * 3)
        for _ in range(round(seconds / step)):
            self.clock.advance(step)

    @property
    def sent(self):
        return [name for _, name in self.service.sent]

    def left(self):
        return len(self.kept._entries)


def test_what_the_service_accepts_is_sent_once_and_gone():
    rig = Rig(attempt()).started()
    rig.put("t:1-1", "t:1-2")
    rig.pump(60)
    assert rig.sent == ["t:1-1", "t:1-2"]
    assert rig.left() == 0
    assert rig.counted.results == {"accepted": 2}


def test_what_another_instance_left_is_found_without_being_woken():
    rig = Rig(attempt()).started()
    rig.kept.put("t:1-1", b"{}")
    rig.pump(IDLE_S + 0.1)
    assert rig.sent == ["t:1-1"]


def test_an_idle_instance_asks_redis_no_more_than_every_few_seconds():
    rig = Rig(attempt()).started()
    rig.pump(60)
    assert 25 <= rig.way.takes <= 33


def test_of_two_instances_that_look_at_the_same_moment_one_sends():
    rig = Rig(instances=2).started()
    rig.kept.put("t:1-1", b"{}")
    for each in rig.instances:
        each.wake()
    rig.pump(0.2)
    assert rig.sent == ["t:1-1"]
    rig.service.answers()
    rig.pump(60)
    assert rig.sent == ["t:1-1"]
    assert rig.left() == 0


def test_a_slow_service_gets_a_few_at_a_time_and_then_the_others():
    rig = Rig().started()
    rig.put(*(f"t:1-{number}" for number in range(1, 11)))
    rig.pump(1)
    assert len(rig.service.waiting) == SLOTS
    while rig.service.waiting:
        rig.service.answers()
        rig.pump(0)
    assert len(set(rig.sent)) == len(rig.sent) == 10
    assert rig.service.most == SLOTS
    assert rig.left() == 0


@pytest.mark.parametrize("away", [True, False])
def test_what_fails_is_sent_again_later_and_later_until_it_is_accepted(away):
    rig = Rig(attempt("later", away=away)).started()
    rig.put("t:1-1")
    times = []
    for _ in range(6000):
        seen = len(rig.sent)
        rig.clock.advance(0.1)
        if len(rig.sent) > seen:
            times.append(rig.clock.seconds())
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert gaps[:4] == pytest.approx([1, 2, 4, 8], rel=0.15)
    assert all(gap >= 0.99 for gap in gaps)
    rig.service.answer = attempt()
    rig.pump(301, step=0.5)
    assert rig.left() == 0
    assert rig.counted.results["accepted"] == 1
    assert rig.counted.results["retried"] == len(times) + 1


def test_the_longest_wait_is_five_minutes():
    rig = Rig(attempt("later")).started()
    rig.put("t:1-1")
    rig.pump(4000, step=1.0)
    seen = len(rig.sent)
    rig.pump(3000, step=1.0)
    assert len(rig.sent) - seen >= 9


def test_what_is_refused_for_good_is_given_up_and_told_without_its_content(logged):
    rig = Rig(attempt("refused")).started()
    rig.kept.put("t:1-1", b'{"message": "secret"}')
    rig.pump(600, step=1.0)
    assert rig.sent == ["t:1-1"]
    assert rig.left() == 0
    assert rig.counted.results == {"refused": 1}
    (line,) = logged("notification.refused")
    assert (line["tenant_id"], line["alert"]) == ("t", "1-1")
    assert "secret" not in str(line)


def test_a_service_that_is_away_is_asked_by_one_alert_at_a_time_and_less_and_less():
    rig = Rig(attempt("later", away=True)).started()
    rig.put(*(f"t:1-{number}" for number in range(1, 101)))
    rig.pump(300, step=0.1)
    assert len(rig.sent) <= SLOTS + 20
    rig.service.answer = attempt()
    rig.pump(MAX_PAUSE_S + 1, step=0.1)
    assert rig.left() < 40
    rig.pump(301, step=0.5)
    assert rig.left() == 0
    assert rig.counted.results["accepted"] == 100


def test_the_service_may_ask_for_a_rest():
    rig = Rig(attempt("later", away=True, asked_s=60.0)).started()
    rig.put("t:1-1", "t:1-2")
    sent = len(rig.sent)
    rig.pump(59, step=0.5)
    assert len(rig.sent) == sent
    rig.service.answer = attempt()
    rig.pump(5)
    assert rig.left() == 0


def test_alerts_that_come_while_the_service_rests_cost_redis_nothing():
    rig = Rig(attempt("later", away=True, asked_s=60.0)).started()
    rig.put("t:1-1")
    rig.pump(1)
    takes = rig.way.takes
    for _ in range(1000):
        rig.one.wake()
        rig.clock.advance(0.001)
    assert rig.way.takes <= takes + 1


def test_one_alert_that_always_fails_holds_no_other_up():
    rig = Rig().started()
    rig.put("t:1-1")
    rig.service.answers(attempt("later"))
    rig.put("t:1-2", "t:1-3")
    while rig.service.waiting:
        rig.service.answers(attempt("later") if rig.sent[-1] == "t:1-1" else None)
        rig.pump(0.1)
    assert {"t:1-2", "t:1-3"} <= set(rig.sent)
    assert rig.left() == 1


def test_without_a_url_nothing_is_taken_until_there_is_one(logged):
    rig = Rig(attempt())
    rig.service.names.clear()
    rig.started()
    rig.put("t:1-1")
    rig.pump(600, step=1.0)
    assert rig.sent == []
    assert rig.counted.waiting == (1, pytest.approx(600, abs=6))
    assert len(logged("notifications.off")) == 1
    rig.service.names.add("notification")
    rig.pump(IDLE_S + 0.1)
    assert rig.sent == ["t:1-1"]


def test_alerts_of_demo_tenants_go_to_their_own_service_where_there_is_one():
    rig = Rig(attempt()).started()
    rig.tenants.demos.add("demo")
    rig.put("demo:1-1")
    rig.service.names.add("demo:notification")
    rig.put("demo:1-2", "t:1-1")
    rig.pump(1)
    assert sorted(rig.service.sent) == [
        ("demo:notification", "demo:1-2"),
        ("notification", "demo:1-1"),
        ("notification", "t:1-1"),
    ]


def test_while_nobody_knows_whether_a_tenant_is_a_demo_nothing_of_it_is_sent():
    rig = Rig(attempt()).started()
    rig.tenants.away = True
    rig.put("t:1-1")
    rig.pump(30)
    assert rig.sent == []
    rig.tenants.away = False
    rig.pump(60)
    assert rig.sent == ["t:1-1"]


def test_when_the_taker_dies_another_instance_sends_it_after_the_lease():
    rig = Rig(instances=2).started()
    rig.instances[1].drain(0)
    rig.put("t:1-1")
    assert len(rig.sent) == 1
    dead, rig.ways[0].away = rig.ways[0], True  # it never gets anything out any more
    rig.instances[1].start()
    rig.pump(LEASE_S - 1)
    assert len(rig.sent) == 1
    rig.pump(IDLE_S + 2)
    assert rig.sent == ["t:1-1", "t:1-1"]
    assert dead.away


def test_the_lease_is_longer_than_all_that_an_attempt_may_take():
    assert BEFORE_S + ATTEMPT_S < LEASE_S


def test_an_acceptance_that_redis_does_not_learn_of_is_told_until_it_does():
    rig = Rig().started()
    rig.put("t:1-1")
    rig.way.away = True
    rig.service.answers()
    rig.pump(LEASE_S * 3)
    assert rig.left() == 1
    rig.way.away = False
    rig.pump(30)
    assert rig.left() == 0
    assert rig.sent == ["t:1-1"]


def test_redis_that_comes_back_is_found_again():
    rig = Rig(attempt()).started()
    rig.way.away = True
    rig.put("t:1-1")
    rig.pump(60)
    rig.way.away = False
    rig.pump(IDLE_S + 0.1)
    assert rig.sent == ["t:1-1"]


def test_a_drain_takes_nothing_more_and_waits_for_what_is_under_way():
    rig = Rig().started()
    rig.put("t:1-1")
    drained = rig.one.drain(30)
    rig.put("t:1-2")
    rig.pump(9)
    assert not drained.called
    assert rig.one.busy
    rig.service.answers()
    assert not rig.one.busy
    assert drained.called
    success_of(drained)
    assert rig.sent == ["t:1-1"]
    assert rig.left() == 1
    assert rig.clock.getDelayedCalls() == []


def test_a_drain_ends_with_its_window_whatever_the_service_does():
    rig = Rig().started()
    rig.put("t:1-1")
    drained = rig.one.drain(2)
    rig.pump(2.1)
    assert success_of(drained) is None
    closed = Deferred.fromCoroutine(rig.one.close())
    rig.pump(CLOSE_S + 0.1)
    assert success_of(closed) is None
    assert rig.service.waiting == []
    assert rig.clock.getDelayedCalls() == []


def test_what_ends_with_the_process_is_told(logged):
    rig = Rig(attempt("later", away=True)).started()
    rig.put("t:1-1", "t:1-2")
    closed = Deferred.fromCoroutine(rig.one.close())
    rig.pump(CLOSE_S + 0.1)
    assert success_of(closed) is None
    (line,) = logged("notifications.given_up")
    assert (line["reason"], line["number"]) == ("stopped", 2)


def test_what_the_gateways_own_end_cuts_is_no_failure_of_the_service(logged):
    rig = Rig().started()
    rig.put("t:1-1")
    rig.one.drain(5)
    rig.service.answers(attempt("later", away=True))
    rig.pump(1)
    assert rig.counted.results == {"retried": 1}
    assert rig.left() == 1
    assert logged("notifications.failing") == []


def test_what_was_taken_when_the_drain_began_is_given_back_at_once():
    rig = Rig(attempt())
    taking = Deferred()

    class Slow(Fragile):
        async def take(self, count, *, lease_s):
            haul = await super().take(count, lease_s=lease_s)
            await taking
            return haul

    one = rig.instance(Slow(rig.kept))
    rig.kept.put("t:1-1", b"{}")
    one.start()
    rig.pump(0)
    drained = one.drain(5)
    assert not drained.called
    taking.callback(None)
    success_of(drained)
    assert rig.sent == []
    rig.one.start()
    rig.pump(0)
    assert rig.sent == ["t:1-1"]


def test_an_instance_that_was_held_up_leaves_its_alert_to_others():
    rig = Rig(attempt())
    known = Deferred()

    class Held(Tenants):
        async def flags(self, tenant_id):
            await known
            return await super().flags(tenant_id)

    rig.tenants = Held()
    one = rig.instance(rig.way)
    rig.kept.put("t:1-1", b"{}")
    one.start()
    rig.pump(0)
    rig.clock.advance(LEASE_S + 1)
    known.callback(None)
    assert rig.sent == []


def test_what_is_given_up_unsent_is_counted_and_told(logged):
    rig = Rig(attempt())
    rig.kept = rig.way._outbox = MemoryOutbox(rig.clock.seconds, max_waiting=1)
    rig.kept.put("t:1-1", b"{}")
    rig.kept.put("t:1-2", b"{}")
    rig.started()
    rig.pump(1)
    assert rig.sent == ["t:1-2"]
    assert rig.counted.results == {"overflow": 1, "accepted": 1}
    (line,) = logged("notifications.given_up")
    assert (line["reason"], line["number"]) == ("overflow", 1)


def test_what_is_too_much_is_given_up_as_fast_as_it_comes():
    rig = Rig(attempt())
    rig.service.names.clear()
    looks = []

    class Full(Fragile):
        async def take(self, count, *, lease_s):
            looks.append(rig.clock.seconds())
            return Haul(taken=(), waiting=1, oldest_s=0.0, next_s=None, given_up={"overflow": 1000})

    rig.instance(Full(rig.kept)).start()
    rig.pump(1)
    assert len(looks) >= 15


def test_failing_and_resuming_are_told_once_each(logged):
    rig = Rig(attempt("later", away=True)).started()
    rig.put("t:1-1")
    rig.pump(20)
    rig.service.answer = attempt()
    rig.pump(60)
    assert len(logged("notifications.failing")) == 1
    assert len(logged("notifications.resumed")) == 1


def test_a_service_that_fails_with_every_other_alert_is_told_of_once_a_minute(logged):
    rig = Rig().started()
    for number in range(200):
        rig.put(f"t:1-{number}")
        rig.service.answers(attempt("later" if number % 2 else "accepted"))
        rig.pump(0.1)
    assert 1 <= len(logged("notifications.failing")) <= 2
    assert 1 <= len(logged("notifications.resumed")) <= 2


def test_a_service_that_is_away_soon_after_it_was_told_of_is_told_of_again(logged):
    rig = Rig(attempt("later", away=True)).started()
    rig.put("t:1-1")
    rig.service.answer = attempt()
    rig.pump(10)
    assert len(logged("notifications.resumed")) == 1
    rig.service.answer = attempt("later", away=True)
    rig.put("t:1-2")
    rig.pump(130)
    assert len(logged("notifications.failing")) == 2


def test_an_outbox_that_cannot_be_looked_into_is_told_of_once_and_ages(logged):
    rig = Rig(attempt("later", away=True)).started()
    rig.put("t:1-1")
    rig.pump(5)
    aged = rig.counted.waiting[1]
    rig.way.away = True
    rig.pump(8)
    assert logged("notifications.store") == []
    rig.pump(700)
    (line,) = logged("notifications.store")
    assert (line["state"], line["act"], line["reason"]) == ("failing", "take", "away")
    assert rig.counted.waiting[0] == 1
    assert rig.counted.waiting[1] > aged + 700
    rig.way.away = False
    rig.service.answer = attempt()
    rig.pump(10)
    assert [line["state"] for line in logged("notifications.store")] == ["failing", "serving"]
    assert rig.counted.waiting == (0, 0.0)


def test_what_was_accepted_and_cannot_be_removed_is_told_of_once(logged):
    rig = Rig(attempt()).started()

    async def refused(notification):
        raise StoreUnavailable("NOPERM")

    rig.way.finish = refused
    rig.put("t:1-1", "t:1-2", "t:1-3")
    rig.pump(30)
    (line,) = logged("notifications.store")
    assert (line["state"], line["act"], line["reason"]) == ("failing", "finish", "NOPERM")
    del rig.way.finish
    rig.pump(1)
    assert [line["state"] for line in logged("notifications.store")] == ["failing", "serving"]


def test_alerts_that_wait_for_a_spoilt_value_say_for_which(logged):
    rig = Rig(attempt()).started()
    rig.tenants.spoilt.add("t")
    rig.put("t:1-1", "t:1-2", "u:1-1")
    rig.pump(60)
    assert rig.sent == ["u:1-1"]
    (line,) = logged("notification.held")
    assert (line["tenant_id"], line["reason"]) == ("t", "that key is no time")
    rig.tenants.spoilt.clear()
    rig.pump(120)
    assert sorted(rig.sent) == ["t:1-1", "t:1-2", "u:1-1"]


class Log:
    """An `EventLog` that has placed everything."""

    def __init__(self, fresh):
        self._fresh = fresh

    async def append(self, alerts):
        return [Placed(position=None, fresh=self._fresh) for _ in alerts]

    async def publish(self, alert):
        return Placed(position=None, fresh=self._fresh)


@pytest.mark.parametrize(("notify", "fresh", "woken"), [(True, True, 2), (True, False, 0), (False, True, 0)])
def test_who_places_an_alert_that_notifies_wakes_its_own_instance(notify, fresh, woken):
    woke = []
    log = WakingLog(Log(fresh), lambda: woke.append(1))
    alert = Alert(tenant_id="t", payload=b"{}", digest="d", alert_id=None, notify=notify)
    placed = success_of(Deferred.fromCoroutine(log.append([alert])))
    success_of(Deferred.fromCoroutine(log.publish(alert)))
    assert [it.fresh for it in placed] == [fresh]
    assert len(woke) == woken


def test_a_look_and_an_attempt_that_break_are_reported_and_keep_nothing_waiting(logged_failures):
    rig = Rig(attempt())
    take, send = rig.way.take, rig.service.send

    async def broken(*_, **__):
        raise ValueError("broken")

    rig.way.take = rig.service.send = broken
    rig.kept.put("t:1-1", b"{}")
    rig.started()
    rig.way.take = take
    rig.pump(IDLE_S + 0.1)
    assert rig.sent == []
    rig.service.send = send
    rig.pump(LEASE_S)

    assert rig.sent == ["t:1-1"]
    assert rig.left() == 0
    assert [failure.getErrorMessage() for failure in logged_failures] == ["broken", "broken"]
    logged_failures.clear()


def test_a_drain_looks_no_more():
    rig = Rig(attempt()).started()
    takes = rig.way.takes
    success_of(rig.one.drain(30))
    rig.pump(10 * IDLE_S)
    assert rig.way.takes == takes


def test_at_the_end_an_attempt_has_a_moment_to_be_accepted():
    rig = Rig().started()
    rig.put("t:1-1")
    closed = Deferred.fromCoroutine(rig.one.close())
    rig.pump(CLOSE_S / 2)
    rig.service.answers()
    assert success_of(closed) is None
    assert rig.left() == 0


def test_an_outbox_that_is_away_from_the_beginning_is_told_of_too(logged):
    rig = Rig()
    rig.way.away = True
    rig.started()
    rig.pump(PATIENCE_S + 2 * IDLE_S)
    (line,) = logged("notifications.store")
    assert line["state"] == "failing"
    assert rig.counted.waiting[0] == 0


def test_a_service_that_answers_with_errors_is_left_alone_from_the_fifth_in_a_row_on():
    pace, failed = Pace(), attempt("later")
    for number in range(PATIENCE):
        assert pace.until < number
        pace.failed(failed, began=number, now=number, chance=1.0)
    assert pace.until > PATIENCE
    pace.answered()
    assert pace.until < 0
