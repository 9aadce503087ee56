"""SimDistill's geometry compensation; held against recorded tensors in tests/distill/test_simdistill_golden.py."""

from typing import Any

import pytest
import torch

from distill3d.layers.ground.geometry_compensation import AttentionCompensation, ConvCompensation


@pytest.mark.parametrize("reference", ["corners", "centres"])
def test_where_compensation_looks(reference: Any) -> None:
    """With one head and point, offsets of nothing and plain projections, a cell reads itself at its middle and the mean
    of itself and the three before it, half a cell off, at its corner."""
    module = AttentionCompensation(2, (4, 5), heads=1, points=1, reference=reference)
    with torch.no_grad():
        for part in (module.attention.offset, module.attention.value, module.attention.output):
            part.weight.zero_()
            part.bias.zero_()
        module.attention.value.weight.copy_(torch.eye(2))
        module.attention.output.weight.copy_(torch.eye(2))
    x = torch.randn(1, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (1, 0, 1, 0))
    corner = (padded[..., 1:, 1:] + padded[..., :-1, 1:] + padded[..., 1:, :-1] + padded[..., :-1, :-1]) / 4
    torch.testing.assert_close(module(x), x + (x if reference == "centres" else corner))


def test_what_compensation_refuses() -> None:
    with pytest.raises(ValueError, match="6 channels are not divided by 2 and by 4 heads"):
        AttentionCompensation(6, (4, 4), heads=4)
    with pytest.raises(ValueError, match=r"maps of \(4, 4\) cells, not \(4, 5\)"):
        AttentionCompensation(8, (4, 4), heads=4)(torch.zeros(1, 8, 4, 5))


def test_untrained_convolutions_do_not_deform() -> None:
    module = ConvCompensation(3)
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    plain = x + module.second.conv(module.first.conv(x).relu())
    torch.testing.assert_close(module(x), plain)


def test_compensation_under_autocast() -> None:
    x = torch.randn(1, 8, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for module in (AttentionCompensation(8, (4, 4), heads=2, points=2), ConvCompensation(8)):
            assert module(x).isfinite().all()
