"""Axes that hold their data, and curves where the data is."""

import math

import pytest
from drawn import LONG, SVG, assert_apart, drawn
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from distill3d.view.charts import (
    HEIGHT,
    MOST_POINTS,
    TICKS,
    WIDTH,
    Axis,
    Balance,
    Series,
    averaged,
    balance_chart,
    bin_axis,
    count_axis,
    counted,
    fitting_axis,
    line_chart,
    linear_axis,
    log_axis,
    loose_axis,
)  # fmt: skip
from distill3d.view.palette import Look

LOOK = Look("#123456")
finite = st.floats(-1e6, 1e6, allow_subnormal=False)


def assert_round(axis: Axis) -> None:
    """Ticks are whole multiples of 1, 2 or 5 times a power of ten, told each by its own number."""
    places = [place for place, _ in axis.ticks]
    step = places[1] - places[0]
    first = step / 10 ** math.floor(math.log10(step * (1 + 1e-9)))
    assert any(first == pytest.approx(one, rel=1e-4) for one in (1, 2, 5))
    assert all(place / step == pytest.approx(round(place / step), abs=1e-4) for place in places)
    assert len({text for _, text in axis.ticks}) == len(places)


@given(st.lists(st.integers(0, 10**9), max_size=3))
def test_what_is_counted_has_whole_ticks_and_ends_with_the_last(values: list[int]) -> None:
    axis = count_axis(values)
    places = [place for place, _ in axis.ticks]
    assert axis.low == 0 and axis.high == max([1, *values]) and 2 <= len(places) <= 14
    assert all(place == round(place) for place in places)
    assert_round(axis)


@given(finite, finite)
def test_linear_axes_hold_their_values_and_have_a_few_round_ticks(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assume(high - low > 1e-6 * max(abs(a), abs(b)) or low == high)
    axis = linear_axis(low, high)
    slack = 1e-6 * (axis.high - axis.low)
    assert axis.low <= low + slack and high - slack <= axis.high
    assert 2 <= len(axis.ticks) <= 2 * TICKS
    assert_round(axis)
    assert axis.share(axis.low) == 0 and axis.share(axis.high) == 1


@given(st.floats(1e-6, 1e6), st.floats(1.0, 1e9))
def test_log_axes_hold_their_values(low: float, factor: float) -> None:
    axis = log_axis(low, low * factor)
    assert axis.low <= low * (1 + 1e-6) and axis.high >= low * factor * (1 - 1e-6) and axis.high > axis.low
    assert all(0 <= axis.share(value) <= 1 for value, _ in axis.ticks)


@pytest.mark.parametrize(
    ("values", "options", "log", "low"),
    [
        ([1.0, 500.0], {"may_log": True}, True, 1.0),
        ([1.0, 5.0], {"may_log": True}, False, 1.0),
        ([-1.0, 500.0], {"may_log": True}, False, -200.0),
        ([8.0, 9.0], {"from_zero": True}, False, 0.0),
        ([0.0, 0.0], {"from_zero": True}, False, 0.0),
        ([-4.0], {"from_zero": True}, False, -4.0),
        ([], {}, False, 0.0),
    ],
)
def test_axes_fit(values: list, options: dict, log: bool, low: float) -> None:
    axis = fitting_axis(values, **options)
    assert axis.log == log and axis.low == pytest.approx(low)


@given(st.lists(st.one_of(finite, st.just(math.nan), st.just(math.inf)), max_size=400))
def test_averages_keep_the_finite_values(values: list) -> None:
    x, y = averaged(range(len(values)), values)
    kept = [value for value in values if math.isfinite(value)]
    assert len(x) == len(y) <= MOST_POINTS
    assert x == sorted(x)
    if kept:
        assert min(kept) - 1e-6 <= min(y) and max(y) <= max(kept) + 1e-6


def test_curves_pass_through_their_points() -> None:
    curve = Series("x < y", LOOK, [0, 1, 2], [0.0, 10.0, 5.0], ["a", "b", "c"])
    tree = drawn(line_chart("A & B", [curve], x_label="step"))
    circles = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in tree.iter(f"{SVG}circle")]
    assert circles[0][0] < circles[1][0] < circles[2][0]
    assert circles[1][1] < circles[2][1] < circles[0][1]
    assert circles[2][1] == pytest.approx((circles[0][1] + circles[1][1]) / 2, abs=0.11)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in circles)


@pytest.mark.parametrize(("y", "strokes"), [([1.0, 2.0, 3.0], 1), ([1.0, math.nan, 3.0], 2), ([math.nan] * 3, 0)])
def test_gaps_interrupt_a_curve(y: list, strokes: int) -> None:
    tree = drawn(line_chart("t", [Series("s", LOOK, [0, 1, 2], y)], x_label=""))
    (path,) = tree.iter(f"{SVG}path")
    assert path.get("d", "").count("M") == strokes
    assert ("no values" in "".join(tree.itertext())) == (strokes == 0)


@given(st.lists(finite, min_size=1, max_size=9))
def test_loose_axes_hold_their_values_without_a_tick_at_their_ends(values: list[float]) -> None:
    axis = loose_axis(values)
    assert axis.low < min(values) and max(values) < axis.high
    assert all(axis.low <= value <= axis.high for value, _ in axis.ticks)


def test_names_of_curves_do_not_touch() -> None:
    series = [Series(f"curve {n}", LOOK, [0, 1], [0.0, 1.0], errors=[0.5, math.nan]) for n in range(3)]
    tree = drawn(line_chart("t", series, x_label="step", named=True))
    texts = [text for text in tree.iter(f"{SVG}text") if (text.text or "").startswith("curve ")]
    heights = [float(text.get("y", "")) for text in texts]
    assert len(heights) == 3 and all(b - a > 10 for a, b in zip(heights, heights[1:], strict=False))
    upright = [line for line in tree.iter(f"{SVG}line") if line.get("x1") == line.get("x2")]
    assert len(upright) == 3 and len({line.get("x1") for line in upright}) == 3, "intervals stand beside each other"


@given(st.lists(st.sampled_from([LONG, "visible", "largely hidden", "x" * 40]), min_size=1, max_size=12),
       st.floats(-1e9, 0), st.floats(1e-6, 1e9))  # fmt: skip
@settings(max_examples=25)
def test_long_names_stay_apart(labels: list[str], low: float, high: float) -> None:
    bars = [Balance(label, 10 ** min(n, 7), 1.0, 1.0, note=label) for n, label in enumerate(labels)]
    y_axis = linear_axis(low, high)
    assert_apart(balance_chart(LONG, bars, x_label="class", y_axis=y_axis))
    curve = Series(LONG, LOOK, range(len(bars)), [low] * len(bars))
    under = counted(bar.count for bar in bars)
    assert_apart(line_chart(LONG, [curve], x_label="class", x_axis=bin_axis(labels), y_axis=y_axis, under=under))


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=5), st.lists(st.floats(0, 1e7), min_size=1, max_size=5))
@example([10**6], [0.0])  # the last number is wide
@example([1, 1], [1.0, 2.7e-26])  # many powers of ten
@settings(max_examples=25)
def test_numbers_stay_apart(steps: list[int], values: list[float]) -> None:
    curve = Series("loss", LOOK, steps[: len(values)], values[: len(steps)])
    assert_apart(line_chart("t", [curve], x_label="step", x_axis=count_axis(steps)))


@pytest.mark.parametrize(
    ("values", "dots"), [([1.0], 1), ([1.0, 2.0], 0), ([1.0, math.nan, 2.0, 3.0], 1), ([math.nan], 0), ([], 0)]
)
def test_a_point_alone_is_seen(values: list[float], dots: int) -> None:
    curve = Series("loss", LOOK, range(len(values)), values)
    assert sum(1 for _ in drawn(line_chart("t", [curve], x_label="step")).iter(f"{SVG}circle")) == dots
