"""Intervals where their numbers are, and names that stay apart."""

import pytest
from drawn import LONG, SVG, assert_apart, drawn

from benchmarks.interval_chart import WIDTH, Interval, IntervalBlock, interval_chart
from distill3d.view.charts import svg_file


def test_intervals_lie_where_their_numbers_are() -> None:
    """Sorted, on one scale in both columns, filled where they do not reach zero, in a well-formed file of their own."""
    blocks = [
        IntervalBlock("A & B", [Interval("low", -4.0, 1.0), Interval("high", 8.0, 1.0, control=True)]),
        IntervalBlock("C", [Interval("none", 2.0, 3.0), Interval("said", 8.0, 1.0)], grey=True),
    ]
    chart = interval_chart("t", blocks, x_label="points", keys=[("up", "better"), ("control", "a control")])
    tree = drawn(chart)
    rows = {}
    for group in tree.iter(f"{SVG}g"):
        texts, circle, line = (group.find(f"{SVG}{what}") for what in ("text", "circle", "line"))
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
    assert aside > WIDTH / 2 and none[0] - aside == pytest.approx(high[0] - 8 * unit, abs=0.3)
    assert high[0] - low[0] == pytest.approx(12 * unit, abs=0.3)
    assert tree.get("width") and "--paper" in svg_file(chart) and "var(--font)" in svg_file(chart)


def test_long_names_of_intervals_stay_apart() -> None:
    blocks = [IntervalBlock("A detector", [Interval(LONG, 4.0, 1.0), Interval("x" * 60, -3.0, 9.0)], aside=LONG)] * 3
    keys = [("up", "better"), ("noise", LONG), ("control", LONG), ("grey", LONG)]
    for columns in (1, 2):
        assert_apart(interval_chart("t", blocks, x_label="points", keys=keys, columns=columns))
