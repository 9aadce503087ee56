"""In the manner of X3KD: a camera student imitates a LiDAR teacher's map, is not to be told from it, and its boxes.

X3KD, CVPR 2023, arXiv:2303.02203.  No code was released, and this file is built from abstracts of the paper alone: that
there are these terms is stated there; their distances, where they stand in the network, the discriminator and every
weight and threshold are inferred or our own, and no number of the paper is claimed.

    L = L_det + L_depth + L_feature + L_adversary + L_response + L_segmentation, each by a weight of its own
    X-FD  L_feature   = mean over moments, cells and channels of |a(S) - T|, or its square
    X-AT  L_adversary = (BCE(D(r(a'(S))), 0) + BCE(D(T), 1)) / 2, means over moments and parts of the map
    X-OD  L_response  = the class and box terms of CMKD's centre heads, where the teacher is surer than ``threshold``:
                        sum |p - t|^2 BCE(p, t) / max(1, #{t > threshold})
                        + box_weight mean_{q > threshold} q sum smooth_l1(boxes),   see ``centre_responses``
    X-IS  L_segmentation = mean over cells of CE(c, class) + offset_weight mean over things of |o - o*|,
                        c, o = h(I): the class of each cell of an image, or none, and the way to the middle of its thing

S and T are ground maps; a and a' 1x1 convolutions, D the discriminator, all for training only; r reverses gradients, so
that D learns to tell the maps apart and a' and the student learn that it cannot.  In X-OD p and t are probabilities of
student and teacher, t counts as 0 up to the threshold, and q is the sum of the teacher's over a task's classes.

In X-IS I are the student's image features before they are lifted and h a small head for training only.  That a head on
these learns instance segmentation from another network's pseudo-labels is stated; that it does so by classes and ways
to the middle, as bottom-up methods do (Panoptic-DeepLab, CVPR 2020, arXiv:1911.10194), is ours.  Here its targets are
masks beside the data set's pictures (distill3d/instances.py), which synthetic drives have from their renderer and
nuScenes has not: unless ``segmentation_weight`` asks for it, the part is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distill3d.boxes import NUSCENES_CLASSES
from distill3d.detectors.base import FeatureMap, Modality
from distill3d.distill.adapters import MapAdaptor, in_dtype_of
from distill3d.distill.adversary import MapDiscriminator, gradient_reversed, told_apart
from distill3d.distill.centre_responses import centre_box_loss, centre_class_loss, centre_predictions
from distill3d.distill.context import Context, refuse_absent_taps, same_grid, tapped
from distill3d.distill.masks import image_stride
from distill3d.distill.precision import full_precision
from distill3d.distill.style import StyledConfig, UnlabelledUse
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.instances import STEP
from distill3d.settings import Channels, Share, Weight, added

#: Cells of what the head says along each side of a cell that it looks at.
FINER = 4
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
    segmentation_weight: Weight = added(0.0)  # asks for masks, and of the student for ``image_tap``
    image_tap: str = added("image_neck")
    segmentation_channels: Channels = added(64)
    offset_weight: Weight = added(1.0)  # of ways, within the segmentation
    classes: tuple[str, ...] = added(NUSCENES_CLASSES)  # the data set's, which masks count; it must be the same
    threshold: Share = 0.3  # the teacher's probability above which a cell counts as an object

    @property
    def looks_at(self) -> frozenset[Modality]:
        return frozenset({"instances"} if self.segmentation_weight > 0 else ())


def terms(config: X3KDConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """The terms whose weights are not 0.

    Raises:
        UserError: a tap is missing.
    """
    other = config.teacher_tap or config.tap
    segments = config.segmentation_weight != 0
    asked = (config.tap, config.image_tap) if segments else (config.tap,)
    refuse_absent_taps("x3kd", asked, (other,), student_channels, teacher_channels)
    widths = student_channels[config.tap], teacher_channels[other]
    found: list[Term] = []
    if config.feature_weight != 0:
        found.append(FeatureTerm(config, *widths))
    if config.adversary_weight != 0:
        found.append(AdversaryTerm(config, *widths))
    if config.response_weight != 0:
        found.append(ResponseTerm(config))
    if segments:
        found.append(SegmentationTerm(config, student_channels[config.image_tap]))
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


# ------------------------------------------------------------------------------------------------ instance segmentation


class SegmentationHead(nn.Module):
    """Image features -> K + 1 class logits, the first of none, and the way to the middle of the cell's thing (x, y), at
    ``FINER`` times as many cells per side."""

    def __init__(self, channels_in: int, channels: int, classes: int) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.fine = nn.Conv2d(channels, channels, 3, padding=1)
        self.said = nn.Conv2d(channels, 1 + classes + 2, 1)

    def forward(
        self, features: Float[Tensor, "n c h w"]
    ) -> tuple[Float[Tensor, "n k h4 w4"], Float[Tensor, "n 2 h4 w4"]]:
        coarse = self.coarse(in_dtype_of(features, self)).relu()
        finer = F.interpolate(coarse, scale_factor=FINER, mode="bilinear", align_corners=False)
        said = self.said(self.fine(finer).relu())
        return said[:, :-2], said[:, -2:]


class SegmentationTerm(Term):
    """X-IS, see ``segmentation_loss``; the head learns with it and is thrown away.

    Couples the batch: ways are a mean over the cells on things in all images of this process.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: X3KDConfig, channels_in: int) -> None:
        super().__init__("segmentation", config.segmentation_weight)
        self.config = config
        self.head = SegmentationHead(channels_in, config.segmentation_channels, len(config.classes))

    def forward(self, context: Context) -> Tensor:
        config, masks = self.config, getattr(context.batch, "instances", None)
        if masks is None:
            raise UserError(
                "x3kd learns instance segmentation from masks of single things; the data set gives none: set "
                "segmentation_weight to 0"
            )
        looked = tapped(config.image_tap, context.student, "student")
        logits, ways = self.head(looked.tensor)
        targets = segmentation_targets(masks.flatten(0, 1), image_stride(looked) // FINER, len(config.classes))
        return segmentation_loss(logits, ways, targets, config.offset_weight).float()


@dataclass(frozen=True)
class SegmentationTargets:
    """What the head is to say of each cell."""

    label: Int[Tensor, "n h w"]  # 1 + the class of what the cell's middle shows, 0 for none
    way: Float[Tensor, "n 2 h w"]  # x and y from there to the mean of its thing's cells, in cells of the features
    on_thing: Bool[Tensor, "n h w"]


@torch.no_grad()
def segmentation_targets(masks: Int[Tensor, "n height width"], stride: int, classes: int) -> SegmentationTargets:
    """Targets from masks (distill3d/instances.py) on cells of ``stride`` px; of classes beyond ``classes`` none."""
    value = masks[:, stride // 2 :: stride, stride // 2 :: stride].long()
    label = torch.where(value < STEP * (1 + classes), value // STEP, 0)
    count, height, width = value.shape
    y, x = (torch.arange(n, device=value.device, dtype=torch.float32) for n in (height, width))
    place = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).expand(count, -1, -1, -1)
    # A row for each value in each image: a table of the things that there are would have to wait for their number.
    rows = STEP * (1 + classes)
    row = torch.where(label > 0, value, 0) + rows * torch.arange(count, device=value.device)[:, None, None]
    sums = torch.zeros(count * rows, 3, device=value.device)
    sums.index_add_(0, row.flatten(), torch.cat((place, torch.ones_like(place[..., :1])), dim=-1).flatten(0, 2))
    middle = (sums[:, :2] / sums[:, 2:].clamp(min=1))[row]
    on_thing = label > 0
    way = torch.where(on_thing[..., None], middle - place, 0) / FINER
    return SegmentationTargets(label, way.permute(0, 3, 1, 2), on_thing)


@full_precision
def segmentation_loss(
    logits: Float[Tensor, "n k h w"], ways: Float[Tensor, "n 2 h w"], targets: SegmentationTargets, offset_weight: float
) -> Float[Tensor, ""]:
    """Cross-entropy of the classes, mean over all cells; plus ``offset_weight`` times |x| + |y| of ways less their
    targets, mean over the cells on things, of all images, 0 without any."""
    of_class = F.cross_entropy(logits, targets.label)
    apart = (ways - targets.way).abs().sum(1)
    of_way = torch.where(targets.on_thing, apart, 0).sum() / targets.on_thing.sum().clamp(min=1)
    return of_class + offset_weight * of_way
