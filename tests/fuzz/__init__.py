"""A seeded fuzzer of every reader and every command: ``python -m tests.fuzz``, see docs/robustness.md."""

import sys
from pathlib import Path

# The makers of small data sets are modules of the tests' folders, which pytest puts on the path by itself.
_TESTS = Path(__file__).resolve().parents[1]
sys.path += [str(folder) for folder in (_TESTS, _TESTS / "view") if str(folder) not in sys.path]
