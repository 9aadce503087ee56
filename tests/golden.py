"""Where the recorded results lie, and which there are."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def golden_root() -> Path | None:
    """The folder of recorded results (DISTILL3D_GOLDEN, by default ../shared/golden), or None where it is absent."""
    folder = Path(os.environ.get("DISTILL3D_GOLDEN", ROOT.parent / "shared" / "golden"))
    return folder if folder.is_dir() else None


def golden_files(method: str) -> list[Path]:
    """The recorded tensors of one method, in order of name; empty where there are none."""
    root = golden_root()
    return [] if root is None else sorted((root / method).glob("*.npz"))


def golden_file(name: str) -> pytest.MarkDecorator:
    """Parametrises a test's ``path`` with one recorded file, ``<method>/<file without extension>``, if it is there."""
    method, stem = name.split("/")
    paths = [path for path in golden_files(method) if path.stem == stem]
    return pytest.mark.parametrize("path", paths, ids=[name] * len(paths))
