"""nuScenes as surround-view samples: everything that a sample holds agrees in space."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import constants, golden_file
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from distill3d.boxes import NUSCENES_CLASSES, Boxes3D
from distill3d.data.augment.image import frame_generator
from distill3d.data.augment.lidar import carry
from distill3d.data.augment.surround import BevAugmentConfig, ImageAugmentConfig, ImagePlacement
from distill3d.data.collate import batches
from distill3d.data.nuscenes.class_balance import ClassBalanced
from distill3d.data.nuscenes.dataset import (
    CAMERAS,
    CLASS_OF_CATEGORY,
    LIDAR,
    NuScenesConfig,
    NuScenesDataset,
    SweepConfig,
    carry_boxes,
    mean_pose,
    past_samples,
    project_points,
    splat_depth,
    sweep_rows,
)
from distill3d.data.nuscenes.splits import SCENE_NUMBERS, official_scenes
from distill3d.data.nuscenes.tables import pose_matrices
from distill3d.data.sample import Dataset
from distill3d.data.surround import SurroundBatch, SurroundSample
from distill3d.errors import UserError
from distill3d.instances import FOLDER, STEP, mask_file
from distill3d.settings import check_settings

SIZE = (160, 90)  # px of the made-up pictures
KEY_STEP, SCANS_PER_KEY = 500_000, 5  # us between key frames, and scans in that time
START, SCENE_STEP = 1_600_000_000_000_000, 60_000_000  # us; scene n starts at START + n SCENE_STEP
FORWARD = 127.0  # px, focal length
#: Annotated objects: category, place in the world (m), yaw (rad), velocity (m/s), LiDAR and radar points.
OBJECTS = (
    ("vehicle.car", (112.0, 205.0, 0.9), 0.4, (0.0, 0.0), 12, 0),
    ("vehicle.bus.rigid", (95.0, 212.0, 1.5), -2.0, (3.0, -1.0), 0, 2),
    ("human.pedestrian.child", (104.0, 190.0, 0.6), 1.2, (0.5, 0.8), 0, 0),
    ("static_object.bicycle_rack", (108.0, 208.0, 0.5), 0.0, (0.0, 0.0), 30, 0),
    ("movable_object.trafficcone", (170.0, 260.0, 0.4), 0.0, (0.0, 0.0), 1, 0),  # beyond every usual BEV range
)


def quaternion(matrix: np.ndarray) -> list[float]:
    """w, x, y, z of a rotation matrix that turns by less than half a turn about no axis in particular."""
    candidates = np.array([
        [1 + matrix[0, 0] + matrix[1, 1] + matrix[2, 2], matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0],
         matrix[1, 0] - matrix[0, 1]],
        [matrix[2, 1] - matrix[1, 2], 1 + matrix[0, 0] - matrix[1, 1] - matrix[2, 2], matrix[0, 1] + matrix[1, 0],
         matrix[0, 2] + matrix[2, 0]],
        [matrix[0, 2] - matrix[2, 0], matrix[0, 1] + matrix[1, 0], 1 - matrix[0, 0] + matrix[1, 1] - matrix[2, 2],
         matrix[1, 2] + matrix[2, 1]],
        [matrix[1, 0] - matrix[0, 1], matrix[0, 2] + matrix[2, 0], matrix[1, 2] + matrix[2, 1],
         1 - matrix[0, 0] - matrix[1, 1] + matrix[2, 2]],
    ])  # fmt: skip
    best = candidates[np.argmax(np.linalg.norm(candidates, axis=1))]
    return (best / np.linalg.norm(best)).tolist()


def turn(yaw: float, pitch: float = 0.0) -> np.ndarray:
    c, s, p, q = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[p, 0, q], [0, 1, 0], [-q, 0, p]])


def drive(seconds: float) -> np.ndarray:
    """The made-up vehicle's pose, ``seconds`` after a scene's start: a bend at 8 m/s, with some pitch."""
    pose = np.eye(4)
    pose[:3, :3] = turn(0.3 + 0.2 * seconds, 0.01 * math.sin(seconds))
    pose[:3, 3] = (100 + 8 * seconds, 200 + 2 * seconds, 0)
    return pose


def since_start(time: int) -> float:
    """Seconds since the start of the scene; the first pictures are taken a little before it."""
    return ((time - START + SCENE_STEP // 2) % SCENE_STEP - SCENE_STEP // 2) * 1e-6


def world_points() -> np.ndarray:
    """Fixed points on the ground, on walls and on the still car, (m, 3) in the global frame."""
    rng = np.random.default_rng(7)
    ground = np.concatenate((rng.uniform((70, 170), (140, 240), (1500, 2)), np.zeros((1500, 1))), 1)
    walls = rng.uniform((70, 170, 0), (140, 240, 4), (500, 3))
    car = np.array(OBJECTS[0][1]) + rng.uniform(-0.8, 0.8, (12, 3))
    return np.concatenate((ground, walls, car))


@dataclass
class Made:
    """A small data set in nuScenes' layout, record by record."""

    root: Path
    version: str = "v1.0-made"
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, table: str, token: str, **record: Any) -> dict[str, Any]:
        self.tables.setdefault(table, []).append({"token": token, **record})
        return self.tables[table][-1]

    def write(self) -> Path:
        folder = self.root / self.version
        folder.mkdir(parents=True, exist_ok=True)
        for name, records in self.tables.items():
            (folder / f"{name}.json").write_text(json.dumps(records))
        return self.root

    def sensors(self) -> dict[str, np.ndarray]:
        poses = {}
        for i, camera in enumerate(CAMERAS):
            yaw = math.radians((55, 0, -55, 110, 180, -110)[i])
            pose = np.eye(4)
            pose[:3, :3] = turn(yaw) @ np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
            pose[:3, 3] = (1.5 * math.cos(yaw), 0.6 * math.sin(yaw), 1.5)
            poses[camera] = pose
        pose = np.eye(4)
        pose[:3, :3] = turn(-math.pi / 2, 0.01)
        pose[:3, 3] = (0.9, 0.0, 1.8)
        poses[LIDAR] = pose
        intrinsic = [[FORWARD, 0, SIZE[0] / 2], [0, FORWARD, SIZE[1] / 2], [0, 0, 1]]
        for channel, pose in poses.items():
            modality = "lidar" if channel == LIDAR else "camera"
            self.add("sensor", f"s-{channel}", channel=channel, modality=modality)
            self.add("calibrated_sensor", f"c-{channel}", sensor_token=f"s-{channel}",
                     translation=pose[:3, 3].tolist(), rotation=quaternion(pose[:3, :3]),
                     camera_intrinsic=[] if channel == LIDAR else intrinsic)  # fmt: skip
        return poses

    def data(self, token: str, channel: str, sample: str, time: int, key: bool) -> dict[str, Any]:
        pose = drive(since_start(time))
        self.add("ego_pose", token, translation=pose[:3, 3].tolist(), rotation=quaternion(pose[:3, :3]), timestamp=time)
        folder, ending = ("samples" if key else "sweeps"), ("pcd.bin" if channel == LIDAR else "png")
        return self.add(
            "sample_data", token, sample_token=sample, ego_pose_token=token, calibrated_sensor_token=f"c-{channel}",
            filename=f"{folder}/{channel}/{token}.{ending}", timestamp=time, is_key_frame=key, prev="", next="",
            width=0 if channel == LIDAR else SIZE[0], height=0 if channel == LIDAR else SIZE[1],
        )  # fmt: skip

    def chain(self, records: list[dict[str, Any]]) -> None:
        for before, after in zip(records, records[1:], strict=False):
            before["next"], after["prev"] = after["token"], before["token"]

    def scene(self, number: int, samples: int, poses: dict[str, np.ndarray]) -> None:
        name = f"scene-{number:04d}"
        start = START + number * SCENE_STEP
        tokens = [f"{number:04d}-{i}" for i in range(samples)]
        self.add("scene", name, name=name, first_sample_token=tokens[0], last_sample_token=tokens[-1])
        self.chain([
            self.add("sample", token, timestamp=start + i * KEY_STEP, scene_token=name, prev="", next="")
            for i, token in enumerate(tokens)
        ])  # fmt: skip
        for c, channel in enumerate(CAMERAS):
            self.chain([
                self.camera(f"{token}-{c}", channel, token, start + i * KEY_STEP - 30_000 + 9_000 * c, i)
                for i, token in enumerate(tokens)
            ])  # fmt: skip
        scans = []
        for k in range((samples - 1) * SCANS_PER_KEY + 1):
            token, key = tokens[-(-k // SCANS_PER_KEY)], k % SCANS_PER_KEY == 0
            scans.append(self.data(f"{number:04d}-scan{k}", LIDAR, token, start + k * KEY_STEP // SCANS_PER_KEY, key))
            self.scan(scans[-1], poses[LIDAR])
        self.chain(scans)
        for k, (category, place, yaw, velocity, lidar, radar) in enumerate(OBJECTS):
            track = f"{number:04d}-track{k}"
            self.add("instance", track, category_token=category)
            self.chain([
                self.add("sample_annotation", f"{track}-{i}", sample_token=token, instance_token=track,
                         attribute_tokens=[], size=[2.0, 4.5, 1.8], rotation=quaternion(turn(yaw)),
                         translation=[place[0] + 0.5 * i * velocity[0], place[1] + 0.5 * i * velocity[1], place[2]],
                         num_lidar_pts=lidar, num_radar_pts=radar, prev="", next="")
                for i, token in enumerate(tokens)
            ])  # fmt: skip

    def camera(self, token: str, channel: str, sample: str, time: int, frame: int) -> dict[str, Any]:
        record = self.data(token, channel, sample, time, True)
        path = self.root / record["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        # The colour tells frame and camera; red, green and blue differ.
        Image.new("RGB", SIZE, (40 + 20 * frame, 40 * CAMERAS.index(channel), 255)).save(path)
        return record

    def scan(self, record: dict[str, Any], sensor: np.ndarray) -> None:
        to_sensor = np.linalg.inv(drive(since_start(record["timestamp"])) @ sensor)
        points = world_points() @ to_sensor[:3, :3].T + to_sensor[:3, 3]
        number = np.arange(len(points), dtype=float)[:, None]
        rows = np.concatenate((points, number % 256, number * 0), 1).astype("<f4")
        path = self.root / record["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.tofile(path)


def make(root: Path) -> Made:
    """Scenes 103 and 916 (``mini_val``) with 4 and 2 samples; scans at 10 Hz."""
    made = Made(root)
    for category in (*(o[0] for o in OBJECTS), "vehicle.truck"):
        made.add("category", category, name=category)
    made.add("attribute", "moving", name="vehicle.moving")
    poses = made.sensors()
    made.scene(103, 4, poses)
    made.scene(916, 2, poses)
    made.write()
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made")).root


def configured(root: Path, **chosen: Any) -> NuScenesDataset:
    defaults = {"version": "v1.0-made", "split": "mini_val", "canvas": (96, 48), "in_memory": True}
    return NuScenesDataset(NuScenesConfig(root=root, **{**defaults, **chosen}))


def global_points(sample: SurroundSample) -> Tensor:
    """The points of a sample without augmentation of the ego frame, back in the global frame."""
    assert sample.points is not None
    points = sample.points[:, :3].double()
    back = sample.ego_to_global @ torch.linalg.inv(sample.bev_affine)
    return points @ back[:3, :3].T + back[:3, 3]


# --------------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(("split", "count"), [("train", 700), ("val", 150), ("test", 150), ("mini_train", 8)])
def test_official_splits_have_their_size(split: str, count: int) -> None:
    scenes = official_scenes(split)
    assert len(set(scenes)) == count and list(scenes) == sorted(scenes)


def test_official_splits_share_nothing() -> None:
    train, val, test = (set(official_scenes(split)) for split in ("train", "val", "test"))
    assert len(train | val | test) == 1000
    mini = set(official_scenes("mini_train")), set(official_scenes("mini_val"))
    assert mini[1] == {"scene-0103", "scene-0916"} and not mini[0] & mini[1]
    assert mini[0] | mini[1] <= train | val
    assert set(SCENE_NUMBERS) == {"train", "val", "test", "mini_train", "mini_val"}


def test_frames_come_scene_by_scene_in_order_of_time(made: Path) -> None:
    dataset = configured(made)
    assert isinstance(dataset, Dataset)
    assert dataset.frame_ids == ["0103-0", "0103-1", "0103-2", "0103-3", "0916-0", "0916-1"]
    assert dataset.classes == NUSCENES_CLASSES and len(dataset) == 6


@pytest.mark.parametrize(
    ("text", "frames"),
    [
        ("scene-0916\n", ["0916-0", "0916-1"]),
        ("0916-1\n0103-2\n", ["0103-2", "0916-1"]),
        ("scene-0916\n\n0103-0", ["0103-0", "0916-0", "0916-1"]),
    ],
)
def test_a_split_file_goes_before_the_official_split(tmp_path: Path, text: str, frames: list[str]) -> None:
    root = make(tmp_path).root
    (root / "splits").mkdir()
    (root / "splits" / "mini_val.txt").write_text(text)
    assert configured(root).frame_ids == frames


def test_unknown_splits_are_refused(tmp_path: Path) -> None:
    root = make(tmp_path).root
    with pytest.raises(UserError, match="no split 'trian'.*mini_val"):
        configured(root, split="trian")
    with pytest.raises(UserError, match="no scene of the official split test"):
        configured(root, split="test")
    (root / "splits").mkdir()
    (root / "splits" / "mine.txt").write_text("scene-0103\nscene-9\n")
    with pytest.raises(UserError, match=r"mine\.txt: 'scene-9' is neither a scene nor a sample"):
        configured(root, split="mine")


# ------------------------------------------------------------------------------------------------------------- geometry


@given(st.integers(0, 2**31), st.lists(st.booleans(), min_size=6, max_size=6))
def test_the_mean_pose_does_not_know_the_quaternions_signs(seed: int, flips: list[bool]) -> None:
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=4)
    rotations = middle / np.linalg.norm(middle) + 0.01 * rng.normal(size=(6, 4))
    translations = rng.normal(size=(6, 3))
    mean = mean_pose(translations, rotations)
    signs = np.where(flips, -1.0, 1.0)[:, None]
    assert np.allclose(mean, mean_pose(translations, signs * rotations), atol=1e-12, rtol=0)
    assert np.allclose(mean[:3, :3] @ mean[:3, :3].T, np.eye(3), atol=1e-12, rtol=0)
    assert np.allclose(mean[:3, 3], translations.mean(0), atol=1e-12, rtol=0)
    assert np.abs(mean[:3, :3] - pose_matrices(translations[0], middle)[:3, :3]).max() < 0.1
    one = mean_pose(translations[:1], rotations[:1])
    assert np.allclose(one, pose_matrices(translations[0], rotations[0]), atol=1e-12, rtol=0)


@given(st.floats(-3.1, 3.1), st.floats(-3.1, 3.1))
def test_boxes_go_to_another_frame_and_back(yaw: float, turned: float) -> None:
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.from_numpy(turn(turned))
    pose[:3, 3] = torch.tensor([400.0, -1200.0, 0.3])
    box = Boxes3D(
        torch.tensor([[3.0, 1.0, 0.5]]).double(), torch.tensor([[4.0, 2.0, 1.5]]).double(),
        torch.tensor([yaw]).double(), torch.tensor([2]), "ego", velocity=torch.tensor([[5.0, 1.0]]).double(),
    )  # fmt: skip
    there = carry_boxes(box, pose, "global")
    assert there.frame == "global"
    corners = box.corners() @ pose[:3, :3].T + pose[:3, 3]
    assert torch.allclose(there.corners(), corners, atol=1e-9, rtol=0)
    back = carry_boxes(there, torch.linalg.inv(pose), "ego")
    assert torch.allclose(back.corners(), box.corners(), atol=1e-9, rtol=0)
    assert back.velocity is not None and box.velocity is not None
    assert torch.allclose(back.velocity, box.velocity, atol=1e-9, rtol=0)


@golden_file("bevdepth/depth_from_points")
@pytest.mark.golden
def test_depth_of_points_as_recorded(path: Path) -> None:
    r = {name: torch.from_numpy(value) for name, value in np.load(path).items()}

    def pose(name: str) -> np.ndarray:
        return pose_matrices(r[f"in.{name}.translation"].numpy(), r[f"in.{name}.rotation"].numpy())

    to_camera = np.linalg.inv(pose("cam_ego") @ pose("cam_calib")) @ pose("lidar_ego") @ pose("lidar_calib")
    intrinsics = torch.eye(4, dtype=torch.float64)
    intrinsics[:3, :3] = r["in.cam_calib.camera_intrinsic"]
    (width, height), (canvas_height, canvas_width) = r["in.image_size"].tolist(), r["in.final_dim"].tolist()
    size, canvas = (width, height), (canvas_width, canvas_height)
    least = constants(path)["min_dist"]
    uv, depth = project_points(r["in.points"], torch.from_numpy(to_camera), intrinsics, size, least)
    assert torch.allclose(uv, r["out.pixels"], atol=0.05, rtol=0)
    assert torch.allclose(depth, r["out.depths"].double(), atol=1e-3, rtol=0)

    corner = (int(r["in.crop"][0]), int(r["in.crop"][1]))
    rotation = math.radians(float(r["in.rotate_deg"]))
    placement = ImagePlacement(size, size, corner, canvas, bool(r["in.flip"]), rotation)
    resize = torch.diag(torch.tensor([float(r["in.resize"])] * 2 + [1.0, 1.0], dtype=torch.float64))
    matrix = placement.matrix @ resize
    seen = splat_depth(uv @ matrix[:2, :2].T + matrix[:2, 3], depth, canvas)
    recorded = torch.zeros_like(seen)
    recorded[r["out.map_rows_cols"][:, 0], r["out.map_rows_cols"][:, 1]] = r["out.map_values"]
    # A point at a rounding edge may fall into the next cell.
    off = ((seen - recorded).abs() > 1e-3).nonzero()
    assert len(off) <= 0.02 * len(r["out.map_values"])
    for row, column in off.tolist():
        around = (slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2))
        here = seen[row, column] or recorded[row, column]
        assert ((seen[around] - here).abs() < 1e-3).any() and ((recorded[around] - here).abs() < 1e-3).any()


@pytest.mark.parametrize(("collision", "kept"), [("last", 7.0), ("nearest", 3.0)])
def test_one_of_several_points_on_a_pixel_is_kept(collision, kept: float) -> None:
    uv = torch.tensor([[2.9, 1.2], [2.0, 1.9], [2.5, 1.5], [-0.5, 0.0], [-1.0, 0.0], [4.0, 0.0]])
    seen = splat_depth(uv, torch.tensor([5.0, 3.0, 7.0, 9.0, 11.0, 13.0]), (4, 3), collision)
    expected = torch.zeros(3, 4)
    expected[1, 2] = kept
    expected[0, 0] = 9.0  # less than a pixel beyond the edge: cut towards zero
    assert torch.equal(seen, expected)


# -------------------------------------------------------------------------------------------------- sweeps, past frames


@pytest.mark.parametrize(
    ("frame", "chosen", "steps"),
    [
        (1, {}, [0, 1, 2, 3, 4, 5, -1, -2, -3]),  # LabelDistill: the key scan, 5 before, 3 of 5 after
        (0, {}, [0] * 9),  # nothing before, so nothing after: the key scan nine times
        (0, {"style": "intended"}, [0, -1, -2, -3, -4, -5]),
        (3, {}, [0, 1, 2, 3, 4, 5]),  # the scene's end
        (1, {"forbid_future": True}, [0, 1, 2, 3, 4, 5]),
        (1, {"past": 10}, [0, 1, 2, 3, 4, 5]),  # fewer than asked for: none after
        (1, {"past": 10, "style": "intended"}, [0, 1, 2, 3, 4, 5, -1, -2, -3]),
        (2, {"past": 2, "future": 1, "scans": 2}, [0, 1]),
    ],
)
def test_scans_that_are_put_together(made: Path, frame: int, chosen: dict[str, Any], steps: list[int]) -> None:
    dataset = configured(made)
    key = dataset.tables.key_data(dataset.tables.sample_row(f"0103-{frame}"))[LIDAR]
    times = dataset.tables.sample_data.timestamp
    rows = sweep_rows(dataset.tables, key, SweepConfig(**chosen))
    assert [int(times[key] - times[row]) for row in rows] == [step * KEY_STEP // SCANS_PER_KEY for step in steps]


def test_the_devkits_sweeps(made: Path) -> None:
    dataset = configured(made)
    config = SweepConfig.devkit(8)
    for frame, count in ((0, 1), (1, 6), (3, 8)):
        key = dataset.tables.key_data(dataset.tables.sample_row(f"0103-{frame}"))[LIDAR]
        assert len(sweep_rows(dataset.tables, key, config)) == count
    assert config.nearest == 1 and math.isinf(config.farthest)


@pytest.mark.parametrize(
    ("token", "offsets", "missing", "expected"),
    [
        ("0103-3", (1, 2), "nearest", ["0103-2", "0103-1"]),
        ("0103-2", (1, 2, 4), "nearest", ["0103-1", "0103-0", "0103-0"]),
        ("0103-2", (1, 2, 4), "current", ["0103-1", "0103-0", "0103-2"]),
        ("0916-0", (1, 2), "nearest", ["0916-0", "0916-0"]),  # never a frame of the scene before
    ],
)
def test_past_frames(made: Path, token: str, offsets: tuple[int, ...], missing, expected: list[str]) -> None:
    tables = configured(made).tables
    rows = past_samples(tables, tables.sample_row(token), offsets, missing)
    assert [tables.sample_token(row) for row in rows] == expected


# -------------------------------------------------------------------------------------------------------------- samples


def test_a_sample_has_what_was_asked_for(made: Path) -> None:
    sample = configured(made, past=(1, 2), points=True, depth=True).get(3)
    assert sample.images is not None and tuple(sample.images.shape) == (3, 6, 3, 48, 96)
    assert sample.depth is not None and tuple(sample.depth.shape) == (6, 48, 96)
    assert sample.points is not None and sample.points.dtype == torch.float32
    assert tuple(sample.camera_to_ego.shape) == tuple(sample.intrinsics.shape) == (3, 6, 4, 4)
    assert torch.equal(sample.bev_affine, torch.eye(4, dtype=torch.float64))
    plain = configured(made, images=False).get(3)
    assert plain.images is None and plain.depth is None and plain.points is None


def test_pictures_are_rgb_by_frame_and_camera(made: Path) -> None:
    images = configured(made, past=(1, 3)).get(2).images  # the key frame 2, then 1, and 1 again for want of -1
    assert images is not None
    seen = (images.mean((-1, -2)) * 255).round().int()
    for s, frame in enumerate((2, 1, 1)):
        for n in range(6):
            assert seen[s, n].tolist() == [40 + 20 * frame, 40 * n, 255]


def test_masks_of_single_things(tmp_path: Path) -> None:
    """In the data set's own classes, whatever their order; what is absent or faulty is told with its file."""
    root, asked = make(tmp_path).root, {"instances": True, "classes": ("pedestrian", "car"), "images": False}
    with pytest.raises(UserError, match="instances: no such folder.*segmentation_weight must be 0"):
        configured(root, **asked)
    (root / FOLDER).mkdir()
    data = configured(root, **asked)
    with pytest.raises(UserError, match=r"instances.*\.png: .*of sample 0103-0"):
        data.get(0)
    car, pedestrian, truck = STEP + 5, 9 * STEP + 6, 2 * STEP + 7
    for path, (width, height) in ((mask_file(root, data.tables.file(row)), data._picture_size(row))
                                  for row in data._key_data(data._samples[0], CAMERAS)):  # fmt: skip
        columns = np.repeat([car, pedestrian, truck, 0], -(-width // 4))[:width]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.tile(columns, (height, 1)).astype(np.uint16)).save(path)
    masks = data.get(0).instances
    assert masks is not None and tuple(masks.shape) == (6, 48, 96) and masks.dtype == torch.int64
    assert masks[:, 20, [12, 36, 60, 84]].tolist() == [[2 * STEP + 5, STEP + 6, 0, 0]] * 6
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(UserError, match="is 8 x 8 px in mode RGB, expected .* in grey of 16 bits .*of sample 0103-0"):
        data.get(0)
    Image.fromarray(np.full((height, width), 11 * STEP, np.uint16)).save(path)
    with pytest.raises(UserError, match="holds the value 11000, of a class 11 of 10"):
        data.get(0)


def test_scans_of_all_moments_meet_in_the_key_ego_frame(made: Path) -> None:
    dataset = configured(made, points=True, images=False)
    sample = dataset.get(1)
    assert sample.points is not None
    lags = sample.points[:, 4].unique().tolist()
    assert np.allclose(lags, np.arange(-3, 6) * 0.1, atol=1e-6)
    points, world = global_points(sample), torch.from_numpy(world_points())
    # Intensity holds the number of the point in the world, modulo 256.
    distance, nearest = torch.cdist(points, world).min(1)
    assert float(distance.max()) < 1e-3
    assert torch.equal((nearest % 256).float(), sample.points[:, 3])


def test_points_are_left_out_by_radius_budget_and_nan(tmp_path: Path) -> None:
    root = make(tmp_path).root
    near = configured(root, points=True, images=False, sweeps=SweepConfig(past=0, future=0, scans=1, farthest=20))
    sample = near.get(2)
    assert sample.points is not None
    at = global_points(sample)
    sensor = torch.from_numpy(drive(1.0)) @ torch.from_numpy(Made(root).sensors()[LIDAR])
    in_sensor = (at - sensor[:3, 3]) @ sensor[:3, :3]
    assert 0 < len(sample.points) and float(in_sensor[:, :2].norm(dim=1).max()) < 20 + 1e-3
    whole = configured(root, points=True, images=False, sweeps=SweepConfig(past=0, future=0, scans=1)).get(2)
    assert whole.points is not None and len(whole.points) > len(sample.points)

    few = configured(root, points=True, images=False, sweeps=SweepConfig(budget=100))

    def drawn(generator: torch.Generator | None) -> Tensor:
        points = few.get(1, generator).points
        assert points is not None and len(points) == 100
        return points

    first, again, other = (drawn(frame_generator(seed, 0, 0)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(drawn(None), drawn(None))

    def lose_half(path: Path) -> None:
        rows = np.fromfile(path, "<f4").reshape(-1, 5)
        rows[::2, 0] = math.nan
        rows.tofile(path)

    sweeps = SweepConfig(past=3, future=0, scans=4)
    whole = configured(root, points=True, images=False, sweeps=sweeps).get(2)
    for path in (root / "sweeps" / LIDAR).iterdir():
        lose_half(path)
    half = configured(root, points=True, images=False, sweeps=sweeps).get(2)
    assert whole.points is not None and half.points is not None and bool(half.points.isfinite().all())
    assert len(half.points) < len(whole.points)
    lose_half(near.tables.file(near.tables.key_data(near.tables.sample_row("0103-2"))[LIDAR]))
    with pytest.raises(UserError, match="points hold NaN or Inf, the first is point 0 .* of sample 0103-2"):
        configured(root, points=True, images=False, sweeps=sweeps).get(2)


def test_a_camera_that_cannot_have_taken_its_picture(tmp_path: Path) -> None:
    root = make(tmp_path).root
    (table,) = root.glob("v1.0-*/calibrated_sensor.json")
    records = json.loads(table.read_text())
    for record in records:
        if record["camera_intrinsic"]:
            record["camera_intrinsic"][1][2] = -1.0
    table.write_text(json.dumps(records))
    with pytest.raises(UserError, match="calibrated_sensor.json: the principal point .y = -1 px. does not fit"):
        configured(root, points=False, images=True).get(0)


def test_points_on_the_vehicle_are_left_out(made: Path) -> None:
    sweeps = SweepConfig(past=0, future=0, scans=1, nearest=10)
    kept = configured(made, points=True, images=False, sweeps=sweeps).get(0)
    pose = torch.from_numpy(drive(0.0) @ Made(made).sensors()[LIDAR])
    in_sensor = (global_points(kept) - pose[:3, 3]) @ pose[:3, :3]
    assert float(in_sensor[:, :2].abs().amax(1).min()) >= 10 - 1e-3
    assert float(in_sensor[:, 0].abs().min()) < 5  # beside the vehicle, but far ahead or behind


def test_objects_are_those_of_the_classes_with_points(made: Path) -> None:
    sample = configured(made).get(1)
    assert sample.objects is not None
    boxes = sample.objects.boxes
    assert [NUSCENES_CLASSES[i] for i in boxes.label] == ["car", "bus", "traffic_cone"]
    assert sample.objects.sensor_points.tolist() == [12, 2, 1]
    assert boxes.frame == "ego" and boxes.centre.dtype == torch.float32
    assert torch.allclose(boxes.size[0], torch.tensor([4.5, 2.0, 1.8]))
    at = boxes.centre.double() @ sample.ego_to_global[:3, :3].T + sample.ego_to_global[:3, 3]
    assert torch.allclose(at[0], torch.tensor(OBJECTS[0][1], dtype=torch.float64), atol=1e-4, rtol=0)
    assert boxes.velocity is not None
    speed = boxes.velocity.norm(dim=1)
    assert torch.allclose(speed, torch.tensor([0.0, math.hypot(3, 1), 0.0]), atol=1e-3, rtol=0)
    # Pitch and roll are small, so the heading turns by the vehicle's yaw.
    yaw = math.atan2(float(sample.ego_to_global[1, 0]), float(sample.ego_to_global[0, 0]))
    assert math.isclose(math.cos(float(boxes.yaw[1]) + yaw + 2.0), 1, abs_tol=1e-5)


def test_objects_of_fewer_classes_and_without_points(made: Path) -> None:
    sample = configured(made, classes=("pedestrian", "car"), min_points=0).get(1)
    assert sample.objects is not None
    assert sample.objects.boxes.label.tolist() == [1, 0]
    boxes = configured(made, classes=("pedestrian",)).sample_boxes(1)
    assert boxes.frame == "global" and boxes.label.tolist() == [0]
    assert torch.allclose(boxes.centre[0, :2], torch.tensor([104.25, 190.4], dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("nan_velocity", "unknown"), [("zero", False), ("keep", True)])
def test_unknown_velocities(tmp_path: Path, nan_velocity: str, unknown: bool) -> None:
    made = make(tmp_path)
    for record in made.tables["sample_annotation"]:
        record["prev"] = record["next"] = ""
    made.write()
    objects = configured(tmp_path, nan_velocity=nan_velocity).get(0).objects
    assert objects is not None and objects.boxes.velocity is not None
    assert bool(objects.boxes.velocity.isnan().all()) == unknown
    assert bool((objects.boxes.velocity == 0).all()) != unknown


def test_frames_are_balanced_by_class(made: Path) -> None:
    balanced = ClassBalanced(configured(made, classes=("car", "pedestrian"), images=False), seed=0)
    assert len(balanced) == 12 and set(balanced.frame_ids) <= set(configured(made).frame_ids)
    sample = balanced.get(3, frame_generator(0, 0, 3))
    assert sample.frame_id == balanced.frame_ids[3]


def test_samples_without_annotations(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.tables["sample_annotation"] = [r for r in made.tables["sample_annotation"] if r["sample_token"] == "0916-0"]
    for record in made.tables["sample_annotation"]:
        record["prev"] = record["next"] = ""
    made.write()
    dataset = configured(tmp_path)
    objects = dataset.get(0).objects
    assert objects is not None and len(objects) == 0
    assert dataset.class_presence().any(1).tolist() == [False, False, False, False, True, False]
    made.tables["sample_annotation"] = []
    made.write()
    assert configured(tmp_path).get(0).objects is None


def test_the_ego_frame_is_the_cameras_mean_or_the_scans(made: Path) -> None:
    mean, scan = configured(made).get(2), configured(made, ego_frame="lidar").get(2)
    time = 1.0
    assert np.allclose(scan.ego_to_global.numpy(), drive(time), atol=1e-9, rtol=0)
    exposures = np.stack([drive(time - 0.03 + 0.009 * c) for c in range(6)])
    assert np.allclose(mean.ego_to_global[:3, 3].numpy(), exposures[:, :3, 3].mean(0), atol=1e-9, rtol=0)
    assert np.allclose(mean.ego_to_global.numpy(), drive(time - 0.0075), atol=1e-4, rtol=0)


def test_the_ego_frame_can_be_the_lidars_own(made: Path) -> None:
    """Everything is turned and moved alike: seen from the globe, nothing is elsewhere."""
    here, there = (configured(made, ego_frame=f, points=True, past=(1,)).get(2) for f in ("lidar", "lidar_sensor"))
    sensor = Made(made).sensors()["LIDAR_TOP"]
    assert np.allclose(there.ego_to_global.numpy(), drive(1.0) @ sensor, atol=1e-9, rtol=0)
    assert there.points is not None and here.points is not None and here.objects is not None
    found = (carry(s.points[:, :3].double(), s.ego_to_global) for s in (here, there) if s.points is not None)
    torch.testing.assert_close(*found, rtol=0, atol=1e-3)
    cameras = (s.ego_to_global @ s.camera_to_ego for s in (here, there))
    torch.testing.assert_close(*cameras, rtol=0, atol=1e-9)
    assert there.objects is not None
    centres = (carry(s.objects.boxes.centre.double(), s.ego_to_global) for s in (here, there) if s.objects is not None)
    torch.testing.assert_close(*centres, rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="no ego_frame 'lidar_sensor'"):
        configured(made, ego_frame="lidar_sensor", camera_motion="neglected")


def test_neglected_motion_takes_each_cameras_own_ego_frame(made: Path) -> None:
    sample = configured(made, camera_motion="neglected", past=(1,)).get(2)
    sensors = Made(made).sensors()
    for n, camera in enumerate(CAMERAS):
        assert np.allclose(sample.camera_to_ego[0, n].numpy(), sensors[camera], atol=1e-9, rtol=0)
        time = 1.0 - 0.03 + 0.009 * n
        past = np.linalg.inv(drive(time)) @ drive(time - 0.5) @ sensors[camera]
        assert np.allclose(sample.camera_to_ego[1, n].numpy(), past, atol=1e-9, rtol=0)


@pytest.fixture(scope="module")
def augmented(made: Path) -> NuScenesDataset:
    return configured(
        made, past=(1,), points=True, depth=True, image_augment=ImageAugmentConfig(),
        bev_augment=BevAugmentConfig(scale_point_heights=True), sweeps=SweepConfig(past=0, future=0, scans=1),
    )  # fmt: skip


def image_points(sample: SurroundSample, points: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels of ``images`` and depths, frame by frame and camera by camera, of points (n, 3) of the ego frame as the
    sample has it: the inverse of the formula in data/surround.py."""
    homogeneous = torch.cat((points.double(), torch.ones(len(points), 1, dtype=torch.float64)), 1)
    for s in range(len(sample.camera_to_ego)):
        for n in range(6):
            at = homogeneous @ torch.linalg.inv(sample.bev_affine @ sample.camera_to_ego[s, n]).T
            rays = at @ sample.intrinsics[s, n].T
            pixels = torch.cat((rays[:, :2] / rays[:, 2:3], rays[:, 2:]), 1)
            affine = sample.image_affine[n]
            yield pixels[:, :2] @ affine[:2, :2].T + affine[:2, 3], at[:, 2]


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(0, 3))
def test_augmented_objects_stay_where_they_were_in_the_picture(
    augmented: NuScenesDataset, seed: int, index: int
) -> None:
    plain, moved = augmented.get(index), augmented.get(index, frame_generator(seed, 0, index))
    assert plain.objects is not None and moved.objects is not None
    for (before, depth), (after, same), affines in zip(
        image_points(plain, plain.objects.boxes.centre), image_points(moved, moved.objects.boxes.centre),
        [(plain.image_affine[n], moved.image_affine[n]) for _ in range(2) for n in range(6)], strict=True,
    ):  # fmt: skip
        shown = depth > 1
        assert torch.allclose(depth[shown], same[shown], atol=1e-4, rtol=0)
        source = torch.linalg.solve(affines[0][:2, :2], (before - affines[0][:2, 3]).T).T
        again = torch.linalg.solve(affines[1][:2, :2], (after - affines[1][:2, 3]).T).T
        assert torch.allclose(source[shown], again[shown], atol=0.02, rtol=1e-4)
    # Corners, which a mirror puts in another order: every one lies on one of the box before.
    back = torch.linalg.inv(moved.bev_affine)
    corners = moved.objects.boxes.corners().double() @ back[:3, :3].T + back[:3, 3]
    # A box's yaw turns with the ego frame only where that frame is level, which the made-up one is not quite.
    assert float(torch.cdist(corners, plain.objects.boxes.corners().double()).min(2).values.max()) < 1e-3


@settings(max_examples=25)
@given(st.integers(0, 2**31))
def test_pixels_at_their_depth_lead_to_the_points(augmented: NuScenesDataset, seed: int) -> None:
    sample = augmented.get(2, frame_generator(seed, 0, 2))
    assert sample.depth is not None and sample.points is not None
    found = 0
    for n in range(6):
        # Not the first row and column, into which points from beyond the edge fall.
        row, column = (sample.depth[n, 1:, 1:] > 0).nonzero().add(1).unbind(1)
        depth = sample.depth[n][row, column].double()
        pixels = torch.stack((column + 0.5, row + 0.5, depth, torch.ones_like(depth)), 1).double()
        q = pixels @ torch.linalg.inv(sample.image_affine[n]).T
        rays = torch.stack((q[:, 0] * depth, q[:, 1] * depth, depth, torch.ones_like(depth)), 1)
        at = rays @ torch.linalg.inv(sample.intrinsics[0, n]).T @ (sample.bev_affine @ sample.camera_to_ego[0, n]).T
        distance = torch.cdist(at[:, :3], sample.points[:, :3].double()).min(1).values
        # Half a pixel's diagonal in the picture's file; the picture is scaled alike in both directions, nearly.
        reach = math.sqrt(0.5) / sample.image_affine[n][:2, :2].det().abs().sqrt() * 1.02
        stretch = sample.bev_affine[2, 2]
        assert bool((distance <= stretch * depth / FORWARD * reach + 1e-3).all())
        found += len(depth)
    assert found > 20


def test_equal_seeds_give_equal_samples(augmented: NuScenesDataset) -> None:
    def values(seed: int | None) -> list[Tensor]:
        sample = augmented.get(1, None if seed is None else frame_generator(seed, 0, 1))
        assert sample.images is not None and sample.depth is not None and sample.points is not None
        assert sample.objects is not None
        return [sample.images, sample.depth, sample.points, sample.image_affine, sample.bev_affine,
                sample.objects.boxes.centre, sample.objects.boxes.yaw]  # fmt: skip

    first, again, other, plain = values(1), values(1), values(2), values(None)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for different in (other, plain):
        assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, different, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, values(None), strict=True))


def test_without_settings_a_generator_changes_nothing(made: Path) -> None:
    dataset = configured(made, points=True)
    plain, drawn = dataset.get(1), dataset.get(1, frame_generator(5, 0, 1))
    assert plain.images is not None and drawn.images is not None
    assert torch.equal(plain.images, drawn.images) and torch.equal(plain.image_affine, drawn.image_affine)
    assert plain.points is not None and drawn.points is not None and torch.equal(plain.points, drawn.points)


def test_samples_become_batches_in_memory_and_from_files(made: Path) -> None:
    def batch(in_memory: bool) -> SurroundBatch:
        dataset = configured(made, points=True, depth=True, in_memory=in_memory, bev_augment=BevAugmentConfig())
        return next(batches(dataset, [0, 3], 2, seed=1, epoch=0))

    kept, read = batch(True), batch(False)
    assert kept.frame_ids == ["0103-0", "0103-3"] and kept.images is not None and kept.points is not None
    assert read.images is not None and torch.equal(kept.images, read.images)
    assert read.points is not None and all(torch.equal(a, b) for a, b in zip(kept.points, read.points, strict=True))
    assert kept.objects is not None and kept.objects.present.sum(1).tolist() == [3, 3]


# --------------------------------------------------------------------------------------------------------------- faults


def test_absent_and_broken_files_are_told(tmp_path: Path) -> None:
    root = make(tmp_path).root
    tables = configured(root).tables
    rows = tables.key_data(tables.sample_row("0103-1"))
    picture, scan = tables.file(rows["CAM_BACK"]), tables.file(rows[LIDAR])
    Image.new("RGB", (80, 45)).save(picture)
    with pytest.raises(UserError, match=r"is 80 x 45 px, .*sample_data\.json says 160 x 90"):
        configured(root).get(1)
    picture.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cannot be read as an image .*CAM_BACK of sample 0103-1"):
        configured(root).get(1)
    picture.unlink()
    with pytest.raises(UserError, match=rf"{picture.name}: no such file \(CAM_BACK of sample 0103-1\)"):
        configured(root).get(1)
    lidar = {"images": False, "points": True}
    scan.write_bytes(scan.read_bytes()[:-4])
    with pytest.raises(UserError, match="no multiple of the 20 bytes of a point"):
        configured(root, **lidar).get(1)
    scan.write_bytes(b"")
    with pytest.raises(UserError, match="the file is empty"):
        configured(root, **lidar).get(1)
    scan.unlink()
    with pytest.raises(UserError, match=rf"{scan.name}: no such file \(LIDAR_TOP of sample 0103-1\)"):
        configured(root, **lidar).get(1)


def test_incomplete_tables_are_told(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.tables["sample_data"][0]["width"] = 0
    made.write()
    with pytest.raises(UserError, match=r"sample_data\.json: .* has no width and height"):
        configured(tmp_path).get(0)
    del made.tables["sample_data"][0]
    made.tables["sample_data"][0]["prev"] = ""
    made.write()
    with pytest.raises(UserError, match="sample 0103-0 has no key frame of CAM_FRONT_LEFT"):
        configured(tmp_path).get(0)


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"classes": ("car", "tram")}, "classes"),
        ({"past": (2, 1)}, "past"),
        ({"past": (0,)}, "past"),
        ({"canvas": (0, 5)}, "canvas"),
    ],
)
def test_impossible_settings_are_refused(chosen: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        check_settings(NuScenesConfig(root=Path(), **chosen))


@pytest.mark.parametrize("chosen", [{"scans": 0}, {"past": -1}, {"nearest": 60.0}, {"budget": 0}])
def test_impossible_sweeps_are_refused(chosen: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(chosen))):
        check_settings(SweepConfig(**chosen))


# --------------------------------------------------------------------------------------------------------- real moments


@pytest.fixture(scope="module")
def one(real_data: Path) -> NuScenesDataset:
    """The real moment, with everything."""
    return NuScenesDataset(NuScenesConfig(
        root=real_data / "nuscenes_one", version="v1.0-one", split="mini_train", points=True, depth=True,
        sweeps=SweepConfig(style="intended", farthest=math.inf), in_memory=True, min_points=0,
        image_augment=ImageAugmentConfig(), bev_augment=BevAugmentConfig(),
    ))  # fmt: skip


def detected(one: NuScenesDataset) -> list[int]:
    """Rows of the annotations of the ten classes."""
    category = [one.tables.categories[k] for k in one.tables.annotations.category]
    return [row for row, name in enumerate(category) if name in CLASS_OF_CATEGORY]


@pytest.mark.real
def test_points_lie_in_the_real_boxes(one: NuScenesDataset) -> None:
    sample = one.get(0)
    assert sample.objects is not None and sample.points is not None and len(sample.objects) == 68
    listed = one.tables.annotations.num_lidar_pts[detected(one)]
    # In the global frame, where boxes stand upright: exactly the points that the annotators counted.
    assert one.sample_boxes(0).contains(global_points(sample)).sum(1).tolist() == listed.tolist()
    # In the ego frame, which nods by 1.4 degrees here, upright boxes miss a few points of the long truck.
    inside = sample.objects.boxes.to(torch.float64).contains(sample.points[:, :3].double())
    assert 0.975 * listed.sum() <= int(inside.sum()) <= 1.01 * listed.sum()


@pytest.mark.real
@pytest.mark.parametrize(("upright", "mean", "least"), [("global", 0.9999, 0.999), ("ego", 0.95, 0.8)])
def test_real_boxes_are_seen_where_they_should_be(
    one: NuScenesDataset, real_data: Path, upright: str, mean: float, least: float
) -> None:
    listed = json.loads((real_data / "nuscenes_one" / "extra" / "boxes_2d.json").read_text())
    sample = one.get(0)
    assert sample.objects is not None
    tokens = [one.tables.annotations.token[row].decode() for row in detected(one)]
    corners = sample.objects.boxes.corners().double()
    if upright == "global":
        back = torch.linalg.inv(sample.ego_to_global)
        corners = one.sample_boxes(0).corners() @ back[:3, :3].T + back[:3, 3]
    unplaced = replace(sample, image_affine=torch.eye(4, dtype=torch.float64).repeat(6, 1, 1))
    limit, overlaps = torch.tensor([1600.0, 900.0], dtype=torch.float64), []
    for camera, (uv, depth) in zip(CAMERAS, image_points(unplaced, corners.flatten(0, 1)), strict=True):
        uv, depth = uv.unflatten(0, (-1, 8)), depth.unflatten(0, (-1, 8))
        for entry in listed.get(camera, []):
            if entry["annotation_token"] not in tokens:
                continue
            k = tokens.index(entry["annotation_token"])
            low, high = uv[k].amin(0), uv[k].amax(0)
            if not bool((depth[k] > 0.1).all() and (low > 0).all() and (high < limit).all()):
                continue  # cut off by the picture's edge: its outline is no matter of corners alone
            expected = torch.tensor(entry["bbox"], dtype=torch.float64)
            meet = (high.minimum(expected[2:]) - low.maximum(expected[:2])).clamp(min=0).prod()
            overlaps.append(float(meet / ((high - low).prod() + (expected[2:] - expected[:2]).prod() - meet)))
    assert len(overlaps) > 60
    assert np.mean(overlaps) > mean and min(overlaps) > least


@pytest.mark.real
def test_real_depth_is_that_of_the_points(one: NuScenesDataset) -> None:
    plain, moved = one.get(0), one.get(0, frame_generator(4, 0, 0))
    for sample in (plain, moved):
        assert sample.depth is not None
        seen = sample.depth > 0
        assert bool((seen.flatten(1).sum(1) > 1000).all())
        assert 0.5 < float(sample.depth[seen].min()) and float(sample.depth.max()) < 110
    # What the scan sees of an object lies between the object's nearest and farthest corner.
    assert moved.objects is not None and moved.depth is not None
    corners = moved.objects.boxes.corners()
    for n, (uv, depth) in enumerate(image_points(moved, corners.flatten(0, 1))):
        uv, depth = uv.unflatten(0, (-1, 8)), depth.unflatten(0, (-1, 8))
        wide = ((depth > 1).all(1) & (uv.amin(1) > 0).all(1) & (uv.amax(1) < torch.tensor([704, 256])).all(1)).nonzero()
        for k in wide[:, 0].tolist():
            if moved.objects.sensor_points[k] < 20:
                continue
            (left, top), (right, bottom) = uv[k].amin(0).int().tolist(), (uv[k].amax(0).int() + 1).tolist()
            values = moved.depth[n, top:bottom, left:right]
            values = values[values > 0].double()
            near, far = float(depth[k].min()) - 0.2, float(depth[k].max()) + 0.2
            assert bool(((values >= near) & (values <= far)).any())


@pytest.mark.real
def test_the_mini_tables_give_samples(real_data: Path) -> None:
    dataset = NuScenesDataset(NuScenesConfig(
        root=real_data / "nuscenes_mini_val_tables", version="v1.0-mini", split="mini_val", past=(1,), images=False,
        in_memory=True, nan_velocity="keep",
    ))  # fmt: skip
    assert len(dataset) == 81
    counts = dataset.class_presence().sum(0)
    assert [name for name, n in zip(NUSCENES_CLASSES, counts, strict=True) if n == 0] == [
        "construction_vehicle", "trailer", "barrier",
    ]  # fmt: skip
    for index in (0, 1, 40, 80):
        sample = dataset.get(index)
        assert sample.objects is not None
        everything = dataset.sample_boxes(index)
        assert 0 < len(sample.objects) <= len(everything)
        assert bool((sample.objects.sensor_points > 0).all())
        # The vehicle's own frame: what it knows lies around it, at about its own height.
        assert float(sample.objects.boxes.centre[:, :2].norm(dim=1).max()) < 200
        assert float(sample.objects.boxes.centre[:, 2].abs().max()) < 15
        # Cameras sit on the car; those of the frame before where it was half a second ago.
        assert bool((sample.camera_to_ego[0, :, :3, 3].norm(dim=-1) < 3).all())
        speed = (sample.camera_to_ego[1, :, :3, 3] - sample.camera_to_ego[0, :, :3, 3]).norm(dim=-1) / 0.5
        assert bool((speed < 20).all())
    start = dataset.get(40)  # the first of its scene stands for its own past
    assert torch.equal(start.camera_to_ego[0], start.camera_to_ego[1])
