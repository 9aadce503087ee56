"""Augmentation of surround views: the record says exactly what happened to the pixels, boxes move with the points."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from distill3d.boxes import Boxes3D
from distill3d.data.augment.image import frame_generator
from distill3d.data.augment.surround import (
    BevAugmentConfig,
    BevMotion,
    ImageAugmentConfig,
    ImagePlacement,
    draw_placements,
    fit_scale,
    place_picture,
)
from distill3d.errors import UserError
from distill3d.settings import check_settings

OFFICIAL, CANVAS = (1600, 900), (704, 256)
seeds = st.integers(0, 2**31)

placements = st.builds(
    ImagePlacement,
    source=st.sampled_from([(320, 180), (300, 200)]),
    resized=st.tuples(st.integers(120, 260), st.integers(60, 150)),
    corner=st.tuples(st.integers(-20, 60), st.integers(-20, 60)),
    canvas=st.just((140, 70)),
    flip=st.booleans(),
    rotation=st.just(0.0) | st.floats(-0.1, 0.1),
)


def test_the_test_placement_is_the_published_one() -> None:
    placement = place_picture(OFFICIAL, CANVAS)
    assert (placement.resized, placement.corner) == ((704, 396), (0, 140))
    expected = torch.tensor([[0.44, 0, 0, 0], [0, 0.44, 0, -140], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    assert torch.allclose(placement.matrix, expected, atol=1e-12, rtol=0)


def canvas_pixels(placement: ImagePlacement) -> torch.Tensor:
    """Centres of the canvas's pixels, (h, w, 2)."""
    width, height = placement.canvas
    u, v = torch.arange(width).double() + 0.5, torch.arange(height).double() + 0.5
    return torch.stack(torch.meshgrid(u, v, indexing="xy"), -1)


@given(placements, seeds)
def test_a_mask_lands_where_its_picture_does(placement: ImagePlacement, seed: int) -> None:
    """Of blocks of whole numbers, beyond 8 bits, nothing but these numbers is on the canvas, each in its place."""
    numbers = np.random.default_rng(seed).integers(1, 10_000, (5, 6))
    width, height = placement.source
    mask = np.kron(numbers, np.ones((height // 5, width // 6 + 1), int))[:height, :width].astype(np.uint16)
    placed = placement.apply_mask(Image.fromarray(mask)).numpy()
    u, v = (canvas_pixels(placement) - placement.matrix[:2, 3]).matmul(placement.matrix[:2, :2].inverse().T).unbind(-1)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    column, row = (x.floor().clamp(0, n - 1).long().numpy() for x, n in ((u, width), (v, height)))
    assert set(np.unique(placed)) <= {0, *numbers.ravel().tolist()}
    assert (placed == np.where(inside.numpy(), mask[row, column], 0)).mean() > 0.9


@given(placements, st.floats(24, 116), st.floats(24, 46))
def test_a_mark_lands_where_the_matrix_says(placement: ImagePlacement, across: float, down: float) -> None:
    # A bright disc on black: its centre of brightness on the canvas is found to a fraction of a pixel.
    target = torch.tensor([across, down, 1, 1], dtype=torch.float64)
    u, v = torch.linalg.solve(placement.matrix, target)[:2].tolist()
    width, height = placement.source
    assume(20 < u < width - 20 and 20 < v < height - 20)
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    mark = 255 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * 5.0**2))
    picture = Image.fromarray(np.repeat(mark[..., None].round().astype(np.uint8), 3, axis=2))
    seen = placement.apply(picture)[1].double()
    assert tuple(seen.shape) == placement.canvas[::-1]
    at = (seen[..., None] * canvas_pixels(placement)).sum((0, 1)) / seen.sum()
    # Turned pixels are taken from the nearest one: that may be off by half a pixel's diagonal.
    assert torch.dist(at, target[:2]) < (0.5 * math.sqrt(2) if placement.rotation else 0.05)


@given(placements)
def test_what_lies_outside_the_picture_is_black(placement: ImagePlacement) -> None:
    seen = placement.apply(Image.new("RGB", placement.source, (255, 255, 255)))[0]
    pixels = canvas_pixels(placement).reshape(-1, 2)
    source = torch.linalg.solve(placement.matrix[:2, :2], (pixels - placement.matrix[:2, 3]).T).T
    room = torch.minimum(source, torch.tensor(placement.source, dtype=torch.float64) - source).amin(1)
    # Corners that the turn brings in were beyond the canvas, whether or not the picture goes on there.
    width, height = placement.canvas
    c, s = math.cos(placement.rotation), math.sin(placement.rotation)
    middle = pixels.new_tensor((width / 2, height / 2))
    before = (pixels - middle) @ pixels.new_tensor(((c, s), (-s, c))) + middle
    kept = torch.minimum(before, pixels.new_tensor((width, height)) - before).amin(1)
    edge = 3.0  # px of the picture: one of the canvas, at the least scale
    assert bool((seen.flatten()[(room > edge) & (kept > 1)] == 255).all())
    assert bool((seen.flatten()[(room < -edge) | (kept < -1)] == 0).all())


@given(placements)
def test_resizing_the_window_equals_resizing_all_and_cutting(placement: ImagePlacement) -> None:
    # Rows first or columns first, whichever Pillow finds cheaper: rounding in between differs.  Away from black and
    # white, where overshoots would be cut too.
    coarse = np.random.default_rng(sum(placement.resized)).integers(60, 200, (20, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(placement.source, Image.Resampling.BILINEAR)
    (x, y), (width, height) = placement.corner, placement.canvas
    cut = picture.resize(placement.resized, Image.Resampling.BICUBIC).crop((x, y, x + width, y + height))
    if placement.flip:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    cut = np.asarray(cut.rotate(math.degrees(placement.rotation), Image.Resampling.NEAREST)).astype(int)
    assert np.abs(placement.apply(picture).permute(1, 2, 0).numpy() - cut).max() <= 2  # grey levels


@given(seeds)
def test_drawn_placements_keep_the_bottom_and_the_ranges(seed: int) -> None:
    config = ImageAugmentConfig()
    drawn = draw_placements([OFFICIAL] * 6, CANVAS, config, frame_generator(seed, 0, 0))
    assert len({placement.resized for placement in drawn}) > 1  # each camera by draws of its own
    for placement in drawn:
        scale = placement.resized[0] / OFFICIAL[0]
        assert 0.386 - 1e-3 <= scale <= 0.55 + 1e-3
        assert placement.corner[1] + CANVAS[1] == placement.resized[1]
        assert 0 <= placement.corner[0] <= max(0, placement.resized[0] - CANVAS[0])
        assert abs(placement.rotation) <= math.radians(5.4)
    assert drawn == draw_placements([OFFICIAL] * 6, CANVAS, config, frame_generator(seed, 0, 0))


def test_one_setting_leaves_the_other_draws_alone() -> None:
    plain = draw_placements([OFFICIAL], CANVAS, ImageAugmentConfig(flip=0), frame_generator(3, 0, 0))[0]
    mirrored = draw_placements([OFFICIAL], CANVAS, ImageAugmentConfig(flip=1), frame_generator(3, 0, 0))[0]
    assert (plain.flip, mirrored.flip) == (False, True)
    assert (plain.resized, plain.corner, plain.rotation) == (mirrored.resized, mirrored.corner, mirrored.rotation)


@given(st.tuples(st.integers(10, 2000), st.integers(10, 2000)), st.tuples(st.integers(10, 800), st.integers(10, 800)))
def test_a_fitted_picture_covers_the_canvas(source: tuple[int, int], canvas: tuple[int, int]) -> None:
    placement = place_picture(source, canvas)
    assert placement.resized[0] >= canvas[0] and placement.resized[1] >= canvas[1]
    assert placement.resized[0] == canvas[0] or placement.resized[1] == canvas[1]
    assert min(placement.corner) >= 0
    assert math.isclose(fit_scale(source, canvas), max(canvas[0] / source[0], canvas[1] / source[1]))


# ------------------------------------------------------------------------------------------------------------ ego frame


def scattered(seed: int, count: int) -> Boxes3D:
    g = torch.Generator().manual_seed(seed)
    draw = torch.rand(count, 9, generator=g, dtype=torch.float64)
    return Boxes3D(
        draw[:, :3] * 80 - 40, draw[:, 3:6] * 5 + 0.3, (draw[:, 6] - 0.5) * 2 * math.pi,
        torch.zeros(count, dtype=torch.int64), "ego", velocity=draw[:, 7:] * 20 - 10,
    )  # fmt: skip


motions = st.builds(BevMotion, st.floats(-3, 3), st.floats(0.5, 2), st.booleans(), st.booleans())


@given(motions, seeds)
def test_boxes_move_with_what_is_inside_them(motion: BevMotion, seed: int) -> None:
    boxes = scattered(seed, 4)
    # Points at the same relative places of each box: near its faces, on either side of them.
    inner = boxes.centre[:, None] + (boxes.corners() - boxes.centre[:, None]) * 0.99
    outer = boxes.centre[:, None] + (boxes.corners() - boxes.centre[:, None]) * 1.01
    moved = motion.boxes(boxes)
    for points, inside in ((inner, True), (outer, False)):
        at = motion.points(points.reshape(-1, 3), scale_heights=True)
        own = moved.contains(at).unflatten(1, (4, 8))[range(4), range(4)]
        assert bool((own == inside).all())
        homogeneous = torch.cat((points.reshape(-1, 3), torch.ones(32, 1, dtype=torch.float64)), 1)
        assert torch.allclose((homogeneous @ motion.matrix.T)[:, :3], at, atol=1e-9, rtol=0)


@given(motions, seeds)
def test_velocity_and_heading_follow_the_matrix(motion: BevMotion, seed: int) -> None:
    boxes = scattered(seed, 3)
    moved = motion.boxes(boxes)
    # Where an object is after a second, moved, is where the moved object is after a second.
    assert boxes.velocity is not None and moved.velocity is not None
    later = torch.cat((boxes.centre[:, :2] + boxes.velocity, boxes.centre[:, 2:]), 1)
    expected = motion.points(later, scale_heights=True)[:, :2]
    assert torch.allclose(moved.centre[:, :2] + moved.velocity, expected, atol=1e-9, rtol=0)
    heading = boxes.heading() @ motion.matrix[:3, :3].T / motion.scale
    assert torch.allclose(moved.heading(), heading, atol=1e-9, rtol=0)


def test_the_released_code_leaves_heights_of_points() -> None:
    points = torch.tensor([[1.0, 2.0, 3.0, 40.0, 0.1]])
    motion = BevMotion(scale=1.05, flip_x=True)
    assert torch.allclose(motion.points(points, False), torch.tensor([[-1.05, 2.1, 3.0, 40.0, 0.1]]))
    assert torch.allclose(motion.points(points, True), torch.tensor([[-1.05, 2.1, 3.15, 40.0, 0.1]]))


@pytest.mark.parametrize(
    ("flips", "yaw"), [((False, False), 0.3), ((True, False), math.pi - 0.3), ((False, True), -0.3)]
)
def test_yaw_of_mirrored_boxes(flips: tuple[bool, bool], yaw: float) -> None:
    box = Boxes3D(torch.zeros(1, 3), torch.ones(1, 3), torch.tensor([0.3]), torch.zeros(1, dtype=torch.int64), "ego")
    assert math.isclose(float(BevMotion(0.0, 1.0, *flips).boxes(box).yaw), yaw, abs_tol=1e-6)


def test_no_boxes_and_unknown_velocities_pass() -> None:
    motion = BevMotion(0.2, 1.02, True, False)
    assert len(motion.boxes(scattered(0, 0))) == 0
    boxes = scattered(0, 2)
    assert boxes.velocity is not None
    boxes.velocity[0] = math.nan
    velocity = motion.boxes(boxes).velocity
    assert velocity is not None and velocity.isnan().any(1).tolist() == [True, False]


def test_boxes_of_another_frame_are_refused() -> None:
    with pytest.raises(ValueError, match="ego frame"):
        BevMotion().boxes(Boxes3D.empty("global"))


@given(seeds)
def test_motions_are_drawn_within_their_ranges(seed: int) -> None:
    config = BevAugmentConfig()
    motion = BevMotion.draw(config, frame_generator(seed, 0, 0))
    assert abs(motion.angle) <= math.radians(22.5) and 0.95 <= motion.scale <= 1.05
    assert motion == BevMotion.draw(config, frame_generator(seed, 0, 0))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ImageAugmentConfig(scale=(1.2, 0.8)), "scale is"),
        (lambda: ImageAugmentConfig(flip=1.5), "flip is 1.5"),
        (lambda: BevAugmentConfig(rotation=-0.1), "rotation is -0.1"),
        (lambda: BevAugmentConfig(flip_y=-1), "flip_y is -1"),
    ],
)
def test_impossible_settings_are_refused(make, named: str) -> None:
    with pytest.raises(UserError, match=named):
        check_settings(make())
