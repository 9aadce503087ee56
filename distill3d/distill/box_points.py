"""Points in labelled boxes on maps of the ground: where they lie, what a map says there, and how that is related.

What UniDistill (CVPR 2023; megvii-research/CVPR2023-UniDistill) and TiG-BEV (ADLab3Ds/TiG-BEV) share: both read the
maps of student and teacher at the same few places in every labelled box and compare the Gram matrices of what they
read.  Boxes of a batch are padded to M rows; nothing loops over boxes, points or samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from distill3d.detectors.base import BevGeometry
from distill3d.distill.context import Context
from distill3d.distill.ground_regions import labelled_objects
from distill3d.transfers import constant

#: Nine points of a box as shares of its length and width: the corners one after the other, the centre, and the middles
#: of the edges between corners 0 and 1, 1 and 2, 2 and 3, 0 and 3 (UniDistill, FeatureDistillLoss).
NINE_POINTS = (
    (-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5), (0.0, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.5, 0.0), (0.0, -0.5),
)  # fmt: skip
#: Vectors no longer than this have no direction: they become 0 and pass no gradient.
SMALLEST_NORM = 1e-12

#: What a sample without a box counts for: nothing, or, as UniDistill's released code has it, one box without extent at
#: the vehicle's origin.
EmptySample = Literal["skipped", "phantom"]
#: Where a map is read for a point.  ``centred``: where it lies, cell i reaching from i to i + 1.  ``exchanged``: with x
#: and y exchanged, each stretched to the other's side (released UniDistill).  ``stretched``: as if the first and last
#: cells were centred on the map's edges, by a reader for which they begin and end there (released TiG-BEV).
Reading = Literal["centred", "exchanged", "stretched"]
#: ``cosine``: inner products of unit vectors.  ``rows``: inner products, each row of the matrix then made unit.
GramForm = Literal["cosine", "rows"]


@dataclass(frozen=True)
class Footprints:
    """Boxes on the ground of B samples, padded to M rows."""

    centre: Float[Tensor, "b m 2"]  # m
    size: Float[Tensor, "b m 2"]  # length, width, m
    yaw: Float[Tensor, "b m"]  # rad
    counted: Bool[Tensor, "b m"]  # rows that losses look at; the others are zeros

    @classmethod
    def of(
        cls, centre: Float[Tensor, "b m 2"], size: Float[Tensor, "b m 2"], yaw: Float[Tensor, "b m"],
        present: Bool[Tensor, "b m"], empty: EmptySample = "skipped",
    ) -> Footprints:  # fmt: skip
        """The boxes of ``present`` rows; with ``phantom`` the first row, all zeros, of samples that have none counts
        as well."""
        centre, size, yaw = (torch.where(present[..., None], v, 0) for v in (centre, size, yaw[..., None]))
        counted = present
        if empty == "phantom":
            first = torch.arange(present.shape[1], device=present.device) == 0
            counted = present | (first & ~present.any(1, keepdim=True))
        return cls(centre, size, yaw[..., 0], counted)


def labelled_footprints(
    context: Context, geometry: BevGeometry, method: str, empty: EmptySample = "skipped"
) -> Footprints:
    """The batch's objects whose centres lie on a map; published code drops the others when it loads its data.

    Raises:
        UserError: the batch is none of surround views, or has no annotations; the sentence names the ``method``.
    """
    objects = labelled_objects(context, method)
    centre = objects.centre[..., :2]
    present = objects.present & on_map(centre, geometry)
    return Footprints.of(centre, objects.size[..., :2], objects.yaw, present, empty)


def on_map(points: Float[Tensor, "*n 2"], geometry: BevGeometry) -> Bool[Tensor, "*n"]:
    """Whether points (m) lie on a map."""
    x0, y0, x1, y1 = geometry.extent
    x, y = points.unbind(-1)
    return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)


def grid_shares(side: int) -> list[tuple[float, float]]:
    """``side`` x ``side`` points from edge to edge of a box, shares of its length and width: rows along the width, in
    each of them points along the length."""
    steps = [i / (side - 1) - 0.5 for i in range(side)]
    return [(along, across) for across in steps for along in steps]


def box_points(
    boxes: Footprints, shares: tuple[tuple[float, float], ...] | list[tuple[float, float]], enlarge: float = 0.0
) -> Float[Tensor, "b m p 2"]:
    """The points (x, y in m) at ``shares`` of each box's length and width, ``enlarge`` m added on all four sides."""
    local = constant(shares, boxes.centre) * (boxes.size + 2 * enlarge)[..., None, :]  # (b, m, p, 2)
    cos, sin = boxes.yaw.cos()[..., None], boxes.yaw.sin()[..., None]
    along, across = local.unbind(-1)
    turned = torch.stack((along * cos - across * sin, along * sin + across * cos), dim=-1)
    return boxes.centre[..., None, :] + turned


def positions(
    points: Float[Tensor, "*n 2"], geometry: BevGeometry, reading: Reading = "centred", clamp: bool = False
) -> Float[Tensor, "*n 2"]:
    """Column and row at which a map is read for points (m); cell (0, 0) is centred at (0, 0).

    ``clamp``, as TiG-BEV's released code has it, holds ``stretched`` points on the map: half a cell beyond the centres
    of the cells at its border.
    """
    x0, y0, x1, y1 = geometry.extent
    across, along = (round((high - low) / geometry.cell) for low, high in ((x0, x1), (y0, y1)))  # cells
    x, y = points.unbind(-1)
    column, row = (x - x0) / geometry.cell, (y - y0) / geometry.cell
    if reading == "exchanged":
        column, row = row / along * across, column / across * along
    elif reading == "stretched":
        column, row = column / (across - 1) * across, row / (along - 1) * along
    if clamp:
        column, row = column.clamp(0, across), row.clamp(0, along)
    return torch.stack((column, row), dim=-1) - 0.5


def gram(rows: Float[Tensor, "*n p c"], form: GramForm = "cosine", added: float = 0.0) -> Float[Tensor, "*n p p"]:
    """How the P rows of each matrix are related: of features of points their relation, of its transpose (``.mT``) that
    of channels.  ``added`` is added to the length that a row is divided by."""
    if form == "cosine":
        unit = unit_rows(rows, added)
        return unit @ unit.mT
    return unit_rows(rows @ rows.mT, added)


def unit_rows(rows: Float[Tensor, "*n p c"], added: float = 0.0) -> Float[Tensor, "*n p c"]:
    """Each row by its length plus ``added``; rows without a direction become 0, see ``SMALLEST_NORM``."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    known = norm > SMALLEST_NORM
    return torch.where(known, rows / torch.where(known, norm + added, 1), 0)
