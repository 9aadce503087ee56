"""One call of the product, in this process: what it gave, said and left, and which promise it broke."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from distill3d.errors import UserError, one_line

#: Longest wait for any answer, s.
PATIENCE = 10.0
#: Longest sentence, characters, with the paths of the box in it.
LONGEST = 1000
PREFIX = "distill3d: "
MOST_PROCESSES = 8
#: Kinds of characters that a terminal would obey or reorder instead of showing.
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
#: What long work says on its way: how far it is, and what it warns of before it goes on.
PROGRESS = re.compile(r"(?!distill3d: ).*: \d+/\d+.*|warning: .*|")


class Hang(BaseException):
    """The answer did not come in time."""


class TooMany(BaseException):
    """A command starts processes without end."""


class Reached(BaseException):
    """The command has accepted its input and begins the work that is not waited for."""


@dataclass
class Answer:
    """What a call came to."""

    code: int | str | None = None
    out: str = ""
    err: str = ""
    error: BaseException | None = None
    seconds: float = 0.0
    warned: list[str] = field(default_factory=list)
    written: dict[str, bytes] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        return self.error is None and not self.code

    def same_as(self, other: Answer) -> str | None:
        """What differs from another answer; None where nothing does."""
        if self.code != other.code:
            return f"exit code {self.code} instead of {other.code} ({self.err.strip() or self.out.strip()[-200:]})"
        if self.out != other.out:
            pairs = zip(self.out.splitlines(), other.out.splitlines(), strict=False)
            first = next((f"{a!r} instead of {b!r}" for a, b in pairs if a != b), "more or fewer lines")
            return f"printed {first}"
        names = [n for n in sorted({*self.written, *other.written}) if self.written.get(n) != other.written.get(n)]
        return (
            f"wrote another {names[0]}: {_first_difference(self.written, other.written, names[0])}" if names else None
        )


def _first_difference(ours: dict[str, bytes], theirs: dict[str, bytes], name: str) -> str:
    """Where two contents part."""
    if not (name in ours and name in theirs):
        return "only one of two was written"
    a, b = ours[name], theirs[name]
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    near = slice(max(at - 30, 0), at + 30)
    return f"byte {at} of {len(a)} and {len(b)}, {a[near]!r} instead of {b[near]!r}"


@contextlib.contextmanager
def few_processes() -> Iterator[None]:
    """Raises ``TooMany`` where the block starts more than a few processes, and ends those that it leaves."""
    start, count = BaseProcess.start, 0

    def counted(process: BaseProcess) -> None:
        nonlocal count
        count += 1
        if count > MOST_PROCESSES:
            raise TooMany
        start(process)

    BaseProcess.start = counted
    try:
        yield
    finally:
        BaseProcess.start = start
        for child in multiprocessing.active_children():
            child.kill()
            child.join()


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Raises ``Hang`` in the block when its time is over."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again and again: a bare except may swallow one
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Stream(io.TextIOWrapper):
    """A stream as the interpreter opens them, in memory."""

    def __init__(self, errors: str) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors=errors, write_through=True)

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode("utf-8", "replace")  # pyright: ignore[reportAttributeAccessIssue]


def call(run: Callable[[list[str]], object], words: list[str], folder: Path, seconds: float | None = None) -> Answer:
    """Calls ``run(words)`` with ``folder`` as current folder; nothing that it raises gets out."""
    answer, out, err = Answer(), _Stream("strict"), _Stream("backslashreplace")
    streams, before, begin = (sys.stdout, sys.stderr), os.getcwd(), time.perf_counter()
    try:
        os.chdir(folder)
        sys.stdout, sys.stderr = out, err
        with warnings.catch_warnings(record=True) as warned, few_processes(), patience(seconds or PATIENCE):
            warnings.simplefilter("always")
            run(words)
            answer.code = 0
    except SystemExit as stop:
        answer.code = stop.code if stop.code is not None else 0
    except Reached:
        answer.code = 0
    except UserError as error:  # of readers, which are called without a command
        answer.code = 2
        err.write(f"{PREFIX}{one_line(str(error))}\n")
    except BaseException as error:
        answer.error = error
    finally:
        sys.stdout, sys.stderr = streams
        os.chdir(before)
    answer.seconds = time.perf_counter() - begin
    answer.out, answer.err = out.text(), err.text()
    answer.warned = [f"{w.category.__name__} at {_short(w.filename)}:{w.lineno}: {w.message}" for w in warned]
    return answer


@dataclass(frozen=True)
class Fault:
    """A promise that was broken: its kind, where (so that faults of one root are one), and what happened."""

    kind: str
    where: str
    what: str

    @property
    def signature(self) -> str:
        return f"{self.kind} | {self.where}"


def fault_of(answer: Answer, lists: bool = False) -> Fault | None:
    """The promise that an answer breaks by itself; ``lists``: the command prints faults, a line each."""
    if isinstance(answer.error, Hang):
        return Fault("hang", innermost(answer.error), f"no answer after {answer.seconds:.1f} s")
    if answer.error is not None:
        kind = type(answer.error).__name__
        text = " ".join(str(answer.error).split())[:200]
        return Fault("traceback", f"{kind} in {innermost(answer.error)}", f"{kind}: {text}")
    if answer.code not in (0, 2):
        return Fault("exit code", str(answer.code)[:80], f"exit code {str(answer.code)[:80]}, {answer.err[-200:]}")
    lines = [line for line in answer.err.splitlines() if not PROGRESS.fullmatch(line)]
    told = [line for line in lines if line.startswith(PREFIX)]
    if "Traceback (most recent call last)" in answer.err + answer.out:
        return Fault("message", "prints a traceback", answer.err[-300:])
    if len(told) > 1 or (answer.code == 2 and len(lines) != len(told)):
        return Fault("message", f"more than a sentence: {_abstract(lines[-1])}", answer.err[:300])
    if answer.code == 2 and not told and not (lists and answer.out):
        return Fault("message", "exit code 2 without a sentence", answer.out[-200:])
    for line in [*told, *(answer.out.splitlines() if lists else ())]:
        if len(line) > LONGEST:
            return Fault("message", f"too long: {_abstract(line)}", f"{len(line)} characters: {line[:200]}")
        if any(unicodedata.category(letter) in HIDDEN for letter in line):
            return Fault("message", f"control characters: {_abstract(line)}", line[:300])
    return None


def innermost(error: BaseException) -> str:
    """The product's innermost function in a traceback, and the line in it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/distill3d/" in f.filename and "/fuzz/" not in f.filename]
    if not own:
        return f"{_short(frames[-1].filename)}:{frames[-1].name}" if frames else "nowhere"
    return f"{_short(own[-1].filename)}:{own[-1].name}"


def _short(filename: str) -> str:
    return filename.rpartition("/distill3d/")[2] if "/distill3d/" in filename else "/".join(filename.split("/")[-2:])


def _abstract(line: str) -> str:
    """A sentence without what differs from input to input."""
    line = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", line.removeprefix(PREFIX))
    line = re.sub(r"\S*/\S*", "PATH", line)
    return re.sub(r"[-+\d.e]*\d[-+\d.e]*", "N", line)[:80]
