"""MonoDistill: an RGB student copies features, relations and responses of the same detector fed with LiDAR depth.

Chong et al., "MonoDistill: Learning Spatial Features for Monocular 3D Object Detection", ICLR 2022, arXiv:2201.10830;
released code monster-ghost/MonoDistill (commit 26ca8da), lib/losses/{feature,head}_distill_loss.py and
lib/models/centernet3d_distill.py.  Student and teacher are MonoDLE; everything here is for training only.

    L = L_detection + 10 L_object + 1 L_scene + 1 L_response          from the first iteration, without a schedule
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from distill3d.detectors.monodle import DepthEncoding
from distill3d.distill.adapters import AdaptedTaps
from distill3d.distill.context import Context
from distill3d.distill.distances import Empty, weighted_mean
from distill3d.distill.masks import SliceRule, box_mask, image_stride
from distill3d.distill.precision import full_precision
from distill3d.distill.relations import AffinityNorm, affinity_loss
from distill3d.distill.responses import ResponseMask, ResponseTerm
from distill3d.distill.style import ObjectsConfig, option
from distill3d.distill.term import Term
from distill3d.settings import Channels, Divisor, Weight

#: Images on each of the two GPUs of the published run; the released losses are divided by that number once more.
PUBLISHED_REPLICA_BATCH = 6.0

BoxSet = Literal["all", "in_map"]


@dataclass(frozen=True)
class MonoDistillConfig(ObjectsConfig):
    """Weights and taps of the paper, and one option for each point where released code and intention differ.

    A term of weight 0 is left out.
    """

    object_weight: Weight = 10.0
    scene_weight: Weight = 1.0
    response_weight: Weight = 1.0
    taps: tuple[str, ...] = ("backbone_8", "backbone_16", "backbone_32")  # compared, from fine to coarse
    #: Fused before the adapters, none to switch fusion off.  The released code also fuses ``backbone_4`` and uses the
    #: result nowhere; naming it here too only adds its parameters.
    fusion_taps: tuple[str, ...] = ("backbone_8", "backbone_16", "backbone_32")
    fusion_channels: Channels = 512

    #: Teacher's batch norm; ``train`` uses each batch's statistics and lets the stored ones drift.  For the train loop.
    teacher_bn: Literal["eval", "train"] = option(released="train", intended="eval", default="eval")
    #: The only published accuracy is that of raw products; cosines need a weight of their own.
    affinity_norm: AffinityNorm = option(released="none", intended="cosine", default="none")
    #: Extra divisor of L_object and L_scene; None: images in this process, so the loss depends on the number of GPUs.
    batch_divisor: Divisor | None = option(
        released=None, intended=PUBLISHED_REPLICA_BATCH, default=PUBLISHED_REPLICA_BATCH
    )
    box_slice: SliceRule = option(released="python", intended="clamp", default="clamp")
    #: L_object looks into the boxes of all label lines, DontCare included, or of those with their centre on the map.
    box_set: BoxSet = option(released="all", intended="in_map", default="in_map")
    #: ``binary``: under the Gaussians of eligible lines; ``zero_rows``: other lines mark cell (0, 0) too; ``soft``:
    #: weighted by the Gaussians.
    response_mask: ResponseMask = option(released="zero_rows", intended="binary", default="binary")
    #: ``all``: unused slots read cell 0, bin 0 and enter the mean of the heading terms.
    heading_slots: Literal["all", "valid"] = option(released="all", intended="valid", default="valid")
    #: How the teacher sees depth, for the recipe; must be what the teacher was trained with.
    depth_input: DepthEncoding = option(released="monodistill", intended="clean", default="clean")
    #: L_response over an empty region.
    empty_region: Empty = option(released="nan", intended="zero", default="zero")


def terms(config: MonoDistillConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """The three terms; the two on features share fusion and adapters.

    ``*_channels`` are the detectors' ``tap_channels``.

    Raises:
        ValueError: student and teacher differ in the channels of a tap, or ``fusion_taps`` lacks one.
    """
    adapted = AdaptedTaps(config.taps, student_channels, teacher_channels, config.fusion_taps, config.fusion_channels)
    all_terms = [
        ObjectFeatureTerm(config, adapted),
        SceneAffinityTerm("scene", config.scene_weight, adapted, config.affinity_norm, config.batch_divisor),
        ResponseTerm(
            "response", config.response_weight, config.response_mask, config.heading_slots, config.empty_region
        ),
    ]
    return [term for term in all_terms if term.weight != 0]


class ObjectFeatureTerm(Term):
    """L_object: see ``object_feature_loss``.  Couples the batch: each level is divided by its number of cells in boxes
    over all images of this process."""

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: MonoDistillConfig, adapted: AdaptedTaps) -> None:
        super().__init__("object", config.object_weight)
        self.adapted, self.config = adapted, config

    def forward(self, context: Context) -> Tensor:
        pairs, targets = self.adapted(context), context.targets
        keep = targets.present if self.config.box_set == "all" else targets.mask_2d
        masks = [
            box_mask(
                targets.box2d, keep, image_stride(s), (s.tensor.shape[-2], s.tensor.shape[-1]), self.config.box_slice
            )
            for s, _ in pairs
        ]
        divisor = self.config.batch_divisor or float(len(targets.box2d))
        return object_feature_loss([(s.tensor, t.tensor) for s, t in pairs], masks, divisor).float()


class SceneAffinityTerm(Term):
    """L_scene: how alike any two places of a scene are, in the student as in the teacher; see ``affinity_loss``.

    A mean over images, divided by ``divisor`` (None: images in this process).
    """

    def __init__(
        self, name: str, weight: float, adapted: AdaptedTaps, norm: AffinityNorm, divisor: float | None
    ) -> None:
        super().__init__(name, weight)
        self.adapted, self.divisor = adapted, divisor
        self.norm: AffinityNorm = norm

    def forward(self, context: Context) -> Tensor:
        pairs = [(s.tensor, t.tensor) for s, t in self.adapted(context)]
        return affinity_loss(pairs, self.divisor or float(len(pairs[0][0])), self.norm).float()


@full_precision
def object_feature_loss(
    pairs: list[tuple[Float[Tensor, "b _ _ _"], Float[Tensor, "b _ _ _"]]],
    masks: list[Bool[Tensor, "b _ _"]],
    divisor: float,
) -> Float[Tensor, ""]:
    """sum over levels of  sum_p m(p) n(p) mean_c (S - T)^2 / 2  /  sum_p m(p) n(p)  /  ``divisor``.

    Cells p run over all images; m: inside a box; n: the teacher is not 0 in every channel.  Teacher entries that are
    NaN count as equal to the student.  0 where no cell is left.  (compute_backbone_l1_loss; it is squared in spite of
    its name.)
    """
    levels = []
    for (student, teacher), mask in zip(pairs, masks, strict=True):
        error = torch.where(teacher.isnan(), 0, student - teacher) ** 2 / 2
        cells = mask & (teacher != 0).any(1)
        levels.append(weighted_mean(error.mean(1), cells))
    return torch.stack(levels).sum() / divisor


def released_state_dict(checkpoint: dict[str, Tensor], config: MonoDistillConfig) -> dict[str, Tensor]:
    """Fusion and adapters of the authors' checkpoints under the names inside ``AdaptedTaps``.

    Strides of adapters become taps; blocks of finer levels than ``config.fusion_taps`` are dropped.
    """
    adapters = {f"adapt_layer{tap.rsplit('_', 1)[1]}": f"adapters.{tap}" for tap in config.taps}
    blocks = {f"rgb_fs.{i}": f"fusion.{i}" for i in range(len(config.fusion_taps))}
    ours = {}
    for name, value in checkpoint.items():
        plain = name.removeprefix("module.")
        for theirs, mine in (adapters | blocks).items():
            if plain.startswith(f"{theirs}."):
                ours[mine + plain.removeprefix(theirs)] = value
    return ours
