"""The page of a diagnosis of surround views: beside what every diagnosis tells, which fields of the boxes are better,
what they are worth, and the moments that tell most."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from distill3d.boxes import Boxes3D
from distill3d.data.nuscenes.dataset import NuScenesDataset, carry_boxes
from distill3d.errors import UserError
from distill3d.evaluate.fields import Exchange, Swaps
from distill3d.evaluate.nuscenes import OFFICIAL
from distill3d.evaluate.nuscenes_boxes import DetectionBoxes
from distill3d.evaluate.surround_fields import (
    PLACE,
    REACH,
    REPLACED,
    SCORES,
    SURROUND_FIELDS,
    SURROUND_UNITS,
    SurroundErrors,
    SurroundField,
)
from distill3d.evaluate.surround_transfer import SurroundFound, SurroundLabelled
from distill3d.evaluate.transfer import telling_objects
from distill3d.files import write_output_text
from distill3d.view.bev_maps import MAP_COLOURS, GroundMap, end_of_scale, map_picture
from distill3d.view.charts import MINUS
from distill3d.view.diagnosis import Section, page_head, rendered, stage_of, told
from distill3d.view.draw import LOOK_AHEAD, RING_STEP
from distill3d.view.headline import caution
from distill3d.view.page import Photo, photo
from distill3d.view.palette import GROUND_RAMP, LOOKS, TRUE
from distill3d.view.pieces import DASH, Cell, Row, Shown, Table
from distill3d.view.runs import Stage
from distill3d.view.surround import SurroundKind
from distill3d.view.surround_gallery import (
    Moment,
    MomentFigure,
    class_counts,
    class_words,
    global_boxes,
    looking_ahead,
    moment_title,
    pictured,
    pictured_moment,
)

#: Moments shown of a student, about 0.4 MB each.
MOMENTS = 4
#: Of a student's maps that show a probability the brightest is 1; others' is told by all moments.
HEAT = "heatmap"
#: What the exchanged fields are called.
FIELD_NAMES: dict[tuple[SurroundField, ...], str] = {
    **{(one,): one for one in SURROUND_FIELDS}, PLACE: "distance and direction", SURROUND_FIELDS: "all of them",
}  # fmt: skip
#: Differences of means smaller than this have no tone.
DIGITS = 2


@dataclass(frozen=True)
class Seen:
    """What one part sees of the ground."""

    part: str  # baseline, student or teacher
    stage: str
    name: str  # of the tap, or HEAT
    ground: GroundMap


@dataclass(frozen=True)
class MomentMaps:
    """The maps of one sample."""

    token: str
    reason: str  # why it is shown
    panels: tuple[Seen, ...]
    outlines: Float[np.ndarray, "n 4 2"]  # of the objects that count, in the vehicle's frame; m


@dataclass(frozen=True, kw_only=True)
class SurroundSection(Section):
    """One student against the baseline, on surround views."""

    parts: dict[str, Stage]
    errors: dict[str, dict[str, SurroundErrors]]  # by class, with "all", and part
    exchange: Exchange[SurroundField, str]
    seen: tuple[MomentMaps, ...] = field(default=())


def write_surround_page(
    sections: Sequence[Section], baseline: Stage, dataset: NuScenesDataset, out: Path, lacks: Sequence[str] = ()
) -> Path:
    """Write the page and return its path; what cannot be drawn is said on it.

    Raises:
        UserError: ``out`` cannot be written, or holds what this library did not write.
    """
    kind, stages = SurroundKind(), [baseline, *(one.student for one in sections)]
    cautions = [*caution(stages, kind.measures(stages)), *kind.cautions(stages)]
    more = {"Classes": ", ".join(map(class_words, sections[0].analysis.settings.classes))}
    head = page_head(sections, baseline, lacks, cautions, more)
    contents = [{**told(one), **_content(one, dataset)} for one in sections if isinstance(one, SurroundSection)]
    page = rendered(
        "surround_diagnosis.html", head, sections, baseline, contents,
        official=OFFICIAL, reach=f"{REACH:g}", ramp=",".join(GROUND_RAMP), outline=LOOKS[TRUE].colour,
        ring_step=f"{RING_STEP:g}", look_ahead=f"{LOOK_AHEAD:g}",
    )  # fmt: skip
    write_output_text(out, page)
    return out


def _content(one: SurroundSection, dataset: NuScenesDataset) -> dict[str, Any]:
    """What the template asks for of one student beside what every template asks for."""
    figures, problem = [], ""
    seen, dark = _maps(one, dataset)
    try:
        figures = _figures(one, dataset)
    except (UserError, OSError) as error:
        problem = f"The pictures are left out: {str(error).rstrip('.')}."
    drawn = pictured(one.parts)
    return {
        "found_errors": _error_table("all classes", one, one.errors["all"]),
        "class_errors": [
            (class_words(name), _error_table(class_words(name), one, one.errors[name]))
            for name in one.analysis.settings.classes if any(e.compared for e in one.errors[name].values())
        ],
        "exchange_leads": exchange_sentences(one),
        "exchanged": _exchange_table(one.exchange),
        "exchanged_classes": _class_exchange_table(one),
        "moments": figures,
        "no_pictures": problem,
        "drawn": [_named(one, part) for part in drawn] if len(drawn) < len(one.parts) else [],
        "colours": {part: LOOKS[part].colour for part in (TRUE, *one.parts)},
        "seen": seen,
        "dark": dark,
    }  # fmt: skip


def _named(one: Section, part: str) -> str:
    return stage_of(one, part)


def _number(value: float, digits: int = DIGITS) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else DASH


def _signed(value: float, digits: int = DIGITS) -> str:
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}".replace("-", MINUS) if rounded else f"{0:.{digits}f}"


def _toned(text: str, gain: float, **more: Any) -> Cell:
    """A cell with a gain below it, more being better."""
    gain = round(gain, DIGITS)
    return Cell(text, small=_signed(gain), tone="soft" if gain == 0 else "up" if gain > 0 else "down", **more)


# --------------------------------------------------------------------------------------------------------------- errors


def _error_table(label: str, one: SurroundSection, errors: dict[str, SurroundErrors]) -> Table:
    """Mean errors of the parts; below those of others than the baseline their differences to its."""
    head = [Cell("objects"), *(Cell(f"{name} ({unit})") for name, unit in SURROUND_UNITS.items()), Cell("flipped (%)")]
    rows = []
    for part, found in errors.items():
        cells = [Cell(str(found.compared))]
        values = {name: spread.mean for name, spread in found.errors.items()} | {"flipped": 100 * found.flipped}
        base = {name: spread.mean for name, spread in errors["baseline"].errors.items()}
        base["flipped"] = 100 * errors["baseline"].flipped
        for name, value in values.items():
            less = value - base[name]
            if part == "baseline" or not math.isfinite(less):
                cells.append(Cell(_number(value)))
            else:
                cells.append(_lower_is_better(_number(value), less))
        rows.append(Row(_named(one, part), cells, colour=LOOKS[part].colour))
    return Table(f"Mean errors of found objects, {label}", [head], rows, "mean error", "fits")


def _lower_is_better(text: str, change: float) -> Cell:
    change = round(change, DIGITS)
    return Cell(text, small=_signed(change), tone="soft" if change == 0 else "up" if change < 0 else "down")


# ------------------------------------------------------------------------------------------------------------- exchange


def exchange_sentences(one: SurroundSection) -> list[str]:
    """What the student's lead in NDS and mAP comes from, as far as exchanged fields tell."""
    exchange, sentences = one.exchange, []
    for score in SCORES:
        gains = {name: exchange.both_ways(score, name) for name in SURROUND_FIELDS}
        largest = max(gains, key=lambda name: abs(gains[name]))
        before, after = exchange.forward.start[score], exchange.forward.end[score]
        sentences.append(
            f"{score}: {one.student.name} {after:.1f}, baseline {before:.1f} ({_signed(after - before, 1)} points). Of"
            f" the single fields {largest} moves it most, {_signed(gains[largest], 1)} points; boxes that only one of"
            f" the two has, {_signed(_unmatched(exchange, score), 1)}."
        )
    return sentences


def _unmatched(exchange: Exchange[SurroundField, str], column: str) -> float:
    """What boxes give that only one of the two has, mean of both ways as the single fields are told."""
    return (exchange.forward.unmatched(column) - exchange.backward.unmatched(column)) / 2


def _exchange_table(exchange: Exchange[SurroundField, str]) -> Table:
    """Points of NDS and mAP by field."""
    columns = ("baseline takes student's", "student takes baseline's", "mean of both ways", "baseline takes the truth")
    head = [
        [Cell(score, span=len(columns)) for score in SCORES],
        [Cell(name, "opens" * (n == 0)) for _ in SCORES for n, name in enumerate(columns)],
    ]
    swaps = (exchange.forward, exchange.backward, exchange.oracle)

    def row(name: str, told: Callable[[Swaps[SurroundField, str], str], float]) -> Row:
        cells = []
        for score in SCORES:
            ahead, back, truth = (told(one, score) for one in swaps)
            values = (ahead, back, (ahead - back) / 2, truth)
            cells += [Cell(_signed(value), "opens" * (n == 0)) for n, value in enumerate(values)]
        return Row(name, cells)

    rows = [row(FIELD_NAMES[fields], lambda one, score, f=fields: one.gain(score, *f)) for fields in REPLACED]
    rows.append(row("boxes that only one has", lambda one, score: one.unmatched(score)))
    rows.append(row("the whole difference", lambda one, score: one.total(score)))
    return Table("Points of NDS and mAP by exchanged field", head, rows, "exchanged", "fits")


def _class_exchange_table(one: SurroundSection) -> Table:
    """Points of each class's AP by the fields that AP knows, means of both ways."""
    exchange = one.exchange
    chosen: tuple[tuple[SurroundField, ...], ...] = (("distance",), ("direction",), PLACE, ("score",), SURROUND_FIELDS)
    heads = ("AP, baseline", "AP, student", *(FIELD_NAMES[fields] for fields in chosen), "boxes that only one has")
    rows = []
    for name in one.analysis.settings.classes:
        start, end = exchange.forward.start[name], exchange.forward.end[name]
        gains = [*(exchange.both_ways(name, *fields) for fields in chosen), _unmatched(exchange, name)]
        rows.append(Row(class_words(name), [Cell(_number(start)), _toned(_number(end), end - start),
                                           *(Cell(_signed(gain)) for gain in gains)]))  # fmt: skip
    return Table(
        "Points of AP of each class by exchanged field", [[Cell(text) for text in heads]], rows, "class", "fits"
    )


# -------------------------------------------------------------------------------------------------------------- moments


@dataclass(frozen=True)
class ToldMoment:
    """A moment as the page shows it, and what it is shown for."""

    figure: MomentFigure
    caption: str


def in_ego(boxes: DetectionBoxes, dataset: NuScenesDataset, token: str) -> Boxes3D:
    """Global boxes of one sample in its key ego frame."""
    pose = dataset.ego_to_global(dataset.frame_ids.index(token))
    return carry_boxes(global_boxes(boxes), torch.linalg.inv(pose), "ego")


def _figures(one: SurroundSection, dataset: NuScenesDataset) -> list[ToldMoment]:
    """The moments of the largest gains and the largest harm in turn, then those of most objects.

    Raises:
        UserError, OSError: they cannot be read.
    """
    analysis, objects = one.analysis, one.analysis.objects
    shown = {
        part: Shown(stage, part, stage.name, LOOKS[part], "", None) for part, stage in one.parts.items()
    }  # fmt: skip
    figures = []
    for frame, reason, index in telling_objects(analysis, MOMENTS):
        token = objects.frames[frame]
        here = objects.frame == frame
        sets = {TRUE: in_ego(objects.boxes[here], dataset, token)}
        for part in one.parts:
            found = analysis.parts[part]
            assert isinstance(found, SurroundFound)
            sets[part] = in_ego(found.at(here & found.found), dataset, token)
        counts = {name: class_counts(boxes, objects.boxes.classes) for name, boxes in sets.items()}
        sample = dataset.get(dataset.frame_ids.index(token))
        title = moment_title(dataset, token)
        figure = pictured_moment(Moment(title, reason, sample, sets, counts, dataset.config.ego_frame), shown)
        figures.append(ToldMoment(figure, "" if index is None else _object_caption(one, dataset, index)))
    return figures


def _object_caption(one: SurroundSection, dataset: NuScenesDataset, index: int) -> str:
    """Which object a moment is shown for, where it is, and how far off it was placed."""
    analysis = one.analysis
    objects: SurroundLabelled = analysis.objects
    chosen = objects.boxes[np.array([index])]
    there = in_ego(chosen, dataset, objects.frames[int(objects.frame[index])])
    x, y = looking_ahead(there, dataset.config.ego_frame).centre[0, :2].tolist()
    change = analysis.parts["baseline"].depth_error[index] - analysis.parts["student"].depth_error[index]
    said = [_remark(analysis.parts[part], part, objects, index) for part in one.parts]
    return (
        f"The {class_words(str(objects.name[index]))} {abs(x):.1f} m {'ahead' if x >= 0 else 'behind'} and"
        f" {abs(y):.1f} m to the {'left' if y >= 0 else 'right'}: depth error"
        f" {'smaller' if change > 0 else 'larger'} by {abs(change):.2f} m"
        f" ({100 * abs(analysis.gain[index]):.1f} % of depth); {', '.join(said)}"
    )


def _remark(found: Any, part: str, objects: SurroundLabelled, index: int) -> str:
    if not found.found[index]:
        return f"{part} missed it"
    away = float(found.at(np.array([index])).ego_distance[0] - objects.distance[index])
    return f"{part} {abs(away):.2f} m too {'far' if away > 0 else 'near'}"


# ----------------------------------------------------------------------------------------------------------------- maps


@dataclass(frozen=True)
class SeenFigure:
    """The maps of one moment as the page shows them, and what they are shown for."""

    title: str
    reason: str
    rows: list[list[tuple[str, str, Photo]]]  # probabilities of all parts, then their maps: whose, what, picture


def _maps(one: SurroundSection, dataset: NuScenesDataset) -> tuple[list[SeenFigure], list[str]]:
    """Each part's maps in the moments that tell most, and a sentence for each that is dark everywhere.

    A map's scale is that of all moments.
    """
    cells: dict[tuple[str, str], list[np.ndarray]] = {}
    for seen in (panel for moment in one.seen for panel in moment.panels):
        cells.setdefault((seen.part, seen.name), []).append(seen.ground.values.ravel())
    ends = {
        (part, name): 1.0 if name == HEAT else end_of_scale(np.concatenate(values))[0]
        for (part, name), values in cells.items()
    }
    dark = [
        f"{_named(one, part)}: the mean of its map {name} is nowhere above 0, so that it is not drawn."
        for (part, name), end in ends.items() if end <= 0
    ]  # fmt: skip
    figures = []
    for moment in one.seen:
        title = moment_title(dataset, moment.token)
        rows: list[list[tuple[str, str, Photo]]] = [[], []]
        for seen in moment.panels:
            end = ends[seen.part, seen.name]
            if end > 0:
                what = "probability of a centre" if seen.name == HEAT else f"map {seen.name}, brightest {end:.2g}"
                picture = map_picture(seen.ground.values, seen.ground.geometry, moment.outlines, end)
                shown = photo(picture.quantize(MAP_COLOURS), f"{title} from above: {seen.part}, {what}")
                rows[seen.name != HEAT].append((_named(one, seen.part), what, shown))
        figures.append(SeenFigure(title, moment.reason, [row for row in rows if row]))
    return figures, dark
