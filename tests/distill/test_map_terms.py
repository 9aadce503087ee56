"""Terms on ground maps kept from harming the detector: cells with points, maps without scale, a share, a fade."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_bev_methods import CHANNELS, COLUMNS, GRID, ROWS, TAPS, make_context
from torch import Tensor

from distill3d.detectors.second import lidar_scans
from distill3d.distill.context import Context
from distill3d.distill.map_terms import occupied, standardised
from distill3d.distill.methods import build_terms
from distill3d.distill.methods.cmkd import CMKDConfig, FeatureTerm
from distill3d.distill.methods.monotakd import MonoTAKDConfig
from distill3d.distill.term import Term
from distill3d.errors import UserError

ALONE = CMKDConfig(teacher="teacher", cls_weight=0.0, loc_weight=0.0, dir_weight=0.0)
WIDTHS = dict.fromkeys(TAPS, CHANNELS)


def map_term(config: CMKDConfig) -> Term:
    (term,) = build_terms(config, WIDTHS, WIDTHS)
    assert isinstance(term, FeatureTerm)
    return term


def with_losses(context: Context, scale: float) -> Context:
    """The same step with a loss of the student's own that looks at its map."""
    student_map = context.student.features["bev"].tensor
    return replace(context, losses={"cls": scale * student_map.square().sum(), "depth": torch.tensor(3.0)})


def lengths(term: Term, context: Context) -> tuple[float, float]:
    """Of the gradients at the student's map: of the detector's losses, and of the weighted term."""
    at = context.student.features["bev"].tensor
    own = torch.autograd.grad(context.losses["cls"], at, retain_graph=True)[0]
    taught = torch.autograd.grad(term.weight * term(context), at, retain_graph=True)[0]
    return float(own.norm()), float(taught.norm())


# --------------------------------------------------------------------------------------------------------------- cells


def test_cells_with_points_are_those_that_a_loop_finds() -> None:
    batch = make_context(3).batch
    x0, y0, _, _ = GRID.extent
    expected = torch.zeros(3, 1, ROWS, COLUMNS, dtype=torch.bool)
    for i, scan in enumerate(lidar_scans(batch)):
        for x, y, *_ in scan.tolist():
            column, row = int((x - x0) // GRID.cell), int((y - y0) // GRID.cell)
            if 0 <= row < ROWS and 0 <= column < COLUMNS:
                expected[i, 0, row, column] = True
    found = occupied(batch, GRID)
    assert torch.equal(found, expected)
    assert 0 < found.sum() < found.numel()


def test_only_cells_with_points_count() -> None:
    context = make_context()
    mask = occupied(context.batch, GRID)
    student, teacher = (o.features["bev"].tensor for o in (context.student, context.teachers["teacher"]))
    expected = ((student - teacher).square() * mask).sum() / (CHANNELS * mask.sum())
    torch.testing.assert_close(map_term(replace(ALONE, occupied_only=True))(context), expected)


def test_without_scans_no_cell_has_points() -> None:
    context = make_context()
    with pytest.raises(UserError, match="the data set gives no scans"):
        map_term(replace(ALONE, occupied_only=True))(replace(context, batch=replace(context.batch, points=None)))


def test_scans_without_a_point_give_zero() -> None:
    context = make_context()
    empty = replace(context.batch, points=[points[:0] for points in context.batch.points])
    assert map_term(replace(ALONE, occupied_only=True))(replace(context, batch=empty)) == 0


# ---------------------------------------------------------------------------------------------------------- comparison


@given(st.floats(0.1, 50), st.floats(-20, 20), st.integers(0, 1000))
def test_standardised_maps_know_no_scale(scale: float, shift: float, seed: int) -> None:
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = standardised(maps)
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(
        found.var((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(standardised(scale * maps + shift), found, rtol=0, atol=1e-2)


def test_a_constant_channel_is_zero_and_its_gradient_finite() -> None:
    maps = torch.full((1, 2, 3, 3), 5.0, requires_grad=True)
    standardised(maps).square().sum().backward()
    assert maps.grad is not None and maps.grad.isfinite().all() and (standardised(maps) == 0).all()


def test_an_adapter_learns_and_stays_behind() -> None:
    context, term = make_context(), map_term(replace(ALONE, compared="adapted"))
    term(context).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in term.parameters())
    assert context.student.features["bev"].tensor.grad is not None
    assert not list(map_term(replace(ALONE, compared="standardised")).parameters())


@pytest.mark.parametrize("weighted", [False, True])
def test_monotakds_assistant_is_compared_like_any_teacher(weighted: bool) -> None:
    """Empty cells are those of the map as it was, not as it is compared."""
    config = MonoTAKDConfig(cls_weight=0.0, loc_weight=0.0, dir_weight=0.0, cmrd_weight=0.0, compared="standardised",
                            nonzero_weighting=weighted)  # fmt: skip
    context = make_context()
    (term,) = build_terms(config, WIDTHS, WIDTHS)
    student, assistant = (o.features["bev"].tensor for o in (context.student, context.teachers["assistant"]))
    error = (standardised(student) - standardised(assistant)).square()
    mask = torch.ones_like(error[:, :1])
    if weighted:
        mask[assistant.sum(1, keepdim=True) == 0] = 0.05
    torch.testing.assert_close(term(context), (error * mask).sum() / (CHANNELS * mask.sum()))
    (learning,) = build_terms(replace(config, compared="adapted"), WIDTHS, WIDTHS)
    learning(context).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learning.parameters())


# ------------------------------------------------------------------------------------------------------ share and fade


@given(st.floats(1e-3, 10), st.floats(1e-6, 1e3), st.sampled_from(["raw", "standardised", "adapted"]))
def test_the_share_of_the_gradient_is_held(share: float, scale: float, compared: str) -> None:
    torch.manual_seed(0)
    context = with_losses(make_context(), scale)
    free = map_term(replace(ALONE, compared=compared))
    held = map_term(replace(ALONE, compared=compared, map_share=share))
    held.load_state_dict(free.state_dict())
    own, before = lengths(free, context)
    _, after = lengths(held, context)
    assert after == pytest.approx(min(before, share * own), rel=1e-4)


def test_nothing_is_held_where_there_is_nothing_to_compare() -> None:
    context = make_context()
    free, held = map_term(ALONE), map_term(replace(ALONE, map_share=0.1))
    assert held(context) == free(context)  # no loss of the student's own
    apart = replace(context, losses={"depth": torch.ones((), requires_grad=True)})
    assert held(apart) == free(apart)  # none that looks at the map
    with torch.no_grad():
        assert held(with_losses(context, 1.0)) == free(context)


def test_a_map_that_is_met_already_is_no_division_by_zero() -> None:
    context = with_losses(make_context(), 1.0)
    same = replace(context, teachers=context.teachers | {"teacher": context.student})
    loss = map_term(replace(ALONE, map_share=0.5))(same)
    loss.backward(retain_graph=True)
    assert loss == 0 and context.student.features["bev"].tensor.grad.isfinite().all()


@pytest.mark.parametrize("config", [ALONE, MonoTAKDConfig(cls_weight=0.0, loc_weight=0.0, dir_weight=0.0)])
def test_a_term_fades_in_a_straight_line(config) -> None:
    context = make_context()

    def values(progress: float) -> dict[str, Tensor]:
        terms = build_terms(replace(config, map_fades=True), WIDTHS, WIDTHS)
        return {term.name: term(replace(context, progress=progress)) for term in terms}

    whole = {term.name: term(context) for term in build_terms(config, WIDTHS, WIDTHS)}
    assert whole.keys() == values(0.0).keys()
    for name, value in whole.items():
        torch.testing.assert_close(values(0.0)[name], value)
        torch.testing.assert_close(values(0.25)[name], 0.75 * value)
        assert values(1.0)[name] == 0
