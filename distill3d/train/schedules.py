"""Learning rates, optimisers and the length of a stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from distill3d.errors import UserError
from distill3d.settings import Between, Count, Decay, Divisor, Share, added

#: Where the cosine warm-up begins (xinzhuma/monodle lib/helpers/scheduler_helper.py).
WARMUP_START = 1e-5
#: Factor at each drop of the step schedule.
DROP = 0.1


@dataclass(frozen=True)
class Schedule:
    """How long and how a stage is trained. Defaults: MonoDLE's on KITTI."""

    epochs: Annotated[int, Between(1, 100_000)] = 140
    batch_size: Annotated[int, Between(1, 65_536)] = 16  # of all processes together
    lr: Annotated[float, Between(0, 100, above=True)] = 1.25e-3
    shape: Literal["steps", "one_cycle"] = "steps"
    warmup_epochs: Count = 5  # cosine rise of the step schedule
    drops: tuple[Count, ...] = (90, 120)  # epochs after warm-up; the released scheduler counts only from there
    optimiser: Literal["adam", "adamw"] = "adam"
    weight_decay: Annotated[float, Between(0, 100)] = 1e-5  # batch-norm scales too; see ``decay``
    clip_norm: Annotated[float, Between(0, 1e9, above=True)] | None = None  # of the gradient of all trained parameters
    ema: Decay | None = None  # decay per step of averaged weights, which are then evaluated and shared
    ema_warmup: Annotated[float, Between(0, 1e9, above=True)] | None = (
        None  # steps over which that decay rises, see train/ema.py
    )
    drop_last: bool = True
    #: One cycle (Smith and Topin, arXiv:1708.07120, with torch's defaults): the share of steps spent rising, by what
    #: the peak is divided at the start, and the start at the end.
    rise: Decay = 0.3
    start_divisor: Divisor = 25.0
    end_divisor: Divisor = 1e4
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    #: Adam's first beta falls from the first to the second while the rate rises, and comes back; None: it stays.
    momentum: tuple[Decay, Decay] | None = None
    decay: Literal["all", "all_but_bias"] = "all_but_bias"  # which parameters decay
    #: Part of the student (the beginning of its parameters' names) that learns at a share of the rate.
    slower: str | None = None
    slower_share: Share = 0.5
    #: What each step counts in the running statistics of the student's batch norms; None: as its detector has it.
    #: SECOND's and CaDDN's 0.01 remembers a hundred steps: after a few hundred, statistics are still those of weights
    #: that are no more, and evaluation, which uses them, shows another network than training had.
    norm_momentum: Annotated[float, Between(0, 1, above=True)] | None = added(None)
    #: Parts of a batch that are computed one after the other, for machines without memory for the whole.  Their
    #: gradients are averaged by their frames; batch norms, and means over objects, see the parts alone.
    accumulate: Annotated[int, Between(1, 1024)] = added(1)


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
    share, rising = _cycle(schedule, epoch, step, steps_per_epoch)
    low = schedule.lr / schedule.start_divisor / (1.0 if rising else schedule.end_divisor)
    return low + (schedule.lr - low) * share


def first_beta(schedule: Schedule, epoch: int, step: int, steps_per_epoch: int) -> float:
    """Adam's first beta at a step: low while the rate of a one-cycle schedule is high, if ``momentum`` says so."""
    if schedule.shape != "one_cycle" or schedule.momentum is None:
        return schedule.betas[0]
    share, _ = _cycle(schedule, epoch, step, steps_per_epoch)
    high, low = schedule.momentum
    return high + (low - high) * share


def _cycle(schedule: Schedule, epoch: int, step: int, steps_per_epoch: int) -> tuple[float, bool]:
    """How far up the cycle a step is, 0..1 by cosine, and whether it still rises."""
    done = (epoch * steps_per_epoch + step) / max(schedule.epochs * steps_per_epoch - 1, 1)
    if done < schedule.rise:
        return (1 - math.cos(math.pi * done / schedule.rise)) / 2, True
    return (1 + math.cos(math.pi * (done - schedule.rise) / (1 - schedule.rise))) / 2, False


def build_optimiser(module: nn.Module, schedule: Schedule, student: str = "student.") -> torch.optim.Optimizer:
    """Adam or AdamW over the module's trained parameters; each group's ``share`` is of the schedule's rate.

    ``student``: how the names of the student's parameters begin in ``module``.

    Raises:
        UserError: the schedule slows down a part that the student does not have.
    """
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    slow = None if schedule.slower is None else student + schedule.slower
    if slow is not None and not any(name.startswith(slow) for name, _ in trained):
        raise UserError(f"schedule.slower is {schedule.slower!r}, but no trained parameter's name begins so")
    shares = {name: schedule.slower_share if slow is not None and name.startswith(slow) else 1.0 for name, _ in trained}
    groups = []
    for share in sorted(set(shares.values()), reverse=True):
        for is_bias in (False, True):
            chosen = [p for name, p in trained if shares[name] == share and ("bias" in name) == is_bias]
            decay = schedule.weight_decay if schedule.decay == "all" or not is_bias else 0.0
            groups.append({"params": chosen, "weight_decay": decay, "share": share, "lr": share * schedule.lr})
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[schedule.optimiser]
    return kind(groups, lr=schedule.lr, betas=schedule.betas, fused=True)
