"""Distillation blocks and methods against recorded tensors of the released code (sets ``monodistill``, ``monoskd``)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import golden_file, golden_files
from torch import Tensor

from distill3d.distill.adapters import AdaptedTaps
from distill3d.distill.masks import box_mask
from distill3d.distill.methods import monodistill, monoskd
from distill3d.distill.methods.monodistill import MonoDistillConfig
from distill3d.distill.methods.monoskd import MonoSKDConfig
from distill3d.distill.relations import affinity_loss
from distill3d.distill.softrank import is_one_block, soft_rank

pytestmark = pytest.mark.golden


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file and the constants that its index states."""
    with np.load(path) as data:
        tensors = {k: torch.from_numpy(data[k]) for k in data}
    return tensors, json.loads((path.parent / "index.json").read_text())[path.name].get("constants", {})


def close(actual: Tensor, expected: Tensor, rtol: float = 1e-10, atol: float = 0.0) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rtol, atol=atol)


def close_to_peak(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Within ``tolerance`` of the largest expected magnitude."""
    close(actual, expected, 0.0, tolerance * float(expected.abs().max()))


def levels(g: dict[str, Tensor], prefix: str) -> list[Tensor]:
    """The tensors ``prefix``0, ``prefix``1, ..., as leaves of a graph where they are inputs."""
    found = [g[f"{prefix}{i}"] for i in range(len(g)) if f"{prefix}{i}" in g]
    return [t.requires_grad_() for t in found] if prefix.startswith("in.") else found


def pairs(g: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(levels(g, "in.student_"), levels(g, "in.teacher_"), strict=True))


@dataclass
class RecordedTargets:
    """The fields of ``ObjectTargets``, from the released code's arrays."""

    box2d: Tensor
    present: Tensor
    eligible: Tensor
    mask_2d: Tensor
    indices: Tensor
    heading_bin: Tensor

    @classmethod
    def read(cls, g: dict[str, Tensor]) -> "RecordedTargets":
        box2d = g["in.target.box2d_gt_head"]
        present = torch.arange(box2d.shape[1]) < g["in.target.obj_num"][:, None]
        eligible = present & (box2d != 0).any(-1)
        heading_bin = g["in.target.heading_bin"][..., 0]
        return cls(box2d, present, eligible, eligible, g["in.target.indices"], heading_bin)


@golden_file("monodistill/fusion_adapters")
def test_fusion_and_adapters(path: Path) -> None:
    g, _ = load(path)
    maps = levels(g, "in.backbone_")
    strides = [4 * 2**i for i in range(len(maps))]
    config = MonoDistillConfig(
        taps=tuple(f"backbone_{s}" for s in strides[1:]), fusion_taps=tuple(f"backbone_{s}" for s in strides)
    )
    channels = {tap: m.shape[1] for tap, m in zip(config.fusion_taps, maps, strict=True)}
    middle = g["param.rgb_fs.0.conv1.0.weight"].shape[0]
    adapted = AdaptedTaps(config.taps, channels, channels, config.fusion_taps, middle).double()
    theirs = {k.removeprefix("param."): v for k, v in g.items() if k.startswith("param.")}
    adapted.load_state_dict(monodistill.released_state_dict(theirs, config))
    fusion = adapted.fusion
    assert fusion is not None

    adapted.eval()
    fused = fusion(maps)
    outputs = [adapted.adapters[tap](f) for tap, f in zip(config.taps, fused[1:], strict=True)]
    for actual, expected in zip(fused, levels(g, "out.eval.fused_"), strict=True):
        close_to_peak(actual, expected, 1e-10)
    for actual, expected in zip(outputs, levels(g, "out.eval.adapted_"), strict=True):
        close_to_peak(actual, expected, 1e-10)

    scalar = sum((o * c).sum() for o, c in zip(outputs, levels(g, "in.cotangent_"), strict=True))
    assert isinstance(scalar, Tensor)
    scalar.backward()
    for i, leaf in enumerate(maps):
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        close_to_peak(gradient, g[f"grad.eval.backbone_{i}"], 1e-9)
    prefix = "grad.eval.param."
    recorded = {k.removeprefix(prefix): v for k, v in g.items() if k.startswith(prefix)}
    expected_gradients = monodistill.released_state_dict(recorded, config)
    assert len(expected_gradients) == len(recorded)
    for name, expected in expected_gradients.items():
        gradient = adapted.get_parameter(name).grad
        close_to_peak(torch.zeros_like(expected) if gradient is None else gradient, expected, 1e-9)

    adapted.train()
    for actual, expected in zip(fusion(maps), levels(g, "out.train.fused_"), strict=True):
        close_to_peak(actual, expected, 1e-10)
    prefix = "out.train.buffer."
    recorded = {k.removeprefix(prefix): v for k, v in g.items() if k.startswith(prefix)}
    expected_buffers = monodistill.released_state_dict(recorded, config)
    assert len(expected_buffers) == len(recorded)
    for name, expected in expected_buffers.items():
        close(adapted.get_buffer(name), expected, 1e-10, 1e-12)


@golden_file("monodistill/object_feature")
def test_object_feature(path: Path) -> None:
    g, constants = load(path)
    maps, box2d = pairs(g), g["in.target.box2d_gt"]
    count = torch.arange(box2d.shape[1])
    rule = MonoDistillConfig.styled("released").box_slice

    def masks(obj_num: Tensor) -> list[Tensor]:
        keep = count < obj_num[:, None]
        sizes = [(s.shape[-2], s.shape[-1]) for s, _ in maps]
        return [box_mask(box2d, keep, r, size, rule) for r, size in zip(constants["strides"], sizes, strict=True)]

    found = masks(g["in.target.obj_num"])
    for actual, expected in zip(found, levels(g, "out.mask_"), strict=True):
        close(actual, expected)
    loss = monodistill.object_feature_loss(maps, found, float(len(box2d)))
    close(loss, g["out.loss"])
    for actual, expected in zip(
        torch.autograd.grad(loss, [s for s, _ in maps]), levels(g, "grad.student_"), strict=True
    ):
        close_to_peak(actual, expected, 1e-10)
    nothing = masks(torch.zeros_like(g["in.target.obj_num"]))
    close(monodistill.object_feature_loss(maps, nothing, float(len(box2d))), g["out.loss_no_boxes"])


@golden_file("monodistill/response")
def test_response(path: Path) -> None:
    g, constants = load(path)
    heads = [k.removeprefix("in.student.") for k in g if k.startswith("in.student.")]
    student = {head: g[f"in.student.{head}"].requires_grad_() for head in heads}
    teacher = {head: g[f"in.teacher.{head}"] for head in heads}
    targets = RecordedTargets.read(g)
    config = MonoDistillConfig.styled("released")
    size = (student["depth"].shape[-2], student["depth"].shape[-1])
    region = monodistill.response_region(targets, constants["stride"], size, config.response_mask)
    close(region, g["out.mask"])
    slots = torch.ones_like(targets.mask_2d)
    parts = monodistill.response_losses(student, teacher, region, targets, slots, config.empty_region)
    for name, value in parts.items():
        close(value, g[f"out.term.{name.replace('_2d', '2d').replace('_3d', '3d')}"])
    loss = torch.stack(list(parts.values())).sum()
    close(loss, g["out.loss"])
    for head, gradient in zip(heads, torch.autograd.grad(loss, list(student.values())), strict=True):
        close_to_peak(gradient, g[f"grad.student.{head}"], 1e-10)


@pytest.mark.parametrize(
    "path",
    [*golden_file("monodistill/scene_affinity").args[1], *golden_file("monoskd/affinity_4level").args[1]],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_affinity(path: Path) -> None:
    g, constants = load(path)
    maps = pairs(g)
    normalised = constants.get("normalise", constants.get("normalise_features"))
    loss = affinity_loss(maps, float(len(maps[0][0])), "cosine" if normalised else "none")
    close(loss, g["out.loss"])
    for actual, expected in zip(
        torch.autograd.grad(loss, [s for s, _ in maps]), levels(g, "grad.student_"), strict=True
    ):
        close_to_peak(actual, expected, 1e-10)


@golden_file("monoskd/soft_rank_l2")
def test_soft_rank(path: Path) -> None:
    g, _ = load(path)
    recorded = [k.removeprefix("out.rank_").rsplit("_eps", 1) for k in g if k.startswith("out.rank_")]
    assert recorded
    for case, strength in recorded:
        x = g[f"in.x_{case}"].clone().requires_grad_()
        ranks = soft_rank(x, float(strength))
        close(ranks, g[f"out.rank_{case}_eps{strength}"], 0.0, 1e-7)
        (gradient,) = torch.autograd.grad(ranks, x, g[f"in.cotangent_{case}"])
        close_to_peak(gradient, g[f"grad.x_{case}_eps{strength}"], 1e-8)


SPEARMAN = [path for path in golden_files("monoskd") if path.stem.startswith("spearman_")]


@pytest.mark.parametrize("path", SPEARMAN, ids=[f"monoskd/{path.stem}" for path in SPEARMAN])
def test_spearman(path: Path) -> None:
    g, constants = load(path)
    maps = pairs(g)
    config = MonoSKDConfig.styled("released", strength=constants["strength"])
    loss = monoskd.spearman_loss(maps, config)
    close(loss, g["out.loss"], 0.0, 1e-9)
    leaves = [s for s, _ in maps] + [t for _, t in maps]
    recorded = levels(g, "grad.student_") + levels(g, "grad.teacher_")
    for actual, expected in zip(torch.autograd.grad(loss, leaves), recorded, strict=True):
        close_to_peak(actual, expected, 1e-9)
    # level by level, and the closed form wherever the soft rank is one block
    for i, expected in enumerate(g["out.level_losses"]):
        close(monoskd.spearman_loss([maps[i], (maps[-1][0], maps[-1][1])], config)
              - monoskd.spearman_loss([maps[-1]], config), expected, 0.0, 1e-9)  # fmt: skip
    if all(bool(is_one_block(t.flatten(1) / constants["strength"])) for _, t in maps):
        close(loss, g["out.closed_form_loss"], 0.0, 1e-9)
