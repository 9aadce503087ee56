"""Imported SECOND, PointPillars and CaDDN of OpenPCDet answer as the authors' code does."""

from pathlib import Path

import pytest
from golden import golden_file
from made_checkpoints import weights_of
from round_trip import check_round_trip
from test_bev_family_golden import check_student, check_teacher

from distill3d.detectors.released import TO_SPCONV_1, plain_names
from distill3d.published.importing import fitted
from distill3d.published.systems import SYSTEMS

pytestmark = pytest.mark.golden

#: Whose weights each recording is.
PARTS = {
    "second": ("openpcdet_second", "teacher"), "pointpillars": ("openpcdet_pointpillars", "teacher"),
    "caddn": ("openpcdet_caddn", "student"),
}  # fmt: skip
RECORDED = [f"released/{name}/whole_forward" for name in PARTS]


@golden_file(*RECORDED)
def test_whole_network(path: Path, tmp_path: Path) -> None:
    """The file alone tells which it is, though CMKD's and MonoTAKD's networks have the same names."""
    system, part = PARTS[path.parent.name]
    check = check_student if part == "student" else check_teacher
    check(path, system, part, tmp_path, named=False)


@golden_file(*RECORDED)
def test_round_trip(path: Path) -> None:
    check_round_trip(path, *PARTS[path.parent.name])


@golden_file("released/second/whole_forward")
def test_sparse_kernels_of_spconv_1(path: Path) -> None:
    """The published file is of 2020 and holds them."""
    weights, part = plain_names(weights_of(path)), SYSTEMS["openpcdet_second"].parts["teacher"]
    old = {name: value.permute(TO_SPCONV_1) if value.dim() == 5 else value for name, value in weights.items()}
    taken = [fitted(of, part)[2].weights for of in (weights, old)]
    assert taken[0].keys() == taken[1].keys() and all((taken[0][k] == v).all() for k, v in taken[1].items())
