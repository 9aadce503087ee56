"""The whole evaluation against the recorded output of the official program."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import constants, golden_files, stem

from distill3d.data.nuscenes.tables import pose_matrices
from distill3d.evaluate.nuscenes import BicycleRacks, DetectionConfig, evaluate
from distill3d.evaluate.nuscenes_boxes import ATTRIBUTES, NO_ATTRIBUTE, DetectionBoxes, yaw_of

TOLERANCE = 1e-6  # of the index, absolute
FILES = golden_files("nuscenes")
if not FILES:
    pytest.skip("no recorded results (set DISTILL3D_GOLDEN)", allow_module_level=True)


def config_of(path: Path) -> DetectionConfig:
    stated = constants(path)
    return DetectionConfig(
        class_range=stated["class_range"],
        distances=tuple(stated["dist_ths"]),
        tp_distance=stated["dist_th_tp"],
        min_recall=stated["min_recall"],
        min_precision=stated["min_precision"],
        max_boxes=stated["max_boxes"],
        map_weight=stated["mean_ap_weight"],
    )


def columns(boxes: Mapping[str, list[dict[str, Any]]], classes: tuple[str, ...]) -> DetectionBoxes:
    rows = [(i, box) for i, sample in enumerate(boxes) for box in boxes[sample]]
    attribute = {"": NO_ATTRIBUTE, **{name: i for i, name in enumerate(ATTRIBUTES)}}

    def numbers(key: str, width: int) -> np.ndarray:
        return np.array([box[key] for _, box in rows], dtype=np.float64).reshape(-1, width)

    return DetectionBoxes(
        samples=tuple(boxes),
        classes=classes,
        sample=np.array([i for i, _ in rows], dtype=np.int64),
        label=np.array([classes.index(box["detection_name"]) for _, box in rows], dtype=np.int64),
        translation=numbers("translation", 3),
        wlh=numbers("size", 3),
        yaw=yaw_of(numbers("rotation", 4)),
        velocity=numbers("velocity", 2),
        score=numbers("detection_score", 1)[:, 0],
        attribute=np.array([attribute[box["attribute_name"]] for _, box in rows], dtype=np.int64),
        num_pts=np.array([box["num_pts"] for _, box in rows], dtype=np.int64),
        # As recorded: the synthetic sets give a prediction the distance of the object that it stems from.
        ego_distance=np.linalg.norm(numbers("ego_translation", 3)[:, :2], axis=1),
    )


def rack_columns(racks: Mapping[str, list[dict[str, Any]]], samples: tuple[str, ...]) -> BicycleRacks:
    rows = [(samples.index(sample), rack) for sample, listed in racks.items() for rack in listed]

    def numbers(key: str, width: int) -> np.ndarray:
        return np.array([rack[key] for _, rack in rows], dtype=np.float64).reshape(-1, width)

    pose = pose_matrices(numbers("translation", 3), numbers("rotation", 4))
    return BicycleRacks(np.array([i for i, _ in rows], dtype=np.int64), pose, numbers("size", 3))


def close(ours: Any, official: Any, where: str) -> None:
    """Equal structures, numbers up to the tolerance, null equal to null."""
    if isinstance(official, dict):
        assert {str(key) for key in ours} == set(official), where
        for key in official:
            close(ours[key], official[key], f"{where}/{key}")
    elif official is None:
        assert ours is None, where
    else:
        assert ours == pytest.approx(official, rel=0, abs=TOLERANCE), where


@pytest.mark.golden
@pytest.mark.parametrize("path", FILES, ids=[f"nuscenes/{stem(path)}" for path in FILES])
def test_equals_the_official_program(path: Path) -> None:
    recorded = json.loads(gzip.decompress(path.read_bytes()))
    config = config_of(path)
    classes = tuple(config.class_range)
    truth = columns(recorded["ground_truth"], classes)
    predictions = columns(recorded["predictions"], classes)
    racks = rack_columns(recorded["bicycle_racks"], truth.samples)
    result = evaluate(truth, predictions, racks=racks, config=config)
    ours, official = result.to_json(), recorded["result"]
    for key in set(official) - {"counts", "kept_per_class"}:
        close(ours[key], official[key], key)
    counts = official["counts"]
    assert (result.ground_truth.given, result.ground_truth.outside_racks) == (counts["gt"], counts["gt_kept"])
    assert (result.predictions.given, result.predictions.outside_racks) == (counts["pred"], counts["pred_kept"])
    assert ours["kept_per_class"] == official["kept_per_class"]
