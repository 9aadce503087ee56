"""Deformable attention against loops over every single point."""

import math

import pytest
import torch
from torch import Tensor

from distill3d.layers.image.deformable_attention import DeformableAttention, cell_centres, sample_levels

SIZES = ((3, 5), (2, 3), (1, 1))
BATCH, QUERIES, HEADS, CHANNELS, POINTS = 2, 4, 3, 2, 2


def bilinear(plane: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The value (d,) of a map (h, w, d) at (x, y) in cells, cell 0 spanning 0..1; cells off the map are 0."""
    height, width = plane.shape[:2]
    total = torch.zeros_like(plane[0, 0])
    top, left = math.floor(y.item() - 0.5), math.floor(x.item() - 0.5)
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < height and 0 <= column < width:
                weight = (1 - (x - 0.5 - column).abs()) * (1 - (y - 0.5 - row).abs())
                total = total + weight * plane[row, column]
    return total


def sampled_by_loops(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    rows = []
    for b in range(value.shape[0]):
        for q in range(locations.shape[1]):
            for h in range(value.shape[2]):
                total, start = torch.zeros_like(value[b, 0, h]), 0
                for level, (height, width) in enumerate(SIZES):
                    plane = value[b, start : start + height * width, h].reshape(height, width, -1)
                    start += height * width
                    for p in range(locations.shape[4]):
                        x, y = locations[b, q, h, level, p]
                        total = total + weights[b, q, h, level, p] * bilinear(plane, x * width, y * height)
                rows.append(total)
    return torch.stack(rows).view(value.shape[0], locations.shape[1], value.shape[2], -1)


def random_inputs(reach: float) -> tuple[Tensor, Tensor, Tensor]:
    """Values, locations in -reach..1 + reach, and weights, in float64 with gradients."""
    g = torch.Generator().manual_seed(0)
    cells = sum(height * width for height, width in SIZES)
    value = torch.randn(BATCH, cells, HEADS, CHANNELS, generator=g, dtype=torch.float64)
    shape = (BATCH, QUERIES, HEADS, len(SIZES), POINTS)
    locations = torch.rand(*shape, 2, generator=g, dtype=torch.float64) * (1 + 2 * reach) - reach
    weights = torch.rand(shape, generator=g, dtype=torch.float64)
    return value.requires_grad_(), locations.requires_grad_(), weights.requires_grad_()


@pytest.mark.parametrize("reach", [0.0, 0.7], ids=["inside", "also outside"])
def test_sampling_equals_loops(reach: float) -> None:
    inputs = random_inputs(reach)
    ours, loops = sample_levels(inputs[0], SIZES, *inputs[1:]), sampled_by_loops(*inputs)
    torch.testing.assert_close(ours, loops, rtol=1e-10, atol=1e-12)
    cotangent = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad(o, inputs, cotangent) for o in (ours, loops)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_where_a_query_looks_is_never_rounded_to_bf16() -> None:
    """Values may come in bf16, but a bf16 location would miss by up to 2 cells on a map of 1000."""
    sizes = ((1, 1000),)
    ramp = torch.linspace(0, 1, 1000).bfloat16().view(1, -1, 1, 1)
    places = torch.linspace(0.5, 1, 64)
    locations = torch.stack((places, torch.full_like(places, 0.5)), -1).view(1, -1, 1, 1, 1, 2)
    weights = torch.ones(locations.shape[:-1])
    exact = sample_levels(ramp.double(), sizes, locations.double(), weights.double())
    torch.testing.assert_close(sample_levels(ramp, sizes, locations, weights).double(), exact, rtol=0, atol=1e-5)


def test_cell_centres_read_their_own_cells() -> None:
    value = random_inputs(0)[0]
    centres = cell_centres(SIZES, value)
    level_of = torch.arange(len(SIZES)).repeat_interleave(torch.tensor([h * w for h, w in SIZES]))
    locations = centres[None, :, None, None, None].expand(BATCH, -1, HEADS, len(SIZES), 1, 2)
    weights = torch.nn.functional.one_hot(level_of, len(SIZES)).double()[None, :, None, :, None]
    read = sample_levels(value, SIZES, locations, weights.expand(BATCH, -1, HEADS, -1, 1))
    torch.testing.assert_close(read, value)


@pytest.mark.parametrize("kind", ["point", "box"])
def test_locations_by_kind_of_reference(kind: str) -> None:
    """2: reference + offset / (width, height); 6: centre + offset / points * half the box's size."""
    g = torch.Generator().manual_seed(0)
    module = DeformableAttention(12, len(SIZES), HEADS, POINTS).double()
    torch.nn.init.normal_(module.offset.weight, generator=g)
    query = torch.randn(BATCH, QUERIES, 12, generator=g, dtype=torch.float64)
    reference = torch.rand(BATCH, QUERIES, 2 if kind == "point" else 6, generator=g, dtype=torch.float64)
    ours = module.locations(query, reference, SIZES)
    offset = module.offset(query).view(BATCH, QUERIES, HEADS, len(SIZES), POINTS, 2)
    for b, q, h, level, p in torch.cartesian_prod(*map(torch.arange, ours.shape[:-1])).tolist():
        r = reference[b, q]
        if kind == "point":
            scale = 1 / torch.tensor([SIZES[level][1], SIZES[level][0]], dtype=torch.float64)
        else:
            scale = torch.stack((r[2] + r[3], r[4] + r[5])) * 0.5 / POINTS
        torch.testing.assert_close(ours[b, q, h, level, p], r[:2] + offset[b, q, h, level, p] * scale)


def test_a_reference_for_each_level_and_point() -> None:
    """Offsets count in cells about it, whether levels, points or both have one of their own."""
    g = torch.Generator().manual_seed(0)
    module = DeformableAttention(12, len(SIZES), HEADS, POINTS, query_channels=5).double()
    torch.nn.init.normal_(module.offset.weight, generator=g)
    query = torch.randn(BATCH, QUERIES, 5, generator=g, dtype=torch.float64)
    offset = module.offset(query).view(BATCH, QUERIES, HEADS, len(SIZES), POINTS, 2)
    scale = 1 / torch.tensor([(width, height) for height, width in SIZES], dtype=torch.float64)[:, None]
    for levels, points in ((len(SIZES), POINTS), (1, POINTS), (len(SIZES), 1)):
        reference = torch.rand(BATCH, QUERIES, levels, points, 2, generator=g, dtype=torch.float64)
        ours = module.locations(query, reference, SIZES)
        for head in range(HEADS):
            torch.testing.assert_close(ours[:, :, head], reference + offset[:, :, head] * scale)


def test_levels_that_are_weighed_apart_are_averaged() -> None:
    """Two levels give the mean of what attention to each alone gives."""
    g = torch.Generator().manual_seed(0)
    sizes = ((3, 5), (2, 3))
    module = DeformableAttention(12, 2, HEADS, POINTS, weigh="apart").double()
    for layer in (module.offset, module.weight):
        torch.nn.init.normal_(layer.weight, std=0.3, generator=g)
    query = torch.randn(BATCH, QUERIES, 12, generator=g, dtype=torch.float64)
    tokens = torch.randn(BATCH, 21, 12, generator=g, dtype=torch.float64)
    reference = torch.rand(BATCH, QUERIES, 2, generator=g, dtype=torch.float64)
    single = []
    for level, part in enumerate(tokens.split((15, 6), dim=1)):
        alone = DeformableAttention(12, 1, HEADS, POINTS).double()
        alone.load_state_dict(module.state_dict() | {
            f"{name}.{kind}": getattr(getattr(module, name), kind).unflatten(0, (HEADS, 2, -1))[:, level].flatten(0, 1)
            for name in ("offset", "weight") for kind in ("weight", "bias")
        })  # fmt: skip
        single.append(alone(query, reference, part, (sizes[level],)))
    torch.testing.assert_close(module(query, reference, tokens, sizes), torch.stack(single).mean(0))


def test_heads_start_looking_their_own_ways() -> None:
    """Point i of a head starts i cells away along the larger component, in directions all around."""
    module = DeformableAttention(16, levels=2, heads=8, points=4)
    size = ((10, 20), (10, 20))
    at = module.locations(torch.randn(1, 1, 16), torch.full((1, 1, 2), 0.5), size)[0, 0]
    cells = (at - 0.5) * torch.tensor([20.0, 10.0])  # (heads, levels, points, 2)
    steps = torch.arange(1.0, 5.0).expand(8, 2, -1)
    torch.testing.assert_close(cells.abs().amax(-1), steps)
    assert len(torch.unique(cells[:, 0, 0].round(decimals=4), dim=0)) == 8


def test_attention_is_the_same_under_autocast_but_for_rounding() -> None:
    g = torch.Generator().manual_seed(0)
    module = DeformableAttention(32, len(SIZES), 8, 4)
    query, tokens = torch.randn(2, 6, 32, generator=g), torch.randn(2, 22, 32, generator=g)
    reference = torch.rand(2, 6, 2, generator=g)
    plain = module(query, reference, tokens, SIZES)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = module(query, reference, tokens, SIZES)
    torch.testing.assert_close(rounded.float(), plain, rtol=0.05, atol=0.03)
    plain.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
