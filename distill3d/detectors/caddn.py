"""CaDDN: image features lifted to the ground by a depth distribution per pixel, and an anchor head on the map there.

Reading et al., "Categorical Depth Distribution Network for Monocular 3D Object Detection", CVPR 2021, arXiv:2103.01100.
This is the light form that CMKD trains (Cc-Hy/CMKD pcdet/models/detectors/cmkd.py, tools/cfgs/kitti_models/CMKD), with
what MonoTAKD adds to it (hoiliu-0801/MonoTAKD pcdet/models/detectors/cmkd_TAKD.py).  With input ``rgb+gt_depth`` it is
MonoTAKD's teaching assistant.  With ``trunk.stride`` 4, finer voxels and a ``head.backbone`` that halves the map it is
CaDDN as its authors train it (open-mmlab/OpenPCDet tools/cfgs/kitti_models/CaDDN.yaml).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distill3d.boxes import Boxes3D, BoxSlots
from distill3d.camera import DepthBins, ImageAffine
from distill3d.data.sample import Batch
from distill3d.detectors.anchor_outputs import anchor_outputs, head_channels
from distill3d.detectors.base import BevGeometry, Detector, FeatureMap, Modality, Outputs, Style, bev_geometry
from distill3d.detectors.monodle import RGB_MEAN, RGB_STD
from distill3d.detectors.released import NEVER_USED, OF_TRAINING, ReleasedForm, Weights
from distill3d.errors import UserError
from distill3d.layers.distributed import mean_over_processes
from distill3d.layers.ground.bev_blocks import (
    AlignedCollapse,
    FeatureFusion,
    HeightCollapse,
    PointwiseBlock,
    PooledBatchNorm,
    SCNet,
    SkipFusion,
)
from distill3d.layers.ground.lift import (
    Normalisation,
    depth_probability,
    lift,
    one_hot_depth,
    sampling_grid,
    sparse_average_pool,
)
from distill3d.layers.heads.anchor_head import (
    RELEASED_NAMES,
    RELEASED_STEPS,
    TINY_BACKBONE,
    AnchorHead,
    AnchorHeadConfig,
    AnchorTargets,
)
from distill3d.layers.heads.anchors import KITTI_ANCHORS
from distill3d.layers.image.pretrained import load_file, missing_of_torchvision
from distill3d.layers.image.resnet import ResNet, ResNetConfig
from distill3d.layers.points.voxels import STUDENT_RANGE, VoxelGrid
from distill3d.layers.readout import Readout
from distill3d.settings import Between, Channels, Weight, added
from distill3d.transfers import constant, places

#: Pixels per cell of the map that is lifted, in CMKD's networks.
STRIDE = 8
#: By these pixels, the trunk's stage whose map is lifted, and its channels: as CaDDN and as CMKD.
LIFTED = {4: ("layer1", 256), STRIDE: ("layer3", 1024)}
#: Channels in front of the depth classifier.
DEPTH_CHANNELS = 256
#: Focal loss of the depth distribution; alpha counts for all classes alike.
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2

#: Released names of what MonoTAKD adds to CMKD's network: its collapses, a gate that nothing calls, and its fusion.
ALIGNED_BLOCK, ASSISTANT_BLOCK = "map_to_bev_module.block_copy", "map_to_bev_module.block_target"
UNCALLED_GATE, FUSION_BLOCK = "map_to_bev_module.GC_block", "backbone_2d.fusion_nn"

#: How MonoTAKD's aligned map P reaches the head: not at all, as in the released code that trains; ``ffm`` is the
#: paper's FFM(SCNet(F_vis) + P); ``released_as_commented`` is FFM(F_vis + P), which stands there as a comment; ``skip``
#: is SCNet(F_vis) plus what ``SkipFusion`` lets in of P, for students whose head is trained already.
Fusion = Literal["none", "ffm", "released_as_commented", "skip"]


@dataclass(frozen=True)
class DepthTrunkConfig:
    """The network that sees the image."""

    network: Literal["deeplabv3_resnet50", "deeplabv3_resnet101", "small"] = "deeplabv3_resnet50"
    pretrained: bool = False  # DeepLab's weights of COCO; they are fetched by torchvision
    weights: Path | None = added(None)  # their file, which is then not fetched
    channels: tuple[Channels, ...] = (32, 48, 64, 96)  # of ``small``: its four stages
    width: Channels = 64  # of ``small``: the map that is lifted
    stride: Literal[4, 8] = STRIDE  # px per cell of the map that is lifted; of DeepLab's it is layer1's or layer3's

    def missing(self) -> str | None:
        """Why the weights that it asks for cannot be had."""
        if not self.pretrained or self.network == "small":
            return None
        return missing_of_torchvision(self.network, self.weights)


@dataclass(frozen=True)
class CaDDNConfig:
    """Everything that makes one CaDDN.  Defaults are CMKD's student with SECOND as teacher."""

    input: Literal["rgb", "rgb+gt_depth"] = "rgb"  # the latter lifts by the true depth, where the batch knows it
    head: AnchorHeadConfig = field(default_factory=AnchorHeadConfig)
    trunk: DepthTrunkConfig = field(default_factory=DepthTrunkConfig)
    voxels: VoxelGrid = VoxelGrid(STUDENT_RANGE, (0.32, 0.32, 0.4))  # ground cells are square
    bins: DepthBins = DepthBins(2.0, 46.8, 120)
    lift_channels: Channels = 64
    bev_channels: Channels = 128
    domain_adaptation: Annotated[int, Between(0, 256)] = (
        4  # blocks of CMKD's adaptation of the map to a LiDAR's; 0 for none
    )
    spatial_alignment: bool = False  # MonoTAKD's second map P, offered as tap and to ``fusion``
    fusion: Fusion = "none"  # anything else stays in the network at test time
    assistant: Literal["none", "shared"] = "none"  # ``shared``: F_A from own features and true depth, in training only
    detection_weight: Weight = 1.0  # of the head's losses; 0 where a teacher's answers are all that is learned
    depth_weight: Weight = 0.5  # of the depth loss, in batches with depth maps
    # released versus intended
    sampling: Normalisation = "released"
    fusion_norm: Literal["shared", "separate"] = "separate"

    @classmethod
    def styled(cls, style: Style, **fields: Any) -> CaDDNConfig:
        """A configuration with every released-versus-intended row set by ``style``; ``fields`` override."""
        rows = {
            "released": {"sampling": "released", "fusion_norm": "shared"},
            "intended": {"sampling": "intended", "fusion_norm": "separate"},
        }[style]
        return cls(**{**rows, **fields})

    @property
    def geometry(self) -> BevGeometry:
        """Where the cells of all maps on the ground lie."""
        return bev_geometry(self.voxels, 1)


def tiny(**fields: Any) -> CaDDNConfig:
    """The small configuration, for canvases of about 320 x 96 px: 0.85 million parameters, cells of 0.64 m."""
    head = AnchorHeadConfig(classes=KITTI_ANCHORS[:1], backbone=TINY_BACKBONE)
    small = {
        "head": head, "trunk": DepthTrunkConfig("small", stride=4), "bins": DepthBins(2.0, 46.8, 40),
        "voxels": VoxelGrid(STUDENT_RANGE, (0.64, 0.64, 0.8)),
        "lift_channels": 32, "bev_channels": 64, "domain_adaptation": 2,
    }  # fmt: skip
    return CaDDNConfig(**{**small, **fields})


@dataclass(frozen=True)
class CaDDNTargets:
    """Training targets; None where nothing is trained on them, or the batch does not know them."""

    anchors: AnchorTargets | None
    depth_bins: Int[Tensor, "b h w"] | None  # of each cell of the lifted map; ``bins.count`` is unknown or out of range
    depth_known: Bool[Tensor, "b"] | None  # images that have a depth anywhere


# --------------------------------------------------------------------------------------------------------------- trunks


class DeepLabTrunk(nn.Module):
    """DeepLabV3 (Chen et al., arXiv:1706.05587) of torchvision, whose first stage is at stride 4 and all others at 8.

    The first or the third stage's map is lifted.  The depth distribution is the network's classification, interpolated
    to the resolution of that map.  Without ``depth_classes`` nothing is built behind the lifted stage.  Batches of one
    image can be trained on, see ``PooledBatchNorm``.
    """

    def __init__(self, config: DepthTrunkConfig, depth_classes: int | None) -> None:
        super().__init__()
        from torchvision.models import segmentation

        build = getattr(segmentation, config.network)
        fetched = config.pretrained and config.weights is None
        network: Any = build(weights="DEFAULT" if fetched else None, weights_backbone=None)
        if config.pretrained and config.weights is not None:
            load_file(network, config.weights)
        stages = dict(network.backbone.items())
        self.lifted_stage, self.channels = LIFTED[config.stride]
        self.classifier = None
        if depth_classes is None:
            names = list(stages)
            stages = {name: stages[name] for name in names[: names.index(self.lifted_stage) + 1]}
        else:
            self.classifier = network.classifier
            self.classifier[-1] = Readout(DEPTH_CHANNELS, depth_classes, 1)
            pooled_norm: nn.Module = self.classifier[0].convs[-1][2]
            pooled_norm.__class__ = PooledBatchNorm
        self.backbone = nn.ModuleDict(stages)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b c y x"], Tensor | None]:
        """The map that is lifted, and the logits of each cell's depth (B, depth classes, y, x) or None."""
        x = lifted = image
        for name, stage in self.backbone.items():
            x = stage(x)
            lifted = x if name == self.lifted_stage else lifted
        if self.classifier is None:
            return lifted, None
        logits = self.classifier(x)
        if logits.shape[-2:] != lifted.shape[-2:]:
            logits = F.interpolate(logits, lifted.shape[-2:], mode="bilinear", align_corners=False)
        return lifted, logits


class SmallTrunk(nn.Module):
    """A ResNet of one basic block per stage, its maps summed at the stride of the lifted one."""

    def __init__(self, config: DepthTrunkConfig, depth_classes: int | None) -> None:
        super().__init__()
        trunk = ResNetConfig("basic", (1,) * len(config.channels), config.channels, finest=config.stride)
        self.channels = config.width
        self.backbone = ResNet(trunk)
        self.laterals = nn.ModuleList(nn.Conv2d(c, config.width, 1) for c in trunk.outputs)
        self.mix = _conv_block(config.width)
        self.classifier = None
        if depth_classes is not None:
            self.classifier = nn.Sequential(_conv_block(config.width), Readout(config.width, depth_classes, 1))

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b c y x"], Tensor | None]:
        """The map that is lifted, and the logits of each cell's depth (B, depth classes, y, x) or None."""
        maps = [lateral(m) for lateral, m in zip(self.laterals, self.backbone(image), strict=True)]
        size = maps[0].shape[-2:]
        coarser = [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps[1:]]
        lifted = self.mix(torch.stack((maps[0], *coarser)).sum(0))
        return lifted, None if self.classifier is None else self.classifier(lifted)


def _conv_block(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
    )


# ------------------------------------------------------------------------------------------------------ image and depth


def inside_image(affine: ImageAffine, height: int, width: int) -> Bool[Tensor, "b 1 h w"]:
    """Which canvas pixels show a part of the image file."""
    device = affine.matrix.device
    v, u = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    centres = torch.stack((u, v), dim=-1).flatten(0, 1).float() + 0.5
    source = affine.invert(centres.expand(len(affine.matrix), -1, -1))
    inside = (source >= 0) & (source <= affine.source_size.to(source)[:, None])
    return inside.all(-1).view(-1, 1, height, width)


def input_image(batch: Batch) -> Float[Tensor, "b 3 h w"]:
    """Colours less ImageNet's mean, by its deviation; 0 where the canvas shows nothing of the image file."""
    mean, std = (constant(v, batch.image)[:, None, None] for v in (RGB_MEAN, RGB_STD))
    return torch.where(inside_image(batch.affine, *batch.image.shape[-2:]), (batch.image - mean) / std, 0)


def depth_bins(depth: Float[Tensor, "b 1 h w"], bins: DepthBins, stride: int = STRIDE) -> Int[Tensor, "b y x"]:
    """The bin of the mean known depth (m, 0 = unknown) in each cell of the lifted map; ``bins.count`` where there is
    none or it is out of range."""
    return bins.index(sparse_average_pool(depth, stride))


def depth_focal_loss(
    logits: Float[Tensor, "b n h w"], target: Int[Tensor, "b h w"], known: Bool[Tensor, "b"]
) -> Float[Tensor, ""]:
    """Focal loss of each cell's depth distribution: alpha (1 - p)^2 (-log p), p that of the true bin.

    The mean over all cells, those without depth included, whose bin is the last, of images that have a depth anywhere.
    """
    with torch.autocast(logits.device.type, enabled=False):
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_p = exact.log_softmax(dim=1).gather(1, target[:, None])[:, 0]
        loss = -FOCAL_ALPHA * (1 - log_p.exp()) ** FOCAL_GAMMA * log_p
        return mean_over_processes(loss[places(known)[0]])


# ------------------------------------------------------------------------------------------------------------- detector


class CaDDN(Detector):
    """Trunk, lift, collapse, domain adaptation, 2D backbone and anchor head.

    Taps, all (B, C, Y, X) on the grid ``config.geometry``: ``bev_visual`` (F_vis, the collapsed volume), ``bev`` (F_S,
    after the domain adaptation; what the head sees without ``fusion``), with ``spatial_alignment`` ``bev_spatial`` (P),
    and with a shared ``assistant`` ``bev_assistant`` (F_A), in training mode and where the batch has depth only.
    Predictions are the head's and ``depth`` (B, D + 1, h, w), logits of each cell's depth.

    Raises:
        ValueError: settings that do not go together.
    """

    name = "caddn"
    config: CaDDNConfig
    parts_labelled: ClassVar[bool] = True

    def __init__(self, config: CaDDNConfig) -> None:
        super().__init__()
        if config.fusion != "none" and not config.spatial_alignment:
            raise ValueError(f"fusion is {config.fusion!r}, which fuses what spatial_alignment gives; switch that on")
        if config.assistant == "shared" and not config.spatial_alignment:
            raise ValueError("assistant is 'shared', which means the module of spatial_alignment; switch that on")
        self.config, self.geometry = config, config.geometry
        trunk = SmallTrunk if config.trunk.network == "small" else DeepLabTrunk
        self.trunk = trunk(config.trunk, config.bins.count + 1 if config.input == "rgb" else None)
        self.channel_reduce = PointwiseBlock(self.trunk.channels, config.lift_channels)
        sizes = (config.lift_channels, config.voxels.shape[2], config.bev_channels)
        aligned = config.spatial_alignment
        self.collapse = AlignedCollapse(*sizes, config.assistant == "shared") if aligned else HeightCollapse(*sizes)
        self.domain_adaptation = SCNet(config.bev_channels, config.domain_adaptation)
        self.fusion = None
        if config.fusion != "none":
            kind = SkipFusion if config.fusion == "skip" else FeatureFusion
            self.fusion = kind(config.bev_channels, norm=config.fusion_norm)
        cells = (config.voxels.shape[1], config.voxels.shape[0])
        self.head = AnchorHead(config.bev_channels, config.voxels.extent, cells, config.head)
        taps = ["bev_visual", "bev", *(["bev_spatial"] if aligned else [])]
        taps += ["bev_assistant"] if config.assistant == "shared" else []
        self.tap_channels = dict.fromkeys(taps, config.bev_channels) | head_channels(self.head)

    @classmethod
    def also_trained_on(cls, config: CaDDNConfig) -> frozenset[Modality]:
        """Depth maps, for the depth loss or for the shared assistant."""
        predicts_depth = config.input == "rgb" and config.depth_weight > 0
        return frozenset({"depth"} if predicts_depth or config.assistant == "shared" else ())

    def forward(self, batch: Batch) -> Outputs:
        """Maps and raw predictions.

        Raises:
            UserError: the batch does not say where the LiDAR is.
            ValueError: it lacks the depth that the input asks for.
        """
        config = self.config
        if batch.lidar_to_camera is None:
            raise UserError(
                f"frame {batch.frame_ids[0]}: CaDDN looks at the LiDAR's ground, and where the LiDAR is "
                "(lidar_to_camera) is not known, expected the lines R0_rect and Tr_velo_to_cam of the calibration"
            )
        image = input_image(batch).contiguous(memory_format=torch.channels_last)
        features, logits = self.trunk(image)
        features = self.channel_reduce(features)
        size = (image.shape[-1], image.shape[-2])
        grid = sampling_grid(
            config.voxels, batch.camera, batch.lidar_to_camera, config.bins, size, config.trunk.stride, config.sampling
        )
        probability = self.true_depth(batch) if logits is None else depth_probability(logits)
        volume = lift(features, probability, grid)

        maps = {"bev_visual": self.collapse(volume)}
        seen = maps["bev"] = self.domain_adaptation(maps["bev_visual"])
        if isinstance(self.collapse, AlignedCollapse):
            maps["bev_spatial"] = self.collapse.spatial(volume)
            if self.training and config.assistant == "shared" and batch.depth is not None:
                true_volume = lift(features, self.true_depth(batch), grid)
                maps["bev_assistant"] = self.collapse.assistant(true_volume)
        if isinstance(self.fusion, SkipFusion):
            seen = self.fusion(maps["bev"], maps["bev_spatial"])
        elif self.fusion is not None:
            visual = maps["bev"] if config.fusion == "ffm" else maps["bev_visual"]
            seen = self.fusion(visual + maps["bev_spatial"])
        taps = {tap: FeatureMap(m, self.geometry) for tap, m in maps.items()}
        return anchor_outputs(self.head, seen, taps, {} if logits is None else {"depth": logits})

    def true_depth(self, batch: Batch) -> Float[Tensor, "b d h w"]:
        """The batch's depth as a distribution: all in one bin, or nowhere.

        Raises:
            ValueError: the batch has no depth.
        """
        if batch.depth is None:
            raise ValueError("a detector with input 'rgb+gt_depth' needs depth images; the data set gives none")
        return one_hot_depth(
            depth_bins(batch.depth, self.config.bins, self.config.trunk.stride), self.config.bins.count
        )

    @torch.no_grad()
    def encode(self, batch: Batch) -> CaDDNTargets:
        """Targets of the head and of the depth loss, as far as they are trained and the batch knows them."""
        config = self.config
        anchors = self.head.targets(batch) if config.detection_weight > 0 else None
        if config.input != "rgb" or config.depth_weight == 0 or batch.depth is None:
            return CaDDNTargets(anchors, None, None)
        known = (batch.depth > 0).flatten(1).any(1)
        return CaDDNTargets(anchors, depth_bins(batch.depth, config.bins, config.trunk.stride), known)

    def loss(self, outputs: Outputs, batch: Batch, targets: CaDDNTargets | None = None) -> dict[str, Tensor]:
        """The head's terms times ``detection_weight``, and ``depth`` times ``depth_weight``; terms that the settings or
        the batch leave out are absent."""
        targets = targets or self.encode(batch)
        terms: dict[str, Tensor] = {}
        if targets.anchors is not None:
            found = self.head.losses(outputs.predictions, targets.anchors)
            terms |= {name: self.config.detection_weight * value for name, value in found.items()}
        if targets.depth_bins is not None and targets.depth_known is not None:
            loss = depth_focal_loss(outputs.predictions["depth"], targets.depth_bins, targets.depth_known)
            terms["depth"] = self.config.depth_weight * loss
        return terms

    @torch.no_grad()
    def decode(self, outputs: Outputs, batch: Batch) -> list[Boxes3D]:
        return self.head.detections(outputs.predictions, batch)

    def decode_slots(self, outputs: Outputs, batch: Batch) -> BoxSlots:
        """``decode`` of the best ``SLOTS`` of layers/heads/anchor_head.py, without ``box2d`` and ``alpha``."""
        return self.head.detection_slots(outputs.predictions, batch)


# --------------------------------------------------------------------------------------------------- released weights


def released_form(config: CaDDNConfig) -> ReleasedForm:
    """OpenPCDet's names, as Cc-Hy/CMKD saves its image network, and hoiliu-0801/MonoTAKD where maps are aligned.

    Raises:
        UserError: the network fuses maps in a way that none of them knows.
    """
    if config.fusion == "skip" or config.fusion != "none" and config.fusion_norm != "shared":
        raise UserError(
            f"no authors' code has a network with fusion {config.fusion!r} and fusion_norm {config.fusion_norm!r}"
        )
    unused = _unused_in_released(config) if config.spatial_alignment else {}
    names = {
        "vfe.ffn.ddn.model": "trunk", "vfe.ffn.channel_reduce": "channel_reduce", "map_to_bev_module": "collapse",
        FUSION_BLOCK: "fusion",
    }  # fmt: skip
    return ReleasedForm(
        RELEASED_NAMES | names, dict.fromkeys(unused, NEVER_USED) | dict.fromkeys(RELEASED_STEPS, OF_TRAINING),
        unused=RELEASED_STEPS | unused,
    )  # fmt: skip


def released_settings(config: CaDDNConfig, weights: Weights) -> CaDDNConfig:
    """The settings with those parts of MonoTAKD's that are among an authors' weights.

    Nothing is fused, whatever the file holds: in the released forward pass the head sees the adapted map alone.
    """

    def has(block: str) -> bool:
        return any(name.startswith(f"{block}.") for name in weights)

    return replace(
        config, spatial_alignment=has(ALIGNED_BLOCK), assistant="shared" if has(ASSISTANT_BLOCK) else "none",
        fusion="none", fusion_norm="shared",
    )  # fmt: skip


def _unused_in_released(config: CaDDNConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what MonoTAKD's code builds and saves beside the parts that the settings ask for."""
    channels = config.bev_channels
    shapes: dict[str, tuple[int, ...]] = {
        f"{UNCALLED_GATE}.conv_mask.weight": (1, channels, 1, 1), f"{UNCALLED_GATE}.conv_mask.bias": (1,),
    }  # fmt: skip
    for branch in (f"{UNCALLED_GATE}.channel_add_conv", f"{UNCALLED_GATE}.channel_mul_conv"):
        for layer in (0, 3):
            shapes |= {f"{branch}.{layer}.weight": (channels, channels, 1, 1), f"{branch}.{layer}.bias": (channels,)}
        shapes |= {f"{branch}.1.{name}": (channels, 1, 1) for name in ("weight", "bias")}
    with torch.device("meta"):
        if config.assistant == "none":
            block = PointwiseBlock(config.lift_channels * config.voxels.shape[2], channels)
            shapes |= _shapes(ASSISTANT_BLOCK, block)
        if config.fusion == "none":
            shapes |= _shapes(FUSION_BLOCK, FeatureFusion(channels, norm="shared"))
    return shapes


def _shapes(name: str, module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{entry}": tuple(value.shape) for entry, value in module.state_dict().items()}
