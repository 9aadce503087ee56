"""Folders of synthetic data: one folder, one set of settings; filled in parallel, and completed after a kill."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..errors import UserError
from ..files import read_json, sweep_below, write_text
from ..lock import only_writer
from ..settings import Between
from ..stop import end_with

Settings = TypeVar("Settings")
DrawSeed = Annotated[int, Between(0, 2**62)]
WriterWorkers = Annotated[int, Between(1, 256)]

RECORD = "synth.json"


@dataclass(frozen=True)
class Writing:
    """What a writer is asked for beside the streets' settings."""

    seed: DrawSeed
    workers: WriterWorkers | None = None


def generator_hash() -> str:
    """Hash of the source of this package: frames of one hash are comparable."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def claimed(out: Path, record: Mapping[str, object], data: Sequence[str]) -> Iterator[None]:
    """In the block a folder is this process's alone, with the settings and the generator recorded in it.

    data: the sub-folders that are going to be filled.

    Raises UserError for a folder of other settings or of another generator, for one that holds data of its own, and for
    one that another process is filling.
    """
    record = {"layout": record["layout"], "generator": generator_hash(), **record}
    record = json.loads(json.dumps(record))  # tuples become lists, as they come back from the file
    _is_ours(out, record, data)  # before anything is made there
    with only_writer(out, "is being filled"):
        if not _is_ours(out, record, data):
            write_text(out / RECORD, json.dumps(record, indent=1) + "\n")
        sweep_below(out)
        yield


def _is_ours(out: Path, record: Mapping[str, object], data: Sequence[str]) -> bool:
    """Whether a folder was begun with these settings; False for one where nothing stands yet.

    Raises UserError for others.
    """
    path = out / RECORD
    if path.exists():
        former = read_json(path)
        if not isinstance(former, dict):
            raise UserError(f"{path}: not a readable record of synthetic streets; choose another folder.")
        for key in record:
            if json.dumps(former.get(key)) != json.dumps(record[key]):  # unlike dicts, splits have an order
                raise UserError(
                    f"{path}: the folder was made with another {key}; choose another folder or delete this one."
                )
        return True
    for name in data:
        if (out / name).exists() and any((out / name).iterdir()):
            raise UserError(
                f"{out}: holds a {name} folder without {RECORD}; choose another folder, nothing was written."
            )
    return False


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


def settings_in_order(
    settings: Settings, by_split: Mapping[str, Settings] | None, splits: Mapping[str, int], *, writer: str
) -> list[Settings]:
    """The settings of each unit: those of its split where by_split has some, else the settings of all; writer words the
    message.

    Raises UserError where by_split names a split that there is not.
    """
    by_split = by_split or {}
    for name in by_split:
        if name not in splits:
            raise UserError(f"{writer}: configs names the split {name!r}; the splits are {', '.join(splits)}.")
    return [by_split.get(name, settings) for name, size in splits.items() for _ in range(size)]


def content_hash(path: Path) -> str:
    """SHA-256 (64 hexadecimal digits) of the data of a finished set: what names it in a benchmark's record.

    Hashed are lines of the form of sha256sum, "<hash of a file>  <its name below path>", in the names' order. Left out
    are the record of settings, which holds a hash of the generator's source, and what is hidden: caches and leftovers.
    Images depend on numpy's, Pillow's and Embree's versions in the last bit, so hashes of one machine are comparable.

    Raises UserError for a folder without data.
    """
    names = sorted(p.relative_to(path).as_posix() for p in Path(path).rglob("*") if p.is_file())
    names = [name for name in names if name != RECORD and not any(part.startswith(".") for part in name.split("/"))]
    if not names:
        raise UserError(f"{path}: holds no data to hash; expected a folder of synthetic streets.")
    digest = hashlib.sha256()
    for name in names:
        with (Path(path) / name).open("rb") as file:
            digest.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n".encode())
    return digest.hexdigest()


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
    theirs, ours = context.Pipe(duplex=False)
    begin: Callable[..., None] = _begin_worker  # Pipe's type is another on Windows
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=begin, initargs=(theirs,))
    try:
        with _deaf():
            tasks = [pool.submit(make, indices[i : i + chunk]) for i in range(0, len(indices), chunk)]
        for task in as_completed(tasks):
            yield task.result()
        pool.shutdown()
    except BrokenProcessPool:
        raise UserError(
            "a process that makes synthetic streets was ended from outside, most likely for want of memory: give fewer "
            "--workers; the same command goes on where it was"
        ) from None
    finally:
        ours.close()  # which ends the workers, wherever they are
        pool.shutdown(wait=True, cancel_futures=True)
        theirs.close()


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started in the block never hear of Ctrl-C, not even while they start: it is for this one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _begin_worker(pipe: Connection) -> None:
    """Ends this process, whatever it is doing, when the one that started it ends or closes the pipe."""
    end_with(pipe.fileno(), lambda: os._exit(1))
    _kept.append(pipe)


_kept: list[Connection] = []  # open as long as the process lives
