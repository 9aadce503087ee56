"""Folders of synthetic data: one folder, one set of settings; filled in parallel, and completed after a kill."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..errors import UserError

RECORD = "synth.json"
PART = ".part"  # ending of files that are being written


def generator_hash() -> str:
    """Hash of the source of this package: frames of one hash are comparable."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write through a temporary file, so that no half-written file ever carries the name."""
    part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    write(part)
    os.replace(part, path)


def replace_text(path: Path, text: str) -> None:
    """Write a text file through a temporary file, with the same line ends on every system."""
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8", newline="\n"))


def remove_leftovers(folder: Path) -> None:
    """Delete what killed runs left half-written anywhere below a folder."""
    for leftover in folder.rglob(f".*{PART}"):
        leftover.unlink(missing_ok=True)


def claim(out: Path, record: Mapping[str, object], data: Sequence[str]) -> None:
    """Record the settings and the generator in a folder, or refuse one that was made with others.

    data: the sub-folders that are going to be filled.

    Raises UserError for a folder of other settings or of another generator, and for one that holds data of its own.
    """
    record = {"layout": record["layout"], "generator": generator_hash(), **record}
    record = json.loads(json.dumps(record))  # tuples become lists, as they come back from the file
    path = out / RECORD
    if path.exists():
        try:
            former = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: not a readable record of synthetic streets; choose another folder.") from error
        for key in record:
            if former.get(key) != record[key]:
                raise UserError(
                    f"{path}: the folder was made with another {key}; choose another folder or delete this one."
                )
        return
    for name in data:
        if (out / name).exists() and any((out / name).iterdir()):
            raise UserError(
                f"{out}: holds a {name} folder without {RECORD}; choose another folder, nothing was written."
            )
    out.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(record, indent=1) + "\n")


def split_sizes(
    total: int | None, val_share: float, splits: Mapping[str, int] | None, *, writer: str, unit: str
) -> dict[str, int]:
    """How many units (frames or scenes) each split gets, in order; writer and unit word the messages.

    Raises UserError where neither or contradictory numbers are given.
    """
    if splits is None:
        if total is None:
            raise UserError(f"{writer}: give either {unit} or splits.")
        if not 0 <= val_share <= 1:
            raise UserError(f"{writer}: val_share must lie in 0..1, not {val_share}.")
        train = round(total * (1 - val_share))
        splits = {"train": train, "val": total - train}
    elif total is not None and total != sum(splits.values()):
        raise UserError(f"{writer}: the splits hold {sum(splits.values())} {unit}, but {unit} is {total}.")
    if any(size < 0 for size in splits.values()) or sum(splits.values()) < 1:
        raise UserError(f"{writer}: at least one of {unit} is needed, and no split may be negative.")
    return dict(splits)


def split_ranges(splits: Mapping[str, int]) -> dict[str, range]:
    """Indices of each split: one after another in the order given."""
    ranges, start = {}, 0
    for name, size in splits.items():
        ranges[name] = range(start, start + size)
        start += size
    return ranges


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_all(
    make: Callable[[list[int]], int], missing: list[int], *, total: int, chunk: int, workers: int, unit: str,
    progress: bool,
) -> None:  # fmt: skip
    """Make what is missing of `total` units (frames or scenes), with a progress bar on stderr.

    make: makes the units of some indices and returns their number; it is sent to other processes unless workers, or
    the number of units that are missing, is 1. chunk: units per task. workers: most processes.
    """
    bar = Progress(
        TextColumn("synthetic streets"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(), TimeRemainingColumn(), console=Console(file=sys.stderr), disable=not progress,
    )  # fmt: skip
    with bar:
        task = bar.add_task(unit, total=total, completed=total - len(missing), rate="")
        for made in _run(make, missing, chunk, min(workers, len(missing))):
            bar.advance(task, made)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:.1f} {unit}/s" if speed else "")


def _run(make: Callable[[list[int]], int], indices: list[int], chunk: int, workers: int) -> Iterator[int]:
    """Make units in this process or in others; yields how many were finished at a time."""
    if workers <= 1:
        for index in indices:
            yield make([index])
        return
    # "spawn" because the caller may hold threads (a training framework does), which a fork would not survive.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        tasks = [pool.submit(make, indices[i : i + chunk]) for i in range(0, len(indices), chunk)]
        try:
            for task in as_completed(tasks):
                yield task.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
