"""The contract between surround-view data sets and detectors: several cameras and a LiDAR around one vehicle.

As ``data/sample.py`` for one camera.  Everything lies in the *key ego frame*: the vehicle at the key frame, x forward,
y left, z up.  ``bev_affine`` is the augmentation of that frame: points and boxes are given after it, ``camera_to_ego``
before it.  A pixel of an image at a depth leads to the ground by

    q = image_affine^-1 (u, v, d, 1),   X = bev_affine camera_to_ego intrinsics^-1 (q_u d, q_v d, d, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill3d.boxes import IGNORE, Boxes3D
from distill3d.data.batching import given_by_all, moved_to, padded
from distill3d.errors import UserError


@dataclass(frozen=True)
class SurroundObjects:
    """The N annotated objects of one moment, those of other classes left out.

    ``boxes`` are in the (augmented) key ego frame and carry ``velocity``, NaN where it is unknown.
    """

    boxes: Boxes3D
    sensor_points: Int[Tensor, "n"]  # LiDAR and radar points that the annotators counted inside

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor | slice) -> SurroundObjects:
        """The objects selected by a boolean mask (n,), an index tensor or a slice."""
        return SurroundObjects(self.boxes[index], self.sensor_points[index])


@dataclass(frozen=True)
class SurroundSample:
    """One moment seen by N cameras, one or more, with S - 1 earlier key frames."""

    frame_id: str  # the sample's token
    intrinsics: Float[Tensor, "s n 4 4"]  # of the image files; float64
    #: From each camera to the KEY ego frame, the vehicle's motion in between included; float64.
    camera_to_ego: Float[Tensor, "s n 4 4"]
    image_affine: Float[Tensor, "n 4 4"]  # from pixels of the image files to those of ``images``; float64
    bev_affine: Float[Tensor, "4 4"]  # augmentation of the ego frame; float64
    ego_to_global: Float[Tensor, "4 4"]  # of the key ego frame before augmentation; float64
    cameras: tuple[str, ...] = ()  # names of the N; none where nobody named them
    #: RGB in 0..1; [0] is the key frame, then the earlier ones as configured.  None where nobody looks at images.
    images: Float[Tensor, "s n 3 h w"] | None = None
    objects: SurroundObjects | None = None  # None where the moment has no annotations (test split)
    depth: Float[Tensor, "n h w"] | None = None  # m along the optical axis in the key frame's ``images``; 0 = unknown
    #: Of each pixel of the key frame's ``images``: 1000 (1 + label) + n, n telling things of a label apart; 0 = none.
    instances: Int[Tensor, "n h w"] | None = None
    #: x, y, z (m, augmented key ego frame), intensity 0..255, time before the key frame (s, positive for the past).
    points: Float[Tensor, "m 5"] | None = None

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Of each camera, in the order of the pictures; numbers where nobody named them."""
        return self.cameras or tuple(f"camera_{number}" for number in range(1, self.intrinsics.shape[1] + 1))


@dataclass(frozen=True)
class SurroundObjectBatch:
    """Objects of B moments padded to M rows. Padding rows have label ``IGNORE``, ``present`` False and zeros."""

    centre: Float[Tensor, "b m 3"]  # (augmented) key ego frame, m
    size: Float[Tensor, "b m 3"]  # (length, width, height), m
    yaw: Float[Tensor, "b m"]  # rad about z
    velocity: Float[Tensor, "b m 2"]  # m/s; NaN unknown
    label: Int[Tensor, "b m"]
    sensor_points: Int[Tensor, "b m"]
    present: Bool[Tensor, "b m"]

    @classmethod
    def pad(cls, objects: Sequence[SurroundObjects]) -> SurroundObjectBatch:
        """Stacks the objects of several moments; M is the largest count, at least 1."""
        rows = max([len(o) for o in objects] + [1])
        boxes = [o.boxes for o in objects]
        velocity = [b.velocity for b in boxes if b.velocity is not None]
        if len(velocity) < len(boxes):
            raise ValueError("annotated objects of a surround view need a velocity, NaN where it is unknown")
        return cls(
            centre=padded([b.centre for b in boxes], rows),
            size=padded([b.size for b in boxes], rows),
            yaw=padded([b.yaw for b in boxes], rows),
            velocity=padded(velocity, rows),
            label=padded([b.label for b in boxes], rows, IGNORE),
            sensor_points=padded([o.sensor_points for o in objects], rows),
            present=padded([torch.ones(len(o), dtype=torch.bool) for o in objects], rows),
        )


#: What is told of every moment: stacked in a batch.
_MATRICES = ("intrinsics", "camera_to_ego", "image_affine", "bev_affine", "ego_to_global")


@dataclass(frozen=True)
class SurroundBatch:
    """B moments. Floating-point data is float32, matrices float64."""

    frame_ids: list[str]
    intrinsics: Float[Tensor, "b s n 4 4"]
    camera_to_ego: Float[Tensor, "b s n 4 4"]
    image_affine: Float[Tensor, "b n 4 4"]
    bev_affine: Float[Tensor, "b 4 4"]
    ego_to_global: Float[Tensor, "b 4 4"]
    cameras: tuple[str, ...] = ()  # names of the N, the same for all moments
    images: Float[Tensor, "b s n 3 h w"] | None = None  # RGB in 0..1, not normalised: the detector does that
    objects: SurroundObjectBatch | None = None
    depth: Float[Tensor, "b n h w"] | None = None
    instances: Int[Tensor, "b n h w"] | None = None
    points: list[Float[Tensor, "_ 5"]] | None = None  # of lengths of their own

    def __len__(self) -> int:
        return len(self.frame_ids)

    def to(self, device: torch.device | str) -> SurroundBatch:
        """The batch on another device."""
        return moved_to(self, device)


def moment_of(batch: SurroundBatch, row: int) -> SurroundSample:
    """The moment ``row`` of a batch, without annotations and what only training looks at."""
    return SurroundSample(
        frame_id=batch.frame_ids[row],
        cameras=batch.cameras,
        images=None if batch.images is None else batch.images[row],
        points=None if batch.points is None else batch.points[row],
        **{name: getattr(batch, name)[row] for name in _MATRICES},
    )


def collate_surround(samples: list[SurroundSample]) -> SurroundBatch:
    """Samples of one rig, one image size and one number of frames as a batch.

    Raises:
        UserError: the cameras differ, or the images in number or size, or only some samples have images, annotations,
            depth, masks or points.
    """
    rigs = {s.cameras: s.frame_id for s in samples}
    if len(rigs) > 1:
        listed = ", ".join(f"{', '.join(rig) or 'none named'} (sample {frame})" for rig, frame in rigs.items())
        raise UserError(f"samples of one batch must be of the same cameras in one order, got {listed}")
    shapes = {tuple(s.images.shape): s.frame_id for s in samples if s.images is not None}
    if len(shapes) > 1:
        listed = ", ".join(f"{shape} (sample {frame})" for shape, frame in shapes.items())
        raise UserError(f"images of one batch must agree in frames, cameras and size, got {listed}")

    images, objects, depth, instances, points = (
        given_by_all(samples, name, "sample") for name in ("images", "objects", "depth", "instances", "points")
    )
    stacked = {name: torch.stack([getattr(s, name) for s in samples]) for name in _MATRICES}
    return SurroundBatch(
        frame_ids=[s.frame_id for s in samples],
        cameras=samples[0].cameras,
        images=None if images is None else torch.stack(images),
        objects=None if objects is None else SurroundObjectBatch.pad(objects),
        depth=None if depth is None else torch.stack(depth),
        instances=None if instances is None else torch.stack(instances),
        points=points,
        **stacked,
    )
