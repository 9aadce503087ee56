"""MonoDLE against recorded tensors of the released code (sets ``monodle``, ``monodistill`` and ``monoskd``)."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import golden_file, golden_files, hashed, hashed_weights
from torch import Tensor

from distill3d.boxes import KITTI_CLASSES
from distill3d.camera import Camera, ImageAffine
from distill3d.data.kitti.labels import format_results, read_labels
from distill3d.data.sample import Batch, ObjectBatch
from distill3d.detectors import monodle
from distill3d.detectors.base import Outputs
from distill3d.detectors.monodle import MonoDLE, MonoDLEConfig, MonoDLETargets
from distill3d.detectors.released import from_released, plain_names
from distill3d.layers.image.dla import unused_in_released
from distill3d.layers.image.heatmap import draw_gaussians, focal_heatmap_loss, gaussian_radius

pytestmark = pytest.mark.golden


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as data:
        return {k: torch.from_numpy(data[k]) if data[k].dtype.kind in "biuf" else data[k].tolist() for k in data}


def close(actual: Tensor, expected: Tensor, rtol: float, atol: float = 0.0) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rtol, atol=atol)


@golden_file("monodle/coding")
def test_coding(path: Path) -> None:
    g = load(path)
    bins, residual = monodle.encode_heading(g["in.angle"])
    assert torch.equal(bins, g["out.bin"])
    close(residual, g["out.residual"], 0, 1e-10)
    close(monodle.decode_heading(bins, residual), g["out.angle_back"], 0, 1e-10)

    height, width = g["in.box_wh"][:, 1], g["in.box_wh"][:, 0]
    close(gaussian_radius(height, width), g["out.radius"], 1e-10, 1e-10)
    blank = torch.zeros(1, *g["out.gaussians"].shape, dtype=torch.float64)
    plane = torch.zeros(len(g["in.centres"]), dtype=torch.int64)
    close(draw_gaussians(blank, plane, g["in.centres"], g["in.radii"])[0], g["out.gaussians"], 0, 1e-10)

    camera = Camera(g["in.P2"])
    uv, depth = camera.project(g["in.points"])
    close(uv, g["out.uv"], 1e-10)
    homogeneous_depth = camera.project(g["in.points"], "homogeneous")[1]
    close(homogeneous_depth, g["out.projected_depth"], 1e-10)
    close(camera.back_project(uv, depth), g["out.points_back"], 1e-10, 1e-10)
    turn = torch.atan2(g["in.u"] - g["in.P2"][0, 2], g["in.P2"][0, 0])
    close(monodle.wrap_once(g["in.alpha"] + turn), g["out.ry"], 0, 1e-10)
    close(monodle.wrap_once(g["in.alpha"] - turn), g["out.alpha_from_ry"], 0, 1e-10)


@golden_file("monodle/laplace_full_s")
def test_laplace(path: Path) -> None:
    g = load(path)
    for reduce in ("mean", "sum"):
        inputs = {k: g[f"in.{k}"].clone().requires_grad_() for k in ("pred", "s", "target")}
        loss = getattr(monodle.laplace_loss(inputs["pred"], inputs["target"], inputs["s"]), reduce)()
        close(loss, g[f"out.{reduce}"], 1e-12)
        loss.backward()
        for k, tensor in inputs.items():
            close(tensor.grad, g[f"grad.{k}_{reduce}"], 1e-12, 1e-15)


@golden_file("monodle/dim_aware_l1")
def test_dimension_aware_l1(path: Path) -> None:
    g = load(path)
    prediction = g["in.pred"].clone().requires_grad_()
    loss = monodle.dimension_aware_l1(prediction, g["in.target"], g["in.target"]).mean()
    close(loss, g["out.loss"], 1e-12)
    loss.backward()
    close(prediction.grad, g["grad.pred"], 1e-12, 1e-15)


@golden_file("monoskd/focal_heatmap")
def test_focal_heatmap(path: Path) -> None:
    g = load(path)
    for case in ("", "_no_positive"):
        probability = g["in.prob"].clone().requires_grad_()
        loss = focal_heatmap_loss(probability, g[f"in.target{case}"])
        close(loss, g[f"out.loss{case}"], 1e-12)
        loss.backward()
        close(probability.grad, g[f"grad.prob{case}"], 1e-12, 1e-15)


TERM_NAMES = {"heatmap": "seg", "offset_2d": "offset2d", "size_2d": "size2d", "offset_3d": "offset3d",
              "depth": "depth", "size_3d": "size3d", "heading": "heading"}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "depth_mask"),
    [pytest.param(path, mask, id=f"{method}/{path.stem}")
     for method, mask in (("monodle", "mask_3d"), ("monodistill", "mask_2d"), ("monostl", "mask_2d"))
     for path in golden_files(method) if path.stem == "detection_loss"],
)  # fmt: skip
def test_detection_loss(path: Path, depth_mask: str) -> None:
    g = load(path)
    heads = {head: g[f"in.pred.{head}"].clone().requires_grad_() for head in monodle.HEADS}
    t = {k.removeprefix("in.target."): v for k, v in g.items() if k.startswith("in.target.")}
    slots = t["indices"]
    targets = MonoDLETargets(
        t["heatmap"], slots, t["offset_2d"], t["size_2d"], t["offset_3d"], t["size_3d"], t["size_3d"],
        t["depth"][..., 0],
        t["heading_bin"][..., 0], t["heading_res"][..., 0], t["mask_2d"].bool(), t["mask_3d"].bool(),
        label=torch.ones_like(slots), box2d=torch.zeros(*slots.shape, 4), present=t["mask_2d"].bool(),
        eligible=t["mask_2d"].bool(), on_map=t["mask_2d"].bool(), centre_cell=slots,
        distance=torch.zeros(slots.shape),
    )  # fmt: skip
    losses = monodle.detection_losses(heads, targets, MonoDLEConfig(depth_mask=depth_mask))
    for name, recorded in TERM_NAMES.items():
        close(losses[name], g[f"out.term.{recorded}"], 1e-10)
    total = sum(losses.values())
    close(total, g["out.loss"], 1e-10)
    total.backward()
    for head, tensor in heads.items():
        expected = g[f"grad.pred.{head}"]
        close(tensor.grad, expected, 1e-10, 1e-10 * float(expected.abs().max()))


@golden_file("monodle/decode")
def test_decode(path: Path) -> None:
    g = load(path)
    heads = {head: g[f"in.{head}"] for head in monodle.HEADS}
    k, (height, width) = g["out.dets"].shape[1], heads["heatmap"].shape[-2:]
    peaks = monodle.read_peaks(heads, k)
    rows = torch.cat(
        (peaks.label[..., None], peaks.score[..., None], peaks.centre_2d, peaks.size_2d, peaks.depth[..., None],
         peaks.heading, peaks.size_3d, peaks.centre_3d, peaks.confidence[..., None]), dim=-1,
    )  # fmt: skip
    close(rows, g["out.dets"], 1e-9, 1e-12)

    source = g["in.bbox_downsample_ratio"] * torch.tensor([width, height])
    identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64)
    n = len(source)
    affine = ImageAffine(
        identity.expand(n, 2, 3), torch.zeros(n, dtype=torch.bool), torch.ones(n).double(), source, source
    )
    blank = torch.zeros(n, 3, height * monodle.STRIDE, width * monodle.STRIDE, dtype=torch.float64)
    batch = Batch([str(i) for i in g["in.img_id"].tolist()], blank, Camera(g["in.P2"]), affine)
    config = MonoDLEConfig.styled(
        "released", classes=monodle.HEAT_CLASSES, top_k=k, score_threshold=float(g["in.threshold"])
    )
    found = monodle.peaks_to_boxes(peaks, batch, config, (width, height)).boxes()
    assert [len(b) for b in found] == [int((g["out.rows"][:, 0] == i).sum()) for i in g["in.img_id"]]
    ours = []
    for image, boxes in zip(g["in.img_id"], found, strict=True):
        hwl, bottom = boxes.size.flip(-1), boxes.centre + boxes.size[:, 2:] * torch.tensor([0, 0.5, 0])
        ours.append(torch.cat((image.expand(len(boxes), 1), boxes.label[:, None], boxes.alpha[:, None], boxes.box2d,
                               hwl, bottom, -boxes.yaw[:, None], boxes.score[:, None]), -1))  # fmt: skip
    order = [int(i) for image in g["in.img_id"] for i in (g["out.rows"][:, 0] == image).nonzero()]
    close(torch.cat(ours), g["out.rows"][order], 1e-9, 1e-9)
    lines = [
        f"{frame}|{line}"
        for frame, boxes in zip(batch.frame_ids, found, strict=True)
        for line in format_results(boxes, KITTI_CLASSES, decimals=2, score_decimals=2, unknown=("0.0", "0"))
    ]
    assert lines == [g["out.lines"][i] for i in order]


TARGETS = [path for path in golden_files("monodle") if path.stem.startswith("targets_")]


@pytest.mark.parametrize("path", TARGETS, ids=[f"monodle/{p.stem}" for p in TARGETS])
def test_targets(path: Path, tmp_path: Path) -> None:
    g = load(path)
    constants = json.loads((path.parent / "index.json").read_text())[path.name]["constants"]
    (tmp_path / "label.txt").write_text("\n".join(g["in.label_lines"]) + "\n")
    height, width = (n * monodle.STRIDE for n in g["out.heatmap"].shape[-2:])
    zoom, shift = (float(g["in.aug_scale"]), tuple(g["in.shift"].tolist())) if g["in.crop"] else (1.0, (0.0, 0.0))
    affine = ImageAffine.crop(tuple(g["in.img_size"].tolist()), (width, height), zoom, shift, bool(g["in.flip"]))
    # The released function takes it from points of image and canvas in float32, each rounded at its magnitude (px).
    rounding = float(np.spacing(np.float32(max(width, height))))
    rounding += float(affine.scale) * float(np.spacing(np.float32(g["in.img_size"].max())))
    close(affine.matrix[:, :2], g["out.trans"][:, :2], 1e-6, 1e-6)
    close(affine.matrix[:, 2], g["out.trans"][:, 2], 1e-6, rounding)
    projection = g["in.P2"].double()
    projection[2, 3] = 0  # the released projection divides by z itself
    batch = one_frame_batch(tmp_path / "label.txt", Camera(projection), affine)

    config = MonoDLEConfig(
        classes=tuple(c for c in constants["write_list"] if c in monodle.HEAT_CLASSES),
        merge_classes=tuple(c for c in constants["write_list"] if c in ("Van", "Truck")),
        cell="centre_3d" if constants["use_3d_center"] else "centre_2d",
        mean_size=constants["meanshape"], max_objects=constants["max_objs"], trunk=monodle.TINY_TRUNK,
    )  # fmt: skip
    targets = MonoDLE(config).encode(batch)
    for name in ("indices", "mask_2d", "mask_3d"):
        assert torch.equal(getattr(targets, name)[0].long(), g[f"out.{name}"].long()), name
    assert torch.equal(targets.heading_bin[0], g["out.heading_bin"][:, 0])
    close(targets.heatmap[0], g["out.heatmap"], 0, 1e-6)
    close(targets.depth[0], g["out.depth"][:, 0], 0, 1e-4)
    close(targets.heading_residual[0], g["out.heading_res"][:, 0], 0, 1e-4)
    trained = targets.mask_2d[0]
    for name in ("offset_2d", "size_2d", "offset_3d", "size_3d"):
        close(getattr(targets, name)[0][trained], g[f"out.{name}"][trained], 0, 1e-4)


def one_frame_batch(labels: Path, source: Camera, affine: ImageAffine) -> Batch:
    """A batch with one blank image whose objects went through the mirror and the affine as a data set does it."""
    from distill3d.data.augment.image import place_objects

    objects = place_objects(read_labels(labels), affine)
    stacked = ImageAffine.stack([affine])
    width, height = (int(n) for n in affine.canvas_size)
    camera = Camera(affine.camera(source).projection[None])
    return Batch(["frame"], torch.zeros(1, 3, height, width), camera, stacked, ObjectBatch.pad([objects]))


# ---------------------------------------------------------------------------------------------------------- the network


@golden_file("monodle/network_forward")
def test_network_forward(path: Path) -> None:
    g = load(path)
    constants = json.loads((path.parent / "index.json").read_text())[path.name]["constants"]
    entries = json.loads((path.parent / constants["state_dict_list"]).read_text())
    weights = hashed_weights({e["name"]: e["shape"] for e in entries}, constants["n_offset"])
    for name, probe in zip(g["in.probe_names"], g["in.probe_first8"], strict=True):
        close(weights[name].flatten()[: probe.numel()].repeat(8)[:8], probe, 1e-12)
    model = MonoDLE(MonoDLEConfig()).double().eval()
    theirs = plain_names({f"module.{k}": v for k, v in weights.items()})
    config = model.config
    model.load_state_dict(from_released(theirs, monodle.released_form(config), model.state_dict(), config).weights)

    shape = tuple(constants[k] for k in ("B",)) + (3, constants["H"], constants["W"])
    image = torch.from_numpy(3 * hashed(int(np.prod(shape)), 900001 + constants["n_offset"])).reshape(shape)
    close(image.flatten()[:8], g["in.input_first8"], 1e-12)
    image.requires_grad_()

    def assert_close(actual: Tensor, expected: Tensor) -> None:
        close(actual, expected, 1e-8, 1e-8 * float(expected.abs().max()))

    def means(tensor: Tensor, name: str) -> None:
        assert_close(tensor.mean((2, 3)), g[f"out.{name}_channel_mean"])
        assert_close(tensor.abs().mean((2, 3)), g[f"out.{name}_channel_absmean"])

    for level, tensor in enumerate(model.backbone(image)):
        means(tensor, f"backbone_{level}")
    outputs: Outputs = model.forward_image(image)
    means(outputs.features["neck_4"].tensor, "neck")
    total = torch.zeros((), dtype=torch.float64)
    for i, (head, tensor) in enumerate(outputs.predictions.items()):
        assert_close(tensor, g[f"out.{head}"])
        cotangent = hashed(tensor.numel(), 900100 + constants["n_offset"] + i)
        total = total + (tensor * torch.from_numpy(cotangent).reshape(tensor.shape)).sum()
    assert_close(total, g["out.total"])
    total.backward()
    close(image.grad.norm(), g["grad.input_norm"], 1e-7)
    ours = dict(model.named_parameters())
    for name, norm in zip(g["in.param_names"], g["grad.param_norm"], strict=True):
        if name in ours:
            close(ours[name].grad.norm(), norm, 1e-7)
        else:
            assert norm == 0, f"{name} is trained in the released code but missing here"

    model.train()
    for head, tensor in model.forward_image(image.detach()).predictions.items():
        assert_close(tensor.mean((2, 3)), g[f"out.train.{head}_channel_mean"])
        assert_close(tensor[:, :, 0], g[f"out.train.{head}_first_row"])


def test_released_parameter_count() -> None:
    """20,822,974 released parameters, less the classifier and the unused projections."""
    entries = golden_files("monodle")
    if not entries:
        pytest.skip("no recorded state dict")
    names = json.loads((entries[0].parent / "network_state_dict.json").read_text())
    ours = MonoDLE(MonoDLEConfig()).state_dict()
    listed = {e["name"]: tuple(e["shape"]) for e in names}
    kept = listed.keys() - unused_in_released(MonoDLEConfig().trunk).keys()
    assert {k: tuple(v.shape) for k, v in ours.items()} == {k: listed[k] for k in kept}
    assert all(f.type for f in fields(MonoDLEConfig))
