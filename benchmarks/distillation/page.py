"""The records as a page, in Markdown and HTML; no number on it is typed by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from distill3d.files import write_text

from ..document import Block, Command, Heading, Paragraph, Points, Table, html, markdown
from .estimates import CLEAR, LEVEL, Estimate, paired
from .search import CANDIDATES, OURS, SINGLE
from .sizes import SIZES
from .table import CONFIRMED_IN, CONTROLLED, SEARCH, SWEEP
from .worlds import KINDS

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "benchmarks" / "results"
PAGES = ROOT / "docs" / "benchmark.md", ROOT / "docs" / "benchmark.html"
TITLE = "Does distillation help?"
COMMAND = "python -m benchmarks.distillation run --size {size}"
#: Rows that are compared with the baseline.
TAUGHT = ("student", "control")
#: Columns of a table of their own begin so.
OTHER_CLASSES = ("pedestrian", "cyclist")
#: Points of the headline below which a baseline has learned so little that gains over it say little.
FLOOR = 6.0
MILLI, HOUR = 1e-3, 3600.0


# ----------------------------------------------------------------------------------------------------------- the record


def read_records() -> dict[str, dict[str, Any]]:
    """Records by size; of a size that was never run there is none."""
    paths = {name: RECORDS / f"distillation_{name}.json" for name in SIZES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def write_pages() -> list[Path]:
    """Renders what is recorded."""
    blocks = render(read_records())
    for path, text in zip(PAGES, (markdown(TITLE, blocks), html(TITLE, blocks)), strict=True):
        write_text(path, text)
    return list(PAGES)


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


def untaught(group: dict[str, Any], row: str) -> str:
    """What a row is compared with: the baseline, or the one that has trained for as many steps if there is one."""
    longer = "baseline_longer"
    as_long = row != longer and longer in group["rows"] and steps(group, longer) == steps(group, row)
    return longer if as_long else "baseline"


def gain(group: dict[str, Any], row: str) -> Estimate:
    """What a row has in the headline beyond what it is compared with, paired by seed."""
    return paired(headline(group, row), headline(group, untaught(group, row)))


def finished(group: dict[str, Any], row: str) -> bool:
    """Whether as many seeds of a row are as its group is asked for."""
    return row in group["rows"] and len(group["rows"][row]["seeds"]) >= group["seeds"]


# ------------------------------------------------------------------------------------------------------------ the words


def render(records: dict[str, dict[str, Any]]) -> list[Block]:
    """The page of all sizes; its first lines say what is larger than noise."""
    blocks: list[Block] = []
    for name, record in records.items():
        blocks += verdicts(name, record)
    for name, size in SIZES.items():
        if name not in records:
            blocks.append(
                Paragraph(f"**The {name} size has not been run** ({size.promise}): `{COMMAND.format(size=name)}`.")
            )
    for name, record in records.items():
        blocks += conditions(name, record)
        for key, group in record["groups"].items():
            blocks += tables(name, record, key, group)
            if key == SEARCH:
                blocks += candidates(group)
        blocks += sweep(record)
    return blocks


def verdicts(name: str, record: dict[str, Any]) -> list[Block]:
    """Which gains are larger than noise, size by size."""
    found: dict[str, dict[str, list[str]]] = {"better": {}, "worse": {}, "noise": {}}
    count, sure = 0, 0
    for key, group in record["groups"].items():
        for row, about in group["rows"].items() if key != SEARCH else ():
            if about["role"] not in TAUGHT or "baseline" not in group["rows"]:
                continue
            estimate = gain(group, row)
            if not finished(group, row) or estimate.n < 2:
                continue
            certain = estimate.clear and estimate.p_value < LEVEL
            count, sure = count + 1, sure + certain
            kind = "noise" if not estimate.clear else "better" if estimate.mean > 0 else "worse"
            words = f"{row} {estimate.text(signed=True)}{'*' if certain else ''}"
            found[kind].setdefault(short_title(key, group), []).append(words)
    seeds = record["size"]["seeds"]
    missing = sum(not finished(group, row) for group in record["groups"].values() for row in group["stages"])
    unfinished = f" **Not finished yet: {missing} rows**, which are not judged here." if missing else ""
    lines = [
        " ".join((f"**{words}.**", *(f"On {base}: {', '.join(gains)}." for base, gains in found[kind].items())))
        for kind, words in (
            ("better", "Larger than noise, better than the baseline"), ("worse", "Larger than noise, worse"),
            ("noise", "Noise"),
        ) if found[kind]
    ]  # fmt: skip
    other = record["size"]["other_seeds"]
    return [
        Paragraph(
            f"Size {name}, {seeds} seeds on MonoDLE, at least {other} elsewhere: gains over the baseline, or over the "
            "one of as many steps where a row has more, paired by seed, in points of the group's headline (car 3D "
            f"AP|R40 moderate at IoU 0.5; NDS for six cameras). Larger than noise means more than {CLEAR:g} standard "
            f"errors; of so few seeds that alone is weak evidence, and {sure} of the {count} comparisons, marked *, "
            f"also pass a paired t-test at {100 * LEVEL:g} %.{unfinished}"
        ),
        Points([*lines, *hardly_trained(record["groups"]), *conclusion(record["groups"])]),
    ]


def short_title(key: str, group: dict[str, Any]) -> str:
    """The base detector alone, but of a group that differs from another's in its training frames."""
    return group["title"] if key.startswith(SWEEP) else group["title"].partition(",")[0]


def hardly_trained(groups: dict[str, dict[str, Any]]) -> list[str]:
    """Which groups' gains say little."""
    baselines = {
        short_title(key, group): average(headline(group, "baseline"))
        for key, group in groups.items() if finished(group, "baseline")
    }  # fmt: skip
    low = [f"on {base} the baseline has {found.text()}" for base, found in baselines.items() if found.mean < FLOOR]
    return [f"**Too little learned to compare methods**: {', '.join(low)}."] if low else []


def conclusion(groups: dict[str, dict[str, Any]]) -> list[str]:
    """Whether our recipe beats the best single method: where it was chosen, and where nothing was."""
    lines = []
    for where, key in (("on the validation split, where it was chosen", SEARCH),
                       ("on the test split, with other training frames", CONFIRMED_IN)):  # fmt: skip
        group = groups.get(key)
        for ours in OURS if group else ():
            if finished(group, ours) and (best := best_of(group, single(group, steps(group, ours)))):
                lines.append(f"After {steps(group, ours):,} steps, {where}: {against(group, ours, best)}.")
    return [f"**Our recipe against the best single method of as many steps.** {' '.join(lines)}"] if lines else []


def single(group: dict[str, Any], count: int) -> list[str]:
    """The single methods' rows of so many steps."""
    return [row for row in SINGLE if finished(group, row) and steps(group, row) == count]


def against(group: dict[str, Any], row: str, other: str) -> str:
    """One row minus another in words."""
    difference = paired(headline(group, row), headline(group, other))
    word = f"more than {CLEAR:g} standard errors" if difference.clear else "noise"
    probability = "" if math.isnan(difference.p_value) else f" (paired t-test: p = {difference.p_value:.3f})"
    return f"{row} minus {other} {difference.text(signed=True)}, {word}{probability}"


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
    blocks: list[Block] = [
        Paragraph(
            "What was tried, best first. Steps are those of the student and of what it goes on from; the teacher's are "
            "the same for all and not counted, so to begin with its weights costs nothing more. Of the single methods "
            f"{CONTROLLED} alone was tried twice as long here; the table of the test split has all of them."
        )
    ]
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
        head = [f"candidate, {count:,} steps", "what it is", f"{group['headline']}, validation", f"minus {best}"]
        blocks.append(Table(head, [cells for _, cells in sorted(body, reverse=True)]))
    return blocks


def conditions(name: str, record: dict[str, Any]) -> list[Block]:
    """How the numbers came about."""
    groups = record["groups"]
    table = sum(hours(group) for key, group in groups.items() if key != SEARCH)
    search = f", the search {hours(groups[SEARCH]):.1f}" if SEARCH in groups else ""
    made = "; ".join(f"{kind}, settings {about['settings'][:16]}" for kind, about in record["data"].items())
    return [
        Heading(f"Size {name}: how it was measured"),
        Paragraph(
            f"One generated data set for all rows ({made}). Each seed has its own training frames and its own "
            "initial weights; all are judged on the same test frames, half of which show car bodies that no training "
            "frame holds, in thicker haze and dimmer light. All rows of a group train for the same number of steps "
            f"unless the table says otherwise. Training the table took {table:.1f} hours{search}, summed over "
            "processes of one thread."
        ),
        Command(COMMAND.format(size=name)),
        Paragraph(
            "Every group was trained on one machine. Processors round differently: the same frames then differ in the "
            "last bits, and the files' sums with them."
        ),
        machines(groups),
    ]


def costs_of_cells(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Of all its finished cells."""
    return [cell["cost"] for row in group["rows"].values() for cell in row["seeds"].values()]


def machines(groups: dict[str, dict[str, Any]]) -> Table:
    """Where and in which arithmetic the groups were trained, and the sum of the files that they saw there."""
    rows = []
    for key, group in groups.items():
        precisions = sorted({cost["precision"] for cost in costs_of_cells(group)})
        if precisions:
            machine = ", ".join(f"{what} {value}" for what, value in group["machine"].items())
            data = f"{KINDS[group['surround']]} {group['hash'][:16]}"
            rows.append([short_title(key, group), data, " and ".join(precisions), machine])
    return Table(["group", "data, sha256", "precision", "machine"], rows)


def hours(group: dict[str, Any]) -> float:
    """That the steps of all its finished cells took."""
    return sum(cost["step_seconds"] * cost["steps"] for cost in costs_of_cells(group)) / HOUR


def tables(name: str, record: dict[str, Any], key: str, group: dict[str, Any]) -> list[Block]:
    """One group: its numbers, its costs, and which field of the boxes is better."""
    rows = group["rows"]
    if not rows:
        return []
    blocks: list[Block] = [Heading(group["title"])]
    missing = [stage for stage in group["stages"] if not finished(group, stage)]
    if missing:
        blocks.append(Paragraph(f"Not finished with all seeds: {', '.join(missing)}."))
    shown = {row: about for row, about in rows.items() if about["role"] != "preparation"}
    names = list(
        dict.fromkeys(n for about in shown.values() for cell in about["seeds"].values() for n in cell["values"])
    )
    others = [n for n in names if n.startswith(OTHER_CLASSES)]
    names = [n for n in names if n not in others]
    head = ["row", "n", "steps", f"{group['headline']} minus baseline's", *names]
    body = []
    for row, about in shown.items():
        difference = "" if row == "baseline" else marked(gain(group, row))
        lead = [f"{row} ({about['role']})", str(len(about["seeds"])), f"{steps(group, row):,}", difference]
        body.append([*lead, *means(about, names)])
    if "baseline_longer" in rows:
        blocks.append(
            Paragraph(
                "Steps are those of a row and of what it goes on from, its teachers' not counted. Rows are compared "
                "with the baseline, those with as many steps as `baseline_longer` with that."
            )
        )
    blocks.append(Table(head, body))
    if others:
        blocks.append(Table(["row", *others], [[row, *means(about, others)] for row, about in shown.items()]))
    blocks.append(costs(group))
    exchanged = fields(group)
    if exchanged is not None:
        blocks += [
            Paragraph(
                "Which field of the boxes is better than those of `baseline`, whatever the row's steps? Points of car "
                "3D AP at IoU 0.5 when matched boxes exchange one field, the mean of what the baseline gains by the "
                "student's values and the student loses by the baseline's. They do not add up: a box counts once all "
                "its fields are good enough. The remainder is what the single fields, location as its two parts, leave "
                f"of the whole difference. Bold is more than {CLEAR:g} standard errors. The last row is what the true "
                "values would give the baseline."
            ),
            exchanged,
        ]
    more = any(len(about["seeds"]) > group["seeds"] for about in rows.values())
    blocks.append(Command(f"{COMMAND.format(size=name)} --groups {key}{' --all-seeds' if more else ''}"))
    return blocks


def means(row: dict[str, Any], names: Sequence[str]) -> list[str]:
    """A row's columns over seeds; errors are small numbers."""
    return [average(column(row, n)).text(2 if n.endswith("_err") else 1) for n in names]


def costs(group: dict[str, Any]) -> Table:
    """Time of a step and memory relative to the baseline's, and what a picture takes in the end, on one thread."""
    base = group["rows"].get("baseline")
    body = []
    for row, about in group["rows"].items():
        ratios = [
            Estimate.of([
                cell["cost"][what] / base["seeds"][seed]["cost"][what]
                for seed, cell in about["seeds"].items() if base and seed in base["seeds"]
            ]).text(2)
            for what in ("step_seconds", "peak_memory")
        ]  # fmt: skip
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


def sweep(record: dict[str, Any]) -> list[Block]:
    """How much a teacher helps with few and with many training frames."""
    groups = {
        record["size"]["frames"]: record["groups"].get(CONFIRMED_IN),
        **{int(k.removeprefix(SWEEP)): g for k, g in record["groups"].items() if k.startswith(SWEEP)},
    }
    rows = ("teacher", "baseline", CONTROLLED)
    known = {frames: group for frames, group in sorted(groups.items()) if group and set(rows) <= set(group["rows"])}
    if len(known) < 2:
        return []
    body = []
    for frames, group in known.items():
        numbers = [average(headline(group, row)).text() for row in rows]
        body.append([f"{frames:,}", f"{steps(group, CONTROLLED):,}", *numbers, marked(gain(group, CONTROLLED))])
    return [
        Heading("With how many training frames does it help?"),
        Paragraph(
            "MonoSKD on MonoDLE after as many steps, as near as whole epochs come to it; car 3D AP|R40 moderate at IoU "
            "0.5."
        ),
        Table(["training frames", "steps", *rows, f"{CONTROLLED} minus baseline"], body),
    ]
