"""Centre heat maps: Gaussian peaks, their focal loss, and reading maps at peaks.

Source: xingyizhou/CenterNet (arXiv:1904.07850) as used by xinzhuma/monodle lib/datasets/utils.py and lib/helpers.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill3d.layers.distributed import across_processes, world_size

#: Probabilities are kept this far from 0 and 1 before a logarithm is taken.
PROBABILITY_MARGIN = 1e-4


def gaussian_radius(
    height: Float[Tensor, "*n"], width: Float[Tensor, "*n"], overlap: float = 0.7,
    form: Literal["cornernet", "exact"] = "cornernet",
) -> Float[Tensor, "*n"]:  # fmt: skip
    """Radius (cells, not truncated) within which a shifted box keeps ``overlap`` IoU with the true one.

    Minimum of three quadratics' roots, each as CornerNet's code writes it: (b + sqrt(b^2 - 4ac)) / 2, without dividing
    by a.  The field's targets depend on that form.  ``exact``: the smaller root of the first two and the larger one of
    the third, divided by 2a, which do what is said above (mmdet3d's, of which MonoCon has them).
    """
    total, area = height + width, height * width
    cases = (
        (1.0, total, area * (1 - overlap) / (1 + overlap)),
        (4.0, 2 * total, area * (1 - overlap)),
        (4.0 * overlap, -2 * overlap * total, area * (overlap - 1)),
    )
    if form == "exact":
        signs = (-1, -1, 1)
        roots = [(b + s * torch.sqrt(b * b - 4 * a * c)) / (2 * a) for (a, b, c), s in zip(cases, signs, strict=True)]
    else:
        roots = [(b + torch.sqrt(b * b - 4 * a * c)) / 2 for a, b, c in cases]
    return torch.stack(roots).amin(0)


def draw_gaussians(
    maps: Float[Tensor, "m h w"], plane: Int[Tensor, "n"], cell: Int[Tensor, "n 2"], radius: Int[Tensor, "n"],
    shown: Bool[Tensor, "n"] | None = None,
) -> Float[Tensor, "m h w"]:  # fmt: skip
    """The maps, nowhere negative, with n Gaussian peaks of height 1 and sigma (2r + 1) / 6 drawn in, by maximum.

    Peak i lies in ``maps[plane[i]]`` at ``cell[i]`` = (column, row), within the map, and fills the (2r + 1)^2 square,
    clipped to the map.  ``shown``: those that are drawn, of the others nothing is looked at; None: all.  Waits for the
    device once, to know how far the widest peak reaches.
    """
    if len(plane) == 0:
        return maps
    height, width = maps.shape[-2:]
    if shown is not None:
        plane, radius = (torch.where(shown, value, 0) for value in (plane, radius))
        cell = torch.where(shown[:, None], cell, 0)
    reach = int(radius.max())
    offset = torch.arange(-reach, reach + 1, device=maps.device)
    sigma = (2 * radius.to(maps.dtype) + 1) / 6
    fall = torch.exp(-(offset.to(maps.dtype) ** 2) / (2 * sigma[:, None] ** 2))
    fall = fall * (offset.abs() <= radius[:, None])  # (n, d)
    value = fall[:, :, None] * fall[:, None, :]  # (n, rows, columns)
    row = cell[:, 1, None, None] + offset[:, None]
    column = cell[:, 0, None, None] + offset[None, :]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    if shown is not None:
        inside = inside & shown[:, None, None]
    flat = (plane[:, None, None] * height + row) * width + column
    # What lies outside adds nothing to the first cell.
    flat, value = torch.where(inside, flat, 0).flatten(), torch.where(inside, value, 0).flatten()
    drawn = maps.flatten().scatter_reduce(0, flat, value, "amax")
    return drawn.view_as(maps)


def focal_heatmap_loss(probability: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Penalty-reduced focal loss of CornerNet with exponents 2 and 4, divided by the number of cells whose target is
    exactly 1; with no such cell the negative sum stands undivided."""
    terms = focal_terms(probability, target)
    return terms.sum() / across_processes((target == 1).sum().to(terms)).clamp(min=1 / world_size())


def focal_terms(probability: Float[Tensor, "*n"], target: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Penalty-reduced focal loss of each cell, exponents 2 and 4; positive are cells whose target is exactly 1."""
    return -torch.where(
        target == 1,
        (1 - probability) ** 2 * torch.log(probability),
        (1 - target) ** 4 * probability**2 * torch.log(1 - probability),
    )


def clamped_sigmoid(logits: Tensor) -> Tensor:
    """Probabilities within [PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN]; the gradient is 0 where clamped."""
    return torch.sigmoid(logits).clamp(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)


def gather_cells(maps: Float[Tensor, "b c h w"], index: Int[Tensor, "b k"]) -> Float[Tensor, "b k c"]:
    """Channels of the maps at flat cells ``row * w + column``."""
    flat = maps.flatten(2)
    return flat.gather(2, index[:, None, :].expand(-1, flat.shape[1], -1)).transpose(1, 2)


def find_peaks(
    probability: Float[Tensor, "b c h w"], count: int
) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"], Int[Tensor, "b k"]]:
    """The ``count`` highest local maxima (3 x 3) of all classes: score, class and flat cell, best first.

    Cells that are no local maximum have score 0 and fill up where there are too few.
    """
    summit = F.max_pool2d(probability, 3, stride=1, padding=1) == probability
    return top_cells(probability * summit, count)


def top_cells(
    probability: Float[Tensor, "b c h w"], count: int
) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"], Int[Tensor, "b k"]]:
    """The ``count`` highest cells of all classes: score, class and flat cell, best first.

    As in CenterNet the best ``count`` of each class come first and the best of those second, so ties keep its order.
    """
    cells = probability.shape[2] * probability.shape[3]
    score, cell = probability.flatten(2).topk(min(count, cells), dim=2)  # (b, c, k)
    score, order = score.flatten(1).topk(min(count, score.shape[1] * score.shape[2]), dim=1)
    return score, order // cell.shape[2], cell.flatten(1).gather(1, order)


def cells_inside(cell: Int[Tensor, "*n 2"], height: int, width: int) -> Bool[Tensor, "*n"]:
    """Whether cells (column, row) lie on a map."""
    return (cell[..., 0] >= 0) & (cell[..., 0] < width) & (cell[..., 1] >= 0) & (cell[..., 1] < height)
