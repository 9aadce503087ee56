"""A trained detector in place of people: its boxes as the labels of a folder of frames, to train on like any other.

The folder that is written is a data root of the same layout: pictures, scans and calibrations are links, the labels of
the chosen frames are the detector's, those of all others, such as a split to evaluate on, stay as they are.  Frames are
looked at one by one, so that a command that was ended and called again writes the same bytes as one that was not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from distill3d.autolabel.kitti import KittiSet
from distill3d.autolabel.nuscenes import SurroundSet
from distill3d.autolabel.sets import Found, LabelledSet
from distill3d.data.autolabels import RECORD
from distill3d.data.collate import batches
from distill3d.data.kitti.dataset import KittiConfig, KittiDataset
from distill3d.data.kitti.raw import KittiRawConfig, KittiRawDataset, list_raw_frames
from distill3d.data.nuscenes.dataset import NuScenesConfig, NuScenesDataset
from distill3d.detectors.base import Detector
from distill3d.devices import find_device
from distill3d.errors import UserError
from distill3d.files import PART_BEGIN, read_json, sweep_below, write_text
from distill3d.lock import LOCK, only_writer
from distill3d.picture import FOCAL_TOLERANCE
from distill3d.settings import Number, Share, Workers, check_settings
from distill3d.train.card import require
from distill3d.train.checkpoint import load_detector, weights_sum
from distill3d.train.progress import ProgressBar
from distill3d.train.recipe import SurroundDatasetConfig
from distill3d.train.rigs import cameras_of, refuse_other_rig
from distill3d.train.sources import frame_settings, surround_settings
from distill3d.train.stages import data_of
from distill3d.train.teachers import listed

Layout = Literal["kitti", "raw", "nuscenes"]
#: Distances by which boxes are counted, m.
RINGS = (0.0, 20.0, 40.0)


@dataclass(frozen=True)
class AutolabelConfig:
    """Which boxes become labels of which frames, and where."""

    out: Path  # the folder to write, with links to pictures and scans
    layout: Layout = "kitti"  # raw: KITTI's raw drives
    split: str = "train"  # of kitti and nuscenes: the frames to label; others keep their labels
    frames: Path | None = None  # of raw: a list of frames, as raw-list writes it; by default all
    beside: Path | None = None  # of raw: the object data's folder, whose frames and splits stand beside the drives'
    version: str = "v1.0-trainval"  # of nuscenes: folder of the tables
    cameras: tuple[str, ...] = ()  # of nuscenes; by default those of training
    score: Share = 0.5  # boxes of a lower one are left out
    max_frames: Number | None = None  # the first ones alone
    workers: Workers = 0  # processes that load frames
    device: str = "auto"


@dataclass(frozen=True)
class Summary:
    """What was written."""

    out: Path
    frames: int
    found: list[Found]
    remarks: list[str]

    def text(self) -> str:
        """A table of boxes by class and distance with their mean scores, and what is to be known."""
        ends = (*(f"{end:g}" for end in RINGS[1:]), "")
        names = [f"{begin:g}-{end} m" if end else f"{begin:g}+ m" for begin, end in zip(RINGS, ends, strict=True)]
        rows = [["class", *names]]
        for label in sorted({one.label for one in self.found}):
            rows.append([label, *(self._cell(label, ring) for ring in range(len(RINGS)))])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([f"{self.out}: {len(self.found)} boxes in {self.frames} frames", *table, *self.remarks])

    def _cell(self, label: str, ring: int) -> str:
        begin, end = RINGS[ring], (*RINGS[1:], float("inf"))[ring]
        scores = [one.score for one in self.found if one.label == label and begin <= one.distance < end]
        return f"{len(scores)} ({sum(scores) / len(scores):.2f})" if scores else "0"


def autolabel(run: Path, data: Path, config: AutolabelConfig, progress: bool = True) -> Summary:
    """Writes the set; frames that are labelled already are not looked at again.

    Args:
        run: the stage whose boxes are written: its folder, or its model.safetensors.
        data: the data set's folder.

    Raises:
        UserError: a setting, the run or the data do not fit, the folder holds something else or was begun with other
            settings, or another process is filling it.
    """
    check_settings(config)
    device = find_device(config.device)
    detector, card = load_detector(run)
    require(card, run, "trained_on.frames", "detector", "stage", "recipe")
    labelled = _open(run, data, config, detector, card)
    looks_for_depth = detector.config.input != "points" and "version" not in card
    if looks_for_depth:  # before anything is written
        first = labelled.dataset.get(0)
        _refuse_other_focal(first.camera.projection, first.frame_id, card, run)
    frames = labelled.frames
    record = {**_settings(data, config), "labeller": _labeller(run, card), "frames": frames}
    with _claimed(config.out, record):
        labelled.link(config.out)
        missing = [i for i, frame in enumerate(frames) if not labelled.is_done(config.out, frame)]
        detector.to(device)
        steps = batches(labelled.dataset, missing, 1, None, 0, config.workers)
        with ProgressBar("labels", len(frames), len(frames) - len(missing), progress) as bar, torch.no_grad():
            for batch in steps:
                batch = batch.to(device)
                if looks_for_depth:
                    _refuse_other_focal(batch.camera.projection[0], batch.frame_ids[0], card, run)
                (boxes,) = detector.decode(detector(batch), batch)
                assert boxes.score is not None
                boxes = boxes[boxes.score >= config.score].to("cpu")
                labelled.write(config.out, batch, boxes)
                bar.advance()
        labelled.finish(config.out)
    seen = set(card["trained_on"]["frames"])
    own = sum(frame in seen for frame in (listed(labelled.identity, f) for f in frames))
    return Summary(config.out, len(frames), list(labelled.found(config.out)), _remarks(config, card, own))


def _settings(data: Path, config: AutolabelConfig) -> dict[str, Any]:
    """What the labels depend on, as the record has it."""
    of_all = {"layout": config.layout, "data": str(data.resolve())}
    of_layout = {
        "kitti": {"split": config.split},
        "raw": {
            "list": None if config.frames is None else str(config.frames.resolve()),
            "beside": None if config.beside is None else str(config.beside.resolve()),
        },
        "nuscenes": {"split": config.split, "version": config.version, "cameras": list(config.cameras) or None},
    }[config.layout]
    return {**of_all, **of_layout, "score": config.score, "max_frames": config.max_frames}


def _labeller(run: Path, card: dict[str, Any]) -> dict[str, Any]:
    named = {name: card[name] for name in ("stage", "recipe", "role", "detector", "input") if name in card}
    return {**named, "sha256": weights_sum(run), "trained_on": card["trained_on"]}


def _remarks(config: AutolabelConfig, card: dict[str, Any], own: int) -> list[str]:
    by = f"labelled by stage {card['stage']!r} of {card['recipe']!r} ({card['detector']}, input {card['input']})"
    remarks = [f"{by}; the record is {config.out / RECORD}, the split of these frames is 'auto'"]
    if card["input"] == "rgb":
        remarks.append("it looks at pictures: its labels know no more than a camera does")
    if own:
        remarks.append(f"it was trained on {own} of these frames itself, and is surer of them than of others")
    return remarks


def _refuse_other_focal(projection: Float[Tensor, "3 4"], frame: str, card: dict[str, Any], run: Path) -> None:
    focal, learned = float(projection[0, 0]), card.get("focal")
    if learned is not None and abs(focal / learned - 1) > FOCAL_TOLERANCE:
        raise UserError(
            f"{run} learned depth at a focal length of {learned:.0f} px on its canvas, frame {frame} has "
            f"{focal:.0f} px: its boxes would be wrong by as much"
        )


# ----------------------------------------------------------------------------------------------------------- the data


def _open(run: Path, data: Path, config: AutolabelConfig, detector: Detector, card: dict[str, Any]) -> LabelledSet:
    """The frames as the detector saw those of its training, and how their labels are written.

    Raises:
        UserError: they do not fit.
    """
    inputs = {detector.config.input}
    surround = "version" in card
    if "labels" in inputs:
        raise UserError(f"{run} looks at labels, autolabel needs a detector that finds them")
    if surround != (config.layout == "nuscenes"):
        kind = "surround views, expected --layout nuscenes" if surround else "one camera's frames, expected KITTI's"
        raise UserError(f"{run} looks at {kind}")
    dataset = data_of(run, surround)
    if isinstance(dataset, SurroundDatasetConfig):
        dataset = replace(
            dataset, classes=getattr(detector.config, "classes", dataset.classes),  # that it names
            cameras=config.cameras or cameras_of(card),
        )  # fmt: skip
        refuse_other_rig(run, detector.config, card, dataset.cameras)
        moments = NuScenesDataset(
            NuScenesConfig(root=data, version=config.version, split=config.split,
                           **surround_settings(dataset, inputs))
        )  # fmt: skip
        return SurroundSet(moments, dataset.identity, config.max_frames)
    frames = frame_settings(dataset, inputs)
    if config.layout == "kitti":
        objects = KittiDataset(KittiConfig(root=data, split=config.split, **frames))
        return KittiSet(objects, dataset.identity, dataset.min_height_scale, config.max_frames)
    if frames["depth"] == "png":
        frames["depth"] = "completed"  # raw drives have no depth images
    listed_frames = config.frames if config.frames is not None else tuple(list_raw_frames(data))
    raw = KittiRawDataset(KittiRawConfig(root=data, frames=listed_frames, **frames))
    return KittiSet(raw, dataset.identity, dataset.min_height_scale, config.max_frames, config.beside)


@contextmanager
def _claimed(out: Path, record: dict[str, Any]) -> Iterator[None]:
    """In the block the folder is this process's alone, with the record in it.

    Raises:
        UserError: it holds something else, was begun with other settings, or another process is filling it.
    """
    record = json.loads(json.dumps(record))
    _is_ours(out, record)  # before anything is made there
    with only_writer(out, "is being labelled"):
        if not _is_ours(out, record):
            write_text(out / RECORD, json.dumps(record, indent=1) + "\n")
        sweep_below(out)
        yield


def _is_ours(out: Path, record: dict[str, Any]) -> bool:
    path = out / RECORD
    if path.exists():
        former = read_json(path)
        for name, value in record.items():
            if not isinstance(former, dict) or former.get(name) != value:
                raise UserError(f"{path}: the folder was begun with another {name}: give another --out, or remove it")
        return True
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, expected a folder to write")
    if out.is_dir() and (others := sorted(p.name for p in out.iterdir() if not p.name.startswith((LOCK, PART_BEGIN)))):
        raise UserError(f"{out}: holds {others[0]} and no {RECORD}, nothing was written: give another --out")
    return False
