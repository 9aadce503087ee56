"""Trained students that are part of the package: their names stand wherever the path of a stage does."""

from __future__ import annotations

from pathlib import Path

#: Their stages' folders beside this file, each with its run's recipe, made by ``python benchmarks/shipped.py make``.
SHIPPED = {"streets": "streets/student"}


def shipped_folder(name: str) -> Path:
    """Where the package has the shipped student of this name."""
    return Path(__file__).parent / SHIPPED[name]


def shipped_or_path(path: Path) -> Path:
    """The folder of the shipped student of this name; the path itself where something lies there, or it is no name."""
    if str(path) in SHIPPED and not path.exists():
        return shipped_folder(str(path))
    return path
