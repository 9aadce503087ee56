"""What makes several processes with a part of the batch each equal one process with the whole batch.

Gradients are averaged over processes.  A loss that divides by a count of its batch must therefore divide by the count
of all processes over their number, and batch norm must see the statistics of the whole batch.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def across_processes(total: Tensor) -> Tensor:
    """The mean over processes of a count or sum that a loss divides by; no gradient flows through it."""
    if world_size() == 1:
        return total.detach()
    total = total.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def mean_over_processes(values: Tensor, empty: Literal["zero", "nan"] = "zero") -> Tensor:
    """The mean over all processes' values; over nothing it is 0 connected to the graph, or NaN."""
    count = across_processes(values.new_full((), values.numel()))
    return values.sum() / (count.clamp(min=1 / world_size()) if empty == "zero" else count)


class _Sum(torch.autograd.Function):
    """The sum over processes; so is its gradient, for every process's loss depends on it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _summed(value: Tensor) -> Tensor:
    return cast(Tensor, _Sum.apply(value))


class WholeBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, on any device (torch's own is for accelerators only)."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()
        # A process may hold more than another, or nothing: RoIs of a batch without objects.
        count = _summed(x.new_full((), x.numel() / x.shape[1]))
        mean = _summed(x.sum((0, 2, 3))) / count.clamp(min=1)
        centred = x - mean[:, None, None]
        variance = _summed((centred * centred).sum((0, 2, 3))) / count.clamp(min=1)
        with torch.no_grad():
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            if self.running_mean is not None and self.running_var is not None:
                self.running_mean.lerp_(mean.to(self.running_mean), self.momentum or 0.0)
                unbiased = variance * count / (count - 1).clamp(min=1)
                self.running_var.lerp_(unbiased.to(self.running_var), self.momentum or 0.0)
        out = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            out = out * self.weight[:, None, None] + self.bias[:, None, None]
        return out.to(input.dtype)


def share_batch_norm(module: nn.Module) -> nn.Module:
    """Turns every ``BatchNorm2d`` of a module into a ``WholeBatchNorm``, in place; parameters and names stay."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = WholeBatchNorm
    return module
