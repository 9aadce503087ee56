"""Regions of ground maps, for all boxes and moments at once: where labelled objects stand, where a network alone
believes one to stand, and what the cells of each count.

Sources: DistillBEV, ICCV 2023, arXiv:2309.15109, qcraftai/distill-bev mmdet3d/models/detectors/bevdet_distill.py
(foreground_scale_mask, add_fp_as_fg) and bevformer_distill.py (add_fp_as_fg_bbox); VCD, NeurIPS 2023, arXiv:2310.15670,
OpenDriveLab/Birds-eye-view-Perception nuScenes_playground/VCD/mmdet3d/distiller/distillers/motion_distiller.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill3d.data.surround import SurroundBatch, SurroundObjectBatch
from distill3d.detectors.base import BevGeometry
from distill3d.distill.context import Context
from distill3d.errors import UserError

#: Which point of a cell a box must hold for the cell to be its: the lower corner, as released for convolutional
#: students, which moves every region by half a cell, or the centre.
CellPoint = Literal["corner", "centre"]
#: Who sees an object where no label is: the teacher; the student; the student where the teacher sees none either; any
#: of the first and the third.
FalsePositiveRule = Literal["teacher", "student", "student_alone", "teacher_or_student_alone"]
#: What a false positive cell counts: 1 over the moment's number of them; over the cells of its connected component; or,
#: as released under the name of a depth-first search, over the visits of a walk through it (``_visits``).
FalsePositiveScale = Literal["average", "component", "visits"]


def labelled_objects(context: Context, method: str) -> SurroundObjectBatch:
    """The batch's objects; ``method`` asks for them.

    Raises:
        UserError: it has none.
    """
    if not isinstance(context.batch, SurroundBatch) or context.batch.objects is None:
        raise UserError(f"{method} looks at labelled objects: it needs a data set of surround views with annotations")
    return context.batch.objects


# ----------------------------------------------------------------------------------------------------------- footprints


@dataclass(frozen=True)
class GroundRegions:
    """Where labelled objects stand on a map, and what cells count there and elsewhere."""

    foreground: Float[Tensor, "b 1 y x"]  # 1 in the objects' cells, less about them where a margin counts, else 0
    #: sqrt(cell^2 / (length width)) of the first object, in their order, that holds the cell; 0 outside of all.
    foreground_scale: Float[Tensor, "b 1 y x"]
    background_scale: Float[Tensor, "b 1 1 1"]  # 1 over the moment's cells without an object; 0 where there are none

    @property
    def background(self) -> Bool[Tensor, "b 1 y x"]:
        """The cells without an object."""
        return self.foreground == 0

    def without(self, cells: Bool[Tensor, "b 1 y x"]) -> GroundRegions:
        """The regions whose ``background_scale`` leaves these cells out, of which none should be foreground: one that
        is is left out of the count a second time, as released."""
        count = _count(self.background) - _count(cells)
        return replace(self, background_scale=_one_over(count))


@torch.no_grad()
def footprint_regions(
    objects: SurroundObjectBatch,
    geometry: BevGeometry,
    size: tuple[int, int],
    point: CellPoint = "centre",
    margin: int = 0,
    margin_share: float = 0.5,
) -> GroundRegions:
    """The regions of the objects' turned footprints on a map of ``size`` (rows, columns) cells.

    ``margin`` widens each footprint's length and width by that many cells.  What is gained counts ``margin_share`` as
    foreground; as released, the scale of ALL cells of the widened footprints is then cell^2 / (length width) instead.
    Objects may lie partly or wholly outside the map, and those thinner than a cell may hold none.
    """
    boxes = (objects.centre, objects.size, objects.yaw, objects.present)
    area_ratio = geometry.cell**2 / (objects.size[..., 0] * objects.size[..., 1])  # infinite of empty slots: they hold
    held = footprint_cells(*boxes, geometry, size, point)  # no cell
    foreground = held.any(1, keepdim=True)
    scale = _of_first(held, area_ratio.sqrt())
    if margin == 0:
        return GroundRegions(foreground.to(scale), scale, _one_over(_count(~foreground)))
    wide = footprint_cells(*boxes, geometry, size, point, margin * geometry.cell)
    widened = wide.any(1, keepdim=True)
    return GroundRegions(
        torch.maximum(foreground.to(scale), margin_share * widened),
        torch.where(widened, _of_first(wide, area_ratio), scale),
        _one_over(_count(~widened)),
    )


def footprint_cells(
    centre: Float[Tensor, "b m _"],
    size: Float[Tensor, "b m _"],
    yaw: Float[Tensor, "b m"],
    present: Bool[Tensor, "b m"],
    geometry: BevGeometry,
    cells: tuple[int, int],
    point: CellPoint = "centre",
    widened: float = 0.0,
) -> Bool[Tensor, "b m y x"]:
    """Which cells' points lie strictly inside the turned (length + ``widened``) x (width + ``widened``) rectangle (m)
    of each box that is ``present``."""
    offset = 0.5 if point == "centre" else 0.0
    y, x = (
        low + (torch.arange(count, device=centre.device, dtype=centre.dtype) + offset) * geometry.cell
        for low, count in zip((geometry.extent[1], geometry.extent[0]), cells, strict=True)
    )
    dx, dy = (x - centre[..., :1])[..., None, :], (y - centre[..., 1:2])[..., :, None]
    cos, sin = (value[..., None, None] for value in (yaw.cos(), yaw.sin()))
    reach = (size[..., :2] + widened)[..., None, None] / 2
    inside = ((cos * dx + sin * dy).abs() < reach[:, :, 0]) & ((cos * dy - sin * dx).abs() < reach[:, :, 1])
    return inside & present[..., None, None]


def _of_first(held: Bool[Tensor, "b m y x"], value: Float[Tensor, "b m"]) -> Float[Tensor, "b 1 y x"]:
    """The value of the first box that holds each cell; 0 outside of all."""
    first = held.to(torch.uint8).argmax(1)
    picked = value.gather(1, first.flatten(1)).unflatten(1, first.shape[1:])
    return torch.where(held.any(1), picked, 0)[:, None]


def _count(cells: Bool[Tensor, "b 1 y x"]) -> Float[Tensor, "b 1 1 1"]:
    """The number of a moment's cells."""
    return cells.sum((1, 2, 3), keepdim=True, dtype=torch.float32)


def _one_over(count: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """1 over a number of cells, 0 where it is not positive."""
    return torch.where(count > 0, 1 / count.clamp(min=1), 0)


# ------------------------------------------------------------------------------------------------------ false positives


@torch.no_grad()
def false_positives(
    rule: FalsePositiveRule,
    labelled: Float[Tensor, "b k y x"],
    teacher: Float[Tensor, "b k _ _"],
    student: Float[Tensor, "b k y x"],
    threshold: float,
    label_threshold: float,
) -> Bool[Tensor, "b 1 _ _"]:
    """Cells of the teacher's map where somebody sees an object (any class above ``threshold``) and no label's heat map
    reaches ``label_threshold``, which is also what a teacher stays below that sees none.

    Args:
        labelled: the labels' heat maps; they and the student's are brought to the teacher's size, see ``at_size``.
        teacher, student: probabilities.
    """
    size = (teacher.shape[-2], teacher.shape[-1])
    t = teacher.amax(1, keepdim=True)
    g, s = (at_size(maps.amax(1, keepdim=True), size) for maps in (labelled, student))
    of_teacher = t > threshold
    student_alone = (s > threshold) & (t < label_threshold)
    seen = {
        "teacher": of_teacher,
        "student": s > threshold,
        "student_alone": student_alone,
        "teacher_or_student_alone": of_teacher | student_alone,
    }[rule]
    return seen & (g < label_threshold)


def at_size(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) numbers or bools with ``size`` cells: the largest of those that become one, or repeated.

    Raises:
        UserError: a side is no whole multiple of the other.
    """
    found = (maps.shape[-2], maps.shape[-1])
    if found == size:
        return maps
    if all(have % want == 0 for have, want in zip(found, size, strict=True)):
        pooled = F.max_pool2d(
            maps if maps.is_floating_point() else maps.float(),
            (found[0] // size[0], found[1] // size[1]),
        )
        return pooled.to(maps.dtype)
    if all(want % have == 0 for have, want in zip(found, size, strict=True)):
        return maps.repeat_interleave(size[0] // found[0], -2).repeat_interleave(size[1] // found[1], -1)
    raise UserError(f"a map of {found[0]} x {found[1]} cells cannot be laid over one of {size[0]} x {size[1]} cells")


@torch.no_grad()
def false_positive_scale(mask: Bool[Tensor, "b 1 y x"], form: FalsePositiveScale) -> Float[Tensor, "b 1 y x"]:
    """What each cell of the mask counts, see ``FalsePositiveScale``; 0 outside of it."""
    if form == "average":
        return mask * _one_over(_count(mask))
    part = connected_parts(mask[:, 0])
    share = mask[:, 0].double() if form == "component" else _visits(mask[:, 0], part)
    of_part = torch.zeros(part.numel(), dtype=share.dtype, device=share.device)
    total = of_part.index_add_(0, part.flatten(), share.flatten())[part]
    return torch.where(mask[:, 0], 1 / total.clamp(min=1), 0).float()[:, None]


def connected_parts(mask: Bool[Tensor, "b y x"]) -> Int[Tensor, "b y x"]:
    """The 4-connected part that each cell of the masks belongs to, named by its first cell (row by row, counted through
    the batch); cells outside have their own number.

    The least number spreads until nothing changes, in as many rounds as the longest way through a part has cells.
    """
    own = torch.arange(mask.numel(), device=mask.device).view_as(mask)
    outside = mask.numel()
    part = torch.where(mask, own, outside)
    while True:
        near = torch.stack([part, *_neighbours(part, outside)]).amin(0)
        spread = torch.where(mask, near, outside)
        if torch.equal(spread, part):
            return torch.where(mask, part, own)
        part = spread


def _visits(mask: Bool[Tensor, "b y x"], part: Int[Tensor, "b y x"]) -> Float[Tensor, "b y x"]:
    """How often the released walk comes to each cell.

    It goes breadth first from a part's first cell and notes a cell as seen when it leaves the queue, not when it
    enters.  So a cell is visited once for every shortest way to it, of which there are exponentially many in wide
    parts.
    """
    front = (mask & (part == torch.arange(mask.numel(), device=mask.device).view_as(mask))).double()
    visits = front
    while front.any():
        front = torch.stack(_neighbours(front, 0.0)).sum(0) * (mask & (visits == 0))
        visits = visits + front
    return visits


def _neighbours(values: Tensor, outside: float) -> list[Tensor]:
    """The values (B, Y, X) of each cell's four neighbours."""
    around = F.pad(values, (1, 1, 1, 1), value=outside)
    return [around[:, 2:, 1:-1], around[:, :-2, 1:-1], around[:, 1:-1, 2:], around[:, 1:-1, :-2]]


# ------------------------------------------------------------------------------------------------------- Gaussian peaks


@torch.no_grad()
def peak_region(heatmaps: list[Float[Tensor, "b k y x"]]) -> Float[Tensor, "b 1 y x"]:
    """How near each cell is to an object of any class in any of several moments: the largest of their heat maps."""
    return torch.stack([maps.amax(1, keepdim=True) for maps in heatmaps]).amax(0)


@torch.no_grad()
def moved_along(objects: SurroundObjectBatch, seconds: float) -> SurroundObjectBatch:
    """The objects where their velocity takes them in so many seconds, negative for the past; those whose velocity is
    unknown stay."""
    way = seconds * objects.velocity.nan_to_num(0.0)
    return replace(objects, centre=torch.cat((objects.centre[..., :2] + way, objects.centre[..., 2:]), dim=-1))


def joined(objects: list[SurroundObjectBatch]) -> SurroundObjectBatch:
    """Batches of as many rows one after the other."""
    return SurroundObjectBatch(**{name: torch.cat([getattr(o, name) for o in objects]) for name in vars(objects[0])})
