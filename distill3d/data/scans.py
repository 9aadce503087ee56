"""LiDAR scans as files of float32 rows, for every layout, and what tells that a file has other columns than expected.

A file does not say how many columns it has, and 5 columns can be read as 4: what comes out is scrambled.  The rule of
columns: points lie within a LiDAR's reach, and intensities are not negative.  Where more than ``ODD_SHARE`` of a
sample's points do not, other layouts are tried: the right one is plausible, and its columns are the most uniform.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float32

from distill3d.errors import UserError
from distill3d.files import at_once, read_bytes, reason_of
from distill3d.settings import Between

#: m from the sensor, along x or y, and along z.  The HDL-64E of KITTI and the HDL-32E of nuScenes reach 120 m and
#: 100 m (Velodyne's data sheets), the farthest on the market about 500 m; the beams end 30 degrees above or below.
REACH, HEIGHT = 500.0, 150.0
#: KITTI's are in 0..1, nuScenes' in 0..255, other sensors' have up to 16 bits.
GREATEST_INTENSITY = 2.0**16
#: Share of the points that may break a range: real scans have none, scrambled ones a quarter or more.
ODD_SHARE = 0.01
LEAST_COLUMNS, MOST_COLUMNS = 3, 64  # x, y, z; more than any sensor gives
ScanColumns = Annotated[int, Between(LEAST_COLUMNS, MOST_COLUMNS)]
TRIED_COLUMNS = range(LEAST_COLUMNS, 9)
PIECE, PIECES = 1600, 8  # values of a run, and runs of a file, that are looked at
#: By how much the mean log variance of the columns of another layout must be smaller to be believed.  On KITTI's and
#: nuScenes' scans that of the true layout is smaller by more than 1.
CLEARLY = 0.5
GLANCE = 2**16  # bytes of a scan that are looked at, where not all are
LEAST_VALUES = 256  # of a file: in fewer, variances mean little
#: Mean log variances that differ by less are alike: of 4 columns and 8, it is 4.
ALIKE = 0.1
LEAST_VARIANCE = 1e-4  # for columns that are constant


class ScanLayout(NamedTuple):
    """What the rows of a scan are."""

    columns: int
    double: bool = False

    def __str__(self) -> str:
        return f"{self.columns} columns of float{64 if self.double else 32}"


def refuse_columns(columns: int) -> None:
    """Keeps scans from being read with a number of columns that no scan has.

    Raises:
        UserError: it is less than ``LEAST_COLUMNS`` or more than ``MOST_COLUMNS``.
    """
    if not LEAST_COLUMNS <= columns <= MOST_COLUMNS:
        raise UserError(
            f"scan_columns is {columns}, expected {LEAST_COLUMNS} (x, y, z) to {MOST_COLUMNS}, as the files have"
        )


def read_rows(path: Path, columns: int) -> Float32[np.ndarray, "m c"]:
    """The rows of a scan: x, y, z (m) and, from four ``columns`` on, intensity; NaN and Inf as they are.

    Raises:
        UserError: the file is absent or empty, its size is no whole number of rows, or its values are no LiDAR scan of
            so many columns.
    """
    refuse_columns(columns)
    data = bytearray(read_bytes(path))
    if not data:
        raise UserError(f"{path}: the file is empty, expected LiDAR points")
    if len(data) % (4 * columns):
        likely = None if len(data) % 4 else likely_layout(np.frombuffer(data, "<f4"), columns)
        hint = "" if likely is None else f", it {_advice(likely)}"
        raise UserError(f"{path}: {len(data)} bytes are no multiple of the {4 * columns} bytes of a point{hint}")
    rows = np.frombuffer(data, "<f4").reshape(-1, columns)
    fault = layout_fault(rows)
    if fault is not None:
        raise UserError(f"{path}: {fault}")
    return rows


def glance_at_rows(path: Path, columns: int) -> Float32[np.ndarray, "m c"]:
    """The first rows of a scan whose size and first rows are as they should be; of others all.

    Raises:
        UserError: as ``read_rows``.
    """
    refuse_columns(columns)
    row = 4 * columns
    try:
        size = path.stat().st_size
        with open(path, "rb", opener=at_once) as file:
            first = file.read(GLANCE // row * row)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {reason_of(error)}") from None
    if not size or size % row or len(first) % row:
        return read_rows(path, columns)
    rows = np.frombuffer(first, "<f4").reshape(-1, columns)
    return rows if layout_fault(rows) is None else read_rows(path, columns)


def with_columns(rows: Float32[np.ndarray, "m _"], columns: int) -> Float32[np.ndarray, "m _"]:
    """The first ``columns`` of each row; those that a scan does not have are 0."""
    if rows.shape[1] == columns:
        return rows
    taken = np.zeros((len(rows), columns), np.float32)
    taken[:, : rows.shape[1]] = rows[:, :columns]
    return taken


def layout_fault(rows: Float32[np.ndarray, "m c"]) -> str | None:
    """Why a file cannot be a LiDAR scan of as many columns as it was read with; None where it can.

    Points with NaN or Inf say nothing.
    """
    columns = rows.shape[1]
    sample = _pieces(rows.reshape(-1), columns)
    far, odd = _odd_shares(sample)
    if far <= ODD_SHARE and odd <= ODD_SHARE and columns > LEAST_COLUMNS:
        return None if sample.any() or rows.any() else "holds nothing but zeros, expected LiDAR points"
    likely = likely_layout(rows.reshape(-1), columns)
    if likely is not None:
        return _advice(likely)
    if far > ODD_SHARE:
        return (
            f"{far:.0%} of the points lie beyond {REACH:g} m or higher or lower than {HEIGHT:g} m, expected "
            f"{columns} columns of float32: x, y, z (m){', intensity' if columns > LEAST_COLUMNS else ''} ..."
        )
    return None


def _advice(layout: ScanLayout) -> str:
    if layout.double:
        return f"looks like {layout}: convert it to float32"
    return f"looks like {layout}: set --dataset.scan-columns {layout.columns} (of check: --scan-columns)"


def likely_layout(values: Float32[np.ndarray, " n"], columns: int) -> ScanLayout | None:
    """The layout that the values of a file have, if that is clearly another than ``columns`` of float32."""
    if len(values) < LEAST_VALUES:
        return None
    expected = _spread(_pieces(values, columns))
    for double in (False, True):
        numbers = values[: len(values) // 2 * 2].view("<f8") if double else values
        found = []
        for count in TRIED_COLUMNS:
            if len(numbers) % count == 0 and (double or count != columns):
                rows = _pieces(numbers, count)
                spread = _spread(rows)
                # Two rows of 3 columns are one of 6, whose columns are as uniform.
                most = expected + ALIKE if not double and columns % count == 0 else expected - CLEARLY
                if spread < most and max(_odd_shares(rows)) <= ODD_SHARE:
                    found.append((spread, ScanLayout(count, double)))
        if found:
            return next(layout for spread, layout in found if spread <= min(found)[0] + ALIKE)
    return None


def _pieces(values: np.ndarray, columns: int) -> np.ndarray:
    """Rows of a file's values from all over it.  They come in runs: each n-th row alone would be of one kind where a
    wrong layout makes kinds of rows alternate."""
    rows = values[: len(values) // columns * columns].reshape(-1, columns)
    run = PIECE // columns
    if len(rows) <= PIECES * run:
        return rows
    starts = np.linspace(0, len(rows) - run, PIECES, dtype=int)
    return np.concatenate([rows[start : start + run] for start in starts.tolist()])


def _odd_shares(rows: np.ndarray) -> tuple[float, float]:
    """Shares of points out of a LiDAR's reach, and of points whose intensity is none."""
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not len(rows):
        return 0.0, 0.0
    far = (np.abs(rows[:, :3]) > (REACH, REACH, HEIGHT)).any(axis=1)
    if rows.shape[1] <= LEAST_COLUMNS:
        return float(far.mean()), 0.0
    odd = (rows[:, 3] < 0) | (rows[:, 3] > GREATEST_INTENSITY)
    return float(far.mean()), float(odd.mean())


def _spread(rows: np.ndarray) -> float:
    """Mean over the columns of the logarithm of their variance: the smaller, the more alike a column's values are."""
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not len(rows):
        return np.inf
    with np.errstate(over="ignore"):
        variance = rows.astype(np.float64).var(axis=0)
    return float(np.log(np.maximum(variance, LEAST_VARIANCE)).mean())
