"""What the labels of many frames hold, as columns: for counting what a detector can learn from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from distill3d.boxes import IGNORE, KITTI_CLASSES
from distill3d.data.kitti.calibration import read_calibration
from distill3d.data.kitti.labels import read_labels, training_difficulty
from distill3d.data.pictures import picture_size
from distill3d.data.sample import UNKNOWN

KITTI_WIDTH = 1242  # px
#: Why an object is too little of a thing to be learnt from a picture.
NO_TRUNCATION = "truncation is -1, not annotated"
NO_BOX = "2D box has no area"
TOO_HARD = "too low, truncated or occluded"


@dataclass(frozen=True)
class Inventory:
    """The N objects of some frames, DontCare regions left out."""

    label: Int[np.ndarray, " n"]  # index into ``KITTI_CLASSES``
    truncation: Float[np.ndarray, " n"]
    occlusion: Int[np.ndarray, " n"]
    box2d: Float[np.ndarray, "n 4"]  # px
    centre: Float[np.ndarray, "n 3"]  # m, camera frame
    lidar_centre: Float[np.ndarray, "n 3"]  # m, LiDAR's frame; NaN where a calibration says nothing of it
    size: Float[np.ndarray, "n 3"]  # m: length, width, height

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def of(cls, folder: Path, frames: Iterable[str]) -> Inventory:
        """From the label and calibration files in ``folder/label_2`` and ``folder/calib``.

        Raises:
            UserError: a file is absent or malformed.
        """
        parts = [cls._of_frame(folder, frame) for frame in frames]
        return cls(*(np.concatenate([getattr(p, f.name) for p in (_NOTHING, *parts)]) for f in fields(cls)))

    @classmethod
    def _of_frame(cls, folder: Path, frame: str) -> Inventory:
        objects = read_labels(folder / "label_2" / f"{frame}.txt")
        objects = objects[objects.boxes.label != IGNORE]
        if not len(objects):
            return _NOTHING
        calibration = read_calibration(folder / "calib" / f"{frame}.txt")
        boxes = objects.boxes
        assert boxes.box2d is not None
        lidar = torch.full_like(boxes.centre, torch.nan)
        if calibration.has_lidar:
            to_lidar = calibration.lidar_to_rect.inverse()
            lidar = boxes.centre @ to_lidar[:3, :3].T + to_lidar[:3, 3]
        columns = (boxes.label, objects.truncation, objects.occlusion, boxes.box2d, boxes.centre, lidar, boxes.size)
        return cls(*(c.numpy() for c in columns))

    def difficulty(self, height_scale: float) -> Int[np.ndarray, " n"]:
        """EASY, MODERATE, HARD or UNKNOWN, as training has it."""
        box2d, truncation, occlusion = map(torch.from_numpy, (self.box2d, self.truncation, self.occlusion))
        return training_difficulty(box2d, truncation, occlusion, height_scale).numpy()

    def unseen(self, height_scale: float) -> dict[str, Bool[np.ndarray, " n"]]:
        """Which objects detectors of pictures leave out, by reason."""
        unknown = self.difficulty(height_scale) == UNKNOWN
        flat = unknown & ((self.box2d[:, 2:] - self.box2d[:, :2]) <= 0).any(1)
        bare = unknown & (self.truncation == -1)
        return {NO_TRUNCATION: bare, NO_BOX: flat & ~bare, TOO_HARD: unknown & ~flat & ~bare}


_NOTHING = Inventory(
    np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64), np.empty((0, 4)), np.empty((0, 3)), np.empty((0, 3)),
    np.empty((0, 3)),
)  # fmt: skip


def kitti_contents(root: Path) -> Iterator[str]:
    """One line for each labelled class of a sound data set: how many objects there are, and how many of them networks
    that look at pictures can learn; a warning where those are none.

    Raises:
        UserError: a file is absent or malformed.
    """
    folder = root / "training"
    labels = folder / "label_2"
    frames = sorted(p.relative_to(labels).with_suffix("").as_posix() for p in labels.rglob("*.txt"))
    if not frames:
        return
    objects = Inventory.of(folder, frames)
    width = picture_size(folder / "image_2" / f"{frames[0]}.png")[0]
    drops = objects.unseen(min(width / KITTI_WIDTH, 1.0))
    for number, name in enumerate(KITTI_CLASSES):
        of_class = objects.label == number
        counts = {reason: int((mask & of_class).sum()) for reason, mask in drops.items()}
        total, dropped = int(of_class.sum()), sum(counts.values())
        why = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
        if total:
            begin = "warning: " if dropped == total else ""
            yield f"{begin}{name}: {total - dropped} of {total} objects can be learnt from pictures" + (
                f" ({why})" if why else ""
            )
