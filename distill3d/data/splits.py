"""Split files: which frames, samples or scenes belong to a part of a data set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from distill3d.errors import UserError
from distill3d.files import inner_name, read_text

#: Of a folder's splits so many are told.
SHOWN = 10


def split_names(folder: Path) -> list[str]:
    """The splits that have a file in a folder, in order; none where there is no such folder."""
    return sorted(path.stem for path in folder.glob("*.txt"))


def read_split(path: Path) -> list[str]:
    """Frame names of a split file, one per line, as ``000006`` or ``seq1/000006``; blank lines do not count.

    Raises:
        UserError: the file is absent (the sentence tells which there are) or names no frame, a frame twice, or one
            that leads out of the data's folders.
    """
    if path.parent.is_dir() and not path.exists():
        there = split_names(path.parent)
        others = f", but there are {', '.join(f'{name}.txt' for name in there[:SHOWN])}" if there else ""
        more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
        raise UserError(f"{path}: no such file{others}{more}")
    lines = enumerate(map(str.strip, read_text(path).split("\n")), 1)
    frames = [inner_name(line, f"{path}:{number}") for number, line in lines if line]
    if not frames:
        raise UserError(f"{path}: names no frame")
    if len(set(frames)) < len(frames):
        twice, _ = next(pair for pair in Counter(frames).items() if pair[1] > 1)
        raise UserError(f"{path}: names frame {twice} twice")
    return frames
