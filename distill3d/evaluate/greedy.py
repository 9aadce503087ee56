"""Greedy one-to-one matching inside many groups at once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

#: As long as no group has more pairs, to go through them pair by pair is faster than to let partners choose in turn.
_FEW_PAIRS = 256
#: After so many turns the pairs that no turn can take any more are left out: frames with thousands of objects and few
#: detections are done as soon as the detections are given away.
_TURNS_TO_THIN_OUT = 64


def choose_in_turn(
    group: Int[np.ndarray, " p"],
    left: Int[np.ndarray, " p"],
    right: Int[np.ndarray, " p"],
    allowed: Bool[np.ndarray, "p t"],
    places: Int[np.ndarray, " l"] | None = None,
) -> Bool[np.ndarray, "p t"]:
    """Let the left partners choose in turn: each takes the first of its pairs whose right partner is still free.

    Args:
        group: (P,) non-decreasing; pairs of different groups share no partner (a frame, or a class in a frame).
        left: (P,) row of one partner, >= 0; the pairs of one lie together, in the order in which it prefers them.
        right: (P,) row of the other, >= 0.
        allowed: (P, T) whether the pair may be taken in trial t; the T trials are independent.
        places: (L,) how many right partners each left one takes, 1 by default.  Equal ones that follow each other
            choose like one with as many places.

    Returns:
        (P, T): the pair is taken in trial t.

    The k-th left partners of all groups choose together: no two of them share a partner.
    """
    taken = np.zeros_like(allowed)
    if len(group) == 0:
        return taken
    opens = np.r_[True, group[1:] != group[:-1]]
    of_group = np.cumsum(opens) - 1
    if np.bincount(of_group).max() <= _FEW_PAIRS and (places is None or places[left].max() == 1):
        return match_in_order(group, left, right, allowed)
    free = np.ones((right.max() + 1, allowed.shape[1]), dtype=bool)
    chooser = np.cumsum(opens | np.r_[True, left[1:] != left[:-1]])
    turn = chooser - chooser[opens][of_group]
    order, ends = np.argsort(turn, kind="stable"), np.zeros(0, dtype=np.int64)
    for number in range(int(turn.max()) + 1):
        place = number % _TURNS_TO_THIN_OUT
        if place == 0:
            order = order[np.searchsorted(turn[order], number) :]
            order = order[(allowed[order] & free[right[order]]).any(axis=1)]
            if len(order) == 0:
                break
            ends = np.searchsorted(turn[order], number + np.arange(_TURNS_TO_THIN_OUT + 1))
        rows = order[ends[place] : ends[place + 1]]
        if len(rows) == 0:
            continue
        can = allowed[rows] & free[right[rows]]
        found = np.cumsum(can, axis=0, dtype=np.int32)
        starts = np.flatnonzero(np.r_[True, left[rows[1:]] != left[rows[:-1]]])
        before = np.repeat((found - can)[starts], np.diff(np.r_[starts, len(rows)]), axis=0)
        takes = can & (found - before <= (1 if places is None else places[left[rows], None]))
        free[right[rows]] &= ~takes
        taken[rows] = takes
    return taken


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
