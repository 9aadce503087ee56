"""Settings as plain data and back: what stands in config.yaml, card.json and checkpoints."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from distill3d.errors import UserError

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as dicts, lists and strings, ready for JSON and YAML."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def from_plain(kind: type[T], data: dict[str, Any], where: str) -> T:
    """The dataclass ``kind`` from what ``to_plain`` made of it; nested dataclasses and tuples are restored.

    Raises:
        UserError: ``data`` has a key that ``kind`` does not know, naming ``where`` it was read.
    """
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise UserError(f"{where}: unknown setting {unknown[0]!r}, {kind.__name__} has {', '.join(hints)}")
    return kind(**{name: _restore(hints[name], value, f"{where}: {name}") for name, value in data.items()})


def _restore(hint: Any, value: Any, where: str) -> Any:
    if isinstance(value, dict):
        candidates = [t for t in _members(hint) if dataclasses.is_dataclass(t)]
        if len(candidates) == 1:
            return from_plain(typing.cast(type, candidates[0]), value, where)
    if isinstance(value, list) and any(typing.get_origin(t) is tuple for t in _members(hint)):
        item = next(typing.get_args(t) for t in _members(hint) if typing.get_origin(t) is tuple)
        return tuple(_restore(item[0], v, where) for v in value)
    if isinstance(value, str) and Path in _members(hint):
        return Path(value)
    return value


def _members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the one type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def fingerprint(value: Any) -> str:
    """A hash of settings (16 hex digits) that is equal exactly if they are."""
    return hashlib.sha256(json.dumps(to_plain(value), sort_keys=True).encode()).hexdigest()[:16]
