"""KITTI's LiDAR scans and road planes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from distill3d.data.faults import number_or_nan
from distill3d.data.scans import glance_at_rows, read_rows, with_columns
from distill3d.errors import UserError
from distill3d.files import read_text

PLANE_LINE = 4  # of a road plane's file: the line, from 1, that holds its numbers
VELODYNE_COLUMNS = 4  # float32 x, y, z, intensity


def read_points(path: Path, columns: int = VELODYNE_COLUMNS) -> Float[Tensor, "m 4"]:
    """A LiDAR scan in the LiDAR's frame: x forward, y left, z up (m) and intensity 0..1; float32.

    Args:
        columns: of the file; what follows the intensity is left out, and 3 have an intensity of 0.

    Raises:
        UserError: the file is absent or empty, is no scan of so many columns (data/scans.py), or a value is not finite.
    """
    points = with_columns(read_rows(path, columns), 4)
    if np.isfinite(points).all():  # of the whole array at once: several times as fast as point by point
        return torch.from_numpy(points)
    bad = ~np.isfinite(points).all(axis=1)
    raise UserError(f"{path}: {bad.sum()} points hold NaN or Inf, the first is point {bad.argmax()} (from 0)")


def glance_at_points(path: Path, columns: int = VELODYNE_COLUMNS) -> None:
    """Looks at a scan's size and first points, as ``read_points`` looks at all of them.

    Raises:
        UserError: as ``read_points``.
    """
    if not np.isfinite(glance_at_rows(path, columns)).all():
        read_points(path, columns)


def read_plane(path: Path) -> Float[Tensor, "4"]:
    """A road plane: a, b, c, d with a x + b y + c z + d = 0 in the camera's frame (m); float64.

    Raises:
        UserError: the file is absent, or its fourth line is no plane that a height can be read from.
    """
    lines = read_text(path).splitlines()
    numbers = [number_or_nan(v) for v in lines[PLANE_LINE - 1].split()] if len(lines) >= PLANE_LINE else []
    if len(numbers) != 4 or not all(math.isfinite(n) for n in numbers) or numbers[1] == 0:
        raise UserError(f"{path}:{PLANE_LINE}: expected the four numbers of a plane that is not upright")
    return torch.tensor(numbers, dtype=torch.float64)
