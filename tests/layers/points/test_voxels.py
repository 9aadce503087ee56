"""Voxels against a loop over points."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distill3d.layers.points.voxels import VoxelGrid, Voxels, mean_of_points, voxelise

GRID = VoxelGrid((-1.0, 0.0, -3.0, 0.2, 0.8, -2.0), (0.4, 0.2, 0.5))  # 3 x 4 x 2 cells
KITTI = VoxelGrid((2, -30.08, -3, 46.8, 30.08, 1), (0.04, 0.04, 0.1))


def voxelise_by_loop(points: list[Tensor], grid: VoxelGrid, max_points: int, max_voxels: int) -> Voxels:
    low, cell = (np.array(v, np.float32) for v in (grid.extent[:3], grid.cell))
    slots, counts, coords = [], [], []
    for b, scan in enumerate(points):
        known: dict[tuple[int, ...], int] = {}
        for row in scan.numpy():
            place = np.floor((row[:3] - low) / cell)
            if not all(0 <= c < n for c, n in zip(place, grid.shape, strict=True)):
                continue
            key = tuple(int(c) for c in place[::-1])
            if key not in known:
                if len(known) == max_voxels:
                    continue
                known[key] = len(slots)
                slots.append(np.zeros((max_points, scan.shape[1]), np.float32))
                counts.append(0)
                coords.append((b, *key))
            v = known[key]
            if counts[v] < max_points:
                slots[v][counts[v]] = row
                counts[v] += 1
    columns = points[0].shape[1]
    return Voxels(
        torch.from_numpy(np.array(slots, np.float32).reshape(-1, max_points, columns)),
        torch.tensor(counts, dtype=torch.int64),
        torch.tensor(coords, dtype=torch.int64).reshape(-1, 4),
        len(points),
    )


def assert_same(ours: Voxels, expected: Voxels) -> None:
    for name in ("coords", "counts", "slots"):
        assert torch.equal(getattr(ours, name), getattr(expected, name)), name
    assert ours.batch_size == expected.batch_size


coordinate = st.floats(-1.625, 1.375, width=32) | st.sampled_from(
    [-1.0, -0.6, 0.0, 0.2, 0.4, 0.8, float("nan"), float("inf")]
)
scan = st.lists(st.tuples(coordinate, coordinate, coordinate, st.floats(0, 1, width=32)), max_size=60)


@given(st.lists(scan, min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 6))
def test_equals_the_loop(scans: list[list[tuple]], max_points: int, max_voxels: int) -> None:
    points = [torch.tensor(rows, dtype=torch.float32).reshape(-1, 4) for rows in scans]
    for scan in points:
        scan[:, 2] -= 2.5  # into the grid's layers
    ours = voxelise(points, GRID, max_points, max_voxels)
    assert_same(ours, voxelise_by_loop(points, GRID, max_points, max_voxels))


@pytest.mark.parametrize(
    ("point", "cell"),
    [
        ((2.0, -30.08, -3.0), (0, 0, 0)),
        ((2.04, -30.04, -2.9), None),  # wherever float32 division puts it
        ((46.8, 0.0, 0.0), ()),
        ((10.0, 30.08, 0.0), ()),
        ((10.0, 0.0, 1.0), ()),
        ((1.999, 0.0, 0.0), ()),
        ((float("nan"), 0.0, 0.0), ()),
        ((10.0, float("-inf"), 0.0), ()),
    ],
)
def test_bounds(point: tuple[float, ...], cell: tuple[int, ...] | None) -> None:
    points = [torch.tensor([[*point, 0.5]])]
    ours = voxelise(points, KITTI, 5, 100)
    assert_same(ours, voxelise_by_loop(points, KITTI, 5, 100))
    if cell is not None:
        assert ours.coords[:, 1:].flatten().tolist() == list(cell)


def test_a_full_scan_with_more_columns() -> None:
    g = torch.Generator().manual_seed(0)
    spread = torch.tensor([50.0, 62.0, 5.0, 1.0, 1.0])
    points = [
        torch.randn(n, 5, generator=g).sign() * torch.rand(n, 5, generator=g) ** 4 * spread for n in (900, 0, 700)
    ]
    grid = VoxelGrid((0.0, -32.0, -3.0, 48.0, 32.0, 1.0), (0.5, 0.5, 0.5))
    assert_same(voxelise(points, grid, 3, 50), voxelise_by_loop(points, grid, 3, 50))


def test_more_points_than_any_scan() -> None:
    """The budget of each sample, and the sum of what is kept, hold at half a million points."""
    g = torch.Generator().manual_seed(0)
    points = torch.rand(500_000, 4, generator=g) * torch.tensor([44.8, 60.16, 4.0, 1.0]) + torch.tensor(
        [2, -30.08, -3, 0]
    )
    voxels = voxelise([points, points[:0], points[:1000]], KITTI, 5, 16_000)
    assert torch.bincount(voxels.coords[:, 0], minlength=3).tolist()[:2] == [16_000, 0]
    assert voxels.counts.min() >= 1 and voxels.counts.max() <= 5
    filled = torch.arange(5) < voxels.counts[:, None]
    assert not voxels.slots[~filled].any()
    low, cell = torch.tensor(KITTI.extent[:3]), torch.tensor(KITTI.cell)
    place = ((voxels.slots[..., :3] - low) / cell).floor().long().flip(-1)
    assert torch.equal(place[filled], voxels.coords[:, None, 1:].expand_as(place)[filled])


def test_mean() -> None:
    slots = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [0.0, 0.0]], [[0.0, 0.0]] * 3])
    voxels = Voxels(slots, torch.tensor([2, 0]), torch.zeros(2, 4, dtype=torch.int64), 1)
    assert mean_of_points(voxels).tolist() == [[2.0, 4.0], [0.0, 0.0]]


def test_shape_of_the_sparse_grid() -> None:
    assert KITTI.shape == (1120, 1504, 40) and KITTI.sparse_shape == (41, 1504, 1120)
