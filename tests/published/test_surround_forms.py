"""CenterPoint's, BEVDepth's and LabelDistill's names there and back, and what their files tell beside the weights."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill3d.camera import DepthBins
from distill3d.detectors import bevdepth, build_detector, caddn, centerpoint, label_encoder
from distill3d.detectors.bevdepth import FRUSTUM_BUFFER, GRID_BUFFERS, STRIDE, BEVDepthConfig
from distill3d.detectors.centerpoint import TINY_VOXELS, CenterPointConfig
from distill3d.detectors.label_encoder import LabelEncoderConfig
from distill3d.detectors.released import TO_SPCONV_1, ReleasedForm, from_released, to_released
from distill3d.errors import UserError
from distill3d.layers.ground.voxel_pooling import frustum
from distill3d.published.importing import import_checkpoint
from distill3d.published.systems import SYSTEMS
from distill3d.train.checkpoint import load_detector

POINTS = centerpoint.tiny(pillars=None, voxels=TINY_VOXELS)
CAMERAS = bevdepth.tiny(frames=3, depth_aggregation=True)
FORMS: dict[str, tuple[Any, Callable[[Any], ReleasedForm]]] = {
    "centerpoint": (POINTS, centerpoint.released_form),
    "centerpoint_det3d": (POINTS, centerpoint.det3d_form),
    "bevdepth": (bevdepth.tiny(frames=3), bevdepth.released_form),
    "bevdepth_da": (CAMERAS, bevdepth.released_form),
    "labeldistill": (CAMERAS, bevdepth.labeldistill_form),
    "label_encoder": (label_encoder.tiny(), label_encoder.released_form),
}


def weights_of(config: Any) -> dict[str, Tensor]:
    """A network's weights, of which none is at the value where all networks begin."""
    torch.manual_seed(0)
    state = build_detector(config).state_dict()
    return {name: v + torch.rand_like(v) if v.is_floating_point() else v + 7 for name, v in state.items()}


@pytest.mark.parametrize("name", FORMS)
def test_there_and_back(name: str) -> None:
    config, form = FORMS[name]
    own = weights_of(config)
    theirs = to_released(own, form(config), config)
    taken = from_released(theirs, form(config), own, config)
    assert taken.config == config and not taken.dropped
    assert list(taken.weights) == list(own) and all(torch.equal(taken.weights[key], own[key]) for key in own)


def test_biases_move_into_the_norms_behind_them() -> None:
    """What the authors' convolution and norm give, ours gives without the bias."""
    form, own = centerpoint.det3d_form(POINTS), weights_of(POINTS)
    theirs = to_released(own, form, POINTS)
    bias, mean = "bbox_head.tasks.0.hm.0.bias", "head.tasks.0.heatmap.1.running_mean"
    theirs[bias] = torch.rand(POINTS.head.branch_channels)
    sparse = "backbone.conv2.3.conv2.bias"
    theirs[sparse] = torch.rand_like(theirs[sparse])
    taken = from_released(theirs, form, own, POINTS).weights
    changed = {name for name in own if not torch.equal(taken[name], own[name])}
    assert changed == {mean, "encoder.network.conv2.1.bn2.running_mean"}
    assert torch.equal(taken[mean], own[mean] - theirs[bias])


def test_det3ds_boxes_turn_into_ours() -> None:
    """A head whose last biases alone speak: a car of 4 x 2 x 1.5 m at 30 degrees, told as that code tells it."""
    form, own = centerpoint.det3d_form(POINTS), weights_of(POINTS)
    theirs, yaw = to_released(own, form, POINTS), math.radians(30)
    rot, dim = ("bbox_head.tasks.0.rot.3", "bbox_head.tasks.0.dim.3")
    turn = -yaw - math.pi / 2
    theirs[f"{rot}.bias"] = torch.tensor([math.sin(turn), math.cos(turn)])
    theirs[f"{dim}.bias"] = torch.tensor([2.0, 4.0, 1.5]).log()
    theirs |= {f"{name}.weight": torch.zeros_like(theirs[f"{name}.weight"]) for name in (rot, dim)}
    taken = from_released(theirs, form, own, POINTS).weights
    sine, cosine = taken["head.tasks.0.rot.3.bias"]
    assert math.atan2(sine, cosine) == pytest.approx(yaw)
    torch.testing.assert_close(taken["head.tasks.0.dim.3.bias"].exp(), torch.tensor([4.0, 2.0, 1.5]))
    assert all(torch.equal(taken[f"head.tasks.0.{name}.3.weight"], own[f"head.tasks.0.{name}.3.weight"] * 0)
               for name in ("rot", "dim"))  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        caddn.tiny(spatial_alignment=True, fusion="skip"),
        caddn.tiny(spatial_alignment=True, fusion="ffm", fusion_norm="separate"),
        bevdepth.tiny(spatial_alignment=True),
    ],
)
def test_networks_that_no_authors_code_has(config: Any) -> None:
    form = caddn.released_form if isinstance(config, caddn.CaDDNConfig) else bevdepth.released_form
    with pytest.raises(UserError, match="no authors' code has"):
        form(config)


@pytest.mark.parametrize("system", ["centerpoint", "centerpoint_det3d"])
def test_files_of_older_sparse_convolutions(system: str, tmp_path: Path) -> None:
    """spconv 1 saved kernels in another layout: the weights are the same."""
    config, own = CenterPointConfig(), weights_of(CenterPointConfig())
    theirs = to_released(own, SYSTEMS[system].parts["teacher"].form(config), config)
    old = {name: v.permute(TO_SPCONV_1).contiguous() if v.dim() == 5 else v for name, v in theirs.items()}
    torch.save({"meta": {}, "state_dict": old}, tmp_path / "old.pth")
    found = import_checkpoint(tmp_path / "old.pth", system, out=tmp_path)
    detector, card = load_detector(found.folder)
    assert "LiDAR's own frame" in found.text() and card["ego_frame"] == "lidar_sensor"
    written = detector.state_dict()
    assert all(torch.equal(written[name], own[name]) for name in own)


def test_pillars_have_no_released_names() -> None:
    for form in (centerpoint.released_form, centerpoint.det3d_form):
        with pytest.raises(UserError, match="not on pillars"):
            form(centerpoint.tiny())


# ------------------------------------------------------------------------------------------------- what else files tell


def file_of(config: BEVDepthConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        own = build_detector(config).state_dict()
    return to_released(own, bevdepth.released_form(config), config)


@pytest.mark.parametrize(("frames", "context"), [(1, 80), (2, 80), (4, 32)])
def test_frames_and_channels_are_those_of_the_shapes(frames: int, context: int) -> None:
    file = file_of(bevdepth.tiny(frames=frames, context_channels=context))
    found = bevdepth.released_settings(bevdepth.tiny(), file)
    assert (found.frames, found.context_channels) == (frames, context)
    assert found.channel_order == "bgr_with_rgb_means" and found.rounding == "trunc"


def test_grid_and_bins_are_those_of_the_buffers() -> None:
    """In single precision, whose digits beyond a tenth of a millimetre are none of the settings'."""
    file = file_of(CAMERAS)
    file[GRID_BUFFERS[0]] = torch.tensor([0.6, 0.6, 6.0])
    file[GRID_BUFFERS[1]] = torch.tensor([-21.3, -9.3, -1.0])
    file[GRID_BUFFERS[2]] = torch.tensor([64, 32, 1])
    bins = DepthBins(1.0, 61.0, CAMERAS.bins.count, "UD")
    file[FRUSTUM_BUFFER] = frustum((20 * STRIDE, 10 * STRIDE), STRIDE, bins)
    found = bevdepth.released_settings(CAMERAS, file)
    assert found.grid.extent == (-21.6, -9.6, -4.0, 16.8, 9.6, 2.0) and found.grid.cell == (0.6, 0.6, 6.0)
    assert (found.head.extent, found.head.cell, found.bins) == ((-21.6, -9.6, 16.8, 9.6), 0.6, bins)
    assert bevdepth.released_canvas(file) == (320, 160)
    build_detector(found)
    part = SYSTEMS["bevdepth"].parts["student"]
    assert part.data(part.taken_from()[0].dataset, found, file).past == (1, 2)


CONTRADICTIONS: dict[str, tuple[dict[str, Tensor], str]] = {
    "places": ({FRUSTUM_BUFFER: frustum((320, 160), STRIDE, CAMERAS.bins, "centres")}, "320 x 160 px"),
    "bins that grow": ({FRUSTUM_BUFFER: frustum((320, 160), STRIDE, replace(CAMERAS.bins, mode="LID"))}, "equal bins"),
    "shape of places": ({FRUSTUM_BUFFER: torch.zeros(5, 4)}, r"\(5, 4\)"),
    "oblong cells": ({GRID_BUFFERS[0]: torch.tensor([0.8, 0.4, 8.0])}, "as long as wide"),
    "numbers": ({GRID_BUFFERS[2]: torch.tensor([64, 64])}, "along x, y and z"),
    "no grid": ({GRID_BUFFERS[0]: torch.full((3,), float("nan"))}, "as long as wide|grid"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_buffers_that_no_setting_gives(name: str) -> None:
    changed, message = CONTRADICTIONS[name]
    with pytest.raises(UserError, match=message):
        bevdepth.released_settings(CAMERAS, file_of(CAMERAS) | changed)


def test_the_part_that_a_file_holds_is_meant(tmp_path: Path) -> None:
    """LabelDistill's label encoder comes with the teacher and an unused head; its teacher's file has that head too."""
    encoder, teacher = LabelEncoderConfig(), CenterPointConfig()
    of_teacher = to_released(weights_of(teacher), centerpoint.released_form(teacher), teacher)
    unused = {"model.head.shared_conv.conv.weight": torch.zeros(64, 256, 3, 3)}
    files = {"teacher": {f"model.centerpoint.{name}": v for name, v in of_teacher.items()} | unused}
    of_encoder = to_released(weights_of(encoder), label_encoder.released_form(encoder), encoder)
    files["label_encoder"] = files["teacher"] | {f"model.{name}": v for name, v in of_encoder.items()}
    found = {}
    for part, state in files.items():
        torch.save({"epoch": 3, "state_dict": state}, tmp_path / "file.pth")
        found[part] = import_checkpoint(tmp_path / "file.pth", "labeldistill", out=tmp_path)
        assert found[part].part == part
    assert set(found["label_encoder"].dropped) == {"other networks"}


def test_a_whole_distillation_is_no_bevdepth() -> None:
    """So that a file's network is told without its name being given."""
    config = CAMERAS
    file = file_of(config) | {"distill_encoder_lidar.blocks.0.0.bias": torch.zeros(4)}
    with torch.device("meta"):
        own = build_detector(config).state_dict()
    taken = from_released(file, bevdepth.labeldistill_form(config), own, config)
    assert taken.dropped == {"for training alone": ["distill_encoder_lidar.blocks.0.0.bias"]}
    with pytest.raises(UserError, match="holds distill_encoder_lidar"):
        from_released(file, bevdepth.released_form(config), own, config)
