"""What a recipe does and the settings that people change, on one screen."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from distill3d.detectors import detector_name
from distill3d.distill.methods import method_name
from distill3d.options import option_names
from distill3d.settings import to_plain
from distill3d.train.loop import RunOptions
from distill3d.train.recipe import Recipe, StageConfig

#: Of a run, of the recipe, and of each stage: what is changed most, and what it is.
RUN = {
    "out": "folder of all runs",
    "accelerator": "auto, cpu or cuda",
    "devices": "GPUs, or processes on the CPU",
    "workers": "processes that load data",
    "checkpoint_steps": "steps between states that a killed run goes on from",
    "allow_overlap": "train or evaluate on frames that a teacher has seen",
}
RECIPE = {
    "seed": "of weights, order and augmentation",
    "precision": "fp32, bf16 or auto",
    "dataset.train_split": "a file of ImageSets, or a split of nuScenes",
    "dataset.eval_split": "the split that is reported",
    "dataset.canvas": "width and height (px) that networks see",
    "evaluation.every": "epochs between evaluations",
    "evaluation.keep": "last or best weights; best asks for dataset.select_split",
}
STAGE = {
    "schedule.epochs": "rounds through the split",
    "schedule.batch_size": "frames of a step, of all devices together",
    "schedule.accumulate": "parts in which a batch is computed, where memory is short",
    "schedule.lr": "peak learning rate",
    "schedule.warmup_epochs": "of a rising learning rate",
    "detector.classes": "that are trained and detected",
    "init": "an earlier stage whose weights it starts from",
    "taken_from": "folder of a finished stage that stands in place of this one",
}
#: Where the columns begin, and how wide the screen is.
INDENT, WIDTH = "  ", 100


def overview(recipe: Recipe, about: str) -> str:
    """The text; ``about`` is what the recipe's function says of it."""
    lines = [f"usage: distill3d train {recipe.name} --data-root DIR [options]", "", *textwrap.wrap(about, WIDTH)]
    if recipe.note:
        lines += textwrap.wrap(recipe.note, WIDTH)
    names = [stage.name for stage in recipe.stages]
    lines += ["", "stages, in this order:", *_columns([stage_row(stage) for stage in recipe.stages])]
    shown = next((s for s in reversed(recipe.stages) if s.role == "student"), recipe.stages[-1])
    rows = [("--data-root DIR", "folder of the data set"), (f"--only {' '.join(names[:2])} ...", "stages to train")]
    rows += option_rows(RUN, RunOptions(), "--")
    rows += option_rows(RECIPE, recipe, "--")
    lines += ["", "settings that are changed most, with their values:", *_columns(rows)]
    lines += ["", f"and of each stage, here of {shown.name}:"]
    lines += _columns(list(option_rows(STAGE, shown, f"--stages.{shown.name.replace('_', '-')}.")))
    count = sum(1 for _ in option_names(Recipe, recipe))
    return "\n".join(
        [*lines, "", f"distill3d train {recipe.name} --help-all lists all {count} settings, "
         f"distill3d recipes {recipe.name} shows their values."]
    )  # fmt: skip


def stage_row(stage: StageConfig) -> tuple[str, str, str, str]:
    """Name, role, detector and its input, and what it learns and starts from."""
    taught = ""
    if stage.method is not None:
        by = f" by {', '.join(stage.teachers)}" if stage.teachers else ""
        taught = f"taught{by} with {method_name(stage.method)}"
    begins = f"starts from {', '.join(stage.starts_from)}" if stage.starts_from else ""
    looks = f"{detector_name(stage.detector)} on {stage.detector.input}"
    return stage.name, stage.role, looks, ", ".join(filter(None, (taught, begins)))


def option_rows(named: dict[str, str], settings: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """The options among ``named`` that these settings have, with their values, and what they are."""
    for path, what in named.items():
        value = settings
        for part in path.split("."):
            value = getattr(value, part, _ABSENT)
        if value is not _ABSENT:
            yield f"{prefix}{path.replace('_', '-')} {_spelt(value)}", what


_ABSENT = object()


def _spelt(value: Any) -> str:
    plain = to_plain(value)
    if isinstance(plain, bool):
        return str(plain)
    return " ".join(map(str, plain)) if isinstance(plain, list) else str(plain)


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (INDENT + INDENT.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]
