"""Pooling to the ground: recorded tensors, equal to the plain sum over points, true to the cameras' geometry."""

from pathlib import Path

import numpy as np
import pytest
import torch
from golden import golden_file
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distill3d.camera import DepthBins
from distill3d.layers.ground.lift import frustum_volume
from distill3d.layers.ground.voxel_pooling import (
    NO_CELL,
    camera_pixels,
    cell_index,
    flat_cells,
    frustum,
    frustum_points,
    ground_cells,
    nearest_cell,
    pixel_positions,
    splat,
    voxel_pool,
)
from distill3d.layers.points.voxels import VoxelGrid

BINS = DepthBins(2.0, 26.0, 12, "UD")
GRID = VoxelGrid((-25.6, -25.6, -5.0, 25.6, 25.6, 3.0), (1.6, 1.6, 8.0))
SIZE, STRIDE = (128, 48), 16  # of the canvas, px: width, height


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as data:
        return {k: torch.from_numpy(data[k]) for k in data}


def close(actual: Tensor, expected: Tensor, rtol: float, atol: float = 0.0) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rtol, atol=atol)


# ------------------------------------------------------------------------------------------------------------- recorded


@pytest.mark.golden
@golden_file("bevdepth/frustum_geometry")
def test_recorded_frustum(path: Path) -> None:
    g = load(path)
    near, far, step = g["in.d_bound"].tolist()
    height, width = g["in.final_dim"].tolist()
    bounds = torch.stack([g[f"in.{axis}_bound"].double() for axis in "xyz"], dim=1).tolist()  # lows, highs, steps
    grid = VoxelGrid((*bounds[0], *bounds[1]), tuple(bounds[2]))
    assert list(grid.shape) == g["out.voxel_num"].tolist()
    recorded = g["out.frustum"]
    depths, rows, columns = recorded.shape[:3]  # the last bin may reach beyond the far bound, as arange has it
    bins = DepthBins(near, near + depths * step, depths, "UD")
    assert near + (depths - 1) * step < far <= bins.far + 1e-9
    stride = next(n for n in range(1, width + 1) if (height // n, width // n) == (rows, columns))
    ours = frustum((width, height), stride, bins)
    close(ours, recorded, 1e-6)
    # the recorded positions are those of float32, which the tolerance of the points is finer than
    points = frustum_points(recorded, g["in.ida"], g["in.intrinsics"], g["in.sensor2ego"], g["in.bda"])
    close(points, g["out.points"], 1e-9, 1e-9)
    low, cell = (torch.tensor(v, dtype=torch.float64) for v in (grid.extent[:3], grid.cell))
    position = (g["out.points"] - low) / cell
    edge = (position - position.round()).abs() < 1e-9
    index = cell_index(points, grid, "trunc")
    assert torch.equal(index[~edge], g["out.voxel_index"].long()[~edge])
    assert not torch.equal(index, cell_index(points, grid, "floor"))


@pytest.mark.golden
@golden_file("bevdepth/voxel_pooling")
def test_recorded_pooling(path: Path) -> None:
    g = load(path)
    x, y, z = g["in.voxel_num"].tolist()
    for dtype, rtol in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        features = g["in.features"].to(dtype).requires_grad_()
        bev = splat(features, flat_cells(g["in.index"], (x, y, z)), (y, x))
        close(bev, g["out.bev"], rtol, rtol)
        (gradient,) = torch.autograd.grad((bev * g["in.cotangent"].to(dtype)).sum(), features)
        close(gradient, g["grad.features"], rtol, rtol)


@pytest.mark.golden
@golden_file("bevdepth/lift_splat")
def test_recorded_lift(path: Path) -> None:
    g = load(path)
    x, y, z = g["in.voxel_num"].tolist()
    logits, context = (g[f"in.{name}"].clone().requires_grad_() for name in ("depth_logits", "context"))
    batch = len(g["in.index"])
    cells = flat_cells(g["in.index"], (x, y, z)).view(batch, len(logits) // batch, *logits.shape[1:])
    bev = voxel_pool(logits.softmax(1), context, cells, (y, x))
    close(bev, g["out.bev"], 1e-9, 1e-12)
    gradients = torch.autograd.grad((bev * g["in.cotangent"]).sum(), (logits, context))
    close(gradients[0], g["grad.depth_logits"], 1e-9, 1e-12)
    close(gradients[1], g["grad.context"], 1e-9, 1e-12)


# -------------------------------------------------------------------------------------------------------------- pooling


def made_up(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    """Distributions, features and cells of any sizes; some points in no cell, some cells without a point."""
    generator = torch.Generator().manual_seed(seed)
    b, n, d, h, w, c, y, x = (int(torch.randint(1, 5, (1,), generator=generator)) for _ in range(8))
    depth = torch.rand(b * n, d, h, w, generator=generator, dtype=dtype)
    context = torch.randn(b * n, c, h, w, generator=generator, dtype=dtype)
    return depth, context, torch.randint(NO_CELL, y * x, (b, n, d, h, w), generator=generator), (y, x)


def by_outer_product(depth: Tensor, context: Tensor, cells: Tensor, size: tuple[int, int]) -> Tensor:
    volume = frustum_volume(context, depth).unflatten(0, cells.shape[:2])
    return splat(volume.permute(0, 1, 3, 4, 5, 2).flatten(1, 4), cells.flatten(1), size)


def with_gradients(pool, depth: Tensor, context: Tensor, cells: Tensor, size: tuple[int, int]) -> list[Tensor]:
    leaves = [depth.clone().requires_grad_(), context.clone().requires_grad_()]
    out = pool(*leaves, cells, size)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype)
    return [out, *torch.autograd.grad((out * cotangent).sum(), leaves)]


@given(st.integers(0, 10_000))
def test_pooling_is_the_sum_over_points(seed: int) -> None:
    inputs = made_up(seed)
    for ours, plain in zip(with_gradients(voxel_pool, *inputs), with_gradients(by_outer_product, *inputs), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_gradient_by_differences() -> None:
    depth, context, cells, size = made_up(7)
    leaves = (depth.requires_grad_(), context.requires_grad_())
    assert torch.autograd.gradcheck(lambda d, c: voxel_pool(d, c, cells, size), leaves)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["depth", "context"])
def test_only_the_gradient_that_is_asked_for(wanted: tuple[bool, bool]) -> None:
    depth, context, cells, size = made_up(7)
    expected = with_gradients(voxel_pool, depth, context, cells, size)[1:]
    leaves = [t.clone().requires_grad_(w) for t, w in zip((depth, context), wanted, strict=True)]
    out = voxel_pool(*leaves, cells, size)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype)
    (out * cotangent).sum().backward()
    for leaf, w, gradient in zip(leaves, wanted, expected, strict=True):
        assert (leaf.grad is not None) == w
        if w:
            assert torch.equal(leaf.grad, gradient)


@pytest.mark.parametrize("case", ["nothing inside", "no probability"])
def test_nothing_to_pool(case: str) -> None:
    depth, context, cells, size = made_up(7)
    if case == "nothing inside":
        cells = torch.full_like(cells, NO_CELL)
    else:
        depth = torch.zeros_like(depth)
    out, of_depth, of_context = with_gradients(voxel_pool, depth, context, cells, size)
    assert not out.any() and not of_context.any()
    assert of_depth.any() == (case == "no probability")  # so that probability can grow


def test_pooling_is_repeatable_and_exact_under_autocast() -> None:
    inputs = made_up(11, torch.float32)
    first = with_gradients(voxel_pool, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        again = with_gradients(voxel_pool, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    depth, context, cells, size = inputs
    assert voxel_pool(depth, context.bfloat16(), cells, size).dtype == torch.float32


def test_samples_of_a_batch_do_not_mix() -> None:
    depth, context, cells, size = next(i for i in map(made_up, range(100)) if len(i[2]) == 3)
    n = cells.shape[1]
    together = voxel_pool(depth, context, cells, size)
    for i in range(len(cells)):
        mine = slice(i * n, (i + 1) * n)
        alone = voxel_pool(depth[mine], context[mine], cells[i : i + 1], size)
        torch.testing.assert_close(together[i], alone[0], rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------- geometry


def made_up_cameras(seed: int, batch: int = 2, cameras: int = 3) -> dict[str, Tensor]:
    """Cameras around a vehicle that look in all directions, with augmented pictures and ground."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    def eye(*shape: int) -> Tensor:
        return torch.eye(4, dtype=torch.float64).repeat(*shape, 1, 1)

    def turned(angle: Tensor) -> Tensor:
        out = eye(*angle.shape)
        out[..., 0, 0], out[..., 0, 1], out[..., 1, 0], out[..., 1, 1] = (
            angle.cos(),
            -angle.sin(),
            angle.sin(),
            angle.cos(),
        )
        return out

    shape = (batch, cameras)
    intrinsics = eye(*shape)
    intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = uniform(60, 120, *shape)
    intrinsics[..., 0, 2], intrinsics[..., 1, 2] = SIZE[0] / 2, SIZE[1] / 2
    image_affine = turned(uniform(-0.1, 0.1, *shape))
    image_affine[..., :2, :2] *= uniform(0.4, 0.6, *shape)[..., None, None]
    image_affine[..., :2, 3] = uniform(-20, 20, *shape, 2)
    forward = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    camera_to_ego = turned(uniform(-3, 3, *shape)) @ forward
    camera_to_ego[..., :3, 3] = uniform(-1, 1, *shape, 3) + torch.tensor([0, 0, 1.5])
    bev_affine = turned(uniform(-0.4, 0.4, batch))
    bev_affine[:, :3, :3] *= uniform(0.95, 1.05, batch)[:, None, None]
    bev_affine[0, 1, :] *= -1
    return {
        "image_affine": image_affine, "intrinsics": intrinsics, "camera_to_ego": camera_to_ego,
        "bev_affine": bev_affine,
    }  # fmt: skip


@given(st.integers(0, 10_000), st.sampled_from(["ends", "centres"]))
def test_projection_inverts_the_frustum(seed: int, positions: str) -> None:
    cameras = made_up_cameras(seed)
    cells = frustum(SIZE, STRIDE, BINS, positions)
    points = frustum_points(cells, **cameras)
    n = points.shape[1]
    for camera in range(n):
        pixel, depth = camera_pixels(points[:, camera].flatten(1, 3), **cameras)
        expected = cells.double().flatten(0, 2)
        torch.testing.assert_close(depth[:, camera], expected[:, 2].expand(len(depth), -1), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(pixel[:, camera], expected[:, :2].expand(len(depth), -1, -1), rtol=1e-8, atol=1e-6)


@pytest.mark.parametrize("positions", ["ends", "centres"])
def test_nearest_cell(positions: str) -> None:
    at = pixel_positions(SIZE[0], STRIDE, positions)
    pixels = torch.linspace(-20, SIZE[0] + 20, 997)
    expected = (pixels[:, None] - at).abs().argmin(1)
    found = nearest_cell(pixels, SIZE[0], STRIDE, positions)
    between = ((pixels[:, None] - at).abs().sort(1).values.diff(dim=1)[:, 0]) < 1e-3
    assert torch.equal(found[~between], expected[~between])
    assert pixel_positions(STRIDE, STRIDE, positions).shape == (1,)
    assert not nearest_cell(pixels, STRIDE, STRIDE, positions).any()


def test_truncation_widens_the_first_cell() -> None:
    points = torch.tensor([[-25.7, 0, 0], [-27.1, 0, 0], [-27.3, 0, 0], [0, -26.0, 0], [25.7, 0, 0], [0, 0, 3.1]])
    width = GRID.shape[0]
    trunc, floor = (ground_cells(points, GRID, rounding) for rounding in ("trunc", "floor"))
    assert trunc.tolist() == [16 * width, 16 * width, NO_CELL, 16, NO_CELL, NO_CELL]
    assert floor.tolist() == [NO_CELL] * 6
    inside = torch.tensor([[-25.5, -25.5, 0.0], [25.5, 25.5, 2.9]])
    for rounding in ("trunc", "floor"):
        assert ground_cells(inside, GRID, rounding).tolist() == [0, width * GRID.shape[1] - 1]


def test_features_land_where_they_are_seen() -> None:
    """With all probability in one bin, the ground holds a pixel's feature in the cell of the point at its depth."""
    cameras = made_up_cameras(3, batch=1, cameras=1)
    points = frustum_points(frustum(SIZE, STRIDE, BINS), **cameras)
    cells = ground_cells(points, GRID)
    index, row, column = 5, 1, 3
    depth, context = torch.zeros(1, BINS.count, 3, 8), torch.ones(1, 1, 3, 8)
    depth[0, index, row, column] = 1
    bev = voxel_pool(depth, context, cells, (GRID.shape[1], GRID.shape[0]))
    (place,) = bev[0, 0].nonzero().tolist()
    x, y, _ = points[0, 0, index, row, column].tolist()
    assert place == [int((y + 25.6) // 1.6), int((x + 25.6) // 1.6)]


def test_mirrored_ground_gives_the_mirrored_map() -> None:
    """With rounding as intended: mirroring the ground's augmentation mirrors the map, in both axes."""
    cameras = made_up_cameras(4)
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(6, BINS.count, 3, 8, generator=generator)
    context = torch.randn(6, 2, 3, 8, generator=generator)
    size = (GRID.shape[1], GRID.shape[0])

    def pooled(bev_affine: Tensor) -> Tensor:
        points = frustum_points(frustum(SIZE, STRIDE, BINS), **cameras | {"bev_affine": bev_affine})
        return voxel_pool(depth, context, ground_cells(points, GRID, "floor"), size)

    plain = pooled(cameras["bev_affine"])
    assert plain.any()
    for axis, dimension in ((0, -1), (1, -2)):
        mirror = torch.eye(4, dtype=torch.float64)
        mirror[axis, axis] = -1
        torch.testing.assert_close(pooled(mirror @ cameras["bev_affine"]).flip(dimension), plain)
