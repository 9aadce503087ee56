"""The last layer of a head, whose values are read as metres, pixels and radians."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Readout(nn.Conv2d):
    """A convolution that computes and answers in float32 or better, also under autocast.

    A bfloat16 has 8 significant bits.  For 48 m, which detectors write as -log(48) = -3.87, the next value is 1.6 %
    or 0.75 m away: as much as the released float32 code is wrong at that distance.
    """

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            exact = input.to(torch.promote_types(input.dtype, self.weight.dtype))
            return self._conv_forward(exact, self.weight, self.bias)


class LinearReadout(nn.Linear):
    """A linear layer that computes and answers in float32 or better, also under autocast."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(torch.promote_types(input.dtype, self.weight.dtype)))
