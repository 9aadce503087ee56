"""VCD: a camera student imitates a camera teacher that is shown the LiDAR's depth, where objects are and came from.

VCD, NeurIPS 2023, arXiv:2310.15670; released code OpenDriveLab/Birds-eye-view-Perception nuScenes_playground/VCD,
mmdet3d/distiller/distillers/motion_distiller.py, combine_distiller.py, distiller/losses/, and configs/vcd/
MotionDistiller_convnext-r50-4motion.py.  Student and teacher build their ground maps S and T alike, for the teacher's
depth is as if it came from a camera; Y_f are heat maps of the labels of the moment (f = 0) and of those before.

    L = L_det + L_depth + .4 L_bev [+ L_occ]
    L_bev = sum (m S - m T')^2 / max(1, sum m)      m = max_f max_k Y_f;  T' = (T - mean) / deviation of each channel
    L_occ = sum ((O_S - O_T) (v + 1e-7))^2 / sum (v + 1e-7)
    O = sigmoid(sum of the depth probabilities that fall into a voxel) - 1/2;  v the objects' Gaussians in the voxels

All sums run over the batch, cells or voxels, and channels.  Only the teacher's map is standardised, by the batch.

As released, m counts squared, a batch without objects gives 0/0, and L_occ, which no released configuration has, lays
its frustum over the ground's cell numbers instead of over the image; its v has x and y exchanged.  The released data
set loads the boxes of earlier moments in the frame of the key frame.  Batches here hold the key frame's boxes alone, so
Y_f are drawn where the objects were by their velocity, f times ``frame_seconds`` before: an inference that holds for
objects that move evenly, and the same for those that stand.  ``motion_mask`` takes any list of heat maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from distill3d.data.surround import SurroundBatch
from distill3d.detectors.base import Detector, Outputs, Style
from distill3d.detectors.bevdepth import BEVDepth, BEVDepthConfig
from distill3d.distill.centre_responses import labelled_centres
from distill3d.distill.context import Context, comparable, refuse_absent_taps
from distill3d.distill.distances import Empty, channel_wise_divergence, kl_divergence, relative_to_cell
from distill3d.distill.ground_regions import at_size, joined, labelled_objects, moved_along, peak_region
from distill3d.distill.map_terms import standardised
from distill3d.distill.occupancy import object_volume, occupancy
from distill3d.distill.precision import full_precision
from distill3d.distill.style import StyledConfig, option
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.layers.ground.voxel_pooling import frustum, frustum_points
from distill3d.layers.heads.centre_head import CentreHeadConfig, centre_targets
from distill3d.layers.image.depth_net import depth_distribution
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.settings import Between, Count, Weight

#: How masked maps are compared; the released configuration has ``l2``.
Distance = Literal["l2", "l1", "relative_l2", "channel_wise", "kl"]
#: Softens the distributions of ``channel_wise`` and ``kl``.
TEMPERATURE = 1.0
#: Seconds between key frames of nuScenes.
KEY_FRAME_SECONDS = 0.5
#: What a voxel without an object counts.
VOXEL_FLOOR = 1e-7
#: 256 x 256 x 8 voxels.
VOXELS = VoxelGrid((-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), (0.4, 0.4, 1.0))


@dataclass(frozen=True)
class VCDConfig(StyledConfig):
    """Weights of the released configuration, and one option for each point where code and intention differ.

    A term of weight 0 is left out.
    """

    teacher: str | None = None  # its stage; None: the only one
    bev_weight: Weight = 0.4
    occupancy_weight: Weight = 0.0  # in no released configuration
    tap: str = "bev_neck"
    teacher_tap: str | None = None  # None: the tap of the same name
    past_frames: Count = 4  # moments before, where objects count as well
    frame_seconds: Annotated[float, Between(0, 1e3)] = KEY_FRAME_SECONDS
    distance: Distance = "l2"
    #: Whether the mask counts squared, in both terms; with other distances than ``l2`` maps are masked in any case.
    squared_mask: bool = option(released=True, intended=False, default=True)
    #: ``mean`` divides L_bev by the number of channels; the published weight goes with the sum.
    channels: Literal["sum", "mean"] = option(released="sum", intended="mean", default="sum")
    empty: Empty = option(released="nan", intended="zero", default="zero")  # L_bev of a batch without objects
    occupancy_form: Style = option(released="released", intended="intended", default="intended")
    voxels: VoxelGrid = VOXELS


def terms(config: VCDConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """L_bev and L_occ, as far as their weights are not 0.

    Raises:
        UserError: a tap is missing, or has other channels in the teacher.
    """
    other = config.teacher_tap or config.tap
    refuse_absent_taps("vcd", (config.tap,), (other,), student_channels, teacher_channels)
    if (ours := student_channels[config.tap]) != (theirs := teacher_channels[other]):
        raise UserError(
            f"vcd compares maps as they are: tap {config.tap!r} has {ours} channels in the student and {other!r} "
            f"{theirs} in the teacher; give both the same"
        )
    found: list[Term] = [BevTerm(config), OccupancyTerm(config)]
    return [term for term in found if term.weight != 0]


# ------------------------------------------------------------------------------------------------------------------ BEV


class BevTerm(Term):
    """L_bev, see ``motion_loss``.

    Couples the batch: a sum over its cells divided by its sum of masks, and the batch's statistics of the teacher's
    map; under data parallelism each process has its own.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: VCDConfig) -> None:
        super().__init__("bev", config.bev_weight)
        self.config = config

    def forward(self, context: Context) -> Tensor:
        config = self.config
        student, teacher = comparable(config.tap, context.student, context.named(config.teacher), config.teacher_tap)
        mask = at_size(motion_mask(heatmaps(context, config)), (student.tensor.shape[-2], student.tensor.shape[-1]))
        return motion_loss(student.tensor, teacher.tensor.detach(), mask, config).float()


def heatmaps(context: Context, config: VCDConfig) -> list[Float[Tensor, "b k y x"]]:
    """Y_f: of the labels, and of the same objects where they were in each of the ``past_frames`` before.

    Raises:
        UserError: there are no labels, or the student has no centre head.
    """
    found = [labelled_centres(context, "vcd").heatmap]
    if config.past_frames:
        objects, (head, classes) = labelled_objects(context, "vcd"), drawing_head(context)
        moments = range(1, config.past_frames + 1)
        before = joined([moved_along(objects, -config.frame_seconds * moment) for moment in moments])
        found += centre_targets(head, before, classes).heatmap.chunk(config.past_frames)
    return found


def motion_mask(maps: list[Float[Tensor, "b k y x"]]) -> Float[Tensor, "b 1 y x"]:
    """m: the largest over classes and moments."""
    return peak_region(maps)


@full_precision
def motion_loss(
    student: Float[Tensor, "b c y x"], teacher: Float[Tensor, "b c y x"], mask: Float[Tensor, "b 1 y x"],
    config: VCDConfig,
) -> Float[Tensor, ""]:  # fmt: skip
    """The distance of m S and m T', summed over the batch, divided by max(1, sum m) [and by the channels].

    Without objects it is 0, or with ``empty`` ``nan`` 0/0.
    """
    factor = mask if config.squared_mask or config.distance != "l2" else mask.sqrt()
    distance = map_distance(factor * student, factor * standardised(teacher), config.distance)
    mass = mask.sum()
    divisor = mass if config.empty == "nan" else mass.clamp(min=1)
    return distance / divisor / (student.shape[1] if config.channels == "mean" else 1)


def map_distance(
    student: Float[Tensor, "b c y x"], teacher: Float[Tensor, "b c y x"], form: Distance,
    temperature: float = TEMPERATURE,
) -> Float[Tensor, ""]:  # fmt: skip
    """How far apart two maps are, summed over the batch, cells and channels.

    ``l2``: (S - T)^2; ``l1``: |S - T|; ``relative_l2``: (S - T)^2 of maps divided by the largest magnitude of each
    cell; ``channel_wise``: the cross-entropy of each channel's softmax over cells, times t^2 / (B C); ``kl``:
    KL(T || S) of each cell's softmax over channels, times t^2; t the temperature.

    Source: mmdet3d/distiller/losses/ (NormL2Loss, ChannelWiseDivergence, KLLoss), without their weights.
    """
    if form == "l2":
        return (student - teacher).square().sum()
    if form == "l1":
        return (student - teacher).abs().sum()
    if form == "relative_l2":
        return (relative_to_cell(student) - relative_to_cell(teacher)).square().sum()
    if form == "channel_wise":
        return channel_wise_divergence(student, teacher, temperature)
    s, t = (maps.movedim(1, -1) / temperature for maps in (student, teacher))
    return kl_divergence(s, t).sum() * temperature**2


def drawing_head(context: Context) -> tuple[CentreHeadConfig, tuple[str, ...]]:
    """The student's head, by which heat maps are drawn, and the classes that labels index.

    Raises:
        UserError: it has none.
    """
    settings = getattr(context.student_detector, "config", None)
    head = getattr(settings, "head", None)
    if not isinstance(head, CentreHeadConfig):
        raise UserError("vcd draws where objects were as a centre head does: the student needs one, or past_frames 0")
    return head, getattr(settings, "classes", head.classes)


# ------------------------------------------------------------------------------------------------------------ occupancy


class OccupancyTerm(Term):
    """L_occ, see ``occupancy_loss``.

    Couples the batch: a sum over its voxels divided by its sum of masks; under data parallelism each process divides by
    its own.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: VCDConfig) -> None:
        super().__init__("occupancy", config.occupancy_weight)
        self.config = config

    def forward(self, context: Context) -> Tensor:
        config = self.config
        batch, objects = context.batch, labelled_objects(context, "vcd")
        if not isinstance(context.student_detector, BEVDepth):
            raise UserError("vcd compares occupancies of detectors like bevdepth: set occupancy_weight to 0")
        settings = context.student_detector.config
        stage = config.teacher or next(iter(context.teachers))
        depths = [
            depth_of(context.student, context.student_detector, batch, "student"),
            depth_of(context.named(config.teacher), context.teacher_detectors.get(stage), batch, "teacher").detach(),
        ]
        if depths[0].shape != depths[1].shape:
            shapes = [tuple(d.shape[1:]) for d in depths]
            raise UserError(
                f"vcd: depths have {shapes[0]} bins and cells in the student and {shapes[1]} in the teacher"
            )
        points = lifted_points(batch, settings, (depths[0].shape[-2], depths[0].shape[-1]), config.occupancy_form)
        student, teacher = (
            occupancy(d.unflatten(0, points.shape[:2]), points, config.voxels, config.occupancy_form) for d in depths
        )
        rows, columns = settings.head.cells
        volume = object_volume(objects, config.voxels, config.occupancy_form, (columns, rows))
        return occupancy_loss(student, teacher, volume, config.squared_mask).float()


def depth_of(outputs: Outputs, detector: Detector | None, batch: SurroundBatch, who: str) -> Float[Tensor, "n d h w"]:
    """The distribution over depth bins by which a detector lifts.

    Raises:
        UserError: it has none.
    """
    if "depth" in outputs.predictions:
        return depth_distribution(outputs.predictions["depth"])
    if not isinstance(detector, BEVDepth):
        raise UserError(f"vcd compares depths: the {who} lifts by none; set occupancy_weight to 0")
    return detector.true_depth(batch)


@torch.no_grad()
def lifted_points(
    batch: SurroundBatch, settings: BEVDepthConfig, cells: tuple[int, int], form: Style
) -> Float[Tensor, "b n d h w 3"]:
    """Where (m) each of the ``cells`` (rows, columns) of the key frame's lifted maps lies at each depth.

    ``released`` spreads them over the numbers of the ground's cells, 0 to 127, in place of the image's pixels.
    """
    assert batch.images is not None
    height, width = batch.images.shape[-2:]
    stride = height // cells[0]
    at = frustum((width, height), stride, settings.bins, settings.positions, batch.intrinsics.device)
    if form == "released":
        rows, columns = settings.head.cells
        at = spread_over(at, (columns, rows))
    key = (batch.intrinsics[:, 0], batch.camera_to_ego[:, 0])
    return frustum_points(at, batch.image_affine, *key, batch.bev_affine)


def spread_over(frustum: Float[Tensor, "d h w 4"], size: tuple[int, int]) -> Float[Tensor, "d h w 4"]:
    """The frustum whose columns run from 0 to ``size[0]`` - 1 and whose rows from 0 to ``size[1]`` - 1."""
    height, width = frustum.shape[1:3]
    spread = frustum.clone()
    spread[..., 0] = torch.linspace(0, size[0] - 1, width, device=frustum.device)
    spread[..., 1] = torch.linspace(0, size[1] - 1, height, device=frustum.device)[:, None]
    return spread


@full_precision
def occupancy_loss(
    student: Float[Tensor, "b i j k"], teacher: Float[Tensor, "b i j k"], volume: Float[Tensor, "b i j k"],
    squared_mask: bool = True,
) -> Float[Tensor, ""]:  # fmt: skip
    """sum ((O_S - O_T) v)^2 / sum v with v the volume raised by ``VOXEL_FLOOR``; v once where it is not squared."""
    mask = volume + VOXEL_FLOOR
    squares = (student - teacher).square()
    return (squares * (mask.square() if squared_mask else mask)).sum() / mask.sum()
