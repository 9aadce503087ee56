"""The command line of the benchmark; see the package."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from distill3d.files import write_text

from . import __doc__ as about
from .cells import train_cell, train_cells
from .collect import collect, with_others
from .latency import measure_latencies
from .page import RECORDS, write_pages
from .sizes import SIZES
from .table import groups
from .worlds import write_worlds

DATA = "data.json"  # beside the data: how they were made


def main() -> None:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "collect", "render", "cell"))
    parser.add_argument("--size", choices=list(SIZES), default="cpu")
    parser.add_argument("--out", type=Path, help="by default runs/distillation/<size>")
    parser.add_argument("--groups", nargs="+", help="by default those that fit the promised time")
    parser.add_argument("--side-by-side", type=int, help="processes at a time, by default the size's")
    parser.add_argument("--all-seeds", action="store_true", help="of every group as many seeds as of MonoDLE's")
    parser.add_argument("--seed", type=int, help="of a cell")
    parser.add_argument("--stage", help="of a cell")
    options = parser.parse_args()
    if options.action == "render":
        print(*write_pages(), sep="\n")
        return
    size = SIZES[options.size]
    out = options.out or Path("runs") / "distillation" / size.name
    known = groups(size)
    if unknown := [name for name in options.groups or () if name not in known]:
        parser.error(f"there is no group {unknown[0]!r}, expected some of {', '.join(known)}")
    if options.action == "cell":
        train_cell(size, out, options.groups[0], options.seed, options.stage)
        return
    if options.action == "run":
        write_text(out / DATA, json.dumps(write_worlds(size, out), indent=1) + "\n")
        asked = [known[name] for name in options.groups or known if options.groups or not known[name].when_named]
        train_cells(size, out, asked, options.side_by_side or size.side_by_side, options.all_seeds)
        measure_latencies(size, out, asked)
    record = collect(size, out, list(known.values()), json.loads((out / DATA).read_text()))
    path = RECORDS / f"distillation_{size.name}.json"
    if path.exists():
        try:
            record = with_others(record, json.loads(path.read_text()))
        except ValueError as error:
            raise SystemExit(f"{path} {error}: move it away, then collect; what is trained is kept") from error
    write_text(path, json.dumps(record, indent=1) + "\n")
    print(*write_pages(), sep="\n")


if __name__ == "__main__":
    main()
