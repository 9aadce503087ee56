"""Recipes on surround views: all stages of LabelDistill end, go on after a kill, and leave what others read."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from drives import KEY_FRAMES, small_surround_detector, small_surround_preset, work_of, write_drives

from distill3d.data.collate import batches
from distill3d.data.surround import SurroundBatch
from distill3d.detectors import bevdet, build_detector
from distill3d.distill.methods import method_name
from distill3d.errors import UserError
from distill3d.evaluate.nuscenes import evaluate, ground_truth
from distill3d.evaluate.nuscenes_submission import read_submission
from distill3d.recipes import RECIPES, get_recipe
from distill3d.train.checkpoint import load_detector, load_state, load_weights
from distill3d.train.learnable import nuscenes_counts
from distill3d.train.loop import RunOptions
from distill3d.train.recipe import SurroundDatasetConfig
from distill3d.train.schedules import learning_rate
from distill3d.train.sources import source_of
from distill3d.train.stages import run_recipe

PRESET = "tiny_labeldistill"
OPTIONS = {"progress": False, "tensorboard": False, "threads": 1, "accelerator": "cpu", "log_steps": 1}
SURROUND = [name for name, build in RECIPES.items() if isinstance(build().dataset, SurroundDatasetConfig)]


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drives(tmp_path_factory.mktemp("drives"))


@pytest.fixture(scope="module")
def trained(drives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preset's run, all stages."""
    out = tmp_path_factory.mktemp("runs")
    return run_recipe(small_surround_preset(PRESET, drives), RunOptions(out=out, **OPTIONS))


def test_all_stages_end_and_say_what_they_did(trained: Path) -> None:
    recipe = get_recipe(PRESET)
    for stage in recipe.stages:
        folder = trained / stage.name
        card = json.loads((folder / "card.json").read_text())
        assert (card["detector"], card["canvas"]) == (build_detector(stage.detector).name, [64, 32])
        assert card["classes"] == list(recipe.dataset.classes)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        last = lines[-1]["nuscenes"]
        found = json.loads((folder / "evaluation.json").read_text())
        assert last["NDS"] == pytest.approx(found["nd_score"], abs=1e-6)
        assert last["mAP"] == pytest.approx(found["mean_ap"], abs=1e-6)
    inherited = json.loads((trained / "label_encoder" / "card.json").read_text())["inherited"]["teacher"]
    assert inherited["taken"] > 0


def test_all_stages_of_the_assistants_preset_end(drives: Path, tmp_path: Path) -> None:
    recipe = small_surround_preset("tiny_surround", drives)
    folder = run_recipe(recipe, RunOptions(out=tmp_path, **OPTIONS))
    assert all((folder / stage.name / "evaluation.json").is_file() for stage in recipe.stages)


def test_a_bevdet_is_trained_as_a_bevdepth_is(drives: Path, tmp_path: Path) -> None:
    """On two frames, with the depth that it is trained on, from the same objects; its boxes are evaluated."""
    recipe = small_surround_preset("tiny_surround", drives)
    baseline, data = recipe.stage("baseline"), recipe.dataset
    assert isinstance(data, SurroundDatasetConfig)
    stage = replace(baseline, detector=small_surround_detector(bevdet.tiny(frames=2)))
    recipe = replace(recipe, dataset=replace(data, past=(1,)), stages=(stage,))
    folder = run_recipe(recipe, RunOptions(out=tmp_path, **OPTIONS)) / stage.name
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert set(first["terms"]) == {"heat", "box", "depth"}
    assert json.loads((folder / "card.json").read_text())["detector"] == "bevdet"
    assert (folder / "evaluation.json").is_file()
    frames = source_of(recipe).training(stage)
    counts = [nuscenes_counts(of.detector, frames) for of in (baseline, stage)]
    assert counts[0] == counts[1] and sum(count.left for count in counts[1]) > 0


def test_the_label_encoder_keeps_the_teachers_neck_and_head(trained: Path) -> None:
    encoder, teacher = (load_weights(trained / name)[0] for name in ("label_encoder", "teacher"))
    shared = [name for name in teacher if name.startswith(("neck.", "head."))]
    assert shared and all(torch.equal(encoder[name], teacher[name]) for name in shared)


def test_a_student_has_the_baselines_parameters(trained: Path) -> None:
    shapes = [{k: v.shape for k, v in load_weights(trained / name)[0].items()} for name in ("baseline", "labeldistill")]
    assert shapes[0] == shapes[1]


def test_a_student_does_the_baselines_work(trained: Path, drives: Path) -> None:
    recipe = small_surround_preset(PRESET, drives)
    work = [work_of(recipe, trained, name) for name in ("baseline", "lidar", "label", "labeldistill")]
    assert work[0] > 0 and len(set(work)) == 1


#: Methods that change the student's network, which its settings say.
ALTERING = {"monotakd"}


@pytest.mark.parametrize("name", SURROUND)
def test_students_of_paper_size_are_the_baselines_network(name: str) -> None:
    recipe = get_recipe(name)
    baselines = [stage.detector for stage in recipe.stages if stage.role == "baseline"]
    for stage in recipe.stages:
        if stage.role != "student":
            continue
        assert stage.method is not None and len(baselines) == 1
        altered = method_name(stage.method) in ALTERING
        assert (stage.detector == baselines[0]) != altered, stage.name


def test_the_submission_scores_as_recorded(trained: Path, drives: Path) -> None:
    recipe = small_surround_preset(PRESET, drives)
    data = source_of(recipe).evaluation(recipe.stage("teacher"), "val")
    predictions = read_submission(trained / "teacher" / "predictions" / "submission.json", data.frame_ids)
    truth = ground_truth(data.tables, data.frame_ids)
    result = evaluate(
        truth.boxes, predictions.seen_from(truth.ego_position), racks=truth.racks, classes=data.classes
    )  # fmt: skip
    recorded = json.loads((trained / "teacher" / "evaluation.json").read_text())
    assert recorded["settings"].pop("cameras") == []  # the teacher looks at the LiDAR alone
    assert json.loads(json.dumps(result.to_json())) == recorded


@pytest.mark.parametrize(
    ("stage", "images", "points", "depth"),
    [("teacher", False, True, False), ("label_encoder", False, False, False), ("baseline", True, False, True),
     ("labeldistill", True, True, True)],
)  # fmt: skip
def test_a_stage_reads_what_its_detectors_look_at(
    stage: str, images: bool, points: bool, depth: bool, drives: Path
) -> None:
    recipe = small_surround_preset(PRESET, drives)
    data = source_of(recipe).training(recipe.stage(stage))
    batch = next(batches(data, [0, 1], 2, 0, 0))
    assert isinstance(batch, SurroundBatch)
    found = batch.images is not None, batch.points is not None, batch.depth is not None
    assert found == (images, points, depth)


def test_a_killed_run_ends_in_the_same_weights(trained: Path, drives: Path, tmp_path: Path) -> None:
    """kill -9 after the first step of the distilled student; the next start runs to the end."""
    name = trained.name
    (tmp_path / name).mkdir()
    for stage in ("teacher", "label_encoder"):
        os.symlink(trained / stage, tmp_path / name / stage)
    script = (
        "from pathlib import Path; from drives import small_surround_preset\n"
        "from distill3d.train.loop import RunOptions; from distill3d.train.stages import run_recipe\n"
        f"run_recipe(small_surround_preset({PRESET!r}, Path({str(drives)!r})), RunOptions(out=Path({str(tmp_path)!r}), "
        "checkpoint_steps=1, log_steps=1, progress=False, tensorboard=False, threads=1, accelerator='cpu'), "
        "('labeldistill',))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
                   "OMP_NUM_THREADS": "1"}  # fmt: skip
    state = tmp_path / name / "labeldistill" / "last.ckpt"
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    while process.poll() is None and not (state.exists() and load_state(state)["step_in_epoch"] >= 1):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    ours, whole = load_weights(tmp_path / name / "labeldistill")[0], load_weights(trained / "labeldistill")[0]
    assert all(torch.equal(ours[key], whole[key]) for key in whole)


def test_a_trained_detector_is_built_from_its_card(trained: Path) -> None:
    for stage in ("teacher", "label_encoder", "baseline"):
        detector, card = load_detector(trained / stage)
        assert detector.name == card["detector"]


def test_the_teachers_rate_is_mmdetections() -> None:
    """From 1e-4 to its tenfold at epoch 8, and down to a ten-thousandth of the first."""
    schedule = get_recipe("centerpoint_voxels").stage("teacher").schedule
    steps = 1000
    rates = [learning_rate(schedule, *divmod(step, steps), steps) for step in (0, 8 * steps, 20 * steps - 1)]
    assert rates == pytest.approx([1e-4, 1e-3, 1e-8], rel=1e-3)


def test_rare_classes_are_seen_more_often(drives: Path) -> None:
    recipe = small_surround_preset(PRESET, drives)
    plain = recipe.stage("teacher")
    data = source_of(recipe).training(replace(plain, class_balanced=True))
    assert len(data) != KEY_FRAMES or data.frame_ids != source_of(recipe).training(plain).frame_ids


@pytest.mark.parametrize(
    ("dataset", "said"),
    [({"root": None}, "needs a data set"), ({"version": "v1.0-none"}, "v1.0-none"),
     ({"eval_split": "nowhere"}, "nowhere"), ({"train_split": "val"}, "evaluation frames")],
)  # fmt: skip
def test_wrong_data_is_refused_with_a_sentence(dataset: dict, said: str, drives: Path, tmp_path: Path) -> None:
    recipe = small_surround_preset(PRESET, drives)
    recipe = replace(recipe, dataset=replace(recipe.dataset, **dataset))
    with pytest.raises(UserError, match=said):
        run_recipe(recipe, RunOptions(out=tmp_path, **OPTIONS), ("teacher",))


@pytest.mark.parametrize("name", SURROUND)
def test_paper_size_recipes_build(name: str) -> None:
    """Detectors of all stages, their teachers' taps on the same cells; on no device, for memory's sake."""
    recipe = get_recipe(name)
    with torch.device("meta"):
        built = {stage.name: build_detector(_untrained(stage.detector)) for stage in recipe.stages}
    assert all(sum(p.numel() for p in detector.parameters()) > 0 for detector in built.values())
    for stage in recipe.stages:
        if stage.detector.input == "rgb" and hasattr(stage.detector, "frames"):
            assert stage.detector.frames == 1 + len(recipe.dataset.past)


#: Recipe -> the student's tap, who teaches, and that one's tap, where maps are compared as they are.
COMPARED = {
    "simdistill": (
        ("bev_camera", "teacher", "bev_camera"),
        ("bev", "teacher", "bev"),
    ),
    "monotakd_bevformer": (("bev", "assistant", "bev_stage1"), ("bev_spatial", "teacher", "bev_1")),
    "cmkd_bevdet": (("bev", "teacher", "bev_low"),),
    "monostl_bevdet": (("bev_neck", "teacher", "bev_neck"), ("bev_stage1", "teacher", "bev_stage1")),
}


@pytest.mark.parametrize("name", COMPARED)
def test_maps_that_are_compared_at_paper_size_are_alike(name: str) -> None:
    """In channels, and cells on the ground."""
    recipe = get_recipe(name)
    with torch.device("meta"):
        student = build_detector(_untrained(recipe.stage("student").detector))
        for tap, by, other in COMPARED[name]:
            teacher = build_detector(_untrained(recipe.stage(by).detector))
            assert student.tap_channels[tap] == teacher.tap_channels[other], tap
            assert _ground(student, tap) == _ground(teacher, other), tap


def _ground(detector, tap: str):
    if hasattr(detector, "geometries"):
        return detector.geometries[tap]
    config = detector.config
    return config.geometry_at(2) if tap == "bev_stage1" else config.geometry


def _untrained(config):
    trunk = getattr(config, "trunk", None)
    return config if trunk is None else replace(config, trunk=replace(trunk, pretrained=False))
