"""Commands that are ended at random moments: what they leave, and whether the same command then gives the same result.

Commands run in forks of a process that has imported everything already: in the four seconds that a start of Python and
torch take nothing is written, so that kills would mostly hit nothing.  Only its own work is forked, never a process
that has computed anything (``Bench`` has all data made by forks, too).
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from streets import CANVAS, small_recipe

import distill3d.autolabel
import distill3d.diagnose
import distill3d.evaluate.kitti
import distill3d.export
import distill3d.predict
import distill3d.synth.nuscenes_writer
import distill3d.synth.writer
import distill3d.train.stages
import distill3d.view.draw
import distill3d.view.report  # noqa: F401 (what the commands import)
from distill3d.cli import main
from distill3d.files import PART_BEGIN, PART_END, RECORD
from distill3d.lock import LOCK
from distill3d.recipes import RECIPES
from distill3d.train.recipe import EvaluationConfig, Recipe

#: Registered while the faults are looked for: trains within a second or two.
RECIPE = "faults"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
#: A command that was asked to end has ended after this time (s), and its last worker after that much more.
PATIENCE, AFTERMATH = 10.0, 3.0
LIMIT = 300.0  # s that any command may take
NEWBORN = 0.02  # s in which a forked process may not have come to handle signals yet


def recipe() -> Recipe:
    """Two steps an epoch, each epoch evaluated."""
    return replace(small_recipe(Path(), epochs=3), name=RECIPE, evaluation=EvaluationConfig(every=1, batch_size=4))


@dataclass(frozen=True)
class Case:
    """A command, in a folder of its own."""

    name: str
    arguments: Callable[[Path], list[str]]  # of the bench's folder
    share: int  # of the kills
    out: tuple[str, ...]  # what is compared, as patterns in its folder
    goes_on: bool = False  # called again, it does what is left
    on_run: bool = False  # looks at a trained run, though it goes on; those that do not go on all do
    former: Callable[[Path], list[str]] | None = None  # a command that leaves older outputs in the same places


def train(*only: str) -> Callable[[Path], list[str]]:
    return lambda bench: [
        "train", RECIPE, "--data-root", str(bench / "streets"), "--out", "runs", "--only", *only, "--checkpoint-steps",
        "1", "--log-steps", "2", "--no-progress", "--no-tensorboard", "--threads", "1", "--accelerator", "cpu",
    ]  # fmt: skip


def synth(*more: str, frames: int = 5) -> list[str]:
    size = ["--street.width", str(CANVAS[0]), "--street.height", str(CANVAS[1]), "--street.rays-per-pixel-side", "1"]
    return ["synth", "streets", "--frames", str(frames), "--seed", "4", *size, *more]


def surround(bench: Path) -> list[str]:
    size = ["--drive.width", "64", "--drive.height", "32", "--drive.frames-per-scene", "2"]
    return ["synth", "drives", "--layout", "nuscenes", "--frames", "4", "--workers", "1", *size]


def trained(bench: Path) -> Path:
    return bench / "trained" / "runs" / RECIPE


def evaluation(scale: float) -> Callable[[Path], list[str]]:
    return lambda bench: [
        "eval", "kitti", "--labels", str(bench / "streets/training/label_2"), "--predictions",
        str(trained(bench) / "baseline/predictions"), "--min-height-scale", str(scale), "--json", "numbers.json",
    ]  # fmt: skip


def prediction(score: float) -> Callable[[Path], list[str]]:
    def arguments(bench: Path) -> list[str]:
        pictures = sorted((bench / "streets/training/image_2").glob("*.png"))
        return ["predict", str(trained(bench) / "baseline"), *map(str, pictures), "--intrinsics", "93,93,80,20",
                "--out", "found", "--score", str(score)]  # fmt: skip

    return arguments


CASES = {
    case.name: case
    for case in (
        Case("train", train("baseline"), 60, ("runs/**/*",), goes_on=True),
        Case("train two stages", train("teacher", "monoskd"), 25, ("runs/**/*",), goes_on=True),
        Case("synth", lambda bench: synth("--workers", "1"), 25, ("streets/**/*",), goes_on=True),
        Case("synth, 2 workers", lambda bench: synth("--workers", "2"), 15, ("streets/**/*",), goes_on=True),
        Case("synth nuscenes", surround, 10, ("drives/**/*",), goes_on=True),
        Case(
            "autolabel",
            lambda bench: ["autolabel", str(trained(bench) / "teacher"), str(bench / "streets"), "--out", "labels",
                           "--score", "0"],
            15, ("labels/**/*",), goes_on=True, on_run=True,
        ),
        Case("eval --json", evaluation(1.0), 15, ("numbers.json",), former=evaluation(0.5)),
        Case("predict", prediction(0.0), 15, ("found/*",), former=prediction(0.9)),
        Case(
            "report", lambda bench: ["report", str(trained(bench)), "--gallery", "2"], 15, ("report.html",),
            former=lambda bench: ["report", str(trained(bench)), "--gallery", "0"],
        ),
        Case(
            "diagnose",
            lambda bench: ["diagnose", str(trained(bench)), "--out", "page.html"], 10, ("page.*",),
            former=lambda bench: ["diagnose", str(trained(bench)), "--out", "page.html", "--margin", "0.5"],
        ),
        Case(
            "export",
            lambda bench: ["export", str(trained(bench) / "monoskd"), "--onnx", "net.onnx"], 10, ("net.onnx",),
            former=lambda bench: ["export", str(trained(bench) / "baseline"), "--onnx", "net.onnx"],
        ),
    )
}  # fmt: skip


@dataclass
class Command:
    """A command under way in a fork, in a session of its own."""

    started: ClassVar[int] = 0
    process: int
    log: Path
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, arguments: list[str], folder: Path) -> Command:
        folder.mkdir(parents=True, exist_ok=True)
        cls.started += 1
        log = folder.with_name(f"{folder.name}.{cls.started}.log")
        sys.stdout.flush()
        process = os.fork()
        if process:
            return cls(process, log)
        code = 1
        try:
            os.setsid()
            os.chdir(folder)
            file = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(file, stream)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
            main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def wait(self, limit: float = LIMIT) -> int | None:
        """The exit code, negative for a signal; None where it did not end in time."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            done, status = os.waitpid(self.process, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        return None

    def others(self) -> list[int]:
        """Processes of its session that are alive after it."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == self.process and fields[0] != "Z":
                    found.append(int(entry.name))
        return found

    def said(self) -> str:
        # Killed before it opened the file, it said nothing.
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Bench:
    """A folder with data, a trained run, and of each command what it gives when nothing disturbs it."""

    def __init__(self, folder: Path, streets: Path | None = None) -> None:
        self.folder = folder
        self.references: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {}
        RECIPES[RECIPE] = recipe
        torch.set_num_threads(1)
        if streets is not None:
            (folder / "streets").symlink_to(streets)
        else:  # eight frames to train and four to evaluate
            self.run(synth("--workers", "1", frames=12), folder)

    def run(self, arguments: list[str], folder: Path) -> float:
        """A command to its end; gives its time (s)."""
        command = Command.start(arguments, folder)
        code = command.wait()
        assert code == 0, f"{arguments[0]} ended with {code}: {command.said()}"
        return time.monotonic() - command.began

    def reference(self, case: Case) -> tuple[dict[str, Any], dict[str, Any], float]:
        """Older outputs, those of an undisturbed call, and its time (s)."""
        if case.name not in self.references:
            if (case.on_run or not case.goes_on) and not trained(self.folder).exists():
                self.run(train("teacher", "baseline", "monoskd")(self.folder), self.folder / "trained")
            folder = self.folder / "references" / case.name
            former = self.former(case, folder)
            seconds = self.run(case.arguments(self.folder), folder)
            self.references[case.name] = former, content(folder, case.out), seconds
        return self.references[case.name]

    def former(self, case: Case, folder: Path) -> dict[str, Any]:
        folder.mkdir(parents=True)
        if case.former is not None:
            self.run(case.former(self.folder), folder)
        return content(folder, case.out)


def content(folder: Path, patterns: tuple[str, ...]) -> dict[str, Any]:
    """Every file that matters, by name: its bytes, or what of them does not depend on the moment."""
    found: dict[str, Any] = {}
    for path in sorted(p for pattern in patterns for p in folder.glob(pattern)):
        # What a killed process left half-written is looked for by itself: it goes at the next start.
        if path.is_file() and path.name != RECORD and not path.name.endswith(PART_END):
            found[str(path.relative_to(folder))] = _content(path)
    return found


def _content(path: Path) -> Any:
    if path.name == "metrics.jsonl":
        lines = map(json.loads, path.read_text().splitlines())
        return [line for line in lines if line["kind"] != "cost"]
    if path.name == "last.ckpt":
        return _frozen(torch.load(path, weights_only=True))
    return path.read_bytes()


def _frozen(value: Any) -> Any:
    """A state whose tensors are bytes; how many lines the log had depends on how often times were taken, and learning
    rates and betas are those of the last step that its own process took: each step sets them anew."""
    if isinstance(value, dict):
        return {key: _frozen(entry) for key, entry in value.items() if key not in ("logged", "lr", "betas")}
    if isinstance(value, list | tuple):
        return [_frozen(entry) for entry in value]
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value


def leftovers(folder: Path) -> dict[int, str]:
    """What is neither an output nor a record of outputs, by inode."""
    names = (f"{PART_BEGIN}*{PART_END}", f"{LOCK}*", "*.tmp")
    return {p.stat().st_ino: str(p.relative_to(folder)) for name in names for p in folder.rglob(name)}


@dataclass
class Kill:
    """One kill and all that was wrong after it."""

    case: str
    signal: str
    after: float  # s
    hit: bool  # the command was still at work
    faults: list[str]


def kill_once(bench: Bench, case: Case, folder: Path, draw: random.Random) -> Kill:
    """Starts a command, ends it at a random moment and looks at what it left."""
    former, whole, seconds = bench.reference(case)
    number, after = draw.choice(SIGNALS), draw.uniform(0, 1.05 * seconds)
    # Left by a process that was killed before, and there until a command gets as far as to take it away.
    before = leftovers(folder) if folder.exists() else {}
    command = Command.start(case.arguments(bench.folder), folder)
    time.sleep(max(0.0, command.began + after - time.monotonic()))
    os.kill(command.process, number)
    code = command.wait(PATIENCE)
    faults = []
    if code is None:
        faults.append(f"did not end within {PATIENCE:g} s")
        os.kill(command.process, signal.SIGKILL)
        command.wait()
    expected = {signal.SIGKILL: -9}.get(number, 128 + number)
    # As of any program, the first moments of a process are the system's: it ends without a word.
    unborn = code == -number and after < NEWBORN and not command.said()
    if code not in (expected, 0, None) and not unborn:
        faults.append(f"exit code {code}, said {command.said()[-300:]!r}")
    end = time.monotonic() + AFTERMATH
    while command.others() and time.monotonic() < end:
        time.sleep(0.02)
    if others := command.others():
        faults.append(f"{len(others)} processes live on")
        for other in others:
            os.kill(other, signal.SIGKILL)
    said = command.said()
    if "Traceback" in said:
        faults.append(f"traceback: {said[-2000:]}")
    if code == expected and number != signal.SIGKILL:
        if said.count(f"was stopped by {number.name}; ") != 1:
            faults.append(f"said {said[-300:]!r}")
        if left := [name for inode, name in leftovers(folder).items() if inode not in before]:
            faults.append(f"leftovers {left}")
    if not case.goes_on:
        for name, value in content(folder, case.out).items():
            if value not in (former.get(name), whole.get(name)):
                faults.append(f"{name} is neither the old nor the new one")
        faults += [f"{name} is lost" for name in former if not (folder / name).exists()]
    return Kill(case.name, number.name, after, code != 0, faults)


def finish(bench: Bench, case: Case, folder: Path) -> list[str]:
    """Calls the command again, undisturbed: what differs from an undisturbed call, and what is left over."""
    command = Command.start(case.arguments(bench.folder), folder)
    code = command.wait()
    if code != 0:
        return [f"called again it ended with {code}: {command.said()[-2000:]}"]
    found, whole = content(folder, case.out), bench.reference(case)[1]
    differ = sorted(name for name in found.keys() | whole.keys() if found.get(name) != whole.get(name))
    differ = [name + _parts(found.get(name), whole.get(name)) for name in differ[:5]]
    faults = [f"called again it gives other content: {differ}"] if differ else []
    if left := leftovers(folder):
        faults.append(f"leftovers after all {[*left.values()]}")
    return faults


def _parts(found: Any, whole: Any) -> str:
    """Of a state, what differs."""
    if not isinstance(found, dict) or not isinstance(whole, dict):
        return ""
    return f": {sorted(key for key in found.keys() | whole.keys() if found.get(key) != whole.get(key))}"


def campaign(bench: Bench, case: Case, kills: int, draw: random.Random) -> Iterator[Kill]:
    """Kills of one command: of one that goes on where it was up to four in a row, then one call to the end."""
    count = 0
    bench.reference(case)
    while count < kills:
        folder = bench.folder / "work" / f"{case.name} {count}"
        bench.former(case, folder)
        row: list[Kill] = []
        for _ in range(min(kills - count, draw.randint(1, 4) if case.goes_on else 1)):
            row.append(kill_once(bench, case, folder, draw))
        row[-1].faults += finish(bench, case, folder)
        count += len(row)
        yield from row


def two_at_once(bench: Bench, case: Case) -> list[str]:
    """Two calls at the same moment: one does the work, the other says who does it, or comes late and finds it done."""
    folder = bench.folder / "work" / f"{case.name} twice"
    first = Command.start(case.arguments(bench.folder), folder)
    second = Command.start(case.arguments(bench.folder), folder)
    codes = sorted((first.wait() or 0, second.wait() or 0))
    said = first.said() + second.said()
    faults = [] if codes in ([0, 0], [0, 2]) else [f"exit codes {codes}"]
    if 2 in codes and f"by process {first.process} on" not in said and f"by process {second.process} on" not in said:
        faults.append(f"said {said[-500:]!r}")
    return faults + finish(bench, case, folder)
