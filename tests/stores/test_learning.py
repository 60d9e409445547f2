"""Revocations are read when Redis tells of them, while they are still there."""

import pytest
from twisted.internet.defer import Deferred

from bakerygw.ports import StoreUnavailable
from bakerygw.stores.learning import AT_ONCE, MAX_WAITING, Learner
from bakerygw.stores.mirror import Mirror


def digest(number: int) -> str:
    return f"{number:064x}"


class Bench:
    """A mirror that is told, and the reads that come of it, each answered by the test."""

    def __init__(self) -> None:
        self.mirror = Mirror()
        self.asked: list[tuple[str, ...]] = []
        self.answers: list[Deferred[None]] = []
        Learner(self.read, self.mirror)

    async def read(self, digests: tuple[str, ...]) -> None:
        self.asked.append(digests)
        answer: Deferred[None] = Deferred()
        self.answers.append(answer)
        await answer

    def told(self, *names: str) -> None:
        self.mirror.invalidate([b"bakerygw:revoked:" + name.encode() for name in names])


def test_what_redis_tells_of_is_read_at_once() -> None:
    bench = Bench()
    bench.told(digest(1), digest(2))
    assert bench.asked == [(digest(1), digest(2))]


def test_while_one_read_is_under_way_the_others_wait_and_go_together() -> None:
    bench = Bench()
    bench.told(digest(1))
    for number in (2, 3, 2):
        bench.told(digest(number))
    assert len(bench.asked) == 1
    bench.answers[0].callback(None)
    assert bench.asked[1:] == [(digest(2), digest(3))]
    bench.answers[1].callback(None)
    bench.told(digest(4))
    assert bench.asked[2:] == [(digest(4),)]


@pytest.mark.parametrize(
    "name", ["canary-1f", "", digest(1)[:-1], digest(1).upper().replace("0", "F"), digest(1) + "0"]
)
def test_what_is_no_digest_of_a_token_is_not_read(name: str) -> None:
    bench = Bench()
    bench.told(name)
    assert bench.asked == []


def test_however_many_come_together_they_are_read_in_parts_and_bounded() -> None:
    bench = Bench()
    bench.told(*map(digest, range(MAX_WAITING + 50)))
    for number in range(MAX_WAITING // AT_ONCE):
        bench.answers[number].callback(None)
    assert {len(part) for part in bench.asked} == {AT_ONCE}
    assert sum(map(len, bench.asked)) == MAX_WAITING


def test_while_redis_is_away_none_are_asked_for_and_later_ones_are() -> None:
    bench = Bench()
    bench.told(*map(digest, range(AT_ONCE + 1)))
    bench.answers[0].errback(StoreUnavailable("away"))
    assert len(bench.asked) == 1
    bench.told(digest(7))
    assert bench.asked[1:] == [(digest(7),)]
