"""SimDistill's student: beside the camera's map of the ground a second one that is to be a LiDAR's, and both fused.

Zhao et al., "SimDistill: Simulated Multi-modal Distillation for BEV 3D Object Detection", AAAI 2024, arXiv:2303.16818;
released code ViTAE-Transformer/SimDistill, mmdet3d/models/fusion_models/bevfusion.py, vtransforms/base.py,
depth_lss.py, fusers/conv.py.  f are the image features, [a, b] stacked channels:

    C_S = lift(view(f))      L_S = compensated(lift(view'(f)))      F_S = ReLU(BN(conv3x3([C_S, L_S])))

view' is a view transform of its own; as released it is the same one, ``shared``, so that both lift one map.  That view
transform also reads a depth image made from the LiDAR's points, AT TEST TIME TOO (``depth_at_test="read"``):

    f = conv(conv([f + attention of f to itself, depth image at the stride of f]))    two 3x3 convolutions, BN, ReLU

All of this stays in the network at test time.  Here the lift and its view transform are BEVDepth's, whose features are
at stride 16 instead of 8, so that the depth image's last convolution has stride 4 instead of 2; the depth image is the
batch's, which leaves out the points behind a camera.  With ``shared`` the view is asked once, for all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from distill3d.data.surround import SurroundBatch
from distill3d.errors import UserError
from distill3d.layers.ground.bev_blocks import conv_fuser
from distill3d.layers.ground.camera_lift import CameraLift, LiftConfig, lifted_cells
from distill3d.layers.ground.geometry_compensation import AttentionCompensation, ConvCompensation, Reference
from distill3d.layers.image.deformable_attention import DeformableAttention, cell_centres
from distill3d.layers.image.depth_net import DepthNet, camera_vector, depth_distribution
from distill3d.settings import Channels, Layers

#: Of the depth image's convolutions: channels, kernel's sides and strides.
DEPTH_CHANNELS, DEPTH_KERNELS, DEPTH_STRIDES = (8, 32, 64), (1, 5, 5), (1, 4, 4)
#: Of the image features' attention to themselves.
SELF_HEADS, SELF_POINTS = 8, 10
#: Rows of the released-versus-intended table.
STYLES: dict[str, dict[str, Any]] = {
    "released": {"views": "shared", "reference": "corners", "depth_at_test": "read"},
    "intended": {"views": "own", "reference": "centres", "depth_at_test": "forbidden"},
}


@dataclass(frozen=True)
class SimulatedBranchConfig:
    """The second branch and the fusion.  Defaults are the released sizes."""

    compensation: Literal["attention", "convolutions"] = "attention"
    heads: Layers = 8  # of the attention, and points of each
    points: Layers = 20
    fused_channels: Channels = 256
    # released versus intended
    views: Literal["shared", "own"] = "own"  # the view transform of the second branch
    reference: Reference = "centres"  # from where the attention's cells look
    #: Whether the LiDAR's depth is looked at, at test time too: such a student is no camera's.
    depth_at_test: Literal["forbidden", "read"] = "forbidden"

    @classmethod
    def styled(cls, style: Literal["released", "intended"], **fields: Any) -> SimulatedBranchConfig:
        """A configuration with every released-versus-intended row set by ``style``; ``fields`` override."""
        return cls(**{**STYLES[style], **fields})


class DepthImage(nn.Module):
    """Image features that have seen a sparse depth image: their channels and cells stay."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(channels, 1, SELF_HEADS, SELF_POINTS)
        sizes = zip((1, *DEPTH_CHANNELS), DEPTH_CHANNELS, DEPTH_KERNELS, DEPTH_STRIDES, strict=False)
        self.encoder = nn.Sequential(*(_conv(i, o, kernel, stride) for i, o, kernel, stride in sizes))
        self.joined = nn.Sequential(_conv(channels + DEPTH_CHANNELS[-1], channels, 3), _conv(channels, channels, 3))

    def forward(
        self, features: Float[Tensor, "n c h w"], depth: Float[Tensor, "n height width"]
    ) -> Float[Tensor, "n c h w"]:
        size = (features.shape[-2], features.shape[-1])
        tokens = features.flatten(2).mT
        exact = tokens.new_zeros((), dtype=torch.promote_types(tokens.dtype, torch.float32))
        places = cell_centres((size,), exact).expand(len(tokens), -1, -1)
        looked = features + self.attention(tokens, places, tokens, (size,)).mT.unflatten(-1, size)
        return self.joined(torch.cat((looked, self.encoder(depth[:, None]).to(looked)), dim=1))


def _conv(channels_in: int, channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class TwoBranchLift(CameraLift):
    """Images and what is known of their cameras -> the maps C_S, L_S and F_S on the ground.

    Raises:
        ValueError: as ``CameraLift``, or the compensation's settings do not fit the channels.
    """

    def __init__(self, config: LiftConfig, branch: SimulatedBranchConfig) -> None:
        super().__init__(config)
        context, features = config.context_channels, self.img_neck.channels_out
        self.simulated_net: DepthNet | None = None
        if branch.views == "own":
            self.simulated_net = DepthNet(features, config.depth_channels, context, config.bins.count)
        self.depth_image = DepthImage(features) if branch.depth_at_test == "read" else None
        x, y, _ = config.grid.shape
        self.compensation = (
            AttentionCompensation(context, (y, x), branch.heads, branch.points, branch.reference)
            if branch.compensation == "attention" else ConvCompensation(context)
        )  # fmt: skip
        self.fuser = conv_fuser(2 * context, branch.fused_channels)

    def branches(
        self, batch: SurroundBatch, images: Float[Tensor, "b s n 3 height width"]
    ) -> tuple[dict[str, Tensor], Float[Tensor, "bn d h w"], Float[Tensor, "bn k h w"]]:
        """The key frame's maps ``bev_camera``, ``bev_simulated`` and ``bev``, the depth logits of the first, and the
        image features that both are lifted from.

        Raises:
            UserError: the LiDAR's depth is to be read and the batch has none.
        """
        camera = camera_vector(
            batch.intrinsics[:, 0], batch.image_affine, batch.bev_affine, batch.camera_to_ego[:, 0]
        ).to(images)
        pixels = images[:, 0].flatten(0, 1).contiguous(memory_format=torch.channels_last)
        features = self.image_features(pixels)
        if self.depth_image is not None:
            if batch.depth is None:
                raise UserError(
                    "simulated.depth_at_test is 'read', so that depth images are looked at; the data set gives none"
                )
            features = self.depth_image(features, batch.depth.flatten(0, 1))
        x, y, _ = self.config.grid.shape
        cells = lifted_cells(batch, self.config)
        maps, depth = [], []
        for view in (self.depth_net, self.simulated_net):
            if view is not None:
                logits, context = view(features, camera)
                depth.append(logits)
                maps.append(self.to_ground(context, depth_distribution(logits), cells, (y, x)))
        simulated = self.compensation(maps[-1])
        fused = self.fuser(torch.cat((maps[0], simulated), dim=1))
        return {"bev_camera": maps[0], "bev_simulated": simulated, "bev": fused}, depth[0], features
