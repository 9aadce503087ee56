"""KITTI's calibration files. They are parsed with all their faults collected: the reader stops at the first one,
``check`` lists them all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from distill3d.camera import Camera
from distill3d.data.faults import Fault, number_or_nan, refuse_faults
from distill3d.errors import UserError
from distill3d.files import read_text

#: Numbers on each known line of a calibration file.
CALIBRATION_LINES = {"P0": 12, "P1": 12, "P2": 12, "P3": 12, "R0_rect": 9, "Tr_velo_to_cam": 12, "Tr_imu_to_velo": 12}
#: Other names of these lines: those of KITTI's tracking data and of the raw drives' calib_cam_to_cam.txt (KITTI
#: devkits, readme.txt).  R_rect_00 rectifies for all cameras, also where P_rect_02 projects.
SPELLINGS = {
    "R_rect": "R0_rect", "Tr_velo_cam": "Tr_velo_to_cam", "Tr_imu_velo": "Tr_imu_to_velo", "R_rect_00": "R0_rect",
    "P_rect_00": "P0", "P_rect_01": "P1", "P_rect_02": "P2", "P_rect_03": "P3",
}  # fmt: skip
#: The line that a camera needs, and those that lead from the LiDAR to it.
CAMERA_LINE = "P2"
LIDAR_LINES = ("R0_rect", "Tr_velo_to_cam")
#: Lines that nothing reads: converters fill them with zeros.
UNUSED_LINES = ("P0", "P1", "P3", "Tr_imu_to_velo")
#: How far the columns of a rotation may be from orthonormal.
ROTATION_TOLERANCE = 1e-3
#: Focal lengths and principal points are smaller, px; sensors stand nearer to each other, m.
GREATEST_PIXELS, GREATEST_OFFSET = 1e6, 100.0
#: A skew up to this share of the focal length moves no pixel by a tenth.  Detectors know of none.
SKEW_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Calibration:
    """One frame's calibration file: camera 2 (left colour) and the way from the LiDAR to the rectified camera frame,
    where the file has it."""

    p2: Float[Tensor, "3 4"]  # float64
    r0_rect: Float[Tensor, "3 3"] | None = None
    tr_velo_to_cam: Float[Tensor, "3 4"] | None = None
    path: Path | None = None  # the file

    @property
    def camera(self) -> Camera:
        """The camera that took ``image_2``; it projects points of the rectified camera frame."""
        return Camera(self.p2)

    @property
    def has_lidar(self) -> bool:
        """Whether the way from the LiDAR is known."""
        return self.r0_rect is not None and self.tr_velo_to_cam is not None

    @property
    def lidar_to_rect(self) -> Float[Tensor, "4 4"]:
        """LiDAR points into the rectified camera frame: R0_rect after Tr_velo_to_cam.

        Raises:
            UserError: the file lacks one of them.
        """
        if self.r0_rect is None or self.tr_velo_to_cam is None:
            lacking = LIDAR_LINES[0 if self.r0_rect is None else 1]
            raise UserError(f"{self.path}: the line {lacking} is missing, which LiDAR scans need")
        matrix = torch.eye(4, dtype=self.r0_rect.dtype)
        matrix[:3] = self.r0_rect @ self.tr_velo_to_cam
        return matrix


class CalibrationText(NamedTuple):
    """What a calibration file says."""

    matrices: dict[str, Tensor]  # the known ones by name, float64
    lines: dict[str, int]  # on which line, from 1, each known name stands first
    faults: list[Fault]  # in file order


def parse_calibration(
    text: str, lines: Mapping[str, int] = CALIBRATION_LINES, required: tuple[str, ...] = (CAMERA_LINE,)
) -> CalibrationText:
    """A calibration file: a name, a colon that may be left out after known names, and numbers; ``#`` begins a comment.

    Args:
        lines: the names that are known, apart from their other ``SPELLINGS``, and how many numbers each has.
        required: the names that must be there.
    """
    matrices: dict[str, Tensor] = {}
    first: dict[str, int] = {}
    faults: list[Fault] = []
    for number, line in enumerate(text.split("\n"), 1):
        written = line.partition("#")[0]
        colon = ":" in written
        spelt, *words = written.replace(":", " ", 1).split() or ("",)
        name = spelt if spelt in lines else SPELLINGS.get(spelt, spelt)
        if name not in lines:
            if spelt and not colon:
                faults.append(Fault(number, "expected `name: numbers`"))
            continue
        again = name in first
        first.setdefault(name, number)
        numbers = [number_or_nan(v) for v in words]
        if len(numbers) != lines[name]:
            faults.append(Fault(number, f"{spelt} has {len(numbers)} numbers, expected {lines[name]}"))
        elif not all(math.isfinite(n) for n in numbers):
            faults.append(Fault(number, f"{spelt} holds a value that is not a finite number"))
        else:
            matrix = torch.tensor(numbers, dtype=torch.float64).reshape(3, -1)
            if name not in UNUSED_LINES:
                faults += [Fault(number, f"{spelt} {s}") for s in _matrix_faults(matrix, name.startswith("P"))]
            if again and name in matrices and not torch.equal(matrices[name], matrix):
                faults.append(Fault(number, f"{spelt} has other numbers than on line {first[name]}, expected it once"))
            matrices[name] = matrix
    faults += [Fault(None, f"the line {name} is missing") for name in required if name not in first]
    return CalibrationText(matrices, first, faults)


def _matrix_faults(matrix: Float[Tensor, "3 c"], projection: bool) -> Iterator[str]:
    if projection:
        focal = matrix[0, 0].item(), matrix[1, 1].item()
        if matrix[2, :3].tolist() != [0, 0, 1] or min(focal) <= 0:
            yield "is no projection of a rectified camera (positive focal lengths, third row 0 0 1)"
        elif matrix[:, :3].abs().max() > GREATEST_PIXELS or matrix[:, 3].abs().max() > GREATEST_OFFSET * max(*focal, 1):
            yield f"holds {matrix.abs().max():g}, which no camera has"
        elif max(abs(matrix[0, 1].item()), abs(matrix[1, 0].item())) > SKEW_TOLERANCE * min(focal):
            skew = matrix[0, 1].item() or matrix[1, 0].item()
            yield f"has a skew of {skew:g} px, which detectors do not know of: expected 0, a rectified picture"
        return
    if matrix.shape[1] != 3 and matrix[:, -1].abs().max() > GREATEST_OFFSET:  # a translation
        yield f"places a sensor {matrix[:, -1].abs().max():g} m away, expected at most {GREATEST_OFFSET:g} m"
    if matrix.shape[1] == 1:
        return
    rotation = matrix[:, :3]
    error = (rotation @ rotation.T - torch.eye(3, dtype=rotation.dtype)).abs().max()
    if not error <= ROTATION_TOLERANCE or torch.linalg.det(rotation) < 0:  # NaN of numbers that overflow too
        yield "does not hold a rotation"


def read_calibration(path: Path) -> Calibration:
    """A calibration file; only the camera's line must be there.

    Raises:
        UserError: it is absent, lacks that line, or a line is malformed.
    """
    matrices, _, faults = parse_calibration(read_text(path))
    refuse_faults(path, faults)
    r0_rect, tr_velo_to_cam = (matrices.get(name) for name in LIDAR_LINES)
    return Calibration(matrices[CAMERA_LINE], r0_rect, tr_velo_to_cam, path)
