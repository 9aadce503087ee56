"""From any picture and its camera to boxes and a drawing."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from distill3d.boxes import KITTI_CLASSES, Boxes3D
from distill3d.camera import Camera, ImageAffine, misfit
from distill3d.data.augment.image import place, resample
from distill3d.data.collate import collate
from distill3d.data.kitti.calibration import read_calibration
from distill3d.data.kitti.labels import write_results
from distill3d.data.pictures import picture_size, read_image
from distill3d.data.sample import Sample
from distill3d.detectors.base import Detector
from distill3d.devices import find_device
from distill3d.errors import UserError
from distill3d.files import refuse_foreign, write_output
from distill3d.train.card import require
from distill3d.train.checkpoint import load_detector

#: Canvases are multiples of the trunk's last stride.
CANVAS_STEP = 32
#: A picture whose focal length on the training canvas is this near to training's (relative) is placed as in training.
FOCAL_TOLERANCE = 0.05
#: A picture may be looked at on at most so many times the training canvas's area: memory grows with it.
GREATEST_CANVAS = 16


def predict_images(
    checkpoint: Path, images: tuple[Path, ...], calib: Path | None, intrinsics: str | None, out: Path,
    least_score: float | None = None, device: str = "auto",
) -> Iterator[Path]:  # fmt: skip
    """Detects in each picture and writes ``<out>/<name>.txt`` (KITTI result lines) and ``<out>/<name>.png`` (drawing),
    named as ``result_names`` says; yields the drawings' paths.  All pictures are looked at before one is computed.

    Raises:
        UserError: no picture or no camera is given, a file cannot be read or is not what it should be, the camera
            cannot have taken a picture, the device is not there, or a result would replace a file that this library did
            not write, or that is the result of another picture.
    """
    if not images:
        raise UserError("predict: give at least one picture after the checkpoint")
    camera = read_camera(calib, intrinsics)
    where = find_device(device)
    names = result_names(images)
    for path, name in names.items():
        for ending in (".txt", ".png"):
            refuse_foreign(out / f"{name}{ending}", of=path)
    detector, card = pictures_detector(checkpoint)
    for path in names:
        size = picture_size(path)
        refuse_misfit(path, size, camera, calib)
        try:
            placed(card, size, camera)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    detector.to(where)
    for path, name in names.items():
        image = read_image(path)
        refuse_misfit(path, (image.shape[-1], image.shape[-2]), camera, calib)
        boxes = predict_image(detector, card, image.float() / 255, camera, where)
        if least_score is not None and boxes.score is not None:
            boxes = boxes[boxes.score >= least_score]
        _write(out / name, path, image.float() / 255, camera, boxes)
        yield out / f"{name}.png"


def pictures_detector(checkpoint: Path) -> tuple[Detector, dict[str, Any]]:
    """A trained detector of pictures in eval mode and its card, from a stage folder or a ``model.safetensors``.

    Raises:
        UserError: the file is none of ours, or its detector looks at something else than one picture.
    """
    detector, card = load_detector(checkpoint)
    if "version" in card:  # of a data set in nuScenes' layout
        raise UserError(
            f"{checkpoint} looks at surround views, predict needs a detector of one camera trained on KITTI's layout: "
            "distill3d report shows what it found"
        )
    if detector.config.input != "rgb":
        raise UserError(
            f"{checkpoint} looks at {detector.config.input}, predict needs a detector that looks at pictures alone"
        )
    require(card, checkpoint, "canvas", "focal", "file_focal")
    return detector, card


def _write(place: Path, picture: Path, image: torch.Tensor, camera: Camera, boxes: Boxes3D) -> None:
    """The two results of a picture (3, H, W) in 0..1: ``place`` and an ending."""
    from distill3d.view.draw import prediction_picture

    write_output(
        place.with_name(f"{place.name}.txt"), lambda part: write_results(part, boxes, KITTI_CLASSES),
        of=picture, flush=False,
    )  # fmt: skip
    write_output(
        place.with_name(f"{place.name}.png"), lambda part: prediction_picture(image, camera, boxes).save(part, "PNG"),
        of=picture, flush=False,
    )  # fmt: skip


def result_names(images: Iterable[Path]) -> dict[Path, str]:
    """What the results of each picture are called, without ending; a picture that is given twice counts once.

    That is the picture's name without its ending.  Of pictures whose names agree, also but for the case of letters, it
    goes with as many of the folders above as tell them apart (``left__000001`` and ``right__000001``); in one folder
    with the ending (``a_png`` and ``a_jpg``).
    """
    pictures = {os.path.abspath(path): path for path in images}
    alike = Counter(os.path.splitext(key)[0].casefold() for key in pictures)
    parts = {}
    for key in pictures:
        root, ending = os.path.splitext(key)
        last = root if alike[root.casefold()] == 1 else f"{root}_{ending.removeprefix('.')}"
        parts[key] = Path(last).parts[1:]
    taken = dict.fromkeys(pictures, 1)  # of the parts, from the last
    while True:
        names = {key: "__".join(parts[key][-count:]) for key, count in taken.items()}
        same = Counter(name.casefold() for name in names.values())
        longer = [key for key in names if same[names[key].casefold()] > 1 and taken[key] < len(parts[key])]
        if not longer:
            break
        taken |= {key: taken[key] + 1 for key in longer}
    found: dict[Path, str] = {}
    for key, name in names.items():
        others, number = {other.casefold() for other in found.values()}, 1
        while name.casefold() in others:  # folders' names that hold "__" themselves
            number += 1
            name = f"{names[key]}_{number}"
        found[pictures[key]] = name
    return found


def refuse_misfit(path: Path, size: tuple[int, int], camera: Camera, calib: Path | None) -> None:
    """Keeps a picture of ``size`` (width, height) px from being taken for another camera's.

    Raises:
        UserError: the camera, of the file ``calib`` or of --intrinsics, cannot have taken it.
    """
    fault = misfit(camera, size)
    if fault is not None:
        raise UserError(f"{calib or '--intrinsics'}: {fault}, the size of {path}")


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
    canvas = (_fit(width * scale), _fit(height * scale))
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


def predict_image(
    detector: Detector, card: dict[str, Any], image: torch.Tensor, camera: Camera, device: torch.device | str = "cpu"
) -> Boxes3D:
    """Boxes in the camera frame of one picture (3, H, W) with values in 0..1; ``placed`` says what becomes of it.

    Raises:
        UserError: as ``placed``.
    """
    pixels, affine, camera, enlarged = placed(card, (image.shape[-1], image.shape[-2]), camera)
    mounted = card.get("lidar_to_camera")  # for detectors that answer in a LiDAR's frame: as it was in training
    sample = Sample(
        "picture", resample(image, pixels), affine.camera(camera), affine,
        lidar_to_camera=None if mounted is None else torch.tensor(mounted, dtype=torch.float64),
    )  # fmt: skip
    batch = collate([sample]).to(device)
    with torch.no_grad():
        (boxes,) = detector.decode(detector(batch), batch)
    boxes = boxes.to("cpu")
    return boxes if boxes.box2d is None else replace(boxes, box2d=boxes.box2d / enlarged)


def _fit(pixels: float) -> int:
    return math.ceil(pixels / CANVAS_STEP - 1e-6) * CANVAS_STEP


def read_camera(calib: Path | None, intrinsics: str | None) -> Camera:
    """The camera of a KITTI calibration file, or of "fx,fy,cx,cy" in px.

    Raises:
        UserError: neither or both are given, or they cannot be read.
    """
    if (calib is None) == (intrinsics is None):
        raise UserError("predict: give the camera, either --calib FILE or --intrinsics fx,fy,cx,cy")
    if calib is not None:
        return read_calibration(calib).camera
    assert intrinsics is not None
    try:
        fx, fy, cx, cy = (float(v) for v in intrinsics.split(","))
    except ValueError:
        raise UserError(f"--intrinsics is {intrinsics!r}, expected four numbers fx,fy,cx,cy in px") from None
    return camera_of_intrinsics(fx, fy, cx, cy, f"--intrinsics is {intrinsics!r}")


def camera_of_intrinsics(fx: float, fy: float, cx: float, cy: float, told: str) -> Camera:
    """The camera with these focal lengths and this principal point (px).

    Raises:
        UserError: there is none; the sentence begins with ``told``.
    """
    if not (fx > 0 and fy > 0 and all(map(math.isfinite, (fx, fy, cx, cy)))):
        raise UserError(f"{told}, expected positive focal lengths and finite numbers")
    return Camera.from_intrinsics(fx, fy, cx, cy)
