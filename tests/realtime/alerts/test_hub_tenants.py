"""Streams of many tenants side by side, whose names are alike: each has its own alerts, live and from the history."""

from collections.abc import Sequence
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred

from bakerygw.core.alerts import parse_alert
from bakerygw.core.outcome import Trace
from bakerygw.core.tenancy import TenantView
from bakerygw.edge.admission import Grant
from bakerygw.realtime.alerts.handler import AlertStreams
from bakerygw.realtime.alerts.hub import KEPT_S
from bakerygw.stores.memory_events import MemoryEventLog
from tests.deferreds import success_of
from tests.heads import make_head
from tests.realtime.guard_fakes import USER
from tests.realtime.sse_client import EventClient
from tests.realtime.stream_fakes import FakePlace, Instance, Reading

ALIKE = ("bakery", "Bakery", "BAKERY", "baker", "bakery1", "bakery.", "bakery-", "_bakery", "0", "b" * 63, "b" * 64)


class Street(Instance):
    """An instance with the histories of many tenants."""

    def __init__(self) -> None:
        super().__init__()
        self.events = MemoryEventLog(lambda: 1e9 + self.clock.seconds(), history_events=100, history_s=1000)
        self.hub.log = self.events

    def tell(self, tenant_id: str, number: int) -> str:
        """An alert that names its tenant, stored and heard here; its id."""
        payload = b'{"of":"%s","n":%d}' % (tenant_id.encode(), number)
        (placed,) = success_of(Deferred.fromCoroutine(self.events.append([parse_alert(tenant_id, payload)])))
        self.hub.stored(tenant_id, placed, payload)
        self.turn()
        return placed.position.text

    def readings(self, names: Sequence[str], last_ids: Sequence[str | None] = ()) -> list[Reading]:
        its = last_ids or [None] * len(names)
        return [self.open(last_id, tenant_id=name) for name, last_id in zip(names, its, strict=True)]


class Doorkeeper:
    """A guard that lets everybody in."""

    def enter(self, kind: str, grant: Grant) -> FakePlace:
        return FakePlace()


def seen(reading: Reading) -> list[tuple[str, int, str]]:
    """Whose alerts have come, which, and under which ids."""
    reading.read()
    alerts = [event for event in reading.client.events if event.kind == "alert"]
    return [(event.json["of"], event.json["n"], event.last_id) for event in alerts]


def gaps(reading: Reading) -> list[str]:
    reading.read()
    return [event.json["reason"] for event in reading.client.events if event.kind == "gap"]


@pytest.mark.parametrize("names", [ALIKE, ALIKE[::-1]])
def test_each_sees_its_own_live_and_from_the_history(names: Sequence[str]) -> None:
    street = Street()
    before = [street.tell(name, 1) for name in names]
    missed = [street.tell(name, 2) for name in names]
    live, back = street.readings(names), street.readings(names, before)
    fresh = [street.tell(name, 3) for name in names]

    for at, name in enumerate(names):
        assert seen(live[at]) == [(name, 3, fresh[at])]
        assert seen(back[at]) == [(name, 2, missed[at]), (name, 3, fresh[at])]
        assert gaps(back[at]) == []


@pytest.mark.parametrize("names", [ALIKE, ALIKE[::-1]])
def test_what_was_not_heard_is_fetched_of_the_same_tenant(names: Sequence[str]) -> None:
    street = Street()
    readings = street.readings(names)
    ids = []
    for name in names:
        payload = b'{"of":"%s","n":1}' % name.encode()
        (placed,) = success_of(Deferred.fromCoroutine(street.events.append([parse_alert(name, payload)])))
        ids.append(placed.position.text)
    street.hub.restored()
    street.turn(1)

    assert [seen(reading) for reading in readings] == [[(name, 1, its)] for name, its in zip(names, ids, strict=True)]


def test_the_place_of_another_tenant_is_none_of_ones_own() -> None:
    street = Street()
    street.tell("bakery", 1)
    here = [street.tell("bakery", 2), street.tell("bakery", 3)]
    foreign = [street.tell("Bakery", 1), street.tell("Bakery", 2), street.tell("Bakery", 3)]
    strangers = street.readings(["bakery"] * 3, foreign) + street.readings(["Bakery"] * 2, here)
    last = {name: street.tell(name, 4) for name in ("bakery", "Bakery")}

    for reading in strangers:
        name = reading.tenant_id
        assert len(gaps(reading)) == 1
        assert seen(reading) == [(name, 4, last[name])]


@pytest.mark.parametrize("away_s", [0.0, KEPT_S / 2, 3 * KEPT_S])
def test_nothing_is_left_of_a_tenant_for_whoever_comes_next(away_s: float) -> None:
    street = Street()
    first = street.open(tenant_id="bakery")
    last = [street.tell("bakery", number) for number in range(5)][2]
    first.leave()
    for _ in range(round(away_s)):
        street.turn(1)

    fresh, stranger = street.open(tenant_id="Bakery"), street.open(last, tenant_id="Bakery")
    own = street.open(last, tenant_id="bakery")
    its = street.tell("Bakery", 9)
    street.turn(1)

    assert seen(fresh) == [("Bakery", 9, its)]
    assert seen(stranger) == [("Bakery", 9, its)]
    assert len(gaps(stranger)) == 1
    assert [number for name, number, _ in seen(own) if name == "bakery"] == [3, 4]
    assert gaps(own) == []


def test_a_stream_is_of_the_tenant_that_was_admitted_whatever_the_token_and_the_request_name() -> None:
    """As with a ticket: neither header nor query tells whom it was fetched for."""
    street = Street()
    reading = Reading(street, EventClient(), FakePlace())
    exchange, nothing, doorkeeper = cast("Any", reading.exchange), cast("Any", None), cast("Any", Doorkeeper())
    exchange.head = make_head()
    view = TenantView(tenant_id="t-other", role=None, subscription=None, own=False)
    streams, trace = AlertStreams(street.hub, doorkeeper), Trace(request_id="r", started=0.0)

    reply = success_of(
        Deferred.fromCoroutine(streams.open(exchange, nothing, Grant(claims=USER, view=view), nothing, trace))
    )
    reply.body.start(reading)
    for name in ("t-own", "t-other"):
        street.tell(name, 1)

    assert [name for name, _, _ in seen(reading)] == ["t-other"]
