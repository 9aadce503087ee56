"""What each method costs at paper size: time and peak memory of a training step relative to the plain student's.

    python benchmarks/methods.py [--bases monodle ...] [--steps 4] [--batch-size 2] [--device cpu]

Steps of all methods alternate in one process, so that a drifting machine speed cancels; with and without remembered
teacher answers.  Memory is what a step adds to what a process of its own held before (on the CPU), or the most that was
allocated (on a GPU).  Writes benchmarks/results/methods.json, base by base.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from machine import describe_machine

from distill3d.data.collate import batches
from distill3d.data.kitti import KittiDataset
from distill3d.data.sample import Batch
from distill3d.detectors import DetectorConfig, build_detector, detector_name
from distill3d.recipes.kitti import BASES, CARS, METHODS, UNSHIFTED, for_base
from distill3d.settings import to_plain
from distill3d.synth.writer import StreetConfig, write_kitti
from distill3d.train.checkpoint import save_weights
from distill3d.train.loop import TrainingStep, build_step
from distill3d.train.memory import keep_freed_memory
from distill3d.train.precision import choose_precision
from distill3d.train.recipe import DatasetConfig, Recipe, StageConfig, kitti_config
from distill3d.train.schedules import build_optimiser
from distill3d.train.teachers import Teacher

RESULT = Path(__file__).resolve().parent / "results" / "methods.json"
FRAMES, SOURCE, CANVAS = 4, (1242, 375), (1280, 384)
REMEMBERED = ", remembered teacher"


def without_weights(config: DetectorConfig) -> DetectorConfig:
    """The settings with a trunk that starts at random: nothing is downloaded for a benchmark."""
    trunk = replace(config.trunk, pretrained=False)
    return replace(config, trunk=trunk)  # pyright: ignore[reportArgumentType]


def recipe_of(base: str, root: Path) -> Recipe:
    """Teacher, plain student and one student per method, at the paper's size."""
    student = without_weights(replace(BASES[base].detector, classes=CARS))
    schedule = BASES[base].schedule
    taught = [
        StageConfig(name, "student", student, schedule, UNSHIFTED, ("teacher",), for_base(method.config, base))
        for name, method in METHODS.items()
    ]
    stages = (
        StageConfig("teacher", "teacher", replace(student, input="depth"), schedule, UNSHIFTED),
        StageConfig("plain", "baseline", student, schedule, UNSHIFTED),
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
            name: Teacher(folder / name, repeatable=label.endswith(REMEMBERED)).to(**placed)  # pyright: ignore
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
    data = KittiDataset(kitti_config(recipe, recipe.stage("monostl"), "train", train=True))
    return [batch.to(device) for batch in batches(data, list(range(FRAMES)), batch_size, 0, 0)]


def resident(field: str) -> float:
    """MiB of this process now (VmRSS) or at most so far (VmHWM), as Linux counts them."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def peak_memory(base: str, label: str, folder: Path, batch_size: int, device: torch.device) -> float:
    """MiB that the third step of a stage takes at most."""
    recipe = recipe_of(base, folder / "streets")
    stepper = Stepper(recipe, label, folder, device)
    loaded = load(recipe, batch_size, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = resident("VmRSS")
    for i in range(3):
        stepper(loaded[i % len(loaded)])
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resident("VmHWM") - before


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


def measure(base: str, folder: Path, steps: int, batch_size: int, device: torch.device) -> dict:
    """Median seconds and peak memory of every method on a base, and both relative to the plain student's."""
    recipe = recipe_of(base, folder / "streets")
    config = recipe.stage("teacher").detector
    save_weights(folder / "teacher", build_detector(config).state_dict(), {
        "detector": detector_name(config), "config": to_plain(config), "trained_on": {"frames": []}})  # fmt: skip
    labels = ["plain", *METHODS, *(f"{name}{REMEMBERED}" for name in METHODS)]
    mib = {}
    for label in labels[: 1 + len(METHODS)]:
        command = [sys.executable, __file__, "--memory-of", label, "--bases", base, "--folder", str(folder),
                   "--batch-size", str(batch_size), "--device", str(device)]  # fmt: skip
        mib[label] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    steppers = {label: Stepper(recipe, label, folder, device) for label in labels}
    loaded = load(recipe, batch_size, device)
    medians = alternate(steppers, loaded, steps)
    return {
        "seconds": medians, "time_relative_to_plain": {k: v / medians["plain"] for k, v in medians.items()},
        "peak_mib": mib, "memory_relative_to_plain": {k: v / mib["plain"] for k, v in mib.items()},
        "batch_size": batch_size, "canvas": list(CANVAS),
        "precision": choose_precision(recipe.precision, device).name, "steps": steps, "machine": describe_machine(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bases", nargs="+", default=list(BASES), choices=list(BASES))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # one measurement, in a process of its own
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device.type == "cpu":
        keep_freed_memory()
    if options.memory_of:
        print(peak_memory(options.bases[0], options.memory_of, options.folder, options.batch_size, options.device))
        return
    results = json.loads(options.json.read_text()) if options.json.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        street = StreetConfig(width=SOURCE[0], height=SOURCE[1], rays_per_pixel_side=1)
        write_kitti(folder / "streets", seed=0, config=street, splits={"train": FRAMES, "val": 1}, progress=False)
        for base in options.bases:
            results.setdefault(options.device.type, {})[base] = measure(
                base, folder, options.steps, options.batch_size, options.device
            )
            options.json.write_text(json.dumps(results, indent=1) + "\n")
            print(base, json.dumps(results[options.device.type][base], indent=1), flush=True)


if __name__ == "__main__":
    main()
