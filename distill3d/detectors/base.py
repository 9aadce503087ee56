"""The contract of every detector: named feature maps out, supervised terms by name, boxes back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from distill3d.boxes import Boxes3D, BoxSlots
from distill3d.data.batching import picked
from distill3d.data.sample import Batch
from distill3d.data.surround import SurroundBatch
from distill3d.layers.image.roi import RoISlots
from distill3d.layers.points.voxels import VoxelGrid

#: What a detector is given: the images of single cameras, or surround views.
BatchT = TypeVar("BatchT", Batch, SurroundBatch)
#: What a detector looks at.  A teacher is the same class as its student with another input.
Modality = Literal[
    "rgb", "depth", "points", "rgb+gt_depth", "rgb+object_depth", "rgb+points", "labels", "instances"
]  # fmt: skip
#: Inputs for which depth images, a surround view's pictures and scans are read.
DEPTH_INPUTS = {"depth", "rgb+gt_depth"}
CAMERA_INPUTS = {"rgb", "rgb+gt_depth", "rgb+object_depth", "rgb+points"}
POINT_INPUTS = {"points", "rgb+points"}
#: ``released`` reproduces the authors' code, quirks included; ``intended`` is what the paper means.
Style = Literal["released", "intended"]


@dataclass(frozen=True)
class ImageGeometry:
    """Cells of ``stride`` canvas pixels; cell (0, 0) begins at canvas pixel (0, 0)."""

    stride: int


@dataclass(frozen=True)
class BevGeometry:
    """Cells on the ground: ``extent`` = (x min, y min, x max, y max) in m of ``frame``, square ``cell`` in m.

    ``axes`` names which ground axes the tensor's last two dimensions run along.
    """

    extent: tuple[float, float, float, float]
    cell: float
    frame: Literal["lidar", "ego", "camera"] = "lidar"
    axes: tuple[str, str] = ("y", "x")


def bev_geometry(grid: VoxelGrid, stride: int) -> BevGeometry:
    """Where the cells lie of a map with one cell for ``stride`` x ``stride`` of the grid's.

    Raises:
        ValueError: cells are not square on the ground, or the grid is no multiple of the stride.
    """
    nx, ny, _ = grid.shape
    if grid.cell[0] != grid.cell[1]:
        raise ValueError(f"voxels must be square on the ground, these are {grid.cell[:2]} m")
    if nx % stride or ny % stride:
        raise ValueError(f"a grid of {nx} x {ny} voxels is no multiple of the stride {stride}")
    x0, y0, _, x1, y1, _ = grid.extent
    return BevGeometry((x0, y0, x1, y1), round(grid.cell[0] * stride, 6))


@dataclass(frozen=True)
class FeatureMap:
    """A feature tensor (B, C, H, W) together with where its cells lie."""

    tensor: Float[Tensor, "b c h w"]
    geometry: ImageGeometry | BevGeometry


@dataclass
class Outputs:
    """What a forward pass gives: taps for distillation, and raw heads for loss and decode."""

    features: dict[str, FeatureMap] = field(default_factory=dict)  # e.g. "backbone_8", "neck_4"
    predictions: dict[str, Tensor] = field(default_factory=dict)  # e.g. "heatmap" (B, 3, H, W), raw logits
    rois: RoISlots | None = None  # where a two-stage detector looked; its predictions ``roi_...`` are (B, K, ...)

    def of_images(self, rows: list[int]) -> Outputs:
        """The outputs of some images of the batch, in ascending order, alone."""
        rois = None if self.rois is None else self.rois.of_images(rows)
        return Outputs(picked(self.features, rows), picked(self.predictions, rows), rois)


class Detector(nn.Module, ABC, Generic[BatchT]):
    """Base of all detectors. Subclasses set ``config`` and implement the four methods.

    ``encode`` turns raw boxes into this detector's own targets, once per step; ``loss`` and distillation terms share
    them.
    """

    config: Any
    #: The name in cards, checkpoints and recipes.
    name: str
    #: Channels of every tap that ``forward`` offers, e.g. {"backbone_8": 128, "neck_4": 64}.
    tap_channels: dict[str, int]
    #: Whether its own loss leaves out, by ``batch.labelled``, what images without labels cannot be held against, for a
    #: part of it asks for no label.  The loss of other detectors is asked of labelled images alone.
    parts_labelled: ClassVar[bool] = False

    @classmethod
    def also_trained_on(cls, config: Any) -> frozenset[Modality]:
        """What training looks at beside the input: the data set gives it, and nobody needs it after training."""
        return frozenset()

    @abstractmethod
    def forward(self, batch: BatchT) -> Outputs:
        """Feature maps and raw predictions of a batch."""

    def forward_at(self, batch: BatchT, targets: Any) -> Outputs:
        """``forward`` where the objects are known, for training and for teachers; ``loss`` takes these outputs.

        Two-stage detectors look at the targets' slots instead of at their own peaks; for others nothing changes.
        """
        return self(batch)

    @abstractmethod
    def encode(self, batch: BatchT) -> Any:
        """This detector's training targets for the batch's objects (a dataclass of tensors, no gradient)."""

    @abstractmethod
    def loss(self, outputs: Outputs, batch: BatchT, targets: Any = None) -> dict[str, Tensor]:
        """Supervised loss terms by name, each a scalar; ``targets`` as ``encode`` gave them, or None to encode here."""

    @abstractmethod
    def decode(self, outputs: Outputs, batch: BatchT) -> list[Boxes3D]:
        """Detections per image in the camera frame of the image file, with ``score``, ``box2d`` (px of the image file)
        and ``alpha``; of surround views in the key ego frame without augmentation, with ``score`` and ``velocity``."""

    def decode_slots(self, outputs: Outputs, batch: BatchT) -> BoxSlots:
        """``decode`` in fixed shapes and without a look at any value, so that it can be exported.

        Raises:
            NotImplementedError: this detector does not say; cameras' detectors do.
        """
        raise NotImplementedError(f"{self.name} decodes to as many boxes as it finds")

    def depth_log_scale(self, outputs: Outputs, batch: BatchT, targets: Any) -> Float[Tensor, "b k"]:
        """How unsure the detector is of each object's depth: the log of the scale (m) of a Laplace distribution, in the
        slots of ``targets``; 0, which means nothing, in slots that are not trained.

        ``outputs`` are those of ``forward_at``.

        Raises:
            NotImplementedError: this detector does not say.
        """
        raise NotImplementedError(f"{self.name} predicts no uncertainty of depth")
