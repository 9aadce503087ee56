"""UVTR's transfer and the parts of its voxel space against recorded tensors of the released code (set ``uvtr_kd``)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from golden import constants, golden_file
from test_labeldistill_golden import load
from torch import Tensor, nn

from distill3d.distill.centre_points import places_on
from distill3d.distill.map_reading import cells_of, read_at
from distill3d.distill.methods.uvtr_kd import UVTRKDConfig, connector, point_losses
from distill3d.layers.ground.voxel_space import (
    VoxelAttention,
    VoxelEncoder,
    corner_positions,
    voxel_features,
    voxel_pixels,
)
from distill3d.layers.points.voxels import VoxelGrid

pytestmark = pytest.mark.golden
#: Of the voxel space in float64, of its networks, and of the losses in float32.
VOXELS = {"rtol": 1e-8, "atol": 1e-10}
NETWORKS = {"rtol": 1e-7, "atol": 1e-9}
LOSSES = {"rtol": 2e-4, "atol": 1e-5}


def settings(kd: dict[str, Any], layers: int) -> tuple[UVTRKDConfig, list[int]]:
    """Ours of the released ones, and the encoder's stages that are compared."""
    student, teacher = kd["student_trans"], kd["teacher_trans"]
    stages = kd.get("stage_num", [-1])
    kind = ("linear" if "conv" in student else "") + ("_norm" if "norm" in student else "")
    config = UVTRKDConfig.styled(
        "released", weight=kd["loss_weight"], connector=kind.lstrip("_") or "none",
        channel_norm=teacher == "channel_norm", reduction=kd["loss_reduction"],
        distance="partial" if kd["loss_dist"] == "MSE_partial" else "squared",
    )  # fmt: skip
    assert (teacher == "channel_norm") == (student == "channel_norm")
    return config, [s % layers for s in stages]


@golden_file("uvtr_kd/kd_released", "uvtr_kd/kd_connector_two_stages", "uvtr_kd/kd_channel_norm")
def test_points(path: Path) -> None:
    """The features at the predicted centres, the losses and what they teach.  The centres get no gradient, so those of
    the head's parameters are the detection's alone; its losses make up the rest of the total."""
    g, stated = load(path), constants(path)
    encoder = sum(name.startswith("in.student_voxels") for name in g)
    config, stages = settings(stated["kd"], encoder)
    low, high = torch.tensor(stated["point_cloud_range"]).view(2, 3)
    code = g["out.codes"]  # (layers, B, Q, 10), the centre in columns 0, 1 and 4
    centre = torch.stack((code[..., 0], code[..., 1], code[..., 4]), dim=-1)
    place = ((centre - low) / (high - low)).transpose(0, 1)  # (B, layers, Q, 3)
    student = [g[f"in.student_voxels{s}"].clone().requires_grad_() for s in stages]
    taught = [g[f"in.teacher_voxels{s}"] for s in stages]
    channels = taught[0].shape[1]
    connect = connector(config.connector, channels, channels)
    recorded = {k.removeprefix("param.connector."): v for k, v in g.items() if k.startswith("param.connector.")}
    connect.load_state_dict(recorded)

    pairs = []
    for i, (s, t) in enumerate(zip(student, taught, strict=True)):
        said, there = (read_at(v, cells_of(place, v)) for v in (s, t))
        pairs.append((connect(said), there))
        for layer in range(stated["layers"]):
            if config.connector == "none" and not config.channel_norm:
                torch.testing.assert_close(said[:, layer], g[f"out.layer{layer}.student{i}"], **LOSSES)
                torch.testing.assert_close(there[:, layer], g[f"out.layer{layer}.teacher{i}"], **LOSSES)
    losses = config.weight * point_losses(pairs, config)
    for layer, loss in enumerate(losses):
        torch.testing.assert_close(loss, g[f"out.d{layer}.loss_kd"], **LOSSES)
    detection = sum(g[k].sum() for k in g if k.endswith(("loss_cls", "loss_bbox")))
    torch.testing.assert_close(losses.sum() + detection, g["out.total"].sum(), **LOSSES)
    losses.sum().backward()
    for s, maps in zip(stages, student, strict=True):
        torch.testing.assert_close(maps.grad, g[f"grad.student_voxels{s}"], **LOSSES)
    for s in set(range(encoder)) - set(stages):
        assert not g[f"grad.student_voxels{s}"].any()
    for name, parameter in connect.named_parameters():
        torch.testing.assert_close(parameter.grad, g[f"grad.connector.{name}"], **LOSSES)


def test_places_of_a_map_are_those_of_the_released_normalisation() -> None:
    from distill3d.detectors.base import BevGeometry

    geometry = BevGeometry((-51.2, -51.2, 51.2, 51.2), 0.8, "ego")
    centre = torch.tensor([[-51.2, 51.2, 3.0], [0.0, 25.6, -1.0]])
    torch.testing.assert_close(places_on(centre, geometry), torch.tensor([[0.0, 1.0], [0.5, 0.75]]))


@golden_file("uvtr_kd/voxel_lifting", "uvtr_kd/voxel_lifting_augmented", "uvtr_kd/voxel_lifting_sweeps")
def test_lifting(path: Path) -> None:
    g, stated = load(path), constants(path)
    cams, sweeps, extent = stated["cams"], stated["sweeps"], stated["point_cloud_range"]
    cell = [(b - a) / n for a, b, n in zip(extent[:3], extent[3:], stated["voxel_shape"], strict=True)]
    grid = VoxelGrid(tuple(extent), tuple(cell))
    assert list(grid.shape) == stated["voxel_shape"]
    projection = g["in.lidar2img"].unsqueeze(2) if sweeps == 1 else g["in.lidar2img"]  # (B, N, sweeps, 4, 4)
    batch, (height, width) = len(projection), g["in.image_size"].tolist()
    affine = None
    if "in.image_rotation" in g:  # both are for row vectors
        affine = torch.cat((g["in.image_rotation"].mT, g["in.image_translation"][:, None]), dim=1)
    frame = g["in.voxel_rotation"].mT.repeat_interleave(cams, 0) if "in.voxel_rotation" in g else None

    def of_sweeps(maps: Tensor) -> Tensor:
        """(B * sweeps, N, ...), a sweep of a sample counting as a sample."""
        return maps.reshape(batch, cams, sweeps, *maps.shape[-3:]).transpose(1, 2).flatten(0, 1)

    projection = projection.transpose(1, 2).flatten(0, 1)
    places = voxel_pixels(
        corner_positions(grid), projection.flatten(0, 1), (width, height), stated["depth_bins"], frame, affine
    ).unflatten(0, (batch * sweeps, cams))
    read = {f"{kind}{level}": g[f"in.{kind}{level}"].clone().requires_grad_()
            for level in range(stated["levels"]) for kind in ("feature", "depth")}  # fmt: skip
    levels = [(of_sweeps(read[f"feature{i}"]), of_sweeps(read[f"depth{i}"])) for i in range(stated["levels"])]
    voxels = voxel_features(levels, places)
    torch.testing.assert_close(voxels, g["out.voxels"], **VOXELS)
    gradients = torch.autograd.grad((voxels * g["in.cotangent"]).sum(), list(read.values()))
    for name, gradient in zip(read, gradients, strict=True):
        torch.testing.assert_close(gradient, g[f"grad.{name}"], **VOXELS)


@golden_file("uvtr_kd/voxel_encoder")
def test_encoder(path: Path) -> None:
    g, stated = load(path), constants(path)
    encoder = VoxelEncoder(stated["channels"], stated["convs"]).double().train()
    state = encoder.state_dict()
    for name, value in g.items():
        if name.startswith("param."):
            number, rest = name.removeprefix("param.conv_trans_head_").split(".", 1)
            state[f"layers.{int(number) - 1}.{rest}"] = value
    encoder.load_state_dict(state)
    x = g["in.x"].clone().requires_grad_()
    final, before = encoder(x)
    torch.testing.assert_close(final[:, None], g["out.final"], **NETWORKS)
    for i, tap in enumerate(before):
        torch.testing.assert_close(tap, g[f"out.before_relu{i}"], **NETWORKS)
    (gradient,) = torch.autograd.grad((before[-1] * g["in.cotangent"]).sum(), x)
    torch.testing.assert_close(gradient, g["grad.x"], **NETWORKS)


#: Ours of the released names.
ATTENTION = {"attention_weights": "weight", "output_proj": "output", "position_encoder": "position"}


@golden_file("uvtr_kd/uni_cross_attention")
def test_attention(path: Path) -> None:
    g, stated = load(path), constants(path)
    attention: nn.Module = VoxelAttention(stated["channels"]).double()
    names = {k: k.removeprefix("param.") for k in g if k.startswith("param.")}
    attention.load_state_dict(
        {v.replace((first := v.split(".")[0]), ATTENTION[first], 1): g[k] for k, v in names.items()}
    )
    for kind, sources in (("image", ["image"]), ("points", ["point"]), ("both", ["image", "point"])):
        query = g["in.query"].clone().requires_grad_()
        volumes = [g[f"in.{s}_voxels"].clone().requires_grad_() for s in sources]
        out = attention(
            query.transpose(0, 1), g["in.query_pos"].transpose(0, 1), g["in.reference"], [v[:, 0] for v in volumes]
        ).transpose(0, 1)
        torch.testing.assert_close(out, g[f"out.{kind}"], **VOXELS)
        total = (out * g[f"in.{kind}.cotangent"]).sum()
        gradients = torch.autograd.grad(total, [query, *volumes])
        recorded = [g[f"grad.{kind}.query"], *(g[f"grad.{kind}.value{i}"] for i in range(len(volumes)))]
        for gradient, expected in zip(gradients, recorded, strict=True):
            torch.testing.assert_close(gradient, expected, **VOXELS)
