"""Where did the transfer from a teacher help the students of a run, and where did it hurt?"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from distill3d.data.nuscenes.dataset import NuScenesDataset
from distill3d.devices import find_device
from distill3d.diagnosed import KittiWork, SurroundWork, is_ready
from distill3d.errors import UserError
from distill3d.evaluate.surround_fields import SurroundErrors
from distill3d.evaluate.surround_transfer import SurroundLabelled
from distill3d.evaluate.transfer import OUTCOMES, Analysis, Bin, Estimate, Found, JudgeSettings, LabelledObjects
from distill3d.files import refuse_foreign, write_output_text
from distill3d.settings import to_plain
from distill3d.view.bev_maps import FrameMaps
from distill3d.view.diagnosis import Section, contrast_sentences, net, things, untaught_sentences, write_page
from distill3d.view.runs import PREPARATION, TAKEN, Stage, read_runs, with_root
from distill3d.view.surround_diagnosis import SurroundSection, exchange_sentences, write_surround_page

if TYPE_CHECKING:
    from rich.table import Table

PAGE = "diagnosis.html"


@dataclass(frozen=True)
class Diagnosis:
    """What was found and written."""

    baseline: Stage
    sections: tuple[Section, ...]
    lacks: tuple[str, ...]  # what could not be told, a sentence each
    files: tuple[Path, Path, Path]  # page, JSON, CSV

    def table(self) -> Table:
        """Counts and net shares of each student for the terminal."""
        from rich.table import Table

        total = self.sections[0].analysis.total
        what = things(self.sections[0].analysis.settings)
        table = Table("", title=f"{total.objects} {what} in {total.frames} frames, against {self.baseline.name}")
        for one in self.sections:
            table.add_column(one.student.name, justify="right")
        totals = [one.analysis.total for one in self.sections]
        for name in OUTCOMES:
            table.add_row(name, *(str(one.counts[name]) for one in totals))
        table.add_section()
        table.add_row("net depth transfer", *(_short(one.depth) for one in totals))
        table.add_row("net finding", *(_short(one.finding) for one in totals))
        return table

    def text(self) -> str:
        """Sentences below the table."""
        lines = dict.fromkeys(sentence for one in self.sections for sentence in untaught_sentences(one))
        every = dict.fromkeys((*self.lacks, *(sentence for one in self.sections for sentence in one.lacks)))
        told = [f"{one.student.name}: {sentence}" for one in self.sections for sentence in contrast_sentences(one)]
        worth = [
            sentence
            for one in self.sections
            if isinstance(one, SurroundSection)
            for sentence in exchange_sentences(one)
        ]
        return "\n".join([*lines, *told, *worth, *every])


def _short(estimate: Estimate | None) -> str:
    return f"{net(estimate)}{'' if estimate is None or estimate.beyond_noise else ' (noise)'}"


def diagnose(
    run: Path, data_root: Path | None = None, baseline: str | None = None, student: str | None = None,
    out: Path | None = None, margin: float = JudgeSettings.margin, device: str = "auto",
) -> Diagnosis:  # fmt: skip
    """Compares the students of a run with its baseline, object by object, and writes the page, a JSON file and a CSV.

    Args:
        run: the folder of a recipe's stages.
        data_root: the data set's folder, instead of the one in recipe.yaml.
        baseline, student: names of stages; by default the first of role baseline, and all of role student.  The
            baseline may be the folder of another run, or of a stage of one.
        out: the page; the other two files lie beside it. By default ``<run>/diagnosis.html``.
        margin: by how much depth errors must differ to count, relative to the object's depth.
        device: where the teacher is asked for its uncertainty, and student and teachers for their maps of the ground.

    Raises:
        UserError: no finished baseline or student, labels or result files that cannot be read, or a bad option.
    """
    page = run / PAGE if out is None else out
    if page.suffix != ".html":
        raise UserError(f"--out is {str(page)!r}, expected a name that ends in .html")
    if not 0 < margin < 1:
        raise UserError(f"--margin is {margin:g}, expected a share of the depth between 0 and 1, such as 0.02")
    where = find_device(device)
    files = (page, page.with_suffix(".json"), page.with_suffix(".csv"))
    for file in files:
        refuse_foreign(file)
    stages = _read(run, data_root)
    reference = _reference(stages, run, baseline, data_root)
    students = _choose(stages, run, student, "student", "--student")
    if reference in students:
        raise UserError(f"stage {reference.name!r} cannot be compared with itself: --baseline and --student are equal")
    lacks = [
        f"{stage.name} {f'was {TAKEN}' if stage.unjudged else 'is not finished'}: it is left out."
        for stage in stages
        if student is None and stage.role == "student" and stage not in students
    ]

    sections: Sequence[Section]
    if reference.layout == "nuscenes":
        work = SurroundWork(reference, students[0], margin)
        pictures = work.dataset
    else:
        work = KittiWork(reference, students[0], margin)
        pictures = work.pictures()
        lacks += [work.no_data] if pictures is None else []
    sections = [work.section(one, stages, where) for one in students]
    lacks += [problem for stage in (reference, *students) for problem in stage.problems]
    missing = (*lacks, *(sentence for one in sections for sentence in one.lacks))
    if isinstance(pictures, NuScenesDataset):
        write_surround_page(sections, reference, pictures, page, missing)
    else:
        write_page(sections, reference, pictures, page, missing)
    write_output_text(files[1], json.dumps(plain(sections, reference, missing), indent=1) + "\n")
    write_output_text(files[2], object_table(sections, reference))
    return Diagnosis(reference, tuple(sections), tuple(lacks), files)


# ----------------------------------------------------------------------------------------------------------- the stages


def _read(run: Path, data_root: Path | None) -> list[Stage]:
    return with_root(read_runs([run]), data_root)


def _reference(stages: Sequence[Stage], run: Path, name: str | None, data_root: Path | None) -> Stage:
    """The baseline: a stage of the run or, where it has none of this name, one of another run whose folder this is.

    Raises:
        UserError: there is none.
    """
    if name is None or any(stage.name == name for stage in stages) or not Path(name).is_dir():
        return _choose(stages, run, name, "baseline", "--baseline")[0]
    others = _read(Path(name), data_root)
    if others[0].layout != stages[0].layout:
        kitti, surround = sorted((stages[0], others[0]), key=lambda stage: stage.layout)
        raise UserError(
            f"run {kitti.run} is in KITTI's layout and run {surround.run} of surround views: their objects cannot be"
            " compared"
        )
    return _choose(others, Path(name), others[0].name if len(others) == 1 else None, "baseline", "--baseline")[0]


def _choose(stages: Sequence[Stage], run: Path, name: str | None, role: str, option: str) -> list[Stage]:
    """The finished stages of a name, or of a role.

    Raises:
        UserError: there is none.
    """
    chosen = [stage for stage in stages if (stage.name == name if name is not None else stage.role == role)]
    known = ", ".join(f"{stage.name} ({stage.role})" for stage in stages) or "none"
    if not chosen and name is not None:
        raise UserError(f"{option} is {name!r}, but {run} has no such stage: it has {known}")
    if not chosen:
        hint = "; name the folder of another run's with --baseline" if role == "baseline" else ""
        raise UserError(
            f"{run} has no stage of role {role}, expected a run with a baseline and a student: it has {known}{hint}"
        )
    if chosen[0].role == PREPARATION:
        raise UserError(
            f"{option} is {chosen[0].name!r}, a stage of role {PREPARATION}: it holds weights for others, no detector"
        )
    finished = [stage for stage in chosen if is_ready(stage)]
    if not finished:
        reasons = "".join(f"; {problem}" for problem in chosen[0].problems)
        lacks = f"was {TAKEN}" if chosen[0].unjudged else "is not finished: it has no evaluation or no result files"
        raise UserError(f"the {role} {chosen[0].name} of {run} {lacks}{reasons}")
    return finished


# ------------------------------------------------------------------------------------------------------------ the files


def plain(sections: Sequence[Section], baseline: Stage, lacks: Sequence[str]) -> dict[str, Any]:
    """All settings, counts and binned numbers, ready for JSON; numbers that do not exist are None."""
    first = sections[0].analysis
    return {
        "run": sections[0].student.run,
        "baseline": baseline.name,
        "data": to_plain({key: baseline.dataset.get(key) for key in ("root", "identity", "eval_split")}),
        "frames": len(first.objects.frames),
        "settings": to_plain(first.settings),
        "missing": list(lacks),
        "students": {
            one.student.name: {
                "teacher": None if one.teacher is None else one.teacher.name,
                **_plain_analysis(one.analysis),
                "untaught": None
                if one.untaught is None
                else {"stage": one.untaught[0].name, **_plain_analysis(one.untaught[1])},
                "bev_maps": None if one.maps is None else [_plain_maps(frame) for frame in one.maps.frames],
                **(_plain_fields(one) if isinstance(one, SurroundSection) else {}),
            }
            for one in sections
        },
    }


def _plain_analysis(analysis: Analysis[Any]) -> dict[str, Any]:
    groups = {
        grouping.key: {
            "title": grouping.title,
            "in_no_bin": int((grouping.index < 0).sum()),
            "bins": [_plain_bin(one) for one in bins],
        }
        for grouping, bins in analysis.groups
    }
    contrasts = {
        c.key: {
            c.first: {"objects": c.counts[0], "depth_transfer": _plain_estimate(c.values[0])},
            c.second: {"objects": c.counts[1], "depth_transfer": _plain_estimate(c.values[1])},
            "difference": _plain_estimate(c.difference),
        }
        for c in analysis.contrasts
    }
    margins = [
        {"margin": m.margin, "positive": m.positive, "negative": m.negative, "depth_transfer": _plain_estimate(m.depth)}
        for m in analysis.margins
    ]
    return {"total": _plain_bin(analysis.total), "groups": groups, "contrasts": contrasts, "margins": margins}


def _plain_fields(one: SurroundSection) -> dict[str, Any]:
    """Errors of the fields of found objects by class and part, and what exchanged fields do to the metric."""
    return {
        "errors": {
            kind: {part: _plain_errors(errors) for part, errors in of_part.items()}
            for kind, of_part in one.errors.items()
        },
        "exchanged": {
            name: {
                "start": swaps.start,
                "with": {"+".join(fields): scores for fields, scores in swaps.replaced.items()},
                "end": swaps.end,
                "boxes": swaps.boxes,
                "matched": swaps.matched,
            }
            for name, swaps in (
                ("baseline_takes_student", one.exchange.forward),
                ("student_takes_baseline", one.exchange.backward),
                ("baseline_takes_truth", one.exchange.oracle),
            )
        },
    }


def _plain_errors(one: SurroundErrors) -> dict[str, Any]:
    return {
        "objects": one.compared,
        "flipped": _finite(one.flipped),
        **{name: {"mean": _finite(e.mean), "median": _finite(e.median)} for name, e in one.errors.items()},
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _plain_maps(one: FrameMaps) -> dict[str, Any]:
    distances = [{"of": a, "from": b, "relative_l2": _finite(value)} for (a, b), value in one.distances.items()]
    return {"frame": one.frame, "shown_for": one.reason, "distances": distances}


def _plain_bin(one: Bin) -> dict[str, Any]:
    def finite(values: dict[str, float]) -> dict[str, float | None]:
        return {name: _finite(value) for name, value in values.items()}

    return {
        "label": one.label,
        "objects": one.objects,
        "frames": one.frames,
        "found_by_both": one.both,
        "frames_found_by_both": one.both_frames,
        "counts": one.counts,
        "shares": {name: count / one.objects if one.objects else None for name, count in one.counts.items()},
        "depth_transfer": _plain_estimate(one.depth),
        "finding_transfer": _plain_estimate(one.finding),
        "found_by_all": one.common,
        "mean_depth_error": finite(one.depth_error),
        "mean_centre_error": finite(one.centre_error),
        "mean_iou_3d": finite(one.iou_3d),
        "found": one.found,
    }


def _plain_estimate(estimate: Estimate | None) -> dict[str, float | bool] | None:
    return None if estimate is None else {**to_plain(estimate), "beyond_noise": estimate.beyond_noise}


def object_table(sections: Sequence[Section], baseline: Stage) -> str:
    """CSV with one row per object: what every detector says of it, and what became of it; m, m/s and px.

    Numbers of an object that a detector missed are empty.
    """
    first = sections[0].analysis
    objects, around = first.objects, isinstance(first.objects, SurroundLabelled)
    of_part = _surround_columns if around else _columns
    columns: dict[str, list[str]] = {
        **(_surround_labels(objects) if around else _labels(objects)),
        **of_part(baseline.name, first.parts["baseline"]),
    }
    for one in sections:
        if one.teacher is not None:
            teacher = one.analysis.parts.get("teacher")
            columns |= {} if teacher is None else of_part(one.teacher.name, teacher)
            columns[f"{one.teacher.name}_log_scale"] = _texts(one.analysis.log_scale)
    for one in sections:
        columns |= of_part(one.student.name, one.analysis.parts["student"])
        columns[f"{one.student.name}_outcome"] = [OUTCOMES[code] for code in one.analysis.outcome]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _labels(objects: LabelledObjects) -> dict[str, list[str]]:
    return {
        "frame": [objects.frames[frame] for frame in objects.frame],
        "line": [str(line + 1) for line in objects.line],
        "class": objects.name.tolist(),
        "distance": _texts(objects.distance),
        "depth": _texts(objects.depth),
        "occlusion": [str(level) for level in objects.occlusion],
        "truncation": _texts(objects.truncation),
        "box_height": _texts(objects.box2d[:, 3] - objects.box2d[:, 1]),
    }


def _surround_labels(objects: SurroundLabelled) -> dict[str, list[str]]:
    x, y, z = objects.boxes.translation.T
    return {
        "sample": [objects.frames[frame] for frame in objects.frame],
        "class": objects.name.tolist(),
        "x": _texts(x),
        "y": _texts(y),
        "z": _texts(z),
        "distance": _texts(objects.distance),
        "points": [str(points) for points in objects.boxes.num_pts],
        "speed": _texts(objects.speed),
    }


def _columns(name: str, part: Found) -> dict[str, list[str]]:
    return {
        f"{name}_found": [str(int(found)) for found in part.found],
        f"{name}_score": _texts(part.score),
        f"{name}_z": _texts(part.box[:, 5]),
        f"{name}_depth_error": _texts(part.depth_error),
        f"{name}_centre_error": _texts(part.centre_error),
        f"{name}_iou_3d": _texts(part.iou_3d),
    }


def _surround_columns(name: str, part: Found) -> dict[str, list[str]]:
    """The place of a box is told as labels tell theirs, in the world."""
    columns = _columns(name, part)
    height, x, bottom, z = part.box[:, [0, 3, 4, 5]].T
    return columns | {f"{name}_x": _texts(x), f"{name}_y": _texts(z), f"{name}_z": _texts(height / 2 - bottom)}


def _texts(values: Float[np.ndarray, " g"]) -> list[str]:
    return [f"{value:.4f}" if np.isfinite(value) else "" for value in values]
