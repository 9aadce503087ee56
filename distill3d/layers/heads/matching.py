"""One-to-one matching of predictions to objects."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

#: In place of a query's number: no query was left for the object.
UNMATCHED = -1


@torch.no_grad()
def assign(cost: Float[Tensor, "s q k"], present: Bool[Tensor, "s k"]) -> Int[Tensor, "s k"]:
    """The query of each object in the assignment of least total cost, in each of s independent problems.

    Objects that are not ``present`` get ``UNMATCHED``, and so do the dearest ones where there are more than q.  Costs
    that are not finite are avoided but do no harm: the loss they come from is where they should show.
    """
    from scipy.optimize import linear_sum_assignment

    costs = cost.nan_to_num(nan=torch.finfo(cost.dtype).max).cpu().numpy()  # once: each transfer waits for the device
    columns = present.cpu().numpy()
    matched = np.full(columns.shape, UNMATCHED, dtype=np.int64)
    for problem in np.flatnonzero(columns.any(axis=1)):
        kept = np.flatnonzero(columns[problem])
        query, column = linear_sum_assignment(costs[problem][:, kept])
        matched[problem, kept[column]] = query
    return torch.from_numpy(matched).to(cost.device)
