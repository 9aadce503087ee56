"""Class-balanced sampling: rare classes' frames are repeated."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from jaxtyping import Bool
from torch import Tensor

from distill3d.data.nuscenes.class_balance import ClassBalanced, class_balanced_order
from distill3d.data.sample import Dataset
from distill3d.errors import UserError


class Numbers:
    """A data set whose frames are their own numbers and a draw."""

    def __init__(self, presence: Bool[Tensor, "f k"]) -> None:
        self.presence, self.classes = presence, tuple("abcdefgh"[: presence.shape[1]])
        self.frame_ids = [f"frame {i}" for i in range(len(presence))]

    def __len__(self) -> int:
        return len(self.frame_ids)

    def get(self, index: int, generator: torch.Generator | None = None) -> tuple[int, float]:
        return index, 0.0 if generator is None else float(torch.rand((), generator=generator))

    def class_presence(self) -> Bool[Tensor, "f k"]:
        return self.presence


def table(*counts: int, frames: int = 60) -> Bool[Tensor, "f k"]:
    """Class k in the first ``counts[k]`` of the frames."""
    return torch.arange(frames)[:, None] < torch.tensor(counts)


@pytest.mark.parametrize(
    ("counts", "drawn"),
    [
        ((60, 20, 10), [30, 30, 30]),  # 90 in all, a third for each
        ((60, 20, 0), [26, 26, 0]),  # an absent class keeps its share, but has no frames
        ((7, 3, 1), [3, 3, 3]),  # 11 in all: 3.67, cut
    ],
)
def test_each_class_gets_an_equal_share(counts: tuple[int, ...], drawn: list[int]) -> None:
    order = class_balanced_order(table(*counts), torch.Generator().manual_seed(0))
    assert len(order) == sum(drawn)
    for k, part in enumerate(torch.tensor(order).split(drawn)):
        assert bool((part < counts[k]).all())


@given(arrays.arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 8))), st.integers(0, 9))
def test_only_frames_with_objects_are_drawn(presence, seed: int) -> None:
    presence = torch.from_numpy(presence)
    order = class_balanced_order(presence, torch.Generator().manual_seed(seed))
    counts = presence.sum(0)
    assert bool(presence.any(1)[torch.tensor(order, dtype=torch.int64)].all())
    total, share = int(counts.sum()), presence.shape[1]
    expected = sum(total / share for n in counts.tolist() if n)
    assert expected - share - 1e-6 <= len(order) <= expected + 1e-6


def test_the_wrapper_is_a_data_set_of_repeated_frames() -> None:
    balanced = ClassBalanced(Numbers(table(60, 20, 10)), seed=5)
    assert isinstance(balanced, Dataset)
    assert len(balanced) == len(balanced.frame_ids) == 90
    for index in (0, 40, 89):
        number, draw = balanced.get(index, torch.Generator().manual_seed(index))
        assert balanced.frame_ids[index] == f"frame {number}"
        assert draw == float(torch.rand((), generator=torch.Generator().manual_seed(index)))


def test_the_seed_decides() -> None:
    orders = [ClassBalanced(Numbers(table(60, 20, 10)), seed).order for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_frames_without_objects_cannot_be_balanced() -> None:
    with pytest.raises(UserError, match="too few hold any of a, b"):
        ClassBalanced(Numbers(table(0, 0)), seed=0)
