"""Names of shipped students, and weights of half precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill3d.detectors import build_detector, detector_name
from distill3d.detectors.monodle import tiny
from distill3d.settings import to_plain
from distill3d.shipped import SHIPPED, shipped_or_path
from distill3d.train.checkpoint import load_detector, load_weights, save_weights, weights_sum


def test_a_name_means_the_package_unless_a_run_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in SHIPPED:
        assert shipped_or_path(Path(name)) != Path(name)
        (tmp_path / name / "training").mkdir(parents=True)  # a data set of this name hides nothing
        assert shipped_or_path(Path(name)) != Path(name)
        (tmp_path / name / "training" / "card.json").touch()
        assert shipped_or_path(Path(name)) == Path(name)
    assert shipped_or_path(Path("other")) == Path("other")


def test_half_precision_is_computed_in_float32(tmp_path: Path) -> None:
    config = tiny()
    weights = build_detector(config).state_dict()
    halves = {name: value.half() if value.dim() > 1 else value for name, value in weights.items()}
    save_weights(tmp_path, halves, {"detector": detector_name(config), "config": to_plain(config)})
    loaded, _ = load_weights(tmp_path)
    assert all(value.dtype in (torch.float32, torch.int64) for value in loaded.values())
    detector, _ = load_detector(tmp_path)
    for name, value in detector.state_dict().items():
        assert torch.equal(value, halves[name].to(value.dtype))
    assert len(weights_sum(tmp_path)) == 64
