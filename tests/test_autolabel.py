"""A detector's boxes as labels: every layout is written soundly, whatever interrupts it, and trains like any other."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drives import small_surround_preset, write_drives
from made_up_runs import made_up_run
from raw_drives import raw_drives
from streets import small_bev_detector, small_preset, small_recipe

from distill3d.autolabel import AutolabelConfig, Summary, autolabel
from distill3d.autolabel.kitti import KittiSet
from distill3d.autolabel.nuscenes import SurroundSet, joined_boxes
from distill3d.cli import main
from distill3d.data.kitti.check import check_kitti
from distill3d.data.kitti.labels import read_labels
from distill3d.data.nuscenes.check import check_nuscenes
from distill3d.data.nuscenes.dataset import NuScenesConfig, NuScenesDataset
from distill3d.data.nuscenes.tables import NONE
from distill3d.detectors import second
from distill3d.errors import UserError
from distill3d.evaluate.nuscenes_submission import SubmissionBox
from distill3d.stop import Stopped
from distill3d.train.loop import RunOptions
from distill3d.train.recipe import Recipe, StageConfig
from distill3d.train.stages import run_recipe

VERSION = "v1.0-synth"
TRAIN = tuple(f"{i:06}" for i in range(8))
VAL = tuple(f"{i:06}" for i in range(8, 12))


@pytest.fixture(scope="module")
def recipe(streets: Path) -> Recipe:
    """A LiDAR detector and two camera detectors, all of whose answers count."""
    recipe = small_recipe(streets, epochs=1)
    config = small_bev_detector(second.tiny())
    lidar = StageConfig(
        "lidar", "teacher", replace(config, head=replace(config.head, score_threshold=0.0)), augment=None
    )
    cameras = [
        replace(recipe.stage(name), detector=replace(recipe.stage(name).detector, score_threshold=0.0))
        for name in ("teacher", "baseline")
    ]
    return replace(recipe, stages=(lidar, *cameras))


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drives(tmp_path_factory.mktemp("drives"))


def of_surround(drives: Path) -> Recipe:
    return small_surround_preset("tiny_labeldistill", drives)


def written(folder: Path) -> dict[str, bytes]:
    """Every file of a set that is no link."""
    files = (Path(place) / name for place, _, names in os.walk(folder) for name in names)
    return {str(f.relative_to(folder)): f.read_bytes() for f in files if not f.is_symlink() and "cache" not in str(f)}


def quiet(run: Path, data: Path, out: Path, **settings: Any) -> Summary:
    return autolabel(run, data, AutolabelConfig(out=out, **{"score": 0.0, **settings}), progress=False)


def interrupted(kind: type, after: int, monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> None:
    """A call that is ended after so many frames."""
    write, count = kind.write, 0

    def ending(*given: Any) -> None:
        nonlocal count
        if count == after:
            raise Stopped(2)
        count += 1
        write(*given)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(kind, "write", ending)
        call()


def options(out: Path) -> RunOptions:
    return RunOptions(out=out, progress=False, tensorboard=False, threads=1, accelerator="cpu")


# ----------------------------------------------------------------------------------------------------------- KITTI


@pytest.mark.parametrize("stage", ["lidar", "baseline"])
def test_kittis_frames_are_labelled(recipe: Recipe, streets: Path, tmp_path: Path, stage: str) -> None:
    run = made_up_run(tmp_path, recipe, stage, TRAIN[:2], focal=93.0 if stage == "lidar" else focal_of(streets))
    out = tmp_path / "out"
    summary = quiet(run, streets, out)
    assert check_kitti(out) == []
    assert len(summary.found) > 0 and summary.frames == len(TRAIN)
    for frame in TRAIN:
        plain, scored = ((out / "training" / kind / f"{frame}.txt").read_text() for kind in ("label_2", "result_2"))
        assert [line.rsplit(" ", 1)[0] for line in scored.splitlines()] == plain.splitlines()
        scores = read_labels(out / "training/result_2" / f"{frame}.txt").boxes.score
        assert scores is None or bool((scores.diff() <= 0).all())
    for frame in VAL:
        assert os.readlink(out / "training/label_2" / f"{frame}.txt") == str(streets / f"training/label_2/{frame}.txt")
    assert os.path.samefile(out / "training/image_2", streets / "training/image_2")
    assert (out / "ImageSets/auto.txt").read_text().split() == list(TRAIN)
    assert (out / "ImageSets/val.txt").read_text() == (streets / "ImageSets/val.txt").read_text()
    record = json.loads((out / "autolabels.json").read_text())
    assert record["labeller"]["stage"] == stage and len(record["labeller"]["sha256"]) == 64
    text = summary.text()
    assert "it was trained on 2 of these frames itself" in text and "0-20 m" in text
    assert ("it looks at pictures" in text) == (stage == "baseline")


def focal_of(streets: Path) -> float:
    recipe = small_recipe(streets)
    from distill3d.train.sources import source_of

    return float(source_of(recipe).evaluation(recipe.stage("baseline"), "val").get(0).camera.projection[0, 0])


def test_an_interrupted_call_goes_on(
    recipe: Recipe, streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole, out = made_up_run(tmp_path, recipe, "lidar"), tmp_path / "whole", tmp_path / "out"
    quiet(run, streets, whole)
    for _ in range(2):
        interrupted(KittiSet, 3, monkeypatch, lambda: quiet(run, streets, out))
        assert not (out / "ImageSets/auto.txt").exists()
    (out / "training/label_2" / "000006.txt").write_text("of before the end")  # its scores are not there
    summary = quiet(run, streets, out, workers=1)
    assert written(out) == written(whole)
    again = [path.stat().st_mtime_ns for path in sorted((out / "training/label_2").iterdir())]
    assert quiet(run, streets, out).found == summary.found
    assert [path.stat().st_mtime_ns for path in sorted((out / "training/label_2").iterdir())] == again


def test_a_score_leaves_boxes_out(recipe: Recipe, streets: Path, tmp_path: Path) -> None:
    run = made_up_run(tmp_path, recipe, "lidar")
    scores = sorted(one.score for one in quiet(run, streets, tmp_path / "all", max_frames=2).found)
    least = scores[len(scores) // 2]
    found = quiet(run, streets, tmp_path / "some", max_frames=2, score=least).found
    assert 0 < len(found) < len(scores) and min(one.score for one in found) >= least - 1e-6


def test_it_trains_like_any_other(recipe: Recipe, streets: Path, tmp_path: Path) -> None:
    """Whoever learns from the labels has seen what their writer had."""
    run, out = made_up_run(tmp_path, recipe, "lidar", ("000100",)), tmp_path / "set"
    quiet(run, streets, out)
    learner = replace(
        recipe, name="learner", stages=(recipe.stage("baseline"),), dataset=replace(recipe.dataset, root=out)
    )  # fmt: skip
    card = json.loads((run_recipe(learner, options(tmp_path)) / "baseline/card.json").read_text())
    assert card["labelled_by"]["stage"] == "lidar" and card["labelled_by"]["score"] == 0.0
    assert "synthetic-streets/000100" in card["trained_on"]["frames"] and card["trained_on"]["count"] == len(TRAIN) + 1
    judged = replace(learner, dataset=replace(learner.dataset, eval_split="auto", train_split="val"))
    with pytest.raises(UserError, match="were labelled by stage 'lidar' of 'demo', not by people"):
        run_recipe(judged, options(tmp_path / "judged"))
    of_people = replace(learner, dataset=replace(learner.dataset, train_split="val", eval_split="val"))
    allowed = replace(options(tmp_path / "people"), allow_overlap=True)
    card = json.loads((run_recipe(of_people, allowed) / "baseline/card.json").read_text())
    assert "labelled_by" not in card and card["trained_on"]["count"] == len(VAL)


def test_leaks_through_labels_are_refused(recipe: Recipe, streets: Path, tmp_path: Path) -> None:
    run, out = made_up_run(tmp_path, recipe, "lidar", VAL[:2]), tmp_path / "set"
    quiet(run, streets, out)
    learner = replace(
        recipe, name="learner", stages=(recipe.stage("baseline"),), dataset=replace(recipe.dataset, root=out)
    )  # fmt: skip
    with pytest.raises(UserError, match="stage 'baseline' was trained on 2 of the 4 evaluation frames"):
        run_recipe(learner, options(tmp_path))


# ------------------------------------------------------------------------------------------------------- raw drives


def test_raw_drives_are_labelled_beside_the_object_data(recipe: Recipe, streets: Path, tmp_path: Path) -> None:
    run, out = made_up_run(tmp_path, recipe, "lidar"), tmp_path / "set"
    raw = raw_drives(streets, tmp_path / "raw")
    assert raw.root is not None and raw.frames is not None
    quiet(run, raw.root, out, layout="raw", beside=streets)
    assert check_kitti(out) == []
    names = raw.frames.read_text().split()
    assert (out / "ImageSets/auto.txt").read_text().split() == names
    assert (out / "ImageSets/train_auto.txt").read_text().split() == [*TRAIN, *names]
    mixed = replace(recipe.dataset, root=out, train_split="train_auto", unlabelled=replace(raw, root=None, frames=None))
    learner = replace(recipe, name="learner", stages=(recipe.stage("baseline"),), dataset=mixed)
    card = json.loads((run_recipe(learner, options(tmp_path)) / "baseline/card.json").read_text())
    assert sum(frame.startswith("kitti-raw/") for frame in card["trained_on"]["frames"]) == len(names)
    assert card["labelled_by"]["stage"] == "lidar"


def test_raw_drives_alone(recipe: Recipe, streets: Path, tmp_path: Path) -> None:
    """The same labels as the same frames of the object data get; a list chooses among the frames."""
    run, raw = made_up_run(tmp_path, recipe, "lidar"), raw_drives(streets, tmp_path / "raw")
    assert raw.root is not None and raw.frames is not None
    names = raw.frames.read_text().split()
    (tmp_path / "two.txt").write_text("".join(f"{name}\n" for name in names[2:]))
    out = tmp_path / "drives"
    assert quiet(run, raw.root, out, layout="raw", frames=tmp_path / "two.txt").frames == 2
    quiet(run, streets, tmp_path / "objects")
    label = (out / "training/label_2" / f"{names[2]}.txt").read_text()
    assert label == (tmp_path / "objects/training/label_2/000002.txt").read_text()


# --------------------------------------------------------------------------------------------------------- nuScenes


def moments(root: Path, split: str) -> NuScenesDataset:
    return NuScenesDataset(NuScenesConfig(root=root, version=VERSION, split=split, images=False, in_memory=True))


def test_surround_views_are_labelled(drives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = of_surround(drives)
    run, out, whole = made_up_run(tmp_path, recipe, "teacher"), tmp_path / "out", tmp_path / "whole"
    settings = {"layout": "nuscenes", "version": VERSION, "score": 0.05}
    interrupted(SurroundSet, 2, monkeypatch, lambda: quiet(run, drives, out, **settings))
    summary = quiet(run, drives, out, **settings)
    quiet(run, drives, whole, **settings)
    assert written(out) == written(whole) and len(summary.found) > 0
    assert check_nuscenes(out) == []
    ours, theirs = moments(out, "val"), moments(drives, "val")
    for index in range(len(theirs)):
        a, b = ours.sample_boxes(index), theirs.sample_boxes(index)
        assert torch.equal(a.centre, b.centre) and torch.equal(a.yaw, b.yaw) and len(b)
    labelled = moments(out, "auto")
    assert labelled.frame_ids == moments(drives, "train").frame_ids
    assert sum(len(labelled.sample_boxes(i)) for i in range(len(labelled))) == len(summary.found)
    objects = labelled.get(0).objects
    assert objects is not None and len(objects) == len(labelled.sample_boxes(0))
    learner = replace(recipe, name="learner", stages=(recipe.stage("teacher"),),
                      dataset=replace(recipe.dataset, root=out, train_split="auto"))  # fmt: skip
    card = json.loads((run_recipe(learner, options(tmp_path)) / "teacher/card.json").read_text())
    assert card["labelled_by"]["detector"] == "centerpoint"


def test_tracks_of_people_end_where_labels_begin(drives: Path, tmp_path: Path) -> None:
    """Of the first samples of a scene alone the annotations are replaced."""
    recipe, out = of_surround(drives), tmp_path / "out"
    run = made_up_run(tmp_path, recipe, "teacher")
    quiet(run, drives, out, layout="nuscenes", version=VERSION, max_frames=2)
    assert check_nuscenes(out) == []
    ours, theirs = moments(out, "train"), moments(drives, "train")
    for index in (2, 3):
        assert torch.equal(ours.sample_boxes(index).centre, theirs.sample_boxes(index).centre)
    annotations = ours.tables.annotations
    before = annotations.prev[ours.tables.annotations_of(2)]
    assert len(before) and (before == NONE).all()


def box(name: str, x: float, y: float, speed: tuple[float, float] = (0.0, 0.0)) -> SubmissionBox:
    return SubmissionBox("s", (x, y, 0.0), (2.0, 4.0, 1.5), (1.0, 0.0, 0.0, 0.0), speed, name, 0.5, "")


def test_boxes_are_joined_where_they_were_going() -> None:
    before = [box("car", 0, 0, (10.0, 0.0)), box("car", 6, 0), box("pedestrian", 0, 5)]
    now = [box("car", 5.5, 0), box("car", 6, 0.2), box("pedestrian", 0, 7), box("bus", 5, 0)]
    assert joined_boxes(before, now, 0.5) == [0, 1, None, None]
    assert joined_boxes([], now, 0.5) == [None] * 4 and joined_boxes(before, [], 0.5) == []


def test_each_box_is_joined_once() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        before, now = ([box("car", *generator.uniform(-5, 5, 2)) for _ in range(8)] for _ in range(2))
        joined = [former for former in joined_boxes(before, now, 0.5) if former is not None]
        assert len(joined) == len(set(joined)) > 0


# ------------------------------------------------------------------------------------------------ what is refused


def _no_run(run: Path, out: Path) -> None:
    (run / "model.safetensors").unlink()


def _no_recipe(run: Path, out: Path) -> None:
    (run.parent / "recipe.yaml").unlink()


def _foreign(run: Path, out: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("mine")


def _a_file(run: Path, out: Path) -> None:
    out.write_text("mine")


def _other_record(run: Path, out: Path) -> None:
    out.mkdir()
    (out / "autolabels.json").write_text("[1]")


def _nothing(run: Path, out: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "change", "sentence"),
    [
        (_no_run, {}, "holds no model.safetensors, expected a stage folder"),
        (_no_recipe, {}, "expected the recipe beside the stage"),
        (_foreign, {}, "holds thesis.txt and no autolabels.json, nothing was written"),
        (_a_file, {}, "is a file, expected a folder to write"),
        (_other_record, {}, "the folder was begun with another layout"),
        (_nothing, {"layout": "nuscenes"}, "looks at one camera's frames, expected KITTI's"),
        (_nothing, {"layout": "raw"}, "holds no frame with image and scan"),
        (_nothing, {"split": "absent"}, "absent.txt: no such file"),
        (_nothing, {"score": 1.5}, "score is 1.5, expected a number from 0 to 1"),
        (_nothing, {"device": "abacus"}, "'abacus', which this machine does not have"),
    ],
)
def test_what_does_not_fit_is_refused(
    recipe: Recipe, streets: Path, tmp_path: Path, prepare: Callable[[Path, Path], None], change: dict[str, Any],
    sentence: str,
) -> None:  # fmt: skip
    run, out = made_up_run(tmp_path, recipe, "lidar"), tmp_path / "out"
    prepare(run, out)
    before = written(tmp_path)
    with pytest.raises(UserError, match=sentence):
        quiet(run, streets, out, **change)
    assert written(tmp_path) == before


def test_other_settings_are_refused(recipe: Recipe, streets: Path, tmp_path: Path) -> None:
    run, out = made_up_run(tmp_path, recipe, "lidar"), tmp_path / "out"
    quiet(run, streets, out, max_frames=1)
    with pytest.raises(UserError, match="was begun with another score"):
        quiet(run, streets, out, max_frames=1, score=0.5)
    other = made_up_run(tmp_path / "other", recipe, "baseline", focal=focal_of(streets))
    with pytest.raises(UserError, match="was begun with another labeller"):
        quiet(other, streets, out, max_frames=1)


def test_detectors_that_find_no_boxes_here_are_refused(drives: Path, streets: Path, tmp_path: Path) -> None:
    recipe = of_surround(drives)
    with pytest.raises(UserError, match="looks at labels"):
        quiet(made_up_run(tmp_path, recipe, "label_encoder"), drives, tmp_path / "out", layout="nuscenes")
    with pytest.raises(UserError, match="looks at surround views, expected --layout nuscenes"):
        quiet(made_up_run(tmp_path, recipe, "teacher"), streets, tmp_path / "out")


def test_another_focal_length_is_refused(recipe: Recipe, streets: Path, tmp_path: Path) -> None:
    run = made_up_run(tmp_path, recipe, "baseline", focal=2 * focal_of(streets))
    with pytest.raises(UserError, match="learned depth at a focal length of"):
        quiet(run, streets, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(recipe: Recipe, streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_up_run(tmp_path, recipe, "lidar")
    with pytest.raises(SystemExit) as stop:
        main(["autolabel", str(run), str(streets), "--out", str(tmp_path / "out"), "--score", "0", "--max-frames", "1"])
    assert stop.value.code == 0 and "boxes in 1 frames" in capsys.readouterr().out


def test_the_commands_of_the_documentation(
    recipe: Recipe, streets: Path, drives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = raw_drives(streets, tmp_path / "raw")
    places = {
        "SURROUND_RUN": made_up_run(tmp_path, of_surround(drives), "teacher"), "NUSCENES": drives,
        "RUN": made_up_run(tmp_path, recipe, "lidar"), "KITTI": streets, "RAW": raw.root, "raw_frames.txt": raw.frames,
        "v1.0-trainval": VERSION,
    }  # fmt: skip
    text = (Path(__file__).parents[1] / "docs/drives-without-labels.md").read_text(encoding="utf-8")
    commands = [line.split()[1:] for line in text.splitlines() if line.startswith("    distill3d autolabel ")]
    assert [command[-1] for command in commands] == [f"labelled/{layout}" for layout in ("kitti", "raw", "nuscenes")]
    monkeypatch.chdir(tmp_path)
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main([str(places.get(word, word)) for word in command])
        assert stop.value.code == 0 and (tmp_path / command[-1] / "autolabels.json").exists()


def test_presets_see_a_split_without_its_labels(streets: Path, tmp_path: Path) -> None:
    """The preset that tries pseudo-labels on a laptop reads two splits of one folder."""
    from distill3d.data.sample import JointDataset
    from distill3d.recipes import get_recipe
    from distill3d.train.sources import source_of

    root = tmp_path / "streets"
    (root / "ImageSets").mkdir(parents=True)
    (root / "training").symlink_to(streets / "training")
    for name, frames in {"few": TRAIN[:4], "more": TRAIN[4:], "val": VAL}.items():
        (root / f"ImageSets/{name}.txt").write_text("".join(f"{frame}\n" for frame in frames))
    recipe = get_recipe("tiny_pseudo_labels")
    small = small_preset("monodle", root).dataset
    recipe = replace(recipe, dataset=replace(recipe.dataset, root=root, canvas=small.canvas))
    data = source_of(recipe).training(recipe.stage("hard"))
    assert isinstance(data, JointDataset) and data.frame_ids == list(TRAIN)
    assert [data.get(i).objects is not None for i in (0, 3, 4, 7)] == [True, True, False, False]
    same = replace(recipe.dataset, train_split="more")
    with pytest.raises(UserError, match="give splits without common frames"):
        source_of(replace(recipe, dataset=same)).training(recipe.stage("hard"))
