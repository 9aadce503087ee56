"""Frames without labels teach every camera detector: a teacher's boxes in them, and whose loss they enter."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from drives import small_surround_preset
from raw_drives import raw_drives
from streets import small_bev_detector, small_preset
from torch import Tensor

from distill3d.boxes import KITTI_CLASSES, Boxes3D
from distill3d.data.augment.image import AugmentConfig
from distill3d.data.collate import collate
from distill3d.data.kitti.dataset import KittiDataset
from distill3d.data.sample import Batch, Sample
from distill3d.detectors import build_detector, second
from distill3d.distill.methods.cmkd import CMKDConfig
from distill3d.distill.methods.dense_truth import DenseTruthConfig
from distill3d.distill.methods.mixed import MixedConfig
from distill3d.distill.methods.monoskd import MonoSKDConfig
from distill3d.distill.methods.pseudo_labels import PseudoLabelsConfig, unlabelled_rows, with_teachers_objects
from distill3d.distill.methods.trusted import TrustedConfig
from distill3d.errors import UserError
from distill3d.recipes.kitti import BASES, for_base
from distill3d.settings import to_plain
from distill3d.train.checkpoint import save_weights
from distill3d.train.loop import RunOptions, build_step
from distill3d.train.recipe import Recipe, StageConfig
from distill3d.train.sources import kitti_config
from distill3d.train.stages import run_recipe
from distill3d.train.teachers import Teacher
from distill3d.train.unlabelled import TeachersObjects, supervised_losses

#: Untrained teachers are sure of nothing.
UNSURE = 0.001
SMALL = small_bev_detector(second.tiny())
LIDAR = StageConfig("lidar", "teacher", replace(SMALL, head=replace(SMALL.head, score_threshold=0.0)), augment=None)
METHODS = ("monodistill", "monoskd", "monostl")


def frames(streets: Path, count: int, crop: float = 0.0, shift: int = 0) -> list[Sample]:
    """Training frames with all that any network here looks at, augmented."""
    recipe = small_preset("monodle", streets)
    config = kitti_config(recipe, replace(recipe.stage("teacher"), augment=AugmentConfig(crop=crop)), "train", True)
    data = KittiDataset(replace(config, points=True, field_of_view=True, depth="completed"))
    return [data.get(i, torch.Generator().manual_seed(i + shift)) for i in range(count)]


def without_labels(*samples: Sample) -> list[Sample]:
    return [replace(sample, objects=None) for sample in samples]


def file_boxes(streets: Path, frame: str) -> Boxes3D:
    """The true cars of a frame's file, as a teacher that knows everything finds them."""
    recipe = small_preset("monodle", streets)
    data = KittiDataset(kitti_config(recipe, recipe.stage("baseline"), "train", False))
    objects = data.get(data.frame_ids.index(frame)).objects
    assert objects is not None
    boxes = objects.boxes[objects.boxes.label == KITTI_CLASSES.index("Car")]
    return replace(boxes, score=torch.linspace(0.9, 0.6, len(boxes)), box2d=None, alpha=None)


def cars(batch: Batch, row: int) -> dict[str, Tensor]:
    """The cars of an image, from left to right."""
    assert batch.objects is not None
    o = batch.objects
    rows = (o.present[row] & (o.label[row] == KITTI_CLASSES.index("Car"))).nonzero()[:, 0]
    rows = rows[o.centre[row, rows, 0].argsort()]
    return {name: getattr(o, name)[row, rows] for name in ("centre", "size", "yaw", "alpha", "box2d", "difficulty")}


# --------------------------------------------------------------------------------------------------- boxes as objects


@pytest.mark.parametrize("shift", range(4))
def test_what_a_teacher_finds_stands_where_labels_would(streets: Path, shift: int) -> None:
    """Whatever mirror and window the picture was given; only the 2D boxes are not an annotator's, but close."""
    one, two = frames(streets, 2, crop=1.0, shift=10 * shift)
    truth, mixed = collate([one, two]), collate([one, *without_labels(two)])
    found = with_teachers_objects(mixed, [file_boxes(streets, two.frame_id)], 0.5, 0.1, as_labels=True)
    assert found.labelled is None and unlabelled_rows(mixed) == [1] and unlabelled_rows(found) == []
    for name, value in cars(found, 0).items():
        assert torch.equal(value, cars(truth, 0)[name])
    ours, theirs = cars(found, 1), cars(truth, 1)
    assert len(theirs["centre"]) > 0
    for name in ("centre", "size"):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-5)
    for name in ("yaw", "alpha"):
        turn = torch.remainder(ours[name] - theirs[name] + math.pi, 2 * math.pi) - math.pi
        assert turn.abs().max() < 0.02
    assert (ours["box2d"] - theirs["box2d"]).abs().median() < 2


def test_scores_below_the_least_are_no_objects(streets: Path) -> None:
    (sample,) = frames(streets, 1)
    batch, boxes = collate(without_labels(sample)), file_boxes(streets, sample.frame_id)
    assert boxes.score is not None
    for least in (0.0, float(boxes.score[1]), 1.0):
        found = with_teachers_objects(batch, [boxes], least, 0.1, as_labels=False)
        assert found.objects is not None and found.labelled is not None and not found.labelled.any()
        assert int(found.objects.present.sum()) == int((boxes.score >= least).sum())


def test_soft_labels_are_kept_as_often_as_their_score_says(streets: Path) -> None:
    (sample,) = frames(streets, 1)
    batch, boxes = collate(without_labels(sample)), file_boxes(streets, sample.frame_id)[:3]
    boxes = replace(boxes, score=torch.tensor([1.0, 0.5, 0.0]))
    times = torch.zeros(3)
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        found = with_teachers_objects(batch, [boxes], 0.0, 0.1, True, [generator])
        assert found.objects is not None
        near = torch.cdist(boxes.centre.float(), found.objects.centre[0][found.objects.present[0]]) < 1e-3
        times += near.any(1)
    assert times[0] == 200 and times[2] == 0 and 70 < times[1] < 130


# --------------------------------------------------------------------------------------------------------- the losses


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[StageConfig], Teacher]:
    """Untrained teachers."""
    folder = tmp_path_factory.mktemp("teachers")

    def make(stage: StageConfig) -> Teacher:
        torch.manual_seed(0)
        detector = build_detector(stage.detector)
        card = {"detector": detector.name, "config": to_plain(stage.detector), "trained_on": {"frames": []}}
        path = folder / detector.name / stage.detector.input
        save_weights(path, detector.state_dict(), card)
        return Teacher(path)

    return make


def knowing(teacher: Teacher, streets: Path) -> Teacher:
    """A teacher that finds what there is, and knows nothing else."""
    teacher.detect = lambda batch, rows: [file_boxes(streets, batch.frame_ids[row]) for row in rows]
    return teacher


def objects_of(stage: StageConfig, seed: int = 0) -> TeachersObjects:
    found = TeachersObjects.of(stage, 0.1, seed)
    assert found is not None
    return found


def student(streets: Path, base: str, method: str) -> StageConfig:
    """A student that also sees frames without labels."""
    stage = small_preset(base, streets).stage(method)
    return replace(stage, unlabelled=True, method=replace(stage.method, least_score=UNSURE))


def pseudo(streets: Path, base: str, form: str = "hard") -> StageConfig:
    stage = small_preset(base, streets).stage("monoskd")
    method = PseudoLabelsConfig(least_score=UNSURE, form=form)
    return replace(stage, name="pseudo", teachers=("lidar",), unlabelled=True, method=method)


@pytest.mark.parametrize("base", sorted(BASES))
@pytest.mark.parametrize("method", METHODS)
def test_terms_take_the_teachers_objects(
    streets: Path, teachers: Callable[[StageConfig], Teacher], base: str, method: str
) -> None:
    """Of a batch without any label all terms are finite and teach; the own loss, which asks for true labels, is 0."""
    stage = student(streets, base, method)
    if base != "monodetr":
        stage = replace(stage, method=replace(stage.method, response_weight=1.0))
    stage = replace(stage, method=for_base(stage.method, base))
    teacher = {"teacher": knowing(teachers(small_preset(base, streets).stage("teacher")), streets)}
    step = build_step(stage, teacher).train()
    sure = step.student.depth_log_scale
    step.student.depth_log_scale = lambda *given: sure(*given).abs() + 0.1  # MonoSTL leaves alone what it is sure of
    batch = objects_of(stage).into(collate(without_labels(*frames(streets, 2))), teacher, 0)
    assert batch.objects is not None and bool(batch.objects.present.any(1).all())
    targets = step.student.encode(batch)
    losses = step(batch, targets, {"teacher": teacher["teacher"](batch, targets)})
    own = losses.keys() - {term.name for term in step.terms}
    assert own and all(float(losses[name].detach()) == 0 for name in own)
    assert all(bool(loss.isfinite()) for loss in losses.values())
    for term in step.terms:
        assert float(losses[term.name].detach()) > 0, term.name
    sum(losses.values()).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in step.student.parameters())


@pytest.mark.parametrize("base", sorted(BASES))
def test_the_own_loss_asks_labelled_images_alone(
    streets: Path, teachers: Callable[[StageConfig], Teacher], base: str
) -> None:
    stage = student(streets, base, "monoskd")
    teacher = {"teacher": knowing(teachers(small_preset(base, streets).stage("teacher")), streets)}
    torch.manual_seed(0)
    detector = build_detector(stage.detector).eval()  # batch norm would see the other images
    detector.training = True  # the detector itself says all that training asks for

    def losses(batch: Batch) -> dict[str, Tensor]:
        targets = detector.encode(batch)
        return supervised_losses(detector, detector.forward_at(batch, targets), batch, targets)

    one, two, three = frames(streets, 3)
    mixed = objects_of(stage).into(collate([one, *without_labels(two), three]), teacher, 0)
    assert mixed.objects is not None and bool(mixed.objects.present[1].any())
    found, expected = losses(mixed), losses(collate([one, three]))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("base", sorted(BASES))
def test_pseudo_labels_are_labels(streets: Path, teachers: Callable[[StageConfig], Teacher], base: str) -> None:
    stage, lidar = pseudo(streets, base), {"lidar": knowing(teachers(LIDAR), streets)}
    step = build_step(stage, lidar).train()
    assert not len(step.terms)
    batch = objects_of(stage).into(collate(without_labels(*frames(streets, 2))), lidar, 0)
    assert batch.labelled is None and batch.objects is not None
    targets: Any = step.student.encode(batch)
    assert bool(targets.mask_2d.any())
    losses = step(batch, targets, {})
    assert all(bool(loss.isfinite()) for loss in losses.values()) and sum(losses.values()) > 0
    sum(losses.values()).backward()


def test_soft_labels_do_not_depend_on_the_batch(streets: Path, teachers: Callable[[StageConfig], Teacher]) -> None:
    stage, lidar = pseudo(streets, "monodle", "soft"), {"lidar": knowing(teachers(LIDAR), streets)}
    one, two = without_labels(*frames(streets, 2))
    together = objects_of(stage).into(collate([one, two]), lidar, 3)
    alone = objects_of(stage).into(collate([two]), lidar, 3)
    later = [objects_of(stage).into(collate([two]), lidar, epoch) for epoch in range(4, 8)]
    assert together.objects is not None and alone.objects is not None
    count = int(alone.objects.present.sum())
    assert torch.equal(together.objects.centre[1][together.objects.present[1]], alone.objects.centre[0, :count])
    assert any(o.objects is not None and int(o.objects.present.sum()) != count for o in later)


def test_a_teacher_keeps_its_boxes(streets: Path, teachers: Callable[[StageConfig], Teacher]) -> None:
    lidar, batch = teachers(LIDAR), collate(without_labels(*frames(streets, 2, crop=1.0)))
    first = lidar.detect(batch, [0, 1])
    lidar.detector.forward = None  # pyright: ignore[reportAttributeAccessIssue]
    again = lidar.detect(batch, [1])
    assert len(first[1]) > 0 and torch.equal(again[0].centre, first[1].centre)


# ---------------------------------------------------------------------------------------------------------- the recipe


def test_methods_that_look_at_no_label_see_frames_as_they_are() -> None:
    stage = StageConfig("s", "student", LIDAR.detector, teachers=("t",), method=CMKDConfig(), unlabelled=True)
    assert TeachersObjects.of(stage, 1.0, 0) is None
    assert TeachersObjects.of(replace(stage, unlabelled=False, method=MonoSKDConfig()), 1.0, 0) is None


def test_mixtures_follow_their_most_demanding_part(streets: Path) -> None:
    stage = pseudo(streets, "monodle")
    rule = PseudoLabelsConfig(least_score=0.3)
    mixed = objects_of(replace(stage, method=MixedConfig((MonoSKDConfig(least_score=0.3), rule))))
    assert mixed.as_labels and mixed.rule == rule
    painted = objects_of(replace(stage, method=MixedConfig((MonoSKDConfig(), DenseTruthConfig()))))
    assert not painted.as_labels and painted.rule.least_score == 0.5
    with pytest.raises(UserError, match=r"ask for least_score \[0.3, 0.5\]"):
        MixedConfig((MonoSKDConfig(), rule))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"method": TrustedConfig()}, "'pseudo': trusted compares with true labels"),
        ({"unlabelled": False}, "'pseudo': pseudo_labels learns from unlabelled frames: set unlabelled"),
        ({"method": PseudoLabelsConfig(teacher="x")}, "asks for the teacher 'x', its teachers are lidar"),
        ({"teachers": ("a", "b")}, "asks for a single teacher, its teachers are a, b"),
    ],
    ids=["trusted", "labelled alone", "unknown teacher", "two teachers"],
)
def test_stages_that_make_no_sense_are_refused(streets: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        replace(pseudo(streets, "monodle"), **change)


def test_surround_views_have_no_unlabelled_drives(tmp_path: Path) -> None:
    recipe = small_surround_preset("tiny_labeldistill", tmp_path)
    stage = StageConfig("raw", "student", recipe.stages[0].detector, teachers=(recipe.stages[0].name,),
                        method=CMKDConfig(), unlabelled=True)  # fmt: skip
    with pytest.raises(UserError, match="'raw': unlabelled frames are those of KITTI's raw drives"):
        replace(recipe, stages=(*recipe.stages, stage))


def with_drives(recipe: Recipe, streets: Path, folder: Path, *stages: StageConfig) -> Recipe:
    drives = raw_drives(streets, folder)
    return replace(recipe, stages=stages, dataset=replace(recipe.dataset, unlabelled=drives))


@pytest.mark.parametrize("base", sorted(BASES))
def test_every_detector_trains_on_drives(streets: Path, tmp_path: Path, base: str) -> None:
    """A LiDAR detector labels raw drives for a camera detector; one of depth images teaches MonoDLE there."""
    recipe = small_preset(base, streets)
    schedule = recipe.stage("monoskd").schedule
    lidar = replace(LIDAR, schedule=schedule)
    stages = [lidar, pseudo(streets, base, "soft")]
    if base == "monodle":
        stages += [recipe.stage("teacher"), student(streets, base, "monodistill")]
    recipe = with_drives(recipe, streets, tmp_path / "raw", *stages)
    options = RunOptions(out=tmp_path, progress=False, tensorboard=False, threads=1, accelerator="cpu", log_steps=1)
    folder = run_recipe(recipe, options)
    for name in ("pseudo", "monodistill") if base == "monodle" else ("pseudo",):
        card = json.loads((folder / name / "card.json").read_text())
        assert sum(frame.startswith("kitti-raw/") for frame in card["trained_on"]["frames"]) == 4
        lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        assert sum(line["kind"] == "train" for line in lines) == 3
