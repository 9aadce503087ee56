"""LabelDistill's label encoder: ground truth as the maps that would make a LiDAR detector's head say it.

LabelDistill, ECCV 2024; released code sanmin0312/LabelDistill labeldistill/models/labelencoder.py and
labeldistill/layers/backbones/label_backbone.py.  The encoder g is trained as an approximate inverse of the frozen neck
and head h of a CenterPoint: g* = argmin L_det(h(g(y)), y).  Its maps then teach a camera student what a detector would
make of perfect observations.

The training stage inherits neck and head from the CenterPoint's (``inherit``): modules and names are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from distill3d.boxes import NUSCENES_CLASSES
from distill3d.data.surround import SurroundBatch
from distill3d.detectors.base import BevGeometry, FeatureMap, Outputs, Style
from distill3d.detectors.centerpoint import (
    CenterPointConfig,
    CentreDetector,
    check_head,
    head_names,
    plain_convolutions,
)
from distill3d.detectors.centerpoint import tiny as tiny_centerpoint
from distill3d.detectors.released import OF_TRAINING, OTHER_NETWORKS, ReleasedForm
from distill3d.errors import UserError
from distill3d.layers.ground.bev_second import SECONDFPN, SECONDFPNConfig
from distill3d.layers.ground.label_raster import BOX_NUMBERS, LabelRaster, paint
from distill3d.layers.heads.centre_head import (
    CentreHead,
    CentreHeadConfig,
)
from distill3d.settings import Channels

#: Of the head's box loss: half on the velocity.
CODE_WEIGHTS = (*(1.0,) * 8, 0.5, 0.5)


@dataclass(frozen=True)
class LabelEncoderConfig:
    """Everything that makes one label encoder.  The defaults fit the CenterPoint of 0.1 m voxels, see ``inverse_of``.

    ``channels`` are of the maps that the neck joins; each has one cell for ``neck.strides`` x ``neck.strides`` of the
    head's.
    """

    input: Literal["labels"] = "labels"
    classes: tuple[str, ...] = NUSCENES_CLASSES  # of the data set, in its order: what labels index
    hidden: Channels = 256
    channels: tuple[Channels, ...] = (128, 256)
    neck: SECONDFPNConfig = field(default_factory=SECONDFPNConfig)
    head: CentreHeadConfig = field(default_factory=lambda: CentreHeadConfig(code_weights=CODE_WEIGHTS))
    # released versus intended
    clip_border: bool = False  # paint what lies beyond the last row or column onto it
    frozen_norm: Literal["eval", "train"] = "eval"  # batch norm of the frozen neck and head during training

    @classmethod
    def styled(cls, style: Style, **fields: Any) -> LabelEncoderConfig:
        """A configuration with every released-versus-intended row set by ``style``; ``fields`` override."""
        rows = {
            "released": {"clip_border": True, "frozen_norm": "train"},
            "intended": {"clip_border": False, "frozen_norm": "eval"},
        }[style]
        return cls(**{**rows, **fields})


def inverse_of(teacher: CenterPointConfig, **fields: Any) -> LabelEncoderConfig:
    """The settings that fit a teacher's neck and head; ``fields`` override."""
    head = replace(teacher.head, code_weights=CODE_WEIGHTS)
    own = {"classes": teacher.classes, "channels": teacher.backbone.channels, "neck": teacher.neck, "head": head}
    return LabelEncoderConfig(**{**own, **fields})


def tiny(**fields: Any) -> LabelEncoderConfig:
    """The small configuration, for ``centerpoint.tiny()``; ``fields`` override."""
    return inverse_of(tiny_centerpoint(), **{"hidden": 64, **fields})


# -------------------------------------------------------------------------------------------------------------- network


class LabelBackbone(nn.Module):
    """Painted boxes -> a map per level.

    Per cell two MLPs, of box and class, are added and a third follows; then a residual block, and for each level a
    convolution and a layer norm over the whole map.  Cells without a box hold the same vector everywhere, which is not
    zero.  The layer norms have weights for every cell, so a network fits one size of map.  State-dict names are those
    of the released ``LabelBackbone``.

    Args:
        cells: of the map along y and x, multiples of all strides.
    """

    def __init__(
        self, classes: int, hidden: int, channels: tuple[int, ...], strides: tuple[int, ...], cells: tuple[int, int]
    ) -> None:
        super().__init__()
        from timm.layers.mlp import Mlp
        from timm.models.resnet import BasicBlock

        self.mlp_box = Mlp(BOX_NUMBERS, hidden, hidden, act_layer=nn.ReLU)
        self.mlp_label = Mlp(classes, hidden, hidden, act_layer=nn.ReLU)
        self.mlp2 = Mlp(hidden, hidden, hidden, act_layer=nn.ReLU)
        self.ln2 = nn.LayerNorm(hidden)
        self.conv1 = BasicBlock(hidden, hidden)
        self.conv_blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(hidden, c, 3, stride, padding=1, padding_mode="replicate"),
                nn.LayerNorm([c, cells[0] // stride, cells[1] // stride]),
                nn.ReLU(inplace=True),
            )
            for c, stride in zip(channels, strides, strict=True)
        )

    def forward(self, raster: LabelRaster) -> list[Tensor]:
        """The levels (B, C, Y / stride, X / stride).  Each box is encoded once, not in every cell that it covers."""
        return self.levels(F.embedding(raster.index, self.embed(raster.box_rows, raster.class_rows)))

    def embed(self, box: Float[Tensor, "*n 9"], onehot: Float[Tensor, "*n k"]) -> Float[Tensor, "*n hidden"]:
        """Box vectors and one-hot classes as hidden vectors; those of nothing are all 0."""
        return self.ln2(self.mlp2(self.mlp_box(box) + self.mlp_label(onehot)))

    def levels(self, embedded: Float[Tensor, "b y x hidden"]) -> list[Tensor]:
        """The levels of a map of hidden vectors."""
        features = self.conv1(embedded.permute(0, 3, 1, 2))
        return [block(features) for block in self.conv_blocks]


# ------------------------------------------------------------------------------------------------------------- detector


class LabelEncoder(CentreDetector):
    """The encoder in front of a frozen neck and head; it sees the batch's annotations and nothing else.

    Taps, in the (augmented) key ego frame: ``bev_0``, ``bev_1``, ..., the encoder's maps, all >= 0, on the cells of a
    CenterPoint's taps of these names.  Predictions are the head's.

    Raises:
        ValueError: the head does not fit the neck or the data set's classes, or the map's cells do not fit the levels.
    """

    name = "label_encoder"
    config: LabelEncoderConfig

    def __init__(self, config: LabelEncoderConfig) -> None:
        super().__init__()
        self.config = config
        head, strides = config.head, tuple(int(stride) for stride in config.neck.strides)
        if strides != config.neck.strides or any(cells % stride for cells in head.cells for stride in strides):
            raise ValueError(
                f"{head.cells} cells per side are no multiples of the neck's strides {config.neck.strides}"
            )
        levels = [BevGeometry(head.extent, round(head.cell * stride, 6), "ego") for stride in strides]
        check_head(head, levels, config.neck, config.classes)
        self.geometries = {f"bev_{i}": level for i, level in enumerate(levels)}
        self.neck = SECONDFPN(config.channels, config.neck).requires_grad_(False)
        self.encoder = LabelBackbone(len(head.classes), config.hidden, config.channels, strides, head.cells)
        self.head = CentreHead(self.neck.channels_out, head).requires_grad_(False)
        self.tap_channels = dict(zip(self.geometries, config.channels, strict=True))
        self.train(self.training)

    def train(self, mode: bool = True) -> LabelEncoder:
        """As every module, but neck and head keep to their statistics unless ``frozen_norm`` says otherwise."""
        super().train(mode)
        for module in (self.neck, self.head):
            module.train(mode and self.config.frozen_norm == "train")
        return self

    def raster(self, batch: SurroundBatch) -> LabelRaster:
        """The batch's objects of the head's classes, painted.

        Raises:
            UserError: the batch has no annotations.
        """
        if batch.objects is None:
            raise UserError("a detector with input 'labels' needs annotations; this split of the data set has none")
        config = self.config
        order = [config.classes.index(name) for name in config.head.classes]
        return paint(batch.objects, config.head.extent, config.head.cell, order, clip_border=config.clip_border)

    def forward(self, batch: SurroundBatch) -> Outputs:
        """Maps and raw predictions.

        Raises:
            UserError: the batch has no annotations.
        """
        levels = self.encoder(self.raster(batch))
        maps = zip(self.geometries.items(), levels, strict=True)
        features = {name: FeatureMap(tensor, geometry) for (name, geometry), tensor in maps}
        return Outputs(features, self.head(self.neck(levels)))


def released_form(config: LabelEncoderConfig) -> ReleasedForm:
    """sanmin0312/LabelDistill's names, in the label encoder's own file and in the student's.  Neck and head are those
    of the CenterPoint there."""
    others = ("backbone", "head", "centerpoint.pts_middle_encoder", "centerpoint.pts_backbone")
    dropped: dict[str, str] = dict.fromkeys(others, OTHER_NETWORKS)
    dropped |= dict.fromkeys(("distill_encoder_lidar", "distill_encoder_label"), OF_TRAINING)
    return ReleasedForm(
        renamed={"label_encoder": "encoder", "centerpoint.pts_neck": "neck",
                 **head_names("centerpoint.pts_bbox_head", config.head)},
        dropped=dropped,
        exchanged=plain_convolutions(config.neck),
    )  # fmt: skip
