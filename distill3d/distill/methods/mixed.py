"""Terms of several methods in one training, and one method's selection on another's distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distill3d.detectors.base import Modality
from distill3d.detectors.monodle import DepthEncoding
from distill3d.distill.methods.add import ADDStyleConfig
from distill3d.distill.methods.bevdistill import BEVDistillConfig
from distill3d.distill.methods.cmkd import CMKDConfig
from distill3d.distill.methods.dense_truth import DenseTruthConfig
from distill3d.distill.methods.distillbev import DistillBEVConfig
from distill3d.distill.methods.labeldistill import LabelDistillConfig
from distill3d.distill.methods.monodistill import MonoDistillConfig
from distill3d.distill.methods.monoskd import MonoSKDConfig
from distill3d.distill.methods.monostl import MonoSTLConfig
from distill3d.distill.methods.monotakd import MonoTAKDConfig
from distill3d.distill.methods.pseudo_labels import PseudoLabelsConfig
from distill3d.distill.methods.sgm3d import SGM3DConfig
from distill3d.distill.methods.simdistill import SimDistillConfig
from distill3d.distill.methods.tig_bev import TiGBEVConfig
from distill3d.distill.methods.trusted import TrustedConfig
from distill3d.distill.methods.unidistill import UniDistillConfig
from distill3d.distill.methods.uvtr_kd import UVTRKDConfig
from distill3d.distill.methods.vcd import VCDConfig
from distill3d.distill.methods.x3kd import X3KDConfig
from distill3d.distill.style import StyledConfig, teachers_norms
from distill3d.errors import UserError
from distill3d.settings import is_in_range

#: Settings of the methods that can be parts of a mixture.
PartConfig = (
    MonoDistillConfig
    | MonoSKDConfig
    | MonoSTLConfig
    | CMKDConfig
    | MonoTAKDConfig
    | SGM3DConfig
    | ADDStyleConfig
    | LabelDistillConfig
    | DistillBEVConfig
    | UniDistillConfig
    | TiGBEVConfig
    | BEVDistillConfig
    | SimDistillConfig
    | UVTRKDConfig
    | X3KDConfig
    | VCDConfig
    | TrustedConfig
    | PseudoLabelsConfig
    | DenseTruthConfig
)


@dataclass(frozen=True)
class MixedConfig(StyledConfig):
    """The terms of all ``parts``, each with its own weights (0 leaves a term out), taps and adapters.

    Terms are named ``<method>.<term>``, e.g. ``monoskd.spearman``.  Nothing here is published: weights that suit one
    method alone need not suit a mixture.

    Raises:
        UserError: no parts, or they ask for different teachers.
    """

    parts: tuple[PartConfig, ...]
    #: Multiplies both sides of MonoSKD's correlation by these settings' selective weights: only objects are compared,
    #: and the more, the less sure the student is of their depth.
    select: MonoSTLConfig | None = None

    def __post_init__(self) -> None:
        if not is_in_range(self):
            return
        if not self.parts:
            raise UserError("a mixture needs at least one method in its parts")
        for name in ("teacher_bn", "depth_input", "least_score"):
            if len(asked := {getattr(part, name) for part in self.parts if hasattr(part, name)}) > 1:
                raise UserError(f"the parts of a mixture share their teacher, but ask for {name} {sorted(asked)}")

    @property
    def follows_progress(self) -> bool:
        return any(part.follows_progress for part in self.parts)

    @property
    def looks_at(self) -> frozenset[Modality]:
        return frozenset[Modality]().union(*(part.looks_at for part in self.parts))

    @property
    def teacher_bn(self) -> Literal["eval", "train"]:
        """The teacher's batch norm, as all parts ask for it."""
        return teachers_norms(self.parts[0])

    @property
    def depth_input(self) -> DepthEncoding:
        """How the teacher sees depth, as all parts ask for it whose teacher sees depth images.

        Raises:
            UserError: no part has such a teacher.
        """
        for part in self.parts:
            if isinstance(part, MonoDistillConfig | MonoSKDConfig | MonoSTLConfig | TrustedConfig):
                return part.depth_input
        raise UserError("no part of the mixture is taught by a detector of depth images, so none says how it sees them")
