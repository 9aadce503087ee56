"""Soft ranks against a plain pool-adjacent-violators, finite differences and the properties that define them."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import rankdata
from torch import Tensor

from distill3d.distill.softrank import Regularization, hard_rank, is_one_block, soft_rank

STRENGTHS = (1e-3, 0.03, 0.3, 1.0, 3.0)
FORMS: tuple[Regularization, ...] = ("l2", "kl")

#: Multiples of 1/4 make ties and equal block means common.
coarse = st.integers(-40, 40).map(lambda i: i / 4)
fine = st.floats(-30, 30, allow_subnormal=False)
rows = st.lists(st.one_of(coarse, fine), min_size=1, max_size=30)
coarse_rows = st.lists(coarse, min_size=1, max_size=30)
strengths = st.sampled_from(STRENGTHS)
forms = st.sampled_from(FORMS)


def log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def plain_blocks(s: list[float], w: list[float], form: Regularization) -> list[tuple[list[int], float]]:
    """Pool adjacent violators, one element after the other: (members, value) of each block."""

    def value(members: list[int]) -> float:
        if form == "l2":
            return sum(s[i] - w[i] for i in members) / len(members)
        return log_sum_exp([s[i] for i in members]) - math.log(sum(w[i] for i in members))

    blocks: list[tuple[list[int], float]] = []
    for i in range(len(s)):
        members = [i]
        while blocks and value(members) >= blocks[-1][1]:
            members = blocks.pop()[0] + members
        blocks.append((members, value(members)))
    return blocks


def plain_soft_rank(
    x: list[float], strength: float, form: Regularization, cotangent: list[float]
) -> tuple[Tensor, Tensor]:
    """Ranks and their vector-Jacobian product."""
    n = len(x)
    order = sorted(range(n), key=lambda i: -x[i])
    s, w = [x[i] / strength for i in order], [float(n - i) for i in range(n)]
    ranks, gradient = [0.0] * n, [0.0] * n
    for members, v in plain_blocks(s, w, form):
        r = [s[i] - v if form == "l2" else math.exp(s[i] - v) for i in members]
        g = [cotangent[order[i]] for i in members]
        weights = [1.0] * len(r) if form == "l2" else r
        mean = sum(a * b for a, b in zip(weights, g, strict=True)) / sum(weights)
        for i, rank, one, weight in zip(members, r, g, weights, strict=True):
            ranks[order[i]] = rank
            gradient[order[i]] = weight * (one - mean) / strength
    return torch.tensor(ranks, dtype=torch.float64), torch.tensor(gradient, dtype=torch.float64)


def double(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(rows, strengths, forms)
def test_equals_plain_pooling(x: list[float], strength: float, form: Regularization) -> None:
    expected, _ = plain_soft_rank(x, strength, form, [0.0] * len(x))
    torch.testing.assert_close(soft_rank(double(x), strength, form), expected, rtol=1e-9, atol=1e-9)


@given(coarse_rows, st.sampled_from([0.25, 0.5, 1.0, 2.0]), st.integers(0, 2**20))
@example([8.0, 6.0, 5.0, 3.0], 1.0, 0)  # s - w = 4, 3, 3, 2: three points of the concave majorant on one line
def test_gradient_pools_equal_means(x: list[float], strength: float, seed: int) -> None:
    """Dyadic numbers are exact, so blocks of equal mean must merge exactly as in the plain version."""
    cotangent = torch.randn(len(x), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    leaf = double(x).requires_grad_()
    soft_rank(leaf, strength).backward(cotangent)
    _, expected = plain_soft_rank(x, strength, "l2", cotangent.tolist())
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-9, atol=1e-9)


@given(rows, strengths, forms)
def test_row_sum_bounds_order_and_ties(x: list[float], strength: float, form: Regularization) -> None:
    n, values = len(x), double(x)
    ranks = soft_rank(values, strength, form)
    assert float(ranks.sum()) == pytest.approx(n * (n + 1) / 2, rel=1e-9)
    assert float(ranks.min()) >= (1 if form == "l2" else 0) - 1e-6 * n
    assert float(ranks.max()) <= n * (1 + 1e-9)
    in_order = ranks[values.argsort()]
    assert bool((in_order.diff() >= -1e-7).all())
    same = values[:, None] == values[None, :]
    apart = (ranks[:, None] - ranks[None, :]).abs()
    assert float(apart[same].max()) <= 1e-7


@given(rows, strengths, forms, st.randoms(use_true_random=False))
def test_permuting_values_permutes_ranks(x: list[float], strength: float, form: Regularization, random) -> None:
    order = list(range(len(x)))
    random.shuffle(order)
    values = double(x)
    torch.testing.assert_close(
        soft_rank(values[order], strength, form), soft_rank(values, strength, form)[order], rtol=1e-9, atol=1e-8
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_gradient_equals_finite_differences(strength: float, form: Regularization) -> None:
    generator = torch.Generator().manual_seed(3)
    x = (torch.randn(3, 12, generator=generator, dtype=torch.float64) * 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: soft_rank(v, strength, form), x, eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("n", [1, 2, 3, 1000])
def test_closed_form_equals_the_general_way(n: int, scale: float) -> None:
    """One wide row beside it sends the whole matrix through the sort; the row's own ranks must not change."""
    x = torch.randn(1, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) * scale
    wide = torch.linspace(-1, 1, n, dtype=torch.float64)[None] * 1e9 + 1e9
    assert n == 1 or not is_one_block(wide)
    for cotangent_seed in range(2):
        g = torch.randn(1, n, generator=torch.Generator().manual_seed(cotangent_seed), dtype=torch.float64)
        alone, beside = x.clone().requires_grad_(), x.clone().requires_grad_()
        one, two = soft_rank(alone), soft_rank(torch.cat((beside, wide)))[:1]
        one.backward(g)
        two.backward(g)
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(alone.grad, beside.grad, rtol=1e-10, atol=1e-10)


def test_one_block_guard_is_sharp() -> None:
    """Half the row high, half low: the sufficient test and the exact condition coincide at n / 4."""
    n = 16
    step = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(n // 2)
    assert bool(is_one_block(step * n / 4))
    affine = step * n / 4 + (n + 1) / 2
    torch.testing.assert_close(soft_rank(step * n / 4), affine)
    beyond = step * (n / 4 + 1)
    assert not is_one_block(beyond)
    assert float((soft_rank(beyond) - affine).abs().max()) < 1e-9  # two blocks now, at the same ranks: it saturates


@pytest.mark.parametrize(
    "row",
    [
        torch.zeros(2000),
        torch.arange(2000.0),
        torch.arange(2000.0).flip(0),
        2.0 ** -torch.arange(900.0),
        torch.cat((torch.zeros(1500), torch.arange(500.0))),
        torch.randn(2000, generator=torch.Generator().manual_seed(0)).exp() ** 4,
    ],
    ids=["constant", "ascending", "descending", "geometric", "half-zero", "heavy-tailed"],
)
@pytest.mark.parametrize("strength", [1e-4, 1e-2, 1.0])
def test_hard_rows(row: Tensor, strength: float) -> None:
    values = row.double()
    expected, _ = plain_soft_rank(values.tolist(), strength, "l2", [0.0] * len(row))
    torch.testing.assert_close(soft_rank(values, strength), expected, rtol=1e-9, atol=1e-6)


def test_rows_do_not_disturb_each_other() -> None:
    """What cumulative sums of a huge row leave over must not decide where a small row's blocks end."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(1, 500, generator=generator, dtype=torch.float64) * 100
    huge = torch.randn(1, 500, generator=generator, dtype=torch.float64) * 1e18
    torch.testing.assert_close(soft_rank(torch.cat((huge, small)))[1:], soft_rank(small), rtol=0, atol=1e-9)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_hard_rank_averages_ties(x: list[int]) -> None:
    values = torch.tensor([x, x[::-1]], dtype=torch.float32)
    expected = torch.stack([torch.from_numpy(rankdata(row.numpy())) for row in values])
    torch.testing.assert_close(hard_rank(values), expected)
    # soft ranks of small strength agree
    torch.testing.assert_close(soft_rank(values.double(), 1e-3), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_dtype_and_shape(dtype: torch.dtype, expected: torch.dtype) -> None:
    x = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    ranks = soft_rank(x, 0.1)
    assert ranks.dtype == expected
    assert ranks.shape == x.shape
    assert soft_rank(x[:, :, :0]).shape == (2, 3, 0)
