"""MonoSKD: align the *order* of feature values between an RGB student and a depth-image teacher, not the values.

Wang & Zheng, "MonoSKD: General Distillation Framework for Monocular 3D Object Detection via Spearman Correlation
Coefficient", ECAI 2023, arXiv:2310.11316; released code Senwang98/MonoSKD (commit 6764e9d), lib/losses/myloss.py and
lib/losses/feature_distill_loss.py.  Student and teacher are the same detector; everything here is for training only.

    L = L_detection + 1 L_spearman + 1 L_affinity + 1 L_response        from the first iteration, without a schedule

What the released Spearman term computes: it ranks the teacher only, and at feature-map sizes with strength 1 the soft
rank is one block, hence affine.  The loss is then 1 - Pearson(S, T less its mean per image), and nothing is sorted.
``soft_rank`` takes that closed form by itself and ranks truly where the maps leave it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from distill3d.detectors.base import FeatureMap
from distill3d.detectors.monodle import DepthEncoding
from distill3d.distill.adapters import AdaptedTaps
from distill3d.distill.context import Context
from distill3d.distill.distances import correlation
from distill3d.distill.methods.monodistill import SceneAffinityTerm
from distill3d.distill.precision import full_precision
from distill3d.distill.relations import AffinityNorm, resized
from distill3d.distill.responses import ResponseTerm
from distill3d.distill.softrank import hard_rank, soft_ranks
from distill3d.distill.style import ObjectsConfig, option
from distill3d.distill.term import Term
from distill3d.settings import Between, Divisor, Number, Weight

#: Images on each of the four GPUs of the published run.
PUBLISHED_REPLICA_BATCH = 4
#: Added to the standard deviation of a row before it is divided by it.
STANDARDISE_EPS = 1e-6

#: (context, the student's maps) -> a factor for each cell of each map, see ``SpearmanTerm``.
Gate = Callable[[Context, list[FeatureMap]], list[Float[Tensor, "b _ _"]]]
SpearmanMode = Literal["released", "both_rank", "teacher_rank"]


@dataclass(frozen=True)
class MonoSKDConfig(ObjectsConfig):
    """Weights and taps of the paper, and one option for each point where released code and intention differ.

    A term of weight 0 is left out.
    """

    spearman_weight: Weight = 1.0
    affinity_weight: Weight = 1.0
    response_weight: Weight = 1.0
    taps: tuple[str, ...] = ("neck_4", "neck_8", "neck_16", "backbone_32")  # from fine to coarse
    strength: Divisor = 1.0  # of the teacher's soft rank in mode ``released``
    #: ``both_rank``: the student's strength times the length of a row, on rows of unit variance.  Values near 3 follow
    #: the true ranks; from about 10 on, rows of nearly normal values are one block, that is, affine again.
    rank_smoothness: Divisor = 3.0

    #: ``released``: student raw, teacher soft-ranked; ``both_rank``: Spearman's correlation; ``teacher_rank``: student
    #: raw, teacher hard-ranked.  Only the first has a published accuracy.
    spearman_mode: SpearmanMode = option(released="released", intended="both_rank", default="released")
    #: One correlation for a group of images, or for each; the rank modes are always per sample.
    corr_scope: Literal["batch", "sample"] = option(released="batch", intended="sample", default="batch")
    #: Images in a group; None: all of this process, so the loss depends on the number of GPUs.
    corr_group: Number | None = option(released=None, intended=None, default=PUBLISHED_REPLICA_BATCH)
    #: Norms up to this count as no correlation; 0: NaN on constant maps.
    corr_eps: Annotated[float, Between(0, 1)] = option(released=0.0, intended=1e-12, default=1e-12)
    affinity_norm: AffinityNorm = option(released="none", intended="cosine", default="none")
    #: Extra divisor of L_affinity; None: images in this process.
    affinity_div: Divisor | None = option(
        released=None, intended=float(PUBLISHED_REPLICA_BATCH), default=float(PUBLISHED_REPLICA_BATCH)
    )
    #: ``zero_rows``: label lines that are not eligible mark cell (0, 0) of the response's region.
    mask_rows: Literal["zero_rows", "valid"] = option(released="zero_rows", intended="valid", default="valid")
    #: Teacher's batch norm; ``train`` uses each batch's statistics and lets the stored ones drift.  For the train loop.
    teacher_bn: Literal["eval", "train"] = option(released="train", intended="eval", default="eval")
    #: How the teacher sees depth, for the recipe; must be what the teacher was trained with.
    depth_input: DepthEncoding = option(released="monoskd", intended="clean", default="clean")


def terms(
    config: MonoSKDConfig, student_channels: dict[str, int], teacher_channels: dict[str, int], gate: Gate | None = None
) -> list[Term]:
    """The Spearman and affinity terms, which share the adapters, and the response term of MonoDistill.

    ``*_channels`` are the detectors' ``tap_channels``; ``gate``: see ``SpearmanTerm``.

    Raises:
        ValueError: student and teacher differ in the channels of a tap.
    """
    adapted = AdaptedTaps(config.taps, student_channels, teacher_channels)
    mask = "zero_rows" if config.mask_rows == "zero_rows" else "binary"
    all_terms = [
        SpearmanTerm(config, adapted, gate),
        SceneAffinityTerm("affinity", config.affinity_weight, adapted, config.affinity_norm, config.affinity_div),
        ResponseTerm("response", config.response_weight, mask, "valid", "zero"),
    ]
    return [term for term in all_terms if term.weight != 0]


class SpearmanTerm(Term):
    """L_spearman, see ``spearman_loss``.  Couples the batch: one correlation for each group of this process.

    ``gate``, not the paper's, gives each level a factor 0..1 for its cells (B, H, W), by which both sides are
    multiplied before they are compared.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: MonoSKDConfig, adapted: AdaptedTaps, gate: Gate | None = None) -> None:
        super().__init__("spearman", config.spearman_weight)
        self.adapted, self.config, self.gate = adapted, config, gate

    def forward(self, context: Context) -> Tensor:
        pairs = self.adapted(context)
        maps = [(s.tensor, t.tensor) for s, t in pairs]
        if self.gate is not None:
            factors = [f[:, None] for f in self.gate(context, [s for s, _ in pairs])]
            maps = [(s * f, t * f) for (s, t), f in zip(maps, factors, strict=True)]
        return spearman_loss(maps, self.config).float()


@full_precision
def spearman_loss(
    pairs: list[tuple[Float[Tensor, "b _ _ _"], Float[Tensor, "b _ _ _"]]], config: MonoSKDConfig
) -> Float[Tensor, ""]:
    """sum over levels of 1 - rho(x(S), y(T)), 0..2 a level, rho averaged over groups of images; float64.

    Every level is resized to the cells of the last one and flattened to rows of n = C H W values an image.

    | mode         | x(S)                                     | y(T)                      | rho over |
    |--------------|------------------------------------------|---------------------------|----------|
    | released     | S                                        | soft_rank(T, strength)    | group    |
    | both_rank    | soft_rank((S-m)/sd, rank_smoothness / n) | hard_rank(T)              | image    |
    | teacher_rank | S                                        | hard_rank(T)              | image    |

    On a single image and in the affine regime ``released`` is plain 1 - Pearson(S, T).
    """
    size = (pairs[-1][1].shape[-2], pairs[-1][1].shape[-1])
    students, teachers = (
        [resized(maps, size).flatten(1).double() for maps in side] for side in zip(*pairs, strict=True)
    )
    group = 1
    if config.spearman_mode == "released":
        group = 1 if config.corr_scope == "sample" else config.corr_group
        teachers = soft_ranks(teachers, [config.strength] * len(teachers))
    else:
        teachers = [hard_rank(t) for t in teachers]
    if config.spearman_mode == "both_rank":
        students = soft_ranks(
            [_standardised(s) for s in students], [config.rank_smoothness / s.shape[1] for s in students]
        )
    rho = [correlation(s, t, group, config.corr_eps) for s, t in zip(students, teachers, strict=True)]
    return torch.stack([1 - of_level for of_level in rho]).sum()


def _standardised(rows: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    deviation = rows - rows.mean(1, keepdim=True)
    spread = (deviation.square().mean(1, keepdim=True) + STANDARDISE_EPS**2).sqrt()
    return deviation / spread
