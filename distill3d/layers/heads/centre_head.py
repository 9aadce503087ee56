"""The centre head of surround-view detectors: a heat map of box centres on the ground, and the boxes at the centres.

Yin et al., "Center-based 3D Object Detection and Tracking", CVPR 2021, arXiv:2006.11275.  Sources:
open-mmlab/mmdetection3d mmdet3d/models/dense_heads/centerpoint_head.py and task_modules/coders/
centerpoint_bbox_coders.py; Megvii-BaseDetection/BEVDepth bevdepth/layers/heads/bev_depth_head.py;
sanmin0312/LabelDistill labeldistill/layers/heads/kd_head.py.

Classes are split into T *tasks*, each with branches of its own.  K counts the classes of all tasks, one task after the
other.  A box is written as ten numbers: the centre's offset from its cell's lower corner (cells), z (m), the logarithms
of length, width and height (m), sine and cosine of the yaw, and the velocity (m/s).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distill3d.boxes import Boxes3D, BoxSlots
from distill3d.data.surround import SurroundObjectBatch
from distill3d.errors import UserError
from distill3d.layers.distributed import across_processes, world_size
from distill3d.layers.heads.centre_nms import circles_near, first_kept, footprints_near, scaled_near
from distill3d.layers.image.heatmap import (
    PROBABILITY_MARGIN,
    draw_gaussians,
    focal_terms,
    gather_cells,
    gaussian_radius,
    top_cells,
)
from distill3d.settings import Between, Channels, Coordinate, Count, Number, Share, Side, Weight, added, is_in_range
from distill3d.transfers import constant, fetched, inverse, places

#: The six tasks for nuScenes: classes of one task are alike in size.
NUSCENES_TASKS = (
    ("car",), ("truck", "construction_vehicle"), ("bus", "trailer"), ("barrier",), ("motorcycle", "bicycle"),
    ("pedestrian", "traffic_cone"),
)  # fmt: skip
#: Of the small configurations: one class per task, the kinds of road users that synthetic streets hold.
TINY_TASKS = (("car",), ("truck",), ("bicycle",), ("pedestrian",))
#: What the released configurations compare the SQUARED distance (m^2) of two centres to, one value per task.
CIRCLE_THRESHOLDS = dict(zip(NUSCENES_TASKS, (4.0, 12.0, 10.0, 1.0, 0.85, 0.175), strict=True))
#: How wide the boxes' axis-aligned footprints are taken in size-aware suppression.
FOOTPRINT_SCALE = 1.0
#: BEVDet's scale-NMS (HuangJunJie2017/BEVDet configs/bevdet/bevdet-r50.py, nms_rescale_factor, nms_thr, nms_type): by
#: how much a class's footprints are enlarged before their overlap is asked, the IoU that is too much, of the task of
#: pedestrians another, and the task that goes by circles instead.
SCALE_FACTORS = {
    "car": 1.0, "truck": 0.7, "construction_vehicle": 0.7, "bus": 0.4, "trailer": 0.55, "barrier": 1.1,
    "motorcycle": 1.0, "bicycle": 1.0, "pedestrian": 4.5, "traffic_cone": 9.0,
}  # fmt: skip
SCALED_OVERLAP, PEDESTRIAN_OVERLAP = 0.2, 0.5
CIRCLED = ("barrier",)
#: Branches of a task beside the heat map: numbers that each gives, in the order of the box code.
BOX_BRANCHES = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
CODE = sum(BOX_BRANCHES.values())
#: The bias with which an untrained head gives each class of a cell a probability of 0.1.
HEAT_BIAS = -2.19
#: Least number of objects that the box loss is divided by.
LEAST_OBJECTS = 1e-4


@dataclass(frozen=True)
class CentreHeadConfig:
    """Everything that makes one centre head.  The defaults are the six tasks of nuScenes on a map of 128 x 128 cells.

    ``output_init`` of the branches' last convolutions: ``prior`` is torch's, with ``HEAT_BIAS`` for the heat maps;
    ``kaiming`` is Kaiming's normal with that bias, as mmdetection3d trains CenterPoint; ``default`` is torch's without
    the bias, as BEVDepth's and LabelDistill's released code leaves it.

    ``rounding`` of a centre's place to its cell: ``trunc``, as released, keeps centres up to one cell outside the lower
    bounds in the first cell; ``floor`` drops them.

    ``nms_thresholds``, one per task: with ``circle`` a box is dropped when the SQUARED distance (m^2) of its centre to
    that of a better box of its task is at most the threshold; with ``size_aware`` when the axis-aligned footprints,
    scaled by the threshold, touch; with ``scaled`` when the IoU of the turned footprints, their length and width first
    multiplied by ``nms_factors``, one per class, is above it, but the task ``CIRCLED`` goes by ``circle``.  None:
    ``CIRCLE_THRESHOLDS`` by each task's first class, ``FOOTPRINT_SCALE``, or BEVDet's.

    Raises:
        UserError: a class occurs twice, a number per task or per box value is missing, the extent holds no whole
            number of cells, or thresholds or factors of unknown classes are left open.
    """

    tasks: tuple[tuple[str, ...], ...] = NUSCENES_TASKS
    extent: tuple[Coordinate, Coordinate, Coordinate, Coordinate] = (
        -51.2,
        -51.2,
        51.2,
        51.2,
    )  # x min, y min, x max, y max (m, ego)
    cell: Side = 0.8  # m
    shared_channels: Channels = 64
    branch_channels: Channels = 64
    output_init: Literal["prior", "kaiming", "default"] = "prior"
    # targets and losses
    rounding: Literal["trunc", "floor"] = "trunc"
    radius_overlap: Annotated[float, Between(0, 1, above=True)] = 0.1  # IoU that a box shifted by the radius keeps
    min_radius: Count = 2  # cells
    max_objects: Number = 500  # per task
    code_weights: tuple[Weight, ...] = (1.0,) * CODE
    box_weight: Weight = 0.25
    # boxes
    candidates: Number = 500  # best cells of each class, then of each task
    score_threshold: Share = 0.1
    post_extent: tuple[Coordinate, Coordinate, Coordinate, Coordinate, Coordinate, Coordinate] = (
        -61.2,
        -61.2,
        -10.0,
        61.2,
        61.2,
        10.0,
    )  # m
    nms: Literal["circle", "size_aware", "scaled"] = "circle"
    nms_thresholds: tuple[Annotated[float, Between(0, 1e6)], ...] | None = None
    max_per_task: Number = 83
    nms_factors: tuple[Annotated[float, Between(0, 1e3, above=True)], ...] | None = added(None)

    def __post_init__(self) -> None:
        if not is_in_range(self):
            return
        if len(set(self.classes)) != len(self.classes):
            raise UserError(f"each class belongs to one task, got {self.tasks}")
        if len(self.code_weights) != CODE:
            raise UserError(f"a box has {CODE} values, got {len(self.code_weights)} code weights")
        if len(self.thresholds) != len(self.tasks):
            raise UserError(f"{len(self.tasks)} tasks need as many nms_thresholds, got {len(self.thresholds)}")
        if self.nms == "scaled" and len(self.factors) != len(self.classes):
            raise UserError(f"{len(self.classes)} classes need as many nms_factors, got {len(self.factors)}")
        x0, y0, x1, y1 = self.extent
        for low, high, count in ((y0, y1, self.cells[0]), (x0, x1, self.cells[1])):
            if abs(count * self.cell - (high - low)) > 1e-6 * self.cell or count < 1:
                raise UserError(f"{low} to {high} m is no whole number of cells of {self.cell} m")

    @property
    def classes(self) -> tuple[str, ...]:
        """The K classes, task by task."""
        return tuple(name for task in self.tasks for name in task)

    @property
    def task_of_class(self) -> tuple[int, ...]:
        """The task of each of the K classes."""
        return tuple(i for i, task in enumerate(self.tasks) for _ in task)

    @property
    def cells(self) -> tuple[int, int]:
        """Of the map along y and x."""
        x0, y0, x1, y1 = self.extent
        return round((y1 - y0) / self.cell), round((x1 - x0) / self.cell)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """``nms_thresholds``, or what None stands for."""
        if self.nms_thresholds is not None:
            return self.nms_thresholds
        if self.nms == "size_aware":
            return (FOOTPRINT_SCALE,) * len(self.tasks)
        if self.nms == "scaled":
            return tuple(
                CIRCLE_THRESHOLDS[CIRCLED] if task == CIRCLED
                else PEDESTRIAN_OVERLAP if "pedestrian" in task else SCALED_OVERLAP for task in self.tasks
            )  # fmt: skip
        by_class = {name: value for task, value in CIRCLE_THRESHOLDS.items() for name in task}
        unknown = [task[0] for task in self.tasks if task[0] not in by_class]
        if unknown:
            raise UserError(f"no released threshold is known for {', '.join(unknown)}: give nms_thresholds")
        return tuple(by_class[task[0]] for task in self.tasks)

    @property
    def factors(self) -> tuple[float, ...]:
        """``nms_factors``, or what None stands for."""
        if self.nms_factors is not None:
            return self.nms_factors
        if unknown := [name for name in self.classes if name not in SCALE_FACTORS]:
            raise UserError(f"no released factor is known for {', '.join(unknown)}: give nms_factors")
        return tuple(SCALE_FACTORS[name] for name in self.classes)


def tiny_head(**fields: Any) -> CentreHeadConfig:
    """The small configuration: four tasks of one class, 96 x 96 cells; ``fields`` override."""
    small = {
        "tasks": TINY_TASKS, "extent": (-38.4, -38.4, 38.4, 38.4), "shared_channels": 32, "branch_channels": 16,
    }  # fmt: skip
    return CentreHeadConfig(**{**small, **fields})


# -------------------------------------------------------------------------------------------------------------- network


class CentreHead(nn.Module):
    """A shared convolution, then for each task branches of two convolutions each.

    Computes in float32 or better also under autocast: metres need more digits than half precision has.

    Args:
        channels_in: of the map.
    """

    def __init__(self, channels_in: int, config: CentreHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Sequential(*_conv_norm(channels_in, config.shared_channels))
        self.tasks = nn.ModuleList(_task_branches(len(task), config) for task in config.tasks)

    def forward(self, features: Float[Tensor, "b c y x"]) -> dict[str, Tensor]:
        """``heatmap`` (B, K, Y, X), raw logits, and ``box`` (B, T, 10, Y, X), raw box codes."""
        with torch.autocast(features.device.type, enabled=False):
            exact = self.shared(features.to(torch.promote_types(features.dtype, torch.float32)))
            heatmap = torch.cat([task["heatmap"](exact) for task in self._tasks()], dim=1)
            codes = [torch.cat([task[name](exact) for name in BOX_BRANCHES], dim=1) for task in self._tasks()]
        return {"heatmap": heatmap, "box": torch.stack(codes, dim=1)}

    def _tasks(self) -> list[nn.ModuleDict]:
        return list(self.tasks)  # pyright: ignore[reportReturnType]


def _task_branches(classes: int, config: CentreHeadConfig) -> nn.ModuleDict:
    branches = nn.ModuleDict()
    for name, numbers in (*BOX_BRANCHES.items(), ("heatmap", classes)):
        last = nn.Conv2d(config.branch_channels, numbers, 3, padding=1)
        assert last.bias is not None
        if config.output_init == "kaiming":
            nn.init.kaiming_normal_(last.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(last.bias)
        if config.output_init != "default" and name == "heatmap":
            nn.init.constant_(last.bias, HEAT_BIAS)
        branches[name] = nn.Sequential(*_conv_norm(config.shared_channels, config.branch_channels), last)
    return branches


def _conv_norm(channels_in: int, channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)


# -------------------------------------------------------------------------------------------------------------- targets


@dataclass(frozen=True)
class CentreTargets:
    """What the head is to say, in M = ``max_objects`` slots per task; slots without an object hold zeros."""

    heatmap: Float[Tensor, "b k y x"]  # Gaussian peaks, exactly 1 in the cells of centres
    box: Float[Tensor, "b t m 10"]  # box codes; NaN velocity where unknown
    index: Int[Tensor, "b t m"]  # cell of the centre, row * X + column
    mask: Bool[Tensor, "b t m"]  # slots with an object


@torch.no_grad()
def centre_targets(config: CentreHeadConfig, objects: SurroundObjectBatch, classes: tuple[str, ...]) -> CentreTargets:
    """Targets of the objects of the head's classes; ``objects.label`` indexes the data set's ``classes``.

    Slots count a task's objects class by class, within a class in their own order.  An object off the map or without a
    positive size uses up its slot and leaves it empty, as released; so does the order decide which are left out above
    ``max_objects``.  Cells are those of float32, as in the released code (KDHead.get_targets_single).
    """
    batch, rows = objects.label.shape
    kinds, tasks, (height, width) = len(config.classes), len(config.tasks), config.cells
    kind, order = _head_class(config, objects.label, classes).where(objects.present, kinds).sort(dim=1, stable=True)
    task = constant((*config.task_of_class, tasks), kind)[kind]  # the last are those of no task
    count = F.one_hot(task, tasks + 1).sum(1)
    slot = torch.arange(rows, device=kind.device) - (count.cumsum(1) - count).gather(1, task)

    def ordered(value: Tensor) -> Tensor:
        return value.float().gather(1, order[..., None].expand(-1, -1, value.shape[-1]))

    centre, size, velocity = (ordered(v) for v in (objects.centre, objects.size, objects.velocity))
    yaw = ordered(objects.yaw[..., None])
    side = constant(config.cell, centre)
    place = (centre[..., :2] - constant(config.extent[:2], centre)) / side
    cell = place.trunc() if config.rounding == "trunc" else place.floor()
    on_map = ((cell >= 0) & (cell < constant((width, height), cell))).all(-1)
    trained = (task < tasks) & (slot < config.max_objects) & on_map & (size > 0).all(-1)

    code = torch.cat((place - cell, centre[..., 2:], size.log(), yaw.sin(), yaw.cos(), velocity), dim=-1)
    ((sample, row),) = places(trained)
    code, column_row, kind = code[sample, row], cell[sample, row].long(), kind[sample, row]
    slots = (task[sample, row], slot[sample, row])
    box = code.new_zeros(batch, tasks, config.max_objects, CODE)
    index = torch.zeros(box.shape[:3], dtype=torch.int64, device=box.device)
    mask = torch.zeros_like(index, dtype=torch.bool)
    box[sample, *slots] = code
    index[sample, *slots] = column_row[:, 1] * width + column_row[:, 0]
    mask[sample, *slots] = mask.new_ones(())

    length, across = (size[sample, row][:, :2] / side).unbind(1)
    radius = gaussian_radius(length, across, config.radius_overlap).long().clamp(min=config.min_radius)
    blank = code.new_zeros(batch * kinds, height, width)
    heatmap = draw_gaussians(blank, sample * kinds + kind, column_row, radius)
    return CentreTargets(heatmap.view(batch, kinds, height, width), box, index, mask)


def _head_class(config: CentreHeadConfig, label: Int[Tensor, "b m"], classes: tuple[str, ...]) -> Int[Tensor, "b m"]:
    """Each object's place among the head's K classes; K for others.  The label ``IGNORE`` reads the last entry."""
    kinds = config.classes
    return constant([kinds.index(c) if c in kinds else len(kinds) for c in classes] + [len(kinds)], label)[label]


# --------------------------------------------------------------------------------------------------------------- losses


def centre_losses(
    predictions: dict[str, Tensor], targets: CentreTargets, config: CentreHeadConfig
) -> dict[str, Tensor]:
    """The head's supervised terms ``heat`` and ``box``, each summed over tasks: scalars in float32 or better."""
    with torch.autocast(predictions["heatmap"].device.type, enabled=False):
        probability, codes = predictions["heatmap"].sigmoid(), codes_at(predictions["box"], targets.index)
        return {
            "heat": heat_loss(probability, targets.heatmap, heat_normaliser(targets.heatmap, config)),
            "box": box_loss(codes, targets.box, targets.mask, box_normaliser(targets.mask), config),
        }


def heat_loss(
    probability: Float[Tensor, "b k y x"], target: Float[Tensor, "b k y x"], normaliser: Float[Tensor, "k"]
) -> Float[Tensor, ""]:
    """Penalty-reduced focal loss (exponents 2 and 4) of each class, summed over samples and cells and divided by the
    class's ``normaliser``, summed over classes.

    The probabilities are clamped to [1e-4, 1 - 1e-4], beyond which they get no gradient.  Only cells whose target is
    exactly 1 count as positive.  No gradient is meant to flow into the target: detach it where it is predicted.

    Source: open-mmlab/mmdetection gaussian_focal_loss.
    """
    clamped = probability.clamp(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)
    return (focal_terms(clamped, target).sum((0, 2, 3)) / normaliser).sum()


def heat_normaliser(target: Float[Tensor, "b k y x"], config: CentreHeadConfig) -> Float[Tensor, "k"]:
    """What each class's heat loss is divided by: the number of cells of its task that are exactly 1, the mean over
    processes, at least 1 (of all processes together)."""
    peaks = across_processes((target == 1).sum((0, 2, 3)).to(target))
    task = constant(config.task_of_class, peaks, torch.int64)
    of_task = peaks.new_zeros(len(config.tasks)).index_add(0, task, peaks)
    return of_task.clamp(min=1 / world_size())[task]


def codes_at(box: Float[Tensor, "b t c y x"], index: Int[Tensor, "b t m"]) -> Float[Tensor, "b t m c"]:
    """Each task's values at the cells of its slots."""
    return gather_cells(box.flatten(0, 1), index.flatten(0, 1)).unflatten(0, index.shape[:2])


def box_loss(
    prediction: Float[Tensor, "b t m c"], target: Float[Tensor, "b t m c"], mask: Bool[Tensor, "b t m"],
    normaliser: Float[Tensor, "t"], config: CentreHeadConfig,
) -> Float[Tensor, ""]:  # fmt: skip
    """``box_weight`` times the L1 distance of box codes, weighted by ``code_weights``, summed over the slots of
    ``mask`` and divided by each task's ``normaliser``, summed over tasks.

    Values whose target is NaN (an unknown velocity) are left out.  The released code multiplies them by 0 instead, and
    NaN times 0 is NaN.
    """
    trained = mask[..., None] & ~target.isnan()
    distance = torch.where(trained, prediction - target.where(trained, 0), 0).abs()
    weighted = distance * constant(config.code_weights, distance)
    return config.box_weight * (weighted.sum((0, 2, 3)) / normaliser).sum()


def box_normaliser(mask: Bool[Tensor, "b t m"]) -> Float[Tensor, "t"]:
    """What each task's box loss is divided by: its number of objects, the mean over processes, at least 1e-4."""
    return across_processes(mask.sum((0, 2)).float()).clamp(min=LEAST_OBJECTS)


# ---------------------------------------------------------------------------------------------------------------- boxes


@dataclass(frozen=True)
class Candidates:
    """The best cells of one task, best first, before suppression."""

    score: Float[Tensor, "b n"]
    kind: Int[Tensor, "b n"]  # class within the task
    rows: Float[Tensor, "b n 9"]  # x, y, z, length, width, height (m), yaw (rad), velocity (m/s)
    usable: Bool[Tensor, "b n"]  # sure enough, within ``post_extent``, and a box at all


def task_candidates(
    probability: Float[Tensor, "b k y x"], box: Float[Tensor, "b 10 y x"], config: CentreHeadConfig
) -> Candidates:
    """The best ``candidates`` of each class, then of the task's classes together; cells need be no local maxima.

    Source: CenterPointBBoxCoder.decode.
    """
    score, kind, cell = top_cells(probability, config.candidates)
    offset, z, size, turn, velocity = gather_cells(box, cell).split(tuple(BOX_BRANCHES.values()), dim=-1)
    width = probability.shape[-1]
    corner = torch.stack((cell % width, cell // width), dim=-1)
    xy = (corner + offset) * config.cell + constant(config.extent[:2], offset)
    yaw = torch.atan2(turn[..., :1], turn[..., 1:])
    rows = torch.cat((xy, z, size.exp(), yaw, velocity), dim=-1)
    low, high = constant(config.post_extent, rows).view(2, 3)
    within = ((rows[..., :3] >= low) & (rows[..., :3] <= high)).all(-1)
    real = rows.isfinite().all(-1) & (rows[..., 3:6] > 0).all(-1)
    return Candidates(score, kind, rows, (score > config.score_threshold) & within & real)


def centre_detections(
    predictions: dict[str, Tensor], bev_affine: Float[Tensor, "b 4 4"], classes: tuple[str, ...],
    config: CentreHeadConfig,
) -> list[Boxes3D]:  # fmt: skip
    """The boxes that ``centre_slots`` keeps, best first."""
    return centre_slots(predictions, bev_affine, classes, config).boxes()


@torch.no_grad()
def centre_slots(
    predictions: dict[str, Tensor], bev_affine: Float[Tensor, "b 4 4"], classes: tuple[str, ...],
    config: CentreHeadConfig,
) -> BoxSlots:  # fmt: skip
    """Boxes of each sample in the key ego frame without augmentation, best first, with ``score`` and ``velocity``.

    ``bev_affine`` is the batch's augmentation, which is undone; labels index the data set's ``classes``.

    Raises:
        ValueError: the head has a class that the data set does not know.
    """
    numbers = [classes.index(name) for name in config.classes]
    probability = predictions["heatmap"].sigmoid().split([len(task) for task in config.tasks], dim=1)
    parts = zip(probability, predictions["box"].unbind(1), config.thresholds, strict=True)
    found_of, thresholds, firsts, first = [], [], [], 0
    for of_task, box, threshold in parts:
        found_of.append(task_candidates(of_task, box, config))
        thresholds.append(threshold)
        firsts.append(first)
        first += of_task.shape[1]
    # Suppression asks its own rounds for whether to go on: on the CPU nobody waits for the answers.
    told = fetched({(i, name): value for i, one in enumerate(found_of) for name, value in vars(one).items()}
                   | {"bev_affine": bev_affine})  # fmt: skip
    bev_affine = told["bev_affine"]
    label = torch.tensor(numbers)
    score, kind, rows, kept = [], [], [], []
    for i, (threshold, first, task) in enumerate(zip(thresholds, firsts, config.tasks, strict=True)):
        found = Candidates(**{f.name: told[i, f.name] for f in fields(Candidates)})
        if config.nms == "circle" or (config.nms == "scaled" and task == CIRCLED):
            near = circles_near(found.rows[..., :2], threshold)
        elif config.nms == "scaled":
            factor = found.rows.new_tensor(config.factors)[found.kind + first]
            near = scaled_near(found.rows, factor, threshold)
        else:
            near = footprints_near(found.rows[..., :2], found.rows[..., 3:5], found.rows[..., 6], threshold)
        score.append(found.score)
        kind.append(found.kind + first)
        rows.append(found.rows)
        kept.append(first_kept(near, found.usable, config.max_per_task))
    score, order = torch.cat(score, dim=1).sort(dim=1, descending=True, stable=True)
    kind, kept = (torch.cat(v, dim=1).gather(1, order) for v in (kind, kept))
    rows = torch.cat(rows, dim=1).gather(1, order[..., None].expand(-1, -1, CODE - 1))
    rows = without_augmentation(rows, bev_affine)
    return BoxSlots(rows[..., :3], rows[..., 3:6], rows[..., 6], label[kind], score, kept, "ego",
                    velocity=rows[..., 7:])  # fmt: skip


def without_augmentation(rows: Float[Tensor, "b n 9"], bev_affine: Float[Tensor, "b 4 4"]) -> Float[Tensor, "b n 9"]:
    """Boxes (x, y, z, length, width, height, yaw, velocity) before the turn, mirror and scale of ``bev_affine``."""
    back = inverse(bev_affine).to(rows)
    turn = back[:, :2, :2].mT  # of the ground, for row vectors
    scale = torch.linalg.det(turn).abs().sqrt()[:, None, None]
    centre = rows[..., :3] @ back[:, :3, :3].mT + back[:, None, :3, 3]
    ahead = torch.stack((rows[..., 6].cos(), rows[..., 6].sin()), dim=-1) @ turn
    yaw = torch.atan2(ahead[..., 1], ahead[..., 0])
    return torch.cat((centre, rows[..., 3:6] * scale, yaw[..., None], rows[..., 7:] @ turn), dim=-1)
