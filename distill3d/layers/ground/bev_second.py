"""SECOND's 2D network on a bird's-eye view map: levels of 3 x 3 convolutions, and the neck that joins the levels.

Sources: open-mmlab/mmdetection3d mmdet3d/models/backbones/second.py and necks/second_fpn.py (two modules); the same
layers as one module: open-mmlab/OpenPCDet as forked by Cc-Hy/CMKD, pcdet/models/backbones_2d/base_bev_backbone.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn

from distill3d.errors import UserError
from distill3d.settings import Between, Channels, Layers, Stride, is_in_range

#: Batch norm of the released networks on LiDAR maps.
NORM_EPSILON, NORM_MOMENTUM = 1e-3, 0.01


def norm_relu(channels: int) -> tuple[nn.Module, nn.Module]:
    """What follows every convolution here."""
    return nn.BatchNorm2d(channels, NORM_EPSILON, NORM_MOMENTUM), nn.ReLU(inplace=True)


def level_block(channels_in: int, channels: int, stride: int, layers: int) -> nn.Sequential:
    """One level: a 3 x 3 convolution with the level's stride, then ``layers`` more."""
    first = (nn.ZeroPad2d(1), nn.Conv2d(channels_in, channels, 3, stride, bias=False), *norm_relu(channels))
    more = ((nn.Conv2d(channels, channels, 3, padding=1, bias=False), *norm_relu(channels)) for _ in range(layers))
    return nn.Sequential(*first, *(layer for group in more for layer in group))


def level_up(channels_in: int, channels: int, stride: float) -> nn.Sequential:
    """Brings a level to ``stride`` times as many cells per side: below 1 by a strided convolution, else transposed.

    Raises:
        ValueError: neither the stride nor its inverse is a whole number.
    """
    size = round(max(stride, 1 / stride))
    if not math.isclose(max(stride, 1 / stride), size):
        raise ValueError(f"a level is resized by a whole number or the inverse of one, not by {stride}")
    kind = nn.Conv2d if stride < 1 else nn.ConvTranspose2d
    return nn.Sequential(kind(channels_in, channels, size, size, bias=False), *norm_relu(channels))


# -------------------------------------------------------------------------------------------------- blocks, then a neck


@dataclass(frozen=True)
class SECONDBlocksConfig:
    """Levels of the blocks; the defaults are those of CenterPoint (centerpoint_voxel01_second_secfpn_nus.py)."""

    layers: tuple[Layers, ...] = (5, 5)  # that follow the first convolution of each level
    channels: tuple[Channels, ...] = (128, 256)
    strides: tuple[Stride, ...] = (1, 2)

    def __post_init__(self) -> None:
        if is_in_range(self) and not len(self.layers) == len(self.channels) == len(self.strides):
            raise UserError("layers, channels and strides need one number for each level")


class SECONDBlocks(nn.Module):
    """(B, C, Y, X) -> the map of every level, >= 0, from fine to coarse."""

    def __init__(self, channels_in: int, config: SECONDBlocksConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for layers, channels, stride in zip(config.layers, config.channels, config.strides, strict=True):
            self.blocks.append(level_block(channels_in, channels, stride, layers))
            channels_in = channels

    def forward(self, bev: Float[Tensor, "b c y x"]) -> list[Tensor]:
        maps = []
        for block in self.blocks:
            bev = block(bev)
            maps.append(bev)
        return maps


@dataclass(frozen=True)
class SECONDFPNConfig:
    """Width of each level in the neck's output, and by how much the level's sides grow for it (below 1: shrink)."""

    channels: tuple[Channels, ...] = (256, 256)
    strides: tuple[Annotated[float, Between(0, 64, above=True)], ...] = (1, 2)

    def __post_init__(self) -> None:
        if is_in_range(self) and len(self.channels) != len(self.strides):
            raise UserError("channels and strides need one number for each level")


class SECONDFPN(nn.Module):
    """Levels brought to one resolution and stacked along the channels, the first level's in front.

    At stride 1 the transposed 1 x 1 convolution is a plain one with its weight transposed.

    Args:
        channels_in: of each level.

    Raises:
        ValueError: not as many levels as the configuration has.
    """

    def __init__(self, channels_in: tuple[int, ...], config: SECONDFPNConfig) -> None:
        super().__init__()
        if len(channels_in) != len(config.channels):
            raise ValueError(f"the neck joins {len(config.channels)} levels, got {len(channels_in)}")
        self.deblocks = nn.ModuleList(map(level_up, channels_in, config.channels, config.strides))
        self.channels_out = sum(config.channels)

    def forward(self, maps: list[Tensor]) -> Float[Tensor, "b out y x"]:
        return torch.cat([up(level) for up, level in zip(self.deblocks, maps, strict=True)], dim=1)


# --------------------------------------------------------------------------------------------------- both in one module


@dataclass(frozen=True)
class BevBackboneConfig:
    """Levels of a 2D network: after a first convolution with the level's stride follow ``layers`` more; each level is
    then brought up by ``up_strides``, which must all lead to one resolution.

    Raises:
        UserError: they do not, or to a finer one than the input's.
    """

    layers: tuple[Layers, ...] = (5, 5)
    channels: tuple[Channels, ...] = (128, 256)
    strides: tuple[Stride, ...] = (1, 2)
    up_channels: tuple[Channels, ...] = (256, 256)
    up_strides: tuple[Stride, ...] = (1, 2)

    def __post_init__(self) -> None:
        if not is_in_range(self):
            return
        lengths = {len(v) for v in (self.layers, self.channels, self.strides, self.up_channels, self.up_strides)}
        if len(lengths) != 1:
            raise UserError("layers, channels, strides, up_channels and up_strides need one number for each level")
        steps = [math.prod(self.strides[: i + 1]) / up for i, up in enumerate(self.up_strides)]
        if len(set(steps)) != 1 or steps[0] < 1 or not steps[0].is_integer():
            raise UserError(
                f"the levels come out at strides {steps}: all must return to the resolution of the input, or to one "
                "that is a whole number of times coarser"
            )

    @property
    def stride(self) -> int:
        """Cells of the input along each side of a cell of the output; above 1 in OpenPCDet's own PointPillars and
        CaDDN, whose levels do not return to the resolution of the input."""
        return self.strides[0] // self.up_strides[0]

    @property
    def divisor(self) -> int:
        """What both sides of the map must be multiples of."""
        return math.prod(self.strides)


class BevBackbone(nn.Module):
    """Levels of 3 x 3 convolutions, brought to the resolution of the configuration's ``stride`` and stacked along the
    channels.

    State-dict names are those of the released ``BaseBEVBackbone``.
    """

    def __init__(self, channels_in: int, config: BevBackboneConfig) -> None:
        super().__init__()
        self.blocks, self.deblocks = nn.ModuleList(), nn.ModuleList()
        levels = zip(
            config.layers, config.channels, config.strides, config.up_channels, config.up_strides, strict=True
        )  # fmt: skip
        for layers, channels, stride, up_channels, up_stride in levels:
            self.blocks.append(level_block(channels_in, channels, stride, layers))
            self.deblocks.append(level_up(channels, up_channels, up_stride))
            channels_in = channels
        self.channels_out = sum(config.up_channels)

    def forward(self, bev: Float[Tensor, "b c y x"]) -> Float[Tensor, "b out v u"]:
        raised = []
        for block, deblock in zip(self.blocks, self.deblocks, strict=True):
            bev = block(bev)
            raised.append(deblock(bev))
        return torch.cat(raised, dim=1)
