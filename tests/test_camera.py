"""Cameras, the affine record and depth bins."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import golden_file
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distill3d.camera import Camera, DepthBins, Divide, ImageAffine, misfit

#: KITTI's P2 of most training frames.
P2 = torch.tensor(
    [[721.5377, 0, 609.5593, 44.85728], [0, 721.5377, 172.854, 0.2163791], [0, 0, 1, 0.002745884]], dtype=torch.float64
)
coordinate = st.floats(-30, 30)
points = st.lists(st.tuples(coordinate, coordinate, st.floats(1, 90)), min_size=1, max_size=8)
affines = st.tuples(
    st.integers(20, 1300), st.integers(20, 400), st.sampled_from([(1280, 384), (320, 96), (64, 20)]),
    st.floats(0.6, 1.4), st.tuples(*[st.floats(-0.2, 0.2)] * 2), st.booleans(),
)  # fmt: skip


def record(values: tuple) -> ImageAffine:
    width, height, canvas, zoom, shift, flip = values
    return ImageAffine.crop((width, height), canvas, zoom, shift, flip)


def tensor(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-7) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=tolerance)


@pytest.mark.parametrize("divide", ["rect_z", "homogeneous"])
def test_projection_by_hand(divide: Divide) -> None:
    uv, depth = Camera(P2).project(tensor([[2.0, 1.5, 20.0]]), divide)
    w = 20.0 if divide == "rect_z" else 20.002745884
    expected = [(721.5377 * 2 + 609.5593 * 20 + 44.85728) / w, (721.5377 * 1.5 + 172.854 * 20 + 0.2163791) / w]
    assert uv[0].tolist() == pytest.approx(expected) and depth.item() == pytest.approx(20.0)


@given(points)
def test_back_projection_inverts_projection(xyz: list) -> None:
    camera = Camera(P2)
    uv, depth = camera.project(tensor(xyz))
    assert close(camera.back_project(uv, depth), tensor(xyz))


@given(points)
def test_the_two_divides_differ_by_the_third_row(xyz: list) -> None:
    (exact, depth), (released, same) = (Camera(P2).project(tensor(xyz), d) for d in ("homogeneous", "rect_z"))
    assert close(depth, same) and close(exact * (1 + P2[2, 3] / depth)[:, None], released)
    flat = P2.clone()
    flat[2, 3] = 0
    assert close(Camera(flat).project(tensor(xyz), "homogeneous")[0], Camera(flat).project(tensor(xyz), "rect_z")[0])


@given(points, affines)
def test_warped_and_mirrored_cameras_follow_the_pixels(xyz: list, values: tuple) -> None:
    affine, world = record(values), tensor(xyz)
    seen = world * torch.tensor([-1.0, 1, 1]) if affine.flip else world
    uv, depth = Camera(P2).project(world, "homogeneous")
    moved, same = affine.camera(Camera(P2)).project(seen, "homogeneous")
    assert close(moved, affine.apply(uv), 1e-6) and close(depth, same)


@given(points, affines)
def test_affine_inverse(uvz: list, values: tuple) -> None:
    affine, uv = record(values), tensor(uvz)[:, :2]
    assert close(affine.invert(affine.apply(uv)), uv) and close(affine.apply(affine.invert(uv)), uv)
    boxes = torch.cat((uv, uv + 5), 1)
    moved = affine.apply_boxes(boxes)
    assert (moved[:, 2:] > moved[:, :2]).all() and close(affine.invert_boxes(moved), boxes)
    size = moved[:, 2:] - moved[:, :2]
    assert close(size, torch.full_like(size, 5) * affine.scale)


@given(st.lists(affines, min_size=1, max_size=4))
def test_stacked_records_equal_single_ones(values: list[tuple]) -> None:
    records = [record(v) for v in values]
    stacked = ImageAffine.stack(records)
    uv = torch.rand(len(records), 5, 2, dtype=torch.float64) * 100
    boxes = torch.cat((uv, uv + 3), -1)
    cameras = Camera(P2.expand(len(records), 3, 4))
    for i, single in enumerate(records):
        assert close(stacked.apply(uv)[i], single.apply(uv[i])) and close(stacked.invert(uv)[i], single.invert(uv[i]))
        assert close(stacked.apply_boxes(boxes)[i], single.apply_boxes(boxes[i]))
        assert close(stacked.camera(cameras).projection[i], single.camera(Camera(P2)).projection)


def test_uncropped_canvas() -> None:
    """The width fills the canvas; the height follows and is centred (1242 x 375 loses 1.2 px at top and bottom)."""
    affine = ImageAffine.crop((1242, 375), (1280, 384))
    corners = affine.apply(tensor([[0, 0], [1242, 375]]))
    cut = (375 * 1280 / 1242 - 384) / 2
    assert close(corners, tensor([[0, -cut], [1280, 384 + cut]])) and affine.scale.item() == 1280 / 1242
    same = ImageAffine.crop((320, 96), (320, 96))
    assert same.matrix.tolist() == [[1, 0, 0], [0, 1, 0]]
    zoomed = ImageAffine.crop((320, 96), (320, 96), zoom=0.5, shift=(0.1, 0.0))
    assert close(zoomed.apply(tensor([[192.0, 48]])), tensor([[160, 48]])) and zoomed.scale.item() == 2


# ----------------------------------------------------------------------------------------------------------- depth bins


@pytest.mark.golden
@golden_file("cmkd/depth_bins")
def test_depth_bins(path: Path) -> None:
    configs = json.loads((path.parent / "index.json").read_text())[path.name]["constants"]["configs (min,max,bins)"]
    with np.load(path) as data:
        golden = {key: torch.from_numpy(data[key]) for key in data}
    recorded = [key.split("_")[1:] for key in golden if key.startswith("out.cont_")]
    assert recorded
    for mode, number, precision in recorded:
        near, far, count = configs[int(number)]
        bins = DepthBins(near, far, int(count), mode)
        depth = golden[f"in.depth_{precision}"]
        expected = golden[f"out.cont_{mode}_{number}_{precision}"]
        tolerance = 1e-5 if precision == "f32" else 1e-10
        torch.testing.assert_close(bins.position(depth), expected, rtol=tolerance, atol=tolerance, equal_nan=True)
        # A position within rounding of a bin's edge may fall into either.
        clear = ~((expected - expected.round()).abs() < (1e-3 if precision == "f32" else 1e-9))
        assert clear.any()
        index = golden[f"out.index_{mode}_{number}_{precision}"]
        assert torch.equal(bins.index(depth)[clear], index[clear])
    for key in [k for k in golden if k.startswith("out.depth_")]:
        _, mode, number = key.split("_")
        near, far, count = configs[int(number)]
        index = torch.arange(len(golden[key]), dtype=torch.float64)
        depth = DepthBins(near, far, int(count), mode).depth(index)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(depth, golden[key], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", ["LID", "UD", "SID"])
@given(depth=st.floats(2.001, 46.7))
def test_bins_hold_their_depths(mode, depth: float) -> None:
    bins = DepthBins(2.0, 46.8, 120, mode)
    index = bins.index(tensor([depth]))
    low, high = bins.depth(index.double()).item(), bins.depth(index.double() + 1).item()
    assert low - 1e-4 <= depth <= high + 1e-4
    assert bins.position(bins.depth(index.double()).double()).item() == pytest.approx(index.item(), abs=1e-3)


@pytest.mark.parametrize("mode", ["LID", "UD", "SID"])
def test_depths_outside_have_the_last_class(mode) -> None:
    bins = DepthBins(2.0, 46.8, 120, mode)
    outside = tensor([-5.0, 0.0, 1.0, 47.5, 1e6, math.inf, math.nan])
    assert bins.index(outside).tolist() == [120] * 7
    assert replace(bins, count=80).index(outside).tolist() == [80] * 7


@pytest.mark.parametrize(
    ("camera", "size", "words"),
    [
        ((721, 721, 609, 172), (1242, 375), None),
        ((1266, 1266, 816, 491), (1600, 900), None),  # nuScenes' front camera
        ((721, 721, 609, 172), (2484, 750), "the principal point (x = 609 px) does not fit an image of 2484 x 750 px"),
        ((721, 721, 609, 172), (1242, 200), "the principal point (y = 172 px)"),
        ((0.58, 1.92, 0.49, 0.46), (1242, 375), "look like shares of the picture's size, expected px"),
        ((1, 1, 621, 187), (1242, 375), "a view of 180 degrees across, expected 0.5 to 160"),
        ((1e-30, 1e-30, 621, 187), (1242, 375), "the focal length 1e-30 px does not fit"),
        ((1e308, 721, 621, 187), (1242, 375), "the focal length 1e+308 px does not fit"),
        ((721, 1e30, 621, 187), (1242, 375), "degrees down"),
        ((400, 80, 320, 96), (640, 192), "no camera has the focal lengths 400 and 80 px"),
        ((400, 800, 320, 96), (640, 192), None),  # half as wide as it was taken
        ((100, 100, 0.5, 32), (1, 64), None),
        ((800, 800, 1.5, 1000), (3, 2000), None),
    ],
)
def test_cameras_that_cannot_have_taken_a_picture(camera: tuple, size: tuple[int, int], words: str | None) -> None:
    found = misfit(Camera.from_intrinsics(*camera), size)
    assert found is None if words is None else found is not None and words in found
