"""MonoTAKD: a camera student imitates a camera assistant that knows depth, and what only LiDAR sees beyond it.

MonoTAKD, CVPR 2025; released code hoiliu-0801/MonoTAKD, pcdet/models/detectors/cmkd_TAKD.py (get_training_loss,
normalize_).  T is a LiDAR teacher, A the assistant: the student's network fed with the true depth.  V is the student's
BEV map, P a second one (see the taps of detectors/caddn.py).  Responses are CMKD's, towards T.

    L = w (1 L_IMD + 0.2 L_CMRD) + 2 L_cls + 2 L_loc + 0.4 L_dir
    L_IMD = mean m (V - A)^2        L_CMRD = mean m (P - R)^2        R = thr(F_T - F_A)

As released, V and A are scaled by constants that cut them from the graph: L_IMD is a number that teaches nothing, and
P alone learns from features.  The mask m is 1, or weighs cells by whether A has a feature there.

On surround views, BEVDepth as student and assistant, nothing was released but numbers, so all of it is inferred here:
T is a CenterPoint's map (``teacher_tap``) of as many channels as the student collapses its frames to, the assistant
lifts by the LiDAR's depth in each camera, and responses are CMKD's for centre heads (``CENTRE_RESPONSE``).  With
BEVFormer as student the assistant is such a BEVDepth, too, whose map on the student's cells is A; V, which a layer norm
scales, meets A ``adapted``, and there are no responses, for queries have no map of answers (``QUERIES``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from distill3d.data.sample import Batch
from distill3d.data.surround import SurroundBatch
from distill3d.distill.context import Context, comparable
from distill3d.distill.distances import weighted_mean
from distill3d.distill.map_terms import adapter_of, as_compared, held_back
from distill3d.distill.methods.cmkd import ResponseConfig, cell_weight, response_terms
from distill3d.distill.precision import full_precision
from distill3d.distill.style import option
from distill3d.distill.term import Term
from distill3d.settings import Share, Weight, added

#: Smallest range that a map is divided by.
RANGE_EPS = 1e-12

Normalise = Literal["none", "minmax"]
ResidualMode = Literal["abs", "signed"]
ResidualForm = Literal["zero_below", "binarise", "none"]


@dataclass(frozen=True)
class MonoTAKDConfig(ResponseConfig):
    """Weights and taps, and one option for each point where released code and intention differ.

    A term of weight 0 is left out.
    """

    teacher: str | None = "teacher"
    assistant: str = "assistant"  # its stage
    spatial_tap: str = "bev_spatial"  # P
    assistant_tap: str = "bev_assistant"  # A where the student computes it
    assistant_map: str | None = added(None)  # A's tap in a network of its own; None: ``tap``

    imd_weight: Weight = option(released=1.0, intended=1.0, default=1.0)
    cmrd_weight: Weight = option(released=0.2, intended=1.0, default=0.2)
    outer_weight: Weight = 1.0  # of both; the released configs ask for 32, the released code does not apply it
    nonzero_weighting: bool = False  # cells where A has no feature count less, see ``cell_weight``
    threshold: Share = 0.6  # of the largest residual

    #: A comes from the student's own tap, features shared and projection untrained, not from a network of its own.
    shared_assistant: bool = option(released=True, intended=False, default=False)
    #: Whether L_IMD teaches V.
    imd_gradient: bool = option(released=False, intended=True, default=True)
    #: ``minmax``: V and A, but not F_T, are scaled to 0..1 over the whole batch.
    normalise: Normalise = option(released="minmax", intended="none", default="none")
    #: ``signed``: only what the teacher has more than the assistant can pass a threshold.
    residual: ResidualMode = option(released="abs", intended="abs", default="abs")
    #: What becomes of residuals: 0 below the threshold; also 1 above it; all kept.
    residual_form: ResidualForm = option(released="zero_below", intended="zero_below", default="zero_below")


#: The settings with a student of queries, whose assistant has another network.
QUERIES: dict[str, Any] = {"compared": "adapted", "cls_weight": 0.0, "loc_weight": 0.0, "dir_weight": 0.0}


def terms(config: MonoTAKDConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """IMD, CMRD and CMKD's response terms; what fits is seen on the first batch, see ``comparable``.

    Raises:
        UserError: as CMKD's ``response_terms``.
    """
    imd = IMDTerm(config, adapter_of(config, config.tap, student_channels))
    return [term for term in (imd, CMRDTerm(config), *response_terms(config)) if term.weight != 0]


class IMDTerm(Term):
    """L_IMD, intra-modal: see ``imd_loss``; V and A as ``compared`` says.  Frames without depth are left out, for there
    A knows nothing; 0 where no frame has any.

    Couples the batch: range and mean are those of all frames with depth of this process.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: MonoTAKDConfig, adapter: nn.Module | None = None) -> None:
        super().__init__("imd", config.outer_weight * config.imd_weight)
        self.config = config
        self.adapter = adapter

    def forward(self, context: Context) -> Tensor:
        config, known = self.config, frames_with_depth(context.batch)
        student, assistant = with_assistant(context, config.tap, config)
        visual, assistant = of_frames(known, student if config.imd_gradient else student.detach(), assistant)
        if len(visual) == 0:
            return visual.sum().float()
        maps = as_compared(visual, assistant, config, self.adapter)
        seen = assistant if config.nonzero_weighting and config.compared != "raw" else None
        loss = imd_loss(*maps, config.normalise, config.nonzero_weighting, seen).float()
        return held_back(loss, self.weight, student, context, config)


class CMRDTerm(Term):
    """L_CMRD, cross-modal: see ``cmrd_loss``.  Frames without depth are left out; 0 where no frame has any.

    Couples the batch: range, threshold and mean are those of all frames with depth of this process.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: MonoTAKDConfig) -> None:
        super().__init__("cmrd", config.outer_weight * config.cmrd_weight)
        self.config = config

    def forward(self, context: Context) -> Tensor:
        config, known = self.config, frames_with_depth(context.batch)
        student, assistant = with_assistant(context, config.spatial_tap, config)
        named, tap = context.named(config.teacher), config.teacher_tap or config.tap
        _, teacher = comparable(config.spatial_tap, context.student, named, tap)
        spatial, teacher, assistant = of_frames(known, student, teacher.tensor.detach(), assistant)
        if len(spatial) == 0:
            return spatial.sum().float()
        # P is read by no head, or by a fusion that begins at nothing: there is no gradient to measure by.
        return held_back(cmrd_loss(spatial, teacher, assistant, config).float(), self.weight, None, context, config)


def frames_with_depth(batch: Batch | SurroundBatch) -> Bool[Tensor, "b"]:
    """Which frames have a known pixel in their depth map, or of surround views in that of any camera; none where the
    batch has no depth maps."""
    if batch.depth is None:
        device = batch.intrinsics.device if isinstance(batch, SurroundBatch) else batch.image.device
        return torch.zeros(len(batch), dtype=torch.bool, device=device)
    return (batch.depth > 0).flatten(1).any(1)


def of_frames(known: Bool[Tensor, "b"], *maps: Float[Tensor, "b c y x"]) -> list[Float[Tensor, "_ c y x"]]:
    """The maps of the frames that are known; of all frames, as is usual, they are not copied: on a CPU that and its
    gradient would be a quarter of the terms' time."""
    return list(maps) if bool(known.all()) else [each[known] for each in maps]


def with_assistant(context: Context, tap: str, config: MonoTAKDConfig) -> tuple[Tensor, Tensor]:
    """The student's ``tap`` and F_A, detached, both (B, C, Y, X).

    Raises:
        UserError: no teacher has the assistant's name.
        ValueError: a tap is missing, or the two are not comparable.
    """
    if config.shared_assistant:
        source, source_tap, who = context.student, config.assistant_tap, "student's own assistant"
    else:
        source, source_tap = context.named(config.assistant), config.assistant_map or config.tap
        who = "assistant"
    student, assistant = comparable(tap, context.student, source, source_tap, who)
    return student.tensor, assistant.tensor.detach()


@full_precision
def imd_loss(
    student: Float[Tensor, "b c y x"],
    assistant: Float[Tensor, "b c y x"],
    normalise: Normalise = "none",
    nonzero_weighting: bool = False,
    seen: Float[Tensor, "b c y x"] | None = None,
) -> Float[Tensor, ""]:
    """sum m (V - A)^2 / (C sum m) over all cells of the batch, m from ``cell_weight`` of ``seen``, by default A."""
    v, a = normalised(student, normalise), normalised(assistant, normalise)
    return weighted_mean((v - a).square(), cell_weight(a if seen is None else seen, nonzero_weighting))


@full_precision
def cmrd_loss(
    spatial: Float[Tensor, "b c y x"],
    teacher: Float[Tensor, "b c y x"],
    assistant: Float[Tensor, "b c y x"],
    config: MonoTAKDConfig,
) -> Float[Tensor, ""]:
    """sum m (P - R)^2 / (C sum m) over all cells of the batch, R from ``residual``, m from ``cell_weight`` of A."""
    a = normalised(assistant, config.normalise)
    error = (spatial - residual(teacher, a, config)).square()
    return weighted_mean(error, cell_weight(a, config.nonzero_weighting))


def normalised(maps: Float[Tensor, "b c y x"], normalise: Normalise) -> Float[Tensor, "b c y x"]:
    """``minmax``: (t - min) / (max - min) over the whole tensor, 0..1, 0 for a constant one; else the maps themselves.

    Minimum and range pass no gradient.
    """
    if normalise == "none":
        return maps
    shifted = maps - maps.detach().amin()
    return shifted / shifted.detach().amax().clamp_min(RANGE_EPS)


def residual(
    teacher: Float[Tensor, "b c y x"], assistant: Float[Tensor, "b c y x"], config: MonoTAKDConfig
) -> Float[Tensor, "b c y x"]:
    """R = |T - A| or T - A; entries below ``threshold`` times the largest one of the whole tensor become 0, those equal
    to it are kept, as they are or, with ``binarise``, as 1."""
    difference = teacher - assistant
    values = difference.abs() if config.residual == "abs" else difference
    if config.residual_form == "none":
        return values
    kept = (values >= config.threshold * values.detach().amax()) & (values > 0)
    return kept.to(values.dtype) if config.residual_form == "binarise" else torch.where(kept, values, 0)
