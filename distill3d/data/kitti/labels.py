"""KITTI's label and result files. They are parsed with all their faults collected: readers stop at the first one,
``check`` lists them all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill3d.boxes import IGNORE, Boxes3D, from_kitti, to_kitti
from distill3d.data.faults import Fault, refuse_faults
from distill3d.data.kitti.lines import (
    LABEL_FIELDS,
    LENGTH,
    MOST_CHARACTERS,
    ROTATION_Y,
    WIDTH,
    Z,
    has_box_3d,
    line_faults,
    sound_numbers,
)
from distill3d.data.kitti.names import DONT_CARE, KITTI_NAMES, LabelNames
from distill3d.data.sample import EASY, HARD, MODERATE, UNKNOWN, Objects
from distill3d.files import read_text

#: Training difficulty: least box height (px), largest truncation, largest occlusion (xinzhuma/monodle
#: lib/datasets/kitti/kitti_utils.py).  The evaluation has rules of its own.
DIFFICULTIES = ((EASY, 40, 0.15, 0), (MODERATE, 25, 0.30, 1), (HARD, 25, 0.50, 2))
#: How the sentence on a name that is no class begins.
UNKNOWN_CLASS = "unknown class"
RESULT_DECIMALS = 4  # of pixels, metres and radians in result files; two decimals make ties


class LabelLine(NamedTuple):
    """One well-formed line of a label or result file; ``numbers`` in the order of ``LABEL_FIELDS``."""

    line: int
    name: str
    numbers: list[float]


def parse_labels(
    text: str, scored: bool | None = None, known: LabelNames = KITTI_NAMES
) -> tuple[list[LabelLine], list[Fault]]:
    """The well-formed lines of a label or result file, and the faults of the others; both in file order.

    ``scored``: whether every line must have a score; None where all or none may.  Class names may stand in any case, as
    KITTI's own program takes them.
    """
    lines: list[LabelLine] = []
    faults: list[Fault] = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words:
            continue
        name = known.of(words[0])
        if name is None and len(words[0]) <= MOST_CHARACTERS:
            every = dict.fromkeys((*known.names, DONT_CARE))
            faults.append(Fault(number, f"{UNKNOWN_CLASS} {words[0]!r}, expected one of {', '.join(every)}"))
        numbers = sound_numbers(words, scored)
        if numbers is None:
            faults += [Fault(number, sentence) for sentence in line_faults(words, scored)]
        elif name is not None:
            lines.append(LabelLine(number, name, numbers))
    if len({len(line.numbers) for line in lines}) > 1:
        odd = next(line for line in lines if len(line.numbers) != len(lines[0].numbers))
        faults.append(Fault(odd.line, "some lines have a score and some have none"))
    return lines, faults


def faults_behind(lines: list[LabelLine]) -> list[Fault]:
    """Labels of boxes that lie behind the camera as a whole: no picture can show them.

    A centre behind it is no fault: a tram or a truck that drives past may have its there.
    """
    faults = []
    for line in lines:
        width, length, z, rotation_y = (line.numbers[field] for field in (WIDTH, LENGTH, Z, ROTATION_Y))
        ahead = (length * abs(math.sin(rotation_y)) + width * abs(math.cos(rotation_y))) / 2
        if line.name != DONT_CARE and z + ahead <= 0:
            faults.append(Fault(line.line, f"the {line.name} lies behind the camera (z = {z:g} m)"))
    return faults


def training_difficulty(
    box2d: Float[Tensor, "n 4"], truncation: Float[Tensor, "n"], occlusion: Int[Tensor, "n"], height_scale: float = 1.0
) -> Int[Tensor, "n"]:
    """EASY, MODERATE, HARD or UNKNOWN for each label line, as MonoDLE trains on them.

    ``height_scale`` multiplies the least heights: image width / 1242 for data sets at a lower resolution than KITTI's.
    Truncation -1 (not annotated) is UNKNOWN.
    """
    box = box2d.double()
    height = box[:, 3] - box[:, 1] + 1
    truncation = truncation.double()
    difficulty = torch.full_like(occlusion, UNKNOWN)
    for level, least_height, most_truncation, most_occlusion in reversed(DIFFICULTIES):
        fits = (height >= least_height * height_scale) & (truncation <= most_truncation) & (occlusion <= most_occlusion)
        difficulty = torch.where(fits & (truncation != -1), level, difficulty)
    return difficulty


def read_labels(path: Path, height_scale: float = 1.0, known: LabelNames = KITTI_NAMES) -> Objects:
    """A label file, or a result file with scores; float64, in file order.

    Labels index ``known.names``; DontCare rows, and detections without a 3D box, have label ``IGNORE``, a 2D box and
    otherwise NaN.

    Raises:
        UserError: the file is absent, a line is malformed, or a label's box lies behind the camera.
    """
    lines, faults = parse_labels(read_text(path), known=known)
    if lines and len(lines[0].numbers) < len(LABEL_FIELDS):
        faults += faults_behind(lines)
    refuse_faults(path, faults)
    width = len(lines[0].numbers) if lines else len(LABEL_FIELDS) - 1
    table = torch.from_numpy(np.array([line.numbers for line in lines], np.float64).reshape(-1, width))
    names = [DONT_CARE if not has_box_3d(line.name, line.numbers) else line.name for line in lines]
    every = known.names
    label = torch.tensor([IGNORE if n == DONT_CARE else every.index(n) for n in names], dtype=torch.int64)
    truncation, occlusion, box2d = table[:, 0], table[:, 1].long(), table[:, 3:7]
    geometry = torch.where(label[:, None] == IGNORE, math.nan, table)
    boxes = from_kitti(
        geometry[:, 7:10], geometry[:, 10:13], geometry[:, 13], label,
        box2d=box2d, alpha=geometry[:, 2], score=table[:, 14] if width == len(LABEL_FIELDS) else None,
    )  # fmt: skip
    return Objects(boxes, truncation, occlusion, training_difficulty(box2d, truncation, occlusion, height_scale))


def format_results(
    boxes: Boxes3D, classes: tuple[str, ...], decimals: int = RESULT_DECIMALS, score_decimals: int = 6,
    unknown: tuple[str, str] = ("-1", "-1"),
) -> list[str]:  # fmt: skip
    """Detections of one frame as lines of KITTI's result format.

    ``boxes`` are in the camera frame of the image file, with ``score``, ``box2d`` and ``alpha``; labels index
    ``classes``; ``unknown`` stands for truncation and occlusion.  Boxes at or behind the camera are left out: their 2D
    boxes mean nothing.  A size that would be written as 0 becomes the least that can be written, and a 2D box
    with right before left or bottom above top an empty one: readers refuse anything else.

    Raises:
        ValueError: a needed field is missing, or the boxes are in another frame.
    """
    if boxes.score is None or boxes.box2d is None or boxes.alpha is None:
        raise ValueError("KITTI results need score, box2d and alpha")
    boxes = boxes[(boxes.centre[:, 2] > 0) & (boxes.label != IGNORE)]
    assert boxes.score is not None and boxes.box2d is not None and boxes.alpha is not None
    rows = zip(boxes.label.tolist(), _geometry(boxes, decimals), boxes.score.tolist(), strict=True)
    head = " ".join(unknown)
    return [f"{classes[label]} {head} {values} {score:.{score_decimals}f}" for label, values, score in rows]


def format_labels(objects: Objects, classes: tuple[str, ...], decimals: int = RESULT_DECIMALS) -> list[str]:
    """Objects of one frame as lines of KITTI's label format, which has no score.

    Raises:
        ValueError: a needed field is missing, or the boxes are in another frame.
    """
    boxes = objects.boxes
    columns = boxes.label.tolist(), objects.truncation.tolist(), objects.occlusion.tolist(), _geometry(boxes, decimals)
    return [
        f"{classes[label]} {truncation:.2f} {occlusion} {values}"
        for label, truncation, occlusion, values in zip(*columns, strict=True)
    ]


def _geometry(boxes: Boxes3D, decimals: int) -> list[str]:
    """The numbers of each line from alpha to rotation_y."""
    if boxes.box2d is None or boxes.alpha is None:
        raise ValueError("lines of KITTI need box2d and alpha")
    hwl, bottom, rotation_y = to_kitti(boxes)
    table = torch.cat((boxes.alpha[:, None], boxes.box2d, hwl, bottom, rotation_y[:, None]), dim=1)
    return [" ".join(f"{v:.{decimals}f}" for v in values) for values in _sound_boxes(table, decimals).tolist()]


def _sound_boxes(table: Float[Tensor, "n 12"], decimals: int) -> Float[Tensor, "n 12"]:
    """alpha, 2D box, size, place and angle of results, with 2D boxes and sizes that every reader of results takes."""
    alpha, left_top, right_bottom, size, rest = table.split((1, 2, 2, 3, 4), dim=1)
    return torch.cat((
        alpha, left_top, torch.where(right_bottom < left_top, left_top, right_bottom),
        torch.where(size < 10**-decimals, 10**-decimals, size), rest,
    ), dim=1)  # fmt: skip


def write_results(path: Path, boxes: Boxes3D, classes: tuple[str, ...], score_decimals: int = 6) -> None:
    """``format_results`` of one frame as a file; an empty file where there are no detections."""
    lines = format_results(boxes, classes, score_decimals=score_decimals)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
