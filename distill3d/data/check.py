"""``distill3d check``: every problem of a data set, by layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from distill3d.data.kitti.check import Problem, check_kitti
from distill3d.data.kitti.inventory import kitti_contents
from distill3d.data.nuscenes.check import check_nuscenes, nuscenes_contents
from distill3d.data.nuscenes.json_columns import RecordFault
from distill3d.data.scans import refuse_columns
from distill3d.errors import UserError, one_line

#: What names the problems of a data set, by layout.
LAYOUTS: dict[str, Callable[..., Sequence[Problem | RecordFault]]] = {
    "kitti": check_kitti,
    "nuscenes": check_nuscenes,
}
#: What tells the objects of a sound data set, by layout.
COUNTS: dict[str, Callable[[Path], Iterator[str]]] = {"kitti": kitti_contents, "nuscenes": nuscenes_contents}


def run_check(root: Path, layout: str, scan_columns: int | None = None) -> int:
    """Prints one line per problem and their number; where all is well, what there is to learn from.

    Args:
        scan_columns: of the scans' files; by default the layout's.

    Returns:
        0 for a clean data set, 2 for one with problems.

    Raises:
        UserError: the folder is absent, the layout is not known, or no scan has so many columns.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
    if scan_columns is not None:
        refuse_columns(scan_columns)
    problems = LAYOUTS[layout](root, **({} if scan_columns is None else {"scan_columns": scan_columns}))
    for problem in problems:
        print(one_line(str(problem)))
    if not problems:
        print(*COUNTS[layout](root), "sound", sep="\n")
        return 0
    files = len({p.file for p in problems})
    print(f"{len(problems)} problem{'s' * (len(problems) > 1)} in {files} file{'s' * (files > 1)}")
    return 2
