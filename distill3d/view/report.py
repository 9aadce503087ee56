"""One self-contained HTML page that compares runs: nothing is loaded from elsewhere, and no script runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from distill3d.errors import UserError
from distill3d.evaluate.kitti import DIFFICULTIES, MIN_HEIGHT, MIN_OVERLAP, RECALL_POINTS, Overlaps
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
from distill3d.view.headline import MODERATE, caution, headline, reference
from distill3d.view.page import page_html, write_file
from distill3d.view.palette import LOOKS, TRUE, Look, looks
from distill3d.view.runs import PREPARATION, Stage, read_runs

#: What a reader calls the metrics and the parts.
METRICS = {"3d": "3D", "bev": "BEV"}
OVERLAPS: tuple[Overlaps, ...] = ("strict", "loose")
ROLE_NAMES = {
    "teacher": "Teacher", "assistant": "Assistant", "label_encoder": "Label encoder", "preparation": "Preparation",
    "baseline": "Baseline", "student": "Distilled", "control": "Control",
}  # fmt: skip
#: Charts of loss terms beyond these many are folded away.
CHARTS_IN_SIGHT = 12
#: Longer lists of a card are summed up.
LISTED = 12
DASH = "\u2013"


def write_report(runs: Sequence[Path], out: Path, gallery: int = 8) -> Path:
    """Write the page that compares the given recipe folders or stage folders, and return its path.

    ``gallery`` is the number of frames shown as pictures, about 0.4 MB each. What a run lacks is said on the page.

    Raises:
        UserError: no runs, a folder that is no run, or ``out`` cannot be written.
    """
    if not runs:
        raise UserError("no runs to report on: expected at least one folder such as runs/<recipe>")
    stages = read_runs(runs)
    palette = _palette(stages)
    # What only prepares weights has an untrained head: its numbers would say nothing.
    judged = [(stage, look) for stage, look in zip(stages, palette, strict=True) if stage.role != PREPARATION]
    detectors, colours = [stage for stage, _ in judged], [look for _, look in judged]
    left_out = [stage_name(stage, stages) for stage in stages if stage.role == PREPARATION]
    sections = {
        "results": ("Results", _results(detectors, colours, left_out)),
        "training": ("Training", _training(stages, palette)),
        "precision": ("Precision and recall", _precision(detectors, colours)),
        "distance": ("Error against distance", _distance(detectors, colours)),
        "gallery": ("Gallery", _gallery(detectors, gallery)),
        "stages": ("Stages", _cards(stages)),
    }
    body = [_header(stages, {key: title for key, (title, _) in sections.items()}), "<main>"]
    body += [f'<section id="{key}"><h2>{title}</h2>{content}</section>' for key, (title, content) in sections.items()]
    body += ["</main>", _footer(stages)]
    title = ", ".join(dict.fromkeys(stage.run for stage in stages))
    return write_file(out, page_html(f"{title} {DASH} distill3d report", body))


# ------------------------------------------------------------------------------------------------------------ the words


def kind_name(stage: Stage, stages: Sequence[Stage]) -> str:
    """What a stage is called, whatever its seed: its role, and its own or its recipe's name where needed."""
    role = ROLE_NAMES.get(stage.role)
    same_role = [other for other in stages if other.role == stage.role and other.folder.parent == stage.folder.parent]
    name = stage.name if role is None else role if len(same_role) == 1 else f"{role}: {stage.name}"
    return name if len({other.run for other in stages}) == 1 else f"{name} ({stage.run})"


def stage_name(stage: Stage, stages: Sequence[Stage]) -> str:
    """``kind_name``, with the seed where the same stage of the same recipe ran more than once."""
    twins = [other for other in stages if _kind(other) == _kind(stage)]
    return kind_name(stage, stages) + ("" if len(twins) == 1 else f", seed {stage.seed}")


def _kind(stage: Stage) -> tuple[str, str, str]:
    """Equal for stages that differ in nothing but their seed."""
    return stage.run, stage.role, stage.name


def _palette(stages: Sequence[Stage]) -> list[Look]:
    """One look for each kind of stage: the curves of its seeds look alike."""
    kinds = list(dict.fromkeys(map(_kind, stages)))
    look_of = dict(zip(kinds, looks([role for _, role, _ in kinds]), strict=True))
    return [look_of[_kind(stage)] for stage in stages]


def _makeup(stage: Stage) -> str:
    """Detector, input, method and, where there are several, teachers of a stage in a few words, as far as known."""
    detector = stage.config.get("detector")
    settings = detector if isinstance(detector, dict) else {}
    method, style = stage.card.get("method"), (stage.card.get("method_config") or stage.card).get("style")
    parts = [
        stage.card.get("detector"),
        stage.card.get("input") or settings.get("input"),
        f"{method}, {style}" if method and style else method,
        f"taught by {' and '.join(stage.teachers)}" if len(stage.teachers) > 1 else None,
    ]
    return " · ".join(str(part) for part in parts if part)


def _line(sentence: str) -> str:
    return f'<p class="soft">{escape(sentence)}</p>'


def _shared(values: Sequence[Any]) -> str:
    """Values that stages may share: one if all agree, else all in order."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or DASH


# ----------------------------------------------------------------------------------------------------------- the header


def _header(stages: Sequence[Stage], titles: dict[str, str]) -> str:
    title, leads = headline(stages)
    paragraphs = "".join(f'<p class="lead">{escape(lead)}</p>' for lead in leads)
    cautions = "".join(f"<p>{escape(sentence)}</p>" for sentence in caution(stages))
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name in titles.items())
    runs = ", ".join(dict.fromkeys(stage.run for stage in stages))
    return (
        f'<header><p class="kind">distill3d report · {escape(runs)}</p><h1>{escape(title)}</h1>'
        f"{paragraphs}"
        + (f'<div class="caution" role="note">{cautions}</div>' if cautions else "")
        + _settings(stages)
        + _problems(stages)
        + f'<nav aria-label="Contents"><ul>{links}</ul></nav></header>'
    )


def _settings(stages: Sequence[Stage]) -> str:
    scales = list(dict.fromkeys(stage.min_height_scale for stage in stages))
    heights = []
    for scale in scales:
        pixels = " / ".join(f"{height * scale:.3g}" for height in MIN_HEIGHT)
        note = "KITTI's own" if scale == 1 else f"KITTI's {' / '.join(map(str, MIN_HEIGHT))} × {scale:.4g}"
        heights.append(f"{pixels} px ({note})")
    frames = [(stage.evaluation or {}).get("settings", {}).get("frames") for stage in stages]
    trained = [stage.training_frames for stage in stages]
    canvases = [stage.dataset.get("canvas") for stage in stages]
    entries = {
        "Data": _shared([stage.dataset.get("root") for stage in stages]),
        "Frames trained on": _shared(trained),
        "Frames evaluated on": _shared(frames),
        "Splits": _shared(
            [f"{s.dataset.get('train_split')} / {s.dataset.get('eval_split')}" for s in stages if s.dataset]
        ),
        "Image size": _shared([f"{c[0]} × {c[1]} px" for c in canvases if c]),
        "Least box height (easy / mod. / hard)": "; ".join(heights),
        "Seed": _shared([stage.seed for stage in stages]),
        "Epochs": _epochs(stages),
        "Precision": _shared([stage.card.get("precision") for stage in stages]),
        "Note": _shared([stage.card.get("note") or None for stage in stages]),
    }
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in entries.items() if v != DASH)
    return f'<dl class="settings">{items}</dl>'


def _epochs(stages: Sequence[Stage]) -> str:
    known = {stage_name(s, stages): s.card["epochs"] for s in stages if "epochs" in s.card}
    if len(set(known.values())) <= 1:
        return _shared(list(known.values()))
    return ", ".join(f"{name.lower()} {epochs}" for name, epochs in known.items())


def _problems(stages: Sequence[Stage]) -> str:
    """One line for each piece that is missing."""
    sentences = dict.fromkeys(problem for stage in stages for problem in stage.problems)
    if not sentences:
        return ""
    lines = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<h3>What is missing</h3><ul class="plain">{lines}</ul>'


def _footer(stages: Sequence[Stage]) -> str:
    folders = dict.fromkeys(str(stage.folder) for stage in stages)
    lines = "<br>".join(escape(folder) for folder in folders)
    return f"<footer><p>Made by distill3d from</p><p>{lines}</p></footer>"


# ---------------------------------------------------------------------------------------------------------- the results


def _results(stages: Sequence[Stage], palette: Sequence[Look], left_out: Sequence[str]) -> str:
    prepared = f"Not judged: {', '.join(left_out)}. They hold weights for later stages; their heads are untrained."
    without = _line(prepared) if left_out else ""
    if not any(stage.finished for stage in stages):
        return _line("No stage has been evaluated yet.") + without
    others = "".join(
        f"<details><summary>{name.capitalize()}</summary>{_ap_table(stages, palette, name)}</details>"
        for name in ("pedestrian", "cyclist")
        if any(stage.ap(name, "3d", "strict") for stage in stages)
    )
    return (
        '<p class="method">Average precision at 40 recall points (AP|R40, percent), Car, by the rules of the official'
        " KITTI evaluation, for easy, moderate and hard objects. Small figures: difference to the baseline, in points."
        f"</p>{_ap_table(stages, palette, 'car')}{without}{others}"
    )


def _ap_table(stages: Sequence[Stage], palette: Sequence[Look], name: str) -> str:
    """AP 3D and BEV at both overlaps and all difficulties, a row for each stage."""
    overlaps = {o: MIN_OVERLAP[o][name]["3d"] for o in OVERLAPS}  # pyright: ignore[reportArgumentType]
    columns = [(metric, overlap, d) for metric in METRICS for overlap in OVERLAPS for d in range(len(DIFFICULTIES))]
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
    rows = []
    for stage, look in zip(stages, palette, strict=True):
        label = (
            f'<th scope="row"><span class="swatch" style="background:{look.colour}"></span>'
            f"{escape(stage_name(stage, stages))}<small>{escape(_makeup(stage))}</small></th>"
        )
        if stage.finished:
            rows.append(f"<tr>{label}{''.join(_ap_cell(stage, stages, name, *column) for column in columns)}</tr>")
        else:
            rows.append(f'<tr>{label}<td class="unfinished" colspan="{len(columns)}">not finished</td></tr>')
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Average precision"><table class="ap"><thead>'
        f'<tr class="metrics"><th></th>{metric_cells}</tr><tr class="overlaps"><th></th>{overlap_cells}</tr>'
        f"<tr><th></th>{difficulty_cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212")


def _cell_class(difficulty: int) -> str:
    return ("opens", "moderate", "")[difficulty]


def _ap_cell(stage: Stage, stages: Sequence[Stage], name: str, metric: str, overlap: str, difficulty: int) -> str:
    values = stage.ap(name, metric, overlap)
    if values is None:
        return f'<td class="{_cell_class(difficulty)}">{DASH}</td>'
    baseline = reference(stage, stages)
    base = None if baseline is None else baseline.ap(name, metric, overlap)
    difference = ""
    if base is not None:
        gain = values[difficulty] - base[difficulty]
        direction = "up" if gain > 0 else "down" if gain < 0 else "soft"
        difference = f'<small class="{direction}">{_signed(gain)}</small>'
    return f'<td class="{_cell_class(difficulty)}">{values[difficulty]:.2f}{difference}</td>'


# ---------------------------------------------------------------------------------------------------------- the curves


def _named(stages: Sequence[Stage], palette: Sequence[Look], shown: Sequence[Stage]) -> str:
    """A legend of the stages that a section shows."""
    look_of = {kind_name(s, stages): look for s, look in zip(stages, palette, strict=True) if s in shown}
    return charts.legend(list(look_of.items()))


def _training(stages: Sequence[Stage], palette: Sequence[Look]) -> str:
    if not any(stage.train or stage.evals for stage in stages):
        return _line("No stage has written metrics yet.")
    parts = [_named(stages, palette, [stage for stage in stages if stage.train or stage.evals])]
    if any(stage.evals for stage in stages):
        progress = [_ap_chart(stages, palette, metric, overlap) for metric in METRICS for overlap in OVERLAPS]
        parts += ["<h3>During training: Car, moderate, percent</h3>", _grid(progress, "charts wide")]
    losses = [_loss_chart("Loss, all terms weighted", stages, palette, lambda line: line.get("loss"))]
    owners: dict[str, set[Path]] = {}
    for stage in stages:
        for name in (name for line in stage.train for name in line.get("terms") or {}):
            owners.setdefault(name, set()).add(stage.folder)
    names = sorted(owners, key=lambda name: len(owners[name]))  # what only the distilled have comes first
    losses += [_loss_chart(n, stages, palette, lambda line, n=n: (line.get("terms") or {}).get(n)) for n in names]
    parts += ["<h3>Loss and its terms</h3>", _grid(losses[:CHARTS_IN_SIGHT])]
    rest = losses[CHARTS_IN_SIGHT:]
    if rest:
        parts.append(f"<details><summary>{len(rest)} more terms</summary>{_grid(rest)}</details>")
    return "".join(parts)


def _grid(drawn: Sequence[str], style: str = "charts") -> str:
    return f'<div class="{style}">{"".join(drawn)}</div>'


def _ap_chart(stages: Sequence[Stage], palette: Sequence[Look], metric: str, overlap: Overlaps) -> str:
    key = f"car_{metric}_{overlap}"
    series = []
    for stage, look in zip(stages, palette, strict=True):
        known = [(line["epoch"], line["ap"][key][MODERATE]) for line in stage.evals if key in (line.get("ap") or {})]
        if known and stage.role != PREPARATION:
            name = stage_name(stage, stages)
            notes = [f"{name}, epoch {epoch}: {value:.2f}" for epoch, value in known]
            epochs, values = [epoch for epoch, _ in known], [value for _, value in known]
            series.append(Series(name, look, epochs, values, notes))
    x_axis = charts.fitting_axis([epoch for one in series for epoch in one.x], from_zero=True)
    y_axis = charts.fitting_axis([value for one in series for value in one.y], from_zero=True)
    title = f"AP {METRICS[metric]}, IoU {MIN_OVERLAP[overlap]['car'][metric]}"
    return charts.line_chart(title, series, x_label="epoch", x_axis=x_axis, y_axis=y_axis)


def _loss_chart(
    title: str, stages: Sequence[Stage], palette: Sequence[Look], pick: Callable[[dict[str, Any]], float | None]
) -> str:
    series = []
    for stage, look in zip(stages, palette, strict=True):
        known = [(line["step"], value) for line in stage.train if (value := pick(line)) is not None]
        if known:
            steps, values = charts.averaged([step for step, _ in known], [value for _, value in known])
            series.append(Series(stage_name(stage, stages), look, steps, values))
    return charts.line_chart(title, series, x_label="step")


def _precision(stages: Sequence[Stage], palette: Sequence[Look]) -> str:
    shown = [stage for stage in stages if any(stage.precision("car", "3d", overlap) for overlap in OVERLAPS)]
    if not shown:
        return _line("No stage has precision values of cars yet.")
    axis_x, axis_y = charts.linear_axis(0, 100), charts.linear_axis(0, 100)
    drawn = []
    for overlap in OVERLAPS:
        series = []
        for stage, look in zip(stages, palette, strict=True):
            curve = stage.precision("car", "3d", overlap)
            if curve:
                reached = [100 * value if value > 0 else math.nan for value in curve[MODERATE]]
                recall = [100 * point / (RECALL_POINTS - 1) for point in range(len(reached))]
                series.append(Series(stage_name(stage, stages), look, recall, reached))
        title = f"Car 3D, moderate, IoU {MIN_OVERLAP[overlap]['car']['3d']}"
        drawn.append(charts.line_chart(title, series, x_label="recall (%)", y_label="precision (%)",
                                       x_axis=axis_x, y_axis=axis_y))  # fmt: skip
    return (
        '<p class="method">Precision at the 41 recall points of the official evaluation; a curve ends where no more'
        f" objects are found.</p>{_named(stages, palette, shown)}"
        f"{_grid(drawn, 'charts wide')}"
    )


# ------------------------------------------------------------------------------------------------------------- distance


def _distance(stages: Sequence[Stage], palette: Sequence[Look]) -> str:
    matched, sentences = {}, []
    for index, stage in enumerate(stages):
        if stage.finished and any(stage.predictions.glob("*.txt")):
            try:
                matched[index] = compare(stage)[1]
            except UserError as error:
                sentences.append(_line(f"{stage_name(stage, stages)} is left out: {error}."))
    if not matched:
        return "".join(sentences) or _line("No finished stage has predictions.")
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
    keys = _named(stages, palette, [stages[i] for i in binned])
    return f'<p class="method">{method}</p>{keys}{_grid(drawn, "charts wide")}{"".join(sentences)}'


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


# ------------------------------------------------------------------------------------------------ gallery and the cards


def _gallery(stages: Sequence[Stage], count: int) -> str:
    parts = cast(stages)
    if count < 1:
        return _line("No gallery was asked for.")
    if not parts:
        return _line("No finished stage has predictions to draw.")
    try:
        figures = [figure_html(*scene) for scene in scenes(parts, count)]
    except (UserError, OSError) as error:
        return _line(f"The gallery is left out: {error}.")
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


def _cards(stages: Sequence[Stage]) -> str:
    return "".join(_card(stage, stages) for stage in stages)


def _card(stage: Stage, stages: Sequence[Stage]) -> str:
    rows = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in _flat(stage.card))
    card = f'<div class="scroll"><table>{rows}</table></div>' if rows else _line("The stage has no card.json yet.")
    config = ""
    if stage.config:
        text = yaml.safe_dump(stage.config, sort_keys=False, allow_unicode=True)
        config = f"<details><summary>config.yaml</summary><pre>{escape(text)}</pre></details>"
    name = f"<b>{escape(stage_name(stage, stages))}</b>"
    return f'<details class="card"><summary>{name} {escape(_makeup(stage))}</summary>{card}{config}</details>'


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, text)."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and len(value) > LISTED:
            rows.append((prefix + key, f"{len(value)} entries, {value[0]} to {value[-1]}"))
        elif value is not None:
            text = (
                f"{value:,}".replace(",", "\u202f") if isinstance(value, int) and abs(value) >= 10_000 else str(value)
            )
            rows.append((prefix + key, text))
    return rows
