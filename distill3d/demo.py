"""The demo command: everything from nothing to a report, two one-thread processes side by side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from distill3d.errors import UserError
from distill3d.files import refuse_foreign
from distill3d.stop import end_with

#: Stages that do not wait for each other, in order.
WAVES = (("teacher", "baseline"), ("monoskd", "monodistill"))
#: Seconds between looks at the running stages.
POLL = 0.2


@dataclass(frozen=True)
class DemoFolders:
    """Where the demo puts things."""

    out: Path

    @property
    def data(self) -> Path:
        return self.out / "streets"

    @property
    def runs(self) -> Path:
        return self.out / "runs"

    @property
    def report(self) -> Path:
        return self.out / "report.html"


def run_demo(out: Path, seed: int) -> None:
    """Synthesises streets, trains the demo recipe and writes the report; whatever is finished already is kept.

    Raises:
        UserError: ``out`` holds something else, or a stage failed.
    """
    from distill3d.recipes.demo import EVAL_FRAMES, STREETS, TRAIN_FRAMES
    from distill3d.synth.writer import write_kitti

    start = time.monotonic()

    def say(text: str) -> None:
        seconds = int(time.monotonic() - start)
        print(f"[{seconds // 60}:{seconds % 60:02}] {text}", file=sys.stderr, flush=True)

    folders = DemoFolders(out)
    refuse_foreign(folders.report)
    say(f"1/4 ray casting {TRAIN_FRAMES + EVAL_FRAMES} streets into {folders.data}")
    splits = {"train": TRAIN_FRAMES, "val": EVAL_FRAMES}
    write_kitti(folders.data, frames=sum(splits.values()), seed=seed, config=STREETS, splits=splits)
    for number, stages in enumerate(WAVES, start=2):
        say(f"{number}/4 training {' and '.join(stages)}, one thread each")
        _train(stages, folders, seed)
    say("4/4 writing the report")
    from distill3d.view.report import write_report

    write_report([folders.runs / "demo"], folders.report)
    say("done")
    print(folders.report.resolve())


def _train(stages: tuple[str, ...], folders: DemoFolders, seed: int) -> None:
    """The stages side by side, each in a process of its own.

    Raises:
        UserError: one of them failed; the others are stopped.
    """
    command = [sys.executable, "-m", "distill3d.demo", "train", "demo", "--data-root", str(folders.data),
               "--out", str(folders.runs), "--seed", str(seed), "--threads", "1", "--no-live", "--only"]  # fmt: skip
    processes = {
        stage: subprocess.Popen([*command, stage], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) for stage in stages
    }
    try:
        while any(p.poll() is None for p in processes.values()):
            time.sleep(POLL)
            for stage, process in processes.items():
                if process.poll():
                    raise UserError(f"training {stage!r} failed with exit code {process.returncode}, see above")
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.terminate()  # it keeps its state first
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


if __name__ == "__main__":  # one of the processes above, which ends with the demo even where that is killed
    from distill3d.cli import main

    end_with(sys.stdin.fileno(), lambda: os.kill(os.getpid(), signal.SIGTERM))
    main()
