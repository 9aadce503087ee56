"""KITTI's label and result files. They are parsed with all their faults collected: readers stop at the first one,
``check`` lists them all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill3d.boxes import IGNORE, KITTI_CLASSES, Boxes3D, from_kitti, to_kitti
from distill3d.data.faults import Fault, number_or_nan, refuse_faults
from distill3d.data.sample import EASY, HARD, MODERATE, UNKNOWN, Objects
from distill3d.files import read_text

#: The numbers of a label line after the class name; the score stands in result files only.
LABEL_FIELDS = (
    "truncated", "occluded", "alpha", "left", "top", "right", "bottom", "height", "width", "length",
    "x", "y", "z", "rotation_y", "score",
)  # fmt: skip
LABEL_LENGTHS = (15, 16)
OCCLUSIONS = (-1, 0, 1, 2, 3)

#: Training difficulty: least box height (px), largest truncation, largest occlusion (xinzhuma/monodle
#: lib/datasets/kitti/kitti_utils.py).  The evaluation has rules of its own.
DIFFICULTIES = ((EASY, 40, 0.15, 0), (MODERATE, 25, 0.30, 1), (HARD, 25, 0.50, 2))
RESULT_DECIMALS = 4  # of pixels, metres and radians in result files; two decimals make ties


class LabelLine(NamedTuple):
    """One well-formed line of a label or result file; ``numbers`` in the order of ``LABEL_FIELDS``."""

    line: int
    name: str
    numbers: list[float]


def parse_labels(text: str) -> tuple[list[LabelLine], list[Fault]]:
    """The well-formed lines of a label or result file, and the faults of the others; both in file order."""
    lines: list[LabelLine] = []
    faults: list[Fault] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, *values = line.split()
        numbers = [number_or_nan(v) for v in values]
        sentences = list(_label_faults(name, values, numbers))
        if sentences:
            faults += [Fault(number, s) for s in sentences]
        else:
            lines.append(LabelLine(number, name, numbers))
    if len({len(line.numbers) for line in lines}) > 1:
        odd = next(line for line in lines if len(line.numbers) != len(lines[0].numbers))
        faults.append(Fault(odd.line, "some lines have a score and some have none"))
    return lines, faults


def _label_faults(name: str, values: list[str], numbers: list[float]) -> Iterator[str]:
    if name not in KITTI_CLASSES:
        yield f"unknown class {name!r}, expected one of {', '.join(KITTI_CLASSES)}"
    if len(values) + 1 not in LABEL_LENGTHS:
        yield f"expected 15 fields, or 16 with a score, found {len(values) + 1}"
        return
    by_name = dict(zip(LABEL_FIELDS, numbers, strict=False))
    bad = {field for field, number in by_name.items() if not math.isfinite(number)}
    for field_name, value in zip(LABEL_FIELDS, values, strict=False):
        if field_name in bad:
            yield f"{field_name} is {value!r}, expected a finite number"
    if not bad & {"left", "right"} and by_name["right"] < by_name["left"]:
        yield f"the 2D box has right {values[5]} before left {values[3]}"
    if not bad & {"top", "bottom"} and by_name["bottom"] < by_name["top"]:
        yield f"the 2D box has bottom {values[6]} above top {values[4]}"
    if name == "DontCare":
        return
    for size in ("height", "width", "length"):
        if size not in bad and by_name[size] <= 0:
            yield f"{size} is {by_name[size]:g} m, expected a positive size"
    if "truncated" not in bad and not (0 <= by_name["truncated"] <= 1 or by_name["truncated"] == -1):
        yield f"truncated is {by_name['truncated']:g}, expected 0..1, or -1 for unknown"
    if "occluded" not in bad and by_name["occluded"] not in OCCLUSIONS:
        yield f"occluded is {by_name['occluded']:g}, expected 0, 1, 2 or 3, or -1 for unknown"


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


def read_labels(path: Path, height_scale: float = 1.0) -> Objects:
    """A label file, or a result file with scores; float64, in file order.

    Labels index ``KITTI_CLASSES``; DontCare rows have label ``IGNORE``, a 2D box and otherwise NaN.

    Raises:
        UserError: the file is absent or a line is malformed.
    """
    lines, faults = parse_labels(read_text(path))
    refuse_faults(path, faults)
    width = len(lines[0].numbers) if lines else len(LABEL_FIELDS) - 1
    table = torch.tensor([line.numbers for line in lines], dtype=torch.float64).reshape(-1, width)
    names = [line.name for line in lines]
    label = torch.tensor([IGNORE if n == "DontCare" else KITTI_CLASSES.index(n) for n in names], dtype=torch.int64)
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
    boxes mean nothing.

    Raises:
        ValueError: a needed field is missing, or the boxes are in another frame.
    """
    if boxes.score is None or boxes.box2d is None or boxes.alpha is None:
        raise ValueError("KITTI results need score, box2d and alpha")
    boxes = boxes[(boxes.centre[:, 2] > 0) & (boxes.label != IGNORE)]
    assert boxes.score is not None and boxes.box2d is not None and boxes.alpha is not None
    hwl, bottom, rotation_y = to_kitti(boxes)
    table = torch.cat((boxes.alpha[:, None], boxes.box2d, hwl, bottom, rotation_y[:, None]), dim=1)
    rows = zip(boxes.label.tolist(), table.tolist(), boxes.score.tolist(), strict=True)
    head = " ".join(unknown)
    return [
        f"{classes[label]} {head} {' '.join(f'{v:.{decimals}f}' for v in values)} {score:.{score_decimals}f}"
        for label, values, score in rows
    ]


def write_results(path: Path, boxes: Boxes3D, classes: tuple[str, ...], score_decimals: int = 6) -> None:
    """``format_results`` of one frame as a file; an empty file where there are no detections."""
    lines = format_results(boxes, classes, score_decimals=score_decimals)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
