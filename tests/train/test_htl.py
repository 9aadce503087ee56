"""Hierarchical task learning against recorded weights, and what the recordings do not show."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import golden_file
from hypothesis import given
from hypothesis import strategies as st

from distill3d.errors import UserError
from distill3d.train.htl import MONOSKD_COLUMNS, PREREQUISITES, HierarchicalTaskLearning, HTLConfig, ramp

#: Our names of the recorded terms.
NAMES = {"seg_loss": "heatmap", "offset2d_loss": "offset_2d", "size2d_loss": "size_2d", "depth_loss": "depth",
         "offset3d_loss": "offset_3d", "size3d_loss": "size_3d", "heading_loss": "heading"}  # fmt: skip
TERMS = tuple(NAMES.values())


def replay(learning: HierarchicalTaskLearning, history: torch.Tensor, terms: list[str], first_pass: bool) -> list[dict]:
    """The weights of each epoch; row e of ``history`` is known when epoch e begins."""
    weights = []
    for epoch, row in enumerate(history):
        if epoch > 0 or first_pass:
            learning.observe(dict(zip(terms, row, strict=True)))
        weights.append(learning.begin_epoch(epoch))
    return weights


@pytest.mark.golden
@golden_file("monoskd/htl_intended", "monoskd/htl_intended_skip_epoch0", "monoskd/htl_released_misaligned")
def test_weights(path: Path) -> None:
    with np.load(path) as g:
        misaligned = "in.loss_history_kd" in g
        suffix = "_kd" if misaligned else ""
        history = torch.from_numpy(g[f"in.loss_history{suffix}"])
        terms = [NAMES.get(str(name), str(name)) for name in g[f"in.terms{suffix}"]]
        columns = [NAMES[str(name)] for name in g["in.terms"]]
        expected = torch.from_numpy(g["out.weights"])
    constants = json.loads((path.parent / "index.json").read_text())[path.name]["constants"]
    config = HTLConfig.styled(
        "released", ramp_epochs=constants["T"], history=constants["history"], first_pass=constants["append_epoch0"],
        columns=MONOSKD_COLUMNS if misaligned else None,
    )  # fmt: skip
    found = replay(HierarchicalTaskLearning(config, len(history)), history, terms, config.first_pass)
    ours = torch.tensor([[row.get(name, 1.0) for name in columns] for row in found], dtype=torch.float64)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


def falling(epochs: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    steps = torch.rand(epochs, len(TERMS), generator=generator, dtype=torch.float64)
    return 10 - (steps * torch.linspace(1, 0, epochs, dtype=torch.float64)[:, None]).cumsum(0) / 5


@given(epochs=st.integers(6, 40), seed=st.integers(0, 1000), stop=st.integers(1, 5))
def test_a_state_taken_in_the_middle_of_an_epoch_goes_on_as_if_nothing_had_happened(
    epochs: int, seed: int, stop: int
) -> None:
    history = falling(epochs, seed)
    whole = HierarchicalTaskLearning(HTLConfig(), epochs)
    parts = HierarchicalTaskLearning(HTLConfig(), epochs)
    for epoch, row in enumerate(history):
        for learning in (whole, parts):
            learning.observe(dict(zip(TERMS, row - 1, strict=True)))
        if epoch % stop == 0:
            state = parts.state_dict()
            parts = HierarchicalTaskLearning(HTLConfig(), epochs)
            parts.load_state_dict(state)
            losses = {name: torch.ones(()) for name in TERMS}
            assert parts.weigh(losses) == whole.weigh(losses)
        for learning in (whole, parts):
            learning.observe(dict(zip(TERMS, row + 1, strict=True)))
        assert whole.begin_epoch(epoch) == parts.begin_epoch(epoch)


@given(epochs=st.integers(6, 40), seed=st.integers(0, 1000))
def test_guarded_weights_lie_between_0_and_1_and_end_at_1(epochs: int, seed: int) -> None:
    weights = replay(HierarchicalTaskLearning(HTLConfig(), epochs - 1), falling(epochs, seed), list(TERMS), True)
    assert all(0 <= w <= 1 for row in weights for w in row.values())
    assert all(w == 0 for row in weights[:5] for w in row.values())
    assert set(weights[-1].values()) == {1.0}  # the ramp is over


def test_losses_that_never_moved_count_as_learned() -> None:
    """The released code divides 0 by 0."""
    still = torch.ones(9, len(TERMS), dtype=torch.float64)
    weights = replay(HierarchicalTaskLearning(HTLConfig(), 20), still, list(TERMS), True)
    assert set(weights[-1].values()) == {1.0}
    released = replay(HierarchicalTaskLearning(HTLConfig.styled("released"), 20), still, list(TERMS), True)
    assert all(math.isnan(w) for w in released[-1].values())


def test_only_listed_terms_are_weighed() -> None:
    learning = HierarchicalTaskLearning(HTLConfig(), 20)
    losses = {name: torch.full((), 2.0) for name in (*TERMS, "spearman")}
    learning.begin_epoch(0)
    weighed = learning.weigh(losses)
    assert {name for name, loss in weighed.items() if loss == 0} == set(PREREQUISITES)
    assert {name for name, loss in weighed.items() if loss == 2} == {"heatmap", "size_2d", "offset_2d", "spearman"}


def test_a_missing_prerequisite_is_refused() -> None:
    learning = HierarchicalTaskLearning(HTLConfig(prerequisites={"depth": ("size_2d", "height")}), 20)
    with pytest.raises(UserError, match="no loss term 'height'"):
        learning.observe({"depth": torch.ones(()), "size_2d": torch.ones(())})


@pytest.mark.parametrize(
    ("epoch", "end", "expected"), [(5, 140, 0.0), (6, 140, 1 / 135), (140, 140, 1.0), (150, 140, 1.0), (5, 5, 1.0)]
)
def test_ramp(epoch: int, end: int, expected: float) -> None:
    assert ramp(epoch, 5, end) == pytest.approx(expected)
