"""What the evaluation writes can be evaluated again, whatever the frames are called."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill3d.boxes import KITTI_CLASSES, Boxes3D
from distill3d.data.kitti.names import KITTI_NAMES
from distill3d.evaluate.kitti import evaluate_folders
from distill3d.train import evaluation
from distill3d.train.precision import Precision


def test_the_best_is_of_the_number_that_papers_choose_by() -> None:
    """Nothing where there is none; the earlier of equals; NDS on surround views."""
    ap = {1: [90.0, 10.0, 5.0], 4: [20.0, 30.0, 5.0], 8: [99.0, 30.0, 9.0]}
    lines: dict[int, dict[str, Any]] = {epoch: {"ap": {"car_3d_strict": v}} for epoch, v in ap.items()}
    lines[2] = {"ap": {"pedestrian_3d_strict": [99.0, 99.0, 99.0]}}
    found = evaluation.best_of_reported(lines, "val")
    assert found is not None and (found["of"], found["epoch"]) == (4, 4)
    assert evaluation.best_of_reported({2: lines[2]}, "val") is None
    scores = {epoch: {"nuscenes": {"NDS": nds, "mAP": 1 - nds, "ap": {}}} for epoch, nds in ((1, 0.3), (2, 0.2))}
    found = evaluation.best_of_reported(scores, "val")
    assert found is not None and found["nuscenes"] == {"NDS": 0.3, "mAP": 0.7} and found["chosen_by"] == "NDS"


def test_damaged_lines_of_a_log_are_left_out() -> None:
    log = '{"kind": "eval", "epoch": 1}\n{"kind": "train", "epoch": 1}\n[]\n{"kind"\n{"kind": "eval", "epoch": 2}'
    assert [line["epoch"] for line in evaluation.logged_evaluations(log)] == [1, 2]


CAR = "Car 0.0 0 0.0 100 100 200 160 1.5 1.6 4.0 0.0 1.6 20 0\n"


@pytest.mark.parametrize("frames", [("seq1/000006", "seq2/000006"), ("cam0_000000", "cam0_000001")])
def test_predictions_are_evaluated_as_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: tuple[str, ...]
) -> None:
    labels = tmp_path / "training" / "label_2"
    for frame in frames:
        (labels / frame).parent.mkdir(parents=True, exist_ok=True)
        (labels / f"{frame}.txt").write_text(CAR)
    boxes = Boxes3D(
        torch.tensor([[0.0, 0.85, 20]]), torch.tensor([[4.0, 1.6, 1.5]]), torch.zeros(1),
        torch.tensor([KITTI_CLASSES.index("Car")]), "camera", score=torch.ones(1),
        box2d=torch.tensor([[100.0, 100, 200, 160]]), alpha=torch.zeros(1),
    )  # fmt: skip
    monkeypatch.setattr(evaluation, "detect", lambda *_: iter([(frame, boxes) for frame in frames]))
    config = SimpleNamespace(min_height_scale=1.0, names=KITTI_NAMES)
    detector: Any = None
    dataset: Any = SimpleNamespace(folder=labels.parent, classes=KITTI_CLASSES, config=config)
    evaluate_detector = inspect.unwrap(evaluation.evaluate_detector)  # stand-ins have other types
    first = evaluate_detector(detector, dataset, 1, torch.device("cpu"), Precision("fp32"), tmp_path / "run")
    again = evaluate_folders(labels, tmp_path / "run" / "predictions")
    assert again.explanation.frames == 2 and again.ap("car", "bbox") == first.ap("car", "bbox")
    assert again.precision("car", "bbox")[1, 0] == 1
