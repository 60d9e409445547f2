"""Training runs of the demo: what is told when, and to whom."""

import json
from random import Random
from typing import Any

import pytest
from twisted.internet.task import Clock

from bakerygw.demo.training import MAX_EPOCHS, MAX_RUNS, STEP_S, BadCommand, TrainingRuns


class Looker:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def __call__(self, message: dict[str, Any]) -> None:
        self.told.append(message)

    @property
    def types(self) -> list[str]:
        return [message["type"] for message in self.told]


def start(runs: TrainingRuns, scope: str = "t-1", **fields: object) -> None:
    runs.command(scope, json.dumps({"action": "start", "epochs": 10, **fields}).encode())


def looked_at(seed: int = 1) -> tuple[Clock, TrainingRuns, Looker]:
    clock, looker = Clock(), Looker()
    runs = TrainingRuns(clock, Random(seed))
    runs.watch("t-1", looker)
    return clock, runs, looker


def test_a_run_is_told_from_its_start_to_its_result() -> None:
    clock, runs, looker = looked_at()
    start(runs, model="sales-forecast")
    clock.pump([STEP_S] * 10)
    assert looker.types == ["idle", "started", *["progress"] * 10, "finished"]
    assert len({message["run_id"] for message in looker.told[1:]}) == 1
    assert [message["epoch"] for message in looker.told[2:12]] == list(range(1, 11))
    assert looker.told[2]["eta_s"] == pytest.approx(9 * STEP_S)
    assert looker.told[-1]["metrics"]["loss"] == looker.told[-2]["loss"]
    assert clock.getDelayedCalls() == []


def test_the_losses_fall_and_are_those_of_the_seed() -> None:
    curves = []
    for _ in range(2):
        clock, runs, looker = looked_at(seed=7)
        start(runs, epochs=40)
        clock.pump([STEP_S] * 40)
        curves.append([(it["loss"], it["val_loss"]) for it in looker.told if it["type"] == "progress"])
    assert curves[0] == curves[1]
    assert curves[0][0][0] > 5 * curves[0][-1][0] > 0
    assert any(after > before for (before, _), (after, _) in zip(curves[0], curves[0][1:], strict=False))


def test_who_comes_later_is_told_how_far_it_has_come() -> None:
    clock, runs, looker = looked_at()
    start(runs, model="demand")
    clock.pump([STEP_S] * 3)
    late = Looker()
    runs.watch("t-1", late)
    clock.advance(STEP_S)
    assert late.types == ["running", "progress"]
    assert (late.told[0]["model"], late.told[0]["epoch"], len(late.told[0]["curve"])) == ("demand", 3, 3)
    assert late.told[0]["curve"][0] == [looker.told[2]["loss"], looker.told[2]["val_loss"]]


def test_a_run_goes_on_while_nobody_looks() -> None:
    clock, runs, looker = looked_at()
    start(runs)
    runs.leave("t-1", looker)
    clock.pump([STEP_S] * 4)
    again = Looker()
    runs.watch("t-1", again)
    assert again.told[0]["epoch"] == 4
    assert looker.types == ["idle", "started"]


def test_a_stopped_run_says_nothing_more() -> None:
    clock, runs, looker = looked_at()
    start(runs)
    clock.advance(STEP_S)
    runs.command("t-1", b'{"action":"stop"}')
    clock.pump([STEP_S] * 12)
    assert looker.types == ["idle", "started", "progress", "stopped"]
    start(runs)
    assert looker.types[-1] == "started"


def test_bakeries_hear_nothing_of_each_other() -> None:
    clock, runs, looker = looked_at()
    start(runs, scope="t-2")
    clock.pump([STEP_S] * 12)
    assert looker.types == ["idle"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "JSON"),
        (b"\xff", "JSON"),
        (b"[" * 4000, "JSON"),
        (b"[]", "action"),
        (b'{"action":"pause"}', "action"),
        (b'{"action":["start"]}', "action"),
        (b'{"action":"stop"}', "no run"),
        (b'{"action":"start","model":7}', "model"),
        (b'{"action":"start","model":""}', "model"),
        (b'{"action":"start","epochs":0}', "epochs"),
        (b'{"action":"start","epochs":true}', "epochs"),
        (b'{"action":"start","epochs":1e3}', "epochs"),
        (f'{{"action":"start","epochs":{MAX_EPOCHS + 1}}}'.encode(), "epochs"),
    ],
)
def test_what_cannot_be_done_is_refused(text: bytes, why: str) -> None:
    _, runs, looker = looked_at()
    with pytest.raises(BadCommand, match=why):
        runs.command("t-1", text)
    assert looker.types == ["idle"]


def test_a_bakery_trains_one_model_at_a_time() -> None:
    _, runs, looker = looked_at()
    start(runs)
    with pytest.raises(BadCommand, match="under way"):
        start(runs)
    assert looker.types == ["idle", "started"]


def test_the_runs_of_all_are_bounded() -> None:
    _, runs, _ = looked_at()
    for number in range(MAX_RUNS):
        start(runs, scope=f"s-{number}")
    with pytest.raises(BadCommand, match="try again"):
        start(runs)


def test_stopping_all_leaves_no_timer() -> None:
    clock, runs, _ = looked_at()
    start(runs)
    start(runs, scope="t-2")
    runs.stop_all()
    assert clock.getDelayedCalls() == []
