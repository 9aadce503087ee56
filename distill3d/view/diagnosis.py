"""The page of a diagnosis: where distilled students gained on their baseline, and where they lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill3d.boxes import KITTI_CLASSES, Boxes3D, from_kitti
from distill3d.data.kitti.dataset import KittiDataset
from distill3d.errors import UserError
from distill3d.evaluate.transfer import (
    NEGATIVE,
    OUTCOMES,
    POSITIVE,
    Analysis,
    Bin,
    Estimate,
    Grouping,
    JudgeSettings,
    largest,
    net_difference,
)
from distill3d.files import write_output_text
from distill3d.view import charts
from distill3d.view.bev_maps import BevMaps, ground_section
from distill3d.view.charts import MINUS, Balance, Chart, Series
from distill3d.view.closeup import Closeup, CloseupFigure, pictured_closeup
from distill3d.view.gallery import read_frame
from distill3d.view.headline import NO_BREAK, caution
from distill3d.view.kitti import KittiKind, height_cautions
from distill3d.view.page import Head, render
from distill3d.view.palette import LOOKS, TRUE, Look
from distill3d.view.pieces import DASH, Table, plain_table
from distill3d.view.runs import Stage

#: Objects shown of each kind, about 0.2 MB each.
PICTURES = 4
MEANING = {
    "positive": "both found it, the student's depth is nearer to the truth",
    "neutral": "both found it, their depth errors are level",
    "negative": "both found it, the student's depth is farther from the truth",
    "gained": "only the student found it",
    "lost": "only the baseline found it",
    "missed": "neither found it",
}
BOTH = ("positive", "neutral", "negative")
#: Groupings that need a sentence before they are read.
READING = {
    "teacher_uncertainty": "Quarters of the objects by the scale (m) of the Laplace distribution in which the teacher"
    " puts the depth of the object, small meaning sure. It grows with distance: mind the first charts.",
    "teacher_error": "Does a student inherit its teacher's mistakes? The bins look at the teacher alone, so that chance"
    " in the baseline does not sort the objects.",
    "teacher_versus_baseline": "Beware: these bins look at the baseline's own error. Where it happened to be bad, any"
    " other detector is likely to be better, taught by this teacher or not, and the other way round. Only what exceeds"
    " the same figure of a student that this teacher did not teach speaks of transfer.",
}


@dataclass(frozen=True)
class Section:
    """One student against the baseline."""

    student: Stage
    analysis: Analysis[Any]
    teacher: Stage | None
    untaught: tuple[Stage, Analysis[Any]] | None = None  # another camera detector that this teacher did not teach
    maps: BevMaps | None = None  # what student and teachers see of the ground, where they look at it
    lacks: tuple[str, ...] = ()  # what could not be shown, a sentence each


def write_page(
    sections: Sequence[Section], baseline: Stage, dataset: KittiDataset | None, out: Path, lacks: Sequence[str] = ()
) -> Path:
    """Write the page and return its path; without a data set it has no pictures.

    Raises:
        UserError: ``out`` cannot be written, or holds what this library did not write.
    """
    stages = [baseline, *(one.student for one in sections)]
    head = page_head(
        sections, baseline, lacks, [*caution(stages, KittiKind().measures(stages)), *height_cautions(stages)],
        {"Least box height": f"KITTI's × {baseline.min_height_scale:.4g}"},
    )  # fmt: skip
    contents = [{**told(one), **_pictured(one, dataset)} for one in sections]
    write_output_text(out, rendered("diagnosis.html", head, sections, baseline, contents))
    return out


def rendered(
    template: str, head: Head, sections: Sequence[Section], baseline: Stage, contents: Sequence[dict[str, Any]],
    **more: Any,
) -> str:  # fmt: skip
    """The page of a template, with what it asks for of each student."""
    settings = sections[0].analysis.settings
    return render(
        template,
        head=head,
        titles={**{f"student-{n}": one.student.name for n, one in enumerate(sections)}, "method": "How it is counted"},
        sections=[
            {"id": f"student-{n}", "title": f"{one.student.name} against {baseline.name}", **content}
            for n, (one, content) in enumerate(zip(sections, contents, strict=True))
        ],
        meanings=MEANING,
        settings=settings,
        margin=f"{100 * settings.margin:g}",
        **more,
    )


# ------------------------------------------------------------------------------------------------------------ the words


def points(value: float) -> str:
    """A difference of shares in points of percent, with its sign."""
    return f"{100 * value:+.1f}".replace("-", MINUS)


def verdict(estimate: Estimate | None) -> str:
    """A net share with its standard error, and whether it can be told from noise."""
    if estimate is None:
        return "too few objects to tell"
    word = "beyond" if estimate.beyond_noise else "within"
    return f"{net(estimate)} points, {word} the noise of frames"


def things(settings: JudgeSettings) -> str:
    """What the objects are called."""
    return f"{settings.classes[0]}s" if len(settings.classes) == 1 else "objects"


def _interval(estimate: Estimate) -> str:
    return f"95{NO_BREAK}% interval {points(estimate.low)} to {points(estimate.high)}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else DASH


def leads(one: Section) -> list[str]:
    """What the numbers say: of depth, of finding, and of the teacher."""
    analysis, total, name = one.analysis, one.analysis.total, one.student.name
    what, margin = things(analysis.settings), f"{100 * analysis.settings.margin:g} % of their depth"
    nearer, farther = total.counts["positive"], total.counts["negative"]
    depth = (
        f"Of the {total.both} {what} that both found, {name} places {nearer} ({_share(nearer, total.both)}) nearer to"
        f" the truth than the baseline and {farther} ({_share(farther, total.both)}) farther from it, by more than"
        f" {margin}."
    )
    if total.depth is None:
        depth += " These are too few objects or frames to tell chance from effect."
    else:
        chance = "more than the noise of frames" if total.depth.beyond_noise else "no more than the noise of frames"
        depth += (
            f" Net depth transfer: {points(total.depth.value)} points (standard error {100 * total.depth.error:.1f},"
            f" {_interval(total.depth)}, {total.both_frames} frames): {chance}."
        )
    finding = (
        f"{name} found {total.counts['gained']} that the baseline missed and missed {total.counts['lost']} that the"
        f" baseline found: net finding {verdict(total.finding)}."
    )
    return [depth, finding, *untaught_sentences(one), *contrast_sentences(one)]


def untaught_sentences(one: Section) -> list[str]:
    """What a detector reaches without this teacher: the measure of what the teacher did."""
    if one.untaught is None:
        return []
    stage, analysis = one.untaught
    ahead = verdict(net_difference(one.analysis, analysis))
    return [
        f"{stage.name}, which this teacher did not teach, stands at {net(analysis.total.depth)} points against the same"
        f" baseline; the lead of {one.student.name} over it is {ahead}."
    ]


def contrast_sentences(one: Section) -> list[str]:
    """Whether there is more harm where the teacher is wrong or unsure, beside the same of the untaught detector."""
    theirs = {} if one.untaught is None else {c.key: c.difference for c in one.untaught[1].contrasts}
    sentences = []
    for c in one.analysis.contrasts:
        (first, second), (many, fewer) = c.values, c.counts
        told = f"{'beyond' if c.difference.beyond_noise else 'within'} the noise of frames"
        strata = ", each compared within its bin of distance" if c.key == "teacher_sure" else ""
        twin = ""
        if one.untaught is not None and c.key in theirs:
            twin = f" For {one.untaught[0].name} the difference is {net(theirs[c.key])}."
        sentences.append(
            f"Where {c.first}, net depth transfer is {points(first.value)} points ({many} objects); where {c.second},"
            f" {points(second.value)} ({fewer}){strata}: the difference is {told} ({points(c.difference.value)},"
            f" {_interval(c.difference)}).{twin}"
        )
    return sentences


def page_head(
    sections: Sequence[Section], baseline: Stage, lacks: Sequence[str], cautions: list[str], more: dict[str, str]
) -> Head:
    """The head of a page, with cautions and ``more`` settings of the data set's layout."""
    first, run = sections[0].analysis, sections[0].student.run
    unnamed = {one.student.name: [one.teacher.name] if one.teacher else [] for one in sections}
    teachers = [name for one in sections for name in one.student.teachers or unnamed[one.student.name]]
    own = baseline.folder.parent == sections[0].student.folder.parent
    return Head(
        kind=f"diagnosis · {run}",
        title=f"{run} {DASH} distill3d diagnosis",
        heading=f"Net depth transfer: {'; '.join(map(_told, sections))}",
        leads=[],
        cautions=cautions,
        settings={
            "Data": str(baseline.dataset.get("root", DASH)),
            "Split": str(baseline.dataset.get("eval_split", DASH)),
            "Frames": str(len(first.objects.frames)),
            f"{things(first.settings).capitalize()} that count": (
                f"{first.total.objects} in {first.total.frames} frames"
            ),
            "Baseline": baseline.name if own else f"{baseline.name} ({baseline.run})",
            "Teachers": ", ".join(dict.fromkeys(teachers)) or DASH,
            "Margin": f"{100 * first.settings.margin:g} % of depth",
            **more,
        },
        missing=list(dict.fromkeys(lacks)),
        folders=[str(sections[0].student.folder.parent)],
    )


def _told(one: Section) -> str:
    if one.untaught is None:
        return f"{one.student.name} {verdict(one.analysis.total.depth)}"
    stage, analysis = one.untaught
    ahead = net_difference(one.analysis, analysis)
    words = "too few to compare" if ahead is None else "a difference" if ahead.beyond_noise else "no clear difference"
    ours, theirs = net(one.analysis.total.depth), net(analysis.total.depth)
    return f"{one.student.name} {ours} points, untaught {stage.name} {theirs}: {words}"


# ---------------------------------------------------------------------------------------------------------- one student


def told(one: Section) -> dict[str, Any]:
    """What every template asks for of one student: numbers and charts."""
    analysis, parts = one.analysis, list(one.analysis.parts)
    other = {} if one.untaught is None else {g.key: bins for g, bins in one.untaught[1].groups}
    return {
        "leads": leads(one),
        "lacks": one.lacks,
        **_totals(one),
        "untaught": None if one.untaught is None else one.untaught[0].name,
        "curves": {stage_of(one, part): LOOKS[part] for part in parts},
        "groups": [_group(grouping, bins, other.get(grouping.key), one) for grouping, bins in analysis.groups],
        "boxes": {part: Look(LOOKS[part].colour) for part in (TRUE, *parts)},
        "maps": None if one.maps is None else ground_section(one.maps, things(analysis.settings)),
    }


def _pictured(one: Section, dataset: KittiDataset | None) -> dict[str, Any]:
    """Close-ups of one student's objects, or why there are none."""
    pictures, problem = {}, ""
    if dataset is not None:
        try:
            pictures = _pictures(one, dataset)
        except (UserError, OSError) as error:
            problem = f"The pictures are left out: {str(error).rstrip('.')}."
    return {"pictures": pictures, "no_pictures": problem}


def _number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else DASH


def _totals(one: Section) -> dict[str, Table]:
    total, parts = one.analysis.total, one.analysis.parts
    counts = [
        ["objects", *(str(n) for n in total.counts.values())],
        [f"share of all {total.objects}", *(_share(n, total.objects) for n in total.counts.values())],
        [f"share of {total.both} that both found",
         *(_share(n, total.both) if name in BOTH else "" for name, n in total.counts.items())],
    ]  # fmt: skip
    means = [
        [stage_of(one, part), f"{total.found[part]} ({_share(total.found[part], total.objects)})",
         _number(total.depth_error[part]), _number(total.centre_error[part]), _number(total.iou_3d[part], 3)]
        for part in parts
    ]  # fmt: skip
    head = ("", "found", f"mean depth error (m), {total.common} found by all", "mean centre error (m), the same",
            f"mean 3D IoU, all {total.objects}, missed = 0")  # fmt: skip
    margins = [
        [f"{100 * m.margin:g} % of depth", str(m.positive), str(m.negative), verdict(m.depth)]
        for m in one.analysis.margins
    ]
    return {
        "counts": plain_table("Outcomes", ("", *OUTCOMES), counts),
        "means": plain_table("Means", head, means),
        "margins": plain_table("Other margins", ("margin", "positive", "negative", "net depth transfer"), margins),
    }


def stage_of(one: Section, part: str) -> str:
    """What a part is called, with its stage's name."""
    stage = {"student": one.student, "teacher": one.teacher}.get(part)
    return part if stage is None or stage.name == part else f"{part}: {stage.name}"


def _group(grouping: Grouping, bins: Sequence[Bin], other: Sequence[Bin] | None, one: Section) -> dict[str, Any]:
    """Charts and table of one way to sort the objects."""
    left_out = int((grouping.index < 0).sum())
    unknown = f" {left_out} objects have no such value and are in no bin." if left_out else ""
    return {
        "name": grouping.title,
        "title": grouping.title[0].upper() + grouping.title[1:],
        "reading": (READING.get(grouping.key, "") + unknown).strip(),
        "charts": [
            _balance_chart(
                "Depth nearer / farther (%)", grouping, bins, other, "both", "depth", ("positive", "negative")
            ),
            _balance_chart("Found: gained / lost (%)", grouping, bins, other, "objects", "finding", ("gained", "lost")),
            _error_chart(grouping, bins, one.analysis.settings, list(one.analysis.parts)),
        ],
        "table": _bins_table(bins, other, one),
    }


def _trimmed(bins: Sequence[Bin], count: Callable[[Bin], int]) -> range:
    """Indices of the bins from the first to the last one that holds anything."""
    held = [n for n, one in enumerate(bins) if count(one)]
    return range(held[0], held[-1] + 1) if held else range(0)


def _balance_chart(
    title: str, grouping: Grouping, bins: Sequence[Bin], other: Sequence[Bin] | None, whole: str, estimate: str,
    outcomes: tuple[str, str],
) -> Chart:  # fmt: skip
    bars = []
    for n in _trimmed(bins, lambda one: getattr(one, whole)):
        one, count, net = bins[n], getattr(bins[n], whole), getattr(bins[n], estimate)
        if net is None:
            bars.append(Balance(one.label, count))
            continue
        up, down = (100 * one.counts[name] / count for name in outcomes)
        reference = None if other is None else getattr(other[n], estimate)
        frames = one.both_frames if whole == "both" else one.frames
        note = (
            f"{one.label}: {one.counts[outcomes[0]]} {outcomes[0]}, {one.counts[outcomes[1]]} {outcomes[1]} of {count}"
        )
        note += f" in {frames} frames; net {verdict(net)}, {_interval(net)}"
        bars.append(
            Balance(one.label, count, up, down, 100 * net.value, 100 * net.low, 100 * net.high,
                    math.nan if reference is None else 100 * reference.value, note)
        )  # fmt: skip
    drawn = [v for bar in bars for v in (bar.up, -bar.down, bar.low, bar.high, bar.other) if math.isfinite(v)]
    axis = charts.linear_axis(min([0.0, *drawn]), max([0.0, *drawn])) if drawn else charts.linear_axis(-1, 1)
    return charts.balance_chart(title, bars, x_label=grouping.title, y_axis=axis)


def _error_chart(grouping: Grouping, bins: Sequence[Bin], settings: JudgeSettings, parts: Sequence[str]) -> Chart:
    shown = list(_trimmed(bins, lambda one: one.common))
    series = []
    for part in parts:
        values = [bins[n].depth_error[part] if bins[n].common >= settings.least_objects else math.nan for n in shown]
        notes = [
            f"{part}, {bins[n].label}: {v:.2f} m ({bins[n].common} objects)" for n, v in zip(shown, values, strict=True)
        ]
        series.append(Series(part, LOOKS[part], list(range(len(shown))), values, notes))
    finite = [value for one in series for value in one.y if math.isfinite(value)]
    return charts.line_chart(
        "Mean depth error (m)", series, x_label=grouping.title, x_axis=charts.bin_axis([bins[n].label for n in shown]),
        y_axis=charts.fitting_axis(finite, from_zero=True), under=charts.counted(bins[n].common for n in shown),
    )  # fmt: skip


def _bins_table(bins: Sequence[Bin], other: Sequence[Bin] | None, one: Section) -> Table:
    parts = list(one.analysis.parts)
    head = ["bin", "objects", "frames", *OUTCOMES, "net depth (points)", "net finding (points)"]
    head += [] if other is None or one.untaught is None else [f"net depth of {one.untaught[0].name}"]
    head += [f"{part} error (m)" for part in parts]
    rows = []
    for n, b in enumerate(bins):
        if not b.objects:
            continue
        row = [b.label, str(b.objects), str(b.frames), *(str(b.counts[name]) for name in OUTCOMES)]
        row += [net(b.depth), net(b.finding)]
        row += [] if other is None else [net(other[n].depth)]
        rows.append(row + [_number(b.depth_error[part]) for part in parts])
    return plain_table("Numbers by bin", head, rows)


def net(estimate: Estimate | None) -> str:
    """A net share in points, with its standard error."""
    return DASH if estimate is None else f"{points(estimate.value)}{NO_BREAK}±{NO_BREAK}{100 * estimate.error:.1f}"


# --------------------------------------------------------------------------------------------------------- the pictures


def _pictures(one: Section, dataset: KittiDataset) -> dict[str, list[CloseupFigure]]:
    """The objects with the largest gains and the largest harm.

    Raises:
        UserError, OSError: they cannot be read.
    """
    kinds = {"Largest gains": POSITIVE, "Largest harm": NEGATIVE}
    chosen = {title: largest(one.analysis, outcome, PICTURES) for title, outcome in kinds.items()}
    return {title: [_picture(one, dataset, index) for index in indices] for title, indices in chosen.items()}


def _picture(one: Section, dataset: KittiDataset, index: int) -> CloseupFigure:
    analysis, objects = one.analysis, one.analysis.objects
    frame = objects.frames[objects.frame[index]]
    boxes, remarks = {}, {}
    for part, found in analysis.parts.items():
        if not found.found[index]:
            remarks[part] = f"{part}: missed"
            continue
        away = float(found.box[index, 5] - objects.depth[index])
        where = "too far" if away > 0 else "too near"
        remarks[part] = f"{part}: {abs(away):.2f} m {where}, 3D IoU {found.iou_3d[index]:.2f}"
        boxes[part] = _box(found.box[index])
    name = str(objects.name[index])
    change = analysis.parts["baseline"].depth_error[index] - analysis.parts["student"].depth_error[index]
    unsure = analysis.log_scale[index]
    scale = f"; scale of the teacher's depth {math.exp(unsure):.2f} m" if math.isfinite(unsure) else ""
    caption = (
        f"{name} {objects.depth[index]:.1f} m ahead, occlusion {objects.occlusion[index]}; depth error"
        f" {'smaller' if change > 0 else 'larger'} by {abs(change):.2f} m ({100 * abs(analysis.gain[index]):.1f} % of"
        f" depth){scale}."
    )
    sample = read_frame(dataset, frame)
    title = f"Frame {frame}, line {objects.line[index] + 1}"
    return pictured_closeup(sample, Closeup(_box(objects.box[index]), boxes, remarks, title, caption))


def _box(row: np.ndarray) -> Boxes3D:
    """One KITTI row (7,) as a box."""
    values = torch.from_numpy(row[None].copy())
    return from_kitti(
        values[:, :3], values[:, 3:6], values[:, 6], torch.full((1,), KITTI_CLASSES.index("Car"), dtype=torch.int64)
    )
