"""One-to-one matching of predictions to objects."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill3d.transfers import fetched

#: In place of a query's number: no query was left for the object.
UNMATCHED = -1
#: Share of the loss that objects have, and exponent of the factors that make easy queries count little, of the focal
#: loss (Lin et al., arXiv:1708.02002) by which sets are learnt, and of its cost.
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
#: Kept from 0 in the logarithms of the cost.
COST_MARGIN = 1e-8


def focal_cost(logits: Float[Tensor, "*s q c"], label: Int[Tensor, "*s k"]) -> Float[Tensor, "*s q k"]:
    """What it costs that a query says an object's class: its focal loss as that class less that as none.

    Source: Zhu et al., "Deformable DETR" (arXiv:2010.04159), fundamentalvision/Deformable-DETR models/matcher.py.
    """
    probability = logits.sigmoid()
    hit = FOCAL_ALPHA * (1 - probability) ** FOCAL_GAMMA * -torch.log(probability + COST_MARGIN)
    miss = (1 - FOCAL_ALPHA) * probability**FOCAL_GAMMA * -torch.log(1 - probability + COST_MARGIN)
    return (hit - miss).gather(-1, label[..., None, :].expand(*logits.shape[:-1], -1))


@torch.no_grad()
def assign(cost: Float[Tensor, "s q k"], present: Bool[Tensor, "s k"]) -> Int[Tensor, "s k"]:
    """The query of each object in the assignment of least total cost, in each of s independent problems.

    Objects that are not ``present`` get ``UNMATCHED``, and so do the dearest ones where there are more than q.  Costs
    that are not finite are avoided but do no harm: the loss they come from is where they should show.
    """
    from scipy.optimize import linear_sum_assignment

    # By one copy, for each waits for the device.
    told = fetched({"cost": cost.nan_to_num(nan=torch.finfo(cost.dtype).max), "present": present})
    costs, columns = told["cost"].numpy(), told["present"].numpy()
    matched = np.full(columns.shape, UNMATCHED, dtype=np.int64)
    for problem in np.flatnonzero(columns.any(axis=1)):
        kept = np.flatnonzero(columns[problem])
        query, column = linear_sum_assignment(costs[problem][:, kept])
        matched[problem, kept[column]] = query
    return torch.from_numpy(matched).to(cost.device, non_blocking=True)
