"""Weights of this library under the names of an authors' code, for that code to load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from distill3d.detectors import detector_name
from distill3d.detectors.released import to_released
from distill3d.errors import UserError
from distill3d.files import refuse_foreign, write_output
from distill3d.published.importing import fitted
from distill3d.published.systems import named_part
from distill3d.train.checkpoint import load_detector
from distill3d.train.stages import other_frame


@dataclass(frozen=True)
class Exported:
    """What was written where."""

    file: Path
    title: str
    entries: int

    def text(self) -> str:
        return f"{self.file}: {self.entries} entries under the names of {self.title}"


def export_released(checkpoint: Path, system: str, part: str | None = None, out: Path | None = None) -> Exported:
    """Writes a checkpoint that ``system``'s own code loads, by default ``<system>.pth``.  Entries of theirs that no
    forward pass uses are zeros.

    Raises:
        UserError: the stage is of another detector, or a file that is not this library's stands in the place.
    """
    about, part, of = named_part(system, part, "export")
    out = Path(f"{system}.pth") if out is None else out
    refuse_foreign(out)
    detector, card = load_detector(checkpoint)
    _, stage = of.taken_from()
    if detector_name(stage.detector) != card["detector"]:
        theirs = detector_name(stage.detector)
        raise UserError(f"{checkpoint}: is of detector {card['detector']!r}, {about.title} ({part}) of {theirs!r}")
    weights = detector.state_dict()
    theirs = to_released(weights, of.form(detector.config), detector.config)
    try:
        recipe, _, back = fitted(theirs, of)
    except UserError as error:
        raise UserError(f"{checkpoint}: is not {about.title} ({part}) as its code has it: {error}") from None
    if any(not torch.equal(back.weights[name], value) for name, value in weights.items()):
        raise UserError(f"{checkpoint}: {about.title} has no form for all of its weights")
    if back.config.input != detector.config.input:
        raise UserError(
            f"{checkpoint}: looks at {detector.config.input}, {about.title} ({part}) at {back.config.input}"
        )
    frames = other_frame(recipe, card)
    if frames is not None:
        raise UserError(f"{checkpoint}: sees the ego frame {frames[0]!r}, {about.title} ({part}) {frames[1]!r}")
    state = {about.prefix + name: value for name, value in theirs.items()}
    write_output(out, lambda part: torch.save({"epoch": 0, about.state: state}, part))
    return Exported(out, about.title, len(state))
