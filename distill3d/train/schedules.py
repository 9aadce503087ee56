"""Learning rates, optimisers and the length of a stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

#: Where the cosine warm-up begins (xinzhuma/monodle lib/helpers/scheduler_helper.py).
WARMUP_START = 1e-5
#: Share of a one-cycle schedule spent rising, and by what the peak is divided at its start and end
#: (Smith and Topin, arXiv:1708.07120, with torch's defaults).
ONE_CYCLE_RISE, ONE_CYCLE_START, ONE_CYCLE_END = 0.3, 25.0, 1e4
#: Factor at each drop of the step schedule.
DROP = 0.1


@dataclass(frozen=True)
class Schedule:
    """How long and how a stage is trained. Defaults: MonoDLE's on KITTI."""

    epochs: int = 140
    batch_size: int = 16  # of all processes together
    lr: float = 1.25e-3
    shape: Literal["steps", "one_cycle"] = "steps"
    warmup_epochs: int = 5  # cosine rise of the step schedule
    drops: tuple[int, ...] = (90, 120)  # epochs after warm-up; the released scheduler counts only from there
    optimiser: Literal["adam", "adamw"] = "adam"
    weight_decay: float = 1e-5  # on every parameter whose name lacks "bias", batch-norm scales too
    clip_norm: float | None = None  # of the gradient of all trained parameters
    ema: float | None = None  # decay per step of averaged weights, which are then evaluated and shared
    drop_last: bool = True


def learning_rate(schedule: Schedule, epoch: int, step: int, steps_per_epoch: int) -> float:
    """The rate at ``step`` (0-based, within ``epoch``, 0-based).

    ``steps``: per epoch e, a cosine rise over the warm-up epochs, then the full rate, times 0.1 at each drop counted
    from the end of the warm-up.  ``one_cycle``: per step, cosine up to the full rate and down again.
    """
    if schedule.shape == "steps":
        if epoch < schedule.warmup_epochs:
            rise = (1 - math.cos(math.pi * epoch / schedule.warmup_epochs)) / 2
            return WARMUP_START + (schedule.lr - WARMUP_START) * rise
        return schedule.lr * DROP ** sum(epoch - schedule.warmup_epochs >= drop for drop in schedule.drops)
    done = (epoch * steps_per_epoch + step) / max(schedule.epochs * steps_per_epoch - 1, 1)
    if done < ONE_CYCLE_RISE:
        low, share = schedule.lr / ONE_CYCLE_START, (1 - math.cos(math.pi * done / ONE_CYCLE_RISE)) / 2
        return low + (schedule.lr - low) * share
    low = schedule.lr / ONE_CYCLE_START / ONE_CYCLE_END
    share = (1 + math.cos(math.pi * (done - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE))) / 2
    return low + (schedule.lr - low) * share


def build_optimiser(module: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Adam or AdamW over the module's trained parameters; names with "bias" are not decayed."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if "bias" not in name], "weight_decay": schedule.weight_decay},
        {"params": [p for name, p in trained if "bias" in name], "weight_decay": 0.0},
    ]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[schedule.optimiser]
    return kind(groups, lr=schedule.lr, fused=True)
