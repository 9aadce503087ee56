"""BEVDistill's terms against recorded tensors of the released code (set ``bevdistill``)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from golden import constants, golden_file
from test_labeldistill_golden import load
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import sigmoid_focal_loss

from distill3d.boxes import NUSCENES_CLASSES
from distill3d.data.surround import SurroundObjectBatch
from distill3d.detectors.base import BevGeometry
from distill3d.distill.centre_points import IN_QUERY_CODE
from distill3d.distill.map_reading import cells_of, read_at
from distill3d.distill.methods.bevdistill import (
    AuxiliaryHead,
    BEVDistillConfig,
    Projector,
    auxiliary_loss,
    auxiliary_settings,
    best_boxes,
    contrastive_loss,
    dense_loss,
    foreground,
    instance_losses,
    matched_queries,
    matching_costs,
    point_loss,
)
from distill3d.distill.relations import resized
from distill3d.layers.heads.centre_head import centre_targets
from distill3d.layers.heads.matching import assign

pytestmark = pytest.mark.golden
#: Masks are float32 in float64 features; networks and samples float64; losses float32.
DENSE = {"rtol": 1e-6, "atol": 1e-8}
EXACT = {"rtol": 1e-8, "atol": 1e-10}
INSTANCE = {"rtol": 1e-4, "atol": 1e-5}
FULL = {"rtol": 2e-4, "atol": 1e-5}
OURS = list(IN_QUERY_CODE)


def objects_of(boxes: list[Tensor], labels: list[Tensor] | None = None) -> SurroundObjectBatch:
    """Recorded boxes: x, y, z of the bottom's middle, width, length, height, yaw (clockwise from -y), velocity."""
    rows = pad_sequence(boxes, batch_first=True)
    label = [torch.zeros(len(b), dtype=torch.int64) for b in boxes] if labels is None else labels
    present = pad_sequence([torch.ones(len(b), dtype=torch.bool) for b in boxes], batch_first=True)
    centre = torch.cat((rows[..., :2], rows[..., 2:3] + rows[..., 5:6] / 2), dim=-1)
    kinds = pad_sequence(label, batch_first=True)
    return SurroundObjectBatch(
        centre, rows[..., [4, 3, 5]], -rows[..., 6] - torch.pi / 2, rows[..., 7:], kinds, kinds * 0, present
    )


def heat_head(stated: dict[str, Any], config: BEVDistillConfig) -> Any:
    x0, y0, _, x1, y1, _ = stated["point_cloud_range"]
    return auxiliary_settings(config, BevGeometry((x0, y0, x1, y1), stated["cell"], "ego"))


@golden_file("bevdistill/dense_many", "bevdistill/dense_one")
def test_dense(path: Path) -> None:
    g, stated = load(path), constants(path)
    config = BEVDistillConfig.styled("released", radius_overlap=stated["min_overlap"], min_radius=stated["min_radius"])
    objects = objects_of([g["in.boxes"]])
    mask = foreground(centre_targets(heat_head(stated, config), objects, NUSCENES_CLASSES).heatmap)
    torch.testing.assert_close(mask[:, 0].double(), g["out.mask"], rtol=1e-6, atol=1e-6)
    student = g["in.student"].clone().requires_grad_()
    loss = stated["weight"] * dense_loss(student, g["in.teacher"], mask.double(), config.no_object)
    torch.testing.assert_close(loss, g["out.loss"], **DENSE)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, g["grad.student"], **DENSE)
    torch.testing.assert_close(dense_loss(student, g["in.teacher"], None), g["out.loss_uniform"], **DENSE)
    place = (g["in.points"].transpose(0, 1).flatten(1, 2) + 1) / 2
    torch.testing.assert_close(point_loss(student, g["in.teacher"], place), g["out.loss_points"], **DENSE)
    small = resized(g["in.teacher_small"], (student.shape[-2], student.shape[-1]))
    torch.testing.assert_close(small, g["out.teacher_resized"], **DENSE)


def of_layers(g: dict[str, Tensor], name: str) -> Tensor:
    """(layers, B, n, .) as (B, layers, n, .), a leaf; codes in our order."""
    value = g[f"in.{name}"].transpose(0, 1)
    return (value[..., OURS] if name.endswith("codes") else value).clone().requires_grad_()


def in_their_order(gradient: Tensor, name: str) -> Tensor:
    value = gradient.transpose(0, 1)
    if not name.endswith("codes"):
        return value
    back = torch.empty_like(value)
    back[..., OURS] = value
    return back


@golden_file("bevdistill/instance_released", "bevdistill/instance_plain")
def test_instance(path: Path) -> None:
    g, stated = load(path), constants(path)
    weights = torch.tensor(stated["code_weights"])[OURS].tolist()
    config = BEVDistillConfig.styled(
        "released", top_k=stated["top_k"], class_weight=stated["class_weight"], box_weight=stated["box_weight"],
        cost_class=stated["cost_class"], cost_box=stated["cost_box"], code_weights=tuple(weights),
        quality="squared" if stated["score_reweight"] else "none",
    )  # fmt: skip
    taught = [of_layers(g, f"teacher_{kind}")[:, -1].detach() for kind in ("logits", "codes")]
    scores, boxes = best_boxes(*taught, config.top_k)
    torch.testing.assert_close(scores[0], g["out.teacher_scores"], **INSTANCE)
    recorded = objects_of([g["out.teacher_boxes"]])
    torch.testing.assert_close(boxes[..., :3], recorded.centre, **INSTANCE)
    torch.testing.assert_close(boxes[..., 3:6].exp(), recorded.size, **INSTANCE)
    yaw = g["out.teacher_boxes"][None, :, 6]  # codes hold the recorded yaw's sine and cosine
    torch.testing.assert_close(boxes[..., 6:8], torch.stack((yaw.sin(), yaw.cos()), dim=-1), **INSTANCE)

    said = {name: of_layers(g, f"student_{name}") for name in ("logits", "codes")}
    found = (said["logits"], said["codes"], scores, boxes, config)
    class_cost, box_cost = matching_costs(*found)
    query = matched_queries(*found)
    for layer in range(query.shape[1]):
        torch.testing.assert_close(class_cost[0, layer], g[f"out.layer{layer}.class_cost"], **INSTANCE)
        torch.testing.assert_close(box_cost[0, layer], g[f"out.layer{layer}.box_cost"], **INSTANCE)
        assigned = torch.zeros_like(g[f"out.layer{layer}.assigned"])
        assigned[query[0, layer]] = torch.arange(1, query.shape[-1] + 1)
        assert torch.equal(assigned, g[f"out.layer{layer}.assigned"])
    total = instance_agrees(g, found, INSTANCE)
    torch.testing.assert_close(total, g["out.total"].squeeze(), **INSTANCE)
    gradients = torch.autograd.grad(total, list(said.values()))
    for name, gradient in zip(said, gradients, strict=True):
        torch.testing.assert_close(in_their_order(gradient, name), g[f"grad.student_{name}"], **INSTANCE)


def instance_agrees(g: dict[str, Tensor], found: tuple[Any, ...], close: dict[str, float]) -> Tensor:
    """The weighted losses of all layers, each held against the recorded one."""
    config: BEVDistillConfig = found[-1]
    losses = instance_losses(*found)
    parts = {"cls": config.class_weight * losses["class"], "bbox": config.box_weight * losses["box"]}
    for kind, of_layer in parts.items():
        for layer, loss in enumerate(of_layer):
            prefix = "" if layer == len(of_layer) - 1 else f"d{layer}."
            torch.testing.assert_close(loss, g[f"out.{prefix}loss_{kind}_distill"].squeeze(), **close)
    return torch.stack(list(parts.values())).sum()


#: Ours of the released names of a projector.
PROJECTORS = {"student": ("img_projs.0.0", "encoder_img"), "teacher": ("pts_projs.0.0", "encoder_pts")}


def projectors(g: dict[str, Tensor], prefix: str, dtype: torch.dtype) -> dict[str, Projector]:
    built = {}
    for who, (project, encoder) in PROJECTORS.items():
        names = {f"{prefix}{project}": "project", f"{prefix}{encoder}.0": "inner", f"{prefix}{encoder}.1": "norm",
                 f"{prefix}{encoder}.3": "outer"}  # fmt: skip
        state = {f"{ours}.{part}": g[f"param.{theirs}.{part}"]
                 for theirs, ours in names.items() for part in ("weight", "bias")}  # fmt: skip
        embedding, channels = state["project.weight"].shape
        projector = Projector(channels, embedding).to(dtype).train()
        projector.load_state_dict(projector.state_dict() | state)
        built[who] = projector
    return built


def contrastive(
    g: dict[str, Tensor], maps: dict[str, Tensor], built: dict[str, Projector], temperature: float
) -> Tensor:
    """Of maps (B, C, Y, X); the recorded places reach from -1 to 1."""
    place = (g["in.points"].transpose(0, 1) + 1) / 2
    rows = [built[who](read_at(maps[who], cells_of(place, maps[who])).flatten(0, 2)) for who in ("student", "teacher")]
    config = BEVDistillConfig.styled("released", temperature=temperature)
    return contrastive_loss(rows[0], rows[1], place.shape[1], len(place), config)


@golden_file("bevdistill/contrastive_a", "bevdistill/contrastive_b")
def test_contrastive(path: Path) -> None:
    g, stated = load(path), constants(path)
    built = projectors(g, "", torch.float64)
    maps = {"student": g["in.student"].clone().requires_grad_(), "teacher": g["in.teacher"]}
    loss = stated["weight"] * contrastive(g, maps, built, stated["temperature"])
    torch.testing.assert_close(loss, g["out.loss"], **EXACT)
    loss.backward()
    torch.testing.assert_close(maps["student"].grad, g["grad.student"], **EXACT)
    for who, (project, encoder) in PROJECTORS.items():
        for ours, theirs in (("project", project), ("inner", f"{encoder}.0"), ("norm", f"{encoder}.1"),
                             ("outer", f"{encoder}.3")):  # fmt: skip
            for part in ("weight", "bias"):
                gradient = built[who].get_submodule(ours).get_parameter(part).grad
                torch.testing.assert_close(gradient, g[f"grad.{theirs}.{part}"], **EXACT)


def detection(
    logits: Tensor, code: Tensor, objects: SurroundObjectBatch, weights: dict[str, float], code_weights: Tensor
) -> dict[str, Tensor]:
    """The losses of each layer of a DETR-like head of one sample: focal, and L1 at the matched queries."""
    (count,) = objects.present.sum(1).tolist()
    yaw = -objects.yaw - torch.pi / 2  # as recorded
    truth = torch.cat(
        (objects.centre, objects.size.log(), yaw.sin()[..., None], yaw.cos()[..., None], objects.velocity), dim=-1
    )[0]
    probability, label = logits.detach()[0].sigmoid(), objects.label[0]
    hit = -0.25 * (1 - probability) ** 2 * (probability + 1e-12).log()
    miss = -0.75 * probability**2 * (1 - probability + 1e-12).log()
    apart = torch.cdist(code.detach()[0, ..., :8], truth[None, :, :8].expand(code.shape[1], -1, -1), p=1)
    cost = weights["focal"] * (hit - miss)[..., label] + weights["box"] * apart
    query = assign(cost, torch.ones(len(cost), count, dtype=torch.bool))  # (layers, n)
    layer = torch.arange(len(query))[:, None]
    wanted = torch.zeros_like(logits[0])
    wanted[layer, query, label] = 1
    focal = sigmoid_focal_loss(logits[0], wanted, 0.25, 2.0).sum((1, 2)) / max(count, 1)
    error = ((code[0][layer, query] - truth).abs() * code_weights).sum((1, 2)) / count
    return {"cls": weights["focal"] * focal, "bbox": weights["box"] * error}


@golden_file("bevdistill/full_loss")
def test_whole_step(path: Path) -> None:
    g, stated = load(path), constants(path)
    weight, size = stated["weights"], stated["size"]
    config = BEVDistillConfig.styled(
        "released", top_k=stated["top_k"], class_weight=weight["instance_class"], box_weight=weight["instance_box"],
        temperature=stated["temperature"], radius_overlap=stated["heat_min_overlap"],
        min_radius=stated["heat_min_radius"],
    )  # fmt: skip
    objects, head = objects_of([g["in.boxes"]], [g["in.labels"]]), heat_head(stated, config)
    tokens = g["in.student_bev"].clone().requires_grad_()
    student = tokens.permute(1, 2, 0).unflatten(-1, (size, size))
    said = {name: of_layers(g, f"student_{name}") for name in ("logits", "codes")}

    heads = {}
    for who in ("student", "teacher"):
        prefix = f"param.{who}_head."
        recorded = {k.removeprefix(prefix): v for k, v in g.items() if k.startswith(prefix)}
        shared, channels_in = recorded["shared_conv.conv.weight"].shape[:2]
        classes, channels = recorded["task_heads.0.heatmap.2.weight"].shape[:2]
        built = AuxiliaryHead(channels_in, shared, channels, classes, config.heat_bias).train(who == "student")
        built.load_state_dict(built.state_dict() | {name_in_head(k): v for k, v in recorded.items()})
        heads[who] = built

    target = centre_targets(head, objects, NUSCENES_CLASSES).heatmap
    torch.testing.assert_close(target, g["out.heatmap_target"], rtol=1e-6, atol=1e-6)
    heat = auxiliary_loss(heads["student"](student), target, head)
    torch.testing.assert_close(heat, g["out.task0.loss_heatmap"], **FULL)
    taught = heads["teacher"].shared(g["in.teacher_bev"]).detach()
    dense = weight["dense"] * dense_loss(heads["student"].shared(student), taught, foreground(target), "nan")
    torch.testing.assert_close(dense, g["out.bev_fit_loss"], **FULL)

    boxes = best_boxes(*(of_layers(g, f"teacher_{k}")[:, -1].detach() for k in ("logits", "codes")), config.top_k)
    instance = instance_agrees(g, (said["logits"], said["codes"], *boxes, config), FULL)
    maps = {"student": student, "teacher": g["in.teacher_bev"]}
    built = projectors(g, "cl_head.", torch.float32)
    pairs = weight["contrastive"] * contrastive(g, maps, built, stated["temperature"])
    torch.testing.assert_close(pairs, g["out.relation_distill_loss"], **FULL)
    found = detection(said["logits"], said["codes"], objects, weight, torch.tensor(config.code_weights))
    for kind, losses in found.items():
        for layer, loss in enumerate(losses):
            prefix = "" if layer == len(losses) - 1 else f"d{layer}."
            torch.testing.assert_close(loss, g[f"out.{prefix}loss_{kind}"].squeeze(), **FULL)

    total = torch.stack(list(found.values())).sum() + heat + dense + instance + pairs
    torch.testing.assert_close(total, g["out.total"].squeeze(), **FULL)
    total.backward()
    torch.testing.assert_close(tokens.grad, g["grad.student_bev"], **FULL)
    for name, leaf in said.items():
        assert leaf.grad is not None
        torch.testing.assert_close(in_their_order(leaf.grad, name), g[f"grad.student_{name}"], **FULL)
    ours = {name_in_head(k.removeprefix("grad.head.")): v for k, v in g.items() if k.startswith("grad.head.")}
    for name, gradient in ours.items():
        torch.testing.assert_close(heads["student"].get_parameter(name).grad, gradient, **FULL)


def name_in_head(name: str) -> str:
    """Our name of a weight of the released auxiliary head."""
    return (
        name.replace("shared_conv", "shared")
        .replace("task_heads.0.", "")
        .replace(".conv.", ".0.")
        .replace(".bn.", ".1.")
    )
