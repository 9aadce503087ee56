"""A small surround-view data set and a run on it as the train loop leaves it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml

from distill3d.boxes import Boxes3D
from distill3d.data.nuscenes.dataset import NuScenesConfig, NuScenesDataset
from distill3d.evaluate import nuscenes
from distill3d.evaluate.nuscenes_submission import read_submission, write_submission
from distill3d.synth import SurroundStreetConfig, write_nuscenes
from distill3d.synth.nuscenes_records import VERSION

CLASSES = ("car", "truck", "bicycle", "pedestrian")
CANVAS = (64, 24)
DRIVE = SurroundStreetConfig(
    width=CANVAS[0], height=CANVAS[1], rays_per_pixel_side=1, frames_per_scene=2, lidar_rate=2.0, lidar_step=1.0,
    standing_share=0.0, image_format="png",
)  # fmt: skip


@dataclass(frozen=True)
class StageSpec:
    """A stage of the made-up run; what it found is the truth, moved forward by ``miss`` (m)."""

    role: str
    detector: str
    input: str
    miss: float
    found: int = 1  # every so many-th object
    method: str | None = None


STAGES = {
    "teacher": StageSpec("teacher", "centerpoint", "points", 0.1),
    "label_encoder": StageSpec("label_encoder", "label_encoder", "labels", 0.05),
    "baseline": StageSpec("baseline", "bevdepth", "rgb", 1.2, found=2),
    "lidar": StageSpec("student", "bevdepth", "rgb", 0.7, method="labeldistill"),
    "labeldistill": StageSpec("student", "bevdepth", "rgb", 0.4, method="labeldistill"),
}


def write_drive(root: Path) -> Path:
    """One scene of two key frames, which is the split ``val``."""
    return write_nuscenes(root, splits={"val": 1}, seed=3, config=DRIVE, workers=1, progress=False)


def open_drive(root: Path, *, images: bool = True) -> NuScenesDataset:
    """Its split, in memory."""
    return NuScenesDataset(
        NuScenesConfig(
            root=root, version=VERSION, split="val", classes=CLASSES, canvas=CANVAS, images=images, in_memory=True
        )
    )


def write_run(run: Path, root: Path, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Path:
    """A finished run with all of ``STAGES``."""
    run.mkdir(parents=True)
    dataset = {
        "root": str(root), "version": VERSION, "train_split": "train", "eval_split": "val", "classes": list(CLASSES),
        "canvas": list(CANVAS), "past": [], "sweeps": {"scans": 3}, "ego_frame": "mean_camera", "in_memory": True,
    }  # fmt: skip
    listed = [{"name": name, "role": spec.role, "detector": {"input": spec.input}} for name, spec in STAGES.items()]
    recipe = {"name": run.name, "dataset": dataset, "seed": seed, "stages": listed}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    drive = open_drive(root, images=False)
    for entry in listed:
        _write_stage(run / entry["name"], entry, drive, seed, classes)
    return run


def _write_stage(folder: Path, entry: dict, drive: NuScenesDataset, seed: int, classes: tuple[str, ...]) -> None:
    spec = STAGES[folder.name]
    (folder / "predictions").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(entry))
    result = write_predictions(folder, drive, spec.miss + 0.01 * seed, spec.found, classes)
    terms = {"heat": 2.0, "box": 1.0} | ({"labeldistill/lidar": 0.5} if spec.method else {})
    lines: list[dict] = [
        {"kind": "train", "step": step, "epoch": 0, "loss": 40 / step, "lr": 1e-3, "terms": terms}
        for step in range(1, 11)
    ]
    ap = {name: float(row.mean()) for name, row in zip(result.classes, result.ap, strict=True)}
    errors = result.to_json()["tp_errors"]
    found = {"mAP": result.mean_ap, "NDS": result.nds, "errors": errors, "ap": ap}
    lines.append({"kind": "eval", "step": 10, "epoch": 1, "nuscenes": found})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = {
        "stage": folder.name, "role": spec.role, "detector": spec.detector, "input": spec.input, "seed": seed,
        "epochs": 1, "method": spec.method, "parameters": 1234567, "precision": "fp32", "canvas": list(CANVAS),
        "classes": list(CLASSES), "version": VERSION, "past": [], "ego_frame": "mean_camera",
        "trained_on": {"count": 24, "sha256": "ab" * 32, "frames": [f"drives/{i:032x}" for i in range(24)]},
    }  # fmt: skip
    (folder / "card.json").write_text(json.dumps(card))


def write_predictions(
    folder: Path, drive: NuScenesDataset, miss: float, found: int, classes: tuple[str, ...] = CLASSES
) -> nuscenes.NuScenesResult:
    """submission.json and evaluation.json of a stage that finds every ``found``-th object ``miss`` metres ahead."""
    poses = {token: drive.ego_to_global(index) for index, token in enumerate(drive.frame_ids)}
    path = folder / "predictions" / "submission.json"
    write_submission(path, _detections(drive, miss, found), poses, CLASSES)
    truth = nuscenes.ground_truth(drive.tables, drive.frame_ids)
    predictions = read_submission(path, drive.frame_ids).seen_from(truth.ego_position)
    result = nuscenes.evaluate(truth.boxes, predictions, racks=truth.racks, classes=classes)
    (folder / "evaluation.json").write_text(json.dumps(result.to_json()))
    return result


def _detections(drive: NuScenesDataset, miss: float, found: int) -> Iterator[tuple[str, Boxes3D]]:
    for index, token in enumerate(drive.frame_ids):
        objects = drive.get(index).objects
        assert objects is not None
        boxes = objects.boxes[torch.arange(len(objects)) % found == 0]
        moved = boxes.centre + miss * boxes.heading()
        yield token, replace(boxes, centre=moved, score=torch.linspace(0.9, 0.5, len(boxes)))
