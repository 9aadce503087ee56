"""A finished stage's detections on a split, and the official metric of them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from distill3d.data.nuscenes.tables import version_in
from distill3d.devices import find_device
from distill3d.errors import UserError
from distill3d.evaluate.kitti import Result
from distill3d.lock import only_writer
from distill3d.shipped import shipped_or_path
from distill3d.train.card import require
from distill3d.train.checkpoint import load_detector
from distill3d.train.evaluation import EVALUATION, PREDICTIONS
from distill3d.train.loop import METRICS
from distill3d.train.precision import choose_precision
from distill3d.train.recipe import EvaluationConfig, Recipe, StageConfig, SurroundDatasetConfig
from distill3d.train.rigs import cameras_of, other_rig, refuse_other_rig
from distill3d.train.sources import Verdict, source_of
from distill3d.train.stages import data_of
from distill3d.train.teachers import refuse_overlap, refuse_own_labels

#: The stage's name where its card has none.
NAMELESS = "stage"
#: The identity of a user's data set before a shipped student.
OWN = "own"


def evaluate_stage(
    run: Path, data_root: Path, split: str = "val", out: Path | None = None, device: str = "auto", batch_size: int = 8,
    allow_overlap: bool = False, progress: bool = True, version: str | None = None, identity: str | None = None,
    min_height_scale: float | None = None, cameras: tuple[str, ...] | None = None,
) -> Verdict:  # fmt: skip
    """Detects on a split of the data set that the stage's recipe names and evaluates that officially.

    ``version`` is the folder of nuScenes' tables: by default the recipe's or, where that is absent, the only one.
    ``identity`` and ``min_height_scale`` are those of the data set, by default the recipe's: a data set of another
    identity shares no frame with those that the stage was trained on, whatever the frames are called.  Of a shipped
    student it is ``OWN`` by default: nobody has the streets that it was trained on, unless they were made anew.
    ``cameras`` are those of surround views, by default those of training; a detector that has a code for each camera
    takes no others.
    Predictions and evaluation.json go to ``out``, by default the stage's own folder, where the report finds them.

    Raises:
        UserError: the folder holds no stage, nobody says which of several tables are meant, frames cannot be read, the
            detector cannot look at the cameras, the stage was trained on frames of the split, or there are predictions
            in the folder already.
    """
    given, run = run, shipped_or_path(run)
    if run != given and out is None:
        raise UserError(f"{given} is a part of the package: give the folder of predictions and numbers as --out")
    if not run.is_dir():
        raise UserError(f"{run}: is no folder, expected one of a finished stage")
    folder = run if out is None else out
    where = find_device(device)
    detector, card = load_detector(run)
    require(card, run, "trained_on.frames")
    dataset = data_of(run, "version" in card)
    identity = identity or (OWN if run != given else dataset.identity)
    dataset = replace(dataset, root=data_root, eval_split=split, identity=identity)
    if isinstance(dataset, SurroundDatasetConfig):
        if min_height_scale is not None:
            raise UserError(
                f"--min-height-scale is {min_height_scale:g}, but {run} looks at surround views: it is KITTI's"
            )
        dataset = replace(
            dataset, version=version or version_in(data_root, dataset.version), cameras=cameras or cameras_of(card)
        )
        refuse_other_rig(run, detector.config, card, dataset.cameras)
        note = other_rig(run, card, dataset.cameras, "is evaluated on")
        if progress and note:
            print(f"note: {note}", file=sys.stderr)
    elif cameras:
        raise UserError(f"--cameras are {', '.join(cameras)}, but {run} looks at KITTI's layout, which has no rigs")
    elif version is not None:
        raise UserError(f"--version is {version!r}, but {run} looks at KITTI's layout, which has no versions")
    elif min_height_scale is not None:
        dataset = replace(dataset, min_height_scale=min_height_scale)
    stage = StageConfig(card.get("stage", NAMELESS), card.get("role", "student"), detector.config, augment=None)
    recipe = Recipe(card.get("recipe", NAMELESS), (stage,), dataset, EvaluationConfig(batch_size=batch_size))
    source = source_of(recipe)
    data = source.evaluation(stage, split)
    refuse_overlap(card, str(run), dataset.identity, data.frame_ids, allow_overlap, scenes=source.scenes(data))
    refuse_own_labels(data_root, data.frame_ids, allow_overlap)
    _refuse_evaluated(folder)
    with only_writer(folder, "is being evaluated"):
        return source.judge(
            detector.to(where), data, where, choose_precision(recipe.precision, where), folder, progress
        )


def _refuse_evaluated(folder: Path) -> None:
    """Keeps an evaluation from being replaced.

    Raises:
        UserError: there is one; the sentence advises nobody to remove a training's own.
    """
    for name in (EVALUATION, PREDICTIONS):
        if (folder / name).exists():
            if (folder / METRICS).exists():
                raise UserError(f"{folder / name}: is of the stage's own training: give another --out")
            raise UserError(f"{folder / name}: is there already: give another --out, or remove it")


def show(verdict: Verdict) -> None:
    """The official table on the terminal, and what is to be known of it."""
    console, result = Console(), verdict.result
    console.print(result.table())
    for line in [result.explanation.text()] if isinstance(result, Result) else result.notes:
        console.print(line, markup=False, highlight=False)
