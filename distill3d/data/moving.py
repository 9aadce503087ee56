"""Batches on another device."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def moved_to(value: T, device: torch.device | str) -> T:
    """A dataclass, its nested ones included, with its tensors and lists of tensors on another device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)  # pyright: ignore[reportReturnType]
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [v.to(device, non_blocking=True) for v in value]  # pyright: ignore[reportReturnType]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: moved_to(getattr(value, f.name), device) for f in fields(value)})
    return value
