"""KITTI's 3D object data, straight from the official folders (layout: KITTI devkit readme).

    <root>/training/{image_2,label_2,calib,velodyne[,depth_2]}/NNNNNN.{png,txt,txt,bin,png}
    <root>/testing/...                     the same without labels
    <root>/ImageSets/<split>.txt           one frame per line

A frame's text files are first parsed with all their faults collected: readers stop at the first one, ``data/check.py``
lists them all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from distill3d.boxes import IGNORE, KITTI_CLASSES, Boxes3D, from_kitti, to_kitti
from distill3d.camera import Camera, Divide, ImageAffine
from distill3d.data.augment import AugmentConfig, Placement, to_canvas
from distill3d.data.cache import cache_folder, cache_key
from distill3d.data.depth import (
    CompletionConfig,
    cached_depth,
    complete_depth,
    project_depth,
    read_depth,
)
from distill3d.data.lidar_augment import (
    LidarAugmentConfig,
    LidarScene,
    ObjectDatabase,
    augment_lidar,
    carry,
    field_of_view,
    lidar_objects,
)
from distill3d.data.sample import EASY, HARD, MODERATE, UNKNOWN, Objects, Sample
from distill3d.errors import UserError

#: Numbers on each known line of a calibration file, and the lines that must be there.
CALIBRATION_LINES = {"P0": 12, "P1": 12, "P2": 12, "P3": 12, "R0_rect": 9, "Tr_velo_to_cam": 12, "Tr_imu_to_velo": 12}
REQUIRED_LINES = ("P2", "R0_rect", "Tr_velo_to_cam")
#: How far the columns of a rotation may be from orthonormal.
ROTATION_TOLERANCE = 1e-3

#: The numbers of a label line after the class name; the score stands in result files only.
LABEL_FIELDS = (
    "truncated", "occluded", "alpha", "left", "top", "right", "bottom", "height", "width", "length",
    "x", "y", "z", "rotation_y", "score",
)  # fmt: skip
LABEL_LENGTHS = (15, 16)
OCCLUSIONS = (-1, 0, 1, 2, 3)

#: Training difficulty: least box height (px), largest truncation, largest occlusion (xinzhuma/monodle
#: lib/datasets/kitti/kitti_utils.py).  The evaluation has rules of its own.
DIFFICULTIES = ((EASY, 40, 0.15, 0), (MODERATE, 25, 0.30, 1), (HARD, 25, 0.50, 2))

#: Endings of a frame's files by folder.
ENDINGS = {
    "image_2": "png", "calib": "txt", "velodyne": "bin", "label_2": "txt", "depth_2": "png", "planes": "txt",
}  # fmt: skip
PLANE_LINE = 4  # of a road plane's file: the line, from 1, that holds its numbers
VELODYNE_RECORD = 16  # bytes: float32 x, y, z, intensity
RESULT_DECIMALS = 4  # of pixels, metres and radians in result files; two decimals make ties


class Fault(NamedTuple):
    """What is wrong with a file, and on which line (from 1) if it is one line's fault."""

    line: int | None
    sentence: str


# --------------------------------------------------------------------------------------------------------- calibration


@dataclass(frozen=True)
class Calibration:
    """One frame's calibration file: camera 2 (left colour) and the way from the LiDAR to the rectified camera frame."""

    p2: Float[Tensor, "3 4"]  # float64
    r0_rect: Float[Tensor, "3 3"]
    tr_velo_to_cam: Float[Tensor, "3 4"]

    @property
    def camera(self) -> Camera:
        """The camera that took ``image_2``; it projects points of the rectified camera frame."""
        return Camera(self.p2)

    @property
    def lidar_to_rect(self) -> Float[Tensor, "4 4"]:
        """LiDAR points into the rectified camera frame: R0_rect after Tr_velo_to_cam."""
        matrix = torch.eye(4, dtype=self.r0_rect.dtype)
        matrix[:3] = self.r0_rect @ self.tr_velo_to_cam
        return matrix


def parse_calibration(
    text: str, lines: Mapping[str, int] = CALIBRATION_LINES, required: tuple[str, ...] = REQUIRED_LINES
) -> tuple[dict[str, Tensor], list[Fault]]:
    """The known matrices of a calibration file by name, float64, and its faults in file order.

    ``lines``: the names that are known, and how many numbers each has; ``required``: those that must be there.
    """
    matrices: dict[str, Tensor] = {}
    faults: list[Fault] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, colon, values = line.partition(":")
        if not colon:
            faults.append(Fault(number, "expected `name: numbers`"))
            continue
        if name not in lines:
            continue
        numbers = [_number(v) for v in values.split()]
        if len(numbers) != lines[name]:
            faults.append(Fault(number, f"{name} has {len(numbers)} numbers, expected {lines[name]}"))
        elif not all(math.isfinite(n) for n in numbers):
            faults.append(Fault(number, f"{name} holds a value that is not a finite number"))
        else:
            matrix = torch.tensor(numbers, dtype=torch.float64).reshape(3, -1)
            faults += [Fault(number, s) for s in _matrix_faults(name, matrix)]
            matrices[name] = matrix
    named = {line.partition(":")[0] for line in text.splitlines()}
    faults += [Fault(None, f"the line {name} is missing") for name in required if name not in named]
    return matrices, faults


def _matrix_faults(name: str, matrix: Float[Tensor, "3 c"]) -> Iterator[str]:
    if name.startswith("P"):
        if matrix[2, :3].tolist() != [0, 0, 1] or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
            yield f"{name} is no projection of a rectified camera (positive focal lengths, third row 0 0 1)"
        return
    if matrix.shape[1] == 1:  # a translation
        return
    rotation = matrix[:, :3]
    error = (rotation @ rotation.T - torch.eye(3, dtype=rotation.dtype)).abs().max()
    if error > ROTATION_TOLERANCE or torch.linalg.det(rotation) < 0:
        yield f"{name} does not hold a rotation"


def read_calibration(path: Path) -> Calibration:
    """A calibration file.

    Raises:
        UserError: it is absent, lacks a required line, or a line is malformed.
    """
    matrices, faults = parse_calibration(read_text(path))
    refuse_faults(path, faults)
    return Calibration(*(matrices[name] for name in REQUIRED_LINES))


# -------------------------------------------------------------------------------------------------------------- labels


class LabelLine(NamedTuple):
    """One well-formed line of a label or result file; ``numbers`` in the order of ``LABEL_FIELDS``."""

    line: int
    name: str
    numbers: list[float]


def parse_labels(text: str) -> tuple[list[LabelLine], list[Fault]]:
    """The well-formed lines of a label or result file, and the faults of the others; both in file order."""
    lines: list[LabelLine] = []
    faults: list[Fault] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, *values = line.split()
        numbers = [_number(v) for v in values]
        sentences = list(_label_faults(name, values, numbers))
        if sentences:
            faults += [Fault(number, s) for s in sentences]
        else:
            lines.append(LabelLine(number, name, numbers))
    if len({len(line.numbers) for line in lines}) > 1:
        odd = next(line for line in lines if len(line.numbers) != len(lines[0].numbers))
        faults.append(Fault(odd.line, "some lines have a score and some have none"))
    return lines, faults


def _label_faults(name: str, values: list[str], numbers: list[float]) -> Iterator[str]:
    if name not in KITTI_CLASSES:
        yield f"unknown class {name!r}, expected one of {', '.join(KITTI_CLASSES)}"
    if len(values) + 1 not in LABEL_LENGTHS:
        yield f"expected 15 fields, or 16 with a score, found {len(values) + 1}"
        return
    by_name = dict(zip(LABEL_FIELDS, numbers, strict=False))
    bad = {field for field, number in by_name.items() if not math.isfinite(number)}
    for field_name, value in zip(LABEL_FIELDS, values, strict=False):
        if field_name in bad:
            yield f"{field_name} is {value!r}, expected a finite number"
    if not bad & {"left", "right"} and by_name["right"] < by_name["left"]:
        yield f"the 2D box has right {values[5]} before left {values[3]}"
    if not bad & {"top", "bottom"} and by_name["bottom"] < by_name["top"]:
        yield f"the 2D box has bottom {values[6]} above top {values[4]}"
    if name == "DontCare":
        return
    for size in ("height", "width", "length"):
        if size not in bad and by_name[size] <= 0:
            yield f"{size} is {by_name[size]:g} m, expected a positive size"
    if "truncated" not in bad and not (0 <= by_name["truncated"] <= 1 or by_name["truncated"] == -1):
        yield f"truncated is {by_name['truncated']:g}, expected 0..1, or -1 for unknown"
    if "occluded" not in bad and by_name["occluded"] not in OCCLUSIONS:
        yield f"occluded is {by_name['occluded']:g}, expected 0, 1, 2 or 3, or -1 for unknown"


def training_difficulty(
    box2d: Float[Tensor, "n 4"], truncation: Float[Tensor, "n"], occlusion: Int[Tensor, "n"], height_scale: float = 1.0
) -> Int[Tensor, "n"]:
    """EASY, MODERATE, HARD or UNKNOWN for each label line, as MonoDLE trains on them.

    ``height_scale`` multiplies the least heights: image width / 1242 for data sets at a lower resolution than KITTI's.
    Truncation -1 (not annotated) is UNKNOWN.
    """
    box = box2d.double()
    height = box[:, 3] - box[:, 1] + 1
    truncation = truncation.double()
    difficulty = torch.full_like(occlusion, UNKNOWN)
    for level, least_height, most_truncation, most_occlusion in reversed(DIFFICULTIES):
        fits = (height >= least_height * height_scale) & (truncation <= most_truncation) & (occlusion <= most_occlusion)
        difficulty = torch.where(fits & (truncation != -1), level, difficulty)
    return difficulty


def read_labels(path: Path, height_scale: float = 1.0) -> Objects:
    """A label file, or a result file with scores; float64, in file order.

    Labels index ``KITTI_CLASSES``; DontCare rows have label ``IGNORE``, a 2D box and otherwise NaN.

    Raises:
        UserError: the file is absent or a line is malformed.
    """
    lines, faults = parse_labels(read_text(path))
    refuse_faults(path, faults)
    width = len(lines[0].numbers) if lines else len(LABEL_FIELDS) - 1
    table = torch.tensor([line.numbers for line in lines], dtype=torch.float64).reshape(-1, width)
    names = [line.name for line in lines]
    label = torch.tensor([IGNORE if n == "DontCare" else KITTI_CLASSES.index(n) for n in names], dtype=torch.int64)
    truncation, occlusion, box2d = table[:, 0], table[:, 1].long(), table[:, 3:7]
    geometry = torch.where(label[:, None] == IGNORE, math.nan, table)
    boxes = from_kitti(
        geometry[:, 7:10], geometry[:, 10:13], geometry[:, 13], label,
        box2d=box2d, alpha=geometry[:, 2], score=table[:, 14] if width == len(LABEL_FIELDS) else None,
    )  # fmt: skip
    return Objects(boxes, truncation, occlusion, training_difficulty(box2d, truncation, occlusion, height_scale))


def format_results(
    boxes: Boxes3D, classes: tuple[str, ...], decimals: int = RESULT_DECIMALS, score_decimals: int = 6,
    unknown: tuple[str, str] = ("-1", "-1"),
) -> list[str]:  # fmt: skip
    """Detections of one frame as lines of KITTI's result format.

    ``boxes`` are in the camera frame of the image file, with ``score``, ``box2d`` and ``alpha``; labels index
    ``classes``; ``unknown`` stands for truncation and occlusion.  Boxes at or behind the camera are left out: their 2D
    boxes mean nothing.

    Raises:
        ValueError: a needed field is missing, or the boxes are in another frame.
    """
    if boxes.score is None or boxes.box2d is None or boxes.alpha is None:
        raise ValueError("KITTI results need score, box2d and alpha")
    boxes = boxes[(boxes.centre[:, 2] > 0) & (boxes.label != IGNORE)]
    assert boxes.score is not None and boxes.box2d is not None and boxes.alpha is not None
    hwl, bottom, rotation_y = to_kitti(boxes)
    table = torch.cat((boxes.alpha[:, None], boxes.box2d, hwl, bottom, rotation_y[:, None]), dim=1)
    rows = zip(boxes.label.tolist(), table.tolist(), boxes.score.tolist(), strict=True)
    head = " ".join(unknown)
    return [
        f"{classes[label]} {head} {' '.join(f'{v:.{decimals}f}' for v in values)} {score:.{score_decimals}f}"
        for label, values, score in rows
    ]


def write_results(path: Path, boxes: Boxes3D, classes: tuple[str, ...], score_decimals: int = 6) -> None:
    """``format_results`` of one frame as a file; an empty file where there are no detections."""
    lines = format_results(boxes, classes, score_decimals=score_decimals)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# ------------------------------------------------------------------------------------------------- images, points, text


def read_image(path: Path) -> UInt8[Tensor, "3 h w"]:
    """An image file, RGB.

    Raises:
        UserError: it is absent, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_points(path: Path) -> Float[Tensor, "m 4"]:
    """A LiDAR scan in the LiDAR's frame: x forward, y left, z up (m) and intensity 0..1; float32.

    Raises:
        UserError: the file is absent or empty, its size is no whole number of points, or a value is not finite.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {_reason(error)}") from error
    if not data:
        raise UserError(f"{path}: the file is empty, expected LiDAR points")
    if len(data) % VELODYNE_RECORD:
        raise UserError(f"{path}: {len(data)} bytes are no multiple of the {VELODYNE_RECORD} bytes of a point")
    points = np.frombuffer(bytearray(data), dtype="<f4").reshape(-1, 4)
    bad = ~np.isfinite(points).all(axis=1)
    if bad.any():
        raise UserError(f"{path}: {bad.sum()} points hold NaN or Inf, the first is point {bad.argmax()} (from 0)")
    return torch.from_numpy(points)


def read_plane(path: Path) -> Float[Tensor, "4"]:
    """A road plane: a, b, c, d with a x + b y + c z + d = 0 in the camera's frame (m); float64.

    Raises:
        UserError: the file is absent, or its fourth line is no plane that a height can be read from.
    """
    lines = read_text(path).splitlines()
    numbers = [_number(v) for v in lines[PLANE_LINE - 1].split()] if len(lines) >= PLANE_LINE else []
    if len(numbers) != 4 or not all(math.isfinite(n) for n in numbers) or numbers[1] == 0:
        raise UserError(f"{path}:{PLANE_LINE}: expected the four numbers of a plane that is not upright")
    return torch.tensor(numbers, dtype=torch.float64)


def read_split(path: Path) -> list[str]:
    """Frame names of a split file, one per line; blank lines do not count.

    Raises:
        UserError: the file is absent or names no frame, or a frame twice.
    """
    frames = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not frames:
        raise UserError(f"{path}: names no frame")
    if len(set(frames)) < len(frames):
        twice = next(f for i, f in enumerate(frames) if f in frames[:i])
        raise UserError(f"{path}: names frame {twice} twice")
    return frames


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        UserError: it is absent or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text file") from error
    except OSError as error:
        raise UserError(f"{path}: {_reason(error)}") from error


def _number(text: str) -> float:
    """The number that a text stands for; NaN where it stands for none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _reason(error: OSError) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"


def refuse_faults(path: Path, faults: list[Fault]) -> None:
    """Stops at the first fault of a file.

    Raises:
        UserError: there is one.
    """
    if faults:
        where = path if faults[0].line is None else f"{path}:{faults[0].line}"
        raise UserError(f"{where}: {faults[0].sentence}")


# ------------------------------------------------------------------------------------------------------------- data set


@dataclass(frozen=True, kw_only=True)
class FrameConfig:
    """How KITTI's frames come out, those of the object data and those of the raw drives alike.

    ``divide`` chooses the projection that ``Sample.camera`` stands for.  KITTI's P2[2, 3] is about 3 mm.  MonoDLE and
    its descendants divide by the point's own z; crops and mirrors then only commute with the projection where P2[2, 3]
    is taken as 0, which ``rect_z`` does.  ``homogeneous`` keeps P2 as it is (CaDDN, CMKD).

    ``placement``: see ``Placement`` in data/augment.py.
    ``depth``: ``lidar`` is the sparse projection of the scan, ``completed`` the same made dense, ``png`` the folder
    ``depth_2`` (16-bit PNG, metres * 256; object data only).
    ``field_of_view``: of a scan's points only those that the camera sees are kept, augmented or not, for networks that
    look at points (see ``field_of_view`` in data/lidar_augment.py).
    """

    canvas: tuple[int, int] = (1280, 384)  # (width, height) px
    depth: Literal["none", "lidar", "completed", "png"] = "none"
    points: bool = False
    field_of_view: bool = False
    divide: Divide = "rect_z"
    placement: Placement = "fit"
    augment: AugmentConfig | None = None
    completion: CompletionConfig = field(default_factory=CompletionConfig)
    cache: Path | None = None  # folder of what is computed from the files; None: see data/cache.py
    in_memory: bool = False  # keep decoded frames: for small sets (each worker process keeps its own)


@dataclass(frozen=True)
class KittiConfig(FrameConfig):
    """Which frames of a KITTI folder are read, and how they come out.

    ``lidar_augment`` moves and adds to points and objects where a generator is given, for networks that look at points
    alone; the picture, its depth and the camera stay as they are, and ``augment`` is not applied.

    Raises:
        UserError: points are to be augmented, but not read.
    """

    root: Path
    split: str
    folder: Literal["training", "testing"] = "training"
    min_height_scale: float = 1.0  # of the training difficulties; see training_difficulty
    lidar_augment: LidarAugmentConfig | None = None

    def __post_init__(self) -> None:
        if self.lidar_augment is not None and not self.points:
            raise UserError("lidar_augment is set but points is not: there would be nothing to augment")


C = TypeVar("C", bound=FrameConfig)


class FrameDataset(ABC, Generic[C]):
    """Frames of one camera and one LiDAR as samples; what the readers of object data and of raw drives share."""

    classes: tuple[str, ...] = KITTI_CLASSES

    def __init__(self, config: C, root: Path, frame_ids: list[str]) -> None:
        self.config, self.root, self.frame_ids = config, root, frame_ids
        self._memory: dict[int, _Frame] = {}
        self._image_augment = config.augment
        if config.depth == "completed":
            _ = self._cache  # a folder that cannot be written is told before the first frame is read

    def __len__(self) -> int:
        return len(self.frame_ids)

    def get(self, index: int, generator: torch.Generator | None = None) -> Sample:
        """Frame ``index`` on the canvas; augmented only with both a generator and a setting that asks for it."""
        frame = self._memory.get(index) or self._read(index)
        if self.config.in_memory:
            self._memory[index] = frame
        image = frame.pixels.float().div_(255)
        size = (image.shape[-1], image.shape[-2])
        canvas = self.config.canvas
        if self.config.placement == "corner" and (size[0] > canvas[0] or size[1] > canvas[1]):
            raise UserError(
                f"frame {self.frame_ids[index]} is {size[0]} x {size[1]} px, too large for the canvas of "
                f"{canvas[0]} x {canvas[1]} px that it is to be placed on unscaled"
            )
        source = Sample(self.frame_ids[index], image, frame.camera, ImageAffine.crop(size, size), *frame[2:])
        if generator is not None:
            source = self._augment_scan(source, generator)
        depth_mode = "nearest" if self.config.depth == "lidar" else "bilinear"
        sample = to_canvas(source, canvas, self._image_augment, generator, depth_mode, self.config.placement)
        return sample if sample.objects is None else replace(sample, objects=_single(sample.objects))

    @abstractmethod
    def _read(self, index: int) -> _Frame:
        """The files of frame ``index``."""

    def _augment_scan(self, source: Sample, generator: torch.Generator) -> Sample:
        """A frame in its file's own pixels with its points and objects augmented; by default as it is."""
        return source

    def _frame(
        self, frame_id: str, image: Path, calibration: Calibration, scan: Path, objects: Objects | None = None,
        depth_image: Path | None = None,
    ) -> _Frame:  # fmt: skip
        """What a frame's files hold, as far as the settings ask for it; ``depth_image`` is read with depth ``png``.

        Raises:
            UserError: a file is absent or malformed.
        """
        config = self.config
        pixels = read_image(image)
        size = (pixels.shape[-1], pixels.shape[-2])
        projection = calibration.p2.clone()
        if config.divide == "rect_z":
            projection[2, 3] = 0
        camera = Camera(projection)
        points = depth = None
        if config.points or config.depth in ("lidar", "completed"):
            points = carry(read_points(scan), calibration.lidar_to_rect)
        if config.depth == "png" and depth_image is not None:
            depth = read_depth(depth_image)
            if tuple(depth.shape) != size[::-1]:
                raise UserError(
                    f"{depth_image}: is {depth.shape[1]} x {depth.shape[0]} px, its image {size[0]} x {size[1]}"
                )
        elif points is not None and config.depth != "none":
            depth = self._depth(frame_id, points, camera, size)
        if points is not None and config.field_of_view:
            points = points[field_of_view(points, camera, size)]
        return _Frame(
            pixels, camera, objects, None if depth is None else depth[None], points if config.points else None,
            calibration.lidar_to_rect,
        )  # fmt: skip

    def _depth(
        self, frame_id: str, points: Float[Tensor, "m 4"], camera: Camera, size: tuple[int, int]
    ) -> Float[Tensor, "h w"]:
        """The scan in the image file's pixels, completed if the settings ask for it."""
        if self.config.depth == "lidar":
            return project_depth(points, camera, size)
        # Everything that the map depends on is in the key, so a changed scan, calibration or setting is seen.
        key = cache_key(points, camera.projection, size, self.config.completion)
        return cached_depth(
            self._cache, frame_id.replace("/", "-"), key,
            lambda: complete_depth(project_depth(points, camera, size), self.config.completion),
        )  # fmt: skip

    @cached_property
    def _cache(self) -> Path:
        """The folder of what is computed from the files."""
        return cache_folder(self.root, self.config.cache)


class KittiDataset(FrameDataset[KittiConfig]):
    """KITTI frames as samples; labels index ``KITTI_CLASSES``, and every labelled class is kept.

    Frames have no objects (None) where the folder ``label_2`` is absent.

    Raises:
        UserError: a folder or the split file is absent, or (when a frame is read) one of its files is malformed.
    """

    def __init__(self, config: KittiConfig) -> None:
        root = Path(config.root)
        self.folder = root / config.folder
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder, expected KITTI's layout (training/image_2, ...)")
        super().__init__(config, root, read_split(root / "ImageSets" / f"{config.split}.txt"))
        self._labelled = (self.folder / "label_2").is_dir()
        self._planes = (self.folder / "planes").is_dir()
        if config.lidar_augment is not None:
            self._image_augment = None

    @cached_property
    def object_database(self) -> ObjectDatabase:
        """The objects of this split's frames with their points, to be pasted into other frames.

        Built when first asked for, and kept in a file of the cache folder unless the frames are ``in_memory``.  Ask
        before worker processes are started, or each of them reads the file anew.

        Raises:
            UserError: a file is absent or malformed.
        """
        config = self.config.lidar_augment or LidarAugmentConfig()
        scenes = (self._scene(frame) for frame in self.frame_ids)
        if self.config.in_memory or not self._labelled:
            return ObjectDatabase.build(scenes, config.least_points)
        # Files are told apart by size and time of change: to read all scans would take as long as to build.
        paths = [self._path(kind, frame) for kind in ("velodyne", "calib", "label_2") for frame in self.frame_ids]
        stamps = [_stamp(path) for path in paths]
        key = cache_key(self.frame_ids, stamps, self.config.min_height_scale, config.least_points)
        path = self._cache / f"objects-{self.config.split}-{key}.npz"
        return ObjectDatabase.cached(path, scenes, config.least_points)

    def _augment_scan(self, source: Sample, generator: torch.Generator) -> Sample:
        config = self.config.lidar_augment
        if config is None:
            return source
        database = self.object_database if self._labelled and config.counts else None
        on_plane = self._planes and config.road_planes
        plane = read_plane(self._path("planes", source.frame_id)) if on_plane else None
        return augment_lidar(source, config, generator, database, self.classes, plane)

    def _path(self, kind: str, frame: str) -> Path:
        return self.folder / kind / f"{frame}.{ENDINGS[kind]}"

    def _labels(self, frame: str) -> Objects | None:
        return read_labels(self._path("label_2", frame), self.config.min_height_scale) if self._labelled else None

    def _read(self, index: int) -> _Frame:
        frame = self.frame_ids[index]
        return self._frame(
            frame, self._path("image_2", frame), read_calibration(self._path("calib", frame)),
            self._path("velodyne", frame), self._labels(frame), self._path("depth_2", frame),
        )  # fmt: skip

    def _scene(self, frame: str) -> LidarScene:
        """A frame's scan and labels in the LiDAR's frame."""
        pose, objects = read_calibration(self._path("calib", frame)).lidar_to_rect, self._labels(frame)
        return LidarScene(
            read_points(self._path("velodyne", frame)), None if objects is None else lidar_objects(objects, pose)
        )


def _stamp(path: Path) -> tuple[int, int]:
    """Size (bytes) and time of change (ns) of a file.

    Raises:
        UserError: it is absent.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: {_reason(error)}") from error
    return status.st_size, status.st_mtime_ns


class _Frame(NamedTuple):
    """What the files of a frame hold: a ``Sample`` before it is placed on a canvas."""

    pixels: UInt8[Tensor, "3 h w"]
    camera: Camera
    objects: Objects | None
    depth: Float[Tensor, "1 h w"] | None
    points: Float[Tensor, "m 4"] | None
    lidar_to_camera: Float[Tensor, "4 4"]


def _single(objects: Objects) -> Objects:
    """Label lines in float32, as batches hold them."""
    return replace(objects, boxes=objects.boxes.to(torch.float32), truncation=objects.truncation.float())
