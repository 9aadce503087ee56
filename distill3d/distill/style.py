"""Options on which released code and paper differ: one column for each style, and our default."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, TypeVar

from distill3d.detectors.base import Modality, Style
from distill3d.errors import UserError
from distill3d.settings import Share, added

#: ``as_is``: no term looks at a label; ``objects``: the teacher's boxes stand where terms ask for objects, and the
#: student's own loss is asked of labelled frames alone; ``labels``: these boxes are labels, for the own loss too.
UnlabelledUse = Literal["refused", "as_is", "objects", "labels"]

T = TypeVar("T")
C = TypeVar("C", bound="StyledConfig")


def option(*, released: T, intended: T, default: T, added: bool = False) -> T:
    """A dataclass field that a style sets; ``default`` stands where neither a style nor the user chose.

    ``added``: as by ``settings.added``, for an option that came later.
    """
    later = {"added": True} if added else {}
    return field(default=default, metadata={"released": released, "intended": intended, **later})


@dataclass(frozen=True)
class StyledConfig:
    """Base of the settings of methods: fields made by ``option`` follow a style, the others do not."""

    #: Whether the method's terms look at no teacher.
    teacherless: ClassVar[bool] = False
    #: What the method makes of frames without labels; until its file says so they are refused.
    unlabelled: ClassVar[UnlabelledUse] = "refused"

    @property
    def follows_progress(self) -> bool:
        """Whether a term's weight depends on the share of the stage's steps that are done."""
        return False

    @property
    def looks_at(self) -> frozenset[Modality]:
        """What terms look at that neither student nor teachers do; the data set gives it in training."""
        return frozenset()

    @classmethod
    def styled(cls: type[C], style: Style, **values: Any) -> C:
        """All options in one style; ``values`` set single fields otherwise.

        Raises:
            UserError: the style or a field is unknown.
        """
        if style not in ("released", "intended"):
            raise UserError(f"style must be 'released' or 'intended', not {style!r}")
        known = {f.name: f for f in fields(cls)}
        if unknown := sorted(values.keys() - known.keys()):
            raise UserError(f"{cls.__name__} has no field {unknown[0]!r}; it has {', '.join(known)}")
        return replace(cls(), **{n: f.metadata[style] for n, f in known.items() if style in f.metadata} | values)

    @property
    def style(self) -> Style | None:
        """The style whose column all options match, or None for a mixture such as the defaults."""
        rows = [f for f in fields(self) if "released" in f.metadata]
        styles: tuple[Style, ...] = ("released", "intended")
        return next((s for s in styles if all(getattr(self, f.name) == f.metadata[s] for f in rows)), None)


def teachers_norms(config: StyledConfig) -> Literal["eval", "train"]:
    """The mode of the teachers' batch norms, which methods that offer both have as the field ``teacher_bn``."""
    return getattr(config, "teacher_bn", "eval")


@dataclass(frozen=True, kw_only=True)
class ObjectsConfig(StyledConfig):
    """Base of the settings of methods that ask where objects are."""

    unlabelled: ClassVar[UnlabelledUse] = "objects"

    #: Of frames without labels, the score from which a teacher's boxes count as objects.
    least_score: Share = added(0.5)
