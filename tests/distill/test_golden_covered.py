"""Every recorded file of the sets in hand is some test's case, so that none is forgotten."""

import subprocess
import sys
from pathlib import Path

import pytest
from golden import golden_files, stem

TESTS = Path(__file__).resolve().parents[1]
SETS = (
    "monodle", "monodistill", "monoskd", "monostl", "monodetr", "cmkd", "monotakd", "bevdepth", "labeldistill",
    "nuscenes", "cmkd_mv", "unidistill", "tig_bev", "distillbev", "vcd", "bevdet", "bevformer", "uvtr_kd",
    "bevdistill", "simdistill", "monocon", "sgm3d",
)  # fmt: skip


@pytest.mark.golden
def test_every_recorded_file_has_a_case(request: pytest.FixtureRequest) -> None:
    names = [f"{method}/{stem(path)}" for method in SETS for path in golden_files(method)]
    if not names:
        pytest.skip("no recorded results (set DISTILL3D_GOLDEN)")
    missing = set(names) - cases([item.nodeid for item in request.session.items])
    if missing:  # perhaps only because a part of the suite was asked for: look at all of it
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", str(TESTS)]
        listing = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TESTS.parent).stdout
        missing -= cases(listing.splitlines())
    assert not missing, f"no test case for {', '.join(sorted(missing))}"


def cases(node_ids: list[str]) -> set[str]:
    """What stands in brackets behind the names of parametrised tests."""
    return {node.partition("[")[2].removesuffix("]") for node in node_ids if "[" in node}
