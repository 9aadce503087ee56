"""Time and memory of a whole nuScenes evaluation: a submission file read, and the metric over ten classes.

    python benchmarks/nuscenes_eval.py [--samples 6019]

The set is made up, with the size of nuScenes' validation split: 6,019 samples of about 31 annotations, and 300
predictions in each, half of them near annotations as a detector's many weak boxes lie.  Reading and evaluating are
measured in a process of their own.  In the same run the metric's APs are found by a plain loop over boxes, on few
samples, and the ratio is recorded.  Writes benchmarks/results/nuscenes_eval.json.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine

from distill3d.boxes import Boxes3D
from distill3d.evaluate.nuscenes import OFFICIAL, BicycleRacks, evaluate
from distill3d.evaluate.nuscenes_boxes import CLASSES, DetectionBoxes
from distill3d.evaluate.nuscenes_submission import read_submission, write_submission

RESULT = Path(__file__).resolve().parent / "results" / "nuscenes_eval.json"
SAMPLES = 6019  # nuScenes' validation split
ANNOTATIONS_PER_SAMPLE = 31
PREDICTIONS_PER_SAMPLE = 300
NEAR_SHARE = 0.5  # of the predictions
NEAR_SPREAD = 1.5  # m
FARTHEST = 55.0  # m
#: Rough shares of the annotations, in the order of the classes.
SHARES = np.array([0.43, 0.08, 0.01, 0.02, 0.02, 0.13, 0.01, 0.01, 0.21, 0.08])
PLAIN_SAMPLES = 40  # the plain loop is slow
SEED = 0


def made_up(samples: int) -> tuple[DetectionBoxes, DetectionBoxes]:
    """Annotations and predictions, the vehicle at the origin."""
    rng = np.random.default_rng(SEED)
    tokens = tuple(f"{i:032x}" for i in range(samples))
    sample = np.repeat(np.arange(samples), rng.poisson(ANNOTATIONS_PER_SAMPLE, samples))
    count = len(sample)
    label = rng.choice(len(CLASSES), count, p=SHARES / SHARES.sum())
    place = places(rng, count)
    truth = columns(rng, tokens, sample, label, place, np.full(count, -1.0), rng.integers(0, 40, count))

    sample = np.repeat(np.arange(samples), PREDICTIONS_PER_SAMPLE)
    count = len(sample)
    label, place = rng.choice(len(CLASSES), count, p=SHARES / SHARES.sum()), places(rng, count)
    first = np.searchsorted(truth.sample, np.arange(samples + 1))
    there = np.diff(first)[sample]
    near = (rng.random(count) < NEAR_SHARE) & (there > 0)
    source = first[sample[near]] + (rng.random(int(near.sum())) * there[near]).astype(np.int64)
    label[near] = truth.label[source]
    place[near] = truth.translation[source, :2] + rng.normal(0, NEAR_SPREAD, (len(source), 2))
    score = np.where(near, rng.beta(2, 4, count), rng.beta(1, 9, count))
    return truth, columns(rng, tokens, sample, label, place, score, np.full(count, -1))


def places(rng: np.random.Generator, count: int) -> np.ndarray:
    distance, angle = FARTHEST * rng.random(count), 2 * np.pi * rng.random(count)
    return np.column_stack([distance * np.cos(angle), distance * np.sin(angle)])


def columns(
    rng: np.random.Generator,
    tokens: tuple[str, ...],
    sample: np.ndarray,
    label: np.ndarray,
    place: np.ndarray,
    score: np.ndarray,
    num_pts: np.ndarray,
) -> DetectionBoxes:
    count = len(sample)
    return DetectionBoxes(
        samples=tokens,
        classes=CLASSES,
        sample=sample,
        label=label,
        translation=np.column_stack([place, rng.normal(0, 1, count)]),
        wlh=rng.uniform(0.5, 5, (count, 3)),
        yaw=rng.uniform(-np.pi, np.pi, count),
        velocity=rng.normal(0, 2, (count, 2)),
        score=score,
        attribute=rng.integers(-1, 8, count),
        num_pts=num_pts,
        ego_distance=np.linalg.norm(place, axis=1),
    )


def detections(boxes: DetectionBoxes) -> Iterator[tuple[str, Boxes3D]]:
    """The predictions sample by sample, as a detector gives them."""
    first = np.searchsorted(boxes.sample, np.arange(len(boxes.samples) + 1))
    for token, start, stop in zip(boxes.samples, first, first[1:], strict=False):
        rows = slice(start, stop)
        yield (
            token,
            Boxes3D(
                centre=torch.from_numpy(boxes.translation[rows]),
                size=torch.from_numpy(boxes.wlh[rows][:, [1, 0, 2]]),
                yaw=torch.from_numpy(boxes.yaw[rows]),
                label=torch.from_numpy(boxes.label[rows]),
                frame="ego",
                score=torch.from_numpy(boxes.score[rows]),
                velocity=torch.from_numpy(boxes.velocity[rows]),
            ),
        )


def no_racks() -> BicycleRacks:
    return BicycleRacks(np.zeros(0, dtype=np.int64), np.zeros((0, 4, 4)), np.zeros((0, 3)))


def plain_aps(truth: DetectionBoxes, found: DetectionBoxes) -> np.ndarray:
    """AP (K, T) by loops over boxes, one object each."""

    def objects(boxes: DetectionBoxes) -> list[dict[str, Any]]:
        rows = zip(
            boxes.sample, boxes.label, boxes.translation, boxes.score, boxes.num_pts, boxes.ego_distance, strict=True
        )
        return [
            {"sample": s, "label": k, "xy": xyz[:2], "score": score}
            for s, k, xyz, score, points, distance in rows
            if distance < OFFICIAL.class_range[CLASSES[k]] and points != 0
        ]

    of_sample: dict[tuple[int, int], list[dict[str, Any]]] = {}
    annotated = objects(truth)
    for box in annotated:
        of_sample.setdefault((box["sample"], box["label"]), []).append(box)
    predicted = objects(found)
    ap = np.zeros((len(CLASSES), len(OFFICIAL.distances)))
    for label in range(len(CLASSES)):
        of_class = [box for box in predicted if box["label"] == label]
        order = sorted(range(len(of_class)), key=lambda i: (of_class[i]["score"], i), reverse=True)
        total = sum(box["label"] == label for box in annotated)
        for t, threshold in enumerate(OFFICIAL.distances):
            taken: set[int] = set()
            hits: list[bool] = []
            for i in order:
                nearest, least = None, math.inf
                for box in of_sample.get((of_class[i]["sample"], label), []):
                    if id(box) not in taken:
                        distance = float(np.linalg.norm(of_class[i]["xy"] - box["xy"]))
                        if distance < least:
                            nearest, least = box, distance
                hits.append(least < threshold)
                if hits[-1]:
                    taken.add(id(nearest))
            if any(hits):
                right = np.cumsum(hits)
                points = np.linspace(0, 1, 101)
                curve = np.interp(points, right / total, right / np.arange(1, len(hits) + 1), right=0)
                beyond = curve[OFFICIAL.first_point :] - OFFICIAL.min_precision
                ap[label, t] = np.maximum(beyond, 0).mean() / (1 - OFFICIAL.min_precision)
    return ap


def compare_with_plain() -> dict[str, Any]:
    """Both ways on the same few samples."""
    truth, found = made_up(PLAIN_SAMPLES)
    evaluate(truth, found, racks=no_racks())  # first calls are slow
    start = time.perf_counter()
    ours = evaluate(truth, found, racks=no_racks())
    middle = time.perf_counter()
    plain = plain_aps(truth, found)
    end = time.perf_counter()
    if not np.allclose(ours.ap, plain, rtol=0, atol=1e-9):
        raise SystemExit("the plain loop found other APs")
    return {
        "samples": PLAIN_SAMPLES,
        "seconds": round(middle - start, 4),
        "plain_seconds": round(end - middle, 3),
        "plain_relative": round((end - middle) / (middle - start), 1),
    }


def measure(folder: Path) -> dict[str, Any]:
    """Read and evaluate the set in the folder; seconds and peak memory of this process."""
    with np.load(folder / "truth.npz") as stored:
        values = dict(stored)
    tokens = tuple(values.pop("samples").tolist())
    truth = DetectionBoxes(samples=tokens, classes=CLASSES, **values)
    start = time.perf_counter()
    found = read_submission(folder / "submission.json", tokens).seen_from(np.zeros((len(tokens), 3)))
    read = time.perf_counter()
    result = evaluate(truth, found, racks=no_racks())
    end = time.perf_counter()
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return {
        "annotations": len(truth),
        "predictions": len(found),
        "read_seconds": round(read - start, 2),
        "evaluate_seconds": round(end - read, 2),
        "seconds": round(end - start, 2),
        "peak_mib": round(kilobytes / 1024),
        "mean_ap": round(result.mean_ap, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # the folder, in a process of its own
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truth, found = made_up(options.samples)
        arrays = {key: value for key, value in vars(truth).items() if key != "classes"}
        np.savez(folder / "truth.npz", **{**arrays, "samples": np.array(truth.samples)})
        submission = folder / "submission.json"
        start = time.perf_counter()
        write_submission(submission, detections(found), dict.fromkeys(truth.samples, torch.eye(4, dtype=torch.float64)))
        written = time.perf_counter() - start
        command = [sys.executable, __file__, "--measure", str(folder)]
        measured = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        figures = {
            "samples": options.samples,
            "file_mib": round(submission.stat().st_size / 2**20),
            "write_seconds": round(written, 2),
            **measured,
        }
    figures |= {"beside_a_plain_loop": compare_with_plain(), "machine": describe_machine()}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
