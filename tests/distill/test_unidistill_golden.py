"""UniDistill's key points, terms and whole steps against recorded tensors of the released code (set ``unidistill``)."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from golden import by_number, constants, golden_file
from test_labeldistill_golden import load
from torch import Tensor

from distill3d.detectors.base import BevGeometry
from distill3d.distill.box_points import NINE_POINTS, Footprints, box_points, gram
from distill3d.distill.methods.unidistill import (
    EPS,
    RADIUS_OVERLAP,
    TEMPERATURE,
    Pair,
    UniDistillConfig,
    at_nine_points,
    feature_loss,
    gaussian_mask,
    relation_loss,
    response_losses,
    teacher_probability,
)
from distill3d.layers.image.heatmap import PROBABILITY_MARGIN, clamped_sigmoid

pytestmark = pytest.mark.golden
#: Features in float64, counts and masks in float32.
CLOSE = {"rtol": 1e-6, "atol": 1e-9}
#: The branches of the released head in the order in which it compares them.
BRANCHES = ("reg", "height", "dim", "rot", "vel", "iou")
RELEASED = {pair: UniDistillConfig.styled("released", pair=pair) for pair in get_args(Pair)}


def geometry_of(stated: dict[str, Any]) -> BevGeometry:
    x0, y0, _, x1, y1, _ = stated["point_cloud_range"]
    return BevGeometry((x0, y0, x1, y1), stated["cell"], "ego")


def footprints(rows: Tensor, present: Tensor) -> Footprints:
    """Boxes x, y, z, length, width, height, counter-clockwise yaw, ... as the released code counts them."""
    return Footprints.of(rows[..., :2], rows[..., 3:5], rows[..., 6], present, "phantom")


def stacked(g: dict[str, Tensor], who: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Heat maps (B, K, Y, X) and box numbers (B, T, 11, Y, X) of a side, and the leaves they come from."""
    leaves = {k.removeprefix("in."): v.clone().requires_grad_() for k, v in g.items() if k.startswith(f"in.{who}.task")}
    tasks = by_number({k.split(".")[1] for k in leaves})
    heat = torch.cat([leaves[f"{who}.{task}.hm"] for task in tasks], dim=1)
    box = [torch.cat([leaves[f"{who}.{task}.{branch}"] for branch in BRANCHES], dim=1) for task in tasks]
    return heat, torch.stack(box, dim=1), leaves


@golden_file("unidistill/keypoint_terms_a", "unidistill/keypoint_terms_b", "unidistill/keypoint_terms_none")
def test_key_points(path: Path) -> None:
    g, stated = load(path), constants(path)
    geometry, config = geometry_of(stated), RELEASED["camera_from_lidar"]
    rows = g["in.boxes"]
    boxes = footprints(rows, (rows != 0).any(-1))
    assert torch.equal(boxes.counted, g["in.valid"])
    points = (box_points(boxes, NINE_POINTS) - rows.new_tensor(geometry.extent[:2])) / geometry.cell
    torch.testing.assert_close(points, g["out.points"], **CLOSE)
    torch.testing.assert_close(points[:, :, :4], g["out.corners"], **CLOSE)

    counted, level = boxes.counted, {}
    for name in ("student_low", "teacher_low", "student_high", "teacher_high"):
        level[name] = g[f"in.{name}"].clone().requires_grad_(name.startswith("student"))
    read = dict(zip(level, at_nine_points(list(level.values()), boxes, geometry, config.reading), strict=True))
    for who in ("student", "teacher"):
        torch.testing.assert_close(read[f"{who}_low"][counted], g[f"out.{who}_sample"][counted], **CLOSE)
        relation = gram(read[f"{who}_high"], added=EPS)
        torch.testing.assert_close(relation[counted], g[f"out.{who}_relation"][counted], **CLOSE)
    for name, loss, where in (("feature", feature_loss, "low"), ("relation", relation_loss, "high")):
        value = loss(read[f"student_{where}"], read[f"teacher_{where}"], counted)
        torch.testing.assert_close(value, g[f"out.{name}"], **CLOSE)
        (gradient,) = torch.autograd.grad(value, level[f"student_{where}"])
        torch.testing.assert_close(gradient, g[f"grad.{name}.student_{where}"], **CLOSE)


@golden_file("unidistill/response_lidar", "unidistill/response_fusion", "unidistill/response_none")
def test_responses(path: Path) -> None:
    g, stated = load(path), constants(path)
    assert (TEMPERATURE, RADIUS_OVERLAP) == (stated["temperature"], stated["min_overlap"])
    (pair,) = {p for p in ("camera_from_lidar", "camera_from_fusion") if RELEASED[p].settings.margin == stated["eps"]}
    config, geometry, rows = RELEASED[pair], geometry_of(stated), g["in.boxes"]
    boxes = footprints(rows, (rows[..., :9] != 0).any(-1))
    # The class number in the tenth column keeps rows that pad the boxes from looking empty.
    painted = rows.sum(-1) != 0
    mask = gaussian_mask(boxes, painted, geometry, (stated["height"], stated["width"]))
    torch.testing.assert_close(mask, g["out.mask"], **CLOSE)

    probability, box, leaves = stacked(g, "student")
    heat, teacher_box, _ = stacked(g, "teacher")
    losses = response_losses(probability, box, teacher_probability(heat, config), teacher_box, mask)
    torch.testing.assert_close(losses["class"], g["out.class"], **CLOSE)
    torch.testing.assert_close(losses["box"], g["out.regression"], **CLOSE)
    gradients = torch.autograd.grad(losses["class"] + losses["box"], list(leaves.values()))
    for name, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(gradient, g[f"grad.{name}"], **CLOSE)


@golden_file("unidistill/full_loss_a", "unidistill/full_loss_b")
def test_a_step(path: Path) -> None:
    """The terms of distillation and their gradients, for all four pairs.

    The released detector's head is another than ours (targets in nine cells a box, a focal loss with alpha, learned
    weights of losses, a prediction of the overlap), and the method does not ask for it.  So ``out.detection``,
    ``out.target.*`` and ``out.task*`` are not computed here: the recorded detection loss completes the totals, and in
    the gradients of a head's outputs, which both losses reach, pairs are compared with one another, as the detection's
    part is the same in all of them.
    """
    g, stated = load(path), constants(path)
    geometry, size = geometry_of(stated), stated["size"]
    rows = g["in.boxes"]
    boxes = footprints(rows, (rows != 0).any(-1))
    maps = {name: g[f"in.{name}"].clone() for name in ("student_low", "teacher_low", "student_high", "teacher_high")}
    low, high = (maps[f"student_{level}"].requires_grad_() for level in ("low", "high"))
    logits, box, leaves = stacked(g, "student")
    heat, teacher_box, _ = stacked(g, "teacher")
    own: dict[str, dict[str, Tensor]] = {}
    for pair, config in RELEASED.items():
        settings = config.settings
        assert [settings.feature, settings.relation, settings.response] == stated["weights"][pair]
        read = dict(zip(maps, at_nine_points(list(maps.values()), boxes, geometry, config.reading), strict=True))
        mask = gaussian_mask(boxes, torch.ones_like(boxes.counted), geometry, (size, size))
        responses = response_losses(
            clamped_sigmoid(logits), box, teacher_probability(heat, config), teacher_box, mask
        )  # fmt: skip
        losses = {
            "feature": feature_loss(read["student_low"], read["teacher_low"], boxes.counted),
            "bev_rel": relation_loss(read["student_high"], read["teacher_high"], boxes.counted),
            "resp_cls": responses["class"], "resp_reg": responses["box"],
        }  # fmt: skip
        if settings.margin == PROBABILITY_MARGIN:  # recorded of the camera that a LiDAR teaches
            for name, value in losses.items():
                torch.testing.assert_close(value, g[f"out.loss_{name}"], **CLOSE)
        weights = (settings.feature, settings.relation, settings.response, settings.response)
        total = torch.stack([w * v for w, v in zip(weights, losses.values(), strict=True)]).sum()
        torch.testing.assert_close(total + g["out.detection"], g[f"out.{pair}.total"], **CLOSE)
        wanted = {"student_low": low, "student_high": high, **leaves}
        own[pair] = dict(zip(wanted, torch.autograd.grad(total, list(wanted.values()), retain_graph=True), strict=True))
        for name in ("student_low", "student_high"):
            torch.testing.assert_close(own[pair][name], g[f"grad.{pair}.{name}"], **CLOSE)

    first, *others = RELEASED
    compared = 0
    for pair in others:
        for name in leaves:
            if f"grad.{pair}.{name}" in g:
                expected = g[f"grad.{pair}.{name}"] - g[f"grad.{first}.{name}"]
                torch.testing.assert_close(own[pair][name] - own[first][name], expected, rtol=1e-6, atol=1e-8)
                compared += 1
    assert compared
