"""Devices by name: those that this machine lacks are refused with one sentence."""

from pathlib import Path

import pytest
import torch

from distill3d.devices import find_device
from distill3d.diagnose import diagnose
from distill3d.errors import UserError


def test_the_cpu_is_there() -> None:
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta", "cuda:99", "cpu:-1", "cuda" * 100, "Car 0.00"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(UserError) as error:
        find_device(name)
    assert "which this machine does not have: expected one of auto, cpu" in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_cuda_without_any(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--device is 'cuda'"):
        find_device("cuda")
    with pytest.raises(UserError, match="--device is 'cuda'"):
        diagnose(tmp_path, device="cuda")
