"""Augmentation: drawn once per frame from a passed generator, then applied to every modality through one ImageAffine.

Distributions of xinzhuma/monodle lib/datasets/kitti/kitti_dataset.py (flip, crop), monster-ghost/MonoDistill (colour
jitter) and ZrrSkywalker/MonoDETR (photometric distortion).  The random streams are our own: independent per frame and
epoch, so that a resumed run and any number of workers see the same pictures.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from distill3d.boxes import Boxes3D, wrap_angle
from distill3d.camera import ImageAffine
from distill3d.data.augment.paste import PasteConfig
from distill3d.data.sample import Objects, Sample
from distill3d.settings import Ascending, Between, Deviation, Share, added

#: Brightness, contrast and saturation are multiplied by 1 + U(-JITTER, JITTER); lighting noise has this deviation
#: (CenterNet's colour augmentation as MonoDistill carries it).
JITTER = 0.4
LIGHTING_DEVIATION = 0.1
#: Principal components of ImageNet's colours.  Rows are channels: blue, green, red, as in the luma weights.
COLOUR_VALUES = (0.2141788, 0.01817699, 0.00341571)
COLOUR_VECTORS = (
    (-0.58752847, -0.69563484, 0.41340352),
    (-0.5832747, 0.00994535, -0.81221408),
    (-0.56089297, 0.71832671, 0.41158938),
)
LUMA_BGR = (0.114, 0.587, 0.299)
#: The crop window's shift is cut off at this many deviations.
SHIFT_LIMIT = 2.0

#: Where red, green and blue stand on the circle of hues, in sixths of it, see ``recolour``.
HUE_OFFSETS = (5.0, 3.0, 1.0)
#: Grey has no hue: keeps its division from zero.
LEAST_CHROMA = 1e-9

Mode = Literal["bilinear", "nearest"]
Style = Literal["released", "intended"]
#: Range of a factor that is drawn evenly.
Factors = Annotated[tuple[float, float], Between(0, 100), Ascending()]
#: How an image comes onto the canvas: scaled to its width, or as it is in its top left corner.
Placement = Literal["fit", "corner"]


@dataclass(frozen=True)
class DistortionConfig:
    """The photometric distortion of SSD (Liu et al., arXiv:1512.02325), with MonoDETR's numbers; see ``distort``."""

    probability: Share = 0.5  # of each of the five steps
    brightness: Annotated[float, Between(0, 255)] = 32.0  # of 255; U(-brightness, brightness) is added
    contrast: Factors = (0.5, 1.5)
    saturation: Factors = (0.5, 1.5)
    hue: Annotated[float, Between(0, 180)] = 18.0  # degrees; turned by U(-hue, hue)


@dataclass(frozen=True)
class AugmentConfig:
    """How frames are augmented (defaults: MonoDLE's, with the colour jitter of its descendants).

    ``style="released"``: the jitter weighs the RGB image's channels as if they were BGR, and the distortion cuts off
    fractions of 8-bit values and lets those outside 0..255 come in again at the other end, as the released codes do;
    ``"intended"`` uses luma weights and colour components in their right order, and clips.
    """

    flip: Share = 0.5  # probability of mirroring
    crop: Share = 0.5  # probability of a random crop window
    zoom_deviation: Deviation = 0.4  # of the window's size about 1
    zoom_range: Annotated[tuple[float, float], Between(0, 100, above=True), Ascending()] = (0.6, 1.4)
    shift: Deviation = 0.1  # deviation of the window's centre, share of the image's size (MonoDistill, MonoSTL: 0)
    photometric: bool = True  # colour jitter and lighting noise, on the canvas
    style: Style = "released"
    distortion: DistortionConfig | None = added(None)  # of the picture as its file has it; independent of the jitter
    #: In place of a crop, images in the canvas's corner are moved by this many px at most, across and down.
    move: Annotated[int, Between(0, 1000)] = added(0)
    paste: PasteConfig | None = added(None)  # objects of other frames, in every modality; data sets in KITTI's layout


def frame_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """A generator of its own for each frame and epoch: resuming and workers cannot change what it draws."""
    digest = hashlib.blake2b(struct.pack("<3q", seed, epoch, index), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def place(
    source_size: tuple[int, int], canvas_size: tuple[int, int], placement: Placement, flip: bool = False
) -> ImageAffine:
    """The whole image of ``source_size`` (width, height) px on the canvas."""
    if placement == "corner":
        return ImageAffine.corner(source_size, canvas_size, flip)
    return ImageAffine.crop(source_size, canvas_size, flip=flip)


def draw_affine(
    source_size: tuple[int, int],
    canvas_size: tuple[int, int],
    config: AugmentConfig,
    generator: torch.Generator,
    placement: Placement = "fit",
) -> ImageAffine:
    """A random flip and crop window for an image of ``source_size`` (width, height) px (monodle, kitti_dataset.py).

    Images that are placed in the ``corner`` are not cropped, but with ``move`` moved as often, by whole px, all of them
    as likely.

    The same numbers are drawn whether used or not, so changing one probability leaves the other draws alone.
    """
    flip, crop = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    zoom, *shift = torch.randn(3, generator=generator, dtype=torch.float64).tolist()
    if crop >= config.crop or placement == "corner":
        placed = place(source_size, canvas_size, placement, flip < config.flip)
        return _moved(placed, config.move, shift) if crop < config.crop and placement == "corner" else placed
    low, high = config.zoom_range
    zoom = min(max(1 + config.zoom_deviation * zoom, low), high)
    across, down = (config.shift * min(max(s, -SHIFT_LIMIT), SHIFT_LIMIT) for s in shift)
    return ImageAffine.crop(source_size, canvas_size, zoom, (across, down), flip < config.flip)


def _moved(affine: ImageAffine, most: int, normal: list[float]) -> ImageAffine:
    """The affine with whole px added, from two normal draws: evenly from -``most`` to ``most``."""
    shares = [(1 + math.erf(value / math.sqrt(2))) / 2 for value in normal]
    moved = affine.matrix.clone()
    moved[:, 2] += torch.tensor([min(int((2 * most + 1) * share), 2 * most) - most for share in shares])
    return replace(affine, matrix=moved)


def jitter(
    image: Float[Tensor, "3 h w"], generator: torch.Generator, style: Style = "released"
) -> Float[Tensor, "3 h w"]:  # fmt: skip
    """Brightness, contrast and saturation in random order, then lighting noise; RGB about 0..1, not clipped.

    With f = 1 + U(-0.4, 0.4) each: I <- f I; I <- f I + (1 - f) m; I <- f I + (1 - f) g, where the luma g and its
    mean m are those of the image as it came.  All steps are linear in I, g and m, so their factors are multiplied out
    first.
    """
    order = torch.randperm(3, generator=generator).tolist()
    factors = (1 + JITTER * (2 * torch.rand(3, generator=generator, dtype=torch.float64) - 1)).tolist()
    noise = LIGHTING_DEVIATION * torch.randn(3, generator=generator, dtype=torch.float64)
    weights, vectors = torch.tensor(LUMA_BGR), torch.tensor(COLOUR_VECTORS, dtype=torch.float64)
    if style == "intended":
        weights, vectors = weights.flip(0), vectors.flip(0)
    lighting = vectors @ (torch.tensor(COLOUR_VALUES, dtype=torch.float64) * noise)

    luma = torch.einsum("c,chw->hw", weights.to(image), image)
    of_image, of_mean, of_luma = 1.0, 0.0, 0.0
    for step in order:
        factor = factors[step]
        of_image, of_mean, of_luma = of_image * factor, of_mean * factor, of_luma * factor
        of_mean += (1 - factor) * (step == 1)  # contrast
        of_luma += (1 - factor) * (step == 2)  # saturation
    constant = lighting.to(image) + of_mean * luma.mean()
    return (of_image * image).add_(luma, alpha=of_luma).add_(constant[:, None, None])


def distort(
    image: Float[Tensor, "3 h w"], generator: torch.Generator, config: DistortionConfig, style: Style = "intended"
) -> Float[Tensor, "3 h w"]:
    """Brightness, contrast, saturation, hue and the order of the channels changed, each or not by a draw of its own.

    Contrast comes before saturation and hue or after them, by another draw.  RGB 0..1, before and after; nothing is
    cut in between.  Which of red and blue comes first does not matter, for hues turn either way alike.

    The same numbers are drawn whether used or not, so changing one setting leaves the other draws alone.
    """
    *chances, first = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
    draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    order = torch.randperm(3, generator=generator)
    bright, contrasted, saturated, turned, swapped = (chance < config.probability for chance in chances)
    limit = config.brightness / 255
    contrast = _between(config.contrast, draws[1]) if contrasted else 1.0
    if bright:
        image = image + _between((-limit, limit), draws[0])
    if first < 0.5:
        image = image * contrast
    if saturated or turned:
        factor = _between(config.saturation, draws[2]) if saturated else 1.0
        image = recolour(image, factor, _between((-config.hue, config.hue), draws[3]) if turned else 0.0)
    if first >= 0.5:
        image = image * contrast
    if swapped:
        image = image[order]
    if style == "released":
        whole = (255 * image + 1e-3).trunc()  # a file's own values are whole, but for the rounding of the division
        return whole.remainder(256) / 255
    return image.clamp(0, 1)


def recolour(image: Float[Tensor, "3 h w"], saturation: float, degrees: float) -> Float[Tensor, "3 h w"]:
    """RGB whose saturation is multiplied, and whose hue is turned, while the greatest channel (HSV's value) stays.

    With the hue H in sixths of a circle, each channel is V - (V - min) s with s = min(k, 4 - k) cut to 0..1 and
    k = (offset + H) mod 6, which turns and stretches without ever dividing by V.
    """
    value = torch.maximum(torch.maximum(image[0], image[1]), image[2])
    chroma = value - torch.minimum(torch.minimum(image[0], image[1]), image[2])
    red, green, blue = image
    above = torch.where(value == red, green - blue, torch.where(value == green, blue - red, red - green))
    base = torch.where(value == red, 0.0, torch.where(value == green, 2.0, 4.0))
    hue = above.div_(chroma.clamp(min=LEAST_CHROMA)).add_(base).add_(degrees / 60)
    place = hue + image.new_tensor(HUE_OFFSETS)[:, None, None]
    place.sub_((place / 6).floor_(), alpha=6)  # remainder() takes several times as long
    share = torch.minimum(place, 4 - place).clamp_(0, 1)
    return value - share.mul_(saturation * chroma)


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share


# ------------------------------------------------------------------------------------------------------------ geometry


def resample(
    image: Float[Tensor, "c h w"], affine: ImageAffine, mode: Mode = "bilinear"
) -> Float[Tensor, "c canvas_h canvas_w"]:
    """The image on the canvas of one (not batched) ``affine``; 0 where the canvas looks past the image.

    Canvas pixel (i, j) takes the source at the inverse affine of (i + 0.5, j + 0.5), bilinear between pixel centres
    with the edge pixels repeated outwards, as Pillow's ``Image.transform`` does but without rounding to 8 bits.

    Raises:
        ValueError: the affine rotates or shears.
    """
    canvas_width, canvas_height = (int(s) for s in affine.canvas_size)
    (scale_x, shear_x, offset_x), (shear_y, scale_y, offset_y) = affine.matrix.tolist()
    if shear_x or shear_y:
        raise ValueError("resample knows scales and offsets only, this affine rotates or shears")
    flip = bool(affine.flip)
    height, width = image.shape[-2:]
    if (scale_x, scale_y, offset_x, offset_y, canvas_width, canvas_height) == (1, 1, 0, 0, width, height):
        return image.flip(-1) if flip else image
    # No shear: rows and columns are interpolated one after the other.
    rows = _taps(canvas_height, height, scale_y, offset_y, mode, mirror=False)
    image = _sum([image.index_select(-2, index).mul_(weight.to(image)[:, None]) for index, weight in rows])
    columns = _taps(canvas_width, width, scale_x, offset_x, mode, mirror=flip)
    shape = (*image.shape[:-1], canvas_width)  # gather: index_select is slow along the last dimension
    return _sum([image.gather(-1, index.expand(shape)).mul_(weight.to(image)) for index, weight in columns])


def _sum(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else parts[0].add_(parts[1])


def _taps(size: int, length: int, scale: float, offset: float, mode: Mode, mirror: bool) -> list[tuple[Tensor, Tensor]]:
    """Per canvas pixel of one axis, the source pixels that it takes and their weights: one or two such pairs."""
    position = (torch.arange(size, dtype=torch.float64) + 0.5 - offset) / scale
    inside = ((position >= 0) & (position < length)).double()
    if mode == "nearest":
        taps = [(position.floor(), inside)]
    else:
        low = (position - 0.5).floor()
        share = position - 0.5 - low
        taps = [(low, inside * (1 - share)), (low + 1, inside * share)]
    indices = [index.clamp(0, length - 1).long() for index, _ in taps]
    return [(length - 1 - i if mirror else i, weight) for i, (_, weight) in zip(indices, taps, strict=True)]


def mirror_boxes(boxes: Boxes3D) -> Boxes3D:
    """Camera-frame boxes of the world mirrored at the camera's y-z plane; ``box2d`` is left to ``ImageAffine``.

    Raises:
        ValueError: the boxes are not in the camera frame.
    """
    if boxes.frame != "camera":
        raise ValueError(f"expected boxes in the camera frame, got the {boxes.frame} frame")
    return replace(
        boxes,
        centre=_mirror(boxes.centre),
        yaw=wrap_angle(math.pi - boxes.yaw),
        velocity=None if boxes.velocity is None else _mirror(boxes.velocity),
        alpha=None if boxes.alpha is None else wrap_angle(math.pi - boxes.alpha),
    )


def _mirror(points: Float[Tensor, "m c"]) -> Float[Tensor, "m c"]:
    """Points with their first coordinate negated."""
    return torch.cat((-points[:, :1], points[:, 1:]), dim=1)


def place_objects(objects: Objects, affine: ImageAffine) -> Objects:
    """Label lines of the image file as they stand on the canvas: mirrored in 3D where the image was, ``box2d`` in
    canvas px.  ``difficulty`` stays as judged on the file."""
    boxes = mirror_boxes(objects.boxes) if affine.flip else objects.boxes
    if boxes.box2d is not None:
        boxes = replace(boxes, box2d=affine.apply_boxes(boxes.box2d))
    return replace(objects, boxes=boxes)


def to_canvas(
    source: Sample,
    canvas_size: tuple[int, int],
    config: AugmentConfig | None = None,
    generator: torch.Generator | None = None,
    depth_mode: Mode = "bilinear",
    placement: Placement = "fit",
) -> Sample:
    """A frame in its file's own pixels brought to a canvas of (width, height) px.

    Args:
        source: image, camera, labels, depth and points as the files hold them; its ``affine`` is not looked at.
        config, generator: augmentation and its randomness; without either the whole image is placed as it is.
        depth_mode: ``bilinear`` for dense, ``nearest`` for sparse depth.
        placement: ``fit`` the width, or leave the image as it is in the canvas's ``corner``.
    """
    size = (source.image.shape[-1], source.image.shape[-2])
    if config is None or generator is None:
        affine = place(size, canvas_size, placement)
        image = resample(source.image, affine)
    else:
        affine = draw_affine(size, canvas_size, config, generator, placement)
        image = source.image
        if config.distortion is not None:
            image = distort(image, generator, config.distortion, config.style)
        image = resample(image, affine)
        if config.photometric:
            image = jitter(image, generator, config.style)
    return Sample(
        frame_id=source.frame_id,
        image=image,
        camera=affine.camera(source.camera),
        affine=affine,
        objects=None if source.objects is None else place_objects(source.objects, affine),
        depth=None if source.depth is None else resample(source.depth, affine, depth_mode),
        points=_mirror(source.points) if source.points is not None and affine.flip else source.points,
        lidar_to_camera=mirror_pose(source.lidar_to_camera)
        if source.lidar_to_camera is not None and affine.flip
        else source.lidar_to_camera,
    )


def mirror_pose(lidar_to_camera: Float[Tensor, "4 4"]) -> Float[Tensor, "4 4"]:
    """The way from LiDAR to camera in the mirrored world, where the camera's x and the LiDAR's y are negated."""
    pose = lidar_to_camera.clone()
    pose[0] = -pose[0]
    pose[:, 1] = -pose[:, 1]
    return pose
