"""CMKD: a camera student whose BEV map and anchor responses imitate a LiDAR detector's; no label is looked at.

CMKD, ECCV 2022; released code Cc-Hy/CMKD, pcdet/models/detectors/cmkd.py (get_training_loss), pcdet/models/dense_heads/
anchor_head_single_cmkd_v2.py and pcdet/utils/loss_utils.py.  Everything here is for training only; what CMKD changes in
the student, its domain adaptation, is the detector's.

    L = 32 L_bev + 2 L_cls + 2 L_loc + 0.4 L_dir [+ the detector's own L_depth]

Nothing is normalised or projected: the student's map must meet the teacher's in scale.  With a PointPillars teacher the
weights are 4 (32 where frames of KITTI raw are added), 1, 2 and 0.2.

With a CenterPoint teacher (pcdet/models/dense_heads/center_head_soft.py) L_cls and L_loc compare centre heads, see
distill/centre_responses.py; weights are ``CENTRE_RESPONSE``'s, and the student learns from labels as well.  The form
for several cameras (Cc-Hy/CMKD-MV, mmdet3d/models/detectors/bevdet.py, CMKD_BEVDet) has responses of its own, weights
``SURROUND_RESPONSE`` and 50 for L_bev, and keeps the labels, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from distill3d.detectors.base import BevGeometry
from distill3d.distill.anchor_responses import anchor_predictions
from distill3d.distill.centre_responses import (
    BoxMean,
    BoxWeight,
    SoftFocal,
    centre_box_loss,
    centre_class_loss,
    centre_predictions,
    surround_box_loss,
    surround_class_loss,
)
from distill3d.distill.context import Context, comparable
from distill3d.distill.distances import weighted_mean
from distill3d.distill.map_terms import MapTermConfig, adapter_of, as_compared, held_back, occupied
from distill3d.distill.precision import full_precision
from distill3d.distill.style import UnlabelledUse, option
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.layers.heads.anchors import quality_focal, sine_difference, smooth_l1
from distill3d.layers.heads.centre_head import CentreHeadConfig
from distill3d.settings import Share, Weight, added

#: Weight of empty cells where occupied ones are weighted (``use_nonzero_mask``).
BACKGROUND_WEIGHT = 0.05
#: Maps whose mean is at most this are not divided by it.
MEAN_EPS = 1e-12
#: The settings of the response terms with which CMKD compares centre heads.
CENTRE_RESPONSE: dict[str, Any] = {"response": "centres", "cls_weight": 1.0, "loc_weight": 4.0, "dir_weight": 0.0}
#: The same for surround views (CMKD-MV).
SURROUND_RESPONSE: dict[str, Any] = {
    "response": "surround", "cls_weight": 0.2, "loc_weight": 50.0, "dir_weight": 0.0, "centre_positive": 0.5,
}  # fmt: skip

FeatureForm = Literal["l2", "sum"]


@dataclass(frozen=True)
class ResponseConfig(MapTermConfig):
    """What the heads of student and teacher are compared by.  A term of weight 0 is left out."""

    unlabelled: ClassVar[UnlabelledUse] = "as_is"

    #: What both heads are; ``centres`` asks for weights as in ``CENTRE_RESPONSE``, ``surround``, which are centre heads
    #: too, for those of ``SURROUND_RESPONSE``.
    response: Literal["anchors", "centres", "surround"] = "anchors"
    cls_weight: Weight = 2.0
    loc_weight: Weight = 2.0
    dir_weight: Weight = 0.4
    #: The teacher's probability above which an anchor counts as an object; of centres, above which a cell's box counts.
    positive: Share = 0.1
    centre_positive: Share = 0.3  # of centres: above which a cell counts in the divisor of L_cls
    tap: str = "bev"
    teacher_tap: str | None = None  # what it is compared to in the teacher; None: the tap of the same name
    teacher: str | None = None  # its stage; None: the only one
    #: Whether L_cls of anchors is divided by the images of this process, as L_loc and L_dir are.
    cls_over_batch: bool = option(released=False, intended=True, default=False)
    #: Teacher's batch norm; for the train loop.
    teacher_bn: Literal["eval", "train"] = option(released="eval", intended="eval", default="eval")
    # of ``surround``, see ``surround_class_loss`` and ``surround_box_loss``:
    soft_focal: SoftFocal = option(released="logits", intended="probabilities", default="probabilities", added=True)
    box_weight: BoxWeight = option(released="of_sum", intended="probability", default="probability", added=True)
    #: The published weight, 50, goes with the mean over all cells.
    box_mean: BoxMean = option(released="cells", intended="positives", default="cells", added=True)


@dataclass(frozen=True)
class CMKDConfig(ResponseConfig):
    """Weights of the released configs with a SECOND teacher, and one option for each point where code and intention
    differ."""

    feature_weight: Weight = 32.0
    #: ``sum``: means over channels are compared, each side divided by its own mean over the whole batch.
    feature_form: FeatureForm = "l2"
    #: Cells where the teacher has no feature count ``BACKGROUND_WEIGHT``; has no effect on ``sum``.
    nonzero_weighting: bool = option(released=False, intended=True, default=False)
    #: Only cells with points of the scan count (ODM3D), whatever ``nonzero_weighting``; has no effect on ``sum``.
    occupied_only: bool = added(False)


def terms(config: CMKDConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """The feature term and the response terms; what fits is seen on the first batch, see ``comparable``.

    Raises:
        UserError: as ``response_terms``.
    """
    adapter = adapter_of(config, config.tap, student_channels)
    return [term for term in (FeatureTerm(config, adapter), *response_terms(config)) if term.weight != 0]


def response_terms(config: ResponseConfig) -> list[Term]:
    """L_cls, L_loc and L_dir, as far as their weights are not 0.

    Raises:
        UserError: directions are to be compared between centre heads.
    """
    if config.response != "anchors":
        if config.dir_weight != 0:
            published = CENTRE_RESPONSE if config.response == "centres" else SURROUND_RESPONSE
            raise UserError(
                f"centre heads have no classes of direction: with response {config.response!r} dir_weight must be 0, "
                f"not {config.dir_weight}; published weights are cls_weight {published['cls_weight']} and loc_weight "
                f"{published['loc_weight']}"
            )
        all_terms = [CentreClassResponseTerm(config), CentreBoxResponseTerm(config)]
    else:
        all_terms = [ClassResponseTerm(config), BoxResponseTerm(config), DirectionResponseTerm(config)]
    return [term for term in all_terms if term.weight != 0]


class FeatureTerm(Term):
    """L_bev, see ``feature_loss``.  Couples the batch where cells are weighted and in form ``sum``: weights and means
    are those of all images of this process."""

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: CMKDConfig, adapter: nn.Module | None = None) -> None:
        super().__init__("bev", config.feature_weight)
        self.config = config
        self.adapter = adapter

    def forward(self, context: Context) -> Tensor:
        config = self.config
        student, teacher = comparable(config.tap, context.student, context.named(config.teacher), config.teacher_tap)
        s, t = student.tensor, teacher.tensor.detach()
        if config.occupied_only:
            assert isinstance(student.geometry, BevGeometry)
            weight = occupied(context.batch, student.geometry)
        else:
            weight = cell_weight(t, config.nonzero_weighting)
        loss = feature_loss(*as_compared(s, t, config, self.adapter), config.feature_form, weight).float()
        return held_back(loss, self.weight, student.tensor, context, config)


class ClassResponseTerm(Term):
    """L_cls, see ``class_loss``.  Couples the batch: a sum over images, so that averaged over N processes it is one Nth
    of what a single one sees; with ``cls_over_batch`` a mean that does not."""

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: ResponseConfig) -> None:
        super().__init__("response_cls", config.cls_weight)
        self.config = config

    def forward(self, context: Context) -> Tensor:
        student, teacher = anchor_rows(context, self.config)
        return class_loss(student["cls"], teacher["cls"], self.config.positive, self.config.cls_over_batch).float()


class BoxResponseTerm(Term):
    """L_loc, see ``box_loss``; a mean over images."""

    def __init__(self, config: ResponseConfig) -> None:
        super().__init__("response_loc", config.loc_weight)
        self.config = config

    def forward(self, context: Context) -> Tensor:
        student, teacher = anchor_rows(context, self.config)
        return box_loss(student["box"], teacher["box"], teacher["cls"], self.config.positive).float()


class DirectionResponseTerm(Term):
    """L_dir, see ``direction_loss``; a mean over images."""

    def __init__(self, config: ResponseConfig) -> None:
        super().__init__("response_dir", config.dir_weight)
        self.config = config

    def forward(self, context: Context) -> Tensor:
        student, teacher = anchor_rows(context, self.config)
        return direction_loss(student["dir"], teacher["dir"], teacher["cls"], self.config.positive).float()


class CentreClassResponseTerm(Term):
    """L_cls of centre heads, see ``centre_class_loss``.  Couples the batch: a sum over its cells divided by its number
    of those that the teacher is sure of, both of this process."""

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: ResponseConfig) -> None:
        super().__init__("response_cls", config.cls_weight)
        self.config = config

    def forward(self, context: Context) -> Tensor:
        config = self.config
        student, teacher, head = centre_sides(context, config)
        said, taught = student["heatmap"], teacher["heatmap"]
        if config.response == "surround":
            return surround_class_loss(said, taught, head, config.centre_positive, config.soft_focal).float()
        return centre_class_loss(said, taught, head, config.centre_positive).float()


class CentreBoxResponseTerm(Term):
    """L_loc of centre heads, see ``centre_box_loss``.  Couples the batch: a mean over those of its cells, in this
    process, where the teacher sees something."""

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: ResponseConfig) -> None:
        super().__init__("response_loc", config.loc_weight)
        self.config = config

    def forward(self, context: Context) -> Tensor:
        config = self.config
        student, teacher, head = centre_sides(context, config)
        maps = (student["box"], teacher["box"], teacher["heatmap"])
        if config.response == "surround":
            return surround_box_loss(*maps, head, config.positive, config.box_weight, config.box_mean).float()
        return centre_box_loss(*maps, head, config.positive).float()


def centre_sides(
    context: Context, config: ResponseConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor], CentreHeadConfig]:
    """``centre_predictions`` of student and teacher."""
    instead = "set response to 'anchors'"
    return centre_predictions(context, config.teacher, config.tap, config.teacher_tap, instead)


def anchor_rows(context: Context, config: ResponseConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``anchor_predictions`` of student and teacher."""
    instead = "set cls_weight, loc_weight and dir_weight to 0"
    return anchor_predictions(context, config.teacher, config.tap, config.teacher_tap, instead)


@full_precision
def feature_loss(
    student: Float[Tensor, "b c y x"],
    teacher: Float[Tensor, "b c y x"],
    form: FeatureForm = "l2",
    weight: Tensor | None = None,
) -> Float[Tensor, ""]:
    """Squared difference of two BEV maps.

    ``l2``: sum m (S - T)^2 / (C sum m) over all cells of the batch, m the ``weight`` (B, 1, Y, X), 1 where None.
    ``sum``: mean over cells of (mean_c S / mean S - mean_c T / mean T)^2; the overall means pass no gradient.
    """
    if form == "l2":
        return weighted_mean((student - teacher).square(), student.new_ones(()) if weight is None else weight)
    s, t = (maps.mean(1) / _divisor(maps.detach().mean()) for maps in (student, teacher))
    return F.mse_loss(s, t)


def _divisor(mean: Float[Tensor, ""]) -> Float[Tensor, ""]:
    return torch.where(mean.abs() > MEAN_EPS, mean, 1)


def cell_weight(reference: Float[Tensor, "b c y x"], nonzero_weighting: bool) -> Float[Tensor, "b 1 y x"]:
    """1, or with weighting ``BACKGROUND_WEIGHT`` where the channels of ``reference`` sum to 0: in maps after a ReLU,
    cells without a feature."""
    channel_sum = reference.detach().sum(1, keepdim=True)
    weight = torch.ones_like(channel_sum)
    return torch.where(channel_sum != 0, weight, BACKGROUND_WEIGHT) if nonzero_weighting else weight


@full_precision
def class_loss(
    student: Float[Tensor, "b n k"], teacher: Float[Tensor, "b n k"], positive: float, over_batch: bool = False
) -> Float[Tensor, ""]:
    """sum_b,n,k quality_focal(S, t) / n_b,k  with t = sigmoid(T) and n_b,k = #{n: t > ``positive``}, at least 1.

    n per n anchors of image b and class k, from logits; a sum over images, ``over_batch`` a mean.
    """
    target = teacher.sigmoid()
    count = (target > positive).sum(1, keepdim=True).clamp_min(1)
    total = (quality_focal(student, target) / count).sum()
    return total / len(student) if over_batch else total


@full_precision
def box_loss(
    student: Float[Tensor, "b n 7"],
    teacher: Float[Tensor, "b n 7"],
    teacher_cls: Float[Tensor, "b n k"],
    positive: float,
) -> Float[Tensor, ""]:
    """sum_n w_n sum_7 smooth_l1(sine_difference(S, T)), mean over images; w from ``anchor_weight``, raw codes."""
    error = smooth_l1(sine_difference(student, teacher)).sum(-1)
    return (anchor_weight(teacher_cls, positive) * error).sum(1).mean()


@full_precision
def direction_loss(
    student: Float[Tensor, "b n bins"],
    teacher: Float[Tensor, "b n bins"],
    teacher_cls: Float[Tensor, "b n k"],
    positive: float,
) -> Float[Tensor, ""]:
    """sum_n w_n CE(S, argmax T), mean over images; w from ``anchor_weight``, logits, the first bin where they tie."""
    error = F.cross_entropy(student.transpose(1, 2), teacher.argmax(-1), reduction="none")
    return (anchor_weight(teacher_cls, positive) * error).sum(1).mean()


def anchor_weight(teacher_cls: Float[Tensor, "b n k"], positive: float) -> Float[Tensor, "b n"]:
    """w_n = 1[q_n > ``positive``] q_n / #{q > ``positive``} with q = sum_k sigmoid(T), which may exceed 1; the count is
    the image's, at least 1."""
    confidence = teacher_cls.sigmoid().sum(-1)
    kept = confidence > positive
    return torch.where(kept, confidence, 0) / kept.sum(1, keepdim=True).clamp_min(1)
