"""SGM3D's head loss, labels and teacher together, against recorded tensors of the released code (set ``sgm3d``)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import constants, golden_file
from torch import Tensor

from distill3d.boxes import IGNORE
from distill3d.distill.methods.sgm3d import SGM3DConfig, anchor_loss, boxes, feature_loss, matched, object_losses
from distill3d.layers.ground.bev_second import BevBackboneConfig
from distill3d.layers.heads.anchor_head import AnchorHead, AnchorTargets, focal_head
from distill3d.layers.heads.anchors import BACKGROUND, assign, encode

pytestmark = pytest.mark.golden
RTOL, ATOL, GRADIENT_ATOL = 2e-5, 1e-7, 1e-6
SIDE = ("cls", "box", "dir")


def make_head(about: dict[str, Any]) -> AnchorHead:
    """A head whose anchors stand on the recorded map; what it would see does not matter."""
    backbone = BevBackboneConfig((0,), (1,), (1,), (1,), (1,))
    weights = {f"{name}_weight": about["weights"][name] for name in ("cls", "loc", "dir")}
    return AnchorHead(1, tuple(about["range"]), tuple(about["map"]), focal_head(backbone=backbone, **weights))


@golden_file(
    "sgm3d/losses_two_images", "sgm3d/losses_no_positive", "sgm3d/losses_no_positive_batch", "sgm3d/losses_one_image",
)  # fmt: skip
def test_head_loss_as_released(path: Path) -> None:
    about = constants(path)
    with np.load(path) as data:
        g = {k: torch.from_numpy(data[k]) for k in data}
    g = {k: v.requires_grad_() if k.startswith("in.") and v.is_floating_point() else v for k, v in g.items()}
    head, weights = make_head(about), about["weights"]
    student = {name: g[f"in.{name}"] for name in SIDE}
    teacher = {name: g[f"in.teacher.{name}"] for name in SIDE}
    torch.testing.assert_close(head.anchors.flatten(0, 3), g["in.anchors"])

    # labels: the released assigner's, found anew
    rows, kinds = g["in.gt_boxes"].detach()[..., :7], g["in.gt_boxes"].detach()[..., 7].long() - 1
    kinds = torch.where(kinds < 0, IGNORE, kinds)
    labels, row = assign(head.anchors, head.config.classes, rows, kinds)
    assert torch.equal(labels.int(), g["in.labels"])
    positive = labels > BACKGROUND
    image, anchor = positive.nonzero(as_tuple=True)
    code = encode(rows[image, row[image, anchor]], g["in.anchors"][anchor])
    torch.testing.assert_close(code, g["in.reg_targets"][image, anchor], rtol=1e-5, atol=1e-6)
    targets = AnchorTargets(rows, kinds, labels, row, torch.ones(len(labels), dtype=torch.bool))

    config = SGM3DConfig.styled(
        "released", foreground_weight=weights["fg"], background_weight=weights["bg"], least_score=about["scores"],
        least_overlap=about["iou"],
    )  # fmt: skip
    losses = head.losses({name: value.unflatten(1, (*about["map"], -1)).flatten(3) for name, value in student.items()},
                         targets)  # fmt: skip
    used = positive.unflatten(1, (*about["map"], about["anchors_per_cell"])).any(-1)
    feature = feature_loss(g["in.feature"], g["in.teacher.feature"], used, config.cell_count)
    foreground, background = (
        anchor_loss(student["cls"], teacher["cls"], labels, replace(config, **{f"{other}_weight": 0.0}))
        for other in ("background", "foreground")
    )
    decoded = {**student, "box": boxes(student, g["in.anchors"].detach())}
    of_objects = object_losses(decoded, teacher, config)
    found = {
        **losses, "feature": weights["feature"] * feature, "anchor_fg": weights["anchor"] * foreground,
        "anchor_bg": weights["anchor"] * background,
        "object": weights["object"] * torch.stack(list(of_objects.values())).sum(),
    }  # fmt: skip
    total = torch.stack(list(found.values())).sum()
    found |= {f"object_{name}": part for name, part in of_objects.items()} | {"total": total}
    for name, value in found.items():
        torch.testing.assert_close(value, g[f"out.{name}"].reshape(()), rtol=RTOL, atol=ATOL, msg=name)
    pairs = torch.bincount(matched(decoded, teacher, config)[0], minlength=len(labels))
    assert torch.equal(pairs, g["out.pairs"])

    leaves = {name: g[f"in.{name}"] for name in (*SIDE, "feature", *(f"teacher.{n}" for n in (*SIDE, "feature")))}
    scores = torch.stack([found[name] for name in ("cls", "anchor_fg", "anchor_bg")]).sum()
    wanted = {"": total, "only_feature.": found["feature"], "only_object.": found["object"], "only_cls_anchor.": scores}
    for prefix, value in wanted.items():
        names = [name for name in leaves if f"grad.{prefix}{name}" in g]
        found_gradients = gradients(value, [leaves[name] for name in names])
        assert names
        for name, gradient in zip(names, found_gradients, strict=True):
            expected = g[f"grad.{prefix}{name}"]
            torch.testing.assert_close(gradient, expected, rtol=0, atol=GRADIENT_ATOL, msg=prefix + name)


def gradients(value: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Zeros where there is none."""
    found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]
