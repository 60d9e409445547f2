"""Alerts of an instance without Redis."""

from twisted.internet.defer import Deferred, succeed

from bakerygw.stores.local_alerts import LocalAlertChannel
from tests.deferreds import success_of
from tests.realtime.alert_sim import Telemetry


class Listening:
    def __init__(self) -> None:
        self.told = []

    def heard(self, tenant_id, payload) -> None:
        self.told.append((tenant_id, payload))

    def listening(self) -> None:
        self.told.append("listening")

    def interrupted(self) -> None:
        self.told.append("interrupted")

    def settled(self):
        return succeed(None)


class Eras:
    def __init__(self) -> None:
        self.number = 1

    async def era(self) -> int:
        return self.number

    async def begin_era(self, seen: int) -> int:
        self.number += self.number == seen
        return self.number


def started():
    eras, telemetry, listener = Eras(), Telemetry(), Listening()
    channel = LocalAlertChannel(eras, telemetry)
    channel.start(listener)
    return channel, listener, eras, telemetry


def publish(channel, payload: bytes) -> None:
    success_of(Deferred.fromCoroutine(channel.publish("t", payload)))


def test_what_is_published_is_heard_at_once_from_the_start_on():
    channel, listener, eras, telemetry = started()
    publish(channel, b"{}")

    assert listener.told == ["listening", ("t", b"{}")]
    assert telemetry.states == [True]
    assert eras.number == 1


def test_what_could_not_be_kept_begins_an_era():
    channel, listener, eras, telemetry = started()
    channel.missed()

    assert listener.told == ["listening", "interrupted", "listening"]
    assert eras.number == 2
    assert telemetry.eras == 1


def test_nothing_is_heard_after_the_end():
    channel, listener, _, telemetry = started()
    success_of(channel.stop())
    publish(channel, b"{}")
    channel.missed()

    assert listener.told == ["listening"]
    assert telemetry.states == [True, False]
