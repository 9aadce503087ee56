"""ResNet trunks from timm (He et al., arXiv:1512.03385)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from distill3d.errors import UserError
from distill3d.layers.image.pretrained import missing_of_timm, timm_trunk
from distill3d.settings import Channels, Layers, added

#: Blocks of ResNet-50's stages, and of ResNet-101's.
RESNET50, RESNET101 = (3, 4, 6, 3), (3, 4, 23, 3)
#: Strides of the last three stages, which detectors use.
STRIDES = (8, 16, 32)
#: timm's names of torchvision's first ImageNet weights, which the released detectors start from, by ``layers``.
RELEASED_WEIGHTS: dict[tuple[int, ...], str] = {RESNET50: "resnet50.tv_in1k", RESNET101: "resnet101.tv_in1k"}


@dataclass(frozen=True)
class ResNetConfig:
    """Depths and widths of the four stages; the defaults are ResNet-50's."""

    block: Literal["bottleneck", "basic"] = "bottleneck"
    layers: tuple[Layers, ...] = RESNET50
    channels: tuple[Channels, ...] = (64, 128, 256, 512)  # inside the blocks; bottlenecks give four times as many
    pretrained: bool = False  # ImageNet weights of ResNet-50 or ResNet-101; they are fetched by timm
    weights: Path | None = added(None)  # their file, which is then not fetched
    finest: Literal[4, 8] = 8  # stride (px) of the finest map given
    frozen: bool = False  # stem, first stage and all batch norms stay as they are: asks for ImageNet weights

    def missing(self) -> str | None:
        """Why the weights that it asks for cannot be had."""
        if not self.pretrained or self.layers not in RELEASED_WEIGHTS:
            return None
        return missing_of_timm(RELEASED_WEIGHTS[self.layers], self.weights)

    @property
    def outputs(self) -> tuple[int, ...]:
        """Channels of the maps, from fine to coarse."""
        return tuple(self.expansion * width for width in self.channels[self.stages[0] - 1 :])

    @property
    def stages(self) -> tuple[int, ...]:
        """Which of the four stages, counted from 1, give their maps."""
        return (1, 2, 3, 4) if self.finest == 4 else (2, 3, 4)

    @property
    def expansion(self) -> int:
        """Channels that a block gives, as a multiple of those inside."""
        return 4 if self.block == "bottleneck" else 1


class ResNet(nn.Module):
    """The trunk: (B, 3, H, W) -> three maps at ``STRIDES``, before them one at stride 4 where that is ``finest``."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        from timm.models.resnet import BasicBlock, Bottleneck

        self.config = config
        if config.pretrained and config.layers not in RELEASED_WEIGHTS:
            raise UserError(f"there are no ImageNet weights for a trunk of {config.layers} layers")
        name = RELEASED_WEIGHTS.get(config.layers, RELEASED_WEIGHTS[RESNET50])
        self.body: Any = timm_trunk(
            name, config.pretrained, config.weights, out_indices=config.stages,
            block=Bottleneck if config.block == "bottleneck" else BasicBlock, layers=config.layers,
            channels=config.channels,
        )  # fmt: skip
        if config.frozen:
            norms = [m for m in self.body.modules() if isinstance(m, nn.BatchNorm2d)]
            for module in (self.body.conv1, self.body.layer1, *norms):
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> ResNet:
        """As every module, but frozen batch norms keep to their statistics."""
        super().train(mode)
        if self.config.frozen:
            for module in self.body.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        return self.body(image)
