"""What each method costs at paper size: time and peak memory of a training step relative to the plain student's.

    python benchmarks/methods.py [--bases monodle ...] [--steps 4] [--batch-size 2] [--device cpu]

Every stage runs in processes of its own, whose memory settles as a training's does; with and without remembered teacher
answers.  Memory is what steps add to what the process held before (on the CPU), or the most that was allocated (on a
GPU).  Writes benchmarks/results/methods.json, base by base.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from machine import describe_machine

from distill3d.boxes import NUSCENES_CLASSES
from distill3d.data.augment.image import AugmentConfig
from distill3d.data.collate import batches
from distill3d.data.kitti.dataset import KittiDataset
from distill3d.data.sample import Batch
from distill3d.detectors import DetectorConfig, build_detector, detector_name
from distill3d.detectors.caddn import DepthTrunkConfig
from distill3d.detectors.centerpoint import CenterPointConfig
from distill3d.distill.methods import MethodConfig
from distill3d.distill.methods.bevdistill import BEVDistillConfig
from distill3d.distill.methods.cmkd import CMKDConfig
from distill3d.distill.methods.monotakd import MonoTAKDConfig
from distill3d.recipes import bev, surround
from distill3d.recipes.kitti import BASES, CARS, METHODS, for_base
from distill3d.recipes.surround_family import TINY_METHODS
from distill3d.settings import to_plain
from distill3d.synth.nuscenes_writer import SurroundStreetConfig, write_nuscenes
from distill3d.synth.writer import StreetConfig, write_kitti
from distill3d.train.checkpoint import save_weights
from distill3d.train.loop import TrainingStep, build_step
from distill3d.train.memory import keep_freed_memory
from distill3d.train.precision import choose_precision
from distill3d.train.recipe import DatasetConfig, Recipe, StageConfig, SurroundDatasetConfig
from distill3d.train.schedules import build_optimiser
from distill3d.train.sources import kitti_config, source_of
from distill3d.train.teachers import Teacher

RESULT = Path(__file__).resolve().parent / "results" / "methods.json"
FRAMES, SOURCE, CANVAS = 4, (1242, 375), (1280, 384)
AUGMENT = AugmentConfig(shift=0.0)
WARM_UP = 2  # passes over the frames
REMEMBERED = ", remembered teacher"


def without_weights(config: DetectorConfig) -> DetectorConfig:
    """The settings with a trunk that starts at random: nothing is downloaded for a benchmark."""
    trunk = replace(config.trunk, pretrained=False)
    return replace(config, trunk=trunk)  # pyright: ignore[reportArgumentType]


#: The bird's-eye-view family's student, and that of surround views, beside the camera family's bases.
BEV_BASE, SURROUND_BASE = "caddn", "bevdepth"
#: Key frames of a synthetic drive, the size of its pictures, and its scans as nuScenes' are.
DRIVE = SurroundStreetConfig(
    width=1600, height=900, rays_per_pixel_side=1, frames_per_scene=FRAMES, lidar_rate=20.0, lidar_step=0.33
)  # fmt: skip


def recipe_of(base: str, root: Path) -> Recipe:
    """Teachers, plain student and one student per method, at the paper's size."""
    if base == SURROUND_BASE:
        return surround_recipe(root)
    return bev_recipe(root) if base == BEV_BASE else kitti_recipe(base, root)


def surround_recipe(root: Path) -> Recipe:
    """CenterPoint, BEVDepth with the LiDAR's depth, BEVDepth with one past key frame alone, and taught by each method
    of the family."""
    student = without_weights(surround.BEVDEPTH)
    plain = StageConfig("plain", "baseline", student, surround.AVERAGED, **surround.IMAGES)
    return Recipe(
        "methods",
        (
            StageConfig("teacher", "teacher", CenterPointConfig(), surround.TEACHER, **surround.NO_IMAGES),
            replace(plain, name="expert", role="teacher", detector=replace(student, input="rgb+gt_depth", frames=1)),
            plain,
            *(
                replace(plain, name=name, role="student", teachers=(by,), method=full_size(method))
                for name, (by, method) in TINY_METHODS.items()
            ),
        ),
        replace(surround.BEVDEPTH_DATA, root=root, version="v1.0-synth"),
    )


def full_size(method: MethodConfig) -> MethodConfig:
    """Settings of a small preset for all of nuScenes' classes."""
    return replace(method, classes=NUSCENES_CLASSES) if isinstance(method, BEVDistillConfig) else method


def bev_recipe(root: Path) -> Recipe:
    """SECOND, MonoTAKD's assistant, the plain student, CMKD's and MonoTAKD's."""
    random = DepthTrunkConfig()
    assistant, student, aligned = (replace(c, trunk=random) for c in (bev.ASSISTANT, bev.STUDENT, bev.ALIGNED))
    return Recipe(
        "methods",
        (
            StageConfig("teacher", "teacher", bev.SECOND_TEACHER, bev.LIDAR, None),
            StageConfig("assistant", "assistant", assistant, bev.CAMERA, bev.FLIP),
            StageConfig("plain", "baseline", student, bev.CAMERA, bev.FLIP),
            StageConfig("cmkd", "student", replace(student, detection_weight=0.0), bev.CAMERA, bev.FLIP,
                        ("teacher",), CMKDConfig()),
            StageConfig("monotakd", "student", aligned, bev.CAMERA, bev.FLIP, ("teacher", "assistant"),
                        MonoTAKDConfig()),
        ),
        replace(bev.UNSCALED, root=root),
    )  # fmt: skip


def kitti_recipe(base: str, root: Path) -> Recipe:
    """The teacher of depth images, the plain student, and one student per method of the camera family."""
    student = without_weights(replace(BASES[base].detector, classes=CARS))
    schedule = BASES[base].schedule
    taught = [
        StageConfig(name, "student", student, schedule, AUGMENT, ("teacher",), for_base(method.config, base))
        for name, method in METHODS.items()
    ]
    stages = (
        StageConfig("teacher", "teacher", replace(student, input="depth"), schedule, AUGMENT),
        StageConfig("plain", "baseline", student, schedule, AUGMENT),
        *taught,
    )
    return Recipe("methods", stages, DatasetConfig(root, canvas=CANVAS))


class Stepper:
    """One stage, ready to take training steps on given batches."""

    def __init__(self, recipe: Recipe, label: str, folder: Path, device: torch.device) -> None:
        stage = recipe.stage(label.removesuffix(REMEMBERED))
        self.device, self.precision = device, choose_precision(recipe.precision, device)
        placed = {"device": device, "memory_format": torch.channels_last}
        self.teachers = {
            name: Teacher(folder / name, repeatable=label.endswith(REMEMBERED), frames=FRAMES).to(**placed)  # pyright: ignore
            for name in stage.teachers
        }
        self.step: TrainingStep = build_step(stage, self.teachers).to(**placed)  # pyright: ignore
        self.step.train()
        self.optimiser = build_optimiser(self.step, stage.schedule)

    def __call__(self, batch: Batch) -> float:
        """Seconds of one step."""
        self._wait()
        start = time.perf_counter()
        with self.precision.autocast(self.device):
            targets = self.step.student.encode(batch)
            answers = {name: teacher(batch, targets) for name, teacher in self.teachers.items()}
            losses = self.step(batch, targets, answers)
        self.optimiser.zero_grad()
        torch.stack([v.float() for v in losses.values()]).sum().backward()
        self.optimiser.step()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def load(recipe: Recipe, batch_size: int, device: torch.device) -> list[Batch]:
    stage = next(s for s in reversed(recipe.stages) if s.role == "student" and s.teachers[0] == "teacher")
    if isinstance(recipe.dataset, SurroundDatasetConfig):
        data = source_of(recipe).training(stage)
    else:
        data = KittiDataset(kitti_config(recipe, stage, "train", train=True))
    return [batch.to(device) for batch in batches(data, list(range(FRAMES)), batch_size, 0, 0)]


def resident(field: str) -> float:
    """MiB of this process now (VmRSS) or at most so far (VmHWM), as Linux counts them."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def alternate(steppers: dict[str, Stepper], loaded: list[Batch], steps: int) -> dict[str, float]:
    """Median seconds of a step of each, taken in turn on the same batches."""
    for stepper in steppers.values():
        for batch in loaded:
            stepper(batch)  # warms up, and lets the remembering teachers see every frame
    seconds: dict[str, list[float]] = {label: [] for label in steppers}
    for i in range(steps):
        for label, stepper in steppers.items():
            seconds[label].append(stepper(loaded[i % len(loaded)]))
    return {label: statistics.median(values) for label, values in seconds.items()}


def measure_alone(base: str, label: str, folder: Path, steps: int, batch_size: int, device: torch.device) -> dict:
    """Seconds of a stage's fastest step, for other work on the machine only adds, and MiB that steps take at most."""
    recipe = recipe_of(base, folder / "streets")
    stepper = Stepper(recipe, label, folder, device)
    loaded = load(recipe, batch_size, device)
    before = resident("VmRSS")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP):
        for batch in loaded:
            stepper(batch)  # and lets remembering teachers see every frame
    seconds = min(stepper(loaded[i % len(loaded)]) for i in range(steps))
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else resident("VmHWM") - before
    return {"seconds": seconds, "mib": peak}


def measure(base: str, folder: Path, steps: int, batch_size: int, device: torch.device) -> dict:
    """Seconds and peak memory of every method on a base, and both relative to the plain student's.

    Each is measured in a process of its own, twice, the second time in reverse order; the better time counts.
    """
    recipe = recipe_of(base, folder / "streets")
    for stage in recipe.stages:
        if stage.role in ("teacher", "assistant"):
            config = stage.detector
            card = {"detector": detector_name(config), "config": to_plain(config), "trained_on": {"frames": []}}
            save_weights(folder / stage.name, build_detector(config).state_dict(), card)
    students = [stage.name for stage in recipe.stages if stage.role == "student"]
    labels = ["plain", *students]
    if isinstance(recipe.dataset, DatasetConfig):  # answers on surround views are too large to be kept
        labels += [f"{name}{REMEMBERED}" for name in students]
    seconds: dict[str, float] = {}
    mib: dict[str, float] = {}
    for label in labels + labels[::-1]:
        command = [sys.executable, __file__, "--alone", label, "--bases", base, "--folder", str(folder),
                   "--steps", str(steps), "--batch-size", str(batch_size), "--device", str(device)]  # fmt: skip
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        seconds[label] = min(found["seconds"], seconds.get(label, found["seconds"]))
        mib[label] = found["mib"]
    return {
        "seconds": seconds, "time_relative_to_plain": {k: v / seconds["plain"] for k, v in seconds.items()},
        "peak_mib": mib, "memory_relative_to_plain": {k: v / mib["plain"] for k, v in mib.items()},
        "batch_size": batch_size, "canvas": list(recipe.dataset.canvas), "steps": steps,
        "precision": choose_precision("auto", device).name, "machine": describe_machine(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [*BASES, BEV_BASE, SURROUND_BASE]
    parser.add_argument("--bases", nargs="+", default=known, choices=known)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--alone", help=argparse.SUPPRESS)  # one measurement, in a process of its own
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device.type == "cpu":
        keep_freed_memory()
    if options.alone:
        found = measure_alone(
            options.bases[0], options.alone, options.folder, options.steps, options.batch_size, options.device
        )
        print(json.dumps(found))
        return
    results = json.loads(options.json.read_text()) if options.json.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        street = StreetConfig(width=SOURCE[0], height=SOURCE[1], rays_per_pixel_side=1)
        for base in options.bases:
            if base == SURROUND_BASE:
                shutil.rmtree(folder / "streets", ignore_errors=True)
                write_nuscenes(folder / "streets", seed=0, config=DRIVE, splits={"train": 1, "val": 1}, progress=False)
            else:
                write_kitti(folder / "streets", seed=0, config=street, splits={"train": FRAMES, "val": 1},
                            progress=False)  # fmt: skip
            results.setdefault(options.device.type, {})[base] = measure(
                base, folder, options.steps, options.batch_size, options.device
            )
            options.json.write_text(json.dumps(results, indent=1) + "\n")
            print(base, json.dumps(results[options.device.type][base], indent=1), flush=True)


if __name__ == "__main__":
    main()
