"""GUPNet: depth from the projected height of an object, with the uncertainty that goes with it.

Lu et al., "Geometry Uncertainty Projection Network for Monocular 3D Object Detection", ICCV 2021, arXiv:2107.13774;
released code SuperMHP/GUPNet (commit d0e02ca).  Trunk, neck, heat map and heading code are MonoDLE's; everything about
an object in 3D is read from its region of interest (RoI).  ``TwoStage`` is what DID-M3D shares.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from distill3d.boxes import Boxes3D, BoxSlots
from distill3d.camera import Camera
from distill3d.data.sample import Batch
from distill3d.detectors.base import Outputs, Style
from distill3d.detectors.monodle import (
    HEADING_BINS,
    HEADS,
    HEAT_CLASSES,
    STRIDE,
    TINY_TRUNK,
    MonoDLE,
    MonoDLEConfig,
    MonoDLETargets,
    Peaks,
    decode_depth,
    laplace_loss,
    peaks_to_boxes,
    wrap_once,
)
from distill3d.detectors.released import NEVER_USED, ReleasedForm
from distill3d.layers.distributed import mean_over_processes
from distill3d.layers.image.dla import unused_in_released
from distill3d.layers.image.heatmap import clamped_sigmoid, focal_heatmap_loss, gather_cells
from distill3d.layers.image.roi import COORDINATE_CHANNELS, MapWindow, RoIs, RoISlots, look_at, pooled_head
from distill3d.settings import Ascending, Length, Side
from distill3d.transfers import constant, fetched, inverse

#: Mean (height, width, length) in m of ``HEAT_CLASSES``, from which sizes are regressed.
MEAN_SIZE = (
    (1.76255119, 0.66068622, 0.84422524),
    (1.52563191462, 1.62856739989, 3.88311640418),
    (1.73698127, 0.59706367, 1.76282397),
)
#: The name of these in released checkpoints.
CLASS_MEANS = "mean_size"
#: The boxes of one image, or the slots of a batch.
BoxesT = TypeVar("BoxesT", Boxes3D, BoxSlots)
#: Heads that stay on the map, and heads on RoIs: depth bias and its log variance; projected centre; residuals of
#: (height, width, length) and the height's log variance; heading.
MAP_HEADS = {head: HEADS[head] for head in ("heatmap", "offset_2d", "size_2d")}
ROI_HEADS = {"depth": 2, "offset_3d": 2, "size_3d": 4, "heading": 2 * HEADING_BINS}
#: Objects are trained at any distance, m.
NO_FAR_LIMIT = 1e4
#: Least height, in px, of a box that something is divided by.
LEAST_HEIGHT = 1.0


@dataclass(frozen=True)
class TwoStageConfig(MonoDLEConfig):
    """What the settings of GUPNet and DID-M3D add to MonoDLE's, or fix."""

    classes: tuple[str, ...] = HEAT_CLASSES
    mean_size: Literal[False] = False  # MonoDLE's option; here sizes are always differences to ``class_sizes``
    class_sizes: tuple[tuple[Side, ...], ...] = MEAN_SIZE  # m, (height, width, length) of the vocabulary
    depth_range: Annotated[tuple[Length, Length], Ascending()] = (2.0, NO_FAR_LIMIT)
    depth_mask: Literal["mask_2d"] = "mask_2d"  # MonoDLE's option; here crops keep their 3D supervision
    roi_aligned: bool = False  # of the sampling; True shifts the grid by half a cell, as torchvision recommends
    # released versus intended
    coord_scale: Literal["inverse", "per_axis"] = "inverse"  # RoI boxes to the image file, see ``MapWindow.of``


@dataclass(frozen=True)
class GUPNetConfig(TwoStageConfig):
    """Everything that makes one GUPNet.  Defaults are the paper's size with the rows of the released-versus-intended
    table at their recommended values; ``styled`` sets all those rows at once.

    ``score_threshold`` applies to the final score, the heat map times the confidence in the depth.
    """

    @classmethod
    def styled(cls, style: Style, **fields: Any) -> GUPNetConfig:
        """A configuration with every released-versus-intended row set by ``style``; ``fields`` override."""
        rows = {
            "released": {
                "coord_scale": "per_axis", "decode_scale": "per_axis", "empty_reduction": "nan", "roi_aligned": False,
            },
            "intended": {
                "coord_scale": "inverse", "decode_scale": "inverse", "empty_reduction": "zero", "roi_aligned": True,
            },
        }[style]  # fmt: skip
        return cls(**{**rows, **fields})


def tiny(**fields: Any) -> GUPNetConfig:
    """The small configuration, about 2.4 million parameters; its map heads start from PyTorch's default weights."""
    return GUPNetConfig(**{"trunk": TINY_TRUNK, "head_channels": 64, "head_std": None, **fields})


def laplace_of_variance(prediction: Tensor, target: Tensor, log_variance: Tensor) -> Tensor:
    """Element-wise Laplace loss by log variance: 1.4142 exp(-s / 2) |error| + s / 2."""
    return laplace_loss(prediction, target, log_variance / 2)


def depth_from_height(
    height: Float[Tensor, "m"],
    height_log_variance: Float[Tensor, "m"],
    box_height: Float[Tensor, "m"],
    focal: Float[Tensor, "m"],
) -> tuple[Float[Tensor, "m"], Float[Tensor, "m"]]:
    """Depth (m) of what is ``height`` m high and ``box_height`` px in the picture (focal length in px), and its log
    variance: that of the height, magnified as the height is."""
    box_height = box_height.clamp(min=LEAST_HEIGHT)
    return height * focal / box_height, height_log_variance + 2 * (focal.log() - box_height.log())


def describe_rois(
    heads: Mapping[str, Callable[[Tensor], Tensor]], rois: RoIs, class_sizes: Float[Tensor, "c 3"]
) -> dict[str, Tensor]:
    """What the four RoI heads make of M RoIs; the depth's variance is the sum of the geometry's and the bias's.

    depth (M,) m, depth_log_variance (M,), height_log_variance (M,), offset_3d (M, 2) cells, size_3d (M, 3) residuals
    of (height, width, length) in m, heading (M, 24).
    """
    raw = {name: head(rois.features).flatten(1) for name, head in heads.items()}
    bias, size = raw["depth"], raw["size_3d"]
    height = class_sizes.to(size)[rois.label, 0] + size[:, 0]
    projected, projected_log_variance = depth_from_height(
        height, size[:, 3], rois.source_box[:, 3] - rois.source_box[:, 1], rois.focal
    )
    return {
        "depth": decode_depth(bias[:, 0]) + projected,
        "depth_log_variance": torch.logaddexp(bias[:, 1], projected_log_variance),
        "height_log_variance": size[:, 3],
        "offset_3d": raw["offset_3d"],
        "size_3d": size[:, :3],
        "heading": raw["heading"],
    }


@dataclass(frozen=True)
class Trained:
    """Predictions and targets of the M trained objects of a batch, by image, then slot."""

    predictions: dict[str, Tensor]
    targets: MonoDLETargets
    empty: Literal["zero", "nan"]  # what a mean over nothing is
    image: Int[Tensor, "m"]
    slot: Int[Tensor, "m"]

    @classmethod
    def select(cls, predictions: dict[str, Tensor], targets: MonoDLETargets, empty: Literal["zero", "nan"]) -> Trained:
        """The objects in ``targets.mask_2d``."""
        return cls(predictions, targets, empty, *targets.trained[0])

    def map(self, head: str) -> Float[Tensor, "m c"]:
        return self.predictions[head].flatten(2)[self.image, :, self.of(self.targets.indices)]

    def roi(self, name: str) -> Float[Tensor, "m *n"]:
        return self.of(self.predictions[f"roi_{name}"])

    def of(self, target: Tensor) -> Tensor:
        return target[self.image, self.slot]

    def mean(self, values: Tensor) -> Tensor:
        """Over all processes."""
        return mean_over_processes(values, self.empty)


def shared_losses(trained: Trained) -> dict[str, Tensor]:
    """The terms in which GUPNet and DID-M3D agree, weight 1 each.

    Reduction: heat map over all cells, divided by the number of peaks; offsets and 2D sizes are L1 means over trained
    objects and components; heading is cross entropy plus L1 of the true bin's residual, both means over objects.
    """
    t, mean = trained.targets, trained.mean
    heading, true_bin = trained.roi("heading"), trained.of(t.heading_bin)
    residual = heading[:, HEADING_BINS:].gather(1, true_bin[:, None])[:, 0]
    heatmap = clamped_sigmoid(trained.predictions["heatmap"])
    return {
        "heatmap": focal_heatmap_loss(heatmap, t.heatmap),
        "offset_2d": mean((trained.map("offset_2d") - trained.of(t.offset_2d)).abs()),
        "size_2d": mean((trained.map("size_2d") - trained.of(t.size_2d)).abs()),
        "offset_3d": mean((trained.roi("offset_3d") - trained.of(t.offset_3d)).abs()),
        "heading": mean(F.cross_entropy(heading[:, :HEADING_BINS], true_bin, reduction="none"))
        + mean((residual - trained.of(t.heading_residual)).abs()),
    }


def detection_losses(trained: Trained) -> dict[str, Tensor]:
    """GUPNet's seven terms: ``shared_losses``; depth, a Laplace likelihood; and size, one third a Laplace likelihood of
    the height and two thirds L1 of width and length (m), so that each dimension counts alike."""
    t, mean = trained.targets, trained.mean
    size, true_size = trained.roi("size_3d"), trained.of(t.size_3d)
    height = laplace_of_variance(size[:, 0], true_size[:, 0], trained.roi("height_log_variance"))
    depth = laplace_of_variance(trained.roi("depth"), trained.of(t.depth), trained.roi("depth_log_variance"))
    return shared_losses(trained) | {
        "depth": mean(depth),
        "size_3d": mean(height) / 3 + mean((size[:, 1:] - true_size[:, 1:]).abs()) * 2 / 3,
    }


def read_slots(
    outputs: Outputs, depth: Float[Tensor, "b k"], confidence: Float[Tensor, "b k"], zoom: Float[Tensor, "b"]
) -> Peaks:
    """What the outputs of ``forward`` say at their slots; ``depth`` in m, ``zoom`` of the crops.

    Raises:
        ValueError: the outputs are those of ``forward_at``: they looked where objects were said to be.
    """
    rois, maps = outputs.rois, outputs.predictions
    if rois is None or rois.score is None:
        raise ValueError("detections are read from what forward(batch) gives, these outputs looked at targets")
    width = maps["heatmap"].shape[-1]
    cell = torch.stack((rois.index % width, rois.index // width), dim=-1)
    return Peaks(
        rois.score, rois.label, cell + gather_cells(maps["offset_2d"], rois.index),
        gather_cells(maps["size_2d"], rois.index), cell + maps["roi_offset_3d"], depth * zoom.to(depth)[:, None],
        confidence, maps["roi_heading"], maps["roi_size_3d"],
    )  # fmt: skip


def slots_to_boxes(peaks: Peaks, batch: Batch, config: TwoStageConfig, map_size: tuple[int, int]) -> list[Boxes3D]:
    """MonoDLE's boxes, with sizes added to the class means; those of negative size are left out, and the observation
    angle turns about the ray through the middle of the 2D box."""
    slots, projection = peaks_to_boxes(_sized(peaks, config), batch, config, map_size), batch.source_camera.projection
    found = fetched(slots.tensors() | {"projection": projection})
    projection = found.pop("projection")
    return [_turned(boxes, p) for boxes, p in zip(replace(slots, **found).boxes(), projection, strict=True)]


def _sized(peaks: Peaks, config: TwoStageConfig) -> Peaks:
    size = peaks.size_3d + constant(config.class_sizes, peaks.size_3d)[peaks.label]
    solid = (size >= 0).all(-1)
    return replace(peaks, score=torch.where(solid, peaks.score, -torch.inf), size_3d=size)


def _turned(boxes: BoxesT, projection: Float[Tensor, "*b 3 4"]) -> BoxesT:
    assert boxes.box2d is not None and boxes.alpha is not None
    p = projection.to(boxes.box2d)
    middle = (boxes.box2d[..., 0] + boxes.box2d[..., 2]) / 2
    ray = torch.atan2(middle - p[..., 0, 2, None], p[..., 0, 0, None].expand_as(middle))
    return replace(boxes, yaw=-wrap_once(boxes.alpha + ray))


class TwoStage(MonoDLE):
    """MonoDLE's trunk, neck, 2D heads and targets; what an object is in 3D is read from its RoI.

    Taps are MonoDLE's.  Predictions are the maps of ``MAP_HEADS`` and, by slot, ``roi_...`` (B, K, ...).
    """

    map_heads: ClassVar[dict[str, int]] = MAP_HEADS
    config: Any  # a TwoStageConfig; subclasses say which

    def __init__(self, config: TwoStageConfig) -> None:
        super().__init__(config)
        if len(config.class_sizes) != len(config.vocabulary):
            raise ValueError(f"class_sizes has {len(config.class_sizes)} rows for {len(config.vocabulary)} classes")
        for name, head in self.make_roi_heads(config.trunk.channels[2]).items():
            setattr(self, name, head)

    @abstractmethod
    def make_roi_heads(self, channels: int) -> dict[str, nn.Module]:
        """The heads on RoIs, by their released names; they look at ``roi_channels`` of a map of ``channels``."""

    @abstractmethod
    def describe(self, rois: RoIs) -> dict[str, Tensor]:
        """What the heads on RoIs say of M RoIs, each (M, ...)."""

    @abstractmethod
    def peaks(self, outputs: Outputs, zoom: Float[Tensor, "b"]) -> Peaks:
        """What the outputs of ``forward`` say at their slots."""

    def forward(self, batch: Batch) -> Outputs:
        """Maps, and RoIs at the ``top_k`` highest peaks."""
        outputs = self.forward_image(self.input_image(batch))
        return self._look(outputs, batch, RoISlots.at_peaks(outputs.predictions["heatmap"], self.config.top_k))

    def forward_at(self, batch: Batch, targets: MonoDLETargets) -> Outputs:
        """Maps, and RoIs at the trained objects, in boxes that the network itself predicts there."""
        outputs = self.forward_image(self.input_image(batch))
        return self._look(
            outputs, batch, RoISlots.at_targets(targets.indices, targets.label, targets.mask_2d, targets.trained[0])
        )

    def _look(self, outputs: Outputs, batch: Batch, slots: RoISlots) -> Outputs:
        maps, config = outputs.predictions, self.config
        window = MapWindow.of(batch.affine, (maps["heatmap"].shape[-1], maps["heatmap"].shape[-2]), config.coord_scale)
        rois = look_at(
            outputs.features[f"neck_{STRIDE}"].tensor, maps["offset_2d"], maps["size_2d"], slots, window,
            file_camera(batch), len(config.vocabulary), config.roi_aligned,
        )  # fmt: skip
        said = {f"roi_{name}": slots.spread(value) for name, value in self.describe(rois).items()}
        return Outputs(outputs.features, maps | said, slots)

    @torch.no_grad()
    def encode(self, batch: Batch) -> MonoDLETargets:
        """Targets of the first ``max_objects`` label lines of each image.

        They are MonoDLE's with ``depth`` in m, whatever the crop zoom, ``size_3d`` as difference to the class mean,
        ``heading_*`` of the observation angle at the middle of the 2D box, and ``mask_3d`` and ``on_map`` equal to
        ``mask_2d``: of other lines there is no RoI.
        """
        objects = batch.objects
        if objects is None:
            raise ValueError("training needs labels; this batch has none")
        p = batch.camera.projection.double()
        middle = (objects.box2d[..., 0] + objects.box2d[..., 2]).double() / 2
        ray = torch.atan2(middle - p[:, 0, 2, None], p[:, 0, 0, None].expand_as(middle))
        # MonoDLE's depth is times the zoom: here depth comes from heights in the image file, and is that of the world
        metric = replace(batch.affine, zoom=torch.ones_like(batch.affine.zoom))
        base = super().encode(replace(batch, objects=replace(objects, alpha=-objects.yaw - ray), affine=metric))
        mean = constant(self.config.class_sizes, base.size_3d)[base.label]
        residual = torch.where(base.mask_2d[..., None], base.dimension - mean, 0)
        cell = torch.where(base.mask_2d, base.centre_cell, 0)
        return replace(base, size_3d=residual, mask_3d=base.mask_2d, on_map=base.mask_2d, centre_cell=cell)

    def trained(self, outputs: Outputs, batch: Batch, targets: MonoDLETargets | None) -> Trained:
        """Predictions and targets of the trained objects.

        Raises:
            ValueError: the outputs are not those of ``forward_at``.
        """
        if outputs.rois is None or outputs.rois.score is not None:
            raise ValueError("losses compare what forward_at(batch, targets) gives, these outputs looked at peaks")
        return Trained.select(outputs.predictions, targets or self.encode(batch), self.config.empty_reduction)

    @torch.no_grad()
    def decode(self, outputs: Outputs, batch: Batch) -> list[Boxes3D]:
        height, width = outputs.predictions["heatmap"].shape[-2:]
        return slots_to_boxes(self.peaks(outputs, batch.affine.zoom), batch, self.config, (width, height))

    @torch.no_grad()
    def decode_slots(self, outputs: Outputs, batch: Batch) -> BoxSlots:
        height, width = outputs.predictions["heatmap"].shape[-2:]
        peaks = _sized(self.peaks(outputs, batch.affine.zoom), self.config)
        return _turned(peaks_to_boxes(peaks, batch, self.config, (width, height)), batch.source_camera.projection)


def file_camera(batch: Batch) -> Camera:
    """The cameras behind the image files, mirrored where the image was, (B, 3, 4)."""
    matrix = batch.affine.matrix.to(batch.camera.projection)
    back = inverse(matrix[..., :2])
    return batch.camera.warped(torch.cat((back, -back @ matrix[..., 2:]), -1))


class GUPNet(TwoStage):
    """Depth is h f / h2d plus a learned bias: h the predicted height in m, h2d that of the predicted 2D box in px.

    ``roi_depth`` (B, K) in m and ``roi_depth_log_variance``, ``roi_height_log_variance`` (B, K), ``roi_offset_3d``
    (B, K, 2) in cells, ``roi_size_3d`` (B, K, 3) in m less the class mean, ``roi_heading`` (B, K, 24).
    """

    name = "gupnet"
    config: GUPNetConfig

    def make_roi_heads(self, channels: int) -> dict[str, nn.Module]:
        seen = channels + COORDINATE_CHANNELS + len(self.config.vocabulary)
        return {name: pooled_head(seen, self.config.head_channels, width) for name, width in ROI_HEADS.items()}

    def describe(self, rois: RoIs) -> dict[str, Tensor]:
        heads = {name: getattr(self, name) for name in ROI_HEADS}
        return describe_rois(heads, rois, constant(self.config.class_sizes, rois.box))

    def loss(self, outputs: Outputs, batch: Batch, targets: Any = None) -> dict[str, Tensor]:
        with torch.autocast(batch.image.device.type, enabled=False):
            return detection_losses(self.trained(outputs, batch, targets))

    def depth_log_scale(self, outputs: Outputs, batch: Batch, targets: Any) -> Float[Tensor, "b k"]:
        return outputs.predictions["roi_depth_log_variance"] / 2

    def peaks(self, outputs: Outputs, zoom: Float[Tensor, "b"]) -> Peaks:
        return scored_slots(outputs, zoom)


def scored_slots(outputs: Outputs, zoom: Float[Tensor, "b"]) -> Peaks:
    """Slots whose score is final, the heat map times exp(-standard deviation of the depth), so that a threshold looks
    at the product."""
    depth, log_variance = outputs.predictions["roi_depth"], outputs.predictions["roi_depth_log_variance"]
    peaks = read_slots(outputs, depth, torch.exp(-torch.exp(log_variance / 2)), zoom)
    return replace(peaks, score=peaks.score * peaks.confidence, confidence=torch.ones_like(peaks.confidence))


def released_form(config: TwoStageConfig) -> ReleasedForm:
    """SuperMHP/GUPNet's and SPengLiang/DID-M3D's names; the class means, a setting here, stand among their weights."""

    def read(found: Mapping[str, Tensor], config: TwoStageConfig) -> TwoStageConfig:
        sizes = found.get(CLASS_MEANS)
        if sizes is None or torch.equal(sizes.float(), torch.tensor(config.class_sizes, dtype=torch.float32)):
            return config  # whose digits are more than a file's
        return replace(config, class_sizes=tuple(tuple(row) for row in sizes.double().tolist()))

    unused = unused_in_released(config.trunk)
    return ReleasedForm(
        renamed={"feat_up": "neck"}, dropped=dict.fromkeys(unused, NEVER_USED), unused=unused, settings=(CLASS_MEANS,),
        read_settings=read, write_settings=lambda config: {CLASS_MEANS: torch.tensor(config.class_sizes)},
    )  # fmt: skip
