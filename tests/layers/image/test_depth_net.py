"""BEVDepth's depth network: recorded tensors, published size, batches of one, precision, depth targets and loss."""

import math
from pathlib import Path

import pytest
import torch
from golden import constants, golden_file
from hypothesis import given
from hypothesis import strategies as st
from test_voxel_pooling import close, load
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from distill3d.camera import DepthBins
from distill3d.layers.ground.lift import one_hot_depth
from distill3d.layers.image.depth_net import (
    CAMERA_NUMBERS,
    DEFORM_GROUPS,
    DepthAggregation,
    DepthNet,
    GroupedDeformConv,
    camera_vector,
    depth_distribution,
    depth_log_scales,
    depth_loss,
    nearest_depth_bins,
)

BINS = DepthBins(2.0, 58.0, 112, "UD")
#: The first bin begins at NEAR and each is STEP deep (m), as in the released ``dbound``.
NEAR, STEP = 2.0, 0.5


# ------------------------------------------------------------------------------------------------------------- recorded


def with_state(module: nn.Module, g: dict[str, Tensor]) -> nn.Module:
    """The module in float64 and eval mode with the recorded weights, all of them and no others."""
    module.double().eval()
    state = {name.removeprefix("param."): value for name, value in g.items() if name.startswith("param.")}
    counters = {k: v for k, v in module.state_dict().items() if k.endswith("num_batches_tracked")}
    module.load_state_dict(counters | state)
    return module


@pytest.mark.golden
@golden_file("bevdepth/depthnet")
def test_recorded_depth_net(path: Path) -> None:
    g = load(path)
    names = ("reduce_conv.0.bias", "context_conv.bias", "depth_conv.5.bias")
    mid, context, depth = (len(g[f"param.{name}"]) for name in names)
    net = with_state(DepthNet(g["in.x"].shape[1], mid, context, depth), g)
    camera = camera_vector(g["in.intrinsics"], g["in.ida"], g["in.bda"], g["in.sensor2ego"])
    close(camera, g["out.camera_vector"], 1e-12)
    x = g["in.x"].clone().requires_grad_()
    y = torch.cat(net(x, camera), dim=1)
    close(y, g["out.y"], 1e-7, 1e-9)
    (gradient,) = torch.autograd.grad((y * g["in.cotangent"]).sum(), x)
    close(gradient, g["grad.x"], 1e-7, 1e-9)


@pytest.mark.golden
@golden_file("bevdepth/depth_aggregation")
def test_recorded_aggregation(path: Path) -> None:
    g = load(path)
    x = g["in.x"]
    aggregation = with_state(DepthAggregation(x.shape[1], len(g["param.reduce_conv.0.weight"])), g)
    close(aggregation(x), g["out.y"], 1e-9, 1e-12)
    volume = x.permute(1, 3, 0, 2)[None]  # slices are the rows of one image: (1, C, D, h, W)
    close(aggregation.volume(volume)[0].permute(2, 0, 3, 1), g["out.y"], 1e-9, 1e-12)


@pytest.mark.golden
@golden_file("bevdepth/depth_onehot")
def test_recorded_depth_targets(path: Path) -> None:
    """The size of the map, and so of its blocks, stands beside the map, in the file it was made of."""
    g = load(path)
    height, width = load(path.with_name("depth_from_points.npz"))["in.final_dim"].tolist()
    cells, bins = g["out.onehot"].shape
    stride = math.isqrt(height * width // cells)
    depth = torch.zeros(height, width)
    depth[tuple(g["in.map_rows_cols"].T)] = g["in.map_values"]
    index = nearest_depth_bins(depth[None], DepthBins(NEAR, NEAR + STEP * bins, bins, "UD"), stride)
    hot = one_hot_depth(index, bins)[0].permute(1, 2, 0).flatten(0, 1)
    assert torch.equal(hot.to(torch.uint8), g["out.onehot"])


@pytest.mark.golden
@golden_file("labeldistill/depth_loss")
def test_recorded_depth_loss(path: Path) -> None:
    g, scheme = load(path), constants(path)
    near, far, step = scheme["dbound"]
    bins = DepthBins(near, far, round((far - near) / step), "UD")
    logits = g["in.logits"].clone().requires_grad_()
    target = nearest_depth_bins(g["in.depth"].flatten(0, 1), bins, g["in.depth"].shape[-2] // logits.shape[-2])
    hot = one_hot_depth(target, bins.count).permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.equal(hot.to(torch.uint8), g["out.onehot"])
    loss = scheme["weight"] * depth_loss(logits, target)
    close(loss, g["out.loss"], 1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    close(gradient, g["grad.logits"], 1e-5, 1e-5 * float(g["grad.logits"].abs().max()))


# -------------------------------------------------------------------------------------------------------------- network


def test_published_size() -> None:
    with torch.device("meta"):
        net = DepthNet(512, 512, 150, 112)
    assert sum(p.numel() for p in net.parameters()) == 27_853_646


def test_without_depth_only_the_context_is_built() -> None:
    torch.manual_seed(0)
    net = DepthNet(6, 8, 5, 0).eval()
    full = DepthNet(6, 8, 5, 7).eval()
    full.load_state_dict(full.state_dict() | net.state_dict())
    assert not any("depth" in name for name in net.state_dict())
    x, camera = torch.randn(2, 6, 3, 4), torch.randn(2, CAMERA_NUMBERS)
    depth, context = net(x, camera)
    assert depth is None and torch.equal(context, full(x, camera)[1])


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("bf16", [False, True])
def test_trains(images: int, bf16: bool) -> None:
    """Also one image, whose pooled maps and camera numbers have no variance; depth logits stay float32."""
    torch.manual_seed(0)
    net = DepthNet(6, 8, 5, 7).train()
    camera = 100 * torch.randn(images, CAMERA_NUMBERS)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        depth, context = net(torch.randn(images, 6, 5, 4), camera)
    assert depth.shape == (images, 7, 5, 4) and context.shape == (images, 5, 5, 4) and depth.dtype == torch.float32
    (depth.square().sum() + context.float().square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_camera_matters() -> None:
    torch.manual_seed(0)
    net = DepthNet(6, 8, 5, 7).eval()
    x, camera = torch.randn(1, 6, 5, 4), torch.randn(1, CAMERA_NUMBERS)
    for one, other in zip(net(x, camera), net(x, camera + 1), strict=True):
        assert (one - other).abs().max() > 1e-4


@pytest.mark.parametrize("spread", [0.0, 0.7])
def test_deformable_convolution_in_groups(spread: float) -> None:
    """As torchvision's; before training as a plain convolution."""
    torch.manual_seed(0)
    layer = GroupedDeformConv(2 * DEFORM_GROUPS, DEFORM_GROUPS).double()
    x = torch.randn(2, 2 * DEFORM_GROUPS, 5, 7, dtype=torch.float64)
    plain = nn.functional.conv2d(x, layer.weight, padding=1, groups=DEFORM_GROUPS)
    torch.testing.assert_close(layer(x), plain)
    nn.init.normal_(layer.conv_offset.weight, std=spread)
    torch.testing.assert_close(layer(x), deform_conv2d(x, layer.conv_offset(x), layer.weight, padding=1))


def test_rows_are_aggregated_apart() -> None:
    """What changes in one row of the image changes that row alone, along width and depth."""
    torch.manual_seed(0)
    aggregation = DepthAggregation(3).eval()
    volume = torch.randn(2, 3, 5, 4, 6)
    other = volume.clone()
    other[1, :, 2, 3, 4] += 1
    changed = (aggregation.volume(volume) != aggregation.volume(other)).any(1)
    assert changed[1, :, 3].any() and not changed[0].any() and not changed[1, :, :3].any()


# ------------------------------------------------------------------------------------------------------ targets, losses


@pytest.mark.parametrize(
    ("depths", "expected"),
    [
        ([0.0], 112), ([1.9], 112), ([2.0], 0), ([2.49], 0), ([2.5], 1), ([57.99], 111), ([58.0], 112), ([80.0], 112),
        ([30.0, 10.0], 16), ([1.9, 10.0], 112), ([80.0, 10.0], 16),
    ],
)  # fmt: skip
def test_nearest_depth_decides(depths: list[float], expected: int) -> None:
    block = torch.zeros(1, 16, 32)
    block[0, 3, 4 : 4 + len(depths)] = torch.tensor(depths)
    assert nearest_depth_bins(block, BINS, 16).tolist() == [[[expected, BINS.count]]]


@given(st.integers(0, 10_000))
def test_depth_loss_by_hand(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 2, 3, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 5, (2, 2, 3), generator=generator)
    total, count = 0.0, 0
    for image, row, column in torch.cartesian_prod(*(torch.arange(n) for n in (2, 2, 3))).tolist():
        kind = int(target[image, row, column])
        if kind < 4:
            count += 1
            for i, p in enumerate(logits[image, :, row, column].softmax(0).tolist()):
                total -= math.log(p if i == kind else 1 - p)
    assert float(depth_loss(logits, target)) == pytest.approx(total / max(1, count))


def test_no_labelled_depth_costs_nothing() -> None:
    logits = torch.randn(2, 4, 2, 3, requires_grad=True)
    loss = depth_loss(logits, torch.full((2, 2, 3), 4))
    loss.backward()
    assert loss == 0 and logits.grad is not None and not logits.grad.any()


def test_depth_loss_is_exact_under_autocast_and_when_sure() -> None:
    logits = torch.tensor([200.0, 0.0, -200.0]).view(1, 3, 1, 1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        right, wrong = (depth_loss(logits, torch.full((1, 1, 1), i)) for i in (0, 2))
    assert right == 0 and wrong.dtype == torch.float32 and wrong.isfinite() and wrong > 100
    wrong.backward()
    assert logits.grad.isfinite().all()


def test_depth_scale() -> None:
    """That of a bin where sure, of the whole range where all is alike, of half the distance between two peaks."""
    even = torch.zeros(1, BINS.count, 1, 1)
    sure, torn = even.clone(), even.clone()
    sure[0, 30], torn[0, 20], torn[0, 80] = 100, 100, 100
    found = [float(depth_log_scales(logits, BINS).exp()) for logits in (sure, even, torn)]
    assert found[0] == pytest.approx(STEP / math.sqrt(24), rel=1e-4)
    assert found[1] == pytest.approx((BINS.far - BINS.near) / math.sqrt(24), rel=1e-4)
    assert found[2] == pytest.approx(math.sqrt((15**2 + STEP**2 / 12) / 2), rel=1e-4)
    torch.testing.assert_close(depth_distribution(even.bfloat16()).sum(1), torch.ones(1, 1, 1))
