"""What the numbers say in a sentence, and what they do not say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from distill3d.view.runs import Stage

COMPARED = ("student", "control")
#: Keeps a name and its number on one line.
NO_BREAK = "\u00a0"
#: Differences that round to nothing at one decimal are called none.
LEAST_DIFFERENCE = 0.05


@dataclass(frozen=True)
class Measure:
    """One number of a stage, the larger the better, in percent; None where there is none."""

    of: Callable[[Stage], float | None]
    title: str  # what it is
    where: str  # "at IoU 0.5", "in NDS": how a sentence names it


@dataclass(frozen=True)
class Measures:
    """The number that stages are compared by, and a second one that is told beside it."""

    first: Measure
    second: Measure

    def all_of(self, stage: Stage) -> bool:
        """Whether a stage has both numbers."""
        return self.first.of(stage) is not None and self.second.of(stage) is not None


def reference(stage: Stage, stages: Sequence[Stage]) -> Stage | None:
    """The finished baseline that a stage is compared with: of its own run, else the first one; None for the others.

    Only students and controls are compared: what teaches sees more than the camera, and baselines are the measure.
    """
    if stage.role not in COMPARED:
        return None
    baselines = [other for other in stages if other.role == "baseline" and other.finished]
    return next((b for b in baselines if b.folder.parent == stage.folder.parent), next(iter(baselines), None))


def headline(stages: Sequence[Stage], measures: Measures) -> tuple[str, list[str]]:
    """A title and paragraphs on it: the students against their baselines."""
    groups, first = _groups(stages, measures), measures.first
    if not groups:
        done = [stage.name for stage in stages if stage.finished]
        finished = f"Finished: {', '.join(done)}." if done else "No stage has been evaluated yet."
        silent = [stage.name for stage in stages if stage.finished and first.of(stage) is None]
        if silent:
            finished += f" Without a number: {', '.join(silent)}; they found nothing, or were not evaluated."
        return "No comparison yet", [f"It needs a finished baseline and a finished distilled student. {finished}"]
    figures = {label: [fmean(v) for v in _values(group, stages, first)] for label, group in groups.items()}
    names = {label: label if len(groups) > 1 else "Distilled" for label in groups}
    if len({theirs for _, theirs in figures.values()}) == 1:
        shown = [f"{names[label]}{NO_BREAK}{ours:.1f}" for label, (ours, _) in figures.items()]
        shown.append(f"baseline{NO_BREAK}{next(iter(figures.values()))[1]:.1f}")
    else:
        shown = [
            f"{names[label]}{NO_BREAK}{ours:.1f} (baseline {theirs:.1f})" for label, (ours, theirs) in figures.items()
        ]
    title = f"{', '.join(shown)}: {first.title}, {_seeds(groups)}"
    leads = [
        _lead(label if len(groups) > 1 else "The distilled student", group, stages, measures)
        for label, group in groups.items()
    ]
    rest = " ".join(filter(None, [_teacher(stages, groups, first), _controls(stages, first)]))
    paragraphs = [f"{leads[0]} {rest}"] if len(leads) == 1 else [*leads, rest]
    return title, [text.strip() for text in paragraphs if text]


def _lead(who: str, group: Sequence[Stage], stages: Sequence[Stage], measures: Measures) -> str:
    """How one kind of student stands against its baseline in both numbers."""
    first, second = measures.first, measures.second
    ours, theirs = _values(group, stages, first)
    second_ours, second_theirs = (fmean(values) for values in _values(group, stages, second))
    gain = fmean(ours) - fmean(theirs)
    if abs(gain) < LEAST_DIFFERENCE:
        verdict = f"{who} is level with its baseline"
    else:
        verdict = f"{who} is {abs(gain):.1f} points {'ahead of' if gain > 0 else 'behind'} its baseline"
    spread = _spread(ours, theirs, first)
    return f"{verdict}; {second.where} they stand at {second_ours:.1f} and {second_theirs:.1f}.{spread}"


def _groups(stages: Sequence[Stage], measures: Measures) -> dict[str, list[Stage]]:
    """Students that differ in nothing but the seed, by what they are called; only those that can be compared."""
    groups: dict[tuple[str, ...], list[Stage]] = {}
    seeds: dict[tuple[str, ...], set[int | None]] = {}
    for stage in stages:
        baseline = reference(stage, stages)
        if stage.role == "student" and baseline is not None and all(map(measures.all_of, (stage, baseline))):
            settings = [
                repr(stage.card.get(key)) for key in ("detector", "config", "method", "method_config", "epochs")
            ]
            key = (stage.name, *settings)
            if stage.seed in seeds.setdefault(key, set()):  # something else that no card tells is another there
                key = (*key, stage.run)
            seeds.setdefault(key, set()).add(stage.seed)
            groups.setdefault(key, []).append(stage)
    names = [group[0].name for group in groups.values()]
    return {
        group[0].name if names.count(group[0].name) == 1 else f"{group[0].name} ({group[0].run})": group
        for group in groups.values()
    }


def _values(group: Sequence[Stage], stages: Sequence[Stage], measure: Measure) -> tuple[list[float], list[float]]:
    """A number of the students and of their baselines, each baseline once."""
    baselines = {b.folder: b for stage in group if (b := reference(stage, stages)) is not None}.values()
    ours, theirs = ([measure.of(s) for s in some] for some in (group, baselines))
    return [v for v in ours if v is not None], [v for v in theirs if v is not None]


def _seeds(groups: dict[str, list[Stage]]) -> str:
    counts = sorted({_seed_count(group) for group in groups.values()})
    return "one seed" if counts == [1] else f"{' to '.join(map(str, counts))} seeds"


def _seed_count(group: Sequence[Stage]) -> int:
    return len({stage.seed for stage in group})


def _spread(ours: Sequence[float], theirs: Sequence[float], measure: Measure) -> str:
    if len(ours) < 2 and len(theirs) < 2:
        return ""
    apart = min(ours) > max(theirs) or max(ours) < min(theirs)
    return (
        f" Over seeds {measure.where} the students range from {min(ours):.1f} to {max(ours):.1f}, the baselines from"
        f" {min(theirs):.1f} to {max(theirs):.1f}: the ranges {'do not overlap' if apart else 'overlap'}."
    )


def _teacher(stages: Sequence[Stage], groups: dict[str, list[Stage]], measure: Measure) -> str:
    """How much of the way to the teacher the only kind of student came."""
    teachers = [v for s in stages if s.role == "teacher" and (v := measure.of(s)) is not None]
    if not teachers:
        return ""
    sentence = f"The teacher reaches {fmean(teachers):.1f} {measure.where}"
    if len(groups) == 1:
        ours, theirs = (fmean(values) for values in _values(next(iter(groups.values())), stages, measure))
        if fmean(teachers) > theirs < ours:
            sentence += f": distillation closes {100 * (ours - theirs) / (fmean(teachers) - theirs):.0f} % of the gap"
    return sentence + "."


def _controls(stages: Sequence[Stage], measure: Measure) -> str:
    """What the controls reach: what remains of a gain without its supposed cause."""
    known: dict[str, list[float]] = {}
    for stage in stages:
        value = measure.of(stage)
        if stage.role == "control" and value is not None:
            known.setdefault(stage.name, []).append(value)
    shown = [f"{name} {fmean(values):.1f}" for name, values in known.items()]
    return f"Controls {measure.where}: {', '.join(shown)}." if shown else ""


def caution(stages: Sequence[Stage], measures: Measures) -> list[str]:
    """What keeps a comparison from being more than it is, one sentence each."""
    sentences = []
    groups = _groups(stages, measures)
    if groups and min(_seed_count(group) for group in groups.values()) == 1:
        sentences.append(
            "One seed is no proof: another seed alone moves these numbers. Repeat the recipe with other seeds before"
            " drawing a conclusion, and give all the runs to one report."
        )
    pairs = [(s, b) for group in groups.values() for s in group if (b := reference(s, stages)) is not None]
    if any(s.epochs != b.epochs for s, b in pairs):
        sentences.append("A student and its baseline were not trained equally long, which alone changes AP.")
    if any(s.evaluated_frames != b.evaluated_frames for s, b in pairs):
        sentences.append("A student and its baseline were not evaluated on equally many frames: do not compare them.")
    return sentences
