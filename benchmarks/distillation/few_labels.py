"""Few labels, many drives: what a LiDAR teacher that learned from a few frames is worth on frames without labels.

This is what CMKD and MonoTAKD are made for.  ``FEW`` frames have labels, ``MANY`` others have none; every camera
network takes as many steps, the baseline on the labelled frames alone.  The teacher has seen no other labels either.
The ceiling, a baseline on the labels of all frames, is a group of its own, for it has other training frames.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distill3d.distill.methods.pseudo_labels import PseudoLabelsConfig
from distill3d.recipes import get_recipe
from distill3d.recipes.synthetic import CHOSEN
from distill3d.train.recipe import DatasetConfig, Recipe, StageConfig, UnlabelledConfig

from . import worlds
from .sizes import FEW, MANY, Size

#: Steps of every camera network, as passes over all frames.
PASSES = 2
#: Passes of the teacher over its few frames, for about as many steps as in the other groups.
TEACHER_PASSES = 24
#: How a stage's frames stand to ``FEW``: those without labels come on top.
TIMES = (FEW + MANY) // FEW


def bev(recipe: Recipe) -> Recipe:
    """CaDDN: CMKD, MonoTAKD, their labelled forms from a baseline of half the steps, and pseudo-labels."""
    of = {stage.name: stage for stage in (*recipe.stages, *get_recipe("tiny_labelled").stages)}
    half = PASSES // 2
    baseline = of["baseline"]
    before = _labelled_only(replace(baseline, name="baseline_half", role="preparation"), half)
    labelled = {
        "cmkd_labelled": replace(of[f"cmkd_{CHOSEN}"], init=before.name),
        "monotakd_labelled": replace(of[f"monotakd_{CHOSEN}"], inherit=(before.name,)),
    }
    stages = (
        _passes(of["teacher"], TEACHER_PASSES),
        _labelled_only(baseline, PASSES),
        _pseudo_labels(baseline),
        *(_with_drives(of[name], half) for name in ("bev", "cmkd", "assistant_bev", "assistant", "monotakd")),
        before,
        *(_with_drives(replace(stage, name=name), half) for name, stage in labelled.items()),
    )
    return replace(recipe, stages=stages)


def camera(recipe: Recipe) -> Recipe:
    """MonoDLE: MonoSKD and pseudo-labels, both from the depth network that is MonoSKD's teacher."""
    baseline = recipe.stage("baseline")
    stages = (
        _passes(recipe.stage("teacher"), TEACHER_PASSES),
        _labelled_only(baseline, PASSES),
        _pseudo_labels(baseline),
        _with_drives(recipe.stage("monoskd"), PASSES),
    )
    return replace(recipe, stages=stages)


def ceiling(recipe: Recipe) -> Recipe:
    """The baseline on all labels."""
    return replace(recipe, stages=(_passes(recipe.stage("baseline"), PASSES),))


def on_frames(recipe: Recipe, name: str, size: Size, seed: int, out: Path, all_labels: bool = False) -> Recipe:
    """The recipe on a seed's frames: the few with labels and the many without, or all of them with labels."""
    assert isinstance(recipe.dataset, DatasetConfig)
    dataset = replace(
        recipe.dataset, root=worlds.streets_folder(out), identity="benchmark-streets", eval_split="test",
        train_split=worlds.all_split(seed) if all_labels else worlds.train_split(FEW, seed),
        unlabelled=None if all_labels else UnlabelledConfig(split=worlds.unlabelled_split(seed)),
    )  # fmt: skip
    return replace(recipe, name=name, dataset=dataset)


def _pseudo_labels(baseline: StageConfig) -> StageConfig:
    stage = replace(
        baseline, name="pseudo_labels", role="student", teachers=("teacher",), method=PseudoLabelsConfig(),
        unlabelled=True,
    )  # fmt: skip
    return _passes(stage, PASSES)


def _passes(stage: StageConfig, passes: int) -> StageConfig:
    return replace(stage, schedule=replace(stage.schedule, epochs=passes))


def _labelled_only(stage: StageConfig, passes: int) -> StageConfig:
    return _passes(stage, passes * TIMES)


def _with_drives(stage: StageConfig, passes: int) -> StageConfig:
    return _passes(replace(stage, unlabelled=True), passes)
