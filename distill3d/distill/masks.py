"""Where a loss counts: regions of maps around labelled objects, for all boxes and images at once."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill3d.data.surround import SurroundObjectBatch
from distill3d.detectors.base import BevGeometry, FeatureMap, ImageGeometry
from distill3d.layers.heads.centre_nms import footprint_extent
from distill3d.layers.image.heatmap import draw_gaussians, gaussian_radius
from distill3d.transfers import constant

#: How box edges index a map.  ``python`` slices as Python does: a negative edge counts from the end, so objects cut by
#: the left or top border usually select nothing (released MonoDistill).  ``clamp`` keeps the part on the map.
SliceRule = Literal["python", "clamp"]


@runtime_checkable
class ObjectTargets(Protocol):
    """What the masks and response terms read of a detector's targets: B images, K slots, slot i = label line i."""

    @property
    def indices(self) -> Int[Tensor, "b k"]:
        """Flat cell row * W + column on the prediction maps; 0 in unused slots."""
        ...

    @property
    def mask_2d(self) -> Bool[Tensor, "b k"]:
        """Trained on: eligible, and the centre lies on the map."""
        ...

    @property
    def heading_bin(self) -> Int[Tensor, "b k"]: ...

    @property
    def box2d(self) -> Float[Tensor, "b k 4"]:
        """Canvas px (left, top, right, bottom) of every label line; zeros where there is none."""
        ...

    @property
    def present(self) -> Bool[Tensor, "b k"]:
        """A label line stands here."""
        ...

    @property
    def eligible(self) -> Bool[Tensor, "b k"]:
        """Passed the class, level and range filters."""
        ...


@runtime_checkable
class SelectiveTargets(ObjectTargets, Protocol):
    """What selective terms read beside ``ObjectTargets``."""

    @property
    def on_map(self) -> Bool[Tensor, "b k"]:
        """The detector says how sure it is of this label line's depth, whatever the line's class, level or distance."""
        ...

    @property
    def centre_cell(self) -> Int[Tensor, "b k"]:
        """Flat cell row * W + column of the projected 3D centre; 0 where that is not on the map."""
        ...

    @property
    def distance(self) -> Float[Tensor, "b k"]:
        """Depth of the 3D centre, m; 0 in empty slots."""
        ...


@runtime_checkable
class SeenTargets(Protocol):
    """What selective terms read of the targets of a detector of surround views; slots are the batch's objects."""

    @property
    def seen_at(self) -> Int[Tensor, "b k"] | None:
        """Where the detector says how sure it is of the object's depth; negative where no camera shows its centre."""
        ...


def image_stride(feature: FeatureMap) -> int:
    """Canvas pixels a cell.

    Raises:
        ValueError: the map does not lie on the image.
    """
    if not isinstance(feature.geometry, ImageGeometry):
        raise ValueError(f"boxes in the image need a map on the image, not one on {feature.geometry}")
    return feature.geometry.stride


def ground_geometry(feature: FeatureMap) -> BevGeometry:
    """Where the cells of a map lie on the ground around the vehicle.

    Raises:
        ValueError: the map does not lie there, or its rows do not run along y.
    """
    geometry = feature.geometry
    if not isinstance(geometry, BevGeometry) or geometry.frame != "ego" or geometry.axes != ("y", "x"):
        raise ValueError(f"footprints need a map of the ground around the vehicle, rows along y, not one on {geometry}")
    return geometry


def footprint_boxes(objects: SurroundObjectBatch, extent: tuple[float, float, float, float]) -> Float[Tensor, "b m 4"]:
    """The axis-aligned rectangles about the objects' turned footprints: x min, y min, x max, y max in m from the lower
    corner of ``extent``, so that divided by a map's cell they are left, top, right, bottom in cells."""
    reach = footprint_extent(objects.size[..., :2], objects.yaw) / 2
    centre = objects.centre[..., :2] - constant(extent[:2], objects.centre)
    return torch.cat((centre - reach, centre + reach), dim=-1)


def whole_cells(box: Float[Tensor, "b k 4"], cell: float) -> Float[Tensor, "b k 4"]:
    """The fewest whole cells that hold each box, in cells: on the ground a person is smaller than one."""
    lower, upper = (box / cell).chunk(2, dim=-1)
    return torch.cat((lower.floor(), upper.ceil()), dim=-1)


def box_mask(
    box2d: Float[Tensor, "b k 4"],
    keep: Bool[Tensor, "b k"],
    stride: int,
    size: tuple[int, int],
    slice_rule: SliceRule = "clamp",
) -> Bool[Tensor, "b h w"]:
    """Cells inside any kept box: columns x1..x2-1 and rows y1..y2-1 of box / ``stride`` truncated toward 0.

    A box narrower than a cell may vanish.  Source: MonoDistill calculate_box_mask.
    """
    edge = (box2d / stride).trunc().long()
    columns = _between(edge[..., 0], edge[..., 2], size[1], slice_rule)
    rows = _between(edge[..., 1], edge[..., 3], size[0], slice_rule)
    return _union(rows & keep[..., None], columns)


def paint_boxes(
    value: Float[Tensor, "b k"],
    box2d: Float[Tensor, "b k 4"],
    keep: Bool[Tensor, "b k"],
    stride: int,
    size: tuple[int, int],
    slice_rule: SliceRule = "clamp",
    order: Int[Tensor, "b k"] | None = None,
) -> tuple[Float[Tensor, "b h w"], Bool[Tensor, "b h w"]]:
    """Kept boxes filled with their values one after the other, later ones over earlier ones, and where any lies.

    ``order``: slots in the order of painting, by default as they come.  Edges as in ``box_mask``; 0 outside.
    Source: MonoSTL calculate_box_weight.
    """
    edge = (box2d / stride).trunc().long()
    return _paint(value, edge, keep, size, slice_rule, order)


def paint_gaussians(
    value: Float[Tensor, "b k"],
    box2d: Float[Tensor, "b k 4"],
    keep: Bool[Tensor, "b k"],
    stride: int,
    size: tuple[int, int],
    order: Int[Tensor, "b k"] | None = None,
) -> tuple[Float[Tensor, "b h w"], Bool[Tensor, "b h w"]]:
    """As ``paint_boxes``, the squares of ``gaussian_mask`` instead of the boxes."""
    cell, radius = _peaks(box2d, stride)
    edge = torch.cat((cell - radius[..., None], cell + radius[..., None] + 1), dim=-1)
    return _paint(value, edge, keep, size, "clamp", order)


def _paint(
    value: Float[Tensor, "b k"],
    edge: Int[Tensor, "b k 4"],
    keep: Bool[Tensor, "b k"],
    size: tuple[int, int],
    slice_rule: SliceRule,
    order: Int[Tensor, "b k"] | None,
) -> tuple[Float[Tensor, "b h w"], Bool[Tensor, "b h w"]]:
    if order is not None:
        edge = edge.gather(1, order[..., None].expand_as(edge))
        value, keep = value.gather(1, order), keep.gather(1, order)
    columns = _between(edge[..., 0], edge[..., 2], size[1], slice_rule)
    rows = _between(edge[..., 1], edge[..., 3], size[0], slice_rule) & keep[..., None]
    layer = torch.arange(1, value.shape[1] + 1, device=value.device, dtype=torch.int16)[:, None, None]
    top = (rows[..., :, None] & columns[..., None, :]).to(torch.int16).mul_(layer).amax(1)  # 0: no box
    on_canvas = F.pad(value, (1, 0))  # layer 0 paints 0
    return on_canvas.gather(1, top.flatten(1).long()).unflatten(1, size), top > 0


def gaussian_mask(
    box2d: Float[Tensor, "b k 4"], keep: Bool[Tensor, "b k"], stride: int, size: tuple[int, int]
) -> Bool[Tensor, "b h w"]:
    """Cells under the centre heat map's Gaussian of any kept box: squares of half width ``radius`` about its centre.

    Source: MonoDistill lib/losses/head_distill_loss.py calculate_box_mask_gaussian.
    """
    cell, radius = _peaks(box2d, stride)

    def near(centre: Int[Tensor, "b k"], count: int) -> Bool[Tensor, "b k n"]:
        grid = torch.arange(count, device=box2d.device)
        return (grid - centre[..., None]).abs() <= radius[..., None]

    return _union(near(cell[..., 1], size[0]) & keep[..., None], near(cell[..., 0], size[1]))


def gaussian_weight(
    box2d: Float[Tensor, "b k 4"], keep: Bool[Tensor, "b k"], stride: int, size: tuple[int, int]
) -> Float[Tensor, "b h w"]:
    """The Gaussians themselves, 1 at each kept box's centre; the largest where they overlap."""
    cell, radius = _peaks(box2d, stride)
    maps = box2d.new_zeros(len(box2d), *size)
    image = torch.arange(len(keep), device=keep.device)[:, None].expand_as(keep)
    return draw_gaussians(maps, *(value.flatten(0, 1) for value in (image, cell, radius, keep)))


def _peaks(box2d: Float[Tensor, "b k 4"], stride: int) -> tuple[Int[Tensor, "b k 2"], Int[Tensor, "b k"]]:
    """Cell (column, row) of each box's middle, truncated toward 0, and the radius of its Gaussian in cells."""
    box = box2d / stride
    cell = ((box[..., :2] + box[..., 2:]) / 2).trunc().long()
    extent = box[..., 2:] - box[..., :2]
    return cell, gaussian_radius(extent[..., 1], extent[..., 0]).long().clamp(min=0)


def _between(
    start: Int[Tensor, "b k"], stop: Int[Tensor, "b k"], count: int, slice_rule: SliceRule
) -> Bool[Tensor, "b k n"]:
    """Which of ``count`` indices the slice start:stop selects."""
    if slice_rule == "python":
        start, stop = (torch.where(edge < 0, edge + count, edge) for edge in (start, stop))
    grid = torch.arange(count, device=start.device)
    return (grid >= start[..., None]) & (grid < stop[..., None])


def _union(rows: Bool[Tensor, "b k h"], columns: Bool[Tensor, "b k w"]) -> Bool[Tensor, "b h w"]:
    """Cells in any of the k rectangles: how many lie over a cell is a matrix product of their sides."""
    return torch.einsum("bkh,bkw->bhw", rows.float(), columns.float()) > 0
