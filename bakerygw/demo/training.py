"""The demo's training runs: started and stopped by bakeries, and told of step by step to all who look on."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final
from uuid import UUID

STEP_S: Final = 0.2
"""From one epoch to the next."""
MAX_EPOCHS: Final = 500
DEFAULT_EPOCHS: Final = 40
MAX_RUNS: Final = 50
"""Runs of all bakeries at the same time."""
MAX_NAME: Final = 64

Message = dict[str, object]
Tell = Callable[[Message], None]


class BadCommand(Exception):
    """What a client asks for is nothing that it can have; the text says why."""


def loss_at(epoch: int, epochs: int, chance: Random) -> tuple[float, float]:
    """Training and validation loss after an epoch: falling fast at first, noisy, the second one rising at the end."""
    done = epoch / epochs
    loss = 0.06 + 0.86 * math.exp(-4.2 * done)
    overfit = 0.05 * max(0.0, done - 0.8)
    validation = loss * 1.12 + 0.025 + overfit
    return (
        round(loss * chance.uniform(0.955, 1.045), 4),
        round(validation * chance.uniform(0.93, 1.07), 4),
    )


@dataclass(slots=True, kw_only=True)
class Run:
    """One training under way."""

    run_id: str
    model: str
    epochs: int
    chance: Random
    curve: list[tuple[float, float]] = field(default_factory=list)
    """Training and validation loss of each epoch that is done."""
    timer: Any = None

    @property
    def eta_s(self) -> float:
        """Seconds until it is finished."""
        return round((self.epochs - len(self.curve)) * STEP_S, 1)

    def step(self) -> Message:
        """Train for one more epoch; its `progress`."""
        epoch = len(self.curve) + 1
        loss, val_loss = loss_at(epoch, self.epochs, self.chance)
        self.curve.append((loss, val_loss))
        return {
            "type": "progress",
            "run_id": self.run_id,
            "epoch": epoch,
            "epochs": self.epochs,
            "loss": loss,
            "val_loss": val_loss,
            "eta_s": self.eta_s,
        }

    def state(self) -> Message:
        """The `running` that tells a newcomer how far it has come."""
        return {
            "type": "running",
            "run_id": self.run_id,
            "model": self.model,
            "epoch": len(self.curve),
            "epochs": self.epochs,
            "curve": [list(point) for point in self.curve],
            "eta_s": self.eta_s,
        }

    def result(self) -> Message:
        """The `finished` that ends it."""
        loss, val_loss = self.curve[-1]
        metrics = {"loss": loss, "val_loss": val_loss, "mean_error_percent": round(val_loss * 62, 1)}
        return {"type": "finished", "run_id": self.run_id, "epochs": self.epochs, "metrics": metrics}


class TrainingRuns:
    """One run at a time for each bakery (or session of the demo), known by its scope."""

    def __init__(self, clock: Any, random: Random) -> None:
        """`clock` is an `IReactorTime`."""
        self._clock, self._random = clock, random
        self._runs: dict[str, Run] = {}
        self._watching: dict[str, list[Tell]] = {}

    def watch(self, scope: str, tell: Tell) -> None:
        """Tell of this scope's runs from here on, first of the one that is under way."""
        self._watching.setdefault(scope, []).append(tell)
        run = self._runs.get(scope)
        tell({"type": "idle"} if run is None else run.state())

    def leave(self, scope: str, tell: Tell) -> None:
        """Tell no more; the run goes on."""
        watching = self._watching.get(scope, [])
        if tell in watching:
            watching.remove(tell)
        if not watching:
            self._watching.pop(scope, None)

    def command(self, scope: str, text: bytes) -> None:
        """Do what a client's message says. Raises `BadCommand`."""
        try:
            asked = json.loads(text)
        except (ValueError, RecursionError):
            raise BadCommand("send a JSON object") from None
        action = asked.get("action") if isinstance(asked, dict) else None
        if action == "start":
            self._start(scope, asked)
        elif action == "stop":
            self._stop(scope)
        else:
            raise BadCommand('action must be "start" or "stop"')

    def stop_all(self) -> None:
        """End every run without a word."""
        runs, self._runs = self._runs, {}
        for run in runs.values():
            run.timer.cancel()

    def _start(self, scope: str, asked: dict[str, object]) -> None:
        model, epochs = asked.get("model", "sales-forecast"), asked.get("epochs", DEFAULT_EPOCHS)
        if not (isinstance(model, str) and 0 < len(model) <= MAX_NAME):
            raise BadCommand(f"model must be a text of at most {MAX_NAME} characters")
        if not (isinstance(epochs, int) and not isinstance(epochs, bool) and 0 < epochs <= MAX_EPOCHS):
            raise BadCommand(f"epochs must be a whole number from 1 to {MAX_EPOCHS}")
        if scope in self._runs:
            raise BadCommand("a run is under way already")
        if len(self._runs) >= MAX_RUNS:
            raise BadCommand("all machines are taken; try again later")
        run_id = str(UUID(int=self._random.getrandbits(128), version=4))
        run = Run(run_id=run_id, model=model, epochs=epochs, chance=Random(self._random.getrandbits(64)))
        self._runs[scope] = run
        self._tell(scope, {"type": "started", "run_id": run_id, "model": model, "epochs": epochs})
        run.timer = self._clock.callLater(STEP_S, self._step, scope, run)

    def _step(self, scope: str, run: Run) -> None:
        self._tell(scope, run.step())
        if len(run.curve) < run.epochs:
            run.timer = self._clock.callLater(STEP_S, self._step, scope, run)
        else:
            del self._runs[scope]
            self._tell(scope, run.result())

    def _stop(self, scope: str) -> None:
        run = self._runs.pop(scope, None)
        if run is None:
            raise BadCommand("no run is under way")
        run.timer.cancel()
        self._tell(scope, {"type": "stopped", "run_id": run.run_id, "epoch": len(run.curve)})

    def _tell(self, scope: str, message: Message) -> None:
        for tell in tuple(self._watching.get(scope, ())):
            tell(message)
