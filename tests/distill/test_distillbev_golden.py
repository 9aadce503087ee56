"""DistillBEV's regions, adaptors and losses against recorded tensors of the released code (set ``distillbev``)."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import constants, golden_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from distill3d.data.surround import SurroundBatch, SurroundObjectBatch
from distill3d.detectors.base import BevGeometry, FeatureMap, Outputs
from distill3d.distill.adapters import MapAdaptor
from distill3d.distill.context import Context
from distill3d.distill.ground_regions import (
    at_size,
    false_positive_scale,
    false_positives,
    footprint_cells,
    footprint_regions,
)
from distill3d.distill.map_attention import channel_attention, spatial_attention
from distill3d.distill.methods.distillbev import (
    DistillBEVConfig,
    Level,
    channel_loss,
    compared,
    in_axes,
    pooled,
    region_loss,
    region_weights,
    spatial_loss,
    terms,
)
from distill3d.layers.heads.centre_head import CODE, CentreTargets
from distill3d.layers.image.heatmap import clamped_sigmoid

pytestmark = pytest.mark.golden
SCALES = {"rtol": 1e-5, "atol": 0.0}
FALSE_SCALES = {"rtol": 1e-6, "atol": 0.0}
#: m; whether cells whose point lies so near to an edge are held is not asked.
EDGE = 1e-5
ADAPTED = {"rtol": 1e-8, "atol": 1e-10}
LOSSES = {"rtol": 1e-6, "atol": 1e-12}
#: Gradients below this are rounding: those of biases before a batch norm are 0.
NEGLIGIBLE = 1e-10

#: Released names of options, and ours.
RULES = {
    "teacher": "teacher",
    "student": "student",
    "teacher_selected_student": "student_alone",
    "teacher_and_teacher_selected_student": "teacher_or_student_alone",
    "teacher+teacher_selected_student": "teacher_or_student_alone",
    "none": "none",
}
FALSE_POSITIVE_SCALES = {"average": "average", "dfs": "visits"}
ATTENTIONS = {"teacher": "teacher", "teacher_student": "both"}
REGION_SCALES = {"combine_gt": "larger", "separate_gt": "own"}
POOLINGS = {"identity": "none", "avgpool": "average", "maxpool": "max"}
LOSS_NAMES = {
    "kd_fg_feat_loss": "foreground",
    "kd_bg_feat_loss": "background",
    "kd_fp_bg_feat_loss": "false_positive",
    "kd_spatial_loss": "spatial",
    "kd_channel_loss": "channel",
}


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as data:
        return {k: torch.from_numpy(data[k]) for k in data}


def numbered(g: dict[str, Tensor], prefix: str) -> list[Tensor]:
    """``prefix0``, ``prefix1``, ..."""
    found = []
    while f"{prefix}{len(found)}" in g:
        found.append(g[f"{prefix}{len(found)}"])
    return found


def ours(boxes: list[Tensor]) -> SurroundObjectBatch:
    """Rows x, y, z, w, l, h, yaw, velocity whose yaw turns clockwise, and whose length lies along y at yaw 0."""
    rows = pad_sequence([b.reshape(-1, 9) for b in boxes], batch_first=True)
    present = pad_sequence([torch.ones(len(b), dtype=torch.bool) for b in boxes], batch_first=True)
    none = torch.zeros_like(present, dtype=torch.int64)
    return SurroundObjectBatch(
        rows[..., :3], rows[..., [4, 3, 5]], -rows[..., 6] + math.pi / 2, rows[..., 7:], none, none, present
    )


def ground(stated: dict[str, Any]) -> BevGeometry:
    x0, y0, _, x1, y1, _ = stated["point_cloud_range"]
    return BevGeometry((x0, y0, x1, y1), stated["cell"], "ego")


def named(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries below a prefix, with the names of our adaptors: conv1, norm1, ... or fc1, fc2, else one layer."""
    steps = {"conv": (3, 0), "norm": (3, 1), "fc": (2, 0)}
    found = {}
    for name, value in state.items():
        if not name.startswith(prefix):
            continue
        layer, _, rest = name.removeprefix(prefix).removeprefix("1.").rpartition(".")
        kind = layer.rstrip("0123456789")
        stride, first = steps.get(kind, (1, 0))
        place = stride * (int(layer.removeprefix(kind)) - 1) + first if kind else 0
        found[f"layers.{place}.{rest}"] = value
    return found


def filled(module: nn.Module, state: dict[str, Tensor]) -> None:
    counters = {k: v for k, v in module.state_dict().items() if k.endswith("num_batches_tracked")}
    running = {k: v for k, v in module.state_dict().items() if "running" in k}  # recorded where they are looked at
    module.load_state_dict(running | counters | state)


# -------------------------------------------------------------------------------------------------------------- regions


def on_an_edge(
    objects: SurroundObjectBatch, geometry: BevGeometry, size: tuple[int, int], point: Any, margin: int
) -> Tensor:
    """The cells whose point lies within ``EDGE`` of an edge of some footprint, as it is or widened."""
    found = torch.zeros(len(objects.present), 1, *size, dtype=torch.bool)
    boxes = (objects.centre, objects.size, objects.yaw, objects.present)
    for widened in {0.0, margin * geometry.cell}:
        held = [footprint_cells(*boxes, geometry, size, point, widened + 2 * shift) for shift in (-EDGE, EDGE)]
        found |= (held[0] != held[1]).any(1, keepdim=True)
    return found


@golden_file("distillbev/foreground_masks_a", "distillbev/foreground_masks_b")
def test_foreground_masks(path: Path) -> None:
    g, stated = load(path), constants(path)
    objects, size = ours(numbered(g, "in.boxes")), (stated["size"],) * 2
    margin = {"margin": stated["context_length"], "margin_share": stated["context_weight"]}
    for name, options in (
        ("plain", {"point": "corner"}), ("centres", {"point": "centre"}), ("context", {"point": "corner", **margin})
    ):  # fmt: skip
        found = footprint_regions(objects, ground(stated), size, **options)
        clear = ~on_an_edge(objects, ground(stated), size, options["point"], options.get("margin", 0))
        assert torch.equal(found.foreground[clear], g[f"out.{name}.foreground"][clear]), name
        recorded = g[f"out.{name}.foreground_scale"]
        torch.testing.assert_close(found.foreground_scale[clear], recorded[clear], **SCALES)
        counted = clear.flatten(1).all(1)  # moments whose number of cells is beyond doubt
        background = found.background_scale.expand_as(found.foreground)
        torch.testing.assert_close(background[counted], g[f"out.{name}.background_scale"][counted], **SCALES)


@golden_file("distillbev/false_positive_a", "distillbev/false_positive_b", "distillbev/false_positive_c")
def test_false_positives(path: Path) -> None:
    g, stated = load(path), constants(path)
    labelled, logits, student = (
        torch.cat(numbered(g, f"in.{name}"), dim=1) for name in ("target", "teacher_logit", "student_prob")
    )
    foreground = g["in.foreground"] > 0
    modes = [name.split(".")[1] for name in g if name.endswith(".mask")]
    assert modes
    for mode in modes:
        found = false_positives(
            RULES[mode], labelled, clamped_sigmoid(logits), student, stated["threshold"],  # pyright: ignore[reportArgumentType]
            stated["groundtruth_threshold"],
        )  # fmt: skip
        found = at_size(found, (foreground.shape[-2], foreground.shape[-1])) & ~foreground
        assert torch.equal(found.float(), g[f"out.{mode}.mask"]), mode
        assert torch.equal(found.sum((1, 2, 3)).float(), g[f"out.{mode}.count"])
        for name, form in FALSE_POSITIVE_SCALES.items():
            scale = false_positive_scale(found, form)  # pyright: ignore[reportArgumentType]
            torch.testing.assert_close(scale, g[f"out.{mode}.scale_{name}"], **FALSE_SCALES)


@golden_file("distillbev/adaptors")
def test_adaptors(path: Path) -> None:
    g, stated = load(path), constants(path)
    parameters = {k.removeprefix("param."): v for k, v in g.items() if k.startswith("param.")}
    for kind in stated["adaptors"]:
        cotangent = g[f"in.{kind}.cotangent"]
        size = (cotangent.shape[-2], cotangent.shape[-1])
        adaptor = MapAdaptor(kind, g["in.x"].shape[1], cotangent.shape[1]).double()
        filled(adaptor, named(parameters, f"{kind}."))
        x = g["in.x"].clone().requires_grad_()
        out = adaptor.eval()(x, size)
        torch.testing.assert_close(out, g[f"out.{kind}.eval"], **ADAPTED)
        (gradient,) = torch.autograd.grad((out * cotangent).sum(), x)
        torch.testing.assert_close(gradient, g[f"grad.{kind}.x"], **ADAPTED)
        torch.testing.assert_close(adaptor.train()(x, size), g[f"out.{kind}.train"], **ADAPTED)


# --------------------------------------------------------------------------------------------------------------- losses


def level_losses(level: Level, conv: nn.Module) -> dict[str, Tensor]:
    regions = {region: region_loss(level, region) for region in level.weight}
    return regions | {
        "spatial": spatial_loss(level.student, level.teacher, conv),
        "channel": channel_loss(level.student, level.teacher),
    }


def spatial_convs(g: dict[str, Tensor], count: int) -> nn.ModuleList:
    convs = nn.ModuleList(nn.Conv2d(1, 1, 3, padding=1) for _ in range(count)).double()
    convs.load_state_dict({k.removeprefix("param.spatial_wise_adaptations."): v for k, v in g.items()
                           if k.startswith("param.spatial_wise_adaptations.")})  # fmt: skip
    return convs


def agree_gradients(
    total: Tensor, g: dict[str, Tensor], inputs: dict[str, Tensor], adaptors: Iterable[nn.Module], convs: nn.Module
) -> None:
    """Of the features and of everything that learns with them."""
    leaves = {f"grad.{name}": x for name, x in inputs.items()}
    expected = dict(g)
    for i, adaptor in enumerate(adaptors):
        of_level = named(g, f"grad.channel_wise_adaptations.{i}.")
        for name, parameter in adaptor.named_parameters():
            leaves[f"level{i}.{name}"] = parameter
            expected[f"level{i}.{name}"] = of_level[name]
    for name, parameter in convs.named_parameters():
        leaves[f"grad.spatial_wise_adaptations.{name}"] = parameter
    gradients = torch.autograd.grad(total, list(leaves.values()))
    for name, gradient in zip(leaves, gradients, strict=True):
        largest = float(expected[name].abs().max())
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-6 * largest + NEGLIGIBLE, msg=name)


def config_of(stated: dict[str, Any]) -> DistillBEVConfig:
    """The options of a recorded loss of one level."""
    weights = {f"{name}_weight": value for name, value in stated["weights"].items()}
    weights |= {"channel_weight": stated["weights"].get("channel", 0.0)}
    fields: dict[str, Any] = {
        "cell_point": "corner",
        "channel_attention": "channel" in stated["weights"],
        "attention": ATTENTIONS[stated.get("spatial_attention", "teacher")],
        "student_attention": stated.get("spatial_student_ratio", 1.0),
        "scale": REGION_SCALES[stated.get("scale_mask", "combine_gt")],
        "false_positives": RULES[stated["false_positive"]],
        "false_positive_scale": FALSE_POSITIVE_SCALES[stated.get("fp_scale_mode", "average")],
        "threshold": stated["threshold"],
        "label_threshold": stated.get("groundtruth_threshold"),
    }
    for name in ("spatial_temperature", "channel_temperature"):
        fields[name] = stated.get(name, 0.5)
    return DistillBEVConfig.styled("released", **weights | fields)


def agree_losses(g: dict[str, Tensor], weights: dict[str, Tensor], config: DistillBEVConfig) -> None:
    """Of a recorded level: every term, the total and its gradients."""
    student, teacher = g["in.student"].clone().requires_grad_(), g["in.teacher"]
    size = (teacher.shape[-2], teacher.shape[-1])
    adaptor = MapAdaptor("1x1conv", student.shape[1], teacher.shape[1]).double()
    filled(adaptor, named({k.removeprefix("param."): v for k, v in g.items()}, "channel_wise_adaptations.0."))
    convs = spatial_convs(g, 1)
    losses = level_losses(compared(adaptor(student, size), teacher, weights, config), convs[0])
    total = student.new_zeros(())
    for released, name in LOSS_NAMES.items():
        if f"out.{released}" in g:
            weighted = getattr(config, f"{name}_weight") * losses[name]
            torch.testing.assert_close(weighted, g[f"out.{released}"], **LOSSES)
            total = total + weighted
    torch.testing.assert_close(total, g["out.total"], **LOSSES)
    agree_gradients(total, g, {"student": student}, [adaptor], convs)


@golden_file(
    "distillbev/loss_released", "distillbev/loss_teacher_student_separate", "distillbev/loss_false_positive_dfs",
    "distillbev/loss_false_positive_average",
)  # fmt: skip
def test_losses_of_a_level(path: Path) -> None:
    g, stated = load(path), constants(path)
    config = config_of(stated)
    teacher = g["in.teacher"]
    size = (teacher.shape[-2], teacher.shape[-1])
    regions = footprint_regions(ours(numbered(g, "in.boxes")), ground(stated), size, config.cell_point)
    assert torch.equal(regions.foreground, g["out.foreground"])
    torch.testing.assert_close(regions.foreground_scale, g["out.foreground_scale"], **SCALES)
    mistaken = None
    if config.false_positives != "none":
        labelled, logits, seen = (
            torch.cat(numbered(g, f"in.{name}"), dim=1) for name in ("target", "teacher_logit", "student_prob")
        )
        assert config.false_positives != "teacher_boxes"
        near = config.threshold if config.label_threshold is None else config.label_threshold
        mistaken = false_positives(
            config.false_positives, labelled, clamped_sigmoid(logits), seen, config.threshold, near
        )
        mistaken = at_size(mistaken, size) & regions.background
        assert torch.equal(mistaken.float(), g["out.false_positive"])
        assert torch.equal(mistaken.sum((1, 2, 3)).float(), g["out.false_positive_count"])
    without = regions if mistaken is None else regions.without(mistaken)
    background = without.background_scale.expand_as(regions.foreground)
    torch.testing.assert_close(background, g["out.background_scale"], **SCALES)
    weights = region_weights(regions, mistaken, config)
    if mistaken is not None:
        torch.testing.assert_close(weights["false_positive"], g["out.false_positive_scale"], **FALSE_SCALES)
    torch.testing.assert_close(
        spatial_attention(teacher, config.spatial_temperature), g["out.teacher_spatial_attention"], **LOSSES
    )
    torch.testing.assert_close(
        channel_attention(teacher, config.channel_temperature), g["out.channel_attention"], **LOSSES
    )

    agree_losses(g, weights, config)


@golden_file("distillbev/bevformer_loss", "distillbev/bevformer_loss_false_positive")
def test_losses_of_the_bevformer_variant(path: Path) -> None:
    g, stated = load(path), constants(path)
    config = config_of({**stated, "false_positive": "none"})
    teacher = g["in.teacher"]
    size = (teacher.shape[-2], teacher.shape[-1])
    objects = ours(numbered(g, "in.boxes"))
    regions = footprint_regions(objects, ground(stated), size, "centre")
    assert torch.equal(regions.foreground, g["out.foreground"])
    mistaken = None
    if stated["false_positive"] == "teacher":
        boxes = ours(numbered(g, "in.teacher_boxes"))
        scores = pad_sequence(numbered(g, "in.teacher_scores"), batch_first=True)
        sure = boxes.present & (scores > config.threshold)
        cells = footprint_cells(boxes.centre, boxes.size, boxes.yaw, sure, ground(stated), size)
        mistaken = in_axes(cells.any(1, keepdim=True) & regions.background, "xy")
        assert torch.equal(mistaken.float(), g["out.false_positive"])
    weights = region_weights(regions, mistaken, config)
    if mistaken is not None:
        torch.testing.assert_close(weights["false_positive"], g["out.false_positive_scale"], **FALSE_SCALES)
    agree_losses(g, weights, config)


def of_levels(
    g: dict[str, Tensor], taps: list[tuple[str, str]], kinds: list[str]
) -> tuple[dict[str, Tensor], nn.ModuleList]:
    """The student's maps by tap, and a filled adaptor for each level."""
    maps = {tap: g[f"in.student.{tap}"].clone().requires_grad_() for tap, _ in taps}
    parameters = {k.removeprefix("param."): v for k, v in g.items()}
    adaptors = nn.ModuleList()
    for i, ((tap, other), kind) in enumerate(zip(taps, kinds, strict=True)):
        adaptor = MapAdaptor(kind, maps[tap].shape[1], g[f"in.teacher.{other}"].shape[1]).double()  # pyright: ignore[reportArgumentType]
        filled(adaptor, named(parameters, f"channel_wise_adaptations.{i}."))
        adaptors.append(adaptor)
    return maps, adaptors


@golden_file("distillbev/loss_multi_level")
def test_losses_of_several_levels(path: Path) -> None:
    g, stated = load(path), constants(path)
    taps = [(tap, other) for tap, other in stated["levels"]]
    maps, adaptors = of_levels(g, taps, stated["adaptation"])
    convs = spatial_convs(g, len(taps))
    geometry, reach = ground(stated), stated["point_cloud_range"]
    total = torch.zeros((), dtype=torch.float64)
    for i, (tap, other) in enumerate(taps):
        config = DistillBEVConfig.styled(
            "released", attention=ATTENTIONS[stated["spatial_attentions"][i]], channel_attention=True,
            false_positives="none",
        )  # fmt: skip
        source = pooled(
            FeatureMap(g[f"in.teacher.{other}"], geometry), POOLINGS[stated["teacher_adaptation"][i]]  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
        size = (source.tensor.shape[-2], source.tensor.shape[-1])
        cells = BevGeometry(geometry.extent, (reach[3] - reach[0]) / size[1], "ego")
        regions = footprint_regions(ours(numbered(g, "in.boxes")), cells, size, "corner")
        level = compared(
            adaptors[i](maps[tap], size), source.tensor, region_weights(regions, None, config), config
        )  # fmt: skip
        losses = level_losses(level, convs[i])
        for released, name in LOSS_NAMES.items():
            if f"out.{released}_{tap}_{other}" in g:
                weights = stated[f"{name}_weights"]
                weighted = weights[min(i, len(weights) - 1)] * losses[name]
                torch.testing.assert_close(weighted, g[f"out.{released}_{tap}_{other}"], **LOSSES)
                total = total + weighted
    torch.testing.assert_close(total, g["out.total"], **LOSSES)
    agree_gradients(total, g, {f"student.{tap}": x for tap, x in maps.items()}, adaptors, convs)


@golden_file("distillbev/loss_script")
def test_the_terms_with_the_options_of_the_script(path: Path) -> None:
    """The whole method in the style ``released``, with no option chosen but what the tensors are called."""
    g, stated = load(path), constants(path)
    options = stated["options"]
    student_taps, teacher_taps = options["student_feat_pos"], options["teacher_feat_pos"]
    pairs = list(zip(student_taps, teacher_taps, strict=True))
    maps, adaptors = of_levels(g, pairs, options["adaptation_type"])
    config = DistillBEVConfig.styled("released", taps=tuple(student_taps), teacher_taps=tuple(teacher_taps))
    assert list(config.adaptors) == options["adaptation_type"]
    taught = {tap: g[f"in.teacher.{tap}"] for tap in teacher_taps}
    found = terms(config, {k: v.shape[1] for k, v in maps.items()}, {k: v.shape[1] for k, v in taught.items()})
    by_name: dict[str, Any] = {term.name: term.double() for term in found}
    by_name["foreground"].levels.adaptors.load_state_dict(adaptors.state_dict())
    convs = spatial_convs(g, len(pairs))
    by_name["spatial"].convs.load_state_dict(convs.state_dict())

    def features(tensors: dict[str, Tensor]) -> dict[str, FeatureMap]:
        x0, y0, x1, y1 = ground(stated).extent
        return {
            tap: FeatureMap(v, BevGeometry((x0, y0, x1, y1), (x1 - x0) / v.shape[-1], "ego"))
            for tap, v in tensors.items()
        }

    labelled, logits = (torch.cat(numbered(g, f"in.{name}"), dim=1) for name in ("target", "teacher_logit"))
    objects, nobody = ours(numbered(g, "in.boxes")), torch.zeros(len(labelled), 1, 1)
    eye = torch.eye(4, dtype=torch.float64).expand(len(labelled), 1, 1, 4, 4)
    batch = SurroundBatch(
        [str(i) for i in range(len(labelled))], eye, eye, eye[:, 0], eye[:, 0, 0], eye[:, 0, 0], objects=objects
    )
    targets = CentreTargets(labelled, nobody[..., None].expand(-1, -1, -1, CODE), nobody.long(), nobody.bool())
    context = Context(
        Outputs(features(maps), {"heatmap": torch.zeros_like(logits)}),
        {"teacher": Outputs(features(taught), {"heatmap": logits})}, batch, targets,
    )  # fmt: skip
    losses = {name: term.weight * term(context) for name, term in by_name.items()}
    levels = by_name["foreground"].levels(context)
    per_level = [level_losses(level, conv) for level, conv in zip(levels, by_name["spatial"].convs, strict=True)]
    assert all(value.dtype == torch.float32 for value in losses.values())
    seen = dict.fromkeys(losses, 0.0)
    for i, (tap, other) in enumerate(pairs):
        for released, name in LOSS_NAMES.items():
            if (expected := g.get(f"out.{released}_{tap}_{other}")) is not None:
                torch.testing.assert_close(by_name[name].weight * per_level[i][name], expected, **LOSSES)
                seen[name] += float(expected)
    assert seen == {name: pytest.approx(float(loss.detach()), rel=1e-6) for name, loss in losses.items()}
    exact = torch.stack(
        [by_name[name].weight * level[name] for level in per_level for name in level if name in by_name]
    ).sum()
    torch.testing.assert_close(exact, g["out.total"], **LOSSES)
    inputs = {f"student.{tap}": x for tap, x in maps.items()}
    agree_gradients(exact, g, inputs, by_name["foreground"].levels.adaptors, by_name["spatial"].convs)
