"""What the layers of transformers of the DETR family share, normalised behind each part."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


def xavier(layer: nn.Linear | nn.Conv2d) -> Any:
    """The layer with Xavier weights and no bias to begin with, as the transformers of the DETR family start."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Residual(nn.Module):
    """Adds what a layer found to what it was given, and normalises: x -> LayerNorm(x + dropout(found))."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, found: Tensor) -> Tensor:
        return self.norm(x + self.dropout(found))


class FeedForward(nn.Module):
    """Two linear layers about a ReLU, ``hidden`` channels between them, added to their input."""

    def __init__(self, channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            xavier(nn.Linear(channels, hidden)), nn.ReLU(inplace=True),
            nn.Dropout(dropout), xavier(nn.Linear(hidden, channels)),
        )  # fmt: skip
        self.add = Residual(channels, dropout)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        return self.add(x, self.layers(x))
