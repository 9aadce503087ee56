"""One picture before a detector: placed so that distances look as they did in training, and its boxes brought back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from distill3d.boxes import Boxes3D
from distill3d.camera import Camera, ImageAffine
from distill3d.data.augment.image import place, resample
from distill3d.data.collate import collate
from distill3d.data.kitti.calibration import read_calibration
from distill3d.data.pictures import ENDINGS
from distill3d.data.sample import Sample
from distill3d.detectors.base import Detector
from distill3d.errors import UserError
from distill3d.train.card import require

#: Endings of files in which other programs keep a camera, each in its own way.
OTHER_CALIBRATIONS = (".json", ".yaml", ".yml", ".xml", ".toml")
#: Canvases are multiples of the trunk's last stride.
CANVAS_STEP = 32
#: A picture whose focal length on the training canvas is this near to training's (relative) is placed as in training.
FOCAL_TOLERANCE = 0.05
#: A picture may be looked at on at most so many times the training canvas's area: memory grows with it.
GREATEST_CANVAS = 16


def refuse_more_than_pictures(checkpoint: Path, detector: Detector, card: dict[str, Any]) -> None:
    """Keeps a detector of one camera's frames from predicting that looks at more than their pictures.

    Raises:
        UserError: it does, or its card does not say how pictures came before it.
    """
    if detector.config.input != "rgb":
        raise UserError(
            f"{checkpoint} looks at {detector.config.input}, predict needs a detector that looks at pictures alone"
        )
    require(card, checkpoint, "canvas", "focal", "file_focal")


class PlacedPicture(NamedTuple):
    """How a picture comes before a detector."""

    pixels: ImageAffine  # how the picture is resampled
    affine: ImageAffine  # the same as the detector is told of it
    camera: Camera  # of the picture as the detector is told of it
    enlarged: float  # how many times larger than it is the picture is said to be


def placed(card: dict[str, Any], size: tuple[int, int], camera: Camera) -> PlacedPicture:
    """Where a picture of ``size`` (width, height) px goes.

    A detector has learned depth at one focal length.  The picture is scaled so that objects at the same distance have
    the size that they had in training; it may be larger or smaller than the training canvas, and nothing is cut off.

    Raises:
        UserError: it would be more than ``GREATEST_CANVAS`` times as large.
    """
    width, height = size
    (canvas_width, canvas_height), focal = card["canvas"], card["focal"]
    placement = card.get("placement", "fit")
    fx = float(camera.projection[0, 0])
    projection = camera.projection.clone()
    projection[2, 3] = 0  # the data sets that detectors learn from divide by z itself
    as_trained = 1.0 if placement == "corner" else canvas_width / width
    fits = width * as_trained <= canvas_width and height * as_trained <= canvas_height * (
        1.0 if placement == "corner" else 1 + FOCAL_TOLERANCE
    )
    if fits and abs(fx * as_trained / focal - 1) <= FOCAL_TOLERANCE:
        affine = place(size, (canvas_width, canvas_height), placement)
        return PlacedPicture(affine, affine, Camera(projection), 1.0)
    scale = focal / fx
    canvas = (canvas_side(width * scale), canvas_side(height * scale))
    if canvas[0] * canvas[1] > GREATEST_CANVAS * canvas_width * canvas_height:
        raise UserError(
            f"{width} x {height} px with a focal length of {fx:g} px would be looked at on {canvas[0]} x "
            f"{canvas[1]} px, more than {GREATEST_CANVAS} times the {canvas_width} x {canvas_height} px of training: "
            "cut off what need not be looked at"
        )
    pixels = ImageAffine.crop(size, canvas, zoom=canvas[0] / (width * scale))
    # To the detector the picture is one that training's camera took: the same canvas, from a file of another size.
    enlarged = card["file_focal"] / fx
    projection[:2] *= enlarged
    window = ImageAffine.crop((width * enlarged, height * enlarged), canvas, zoom=canvas[0] / (width * scale))
    affine = replace(window, zoom=torch.ones_like(window.zoom))  # its focal length is training's: depths are true
    return PlacedPicture(pixels, affine, Camera(projection), enlarged)


def predict_pictures(
    detector: Detector, card: dict[str, Any], pictures: Sequence[tuple[Float[Tensor, "3 _ _"], Camera]],
    device: torch.device | str = "cpu",
) -> list[Boxes3D]:  # fmt: skip
    """Boxes of each picture, RGB in 0..1, in its camera's frame; ``placed`` says what becomes of a picture.

    Those that are looked at on canvases of one size are one batch, so the caller says by their number how much memory
    is needed.

    Raises:
        UserError: as ``placed``.
    """
    mounted = card.get("lidar_to_camera")  # for detectors that answer in a LiDAR's frame: as it was in training
    lidar_to_camera = None if mounted is None else torch.tensor(mounted, dtype=torch.float64)
    places = [placed(card, (image.shape[-1], image.shape[-2]), camera) for image, camera in pictures]
    groups: dict[tuple[int, ...], list[int]] = {}
    samples: list[Sample] = []
    for number, ((image, _), (pixels, affine, camera, _)) in enumerate(zip(pictures, places, strict=True)):
        seen = resample(image, pixels)
        groups.setdefault(seen.shape, []).append(number)
        samples.append(Sample(f"picture {number}", seen, affine.camera(camera), affine,
                              lidar_to_camera=lidar_to_camera))  # fmt: skip
    found: dict[int, Boxes3D] = {}
    for members in groups.values():
        batch = collate([samples[number] for number in members]).to(device)
        with torch.no_grad():
            decoded = detector.decode(detector(batch), batch)
        found |= zip(members, decoded, strict=True)
    return [_in_file(found[number].to("cpu"), place.enlarged) for number, place in enumerate(places)]


def _in_file(boxes: Boxes3D, enlarged: float) -> Boxes3D:
    """Boxes whose 2D boxes are in px of the picture's file."""
    return boxes if boxes.box2d is None else replace(boxes, box2d=boxes.box2d / enlarged)


def canvas_side(pixels: float) -> int:
    """The least side (px) of a canvas that holds ``pixels``."""
    return math.ceil(pixels / CANVAS_STEP - 1e-6) * CANVAS_STEP


def calibrated(path: Path, instead: str) -> Camera:
    """The camera of a KITTI calibration file; ``instead`` says how a camera is given without one.

    Raises:
        UserError: the file is of another kind, or cannot be read.
    """
    ending = path.suffix.lower()
    if ending in ENDINGS:
        raise UserError(f"{path}: is a picture, expected a calibration file of KITTI's")
    if ending in OTHER_CALIBRATIONS and path.exists():
        raise UserError(f"{path}: is no calibration file of KITTI's: give its numbers as {instead} in px")
    return read_calibration(path).camera


def camera_of_intrinsics(fx: float, fy: float, cx: float, cy: float, told: str) -> Camera:
    """The camera with these focal lengths and this principal point (px).

    Raises:
        UserError: there is none; the sentence begins with ``told``.
    """
    if not (fx > 0 and fy > 0 and all(map(math.isfinite, (fx, fy, cx, cy)))):
        raise UserError(f"{told}, expected positive focal lengths and finite numbers")
    return Camera.from_intrinsics(fx, fy, cx, cy)
