"""Jobs as processes, several side by side, each as soon as what it needs is finished."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_INTERVAL = 0.5  # s


@dataclass(frozen=True)
class Job:
    """A command that has done its work when a file is there."""

    name: str
    command: tuple[str, ...]
    finished: Path
    log: Path  # of all that it prints
    needs: tuple[Path, ...] = ()  # other jobs' ``finished``


def run_all(jobs: Sequence[Job], side_by_side: int, done: Callable[[Job], object] | None = None) -> None:
    """Runs every job that is not finished, in the given order as far as their needs allow.

    ``done`` is told of each.  When one fails those beside it are run to their end, and nothing new is begun.

    Raises:
        SystemExit: a job failed, or waits for what no job makes.
    """
    waiting = [job for job in jobs if not job.finished.exists()]
    running: dict[subprocess.Popen, Job] = {}
    failed: list[Job] = []
    while running or (waiting and not failed):
        for process in [p for p in running if p.poll() is not None]:
            job = running.pop(process)
            if process.returncode or not job.finished.exists():
                failed.append(job)
            elif done is not None:
                done(job)
        ready = [job for job in waiting if all(path.exists() for path in job.needs)]
        for job in ready[: 0 if failed else side_by_side - len(running)]:
            waiting.remove(job)
            running[_start(job)] = job
        if waiting and not running and not failed:
            raise SystemExit(f"{waiting[0].name} waits for what is not there: {', '.join(map(str, waiting[0].needs))}")
        time.sleep(POLL_INTERVAL if running else 0)
    if failed:
        raise SystemExit("\n".join(f"{job.name} failed, see {job.log}" for job in failed))


def _start(job: Job) -> subprocess.Popen:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("a") as log:
        return subprocess.Popen(job.command, stdout=log, stderr=log)
