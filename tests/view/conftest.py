"""A small data set and a run on it as the train loop leaves it, both made up."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from surround_run import write_drive, write_run

from distill3d.evaluate.kitti import evaluate_folders

WIDTH, HEIGHT = 160, 48
FOCAL, CENTRE_U, CENTRE_V = 90.0, 80.0, 22.0
CALIBRATION = f"""P0: {FOCAL} 0 {CENTRE_U} 0 0 {FOCAL} {CENTRE_V} 0 0 0 1 0
P1: {FOCAL} 0 {CENTRE_U} 0 0 {FOCAL} {CENTRE_V} 0 0 0 1 0
P2: {FOCAL} 0 {CENTRE_U} 0 0 {FOCAL} {CENTRE_V} 0 0 0 1 0
P3: {FOCAL} 0 {CENTRE_U} 0 0 {FOCAL} {CENTRE_V} 0 0 0 1 0
R0_rect: 1 0 0 0 1 0 0 0 1
Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0
Tr_imu_to_velo: 1 0 0 0 0 1 0 0 0 0 1 0
"""
FRAMES = 6
CAR = (1.5, 1.6, 4.0)  # height, width, length, m
SCALE = 0.125


@dataclass(frozen=True)
class Car:
    """A car that drives away from the camera, as a label line or, with a score, as a result line."""

    x: float
    z: float
    score: float | None = None

    def line(self) -> str:
        h, w, _ = CAR
        u, v = CENTRE_U + FOCAL * self.x / self.z, CENTRE_V + FOCAL * 0.9 / self.z
        half = FOCAL * h / 2 / self.z
        box = (u - half, v - half, u + half, v + half)
        numbers = [-math.pi / 2 - math.atan2(self.x, self.z), *box, h, w, CAR[2], self.x, 1.65, self.z, -math.pi / 2]
        flags = "0.00 0" if self.score is None else "-1 -1"
        score = "" if self.score is None else f" {self.score:.4f}"
        return f"Car {flags} {' '.join(f'{n:.4f}' for n in numbers)}{score}\n"


def true_cars(frame: int) -> list[Car]:
    """The cars of a frame: two to seven, from 6 m to 41 m away."""
    return [Car(-4 + 2.0 * k, 6 + 5.0 * k + frame) for k in range(2 + frame)]


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("streets")
    rng = np.random.default_rng(0)
    training = root / "training"
    for kind in ("image_2", "label_2", "calib", "velodyne"):
        (training / kind).mkdir(parents=True)
    for frame in range(FRAMES):
        name = f"{frame:06d}"
        pixels = rng.integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(training / "image_2" / f"{name}.png")
        rng.uniform((2, -15, -2, 0), (40, 15, 1, 1), (600, 4)).astype(np.float32).tofile(
            training / "velodyne" / f"{name}.bin"
        )
        (training / "calib" / f"{name}.txt").write_text(CALIBRATION)
        (training / "label_2" / f"{name}.txt").write_text("".join(car.line() for car in true_cars(frame)))
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "val.txt").write_text("".join(f"{frame:06d}\n" for frame in range(FRAMES)))
    return root


#: Metres by which each stage misses the distance of every car.
MISSES = {"teacher": 0.1, "baseline": 1.2, "student": 0.4}
#: The baseline does not find every third car.
GAPS = 3


@pytest.fixture
def make_run(data_root: Path, tmp_path: Path) -> Callable[..., Path]:
    """``make_run(name, seed)`` writes a finished run with a teacher, a baseline and a student."""

    def make(name: str = "demo", seed: int = 0) -> Path:
        run = tmp_path / "runs" / name
        dataset = {
            "root": str(data_root), "train_split": "train", "eval_split": "val", "canvas": [WIDTH, HEIGHT],
            "min_height_scale": SCALE,
        }  # fmt: skip
        stages = [{"name": stage, "role": stage, "detector": {"input": "rgb"}} for stage in MISSES]
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text(
            yaml.safe_dump({"name": name, "dataset": dataset, "seed": seed, "stages": stages})
        )
        for entry in stages:
            _write_stage(run / entry["name"], entry, data_root, seed)
        return run

    return make


def _write_stage(folder: Path, entry: dict, data_root: Path, seed: int) -> None:
    (folder / "predictions").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(entry))
    miss = MISSES[folder.name] + 0.01 * seed
    for frame in range(FRAMES):
        found = [Car(car.x, car.z + miss, 0.9 - 0.01 * k) for k, car in enumerate(true_cars(frame))]
        if folder.name == "baseline":
            found = [car for k, car in enumerate(found) if k % GAPS]
        (folder / "predictions" / f"{frame:06d}.txt").write_text("".join(car.line() for car in found))
    result = evaluate_folders(data_root / "training" / "label_2", folder / "predictions", min_height_scale=SCALE)
    (folder / "evaluation.json").write_text(json.dumps(result.to_json()))
    terms = {"heatmap": 2.0, "depth": -0.5} | ({"monoskd/feature": 1.0} if folder.name == "student" else {})
    lines = [
        {"kind": "train", "step": step, "epoch": 0, "loss": 40 / step, "lr": 1e-3, "terms": terms}
        for step in range(1, 31)
    ]
    lines.append(
        {"kind": "eval", "step": 30, "epoch": 1, "ap": {"car_3d_loose": list(result.ap("car", "3d", "loose"))}}
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = {
        "stage": folder.name, "role": entry["role"], "detector": "monodle", "input": "rgb", "seed": seed, "epochs": 1,
        "method": "monoskd" if folder.name == "student" else None, "parameters": 1234567, "precision": "fp32",
        "trained_on": {"count": 40, "sha256": "ab" * 32, "frames": [f"streets/{i:06d}" for i in range(40)]},
    }  # fmt: skip
    (folder / "card.json").write_text(json.dumps(card))


# ------------------------------------------------------------------------------------------------------- surround views


@pytest.fixture(scope="session")
def drive_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drive(tmp_path_factory.mktemp("drives") / "nuscenes")


@pytest.fixture(scope="session")
def surround_original(drive_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, not to be changed."""
    return write_run(tmp_path_factory.mktemp("runs") / "drives", drive_root)


@pytest.fixture
def surround_run(surround_original: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return Path(shutil.copytree(surround_original, tmp_path / "runs" / surround_original.name))
