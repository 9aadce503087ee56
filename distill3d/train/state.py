"""What the state of a stage's training holds, and what is asked of one that was read before anything of it is used.

A state that passes is one that the run could have written: every tensor has the name, shape and type of the run's own,
every count is possible, and there is nothing else.  Tensors of the run are then filled with the state's values
(``filled``), so that strides and shared memory of the file's tensors do not matter: the fused optimiser takes for
granted that moments lie in memory as their parameters do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from distill3d.errors import UserError
from distill3d.train.checkpoint import is_finite, way_out
from distill3d.train.ema import WeightAverage
from distill3d.train.htl import HierarchicalTaskLearning

#: Changes when a state written by an older version can no longer be continued.
STATE_FORMAT = 5
ENTRIES = {
    "format", "fingerprint", "epoch", "step_in_epoch", "model", "optimiser", "untouched", "average", "tasks", "best",
    "rng", "recent", "logged",
}  # fmt: skip
#: What Adam remembers of a parameter beside its number of steps: means of the gradient and of its square.
MOMENTS = ("exp_avg", "exp_avg_sq")
#: Hyper-parameters that change from step to step.
SCHEDULED = ("lr", "betas")
#: Learning rate and loss terms of a step.
Recent = tuple[float, dict[str, float]]
#: No log has more lines.
MOST_LINES = 2**48


def filled(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that lie in memory as the run's own do, with a state's values."""
    return {name: torch.empty_like(value).copy_(values[name]) for name, value in own.items()}


def restore_moments(optimiser: torch.optim.Optimizer, moments: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Gives an optimiser the moments of a state; the hyper-parameters stay its own."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state = {
        number: {"step": found["step"].clone(), **filled(dict.fromkeys(MOMENTS, parameters[number]), found)}
        for number, found in moments.items()
    }
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


@dataclass(frozen=True)
class Layout:
    """What the states of one stage's training look like."""

    fingerprint: str  # of the settings that the weights depend on
    epochs: int
    steps: int  # of an epoch
    step: nn.Module  # student and terms
    student: nn.Module
    optimiser: torch.optim.Optimizer
    average: WeightAverage | None
    tasks: HierarchicalTaskLearning | None
    keeps_best: bool
    shorter: str | None = None  # fingerprint of a training with fewer epochs that this one goes on from

    def gather(
        self, epoch: int, step_in_epoch: int, best: dict[str, Any] | None, recent: list[Recent], logged: int
    ) -> dict[str, Any]:
        """The present state, as tensors and plain values.

        Args:
            best: {"score", "epoch", "weights"} where the best weights are kept, from the first epoch's end on.
            recent: learning rate and terms of the steps not yet logged.
            logged: lines of the log.
        """
        optimiser = self.optimiser.state_dict()
        numbers = [number for group in optimiser["param_groups"] for number in group["params"]]
        return {
            "format": STATE_FORMAT, "fingerprint": self.fingerprint, "epoch": epoch, "step_in_epoch": step_in_epoch,
            "model": self.step.state_dict(), "optimiser": optimiser,
            # Trained parameters that have had no gradient so far, and so have no moments.
            "untouched": [number for number in numbers if number not in optimiser["state"]],
            "average": None if self.average is None else self.average.state,
            "tasks": None if self.tasks is None else self.tasks.state_dict(),
            "best": best, "rng": torch.get_rng_state(), "recent": recent, "logged": logged,
        }  # fmt: skip

    def refuse_unfit(self, state: dict[str, Any], path: Path) -> None:
        """Holds every entry of a state against what this training writes.

        Raises:
            UserError: an entry is missing or unknown, or none that this training could have written.
        """
        _Check(self, state, path).run()


class _Check:
    """One state, read from ``path``."""

    def __init__(self, layout: Layout, state: dict[str, Any], path: Path) -> None:
        self.layout, self.state, self.path = layout, state, path

    def refuse(self, entry: str, what: str) -> NoReturn:
        raise UserError(f"{self.path}: entry {entry} {what}: {way_out(self.path)}")

    def run(self) -> None:
        if self.state.keys() != ENTRIES:
            entry = min(self.state.keys() ^ ENTRIES, key=str)
            self.refuse(_shown(entry), "is missing" if entry in ENTRIES else "is unknown")
        if (found := self.whole("format", 0, 2**32)) != STATE_FORMAT:
            raise UserError(
                f"{self.path} is of format {found}, this version of distill3d goes on from {STATE_FORMAT}: "
                "give another --out, or remove that folder"
            )
        if self.state["fingerprint"] not in (self.layout.fingerprint, self.layout.shorter or self.layout.fingerprint):
            raise UserError(
                f"{self.path} was written with other settings than the stage has now: "
                "give another --out, or remove that folder"
            )
        self.position()
        self.tensors("model", self.state["model"], self.layout.step.state_dict())
        self.optimiser()
        student = self.layout.student.state_dict()
        self.presence("average", self.layout.average is not None)
        if self.layout.average is not None:
            self.tensors("average", self.state["average"], student)
        self.presence("tasks", self.layout.tasks is not None)
        if self.layout.tasks is not None:
            reason = self.layout.tasks.reason_against(self.state["tasks"], self.epoch, self.step, self.layout.steps)
            if reason is not None:
                self.refuse("tasks", reason)
        self.best(student)
        self.random()
        self.log()

    # ------------------------------------------------------------------------------------------------------ the entries

    def position(self) -> None:
        self.epoch = self.whole("epoch", 0, self.layout.epochs)
        self.step = self.whole("step_in_epoch", 0, self.layout.steps if self.epoch < self.layout.epochs else 0)
        self.done = self.epoch * self.layout.steps + self.step

    def optimiser(self) -> None:
        own, found = self.layout.optimiser.state_dict(), self.state["optimiser"]
        self.keys("optimiser", found, own.keys())
        self.groups(own["param_groups"], found["param_groups"])
        names = {id(p): name for name, p in self.layout.step.named_parameters()}
        parameters = [p for group in self.layout.optimiser.param_groups for p in group["params"]]
        without = self.state["untouched"]
        numbers = range(len(parameters))
        if not isinstance(without, list) or not all(type(n) is int and n in numbers for n in without):
            self.refuse("untouched", "is no list of parameters' numbers")
        if self.done == 0 and len(without) < len(parameters):
            self.refuse("untouched", "lacks parameters, though there was no step")
        self.keys("optimiser.state", found["state"], set(numbers) - set(without))
        for number, moments in found["state"].items():
            parameter = parameters[number]
            entry = f"optimiser.state[{number}] ({names[id(parameter)]})"
            self.keys(entry, moments, {"step", *MOMENTS})
            self.count(f"{entry}.step", moments["step"])
            for name in MOMENTS:
                self.tensor(f"{entry}.{name}", moments[name], parameter)
            mean, square = (moments[name] for name in MOMENTS)
            if not is_finite(mean) or not bool((square >= 0).all()):  # a square may have overflowed
                self.refuse(entry, "has moments that no gradient gives")

    def groups(self, own: list[dict[str, Any]], found: Any) -> None:
        entry = "optimiser.param_groups"
        if not isinstance(found, list) or len(found) != len(own):
            self.refuse(entry, f"is no list of {len(own)} groups")
        for number, (mine, theirs) in enumerate(zip(own, found, strict=True)):
            self.keys(f"{entry}[{number}]", theirs, mine.keys())
            for name, value in mine.items():
                fits = _is_rate(theirs[name], value) if name in SCHEDULED else _is_same(theirs[name], value)
                if not fits:
                    self.refuse(f"{entry}[{number}].{name}", "is none of this stage's")

    def count(self, entry: str, found: Any) -> None:
        """The number of a parameter's steps, a float of one element."""
        self.tensor(entry, found, torch.zeros(()))
        value = float(found)
        if not 1 <= value <= self.done or value != int(value):
            self.refuse(entry, f"is {value}, expected one of 1..{self.done} steps")

    def best(self, student: Mapping[str, Tensor]) -> None:
        best = self.state["best"]
        self.presence("best", self.layout.keeps_best and self.epoch > 0)
        if best is None:
            return
        self.keys("best", best, {"score", "epoch", "weights"})
        if type(best["score"]) is not float or not math.isfinite(best["score"]):
            self.refuse("best.score", "is no finite number")
        if type(best["epoch"]) is not int or not 1 <= best["epoch"] <= self.epoch:
            self.refuse("best.epoch", f"is none of the epochs 1..{self.epoch}")
        self.tensors("best.weights", best["weights"], student)

    def random(self) -> None:
        self.tensor("rng", self.state["rng"], torch.get_rng_state())
        try:
            torch.Generator().set_state(self.state["rng"].clone())
        except RuntimeError:
            self.refuse("rng", "is no state of the random generator")

    def log(self) -> None:
        self.whole("logged", 0, MOST_LINES)
        recent = self.state["recent"]
        if not isinstance(recent, list) or len(recent) > self.done or not all(_is_step(step) for step in recent):
            self.refuse("recent", "is no list of steps' learning rates and finite losses")
        if any(terms.keys() != recent[0][1].keys() for _, terms in recent):
            self.refuse("recent", "has steps with different losses")

    # -------------------------------------------------------------------------------------------------------- the kinds

    def whole(self, entry: str, least: int, most: int) -> int:
        value = self.state[entry]
        if type(value) is not int or not least <= value <= most:
            self.refuse(entry, f"is {_shown(value)}, expected a whole number from {least} to {most}")
        return value

    def presence(self, entry: str, expected: bool) -> None:
        if (self.state[entry] is not None) != expected:
            self.refuse(entry, "is missing" if expected else "is there, though this stage has none")

    def keys(self, entry: str, found: Any, expected: Any) -> None:
        if not isinstance(found, dict):
            self.refuse(entry, f"is {_shown(found)}, expected a table")
        if found.keys() != set(expected):
            key = min(found.keys() ^ set(expected), key=str)
            self.refuse(entry, f"lacks {_shown(key)}" if key in expected else f"has the unknown key {_shown(key)}")

    def tensors(self, entry: str, found: Any, own: Mapping[str, Tensor]) -> None:
        self.keys(entry, found, own.keys())
        for name, value in own.items():
            self.tensor(f"{entry}[{name}]", found[name], value)
            if not is_finite(found[name]):
                self.refuse(f"{entry}[{name}]", "holds values that are not finite")

    def tensor(self, entry: str, found: Any, own: Tensor) -> None:
        if type(found) is not Tensor or found.layout is not torch.strided or found.device.type != "cpu":
            self.refuse(entry, f"is {_shown(found)}, expected a tensor")
        if found.shape != own.shape:
            self.refuse(entry, f"has shape {tuple(found.shape)}, expected {tuple(own.shape)}")
        if found.dtype != own.dtype:
            self.refuse(entry, f"has values of type {found.dtype}, expected {own.dtype}")


def _shown(value: Any) -> str:
    """A short name for anything that may stand in a state."""
    if isinstance(value, bool | float | str) or (isinstance(value, int) and abs(value) < 2**64):
        return repr(value)[:80]
    return f"of type {type(value).__name__}"


def _is_same(found: Any, own: Any) -> bool:
    """Whether a value is the run's own, which is made of plain values; nothing unknown is asked whether it is equal."""
    if type(found) is not type(own):
        return False
    if isinstance(own, list | tuple):
        return len(found) == len(own) and all(map(_is_same, found, own))
    return found == own


def _is_rate(found: Any, own: Any) -> bool:
    """Whether a value is a possible learning rate or, where the run's own is a pair, Adam's pair of decays."""
    if isinstance(own, tuple):
        return isinstance(found, tuple) and len(found) == len(own) and all(_is_rate(v, 0.0) and v < 1 for v in found)
    return type(found) is float and 0 <= found < math.inf


def _is_step(found: Any) -> bool:
    """Whether a value is a ``Recent``."""
    if type(found) is not tuple or len(found) != 2 or not _is_rate(found[0], 0.0) or not isinstance(found[1], dict):
        return False
    return all(type(k) is str and type(v) is float and math.isfinite(v) for k, v in found[1].items())
