"""BEVDet's image side: the two-level neck, and what gives each cell its depth distribution and its features.

Huang et al., "BEVDet", arXiv:2112.11790, and the depth network of BEVDepth (Li et al., arXiv:2206.10092) as the code
base HuangJunJie2017/BEVDet has it (mmdet3d/models/necks/fpn.py, view_transformer.py).  Parameters are named as in
released weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from distill3d.layers.ground.bev_blocks import ModulatedDeformConv, PooledBatchNorm
from distill3d.layers.ground.bev_residual import ResidualStages
from distill3d.layers.ground.lift import one_hot_depth
from distill3d.layers.readout import Readout

#: Numbers that describe a camera, see ``whole_camera_vector``.
WHOLE_CAMERA_NUMBERS = 33


def whole_camera_vector(
    intrinsics: Float[Tensor, "b n 4 4"], image_affine: Float[Tensor, "b n 4 4"], bev_affine: Float[Tensor, "b 4 4"],
    camera_to_ego: Float[Tensor, "b n 4 4"],
) -> Float[Tensor, "bn 33"]:  # fmt: skip
    """What the depth network is told of each camera: the intrinsics, the image augmentation's 3x3 part and its
    translation, and the turn and translation to the augmented ground, matrices row by row.  Neither scaled nor centred.

    Source: view_transformer.py, ViewTransformerLSSBEVDepth.forward.
    """
    to_ground = bev_affine[:, None] @ camera_to_ego
    numbers = []
    for matrix, moves in ((intrinsics, False), (image_affine, True), (to_ground, True)):
        numbers.append(matrix[..., :3, :3].flatten(-2))
        if moves:
            numbers.append(matrix[..., :3, 3])
    return torch.cat(numbers, dim=-1).flatten(0, 1)


class TopDownNeck(nn.Module):
    """Maps at strides 16 and 32 to one at 16: both brought to ``channels``, the coarse added to the fine, then a 3x3
    convolution; all with bias and without norm."""

    def __init__(self, fine: int, coarse: int, channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in (fine, coarse))
        self.fpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        for conv in (*self.lateral_convs, self.fpn_conv):
            assert isinstance(conv, nn.Conv2d) and conv.bias is not None
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, fine: Float[Tensor, "n c h w"], coarse: Float[Tensor, "n k v u"]) -> Float[Tensor, "n out h w"]:
        lower, upper = (conv(level) for conv, level in zip(self.lateral_convs, (fine, coarse), strict=True))
        return self.fpn_conv(lower + F.interpolate(upper, lower.shape[-2:]))


class FeatureLift(nn.Module):
    """One 1x1 convolution to features, for images whose depth is given."""

    def __init__(self, channels_in: int, context: int) -> None:
        super().__init__()
        self.featnet = nn.Conv2d(channels_in, context, 1)

    def forward(
        self, x: Float[Tensor, "n c h w"], camera: Float[Tensor, "n 33"]
    ) -> tuple[None, Float[Tensor, "n k h w"]]:
        """No depth, and features; ``camera`` is not looked at."""
        return None, self.featnet(x)


class PlainLift(nn.Module):
    """One 1x1 convolution to depth logits and features, which knows nothing of the camera.

    Computes in float32 or better also under autocast.

    Args:
        channels_in: of the image features.
        depth: bins of the depth distribution.
        context: channels of the features that are lifted.
    """

    def __init__(self, channels_in: int, depth: int, context: int) -> None:
        super().__init__()
        self.sizes = depth, context
        self.depthnet = Readout(channels_in, depth + context, 1)

    def forward(
        self, x: Float[Tensor, "n c h w"], camera: Float[Tensor, "n 33"]
    ) -> tuple[Float[Tensor, "n d h w"], Float[Tensor, "n k h w"]]:
        """Depth logits and features; ``camera`` is not looked at."""
        logits, context = self.depthnet(x).split(self.sizes, dim=1)
        return logits, context


class CameraScale(nn.Module):
    """A 1x1 convolution whose channels are scaled by numbers from 0 to 1 that a linear layer makes of the camera's."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.input_conv = nn.Conv2d(channels_in, channels, 1)
        self.fc = nn.Sequential(PooledBatchNorm(WHOLE_CAMERA_NUMBERS), nn.Linear(WHOLE_CAMERA_NUMBERS, channels))

    def forward(self, x: Float[Tensor, "n c h w"], camera: Float[Tensor, "n 33"]) -> Float[Tensor, "n k h w"]:
        norm, linear = self.fc
        scale = linear(norm(camera[..., None, None])[..., 0, 0]).sigmoid()
        return self.input_conv(x) * scale[..., None, None]


class CameraAwareLift(nn.Module):
    """Features by a 1x1 convolution, and depth logits by a network that is told of the camera: ``CameraScale``,
    residual blocks, a deformable convolution with batch norm and without activation, a 1x1 convolution.

    Batches of one image can be trained on, see ``PooledBatchNorm``.

    Args:
        channels_in: of the image features.
        depth: bins of the depth distribution.
        context: channels of the features that are lifted.
        mid: channels inside the depth network.
        blocks: its residual blocks.
    """

    def __init__(self, channels_in: int, depth: int, context: int, mid: int = 256, blocks: int = 3) -> None:
        super().__init__()
        self.featnet = nn.Conv2d(channels_in, context, 1)
        self.se = CameraScale(channels_in, mid)
        self.extra_depthnet = ResidualStages(mid, (mid,), (blocks,), (1,))
        self.dcn = nn.Sequential(ModulatedDeformConv(mid), nn.BatchNorm2d(mid))
        self.depthnet = Readout(mid, depth, 1)

    def forward(
        self, x: Float[Tensor, "n c h w"], camera: Float[Tensor, "n 33"]
    ) -> tuple[Float[Tensor, "n d h w"], Float[Tensor, "n k h w"]]:
        """Depth logits, float32 also under autocast, and features."""
        (deep,) = self.extra_depthnet(self.se(x, camera))
        return self.depthnet(self.dcn(deep)), self.featnet(x)


# ---------------------------------------------------------------------------------------------------------------- depth


def mean_depth_loss(logits: Float[Tensor, "n d h w"], target: Int[Tensor, "n h w"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of each bin's sigmoid with the one-hot bin, 0 in cells without a label (those whose
    ``target`` is D), the mean over all bins of all cells, those without a label included.  Without weight; float32.

    The mean over the batches of several processes is that over all of them, for batches are of one size.

    Source: HuangJunJie2017/BEVDet mmdet3d/models/detectors/bevdet.py, get_depth_loss.
    """
    with torch.autocast(logits.device.type, enabled=False):
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        bins = logits.shape[1]
        labelled = (target < bins)[:, None].to(exact)
        hot = one_hot_depth(target, bins).to(exact)
        return (F.binary_cross_entropy_with_logits(exact, hot, reduction="none") * labelled).mean()
