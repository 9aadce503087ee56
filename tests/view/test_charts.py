"""Axes that hold their data, and curves where the data is."""

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from distill3d.view.charts import (
    HEIGHT,
    MOST_POINTS,
    TICKS,
    WIDTH,
    Interval,
    IntervalBlock,
    Series,
    averaged,
    fitting_axis,
    interval_chart,
    legend,
    line_chart,
    linear_axis,
    log_axis,
    loose_axis,
    svg_file,
)  # fmt: skip
from distill3d.view.palette import Look

LOOK = Look("#123456")
finite = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(st.integers(0, 100_000), st.integers(0, 100_000))
def test_what_is_counted_has_whole_ticks(one: int, other: int) -> None:
    low, high = min(one, other), max(one, other)
    axis = linear_axis(low, high, whole=True)
    places = [place for place, _ in axis.ticks]
    assert axis.low <= low and high <= axis.high and 2 <= len(places) <= 14
    assert all(place == round(place) for place in places) and all(
        "." not in label or "k" in label for _, label in axis.ticks
    )
    assert len({label for _, label in axis.ticks}) == len(places)


@given(finite, finite)
def test_linear_axes_hold_their_values_and_have_a_few_round_ticks(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assume(high - low > 1e-6 * max(abs(a), abs(b)) or low == high)
    axis = linear_axis(low, high)
    slack = 1e-6 * (axis.high - axis.low)
    assert axis.low <= low + slack and high - slack <= axis.high
    assert 2 <= len(axis.ticks) <= 2 * TICKS
    assert len({text for _, text in axis.ticks}) == len(axis.ticks)
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
    svg = line_chart("A & B", [Series("x < y", LOOK, [0, 1, 2], [0.0, 10.0, 5.0], ["a", "b", "c"])], x_label="step")
    tree = ElementTree.fromstring(svg)  # also proves that it is well-formed and escaped
    circles = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in tree.iter("circle")]
    assert circles[0][0] < circles[1][0] < circles[2][0]
    assert circles[1][1] < circles[2][1] < circles[0][1]
    assert circles[2][1] == pytest.approx((circles[0][1] + circles[1][1]) / 2, abs=0.11)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in circles)


@pytest.mark.parametrize(("y", "strokes"), [([1.0, 2.0, 3.0], 1), ([1.0, math.nan, 3.0], 2), ([math.nan] * 3, 0)])
def test_gaps_interrupt_a_curve(y: list, strokes: int) -> None:
    svg = line_chart("t", [Series("s", LOOK, [0, 1, 2], y)], x_label="")
    path = re.search(r' d="([^"]*)"', svg)
    assert path is not None and path.group(1).count("M") == strokes
    assert ("no values" in svg) == (strokes == 0)


def test_legend_names_and_escapes() -> None:
    html = legend([("a<b", Look("#123456", "3 2"))])
    assert "a&lt;b" in html and "#123456" in html and "3 2" in html


@given(st.lists(finite, min_size=1, max_size=9))
def test_loose_axes_hold_their_values_without_a_tick_at_their_ends(values: list[float]) -> None:
    axis = loose_axis(values)
    assert axis.low < min(values) and max(values) < axis.high
    assert all(axis.low <= value <= axis.high for value, _ in axis.ticks)


def test_intervals_lie_where_their_numbers_are() -> None:
    """Sorted, on one scale in both columns, filled where they do not reach zero, in a well-formed file of their own."""
    blocks = [
        IntervalBlock("A & B", [Interval("low", -4.0, 1.0), Interval("high", 8.0, 1.0, control=True)]),
        IntervalBlock("C", [Interval("none", 2.0, 3.0), Interval("said", 8.0, 1.0)], grey=True),
    ]
    chart = svg_file(interval_chart("t", blocks, x_label="points", keys=[("up", "better"), ("control", "a control")]))
    tree = ElementTree.fromstring(chart)
    name = "{http://www.w3.org/2000/svg}"
    rows = {}
    for group in tree.iter(f"{name}g"):
        texts, circle, line = (group.find(f"{name}{what}") for what in ("text", "circle", "line"))
        if texts is not None and circle is not None and line is not None:
            ends = [float(line.get(end, "")) for end in ("x1", "x2")]
            assert sum(ends) / 2 == pytest.approx(float(circle.get("cx", "")), abs=0.11)
            rows[texts.text] = (group.get("class"), circle.get("class"), ends, float(circle.get("cy", "")))
    assert [row[0] for row in rows.values()] == ["up", "down", "grey", "grey"] and list(rows)[:2] == ["high", "low"]
    assert [row[1] for row in rows.values()] == [None, None, None, "hollow"], "what is hollow holds zero"
    assert rows["high"][3] < rows["low"][3]
    (high, low), (said, none) = [(rows[a][2], rows[b][2]) for a, b in (("high", "low"), ("said", "none"))]
    aside = said[0] - high[0]
    unit = (high[1] - high[0]) / 2
    assert aside > WIDTH and none[0] - aside == pytest.approx(high[0] - 8 * unit, abs=0.3)
    assert high[0] - low[0] == pytest.approx(12 * unit, abs=0.3)
    assert tree.get("width") and "--paper" in chart and "var(--font)" in chart


def test_names_of_curves_do_not_touch() -> None:
    series = [Series(f"curve {n}", LOOK, [0, 1], [0.0, 1.0], errors=[0.5, math.nan]) for n in range(3)]
    tree = ElementTree.fromstring(line_chart("t", series, x_label="step", named=True))
    heights = [float(text.get("y", "")) for text in tree.iter("text") if (text.text or "").startswith("curve ")]
    assert len(heights) == 3 and all(b - a > 10 for a, b in zip(heights, heights[1:], strict=False))
    drawn = [line for line in tree.iter("line") if line.get("x1") == line.get("x2")]
    assert len(drawn) == 3 and len({line.get("x1") for line in drawn}) == 3, "intervals stand beside each other"
