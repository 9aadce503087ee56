"""Running a recipe: its stages in order, finished ones skipped, the interrupted one taken up."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric import Fabric

from distill3d.errors import UserError
from distill3d.files import write_text
from distill3d.settings import to_plain
from distill3d.train.checkpoint import CARD
from distill3d.train.loop import CONFIG, RunOptions, train_stage
from distill3d.train.memory import keep_freed_memory
from distill3d.train.recipe import Recipe, StageConfig
from distill3d.train.sources import source_of

RECIPE = "recipe.yaml"


def run_recipe(recipe: Recipe, options: RunOptions, only: tuple[str, ...] = ()) -> Path:
    """Trains the stages of a recipe under ``<out>/<recipe>/<stage>`` and returns the run's folder.

    Finished stages are skipped, an interrupted one continues from its last state.  ``only`` names the stages to train;
    those that they need must be finished.

    Raises:
        UserError: a stage was finished with other settings, or one that is needed is not finished.
    """
    folder = options.out / recipe.name
    chosen = [recipe.stage(name) for name in only] if only else list(recipe.stages)
    source = source_of(recipe)
    for split in (recipe.dataset.train_split, recipe.dataset.eval_split):
        source.evaluation(chosen[0], split)  # refuses a wrong folder before any is made
    fabric = launch(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if fabric.global_rank == 0:
        write_text(folder / RECIPE, yaml.safe_dump(to_plain(recipe), sort_keys=False))
    for stage in chosen:
        path = folder / stage.name
        if is_finished(recipe, stage, folder):
            continue
        for needed in stage.needs:
            if not is_finished(recipe, recipe.stage(needed), folder):
                raise UserError(f"stage {stage.name!r} needs stage {needed!r}, which is not finished in {folder}")
        if fabric.global_rank == 0:
            write_text(path / CONFIG, yaml.safe_dump(to_plain(stage), sort_keys=False))
        fabric.barrier()
        train_stage(recipe, stage, path, options, fabric)
    return folder


def launch(options: RunOptions) -> Fabric:
    """The devices and processes of a run; under torchrun it joins the processes that exist."""
    many = options.devices * options.nodes > 1
    # Not every stage trains every parameter: a map can be taught before the head that reads it.
    fabric = Fabric(
        accelerator=options.accelerator, devices=options.devices, num_nodes=options.nodes,
        strategy="ddp_find_unused_parameters_true" if many else "auto", precision="32-true",
    )  # fmt: skip
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    fabric.launch()
    if fabric.device.type == "cpu":
        keep_freed_memory()
    return fabric


def is_finished(recipe: Recipe, stage: StageConfig, folder: Path) -> bool:
    """Whether a stage's card is there.

    Raises:
        UserError: the card was written with other settings.
    """
    path = folder / stage.name / CARD
    if not path.exists():
        return False
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if card["fingerprint"] != recipe.stage_fingerprint(stage):
        raise UserError(
            f"{path.parent} was trained with other settings than stage {stage.name!r} has now: "
            "give another --out, or remove that folder"
        )
    return True
