"""The records as a page, in Markdown and HTML; no number on it is typed by hand.

It opens with a picture of every gain and what that comes to in five sentences; tables follow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distill3d.files import write_text
from distill3d.view.charts import Series, line_chart, loose_axis
from distill3d.view.palette import looks

from ..document import Block, Command, Heading, Paragraph, Picture, Points, Table, html, markdown, pictures
from ..interval_chart import Interval, IntervalBlock, interval_chart
from .estimates import CLEAR, LEVEL, Estimate, paired
from .search import CANDIDATES, OURS, SINGLE
from .sizes import SIZES
from .table import BASELINE, CONFIRMED_IN, CONTROLLED, SEARCH, SWEEP, groups
from .worlds import KINDS

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
#: Of the page's two forms; its pictures are called so, too.
NAME = "benchmark"
TITLE = "Does distillation help?"
COMMAND = "python -m benchmarks.distillation run --size {size}"
#: Rows that are compared with the baseline.
TAUGHT = ("student", "control")
#: What rows are compared by: in a sentence, and in full.
METRICS = {"car 3D loose": ("car 3D AP", "AP|R40 of cars in 3D, moderate, at IoU 0.5"),
           "NDS": ("NDS", "nuScenes' detection score, in percent")}  # fmt: skip
#: Columns of a table of their own begin so.
OTHER_CLASSES = ("pedestrian", "cyclist")
#: Points of the headline below which a baseline has learned so little that gains over it say little.
FLOOR = 6.0
MILLI, HOUR = 1e-3, 3600.0
#: The smallest p that is told.
LEAST_P = 1e-3
#: Kinds of comparisons as the table names them, in its order.
BETTER, WORSE, NOISE, LITTLE = "better", "worse", "noise", "too little learned"
KINDS_OF_GAIN = (BETTER, WORSE, NOISE, LITTLE)


# ----------------------------------------------------------------------------------------------------------- the record


def read_records() -> dict[str, dict[str, Any]]:
    """Records by size; of a size that was never run there is none."""
    paths = {name: RECORDS / f"distillation_{name}.json" for name in SIZES}
    return {name: stated(name, json.loads(path.read_text())) for name, path in paths.items() if path.exists()}


def stated(size: str, record: dict[str, Any]) -> dict[str, Any]:
    """A record whose groups know what the table says of them, so that no number is measured anew for a word."""
    known = groups(SIZES[size])
    return record | {
        "groups": {
            key: group | (known[key].stated() if key in known else {}) for key, group in record["groups"].items()
        }
    }


def pages(records: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The files of the page by their names."""
    blocks = render(records)
    texts = {f"{NAME}.md": markdown(TITLE, blocks), f"{NAME}.html": html(TITLE, blocks)}
    return texts | pictures(blocks)


def write_pages() -> list[Path]:
    """Renders what is recorded."""
    written = pages(read_records())
    for name, text in written.items():
        write_text(DOCS / name, text)
    return [DOCS / name for name in written]


def column(row: dict[str, Any], name: str) -> dict[str, float]:
    """A row's values of one column by seed."""
    values = {seed: cell["values"].get(name, math.nan) for seed, cell in row["seeds"].items() if "values" in cell}
    return {seed: value for seed, value in values.items() if not math.isnan(value)}


def headline(group: dict[str, Any], row: str) -> dict[str, float]:
    """A row's values by seed of what rows are compared by; of none if it is not there."""
    return column(group["rows"][row], group["headline"]) if row in group["rows"] else {}


def average(values: dict[str, float]) -> Estimate:
    """Over the seeds."""
    return Estimate.of(list(values.values()))


def own_steps(row: dict[str, Any]) -> int:
    """Of the row alone; all its seeds take as many."""
    return next(iter(row["seeds"].values()))["cost"]["steps"]


def steps(group: dict[str, Any], row: str) -> int:
    """Training steps of a row and of those that it goes on from; a teacher's are not counted, for it is trained once,
    whatever is then made of it."""
    about = group["rows"][row]
    return own_steps(about) + sum(steps(group, before) for before in about["goes_on_from"] if before in group["rows"])


def reference(group: dict[str, Any], row: str) -> str:
    """The row that a row's gain is measured against, as the table says."""
    return group.get("against", {}).get(row, BASELINE)


def gain(group: dict[str, Any], row: str) -> Estimate:
    """What a row has in the headline beyond what it is measured against, paired by seed."""
    return paired(headline(group, row), headline(group, reference(group, row)))


def finished(group: dict[str, Any], row: str) -> bool:
    """Whether as many seeds of a row are as its group is asked for."""
    return row in group["rows"] and len(group["rows"][row]["seeds"]) >= group["seeds"]


def learned(group: dict[str, Any], row: str) -> bool:
    """Whether what others are measured against has learned enough for that."""
    return average(headline(group, row)).mean >= FLOOR


def short_title(group: dict[str, Any]) -> str:
    """The base detector, and what else tells a group from the others."""
    return group.get("short", group["title"].partition(",")[0])


def metric(group: dict[str, Any]) -> str:
    """What its rows are compared by, in a sentence."""
    return METRICS[group["headline"]][0]


@dataclass(frozen=True)
class Comparison:
    """A finished row and what it is measured against."""

    group: dict[str, Any]
    row: str

    @cached_property
    def gain(self) -> Estimate:
        return gain(self.group, self.row)

    @property
    def over(self) -> str:
        return reference(self.group, self.row)

    @property
    def is_method(self) -> bool:
        """Not a sceptic's control."""
        return self.group["rows"][self.row]["role"] == "student"

    @property
    def taught(self) -> bool:
        return bool(self.group["rows"][self.row].get("teachers"))

    @property
    def certain(self) -> bool:
        """Larger than noise by the t-test, too."""
        return self.gain.clear and self.gain.p_value < LEVEL

    @property
    def kind(self) -> str:
        """One of ``KINDS_OF_GAIN``."""
        if not learned(self.group, self.over):
            return LITTLE
        return NOISE if not self.gain.clear else BETTER if self.gain.mean > 0 else WORSE

    @property
    def words(self) -> str:
        """The row and its gain."""
        return f"{self.row} {self.gain.text(signed=True)}"


def comparisons(record: dict[str, Any]) -> list[Comparison]:
    """All that can be judged, group by group; the search's rows are candidates and no results."""
    found = [
        Comparison(group, row)
        for key, group in record["groups"].items() if key != SEARCH
        for row, about in group["rows"].items()
        if about["role"] in TAUGHT and finished(group, row) and finished(group, reference(group, row))
    ]  # fmt: skip
    return [one for one in found if one.gain.n > 1]


# -------------------------------------------------------------------------------------------------- the page's opening


def render(records: dict[str, dict[str, Any]]) -> list[Block]:
    """The page of all sizes; the largest that was run opens it."""
    blocks: list[Block] = []
    for name in reversed(records):
        found = comparisons(records[name])
        if not blocks:
            blocks += [picture(name, found), Points(sentences(records[name], found))]
        blocks += gains(name, records[name], found)
        blocks += contest(name, records[name]["groups"])
    not_run = [
        f"**The {name} size has not been run** ({size.promise}): `{COMMAND.format(size=name)}`."
        for name, size in SIZES.items() if name not in records
    ]  # fmt: skip
    blocks += [Heading("How to read the tables"), Points([*READING, *not_run])]
    for name, record in records.items():
        blocks += conditions(name, record)
        for key, group in record["groups"].items():
            blocks += tables(name, key, group)
            if key == SEARCH:
                blocks += candidates(group)
        blocks += sweep(name, record)
    return blocks


def spoken(row: str) -> str:
    """A row's name in a picture."""
    return row.replace("_", " ")


def picture(size: str, found: Sequence[Comparison]) -> Picture:
    """Every gain, under what it is measured against; last and grey where that has learned too little."""
    together: dict[tuple[bool, str, str], list[Comparison]] = {}
    for one in found:
        together.setdefault((one.kind == LITTLE, short_title(one.group), one.over), []).append(one)
    blocks = []
    for (grey, short, over), several in sorted(together.items(), key=lambda item: item[0][0]):
        group = several[0].group
        rows = [
            Interval(spoken(one.row), one.gain.mean, CLEAR * one.gain.error, not one.is_method,
                     f"{one.words} over {over}, {one.gain.n} seeds")
            for one in several
        ]  # fmt: skip
        level = f"{spoken(over)} {average(headline(group, over)).mean:.1f} at {steps(group, over):,} steps"
        blocks.append(IntervalBlock(f"{short} · {metric(group)}", rows, grey, level))
    keys = [
        ("up", "better"), ("down", "worse"), ("noise", f"noise: {CLEAR:g} standard errors, the line, reach 0"),
        ("control", "italic: a control, no method"), ("grey", f"baseline below {FLOOR:g}: says little"),
    ]  # fmt: skip
    title = "How many points each way of training gains over the same detector, untaught"
    wide, narrow = (
        interval_chart(title, blocks, x_label="points gained", keys=keys, columns=columns) for columns in (2, 1)
    )
    about = f"Gains of {len(found)} rows, each with its interval, size {size}; the table below has the numbers"
    return Picture(f"{NAME}-gains.svg", about, wide, narrow)


def sentences(record: dict[str, Any], found: Sequence[Comparison]) -> list[str]:
    """What the picture comes to, in at most five."""
    judged = sorted((one for one in found if one.kind != LITTLE), key=lambda one: -one.gain.mean)
    methods = [one for one in judged if one.is_method]
    published = [one for one in methods if one.row not in OURS]
    lines = ["**No method is better than what it is measured against by more than noise.**"]
    if better := [one for one in methods if one.kind == BETTER]:
        first = better[0]
        lines = [
            f"**{first.row} gains most: {first.gain.text(signed=True)} points of {metric(first.group)} on "
            f"{short_title(first.group)}**{lead(first)}."
        ]
    if better := [one for one in published if one.kind == BETTER]:
        lines.append(
            f"Published methods are better than what they are measured against in {len(better)} of {len(published)} "
            f"comparisons, most of all {by_base(better[:1])}."
        )
    worse = [one for one in methods if one.kind == WORSE]
    noise = sum(one.kind == NOISE for one in methods)
    little = joined(dict.fromkeys(short_title(one.group) for one in found if one.kind == LITTLE))
    lines.append(
        (f"Worse are {by_base(worse)}; {noise}" if worse else f"None is worse, and {noise}")
        + " cannot be told from noise"
        + (f", and on {little} the baseline has learned too little to compare." if little else ".")
    )
    if alone := [one for one in judged if not one.is_method and one.kind == BETTER and not one.taught]:
        lines.append(f"Controls without any teacher gain, too: {by_base(alone)}.")
    return [*lines, trust(record, found)]


def by_base(several: Sequence[Comparison]) -> str:
    """Rows with their gains, by what they were trained on."""
    bases = {short_title(one.group): "" for one in several}
    words = {base: joined(one.words for one in several if short_title(one.group) == base) for base in bases}
    return "; ".join(f"{rows} on {base}" for base, rows in words.items())


def lead(first: Comparison) -> str:
    """How far our recipe is ahead, where it is what gains most."""
    best = best_of(first.group, single(first.group, steps(first.group, first.row)))
    if first.row not in OURS or best is None:
        return ""
    ahead = paired(headline(first.group, first.row), headline(first.group, best))
    far = Estimate(abs(ahead.mean), ahead.error, ahead.n).text()
    return f", {far} {'ahead of' if ahead.mean > 0 else 'behind'} {best}, the best published method of as many steps"


def trust(record: dict[str, Any], found: Sequence[Comparison]) -> str:
    """How uncertain the numbers are, and where they come from."""
    size = record["size"]
    made_on = joined(sorted({processor(group["machine"]) for group in record["groups"].values() if group["rows"]}))
    return (
        f"± is one standard error over seeds, {size['seeds']} on MonoDLE and at least {size['other_seeds']} elsewhere, "
        f"trained on {made_on}; {sum(one.certain for one in found)} of all {len(found)} comparisons also pass a paired "
        f"t-test at {100 * LEVEL:g} %."
    )


def processor(machine: dict[str, Any]) -> str:
    """What did the work."""
    return machine.get("gpu") or f"{machine['cpu']} ({machine.get('cores', 'some')} cores)"


def joined(words: Iterable[str]) -> str:
    """a, b and c."""
    *most, last = [*words] or [""]
    return f"{', '.join(most)} and {last}" if most else last


def gains(size: str, record: dict[str, Any], found: Sequence[Comparison]) -> list[Block]:
    """The picture in numbers."""
    missing = sum(not finished(group, row) for group in record["groups"].values() for row in group["stages"])
    unfinished = f" **Not finished yet: {missing} rows**, which are not judged here." if missing else ""
    ordered = sorted(found, key=lambda one: (KINDS_OF_GAIN.index(one.kind), -one.gain.mean))
    body = []
    for one in ordered:
        level = average(headline(one.group, one.over)).text()
        body.append([
            one.row, short_title(one.group), metric(one.group), marked(one.gain), probability(one.gain),
            str(one.gain.n), f"{steps(one.group, one.row):,}", measured_against(one.group, one.row), level, one.kind,
        ])  # fmt: skip
    return [
        Heading(f"The picture in numbers, size {size}"),
        Paragraph(
            f"Read down to where noise begins: bold is more than {CLEAR:g} standard errors, which of so few seeds is "
            f"weak evidence, and p below {LEVEL:g} is stronger.{unfinished}"
        ),
        Table(
            ["row", "on", "points of", "gain", "p, paired t-test", "seeds", "steps", "over", "which has", "so it is"],
            body,
        ),
        Command(COMMAND.format(size=size)),
    ]


def probability(estimate: Estimate) -> str:
    """Of the paired t-test."""
    p = estimate.p_value
    return "" if math.isnan(p) else f"{p:.3f}" if p >= LEAST_P else f"< {LEAST_P:g}"


def measured_against(group: dict[str, Any], row: str) -> str:
    """The row that a gain is measured against, with its steps where they are others."""
    over = reference(group, row)
    if over not in group["rows"] or steps(group, over) == steps(group, row):
        return over
    return f"{over} ({steps(group, over):,} steps)"


def contest(size: str, groups: dict[str, dict[str, Any]]) -> list[Block]:
    """Whether our recipe beats the best single method: where it was chosen, and where nothing was."""
    body = []
    for where, key in (("test split, other training frames", CONFIRMED_IN),
                       ("validation split, where it was chosen", SEARCH)):  # fmt: skip
        group = groups.get(key)
        for ours in OURS if group else ():
            if finished(group, ours) and (best := best_of(group, single(group, steps(group, ours)))):
                difference = paired(headline(group, ours), headline(group, best))
                body.append([f"{ours} minus {best}", where, f"{steps(group, ours):,}", marked(difference),
                             probability(difference), str(difference.n)])  # fmt: skip
    if not body:
        return []
    return [
        Heading("Our recipe against the best single method of as many steps"),
        Paragraph(
            "Trust the test split, where nothing was chosen; the best single method is that of the highest mean there, "
            "line by line."
        ),
        Table(["difference", "where", "steps", "points of car 3D AP", "p, paired t-test", "seeds"], body),
        Command(f"{COMMAND.format(size=size)} --groups {CONFIRMED_IN} {SEARCH}"),
    ]


def single(group: dict[str, Any], count: int) -> list[str]:
    """The single methods' rows of so many steps."""
    return [row for row in SINGLE if finished(group, row) and steps(group, row) == count]


def marked(estimate: Estimate) -> str:
    """Bold where it is larger than noise."""
    text = estimate.text(signed=True)
    return f"**{text}**" if estimate.n > 1 and estimate.clear else text


def best_of(group: dict[str, Any], rows: Iterable[str]) -> str | None:
    """The row with the highest mean headline among those that all seeds have finished."""
    means = {row: average(headline(group, row)).mean for row in rows if finished(group, row)}
    return max(means, key=means.__getitem__, default=None)


def candidates(group: dict[str, Any]) -> list[Block]:
    """What was tried, best first, against the best single method of as many steps."""
    tried = [row for row in CANDIDATES if row in group["rows"]]
    blocks: list[Block] = []
    for count in sorted({steps(group, row) for row in tried}):
        best = best_of(group, single(group, count))
        if best is None:
            continue
        body = []
        for row in (row for row in tried if steps(group, row) == count):
            values = headline(group, row)
            mean, more = average(values), paired(values, headline(group, best))
            cells = [row, CANDIDATES[row].about, mean.text(), "" if row == best else marked(more)]
            body.append((mean.mean, cells))
        ahead = sum(mean > average(headline(group, best)).mean for mean, _ in body)
        blocks.append(
            Paragraph(
                f"What was tried with {count:,} steps, best first: {ahead} of {len(body)} candidates are ahead of "
                f"{best}, the best of the single methods here ({joined(single(group, count))})."
            )
        )
        head = [f"candidate, {count:,} steps", "what it is", f"{group['headline']}, validation", f"minus {best}"]
        blocks.append(Table(head, [cells for _, cells in sorted(body, reverse=True)]))
    return blocks


def conditions(name: str, record: dict[str, Any]) -> list[Block]:
    """How the numbers came about."""
    groups = record["groups"]
    table = sum(hours(group) for key, group in groups.items() if key != SEARCH)
    search = f", the search {hours(groups[SEARCH]):.1f}" if SEARCH in groups else ""
    return [
        Heading(f"Size {name}: how it was measured"),
        Paragraph(
            "One generated data set for all rows of a group. Each seed has its own training frames and its own "
            "initial weights; all are judged on the same test frames, half of which show car bodies that no training "
            "frame holds, in thicker haze and dimmer light. All rows of a group train for the same number of steps "
            f"unless the table says otherwise. Training the table took {table:.1f} hours{search}, summed over "
            "processes of one thread."
        ),
        Command(COMMAND.format(size=name)),
        Paragraph(
            "Each group was trained on one machine; processors round differently, so that the same frames differ in "
            "the last bits there, and the files' sums with them. Groups whose settings have the same sum saw the same "
            "streets or drives; others were made by a later generator, and only rows of one group are compared."
        ),
        machines(groups),
    ]


def costs_of_cells(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Of all its finished cells."""
    return [cell["cost"] for row in group["rows"].values() for cell in row["seeds"].values()]


def machines(groups: dict[str, dict[str, Any]]) -> Table:
    """Where and in which arithmetic the groups were trained, and the sum of the files that they saw there."""
    rows = []
    for group in groups.values():
        precisions = sorted({cost["precision"] for cost in costs_of_cells(group)})
        if precisions:
            machine = ", ".join(f"{what} {value}" for what, value in group["machine"].items())
            data = f"{KINDS[group['surround']]} {group['hash'][:16]}"
            rows.append([short_title(group), group["settings"][:16], data, " and ".join(precisions), machine])
    return Table(["group", "settings, sha256", "data, sha256", "precision", "machine"], rows)


def hours(group: dict[str, Any]) -> float:
    """That the steps of all its finished cells took."""
    return sum(cost["step_seconds"] * cost["steps"] for cost in costs_of_cells(group)) / HOUR


#: What all groups' tables have in common.
READING = (
    f"**Gain** is a row's headline (the first column after it) minus that of the row under **over**, paired by seed; "
    f"bold is more than {CLEAR:g} standard errors. ± is one standard error over the seeds.",
    "**Steps** are those of a row and of what it goes on from, its teachers' not counted; own steps are the row's "
    "alone. Where a row took more steps than what it is measured against, the table says so.",
    f"AP is AP|R40 at moderate difficulty in percent, loose at IoU 0.5 for cars, strict at 0.7; headlines are "
    f"{joined(f'{short} ({full})' for short, full in METRICS.values())}. Familiar test frames show the car bodies of "
    "the training frames, unfamiliar ones others.",
    "**Fields**: points of car 3D AP at IoU 0.5 when matched boxes exchange one field, the mean of what the baseline "
    "gains by the student's values and the student loses by the baseline's, whatever the row's steps. They do not add "
    "up: a box counts once all its fields are good enough. The remainder is what the single fields, location as its "
    "two parts, leave of the whole difference; the last row is what the true values would give the baseline.",
    f"A baseline below {FLOOR:g} points has learned too little for gains over it to say much.",
    "To begin with a teacher's weights costs no steps: the teacher is trained once, whatever is then made of it.",
)  # fmt: skip


def tables(name: str, key: str, group: dict[str, Any]) -> list[Block]:
    """One group: its numbers, its costs, and which field of the boxes is better; a sentence before each table."""
    rows = group["rows"]
    if not rows:
        return []
    blocks: list[Block] = [Heading(group["title"])]
    if group.get("remark"):
        blocks.append(Paragraph(group["remark"]))
    missing = [stage for stage in group["stages"] if not finished(group, stage)]
    if missing:
        blocks.append(Paragraph(f"Not finished with all seeds: {', '.join(missing)}."))
    shown = {row: about for row, about in rows.items() if about["role"] != "preparation"}
    names = list(
        dict.fromkeys(n for about in shown.values() for cell in about["seeds"].values() for n in cell["values"])
    )
    others = [n for n in names if n.startswith(OTHER_CLASSES)]
    names = [n for n in names if n not in others]
    body = []
    for row, about in shown.items():
        none = row == BASELINE
        lead = [f"{row} ({about['role']})", str(len(about["seeds"])), f"{steps(group, row):,}",
                "" if none else marked(gain(group, row)), "" if none else measured_against(group, row)]  # fmt: skip
        body.append([*lead, *means(about, names)])
    blocks += [Paragraph(highest(group)), Table(["row", "n", "steps", "gain", "over", *names], body)]
    if others:
        body = [[row, *means(about, others)] for row, about in shown.items()]
        blocks += [Paragraph(highest_of_others(shown, others)), Table(["row", *others], body)]
    blocks += curves(key, group)
    blocks += [Paragraph(what_it_costs(group)), costs(group)]
    exchanged = fields(group)
    if exchanged is not None:
        blocks += [Paragraph(best_field(group)), exchanged]
    more = any(len(about["seeds"]) > group["seeds"] for about in rows.values())
    blocks.append(Command(f"{COMMAND.format(size=name)} --groups {key}{' --all-seeds' if more else ''}"))
    return blocks


def compared(group: dict[str, Any]) -> list[str]:
    """Rows that are measured against others."""
    return [row for row, about in group["rows"].items() if about["role"] in TAUGHT]


def highest(group: dict[str, Any]) -> str:
    """Where a group's rows end."""
    name = group["headline"]
    ends = {row: average(headline(group, row)) for row in group["rows"] if headline(group, row)}
    best = max((row for row in compared(group) if row in ends), key=lambda row: ends[row].mean, default=None)
    first = f"{best} ends highest in {name} of what uses the camera alone, at {ends[best].text()}" if best else ""
    rest = [f"{row} has {ends[row].text()}" for row in (BASELINE, "teacher") if row in ends]
    return f"{'; '.join([first, *rest] if first else rest)}." if first or rest else "Nothing has been evaluated yet."


def highest_of_others(shown: dict[str, dict[str, Any]], names: Sequence[str]) -> str:
    """How much there is of the other classes."""
    found = [(average(column(about, name)), row, name) for row, about in shown.items() for name in names
             if about["role"] in TAUGHT]  # fmt: skip
    found = [one for one in found if not math.isnan(one[0].mean)]
    if not found:
        return "The other classes, of which the camera's rows have nothing yet."
    most, row, name = max(found, key=lambda one: one[0].mean)
    return f"The other classes: what uses the camera alone comes to {most.text()} at most ({row}, {name})."


def curves(key: str, group: dict[str, Any]) -> list[Block]:
    """Gain against steps, where the table asks for it and rows are there."""
    known = {
        name: [(steps(group, row), gain(group, row)) for row in rows
               if finished(group, row) and finished(group, reference(group, row))]
        for name, rows in group.get("curves", {}).items()
    }  # fmt: skip
    known = {name: sorted(points, key=lambda point: point[0]) for name, points in known.items() if len(points) > 1}
    if not known:
        return []
    series = [
        Series(name, look, [x for x, _ in points], [y.mean for _, y in points],
               [f"{name}, {x:,} steps: {y.text(signed=True)}" for x, y in points], [CLEAR * y.error for _, y in points])
        for look, (name, points) in zip(looks([*known]), known.items(), strict=True)
    ]  # fmt: skip
    ends = [y + side * e for one in series for y, e in zip(one.y, one.errors, strict=True) for side in (-1, 1)]
    x_axis, y_axis = loose_axis([x for one in series for x in one.x], free=0.1), loose_axis([0.0, *ends])
    title = f"{metric(group)}: gain against steps"
    chart = line_chart(title, series, x_label="steps", x_axis=x_axis, y_axis=y_axis, named=True)
    grows = joined(name for name, points in known.items() if points[-1][1].mean > points[0][1].mean) or "none"
    return [
        Paragraph(
            f"Does a gain last? After more steps, measured against what the table names, the mean is higher for {grows}"
            f" of {len(known)}; lines are {CLEAR:g} standard errors either way."
        ),
        Picture(f"{NAME}-steps-{key}.svg", f"Gain against steps: {', '.join(known)}", chart),
    ]


def what_it_costs(group: dict[str, Any]) -> str:
    """Of training and of use."""
    times = [ratio.mean for row in compared(group) if (ratio := cost_ratio(group, row, "step_seconds")).n]
    deployed = [group["rows"][row]["latency"] or {} for row in compared(group)]
    waits = [latency["onnx_seconds"] / MILLI for latency in deployed if "onnx_seconds" in latency]
    step = f"A step takes {span(times, 2)} times the baseline's" if times else "What a step takes"
    return f"{step}; a picture then takes {span(waits, 1)} ms on one thread." if waits else f"{step}."


def span(values: Sequence[float], digits: int) -> str:
    """From the least to the largest, once if they read alike."""
    return " to ".join(dict.fromkeys(f"{value:.{digits}f}" for value in (min(values), max(values))))


def best_field(group: dict[str, Any]) -> str:
    """Where the largest gain comes from."""
    whole = {row: Estimate.of([cell["fields"]["whole"] for cell in about["seeds"].values() if "fields" in cell])
             for row, about in group["rows"].items()}  # fmt: skip
    row = max((row for row, of in whole.items() if of.n), key=lambda row: whole[row].mean)
    cells = [cell["fields"]["gain"] for cell in group["rows"][row]["seeds"].values() if "fields" in cell]
    parts = {name: Estimate.of([cell[name] for cell in cells]) for name in cells[0] if name != "all"}
    most = max(parts, key=lambda name: parts[name].mean)
    return (
        f"Which field of the boxes is better than the baseline's: of {row}'s {whole[row].text(signed=True)}, "
        f"{most.replace('_', ' ')} alone gives {parts[most].text(signed=True)}."
    )


def means(row: dict[str, Any], names: Sequence[str]) -> list[str]:
    """A row's columns over seeds; errors are small numbers."""
    return [average(column(row, n)).text(2 if n.endswith("_err") else 1) for n in names]


def costs(group: dict[str, Any]) -> Table:
    """Time of a step and memory relative to the baseline's, and what a picture takes in the end, on one thread."""
    body = []
    for row, about in group["rows"].items():
        ratios = [cost_ratio(group, row, what).text(2) for what in ("step_seconds", "peak_memory")]
        deployed = about["latency"] or {}
        times = [f"{deployed[of] / MILLI:.1f}" if of in deployed else "" for of in ("onnx_seconds", "torch_seconds")]
        body.append([row, f"{own_steps(about):,}", *ratios, *times])
    return Table(
        [
            "row",
            "own steps",
            "time of a step / baseline",
            "peak memory / baseline",
            "a picture in ONNX Runtime, ms",
            "in PyTorch, ms",
        ],
        body,
    )


def cost_ratio(group: dict[str, Any], row: str, what: str) -> Estimate:
    """A cost of a row as a share of the baseline's."""
    seeds, base = group["rows"][row]["seeds"], group["rows"].get(BASELINE, {"seeds": {}})["seeds"]
    return Estimate.of([cell["cost"][what] / base[seed]["cost"][what] for seed, cell in seeds.items() if seed in base])


def fields(group: dict[str, Any]) -> Table | None:
    """What each exchanged field gives, by row."""
    known = {
        row: [cell["fields"] for cell in about["seeds"].values() if "fields" in cell]
        for row, about in group["rows"].items()
    }
    known = {row: values for row, values in known.items() if values}
    if not known:
        return None
    names = list(next(iter(known.values()))[0]["gain"])

    def mean(values: list[dict[str, Any]], of: Callable[[dict[str, Any]], float]) -> str:
        return marked(Estimate.of([of(value) for value in values]))

    body = [
        [
            row,
            *(mean(values, lambda v, n=n: v["gain"][n]) for n in names),
            mean(values, lambda v: v["remainder"]),
            mean(values, lambda v: v["whole"]),
        ]
        for row, values in known.items()
    ]
    first = next(iter(known.values()))
    body.append(["the truth", *(mean(first, lambda v, n=n: v["headroom"][n]) for n in names), "", ""])
    return Table(["row", *(n.replace("_", " ") for n in names), "remainder", "the row minus baseline"], body)


def sweep(size: str, record: dict[str, Any]) -> list[Block]:
    """How much a teacher helps with few and with many training frames."""
    groups = {
        record["size"]["frames"]: record["groups"].get(CONFIRMED_IN),
        **{int(k.removeprefix(SWEEP)): g for k, g in record["groups"].items() if k.startswith(SWEEP)},
    }
    rows = ("teacher", BASELINE, CONTROLLED)
    known = {frames: group for frames, group in sorted(groups.items()) if group and set(rows) <= set(group["rows"])}
    if len(known) < 2:
        return []
    body = []
    for frames, group in known.items():
        numbers = [average(headline(group, row)).text() for row in rows]
        body.append([f"{frames:,}", f"{steps(group, CONTROLLED):,}", *numbers, marked(gain(group, CONTROLLED))])
    counts = [*known]
    asked = [CONFIRMED_IN, *(key for key in record["groups"] if key.startswith(SWEEP))]
    return [
        Heading("With how many training frames does it help?"),
        Paragraph(
            f"{CONTROLLED} gains {gain(known[counts[0]], CONTROLLED).text(signed=True)} points of car 3D AP with "
            f"{counts[0]:,} frames and {gain(known[counts[-1]], CONTROLLED).text(signed=True)} with {counts[-1]:,}, "
            "after as many steps as whole epochs allow."
        ),
        Table(["training frames", "steps", *rows, f"{CONTROLLED} minus {BASELINE}"], body),
        Command(f"{COMMAND.format(size=size)} --groups {' '.join(asked)}"),
    ]
