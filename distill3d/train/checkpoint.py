"""Checkpoints that are never half-written, and weights that can be shared.

``last.ckpt`` holds the state of training and is read with ``weights_only``, so it cannot run code.
``model.safetensors`` holds the weights alone, with the card in its header, so that one file suffices.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from distill3d.detectors import build_detector, detector_entry
from distill3d.detectors.base import Detector
from distill3d.errors import UserError
from distill3d.files import write_atomically, write_text
from distill3d.settings import from_plain

WEIGHTS, CARD, STATE = "model.safetensors", "card.json", "last.ckpt"


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Tensors and plain values of a training state, atomically."""
    write_atomically(path, lambda p: torch.save(state, p))


def load_state(path: Path) -> dict[str, Any]:
    """What ``save_state`` wrote.

    Raises:
        UserError: the file is damaged, or holds anything but tensors and plain values; nothing in it is executed.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = (
            "holds more than tensors and was not loaded" if isinstance(error, pickle.UnpicklingError) else "is damaged"
        )
        raise UserError(f"{path}: {reason}, expected a checkpoint written by distill3d") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}, expected a checkpoint written by distill3d")
    return state


def save_weights(folder: Path, weights: dict[str, Tensor], card: dict[str, Any]) -> None:
    """``model.safetensors`` with the card in its header, then ``card.json``: its presence says the stage is done."""
    text = json.dumps(card, indent=1)
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    write_atomically(folder / WEIGHTS, lambda p: safetensors.torch.save_file(tensors, p, metadata={"card": text}))
    write_text(folder / CARD, text)


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and card of a stage folder or of a ``model.safetensors``.

    Raises:
        UserError: there is no such file, or it is none of ours.
    """
    if path.is_dir():
        path = path / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected a stage folder or a {WEIGHTS}")
    if path.suffix != ".safetensors":
        load_state(path)  # refuses what is damaged or hostile with its own sentence
        raise UserError(f"{path}: expected a {WEIGHTS} or the folder that holds it, not a {path.suffix or 'bare'} file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError):
        raise UserError(f"{path}: is damaged or no safetensors file, expected one written by distill3d") from None
    if "card" not in metadata:
        raise UserError(f"{path}: has no card in its header, expected weights written by distill3d")
    return weights, json.loads(metadata["card"])


def load_detector(path: Path, expected: str | None = None) -> tuple[Detector, dict[str, Any]]:
    """A trained detector in eval mode and its card, from a stage folder or a ``model.safetensors``.

    Raises:
        UserError: the file is none of ours, is of another detector than ``expected``, or its weights do not fit.
    """
    weights, card = load_weights(path)
    if expected is not None and card["detector"] != expected:
        raise UserError(f"{path} is of detector {card['detector']!r}, expected {expected!r}")
    entry = detector_entry(card["detector"], str(path))
    detector = build_detector(from_plain(entry.config_type, untrained(card["config"]), str(path)))
    load_into(detector, weights, str(path))
    return detector.eval(), card


def untrained(config: dict[str, Any]) -> dict[str, Any]:
    """The settings with no pretrained weights asked for: the checkpoint brings all of them."""
    return {k: untrained(v) if isinstance(v, dict) else (False if k == "pretrained" else v) for k, v in config.items()}


def load_matching(module: torch.nn.Module, weights: dict[str, Tensor], parts: tuple[str, ...] = ()) -> dict[str, Any]:
    """Copies what agrees in name and shape, of some ``parts`` (its modules' names) or of all; says how many tensors
    those are, and which of the others there are.

    Returns ``{"taken": count, "left": names in the weights that found no place}``.
    """
    own = module.state_dict()
    begins = tuple(f"{part}." for part in parts) or ("",)
    asked = {name: value for name, value in weights.items() if name.startswith(begins)}
    fits = {name: value for name, value in asked.items() if name in own and own[name].shape == value.shape}
    module.load_state_dict(own | fits)
    return {"taken": len(fits), "left": sorted(weights.keys() - fits.keys())}


def load_into(module: torch.nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Copies weights into a module.

    Raises:
        UserError: names or shapes differ; the first difference is named.
    """
    own = module.state_dict()
    for name in sorted(set(own) | set(weights)):
        if name not in weights:
            raise UserError(f"{where}: lacks {name}, which this detector has")
        if name not in own:
            raise UserError(f"{where}: holds {name}, which this detector does not have")
        if own[name].shape != weights[name].shape:
            shapes = tuple(weights[name].shape), tuple(own[name].shape)
            raise UserError(f"{where}: {name} has shape {shapes[0]}, this detector's is {shapes[1]}")
    module.load_state_dict(weights)
