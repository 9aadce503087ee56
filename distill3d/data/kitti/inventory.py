"""What the labels of many frames hold, as columns: for counting what a detector can learn from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from distill3d.boxes import IGNORE
from distill3d.data.kitti.calibration import read_calibration
from distill3d.data.kitti.labels import read_labels, training_difficulty
from distill3d.data.kitti.names import KITTI_NAMES, LabelNames
from distill3d.data.sample import UNKNOWN
from distill3d.synth.settings import KITTI_WIDTH

#: Why an object is too little of a thing to be learnt from a picture.
NO_TRUNCATION = "truncation is -1, not annotated"
NO_BOX = "2D box has no area"
TOO_HARD = "too low, truncated or occluded"
#: The setting that scales KITTI's least heights of boxes (px), which are meant for pictures of its width.
SCALE_OPTION = "--dataset.min-height-scale"
#: KITTI's pictures are narrower than KITTI_WIDTH by up to so many px.
NARROWER = 18


def fitting_height_scale(width: int) -> float:
    """What KITTI's least heights of boxes are multiplied by for pictures of this width (px), in hundredths; 1 for all
    that are about as wide as KITTI's."""
    return 1.0 if width >= KITTI_WIDTH - NARROWER else max(round(width / KITTI_WIDTH, 2), 0.01)


@dataclass(frozen=True)
class Inventory:
    """The N objects of some frames, DontCare regions left out."""

    label: Int[np.ndarray, " n"]  # index into the names of the data set
    truncation: Float[np.ndarray, " n"]
    occlusion: Int[np.ndarray, " n"]
    box2d: Float[np.ndarray, "n 4"]  # px
    centre: Float[np.ndarray, "n 3"]  # m, camera frame
    lidar_centre: Float[np.ndarray, "n 3"]  # m, LiDAR's frame; NaN where a calibration says nothing of it
    size: Float[np.ndarray, "n 3"]  # m: length, width, height

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def of(cls, folder: Path, frames: Iterable[str], known: LabelNames = KITTI_NAMES) -> Inventory:
        """From the label and calibration files in ``folder/label_2`` and ``folder/calib``.

        Raises:
            UserError: a file is absent or malformed.
        """
        return cls.joined(cls.of_frame(folder, frame, known) for frame in frames)

    @classmethod
    def joined(cls, parts: Iterable[Inventory]) -> Inventory:
        """The objects of all parts, in order."""
        every = (_NOTHING, *parts)
        return cls(*(np.concatenate([getattr(part, f.name) for part in every]) for f in fields(cls)))

    @classmethod
    def of_frame(cls, folder: Path, frame: str, known: LabelNames = KITTI_NAMES) -> Inventory:
        """Of one frame, as ``of``."""
        objects = read_labels(folder / "label_2" / f"{frame}.txt", known=known)
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

    def rows(self, chosen: Bool[np.ndarray, " n"]) -> Inventory:
        """Some of the objects alone."""
        return Inventory(*(getattr(self, f.name)[chosen] for f in fields(self)))

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
