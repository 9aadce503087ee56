"""KITTI's files: what is read, what is refused, and what is written back."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from distill3d.boxes import IGNORE, KITTI_CLASSES, Boxes3D, to_kitti, wrap_angle
from distill3d.data.kitti.calibration import read_calibration
from distill3d.data.kitti.labels import read_labels, training_difficulty, write_results
from distill3d.data.kitti.scans import read_points
from distill3d.data.pictures import read_image
from distill3d.data.sample import EASY, HARD, MODERATE, UNKNOWN
from distill3d.data.splits import read_split
from distill3d.errors import UserError

CAR = "Car 0.00 0 1.85 20.00 5.00 34.00 14.00 1.50 1.60 3.90 -1.00 1.60 12.00 1.77"
GOOD_CALIBRATION = """P2: 7 0 3 0 0 7 2 0 0 0 1 0
R0_rect: 1 0 0 0 1 0 0 0 1
Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0
calib_time: x
"""


def test_calibration(kitti_root: Path) -> None:
    calibration = read_calibration(kitti_root / "training/calib/000000.txt")
    assert calibration.p2.dtype == torch.float64 and calibration.p2[0].tolist() == [36, 0, 31, 2.3]
    assert torch.equal(calibration.camera.projection, calibration.p2)
    forward = calibration.lidar_to_rect @ torch.tensor([10.0, 0, 0, 1], dtype=torch.float64)
    assert forward.tolist() == pytest.approx([0.01, -0.08, 9.73, 1])


def test_labels(kitti_root: Path) -> None:
    objects = read_labels(kitti_root / "training/label_2/000000.txt")
    boxes = objects.boxes
    assert boxes.label.tolist() == [KITTI_CLASSES.index("Car"), KITTI_CLASSES.index("Pedestrian"), IGNORE]
    assert boxes.centre[0].tolist() == pytest.approx([-1.0, 1.6 - 0.75, 12.0])
    assert boxes.size[0].tolist() == pytest.approx([3.9, 1.6, 1.5])
    assert boxes.yaw[0].item() == pytest.approx(-1.77)
    assert boxes.score is None and boxes.box2d is not None and boxes.alpha is not None
    assert boxes.box2d[2].tolist() == [1, 2, 7, 8]
    assert all(torch.isnan(t[2]).all() for t in (boxes.centre, boxes.size, boxes.yaw, boxes.alpha))
    assert objects.truncation.tolist() == [0, 0.1, -1] and objects.occlusion.tolist() == [0, 1, -1]
    assert objects.difficulty.tolist() == [UNKNOWN] * 3
    reduced = read_labels(kitti_root / "training/label_2/000000.txt", height_scale=0.25)
    assert reduced.difficulty.tolist() == [EASY, MODERATE, UNKNOWN]


def test_empty_label_file(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("")
    objects = read_labels(tmp_path / "labels.txt")
    assert len(objects) == 0 and objects.boxes.centre.shape == (0, 3) and objects.difficulty.shape == (0,)


@pytest.mark.parametrize(
    ("top", "bottom", "truncation", "occlusion", "scale", "expected"),
    [
        (100, 139, 0.0, 0, 1, EASY),  # 40 px counting both edges
        (160.99, 199.98, 0.0, 0, 1, MODERATE),  # 39.99 px
        (160.99, 199.99, 0.0, 0, 1, EASY),  # exactly 40 px
        (100, 139, 0.15, 0, 1, EASY),
        (100, 139, 0.16, 0, 1, MODERATE),
        (100, 124, 0.0, 0, 1, MODERATE),
        (100, 123.99, 0.0, 0, 1, UNKNOWN),
        (100, 150, 0.30, 1, 1, MODERATE),
        (100, 150, 0.31, 1, 1, HARD),
        (100, 150, 0.50, 2, 1, HARD),
        (100, 150, 0.51, 2, 1, UNKNOWN),
        (100, 150, 0.0, 3, 1, UNKNOWN),
        (100, 150, -1, 0, 1, UNKNOWN),  # not annotated
        (100, 109, 0.0, 0, 0.25, EASY),
        (100, 108.9, 0.0, 0, 0.25, MODERATE),
    ],
)
def test_difficulty(
    top: float, bottom: float, truncation: float, occlusion: int, scale: float, expected: int
) -> None:  # fmt: skip
    box = torch.tensor([[0, top, 10, bottom]], dtype=torch.float64)
    found = training_difficulty(box, torch.tensor([truncation], dtype=torch.float64), torch.tensor([occlusion]), scale)
    assert found.tolist() == [expected]


def car(**changes: str) -> str:
    """The good line with some of its fields replaced by position name."""
    names = "name trunc occ alpha left top right bottom h w l x y z ry".split()
    fields = dict(zip(names, CAR.split(), strict=True)) | changes
    return " ".join(fields.values())


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (CAR[:-5], 1, "15 fields"),
        (f"{CAR} 0.5 0.5", 1, "15 fields"),
        (f"{CAR}\n\n{car(name='Bus')}", 3, "unknown class 'Bus'"),
        (f"{CAR}\n{car(z='far')}", 2, "z is 'far'"),
        (f"{CAR}\n{car(ry='nan')}", 2, "rotation_y is 'nan'"),
        (f"{CAR}\n{car(x='inf')}", 2, "x is 'inf'"),
        (car(h="-1.5"), 1, "height is -1.5 m"),
        (car(l="0"), 1, "length is 0 m"),
        (car(right="19.99"), 1, "right 19.99 before left 20.00"),
        (car(bottom="4"), 1, "bottom 4 above top 5.00"),
        (car(trunc="1.5"), 1, "truncated is 1.5"),
        (car(occ="4"), 1, "occluded is 4"),
        (car(occ="0.5"), 1, "occluded is 0.5"),
        (f"{CAR}\n{CAR} 0.9", 2, "some lines have a score"),
        (car(z="-4"), 1, "the Car lies behind the camera"),
    ],
)
def test_malformed_labels(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = tmp_path / "000000.txt"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_labels(path)
    assert str(error.value).startswith(f"{path}:{line}: ") and words in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("P2:", "P4:", None, "the line P2 is missing"),
        ("P2: 7", "P2:", 1, "P2 has 11 numbers, expected 12"),
        ("R0_rect: 1", "R0_rect: one", 2, "not a finite number"),
        ("P2: 7", "P2: nan", 1, "not a finite number"),
        ("P2: 7", "P2: -7", 1, "no projection"),
        ("R0_rect: 1", "R0_rect: 2", 2, "R0_rect does not hold a rotation"),
        ("cam: 0 -1", "cam: 0 1", 3, "Tr_velo_to_cam does not hold a rotation"),
        ("calib_time: x", "what", 4, "expected `name: numbers`"),
    ],
)
def test_malformed_calibration(tmp_path: Path, old: str, new: str, line: int | None, words: str) -> None:
    path = tmp_path / "calib.txt"
    path.write_text(GOOD_CALIBRATION)
    read_calibration(path)
    path.write_text(GOOD_CALIBRATION.replace(old, new))
    with pytest.raises(UserError) as error:
        read_calibration(path)
    assert str(error.value).startswith(f"{path}:{line}: " if line else f"{path}: ") and words in str(error.value)


@pytest.mark.parametrize(
    ("read", "content", "words"),
    [
        (read_points, b"", "empty"),
        (read_points, b"\0" * 17, "17 bytes"),
        (read_points, np.array([0, 0, 0, 0, np.nan, 0, 0, 0], "<f4").tobytes(), "1 points hold NaN or Inf"),
        (read_image, b"no image", "cannot be read as an image"),
        (read_split, b"\n\n", "names no frame"),
        (read_split, b"000001\n000002\n000001\n", "names frame 000001 twice"),
        (read_labels, b"\xff\xfe\x00", "is UTF-16, expected UTF-8"),
        (read_calibration, b"\xff\xfe\x00", "is UTF-16, expected UTF-8"),
    ],
)
def test_malformed_files(tmp_path: Path, read, content: bytes, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value)


@pytest.mark.parametrize("read", [read_points, read_image, read_split, read_labels, read_calibration])
def test_absent_file(tmp_path: Path, read) -> None:
    with pytest.raises(UserError, match="absent: no such file"):
        read(tmp_path / "absent")


def test_image(tmp_path: Path) -> None:
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png"), torch.from_numpy(pixels).permute(2, 0, 1))
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cannot be read as an image"):
        read_image(tmp_path / "a.png")


def test_points_and_split(kitti_root: Path) -> None:
    points = read_points(kitti_root / "training/velodyne/000001.bin")
    assert points.shape == (600, 4) and points.dtype == torch.float32
    assert read_split(kitti_root / "ImageSets/val.txt") == ["000002"]


number = st.floats(-80, 80)
detection = st.tuples(
    st.integers(0, 2), *[number] * 2, st.floats(0.01, 90), *[st.floats(0.05, 20)] * 3, st.floats(-7, 7),
    *[st.floats(-50, 1300)] * 4, st.floats(-3.1, 3.1), st.floats(0, 1),
)  # fmt: skip


@given(st.lists(detection, max_size=6))
def test_results_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple]) -> None:
    path = tmp_path_factory.getbasetemp() / "results.txt"
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 14)
    box2d = torch.cat((table[:, 8:10].minimum(table[:, 10:12]), table[:, 8:10].maximum(table[:, 10:12])), 1)
    boxes = Boxes3D(
        table[:, 1:4], table[:, 4:7], table[:, 7], table[:, 0].long(), "camera",
        score=table[:, 13], box2d=box2d, alpha=table[:, 12],
    )  # fmt: skip
    write_results(path, boxes, KITTI_CLASSES)
    back = read_labels(path).boxes
    assert len(back) == len(boxes) and back.label.tolist() == boxes.label.tolist()
    if not rows:
        return
    assert back.score is not None and back.box2d is not None and back.alpha is not None
    assert (back.score - table[:, 13]).abs().max() <= 0.6e-6
    for found, written in ((back.centre, boxes.centre), (back.size, boxes.size), (back.box2d, box2d)):
        assert (found - written).abs().max() <= 1.1e-4
    assert wrap_angle(back.yaw - boxes.yaw).abs().max() <= 1e-4


def test_results_leave_out_boxes_behind_the_camera(tmp_path: Path) -> None:
    centre = torch.tensor([[0.0, 1, 10], [0, 1, 0], [0, 1, -3]])
    score = torch.tensor([0.123456789, 0.5, 0.5])
    boxes = Boxes3D(
        centre, torch.ones(3, 3), torch.zeros(3), torch.ones(3).long(), "camera", score=score,
        box2d=torch.zeros(3, 4), alpha=torch.zeros(3),
    )  # fmt: skip
    write_results(tmp_path / "r.txt", boxes, KITTI_CLASSES, score_decimals=3)
    lines = (tmp_path / "r.txt").read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("Car -1 -1 0.0000 ") and lines[0].endswith(" 0.123")


def test_results_hold_no_box_that_a_reader_refuses(tmp_path: Path) -> None:
    boxes = Boxes3D(
        torch.tensor([[0.0, 1, 10]] * 2), torch.tensor([[0.5, 0.00004, 0.00001], [1.5, 1.6, 4.0]]), torch.zeros(2),
        torch.ones(2).long(), "camera", score=torch.ones(2), box2d=torch.tensor([[9.0, 9, 5, 4], [1, 2, 3, 4]]),
        alpha=torch.zeros(2),
    )  # fmt: skip
    write_results(tmp_path / "r.txt", boxes, KITTI_CLASSES)
    back = read_labels(tmp_path / "r.txt").boxes
    assert back.box2d is not None and back.box2d.tolist() == [[9, 9, 9, 9], [1, 2, 3, 4]]
    assert sorted(back.size[0].tolist()) == [1e-4, 1e-4, 0.5]
    assert torch.allclose(back.size[1], boxes.size[1].double(), atol=1e-4)


def test_detections_without_a_3d_box_are_regions(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("Car -1 -1 0.1 100 100 200 160 -1 -1 -1 -1000 -1000 -1000 -10 0.5\n")
    boxes = read_labels(tmp_path / "r.txt").boxes
    assert boxes.label.tolist() == [IGNORE] and boxes.box2d is not None and boxes.centre.isnan().all()


@pytest.mark.real
def test_real_labels_survive_the_round_trip(real_data: Path, tmp_path: Path) -> None:
    for path in sorted((real_data / "kitti_mini/training/label_2").glob("*.txt")):
        objects = read_labels(path)
        real = objects.boxes.label != IGNORE
        hwl, bottom, rotation_y = to_kitti(objects.boxes[real])
        lines = [line.split() for line in path.read_text().splitlines() if not line.startswith("DontCare")]
        written = torch.tensor([[float(v) for v in line[8:15]] for line in lines], dtype=torch.float64)
        assert torch.allclose(torch.cat((hwl, bottom, rotation_y[:, None]), 1), written, atol=1e-9)


@pytest.mark.real
def test_real_lidar_points_inside_boxes_project_into_the_labelled_2d_boxes(real_data: Path) -> None:
    """The way LiDAR -> rectified camera -> image, and the label's geometry, at once."""
    margin = 2.0  # px
    inside = total = 0
    for name in read_split(real_data / "kitti_mini/ImageSets/trainval.txt"):
        folder = real_data / "kitti_mini/training"
        calibration = read_calibration(folder / f"calib/{name}.txt")
        height, width = read_image(folder / f"image_2/{name}.png").shape[1:]
        objects = read_labels(folder / f"label_2/{name}.txt")
        boxes = objects.boxes[objects.boxes.label != IGNORE]
        scan = read_points(folder / f"velodyne/{name}.bin").double()
        points = scan[:, :3] @ calibration.lidar_to_rect[:3, :3].T + calibration.lidar_to_rect[:3, 3]
        uv, depth = calibration.camera.project(points, "homogeneous")
        seen = (depth > 0) & (uv >= 0).all(1) & (uv[:, 0] < width) & (uv[:, 1] < height)
        box, point = boxes.contains(points[seen]).nonzero().unbind(1)
        assert boxes.box2d is not None
        edges, at = boxes.box2d[box], uv[seen][point]
        inside += int(((at >= edges[:, :2] - margin) & (at <= edges[:, 2:] + margin)).all(1).sum())
        total += len(box)
    assert total > 20_000 and inside / total >= 0.995


@pytest.mark.real
def test_real_alpha_is_rotation_y_less_the_viewing_angle(real_data: Path) -> None:
    """alpha = ry - atan2(x, z) up to the labels' two decimals and their slightly different reference point."""
    differences = []
    for path in sorted((real_data / "kitti_mini/training/label_2").glob("*.txt")):
        objects = read_labels(path)
        boxes = objects.boxes[(objects.boxes.label != IGNORE) & (objects.truncation == 0)]
        assert boxes.alpha is not None
        ray = torch.atan2(boxes.centre[:, 0], boxes.centre[:, 2])
        differences.append(wrap_angle(boxes.alpha - (-boxes.yaw - ray)).abs())
    assert torch.cat(differences).max() < math.radians(2)
