"""Exponential moving averages of weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averaged floating-point state of a module; counters are copied.  ``state`` is a plain state dict.

    With ``warmup`` the n-th update decays by ``decay`` (1 - exp(-n / warmup)): early weights are soon forgotten
    (Megvii-BaseDetection/BEVDepth bevdepth/callbacks/ema.py, whose count begins so high that it has no effect).
    """

    def __init__(self, module: nn.Module, decay: float, warmup: float | None = None) -> None:
        self.decay, self.warmup = decay, warmup
        self.state: dict[str, Tensor] = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, count: int) -> None:
        """Moves the average towards the module's present state; ``count``: of updates, this one included."""
        decay = self.decay if self.warmup is None else self.decay * -math.expm1(-count / self.warmup)
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)
