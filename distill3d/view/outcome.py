"""What a training came to, for a terminal: a row for each stage, and what to do next."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distill3d.view.headline import reference
from distill3d.view.report import kind_of
from distill3d.view.runs import read_runs


def outcome(run: Path) -> Group | None:
    """A table of the finished stages of a run: the two numbers that stages are compared by, and the gain over the
    baseline; None where no stage is finished."""
    stages = [stage for stage in read_runs([run]) if stage.finished]
    if not stages:
        return None
    measures = kind_of(stages).measures(stages)
    title = f"{run.name}: {measures.first.title}, and {measures.second.where}"
    table = Table("stage", "role")
    for measure in (measures.first, measures.second):
        table.add_column(measure.where.removeprefix("at ").removeprefix("in "), justify="right")
        table.add_column("gain", justify="right")
    for stage in stages:
        cells = []
        for measure in (measures.first, measures.second):
            value, baseline = measure.of(stage), reference(stage, stages)
            before = None if baseline is None else measure.of(baseline)
            cells.append("-" if value is None else f"{value:.1f}")
            cells.append("" if value is None or before is None else f"{value - before:+.1f}")
        table.add_row(stage.name, stage.role, *cells)
    said: list[RenderableType] = [Text(title), table]
    without = [stage.name for stage in stages if measures.first.of(stage) is None]
    if without:
        said.append(Text(f"- : {', '.join(without)} found nothing or has no evaluation"))
    return Group(*said)


def next_steps(run: Path) -> list[str]:
    """The commands that a finished run is looked at with."""
    students = [stage for stage in read_runs([run]) if stage.finished and stage.role in ("student", "baseline")]
    lines = [f"distill3d report {run} --out report.html"]
    if students and students[-1].layout == "kitti":
        lines.append(f"distill3d predict {run / students[-1].name} PICTURE --intrinsics fx,fy,cx,cy")
    if students and students[-1].role == "student":
        lines.append(f"distill3d diagnose {run}")
    return lines
