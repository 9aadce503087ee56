"""LabelDistill's adaptor, partition and losses against recorded tensors of the released code (set ``labeldistill``)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from golden import by_number, constants, golden_file
from torch import Tensor

from distill3d.detectors.base import BevGeometry, FeatureMap, Outputs
from distill3d.detectors.label_encoder import LabelEncoder, LabelEncoderConfig
from distill3d.distill.context import Context
from distill3d.distill.methods.labeldistill import (
    DistillAdaptor,
    LabelDistillConfig,
    channel_parts,
    feature_loss,
    object_masks,
    response_losses,
    terms,
)
from distill3d.layers.ground.bev_second import SECONDFPNConfig
from distill3d.layers.heads.centre_head import BOX_BRANCHES, CentreHeadConfig, CentreTargets, centre_losses

pytestmark = pytest.mark.golden
#: Of networks in float64; of features in float64 under masks in float32; of losses in float32.
ADAPTOR = {"rtol": 1e-8, "atol": 1e-10}
FEATURES = {"rtol": 1e-6, "atol": 1e-9}
RESPONSES = {"rtol": 1e-5, "atol": 1e-7}


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as data:
        return {k: torch.from_numpy(data[k]) for k in data}


@golden_file("labeldistill/adaptor")
def test_adaptor(path: Path) -> None:
    g, stated = load(path), constants(path)
    adaptor = DistillAdaptor(tuple(stated["in"]), tuple(stated["out"])).double()
    adaptor.load_state_dict(
        {k: v for k, v in adaptor.state_dict().items() if k.endswith("num_batches_tracked")}
        | {k.removeprefix("param."): v for k, v in g.items() if k.startswith("param.")}
    )
    for mode in ("eval", "train"):
        adaptor.train(mode == "train")
        levels = [g[f"in.level{i}"].clone().requires_grad_() for i in range(len(stated["in"]))]
        adapted = adaptor(levels)
        total = torch.stack([(a * g[f"in.cotangent{i}"]).sum() for i, a in enumerate(adapted)]).sum()
        gradients = torch.autograd.grad(total, levels)
        for i, (out, gradient) in enumerate(zip(adapted, gradients, strict=True)):
            torch.testing.assert_close(out, g[f"out.{mode}.level{i}"], **ADAPTOR)
            torch.testing.assert_close(gradient, g[f"grad.{mode}.level{i}"], **ADAPTOR)


@golden_file("labeldistill/channel_partition")
def test_channel_partition(path: Path) -> None:
    g = load(path)
    for part, seen in channel_parts(g["in.x"].shape[1]).items():
        assert torch.equal(g["in.x"][:, seen], g[f"out.{part}"])


@golden_file("labeldistill/feature_loss_b1", "labeldistill/feature_loss_b2")
def test_feature_loss(path: Path) -> None:
    g = load(path)
    heatmap = torch.cat([g[k] for k in by_number(g) if k.startswith("in.heatmap")], dim=1)
    taught = [g["in.teacher0"], g["in.teacher1"]]
    sizes = [t.shape[-2:] for t in taught]
    for i, mask in enumerate(object_masks(heatmap, sizes, binary=False)):
        torch.testing.assert_close(mask, g[f"out.mask{i}"], rtol=1e-6, atol=1e-6)
    for name, binary in (("soft", False), ("binary", True)):
        student = [g["in.student0"].clone().requires_grad_(), g["in.student1"].clone().requires_grad_()]
        loss = feature_loss(student, taught, object_masks(heatmap, sizes, binary))
        torch.testing.assert_close(loss, g[f"out.{name}"], **FEATURES)
        for i, gradient in enumerate(torch.autograd.grad(loss, student)):
            torch.testing.assert_close(gradient, g[f"grad.{name}.student{i}"], **FEATURES)
    everywhere = [torch.ones_like(t[:, :1]) for t in taught]
    loss = feature_loss([g["in.student0"], g["in.student1"]], taught, everywhere)
    torch.testing.assert_close(loss, g["out.no_mask"], **FEATURES)


@golden_file("labeldistill/detection_and_response_loss")
def test_detection_and_response(path: Path) -> None:
    g, stated = load(path), constants(path)
    tasks = by_number({k.split(".")[1] for k in g if k.startswith("in.task")})
    classes = [g[f"in.{task}.target_heatmap"].shape[1] for task in tasks]
    size, reach = stated["size"], stated["range"]
    head = CentreHeadConfig(
        tasks=tuple(tuple(f"{task}.{i}" for i in range(n)) for task, n in zip(tasks, classes, strict=True)),
        extent=(-reach, -reach, reach, reach), cell=2 * reach / size, max_objects=stated["max_objs"],
        code_weights=tuple(stated["code_weights"]), box_weight=stated["box weight"],
        nms_thresholds=(1.0,) * len(tasks),
    )  # fmt: skip

    def stacked(name: str) -> Tensor:
        return torch.stack([g[f"in.{task}.{name}"] for task in tasks], dim=1)

    def predictions(who: str) -> dict[str, Tensor]:
        heat = torch.cat([g[f"in.{task}.{who}.heatmap"] for task in tasks], dim=1)
        codes = [torch.cat([g[f"in.{task}.{who}.{b}"] for b in BOX_BRANCHES], dim=1) for task in tasks]
        return {"heatmap": heat.clone().requires_grad_(), "box": torch.stack(codes, dim=1).requires_grad_()}

    heatmap = torch.cat([g[f"in.{task}.target_heatmap"] for task in tasks], dim=1)
    targets = CentreTargets(heatmap, stacked("anno_box"), stacked("ind"), stacked("mask").bool())
    student, teacher = predictions("student"), predictions("teacher")
    before = {k: v.detach().clone() for k, v in teacher.items()}

    def agree(loss: Tensor, name: str) -> None:
        torch.testing.assert_close(loss, g[f"out.{name}_loss"], **RESPONSES)
        gradients = dict(zip(student, torch.autograd.grad(loss, list(student.values())), strict=True))
        for t, (task, heat) in enumerate(zip(tasks, gradients["heatmap"].split(classes, 1), strict=True)):
            codes = gradients["box"][:, t].split(tuple(BOX_BRANCHES.values()), dim=1)
            found = dict(zip(BOX_BRANCHES, codes, strict=True)) | {"heatmap": heat}
            for branch, gradient in found.items():
                expected = g.get(f"grad.{name}.{task}.{branch}")
                if expected is not None:
                    torch.testing.assert_close(gradient, expected, **RESPONSES)

    agree(torch.stack([*centre_losses(student, targets, head).values()]).sum(), "detection")
    taught = {k: v.detach() for k, v in teacher.items()}
    agree(torch.stack([*response_losses(student, taught, targets, head).values()]).sum(), "response")

    # the same through the term, which is given a student and its whole outputs
    detector = LabelEncoder(
        LabelEncoderConfig(
            classes=head.classes, hidden=4, channels=(4,), neck=SECONDFPNConfig(channels=(4,), strides=(1,)), head=head
        )
    )  # fmt: skip
    bev = FeatureMap(torch.zeros(len(heatmap), 1, size, size), BevGeometry(head.extent, head.cell, "ego"))
    context = Context(
        Outputs({"bev": bev}, student), {"teacher": Outputs({"bev_0": bev}, teacher)}, None, targets, detector
    )
    config = LabelDistillConfig.styled("released", lidar_weight=0.0, label_weight=0.0)
    (term,) = terms(config, {}, {})
    agree(term.weight * term(context), "response")
    assert all(p.grad is None for p in teacher.values())
    assert all(torch.equal(teacher[k], before[k]) for k in before)  # the released code clamps the teacher in place
