"""Ends every command at random moments and says by command what came of it: ``python -m tests.faults --kills 200``."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from kills import CASES, Bench, Kill, campaign, two_at_once  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--streets", type=Path, help="data to train on; by default they are made")
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES), help="commands")
    options = parser.parse_args()
    begin, total = time.monotonic(), sum(CASES[name].share for name in options.only)
    faults = 0
    print(f"{'command':20} {'kills':>5} {'at work':>7} {'KILL':>5} {'TERM':>5} {'INT':>5} {'faults':>6}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.streets)
        for name in options.only:
            case, draw = CASES[name], random.Random(f"{options.seed} {name}")
            kills = list(campaign(bench, case, max(1, round(options.kills * case.share / total)), draw))
            twice = two_at_once(bench, case) if case.goes_on else []
            print(_row(name, kills), flush=True)
            for kill in kills:
                for fault in kill.faults:
                    print(f"    {kill.signal} after {kill.after:.3f} s: {fault}", flush=True)
            for fault in twice:
                print(f"    two at once: {fault}", flush=True)
            faults += sum(len(kill.faults) for kill in kills) + len(twice)
    print(f"{faults} faults, {time.monotonic() - begin:.0f} s")
    return 1 if faults else 0


def _row(name: str, kills: list[Kill]) -> str:
    by_signal = [sum(kill.signal == s for kill in kills) for s in ("SIGKILL", "SIGTERM", "SIGINT")]
    hit, faults = sum(kill.hit for kill in kills), sum(bool(kill.faults) for kill in kills)
    return f"{name:20} {len(kills):5} {hit:7} {by_signal[0]:5} {by_signal[1]:5} {by_signal[2]:5} {faults:6}"


if __name__ == "__main__":
    sys.exit(main())
