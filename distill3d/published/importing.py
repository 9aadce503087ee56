"""An authors' checkpoint as a run folder of this library."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import distill3d
from distill3d.boxes import KITTI_CLASSES
from distill3d.data.augment.image import place
from distill3d.data.kitti.raw import OBJECT_ID
from distill3d.data.splits import read_split
from distill3d.detectors import build_detector, detector_name
from distill3d.detectors.released import OTHER_NETWORKS, Taken, Weights, from_released, part_of_file, plain_names
from distill3d.errors import UserError
from distill3d.files import read_bytes
from distill3d.lock import only_writer
from distill3d.published.archive import read_archive, state_of
from distill3d.published.systems import SYSTEMS, Part, named_part
from distill3d.settings import to_plain
from distill3d.train.checkpoint import refuse_not_finite, save_weights
from distill3d.train.loop import CONFIG, write_settings
from distill3d.train.recipe import DatasetConfig, Recipe, StageConfig
from distill3d.train.stages import STAGE_FILES, refuse_others_files
from distill3d.train.teachers import any_frame_of, trained_on

#: What cards of imported weights say of them.
UNVERIFIED = "imported, not verified here"
#: Focal length and size of most of KITTI's pictures, px.
KITTI_FOCAL, KITTI_SIZE = 721.5377, (1242, 375)
#: Parts that a message lists at most, and differences.
LISTED = 8


@dataclass(frozen=True)
class Imported:
    """What was written where, and what of the file has no place there."""

    folder: Path  # the stage's
    system: str
    part: str
    parameters: int
    dropped: dict[str, list[str]]
    others: tuple[str, ...] = ()  # parts of the system that the file fits as well, where none was named

    def text(self) -> str:
        system = SYSTEMS[self.system]
        claimed, caveat = system.parts[self.part].claimed, system.parts[self.part].caveat
        lines = [f"{self.folder}: {system.title}, {self.part}, {self.parameters:,} parameters ({UNVERIFIED})"]
        lines += [f"left out, {reason}: {_grouped(names)}" for reason, names in self.dropped.items()]
        if self.others:
            lines.append(f"fits {', '.join(self.others)} as well: --part says which it is")
        if claimed:
            lines.append(f"claimed by {system.repository}: {claimed}")
        if caveat:
            lines.append(f"note: {caveat}")
        return "\n".join(lines)


def import_checkpoint(
    file: Path, system: str | None = None, part: str | None = None, out: Path = Path("imported"),
    split: Path | None = None,
) -> Imported:  # fmt: skip
    """Writes ``<out>/<system>_<part>/<part>`` with weights and card, and the recipe above it, as a training leaves
    them.

    Without ``system`` the file's names and shapes tell which it is, without ``part`` which part.  ``split`` names the
    frames that the weights were trained on; without it they count as any frame of the data set.

    Raises:
        UserError: the file cannot be read or is of no such network, what it is cannot be told, or something else stands
            where it would be written.
    """
    if system is not None:
        named_part(system, part, "import")  # before a large file is read
    frames = None if split is None else _frames_of(split)
    state = plain_names(state_of(read_archive(file), file))
    if system is None:
        system, part = _recognised(state, part, file)
    others: list[str] = []
    if part is None:
        part, *others = _meant(named_part(system, None, "import")[0].parts, state)
    about, part, of = named_part(system, part, "import")
    try:
        recipe, stage, taken = fitted(state, of)
    except UserError as error:
        raise UserError(f"{file}: is not {about.title} ({part}): {error}") from None
    stage = replace(stage, detector=taken.config, name=part, init=None, inherit=(), teachers=(), method=None)
    recipe = replace(recipe, name=f"{system}_{part}", stages=(stage,), note=_note(system, part))
    parameters = sum(p.numel() for p in _on_meta(taken.config).parameters())
    card = _card(recipe, stage, system, part, file) | {"parameters": parameters}
    card["trained_on"] = (
        any_frame_of(recipe.dataset.identity) if frames is None else trained_on(recipe.dataset.identity, frames, [])
    )
    refuse_not_finite(taken.weights, str(file))
    folder = out / recipe.name / part
    for path in (folder / name for name in STAGE_FILES if name != CONFIG):
        if path.exists() or path.is_symlink():
            raise UserError(f"{path}: is there already: give another --out, or remove it")
    refuse_others_files(folder.parent, [stage])
    with only_writer(folder, "is being written"):
        write_settings(recipe, stage, folder)
        save_weights(folder, taken.weights, card)
    return Imported(folder, system, part, parameters, taken.dropped, tuple(others))


def _frames_of(split: Path) -> list[str]:
    """The names in the file of a training split.

    Raises:
        UserError: one of them can be none of a frame or scene.
    """
    frames = read_split(split)
    for name in frames:
        numbered = name.isdigit() and not OBJECT_ID.fullmatch(name)
        if numbered or re.search(r"[\s#]", name) or Path(name).suffix:
            raise UserError(
                f"{split}: {name!r} is no name of a frame, expected lines such as 000006, or scenes or sample tokens "
                "of nuScenes"
            )
    return frames


def fitted(state: Weights, part: Part, dtype: torch.dtype = torch.float32) -> tuple[Recipe, StageConfig, Taken]:
    """A part's recipe and stage, and what becomes of a file's state dict (``plain_names``) in its detector, whose
    numbers are of the type ``dtype``.

    Raises:
        UserError: it does not fit; the sentence names the differences.
    """
    recipe, stage = part.taken_from()
    inside = part_of_file(state, part.prefix) or dict(state)
    outside = [name for name in state if not name.startswith(part.prefix)] if len(inside) < len(state) else []
    state = inside
    config = part.settings(stage.detector, state)
    own = _on_meta(config).to(dtype).state_dict()
    taken = from_released(state, part.form(config), own, config)
    if outside:
        taken.dropped[OTHER_NETWORKS] = [*taken.dropped.get(OTHER_NETWORKS, []), *outside]
    return replace(recipe, dataset=part.data(recipe.dataset, taken.config, state)), stage, taken


def _on_meta(config: Any) -> torch.nn.Module:
    with torch.device("meta"):
        return build_detector(config)


def _fits(state: Weights, part: Part) -> bool:
    """Whether the file's names and shapes are those of the part's network."""
    try:
        fitted(state, part)
    except UserError:
        return False
    return True


def _fitting(state: Weights) -> Iterator[tuple[str, str]]:
    for system, about in SYSTEMS.items():
        yield from ((system, part) for part, of in about.parts.items() if _fits(state, of))


def _meant(parts: dict[str, Part], state: Weights) -> list[str]:
    """The parts that the file fits, in their order; if there is none, the first, whose differences are then told."""
    return [name for name, part in parts.items() if _fits(state, part)] or [next(iter(parts))]


def _recognised(state: Weights, part: str | None, file: Path) -> tuple[str, str]:
    if part is not None and not any(part in system.parts for system in SYSTEMS.values()):
        raise UserError(f"import: no system has a part {part!r}, distill3d import --help lists them")
    found = [pair for pair in _fitting(state) if part in (None, pair[1])]
    if not found:
        raise UserError(
            f"{file}: holds {len(state)} entries ({_grouped(state)}) that are of none of the known networks; "
            "distill3d import --help lists them, and --as tells what differs from one"
        )
    if len(found) > 1:
        more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
        listed = ", ".join(f"--as {system} --part {part}" for system, part in found[:LISTED])
        raise UserError(f"{file}: may be any of {len(found)} networks, say which: {listed}{more}")
    return found[0]


def _card(recipe: Recipe, stage: StageConfig, system: str, part: str, file: Path) -> dict[str, Any]:
    about = SYSTEMS[system]
    card = {
        "recipe": recipe.name, "stage": stage.name, "role": stage.role, "detector": detector_name(stage.detector),
        "config": to_plain(stage.detector), "input": stage.detector.input,
        "fingerprint": recipe.stage_fingerprint(stage), "note": recipe.note,
        "imported": {
            "system": system, "part": part, "repository": about.repository, "claimed": about.parts[part].claimed,
            "file": file.name, "sha256": hashlib.sha256(read_bytes(file)).hexdigest(), "verified": UNVERIFIED,
        },
        "versions": {"distill3d": distill3d.__version__, "torch": torch.__version__},
    }  # fmt: skip
    return card | _preprocessing(recipe)


def _preprocessing(recipe: Recipe) -> dict[str, Any]:
    """What a trained card says of pictures and sensors, as far as the data set's settings tell it."""
    dataset = recipe.dataset
    if not isinstance(dataset, DatasetConfig):
        return {"canvas": list(dataset.canvas), "classes": list(dataset.classes), "version": dataset.version,
                "cameras": list(dataset.cameras), "past": list(dataset.past),
                "ego_frame": dataset.ego_frame}  # fmt: skip
    scale = float(place(KITTI_SIZE, dataset.canvas, dataset.placement).scale)
    return {
        "canvas": list(dataset.canvas), "focal": KITTI_FOCAL * scale, "file_focal": KITTI_FOCAL,
        "placement": dataset.placement, "min_height_scale": dataset.min_height_scale, "lidar_to_camera": None,
        "classes": list(KITTI_CLASSES[:3]),
    }  # fmt: skip


def _note(system: str, part: str) -> str:
    about = SYSTEMS[system]
    claimed, caveat = about.parts[part].claimed, about.parts[part].caveat
    note = f"{about.title} of {about.repository}, {part}: {UNVERIFIED}" + (f"; claimed {claimed}" if claimed else "")
    return note + (f"; {caveat}" if caveat else "")


def _grouped(names: Iterable[str]) -> str:
    """Names by their first parts, with counts."""
    counts: dict[str, int] = {}
    for name in names:
        beginning = ".".join(name.split(".")[:2]) if "." in name else name
        counts[beginning] = counts.get(beginning, 0) + 1
    told = [f"{name}.* ({count})" if count > 1 else name for name, count in counts.items()]
    return ", ".join(told[:LISTED]) + (f" and {len(told) - LISTED} groups more" if len(told) > LISTED else "")
