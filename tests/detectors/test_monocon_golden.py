"""MonoCon against recorded tensors of the released code (set ``monocon``)."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import constants, golden_file, golden_files, hashed, hashed_weights
from test_gupnet_golden import group
from test_monodle_golden import close, load
from torch import Tensor

from distill3d.boxes import to_kitti, wrap_angle
from distill3d.camera import Camera, ImageAffine
from distill3d.data.kitti.labels import read_labels
from distill3d.data.sample import Batch, ObjectBatch, Objects
from distill3d.detectors import monocon
from distill3d.detectors.base import Outputs
from distill3d.detectors.monocon import KEYPOINTS, MonoCon, MonoConConfig, MonoConTargets
from distill3d.detectors.monodle import STRIDE, depth_logit
from distill3d.detectors.released import from_released, to_released
from distill3d.layers.image.attentive_norm import AttentiveNorm

pytestmark = pytest.mark.golden

#: The recording's names of the branches, in its order.
NAMES = {
    "center_heatmap": "heatmap", "kpt_heatmap": "keypoint_heatmap", "wh": "size_2d", "offset": "offset_2d",
    "kpt_heatmap_offset": "keypoint_offset", "center2kpt_offset": "keypoints", "dim": "size_3d", "depth": "depth",
    "alpha_cls": "heading_bin", "alpha_offset": "heading_residual",
}  # fmt: skip
TERM_NAMES = {
    "center_heatmap": "heatmap", "wh": "size_2d", "offset": "offset_2d", "dim": "size_3d", "depth": "depth",
    "center2kpt_offset": "keypoints", "kpt_heatmap": "keypoint_heatmap", "kpt_heatmap_offset": "keypoint_offset",
    "alpha_cls": "heading_bin", "alpha_reg": "heading_residual",
}  # fmt: skip
#: Pedestrian, Car, Cyclist among the recorded Pedestrian, Cyclist, Car; and back.
CLASSES = torch.tensor(monocon.CLASS_ORDER)
PORT = MonoConConfig.styled("released", keypoint_rows="all")


# ------------------------------------------------------------------------------------------------------------- the norm


@golden_file("monocon/attentive_norm_train", "monocon/attentive_norm_eval")
def test_attentive_norm(path: Path) -> None:
    g = load(path)
    x = g["in.x"].clone().requires_grad_()
    norm = AttentiveNorm(x.shape[1]).double().train(constants(path)["training"])
    norm.load_state_dict({_own(name): value for name, value in group(g, "param.").items()})
    out = norm(x)
    close(out, g["out.y"], 1e-9, 1e-12)
    (out * g["in.cotangent"]).sum().backward()
    close(x.grad, g["grad.x"], 1e-9, 1e-12)
    parameters = dict(norm.named_parameters())
    for name, gradient in group(g, "grad.").items():
        if name != "x":
            close(parameters[_own(name)].grad, gradient, 1e-9, 1e-12)
    buffers = dict(norm.named_buffers())
    for name, value in group(g, "out.buffer.").items():
        close(buffers[_own(name)], value, 1e-9, 1e-12)


def _own(name: str) -> str:
    """Our name of what the recording calls so inside the norm."""
    theirs = {old.removeprefix(".1."): new.removeprefix(".1.") for old, new in monocon.NORM_NAMES}
    found = next(old for old in theirs if name == old or name.startswith(f"{old}."))
    return theirs[found] + name.removeprefix(found)


# ---------------------------------------------------------------------------------------------------------- the targets


def recorded_objects(lines: list[str], path: Path) -> Objects:
    """Label lines as objects; some have 2D boxes whose right is left of the left, which no label file may have."""
    rows = [line.split() for line in lines]
    as_they_are = torch.tensor([[float(v) for v in row[4:8]] for row in rows], dtype=torch.float64)
    for row in rows:
        row[4], row[6] = sorted((row[4], row[6]), key=float)
        row[5], row[7] = sorted((row[5], row[7]), key=float)
    path.write_text("".join(f"{' '.join(row)}\n" for row in rows))
    objects = read_labels(path)
    return replace(objects, boxes=replace(objects.boxes, box2d=as_they_are.to(objects.boxes.box2d)))


@golden_file("monocon/targets")
def test_targets(path: Path, tmp_path: Path) -> None:
    g = load(path)
    about = constants(path)
    model = MonoCon(MonoConConfig.styled("released", max_objects=about["max_objs"], trunk=monocon.TINY_TRUNK))
    height, width = about["image"]
    objects = []
    for i in range(len(g["in.P2"])):
        objects.append(recorded_objects(g[f"in.lines{i}"], tmp_path / f"{i}.txt"))
    n = len(objects)
    affine = ImageAffine.stack([ImageAffine.corner((width, height), (width, height))] * n)
    blank = torch.zeros(n, 3, height, width, dtype=torch.float64)
    camera = Camera(g["in.P2"].double())
    t = model.double().encode(Batch([str(i) for i in range(n)], blank, camera, affine, ObjectBatch.pad(objects)))

    order, mask = torch.argsort(t.mask_2d.int(), dim=1, descending=True, stable=True), g["out.mask_target"]
    assert torch.equal(t.mask_2d.sum(1), mask.sum(1))
    rows = torch.arange(n)[:, None]

    def kept(value: Tensor) -> Tensor:
        """Slots of trained objects first, as recorded; as many slots as recorded."""
        slots = value[rows, order][:, : mask.shape[1]]
        return torch.nn.functional.pad(slots, [0, 0] * (slots.dim() - 2) + [0, mask.shape[1] - slots.shape[1]])

    def same(value: Tensor, name: str) -> None:
        expected = g[f"out.{name}"]
        close(kept(value).reshape(expected.shape), expected, 1e-5, 5e-4)

    close(t.heatmap[:, CLASSES], g["out.center_heatmap_target"], 1e-5, 5e-4)
    close(t.keypoint_heatmap, g["out.kpt_heatmap_target"], 1e-5, 5e-4)
    assert torch.equal(kept(t.indices), g["out.indices"])
    assert torch.equal(kept(t.keypoint_index).flatten(1), g["out.indices_kpt"])
    assert torch.equal(kept(t.heading_bin), g["out.alpha_cls_target"][..., 0].long())
    for value, name in (
        (t.size_2d, "wh_target"), (t.offset_2d, "offset_target"), (t.size_3d.flip(-1)[..., [0, 2, 1]], "dim_target"),
        (t.heading_residual, "alpha_offset_target"), (t.depth, "depth_target"),
        (t.keypoints, "center2kpt_offset_target"), (t.keypoint_offset, "kpt_heatmap_offset_target"),
        (t.keypoint_mask[..., None].expand_as(t.keypoints), "mask_center2kpt_offset"),
        (t.keypoint_shown[..., None].expand_as(t.keypoints), "mask_kpt_heatmap_offset"),
    ):  # fmt: skip
        same(value, name)
    close(t.offset_3d, t.keypoints[:, :, -1], 0)


# ----------------------------------------------------------------------------------------------------------- the losses


def recorded_targets(g: dict[str, Tensor]) -> MonoConTargets:
    t = {name.removesuffix("_target"): value for name, value in group(g, "in.target.").items()}
    mask, shape = t["mask"].bool(), t["mask"].shape
    points = (*shape, KEYPOINTS)
    nothing = torch.zeros(shape)
    size = t["dim"][..., (1, 2, 0)]  # the released order is length, height, width
    keypoints = t["center2kpt_offset"].reshape(*points, 2)
    return MonoConTargets(
        t["center_heatmap"], t["indices"], t["offset"], t["wh"], keypoints[:, :, -1], size, size, t["depth"][..., 0],
        t["alpha_cls"][..., 0].long(), t["alpha_offset"][..., 0], mask, mask, torch.zeros_like(t["indices"]),
        torch.zeros(*shape, 4), mask, mask, mask, t["indices"], nothing, keypoints,
        t["mask_center2kpt_offset"].reshape(*points, 2)[..., 0] > 0, t["kpt_heatmap"], t["indices_kpt"].reshape(points),
        t["kpt_heatmap_offset"].reshape(*points, 2), t["mask_kpt_heatmap_offset"].reshape(*points, 2)[..., 0] > 0,
    )  # fmt: skip


@golden_file("monocon/losses_one_empty", "monocon/losses_two")
def test_losses(path: Path) -> None:
    g = load(path)
    for original, config in (("", PORT), ("original.", MonoConConfig.styled("released"))):
        leaves = {theirs: g[f"in.{theirs}"].clone().requires_grad_() for theirs in NAMES}
        raw = {ours: leaves[theirs] for theirs, ours in NAMES.items()}
        losses = monocon.detection_losses(monocon.as_predictions(raw, True), recorded_targets(g), config)
        for theirs, ours in TERM_NAMES.items():
            close(losses[ours], g.get(f"out.{original}loss_{theirs}", g[f"out.loss_{theirs}"]), 2e-5)
        total = torch.stack(list(losses.values())).sum()
        close(total, g[f"out.{original}total"], 2e-5)
        total.backward()
        for theirs, leaf in leaves.items():
            close(leaf.grad, g.get(f"grad.{original}{theirs}", g[f"grad.{theirs}"]), 1e-4, 1e-6)


# ------------------------------------------------------------------------------------------------------------- decoding


@golden_file("monocon/decode")
def test_decode(path: Path) -> None:
    g, about = load(path), constants(path)
    raw = {ours: g[f"in.{theirs}"].double() for theirs, ours in NAMES.items()}
    raw["heatmap"] = torch.logit(raw["heatmap"])
    raw["depth"] = torch.cat((depth_logit(raw["depth"][:, :1], monocon.DEPTH_EPSILON), raw["depth"][:, 1:]), 1)
    outputs = Outputs({}, monocon.as_predictions(raw, False))
    source, canvas = (tuple(g[f"in.{name}"].flip(0).tolist()) for name in ("image_size", "pad_size"))
    assert canvas[0] == raw["heatmap"].shape[-1] * STRIDE
    n = len(g["in.P2"])
    affine = ImageAffine.stack([ImageAffine.corner(source, canvas)] * n)
    blank = torch.zeros(n, 3, canvas[1], canvas[0], dtype=torch.float64)
    batch = Batch([str(i) for i in range(n)], blank, Camera(g["in.P2"].double()), affine)
    ways = {"top_k": about["topk"], "score_threshold": about["threshold"], "trunk": monocon.TINY_TRUNK}
    for way in ("predicted", "projected"):
        for i, found in enumerate(MonoCon(MonoConConfig(**ways, box2d=way)).decode(outputs, batch)):
            hwl, bottom, rotation_y = to_kitti(found)
            if way == "predicted":
                close(torch.cat((found.box2d, found.score[:, None]), 1), g[f"out.boxes2d{i}"], 1e-5, 1e-4)
                rows = torch.cat((found.centre, hwl[:, [2, 0, 1]], -found.yaw[:, None]), 1)
                close(rows, g[f"out.boxes3d{i}"], 1e-5, 1e-4)
                assert torch.equal(found.label, g[f"out.labels{i}"])
                continue
            kitti = group(g, f"out.kitti{i}.")
            for ours, theirs in (
                (found.box2d, "bbox"), (hwl[:, [2, 0, 1]], "dimensions"), (bottom, "location"), (found.score, "score"),
            ):  # fmt: skip
                close(ours, kitti[theirs], 1e-5, 1e-4)
            for ours, theirs in ((found.alpha, "alpha"), (rotation_y, "rotation_y")):  # recorded ones may be a turn off
                close(wrap_angle(ours - kitti[theirs]), torch.zeros_like(ours), 0, 1e-4)


# ---------------------------------------------------------------------------------------------------------- the network


def entries(path: Path, original: bool = False) -> dict[str, list[int]]:
    """Names and shapes of a released state dict."""
    name = constants(path)["state_dict_list"]
    return dict(json.loads((path.parent / (name.replace(".json", "_original.json") if original else name)).read_text()))


@golden_file("monocon/network_forward")
def test_network_forward(path: Path) -> None:
    g, about = load(path), constants(path)
    offset = about["n_offset"]
    weights = hashed_weights(entries(path), offset)
    assert len(weights) == about["entries"]
    for name, probe in zip(g["in.probe_names"], g["in.probe_first8"], strict=True):
        close(weights[name].flatten()[: probe.numel()].repeat(8)[:8], probe, 1e-12)
    model = MonoCon(MonoConConfig()).double().eval()
    form = monocon.released_form(model.config)
    model.load_state_dict(from_released(weights, form, model.state_dict(), model.config).weights)
    model.training = True  # the branches that are for training alone answer, too; batch norms do not learn

    def made(number: int) -> Tensor:
        shape = (about["B"], 3, about["H"], about["W"])
        return torch.from_numpy(3 * hashed(int(np.prod(shape)), number + offset)).reshape(shape)

    def assert_close(actual: Tensor, expected: Tensor) -> None:
        close(actual, expected, 1e-7, 1e-7 * float(expected.abs().max()))

    image = made(900001)
    close(image.flatten()[:8], g["in.input_first8"], 1e-12)
    image.requires_grad_()
    for level, tensor in enumerate(model.backbone(image)):
        assert_close(tensor.abs().mean((2, 3)), g[f"out.backbone_{level}_channel_absmean"])
    outputs = model.forward_image(image)
    neck = outputs.features["neck_4"].tensor
    assert_close(neck.mean((2, 3)), g["out.neck_channel_mean"])
    assert_close(neck.abs().mean((2, 3)), g["out.neck_channel_absmean"])
    total = torch.zeros((), dtype=torch.float64)
    for i, (name, tensor) in enumerate(activated(outputs.predictions).items()):
        assert_close(tensor, g[f"out.{name}"])
        cotangent = hashed(tensor.numel(), 900100 + offset + i)
        total = total + (tensor * torch.from_numpy(cotangent).reshape(tensor.shape)).sum()
    assert_close(total, g["out.total"])
    total.backward()
    assert_close(image.grad.norm(), g["grad.input_norm"])
    ours = {name: torch.as_tensor(p.grad.norm()) for name, p in model.named_parameters()}
    norms = dict(zip(g["in.param_names"], g["grad.param_norm"], strict=True))
    theirs = {name: norms.get(name, torch.zeros(())).expand_as(w).to(w.dtype) for name, w in weights.items()}
    mapped = from_released(theirs, form, model.state_dict(), model.config).weights
    largest = float(g["grad.param_norm"].max())
    for name, norm in ours.items():
        close(norm, mapped[name].flatten()[0], 1e-6, 1e-12 * largest)
    assert all(norms[name] == 0 for name in form.unused if name in norms)

    model.train()
    both = torch.cat((image.detach(), made(900002)))
    for name, tensor in activated(model.forward_image(both).predictions).items():
        assert_close(tensor.mean((2, 3)), g[f"out.train.{name}_channel_mean"])


def activated(predictions: dict[str, Tensor]) -> dict[str, Tensor]:
    """Predictions as recorded: by the recording's names, in its order of channels, after the activations."""
    depth = monocon.decode_depth(predictions["depth"][:, :1], monocon.DEPTH_EPSILON)
    bins, residual = predictions["heading"].chunk(2, 1)
    said = predictions | {
        "heatmap": monocon.clamped_sigmoid(predictions["heatmap"][:, CLASSES]),
        "keypoint_heatmap": monocon.clamped_sigmoid(predictions["keypoint_heatmap"]),
        "depth": torch.cat((depth, predictions["depth"][:, 1:]), 1), "size_3d": predictions["size_3d"][:, [2, 0, 1]],
        "keypoints": torch.cat((predictions["corners"], predictions["offset_3d"]), 1),
        "heading_bin": bins, "heading_residual": residual,
    }  # fmt: skip
    return {theirs: said[ours] for theirs, ours in NAMES.items()}


def test_released_names() -> None:
    """Both repositories' checkpoints fit, and ours is written as the original's."""
    paths = [path for path in golden_files("monocon") if path.stem == "network_forward"]
    if not paths:
        pytest.skip("no recorded state dict")
    model = MonoCon(MonoConConfig())
    form, own = monocon.released_form(model.config), model.state_dict()
    written = to_released(own, form, model.config)
    assert {name: list(value.shape) for name, value in written.items()} == entries(paths[0], original=True)
    for original in (False, True):
        port = {n: written[n if original else n.replace("head.", "bbox_head.", 1)] for n in entries(paths[0], original)}
        back = from_released(port, form, own, model.config).weights
        assert back.keys() == own.keys() and all(torch.equal(back[name], own[name]) for name in own)
