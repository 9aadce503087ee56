"""Telling two networks' maps apart while one of them learns not to be told.

Source: Ganin and Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015, arXiv:1409.7495.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from distill3d.distill.adapters import in_dtype_of
from distill3d.distill.precision import full_precision

#: Slope of the discriminator's units below 0.
LEAK = 0.2


class _Reversed(torch.autograd.Function):
    """The value as it is; its gradient times -strength."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def gradient_reversed(value: Tensor, strength: float = 1.0) -> Tensor:
    """``value``, through which gradients flow back times -``strength``: what is behind it climbs where the rest goes
    down."""
    return cast(Tensor, _Reversed.apply(value, strength))


class MapDiscriminator(nn.Sequential):
    """(B, C, Y, X) -> (B, 1, Y / 4, X / 4), rounded up: a logit for each part of a map of being the teacher's.

    Two convolutions of stride 2 and a 1x1 convolution, without batch norm, which would mix both sides.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__(
            nn.Conv2d(channels, hidden, 3, 2, padding=1), nn.LeakyReLU(LEAK, inplace=True),
            nn.Conv2d(hidden, hidden, 3, 2, padding=1), nn.LeakyReLU(LEAK, inplace=True), nn.Conv2d(hidden, 1, 1),
        )  # fmt: skip

    def forward(self, input: Float[Tensor, "b c y x"]) -> Float[Tensor, "b 1 _ _"]:
        return super().forward(in_dtype_of(input, self))


@full_precision
def told_apart(student: Float[Tensor, "b 1 y x"], teacher: Float[Tensor, "b 1 y x"]) -> Float[Tensor, ""]:
    """Half the binary cross-entropy of the student's logits with 0 and of the teacher's with 1, means over the batch
    and its parts: log 2 where nothing tells them apart."""
    sides = (F.softplus(student).mean(), F.softplus(-teacher).mean())
    return (sides[0] + sides[1]) / 2
