"""One self-contained HTML page that compares runs: nothing is loaded from elsewhere, and no script runs.

What all runs have stands here; what a data set's layout brings along is its ``Kind``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from distill3d.errors import UserError
from distill3d.files import refuse_foreign, write_output_text
from distill3d.view.headline import caution, headline
from distill3d.view.kind import Kind
from distill3d.view.kitti import KittiKind
from distill3d.view.page import page_html
from distill3d.view.palette import Look
from distill3d.view.pieces import DASH, line, makeup, shared, stage_looks, stage_name, training_section
from distill3d.view.runs import PREPARATION, Layout, Stage, read_runs
from distill3d.view.surround import SurroundKind

KINDS: dict[Layout, Kind] = {"kitti": KittiKind(), "nuscenes": SurroundKind()}
#: Longer lists of a card are summed up.
LISTED = 12


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
    kind, palette = kind_of(stages), stage_looks(stages)
    # What only prepares weights has an untrained head: its numbers would say nothing.
    judged = [(stage, look) for stage, look in zip(stages, palette, strict=True) if stage.role != PREPARATION]
    detectors, colours = [stage for stage, _ in judged], [look for _, look in judged]
    left_out = [stage_name(stage, stages) for stage in stages if stage.role == PREPARATION]
    training = training_section(stages, palette, lambda: kind.progress(stages, palette))
    sections = {
        "results": ("Results", _results(kind, detectors, colours, left_out)),
        "training": ("Training", training),
        **kind.sections(detectors, colours, gallery),
        "stages": ("Stages", _cards(stages)),
    }
    body = [_header(kind, stages, {key: title for key, (title, _) in sections.items()}), "<main>"]
    body += [f'<section id="{key}"><h2>{title}</h2>{content}</section>' for key, (title, content) in sections.items()]
    body += ["</main>", _footer(stages)]
    title = ", ".join(dict.fromkeys(stage.run for stage in stages))
    write_output_text(out, page_html(f"{title} {DASH} distill3d report", body))
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


def _results(kind: Kind, stages: Sequence[Stage], palette: Sequence[Look], left_out: Sequence[str]) -> str:
    prepared = f"Not judged: {', '.join(left_out)}. They hold weights for later stages; their heads are untrained."
    remark = line(prepared) if left_out else ""
    if not any(stage.finished for stage in stages):
        return line("No stage has been evaluated yet.") + remark
    return kind.results(stages, palette, remark)


# ----------------------------------------------------------------------------------------------------------- the header


def _header(kind: Kind, stages: Sequence[Stage], titles: dict[str, str]) -> str:
    title, leads = headline(stages, kind.measures(stages))
    paragraphs = "".join(f'<p class="lead">{escape(lead)}</p>' for lead in leads)
    warned = [*caution(stages, kind.measures(stages)), *kind.cautions(stages)]
    cautions = "".join(f"<p>{escape(sentence)}</p>" for sentence in warned)
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name in titles.items())
    runs = ", ".join(dict.fromkeys(stage.run for stage in stages))
    return (
        f'<header><p class="kind">distill3d report · {escape(runs)}</p><h1>{escape(title)}</h1>'
        f"{paragraphs}"
        + (f'<div class="caution" role="note">{cautions}</div>' if cautions else "")
        + _settings(kind, stages)
        + _problems(stages)
        + f'<nav aria-label="Contents"><ul>{links}</ul></nav></header>'
    )


def _settings(kind: Kind, stages: Sequence[Stage]) -> str:
    canvases = [stage.dataset.get("canvas") for stage in stages]
    entries = {
        "Data": shared([stage.dataset.get("root") for stage in stages]),
        "Frames trained on": shared([stage.training_frames for stage in stages]),
        "Frames evaluated on": shared([stage.evaluated_frames for stage in stages]),
        "Splits": shared(
            [f"{s.dataset.get('train_split')} / {s.dataset.get('eval_split')}" for s in stages if s.dataset]
        ),
        "Image size": shared([f"{c[0]} × {c[1]} px" for c in canvases if c]),
        **kind.settings(stages),
        "Seed": shared([stage.seed for stage in stages]),
        "Epochs": _epochs(stages),
        "Precision": shared([stage.card.get("precision") for stage in stages]),
        "Note": shared([stage.card.get("note") or None for stage in stages]),
    }
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in entries.items() if v != DASH)
    return f'<dl class="settings">{items}</dl>'


def _epochs(stages: Sequence[Stage]) -> str:
    known = {stage_name(s, stages): s.card["epochs"] for s in stages if "epochs" in s.card}
    if len(set(known.values())) <= 1:
        return shared(list(known.values()))
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


# ------------------------------------------------------------------------------------------------------------ the cards


def _cards(stages: Sequence[Stage]) -> str:
    return "".join(_card(stage, stages) for stage in stages)


def _card(stage: Stage, stages: Sequence[Stage]) -> str:
    rows = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in _flat(stage.card))
    card = f'<div class="scroll"><table>{rows}</table></div>' if rows else line("The stage has no card.json yet.")
    config = ""
    if stage.config:
        text = yaml.safe_dump(stage.config, sort_keys=False, allow_unicode=True)
        config = f"<details><summary>config.yaml</summary><pre>{escape(text)}</pre></details>"
    name = f"<b>{escape(stage_name(stage, stages))}</b>"
    return f'<details class="card"><summary>{name} {escape(makeup(stage))}</summary>{card}{config}</details>'


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
