"""Sparse blocks, backbone and voxel features against recorded tensors of the released code (set ``cmkd``)."""

import re
from pathlib import Path

import pytest
import torch
from golden import constants, formula_state, golden_file
from test_gupnet_golden import group
from test_monodle_golden import close, load

from distill3d.layers.points.sparse_conv import (
    Kernel,
    SparseBasicBlock,
    SparseConv3d,
    SparseConvNorm,
    SparseResNet,
    SparseResNetConfig,
    SparseTensor,
    Triple,
)
from distill3d.layers.points.voxels import Voxels, mean_of_points

pytestmark = pytest.mark.golden


def recorded_kernel(text: str, size: Triple) -> Kernel:
    """From "k3 s2 pad (0,1,1)", with the sizes of the weight."""
    found = re.fullmatch(r"k\d+ s(\d+) pad \((\d+),(\d+),(\d+)\)", text)
    assert found is not None, text
    stride, z, y, x = (int(n) for n in found.groups())
    return Kernel(size, (stride, stride, stride), (z, y, x))


@golden_file("cmkd/sparse_blocks")
def test_blocks(path: Path) -> None:
    g = load(path)
    z, y, x = g["in.spatial_shape"].tolist()
    coords = g["in.coords"].long()
    given = SparseTensor(g["in.features"], coords, (z, y, x), int(coords[:, 0].max()) + 1)
    weight = g["param.down.0.weight"]
    depth, height, width = weight.shape[1:4]
    kernel = recorded_kernel(constants(path)["strided"], (depth, height, width))
    modules = {
        "block": SparseBasicBlock(given.features.shape[1]),
        "down": SparseConvNorm(SparseConv3d(weight.shape[-1], len(weight), kernel)),
    }
    for name, module in modules.items():
        recorded = group(g, f"param.{name}.")
        counters = {k: v for k, v in module.state_dict().items() if k.endswith("num_batches_tracked")}
        module.load_state_dict(recorded | counters)
        module.eval()
    block = modules["block"](given)
    close(block.features, g["out.block_features"], 0, 1e-5)
    down = modules["down"](block)
    assert torch.equal(down.coords, g["out.down_coords"])
    close(down.features, g["out.down_features"], 0, 1e-5)


@golden_file("cmkd/sparse_backbone_c64")
def test_backbone(path: Path) -> None:
    g, recorded = load(path), constants(path)
    z, y, x = recorded["sparse shape (Z+1,Y,X)"]
    given = SparseTensor(g["in.voxel_features"], g["in.voxel_coords"].long(), (z, y, x), len(g["out.bev"]))
    net = SparseResNet(SparseResNetConfig())
    net.load_state_dict(formula_state(recorded))
    net.eval()
    maps = net.maps(given)
    assert [len(m.coords) for m in maps] == g["out.active_counts"].tolist()
    for ours, name in ((maps[-2].dense(), "stage4_dense"), (net(given), "bev")):
        expected = g[f"out.{name}"]
        close(ours, expected, 2e-4, 2e-4 * float(expected.abs().max()))


@golden_file("cmkd/mean_vfe")
def test_mean_of_points(path: Path) -> None:
    g = load(path)
    coords = torch.zeros(len(g["in.voxels"]), 4, dtype=torch.int64)
    close(mean_of_points(Voxels(g["in.voxels"], g["in.num_points"], coords, 1)), g["out.features"], 0, 1e-6)
