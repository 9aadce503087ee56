"""CMKD's responses between centre heads, of several cameras and of one, and the losses on labels beside them, against
recorded tensors of the released code (set ``cmkd_mv``)."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden import constants, golden_file, recorded_objects
from test_labeldistill_golden import load
from torch import Tensor

from distill3d.data.surround import SurroundObjectBatch
from distill3d.detectors.base import BevGeometry, FeatureMap, Outputs
from distill3d.detectors.label_encoder import LabelEncoder, LabelEncoderConfig
from distill3d.distill.context import Context
from distill3d.distill.methods import build_terms
from distill3d.distill.methods.cmkd import CENTRE_RESPONSE, SURROUND_RESPONSE, CMKDConfig
from distill3d.layers.ground.bev_second import SECONDFPNConfig
from distill3d.layers.heads.centre_head import (
    BOX_BRANCHES,
    CODE,
    CentreHeadConfig,
    CentreTargets,
    box_loss,
    centre_targets,
    codes_at,
    heat_loss,
    heat_normaliser,
)

pytestmark = pytest.mark.golden
VALUES, GRADIENTS = {"rtol": 2e-5, "atol": 1e-6}, {"rtol": 1e-4, "atol": 1e-6}
#: Box losses on labels by their released names, and the branch that each looks at.
BOX_LOSSES = {"xy": "reg", "z": "height", "whl": "dim", "yaw": "rot", "vel": "vel"}
#: What the released code adds to the number of objects.
OBJECTS_EPS = 1e-4
#: KITTI's branches, and which of our ten numbers each gives: it turns with cosine and sine, and knows no velocity.
KITTI_BRANCHES = {"center": (0, 1), "center_z": (2,), "dim": (3, 4, 5), "rot": (7, 6)}
KITTI_CODE = [number for numbers in KITTI_BRANCHES.values() for number in numbers]


def responses(
    config: CMKDConfig, head: CentreHeadConfig, student: dict[str, Tensor], teacher: dict[str, Tensor],
    maps: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """The weighted terms of two sides; maps of one cell where none are given."""
    detector = LabelEncoder(
        LabelEncoderConfig(
            classes=head.classes, hidden=4, channels=(4,), neck=SECONDFPNConfig(channels=(4,), strides=(1,)), head=head
        )
    )
    geometry = BevGeometry(head.extent, head.cell, "ego")
    student_map, teacher_map = maps or (torch.zeros(1, 1, 1, 1),) * 2
    sides = [
        Outputs({"bev": FeatureMap(map_, geometry)}, predictions)
        for map_, predictions in ((student_map, student), (teacher_map, teacher))
    ]
    context = Context(sides[0], {"teacher": sides[1]}, None, None, detector)
    return {term.name: term.weight * term(context) for term in build_terms(config, {}, {})}


def head_of(tasks: list[list[str]], lower: tuple[float, float], cell: float, size: tuple[int, int], **fields):
    """A head of ``size`` (y, x) cells."""
    upper = (lower[0] + size[1] * cell, lower[1] + size[0] * cell)
    return CentreHeadConfig(
        tasks=tuple(map(tuple, tasks)), extent=(*lower, *upper), cell=cell, nms_thresholds=(1.0,) * len(tasks), **fields
    )


@golden_file("cmkd_mv/distill_two_images", "cmkd_mv/distill_one_empty", "cmkd_mv/distill_no_teacher_peak")
def test_a_step_of_several_cameras(path: Path) -> None:
    g, c = load(path), constants(path)
    tasks = range(len(c["tasks"]))
    head = head_of(
        c["tasks"], (c["lower"],) * 2, c["cell"], (c["size"],) * 2,
        max_objects=g["out.target.task0.mask"].shape[1], code_weights=tuple(c["code_weights"]),
    )  # fmt: skip
    leaves = {k: v.clone().requires_grad_() for k, v in g.items() if k.startswith("in.student.")}
    student_map = g["in.bev_student"].clone().requires_grad_()

    def side(who: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
        heat = torch.cat([values[f"in.{who}.task{t}.heatmap"] for t in tasks], dim=1)
        codes = [torch.cat([values[f"in.{who}.task{t}.{branch}"] for branch in BOX_BRANCHES], dim=1) for t in tasks]
        return {"heatmap": heat, "box": torch.stack(codes, dim=1)}

    student = side("student", leaves)
    config = CMKDConfig.styled("released", feature_weight=c["weights"]["bev"], **SURROUND_RESPONSE)
    assert (config.cls_weight, config.loc_weight) == (c["weights"]["cls"], c["weights"]["reg"])
    found = responses(config, head, student, side("teacher", g), (student_map, g["in.bev_teacher"]))

    def branches(gradient: dict[str, Tensor], prefix: str) -> None:
        for t in tasks:
            for name in (*BOX_BRANCHES, "heatmap"):
                agreed = gradient[f"in.student.task{t}.{name}"]
                torch.testing.assert_close(agreed, g[f"{prefix}task{t}.{name}"], **GRADIENTS)

    for ours, theirs in (("bev", "loss_bev"), ("response_cls", "res_loss_cls"), ("response_loc", "res_loss_reg")):
        torch.testing.assert_close(found[ours], g[f"out.{theirs}"], **VALUES)
    response = found["response_cls"] + found["response_loc"]
    gradients = torch.autograd.grad(response, [*leaves.values()], retain_graph=True)
    branches(dict(zip(leaves, gradients, strict=True)), "grad.only_response.")

    objects = recorded_objects(g)
    middle = objects.centre + objects.size * torch.tensor([0, 0, 0.5])  # recorded boxes stand on theirs
    targets = centre_targets(head, replace(objects, centre=middle), head.classes)
    for t, heat in enumerate(targets.heatmap.split([len(task) for task in head.tasks], dim=1)):
        recorded = {k: g[f"out.target.task{t}.{k}"] for k in ("heatmap", "box", "index", "mask")}
        torch.testing.assert_close(heat, recorded["heatmap"], **VALUES)
        torch.testing.assert_close(targets.box[:, t], recorded["box"], **VALUES)
        assert torch.equal(targets.index[:, t], recorded["index"])
        assert torch.equal(targets.mask[:, t], recorded["mask"].bool())
    labels = {f"task{t}.{name}": v for t in tasks for name, v in label_losses(student, targets, head, t).items()}
    for name, value in labels.items():
        torch.testing.assert_close(value, g[f"out.{name}"], **VALUES)
    total = torch.stack([*found.values(), *labels.values()]).sum()
    torch.testing.assert_close(total, g["out.total"], **VALUES)
    gradients = torch.autograd.grad(total, [student_map, *leaves.values()])
    torch.testing.assert_close(gradients[0], g["grad.bev_student"], **GRADIENTS)
    branches(dict(zip(leaves, gradients[1:], strict=True)), "grad.")


def label_losses(
    student: dict[str, Tensor], targets: CentreTargets, head: CentreHeadConfig, task: int
) -> dict[str, Tensor]:
    """The losses of a task on labels by their released names, branch by branch."""
    own = torch.tensor(head.task_of_class) == task
    normaliser = heat_normaliser(targets.heatmap, head)[own]
    losses = {"loss_heatmap": heat_loss(student["heatmap"][:, own].sigmoid(), targets.heatmap[:, own], normaliser)}
    weights, first = {}, 0
    for branch, numbers in BOX_BRANCHES.items():
        weights[branch] = [w * (first <= i < first + numbers) for i, w in enumerate(head.code_weights)]
        first += numbers
    codes = codes_at(student["box"], targets.index)
    mask = targets.mask & (torch.arange(len(head.tasks)) == task)[:, None]
    objects = targets.mask.sum((0, 2)) + OBJECTS_EPS
    for name, branch in BOX_LOSSES.items():
        only = replace(head, code_weights=tuple(weights[branch]))
        losses[f"loss_{name}"] = box_loss(codes, targets.box, mask, objects, only)
    return losses


@golden_file("cmkd_mv/centre_soft_gt", "cmkd_mv/centre_soft_only", "cmkd_mv/centre_soft_two_heads")
def test_one_camera(path: Path) -> None:
    g, c = load(path), constants(path)
    heads = range(len(c["heads"]))
    cell = c["voxel"][0] * c["stride"]
    head = head_of(
        c["heads"], tuple(c["range"][:2]), cell, tuple(c["map"]), box_weight=c["loc_weight"],
        code_weights=(1.0,) * len(KITTI_CODE) + (0.0,) * (CODE - len(KITTI_CODE)),
    )  # fmt: skip
    leaves = {k: v.clone().requires_grad_() for k, v in g.items() if k.startswith("in.student.")}

    def side(who: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
        heat = torch.cat([values[f"in.{who}.head{h}.hm"] for h in heads], dim=1)
        codes = []
        for h in heads:
            theirs = torch.cat([values[f"in.{who}.head{h}.{branch}"] for branch in KITTI_BRANCHES], dim=1)
            ours = theirs[:, torch.tensor(KITTI_CODE).argsort()]
            codes.append(torch.nn.functional.pad(ours, (0, 0, 0, 0, 0, CODE - len(KITTI_CODE))))
        return {"heatmap": heat, "box": torch.stack(codes, dim=1)}

    student = side("student", leaves)
    found = responses(CMKDConfig(feature_weight=0.0, **CENTRE_RESPONSE), head, student, side("teacher", g))
    torch.testing.assert_close(found["response_cls"], total_of(g, "hm_loss_soft_head_"), **VALUES)
    torch.testing.assert_close(found["response_loc"], total_of(g, "soft_loss_reg_head_"), **VALUES)

    losses = [*found.values()]
    if "out.loc_loss_head_0" in g:
        targets = kitti_targets(g, head)
        for h, heat in enumerate(targets.heatmap.split([len(task) for task in head.tasks], dim=1)):
            torch.testing.assert_close(heat, g[f"out.target.head{h}.heatmaps"], **VALUES)
        heat = heat_loss(student["heatmap"].sigmoid(), targets.heatmap, heat_normaliser(targets.heatmap, head))
        torch.testing.assert_close(heat, total_of(g, "hm_loss_head_"), **VALUES)
        objects = targets.mask.sum((0, 2)).float().clamp(min=1)
        boxes = box_loss(codes_at(student["box"], targets.index), targets.box, targets.mask, objects, head)
        torch.testing.assert_close(boxes, total_of(g, "loc_loss_head_"), **VALUES)
        losses += [heat, boxes]
    total = torch.stack(losses).sum()
    torch.testing.assert_close(total, g["out.total"], **VALUES)
    for name, gradient in zip(leaves, torch.autograd.grad(total, [*leaves.values()]), strict=True):
        torch.testing.assert_close(gradient, g[f"grad.{name.removeprefix('in.student.')}"], **GRADIENTS)


def total_of(g: dict[str, Tensor], prefix: str) -> Tensor:
    """The sum of a loss over heads."""
    return torch.stack([v for k, v in g.items() if k.startswith(f"out.{prefix}")]).sum()


def kitti_targets(g: dict[str, Tensor], head: CentreHeadConfig) -> CentreTargets:
    """Our targets of the recorded boxes: an object outside the map stands in its border cell there."""
    boxes, label = g["in.gt_boxes"][..., :7], g["in.gt_boxes"][..., 7].long() - 1
    low, high = boxes.new_tensor(head.extent).view(2, 2)
    inside = torch.minimum(torch.maximum(boxes[..., :2], low), high - head.cell / 2)
    centre = torch.cat((inside, boxes[..., 2:3]), dim=-1)
    unknown = torch.zeros_like(label)
    objects = SurroundObjectBatch(
        centre, boxes[..., 3:6], boxes[..., 6], boxes[..., :2] * 0, label, unknown, label >= 0
    )
    return centre_targets(head, objects, head.classes)
