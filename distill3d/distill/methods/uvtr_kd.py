"""UVTR's knowledge transfer: a camera student's features imitate a LiDAR teacher's where the student sees objects.

Li et al., "Unifying Voxel-based Representation with Transformer for 3D Object Detection", NeurIPS 2022,
arXiv:2206.00630; released code dvlab-research/UVTR, projects/mmdet3d_plugin/models/dense_heads/uvtr_kd_head.py.
p_lq is the centre that query q of decoder layer l predicts, without gradient; S_i and T_i are the maps (or volumes) of
the chosen stages i of student and teacher, s = S_i(p_lq) and t = T_i(p_lq) read between cells, 0 outside:

    L = L_det + 0.01 L_points
    L_points = sum_l mean_i 1/n sum_b,q d(c(s), t)         d(s, t) = sum_c (s_c - t_c)^2 [s_c > t_c or t_c > 0]
    c(s) = s as released, LN(W s) as the paper's figure has it; with channel_norm c(s) and t are each divided by their
           mean absolute value over channels

n are the samples times queries, all of them, whether matched to an object or not.  A response of the teacher below 0
pulls down what lies above it and no more: behind a ReLU both are 0.

Students here are detectors whose maps lie on the ground.  Those of queries (BEVFormer) are read at the centres that
each decoder layer predicts; those with a centre head (BEVDepth) at their ``peaks`` best peaks, one layer; either at the
objects' centres instead (``points``), which is ours.  Maps are taken as taps give them: the released ones are those
before the last ReLU of UVTR's voxel encoder.

UVTR's own detector is not here.  Three of its parts stand in layers/ground/voxel_space.py, for detectors to come.  The
released margin, which asks for an argument that nothing gives, and the crash of a sample without boxes have no option.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from distill3d.distill.centre_points import Places, detections, object_places, places_on
from distill3d.distill.context import Context, refuse_absent_taps, tapped
from distill3d.distill.map_reading import cells_of, read_at
from distill3d.distill.masks import ground_geometry
from distill3d.distill.precision import full_precision
from distill3d.distill.style import StyledConfig, option
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.layers.distributed import across_processes, world_size
from distill3d.settings import Number, Weight
from distill3d.transfers import constant

#: Least mean absolute value that features are divided by.
LEAST_MEAN = 1e-12

#: What the student's features go through: nothing, a linear layer without bias, a layer norm, or one after the other.
Connector = Literal["none", "linear", "norm", "linear_norm"]
Distance = Literal["partial", "squared"]
Reduction = Literal["mean", "sum"]
#: Whose centres are looked at.
Points = Literal["predicted", "objects"]


@dataclass(frozen=True)
class UVTRKDConfig(StyledConfig):
    """Weight and form of the released configuration, and one option where code and paper differ."""

    teacher: str | None = None  # its stage; None: the only one
    weight: Weight = 0.01
    #: Pair by pair; a map may lie on a grid of its own.
    taps: tuple[str, ...] = ("bev_neck",)
    teacher_taps: tuple[str, ...] = ("bev_neck",)
    #: Without a linear layer both must have as many channels.
    connector: Connector = option(released="none", intended="linear_norm", default="linear_norm")
    channel_norm: bool = False
    distance: Distance = "partial"  # ``squared``: wherever the teacher's response lies
    reduction: Reduction = "mean"  # over samples and queries
    points: Points = "predicted"
    peaks: Number = 200  # of a student with a centre head


def terms(config: UVTRKDConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """The one term; none where its weight is 0.

    Raises:
        UserError: a tap is missing, or the channels of a pair differ without a linear layer between.
    """
    if config.weight == 0:
        return []
    return [PointFeatureTerm(config, *pair_channels(config, student_channels, teacher_channels))]


def pair_channels(
    config: UVTRKDConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The channels of the chosen taps of student and teacher.

    Raises:
        UserError: as ``terms``.
    """
    if not config.taps or len(config.taps) != len(config.teacher_taps):
        raise UserError(f"uvtr_kd compares taps pair by pair, got {config.taps} and {config.teacher_taps}")
    refuse_absent_taps("uvtr_kd", config.taps, config.teacher_taps, student_channels, teacher_channels)
    found = (
        tuple(student_channels[tap] for tap in config.taps),
        tuple(teacher_channels[tap] for tap in config.teacher_taps),
    )
    if found[0] != found[1] and not config.connector.startswith("linear"):
        raise UserError(
            f"uvtr_kd: the taps {', '.join(config.taps)} have {found[0]} channels and the teacher's {found[1]}: set "
            "connector to 'linear' or 'linear_norm'"
        )
    return found[0], found[1]


class PointFeatureTerm(Term):
    """L_points, see ``point_loss``.

    A mean over the points of all processes; with ``sum`` each process adds up its own, and the average over N processes
    is one Nth of what a single one sees, so the batch is coupled.
    """

    couples_batch: ClassVar[bool] = True

    def __init__(self, config: UVTRKDConfig, channels: tuple[int, ...], teacher_channels: tuple[int, ...]) -> None:
        super().__init__("points", config.weight)
        self.config = config
        self.connectors = nn.ModuleList(
            connector(config.connector, c_in, c) for c_in, c in zip(channels, teacher_channels, strict=True)
        )

    def forward(self, context: Context) -> Tensor:
        config, source = self.config, context.named(self.config.teacher)
        places = asked_places(context, config)
        stages = []
        for tap, teacher_tap, connect in zip(config.taps, config.teacher_taps, self.connectors, strict=True):
            student, teacher = tapped(tap, context.student, "student"), tapped(teacher_tap, source, "teacher")
            said, taught = (
                read_at(m.tensor, cells_of(places_on(places.centre, ground_geometry(m)), m.tensor))
                for m in (student, teacher)
            )
            stages.append((connect(said), taught.detach()))
        return point_losses(stages, config, places.counted).sum().float()


def asked_places(context: Context, config: UVTRKDConfig) -> Places:
    """The points of ``config.points``.

    Raises:
        UserError: the student predicts no boxes around the vehicle, or the objects are asked for and not annotated.
    """
    if config.points == "objects":
        return object_places(context.batch)
    found = detections(context.student, context.student_detector, config.peaks, "student")
    return Places(found.code[..., :3].detach())


def connector(kind: Connector, channels_in: int, channels: int) -> nn.Module:
    """From a student's features (..., C_in) to (..., C)."""
    layers: list[nn.Module] = []
    if kind.startswith("linear"):
        layers.append(nn.Linear(channels_in, channels, bias=False))
    if kind.endswith("norm"):
        layers.append(nn.LayerNorm(channels))
    return nn.Sequential(*layers)


@full_precision
def point_losses(
    stages: list[tuple[Float[Tensor, "b l n _"], Float[Tensor, "b l n _"]]],
    config: UVTRKDConfig,
    counted: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, "l"]:
    """Each layer's mean over ``stages`` of the sum of d over the samples' points, divided by their number (at least 1;
    the mean over processes) unless the ``reduction`` is ``sum``.

    Stages are pairs of the student's connected and the teacher's features.  Points that are not ``counted`` are left
    out; without any the loss is 0.
    """
    distances = []
    for student, teacher in stages:
        if config.channel_norm:
            student, teacher = (x / x.abs().mean(-1, keepdim=True).clamp(min=LEAST_MEAN) for x in (student, teacher))
        squared = (student - teacher).square()
        if config.distance == "partial":
            squared = torch.where((student > teacher) | (teacher > 0), squared, 0)
        distances.append(squared.sum(-1))
    distance = torch.stack(distances).mean(0)
    if counted is not None:
        distance = torch.where(counted[:, None], distance, 0)
    total = distance.sum((0, 2))
    if config.reduction == "sum":
        return total
    points = counted.sum() if counted is not None else constant(distance.shape[0] * distance.shape[2], total)
    return total / across_processes(points.to(total)).clamp(min=1 / world_size())
