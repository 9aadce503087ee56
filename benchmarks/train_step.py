"""What distillation costs: one training step of each method relative to the plain student's, on the demo's streets.

    python benchmarks/train_step.py [--steps 12]

Steps of all stages alternate in one process, so that a drifting machine speed cancels; with and without remembered
teacher answers.  Also times ``distill3d --help`` as a process.  Writes benchmarks/results/train_step.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from machine import describe_machine
from methods import REMEMBERED, Stepper, alternate

from distill3d.data.collate import batches
from distill3d.data.kitti.dataset import KittiDataset
from distill3d.detectors import build_detector
from distill3d.recipes.demo import STREETS, demo
from distill3d.settings import to_plain
from distill3d.synth.writer import write_kitti
from distill3d.train.checkpoint import save_weights
from distill3d.train.memory import keep_freed_memory
from distill3d.train.sources import kitti_config

RESULT = Path(__file__).resolve().parent / "results" / "train_step.json"
FRAMES = 16
CPU = torch.device("cpu")


def measure(steps: int) -> dict:
    """Median seconds of a step of each stage, and ratios to the plain student's."""
    recipe = demo()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_kitti(folder / "streets", seed=0, config=STREETS, splits={"train": FRAMES, "val": 1}, progress=False)
        recipe = replace(recipe, dataset=replace(recipe.dataset, root=folder / "streets"))
        student = recipe.stage("monoskd")
        config = recipe.stage("teacher").detector
        save_weights(folder / "teacher", build_detector(config).state_dict(), {
            "detector": "monodle", "config": to_plain(config), "trained_on": {"frames": []}})  # fmt: skip
        labels = ["baseline", "monodistill", "monoskd"]
        labels += [f"{name}{REMEMBERED}" for name in labels[1:]]
        steppers = {label: Stepper(recipe, label, folder, CPU) for label in labels}
        data = KittiDataset(kitti_config(recipe, student, "train", train=True))
        loaded = list(batches(data, list(range(FRAMES)), student.schedule.batch_size, 0, 0))
        medians = alternate(steppers, loaded, steps)
    return {"seconds": medians, "relative_to_plain": {k: v / medians["baseline"] for k, v in medians.items()},
            "batch_size": student.schedule.batch_size, "canvas": list(recipe.dataset.canvas)}  # fmt: skip


def help_seconds(runs: int = 5) -> float:
    """Median seconds of ``distill3d --help`` as a process."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "distill3d", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    result = {**measure(options.steps), "help_seconds": help_seconds(), "machine": describe_machine()}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
