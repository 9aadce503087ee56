"""Runs on data sets in KITTI's layout: average precision of one camera's boxes, depth error against distance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distill3d.errors import UserError
from distill3d.evaluate.kitti import DIFFICULTIES, MIN_HEIGHT, Overlaps
from distill3d.files import write_output
from distill3d.view.charts import Chart
from distill3d.view.distance import LEAST_SCORE
from distill3d.view.distance_section import distance_section
from distill3d.view.draw import frame_figure
from distill3d.view.gallery import Gallery, cast, colours, compare, drawn_classes, made_gallery, pictured_frame, scenes
from distill3d.view.headline import Measure, Measures
from distill3d.view.kind import Kind
from distill3d.view.pieces import (
    Cell,
    Shown,
    Table,
    looks_of,
    precision_chart,
    progress_chart,
    result_cell,
    results_table,
    shown,
    stated_cell,
    stated_heads,
)
from distill3d.view.records import BestOfReported, MetricsLine
from distill3d.view.runs import Stage

#: What a reader calls the metrics.
METRICS = {"3d": "3D", "bev": "BEV"}
OVERLAPS: tuple[Overlaps, ...] = ("strict", "loose")
MODERATE = DIFFICULTIES.index("moderate")
#: Of the columns of each difficulty: what it is called, and its style.
COLUMNS = (("Easy", "opens"), ("Mod.", "moderate"), ("Hard", ""))


def _moderate(overlap: Overlaps) -> Callable[[Stage], float | None]:
    def of(stage: Stage) -> float | None:
        values = stage.ap(stage.leading, "3d", overlap)
        return None if values is None else float(values[MODERATE])

    return of


def _iou(stage: Stage, overlap: Overlaps, metric: str = "3d", name: str | None = None) -> float:
    return stage.rules.min_overlap[overlap][name or stage.leading][metric]


def _title(stage: Stage, name: str | None = None) -> str:
    """A class as its data set writes it, by default the leading one."""
    return next(one for one in stage.names.names if one.lower() == (name or stage.leading))


class KittiKind(Kind):
    """One camera, KITTI's metric."""

    template = "kitti.html"

    def measures(self, stages: Sequence[Stage]) -> Measures:
        name = _title(stages[0])
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

    def content(self, entries: Sequence[Shown], gallery: int) -> dict[str, Any]:
        shown = {
            **_precision(entries),
            **distance_section(entries, lambda stage: compare(stage)[1]),
            "gallery": _gallery(entries, gallery),
        }
        return {**shown, **(_results(entries) if entries else {}), "least_score": LEAST_SCORE}


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


def _results(entries: Sequence[Shown]) -> dict[str, Any]:
    """Tables of the leading class and of others that have numbers, and AP over epochs."""
    first = entries[0].stage
    others = [n for n in first.rules.classes if any(one.stage.ap(n, "3d", "strict") for one in entries)]
    return {
        "leading": _title(first),
        "results": {_title(first, n): _ap_table(entries, n) for n in dict.fromkeys((first.leading, *others))},
        "progress": [_progress(entries, metric, overlap) for metric in METRICS for overlap in OVERLAPS],
    }


def _ap_table(entries: Sequence[Shown], name: str) -> Table:
    """AP 3D and BEV at both overlaps and all difficulties, a row for each stage."""
    overlaps = {overlap: f"IoU {_iou(entries[0].stage, overlap, '3d', name)}" for overlap in OVERLAPS}
    columns: list[tuple[str, Overlaps]] = [(metric, overlap) for metric in METRICS for overlap in OVERLAPS]
    head = [
        [Cell(f"AP {label}", span=len(OVERLAPS) * len(DIFFICULTIES)) for label in METRICS.values()],
        [Cell(overlaps[overlap], span=len(DIFFICULTIES)) for _, overlap in columns],
        [Cell(*COLUMNS[d], note=full) for _ in columns for d, full in enumerate(DIFFICULTIES)],
    ]
    stated = name == "car" and any(one.stage.best_of_reported for one in entries)
    if stated:
        above = stated_heads("AP 3D", overlaps["strict"])
        head = [row + cells for row, cells in zip(head, above, strict=True)]

    def value(stage: Stage, metric: str, overlap: Overlaps, difficulty: int) -> float | None:
        values = stage.ap(name, metric, overlap)
        return None if values is None else values[difficulty]

    def cells(one: Shown) -> list[Cell]:
        results = [
            result_cell(one, lambda stage, c=column, d=d: value(stage, *c, d), style=style)
            for column in columns
            for d, (_, style) in enumerate(COLUMNS)
        ]
        return [*results, *([stated_cell(one.stage, _stated_ap, MODERATE)] if stated else [])]

    return results_table("Average precision", entries, head, cells)


def _stated_ap(best: BestOfReported) -> list[float] | None:
    return best.get("ap", {}).get("car_3d_strict")


# ---------------------------------------------------------------------------------------------------------- the curves


def _progress(entries: Sequence[Shown], metric: str, overlap: Overlaps) -> Chart:
    first = entries[0].stage
    key = f"{first.leading}_{metric}_{overlap}"

    def pick(line: MetricsLine) -> float | None:
        values = (line.get("ap") or {}).get(key)
        return None if values is None else values[MODERATE]

    return progress_chart(f"AP {METRICS[metric]}, IoU {_iou(first, overlap, metric)}", entries, pick)


def _precision(entries: Sequence[Shown]) -> dict[str, Any]:
    def curve(stage: Stage, overlap: Overlaps) -> Sequence[float] | None:
        curves = stage.precision(stage.leading, "3d", overlap)
        return curves[MODERATE] if curves else None

    known = [one for one in entries if any(curve(one.stage, overlap) for overlap in OVERLAPS)]
    drawn = [
        precision_chart(
            f"{_title(known[0].stage)} 3D, moderate, IoU {_iou(known[0].stage, overlap)}", known,
            lambda stage, o=overlap: curve(stage, o),
        )
        for overlap in OVERLAPS if known
    ]  # fmt: skip
    return {"precision": drawn, "precise": looks_of(known)}


# -------------------------------------------------------------------------------------------------------------- gallery


def _gallery(entries: Sequence[Shown], count: int) -> Gallery:
    parts = cast(entries, _moderate("loose"))
    classes = drawn_classes(parts)
    stages = {part: one.stage for part, one in parts.items()}
    titles = [_title(entries[0].stage, name) for name in classes]
    return made_gallery(
        parts, titles, count,
        lambda: (pictured_frame(*scene, colours(parts)) for scene in scenes(stages, classes, count)),
    )  # fmt: skip


def write_figures(stages: Sequence[Stage], folder: Path, count: int) -> list[Path]:
    """Write ``<frame>.png`` of the ``count`` most telling frames into ``folder`` and return the files.

    Raises:
        UserError: no finished stage with predictions, or data or predictions cannot be read.
    """
    parts = cast(shown(stages), _moderate("loose"))
    if not parts:
        raise UserError("no finished stage with predictions to draw")
    written = []
    for _, sample, sets in scenes({part: one.stage for part, one in parts.items()}, drawn_classes(parts), count):
        path = folder / f"{sample.frame_id}.png"
        figure = frame_figure(sample, sets)
        write_output(path, lambda part, figure=figure: figure.save(part, "PNG"))
        written.append(path)
    return written
