"""Recorded tensors of other shapes: what a short formula, point by point, says in a released function's place.

The formula is held against the recorded file first, then it fills a file of the same name in another folder, which the
set's own test has to pass.
"""

import inspect
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import constants, golden_files, golden_root, stem
from torch import Tensor

Tensors = dict[str, Tensor]
#: How near a formula comes to what was recorded in float64, and in float32.
EXACT, SINGLE = {"rtol": 1e-7, "atol": 1e-9}, {"rtol": 2e-4, "atol": 1e-5}


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read_linearly(grid: Tensor, place: Tensor) -> Tensor:
    """(C, cells...) at (column, row) or (column, row, level) between cells' centres, 0 outside: (C)."""
    sizes, at = grid.shape[1:], place.flip(0)
    low = at.floor()
    total = grid.new_zeros(len(grid))
    for step in itertools.product((0, 1), repeat=len(sizes)):
        cell = [int(c) + s for c, s in zip(low, step, strict=True)]
        if all(0 <= c < size for c, size in zip(cell, sizes, strict=True)):
            share = math.prod(float(1 - abs(a - c)) for a, c in zip(at, cell, strict=True))
            total = total + share * grid[(slice(None), *cell)]
    return total


def at_share(grid: Tensor, share: Tensor) -> Tensor:
    """At (x, y[, z]) from 0 to 1 over the grid."""
    return read_linearly(grid, share * share.new_tensor(list(grid.shape[:0:-1])) - 0.5)


def gradients(total: Tensor, leaves: Tensors) -> Tensors:
    found = torch.autograd.grad(total, list(leaves.values()), retain_graph=True, allow_unused=True)
    return {k: torch.zeros_like(v) if d is None else d for (k, v), d in zip(leaves.items(), found, strict=True)}


def leaf(value: Tensor) -> Tensor:
    return value.double().requires_grad_()


@dataclass(frozen=True)
class Elsewhere:
    """A file, the test that asks for it, what the released function does, and inputs of other shapes."""

    name: str  # <set>/<file without extension>
    test: Callable[..., None]
    formula: Callable[[Tensors, dict[str, Any]], Tensors]
    inputs: Callable[[dict[str, Any]], tuple[Tensors, dict[str, Any]]]
    close: dict[str, float]  # of the formula to the record
    #: What of an output counts; None: all.
    counted: Callable[[Tensors, str, Tensor], Tensor] | None = None


def recorded(name: str) -> tuple[Tensors, dict[str, Any]]:
    method, _, file = name.partition("/")
    paths = {stem(path): path for path in golden_files(method)}
    if file not in paths:
        pytest.skip(f"{name} is not there")
    with np.load(paths[file]) as data:
        return {k: torch.from_numpy(data[k]) for k in data}, constants(paths[file])


def written(folder: Path, name: str, tensors: Tensors, stated: dict[str, Any]) -> Path:
    """The file ``name`` of a set's ``folder``, and its index."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.npz"
    arrays: dict[str, Any] = {key: value.detach().numpy() for key, value in tensors.items()}
    np.savez(path, **arrays)
    (folder / "index.json").write_text(json.dumps({path.name: {"constants": stated}}))
    return path


def check_elsewhere(of: Elsewhere, root: Path) -> None:
    """That the formula is the released function, and that the set's test passes on the file of other shapes it fills,
    and fails on one with other outputs."""
    g, stated = recorded(of.name)
    for key, value in of.formula(g, stated).items():
        ours, theirs = value.detach().to(g[key]), g[key]
        if of.counted is not None:
            ours, theirs = of.counted(g, key, ours), of.counted(g, key, theirs)
        torch.testing.assert_close(ours, theirs, **of.close, msg=lambda text, key=key: f"{key}: {text}")

    inputs, other = of.inputs(stated)
    assert all(value.shape != g[key].shape for key, value in inputs.items() if key in g and value.numel() > 1)
    found = {**inputs, **of.formula(inputs, other)}
    method, _, file = of.name.partition("/")
    of.test(written(root / method, file, found, other))
    wrong = {key: value + value.abs().max() if key.startswith("out.") and value.is_floating_point() else value
             for key, value in found.items()}  # fmt: skip
    with pytest.raises(AssertionError):
        of.test(written(root / method, file, wrong, other))


def asks_for(of: Elsewhere) -> bool:
    """Whether the test of a case is the one that asks for its file; true where nothing is recorded."""
    (mark,) = [m for m in inspect.unwrap(of.test).pytestmark if m.name == "parametrize"]  # pyright: ignore[reportFunctionMemberAccess]
    return of.name in mark.kwargs["ids"] or golden_root() is None
