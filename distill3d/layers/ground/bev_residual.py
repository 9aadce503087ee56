"""BEVDet's networks on maps of the ground: residual stages, the two-level neck, and a map moved with the vehicle.

Huang et al., "BEVDet: High-performance Multi-camera 3D Object Detection in Bird-Eye-View", arXiv:2112.11790; Huang and
Huang, "BEVDet4D: Exploit Temporal Cues in Multi-camera 3D Object Detection", arXiv:2203.17054; released code
HuangJunJie2017/BEVDet (mmdet3d/models/backbones/resnet.py, necks/lss_fpn.py, detectors/bevdet.py).  Parameters are
named as in released weights.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from distill3d.layers.ground.lift import read_cells, surrounding_cells
from distill3d.transfers import constant, inverse

#: By how much the neck raises the map that the last convolutions give.
LAST_UP = 2
#: What stands for a cell when a map is moved: its lower corner, as released, or its middle.
CellPoint = Literal["corner", "middle"]


class ResidualStages(nn.Module):
    """Stages of ResNet-18's blocks without a stem; the shortcut into each stage is a 3x3 convolution with bias and
    without norm.

    Args:
        channels_in: of the map.
        channels, layers, strides: width, number of blocks and stride of each stage.
    """

    def __init__(
        self, channels_in: int, channels: tuple[int, ...], layers: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        super().__init__()
        from timm.models.resnet import BasicBlock

        self.channels = channels
        self.layers = nn.ModuleList()
        for width, blocks, stride in zip(channels, layers, strides, strict=True):
            shortcut = nn.Conv2d(channels_in, width, 3, stride, padding=1)
            first = BasicBlock(channels_in, width, stride, downsample=shortcut)
            self.layers.append(nn.Sequential(first, *(BasicBlock(width, width) for _ in range(blocks - 1))))
            channels_in = width

    def forward(self, bev: Float[Tensor, "b c y x"]) -> list[Tensor]:
        """The stages' maps, >= 0, from fine to coarse."""
        maps = []
        for stage in self.layers:
            bev = stage(bev)
            maps.append(bev)
        return maps


class TwoLevelNeck(nn.Module):
    """A coarse map raised to a fine one, joined behind it and mixed; then, with ``last_up``, raised by two.

    All raising is bilinear with the corners aligned.

    Args:
        fine, coarse: channels of the two maps.
        channels: of what is given.
        up: cells of the fine map per side of a cell of the coarse one.
        last_up: whether the result is twice as fine as the fine map.
        last_norm: batch norm and ReLU after the very last convolution, the released ``extra_norm_act``.

    Raises:
        ValueError: ``last_norm`` without ``last_up``, whose convolution it follows.
    """

    def __init__(self, fine: int, coarse: int, channels: int, up: int, last_up: bool, last_norm: bool = False) -> None:
        super().__init__()
        if last_norm and not last_up:
            raise ValueError("last_norm follows the convolution behind last_up: there is none")
        self.up = _raised(up)
        inner = LAST_UP * channels if last_up else channels
        self.conv = nn.Sequential(*_conv_norm(fine + coarse, inner), *_conv_norm(inner, inner))
        self.up2 = None
        if last_up:
            end = (nn.BatchNorm2d(channels), nn.ReLU(inplace=True)) if last_norm else ()
            self.up2 = nn.Sequential(
                _raised(LAST_UP), *_conv_norm(inner, channels), nn.Conv2d(channels, channels, 1), *end
            )

    def forward(self, fine: Float[Tensor, "b c y x"], coarse: Float[Tensor, "b k v u"]) -> Float[Tensor, "b out i j"]:
        joined = self.conv(torch.cat((fine, self.up(coarse)), dim=1))
        return joined if self.up2 is None else self.up2(joined)


def _raised(factor: int) -> nn.Upsample:
    return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=True)


def _conv_norm(channels_in: int, channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
    return conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)


# ------------------------------------------------------------------------------------------------------ motion of a map


def planar_motion(now: Float[Tensor, "b 4 4"], before: Float[Tensor, "b 4 4"]) -> Float[Tensor, "b 3 3"]:
    """Where, in the vehicle's frame of before, the points lay that lie at (x, y, 1) in today's, if they stood still.

    Both arguments are poses (camera to vehicle) of one camera in today's frame: where it stands, and where it stood.
    before^-1 leads from today's frame to the camera of before, and now from there to the vehicle of before, in which
    the camera stood as it stands today; of now before^-1 what concerns height is left out.

    Source: mmdet3d/models/detectors/bevdet.py, shift_feature.
    """
    motion = now @ inverse(before)
    kept = [0, 1, 3]
    return motion[:, kept][:, :, kept]


def shift_map(
    bev: Float[Tensor, "b c y x"], motion: Float[Tensor, "b 3 3"], low: tuple[float, float], cell: float,
    point: CellPoint = "corner",
) -> Float[Tensor, "b c y x"]:  # fmt: skip
    """The map of before as seen from today: each cell reads where its place lay, bilinearly; what was off it is 0.

    In float32 or better, also under autocast.

    Args:
        motion: see ``planar_motion``.
        low: x and y (m) at which the map begins.
        cell: side (m).
        point: what stands for a cell.
    """
    height, width = bev.shape[-2:]
    middle = 0.5 if point == "middle" else 0.0
    start = constant(low, motion) + middle * cell  # of cell (0, 0)
    sides = (torch.arange(n, dtype=motion.dtype, device=motion.device) for n in (height, width))
    row, column = torch.meshgrid(*sides, indexing="ij")
    place = torch.stack((column, row), dim=-1).flatten(0, 1) * cell + start
    moved = place @ motion[:, :2, :2].mT + motion[:, None, :2, 2]
    exact = bev.to(torch.promote_types(bev.dtype, torch.float32))
    index, share = surrounding_cells(((moved - start) / cell).to(exact), height, width)
    return read_cells(exact, index, share).view(len(bev), height, width, -1).permute(0, 3, 1, 2)


def stage_strides(strides: tuple[int, ...]) -> tuple[int, ...]:
    """Cells of the input per side of a cell of each stage's map."""
    return tuple(math.prod(strides[: i + 1]) for i in range(len(strides)))
