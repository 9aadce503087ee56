"""MonoCon: a centre detector that learns where an object's corners lie, and forgets it after training.

Liu et al., "Learning Auxiliary Monocular Contexts Helps Monocular 3D Object Detection", AAAI 2022, arXiv:2112.04628;
released code Xianpeng919/MonoCon (commit 603575d) monocon/mmdet3d/models/dense_heads/monocon_head.py, of which
2gunsu/monocon-pytorch (commit 908807b) is a port.  Trunk and neck are MonoDLE's.  An object's cell is the centre of
its 2D box, rounded towards zero; each branch is conv 3x3 - attentive norm - ReLU - conv 1x1, and the heading's two
share all but the last.  With c the cell, k_1..k_8 the projected corners and k_9 the projected 3D centre, in cells:

    L = heat(centres) + heat(k_1..k_9)                        focal, divided by the peaks
      + |offset_2d| + .1 |size_2d|                            |...|: of the prediction less what stands there; means
      + |k - c| + |k - floor(k)|                              means over key points; the second read at k's own cell
      + 1.4142 exp(-s) |z - prediction| + s                   s the log scale of the depth
      + |size| / sg(p), scaled to the mean of |size|          p the predicted size; sg: no gradient
      + BCE(12 bins) + |residual of the true bin|             of the observation angle

Heat map and offsets of key points exist in training alone, and nothing but k_9 is read of the key points after it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distill3d.boxes import Boxes3D, BoxSlots, wrap_angle
from distill3d.camera import Camera
from distill3d.data.augment.lidar import NEAREST_CORNER
from distill3d.data.sample import Batch
from distill3d.detectors.base import Outputs, Style
from distill3d.detectors.monodle import (
    HEADING_BINS,
    HEAT_CLASSES,
    STRIDE,
    TINY_TRUNK,
    MonoDLE,
    MonoDLEConfig,
    MonoDLETargets,
    decode_depth,
    dimension_aware_l1,
    laplace_loss,
    peaks_to_boxes,
    read_peaks,
)
from distill3d.detectors.released import NEVER_USED, ReleasedForm
from distill3d.layers.distributed import across_processes, mean_over_processes
from distill3d.layers.image.attentive_norm import AttentiveNorm
from distill3d.layers.image.dla import unused_in_released
from distill3d.layers.image.heatmap import (
    cells_inside,
    clamped_sigmoid,
    draw_gaussians,
    focal_heatmap_loss,
    gather_cells,
    gaussian_radius,
)
from distill3d.layers.readout import Readout
from distill3d.settings import Channels, Number, Share
from distill3d.transfers import constant, places

#: Signs of the eight corners along length, height (down) and width, in the released order; the centre comes behind.
CORNERS = ((-1, -1, -1), (-1, -1, 1), (-1, 1, 1), (-1, 1, -1), (1, -1, -1), (1, -1, 1), (1, 1, 1), (1, 1, -1))
KEYPOINTS = len(CORNERS) + 1
#: Branches of their own, and their channels; of the last two nothing is asked after training.
BRANCHES = {"heatmap": len(HEAT_CLASSES), "size_2d": 2, "offset_2d": 2, "keypoints": 2 * KEYPOINTS, "size_3d": 3,
            "depth": 2, "keypoint_heatmap": KEYPOINTS, "keypoint_offset": 2}  # fmt: skip
AUXILIARY = ("keypoint_heatmap", "keypoint_offset")
#: The two last layers behind the direction branch.
DIRECTION = ("heading_bin", "heading_residual")
DEPTH_EPSILON = 1e-12
#: Bias of heat maps' last layer: the prior of a peak is 0.1.
HEAT_BIAS = -2.197
#: Intersection over union that peaks' radii keep.
OVERLAP = 0.3
SIZE_2D_WEIGHT = 0.1
#: Added to counts of key points.
COUNT_EPSILON = 1e-12
#: Sizes (m) below this do not divide the error.
LEAST_SIZE = 0.1
#: The released names of the branches.
RELEASED = {"heatmap": "heatmap_head", "size_2d": "wh_head", "offset_2d": "offset_head",
            "keypoints": "center2kpt_offset_head", "size_3d": "dim_head", "depth": "depth_head",
            "keypoint_heatmap": "kpt_heatmap_head", "keypoint_offset": "kpt_heatmap_offset_head",
            "direction": "dir_feat", "heading_bin": "dir_cls.0", "heading_residual": "dir_reg.0"}  # fmt: skip
#: What the original puts before them, and the port.
HEAD_PREFIXES = ("bbox_head", "head")
#: Where Pedestrian, Cyclist, Car stand in our order of classes; done twice it changes nothing.
CLASS_ORDER = (0, 2, 1)


@dataclass(frozen=True)
class MonoConConfig(MonoDLEConfig):
    """Everything that makes one MonoCon.  Defaults are the paper's size with the rows of the released-versus-intended
    table at their recommended values; ``styled`` sets all those rows at once.

    ``score_threshold`` applies to the final score, the heat map times the confidence in the depth.
    """

    classes: tuple[str, ...] = HEAT_CLASSES
    head_channels: Channels = 64
    top_k: Number = 30
    score_threshold: Share = 0.4
    #: Of detections: around the projected corners of the 3D box, as results are written, or that of the 2D heads.
    box2d: Literal["projected", "predicted"] = "projected"
    # MonoDLE's options, of which there is one way here
    cell: Literal["centre_2d"] = "centre_2d"
    mean_size: Literal[False] = False
    depth_mask: Literal["mask_2d"] = "mask_2d"
    decode_scale: Literal["inverse"] = "inverse"
    # released versus intended
    size_divisor: Literal["magnitude", "signed"] = "magnitude"  # signed: a negative predicted size divides as it is
    keypoint_cell: Literal["floor", "truncate"] = "floor"  # truncate: (-1, 0) is cell 0, too
    behind: Literal["hidden", "mirrored"] = "hidden"  # mirrored: points behind the camera whose image is in the picture
    ray: Literal["camera", "shifted"] = "camera"  # of the observation angle; shifted: x + P03 / P00 over z
    #: ``all`` is the port's: absent key points pull the offset in cell 0 to 0 and are not counted.
    keypoint_rows: Literal["masked", "all"] = "masked"

    @classmethod
    def styled(cls, style: Style, **fields: Any) -> MonoConConfig:
        """A configuration with every released-versus-intended row set by ``style``; ``fields`` override."""
        rows = {
            "released": {"size_divisor": "signed", "keypoint_cell": "truncate", "behind": "mirrored", "ray": "shifted",
                         "empty_reduction": "nan"},
            "intended": {"size_divisor": "magnitude", "keypoint_cell": "floor", "behind": "hidden", "ray": "camera",
                         "empty_reduction": "zero"},
        }[style]  # fmt: skip
        return cls(**{**rows, **fields})


#: After a few hundred steps a network is unsure of depths by metres, and the published threshold keeps next to nothing.
TINY_THRESHOLD = 0.02


def tiny(**fields: Any) -> MonoConConfig:
    """The small configuration, about 2.5 million parameters; its heads start from PyTorch's default weights."""
    return MonoConConfig(**{"trunk": TINY_TRUNK, "head_std": None, "score_threshold": TINY_THRESHOLD, **fields})


@dataclass(frozen=True)
class MonoConTargets(MonoDLETargets):
    """MonoDLE's targets at the cells of 2D centres, and key points: eight corners, then the 3D centre."""

    keypoints: Float[Tensor, "b k 9 2"]  # key point minus the object's cell, in cells
    keypoint_mask: Bool[Tensor, "b k 9"]  # key points of trained objects that can be said to be somewhere
    keypoint_heatmap: Float[Tensor, "b 9 h w"]
    keypoint_index: Int[Tensor, "b k 9"]  # flat cell of the key point itself
    keypoint_offset: Float[Tensor, "b k 9 2"]  # key point minus its own cell, in cells
    keypoint_shown: Bool[Tensor, "b k 9"]  # of those the ones whose cell is on the map


def box_keypoints(
    centre: Float[Tensor, "*n 3"], size: Float[Tensor, "*n 3"], rotation_y: Float[Tensor, "*n"]
) -> Float[Tensor, "*n 9 3"]:
    """The eight corners of camera-frame boxes in the order of ``CORNERS``, and their centres, m.

    ``size`` is (length, width, height), ``rotation_y`` KITTI's.
    """
    length, width, height = (size / 2).unbind(-1)
    half = torch.stack((length, height, width), -1)[..., None, :]
    along, down, across = (half * constant(CORNERS, size)).unbind(-1)
    c, s = torch.cos(rotation_y)[..., None], torch.sin(rotation_y)[..., None]
    corners = centre[..., None, :] + torch.stack((c * along + s * across, down, c * across - s * along), -1)
    return torch.cat((corners, centre[..., None, :]), -2)


def detection_losses(
    predictions: dict[str, Tensor], targets: MonoConTargets, config: MonoConConfig
) -> dict[str, Tensor]:
    """The ten supervised terms, weighted, from raw predictions (B, C, H, W).

    Reduction: heat maps over all cells, divided by the number of peaks; key points are sums over the key points that
    there are, divided by their numbers (two a point); the others are means over the trained objects of the batch and
    their components; bins are a mean over objects and bins.
    """
    ((image, slot),) = places(targets.mask_2d)

    def read(head: str) -> Tensor:
        return predictions[head].flatten(2)[image, :, of(targets.indices)]

    def of(target: Tensor) -> Tensor:
        return target[image, slot]

    def mean(values: Tensor) -> Tensor:
        return mean_over_processes(values, config.empty_reduction)

    def heat(name: str, target: Tensor) -> Tensor:
        return focal_heatmap_loss(clamped_sigmoid(predictions[name]), target)

    def of_points(prediction: Tensor, target: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        counted = across_processes(2 * mask.sum().to(prediction))
        return ((prediction - target).abs() * rows[..., None]).sum() / (counted + COUNT_EPSILON)

    depth, heading, size = read("depth"), read("heading"), read("size_3d")
    bins, true_bin = heading[:, :HEADING_BINS], of(targets.heading_bin)
    residual = heading[:, HEADING_BINS:].gather(1, true_bin[:, None])[:, 0]
    divisor = size if config.size_divisor == "signed" else size.abs().clamp(min=LEAST_SIZE)
    points = torch.cat((read("corners"), read("offset_3d")), 1).unflatten(1, (KEYPOINTS, 2))
    valid, shown = of(targets.keypoint_mask), of(targets.keypoint_shown)
    own_cells = gather_cells(predictions["keypoint_offset"], targets.keypoint_index.flatten(1))
    offset = of(own_cells.unflatten(1, targets.keypoint_index.shape[1:]))
    rows = shown if config.keypoint_rows == "masked" else torch.ones_like(shown)
    return {
        "heatmap": heat("heatmap", targets.heatmap),
        "size_2d": SIZE_2D_WEIGHT * mean((read("size_2d") - of(targets.size_2d)).abs()),
        "offset_2d": mean((read("offset_2d") - of(targets.offset_2d)).abs()),
        "size_3d": mean(dimension_aware_l1(size, of(targets.size_3d), divisor)),
        "depth": mean(laplace_loss(decode_depth(depth[:, 0], DEPTH_EPSILON), of(targets.depth), depth[:, 1])),
        "keypoints": of_points(points, of(targets.keypoints), valid, valid),
        "keypoint_heatmap": heat("keypoint_heatmap", targets.keypoint_heatmap),
        "keypoint_offset": of_points(offset, of(targets.keypoint_offset), shown, rows),
        "heading_bin": mean(
            F.binary_cross_entropy_with_logits(bins, F.one_hot(true_bin, HEADING_BINS).to(bins), reduction="none")
        ),
        "heading_residual": mean((residual - of(targets.heading_residual)).abs()),
    }


class MonoCon(MonoDLE):
    """MonoDLE's trunk, neck and taps; ten branches with attentive normalisation at stride 4.

    Predictions are those of MonoDLE, ``offset_3d`` from the cell of the 2D centre, and in training also ``corners``
    (B, 16, H, W) and ``keypoint_offset`` (B, 2, H, W) in cells, and ``keypoint_heatmap`` (B, 9, H, W), logits.
    """

    name = "monocon"
    config: Any  # a MonoConConfig

    def make_map_heads(self, channels: int) -> None:
        hidden = self.config.head_channels
        for name, width in BRANCHES.items():
            heat = name.endswith("heatmap")
            last = Readout(hidden, len(self.config.vocabulary) if name == "heatmap" else width, 1)
            if heat:
                assert last.bias is not None
                nn.init.constant_(last.bias, HEAT_BIAS)
            setattr(self, name, self._begun(nn.Sequential(*_branch(channels, hidden), last), heat))
        self.direction = self._begun(nn.Sequential(*_branch(channels, hidden)))
        self.heading_bin, self.heading_residual = (self._begun(Readout(hidden, HEADING_BINS, 1)) for _ in range(2))

    def _begun(self, branch: nn.Module, heat: bool = False) -> Any:
        """The branch with the released initial weights; heat maps keep PyTorch's."""
        if not heat and self.config.head_std is not None:
            for layer in branch.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.normal_(layer.weight, std=self.config.head_std)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
        return branch

    def read_map_heads(self, neck: Float[Tensor, "b c h w"]) -> dict[str, Tensor]:
        raw = {name: getattr(self, name)(neck) for name in BRANCHES if self.training or name not in AUXILIARY}
        seen = self.direction(neck)
        return as_predictions(raw | {name: getattr(self, name)(seen) for name in DIRECTION}, self.training)

    @torch.no_grad()
    def encode(self, batch: Batch) -> MonoConTargets:
        """Targets of the first ``max_objects`` label lines of each image.

        They are MonoDLE's with ``depth`` that of the matrix's third row, times crop zoom, ``offset_3d`` from the cell
        of the 2D centre, and ``on_map`` and ``centre_cell`` of that cell: there the depth is read.
        """
        if batch.objects is None:
            raise ValueError("training needs labels; this batch has none")
        objects, p = batch.objects, batch.camera.projection.double()
        centre = objects.centre.double()
        ray = _viewing_ray(centre, p, self.config.ray)
        base = super().encode(replace(batch, objects=replace(objects, alpha=-objects.yaw.double() - ray)))
        slots, (height, width) = base.mask_2d.shape[1], base.heatmap.shape[-2:]

        def fit(value: Tensor) -> Tensor:
            kept = value[:, :slots].double()
            return F.pad(kept, [0, 0] * (kept.dim() - 2) + [0, slots - kept.shape[1]])

        centre, trained = fit(objects.centre), base.mask_2d
        ahead = base.present & (centre[..., 2] > 0)
        points = box_keypoints(centre, fit(objects.size), -fit(objects.yaw))
        uv, depth = _project(points, batch.camera)
        uv = torch.where(trained[..., None, None], uv, 0) / STRIDE
        box = fit(objects.box2d) / STRIDE
        middle = (box[..., :2] + box[..., 2:]) / 2
        cell = middle.trunc().long()
        on_map = ahead & cells_inside(cell, height, width)

        valid = trained[..., None] & (depth > 0)
        if self.config.behind == "mirrored":
            inside = ((uv >= 0) & (uv <= constant((width, height), uv))).all(-1)
            valid = trained[..., None] & ((depth > 0) | inside)
        own = (uv.floor() if self.config.keypoint_cell == "floor" else uv.trunc()).long()
        shown = valid & cells_inside(own, height, width)
        lines = objects.label.shape[1]  # the slots behind them are empty
        peaks = (shown[:, :lines], own[:, :lines], (box[..., 2:] - box[..., :2])[:, :lines])
        heat = self._draw_keypoints(*peaks, height, width)
        real = base.depth.dtype

        def where(mask: Tensor, value: Tensor) -> Tensor:
            kept = torch.where(mask if value.dim() == mask.dim() else mask[..., None], value, 0)
            return kept.to(real) if kept.is_floating_point() else kept

        of_cell = where(valid, uv - cell[..., None, :])
        full = (centre[..., 2] + p[:, 2, 3, None]) * batch.affine.zoom.double()[:, None]
        return MonoConTargets(
            **vars(base)
            | {
                "depth": where(trained, full), "mask_3d": trained, "on_map": on_map,
                "offset_3d": where(trained, uv[..., -1, :] - cell),
                "centre_cell": torch.where(on_map, cell[..., 1] * width + cell[..., 0], 0),
            },
            keypoints=of_cell,
            keypoint_mask=valid,
            keypoint_heatmap=heat.to(base.heatmap),
            keypoint_index=where(shown, own[..., 1] * width + own[..., 0]),
            keypoint_offset=where(shown, uv - own),
            keypoint_shown=shown,
        )  # fmt: skip

    def peak_radius(self, size_2d: Float[Tensor, "*n 2"]) -> Int[Tensor, "*n"]:
        return gaussian_radius(size_2d[..., 1], size_2d[..., 0], OVERLAP, "exact").trunc().clamp(min=0).long()

    def _draw_keypoints(
        self, shown: Bool[Tensor, "b k 9"], cell: Int[Tensor, "b k 9 2"], size_2d: Tensor, height: int, width: int
    ) -> Float[Tensor, "b 9 h w"]:
        """Peaks as wide as the object's own."""
        maps = size_2d.new_zeros(len(shown) * KEYPOINTS, height, width)
        image, point = (torch.arange(sides, device=cell.device) for sides in (len(shown), KEYPOINTS))
        plane = (image[:, None, None] * KEYPOINTS + point).expand_as(shown)
        radius = self.peak_radius(size_2d)[..., None].expand_as(shown)
        drawn = draw_gaussians(maps, *(value.flatten(0, 2) for value in (plane, cell, radius, shown)))
        return drawn.unflatten(0, (len(shown), KEYPOINTS))

    def loss(self, outputs: Outputs, batch: Batch, targets: Any = None) -> dict[str, Tensor]:
        with torch.autocast(batch.image.device.type, enabled=False):
            return detection_losses(outputs.predictions, targets or self.encode(batch), self.config)

    def decode(self, outputs: Outputs, batch: Batch) -> list[Boxes3D]:
        return self.decode_slots(outputs, batch).boxes()

    @torch.no_grad()
    def decode_slots(self, outputs: Outputs, batch: Batch) -> BoxSlots:
        height, width = outputs.predictions["heatmap"].shape[-2:]
        peaks = read_peaks(outputs.predictions, self.config.top_k, DEPTH_EPSILON)
        peaks = replace(peaks, score=peaks.score * peaks.confidence, confidence=torch.ones_like(peaks.confidence))
        slots = peaks_to_boxes(peaks, batch, self.config, (width, height), "homogeneous")
        return as_results(slots, batch) if self.config.box2d == "projected" else slots


def as_predictions(raw: dict[str, Tensor], training: bool) -> dict[str, Tensor]:
    """Predictions by their names here, from what the branches say (B, C, H, W): sizes as (height, width, length), which
    branches say as (length, height, width); the key points' centre apart from the corners, which only training has."""
    named = {name: value for name, value in raw.items() if name not in ("keypoints", *DIRECTION)}
    corners, centre = raw["keypoints"].split((2 * (KEYPOINTS - 1), 2), 1)
    length, height_width = raw["size_3d"].split((1, 2), 1)
    named |= {
        "size_3d": torch.cat((height_width, length), 1), "offset_3d": centre,
        "heading": torch.cat([raw[name] for name in DIRECTION], 1),
    }  # fmt: skip
    return named | ({"corners": corners} if training else {})


def as_results(slots: BoxSlots, batch: Batch) -> BoxSlots:
    """The slots with 2D boxes around the projected corners, cut to the picture, of which those that miss it are not
    kept, and the observation angles of their centres."""
    camera = batch.source_camera
    corners = box_keypoints(slots.centre, slots.size, -slots.yaw)[..., :-1, :]
    near = corners[..., 2].clamp(min=NEAREST_CORNER)
    uv, _ = _project(torch.cat((corners[..., :2], near[..., None]), -1), Camera(camera.projection.to(corners)))
    size = batch.affine.source_size.to(uv)[:, None]
    low, high = uv.amin(-2), uv.amax(-2)
    meets = ((high >= 0) & (low <= size)).all(-1)
    box2d = torch.cat((low.clamp(min=0).minimum(size), high.clamp(min=0).minimum(size)), -1)
    alpha = wrap_angle(-slots.yaw - torch.atan2(slots.centre[..., 0], slots.centre[..., 2]))
    return replace(slots, kept=slots.kept & meets, box2d=box2d, alpha=alpha)


def released_form(config: MonoConConfig) -> ReleasedForm:
    """Xianpeng919/MonoCon's names, and those of 2gunsu/monocon-pytorch, which differ in the heads' prefix."""
    renamed = {
        f"{prefix}.{theirs}{part}": f"{mine}{ours}"
        for prefix in HEAD_PREFIXES for mine, theirs in RELEASED.items()
        for part, ours in (("", ""), *(NORM_NAMES if mine not in DIRECTION else ()))
    }  # fmt: skip
    steps = (1, 2, 3)  # of the neck's three aggregations
    renamed |= {
        f"neck.ida_{i}.{block}_{step}.bn1": f"neck.ida_{i}.{block}_{step}.bn"
        for i, last in enumerate(steps) for step in range(1, last + 1) for block in ("proj", "node")
    }  # fmt: skip
    unused = {name: shape for name, shape in unused_in_released(config.trunk).items() if ".project." in name}
    order = (CLASS_ORDER, 1.0)
    reordered = {f"heatmap.3.{part}": order for part in ("weight", "bias")} if config.vocabulary == HEAT_CLASSES else {}
    return ReleasedForm(renamed=renamed, dropped=dict.fromkeys(unused, NEVER_USED), unused=unused, reordered=reordered)


#: What stands behind a branch's name where it is normalised, in theirs and ours.
NORM_NAMES = (
    (".1.weight_", ".1.weight"), (".1.bias_", ".1.bias"), (".1.attn_weights.attention", ".1.attention"),
    *((f".1.{name}", f".1.norm.{name}") for name in ("running_mean", "running_var", "num_batches_tracked")),
)  # fmt: skip


def _branch(channels: int, hidden: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, hidden, 3, padding=1), AttentiveNorm(hidden), nn.ReLU(inplace=True)


def _project(points: Float[Tensor, "b k n 3"], camera: Camera) -> tuple[Tensor, Tensor]:
    """Pixels of points in (b, k, n), by the depths of the matrix's third row, none of which is 0; and their own z, by
    which they are before the camera or behind it."""
    p = camera.projection
    depth = points[..., 2] + p[..., None, None, 2, 3]
    safe = torch.where(depth == 0, torch.finfo(depth.dtype).eps, depth)
    rows = points @ p[:, None, :2, :3].transpose(-1, -2) + p[:, None, None, :2, 3]
    return rows / safe[..., None], points[..., 2]


def _viewing_ray(
    centre: Float[Tensor, "b m 3"], p: Float[Tensor, "b 3 4"], ray: Literal["camera", "shifted"]
) -> Float[Tensor, "b m"]:
    """The angle (rad) under which a camera's own pinhole sees a point, to the right of its axis."""
    x, z, shift = centre[..., 0], centre[..., 2], p[:, 0, 3, None]
    if ray == "camera":
        beyond = p[:, 2, 3, None]
        z, shift = z + beyond, shift - p[:, 0, 2, None] * beyond
    return torch.atan2(x + shift / p[:, 0, 0, None], z)
