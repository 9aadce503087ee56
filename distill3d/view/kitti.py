"""Runs on data sets in KITTI's layout: average precision of one camera's boxes, depth error against distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from distill3d.errors import UserError
from distill3d.evaluate.kitti import DIFFICULTIES, MIN_HEIGHT, Overlaps
from distill3d.view import charts
from distill3d.view.charts import Series
from distill3d.view.distance import (
    LEAST_OBJECTS,
    LEAST_SCORE,
    MATCH_RADIUS,
    Binned,
    bin_edges,
    error_by_distance,
)
from distill3d.view.gallery import cast, compare, figure_html, scenes
from distill3d.view.headline import Measure, Measures
from distill3d.view.kind import Kind, Sections
from distill3d.view.palette import LOOKS, TRUE, Look
from distill3d.view.pieces import (
    DASH,
    STATED_HEAD,
    STATED_METHOD,
    grid,
    legend_of,
    line,
    precision_chart,
    progress_chart,
    result_cell,
    results_table,
    stage_name,
    stated_cell,
)
from distill3d.view.records import BestOfReported, MetricsLine
from distill3d.view.runs import Stage

#: What a reader calls the metrics.
METRICS = {"3d": "3D", "bev": "BEV"}
OVERLAPS: tuple[Overlaps, ...] = ("strict", "loose")
MODERATE = DIFFICULTIES.index("moderate")


def _moderate(overlap: Overlaps) -> Callable[[Stage], float | None]:
    def of(stage: Stage) -> float | None:
        values = stage.ap(stage.leading, "3d", overlap)
        return None if values is None else float(values[MODERATE])

    return of


def _iou(stage: Stage, overlap: Overlaps, metric: str = "3d", name: str | None = None) -> float:
    return stage.rules.min_overlap[overlap][name or stage.leading][metric]


class KittiKind(Kind):
    """One camera, KITTI's metric."""

    def measures(self, stages: Sequence[Stage]) -> Measures:
        name = stages[0].leading.capitalize()
        loose, strict = (f"{_iou(stages[0], overlap):g}" for overlap in ("loose", "strict"))
        return Measures(
            Measure(_moderate("loose"), f"3D AP ({name}, moderate, IoU {loose})", f"at IoU {loose}"),
            Measure(_moderate("strict"), f"3D AP ({name}, moderate, IoU {strict})", f"at IoU {strict}"),
        )

    def settings(self, stages: Sequence[Stage]) -> dict[str, str]:
        heights = []
        for scale in dict.fromkeys(stage.min_height_scale for stage in stages):
            pixels = " / ".join(f"{height * scale:.3g}" for height in MIN_HEIGHT)
            note = "KITTI's own" if scale == 1 else f"KITTI's {' / '.join(map(str, MIN_HEIGHT))} × {scale:.4g}"
            heights.append(f"{pixels} px ({note})")
        return {"Least box height (easy / mod. / hard)": "; ".join(heights)}

    def cautions(self, stages: Sequence[Stage]) -> list[str]:
        return height_cautions(stages)

    def results(self, stages: Sequence[Stage], palette: Sequence[Look], remark: str) -> str:
        leading = stages[0].leading
        others = "".join(
            f"<details><summary>{name.capitalize()}</summary>{_ap_table(stages, palette, name)}</details>"
            for name in stages[0].rules.classes
            if name != leading and any(stage.ap(name, "3d", "strict") for stage in stages)
        )
        stated = STATED_METHOD if any(stage.best_of_reported for stage in stages) else ""
        return (
            f'<p class="method">Average precision at 40 recall points (AP|R40, percent), {leading.capitalize()}, by the'
            " rules of the official KITTI evaluation, for easy, moderate and hard objects. Small figures: difference to"
            f" the baseline, in points.{stated}</p>{_ap_table(stages, palette, leading)}{remark}{others}"
        )

    def progress(self, stages: Sequence[Stage], palette: Sequence[Look]) -> str:
        drawn = [_progress(stages, palette, metric, overlap) for metric in METRICS for overlap in OVERLAPS]
        name = stages[0].leading.capitalize()
        return f"<h3>During training: {name}, moderate, percent</h3>{grid(drawn, 'charts wide')}"

    def sections(self, stages: Sequence[Stage], palette: Sequence[Look], gallery: int) -> Sections:
        return {
            "precision": ("Precision and recall", _precision(stages, palette)),
            "distance": ("Error against distance", _distance(stages, palette)),
            "gallery": ("Gallery", _gallery(stages, gallery)),
        }


def height_cautions(stages: Sequence[Stage]) -> list[str]:
    """What least box heights other than KITTI's mean for the numbers."""
    scales = {stage.min_height_scale for stage in stages}
    if len(scales) > 1:
        return ["The stages were evaluated with different least box heights: do not compare them."]
    if scales != {1.0} and any(stage.finished for stage in stages):
        return [
            "KITTI's least box heights were scaled for images of another size: these numbers cannot be compared with"
            " those of the KITTI benchmark."
        ]
    return []


# ---------------------------------------------------------------------------------------------------------- the results


def _ap_table(stages: Sequence[Stage], palette: Sequence[Look], name: str) -> str:
    """AP 3D and BEV at both overlaps and all difficulties, a row for each stage."""
    overlaps = {o: _iou(stages[0], o, "3d", name) for o in OVERLAPS}
    columns: list[tuple[str, Overlaps, int]] = [
        (metric, overlap, d) for metric in METRICS for overlap in OVERLAPS for d in range(len(DIFFICULTIES))
    ]
    stated = name == "car" and any(stage.best_of_reported for stage in stages)
    wide = len(OVERLAPS) * len(DIFFICULTIES)
    metric_cells = "".join(f'<th colspan="{wide}" scope="colgroup">AP {label}</th>' for label in METRICS.values())
    overlap_cell = '<th colspan="{}" scope="colgroup">IoU {}</th>'
    overlap_cells = "".join(overlap_cell.format(len(DIFFICULTIES), overlaps[o]) for _ in METRICS for o in OVERLAPS)
    short = ("Easy", "Mod.", "Hard")
    difficulty_cells = "".join(
        f'<th scope="col" class="{_cell_class(d)}"><abbr title="{DIFFICULTIES[d]}" style="text-decoration:none">'
        f"{short[d]}</abbr></th>"
        for _, _, d in columns
    )
    if stated:
        metric_cells += '<th scope="colgroup">AP 3D</th>'
        overlap_cells += f'<th scope="colgroup">IoU {overlaps["strict"]}</th>'
        difficulty_cells += STATED_HEAD
    head = [
        f'<tr class="metrics"><th></th>{metric_cells}</tr>', f'<tr class="overlaps"><th></th>{overlap_cells}</tr>',
        f"<tr><th></th>{difficulty_cells}</tr>",
    ]  # fmt: skip

    def value(stage: Stage, metric: str, overlap: Overlaps, difficulty: int) -> float | None:
        values = stage.ap(name, metric, overlap)
        return None if values is None else values[difficulty]

    def cells(stage: Stage) -> str:
        results = "".join(
            result_cell(stage, stages, lambda s, c=column: value(s, *c), style=_cell_class(column[2]))
            for column in columns
        )
        return results + (stated_cell(stage, _stated_ap, MODERATE) if stated else "")

    return results_table(stages, palette, head, len(columns) + stated, cells, "Average precision")


def _stated_ap(best: BestOfReported) -> list[float] | None:
    return best.get("ap", {}).get("car_3d_strict")


def _cell_class(difficulty: int) -> str:
    return ("opens", "moderate", "")[difficulty]


# ---------------------------------------------------------------------------------------------------------- the curves


def _progress(stages: Sequence[Stage], palette: Sequence[Look], metric: str, overlap: Overlaps) -> str:
    key = f"{stages[0].leading}_{metric}_{overlap}"
    title = f"AP {METRICS[metric]}, IoU {_iou(stages[0], overlap, metric)}"

    def pick(entry: MetricsLine) -> float | None:
        values = (entry.get("ap") or {}).get(key)
        return None if values is None else values[MODERATE]

    return progress_chart(title, stages, palette, pick)


def _precision(stages: Sequence[Stage], palette: Sequence[Look]) -> str:
    shown = [stage for stage in stages if any(stage.precision(stage.leading, "3d", overlap) for overlap in OVERLAPS)]
    if not shown:
        return line("No stage has precision values yet.")

    def curve(stage: Stage, overlap: Overlaps) -> Sequence[float] | None:
        curves = stage.precision(stage.leading, "3d", overlap)
        return curves[MODERATE] if curves else None

    name = stages[0].leading.capitalize()
    drawn = [
        precision_chart(f"{name} 3D, moderate, IoU {_iou(stages[0], overlap)}", stages, palette,
                        lambda stage, o=overlap: curve(stage, o))
        for overlap in OVERLAPS
    ]  # fmt: skip
    return (
        '<p class="method">Precision at the 41 recall points of the official evaluation; a curve ends where no more'
        f" objects are found.</p>{legend_of(stages, palette, shown)}{grid(drawn, 'charts wide')}"
    )


# ------------------------------------------------------------------------------------------------------------- distance


def _distance(stages: Sequence[Stage], palette: Sequence[Look]) -> str:
    matched, sentences = {}, []
    for index, stage in enumerate(stages):
        if stage.finished and stage.has_predictions:
            try:
                matched[index] = compare(stage)[1]
            except UserError as error:
                sentences.append(line(f"{stage_name(stage, stages)} is left out: {error}."))
    if not matched:
        return "".join(sentences) or line("No finished stage has predictions.")
    edges = bin_edges([matches.distance for matches in matched.values()])
    binned = {index: error_by_distance(matches, edges) for index, matches in matched.items()}
    drawn = [
        _distance_chart("Mean depth error of found cars (m)", stages, palette, binned, lambda b: b.depth_error, "m"),
        _distance_chart("Share of cars found (%)", stages, palette, binned, lambda b: 100 * b.found, "%"),
    ]
    method = (
        "Each car that counts at KITTI's hard difficulty, and the car detection nearest to it on the ground (score at"
        f" least {LEAST_SCORE:g}, centres at most {MATCH_RADIUS:g} m apart, each detection used once). Cars not found"
        " have no depth error, so read both charts together. Bins with fewer than"
        f" {LEAST_OBJECTS} cars are left out; n is the number of cars."
    )
    keys = legend_of(stages, palette, [stages[i] for i in binned])
    return f'<p class="method">{method}</p>{keys}{grid(drawn, "charts wide")}{"".join(sentences)}'


def _distance_chart(
    title: str, stages: Sequence[Stage], palette: Sequence[Look], binned: dict[int, Binned],
    pick: Callable[[Binned], np.ndarray], unit: str,
) -> str:  # fmt: skip
    first = next(iter(binned.values()))
    edges = first.edges
    middles = (edges[:-1] + edges[1:]) / 2
    series = []
    for index, one in binned.items():
        name, values = stage_name(stages[index], stages), pick(one).tolist()
        notes = [
            f"{name}, {low:.0f}{DASH}{high:.0f} m: {value:.2f} {unit} ({count} cars)"
            for low, high, value, count in zip(edges[:-1], edges[1:], values, one.objects, strict=True)
        ]
        series.append(Series(name, palette[index], middles.tolist(), values, notes))
    finite = [value for one in series for value in one.y if math.isfinite(value)]
    y_axis = charts.linear_axis(0, 100) if unit == "%" else charts.fitting_axis(finite, from_zero=True)
    x_axis = charts.Axis(float(edges[0]), float(edges[-1]), [(edge, f"{edge:.0f}") for edge in edges.tolist()])
    same_objects = all(np.array_equal(one.objects, first.objects) for one in binned.values())
    counts = [(m, f"n={n}") for m, n in zip(middles.tolist(), first.objects.tolist(), strict=True)]
    return charts.line_chart(title, series, x_label="distance of the car (m)", x_axis=x_axis, y_axis=y_axis,
                             under=counts if same_objects else ())  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- gallery


def _gallery(stages: Sequence[Stage], count: int) -> str:
    parts = cast(stages)
    if count < 1:
        return line("No gallery was asked for.")
    if not parts:
        return line("No finished stage has predictions to draw.")
    try:
        figures = [figure_html(*scene) for scene in scenes(parts, count)]
    except (UserError, OSError) as error:
        return line(f"The gallery is left out: {error}.")
    whose = "; ".join(f"{role}: {stage.run}/{stage.name}" for role, stage in parts.items())
    above = "without the baseline" if "baseline" in parts else "of all stages"
    below = " The lower image shows the baseline's." if "baseline" in parts else ""
    method = (
        f"True cars, pedestrians and cyclists, and detections with a score of at least {LEAST_SCORE:g} ({whose}). The"
        f" upper image shows the boxes {above}.{below} Front faces are tinted. From above: LiDAR points (the darker,"
        " the higher above the road), a ring every 10 m, in white what the camera sees; a line runs to each box's"
        " front. Frames are chosen by rule, not by hand: those with the most cars, and where there is a baseline, as"
        " many again where the student's mean position error is most below and most above the baseline's."
    )
    names = charts.legend([(part, Look(LOOKS[part].colour)) for part in (TRUE, *parts)])
    return f'<p class="method">{escape(method)}</p>{names}{"".join(figures)}'
