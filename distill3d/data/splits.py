"""Split files: which frames, samples or scenes belong to a part of a data set."""

from __future__ import annotations

from pathlib import Path

from distill3d.errors import UserError
from distill3d.files import read_text


def read_split(path: Path) -> list[str]:
    """Frame names of a split file, one per line; blank lines do not count.

    Raises:
        UserError: the file is absent or names no frame, or a frame twice.
    """
    frames = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not frames:
        raise UserError(f"{path}: names no frame")
    if len(set(frames)) < len(frames):
        twice = next(f for i, f in enumerate(frames) if f in frames[:i])
        raise UserError(f"{path}: names frame {twice} twice")
    return frames
