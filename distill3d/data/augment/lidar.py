"""Augmentation of LiDAR scans and their boxes, for networks that look at points alone: the picture no longer fits.

Source: Cc-Hy/CMKD (a fork of OpenPCDet) pcdet/datasets/augmentor.  Everything happens in the LiDAR's frame (x forward,
y left, z up): objects of other frames are pasted in, then the scene is mirrored, turned and scaled, then its points are
shuffled.  All randomness comes from the passed generator, so that frames are independent of each other and of the
number of workers; the released code walks through one permutation of the objects from frame to frame instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill3d.boxes import IGNORE, Boxes3D, camera_to_lidar, lidar_to_camera, wrap_angle
from distill3d.camera import Camera, Divide
from distill3d.data.sample import UNKNOWN, Objects, Sample
from distill3d.errors import UserError
from distill3d.files import write_atomically
from distill3d.settings import Angle, Ascending, Between, Count, Number, Share

#: Box corners at or behind the camera are projected from this depth (m), so that they stay on their side of the image.
NEAREST_CORNER = 0.1


@dataclass(frozen=True)
class LidarAugmentConfig:
    """How scans are augmented (defaults: CMKD's SECOND teacher).

    ``style`` tells what happens to candidates of one class that would stand in each other: ``"released"`` pastes none
    of them, ``"intended"`` the one that was drawn first.
    """

    flip_y: Share = 0.5  # probability of mirroring left and right
    rotation: Angle = math.pi / 4  # rad; turned about z by U(-rotation, rotation)
    scale: Annotated[tuple[float, float], Between(0, 100, above=True), Ascending()] = (
        0.95,
        1.05,
    )  # of all lengths, uniform
    #: Objects of each class that a frame is filled up to from others; empty for no pasting.
    counts: tuple[tuple[str, Count], ...] = (("Car", 20), ("Pedestrian", 15), ("Cyclist", 15))
    less_existing: bool = True  # fill up to the counts; False (PointPillars, with 15 cars): always draw that many
    least_points: Number = 5  # that an object must hold to be pasted
    road_planes: bool = True  # stand pasted objects on the frame's road plane, where the data set has the folder planes
    shuffle: bool = True  # the order of points, which decides what a full voxel keeps
    style: Literal["released", "intended"] = "released"


# ------------------------------------------------------------------------------------------------------------- geometry


def carry(points: Float[Tensor, "m c"], pose: Float[Tensor, "4 4"]) -> Float[Tensor, "m c"]:
    """Points (x, y, z, ...) in another frame: ``pose`` leads there; other columns stay as they are."""
    pose = pose.to(points)
    return torch.cat((points[:, :3] @ pose[:3, :3].T + pose[:3, 3], points[:, 3:]), dim=1)


def field_of_view(
    points: Float[Tensor, "m c"], camera: Camera, size: tuple[int, int], divide: Divide = "rect_z"
) -> Bool[Tensor, "m"]:  # fmt: skip
    """Which camera-frame points (m) an image of ``size`` (width, height) px shows: 0 <= u < width, 0 <= v < height and
    depth >= 0.  OpenPCDet divides by the point's own z; for KITTI that drops 0.1 % of the points at the right edge."""
    uv, depth = camera.project(points[:, :3].to(camera.projection), divide)
    return (depth >= 0) & (uv >= 0).all(1) & (uv < uv.new_tensor(size)).all(1)


def bev_overlap(a: Float[Tensor, "n 7"], b: Float[Tensor, "m 7"]) -> Bool[Tensor, "n m"]:
    """Which boxes (LiDAR frame: x, y, z, length, width, height, yaw) share ground; boxes that only touch share none.

    Two convex shapes are apart exactly if a line between them runs along a side of one (separating axis theorem).
    """

    def axes(rows: Tensor) -> Tensor:  # (n, 2, 2): unit vectors along the length and along the width
        c, s = rows[:, 6].cos(), rows[:, 6].sin()
        return torch.stack((torch.stack((c, s), -1), torch.stack((-s, c), -1)), dim=1)

    of_a, of_b, half_a, half_b = axes(a), axes(b), a[:, 3:5] / 2, b[:, 3:5] / 2
    between = b[None, :, :2] - a[:, None, :2]
    aligned = torch.einsum("nid,mjd->nmij", of_a, of_b).abs()
    reach_a = half_a[:, None] + torch.einsum("nmij,mj->nmi", aligned, half_b)  # of both boxes along a's axes
    reach_b = half_b[None] + torch.einsum("nmij,ni->nmj", aligned, half_a)  # and along b's
    gap_a = torch.einsum("nid,nmd->nmi", of_a, between).abs()
    gap_b = torch.einsum("mjd,nmd->nmj", of_b, between).abs()
    return ((gap_a < reach_a) & (gap_b < reach_b)).all(-1)


def projected_boxes(boxes: Boxes3D, camera: Camera, size: tuple[int, int] | Float[Tensor, "2"]) -> Float[Tensor, "n 4"]:
    """2D boxes (left, top, right, bottom in px) around the projected corners of camera-frame boxes, clipped to
    [0, width - 1] x [0, height - 1] of an image of ``size`` px; in the camera's precision."""
    corners = enclosing_boxes(boxes, camera).unflatten(1, (2, 2))
    edge = torch.as_tensor(size).to(corners) - 1
    return corners.clamp(min=0).minimum(edge).flatten(1)


def enclosing_boxes(boxes: Boxes3D, camera: Camera) -> Float[Tensor, "n 4"]:
    """2D boxes (left, top, right, bottom in px) around the projected corners of camera-frame boxes, wherever they lie;
    in the camera's precision."""
    corners = boxes.corners().to(camera.projection)
    corners[..., 2].clamp_(min=NEAREST_CORNER)
    uv = camera.project(corners.flatten(0, 1))[0].unflatten(0, corners.shape[:2])
    return torch.cat((uv.amin(1), uv.amax(1)), dim=1)


@dataclass(frozen=True)
class Motion:
    """One draw of how a scene is moved: first mirrored (y to -y), then turned about z, then scaled."""

    flip: bool
    angle: float  # rad
    scale: float

    @classmethod
    def draw(cls, config: LidarAugmentConfig, generator: torch.Generator) -> Motion:
        """The same numbers are drawn whether used or not, so changing one setting leaves the other draws alone."""
        flip, angle, scale = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        low, high = config.scale
        return cls(flip < config.flip_y, config.rotation * (2 * angle - 1), low + (high - low) * scale)

    @property
    def matrix(self) -> Float[Tensor, "3 3"]:
        """What positions are multiplied by; float64."""
        c, s, side = math.cos(self.angle), math.sin(self.angle), -1.0 if self.flip else 1.0
        turn = torch.tensor([[c, -s * side, 0], [s, c * side, 0], [0, 0, 1]], dtype=torch.float64)
        return self.scale * turn

    def points(self, points: Float[Tensor, "m c"]) -> Float[Tensor, "m c"]:
        """Points (x, y, z, ...) of the LiDAR's frame, moved."""
        return torch.cat((points[:, :3] @ self.matrix.to(points).T, points[:, 3:]), dim=1)

    def boxes(self, boxes: Boxes3D) -> Boxes3D:
        """LiDAR-frame boxes, moved; their image fields stay as they are.

        Raises:
            ValueError: the boxes are in another frame.
        """
        if boxes.frame != "lidar":
            raise ValueError(f"expected boxes in the lidar frame, got the {boxes.frame} frame")
        matrix = self.matrix.to(boxes.centre)
        return replace(
            boxes,
            centre=boxes.centre @ matrix.T,
            size=boxes.size * self.scale,
            yaw=wrap_angle((-boxes.yaw if self.flip else boxes.yaw) + self.angle),
            velocity=None if boxes.velocity is None else boxes.velocity @ matrix[:2, :2].T,
        )


# ------------------------------------------------------------------------------------------------- objects to be pasted


class LidarScene(NamedTuple):
    """A scan and its label lines, both in the LiDAR's frame."""

    points: Float[Tensor, "m 4"]
    objects: Objects | None


def lidar_objects(objects: Objects, lidar_to_camera: Float[Tensor, "4 4"]) -> Objects:
    """Label lines with their boxes in the LiDAR's frame."""
    return replace(objects, boxes=camera_to_lidar(objects.boxes, torch.linalg.inv(lidar_to_camera)))


@dataclass(frozen=True)
class ObjectDatabase:
    """Labelled objects of a data set with the points in them, in the order of frames and label lines."""

    boxes: Float[Tensor, "n 7"]  # LiDAR frame: x, y, z of the centre, length, width, height (m), yaw (rad)
    label: Int[Tensor, "n"]  # index into the data set's classes
    difficulty: Int[Tensor, "n"]
    count: Int[Tensor, "n"]  # points of each object
    points: Float[Tensor, "p 4"]  # of all objects one after another; x, y, z less the box's centre, and intensity

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def build(cls, scenes: Iterable[LidarScene], least_points: int) -> ObjectDatabase:
        """The objects that hold ``least_points`` and whose difficulty is known."""
        none = torch.zeros(0, dtype=torch.int64)
        parts = [cls(torch.zeros(0, 7, dtype=torch.float64), none, none, none, torch.zeros(0, 4))]
        parts += [_crop(scene, least_points) for scene in scenes if scene.objects is not None]
        return cls(*(torch.cat([getattr(p, name) for p in parts]) for name in cls.__dataclass_fields__))

    @classmethod
    def cached(cls, path: Path, scenes: Iterable[LidarScene], least_points: int) -> ObjectDatabase:
        """The database in the file ``path`` (.npz); where it is not there or is damaged it is built, and stored."""
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as stored:
                    return cls(*(torch.from_numpy(stored[name]) for name in cls.__dataclass_fields__))
            except (OSError, ValueError, KeyError, EOFError, BadZipFile):
                path.unlink(missing_ok=True)  # damaged: as if it had never been stored
        database = cls.build(scenes, least_points)
        arrays = {name: getattr(database, name).numpy() for name in cls.__dataclass_fields__}

        def write(part: Path) -> None:
            with part.open("wb") as file:  # a name would be given an ending
                np.savez(file, **arrays)

        write_atomically(path, write, flush=False)
        return database

    def points_of(self, chosen: Int[Tensor, "k"], centres: Float[Tensor, "k 3"]) -> Float[Tensor, "q 4"]:
        """The points of the ``chosen`` objects, one object after another, standing at ``centres``."""
        count, total = self.count[chosen], self.count.cumsum(0)
        owner = torch.repeat_interleave(torch.arange(len(chosen)), count)
        nth = torch.arange(len(owner)) - (count.cumsum(0) - count)[owner]
        points = self.points[(total - self.count)[chosen][owner] + nth]
        return torch.cat((points[:, :3] + centres[owner].to(points), points[:, 3:]), dim=1)


def _crop(scene: LidarScene, least_points: int) -> ObjectDatabase:
    """The database of one frame."""
    assert scene.objects is not None
    objects = scene.objects[(scene.objects.boxes.label != IGNORE) & (scene.objects.difficulty != UNKNOWN)]
    inside = objects.boxes.to(scene.points.dtype).contains(scene.points[:, :3])
    held = inside.sum(1) >= least_points
    objects, (owner, index) = objects[held], inside[held].nonzero().unbind(1)
    points = scene.points[index]
    points[:, :3] -= objects.boxes.centre[owner].to(points)
    return ObjectDatabase(
        ground_rows(objects.boxes).double(), objects.boxes.label, objects.difficulty, inside[held].sum(1), points
    )


def ground_rows(boxes: Boxes3D) -> Float[Tensor, "n 7"]:
    """Boxes as rows: x, y, z of the centre, length, width, height (m), yaw (rad)."""
    return torch.cat((boxes.centre, boxes.size, boxes.yaw[:, None]), dim=1)


def draw_objects(
    database: ObjectDatabase, boxes: Boxes3D, classes: tuple[str, ...], config: LidarAugmentConfig,
    generator: torch.Generator,
) -> Int[Tensor, "k"]:  # fmt: skip
    """Which objects of the database are pasted among a scene's LiDAR-frame ``boxes``, class by class.

    None of them shares ground with a box of the scene, nor with another one.

    Raises:
        UserError: the settings count a class that the data set does not have.
    """
    present = boxes[boxes.label != IGNORE]
    taken = ground_rows(present).to(database.boxes)
    drawn = []
    for name, count in config.counts:
        if name not in classes:
            raise UserError(f"lidar_augment.counts names class {name!r}, expected one of {', '.join(classes)}")
        label = classes.index(name)
        wanted = count - int((present.label == label).sum()) * config.less_existing
        pool = (database.label == label).nonzero()[:, 0]
        candidates = pool[torch.randperm(len(pool), generator=generator)[: max(wanted, 0)]]
        rows = database.boxes[candidates]
        free = ~bev_overlap(rows, taken).any(1)
        # Row i: the earlier candidates that i stands in.
        clashes = bev_overlap(rows, rows).tril(-1)
        if config.style == "released":
            kept = free & ~(clashes | clashes.T).any(1)
        else:
            kept = first_come(clashes, free)
        drawn.append(candidates[kept])
        taken = torch.cat((taken, rows[kept]))
    return torch.cat(drawn) if drawn else torch.zeros(0, dtype=torch.int64)


def first_come(clashes: Bool[Tensor, "n n"], free: Bool[Tensor, "n"]) -> Bool[Tensor, "n"]:
    """The free candidates that clash with no earlier one that is kept; ``clashes`` is lower triangular.

    Each round settles at least the first candidate that is still wrong, so it ends.
    """
    kept = free
    while True:
        settled = free & ~(clashes & kept).any(1)
        if torch.equal(settled, kept):
            return kept
        kept = settled


def on_road(
    boxes: Float[Tensor, "n 7"], plane: Float[Tensor, "4"], lidar_to_camera: Float[Tensor, "4 4"]
) -> Float[Tensor, "n 7"]:
    """LiDAR-frame boxes moved up or down until their bottoms lie on the road.

    ``plane`` (a, b, c, d) holds the camera-frame points with a x + b y + c z + d = 0; neither sign nor length matter.
    """
    a, b, c, d = plane.to(boxes).tolist()
    centre = carry(boxes[:, :3], lidar_to_camera)
    ground = torch.stack((centre[:, 0], -(d + a * centre[:, 0] + c * centre[:, 2]) / b, centre[:, 2]), dim=1)
    moved = boxes.clone()
    moved[:, 2] = carry(ground, torch.linalg.inv(lidar_to_camera))[:, 2] + boxes[:, 5] / 2
    return moved


# -------------------------------------------------------------------------------------------------------------- samples


def augment_lidar(
    sample: Sample,
    config: LidarAugmentConfig,
    generator: torch.Generator,
    database: ObjectDatabase | None = None,
    classes: tuple[str, ...] = (),
    plane: Float[Tensor, "4"] | None = None,
) -> Sample:
    """A sample with its points and objects augmented; image, depth and camera stay as they are.

    ``box2d`` and ``alpha`` tell where an object stood in the picture before the scene was mirrored, turned and scaled.

    Args:
        sample: with points and a LiDAR; labels only where it has some.
        database: what is pasted; None for nothing. Samples without labels get nothing pasted.
        classes: what the labels index.
        plane: the road's, see ``on_road``.

    Raises:
        ValueError: the sample has no points.
        UserError: the settings count a class that the data set does not have.
    """
    if sample.points is None or sample.lidar_to_camera is None:
        raise ValueError(f"frame {sample.frame_id} has no points")
    pose = sample.lidar_to_camera
    motion = Motion.draw(config, generator)
    points = carry(sample.points, torch.linalg.inv(pose))
    objects = None if sample.objects is None else lidar_objects(sample.objects, pose)
    if objects is not None and database is not None:
        chosen = draw_objects(database, objects.boxes, classes, config, generator)
        rows = database.boxes[chosen]
        if plane is not None:
            rows = on_road(rows, plane, pose)
        pasted = _pasted(rows, database.label[chosen], database.difficulty[chosen], sample)
        covered = pasted.boxes.to(points.dtype).contains(points[:, :3]).any(0)
        points = torch.cat((database.points_of(chosen, rows[:, :3]), points[~covered]))
        objects = joined(objects, pasted)
    points = motion.points(points)
    if config.shuffle:
        points = points[torch.randperm(len(points), generator=generator)]
    if objects is not None:
        objects = replace(objects, boxes=lidar_to_camera(motion.boxes(objects.boxes), pose))
    return replace(sample, points=carry(points, pose), objects=objects)


def _pasted(
    rows: Float[Tensor, "k 7"], label: Int[Tensor, "k"], difficulty: Int[Tensor, "k"], sample: Sample
) -> Objects:  # fmt: skip
    """Label lines of pasted objects in the LiDAR's frame: in full view, seen by the sample's camera."""
    assert sample.lidar_to_camera is not None
    boxes = Boxes3D(rows[:, :3], rows[:, 3:6], rows[:, 6], label, "lidar")
    seen = lidar_to_camera(boxes, sample.lidar_to_camera)
    boxes = replace(
        boxes,
        box2d=projected_boxes(seen, sample.camera, (sample.image.shape[-1], sample.image.shape[-2])).to(rows),
        alpha=wrap_angle(-seen.yaw - torch.atan2(seen.centre[:, 0], seen.centre[:, 2])),
    )
    return Objects(boxes, torch.zeros_like(boxes.yaw), torch.zeros_like(label), difficulty)


def joined(first: Objects, second: Objects) -> Objects:
    """Label lines of ``first``, then of ``second``, in the precision of ``first``."""
    kind = first.boxes.centre.dtype
    a, b = first.boxes, second.boxes.to(kind)

    def join(name: str) -> Tensor | None:
        values = [getattr(boxes, name) for boxes in (a, b)]
        return None if any(value is None for value in values) else torch.cat(values)

    boxes = Boxes3D(
        torch.cat((a.centre, b.centre)), torch.cat((a.size, b.size)), torch.cat((a.yaw, b.yaw)),
        torch.cat((a.label, b.label)), a.frame, box2d=join("box2d"), alpha=join("alpha"),
    )  # fmt: skip
    return Objects(
        boxes,
        torch.cat((first.truncation, second.truncation.to(first.truncation))),
        torch.cat((first.occlusion, second.occlusion)),
        torch.cat((first.difficulty, second.difficulty)),
    )
