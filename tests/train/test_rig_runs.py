"""Training, evaluating, exporting and drawing on a rig of three cameras, and which rigs are refused before any work."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from drives import small_surround_detector, small_surround_preset, write_drives
from PIL import Image

from distill3d import export
from distill3d.autolabel import AutolabelConfig, autolabel
from distill3d.boxes import Boxes3D
from distill3d.data.nuscenes.dataset import CAMERAS, NuScenesDataset
from distill3d.detectors import bevdepth, bevformer, build_detector
from distill3d.errors import UserError
from distill3d.evaluate_run import evaluate_stage
from distill3d.train.checkpoint import load_detector
from distill3d.train.loop import RunOptions
from distill3d.train.preflight import _check_networks
from distill3d.train.recipe import Recipe, SurroundDatasetConfig
from distill3d.train.rigs import cameras_of, refuse_other_number, refuse_other_rig
from distill3d.train.sources import source_of
from distill3d.train.stages import run_recipe
from distill3d.view.gallery import Choice
from distill3d.view.palette import TRUE
from distill3d.view.recording import surround_frame
from distill3d.view.runs import read_runs
from distill3d.view.surround_gallery import Drives, Moment, pictured_moment

RIG = ("CAM_BACK", "CAM_FRONT", "CAM_FRONT_LEFT")
OPTIONS: dict[str, Any] = {"progress": False, "tensorboard": False, "threads": 1, "accelerator": "cpu"}


def recipe_of(drives: Path, cameras: tuple[str, ...] = RIG) -> Recipe:
    """The camera student alone."""
    recipe = small_surround_preset("tiny_surround", drives)
    assert isinstance(recipe.dataset, SurroundDatasetConfig)
    baseline = recipe.stage("baseline")
    return replace(recipe, stages=(baseline,), dataset=replace(recipe.dataset, cameras=cameras))


def evaluation_data(recipe: Recipe) -> NuScenesDataset:
    data = source_of(recipe).evaluation(recipe.stages[0], "val")
    assert isinstance(data, NuScenesDataset)
    return data


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drives(tmp_path_factory.mktemp("drives"))


@pytest.fixture(scope="module")
def trained(drives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student's folder."""
    recipe = recipe_of(drives)
    return run_recipe(recipe, RunOptions(out=tmp_path_factory.mktemp("runs"), **OPTIONS)) / recipe.stages[0].name


def test_three_cameras_are_trained_and_evaluated(trained: Path) -> None:
    assert json.loads((trained / "card.json").read_text())["cameras"] == list(RIG)
    assert (trained / "evaluation.json").is_file()


def test_a_run_is_evaluated_on_its_own_rig_or_as_told(
    trained: Path, drives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, cameras in (("own", None), ("named", RIG)):
        evaluate_stage(trained, drives, out=tmp_path / name, device="cpu", cameras=cameras)
    assert "note: " not in capsys.readouterr().err
    evaluate_stage(trained, drives, out=tmp_path / "six", device="cpu", cameras=CAMERAS)
    told = capsys.readouterr().err
    assert f"was trained on {', '.join(RIG)} and is evaluated on {', '.join(CAMERAS)}" in told
    submissions = [(tmp_path / n / "predictions/submission.json").read_text() for n in ("own", "named", "six")]
    assert submissions[0] == submissions[1] != submissions[2]
    told = [json.loads((tmp_path / n / "evaluation.json").read_text())["settings"] for n in ("own", "named", "six")]
    assert [one["cameras"] for one in told] == [list(RIG), list(RIG), list(CAMERAS)]
    with pytest.raises(UserError, match=r"has no camera CAM_ROOF, those there are: CAM_FRONT, "):
        evaluate_stage(trained, drives, out=tmp_path / "none", device="cpu", cameras=("CAM_ROOF",))


def test_labels_are_made_on_its_own_rig_or_as_told(trained: Path, drives: Path, tmp_path: Path) -> None:
    """A folder that was begun on one rig is not gone on with on another."""
    config = AutolabelConfig(tmp_path / "labels", "nuscenes", version="v1.0-synth", max_frames=1, device="cpu")
    assert autolabel(trained, drives, config, progress=False).frames == 1
    assert autolabel(trained, drives, config, progress=False).frames == 1
    with pytest.raises(UserError, match="begun with another cameras"):
        autolabel(trained, drives, replace(config, cameras=("CAM_FRONT",)), progress=False)
    with pytest.raises(UserError, match="has no camera CAM_ROOF, those there are: "):
        other = replace(config, out=tmp_path / "others", cameras=("CAM_ROOF",))
        autolabel(trained, drives, other, progress=False)
    assert not (tmp_path / "others").exists()


def test_another_rig_is_another_training(drives: Path) -> None:
    """Of nuScenes' own rig the fingerprint is what it was before there were others."""
    prints = [
        recipe.stage_fingerprint(recipe.stages[0])
        for recipe in (recipe_of(drives, rig) for rig in (CAMERAS, RIG, RIG[::-1]))
    ]
    assert len(set(prints)) == 3
    assert prints[0] == (plain := small_surround_preset("tiny_surround", drives)).stage_fingerprint(
        plain.stage("baseline")
    )


def test_it_is_exported_for_its_cameras(trained: Path) -> None:
    detector, card = load_detector(trained)
    inputs = export.example_inputs(detector, card, 0)
    assert inputs["images"].shape[2] == inputs["intrinsics"].shape[2] == inputs["image_affine"].shape[1] == 3
    with torch.no_grad():
        outputs = export.Deployed(detector, tuple(inputs))(*inputs.values())
    facts = export.described(detector, card, inputs, outputs)
    assert json.loads(facts["cameras"]) == list(RIG) and facts["input.images"].endswith(f"of {', '.join(RIG)}")
    named = export.example_inputs(detector, card | {"cameras": ["LEFT", "RIGHT"]}, 0)
    ahead = named["camera_to_ego"][0, 0, :, :2, 2]
    assert ahead[0] @ ahead[1] == pytest.approx(-1, abs=0.01)  # cameras of unknown places look all around


def test_pages_and_recordings_name_the_cameras(trained: Path, drives: Path) -> None:
    sample = evaluation_data(recipe_of(drives)).get(0)
    assert sample.objects is not None
    boxes: dict[str, Boxes3D] = {TRUE: sample.objects.boxes}
    moment = Moment("a sample", "first", sample, boxes, {TRUE: {}})
    assert list(pictured_moment(moment, {}).cameras) == ["back", "front", "front left"]
    assert tuple(surround_frame(moment, ("car",), (), {}).views) == RIG


def test_a_lidars_own_frame_is_turned_on_pages(
    trained: Path, drives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From above forward is up, and what lies to the left is told so."""
    shown: dict[str, dict[str, Boxes3D]] = {}
    told: dict[str, str] = {}
    for frame in ("lidar", "lidar_sensor"):
        run = tmp_path / frame / trained.name
        shutil.copytree(trained, run)
        recipe = yaml.safe_load((trained.parent / "recipe.yaml").read_text())
        recipe["dataset"]["ego_frame"] = frame
        (run.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        (stage,) = read_runs([run])
        one = Drives({"baseline": stage}, ("car",)).moment(Choice(0, "first"))
        monkeypatch.setattr(
            "distill3d.view.surround_gallery.ground_view",
            lambda _, sets, *more, frame=frame: shown.update({frame: sets}) or Image.new("RGB", (8, 8)),
        )
        pictured_moment(one, {})
        told[frame] = one.ego_frame
    assert told == {"lidar": "lidar", "lidar_sensor": "lidar_sensor"}
    vehicle, sensor = (shown[frame][TRUE].centre.double() for frame in told)
    assert len(vehicle) and (vehicle[:, :2] - sensor[:, :2]).norm(dim=1).max() < 2.5  # m that the LiDAR sits ahead


# ------------------------------------------------------------------------------------------------------------- refused


def test_codes_must_be_as_many_as_cameras(drives: Path) -> None:
    recipe = recipe_of(drives)
    config = small_surround_detector(bevformer.tiny())
    stage = replace(recipe.stages[0], detector=config)
    with pytest.raises(UserError, match="codes for 6 cameras, the data set has 3 .*baseline.detector.cameras 3, or 0"):
        _check_networks(replace(recipe, stages=(stage,)), [stage])
    for cameras in (0, 3):
        refuse_other_number("baseline", replace(config, cameras=cameras), RIG)
    refuse_other_number("baseline", recipe.stages[0].detector, RIG)


def test_which_other_rigs_a_finished_detector_sees() -> None:
    """Those that tell cameras apart by calibration see any, others their own in one order; old cards mean the six."""
    card = {"cameras": list(RIG)}
    assert (cameras_of(card), cameras_of({})) == (RIG, CAMERAS)
    for config in (bevdepth.tiny(), bevformer.tiny(cameras=0)):
        for cameras in (RIG, RIG[::-1], CAMERAS, RIG[:1]):
            refuse_other_rig("run", config, card, cameras)
    coded = bevformer.tiny(cameras=3)
    refuse_other_rig("run", coded, card, RIG)
    refuse_other_rig("run", bevformer.tiny(), {}, CAMERAS)
    for cameras in (RIG[::-1], RIG[:1], CAMERAS):
        with pytest.raises(
            UserError, match="run: its bevformer has a code for each of the cameras CAM_BACK, CAM_FRONT"
        ):
            refuse_other_rig("run", coded, card, cameras)


def test_a_teacher_with_codes_for_another_rig_is_refused(
    drives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is trained, and as a run that is evaluated."""
    coded = build_detector(small_surround_detector(bevformer.tiny(cameras=3)))
    card = {"cameras": list(RIG[::-1]), "trained_on": {"frames": []}, "version": "v1.0-synth"}
    for module in ("distill3d.train.stages", "distill3d.evaluate_run"):
        monkeypatch.setattr(f"{module}.load_detector", lambda *_: (coded, card))
    recipe = recipe_of(drives)
    stage = replace(recipe.stages[0], taken_from=tmp_path)
    sentence = f"has a code for each of the cameras {', '.join(RIG[::-1])} in this order, and cannot be shown CAM_BACK"
    monkeypatch.setattr("distill3d.train.stages._at_hand", lambda *_: tmp_path)
    with pytest.raises(UserError, match=sentence):
        run_recipe(replace(recipe, stages=(stage,)), RunOptions(out=tmp_path / "runs", **OPTIONS))
    monkeypatch.setattr("distill3d.evaluate_run.data_of", lambda *_: recipe.dataset)
    with pytest.raises(UserError, match=sentence):
        evaluate_stage(tmp_path, drives, out=tmp_path / "out", cameras=RIG)
