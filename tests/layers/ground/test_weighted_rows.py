"""Weighted sums of rows against the dense matrix that they stand for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distill3d.layers.ground.weighted_rows import add_rows, read_rows


def case(n: int, m: int, k: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Index (m, k) with rows that do not exist, weight (m, k), and tables of n and of m rows."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, n + 1, (m, k), generator=generator)
    weight, table, rows = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((m, k), (n, 3), (m, 3))
    )
    return index, weight, table, rows


def dense(index: Tensor, weight: Tensor, n: int) -> Tensor:
    """The matrix (n, m) in which the last row, of what does not exist, is left out."""
    matrix = weight.new_zeros(n + 1, len(index))
    matrix.index_put_((index, torch.arange(len(index))[:, None].expand_as(index)), weight, accumulate=True)
    return matrix[:-1]


@given(n=st.integers(1, 6), m=st.integers(1, 9), k=st.integers(1, 4), seed=st.integers(0, 1000))
def test_both_are_products_with_one_matrix(n: int, m: int, k: int, seed: int) -> None:
    index, weight, table, rows = case(n, m, k, seed)
    matrix = dense(index, weight, n)
    torch.testing.assert_close(read_rows(table, index, weight), matrix.T @ table)
    torch.testing.assert_close(add_rows(rows, index, weight, n), matrix @ rows)


@pytest.mark.parametrize("k", [1, 4])
def test_gradients(k: int) -> None:
    index, weight, table, rows = case(5, 7, k, 0)
    weight, table, rows = (t.requires_grad_() for t in (weight, table, rows))
    assert torch.autograd.gradcheck(lambda t, w: read_rows(t, index, w), (table, weight))
    assert torch.autograd.gradcheck(lambda r, w: add_rows(r, index, w, 5), (rows, weight))


@pytest.mark.parametrize("of_weight", [True, False])
def test_only_the_gradient_that_is_asked_for(of_weight: bool) -> None:
    index, weight, table, rows = case(5, 7, 2, 0)
    for found, leaf in (
        (read_rows(table.requires_grad_(not of_weight), index, weight.requires_grad_(of_weight)), table),
        (add_rows(rows.requires_grad_(not of_weight), index, weight, 5), rows),
    ):
        wanted = weight if of_weight else leaf
        gradient = torch.autograd.grad(found.sum(), wanted)[0]
        assert gradient.shape == wanted.shape and (leaf.requires_grad, weight.requires_grad) == (
            not of_weight,
            of_weight,
        )


def test_nothing_that_exists_is_nothing() -> None:
    index, weight, table, rows = case(4, 3, 2, 0)
    index = torch.full_like(index, 4)
    assert read_rows(table, index, weight).count_nonzero() == 0
    assert add_rows(rows, index, weight, 4).count_nonzero() == 0
