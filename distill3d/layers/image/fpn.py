"""Feature pyramid: every map of a trunk also sees the coarser ones.

Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, arXiv:1612.03144; as open-mmlab/mmdetection
mmdet/models/necks/fpn.py builds it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from distill3d.layers.transformer import xavier


class FPN(nn.Module):
    """Maps of a trunk (B, C_i, H_i, W_i), from fine to coarse -> as many of ``channels``, and ``extra`` coarser ones.

    A map's 1 x 1 convolution, plus the coarser level repeated to its size, then a 3 x 3 convolution.  Each extra level
    is a 3 x 3 convolution with stride 2 of the level before, from the second on of its ReLU.
    """

    def __init__(self, widths: Sequence[int], channels: int, extra: int = 0) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([xavier(nn.Conv2d(width, channels, 1)) for width in widths])
        self.smooth = nn.ModuleList([xavier(nn.Conv2d(channels, channels, 3, padding=1)) for _ in widths])
        self.extra = nn.ModuleList(
            [xavier(nn.Conv2d(channels, channels, 3, stride=2, padding=1)) for _ in range(extra)]
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels = [lateral(m) for lateral, m in zip(self.lateral, maps, strict=True)]
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], levels[i].shape[-2:], mode="nearest")
        levels = [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]
        for i, convolution in enumerate(self.extra):
            levels.append(convolution(F.relu(levels[-1]) if i else levels[-1]))
        return levels
