from dataclasses import dataclass, field
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from bakerygw.ports import CredentialsUnavailable
from bakerygw.tokens.keys import VerificationKey
from bakerygw.tokens.remote_keys import ASK_EVERY_S, MAX_REFRESH_S, MAX_RETRY_S, MIN_REFRESH_S, REFRESH_S, RemoteKeys
from tests.deferreds import failure_of, success_of
from tests.minting import Issuer
from tests.tokens.token_fakes import Told, Url, document, jwk

A, B = Issuer(algorithm="EdDSA"), Issuer(algorithm="EdDSA")
BOTH, ONLY_A, ONLY_B = document(jwk(A, "a"), jwk(B, "b")), document(jwk(A, "a")), document(jwk(B, "b"))


@dataclass
class Stage:
    """Keys at the first fetch, which waits."""

    url: Url = field(default_factory=Url)
    clock: Clock = field(default_factory=Clock)
    told: Told = field(default_factory=Told)
    changes: list[frozenset[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys = RemoteKeys(self.url, algorithm="EdDSA", clock=self.clock, random=lambda: 0.0, telemetry=self.told)
        self.keys.changed = self.changes.append
        self.keys.start()

    def look(self) -> "Deferred[None]":
        """Somebody misses a key."""
        return Deferred.fromCoroutine(self.keys.look_again())

    @property
    def kids(self) -> str:
        return "".join(kid for kid in "ab" if self.keys.key_for(kid) is not None)

    def fetches_in(self, seconds: float) -> int:
        before = len(self.url.asked)
        self.clock.advance(seconds)
        return len(self.url.asked) - before


@pytest.fixture
def stage() -> Stage:
    return Stage()


def thumbprint(issuer: Issuer) -> bytes:
    return VerificationKey.of(issuer.key.public_key()).thumbprint


def test_the_set_is_fetched_at_the_start_and_again_after_five_minutes(stage: Stage) -> None:
    assert len(stage.url.asked) == 1
    stage.url.answer(ONLY_A)
    assert stage.kids == "a"
    assert stage.fetches_in(REFRESH_S - 1) == 0
    assert stage.fetches_in(1) == 1
    stage.url.answer(BOTH)
    assert stage.kids == "ab"
    assert stage.told.fetches == ["ok", "ok"]


def test_a_second_start_changes_nothing(stage: Stage) -> None:
    stage.keys.start()
    assert len(stage.url.asked) == 1


@pytest.mark.parametrize(
    ("max_age_s", "seconds"),
    [(None, REFRESH_S), (120, 120), (0, MIN_REFRESH_S), (59, MIN_REFRESH_S), (10**9, MAX_REFRESH_S)],
)
def test_what_the_issuer_says_decides_when_it_is_asked_again_within_bounds(
    stage: Stage, max_age_s: int | None, seconds: float
) -> None:
    stage.url.answer(ONLY_A, max_age_s)
    assert stage.fetches_in(seconds - 0.5) == 0
    assert stage.fetches_in(0.5) == 1


def test_waits_are_up_to_a_tenth_shorter_at_random() -> None:
    clock, url = Clock(), Url()
    RemoteKeys(url, algorithm="EdDSA", clock=clock, random=lambda: 1.0, telemetry=Told()).start()
    url.answer(ONLY_A)
    clock.advance(REFRESH_S * 0.9)
    assert len(url.asked) == 2


@pytest.mark.parametrize("bad", [b"<html>", b'{"keys": []}', document(jwk(A, "a"), jwk(B, "a")), None])
def test_the_last_good_set_stays_when_the_issuer_is_down_or_sends_rubbish(stage: Stage, bad: bytes | None) -> None:
    stage.url.answer(ONLY_A)
    stage.clock.advance(REFRESH_S)
    if bad is None:
        stage.url.fail("timeout")
    else:
        stage.url.answer(bad)
    assert stage.kids == "a"
    assert stage.told.fetches == ["ok", "timeout" if bad is None else "invalid"]
    assert stage.changes == [{thumbprint(A)}]
    assert stage.keys.age_s == REFRESH_S


def test_failures_are_followed_by_tries_that_come_later_and_later_and_never_end(stage: Stage) -> None:
    waits = []
    for _ in range(12):
        stage.url.fail()
        waits.append(next(seconds for seconds in range(1, 1000) if stage.fetches_in(1)))
    assert waits == [1, 2, 4, 8, 16, 32, *[int(MAX_RETRY_S)] * 6]
    stage.url.answer(ONLY_A)
    stage.clock.advance(REFRESH_S)
    stage.url.fail()
    assert stage.fetches_in(1) == 1


def test_a_defect_does_not_end_the_fetching(stage: Stage, logged_failures: list[Any]) -> None:
    stage.url.asked[-1].errback(ZeroDivisionError())
    assert [failure.type for failure in logged_failures] == [ZeroDivisionError]
    logged_failures.clear()
    assert stage.fetches_in(MAX_RETRY_S) == 1
    stage.url.answer(ONLY_A)
    assert stage.kids == "a"


def test_all_who_miss_a_key_wait_for_one_fetch(stage: Stage) -> None:
    stage.url.answer(ONLY_A)
    waiting = [stage.look() for _ in range(50)]
    assert len(stage.url.asked) == 2
    assert not any(one.called for one in waiting)
    stage.url.answer(BOTH)
    for one in waiting:
        success_of(one)
    assert stage.kids == "ab"


def test_unknown_keys_cause_a_fetch_every_ten_seconds_at_most(stage: Stage) -> None:
    stage.url.answer(ONLY_A)
    fetches = 0
    for _ in range(300):  # thirty seconds
        before = len(stage.url.asked)
        looking = stage.look()
        if len(stage.url.asked) > before:
            stage.url.answer(ONLY_A)
            fetches += 1
        success_of(looking)
        stage.clock.advance(0.1)
    assert fetches == 30 / ASK_EVERY_S


def test_whoever_misses_a_key_joins_a_fetch_that_is_under_way(stage: Stage) -> None:
    stage.url.answer(ONLY_A)
    stage.clock.advance(REFRESH_S)
    looking = stage.look()
    assert len(stage.url.asked) == 2
    stage.url.answer(BOTH)
    success_of(looking)


def test_a_fetch_on_demand_takes_the_place_of_the_next_one(stage: Stage) -> None:
    stage.url.answer(ONLY_A)
    stage.clock.advance(REFRESH_S - 10)
    looking = stage.look()
    stage.url.answer(BOTH)
    success_of(looking)
    assert stage.fetches_in(REFRESH_S - 1) == 0
    assert stage.fetches_in(1) == 1


def test_a_caller_who_leaves_takes_the_fetch_from_nobody(stage: Stage) -> None:
    stage.url.answer(ONLY_A)
    leaving, staying = stage.look(), stage.look()
    leaving.cancel()
    failure_of(leaving, CancelledError)
    assert stage.url.cancelled == 0
    stage.url.answer(BOTH)
    success_of(staying)


def test_without_any_set_it_cannot_be_told_and_the_first_set_ends_that(stage: Stage) -> None:
    waiting = stage.look()
    assert not waiting.called
    stage.url.fail()
    failure_of(waiting, CredentialsUnavailable)
    asking = stage.look()
    stage.url.fail()
    failure_of(asking, CredentialsUnavailable)
    assert len(stage.url.asked) == 2
    failure_of(stage.look(), CredentialsUnavailable)
    assert len(stage.url.asked) == 2
    stage.clock.advance(MAX_RETRY_S)
    later = stage.look()
    stage.url.answer(ONLY_A)
    success_of(later)
    assert stage.kids == "a"


def test_the_age_is_that_of_the_last_good_set(stage: Stage) -> None:
    assert stage.keys.age_s is None
    stage.url.answer(ONLY_A)
    stage.clock.advance(7)
    assert stage.keys.age_s == 7


def test_a_change_of_keys_is_told_with_those_that_hold(stage: Stage) -> None:
    for body in (ONLY_A, ONLY_A, BOTH, ONLY_B):
        stage.url.answer(body)
        stage.clock.advance(REFRESH_S)
    a, b = thumbprint(A), thumbprint(B)
    assert stage.changes == [{a}, {a, b}, {b}]


def test_after_a_stop_nothing_is_fetched_and_nobody_waits(stage: Stage) -> None:
    stage.url.answer(ONLY_A)
    waiting = stage.look()
    stage.keys.stop()
    assert stage.url.cancelled == 1
    success_of(waiting)
    success_of(stage.look())
    assert stage.clock.getDelayedCalls() == []
    assert len(stage.url.asked) == 2


def test_a_stop_before_the_first_set_refuses_those_who_wait(stage: Stage) -> None:
    waiting = stage.look()
    stage.keys.stop()
    failure_of(waiting, CredentialsUnavailable)
    assert stage.clock.getDelayedCalls() == []


def test_a_start_after_a_stop_fetches_again(stage: Stage) -> None:
    stage.keys.stop()
    stage.keys.start()
    stage.url.answer(ONLY_A)
    assert stage.kids == "a"
