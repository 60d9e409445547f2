"""The geocoding handler: caches, equal questions, privacy between demo and real, and what it says when it can't."""

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from bakerygw.core.geocoding import Question
from bakerygw.core.http import Reply
from bakerygw.core.outcome import Trace
from bakerygw.core.places import Place, read_places
from bakerygw.core.problem import Refused
from bakerygw.core.tenancy import TenantView
from bakerygw.edge.admission import Grant
from bakerygw.edge.geocoding.answers import EMPTY_KEPT_S, KEPT_S, MAX_SHARED_BYTES, Answers
from bakerygw.edge.geocoding.handler import MAX_PER_TENANT, Geocoding
from bakerygw.edge.geocoding.turns import Turns
from bakerygw.ports import UpstreamFailed
from tests.deferreds import failure_of, success_of
from tests.edge.edge_fakes import Source
from tests.edge.port_fakes import DEMO, USER
from tests.edge.record_fakes import Shared
from tests.heads import make_head

FORN = {"display_name": "Forn de Gràcia", "lat": 41.4, "lon": 2.2, "type": "bakery", "address": {"city": "Barcelona"}}
PLACES = read_places([FORN])


class Map:
    """A `Geocoder` that answers when told to."""

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.open: list[Deferred[tuple[Place, ...]]] = []

    async def search(self, question: Question) -> tuple[Place, ...]:
        self.asked.append(question)
        answer: Deferred[tuple[Place, ...]] = Deferred()
        self.open.append(answer)
        return await answer

    def answers(self, *places: Place) -> None:
        self.open.pop(0).callback(places)

    def fails(self, failure: Exception) -> None:
        self.open.pop(0).errback(failure)


class Exchange:
    """As much of an exchange as a handler reads."""

    def __init__(self, body: bytes, *lines: tuple[bytes, bytes]) -> None:
        self.head = make_head(method="POST", target=b"/api/v1/geocode", headers=[(b"Host", b"gw"), *lines])
        self.body = Source(len(body), body)


class House:
    """Instances of the handler over the same records and map."""

    built: ClassVar[list["House"]] = []

    def __init__(self, instances: int = 1) -> None:
        House.built.append(self)
        self.asking: list[Deferred[Reply]] = []
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        now = self.clock.seconds
        self.records, self.map = Shared(now), Map()
        self.counted: list[str] = []
        self.answers = [Answers(self.records, now=now) for _ in range(instances)]
        self._names = iter(range(1000))
        self.handlers = [self._handler(answers) for answers in self.answers]

    def _handler(self, answers: Answers) -> Geocoding:
        now = self.clock.seconds
        turns = Turns(self.records, "geocode:slot", clock=self.clock, now=now, token=lambda: str(next(self._names)))
        return Geocoding(self.map, answers, turns, clock=self.clock, count=self.counted.append)

    def ask(self, query: str = "Forn", at: int = 0, claims: Any = USER, tenant: str = "t-own") -> "Deferred[Reply]":
        view = TenantView(tenant_id=tenant, role="owner", subscription=None, own=True)
        exchange: Any = Exchange(json.dumps({"query": query}).encode())
        trace = Trace(request_id="request-1", started=0.0, traceparent=b"")
        unused: Any = None
        asking = Deferred.fromCoroutine(
            self.handlers[at].reply_to(exchange, unused, Grant(claims=claims, view=view), unused, trace)
        )
        self.asking.append(asking)
        return asking

    def end(self) -> None:
        """Whoever still waits leaves, and what is still asked is answered."""
        for asking in self.asking:
            asking.addErrback(lambda _: None)
            asking.cancel()
        while self.map.open:
            self.map.answers()

    def told(self, reply: "Deferred[Reply]") -> Any:
        body = success_of(reply).body
        assert isinstance(body, bytes)
        return json.loads(body)

    def refused(self, reply: "Deferred[Reply]") -> Any:
        refusal = failure_of(reply, Refused)
        assert isinstance(refusal, Refused)
        return refusal.problem

    def wait(self, seconds: float) -> None:
        self.clock.pump([0.1] * round(seconds / 0.1))


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """No coroutine is left for the interpreter's end."""
    yield
    while House.built:
        House.built.pop().end()


@pytest.fixture
def house() -> House:
    return House()


def test_an_answer_carries_the_places_and_whose_the_data_are(house: House) -> None:
    asking = house.ask()
    house.map.answers(*PLACES)

    assert house.told(asking) == {
        "results": [FORN],
        "attribution": "Data © OpenStreetMap contributors, ODbL 1.0. https://osm.org/copyright",
        "cached": False,
    }
    assert house.counted == ["asked"]


def test_equal_questions_at_the_same_time_are_asked_once(house: House) -> None:
    asking = [house.ask("Forn"), house.ask(" FORN "), house.ask("forn")]
    house.map.answers(*PLACES)

    assert [house.told(each)["results"] for each in asking] == [[FORN]] * 3
    assert len(house.map.asked) == 1


def test_an_answer_is_known_here_and_elsewhere_for_thirty_days() -> None:
    house = House(2)
    asking = house.ask()
    house.map.answers(*PLACES)
    house.told(asking)

    assert house.told(house.ask(at=0))["cached"] is True
    assert house.told(house.ask(at=1))["cached"] is True
    assert house.counted == ["asked", "local", "shared"]
    house.clock.advance(KEPT_S + 1)
    assert not house.ask(at=1).called
    assert len(house.map.asked) == 2


def test_nothing_found_is_known_for_a_day(house: House) -> None:
    asking = house.ask()
    house.map.answers()
    assert house.told(asking)["results"] == []
    house.clock.advance(EMPTY_KEPT_S - 1)
    assert house.told(house.ask())["cached"] is True
    house.clock.advance(2)
    house.ask()
    assert len(house.map.asked) == 2


def test_a_question_that_another_instance_has_asked_meanwhile_is_not_asked_again() -> None:
    house = House(2)
    first = house.ask(at=0)
    second = house.ask(at=1)
    house.wait(0.3)
    house.map.answers(*PLACES)
    house.wait(1.5)

    assert house.told(first)["cached"] is False
    assert house.told(second)["cached"] is True
    assert len(house.map.asked) == 1


def test_demo_sessions_and_accounts_do_not_share_answers(house: House) -> None:
    asking = house.ask()
    house.map.answers(*PLACES)
    house.told(asking)
    visitor = house.ask(claims=DEMO)
    assert not visitor.called
    house.wait(1.5)
    house.map.answers()

    assert house.told(visitor)["results"] == []
    assert house.told(house.ask())["results"] == [FORN]


def test_whoever_leaves_before_being_asked_for_is_not_asked_for(house: House) -> None:
    house.ask("first")
    leaving, other = house.ask("second"), house.ask("third")
    leaving.cancel()
    failure_of(leaving, CancelledError)
    house.map.answers()
    house.wait(1.5)

    assert [question.query for question in house.map.asked] == ["first", "third"]
    other.addErrback(lambda _: None)


def test_one_of_two_who_wait_for_the_same_may_leave(house: House) -> None:
    house.ask("first")
    leaving, staying = house.ask("second"), house.ask("second")
    leaving.cancel()
    failure_of(leaving, CancelledError)
    house.map.answers()
    house.wait(1.5)
    house.map.answers(*PLACES)

    assert house.told(staying)["results"] == [FORN]


def test_what_is_being_asked_is_kept_though_nobody_waits_any_more(house: House) -> None:
    leaving = house.ask()
    leaving.cancel()
    failure_of(leaving, CancelledError)
    house.map.answers(*PLACES)

    assert house.told(house.ask())["cached"] is True


def test_a_failure_is_told_to_all_who_wait_with_a_wait_and_is_not_kept(house: House) -> None:
    asking = [house.ask(), house.ask()]
    house.map.fails(UpstreamFailed("upstream-timeout", "http_response_timeout", "geocoder: late", retry_after_s=5))

    for each in asking:
        problem = house.refused(each)
        assert (problem.code, problem.retry_after_s) == ("upstream-timeout", 5)
        assert "5 seconds" in problem.detail
    house.wait(6.5)
    house.ask()
    assert len(house.map.asked) == 2


def test_a_map_that_refuses_is_left_alone_by_all_instances() -> None:
    house = House(2)
    asking = house.ask(at=0)
    house.map.fails(UpstreamFailed("service-unavailable", "destination_unavailable", "geocoder: 429", retry_after_s=60))
    assert house.refused(asking).retry_after_s == 60
    house.wait(10)
    for at in range(2):
        problem = house.refused(house.ask("other", at=at))
        assert problem.code == "service-unavailable"
        assert 49 <= problem.retry_after_s <= 52
    assert len(house.map.asked) == 1


def test_a_defect_of_the_map_is_told_and_gives_the_turn_back(house: House) -> None:
    asking = house.ask()
    house.map.fails(ZeroDivisionError())
    failure_of(asking, ZeroDivisionError)
    house.wait(1.5)
    house.ask("other")

    assert len(house.map.asked) == 2


def test_one_tenant_does_not_fill_the_line(house: House) -> None:
    waiting = [house.ask(f"street {number}") for number in range(MAX_PER_TENANT)]
    assert not any(each.called for each in waiting)
    problem = house.refused(house.ask("one too many"))
    assert problem.code == "service-unavailable"
    assert problem.retry_after_s >= 4
    assert not house.ask("another bakery", tenant="t-other").called


def test_a_long_line_is_refused_with_the_real_wait(house: House) -> None:
    asking = [house.ask(f"street {number}", tenant=f"t-{number}") for number in range(20)]
    refused = [house.refused(each) for each in asking if each.called]

    assert refused
    assert {problem.code for problem in refused} == {"service-unavailable"}
    assert all(10 <= problem.retry_after_s <= 20 for problem in refused)


def test_without_the_store_only_what_is_known_here_is_answered(house: House) -> None:
    asking = house.ask()
    house.map.answers(*PLACES)
    house.told(asking)
    house.records.down = True

    assert house.told(house.ask())["cached"] is True
    assert house.refused(house.ask("other")).code == "state-unavailable"
    assert len(house.map.asked) == 1


def test_an_answer_that_came_as_the_store_went_is_given_all_the_same(house: House) -> None:
    asking = house.ask()
    house.records.down = True
    house.map.answers(*PLACES)

    assert house.told(asking)["results"] == [FORN]


def record_of(house: House) -> str:
    return next(key for key in house.records._values if key.startswith("geocode:answer:"))


@pytest.mark.parametrize(
    "value",
    [
        b"", b"x", b"[]", b"{}", b'{"at":1700000000}', b'{"at":1700000000,"results":[{}]}', b'{"at":0,"results":[]}',
        b'{"at":9999999999,"results":[]}', b'{"at":true,"results":[]}', b'{"at":"x","results":[]}', b"[" * 50_000,
        b'{"at":1700000000,"results":[' + b" " * (MAX_SHARED_BYTES + 100) + b"]}",
    ],
)  # fmt: skip
def test_what_others_wrote_into_the_store_is_no_answer(value: bytes) -> None:
    house = House(2)
    asking = house.ask()
    house.map.answers(*PLACES)
    house.told(asking)
    success_of(Deferred.fromCoroutine(house.records.put(record_of(house), value, ttl_s=None)))
    house.wait(1.5)
    house.ask(at=1)

    assert len(house.map.asked) == 2


def test_a_shared_answer_passes_on_documented_members_only() -> None:
    house = House(2)
    asking = house.ask()
    house.map.answers(*PLACES)
    house.told(asking)
    value = json.dumps({"at": 1_700_000_000, "results": [{**FORN, "evil": "<script>"}]}).encode()
    success_of(Deferred.fromCoroutine(house.records.put(record_of(house), value, ttl_s=None)))

    assert house.told(house.ask(at=1))["results"] == [FORN]


def test_keys_tell_nothing_of_the_address(house: House) -> None:
    asking = house.ask("Gran Via 1")
    house.map.answers(*PLACES)
    house.told(asking)

    assert not [key for key in house.records._values if "gran" in key.lower()]


def test_what_this_process_remembers_is_bounded() -> None:
    clock = Clock()
    answers = Answers(None, now=clock.seconds, max_local_bytes=10_000)
    for number in range(100):
        success_of(Deferred.fromCoroutine(answers.keep(str(number), PLACES)))

    kept = [number for number in range(100) if answers.recall(str(number)) is not None]
    assert kept == list(range(kept[0], 100))
    assert 10 <= len(kept) <= 20


def test_where_nobody_is_to_be_asked_that_is_said(house: House) -> None:
    turns = Turns(house.records, "geocode:slot", clock=house.clock, now=house.clock.seconds, token=lambda: "x")
    house.handlers = [Geocoding(None, house.answers[0], turns, clock=house.clock, count=house.counted.append)]
    problem = house.refused(house.ask())

    assert (problem.code, problem.reason) == ("service-unavailable", "geocoder-off")
    assert "operators" in problem.detail
    assert house.counted == ["off"]
