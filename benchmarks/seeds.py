"""Does distillation help on synthetic streets? A recipe over several seeds, each with its own streets.

    python benchmarks/seeds.py demo|bev [--seeds N] [--out FOLDER]

``demo`` is the demo's recipe with a control, ``bev`` the bird's-eye-view family's.  Every stage is one single-thread
process, as many side by side as there are cores.  Finished stages are kept, so the same command continues after a kill.
Writes benchmarks/results/<study>_seeds.json and the study's page under docs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from machine import describe_machine

from distill3d.recipes.demo import EVAL_FRAMES, STREETS, TRAIN_FRAMES, demo_control
from distill3d.recipes.synthetic import tiny_bev
from distill3d.settings import to_plain
from distill3d.synth.writer import write_kitti
from distill3d.train.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Study:
    """What is trained over several seeds, and where the numbers go."""

    name: str
    title: str
    recipe: Callable[[], Recipe]
    seeds: int
    page: Path
    lengths: str  # of the stages, a sentence

    @property
    def result(self) -> Path:
        return ROOT / "benchmarks" / "results" / f"{self.name}_seeds.json"


STUDIES = {
    study.name: study
    for study in (
        Study("demo", "Does distillation help? The demo over several seeds", demo_control, 5, ROOT / "docs" / "demo.md",
              "All stages train for the same number of epochs."),
        Study("bev", "The bird's-eye-view family over several seeds", tiny_bev, 3, ROOT / "docs" / "bev-seeds.md",
              "Students train for as many epochs as the baseline, their preparation included; they see no label."),
    )
}  # fmt: skip
#: What the tables show, Car AP|R40 at moderate difficulty.
COLUMNS = {"3D 0.5": ("loose", "car_3d"), "3D 0.7": ("strict", "car_3d"), "BEV 0.5": ("loose", "car_bev"),
           "BEV 0.7": ("strict", "car_bev")}  # fmt: skip
MODERATE = 1
HEADLINE = "3D 0.5"
BASELINE = "baseline"
#: The student whose terms the control has, too.
CONTROLLED = "monoskd"


def train_all(recipe: Recipe, out: Path, seeds: int, side_by_side: int) -> None:
    """Runs every stage of every seed, each as soon as those that it needs are finished."""
    waiting = [(seed, stage) for stage in recipe.stages for seed in range(seeds)]
    running: dict[subprocess.Popen, tuple[int, str]] = {}
    while waiting or running:
        for process in [p for p in running if p.poll() is not None]:
            seed, name = running.pop(process)
            if process.returncode:
                raise SystemExit(f"seed {seed}, stage {name} failed, see {out / f'seed_{seed}_{name}.log'}")
            print(f"seed {seed}: {name} done", flush=True)
        for seed, stage in list(waiting):
            ready = all(card_of(recipe, out, seed, needed).exists() for needed in stage.needs)
            if len(running) < side_by_side and ready:
                waiting.remove((seed, stage))
                running[start(recipe, out, seed, stage.name)] = (seed, stage.name)
        time.sleep(0.5)


def card_of(recipe: Recipe, out: Path, seed: int, stage: str) -> Path:
    """The card of one stage of one seed; it is there when the stage is finished."""
    return out / f"seed_{seed}" / recipe.name / stage / "card.json"


def start(recipe: Recipe, out: Path, seed: int, stage: str) -> subprocess.Popen:
    """One stage of one seed as a process of one thread."""
    log = (out / f"seed_{seed}_{stage}.log").open("w")
    return subprocess.Popen(
        [sys.executable, "-m", "distill3d", "train", recipe.name, "--data-root", str(out / f"streets_{seed}"),
         "--out", str(out / f"seed_{seed}"), "--seed", str(seed), "--threads", "1", "--no-progress", "--only", stage],
        stdout=log, stderr=log,
    )  # fmt: skip


def collect(recipe: Recipe, out: Path, seeds: int) -> dict:
    """Values per seed, mean and standard error of every finished detector, and paired differences to the baseline."""
    judged = [stage for stage in recipe.stages if stage.role != "preparation"]
    finished = [s for s in judged if all(card_of(recipe, out, seed, s.name).exists() for seed in range(seeds))]
    values: dict[str, dict[str, list[float]]] = {s.name: {c: [] for c in COLUMNS} for s in finished}
    precision = set()
    for seed in range(seeds):
        for stage in finished:
            path = card_of(recipe, out, seed, stage.name)
            result = json.loads((path.parent / "evaluation.json").read_text())
            card = json.loads(path.read_text())
            precision.add(card["precision"])
            for column, (overlap, key) in COLUMNS.items():
                values[stage.name][column].append(result[overlap][key]["AP_R40"][MODERATE])
    stages = {}
    for stage in finished:
        columns = {}
        for column, numbers in values[stage.name].items():
            gains = [a - b for a, b in zip(numbers, values[BASELINE][column], strict=True)]
            columns[column] = {"values": numbers, **mean_and_error(numbers), "minus_baseline": mean_and_error(gains)}
        stages[stage.name] = {"role": stage.role, "columns": columns}
    return {
        "what": "Car AP|R40 (percent), moderate, on synthetic streets; each seed has its own streets",
        "seeds": seeds, "train_frames": TRAIN_FRAMES, "eval_frames": EVAL_FRAMES, "precision": sorted(precision),
        "min_height_scale": recipe.dataset.min_height_scale, "streets": to_plain(STREETS), "recipe": to_plain(recipe),
        "machine": describe_machine(), "stages": stages,
    }  # fmt: skip


def mean_and_error(numbers: list[float]) -> dict[str, float]:
    """Mean and standard error of the mean."""
    error = statistics.stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else float("nan")
    return {"mean": statistics.fmean(numbers), "standard_error": error}


def page(study: Study, result: dict) -> str:
    """The study's page: the table, and in its first lines what is larger than noise."""
    lines = [f"# {study.title}", "", *verdicts(result), ""]
    lines += [
        f"Car AP|R40 (%), moderate, mean ± standard error over {result['seeds']} seeds; each seed has its own "
        f"{result['train_frames']} training and {result['eval_frames']} evaluation streets and its own initial weights."
        f" Image {result['streets']['width']} x {result['streets']['height']} px, minimum box heights scaled by "
        f"{result['min_height_scale']:.4f}. {study.lengths}",
        "", "| stage | " + " | ".join(COLUMNS) + f" | {HEADLINE} minus baseline |", "|" + "---|" * (len(COLUMNS) + 2),
    ]  # fmt: skip
    for name, stage in result["stages"].items():
        cells = [plus_minus(stage["columns"][c]) for c in COLUMNS]
        gain = "" if name == BASELINE else plus_minus(stage["columns"][HEADLINE]["minus_baseline"], signed=True)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {gain} |")
    lines += ["", f"Per seed, {HEADLINE}:", "", "| stage | " + " | ".join(map(str, range(result["seeds"]))) + " |",
              "|" + "---|" * (result["seeds"] + 1)]  # fmt: skip
    for name, stage in result["stages"].items():
        lines.append(f"| {name} | " + " | ".join(f"{v:.1f}" for v in stage["columns"][HEADLINE]["values"]) + " |")
    machine = ", ".join(f"{k} {v}" for k, v in result["machine"].items())
    lines += ["", f"Precision {', '.join(result['precision'])}; {machine}."]
    command, numbers = f"python benchmarks/seeds.py {study.name}", study.result.relative_to(ROOT)
    lines += [f"Recompute: `{command}` (numbers in `{numbers}`)."]
    return "\n".join(lines) + "\n"


def verdicts(result: dict) -> list[str]:
    """One line per student and control: is the difference to the baseline above two standard errors?"""
    lines = []
    for name, stage in result["stages"].items():
        if stage["role"] == "student" or name == "control":
            gain = stage["columns"][HEADLINE]["minus_baseline"]
            clear = abs(gain["mean"]) > 2 * gain["standard_error"]
            word = ("better than" if gain["mean"] > 0 else "worse than") if clear else "within noise of"
            lines.append(
                f"- **{name}** is {word} the baseline: {plus_minus(gain, signed=True)} AP ({HEADLINE}, paired)."
            )
    if "control" in result["stages"]:
        student, control = (result["stages"][n]["columns"][HEADLINE]["values"] for n in (CONTROLLED, "control"))
        lead = mean_and_error([a - b for a, b in zip(student, control, strict=True)])
        word = "beyond" if abs(lead["mean"]) > 2 * lead["standard_error"] else "within"
        lines.append(
            f"- **{CONTROLLED}** minus **control**, LiDAR's teacher against a second camera network's: "
            f"{plus_minus(lead, signed=True)} AP ({HEADLINE}, paired), {word} noise."
        )
    return lines


def plus_minus(value: dict[str, float], signed: bool = False) -> str:
    """12.3 ± 0.4"""
    return f"{value['mean']:{'+' if signed else ''}.1f} ± {value['standard_error']:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--seeds", type=int, help="by default the study's own number")
    parser.add_argument("--out", type=Path, help="by default runs/<study>_seeds")
    parser.add_argument("--side-by-side", type=int, default=2, help="stages at a time, one core each")
    options = parser.parse_args()
    study = STUDIES[options.study]
    seeds, out = options.seeds or study.seeds, options.out or ROOT / "runs" / f"{study.name}_seeds"
    out.mkdir(parents=True, exist_ok=True)
    splits = {"train": TRAIN_FRAMES, "val": EVAL_FRAMES}
    for seed in range(seeds):
        folder = out / f"streets_{seed}"
        write_kitti(folder, seed=seed, config=STREETS, splits=splits, workers=options.side_by_side)
    recipe = study.recipe()
    train_all(recipe, out, seeds, options.side_by_side)
    result = collect(recipe, out, seeds)
    study.result.write_text(json.dumps(result, indent=1) + "\n")
    study.page.write_text(page(study, result))
    print(page(study, result))


if __name__ == "__main__":
    main()
