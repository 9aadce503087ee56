"""Hierarchical task learning: a task counts for little until the tasks that it rests on have been learned.

Lu et al., "Geometry Uncertainty Projection Network for Monocular 3D Object Detection", ICCV 2021, arXiv:2107.13774;
released code SuperMHP/GUPNet (commit d0e02ca) code/lib/losses/loss_function.py, shared by DID-M3D and
MonoSKD.  Works on the loss terms of any detector, by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from distill3d.detectors.base import Style
from distill3d.errors import UserError
from distill3d.layers.distributed import across_processes
from distill3d.settings import Between

#: Which tasks a task rests on, by names of loss terms.  Terms that are not listed have weight 1 throughout.
PREREQUISITES: dict[str, tuple[str, ...]] = {
    "offset_3d": ("size_2d", "offset_2d"),
    "size_3d": ("size_2d", "offset_2d"),
    "heading": ("size_2d", "offset_2d"),
    "depth": ("size_2d", "size_3d", "offset_2d"),
}
#: Epochs between the two losses that are compared.
LAG = 2
#: A first trend nearer to 0 than this is moved away from it.
LEAST_TREND = 1e-12
#: Epochs of the published runs, after which prerequisites no longer matter.
PUBLISHED_EPOCHS = 140


@dataclass(frozen=True)
class HTLConfig:
    """The graph of tasks and, below it, the points where released code and intention differ."""

    prerequisites: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(PREREQUISITES))
    history: Annotated[int, Between(LAG + 1, 1000)] = (
        5  # epochs whose losses are remembered; weights are 0 until there are as many
    )
    #: Whether a pass over the training set, in train mode but without gradient, precedes the first epoch and is the
    #: first that is remembered.  Without it (MonoSKD) all begins one epoch later.
    first_pass: bool = True
    #: MonoSKD's released trainer puts distillation losses in front of the terms, but finds prerequisites where these
    #: names say that they stand; None: by name.
    columns: tuple[str, ...] | None = None
    # released versus intended
    ramp_epochs: Annotated[int, Between(1, 100_000)] | None = (
        None  # T, from which on all weights are 1; None: the epochs of the training
    )
    guarded: bool = True  # against a first trend of 0, and against weights above 1
    shared: bool = True  # losses averaged over processes, rather than each process for itself

    @classmethod
    def styled(cls, style: Style, **fields: Any) -> HTLConfig:
        """All rows in which released code and intention differ set by ``style``; ``fields`` override."""
        rows = {
            "released": {"ramp_epochs": PUBLISHED_EPOCHS, "guarded": False, "shared": False},
            "intended": {"ramp_epochs": None, "guarded": True, "shared": True},
        }[style]
        return cls(**{**rows, **fields})


#: The order that MonoSKD's released trainer takes its columns to have.
MONOSKD_COLUMNS = ("offset_2d", "size_2d", "depth", "offset_3d", "size_3d", "heading", "heatmap")


def trend(history: Float[Tensor, "e t"]) -> Float[Tensor, "t"]:
    """How much each of t losses falls in ``LAG`` epochs: the mean over e - LAG pairs of epochs."""
    return (history[:-LAG] - history[LAG:]).mean(0)


def readiness(now: Float[Tensor, "t"], first: Float[Tensor, "t"], guarded: bool = True) -> Float[Tensor, "t"]:
    """1 for a loss that no longer falls, 0 for one that falls as in the beginning, less for a faster one."""
    if guarded:
        away = torch.where(first < 0, -LEAST_TREND, LEAST_TREND)
        first = torch.where(first.abs() < LEAST_TREND, away, first)
    return 1 - torch.relu(now / first)


def ramp(epoch: int, start: int, end: int) -> float:
    """0 at epoch ``start``, 1 from epoch ``end`` on, linear between."""
    return min((epoch - start) / (end - start), 1.0) if end > start else 1.0


def task_weight(ready: Float[Tensor, "p"], progress: float, guarded: bool = True) -> float:
    """progress^(1 - product of the readiness of p prerequisites), with 0^0 = 1.

    Two prerequisites that fall faster than in the beginning have a product that may exceed 1, and a weight above 1;
    ``guarded`` keeps it at 1.
    """
    exponent = 1 - ready.prod()
    return float(torch.as_tensor(progress, dtype=ready.dtype) ** (exponent.clamp(min=0) if guarded else exponent))


class HierarchicalTaskLearning:
    """The weights of one training's loss terms, epoch by epoch.

        before the first epoch: ``observe`` the losses of each batch of the first pass, if there is one
        before each epoch:      ``begin_epoch``
        in each step:           ``observe`` the unweighted losses; train on ``weigh`` of them

    ``begin_epoch`` weighs by what is remembered and *then* remembers what was observed since it was last called, as
    the released code does: the weights of an epoch do not know the epoch before.

    Raises:
        UserError: a task rests on a term that the detector does not have, or a state has other terms than it.
    """

    def __init__(self, config: HTLConfig, epochs: int) -> None:
        self.config = config
        self.end = config.ramp_epochs or epochs
        self.terms: list[str] = []
        self.history: list[list[float]] = []  # the last epochs' mean losses, oldest first
        self.first_trend: list[float] | None = None
        self.weights = dict.fromkeys(config.prerequisites, 0.0)
        self.sums: Tensor | None = None
        self.count = 0
        self.taken_up = False  # a state, whose terms were not compared with the losses yet

    def observe(self, losses: Mapping[str, Tensor]) -> None:
        """Adds the unweighted terms of a batch to those of the present epoch."""
        if not self.terms:
            self.terms = self._in_order(losses)
            self._refuse_unknown()
        elif self.taken_up and self._in_order(losses) != self.terms:
            raise UserError(
                f"hierarchical task learning: the state weighs the terms {', '.join(self.terms)}, the losses are "
                f"{', '.join(losses)}"
            )
        self.taken_up = False
        values = torch.stack([losses[name].detach().double() for name in self.terms])
        # A state's sums were on the CPU.
        self.sums = values if self.sums is None else self.sums.to(values.device, non_blocking=True) + values
        self.count += 1

    def begin_epoch(self, epoch: int) -> dict[str, float]:
        """The weights of epoch ``epoch`` (0-based), also kept for ``weigh``; a term that is not named has weight 1."""
        if len(self.history) == self.config.history:
            self.weights = self._compute(epoch)
            self.history.pop(0)
        if self.sums is not None:
            mean = self.sums / self.count
            self.history.append((across_processes(mean) if self.config.shared else mean).tolist())
            self.sums, self.count = None, 0
        return dict(self.weights)

    def weigh(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms times their weights."""
        return {name: loss * self.weights.get(name, 1.0) for name, loss in losses.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain values, from which a training goes on in the middle of an epoch."""
        return {
            "terms": self.terms, "history": [list(row) for row in self.history], "first_trend": self.first_trend,
            "weights": dict(self.weights), "sums": None if self.sums is None else self.sums.tolist(),
            "count": self.count,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state_dict`` gave."""
        self.terms, self.history = list(state["terms"]), [list(row) for row in state["history"]]
        self.first_trend, self.weights = state["first_trend"], dict(state["weights"])
        sums = state["sums"]
        self.sums = None if sums is None else torch.tensor(sums, dtype=torch.float64)
        self.count, self.taken_up = state["count"], True

    def reason_against(self, state: Any, epoch: int, step: int, steps: int) -> str | None:
        """Why a state is none that this object could have after ``step`` of the ``steps`` of ``epoch``, or None."""
        if not isinstance(state, dict) or state.keys() != self.state_dict().keys():
            return f"has other keys than {', '.join(self.state_dict())}"
        terms, history, first, weights, sums, count = (state[name] for name in self.state_dict())
        if not isinstance(terms, list) or not all(isinstance(name, str) for name in terms):
            return "has terms that are no list of names"
        if len(set(terms)) < len(terms):
            return "names a term twice"
        begun = epoch + (step > 0)  # epochs whose weights were computed
        observed = step if step > 0 else steps * (epoch > 0)
        if type(count) is not int or count != observed or (sums is None) != (count == 0):
            return f"has counted other steps than {observed}"
        if bool(terms) != (begun > 0) or not self._named() <= set(terms or self._named()):
            return "lacks terms that this stage weighs"
        remembered = begun - (not self.config.first_pass)
        length = max(min(remembered, self.config.history), 0)
        if not isinstance(history, list) or len(history) != length:
            return f"does not remember {length} epochs"
        if not all(_is_row(row, len(terms)) for row in (*history, *(r for r in (first, sums) if r is not None))):
            return f"has losses that are no {len(terms)} finite numbers"
        if (first is None) != (remembered <= self.config.history):
            return f"has {'a' if first is not None else 'no'} first trend after {begun} epochs"
        if not isinstance(weights, dict) or weights.keys() != self.weights.keys() or not _is_row([*weights.values()]):
            return "has other weights than finite ones of this stage's tasks"
        return None

    def _named(self) -> set[str]:
        """The terms that tasks are or rest on."""
        return {name for task, needed in self.config.prerequisites.items() for name in (task, *needed)}

    def _in_order(self, losses: Mapping[str, Tensor]) -> list[str]:
        columns = self.config.columns or ()
        return [*sorted(set(losses) - set(columns)), *(name for name in columns if name in losses)]

    def _compute(self, epoch: int) -> dict[str, float]:
        now = trend(torch.tensor(self.history, dtype=torch.float64))
        if self.first_trend is None:
            self.first_trend = now.tolist()
        first = torch.tensor(self.first_trend, dtype=torch.float64)
        ready = readiness(now, first, self.config.guarded)
        progress = ramp(epoch, self.config.history, self.end)
        return {
            task: task_weight(ready[[self._column(name) for name in needed]], progress, self.config.guarded)
            for task, needed in self.config.prerequisites.items()
        }

    def _column(self, name: str) -> int:
        columns: Sequence[str] = self.config.columns or self.terms
        return columns.index(name)

    def _refuse_unknown(self) -> None:
        for task, needed in self.config.prerequisites.items():
            for name in (task, *needed):
                if name not in self.terms:
                    raise UserError(
                        f"hierarchical task learning: {task!r} rests on {', '.join(needed)}, but there is no loss term "
                        f"{name!r}, only {', '.join(self.terms)}"
                    )


def _is_row(row: Any, length: int | None = None) -> bool:
    """Whether a state's row of losses or weights is a list of finite numbers, of this length."""
    fits = isinstance(row, list) and length in (None, len(row))
    return fits and all(type(value) is float and math.isfinite(value) for value in row)
