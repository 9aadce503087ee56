"""Augmentation of surround views: each camera's picture, and the key ego frame that all of them share.

Distributions and their order of Megvii-BaseDetection/BEVDepth bevdepth/datasets/nusc_det_dataset.py (``img_transform``,
``bev_transform``) and exps/nuscenes/base_exp.py (``ida_aug_conf``, ``bda_aug_conf``).  Pixels are moved by one record
per camera, ``ImagePlacement``, and geometry by its matrix, so the two cannot drift apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from distill3d.boxes import Boxes3D, wrap_angle
from distill3d.settings import Angle, Ascending, Between, Share

#: The scale at which 1600 x 900 px pictures are tested on a canvas of 704 x 256 px; training scales are relative to it.
TEST_SCALE = 0.44


@dataclass(frozen=True)
class ImageAugmentConfig:
    """How pictures are augmented, each camera by draws of its own (defaults: BEVDepth's)."""

    #: Range of the scale, relative to the one of the test, which fits the picture to the canvas's width or height.
    scale: Annotated[tuple[float, float], Between(0, 100, above=True), Ascending()] = (
        0.386 / TEST_SCALE,
        0.55 / TEST_SCALE,
    )
    flip: Share = 0.5  # probability of mirroring
    rotation: Angle = math.radians(5.4)  # rad; turned about the canvas's centre by U(-rotation, rotation)


@dataclass(frozen=True)
class BevAugmentConfig:
    """How the key ego frame is augmented (defaults: BEVDepth's)."""

    rotation: Angle = math.radians(22.5)  # rad; turned about z by U(-rotation, rotation)
    scale: Annotated[tuple[float, float], Between(0, 100, above=True), Ascending()] = (
        0.95,
        1.05,
    )  # of all lengths, uniform
    flip_x: Share = 0.5  # probability of x -> -x
    flip_y: Share = 0.5  # probability of y -> -y
    #: Whether the heights of points are scaled too.  The released code scales those of boxes and pictures only.
    scale_point_heights: bool = False


# ------------------------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class ImagePlacement:
    """How a picture comes onto the canvas: resized, cut out, mirrored, then turned about the canvas's centre.

    Where the cut reaches past the picture, and where the turn brings in corners from outside, the canvas is black.
    """

    source: tuple[int, int]  # (width, height) px of the picture, as all sizes here
    resized: tuple[int, int]
    corner: tuple[int, int]  # px of the resized picture that land in the canvas's top left corner
    canvas: tuple[int, int]
    flip: bool = False
    rotation: float = 0.0  # rad, counter-clockwise as one looks at the picture

    @cached_property
    def matrix(self) -> Float[Tensor, "4 4"]:
        """From (u, v, depth, 1) of the picture to that of the canvas; float64.

        Pixels count from 0 at the left and top edge.  The scale is the one of the whole pixels that the picture was
        resized to; the released code notes the scale before that rounding.
        """
        width, height = self.canvas
        scale = torch.tensor([a / b for a, b in zip(self.resized, self.source, strict=True)], dtype=torch.float64)
        mirror = torch.tensor([-1.0 if self.flip else 1.0, 1.0], dtype=torch.float64)
        corner = torch.tensor(self.corner, dtype=torch.float64)
        c, s = math.cos(self.rotation), math.sin(self.rotation)
        turn = torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
        centre = torch.tensor([width / 2, height / 2], dtype=torch.float64)
        offset = -mirror * corner + torch.tensor([float(width) if self.flip else 0.0, 0.0], dtype=torch.float64)
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:2, :2] = turn * (mirror * scale)
        matrix[:2, 3] = turn @ (offset - centre) + centre
        return matrix

    def apply(self, picture: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """The picture (RGB) on the canvas: bicubic when resized, nearest when turned, as the released code does."""
        placed = self._placed(picture, Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(placed)).permute(2, 0, 1).contiguous()

    def apply_mask(self, mask: Image.Image) -> Int[Tensor, "h w"]:
        """A picture of whole numbers on the canvas, nearest throughout; 0 outside."""
        return torch.from_numpy(np.array(self._placed(mask.convert("I"), Image.Resampling.NEAREST)).astype(np.int64))

    def _placed(self, picture: Image.Image, resampling: Image.Resampling) -> Image.Image:
        (x0, y0), (width, height) = self.corner, self.canvas
        left, top = max(x0, 0), max(y0, 0)
        right, bottom = min(x0 + width, self.resized[0]), min(y0 + height, self.resized[1])
        canvas = Image.new(picture.mode, self.canvas)
        if left < right and top < bottom:
            # Only what the canvas shows is resized, which gives the pixels of cutting afterwards but for rounding.
            across, down = (a / b for a, b in zip(self.source, self.resized, strict=True))
            window = (
                left * across,
                top * down,
                min(right * across, self.source[0]),
                min(bottom * down, self.source[1]),
            )
            part = picture.resize((right - left, bottom - top), resampling, box=window)
            canvas.paste(part, (left - x0, top - y0))
        if self.flip:
            canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rotation:
            canvas = canvas.rotate(math.degrees(self.rotation), Image.Resampling.NEAREST)
        return canvas


def fit_scale(source: tuple[int, int], canvas: tuple[int, int]) -> float:
    """The least scale at which a picture covers the canvas; both (width, height) px."""
    return max(canvas[0] / source[0], canvas[1] / source[1])


def place_picture(source: tuple[int, int], canvas: tuple[int, int]) -> ImagePlacement:
    """Without augmentation: scaled to cover the canvas, the bottom kept, cut equally at left and right."""
    resized = _scaled(source, fit_scale(source, canvas))
    return ImagePlacement(source, resized, ((resized[0] - canvas[0]) // 2, resized[1] - canvas[1]), canvas)


def draw_placements(
    sources: Sequence[tuple[int, int]], canvas: tuple[int, int], config: ImageAugmentConfig, generator: torch.Generator
) -> list[ImagePlacement]:
    """Random placements of pictures of the given sizes: any scale and place across, but always down to the bottom.

    The same numbers are drawn whether used or not, so changing one setting leaves the other draws alone.
    """
    placements = []
    for source, draws in zip(sources, torch.rand(len(sources), 4, generator=generator, dtype=torch.float64).tolist(),
                             strict=True):  # fmt: skip
        scale, across, flip, turn = draws
        resized = _scaled(source, fit_scale(source, canvas) * _between(config.scale, scale))
        corner = (int(across * max(0, resized[0] - canvas[0])), resized[1] - canvas[1])
        rotation = _between((-config.rotation, config.rotation), turn)
        placements.append(ImagePlacement(source, resized, corner, canvas, flip < config.flip, rotation))
    return placements


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return round(size[0] * scale), round(size[1] * scale)


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share


# ------------------------------------------------------------------------------------------------------------ ego frame


@dataclass(frozen=True)
class BevMotion:
    """One draw of how the key ego frame is moved: turned about z and scaled, then mirrored."""

    angle: float = 0.0  # rad
    scale: float = 1.0
    flip_x: bool = False  # x -> -x
    flip_y: bool = False  # y -> -y

    @classmethod
    def draw(cls, config: BevAugmentConfig, generator: torch.Generator) -> BevMotion:
        """The same numbers are drawn whether used or not."""
        turn, scale, flip_x, flip_y = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        angle = _between((-config.rotation, config.rotation), turn)
        return cls(angle, _between(config.scale, scale), flip_x < config.flip_x, flip_y < config.flip_y)

    @property
    def matrix(self) -> Float[Tensor, "4 4"]:
        """From the ego frame to the augmented one; float64."""
        c, s = math.cos(self.angle) * self.scale, math.sin(self.angle) * self.scale
        x, y = -1.0 if self.flip_x else 1.0, -1.0 if self.flip_y else 1.0
        rows = [[x * c, -x * s, 0, 0], [y * s, y * c, 0, 0], [0, 0, self.scale, 0], [0, 0, 0, 1]]
        return torch.tensor(rows, dtype=torch.float64)

    def points(self, points: Float[Tensor, "m c"], scale_heights: bool) -> Float[Tensor, "m c"]:
        """Points (x, y, z, ...) of the ego frame in the augmented one; z is scaled only if asked for."""
        plane = points[:, :2] @ self.matrix[:2, :2].T.to(points)
        height = points[:, 2:3] * (self.scale if scale_heights else 1.0)
        return torch.cat((plane, height, points[:, 3:]), dim=1)

    def boxes(self, boxes: Boxes3D) -> Boxes3D:
        """Boxes of the ego frame in the augmented one.

        Raises:
            ValueError: the boxes are not in the ego frame.
        """
        if boxes.frame != "ego":
            raise ValueError(f"expected boxes in the ego frame, got the {boxes.frame} frame")
        matrix = self.matrix.to(boxes.centre)
        yaw = boxes.yaw + self.angle
        yaw = math.pi - yaw if self.flip_x else yaw
        yaw = -yaw if self.flip_y else yaw
        return replace(
            boxes,
            centre=boxes.centre @ matrix[:3, :3].T,
            size=boxes.size * self.scale,
            yaw=wrap_angle(yaw),
            velocity=None if boxes.velocity is None else boxes.velocity @ matrix[:2, :2].T,
        )
