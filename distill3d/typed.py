"""Plain values, as JSON and YAML files hold them, held against types before anything uses them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from distill3d.errors import UserError

T = TypeVar("T")

#: Settings lie in settings of settings, no deeper than this.
DEEPEST = 32
#: Seeds have up to 64 bits; no whole number is larger.
LARGEST = 2**64


def checked(value: Any, kind: type[T], where: Path | str) -> T:
    """The value itself, once it is known to be what ``kind`` says; keys that a TypedDict does not know stay in it.

    Raises:
        UserError: it is not, is nested deeper than ``DEEPEST`` or holds a number that is not finite or beyond
            ``LARGEST``; the sentence begins with ``where`` and names the key.
    """
    _refuse_impossible(value, where)
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {fault_of(error)}") from None
    return value


def fault_of(error: msgspec.ValidationError) -> str:
    """What msgspec finds wrong, the key first: "epochs: expected `int`, got `str`"."""
    what, _, place = str(error).partition(" - at ")
    key = place.strip("`").removeprefix("$").removeprefix(".")
    return f"{key + ': ' if key else ''}{what[:1].lower()}{what[1:]}"


def _refuse_impossible(value: Any, where: Path | str) -> None:
    left: list[tuple[Any, int]] = [(value, 1)]
    while left:
        one, depth = left.pop()
        if isinstance(one, float) and not math.isfinite(one):
            raise UserError(f"{where}: holds the number {one}, expected finite ones")
        if isinstance(one, int) and abs(one) > LARGEST:
            raise UserError(f"{where}: holds a number that is too long")
        if isinstance(one, dict | list):
            if depth > DEEPEST:
                raise UserError(f"{where}: is nested too deeply, expected at most {DEEPEST} levels")
            left.extend((inner, depth + 1) for inner in (one.values() if isinstance(one, dict) else one))
