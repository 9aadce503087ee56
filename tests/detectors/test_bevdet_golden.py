"""BEVDet against recorded tensors of the released code (set ``bevdet``)."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import constants, golden_file, recorded_objects
from test_gupnet_golden import group
from test_monodle_golden import close, load
from torch import Tensor, nn

from distill3d.camera import DepthBins
from distill3d.layers.ground.bev_residual import ResidualStages, TwoLevelNeck, planar_motion, shift_map
from distill3d.layers.ground.voxel_pooling import frustum, frustum_points, ground_cells, voxel_pool
from distill3d.layers.heads.centre_head import (
    BOX_BRANCHES,
    CentreHeadConfig,
    box_loss,
    box_normaliser,
    centre_losses,
    centre_targets,
    codes_at,
    heat_loss,
    heat_normaliser,
)
from distill3d.layers.image.depth_net import depth_distribution
from distill3d.layers.image.lift_nets import CameraAwareLift, PlainLift, whole_camera_vector
from distill3d.layers.points.voxels import VoxelGrid

pytestmark = pytest.mark.golden

#: Relative and absolute tolerance of each file; of targets of heat maps the absolute one.
EXACT, DEEP, SINGLE, HEAT = (1e-8, 1e-10), (1e-7, 1e-9), (2e-4, 1e-5), 1e-6
#: z (m) of the ground's one cell where a file's constants leave it out.
HEIGHT = (-10.0, 10.0, 20.0)
#: Each of our code's numbers among the recorded ones, and its sign: boxes there have the size (width, length, height)
#: and the yaw -yaw - 90 degrees, whose sine is minus our cosine and whose cosine is minus our sine.
PLACE, SIGN = (0, 1, 2, 4, 3, 5, 7, 6, 8, 9), (1, 1, 1, 1, 1, 1, -1, -1, 1, 1)
#: Released names of the parts of a box's loss, and of the whole.
PARTS = {"xy": (0, 1), "z": (2,), "whl": (3, 4, 5), "yaw": (6, 7), "vel": (8, 9), "bbox": range(10)}


def loaded(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """The module with recorded weights, which lack nothing but the counters of batch norms."""
    module = module.double()
    missing, unexpected = module.load_state_dict(weights, strict=False)
    assert not unexpected and {name.rpartition(".")[2] for name in missing} <= {"num_batches_tracked"}
    return module


def matrices(turn: Tensor, translation: Tensor | None = None) -> Tensor:
    """4 x 4 of 3 x 3 and a translation."""
    out = torch.eye(4, dtype=turn.dtype).repeat(*turn.shape[:-2], 1, 1)
    out[..., :3, :3] = turn
    if translation is not None:
        out[..., :3, 3] = translation
    return out


def check_lift(view: nn.Module, g: dict[str, Tensor], c: dict[str, Any], tolerance: tuple[float, float]) -> None:
    """The view's logits and features, lifted and pooled, against ``out`` and ``grad``."""
    low, high, step = c["xbound"]
    z0, z1, dz = c.get("zbound", HEIGHT)
    grid = VoxelGrid((low, low, z0, high, high, z1), (step, step, dz))
    assert grid.shape == (c["size"], c["size"], 1)
    near, far, width = c["dbound"]
    bins = DepthBins(near, far, round((far - near) / width), "UD")
    intrinsics, affine = matrices(g["in.intrinsics"]), matrices(g["in.post_rots"], g["in.post_trans"])
    pose = matrices(g["in.rots"], g["in.trans"])
    ground = torch.eye(4, dtype=torch.float64).repeat(len(pose), 1, 1)

    image_height, image_width = c["image"]
    cells = frustum((image_width, image_height), c["downsample"], bins)
    points = frustum_points(cells, affine, intrinsics, pose, ground)
    if "out.points" in g:
        close(points, g["out.points"], *tolerance)
    loaded(view, group(g, "param.")).eval()
    x = g["in.x"].clone().requires_grad_()
    logits, context = view(x.flatten(0, 1), whole_camera_vector(intrinsics, affine, ground, pose))
    bev = voxel_pool(depth_distribution(logits), context, ground_cells(points, grid), (c["size"],) * 2)
    close(bev, g["out.bev"], *tolerance)
    score = (bev * g["in.cotangent"]).sum()
    if "out.depth_logits" in g:
        close(logits, g["out.depth_logits"], *tolerance)
        score = score + (logits * g["in.cotangent_depth"]).sum()
    score.backward()
    close(x.grad, g["grad.x"], *tolerance)
    own = dict(view.named_parameters())
    for name, gradient in group(g, "grad.").items():
        if name != "x":
            close(own[name].grad, gradient, *tolerance)


@golden_file("bevdet/lift_splat")
def test_lift_splat(path: Path) -> None:
    g, c = load(path), constants(path)
    bins, context = g["out.points"].shape[2], g["out.bev"].shape[1]
    check_lift(PlainLift(g["in.x"].shape[2], bins, context), g, c, EXACT)


@golden_file("bevdet/bevdepth_view_transformer")
def test_camera_aware_lift(path: Path) -> None:
    g, c = load(path), constants(path)
    bins, context = g["out.depth_logits"].shape[1], g["out.bev"].shape[1]
    check_lift(CameraAwareLift(g["in.x"].shape[2], bins, context, c["channels"], c["blocks"]), g, c, DEEP)


@golden_file("bevdet/shift_feature")
def test_shift(path: Path) -> None:
    g, c = load(path), constants(path)
    first = [matrices(g[f"in.rots{of}"], g[f"in.trans{of}"])[:, 0] for of in ("", "_adjacent")]
    feature = g["in.feature"].clone().requires_grad_()
    moved = shift_map(feature, planar_motion(*first), (c["lower"],) * 2, c["cell"])
    close(moved, g["out.feature"], *EXACT)
    (moved * g["in.cotangent"]).sum().backward()
    close(feature.grad, g["grad.feature"], *EXACT)


class Encoder(nn.Module):
    """Stages and neck under the recorded names."""

    def __init__(self, channels_in: int, c: dict[str, Any]) -> None:
        super().__init__()
        widths, strides = tuple(c["widths"]), tuple(c["strides"])
        self.backbone = ResidualStages(channels_in, widths, tuple(c["blocks"]), strides)
        assert c["extra_upsample"] in (None, 2)
        up = math.prod(strides[1:])
        self.neck = TwoLevelNeck(widths[0], widths[-1], c["out"], up, c["extra_upsample"] is not None)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.backbone(x)
        return self.neck(maps[0], maps[-1])


@golden_file("bevdet/bev_encoder")
def test_bev_encoder(path: Path) -> None:
    g, c = load(path), constants(path)
    encoder = loaded(Encoder(g["in.x"].shape[1], c), group(g, "param."))
    for mode in ("eval", "train"):
        x = g["in.x"].clone().requires_grad_()
        y = encoder.train(mode == "train")(x)
        close(y, g[f"out.{mode}.y"], *DEEP)
        (y * g[f"in.{mode}.cotangent"]).sum().backward()
        close(x.grad, g[f"grad.{mode}.x"], *DEEP)


@golden_file("bevdet/centre_head_task_specific", "bevdet/centre_head_empty")
def test_centre_head(path: Path) -> None:
    g, c = load(path), constants(path)
    config, classes = head_of(c), tuple(name for task in c["tasks"] for name in task)
    targets = centre_targets(config, recorded_objects(g | ours(g)), classes)
    heatmaps = targets.heatmap.split([len(task) for task in config.tasks], dim=1)
    sign = torch.tensor(SIGN)
    for t, heatmap in enumerate(heatmaps):
        recorded = group(g, f"out.target.task{t}.")
        close(heatmap, recorded["heatmap"], 0, HEAT)
        assert torch.equal(targets.mask[:, t], recorded["mask"].bool())
        assert torch.equal(targets.index[:, t], recorded["index"])
        close(targets.box[:, t], recorded["box"][..., PLACE] * sign, *SINGLE)

    leaves = [{name: v.clone().requires_grad_() for name, v in group(g, f"in.task{t}.").items()}
              for t in range(len(config.tasks))]  # fmt: skip
    codes = [torch.cat([leaf[name] for name in BOX_BRANCHES], dim=1)[:, PLACE] for leaf in leaves]
    box = torch.stack(codes, dim=1) * sign[:, None, None]
    heat = torch.cat([leaf["heatmap"] for leaf in leaves], dim=1)
    total = torch.stack([*centre_losses({"heatmap": heat, "box": box}, targets, config).values()]).sum()
    close(total, g["out.total"], *SINGLE)
    total.backward()
    for t, leaf in enumerate(leaves):
        for name, value in leaf.items():
            close(value.grad, g[f"grad.task{t}.{name}"], *SINGLE)

    task_of_class, found = torch.tensor(config.task_of_class), codes_at(box, targets.index)
    for t in range(len(config.tasks)):
        entries = group(g, f"out.task{t}.loss_")
        alone = torch.where(task_of_class == t, heat_normaliser(targets.heatmap, config), torch.inf)
        close(heat_loss(heat.sigmoid(), targets.heatmap, alone), entries.pop("heatmap"), *SINGLE)
        counts = box_normaliser(targets.mask)
        counts = torch.where(torch.arange(len(counts)) == t, counts, torch.inf)
        assert set(entries) == (set(PARTS) - {"bbox"} if c["task_specific"] else {"bbox"})
        for part, recorded in entries.items():
            weights = tuple(w if i in PARTS[part] else 0.0 for i, w in enumerate(config.code_weights))
            own = box_loss(found, targets.box, targets.mask, counts, replace(config, code_weights=weights))
            close(own, recorded, *SINGLE)


def head_of(c: dict[str, Any]) -> CentreHeadConfig:
    """The head of recorded settings."""
    train = c["train_cfg"]
    x0, y0, _, x1, y1, _ = train["point_cloud_range"]
    weights = train["code_weights"]
    config = CentreHeadConfig(
        tasks=tuple(map(tuple, c["tasks"])), extent=(x0, y0, x1, y1),
        cell=train["voxel_size"][0] * train["out_size_factor"], radius_overlap=train["gaussian_overlap"],
        min_radius=train["min_radius"], max_objects=train["max_objs"],
        code_weights=tuple(weights[place] for place in PLACE), nms_thresholds=(1.0,) * len(c["tasks"]),
    )  # fmt: skip
    assert config.cells == (c["size"], c["size"])
    return config


def ours(g: dict[str, Tensor]) -> dict[str, Tensor]:
    """The recorded boxes, bottom-centre (x, y, z, width, length, height, -yaw - 90 degrees), as ours."""
    converted = {}
    for name, boxes in group(g, "in.boxes").items():
        x, y, bottom, width, length, height, turn, *velocity = boxes.unbind(1)
        rows = (x, y, bottom + height / 2, length, width, height, -turn - math.pi / 2, *velocity)
        converted[f"in.boxes{name}"] = torch.stack(rows, dim=1)
    return converted
