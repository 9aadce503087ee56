"""Students that keep their labels: they begin as the trained baseline, learn from labels and teachers, and all end."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from drives import small_surround_preset, write_drives
from streets import small_bev_preset
from torch import Tensor

from distill3d.data.collate import batches
from distill3d.detectors.base import Detector
from distill3d.distill.methods.cmkd import CMKDConfig
from distill3d.recipes import get_recipe
from distill3d.recipes.synthetic import MAP_WAYS
from distill3d.train.checkpoint import load_matching, load_weights
from distill3d.train.loop import RunOptions, TrainingStep, build_step
from distill3d.train.recipe import Recipe, StageConfig
from distill3d.train.sources import source_of
from distill3d.train.stages import run_recipe
from distill3d.train.teachers import Teacher

PRESETS = ("tiny_labelled", "tiny_surround_labelled")
#: Of which the others are variations.
TRAINED = ("teacher", "baseline", "assistant_bev", "assistant", "continued", "monotakd_held", "monotakd_labelled",
           "cmkd_adapted", "cmkd_labelled")  # fmt: skip


@pytest.fixture(scope="module", params=PRESETS)
def trained(request: pytest.FixtureRequest, streets: Path, tmp_path_factory: pytest.TempPathFactory):
    """(recipe, its folder) after its stages."""
    folder = tmp_path_factory.mktemp("labelled")
    if request.param == "tiny_labelled":
        recipe = small_bev_preset(streets, request.param)
    else:
        recipe = small_surround_preset(request.param, write_drives(tmp_path_factory.mktemp("drives")))
    options = RunOptions(out=folder, progress=False, tensorboard=False, threads=1, accelerator="cpu", log_steps=1)
    return recipe, run_recipe(recipe, options, tuple(s.name for s in recipe.stages if s.name in TRAINED))


def students(recipe: Recipe) -> list[StageConfig]:
    return [stage for stage in recipe.stages if stage.role == "student"]


def begun(recipe: Recipe, folder: Path, stage: StageConfig) -> tuple[TrainingStep, dict[str, Teacher]]:
    """The step of a stage that goes on from the baseline, and its teachers."""
    torch.manual_seed(0)
    teachers = {name: Teacher(folder / name) for name in stage.teachers}
    step = build_step(stage, teachers)
    load_matching(step.student, load_weights(folder / "baseline")[0], ())
    return step, teachers


def predictions(student: Detector, batch) -> dict[str, Tensor]:
    with torch.no_grad():
        return student.eval()(batch).predictions


def test_each_begins_as_the_baseline_ended(trained: tuple[Recipe, Path]) -> None:
    recipe, folder = trained
    data = source_of(recipe).training(recipe.stage("baseline"))
    batch = next(iter(batches(data, [0, 1], 2, None, 0)))
    known = predictions(begun(recipe, folder, recipe.stage("continued"))[0].student, batch)
    for stage in students(recipe):
        found = predictions(begun(recipe, folder, stage)[0].student, batch)
        assert found.keys() == known.keys()
        assert all(torch.equal(found[name], known[name]) for name in known), stage.name


def test_labels_and_teachers_teach_together(trained: tuple[Recipe, Path]) -> None:
    recipe, folder = trained
    for stage in students(recipe):
        step, teachers = begun(recipe, folder, stage)
        batch = next(iter(batches(source_of(recipe).training(stage), [0, 1], 2, 0, 0)))
        targets = step.train().student.encode(batch)
        losses = step(batch, targets, {name: teacher(batch, targets) for name, teacher in teachers.items()})
        own = step.student.loss(step.student.forward_at(batch, targets), batch, targets)
        assert own.keys() < losses.keys() and losses.keys() - own.keys() == {term.name for term in step.terms}
        assert {"response_cls", "response_loc"} < losses.keys(), stage.name
        torch.stack([*losses.values()]).sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in step.parameters())


def test_what_was_trained_says_so(trained: tuple[Recipe, Path]) -> None:
    recipe, folder = trained
    for stage in recipe.stages:
        if stage.name not in TRAINED:
            continue
        card = json.loads((folder / stage.name / "card.json").read_text())
        assert card["stage"] == stage.name
        if stage.role == "student":
            assert card["init"] == "baseline" or card["inherited"]["baseline"]["taken"] > 0


def test_every_way_of_the_map_term_is_another() -> None:
    recipe = get_recipe("tiny_labelled")
    methods = [recipe.stage(f"cmkd_{name}").method for name in MAP_WAYS]
    assert len(set(map(repr, methods))) == len(methods)
    assert all(isinstance(method, CMKDConfig) for method in methods)
    continued = recipe.stage("continued")
    for stage in students(recipe):
        assert stage.schedule == continued.schedule and stage.augment == continued.augment
        if stage.name.startswith("cmkd"):
            same = replace(stage, name="continued", role="control", teachers=(), method=None)
            assert same == continued
