"""The records as a page; no number on it is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill3d.files import write_text

from ..document import Block, Command, Heading, Paragraph, Points, Table, markdown

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "speed.md"
TITLE = "How fast is everything?"
DEVICES = {"cpu": "On the CPU", "cuda": "On the GPU"}
COMMAND = "python -m benchmarks.speed --device {device}"
GAPS = 3  # that the page begins with
GIGA, MEGA, MILLI, MICRO = 1e9, 1e6, 1e-3, 1e-6
READING = (
    "Times are those of the fastest run. Beside each stands the least that it could take: for every operator that "
    "PyTorch calls the longer of its arithmetic, at the machine's best rate for its precision, and of reading its "
    "inputs and writing its outputs once, at the machine's best rate of copying, summed; but no less than as many "
    "calls take as there are operators. These rates are measured in the same run, with the same threads. The sum "
    "assumes that nothing stays in a cache from one operator to the next and that no two are fused, so a time can be "
    "below it. Of the lift and of pooling the traffic is that of their inputs, outputs and gradients alone, though "
    "they look each row up many times. Look-ups in tables, sampling and element-wise arithmetic are not counted as "
    "arithmetic."
)
WAITING = (
    "While the host waits for an accelerator, it prepares nothing, and then the accelerator waits for it. Counted are "
    "the values that the host reads, the shapes that depend on values and the copies that wait, for a training step "
    "and for decoding a batch, on a device that is pretended on the CPU: no times. Teachers that keep their answers "
    "compute them in the first epoch, frame by frame. Every ten steps, and before anything is logged or saved, one "
    "wait more reads the losses. The matching of queries and objects, of MonoDETR and BEVFormer, is done by the host. "
    "Soft ranks of what is no single block, which MonoSKD's published strength never makes of feature maps, wait in "
    "every round."
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Gap:
    """How far a task is from the least that it could take."""

    row: Row
    times: float
    text: str


def read_records(folder: Path = RECORDS, which: str = "") -> dict[str, dict[str, Any]]:
    """Records by device, ``which`` being "_before" for those to compare with; of a device that was never measured there
    is none."""
    paths = {device: folder / f"speed_{device}{which}.json" for device in DEVICES}
    return {device: json.loads(path.read_text()) for device, path in paths.items() if path.exists()}


def write_page(records: dict[str, dict[str, Any]], before: dict[str, dict[str, Any]], path: Path = PAGE) -> Path:
    write_text(path, markdown(TITLE, render(records, before)))
    return path


def render(records: dict[str, dict[str, Any]], before: dict[str, dict[str, Any]]) -> list[Block]:
    blocks: list[Block] = []
    for device, record in records.items():
        found = gaps(record)[:GAPS]
        if found:
            blocks += [Paragraph(f"{DEVICES[device]}, farthest from what the machine could do:"),
                       Points([gap.text for gap in found])]  # fmt: skip
    blocks.append(Paragraph(READING))
    for device, record in records.items():
        blocks += [Heading(DEVICES[device]), Command(COMMAND.format(device=device)), limits_table(record)]
        blocks += mended(before[device], record) if device in before else []
        for name, part in record["parts"].items():
            blocks += TABLES[name](part["tasks"])
            blocks += failures(part["tasks"])
    return [*blocks, *elsewhere()]


# ---------------------------------------------------------------------------------------------------------- the gaps


def gaps(record: dict[str, Any]) -> list[Gap]:
    """Of what the library does as it is used, the widest first; of each group its widest."""
    widest: dict[tuple[str, str], Gap] = {}
    for part, recorded in record["parts"].items():
        for row in recorded["tasks"]:
            gap = gap_of(row, recorded["tasks"]) if row["usual"] else None
            key = part, row["group"]
            if gap is not None and (key not in widest or gap.times > widest[key].times):
                widest[key] = gap
    return sorted(widest.values(), key=lambda gap: -gap.times)


def gap_of(row: Row, rows: Sequence[Row]) -> Gap | None:
    """None where nothing is known of the least."""
    least, why = least_of(row, rows)
    if least is None or "seconds" not in row:
        return None
    times = row["seconds"] / least
    name = f"{row['group']}, {row['way']}" if row["way"] else row["group"]
    spent = f"{duration(row['seconds'] / row['items'])} a {row['unit']}, at least {duration(least / row['items'])}"
    text = f"**{name}** ({row['size']}): {times:.1f} times the least, {spent}, the limit being {why}"
    return Gap(row, times, text)


def least_of(row: Row, rows: Sequence[Row]) -> tuple[float | None, str]:
    """The least seconds of a run, and what it is that cannot take less."""
    if row["at_least"] is not None:
        part = next(r for r in rows if r["group"] == row["group"] and r["way"] == row["at_least"])
        return part["seconds"], row["at_least"]
    return row.get("limit"), row.get("limited_by", "")


def mended(before: dict[str, Any], after: dict[str, Any]) -> list[Block]:
    """What was made faster: the rows of both records, as the library does them."""
    lines = []
    for part, old in before["parts"].items():
        new = {(row["group"], row["way"]): row for row in after["parts"].get(part, {"tasks": []})["tasks"]}
        for row in old["tasks"]:
            now = new.get((row["group"], row["way"]))
            if row["usual"] and now is not None and "seconds" in row and "seconds" in now:
                ratio = f"{row['seconds'] / now['seconds']:.2f}"
                lines.append([row["group"], row["way"], duration(row["seconds"]), duration(now["seconds"]), ratio])
    return [Paragraph("What was mended:"), Table(["", "way", "before", "now", "times as fast"], lines)] if lines else []


# --------------------------------------------------------------------------------------------------------- the tables


def limits_table(record: dict[str, Any]) -> Table:
    head = ["measured beside", "threads", "fp32, GFLOP/s", "bf16, GFLOP/s", "copying, GB/s", "a call, us", "machine"]
    rows = []
    for name, part in record["parts"].items():
        limits, machine = part["limits"], part["machine"]
        flops = [f"{limits['flops'][p] / GIGA:,.0f}" for p in ("fp32", "bf16")]
        described = f"{machine.get('gpu', machine['cpu'])}, torch {machine['torch']}"
        rows.append([name, str(machine["threads"]), *flops, f"{limits['bandwidth'] / GIGA:,.1f}",
                     f"{limits['call'] / MICRO:.1f}", described])  # fmt: skip
    return Table(head, rows)


def operators_table(title: str, rows: Sequence[Row]) -> list[Block]:
    """What is counted, beside the limits."""
    head = ["", "size", "way", "time", "GFLOP", "GFLOP/s (of the best)", "GB/s (of copying)", "operators", "least",
            "times the least", "limit"]  # fmt: skip
    lines = []
    for row in rows:
        if "limit" not in row or "seconds" not in row:
            continue
        seconds = row["seconds"]
        lines.append([
            row["group"], row["size"], row["way"], duration(seconds), f"{row['flops'] / GIGA:,.1f}",
            f"{row['flops'] / seconds / GIGA:,.0f} ({row['arithmetic'] / seconds:.0%})",
            f"{row['bytes'] / seconds / GIGA:,.1f} ({row['memory'] / seconds:.0%})",
            f"{row['operators']:,}", duration(row["limit"]), f"{seconds / row['limit']:.1f}", row["limited_by"],
        ])  # fmt: skip
    memory = peak_memory(rows)
    return [Heading(title), Table(head, lines), *([memory] if memory else [])]


def peak_memory(rows: Sequence[Row]) -> Table | None:
    """Of a GPU."""
    known = [[row["group"], row["way"], f"{row['peak_mib']:,.0f}"] for row in rows if "peak_mib" in row]
    return Table(["", "way", "most memory, MiB"], known) if known else None


def loading_table(rows: Sequence[Row]) -> list[Block]:
    head = ["", "size", "way", "time of one", "a second", "times the least", "the least being"]
    lines = []
    for row in rows:
        each = row["seconds"] / row["items"]
        gap = gap_of(row, rows)
        lines.append([row["group"], row["size"], row["way"], duration(each), f"{1 / each:,.1f}",
                      f"{gap.times:.1f}" if gap else "", row["at_least"] or ""])  # fmt: skip
    return [Heading("Loading and generating"), Table(head, lines)]


def ways_table(title: str, rows: Sequence[Row]) -> list[Block]:
    """Groups against their ways: the time, and how many times as fast as the first way."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    lines = []
    for group, of_group in grouped(rows).items():
        first = next(iter(of_group.values()))
        cells = [compared(of_group.get(way), first) for way in ways]
        lines.append([group, first["size"], *cells])
    return [Heading(title), Table(["", "size", *ways], lines)]


def compared(row: Row | None, first: Row) -> str:
    if row is None:
        return ""
    if "failed" in row:
        return "failed"
    if row is first:
        return duration(row["seconds"])
    return f"{duration(row['seconds'])} ({first['seconds'] / row['seconds']:.2f} x)"


def grouped(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row["group"], {})[row["way"]] = row
    return found


def variants_tables(title: str, rows: Sequence[Row]) -> list[Block]:
    """Groups in all ways, what compiling them took, and what is counted of those that no other table counts."""
    compiled = [row for row in rows if "graph_breaks" in row]
    lines = [[row["group"], row["way"], duration(row["first"]), str(row["graph_breaks"]), row["first_break"]]
             for row in compiled]  # fmt: skip
    table = [Paragraph("What compiling took (the first run), and where graphs broke:"),
             Table(["", "way", "first run", "breaks", "the first"], lines)]  # fmt: skip
    rest = [row for row in rows if row["usual"]]
    return [
        *ways_table(title, rows), *(table if lines else []),
        *(operators_table(f"{title}, beside the limits", rest) if rest else []),
    ]  # fmt: skip


def failures(rows: Sequence[Row]) -> Iterator[Block]:
    failed = [f"{row['group']}, {row['way']}: {row['failed']}" for row in rows if "failed" in row]
    if failed:
        yield Paragraph("What failed:")
        yield Points(failed)


TABLES = {
    "loading": loading_table,
    "detectors": lambda rows: operators_table("Detectors", rows),
    "deployed": lambda rows: ways_table("Deployed: one moment, from picture to boxes", rows),
    "terms": lambda rows: variants_tables("Methods' terms in several ways", rows),
    "ground": lambda rows: variants_tables("To the ground in several ways: lift, pooling, sparse convolution", rows),
    "students": lambda rows: variants_tables("Students' forward and backward pass in several ways", rows),
    "students_above": lambda rows: variants_tables("The same of students that look from above", rows),
}


# ------------------------------------------------------------------------------------------------ measured by others


def elsewhere(folder: Path = RECORDS) -> list[Block]:
    """Training steps of methods and evaluation, which have benchmarks of their own."""
    blocks: list[Block] = []
    if (recorded := read(folder / "methods.json")) is not None:
        for device, bases in recorded.items():
            blocks.append(Heading(f"Training steps of methods, {device}"))
            lines = [
                [base, name, duration(found["seconds"][name]), f"{relative:.2f}"]
                for base, found in bases.items()
                for name, relative in found["time_relative_to_plain"].items()
            ]
            blocks += [Command("python benchmarks/methods.py"), Table(["base", "stage", "step", "of plain"], lines)]
    lines = []
    if (kitti := read(folder / "evaluate_kitti.json")) is not None:
        lines.append(["KITTI", f"{kitti['frames']:,} frames", duration(kitti["seconds"]), "evaluate_kitti.py"])
    if (nuscenes := read(folder / "nuscenes_eval.json")) is not None:
        size = f"{nuscenes['samples']:,} samples, {nuscenes['predictions']:,} boxes"
        lines.append(["nuScenes", size, duration(nuscenes["seconds"]), "nuscenes_eval.py"])
    if lines:
        blocks += [Heading("Evaluation"), Table(["metric", "size", "time", "benchmark"], lines)]
    if (waits := read(folder / "waits.json")) is not None:
        blocks += waits_of_the_host(waits["stages"], (read(folder / "waits_before.json") or {"stages": []})["stages"])
    return blocks


def waits_of_the_host(rows: Sequence[Row], before: Sequence[Row]) -> list[Block]:
    """How often each stage waits for the device, beside what it was."""
    was = {(row["recipe"], row["stage"]): row for row in before}
    lines = []
    for row in rows:
        old = was.get((row["recipe"], row["stage"]), {"step": "", "decode": ""})
        taught = f"{row['detector']}, {row['method']}" if row["method"] else row["detector"]
        numbers = (old["step"], row["first_epoch"], row["step"], old["decode"], row["decode"])
        lines.append([row["recipe"], row["stage"], taught, *map(str, numbers)])
    head = ["recipe", "stage", "detector", "a step, before", "a step, first epoch", "a step", "decoding, before",
            "decoding"]  # fmt: skip
    heading, command = Heading("Waits of the host for an accelerator"), Command("python -m benchmarks.waits")
    return [heading, command, Paragraph(WAITING), Table(head, lines)]


def read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def duration(seconds: float) -> str:
    """With three digits and a unit."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds / MILLI:.3g} ms" if seconds >= MILLI else f"{seconds / MICRO:.3g} us"
