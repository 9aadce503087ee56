"""BEVDepth's camera-aware depth and context network, its depth targets and loss, and its depth aggregation.

Li et al., "BEVDepth: Acquisition of Reliable Depth for Multi-view 3D Object Detection", AAAI 2023, arXiv:2206.10092;
released code Megvii-BaseDetection/BEVDepth (bevdepth/layers/backbones/base_lss_fpn.py, bevdepth/exps/nuscenes/
base_exp.py).  Parameters are named as in released weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from distill3d.camera import DepthBins
from distill3d.layers.distributed import across_processes, world_size
from distill3d.layers.ground.bev_blocks import TAPS, PooledBatchNorm, deform_conv3, silent_conv3
from distill3d.layers.ground.lift import one_hot_depth
from distill3d.layers.readout import Readout
from distill3d.transfers import places

#: Numbers that describe a camera, see ``camera_vector``.
CAMERA_NUMBERS = 27
#: Dilations of the atrous pyramid's 3x3 convolutions, and its dropout in training.
DILATIONS = (6, 12, 18)
PYRAMID_DROPOUT = 0.5
#: Residual blocks in front of the pyramid, and groups of the deformable convolution behind it.
DEPTH_BLOCKS = 3
DEFORM_GROUPS = 4


def camera_vector(
    intrinsics: Float[Tensor, "b n 4 4"], image_affine: Float[Tensor, "b n 4 4"], bev_affine: Float[Tensor, "b 4 4"],
    camera_to_ego: Float[Tensor, "b n 4 4"],
) -> Float[Tensor, "bn 27"]:  # fmt: skip
    """What the network is told of each camera: fx, fy, cx, cy; the image augmentation's entries 00, 01, 03, 10, 11, 13;
    the ground augmentation's 00, 01, 10, 11, 22; the upper three rows of camera to ego.  Neither scaled nor centred.

    Source: bevdepth/layers/backbones/base_lss_fpn.py, DepthNet.forward.
    """
    ground = bev_affine[:, None].expand_as(camera_to_ego)
    numbers = (
        _entries(intrinsics, (0, 1, 0, 1), (0, 1, 2, 2)),
        _entries(image_affine, (0, 0, 0, 1, 1, 1), (0, 1, 3, 0, 1, 3)),
        _entries(ground, (0, 0, 1, 1, 2), (0, 1, 0, 1, 2)),
        camera_to_ego[..., :3, :].flatten(-2),
    )
    return torch.cat(numbers, dim=-1).flatten(0, 1)


def _entries(matrix: Float[Tensor, "*b 4 4"], rows: tuple[int, ...], columns: tuple[int, ...]) -> Float[Tensor, "*b n"]:
    """Some entries, in this order; lists as indices would be copied to the device each time."""
    return torch.stack([matrix[..., i, j] for i, j in zip(rows, columns, strict=True)], dim=-1)


# -------------------------------------------------------------------------------------------------------------- network


class CameraMLP(nn.Module):
    """Two linear layers, a ReLU between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(CAMERA_NUMBERS, channels)
        self.fc2 = nn.Linear(channels, channels)

    def forward(self, camera: Float[Tensor, "n 27"]) -> Float[Tensor, "n c"]:
        return self.fc2(self.fc1(camera).relu())


class CameraGate(nn.Module):
    """Squeeze and excitation (Hu et al., arXiv:1709.01507) whose squeezed vector is the camera's, not the map's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, channels, 1)
        self.conv_expand = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "n c h w"], camera: Float[Tensor, "n c"]) -> Float[Tensor, "n c h w"]:
        return x * torch.sigmoid(self.conv_expand(self.conv_reduce(camera[..., None, None]).relu()))


class AtrousView(nn.Module):
    """A 1x1 or dilated 3x3 convolution, batch norm, ReLU."""

    def __init__(self, channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        padding = dilation if kernel > 1 else 0
        self.atrous_conv = nn.Conv2d(channels, channels, kernel, padding=padding, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.bn(self.atrous_conv(x)).relu()


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., arXiv:1706.05587): five views as wide as the input, mixed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.aspp1 = AtrousView(channels, 1, 1)
        self.aspp2, self.aspp3, self.aspp4 = (AtrousView(channels, 3, dilation) for dilation in DILATIONS)
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1, bias=False), PooledBatchNorm(channels), nn.ReLU()
        )
        self.conv1 = nn.Conv2d((2 + len(DILATIONS)) * channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(PYRAMID_DROPOUT)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        pooled = self.global_avg_pool(x).expand_as(x)
        views = (self.aspp1(x), self.aspp2(x), self.aspp3(x), self.aspp4(x), pooled)
        return self.dropout(self.bn1(self.conv1(torch.cat(views, dim=1))).relu())


class GroupedDeformConv(nn.Module):
    """A deformable 3x3 convolution in groups that share the offsets read from its input; channels stay.

    In float32 or better, also under autocast.  Before training the offsets are 0.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        plain = nn.Conv2d(channels, channels, 3, groups=groups, bias=False)
        self.weight, self.groups = plain.weight, groups
        self.conv_offset = silent_conv3(channels, 2 * TAPS)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        with torch.autocast(x.device.type, enabled=False):
            exact = x.to(torch.promote_types(x.dtype, torch.float32))
            offset = self.conv_offset(exact)
            if exact.is_cpu:
                whole = torch.block_diag(*self.weight.flatten(1).chunk(self.groups))
                return deform_conv3(exact, offset, whole.unflatten(1, (-1, 3, 3)))
            from torchvision.ops import deform_conv2d

            return deform_conv2d(exact, offset, self.weight, padding=(1, 1))


class DepthNet(nn.Module):
    """Context features and, unless ``depth`` is 0, depth logits of each cell, both gated by what the camera is.

    Batches of one image can be trained on, see ``PooledBatchNorm``.

    Args:
        channels_in: of the image features.
        mid: channels inside; a multiple of ``DEFORM_GROUPS``.
        context: channels of the context features.
        depth: bins of the depth distribution; 0 where the depth is known and nothing predicts it.
    """

    def __init__(self, channels_in: int, mid: int, context: int, depth: int) -> None:
        super().__init__()
        from timm.models.resnet import BasicBlock

        self.reduce_conv = nn.Sequential(
            nn.Conv2d(channels_in, mid, 3, padding=1), nn.BatchNorm2d(mid), nn.ReLU(inplace=True)
        )
        self.bn = PooledBatchNorm(CAMERA_NUMBERS)
        self.context_mlp, self.context_se = CameraMLP(mid), CameraGate(mid)
        self.context_conv = nn.Conv2d(mid, context, 1)
        self.depth_conv: nn.Sequential | None = None
        if depth:
            self.depth_mlp, self.depth_se = CameraMLP(mid), CameraGate(mid)
            self.depth_conv = nn.Sequential(
                *(BasicBlock(mid, mid) for _ in range(DEPTH_BLOCKS)),
                AtrousPyramid(mid), GroupedDeformConv(mid, DEFORM_GROUPS), Readout(mid, depth, 1),
            )  # fmt: skip

    def forward(
        self, x: Float[Tensor, "n c h w"], camera: Float[Tensor, "n 27"]
    ) -> tuple[Float[Tensor, "n d h w"] | None, Float[Tensor, "n k h w"]]:
        """Depth logits, float32 also under autocast, or None, and context features."""
        x = self.reduce_conv(x)
        camera = self.bn(camera[..., None, None])[..., 0, 0]
        context = self.context_conv(self.context_se(x, self.context_mlp(camera)))
        if self.depth_conv is None:
            return None, context
        return self.depth_conv(self.depth_se(x, self.depth_mlp(camera))), context


class DepthAggregation(nn.Module):
    """Mixes a lifted volume along width and depth, row by row of the image, before it falls to the ground.

    In float32 or better, also under autocast.
    """

    def __init__(self, channels: int, mid: int | None = None) -> None:
        super().__init__()
        mid = mid or channels
        self.reduce_conv = nn.Sequential(*_conv_block(channels, mid))
        self.conv = nn.Sequential(*_conv_block(mid, mid), *_conv_block(mid, mid))
        self.out_conv = nn.Sequential(nn.Conv2d(mid, channels, 3, padding=1))

    def forward(self, slices: Float[Tensor, "r c w d"]) -> Float[Tensor, "r c w d"]:
        with torch.autocast(slices.device.type, enabled=False):
            x = self.reduce_conv(slices.to(torch.promote_types(slices.dtype, torch.float32)))
            return self.out_conv(self.conv(x) + x)

    def volume(self, volume: Float[Tensor, "n c d h w"]) -> Float[Tensor, "n c d h w"]:
        """The same of whole volumes."""
        slices = volume.permute(0, 3, 1, 4, 2)  # (n, h, c, w, d)
        return self(slices.flatten(0, 1)).unflatten(0, slices.shape[:2]).permute(0, 2, 4, 1, 3)


def _conv_block(channels_in: int, channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
    return conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)


# ------------------------------------------------------------------------------------------------------ depth and scale


def nearest_depth_bins(depth: Float[Tensor, "*b h w"], bins: DepthBins, stride: int) -> Int[Tensor, "*b y x"]:
    """The bin of the nearest known depth (m, 0 = unknown) of each ``stride`` x ``stride`` block; ``bins.count`` where
    none is known or the nearest is out of range, whatever lies behind it.

    Source: bevdepth/exps/nuscenes/base_exp.py, get_downsampled_gt_depth.
    """
    known = torch.where(depth > 0, depth, torch.inf)
    rows = known.unflatten(-2, (-1, stride)).amin(-2)
    return bins.index(rows.unflatten(-1, (-1, stride)).amin(-1))


def depth_distribution(logits: Float[Tensor, "n d h w"]) -> Float[Tensor, "n d h w"]:
    """The distribution over depth bins, float32 or better."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)


def depth_loss(logits: Float[Tensor, "n d h w"], target: Int[Tensor, "n h w"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of every bin's probability with the one-hot bin, summed over bins, over labelled cells
    (those whose ``target`` is less than D), divided by their number, at least 1.  Without weight; float32.

    Source: bevdepth/exps/nuscenes/base_exp.py, get_depth_loss.
    """
    with torch.autocast(logits.device.type, enabled=False):
        bins = logits.shape[1]
        labelled = target < bins
        (cells,) = places(labelled)
        probability = depth_distribution(logits).permute(0, 2, 3, 1)[cells]
        hot = one_hot_depth(target, bins).permute(0, 2, 3, 1)[cells].to(probability)
        total = F.binary_cross_entropy(probability, hot, reduction="sum")
        return total / across_processes(labelled.sum().to(total)).clamp(min=1 / world_size())


def depth_log_scales(logits: Float[Tensor, "n d h w"], bins: DepthBins) -> Float[Tensor, "n h w"]:
    """The log of the scale b (m) of the Laplace distribution whose variance, 2 b^2, each cell's distribution has.

    Within a bin depths count as spread evenly, so that the scale of a sure cell is that of its bin.
    """
    edges = bins.depth(torch.arange(bins.count + 1, dtype=torch.float64, device=logits.device)).to(logits)
    width = edges.diff().view(-1, 1, 1)
    middle = edges[:-1].view(-1, 1, 1) + width / 2
    probability = depth_distribution(logits)
    mean = (probability * middle).sum(1, keepdim=True)
    variance = (probability * ((middle - mean) ** 2 + width**2 / 12)).sum(1)
    return (variance / 2).log() / 2
