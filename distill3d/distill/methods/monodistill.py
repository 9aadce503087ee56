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
from distill3d.distill.distances import Empty, kl_divergence, l1, weighted_mean
from distill3d.distill.masks import ObjectTargets, SliceRule, box_mask, gaussian_mask, gaussian_weight, image_stride
from distill3d.distill.precision import full_precision
from distill3d.distill.relations import AffinityNorm, affinity_loss
from distill3d.distill.style import StyledConfig, option
from distill3d.distill.term import Term
from distill3d.layers.heatmap import gather_cells

#: Images on each of the two GPUs of the published run; the released losses are divided by that number once more.
PUBLISHED_REPLICA_BATCH = 6.0
#: Head maps compared cell by cell, and how many of their leading channels: of depth the value, not the log scale.
DENSE_HEADS = {"offset_2d": 2, "size_2d": 2, "offset_3d": 2, "size_3d": 3, "depth": 1}

BoxSet = Literal["all", "in_map"]
ResponseMask = Literal["zero_rows", "binary", "soft"]


@dataclass(frozen=True)
class MonoDistillConfig(StyledConfig):
    """Weights and taps of the paper, and one option for each point where released code and intention differ."""

    object_weight: float = 10.0
    scene_weight: float = 1.0
    response_weight: float = 1.0
    taps: tuple[str, ...] = ("backbone_8", "backbone_16", "backbone_32")  # compared, from fine to coarse
    #: Fused before the adapters, none to switch fusion off.  The released code also fuses ``backbone_4`` and uses the
    #: result nowhere; naming it here too only adds its parameters.
    fusion_taps: tuple[str, ...] = ("backbone_8", "backbone_16", "backbone_32")
    fusion_channels: int = 512

    #: Teacher's batch norm; ``train`` uses each batch's statistics and lets the stored ones drift.  For the train loop.
    teacher_bn: Literal["eval", "train"] = option(released="train", intended="eval", default="eval")
    #: The only published accuracy is that of raw products; cosines need a weight of their own.
    affinity_norm: AffinityNorm = option(released="none", intended="cosine", default="none")
    #: Extra divisor of L_object and L_scene; None: images in this process, so the loss depends on the number of GPUs.
    batch_divisor: float | None = option(
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
    return [
        ObjectFeatureTerm(config, adapted),
        SceneAffinityTerm("scene", config.scene_weight, adapted, config.affinity_norm, config.batch_divisor),
        ResponseTerm(
            "response", config.response_weight, config.response_mask, config.heading_slots, config.empty_region
        ),
    ]


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


class ResponseTerm(Term):
    """L_response: the sum of ``response_losses``, head maps of student against teacher around labelled objects.

    Couples the batch: means over the region and the slots of all images of this process.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(
        self, name: str, weight: float, mask: ResponseMask, heading_slots: Literal["all", "valid"], empty: Empty
    ) -> None:
        super().__init__(name, weight)
        self.mask: ResponseMask = mask
        self.heading_slots = heading_slots
        self.empty: Empty = empty

    def forward(self, context: Context) -> Tensor:
        student, targets = context.student.predictions, context.targets
        teacher = {name: p.detach() for name, p in context.teacher.predictions.items()}
        height, width = student["depth"].shape[-2:]
        stride = context.batch.image.shape[-1] // width
        weight = response_region(targets, stride, (height, width), self.mask)
        slots = torch.ones_like(targets.mask_2d) if self.heading_slots == "all" else targets.mask_2d
        parts = response_losses(student, teacher, weight, targets, slots, self.empty)
        return torch.stack(list(parts.values())).sum().float()


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


def response_region(
    targets: ObjectTargets, stride: int, size: tuple[int, int], mask: ResponseMask
) -> Float[Tensor, "b h w"] | Bool[Tensor, "b h w"]:
    """Which cells of the prediction maps the response counts, or how much (``soft``)."""
    if mask == "soft":
        return gaussian_weight(targets.box2d, targets.eligible, stride, size)
    if mask == "binary":
        return gaussian_mask(targets.box2d, targets.eligible, stride, size)
    box2d = torch.where(targets.eligible[..., None], targets.box2d, 0)
    return gaussian_mask(box2d, targets.present, stride, size)


@full_precision
def response_losses(
    student: dict[str, Float[Tensor, "b _ h w"]],
    teacher: dict[str, Float[Tensor, "b _ h w"]],
    weight: Tensor,
    targets: ObjectTargets,
    slots: Bool[Tensor, "b k"],
    empty: Empty = "zero",
) -> dict[str, Float[Tensor, ""]]:
    """The six parts of L_response on raw head maps, each a mean by itself.

    ``DENSE_HEADS``: |S - T|, mean over cells by ``weight`` (b, h, w) and over channels; depth as raw logit.
    ``heading``, read at ``targets.indices`` in ``slots``: KL(T || S) of the bins, mean over slots *and* bins, plus
    |S - T| of the labelled bin's residual, mean over slots.  (compute_head_distill_loss.)
    """
    parts = {
        name: weighted_mean(l1(student[name][:, :channels], teacher[name][:, :channels]), weight[:, None], empty)
        for name, channels in DENSE_HEADS.items()
    }
    s, t = (gather_cells(maps["heading"], targets.indices) for maps in (student, teacher))
    bins = s.shape[-1] // 2
    kl = weighted_mean(kl_divergence(s[..., :bins], t[..., :bins]), slots[..., None], empty)
    residual = l1(s[..., bins:], t[..., bins:]).gather(-1, targets.heading_bin[..., None])[..., 0]
    return parts | {"heading": kl + weighted_mean(residual, slots, empty)}


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
