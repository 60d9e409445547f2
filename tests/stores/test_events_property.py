"""Whatever two instances do, and Redis loses: no id for two alerts, ids that increase, no hole inside an epoch."""

import json
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bakerygw.core.alerts import Position, parse_alert
from bakerygw.stores.events import RedisEventLog
from bakerygw.stores.memory_events import MemoryEventLog
from tests.deferreds import success_of

KEEP = 6
TENANTS = st.sampled_from(["a", "b"])
WHO = st.integers(0, 1)
STEPS = st.one_of(
    st.tuples(st.just("hear"), WHO, st.integers(1, 5)),
    st.tuples(st.just("say"), TENANTS, st.sampled_from([[], ["email"]])),
    st.tuples(st.just("publish"), WHO, TENANTS, st.integers(0, 6)),
    st.tuples(st.just("read"), WHO, TENANTS, st.integers(0, 9), st.integers(0, 300)),
    st.tuples(st.just("era"), WHO),
    st.tuples(st.just("lose"), st.sampled_from(["head", "era", "kept", "all", "latest"])),
    st.tuples(
        st.just("keep"),
    ),
)


class AtOnce:
    """A link whose calls end at once."""

    def __init__(self, redis):
        self._redis = redis

    async def run(self, script, keys, args):
        reply = self._redis.eval(script.source, len(keys), *keys, *args)
        return reply.encode() if isinstance(reply, str) else reply


class World:
    """Two instances that hear all that is said, in order, each at its own pace; and what they were told."""

    def __init__(self, logs, redis=None):
        self.logs, self.redis = logs, redis
        self.said, self.heard = [], [0, 0]
        self.payloads, self.newest, self.number = {}, {}, 0
        self.epochs = defaultdict(dict)
        self.readers = {}
        self.saved = {}

    def ask(self, call):
        return success_of(Deferred.fromCoroutine(call))

    def said_by(self, tenant_id, **members):
        self.number += 1
        return parse_alert(tenant_id, json.dumps({"message": self.number, **members}).encode())

    def placed(self, alert, its):
        """Hold a place against all that were told before."""
        key = alert.tenant_id, its.position.epoch, its.position.offset
        if its.fresh:
            assert key not in self.payloads
            assert key[1:] > self.newest.get(alert.tenant_id, (0, 0))
            epoch = self.epochs[alert.tenant_id, its.position.epoch]
            assert its.position.offset == len(epoch) + 1
            epoch[its.position.offset] = alert.payload
            self.newest[alert.tenant_id], self.payloads[key] = key[1:], alert.payload

    def say(self, tenant_id, channels):
        self.said.append(self.said_by(tenant_id, channels=channels))

    def hear(self, who, count):
        batch = self.said[self.heard[who] : self.heard[who] + count]
        for alert, its in zip(batch, self.ask(self.logs[who].append(batch)), strict=True):
            self.placed(alert, its)
        self.heard[who] += len(batch)

    def publish(self, who, tenant_id, alert_id):
        alert = self.said_by(tenant_id, alert_id=str(alert_id))
        its = self.ask(self.logs[who].publish(alert))
        self.placed(alert, its)
        if its.fresh:
            self.said.append(alert)

    def read(self, who, tenant_id, count, max_bytes):
        """A reader goes on from where it was: what it gets is all that it had not, or it is told of a gap."""
        after = self.readers.get((who, tenant_id), Position(epoch=0, offset=0))
        page = self.ask(self.logs[who].read(tenant_id, after, count=count, max_bytes=max_bytes))
        epoch = self.epochs[tenant_id, page.head.epoch]
        assert page.head.offset == len(epoch)
        assert page.head.offset - KEEP < page.first <= page.head.offset + 1
        begin = page.first if after.epoch != page.head.epoch else max(page.first, after.offset + 1)
        expected = list(range(begin, page.head.offset + 1))[: len(page.events)]
        assert [event.position for event in page.events] == [
            Position(epoch=page.head.epoch, offset=offset) for offset in expected
        ]
        assert [event.payload for event in page.events] == [epoch[offset] for offset in expected]
        assert len(page.events) <= count
        assert sum(len(event.payload) for event in page.events[1:]) <= max_bytes
        if count and begin <= page.head.offset:
            assert page.events
        self.readers[who, tenant_id] = page.events[-1].position if page.events else page.head

    def era(self, who):
        seen = self.ask(self.logs[who].era())
        assert self.ask(self.logs[who].begin_era(seen)) > seen
        assert self.ask(self.logs[1 - who].begin_era(seen)) == self.ask(self.logs[1 - who].era())

    def keep(self):
        if self.redis is not None:
            self.saved = {key: self.redis.dump(key) for key in self.redis.keys("*")}

    def lose(self, what):
        if self.redis is None:
            return
        for log in self.logs:  # what nobody alive has seen can't be known
            for tenant_id in ("a", "b"):
                self.ask(log.head(tenant_id))
        if what in ("all", "latest"):
            self.redis.flushall()
        if what == "latest":
            for key, value in self.saved.items():
                self.redis.restore(key, 0, value)
        if what in ("head", "kept", "era"):
            keys = self.redis.keys(f"bakerygw:alerts:{what}*")
            self.redis.delete(*keys) if keys else None


def played(world, steps):
    for name, *rest in steps:
        getattr(world, name)(*rest)
    for who in (0, 1):
        world.hear(who, len(world.said))
        for tenant_id in ("a", "b"):
            world.read(who, tenant_id, 9, 10_000)


@given(st.lists(STEPS, max_size=40))
def test_in_memory(steps):
    now = [1_700_000_000.0]
    log = MemoryEventLog(lambda: now[0], history_events=KEEP, history_s=60)
    played(World([log, log]), steps)


@pytest.fixture(scope="module")
def client(shared_redis):
    with Redis(port=shared_redis.port) as its:
        yield its


@settings(max_examples=60)
@given(steps=st.lists(STEPS, max_size=30))
def test_in_redis(client, steps):
    client.flushall()
    logs = [RedisEventLog(AtOnce(client), clock=Clock(), history_events=KEEP, history_s=60) for _ in range(2)]
    played(World(logs, client), steps)
