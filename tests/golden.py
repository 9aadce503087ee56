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


def golden_file(*names: str) -> pytest.MarkDecorator:
    """Parametrises a test's ``path`` with recorded files, ``<method>/<file without extension>``, as far as there."""
    paths = [path for name in names for path in golden_files(name.split("/")[0]) if path.stem == name.split("/")[1]]
    return pytest.mark.parametrize("path", paths, ids=[f"{path.parent.name}/{path.stem}" for path in paths])
