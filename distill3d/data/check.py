"""``distill3d check``: every problem of a data set, by layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from distill3d.data.kitti.check import Problem, check_kitti
from distill3d.data.kitti.inventory import kitti_contents
from distill3d.data.nuscenes.check import check_nuscenes, nuscenes_contents
from distill3d.data.nuscenes.json_columns import RecordFault
from distill3d.errors import UserError

#: What names the problems of a data set, by layout.
LAYOUTS: dict[str, Callable[[Path], Sequence[Problem | RecordFault]]] = {
    "kitti": check_kitti,
    "nuscenes": check_nuscenes,
}
#: What tells the objects of a sound data set, by layout.
COUNTS: dict[str, Callable[[Path], Iterator[str]]] = {"kitti": kitti_contents, "nuscenes": nuscenes_contents}


def run_check(root: Path, layout: str) -> int:
    """Prints one line per problem and their number; where all is well, what there is to learn from.

    Returns:
        0 for a clean data set, 2 for one with problems.

    Raises:
        UserError: the folder is absent or the layout is not known.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
    problems = LAYOUTS[layout](root)
    for problem in problems:
        print(problem)
    if not problems:
        print(*COUNTS[layout](root), "sound", sep="\n")
        return 0
    files = len({p.file for p in problems})
    print(f"{len(problems)} problem{'s' * (len(problems) > 1)} in {files} file{'s' * (files > 1)}")
    return 2
