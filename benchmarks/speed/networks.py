"""Detectors as they are used and as they are trained, and the ways in which the same code can run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distill3d.data.sample import Batch
from distill3d.data.surround import SurroundBatch

from .inputs import Place, Setting, described
from .task import PrecisionName, Task, Work

PRECISIONS: tuple[PrecisionName, ...] = ("fp32", "bf16")


@dataclass(frozen=True)
class Way:
    """One way to run the same code."""

    channels_last: bool
    precision: PrecisionName
    compiled: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def __str__(self) -> str:
        names = ("channels last" if self.channels_last else "contiguous", self.precision, "compiled")
        return ", ".join(names if self.compiled else names[:2])


#: Compiling is tried on what the library does.
WAYS = (
    Way(False, "fp32"), Way(True, "fp32"), Way(False, "bf16"), Way(True, "bf16"), Way(True, "fp32", True),
    Way(True, "bf16", True),
)  # fmt: skip


def detector_tasks(setting: Setting) -> Iterator[Task]:
    """Every detector's forward pass as at test time, and forward and backward pass of its own loss."""
    for name, place in setting.size.detectors.items():
        size = described(setting, place)
        for precision in PRECISIONS:
            yield Task(f"{name}, forward", size, partial(forward, setting, place, precision), precision, precision)
        for precision in PRECISIONS:
            make = partial(training, setting, place, Way(True, precision))
            yield Task(f"{name}, forward and backward", size, make, precision, precision)


def forward(setting: Setting, place: Place, precision: PrecisionName) -> Work:
    detector, batch = setting.detector(place).eval().requires_grad_(False), setting.training_batch(place)

    @torch.no_grad()
    def run() -> None:
        with setting.autocast(precision):
            detector(batch)

    return Work(run, counted=run)


def training(setting: Setting, place: Place, way: Way) -> Work:
    """Forward and backward pass as in a training step; targets are encoded anew each time."""
    detector, batch = setting.detector(place, way.memory_format).train(), setting.training_batch(place)

    def loss(batch: Batch | SurroundBatch, targets: Any) -> Tensor:
        found = detector.loss(detector.forward_at(batch, targets), batch, targets)
        return torch.stack([value.float() for value in found.values()]).sum()

    def run(loss: Callable[..., Tensor]) -> None:
        detector.zero_grad()
        with setting.autocast(way.precision):
            value = loss(batch, detector.encode(batch))
        value.backward()

    return in_this_way(setting, way, loss, run)


def in_this_way(
    setting: Setting, way: Way, function: Callable[..., Any], run: Callable[[Callable[..., Any]], None],
    least_bytes: int | None = None,
) -> Work:  # fmt: skip
    """``run`` of ``function``, or of what ``torch.compile`` makes of it, with how often its graph breaks and where."""
    eager = partial(run, function)
    if not way.compiled:
        return Work(eager, eager, least_bytes)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()

    def breaks() -> dict[str, Any]:
        found = torch._dynamo.utils.counters["graph_break"]
        return {"graph_breaks": sum(found.values()), "first_break": next(iter(found), "").partition("\n")[0]}

    compiled = torch.compile(function, backend=setting.backend)
    return Work(partial(run, compiled), eager, least_bytes, facts=breaks)
