"""Painting boxes: recorded rasters, an even-odd oracle by sampling, order, borders and what is left out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import constants, golden_file, golden_files
from hypothesis import given
from hypothesis import strategies as st
from shapely import Point, Polygon
from torch import Tensor

from distill3d.boxes import IGNORE, NUSCENES_CLASSES
from distill3d.data.surround import SurroundObjectBatch
from distill3d.layers.ground.label_raster import BOX_NUMBERS, LabelRaster, paint

EXTENT, CELL = (-8.0, -6.0, 8.0, 6.0), 0.5
ROWS, COLUMNS = 24, 32
CLASSES = range(3)
POINTS = {(row, column): Point(column, row) for row in range(ROWS) for column in range(COLUMNS)}


def batch_of(samples: list[tuple[Tensor, Tensor]]) -> SurroundObjectBatch:
    """Rows x, y, z, l, w, h, yaw, vx, vy and labels of each sample, padded; sizes of 0 are allowed here."""
    slots = max(len(labels) for _, labels in samples) + 1  # at least one row of padding
    boxes = torch.zeros(len(samples), slots, BOX_NUMBERS)
    label = torch.full((len(samples), slots), IGNORE)
    for i, (rows, labels) in enumerate(samples):
        boxes[i, : len(rows)], label[i, : len(labels)] = rows, labels
    return SurroundObjectBatch(
        boxes[..., :3], boxes[..., 3:6], boxes[..., 6], boxes[..., 7:], label, torch.zeros_like(label), label >= 0
    )


def one(*boxes: tuple[float, float, float, float, float], labels: tuple[int, ...] = ()) -> SurroundObjectBatch:
    """One sample's boxes x, y, l, w, yaw."""
    rows = torch.zeros(len(boxes), BOX_NUMBERS)
    for i, (x, y, length, width, yaw) in enumerate(boxes):
        rows[i, :7] = torch.tensor([x, y, i, length, width, 1.5, yaw])
    return batch_of([(rows, torch.tensor(labels or (0,) * len(boxes)))])


def cells(raster: LabelRaster) -> set[tuple[int, int]]:
    """Painted (row, column) of the only sample."""
    return {(int(y), int(x)) for y, x in raster.mask[0].nonzero()}


# --------------------------------------------------------------------------------------------------------------- golden


@pytest.mark.golden
@golden_file("labeldistill/label_raster")
def test_recorded_raster(path: Path) -> None:
    with np.load(path) as data:
        g = {k: torch.from_numpy(data[k]) for k in data}
    size, low, cell = int(g["in.size"]), float(g["in.lower"]), float(g["in.cell"])
    extent = (low, low, low + size * cell, low + size * cell)

    def painted(boxes: Tensor, labels: Tensor) -> LabelRaster:
        order = range(g["out.label"].shape[-1])
        return paint(batch_of([(boxes, labels)]), extent, cell, order, by_class=False, clip_border=True)

    raster = painted(g["in.boxes"], g["in.labels"])
    agrees(raster, g["out.mask"][None], g["out.box"][None], g["out.label"][None])
    for box, label, count in zip(g["in.boxes"], g["in.labels"], g["out.cells_per_box"], strict=True):
        assert painted(box[None], label[None]).mask.sum() == count


#: Its other tensors, hence its case, are the centre head's.
@pytest.mark.golden
@pytest.mark.skipif(not golden_files("labeldistill"), reason="no recorded results (set DISTILL3D_GOLDEN)")
def test_recorded_rasters_of_tasks() -> None:
    path = next(path for path in golden_files("labeldistill") if path.stem == "centerpoint_targets")
    with np.load(path) as data:
        g = {k: torch.from_numpy(data[k]) for k in data if "task" not in k}
    stated: dict[str, Any] = constants(path)
    low, cell = -stated["range"], stated["voxel"] * stated["stride"]
    order = [NUSCENES_CLASSES.index(name) for task in stated["tasks"] for name in task]
    samples = [(g[f"in.boxes{i}"], g[f"in.labels{i}"]) for i in range(len(g["out.raster_mask"]))]
    raster = paint(batch_of(samples), (low, low, -low, -low), cell, order, clip_border=True)
    agrees(raster, g["out.raster_mask"], g["out.raster_box"], g["out.raster_label"])


def agrees(raster: LabelRaster, mask: Tensor, box: Tensor, onehot: Tensor) -> None:
    assert torch.equal(raster.mask, mask.bool())
    assert torch.equal(raster.box, box.to(raster.box))
    assert torch.equal(raster.onehot, onehot.to(raster.onehot))


# ----------------------------------------------------------------------------------------------------------- properties

BOX = st.tuples(
    st.floats(-12, 12), st.floats(-10, 10), st.floats(0.05, 20), st.floats(0.05, 12), st.floats(-3.2, 3.2)
)  # fmt: skip


@given(BOX)
def test_rectangles_of_whole_cells_match_a_polygon(box: tuple[float, float, float, float, float]) -> None:
    """Truncated corners that form a valid polygon: shapely's interior and boundary, cut to the map."""
    objects = one(box)
    x, y, length, width, yaw = (float(v) for v in (*objects.centre[0, 0, :2], *objects.size[0, 0, :2],
                                                   objects.yaw[0, 0]))  # fmt: skip
    heading, across = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
    corners = [
        np.trunc((np.array((x, y)) - EXTENT[:2]) / CELL + (along * length * heading + side * width * across) / 4 / CELL)
        for along, side in ((1, 1), (-1, 1), (-1, -1), (1, -1))
    ]
    polygon = Polygon(corners)
    if polygon.area == 0 or not polygon.is_valid:
        return
    expected = {(row, column) for (row, column), point in POINTS.items() if polygon.covers(point)}
    assert cells(paint(objects, EXTENT, CELL, CLASSES)) == expected


@given(st.lists(st.tuples(BOX, st.sampled_from(CLASSES)), max_size=6), st.permutations(CLASSES))
def test_later_boxes_cover_earlier_ones(
    drawn: list[tuple[tuple[float, float, float, float, float], int]], order: list[int]
) -> None:
    """All at once equals one after the other."""
    objects = one(*[box for box, _ in drawn], labels=tuple(label for _, label in drawn))
    raster = paint(objects, EXTENT, CELL, order)
    expected = torch.zeros(ROWS, COLUMNS, BOX_NUMBERS)
    for label in order:
        for box, own, row in zip(*zip(*drawn, strict=True), objects_rows(objects), strict=False) if drawn else ():
            if own == label:
                expected[paint(one(box), EXTENT, CELL, CLASSES).mask[0]] = row
    assert torch.equal(raster.box[0], expected)
    assert torch.equal(raster.onehot.sum(-1), raster.mask.float())
    labels = torch.tensor(order)[raster.onehot[0].argmax(-1)]
    painted = objects.label[0][(raster.index[0] - 1).clamp(min=0)]
    assert torch.equal(labels[raster.mask[0]], painted[raster.mask[0]])


def objects_rows(objects: SurroundObjectBatch) -> Tensor:
    return paint(objects, EXTENT, CELL, CLASSES).box_rows[1:]


@given(BOX, st.floats(0, 0.4))
def test_every_object_on_the_map_paints(box: tuple[float, float, float, float, float], small: float) -> None:
    """However small, and never a cell farther from its centre than it reaches."""
    x, y, length, width, yaw = box
    x, y = x * 0.6, y * 0.55  # within the map
    found = cells(paint(one((x, y, small + 0.01, small + 0.01, yaw)), EXTENT, CELL, CLASSES))
    assert 1 <= len(found) <= 4
    reach = np.hypot(length, width) / 4 / 0.5 + 2
    for row, column in cells(paint(one((x, y, length, width, yaw)), EXTENT, CELL, CLASSES)):
        assert np.hypot((x + 8) / 0.5 - column, (y + 6) / 0.5 - row) <= reach


@pytest.mark.parametrize(
    ("box", "dropped", "clipped"),
    [
        ((8.5, 0.25, 1.0, 0.5, 0.0), set(), {(12, 31)}),  # beyond the last column
        ((-9.0, 0.25, 1.0, 0.5, 0.0), set(), set()),  # before the first: left out in either case
        ((0.25, 6.5, 0.5, 1.0, 0.0), set(), {(23, 16)}),
        ((0.25, -7.0, 0.5, 1.0, 0.0), set(), set()),
        ((-8.2, 0.25, 0.2, 0.2, 0.0), {(12, 0)}, {(12, 0)}),  # less than a cell outside: truncated onto the map
        ((7.75, 0.0, 2.0, 1.0, 0.0), {(11, 30), (11, 31), (12, 30), (12, 31)},
         {(11, 30), (11, 31), (12, 30), (12, 31)}),  # on both sides
        ((1e6, 0.25, 4.0, 0.5, 0.0), set(), {(12, 31)}),
    ],
)  # fmt: skip
def test_borders(box: tuple, dropped: set, clipped: set) -> None:
    assert cells(paint(one(box), EXTENT, CELL, CLASSES)) == dropped
    assert cells(paint(one(box), EXTENT, CELL, CLASSES, clip_border=True)) == clipped


def test_what_paints_nothing() -> None:
    none = paint(one(), EXTENT, CELL, CLASSES)
    assert none.index.shape == (1, ROWS, COLUMNS)
    assert not none.mask.any() and not none.box.any() and not none.onehot.any()
    flat = paint(one((0, 0, 0, 2, 0), (1, 1, 2, 0, 0)), EXTENT, CELL, CLASSES)
    assert not flat.mask.any()
    unasked = paint(one((0, 0, 2, 2, 0), (3, 3, 2, 2, 0), labels=(0, 2)), EXTENT, CELL, (1, 2))
    assert {int(row) for row in unasked.index.unique()} == {0, 2}
    assert torch.equal(unasked.class_rows[2], torch.tensor([0.0, 1.0]))


def test_a_box_that_truncation_folds_to_a_line_paints_its_ends_only() -> None:
    """From cell (10, 10) to (14, 12), on which (12, 11) lies as well."""
    line = one((-2.25, 0.25, 4.47, 0.02, float(np.arctan2(2, 1))))
    assert cells(paint(line, EXTENT, CELL, CLASSES)) == {(10, 10), (14, 12)}


def test_unknown_velocity_is_painted_as_zero() -> None:
    objects = one((0, 0, 2, 2, 0))
    objects.velocity[:] = torch.nan
    raster = paint(objects, EXTENT, CELL, CLASSES)
    assert raster.mask.any() and raster.box.isfinite().all()


def test_samples_do_not_mix() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = []
    for count in (5, 0, 200):
        rows = torch.rand(count, BOX_NUMBERS, generator=generator) * 8 - 2
        samples.append((rows, torch.randint(0, len(CLASSES), (count,), generator=generator)))
    together = paint(batch_of(samples), EXTENT, CELL, CLASSES)
    for i, sample in enumerate(samples):
        alone = paint(batch_of([sample]), EXTENT, CELL, CLASSES)
        assert torch.equal(together.box[i], alone.box[0])
        assert torch.equal(together.onehot[i], alone.onehot[0])
