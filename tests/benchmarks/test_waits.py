"""Waits of the host for an accelerator, on a device that is pretended: what counts as one; they do not grow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.speed.page import RECORDS

ROOT = Path(__file__).resolve().parents[2]
#: The most waits of a step, of detectors and of methods that ask for more.
MOST = {
    "monodle": 6, "gupnet": 6, "did_m3d": 6, "monodetr": 6, "monocon": 6, "bevdepth": 12, "label_encoder": 12,
    "caddn": 20, "pointpillars": 20, "centerpoint": 20, "second": 40, "bevdet": 20, "bevformer": 20, "bevfusion": 20,
}  # fmt: skip
MOST_DECODING = 4
#: Families whose every stage is trained here; the others, and half precision, take longer.
USUAL = [("monodle", "fp32"), ("tiny_labeldistill", "fp32")]
ALSO = [
    *((name, "fp32") for name in ("gupnet", "did_m3d", "monodetr", "monocon", "tiny_bev", "tiny_lidar", "tiny_surround",
                                  "tiny_surround_family", "tiny_bevdet", "tiny_bevformer")),
    *((name, "bf16") for name in ("monodle", "gupnet", "did_m3d", "monodetr", "monocon", "tiny_bev", "tiny_lidar",
                                  "tiny_labeldistill", "tiny_surround_family", "tiny_bevformer")),
]  # fmt: skip


def in_a_process(*command: str) -> None:
    """The device must be a process's first."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


CONTROLS = """
import torch
from benchmarks.pretend_device import pretended
from distill3d.transfers import constant, fetched, inverse, places

def refused(call):
    try:
        call()
    except RuntimeError:
        return True
    return False

with pretended() as log:
    here, there = torch.arange(6.0).view(2, 3), torch.arange(6.0).view(2, 3).to(log.device, non_blocking=True)
    mask = there > 2
    # what CUDA refuses
    assert refused(lambda: there + torch.ones(3)) and refused(lambda: here[there[0].long().clamp(max=1)])
    assert refused(lambda: torch.cat((there, here))) and refused(lambda: here + there[0, 0])
    assert refused(lambda: torch.randn(2, generator=torch.Generator(), device=log.device))
    assert not refused(lambda: there + torch.tensor(2.0))
    log.take()
    # what waits
    for kind, call in {
        "values": [lambda: there.sum().item(), lambda: bool(mask.any()), lambda: there.tolist(),
                   lambda: there[there[0, 0].long()], lambda: torch.linalg.inv(there[:, :2])],
        "shapes": [lambda: there[mask], lambda: mask.nonzero(), lambda: torch.unique(there)],
        "copies": [lambda: there.cpu(), lambda: there[[0, 1]], lambda: there.new_tensor([1.0]),
                   lambda: here.to(log.device), lambda: torch.tensor([1.0], device=log.device)],
    }.items():
        for each in call:
            each()
            told = log.take()
            assert [k for k, _ in told] == [kind], (kind, told)
    there.clone()[torch.arange(2, device=log.device), 0] = 1.0
    assert [k for k, _ in log.take()] == ["copies"]
    # what does not
    filled = there.clone()
    filled[mask] = 0.0
    filled[0] = torch.zeros_like(filled[0])
    assert not log.take()
    # what the library has in their place
    assert constant([[1, 2.5]], there).held.equal(here.new_tensor([[1, 2.5]])) and not log.take()
    assert inverse(there[:, :2]).held.equal(torch.linalg.inv(here[:, :2])) and not log.take()
    first, second = places(mask, ~mask)
    assert log.take().total() == 1
    for found, wanted in ((first, (here > 2)), (second, ~(here > 2))):
        assert all(a.held.equal(b) for a, b in zip(found, wanted.nonzero(as_tuple=True), strict=True))
    odd = {"a": mask[0], "b": there.double(), 3: there.bfloat16()[:, ::2], "none": there[:0], "int": there.long(),
           "cpu": here}
    told = fetched(odd)
    assert log.take().total() == 1 and told["cpu"] is here
    for key, value in odd.items():
        held = getattr(value, "held", value)
        assert type(told[key]) is torch.Tensor and told[key].dtype == held.dtype and told[key].equal(held), key
"""


def test_what_counts_as_a_wait_and_what_is_refused() -> None:
    in_a_process("-c", CONTROLS)


@pytest.mark.parametrize(
    ("family", "precision"),
    [*USUAL, *(pytest.param(*case, marks=pytest.mark.thorough) for case in ALSO)],
)
def test_no_stage_waits_more_than_it_may_and_than_it_did(family: str, precision: str, tmp_path: Path) -> None:
    """Training, a resumed training, evaluation and prediction of every stage of a family, on one device alone."""
    out = tmp_path / "waits.json"
    in_a_process("-m", "benchmarks.waits", "--only", family, "--precision", precision, "--out", str(out))
    recorded = json.loads((RECORDS / "waits.json").read_text())["stages"]
    known = {(row["recipe"], row["stage"]): row for row in recorded}
    for row in json.loads(out.read_text())["stages"]:
        most = MOST[row["detector"]]
        assert row["step"] <= most and row["decode"] <= MOST_DECODING, row
        before = known.get((row["recipe"], row["stage"]), row)
        for what in ("step", "first_epoch", "decode", "predict"):
            assert (row[what] or 0) <= (before[what] or 0), (what, row, before)
