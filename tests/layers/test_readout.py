"""Heads read half-precision maps out in full precision, without a copy of the map."""

import pytest
import torch

from distill3d.layers.readout import ROWS_AT_ONCE, Readout


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 8, 48, 48), (3, 8, 1, 1), (0, 8, 7, 7)], ids=["map", "pooled", "nothing"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_readout_is_a_float32_convolution(shape: tuple[int, ...], dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    layer = Readout(8, 3, 1, bias=bias)
    assert shape[0] * shape[2] * shape[3] > ROWS_AT_ONCE or shape[2] < 48  # the map is read in several parts
    half = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    cotangent = torch.randn(shape[0], 3, *shape[2:])
    found = []
    for read in (layer, lambda x: layer._conv_forward(x.float(), layer.weight, layer.bias)):
        x = half.clone().requires_grad_()
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=read is layer):
            said = read(x)
        assert said.dtype == torch.float32
        said.backward(cotangent)
        found.append([said.detach(), x.grad, *(p.grad for p in layer.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2 if ours.dtype == dtype else 1e-4, atol=1e-4)
