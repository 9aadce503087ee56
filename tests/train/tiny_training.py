"""The smallest training with everything that a state can hold, made without a data set: for tests of states."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill3d.train.checkpoint import load_state, save_state
from distill3d.train.ema import WeightAverage
from distill3d.train.htl import HierarchicalTaskLearning, HTLConfig
from distill3d.train.schedules import Schedule, build_optimiser
from distill3d.train.state import Layout, filled, restore_moments

EPOCHS, STEPS = 3, 4


class TinyStep(nn.Module):
    """A student in channels_last with batch norm and a part that is never trained, and a term's own layer."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        self.student.add_module("idle", nn.Linear(2, 2))
        self.terms = nn.ModuleList([nn.Linear(2, 3)])

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.student[2](self.student[1](self.student[0](image)))
        return {"size": found.square().mean(), "depth": self.terms[0](found.mean((2, 3))).square().mean()}


class TinyTraining:
    """Its steps are drawn from torch's generator, so that a resumed one is equal only if all of the state is."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.step = TinyStep().to(memory_format=torch.channels_last)
        self.optimiser = build_optimiser(self.step, Schedule())
        self.average = WeightAverage(self.step.student, 0.5)
        self.tasks = HierarchicalTaskLearning(HTLConfig(history=3, prerequisites={"depth": ("size",)}), EPOCHS)
        self.best: dict[str, Any] | None = None
        self.recent: list[tuple[float, dict[str, float]]] = []
        self.epoch = self.step_in_epoch = 0

    @property
    def layout(self) -> Layout:
        return Layout(
            "0123456789abcdef", EPOCHS, STEPS, self.step, self.step.student, self.optimiser, self.average, self.tasks,
            keeps_best=True,
        )  # fmt: skip

    def run(self, steps: int) -> None:
        """So many steps more."""
        for _ in range(steps):
            if self.step_in_epoch == 0:
                if self.epoch == 0:
                    self.tasks.observe(self.step(torch.rand(2, 3, 8, 8)))
                self.tasks.begin_epoch(self.epoch)
            losses = self.step(torch.rand(2, 3, 8, 8))
            self.tasks.observe(losses)
            self.optimiser.zero_grad()
            torch.stack([*self.tasks.weigh(losses).values()]).sum().backward()
            self.optimiser.step()
            self.average.update(self.step.student, 1)
            self.recent = [*self.recent[-2:], (0.1, {name: loss.item() for name, loss in losses.items()})]
            self.step_in_epoch += 1
            if self.step_in_epoch == STEPS:
                self.epoch, self.step_in_epoch = self.epoch + 1, 0
                weights = {name: value.clone() for name, value in self.average.state.items()}
                self.best = {"score": 1.0, "epoch": self.epoch, "weights": weights}

    def save(self, path: Path) -> None:
        save_state(path, self.state())

    def state(self) -> dict[str, Any]:
        return self.layout.gather(self.epoch, self.step_in_epoch, self.best, self.recent, 7)

    def resume(self, path: Path) -> None:
        """As the training loop does it."""
        state = load_state(path)
        self.layout.refuse_unfit(state, path)
        self.step.load_state_dict(state["model"])
        restore_moments(self.optimiser, state["optimiser"]["state"])
        self.average.state = filled(self.average.state, state["average"])
        self.tasks.load_state_dict(state["tasks"])
        self.best, self.epoch, self.step_in_epoch = state["best"], state["epoch"], state["step_in_epoch"]
        self.recent = state["recent"]
        torch.set_rng_state(state["rng"])


def equal(one: Any, other: Any) -> bool:
    """Whether two states are the same in every value and type."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other
