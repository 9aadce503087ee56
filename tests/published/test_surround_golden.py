"""Imported CenterPoints, BEVDepth and LabelDistill's networks answer as the authors' code does."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import constants, golden_file
from made_checkpoints import imported, input_of, listing, recorded
from torch import Tensor

from distill3d.boxes import NUSCENES_CLASSES, Boxes3D
from distill3d.camera import DepthBins
from distill3d.data.surround import SurroundBatch
from distill3d.detectors import build_detector
from distill3d.detectors.bevdepth import BEVDepth
from distill3d.detectors.centerpoint import CenterPoint
from distill3d.detectors.label_encoder import LabelEncoder
from distill3d.detectors.monodle import RGB_MEAN, RGB_STD
from distill3d.detectors.released import to_released
from distill3d.layers.heads.centre_head import BOX_BRANCHES, CentreHeadConfig
from distill3d.published.systems import SYSTEMS
from distill3d.train.card import CARD

pytestmark = pytest.mark.golden

#: Relative to the largest value, as the index states; of decoded boxes.
TOLERANCE, OF_BOXES = 1e-8, 1e-7
#: Of recorded maps: one of so many channels.
EVERY_CHANNEL = 8
#: The part whose network each folder records.
PARTS = {
    "centerpoint": ("centerpoint", "teacher"), "centerpoint_det3d": ("centerpoint_det3d", "teacher"),
    "bevdepth": ("bevdepth", "student"), "bevdepth_da": ("bevdepth", "balanced"),
    "labeldistill": ("labeldistill", "student"), "label_encoder": ("labeldistill", "label_encoder"),
}  # fmt: skip
POINTS, CAMERAS = ("centerpoint", "centerpoint_det3d"), ("bevdepth", "bevdepth_da", "labeldistill")


def close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def still(g: dict[str, Any], samples: int, **fields: Any) -> SurroundBatch:
    """A batch whose ground is not augmented, so that boxes come out as the released decoders leave them."""
    here = torch.eye(4, dtype=torch.float64)
    return SurroundBatch(
        **{
            "frame_ids": [str(i) for i in range(samples)], "intrinsics": here.expand(samples, 1, 1, 4, 4),
            "camera_to_ego": here.expand(samples, 1, 1, 4, 4), "image_affine": here.expand(samples, 1, 4, 4),
            "bev_affine": here.expand(samples, 4, 4), "ego_to_global": here.expand(samples, 4, 4), **fields,
        }
    )  # fmt: skip


def settings_of_boxes(about: dict[str, Any]) -> dict[str, Any]:
    """The head's settings as far as a recording tells them."""
    names = {"score_threshold": "score_threshold", "post_max_size": "max_per_task", "max_num": "candidates"}
    changes = {ours: about[theirs] for theirs, ours in names.items() if theirs in about}
    if "min_radius" in about:
        changes["nms_thresholds"] = tuple(about["min_radius"])
    return changes | {"tasks": tuple(map(tuple, about["tasks"]))}


def compare_head(
    g: dict[str, Any], predictions: dict[str, Tensor], tasks: tuple[tuple[str, ...], ...], heat: str = "heatmap"
) -> None:
    """The recorded raw maps of all tasks, which may hold every n-th cell only."""
    for i, heatmap in enumerate(predictions["heatmap"].split([len(task) for task in tasks], dim=1)):
        parts = predictions["box"][:, i].split(list(BOX_BRANCHES.values()), dim=1)
        for name, found in {heat: heatmap, **dict(zip(BOX_BRANCHES, parts, strict=True))}.items():
            expected = g[f"out.task{i}.{name}"]
            step = found.shape[-1] // expected.shape[-1]
            close(found[..., ::step, ::step], expected)
            if f"out.task{i}.{name}_channel_mean" in g:
                close(found.mean((2, 3)), g[f"out.task{i}.{name}_channel_mean"])


def as_det3d(box: Tensor) -> Tensor:
    """Our maps of boxes as that code has them: (width, length, height), and sine and cosine of -yaw - 90 degrees."""
    place, z, size, (sine, cosine), velocity = (
        part.movedim(2, 0) for part in box.split(list(BOX_BRANCHES.values()), 2)
    )
    return torch.cat((place, z, size[[1, 0, 2]], -cosine[None], -sine[None], velocity)).movedim(0, 2)


def rows(found: list[Boxes3D], head: CentreHeadConfig, bottom: bool) -> Tensor:
    """Boxes as they are recorded: sample after sample, in each of them task after task; ``bottom``: at their height's
    lower end instead of its middle."""
    task_of = torch.tensor(
        [next(i for i, task in enumerate(head.tasks) if name in task) for name in NUSCENES_CLASSES]
    )  # fmt: skip
    kept = []
    for i, boxes in enumerate(found):
        centre = boxes.centre.clone()
        centre[:, 2] -= boxes.size[:, 2] / 2 if bottom else 0
        assert boxes.score is not None and boxes.velocity is not None
        row = torch.cat((torch.full_like(boxes.score, i)[:, None], boxes.label[:, None], boxes.score[:, None], centre,
                         boxes.size, boxes.yaw[:, None], boxes.velocity), -1)  # fmt: skip
        kept.append(row[task_of[boxes.label].argsort(stable=True)])
    return torch.cat(kept)


@golden_file(*(f"released/{name}/whole_forward" for name in PARTS))
def test_names_and_shapes(path: Path) -> None:
    """What we write is what their code saves; parts of several networks are some of it."""
    system, part = PARTS[path.parent.name]
    about = SYSTEMS[system].parts[part]
    config: Any = about.taken_from()[1].detector
    with torch.device("meta"):
        ours = build_detector(config).state_dict()
    theirs = listing(path)["state"]
    found = {name: list(value.shape) for name, value in to_released(ours, about.form(config), config).items()}
    assert found.items() <= theirs.items() and (system == "labeldistill" or len(found) == len(theirs))


# ---------------------------------------------------------------------------------------------------------- CenterPoint


def centerpoint_of(path: Path, out: Path) -> CenterPoint:
    """The recorded network on the recorded extent."""
    about = constants(path)
    part = SYSTEMS[path.parent.name].parts["teacher"]
    config: Any = part.taken_from()[1].detector
    x0, y0, _, x1, y1, _ = extent = tuple(map(float, about["point_cloud_range"]))
    grid = replace(config.voxels.grid, extent=extent, cell=tuple(about["voxel_size"]))
    voxels = replace(config.voxels, grid=grid, max_points=about["max_num_points"])
    head = replace(
        config.head, extent=(x0, y0, x1, y1), cell=voxels.network.stride * grid.cell[0], **settings_of_boxes(about)
    )
    detector = imported(path, path.parent.name, "teacher", out, voxels=voxels, head=head)
    assert isinstance(detector, CenterPoint)
    return detector


@torch.no_grad()
@golden_file(*(f"released/{name}/whole_forward" for name in POINTS))
def test_centerpoint(path: Path, tmp_path: Path) -> None:
    g, about = recorded(path), constants(path)
    detector = centerpoint_of(path, tmp_path)
    points = g["in.points"]
    batch = still(g, about["B"], points=[points[points[:, 0] == i, 1:] for i in range(about["B"])])
    outputs = detector(batch)
    middle, *levels = (outputs.features[name].tensor for name in ("bev_low", "bev_0", "bev_1"))
    close(middle[:, ::EVERY_CHANNEL], g["out.middle"])
    close(middle.mean((2, 3)), g["out.middle_channel_mean"])
    close(detector.neck(levels).mean((2, 3)), g["out.neck_channel_mean"])
    for i, level in enumerate(levels):
        if f"out.backbone{i}_channel_mean" in g:
            close(level.mean((2, 3)), g[f"out.backbone{i}_channel_mean"])
    if path.parent.name == "centerpoint_det3d":
        theirs = outputs.predictions | {"box": as_det3d(outputs.predictions["box"])}
        compare_head(g, theirs, detector.config.head.tasks, "hm")
    else:
        compare_head(g, outputs.predictions, detector.config.head.tasks)
    if "out.boxes" in g:
        close(rows(detector.decode(outputs, batch), detector.config.head, bottom=True), g["out.boxes"], OF_BOXES)


# ------------------------------------------------------------------------------------------------------------- BEVDepth


def seen(path: Path, g: dict[str, Any]) -> SurroundBatch:
    """The recorded pictures as a data set gives them, red first and in 0..1, with the recorded cameras."""
    about, (samples, frames, cameras) = constants(path), g["in.intrin_mats"].shape[:3]
    given = input_of(path, (samples, frames, cameras, 3, *about["final_dim"]))
    torch.testing.assert_close(given.flatten()[:8], g["in.input_first8"])
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (RGB_MEAN, RGB_STD))
    affine = g["in.ida_mats"][:, 0].clone()
    assert torch.equal(affine[:, None].expand_as(g["in.ida_mats"]), g["in.ida_mats"])
    return still(
        g, samples, images=(given * std + mean).flip(-3), intrinsics=g["in.intrin_mats"],
        camera_to_ego=g["in.sensor2ego_mats"], image_affine=affine, bev_affine=g["in.bda_mat"],
    )  # fmt: skip


@torch.no_grad()
@golden_file(*(f"released/{name}/whole_forward" for name in CAMERAS))
def test_bevdepth(path: Path, tmp_path: Path) -> None:
    g, about = recorded(path), constants(path)
    system, part = PARTS[path.parent.name]
    (x0, x1, cell), (y0, y1, _), (near, far, step) = (about[f"{name}_bound"] for name in "xyd")
    config: Any = SYSTEMS[system].parts[part].taken_from()[1].detector
    head = replace(config.head, extent=(x0, y0, x1, y1), cell=cell, **settings_of_boxes(about))
    detector = imported(path, system, part, tmp_path, head=head)
    assert isinstance(detector, BEVDepth)
    config = detector.config
    assert (config.grid.extent[:2], config.grid.extent[3:5], config.grid.cell[0]) == ((x0, y0), (x1, y1), cell)
    assert (config.frames, config.depth_aggregation) == (about["frames"], about["use_da"])
    assert config.bins == DepthBins(near, far, round((far - near) / step), "UD")
    card = json.loads((tmp_path / "runs" / f"{system}_{part}" / part / CARD).read_text())
    assert card["canvas"] == about["final_dim"][::-1] and len(card["past"]) == about["frames"] - 1

    of_key: dict[str, Any] = {}  # the first that each gives
    for name, module in (("neck", detector.backbone.img_neck), ("depth", detector.backbone.depth_net)):
        module.register_forward_hook(lambda _, inputs, found, name=name: of_key.update({name: found} | of_key))
    batch = seen(path, g)
    outputs = detector(batch)
    lifted = outputs.features["bev"].tensor
    close(of_key["neck"].mean((2, 3)), g["out.img_neck_channel_mean"])
    close(of_key["depth"][1].mean((2, 3)), g["out.context_channel_mean"])
    bins = g["out.depth_logits"].shape[1]
    close(outputs.predictions["depth"][:, :: config.bins.count // bins], g["out.depth_logits"])
    close(lifted[:, ::EVERY_CHANNEL], g["out.bev"])
    close(lifted.sum((2, 3)), g["out.bev_channel_sum"])
    compare_head(g, outputs.predictions, config.head.tasks)
    found = detector.decode(outputs, still(g, len(batch)))
    close(rows(found, detector.config.head, bottom=False), g["out.boxes"], OF_BOXES)


# -------------------------------------------------------------------------------------------------------- label encoder


@torch.no_grad()
@golden_file("released/label_encoder/whole_forward")
def test_label_encoder(path: Path, tmp_path: Path) -> None:
    g = recorded(path)
    detector = imported(path, "labeldistill", "label_encoder", tmp_path)
    assert isinstance(detector, LabelEncoder) and detector.config.clip_border
    levels = detector.encoder.levels(detector.encoder.embed(g["in.box"], g["in.label"]))
    for i, level in enumerate(levels):
        part = g[f"out.map{i}_part"]
        channels, cells = (level.shape[axis] // part.shape[axis] for axis in (1, -1))
        close(level[:, ::channels, ::cells, ::cells], part)
        close(level.mean((2, 3)), g[f"out.map{i}_channel_mean"])
    neck = detector.neck(levels)
    close(neck.mean((2, 3)), g["out.neck_channel_mean"])
    compare_head(g, detector.head(neck), detector.config.head.tasks)
