"""Split files: which frames, samples or scenes belong to a part of a data set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from distill3d.errors import UserError
from distill3d.files import inner_name, read_text


def read_split(path: Path) -> list[str]:
    """Frame names of a split file, one per line, as ``000006`` or ``seq1/000006``; blank lines do not count.

    Raises:
        UserError: the file is absent or names no frame, a frame twice, or one that leads out of the data's folders.
    """
    lines = enumerate(map(str.strip, read_text(path).split("\n")), 1)
    frames = [inner_name(line, f"{path}:{number}") for number, line in lines if line]
    if not frames:
        raise UserError(f"{path}: names no frame")
    if len(set(frames)) < len(frames):
        twice, _ = next(pair for pair in Counter(frames).items() if pair[1] > 1)
        raise UserError(f"{path}: names frame {twice} twice")
    return frames
