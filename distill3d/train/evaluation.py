"""From a detector and a split to predictions on disk and official numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from distill3d.boxes import Boxes3D
from distill3d.data.collate import batches
from distill3d.data.kitti import KittiDataset, format_results
from distill3d.detectors.base import Detector
from distill3d.evaluate.kitti import Annotations, Result, evaluate
from distill3d.train.checkpoint import write_text
from distill3d.train.precision import Precision

EVALUATION, PREDICTIONS = "evaluation.json", "predictions"


@torch.no_grad()
def detect(
    detector: Detector, dataset: KittiDataset, batch_size: int, device: torch.device, precision: Precision
) -> Iterator[tuple[str, Boxes3D]]:
    """Frame ids and detections (on the CPU) of every frame, in order; the detector's mode is left as found."""
    training = detector.training
    detector.eval()
    for batch in batches(dataset, list(range(len(dataset))), batch_size, None, 0):
        batch = batch.to(device)
        with precision.autocast(device):
            outputs = detector(batch)
        for frame, boxes in zip(batch.frame_ids, detector.decode(outputs, batch), strict=True):
            yield frame, boxes.to("cpu")
    detector.train(training)


def evaluate_detector(
    detector: Detector, dataset: KittiDataset, batch_size: int, device: torch.device, precision: Precision,
    folder: Path | None = None,
) -> Result:  # fmt: skip
    """The official evaluation on a split; with ``folder``, predictions and evaluation.json are written there."""
    lines = {
        frame: format_results(boxes, dataset.classes)
        for frame, boxes in detect(detector, dataset, batch_size, device, precision)
    }
    texts = {frame: "".join(f"{line}\n" for line in rows) for frame, rows in lines.items()}
    labels = Annotations.from_folder(dataset.folder / "label_2", scored=False, frames=tuple(texts))
    result = evaluate(
        labels, Annotations.from_lines(texts, scored=True), frames=tuple(texts),
        min_height_scale=dataset.config.min_height_scale,
    )  # fmt: skip
    if folder is not None:
        (folder / PREDICTIONS).mkdir(parents=True, exist_ok=True)
        for frame, text in texts.items():
            (folder / PREDICTIONS / f"{frame}.txt").write_text(text, encoding="utf-8")
        write_text(folder / EVALUATION, json.dumps(result.to_json(), indent=1))
    return result


def summary(result: Result) -> dict[str, list[float]]:
    """AP per class, metric and overlap: {"car_3d_strict": [easy, moderate, hard], ...}."""
    return {
        f"{name}_{metric}_{overlap}": [round(v, 4) for v in result.ap(name, metric, overlap)]
        for name in ("car", "pedestrian", "cyclist")
        for metric in ("bbox", "bev", "3d")
        for overlap in ("strict", "loose")
        if result.evaluated[name, metric]
    }
