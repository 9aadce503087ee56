"""SGM3D: a camera student on the ground imitates a point-cloud detector's map, class scores and boxes, beside labels.

Zhou et al., "SGM3D: Stereo Guided Monocular 3D Object Detection", RA-L 2022, arXiv:2112.01914; released code
zhouzheyuan/sgm3d (commit 397bff28), pcdet/models/dense_heads/anchor_head_single_sgm.py.  Student and teacher have one
2D network and one anchor head of a form; the paper's teacher is a PointPillars on points of a stereo pair's depth,
which is a LiDAR's stand-in.  Everything here is for training only.

    L = L_detection + 0.1 L_feature + 1 L_anchor + 0.01 L_object

    L_feature   sum over cells with a foreground anchor of  w mean_c (S - T)^2 / 2, of the map that both heads read
    L_anchor    2 mean of KL(T || S) over foreground entries + 0.1 mean over all others, entry: an anchor's class
    L_object    boxes that the student is sure of, each against the teacher's nearest one that overlaps it well:
                smooth L1 of boxes and of scores, squared difference of the direction's probabilities

As released, the distributions of L_anchor run over the map's 10^5 anchors and not over what an anchor may be; w counts
the cells of a map's column; boxes are summed over pairs where scores and directions are averaged; and the teacher, in
training mode and not frozen, is pulled towards the student without a label.  The last does not happen here in any
style: a teacher is frozen, though its batch norm follows ``teacher_bn``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill3d.detectors.anchor_outputs import HEAD_TAP
from distill3d.distill.anchor_responses import anchor_predictions
from distill3d.distill.context import Context, comparable, refuse_absent_taps
from distill3d.distill.distances import kl_divergence, weighted_mean
from distill3d.distill.precision import full_precision
from distill3d.distill.style import StyledConfig, option
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.layers.ground.rotated import overlapping_pairs
from distill3d.layers.heads.anchor_head import AnchorHead, AnchorTargets
from distill3d.layers.heads.anchors import BACKGROUND, best_of, decode_directed, sine_difference, smooth_l1
from distill3d.settings import Share, Weight

#: Least number that the weight of cells is divided by, as released.
RELEASED_FLOOR = 10

#: The map that every detector with an anchor head on the ground offers.
GROUND_TAP = "bev"

#: What the weight of a cell is the inverse of: the foreground cells of its column of the map (along y), at least
#: ``RELEASED_FLOOR``; or of its image.
CellCount = Literal["column", "image"]
#: What L_anchor's distributions run over: an image's anchors; an anchor's classes; or, as heads that are trained by
#: sigmoids mean their scores, each class of an anchor against its absence.
ScoreAxis = Literal["anchors", "classes", "presence"]


@dataclass(frozen=True)
class SGM3DConfig(StyledConfig):
    """Weights of the released config, and one option for each point where released code and intention differ.

    A term of weight 0 is left out.
    """

    feature_weight: Weight = 0.1
    anchor_weight: Weight = 1.0
    object_weight: Weight = 0.01
    foreground_weight: Weight = 2.0  # within L_anchor
    background_weight: Weight = 0.1
    least_score: Share = 0.4  # of either side's boxes in L_object; more than this
    least_overlap: Share = 0.8  # IoU on the ground of a pair; more than this
    tap: str = HEAD_TAP
    teacher_tap: str | None = None  # what it is compared to in the teacher; None: the tap of the same name
    teacher: str | None = None  # its stage; None: the only one

    cell_count: CellCount = option(released="column", intended="image", default="image")
    score_axis: ScoreAxis = option(released="anchors", intended="presence", default="presence")
    #: How the smooth L1 of boxes is reduced over an image's pairs.
    box_reduction: Literal["sum", "mean"] = option(released="sum", intended="mean", default="mean")
    #: Teacher's batch norm; for the train loop.
    teacher_bn: Literal["eval", "train"] = option(released="train", intended="eval", default="eval")


def terms(config: SGM3DConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """The feature, anchor and object terms; whether maps and heads fit is seen on the first batch.

    Raises:
        UserError: student or teacher lacks the tap, for which their heads must offer it.
    """
    if config.feature_weight != 0:
        taps, teacher_taps = (config.tap,), (config.teacher_tap or config.tap,)
        refuse_absent_taps("sgm3d (head.offers_map)", taps, teacher_taps, student_channels, teacher_channels)
    all_terms = [FeatureTerm(config), AnchorTerm(config), ObjectTerm(config)]
    return [term for term in all_terms if term.weight != 0]


class FeatureTerm(Term):
    """L_feature, see ``feature_loss``; a mean over images."""

    def __init__(self, config: SGM3DConfig) -> None:
        super().__init__("feature", config.feature_weight)
        self.config = config

    def forward(self, context: Context) -> Tensor:
        config = self.config
        student, teacher = comparable(config.tap, context.student, context.named(config.teacher), config.teacher_tap)
        labels = anchor_targets(context).labels
        cells = student.tensor.shape[-2:]
        if labels.shape[1] % cells.numel():
            raise UserError(
                f"sgm3d: the map {config.tap!r} of {cells[0]} x {cells[1]} cells is not the one whose cells the "
                f"student's {labels.shape[1]} anchors stand in"
            )
        used = (labels > BACKGROUND).unflatten(1, (*cells, -1)).any(-1)
        return feature_loss(student.tensor, teacher.tensor.detach(), used, config.cell_count).float()


class AnchorTerm(Term):
    """L_anchor, see ``anchor_loss``.  Couples the batch: means over the entries of all images of this process, so that
    averaged over processes those with fewer foreground anchors count as much as those with more."""

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: SGM3DConfig) -> None:
        super().__init__("anchor", config.anchor_weight)
        self.config = config

    def forward(self, context: Context) -> Tensor:
        student, teacher = both_heads(context, self.config)
        return anchor_loss(student["cls"], teacher["cls"], anchor_targets(context).labels, self.config).float()


class ObjectTerm(Term):
    """L_object, see ``object_losses``; a mean over images."""

    def __init__(self, config: SGM3DConfig) -> None:
        super().__init__("object", config.object_weight)
        self.config = config

    def forward(self, context: Context) -> Tensor:
        student, teacher = both_heads(context, self.config)
        head = getattr(context.student_detector, "head", None)
        assert isinstance(head, AnchorHead)  # whose maps these are
        anchors = head.anchors.flatten(0, 3)
        sides = [{"cls": side["cls"], "dir": side["dir"], "box": boxes(side, anchors)} for side in (student, teacher)]
        parts = object_losses(sides[0], sides[1], self.config)
        return torch.stack(list(parts.values())).sum().float()


def both_heads(context: Context, config: SGM3DConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``anchor_predictions`` of student and teacher; without L_feature neither has to offer the taps."""
    taps = (config.tap, config.teacher_tap or config.tap)
    sides = (context.student, context.named(config.teacher))
    if config.feature_weight == 0 and any(t not in side.features for t, side in zip(taps, sides, strict=True)):
        taps = (GROUND_TAP, GROUND_TAP)
    instead = "set anchor_weight and object_weight to 0"
    return anchor_predictions(context, config.teacher, *taps, instead)


def anchor_targets(context: Context) -> AnchorTargets:
    """What the student's anchors are to learn.

    Raises:
        UserError: the student's head learns from no label.
    """
    found = getattr(context.targets, "anchors", context.targets)
    if not isinstance(found, AnchorTargets):
        raise UserError(
            "sgm3d looks at the labels of anchors: it needs a student with an anchor head whose detection_weight is "
            "above 0"
        )
    return found


@full_precision
def boxes(side: dict[str, Float[Tensor, "b n _"]], anchors: Float[Tensor, "n 7"]) -> Float[Tensor, "b n 7"]:
    """The boxes (m, rad; LiDAR frame) of a side's codes "box", turned into the likelier direction of "dir"."""
    return decode_directed(side["box"], side["dir"], anchors)


@full_precision
def feature_loss(
    student: Float[Tensor, "b c y x"],
    teacher: Float[Tensor, "b c y x"],
    used: Bool[Tensor, "b y x"],
    count: CellCount = "image",
) -> Float[Tensor, ""]:
    """sum over ``used`` cells of  w mean_c (S - T)^2 / 2, divided by the number of images; 0 where no cell is used.

    w = 1 / max(1, n) with n the image's used cells; by ``column`` 1 / max(10, n), n those of the cell's column.
    """
    error = (student - teacher).square().mean(1) / 2
    if count == "column":
        cells = used.sum(1, keepdim=True).clamp(min=RELEASED_FLOOR)
    else:
        cells = used.sum((1, 2), keepdim=True).clamp(min=1)
    return torch.where(used, error, 0).div(cells).sum() / len(student)


@full_precision
def anchor_loss(
    student: Float[Tensor, "b n k"], teacher: Float[Tensor, "b n k"], labels: Int[Tensor, "b n"], config: SGM3DConfig
) -> Float[Tensor, ""]:
    """f mean of d over the entries (anchor, class) whose anchor is labelled with the class + g mean over all others,
    ignored anchors among them; f, g: ``foreground_weight``, ``background_weight``.  The mean over no entry is 0.  With
    a softmax single entries, and so either mean, may be negative.

    From logits, p and q of student and teacher: d = q (log q - log p) with softmaxes over ``anchors`` or ``classes``;
    of ``presence`` d = q (log q - log p) + (1 - q) (log (1 - q) - log (1 - p)) with sigmoids.
    """
    if config.score_axis == "anchors":
        divergence = kl_divergence(student.transpose(1, 2), teacher.transpose(1, 2)).transpose(1, 2)
    elif config.score_axis == "classes":
        divergence = kl_divergence(student, teacher)
    else:  # a softmax over the logit and 0 is a sigmoid
        pair = (torch.stack((logits, torch.zeros_like(logits)), dim=-1) for logits in (student, teacher))
        divergence = kl_divergence(*pair).sum(-1)
    number = torch.arange(1, student.shape[-1] + 1, device=labels.device)
    foreground = labels[..., None] == number
    return config.foreground_weight * weighted_mean(divergence, foreground) + (
        config.background_weight * weighted_mean(divergence, ~foreground)
    )


@full_precision
def object_losses(
    student: dict[str, Float[Tensor, "b n _"]], teacher: dict[str, Float[Tensor, "b n _"]], config: SGM3DConfig
) -> dict[str, Float[Tensor, ""]]:
    """The parts of L_object over the pairs of ``matched``, each summed over images and divided by their number.

    Sides hold logits ``cls`` (B, N, K) and ``dir`` (B, N, 2) and boxes ``box`` (B, N, 7).  ``box``: smooth L1 (beta
    1/9) of the seven differences, of the yaw its sine, summed; the mean or sum over an image's pairs.  ``cls``: smooth
    L1 of the sigmoids, mean over pairs and classes.  ``dir``: (difference of softmaxes)^2, mean over pairs and bins.
    0 in images without pairs.  Who is paired with whom passes no gradient.
    """
    image, of_student, of_teacher = matched(student, teacher, config)
    s = {name: value[image, of_student] for name, value in student.items()}
    t = {name: value[image, of_teacher] for name, value in teacher.items()}
    parts = {
        "box": smooth_l1(sine_difference(s["box"], t["box"])).sum(-1),
        "cls": smooth_l1(s["cls"].sigmoid() - t["cls"].sigmoid()).mean(-1),
        "dir": (s["dir"].softmax(-1) - t["dir"].softmax(-1)).square().mean(-1),
    }
    images = len(student["cls"])
    pairs = image.new_zeros(images).index_add(0, image, torch.ones_like(image))
    share = (pairs[image] * images).to(s["cls"]).reciprocal()
    summed = {"box"} if config.box_reduction == "sum" else set()
    return {name: (part / images if name in summed else part * share).sum() for name, part in parts.items()}


@torch.no_grad()
def matched(
    student: dict[str, Float[Tensor, "b n _"]], teacher: dict[str, Float[Tensor, "b n _"]], config: SGM3DConfig
) -> tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"], Int[Tensor, "pairs"]]:
    """Image, student's and teacher's anchor of every pair, in the order of the first two.

    Boxes whose best class is likelier than ``least_score`` take part.  A student's box goes with the teacher's box of
    the same image that has the largest overlap on the ground with it, the first of equal ones, if that exceeds
    ``least_overlap``; several may go with one.
    """
    sides = (student, teacher)
    sure = [(side["cls"].amax(-1).sigmoid() > config.least_score).nonzero() for side in sides]
    rows = [side["box"].detach()[found[:, 0], found[:, 1]] for side, found in zip(sides, sure, strict=True)]
    first, second, overlap = overlapping_pairs(rows[0], rows[1], volume=False)
    near = (sure[0][first, 0] == sure[1][second, 0]) & (overlap > config.least_overlap)
    first, second, overlap = first[near], second[near], overlap[near]
    best, partner = best_of(overlap, second, first, len(rows[0]))
    paired = (best > 0).nonzero()[:, 0]
    return sure[0][paired, 0], sure[0][paired, 1], sure[1][partner[paired], 1]
