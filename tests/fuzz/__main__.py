"""``python -m tests.fuzz --seconds N --seed S [--surface X] [--jobs J] --keep DIR``: see docs/robustness.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from .campaign import Limits, run_campaign

CASES = Path(__file__).parent / "cases"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, help="how long; by default a few inputs of each surface")
    parser.add_argument("--inputs", type=float, help="without --seconds: so many times the few inputs, by default once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--surface", action="append", default=[], help="by default all; may be given more than once")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--keep", type=Path, help="folder of reduced failing inputs")
    parser.add_argument("--cases", type=Path, help=f"replay a case or a folder of cases, such as {CASES}")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="distill3d-fuzz-", ignore_cleanup_errors=True) as scratch:
        inputs = o.inputs if o.inputs is not None else float(o.cases is None)
        limits = Limits(o.seconds, inputs, o.seed)
        return run_campaign(tuple(o.surface), limits, o.jobs, o.keep, o.cases, Path(scratch))


if __name__ == "__main__":
    sys.exit(main())
