"""Relations between the places of one map, compared between two networks whatever their channels mean."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from distill3d.distill.precision import full_precision

#: Raw inner products of the cells' feature vectors, or cosines.
AffinityNorm = Literal["none", "cosine"]


def resized(maps: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c h2 w2"]:
    """Bilinear with half-pixel centres, without antialiasing."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def affinity(maps: Float[Tensor, "b c h w"], norm: AffinityNorm = "none") -> Float[Tensor, "b hw hw"]:
    """XᵀX with X the c x hw matrix of one image's feature vectors; unit vectors under ``"cosine"``."""
    x = maps.flatten(2)
    if norm == "cosine":
        x = F.normalize(x, dim=1)
    return x.transpose(1, 2) @ x


@full_precision
def affinity_loss(
    pairs: list[tuple[Float[Tensor, "b _ _ _"], Float[Tensor, "b _ _ _"]]],
    divisor: float,
    norm: AffinityNorm = "none",
) -> Float[Tensor, ""]:
    """sum over levels of mean |A_student - A_teacher| / ``divisor``; the mean runs over images and all pairs of cells.

    Every level is first resized to the cells of the last one, so levels go from fine to coarse.
    Source: MonoDistill lib/losses/feature_distill_loss.py compute_backbone_resize_affinity_loss.
    """
    size = (pairs[-1][1].shape[-2], pairs[-1][1].shape[-1])
    levels = [
        (affinity(resized(student, size), norm) - affinity(resized(teacher, size), norm)).abs().mean()
        for student, teacher in pairs
    ]
    return sum(levels[1:], levels[0]) / divisor
