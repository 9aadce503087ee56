"""Matching against trying every assignment."""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill3d.layers.heads.matching import UNMATCHED, assign


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 10_000))
def test_no_assignment_costs_less(queries: int, objects: int, seed: int) -> None:
    """Also where objects outnumber queries: as many as there are queries are matched, at the least cost."""
    g = torch.Generator().manual_seed(seed)
    cost = torch.randn(3, queries, objects, generator=g)
    present = torch.rand(3, objects, generator=g) < 0.7
    matched = assign(cost, present)
    for problem in range(3):
        kept = present[problem].nonzero()[:, 0].tolist()
        count = min(len(kept), queries)
        pairs = [(int(q), k) for k, q in enumerate(matched[problem]) if q != UNMATCHED]
        assert len(pairs) == count == len({q for q, _ in pairs}) and {k for _, k in pairs} <= set(kept)
        least = min(
            sum(float(cost[problem, q, k]) for q, k in zip(some_queries, some_objects, strict=True))
            for some_queries in permutations(range(queries), count)
            for some_objects in permutations(kept, count)
        )
        assert sum(float(cost[problem, q, k]) for q, k in pairs) == pytest.approx(least, abs=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_costs_that_are_not_finite_do_not_raise(bad: float) -> None:
    cost = torch.tensor([[[bad, 1.0], [0.0, bad]]])
    assert sorted(assign(cost, torch.tensor([[True, True]]))[0].tolist()) == [0, 1]
