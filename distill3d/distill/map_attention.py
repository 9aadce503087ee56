"""How much a network attends to the places and to the channels of a map: the mean magnitude of its features.

Source: FGD, CVPR 2022, arXiv:2111.11837, as DistillBEV has it (qcraftai/distill-bev
mmdet3d/models/detectors/bevdet_distill.py, fgd_distill_loss).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from distill3d.distill.precision import full_precision


@torch.no_grad()
@full_precision
def spatial_attention(maps: Float[Tensor, "b c y x"], temperature: float) -> Float[Tensor, "b 1 y x"]:
    """Softmax over a map's cells of mean_c |F| / ``temperature``, times the number of cells: 1 on average."""
    magnitude = maps.abs().mean(1, keepdim=True)
    cells = (magnitude / temperature).flatten(1).softmax(1) * magnitude[0].numel()
    return cells.view_as(magnitude)


@torch.no_grad()
@full_precision
def channel_attention(maps: Float[Tensor, "b c y x"], temperature: float) -> Float[Tensor, "b c 1 1"]:
    """Softmax over channels of mean_cells |F| / ``temperature``, times the number of channels: 1 on average."""
    magnitude = maps.abs().mean((2, 3), keepdim=True)
    return (magnitude / temperature).softmax(1) * maps.shape[1]
