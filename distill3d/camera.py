"""Cameras, the record that maps every augmented pixel back, and depth bins."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill3d.errors import UserError
from distill3d.settings import Between, Length, is_in_range
from distill3d.transfers import inverse

#: ``rect_z`` divides by the point's own z, as MonoDLE and OpenPCDet do; ``homogeneous`` divides by the third row of the
#: projection, which is exact.  They differ by P[2, 3] / z (KITTI: about 0.003 m / z).
Divide = Literal["rect_z", "homogeneous"]

#: The principal point may lie this far from the image centre, as shares of width and height.  KITTI's lie within 0.015
#: and 0.04; an image scaled to half or double size without its calibration is off by 0.25 or more across.
CENTRE_TOLERANCE = (0.15, 0.25)
#: Degrees from edge to edge: a wider picture is no pinhole camera's, one narrower along its longer side no vehicle's.
WIDEST_VIEW, NARROWEST_VIEW = 160.0, 0.5
#: Times that a pixel may be as wide as high, or as high as wide: anamorphic lenses reach two.
MOST_ANAMORPHIC = 2.5
#: Focal lengths and principal points up to these are shares of the picture's size, no pixels.
NORMALISED = (10.0, 2.0)


@dataclass(frozen=True)
class Camera:
    """One pinhole camera: ``projection`` (..., 3, 4) maps homogeneous camera-frame points (m) to pixels.

    Leading dimensions are batch dimensions.  Pixels count from 0 at the left and top edge as in KITTI's calibration.
    """

    projection: Float[Tensor, "*b 3 4"]

    def project(self, points: Float[Tensor, "*b n 3"], divide: Divide = "rect_z") -> tuple[Tensor, Tensor]:
        """Points (..., n, 3) in m as pixels (..., n, 2) and depths (..., n) in m.

        Points at or behind the camera give pixels without meaning: look at the depth.
        """
        p = self.projection
        homogeneous = points @ p[..., :, :3].transpose(-1, -2) + p[..., None, :, 3]
        depth = points[..., 2] if divide == "rect_z" else homogeneous[..., 2] - p[..., None, 2, 3]
        divisor = points[..., 2] if divide == "rect_z" else homogeneous[..., 2]
        return homogeneous[..., :2] / divisor[..., None], depth

    def back_project(
        self, uv: Float[Tensor, "*b n 2"], depth: Float[Tensor, "*b n"], divide: Divide = "rect_z"
    ) -> Float[Tensor, "*b n 3"]:
        """Pixels (..., n, 2) at depths (..., n) in m as points (..., n, 3): inverts ``project(..., divide)``, but with
        ``homogeneous`` ``depth`` is what is divided by: the matrix's third row, its last number included."""
        p = self.projection
        z = depth if divide == "rect_z" else depth - p[..., 2, 3, None]
        x, y = (
            (uv[..., i] * depth - p[..., i, 2, None] * z - p[..., i, 3, None]) / p[..., i, i, None]
            if divide == "homogeneous"
            else (uv[..., i] - p[..., i, 2, None]) * depth / p[..., i, i, None]
            - (p[..., i, 3] / p[..., i, i])[..., None]
            for i in (0, 1)
        )
        return torch.stack((x, y, z), dim=-1)

    def mirrored(self, width: float | Tensor) -> Camera:
        """The camera that sees the mirrored world (x -> -x) in the mirrored image (u -> width - u)."""
        p = self.projection.clone()
        p[..., 0, :] = width * self.projection[..., 2, :] - self.projection[..., 0, :]
        p[..., :, 0] = -p[..., :, 0]
        return Camera(p)

    def warped(self, matrix: Float[Tensor, "*b 2 3"]) -> Camera:
        """The camera after its image was warped by the affine ``matrix`` (..., 2, 3)."""
        p = self.projection
        top = matrix[..., :, :2] @ p[..., :2, :] + matrix[..., :, 2:] * p[..., 2:, :]
        return Camera(torch.cat((top, p[..., 2:, :]), dim=-2))

    @classmethod
    def from_intrinsics(cls, fx: float, fy: float, cx: float, cy: float) -> Camera:
        """A camera (3, 4) in its own frame from focal lengths and principal point in px."""
        return cls(torch.tensor([[fx, 0, cx, 0], [0, fy, cy, 0], [0, 0, 1, 0]], dtype=torch.float64))


@dataclass(frozen=True)
class ImageAffine:
    """How pixels of the image file became pixels of the network's canvas: an optional mirror, then an affine warp.

    Leading dimensions are batch dimensions, so a batch carries one stacked record.
    """

    matrix: Float[Tensor, "*b 2 3"]  # (mirrored) source px -> canvas px
    flip: Bool[Tensor, "*b"]  # whether the source was mirrored first: u -> width - u
    zoom: Float[Tensor, "*b"]  # crop-window width / source width; > 1 makes objects smaller
    source_size: Float[Tensor, "*b 2"]  # (width, height) px of the image file
    canvas_size: Float[Tensor, "*b 2"]  # (width, height) px of the canvas

    @classmethod
    def crop(
        cls, source_size: tuple[float, float], canvas_size: tuple[int, int],
        zoom: float = 1.0, shift: tuple[float, float] = (0.0, 0.0), flip: bool = False,
    ) -> ImageAffine:  # fmt: skip
        """The uniform scale that maps a window of ``zoom`` x source width onto the canvas width.

        The window's centre is the image centre plus ``shift`` (fractions of width and height) and lands in the middle
        of the canvas.  The height never enters, so aspect ratios are kept (xinzhuma/monodle lib/datasets/utils.py).
        """
        width, height = source_size
        scale = canvas_size[0] / (width * zoom)
        centre = (width * (0.5 + shift[0]), height * (0.5 + shift[1]))
        offset = [canvas_size[i] / 2 - scale * centre[i] for i in (0, 1)]
        return cls(
            torch.tensor([[scale, 0.0, offset[0]], [0.0, scale, offset[1]]], dtype=torch.float64),
            torch.tensor(flip), torch.tensor(zoom, dtype=torch.float64),
            torch.tensor(source_size, dtype=torch.float64), torch.tensor(canvas_size, dtype=torch.float64),
        )  # fmt: skip

    @classmethod
    def corner(cls, source_size: tuple[float, float], canvas_size: tuple[int, int], flip: bool = False) -> ImageAffine:
        """The image as it is in the canvas's top left corner, for networks that run at the image's own resolution."""
        return cls(
            torch.eye(2, 3, dtype=torch.float64), torch.tensor(flip), torch.tensor(1.0, dtype=torch.float64),
            torch.tensor(source_size, dtype=torch.float64), torch.tensor(canvas_size, dtype=torch.float64),
        )  # fmt: skip

    @classmethod
    def stack(cls, records: list[ImageAffine]) -> ImageAffine:
        """One record with a leading batch dimension."""
        return cls(*(torch.stack([getattr(r, n) for r in records]) for n in cls.__dataclass_fields__))

    def to(self, device: torch.device | str) -> ImageAffine:
        return replace(self, **{n: getattr(self, n).to(device) for n in self.__dataclass_fields__})

    @property
    def scale(self) -> Float[Tensor, "*b"]:
        """Canvas pixels per source pixel."""
        return self.matrix[..., 0, 0]

    def apply(self, uv: Float[Tensor, "*b n 2"]) -> Float[Tensor, "*b n 2"]:
        """Source pixels as canvas pixels."""
        m = self.matrix.to(uv.dtype)
        u = torch.where(self.flip[..., None], self.source_size[..., :1].to(uv.dtype) - uv[..., 0], uv[..., 0])
        return torch.stack((u, uv[..., 1]), -1) @ m[..., :2].transpose(-1, -2) + m[..., None, :, 2]

    def invert(self, uv: Float[Tensor, "*b n 2"]) -> Float[Tensor, "*b n 2"]:
        """Canvas pixels as source pixels: the exact inverse of ``apply``."""
        m = self.matrix.to(uv.dtype)
        source = (uv - m[..., None, :, 2]) @ inverse(m[..., :2]).transpose(-1, -2)
        u = torch.where(self.flip[..., None], self.source_size[..., :1].to(uv.dtype) - source[..., 0], source[..., 0])
        return torch.stack((u, source[..., 1]), -1)

    def apply_boxes(self, boxes: Float[Tensor, "*b n 4"]) -> Float[Tensor, "*b n 4"]:
        """2D boxes (left, top, right, bottom) of the source on the canvas; not clipped."""
        return _ordered(torch.cat((self.apply(boxes[..., :2]), self.apply(boxes[..., 2:])), -1), self.flip)

    def invert_boxes(self, boxes: Float[Tensor, "*b n 4"]) -> Float[Tensor, "*b n 4"]:
        """2D boxes of the canvas on the source; not clipped."""
        return _ordered(torch.cat((self.invert(boxes[..., :2]), self.invert(boxes[..., 2:])), -1), self.flip)

    def camera(self, source: Camera) -> Camera:
        """The camera behind the canvas, given the one behind the image file."""
        mirrored = source.mirrored(self.source_size[..., 0, None].to(source.projection)).projection
        flipped = torch.where(self.flip[..., None, None], mirrored, source.projection)
        return Camera(flipped).warped(self.matrix.to(source.projection))


def _ordered(boxes: Tensor, flip: Tensor) -> Tensor:
    """Left and right edges swapped where a mirror exchanged them."""
    return torch.where(flip[..., None, None], boxes[..., [2, 1, 0, 3]], boxes)


def misfit(camera: Camera, size: tuple[int, int]) -> str | None:
    """Why one camera (3, 4) cannot have taken a picture of ``size`` (width, height) px; None where it can."""
    p, (width, height) = camera.projection, size
    picture = f"an image of {width} x {height} px"
    focal, centre = (p[0, 0].item(), p[1, 1].item()), (p[0, 2].item(), p[1, 2].item())
    if max(focal) <= NORMALISED[0] and max(map(abs, centre)) <= NORMALISED[1]:
        return (
            f"the focal lengths {focal[0]:g} and {focal[1]:g} look like shares of the picture's size, expected px: "
            f"multiply them and the principal point by the width and height of {picture}"
        )
    for length, axis, f in zip(size, ("across", "down"), focal, strict=True):
        view = math.degrees(2 * math.atan(length / 2 / f))
        longest = math.degrees(2 * math.atan(max(size) / 2 / f))
        if view > WIDEST_VIEW or longest < NARROWEST_VIEW:
            return (
                f"the focal length {f:g} px does not fit {picture}: a view of {view:.3g} degrees {axis}, "
                f"expected {NARROWEST_VIEW:g} to {WIDEST_VIEW:g}"
            )
    if not max(focal) <= MOST_ANAMORPHIC * min(focal):
        return f"no camera has the focal lengths {focal[0]:g} and {focal[1]:g} px, with {picture}"
    for axis, length, at, tolerance in zip("xy", size, centre, CENTRE_TOLERANCE, strict=True):
        if not abs(at / length - 0.5) <= tolerance:
            return f"the principal point ({axis} = {at:g} px) does not fit {picture}"
    return None


# ----------------------------------------------------------------------------------------------------------- depth bins


@dataclass(frozen=True)
class DepthBins:
    """A division of depth into ``count`` bins between ``near`` and ``far`` (m).

    ``LID`` bins grow linearly with depth, ``UD`` are equal, ``SID`` grow exponentially
    (CaDDN, arXiv:2103.01100; Cc-Hy/CMKD pcdet/utils/transform_utils.py).

    Raises:
        UserError: ``near`` is no less than ``far``.
    """

    near: Length
    far: Length
    count: Annotated[int, Between(1, 10_000)]
    mode: Literal["LID", "UD", "SID"] = "LID"

    def __post_init__(self) -> None:
        if is_in_range(self) and self.near >= self.far:
            raise UserError(f"bins.near is {self.near}, expected less than bins.far, {self.far}")

    def position(self, depth: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Continuous bin number of each depth; NaN where the scheme is undefined (LID well below ``near``)."""
        if self.mode == "LID":
            step = 2 * (self.far - self.near) / (self.count * (self.count + 1))
            return -0.5 + 0.5 * torch.sqrt(1 + 8 * (depth - self.near) / step)
        if self.mode == "UD":
            return (depth - self.near) / ((self.far - self.near) / self.count)
        low = torch.log1p(torch.as_tensor(self.near, dtype=depth.dtype))
        high = torch.log1p(torch.as_tensor(self.far, dtype=depth.dtype))
        return self.count * (torch.log1p(depth) - low) / (high - low)

    def index(self, depth: Float[Tensor, "*s"]) -> Int[Tensor, "*s"]:
        """Bin number of each depth; ``count`` where the depth lies outside or is not finite."""
        position = self.position(depth)
        outside = (position < 0) | (position > self.count) | ~torch.isfinite(position)
        return torch.where(outside, torch.full_like(position, self.count), position).long()

    def depth(self, index: Tensor) -> Tensor:
        """Depth (m) at which bin ``index`` begins (LID and UD)."""
        if self.mode == "LID":
            return self.near + (self.far - self.near) / (self.count * (self.count + 1)) * index * (index + 1)
        if self.mode == "UD":
            return self.near + (self.far - self.near) / self.count * index
        span = torch.log1p(torch.tensor(self.far)) - torch.log1p(torch.tensor(self.near))
        return torch.expm1(torch.log1p(torch.tensor(self.near)) + span / self.count * index)
