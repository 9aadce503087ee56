"""Losses in full precision, whatever the networks run in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Runs ``function`` outside autocast, its half-precision tensor arguments (also in dicts and lists) as float32.

    Gram entries of feature maps reach 1e4 and differences of them matter: half precision has three digits.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(_device_type((args, kwargs)), enabled=False):
            return cast(Any, function)(*_full(args), **_full(kwargs))

    return wrapped


def _full(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if isinstance(value, dict):
        return {k: _full(v) for k, v in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_full(v) for v in value)
    return value


def _device_type(value: Any) -> str:
    """Where the first tensor lies."""
    found = _first_tensor(value)
    if found is None:
        raise TypeError("full_precision needs a tensor among the arguments")
    return found.device.type


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next((t for v in inner if (t := _first_tensor(v)) is not None), None)
