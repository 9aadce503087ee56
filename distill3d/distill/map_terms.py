"""What keeps a term on ground maps from harming the detector that it teaches: which cells count, how maps are compared,
and how much the term may weigh beside the detector's own losses.

Sources: ODM3D, WACV 2024, arXiv:2310.18620 (cells in which the scan has points); VCD, NeurIPS 2023, arXiv:2310.15670
(the teacher's map standardised without a learned scale); DistillBEV, ICCV 2023, arXiv:2309.15109 (an adapter on the
student's side, thrown away after training).  Holding the gradient's share and letting a term fade are our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from distill3d.data.sample import Batch
from distill3d.data.surround import SurroundBatch
from distill3d.detectors.base import BevGeometry
from distill3d.detectors.second import lidar_scans
from distill3d.distill.adapters import ConvAdapter
from distill3d.distill.context import Context
from distill3d.distill.precision import full_precision
from distill3d.distill.style import StyledConfig
from distill3d.errors import UserError
from distill3d.layers.points.voxels import sample_of_rows
from distill3d.settings import Between, added
from distill3d.transfers import constant

#: Least variance that a channel is divided by, that of torch's batch norm.
VARIANCE_EPS = 1e-5

#: ``standardised``: both maps, each channel by its own mean and deviation; ``adapted``: the teacher's so, the student's
#: through an adapter.
Compared = Literal["raw", "standardised", "adapted"]


@dataclass(frozen=True)
class MapTermConfig(StyledConfig):
    """How ground maps are compared and how much the terms on them may weigh; the defaults leave the published terms as
    they are."""

    compared: Compared = added("raw")
    #: Largest length of the term's gradient at the student's map, relative to that of the detector's own losses there;
    #: None: no limit.
    map_share: Annotated[float, Between(0, 1e6, above=True)] | None = added(None)
    #: Whether the terms' weight falls in a straight line, from its own at the first step to 0 after the last.
    map_fades: bool = added(False)

    @property
    def follows_progress(self) -> bool:
        return self.map_fades


def adapter_of(config: MapTermConfig, tap: str, channels: Mapping[str, int]) -> nn.Module | None:
    """What the student's map ``tap`` goes through before it is compared, if anything; it learns with it.  ``channels``
    are those of the student's taps."""
    return ConvAdapter(channels[tap]) if config.compared == "adapted" else None


def as_compared(
    student: Tensor, teacher: Tensor, config: MapTermConfig, adapter: nn.Module | None
) -> tuple[Tensor, Tensor]:
    """Both maps, (B, C, Y, X), in the form in which ``config`` has them compared; ``adapter`` from ``adapter_of``."""
    if config.compared == "raw":
        return student, teacher
    return standardised(student) if adapter is None else adapter(student), standardised(teacher)


def held_back(
    loss: Float[Tensor, ""], weight: float, at: Tensor | None, context: Context, config: MapTermConfig
) -> Float[Tensor, ""]:
    """The loss of a map term, times what ``config`` leaves of it; ``at`` is the student's map that it teaches.

    With ``map_share`` the factor is min(1, share |g_own| / |g_term|), g the gradients of the detector's losses and of
    ``weight`` times the term at the map, over the whole batch of this process.  The factor itself gets no gradient.
    Where the detector's losses do not depend on the map, or ``at`` is None, the share is not looked at.
    """
    if config.map_fades:
        loss = loss * (1 - context.progress)
    if config.map_share is None or at is None or not context.losses:
        return loss
    own = _gradient(torch.stack([term.float() for term in context.losses.values()]).sum(), at)
    taught = _gradient(weight * loss, at)
    if own is None or taught is None:
        return loss
    factor = torch.where(taught > 0, config.map_share * own / taught.clamp(min=torch.finfo().tiny), 1)
    return loss * factor.clamp(max=1)


def _gradient(loss: Float[Tensor, ""], at: Tensor) -> Float[Tensor, ""] | None:
    """Length of the loss's gradient at ``at``; None where it has none there."""
    if not (loss.requires_grad and at.requires_grad):
        return None
    (found,) = torch.autograd.grad(loss, at, retain_graph=True, allow_unused=True)
    return None if found is None else torch.linalg.vector_norm(found.float())


@full_precision
def standardised(maps: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
    """Each channel less its mean, by its deviation, both over all cells of the batch; the gradient flows through both.

    Source: the batch norm without learned scale that VCD puts on its teacher's map.
    """
    variance, mean = torch.var_mean(maps, (0, 2, 3), correction=0, keepdim=True)
    return (maps - mean) * torch.rsqrt(variance + VARIANCE_EPS)


@torch.no_grad()
def occupied(batch: Batch | SurroundBatch, geometry: BevGeometry) -> Bool[Tensor, "b 1 y x"]:
    """The cells of a ground map above or below which the scan has a point, ODM3D's mask.

    Raises:
        UserError: the batch has no scans.
    """
    if batch.points is None:
        raise UserError("only cells with LiDAR points are to count (occupied_only), and the data set gives no scans")
    scans = lidar_scans(batch) if isinstance(batch, Batch) else batch.points
    x0, y0, x1, y1 = geometry.extent
    width, height = (round((high - low) / geometry.cell) for low, high in ((x0, x1), (y0, y1)))
    sample = sample_of_rows(scans)
    place = torch.cat([scan[:, :2] for scan in scans]).float()
    place = ((place - constant((x0, y0), place)) / geometry.cell).floor()
    inside = ((place >= 0) & (place < constant((width, height), place))).all(1)  # of NaN it is False
    column, row = torch.where(inside[:, None], place, 0).long().unbind(1)
    # Points beyond the map say nothing of its first cell.
    said = torch.zeros(len(scans), height, width, dtype=torch.uint8, device=place.device).flatten()
    told = said.scatter_reduce(0, (sample * height + row) * width + column, inside.byte(), "amax")
    return told.view(len(scans), 1, height, width).bool()
