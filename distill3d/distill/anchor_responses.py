"""What the anchor heads of student and teacher say, made comparable: the counterpart of centre_responses.py."""

from __future__ import annotations

from torch import Tensor

from distill3d.detectors.base import Detector, Outputs
from distill3d.distill.context import Context, same_grid
from distill3d.errors import UserError
from distill3d.layers.heads.anchor_head import AnchorHeadConfig

#: An anchor's numbers in the predictions "box": x, y, z, length, width, height, yaw.
BOX_CODE = 7
#: The raw maps of an anchor head.
ANCHOR_MAPS = ("cls", "box", "dir")


def anchor_predictions(
    context: Context, teacher: str | None, tap: str, teacher_tap: str | None, instead: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``ANCHOR_MAPS`` of student and detached ``teacher`` (its stage), (B, Y, X, A k) as (B, Y X A, k).

    ``instead``: what a user without anchor heads is advised to do.

    Raises:
        UserError: one of them has no anchor maps, or theirs differ in shape or classes.
        ValueError: the student's ``tap`` and the teacher's ``teacher_tap`` lie on different grids.
    """
    sides = {"student": context.student, "teacher": context.named(teacher)}
    for who, outputs in sides.items():
        if any(name not in outputs.predictions for name in ANCHOR_MAPS):
            raise UserError(
                f"the response terms compare anchor maps {', '.join(ANCHOR_MAPS)}, but the {who} predicts "
                f"{', '.join(outputs.predictions) or 'nothing'}: {instead}"
            )
    student, taught = sides.values()
    same_grid(tap, student, taught, teacher_tap)
    for name in ANCHOR_MAPS:
        shapes = [tuple(o.predictions[name].shape) for o in (student, taught)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"the anchor map {name!r} is {shapes[0]} in the student and {shapes[1]} in the teacher: give both the "
                "same classes and anchors"
            )
    anchors = [_anchors(d) for d in (context.student_detector, context.detector_named(teacher))]
    if None not in anchors and anchors[0] != anchors[1]:
        raise UserError(
            "the anchors (class, length x width x height and z of the bottom, m) are {} in the student and {} in the "
            "teacher: give both the same, in one order".format(*anchors)
        )
    return _rows(student), {name: rows.detach() for name, rows in _rows(taught).items()}


def _anchors(detector: Detector | None) -> str | None:
    """What a detector's anchors are, in words; None where that is not known."""
    head = getattr(getattr(detector, "config", None), "head", None)
    if not isinstance(head, AnchorHeadConfig):
        return None
    return ", ".join(f"{a.name} {' x '.join(map(str, a.size))} at {a.bottom}" for a in head.classes)


def _rows(outputs: Outputs) -> dict[str, Tensor]:
    anchors = outputs.predictions["box"].shape[-1] // BOX_CODE
    return {name: outputs.predictions[name].unflatten(-1, (anchors, -1)).flatten(1, 3) for name in ANCHOR_MAPS}
