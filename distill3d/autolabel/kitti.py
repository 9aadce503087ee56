"""Labels in KITTI's layout, of its object data and of its raw drives.

    <out>/training/label_2/<frame>.txt      labels, as people write them
    <out>/training/result_2/<frame>.txt     the same lines with their scores, as detectors write them
    <out>/training/...                      links to the frames' other files
    <out>/ImageSets/auto.txt                the frames that were labelled; the data's own splits stand beside it

Raw frames keep their names, such as ``2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000005``, so that the
drives can still be told.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch

from distill3d.autolabel.sets import Found, LabelledSet, link
from distill3d.boxes import Boxes3D
from distill3d.camera import Camera
from distill3d.data.autolabels import SPLIT
from distill3d.data.kitti.calibration import Calibration
from distill3d.data.kitti.dataset import ENDINGS, KittiDataset, frame_file
from distill3d.data.kitti.detected import label_lines
from distill3d.data.kitti.labels import format_labels, read_labels
from distill3d.data.kitti.names import CLASSES_FILE, KITTI_NAMES
from distill3d.data.kitti.raw import IMAGES, SCANS, KittiRawDataset
from distill3d.data.sample import Batch
from distill3d.data.splits import read_split
from distill3d.errors import UserError
from distill3d.files import write_text

LABELS, RESULTS = "label_2", "result_2"
#: The split of the object data that people train on, and its union with labelled drives.
TRAIN, UNION = "train", "train_auto"


class KittiSet(LabelledSet):
    """Frames of KITTI's object data, or of its raw drives with the object data ``beside`` them."""

    def __init__(
        self, dataset: KittiDataset | KittiRawDataset, identity: str, height_scale: float, most: int | None,
        beside: Path | None = None,
    ) -> None:  # fmt: skip
        self.dataset, self.identity, self.height_scale = dataset, identity, height_scale
        self.frames = dataset.frame_ids[:most]
        self.source = dataset.root if isinstance(dataset, KittiDataset) else beside
        if self.source is not None and not (self.source / "training").is_dir():
            raise UserError(
                f"{self.source / 'training'}: no such folder, expected KITTI's layout (training/image_2, ...)"
            )

    def link(self, out: Path) -> None:
        if isinstance(self.dataset, KittiDataset):
            kinds = [LABELS]
            for folder in sorted(p for p in self.dataset.folder.iterdir() if p.is_dir()):
                if folder.name not in (LABELS, RESULTS) and not folder.name.startswith("."):
                    link(out / "training" / folder.name, folder)
        else:
            kinds = list(ENDINGS)
            self._link_drives(out, self.dataset)
        for frame in self._others:
            for kind in kinds:
                path = frame_file(self._source / "training", kind, frame)
                if path.is_file():
                    link(out / "training" / kind / path.relative_to(self._source / "training" / kind), path)

    def _link_drives(self, out: Path, data: KittiRawDataset) -> None:
        training = out / "training"
        for frame in self.frames:
            link(training / "image_2" / f"{frame}.png", data.folder / f"{frame}.png")
            link(training / "velodyne" / f"{frame}.bin", data.folder / f"{frame.replace(IMAGES, SCANS)}.bin")
            path = training / "calib" / f"{frame}.txt"
            if not path.exists():
                write_text(path, calibration_text(data.calibration(frame.split("/")[0])), flush=False)

    @property
    def _source(self) -> Path:
        assert self.source is not None
        return self.source

    @cached_property
    def _splits(self) -> dict[str, list[str]]:
        """The splits of the object data whose frames lie in its training folder."""
        if self.source is None:
            return {}
        folder = self.source / "training"
        splits = {path.stem: read_split(path) for path in sorted((self.source / "ImageSets").glob("*.txt"))}
        return {name: frames for name, frames in splits.items() if frame_file(folder, "image_2", frames[0]).is_file()}

    @property
    def _others(self) -> list[str]:
        """Frames of these splits that keep their labels."""
        labelled = set(self.frames)
        frames = dict.fromkeys(frame for split in self._splits.values() for frame in split)
        return [frame for frame in frames if frame not in labelled]

    def is_done(self, out: Path, frame: str) -> bool:
        return _path(out, RESULTS, frame).exists()

    def write(self, out: Path, batch: Batch, boxes: Boxes3D) -> None:
        (frame,) = batch.frame_ids
        camera, (width, height) = Camera(batch.source_camera.projection[0].cpu()), batch.affine.source_size[0].tolist()
        objects = label_lines(boxes, camera, (int(width), int(height)), self.height_scale)
        lines = format_labels(objects, self.dataset.classes)
        scores = objects.boxes.score
        assert scores is not None
        write_text(_path(out, LABELS, frame), "".join(f"{line}\n" for line in lines), flush=False)
        scored = (f"{line} {score:.6f}\n" for line, score in zip(lines, scores.tolist(), strict=True))
        write_text(_path(out, RESULTS, frame), "".join(scored), flush=False)  # last: it says that the frame is done

    def finish(self, out: Path) -> None:
        folder = out / "ImageSets"
        names = self.dataset.config.names
        if names != KITTI_NAMES:
            write_text(out / CLASSES_FILE, names.text)
        for name, split in self._splits.items():
            write_text(folder / f"{name}.txt", "".join(f"{frame}\n" for frame in split))
        if not isinstance(self.dataset, KittiDataset) and TRAIN in self._splits:
            write_text(folder / f"{UNION}.txt", "".join(f"{frame}\n" for frame in (*self._splits[TRAIN], *self.frames)))
        write_text(folder / f"{SPLIT}.txt", "".join(f"{frame}\n" for frame in self.frames))

    def found(self, out: Path) -> Iterator[Found]:
        for frame in self.frames:
            boxes = read_labels(_path(out, RESULTS, frame), known=self.dataset.config.names).boxes
            if len(boxes):
                assert boxes.score is not None
                away = boxes.centre[:, [0, 2]].norm(dim=1)
                rows = zip(boxes.label.tolist(), away.tolist(), boxes.score.tolist(), strict=True)
                yield from (Found(self.dataset.classes[label], distance, score) for label, distance, score in rows)


def _path(out: Path, kind: str, frame: str) -> Path:
    return out / "training" / kind / f"{frame}.txt"


def calibration_text(calibration: Calibration) -> str:
    """A calibration in the object data's style.

    Raises:
        UserError: the way from the LiDAR is not known.
    """
    _ = calibration.lidar_to_rect
    rows = {"P2": calibration.p2, "R0_rect": calibration.r0_rect, "Tr_velo_to_cam": calibration.tr_velo_to_cam}
    return "".join(
        f"{name}: {' '.join(f'{v:.12e}' for v in matrix.flatten().tolist())}\n"
        for name, matrix in rows.items()
        if isinstance(matrix, torch.Tensor)
    )
