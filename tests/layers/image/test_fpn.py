"""The feature pyramid against torchvision's."""

import torch
import torch.nn.functional as F
from torchvision.ops import FeaturePyramidNetwork

from distill3d.layers.image.fpn import FPN

WIDTHS = (3, 5, 7)


def maps() -> list[torch.Tensor]:
    """Of sides that are no multiples of each other, as those of odd images."""
    g = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, width, *size, generator=g) for width, size in zip(WIDTHS, ((9, 14), (5, 7), (3, 4)), strict=True)
    ]


def test_levels_equal_torchvisions() -> None:
    ours, theirs = FPN(WIDTHS, 6), FeaturePyramidNetwork(list(WIDTHS), 6)
    theirs.load_state_dict(
        {f"inner_blocks.{i}.0.{k}": v for i, m in enumerate(ours.lateral) for k, v in m.state_dict().items()}
        | {f"layer_blocks.{i}.0.{k}": v for i, m in enumerate(ours.smooth) for k, v in m.state_dict().items()}
    )
    expected = theirs({str(i): m for i, m in enumerate(maps())})
    for level, other in zip(ours(maps()), expected.values(), strict=True):
        torch.testing.assert_close(level, other)


def test_extra_levels_halve_the_one_before() -> None:
    pyramid = FPN(WIDTHS, 6, extra=2)
    levels = pyramid(maps())
    assert [tuple(level.shape[-2:]) for level in levels] == [(9, 14), (5, 7), (3, 4), (2, 2), (1, 1)]
    torch.testing.assert_close(levels[3], pyramid.extra[0](levels[2]))
    torch.testing.assert_close(levels[4], pyramid.extra[1](F.relu(levels[3])))


def test_one_map_is_a_pyramid() -> None:
    (level,) = FPN(WIDTHS[-1:], 6)(maps()[-1:])
    assert level.shape == (2, 6, 3, 4)
