"""SimDistill's terms and geometry compensation against recorded tensors of the released code (set ``simdistill``)."""

from pathlib import Path

import pytest
import torch
from golden import by_number, constants, golden_file
from test_bevdistill_golden import objects_of
from test_labeldistill_golden import load
from torch import Tensor, nn

from distill3d.camera import DepthBins
from distill3d.distill.methods.simdistill import (
    SimDistillConfig,
    lidar_adapter,
    map_loss,
    masked_map_loss,
    object_mask,
    response_box_loss,
    response_class_loss,
)
from distill3d.layers.ground.geometry_compensation import AttentionCompensation, ConvCompensation
from distill3d.layers.ground.lift import one_hot_depth
from distill3d.layers.heads.centre_head import (
    BOX_BRANCHES,
    CentreHeadConfig,
    CentreTargets,
    box_loss,
    box_normaliser,
    centre_targets,
    codes_at,
    heat_loss,
    heat_normaliser,
)
from distill3d.layers.image.depth_net import depth_loss, nearest_depth_bins

pytestmark = pytest.mark.golden
LOSSES = {"rtol": 2e-4, "atol": 1e-5}
CONVOLUTIONS = {"rtol": 1e-7, "atol": 1e-9}
DEPTH = {"rtol": 1e-5, "atol": 1e-7}
#: Ours of the released names.  Theirs of the position codes are exchanged: the row code is read by the column.
ATTENTION = {
    "pe.0.row_embed.weight": "column_code", "pe.0.col_embed.weight": "row_code",
    "el.0.self_attn.sampling_offsets": "attention.offset", "el.0.self_attn.attention_weights": "attention.weight",
    "el.0.self_attn.value_proj": "attention.value", "el.0.self_attn.output_proj": "attention.output",
}  # fmt: skip
CONVOLUTION = {
    "defconv1": "first", "defconv2": "second", "offset_conv": "offset", "modulator_conv": "mask", "regular_conv": "conv"
}  # fmt: skip


def ours(name: str, names: dict[str, str]) -> str:
    for theirs, our in names.items():
        name = name.replace(theirs, our)
    return name


def agree_on_a_map(module: nn.Module, g: dict[str, Tensor], names: dict[str, str], close: dict[str, float]) -> None:
    """Output and all gradients of a module that keeps the map's shape."""
    module.load_state_dict({ours(k[6:], names): v for k, v in g.items() if k.startswith("param.")})
    x = g["in.x"].clone().requires_grad_()
    y = module(x)
    torch.testing.assert_close(y, g["out.y"], **close)
    (y * g["in.cotangent"]).sum().backward()
    torch.testing.assert_close(x.grad, g["grad.x"], **close)
    recorded = {ours(k[5:], names): v for k, v in g.items() if k.startswith("grad.") and k != "grad.x"}
    assert recorded.keys() == dict(module.named_parameters()).keys()
    for name, gradient in recorded.items():
        torch.testing.assert_close(module.get_parameter(name).grad, gradient, **close)


@golden_file("simdistill/geometry_compensation_a", "simdistill/geometry_compensation_b")
def test_attention_compensation(path: Path) -> None:
    g, stated = load(path), constants(path)
    cells = (stated["height"], stated["width"])
    module = AttentionCompensation(g["in.x"].shape[1], cells, stated["heads"], stated["points"], "corners")
    agree_on_a_map(module, g, ATTENTION, LOSSES)


@golden_file("simdistill/deform_conv")
def test_convolution_compensation(path: Path) -> None:
    g, stated = load(path), constants(path)
    agree_on_a_map(ConvCompensation(stated["channels"]).double(), g, CONVOLUTION, CONVOLUTIONS)


@golden_file("simdistill/depth_loss")
def test_depth_loss(path: Path) -> None:
    """BEVDepth's.  Recorded are gradients at probabilities, ours are at logits: dL/dx_i = p_i (g_i - sum_j p_j g_j)."""
    g, stated = load(path), constants(path)
    near, far, step = stated["dbound"]
    bins = DepthBins(near, far, round((far - near) / step), "UD")
    target = nearest_depth_bins(g["in.depth"].flatten(0, 1), bins, stated["downsample"])
    hot = one_hot_depth(target, bins.count).permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.equal(hot, g["out.onehot"].to(hot))
    probability = g["in.probability"]
    logits = probability.log().requires_grad_()
    loss = stated["weight"] * depth_loss(logits, target)
    torch.testing.assert_close(loss, g["out.loss"], **DEPTH)
    (gradient,) = torch.autograd.grad(loss, logits)
    theirs = probability * g["grad.probability"]
    expected = theirs - probability * theirs.sum(1, keepdim=True)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def fuser(g: dict[str, Tensor], name: str) -> nn.Sequential:
    """conv3 without bias, batch norm in training mode, ReLU: the form of a detector's fusers and of e."""
    weight = g[f"param.{name}.0.weight"]
    module = lidar_adapter(weight.shape[1], weight.shape[0]).train()
    recorded = {k.removeprefix(f"param.{name}."): v for k, v in g.items() if k.startswith(f"param.{name}.")}
    module.load_state_dict(module.state_dict() | recorded)
    return module


@golden_file("simdistill/full_loss_a", "simdistill/full_loss_b")
def test_whole_step(path: Path) -> None:
    """Recorded maps have rows along x, and so have the recorded targets; the losses do not mind."""
    g, stated = load(path), constants(path)
    train, weight, tasks = stated["train_cfg"], stated["weights"], [tuple(task) for task in stated["tasks"]]
    x0, y0, _, x1, y1, _ = train["point_cloud_range"]
    head = CentreHeadConfig(
        tasks=tuple(tasks), extent=(x0, y0, x1, y1), cell=stated["cell"], max_objects=train["max_objs"],
        radius_overlap=train["gaussian_overlap"], min_radius=train["min_radius"],
        code_weights=tuple(train["code_weights"]), nms_thresholds=(1.0,) * len(tasks),
    )  # fmt: skip
    config = SimDistillConfig.styled(
        "released", imd_weight=weight["imd"], cmd_weight=weight["cmd"], mmd_f_weight=weight["mmd_f"],
        class_weight=weight["mmd_p_class"], box_weight=weight["mmd_p_box"],
    )  # fmt: skip
    names = [f"task{t}" for t in range(len(tasks))]
    box, index, mask = (torch.stack([g[f"out.target.{t}.{k}"] for t in names], dim=1) for k in ("box", "index", "mask"))
    heatmap = torch.cat([g[f"out.target.{t}.heatmap"] for t in names], dim=1)
    targets = CentreTargets(heatmap, box, index, mask.bool())
    targets_agree(g, targets, head)

    leaves = {k.removeprefix("in."): v.clone().requires_grad_() for k, v in g.items() if k.startswith("in.student")}

    def stacked(read: dict[str, Tensor], who: str) -> dict[str, Tensor]:
        codes = [torch.cat([read[f"{who}.{t}.{b}"] for b in BOX_BRANCHES], dim=1) for t in names]
        heat = torch.cat([read[f"{who}.{t}.heatmap"] for t in names], dim=1)
        return {"heatmap": heat, "box": torch.stack(codes, dim=1)}

    student = stacked(leaves, "student")
    teacher = stacked({k.removeprefix("in."): v for k, v in g.items()}, "teacher")
    networks = {name: fuser(g, name) for name in ("fuser", "fuser_student", "trans_student")}
    lidar, camera = leaves["student_lidar_branch"], leaves["student_camera_branch"]
    mask = object_mask(targets.heatmap, config.object_mask)
    torch.testing.assert_close(mask, g["out.object_mask"], **LOSSES)
    fused = networks["fuser_student"](torch.cat((lidar, camera), dim=1))
    theirs = networks["fuser"](torch.cat((g["in.teacher_camera"], g["in.teacher_lidar"]), dim=1))
    found = {
        "imgfeaturel2loss": config.imd_weight * map_loss(camera, g["in.teacher_camera"]),
        "plidarfeaturel2loss": config.cmd_weight
        * masked_map_loss(networks["trans_student"](lidar), g["in.teacher_lidar"], mask),
        "fusionfeaturel2loss": config.mmd_f_weight * map_loss(fused, theirs),
    }
    for name, loss in found.items():
        torch.testing.assert_close(loss, g[f"out.{name}"], **LOSSES)
    peaks, objects = heat_normaliser(targets.heatmap, head), box_normaliser(targets.mask)
    found["heat"] = heat_loss(student["heatmap"].sigmoid(), targets.heatmap, peaks)
    found["box"] = box_loss(codes_at(student["box"], targets.index), targets.box, targets.mask, objects, head)
    found["kd_cls"] = config.class_weight * response_class_loss(student["heatmap"], teacher["heatmap"], head, config)
    found["kd_bbox"] = config.box_weight * response_box_loss(student["box"], teacher["box"], targets, head, config)
    for ours_, name in (("heat", "heatmap.{}"), ("box", "bbox.{}"), ("kd_cls", "heatmap.{}_kd_cls_loss"),
                        ("kd_bbox", "bbox.{}_kd_bbox_loss")):  # fmt: skip
        recorded = torch.stack([g[f"out.object.{name.format(t)}"] for t in names]).sum()
        torch.testing.assert_close(found[ours_], recorded, **LOSSES)

    total = torch.stack(list(found.values())).sum()
    torch.testing.assert_close(total, g["out.total"], **LOSSES)
    total.backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, g[f"grad.{name}"], **LOSSES)
    for name, network in networks.items():
        for part, parameter in network.named_parameters():
            torch.testing.assert_close(parameter.grad, g[f"grad.{name}.{part}"], **LOSSES)


def targets_agree(g: dict[str, Tensor], recorded: CentreTargets, head: CentreHeadConfig) -> None:
    """Ours of the recorded boxes, turned: their rows run along x, sizes are width first, yaws clockwise from -y."""
    samples = by_number(k for k in g if k.startswith("in.boxes"))
    objects = objects_of([g[k] for k in samples], [g[k.replace("boxes", "labels")] for k in samples])
    if objects.present.shape[1] == 0:
        assert not recorded.mask.any() and not recorded.heatmap.any()
        return
    ours = centre_targets(head, objects, head.classes)
    torch.testing.assert_close(ours.heatmap.mT, recorded.heatmap, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.mask, recorded.mask)
    rows, columns = head.cells
    assert torch.equal(ours.index % columns * rows + ours.index // columns, recorded.index)
    place, z, size, turn, velocity = ours.box.split(tuple(BOX_BRANCHES.values()), dim=-1)
    theirs = torch.cat((place, z, size[..., [1, 0, 2]], -turn[..., [1, 0]], velocity), dim=-1)
    torch.testing.assert_close(theirs, recorded.box, rtol=1e-4, atol=1e-4)
