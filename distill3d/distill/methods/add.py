"""In the manner of ADD: the teacher is the student's own network, told how far each labelled object is; no LiDAR.

Wu et al., "Attention-Based Depth Distillation with 3D-Aware Positional Encoding for Monocular 3D Object Detection",
AAAI 2023, arXiv:2211.16779.  No code was released (rockywind/ADD holds a licence alone) and the paper was not at hand:
from its abstract are the teacher, that the student is adapted by 3D-aware self-attention and target-aware
cross-attention, that intermediate features and responses are distilled, and that nothing of it is left at test time.
All else is this project's, so its numbers are not to be taken for ADD's.

    L = L_detection + 1 L_feature + 1 L_response

    L_feature   sum w (A(S) - T)^2 / (C sum w), over cells of one tap; w 1 in boxes of labelled objects, 0.1 elsewhere
    A(S)        S + what its cells find in each other and in the cells of labelled objects, by attention
    position    (x, y, z) of a cell's middle at the depth that the student estimates there, and of a labelled object's
                true centre, through two linear layers: what cells are compared by
    L_response  MonoDistill's: head maps and directions around labelled objects
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from distill3d.camera import Camera
from distill3d.detectors.base import FeatureMap, ImageGeometry
from distill3d.detectors.monodle import MonoDLETargets, decode_depth
from distill3d.distill.adapters import in_dtype_of
from distill3d.distill.context import Context, comparable, refuse_absent_taps
from distill3d.distill.distances import weighted_mean
from distill3d.distill.masks import box_mask, image_stride
from distill3d.distill.precision import full_precision
from distill3d.distill.responses import ResponseTerm
from distill3d.distill.style import StyledConfig
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.layers.image.heatmap import gather_cells
from distill3d.layers.transformer import xavier
from distill3d.settings import Between, Channels, Share, Weight

#: Metres that coordinates are divided by before they are encoded, and the largest that a depth estimate counts as.
REACH = 60.0


@dataclass(frozen=True)
class ADDStyleConfig(StyledConfig):
    """Weights, tap and the adapter's size; all of it this project's choice.  A term of weight 0 is left out."""

    feature_weight: Weight = 1.0
    response_weight: Weight = 1.0
    #: Attention compares every cell with every other: at stride 4 there would be thirty thousand.
    tap: str = "neck_16"
    background: Share = 0.1  # how much cells outside of labelled boxes count
    channels: Channels = 64  # of the attention
    heads: Annotated[int, Between(1, 64)] = 4
    teacher: str | None = None  # its stage; None: the only one
    teacher_bn: Literal["eval"] = "eval"


def terms(config: ADDStyleConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """The feature term with its adapter, and the response term.

    Raises:
        UserError: student or teacher lacks the tap, or the heads do not divide the channels.
    """
    refuse_absent_taps("add_style", (config.tap,), (config.tap,), student_channels, teacher_channels)
    if config.channels % config.heads:
        raise UserError(f"add_style: {config.channels} channels cannot be divided among {config.heads} heads")
    all_terms = [
        FeatureTerm(config, student_channels[config.tap]),
        ResponseTerm("response", config.response_weight, "binary", "valid", "zero"),
    ]
    return [term for term in all_terms if term.weight != 0]


class FeatureTerm(Term):
    """L_feature, see ``imitation_loss``.  Couples the batch: a mean over the cells of all images of this process, by
    their weights."""

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: ADDStyleConfig, channels: int) -> None:
        super().__init__("feature", config.feature_weight)
        self.config = config
        self.adapter = TargetAttention(channels, config.channels, config.heads)

    def forward(self, context: Context) -> Tensor:
        config, targets = self.config, context.targets
        if not isinstance(targets, MonoDLETargets) or "depth" not in context.student.predictions:
            raise UserError("add_style asks the student how deep each cell lies, which MonoDLE's depth map says")
        student, teacher = comparable(config.tap, context.student, context.named(config.teacher))
        stride, size = image_stride(student), (student.tensor.shape[-2], student.tensor.shape[-1])
        cells = cell_positions(context, student)
        objects, known = object_positions(context)
        finest = context.student.predictions["depth"].shape[-1]
        ratio = finest // size[1]
        row, column = targets.indices // finest // ratio, targets.indices % finest // ratio
        index = (row.clamp(max=size[0] - 1) * size[1] + column.clamp(max=size[1] - 1)) * known
        adapted = self.adapter(in_dtype_of(student.tensor, self), cells, index, objects, known)
        weight = box_mask(targets.box2d, targets.eligible, stride, size)
        weight = torch.where(weight, 1.0, config.background)[:, None]
        return imitation_loss(adapted, teacher.tensor.detach(), weight).float()


class TargetAttention(nn.Module):
    """A map plus what its cells find by attention, first in all of its cells, then in those of labelled objects.

    What is added is 0 before training, so the adapter begins as none.
    """

    def __init__(self, channels: int, width: int, heads: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, 1)
        self.position = nn.Sequential(
            xavier(nn.Linear(3, width)), nn.ReLU(inplace=True), xavier(nn.Linear(width, width))
        )
        self.among_cells = nn.MultiheadAttention(width, heads, batch_first=True)
        self.to_objects = nn.MultiheadAttention(width, heads, batch_first=True)
        self.nobody = nn.Parameter(torch.zeros(width))  # what there is to find in images without objects
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.expand = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(self.expand.weight)
        assert self.expand.bias is not None
        nn.init.zeros_(self.expand.bias)

    def forward(
        self,
        maps: Float[Tensor, "b c h w"],
        cells: Float[Tensor, "b n 3"],
        index: Tensor,
        objects: Float[Tensor, "b k 3"],
        known: Bool[Tensor, "b k"],
    ) -> Float[Tensor, "b c h w"]:
        """``cells``, ``objects``: positions in ``REACH``; ``index`` (B, K): the flat cell of each object, where
        ``known``."""
        reduced = self.reduce(maps)
        x = reduced.flatten(2).transpose(1, 2)
        at = self.position(cells.to(x.dtype))
        placed = x + at
        found, _ = self.among_cells(placed, placed, x, need_weights=False)
        x = self.norms[0](x + found)

        seen = gather_cells(x.transpose(1, 2).unflatten(2, maps.shape[-2:]), index)
        nobody = self.nobody.to(x.dtype).expand(len(x), 1, -1)
        keys = torch.cat((seen + self.position(objects.to(x.dtype)), nobody), dim=1)
        values = torch.cat((seen, nobody), dim=1)
        found, _ = self.to_objects(x + at, keys, values, key_padding_mask=F.pad(~known, (0, 1)), need_weights=False)
        x = self.norms[1](x + found)
        return maps + self.expand(x.transpose(1, 2).unflatten(2, maps.shape[-2:]))


@torch.no_grad()
def cell_positions(context: Context, maps: FeatureMap) -> Float[Tensor, "b n 3"]:
    """Where the middles of a map's cells lie at the depths that the student estimates there (the mean of the finer
    depth map in each cell): camera-frame x, y, z in ``REACH``, cells row by row."""
    assert isinstance(maps.geometry, ImageGeometry)
    batch, stride = context.batch, maps.geometry.stride
    height, width = maps.tensor.shape[-2:]
    depth = decode_depth(context.student.predictions["depth"][:, :1].float()).clamp(0, REACH)
    depth = F.adaptive_avg_pool2d(depth, (height, width)).flatten(1)
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    middle = ((torch.stack((u, v), dim=-1) + 0.5) * stride).flatten(0, 1).to(depth)
    return _placed(context, middle.expand(len(batch), -1, -1), depth)


def _placed(context: Context, uv: Float[Tensor, "b n 2"], depth: Float[Tensor, "b n"]) -> Float[Tensor, "b n 3"]:
    """Canvas pixels at depths as networks say them, which are true ones times the crop's zoom."""
    camera = Camera(context.batch.camera.projection.to(depth))
    return camera.back_project(uv, depth / context.batch.affine.zoom.to(depth)[:, None]) / REACH


@torch.no_grad()
def object_positions(context: Context) -> tuple[Float[Tensor, "b k 3"], Bool[Tensor, "b k"]]:
    """The true centres of the trained objects, camera-frame x, y, z in ``REACH``, 0 in other slots; and which are."""
    known, slots = context.targets.mask_2d, context.targets.mask_2d.shape[1]
    centre = context.batch.objects.centre[:, :slots]
    centre = F.pad(centre, (0, 0, 0, slots - centre.shape[1]))
    return torch.where(known[..., None], centre, 0) / REACH, known


@full_precision
def imitation_loss(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c h w"], weight: Float[Tensor, "b 1 h w"]
) -> Float[Tensor, ""]:
    """sum w (S - T)^2 / (C sum w) over the cells of the batch."""
    return weighted_mean((student - teacher).square(), weight)
