"""Boxes as nuScenes' metric and its submission file see them: columns over many samples, official names.

Source: nutonomy/nuscenes-devkit python-sdk/nuscenes/eval/detection/data_classes.py, configs/detection_cvpr_2019.json.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Float, Int

from distill3d.boxes import NUSCENES_ATTRIBUTES

#: Official range of evaluation by class, m from the vehicle; the order is that of ``boxes.NUSCENES_CLASSES``.
CLASS_RANGE: dict[str, float] = {
    "car": 50, "truck": 50, "construction_vehicle": 50, "bus": 50, "trailer": 50, "barrier": 30, "motorcycle": 40,
    "bicycle": 40, "pedestrian": 40, "traffic_cone": 30,
}  # fmt: skip
CLASSES = tuple(CLASS_RANGE)
ATTRIBUTES = NUSCENES_ATTRIBUTES
NO_ATTRIBUTE = -1
PREDICTED_POINTS = -1  # number of points of a prediction: not counted
MAX_BOXES = 500  # predictions in a sample


@dataclass(frozen=True)
class DetectionBoxes:
    """N annotations or predictions in the global frame, column by column.

    Rows keep the order of their list, sample after sample: predictions of equal score are told apart by it.

    Raises:
        ValueError: columns of different length, or an index outside what it indexes.
    """

    samples: tuple[str, ...]  # tokens, also of samples without a box
    classes: tuple[str, ...]
    sample: Int[np.ndarray, " n"]  # index into ``samples``
    label: Int[np.ndarray, " n"]  # index into ``classes``
    translation: Float[np.ndarray, "n 3"]  # m, centre
    wlh: Float[np.ndarray, "n 3"]  # m, (width, length, height)
    yaw: Float[np.ndarray, " n"]  # rad, of the length axis on the ground
    velocity: Float[np.ndarray, "n 2"]  # m/s; NaN where an annotation's is unknown
    score: Float[np.ndarray, " n"]  # of annotations -1, never looked at
    attribute: Int[np.ndarray, " n"]  # index into ATTRIBUTES, or NO_ATTRIBUTE
    num_pts: Int[np.ndarray, " n"]  # LiDAR and radar points of an annotation; PREDICTED_POINTS of a prediction
    ego_distance: Float[np.ndarray, " n"]  # m, from the vehicle on the ground

    def __post_init__(self) -> None:
        widths = {"translation": (3,), "wlh": (3,), "velocity": (2,)}
        for name in _COLUMNS:
            shape = (len(self.sample), *widths.get(name, ()))
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have shape {shape}, not {getattr(self, name).shape}")
        limits = {"sample": (0, len(self.samples)), "label": (0, len(self.classes)), "attribute": (-1, len(ATTRIBUTES))}
        for name, (low, high) in limits.items():
            values = getattr(self, name)
            if len(values) and not low <= values.min() <= values.max() < high:
                raise ValueError(f"{name} must lie in {low}..{high - 1}, not {values.min()}..{values.max()}")

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, index: np.ndarray) -> DetectionBoxes:
        """The chosen rows (mask or indices), with all samples kept."""
        return replace(self, **{name: getattr(self, name)[index] for name in _COLUMNS})

    def seen_from(self, ego_position: Float[np.ndarray, "s 3"]) -> DetectionBoxes:
        """The same boxes with their distances from the vehicle, given where it is in each of the S samples."""
        offset = self.translation[:, :2] - ego_position[self.sample, :2]
        return replace(self, ego_distance=norm_of_rows(offset))


_COLUMNS = tuple(column.name for column in fields(DetectionBoxes) if column.name not in ("samples", "classes"))


def yaw_of(rotation: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    """Yaw (n,) in rad of the rotated x axis on the ground, of quaternions w, x, y, z of any length."""
    w, x, y, z = rotation.T
    return np.arctan2(2 * (x * y + w * z), w * w + x * x - y * y - z * z)


def norm_of_rows(offset: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
    """Euclidean length. Not hypot, which rounds otherwise than the official program next to a threshold."""
    return np.sqrt(offset[:, 0] ** 2 + offset[:, 1] ** 2)
