"""What a recipe cannot end with is told before its first step, and nothing is written."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drives import small_surround_preset, write_drives
from streets import small_recipe

from distill3d.data.augment.image import AugmentConfig
from distill3d.data.augment.paste import PasteConfig
from distill3d.data.kitti.dataset import KittiDataset
from distill3d.data.sample import UNKNOWN
from distill3d.errors import UserError
from distill3d.train import preflight
from distill3d.train.loop import RunOptions
from distill3d.train.preflight import check_recipe
from distill3d.train.recipe import Recipe
from distill3d.train.sources import kitti_config
from distill3d.train.stages import run_recipe

QUIET = {"progress": False, "tensorboard": False, "threads": 1, "accelerator": "cpu"}


@pytest.fixture
def root(streets: Path, tmp_path: Path) -> Path:
    """A copy of the streets that a test may damage."""
    shutil.copytree(streets, tmp_path / "data", ignore=shutil.ignore_patterns(".distill3d_cache"))
    return tmp_path / "data"


def look(recipe: Recipe, **options: Any) -> None:
    check_recipe(recipe, recipe.stages, RunOptions(**{**QUIET, **options}))


def each_label(root: Path, change: Callable[[str], str], kind: str = "label_2") -> None:
    for path in (root / "training" / kind).glob("*.txt"):
        path.write_text("".join(f"{change(line)}\n" for line in path.read_text().splitlines()))


def cut(path: Path, keep: int = 200) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def of_val(kind: str, end: str) -> Callable[[Path], Path]:
    return lambda root: root / "training" / kind / f"000009.{end}"


def test_pictures_alone_need_no_lidar_lines(root: Path) -> None:
    shutil.rmtree(root / "training" / "velodyne")
    each_label(root, lambda line: line if line.startswith("P2") else "", "calib")
    look(replace(small_recipe(root), stages=tuple(s for s in small_recipe(root).stages if s.name == "baseline")))


FAULTS = [
    (of_val("label_2", "txt"), Path.unlink, "no such file"),
    (of_val("label_2", "txt"), lambda p: p.write_text("Car 0 0 0\n"), "found 4"),
    (of_val("label_2", "txt"), lambda p: p.write_text(p.read_text().replace("\n", " 0.9\n")), "expected 15 fields"),
    (of_val("calib", "txt"), lambda p: p.write_text("P2: 1 2\n"), "P2 has 2 numbers"),
    (of_val("image_2", "png"), cut, "cannot be read as an image"),
    (of_val("velodyne", "bin"), lambda p: cut(p, 201), "no multiple"),
    (lambda root: root / "training" / "image_2" / "000001.png", Path.unlink, "no such file"),
]


@pytest.mark.parametrize(("where", "damage", "sentence"), FAULTS, ids=[s for *_, s in FAULTS])
def test_files_of_every_split_are_looked_at_before_anything_is_written(
    where: Callable[[Path], Path], damage: Callable[[Path], object], sentence: str, root: Path, tmp_path: Path
) -> None:
    path = where(root)
    damage(path)
    with pytest.raises(UserError) as error:
        run_recipe(small_recipe(root), RunOptions(out=tmp_path / "runs", **QUIET))
    assert str(error.value).startswith(str(path)) and sentence in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_the_first_problems_are_named_and_all_are_counted(root: Path) -> None:
    for number in range(7):
        (root / "training" / "velodyne" / f"{number:06d}.bin").unlink()
    with pytest.raises(UserError, match=r"(.*no such file; ){2}.*no such file \(and 4 more\): .*distill3d check"):
        look(small_recipe(root))


def test_only_what_the_stages_read_is_looked_at(root: Path) -> None:
    shutil.rmtree(root / "training" / "velodyne")
    recipe = small_recipe(root)
    check_recipe(recipe, [recipe.stage("baseline")], RunOptions(**QUIET))
    with pytest.raises(UserError, match="velodyne"):
        check_recipe(recipe, [recipe.stage("teacher")], RunOptions(**QUIET))


def test_scans_that_objects_are_pasted_into_are_looked_at(root: Path) -> None:
    """By a detector that looks at pictures alone; a frame may lack its scan."""
    recipe = small_recipe(root)
    baseline = recipe.stage("baseline")
    scans = root / "training" / "velodyne"
    (scans / "000000.bin").unlink()
    cut(scans / "000001.bin", 201)
    check_recipe(recipe, [baseline], RunOptions(**QUIET))
    pasting = replace(baseline, augment=AugmentConfig(paste=PasteConfig()))
    with pytest.raises(UserError, match="000001.bin: .*no multiple") as error:
        check_recipe(recipe, [pasting], RunOptions(**QUIET))
    assert "000000" not in str(error.value)


def test_a_sound_verdict_is_kept_until_a_file_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(root)
    recipe = replace(recipe, dataset=replace(recipe.dataset, in_memory=False))
    looked: list[str] = []
    real = preflight.frame_problems
    monkeypatch.setattr(preflight, "frame_problems", lambda *a: looked.append(a[1]) or real(*a))
    look(recipe)
    assert len(looked) == 12
    look(recipe)
    assert len(looked) == 12
    path = root / "training" / "label_2" / "000003.txt"
    os.utime(path, ns=(1, 1))
    look(recipe)
    assert len(looked) == 24
    path.write_text("Car\n")
    with pytest.raises(UserError, match="found 1"):
        look(recipe)
    with pytest.raises(UserError, match="found 1"):
        look(recipe)


def test_nothing_is_kept_for_sets_in_memory(root: Path) -> None:
    recipe = small_recipe(root)
    look(replace(recipe, dataset=replace(recipe.dataset, in_memory=True, depth="lidar")))
    assert not (root / ".distill3d_cache").exists()


# --------------------------------------------------------------------------------------------------- what can be learnt


def test_counts_are_those_that_the_detector_learns_from(streets: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = small_recipe(streets)
    stage = recipe.stage("baseline")
    data = KittiDataset(kitti_config(recipe, stage, "train", train=True))
    expected = 0
    near, far = stage.detector.depth_range
    for index in range(len(data)):
        objects = data.get(index).objects
        assert objects is not None
        z = objects.boxes.centre[:, 2]
        car = objects.boxes.label == data.classes.index("Car")
        expected += int((car & (objects.difficulty != UNKNOWN) & (z >= near) & (z <= far)).sum())
    for _ in range(2):  # the second time from what was kept
        (count,) = preflight._kitti_counts(stage, data)
        assert (count.name, count.left) == ("Car", expected) and count.all == count.left + sum(count.dropped.values())
    check_recipe(recipe, [stage], RunOptions(**{**QUIET, "progress": True}))
    assert f"baseline: learns from {expected} of {count.all} Car" in capsys.readouterr().err


BARE = r"\1 -1 -1"


@pytest.mark.parametrize(
    ("pattern", "with_", "reason"),
    [
        (r"^(Car) \S+ \S+", BARE, "truncation is -1, not annotated"),
        (r"^(Car \S+ \S+ \S+) \S+ \S+ \S+ \S+", r"\1 0 0 0 0", "2D box has no area"),
        (r"^(Car( \S+){12}) \S+", r"\1 900", "outside 2 to 65 m of depth"),
    ],
)
def test_a_class_of_which_all_is_dropped_stops(pattern: str, with_: str, reason: str, root: Path) -> None:
    each_label(root, lambda line: re.sub(pattern, with_, line))
    with pytest.raises(
        UserError, match=rf"^stage 'teacher' has nothing to learn from in split 'train': 0 of \d+ Car .*{reason}"
    ):
        look(small_recipe(root))


def with_classes(recipe: Recipe, *classes: str) -> Recipe:
    return replace(
        recipe, stages=tuple(replace(s, detector=replace(s.detector, classes=classes)) for s in recipe.stages[:1])
    )


def test_a_class_that_is_not_there_is_a_warning(root: Path, capsys: pytest.CaptureFixture) -> None:
    each_label(root, lambda line: line.replace("Cyclist", "Pedestrian"))
    look(with_classes(small_recipe(root), "Car", "Cyclist"))
    assert "warning: stage 'teacher' learns no Cyclist from split 'train': there is none" in capsys.readouterr().err


def test_few_objects_that_are_all_dropped_are_a_warning_many_are_not(root: Path, capsys: pytest.CaptureFixture) -> None:
    each_label(root, lambda line: line.replace("Cyclist", "Pedestrian").replace("Van", "Pedestrian"))
    first = root / "training" / "label_2" / "000000.txt"
    car = next(line for line in first.read_text().splitlines() if line.startswith("Car"))
    hidden = re.sub(r"^Car \S+ \S+", "Cyclist 0.9 3", car) + "\n"
    first.write_text(first.read_text() + hidden)
    look(with_classes(small_recipe(root), "Car", "Cyclist"))
    assert "all are dropped: 0 of 1 Cyclist (1 too low, truncated or occluded)" in capsys.readouterr().err
    first.write_text(first.read_text() + 9 * hidden)
    with pytest.raises(UserError, match="nothing to learn Cyclist from in split 'train': 0 of 10 Cyclist"):
        look(with_classes(small_recipe(root), "Car", "Cyclist"))


def test_a_canvas_that_cuts_off_much_is_told(root: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = small_recipe(root)
    look(recipe)
    assert "outside the canvas" not in capsys.readouterr().err
    look(replace(recipe, dataset=replace(recipe.dataset, canvas=(160, 32))))
    assert (
        "warning: 50 % of the height of pictures of 160 x 64 px lie outside the canvas of 160 x 32 px: "
        "--dataset.canvas 160 64 shows all of them\n"
    ) in capsys.readouterr().err


def test_least_heights_for_wider_pictures_are_told(root: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = small_recipe(root)
    look(recipe)
    assert "least heights" not in capsys.readouterr().err
    dataset = replace(recipe.dataset, min_height_scale=0.6)
    look(replace(recipe, dataset=dataset))
    told = re.search(
        r"warning: pictures are 160 px wide, and least heights of boxes are 0.6 of KITTI's: (\d+) of (\d+) objects are "
        r"left out as too low, --dataset.min-height-scale 0.13 counts them\n",
        capsys.readouterr().err,
    )
    assert told is not None and 0 < int(told[1]) < int(told[2])


def test_labels_are_needed(root: Path) -> None:
    shutil.rmtree(root / "training" / "label_2")
    with pytest.raises(UserError, match="label_2: no such folder, but split 'val' is to be evaluated"):
        look(small_recipe(root))


# ------------------------------------------------------------------------------------------------- devices and networks


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"devices": 1000}, "devices is 1000, expected at most"),
        ({"devices": 3}, "batch_size is 4, expected a positive multiple of 3 processes"),
        ({"accelerator": "cuda"}, "accelerator is 'cuda', but torch sees no CUDA device"),
    ],
)
def test_options_are_checked(
    options: dict[str, Any], sentence: str, streets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=sentence):
        look(small_recipe(streets), **options)


def test_settings_are_checked_first(streets: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^workers is -1, expected an integer from 0 to 256"):
        run_recipe(small_recipe(streets), RunOptions(out=tmp_path / "runs", workers=-1, **QUIET))
    with pytest.raises(UserError, match="^stages.teacher.schedule.epochs is 0"):
        run_recipe(small_recipe(streets, epochs=0), RunOptions(out=tmp_path / "runs", **QUIET))
    assert not (tmp_path / "runs").exists()


def last_stage(recipe: Recipe, **fields: Any) -> Recipe:
    return replace(recipe, stages=(*recipe.stages[:-1], replace(recipe.stages[-1], **fields)))


def test_the_settings_of_later_stages_are_checked_together(streets: Path) -> None:
    recipe = small_recipe(streets)
    last = recipe.stages[-1]
    bad_trunk = replace(last.detector, trunk=replace(last.detector.trunk, channels=(8, 8)))
    with pytest.raises(UserError, match="the settings of detector 'monodle' do not fit together"):
        look(last_stage(recipe, detector=bad_trunk))
    with pytest.raises(UserError, match="schedule.slower is 'nothing'"):
        look(last_stage(recipe, schedule=replace(last.schedule, slower="nothing")))
    with pytest.raises(UserError, match=f"the method of stage '{last.name}' does not fit"):
        look(last_stage(recipe, method=replace(last.method, taps=("neck_3",))))
    with pytest.raises(UserError, match="8 frames, fewer than one batch of 64"):
        look(last_stage(recipe, schedule=replace(last.schedule, batch_size=64)))


# ------------------------------------------------------------------------------------------------------------- nuScenes


@pytest.fixture(scope="module")
def _drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drives(tmp_path_factory.mktemp("drives"))


@pytest.fixture
def drives(_drives: Path, tmp_path: Path) -> Path:
    shutil.copytree(_drives, tmp_path / "drives")
    return tmp_path / "drives"


def rename(table: str, old: str, new: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        path = root / "v1.0-synth" / f"{table}.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(f'"{old}"', f'"{new}"'))

    return change


def one_file(root: Path, channel: str, part: str = "samples") -> Path:
    return max((root / part / channel).iterdir())  # of the last scene, which is evaluated


SURROUND_FAULTS = [
    (rename("category", "vehicle.car", "car"), "'car' is no category of nuScenes', so its .* expected vehicle.car"),
    (rename("attribute", "vehicle.moving", "vehicle.reversing"), "has the attribute 'vehicle.reversing'"),
    (lambda root: (root / "v1.0-synth" / "sample_annotation.json").write_text("[]"), "has no annotations"),
    (lambda root: one_file(root, "CAM_BACK").unlink(), "no such file, but token .* of sample_data.json names it"),
    (lambda root: cut(one_file(root, "CAM_BACK")), "cannot be read as an image"),
    (lambda root: cut(one_file(root, "LIDAR_TOP"), 41), "no multiple of the 20 bytes"),
]


@pytest.mark.parametrize(("damage", "sentence"), SURROUND_FAULTS, ids=[s for _, s in SURROUND_FAULTS])
def test_surround_sets_are_looked_at(damage: Callable[[Path], object], sentence: str, drives: Path) -> None:
    damage(drives)
    with pytest.raises(UserError, match=sentence):
        look(small_surround_preset("tiny_labeldistill", drives))


def test_sound_surround_sets_tell_their_counts(drives: Path, capsys: pytest.CaptureFixture) -> None:
    look(small_surround_preset("tiny_labeldistill", drives), progress=True)
    assert re.search(r"baseline: learns from \d+ of \d+ car", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("told", "first"),
    [
        ({}, True),
        ({"RANK": "4", "LOCAL_RANK": "0"}, False),  # torchrun, on a second machine
        ({"LOCAL_RANK": "1", "SLURM_PROCID": "0"}, False),  # processes of Fabric's own, in a batch script
        ({"SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, False),  # srun
        ({"SLURM_PROCID": "0"}, True),
    ],
)
def test_one_process_speaks(told: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in preflight.RANKS:
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert preflight.is_first_process() is first


def test_processes_share_every_batch(streets: Path) -> None:
    """Of eight frames in batches of six two are left: the second process would have no step where the first has one."""
    recipe = small_recipe(streets, batch_size=6)
    stage = recipe.stage("baseline")
    options = RunOptions(devices=2, accelerator="cpu", progress=False)
    kept = replace(stage, schedule=replace(stage.schedule, drop_last=False))
    with pytest.raises(
        UserError, match=r"holds 2 of 6 frames, which 2 processes .* --stages\.baseline\.schedule\.drop"
    ):
        check_recipe(recipe, [kept], options)
    check_recipe(recipe, [kept], replace(options, devices=1))
    check_recipe(recipe, [stage], options)
