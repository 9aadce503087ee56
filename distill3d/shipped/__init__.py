"""Trained students that are part of the package: their names stand wherever the path of a stage does."""

from __future__ import annotations

from pathlib import Path

from distill3d.train.card import CARD

#: Their stages' folders beside this file, each with its run's recipe, made by ``python benchmarks/shipped.py make``.
SHIPPED = {"streets": "streets/student"}


def shipped_folder(name: str) -> Path:
    """Where the package has the shipped student of this name."""
    return Path(__file__).parent / SHIPPED[name]


def shipped_or_path(path: Path) -> Path:
    """The folder of the shipped student of this name; the path itself where it is no name, or a file, a stage or a run
    lies there; a folder of data does not hide the student."""
    if str(path) not in SHIPPED or path.is_file() or any(p.exists() for p in (path / CARD, *path.glob(f"*/{CARD}"))):
        return path
    return shipped_folder(str(path))
