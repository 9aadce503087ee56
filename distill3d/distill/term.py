"""The unit of distillation: a named, weighted module that maps a context to a scalar."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from distill3d.distill.context import Context


class Term(nn.Module, ABC):
    """One distillation loss.

    Adapters and other training-only modules are children of the term, never of the student: the distilled student's
    state dict is the baseline's.  ``couples_batch`` declares that the value depends on all images of a batch together;
    under data parallelism each process then sees its own part only, and the losses are averaged.
    """

    couples_batch: ClassVar[bool] = False

    def __init__(self, name: str, weight: float) -> None:
        super().__init__()
        self.name = name
        self.weight = weight

    @abstractmethod
    def forward(self, context: Context) -> Tensor:
        """The un-weighted loss, a float32 scalar."""
