"""The command line of the benchmark; see the package."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from distill3d.files import write_text
from distill3d.train.memory import keep_freed_memory

from ..machine import describe_machine
from . import __doc__ as about
from .deployed import deployed_tasks
from .inputs import PAPER, SMOKE, Setting
from .limits import DTYPES, measure_limits
from .loading import loading_tasks
from .networks import detector_tasks
from .page import PAGE, RECORDS, ROOT, read, read_records, write_page
from .paths import ground_tasks, student_tasks, term_tasks
from .task import Task, measure

#: Seconds that compiling or exporting one thing may take.
PATIENCE, SMOKE_PATIENCE = 300.0, 60.0
SMOKE_RECORDS = ROOT / "runs" / "speed_smoke"


@dataclass(frozen=True)
class Part:
    """Tasks that are recorded together, and the devices on which they say something."""

    tasks: Callable[[Setting], Iterator[Task]]
    devices: tuple[str, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class Wanted:
    """Of which tasks: those whose groups' names begin with one of these words, in these precisions."""

    begins: tuple[str, ...]
    precisions: tuple[str, ...]


PARTS = {
    "loading": Part(loading_tasks, ("cpu",)),
    "detectors": Part(detector_tasks),
    "deployed": Part(deployed_tasks, ("cpu",)),
    "terms": Part(term_tasks),
    "ground": Part(ground_tasks),
    "students": Part(partial(student_tasks, on_ground=False)),
    "students_above": Part(partial(student_tasks, on_ground=True)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="by default all")
    parser.add_argument("--threads", type=int, help="of PyTorch, by default its own choice")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each task, of which the fastest counts")
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=list(DTYPES), help="by default all")
    parser.add_argument("--before", nargs="+", metavar="GROUP",
                        help="measure groups whose names begin so into a record with which the page compares: run it "
                        "before you make something faster")  # fmt: skip
    parser.add_argument("--again", action="store_true", help="also what is recorded")
    parser.add_argument("--smoke", action="store_true", help=f"tiny networks, once, recorded in {SMOKE_RECORDS.name}")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    options = parser.parse_args()
    records, page = (SMOKE_RECORDS, SMOKE_RECORDS / PAGE.name) if options.smoke else (RECORDS, PAGE)
    if not options.render:
        path = records / f"speed_{options.device.type}{'_before' if options.before else ''}.json"
        asked = [name for name in options.only or PARTS if options.device.type in PARTS[name].devices]
        done = () if options.again else (read(path) or {"parts": {}})["parts"]
        record_parts([name for name in asked if name not in done], path, options)
    print(write_page(read_records(records), read_records(records, "_before"), page))


def record_parts(names: list[str], path: Path, options: argparse.Namespace) -> None:
    """Measures parts and adds each to the record as it is finished."""
    device, smoke = options.device, options.smoke
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if device.type == "cpu":
        keep_freed_memory()  # as training does
    with TemporaryDirectory() as folder:
        setting = Setting(SMOKE if smoke else PAPER, Path(folder), device, torch.get_num_threads(),
                          "aot_eager" if smoke else "inductor")  # fmt: skip
        wanted = Wanted(tuple(options.before or ("",)), tuple(options.precisions))
        for name in names:
            found = measure_part(PARTS[name], setting, 1 if smoke else options.repeats, smoke, wanted)
            record = read(path) or {"parts": {}}
            record["parts"] = {n: found if n == name else record["parts"].get(n) for n in PARTS}
            record["parts"] = {n: part for n, part in record["parts"].items() if part is not None}
            write_text(path, json.dumps(record, indent=1) + "\n")


def measure_part(part: Part, setting: Setting, repeats: int, smoke: bool, wanted: Wanted) -> dict[str, Any]:
    """A part's record, of the tasks that are wanted."""
    begun = time.perf_counter()
    limits = measure_limits(setting.device, smoke)
    rows = []
    for task in part.tasks(setting):
        if not task.group.startswith(wanted.begins) or task.precision not in wanted.precisions:
            continue
        rows.append(measure(task, limits, setting.device, repeats, SMOKE_PATIENCE if smoke else PATIENCE))
        told = rows[-1].get("failed") or f"{rows[-1]['seconds']:.4g} s"
        print(f"{task.group}, {task.way}: {told}", flush=True)
    return {
        "machine": describe_machine(), "limits": asdict(limits), "repeats": repeats, "backend": setting.backend,
        "took": time.perf_counter() - begun, "tasks": rows,
    }  # fmt: skip


if __name__ == "__main__":
    main()
