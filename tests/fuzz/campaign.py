"""Many inputs of all surfaces, in processes that may die: how many of each kind there were, and what was found."""

from __future__ import annotations

import faulthandler
import hashlib
import json
import multiprocessing
import os
import re
import resource
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

#: Address space of a worker beyond what it has when it begins, bytes: then memory that is asked for is refused.
MEMORY = 4 << 30
#: A worker that has not answered for so long, s, hangs where no signal reaches it.
LAST_PATIENCE = 60.0
COLUMNS = (
    "accepted",
    "refused",
    "traceback",
    "hang",
    "silent",
    "unequal",
    "changed",
    "message",
    "exit code",
    "death",
    "fuzzer",
)
#: What a case says of the answer that it wants.
EXPECTED = {
    "traceback": "a result, or one sentence and exit code 2",
    "unequal": "the result of the sound input, or a refusal where the bytes were damaged",
    "silent": "a refusal, as distill3d check calls the file faulty",
    "changed": "files that are none of the command's outputs stay as they were",
}


@dataclass(frozen=True)
class Limits:
    """How much is tried: for so many seconds or, where that is None, so many times each surface's few inputs."""

    seconds: float | None
    inputs: float
    seed: int


@dataclass
class Tally:
    """What came of the inputs of a surface."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


# ----------------------------------------------------------------------------------------------------------- the worker


def work(pipe: Connection, *arguments: Any) -> None:
    """``_work``, whose own faults are told."""
    try:
        _work(pipe, *arguments)
    except Exception:
        pipe.send({"broken": traceback.format_exc()})
        sys.exit(1)


def _work(
    pipe: Connection, names: Sequence[str], limits: Limits, job: int, jobs: int, begin: dict[str, int],
    cases: list[dict[str, Any]], scratch: Path,
) -> None:  # fmt: skip
    """Tries inputs, and sends what is tried and what comes of it."""
    os.environ["MPLCONFIGDIR"] = str(scratch / "matplotlib")
    import torch

    from . import makers
    from .hunt import Hunter, Input
    from .surfaces import BY_NAME

    unknown = [name for name in names if name not in BY_NAME]
    if unknown:
        raise ValueError(f"there is no surface {unknown[0]!r}, known are {', '.join(BY_NAME)}")
    if not names and (limits.inputs or limits.seconds is not None):
        names = tuple(BY_NAME)
    torch.set_num_threads(1)
    makers.register_recipes()
    hunters: dict[str, Hunter] = {}

    def hunter(name: str) -> Hunter:
        if name not in hunters:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, hard))
            hunters[name] = Hunter(BY_NAME[name], scratch / str(job), thorough=limits.seconds is not None)
            resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, hard))
        return hunters[name]

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    seen: set[str] = set()

    def attempt(name: str, index: int, given: Input, reduce: bool) -> float:
        faulthandler.dump_traceback_later(LAST_PATIENCE, exit=True)
        pipe.send({"begin": name, "index": index, "input": given.to_plain()})
        start = time.perf_counter()
        verdict = hunter(name).try_input(given)
        seconds = time.perf_counter() - start
        faulthandler.cancel_dump_traceback_later()
        report: dict[str, Any] = {"end": name, "index": index, "seconds": seconds, "kind": "accepted"}
        if verdict.answer.code == 2:
            report["kind"] = "refused"
        numeric = sorted({w for w in verdict.answer.warned if "RuntimeWarning" in w})
        if numeric:
            report["warned"] = numeric[0]
        fault = verdict.fault
        if fault is not None:
            report["kind"] = fault.kind
            if reduce and fault.signature not in seen:
                seen.add(fault.signature)
                again = hunter(name).try_input(given).fault
                if again is None or again.signature != fault.signature:
                    report["repeatable"] = False
                    if fault.kind == "hang":  # the machine was busy
                        report["kind"], fault = "accepted", None
                else:
                    given, fault = hunter(name).reduced(given, fault)
            if fault is not None:
                report |= {"signature": fault.signature, "what": fault.what, "input": given.to_plain()}
        pipe.send(report)
        return time.perf_counter() - start

    for number, case in enumerate(cases):
        if number % jobs == job and number >= begin.get("case", 0):
            pipe.send({"case": number})
            attempt(case["surface"], number, Input.from_plain(case), reduce=False)
    for name, index in _schedule(names, limits, job, jobs, begin):
        spent = attempt(name, index, hunter(name).input(limits.seed, index), reduce=True)
        _SPENT[name] = _SPENT.get(name, 0.0) + spent
    pipe.send({"done": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss})


_SPENT: dict[str, float] = {}


def _schedule(
    names: Sequence[str], limits: Limits, job: int, jobs: int, begin: dict[str, int]
) -> Iterator[tuple[str, int]]:
    """The next inputs: surface and number. With a time limit, the surface that had the least of its share."""
    from .surfaces import BY_NAME

    following = {name: begin.get(name, 0) * jobs + job for name in names}
    if limits.seconds is None:
        for name in names if limits.inputs else ():
            for index in range(following[name], max(round(BY_NAME[name].few * limits.inputs), 1), jobs):
                yield name, index
        return
    end = time.monotonic() + limits.seconds
    while time.monotonic() < end:
        name = min(names, key=lambda n: (_SPENT.get(n, 0.0) / BY_NAME[n].share, names.index(n)))
        yield name, following[name]
        following[name] += jobs


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


# ------------------------------------------------------------------------------------------------------- the supervisor


@dataclass
class _Job:
    """A worker and what it was last heard to do."""

    number: int
    process: Any
    pipe: Connection
    done: dict[str, int] = field(default_factory=dict)  # inputs that are over, by surface; "case": the next case
    now: dict[str, Any] | None = None


def run_campaign(
    surfaces: tuple[str, ...], limits: Limits, jobs: int, keep: Path | None, cases: Path | None, scratch: Path
) -> int:
    """Runs workers until all is tried, prints the table and what was found; 1 if there is anything, else 0."""
    replayed = (
        [] if cases is None else [json.loads(path.read_text()) | {"file": path.name} for path in case_files(cases)]
    )
    tallies, found, warned = defaultdict(Tally), {}, Counter()
    begin = time.monotonic()
    context = multiprocessing.get_context("spawn")

    def start(number: int, done: dict[str, int], seconds: float | None) -> _Job:
        ours, theirs = context.Pipe()
        left = Limits(seconds, limits.inputs, limits.seed)
        process = context.Process(target=work, args=(theirs, surfaces, left, number, jobs, done, replayed, scratch))
        process.start()
        theirs.close()
        return _Job(number, process, ours, done)

    running = [start(number, {}, limits.seconds) for number in range(jobs)]
    broken = False
    while running:
        for ready in wait([job.pipe for job in running]):
            job = next(job for job in running if job.pipe is ready)
            try:
                message = job.pipe.recv()
            except EOFError:
                job.process.join()
                running.remove(job)
                if job.now is None:
                    broken |= job.process.exitcode != 0
                    continue
                _record_death(job, tallies, found)
                _count(job, job.now)
                left = None if limits.seconds is None else limits.seconds - (time.monotonic() - begin)
                if left is None or left > 0:
                    running.append(start(job.number, job.done, left))
                continue
            if "begin" in message:
                job.now = message
            elif "case" in message:
                job.done["case"] = message["case"] + 1
            elif "end" in message:
                _record(message, tallies, found, warned, limits.seed)
                _count(job, message)
                job.now = None
            elif "broken" in message:
                job.now, broken = None, True
                print(message["broken"], file=sys.stderr)
            elif "done" in message:
                job.now = None
                print(f"process {job.number}: {message['done'] / 1024:.0f} MB at most", file=sys.stderr)
    _print_table(tallies)
    _print_found(found, warned)
    if keep is not None:
        _keep(keep, found)
    return 1 if found or broken else 0


def case_files(place: Path) -> list[Path]:
    """A case, or all of a folder."""
    return sorted(place.glob("*.json")) if place.is_dir() else [place]


def _count(job: _Job, message: dict[str, Any]) -> None:
    name = message.get("end") or message["begin"]
    job.done[name] = job.done.get(name, 0) + 1


def _record(
    message: dict[str, Any], tallies: dict[str, Tally], found: dict[str, dict[str, Any]], warned: Counter[str],
    seed: int,
) -> None:  # fmt: skip
    tally = tallies[message["end"]]
    tally.counts[message["kind"]] += 1
    tally.seconds += message["seconds"]
    if "warned" in message:
        warned[f"{message['end']}: {re.sub(r': .*', '', message['warned'])}"] += 1
    if "signature" in message:
        key = f"{message['end']} | {message['signature']}"
        entry = found.setdefault(key, {"count": 0, "seed": seed, "index": message["index"], **message})
        entry["count"] += 1


def _record_death(job: _Job, tallies: dict[str, Tally], found: dict[str, dict[str, Any]]) -> None:
    assert job.now is not None
    name, code = job.now["begin"], job.process.exitcode
    what = (
        f"the process died of signal {-code}"
        if code < 0
        else f"the process left with {code}, perhaps after {LAST_PATIENCE:g} s"
    )
    tallies[name].counts["death"] += 1
    how = ", ".join(sorted({m["how"] for m in job.now["input"]["mutations"]}))
    key = f"{name} | death | {what} | {how}"
    entry = {"end": name, "kind": "death", "signature": f"death | {what} | {how}", "what": what, "count": 0}
    found.setdefault(key, {**entry, "index": job.now["index"], "input": job.now["input"]})["count"] += 1


def _print_table(tallies: dict[str, Tally]) -> None:
    shown = [column for column in COLUMNS if column in COLUMNS[:5] or any(t.counts[column] for t in tallies.values())]
    heads = ["inputs", *shown, "inputs/s"]
    print(f"{'surface':24}" + "".join(f"{head:>11}" for head in heads))
    total = Tally()
    for name, tally in [*tallies.items(), ("all", total)]:
        if name != "all":
            total.counts += tally.counts
            total.seconds += tally.seconds
        if not tally.counts:
            continue
        rate = tally.counts.total() / max(tally.seconds, 1e-9)
        cells = [tally.counts.total(), *(tally.counts[column] for column in shown)]
        print(f"{name:24}" + "".join(f"{cell:11}" for cell in cells) + f"{rate:11.1f}")


def _print_found(found: dict[str, dict[str, Any]], warned: Counter[str]) -> None:
    for warning, count in warned.most_common():
        print(f"numpy warned {count} times: {warning}")
    for key, entry in sorted(found.items(), key=lambda item: -item[1]["count"]):
        unsure = "" if entry.get("repeatable", True) else " (not again when repeated)"
        print(f"\n{entry['count']} x {key}{unsure}\n    {entry['what']}")
        for mutation in entry["input"]["mutations"]:
            print(f"    {mutation['file']}: {mutation['how']} {json.dumps(mutation['given'])[:300]}")


def _keep(folder: Path, found: dict[str, dict[str, Any]]) -> None:
    """A case for each fault, and failures.jsonl with all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "failures.jsonl").open("a", encoding="utf-8") as file:
        for key, entry in found.items():
            file.write(json.dumps({"key": key, **entry}) + "\n")
    for key, entry in found.items():
        name = f"{entry['end']}-{entry['kind']}-{hashlib.sha256(key.encode()).hexdigest()[:8]}".replace(" ", "-")
        case = {**entry["input"], "what": entry["what"], "expected": EXPECTED.get(entry["kind"], EXPECTED["traceback"])}
        (folder / f"{name}.json").write_text(json.dumps(case, indent=1) + "\n")
