"""The surround family's presets: all stages end, students begin as the trained baseline and are left as it is."""

import json
from pathlib import Path

import pytest
import torch
from drives import small_surround_preset, work_of, write_drives

from distill3d.distill.methods import method_name
from distill3d.recipes import get_recipe
from distill3d.recipes.surround_family import TINY_METHODS
from distill3d.train.checkpoint import load_weights
from distill3d.train.loop import RunOptions
from distill3d.train.recipe import Recipe
from distill3d.train.stages import run_recipe

PRESETS = ("tiny_surround_family", "tiny_simdistill", "tiny_x3kd", "tiny_bevdet", "tiny_bevformer")

#: Students that have a map of the ground beside the baseline's.
MORE = {"monotakd"}


@pytest.fixture(scope="module", params=PRESETS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """(recipe, its folder) after all stages."""
    recipe = small_surround_preset(request.param, write_drives(tmp_path_factory.mktemp("drives")))
    options = RunOptions(out=tmp_path_factory.mktemp("runs"), progress=False, tensorboard=False, threads=1,
                         accelerator="cpu", log_steps=1)  # fmt: skip
    return recipe, run_recipe(recipe, options)


def first_terms(folder: Path) -> dict[str, float]:
    """What the losses of a stage's first step were."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return next(line["terms"] for line in map(json.loads, lines) if "terms" in line)


def test_all_stages_end(trained: tuple[Recipe, Path]) -> None:
    recipe, folder = trained
    for stage in recipe.stages:
        assert (folder / stage.name / "evaluation.json").is_file()
        assert all(torch.tensor(list(first_terms(folder / stage.name).values())).isfinite())


def test_students_begin_as_the_baseline_ended_and_have_its_parameters(trained: tuple[Recipe, Path]) -> None:
    """The first losses of their own are those of the baseline that is trained on; each term of the method is beside."""
    recipe, folder = trained
    own = first_terms(folder / "continued")
    shapes = {name: value.shape for name, value in load_weights(folder / "baseline")[0].items()}
    students = [stage for stage in recipe.stages if stage.role == "student"]
    assert students
    for stage in students:
        terms = first_terms(folder / stage.name)
        assert set(terms) > set(own), stage.name
        assert {name: terms[name] for name in own} == pytest.approx(own, rel=0.2), stage.name
        found = {name: value.shape for name, value in load_weights(folder / stage.name)[0].items()}
        assert found.items() > shapes.items() if stage.name in MORE else found == shapes, stage.name


def test_students_do_the_work_of_the_baseline(trained: tuple[Recipe, Path]) -> None:
    """For the answers to a frame, as trained: distillation costs nothing afterwards."""
    recipe, folder = trained
    baseline = work_of(recipe, folder, "baseline")
    students = [stage.name for stage in recipe.stages if stage.role == "student"]
    assert students and baseline > 0
    work = {name: work_of(recipe, folder, name) for name in students}
    assert {name: value for name, value in work.items() if name not in MORE} == dict.fromkeys(
        set(students) - MORE, baseline
    )
    assert all(work[name] > baseline for name in MORE & work.keys())


def test_every_method_of_the_family_has_a_row() -> None:
    recipe = get_recipe("tiny_surround_family")
    methods = {method_name(stage.method) for stage in recipe.stages if stage.method is not None}
    assert methods == {method_name(method) for _, method in TINY_METHODS.values()}
    assert len(methods) == 8
