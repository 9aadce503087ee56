"""MonoDETR: a monocular 3D detector whose object queries look at a depth embedding before they look at the image.

Zhang et al., "MonoDETR: Depth-guided Transformer for Monocular 3D Object Detection", ICCV 2023, arXiv:2203.13310;
released code ZrrSkywalker/MonoDETR (commit 6994b9f).  No anchors, no suppression, no dense depth labels: the depth map
is supervised by the labelled boxes.  With input ``depth`` it is the teacher of its own kind.

Lengths in the image are shares of the canvas: x by its width, y by its height.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distill3d.boxes import Boxes3D, BoxSlots, kitti_rows, wrap_angle
from distill3d.camera import Camera, DepthBins
from distill3d.data.sample import UNKNOWN, Batch
from distill3d.detectors.base import Detector, FeatureMap, ImageGeometry, Outputs, Style
from distill3d.detectors.monodle import (
    HEADING_BINS,
    HEAT_CLASSES,
    SMALLEST_SIZE,
    DepthEncoding,
    decode_depth,
    decode_heading,
    dimension_aware_l1,
    encode_heading,
    input_channels,
    is_one_of,
    laplace_loss,
    refuse_unknown,
    wrap_once,
)
from distill3d.detectors.released import NEVER_USED, ReleasedForm
from distill3d.errors import UserError
from distill3d.layers.distributed import across_processes, world_size
from distill3d.layers.heads.matching import FOCAL_ALPHA, FOCAL_GAMMA, UNMATCHED, assign, focal_cost
from distill3d.layers.image.deformable_attention import DeformableAttention, Sizes, cell_centres
from distill3d.layers.image.resnet import STRIDES, ResNet, ResNetConfig
from distill3d.layers.readout import LinearReadout, Readout
from distill3d.layers.transformer import FeedForward, Residual, xavier
from distill3d.settings import Ascending, Between, Channels, Layers, Length, Number, Share, added
from distill3d.transfers import constant, places

#: Levels of the image memory: the trunk's and one more at twice the coarsest stride.
LEVELS = len(STRIDES) + 1
#: Level (stride 16) on which depth is predicted.
DEPTH_LEVEL = 1
NORM_GROUPS = 32
#: Base of the wavelengths of the sine positions ("Attention is all you need", arXiv:1706.03762).
LONGEST_WAVE = 1e4
#: Nearest depth of the depth map's bins, m.
NEAREST_DEPTH = 1e-3
#: Shares are kept this far from 0 and 1 before their logit is taken.
SHARE_MARGIN = 1e-5
#: Prior probability of a class at a query.
CLASS_PRIOR = 0.01
#: Logit of the distances to a box's sides before training: 0.12 of the canvas.
SIDE_BIAS = -2.0
#: Boxes lower than this (px) count as this high where depth is computed from height.
SMALLEST_HEIGHT = 1.0
#: Objects more truncated or occluded than this are not trained.
MOST_TRUNCATION, MOST_OCCLUSION = 0.5, 2
#: Weights of the depth map's cells within boxes and elsewhere, and what every class adds to its one-hot target.
FOREGROUND, BACKGROUND, ONE_HOT_MARGIN = 13.0, 1.0, 1e-6
#: Channels of each head: classes (KITTI's); centre (x, y) and distances to the sides (left, right, top, bottom);
#: (height, width, length); bins and residuals; depth and its log scale.
HEADS = {"logits": len(HEAT_CLASSES), "boxes": 6, "size_3d": 3, "heading": 2 * HEADING_BINS, "depth": 2}
HIDDEN_LAYERS = {"logits": 0, "boxes": 2, "size_3d": 1, "heading": 1, "depth": 1}
#: Weights of the set losses, for each decoder layer alike; those of cost are also the matching's.
WEIGHTS = {"class": 2.0, "centre": 10.0, "sides": 5.0, "giou": 2.0, "size_3d": 1.0, "heading": 1.0, "depth": 1.0}


@dataclass(frozen=True)
class MonoDETRConfig:
    """Everything that makes one MonoDETR.  Defaults are the paper's size with the rows of the released-versus-intended
    table at their recommended values; ``styled`` sets all those rows at once."""

    input: Literal["rgb", "depth"] = "rgb"
    #: Channels of the classification: the data set's classes, in the order in which labels number them.
    vocabulary: tuple[str, ...] = added(HEAT_CLASSES)
    classes: tuple[str, ...] = ("Car",)  # trained and detected, of the vocabulary
    trunk: ResNetConfig = field(default_factory=ResNetConfig)
    channels: Channels = 256  # of the transformers; a multiple of 32
    feed_forward: Channels = 256
    attention_heads: Layers = 8
    points: Layers = 4  # of deformable attention, per head and level
    encoder_layers: Layers = 3
    decoder_layers: Layers = 3
    queries: Number = 50  # that answer at test time; the first group's
    groups: Layers = 11  # of queries in training, each matched on its own (Group DETR, arXiv:2207.13085)
    dropout: Annotated[float, Between(0, 1, below=True)] = 0.1
    max_objects: Number = 50  # label lines looked at per image
    depth_range: Annotated[tuple[Length, Length], Ascending()] = (2.0, 65.0)  # m; objects outside are not trained
    depth_bins: Annotated[int, Between(1, 10_000)] = (
        80  # of the depth map, growing linearly; one more stands for everything beyond
    )
    max_depth: Annotated[int, Between(1, 10_000)] = 60  # m; where the depth map's bins and its embedding end
    depth_encoding: DepthEncoding = "clean"
    top_k: Number = 50
    score_threshold: Share = 0.2  # of the class, before the depth confidence is multiplied in
    clip_2d: bool = False  # keep objects whose 3D centre is outside their 2D box, with distances cut to 0..1
    # released versus intended
    flip_camera: Literal["mirrored", "source"] = "mirrored"  # camera of the observation angle in mirrored images
    decode_scale: Literal["inverse", "per_axis"] = "inverse"  # canvas to image file: exact, or source size / canvas
    self_attention_value: Literal["content", "projected"] = "content"  # published results come from the content itself
    box_slice: Literal["clamp", "python"] = "clamp"  # python: cells left of the map are counted from its right end

    @classmethod
    def styled(cls, style: Style, **fields: Any) -> MonoDETRConfig:
        """A configuration with every released-versus-intended row set by ``style``; ``fields`` override."""
        rows = {
            "released": {"flip_camera": "source", "decode_scale": "per_axis", "self_attention_value": "content",
                         "box_slice": "python"},
            "intended": {"flip_camera": "mirrored", "decode_scale": "inverse", "self_attention_value": "projected",
                         "box_slice": "clamp"},
        }[style]  # fmt: skip
        return cls(**{**rows, **fields})

    @property
    def bins(self) -> DepthBins:
        """The division of the depth map."""
        return DepthBins(NEAREST_DEPTH, self.max_depth, self.depth_bins)


#: A trunk of 1.2 M parameters for the CPU: one block per stage, half the channels of ResNet-18.
TINY_TRUNK = ResNetConfig(block="basic", layers=(1, 1, 1, 1), channels=(32, 64, 128, 256))


def tiny(**fields: Any) -> MonoDETRConfig:
    """The small configuration: about 2.5 million parameters."""
    small = {"trunk": TINY_TRUNK, "channels": 96, "feed_forward": 192, "encoder_layers": 1, "decoder_layers": 2,
             "groups": 5}  # fmt: skip
    return MonoDETRConfig(**{**small, **fields})


# ------------------------------------------------------------------------------------------------------------- geometry


def box_corners(boxes: Float[Tensor, "*s 6"]) -> Float[Tensor, "*s 4"]:
    """Boxes (left, top, right, bottom) from a point and its distances to the sides."""
    x, y, left, right, top, bottom = boxes.unbind(-1)
    return torch.stack((x - left, y - top, x + right, y + bottom), dim=-1)


def generalised_iou(a: Float[Tensor, "*#s 4"], b: Float[Tensor, "*#s 4"]) -> Float[Tensor, "*s"]:
    """Element-wise generalised IoU (arXiv:1902.09630) of boxes (left, top, right, bottom); shapes broadcast."""

    def area(boxes: Tensor) -> Tensor:
        return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)

    least = torch.finfo(a.dtype).tiny
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = area(a) + area(b) - shared
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = (high - low).prod(-1)
    return shared / union.clamp(min=least) - (hull - union) / hull.clamp(min=least)


def bin_values(bins: DepthBins, like: Tensor) -> Float[Tensor, "n"]:
    """The depth (m) that each bin stands for: the middle of its number, and the far end for the one beyond."""
    step = 2 * (bins.far - bins.near) / (bins.count * (bins.count + 1))
    index = torch.arange(bins.count, dtype=torch.float64)
    values = (index + 0.5) ** 2 * step / 2 - step / 8 + bins.near
    return torch.cat((values, constant([bins.far], values))).to(like, non_blocking=True)


def expected_depth(logits: Float[Tensor, "b n h w"], values: Float[Tensor, "n"]) -> Float[Tensor, "b h w"]:
    """The mean depth (m) of each cell's distribution over the bins."""
    return (logits.softmax(1) * values[:, None, None]).sum(1)


def embed_depth(depth: Float[Tensor, "b h w"], table: Float[Tensor, "m c"]) -> Float[Tensor, "b h w c"]:
    """Rows of the table, one per metre from 0, interpolated at each cell's depth; the last row beyond it."""
    last = len(table) - 1
    low = depth.detach().floor().clamp(0, last)
    share = (depth - low)[..., None]
    low = low.long()
    return table[low] * (1 - share) + table[(low + 1).clamp(max=last)] * share


def object_depth(
    raw: Float[Tensor, "b q 2"],
    height_3d: Float[Tensor, "b q"],
    boxes: Float[Tensor, "b q 6"],
    depth_map: Float[Tensor, "b h w"],
    focal: Float[Tensor, "b"],
    canvas_height: Float[Tensor, "b"],
) -> Float[Tensor, "b q 2"]:
    """Depth (m) and log scale of each query: the mean of three depths, with the regressed log scale.

    The three: regressed; geometric, from the height in m over that in px (``focal`` in px, ``canvas_height`` the px
    that a share of 1 stands for); and the depth map's at the projected centre, which does not learn from where it is
    read.  The map's corner cells' centres are taken for the canvas's corners, as released.
    """
    height = (boxes[..., 4] + boxes[..., 5]) * canvas_height[:, None]
    geometric = height_3d / height.clamp(min=SMALLEST_HEIGHT) * focal[:, None]
    at = 2 * boxes[:, :, None, :2].detach() - 1
    mapped = F.grid_sample(depth_map[:, None], at, align_corners=True)[:, 0, :, 0]
    return torch.stack(((decode_depth(raw[..., 0]) + geometric + mapped) / 3, raw[..., 1]), dim=-1)


def sine_positions(height: int, width: int, channels: int, like: Tensor) -> Float[Tensor, "t channels"]:
    """Sine and cosine codes of each cell's row, then of its column, half of the channels each; row by row."""

    def axis(size: int) -> Tensor:
        turn = torch.arange(1, size + 1, device=like.device, dtype=like.dtype) / size * 2 * math.pi
        pair = torch.arange(channels // 4, device=like.device, dtype=like.dtype) * 2
        angle = turn[:, None] / LONGEST_WAVE ** (pair / (channels // 2))
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)

    rows, columns = axis(height)[:, None], axis(width)[None]
    return torch.cat((rows.expand(-1, width, -1), columns.expand(height, -1, -1)), dim=-1).flatten(0, 1)


# ---------------------------------------------------------------------------------------------------------- the network


def _convolution(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution and group norm."""
    conv = xavier(nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2))
    return nn.Sequential(conv, nn.GroupNorm(NORM_GROUPS, channels_out))


def _residual(config: MonoDETRConfig) -> Residual:
    return Residual(config.channels, config.dropout)


def _feed_forward(config: MonoDETRConfig) -> FeedForward:
    return FeedForward(config.channels, config.feed_forward, config.dropout)


def _attention(config: MonoDETRConfig) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(config.channels, config.attention_heads, config.dropout, batch_first=True)


def _deformable(config: MonoDETRConfig) -> DeformableAttention:
    return DeformableAttention(config.channels, LEVELS, config.attention_heads, config.points)


class DepthPredictor(nn.Module):
    """A depth map at stride 16 from the three finest levels, and its embedding for the decoder."""

    def __init__(self, config: MonoDETRConfig) -> None:
        super().__init__()
        c = config.channels
        self.finer, self.same, self.coarser = _convolution(c, c, 3, 2), _convolution(c, c, 1), _convolution(c, c, 1)
        self.mix = nn.Sequential(*(m for _ in range(2) for m in (*_convolution(c, c, 3), nn.ReLU(inplace=True))))
        self.classify = Readout(c, config.depth_bins + 1, 1)
        self.attention, self.add, self.feed_forward = _attention(config), _residual(config), _feed_forward(config)
        self.metres = nn.Embedding(config.max_depth + 1, c)
        self.bins = config.bins

    def forward(
        self, levels: list[Float[Tensor, "b c _ _"]], position: Float[Tensor, "t c"]
    ) -> tuple[Float[Tensor, "b n h w"], Float[Tensor, "b h w"], Float[Tensor, "b t c"]]:
        """Logits of the bins, expected depth (m), and the embedding's tokens; ``position`` of the middle level."""
        finer, same, coarser = levels
        coarser = F.interpolate(coarser, same.shape[-2:], mode="bilinear", align_corners=False)
        maps = self.mix((self.finer(finer) + self.same(same) + self.coarser(coarser)) / 3)
        logits = self.classify(maps)
        depth = expected_depth(logits, bin_values(self.bins, logits))
        tokens = maps.flatten(2).transpose(1, 2)
        query = tokens + position
        tokens = self.add(tokens, self.attention(query, query, tokens, need_weights=False)[0])
        return logits, depth, self.feed_forward(tokens) + embed_depth(depth, self.metres.weight).flatten(1, 2)


class EncoderLayer(nn.Module):
    """Deformable self attention of the image memory, and a feed-forward net."""

    def __init__(self, config: MonoDETRConfig) -> None:
        super().__init__()
        self.attention, self.add, self.feed_forward = _deformable(config), _residual(config), _feed_forward(config)

    def forward(self, tokens: Tensor, position: Tensor, reference: Tensor, sizes: Sizes) -> Float[Tensor, "b t c"]:
        return self.feed_forward(self.add(tokens, self.attention(tokens + position, reference, tokens, sizes)))


class DecoderLayer(nn.Module):
    """Queries look at the depth embedding, at each other within their group, at the image memory."""

    def __init__(self, config: MonoDETRConfig) -> None:
        super().__init__()
        c = config.channels
        self.depth_attention, self.depth_add = _attention(config), _residual(config)
        self.query_content, self.query_position = xavier(nn.Linear(c, c)), xavier(nn.Linear(c, c))
        self.key_content, self.key_position = xavier(nn.Linear(c, c)), xavier(nn.Linear(c, c))
        projected = config.self_attention_value == "projected"
        self.value = xavier(nn.Linear(c, c)) if projected else nn.Identity()
        self.self_attention, self.self_add = _attention(config), _residual(config)
        self.memory_attention, self.memory_add = _deformable(config), _residual(config)
        self.feed_forward = _feed_forward(config)
        self.group = config.queries

    def forward(
        self,
        content: Float[Tensor, "b q c"],
        position: Float[Tensor, "q c"],
        reference: Float[Tensor, "b q r"],
        depth_tokens: Float[Tensor, "b t c"],
        memory: Float[Tensor, "b m c"],
        sizes: Sizes,
    ) -> Float[Tensor, "b q c"]:
        seen = self.depth_attention(content, depth_tokens, depth_tokens, need_weights=False)[0]
        content = self.depth_add(content, seen)
        placed = content + position
        # both projections of the released code see content and position together
        query = self.query_content(placed) + self.query_position(placed)
        key = self.key_content(placed) + self.key_position(placed)
        grouped = [t.reshape(-1, self.group, t.shape[-1]) for t in (query, key, self.value(content))]
        told = self.self_attention(*grouped, need_weights=False)[0].reshape(content.shape)
        content = self.self_add(content, told)
        found = self.memory_attention(content + position, reference, memory, sizes)
        return self.feed_forward(self.memory_add(content, found))


class LayerHeads(nn.ModuleDict):
    """The heads after one decoder layer, perceptrons by name; ``first`` starts the boxes' sides small."""

    def __init__(self, channels: int, classes: int, first: bool) -> None:
        widths = HEADS | {"logits": classes}
        readouts = {head: LinearReadout(channels, width) for head, width in widths.items()}
        nn.init.constant_(readouts["logits"].bias, math.log(CLASS_PRIOR / (1 - CLASS_PRIOR)))
        nn.init.zeros_(readouts["boxes"].weight)
        nn.init.zeros_(readouts["boxes"].bias)
        if first:
            nn.init.constant_(readouts["boxes"].bias[2:], SIDE_BIAS)

        def perceptron(head: str) -> nn.Sequential:
            hidden = ((nn.Linear(channels, channels), nn.ReLU(inplace=True)) for _ in range(HIDDEN_LAYERS[head]))
            return nn.Sequential(*(layer for pair in hidden for layer in pair), readouts[head])

        super().__init__({head: perceptron(head) for head in HEADS})

    def forward(self, content: Float[Tensor, "b q c"]) -> dict[str, Tensor]:
        return {head: layers(content) for head, layers in self.items()}


# ------------------------------------------------------------------------------------------------- targets and matching


@dataclass(frozen=True)
class MonoDETRTargets:
    """Training targets in K slots per image; slot i is label line i.  Untrained slots hold zeros."""

    label: Int[Tensor, "b k"]  # index into the vocabulary
    boxes: Float[Tensor, "b k 6"]  # projected 3D centre (x, y), distances to the 2D box's left, right, top, bottom
    size_3d: Float[Tensor, "b k 3"]  # (height, width, length) in m
    depth: Float[Tensor, "b k"]  # m times crop zoom
    heading_bin: Int[Tensor, "b k"]
    heading_residual: Float[Tensor, "b k"]  # rad
    mask_2d: Bool[Tensor, "b k"]  # trained objects
    # what distillation methods ask for
    box2d: Float[Tensor, "b k 4"]  # canvas px, every label line
    present: Bool[Tensor, "b k"]  # a label line stands here
    eligible: Bool[Tensor, "b k"]  # passed class, level and range
    distance: Float[Tensor, "b k"]  # of the 3D centre, m; every label line
    centre_cell: Int[Tensor, "b k"]  # flat cell row * w + column of the projected centre at stride 8

    @property
    def on_map(self) -> Bool[Tensor, "b k"]:
        """Objects that methods may ask about: the trained ones, for no query is matched to others."""
        return self.mask_2d


def matching_cost(
    logits: Float[Tensor, "b l q c"], boxes: Float[Tensor, "b l q 6"], targets: MonoDETRTargets
) -> Float[Tensor, "b l q k"]:
    """The cost of every query for every slot: focal class cost, L1 of centre and sides, generalised IoU."""
    of_class = focal_cost(logits, targets.label[:, None].expand(-1, logits.shape[1], -1))
    ours, theirs = boxes[..., None, :], targets.boxes[:, None, None]
    error = (ours - theirs).abs()
    overlap = generalised_iou(box_corners(ours), box_corners(theirs))
    return (
        WEIGHTS["class"] * of_class
        + WEIGHTS["centre"] * error[..., :2].sum(-1)
        + WEIGHTS["sides"] * error[..., 2:].sum(-1)
        - WEIGHTS["giou"] * overlap
    )


@torch.no_grad()
def match(predictions: dict[str, Tensor], targets: MonoDETRTargets, queries: int) -> Int[Tensor, "b l g k"]:
    """The query of each slot for every decoder layer and group of ``queries`` queries, each matched on its own.

    ``UNMATCHED`` for slots that are not trained and where a group has too few queries.
    """
    cost = matching_cost(predictions["logits"], predictions["boxes"], targets)
    batch, layers, total, slots = cost.shape
    groups = total // queries
    present = targets.mask_2d[:, None].expand(-1, layers * groups, -1)
    query = assign(cost.reshape(-1, queries, slots), present.flatten(0, 1)).view(batch, layers, groups, slots)
    first = torch.arange(groups, device=query.device)[:, None] * queries
    return torch.where(query == UNMATCHED, UNMATCHED, query + first)


# --------------------------------------------------------------------------------------------------------------- losses


def set_losses(
    predictions: dict[str, Tensor], targets: MonoDETRTargets, matched: Int[Tensor, "b g k"],
    found: tuple[Tensor, ...] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """The un-weighted losses of one decoder layer, from heads (B, Q, channels) and each slot's query.

    Reduction: all are sums over the batch, divided by groups x trained objects, at least 1.  The class counts at every
    query, the rest at matched ones: L1 of centre and sides, 1 - generalised IoU, dimension-aware L1, cross entropy of
    the heading bin plus L1 of the true bin's residual, Laplace likelihood of the depth.

    ``found``: image, group and slot of what is matched, where that is known.
    """
    from torchvision.ops import sigmoid_focal_loss

    image, group, slot = found or (matched != UNMATCHED).nonzero(as_tuple=True)
    query = matched[image, group, slot]
    at = {head: values[image, query] for head, values in predictions.items()}
    label, boxes = targets.label[image, slot], targets.boxes[image, slot]
    size, true_bin = targets.size_3d[image, slot], targets.heading_bin[image, slot]

    one_hot = torch.zeros_like(predictions["logits"])
    one_hot[image, query, label] = one_hot.new_ones(())
    error = (at["boxes"] - boxes).abs()
    bins, residuals = at["heading"].split(HEADING_BINS, dim=-1)
    residual = residuals.gather(1, true_bin[:, None])[:, 0]
    sums = {
        "class": sigmoid_focal_loss(predictions["logits"], one_hot, FOCAL_ALPHA, FOCAL_GAMMA, "sum"),
        "centre": error[:, :2].sum(),
        "sides": error[:, 2:].sum(),
        "giou": (1 - generalised_iou(box_corners(at["boxes"]), box_corners(boxes))).sum(),
        "size_3d": dimension_aware_l1(at["size_3d"], size, size).sum(),
        "heading": F.cross_entropy(bins, true_bin, reduction="sum")
        + (residual - targets.heading_residual[image, slot]).abs().sum(),
        "depth": laplace_loss(at["depth"][:, 0], targets.depth[image, slot], at["depth"][:, 1]).sum(),
    }
    count = (targets.mask_2d.sum() * matched.shape[1]).to(error)
    count = across_processes(count).clamp(min=1 / world_size())
    return {name: value / count for name, value in sums.items()}


def paint_depth(
    corners: Float[Tensor, "b k 4"],
    depth: Float[Tensor, "b k"],
    trained: Bool[Tensor, "b k"],
    size: tuple[int, int],
    box_slice: Literal["clamp", "python"] = "clamp",
) -> Float[Tensor, "b h w"]:
    """The depth of the nearest trained object at each cell of a (height, width) map, 0 where there is none.

    ``corners`` are boxes (left, top, right, bottom) in cells; they fill every cell that they touch.
    """
    edges = torch.cat((corners[..., :2].floor(), corners[..., 2:].ceil()), dim=-1).long()
    height, width = size
    length = constant([width, height, width, height], edges)
    if box_slice == "python":
        edges = torch.where(edges < 0, edges + length, edges)
    left, top, right, bottom = torch.minimum(edges.clamp(min=0), length)[..., None].unbind(-2)
    column, row = torch.arange(width, device=edges.device), torch.arange(height, device=edges.device)
    across, down = (column >= left) & (column < right), (row >= top) & (row < bottom)  # (b, k, w), (b, k, h)
    inside = down[..., None] & across[..., None, :] & trained[..., None, None]
    nearest = torch.where(inside, depth[..., None, None], math.inf).amin(1)
    return torch.where(nearest.isinf(), 0, nearest)


def depth_map_loss(
    logits: Float[Tensor, "b n h w"], painted: Float[Tensor, "b h w"], bins: DepthBins
) -> Float[Tensor, ""]:
    """Focal loss of the depth map's bins: the mean over all cells, those within boxes counting 13 times.

    Every class's target is 1e-6 more than its one-hot value, as released.
    """
    log_probability = logits.log_softmax(1)
    gain = (1 - log_probability.exp()) ** FOCAL_GAMMA * log_probability
    of_target = gain.gather(1, bins.index(painted)[:, None])[:, 0] + ONE_HOT_MARGIN * gain.sum(1)
    weight = torch.where(painted > 0, FOREGROUND, BACKGROUND)
    return (-FOCAL_ALPHA * of_target * weight).mean()


# --------------------------------------------------------------------------------------------------------------- decode


@dataclass(frozen=True)
class Ranked:
    """The K surest pairs of query and class of each image, best first; a query may appear with several classes."""

    score: Float[Tensor, "b k"]
    label: Int[Tensor, "b k"]  # index into the vocabulary
    boxes: Float[Tensor, "b k 6"]
    depth: Float[Tensor, "b k"]  # m, as the network sees the scene: true depth times crop zoom
    confidence: Float[Tensor, "b k"]  # exp(-log scale) of the depth
    heading: Float[Tensor, "b k 24"]
    size_3d: Float[Tensor, "b k 3"]  # (height, width, length)


def rank_queries(predictions: dict[str, Tensor], top_k: int) -> Ranked:
    """The surest queries from heads (B, Q, channels) of one decoder layer."""
    probability = predictions["logits"].sigmoid().flatten(1)
    score, index = probability.topk(min(top_k, probability.shape[1]), dim=1)
    image = torch.arange(len(score), device=score.device)[:, None]
    kinds = predictions["logits"].shape[-1]
    query, label = index // kinds, index % kinds
    at = {head: predictions[head][image, query] for head in HEADS}
    return Ranked(score, label, at["boxes"], at["depth"][..., 0], torch.exp(-at["depth"][..., 1]), at["heading"],
                  at["size_3d"])  # fmt: skip


def ranked_to_boxes(ranked: Ranked, batch: Batch, config: MonoDETRConfig) -> BoxSlots:
    """Boxes of each image in the camera frame of its file, best class first.

    Those below the score threshold, and of classes that are not trained, are not kept; the final score is the class's
    times the depth confidence, which can exceed 1.
    """
    affine, depth = batch.affine, ranked.depth

    def to_source(shares: Tensor) -> Tensor:
        if config.decode_scale == "inverse":
            return affine.invert(shares * affine.canvas_size.to(shares)[:, None])
        return shares * affine.source_size.to(shares)[:, None]

    uv = to_source(ranked.boxes[..., :2])
    corners = [to_source(c) for c in box_corners(ranked.boxes).split(2, dim=-1)]
    # a mirrored image swaps left and right
    box2d = torch.cat((torch.minimum(*corners), torch.maximum(*corners)), dim=-1)
    camera = Camera(batch.source_camera.projection.to(depth))
    depth = depth / affine.zoom.to(depth)[:, None]
    centre = camera.back_project(uv, depth)

    bins, residuals = ranked.heading.split(HEADING_BINS, dim=-1)
    bin_index = bins.argmax(-1)
    alpha = decode_heading(bin_index, residuals.gather(-1, bin_index[..., None])[..., 0])
    alpha = torch.where(affine.flip[:, None], wrap_angle(math.pi - alpha), alpha)
    rotation_y = wrap_once(alpha + _ray_angle(box2d, camera))
    size = ranked.size_3d.clamp(min=SMALLEST_SIZE)
    bottom = centre + F.pad(size[..., :1] / 2, (1, 1))

    kept = (ranked.score >= config.score_threshold) & is_one_of(ranked.label, config.classes, config.vocabulary)
    return BoxSlots(*kitti_rows(size, bottom, rotation_y), ranked.label, ranked.score * ranked.confidence, kept,
                    "camera", box2d=box2d, alpha=alpha)  # fmt: skip


def _ray_angle(box2d: Float[Tensor, "b k 4"], camera: Camera) -> Float[Tensor, "b k"]:
    """Angle (rad) in the ground plane of the ray through the middle of each 2D box: rotation_y less observation."""
    p = camera.projection
    u = (box2d[..., 0] + box2d[..., 2]) / 2
    return torch.atan2(u - p[:, 0, 2, None], p[:, 0, 0, None].expand_as(u))


# ------------------------------------------------------------------------------------------------------------- detector


class MonoDETR(Detector):
    """ResNet trunk, depth predictor, deformable encoder, depth-guided decoder, heads after every decoder layer.

    Taps: ``backbone_8|16|32``, the trunk's maps, and ``neck_8|16|32``, the encoder's memory.  Predictions: each head of
    ``HEADS`` as (B, decoder layers, queries, channels) with logits raw, boxes in shares and depth in m; and
    ``depth_map`` (B, bins + 1, H / 16, W / 16), raw.  In training all groups of queries answer, otherwise the first.
    """

    name = "monodetr"
    config: MonoDETRConfig

    def __init__(self, config: MonoDETRConfig) -> None:
        super().__init__()
        refuse_unknown(config.classes, config.vocabulary)
        self.config = config
        c, widths = config.channels, config.trunk.outputs
        self.backbone = ResNet(config.trunk)
        self.project = nn.ModuleList([_convolution(width, c, 1) for width in widths])
        self.project.append(_convolution(widths[-1], c, 3, 2))
        self.depth_predictor = DepthPredictor(config)
        self.level = nn.Embedding(LEVELS, c)
        self.encoder = nn.ModuleList([EncoderLayer(config) for _ in range(config.encoder_layers)])
        self.query_position = nn.Embedding(config.groups * config.queries, c)
        self.query_content = nn.Embedding(config.groups * config.queries, c)
        self.reference = xavier(LinearReadout(c, 2))
        self.decoder = nn.ModuleList([DecoderLayer(config) for _ in range(config.decoder_layers)])
        self.heads = nn.ModuleList(
            [LayerHeads(c, len(config.vocabulary), first=i == 0) for i in range(config.decoder_layers)]
        )
        self.tap_channels = {f"backbone_{s}": width for s, width in zip(STRIDES, widths, strict=True)}
        self.tap_channels |= {f"neck_{s}": c for s in STRIDES}

    def input_image(self, batch: Batch) -> Float[Tensor, "b 3 h w"]:
        """The three channels that the trunk sees."""
        return input_channels(batch, self.config.input, self.config.depth_encoding)

    def forward(self, batch: Batch) -> Outputs:
        """Height and width of the images are multiples of 32."""
        trunk = self.backbone(self.input_image(batch).contiguous(memory_format=torch.channels_last))
        levels = [project(maps) for project, maps in zip(self.project, [*trunk, trunk[-1]], strict=True)]
        sizes: Sizes = tuple((m.shape[-2], m.shape[-1]) for m in levels)
        exact = self.level.weight
        positions = [sine_positions(*size, self.config.channels, exact) for size in sizes]
        logits, depth_map, depth_tokens = self.depth_predictor(levels[: len(STRIDES)], positions[DEPTH_LEVEL])

        memory = torch.cat([m.flatten(2).transpose(1, 2) for m in levels], dim=1)
        position = torch.cat([p + level for p, level in zip(positions, self.level.weight, strict=True)])
        centres = cell_centres(sizes, exact).expand(len(batch), -1, -1)
        for layer in self.encoder:
            memory = layer(memory, position, centres, sizes)
        predictions = self._decode_queries(batch, memory, sizes, depth_tokens, depth_map)
        neck = [part.transpose(1, 2).unflatten(2, size) for part, size in
                zip(memory.split([h * w for h, w in sizes], dim=1), sizes, strict=True)]  # fmt: skip
        features = {f"backbone_{s}": FeatureMap(m, ImageGeometry(s)) for s, m in zip(STRIDES, trunk, strict=True)}
        features |= {f"neck_{s}": FeatureMap(m, ImageGeometry(s)) for s, m in zip(STRIDES, neck, strict=False)}
        return Outputs(features, {**predictions, "depth_map": logits})

    def _decode_queries(
        self, batch: Batch, memory: Tensor, sizes: Sizes, depth_tokens: Tensor, depth_map: Tensor
    ) -> dict[str, Tensor]:
        """All decoder layers, each refining the boxes of the one before, and their heads."""
        count = len(self.query_position.weight) if self.training else self.config.queries
        position, content = self.query_position.weight[:count], self.query_content.weight[:count]
        content = content.expand(len(batch), -1, -1)
        reference = self.reference(position).sigmoid().expand(len(batch), -1, -1)
        focal, canvas_height = self._depth_geometry(batch, depth_map)
        found: list[dict[str, Tensor]] = []
        for layer, heads in zip(self.decoder, self.heads, strict=True):
            content = layer(content, position, reference, depth_tokens, memory, sizes)
            raw = heads(content)
            start = torch.logit(reference, SHARE_MARGIN)
            boxes = (raw["boxes"] + F.pad(start, (0, HEADS["boxes"] - start.shape[-1]))).sigmoid()
            depth = object_depth(raw["depth"], raw["size_3d"][..., 0], boxes, depth_map, focal, canvas_height)
            found.append({**raw, "boxes": boxes, "depth": depth})
            reference = boxes.detach()
        return {head: torch.stack([f[head] for f in found], dim=1) for head in HEADS}

    def _depth_geometry(self, batch: Batch, like: Tensor) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """Focal length (px of the image file) and the canvas's height (the same px, were the image not cropped)."""
        affine = batch.affine
        exact = affine.canvas_size[:, 1] / (affine.scale * affine.zoom)
        height = (exact if self.config.decode_scale == "inverse" else affine.source_size[:, 1]).to(like)
        return batch.source_camera.projection[:, 0, 0].to(like), height

    @torch.no_grad()
    def encode(self, batch: Batch) -> MonoDETRTargets:
        """Targets of the first ``max_objects`` label lines of each image, from float64 geometry."""
        if batch.objects is None:
            raise ValueError("training needs labels; this batch has none")
        config, image = self.config, batch.image
        canvas = batch.affine.canvas_size.double()[:, None]

        def first(value: Tensor) -> Tensor:
            kept = value[:, : config.max_objects]
            return kept.double() if kept.is_floating_point() else kept

        o = batch.objects
        centre, box2d, label, present = first(o.centre), first(o.box2d), first(o.label), first(o.present)
        near, far = config.depth_range
        z = centre[..., 2]
        known = first(o.difficulty) != UNKNOWN
        eligible = present & is_one_of(label, config.classes, config.vocabulary) & known & (z >= near) & (z <= far)

        safe = torch.where(eligible[..., None], centre, torch.ones_like(centre))
        uv = batch.camera.project(safe)[0]
        sides = torch.stack((uv - box2d[..., :2], box2d[..., 2:] - uv), dim=-1)  # (left, right), (top, bottom)
        enclosed = (sides >= 0).all(-1).all(-1) | config.clip_2d
        seen = (first(o.truncation) <= MOST_TRUNCATION) & (first(o.occlusion) <= MOST_OCCLUSION)
        mask_2d = eligible & enclosed & seen & ((uv >= 0) & (uv < canvas)).all(-1)
        sides = (sides / canvas[..., None]).flatten(-2)
        boxes = torch.cat((uv / canvas, sides.clamp(0, 1) if config.clip_2d else sides), dim=-1)

        camera = batch.camera
        if config.flip_camera == "source":
            camera = batch.source_camera.warped(batch.affine.matrix.to(camera.projection))
        ray = _ray_angle(box2d, Camera(camera.projection.double()))
        bins, residual = encode_heading(-first(o.yaw) - ray)
        stride = STRIDES[0]
        column, row = (uv / stride).long().unbind(-1)

        def trained_only(value: Tensor) -> Tensor:
            mask = mask_2d if value.dim() == 2 else mask_2d[..., None]
            value = torch.where(mask, value, torch.zeros_like(value))
            return value.to(image.dtype) if value.is_floating_point() else value

        return MonoDETRTargets(
            label=trained_only(label),
            boxes=trained_only(boxes),
            size_3d=trained_only(first(o.size).flip(-1)),
            depth=trained_only(z * batch.affine.zoom.double()[:, None]),
            heading_bin=trained_only(bins),
            heading_residual=trained_only(residual),
            mask_2d=mask_2d,
            box2d=box2d.to(image.dtype),
            present=present,
            eligible=eligible,
            distance=z.to(image.dtype),
            centre_cell=trained_only(row * (image.shape[-1] // stride) + column),
        )

    def loss(self, outputs: Outputs, batch: Batch, targets: MonoDETRTargets | None = None) -> dict[str, Tensor]:
        """The weighted losses of the last decoder layer by name, the earlier layers' with the layer's number behind,
        and the depth map's."""
        with torch.autocast(batch.image.device.type, enabled=False):
            targets = targets or self.encode(batch)
            predictions = dict(outputs.predictions)
            logits = predictions.pop("depth_map")
            matched = match(predictions, targets, self.config.queries)
            losses: dict[str, Tensor] = {}
            found = places(*(matched != UNMATCHED).unbind(1))  # of all layers by one wait
            for layer in reversed(range(matched.shape[1])):
                suffix = "" if layer == matched.shape[1] - 1 else f"_{layer}"
                said = {head: values[:, layer] for head, values in predictions.items()}
                of_layer = set_losses(said, targets, matched[:, layer], found[layer])
                losses |= {f"{name}{suffix}": WEIGHTS[name] * value for name, value in of_layer.items()}
            losses["depth_map"] = self._depth_map_loss(logits, batch, targets)
        return losses

    def _depth_map_loss(self, logits: Tensor, batch: Batch, targets: MonoDETRTargets) -> Tensor:
        size = (logits.shape[-2], logits.shape[-1])
        cells = STRIDES[DEPTH_LEVEL]
        painted = paint_depth(targets.box2d / cells, targets.depth, targets.mask_2d, size, self.config.box_slice)
        return depth_map_loss(logits, painted, self.config.bins)

    def decode(self, outputs: Outputs, batch: Batch) -> list[Boxes3D]:
        return self.decode_slots(outputs, batch).boxes()

    @torch.no_grad()
    def decode_slots(self, outputs: Outputs, batch: Batch) -> BoxSlots:
        last = {head: outputs.predictions[head][:, -1, : self.config.queries] for head in HEADS}
        return ranked_to_boxes(rank_queries(last, self.config.top_k), batch, self.config)

    def depth_log_scale(self, outputs: Outputs, batch: Batch, targets: Any) -> Float[Tensor, "b k"]:
        """The log scale s of each slot's depth: of the query that the last layer matches to it, or the mean over groups
        of queries in training; 0 in slots without one."""
        last = {head: outputs.predictions[head][:, -1:] for head in ("logits", "boxes", "depth")}
        matched = match(last, targets, self.config.queries)[:, 0]
        found = matched != UNMATCHED
        image = torch.arange(len(matched), device=matched.device)[:, None, None]
        scale = last["depth"][:, 0, :, 1][image, matched] * found  # UNMATCHED reads the last query
        return scale.sum(1) / found.sum(1).clamp(min=1)


# ----------------------------------------------------------------------------------------------------- released weights

#: Released names of the depths that the depth map's bins stand for, which are settings here; and the share of the
#: farthest to which files agree with the settings.
RELEASED_BINS, BINS_TOLERANCE = "depth_predictor.depth_bin_values", 1e-5
#: Released names of the heads.
RELEASED_HEADS = {"boxes": "bbox_embed", "size_3d": "dim_embed_3d", "heading": "angle_embed", "depth": "depth_embed"}
#: Released beginnings of names within deformable attention, within a layer of either encoder and within one of the
#: decoder; and ours.
RELEASED_DEFORMABLE = {
    "sampling_offsets": "offset", "attention_weights": "weight", "value_proj": "value", "output_proj": "output",
}  # fmt: skip
RELEASED_FEED_FORWARD = {"linear1": "feed_forward.layers.0", "linear2": "feed_forward.layers.3"}
RELEASED_ENCODER_LAYER = {
    "self_attn": "attention",
    **{f"self_attn.{theirs}": f"attention.{ours}" for theirs, ours in RELEASED_DEFORMABLE.items()},
    "norm1": "add.norm", **RELEASED_FEED_FORWARD, "norm2": "feed_forward.add.norm",
}  # fmt: skip
RELEASED_DECODER_LAYER = {
    "cross_attn_depth": "depth_attention", "norm_depth": "depth_add.norm",
    "sa_qcontent_proj": "query_content", "sa_qpos_proj": "query_position",
    "sa_kcontent_proj": "key_content", "sa_kpos_proj": "key_position", "sa_v_proj": "value",
    "self_attn": "self_attention", "norm2": "self_add.norm",
    **{f"cross_attn.{theirs}": f"memory_attention.{ours}" for theirs, ours in RELEASED_DEFORMABLE.items()},
    "norm1": "memory_add.norm", **RELEASED_FEED_FORWARD, "norm3": "feed_forward.add.norm",
}  # fmt: skip


def released_form(config: MonoDETRConfig) -> ReleasedForm:
    """ZrrSkywalker/MonoDETR's names of 2023; its code of the year before is another network."""
    unused = _unused_in_released(config)
    return ReleasedForm(
        _released_names(config), dict.fromkeys(unused, NEVER_USED),
        halved={"query_embed.weight": ("query_position.weight", "query_content.weight")},
        settings=(RELEASED_BINS,), read_settings=_with_released_bins,
        write_settings=lambda config: {RELEASED_BINS: _own_bins(config)}, unused=unused, counts_batches=False,
        aliases={
            "depthaware_transformer.decoder.bbox_embed": "bbox_embed",
            "depthaware_transformer.decoder.dim_embed": "dim_embed_3d",
        },
    )  # fmt: skip


def _released_names(config: MonoDETRConfig) -> dict[str, str]:
    predictor, transformer = "depth_predictor", "depthaware_transformer"
    names = {
        "backbone.0.body": "backbone.body", "input_proj": "project", f"{transformer}.level_embed": "level.weight",
        f"{transformer}.reference_points": "reference", f"{predictor}.downsample": f"{predictor}.finer",
        f"{predictor}.proj": f"{predictor}.same", f"{predictor}.upsample": f"{predictor}.coarser",
        f"{predictor}.depth_head": f"{predictor}.mix", f"{predictor}.depth_classifier": f"{predictor}.classify",
        f"{predictor}.depth_pos_embed": f"{predictor}.metres",
    }  # fmt: skip
    encoders = {f"{transformer}.encoder.layers.{i}": f"encoder.{i}" for i in range(config.encoder_layers)}
    decoders = {f"{transformer}.decoder.layers.{i}": f"decoder.{i}" for i in range(config.decoder_layers)}
    for layers, within in (
        ({f"{predictor}.depth_encoder.layers.0": predictor} | encoders, RELEASED_ENCODER_LAYER),
        (decoders, RELEASED_DECODER_LAYER),
    ):
        for theirs, ours in layers.items():
            names |= {f"{theirs}.{their_part}": f"{ours}.{part}" for their_part, part in within.items()}
    for i in range(config.decoder_layers):
        names[f"class_embed.{i}"] = f"heads.{i}.logits.0"
        for head, theirs in RELEASED_HEADS.items():
            layers = range(HIDDEN_LAYERS[head] + 1)
            names |= {f"{theirs}.{i}.layers.{n}": f"heads.{i}.{head}.{2 * n}" for n in layers}
    return names


def _own_bins(config: MonoDETRConfig) -> Float[Tensor, "n"]:
    return bin_values(config.bins, torch.zeros(()))


def _with_released_bins(found: Mapping[str, Tensor], config: MonoDETRConfig) -> MonoDETRConfig:
    """The settings, where a file has their bins.

    Raises:
        UserError: it has others.
    """
    own = _own_bins(config)
    theirs = found.get(RELEASED_BINS, own).float()
    if theirs.shape != own.shape or not torch.allclose(theirs, own, rtol=0, atol=BINS_TOLERANCE * config.max_depth):
        raise UserError(
            f"{RELEASED_BINS} holds other depths than depth_bins {config.depth_bins} and max_depth "
            f"{config.max_depth} give"
        )
    return config


def _unused_in_released(config: MonoDETRConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what released checkpoints hold and no forward pass uses: perceptrons of the decoder, an
    embedding of labels, and the value projections, unless the settings ask for them."""
    c, decoder = config.channels, "depthaware_transformer.decoder"
    weights = {f"{decoder}.query_scale.layers.{i}": (c, c) for i in (0, 1)}
    weights |= {f"{decoder}.ref_point_head.layers.0": (c, c), f"{decoder}.ref_point_head.layers.1": (2, c)}
    if config.self_attention_value == "content":
        weights |= {f"{decoder}.layers.{i}.sa_v_proj": (c, c) for i in range(config.decoder_layers)}
    shapes: dict[str, tuple[int, ...]] = {"label_enc.weight": (len(config.vocabulary) + 1, c - 1)}
    for layer, shape in weights.items():
        shapes |= {f"{layer}.weight": shape, f"{layer}.bias": shape[:1]}
    return shapes
