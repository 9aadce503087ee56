"""In the manner of X3KD: a camera student imitates a LiDAR teacher's map, is not to be told from it, and its boxes.

X3KD, CVPR 2023, arXiv:2303.02203.  No code was released, and this file is built from abstracts of the paper alone: that
there are these terms is stated there; their distances, where they stand in the network, the discriminator and every
weight and threshold are inferred or our own, and no number of the paper is claimed.

    L = L_det + L_depth + L_feature + L_adversary + L_response, each by a weight of its own
    X-FD  L_feature   = mean over moments, cells and channels of |a(S) - T|, or its square
    X-AT  L_adversary = (BCE(D(r(a'(S))), 0) + BCE(D(T), 1)) / 2, means over moments and parts of the map
    X-OD  L_response  = the class and box terms of CMKD's centre heads, where the teacher is surer than ``threshold``:
                        sum |p - t|^2 BCE(p, t) / max(1, #{t > threshold})
                        + box_weight mean_{q > threshold} q sum smooth_l1(boxes),   see ``centre_responses``

S and T are ground maps; a and a' 1x1 convolutions, D the discriminator, all for training only; r reverses gradients, so
that D learns to tell the maps apart and a' and the student learn that it cannot.  In X-OD p and t are probabilities of
student and teacher, t counts as 0 up to the threshold, and q is the sum of the teacher's over a task's classes.

Left out is the paper's fourth part, X-IS: instance segmentation in the images, learnt from pseudo-labels.  Batches of
surround views hold no such masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from distill3d.detectors.base import FeatureMap
from distill3d.distill.adapters import MapAdaptor
from distill3d.distill.adversary import MapDiscriminator, gradient_reversed, told_apart
from distill3d.distill.centre_responses import centre_box_loss, centre_class_loss, centre_predictions
from distill3d.distill.context import Context, refuse_absent_taps, same_grid
from distill3d.distill.precision import full_precision
from distill3d.distill.style import StyledConfig, UnlabelledUse
from distill3d.distill.term import Term
from distill3d.settings import Channels, Share, Weight

FeatureDistance = Literal["l1", "l2"]


@dataclass(frozen=True)
class X3KDConfig(StyledConfig):
    """Weights, which nobody published, and where the terms stand.  A term of weight 0 is left out."""

    unlabelled: ClassVar[UnlabelledUse] = "as_is"

    teacher: str | None = None  # its stage; None: the only one
    feature_weight: Weight = 1.0
    adversary_weight: Weight = 1.0
    response_weight: Weight = 1.0
    box_weight: Weight = 1.0  # of boxes, within the response
    tap: str = "bev_neck"
    teacher_tap: str | None = None  # None: the tap of the same name
    distance: FeatureDistance = "l1"
    discriminator_channels: Channels = 64
    #: By how much the student climbs where the discriminator goes down.
    reversal: Weight = 1.0
    threshold: Share = 0.3  # the teacher's probability above which a cell counts as an object


def terms(config: X3KDConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """The terms whose weights are not 0.

    Raises:
        UserError: a tap is missing.
    """
    other = config.teacher_tap or config.tap
    refuse_absent_taps("x3kd", (config.tap,), (other,), student_channels, teacher_channels)
    widths = student_channels[config.tap], teacher_channels[other]
    found: list[Term] = []
    if config.feature_weight != 0:
        found.append(FeatureTerm(config, *widths))
    if config.adversary_weight != 0:
        found.append(AdversaryTerm(config, *widths))
    if config.response_weight != 0:
        found.append(ResponseTerm(config))
    return found


def _maps(context: Context, config: X3KDConfig, adaptor: MapAdaptor) -> tuple[Tensor, Tensor]:
    """The adapted student's map and the teacher's, detached."""
    student, teacher = _taps(context, config)
    size = (teacher.tensor.shape[-2], teacher.tensor.shape[-1])
    return adaptor(student.tensor, size), teacher.tensor.detach()


def _taps(context: Context, config: X3KDConfig) -> tuple[FeatureMap, FeatureMap]:
    return same_grid(config.tap, context.student, context.named(config.teacher), config.teacher_tap)


class FeatureTerm(Term):
    """X-FD, see ``feature_loss``; a mean over moments."""

    def __init__(self, config: X3KDConfig, channels_in: int, channels: int) -> None:
        super().__init__("feature", config.feature_weight)
        self.config = config
        self.adaptor = MapAdaptor("1x1conv", channels_in, channels)

    def forward(self, context: Context) -> Tensor:
        return feature_loss(*_maps(context, self.config, self.adaptor), self.config.distance).float()


@full_precision
def feature_loss(
    student: Float[Tensor, "b c y x"], teacher: Float[Tensor, "b c y x"], distance: FeatureDistance
) -> Float[Tensor, ""]:
    """Mean over moments, channels and cells of |S - T|, or of its square."""
    difference = student - teacher
    return difference.abs().mean() if distance == "l1" else difference.square().mean()


class AdversaryTerm(Term):
    """X-AT, see ``told_apart``; a mean over moments."""

    def __init__(self, config: X3KDConfig, channels_in: int, channels: int) -> None:
        super().__init__("adversary", config.adversary_weight)
        self.config = config
        self.adaptor = MapAdaptor("1x1conv", channels_in, channels)
        self.discriminator = MapDiscriminator(channels, config.discriminator_channels)

    def forward(self, context: Context) -> Tensor:
        student, teacher = _maps(context, self.config, self.adaptor)
        disguised = gradient_reversed(student, self.config.reversal)
        return told_apart(self.discriminator(disguised), self.discriminator(teacher)).float()


class ResponseTerm(Term):
    """X-OD, see ``response_loss``.

    Couples the batch: sums over its cells divided by its numbers of those that the teacher is sure of, all of this
    process.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: X3KDConfig) -> None:
        super().__init__("response", config.response_weight)
        self.config = config

    def forward(self, context: Context) -> Tensor:
        config = self.config
        student, teacher, head = centre_predictions(
            context, config.teacher, config.tap, config.teacher_tap, "set response_weight to 0"
        )
        sure = only_sure(teacher["heatmap"], config.threshold)
        classes = centre_class_loss(student["heatmap"], sure, head, config.threshold)
        boxes = centre_box_loss(student["box"], teacher["box"], teacher["heatmap"], head, config.threshold)
        return (classes + config.box_weight * boxes).float()


@torch.no_grad()
def only_sure(logits: Float[Tensor, "b k y x"], threshold: float) -> Float[Tensor, "b k y x"]:
    """The logits of probabilities above ``threshold``; minus infinity, a probability of 0, elsewhere."""
    return torch.where(logits.sigmoid() > threshold, logits, -torch.inf)
