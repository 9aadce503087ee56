"""Checkpoint files as the authors' code writes them, with weights that the recorded formula makes."""

import argparse
import json
from collections import OrderedDict
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden import constants, hashed, hashed_weights
from torch import Tensor

from distill3d.detectors import build_detector
from distill3d.detectors.base import Detector
from distill3d.detectors.released import plain_names
from distill3d.published.importing import fitted, import_checkpoint
from distill3d.published.systems import SYSTEMS
from distill3d.train.checkpoint import load_detector


def recorded(path: Path) -> dict[str, Any]:
    """What a file records; texts as lists."""
    with np.load(path) as data:
        return {k: torch.from_numpy(data[k]) if data[k].dtype.kind in "biuf" else data[k].tolist() for k in data}


def listing(path: Path) -> dict[str, Any]:
    """How the file is built whose network was recorded: its top level, and names and shapes of its state dict."""
    return json.loads((path.parent / constants(path)["state_dict"]).read_text())


def weights_of(path: Path) -> dict[str, Tensor]:
    """The recorded network's weights under the released names, float64."""
    about, found = constants(path), recorded(path)
    weights = hashed_weights(listing(path)["state"], about["n_offset"])
    assert len(weights) == about["entries"]
    for name in about["kept"]:
        weights[name] = found[f"param.{name}"]
    for name, factor in about["scaled"].items():
        weights[name] = weights[name] * factor
    aliases = about.get("alias", {})
    for name, first in aliases.items():
        weights[name] = weights[first]
    made = {name: weights[name] for name in found["in.probe_names"]}
    for (name, value), probe in zip(made.items(), found["in.probe_first8"], strict=True):
        first = value.flatten().double()[: probe.numel()].repeat(8)[:8]
        torch.testing.assert_close(first, probe, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
    return weights


def input_of(path: Path, shape: tuple[int, ...], number: int = 900001, scale: float = 3.0) -> Tensor:
    """The recorded input, float64."""
    count = int(np.prod(shape))
    return torch.from_numpy(scale * hashed(count, number + constants(path)["n_offset"])).reshape(shape)


def write_checkpoint(path: Path, weights: dict[str, Tensor], out: Path) -> Path:
    """A file of the released structure: top level, prefix, optimizer state, numpy's numbers where there may be some."""
    about = listing(path)
    single = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    state = OrderedDict((about["prefix"] + name, single[name]) for name in about["state"])
    made: dict[str, Any] = {}
    for key, kind in about["top_level"].items():
        match key, kind.split(" ")[0]:
            case _, "OrderedDict":
                made[key] = state
            case "epoch" | "it" | "global_step" | "best_epoch", _:
                made[key] = 140
            case "best_result", _:
                made[key] = np.float64(20.5)
            case "hyper_parameters", _:
                made[key] = argparse.Namespace(lr=2e-4, gpus=8)
            case "optimizer_state" | "optimizer", _:
                moments = {0: {"step": 7, "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}}
                made[key] = {"state": moments, "param_groups": [{"lr": 1e-3, "params": [0]}]}
            case _, "str":
                made[key] = "1.0"
            case _, "list":
                made[key] = []
            case _:
                made[key] = {}
    file = out / about["file"].split(" ")[0].strip(",").replace("<n>", "140")
    torch.save(made if made else state, file)
    return file


def as_released(config: Any) -> dict[str, Any]:
    """Of a detector's settings those in which released code and intention differ, as released; but those that are
    neither."""
    if not hasattr(config, "styled"):
        return {}
    released, intended = (type(config).styled(style) for style in ("released", "intended"))
    values = {f.name: (getattr(released, f.name), getattr(intended, f.name)) for f in fields(config)}
    return {
        name: theirs for name, (theirs, meant) in values.items()
        if theirs != meant and getattr(config, name) in (theirs, meant)
    }  # fmt: skip


def imported(path: Path, system: str, part: str, out: Path, named: bool = True, **changes: Any) -> Detector:
    """The recorded network in evaluation mode, float64, as the import maps it; what the import wrote is the same in
    float32.  All options are as released; ``changes`` are of settings that no weight depends on, such as the ground's
    extent, which recordings have smaller.  Without ``named`` the import is not told which network the file is of.
    """
    weights = weights_of(path)
    out.mkdir(parents=True, exist_ok=True)
    told = (system, part) if named else (None, None)
    found = import_checkpoint(write_checkpoint(path, weights, out), *told, out / "runs")
    assert (found.system, found.part) == (system, part)
    folder = found.folder
    written, card = load_detector(folder)
    assert card["imported"]["system"] == system and len(card["imported"]["sha256"]) == 64
    _, _, taken = fitted(plain_names(weights), SYSTEMS[system].parts[part], torch.float64)
    for name, value in written.state_dict().items():  # biases folded into norms are rounded before or after it
        given = taken.weights[name].to(value.dtype)
        torch.testing.assert_close(given, value, rtol=1e-6, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")
    detector = build_detector(replace(taken.config, **(as_released(taken.config) | changes))).double()
    detector.load_state_dict(taken.weights)
    return detector.eval()
