"""Training states and weights with other entries, whose archives are sound."""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .nodes import at, changed_tree, paths_of, with_value
from .values import VALUES

#: What becomes of a tensor of a state.
TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "flat": lambda t: t.flatten(),
    "empty": lambda t: t.new_zeros(0),
    "scalar": lambda t: t.flatten()[:1].sum(),
    "one more row": lambda t: torch.cat((t.flatten(), t.new_zeros(1))),
    "one more axis": lambda t: t[None],
    "double": lambda t: t.double(),
    "half": lambda t: t.half(),
    "integer": lambda t: t.long(),
    "boolean": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex64),
    "nan": lambda t: torch.full_like(t.float(), float("nan")),
    "infinite": lambda t: torch.full_like(t.float(), float("inf")),
    "huge": lambda t: torch.full_like(t.float(), 1e38),
    "negative": lambda t: -t.float() - 1,
    "list": lambda t: t.flatten()[:100].tolist(),
    "sparse": lambda t: t.to_sparse(),
}


def _loaded(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


@lru_cache(8)
def _places(data: bytes) -> tuple[list[list[str | int]], list[list[str | int]]]:
    """Paths of a state: all, and those near its root, which say most."""
    paths = paths_of(_loaded(data))
    return paths, [path for path in paths if len(path) <= 2]


def draw_state_change(rng: random.Random, data: bytes) -> dict[str, Any]:
    paths, near = _places(data)
    path = rng.choice(near if rng.random() < 0.4 else paths)
    if isinstance(at(_loaded(data), path), Tensor) and rng.random() < 0.7:
        return {"path": path, "change": "tensor", "value": rng.choice(list(TENSORS))}
    change = rng.choices(("set", "delete", "wrap", "rename", "text", "swap"), (8, 4, 1, 1, 1, 1))[0]
    value: Any = rng.choice([name for name in VALUES if not name.startswith("deep")]) if change == "set" else None
    if change == "rename":
        value = "x"
    if change == "swap":
        value = rng.choice(paths)
    return {"path": path, "change": change, "value": value}


def change_state(data: bytes, path: list[str | int], change: str, value: Any) -> bytes:
    state = _loaded(data)
    if change == "tensor":
        state = with_value(state, path, TENSORS[value](at(state, path)))
    else:
        found = VALUES[value] if isinstance(value, str) else value
        state = changed_tree(state, path, change, found)
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def draw_header_change(rng: random.Random, data: bytes) -> dict[str, Any]:
    """Another entry of the header, or of the card that it holds."""
    header, _ = _header(data)
    of_card = rng.random() < 0.7
    tree = json.loads(header["__metadata__"]["card"]) if of_card else header
    change = rng.choices(("set", "delete", "wrap", "text"), (8, 3, 1, 1))[0]
    value = rng.choice([name for name in VALUES if not name.startswith("deep")]) if change == "set" else None
    return {"of_card": of_card, "path": rng.choice(paths_of(tree)), "change": change, "value": value}


def change_header(data: bytes, of_card: bool, path: list[str | int], change: str, value: str | None) -> bytes:
    header, body = _header(data)
    found = None if value is None else VALUES[value]
    if of_card:
        card = changed_tree(json.loads(header["__metadata__"]["card"]), path, change, found)
        header["__metadata__"]["card"] = json.dumps(card)
    else:
        header = changed_tree(header, path, change, found)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body
