"""Is the real-data path right? Tiny networks learn a few real KITTI frames by heart and are evaluated on the same.

    python benchmarks/real_frames.py DIR [--recipes monodle_overfit lidar_overfit] [--out FOLDER]

DIR is a KITTI folder with a handful of training frames.  With n counted labels the official AP|R40 cannot exceed
(n - 1) / 40 while n is 40 or less, for each label gives one recall point.  So each frame is evaluated COPIES times
over, which changes nothing but that limit; the plain figure and its limit stand beside it.
Writes benchmarks/results/real_frames.json, recipe by recipe.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from machine import describe_machine

from distill3d.data.splits import read_split
from distill3d.evaluate.kitti import Annotations, evaluate
from distill3d.recipes import get_recipe
from distill3d.train.loop import RunOptions
from distill3d.train.stages import run_recipe

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "real_frames.json"
RECIPES = ("monodle_overfit", "lidar_overfit")
COPIES = 20
MODERATE = 1


def texts(folder: Path, frames: list[str]) -> dict[str, str]:
    """Label or result files of the frames, each under COPIES names."""
    found = {}
    for frame in frames:
        lines = (folder / f"{frame}.txt").read_text().splitlines()
        for copy in range(COPIES):
            found[f"{frame}{copy:03}"] = "".join(f"{line}\n" for line in lines)
    return found


def measure(name: str, root: Path, out: Path) -> dict:
    """Trains a recipe's stages and evaluates each, the frames as they are and many times over."""
    recipe = get_recipe(name)
    recipe = replace(recipe, dataset=replace(recipe.dataset, root=root))
    folder = run_recipe(recipe, RunOptions(out=out, allow_overlap=True))

    frames = read_split(root / "ImageSets" / f"{recipe.dataset.eval_split}.txt")
    labels = Annotations.from_lines(texts(root / "training" / "label_2", frames), scored=False)
    result = {"frames": len(frames), "copies": COPIES, "canvas": list(recipe.dataset.canvas), "car_3d_0.7_moderate": {}}
    for stage in recipe.stages:
        predictions = Annotations.from_lines(texts(folder / stage.name / "predictions", frames), scored=True)
        plain = json.loads((folder / stage.name / "evaluation.json").read_text())
        result["car_3d_0.7_moderate"][stage.name] = {
            "each_frame_once": plain["strict"]["car_3d"]["AP_R40"][MODERATE],
            "each_frame_many_times": evaluate(labels, predictions).ap("car", "3d", "strict")[MODERATE],
        }
    return result | {"machine": describe_machine()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--out", type=Path, default=ROOT / "runs")
    options = parser.parse_args()
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in options.recipes:
        results[name] = measure(name, options.root, options.out)
        RESULT.write_text(json.dumps(results, indent=1) + "\n")
        print(name, json.dumps(results[name], indent=1), flush=True)


if __name__ == "__main__":
    main()
