"""Rows of a table read with weights, and rows added up with weights: a sparse matrix's product and its transpose's.

The matrix A of n rows has in row ``index[m, k]`` and column m the entry ``weight[m, k]``.  ``add_rows`` is A x,
``read_rows`` is A^T y; each is the other's gradient, and both come down to torch's one fast kernel for weighted sums of
a table's rows, which never holds the rows one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.graph import get_gradient_edge


def read_rows(
    table: Float[Tensor, "n c"], index: Int[Tensor, "m k"], weight: Float[Tensor, "m k"]
) -> Float[Tensor, "m c"]:
    """For each m the sum over k of ``weight`` times the table's row ``index``; row n, after the last, is 0."""
    if torch.compiler.is_exporting():  # ONNX has no such sum
        padded = _padded(table)
        first, *others = (padded[index[:, i]] * weight[:, i, None] for i in range(index.shape[1]))
        return sum(others, first)
    return _Read.apply(table, index, weight)  # pyright: ignore[reportReturnType]


def add_rows(
    rows: Float[Tensor, "m c"], index: Int[Tensor, "m k"], weight: Float[Tensor, "m k"], count: int
) -> Float[Tensor, "n c"]:
    """``count`` sums: each of the ``rows``, times ``weight``, is added to that of number ``index``; what goes to number
    ``count``, after the last, is dropped.  Always summed in the same order."""
    if torch.compiler.is_exporting():  # how many go to each sum is not known to a graph of fixed shapes
        spread = (weight[..., None] * rows[:, None]).flatten(0, 1)
        blank = rows.new_zeros(count + 1, rows.shape[1])
        return blank.index_put((index.flatten(),), spread, accumulate=True)[:-1]
    return _Add.apply(rows, index, weight, count)  # pyright: ignore[reportReturnType]


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        read, ctx.products = _read_and_products(table, index, weight, ctx.needs_input_grad[2])
        ctx.save_for_backward(index, weight)
        ctx.count = len(table)
        return read

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        index, weight = ctx.saved_tensors
        of_table = _add(gradients[0], index, weight, ctx.count) if ctx.needs_input_grad[0] else None
        return of_table, None, ctx.products(gradients[0])


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, weight: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(rows, index, weight)
        return _add(rows, index, weight, count)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        rows, index, weight = ctx.saved_tensors
        of_rows, products = _read_and_products(gradients[0], index, weight, ctx.needs_input_grad[2])
        return of_rows, None, products(rows), None


def _add(rows: Tensor, index: Tensor, weight: Tensor, count: int) -> Tensor:
    flat, entries = index.flatten(), weight.flatten()
    kept = ((flat < count) & (entries != 0)).nonzero()[:, 0]
    number, order = torch.sort(flat.index_select(0, kept).int(), stable=True)  # short keys sort four times as fast
    kept = kept.index_select(0, order)
    begins = torch.searchsorted(number, torch.arange(count, dtype=number.dtype, device=number.device))
    entries = entries.index_select(0, kept)
    return F.embedding_bag(kept // index.shape[1], rows, begins, mode="sum", per_sample_weights=entries)


def _read_and_products(
    table: Tensor, index: Tensor, weight: Tensor, wanted: bool
) -> tuple[Tensor, Callable[[Tensor], Tensor | None]]:
    """What is read, and a function of m rows that gives the product of each with the table's rows that are read for it,
    which is the gradient of <read, rows> by the weights; None where that is not wanted."""
    with torch.enable_grad():
        leaf = weight.detach().requires_grad_(wanted)
        read = F.embedding_bag(
            index, _padded(table.detach()), mode="sum", per_sample_weights=leaf, padding_idx=len(table)
        )
    if not wanted:
        return read, lambda rows: None
    edge = get_gradient_edge(read)  # holds what the gradient needs, which is not the sums
    return read.detach(), lambda rows: torch.autograd.grad(edge, leaf, rows, retain_graph=True)[0]


def _padded(table: Tensor) -> Tensor:
    return F.pad(table, (0, 0, 0, 1))
