"""Answers that instances share, and the bounds of what one remembers."""

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail

from bakerygw.core.claims import Subscription, subscription_from
from bakerygw.core.facts import write_fact
from bakerygw.edge.tenants.facts import CLOCKS_S, TTL_S, Facts
from bakerygw.ports import LookupFailed
from tests.deferreds import failure_of, success_of

NOW = 1_800_000_000.0
PRO = Subscription(tier="professional", status="active", valid_until=NOW)
ROYAL = {"tier": "royal", "status": "active", "valid_until": None}
LOW = Subscription(tier="starter", status="active", valid_until=NOW)


class Shared:
    """`SharedFacts` in a dictionary."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.lives: list[float] = []

    async def get(self, key: str) -> bytes | None:
        return self.values.get(key)

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        self.values[key] = value
        self.lives.append(ttl_s)


class Instance:
    """One instance's memory of subscriptions."""

    def __init__(self, shared: Shared | None = None, size: int = 10) -> None:
        self.now, self.asked, self.results = NOW, 0, []
        self.answer: Subscription | Deferred[Subscription] = PRO
        self.facts: Facts[Subscription] = Facts(
            "subscription",
            read=subscription_from,
            pause_s=2,
            shared=shared,
            telemetry=self,
            now=lambda: self.now,
            size=size,
        )

    def looked_up(self, what: str, result: str) -> None:
        self.results.append(result)

    def incomplete_token(self, lacks: str) -> None:
        raise AssertionError

    def subscription_change(self, result: str) -> None:
        raise AssertionError

    async def ask(self) -> Subscription:
        self.asked += 1
        return await self.answer if isinstance(self.answer, Deferred) else self.answer

    def about(self, subject: str = "t1", since: float | None = None) -> Any:
        return Deferred.fromCoroutine(self.facts.about(subject, who="u1", since=since, ask=self.ask))


def test_what_one_instance_has_asked_the_others_know():
    shared = Shared()
    one, other = Instance(shared), Instance(shared)
    other.answer = LOW
    assert success_of(one.about()) == success_of(other.about()) == PRO
    assert (one.asked, other.asked) == (1, 0)
    assert success_of(other.about()) == PRO
    assert other.results == ["shared", "memory"]
    assert shared.lives == [TTL_S]


def test_keys_tell_nobodys_name():
    shared = Shared()
    success_of(Instance(shared).about("real:t1"))
    (key,) = shared.values
    assert key.startswith("lookup:subscription:")
    assert "t1" not in key
    assert len(key) == len("lookup:subscription:") + 64


@pytest.mark.parametrize("age_s", [TTL_S, TTL_S + 1000, -CLOCKS_S - 1, -1e6])
def test_a_shared_answer_that_is_too_old_or_from_the_future_is_not_used(age_s):
    shared = Shared()
    one = Instance(shared)
    one.now = NOW - age_s
    success_of(one.about())
    other = Instance(shared)
    other.answer = LOW
    assert success_of(other.about()) == LOW


def test_a_shared_answer_from_before_a_change_is_not_used():
    shared = Shared()
    success_of(Instance(shared).about())
    other = Instance(shared)
    other.now += 10
    other.answer = LOW
    assert success_of(other.about(since=NOW + 5)) == LOW


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        json.dumps({"asked_at": NOW}).encode(),
        json.dumps({"asked_at": "now", "value": None}).encode(),
        json.dumps(
            {"asked_at": True, "value": {"tier": "enterprise", "status": "active", "valid_until": None}}
        ).encode(),
        json.dumps({"asked_at": NOW, "value": ROYAL}).encode(),
        write_fact("ana@b.example", NOW),
        write_fact(None, NOW),
    ],
)
def test_a_shared_value_that_is_none_is_as_if_nothing_were_there(data):
    shared = Shared()
    one = Instance(shared)
    success_of(one.about())
    shared.values = dict.fromkeys(shared.values, data)
    other = Instance(shared)
    other.answer = LOW
    assert success_of(other.about()) == LOW


def test_a_later_answer_is_not_replaced_by_an_earlier_one():
    one = Instance()
    one.facts.learn("t1", LOW, NOW)
    one.facts.learn("t1", PRO, NOW - 1)
    assert success_of(one.about()) == LOW


def test_the_memory_is_bounded():
    one = Instance(size=3)
    for number in range(5):
        success_of(one.about(f"t{number}"))
    success_of(one.about("t4"))
    assert one.asked == 5
    success_of(one.about("t0"))
    assert one.asked == 6


def test_a_defect_reaches_all_who_wait_and_the_next_asks_anew():
    one = Instance()
    one.answer = Deferred()
    waiting = [one.about() for _ in range(3)]
    one.answer.errback(RuntimeError("defect"))
    for waiter in waiting:
        failure_of(waiter, RuntimeError)
    one.answer = PRO
    assert success_of(one.about()) == PRO


def test_a_clock_that_was_set_back_makes_no_answer_eternal():
    one = Instance()
    success_of(one.about())
    one.now -= 3600
    success_of(one.about())
    assert one.asked == 2


def test_nor_a_pause():
    one = Instance()
    one.answer = fail(LookupFailed("timeout", "test"))
    failure_of(one.about(), LookupFailed)
    one.now -= 3600
    one.answer = PRO
    assert success_of(one.about()) == PRO
