"""CaDDN's parts against recorded tensors of the released code (sets ``cmkd`` and ``monotakd``)."""

from pathlib import Path

import pytest
import torch
from golden import constants, formula_state, golden_file
from test_gupnet_golden import group
from test_monodle_golden import close, load
from torch import Tensor, nn

from distill3d.camera import Camera, DepthBins
from distill3d.detectors.caddn import STRIDE, depth_bins
from distill3d.layers.ground.bev_blocks import AlignedCollapse, FeatureFusion, HeightCollapse, SCNet, SpatialAlignment
from distill3d.layers.ground.lift import (
    OUTSIDE,
    depth_probability,
    frustum_volume,
    lift,
    one_hot_depth,
    sample_volume,
    sampling_grid,
    sparse_average_pool,
)
from distill3d.layers.points.voxels import VoxelGrid

pytestmark = pytest.mark.golden


def check_block(g: dict[str, Tensor], block: nn.Module, state: dict[str, Tensor], rtol: float, atol: float) -> None:
    """Outputs and input gradients in both modes, and the running statistics after one forward pass in training."""
    block.double()
    counters = {k: v for k, v in block.state_dict().items() if k.endswith("num_batches_tracked")}
    block.load_state_dict(counters | state)
    for mode in ("eval", "train"):
        block.train(mode == "train")
        x = g["in.x"].clone().requires_grad_()
        out = block(x)
        close(out, g[f"out.{mode}"], rtol, atol)
        (gradient,) = torch.autograd.grad((out * g["in.cotangent"]).sum(), x)
        expected = g[f"grad.x_{mode}"]
        close(gradient, expected, rtol, atol + rtol * float(expected.abs().max()))
    after = block.state_dict()
    for name, value in group(g, "out.after_train.").items():
        close(after[name], value, rtol, atol)


@golden_file("cmkd/depth_bins")
def test_depth_bins(path: Path) -> None:
    g = load(path)
    checked = 0
    for i, (near, far, count) in enumerate(constants(path)["configs (min,max,bins)"]):
        for precision, rtol in (("f32", 1e-5), ("f64", 1e-10)):
            depth = g[f"in.depth_{precision}"]
            for mode in ("LID", "UD", "SID"):
                bins = DepthBins(near, far, count, mode)
                position = bins.position(depth)
                expected = g[f"out.cont_{mode}_{i}_{precision}"]
                torch.testing.assert_close(position, expected, rtol=rtol, atol=rtol, equal_nan=True)
                index, recorded = bins.index(depth), g[f"out.index_{mode}_{i}_{precision}"]
                edge = ((expected - expected.round()).abs() < rtol * count) | ~expected.isfinite()
                assert torch.equal(index[~edge], recorded[~edge])
                assert torch.equal(index[~expected.isfinite()], recorded[~expected.isfinite()])
                checked += int((~edge).sum())
        inverse = g[f"out.depth_LID_{i}"]
        close(DepthBins(near, far, count).depth(torch.arange(count + 1, dtype=inverse.dtype)), inverse, 1e-12)
    assert checked > 0


@golden_file("cmkd/frustum_lift")
def test_frustum_lift(path: Path) -> None:
    """The recorded frustum is no outer product, but it is a sum of such: one for each depth."""
    g, scheme = load(path), constants(path)["discretisation"]
    low, high = g["in.range"].tolist()[:3], g["in.range"].tolist()[3:]
    shape = g["in.grid_size"].tolist()
    voxels = VoxelGrid(
        (*low, *high), tuple((b - a) / n for a, b, n in zip(low, high, shape, strict=True))
    )  # fmt: skip
    assert list(voxels.shape) == shape
    bins = DepthBins(scheme["depth_min"], scheme["depth_max"], scheme["num_bins"], scheme["mode"])
    height, width = (int(n) for n in g["in.image_shape"].amax(0))
    recorded = g["in.frustum_features"].clone().requires_grad_()
    batch, _, depths, *cells = recorded.shape
    grid = sampling_grid(
        voxels, Camera(g["in.cam_to_img"]), g["in.lidar_to_cam"], bins, (width, height), -(-width // cells[1])
    )
    expected = g["out.grid"].permute(0, 2, 1, 3, 4)  # (B, Y, X, Z, 3)
    inside = (expected.abs() <= 2).all(-1)
    close(grid[inside], expected[inside], 0, 2e-5)
    assert torch.equal(grid == OUTSIDE, expected == OUTSIDE)

    one_hot = torch.eye(depths)[:, :, None, None].expand(depths, depths, *cells)
    slices = [lift(recorded[:, :, d], one_hot[d].expand(batch, -1, -1, -1), grid) for d in range(depths)]
    for volume in (sample_volume(recorded, grid), torch.stack(slices).sum(0)):
        close(volume, g["out.voxel_features"], 0, 1e-4)
        (gradient,) = torch.autograd.grad((volume * g["in.cotangent"]).sum(), recorded)
        close(gradient, g["grad.frustum_features"], 0, 1e-4)


@golden_file("monotakd/ta_depth_onehot")
def test_depth_distributions(path: Path) -> None:
    g, scheme = load(path), constants(path)
    bins = DepthBins(scheme["min"], scheme["max"], scheme["bins"])
    depth = g["in.depth_map"][:, None]
    close(sparse_average_pool(depth, scheme["factor"]), g["out.pooled_depth"], 1e-6, 1e-5)
    index = bins.index(sparse_average_pool(depth, scheme["factor"]))
    assert scheme["factor"] != STRIDE or torch.equal(index, depth_bins(depth, bins))
    at_edge = (g["out.pooled_depth"] - bins.far).abs() < 1e-4
    assert torch.equal(index[~at_edge], g["out.bins"][~at_edge])
    features, logits = (g[f"in.{name}"].clone().requires_grad_() for name in ("image_features", "depth_logits"))
    for name, distribution in (
        ("student", depth_probability(logits)), ("target", one_hot_depth(g["out.bins"], bins.count)),
    ):  # fmt: skip
        volume = frustum_volume(features, distribution)
        close(volume, g[f"out.frustum_{name}"], 0, 1e-5)
        leaves = {"image_features": features, "depth_logits": logits}
        recorded = group(g, f"grad.{name}.")
        scalar = (volume * g["in.cotangent"]).sum()
        gradients = torch.autograd.grad(scalar, [leaves[leaf] for leaf in recorded])
        for gradient, expected in zip(gradients, recorded.values(), strict=True):
            close(gradient, expected, 0, 1e-5)


@golden_file("cmkd/conv2d_collapse")
def test_height_collapse(path: Path) -> None:
    g = load(path)
    _, channels, levels, *_ = g["in.x"].shape
    state = group(g, "param.")
    check_block(g, HeightCollapse(channels, levels, len(state["block.bn.weight"])), state, 1e-8, 1e-10)


@golden_file("cmkd/scnet")
def test_scnet(path: Path) -> None:
    g = load(path)
    check_block(
        g, SCNet(g["in.x"].shape[1], constants(path)["NUM_BLOCKS"] - 1), group(g, "param."), 1e-8, 1e-10
    )  # fmt: skip


@golden_file("monotakd/sam_small", "monotakd/sam_full")
def test_spatial_alignment(path: Path) -> None:
    g = load(path)
    state = group(g, "param.") or formula_state(constants(path))
    branch, mid = len(state["aspp.conv_1x1_1.weight"]), len(state["conv.0.weight"])
    check_block(g, SpatialAlignment(g["in.x"].shape[1], branch, mid), state, 1e-7, 1e-9)


@golden_file("monotakd/ffm_small", "monotakd/ffm_full")
def test_feature_fusion(path: Path) -> None:
    g = load(path)
    state = group(g, "param.") or formula_state(constants(path))
    block = FeatureFusion(g["in.x"].shape[1], len(state["conv2.weight"]), "shared")
    check_block(g, block, state, 1e-7, 1e-9)


@golden_file("monotakd/collapse_three_paths")
def test_collapse_three_paths(path: Path) -> None:
    g = load(path)
    state = group(g, "param.")
    _, channels, levels, *_ = g["in.voxel"].shape
    collapse = AlignedCollapse(channels, levels, len(state["block.bn.weight"]), assistant=True)
    sam = SpatialAlignment(
        len(state["block.bn.weight"]), len(state["sam.aspp.conv_1x1_1.weight"]), len(state["sam.conv.0.weight"])
    )
    collapse.sam = sam
    collapse.double().eval()
    counters = {k: v for k, v in collapse.state_dict().items() if k.endswith("num_batches_tracked")}
    collapse.load_state_dict(counters | state)
    volumes = [g[f"in.{name}"].clone().requires_grad_() for name in ("voxel", "voxel_target")]
    maps = {
        "vis": collapse(volumes[0]), "spa": collapse.spatial(volumes[0]), "target": collapse.assistant(volumes[1]),
    }  # fmt: skip
    for name, recorded in (("vis", "f_vis"), ("spa", "f_spa_aligned"), ("target", "f_target")):
        close(maps[name], g[f"out.{recorded}"], 1e-8, 1e-10)
    scalar = torch.stack([(m * g[f"in.cotangent_{name}"]).sum() for name, m in maps.items()]).sum()
    for gradient, name in zip(torch.autograd.grad(scalar, volumes), ("voxel", "voxel_target"), strict=True):
        expected = g[f"grad.{name}"]
        close(gradient, expected, 1e-8, 1e-8 * float(expected.abs().max()))
