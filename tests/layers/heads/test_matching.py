"""Matching against trying every assignment."""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill3d.layers.heads.matching import UNMATCHED, assign, focal_cost


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


def test_focal_cost_is_the_loss_as_the_class_less_that_as_none() -> None:
    from torchvision.ops import sigmoid_focal_loss

    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 4, generator=g, dtype=torch.float64)
    label = torch.randint(4, (2, 3, 6), generator=g)
    loss = [sigmoid_focal_loss(logits, torch.full_like(logits, target)) for target in (1.0, 0.0)]
    cost = focal_cost(logits, label)
    assert cost.shape == (2, 3, 5, 6)
    for b, layer, q, k in torch.cartesian_prod(*map(torch.arange, cost.shape)).tolist():
        at = (b, layer, q, int(label[b, layer, k]))
        torch.testing.assert_close(cost[b, layer, q, k], loss[0][at] - loss[1][at], rtol=1e-5, atol=1e-6)
