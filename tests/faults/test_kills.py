"""A handful of kills at random moments, drawn by a seed; ``python -m tests.faults`` makes hundreds."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_killed_commands_give_the_same_in_the_end(streets: Path) -> None:
    """In a process of its own, for what it forks must not have computed anything."""
    command = [sys.executable, "-m", "tests.faults", "--kills", "4", "--streets", str(streets), "--only"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "train", "synth, 2 workers"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
