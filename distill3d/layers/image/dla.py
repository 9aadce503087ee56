"""Deep layer aggregation: the DLA-34 trunk (from timm) and the up-sampling neck without deformable convolution.

Sources: ucbdrive/dla (arXiv:1707.06484); xinzhuma/monodle lib/backbones/dla.py, dlaup.py.  Module names are those of
the released checkpoints, so their weights load by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from distill3d.layers.image.pretrained import missing_of_timm, timm_trunk
from distill3d.settings import Channels, Layers, Stride, added

#: Strides of the trunk's six outputs; the neck uses the last four.
STRIDES = (1, 2, 4, 8, 16, 32)
NECK_STRIDES = STRIDES[2:]
#: Of the classifier that stands unused in released checkpoints.
CLASSIFIED = 1000


@dataclass(frozen=True)
class DLAConfig:
    """Depths and channels of the six levels; the defaults are DLA-34's."""

    levels: tuple[Layers, ...] = (1, 1, 1, 2, 2, 1)
    channels: tuple[Channels, ...] = (16, 32, 64, 128, 256, 512)
    stem_stride: Stride = 1  # 2 halves the first three levels' resolution: for small nets, whose time they would take
    pretrained: bool = False  # ImageNet weights of timm's dla34; they are fetched by timm
    weights: Path | None = added(None)  # their file, which is then not fetched

    def missing(self) -> str | None:
        """Why the weights that it asks for cannot be had."""
        return missing_of_timm("dla34", self.weights) if self.pretrained else None


def unused_in_released(config: DLAConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what stands in released checkpoints and no forward pass uses: the classifier, and
    projections of the nested trees."""
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (CLASSIFIED, config.channels[-1], 1, 1), "fc.bias": (CLASSIFIED,),
    }  # fmt: skip
    for level in (level for level in (3, 4) if config.levels[level] > 1):
        before, channels = config.channels[level - 1 : level + 1]
        shapes[f"level{level}.project.0.weight"] = (channels, before, 1, 1)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"level{level}.project.1.{name}"] = (channels,)
        shapes[f"level{level}.project.1.num_batches_tracked"] = ()
    return {f"backbone.{name}": shape for name, shape in shapes.items()}


def dla_trunk(config: DLAConfig) -> nn.Module:
    """The trunk: (B, 3, H, W) -> six maps at ``STRIDES``."""
    trunk = timm_trunk(
        "dla34", config.pretrained, config.weights, out_indices=tuple(range(len(STRIDES))), levels=config.levels,
        channels=config.channels,
    )  # fmt: skip
    if config.stem_stride == 2:
        trunk.base_layer[0].stride = (2, 2)
        trunk.level1[0].stride = (1, 1)  # so that levels 2 to 5 keep strides 4 to 32
    return trunk


class ConvBlock(nn.Module):
    """3x3 convolution without bias, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class IDAUp(nn.Module):
    """Iterative aggregation of neighbouring levels: each coarser map is projected, doubled and merged into its finer
    left neighbour, which has already been merged."""

    def __init__(self, channels_in: list[int], channels: int) -> None:
        super().__init__()
        self.steps = len(channels_in) - 1
        for i, width in enumerate(channels_in[1:], start=1):
            setattr(self, f"proj_{i}", ConvBlock(width, channels))
            setattr(self, f"up_{i}", Doubling(channels))
            setattr(self, f"node_{i}", ConvBlock(2 * channels, channels))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps fine to coarse -> the merged maps, one fewer."""
        merged = [maps[0]]
        for i in range(1, self.steps + 1):
            up = getattr(self, f"up_{i}")(getattr(self, f"proj_{i}")(maps[i]))
            merged.append(getattr(self, f"node_{i}")(torch.cat((merged[-1], up), dim=1)))
        return merged[1:]


class Doubling(nn.ConvTranspose2d):
    """Depth-wise transposed convolution, initialised to bilinear up-sampling by 2, trainable.

    It leaves autocast: a depth-wise transposed convolution in bf16 takes six times float32's time on the CPU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 4, stride=2, padding=1, groups=channels, bias=False)
        axis = torch.tensor([0.25, 0.75, 0.75, 0.25])
        with torch.no_grad():
            self.weight.copy_((axis[:, None] * axis[None, :]).expand_as(self.weight))

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class DLAUp(nn.Module):
    """Neck over the trunk's maps at strides 4, 8, 16, 32 (fine to coarse), channels as the trunk's.

    Returns the fused maps by stride: 4 (the heads' input), 8 and 16.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        c4, c8, c16, c32 = channels
        self.ida_0 = IDAUp([c16, c32], c16)
        self.ida_1 = IDAUp([c8, c16, c16], c8)
        self.ida_2 = IDAUp([c4, c8, c8, c8], c4)

    def forward(self, maps: list[Float[Tensor, "b _ _ _"]]) -> dict[int, Tensor]:
        s4, s8, s16, s32 = maps
        (a16,) = self.ida_0([s16, s32])
        b1, b2 = self.ida_1([s8, s16, a16])
        c3 = self.ida_2([s4, s8, b1, b2])[-1]
        return {4: c3, 8: b2, 16: a16}
