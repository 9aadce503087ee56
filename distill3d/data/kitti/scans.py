"""KITTI's LiDAR scans and road planes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from distill3d.data.faults import number_or_nan
from distill3d.errors import UserError
from distill3d.files import read_text, reason_of

PLANE_LINE = 4  # of a road plane's file: the line, from 1, that holds its numbers
GLANCE = 2**16  # bytes of a scan that are looked at, where not all are
VELODYNE_RECORD = 16  # bytes: float32 x, y, z, intensity


def read_points(path: Path) -> Float[Tensor, "m 4"]:
    """A LiDAR scan in the LiDAR's frame: x forward, y left, z up (m) and intensity 0..1; float32.

    Raises:
        UserError: the file is absent or empty, its size is no whole number of points, or a value is not finite.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {reason_of(error)}") from error
    if not data:
        raise UserError(f"{path}: the file is empty, expected LiDAR points")
    if len(data) % VELODYNE_RECORD:
        raise UserError(f"{path}: {len(data)} bytes are no multiple of the {VELODYNE_RECORD} bytes of a point")
    points = np.frombuffer(bytearray(data), dtype="<f4").reshape(-1, 4)
    bad = ~np.isfinite(points).all(axis=1)
    if bad.any():
        raise UserError(f"{path}: {bad.sum()} points hold NaN or Inf, the first is point {bad.argmax()} (from 0)")
    return torch.from_numpy(points)


def glance_at_points(path: Path) -> None:
    """Looks at a scan's size and first points, as ``read_points`` looks at all of them.

    Raises:
        UserError: as ``read_points``.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(GLANCE)
    except OSError as error:
        raise UserError(f"{path}: {reason_of(error)}") from error
    if size == 0 or size % VELODYNE_RECORD or not np.isfinite(np.frombuffer(first, "<f4")).all():
        read_points(path)


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
