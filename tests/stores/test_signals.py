"""What instances tell each other: between two, through Redis; and what strangers publish."""

import json

import pytest
import pytest_twisted
from store_fakes import RecordingTelemetry, caught_up, invalidations_of, link_to, trusted

from bakerygw.ports import StoreUnavailable
from bakerygw.stores.mirror import Mirror
from bakerygw.stores.signals import LocalSignals, RedisSignals


class Instance:
    def __init__(self, server):
        self.link, self.mirror, self.heard = link_to(server, RecordingTelemetry()), Mirror(), []
        self.signals = RedisSignals(self.link)
        self.signals.on("disconnect", self.heard.append)
        self.invalidations = invalidations_of(server, self.link, self.mirror, signals=self.signals.heard)

    async def start(self):
        self.invalidations.start()
        await self.link.start()
        await trusted(self.mirror)

    async def stop(self):
        await self.invalidations.stop()
        await self.link.stop()


@pytest_twisted.async_yield_fixture
async def pair(redis_server):
    instances = [Instance(redis_server), Instance(redis_server)]
    for instance in instances:
        await instance.start()
    yield instances
    for instance in instances:
        await instance.stop()


@pytest_twisted.ensureDeferred
async def test_a_signal_reaches_all_others_and_not_the_sender(pair):
    one, other = pair
    assert await one.signals.send("disconnect", "bakery-1") == 2
    assert await one.signals.send("erased", "nobody-listens") == 2
    await caught_up(one.link)
    assert (one.heard, other.heard) == ([], ["bakery-1"])
    assert one.mirror.trusted is not None


@pytest_twisted.ensureDeferred
async def test_what_strangers_publish_does_no_harm(pair, redis_server):
    for payload in (b"", b"{", b"[]", b"\xff", b"1" * 1000, b'{"kind": [], "subject": "x"}', b"[" * 400):
        redis_server.command("PUBLISH", "bakerygw:signals", payload)
    for subject in ("", "x" * 200, None, 5, ["x"]):
        redis_server.command("PUBLISH", "bakerygw:signals", json.dumps({"kind": "disconnect", "subject": subject}))
    redis_server.command("PUBLISH", "bakerygw:signals", b'{"kind": "drop", "subject": "x"}')
    redis_server.command("PUBLISH", "bakerygw:signals", b'{"kind": "disconnect", "subject": "ours"}')
    await caught_up(pair[0].link)
    assert [instance.heard for instance in pair] == [["ours"], ["ours"]]
    await trusted(pair[0].mirror)


@pytest_twisted.ensureDeferred
async def test_a_subscriber_that_was_lost_hears_again(pair, redis_server):
    redis_server.command("CLIENT", "KILL", "TYPE", "pubsub")
    await trusted(pair[1].mirror, wanted=False)
    await trusted(pair[1].mirror)
    await pair[0].signals.send("disconnect", "bakery-1")
    await caught_up(pair[0].link)
    assert pair[1].heard == ["bakery-1"]


@pytest_twisted.ensureDeferred
async def test_without_redis_sending_says_so(redis_server):
    link = link_to(redis_server, RecordingTelemetry())
    with pytest.raises(StoreUnavailable):
        await RedisSignals(link).send("disconnect", "bakery-1")


def test_a_fault_in_one_handler_is_logged_and_the_others_hear(logged_failures):
    signals, heard = LocalSignals(), []
    signals.on("erased", lambda _: 1 / 0)
    signals.on("erased", heard.append)
    signals.dispatch("erased", "a")
    assert heard == ["a"]
    assert len(logged_failures) == 1
    logged_failures.clear()
