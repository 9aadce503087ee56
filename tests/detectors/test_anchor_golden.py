"""Anchors, codes and the anchor head's networks against recorded tensors of the released code (set ``cmkd``)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import golden_file
from torch import Tensor, nn

from distill3d.layers.heads import anchors as A
from distill3d.layers.heads.anchor_head import CODE, AnchorHead, AnchorHeadConfig, BevBackbone, BevBackboneConfig
from distill3d.layers.heads.anchors import KITTI_ANCHORS

pytestmark = pytest.mark.golden


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file and the constants that its index states."""
    with np.load(path) as data:
        tensors = {k: torch.from_numpy(data[k]) for k in data}
    return tensors, json.loads((path.parent / "index.json").read_text())[path.name].get("constants", {})


def close(actual: Tensor, expected: Tensor, rtol: float = 0.0, atol: float = 0.0) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rtol, atol=atol)


def put(module: nn.Module, g: dict[str, Tensor]) -> None:
    """Recorded weights into the module, under the names that they have; only counts of batches may be missing."""
    weights = {k.removeprefix("param."): v for k, v in g.items() if k.startswith("param.")}
    missing, unexpected = module.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)


@golden_file("cmkd/anchors")
def test_anchors(path: Path) -> None:
    g, constants = load(path)
    names = [c.name.lower() for c in KITTI_ANCHORS]
    classes = tuple(
        replace(c, size=tuple(constants["sizes"][i]), bottom=constants["bottoms"][i])
        for i, c in enumerate(KITTI_ANCHORS)
    )
    assert list(A.ROTATIONS) == constants["yaws"]
    x, y = (int(s) // constants["stride"] for s in g["in.grid_size"][:2])
    extent = g["in.range"].tolist()
    grid = A.anchor_grid(classes, (extent[0], extent[1], extent[3], extent[4]), (y, x))
    for i, name in enumerate(names):
        close(grid[None, :, :, i, None], g[f"out.{name}"], atol=1e-5)
    close(grid.flatten(0, 3), g["out.flat"], atol=1e-5)


@golden_file("cmkd/residual_coder", "cmkd/residual_coder_sincos")
def test_residual_coder(path: Path) -> None:
    g, _ = load(path)
    yaw = "sincos" if path.stem.endswith("sincos") else "difference"
    close(A.encode(g["in.boxes"], g["in.anchors"], yaw), g["out.encoded"], 1e-12, 1e-9)
    close(A.decode(g["in.codes"], g["in.anchors"], yaw), g["out.decoded"], 1e-12, 1e-9)


@golden_file("cmkd/head_decode")
def test_decode(path: Path) -> None:
    g, constants = load(path)
    assert (constants["dir_offset"], constants["bins"]) == (A.DIRECTION_OFFSET, A.DIRECTION_BINS)
    batch, count = g["out.boxes"].shape[:2]
    codes, directions = g["in.box"].view(batch, count, 7), g["in.dir"].view(batch, count, A.DIRECTION_BINS)
    close(A.decode_directed(codes, directions, g["in.anchors"]), g["out.boxes"], atol=1e-6)
    close(g["in.cls"].view(g["out.cls"].shape), g["out.cls"], 1e-6)  # the layout that scores are read in


def small_head(channels: int, count: int) -> AnchorHead:
    """A head of ``count`` classes whose backbone gives ``channels``."""
    backbone = BevBackboneConfig((0,), (1,), (1,), (channels,), (1,))
    classes = tuple(KITTI_ANCHORS[i % len(KITTI_ANCHORS)] for i in range(count))
    config = AnchorHeadConfig(classes=classes, backbone=backbone)
    return AnchorHead(1, (0, 0, 0, 1, 1, 1), (1, 1), config).double()


@golden_file("cmkd/head_forward")
def test_head(path: Path) -> None:
    g, constants = load(path)
    count = len(g["param.conv_box.bias"]) // (CODE * len(A.ROTATIONS))
    head = small_head(g["in.features"].shape[1], count)
    assert head.conv_cls.bias is not None
    close(head.conv_cls.bias, torch.full_like(head.conv_cls.bias, constants["class bias init"]), 1e-6)
    layers = nn.ModuleDict({name: getattr(head, name) for name in ("conv_cls", "conv_box", "conv_dir_cls")})
    put(layers, g)
    for name, prediction in head.read(g["in.features"]).items():
        close(prediction, g[f"out.{name}"], 1e-10, 1e-10)


@golden_file("cmkd/bev_backbone")
def test_bev_backbone(path: Path) -> None:
    g, constants = load(path)
    layers, channels, strides, up = (tuple(constants[k]) for k in ("layer_nums", "filters", "strides", "up"))
    up_strides = tuple(g[f"param.deblocks.{i}.0.weight"].shape[-1] for i in range(len(up)))
    network = BevBackbone(g["in.x"].shape[1], BevBackboneConfig(layers, channels, strides, up, up_strides)).double()
    put(network, g)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(constants["bn eps"], constants["bn momentum"])}
    for mode in ("eval", "train"):
        x = g["in.x"].clone().requires_grad_()
        out = network.train(mode == "train")(x)
        close(out, g[f"out.{mode}"], 1e-8, 1e-10)
        (out * g["in.cotangent"]).sum().backward()
        assert x.grad is not None
        close(x.grad, g[f"grad.x_{mode}"], 1e-8, 1e-10)
