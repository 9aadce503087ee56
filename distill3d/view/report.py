"""One self-contained HTML page that compares runs: nothing is loaded from elsewhere, and no script runs.

What all runs have stands here; what a data set's layout brings along is its ``Kind``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distill3d.errors import UserError
from distill3d.files import refuse_foreign, write_output_text
from distill3d.view.headline import caution, headline
from distill3d.view.kind import Kind
from distill3d.view.kitti import KittiKind
from distill3d.view.page import Head, render
from distill3d.view.pieces import DASH, STATED_METHOD, Shown, looks_of, loss_charts, shared, shown
from distill3d.view.runs import PREPARATION, TAKEN, Layout, Stage, read_runs
from distill3d.view.surround import SurroundKind

KINDS: dict[Layout, Kind] = {"kitti": KittiKind(), "nuscenes": SurroundKind()}
#: Longer lists of a card are summed up; charts of loss terms beyond so many are folded away.
LISTED, CHARTS_IN_SIGHT = 12, 12


def write_report(runs: Sequence[Path], out: Path, gallery: int = 8) -> Path:
    """Write the page that compares the given recipe folders or stage folders, and return its path.

    ``gallery`` is the number of frames shown as pictures, about 0.4 MB each. What a run lacks is said on the page.

    Raises:
        UserError: no runs, a folder that is no run, runs of different kinds, or ``out`` cannot be written.
    """
    if not runs:
        raise UserError("no runs to report on: expected at least one folder such as runs/<recipe>")
    refuse_foreign(out)
    stages = read_runs(runs)
    kind, entries = kind_of(stages), shown(stages)
    # What only prepares weights has an untrained head: its numbers would say nothing.
    judged = [one for one in entries if one.stage.role != PREPARATION]
    page = render(
        kind.template,
        head=_head(kind, entries),
        finished=any(one.stage.finished for one in judged),
        prepared=[one.name for one in entries if one.stage.role == PREPARATION and not one.stage.taken],
        taken=[one.name for one in entries if one.stage.role == PREPARATION and one.stage.taken],
        taken_words=TAKEN,
        stated=STATED_METHOD if any(stage.best_of_reported for stage in stages) else "",
        trained=looks_of([one for one in entries if one.stage.train or one.stage.evals]),
        evaluated=any(one.stage.evals for one in judged),
        losses=loss_charts(entries),
        in_sight=CHARTS_IN_SIGHT,
        cards=[_card(one) for one in entries],
        judged_by=kind.measures(stages).first.title,
        **kind.content(judged, gallery),
    )
    write_output_text(out, page)
    return out


def kind_of(stages: Sequence[Stage]) -> Kind:
    """What all the runs are.

    Raises:
        UserError: they are not all of one kind.
    """
    first = {stage.layout: stage.run for stage in reversed(stages)}
    if len(first) > 1:
        raise UserError(
            f"run {first['kitti']} is in KITTI's layout and run {first['nuscenes']} of surround views: their numbers"
            " cannot be compared, so write a report of each"
        )
    return KINDS[stages[0].layout]


# ------------------------------------------------------------------------------------------------------------- the head


def _head(kind: Kind, entries: Sequence[Shown]) -> Head:
    stages = [one.stage for one in entries]
    heading, leads = headline(stages, kind.measures(stages))
    runs = ", ".join(dict.fromkeys(stage.run for stage in stages))
    return Head(
        kind=f"report · {runs}",
        title=f"{runs} {DASH} distill3d report",
        heading=heading,
        leads=leads,
        cautions=[*caution(stages, kind.measures(stages)), *kind.cautions(stages)],
        settings=_settings(kind, entries),
        missing=list(dict.fromkeys(problem for stage in stages for problem in stage.problems)),
        folders=list(dict.fromkeys(str(stage.folder) for stage in stages)),
    )


def _settings(kind: Kind, entries: Sequence[Shown]) -> dict[str, str]:
    # What was taken from elsewhere was trained otherwise: that stands on its own card.
    entries = [one for one in entries if not one.stage.taken] or entries
    stages = [one.stage for one in entries]
    canvases = [stage.dataset.get("canvas") for stage in stages]
    known = {
        "Data": shared([stage.dataset.get("root") for stage in stages]),
        "Frames trained on": shared([stage.training_frames for stage in stages]),
        "Frames evaluated on": shared([stage.evaluated_frames for stage in stages]),
        "Splits": shared(
            [f"{s.dataset.get('train_split')} / {s.dataset.get('eval_split')}" for s in stages if s.dataset]
        ),
        "Image size": shared([f"{c[0]} × {c[1]} px" for c in canvases if c]),
        **kind.settings(stages),
        "Seed": shared([stage.seed for stage in stages]),
        "Epochs": _epochs(entries),
        "Precision": shared([stage.card.get("precision") for stage in stages]),
        "Note": shared([stage.card.get("note") or None for stage in stages]),
    }
    return {name: value for name, value in known.items() if value != DASH}


def _epochs(entries: Sequence[Shown]) -> str:
    known = {one.name: one.stage.card["epochs"] for one in entries if "epochs" in one.stage.card}
    if len(set(known.values())) <= 1:
        return shared(list(known.values()))
    return ", ".join(f"{name} {epochs}" for name, epochs in known.items())


# ------------------------------------------------------------------------------------------------------------ the cards


def _card(one: Shown) -> dict[str, Any]:
    """What a stage's card and configuration say."""
    config = one.stage.config
    return {
        "name": one.name,
        "makeup": one.makeup,
        "settings": _flat(one.stage.card),
        "config": yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else "",
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
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
