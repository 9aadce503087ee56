"""Sparse convolution against dense convolution on the same cells."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distill3d.errors import UserError
from distill3d.layers.points.sparse_conv import (
    Kernel,
    SparseBasicBlock,
    SparseConv3d,
    SparseResNet,
    SparseResNetConfig,
    SparseTensor,
    SubMConv3d,
    Triple,
    normalise_rows,
    row_norm,
)

KERNELS = {
    "k3 s2 p1": Kernel((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    "k3 s2 p(0,1,1)": Kernel((3, 3, 3), (2, 2, 2), (0, 1, 1)),
    "k(3,1,1) s(2,1,1)": Kernel((3, 1, 1), (2, 1, 1)),
    "k(1,2,4) s(1,3,2) p(0,1,2)": Kernel((1, 2, 4), (1, 3, 2), (0, 1, 2)),
}
TINY = SparseResNetConfig(inputs=2, channels=(3, 4), strides=(2,), padding_z=(1,), blocks=1, outputs=5)


def scattered(shape: Triple, active: list[float], channels: int, seed: int) -> SparseTensor:
    """Random features at random cells, a given share of each sample's, in random order."""
    g = torch.Generator().manual_seed(seed)
    cells = torch.rand(len(active), *shape, generator=g) < torch.tensor(active)[:, None, None, None]
    coords = cells.nonzero()
    coords = coords[torch.randperm(len(coords), generator=g)]
    features = torch.randn(len(coords), channels, generator=g)
    return SparseTensor(features.requires_grad_(), coords, shape, len(active))


def occupancy(x: SparseTensor) -> Tensor:
    return x.with_features(torch.ones(len(x.coords), 1)).dense()


def dense_convolution(x: SparseTensor, conv: SubMConv3d | SparseConv3d) -> tuple[Tensor, Tensor]:
    """The convolution of the whole grid, and which cells of the output are active."""
    kernel = conv.kernel
    out = F.conv3d(x.dense(), conv.weight.permute(0, 4, 1, 2, 3), conv.bias, kernel.stride, kernel.padding)
    if isinstance(conv, SubMConv3d):
        return out, occupancy(x) > 0
    seen = F.conv3d(occupancy(x), torch.ones(1, 1, *kernel.size), None, kernel.stride, kernel.padding)
    return out, seen > 0


def check(x: SparseTensor, conv: SubMConv3d | SparseConv3d, seed: int) -> None:
    leaves = [x.features, *conv.parameters()]
    ours = conv(x)
    expected, active = dense_convolution(x, conv)
    assert torch.equal(occupancy(ours) > 0, active)
    torch.testing.assert_close(ours.dense(), expected * active, rtol=1e-5, atol=1e-5)
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(seed))
    found = torch.autograd.grad((ours.dense() * cotangent).sum(), leaves)
    wanted = torch.autograd.grad((expected * active * cotangent).sum(), leaves)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


samples = st.lists(st.sampled_from([0.0, 0.05, 0.4, 1.0]), min_size=1, max_size=3)
shapes = st.tuples(st.integers(3, 6), st.integers(3, 7), st.integers(4, 7))
channels = st.integers(1, 4)


@given(samples, shapes, channels, channels, st.sampled_from([1, 3]), st.booleans(), st.integers(0, 1000))
def test_submanifold_equals_dense(
    active: list[float], shape: Triple, inputs: int, outputs: int, size: int, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x = scattered(shape, active, inputs, seed)
    conv = SubMConv3d(inputs, outputs, size, bias)
    assert conv(x).coords is x.coords
    check(x, conv, seed)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@settings(max_examples=40)
@given(active=samples, shape=shapes, inputs=channels, outputs=channels, bias=st.booleans(), seed=st.integers(0, 1000))
def test_strided_equals_dense(
    kernel: Kernel, active: list[float], shape: Triple, inputs: int, outputs: int, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x = scattered(shape, active, inputs, seed)
    conv = SparseConv3d(inputs, outputs, kernel, bias)
    check(x, conv, seed)
    out = conv(x)
    assert torch.equal(out.keys(), out.keys().sort().values)


def test_gradients_in_double_precision() -> None:
    x = scattered((3, 4, 5), [0.3, 0.0, 0.5], 2, seed=1)
    for conv in (SubMConv3d(2, 3), SparseConv3d(2, 3, KERNELS["k3 s2 p1"])):
        conv = conv.double()

        def run(features: Tensor, weight: Tensor, conv: nn.Module = conv) -> Tensor:
            return torch.func.functional_call(conv, {"weight": weight}, (x.with_features(features),)).features

        assert torch.autograd.gradcheck(run, (x.features.detach().double().requires_grad_(), conv.weight))


@pytest.mark.parametrize("make", [lambda: SubMConv3d(3, 2), lambda: SparseConv3d(3, 2, KERNELS["k3 s2 p1"])])
def test_sums_stay_in_float32_under_autocast(make: Callable[[], nn.Module]) -> None:
    x, conv = scattered((4, 5, 6), [0.5], 3, seed=0), make()
    plain = conv(x).features
    with torch.autocast("cpu", torch.bfloat16):
        cast = conv(x).features
        (found,) = torch.autograd.grad(cast.square().sum(), list(conv.parameters()))  # a backward pass within it
    assert cast.dtype == torch.float32 and torch.equal(cast, plain)
    (expected,) = torch.autograd.grad(plain.square().sum(), list(conv.parameters()))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        ([[0, 1, 1, 1], [0, 1, 1, 1]], "two rows"),
        ([[0, 1, 1, 4]], r"\[0, 1, 1, 4\]"),
        ([[1, 0, 0, 0]], "batch of 1"),
        ([[0, -1, 0, 0]], "off"),
    ],
)
def test_cells_that_cannot_be(coords: list[list[int]], message: str) -> None:
    x = SparseTensor(torch.ones(len(coords), 2), torch.tensor(coords), (4, 4, 4), 1)
    with pytest.raises(ValueError, match=message):
        SubMConv3d(2, 2)(x)


def test_kernels_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="odd"):
        SubMConv3d(2, 2, size=2)
    x = scattered((2, 5, 5), [0.5], 2, seed=0)
    with pytest.raises(ValueError, match="too small"):
        SparseConv3d(2, 2, KERNELS["k(3,1,1) s(2,1,1)"])(x)


def test_neighbours_are_looked_up_once_per_resolution() -> None:
    x = scattered((4, 6, 6), [0.3], 3, seed=0)
    out = nn.Sequential(SparseBasicBlock(3), SparseBasicBlock(3))(x)
    assert out.rulebooks is x.rulebooks and len(x.rulebooks) == 1


def test_modules_move_to_channels_last() -> None:
    """As training moves every module; the convolutions stay what they were."""
    x = scattered((5, 6, 7), [0.3], 2, seed=0)
    net = SparseResNet(TINY).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    expected = net(x)
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    assert torch.equal(net(x), expected)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]) and tensor.shape == before[name].shape, name
    assert net.double().conv_out[0].weight.dtype == torch.float64


# ------------------------------------------------------------------------------------------------------ the backbone


def test_published_size() -> None:
    config = SparseResNetConfig()
    net = SparseResNet(config)
    parameters = dict(net.named_parameters())
    assert sum(p.numel() for p in parameters.values()) == 1_219_296
    biases = [p.numel() for name, p in parameters.items() if name.endswith((".conv1.bias", ".conv2.bias"))]
    assert (len(biases), sum(biases)) == (16, 704)
    assert config.stride == 8 and config.bev_channels((41, 1504, 1120)) == 128


def test_plain_stages() -> None:
    """Two convolutions at each resolution after the first of it, as VoxelBackBone8x has them, and no bias."""
    config = SparseResNetConfig(block="plain", outputs=128)
    net = SparseResNet(config)
    assert [len([*net.get_submodule(name).children()]) for name in net.stages] == [1, 3, 3, 3]
    convolutions = [m for m in net.modules() if isinstance(m, SubMConv3d | SparseConv3d)]
    assert len(convolutions) == 12 and all(m.bias is None for m in convolutions)
    assert config.bev_channels((41, 1600, 1408)) == 256


@pytest.mark.parametrize("block", ["residual", "plain"])
@pytest.mark.parametrize("active", [[0.2, 0.0], [0.0, 0.2], [0.0, 0.0]], ids=["last empty", "first empty", "all empty"])
@pytest.mark.parametrize("training", [True, False])
def test_empty_samples_give_zeros(active: list[float], training: bool, block: Literal["residual", "plain"]) -> None:
    torch.manual_seed(0)
    shape = (6, 8, 9)
    x = scattered(shape, active, TINY.inputs, seed=0)
    net = SparseResNet(replace(TINY, block=block)).train(training)
    bev = net(x)
    assert bev.shape == (2, TINY.bev_channels(shape), 4, 5)
    for sample, share in zip(bev, active, strict=True):
        assert bool(sample.any()) == (share > 0)
    bev.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert all(b.isfinite().all() for b in net.buffers())


def test_height_is_merged_channel_by_channel() -> None:
    shape = (11, 8, 8)
    net = SparseResNet(TINY).eval()
    x = scattered(shape, [0.3, 0.3], TINY.inputs, seed=0)
    dense = net.maps(x)[-1].dense()
    depth = dense.shape[2]
    assert depth > 1
    bev = net(x)
    for channel in range(TINY.outputs):
        for z in range(depth):
            assert torch.equal(bev[:, channel * depth + z], dense[:, channel, z])


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_to_normalise_take_the_running_statistics(rows: int) -> None:
    norm = row_norm(3)
    norm.load_state_dict(norm.state_dict() | {"running_mean": torch.randn(3)})
    before = [b.clone() for b in norm.buffers()]
    some = torch.randn(rows, 3)
    torch.testing.assert_close(normalise_rows(norm.train(), some), normalise_rows(norm.eval(), some))
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), before, strict=True))


def test_rows_are_normalised_as_by_batch_norm() -> None:
    rows = torch.randn(50, 3) * 4 + 1
    ours, plain = row_norm(3), nn.BatchNorm1d(3, eps=1e-3, momentum=0.01)
    torch.testing.assert_close(normalise_rows(ours, rows), plain(rows))
    torch.testing.assert_close(dict(ours.named_buffers()), dict(plain.named_buffers()))


def test_stages_that_do_not_fit_together() -> None:
    with pytest.raises(UserError, match="3 stages"):
        SparseResNetConfig(channels=(4, 8, 8), strides=(2,), padding_z=(1, 1))
