"""Where the recorded results lie, and which there are."""

import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from distill3d.boxes import IGNORE
from distill3d.data.surround import SurroundObjectBatch

ROOT = Path(__file__).resolve().parents[1]
KINDS = (".npz", ".json.gz")


def golden_root() -> Path | None:
    """The folder of recorded results (DISTILL3D_GOLDEN, by default ../shared/golden), or None where it is absent."""
    folder = Path(os.environ.get("DISTILL3D_GOLDEN", ROOT.parent / "shared" / "golden"))
    return folder if folder.is_dir() else None


def golden_files(method: str) -> list[Path]:
    """The recorded tensors (.npz) or results (.json.gz) of one method, by name; empty where there are none."""
    root = golden_root()
    return [] if root is None else sorted(p for kind in KINDS for p in (root / method).glob(f"*{kind}"))


def stem(path: Path) -> str:
    """The name of a recorded file without .npz or .json.gz."""
    return next(path.name.removesuffix(kind) for kind in KINDS if path.name.endswith(kind))


def constants(path: Path) -> dict[str, Any]:
    """What the index states of a recorded file beside its tensors."""
    return json.loads((path.parent / "index.json").read_text())[path.name]["constants"]


def golden_file(*names: str) -> pytest.MarkDecorator:
    """Parametrises a test's ``path`` with recorded files, ``<method>/<file without extension>``, as far as there; the
    method may be a folder's in a folder."""
    found = {
        f"{method}/{stem(path)}": path for method in dict.fromkeys(name.rpartition("/")[0] for name in names)
        for path in golden_files(method)
    }  # fmt: skip
    paths = {name: found[name] for name in names if name in found}
    return pytest.mark.parametrize("path", list(paths.values()), ids=list(paths))


def formula_state(constants: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights that a recorded entry describes by its integer formula instead of storing them.

    ``constants`` are the entry's own of index.json: ``param_order`` (name, shape, kind), ``seed``, ``gain``, ``dtype``.
    """
    dtype = getattr(torch, constants["dtype"])
    state = {}
    for k, (name, shape, kind) in enumerate(constants["param_order"]):
        u = _uniform(math.prod(shape), k, constants["seed"]).reshape(shape)
        match kind.split(":"):
            case ["w", fan]:
                values = (2 * u - 1) * math.sqrt(3 * constants["gain"] / int(fan))
            case ["gamma" | "running_var"]:
                values = 0.5 + u
            case ["beta_or_bias" | "running_mean"]:
                values = (u - 0.5) * 0.4
            case ["counter"]:
                state[name] = torch.zeros(shape, dtype=torch.int64)
                continue
            case _:
                raise AssertionError(f"{name}: no formula for the kind {kind!r}")
        state[name] = torch.from_numpy(values).to(dtype)
    return state


def hashed(count: int, position: int) -> np.ndarray:
    """Reproducible values in [-0.5, 0.5) of another formula: a 32-bit integer hash of element and tensor number."""
    with np.errstate(over="ignore"):
        h = np.arange(count, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(
            (position * 40503 + 12345) & 0xFFFFFFFF
        )
        h ^= h >> np.uint32(15)
        h *= np.uint32(2246822519)
        h ^= h >> np.uint32(13)
        h *= np.uint32(3266489917)
        h ^= h >> np.uint32(16)
    return h / 2.0**32 - 0.5


def hashed_weights(shapes: dict[str, Any], offset: int) -> dict[str, Tensor]:
    """The weights (float64) that this formula makes for the names of a state dict, whose byte order counts."""
    weights = {}
    for position, name in enumerate(sorted(shapes, key=str.encode)):
        shape = shapes[name]
        u = torch.from_numpy(hashed(math.prod(shape), position + offset)).reshape(shape)
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.zeros((), dtype=torch.int64)
        elif name.endswith("running_mean"):
            weights[name] = 0.2 * u
        elif name.endswith("running_var"):
            weights[name] = 1 + 0.4 * u
        elif len(shape) <= 1:
            weights[name] = 1 + 0.2 * u if name.endswith("weight") else 0.2 * u
        else:
            weights[name] = u * (24 / math.prod(shape[1:])) ** 0.5
    return weights


def _uniform(count: int, tensor: int, seed: int) -> np.ndarray:
    """Hashes of 0..count-1 in [0, 1), float64; 32-bit arithmetic held in 64 bits."""
    low = np.uint64(0xFFFFFFFF)
    h = np.arange(count, dtype=np.uint64) * np.uint64(2654435761)
    h = (h + np.uint64((tensor + 1) * 40503 + seed * 69069 + 12345)) & low
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h ^= h >> np.uint64(shift)
        h = (h * np.uint64(factor)) & low
    h ^= h >> np.uint64(16)
    return h.astype(np.float64) / 2**32


def by_number(names: Iterable[str]) -> list[str]:
    """Names in the order of the numbers in them: ``boxes10`` comes after ``boxes2``."""
    return sorted(
        names, key=lambda name: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
    )


def recorded_objects(g: dict[str, Tensor]) -> SurroundObjectBatch:
    """``in.boxes0``, ``in.labels0``, ... as a batch."""
    samples = by_number(name.removeprefix("in.boxes") for name in g if name.startswith("in.boxes"))
    boxes = pad_sequence([g[f"in.boxes{i}"] for i in samples], batch_first=True)
    label = pad_sequence([g[f"in.labels{i}"] for i in samples], batch_first=True, padding_value=IGNORE)
    counted = torch.zeros_like(label)
    return SurroundObjectBatch(
        boxes[..., :3], boxes[..., 3:6], boxes[..., 6], boxes[..., 7:], label, counted, label != IGNORE
    )
