"""The record of a set whose labels a detector wrote (``distill3d autolabel``): who, which frames, and what it had seen.

Training reads it: the frames that the labeller was trained on are behind everything that learns from its labels.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

from distill3d.errors import UserError
from distill3d.files import read_json
from distill3d.typed import checked

RECORD = "autolabels.json"
#: The split of the frames that were labelled.
SPLIT = "auto"


class Seen(TypedDict, total=False):
    """As ``TrainedOn`` of a card."""

    identity: str
    count: int
    sha256: str
    frames: list[str]


class Labeller(TypedDict):
    """The stage whose boxes the labels are."""

    stage: str
    recipe: str
    role: str
    detector: str
    input: str
    sha256: str  # of its model.safetensors
    trained_on: Seen


class Autolabels(TypedDict):
    """What stands in the record; other keys are settings of the command alone."""

    layout: str
    score: float  # boxes of a lower one were left out
    labeller: Labeller
    frames: list[str]  # that were labelled; others of the set kept their labels


def read_autolabels(root: Path) -> dict[str, Any] | None:
    """The record of a data set; None where people labelled it.

    Raises:
        UserError: it cannot be read, or is none.
    """
    path = root / RECORD
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no JSON object, expected a record written by distill3d autolabel")
    return dict(checked(found, Autolabels, path))  # pyright: ignore[reportArgumentType]


def labeller_of(root: Path, frames: Iterable[str]) -> dict[str, Any] | None:
    """Who labelled some of these frames of a data set, with the least ``score``; None where no detector did.

    Raises:
        UserError: as ``read_autolabels``.
    """
    record = read_autolabels(root)
    if record is None or set(record["frames"]).isdisjoint(frames):
        return None
    return {**record["labeller"], "score": record["score"]}
