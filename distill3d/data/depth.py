"""Depth maps: LiDAR points projected into an image, completed to dense maps, stored as 16-bit PNG.

Completion is of the kind of kujason/ip_basic (multi-scale, no extrapolation, bilateral), written with pooling
operations.  A depth of 0 m means unknown throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from distill3d.camera import Camera, Divide
from distill3d.data.pictures import opened_picture, upright
from distill3d.errors import UserError
from distill3d.files import write_atomically
from distill3d.settings import Between, Length, Side, is_in_range

#: Depth PNGs hold metres times this number (KITTI depth benchmark).
PNG_STEPS_PER_METRE = 256
PNG_MAXIMUM = 2**16 - 1
#: What images that are no depth maps are called.
MODES = {"1": "one bit", "L": "8 bits", "P": "8 bits and a palette", "RGB": "three channels", "RGBA": "four channels"}


def project_depth(
    points: Float[Tensor, "m c"], camera: Camera, size: tuple[int, int], divide: Divide = "rect_z"
) -> Float[Tensor, "h w"]:
    """Sparse depth (m) of camera-frame points (x, y, z, ...) in an image of ``size`` (width, height) px.

    Points with z > 0 inside the image count; where several fall on one pixel the nearest wins.
    """
    width, height = size
    uv, depth = camera.project(points[:, :3].to(camera.projection), divide)
    column, row = uv.floor().unbind(-1)
    seen = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    cell = (row[seen] * width + column[seen]).long()
    nearest = torch.full((height * width,), math.inf, dtype=torch.float32, device=points.device)
    nearest.scatter_reduce_(0, cell, depth[seen].float(), "amin")
    return torch.where(nearest.isinf(), 0.0, nearest).reshape(height, width)


# ---------------------------------------------------------------------------------------------------------- completion


#: Side of a kernel, px; odd.
KernelSide = Annotated[int, Between(1, 99)]


@dataclass(frozen=True)
class CompletionConfig:
    """Parameters of ``complete_depth``; the defaults are those of kujason/ip_basic's multi-scale filling.

    Kernels are side lengths in px, odd.

    Raises:
        UserError: a kernel has an even side.
    """

    maximum: Side = 100.0  # m; depths are handled as maximum - depth, so that near surfaces win dilations
    valid: Length = 0.1  # m; what is not above it counts as empty
    near: Length = 15.0  # m; depths up to here are dilated by the near kernel
    medium: Length = 30.0  # m; depths up to here by the medium kernel, all others by the far kernel
    near_cross: KernelSide = 7
    medium_cross: KernelSide = 5
    far_cross: KernelSide = 3
    closing: KernelSide = 5
    median: KernelSide = 5
    hole_fill: KernelSide = 9
    gap_fill: KernelSide = 5
    gap_fill_rounds: Annotated[int, Between(0, 1000)] = 6
    bilateral: KernelSide = 5  # diameter of the round neighbourhood
    colour_deviation: Annotated[float, Between(0, 1e4, above=True)] = 0.5  # m
    space_deviation: Annotated[float, Between(0, 1e4, above=True)] = 2.0  # px

    def __post_init__(self) -> None:
        if not is_in_range(self):
            return
        for name in (
            "near_cross",
            "medium_cross",
            "far_cross",
            "closing",
            "median",
            "hole_fill",
            "gap_fill",
            "bilateral",
        ):
            if getattr(self, name) % 2 == 0:
                raise UserError(f"completion.{name} is {getattr(self, name)}, expected an odd side of a kernel")


def complete_depth(depth: Float[Tensor, "h w"], config: CompletionConfig | None = None) -> Float[Tensor, "h w"]:
    """A sparse depth map (m, 0 = none) made dense, deterministically; what lies above a column's first value stays 0.

    Steps as in kujason/ip_basic's multi-scale filling: dilation by range, closing, median, hole filling, median,
    bilateral.  Depths within ``valid`` of ``maximum`` or beyond it count as none.
    """
    c = config or CompletionConfig()
    depth = torch.where((depth > c.valid) & (depth < c.maximum - c.valid), depth, 0.0)
    # Inverted, so that a maximum keeps the nearest surface.
    inverted = torch.where(depth > 0, c.maximum - depth, 0.0)
    filled = inverted
    ranges = (
        (c.medium, math.inf, c.far_cross), (c.near, c.medium, c.medium_cross), (0.0, c.near, c.near_cross),
    )  # fmt: skip
    for low, high, kernel in ranges:  # from far to near: near surfaces overwrite
        grown = _dilate_cross(torch.where((depth > low) & (depth <= high), inverted, 0.0), kernel)
        filled = torch.where(grown > c.valid, grown, filled)
    filled = -_dilate(-_dilate(filled, c.closing), c.closing)
    filled = _median(filled, c.median, where=filled > c.valid)
    holes = ~(filled > c.valid) & _below_top(filled > c.valid)
    filled = torch.where(holes, _dilate(filled, c.hole_fill), filled)
    open_ = _below_top(filled > c.valid)
    for _ in range(c.gap_fill_rounds):
        filled = torch.where((filled < c.valid) & open_, _dilate(filled, c.gap_fill), filled)
    trusted = (filled > c.valid) & open_
    filled = _median(filled, c.median, where=trusted)
    filled = torch.where(trusted, _bilateral(filled, c.bilateral, c.colour_deviation, c.space_deviation), filled)
    return torch.where(filled > c.valid, c.maximum - filled, 0.0)


def _dilate(x: Float[Tensor, "h w"], kernel: int) -> Float[Tensor, "h w"]:
    """Maximum over a square; pixels outside the image do not count."""
    return _dilate_line(_dilate_line(x, kernel, vertical=True), kernel, vertical=False)


def _dilate_cross(x: Float[Tensor, "h w"], kernel: int) -> Float[Tensor, "h w"]:
    """Maximum over an upright cross; pixels outside the image do not count."""
    return torch.maximum(_dilate_line(x, kernel, vertical=True), _dilate_line(x, kernel, vertical=False))


def _dilate_line(x: Float[Tensor, "h w"], kernel: int, vertical: bool) -> Float[Tensor, "h w"]:
    shape = (kernel, 1) if vertical else (1, kernel)
    return functional.max_pool2d(x[None], shape, stride=1, padding=(shape[0] // 2, shape[1] // 2))[0]


def _median(x: Float[Tensor, "h w"], kernel: int, where: Bool[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """Median over a square, only ``where`` asked for; edge pixels are repeated outwards."""
    r = kernel // 2
    padded = functional.pad(x[None, None], (r, r, r, r), mode="replicate")[0, 0]
    windows = padded.unfold(0, kernel, 1).unfold(1, kernel, 1)  # (h, w, kernel, kernel), a view
    out = x.clone()
    out[where] = windows[where].flatten(1).median(dim=1).values
    return out


def _bilateral(x: Float[Tensor, "h w"], diameter: int, colour: float, space: float) -> Float[Tensor, "h w"]:
    """Edge-keeping mean over a disc; the image is mirrored at its edges, edge pixels not repeated."""
    r = diameter // 2
    height, width = x.shape
    padded = x[_reflected(height, r)][:, _reflected(width, r)]
    total, weight = torch.zeros_like(x), torch.zeros_like(x)
    for dy in range(-r, r + 1):
        for dx in range(-r, r + 1):
            if dx * dx + dy * dy > r * r:
                continue
            neighbour = padded[r + dy : r + dy + height, r + dx : r + dx + width]
            distance = (neighbour - x).square() / (2 * colour**2) + (dx * dx + dy * dy) / (2 * space**2)
            share = torch.exp(-distance)
            total += share * neighbour
            weight += share
    return total / weight


def _reflected(length: int, margin: int) -> Tensor:
    """Indices -margin .. length + margin - 1, mirrored into 0 .. length - 1."""
    index = torch.arange(-margin, length + margin)
    period = max(2 * (length - 1), 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index).clamp(max=length - 1)


def _below_top(valid: Bool[Tensor, "h w"]) -> Bool[Tensor, "h w"]:
    """Pixels at or below the first valid one of their column; all pixels of a column without any."""
    return valid.cummax(dim=0).values | ~valid.any(dim=0)


# ------------------------------------------------------------------------------------------------------ files and cache


def read_depth(path: Path) -> Float[Tensor, "h w"]:
    """Depth (m, 0 = none) from a 16-bit PNG, float32.

    Raises:
        UserError: the file is absent, damaged, too large or not a 16-bit image of one channel.
    """
    with opened_picture(path) as picture:
        image = upright(picture)
        values = np.asarray(image)  # before any warp: Pillow cannot interpolate 16-bit images
        if image.mode[0] != "I" or values.min() < 0 or values.max() > PNG_MAXIMUM:
            raise UserError(
                f"{path}: a depth image has one 16-bit channel of metres times {PNG_STEPS_PER_METRE}, "
                f"this one has {MODES.get(image.mode, f'mode {image.mode}')}"
            )
    return torch.from_numpy(values.astype(np.float32) / PNG_STEPS_PER_METRE)


def write_depth(path: Path, depth: Float[Tensor, "h w"]) -> None:
    """Writes depth (m) as 16-bit PNG in steps of 1/256 m; other processes never see a half-written file."""
    values = (depth * PNG_STEPS_PER_METRE).round().clamp(0, PNG_MAXIMUM).numpy().astype(np.uint16)
    image = Image.fromarray(values)
    write_atomically(path, lambda part: image.save(part, format="png", compress_level=1), flush=False)


def cached_depth(folder: Path, frame_id: str, key: str, compute: Callable[[], Tensor]) -> Float[Tensor, "h w"]:
    """The depth map that ``compute`` gives, from ``folder`` where it was stored before under the same ``key``.

    Values are in steps of 1/256 m whether stored or fresh.  A key made by ``cache_key`` (data/cache.py) from
    all that the map depends on cannot go stale.
    """
    path = folder / f"{frame_id}-{key}.png"
    if path.is_file():
        try:
            return read_depth(path)
        except UserError:
            path.unlink(missing_ok=True)  # damaged: as if it had never been stored
    write_depth(path, compute())
    return read_depth(path)
