"""What an instance makes of the answers to its question whether anybody has heard all, with Redis played by hand."""

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from bakerygw.ports import StoreUnavailable
from bakerygw.stores.vouching import ASK_TIMES, FORGET_S, LISTENING, VOUCH_S, Vouching
from tests.deferreds import failure_of, success_of

MINE, THEIRS = b"0" * 16, b"f" * 16


class Link:
    """Takes what is published, and does with it what the test says."""

    def __init__(self) -> None:
        self.said: list[bytes] = []
        self.receivers = 2
        self.does: Callable[[bytes], None] = lambda said: None

    async def call(self, *words: Any) -> int:
        name, channel, said = words
        assert (name, channel) == ("PUBLISH", LISTENING)
        self.said.append(said)
        self.does(said)
        return self.receivers


class Instance:
    """Who asks."""

    def __init__(self) -> None:
        self.clock, self.link, self.sure = Clock(), Link(), True
        self.stored: Deferred[None] = succeed(None)
        """Fires when all that was heard is stored."""
        self.answered_at = 0.0
        link: Any = self.link
        self.vouching = Vouching(self.clock, link, nonce=MINE.decode, sure=lambda: self.sure, settled=self._settled)

    async def _settled(self) -> None:
        await self.stored

    def ask(self) -> "Deferred[Any]":
        return Deferred.fromCoroutine(self.vouching.ask(lambda: self.answered_at))

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 20)):
            self.clock.advance(0.05)


@pytest.fixture
def here() -> Instance:
    return Instance()


def test_the_first_answer_is_enough(here: Instance) -> None:
    asked = here.ask()
    here.vouching.heard(b"ask " + MINE)
    here.vouching.heard(b"sure " + MINE)

    assert success_of(asked) == "vouched"
    assert here.clock.getDelayedCalls() == []


def test_an_answer_that_comes_before_the_question_was_heard_proves_nothing_yet(here: Instance) -> None:
    asked = here.ask()
    here.vouching.heard(b"sure " + MINE)
    assert not asked.called

    here.vouching.heard(b"ask " + MINE)
    assert success_of(asked) == "vouched"


def test_who_is_alone_knows_at_once(here: Instance) -> None:
    here.link.receivers = 1
    asked = here.ask()
    here.vouching.heard(b"ask " + MINE)

    assert success_of(asked) == "unknown"
    assert len(here.link.said) == 1


def test_silence_of_the_others_is_no_answer_after_a_while(here: Instance) -> None:
    asked = here.ask()
    here.vouching.heard(b"ask " + MINE)
    here.vouching.heard(b"sure " + THEIRS)
    here.pass_time(VOUCH_S - 0.1)
    assert not asked.called
    here.pass_time(0.2)

    assert success_of(asked) == "unknown"
    assert here.link.said == [b"ask " + MINE] * ASK_TIMES


@pytest.mark.parametrize(("answered", "found"), [(True, "elsewhere"), (False, "late")])
def test_who_does_not_hear_its_own_question_listens_elsewhere_or_hears_nothing_at_all(
    here: Instance, answered: bool, found: str
) -> None:
    asked = here.ask()
    here.pass_time(VOUCH_S - 0.1)
    here.answered_at = here.clock.seconds() if answered else 0.0
    here.pass_time(0.2)

    assert success_of(asked) == found


def test_where_nobody_listens_the_connections_lead_to_different_servers(here: Instance) -> None:
    here.link.receivers = 0

    assert success_of(here.ask()) == "elsewhere"


def test_a_store_that_is_away_is_told(here: Instance) -> None:
    def away(_: bytes) -> None:
        raise StoreUnavailable("away")

    here.link.does = away

    failure_of(here.ask(), StoreUnavailable)


def test_an_answer_waits_until_what_was_heard_before_is_stored(here: Instance) -> None:
    here.stored = Deferred()
    here.vouching.heard(b"ask " + THEIRS)
    assert here.link.said == []
    here.stored.callback(None)

    assert here.link.said == [b"sure " + THEIRS]


@pytest.mark.parametrize(("late", "said"), [(False, [b"sure " + THEIRS]), (True, [])])
def test_who_is_no_longer_sure_answers_when_it_is_again_unless_nobody_waits_any_more(
    here: Instance, late: bool, said: list[bytes]
) -> None:
    here.stored = Deferred()
    here.vouching.heard(b"ask " + THEIRS)
    here.sure = False
    here.stored.callback(None)
    assert here.link.said == []

    here.pass_time(FORGET_S + 0.1 if late else 0.1)
    here.sure = True
    here.vouching.answer()
    assert here.link.said == said


def test_an_answer_that_redis_does_not_take_is_left_to_the_next_question(here: Instance) -> None:
    def away(_: bytes) -> None:
        raise StoreUnavailable("away")

    here.link.does = away
    here.vouching.heard(b"ask " + THEIRS)
    here.link.does = lambda said: None
    here.link.said.clear()

    here.vouching.heard(b"ask " + THEIRS)
    assert here.link.said == [b"sure " + THEIRS]
