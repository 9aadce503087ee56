"""DID-M3D: the depth of an object is that of its visible surface plus what lies between surface and centre.

Peng et al., "DID-M3D: Decoupling Instance Depth for Monocular 3D Object Detection", ECCV 2022, arXiv:2207.08531;
released code SPengLiang/DID-M3D (commit 2475af6).  It is built on GUPNet, and is the base of MonoSKD.  Training looks
at dense depth images, whatever the input is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distill3d.data.sample import Batch
from distill3d.detectors.base import Modality, Outputs, Style
from distill3d.detectors.gupnet import (
    LEAST_HEIGHT,
    Trained,
    TwoStage,
    TwoStageConfig,
    laplace_of_variance,
    read_slots,
    shared_losses,
)
from distill3d.detectors.monodle import HEADING_BINS, STRIDE, TINY_TRUNK, MonoDLETargets, Peaks
from distill3d.layers.image.roi import COORDINATE_CHANNELS, ROI_SIZE, RoIs, grid_head, pooled_head, sample_boxes
from distill3d.transfers import places

POOLED_HEADS = {"offset_3d": 2, "size_3d": 3, "heading": 2 * HEADING_BINS}
GRID_HEADS = ("vis_depth", "att_depth", "vis_depth_uncer", "att_depth_uncer")
#: A surface belongs to an object if it lies within this distance (m) of the object's depth.
SURFACE_REACH = 3.0
#: The visual depth is exp(-x): outside training x is kept above this, that is depth below 400 m times the zoom.
LOWEST_LOGIT = -6.0


@dataclass(frozen=True)
class DIDM3DConfig(TwoStageConfig):
    """Everything that makes one DID-M3D.  Defaults are the paper's size with the rows of the released-versus-intended
    table at their recommended values; ``styled`` sets all those rows at once."""

    empty_reduction: Literal["zero"] = "zero"  # MonoDLE's option; the released code, too, has 0 without any object
    confidence: Literal["ada", "max"] = "ada"  # of merged depths: mean weighted by itself, or the surest cell's
    # released versus intended
    empty_depth_mask: Literal["zero", "nan"] = "zero"  # mean over no cell on a surface, though there are objects
    depth_holes: Literal["skip", "mix"] = "skip"  # unknown depth is left out of means, or counts as 0 m

    @classmethod
    def styled(cls, style: Style, **fields: Any) -> DIDM3DConfig:
        """A configuration with every released-versus-intended row set by ``style``; ``fields`` override."""
        rows = {
            "released": {
                "coord_scale": "per_axis", "decode_scale": "per_axis", "empty_depth_mask": "nan", "depth_holes": "mix",
            },
            "intended": {
                "coord_scale": "inverse", "decode_scale": "inverse", "empty_depth_mask": "zero", "depth_holes": "skip",
            },
        }[style]  # fmt: skip
        return cls(**{**rows, **fields})


def tiny(**fields: Any) -> DIDM3DConfig:
    """The small configuration, about 2.5 million parameters; its map heads start from PyTorch's default weights."""
    return DIDM3DConfig(**{"trunk": TINY_TRUNK, "head_channels": 64, "head_std": None, **fields})


@dataclass(frozen=True)
class DIDM3DTargets(MonoDLETargets):
    """The targets of ``TwoStage``, and depths on the RoI grid of each object's labelled 2D box."""

    visual_depth: Float[Tensor, "b k 7 7"]  # m, of the object's surface; 0 in cells that do not show it
    attribute_depth: Float[Tensor, "b k 7 7"]  # m, from there to the object's centre
    surface: Bool[Tensor, "b k 7 7"]  # cells that show it


def describe_rois(
    heads: Mapping[str, Callable[[Tensor], Tensor]], rois: RoIs, lowest_logit: float | None = None
) -> dict[str, Tensor]:
    """What the seven RoI heads make of M RoIs.

    visual_depth, attribute_depth and their sum depth (m), each with ..._log_variance, (M, 7, 7); offset_3d (M, 2)
    cells, size_3d (M, 3) residuals of (height, width, length) in m, heading (M, 24).

    The visual depth is exp(-x) at the scale of the canvas: an object enlarged k times looks k times nearer, so it is
    multiplied by k, the box's height on the canvas over that in the image file.
    """
    raw = {name: head(rois.features) for name, head in heads.items()}
    logit, attribute, visual_s, attribute_s = (raw[name][:, 0] for name in GRID_HEADS)
    on_canvas, in_file = (
        (unit * (box[:, 3] - box[:, 1])).clamp(min=LEAST_HEIGHT)
        for unit, box in ((STRIDE, rois.box), (1, rois.source_box))
    )
    if lowest_logit is not None:
        logit = logit.clamp(min=lowest_logit)
    visual = torch.exp(-logit) * (on_canvas / in_file)[:, None, None]
    return {
        "visual_depth": visual,
        "visual_depth_log_variance": visual_s,
        "attribute_depth": attribute,
        "attribute_depth_log_variance": attribute_s,
        "depth": visual + attribute,
        "depth_log_variance": torch.logaddexp(visual_s, attribute_s),
    } | {name: raw[name].flatten(1) for name in POOLED_HEADS}


def surface_depth(
    depth: Float[Tensor, "b 1 h w"], box: Float[Tensor, "m 4"], image: Int[Tensor, "m"], holes: Literal["skip", "mix"]
) -> Float[Tensor, "m 7 7"]:
    """Depth (m) on the RoI grid of boxes (cells of ``STRIDE`` px), from depth images (m, 0 = unknown) on the canvas.

    ``mix``, as released: means over the pixels of cells, then RoIAlign, in which unknown depth and what lies outside
    the canvas count as 0 m.  ``skip``: both are left out; 0 where nothing else is left.
    """
    mean = F.avg_pool2d(depth, STRIDE)
    if holes == "mix":
        return sample_boxes(mean, box, image)[:, 0]
    share = F.avg_pool2d((depth > 0).to(depth), STRIDE)
    known = (share > 0).to(depth)
    total, weight = sample_boxes(torch.cat((mean / share.where(share > 0, 1), known), 1), box, image).unbind(1)
    return torch.where(weight > 0, total / weight.where(weight > 0, 1), 0)


def split_depth(
    depth: Float[Tensor, "m"], seen: Float[Tensor, "m 7 7"]
) -> tuple[Float[Tensor, "m 7 7"], Float[Tensor, "m 7 7"], Bool[Tensor, "m 7 7"]]:
    """Visual depth, attribute depth (m) and which cells show the object, from its depth and what is seen in cells."""
    z = depth[:, None, None]
    surface = (seen > z - SURFACE_REACH) & (seen < z + SURFACE_REACH) & (seen > 0)
    visual = torch.where(surface, seen, 0)
    return visual, z - visual, surface


def detection_losses(trained: Trained, empty_depth_mask: Literal["zero", "nan"] = "zero") -> dict[str, Tensor]:
    """DID-M3D's seven terms: ``shared_losses``; size, the L1 mean over three dimensions (m); and depth, three Laplace
    likelihoods: of visual and of attribute depth over cells on surfaces, of their sum over all cells."""
    t = trained.targets
    assert isinstance(t, DIDM3DTargets)
    surface = trained.of(t.surface)
    on_surface = replace(trained, empty=empty_depth_mask if len(surface) else "zero")
    (shown,) = places(surface)

    def likelihood(name: str, target: Float[Tensor, "m 7 7"], cells: tuple[Tensor, ...] | None = None) -> Tensor:
        loss = laplace_of_variance(trained.roi(name), target, trained.roi(f"{name}_log_variance"))
        return trained.mean(loss) if cells is None else on_surface.mean(loss[cells])

    return shared_losses(trained) | {
        "depth": likelihood("visual_depth", trained.of(t.visual_depth), shown)
        + likelihood("attribute_depth", trained.of(t.attribute_depth), shown)
        + likelihood("depth", trained.of(t.depth)[:, None, None].expand(-1, ROI_SIZE, ROI_SIZE)),
        "size_3d": trained.mean((trained.roi("size_3d") - trained.of(t.size_3d)).abs()),
    }


def merge_depth(
    depth: Float[Tensor, "*n 7 7"], log_variance: Float[Tensor, "*n 7 7"], confidence: Literal["ada", "max"] = "ada"
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """One depth (m) for each RoI, and the log of the confidence in it.

    With p = exp(-exp(s / 2)) in each cell: depth is sum(p d) / sum(p), its confidence sum(p^2) / sum(p) (``ada``) or
    max(p).  Computed by logarithms: a standard deviation of 90 m makes p 0 in float32.
    """
    log_p = -torch.exp(log_variance.flatten(-2) / 2)
    merged = (torch.softmax(log_p, -1) * depth.flatten(-2)).sum(-1)
    if confidence == "max":
        return merged, log_p.amax(-1)
    return merged, torch.logsumexp(2 * log_p, -1) - torch.logsumexp(log_p, -1)


class DIDM3D(TwoStage):
    """Visual and attribute depth on a grid of each RoI, merged by confidence.

    ``roi_depth``, ``roi_visual_depth``, ``roi_attribute_depth`` in m and their ``..._log_variance`` (B, K, 7, 7),
    ``roi_offset_3d`` (B, K, 2) in cells, ``roi_size_3d`` (B, K, 3) in m less the class mean, ``roi_heading``
    (B, K, 24).
    """

    name = "did_m3d"
    config: DIDM3DConfig

    @classmethod
    def also_trained_on(cls, config: DIDM3DConfig) -> frozenset[Modality]:
        """Depth images, for the visual depth of each region."""
        return frozenset({"depth"})

    def make_roi_heads(self, channels: int) -> dict[str, nn.Module]:
        seen, hidden = channels + COORDINATE_CHANNELS + len(self.config.vocabulary), self.config.head_channels
        heads: dict[str, nn.Module] = {name: pooled_head(seen, hidden, width) for name, width in POOLED_HEADS.items()}
        return heads | {name: grid_head(seen, hidden) for name in GRID_HEADS}

    def describe(self, rois: RoIs) -> dict[str, Tensor]:
        heads = {name: getattr(self, name) for name in (*POOLED_HEADS, *GRID_HEADS)}
        return describe_rois(heads, rois, None if self.training else LOWEST_LOGIT)

    @torch.no_grad()
    def encode(self, batch: Batch) -> DIDM3DTargets:
        base = super().encode(batch)
        if batch.depth is None:
            raise ValueError("DID-M3D is trained on depth images; the data set gives none")
        image, slot = base.trained[0]
        box = base.box2d[image, slot] / STRIDE
        seen = surface_depth(batch.depth, box, image, self.config.depth_holes).to(base.depth)
        blank = seen.new_zeros(*base.mask_2d.shape, ROI_SIZE, ROI_SIZE)
        visual, attribute, surface = (
            blank.to(value.dtype).index_put((image, slot), value)
            for value in split_depth(base.depth[image, slot], seen)
        )
        targets = DIDM3DTargets(
            **{f.name: getattr(base, f.name) for f in fields(base)},
            visual_depth=visual,
            attribute_depth=attribute,
            surface=surface,
        )
        vars(targets)["trained"] = base.trained  # known by now
        return targets

    def loss(self, outputs: Outputs, batch: Batch, targets: Any = None) -> dict[str, Tensor]:
        with torch.autocast(batch.image.device.type, enabled=False):
            return detection_losses(self.trained(outputs, batch, targets), self.config.empty_depth_mask)

    def depth_log_scale(self, outputs: Outputs, batch: Batch, targets: Any) -> Float[Tensor, "b k"]:
        """log(-log c), c the confidence in the merged depth: with one cell, or equal ones, the cell's own log scale."""
        maps = outputs.predictions
        _, log_confidence = merge_depth(maps["roi_depth"], maps["roi_depth_log_variance"], self.config.confidence)
        scale = -log_confidence
        log_scale = scale.clamp(min=torch.finfo(scale.dtype).eps).log()
        return torch.where(targets.mask_2d, log_scale, 0)

    def peaks(self, outputs: Outputs, zoom: Float[Tensor, "b"]) -> Peaks:
        return merged_slots(outputs, zoom, self.config.confidence)


def merged_slots(outputs: Outputs, zoom: Float[Tensor, "b"], confidence: Literal["ada", "max"]) -> Peaks:
    """Slots with their merged depths."""
    maps = outputs.predictions
    depth, log_confidence = merge_depth(maps["roi_depth"], maps["roi_depth_log_variance"], confidence)
    return read_slots(outputs, depth, log_confidence.exp(), zoom)
