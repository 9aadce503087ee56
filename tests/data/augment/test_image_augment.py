"""Augmentation: one record for every modality, so that nothing drifts apart."""

import colorsys
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from distill3d.boxes import IGNORE, Boxes3D, wrap_angle
from distill3d.camera import Camera, Divide, ImageAffine
from distill3d.data.augment.image import (
    COLOUR_VALUES,
    COLOUR_VECTORS,
    AugmentConfig,
    DistortionConfig,
    Mode,
    Style,
    distort,
    draw_affine,
    frame_generator,
    jitter,
    mirror_boxes,
    place_objects,
    recolour,
    resample,
    to_canvas,
)
from distill3d.data.collate import collate
from distill3d.data.depth import project_depth
from distill3d.data.sample import Objects, Sample
from distill3d.errors import UserError
from distill3d.settings import check_settings
from distill3d.train.teachers import is_repeatable

SIZE, CANVAS = (62, 19), (64, 20)
seeds = st.integers(0, 2**40)


def scene(seed: int, p23: float = 0.0) -> Sample:
    """A frame in its file's pixels: boxes with points inside, and their sparse depth."""
    g = torch.Generator().manual_seed(seed % 2**31)
    projection = torch.tensor([[36, 0, 30, 1.5], [0, 36, 9, 0.1], [0, 0, 1, p23]], dtype=torch.float64)
    n = int(torch.randint(0, 5, (), generator=g)) + 1
    centre = torch.rand(n, 3, generator=g, dtype=torch.float64) * torch.tensor([16, 2, 40]) + torch.tensor([-8, 0, 4])
    size = torch.rand(n, 3, generator=g, dtype=torch.float64) * 3 + 0.5
    yaw = (torch.rand(n, generator=g, dtype=torch.float64) - 0.5) * 2 * math.pi
    alpha = wrap_angle(-yaw - torch.atan2(centre[:, 0], centre[:, 2]))
    corner = torch.rand(n, 2, generator=g, dtype=torch.float64) * torch.tensor([50, 12])
    box2d = torch.cat((corner, corner + 1 + 6 * torch.rand(n, 2, generator=g, dtype=torch.float64)), 1)
    label = torch.ones(n, dtype=torch.int64)
    label[-1] = IGNORE
    centre[-1], size[-1], yaw[-1], alpha[-1] = (math.nan,) * 4
    boxes = Boxes3D(centre, size, yaw, label, "camera", box2d=box2d, alpha=alpha)
    objects = Objects(boxes, torch.zeros(n), torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64))
    points = torch.rand(300, 4, generator=g, dtype=torch.float64) * torch.tensor([30, 6, 50, 1])
    points = torch.cat((points - torch.tensor([15, 3, 0, 0]), torch.cat((centre[:-1], centre[:-1, :1]), 1)))
    camera = Camera(projection)
    return Sample(
        f"{seed:06d}", torch.rand(3, SIZE[1], SIZE[0], generator=g), camera, ImageAffine.crop(SIZE, SIZE), objects,
        project_depth(points, camera, SIZE, "homogeneous")[None], points,
    )  # fmt: skip


def augmented(seed: int, p23: float = 0.0) -> tuple[Sample, Sample]:
    source = scene(seed, p23)
    config = AugmentConfig(crop=0.8, photometric=False)
    return source, to_canvas(source, CANVAS, config, frame_generator(seed, 0, 0), "nearest")


@given(seeds, st.sampled_from([("rect_z", 0.0), ("homogeneous", 0.0), ("homogeneous", 0.003)]))
def test_3d_centres_move_with_the_pixels(seed: int, case: tuple[Divide, float]) -> None:
    divide, p23 = case
    source, sample = augmented(seed, p23)
    assert source.objects is not None and sample.objects is not None
    before, after = source.objects.boxes.centre[:-1], sample.objects.boxes.centre[:-1]
    at, depth = source.camera.project(before, divide)
    moved, same_depth = sample.camera.project(after, divide)
    assert torch.allclose(moved, sample.affine.apply(at), atol=1e-6, rtol=0)
    assert torch.allclose(depth, same_depth, atol=1e-9, rtol=0)


@given(seeds)
def test_labels_points_and_cameras_stay_together(seed: int) -> None:
    source, sample = augmented(seed)
    assert source.objects is not None and sample.objects is not None
    assert source.points is not None and sample.points is not None
    before, after = source.objects.boxes, sample.objects.boxes
    assert before.box2d is not None and after.box2d is not None and after.alpha is not None
    assert torch.equal(before[:-1].contains(source.points[:, :3]), after[:-1].contains(sample.points[:, :3]))
    assert torch.allclose(sample.affine.invert_boxes(after.box2d), before.box2d, atol=1e-9)
    assert (after.box2d[:, 2:] > after.box2d[:, :2]).all()
    ray = torch.atan2(after.centre[:-1, 0], after.centre[:-1, 2])
    assert wrap_angle(after.alpha[:-1] - (-after.yaw[:-1] - ray)).abs().max().nan_to_num() < 1e-9 if len(ray) else True
    assert torch.isnan(after.centre[-1]).all() and torch.equal(after.label, before.label)
    batch = collate([sample, to_canvas(source, CANVAS)])
    assert torch.allclose(batch.source_camera.projection, source.camera.projection.expand(2, 3, 4), atol=1e-9)


@given(seeds)
def test_depth_stays_with_the_points(seed: int) -> None:
    """Every depth on the canvas is that of a point that projects within a source pixel of it."""
    _, sample = augmented(seed)
    assert sample.depth is not None and sample.points is not None
    row, column = sample.depth[0].nonzero().unbind(1)
    value = sample.depth[0, row, column].double()
    uv, z = sample.camera.project(sample.points[:, :3], "homogeneous")
    near = (z[None] - value[:, None]).abs() < 1e-4
    offset = (uv[None] - torch.stack((column, row), 1)[:, None] - 0.5).abs().amax(-1)
    reach = torch.where(near, offset, math.inf).amin(1) if len(row) else torch.zeros(0)
    assert (reach <= sample.affine.scale + 1e-6).all()


@given(seeds)
def test_without_generator_or_setting_nothing_is_random(seed: int) -> None:
    source = scene(seed)
    plain = to_canvas(source, CANVAS)
    for config, generator in ((AugmentConfig(), None), (None, frame_generator(seed, 0, 0))):
        other = to_canvas(source, CANVAS, config, generator)
        assert torch.equal(other.image, plain.image) and torch.equal(other.affine.matrix, plain.affine.matrix)
    assert not plain.affine.flip and plain.affine.zoom == 1
    same = to_canvas(source, SIZE)
    assert torch.equal(same.image, source.image)
    assert same.depth is not None and source.depth is not None and torch.equal(same.depth, source.depth)


@given(seeds)
def test_one_generator_state_gives_one_sample(seed: int) -> None:
    source = scene(seed)
    first, second = (to_canvas(source, CANVAS, AugmentConfig(), frame_generator(seed, 3, 5)) for _ in range(2))
    assert torch.equal(first.image, second.image) and torch.equal(first.affine.matrix, second.affine.matrix)


def test_frame_generators_are_independent() -> None:
    keys = [(s, e, i) for s in range(3) for e in range(20) for i in (-1, *range(20))]
    draws = torch.stack([torch.rand(2, generator=frame_generator(*key), dtype=torch.float64) for key in keys])
    assert len({tuple(d) for d in draws.tolist()}) == len(keys)
    assert (draws.mean(0) - 0.5).abs().max() < 0.05
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.1


def test_draws_follow_the_settings() -> None:
    config = AugmentConfig(flip=0.3, crop=0.6)
    records = [draw_affine(SIZE, CANVAS, config, frame_generator(0, 0, i)) for i in range(2000)]
    zoom = torch.stack([r.zoom for r in records])
    assert sum(bool(r.flip) for r in records) / 2000 == pytest.approx(0.3, abs=0.04)
    assert (zoom != 1).double().mean().item() == pytest.approx(0.6, abs=0.04)
    assert zoom.min() == 0.6 and zoom.max() == 1.4
    cropped = [r for r in records if r.zoom != 1]
    middle = torch.tensor(CANVAS, dtype=torch.float64)[None] / 2
    centres = torch.cat([replace(r, flip=torch.tensor(False)).invert(middle) for r in cropped])
    shift = centres / torch.tensor(SIZE) - 0.5
    assert shift.abs().max() <= 0.2 + 1e-9 and shift.std(0).tolist() == pytest.approx([0.095] * 2, abs=0.01)
    assert draw_affine(SIZE, CANVAS, AugmentConfig(flip=1, crop=0), frame_generator(0, 0, 0)).flip
    assert not draw_affine(SIZE, CANVAS, AugmentConfig(flip=0, crop=0), frame_generator(0, 0, 0)).flip


@pytest.mark.parametrize(
    "settings_", [{"flip": 1.5}, {"crop": -0.1}, {"zoom_range": (1.4, 0.6)}, {"zoom_range": (0, 1)}, {"shift": -1}]
)
def test_bad_settings(settings_: dict) -> None:
    with pytest.raises(UserError, match=next(iter(settings_))):
        check_settings(AugmentConfig(**settings_))


# ---------------------------------------------------------------------------------------------------------- resampling


@given(
    st.integers(0, 2**31), st.tuples(st.integers(1, 70), st.integers(1, 40)),
    st.tuples(st.integers(1, 70), st.integers(1, 40)), st.floats(0.6, 1.4), st.tuples(*[st.floats(-0.2, 0.2)] * 2),
)  # fmt: skip
def test_resampling_is_pillows(
    seed: int, size: tuple[int, int], canvas: tuple[int, int], zoom: float, shift: tuple[float, float]
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    affine = ImageAffine.crop(size, canvas, zoom, shift)
    scale, (across, down) = affine.scale.item(), affine.matrix[:, 2].tolist()
    inverse = (1 / scale, 0, -across / scale, 0, 1 / scale, -down / scale)
    position = [(np.arange(canvas[i]) + 0.5 - o) / scale for i, o in enumerate((across, down))]
    modes: tuple[tuple[Mode, float], ...] = (("bilinear", 1.0), ("nearest", 0.0))
    for mode, tolerance in modes:
        pillow_mode = Image.Resampling[mode.upper()]
        expected = Image.fromarray(pixels).transform(canvas, Image.Transform.AFFINE, inverse, pillow_mode)
        found = resample(torch.from_numpy(pixels)[None].float(), affine, mode)[0].numpy()
        # Pillow truncates to 8 bits.  Positions on an edge may fall to either side of it, so they do not count: for
        # bilinear the image's edges, for nearest every pixel's.
        edges = [np.abs(p - (np.clip(p, 0, n).round() if mode == "nearest" else np.where(p < n / 2, 0, n)))
                 for p, n in zip(position, size, strict=True)]  # fmt: skip
        clear = (edges[1] > 2e-3)[:, None] & (edges[0] > 2e-3)[None]
        assert np.abs(found - np.asarray(expected))[clear].max(initial=0) <= tolerance + 1e-3


@given(seeds, st.floats(0.6, 1.4))
def test_flips_are_exact_mirrors(seed: int, zoom: float) -> None:
    image = scene(seed).image
    for canvas in (SIZE, CANVAS):
        for mode in ("bilinear", "nearest"):
            flipped = resample(image, ImageAffine.crop(SIZE, canvas, zoom, (0.1, 0), flip=True), mode)
            plain = resample(image.flip(-1), ImageAffine.crop(SIZE, canvas, zoom, (0.1, 0)), mode)
            assert torch.equal(flipped, plain)
    assert torch.equal(resample(image, ImageAffine.crop(SIZE, SIZE, flip=True)), image.flip(-1))


def test_outside_is_zero_and_shear_is_refused() -> None:
    affine = ImageAffine.crop((8, 4), (16, 16))
    out = resample(torch.ones(1, 4, 8), affine)
    assert (out[0, 4:12] == 1).all() and out.sum() == 8 * 16
    matrix = affine.matrix.clone()
    matrix[0, 1] = 0.1
    with pytest.raises(ValueError, match="shears"):
        resample(torch.ones(1, 4, 8), replace(affine, matrix=matrix))


# ------------------------------------------------------------------------------------------------------- mirror, colour


@given(seeds)
def test_mirroring_twice_is_nothing(seed: int) -> None:
    boxes = replace(scene(seed).objects.boxes[:-1], velocity=None)  # pyright: ignore[reportOptionalMemberAccess]
    boxes = replace(boxes, velocity=torch.ones(len(boxes), 2))
    once = mirror_boxes(boxes)
    twice = mirror_boxes(once)
    assert torch.equal(twice.centre, boxes.centre) and torch.equal(once.centre[:, 0], -boxes.centre[:, 0])
    assert once.velocity is not None and (once.velocity == torch.tensor([-1.0, 1])).all()
    assert twice.alpha is not None and boxes.alpha is not None
    assert wrap_angle(twice.yaw - boxes.yaw).abs().sum() < 1e-9
    assert wrap_angle(twice.alpha - boxes.alpha).abs().sum() < 1e-9
    heading = boxes.heading() * torch.tensor([-1.0, 1, 1])
    assert torch.allclose(once.heading(), heading, atol=1e-9)


def test_mirroring_needs_the_camera_frame() -> None:
    with pytest.raises(ValueError, match="camera frame"):
        mirror_boxes(Boxes3D.empty("lidar"))


def test_no_objects() -> None:
    none = Objects(Boxes3D.empty("camera"), torch.zeros(0), torch.zeros(0).long(), torch.zeros(0).long())
    assert len(place_objects(none, ImageAffine.crop(SIZE, CANVAS, flip=True))) == 0


@pytest.mark.parametrize(("style", "luma"), [("released", (0.114, 0.587, 0.299)), ("intended", (0.299, 0.587, 0.114))])
@given(seed=seeds)
def test_jitter_is_the_steps_in_order(style, luma: tuple[float, float, float], seed: int) -> None:
    image = scene(seed).image
    found = jitter(image, frame_generator(seed, 0, 0), style)
    generator = frame_generator(seed, 0, 0)
    order = torch.randperm(3, generator=generator).tolist()
    factors = (0.6 + 0.8 * torch.rand(3, generator=generator, dtype=torch.float64)).tolist()
    noise = 0.1 * torch.randn(3, generator=generator, dtype=torch.float64).numpy()
    expected = image.double().numpy()
    grey = np.tensordot(luma, expected, 1)
    mean = grey.mean()
    for step in order:
        blend = (0, mean, grey)[step]
        expected = factors[step] * expected + (1 - factors[step]) * blend
    vectors = np.array(COLOUR_VECTORS if style == "released" else COLOUR_VECTORS[::-1])
    expected = expected + (vectors @ (np.array(COLOUR_VALUES) * noise))[:, None, None]
    assert np.abs(found.numpy() - expected).max() < 1e-5


def test_photometric_switch() -> None:
    source = scene(1)
    on, off = (
        to_canvas(source, SIZE, AugmentConfig(flip=0, crop=0, photometric=p), frame_generator(0, 0, 0))
        for p in (True, False)
    )
    assert torch.equal(off.image, source.image) and not torch.equal(on.image, source.image)
    assert torch.equal(on.affine.matrix, off.affine.matrix)


# --------------------------------------------------------------------------------------------------------- distortion

#: A step is always taken, where its range is not a single value that leaves the picture alone.
ONE = {"probability": 1.0, "brightness": 0.0, "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": 0.0}


def sorted_channels(image: torch.Tensor) -> torch.Tensor:
    """Without the order of the channels, which ``probability`` 1 always draws anew."""
    return image.sort(0).values


def in_hsv(image: torch.Tensor) -> np.ndarray:
    """Hue (share of the circle), saturation and value of each pixel, by the standard library."""
    pixels = image.double().flatten(1).T.tolist()
    return np.array([colorsys.rgb_to_hsv(*pixel) for pixel in pixels])


@given(seeds, st.sampled_from(["released", "intended"]))
def test_distorted_colours_stay_in_range(seed: int, style: Style) -> None:
    image = scene(seed).image
    found = distort(image, frame_generator(seed, 0, 0), DistortionConfig(probability=1), style)
    assert found.shape == image.shape and found.dtype == image.dtype
    assert found.min() >= 0 and found.max() <= 1


@given(seeds, st.sampled_from(["released", "intended"]))
def test_no_distortion_at_probability_0(seed: int, style: Style) -> None:
    image = (255 * scene(seed).image).round() / 255
    found = distort(image, frame_generator(seed, 0, 0), DistortionConfig(probability=0), style)
    assert (found - image).abs().max() < 1e-6


@given(seeds)
def test_distortion_leaves_all_but_the_picture(seed: int) -> None:
    """It is drawn after flip and crop, from the frame's own stream, and changes neither labels nor the source."""
    source = scene(seed)
    before, plain = source.image.clone(), AugmentConfig(photometric=False)
    distorted = replace(plain, distortion=DistortionConfig())
    first, second = (to_canvas(source, CANVAS, distorted, frame_generator(seed, 3, 5)) for _ in range(2))
    other = to_canvas(source, CANVAS, plain, frame_generator(seed, 3, 5))
    assert torch.equal(first.image, second.image) and torch.equal(source.image, before)
    assert torch.equal(first.affine.matrix, other.affine.matrix) and torch.equal(first.depth, other.depth)
    assert first.objects is not None and other.objects is not None
    for name in ("centre", "size", "yaw", "box2d", "alpha"):
        ours, theirs = getattr(first.objects.boxes, name), getattr(other.objects.boxes, name)
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


@given(seeds, st.floats(0, 1.0), st.floats(-180, 180))
def test_recolouring_turns_and_scales_in_hsv(seed: int, saturation: float, degrees: float) -> None:
    image = scene(seed).image
    before, after = in_hsv(image), in_hsv(recolour(image.double(), saturation, degrees))
    np.testing.assert_allclose(after[:, 2], before[:, 2], atol=1e-6)
    np.testing.assert_allclose(after[:, 1], saturation * before[:, 1], atol=1e-6)
    coloured = after[:, 1] > 1e-3
    turned = (after[:, 0] - before[:, 0] - degrees / 360)[coloured]
    np.testing.assert_allclose(turned - turned.round(), 0, atol=1e-4)


@pytest.mark.parametrize("changes", [{"brightness": 25.5}, {"contrast": (0.5, 1.5)}], ids=["brightness", "contrast"])
@given(seed=seeds)
def test_brightness_is_added_and_contrast_multiplies(changes: dict[str, Any], seed: int) -> None:
    image = (0.3 + 0.2 * scene(seed).image).double()  # nothing is clipped
    found = distort(image, frame_generator(seed, 0, 0), DistortionConfig(**{**ONE, **changes}))
    added = sorted_channels(found) - sorted_channels(image)
    factor = sorted_channels(found) / sorted_channels(image)
    changed, least, most = (added, -0.1, 0.1) if "brightness" in changes else (factor, 0.5, 1.5)
    assert changed.max() - changed.min() < 1e-9
    assert least - 1e-9 <= changed.mean() <= most + 1e-9


def test_distortions_follow_their_distribution() -> None:
    """Each step in half of the frames, all six orders of channels alike often; amounts evenly over their range."""
    grey = torch.full((3, 1, 1), 0.5, dtype=torch.float64)
    config = DistortionConfig(**{**ONE, "probability": 0.5, "brightness": 51.0})
    found = torch.stack([distort(grey, frame_generator(0, 0, i), config)[0, 0, 0] for i in range(2000)]) - 0.5
    moved = found[found != 0]
    assert len(moved) / 2000 == pytest.approx(0.5, abs=0.04)
    assert moved.min() > -0.2 and moved.max() < 0.2
    assert float(moved.mean()) == pytest.approx(0, abs=0.012) and float(moved.std()) == pytest.approx(0.1155, abs=0.006)
    colours = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)[:, None, None]
    orders = [tuple(distort(colours, frame_generator(1, 0, i), DistortionConfig(**ONE)).flatten().tolist())
              for i in range(1200)]  # fmt: skip
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6 and max(abs(count - 200) for count in counts) < 60


def test_released_values_come_in_again_at_the_other_end() -> None:
    """8-bit values of 256 and more begin at 0 again, those below 0 at 255; the intended ones are cut off."""
    bright = DistortionConfig(**{**ONE, "brightness": 255.0})
    values = torch.tensor([0.0, 128.0, 255.0])[:, None, None] / 255
    for index in range(8):
        wrapped = 255 * distort(values, frame_generator(0, 0, index), bright, "released")
        clipped = 255 * distort(values, frame_generator(0, 0, index), bright, "intended")
        inside = (clipped > 0) & (clipped < 255)
        assert (wrapped[inside] - clipped[inside].trunc()).abs().max() < 1.01
        assert (wrapped.round() - wrapped).abs().max() < 1e-4 and not torch.equal(wrapped[~inside], clipped[~inside])


@pytest.mark.parametrize(
    ("augment", "kept"),
    [(AugmentConfig(crop=0), False), (AugmentConfig(crop=0, photometric=False), True),
     (AugmentConfig(crop=0, photometric=False, distortion=DistortionConfig()), False)],
    ids=["jitter", "mirrored alone", "distortion"],
)  # fmt: skip
def test_answers_to_recoloured_pictures_are_not_kept(augment: AugmentConfig, kept: bool) -> None:
    assert is_repeatable(augment, "rgb") is kept
    assert is_repeatable(augment, "depth")


def test_pictures_in_the_corner_are_moved_by_whole_pixels() -> None:
    """As often as others are cropped, evenly up to ``move`` px either way; without it they stay."""
    generator = torch.Generator().manual_seed(0)
    config = AugmentConfig(flip=0.5, crop=0.5, move=3)
    moves = [draw_affine((40, 20), (48, 24), config, generator, "corner").matrix[:, 2].tolist() for _ in range(4000)]
    still = sum(move == [0, 0] for move in moves) / len(moves)
    assert 0.5 < still < 0.56  # half, and one in 49 of the others
    for axis in (0, 1):
        counts = Counter(move[axis] for move in moves if move != [0, 0])
        assert set(counts) == {-3, -2, -1, 0, 1, 2, 3} and max(counts.values()) < 1.5 * min(counts.values())
    plain = draw_affine((40, 20), (48, 24), replace(config, move=0), generator, "corner")
    assert torch.equal(plain.matrix, torch.eye(2, 3, dtype=torch.float64))
