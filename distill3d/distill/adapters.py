"""Small networks between student features and a teacher's.  They train with the student and are left behind after it.

Sources: MonoDistill lib/models/fusion.py and centernet3d_distill.py; the fusion follows dvlab-research/ReviewKD
(arXiv:2104.09044).  Module names follow the released checkpoints below the block's own prefix.  The adaptors of ground
maps are those of DistillBEV, qcraftai/distill-bev mmdet3d/models/detectors/bevdet_distill.py.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from typing import Generic, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from distill3d.detectors.base import FeatureMap
from distill3d.distill.context import Context
from distill3d.errors import UserError

T = TypeVar("T")

#: What a ground map goes through to meet a teacher's, named as released: convolutions, with ``layer`` followed by batch
#: norm and ReLU each, of which the last keeps what is adapted at 0 or above; between them channels stay as they are.
#: ``upsample`` brings the map to the teacher's size first, ``downsample`` and ``avgpool`` halve it.
MapAdaptation = Literal[
    "1x1conv", "3x3conv", "mlp", "2layer", "3layer", "downsample_2layer", "upsample_2layer", "upsample_3layer",
    "upsample_1x1conv", "avgpool_1x1conv",
]  # fmt: skip


class ConvAdapter(nn.Sequential):
    """conv3x3 - ReLU - conv1x1, channels kept: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 1)
        )

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return super().forward(in_dtype_of(input, self))


class FusionBlock(nn.Module):
    """One level of the review fusion: u = BN conv1x1(x), mixed with the coarser level's u; output BN conv3x3(u)."""

    def __init__(self, channels: int, mid_channels: int, coarsest: bool) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(channels, mid_channels, 1, bias=False), nn.BatchNorm2d(mid_channels))
        self.conv2 = nn.Sequential(
            nn.Conv2d(mid_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.att_conv = None if coarsest else nn.Sequential(nn.Conv2d(2 * mid_channels, 2, 1), nn.Sigmoid())
        for conv in (self.conv1[0], self.conv2[0]):
            nn.init.kaiming_uniform_(conv.get_parameter("weight"), a=1)

    def forward(
        self, x: Float[Tensor, "b c h w"], coarser: Float[Tensor, "b m _ _"] | None = None
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b m h w"]]:
        """The fused map, and u for the next finer level."""
        u = self.conv1(x)
        if self.att_conv is not None and coarser is not None:
            y = F.interpolate(coarser, size=u.shape[-2:], mode="nearest")
            z = self._weights(u, coarser)
            u = torch.addcmul(u * z[:, :1], y, z[:, 1:])
        return self.conv2(u), u

    def _weights(self, u: Float[Tensor, "b m h w"], coarser: Float[Tensor, "b m _ _"]) -> Float[Tensor, "b 2 h w"]:
        """``att_conv`` of u and the enlarged coarser map side by side: a 1x1 convolution, so each half is read where it
        is, and the coarser one before it is enlarged."""
        assert self.att_conv is not None
        weight, bias = self.att_conv[0].get_parameter("weight"), self.att_conv[0].get_parameter("bias")
        of_u, of_coarser = weight.split(u.shape[1], dim=1)
        enlarged = F.interpolate(F.conv2d(coarser, of_coarser), size=u.shape[-2:], mode="nearest")
        return torch.sigmoid(F.conv2d(u, of_u, bias) + enlarged)


class ReviewFusion(nn.ModuleList):
    """The chain of fusion blocks from the coarsest map to the finest; block 0 is the coarsest, as in checkpoints."""

    def __init__(self, channels: tuple[int, ...], mid_channels: int) -> None:
        """``channels`` of the maps from fine to coarse."""
        coarse_to_fine = enumerate(reversed(channels))
        super().__init__([FusionBlock(c, mid_channels, coarsest=i == 0) for i, c in coarse_to_fine])

    def forward(self, maps: list[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b _ _ _"]]:
        """Maps from fine to coarse, and the fused maps in the same order and shapes."""
        fused, u = [], None
        for block, x in zip(self, reversed(maps), strict=True):
            out, u = block(in_dtype_of(x, self), u)
            fused.append(out)
        return fused[::-1]


class MapAdaptor(nn.Module):
    """(B, C, Y, X) -> (B, D, y, x), see ``MapAdaptation``."""

    def __init__(self, kind: MapAdaptation, channels_in: int, channels: int) -> None:
        super().__init__()
        self.kind: MapAdaptation = kind
        resampling, _, form = kind.rpartition("_")
        self.resampling = resampling  # "" for those without
        stride = 2 if resampling == "downsample" else 1
        c, d = channels_in, channels
        if form == "mlp":
            self.layers = nn.Sequential(nn.Conv2d(c, c, 1), nn.ReLU(inplace=True), nn.Conv2d(c, d, 1))
        elif form.endswith("conv"):
            kernel = 3 if form == "3x3conv" else 1
            self.layers = nn.Sequential(nn.Conv2d(c, d, kernel, padding=kernel // 2))
        else:
            widths = {"2layer": (c, d), "3layer": (c, c, d)}[form]
            self.layers = nn.Sequential()
            for i, width in enumerate(widths):
                kernel, step = (stride, stride) if i == 0 else (1, 1)
                self.layers.extend([nn.Conv2d(c, width, kernel, step), nn.BatchNorm2d(width), nn.ReLU(inplace=True)])

    def forward(self, maps: Float[Tensor, "b c _ _"], size: tuple[int, int]) -> Float[Tensor, "b d y x"]:
        """The adapted map, which has ``size`` (rows, columns) cells.

        Upsampling is bilinear from corner to corner.

        Raises:
            UserError: the adaptor does not lead from the map's size to ``size``.
        """
        found = (maps.shape[-2], maps.shape[-1])
        if self.resampling == "upsample":
            reached = all(want % have == 0 for have, want in zip(found, size, strict=True))
        else:
            shrinks = 2 if self.resampling else 1
            reached = all(have == want * shrinks for have, want in zip(found, size, strict=True))
        if not reached:
            raise UserError(
                f"the adaptor {self.kind!r} does not lead from a map of {found[0]} x {found[1]} cells to one of "
                f"{size[0]} x {size[1]} cells: choose another of the adaptors, or other taps"
            )
        x = in_dtype_of(maps, self)
        if self.resampling == "upsample":
            x = F.interpolate(x, size, mode="bilinear", align_corners=True)
        elif self.resampling == "avgpool":
            x = F.avg_pool2d(x, 2)
        return self.layers(x)


class AdaptedOnce(nn.Module, ABC, Generic[T]):
    """Adapted maps that terms share: all hold one instance, and within a training step they are computed once."""

    def __init__(self) -> None:
        super().__init__()
        self._step: weakref.ref[Context] | None = None
        self._adapted: list[T] = []

    def forward(self, context: Context) -> list[T]:
        """What ``adapt`` makes of this step's context."""
        if self._step is None or self._step() is not context:
            self._adapted = self.adapt(context)
            self._step = weakref.ref(context, self._forget)
        return self._adapted

    def _forget(self, _: weakref.ref[Context]) -> None:
        self._adapted = []

    @abstractmethod
    def adapt(self, context: Context) -> list[T]: ...


class AdaptedTaps(AdaptedOnce[tuple[FeatureMap, FeatureMap]]):
    """A student's taps made comparable to the teacher's: optional review fusion, then one adapter a tap."""

    def __init__(
        self,
        taps: tuple[str, ...],
        channels: dict[str, int],
        teacher_channels: dict[str, int],
        fusion_taps: tuple[str, ...] = (),
        mid_channels: int = 0,
    ) -> None:
        """``taps`` are compared, ``fusion_taps`` (none: no fusion) fused first; both from fine to coarse.

        Raises:
            ValueError: a tap is missing, its channels differ between the two, or it is not among the fused ones.
        """
        super().__init__()
        offered = {"student": (channels, (*taps, *fusion_taps)), "teacher": (teacher_channels, taps)}
        for who, (there, asked) in offered.items():
            if missing := [tap for tap in asked if tap not in there]:
                raise ValueError(f"the {who} has no tap {missing[0]!r}; it offers {', '.join(there)}")
        for tap in taps:
            if channels[tap] != teacher_channels[tap]:
                raise ValueError(
                    f"tap {tap!r} has {channels[tap]} channels in the student and {teacher_channels[tap]} in the "
                    "teacher; they must agree"
                )
        if fusion_taps and not set(taps) <= set(fusion_taps):
            raise ValueError(f"the fused taps {fusion_taps} lack some of the compared ones, {taps}")
        self.taps, self.fusion_taps = taps, fusion_taps
        self.fusion = ReviewFusion(tuple(channels[t] for t in fusion_taps), mid_channels) if fusion_taps else None
        self.adapters = nn.ModuleDict({tap: ConvAdapter(channels[tap]) for tap in taps})

    def adapt(self, context: Context) -> list[tuple[FeatureMap, FeatureMap]]:
        """(adapted student, detached teacher) of every tap, from fine to coarse.

        Raises:
            ValueError: a tap is missing or lies on different grids in student and teacher.
        """
        pairs = context.pairs(self.taps)
        student = {tap: s.tensor for tap, (s, _) in zip(self.taps, pairs, strict=True)}
        if self.fusion is not None:
            maps = [context.student.features[tap].tensor for tap in self.fusion_taps]
            student = dict(zip(self.fusion_taps, self.fusion(maps), strict=True))
        return [
            (FeatureMap(self.adapters[tap](student[tap]), s.geometry), FeatureMap(t.tensor.detach(), t.geometry))
            for tap, (s, t) in zip(self.taps, pairs, strict=True)
        ]


def in_dtype_of(x: Tensor, module: nn.Module) -> Tensor:
    """``x`` in the module's own precision, unless autocast looks after it: a half-precision student hands over bf16."""
    if torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(next(module.parameters()).dtype)
