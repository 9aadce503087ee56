"""CenterPoint: a LiDAR's points around the vehicle as a map of the ground, SECOND's 2D network, and a centre head.

Yin et al., "Center-based 3D Object Detection and Tracking", CVPR 2021, arXiv:2006.11275, as configured for nuScenes in
open-mmlab/mmdetection3d configs/_base_/models/centerpoint_voxel01_second_secfpn_nus.py and
centerpoint_pillar02_second_secfpn_nus.py, and as the teacher of sanmin0312/LabelDistill
(labeldistill/exps/nuscenes/labeldistill/centerpoint_vox01_128x128_20e_10sweeps.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from distill3d.boxes import NUSCENES_CLASSES, Boxes3D
from distill3d.data.surround import SurroundBatch
from distill3d.detectors.base import BevGeometry, Detector, FeatureMap, Outputs, bev_geometry
from distill3d.detectors.pointpillars import PillarFeatures, picture
from distill3d.detectors.released import ReleasedForm
from distill3d.detectors.second import finite_or_nowhere
from distill3d.errors import UserError
from distill3d.layers.ground.bev_second import (
    SECONDFPN,
    SECONDBlocks,
    SECONDBlocksConfig,
    SECONDFPNConfig,
    norm_relu,
)
from distill3d.layers.heads.centre_head import (
    BOX_BRANCHES,
    TINY_TASKS,
    CentreHead,
    CentreHeadConfig,
    CentreTargets,
    centre_detections,
    centre_losses,
    centre_targets,
    tiny_head,
)
from distill3d.layers.points.sparse_conv import SparseResNet, SparseResNetConfig, SparseTensor
from distill3d.layers.points.voxels import VoxelGrid, mean_of_points, voxelise
from distill3d.settings import Channels, Number

T = TypeVar("T")
#: Where the networks look (m, key ego frame).
RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
TINY_RANGE = (-38.4, -38.4, -5.0, 38.4, 38.4, 3.0)
#: Order and sign in which tianweiy/CenterPoint has a box's numbers.
DET3D_BOXES = {"dim": ((1, 0, 2), 1.0), "rot": ((1, 0), -1.0)}
#: Values of a point: x, y, z (m), intensity, time before the key frame (s).
POINT_VALUES, INTENSITY = 5, 3
#: Intensities are given from 0 to this.
FULL_INTENSITY = 255
#: Code weights with which mmdetection3d trains CenterPoint: little on the velocity.  LabelDistill fine-tunes with 0.5.
CODE_WEIGHTS = (*(1.0,) * 8, 0.2, 0.2)


@dataclass(frozen=True)
class VoxelEncoderConfig:
    """Voxel means and a sparse 3D network."""

    grid: VoxelGrid = VoxelGrid(RANGE, (0.1, 0.1, 0.2))
    max_points: Number = 10  # of a voxel
    train_voxels: Number = 90000  # of a sample
    test_voxels: Number = 120000
    network: SparseResNetConfig = SparseResNetConfig(
        inputs=POINT_VALUES, channels=(16, 32, 64, 128), outputs=128, block_bias=False
    )


@dataclass(frozen=True)
class PillarEncoderConfig:
    """Pillar features on a picture of the ground, and strided convolutions down to the map's cells.

    The released pillar network has three levels instead; this one gives maps of the voxel network's shapes.
    """

    grid: VoxelGrid = VoxelGrid(RANGE, (0.2, 0.2, 8.0))
    max_points: Number = 20  # of a pillar
    train_pillars: Number = 30000  # of a sample
    test_pillars: Number = 40000
    features: Channels = 64  # channels of a pillar
    channels: tuple[Channels, ...] = (128, 256)  # of the convolutions, each of stride 2
    #: Slots that batch norm sees: all, the empty ones too, as released, or those that hold a point.
    norm_slots: Literal["all", "filled"] = "all"


@dataclass(frozen=True)
class CenterPointConfig:
    """Everything that makes one CenterPoint.  The defaults are those of the voxel network at 0.1 m.

    Exactly one of ``voxels`` and ``pillars`` is given.
    """

    input: Literal["points"] = "points"
    classes: tuple[str, ...] = NUSCENES_CLASSES  # of the data set, in its order: what labels index
    voxels: VoxelEncoderConfig | None = field(default_factory=VoxelEncoderConfig)
    pillars: PillarEncoderConfig | None = None
    backbone: SECONDBlocksConfig = field(default_factory=SECONDBlocksConfig)
    neck: SECONDFPNConfig = field(default_factory=SECONDFPNConfig)
    head: CentreHeadConfig = field(default_factory=lambda: CentreHeadConfig(code_weights=CODE_WEIGHTS))
    intensity: Literal["raw", "unit"] = "raw"  # 0..255 as released, or 0..1

    def __post_init__(self) -> None:
        check_encoders(self.voxels, self.pillars, "CenterPoint")


def check_encoders(voxels: VoxelEncoderConfig | None, pillars: PillarEncoderConfig | None, who: str) -> None:
    """Whether a detector, ``who``, is to look at points in one way.

    Raises:
        UserError: it is not.
    """
    if (voxels is None) == (pillars is None):
        raise UserError(f"{who} looks at voxels or at pillars: give exactly one of the two settings")


def with_pillars(**fields: Any) -> CenterPointConfig:
    """The cheaper variant on pillars of 0.2 m, with the same maps after the backbone; ``fields`` override."""
    return CenterPointConfig(**{"voxels": None, "pillars": PillarEncoderConfig(), **fields})


def tiny(**fields: Any) -> CenterPointConfig:
    """The small configuration: pillars of 0.4 m, a map of 96 x 96 cells of 0.8 m, four classes; ``fields`` override."""
    small = {
        "classes": tuple(name for task in TINY_TASKS for name in task), "voxels": None,
        "pillars": PillarEncoderConfig(
            VoxelGrid(TINY_RANGE, (0.4, 0.4, 8.0)), max_points=16, features=32, channels=(48,)
        ),
        "backbone": SECONDBlocksConfig(layers=(2, 2), channels=(48, 64)),
        "neck": SECONDFPNConfig(channels=(48, 48)), "head": tiny_head(),
    }  # fmt: skip
    return CenterPointConfig(**{**small, **fields})


#: For ``tiny(pillars=None, voxels=TINY_VOXELS)``: voxels of 0.2 m.
TINY_VOXELS = VoxelEncoderConfig(
    VoxelGrid(TINY_RANGE, (0.2, 0.2, 0.4)),
    network=SparseResNetConfig(
        inputs=POINT_VALUES, channels=(16, 24, 32), strides=(2, 2), padding_z=(1, 0), blocks=1, outputs=32,
        block_bias=False,
    ),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- encoders


class VoxelEncoder(nn.Module):
    """Points -> map whose channels are c * Z + z, where Z layers are left; >= 0 and mostly exact zeros."""

    def __init__(self, config: VoxelEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.geometry = replace(bev_geometry(config.grid, config.network.stride), frame="ego")
        self.network = SparseResNet(config.network)
        self.channels_out = config.network.bev_channels(config.grid.sparse_shape)

    def forward(self, scans: list[Float[Tensor, "_ 5"]]) -> Float[Tensor, "b c y x"]:
        config = self.config
        budget = config.train_voxels if self.training else config.test_voxels
        voxels = voxelise(scans, config.grid, config.max_points, budget)
        means = mean_of_points(voxels)
        return self.network(SparseTensor(means, voxels.coords, config.grid.sparse_shape, voxels.batch_size))


class PillarEncoder(nn.Module):
    """Points -> map, through pillar features and convolutions of stride 2."""

    def __init__(self, config: PillarEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.geometry = replace(bev_geometry(config.grid, 2 ** len(config.channels)), frame="ego")
        self.features = PillarFeatures(config.grid, config.features, config.norm_slots, POINT_VALUES)
        widths = zip((config.features, *config.channels), config.channels, strict=False)
        self.convs = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(inner, outer, 3, 2, padding=1, bias=False), *norm_relu(outer))
                for inner, outer in widths
            )
        )
        self.channels_out = (config.features, *config.channels)[-1]

    def forward(self, scans: list[Float[Tensor, "_ 5"]]) -> Float[Tensor, "b c y x"]:
        config = self.config
        budget = config.train_pillars if self.training else config.test_pillars
        cells = voxelise(scans, config.grid, config.max_points, budget)
        return self.convs(picture(self.features(cells), cells, config.grid))


def point_encoder(
    voxels: VoxelEncoderConfig | None, pillars: PillarEncoderConfig | None
) -> VoxelEncoder | PillarEncoder:
    """The encoder of the one that is given."""
    if voxels is not None:
        return VoxelEncoder(voxels)
    assert pillars is not None
    return PillarEncoder(pillars)


# ------------------------------------------------------------------------------------------------------------- detector


class CentreDetector(Detector[SurroundBatch]):
    """What detectors share that learn from nothing but a centre head's targets."""

    def encode(self, batch: SurroundBatch) -> CentreTargets:
        """Targets of the batch's objects.

        Raises:
            UserError: the batch has no annotations.
        """
        if batch.objects is None:
            raise UserError("training needs annotations; this split of the data set has none")
        return centre_targets(self.config.head, batch.objects, self.config.classes)

    def loss(self, outputs: Outputs, batch: SurroundBatch, targets: CentreTargets | None = None) -> dict[str, Tensor]:
        return centre_losses(outputs.predictions, targets or self.encode(batch), self.config.head)

    def decode(self, outputs: Outputs, batch: SurroundBatch) -> list[Boxes3D]:
        return centre_detections(outputs.predictions, batch.bev_affine, self.config.classes, self.config.head)


class CenterPoint(CentreDetector):
    """Encoder, SECOND's blocks and neck, and the centre head.

    Taps, in the (augmented) key ego frame, all >= 0: ``bev_low``, the encoder's map; ``bev_0``, ``bev_1``, ..., the
    maps of the backbone's levels before the neck, also as ``bev_stage1``, ``bev_stage2``, ..., as cameras' detectors
    call theirs; and ``bev_neck``, what the head sees.  Predictions are the head's.

    Raises:
        ValueError: the head's map is not what the neck gives, or the head has a class that the data set lacks.
    """

    name = "centerpoint"
    config: CenterPointConfig

    def __init__(self, config: CenterPointConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = point_encoder(config.voxels, config.pillars)
        levels = level_geometries(self.encoder.geometry, config.backbone)
        check_head(config.head, list(levels.values()), config.neck, config.classes)
        self.geometries = {
            "bev_low": self.encoder.geometry, **levels, **by_stage(levels),
            "bev_neck": replace(self.encoder.geometry, cell=config.head.cell),
        }  # fmt: skip
        self.backbone = SECONDBlocks(self.encoder.channels_out, config.backbone)
        self.neck = SECONDFPN(config.backbone.channels, config.neck)
        self.head = CentreHead(self.neck.channels_out, config.head)
        channels = dict(zip(levels, config.backbone.channels, strict=True))
        self.tap_channels = {
            "bev_low": self.encoder.channels_out, **channels, **by_stage(channels), "bev_neck": self.neck.channels_out,
        }  # fmt: skip

    def forward(self, batch: SurroundBatch) -> Outputs:
        """Maps and raw predictions.

        Raises:
            ValueError: the batch has no points.
        """
        low = self.encoder(ego_scans(batch, self.config.intensity))
        levels = self.backbone(low)
        neck = self.neck(levels)
        named = {f"bev_{i}": level for i, level in enumerate(levels)}
        maps = {"bev_low": low, **named, **by_stage(named), "bev_neck": neck}
        features = {name: FeatureMap(tensor, self.geometries[name]) for name, tensor in maps.items()}
        return Outputs(features, self.head(neck))


def by_stage(levels: dict[str, T]) -> dict[str, T]:
    """What is known of ``bev_0``, ``bev_1``, ... under the names ``bev_stage1``, ``bev_stage2``, ..."""
    return {f"bev_stage{i}": value for i, value in enumerate(levels.values(), start=1)}


def level_geometries(geometry: BevGeometry, config: SECONDBlocksConfig) -> dict[str, BevGeometry]:
    """Where the cells of ``bev_0``, ``bev_1``, ... lie, for blocks on a map of this geometry.

    Raises:
        ValueError: the map's sides are no multiples of the strides.
    """
    x0, y0, x1, y1 = geometry.extent
    stride = math.prod(config.strides)
    sides = [round((high - low) / geometry.cell) for low, high in ((x0, x1), (y0, y1))]
    if any(side % stride for side in sides):
        raise ValueError(f"a map of {sides[0]} x {sides[1]} cells is no multiple of the backbone's stride {stride}")
    cells = (geometry.cell * math.prod(config.strides[: i + 1]) for i in range(len(config.strides)))
    return {f"bev_{i}": replace(geometry, cell=round(cell, 6)) for i, cell in enumerate(cells)}


def check_head(
    head: CentreHeadConfig, levels: list[BevGeometry], neck: SECONDFPNConfig, classes: tuple[str, ...]
) -> None:
    """Whether a head fits what the neck makes of the levels, and the data set's classes.

    Raises:
        ValueError: it does not.
    """
    for level, stride in zip(levels, neck.strides, strict=False):  # the neck itself refuses another number
        cell = level.cell / stride
        if not math.isclose(cell, head.cell, rel_tol=1e-6) or level.extent != head.extent:
            raise ValueError(
                f"the head's map has cells of {head.cell} m over {head.extent} m, "
                f"but a level comes out of the neck with cells of {cell} m over {level.extent} m"
            )
    unknown = [name for name in head.classes if name not in classes]
    if unknown:
        raise ValueError(f"the head has the class {unknown[0]!r}, the data set only {', '.join(classes)}")


def ego_scans(batch: SurroundBatch, intensity: Literal["raw", "unit"]) -> list[Float[Tensor, "_ 5"]]:
    """The batch's points; those with a value that is not finite lie nowhere (NaN).

    Raises:
        ValueError: the batch has no points.
    """
    if batch.points is None:
        raise ValueError("a detector with input 'points' needs scans; the data set gives none")
    scale = batch.points[0].new_ones(POINT_VALUES)
    if intensity == "unit":
        scale[INTENSITY] = 1 / FULL_INTENSITY
    return [finite_or_nowhere(scan) * scale for scan in batch.points]


# ------------------------------------------------------------------------------------------------------ authors' names


def released_form(config: CenterPointConfig) -> ReleasedForm:
    """open-mmlab/mmdetection3d's names of the voxel network; LabelDistill's teacher has them too."""
    network, sparse, stages = _network(config), "pts_middle_encoder", "pts_middle_encoder.encoder_layers.encoder_layer"
    last = len(network.channels)
    # Of their stages the strided convolution is the last layer, of ours the first of the next.
    blocks = {f"{stages}{i}.{j}": f"encoder.network.conv{i}.{j + (i > 1)}"
              for i in range(1, last + 1) for j in range(network.blocks)}  # fmt: skip
    strided = {f"{stages}{i}.{network.blocks}": f"encoder.network.conv{i + 1}.0" for i in range(1, last)}
    # Padding is a layer of ours and a setting of theirs.
    layers = {f"pts_backbone.blocks.{i}.{j}": f"backbone.blocks.{i}.{j + 1}"
              for i, more in enumerate(config.backbone.layers) for j in range(3 * (more + 1))}  # fmt: skip
    return ReleasedForm(
        renamed={sparse: "encoder.network", **blocks, **strided, **layers, "pts_neck": "neck",
                 **head_names("pts_bbox_head", config.head)},
        exchanged=plain_convolutions(config.neck),
    )  # fmt: skip


def det3d_form(config: CenterPointConfig) -> ReleasedForm:
    """tianweiy/CenterPoint's names of the voxel network, whose convolutions have biases in front of batch norms.

    Its boxes have the size (width, length, height) and the yaw -yaw - 90 degrees, so that its sine is minus our cosine
    and its cosine minus our sine (det3d/datasets/nuscenes/nusc_common.py there).
    """
    network, encoder = _network(config), "encoder.network"
    # In a stage that begins with a strided convolution, their list holds its norm and activation beside it.
    begins = {f"backbone.conv{i}.{j}": f"{encoder}.conv{i}.0.{j}"
              for i in range(2, len(network.channels) + 1) for j in range(2)}  # fmt: skip
    blocks = {f"backbone.conv{i}.{j + 3}": f"{encoder}.conv{i}.{j + 1}"
              for i in range(2, len(network.channels) + 1) for j in range(network.blocks)}  # fmt: skip
    heat = {f"bbox_head.tasks.{i}.hm": f"head.tasks.{i}.heatmap" for i in range(len(config.head.tasks))}
    biases = _det3d_biases(config)
    return ReleasedForm(
        renamed={"backbone": encoder, "backbone.extra_conv": f"{encoder}.conv_out", **begins, **blocks,
                 "neck.blocks": "backbone.blocks", "bbox_head.shared_conv": "head.shared",
                 "bbox_head.tasks": "head.tasks", **heat},
        exchanged=plain_convolutions(config.neck),
        reordered={
            f"head.tasks.{i}.{branch}.3.{kind}": how
            for i in range(len(config.head.tasks)) for branch, how in DET3D_BOXES.items() for kind in ("weight", "bias")
        },
        prepared=lambda theirs: _without_biases(theirs, {bias: norm for bias, (norm, _) in biases.items()}),
        unused={bias: (channels,) for bias, (_, channels) in biases.items()},
    )  # fmt: skip


def head_names(theirs: str, head: CentreHeadConfig) -> dict[str, str]:
    """The centre head's names in code on mmdetection3d, where it is called ``theirs``, and ours."""
    layers = {"0.conv": "0", "0.bn": "1", "1": "3"}
    return {
        f"{theirs}.shared_conv.conv": "head.shared.0", f"{theirs}.shared_conv.bn": "head.shared.1",
    } | {
        f"{theirs}.task_heads.{i}.{branch}.{layer}": f"head.tasks.{i}.{branch}.{ours}"
        for i in range(len(head.tasks)) for branch in (*BOX_BRANCHES, "heatmap") for layer, ours in layers.items()
    }  # fmt: skip


def plain_convolutions(neck: SECONDFPNConfig) -> tuple[str, ...]:
    """Weights of the neck that the authors' CenterPoints have as plain 1 x 1 convolutions, and we as transposed."""
    return tuple(f"neck.deblocks.{i}.0.weight" for i, stride in enumerate(neck.strides) if stride == 1)


def _network(config: CenterPointConfig) -> SparseResNetConfig:
    if config.voxels is None:
        raise UserError("released names are known of CenterPoint on voxels only, not on pillars")
    return config.voxels.network


def _det3d_biases(config: CenterPointConfig) -> dict[str, tuple[str, int]]:
    """The biases in front of batch norms, with the norm that follows each and its channels."""
    network, head = _network(config), config.head
    found = {}
    for i, channels in enumerate(network.channels, 1):
        for block in range(network.blocks):
            name = f"backbone.conv{i}.{block + (3 if i > 1 else 0)}"
            found |= {f"{name}.conv{k}.bias": (f"{name}.bn{k}", channels) for k in (1, 2)}
    found["bbox_head.shared_conv.0.bias"] = ("bbox_head.shared_conv.1", head.shared_channels)
    for i in range(len(head.tasks)):
        for branch in (*BOX_BRANCHES, "hm"):
            name = f"bbox_head.tasks.{i}.{branch}"
            found[f"{name}.0.bias"] = (f"{name}.1", head.branch_channels)
    return found


def _without_biases(theirs: dict[str, Tensor], norms: dict[str, str]) -> dict[str, Tensor]:
    """Biases taken off the running means of the norms behind them: the same function, exactly."""
    kept = {name: value for name, value in theirs.items() if name not in norms}
    for bias, norm in norms.items():
        mean = f"{norm}.running_mean"
        if bias in theirs and mean in kept and kept[mean].shape == theirs[bias].shape:
            kept[mean] = kept[mean] - theirs[bias]
    return kept
