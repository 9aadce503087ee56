"""What all batches need: fields of several samples together, padded where they differ in length, on another device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from distill3d.errors import UserError
from distill3d.transfers import constant

T = TypeVar("T")


def given_by_all(samples: Sequence[Any], name: str, kind: str) -> list | None:
    """The field ``name`` of all samples, or None where all of them lack it.

    Raises:
        UserError: only some have it; ``kind`` is what a sample is called.
    """
    values = [getattr(s, name) for s in samples]
    lacking = [s.frame_id for s, value in zip(samples, values, strict=True) if value is None]
    if 0 < len(lacking) < len(samples):
        raise UserError(f"{kind} {lacking[0]} has no {name}, but other {kind}s of its batch have")
    return None if lacking else values


def padded(values: Sequence[Shaped[Tensor, "_ *s"]], rows: int, fill: float = 0) -> Shaped[Tensor, "b rows *s"]:
    """Tensors of several lengths stacked, each filled up to ``rows``."""
    out = values[0].new_full((len(values), rows, *values[0].shape[1:]), fill)
    for i, value in enumerate(values):
        out[i, : len(value)] = value
    return out


def picked(value: T, rows: list[int]) -> T:
    """The samples ``rows`` of a batch, or of whatever else goes with one: a dataclass, its nested ones included, or a
    dict of tensors (B, ...) and lists of length B; what is neither is left as it is."""
    if isinstance(value, Tensor):
        return value[constant(rows, value, torch.int64)]  # pyright: ignore[reportReturnType]
    if isinstance(value, list):
        return [value[row] for row in rows]  # pyright: ignore[reportReturnType]
    if isinstance(value, dict):
        return {name: picked(v, rows) for name, v in value.items()}  # pyright: ignore[reportReturnType]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: picked(getattr(value, f.name), rows) for f in fields(value)})
    return value


def moved_to(value: T, device: torch.device | str) -> T:
    """A dataclass, its nested ones included, with its tensors and lists of tensors on another device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)  # pyright: ignore[reportReturnType]
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [v.to(device, non_blocking=True) for v in value]  # pyright: ignore[reportReturnType]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: moved_to(getattr(value, f.name), device) for f in fields(value)})
    return value
