"""The blocks of CMKD and MonoTAKD on the ground: published sizes, batches of one, precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from distill3d.layers.ground.bev_blocks import (
    ASPP,
    AlignedCollapse,
    FeatureFusion,
    HeightCollapse,
    ModulatedDeformConv,
    PooledBatchNorm,
    SCNet,
    SpatialAlignment,
    deform_conv3,
)

CHANNELS = 128
PUBLISHED = {
    "SCNet": (lambda: SCNet(CHANNELS), 726_016),
    "ASPP": (lambda: ASPP(CHANNELS, CHANNELS // 2), 197_760),
    "SAM": (lambda: SpatialAlignment(CHANNELS), 1_004_928),
    "FFM": (lambda: FeatureFusion(CHANNELS, norm="shared"), 476_416),
    "FFM-separate": (lambda: FeatureFusion(CHANNELS, norm="separate"), 476_416 + 2 * CHANNELS),
}


@pytest.mark.parametrize(("build", "parameters"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_sizes(build, parameters: int) -> None:
    assert sum(p.numel() for p in build().parameters()) == parameters


BLOCKS = {
    "SCNet": lambda: SCNet(8, 2), "SAM": lambda: SpatialAlignment(8), "FFM": lambda: FeatureFusion(8, norm="shared"),
    "FFM-separate": lambda: FeatureFusion(8),
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("build", BLOCKS.values(), ids=BLOCKS)
def test_blocks_train(build, batch: int) -> None:
    torch.manual_seed(0)
    block = build().train()
    out = block(torch.randn(batch, 8, 13, 10))
    assert out.shape == (batch, 8, 13, 10) and (out >= 0).all()
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


@pytest.mark.parametrize("build", [BLOCKS["SCNet"], BLOCKS["SAM"]], ids=["SCNet", "SAM"])
def test_blocks_under_autocast(build) -> None:
    torch.manual_seed(0)
    block, x = build().eval(), torch.randn(1, 8, 13, 10)
    exact = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = block(x.bfloat16())
    torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.02)
    if isinstance(block, SCNet):
        assert half.dtype == torch.float32


def test_norm_of_one_pooled_cell() -> None:
    """One value per channel is normalised with the running statistics, which stay; more values are a batch."""
    norm, plain = PooledBatchNorm(3).train(), nn.BatchNorm2d(3).train()
    for n in (norm, plain):
        n.running_mean = torch.tensor([1.0, 2.0, 3.0])
    one = torch.tensor([5.0, 6.0, 7.0]).view(1, 3, 1, 1)
    assert torch.equal(norm(one), plain.eval()(one))
    assert torch.equal(norm.running_mean, torch.tensor([1.0, 2.0, 3.0]))
    assert norm.num_batches_tracked == 0
    two = torch.cat((one, one + 1))
    assert torch.equal(norm(two), plain.train()(two))
    assert torch.equal(norm.running_mean, plain.running_mean)


@pytest.mark.parametrize("spread", [0.0, 0.5, 5.0, 1e20])
def test_deformable_convolution(spread: float) -> None:
    """As torchvision's, with offsets that are none, small, beyond the map, beyond any number of cells."""
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(2, 3, 5, 7, generator=generator, dtype=torch.float64),
        spread * (torch.randn(2, 18, 5, 7, generator=generator, dtype=torch.float64) + 0.1),
        torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64),
    ]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    cotangent = torch.randn(2, 4, 5, 7, generator=generator, dtype=torch.float64)
    results = []
    for out in (deform_conv3(*leaves), deform_conv2d(leaves[0], leaves[1], leaves[2], padding=1)):
        # where offsets are whole numbers the gradient has two sides
        wanted = leaves if spread else [leaves[0], leaves[2]]
        results.append((out, *torch.autograd.grad((out * cotangent).sum(), wanted)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_modulated_deformable_convolution(dtype: torch.dtype) -> None:
    """As torchvision's, told by a convolution of the same input where to read and how much each tap counts."""
    torch.manual_seed(0)
    conv = ModulatedDeformConv(3)
    x = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight / 2, conv.bias, padding=1))
    nn.init.normal_(conv.conv_offset.weight)
    conv, x = conv.to(torch.promote_types(dtype, torch.float32)), x.to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = conv(x)
    exact = x.to(conv.weight)
    first, second, logits = conv.conv_offset(exact).chunk(3, dim=1)
    offset = torch.cat((first, second), dim=1)
    expected = deform_conv2d(exact, offset, conv.weight, conv.bias, padding=1, mask=logits.sigmoid())
    assert out.dtype == conv.weight.dtype
    leaves, rtol = (x, *conv.parameters()), 1e-9 if dtype == torch.float64 else 1e-2
    ours, theirs = ((y, *torch.autograd.grad(y.square().sum(), leaves)) for y in (out, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


def layouts(volume: Tensor) -> dict[str, Tensor]:
    return {
        "plain": volume, "lifted": volume.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2),
        "sliced": torch.cat((volume, volume), 2)[:, :, : volume.shape[2]],
    }  # fmt: skip


@pytest.mark.parametrize("layout", ["plain", "lifted", "sliced"])
def test_collapse_is_a_convolution_over_channels_and_levels(layout: str) -> None:
    torch.manual_seed(0)
    volume = torch.randn(2, 3, 4, 5, 6)
    collapse = HeightCollapse(3, 4, 7)
    expected = collapse.block(volume.flatten(1, 2))
    torch.testing.assert_close(collapse(layouts(volume)[layout]), expected, rtol=1e-5, atol=1e-5)


def test_assistants_collapse_must_be_asked_for() -> None:
    with pytest.raises(ValueError, match="without an assistant"):
        AlignedCollapse(3, 4, 8).assistant(torch.zeros(1, 3, 4, 5, 6))
