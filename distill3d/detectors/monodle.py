"""MonoDLE: a monocular 3D detector that reads everything from dense maps at the projected centre of each object.

Ma et al., "Delving into Localization Errors for Monocular 3D Object Detection", CVPR 2021, arXiv:2103.16237; released
code xinzhuma/monodle (commit e426aa6).  It is the base of MonoDistill and MonoSTL, and with input
``depth`` their teacher.  With input ``rgb+object_depth`` it is told how far each labelled object is: a teacher that
needs no LiDAR, and is of use in training alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distill3d.boxes import IGNORE, KITTI_CLASSES, Boxes3D, BoxSlots, kitti_rows, label_names, wrap_angle
from distill3d.camera import Camera, Divide
from distill3d.data.sample import UNKNOWN, Batch
from distill3d.detectors.base import Detector, FeatureMap, ImageGeometry, Outputs, Style
from distill3d.detectors.released import NEVER_USED, ReleasedForm
from distill3d.errors import UserError
from distill3d.layers.distributed import across_processes, mean_over_processes
from distill3d.layers.image.dla import NECK_STRIDES, DLAConfig, DLAUp, dla_trunk, unused_in_released
from distill3d.layers.image.heatmap import (
    cells_inside,
    clamped_sigmoid,
    draw_gaussians,
    find_peaks,
    focal_heatmap_loss,
    gather_cells,
    gaussian_radius,
)
from distill3d.layers.image.pretrained import RGB_MEAN, RGB_STD
from distill3d.layers.readout import Readout
from distill3d.settings import Ascending, Between, Channels, Length, Number, Share, added
from distill3d.transfers import constant, places

STRIDE = 4
#: Channels of the heat map on KITTI, whatever classes are trained.
HEAT_CLASSES = KITTI_CLASSES[:3]
#: Mean (height, width, length) in m of the heat-map classes on KITTI train; used with ``mean_size`` only.
MEAN_SIZE = (
    (1.76255119, 0.66068622, 0.84422524),
    (1.52563191, 1.62856739, 3.52588311),
    (1.73698127, 0.59706367, 1.76282397),
)
HEADING_BINS = 12
BIN_WIDTH = 2 * math.pi / HEADING_BINS
#: The released constant in the Laplace likelihood, instead of sqrt(2).
LAPLACE_FACTOR = 1.4142
DEPTH_EPSILON = 1e-6
#: Bias of the heat map's last layer: sigmoid(-2.19) = 0.1, the prior of a peak.
HEAT_BIAS = -2.19
#: Metres that depth images are divided by, and MonoDistill's input statistics (metre values, whatever they apply to).
DEPTH_SCALE, DEPTH_MEAN, DEPTH_STD = 80.0, 8.765, 11.275
#: MonoSKD's loader divides by 256 once more than the PNG's unit asks for.
MONOSKD_EXTRA_DIVISOR = 256.0
#: Depth at which the inverse-depth channel of the ``log`` encoding reaches 1, m.
NEAR_DEPTH = 8.0
#: Of depth as a network is shown it.
DEPTH_CHANNELS = 3
#: Sizes below this (m) are raised to it: a head is free to predict nonsense early in training.
SMALLEST_SIZE = 0.01
HEADS = {"heatmap": len(HEAT_CLASSES), "offset_2d": 2, "size_2d": 2, "depth": 2, "offset_3d": 2, "size_3d": 3,
         "heading": 2 * HEADING_BINS}  # fmt: skip

#: How metres become three input channels (d: depth times crop zoom, so that it agrees with the depth target):
#: ``clean`` d/80; ``metric`` (d - mean)/std; ``monodistill`` (d/80 - mean)/std and ``monoskd`` d/80/256 as those codes
#: feed their teachers; ``log`` (log d / log 80, whether known, 8 m / d), for sparse maps.
DepthEncoding = Literal["clean", "metric", "monodistill", "monoskd", "log"]


@dataclass(frozen=True)
class MonoDLEConfig:
    """Everything that makes one MonoDLE.  Defaults are the paper's size with the rows of the released-versus-intended
    table at their recommended values; ``styled`` sets all those rows at once."""

    input: Literal["rgb", "depth", "rgb+object_depth"] = "rgb"
    #: Channels of the heat map: the data set's classes, in the order in which labels number them.
    vocabulary: tuple[str, ...] = added(HEAT_CLASSES)
    classes: tuple[str, ...] = ("Car",)  # trained and detected, of the vocabulary
    merge_classes: tuple[str, ...] = ()  # drawn as cars in the heat map, nothing regressed; e.g. Van, Truck
    trunk: DLAConfig = field(default_factory=DLAConfig)
    head_channels: Channels = 256
    head_std: Annotated[float, Between(0, 100)] | None = (
        0.001  # of initial weights of all heads but the heat map; None: PyTorch's default
    )
    max_objects: Number = 50  # label lines looked at per image
    cell: Literal["centre_3d", "centre_2d"] = "centre_3d"  # which projected point marks an object's cell
    mean_size: bool = False  # regress sizes as differences to class means
    depth_range: Annotated[tuple[Length, Length], Ascending()] = (2.0, 65.0)  # m; objects outside are not trained
    depth_encoding: DepthEncoding = "clean"
    top_k: Number = 50
    score_threshold: Share = 0.2  # of the heat map, before the depth confidence is multiplied in
    # released versus intended
    depth_mask: Literal["mask_2d", "mask_3d"] = "mask_2d"  # mask_3d drops objects of cropped images (xinzhuma/monodle)
    empty_reduction: Literal["zero", "nan"] = "zero"  # mean over no object
    decode_scale: Literal["inverse", "per_axis"] = "inverse"  # canvas to image file: exact, or source size / map size

    @classmethod
    def styled(cls, style: Style, **fields: Any) -> MonoDLEConfig:
        """A configuration with every released-versus-intended row set by ``style``; ``fields`` override."""
        rows = {
            "released": {"depth_mask": "mask_3d", "empty_reduction": "nan", "decode_scale": "per_axis"},
            "intended": {"depth_mask": "mask_2d", "empty_reduction": "zero", "decode_scale": "inverse"},
        }[style]
        return cls(**{**rows, **fields})


#: A trunk of 2.4 M parameters with its neck and heads, for the CPU: one block per level, channels in multiples of 32.
TINY_TRUNK = DLAConfig(levels=(1, 1, 1, 1, 1, 1), channels=(32, 32, 32, 64, 128, 128), stem_stride=2)


def tiny(**fields: Any) -> MonoDLEConfig:
    """The small configuration: about 2.4 million parameters.

    Its heads start from PyTorch's default weights: the released 0.001 costs the first thousand steps, which is all that
    a small training has.
    """
    return MonoDLEConfig(**{"trunk": TINY_TRUNK, "head_channels": 64, "head_std": None, **fields})


@dataclass(frozen=True)
class MonoDLETargets:
    """Training targets in K slots per image; slot i is label line i.  Untrained slots hold zeros."""

    heatmap: Float[Tensor, "b c h w"]
    indices: Int[Tensor, "b k"]  # flat cell row * w + column
    offset_2d: Float[Tensor, "b k 2"]  # 2D box centre minus cell, in cells
    size_2d: Float[Tensor, "b k 2"]  # (width, height) of the 2D box, in cells
    offset_3d: Float[Tensor, "b k 2"]  # projected 3D centre minus cell, in cells
    size_3d: Float[Tensor, "b k 3"]  # (height, width, length) in m, minus the class mean with ``mean_size``
    dimension: Float[Tensor, "b k 3"]  # (height, width, length) in m
    depth: Float[Tensor, "b k"]  # m times crop zoom
    heading_bin: Int[Tensor, "b k"]
    heading_residual: Float[Tensor, "b k"]  # rad
    mask_2d: Bool[Tensor, "b k"]  # trained objects
    mask_3d: Bool[Tensor, "b k"]  # trained objects of images that were not cropped
    label: Int[Tensor, "b k"]  # index into the vocabulary
    # what distillation methods ask for
    box2d: Float[Tensor, "b k 4"]  # canvas px, every label line
    present: Bool[Tensor, "b k"]  # a label line stands here
    eligible: Bool[Tensor, "b k"]  # passed class, level and range; its centre may lie outside the map
    on_map: Bool[Tensor, "b k"]  # the detector says how sure it is of this line's depth; any class, level and range
    centre_cell: Int[Tensor, "b k"]  # where it says so: the projected 3D centre; 0 where it is not on the map
    distance: Float[Tensor, "b k"]  # depth of the 3D centre, m; every label line

    @cached_property
    def trained(self) -> tuple[tuple[Int[Tensor, "m"], Int[Tensor, "m"]], Int[Tensor, "n"]]:
        """Images and slots of the m trained objects, and which of these m are in images that were not cropped; whoever
        asks first waits for the device once."""
        (image, slot), (kept, place) = places(self.mask_2d, self.mask_2d & self.mask_3d)
        rank = self.mask_2d.flatten().cumsum(0) - 1
        return (image, slot), rank[kept * self.mask_2d.shape[1] + place]


def encode_heading(angle: Float[Tensor, "*n"]) -> tuple[Int[Tensor, "*n"], Float[Tensor, "*n"]]:
    """Angles (rad) as one of 12 bins, the first centred at 0, and the residual (rad) to the bin's centre."""
    shifted = torch.remainder(torch.remainder(angle, 2 * math.pi) + BIN_WIDTH / 2, 2 * math.pi)
    bins = (shifted / BIN_WIDTH).long()
    return bins, shifted - (bins.to(angle.dtype) * BIN_WIDTH + BIN_WIDTH / 2)


def decode_heading(bins: Int[Tensor, "*n"], residual: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The angle (rad) of a bin and residual; above pi one turn is taken off."""
    angle = bins.to(residual.dtype) * BIN_WIDTH + residual
    return torch.where(angle > math.pi, angle - 2 * math.pi, angle)


def decode_depth(logit: Tensor, epsilon: float = DEPTH_EPSILON) -> Tensor:
    """Depth (m) of the raw head: 1 / (sigmoid + epsilon) - 1."""
    return 1 / (torch.sigmoid(logit) + epsilon) - 1


def depth_logit(depth: Tensor, epsilon: float = DEPTH_EPSILON) -> Tensor:
    """The raw head's value that ``decode_depth`` reads as a depth (m, 0 or more)."""
    return torch.logit(1 / (depth + 1) - epsilon, eps=epsilon)


def laplace_loss(prediction: Tensor, target: Tensor, log_scale: Tensor) -> Tensor:
    """Element-wise negative log likelihood of a Laplace distribution: 1.4142 exp(-s) |error| + s."""
    return LAPLACE_FACTOR * torch.exp(-log_scale) * (prediction - target).abs() + log_scale


def dimension_aware_l1(
    prediction: Float[Tensor, "n 3"], target: Float[Tensor, "n 3"], dimension: Float[Tensor, "n 3"]
) -> Float[Tensor, "n 3"]:
    """Element-wise L1 relative to the true size, rescaled so that its mean is the plain L1's (paper section 4.3).

    ``dimension`` is the size itself.  The released code passes the target here, which with ``mean_size`` is the small
    difference to the class mean, and then does not train.
    """
    error = (prediction - target).abs()
    relative = error / dimension.detach()
    sums = across_processes(torch.stack((error.sum(), relative.sum())))
    return relative * torch.where(sums[1] != 0, sums[0] / sums[1], torch.ones_like(sums[0]))


def detection_losses(
    predictions: dict[str, Tensor], targets: MonoDLETargets, config: MonoDLEConfig
) -> dict[str, Tensor]:
    """The seven supervised terms, weight 1 each, from raw head maps (B, C, H, W).

    Reduction: heat map over all cells, divided by the number of peaks; the others are means over the trained objects of
    the batch (times 2 or 3 components); heading is cross entropy plus L1 of the true bin's residual.
    """
    (batch, slot), uncropped = targets.trained
    cell = targets.indices[batch, slot]

    def read(head: str) -> Tensor:
        return predictions[head].flatten(2)[batch, :, cell]

    def of(target: Tensor) -> Tensor:
        return target[batch, slot]

    def mean(values: Tensor, rows: Tensor | None = None) -> Tensor:
        return mean_over_processes(values if rows is None else values[rows], config.empty_reduction)

    depth, heading = read("depth"), read("heading")
    depth_loss = laplace_loss(decode_depth(depth[:, 0]), of(targets.depth), depth[:, 1])
    size, true_size, dimension = (v[uncropped] for v in (read("size_3d"), of(targets.size_3d), of(targets.dimension)))
    bins, true_bin = heading[:, :HEADING_BINS], of(targets.heading_bin)
    residual = heading[:, HEADING_BINS:].gather(1, true_bin[:, None])[:, 0]
    return {
        "heatmap": focal_heatmap_loss(clamped_sigmoid(predictions["heatmap"]), targets.heatmap),
        "offset_2d": mean((read("offset_2d") - of(targets.offset_2d)).abs()),
        "size_2d": mean((read("size_2d") - of(targets.size_2d)).abs()),
        "offset_3d": mean((read("offset_3d") - of(targets.offset_3d)).abs(), uncropped),
        "depth": mean(depth_loss, uncropped if config.depth_mask == "mask_3d" else None),
        "size_3d": mean(dimension_aware_l1(size, true_size, dimension)),
        "heading": mean(F.cross_entropy(bins, true_bin, reduction="none"))
        + mean((residual - of(targets.heading_residual)).abs()),
    }


@dataclass(frozen=True)
class Peaks:
    """What the head maps say at the K highest peaks of each image, best first; positions and 2D sizes in cells."""

    score: Float[Tensor, "b k"]
    label: Int[Tensor, "b k"]  # index into the vocabulary
    centre_2d: Float[Tensor, "b k 2"]
    size_2d: Float[Tensor, "b k 2"]
    centre_3d: Float[Tensor, "b k 2"]
    depth: Float[Tensor, "b k"]  # m, as the network sees the scene: true depth times crop zoom
    confidence: Float[Tensor, "b k"]  # exp(-log scale) of the depth
    heading: Float[Tensor, "b k 24"]
    size_3d: Float[Tensor, "b k 3"]  # (height, width, length), raw


def read_peaks(predictions: dict[str, Tensor], top_k: int, depth_epsilon: float = DEPTH_EPSILON) -> Peaks:
    """Peaks of the heat map (3 x 3 maxima) and the other maps' values there."""
    score, label, index = find_peaks(clamped_sigmoid(predictions["heatmap"]), top_k)
    width = predictions["heatmap"].shape[-1]
    cell = torch.stack((index % width, index // width), dim=-1)
    at = {head: gather_cells(predictions[head], index) for head in HEADS if head != "heatmap"}
    return Peaks(
        score, label, cell + at["offset_2d"], at["size_2d"], cell + at["offset_3d"],
        decode_depth(at["depth"][..., 0], depth_epsilon), torch.exp(-at["depth"][..., 1]), at["heading"], at["size_3d"],
    )  # fmt: skip


def peaks_to_boxes(
    peaks: Peaks, batch: Batch, config: MonoDLEConfig, map_size: tuple[int, int], divide: Divide = "rect_z"
) -> BoxSlots:
    """Boxes of each image in the camera frame of its file, in order of heat-map score.

    Peaks below the score threshold, and of classes that are not trained, are not kept; the final score is the heat-map
    score times the depth confidence, which can exceed 1.  ``divide``: which depth the peaks' is.
    """
    camera = batch.source_camera
    affine = batch.affine

    def to_source(cells: Tensor) -> Tensor:
        if config.decode_scale == "inverse":
            return affine.invert(cells * STRIDE)
        return cells * (affine.source_size.to(cells) / constant(map_size, cells))[:, None]

    uv = to_source(peaks.centre_3d)
    corners = [to_source(peaks.centre_2d + sign * peaks.size_2d / 2) for sign in (-1, 1)]
    # a mirrored image swaps left and right
    box2d = torch.cat((torch.minimum(*corners), torch.maximum(*corners)), dim=-1)
    depth = peaks.depth / affine.zoom.to(peaks.depth)[:, None]
    centre = Camera(camera.projection.to(depth)).back_project(uv, depth, divide)

    bins = peaks.heading[..., :HEADING_BINS].argmax(-1)
    residual = peaks.heading[..., HEADING_BINS:].gather(-1, bins[..., None])[..., 0]
    alpha = decode_heading(bins, residual)
    alpha = torch.where(affine.flip[:, None], wrap_angle(math.pi - alpha), alpha)
    p = camera.projection.to(depth)
    rotation_y = alpha + torch.atan2(uv[..., 0] - p[:, 0, 2, None], p[:, 0, 0, None].expand_as(depth))
    size = peaks.size_3d + (constant(MEAN_SIZE, peaks.size_3d)[peaks.label] if config.mean_size else 0)
    size = size.clamp(min=SMALLEST_SIZE)
    bottom = centre + torch.stack((torch.zeros_like(depth), size[..., 0] / 2, torch.zeros_like(depth)), -1)

    kept = (peaks.score >= config.score_threshold) & is_one_of(peaks.label, config.classes, config.vocabulary)
    return BoxSlots(*kitti_rows(size, bottom, wrap_once(rotation_y)), peaks.label, peaks.score * peaks.confidence, kept,
                    "camera", box2d=box2d, alpha=alpha)  # fmt: skip


def wrap_once(angle: Tensor) -> Tensor:
    """Angles (rad) brought towards [-pi, pi] by at most one turn, as the released decoder does."""
    angle = torch.where(angle > math.pi, angle - 2 * math.pi, angle)
    return torch.where(angle < -math.pi, angle + 2 * math.pi, angle)


class MonoDLE(Detector):
    """DLA-34 trunk, DLAUp neck, seven heads at stride 4.

    Taps: ``backbone_4|8|16|32`` (the trunk's maps) and ``neck_4|8|16`` (the neck's; ``neck_4`` feeds the heads).
    """

    name = "monodle"
    config: MonoDLEConfig
    #: Heads on the map, and their channels.
    map_heads: ClassVar[dict[str, int]] = HEADS

    def __init__(self, config: MonoDLEConfig) -> None:
        super().__init__()
        refuse_unknown(config.classes, config.vocabulary)
        refuse_unknown(config.merge_classes, label_names(config.vocabulary))
        if config.mean_size and config.vocabulary != HEAT_CLASSES:
            raise ValueError(f"mean_size is known for {', '.join(HEAT_CLASSES)} alone")
        self.config = config
        channels = config.trunk.channels[2:]
        self.backbone = dla_trunk(config.trunk)
        self.neck = DLAUp(channels)
        self.make_map_heads(channels[0])
        self.told = None
        if config.input == "rgb+object_depth":
            levels = zip(NECK_STRIDES, channels, strict=True)
            self.told = nn.ModuleDict({f"{s}": nn.Conv2d(DEPTH_CHANNELS, c, 3, padding=1) for s, c in levels})
        self.tap_channels = {f"backbone_{s}": c for s, c in zip(NECK_STRIDES, channels, strict=True)}
        self.tap_channels |= {f"neck_{s}": c for s, c in zip(NECK_STRIDES[:3], channels, strict=False)}

    def make_map_heads(self, channels: int) -> None:
        """Sets the heads on a map of ``channels``."""
        config = self.config
        for head, width in self.map_heads.items():
            layers = (
                nn.Conv2d(channels, config.head_channels, 3, padding=1),
                Readout(config.head_channels, len(config.vocabulary) if head == "heatmap" else width, 1),
            )
            if head == "heatmap":
                nn.init.constant_(_bias(layers[1]), HEAT_BIAS)
            elif config.head_std is not None:
                for layer in layers:
                    nn.init.normal_(layer.weight, std=config.head_std)
                    nn.init.zeros_(_bias(layer))
            setattr(self, head, nn.Sequential(layers[0], nn.ReLU(inplace=True), layers[1]))

    def read_map_heads(self, neck: Float[Tensor, "b c h w"]) -> dict[str, Tensor]:
        """What the heads say of the neck's map at stride 4."""
        return {head: getattr(self, head)(neck) for head in self.map_heads}

    def input_image(self, batch: Batch) -> Float[Tensor, "b 3 h w"]:
        """The three channels that the trunk sees."""
        sees = "depth" if self.config.input == "depth" else "rgb"
        return input_channels(batch, sees, self.config.depth_encoding)

    def forward(self, batch: Batch) -> Outputs:
        """Maps and raw predictions.

        Raises:
            UserError: the detector is to be told of objects, and the batch has no labels.
        """
        told = None
        if self.told is not None:
            told = {stride: encode_depth(object_depth(batch, stride), "log") for stride in NECK_STRIDES}
        return self.forward_image(self.input_image(batch), told)

    def forward_image(
        self, image: Float[Tensor, "b 3 h w"], told: dict[int, Float[Tensor, "b 3 _ _"]] | None = None
    ) -> Outputs:  # fmt: skip
        """Trunk, neck and heads on input channels; height and width are multiples of 32.  ``told``: what is added to
        the trunk's levels through a convolution each, by their strides."""
        trunk = self.backbone(image.contiguous(memory_format=torch.channels_last))[2:]
        if self.told is not None and told is not None:
            trunk = [m + self.told[f"{s}"](told[s]) for s, m in zip(NECK_STRIDES, trunk, strict=True)]
        neck = self.neck(trunk)
        features = {f"backbone_{s}": FeatureMap(m, ImageGeometry(s)) for s, m in zip(NECK_STRIDES, trunk, strict=True)}
        features |= {f"neck_{s}": FeatureMap(m, ImageGeometry(s)) for s, m in neck.items()}
        return Outputs(features, self.read_map_heads(neck[STRIDE]))

    @torch.no_grad()
    def encode(self, batch: Batch) -> MonoDLETargets:
        """Targets of the first ``max_objects`` label lines of each image.

        Geometry is computed in float64, so that a cell does not depend on rounding.
        """
        if batch.objects is None:
            raise ValueError("training needs labels; this batch has none")
        config, height, width = self.config, batch.image.shape[-2] // STRIDE, batch.image.shape[-1] // STRIDE
        slots = config.max_objects

        def fit(value: Tensor, fill: float = 0) -> Tensor:
            kept = value[:, :slots].double() if value.is_floating_point() else value[:, :slots]
            padding = [0, 0] * (value.dim() - 2) + [0, max(0, slots - value.shape[1])]
            return F.pad(kept, padding, value=fill)

        o = batch.objects
        centre, label, box2d = fit(o.centre), fit(o.label, IGNORE), fit(o.box2d)
        present, z = fit(o.present), fit(o.centre)[..., 2]
        trained = is_one_of(label, config.classes, config.vocabulary)
        merged = is_one_of(label, config.merge_classes, config.vocabulary)
        near, far = config.depth_range
        known = fit(o.difficulty, UNKNOWN) != UNKNOWN
        eligible = present & (trained | merged) & known & (z >= near) & (z <= far)

        box = box2d / STRIDE
        centre_2d, size_2d = (box[..., :2] + box[..., 2:]) / 2, box[..., 2:] - box[..., :2]
        ahead = present & (z > 0)
        safe = torch.where(ahead[..., None], centre, torch.ones_like(centre))
        centre_3d = batch.camera.project(safe)[0] / STRIDE
        centre_cell = centre_3d.trunc().long()
        on_map = ahead & cells_inside(centre_cell, height, width)
        cell = centre_cell if config.cell == "centre_3d" else centre_2d.trunc().long()
        shown = eligible & cells_inside(cell, height, width)
        mask_2d = shown & trained
        lines = o.label.shape[1]  # the slots behind them are empty
        heatmap = self._draw(shown[:, :lines], label[:, :lines], cell[:, :lines], size_2d[:, :lines], height, width)

        alpha, zoom = fit(o.alpha), batch.affine.zoom.double()[:, None]
        bins, residual = encode_heading(alpha)
        dimension = hwl = fit(o.size).flip(-1)
        if config.mean_size:
            hwl = hwl - constant(MEAN_SIZE, hwl)[label.clamp(0, len(config.vocabulary) - 1)]
        uncropped = ~_is_cropped(batch)

        def trained_only(value: Tensor) -> Tensor:
            mask = mask_2d if value.dim() == 2 else mask_2d[..., None]
            value = torch.where(mask, value, torch.zeros_like(value))
            return value.to(batch.image.dtype) if value.is_floating_point() else value

        return MonoDLETargets(
            heatmap=heatmap,
            indices=trained_only(cell[..., 1] * width + cell[..., 0]),
            offset_2d=trained_only(centre_2d - cell),
            size_2d=trained_only(size_2d),
            offset_3d=trained_only(centre_3d - cell),
            size_3d=trained_only(hwl),
            dimension=trained_only(dimension),
            depth=trained_only(z * zoom),
            heading_bin=trained_only(bins),
            heading_residual=trained_only(residual),
            mask_2d=mask_2d,
            mask_3d=mask_2d & uncropped[:, None],
            label=trained_only(label),
            box2d=box2d.to(batch.image.dtype),
            present=present,
            eligible=eligible,
            on_map=on_map,
            centre_cell=torch.where(on_map, centre_cell[..., 1] * width + centre_cell[..., 0], 0),
            distance=z.to(batch.image.dtype),
        )

    def _draw(
        self, shown: Tensor, label: Tensor, cell: Tensor, size_2d: Tensor, height: int, width: int
    ) -> Float[Tensor, "b c h w"]:
        names = self.config.vocabulary
        if "Car" in names:
            label = torch.where(label < len(names), label, names.index("Car"))
        radius = self.peak_radius(size_2d)
        maps = size_2d.new_zeros(shown.shape[0] * len(names), height, width)
        plane = torch.arange(len(shown), device=shown.device)[:, None] * len(names) + label
        drawn = draw_gaussians(maps, *(value.flatten(0, 1) for value in (plane, cell, radius, shown)))
        return drawn.view(shown.shape[0], len(names), height, width).to(next(self.parameters()).dtype)

    def peak_radius(self, size_2d: Float[Tensor, "*n 2"]) -> Int[Tensor, "*n"]:
        """Radius of the peaks (cells) of 2D boxes of these widths and heights (cells)."""
        return gaussian_radius(size_2d[..., 1], size_2d[..., 0]).trunc().clamp(min=0).long()

    def loss(self, outputs: Outputs, batch: Batch, targets: MonoDLETargets | None = None) -> dict[str, Tensor]:
        with torch.autocast(batch.image.device.type, enabled=False):
            return detection_losses(outputs.predictions, targets or self.encode(batch), self.config)

    def depth_log_scale(self, outputs: Outputs, batch: Batch, targets: Any) -> Float[Tensor, "b k"]:
        """The log scale in the cell of each label line's centre; only those of trained classes were learned."""
        log_scale = gather_cells(outputs.predictions["depth"][:, 1:], targets.centre_cell)[..., 0]
        return torch.where(targets.on_map, log_scale, 0)

    def decode(self, outputs: Outputs, batch: Batch) -> list[Boxes3D]:
        return self.decode_slots(outputs, batch).boxes()

    @torch.no_grad()
    def decode_slots(self, outputs: Outputs, batch: Batch) -> BoxSlots:
        height, width = outputs.predictions["heatmap"].shape[-2:]
        peaks = read_peaks(outputs.predictions, self.config.top_k)
        return peaks_to_boxes(peaks, batch, self.config, (width, height))


def input_channels(
    batch: Batch, modality: Literal["rgb", "depth"], encoding: DepthEncoding
) -> Float[Tensor, "b 3 h w"]:
    """A batch as three channels: normalised colours, or depth times crop zoom."""
    if modality == "rgb":
        mean, std = (constant(v, batch.image)[:, None, None] for v in (RGB_MEAN, RGB_STD))
        return (batch.image - mean) / std
    if batch.depth is None:
        raise ValueError("a detector with input 'depth' needs depth images; the data set gives none")
    return encode_depth(batch.depth * batch.affine.zoom.to(batch.depth)[:, None, None, None], encoding)


@torch.no_grad()
def object_depth(batch: Batch, stride: int) -> Float[Tensor, "b 1 h w"]:
    """How far the labelled objects are: the depth of its 3D centre (m, times crop zoom) in every cell of ``stride`` px
    that an object's 2D box touches, the nearest object's where boxes overlap; 0 elsewhere.

    Raises:
        UserError: the batch has no labels.
    """
    objects = batch.objects
    if objects is None:
        raise UserError(
            f"frame {batch.frame_ids[0]}: this detector is told how far labelled objects are (input "
            "'rgb+object_depth'), and there are no labels: it is of use as a teacher alone"
        )
    height, width = (side // stride for side in batch.image.shape[-2:])
    edge = objects.box2d / stride
    first, last = edge[..., :2].floor(), edge[..., 2:].ceil()

    def between(axis: int, count: int) -> Bool[Tensor, "b k n"]:
        cells = torch.arange(count, device=edge.device)
        return (cells >= first[..., axis, None]) & (cells < last[..., axis, None])

    known = objects.present & (objects.label != IGNORE) & (objects.centre[..., 2] > 0)
    inside = (between(1, height) & known[..., None])[..., :, None] & between(0, width)[..., None, :]
    depth = objects.centre[..., 2] * batch.affine.zoom.to(objects.centre)[:, None]
    nearest = torch.where(inside, depth[..., None, None], math.inf).amin(1, keepdim=True)
    return torch.where(nearest.isinf(), 0, nearest).to(batch.image)


def encode_depth(metres: Float[Tensor, "b 1 h w"], encoding: DepthEncoding) -> Float[Tensor, "b 3 h w"]:
    """Depth images (m, 0 = unknown) as three input channels."""
    if encoding == "log":
        known = metres > 0
        safe = torch.where(known, metres, torch.ones_like(metres))
        return torch.cat((safe.log() / math.log(DEPTH_SCALE), known.to(metres), known * NEAR_DEPTH / safe), dim=1)
    one = {
        "clean": lambda d: d / DEPTH_SCALE,
        "metric": lambda d: (d - DEPTH_MEAN) / DEPTH_STD,
        "monodistill": lambda d: (d / DEPTH_SCALE - DEPTH_MEAN) / DEPTH_STD,
        "monoskd": lambda d: d / DEPTH_SCALE / MONOSKD_EXTRA_DIVISOR,
    }[encoding](metres)
    return one.expand(-1, 3, -1, -1)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def is_one_of(
    label: Int[Tensor, "*n"], classes: tuple[str, ...], vocabulary: tuple[str, ...] = HEAT_CLASSES
) -> Bool[Tensor, "*n"]:
    """Which labels, that index the names of a vocabulary, are of the named classes."""
    names = label_names(vocabulary)
    return torch.isin(label, constant([names.index(name) for name in classes], label))


def refuse_unknown(classes: tuple[str, ...], vocabulary: tuple[str, ...]) -> None:
    """Keeps a detector to what it has channels for.

    Raises:
        ValueError: a class is not of the vocabulary.
    """
    unknown = [name for name in classes if name not in vocabulary]
    if unknown:
        raise ValueError(f"detects some of {', '.join(vocabulary)}, not {', '.join(unknown)}")


def _is_cropped(batch: Batch) -> Bool[Tensor, "b"]:
    """Whether a random crop was taken: the source's centre is not in the canvas's middle, or the zoom is not 1."""
    affine = batch.affine
    plain = affine.canvas_size / 2 - affine.scale[:, None] * affine.source_size / 2
    moved = (affine.matrix[..., 2] - plain).abs().amax(-1) > 1e-6 * affine.canvas_size.amax(-1)
    return moved | (affine.zoom != 1)


def released_form(config: MonoDLEConfig) -> ReleasedForm:
    """xinzhuma/monodle's names, which are ours but for what no forward pass uses; MonoDistill's and MonoSTL's networks
    are saved alike."""
    unused = unused_in_released(config.trunk)
    return ReleasedForm(dropped=dict.fromkeys(unused, NEVER_USED), unused=unused)
