"""Boxes and their conversions."""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distill3d.boxes import (
    FRAMES,
    IGNORE,
    Boxes3D,
    Frame,
    camera_to_lidar,
    from_kitti,
    from_nuscenes,
    lidar_to_camera,
    to_kitti,
    to_nuscenes,
    wrap_angle,
)

frames = st.sampled_from(FRAMES)
rows = st.lists(
    st.tuples(*[st.floats(-60, 60)] * 3, *[st.floats(0.1, 15)] * 3, st.floats(-7, 7)), min_size=1, max_size=6
)


def make(table: list[tuple], frame: Frame = "camera") -> Boxes3D:
    t = torch.tensor(table, dtype=torch.float64)
    return Boxes3D(t[:, :3], t[:, 3:6], t[:, 6], torch.zeros(len(t), dtype=torch.int64), frame)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    return torch.allclose(a, b, rtol=0, atol=tolerance)


def same_boxes(a: Boxes3D, b: Boxes3D) -> bool:
    turned = wrap_angle(a.yaw - b.yaw).abs()
    return close(a.centre, b.centre) and close(a.size, b.size) and bool((turned < 1e-9).all()) and a.frame == b.frame


@pytest.mark.parametrize(
    ("angle", "expected"),
    [(0, 0), (math.pi, -math.pi), (-math.pi, -math.pi), (3.5, 3.5 - 2 * math.pi), (-10, -10 + 4 * math.pi)],
)  # fmt: skip
def test_wrap_angle(angle: float, expected: float) -> None:
    assert wrap_angle(torch.tensor(angle, dtype=torch.float64)).item() == pytest.approx(expected)


def test_kitti_by_hand() -> None:
    """A car ahead, driving to the right of the camera (rotation_y 0), and one driving away (rotation_y -pi/2)."""
    boxes = from_kitti(
        torch.tensor([[1.5, 1.6, 4.0]] * 2), torch.tensor([[2.0, 1.7, 20.0]] * 2),
        torch.tensor([0.0, -math.pi / 2]), torch.tensor([1, 1]),
    )  # fmt: skip
    assert boxes.centre[0].tolist() == pytest.approx([2, 0.95, 20])
    assert boxes.size[0].tolist() == pytest.approx([4, 1.6, 1.5])
    assert close(boxes.heading(), torch.tensor([[1.0, 0, 0], [0, 0, 1]]), 1e-6)
    corners = boxes.corners()
    assert corners[0, :4, 1].tolist() == pytest.approx([1.7] * 4)  # the bottom lies where the label says
    # Front left, rear left, rear right, front right: left of a car that drives to the right is away from the camera.
    assert close(corners[0, 0], torch.tensor([4.0, 1.7, 20.8]), 1e-5)
    assert close(corners[0, 2], torch.tensor([0.0, 1.7, 19.2]), 1e-5)


@given(rows)
def test_kitti_round_trip(table: list[tuple]) -> None:
    boxes = make(table)
    hwl, bottom, rotation_y = to_kitti(boxes)
    assert (rotation_y >= -math.pi).all() and (rotation_y < math.pi).all()
    assert same_boxes(from_kitti(hwl, bottom, rotation_y, boxes.label), boxes)


@given(rows)
def test_kitti_corners_are_those_of_the_label_format(table: list[tuple]) -> None:
    """l along local x, h along -y, w along z; X = c x + s z, Z = -s x + c z (KITTI devkit)."""
    boxes = make(table)
    hwl, bottom, rotation_y = to_kitti(boxes)
    h, w, length = hwl.unbind(1)
    signs = torch.tensor([(x, y, z) for x in (0.5, -0.5) for y in (0, -1) for z in (0.5, -0.5)], dtype=torch.float64)
    local = signs[None] * torch.stack((length, h, w), 1)[:, None]
    c, s = rotation_y.cos()[:, None], rotation_y.sin()[:, None]
    x = c * local[..., 0] + s * local[..., 2]
    z = -s * local[..., 0] + c * local[..., 2]
    expected = torch.stack((x, local[..., 1], z), -1) + bottom[:, None]
    distance = (boxes.corners()[:, :, None] - expected[:, None]).norm(dim=-1)
    assert (distance.amin(1) < 1e-9).all() and (distance.amin(2) < 1e-9).all()


@given(rows, st.tuples(*[st.floats(-0.05, 0.05)] * 3), st.tuples(*[st.floats(-1, 1)] * 3))
def test_lidar_round_trip(table: list[tuple], tilt: tuple, shift: tuple) -> None:
    boxes = make(table)
    nominal = torch.tensor([[0, -1, 0], [0, 0, -1], [1, 0, 0]], dtype=torch.float64)
    x, y, z = tilt
    skew = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    lidar_to_rect = torch.eye(4, dtype=torch.float64)
    lidar_to_rect[:3, :3] = torch.linalg.matrix_exp(skew) @ nominal
    lidar_to_rect[:3, 3] = torch.tensor(shift)
    lidar = camera_to_lidar(boxes, torch.linalg.inv(lidar_to_rect))
    assert same_boxes(lidar_to_camera(lidar, lidar_to_rect), boxes)
    if tilt == (0, 0, 0):
        carried = lidar.corners() @ lidar_to_rect[:3, :3].T + lidar_to_rect[:3, 3]
        assert close(carried, boxes.corners())
        assert close(wrap_angle(lidar.yaw + to_kitti(boxes)[2] + math.pi / 2), torch.zeros_like(lidar.yaw))


@given(rows, st.sampled_from(["lidar", "ego", "global"]))
def test_nuscenes_round_trip(table: list[tuple], frame: Frame) -> None:
    boxes = make(table, frame)
    translation, wlh, quaternion = to_nuscenes(boxes)
    assert close(quaternion.norm(dim=1), torch.ones(len(boxes), dtype=torch.float64))
    assert same_boxes(from_nuscenes(translation, wlh, quaternion, boxes.label, frame), boxes)
    assert same_boxes(from_nuscenes(translation, wlh, -quaternion, boxes.label, frame), boxes)
    assert close(wlh[:, 1], boxes.size[:, 0]) and close(wlh[:, 0], boxes.size[:, 1])


@given(rows, frames, st.tuples(*[st.floats(-1.5, 1.5)] * 3))
def test_contains_agrees_with_the_corners(table: list[tuple], frame: Frame, local: tuple) -> None:
    """A point at a share of the way from the centre to the faces is inside where that share is below 1."""
    boxes = make(table, frame)
    corners = boxes.corners()
    front_left, rear_left, _, front_right = corners[:, :4].unbind(1)
    axes = torch.stack((front_left - rear_left, front_left - front_right, corners[:, 4] - front_left), 1) / 2
    points = boxes.centre + (torch.tensor(local, dtype=torch.float64)[None, :, None] * axes).sum(1)
    inside = boxes.contains(points).diagonal()
    furthest = max(abs(v) for v in local)
    if abs(furthest - 1) > 1e-6:
        assert bool(inside.all()) == (furthest < 1) and bool(inside.any()) == (furthest < 1)
    grown = boxes.contains(points, margin=8.0).diagonal()
    assert grown.all()
    assert close(torch.stack([a.norm(dim=1) for a in axes.unbind(1)], 1) * 2, boxes.size)
    assert close(corners.mean(1), boxes.centre)


def test_left_is_left_of_the_heading() -> None:
    for frame, up in (("camera", [0.0, -1, 0]), ("lidar", [0.0, 0, 1])):
        boxes = make([(1, 2, 3, 4, 2, 1.5, 0.4)], frame)  # pyright: ignore[reportArgumentType]
        front_left, rear_left, rear_right, front_right, top = boxes.corners()[0, :5]
        assert close((front_left - rear_left) / 4, boxes.heading()[0]) and close(
            front_right - rear_right, front_left - rear_left
        )
        up = torch.tensor(up, dtype=torch.float64)
        assert close((top - front_left) / 1.5, up)
        assert close((front_left - front_right) / 2, torch.linalg.cross(up, boxes.heading()[0]))


GOOD = make([(0, 0, 10, 4, 2, 1.5, 0.1)] * 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frame": "sensor"}, "frame is 'sensor'"),
        ({"size": torch.ones(2, 2)}, r"size has shape \(2, 2\), expected \(2, 3\)"),
        ({"yaw": torch.zeros(3)}, "yaw has shape"),
        ({"label": torch.zeros(1).long()}, "label has shape"),
        ({"box2d": torch.zeros(2, 5)}, "box2d has shape"),
        ({"size": torch.tensor([[4, 2, 0], [4, 2, 1.5]])}, "not positive"),
        ({"centre": torch.full((2, 3), math.nan)}, "centre holds a value that is not finite"),
        ({"yaw": torch.full((2,), math.inf)}, "yaw holds a value that is not finite"),
        ({"score": torch.tensor([0.5, math.nan])}, "score holds a value that is not finite"),
    ],
)
def test_bad_boxes(changes: dict, words: str) -> None:
    boxes = object.__new__(Boxes3D)  # so that the validation is asked, not the checker of annotations before it
    for field in fields(Boxes3D):
        object.__setattr__(boxes, field.name, changes.get(field.name, getattr(GOOD, field.name)))
    with pytest.raises(ValueError, match=words):
        boxes.__post_init__()


def test_ignored_rows_may_lack_geometry() -> None:
    nan = torch.full((2, 3), math.nan, dtype=torch.float64)
    boxes = replace(GOOD, centre=nan, size=nan, yaw=nan[:, 0], label=torch.tensor([IGNORE, IGNORE]))
    assert len(boxes) == 2 and len(boxes[torch.tensor([True, False])]) == 1 and len(boxes[:0]) == 0


def test_conversions_refuse_other_frames() -> None:
    lidar = replace(GOOD, frame="lidar")
    with pytest.raises(ValueError, match="camera frame"):
        to_kitti(lidar)
    with pytest.raises(ValueError, match="camera frame"):
        camera_to_lidar(lidar, torch.eye(4))
    with pytest.raises(ValueError, match="lidar frame"):
        lidar_to_camera(GOOD, torch.eye(4))
    with pytest.raises(ValueError, match="turn about z"):
        to_nuscenes(GOOD)


def test_to_changes_precision_of_floats_only() -> None:
    boxes = replace(GOOD, score=torch.ones(2, dtype=torch.float64)).to(torch.float32)
    assert boxes.centre.dtype == torch.float32 and boxes.score is not None and boxes.score.dtype == torch.float32
    assert boxes.label.dtype == torch.int64 and len(Boxes3D.empty("ego")) == 0
