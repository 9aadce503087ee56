"""The student that the package ships: made, compared over seeds, and tried on real pictures.

    python benchmarks/shipped.py make [--out FOLDER]             streets, trainings, then the package's own folder
    python benchmarks/shipped.py seeds [--out FOLDER]            with and without its teacher, at 320 x 96
    python benchmarks/shipped.py report KITTI [--out FOLDER]     all figures, docs/streets.md and its pictures

KITTI is a folder in KITTI's layout with real labelled frames, all of its split ``trainval``; nothing was tuned on it.
``make`` takes five hours of one core, ``seeds`` one and a half.  What is finished is kept, so the same command goes on
after a kill.  Writes benchmarks/results/shipped.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from machine import describe_machine
from processes import Job, run_all
from seeds import card_of, mean_and_error, plus_minus, train_all

import distill3d
from distill3d.boxes import IGNORE, KITTI_CLASSES
from distill3d.data.kitti.labels import read_labels
from distill3d.data.splits import read_split
from distill3d.detectors.monodle import HEAT_CLASSES
from distill3d.evaluate.iou import image_coverage
from distill3d.evaluate.kitti import MIN_HEIGHT, Annotations, frame_pairs
from distill3d.evaluate.matching import MISSED, match_in_image, objects_of_interest
from distill3d.evaluate_run import evaluate_stage
from distill3d.recipes import get_recipe
from distill3d.recipes.streets import FRAMES, TINY_FRAMES, VARIED, VARIED_TINY
from distill3d.settings import to_plain
from distill3d.shipped import shipped_folder
from distill3d.synth.writer import write_kitti
from distill3d.train.card import RECIPE
from distill3d.train.checkpoint import load_weights, save_weights, weights_sum
from distill3d.view.draw import bird_view, field_of_view, fitting_extent

ROOT = Path(__file__).resolve().parents[1]
RESULT, PAGE = ROOT / "benchmarks" / "results" / "shipped.json", ROOT / "docs" / "streets.md"
#: A synthetic picture to try the student on, and a real street from above.
EXAMPLE, REAL_STREET = ROOT / "docs" / "street.jpg", ROOT / "docs" / "real-street.png"
NAME = "streets"
#: Of the shipped student's streets, and of the one that it is tried on.
SEED, EXAMPLE_SEED = 7, 11
SEEDS = 3
#: Of image boxes: a detection that overlaps an object by so much has found it.
OVERLAP = 0.5
#: A detection of which at least this share lies in a region that labels leave open is neither right nor wrong.
OPEN_SHARE = 0.5
MODERATE = 1
CAR = KITTI_CLASSES.index("Car")
#: Of the split that nothing but the score threshold was chosen on, and of the real frames.
SYNTHETIC, REAL = "val", "trainval"
PICTURE_SIZE = 480  # px
#: Thresholds that are tried, as quantiles of the scores.
QUANTILES = np.linspace(0, 1, 201)


def make(out: Path) -> None:
    """Streets and trainings, then the student in half precision in the package's folder."""
    write_kitti(out / "streets", seed=SEED, config=VARIED, splits=FRAMES, workers=1)
    stages = ("teacher", "student")
    cards = {stage: out / "runs" / NAME / stage / "card.json" for stage in stages}
    command = (sys.executable, "-m", "distill3d", "train", NAME, "--data-root", str(out / "streets"), "--out",
               str(out / "runs"), "--threads", "1", "--no-progress", "--checkpoint-steps", "100", "--only")  # fmt: skip
    needs = {"teacher": (), "student": (cards["teacher"],)}
    run_all([Job(s, (*command, s), cards[s], out / f"{s}.log", needs[s]) for s in stages], 1)
    ship(out / "runs" / NAME / "student")


def ship(stage: Path) -> None:
    """Puts a finished stage into the package: matrices in half precision, and its card and recipe."""
    folder = shipped_folder(NAME)
    weights, card = load_weights(stage)
    halves = {name: value.half() if value.dim() > 1 else value for name, value in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder, halves, card)
    recipe = yaml.safe_load((stage.parent / RECIPE).read_text())
    recipe["dataset"]["root"] = None  # a folder of the machine that trained
    (folder.parent / RECIPE).write_text(yaml.safe_dump(recipe, sort_keys=False))


def found_in_image(
    labels: Annotations, detections: Annotations, name: str, least_score: float, min_height_scale: float = 1.0
) -> dict[str, Any]:
    """How many objects of a class that count at KITTI's hard difficulty are found by detections of at least
    ``least_score``, how many detections are none, and by how much the found ones' depth is off.

    A detection has found an object of the class whose image box it overlaps by ``OVERLAP``.  Detections of objects that
    do not count, of vans for cars, below the least height, and in regions that labels leave open (DontCare) are neither
    right nor wrong.
    """
    detections = detections.rows((np.char.lower(detections.name) == name) & (detections.score >= least_score))
    match = match_in_image(labels, detections, OVERLAP)
    counts = objects_of_interest(labels, name, min_height_scale)
    found = counts & (match != MISSED)
    excused = np.zeros(len(detections.frame), dtype=bool)
    excused[match[(match != MISSED) & ~counts]] = True
    excused |= detections.box_height < MIN_HEIGHT[-1] * min_height_scale
    open_regions = labels.rows(np.char.lower(labels.name) == "dontcare")
    d, r = frame_pairs(detections, open_regions)
    inside = image_coverage(detections.box2d[d], open_regions.box2d[r]) >= OPEN_SHARE
    excused[d[inside]] = True
    right = np.zeros(len(detections.frame), dtype=bool)
    right[match[found]] = True
    depth = labels.xyz[found, 2]
    off = np.abs(detections.xyz[match[found], 2] - depth) / depth
    wrong = int((~right & ~excused).sum())
    hit = int(found.sum())
    return {
        "objects": int(counts.sum()), "found": hit, "wrong": wrong,
        "recall": hit / max(int(counts.sum()), 1), "precision": hit / max(hit + wrong, 1),
        "median_depth_error": float(np.median(off)) if hit else None,
        "within_tenth": float((off <= 0.1).mean()) if hit else None,
    }  # fmt: skip


def best_threshold(labels: Annotations, detections: Annotations, name: str, min_height_scale: float) -> float:
    """The score at which the harmonic mean of recall and precision is greatest."""
    scores = detections.score[np.char.lower(detections.name) == name]
    if not len(scores):
        return 0.0

    def quality(threshold: float) -> float:
        told = found_in_image(labels, detections, name, threshold, min_height_scale)
        return 2 * told["recall"] * told["precision"] / max(told["recall"] + told["precision"], 1e-9)

    return max(map(float, np.unique(np.quantile(scores, QUANTILES))), key=quality)


def annotations(root: Path, split: str, predictions: Path) -> tuple[Annotations, Annotations]:
    """Labels of a split and what was detected there."""
    frames = read_split(root / "ImageSets" / f"{split}.txt")
    labels = Annotations.from_folder(root / "training" / "label_2", scored=False, frames=frames)
    return labels, Annotations.from_folder(predictions, scored=True, frames=frames)


def judged(stage: Path, streets: Path, kitti: Path, out: Path, scale: float) -> dict[str, Any]:
    """A stage on the streets' validation split, where a threshold is chosen for each class, and on real frames."""
    sets, told = {}, {"ap": {}, "classes": {}}
    for place, root, split, identity, heights in (
        ("synthetic", streets, SYNTHETIC, None, scale), ("real", kitti, REAL, "kitti", 1.0),
    ):  # fmt: skip
        if not (out / place / "evaluation.json").exists():
            evaluate_stage(stage, root, split, out / place, progress=False, identity=identity,
                           min_height_scale=heights)  # fmt: skip
        sets[place] = (*annotations(root, split, out / place / "predictions"), heights)
        found = json.loads((out / place / "evaluation.json").read_text())
        told["ap"][place] = {
            key: found["loose"][f"car_{key}"]["AP_R40"][MODERATE] for key in ("bbox", "bev", "3d")
        }  # fmt: skip
    for name in map(str.lower, HEAT_CLASSES):
        threshold = best_threshold(sets["synthetic"][0], sets["synthetic"][1], name, scale)
        told["classes"][name] = {"threshold": threshold} | {
            place: found_in_image(labels, detections, name, threshold, heights)
            for place, (labels, detections, heights) in sets.items()
        }
    return told


# ------------------------------------------------------------------------------------------------------------- seeds


def made_example(out: Path) -> None:
    """``EXAMPLE``: a street that is no frame of any split."""
    config = replace(VARIED, image_format="jpg")
    write_kitti(out / "example", seed=EXAMPLE_SEED, config=config, splits={"val": 1}, workers=1)
    shutil.copy(next((out / "example" / "training" / "image_2").iterdir()), EXAMPLE)


def draw_real_street(kitti: Path, thresholds: dict[str, float]) -> str:
    """``REAL_STREET``: what the shipped student finds in the frame with most labelled cars, whose name is given back.
    No pixel of the picture is drawn."""
    folder, frames = kitti / "training", read_split(kitti / "ImageSets" / f"{REAL}.txt")
    labels = {name: read_labels(folder / "label_2" / f"{name}.txt").boxes for name in frames}
    frame = max(frames, key=lambda name: int((labels[name].label == CAR).sum()))
    found = distill3d.load(NAME).predict(
        folder / "image_2" / f"{frame}.png", folder / "calib" / f"{frame}.txt", least_score=0.0
    )
    kept = [box.score >= thresholds[box.name.lower()] for box in found]
    sets = {"true": labels[frame][labels[frame].label != IGNORE], "student": found.boxes[torch.tensor(kept)]}
    view = field_of_view(found.camera, found.picture.shape[-1])
    bird_view(None, sets, fitting_extent(sets), view, PICTURE_SIZE).save(REAL_STREET)
    return frame


def compare_seeds(out: Path, side_by_side: int) -> None:
    """Streets and trainings of the small form, ``SEEDS`` times."""
    for seed in range(SEEDS):
        write_kitti(out / f"streets_{seed}", seed=seed, config=VARIED_TINY, splits=TINY_FRAMES, workers=side_by_side)
    train_all(get_recipe(f"tiny_{NAME}"), out, SEEDS, side_by_side)


def collect_seeds(out: Path, kitti: Path) -> dict[str, Any]:
    """What baseline and student of each seed find, on synthetic streets and on real frames; nothing while some are
    not finished."""
    recipe = get_recipe(f"tiny_{NAME}")
    scale = recipe.dataset.min_height_scale
    stages = {stage: [card_of(recipe, out, seed, stage) for seed in range(SEEDS)] for stage in ("baseline", "student")}
    if not all(card.exists() for cards in stages.values() for card in cards):
        return {}
    return {
        stage: [
            judged(card.parent, out / f"streets_{seed}", kitti, out / "judged" / f"{seed}_{stage}", scale)
            for seed, card in enumerate(cards)
        ]
        for stage, cards in stages.items()
    }


#: Rows of the comparison: what it is, and where it stands in what ``judged`` tells.
MEASURES = {
    "synthetic, car AP 3D 0.5": lambda told: told["ap"]["synthetic"]["3d"],
    "synthetic, car AP BEV 0.5": lambda told: told["ap"]["synthetic"]["bev"],
    "real, car AP 2D 0.7": lambda told: told["ap"]["real"]["bbox"],
    "real, car AP BEV 0.5": lambda told: told["ap"]["real"]["bev"],
    "real, recall of cars": lambda told: 100 * told["classes"]["car"]["real"]["recall"],
    "real, precision of cars": lambda told: 100 * told["classes"]["car"]["real"]["precision"],
    "real, median depth error of found cars": lambda told: (
        100 * (told["classes"]["car"]["real"]["median_depth_error"] or np.nan)
    ),
}


# -------------------------------------------------------------------------------------------------------------- page


def page(result: dict[str, Any]) -> str:
    """docs/streets.md."""
    shipped, seeds = result["shipped"], result["seeds"]
    lines = ["# The student in the box", "", *ABOUT, "", "## What it finds", "",
             f"{result['real_frames']} real frames of KITTI, on which nothing was tuned, and {FRAMES['val']} synthetic "
             "streets that it was not trained on. A threshold of the score for each class was chosen on the synthetic "
             "streets; objects count as at KITTI's hard difficulty, and are found by an image box that overlaps by "
             f"{OVERLAP:g}. Depth errors are relative, of what was found.", "",
             "| class | threshold | frames | objects | found | recall | precision | median depth error | within 10 % |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, told in shipped["classes"].items():
        for place in ("real", "synthetic"):
            row = told[place]
            error = "" if row["median_depth_error"] is None else f"{100 * row['median_depth_error']:.1f} %"
            near = "" if row["within_tenth"] is None else f"{100 * row['within_tenth']:.0f} %"
            lines.append(
                f"| {name} | {told['threshold']:.2f} | {place} | {row['objects']} | {row['found']} | "
                f"{100 * row['recall']:.0f} % | {100 * row['precision']:.0f} % | {error} | {near} |"
            )
    lines += [
        "",
        "![A street from above: labelled and found boxes](real-street.png)",
        "",
        f"Frame {result['drawn_frame']} of KITTI, the one with most labelled cars, from above: what is labelled "
        "(green) and what the student finds at these thresholds (orange). The picture itself is not ours to show.",
    ]
    ap = shipped["ap"]
    lines += ["", "Car AP|R40 (%), moderate: " + "; ".join(
        f"{place} 2D 0.7 {ap[place]['bbox']:.1f}, BEV 0.5 {ap[place]['bev']:.1f}, 3D 0.5 {ap[place]['3d']:.1f}"
        for place in ("real", "synthetic")) + f". With so few real frames no AP|R40 can exceed "
        f"{result['real_limit']:.0f} %.", ""]  # fmt: skip
    lines += [f"Trained in {shipped['precision']}; {told_of(result['machine'])}.", ""]
    lines += [*compared(seeds), "", f"{told_of(result['seeds_machine'])}.", ""] if seeds else []
    lines += [
              "Recompute: `python benchmarks/shipped.py make`, `... seeds`, `... report KITTI` (numbers in "
              "`benchmarks/results/shipped.json`)."]  # fmt: skip
    return "\n".join(lines) + "\n"


def told_of(machine: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in machine.items())


def compared(seeds: dict[str, Any]) -> list[str]:
    """The page's lines on what the teacher is worth."""
    lines = ["## What the teacher is worth", "",
              f"The recipe's small form (`tiny_{NAME}`): {TINY_FRAMES['train']} streets of 320 x 96 px, the same steps "
              f"with and without the LiDAR teacher, {SEEDS} seeds with their own streets; mean ± standard error, "
              "differences paired.", "",
              "| | baseline | student | student minus baseline |", "|---|---|---|---|"]  # fmt: skip
    beyond = []
    for measure, of in MEASURES.items():
        baseline, student = ([of(told) for told in seeds[stage]] for stage in ("baseline", "student"))
        gain = mean_and_error([b - a for a, b in zip(baseline, student, strict=True)])
        clear = "" if abs(gain["mean"]) > 2 * gain["standard_error"] else " (noise)"
        beyond += [measure] * (not clear)
        lines.append(f"| {measure} | {plus_minus(mean_and_error(baseline))} | {plus_minus(mean_and_error(student))} | "
                     f"{plus_minus(gain, signed=True)}{clear} |")  # fmt: skip
    found = f"Beyond two standard errors: {'; '.join(beyond)}." if beyond else "All of it is noise."
    return [*lines, "", f"{found} On so few real frames, three seeds are weak evidence of anything."]


ABOUT = (
    "The package ships one small trained detector, so that the first picture has its boxes in the first minute:",
    "",
    "```python",
    "import distill3d",
    "",
    'model = distill3d.load("streets")',
    'found = model.predict("street.jpg", camera=(720, 720, 620, 190), least_score=0.1)  # fx, fy, cx, cy in px',
    "```",
    "",
    "    distill3d predict --model streets street.jpg --intrinsics 720,720,620,190 --score 0.1",
    "",
    "It is a MonoDLE of 2.4 million parameters in half precision that has only ever seen synthetic streets",
    f"({FRAMES['train']} of them, 640 x 192 px: light, haze, crowds and the camera's mounting vary), taught by a LiDAR",
    "teacher (recipe `streets`: [head start](head-start.md)). It knows cars, pedestrians and cyclists, looks at any",
    "picture whose camera is known and about level, and is a start for training on one's own data (recipe",
    "`tuned_streets`).",
    "",
    "**What it is not.** It has never seen a real picture, so it misses much and finds what is not there; it is no",
    "detector to rely on, and no number below is a benchmark's. Train on your own frames: that is what this library is",
    "for.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["make", "seeds", "report"])
    parser.add_argument("kitti", type=Path, nargs="?", help="report: folder with real frames in KITTI's layout")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "shipped")
    parser.add_argument("--side-by-side", type=int, default=1, help="seeds: stages at a time, one core each")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.task == "make":
        make(options.out)
    elif options.task == "seeds":
        compare_seeds(options.out / "seeds", options.side_by_side)
    elif options.kitti is None:
        parser.error("report: give the folder with real frames")
    else:
        result = collect(options.out, options.kitti)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        PAGE.write_text(page(result))
        print(page(result))


def collect(out: Path, kitti: Path) -> dict[str, Any]:
    """All figures of the page."""
    recipe = get_recipe(NAME)
    shipped, machine = shipped_figures(out, kitti)
    made_example(out)
    thresholds = {name: told["threshold"] for name, told in shipped["classes"].items()}
    frame = draw_real_street(kitti, thresholds)
    real = read_split(kitti / "ImageSets" / f"{REAL}.txt")
    return {
        "shipped": shipped,
        "real_frames": len(real), "drawn_frame": frame,
        #: n counted objects give n recall points, of which the first is not among the forty.
        "real_limit": 100 * min(max(shipped["classes"]["car"]["real"]["objects"] - 1, 0) / 40, 1),
        "seeds": collect_seeds(out / "seeds", kitti),
        "recipe": to_plain(recipe), "streets": to_plain(VARIED), "machine": machine,
        "seeds_machine": describe_machine(),
    }  # fmt: skip


def shipped_figures(out: Path, kitti: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the shipped student finds, and the machine that told; where its streets are not, as they were recorded of
    the same weights."""
    folder = shipped_folder(NAME)
    weights = weights_sum(folder)
    if not (out / "streets").is_dir() and RESULT.is_file():
        recorded = json.loads(RESULT.read_text())
        if recorded["shipped"]["sha256"] == weights:
            return recorded["shipped"], recorded["machine"]
    scale = get_recipe(NAME).dataset.min_height_scale
    told = judged(folder, out / "streets", kitti, out / "judged", scale)
    return told | {"precision": load_weights(folder)[1]["precision"], "sha256": weights}, describe_machine()


if __name__ == "__main__":
    main()
