"""What a distillation term may look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from distill3d.detectors.base import Detector, FeatureMap, Outputs
from distill3d.errors import UserError


@dataclass(frozen=True)
class Context:
    """One training step as seen by the terms: the student, its teachers by stage name, the batch and its targets."""

    student: Outputs
    teachers: dict[str, Outputs]  # detached; in eval mode unless the method says otherwise
    batch: Any  # a Batch, or of surround views a SurroundBatch
    targets: Any  # as the student's ``encode`` gave them
    #: Who said ``student``, and who said each of ``teachers``: for what outputs alone do not tell.
    student_detector: Detector | None = None
    teacher_detectors: dict[str, Detector] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)  # the student's own, weighted, by name
    progress: float = 0.0  # share of the stage's steps that are done, 0..1

    def risen(self, over: float) -> float:
        """What a weight has come to that rises in a straight line from 0 over this share of the stage's steps, then
        stays at 1; with share 0 it is 1 from the start."""
        return 1.0 if over == 0 else min(1.0, self.progress / over)

    @property
    def teacher(self) -> Outputs:
        """The only teacher.

        Raises:
            ValueError: there are several; ask for one by ``named``.
        """
        if len(self.teachers) != 1:
            raise ValueError(f"expected one teacher, got {', '.join(self.teachers) or 'none'}")
        return next(iter(self.teachers.values()))

    def named(self, name: str | None) -> Outputs:
        """The teacher of this stage name; None: the only one.

        Raises:
            UserError: no teacher has this name, or None was to choose among several.
        """
        if name is None and len(self.teachers) == 1:
            return self.teacher
        if name not in self.teachers:
            wanted = "a single teacher" if name is None else f"a teacher named {name!r}"
            raise UserError(f"the method asks for {wanted}; the student's teachers are {', '.join(self.teachers)}")
        return self.teachers[name]

    def detector_named(self, name: str | None) -> Detector | None:
        """Who said ``named(name)``; None where that is not known."""
        if name is None and len(self.teachers) == 1:
            name = next(iter(self.teachers))
        return self.teacher_detectors.get(name or "")

    def pairs(self, taps: tuple[str, ...]) -> list[tuple[FeatureMap, FeatureMap]]:
        """The same taps of student and teacher, checked to be comparable."""
        return [comparable(tap, self.student, self.teacher) for tap in taps]

    @cached_property
    def student_log_scale(self) -> Float[Tensor, "b k"]:
        """How unsure the student is of each object's depth, see ``Detector.depth_log_scale``; no gradient."""
        assert self.student_detector is not None
        with torch.no_grad():
            return self.student_detector.depth_log_scale(self.student, self.batch, self.targets)

    @cached_property
    def teacher_log_scale(self) -> Float[Tensor, "b k"]:
        """The same of the only teacher.  Apart from the student's, for some teachers cannot say."""
        teacher = self.teacher
        (of_teacher,) = self.teacher_detectors.values()
        with torch.no_grad():
            return of_teacher.depth_log_scale(teacher, self.batch, self.targets)


def comparable(
    tap: str, student: Outputs, teacher: Outputs, teacher_tap: str | None = None, who: str = "teacher"
) -> tuple[FeatureMap, FeatureMap]:
    """Student's and teacher's map of one name, or the student's ``tap`` and the ``teacher_tap`` of ``who``.

    Raises:
        ValueError: one of them lacks the tap, or the two lie on different grids or differ in channels.
    """
    s, t = same_grid(tap, student, teacher, teacher_tap, who)
    if s.tensor.shape[1] != t.tensor.shape[1]:
        raise ValueError(
            f"tap {tap!r} has {s.tensor.shape[1]} channels in the student and {t.tensor.shape[1]} in the {who}"
        )
    return s, t


def same_grid(
    tap: str, student: Outputs, teacher: Outputs, teacher_tap: str | None = None, who: str = "teacher"
) -> tuple[FeatureMap, FeatureMap]:
    """As ``comparable``, whatever their channels.

    Raises:
        ValueError: one of them lacks the tap, or the two lie on different grids.
    """
    other = teacher_tap or tap
    for name, owner, outputs in ((tap, "student", student), (other, who, teacher)):
        if name not in outputs.features:
            raise ValueError(f"the {owner} has no tap {name!r}; it offers {', '.join(outputs.features)}")
    s, t = student.features[tap], teacher.features[other]
    if s.geometry != t.geometry:
        raise ValueError(f"tap {tap!r} lies on different grids: student {s.geometry}, {who} {t.geometry}")
    if s.tensor.shape[-2:] != t.tensor.shape[-2:]:
        shapes = [tuple(m.tensor.shape[-2:]) for m in (s, t)]
        raise ValueError(f"tap {tap!r} has {shapes[0]} cells in the student and {shapes[1]} in the {who}")
    return s, t


def tapped(tap: str, outputs: Outputs, who: str) -> FeatureMap:
    """The map of ``who`` of this name.

    Raises:
        UserError: there is none.
    """
    if tap not in outputs.features:
        raise UserError(f"the {who} has no tap {tap!r}; it offers {', '.join(outputs.features) or 'none'}")
    return outputs.features[tap]


def refuse_absent_taps(
    method: str, taps: Sequence[str], teacher_taps: Sequence[str], student: Mapping[str, Any],
    teacher: Mapping[str, Any], who: tuple[str, str] = ("the student", "the teacher"),
) -> None:  # fmt: skip
    """Holds the taps that a ``method`` asks of both sides against those that ``student`` and ``teacher`` offer, as
    their ``tap_channels`` or ``features`` name them.

    Raises:
        UserError: one is missing; the sentence lists those that are there.
    """
    for owner, asked, offered in zip(who, (taps, teacher_taps), (student, teacher), strict=True):
        if missing := [tap for tap in asked if tap not in offered]:
            raise UserError(f"{method}: {owner} has no tap {missing[0]!r}; it offers {', '.join(offered)}")


def detached(outputs: Outputs) -> Outputs:
    """The outputs cut from the graph, as teachers give them; where they looked (``rois``) is left out."""
    features = {k: FeatureMap(f.tensor.detach(), f.geometry) for k, f in outputs.features.items()}
    predictions: dict[str, Tensor] = {k: p.detach() for k, p in outputs.predictions.items()}
    return Outputs(features, predictions)
