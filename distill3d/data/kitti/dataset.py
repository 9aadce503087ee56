"""KITTI's 3D object data, straight from the official folders (layout: KITTI devkit readme).

<root>/training/{image_2,label_2,calib,velodyne[,depth_2]}/NNNNNN.{png,txt,txt,bin,png}
<root>/testing/...                     the same without labels
<root>/ImageSets/<split>.txt           one frame per line
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from distill3d.camera import Camera, Divide, ImageAffine, misfit
from distill3d.data.augment.image import AugmentConfig, Placement, to_canvas
from distill3d.data.augment.lidar import (
    LidarAugmentConfig,
    LidarScene,
    ObjectDatabase,
    augment_lidar,
    carry,
    field_of_view,
    lidar_objects,
)
from distill3d.data.augment.paste import Donors, PasteConfig, paste_objects, refuse_unknown
from distill3d.data.augment.paste import Scene as PastedScene
from distill3d.data.cache import cache_folder, cache_key
from distill3d.data.depth import CompletionConfig, cached_depth, complete_depth, project_depth, read_depth
from distill3d.data.kitti.calibration import Calibration, read_calibration
from distill3d.data.kitti.labels import read_labels, training_difficulty
from distill3d.data.kitti.names import KITTI_NAMES, LabelNames
from distill3d.data.kitti.scans import VELODYNE_COLUMNS, read_plane, read_points
from distill3d.data.pictures import picture_named, read_image
from distill3d.data.sample import Objects, Sample
from distill3d.data.scans import ScanColumns
from distill3d.data.splits import read_split
from distill3d.errors import UserError
from distill3d.files import names_below, reason_of
from distill3d.settings import HeightScale, Pixels, check_settings, is_in_range

#: Endings of a frame's files by folder.
ENDINGS = {
    "image_2": "png", "calib": "txt", "velodyne": "bin", "label_2": "txt", "depth_2": "png", "planes": "txt",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FrameConfig:
    """How KITTI's frames come out, those of the object data and those of the raw drives alike.

    ``divide`` chooses the projection that ``Sample.camera`` stands for.  KITTI's P2[2, 3] is about 3 mm.  MonoDLE and
    its descendants divide by the point's own z; crops and mirrors then only commute with the projection where P2[2, 3]
    is taken as 0, which ``rect_z`` does.  ``homogeneous`` keeps P2 as it is (CaDDN, CMKD).

    ``placement``: see ``Placement`` in data/augment/image.py.
    ``depth``: ``lidar`` is the sparse projection of the scan, ``completed`` the same made dense, ``png`` the folder
    ``depth_2`` (16-bit PNG, metres * 256; object data only).
    ``field_of_view``: of a scan's points only those that the camera sees are kept, augmented or not, for networks that
    look at points (see ``field_of_view`` in data/augment/lidar.py).
    ``scan_columns``: how many float32 each point of the scans' files has, of which the first four are read.
    """

    canvas: tuple[Pixels, Pixels] = (1280, 384)  # (width, height) px
    depth: Literal["none", "lidar", "completed", "png"] = "none"
    points: bool = False
    field_of_view: bool = False
    scan_columns: ScanColumns = VELODYNE_COLUMNS
    divide: Divide = "rect_z"
    placement: Placement = "fit"
    names: LabelNames = KITTI_NAMES  # in label files
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
        UserError: points are to be augmented, but not read; or objects are to be pasted, but not as ``augment`` does.
    """

    root: Path
    split: str
    folder: Literal["training", "testing"] = "training"
    min_height_scale: HeightScale = 1.0  # of the training difficulties; see training_difficulty
    lidar_augment: LidarAugmentConfig | None = None
    labels: bool = True  # False: frames come out as if they had none
    #: Of frames that lack a scan: refused, or left out, where scans are asked for; or always left out.
    without_scan: Literal["refuse", "skip", "always_skip"] = "refuse"

    def __post_init__(self) -> None:
        if not is_in_range(self) or self.lidar_augment is None:
            return
        if not self.points:
            raise UserError("lidar_augment is set but points is not: there would be nothing to augment")
        if self.augment is not None and self.augment.paste is not None:
            raise UserError(
                "augment.paste and lidar_augment are both set, and lidar_augment takes the place of augment: give one "
                "of them (lidar_augment.counts adds objects to scans)"
            )


C = TypeVar("C", bound=FrameConfig)


class FrameDataset(ABC, Generic[C]):
    """Frames of one camera and one LiDAR as samples; what the readers of object data and of raw drives share."""

    def __init__(self, config: C, root: Path, frame_ids: list[str]) -> None:
        check_settings(config)
        self.config, self.root, self.frame_ids = config, root, frame_ids
        self.classes = config.names.names  # what labels index
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
            source = self._augment_scene(source, generator)
        depth_mode = "nearest" if self.config.depth == "lidar" else "bilinear"
        sample = to_canvas(source, canvas, self._image_augment, generator, depth_mode, self.config.placement)
        return sample if sample.objects is None else replace(sample, objects=_single(sample.objects))

    @abstractmethod
    def _read(self, index: int) -> _Frame:
        """The files of frame ``index``."""

    def _augment_scene(self, source: Sample, generator: torch.Generator) -> Sample:
        """A frame in its file's own pixels with what it shows augmented; by default as it is."""
        return source

    def _frame(
        self, frame_id: str, image: Path, calibration: Calibration, scan: Path, objects: Objects | None = None,
        depth_image: Path | None = None,
    ) -> _Frame:  # fmt: skip
        """What a frame's files hold, as far as the settings ask for it; ``depth_image`` is read with depth ``png``.

        Raises:
            UserError: a file is absent or malformed, or they do not belong together.
        """
        config = self.config
        pixels = read_image(image)
        size = (pixels.shape[-1], pixels.shape[-2])
        fault = misfit(calibration.camera, size)
        if fault is not None:
            raise UserError(f"{calibration.path}: {fault}, the size of {image}")
        camera, points, depth = self._camera(calibration), None, None
        if config.points or config.depth in ("lidar", "completed"):
            points = carry(read_points(scan, config.scan_columns), calibration.lidar_to_rect)
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
            calibration.lidar_to_rect if calibration.has_lidar else None,
        )  # fmt: skip

    def _camera(self, calibration: Calibration) -> Camera:
        """The left colour camera as the settings have it."""
        projection = calibration.p2.clone()
        if self.config.divide == "rect_z":
            projection[2, 3] = 0
        return Camera(projection)

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
    """KITTI frames as samples; labels index ``classes``, and every labelled class is kept.

    Frames have no objects (None) where the folder ``label_2`` is absent, or not to be read: where not ``labelled``.

    Raises:
        UserError: a folder or the split file is absent, objects of an unknown class are to be pasted, or (when a frame
            is read) one of its files is malformed.
    """

    def __init__(self, config: KittiConfig) -> None:
        root = Path(config.root)
        self.folder = root / config.folder
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder, expected KITTI's layout (training/image_2, ...)")
        frames = read_split(root / "ImageSets" / f"{config.split}.txt")
        self.skipped = 0  # frames of the split
        asked = config.points or config.depth in ("lidar", "completed")
        if config.without_scan == "always_skip" or (config.without_scan == "skip" and asked):
            scanned = set(names_below(self.folder / "velodyne", ".bin"))
            kept = [frame for frame in frames if frame in scanned]
            if not kept:
                raise UserError(f"{self.folder / 'velodyne'}: none of the {len(frames)} frames has a scan")
            self.skipped, frames = len(frames) - len(kept), kept
        super().__init__(config, root, frames)
        self.labelled = config.labels and (self.folder / "label_2").is_dir()
        self._planes = (self.folder / "planes").is_dir()
        if config.lidar_augment is not None:
            self._image_augment = None
        if self.pasted is not None:
            refuse_unknown(self.pasted, self.classes)

    @property
    def pasted(self) -> PasteConfig | None:
        """Which objects of other frames come into frames with labels and a scan, if any."""
        return self._image_augment.paste if self.labelled and self._image_augment is not None else None

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
        if self.config.in_memory or not self.labelled:
            return ObjectDatabase.build(scenes, config.least_points)
        # Files are told apart by size and time of change: to read all scans would take as long as to build.
        paths = [self._path(kind, frame) for kind in ("velodyne", "calib", "label_2") for frame in self.frame_ids]
        stamps = [_stamp(path) for path in paths]
        key = cache_key(
            self.frame_ids, stamps, self.config.min_height_scale, config.least_points, self.config.scan_columns,
            *(() if self.config.names == KITTI_NAMES else (self.config.names.text,)),
        )  # fmt: skip
        path = self._cache / f"objects-{self.config.split}-{key}.npz"
        return ObjectDatabase.cached(path, scenes, config.least_points)

    @cached_property
    def donors(self) -> Donors:
        """The objects of this split's frames that can be pasted into others' pictures.

        Ask before worker processes are started, or each of them reads all labels.

        Raises:
            UserError: a file is absent or malformed, or there are no labels.
        """
        return Donors.of([self._labels(frame) for frame in self.frame_ids])

    def _scanned(self, index: int) -> PastedScene | None:
        """Picture and whole scan of frame ``index``; None where it has no scan, or nobody says where its LiDAR was."""
        frame = self.frame_ids[index]
        path = self._path("velodyne", frame)
        if not path.is_file():
            return None
        known, calibration = self._memory.get(index), read_calibration(self._path("calib", frame))
        if not calibration.has_lidar:
            return None
        pixels = read_image(self._path("image_2", frame)) if known is None else known.pixels
        points = carry(read_points(path, self.config.scan_columns), calibration.lidar_to_rect)
        return PastedScene(pixels.float().div_(255), self._camera(calibration), points)

    def _with_pasted(self, source: Sample, config: PasteConfig, generator: torch.Generator) -> Sample:
        """A labelled frame with objects of others; as it is where it has no scan."""
        path = self._path("velodyne", source.frame_id)
        if source.lidar_to_camera is None or not path.is_file():
            return source
        points = carry(read_points(path, self.config.scan_columns), source.lidar_to_camera)
        return paste_objects(
            source, points, self.donors, self._scanned, config, self.classes,
            partial(training_difficulty, height_scale=self.config.min_height_scale), generator,
            None if self.config.depth == "lidar" else self.config.completion,
        )  # fmt: skip

    def _augment_scene(self, source: Sample, generator: torch.Generator) -> Sample:
        config = self.config.lidar_augment
        if config is None:
            return source if self.pasted is None else self._with_pasted(source, self.pasted, generator)
        database = self.object_database if self.labelled and config.counts else None
        on_plane = self._planes and config.road_planes
        plane = read_plane(self._path("planes", source.frame_id)) if on_plane else None
        return augment_lidar(source, config, generator, database, self.classes, plane)

    def _path(self, kind: str, frame: str) -> Path:
        return frame_file(self.folder, kind, frame)

    def _labels(self, frame: str) -> Objects | None:
        if not self.labelled:
            return None
        return read_labels(self._path("label_2", frame), self.config.min_height_scale, self.config.names)

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
            read_points(self._path("velodyne", frame), self.config.scan_columns),
            None if objects is None else lidar_objects(objects, pose),
        )


def frame_file(folder: Path, kind: str, frame: str) -> Path:
    """A file of a frame in ``training`` or ``testing``; its picture has any ending that pictures have."""
    if kind == "image_2":
        return picture_named(folder / kind, frame)
    return folder / kind / f"{frame}.{ENDINGS[kind]}"


def _stamp(path: Path) -> tuple[int, int]:
    """Size (bytes) and time of change (ns) of a file.

    Raises:
        UserError: it is absent.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: {reason_of(error)}") from error
    return status.st_size, status.st_mtime_ns


class _Frame(NamedTuple):
    """What the files of a frame hold: a ``Sample`` before it is placed on a canvas."""

    pixels: UInt8[Tensor, "3 h w"]
    camera: Camera
    objects: Objects | None
    depth: Float[Tensor, "1 h w"] | None
    points: Float[Tensor, "m 4"] | None
    lidar_to_camera: Float[Tensor, "4 4"] | None


def _single(objects: Objects) -> Objects:
    """Label lines in float32, as batches hold them."""
    return replace(objects, boxes=objects.boxes.to(torch.float32), truncation=objects.truncation.float())
