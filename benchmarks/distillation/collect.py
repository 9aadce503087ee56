"""From finished cells to the record: one number per cell and column, nothing averaged away."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill3d.data.splits import read_split
from distill3d.evaluate.fields import (
    FIELDS,
    LOCATION,
    Field,
    FieldSettings,
    attribution,
    field_errors,
    read_projections,
)
from distill3d.evaluate.kitti import CLASSES, Annotations, evaluate
from distill3d.settings import to_plain
from distill3d.train.card import CARD
from distill3d.train.evaluation import EVALUATION, PREDICTIONS
from distill3d.train.loop import METRICS
from distill3d.train.recipe import DatasetConfig, Recipe, StageConfig

from ..machine import describe_machine
from . import worlds
from .cells import stage_folder
from .latency import key_of, read_latencies
from .sizes import Size
from .table import Group
from .validation import judged_on_validation

MODERATE = 1  # of the three difficulties
#: AP in the tables: name of the column -> metric and overlap.
APS = {"3D loose": ("3d", "loose"), "3D strict": ("3d", "strict"), "BEV loose": ("bev", "loose"),
       "BEV strict": ("bev", "strict")}  # fmt: skip
#: By which rows are compared, of streets and of drives.
HEADLINE = {False: "car 3D loose", True: "NDS"}
#: What of a group's record is not asked for but found.
FOUND = ("machine", "settings", "hash", "rows")
#: Of car, on each half of the test frames.
HALVES = {"familiar": worlds.FAMILIAR, "unfamiliar": worlds.UNFAMILIAR}
#: What exchanged fields are told of: the place in space and its two parts, the rest, all.  Image boxes change nothing.
EXCHANGED: dict[str, tuple[Field, ...]] = {
    "location": LOCATION, **{field: (field,) for field in (*LOCATION, "heading", "size", "score")}, "all": FIELDS,
}  # fmt: skip


def collect(size: Size, out: Path, chosen: Sequence[Group], data: dict[str, Any]) -> dict[str, Any]:
    """The record of what is finished: the size, splits, and by group its machine, how its data were made and their
    files' hash, and by row the values of every seed."""
    found, latencies, machine = {}, read_latencies(out), describe_machine()
    splits = {kind: about["splits"] for kind, about in data.items()}
    for group in chosen:
        recipes = {seed: group.recipe(size, seed, out) for seed in group.seeds}
        stages = recipes[group.seeds[0]].stages
        rows = {}
        for stage in stages:
            folders = {seed: stage_folder(out, recipe, stage.name) for seed, recipe in recipes.items()}
            finished = {seed: folder for seed, folder in folders.items() if (folder / CARD).exists()}
            if finished:
                cells = {
                    seed: cell(recipes[seed], stage, folder, group.chosen_here) for seed, folder in finished.items()
                }
                rows[stage.name] = {
                    **about(recipes[group.seeds[0]], stage),
                    "latency": latencies.get(key_of(stage)),
                    "seeds": cells,
                }
        found[group.name] = {"title": group.title, "surround": group.surround, "headline": HEADLINE[group.surround],
                             "seeds": group.asked, "stages": [stage.name for stage in stages],
                             "machine": machine, "rows": rows,
                             **{what: data[worlds.KINDS[group.surround]][what] for what in ("settings", "hash")},
                             }  # fmt: skip
    return {"size": to_plain(size), "splits": splits, "groups": found}


def with_others(record: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """The record with an earlier one's groups of which it has no row, so that one group can be trained anew without the
    others; rows of one group are compared with each other, and always come from one folder.

    record, earlier: as ``collect`` makes them.

    Raises:
        ValueError: the earlier record is of another size or of other splits.
    """
    if any(record[what] != earlier[what] for what in ("size", "splits")):
        raise ValueError("holds the numbers of another size or of other splits")
    groups = {}
    for name, group in record["groups"].items():
        kept = earlier["groups"].get(name, group)
        groups[name] = group if group["rows"] else group | {what: kept[what] for what in FOUND}
    return record | {"groups": groups}


def about(recipe: Recipe, stage: StageConfig) -> dict[str, Any]:
    """What a row is; it goes on from the rows whose weights it takes, those of teachers left out."""
    before = [recipe.stage(name) for name in stage.starts_from]
    return {"role": stage.role, "input": stage.detector.input, "teachers": list(stage.teachers),
            "goes_on_from": [one.name for one in before if one.role != "teacher"],
            "epochs": stage.schedule.epochs, "method": to_plain(stage.method)}  # fmt: skip


def cell(recipe: Recipe, stage: StageConfig, folder: Path, chosen_here: bool = False) -> dict[str, Any]:
    """The numbers of one finished cell; kept beside it, for they take some seconds.

    ``chosen_here``: with those of the validation split.
    """
    kept = folder / "cell.json"
    if kept.exists() and kept.stat().st_mtime >= (folder / CARD).stat().st_mtime:
        return json.loads(kept.read_text())
    judged = streets_numbers if isinstance(recipe.dataset, DatasetConfig) else drives_numbers
    numbers = {"cost": cost(folder)}
    if stage.role != "preparation":
        numbers |= judged(recipe, stage, folder)
        if chosen_here:
            result = json.loads(judged_on_validation(recipe, stage, folder).read_text())
            numbers["values"][f"{HEADLINE[False]}, validation"] = result["loose"]["car_3d"]["AP_R40"][MODERATE]
    kept.write_text(json.dumps(numbers, indent=1) + "\n")
    return numbers


def cost(folder: Path) -> dict[str, Any]:
    """What steps took: the median epoch's time a step, the steps in all, and the most memory."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "cost"]
    card = json.loads((folder / CARD).read_text())
    clock = "processor_seconds" if card["device"] == "cpu" else "seconds"  # processes share the cores, not their time
    return {
        "step_seconds": statistics.median(line[clock] for line in epochs),
        "steps": epochs[-1]["step"], "peak_memory": max(line["peak_memory"] for line in epochs),
        "device": card["device"], "precision": card["precision"],
    }  # fmt: skip


def drives_numbers(recipe: Recipe, stage: StageConfig, folder: Path) -> dict[str, Any]:
    """NDS and what it is made of; percent, errors as they are."""
    result = json.loads((folder / EVALUATION).read_text())
    values = {"NDS": 100 * result["nd_score"], "mAP": 100 * result["mean_ap"]}
    values |= {f"AP {name}": 100 * ap for name, ap in result["mean_dist_aps"].items()}
    return {"values": values | result["tp_errors"]}


def streets_numbers(recipe: Recipe, stage: StageConfig, folder: Path) -> dict[str, Any]:
    """AP|R40 at moderate difficulty by class, metric and overlap, on each half, depth errors, and which field of the
    boxes is better than the baseline's."""
    assert isinstance(recipe.dataset, DatasetConfig) and recipe.dataset.root is not None
    root, scale = recipe.dataset.root, recipe.dataset.min_height_scale
    result = json.loads((folder / EVALUATION).read_text())
    values = {
        f"{name} {column}": result[overlap][f"{name}_{metric}"]["AP_R40"][MODERATE]
        for name in CLASSES for column, (metric, overlap) in APS.items()
    }  # fmt: skip
    for half, split in HALVES.items() if recipe.dataset.eval_split == "test" else ():
        labels, boxes = (annotations(root, folder, split, kind) for kind in ("labels", "boxes"))
        ap = evaluate(labels, boxes, frames=labels.frames, min_height_scale=scale)
        values[f"car 3D loose, {half}"] = ap.ap("car", "3d", "loose")[MODERATE]
    whole = recipe.dataset.eval_split
    labels, boxes = (annotations(root, folder, whole, kind) for kind in ("labels", "boxes"))
    projections = read_projections(root / "training" / "calib", labels.frames)
    settings = FieldSettings(min_height_scale=scale)
    errors = field_errors(labels, boxes, projections, settings)
    values["depth error (%)"] = errors.errors["relative_depth"].median
    numbers: dict[str, Any] = {"values": values}
    baseline = folder.parent / "baseline"
    if stage.role in ("student", "control") and (baseline / CARD).exists():
        change = attribution(labels, annotations(root, baseline, whole, "boxes"), boxes, projections, settings)
        column = ("3d", "loose")
        numbers["fields"] = {
            "gain": {name: change.both_ways(column, *fields) for name, fields in EXCHANGED.items()},
            "whole": change.forward.total(column), "remainder": change.remainder(column),
            "headroom": {name: change.oracle.gain(column, *fields) for name, fields in EXCHANGED.items()},
            "errors": {who: {n: e.median for n, e in found.errors.items()} for who, found in change.errors.items()},
        }  # fmt: skip
    return numbers


def annotations(root: Path, folder: Path, split: str, kind: str) -> Annotations:
    """Labels of a split's frames, or a cell's boxes in them."""
    frames = tuple(read_split(root / "ImageSets" / f"{split}.txt"))
    labels = kind == "labels"
    source = root / "training" / "label_2" if labels else folder / PREDICTIONS
    return Annotations.from_folder(source, scored=not labels, frames=frames)
