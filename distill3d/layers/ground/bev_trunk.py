"""The residual network that looks at a map on the ground: three stages of ResNet-18's blocks.

Source: Megvii-BaseDetection/BEVDepth bevdepth/layers/heads/bev_depth_head.py.  Parameters are named as in released
weights.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

#: Strides of stem and stages, and of the stages' maps in cells of the input.
STEM_STRIDE, STAGE_STRIDES = 2, (1, 2, 2)
MAP_STRIDES = (2, 4, 8)
#: Widths of the stages in units of the first.
WIDTHS = (1, 2, 4)


class BevTrunk(nn.Module):
    """Stem (7 x 7 convolution at stride 2, no pooling) and three stages of basic blocks.

    Each residual block begins as the identity: the last batch norm's scale is 0.

    Args:
        channels_in: of the map.
        base: channels of stem and first stage.
        layers: blocks of each stage.
    """

    def __init__(self, channels_in: int, base: int, layers: tuple[int, ...] = (2, 2, 2)) -> None:
        super().__init__()
        from timm.models.resnet import BasicBlock

        self.conv1 = nn.Conv2d(channels_in, base, 7, STEM_STRIDE, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.channels = tuple(factor * base for factor in WIDTHS)
        width, stages = base, []
        for blocks, channels, stride in zip(layers, self.channels, STAGE_STRIDES, strict=True):
            stages.append(_stage(width, channels, stride, blocks))
            width = channels
        self.layer1, self.layer2, self.layer3 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                module.zero_init_last()

    def forward(self, bev: Float[Tensor, "b c y x"]) -> list[Tensor]:
        """The stages' maps, from fine to coarse."""
        maps = [self.layer1(self.bn1(self.conv1(bev)).relu())]
        for stage in (self.layer2, self.layer3):
            maps.append(stage(maps[-1]))
        return maps


def _stage(channels_in: int, channels: int, stride: int, blocks: int) -> nn.Sequential:
    from timm.models.resnet import BasicBlock

    shortcut = None
    if stride != 1 or channels_in != channels:
        shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
    first = BasicBlock(channels_in, channels, stride, downsample=shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))
