"""How the shipped student is judged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from distill3d.evaluate.kitti import Annotations

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import shipped  # noqa: E402


def line(name: str, left: float, top: float, depth: float, height: float = 60, score: float | None = None) -> str:
    box = f"{left} {top} {left + 80} {top + height}"
    return f"{name} 0 0 0 {box} 1.5 1.6 4 0 1.7 {depth} 0" + ("" if score is None else f" {score}")


LABELS = Annotations.from_lines(
    {"a": "\n".join([line("Car", 0, 100, 20), line("Car", 200, 100, 40), line("Van", 400, 100, 30),
                     line("DontCare", 600, 100, -1), line("Car", 800, 100, 50, height=20)])},
    scored=False,
)  # fmt: skip


def detections(*lines: str) -> Annotations:
    return Annotations.from_lines({"a": "\n".join(lines)}, scored=True)


def test_found_missed_wrong_and_neither() -> None:
    found = detections(
        line("Car", 2, 100, 22, score=0.9),  # finds the first, 10 % too far
        line("Car", 400, 100, 30, score=0.8),  # a van
        line("Car", 600, 100, 30, score=0.8),  # where labels leave open
        line("Car", 800, 100, 50, height=20, score=0.8),  # an object that does not count
        line("Car", 1000, 100, 50, score=0.7),  # nothing there
        line("Car", 1100, 100, 50, height=10, score=0.7),  # too small to count
        line("Pedestrian", 200, 100, 40, score=0.9),  # of another class
        line("Car", 200, 100, 40, score=0.1),  # below the threshold
    )
    told = shipped.found_in_image(LABELS, found, "car", 0.5)
    assert (told["objects"], told["found"], told["wrong"]) == (2, 1, 1)
    assert told["recall"] == told["precision"] == 0.5
    assert told["median_depth_error"] == pytest.approx(0.1)
    nothing = shipped.found_in_image(LABELS, found, "car", 2.0)
    assert nothing["found"] == 0 and nothing["median_depth_error"] is None


def test_the_threshold_is_where_recall_and_precision_are_best() -> None:
    found = detections(
        line("Car", 0, 100, 20, score=0.9), line("Car", 200, 100, 40, score=0.6),
        line("Car", 1000, 100, 50, score=0.3), line("Car", 300, 200, 50, score=0.2),
    )  # fmt: skip
    threshold = shipped.best_threshold(LABELS, found, "car", 1.0)
    assert 0.3 < threshold <= 0.6
    assert shipped.best_threshold(LABELS, detections(), "car", 1.0) == 0.0
