"""Fixtures shared by all tests."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Shapes and types of everything that handles tensors are checked while tests run, and nowhere else.  The numpy side is
# left to the static checker: numpy gives a scalar where an array of no dimensions is meant, which is another type.
TENSOR_SIDE = ("boxes", "camera", "data", "detectors", "distill", "layers", "train", "view")
install_import_hook([f"distill3d.{name}" for name in TENSOR_SIDE], "typecheck.checker")

# No test fails for being slow: machines differ, and torch's first call of anything is slow everywhere.
# The thorough profile is `make thorough`'s.
settings.register_profile("untimed", deadline=None, max_examples=40)
settings.register_profile("thorough", deadline=None, max_examples=300)
settings.load_profile("thorough" if os.environ.get("DISTILL3D_THOROUGH") else "untimed")

# In the background of a script everything begins with interrupts ignored, and so would what the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real frames; the test skips where it is absent."""
    folder = Path(os.environ.get("DISTILL3D_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real frames at {folder} (set DISTILL3D_DATA)")
    return folder


@pytest.fixture(scope="session")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight synthetic training frames and four of evaluation, in KITTI's layout."""
    from streets import write_streets

    return write_streets(tmp_path_factory.mktemp("streets"))
