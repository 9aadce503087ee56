"""A report's section on errors against distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distill3d.errors import UserError
from distill3d.view import charts
from distill3d.view.charts import Chart, Series
from distill3d.view.distance import LEAST_OBJECTS, MATCH_RADIUS, Binned, Matches, bin_edges, error_by_distance
from distill3d.view.pieces import DASH, Shown, looks_of
from distill3d.view.runs import Stage


def distance_section(entries: Sequence[Shown], match: Callable[[Stage], Matches]) -> dict[str, Any]:
    """Charts of the finished stages' errors in bins of distance, as a report's template asks for them; ``match`` says
    what a stage found, or raises a UserError that says why it cannot."""
    matched: list[tuple[Shown, Matches]] = []
    without: dict[str, list[str]] = {}
    for one in entries:
        if one.stage.finished and one.stage.has_predictions:
            try:
                matched.append((one, match(one.stage)))
            except UserError as error:
                without.setdefault(str(error), []).append(one.name)
    sentences = [
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} left out: {reason}."
        for reason, names in without.items()
    ]
    edges = bin_edges([matches.distance for _, matches in matched])
    binned = [(one, error_by_distance(matches, edges)) for one, matches in matched]
    drawn = [
        _distance_chart("Mean depth error of what was found (m)", binned, lambda b: b.depth_error, "m"),
        _distance_chart("Share of objects found (%)", binned, lambda b: 100 * b.found, "%"),
    ] if binned else []  # fmt: skip
    return {
        "distance": drawn, "unmatched": sentences, "matched": looks_of([one for one, _ in matched]),
        "match_radius": f"{MATCH_RADIUS:g}", "least_objects": LEAST_OBJECTS,
    }  # fmt: skip


def _distance_chart(
    title: str, binned: Sequence[tuple[Shown, Binned]], pick: Callable[[Binned], np.ndarray], unit: str
) -> Chart:
    first = binned[0][1]
    edges = first.edges
    middles = ((edges[:-1] + edges[1:]) / 2).tolist()
    series = []
    for one, bins in binned:
        values = pick(bins).tolist()
        notes = [
            f"{one.name}, {low:.0f}{DASH}{high:.0f} m: {value:.2f} {unit} ({count} objects)"
            for low, high, value, count in zip(edges[:-1], edges[1:], values, bins.objects, strict=True)
        ]
        series.append(Series(one.name, one.look, middles, values, notes))
    finite = [value for one in series for value in one.y if math.isfinite(value)]
    y_axis = charts.linear_axis(0, 100) if unit == "%" else charts.fitting_axis(finite, from_zero=True)
    x_axis = charts.Axis(float(edges[0]), float(edges[-1]), [(edge, f"{edge:.0f}") for edge in edges.tolist()])
    same_objects = all(np.array_equal(bins.objects, first.objects) for _, bins in binned)
    counts = charts.counted(first.objects.tolist(), middles) if same_objects else ()
    return charts.line_chart(title, series, x_label="distance (m)", x_axis=x_axis, y_axis=y_axis, under=counts)
