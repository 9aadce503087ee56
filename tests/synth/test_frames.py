"""Geometry and labels of rendered streets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from distill3d.errors import UserError
from distill3d.settings import check_settings
from distill3d.synth import Frame, StreetConfig, cars, labels, people, render_frame, sensors
from distill3d.synth.placing import StreetObject, standing
from distill3d.synth.settings import CAR_BODIES

SMALL = StreetConfig(width=160, height=48, rays_per_pixel_side=1, pedestrians=(1, 2), cyclists=(1, 2))
FRAMES = 12


@cache
def frame(index: int) -> Frame:
    return render_frame(3, index, SMALL)


def camera_points(shown: Frame) -> np.ndarray:
    rotation, shift = shown.rig.rect_from_velodyne
    return shown.points[:, :3] @ rotation.T + shift


@pytest.mark.parametrize("index", range(FRAMES))
def test_points_lie_in_their_label_boxes(index: int) -> None:
    shown = frame(index)
    points, margin = camera_points(shown), 0.12
    inside, total = 0, 0
    for label in shown.labels:
        own = points[shown.point_object_ids == label.object] - label.location
        cosine, sine = np.cos(label.yaw), np.sin(label.yaw)
        along, across = cosine * own[:, 0] - sine * own[:, 2], sine * own[:, 0] + cosine * own[:, 2]
        height, width, length = label.size
        held = (np.abs(along) < length / 2 + margin) & (np.abs(across) < width / 2 + margin)
        held &= (own[:, 1] < margin) & (own[:, 1] > -height - margin)
        inside, total = inside + int(held.sum()), total + len(held)
    assert total > 0
    assert inside >= 0.995 * total


@cache
def pitched_frame(index: int) -> Frame:
    return render_frame(3, index, replace(SMALL, pitch_sigma=3.0))


@pytest.mark.parametrize("index", range(FRAMES))
@pytest.mark.parametrize("make", [frame, pitched_frame], ids=["level", "pitched"])
def test_points_project_into_their_2d_boxes(make: Callable[[int], Frame], index: int) -> None:
    shown = make(index)
    pixels = shown.rig.project(camera_points(shown))
    size = np.array([SMALL.width, SMALL.height])
    seen = ((pixels > -0.5) & (pixels < size - 0.5)).all(1)
    inside, total = 0, 0
    for label in shown.labels:
        own = pixels[seen & (shown.point_object_ids == label.object)]
        box = np.array(label.box)
        held = ((own > box[:2] - 2) & (own < box[2:] + 2)).all(1)
        inside, total = inside + int(held.sum()), total + len(own)
    assert inside >= 0.995 * total


@pytest.mark.parametrize(("pitch", "overlap"), [(1.0, 0.9), (2.0, 0.82), (3.0, 0.75)])
def test_label_boxes_of_a_pitched_camera_still_fit(pitch: float, overlap: float) -> None:
    """Label boxes turn about the camera's y axis only: the IoU of each with the box that stands on the street."""
    inside = np.random.default_rng(0).uniform(-0.5, 0.5, (4000, 3)) + (0, 0, 0.5)
    for index in range(4):
        rig = sensors.random_rig(np.random.default_rng(index), frame(index).scene, replace(SMALL, pitch_sigma=pitch))
        for thing in frame(index).scene.objects:
            if thing.kind != "Car":
                continue
            location, yaw = labels.yaw_only_box(thing, rig)
            own = rig.to_camera(inside @ thing.matrix.T + thing.position) - location
            along = np.cos(yaw) * own[:, 0] - np.sin(yaw) * own[:, 2]
            across = np.sin(yaw) * own[:, 0] + np.cos(yaw) * own[:, 2]
            local = np.stack([along, across, own[:, 1] + thing.size[2] / 2], 1)
            held = (np.abs(local) < thing.size / 2).all(1)
            assert held.mean() / (2 - held.mean()) > overlap


@pytest.mark.parametrize("index", range(FRAMES))
def test_label_fields_are_in_range(index: int) -> None:
    for label in frame(index).labels:
        assert label.kind in {"Car", "Van", "Pedestrian", "Cyclist", "DontCare"}
        assert label.occluded in {0, 1, 2, 3}
        assert 0 <= label.truncated <= 1
        assert (label.kind == "DontCare") == (label.visible < labels.DONT_CARE_BELOW)
        x1, y1, x2, y2 = label.box
        assert 0 <= x1 < x2 <= SMALL.width - 1
        assert 0 <= y1 < y2 <= SMALL.height - 1
        difference = label.yaw - np.arctan2(label.location[0], label.location[2]) - label.alpha
        assert abs(labels.wrap(difference)) < 1e-9
        assert -np.pi <= label.alpha < np.pi
        fields = label.line().split()
        assert len(fields) == 15


def test_written_alpha_agrees_with_written_yaw() -> None:
    for index in range(FRAMES):
        for label in frame(index).labels:
            if label.kind == "DontCare":
                continue
            fields = [float(v) for v in label.line().split()[1:]]
            alpha, x, z, yaw = fields[2], fields[10], fields[12], fields[13]
            # Both angles are rounded to two decimals.
            assert abs(labels.wrap(yaw - np.arctan2(x, z) - alpha)) < 0.0101


def test_image_and_points_have_the_documented_form() -> None:
    shown = frame(0)
    assert shown.image.shape == (48, 160, 3)
    assert shown.image.dtype == np.uint8
    assert shown.points.dtype == np.float32
    assert shown.points.shape[1] == 4
    assert ((shown.points[:, 3] >= 0) & (shown.points[:, 3] <= 1)).all()
    assert len(shown.points) == len(shown.point_object_ids)
    assert shown.point_object_ids.min() >= -1
    assert shown.point_object_ids.max() < len(shown.scene.objects)
    azimuth = np.degrees(np.arctan2(shown.points[:, 1], shown.points[:, 0]))
    assert np.abs(azimuth).max() < 46
    assert np.linalg.norm(shown.points[:, :3], axis=1).max() < 81
    assert len(shown.points) > 10_000


def test_same_seed_same_frame_and_other_seeds_differ() -> None:
    again, other, next_one = render_frame(3, 0, SMALL), render_frame(4, 0, SMALL), render_frame(3, 1, SMALL)
    assert np.array_equal(again.image, frame(0).image)
    assert np.array_equal(again.points, frame(0).points)
    assert again.labels == frame(0).labels
    assert not np.array_equal(other.image, frame(0).image)
    assert not np.array_equal(next_one.image, frame(0).image)


def test_lidar_options_thin_the_points() -> None:
    config = replace(SMALL, lidar_beam_strides=(4,))
    few = render_frame(3, 0, config).points
    assert 0.15 < len(few) / len(frame(0).points) < 0.35
    half = render_frame(3, 0, replace(SMALL, lidar_keep=(0.5, 0.5))).points
    assert 0.45 < len(half) / len(frame(0).points) < 0.55


def test_lidar_ranges_scatter_by_two_centimetres() -> None:
    exact = render_frame(3, 0, replace(SMALL, lidar_range_sigma=0.0)).points
    noisy = frame(0).points
    ranges = [np.linalg.norm(p[:, :3].astype(float), axis=1) for p in (exact, noisy)]
    scatter = ranges[1] - ranges[0]
    assert abs(scatter.std() - 0.02) < 0.002
    assert abs(scatter.mean()) < 0.002


@pytest.mark.parametrize("pitch", [0.6, 3.0])
def test_plain_road_is_where_the_lidar_says(pitch: float) -> None:
    flat = replace(SMALL, grade_sigma=0.0, cars=(0, 0), vans=(0, 0), pedestrians=(0, 0), cyclists=(0, 0))
    flat = replace(flat, pitch_sigma=pitch)
    shown = render_frame(3, 0, flat)
    world = camera_points(shown) @ shown.rig.rotation.T + shown.rig.position
    near = (np.abs(world[:, 0]) < 1.0) & (world[:, 1] > 5) & (world[:, 1] < 15)
    ground = shown.scene.road.height(world[near, 0], world[near, 1])
    assert near.sum() > 100
    assert np.abs(world[near, 2] - ground).max() < 0.1
    assert shown.labels == ()


def lone_car(x: float, z: float, occluder: float | None = None) -> list[labels.Label]:
    """Labels of a car at camera-frame x, z (m) on flat ground, facing away, a tall one before it at `occluder`."""
    shown = render_frame(3, 0, replace(SMALL, cars=(0, 0), vans=(0, 0), pedestrians=(0, 0), cyclists=(0, 0)))
    rig = replace(shown.rig, rotation=np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]))
    mesh, size, tall = cars.template(0, True), np.array([3.9, 1.65, 1.5]), np.array([3.9, 1.9, 2.3])
    axes = standing(np.pi / 2, np.array([0.0, 0.0, 1.0]))
    spots = [(x, z, size)] + ([(x * occluder / z, occluder, tall)] if occluder else [])
    things = tuple(StreetObject("Car", s, axes, np.array([a, b, 0.0]), mesh) for a, b, s in spots)
    corners = np.concatenate(
        [(t.mesh.corners.reshape(-1, 3) @ t.matrix.T + t.position).reshape(-1, 3, 3) for t in things]
    )
    owner = np.repeat(np.arange(len(things)), len(mesh)).astype(np.int16)
    scene = replace(shown.scene, objects=things, corners=corners.astype(np.float32), object=owner)
    return labels.label_objects(scene, sensors.RayCaster(scene.corners), rig)


def test_free_car_has_exact_label() -> None:
    (label,) = lone_car(0.0, 12.0)
    assert (label.occluded, label.kind) == (0, "Car")
    assert label.truncated == 0
    assert abs(label.yaw + np.pi / 2) < 1e-9
    assert np.allclose(label.location[::2], (0.0, 12.0), atol=0.006)
    # The silhouette lies within the projected corners of the 3D box, mirrors aside.
    focal = 721.5377 * SMALL.width / 1242
    width = label.box[2] - label.box[0]
    assert 1.5 * focal / 12.0 < width < 1.8 * focal / (12.0 - 1.95)


def test_car_half_outside_is_half_truncated() -> None:
    focal, centre = 721.5377 * SMALL.width / 1242, 609.5593 * SMALL.width / 1242
    z = 14.0
    edge = (SMALL.width - 0.5 - centre) / focal * z
    (label,) = lone_car(edge, z)
    assert 0.35 < label.truncated < 0.65
    assert label.box[2] == SMALL.width - 1
    assert label.occluded == 0


def test_hidden_car_is_no_label_but_dont_care() -> None:
    far, near = lone_car(0.0, 20.0, occluder=10.0)
    assert near.kind == "Car"
    assert near.occluded == 0
    assert far.kind == "DontCare"
    assert far.line().startswith("DontCare -1 -1 -10 ")


def test_sizes_follow_kitti_statistics() -> None:
    rng = np.random.default_rng(0)
    drawn = {
        "car": (
            np.array([cars.random_car(rng, CAR_BODIES)[1][[2, 1, 0]] for _ in range(3000)]),
            (1.53, 1.63, 3.88),
            (0.14, 0.10, 0.43),
        ),
        "pedestrian": (
            np.array([people.random_pedestrian(rng, False)[1][[2, 1, 0]] for _ in range(1000)]),
            (1.76, 0.66, 0.84),
            (0.11, 0.14, 0.23),
        ),
        "cyclist": (
            np.array([people.random_cyclist(rng, False)[1][[2, 1, 0]] for _ in range(1000)]),
            (1.74, 0.60, 1.76),
            (0.10, 0.12, 0.18),
        ),
    }
    for sizes, mean, spread in drawn.values():
        assert np.allclose(sizes.mean(0), mean, rtol=0.03)
        assert np.allclose(sizes.std(0), spread, rtol=0.25)


def test_templates_fill_their_unit_boxes() -> None:
    for style in range(len(cars.ALL_STYLES)):
        for detailed in (False, True):
            points = cars.template(style, detailed).corners.reshape(-1, 3)
            # Mirrors stick out by some centimetres.
            assert np.allclose(points.min(0), (-0.5, -0.5, 0.0), atol=0.035)
            assert np.allclose(points.max(0), (0.5, 0.5, 1.0), atol=0.035)
    for mesh in (people.pedestrian(2, 1, 1, True)[0], people.cyclist(0, 1, True)[0]):
        points = mesh.corners.reshape(-1, 3)
        assert np.allclose(points.min(0), (-0.5, -0.5, 0.0), atol=1e-5)
        assert np.allclose(points.max(0), (0.5, 0.5, 1.0), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cars": (5, 2)}, "cars"),
        ({"width": 0}, "width"),
        ({"random_yaw_share": -0.1}, "random_yaw_share"),
    ],
)
def test_settings_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_settings(StreetConfig(**changes))
