"""The bird's-eye-view family end to end: teacher, assistant, students, what terms reach, and unlabelled frames."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from raw_drives import raw_drives
from streets import small_bev_preset
from torch.utils.flop_counter import FlopCounterMode

from distill3d.data.batching import picked
from distill3d.data.collate import batches, collate
from distill3d.data.sample import Batch
from distill3d.detectors import build_detector, monodle
from distill3d.distill.methods.monotakd import MonoTAKDConfig
from distill3d.errors import UserError
from distill3d.recipes import bev, get_recipe
from distill3d.train.checkpoint import load_detector, load_matching, load_weights
from distill3d.train.loop import RunOptions, TrainingStep, build_step
from distill3d.train.recipe import Recipe, StageConfig
from distill3d.train.sources import source_of
from distill3d.train.stages import run_recipe
from distill3d.train.teachers import Teacher

STUDENTS = ("cmkd", "monotakd")


@pytest.fixture(scope="module")
def trained(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """(recipe, its folder) after all stages."""
    recipe = small_bev_preset(streets)
    return recipe, run_recipe(recipe, quiet(tmp_path_factory.mktemp("bev")))


def quiet(out: Path) -> RunOptions:
    return RunOptions(out=out, progress=False, tensorboard=False, threads=1, accelerator="cpu")


def step_of(recipe: Recipe, folder: Path, stage: StageConfig) -> tuple[TrainingStep, dict[str, Teacher], Batch]:
    """The untrained step of a stage, its trained teachers, and a batch of two frames."""
    torch.manual_seed(0)
    teachers = {name: Teacher(folder / name) for name in stage.teachers}
    step = build_step(stage, teachers).train()
    return step, teachers, next(iter(batches(source_of(recipe).training(stage), [0, 1], 2, 0, 0)))


def losses(step: TrainingStep, teachers: dict[str, Teacher], batch: Batch) -> dict[str, torch.Tensor]:
    targets = step.student.encode(batch)
    return step(batch, targets, {name: teacher(batch, targets) for name, teacher in teachers.items()})


def test_stages_take_over_what_fits(trained: tuple[Recipe, Path]) -> None:
    _, folder = trained
    card = json.loads((folder / "cmkd" / "card.json").read_text())
    head = [name for name in load_weights(folder / "teacher")[0] if name.startswith("head.")]
    assert card["inherited"]["teacher"]["taken"] == len(head)
    assert all(name.startswith("backbone_3d.") for name in card["inherited"]["teacher"]["left"])
    assert card["inherited"]["bev"] == {"taken": len(load_weights(folder / "bev")[0]), "left": []}


@pytest.mark.parametrize("momentum", [None, 0.1, 1.0])
def test_how_fast_the_statistics_follow_is_the_schedules_to_say(
    momentum: float | None, trained: tuple[Recipe, Path]
) -> None:
    """After a step with all of it, evaluation sees the same map as the step did."""
    recipe, folder = trained
    stage = recipe.stage("baseline")
    stage = replace(stage, schedule=replace(stage.schedule, norm_momentum=momentum))
    step, _, batch = step_of(recipe, folder, stage)
    norms = [m for m in step.student.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {m.momentum for m in norms} == ({0.01, 0.1} if momentum is None else {momentum})
    with torch.no_grad():
        seen = step.student(batch).features["bev"].tensor
        gap = (step.student.eval()(batch).features["bev"].tensor - seen).square().mean() / seen.square().mean()
    assert (gap < 0.01) == (momentum == 1.0)


def test_later_stages_win_over_earlier_ones(trained: tuple[Recipe, Path]) -> None:
    recipe, folder = trained
    student = build_detector(recipe.stage("cmkd").detector)
    for name in recipe.stage("cmkd").inherit:
        load_matching(student, load_weights(folder / name)[0])
    for name, value in load_weights(folder / "bev")[0].items():
        torch.testing.assert_close(student.state_dict()[name], value)


def test_nothing_to_inherit_is_refused(trained: tuple[Recipe, Path]) -> None:
    recipe, folder = trained
    baseline = recipe.stage("baseline")
    stranger = replace(baseline, name="stranger", detector=monodle.tiny(), inherit=("teacher",))
    with pytest.raises(UserError, match="holds nothing that stage 'stranger' could inherit"):
        run_recipe(replace(recipe, stages=(*recipe.stages, stranger)), quiet(folder.parent), only=("stranger",))
    with pytest.raises(UserError, match="init or inherit, not both"):
        replace(stranger, init="teacher")


def test_cmkds_student_is_the_baseline(trained: tuple[Recipe, Path]) -> None:
    """CMKD changes nothing but weights; MonoTAKD adds its alignment and fusion, and nothing for the assistant."""
    recipe, folder = trained
    shapes = {k: v.shape for k, v in load_weights(folder / "baseline")[0].items()}
    assert {k: v.shape for k, v in load_weights(folder / "cmkd")[0].items()} == shapes
    added = {k.split(".")[0] for k in load_weights(folder / "monotakd")[0].keys() - shapes.keys()}
    assert added == {"collapse", "fusion"}

    def work(name: str) -> int:
        detector, _ = load_detector(folder / name)
        batch = next(iter(batches(source_of(recipe).training(recipe.stage("baseline")), [0], 1, None, 0)))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            detector.decode(detector(batch), batch)
        return counter.get_total_flops()

    assert work("cmkd") == work("baseline") < work("monotakd")


#: Parts of the student that each term teaches.
IMAGE = {"trunk", "channel_reduce", "collapse"}
SEEN = IMAGE | {"domain_adaptation"}
REACH = {
    ("cmkd", "bev"): SEEN,
    ("cmkd", "response_cls"): SEEN | {"head"},
    ("cmkd", "response_loc"): SEEN | {"head"},
    ("cmkd", "response_dir"): SEEN | {"head"},
    ("cmkd", "depth"): {"trunk"},
    ("monotakd", "imd"): SEEN,
    ("monotakd", "cmrd"): IMAGE,
    ("monotakd", "response_cls"): SEEN | {"head", "fusion"},
    ("monotakd", "response_loc"): SEEN | {"head", "fusion"},
    ("monotakd", "response_dir"): SEEN | {"head", "fusion"},
    ("released", "imd"): set(),
    ("released", "cmrd"): IMAGE,
    ("released", "response_cls"): SEEN | {"head"},
    ("released", "response_loc"): SEEN | {"head"},
    ("released", "response_dir"): SEEN | {"head"},
}  # fmt: skip


def released(recipe: Recipe) -> StageConfig:
    """MonoTAKD as its code was released, in the preset's size."""
    stage = recipe.stage("monotakd")
    detector = replace(stage.detector, fusion="none", assistant="shared")
    return replace(stage, name="released", detector=detector, method=MonoTAKDConfig.styled("released"))


def test_each_term_teaches_what_it_should(trained: tuple[Recipe, Path]) -> None:
    recipe, folder = trained
    sure = replace(recipe.stage("cmkd").method, positive=0.0)  # an untrained teacher is sure of nothing
    stages = [
        replace(recipe.stage("cmkd"), method=sure),
        replace(recipe.stage("monotakd"), method=replace(recipe.stage("monotakd").method, positive=0.0)),
        replace(released(recipe), method=replace(released(recipe).method, positive=0.0)),
    ]
    seen = set()
    for stage in stages:
        step, teachers, batch = step_of(recipe, folder, stage)
        for name, loss in losses(step, teachers, batch).items():
            step.zero_grad()
            if loss.requires_grad:
                loss.backward(retain_graph=True)
            reached = {
                n.split(".")[0] for n, p in step.student.named_parameters() if p.grad is not None and bool(p.grad.any())
            }
            assert reached == REACH[stage.name, name], (stage.name, name)
            seen.add((stage.name, name))
    assert seen == set(REACH)


def test_the_assistants_path_costs_nothing_afterwards(trained: tuple[Recipe, Path]) -> None:
    """Without the modules of a shared assistant, and without depth, a student says the same."""
    recipe, folder = trained
    _, _, batch = step_of(recipe, folder, released(recipe))
    torch.manual_seed(0)
    whole = build_detector(released(recipe).detector).eval()
    without = build_detector(replace(released(recipe).detector, assistant="none")).eval()
    assert load_matching(without, whole.state_dict())["left"]
    with torch.no_grad():
        a, b = whole(batch), without(replace(batch, depth=None))
    assert a.predictions.keys() == b.predictions.keys()
    for name, value in a.predictions.items():
        assert torch.equal(value, b.predictions[name])


@pytest.mark.parametrize("name", STUDENTS)
def test_unlabelled_frames_are_taught_like_labelled_ones(trained: tuple[Recipe, Path], name: str) -> None:
    """No label enters a student's losses, so it does not matter which images of a batch have some."""
    recipe, folder = trained
    stage = recipe.stage(name)
    step, teachers, batch = step_of(recipe, folder, stage)
    data = source_of(recipe).training(stage)
    half = [data.get(0), replace(data.get(1), objects=None)]
    step.eval()  # batch norm would otherwise see the first batch again
    mixed, labelled = collate(half), collate([data.get(0), data.get(1)])
    assert mixed.labelled is not None and mixed.labelled.tolist() == [True, False]
    with torch.no_grad():
        a, b = losses(step, teachers, mixed), losses(step, teachers, labelled)
    assert a.keys() == b.keys()
    for term, value in a.items():
        torch.testing.assert_close(value, b[term])
    del batch


def test_labels_of_some_frames_are_all_that_the_baseline_learns(trained: tuple[Recipe, Path]) -> None:
    recipe, _ = trained
    stage = recipe.stage("baseline")
    data = source_of(recipe).training(stage)
    student = build_detector(stage.detector).eval()
    mixed = collate([data.get(0), replace(data.get(1), objects=None)])
    targets = student.encode(mixed)
    assert not (targets.anchors.labels[1] > 0).any() and (targets.anchors.labels[1] == -1).all()


def test_a_students_targets_can_be_cut_by_image(trained: tuple[Recipe, Path]) -> None:
    recipe, folder = trained
    step, _, batch = step_of(recipe, folder, recipe.stage("cmkd"))
    targets = step.student.encode(batch)
    assert picked(targets, [1]).depth_bins.shape[0] == 1
    assert targets.anchors is None and picked(targets, [1]).anchors is None


def test_a_teacher_keeps_only_answers_that_fit(trained: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, folder = trained
    stage = recipe.stage("cmkd")
    step, _, batch = step_of(recipe, folder, stage)
    targets = step.student.encode(batch)
    keeping = Teacher(folder / "teacher", repeatable=True, frames=8)
    keeping(batch, targets)
    assert keeping._answers is not None and len(keeping._answers) == 2
    monkeypatch.setattr("distill3d.train.teachers.REMEMBERED_BYTES", 1000)
    refusing = Teacher(folder / "teacher", repeatable=True, frames=8)
    answer = refusing(batch, targets)
    assert refusing._answers is None and answer.features["bev"].tensor.shape[0] == 2


@pytest.mark.parametrize("recipe", bev.RECIPES, ids=lambda r: r.__name__)
def test_paper_recipes_name_their_source(recipe) -> None:
    built = recipe()
    assert built.note and get_recipe(built.name) == built


def test_a_stage_can_learn_depth_alone(trained: tuple[Recipe, Path]) -> None:
    """As CMKD's paper begins: no teacher, no label, and nothing behind the depth distribution is taught."""
    recipe, folder = trained
    baseline = recipe.stage("baseline")
    stage = replace(baseline, detector=replace(baseline.detector, detection_weight=0.0))
    step, teachers, batch = step_of(recipe, folder, stage)
    found = losses(step, teachers, batch)
    assert set(found) == {"depth"}
    found["depth"].backward()
    assert {n.split(".")[0] for n, p in step.student.named_parameters() if p.grad is not None} == {"trunk"}
    depth = replace(stage, name="depth", role="preparation")
    more = replace(recipe.stage("bev"), name="bev_after_depth", init="depth")
    whole = run_recipe(replace(recipe, stages=(*recipe.stages, depth, more)), quiet(folder.parent),
                       only=("depth", "bev_after_depth"))  # fmt: skip
    card = json.loads((whole / "bev_after_depth" / "card.json").read_text())
    assert card["init"] == "depth" and card["teachers"] == ["teacher"]


def test_raw_drives_begin_with_depth_and_released_students_with_raw_drives() -> None:
    raw, released = get_recipe("cmkd_second_raw"), get_recipe("monotakd_released")
    depth = raw.stage("depth")
    assert not depth.teachers and not depth.unlabelled and depth.detector.detection_weight == 0
    assert depth.detector.depth_weight > 0 and depth.schedule.epochs == 40
    assert raw.stage("bev").init == "depth" and raw.stage("bev").unlabelled
    for recipe in (raw, released):
        stages = [recipe.stage(name) for name in ("bev", "cmkd")]
        assert all(s.unlabelled and s.detector.depth_weight == 0 for s in stages)
        assert [(s.schedule.epochs, s.schedule.lr) for s in stages] == [(30, 2e-3), (10, 2e-4)]
    student = released.stage("student")
    assert student.inherit == ("teacher", "cmkd") and not student.unlabelled
    assert (student.schedule.epochs, student.schedule.lr, student.schedule.batch_size) == (10, 2e-4, 2)


def test_unlabelled_drives_need_a_list(streets: Path) -> None:
    recipe = get_recipe("cmkd_second_raw")
    recipe = replace(recipe, dataset=replace(recipe.dataset, root=streets))
    with pytest.raises(UserError, match="dataset.unlabelled.root"):
        source_of(recipe).training(recipe.stage("bev"))


def test_unlabelled_drives_are_learned_from(trained: tuple[Recipe, Path], streets: Path, tmp_path: Path) -> None:
    recipe, folder = trained
    drives = raw_drives(streets, tmp_path)
    more = replace(recipe.stage("bev"), name="bev_raw", unlabelled=True)
    recipe = replace(recipe, stages=(*recipe.stages, more), dataset=replace(recipe.dataset, unlabelled=drives))
    data = source_of(recipe).training(more)
    assert len(data) == 8 + 4 and data.get(8).objects is None and data.get(0).objects is not None
    run_recipe(recipe, quiet(folder.parent), only=("bev_raw",))
    seen = json.loads((folder / "bev_raw" / "card.json").read_text())["trained_on"]["frames"]
    assert sum(frame.startswith("kitti-raw/") for frame in seen) == 4 and len(seen) == 12


@pytest.mark.parametrize("problem", ["no mapping", "same drive"])
def test_drives_of_evaluation_frames_are_refused(
    trained: tuple[Recipe, Path], streets: Path, tmp_path: Path, problem: str
) -> None:
    recipe, folder = trained
    drives = raw_drives(streets, tmp_path)
    if problem == "no mapping":
        drives, words = replace(drives, mapping=None), "dataset.unlabelled.mapping"
    else:
        mapping = tmp_path / "train_mapping.txt"
        mapping.write_text(mapping.read_text().replace("0002_sync", "0001_sync"))
        words = "leave these drives out"
    more = replace(recipe.stage("bev"), name="leaking", unlabelled=True)
    recipe = replace(recipe, stages=(*recipe.stages, more), dataset=replace(recipe.dataset, unlabelled=drives))
    with pytest.raises(UserError, match=words):
        run_recipe(recipe, quiet(folder.parent), only=("leaking",))


SEVERAL = """
import sys
from dataclasses import replace
from pathlib import Path
from streets import small_bev_preset
from distill3d.train.loop import RunOptions
from distill3d.train.stages import run_recipe

recipe = small_bev_preset(Path(sys.argv[1]))
options = RunOptions(out=Path(sys.argv[2]), devices=2, accelerator="cpu", threads=1, progress=False, tensorboard=False)
run_recipe(recipe, options, only=("bev",))
"""


def test_several_processes_train_a_part_of_a_network(
    trained: tuple[Recipe, Path], streets: Path, tmp_path: Path
) -> None:
    """A preparation stage teaches the map alone; the head that waits for it must not stop the processes."""
    _, folder = trained
    shutil.copytree(folder / "teacher", tmp_path / folder.name / "teacher")
    script = tmp_path / "several.py"
    script.write_text(SEVERAL)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    modules = os.pathsep.join(map(str, Path(__file__).parents[1:3]))
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(streets), str(tmp_path)], check=False, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": modules, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / folder.name / "bev" / "card.json").read_text())["world_size"] == 2
