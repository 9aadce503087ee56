"""What the numbers say in a sentence, and what they do not say."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from distill3d.evaluate.kitti import DIFFICULTIES
from distill3d.view.runs import Stage

MODERATE = DIFFICULTIES.index("moderate")
COMPARED = ("student", "control")
#: Keeps a name and its number on one line.
NO_BREAK = "\u00a0"
#: Differences that round to nothing at one decimal are called none.
LEAST_DIFFERENCE = 0.05


def reference(stage: Stage, stages: Sequence[Stage]) -> Stage | None:
    """The finished baseline that a stage is compared with: of its own run, else the first one; None for the others.

    Only students and controls are compared: what teaches sees more than the camera, and baselines are the measure.
    """
    if stage.role not in COMPARED:
        return None
    baselines = [other for other in stages if other.role == "baseline" and other.finished]
    return next((b for b in baselines if b.folder.parent == stage.folder.parent), next(iter(baselines), None))


def headline(stages: Sequence[Stage]) -> tuple[str, list[str]]:
    """A title and paragraphs on it: Car, moderate, 3D AP of the students against their baselines."""
    groups = _groups(stages)
    if not groups:
        done = [stage.name for stage in stages if stage.finished]
        finished = f"Finished: {', '.join(done)}." if done else "No stage has been evaluated yet."
        return "No comparison yet", [f"It needs a finished baseline and a finished distilled student. {finished}"]
    figures = {label: [fmean(v) for v in _values(group, stages, "loose")] for label, group in groups.items()}
    names = {label: label if len(groups) > 1 else "Distilled" for label in groups}
    if len({theirs for _, theirs in figures.values()}) == 1:
        shown = [f"{names[label]}{NO_BREAK}{ours:.1f}" for label, (ours, _) in figures.items()]
        shown.append(f"baseline{NO_BREAK}{next(iter(figures.values()))[1]:.1f}")
    else:
        shown = [
            f"{names[label]}{NO_BREAK}{ours:.1f} (baseline {theirs:.1f})" for label, (ours, theirs) in figures.items()
        ]
    title = f"{', '.join(shown)}: 3D AP (Car, moderate, IoU 0.5), {_seeds(groups)}"
    leads = [
        _lead(label if len(groups) > 1 else "The distilled student", group, stages) for label, group in groups.items()
    ]
    rest = " ".join(filter(None, [_teacher(stages, groups), _controls(stages)]))
    paragraphs = [f"{leads[0]} {rest}"] if len(leads) == 1 else [*leads, rest]
    return title, [text.strip() for text in paragraphs if text]


def _lead(who: str, group: Sequence[Stage], stages: Sequence[Stage]) -> str:
    """How one kind of student stands against its baseline at both overlaps."""
    ours, theirs = _values(group, stages, "loose")
    strict_ours, strict_theirs = (fmean(values) for values in _values(group, stages, "strict"))
    gain = fmean(ours) - fmean(theirs)
    if abs(gain) < LEAST_DIFFERENCE:
        verdict = f"{who} is level with its baseline"
    else:
        verdict = f"{who} is {abs(gain):.1f} points {'ahead of' if gain > 0 else 'behind'} its baseline"
    return f"{verdict}; at IoU 0.7 they stand at {strict_ours:.1f} and {strict_theirs:.1f}.{_spread(ours, theirs)}"


def _groups(stages: Sequence[Stage]) -> dict[str, list[Stage]]:
    """Students that differ in nothing but the seed, by what they are called; only those that can be compared."""
    groups: dict[tuple[str, ...], list[Stage]] = {}
    for stage in stages:
        baseline = reference(stage, stages)
        if stage.role == "student" and baseline is not None and _has_ap(stage) and _has_ap(baseline):
            settings = [
                repr(stage.card.get(key)) for key in ("detector", "config", "method", "method_config", "epochs")
            ]
            groups.setdefault((stage.name, *settings), []).append(stage)
    names = [group[0].name for group in groups.values()]
    return {
        group[0].name if names.count(group[0].name) == 1 else f"{group[0].name} ({group[0].run})": group
        for group in groups.values()
    }


def _has_ap(stage: Stage) -> bool:
    return all(_ap(stage, overlap) is not None for overlap in ("strict", "loose"))


def _ap(stage: Stage, overlap: str) -> float | None:
    values = stage.ap("car", "3d", overlap)
    return None if values is None else float(values[MODERATE])


def _values(group: Sequence[Stage], stages: Sequence[Stage], overlap: str) -> tuple[list[float], list[float]]:
    """AP of the students and of their baselines, each baseline once."""
    baselines = {b.folder: b for stage in group if (b := reference(stage, stages)) is not None}.values()
    ours, theirs = ([_ap(s, overlap) for s in some] for some in (group, baselines))
    return [v for v in ours if v is not None], [v for v in theirs if v is not None]


def _seeds(groups: dict[str, list[Stage]]) -> str:
    counts = sorted({_seed_count(group) for group in groups.values()})
    return "one seed" if counts == [1] else f"{' to '.join(map(str, counts))} seeds"


def _seed_count(group: Sequence[Stage]) -> int:
    return len({stage.seed for stage in group})


def _spread(ours: Sequence[float], theirs: Sequence[float]) -> str:
    if len(ours) < 2 and len(theirs) < 2:
        return ""
    apart = min(ours) > max(theirs) or max(ours) < min(theirs)
    return (
        f" Over seeds at IoU 0.5 the students range from {min(ours):.1f} to {max(ours):.1f}, the baselines from"
        f" {min(theirs):.1f} to {max(theirs):.1f}: the ranges {'do not overlap' if apart else 'overlap'}."
    )


def _teacher(stages: Sequence[Stage], groups: dict[str, list[Stage]]) -> str:
    """How much of the way to the teacher the only kind of student came."""
    teachers = [v for s in stages if s.role == "teacher" and (v := _ap(s, "loose")) is not None]
    if not teachers:
        return ""
    sentence = f"The teacher reaches {fmean(teachers):.1f} at IoU 0.5"
    if len(groups) == 1:
        ours, theirs = (fmean(values) for values in _values(next(iter(groups.values())), stages, "loose"))
        if fmean(teachers) > theirs < ours:
            sentence += f": distillation closes {100 * (ours - theirs) / (fmean(teachers) - theirs):.0f} % of the gap"
    return sentence + "."


def _controls(stages: Sequence[Stage]) -> str:
    """What the controls reach: what remains of a gain without its supposed cause."""
    known: dict[str, list[float]] = {}
    for stage in stages:
        value = _ap(stage, "loose")
        if stage.role == "control" and value is not None:
            known.setdefault(stage.name, []).append(value)
    shown = [f"{name} {fmean(values):.1f}" for name, values in known.items()]
    return f"Controls at IoU 0.5: {', '.join(shown)}." if shown else ""


def caution(stages: Sequence[Stage]) -> list[str]:
    """What keeps the numbers from being more than they are, one sentence each."""
    sentences = []
    groups = _groups(stages)
    if groups and min(_seed_count(group) for group in groups.values()) == 1:
        sentences.append(
            "One seed is no proof: another seed alone moves these numbers. Repeat the recipe with other seeds before"
            " drawing a conclusion, and give all the runs to one report."
        )
    pairs = [(s, b) for group in groups.values() for s in group if (b := reference(s, stages)) is not None]
    if any(s.epochs != b.epochs for s, b in pairs):
        sentences.append("A student and its baseline were not trained equally long, which alone changes AP.")
    if any(_frames(s) != _frames(b) for s, b in pairs):
        sentences.append("A student and its baseline were not evaluated on equally many frames: do not compare them.")
    scales = {stage.min_height_scale for stage in stages}
    if len(scales) > 1:
        sentences.append("The stages were evaluated with different least box heights: do not compare them.")
    elif scales != {1.0} and any(stage.finished for stage in stages):
        sentences.append(
            "KITTI's least box heights were scaled for images of another size: these numbers cannot be compared with"
            " those of the KITTI benchmark."
        )
    return sentences


def _frames(stage: Stage) -> int | None:
    return (stage.evaluation or {}).get("settings", {}).get("frames")
