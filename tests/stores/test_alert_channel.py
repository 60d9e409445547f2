"""Alerts by a real Redis: heard, kept once, and vouched for among instances that come and go."""

import re
import time
from pathlib import Path

import pytest
import pytest_twisted
from store_fakes import RecordingTelemetry, access_to, link_to, pause

from bakerygw.core.alerts import Position
from bakerygw.ports import StoreUnavailable
from bakerygw.realtime.alerts.intake import Intake
from bakerygw.stores.alert_channel import RedisAlertChannel, RedisAlertPublisher
from bakerygw.stores.events import RedisEventLog
from tests.patience import PATIENCE_S
from tests.realtime.alert_sim import Hub, Telemetry
from tests.redis_server import RedisServer

DOCS = Path(__file__).parents[2] / "docs"


class Listening:
    """The alerts' part of one instance, on the real reactor."""

    def __init__(self, server: RedisServer, *, username: str | None = None, password: str | None = None) -> None:
        from twisted.internet import reactor  # noqa: PLC0415

        self.link = link_to(server, RecordingTelemetry(), username=username, password=password)
        self.log = RedisEventLog(self.link, clock=reactor, history_events=1000, history_s=3600)
        self.hub, self.telemetry = Hub(), Telemetry()
        access = access_to(server, username=username, password=password)
        self.channel = RedisAlertChannel(access, self.link, self.log, self.telemetry)
        self.intake = Intake(self.log, self.hub, reactor, self.telemetry, missed=self.channel.missed)
        self.publisher = RedisAlertPublisher(self.link)

    async def start(self, within_s: float = PATIENCE_S) -> "Listening":
        self.begin()
        await self.until(lambda: self.sure, within_s)
        return self

    def begin(self) -> None:
        self.link.start()
        self.channel.start(self.intake)

    @property
    def sure(self) -> bool:
        return bool(self.telemetry.states) and self.telemetry.states[-1]

    async def until(self, true, within_s: float = PATIENCE_S) -> None:
        begun = time.monotonic()
        while not true():
            assert time.monotonic() - begun < within_s, (self.telemetry.states, self.hub.told)
            await pause(0.005)

    async def told(self, number: int) -> list[bytes]:
        await self.until(lambda: len(self.hub.stored_) >= number)
        return [payload for _, _, payload in self.hub.stored_]

    async def stop(self) -> None:
        await self.channel.stop()
        await self.intake.close()
        await self.link.stop()


@pytest_twisted.async_yield_fixture
async def stage():
    """A Redis, a way to make instances, and all of them stopped in the end."""
    instances = []
    with RedisServer() as server:

        def make(**about) -> Listening:
            instances.append(Listening(server, **about))
            return instances[-1]

        make.server = server
        yield make
        for instance in instances:
            await instance.stop()


def alert(number: int) -> bytes:
    return b'{"alert_id":"%d"}' % number


@pytest_twisted.ensureDeferred
async def test_what_is_published_is_heard_by_all_and_kept_once(stage):
    first, second = await stage().start(), await stage().start()
    for number in range(300):
        stage.server.command("PUBLISH", "alerts:tenant:t", alert(number))
    await first.publisher.publish("u", alert(0))

    assert await first.told(301) == await second.told(301) == [*(alert(number) for number in range(300)), alert(0)]
    assert first.telemetry.fresh + second.telemetry.fresh == 301
    assert first.telemetry.known + second.telemetry.known == 301
    assert [its[:2] for its in places(first)] == [its[:2] for its in places(second)]
    page = await second.log.read("t", Position(epoch=0, offset=0), count=1000, max_bytes=1_000_000)
    assert [event.payload for event in page.events] == [alert(number) for number in range(300)]
    assert (first.telemetry.eras, second.telemetry.eras) == (1, 0)


def places(instance: Listening) -> list[tuple[str, str, bool]]:
    return [(tenant_id, placed.position.text, placed.fresh) for tenant_id, placed, _ in instance.hub.stored_]


@pytest_twisted.ensureDeferred
async def test_instances_that_start_together_begin_one_era(stage):
    instances = [stage() for _ in range(4)]
    for instance in instances:
        instance.begin()
    for instance in instances:
        await instance.until(lambda its=instance: its.sure)
    era = await instances[0].log.era()
    later = await stage().start()

    assert await later.log.era() == era
    assert later.telemetry.eras == 0


@pytest_twisted.ensureDeferred
async def test_of_two_one_may_die_and_come_back_without_an_era(stage):
    first, second = await stage().start(), await stage().start()
    era = await first.log.era()
    await first.stop()
    stage.server.command("PUBLISH", "alerts:tenant:t", alert(1))
    again = await stage().start()
    stage.server.command("PUBLISH", "alerts:tenant:t", alert(2))

    assert await again.log.era() == era
    assert await second.told(2) == [alert(1), alert(2)]
    assert await again.told(1) == [alert(2)]


@pytest_twisted.ensureDeferred
async def test_after_a_time_without_listeners_an_era_begins(stage):
    first = await stage().start()
    era = await first.log.era()
    await first.stop()
    assert stage.server.command("PUBLISH", "alerts:tenant:t", alert(1)) == b":0"
    again = await stage().start()

    assert await again.log.era() > era


@pytest_twisted.ensureDeferred
async def test_a_listener_whom_redis_cuts_off_is_told_and_vouched_for(stage):
    first, second = await stage().start(), await stage().start()
    era = await first.log.era()
    stage.server.command("CLIENT", "KILL", "TYPE", "pubsub")
    await first.until(lambda: not first.sure)
    await first.until(lambda: first.sure and second.sure)
    assert await first.log.era() > era  # both were cut off at once, and nobody can vouch

    assert first.hub.told == ["restored", "degraded", "restored"]


@pytest_twisted.ensureDeferred
async def test_a_redis_that_pauses_costs_no_era_and_no_alert(stage):
    only = await stage().start()
    era = await only.log.era()
    stage.server.suspend()
    await only.until(lambda: not only.sure)
    stage.server.resume()
    stage.server.command("PUBLISH", "alerts:tenant:t", alert(1))
    await only.until(lambda: only.sure)

    assert await only.told(1) == [alert(1)]
    assert await only.log.era() == era


@pytest_twisted.ensureDeferred
async def test_a_redis_that_restarts_is_found_again_and_begins_an_era(stage):
    first, second = await stage().start(), await stage().start()
    era = await first.log.era()
    stage.server.restart()
    await first.until(lambda: not first.sure and not second.sure)
    await first.until(lambda: first.sure and second.sure)
    stage.server.command("PUBLISH", "alerts:tenant:t", alert(1))

    assert await first.told(1) == await second.told(1) == [alert(1)]
    assert await first.log.era() > era


@pytest_twisted.ensureDeferred
async def test_nonsense_that_is_published_harms_nobody(stage):
    only = await stage().start()
    for channel in ("alerts:tenant:", "alerts:tenant:*", "alerts:tenant:a:b", "bakerygw:alerts:listening"):
        stage.server.command("PUBLISH", channel, b"nonsense")
    stage.server.command("PUBLISH", "alerts:tenant:t", b"x" * 10_000_000)
    stage.server.command("PUBLISH", "alerts:tenant:t", alert(1))

    assert await only.told(1) == [alert(1)]
    assert sorted(only.telemetry.drops) == ["invalid", "invalid", "invalid", "too-large"]
    assert only.telemetry.eras == 1
    await only.until(lambda: only.sure)


def acl(page: str, user: str) -> list[str]:
    line = re.search(rf"^    ACL SETUSER {user} (.+)$", (DOCS / page).read_text(), re.MULTILINE)
    assert line is not None
    return line[1].split()


@pytest_twisted.ensureDeferred
async def test_the_users_of_the_documentation_may_listen_and_publish_and_no_more(stage):
    assert stage.server.command("ACL", "SETUSER", "bakerygw", *acl("operators.md", "bakerygw")) == b"+OK"
    assert stage.server.command("ACL", "SETUSER", "alerting", *acl("services.md", "alerting")) == b"+OK"
    only = await stage(username="bakerygw", password="PASSWORD").start()
    service = link_to(stage.server, RecordingTelemetry(), username="alerting", password="PASSWORD")
    await service.start()
    assert await service.call("PUBLISH", "alerts:tenant:t", alert(1)) == 1
    assert await only.told(1) == [alert(1)]
    for command in (("PUBLISH", "bakerygw:alerts:listening", "x"), ("PUBSUB", "CHANNELS"), ("GET", "x")):
        with pytest.raises(StoreUnavailable, match="NOPERM"):
            await service.call(*command)
    await service.stop()
