"""``distill3d check``: every problem of a data set, by layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from distill3d.data.kitti.check import Problem, check_kitti, classes_problems
from distill3d.data.kitti.contents import kitti_contents
from distill3d.data.kitti.labels import UNKNOWN_CLASS
from distill3d.data.kitti.names import names_of
from distill3d.data.kitti.scans import VELODYNE_COLUMNS
from distill3d.data.nuscenes.check import check_nuscenes, nuscenes_cameras, nuscenes_contents
from distill3d.data.nuscenes.dataset import SCAN_COLUMNS
from distill3d.data.nuscenes.json_columns import RecordFault
from distill3d.data.scans import refuse_columns
from distill3d.errors import UserError, one_line

LAYOUTS = ("kitti", "nuscenes")
#: Problems of one kind that are shown in full; of others like them the number is told.
SHOWN = 20


def layout_of(root: Path) -> str:
    """The layout of a data set, by its tables or folders.

    Raises:
        UserError: the folder is absent, or has neither.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    if any(root.glob("*/sample.json")):
        return "nuscenes"
    if any((root / name).is_dir() for name in ("training", "testing", "ImageSets")):
        return "kitti"
    raise UserError(
        f"{root}: holds neither training/image_2, as KITTI's layout does, nor */sample.json, as nuScenes' does: "
        "say which it should be, with --layout kitti or --layout nuscenes"
    )


def run_check(
    root: Path, layout: str | None = None, scan_columns: int | None = None, classes: tuple[str, ...] = (),
    label_names: tuple[str, ...] = (), cameras: tuple[str, ...] = (),
) -> int:  # fmt: skip
    """Prints one line per problem and their number; where all is well, what there is and what can be learnt.

    Args:
        layout: by default what the folder looks like.
        scan_columns: of the scans' files; by default the layout's.
        classes, label_names: of KITTI's layout, as ``names_of`` takes them.
        cameras: of nuScenes' layout, the rig; by default all there are.

    Returns:
        0 for a clean data set, 2 for one with problems.

    Raises:
        UserError: the folder is absent, the layout is not known or has no ``cameras``, or no scan has so many columns.
    """
    if layout is None:
        layout = layout_of(root)
    if layout not in LAYOUTS:
        raise UserError(f"layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
    if scan_columns is not None:
        refuse_columns(scan_columns)
    if cameras and layout == "kitti":
        raise UserError(f"cameras are {', '.join(cameras)}, but {root} is in KITTI's layout, which has no rigs")
    problems: Sequence[Problem | RecordFault]
    contents: Iterator[str]
    if layout == "kitti":
        faulty = not classes and bool(classes_problems(root))
        names = None if faulty else names_of(root, classes, label_names)
        problems = check_kitti(root, None, scan_columns or VELODYNE_COLUMNS, names)
        contents = kitti_contents(root, names)
    else:
        problems = check_nuscenes(root, scan_columns or SCAN_COLUMNS, cameras or None)
        contents = nuscenes_contents(root)
    if not problems:
        print(*contents, "sound", sep="\n")
        return 0
    rigs = nuscenes_cameras(root) if layout == "nuscenes" else ()
    for line in (*rigs, *_told(problems)):
        print(one_line(line))
    own = layout == "kitti" and any(p.sentence.startswith(UNKNOWN_CLASS) for p in problems)
    hint = "; for names of your own there are --classes, --label-names and classes.txt" if own else ""
    files = len({p.file for p in problems})
    print(f"{len(problems)} problem{'s' * (len(problems) > 1)} in {files} file{'s' * (files > 1)}{hint}")
    return 2


def _told(problems: Sequence[Problem | RecordFault]) -> Iterator[str]:
    """Each problem, but of many equal ones the first and their number."""
    total, seen = Counter(p.sentence for p in problems), Counter()
    for problem in problems:
        sentence = problem.sentence
        seen[sentence] += 1
        if seen[sentence] <= SHOWN:
            yield str(problem)
        elif seen[sentence] == SHOWN + 1:
            yield f"... and {total[sentence] - SHOWN} more like this: {sentence}"
