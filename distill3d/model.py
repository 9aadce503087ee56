"""A trained detector in Python: pictures go in, boxes with names come out.

model = distill3d.load("runs/demo/runs/demo/monoskd")
found = model.predict("street.png", camera="calib.txt")
for box in found:
    print(box.name, box.score, box.centre)

and of surround views

model = distill3d.load("runs/labeldistill/student")
found = model.predict(model.moments("NUSCENES", version="v1.0-test").get(0))
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, TypeVar, overload

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from distill3d.boxes import IGNORE, NUSCENES_CLASSES
from distill3d.camera import Camera, misfit
from distill3d.data.kitti.labels import format_results
from distill3d.data.nuscenes.dataset import NuScenesConfig, NuScenesDataset
from distill3d.data.nuscenes.tables import version_in
from distill3d.data.pictures import read_image, rgb
from distill3d.data.surround import SurroundBatch, SurroundSample, collate_surround, moment_of
from distill3d.detectors import labels_of
from distill3d.detectors.base import CAMERA_INPUTS, DEPTH_INPUTS, POINT_INPUTS, Detector
from distill3d.devices import find_device
from distill3d.errors import UserError
from distill3d.found import Found, drawing
from distill3d.picture import calibrated, camera_of_intrinsics, predict_pictures, refuse_more_than_pictures
from distill3d.surround import SurroundPrediction
from distill3d.train.checkpoint import is_surround, load_detector
from distill3d.train.evaluation import detect_in
from distill3d.train.precision import choose_precision
from distill3d.train.recipe import SurroundDatasetConfig
from distill3d.train.rigs import cameras_of, refuse_other_rig
from distill3d.train.sources import surround_settings
from distill3d.train.stages import data_of

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
class Prediction(Found):
    """What a detector found in one picture, the surest first; its boxes lie in the camera's frame."""

    picture: Float[Tensor, "3 h w"]  # RGB in 0..1
    camera: Camera

    def __iter__(self) -> Iterator[Detection]:
        return (Detection(**row) for row in self.to_dict())

    def to_dict(self) -> list[dict[str, Any]]:
        """Each object with the fields of ``Detection``, as numbers that JSON has."""
        box2d = self.boxes.box2d
        more = [None] * len(self) if box2d is None else map(tuple, box2d.tolist())
        return self.rows(Detection._fields, more)

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

        return drawing(prediction_picture(self.picture, self.camera, self.boxes, self.classes), path)


@dataclass(frozen=True, repr=False)
class Model:
    """A trained detector that looks at pictures, or around a vehicle."""

    detector: Detector  # a torch module, in eval mode
    card: dict[str, Any]  # what it is, and what it was trained on
    device: torch.device
    path: Path | None = None  # where it was loaded from

    def __repr__(self) -> str:
        if self.surround:
            return f"Model({self.detector.name}, looks around by {self.detector.config.input}, {self.device})"
        width, height = self.card["canvas"]
        return f"Model({self.detector.name}, trained on {width} x {height} px, {self.device})"

    @property
    def surround(self) -> bool:
        """Whether it looks around a vehicle, at moments of several cameras or of a LiDAR."""
        return is_surround(self.card)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels of its boxes, of which it may detect some only."""
        if self.surround:
            return getattr(self.detector.config, "classes", tuple(self.card.get("classes", NUSCENES_CLASSES)))
        return labels_of(self.detector.config)

    def moments(
        self, root: str | Path, version: str | None = None, split: str | Path | None = None,
        samples: Sequence[str] = (), cameras: Sequence[str] = (),
    ) -> NuScenesDataset:  # fmt: skip
        """Moments of a folder in nuScenes' layout as an evaluation shows them to this detector of surround views: past
        frames, scans and depth as it was trained with.  No annotations are needed.

        Args:
            version: the folder of the tables, by default the training's, or the only one that is there.
            split: the name of a split, or the path of a file of scenes or samples; by default all samples.
            samples: in place of a split, names of scenes and tokens of samples.
            cameras: the rig, by default that of training; a detector that has a code for each camera takes no other.

        Raises:
            UserError: it looks at pictures or at labels, its recipe does not lie beside it, it cannot look at the
                cameras, or the tables or what is named of them is not there.
        """
        if not self.surround:
            raise UserError(f"{self.path or self!r} looks at pictures of one camera, expected one of surround views")
        modality = self.detector.config.input
        if modality == "labels":
            raise UserError(f"{self.path} looks at labels, predict needs a detector that finds objects itself")
        if self.path is None:
            raise UserError("the model was not loaded from a stage, whose recipe says how it looks at moments")
        root, dataset = Path(root), data_of(self.path, True)
        assert isinstance(dataset, SurroundDatasetConfig)
        if not root.is_dir():
            raise UserError(f"{root}: is no folder, expected one in nuScenes' layout")
        dataset = replace(dataset, cameras=tuple(cameras) or cameras_of(self.card))
        self._refuse_other_rig(dataset.cameras)
        return NuScenesDataset(
            NuScenesConfig(
                root=root,
                version=version or version_in(root, dataset.version),
                split=split,
                samples=tuple(samples),
                **surround_settings(dataset, {modality}),
            )
        )

    @overload
    def predict(
        self, picture: SurroundSample, camera: None = None, least_score: float | None = None
    ) -> SurroundPrediction: ...

    @overload
    def predict(
        self, picture: SurroundBatch | list[SurroundSample] | tuple[SurroundSample, ...], camera: None = None,
        least_score: float | None = None, batch_size: int = 1,
    ) -> list[SurroundPrediction]: ...  # fmt: skip

    @overload
    def predict(self, picture: Picture, camera: CameraLike, least_score: float | None = None) -> Prediction: ...

    @overload
    def predict(
        self, picture: list[Picture] | tuple[Picture, ...], camera: CameraLike, least_score: float | None = None,
        batch_size: int = 1,
    ) -> list[Prediction]: ...  # fmt: skip

    def predict(
        self, picture: Any, camera: CameraLike | None = None, least_score: float | None = None, batch_size: int = 1
    ) -> Prediction | SurroundPrediction | list[Prediction] | list[SurroundPrediction]:
        """What is in a picture, or in each of several of one camera; of surround views, in a moment or several.

        Args:
            picture: a file, a Pillow image, an array (H, W, 3) or a tensor (3, H, W), RGB, or a list of such; of
                surround views a sample of ``moments``, a list of such, or a batch, which is computed at once.
            camera: a KITTI calibration file, (fx, fy, cx, cy) in px, or a matrix (3, 3) or (3, 4); samples have theirs.
            least_score: of what is returned; by default the detector's own.
            batch_size: how many of a list are computed at once.

        Raises:
            UserError: a picture or the camera cannot be read, the camera cannot have taken the picture, or the detector
                looks at something else.
        """
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise UserError(f"batch_size is {batch_size!r}, expected a whole number of at least 1")
        _refuse_score(least_score)
        if self.surround or (_is_surround(picture) and not _is_empty(picture)):
            return self._predict_around(picture, camera, least_score, batch_size)
        if camera is None:
            raise UserError(f"predict of pictures needs their camera, {EXPECTED_CAMERA}")
        seen = as_camera(camera)
        if not isinstance(picture, list | tuple):
            return self.detect([(_fitting(picture, seen), seen)], least_score)[0]
        found: list[Prediction] = []
        for some in in_batches(picture, batch_size):
            found += self.detect([(_fitting(one, seen), seen) for one in some], least_score)
        return found

    def _predict_around(
        self, given: Any, camera: object, least_score: float | None, batch_size: int
    ) -> SurroundPrediction | list[SurroundPrediction]:
        what = "surround views" if self.surround else "pictures of one camera"
        if not self.surround or not _is_surround(given):
            expected = "a sample of model.moments(FOLDER), a list of such, or a batch" if self.surround else "a picture"
            raise UserError(f"the model looks at {what}: expected {expected}, not a {type(given).__name__}")
        if camera is not None:
            raise UserError("a camera was given beside a sample of surround views, which has its own")
        if isinstance(given, SurroundBatch):
            self._refuse_blind(given)
            return self.detect_around(given, least_score)
        found: list[SurroundPrediction] = []
        for some in in_batches([given] if isinstance(given, SurroundSample) else given, batch_size):
            batch = collate_surround(some)
            self._refuse_blind(batch)
            found += self.detect_around(batch, least_score)
        return found[0] if isinstance(given, SurroundSample) else found

    def _refuse_blind(self, batch: SurroundBatch) -> None:
        """Keeps moments out that lack what the detector looks at, or are of cameras that it cannot look at.

        Raises:
            UserError: they do.
        """
        modality = self.detector.config.input
        needs = {"images": CAMERA_INPUTS, "points": POINT_INPUTS, "depth": DEPTH_INPUTS}
        absent = next((n for n, inputs in needs.items() if modality in inputs and getattr(batch, n) is None), None)
        if absent is not None:
            raise UserError(f"sample {batch.frame_ids[0]} has no {absent}, the model looks at {modality}")
        if batch.cameras:
            self._refuse_other_rig(batch.cameras)

    def _refuse_other_rig(self, cameras: Sequence[str]) -> None:
        refuse_other_rig(self.path or "the model", self.detector.config, self.card, cameras)

    @torch.no_grad()
    def detect_around(self, batch: SurroundBatch, least_score: float | None = None) -> list[SurroundPrediction]:
        """``predict`` of a batch of moments, computed at once, with the arithmetic of an evaluation on this device."""
        seen, found = batch.to("cpu"), []
        for row, boxes in enumerate(
            detect_in(self.detector, batch, self.device, choose_precision("auto", self.device))
        ):
            assert boxes.score is not None
            order = boxes.score.argsort(descending=True, stable=True)
            kept = order if least_score is None else order[boxes.score[order] >= least_score]
            ego_frame = self.card.get("ego_frame", NuScenesConfig.ego_frame)
            found.append(SurroundPrediction(boxes[kept], self.classes, moment_of(seen, row), ego_frame))
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


def _is_empty(given: object) -> bool:
    return isinstance(given, list | tuple) and not given


def _is_surround(given: object) -> bool:
    """Whether what is to be looked at is a moment, a batch, or a list of moments."""
    several = isinstance(given, list | tuple) and all(isinstance(one, SurroundSample) for one in given)
    return several or isinstance(given, SurroundSample | SurroundBatch)


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
    """A trained detector of pictures or of surround views, from a stage's folder or its ``model.safetensors``.

    Raises:
        UserError: there is none, it is damaged, or, trained on one camera's frames, it looks at something else than
            pictures; of a run's folder the sentence names the stages.
    """
    where, path = find_device(device), Path(path)
    detector, card = load_detector(path)
    if not is_surround(card):
        refuse_more_than_pictures(path, detector, card)
    return Model(detector.to(where), card, where, path)


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
