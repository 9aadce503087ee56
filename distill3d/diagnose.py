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
import torch
from jaxtyping import Float

from distill3d.answers import depth_log_scales, ground_maps
from distill3d.data.kitti.dataset import KittiDataset
from distill3d.devices import find_device
from distill3d.errors import UserError
from distill3d.evaluate.kitti import Annotations, result_frames
from distill3d.evaluate.transfer import (
    NEGATIVE,
    OUTCOMES,
    POSITIVE,
    Analysis,
    Bin,
    Estimate,
    Found,
    LabelledObjects,
    TransferSettings,
    analyse,
    find,
    labelled_objects,
    largest,
)
from distill3d.files import refuse_foreign, write_output_text
from distill3d.settings import to_plain
from distill3d.view.bev_maps import FrameMaps
from distill3d.view.diagnosis import Section, contrast_sentences, net, things, untaught_sentences, write_page
from distill3d.view.gallery import label_folder, open_dataset, read_frame
from distill3d.view.runs import PREPARATION, TAKEN, Stage, everything_behind, read_runs, refuse_surround, with_root

if TYPE_CHECKING:
    from rich.table import Table

PAGE = "diagnosis.html"
#: Frames of which maps of the ground are shown.
MAPPED_FRAMES = 4
RANKS = ("", "second ", "third ", "fourth ")
#: Roles of detectors that see no more than the baseline, for comparison with the taught ones.
UNTAUGHT_ROLES = ("baseline", "control")


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
        return "\n".join([*lines, *told, *every])


def _short(estimate: Estimate | None) -> str:
    return f"{net(estimate)}{'' if estimate is None or estimate.beyond_noise else ' (noise)'}"


def diagnose(
    run: Path, data_root: Path | None = None, baseline: str | None = None, student: str | None = None,
    out: Path | None = None, margin: float = TransferSettings.margin, device: str = "auto",
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

    work = _Work(reference, students[0], margin)
    sections = [work.section(one, stages, where) for one in students]
    dataset = work.pictures()
    if dataset is None:
        lacks.append(work.no_data)
    lacks += [problem for stage in (reference, *students) for problem in stage.problems]
    missing = (*lacks, *(sentence for one in sections for sentence in one.lacks))
    write_page(sections, reference, dataset, page, missing)
    write_output_text(files[1], json.dumps(plain(sections, reference, missing), indent=1) + "\n")
    write_output_text(files[2], object_table(sections, reference))
    return Diagnosis(reference, tuple(sections), tuple(lacks), files)


# ----------------------------------------------------------------------------------------------------------- the stages


def _read(run: Path, data_root: Path | None) -> list[Stage]:
    stages = read_runs([run])
    refuse_surround(stages, "distill3d diagnose")
    return with_root(stages, data_root)


def _reference(stages: Sequence[Stage], run: Path, name: str | None, data_root: Path | None) -> Stage:
    """The baseline: a stage of the run or, where it has none of this name, one of another run whose folder this is.

    Raises:
        UserError: there is none.
    """
    if name is None or any(stage.name == name for stage in stages) or not Path(name).is_dir():
        return _choose(stages, run, name, "baseline", "--baseline")[0]
    others = _read(Path(name), data_root)
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
    finished = [stage for stage in chosen if _is_ready(stage)]
    if not finished:
        reasons = "".join(f"; {problem}" for problem in chosen[0].problems)
        lacks = f"was {TAKEN}" if chosen[0].unjudged else "is not finished: it has no evaluation or no result files"
        raise UserError(f"the {role} {chosen[0].name} of {run} {lacks}{reasons}")
    return finished


def _is_ready(stage: Stage) -> bool:
    return stage.finished and any(stage.predictions.glob("*.txt"))


def _teacher(student: Stage, stages: Sequence[Stage]) -> tuple[Stage | None, list[str]]:
    """The first teacher of a student, or the run's first teacher where nothing names one; and what is to be said."""
    names, said = student.teachers, []
    if len(names) > 1:
        said = [f"{student.name} was taught by {' and '.join(names)}: what is told of a teacher is told of {names[0]}."]
    found = [s for s in stages if (s.name == names[0] if names else s.role == "teacher")]
    if not found:
        return None, [f"{student.name} has no teacher in this run: nothing is told about one."]
    return found[0], said


def _behind(stage: Stage, stages: Sequence[Stage]) -> set[str]:
    """Names of the stages of a run whose answers or weights went into a stage, directly or through others."""
    behind = {one.name: {*one.teachers, *one.starts_from} for one in stages}
    return everything_behind({*stage.teachers, *stage.starts_from}, lambda name: behind.get(name, ()))


def _untaught(student: Stage, baseline: Stage, teacher: Stage | None, stages: Sequence[Stage]) -> Stage | None:
    """Another detector with the baseline's input that the student's teacher had no part in; best one without any."""
    known = [
        stage
        for stage in stages
        if stage not in (student, baseline, teacher)
        and stage.role in UNTAUGHT_ROLES
        and _is_ready(stage)
        and _input(stage) == _input(baseline)
        and (teacher is None or teacher.name not in _behind(stage, stages))
    ]
    return min(known, key=lambda stage: len(stage.teachers), default=None)


def _input(stage: Stage) -> str | None:
    return stage.card.get("input") or stage.config.get("detector", {}).get("input")


# ------------------------------------------------------------------------------------------------------------- the work


class _Work:
    """Labels and result files of one run, read once."""

    def __init__(self, baseline: Stage, student: Stage, margin: float) -> None:
        self.baseline = baseline
        frames = result_frames(baseline.predictions, label_folder(baseline))
        rules = baseline.rules
        detections = Annotations.from_folder(baseline.predictions, scored=True, frames=frames).named(rules)
        self.labels = Annotations.from_folder(label_folder(baseline), scored=False, frames=frames).named(rules)
        self.settings = TransferSettings(
            classes=_classes(student, detections), margin=margin, min_height_scale=baseline.min_height_scale
        )
        self.objects: LabelledObjects = labelled_objects(self.labels, self.settings)
        self.no_data = ""
        self._found: dict[Path, Found] = {}
        self._scales: dict[str, tuple[Float[np.ndarray, " g"] | None, str]] = {}

    def found(self, stage: Stage) -> Found:
        """What a stage says of each object.

        Raises:
            UserError: its result files are of other frames than the baseline's, or malformed.
        """
        if stage.folder not in self._found:
            roots = [one.dataset.get("root") for one in (stage, self.baseline)]
            if roots[0] != roots[1]:
                raise UserError(
                    f"{stage.folder} was evaluated on {roots[0]}, {self.baseline.folder} on {roots[1]}: if they are one"
                    " data set, give its folder with --data-root"
                )
            frames = result_frames(stage.predictions, label_folder(self.baseline))
            detections = Annotations.from_folder(stage.predictions, scored=True, frames=frames).named(stage.rules)
            if detections.frames != self.labels.frames:
                raise UserError(
                    f"{stage.predictions} holds results of {len(detections.frames)} frames, and not of the same as the"
                    f" {len(self.labels.frames)} of {self.baseline.predictions}: evaluate both on one split"
                )
            self._found[stage.folder] = find(self.labels, detections, self.objects, self.settings.least_overlap)
        return self._found[stage.folder]

    def section(self, student: Stage, stages: Sequence[Stage], device: torch.device) -> Section:
        """The analysis of one student.

        Raises:
            UserError: as ``found``.
        """
        teacher, lacks = _teacher(student, stages)
        of_teacher, scale = None, None
        if teacher is not None:
            if _is_ready(teacher):
                of_teacher = self.found(teacher)
            else:
                lacks.append(f"{teacher.name} has no result files: nothing is told about its errors.")
            scale, problem = self.log_scale(teacher, device)
            lacks += [problem] if problem else []
        baseline = self.found(self.baseline)
        other = _untaught(student, self.baseline, teacher, stages)
        untaught = None
        if other is not None:
            analysis = analyse(self.objects, baseline, self.found(other), of_teacher, scale, self.settings)
            untaught = (other, analysis)
        analysis = analyse(self.objects, baseline, self.found(student), of_teacher, scale, self.settings)
        maps = None
        try:
            maps, left_out = ground_maps(student, stages, mapped_frames(analysis), self.settings.classes, device)
            lacks += left_out
        except (UserError, OSError) as error:
            lacks.append(f"There are no maps of the ground of {student.name}: {error}.")
        return Section(student, analysis, teacher, untaught, maps, tuple(lacks))

    def pictures(self) -> KittiDataset | None:
        """The split with images and points; None, with the reason in ``no_data``, where it cannot be read."""
        try:
            dataset = open_dataset(self.baseline)
            read_frame(dataset, dataset.frame_ids[0])
        except (UserError, OSError) as error:
            self.no_data = f"There are no pictures: {error}."
            return None
        return dataset

    def log_scale(self, teacher: Stage, device: torch.device) -> tuple[Float[np.ndarray, " g"] | None, str]:
        """The teacher's log scale of the depth of each object, NaN where it has none; or None and the reason."""
        if teacher.name not in self._scales:
            try:
                self._scales[teacher.name] = (self._ask(teacher, device), "")
            except (UserError, NotImplementedError) as error:
                self._scales[teacher.name] = (None, f"Nothing is told about the teacher's uncertainty: {error}.")
        return self._scales[teacher.name]

    def _ask(self, teacher: Stage, device: torch.device) -> Float[np.ndarray, " g"]:
        by_frame = depth_log_scales(teacher, self.objects.frames, device)
        frames = [self.objects.frames[frame] for frame in self.objects.frame]
        missing = next((frame for frame in frames if frame not in by_frame), None)
        if missing is not None:
            raise UserError(f"frame {missing} is not in the split {teacher.dataset.get('eval_split')!r}")
        values = [by_frame[frame] for frame in frames]
        return np.array(
            [
                slots[line] if line < len(slots) else np.nan
                for slots, line in zip(values, self.objects.line, strict=True)
            ]
        )


def mapped_frames(analysis: Analysis) -> dict[str, str]:
    """Frames of which maps are shown, and why: largest gain and largest harm in turn, then those of most objects."""
    objects = analysis.objects
    gains, harms = (largest(analysis, outcome, MAPPED_FRAMES) for outcome in (POSITIVE, NEGATIVE))
    counts = np.bincount(objects.frame, minlength=len(objects.frames))
    in_turn = [
        (int(objects.frame[index]), f"{RANKS[n]}largest {kind}")
        for n in range(MAPPED_FRAMES)
        for kind, indices in (("gain", gains), ("harm", harms))
        for index in indices[n : n + 1]
    ]
    fullest = [(index, f"{counts[index]} objects") for index in np.argsort(-counts, kind="stable").tolist()]
    chosen: dict[int, str] = {}
    for frame, reason in (*in_turn, *fullest):
        if len(chosen) < MAPPED_FRAMES:
            chosen.setdefault(frame, reason)
    return {objects.frames[frame]: reason for frame, reason in chosen.items()}


def _classes(student: Stage, detections: Annotations) -> tuple[str, ...]:
    """The evaluated classes that the student was trained on, or else those in the baseline's result files."""
    names = student.trained_classes or set(detections.name.tolist())
    return tuple(name for name in student.rules.classes if name in names) or (student.leading,)


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
            }
            for one in sections
        },
    }


def _plain_analysis(analysis: Analysis) -> dict[str, Any]:
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


def _plain_maps(one: FrameMaps) -> dict[str, Any]:
    distances = [
        {"of": a, "from": b, "relative_l2": value if np.isfinite(value) else None}
        for (a, b), value in one.distances.items()
    ]
    return {"frame": one.frame, "shown_for": one.reason, "distances": distances}


def _plain_bin(one: Bin) -> dict[str, Any]:
    def finite(values: dict[str, float]) -> dict[str, float | None]:
        return {name: value if np.isfinite(value) else None for name, value in values.items()}

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
    """CSV with one row per object: what every detector says of it, and what became of it; m and px.

    Numbers of an object that a detector missed are empty.
    """
    first = sections[0].analysis
    objects = first.objects
    columns: dict[str, list[str]] = {
        "frame": [objects.frames[frame] for frame in objects.frame],
        "line": [str(line + 1) for line in objects.line],
        "class": objects.name.tolist(),
        "distance": _texts(objects.distance),
        "depth": _texts(objects.depth),
        "occlusion": [str(level) for level in objects.occlusion],
        "truncation": _texts(objects.truncation),
        "box_height": _texts(objects.box2d[:, 3] - objects.box2d[:, 1]),
        **_columns(baseline.name, first.parts["baseline"]),
    }
    for one in sections:
        if one.teacher is not None:
            teacher = one.analysis.parts.get("teacher")
            columns |= {} if teacher is None else _columns(one.teacher.name, teacher)
            columns[f"{one.teacher.name}_log_scale"] = _texts(one.analysis.log_scale)
    for one in sections:
        columns |= _columns(one.student.name, one.analysis.parts["student"])
        columns[f"{one.student.name}_outcome"] = [OUTCOMES[code] for code in one.analysis.outcome]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _columns(name: str, part: Found) -> dict[str, list[str]]:
    return {
        f"{name}_found": [str(int(found)) for found in part.found],
        f"{name}_score": _texts(part.score),
        f"{name}_z": _texts(part.box[:, 5]),
        f"{name}_depth_error": _texts(part.depth_error),
        f"{name}_centre_error": _texts(part.centre_error),
        f"{name}_iou_3d": _texts(part.iou_3d),
    }


def _texts(values: Float[np.ndarray, " g"]) -> list[str]:
    return [f"{value:.4f}" if np.isfinite(value) else "" for value in values]
