"""What happens in the demo's bakeries, and how it is published."""

import json
from collections.abc import Awaitable
from random import Random

from demo_calls import NOW
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from bakerygw.core.alerts import parse_alert
from bakerygw.demo.accounts import demo_directory
from bakerygw.demo.alerts import EVERY_S, KINDS, Happenings, make_alert

DIRECTORY = demo_directory(lambda: NOW)


class Channel:
    """Takes what is published; `answer` is what the publisher waits for."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.answer: Deferred[None] | Exception | None = None

    def __call__(self, tenant_id: str, payload: bytes) -> Awaitable[object]:
        self.published.append((tenant_id, payload))
        if isinstance(self.answer, Exception):
            raise self.answer
        return succeed(None) if self.answer is None else self.answer


def happening(seed: int = 1) -> tuple[Clock, Channel, Happenings]:
    clock, channel = Clock(), Channel()
    happenings = Happenings(lambda: DIRECTORY.tenants, clock=clock, now=lambda: NOW, random=Random(seed))
    happenings.start(channel)
    return clock, channel, happenings


def test_every_alert_is_one_that_services_may_publish() -> None:
    chance = Random(3)
    alerts = [make_alert(chance, NOW) for _ in range(300)]
    read = [parse_alert("t-1", json.dumps(alert).encode()) for alert in alerts]
    assert [it.alert_id for it in read] == [alert["alert_id"] for alert in alerts]
    assert len({it.alert_id for it in read}) == 300
    assert {alert["severity"] for alert in alerts} == {"info", "warning", "critical"}
    assert {alert["type"] for alert in alerts} == {kind(Random(0))["type"] for kind in KINDS}
    assert all(alert["message"] and alert["timestamp"] == "2025-06-15T15:06:40Z" for alert in alerts)


def test_now_and_then_an_alert_is_also_sent_by_email() -> None:
    chance = Random(3)
    told = [alert for alert in (make_alert(chance, NOW) for _ in range(300)) if "channels" in alert]
    assert 10 < len(told) < 60
    assert all(alert["channels"] == ["sse", "email"] and alert["severity"] == "critical" for alert in told)


def test_each_bakery_has_an_alert_every_few_seconds() -> None:
    clock, channel, _ = happening()
    clock.pump([0.1] * 600)
    by_tenant = dict.fromkeys(DIRECTORY.tenants, 0)
    for tenant_id, _ in channel.published:
        by_tenant[tenant_id] += 1
    assert all(60 / EVERY_S * 0.6 < count < 60 / EVERY_S * 1.4 for count in by_tenant.values())


def test_the_same_seed_makes_the_same_alerts() -> None:
    first, second, other = (happening(seed) for seed in (5, 5, 6))
    for clock, _, _ in (first, second, other):
        clock.pump([0.1] * 100)
    assert first[1].published == second[1].published != other[1].published


def test_the_next_waits_for_the_one_before() -> None:
    clock, channel, _ = happening()
    channel.answer = slow = Deferred()
    clock.pump([0.1] * 200)
    assert len(channel.published) == 1
    channel.answer = None
    slow.callback(None)
    clock.pump([0.1] * 30)
    assert len(channel.published) > 1


def test_an_alert_that_is_lost_does_not_stop_the_next() -> None:
    clock, channel, _ = happening()
    channel.answer = ConnectionError("gone")
    clock.pump([0.1] * 30)
    assert len(channel.published) > 1


def test_an_outage_is_told_once_and_so_is_its_end() -> None:
    clock, channel, _ = happening()
    with capturedLogs() as events:
        channel.answer = ConnectionError("gone")
        clock.pump([0.1] * 100)
        lost, channel.answer = len(channel.published), None
        clock.pump([0.1] * 100)
    told = [(event["log_format"], event["state"], event.get("lost")) for event in events]
    assert told == [("demo.alerts", "lost", None), ("demo.alerts", "published", lost)]


def test_nothing_happens_once_it_is_stopped() -> None:
    clock, channel, happenings = happening()
    clock.pump([0.1] * 30)
    so_far = len(channel.published)
    happenings.stop()
    happenings.stop()
    clock.pump([0.1] * 30)
    assert (len(channel.published), clock.getDelayedCalls()) == (so_far, [])


def test_stopping_cancels_what_is_being_published() -> None:
    clock, channel, happenings = happening()
    channel.answer = slow = Deferred()
    clock.pump([0.1] * 30)
    happenings.stop()
    assert slow.called
    assert clock.getDelayedCalls() == []
