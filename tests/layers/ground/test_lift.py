"""The lift: equal to sampling the frustum, true to the camera's geometry, mirrored in a mirrored world."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from made_up import CAMERA, LIDAR_TO_CAMERA, SIZE
from torch import Tensor

from distill3d.camera import Camera, DepthBins
from distill3d.data.augment.image import mirror_pose
from distill3d.layers.ground.lift import (
    depth_probability,
    frustum_volume,
    lift,
    one_hot_depth,
    sample_volume,
    sampling_grid,
    sparse_average_pool,
    voxel_centres,
)
from distill3d.layers.points.voxels import VoxelGrid

STRIDE = 8
#: A canvas whose sides the stride divides, somewhat larger than the picture.
CANVAS = (1248, 384)
BINS = DepthBins(2.0, 46.8, 30)
VOXELS = VoxelGrid((2.0, -12.8, -2.0, 40.4, 12.8, 1.2), (1.6, 1.6, 0.8))


def made_up_lift(seed: int, channels: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Features, distributions, and a grid with points inside, on the border and far outside."""
    generator = torch.Generator().manual_seed(seed)
    size = [int(torch.randint(1, 5, (1,), generator=generator)) for _ in range(4)]
    batch, depths, height, width = size[0], *(s + 1 for s in size[1:])
    features = torch.randn(batch, channels, height, width, generator=generator, dtype=dtype)
    logits = torch.randn(batch, depths + 1, height, width, generator=generator, dtype=dtype)
    grid = 1.5 * torch.randn(batch, 3, 4, 2, 3, generator=generator)
    grid[:, 0, 0, 0] = torch.tensor([-1.0, 1.0, -1.0])
    grid[:, 0, 0, 1] = -2.0
    grid[:, 0, 1, 0, 0] = 1e30
    return features, depth_probability(logits), grid


@given(st.integers(0, 10_000))
def test_lift_samples_the_frustum(seed: int) -> None:
    features, probability, grid = made_up_lift(seed)
    cotangent = torch.randn(
        grid.shape[0], 3, 2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=features.dtype
    )
    answers = []
    for way in (lift, lambda f, p, g: sample_volume(frustum_volume(f, p), g)):
        leaves = [t.clone().requires_grad_() for t in (features, probability)]
        out = way(*leaves, grid)
        answers.append((out, *torch.autograd.grad((out * cotangent).sum(), leaves)))
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_lift_stays_in_float32_under_autocast() -> None:
    features, probability, grid = made_up_lift(3, dtype=torch.float32)
    exact = lift(features, probability, grid)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lift(features, probability, grid), exact)
    half = lift(features.bfloat16(), probability, grid)
    assert half.dtype == torch.float32


def grid_of(normalisation: str, camera: Camera = CAMERA, pose: Tensor = LIDAR_TO_CAMERA) -> Tensor:
    batched = Camera(camera.projection[None])
    return sampling_grid(VOXELS, batched, pose[None], BINS, CANVAS, STRIDE, normalisation)


def projected() -> tuple[Tensor, Tensor, Tensor]:
    """Of each voxel centre pixel, bin position, and whether all corners of its sample lie in the frustum."""
    points = voxel_centres(VOXELS).flatten(0, 2) @ LIDAR_TO_CAMERA[:3, :3].T + LIDAR_TO_CAMERA[:3, 3]
    uv, depth = CAMERA.project(points, "homogeneous")
    position = BINS.position(depth)
    edge, size = STRIDE / 2, torch.tensor(CANVAS)
    inner = ((uv > edge) & (uv < size - edge)).all(-1) & (position > 0.5) & (position < BINS.count - 0.5)
    shape = voxel_centres(VOXELS).shape[:3]
    return uv.view(*shape, 2), position.view(shape), inner.view(shape)


def test_intended_sampling_reads_what_lies_there() -> None:
    """A map of pixel coordinates, spread over all depths alike, gives each voxel the pixel it is seen at; one that
    rises by 1 per bin gives its continuous bin."""
    uv, position, inner = projected()
    assert inner.sum() > 100
    width, height = CANVAS[0] // STRIDE, CANVAS[1] // STRIDE
    v, u = torch.meshgrid(*((torch.arange(n) + 0.5) * STRIDE for n in (height, width)), indexing="ij")
    pixels, flat = torch.stack((u, v))[None], torch.ones(1, BINS.count, height, width)
    read = lift(pixels, flat, grid_of("intended"))[0].permute(2, 3, 1, 0)  # (Y, X, Z, 2)
    torch.testing.assert_close(read[inner], uv[inner].float(), rtol=0, atol=0.02)
    centres = (torch.arange(BINS.count) + 0.5).view(1, -1, 1, 1).expand(1, -1, height, width)
    found = lift(torch.ones(1, 1, height, width), centres, grid_of("intended"))[0, 0].permute(1, 2, 0)
    torch.testing.assert_close(found[inner], position[inner].float(), rtol=0, atol=1e-3)


def test_released_sampling_is_a_little_off() -> None:
    """By u (1 / (W - 1) - 1 / W), in units of the map's width, and b / (D - 1) of a bin."""
    uv, position, _ = projected()
    released, intended = grid_of("released")[0], grid_of("intended")[0]
    ahead = (position.isfinite() & (released > -1).all(-1) & (released < 1).all(-1)).nonzero().unbind(-1)
    shift = (released - intended)[ahead].double()
    width, height = CANVAS
    expected = torch.stack((
        2 * uv[ahead][:, 0] * (1 / (width - 1) - 1 / width), 2 * uv[ahead][:, 1] * (1 / (height - 1) - 1 / height),
        2 * position[ahead] * (1 / (BINS.count - 1) - 1 / BINS.count),
    ), dim=-1)  # fmt: skip
    torch.testing.assert_close(shift, expected, rtol=0, atol=1e-6)
    assert len(shift) > 100


def test_sampling_between_corners_is_the_released_one_in_the_other_mode() -> None:
    generator = torch.Generator().manual_seed(2)
    width, height = CANVAS[0] // STRIDE, CANVAS[1] // STRIDE
    features = torch.randn(1, 2, height, width, generator=generator)
    probability = torch.rand(1, BINS.count, height, width, generator=generator)
    frustum = frustum_volume(features, probability)
    expected = F.grid_sample(frustum, grid_of("released"), align_corners=True).permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(lift(features, probability, grid_of("corners")), expected, rtol=1e-3, atol=1e-3)
    assert expected.abs().amax() > 1


def test_mirrored_world_gives_the_mirrored_volume() -> None:
    generator = torch.Generator().manual_seed(1)
    width, height = CANVAS[0] // STRIDE, CANVAS[1] // STRIDE
    features = torch.randn(1, 2, height, width, generator=generator)
    probability = torch.rand(1, BINS.count, height, width, generator=generator)
    plain = lift(features, probability, grid_of("intended"))
    mirrored = grid_of("intended", CAMERA.mirrored(CANVAS[0]), mirror_pose(LIDAR_TO_CAMERA))
    flipped = lift(features.flip(-1), probability.flip(-1), mirrored)
    torch.testing.assert_close(flipped, plain.flip(-2), rtol=1e-4, atol=1e-4)
    assert plain.abs().amax() > 1


def test_nothing_behind_the_camera_or_beside_the_picture() -> None:
    behind = VoxelGrid((-20.0, -5.0, -2.0, -1.0, 5.0, 2.0), (1.0, 1.0, 1.0))
    beside = VoxelGrid((3.0, 40.0, -2.0, 8.0, 50.0, 2.0), (1.0, 1.0, 1.0))
    ones = torch.ones(1, 1, 48, 156), torch.ones(1, BINS.count, 48, 156)
    for voxels in (behind, beside):
        grid = sampling_grid(voxels, Camera(CAMERA.projection[None]), LIDAR_TO_CAMERA[None], BINS, CANVAS, STRIDE)
        assert grid.isfinite().all()
        assert not lift(*ones, grid).any()


@pytest.mark.parametrize("size", [SIZE, CANVAS, (8, 8), (3, 5)])
def test_sparse_average_pool(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    depth = 60 * torch.rand(2, 1, size[1], size[0], generator=generator)
    depth[torch.rand(depth.shape, generator=generator) < 0.97] = 0
    pooled = sparse_average_pool(depth, STRIDE)
    assert pooled.shape == (2, -(-size[1] // STRIDE), -(-size[0] // STRIDE))
    for image in range(2):
        for row in range(0, pooled.shape[1], 5):
            for column in range(0, pooled.shape[2], 7):
                block = depth[image, 0, row * STRIDE : (row + 1) * STRIDE, column * STRIDE : (column + 1) * STRIDE]
                known = block[block > 0]
                expected = float(known.mean()) if len(known) else 0.0
                assert float(pooled[image, row, column]) == pytest.approx(expected, abs=1e-4)


def test_one_hot_depth_leaves_out_what_is_unknown() -> None:
    bins = torch.tensor([[[0, 3], [2, 1]]])
    hot = one_hot_depth(bins, 3)
    assert torch.equal(hot.sum(1), torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]))
    assert torch.equal(hot.argmax(1)[bins < 3], bins[bins < 3])
