"""One cell of the benchmark is one stage of one group with one seed: a process that goes on where it was killed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from distill3d.train.card import CARD
from distill3d.train.loop import RunOptions
from distill3d.train.recipe import Recipe
from distill3d.train.stages import run_recipe

from ..processes import Job, run_all
from .sizes import Size
from .table import Group, groups
from .validation import judged_on_validation


def run_folder(out: Path, seed: int) -> Path:
    """Where a seed's recipes lie."""
    return out / "runs" / f"seed_{seed}"


def stage_folder(out: Path, recipe: Recipe, stage: str) -> Path:
    """The folder of one cell."""
    return run_folder(out, recipe.seed) / recipe.name / stage


def train_cells(size: Size, out: Path, chosen: Sequence[Group], side_by_side: int, all_seeds: bool = False) -> None:
    """Trains every cell that is not finished, seed by seed, group by group; of every group the seeds that it is asked
    for, or all."""
    jobs = []
    for round_ in range(max(len(group.seeds) for group in chosen)):
        for group in chosen:
            if round_ >= (len(group.seeds) if all_seeds else group.asked):
                continue
            seed = group.seeds[round_]
            recipe = group.recipe(size, seed, out)
            for stage in recipe.stages:
                name = f"{group.name}/{stage.name}, seed {seed}"
                command = (sys.executable, "-m", "benchmarks.distillation", "cell", "--size", size.name, "--out",
                           str(out), "--groups", group.name, "--seed", str(seed), "--stage", stage.name)  # fmt: skip
                folder = stage_folder(out, recipe, stage.name)
                log = run_folder(out, seed) / recipe.name / f"{stage.name}.log"
                needs = tuple(stage_folder(out, recipe, needed) / CARD for needed in stage.needs)
                jobs.append(Job(name, command, folder / CARD, log, needs))
    total = len(jobs)
    left = [sum(not job.finished.exists() for job in jobs)]

    def tell(job: Job) -> None:
        left[0] -= 1
        print(f"{total - left[0]}/{total} {job.name}", flush=True)

    run_all(jobs, side_by_side, tell)


def train_cell(size: Size, out: Path, group: str, seed: int, stage: str) -> None:
    """One cell, in this process."""
    about = groups(size)[group]
    recipe = about.recipe(size, seed, out)
    options = RunOptions(out=run_folder(out, seed), threads=1, progress=False, tensorboard=False)
    run_recipe(recipe, options, (stage,))
    if about.chosen_here and recipe.stage(stage).role != "preparation":
        judged_on_validation(recipe, recipe.stage(stage), stage_folder(out, recipe, stage))
