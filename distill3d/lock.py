"""One writer at a time in a folder that is filled over hours: a stage's, a synthetic data set's.

A file in the folder says which process that is.  It goes with the process; one that was left by a process of this
machine which is no more, or whose sign of life (the file's time, renewed by the process that holds it) is too old, by
the clock of the file system itself, holds nobody up.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from distill3d.errors import UserError
from distill3d.files import part_of, sweep_below
from distill3d.processes import is_alive, machine, start_of
from distill3d.stop import held

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None

LOCK = ".distill3d-lock"
#: Seconds between signs of life, and how old the last one is when its process counts as gone.
BEAT, SILENCE = 10.0, 120.0


@dataclass(frozen=True)
class Holder:
    """Who writes in a folder."""

    machine: str
    host: str
    process: int
    start: str  # of the process, as ``processes.start_of``
    since: str  # local time, for people

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"


@contextmanager
def only_writer(folder: Path, what: str) -> Iterator[None]:
    """Keeps other processes from writing in ``folder``, which is made where it is absent, during the block.

    ``what`` happens there words the message, such as "is being trained".  At the end goes what the block's processes,
    which have ended by then, left half-written; other names than that and the lock's are not touched.  A folder that
    was made here and is still empty at the end is removed again.

    Raises:
        UserError: another process writes there, or the folder cannot be written.
    """
    made: list[Path] = []
    taken = False
    process = os.getpid()
    mine = Holder(machine(), socket.gethostname(), process, start_of(process), time.strftime("%Y-%m-%d %H:%M:%S"))
    done = threading.Event()
    try:
        try:
            with held():
                made += _make(folder)
                _take(folder, mine, what)
                taken = True
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None
        threading.Thread(target=_beat, args=(folder / LOCK, done), daemon=True).start()
        yield
    finally:
        with held():
            done.set()
            if taken:
                with suppress(OSError):
                    sweep_below(folder)
            if taken and _holder(folder / LOCK) == mine:
                (folder / LOCK).unlink(missing_ok=True)
            for empty in made:
                with suppress(OSError):
                    empty.rmdir()


def forget_dead_writer(folder: Path) -> None:
    """Removes the lock that a process left which is no more, in a folder where nothing is left to be done."""
    path = folder / LOCK
    if path.exists():
        with suppress(OSError), held(), _one_at_a_time(folder):
            other = _holder(path)
            here = other is not None and other.machine == machine()
            gone = not is_alive(other.process, other.start) if other is not None and here else _silence(path) >= SILENCE
            if gone:
                _remove_stale(path, other)


def _make(folder: Path) -> list[Path]:
    """Makes a folder; gives those that were absent, the deepest first."""
    absent = [f for f in (folder, *folder.parents) if not f.exists()] if "\0" not in str(folder) else []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be made ({getattr(error, 'strerror', error)})") from None
    return absent


def _take(folder: Path, mine: Holder, what: str) -> None:
    path = folder / LOCK
    with _one_at_a_time(folder):
        while not _placed(path, mine):
            other = _holder(path)
            if other is None:
                if path.exists() and _silence(path) < SILENCE:
                    raise UserError(f"{folder}: {what} by a process that cannot be told ({path.name} is damaged)")
            elif other.machine == mine.machine:
                if is_alive(other.process, other.start):
                    raise UserError(f"{folder}: {what} by {other}: wait until it is done, or stop it")
            elif (silence := _silence(path)) < SILENCE:
                raise UserError(
                    f"{folder}: {what} by {other}, whose last sign of life is {silence:.0f} s old: wait until it is "
                    f"done, or stop it; after {SILENCE:.0f} s of silence it counts as gone"
                )
            _remove_stale(path, other)


def _placed(path: Path, mine: Holder) -> bool:
    """Puts the lock there, whole, if there is none."""
    if not path.exists():
        fresh = part_of(path)
        try:
            fresh.write_text(json.dumps(asdict(mine)), encoding="utf-8")
            os.link(fresh, path)
            return True
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: taken in one step, filled in the next
            with suppress(FileExistsError):
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
                os.write(descriptor, json.dumps(asdict(mine)).encode())
                os.close(descriptor)
                return True
        finally:
            fresh.unlink(missing_ok=True)
    return False


def _remove_stale(path: Path, judged: Holder | None) -> None:
    """Takes a stale lock away, unless it is another one by now."""
    aside = part_of(path)
    with suppress(FileNotFoundError):
        path.rename(aside)
        if _holder(aside) != judged:
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Of several processes of this machine, one looks at the lock at a time, where the system allows it."""
    descriptor = None
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _holder(path: Path) -> Holder | None:
    """Who a lock names; None where there is none or it is damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        texts = {name: str(values[name]) for name in ("machine", "host", "start", "since")}
        return Holder(process=int(values["process"]), **texts)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _silence(path: Path) -> float:
    """Seconds since a lock's last sign of life, by the clock of its file system."""
    probe = part_of(path)
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except OSError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with suppress(OSError):
            os.utime(path)
