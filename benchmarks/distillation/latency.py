"""What a picture takes when a student has been exported, on one thread of the CPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from distill3d import export
from distill3d.files import write_text
from distill3d.settings import fingerprint
from distill3d.train.card import CARD
from distill3d.train.checkpoint import load_detector
from distill3d.train.recipe import StageConfig

from ..stopwatch import fastest
from .cells import stage_folder
from .sizes import Size
from .table import Group

#: Kept beside the data: seconds by detector.
LATENCIES = "latency.json"
#: Runs, of which the fastest counts.
RUNS = 30


def key_of(stage: StageConfig) -> str:
    """Rows with equal detectors have one latency."""
    return fingerprint(stage.detector)


def read_latencies(out: Path) -> dict[str, Any]:
    path = out / LATENCIES
    return json.loads(path.read_text()) if path.exists() else {}


def measure_latencies(size: Size, out: Path, chosen: Sequence[Group]) -> None:
    """Exports a finished student of every detector that is not measured yet, and times it."""
    known = read_latencies(out)
    for group in chosen:
        recipe = group.recipe(size, group.seeds[0], out)
        for stage in recipe.stages:
            folder = stage_folder(out, recipe, stage.name)
            if stage.detector.input == "rgb" and key_of(stage) not in known and (folder / CARD).exists():
                print(f"{group.name}/{stage.name}: latency", flush=True)
                known[key_of(stage)] = latency(folder)
                write_text(out / LATENCIES, json.dumps(known, indent=1) + "\n")


def latency(folder: Path) -> dict[str, Any]:
    """Of one stage: seconds in ONNX Runtime and in PyTorch, boxes included, and the file's bytes."""
    detector, card = load_detector(folder)
    inputs = export.example_inputs(detector, card, 0)
    deployed = export.Deployed(detector.requires_grad_(False), tuple(inputs))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with TemporaryDirectory() as temporary, torch.no_grad():
        path = Path(temporary) / "student.onnx"
        exported = export.export_checkpoint(folder, path)
        in_torch = fastest(lambda: deployed(*inputs.values()), torch.device("cpu"), RUNS)
        in_onnx = min(export.latency(export.open_session(path), inputs, RUNS))
    torch.set_num_threads(threads)
    return {"onnx_seconds": in_onnx, "torch_seconds": in_torch, "bytes": exported.size}
