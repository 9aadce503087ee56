"""What became of a stage's settings since it was begun: what is told where it is refused, and when training goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill3d.errors import UserError
from distill3d.files import read_yaml
from distill3d.settings import to_plain
from distill3d.train.card import CARD, read_card
from distill3d.train.recipe import Recipe, StageConfig

#: Settings that weights do not depend on.
INDIFFERENT = (
    "root",
    "in_memory",
    "taken_from",
    "every",
    "batch_size",
    "best_of_reported",
    "precision",
    "note",
    "name",
)
#: Differences that are told; there may be many more.
TOLD = 3


def shorter(recipe: Recipe, stage: StageConfig, folder: Path) -> str | None:
    """The fingerprint of the finished stage in ``folder`` that this one is, but for more epochs; else None."""
    path = folder / CARD
    card = read_card(path) if path.exists() else {}
    epochs = card.get("epochs", stage.schedule.epochs)
    if not 0 < epochs < stage.schedule.epochs:
        return None
    before = recipe.stage_fingerprint(replace(stage, schedule=replace(stage.schedule, epochs=epochs)))
    return before if before == card.get("fingerprint") else None


def tied_to_length(stage: StageConfig) -> str | None:
    """Why more epochs would have changed the first ones, too, so that training cannot go on from them; else None."""
    if stage.schedule.shape == "one_cycle":
        return "the rates of a one-cycle schedule depend on its length from the first step on"
    if stage.tasks is not None:
        return "hierarchical task learning weighs the first epochs by their number, too"
    if stage.method is not None and stage.method.follows_progress:
        return "the method's weights follow the share of the steps that are done"
    return None


def told(recipe: Recipe, stage: StageConfig, folder: Path) -> str:
    """The settings that differ from those beside a stage's ``folder`` and in it, with both values; empty where they are
    not at hand."""
    found = list(_differences(recipe, stage, folder.parent))
    more = f" and {len(found) - TOLD} more" if len(found) > TOLD else ""
    return "; ".join(found[:TOLD]) + more


def _differences(recipe: Recipe, stage: StageConfig, folder: Path) -> Iterator[str]:
    for name in (stage.name, *stage.needs):
        now = to_plain(recipe.stage(name))
        yield from _compared(f"stages.{name}.", _read(folder / name / "config.yaml"), now, ())
    whole = to_plain(recipe)
    now = {name: whole[name] for name in ("seed", "dataset", "evaluation")}
    yield from _compared("", _read(folder / "recipe.yaml"), now, INDIFFERENT)


def _read(path: Path) -> Any:
    try:
        return read_yaml(path)
    except UserError:
        return None


def _compared(prefix: str, before: Any, now: Any, indifferent: tuple[str, ...]) -> Iterator[str]:
    """Leaves that are in both and differ, and settings whose kind changed."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return
    for key, value in now.items():
        if key not in before or key in indifferent or key == "taken_from":
            continue
        old, name = before[key], f"{prefix}{key}"
        if isinstance(old, dict) and isinstance(value, dict) and old.keys() == value.keys():
            yield from _compared(f"{name}.", old, value, indifferent)
        elif old != value:
            alike = isinstance(old, dict) or isinstance(value, dict) or _is_long(old) or _is_long(value)
            yield f"{name} is another" if alike else f"{name} was {old} and is {value}"


def _is_long(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)
