"""From a detector and a split to predictions on disk and official numbers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from distill3d.boxes import Boxes3D
from distill3d.data.collate import batches
from distill3d.data.kitti.dataset import KittiDataset
from distill3d.data.kitti.labels import format_results
from distill3d.data.nuscenes.dataset import NuScenesDataset
from distill3d.data.sample import Batch, Dataset
from distill3d.data.surround import SurroundBatch
from distill3d.detectors.base import CAMERA_INPUTS, POINT_INPUTS, Detector, Modality
from distill3d.evaluate import nuscenes
from distill3d.evaluate.kitti import ABOUT, Annotations, Result, about_predictions, evaluate, rules_of
from distill3d.evaluate.nuscenes_submission import SubmissionMeta, read_submission, write_submission
from distill3d.files import write_text
from distill3d.train.precision import Precision
from distill3d.train.progress import ProgressBar

EVALUATION, PREDICTIONS = "evaluation.json", "predictions"
#: Where the best of a training's evaluations stands in evaluation.json and card.json; also a kind of line of its log.
BEST_OF_REPORTED = "best_of_reported"
#: Of KITTI papers state these three numbers, and choose by the second, at moderate difficulty.
STATED_AP, MODERATE = "car_3d_strict", 1
#: The official result file of a surround view's predictions, in their folder.
SUBMISSION = "submission.json"


@torch.no_grad()
def detect(
    detector: Detector, dataset: Dataset, batch_size: int, device: torch.device, precision: Precision,
    progress: bool = False,
) -> Iterator[tuple[str, Boxes3D]]:  # fmt: skip
    """Frame ids and detections (on the CPU) of every frame, in order; the detector's mode is left as found."""
    training = detector.training
    detector.eval()
    with ProgressBar("detections", len(dataset), visible=progress) as bar:
        for batch in batches(dataset, list(range(len(dataset))), batch_size, None, 0):
            for frame, boxes in zip(batch.frame_ids, detect_in(detector, batch, device, precision), strict=True):
                yield frame, boxes
                bar.advance()
    detector.train(training)


def detect_in(
    detector: Detector, batch: Batch | SurroundBatch, device: torch.device, precision: Precision
) -> list[Boxes3D]:
    """The detections (on the CPU) in each frame of a batch, as an evaluation has them, of a detector in eval mode."""
    batch = batch.to(device)
    with precision.autocast(device):
        outputs = detector(batch)
    return [boxes.to("cpu") for boxes in detector.decode(outputs, batch)]


def submission_meta(modality: Modality) -> SubmissionMeta:
    """What a submission says of a detector that looks at this."""
    lidar = modality in POINT_INPUTS or modality == "rgb+gt_depth"  # whose depth is the scan's
    return SubmissionMeta(use_camera=modality in CAMERA_INPUTS, use_lidar=lidar)


def evaluate_detector(
    detector: Detector, dataset: KittiDataset, batch_size: int, device: torch.device, precision: Precision,
    folder: Path | None = None, progress: bool = False, overlaps: tuple[str, ...] = (),
) -> Result:  # fmt: skip
    """The official evaluation on a split, for the data set's classes (``evaluate.kitti.rules_of``); with ``folder``,
    predictions and evaluation.json are written there."""
    lines = {
        frame: format_results(boxes, dataset.classes)
        for frame, boxes in detect(detector, dataset, batch_size, device, precision, progress)
    }
    texts = {frame: "".join(f"{line}\n" for line in rows) for frame, rows in lines.items()}
    labels = Annotations.from_folder(dataset.folder / "label_2", scored=False, frames=tuple(texts))
    result = evaluate(
        labels, Annotations.from_lines(texts, scored=True), frames=tuple(texts),
        min_height_scale=dataset.config.min_height_scale, rules=rules_of(dataset.config.names, overlaps),
    )  # fmt: skip
    if folder is not None:
        write_text(folder / PREDICTIONS / ABOUT, about_predictions(result.min_height_scale, overlaps))
        for frame, text in texts.items():
            write_text(folder / PREDICTIONS / f"{frame}.txt", text, flush=False)
        write_text(folder / EVALUATION, json.dumps(result.to_json(), indent=1))
    return result


def selecting_score(result: Result) -> float:
    """What the best weights are chosen by: 3D AP at moderate difficulty and loose overlap, of cars, or where there are
    none the mean of all classes."""
    names = ("car",) if "car" in result.rules.classes else result.rules.classes
    return sum(result.ap(name, "3d", "loose")[MODERATE] for name in names) / len(names)


def summary(result: Result) -> dict[str, list[float]]:
    """AP per class, metric and overlap: {"car_3d_strict": [easy, moderate, hard], ...}."""
    return {
        f"{name}_{metric}_{overlap}": [round(v, 4) for v in result.ap(name, metric, overlap)]
        for name in result.rules.classes
        for metric in ("bbox", "bev", "3d")
        for overlap in ("strict", "loose")
        if result.evaluated[name, metric]
    }


def evaluate_surround(
    detector: Detector, dataset: NuScenesDataset, batch_size: int, device: torch.device, precision: Precision,
    folder: Path | None = None, progress: bool = False,
) -> nuscenes.NuScenesResult:  # fmt: skip
    """The official nuScenes evaluation on a split, for the data set's classes; by way of a submission file, which with
    ``folder`` is kept there, beside evaluation.json, whose settings name the cameras that were looked at."""
    tokens, meta = dataset.frame_ids, submission_meta(detector.config.input)
    truth = nuscenes.ground_truth(dataset.tables, tokens)
    poses = {token: dataset.ego_to_global(index) for index, token in enumerate(tokens)}
    with tempfile.TemporaryDirectory() as scratch:
        path = (Path(scratch) if folder is None else folder / PREDICTIONS) / SUBMISSION
        found = detect(detector, dataset, batch_size, device, precision, progress)
        write_submission(path, found, poses, getattr(detector.config, "classes", dataset.classes), meta)
        predictions = read_submission(path, tokens).seen_from(truth.ego_position)
    result = nuscenes.evaluate(truth.boxes, predictions, racks=truth.racks, classes=dataset.classes)
    if folder is not None:
        told = result.to_json()
        told["settings"]["cameras"] = list(dataset.cameras) if meta.use_camera else []
        write_text(folder / EVALUATION, json.dumps(told, indent=1))
    return result


def surround_summary(result: nuscenes.NuScenesResult) -> dict[str, Any]:
    """mAP, NDS (both 0..1), the mean true-positive errors and the AP of every class, as metrics.jsonl has them."""
    errors = result.to_json()["tp_errors"]
    ap = {name: round(float(row.mean()), 6) for name, row in zip(result.classes, result.ap, strict=True)}
    return {"mAP": round(result.mean_ap, 6), "NDS": round(result.nds, 6), "errors": errors, "ap": ap}


def logged_evaluations(log: str) -> list[dict[str, Any]]:
    """The evaluations in the text of a metrics.jsonl, in order; lines that are damaged are left out."""
    lines = []
    for text in log.splitlines():
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict) and line.get("kind") == "eval"]


def best_of_reported(evaluations: Mapping[int, Mapping[str, Any]], split: str) -> dict[str, Any] | None:
    """The best of a training's evaluations on the reported ``split``, which is what papers state: chosen by what it
    then claims, so it says more than any one training's end and decides nothing here.

    Args:
        evaluations: by epoch, each as its line of metrics.jsonl.

    Returns:
        {"of": how many there were, "epoch": the best one's, "split", "chosen_by", "ap" or "nuscenes": its numbers as in
        the line}, the earlier one of equals; None where none of them has the number to choose by.
    """
    stated = {epoch: found for epoch, line in evaluations.items() if (found := _stated(line)) is not None}
    if not stated:
        return None
    best = max(stated, key=lambda epoch: (stated[epoch][0], -epoch))
    _, chosen_by, numbers = stated[best]
    return {"of": len(evaluations), "epoch": best, "split": split, "chosen_by": chosen_by, **numbers}


def _stated(line: Mapping[str, Any]) -> tuple[float, str, dict[str, Any]] | None:
    """Of an evaluation the number that papers choose by, its name, and the numbers that they state."""
    if "nuscenes" in line:
        found = {name: line["nuscenes"][name] for name in ("NDS", "mAP")}
        return found["NDS"], "NDS", {"nuscenes": found}
    if STATED_AP not in line.get("ap", {}):
        return None
    ap = line["ap"][STATED_AP]
    return ap[MODERATE], "Car 3D AP|R40, moderate, IoU 0.7", {"ap": {STATED_AP: ap}}
