"""Geometry compensation: a map of the ground put right where wrong depths have smeared it, each cell reading others.

Zhao et al., "SimDistill: Simulated Multi-modal Distillation for BEV 3D Object Detection", AAAI 2024, arXiv:2303.16818;
released code ViTAE-Transformer/SimDistill, mmdet3d/models/fusion_models/deformAttention.py and dcn.py.

Both forms keep shape and channels, and both stay at test time: they belong to a detector, between the lifting of its
simulated LiDAR branch and what follows.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from distill3d.layers.ground.bev_blocks import TAPS, silent_conv3
from distill3d.layers.image.deformable_attention import DeformableAttention, cell_centres
from distill3d.transfers import constant

#: Where a cell's own place is, from which it looks: at its lower corner as released, half a cell off, or its middle.
Reference = Literal["corners", "centres"]
#: The mask of a modulated convolution lies between 0 and this, and begins at half of it.
LARGEST_MASK = 2.0


class AttentionCompensation(nn.Module):
    """y = x + deformable self-attention of all cells over the map; no norm, no feed-forward layer.

    Queries are the cells' features plus a learned code of their column (the first half of the channels) and row.

    Args:
        cells: rows and columns of the map.

    Raises:
        ValueError: the channels are odd, or no multiple of the heads.
    """

    def __init__(
        self, channels: int, cells: tuple[int, int], heads: int = 8, points: int = 20, reference: Reference = "centres"
    ) -> None:
        super().__init__()
        if channels % 2 or channels % heads:
            raise ValueError(f"{channels} channels are not divided by 2 and by {heads} heads")
        self.cells, self.reference = cells, reference
        self.row_code, self.column_code = (nn.Parameter(torch.rand(count, channels // 2)) for count in cells)
        self.attention = DeformableAttention(channels, 1, heads, points)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        """The map with what each cell gathers.

        Raises:
            ValueError: the map has other cells than the learned codes.
        """
        if tuple(x.shape[-2:]) != self.cells:
            raise ValueError(
                f"geometry compensation was made for maps of {self.cells} cells, not {tuple(x.shape[-2:])}"
            )
        rows, columns = self.cells
        code = torch.cat(
            (self.column_code.expand(rows, -1, -1), self.row_code[:, None].expand(-1, columns, -1)), dim=-1
        )
        tokens = x.flatten(2).mT
        exact = x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
        place = cell_centres((self.cells,), exact)
        if self.reference == "corners":
            place = place - 0.5 / constant((columns, rows), place)
        gathered = self.attention(tokens + code.flatten(0, 1), place.expand(len(x), -1, -1), tokens, (self.cells,))
        return x + gathered.mT.unflatten(-1, self.cells)


class ModulatedConv(nn.Module):
    """A deformable 3x3 convolution with bias that reads offsets and a mask for each tap from its own input; both begin
    without effect.  In float32 or better, under autocast too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offset, self.mask = silent_conv3(channels, 2 * TAPS), silent_conv3(channels, TAPS)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        from torchvision.ops import deform_conv2d

        with torch.autocast(x.device.type, enabled=False):
            exact = x.to(torch.promote_types(x.dtype, torch.float32))
            mask = LARGEST_MASK * self.mask(exact).sigmoid()
            return deform_conv2d(exact, self.offset(exact), self.conv.weight, self.conv.bias, padding=(1, 1), mask=mask)


class ConvCompensation(nn.Module):
    """y = x + D2(relu(D1(x))), D modulated deformable convolutions: the released alternative, switched off there."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = ModulatedConv(channels), ModulatedConv(channels)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        return x + self.second(self.first(x).relu())
