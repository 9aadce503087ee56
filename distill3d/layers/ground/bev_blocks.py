"""Blocks that turn a lifted volume into bird's-eye-view maps and bring those nearer to a LiDAR's.

Sources: Cc-Hy/CMKD (pcdet/models/backbones_2d/map_to_bev/conv2d_collapse.py, .../domain_adaptation/scnet.py),
hoiliu-0801/MonoTAKD (conv2d_collapse_TAKD.py, model_utils/GCnet.py, ASPP.py, basic_block_2d.py) and
ViTAE-Transformer/SimDistill (mmdet3d/models/fusers/conv.py).  Parameters are named as in their released weights.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from distill3d.layers.distributed import WholeBatchNorm, world_size
from distill3d.layers.ground.lift import read_cells, surrounding_cells

#: Cells that the self-calibrated convolution looks at together, per side.
CALIBRATION_POOL = 4
#: Added inside the self-calibration's sigmoid.
CALIBRATION_EPSILON = 1e-8
#: Dilations of the atrous pyramid's two 3x3 convolutions.
ASPP_DILATIONS = (6, 12)
#: Taps of a 3x3 kernel, row by row; a deformable one has two offsets for each: (dy, dx) in cells.
TAPS = 9


class PooledBatchNorm(WholeBatchNorm):
    """Batch norm of maps that were pooled to one cell.

    A batch of one image then holds one value per channel, of which there is no variance: in training such a batch is
    normalised with the running statistics, and leaves them as they are.  Released code raises an error there.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and world_size() == 1 and input.numel() == input.shape[1]:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class PointwiseBlock(nn.Module):
    """1x1 convolution without bias, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b k y x"]:
        return self.bn(self.conv(x)).relu()


def conv_fuser(channels_in: int, channels: int) -> nn.Sequential:
    """What makes one map of several on the same cells, stacked along the channels."""
    conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class HeightCollapse(nn.Module):
    """Height levels become channels, c * Z + z, and ``PointwiseBlock`` makes a map of them."""

    def __init__(self, channels_in: int, levels: int, channels: int) -> None:
        super().__init__()
        self.block = PointwiseBlock(channels_in * levels, channels)

    def forward(self, volume: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b k y x"]:
        return collapse_height(volume, self.block)


def collapse_height(volume: Float[Tensor, "b c z y x"], block: PointwiseBlock) -> Float[Tensor, "b k y x"]:
    """The block on the volume's height levels as channels c * Z + z.

    As a product with the weights' columns re-ordered, so that the volume is read as ``lift`` wrote it.
    """
    channels, levels = volume.shape[1:3]
    weight = block.conv.weight.flatten(1).unflatten(1, (channels, levels)).transpose(1, 2).flatten(1)
    return block.bn(F.linear(volume.permute(0, 3, 4, 2, 1).flatten(3), weight).permute(0, 3, 1, 2)).relu()


class AlignedCollapse(HeightCollapse):
    """MonoTAKD's collapses: besides the plain one (F_vis), one whose map is spatially aligned (P = SAM(F_spa)) and,
    with ``assistant``, one for the volume that was lifted with true depth, aligned by the same SAM (F_A)."""

    def __init__(self, channels_in: int, levels: int, channels: int, assistant: bool = False) -> None:
        super().__init__(channels_in, levels, channels)
        self.block_copy = PointwiseBlock(channels_in * levels, channels)
        self.block_target = PointwiseBlock(channels_in * levels, channels) if assistant else None
        self.sam = SpatialAlignment(channels)

    def spatial(self, volume: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b k y x"]:
        """P, of the student's volume."""
        return self.sam(collapse_height(volume, self.block_copy))

    def assistant(self, volume: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b k y x"]:
        """F_A, of the volume that was lifted with true depth.

        Raises:
            ValueError: built without ``assistant``.
        """
        if self.block_target is None:
            raise ValueError("these collapses were built without an assistant's")
        return self.sam(collapse_height(volume, self.block_target))


# --------------------------------------------------------------------------------------------------- domain adaptation


class SCConv(nn.Module):
    """Self-calibrated convolution (Liu et al., "Improving Convolutional Networks with Self-Calibrated Convolutions",
    CVPR 2020): what a coarser view says gates the finer one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.k2 = nn.Sequential(nn.AvgPool2d(CALIBRATION_POOL), *_conv3(channels))
        self.k3 = nn.Sequential(*_conv3(channels))
        self.k4 = nn.Sequential(*_conv3(channels))

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        coarse = F.interpolate(self.k2(x), x.shape[-2:])
        return self.k4(self.k3(x) * torch.sigmoid(x + coarse + CALIBRATION_EPSILON))


def _conv3(channels: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    return nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)


class SCBottleneck(nn.Module):
    """Two halves of the channels, one convolved plainly, one self-calibrated, joined and added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1_a = nn.Conv2d(channels, half, 1, bias=False)
        self.bn1_a = nn.BatchNorm2d(half)
        self.conv1_b = nn.Conv2d(channels, half, 1, bias=False)
        self.bn1_b = nn.BatchNorm2d(half)
        self.k1 = nn.Sequential(*_conv3(half))
        self.scconv = SCConv(half)
        self.conv3 = nn.Conv2d(2 * half, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        plain = self.k1(self.bn1_a(self.conv1_a(x)).relu()).relu()
        calibrated = self.scconv(self.bn1_b(self.conv1_b(x)).relu()).relu()
        return (x + self.bn3(self.conv3(torch.cat((plain, calibrated), dim=1)))).relu()


class SCNet(nn.Module):
    """CMKD's domain adaptation: ``blocks`` self-calibrated bottlenecks, in float32 or better also under autocast.

    ``blocks`` are those really built: the released setting NUM_BLOCKS 5 builds four.
    """

    def __init__(self, channels: int, blocks: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(SCBottleneck(channels) for _ in range(blocks)))

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        with torch.autocast(x.device.type, enabled=False):
            return self.layers(x.to(torch.promote_types(x.dtype, torch.float32)))


# --------------------------------------------------------------------------------------------------- spatial alignment


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: four views of ``branch`` channels, joined; channels stay."""

    def __init__(self, channels: int, branch: int) -> None:
        super().__init__()
        near, far = ASPP_DILATIONS
        self.conv_1x1_1 = nn.Conv2d(channels, branch, 1)
        self.bn_conv_1x1_1 = nn.BatchNorm2d(branch)
        self.conv_3x3_1 = nn.Conv2d(channels, branch, 3, padding=near, dilation=near)
        self.bn_conv_3x3_1 = nn.BatchNorm2d(branch)
        self.conv_3x3_2 = nn.Conv2d(channels, branch, 3, padding=far, dilation=far)
        self.bn_conv_3x3_2 = nn.BatchNorm2d(branch)
        self.conv_1x1_2 = nn.Conv2d(channels, branch, 1)
        self.bn_conv_1x1_2 = PooledBatchNorm(branch)
        self.conv_1x1_3 = nn.Conv2d(4 * branch, channels, 1)
        self.bn_conv_1x1_3 = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        pooled = self.bn_conv_1x1_2(self.conv_1x1_2(x.mean((2, 3), keepdim=True))).relu()
        views = (
            self.bn_conv_1x1_1(self.conv_1x1_1(x)).relu(),
            self.bn_conv_3x3_1(self.conv_3x3_1(x)).relu(),
            self.bn_conv_3x3_2(self.conv_3x3_2(x)).relu(),
            pooled.expand(-1, -1, *x.shape[-2:]),
        )
        return self.bn_conv_1x1_3(self.conv_1x1_3(torch.cat(views, dim=1))).relu()


class SelfOffsetConv(nn.Module):
    """A deformable 3x3 convolution that reads its offsets from its own input; float32 or better, under autocast too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 2 * TAPS, 3, padding=1, bias=False)
        from torchvision.ops import DeformConv2d

        self.conv2 = DeformConv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        with torch.autocast(x.device.type, enabled=False):
            exact = x.to(torch.promote_types(x.dtype, torch.float32))
            offset = self.conv1(exact)
            if exact.is_cpu:
                return deform_conv3(exact, offset, self.conv2.weight)
            return self.conv2(exact, offset)


def silent_conv3(channels_in: int, channels: int) -> nn.Conv2d:
    """A 3x3 convolution from which nothing but 0 comes before training."""
    conv = nn.Conv2d(channels_in, channels, 3, padding=1)
    assert conv.bias is not None
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


def deform_conv3(
    x: Float[Tensor, "b c y x"], offset: Float[Tensor, "b 18 y x"], weight: Float[Tensor, "k c 3 3"],
    mask: Float[Tensor, "b 9 y x"] | None = None,
) -> Float[Tensor, "b k y x"]:  # fmt: skip
    """``torchvision.ops.deform_conv2d`` of 3x3 kernels with padding 1, to rounding; ``mask`` is what each tap counts.

    On a CPU, where that function's gradient is computed number by number, it takes a small part of the time.
    """
    height, width = x.shape[-2:]
    moved = offset.unflatten(1, (TAPS, 2)).permute(0, 3, 4, 1, 2)  # (B, Y, X, taps, 2)
    row, column = (torch.arange(n, device=x.device) for n in (height, width))
    tap = torch.arange(TAPS, device=x.device)
    rows = row[:, None, None] + tap // 3 - 1 + moved[..., 0]
    columns = column[:, None] + tap % 3 - 1 + moved[..., 1]
    at = torch.stack((columns, rows), dim=-1).flatten(1, 3)
    index, share = surrounding_cells(at, height, width)
    if mask is not None:
        share = share * mask.permute(0, 2, 3, 1).reshape(-1, 1)
    samples = read_cells(x, index, share)
    out = F.linear(samples.view(*moved.shape[:3], -1), weight.permute(0, 2, 3, 1).flatten(1))
    return out.permute(0, 3, 1, 2)


class ModulatedDeformConv(nn.Module):
    """A 3x3 convolution whose taps read where, and count as much as, a convolution of the same input says; channels
    stay (Zhu et al., "Deformable ConvNets v2", CVPR 2019, arXiv:1811.11168).

    In float32 or better, also under autocast.  Before training the offsets are 0 and each tap counts half.  Parameters
    are named as in open-mmlab/mmcv mmcv/ops/modulated_deform_conv.py: of the 27 channels of ``conv_offset`` the first
    18 are the taps' (dy, dx) in cells, the last 9 the logits of what they count.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        plain = nn.Conv2d(channels, channels, 3)
        self.weight, self.bias = plain.weight, plain.bias
        self.conv_offset = silent_conv3(channels, 3 * TAPS)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        with torch.autocast(x.device.type, enabled=False):
            exact = x.to(torch.promote_types(x.dtype, torch.float32))
            offset, mask = self.conv_offset(exact).split((2 * TAPS, TAPS), dim=1)
            mask = mask.sigmoid()
            if exact.is_cpu:
                assert self.bias is not None
                return deform_conv3(exact, offset, self.weight, mask) + self.bias[:, None, None]
            from torchvision.ops import deform_conv2d

            return deform_conv2d(exact, offset, self.weight, self.bias, padding=(1, 1), mask=mask)


class SpatialAlignment(nn.Module):
    """MonoTAKD's SAM: the map gated channel by channel, plus the map deformed twice by the same weights, mixed.

    The gate is read from an atrous pyramid and multiplies the input, not the pyramid's output.  A batch of one image
    can be trained on, see ``PooledBatchNorm``.  ``branch`` and ``mid`` are the pyramid's and the mixing's own channels.
    """

    def __init__(self, channels: int, branch: int | None = None, mid: int | None = None) -> None:
        super().__init__()
        branch, mid = branch or channels // 2, mid or 2 * channels
        self.aspp = ASPP(channels, branch)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels, bias=False), nn.ReLU(),
            nn.Linear(channels, channels, bias=False), nn.ReLU(),
            nn.Linear(channels, channels, bias=False), nn.Sigmoid(),
        )  # fmt: skip
        self.dcn = SelfOffsetConv(channels)
        self.conv = nn.Sequential(
            nn.Conv2d(channels, mid, 3, padding=1, bias=False), nn.ReLU(),
            nn.Conv2d(mid, channels, 3, padding=1, bias=False), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        gate = self.fc(self.aspp(x).mean((2, 3)))
        return self.conv(x * gate[..., None, None] + self.dcn(self.dcn(x)))


class FeatureFusion(nn.Module):
    """MonoTAKD's FFM: 3x3, 1x1 and 3x3 convolutions, each with bias, batch norm and ReLU.

    ``norm`` ``shared`` makes the first and the last batch norm one, as the released module does by reusing it, so that
    its running statistics mix both; ``separate`` gives each its own.
    """

    def __init__(self, channels: int, mid: int | None = None, norm: Literal["shared", "separate"] = "separate") -> None:
        super().__init__()
        mid = mid or 2 * channels
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, mid, 1)
        self.conv3 = nn.Conv2d(mid, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.bn2 = nn.BatchNorm2d(mid)
        self.bn3 = nn.BatchNorm2d(channels) if norm == "separate" else None

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        inner = self.bn2(self.conv2(self.bn(self.conv(x)).relu())).relu()
        last = self.bn if self.bn3 is None else self.bn3
        return last(self.conv3(inner)).relu()


class SkipFusion(nn.Module):
    """The visual map plus a 1x1 convolution, zero at first, of FFM(visual + P): a head that reads the sum sees at the
    start what it saw before, and what P adds is let in as it proves useful.  Not a published module.
    """

    def __init__(self, channels: int, norm: Literal["shared", "separate"] = "separate") -> None:
        super().__init__()
        self.inner = FeatureFusion(channels, norm=norm)
        self.gate = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.gate.weight)
        assert self.gate.bias is not None
        nn.init.zeros_(self.gate.bias)

    def forward(self, visual: Float[Tensor, "b c y x"], spatial: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        return visual + self.gate(self.inner(visual + spatial))
