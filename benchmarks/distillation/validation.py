"""Finished cells judged on the validation split as well, where one of a group's rows is chosen."""

from __future__ import annotations

from pathlib import Path

import torch

from distill3d.train.checkpoint import load_detector
from distill3d.train.evaluation import EVALUATION
from distill3d.train.precision import choose_precision
from distill3d.train.recipe import Recipe, StageConfig
from distill3d.train.sources import source_of

#: The split, and the folder in a cell's where the verdict lies.
SPLIT, FOLDER = "val", "validation"


def judged_on_validation(recipe: Recipe, stage: StageConfig, folder: Path) -> Path:
    """The file of a cell's verdict on the validation split, which is made where it is missing."""
    path = folder / FOLDER / EVALUATION
    if not path.exists():
        source, device = source_of(recipe), torch.device("cpu")
        detector, _ = load_detector(folder)
        precision = choose_precision(recipe.precision, device)
        source.judge(detector, source.evaluation(stage, SPLIT), device, precision, folder / FOLDER)
    return path
