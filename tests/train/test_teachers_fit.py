"""Whether a method can learn from its teachers is told before any of them is trained: taps, grids, classes."""

from __future__ import annotations

import re
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from drives import small_surround_preset, write_drives
from streets import small_bev_preset

from distill3d.data.nuscenes.dataset import NuScenesDataset
from distill3d.distill.methods.x3kd import X3KDConfig
from distill3d.distill.style import StyledConfig
from distill3d.errors import UserError
from distill3d.instances import FOLDER
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.train.loop import RunOptions
from distill3d.train.preflight import check_recipe
from distill3d.train.recipe import Recipe, StageConfig
from distill3d.train.sources import source_of
from distill3d.train.stages import run_recipe

#: Presets, and their stages that a method teaches, each method on each kind of detector once.
STAGES = {
    "tiny_surround_family": (
        "distillbev", "unidistill", "unidistill_fusion", "tig_bev", "bevdistill", "simdistill", "uvtr_kd", "x3kd",
        "vcd",
    ),
    "tiny_bevdet": ("distillbev", "tig_bev"), "tiny_bevformer": ("bevdistill", "uvtr_kd"),
    "tiny_labeldistill": ("lidar", "labeldistill"), "tiny_surround": ("assistant", "monotakd", "monostl"),
    "tiny_bev": ("cmkd", "monotakd"),
}  # fmt: skip
CASES = [(preset, stage) for preset, stages in STAGES.items() for stage in stages]
#: Who reads its teacher's maps by metres, so that each may lie on a grid of its own.
ANY_GRID = {"uvtr_kd"}
#: Who looks at the teacher's maps alone, or at the best class of each cell, or at classes by their names.
ANY_TASKS = {"distillbev", "tig_bev", "bevdistill", "uvtr_kd", "vcd", "monostl"}
#: Taps that are not looked at here: of terms whose weight is 0, and of an assistant inside the student.
NOT_ASKED = {
    "simdistill": {"camera_tap", "teacher_camera_tap", "fused_tap", "teacher_fused_tap"}, "monotakd": {"assistant_tap"},
    "x3kd": {"image_tap"},
}  # fmt: skip


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drives(tmp_path_factory.mktemp("drives"))


@pytest.fixture(params=CASES, ids="/".join)
def case(request: pytest.FixtureRequest, drives: Path, streets: Path) -> tuple[Recipe, StageConfig]:
    """(recipe, one of its stages)"""
    preset, name = request.param
    recipe = small_bev_preset(streets, preset) if preset == "tiny_bev" else small_surround_preset(preset, drives)
    return recipe, recipe.stage(name)


def look(recipe: Recipe, stage: StageConfig) -> None:
    check_recipe(recipe, [stage], RunOptions(progress=False, tensorboard=False, threads=1, accelerator="cpu"))


def with_stage(recipe: Recipe, changed: StageConfig) -> Recipe:
    return replace(recipe, stages=tuple(changed if s.name == changed.name else s for s in recipe.stages))


def half(grid: VoxelGrid) -> VoxelGrid:
    """As many voxels, of half the length, width and distance from the origin."""
    (x0, y0, z0, x1, y1, z1), (dx, dy, dz) = grid.extent, grid.cell
    return VoxelGrid((x0 / 2, y0 / 2, z0, x1 / 2, y1 / 2, z1), (dx / 2, dy / 2, dz))


def on_other_grid(config: Any) -> Any:
    """The detector with maps of as many cells elsewhere: only their geometries tell."""
    grids = {f.name: half(grid) for f in fields(config) if isinstance(grid := getattr(config, f.name), VoxelGrid)}
    if getattr(config, "pillars", None) is not None:
        grids["pillars"] = replace(config.pillars, grid=half(config.pillars.grid))
    if not hasattr(config.head, "extent"):
        return replace(config, **grids)
    extent = tuple(side / 2 for side in config.head.extent)
    return replace(config, **grids, head=replace(config.head, extent=extent, cell=config.head.cell / 2))


def of_other_classes(config: Any) -> Any:
    """The detector with as many predictions, of other classes: only its settings tell."""
    head = config.head
    if hasattr(head, "tasks"):
        return replace(config, head=replace(head, tasks=head.tasks[::-1]))
    (anchor,) = head.classes
    return replace(config, head=replace(head, classes=(replace(anchor, name="Pedestrian"),)))


def changed_teacher(recipe: Recipe, stage: StageConfig, change: Any) -> Recipe:
    teacher = recipe.stage(stage.teachers[0])
    return with_stage(recipe, replace(teacher, detector=change(teacher.detector)))


def test_what_fits_is_let_through(case: tuple[Recipe, StageConfig]) -> None:
    look(*case)


def test_taps_that_are_not_there(case: tuple[Recipe, StageConfig]) -> None:
    recipe, stage = case
    assert isinstance(stage.method, StyledConfig)
    taps = {f.name: getattr(stage.method, f.name) for f in fields(stage.method) if "tap" in f.name.split("_")[-1]}
    taps = {name: value for name, value in taps.items() if name not in NOT_ASKED.get(stage.name, ())}
    assert taps
    for name, value in taps.items():
        wrong: Any = "nowhere" if value is None or isinstance(value, str) else ("nowhere", *value[1:])
        changed = replace(stage, method=replace(stage.method, **{name: wrong}))
        with pytest.raises(UserError) as error:
            look(with_stage(recipe, changed), changed)
        said = str(error.value)
        assert "nowhere" in said and "\n" not in said, name
        assert re.search(r"(offers|are) \S*bev|lack some of the compared ones", said), said


def test_maps_on_other_grids(case: tuple[Recipe, StageConfig]) -> None:
    recipe, stage = case
    changed = changed_teacher(recipe, stage, on_other_grid)
    if stage.name in ANY_GRID:
        look(changed, stage)
        return
    with pytest.raises(UserError, match=rf"stage '{stage.name}' cannot learn from its teachers .*(grid|covers)"):
        look(changed, stage)


def test_predictions_of_other_classes(case: tuple[Recipe, StageConfig]) -> None:
    recipe, stage = case
    changed = changed_teacher(recipe, stage, of_other_classes)
    if stage.name in ANY_TASKS:
        look(changed, stage)
        return
    with pytest.raises(UserError, match=rf"stage '{stage.name}' cannot learn .*the same, in one order$"):
        look(changed, stage)


def test_nothing_is_written(drives: Path, tmp_path: Path) -> None:
    recipe = small_surround_preset("tiny_bevdet", drives)
    changed = changed_teacher(recipe, recipe.stage("tig_bev"), on_other_grid)
    with pytest.raises(UserError, match="cannot learn from its teachers teacher"):
        run_recipe(changed, RunOptions(out=tmp_path / "runs", progress=False, tensorboard=False, accelerator="cpu"))
    assert not (tmp_path / "runs").exists()


def test_masks_of_single_things_are_looked_for(drives: Path, tmp_path: Path) -> None:
    """Each of them, of the training's frames alone, and of the classes that the method counts."""
    root = tmp_path / "drives"
    shutil.copytree(drives, root)
    recipe = small_surround_preset("tiny_x3kd", root)
    stage = recipe.stage("x3kd")
    look(recipe, stage)
    data = source_of(recipe).labelled(stage)
    assert isinstance(data, NuScenesDataset) and not data.absent_masks()
    masks = sorted((root / FOLDER / "CAM_BACK").iterdir())
    for mask in masks:
        mask.unlink()
    absent = data.absent_masks()
    assert 0 < len(absent) < len(masks)
    with pytest.raises(UserError, match=rf"{absent[0]} \(and {len(absent) - 1} more\): no such file, expected a mask"):
        look(recipe, stage)
    assert isinstance(stage.method, X3KDConfig)
    other = replace(stage, method=replace(stage.method, classes=("car", "truck")))
    with pytest.raises(UserError, match="stage 'x3kd': masks are of the data set's classes .*its method's are car, tr"):
        look(recipe, other)
