"""Attentive normalisation: a batch norm whose scale and shift are mixed for each image from a few learned ones.

Li et al., "Attentive Normalization", ECCV 2020, arXiv:1908.01259, in the form of Xianpeng919/MonoCon
monocon/mmdet3d/ops/attentive_norm.py (commit 603575d).  With the maps' statistics m, v over an image's cells:

    s = m / sqrt(v + 1e-3)     v divided by one less than the cells
    y = hardsigmoid(BN(A s))   ten shares 0..1 for each image, whose sum is anything
    out = (y W) BN(x) + y b    the outer norm without scale and shift of its own
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from distill3d.layers.ground.bev_blocks import PooledBatchNorm

#: Learned scales and shifts that are mixed.
MIXED = 10
#: Of the outer norm, and what is added to an image's variance.
NORM_EPSILON, NORM_MOMENTUM, VARIANCE_EPSILON = 1e-3, 0.03, 1e-3
#: Deviation of the scales about 1 and of the shifts about 0 at the start.
START_DEVIATION = 0.1


class AttentiveNorm(nn.Module):
    """(B, C, H, W) -> the same shape.  Training works with a single image and with a map of one cell, where the
    released code fails."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, NORM_EPSILON, NORM_MOMENTUM, affine=False)
        scores = nn.Conv2d(channels, MIXED, 1, bias=False)
        nn.init.kaiming_normal_(scores.weight, mode="fan_out", nonlinearity="relu")
        self.attention = nn.Sequential(scores, PooledBatchNorm(MIXED))
        self.weight = nn.Parameter(1 + START_DEVIATION * torch.randn(MIXED, channels))
        self.bias = nn.Parameter(START_DEVIATION * torch.randn(MIXED, channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        with torch.autocast(x.device.type, enabled=False):
            scale, shift = self.affine(x.to(torch.promote_types(x.dtype, self.weight.dtype)))
        normal = self.norm(x)
        return normal * scale.to(normal.dtype) + shift.to(normal.dtype)

    def affine(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b c 1 1"], Float[Tensor, "b c 1 1"]]:
        """Scale and shift of each image's channels; statistics want full precision."""
        cells = x.shape[-2] * x.shape[-1]
        variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=min(1, cells - 1))
        scores = self.attention(mean * torch.rsqrt(variance + VARIANCE_EPSILON)).flatten(1)
        share = F.relu6(scores + 3) / 6  # torch's hardsigmoid divides its gradient by 6 in float32, whatever the type
        return (share @ self.weight)[..., None, None], (share @ self.bias)[..., None, None]
