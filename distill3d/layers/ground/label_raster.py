"""Labelled boxes painted onto the ground, as LabelDistill's label encoder reads them.

Source: sanmin0312/LabelDistill labeldistill/utils/bev_mask.py (gen_labelinput), which labeldistill/layers/heads/
kd_head.py calls task by task and, within a task, class by class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill3d.data.surround import SurroundObjectBatch
from distill3d.transfers import constant

#: Painted boxes are this much shorter and narrower than the objects.
SHRINK = 0.5
#: Numbers of a painted box: x, y, z, length, width, height, yaw, vx, vy.
BOX_NUMBERS = 9
#: The corners of a rectangle one after the other, in halves of its length and width.
CORNERS = ((1, 1), (-1, 1), (-1, -1), (1, -1))


@dataclass(frozen=True)
class LabelRaster:
    """Boxes painted on B maps: which row stands in each cell.  Row 0 is all zeros and means that nothing is there."""

    index: Int[Tensor, "b y x"]
    #: x, y, z, length, width, height (m), yaw (rad), vx, vy (m/s; 0 where unknown), as they are in the batch.
    box_rows: Float[Tensor, "rows 9"]
    class_rows: Float[Tensor, "rows k"]  # one-hot

    @property
    def mask(self) -> Bool[Tensor, "b y x"]:
        """Cells with a box."""
        return self.index > 0

    @property
    def box(self) -> Float[Tensor, "b y x 9"]:
        """``box_rows`` in every cell."""
        return self.box_rows[self.index]

    @property
    def onehot(self) -> Float[Tensor, "b y x k"]:
        """``class_rows`` in every cell."""
        return self.class_rows[self.index]


@torch.no_grad()
def paint(
    objects: SurroundObjectBatch,
    extent: tuple[float, float, float, float],
    cell: float,
    class_order: Sequence[int],
    by_class: bool = True,
    clip_border: bool = False,
) -> LabelRaster:
    """The objects' boxes, shrunk by ``SHRINK``, on maps of square cells; later objects cover earlier ones.

    The corners' cells are truncated toward 0; the cells of the quadrilateral between them are painted by the even-odd
    rule, those on its edges and corners included, so that the smallest object still paints one.  Truncation may leave
    it neither rectangular nor convex; where two of its edges fall together, as released, only their ends are painted.
    Objects without length or width are left out, and so are cells off the map.

    Args:
        extent: x min, y min, x max, y max of the map in m.
        cell: side in m.
        class_order: the K labels that are painted, in the order of painting and of the one-hot rows.
        by_class: paint class after class, objects of one class as they come; else all as they come.
        clip_border: cells beyond the last row or column are painted onto it, as released; those before the first are
            left out all the same.
    """
    batch, slots = objects.label.shape
    x0, y0, x1, y1 = extent
    rows, columns = round((y1 - y0) / cell), round((x1 - x0) / cell)
    of_class = objects.label[..., None] == constant(list(class_order), objects.label)
    painted = objects.present & of_class.any(-1) & (objects.size[..., :2] > 0).all(-1)
    corners = _corner_cells(objects, (x0, y0), cell)
    last = constant((columns, rows), corners) - 1

    first, end = corners.amin(1).clamp(min=0), corners.amax(1) + 1
    size = ((end if clip_border else end.minimum(last + 1)) - first).clamp(min=0)
    # One element for each cell of each box's bounding rectangle, box after box.
    count = size.prod(1) * painted.flatten()
    box = torch.repeat_interleave(count)
    within = torch.arange(len(box), device=box.device) - (count.cumsum(0) - count)[box]
    width = size[box, 0]
    place = first[box] + torch.stack((within % width, within // width), dim=1)
    inside = _inside(corners[box], place)

    slot = torch.arange(slots, device=box.device).expand(batch, -1)
    rank = of_class.long().argmax(-1) if by_class else torch.zeros_like(slot)
    layer = (rank * slots + slot + 1).flatten()  # 0: nothing painted
    column, row = place.minimum(last).unbind(1)
    flat = ((box // slots) * rows + row) * columns + column
    canvas = layer.new_zeros(batch * rows * columns)
    top = canvas.scatter_reduce(0, flat, torch.where(inside, layer[box], 0), "amax").view(batch, rows, columns)
    of_sample = torch.arange(batch, device=top.device)[:, None, None] * slots
    index = torch.where(top > 0, of_sample + (top - 1) % slots + 1, 0)

    numbers = (objects.centre, objects.size, objects.yaw[..., None], objects.velocity.nan_to_num(nan=0.0))
    box_rows = torch.cat(numbers, dim=-1).flatten(0, 1)
    class_rows = of_class.flatten(0, 1).to(box_rows)
    return LabelRaster(index, F.pad(box_rows, (0, 0, 1, 0)), F.pad(class_rows, (0, 0, 1, 0)))


def _corner_cells(objects: SurroundObjectBatch, low: tuple[float, float], cell: float) -> Int[Tensor, "n 4 2"]:
    """Columns and rows of the shrunk boxes' corners, of all samples one after the other."""
    centre, size, yaw = (t.flatten(0, 1).double() for t in (objects.centre, objects.size, objects.yaw))
    local = constant(CORNERS, centre) * (SHRINK / 2 * size[:, None, :2] / cell)  # (n, 4, 2): along and across
    turn = torch.stack((yaw.cos(), yaw.sin(), -yaw.sin(), yaw.cos()), dim=1).unflatten(1, (2, 2))  # for row vectors
    return ((centre[:, None, :2] - constant(low, centre)) / cell + local @ turn).trunc().long()


def _inside(corners: Int[Tensor, "n 4 2"], place: Int[Tensor, "n 2"]) -> Bool[Tensor, "n"]:
    """Whether cells (column, row) lie in quadrilaterals, by exact integers.

    A cell belongs to its quadrilateral if a ray toward larger columns or one toward smaller columns crosses the edges
    an odd number of times (on an edge only one of them does), or if it is a corner.

    Source: O'Rourke, "Computational Geometry in C", section 7.4, as in scikit-image's ``draw.polygon``.
    """
    x, y = (corners - place[:, None]).unbind(2)
    next_x, next_y = x.roll(-1, 1), y.roll(-1, 1)
    side = (x * next_y - next_x * y) * (next_y - y).sign()  # > 0: the edge meets the row at a larger column
    ahead = ((y > 0) != (next_y > 0)) & (side > 0)
    behind = ((y < 0) != (next_y < 0)) & (side < 0)
    return (ahead.sum(1) % 2 == 1) | (behind.sum(1) % 2 == 1) | ((x == 0) & (y == 0)).any(1)
