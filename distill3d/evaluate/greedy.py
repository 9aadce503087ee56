"""Greedy one-to-one matching inside many groups at once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int


def match_in_order(
    group: Int[np.ndarray, " p"],
    left: Int[np.ndarray, " p"],
    right: Int[np.ndarray, " p"],
    allowed: Bool[np.ndarray, "p t"],
) -> Bool[np.ndarray, "p t"]:
    """Go through candidate pairs in order and take each whose two partners are both still free.

    Args:
        group: (P,) non-decreasing; pairs of different groups share no partner (a frame, or a class in a frame).
        left: (P,) row of one partner, >= 0.
        right: (P,) row of the other, >= 0.
        allowed: (P, T) whether the pair may be taken in trial t; the T trials are independent.

    Returns:
        (P, T): the pair is taken in trial t.

    The k-th pairs of all groups are handled together: no two of them share a partner.
    """
    taken = np.zeros_like(allowed)
    if len(group) == 0:
        return taken
    left_free = np.ones((left.max() + 1, allowed.shape[1]), dtype=bool)
    right_free = np.ones((right.max() + 1, allowed.shape[1]), dtype=bool)
    starts = np.r_[True, group[1:] != group[:-1]]
    first = np.flatnonzero(starts)[np.cumsum(starts) - 1]
    step = np.arange(len(group)) - first  # position of the pair in its group
    for rows in np.split(np.argsort(step, kind="stable"), np.cumsum(np.bincount(step))[:-1]):
        a, b = left[rows], right[rows]
        takes = allowed[rows] & left_free[a] & right_free[b]
        left_free[a] &= ~takes
        right_free[b] &= ~takes
        taken[rows] = takes
    return taken
