"""nuScenes as surround-view samples, straight from the official folders (nutonomy/nuscenes-devkit docs).

    <root>/v1.0-*/*.json                   tables (data/nuscenes/tables.py)
    <root>/samples/<CHANNEL>/              pictures and scans of key frames
    <root>/sweeps/<CHANNEL>/               those between
    <root>/splits/<split>.txt              optional: scene names or sample tokens, one per line

Every picture and scan was taken from a pose of its own, so all ways lead through the global frame.  The infos that
Megvii-BaseDetection/BEVDepth and sanmin0312/LabelDistill prepare (scripts/gen_info.py) neglect some of this motion; it
is not neglected here unless ``camera_motion`` says so.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from PIL import Image
from torch import Tensor

from distill3d.boxes import NUSCENES_CLASSES, Boxes3D, Frame, from_nuscenes
from distill3d.camera import Camera, misfit
from distill3d.data.augment.lidar import carry
from distill3d.data.augment.surround import (
    BevAugmentConfig,
    BevMotion,
    ImageAugmentConfig,
    ImagePlacement,
    draw_placements,
    place_picture,
)
from distill3d.data.nuscenes.splits import SCENE_NUMBERS, official_scenes
from distill3d.data.nuscenes.tables import Tables, load_tables, pose_matrices, table_file
from distill3d.data.pictures import opened_picture, read_picture
from distill3d.data.scans import ScanColumns, read_rows, with_columns
from distill3d.data.splits import read_split, split_names
from distill3d.data.surround import SurroundObjects, SurroundSample
from distill3d.errors import UserError
from distill3d.instances import FOLDER, STEP, mask_file
from distill3d.settings import Between, Count, FramesBack, Length, Number, Pixels, check_settings, is_in_range

#: nuScenes' cameras in the order of the field's code (BEVDepth bevdepth/exps/nuscenes/base_exp.py): the rig of data
#: sets that name no other.
CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
LIDAR = "LIDAR_TOP"
#: Pillow's names of grey pictures of 16 bits.
MASK_MODES = ("I;16", "I;16B", "I")
#: The categories that are detected, with the class that each belongs to (nuscenes-devkit eval/detection/utils.py).
CLASS_OF_CATEGORY = {
    "vehicle.car": "car",
    "vehicle.truck": "truck",
    "vehicle.construction": "construction_vehicle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.trailer": "trailer",
    "movable_object.barrier": "barrier",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.bicycle": "bicycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
}
#: nuScenes' other categories, which are not detected (nuscenes-devkit docs/instructions_nuscenes.md).
OTHER_CATEGORIES = (
    "animal", "human.pedestrian.personal_mobility", "human.pedestrian.stroller", "human.pedestrian.wheelchair",
    "movable_object.debris", "movable_object.pushable_pullable", "static_object.bicycle_rack",
    "vehicle.emergency.ambulance", "vehicle.emergency.police",
)  # fmt: skip

SCAN_COLUMNS = 5  # float32 x, y, z, intensity, ring
SECONDS = 1e-6  # of a timestamp's unit
#: Depth labels come from points at least so far inside the picture's edges (px), as in the devkit's own drawing of
#: points (nuscenes-devkit python-sdk/nuscenes/nuscenes.py, ``map_pointcloud_to_image``).
IMAGE_MARGIN = 1.0

#: Whose frame and moment points, boxes and cameras are told in.
EgoFrame = Literal["mean_camera", "lidar", "lidar_sensor"]
#: Which of several points on one pixel of a depth map is kept.
Collision = Literal["last", "nearest"]


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Which LiDAR scans are put together, and which of their points are left out (defaults: LabelDistill's).

    The key scan comes first, then scans before it, then scans after it, the nearest in time first; of this list the
    first ``scans`` are taken.  ``style="released"``: where fewer than ``past`` scans came before, none after it are
    taken, and a key scan that stands alone is taken ``scans`` times over
    (sanmin0312/LabelDistill labeldistill/datasets/nusc_det_dataset_lidar.py).

    Raises:
        UserError: the nearest points are as far as the farthest.
    """

    past: Count = 5
    future: Count = 5
    scans: Number = 9  # with the key scan
    forbid_future: bool = False  # for a detector that must not see more than it would on the road
    nearest: Length = 0.0  # m; points with |x| and |y| below this (the vehicle itself) are left out
    farthest: Annotated[float, Between(0, math.inf, above=True)] = (
        58.0  # m on the sensor's ground plane; points at this distance or beyond are left out
    )
    budget: Annotated[int, Between(1, 100_000_000)] | None = 320_000  # points; of more, a random subset is kept
    style: Literal["released", "intended"] = "released"

    def __post_init__(self) -> None:
        if is_in_range(self) and self.nearest >= self.farthest:
            raise UserError(f"sweeps.nearest is {self.nearest}, expected less than sweeps.farthest, {self.farthest}")

    @classmethod
    def devkit(cls, scans: int = 10) -> SweepConfig:
        """The key scan and the ``scans`` - 1 before it, less points on the vehicle (nuscenes-devkit
        python-sdk/nuscenes/utils/data_classes.py, ``from_file_multisweep``)."""
        return cls(
            past=scans - 1, future=0, scans=scans, nearest=1.0, farthest=math.inf, budget=None, style="intended"
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NuScenesConfig:
    """Which moments of a nuScenes folder are read, and how they come out.

    Augmentations are drawn only where ``get`` is given a generator.

    Raises:
        UserError: a class is none of nuScenes', a camera is named twice or none is, or earlier key frames are out of
            order.
    """

    root: Path
    version: str = "v1.0-trainval"  # the tables' folder
    #: A file <root>/splits/<split>.txt, or else an official split; a path is of such a file elsewhere, and None stands
    #: for all samples of the tables.
    split: str | Path | None = "train"
    samples: tuple[str, ...] = ()  # in place of a split: names of scenes and tokens of samples
    classes: tuple[str, ...] = NUSCENES_CLASSES  # objects of others are left out
    #: The rig: camera sensors of the tables, one or more, in the order in which their pictures come out.
    cameras: tuple[str, ...] = CAMERAS
    canvas: tuple[Pixels, Pixels] = (704, 256)  # (width, height) px of the pictures that come out
    #: Earlier key frames, counted back from the key frame (every 0.5 s).  BEVDepth: (1,); LabelDistill: (2, 4) or
    #: (2, 4, 6, 8).
    past: tuple[FramesBack, ...] = ()
    #: What stands for an earlier frame that the scene does not have: the nearest one found, or the key frame itself.
    #: LabelDistill trains with the former, BEVDepth with the latter.
    missing_past: Literal["nearest", "current"] = "nearest"
    images: bool = True
    points: bool = False
    depth: bool = False  # of the key scan, in the key frame's pictures
    instances: bool = False  # masks of single things in the key frame's pictures, see distill3d/instances.py
    sweeps: SweepConfig = field(default_factory=SweepConfig)  # of ``points``
    scan_columns: ScanColumns = SCAN_COLUMNS  # float32 of each point of the scans' files
    #: What counts as the ego frame: the vehicle's at the key frame, in the mean over the exposures of ``cameras``
    #: (BEVDepth) or at the key scan, or the LiDAR's own at the key scan, x to the right and y ahead (mmdetection3d,
    #: det3d).
    ego_frame: EgoFrame = "mean_camera"
    #: ``neglected``: every camera's own pose at its key exposure stands for the key ego frame, as the released code of
    #: BEVDepth has it; pictures and objects are then up to half a metre apart.
    camera_motion: Literal["exact", "neglected"] = "exact"
    min_points: Count = 1  # LiDAR and radar points that an object must hold
    nan_velocity: Literal["zero", "keep"] = "zero"  # what becomes of unknown velocities
    min_depth: Length = 0.0  # m; depth labels are farther than this
    depth_collision: Collision = "last"
    image_augment: ImageAugmentConfig | None = None
    bev_augment: BevAugmentConfig | None = None
    #: Keep decoded pictures and scans, and no cache of the tables: for small sets (each worker process keeps its own).
    in_memory: bool = False

    def __post_init__(self) -> None:
        if not is_in_range(self):
            return
        unknown = [name for name in self.classes if name not in NUSCENES_CLASSES]
        if unknown or not self.classes:
            raise UserError(f"classes are {self.classes}, expected some of {', '.join(NUSCENES_CLASSES)}")
        refuse_no_rig(self.cameras)
        if list(self.past) != sorted(set(self.past)):
            raise UserError(f"past is {self.past}, expected key frames back in ascending order, e.g. (2, 4)")
        if self.camera_motion == "neglected" and self.ego_frame == "lidar_sensor":
            raise UserError(
                "camera_motion is 'neglected', which takes the vehicle's poses: no ego_frame 'lidar_sensor'"
            )


# -------------------------------------------------------------------------------------------------------------- the rig


def refuse_no_rig(cameras: Sequence[str]) -> None:
    """What is wrong with the names of a rig's cameras, whatever the tables have.

    Raises:
        UserError: there is none, or one stands there twice.
    """
    if not cameras:
        raise UserError(f"cameras is empty, expected camera sensors of the tables, as {', '.join(CAMERAS)}")
    twice = sorted({name for name in cameras if list(cameras).count(name) > 1})
    if twice:
        raise UserError(f"cameras names {', '.join(twice)} more than once: {', '.join(cameras)}")


def unknown_cameras(tables: Tables, cameras: Sequence[str]) -> str | None:
    """What is to be said of a rig of which the tables do not know all cameras; None where they do."""
    lacking = [name for name in cameras if name not in tables.cameras]
    there = ", ".join(tables.cameras) or "none"
    return f"has no camera {', '.join(lacking)}, those there are: {there}" if lacking else None


# ------------------------------------------------------------------------------------------------------------- geometry


def mean_pose(
    translations: Float64[np.ndarray, "n 3"], rotations: Float64[np.ndarray, "n 4"]
) -> Float64[np.ndarray, "4 4"]:
    """The pose between several that lie close together: means of the translations and of the quaternions (w, x, y, z).

    Quaternions q and -q are one rotation: the mean is taken of those that agree with the first in sign, and has length
    1 (BEVDepth averages them as they come, and does not divide by the length).
    """
    signs = np.where(rotations @ rotations[0] < 0, -1.0, 1.0)
    return pose_matrices(translations.mean(0), (signs[:, None] * rotations).mean(0))


def carry_boxes(boxes: Boxes3D, pose: Float[Tensor, "4 4"], frame: Frame) -> Boxes3D:
    """Boxes in another frame: ``pose`` leads there from the boxes' own.

    The new yaw is that of the turned heading, seen from above; a box stays upright.  Velocities are turned likewise.
    """
    pose = pose.to(boxes.centre)
    heading = boxes.heading() @ pose[:3, :3].T
    velocity = boxes.velocity
    return replace(
        boxes,
        centre=boxes.centre @ pose[:3, :3].T + pose[:3, 3],
        yaw=torch.atan2(heading[:, 1], heading[:, 0]),
        velocity=None if velocity is None else velocity @ pose[:2, :2].T.to(velocity),
        frame=frame,
    )


def project_points(
    points: Float[Tensor, "m c"], to_camera: Float[Tensor, "4 4"], intrinsics: Float[Tensor, "4 4"],
    size: tuple[int, int], min_depth: float = 0.0,
) -> tuple[Float[Tensor, "k 2"], Float[Tensor, "k"]]:  # fmt: skip
    """The points that a picture of ``size`` (width, height) px shows: pixels (k, 2) and depths (k,) in m, in order.

    Kept are those deeper than ``min_depth`` and more than a pixel inside the picture's edges
    (BEVDepth bevdepth/datasets/nusc_det_dataset.py, ``map_pointcloud_to_image``).  In the precision of ``to_camera``.
    """
    at = carry(points[:, :3].to(to_camera), to_camera)
    image = at @ intrinsics[:3, :3].T
    uv, depth = image[:, :2] / image[:, 2:], at[:, 2]
    edge = uv.new_tensor(size) - IMAGE_MARGIN
    shown = (depth > min_depth) & (uv > IMAGE_MARGIN).all(1) & (uv < edge).all(1)
    return uv[shown], depth[shown]


def splat_depth(
    uv: Float[Tensor, "k 2"], depth: Float[Tensor, "k"], size: tuple[int, int], collision: Collision = "last"
) -> Float[Tensor, "h w"]:
    """A sparse depth map (m, 0 where no point falls) of ``size`` (width, height) px, float32.

    Pixels are cut towards zero, so points up to a pixel beyond the left and top edge fall into the first column and row
    (BEVDepth bevdepth/datasets/nusc_det_dataset.py, ``depth_transform``).

    Args:
        collision: keep the ``last`` of several points on a pixel, as the released code, or the ``nearest``.
    """
    width, height = size
    if collision == "nearest":
        order = depth.argsort(descending=True)
        uv, depth = uv[order], depth[order]
    column, row = uv.trunc().long().unbind(-1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    cells = np.zeros(height * width, dtype=np.float32)
    # numpy, for it promises that the last of several values for one cell stays; torch does not.
    cells[(row * width + column)[inside].numpy()] = depth[inside].numpy()
    return torch.from_numpy(cells).reshape(height, width)


# ------------------------------------------------------------------------------------------------------- which to read


def split_samples(tables: Tables, root: Path, split: str) -> list[int]:
    """Rows of a split's samples, scene by scene in order of time.

    A file ``root/splits/<split>.txt`` with scene names or sample tokens goes before the official split of that name, of
    which the scenes are taken that the tables have.

    Raises:
        UserError: there is neither, the file names something unknown, or no scene of the split is in the tables.
    """
    path = root / "splits" / f"{split}.txt"
    if path.is_file():
        return sorted(listed_samples(tables, path))
    scenes = {tables.scene_name(scene): scene for scene in range(len(tables.scenes))}
    if split not in SCENE_NUMBERS:
        raise UserError(
            f"there is no split {split!r}: expected a file {path} with scene names or sample tokens, or one of "
            f"{', '.join(dict.fromkeys((*split_names(path.parent), *SCENE_NUMBERS)))}"
        )
    present = sorted(scenes[name] for name in official_scenes(split) if name in scenes)
    if not present:
        raise UserError(f"{tables.folder} has no scene of the official split {split}; give the split's own version")
    return [row for scene in present for row in tables.scene_samples(scene)]


def listed_samples(tables: Tables, path: Path) -> list[int]:
    """Rows of the samples that a file names, one a line, as ``named_samples``.

    Raises:
        UserError: the file cannot be read, or names something unknown.
    """
    return named_samples(tables, read_split(path), path)


def named_samples(tables: Tables, names: Iterable[str], where: Path | str) -> list[int]:
    """Rows of the samples that are named by token or by scene, in this order, each once; ``where`` the names were read.

    Raises:
        UserError: a name is unknown.
    """
    scenes = {tables.scene_name(scene): scene for scene in range(len(tables.scenes))}
    rows: dict[int, None] = {}
    for name in names:
        try:
            found = tables.scene_samples(scenes[name]) if name in scenes else (tables.sample_row(name),)
        except UserError as error:
            raise UserError(f"{where}: {name!r} is neither a scene nor a sample of {tables.folder}") from error
        rows |= dict.fromkeys(found)
    return list(rows)


def split_or_file(given: str | Path | None) -> str | Path | None:
    """What a command line says of samples, as ``NuScenesConfig.split`` has it: a path where there is such a file."""
    return given if given is None else Path(given) if os.path.isfile(given) else str(given)


def chosen_samples(tables: Tables, root: Path, split: str | Path | None) -> list[int]:
    """Rows of the samples of a split by its name, of those that a file names, or (None) of all.

    Raises:
        UserError: there is no such split, or something that is named is not there.
    """
    if split is None:
        return list(range(len(tables.samples)))
    return listed_samples(tables, split) if isinstance(split, Path) else split_samples(tables, root, split)


def past_samples(
    tables: Tables, sample: int, offsets: Sequence[int], missing: Literal["nearest", "current"] = "nearest"
) -> list[int]:
    """Rows of the key frames that lie ``offsets`` back in the same scene; for what ``missing`` means see
    ``NuScenesConfig.missing_past``."""
    scene = tables.scene_samples(int(tables.samples.scene[sample]))
    rows, found = [], sample
    for offset in offsets:
        if sample - offset in scene:
            found = sample - offset
            rows.append(found)
        else:
            rows.append(found if missing == "nearest" else sample)
    return rows


def sweep_rows(tables: Tables, key: int, config: SweepConfig) -> list[int]:
    """Rows of the scans that are put together with the key scan ``key``, that one first; ``SweepConfig`` says which."""

    def run(column: np.ndarray, count: int) -> list[int]:
        rows, at = [], int(column[key])
        while at >= 0 and len(rows) < count:
            rows.append(at)
            at = int(column[at])
        return rows

    before = run(tables.sample_data.prev, config.past)
    cut = config.forbid_future or (config.style == "released" and len(before) < config.past)
    rows = [key, *before, *([] if cut else run(tables.sample_data.next, config.future))]
    if config.style == "released" and rows == [key]:
        rows *= config.scans
    return rows[: config.scans]


# --------------------------------------------------------------------------------------------------------------- files


def read_scan(path: Path, columns: int = SCAN_COLUMNS, key: bool = False) -> Float[Tensor, "m 5"]:
    """A LiDAR scan in the sensor's frame: x right, y forward, z up (m), intensity 0..255, ring; float32.

    Points with a value that is no finite number are left out of sweeps, which nobody has looked through; a key frame
    has none.

    Args:
        columns: of the file; further ones are left out, and those that it lacks are 0.
        key: whether it is of a key frame.

    Raises:
        UserError: the file is absent or empty, is no scan of so many columns (data/scans.py), or, of a key frame, holds
            a value that is not finite.
    """
    points = with_columns(read_rows(path, columns), SCAN_COLUMNS)
    finite = np.isfinite(points)
    if finite.all():
        return torch.from_numpy(points)
    kept = finite.all(axis=1)
    if key:
        raise UserError(f"{path}: {(~kept).sum()} points hold NaN or Inf, the first is point {kept.argmin()} (from 0)")
    return torch.from_numpy(points[kept])


# ------------------------------------------------------------------------------------------------------------- data set


@dataclass(frozen=True)
class Inventory:
    """The N annotated objects of some samples, as columns."""

    category: Int[np.ndarray, " n"]  # index into the tables' categories
    label: Int[np.ndarray, " n"]  # index into the data set's classes, -1 for what belongs to none
    points: Int[np.ndarray, " n"]  # of LiDAR and radar
    centre: Float64[np.ndarray, "n 3"]  # m, in the frame of the vehicle at its key scan


class NuScenesDataset:
    """Moments of nuScenes as ``SurroundSample``; labels index ``config.classes``.

    Raises:
        UserError: a table or the split is absent or malformed, the tables lack a camera of the rig, or (when a sample
            is read) one of its files is absent or malformed.
    """

    def __init__(self, config: NuScenesConfig) -> None:
        check_settings(config)
        self.config, self.root, self.classes = config, Path(config.root), config.classes
        self.tables = load_tables(self.root, config.version, cache=not config.in_memory)
        unknown = unknown_cameras(self.tables, config.cameras)
        if unknown is not None:
            raise UserError(f"{self._table('sensor')}: {unknown}: name the rig's as cameras")
        self._samples = (
            named_samples(self.tables, config.samples, "samples")
            if config.samples
            else chosen_samples(self.tables, self.root, config.split)
        )
        self.frame_ids = [self.tables.sample_token(sample) for sample in self._samples]
        self._pictures: dict[int, Image.Image] = {}
        self._scans: dict[int, Tensor] = {}
        of_class = {name: label for label, name in enumerate(self.classes)}
        names = [CLASS_OF_CATEGORY.get(category) for category in self.tables.categories]
        self._label_of_category = np.array([of_class.get(name or "", -1) for name in names], dtype=np.int64)
        self._label_of_class = torch.tensor([-1, *(of_class.get(name, -1) for name in NUSCENES_CLASSES)])
        if config.instances and not (self.root / FOLDER).is_dir():
            raise UserError(
                f"{self.root / FOLDER}: no such folder, and masks of single things are asked for, which synthetic "
                "drives have there; without them a method's segmentation_weight must be 0"
            )

    def __len__(self) -> int:
        return len(self.frame_ids)

    def get(self, index: int, generator: torch.Generator | None = None) -> SurroundSample:
        """Sample ``index``; augmented only with both a generator and a setting that asks for it."""
        config, sample = self.config, self._samples[index]
        frames = [sample, *past_samples(self.tables, sample, config.past, config.missing_past)]
        cameras = [self._key_data(frame, config.cameras) for frame in frames]
        ego_to_global = self._ego_to_global(sample)
        intrinsics, camera_to_ego = self._cameras(cameras, ego_to_global)

        sources = [self._picture_size(row) for row in cameras[0]]
        placements = [place_picture(source, config.canvas) for source in sources]
        motion = BevMotion()
        if generator is not None and config.image_augment is not None:
            placements = draw_placements(sources, config.canvas, config.image_augment, generator)
        if generator is not None and config.bev_augment is not None:
            motion = BevMotion.draw(config.bev_augment, generator)
        return SurroundSample(
            frame_id=self.frame_ids[index],
            intrinsics=intrinsics,
            camera_to_ego=camera_to_ego,
            image_affine=torch.stack([placement.matrix for placement in placements]),
            bev_affine=motion.matrix,
            ego_to_global=ego_to_global,
            cameras=config.cameras,
            images=self._images(cameras, placements) if config.images else None,
            objects=self._objects(sample, ego_to_global, motion),
            depth=self._depth(sample, cameras[0], intrinsics[0], placements) if config.depth else None,
            instances=self._instances(cameras[0], placements) if config.instances else None,
            points=self._points(sample, ego_to_global, motion, generator) if config.points else None,
        )

    @property
    def cameras(self) -> tuple[str, ...]:
        """The channels of the cameras, in the samples' order."""
        return self.config.cameras

    def pictures(self, index: int) -> list[Image.Image]:
        """The key frame's pictures of sample ``index`` as their files have them, in the order of ``cameras``.

        Raises:
            UserError: a file is absent or malformed.
        """
        return [self._picture(row) for row in self._key_data(self._samples[index], self.cameras)]

    def key_scan(self, index: int) -> Float[Tensor, "m 3"] | None:
        """The points of the key scan of sample ``index``, x, y, z in its key ego frame (m); None where the tables or
        the folder have no scan.

        Raises:
            UserError: the file is malformed.
        """
        sample = self._samples[index]
        row = self.tables.key_data(sample).get(LIDAR)
        if row is None or not self.tables.file(row).is_file():
            return None
        to_ego = torch.linalg.inv(self._ego_to_global(sample)) @ torch.from_numpy(self._sensor_to_global(row))
        return carry(self._scan(row)[:, :3], to_ego)

    def place(self, index: int) -> tuple[str, int, int]:
        """The scene's name, which of its key frames sample ``index`` is, from 1, and how many it has."""
        sample = self._samples[index]
        scene = int(self.tables.samples.scene[sample])
        of_scene = self.tables.scene_samples(scene)
        return self.tables.scene_name(scene), sample - of_scene[0] + 1, len(of_scene)

    def absent_files(self, count: int | None = None) -> list[tuple[Path, str]]:
        """The files that the settings ask for, of the first ``count`` samples or all, and that are not there, each with
        its channel.

        Raises:
            UserError: as ``needed_data``.
        """
        files = ((self.tables.file(row), row) for row in self.needed_data(count))
        return [(path, self.tables.channel(row)) for path, row in files if not path.is_file()]

    def absent_masks(self) -> list[Path]:
        """The masks of single things that the settings ask for and that are not there.

        Raises:
            UserError: as ``needed_data``.
        """
        if not self.config.instances:
            return []
        rows = {row for sample in self._samples for row in self._key_data(sample, self.cameras)}
        masks = (mask_file(self.root, self.tables.file(row)) for row in sorted(rows))
        return [path for path in masks if not path.is_file()]

    def sample_boxes(self, index: int) -> Boxes3D:
        """The annotated objects of sample ``index`` in the global frame, with ``velocity``, NaN where unknown; float64.

        Unlike a sample's ``objects`` they need not hold any points.
        """
        return self._annotated(self._samples[index])[0]

    def ego_to_global(self, index: int) -> Float[Tensor, "4 4"]:
        """The pose of the key ego frame of sample ``index``, as ``SurroundSample`` has it; float64."""
        return self._ego_to_global(self._samples[index])

    def class_presence(self) -> Bool[Tensor, "f k"]:
        """Which of the K classes are annotated in which of the F samples, with or without points, as BEVDepth counts
        for CBGS (data/nuscenes/class_balance.py)."""
        annotations = self.tables.annotations
        label = self._label_of_category[annotations.category]
        presence = np.zeros((len(self.tables.samples), len(self.classes)), dtype=bool)
        presence[annotations.sample[label >= 0], label[label >= 0]] = True
        return torch.from_numpy(presence[self._samples])

    def needed_data(self, count: int | None = None) -> list[int]:
        """Rows of the sensor data whose files the settings ask for, of the first ``count`` samples or all, ascending.

        Raises:
            UserError: a key frame lacks a camera or the LiDAR.
        """
        config, rows = self.config, set()
        for sample in self._samples[:count]:
            frames = [sample, *past_samples(self.tables, sample, config.past, config.missing_past)]
            if config.images:
                rows.update(row for frame in frames for row in self._key_data(frame, config.cameras))
            if config.points or config.depth:
                (key,) = self._key_data(sample, (LIDAR,))
                rows.update(sweep_rows(self.tables, key, config.sweeps) if config.points else (key,))
        return sorted(rows)

    def inventory(self) -> Inventory:
        """The annotated objects of the data set's samples, those of other categories among them."""
        tables, annotations = self.tables, self.tables.annotations
        chosen = np.zeros(len(tables.samples), bool)
        chosen[self._samples] = True
        rows = np.flatnonzero(chosen[annotations.sample])
        ego = np.zeros(len(tables.samples), np.int64)
        data = tables.sample_data
        of_lidar = data.is_key_frame & (tables.calibrated_sensors.channel[data.calibrated_sensor] == self._lidar)
        ego[data.sample[of_lidar]] = data.ego_pose[of_lidar]
        moment = ego[annotations.sample[rows]]
        poses = pose_matrices(tables.ego_poses.translation[moment], tables.ego_poses.rotation[moment])
        away = annotations.translation[rows] - poses[:, :3, 3]
        return Inventory(
            category=annotations.category[rows].astype(np.int64),
            label=self._label_of_category[annotations.category[rows]],
            points=annotations.num_lidar_pts[rows].astype(np.int64) + annotations.num_radar_pts[rows],
            centre=np.einsum("nij,ni->nj", poses[:, :3, :3], away),
        )

    def own_categories(self) -> dict[str, int]:
        """The categories that nuScenes does not have, with how many objects of the data set's samples they name."""
        counts = np.bincount(self.inventory().category, minlength=len(self.tables.categories)).tolist()
        known = {*CLASS_OF_CATEGORY, *OTHER_CATEGORIES}
        return {n: count for n, count in zip(self.tables.categories, counts, strict=True) if count and n not in known}

    @property
    def _lidar(self) -> int:
        """The number of the LiDAR's channel."""
        return self.tables.channels.index(LIDAR) if LIDAR in self.tables.channels else -1

    def scene_names(self) -> dict[str, str]:
        """The scene of each frame of the split, by the frame's id."""
        scenes = self.tables.samples.scene[self._samples].tolist()
        return {frame: self.tables.scene_name(scene) for frame, scene in zip(self.frame_ids, scenes, strict=True)}

    def _table(self, name: str) -> Path:
        return table_file(self.tables.folder, name)

    # ------------------------------------------------------------------------------------------------------------ poses

    def _key_data(self, sample: int, channels: Sequence[str]) -> list[int]:
        """The rows of a key frame's pictures or scans."""
        rows = self.tables.key_data(sample)
        for channel in channels:
            if channel not in rows:
                token = self.tables.sample_token(sample)
                raise UserError(f"{self._table('sample_data')}: sample {token} has no key frame of {channel}")
        return [rows[channel] for channel in channels]

    def _ego_to_global(self, sample: int) -> Float[Tensor, "4 4"]:
        if self.config.ego_frame == "lidar_sensor":
            return torch.from_numpy(self._sensor_to_global(*self._key_data(sample, (LIDAR,))))
        rows = self._key_data(sample, (LIDAR,) if self.config.ego_frame == "lidar" else self.config.cameras)
        moments, poses = self.tables.sample_data.ego_pose[rows], self.tables.ego_poses
        return torch.from_numpy(mean_pose(poses.translation[moments], poses.rotation[moments]))

    def _sensor_to_global(self, row: int) -> Float64[np.ndarray, "4 4"]:
        sensor = int(self.tables.sample_data.calibrated_sensor[row])
        return self.tables.pose(row) @ self.tables.sensor_pose(sensor)

    def _cameras(
        self, rows: list[list[int]], ego_to_global: Float[Tensor, "4 4"]
    ) -> tuple[Float[Tensor, "s n 4 4"], Float[Tensor, "s n 4 4"]]:
        """Intrinsics, and the way from each camera to the key ego frame."""
        data, poses, sensors = self.tables.sample_data, self.tables.ego_poses, self.tables.calibrated_sensors
        moment, sensor = data.ego_pose[rows], data.calibrated_sensor[rows]
        intrinsics = np.tile(np.eye(4), (*sensor.shape, 1, 1))
        intrinsics[..., :3, :3] = sensors.camera_intrinsic[sensor]
        to_global = pose_matrices(poses.translation[moment], poses.rotation[moment])
        key = ego_to_global.numpy() if self.config.camera_motion == "exact" else to_global[0]
        to_ego = np.linalg.inv(key) @ to_global @ pose_matrices(sensors.translation[sensor], sensors.rotation[sensor])
        return torch.from_numpy(intrinsics), torch.from_numpy(to_ego)

    # ---------------------------------------------------------------------------------------------------------- objects

    def _annotated(self, sample: int) -> tuple[Boxes3D, Int[Tensor, "n"]]:
        """The objects of a sample in the global frame, and the points that each holds."""
        annotations, rows = self.tables.annotations, self.tables.annotations_of(sample)
        label = self._label_of_category[annotations.category[rows]]
        chosen = np.arange(rows.start, rows.stop)[label >= 0]
        try:
            boxes = from_nuscenes(
                torch.from_numpy(annotations.translation[chosen]), torch.from_numpy(annotations.wlh[chosen]),
                torch.from_numpy(annotations.rotation[chosen]), torch.from_numpy(label[label >= 0]),
                velocity=torch.from_numpy(self._velocities[chosen, :2]),
            )  # fmt: skip
        except ValueError as error:
            token = self.tables.sample_token(sample)
            raise UserError(f"{self._table('sample_annotation')}: of sample {token}, {error}") from error
        points = annotations.num_lidar_pts[chosen].astype(np.int64) + annotations.num_radar_pts[chosen]
        return boxes, torch.from_numpy(points)

    @cached_property
    def _velocities(self) -> Float64[np.ndarray, "n 3"]:
        return self.tables.velocities()

    def _objects(self, sample: int, ego_to_global: Float[Tensor, "4 4"], motion: BevMotion) -> SurroundObjects | None:
        if not self.tables.annotated:
            return None
        boxes, points = self._annotated(sample)
        boxes = motion.boxes(carry_boxes(boxes, torch.linalg.inv(ego_to_global), "ego")).to(torch.float32)
        if self.config.nan_velocity == "zero" and boxes.velocity is not None:
            boxes = replace(boxes, velocity=boxes.velocity.nan_to_num(0.0))
        objects = SurroundObjects(boxes, points)
        return objects[objects.sensor_points >= self.config.min_points]

    # --------------------------------------------------------------------------------------------------------- pictures

    def _intrinsics(self, row: int) -> Float64[np.ndarray, "3 3"]:
        """The matrix of the camera that took a picture."""
        return self.tables.calibrated_sensors.camera_intrinsic[self.tables.sample_data.calibrated_sensor[row]]

    def _picture_size(self, row: int) -> tuple[int, int]:
        size = int(self.tables.sample_data.width[row]), int(self.tables.sample_data.height[row])
        if min(size) < 1:
            raise UserError(f"{self._table('sample_data')}: {self.tables.file(row).name} has no width and height")
        return size

    def _picture(self, row: int) -> Image.Image:
        """A picture as its file has it."""
        if row in self._pictures:
            return self._pictures[row]
        path, listed = self.tables.file(row), self._picture_size(row)
        (fx, _, cx), (_, fy, cy), _ = self._intrinsics(row).tolist()
        fault = misfit(Camera.from_intrinsics(fx, fy, cx, cy), listed)
        if fault is not None:
            raise self._of_sample(UserError(f"{self._table('calibrated_sensor')}: {fault}"), row)
        try:
            picture = read_picture(path)
        except UserError as error:
            raise self._of_sample(error, row) from error
        if picture.size != listed:
            raise UserError(
                f"{path}: is {picture.width} x {picture.height} px, {self._table('sample_data')} says "
                f"{listed[0]} x {listed[1]}"
            )
        if self.config.in_memory:
            self._pictures[row] = picture
        return picture

    def _images(self, cameras: list[list[int]], placements: list[ImagePlacement]) -> Float[Tensor, "s n 3 h w"]:
        frames = {}  # frames that stand for missing ones too are read once
        for rows in cameras:
            if rows[0] not in frames:
                pixels = [place.apply(self._picture(row)) for place, row in zip(placements, rows, strict=True)]
                frames[rows[0]] = torch.stack(pixels)
        return torch.stack([frames[rows[0]] for rows in cameras]).float().div_(255)

    def _instances(self, cameras: list[int], placements: list[ImagePlacement]) -> Int[Tensor, "n h w"]:
        """The masks of the key frame's pictures, by the data set's own labels."""
        masks = []
        for row, placement in zip(cameras, placements, strict=True):
            path = mask_file(self.root, self.tables.file(row))
            try:
                with opened_picture(path) as image:
                    if image.size != placement.source or image.mode not in MASK_MODES:
                        width, height = placement.source
                        raise UserError(
                            f"{path}: is {image.width} x {image.height} px in mode {image.mode}, expected {width} x "
                            f"{height} px, as its picture, in grey of 16 bits"
                        )
                    mask = placement.apply_mask(image)
            except UserError as error:
                raise self._of_sample(error, row) from error
            number = mask // STEP
            if int(number.max()) >= len(self._label_of_class):
                raise self._of_sample(
                    UserError(f"{path}: holds the value {int(mask.max())}, of a class {int(number.max())} of 10"), row
                )
            own = self._label_of_class[number]
            masks.append(torch.where(own < 0, 0, STEP * (1 + own) + mask % STEP))
        return torch.stack(masks)

    # -------------------------------------------------------------------------------------------------- scans and depth

    def _scan(self, row: int) -> Float[Tensor, "m 5"]:
        """A scan as its file has it."""
        if row in self._scans:
            return self._scans[row]
        try:
            key = bool(self.tables.sample_data.is_key_frame[row])
            scan = read_scan(self.tables.file(row), self.config.scan_columns, key)
        except UserError as error:
            raise self._of_sample(error, row) from error
        if self.config.in_memory:
            self._scans[row] = scan
        return scan

    def _of_sample(self, error: UserError, row: int) -> UserError:
        """The fault of a file, with the sample that it belongs to."""
        token = self.tables.sample_token(int(self.tables.sample_data.sample[row]))
        return UserError(f"{error} ({self.tables.channel(row)} of sample {token})")

    def _depth(
        self, sample: int, cameras: list[int], intrinsics: Float[Tensor, "n 4 4"], placements: list[ImagePlacement]
    ) -> Float[Tensor, "n h w"]:
        """The key scan in the key frame's pictures."""
        (key,), config, maps = self._key_data(sample, (LIDAR,)), self.config, []
        scan, lidar_to_global = self._scan(key), self._sensor_to_global(key)
        for row, placement, matrix in zip(cameras, placements, intrinsics, strict=True):
            to_camera = torch.from_numpy(np.linalg.inv(self._sensor_to_global(row)) @ lidar_to_global)
            uv, depth = project_points(scan, to_camera, matrix, placement.source, config.min_depth)
            uv = uv @ placement.matrix[:2, :2].T + placement.matrix[:2, 3]
            maps.append(splat_depth(uv, depth, config.canvas, config.depth_collision))
        return torch.stack(maps)

    def _points(
        self, sample: int, ego_to_global: Float[Tensor, "4 4"], motion: BevMotion, generator: torch.Generator | None
    ) -> Float[Tensor, "m 5"]:
        """The scans of a moment, put together in the augmented key ego frame."""
        (key,), sweeps, config = self._key_data(sample, (LIDAR,)), self.config.sweeps, self.config
        timestamps = self.tables.sample_data.timestamp
        parts = []
        for row in sweep_rows(self.tables, key, sweeps):
            scan = self._scan(row)
            x, y = scan[:, 0], scan[:, 1]
            own = (x.abs() < sweeps.nearest) & (y.abs() < sweeps.nearest)
            scan = scan[~own & (torch.hypot(x, y) < sweeps.farthest)]
            to_ego = torch.linalg.inv(ego_to_global) @ torch.from_numpy(self._sensor_to_global(row))
            lag = float(timestamps[key] - timestamps[row]) * SECONDS
            parts.append(torch.cat((carry(scan[:, :4], to_ego), scan.new_full((len(scan), 1), lag)), dim=1))
        points = torch.cat(parts)
        if sweeps.budget is not None and len(points) > sweeps.budget:
            # Evaluation has no generator, and still must see the same points each time.
            generator = generator or torch.Generator().manual_seed(sample)
            points = points[torch.randperm(len(points), generator=generator)[: sweeps.budget].sort().values]
        scale_heights = config.bev_augment is not None and config.bev_augment.scale_point_heights
        return motion.points(points, scale_heights)
