"""What the tiny presets reach: every base detector, its LiDAR teacher and every method, on the demo's streets.

    python benchmarks/presets.py [--out runs/presets] [--bases monodle ...] [--seed 0]

Finished stages are kept, so it can be stopped and called again.  One seed shows that everything trains and where things
stand; it proves no method better than another.  Writes benchmarks/results/presets.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from machine import describe_machine

from distill3d.recipes import get_recipe
from distill3d.recipes.demo import EVAL_FRAMES, STREETS, TRAIN_FRAMES
from distill3d.recipes.kitti import BASES
from distill3d.settings import to_plain
from distill3d.synth.writer import write_kitti
from distill3d.train.evaluation import EVALUATION
from distill3d.train.loop import RunOptions
from distill3d.train.stages import run_recipe

RESULT = Path(__file__).resolve().parent / "results" / "presets.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/presets"))
    parser.add_argument("--streets", type=Path, help="streets of the demo that exist already")
    parser.add_argument("--bases", nargs="+", default=list(BASES), choices=list(BASES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    streets = options.streets or options.out / "streets"
    if options.streets is None:
        write_kitti(streets, seed=options.seed, config=STREETS, splits={"train": TRAIN_FRAMES, "val": EVAL_FRAMES})
    reached: dict[str, dict[str, dict[str, list[float]]]] = {}
    for base in options.bases:
        recipe = replace(get_recipe(f"tiny_{base}"), seed=options.seed)
        recipe = replace(recipe, dataset=replace(recipe.dataset, root=streets))
        folder = run_recipe(recipe, RunOptions(out=options.out, threads=1))
        for stage in recipe.stages:
            result = json.loads((folder / stage.name / EVALUATION).read_text())
            reached.setdefault(base, {})[stage.name] = {
                overlap: result[overlap]["car_3d"]["AP_R40"] for overlap in ("loose", "strict")
            }
            print(base, stage.name, reached[base][stage.name], flush=True)
    torch.set_num_threads(1)
    found = {
        "what": "Car 3D AP|R40 (easy, moderate, hard) at IoU 0.5 (loose) and 0.7 (strict), synthetic streets",
        "seed": options.seed, "train_frames": TRAIN_FRAMES, "eval_frames": EVAL_FRAMES, "streets": to_plain(STREETS),
        "ap": reached, "machine": describe_machine(),
    }  # fmt: skip
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
