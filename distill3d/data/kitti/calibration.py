"""KITTI's calibration files. They are parsed with all their faults collected: the reader stops at the first one,
``check`` lists them all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from distill3d.camera import Camera
from distill3d.data.faults import Fault, number_or_nan, refuse_faults
from distill3d.files import read_text

#: Numbers on each known line of a calibration file, and the lines that must be there.
CALIBRATION_LINES = {"P0": 12, "P1": 12, "P2": 12, "P3": 12, "R0_rect": 9, "Tr_velo_to_cam": 12, "Tr_imu_to_velo": 12}
REQUIRED_LINES = ("P2", "R0_rect", "Tr_velo_to_cam")
#: How far the columns of a rotation may be from orthonormal.
ROTATION_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Calibration:
    """One frame's calibration file: camera 2 (left colour) and the way from the LiDAR to the rectified camera frame."""

    p2: Float[Tensor, "3 4"]  # float64
    r0_rect: Float[Tensor, "3 3"]
    tr_velo_to_cam: Float[Tensor, "3 4"]

    @property
    def camera(self) -> Camera:
        """The camera that took ``image_2``; it projects points of the rectified camera frame."""
        return Camera(self.p2)

    @property
    def lidar_to_rect(self) -> Float[Tensor, "4 4"]:
        """LiDAR points into the rectified camera frame: R0_rect after Tr_velo_to_cam."""
        matrix = torch.eye(4, dtype=self.r0_rect.dtype)
        matrix[:3] = self.r0_rect @ self.tr_velo_to_cam
        return matrix


def parse_calibration(
    text: str, lines: Mapping[str, int] = CALIBRATION_LINES, required: tuple[str, ...] = REQUIRED_LINES
) -> tuple[dict[str, Tensor], list[Fault]]:
    """The known matrices of a calibration file by name, float64, and its faults in file order.

    ``lines``: the names that are known, and how many numbers each has; ``required``: those that must be there.
    """
    matrices: dict[str, Tensor] = {}
    faults: list[Fault] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, colon, values = line.partition(":")
        if not colon:
            faults.append(Fault(number, "expected `name: numbers`"))
            continue
        if name not in lines:
            continue
        numbers = [number_or_nan(v) for v in values.split()]
        if len(numbers) != lines[name]:
            faults.append(Fault(number, f"{name} has {len(numbers)} numbers, expected {lines[name]}"))
        elif not all(math.isfinite(n) for n in numbers):
            faults.append(Fault(number, f"{name} holds a value that is not a finite number"))
        else:
            matrix = torch.tensor(numbers, dtype=torch.float64).reshape(3, -1)
            faults += [Fault(number, s) for s in _matrix_faults(name, matrix)]
            matrices[name] = matrix
    named = {line.partition(":")[0] for line in text.splitlines()}
    faults += [Fault(None, f"the line {name} is missing") for name in required if name not in named]
    return matrices, faults


def _matrix_faults(name: str, matrix: Float[Tensor, "3 c"]) -> Iterator[str]:
    if name.startswith("P"):
        if matrix[2, :3].tolist() != [0, 0, 1] or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
            yield f"{name} is no projection of a rectified camera (positive focal lengths, third row 0 0 1)"
        return
    if matrix.shape[1] == 1:  # a translation
        return
    rotation = matrix[:, :3]
    error = (rotation @ rotation.T - torch.eye(3, dtype=rotation.dtype)).abs().max()
    if error > ROTATION_TOLERANCE or torch.linalg.det(rotation) < 0:
        yield f"{name} does not hold a rotation"


def read_calibration(path: Path) -> Calibration:
    """A calibration file.

    Raises:
        UserError: it is absent, lacks a required line, or a line is malformed.
    """
    matrices, faults = parse_calibration(read_text(path))
    refuse_faults(path, faults)
    return Calibration(*(matrices[name] for name in REQUIRED_LINES))
