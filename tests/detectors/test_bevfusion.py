"""BEVFusion: what each sensor adds to the fused map, one encoder alone, scans and pictures as they may come, and a
camera student that it teaches."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drives import assert_learns, small_surround_detector, small_surround_preset, write_drives
from golden import golden_files, stem
from test_bevdepth import CANVAS, REACH, one_of, scene, small_head
from test_bevdepth import small as small_bevdepth
from test_centerpoint import damaged, street
from torch import Tensor

from distill3d.autolabel import AutolabelConfig, autolabel
from distill3d.data.nuscenes.dataset import NuScenesDataset
from distill3d.data.surround import SurroundBatch
from distill3d.detectors import bevdepth, build_detector
from distill3d.detectors.base import BevGeometry
from distill3d.detectors.bevdepth import BEVDepth
from distill3d.detectors.bevfusion import BEVFusion, BEVFusionConfig, published_ground, tiny
from distill3d.detectors.centerpoint import TINY_VOXELS, CenterPoint, PillarEncoderConfig
from distill3d.detectors.centerpoint import tiny as tiny_centerpoint
from distill3d.distill.methods.cmkd import SURROUND_RESPONSE, CMKDConfig
from distill3d.distill.methods.labeldistill import LabelDistillConfig
from distill3d.errors import UserError
from distill3d.layers.ground.bev_blocks import conv_fuser
from distill3d.layers.ground.bev_second import SECONDBlocksConfig
from distill3d.layers.ground.camera_lift import LiftConfig
from distill3d.layers.image.resnet import ResNetConfig
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.settings import from_plain, to_plain
from distill3d.stop import Stopped
from distill3d.train.checkpoint import load_matching, load_weights
from distill3d.train.learnable import nuscenes_counts
from distill3d.train.loop import RunOptions, _Run
from distill3d.train.preflight import _refuse_without_weights
from distill3d.train.recipe import Recipe, StageConfig, SurroundDatasetConfig
from distill3d.train.sources import source_of, surround_settings
from distill3d.train.stages import run_recipe

#: How far recorded single precision may be off, by the index of its set.
RTOL, ATOL = 2e-4, 1e-5
#: The ground in front of these tests: 48 x 48 cells.
EXTENT = (-REACH, -REACH, REACH, REACH)
PILLARS = PillarEncoderConfig(
    VoxelGrid((-REACH, -REACH, -5.0, REACH, REACH, 3.0), (0.4, 0.4, 8.0)), max_points=16, features=32, channels=(48,)
)
VOXELS = replace(TINY_VOXELS, grid=replace(TINY_VOXELS.grid, extent=PILLARS.grid.extent))


def small(**changed: Any) -> BEVFusionConfig:
    """``tiny`` on a ground half as long and wide."""
    return tiny(**{"head": small_head(), "grid": small_bevdepth().grid, "pillars": PILLARS, **changed})


CONFIGS = {
    "both": small(),
    "voxels": small(pillars=None, voxels=VOXELS),
    "camera": small(input="rgb"),
    "lidar": small(input="points"),
    "camera, convolved": small(input="rgb", fuse_alone=True, fused_channels=10),
    "lidar, convolved": small(input="points", fuse_alone=True, fused_channels=10),
    "frozen stem": small(frozen_stem=True, intensity="unit", depth_weight=0.0),
}


def moment(*counts: int, frames: int = 1, points: int = 1500) -> SurroundBatch:
    """Noise as pictures and points around the vehicle, and that many objects in each sample."""
    scans = [street(points, i) * torch.tensor([0.45, 0.45, 1, 1, 1]) for i in range(len(counts))]
    return replace(scene(*counts, frames=frames), points=scans)


def build(config: BEVFusionConfig, seed: int = 0) -> BEVFusion:
    torch.manual_seed(seed)
    return BEVFusion(config)


def maps_of(model: BEVFusion, batch: SurroundBatch) -> dict[str, Tensor]:
    with torch.no_grad():
        return {tap: feature.tensor for tap, feature in model.eval()(batch).features.items()}


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("name", "counts", "bf16"),
    [*((name, (0, 3), False) for name in CONFIGS), ("both", (0,), False), ("both", (2,), True),
     ("camera", (0,), True), ("lidar", (0,), True), ("both", (200,), False)],
)  # fmt: skip
def test_losses_are_finite_and_trainable(name: str, counts: tuple[int, ...], bf16: bool) -> None:
    config = CONFIGS[name]
    batch, model = moment(*counts), build(config).train()
    stem = ("camera.img_backbone.body.conv1.", "camera.img_backbone.body.bn1.") if config.frozen_stem else ("-",)
    expected = {"heat", "box"} | ({"depth"} if config.sees_images and config.depth_weight else set())
    assert_learns(model, batch, bf16, expected, stem)


def test_both_branches_learn_from_the_boxes() -> None:
    batch, model = moment(4), build(small(depth_weight=0.0)).train()
    losses = model.loss(model(batch), batch)
    assert set(losses) == {"heat", "box"}
    sum(losses.values()).backward()
    first = (model.camera.img_backbone.body.conv1.weight, next(model.encoder.parameters()), model.fuser[0].weight)
    assert all(weight.grad.any() for weight in first)


def test_depth_is_learnt_where_there_are_pictures_and_it_has_a_weight() -> None:
    assert BEVFusion.also_trained_on(small()) == BEVFusion.also_trained_on(CONFIGS["camera"]) == {"depth"}
    assert BEVFusion.also_trained_on(small(depth_weight=0.0)) == BEVFusion.also_trained_on(CONFIGS["lidar"]) == set()
    batch, model = moment(1), build(small())
    outputs = model(batch)
    losses = model.loss(outputs, batch)
    model.config = replace(model.config, depth_weight=6.0)
    torch.testing.assert_close(model.loss(outputs, batch)["depth"], 2 * losses["depth"])
    assert set(model.loss(outputs, replace(batch, depth=None))) == {"heat", "box"}


SCANS = {"no point": torch.zeros(0, 5), "all outside": street(200) + 500, "NaN and infinite": damaged(600)}


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("input", ["rgb+points", "points"])
def test_any_scan_trains_and_leaves_others_as_they_are(input: Any, name: str) -> None:
    batch, model = moment(2, 1), build(small(input=input)).train()
    assert batch.points is not None
    odd = replace(batch, points=[batch.points[0], SCANS[name]])
    losses = model.loss(model(odd), odd)
    sum(losses.values()).backward()
    assert all(v.isfinite() for v in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    plain, changed = maps_of(model, batch)["bev_neck"], maps_of(model, odd)["bev_neck"]
    torch.testing.assert_close(plain[0], changed[0], rtol=1e-4, atol=1e-5)
    assert not torch.equal(plain[1], changed[1])


@pytest.mark.parametrize("name", ["both", "voxels", "camera", "lidar"])
def test_two_moments_are_seen_as_each_alone(name: str) -> None:
    batch, model = moment(2, 3), build(CONFIGS[name]).eval()
    assert batch.points is not None
    with torch.no_grad():
        together = model(batch)
        for i in range(2):
            alone = model(replace(one_of(batch, i), points=batch.points[i : i + 1]))
            for prediction in ("heatmap", "box"):
                of_both = together.predictions[prediction][i : i + 1]
                torch.testing.assert_close(of_both, alone.predictions[prediction], rtol=1e-3, atol=1e-3)


# -------------------------------------------------------------------------------------------------- what it is built of


def test_taps_lie_where_those_of_camera_and_lidar_detectors_lie() -> None:
    model = build(small())
    outputs = model(moment(1, 2))
    assert list(outputs.features) == ["bev_camera", "bev_lidar", "bev", "bev_stage1", "bev_stage2", "bev_neck"]
    for tap, feature in outputs.features.items():
        cell = 1.6 if tap == "bev_stage2" else 0.8
        assert feature.geometry == BevGeometry(EXTENT, cell, "ego", ("y", "x"))
        assert feature.tensor.shape[-2:] == (round(2 * REACH / cell),) * 2
    assert outputs.predictions["depth"].shape == (12, 56, CANVAS[1] // 16, CANVAS[0] // 16)
    assert model.geometries["bev"] == small_bevdepth().geometry
    lidar = CenterPoint(tiny_centerpoint(head=small_head(), pillars=PILLARS)).geometries
    assert [model.geometries[f"bev_stage{i}"] for i in (1, 2)] == [lidar[f"bev_{i}"] for i in (0, 1)]


def test_the_fused_map_is_the_convolution_of_both() -> None:
    model = build(small())
    maps = maps_of(model, moment(1))
    conv, norm, _ = model.fuser
    both = torch.cat((maps["bev_camera"], maps["bev_lidar"]), dim=1)
    fused = F.conv2d(both, conv.weight, padding=1)
    fused = F.batch_norm(fused, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps).relu()
    torch.testing.assert_close(maps["bev"], fused)
    assert conv.bias is None and maps["bev"].any()


def recorded(path: Path) -> dict[str, Tensor]:
    with np.load(path) as data:
        return {name: torch.from_numpy(value) for name, value in data.items()}


FUSERS = [path for path in golden_files("simdistill") if "param.fuser.0.weight" in recorded(path)]


@pytest.mark.golden
@pytest.mark.parametrize("path", FUSERS, ids=[f"fusers of {stem(path)}" for path in FUSERS])
def test_recorded_fusion(path: Path) -> None:
    """SimDistill's fusions of student and teacher, both in training mode, and the gradients of how far their maps are
    apart.  Of the student's branches the one that stands for the LiDAR's is in front."""
    g = recorded(path)
    inputs = {
        "fuser": torch.cat((g["in.teacher_camera"], g["in.teacher_lidar"]), dim=1),
        "fuser_student": torch.cat((g["in.student_lidar_branch"], g["in.student_camera_branch"]), dim=1),
    }
    fusers, maps = {}, {}
    for name, both in inputs.items():
        fusers[name] = fuser = conv_fuser(both.shape[1], len(g[f"param.{name}.0.weight"])).train()
        weights = {key: g[f"param.{name}.{key}"] for key, _ in fuser.named_parameters()}
        fuser.load_state_dict(weights, strict=False)  # running statistics are not recorded, nor looked at
        maps[name] = fuser(both)
    loss = (maps["fuser_student"] - maps["fuser"]).square().mean()
    torch.testing.assert_close(loss, g["out.fusionfeaturel2loss"], rtol=RTOL, atol=ATOL)
    loss.backward()
    for name, fuser in fusers.items():
        for key, parameter in fuser.named_parameters():
            torch.testing.assert_close(parameter.grad, g[f"grad.{name}.{key}"], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("other", ["bev_camera", "bev_lidar"])
def test_each_sensor_changes_its_own_map_and_the_fused_one(other: str) -> None:
    """And without its share of the convolution a sensor changes nothing that is fused."""
    batch, model = moment(1), build(small())
    changed = replace(batch, images=1 - batch.images) if other == "bev_camera" else replace(batch, points=[street(300)])
    before, after = maps_of(model, batch), maps_of(model, changed)
    assert {tap for tap in before if torch.equal(before[tap], after[tap])} == {"bev_camera", "bev_lidar"} - {other}
    first = model.config.context_channels
    with torch.no_grad():
        model.fuser[0].weight[:, slice(0, first) if other == "bev_camera" else slice(first, None)] = 0
    before, after = maps_of(model, batch), maps_of(model, changed)
    assert {tap for tap in before if not torch.equal(before[tap], after[tap])} == {other}


def test_with_points_alone_it_is_a_centerpoint() -> None:
    batch, model = moment(1, 2), build(CONFIGS["lidar"]).eval()
    other = CenterPoint(tiny_centerpoint(head=small_head(), pillars=PILLARS)).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        ours, theirs = model(replace(batch, images=None, depth=None)), other(batch)
    assert ours.predictions.keys() == theirs.predictions.keys()
    assert all(torch.equal(ours.predictions[name], theirs.predictions[name]) for name in theirs.predictions)
    taps = {"bev_lidar": "bev_low", "bev": "bev_low", "bev_stage1": "bev_0", "bev_stage2": "bev_1"}
    assert ours.features.keys() == {*taps, "bev_neck"}
    for tap, name in taps.items():
        assert torch.equal(ours.features[tap].tensor, theirs.features[name].tensor)
        assert ours.features[tap].geometry == theirs.features[name].geometry


def test_with_pictures_alone_it_lifts_as_bevdepth() -> None:
    batch, model = moment(1, 2), build(CONFIGS["camera"]).eval()
    other = BEVDepth(small_bevdepth()).eval()
    other.backbone.load_state_dict(model.camera.state_dict())
    with torch.no_grad():
        ours, theirs = model(replace(batch, points=None)), other(batch)
    assert "bev_lidar" not in ours.features and not any(name.startswith("encoder") for name in model.state_dict())
    assert torch.equal(ours.predictions["depth"], theirs.predictions["depth"])
    for tap in ("bev_camera", "bev"):
        assert torch.equal(ours.features[tap].tensor, theirs.features["bev"].tensor)
        assert ours.features[tap].geometry == theirs.features["bev"].geometry


def test_one_encoder_may_come_to_the_width_of_both() -> None:
    for name in ("camera, convolved", "lidar, convolved"):
        model = build(CONFIGS[name])
        assert model.tap_channels["bev"] == 10 == small(fused_channels=10).fused_channels
        own, fused = (maps_of(model, moment(1))[tap] for tap in (f"bev_{name.partition(',')[0]}", "bev"))
        torch.testing.assert_close(fused, model.fuser(own))


def test_it_begins_with_the_weights_of_other_detectors() -> None:
    """A CenterPoint's all fit, and those of the same detector with one encoder, but for the convolution."""
    lidar = CenterPoint(tiny_centerpoint(head=small_head(), pillars=PILLARS))
    taken = load_matching(build(small()), lidar.state_dict())
    assert taken == {"taken": len(lidar.state_dict()), "left": []}
    camera = build(small(input="rgb", fuse_alone=True, fused_channels=48))
    left = load_matching(build(small()), camera.state_dict())["left"]
    assert left == ["fuser.0.weight"]


def test_earlier_frames_are_not_looked_at() -> None:
    batch, model = moment(1, frames=3), build(small())
    assert batch.images is not None
    one = replace(
        batch, images=batch.images[:, :1], intrinsics=batch.intrinsics[:, :1], camera_to_ego=batch.camera_to_ego[:, :1]
    )  # fmt: skip
    maps, others = maps_of(model, batch), maps_of(model, one)
    assert all(torch.equal(maps[tap], others[tap]) for tap in maps)


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("name", "lacking", "message"),
    [("both", "images", "with input 'rgb.points' looks at images: the data set gives none"),
     ("both", "points", "with input 'rgb.points' looks at points: the data set gives none"),
     ("camera", "images", "looks at images"), ("lidar", "points", "looks at points")],
)  # fmt: skip
def test_what_a_batch_lacks_is_one_sentence(name: str, lacking: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(CONFIGS[name])(replace(moment(1), **{lacking: None}))


def test_odd_canvases_are_refused() -> None:
    batch = moment(1)
    assert batch.images is not None
    with pytest.raises(UserError, match="bevfusion sees images whose sides are multiples of 16 px, not 90 x 48 px"):
        build(small())(replace(batch, images=batch.images[..., :90], depth=None))


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"grid": tiny().grid}, "fused cell by cell, but bev_camera has cells of 0.8 m over"),
     ({"grid": replace(small().grid, cell=(0.4, 0.4, 8.0))}, "bev_camera has cells of 0.4 m"),
     ({"head": small_head(cell=1.6)}, "cells of 1.6 m"), ({"classes": ("car",)}, "the data set only car"),
     ({"pillars": None}, "BEVFusion looks at voxels or at pillars"), ({"voxels": VOXELS}, "exactly one"),
     ({"trunk": ResNetConfig()}, "set trunk.finest to 4"),
     ({"backbone": SECONDBlocksConfig((1, 1), (8, 8), (1, 64))}, "multiple of the backbone's stride")],
)  # fmt: skip
def test_settings_that_do_not_go_together(changed: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_detector(small(**changed))


@pytest.mark.parametrize("config", [BEVFusionConfig(), published_ground(), *CONFIGS.values()])
def test_settings_survive_as_plain_data(config: BEVFusionConfig) -> None:
    assert from_plain(BEVFusionConfig, json.loads(json.dumps(to_plain(config))), "card") == config


def test_published_sizes() -> None:
    with torch.device("meta"):
        models = [BEVFusion(config) for config in (BEVFusionConfig(), published_ground())]
        alone = [BEVFusion(published_ground(input=input)) for input in ("rgb", "points")]
    widths = {"bev_lidar": 256, "bev": 256, "bev_stage1": 128, "bev_stage2": 256, "bev_neck": 512}
    assert [m.tap_channels for m in models] == [{"bev_camera": 80, **widths}, {"bev_camera": 256, **widths}]
    assert [m.geometries["bev"].cell for m in models] == [0.8, 0.6]
    assert models[1].config.head.cells == (180, 180)
    shared = [{name: m.tap_channels[name] for name in ("bev", "bev_neck")} for m in (*models, *alone)]
    assert shared == [{"bev": 256, "bev_neck": 512}] * 4  # students and teachers of UniDistill agree in width


def test_tiny_is_small_and_sees_what_the_others_see() -> None:
    assert sum(p.numel() for p in build(tiny()).parameters()) < 1.2e6
    lift, camera = tiny(), bevdepth.tiny()
    assert all(getattr(lift, name) == getattr(camera, name) for name in LiftConfig.__dataclass_fields__)


# ----------------------------------------------------------------------------------------------------------- as teacher


OPTIONS: dict[str, Any] = {"progress": False, "tensorboard": False, "threads": 1, "accelerator": "cpu", "log_steps": 1}
#: What the students' stages, in this order, are taught by.
METHODS = {
    "cmkd": CMKDConfig(feature_weight=1.0, **SURROUND_RESPONSE),
    "labeldistill": LabelDistillConfig(
        teacher="fusion", teacher_taps=("bev", "bev_stage2"), label_weight=0.0, partition="none", response="qfl"
    ),
}


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drives(tmp_path_factory.mktemp("drives"))


def recipe_of(root: Path) -> Recipe:
    """BEVFusion, and a student for each of the methods, which imitates its fused map."""
    preset = small_surround_preset("tiny_labeldistill", root)
    baseline = preset.stage("baseline")
    fusion = replace(baseline, name="fusion", role="teacher", detector=small_surround_detector(tiny()))
    taught = replace(baseline.detector, bev_channels=8)
    students = (
        replace(baseline, name=name, role="student", detector=taught, teachers=("fusion",), method=method)
        for name, method in METHODS.items()
    )
    return replace(preset, stages=(fusion, *students))


@pytest.fixture(scope="module")
def trained(drives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    return run_recipe(recipe_of(drives), RunOptions(out=out, **OPTIONS))


def test_it_teaches_camera_students(trained: Path) -> None:
    for name in ("fusion", *METHODS):
        assert (trained / name / "evaluation.json").is_file()
    card = json.loads((trained / "fusion" / "card.json").read_text())
    assert (card["detector"], card["input"]) == ("bevfusion", "rgb+points")
    meta = json.loads((trained / "fusion" / "predictions" / "submission.json").read_text())["meta"]
    assert meta["use_camera"] and meta["use_lidar"]
    for name, term in (("cmkd", "bev"), ("labeldistill", "lidar")):
        line = json.loads((trained / name / "metrics.jsonl").read_text().splitlines()[0])
        assert line["terms"][term] > 0
        of_student = json.loads((trained / name / "predictions" / "submission.json").read_text())["meta"]
        assert of_student["use_camera"] and not of_student["use_lidar"]


@pytest.mark.parametrize("stage", ["fusion", "cmkd"])
def test_a_stopped_run_ends_in_the_same_weights(
    stage: str, trained: Path, drives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM at the first step; the next start goes on with the second."""
    recipe, options = recipe_of(drives), RunOptions(out=tmp_path, **OPTIONS)
    (tmp_path / trained.name).mkdir()
    if stage != "fusion":
        os.symlink(trained / "fusion", tmp_path / trained.name / "fusion")
    original, taken = _Run.train_step, []

    def interrupted(self: _Run, batch: object) -> None:
        taken.append(1)
        if len(taken) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, batch)

    monkeypatch.setattr(_Run, "train_step", interrupted)
    with pytest.raises(Stopped):
        run_recipe(recipe, options, (stage,))
    run_recipe(recipe, options, (stage,))
    assert len(taken) == 2, "a step was taken twice"
    ours, whole = (load_weights(folder / stage)[0] for folder in (tmp_path / trained.name, trained))
    assert all(torch.equal(ours[key], whole[key]) for key in whole)


@pytest.mark.parametrize(("stage", "camera_alone"), [("fusion", False), ("cmkd", True)])
def test_it_labels_drives_and_says_what_it_looked_at(
    stage: str, camera_alone: bool, trained: Path, drives: Path, tmp_path: Path
) -> None:
    config = AutolabelConfig(tmp_path / "labels", "nuscenes", version="v1.0-synth", max_frames=1, device="cpu")
    done = autolabel(trained / stage, drives, config, progress=False)
    assert done.frames == 1
    assert any("no more than a camera does" in remark for remark in done.remarks) == camera_alone


def test_weights_of_the_trunk_are_asked_for_where_there_is_one() -> None:
    trunk = ResNetConfig(pretrained=True, weights=Path("nowhere.pth"), finest=4)
    _refuse_without_weights(StageConfig("lidar", "teacher", BEVFusionConfig(input="points", trunk=trunk)))
    for sees in ("rgb", "rgb+points"):
        with pytest.raises(UserError, match="starts from weights learned on other pictures"):
            _refuse_without_weights(StageConfig("fusion", "teacher", BEVFusionConfig(input=sees, trunk=trunk)))


@pytest.mark.parametrize("folder", ["samples/CAM_FRONT", "samples/LIDAR_TOP"])
def test_a_file_that_is_not_there_is_one_sentence(folder: str, tmp_path: Path) -> None:
    root = write_drives(tmp_path / "drives")
    lost = min((root / folder).iterdir())
    lost.unlink()
    with pytest.raises(UserError, match=f"{lost.name}: no such file"):
        run_recipe(recipe_of(root), RunOptions(out=tmp_path / "runs", **OPTIONS), ("fusion",))
    assert not list((tmp_path / "runs").glob("**/*.safetensors"))


#: Whether pictures, points and depth are read, in training and in evaluation.
READ = {"fusion": ((True, True, True), (True, True, False)), "cmkd": ((True, True, True), (True, False, False))}


@pytest.mark.parametrize("stage", READ)
def test_pictures_and_scans_are_read_for_it(stage: str, drives: Path) -> None:
    recipe = recipe_of(drives)
    source, own = source_of(recipe), recipe.stage(stage)
    for data, expected in zip((source.labelled(own), source.evaluation(own, "val")), READ[stage], strict=True):
        assert isinstance(data, NuScenesDataset)
        assert (data.config.images, data.config.points, data.config.depth) == expected


def test_inputs_are_read_together(drives: Path) -> None:
    recipe = recipe_of(drives)
    assert isinstance(recipe.dataset, SurroundDatasetConfig)
    asked = surround_settings(recipe.dataset, {"rgb+points"})
    assert asked["images"] and asked["points"] and not asked["depth"]


def test_its_objects_are_counted_before_it_is_trained(drives: Path) -> None:
    recipe = recipe_of(drives)
    stage: StageConfig = recipe.stage("fusion")
    data = source_of(recipe).labelled(stage)
    assert isinstance(data, NuScenesDataset)
    counts = nuscenes_counts(stage.detector, data)
    assert counts and counts == nuscenes_counts(recipe.stage("cmkd").detector, data)
    assert sum(count.left for count in counts) > 0
