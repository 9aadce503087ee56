"""Students of a network of their own kind: the same in all but the teacher, and trained to the end."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from streets import small_bev_preset, small_preset

from distill3d.recipes import get_recipe
from distill3d.recipes.kitti import BASES
from distill3d.recipes.monosd import RECIPES, RGB_TEACHER
from distill3d.train.checkpoint import load_weights
from distill3d.train.loop import RunOptions
from distill3d.train.recipe import Recipe
from distill3d.train.stages import run_recipe

#: Each control's recipe and stage, and those of the student that it is the control of.
CONTROLLED = {
    **{f"monosd_{base}": ("student_from_rgb_teacher", f"monoskd_{base}", "student") for base in BASES},
    "monosd_caddn": ("student_from_rgb_teacher", "cmkd_labelled", "student"),
    "demo_control": ("control", "demo", "monoskd"),
    "tiny_monosd_caddn": ("cmkd_adapted_from_rgb_teacher", "tiny_labelled", "cmkd_adapted"),
}


def test_every_control_is_of_something() -> None:
    assert set(CONTROLLED) == set(RECIPES)


@pytest.mark.parametrize("name", CONTROLLED)
def test_only_the_teacher_differs(name: str) -> None:
    recipe, (row, other, student) = get_recipe(name), CONTROLLED[name]
    original, control = get_recipe(other), recipe.stage(row)
    assert replace(control, name=student, role="student", teachers=original.stage(student).teachers) == (
        original.stage(student)
    )
    baseline, teacher = recipe.stage("baseline"), recipe.stage(RGB_TEACHER)
    assert baseline == original.stage("baseline") and control.teachers == (RGB_TEACHER,)
    assert teacher.seed_offset != baseline.seed_offset and teacher.detector.input == "rgb"
    assert replace(teacher, name="baseline", role="baseline", seed_offset=baseline.seed_offset) == baseline


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("demo_control", {"spearman", "affinity", "response"}),
        ("tiny_monosd_caddn", {"bev", "response_cls", "response_loc"}),
    ],
)
def test_equal_teachers_teach(name: str, terms: set[str], streets: Path, tmp_path: Path) -> None:
    """The teacher is another network than the baseline, and all of the method's terms say something of it."""
    recipe = small_bev_preset(streets, name) if "caddn" in name else small_control(streets)
    options = RunOptions(out=tmp_path, progress=False, tensorboard=False, threads=1, accelerator="cpu", log_steps=1)
    row = CONTROLLED[name][0]
    folder = run_recipe(recipe, options, ("baseline", RGB_TEACHER, row))
    teacher, baseline = (load_weights(folder / stage)[0] for stage in (RGB_TEACHER, "baseline"))
    assert teacher.keys() == baseline.keys()
    assert any(not torch.equal(teacher[entry], baseline[entry]) for entry in teacher)
    lines = [json.loads(line) for line in (folder / row / "metrics.jsonl").read_text().splitlines()]
    assert terms <= {term for line in lines for term in line.get("terms", {})}


def small_control(streets: Path) -> Recipe:
    """The demo's control with the net of the smallest MonoDLE."""
    like, recipe = small_preset("monodle", streets), get_recipe("demo_control")
    of = like.stage("baseline")
    stages = tuple(replace(s, detector=of.detector, schedule=of.schedule) for s in recipe.stages if s.name != "teacher")
    return replace(like, name=recipe.name, stages=tuple(s for s in stages if "teacher" not in s.teachers))
