"""The last layer of a head, whose values are read as metres, pixels and radians.

A bfloat16 has 8 significant bits.  For 48 m, which detectors write as -log(48) = -3.87, the next value is 1.6 % or
0.75 m away: as much as the released float32 code is wrong at that distance.  So these layers compute and answer in
float32 or better, also under autocast.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

#: Rows that are widened to float32 at a time: as many as stay in a processor's cache.
ROWS_AT_ONCE = 2048


class Readout(nn.Conv2d):
    """A convolution in float32 or better; 1 x 1 kernels never hold a float32 copy of a half-precision map."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            if input.dtype.itemsize < self.weight.dtype.itemsize and self.kernel_size == (1, 1):
                rows = input.permute(0, 2, 3, 1)
                read = _read(rows.reshape(-1, rows.shape[-1]), self.weight.flatten(1), self.bias)
                return read.unflatten(0, rows.shape[:-1]).permute(0, 3, 1, 2)
            exact = input.to(torch.promote_types(input.dtype, self.weight.dtype))
            return self._conv_forward(exact, self.weight, self.bias)


class LinearReadout(nn.Linear):
    """A linear layer in float32 or better."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(torch.promote_types(input.dtype, self.weight.dtype)))


class _Read(torch.autograd.Function):
    """``F.linear`` of half-precision rows (n, c) with full-precision weights (k, c), a few rows at a time."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return torch.cat([F.linear(part.to(weight.dtype), weight, bias) for part in rows.split(ROWS_AT_ONCE)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        rows, weight = ctx.saved_tensors
        (gradient,) = gradients
        of_rows, of_weight = torch.empty_like(rows), torch.zeros_like(weight)
        split = (t.split(ROWS_AT_ONCE) for t in (gradient, rows, of_rows))
        for g, part, out in zip(*split, strict=True):
            out.copy_(g @ weight)
            of_weight.addmm_(g.T, part.to(weight.dtype))
        return of_rows, of_weight, gradient.sum(0) if ctx.needs_input_grad[2] else None


def _read(rows: Float[Tensor, "n c"], weight: Float[Tensor, "k c"], bias: Tensor | None) -> Float[Tensor, "n k"]:
    return _Read.apply(rows, weight, bias)  # pyright: ignore[reportReturnType]
