"""Cards: what someone who is handed weights needs to know of them.

A card is a JSON object.  It stands in the header of ``model.safetensors``, under that file's checksum, and beside it in
``card.json``, with a checksum of its own.  Every key is optional, since cards of several kinds of stages are read; but
what is there is of the type that ``Card`` says, and what a command cannot do without it asks for with ``require``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, TypedDict, cast

import msgspec

from distill3d.data.augment.image import Placement
from distill3d.errors import UserError
from distill3d.files import parse_json, read_text, write_text
from distill3d.typed import checked

CARD = "card.json"
#: What every run's folder holds, beside those of its stages.
RECIPE = "recipe.yaml"
#: The key of ``card.json`` under which the checksum of everything else in it stands.
CHECKSUM = "checksum"

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Pixels = Annotated[int, msgspec.Meta(gt=0)]
Row = tuple[float, float, float, float]
Matrix = tuple[Row, Row, Row, Row]


class TrainedOn(TypedDict, total=False):
    """The frames behind the weights, those of teachers included."""

    identity: str
    count: Count
    sha256: str  # of the frames' names, a line each
    frames: list[str]


class Card(TypedDict, total=False):
    """Types of the keys; other keys may be there and are kept."""

    recipe: str
    stage: str
    role: str
    detector: str
    config: dict[str, Any]
    input: str
    method: str | None
    method_config: dict[str, Any] | None
    teachers: list[str]
    labelled_by: dict[str, Any]  # the detector whose boxes its labels are (data/autolabels.py)
    init: str | None
    inherited: dict[str, dict[str, Any]]
    seed: int
    epochs: Count
    kept: str
    parameters: Count
    precision: str
    device: str
    world_size: Count
    canvas: tuple[Pixels, Pixels]  # (width, height) px
    focal: Positive  # px on the canvas
    file_focal: Positive  # px in the pictures' files
    placement: Placement
    min_height_scale: Positive
    lidar_to_camera: Matrix | None
    classes: list[str]
    version: str
    cameras: list[str]  # of surround views, in the order of the pictures; absent: nuScenes' six
    past: list[int]
    ego_frame: str
    best_of_reported: dict[str, Any]  # see train/evaluation.py
    fingerprint: str
    trained_on: TrainedOn
    note: str
    versions: dict[str, str]


def read_card(path: Path) -> dict[str, Any]:
    """The card in a ``card.json``, without its checksum.

    Raises:
        UserError: it cannot be read, is no card, or was changed after it was written.
    """
    card = parse_card(read_text(path), path)
    checksum = card.pop(CHECKSUM, None)
    if checksum is not None and checksum != _checksum(card):
        raise UserError(
            f"{path}: was damaged or changed after distill3d wrote it (its checksum differs): put an undamaged copy "
            "in its place, or train the stage again"
        )
    return card


def write_card(path: Path, card: dict[str, Any]) -> None:
    """A ``card.json`` with its checksum."""
    card = {name: value for name, value in card.items() if name != CHECKSUM}
    write_text(path, json.dumps({**card, CHECKSUM: _checksum(card)}, indent=1))


def parse_card(text: str, where: Path | str) -> dict[str, Any]:
    """The card that a text holds.

    Raises:
        UserError: it is no JSON object, or one of its values is none that a card can have; the sentence begins with
            ``where`` and names the key.
    """
    card = parse_json(text, where)
    if not isinstance(card, dict):
        raise UserError(f"{where}: holds no JSON object, expected a card written by distill3d")
    return cast(dict[str, Any], checked(card, Card, where))


def require(card: dict[str, Any], where: Path | str, *names: str) -> None:
    """Asks a card for what a command cannot do without; a dot parts a name from one in it.

    Raises:
        UserError: it lacks one of these keys, or has none but null there.
    """
    for name in names:
        value: Any = card
        for part in name.split("."):
            value = (value or {}).get(part)
        if value is None:
            raise UserError(f"{where}: the card says nothing of {name!r}, expected one written by distill3d train")


def _checksum(card: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def runs_inside(folder: Path) -> str | None:
    """Of a folder that is no run but holds some: a sentence that names them; else None."""
    runs = [] if (folder / RECIPE).exists() else sorted(path.parent.name for path in folder.glob(f"*/{RECIPE}"))
    if not runs:
        return None
    if len(runs) == 1:
        return f"{folder} holds the run {runs[0]}: give {folder / runs[0]}"
    return f"{folder} holds the runs {', '.join(runs)}: give one of them, such as {folder / runs[0]}"
