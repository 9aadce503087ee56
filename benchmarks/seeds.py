"""Does distillation help on synthetic streets? A recipe over several seeds, each with its own streets.

    python benchmarks/seeds.py demo|bev|surround [--seeds N] [--out FOLDER]

``demo`` is the demo's recipe with a control, ``bev`` the bird's-eye-view family's, ``surround`` LabelDistill's on
drives with six cameras.  Every stage is one single-thread process, as many side by side as there are cores.  Finished
stages are kept, so the same command continues after a kill.
Writes benchmarks/results/<study>_seeds.json and the study's page under docs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from machine import describe_machine
from processes import Job, run_all

from distill3d.recipes.demo import EVAL_FRAMES, STREETS, TRAIN_FRAMES
from distill3d.recipes.monosd import demo_control
from distill3d.recipes.surround import tiny_labeldistill
from distill3d.recipes.synthetic import tiny_bev
from distill3d.settings import to_plain
from distill3d.synth.nuscenes_writer import write_nuscenes
from distill3d.synth.settings import SurroundStreetConfig
from distill3d.synth.writer import write_kitti
from distill3d.train.recipe import DatasetConfig, Recipe

ROOT = Path(__file__).resolve().parents[1]
#: What the tables of streets show, Car AP|R40 at moderate difficulty.
AP_COLUMNS = {"3D 0.5": ("loose", "car_3d"), "3D 0.7": ("strict", "car_3d"), "BEV 0.5": ("loose", "car_bev"),
              "BEV 0.7": ("strict", "car_bev")}  # fmt: skip
MODERATE = 1
#: Drives of eight key frames.
DRIVES, DRIVE_SPLITS = SurroundStreetConfig(), {"train": 30, "val": 15}


@dataclass(frozen=True)
class Column:
    """A number of the tables."""

    read: Callable[[dict], float]  # from evaluation.json
    digits: int = 1  # shown behind the point


@dataclass(frozen=True)
class Layout:
    """The data of a study and the numbers of its tables."""

    write: Callable[[Path, int, int], object]  # folder, seed, processes
    what: str  # the numbers are
    size: str  # of training and evaluation data
    settings: object  # of the generator
    columns: dict[str, Column]  # the first is the headline


def _write_streets(folder: Path, seed: int, workers: int) -> object:
    splits = {"train": TRAIN_FRAMES, "val": EVAL_FRAMES}
    return write_kitti(folder, seed=seed, config=STREETS, splits=splits, workers=workers)


def _write_drives(folder: Path, seed: int, workers: int) -> object:
    return write_nuscenes(folder, seed=seed, config=DRIVES, splits=DRIVE_SPLITS, workers=workers)


KITTI = Layout(
    _write_streets, "Car AP|R40 (%), moderate", f"{TRAIN_FRAMES} training and {EVAL_FRAMES} evaluation streets",
    STREETS,
    {column: Column(lambda found, overlap=overlap, key=key: found[overlap][key]["AP_R40"][MODERATE])
     for column, (overlap, key) in AP_COLUMNS.items()},
)  # fmt: skip
NUSCENES = Layout(
    _write_drives, "nuScenes' metrics (%; errors as they are) over the four classes that there are",
    " and ".join(f"{count * DRIVES.frames_per_scene} {split}" for split, count in DRIVE_SPLITS.items()) + " key frames",
    DRIVES,
    {
        "NDS": Column(lambda found: 100 * found["nd_score"]), "mAP": Column(lambda found: 100 * found["mean_ap"]),
        "AP car": Column(lambda found: 100 * found["mean_dist_aps"]["car"]),
        "mATE": Column(lambda found: found["tp_errors"]["trans_err"], 3),
        "mAOE": Column(lambda found: found["tp_errors"]["orient_err"], 3),
    },
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """What is trained over several seeds, and where the numbers go."""

    name: str
    title: str
    recipe: Callable[[], Recipe]
    seeds: int
    page: Path
    lengths: str  # of the stages, a sentence
    layout: Layout = KITTI

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
        Study("surround", "LabelDistill's parts over several seeds", tiny_labeldistill, 3,
              ROOT / "docs" / "surround-seeds.md", "All stages train for the same number of epochs.", NUSCENES),
    )
}  # fmt: skip
BASELINE = "baseline"
#: The student whose terms the control has, too.
CONTROLLED = "monoskd"


def train_all(recipe: Recipe, out: Path, seeds: int, side_by_side: int) -> None:
    """Runs every stage of every seed as a process of one thread, each as soon as those that it needs are finished."""
    jobs = [
        Job(
            f"seed {seed}: {stage.name}",
            (sys.executable, "-m", "distill3d", "train", recipe.name, "--data-root", str(out / f"streets_{seed}"),
             "--out", str(out / f"seed_{seed}"), "--seed", str(seed), "--threads", "1", "--no-progress",
             "--only", stage.name),
            card_of(recipe, out, seed, stage.name), out / f"seed_{seed}_{stage.name}.log",
            tuple(card_of(recipe, out, seed, needed) for needed in stage.needs),
        )
        for stage in recipe.stages for seed in range(seeds)
    ]  # fmt: skip
    run_all(jobs, side_by_side, lambda job: print(f"{job.name} done", flush=True))


def card_of(recipe: Recipe, out: Path, seed: int, stage: str) -> Path:
    """The card of one stage of one seed; it is there when the stage is finished."""
    return out / f"seed_{seed}" / recipe.name / stage / "card.json"


def collect(study: Study, recipe: Recipe, out: Path, seeds: int) -> dict:
    """Values per seed, mean and standard error of every finished detector, and paired differences to the baseline."""
    judged = [stage for stage in recipe.stages if stage.role != "preparation"]
    finished = [s for s in judged if all(card_of(recipe, out, seed, s.name).exists() for seed in range(seeds))]
    read, layout = study.layout.columns, study.layout
    values: dict[str, dict[str, list[float]]] = {s.name: {c: [] for c in read} for s in finished}
    precision = set()
    for seed in range(seeds):
        for stage in finished:
            path = card_of(recipe, out, seed, stage.name)
            result = json.loads((path.parent / "evaluation.json").read_text())
            card = json.loads(path.read_text())
            precision.add(card["precision"])
            for name, column in read.items():
                values[stage.name][name].append(column.read(result))
    stages = {}
    for stage in finished:
        columns = {}
        for column, numbers in values[stage.name].items():
            gains = [a - b for a, b in zip(numbers, values[BASELINE][column], strict=True)]
            columns[column] = {"values": numbers, **mean_and_error(numbers), "minus_baseline": mean_and_error(gains)}
        stages[stage.name] = {"role": stage.role, "columns": columns}
    scale = recipe.dataset.min_height_scale if isinstance(recipe.dataset, DatasetConfig) else None
    return {
        "what": f"{layout.what}; each seed has its own streets", "seeds": seeds, "size": layout.size,
        "precision": sorted(precision), "canvas": list(recipe.dataset.canvas), "min_height_scale": scale,
        "streets": to_plain(layout.settings), "recipe": to_plain(recipe), "machine": describe_machine(),
        "stages": stages,
    }  # fmt: skip


def mean_and_error(numbers: list[float]) -> dict[str, float]:
    """Mean and standard error of the mean."""
    error = statistics.stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else float("nan")
    return {"mean": statistics.fmean(numbers), "standard_error": error}


def page(study: Study, result: dict) -> str:
    """The study's page: the table, and in its first lines what is larger than noise."""
    columns, headline = study.layout.columns, headline_of(study)
    lines = [f"# {study.title}", "", *verdicts(study, result), ""]
    width, height = result["canvas"]
    scaled = result["min_height_scale"]
    heights = "" if scaled is None else f", minimum box heights scaled by {scaled:.4f}"
    lines += [
        f"{study.layout.what}, mean ± standard error over {result['seeds']} seeds; each seed has its own "
        f"{result['size']} and its own initial weights. Images {width} x {height} px{heights}. {study.lengths}",
        "", "| stage | " + " | ".join(columns) + f" | {headline} minus baseline |", "|" + "---|" * (len(columns) + 2),
    ]  # fmt: skip
    for name, stage in result["stages"].items():
        cells = [plus_minus(stage["columns"][c], digits=column.digits) for c, column in columns.items()]
        gain = "" if name == BASELINE else plus_minus(stage["columns"][headline]["minus_baseline"], signed=True)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {gain} |")
    lines += ["", f"Per seed, {headline}:", "", "| stage | " + " | ".join(map(str, range(result["seeds"]))) + " |",
              "|" + "---|" * (result["seeds"] + 1)]  # fmt: skip
    for name, stage in result["stages"].items():
        lines.append(f"| {name} | " + " | ".join(f"{v:.1f}" for v in stage["columns"][headline]["values"]) + " |")
    machine = ", ".join(f"{k} {v}" for k, v in result["machine"].items())
    lines += ["", f"Precision {', '.join(result['precision'])}; {machine}."]
    command, numbers = f"python benchmarks/seeds.py {study.name}", study.result.relative_to(ROOT)
    lines += [f"Recompute: `{command}` (numbers in `{numbers}`)."]
    return "\n".join(lines) + "\n"


def headline_of(study: Study) -> str:
    """The column by which stages are compared."""
    return next(iter(study.layout.columns))


def verdicts(study: Study, result: dict) -> list[str]:
    """One line per student and control: is the difference to the baseline above two standard errors?"""
    lines, headline = [], headline_of(study)
    for name, stage in result["stages"].items():
        if stage["role"] == "student" or name == "control":
            gain = stage["columns"][headline]["minus_baseline"]
            clear = abs(gain["mean"]) > 2 * gain["standard_error"]
            word = ("better than" if gain["mean"] > 0 else "worse than") if clear else "within noise of"
            lines.append(f"- **{name}** is {word} the baseline: {plus_minus(gain, signed=True)} ({headline}, paired).")
    if "control" in result["stages"]:
        student, control = (result["stages"][n]["columns"][headline]["values"] for n in (CONTROLLED, "control"))
        lead = mean_and_error([a - b for a, b in zip(student, control, strict=True)])
        word = "beyond" if abs(lead["mean"]) > 2 * lead["standard_error"] else "within"
        lines.append(
            f"- **{CONTROLLED}** minus **control**, LiDAR's teacher against a second camera network's: "
            f"{plus_minus(lead, signed=True)} ({headline}, paired), {word} noise."
        )
    return lines


def plus_minus(value: dict[str, float], signed: bool = False, digits: int = 1) -> str:
    """12.3 ± 0.4"""
    return f"{value['mean']:{'+' if signed else ''}.{digits}f} ± {value['standard_error']:.{digits}f}"


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
    for seed in range(seeds):
        study.layout.write(out / f"streets_{seed}", seed, options.side_by_side)
    recipe = study.recipe()
    train_all(recipe, out, seeds, options.side_by_side)
    result = collect(study, recipe, out, seeds)
    study.result.write_text(json.dumps(result, indent=1) + "\n")
    study.page.write_text(page(study, result))
    print(page(study, result))


if __name__ == "__main__":
    main()
