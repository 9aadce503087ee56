"""Pieces of the report that do not depend on what was measured: names of stages, tables, legends, loss curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from distill3d.view import charts
from distill3d.view.charts import Axis, Series
from distill3d.view.headline import reference
from distill3d.view.palette import Look, looks
from distill3d.view.records import BestOfReported, MetricsLine
from distill3d.view.runs import PREPARATION, Stage

ROLE_NAMES = {
    "teacher": "Teacher", "assistant": "Assistant", "label_encoder": "Label encoder", "preparation": "Preparation",
    "baseline": "Baseline", "student": "Distilled", "control": "Control",
}  # fmt: skip
#: The column of what papers state, beside the results of trainings' ends.
STATED = "best of N on the reported split, as papers state it"
STATED_HEAD = f'<th scope="col" class="opens soft" style="white-space:normal;min-width:10em">{STATED}</th>'
STATED_METHOD = (
    f" The last column, {STATED}, is of the epoch that had the most on this very split, of N that were evaluated on it:"
    " nothing is compared by it."
)
#: Charts of loss terms beyond these many are folded away.
CHARTS_IN_SIGHT = 12
DASH = "\u2013"


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


def stage_looks(stages: Sequence[Stage]) -> list[Look]:
    """One look for each kind of stage: the curves of its seeds look alike."""
    kinds = list(dict.fromkeys(map(_kind, stages)))
    look_of = dict(zip(kinds, looks([role for _, role, _ in kinds]), strict=True))
    return [look_of[_kind(stage)] for stage in stages]


def makeup(stage: Stage) -> str:
    """Detector, input, method and, where there are several, teachers of a stage in a few words, as far as known."""
    method, style = stage.card.get("method"), (stage.card.get("method_config") or stage.card).get("style")
    parts = [
        stage.card.get("detector"),
        stage.card.get("input") or stage.config.get("detector", {}).get("input"),
        f"{method}, {style}" if method and style else method,
        f"taught by {' and '.join(stage.teachers)}" if len(stage.teachers) > 1 else None,
    ]
    return " · ".join(str(part) for part in parts if part)


def line(sentence: str) -> str:
    """A remark as a paragraph."""
    return f'<p class="soft">{escape(sentence)}</p>'


def shared(values: Sequence[Any]) -> str:
    """Values that stages may share: one if all agree, else all in order."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or DASH


# ----------------------------------------------------------------------------------------------------------- the tables


def results_table(
    stages: Sequence[Stage], palette: Sequence[Look], head: Sequence[str], columns: int,
    cells: Callable[[Stage], str], label: str,
) -> str:  # fmt: skip
    """Numbers with a row for each stage: ``head`` holds the rows above, ``cells`` gives the ``columns`` of a stage."""
    rows = []
    for stage, look in zip(stages, palette, strict=True):
        name = (
            f'<th scope="row"><span class="swatch" style="background:{look.colour}"></span>'
            f"{escape(stage_name(stage, stages))}<small>{escape(makeup(stage))}</small></th>"
        )
        if stage.finished:
            rows.append(f"<tr>{name}{cells(stage)}</tr>")
        else:
            rows.append(f'<tr>{name}<td class="unfinished" colspan="{columns}">not finished</td></tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table class="ap"><thead>'
        f"{''.join(head)}</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def result_cell(
    stage: Stage, stages: Sequence[Stage], of: Callable[[Stage], float | None],
    *, style: str = "", digits: int = 2, less_is_better: bool = False,
) -> str:  # fmt: skip
    """A number and, below it, its difference to the stage's baseline."""
    value, baseline = of(stage), reference(stage, stages)
    base = None if baseline is None else of(baseline)
    if value is None:
        return f'<td class="{style}">{DASH}</td>'
    difference = ""
    if base is not None:
        gain = round(value - base, digits) + 0.0  # no minus before a zero
        direction = "soft" if gain == 0 else "up" if (gain > 0) is not less_is_better else "down"
        difference = f'<small class="{direction}">{_signed(gain, digits)}</small>'
    return f'<td class="{style}">{value:.{digits}f}{difference}</td>'


def stated_cell(stage: Stage, numbers: Callable[[BestOfReported], list[float] | None], first: int = 0) -> str:
    """The best of a stage's evaluations in the column ``STATED``: the number of this place large, all of them small.

    It has no difference to a baseline, for it is nothing to compare stages by.
    """
    best = stage.best_of_reported
    values = None if best is None else numbers(best)
    if best is None or not values:
        return f'<td class="opens soft">{DASH}</td>'
    whence = f"{' / '.join(f'{value:.2f}' for value in values)}, epoch {best['epoch']}, N = {best['of']}"
    return f'<td class="opens soft">{values[first]:.2f}<small class="soft">{whence}</small></td>'


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\u2212")


# ----------------------------------------------------------------------------------------------------------- the curves


def legend_of(stages: Sequence[Stage], palette: Sequence[Look], shown: Sequence[Stage]) -> str:
    """A legend of the stages that a section shows."""
    look_of = {kind_name(s, stages): look for s, look in zip(stages, palette, strict=True) if s in shown}
    return charts.legend(list(look_of.items()))


def grid(drawn: Sequence[str], style: str = "charts") -> str:
    """Charts side by side."""
    return f'<div class="{style}">{"".join(drawn)}</div>'


def progress_chart(
    title: str, stages: Sequence[Stage], palette: Sequence[Look], pick: Callable[[MetricsLine], float | None],
    digits: int = 2,
) -> str:  # fmt: skip
    """What evaluations during training gave, over epochs; ``pick`` reads it from a line of metrics.jsonl.

    Preparation stages are left out: their heads are untrained.
    """
    series = []
    for stage, look in zip(stages, palette, strict=True):
        known = [(entry["epoch"], value) for entry in stage.evals if (value := pick(entry)) is not None]
        if known and stage.role != PREPARATION:
            name = stage_name(stage, stages)
            notes = [f"{name}, epoch {epoch}: {value:.{digits}f}" for epoch, value in known]
            epochs, values = [epoch for epoch, _ in known], [value for _, value in known]
            series.append(Series(name, look, epochs, values, notes))
    x_axis = charts.fitting_axis([epoch for one in series for epoch in one.x], from_zero=True, whole=True)
    y_axis = charts.fitting_axis([value for one in series for value in one.y], from_zero=True)
    return charts.line_chart(title, series, x_label="epoch", x_axis=x_axis, y_axis=y_axis)


def training_section(stages: Sequence[Stage], palette: Sequence[Look], progress: Callable[[], str]) -> str:
    """Legend, the metrics over epochs (``progress``, asked where there are any), and the loss and its terms."""
    if not any(stage.train or stage.evals for stage in stages):
        return line("No stage has written metrics yet.")
    parts = [legend_of(stages, palette, [stage for stage in stages if stage.train or stage.evals])]
    if any(stage.evals for stage in stages):
        parts.append(progress())
    losses = [_loss_chart("Loss, all terms weighted", stages, palette, lambda entry: entry.get("loss"))]
    owners: dict[str, set[Path]] = {}
    for stage in stages:
        for name in (name for entry in stage.train for name in entry.get("terms") or {}):
            owners.setdefault(name, set()).add(stage.folder)
    names = sorted(owners, key=lambda name: len(owners[name]))  # what only the distilled have comes first
    losses += [_loss_chart(n, stages, palette, lambda entry, n=n: (entry.get("terms") or {}).get(n)) for n in names]
    parts += ["<h3>Loss and its terms</h3>", grid(losses[:CHARTS_IN_SIGHT])]
    rest = losses[CHARTS_IN_SIGHT:]
    if rest:
        parts.append(f"<details><summary>{len(rest)} more terms</summary>{grid(rest)}</details>")
    return "".join(parts)


def _loss_chart(
    title: str, stages: Sequence[Stage], palette: Sequence[Look], pick: Callable[[MetricsLine], float | None]
) -> str:
    series = []
    for stage, look in zip(stages, palette, strict=True):
        known = [(entry["step"], value) for entry in stage.train if (value := pick(entry)) is not None]
        if known:
            steps, values = charts.averaged([step for step, _ in known], [value for _, value in known])
            series.append(Series(stage_name(stage, stages), look, steps, values))
    return charts.line_chart(title, series, x_label="step")


def precision_chart(
    title: str, stages: Sequence[Stage], palette: Sequence[Look], curve_of: Callable[[Stage], Sequence[float] | None]
) -> str:
    """Precision (``curve_of``, 0..1) at recall points that are equally far apart, from 0 to 1; ends where it is 0."""
    series = []
    for stage, look in zip(stages, palette, strict=True):
        curve = curve_of(stage)
        if curve:
            reached = [100 * value if value > 0 else float("nan") for value in curve]
            recall = [100 * point / (len(curve) - 1) for point in range(len(curve))]
            series.append(Series(stage_name(stage, stages), look, recall, reached))
    percent: Axis = charts.linear_axis(0, 100)
    return charts.line_chart(
        title, series, x_label="recall (%)", y_label="precision (%)", x_axis=percent, y_axis=percent
    )
