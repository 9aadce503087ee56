"""Distillation blocks and methods against recorded tensors of the released code (sets ``monodistill``, ``monoskd``,
``monostl``)."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import golden_file, golden_files
from torch import Tensor

from distill3d.distill import responses
from distill3d.distill.adapters import AdaptedTaps
from distill3d.distill.masks import box_mask, paint_boxes
from distill3d.distill.methods import monodistill, monoskd, monostl
from distill3d.distill.methods.monodistill import MonoDistillConfig
from distill3d.distill.methods.monoskd import MonoSKDConfig
from distill3d.distill.methods.monostl import MonoSTLConfig
from distill3d.distill.relations import affinity_loss
from distill3d.distill.softrank import is_one_block, soft_rank
from distill3d.layers.image.heatmap import gather_cells
from distill3d.layers.image.roi import RoISlots

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
        mask_2d = g.get("in.target.mask_2d", eligible).bool()
        return cls(
            box2d, present, eligible, mask_2d, g.get("in.target.indices", torch.zeros_like(heading_bin)), heading_bin
        )


@golden_file("monodistill/fusion_adapters", "monostl/fusion_adapters")
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


@golden_file("monodistill/object_feature", "monostl/object_feature")
def test_object_feature(path: Path) -> None:
    g, constants = load(path)
    maps, box2d = pairs(g), g["in.target.box2d_gt"]
    stated = constants.get("extra_divisor")
    divisor = float(stated if isinstance(stated, int | float) else len(box2d))  # monodistill says "batch size"
    count = torch.arange(box2d.shape[1])
    rule = MonoDistillConfig.styled("released").box_slice

    def masks(obj_num: Tensor) -> list[Tensor]:
        keep = count < obj_num[:, None]
        sizes = [(s.shape[-2], s.shape[-1]) for s, _ in maps]
        return [box_mask(box2d, keep, r, size, rule) for r, size in zip(constants["strides"], sizes, strict=True)]

    found = masks(g["in.target.obj_num"])
    for actual, expected in zip(found, levels(g, "out.mask_"), strict=True):
        close(actual, expected)
    loss = monodistill.object_feature_loss(maps, found, divisor)
    close(loss, g["out.loss"])
    for actual, expected in zip(
        torch.autograd.grad(loss, [s for s, _ in maps]), levels(g, "grad.student_"), strict=True
    ):
        close_to_peak(actual, expected, 1e-10)
    nothing = masks(torch.zeros_like(g["in.target.obj_num"]))
    close(monodistill.object_feature_loss(maps, nothing, divisor), g["out.loss_no_boxes"])


@golden_file("monodistill/response", "monostl/response")
def test_response(path: Path) -> None:
    g, constants = load(path)
    heads = [k.removeprefix("in.student.") for k in g if k.startswith("in.student.")]
    student = {head: g[f"in.student.{head}"].requires_grad_() for head in heads}
    teacher = {head: g[f"in.teacher.{head}"] for head in heads}
    targets = RecordedTargets.read(g)
    config = MonoDistillConfig.styled("released")
    size = (student["depth"].shape[-2], student["depth"].shape[-1])
    region = responses.response_region(targets, constants["stride"], size, config.response_mask)
    close(region, g["out.mask"])
    slots = torch.ones_like(targets.mask_2d)
    parts = responses.response_losses(student, teacher, region, targets, slots, config.empty_region)
    for name, value in parts.items():
        close(value, g[f"out.term.{name.replace('_2d', '2d').replace('_3d', '3d')}"])
    loss = torch.stack(list(parts.values())).sum()
    close(loss, g["out.loss"])
    for head, gradient in zip(heads, torch.autograd.grad(loss, list(student.values())), strict=True):
        close_to_peak(gradient, g[f"grad.student.{head}"], 1e-10)


@golden_file("monoskd/response")
def test_response_of_regions(path: Path) -> None:
    """DID-M3D's: dense 2D heads, and the values of M regions by slot."""
    g, constants = load(path)
    names = {"offset_2d": "offset_2d", "size_2d": "size_2d", "roi_offset_3d": "offset_3d", "roi_size_3d": "size_3d",
             "roi_visual_depth": "vis_depth", "roi_attribute_depth": "att_depth", "roi_depth": "ins_depth",
             "roi_heading": "heading"}  # fmt: skip
    leaves = {ours: g[f"in.student.{theirs}"].requires_grad_() for ours, theirs in names.items()}
    targets = RecordedTargets.read(g)

    def by_slot(values: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        slots = RoISlots.at_targets(mask.long(), mask.long(), mask)
        return {k: slots.spread(v[: len(slots.image)]) if k.startswith("roi_") else v for k, v in values.items()}

    teacher = {ours: g[f"in.teacher.{theirs}"] for ours, theirs in names.items()}
    region = responses.response_region(
        targets, constants["stride"], (leaves["size_2d"].shape[-2], leaves["size_2d"].shape[-1]), "zero_rows"
    )
    close(region, g["out.mask"])

    def parts(mask: Tensor) -> dict[str, Tensor]:
        said = by_slot(leaves, mask), by_slot(teacher, mask)
        return responses.response_losses(*said, region, replace(targets, mask_2d=mask), mask)

    found = parts(targets.mask_2d)
    depths = ("roi_visual_depth", "roi_attribute_depth", "roi_depth")
    for recorded, ours in {"offset2d": ("offset_2d",), "size2d": ("size_2d",), "offset3d": ("roi_offset_3d",),
                           "size3d": ("roi_size_3d",), "depth": depths, "heading": ("heading",)}.items():  # fmt: skip
        close(torch.stack([found[name] for name in ours]).sum(), g[f"out.term.{recorded}"])
    loss = torch.stack(list(found.values())).sum()
    close(loss, g["out.loss"])
    for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
        close_to_peak(gradient, g[f"grad.student.{names[name]}"], 1e-10)
    nobody = parts(torch.zeros_like(targets.mask_2d))
    close(torch.stack(list(nobody.values())).sum(), g["out.loss_no_roi"])


@golden_file("monodistill/scene_affinity", "monoskd/affinity_4level", "monostl/scene_affinity")
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


def log_scale(confidence: Tensor) -> Tensor:
    """s of the recorded c = exp(-s); in double precision the way back costs no digit that counts."""
    return -confidence.log()


def painted_boxes(g: dict[str, Tensor], value: Tensor, keep: Tensor, sizes: list[tuple[int, int]]) -> list:
    config = MonoSTLConfig.styled("released")
    value = torch.where(g["in.target.indices_all"] == 0, monostl.SENTINEL_WEIGHT, value)
    strides = [8 * 2**i for i in range(len(sizes))]
    return [
        paint_boxes(value, g["in.target.box2d_gt"], keep, r, size, config.box_slice)
        for r, size in zip(strides, sizes, strict=True)
    ]


def visited(g: dict[str, Tensor]) -> Tensor:
    """The label lines that the released loops visit."""
    slots = torch.arange(g["in.target.box2d_gt"].shape[1])
    return slots < g["in.target.obj_num"][:, None]


@golden_file("monostl/uncertainty_weights")
def test_uncertainty_weights(path: Path) -> None:
    g, _ = load(path)
    scale = {
        who: gather_cells(g[f"in.{who}_depth"], g["in.target.indices_all"])[..., 1] for who in ("student", "teacher")
    }
    for who, s in scale.items():
        close(torch.exp(-s), g[f"out.conf_{who}"])
    sizes = [(int(h), int(w)) for _, h, w in g["in.level_shapes"]]
    for who in ("student", "teacher"):
        value = monostl.transfer_weight(scale["student"], scale["teacher"], who)
        for i, (weight, mask) in enumerate(painted_boxes(g, value, visited(g), sizes)):
            close(weight, g[f"out.weight_{who}_{i}"], 1e-12, 1e-12)
            close(mask, g[f"out.mask_{i}"])


@golden_file("monostl/dasfd_student", "monostl/dasfd_teacher")
def test_selective_features(path: Path) -> None:
    g, constants = load(path)
    maps = pairs(g)
    sizes = [(s.shape[-2], s.shape[-1]) for s, _ in maps]
    select = path.stem.removeprefix("dasfd_")

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        value = monostl.transfer_weight(log_scale(student), log_scale(teacher), select)
        return monostl.selective_feature_loss(maps, painted_boxes(g, value, visited(g), sizes), constants["divisor"])

    actual = loss(g["in.conf_student"], g["in.conf_teacher"])
    close(actual, g["out.loss"])
    gradients = torch.autograd.grad(actual, [s for s, _ in maps])
    for gradient, expected in zip(gradients, levels(g, "grad.student_"), strict=True):
        close_to_peak(gradient, expected, 1e-10)
    sure = torch.full_like(g["in.conf_student"], 2.0), torch.zeros_like(g["in.conf_student"])
    close(loss(*sure), g["out.loss_all_weights_zero"], 1e-10, 1e-14)


@golden_file("monostl/dasrd", "monostl/dasrd_single_object")
def test_selective_relations(path: Path) -> None:
    g, _ = load(path)
    image, slot = (g["in.target.indices_all"] != 0).nonzero(as_tuple=True)
    maps = [(s, t, 8 * 2**i) for i, (s, t) in enumerate(pairs(g))]
    teacher = log_scale(g["in.conf_teacher"])[image, slot]

    def check(config: MonoSTLConfig, value: str, gradient: str) -> None:
        loss = monostl.selective_relation_loss(maps, g["in.target.box2d_gt"][image, slot], image, 0 * teacher, teacher,
                                               config)  # fmt: skip
        close(loss, g[value])
        for actual, expected in zip(
            torch.autograd.grad(loss, [s for s, _, _ in maps]), levels(g, gradient), strict=True
        ):
            close_to_peak(actual, expected, 1e-10)

    check(MonoSTLConfig.styled("released"), "out.loss", "grad.student_")
    if "out.loss_unweighted" in g:
        ablation = MonoSTLConfig.styled("released", rd_uncertainty="none")
        check(ablation, "out.loss_unweighted", "grad.unweighted.student_")
