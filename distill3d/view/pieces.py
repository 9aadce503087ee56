"""Pieces of the report that do not depend on what was measured: names of stages, tables, legends, loss curves."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import escape

from distill3d.view import charts
from distill3d.view.charts import MINUS, Chart, Series
from distill3d.view.headline import reference
from distill3d.view.palette import Look, looks
from distill3d.view.records import BestOfReported, MetricsLine
from distill3d.view.runs import TAKEN, Stage

ROLE_NAMES = {
    "teacher": "Teacher", "assistant": "Assistant", "label_encoder": "Label encoder", "preparation": "Preparation",
    "baseline": "Baseline", "student": "Distilled", "control": "Control",
}  # fmt: skip
#: The column of what papers state, beside the results of trainings' ends.
STATED = "best of N on the reported split, as papers state it"
STATED_METHOD = (
    f" The last column, {STATED}, is of the epoch that had the most on this very split, of N that were evaluated on it:"
    " nothing is compared by it."
)
DASH = "\u2013"
#: Cells that hold one are set as text.
WORD = re.compile("[A-Za-z]{2}")


# ------------------------------------------------------------------------------------------------------------ the words


@dataclass(frozen=True)
class Shown:
    """A stage as a page shows it, among others."""

    stage: Stage
    kind: str  # what it is called, whatever its seed
    name: str  # the same, with the seed where the stage ran more than once
    look: Look  # of all seeds of a stage
    makeup: str  # what it is, in a few words
    baseline: Stage | None  # what it is compared with


def shown(stages: Sequence[Stage]) -> list[Shown]:
    """The stages with names that tell them apart: with the run's name where another run has a stage of the same."""
    own = [_own_name(stage) for stage in stages]
    runs_of = {name: {s.run for s, other in zip(stages, own, strict=True) if other == name} for name in own}
    kinds = [
        name if len(runs_of[name]) == 1 else f"{name} ({stage.run})" for stage, name in zip(stages, own, strict=True)
    ]
    role_of = {kind: stage.role for kind, stage in zip(kinds, stages, strict=True)}
    look_of = dict(zip(role_of, looks(list(role_of.values())), strict=True))
    several = len({stage.run for stage in stages}) > 1
    return [
        Shown(
            stage, kind, kind if kinds.count(kind) == 1 else f"{kind}, seed {stage.seed}", look_of[kind],
            " · ".join([*makeup(stage), *([f"run {stage.run}"] if several and kind == name else [])]),
            reference(stage, stages),
        )
        for stage, name, kind in zip(stages, own, kinds, strict=True)
    ]  # fmt: skip


def _own_name(stage: Stage) -> str:
    """Role and name of a stage, the name alone where the role is none of ours, the role alone where both are one."""
    role = ROLE_NAMES.get(stage.role, "")
    return role if role and stage.name == stage.role else f"{role}: {stage.name}" if role else stage.name


def makeup(stage: Stage) -> list[str]:
    """Detector, input, method and, where there are several, teachers of a stage, as far as known."""
    method, style = stage.card.get("method"), (stage.card.get("method_config") or stage.card).get("style")
    parts = [
        stage.card.get("detector"),
        stage.card.get("input") or stage.config.get("detector", {}).get("input"),
        f"{method}, {style}" if method and style else method,
        f"taught by {' and '.join(stage.teachers)}" if len(stage.teachers) > 1 else None,
    ]
    return [str(part) for part in parts if part]


def looks_of(entries: Sequence[Shown]) -> dict[str, Look]:
    """What a legend says of stages."""
    return {entry.kind: entry.look for entry in entries}


def shared(values: Sequence[Any]) -> str:
    """Values that stages may share: one if all agree, else all in order."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or DASH


# ----------------------------------------------------------------------------------------------------------- the tables


@dataclass(frozen=True)
class Cell:
    """A cell of a table, or of its head."""

    text: str
    style: str = ""  # classes of the style sheet
    small: str = ""  # below the text
    tone: str = ""  # class of what is small
    span: int = 1  # columns
    note: str = ""  # tooltip


@dataclass(frozen=True)
class Row:
    name: str
    cells: Sequence[Cell]
    small: str = ""
    colour: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of numbers, in a box of their own that scrolls where they are wider than the page."""

    label: str  # for those who do not see it
    head: Sequence[Sequence[Cell]]  # rows without their first cell
    rows: Sequence[Row]
    corner: str = ""  # above the rows' names
    style: str = ""  # a class of the style sheet


def plain_table(label: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of text; the first of each row, and of the head, is the rows' name.

    Numbers stay on one line, at the right; words may take several, and headings, so that wide tables fit. Markup is
    judged by what is seen of it.
    """
    styles = [
        "words" if any(WORD.search(escape(row[n]).striptags()) for row in rows) else "" for n in range(1, len(head))
    ]

    def cells(texts: Sequence[str]) -> list[Cell]:
        return [Cell(text, style) for text, style in zip(texts[1:], styles, strict=True)]

    return Table(label, [cells(head)], [Row(row[0], cells(row)) for row in rows], head[0], "fits")


def results_table(
    label: str, entries: Sequence[Shown], head: Sequence[Sequence[Cell]], cells: Callable[[Shown], list[Cell]]
) -> Table:
    """Numbers with a row for each stage, as far as it is finished."""
    width = sum(cell.span for cell in head[-1])

    def results(one: Shown) -> list[Cell]:
        if one.stage.finished:
            return cells(one)
        return [Cell(TAKEN if one.stage.unjudged else "not finished", "unfinished", span=width)]

    rows = [Row(one.name, results(one), one.makeup, one.look.colour) for one in entries]
    return Table(label, head, rows)


def result_cell(
    one: Shown, of: Callable[[Stage], float | None],
    *, style: str = "", digits: int = 2, less_is_better: bool = False,
) -> Cell:  # fmt: skip
    """A number and, below it, its difference to the stage's baseline."""
    value, base = of(one.stage), None if one.baseline is None else of(one.baseline)
    if value is None:
        return Cell(DASH, style)
    if base is None:
        return Cell(f"{value:.{digits}f}", style)
    gain = round(value - base, digits) + 0.0  # no minus before a zero
    tone = "soft" if gain == 0 else "up" if (gain > 0) is not less_is_better else "down"
    return Cell(f"{value:.{digits}f}", style, f"{gain:+.{digits}f}".replace("-", MINUS), tone)


def stated_cell(stage: Stage, numbers: Callable[[BestOfReported], list[float] | None], first: int = 0) -> Cell:
    """The best of a stage's evaluations in the column ``STATED``: the number of this place large, all of them small.

    It has no difference to a baseline, for it is nothing to compare stages by.
    """
    best = stage.best_of_reported
    values = None if best is None else numbers(best)
    if best is None or not values:
        return Cell(DASH, "opens soft")
    whence = f"{' / '.join(f'{value:.2f}' for value in values)}, epoch {best['epoch']}, N = {best['of']}"
    return Cell(f"{values[first]:.2f}", "opens soft", whence, "soft")


def stated_heads(*above: str) -> list[list[Cell]]:
    """What each row of a table's head has above that column."""
    return [*([Cell(text)] for text in above), [Cell(STATED, "opens soft stated")]]


# ----------------------------------------------------------------------------------------------------------- the curves


def progress_chart(
    title: str, entries: Sequence[Shown], pick: Callable[[MetricsLine], float | None], digits: int = 2
) -> Chart:
    """What evaluations during training gave, over epochs; ``pick`` reads it from a line of metrics.jsonl."""
    series = []
    for one in entries:
        known = [(line["epoch"], value) for line in one.stage.evals if (value := pick(line)) is not None]
        if known:
            notes = [f"{one.name}, epoch {epoch}: {value:.{digits}f}" for epoch, value in known]
            epochs, values = [epoch for epoch, _ in known], [value for _, value in known]
            series.append(Series(one.name, one.look, epochs, values, notes))
    x_axis = charts.count_axis([epoch for one in series for epoch in one.x])
    y_axis = charts.fitting_axis([value for one in series for value in one.y], from_zero=True)
    return charts.line_chart(title, series, x_label="epoch", x_axis=x_axis, y_axis=y_axis)


def loss_charts(entries: Sequence[Shown]) -> list[Chart]:
    """The loss and its terms over the steps; what only few stages have comes before what all have."""
    if not any(one.stage.train for one in entries):
        return []
    owners: dict[str, set[Path]] = {}
    for one in entries:
        for name in (name for line in one.stage.train for name in line.get("terms") or {}):
            owners.setdefault(name, set()).add(one.stage.folder)
    names = sorted(owners, key=lambda name: len(owners[name]))
    return [
        _loss_chart("Loss, all terms weighted", entries, lambda line: line.get("loss")),
        *(_loss_chart(name, entries, lambda line, n=name: (line.get("terms") or {}).get(n)) for name in names),
    ]


def _loss_chart(title: str, entries: Sequence[Shown], pick: Callable[[MetricsLine], float | None]) -> Chart:
    series = []
    for one in entries:
        known = [(line["step"], value) for line in one.stage.train if (value := pick(line)) is not None]
        if known:
            steps, values = charts.averaged([step for step, _ in known], [value for _, value in known])
            series.append(Series(one.name, one.look, steps, values))
    x_axis = charts.count_axis([step for one in series for step in one.x])
    return charts.line_chart(title, series, x_label="step", x_axis=x_axis)


def precision_chart(title: str, entries: Sequence[Shown], curve_of: Callable[[Stage], Sequence[float] | None]) -> Chart:
    """Precision (``curve_of``, 0..1) at recall points that are equally far apart, from 0 to 1; ends where it is 0."""
    series = []
    for one in entries:
        curve = curve_of(one.stage)
        if curve:
            reached = [100 * value if value > 0 else float("nan") for value in curve]
            recall = [100 * point / (len(curve) - 1) for point in range(len(curve))]
            series.append(Series(one.name, one.look, recall, reached))
    percent = charts.linear_axis(0, 100)
    return charts.line_chart(title, series, x_label="recall (%)", aside="precision (%)", x_axis=percent, y_axis=percent)
