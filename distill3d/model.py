"""A trained detector in Python: pictures go in, boxes with names come out.

model = distill3d.load("runs/demo/runs/demo/monoskd")
found = model.predict("street.png", camera="calib.txt")
for box in found:
    print(box.name, box.score, box.centre)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, TypeVar, overload

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from distill3d.boxes import IGNORE, Boxes3D
from distill3d.camera import Camera, misfit
from distill3d.data.kitti.labels import format_results
from distill3d.data.pictures import read_image, rgb
from distill3d.detectors import labels_of
from distill3d.detectors.base import Detector
from distill3d.devices import find_device
from distill3d.errors import UserError
from distill3d.files import refuse_foreign, write_output
from distill3d.picture import calibrated, camera_of_intrinsics, pictures_detector, predict_pictures

#: A picture: a file, a Pillow image, an array (H, W, 3) or a tensor (3, H, W), of bytes or of numbers in 0..1, RGB.
Picture = str | Path | Image.Image | np.ndarray | Tensor
#: A camera: the path of a KITTI calibration file, (fx, fy, cx, cy) in px, or a matrix (3, 3) or (3, 4).
CameraLike = Camera | str | Path | Sequence[float] | np.ndarray | Tensor
T = TypeVar("T")
EXPECTED_CAMERA = "expected a calibration file, (fx, fy, cx, cy) in px, or a matrix (3, 3) or (3, 4)"


class Detection(NamedTuple):
    """One object: where it is in the camera's frame (x to the right, y down, z ahead, m)."""

    name: str  # of its class
    score: float  # larger is surer; of some detectors above 1 where they are sure of the depth
    centre: tuple[float, float, float]  # m, of the box
    size: tuple[float, float, float]  # m, (length, width, height)
    yaw: float  # rad, about the up axis; 0: its length points to the right
    box2d: tuple[float, float, float, float] | None  # px, (left, top, right, bottom)


@dataclass(frozen=True)
class Prediction:
    """What a detector found in one picture, the surest first."""

    boxes: Boxes3D  # in the camera's frame
    classes: tuple[str, ...]  # names of ``boxes.label``
    picture: Float[Tensor, "3 h w"]  # RGB in 0..1
    camera: Camera

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Detection]:
        return (Detection(**row) for row in self.to_dict())

    @property
    def names(self) -> list[str]:
        """The class of each box."""
        return [self.classes[label] for label in self.boxes.label.tolist()]

    def to_dict(self) -> list[dict[str, Any]]:
        """Each object with the fields of ``Detection``, as numbers that JSON has."""
        boxes = self.boxes
        assert boxes.score is not None
        rows = zip(self.names, boxes.score.tolist(), map(tuple, boxes.centre.tolist()),
                   map(tuple, boxes.size.tolist()), boxes.yaw.tolist(),
                   [None] * len(boxes) if boxes.box2d is None else map(tuple, boxes.box2d.tolist()),
                   strict=True)  # fmt: skip
        return [dict(zip(Detection._fields, row, strict=True)) for row in rows]

    def to_kitti(self) -> list[str]:
        """Lines of a result file in KITTI's format."""
        return format_results(self.boxes, self.classes)

    def to_supervision(self) -> Any:
        """The 2D boxes as the package supervision has them, with class names and 3D boxes as data.

        Raises:
            UserError: supervision is not installed.
        """
        try:
            from supervision import Detections  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError("supervision is not installed: pip install supervision") from None
        boxes = self.boxes
        assert boxes.box2d is not None and boxes.score is not None
        return Detections(
            xyxy=boxes.box2d.numpy(), confidence=boxes.score.numpy(), class_id=boxes.label.numpy(),
            data={"class_name": np.array(self.names, dtype=str), "centre": boxes.centre.numpy(),
                  "size": boxes.size.numpy(), "yaw": boxes.yaw.numpy()},
        )  # fmt: skip

    def draw(self, path: str | Path | None = None) -> Image.Image:
        """The picture with the boxes, beside the view from above; written as a PNG file too where a path is given.

        Raises:
            UserError: a file that this library did not write stands there, or it cannot be written.
        """
        from distill3d.view.draw import prediction_picture

        drawn = prediction_picture(self.picture, self.camera, self.boxes, self.classes)
        if path is not None:
            refuse_foreign(Path(path))
            write_output(Path(path), lambda part: drawn.save(part, "PNG"))
        return drawn


@dataclass(frozen=True, repr=False)
class Model:
    """A trained detector that looks at pictures."""

    detector: Detector  # a torch module, in eval mode
    card: dict[str, Any]  # what it is, and what it was trained on
    device: torch.device

    def __repr__(self) -> str:
        width, height = self.card["canvas"]
        return f"Model({self.detector.name}, trained on {width} x {height} px, {self.device})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels of its boxes, of which it may detect some only."""
        return labels_of(self.detector.config)

    @overload
    def predict(self, picture: Picture, camera: CameraLike, least_score: float | None = None) -> Prediction: ...

    @overload
    def predict(
        self, picture: list[Picture] | tuple[Picture, ...], camera: CameraLike, least_score: float | None = None,
        batch_size: int = 1,
    ) -> list[Prediction]: ...  # fmt: skip

    def predict(
        self, picture: Picture | list[Picture] | tuple[Picture, ...], camera: CameraLike,
        least_score: float | None = None, batch_size: int = 1,
    ) -> Prediction | list[Prediction]:  # fmt: skip
        """What is in a picture, or in each of several of one camera.

        Args:
            picture: a file, a Pillow image, an array (H, W, 3) or a tensor (3, H, W), RGB, or a list of such.
            camera: a KITTI calibration file, (fx, fy, cx, cy) in px, or a matrix (3, 3) or (3, 4).
            least_score: of what is returned; by default the detector's own.
            batch_size: how many of a list are computed at once.

        Raises:
            UserError: a picture or the camera cannot be read, or the camera cannot have taken the picture.
        """
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise UserError(f"batch_size is {batch_size!r}, expected a whole number of at least 1")
        _refuse_score(least_score)
        seen = as_camera(camera)
        if not isinstance(picture, list | tuple):
            return self.detect([(_fitting(picture, seen), seen)], least_score)[0]
        found: list[Prediction] = []
        for some in in_batches(picture, batch_size):
            found += self.detect([(_fitting(one, seen), seen) for one in some], least_score)
        return found

    def detect(
        self, pictures: Sequence[tuple[Float[Tensor, "3 _ _"], Camera]], least_score: float | None = None
    ) -> list[Prediction]:
        """``predict`` of pictures, RGB in 0..1, each with a camera that is known to fit, all computed at once."""
        found = []
        boxes_of_all = predict_pictures(self.detector, self.card, pictures, self.device)
        for (pixels, camera), boxes in zip(pictures, boxes_of_all, strict=True):
            boxes = boxes[boxes.label != IGNORE]
            assert boxes.score is not None
            order = boxes.score.argsort(descending=True)
            kept = order if least_score is None else order[boxes.score[order] >= least_score]
            found.append(Prediction(boxes[kept], self.classes, pixels, camera))
        return found


def _refuse_score(least_score: object) -> None:
    """Keeps from being a least score what is no number.

    Raises:
        UserError: it is none.
    """
    if least_score is not None and (not isinstance(least_score, Real) or math.isnan(least_score)):
        raise UserError(f"least_score is {least_score!r}, expected a number, or None for the detector's own")


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of ``size``, the last of which may be shorter; taken as they are asked for."""
    rest = iter(items)
    return iter(lambda: list(islice(rest, size)), [])


def _fitting(picture: Picture, camera: Camera) -> Float[Tensor, "3 _ _"]:
    """A picture's pixels.

    Raises:
        UserError: it cannot be read, or the camera cannot have taken it.
    """
    pixels = as_pixels(picture)
    fault = misfit(camera, (pixels.shape[-1], pixels.shape[-2]))
    if fault is not None:
        raise UserError(f"camera: {fault}")
    return pixels


def load(path: str | Path, device: str = "auto") -> Model:
    """A trained detector of pictures, from a stage's folder or its ``model.safetensors``.

    Raises:
        UserError: there is none, it is damaged, or it looks at something else than one picture; of a run's folder the
            sentence names the stages.
    """
    where = find_device(device)
    detector, card = pictures_detector(Path(path))
    return Model(detector.to(where), card, where)


def build(recipe: str, stage: str) -> Detector:
    """The untrained detector of a recipe's stage, a torch module, without pretrained weights.

    Raises:
        UserError: there is no such recipe or stage.
    """
    from distill3d.detectors import build_detector
    from distill3d.recipes import get_recipe
    from distill3d.train.checkpoint import untrained_detector

    return build_detector(untrained_detector(get_recipe(recipe).stage(stage).detector))


def as_camera(camera: CameraLike) -> Camera:
    """What ``Model.predict`` takes for a camera as one, whose projection is (3, 4).

    Raises:
        UserError: it cannot be read, is none of these, or several.
    """
    if _is_several(camera):
        raise UserError(f"camera is a list of {len(camera)}, expected one camera for all pictures")
    if isinstance(camera, str | Path):
        return calibrated(Path(camera), "(fx, fy, cx, cy)")
    try:
        matrix = torch.as_tensor(camera.projection if isinstance(camera, Camera) else camera, dtype=torch.float64).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"camera is a {type(camera).__name__}, {EXPECTED_CAMERA}") from None
    if matrix.shape == (4,):
        fx, fy, cx, cy = matrix.tolist()
        return camera_of_intrinsics(fx, fy, cx, cy, f"camera is {(fx, fy, cx, cy)}")
    if matrix.shape == (3, 3):
        matrix = torch.cat((matrix, matrix.new_zeros(3, 1)), dim=1)
    if matrix.shape != (3, 4):
        raise UserError(f"camera has the shape {tuple(matrix.shape)}, {EXPECTED_CAMERA}")
    if not matrix.isfinite().all() or not (matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise UserError("camera is a matrix whose focal lengths are not positive, or that holds values not finite")
    return Camera(matrix)


def _is_several(camera: object) -> TypeGuard[Sequence[object]]:
    """Whether it is a list of cameras rather than of a camera's numbers or of a matrix's rows."""
    if not isinstance(camera, list | tuple) or not camera or all(isinstance(one, Real) for one in camera):
        return False
    if any(isinstance(one, Camera | str | Path) for one in camera):
        return True
    shapes = {np.shape(one) for one in camera}
    if shapes == {(4,)}:  # rows of a matrix do not all begin with a focal length
        return all(float(one[0]) >= 1 for one in camera)
    return shapes <= {(3, 3), (3, 4)}


def as_pixels(picture: Picture) -> Float[Tensor, "3 h w"]:
    """What ``Model.predict`` takes for a picture as RGB in 0..1.

    Raises:
        UserError: it cannot be read, or is none of these.
    """
    if isinstance(picture, str | Path):
        return read_image(Path(picture)).float() / 255
    if isinstance(picture, Image.Image):
        picture = np.array(rgb(picture, "picture"))
    if isinstance(picture, np.ndarray):
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise UserError(f"picture is an array of the shape {picture.shape}, expected (height, width, 3)")
        picture = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)
    if not isinstance(picture, Tensor):
        raise UserError(f"picture is a {type(picture).__name__}, expected a file, an image, an array or a tensor")
    if picture.ndim != 3 or picture.shape[0] != 3 or 0 in picture.shape:
        raise UserError(f"picture is a tensor of the shape {tuple(picture.shape)}, expected (3, height, width)")
    if picture.dtype == torch.uint8:
        return picture.cpu().float() / 255
    if not picture.is_floating_point():
        raise UserError(f"picture holds numbers of the type {picture.dtype}, expected bytes or numbers in 0..1")
    pixels = picture.detach().cpu().float()
    if not bool((pixels >= 0).all() and (pixels <= 1).all()):
        raise UserError("picture holds numbers outside 0..1, expected bytes in 0..255 or numbers in 0..1")
    return pixels
