"""A socket whose service has not answered yet, with a guard in time by hand."""

from dataclasses import replace
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import CancelledError, Deferred

from bakerygw.core.problem import Refused, refuse
from bakerygw.realtime.training.dialling import Dialling
from tests.realtime.guard_fakes import BORN, USER, Reader, Stage, grant_of


class Dial:
    """One question to a service, whose answer the test gives."""

    def __init__(self, stage: Stage, claims: Any = USER) -> None:
        self.given_up = False
        self.answer: Deferred[Any] = Deferred(self._gives_up)
        self.place = stage.guard.enter("socket", grant_of(claims))
        self.done: Deferred[Any] = Deferred.fromCoroutine(Dialling(self.place).answer(self._asked()))
        stage.clock.advance(0)

    def _gives_up(self, _: object) -> None:
        self.given_up = True

    async def _asked(self) -> Any:
        return await self.answer

    @property
    def refusal(self) -> tuple[str, str]:
        """Code and reason; fails unless it was refused."""
        caught: list[Any] = []
        self.done.addErrback(caught.append)
        problem = caught[0].check(Refused) and caught[0].value.problem
        return problem.code, problem.reason


def test_an_answer_is_handed_on_and_the_next_who_holds_the_place_is_told() -> None:
    stage = Stage()
    dial, results = Dial(stage), list[object]()
    dial.done.addCallback(results.append)
    dial.answer.callback("101")
    reader = Reader(dial.place)
    dial.place.hold(reader)

    assert results == ["101"]
    assert stage.guard.cut("t-own") == 1
    assert reader.ended == "disconnected"


def test_operators_who_disconnect_the_tenant_end_the_dial() -> None:
    stage = Stage()
    dial = Dial(stage)

    assert stage.guard.cut("t-own") == 1

    assert dial.given_up
    assert dial.refusal == ("service-unavailable", "disconnected")


@ensureDeferred
async def test_so_does_a_revocation_and_one_that_came_between_admission_and_dial() -> None:
    stage = Stage()
    dial = Dial(stage)
    await stage.state.store.revoke("digest-1", BORN + 900)
    stage.clock.advance(0)
    late = Dial(stage)

    assert [dial.given_up, late.given_up] == [True, True]
    assert [dial.refusal, late.refusal] == [("token-revoked", "token-revoked")] * 2


@ensureDeferred
async def test_and_every_other_end_is_a_refusal_of_its_kind() -> None:
    stage = Stage()
    stage.signers = {b"new"}
    expiring, unsigned = Dial(stage, replace(USER, exp=BORN + 5)), Dial(stage, stage.someone(2, signer=b"new"))
    stale = Dial(stage, replace(USER, tenant_id="t-2", digest="digest-3"))
    barred = Dial(stage, replace(USER, tenant_id="t-3", digest="digest-4"))

    await stage.state.store.subscription_changed("t-2", BORN + 1)
    await stage.state.store.set_demo("t-3", True)
    stage.signers = set()
    stage.guard.keys_changed()
    stage.advance(6)
    leaving = Dial(stage, stage.someone(5))
    stage.guard.drain(0, list)

    assert [dial.refusal[0] for dial in (expiring, unsigned, stale, barred, leaving)] == [
        "token-expired",
        "token-invalid",
        "token-stale",
        "tenant-forbidden",
        "service-unavailable",
    ]


def test_a_client_that_leaves_and_a_service_that_fails_end_it_as_themselves() -> None:
    stage = Stage()
    left, failed = Dial(stage), Dial(stage)

    left.done.cancel()
    failed.answer.errback(refuse("upstream-timeout", "Too late."))

    caught: list[Any] = []
    left.done.addErrback(caught.append)
    assert caught[0].check(CancelledError)
    assert failed.refusal[0] == "upstream-timeout"


@pytest.mark.parametrize("kind", ["disconnected", "draining"])
def test_who_may_come_back_is_told_when(kind: str) -> None:
    stage = Stage()
    dial = Dial(stage)
    stage.guard.cut("t-own") if kind == "disconnected" else stage.guard.drain(0, list)

    caught: list[Any] = []
    dial.done.addErrback(caught.append)
    assert caught[0].value.problem.retry_after_s == 5


def test_who_needs_another_credential_is_told_of_no_time() -> None:
    stage = Stage()
    dial = Dial(stage, replace(USER, exp=BORN + 5))
    stage.advance(6)

    caught: list[Any] = []
    dial.done.addErrback(caught.append)
    assert caught[0].value.problem.retry_after_s is None
