"""Runs on surround views in nuScenes' layout: detection score, mean average precision, errors of the true positives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from distill3d.errors import UserError
from distill3d.evaluate.nuscenes import OFFICIAL, TP_ERRORS
from distill3d.view import charts
from distill3d.view.distance import LEAST_SCORE
from distill3d.view.draw import LOOK_AHEAD, RING_STEP
from distill3d.view.headline import Measure, Measures
from distill3d.view.kind import Kind, Sections
from distill3d.view.palette import LOOKS, TRUE, Look
from distill3d.view.pieces import (
    STATED_HEAD,
    STATED_METHOD,
    grid,
    legend_of,
    line,
    precision_chart,
    progress_chart,
    result_cell,
    results_table,
    shared,
    stage_name,
    stated_cell,
)
from distill3d.view.records import BestOfReported, MetricsLine
from distill3d.view.runs import Stage
from distill3d.view.surround_gallery import cast, figure_html, moments, pictured

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


def _classes(stages: Sequence[Stage]) -> list[str]:
    """All classes that were evaluated, in their order."""
    return list(dict.fromkeys(name for stage in stages for name in (stage.evaluation or {}).get("label_aps") or {}))


def _words(name: str) -> str:
    return name.replace("_", " ")


# ------------------------------------------------------------------------------------------------------------- the kind


class SurroundKind(Kind):
    """Six cameras or a LiDAR around a vehicle, nuScenes' metric."""

    def measures(self, stages: Sequence[Stage]) -> Measures:
        return MEASURES

    def settings(self, stages: Sequence[Stage]) -> dict[str, str]:
        datasets = [stage.dataset for stage in stages if stage.dataset]
        past = [data.get("past") for data in datasets]
        return {
            "Version": shared([data.get("version") for data in datasets]),
            "Classes": shared([", ".join(map(_words, data.get("classes") or ())) or None for data in datasets]),
            "Earlier key frames": shared([", ".join(map(str, p)) or "none" for p in past if p is not None]),
            "LiDAR scans": shared([(data.get("sweeps") or {}).get("scans") for data in datasets]),
        }

    def cautions(self, stages: Sequence[Stage]) -> list[str]:
        finished = [stage for stage in stages if stage.finished]
        settings = [(stage.evaluation or {}).get("settings") or {} for stage in finished]
        sentences = []
        if len({tuple(one.get("classes") or ()) for one in settings}) > 1:
            sentences.append("The stages were evaluated on different classes: do not compare them.")
        data = {(stage.dataset.get("version"), stage.dataset.get("eval_split")) for stage in finished if stage.dataset}
        reasons = ["classes or constants other than the official ones"] * any(not s.get("official") for s in settings)
        reasons += ["samples other than those of nuScenes' validation set"] * bool(data - {BENCHMARK})
        if reasons:
            sentences.append(
                f"Evaluated with {' and '.join(reasons)}: these numbers cannot be compared with those of the nuScenes"
                " benchmark."
            )
        return sentences

    def results(self, stages: Sequence[Stage], palette: Sequence[Look], remark: str) -> str:
        near = " / ".join(f"{distance:g}" for distance in OFFICIAL.distances)
        names = "; ".join(f"{error.short}: {error.what} ({error.unit})" for error in ERRORS.values())
        stated = STATED_METHOD if any(stage.best_of_reported for stage in stages) else ""
        return (
            '<p class="method">By the rules of the official nuScenes detection evaluation: detection score NDS and mean'
            f" average precision mAP over classes and distances of {near} m, in percent; mean errors of the true"
            f" positives at {OFFICIAL.tp_distance:g} m, the smaller the better ({names}). Small figures: difference to"
            f" the baseline.{stated}</p>{_score_table(stages, palette)}{remark}"
            f"<h3>Average precision of each class, percent</h3>{_class_table(stages, palette)}{_notes(stages)}"
        )

    def progress(self, stages: Sequence[Stage], palette: Sequence[Look]) -> str:
        def scaled(*keys: str, scale: float = 1.0) -> Callable[[MetricsLine], float | None]:
            def pick(entry: MetricsLine) -> float | None:
                value: Any = entry.get("nuscenes")
                for key in keys:
                    value = (value or {}).get(key)
                return None if value is None else scale * value

            return pick

        scores = [progress_chart(key, stages, palette, scaled(key, scale=100)) for key in ("NDS", "mAP")]
        errors = [
            progress_chart(f"{e.short}: {e.what} ({e.unit})", stages, palette, scaled("errors", name), ERROR_DIGITS)
            for name, e in ERRORS.items()
        ]
        tested = [entry.get("nuscenes") or {} for stage in stages for entry in stage.evals]
        classes = list(dict.fromkeys(name for found in tested for name in found.get("ap") or {}))
        aps = [progress_chart(_words(name), stages, palette, scaled("ap", name, scale=100)) for name in classes]
        return (
            f"<h3>During training: NDS and mAP, percent</h3>{grid(scores, 'charts wide')}"
            f"<details><summary>Errors of the true positives</summary>{grid(errors)}</details>"
            f"<details><summary>Average precision of each class, percent</summary>{grid(aps)}</details>"
        )

    def sections(self, stages: Sequence[Stage], palette: Sequence[Look], gallery: int) -> Sections:
        return {
            "precision": ("Precision and recall", _precision(stages, palette)),
            "gallery": ("Gallery", _gallery(stages, palette, gallery)),
        }


# ---------------------------------------------------------------------------------------------------------- the results


def _score_table(stages: Sequence[Stage], palette: Sequence[Look]) -> str:
    stated = any(stage.best_of_reported for stage in stages)
    head = [
        f'<tr class="metrics"><th></th><th colspan="2" scope="colgroup">Score</th>'
        f'<th colspan="{len(ERRORS)}" scope="colgroup">Errors of true positives</th>'
        + ('<th scope="colgroup">NDS / mAP</th></tr>' if stated else "</tr>"),
        '<tr><th></th><th scope="col" class="opens moderate">NDS</th><th scope="col">mAP</th>'
        + "".join(
            f'<th scope="col" class="{_opens(name, ERRORS)}"><abbr title="{error.what}, {error.unit}"'
            f' style="text-decoration:none">{error.short}</abbr></th>'
            for name, error in ERRORS.items()
        )
        + (f"{STATED_HEAD}</tr>" if stated else "</tr>"),
    ]

    def cells(stage: Stage) -> str:
        scores = [
            result_cell(stage, stages, MEASURES.first.of, style="opens moderate"),
            result_cell(stage, stages, MEASURES.second.of),
        ]
        errors = [
            result_cell(stage, stages, _error(name), style=_opens(name, ERRORS), digits=ERROR_DIGITS,
                        less_is_better=True)
            for name in ERRORS
        ]  # fmt: skip
        return "".join(scores + errors) + (stated_cell(stage, _stated_scores) if stated else "")

    return results_table(stages, palette, head, 2 + len(ERRORS) + stated, cells, "Detection score, mAP and errors")


def _stated_scores(best: BestOfReported) -> list[float] | None:
    """NDS and mAP in percent."""
    found = best.get("nuscenes", {})
    scores = [found.get("NDS"), found.get("mAP")]
    return None if None in scores else [100 * score for score in scores if score is not None]


def _class_table(stages: Sequence[Stage], palette: Sequence[Look]) -> str:
    classes = _classes(stages)
    names = "".join(f'<th scope="col" class="{_opens(c, classes)}">{escape(_words(c))}</th>' for c in classes)

    def cells(stage: Stage) -> str:
        return "".join(result_cell(stage, stages, _class_ap(c), style=_opens(c, classes)) for c in classes)

    label = "Average precision of each class"
    return results_table(stages, palette, [f"<tr><th></th>{names}</tr>"], len(classes), cells, label)


def _opens(name: str, names: Sequence[str] | dict[str, Any]) -> str:
    """The style of the first column of several."""
    return "opens" if name == next(iter(names)) else ""


def _notes(stages: Sequence[Stage]) -> str:
    """What the evaluation says of its numbers, once where it is true of all stages."""
    of_note: dict[str, list[str]] = {}
    finished = [stage for stage in stages if stage.finished]
    for stage in finished:
        for note in (stage.evaluation or {}).get("notes") or ():
            of_note.setdefault(note, []).append(stage_name(stage, stages))
    return "".join(
        line(note if len(names) == len(finished) else f"{', '.join(names)}: {note}") for note, names in of_note.items()
    )


def _precision(stages: Sequence[Stage], palette: Sequence[Look]) -> str:
    classes = _classes(stages)
    shown = [stage for stage in stages if any(_precision_curve(stage, name) for name in classes)]
    if not shown:
        return line("No stage has precision values yet.")
    drawn = [
        precision_chart(_words(name), stages, palette, lambda stage, n=name: _precision_curve(stage, n))
        for name in classes
    ]
    distance = next((stage.evaluation or {}).get("settings", {}).get("tp_distance") for stage in shown)
    return (
        f'<p class="method">Precision at the 101 recall points of the official evaluation, where a detection counts'
        f" that lies less than {distance:g} m from its object; a curve ends where no more objects are found.</p>"
        f"{legend_of(stages, palette, shown)}{grid(drawn)}"
    )


# -------------------------------------------------------------------------------------------------------------- gallery


def _gallery(stages: Sequence[Stage], palette: Sequence[Look], count: int) -> str:
    if count < 1:
        return line("No gallery was asked for.")
    parts = cast(stages, palette)
    if not parts:
        return line("No finished stage has predictions to draw.")
    try:
        figures = [figure_html(moment, parts) for moment in moments(parts, count)]
    except (UserError, OSError) as error:
        return line(f"The gallery is left out: {error}.")
    whose = "; ".join(f"{part.name}: {part.stage.run}/{part.stage.name}" for part in parts)
    in_pictures = [part.name for part in pictured(parts)]
    fewer = f" The pictures show the boxes of {' and '.join(in_pictures)}." if len(in_pictures) < len(parts) else ""
    method = (
        "True objects in which a LiDAR or radar point lies, and detections with a score of at least"
        f" {LEAST_SCORE:g} ({whose}). The pictures of the six cameras are as the detector sees them.{fewer} Front faces"
        " are tinted. From above, forward up, the vehicle in the middle: points of one LiDAR scan (the darker, the"
        f" higher above the road) and a ring every {RING_STEP:.0f} m; a line runs to each box's front, and a thin one"
        f" with a dot to where what moves will be after {LOOK_AHEAD:g} s. Samples are chosen by rule, not by hand:"
        " those with the most objects, and where there is a baseline, as many again where the mean position error of"
        " the student is most below and most above the baseline's."
    )
    names = charts.legend([(TRUE, LOOKS[TRUE]), *((part.name, Look(part.colour)) for part in parts)])
    return f'<p class="method">{escape(method)}</p>{names}{"".join(figures)}'
