"""Runs on surround views in nuScenes' layout: detection score, mean average precision, errors of the true positives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distill3d.detectors.base import CAMERA_INPUTS
from distill3d.evaluate.nuscenes import OFFICIAL, TP_ERRORS
from distill3d.evaluate.nuscenes_boxes import CLASSES
from distill3d.view.charts import Chart
from distill3d.view.distance import LEAST_SCORE
from distill3d.view.distance_section import distance_section
from distill3d.view.draw import LOOK_AHEAD, RING_STEP
from distill3d.view.gallery import Gallery, cast, made_gallery
from distill3d.view.headline import Measure, Measures
from distill3d.view.kind import Kind
from distill3d.view.pieces import (
    DASH,
    Cell,
    Shown,
    Table,
    looks_of,
    precision_chart,
    progress_chart,
    result_cell,
    results_table,
    shared,
    stated_cell,
    stated_heads,
)
from distill3d.view.records import BestOfReported, MetricsLine
from distill3d.view.runs import Stage
from distill3d.view.surround_gallery import (
    Distances,
    camera_name,
    class_words,
    moments,
    pictured,
    pictured_moment,
    rig_of,
    trained_classes,
)

#: The data that the benchmark's public numbers are of: version and split.
BENCHMARK = ("v1.0-trainval", "val")
#: Decimals of errors, which are small numbers of m, rad and m/s.
ERROR_DIGITS = 3


@dataclass(frozen=True)
class ErrorName:
    """What an error of the true positives is called."""

    short: str
    unit: str
    what: str


ERRORS: dict[str, ErrorName] = dict(
    zip(
        TP_ERRORS,
        (
            ErrorName("mATE", "m", "translation"), ErrorName("mASE", "1 − IoU", "scale"),
            ErrorName("mAOE", "rad", "orientation"), ErrorName("mAVE", "m/s", "velocity"),
            ErrorName("mAAE", "1 − accuracy", "attribute"),
        ),
        strict=True,
    )
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- the numbers


def _percent(key: str) -> Callable[[Stage], float | None]:
    def of(stage: Stage) -> float | None:
        value = (stage.evaluation or {}).get(key)
        return None if value is None else 100 * value

    return of


MEASURES = Measures(
    Measure(_percent("nd_score"), "nuScenes detection score (NDS)", "in NDS"),
    Measure(_percent("mean_ap"), "mean average precision (mAP)", "in mAP"),
)


def _error(name: str) -> Callable[[Stage], float | None]:
    return lambda stage: ((stage.evaluation or {}).get("tp_errors") or {}).get(name)


def _class_ap(name: str) -> Callable[[Stage], float | None]:
    def of(stage: Stage) -> float | None:
        values = ((stage.evaluation or {}).get("label_aps") or {}).get(name)
        return 100 * sum(values.values()) / len(values) if values else None

    return of


def _precision_curve(stage: Stage, name: str) -> Sequence[float] | None:
    """Precision of a class at the distance at which errors are measured."""
    evaluation = stage.evaluation or {}
    distance = evaluation.get("settings", {}).get("tp_distance")
    if distance is None:
        return None
    return (evaluation.get("precision101") or {}).get(name, {}).get(str(float(distance)))


def _classes(entries: Sequence[Shown]) -> list[str]:
    """All classes that were evaluated, in their order."""
    known = [(one.stage.evaluation or {}).get("label_aps") or {} for one in entries]
    return list(dict.fromkeys(name for aps in known for name in aps))


def _rig(stage: Stage) -> tuple[str, ...]:
    """``rig_of`` a stage that looks at cameras; () where it looks at none."""
    return rig_of(stage) if stage.card.get("input", "rgb") in CAMERA_INPUTS else ()


# ------------------------------------------------------------------------------------------------------------- the kind


class SurroundKind(Kind):
    """Cameras or a LiDAR around a vehicle, nuScenes' metric."""

    template = "surround.html"

    def measures(self, stages: Sequence[Stage]) -> Measures:
        return MEASURES

    def settings(self, stages: Sequence[Stage]) -> dict[str, str]:
        datasets = [stage.dataset for stage in stages if stage.dataset]
        past, rigs = [data.get("past") for data in datasets], map(_rig, stages)
        return {
            "Version": shared([data.get("version") for data in datasets]),
            "Classes": shared([", ".join(map(class_words, data.get("classes") or ())) or None for data in datasets]),
            "Cameras": "; ".join(dict.fromkeys(", ".join(map(camera_name, rig)) for rig in rigs if rig)) or DASH,
            "Earlier key frames": shared([", ".join(map(str, p)) or "none" for p in past if p is not None]),
            "LiDAR scans": shared([(data.get("sweeps") or {}).get("scans") for data in datasets]),
        }

    def cautions(self, stages: Sequence[Stage]) -> list[str]:
        finished = [stage for stage in stages if stage.finished]
        settings = [(stage.evaluation or {}).get("settings") or {} for stage in finished]
        sentences = []
        if len({tuple(one.get("classes") or ()) for one in settings}) > 1:
            sentences.append("The stages were evaluated on different classes: do not compare them.")
        if len({rig for rig in map(_rig, finished) if rig}) > 1:
            sentences.append("The stages were evaluated on different cameras: what they gain may be the cameras'.")
        data = {(stage.dataset.get("version"), stage.dataset.get("eval_split")) for stage in finished if stage.dataset}
        reasons = ["classes or constants other than the official ones"] * any(not s.get("official") for s in settings)
        reasons += ["samples other than those of nuScenes' validation set"] * bool(data - {BENCHMARK})
        if reasons:
            sentences.append(
                f"Evaluated with {' and '.join(reasons)}: these numbers cannot be compared with those of the nuScenes"
                " benchmark."
            )
        return sentences

    def content(self, entries: Sequence[Shown], gallery: int) -> dict[str, Any]:
        made = _gallery(entries, gallery)
        drawn = [made.parts[part].kind for part in pictured(made.parts)]
        return {
            "official": OFFICIAL,
            "errors": ERRORS,
            "scores": _score_table(entries),
            "classes": _class_table(entries),
            "notes": _notes(entries),
            "progress": _progress(entries),
            **_precision(entries),
            **distance_section(entries, Distances([name for name in CLASSES if name in _classes(entries)]).of),
            "gallery": made,
            "pictured": drawn if len(drawn) < len(made.parts) else [],
            "least_score": LEAST_SCORE,
            "ring_step": f"{RING_STEP:g}",
            "look_ahead": f"{LOOK_AHEAD:g}",
        }


# ---------------------------------------------------------------------------------------------------------- the results


def _score_table(entries: Sequence[Shown]) -> Table:
    opening = next(iter(ERRORS))
    head = [
        [Cell("Score", span=2), Cell("Errors of true positives", span=len(ERRORS))],
        [Cell("NDS", "opens moderate"), Cell("mAP"),
         *(Cell(e.short, "opens" * (name == opening), note=f"{e.what}, {e.unit}") for name, e in ERRORS.items())],
    ]  # fmt: skip
    stated = any(one.stage.best_of_reported for one in entries)
    if stated:
        head = [row + cells for row, cells in zip(head, stated_heads("NDS / mAP"), strict=True)]

    def cells(one: Shown) -> list[Cell]:
        scores = [result_cell(one, MEASURES.first.of, style="opens moderate"), result_cell(one, MEASURES.second.of)]
        errors = [
            result_cell(one, _error(name), style="opens" * (name == opening), digits=ERROR_DIGITS, less_is_better=True)
            for name in ERRORS
        ]
        return [*scores, *errors, *([stated_cell(one.stage, _stated_scores)] if stated else [])]

    return results_table("Detection score, mAP and errors", entries, head, cells)


def _stated_scores(best: BestOfReported) -> list[float] | None:
    """NDS and mAP in percent."""
    found = best.get("nuscenes", {})
    scores = [found.get("NDS"), found.get("mAP")]
    return None if None in scores else [100 * score for score in scores if score is not None]


def _class_table(entries: Sequence[Shown]) -> Table:
    styles = {name: "opens" * (n == 0) for n, name in enumerate(_classes(entries))}
    return results_table(
        "Average precision of each class", entries,
        [[Cell(class_words(name), style) for name, style in styles.items()]],
        lambda one: [result_cell(one, _class_ap(name), style=style) for name, style in styles.items()],
    )  # fmt: skip


def _notes(entries: Sequence[Shown]) -> list[str]:
    """What the evaluation says of its numbers, once where it is true of all stages."""
    of_note: dict[str, list[str]] = {}
    finished = [one for one in entries if one.stage.finished]
    for one in finished:
        for note in (one.stage.evaluation or {}).get("notes") or ():
            of_note.setdefault(note, []).append(one.name)
    return [note if len(names) == len(finished) else f"{', '.join(names)}: {note}" for note, names in of_note.items()]


# ----------------------------------------------------------------------------------------------------------- the curves


def _progress(entries: Sequence[Shown]) -> dict[str, list[Chart]]:
    """NDS and mAP, errors, and the AP of each class, over epochs."""

    def scaled(*keys: str, scale: float = 1.0) -> Callable[[MetricsLine], float | None]:
        def pick(line: MetricsLine) -> float | None:
            value: Any = line.get("nuscenes")
            for key in keys:
                value = (value or {}).get(key)
            return None if value is None else scale * value

        return pick

    tested = [line.get("nuscenes") or {} for one in entries for line in one.stage.evals]
    classes = dict.fromkeys(name for found in tested for name in found.get("ap") or {})
    return {
        "scores": [progress_chart(key, entries, scaled(key, scale=100)) for key in ("NDS", "mAP")],
        "errors": [
            progress_chart(f"{e.short}: {e.what} ({e.unit})", entries, scaled("errors", name), ERROR_DIGITS)
            for name, e in ERRORS.items()
        ],
        "classes": [progress_chart(class_words(name), entries, scaled("ap", name, scale=100)) for name in classes],
    }


def _precision(entries: Sequence[Shown]) -> dict[str, Any]:
    classes = _classes(entries)
    known = [one for one in entries if any(_precision_curve(one.stage, name) for name in classes)]
    drawn = [
        precision_chart(class_words(name), known, lambda stage, n=name: _precision_curve(stage, n))
        for name in classes if known
    ]  # fmt: skip
    near = next(((one.stage.evaluation or {}).get("settings", {}).get("tp_distance") for one in known), None)
    return {"precision": drawn, "precise": looks_of(known), "near": f"{near or 0:g}"}


# -------------------------------------------------------------------------------------------------------------- gallery


def _gallery(entries: Sequence[Shown], count: int) -> Gallery:
    parts = cast(entries, MEASURES.first.of)
    classes = trained_classes(parts)
    return made_gallery(
        parts, [class_words(name) for name in classes], count,
        lambda: (pictured_moment(moment, parts) for moment in moments(parts, classes, count)),
    )  # fmt: skip
