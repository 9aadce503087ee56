"""Shipped students: their names, their files, and weights of half precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import distill3d
from distill3d.detectors import build_detector, detector_name
from distill3d.detectors.monodle import HEAT_CLASSES, tiny
from distill3d.errors import UserError
from distill3d.evaluate_run import evaluate_stage
from distill3d.recipes.streets import FRAMES, STUDENT_EPOCHS
from distill3d.settings import to_plain
from distill3d.shipped import SHIPPED, shipped_folder, shipped_or_path
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


#: Bytes of all files of a shipped student.
MOST_BYTES = 6_000_000


@pytest.mark.parametrize("name", SHIPPED)
def test_they_are_there(name: str) -> None:
    """Small, in half precision, with the card of a finished stage and its run's recipe."""
    folder = shipped_folder(name)
    files = [path for path in folder.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    assert {path.name for path in files} == {"recipe.yaml", "model.safetensors", "card.json"}
    detector, card = load_detector(Path(name))
    assert detector.config.classes == HEAT_CLASSES and card["trained_on"]["identity"] == "shipped-streets"
    assert card["trained_on"]["count"] == FRAMES["train"] and card["epochs"] == STUDENT_EPOCHS


def test_a_misspelt_name_gets_those_that_there_are() -> None:
    with pytest.raises(UserError, match=r"street: no such file, .* a shipped student \(streets\)"):
        load_detector(Path("street"))
    assert repr(distill3d.load("streets", "cpu")) == "Model(monodle, trained on 640 x 192 px, cpu)"


def test_frames_of_ones_own_are_none_that_it_was_trained_on(streets: Path, tmp_path: Path) -> None:
    """Whatever they are called; and nothing is written into the package."""
    with pytest.raises(UserError, match="is a part of the package"):
        evaluate_stage(Path("streets"), streets)
    evaluate_stage(Path("streets"), streets, out=tmp_path / "out", device="cpu", progress=False)
    assert (tmp_path / "out" / "evaluation.json").exists()


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
