"""TiG-BEV's maps of points, depths inside objects and relations against recorded tensors of the released code (set
``tig_bev``)."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import by_number, constants, golden_file, recorded_objects
from test_cmkd_mv_golden import head_of, label_losses
from test_labeldistill_golden import load
from torch import Tensor

from distill3d.camera import DepthBins
from distill3d.detectors.base import BevGeometry
from distill3d.distill.box_points import Footprints, box_points, grid_shares, positions
from distill3d.distill.map_reading import Rows
from distill3d.distill.methods.tig_bev import (
    ChannelTerm,
    TiGBEVConfig,
    all_cells_depth_loss,
    inner_depth_loss,
    nearest_points,
    one_of,
    relation_loss,
    sampled,
)
from distill3d.layers.heads.centre_head import BOX_BRANCHES, centre_targets

pytestmark = pytest.mark.golden
#: Depths in float32, cells exact; bins in float32; losses in float32; corners in float32; whole steps in float32.
MAPS = {"rtol": 0.0, "atol": 1e-4}
INNER = {"rtol": 1e-6, "atol": 1e-9}
DEPTH = {"rtol": 1e-5, "atol": 1e-7}
RELATIONS = {"rtol": 1e-5, "atol": 1e-7}
STEP = {"rtol": 2e-4, "atol": 1e-5}
RELEASED = TiGBEVConfig.styled("released")


def bins_of(stated: dict[str, Any]) -> DepthBins:
    near, far, step = stated["dbound"]
    return DepthBins(near, far, round((far - near) / step), "UD")


def lifted(matrix: Tensor, shift: Tensor) -> Tensor:
    """(N, 4, 4) of (N, 3, 3) and (N, 3)."""
    out = torch.eye(4, dtype=torch.float64).repeat(len(matrix), 1, 1)
    out[:, :3, :3], out[:, :3, 3] = matrix, shift
    return out


def footprints(g: dict[str, Tensor]) -> Footprints:
    """Old LiDAR boxes as ours: they give the width before the length and turn clockwise; at yaw 0 their width lies
    along x, and our length along -y."""
    rows = [g[name] for name in by_number(g) if name.startswith("in.boxes")]
    boxes = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    present = torch.nn.utils.rnn.pad_sequence([torch.ones(len(r), dtype=torch.bool) for r in rows], batch_first=True)
    return Footprints.of(boxes[..., :2], boxes[..., [4, 3]], -boxes[..., 6] - math.pi / 2, present)


@golden_file("tig_bev/depth_foreground_maps")
def test_maps_of_nearest_points(path: Path) -> None:
    g, stated = load(path), constants(path)
    zero = torch.zeros_like(g["in.trans"])
    pose, intrinsics, affine = (
        lifted(g["in.rots"], g["in.trans"]), lifted(g["in.intrinsics"], zero),
        lifted(g["in.post_rots"], g["in.post_trans"]),
    )  # fmt: skip
    height, width = (int(side) // stated["downsample"] for side in g["in.image_size"])
    eye = torch.eye(4, dtype=torch.float64)
    found = nearest_points(
        g["in.points"][None], affine[None], intrinsics[None], pose[None], eye[None], (height, width),
        stated["downsample"], bins_of(stated),
    )  # fmt: skip
    torch.testing.assert_close(found.depth[0].float(), g["out.depth"], **MAPS)
    rows = found.index.flatten()
    inside = (g["in.membership"][:, rows.clamp(min=0)].T != 0) & (rows >= 0)[:, None]
    box = one_of(inside[None], torch.zeros(1, *inside.shape), RELEASED.overlap)
    assert torch.equal(box.view_as(g["out.foreground"]), g["out.foreground"])


@golden_file("tig_bev/inner_depth_a", "tig_bev/inner_depth_b")
def test_depths(path: Path) -> None:
    g, stated = load(path), constants(path)
    bins, depth, box = bins_of(stated), g["in.depth"].flatten(0, 1), g["in.foreground"].flatten(0, 1)
    logits = g["in.logits"].clone().requires_grad_()
    inner = RELEASED.inner_depth_weight * inner_depth_loss(logits, depth, box, int(box.max()), bins)
    torch.testing.assert_close(inner, g["out.inner_depth"], **INNER)
    (gradient,) = torch.autograd.grad(inner, logits)
    torch.testing.assert_close(gradient, g["grad.inner_depth.logits"], **INNER)
    assert (RELEASED.inner_depth_weight, RELEASED.depth_weight) == (
        stated["inner_depth_weight"], stated["depth_weight"]
    )  # fmt: skip

    logits = g["in.logits"].float().requires_grad_()
    absolute = RELEASED.depth_weight * all_cells_depth_loss(logits, depth.float(), bins)
    torch.testing.assert_close(absolute, g["out.depth"], **DEPTH)
    (gradient,) = torch.autograd.grad(absolute, logits)
    torch.testing.assert_close(gradient, g["grad.depth.logits"], **DEPTH)


def places(g: dict[str, Tensor], stated: dict[str, Any]) -> tuple[Tensor, Rows]:
    """Where the released code reads maps for the points of the boxes (B, M, S S, 2), and which boxes there are."""
    side, low = stated["size"] * stated["cell"], stated["lower"]
    geometry = BevGeometry((low, low, low + side, low + side), stated["cell"], "ego")
    boxes = footprints(g)
    points = box_points(boxes, grid_shares(stated["samples"]), max(stated["enlarge"], 0.0))
    return positions(points, geometry, RELEASED.reading, RELEASED.outside == "clamped"), boxes.counted.nonzero(
        as_tuple=True
    )


def as_recorded(rows: Tensor, samples: int) -> Tensor:
    """(boxes, S, S, _) with the order along the length turned, for their box points the other way."""
    return rows.unflatten(1, (samples, samples)).flip(2)


def channel_term(g: dict[str, Tensor]) -> ChannelTerm:
    weight = g["param.embed.weight"]
    term = ChannelTerm(RELEASED, {RELEASED.tap: weight.shape[1]}, {RELEASED.teacher_tap: weight.shape[0]})
    term.embed.to(weight.dtype).load_state_dict({"weight": weight, "bias": g["param.embed.bias"]})
    return term


def channel_loss(term: ChannelTerm, student: Tensor, teacher: Tensor) -> Tensor:
    everywhere = torch.ones(student.shape[:2], dtype=torch.bool)
    return relation_loss(term.embedded(student, everywhere).mT, teacher.mT, RELEASED.similarity)


@golden_file("tig_bev/relations_enlarged", "tig_bev/relations_plain")
def test_relations(path: Path) -> None:
    """Places by themselves, for the recorded ones were rounded: losses and gradients are compared at these."""
    g, stated = load(path), constants(path)
    samples, cells = stated["samples"], stated["size"]
    own, rows = places(g, stated)
    # ``grid_sample`` without aligned corners reads -1..1 from edge to edge.
    edges = (2 * own[rows] + 1) / cells - 1
    torch.testing.assert_close(as_recorded(edges, samples).double(), g["out.grid"], rtol=1e-5, atol=1e-6)
    at = own.double()
    at[rows] = as_recorded((g["out.grid"].flatten(1, 2) + 1) * cells / 2 - 0.5, samples).flatten(1, 2)

    student = g["in.student"].clone().requires_grad_()
    read = {"student": sampled(student, at, rows), "teacher": sampled(g["in.teacher"], at, rows)}
    for name, features in read.items():
        recorded = g[f"out.{name}_sample"]
        torch.testing.assert_close(as_recorded(features, samples).permute(0, 3, 1, 2), recorded, **RELATIONS)
    term = channel_term(g)
    assert (RELEASED.keypoint_weight, RELEASED.channel_weight) == (
        stated["inter_keypoint_weight"], stated["inter_channel_weight"]
    )  # fmt: skip
    losses = {
        "inter_keypoint": RELEASED.keypoint_weight * relation_loss(*read.values(), RELEASED.similarity),
        "inter_channel": RELEASED.channel_weight * channel_loss(term, *read.values()),
    }
    for name, loss in losses.items():
        torch.testing.assert_close(loss, g[f"out.{name}"], **RELATIONS)
        (gradient,) = torch.autograd.grad(loss, student, retain_graph=True)
        torch.testing.assert_close(gradient, g[f"grad.{name}.student"], **RELATIONS)
    gradients = torch.autograd.grad(losses["inter_channel"], list(term.embed.parameters()))
    for name, gradient in zip(("weight", "bias"), gradients, strict=True):
        torch.testing.assert_close(gradient, g[f"grad.inter_channel.embed.{name}"], **RELATIONS)

    read = [sampled(m, own, rows) for m in (g["in.student"], g["in.teacher"])]
    keypoint = RELEASED.keypoint_weight * relation_loss(*read, RELEASED.similarity)
    torch.testing.assert_close(keypoint, g["out.inter_keypoint"], **RELATIONS)
    torch.testing.assert_close(
        RELEASED.channel_weight * channel_loss(term, *read), g["out.inter_channel"], **RELATIONS
    )  # fmt: skip


@golden_file("tig_bev/full_loss")
def test_a_step(path: Path) -> None:
    """All terms, the centre head's included: its losses on labels are those of ours, branch by branch."""
    g, c = load(path), constants(path)
    tasks, settings = range(len(c["tasks"])), c["train_cfg"]
    head = head_of(
        c["tasks"], (c["lower"],) * 2, c["cell"], (c["size"],) * 2, max_objects=settings["max_objs"],
        code_weights=tuple(settings["code_weights"]), radius_overlap=settings["gaussian_overlap"],
        min_radius=settings["min_radius"], box_weight=c["weights"]["box"],
    )  # fmt: skip
    leaves = {k: v.clone().requires_grad_() for k, v in g.items()
              if k.startswith("in.task") or k in ("in.logits", "in.student")}  # fmt: skip
    heat = torch.cat([leaves[f"in.task{t}.heatmap"] for t in tasks], dim=1)
    codes = [torch.cat([leaves[f"in.task{t}.{branch}"] for branch in BOX_BRANCHES], dim=1) for t in tasks]
    said = {"heatmap": heat, "box": torch.stack(codes, dim=1)}

    objects = recorded_objects(g)
    middle = objects.centre + objects.size * torch.tensor([0, 0, 0.5])  # recorded boxes stand on theirs
    targets = centre_targets(head, replace(objects, centre=middle), head.classes)
    for t, of_task in enumerate(targets.heatmap.split([len(task) for task in head.tasks], dim=1)):
        recorded = {k: g[f"out.target.task{t}.{k}"] for k in ("heatmap", "box", "index", "mask")}
        torch.testing.assert_close(of_task, recorded["heatmap"], **STEP)
        torch.testing.assert_close(targets.box[:, t], recorded["box"], **STEP)
        assert torch.equal(targets.index[:, t], recorded["index"])
        assert torch.equal(targets.mask[:, t], recorded["mask"].bool())
    losses = {f"task{t}.{name}": v for t in tasks for name, v in label_losses(said, targets, head, t).items()}

    bins, depth, box = bins_of(c), g["in.depth"].flatten(0, 1), g["in.foreground"].flatten(0, 1)
    at, rows = places(g, c)
    of_student, of_teacher = (sampled(m, at, rows) for m in (leaves["in.student"], g["in.teacher"]))
    logits, weights = leaves["in.logits"], c["weights"]
    losses |= {
        "loss_depth": weights["depth"] * all_cells_depth_loss(logits, depth, bins),
        "loss_inner_depth": weights["inner_depth"] * inner_depth_loss(logits, depth, box, int(box.max()), bins),
        "loss_inter_keypoint": weights["inter_keypoint"] * relation_loss(of_student, of_teacher, RELEASED.similarity),
        "loss_inter_channel": weights["inter_channel"] * channel_loss(channel_term(g), of_student, of_teacher),
    }
    for name, value in losses.items():
        torch.testing.assert_close(value, g[f"out.{name}"], **STEP)
    total = torch.stack(list(losses.values())).sum()
    torch.testing.assert_close(total, g["out.total"], **STEP)
    for name, gradient in zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True):
        torch.testing.assert_close(gradient, g[f"grad.{name.removeprefix('in.')}"], **STEP)
