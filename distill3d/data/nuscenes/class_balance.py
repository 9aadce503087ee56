"""Class-balanced grouping and sampling: frames of rare classes are seen more often.

CBGS, Zhu et al., arXiv:1908.09492, as Megvii-BaseDetection/BEVDepth bevdepth/datasets/nusc_det_dataset.py resamples.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from jaxtyping import Bool
from torch import Tensor

from distill3d.data.sample import Dataset
from distill3d.errors import UserError


class CountedDataset(Dataset, Protocol):
    """A data set that knows its frames' classes without opening their pictures and scans."""

    def class_presence(self) -> Bool[Tensor, "f k"]:
        """Which of the K ``classes`` are annotated in which of the F frames."""
        ...


def class_balanced_order(presence: Bool[Tensor, "f k"], generator: torch.Generator) -> list[int]:
    """Frame indices, class after class, so that each class's frames are drawn equally often.

    Of n_c frames that hold class c, and N = sum of all n_c, int(n_c (1/K) / (n_c/N)) are drawn with replacement: about
    N/K for each class.  A class without frames is left out.

    Args:
        presence: which of K classes each of F frames holds.
        generator: of the draws, class after class.
    """
    counts = presence.sum(0).tolist()
    total, share = sum(counts), 1 / presence.shape[1]
    order: list[int] = []
    for k, count in enumerate(counts):
        if count:
            drawn = torch.randint(count, (int(count * (share / (count / total))),), generator=generator)
            order += presence[:, k].nonzero()[drawn, 0].tolist()
    return order


class ClassBalanced:
    """A data set with its frames repeated by ``class_balanced_order``, drawn once for all epochs.

    A frame's repetitions are frames of their own, so each is augmented by draws of its own.

    Raises:
        UserError: too few frames hold objects for a single one to be drawn.
    """

    def __init__(self, dataset: CountedDataset, seed: int) -> None:
        self.dataset, self.classes = dataset, dataset.classes
        self.order = class_balanced_order(dataset.class_presence(), torch.Generator().manual_seed(seed))
        if not self.order:
            raise UserError(f"frames cannot be balanced by class: too few hold any of {', '.join(dataset.classes)}")
        self.frame_ids = [dataset.frame_ids[index] for index in self.order]

    def __len__(self) -> int:
        return len(self.order)

    def get(self, index: int, generator: torch.Generator | None = None) -> Any:
        """Frame ``index``, counted through the repetitions."""
        return self.dataset.get(self.order[index], generator)
