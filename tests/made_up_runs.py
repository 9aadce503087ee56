"""Runs as training leaves them, with untrained detectors: for what only asks a finished stage."""

from pathlib import Path
from typing import Any

import torch
import yaml

from distill3d.detectors import build_detector
from distill3d.settings import to_plain
from distill3d.train.checkpoint import save_weights
from distill3d.train.recipe import Recipe, SurroundDatasetConfig


def made_up_run(
    folder: Path, recipe: Recipe, stage: str, frames: tuple[str, ...] = (), focal: float = 1.0, **more: Any
) -> Path:
    """The folder of a stage that says it was trained on ``frames`` of the recipe's data, at ``focal`` px; its card says
    ``more`` besides."""
    torch.manual_seed(0)
    config, dataset = recipe.stage(stage).detector, recipe.dataset
    detector = build_detector(config)
    listed = [f"{dataset.identity}/{frame}" for frame in frames]
    card = {
        "recipe": recipe.name, "stage": stage, "role": recipe.stage(stage).role, "detector": detector.name,
        "config": to_plain(config), "input": config.input, "focal": focal,
        "trained_on": {"identity": dataset.identity, "count": len(listed), "frames": listed},
    }  # fmt: skip
    if isinstance(dataset, SurroundDatasetConfig):
        card |= {"version": dataset.version, "cameras": list(dataset.cameras)}
    path = folder / recipe.name / stage
    save_weights(path, detector.state_dict(), card | more)
    (path.parent / "recipe.yaml").write_text(yaml.safe_dump(to_plain(recipe), sort_keys=False))
    return path
