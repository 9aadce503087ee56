"""Which arithmetic ``auto`` takes."""

import pytest
import torch

from distill3d.errors import UserError
from distill3d.train import precision
from distill3d.train.precision import choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("vectors", "tiles", "name", "expected"),
    [
        (False, False, "Intel Core", "fp32"),
        (True, False, "Intel Xeon", "fp32"),  # its vectors do no more in bf16 than in float32
        (True, True, "Intel Xeon", "bf16"),
        (True, False, "AMD EPYC", "bf16"),
        (False, False, "AMD Ryzen", "fp32"),
        (True, False, "", "bf16"),  # an older PyTorch does not tell
    ],
)
def test_auto_is_bf16_where_that_is_faster(
    vectors: bool, tiles: bool, name: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    told = {"cpu_name": name} if name else {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert precision.has_fast_bf16(CPU) is (expected == "bf16")
    assert choose_precision("auto", CPU).name == expected


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_what_is_asked_for_is_taken(wanted: str) -> None:
    assert choose_precision(wanted, CPU).name == wanted  # pyright: ignore[reportArgumentType]


def test_bf16_on_a_gpu_without_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: False)
    with pytest.raises(UserError, match="give --precision fp32"):
        choose_precision("bf16", torch.device("cuda"))
