"""Exponential moving averages of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averaged floating-point state of a module; counters are copied.  ``state`` is a plain state dict."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state: dict[str, Tensor] = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves the average towards the module's present state."""
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - self.decay)
            else:
                self.state[name].copy_(value)
