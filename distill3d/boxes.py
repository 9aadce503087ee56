"""3D boxes in one convention, and the only conversions to and from KITTI's and nuScenes' conventions.

Internally a box is its geometric centre (m), its size (length, width, height) (m) and one yaw (rad) about the *up* axis
of its frame, counted by the right-hand rule.  Yaw 0 points the length along the frame's first axis (x).

| frame  | x       | y     | z       | up | length axis at yaw a     |
|--------|---------|-------|---------|----|--------------------------|
| camera | right   | down  | forward | -y | (cos a, 0, sin a)        |
| lidar  | forward | left  | up      | +z | (cos a, sin a, 0)        |
| ego    | forward | left  | up      | +z | (cos a, sin a, 0)        |
| global | east    | north | up      | +z | (cos a, sin a, 0)        |

KITTI's ``rotation_y`` turns about +y (down), hence ``rotation_y = -yaw`` in the camera frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill3d.transfers import constant, fetched

Frame = Literal["camera", "lidar", "ego", "global"]
FRAMES: tuple[Frame, ...] = ("camera", "lidar", "ego", "global")

#: Class names of KITTI's label files; ``Boxes3D.label`` indexes them.  The first three are the ones detected, in the
#: order used by MonoDLE and its descendants (xinzhuma/monodle lib/datasets/kitti/kitti_dataset.py).
KITTI_CLASSES = ("Pedestrian", "Car", "Cyclist", "Van", "Truck", "Person_sitting", "Tram", "Misc", "DontCare")
#: nuScenes' ten detection classes in the order in which the field's code numbers them
#: (Megvii-BaseDetection/BEVDepth bevdepth/exps/nuscenes/base_exp.py, CLASSES).
NUSCENES_CLASSES = ("car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle",
                    "pedestrian", "traffic_cone")  # fmt: skip
NUSCENES_ATTRIBUTES = (
    "vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider",
    "pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving",
)  # fmt: skip
#: Label of a row that is no object: padding, or a region where the data set says nothing (KITTI's DontCare).
IGNORE = -1


def label_names(vocabulary: tuple[str, ...]) -> tuple[str, ...]:
    """What labels index where these are a data set's classes: KITTI's first ones are followed by its others, which
    label files name and no detector looks for."""
    return KITTI_CLASSES if vocabulary == KITTI_CLASSES[: len(vocabulary)] else vocabulary


def wrap_angle(angle: Tensor) -> Tensor:
    """The same angle (rad) in [-pi, pi); any shape."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


@dataclass(frozen=True)
class Boxes3D:
    """N validated 3D boxes of one frame of reference.

    Rows whose ``label`` is ``IGNORE`` may hold NaN geometry (image regions without a 3D box).

    Raises:
        ValueError: a field has another length or shape than stated, a size is not positive, a number is not finite, or
            the frame is unknown.
    """

    centre: Float[Tensor, "n 3"]  # m, geometric centre
    size: Float[Tensor, "n 3"]  # m, (length, width, height)
    yaw: Float[Tensor, "n"]  # rad, about the frame's up axis
    label: Int[Tensor, "n"]  # index into the data set's classes, or IGNORE
    frame: Frame
    score: Float[Tensor, "n"] | None = None  # confidence, larger is surer
    velocity: Float[Tensor, "n 2"] | None = None  # m/s in the ground plane of the frame
    box2d: Float[Tensor, "n 4"] | None = None  # px, (left, top, right, bottom) in the image that the camera took
    alpha: Float[Tensor, "n"] | None = None  # rad, KITTI's observation angle

    def __post_init__(self) -> None:
        if self.frame not in FRAMES:
            raise ValueError(f"frame is {self.frame!r}, expected one of {', '.join(FRAMES)}")
        n = self.centre.shape[0]
        shapes = {
            "centre": (n, 3), "size": (n, 3), "yaw": (n,), "label": (n,),
            "score": (n,), "velocity": (n, 2), "box2d": (n, 4), "alpha": (n,),
        }  # fmt: skip
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {shape}")
        unreal = self.label == IGNORE
        looked_at = {name: getattr(self, name).isfinite() for name in ("centre", "size", "yaw")}
        right = {
            f"{name} holds a value that is not finite": _of_each(said) | unreal for name, said in looked_at.items()
        }
        right["a box has a size that is not positive"] = _of_each(self.size > 0) | unreal
        if self.score is not None:
            right["score holds a value that is not finite"] = self.score.isfinite()
        for reason, fits in zip(right, torch.stack(list(right.values())).all(1).tolist(), strict=True):
            if not fits:
                raise ValueError(reason)

    def __len__(self) -> int:
        return self.centre.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Boxes3D:
        """The boxes selected by a boolean mask (n,), an index tensor or a slice."""
        return self._map(lambda t: t[index])

    def to(self, *args: torch.device | torch.dtype | str) -> Boxes3D:
        """The same boxes on another device or, for the floating-point fields, in another precision."""
        return self._map(lambda t: t.to(*args) if t.is_floating_point() else t.to(*_devices(args)))

    def _map(self, change) -> Boxes3D:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "frame"}
        return replace(self, **{name: None if t is None else change(t) for name, t in tensors.items()})

    @classmethod
    def empty(cls, frame: Frame) -> Boxes3D:
        """No boxes (n = 0), with scores and 2D boxes."""
        none = torch.zeros
        return cls(none(0, 3), none(0, 3), none(0), torch.zeros(0, dtype=torch.int64), frame,
                   score=none(0), box2d=none(0, 4), alpha=none(0))  # fmt: skip

    def heading(self) -> Float[Tensor, "n 3"]:
        """Unit vectors (n, 3) along the length of each box."""
        return box_headings(self.yaw, self.frame)

    def corners(self) -> Float[Tensor, "n 8 3"]:
        """Corners (n, 8, 3) in m: the bottom four counter-clockwise seen from above (front left, rear left, rear right,
        front right), then the top four in the same order."""
        return box_corners(self.centre, self.size, self.yaw, self.frame)

    def contains(self, points: Float[Tensor, "m 3"], margin: float = 0.0) -> Tensor:
        """Which points (m, 3) of the same frame lie inside which box: bool (n, m).

        ``margin`` (m) enlarges each face.
        """
        along = self.heading()
        up = constant((0.0, -1.0, 0.0) if self.frame == "camera" else (0.0, 0.0, 1.0), along).expand_as(along)
        axes = torch.stack((along, torch.linalg.cross(up, along, dim=-1), up), dim=1)  # (n, 3, 3)
        local = (points[None] - self.centre[:, None]) @ axes.transpose(1, 2)  # (n, m, 3)
        return (local.abs() <= self.size[:, None] / 2 + margin).all(-1)


def box_headings(yaw: Float[Tensor, "n"], frame: Frame) -> Float[Tensor, "n 3"]:
    """``Boxes3D.heading`` of the yaws alone."""
    c, s, zero = yaw.cos(), yaw.sin(), torch.zeros_like(yaw)
    return torch.stack((c, zero, s) if frame == "camera" else (c, s, zero), dim=-1)


def box_corners(
    centre: Float[Tensor, "n 3"], size: Float[Tensor, "n 3"], yaw: Float[Tensor, "n"], frame: Frame
) -> Float[Tensor, "n 8 3"]:
    """``Boxes3D.corners`` of the geometry alone, of which nothing is tested."""
    along = box_headings(yaw, frame)
    up = constant((0.0, -1.0, 0.0) if frame == "camera" else (0.0, 0.0, 1.0), along)
    left = torch.linalg.cross(up.expand_as(along), along, dim=-1)
    signs = constant(
        [(1, 1, -1), (-1, 1, -1), (-1, -1, -1), (1, -1, -1), (1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, 1)], along
    )
    half = size[:, None, :] / 2 * signs  # (n, 8, 3): along, left, up
    axes = torch.stack((along, left, up.expand_as(along)), dim=1)  # (n, 3, 3)
    return centre[:, None, :] + half @ axes


def _of_each(said: Bool[Tensor, "n *s"]) -> Bool[Tensor, "n"]:
    """Whether it is said of all that belongs to a box."""
    return said if said.dim() == 1 else said.all(-1)


def _devices(args: tuple) -> list:
    return [a for a in args if not isinstance(a, torch.dtype)]


@dataclass(frozen=True)
class BoxSlots:
    """The boxes of B samples in K slots each, of which ``kept`` are detections: what a detector says before it is known
    how many boxes that makes.  Fields are as in ``Boxes3D``, but nothing is validated."""

    centre: Float[Tensor, "b k 3"]
    size: Float[Tensor, "b k 3"]
    yaw: Float[Tensor, "b k"]
    label: Int[Tensor, "b k"]
    score: Float[Tensor, "b k"]
    kept: Bool[Tensor, "b k"]
    frame: Frame
    velocity: Float[Tensor, "b k 2"] | None = None
    box2d: Float[Tensor, "b k 4"] | None = None
    alpha: Float[Tensor, "b k"] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are there, by name."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}

    def boxes(self) -> list[Boxes3D]:
        """The detections of each sample, in the order of their slots, on the CPU: there nobody waits for what is
        tested of each."""
        rows = fetched(self.tensors())
        kept = rows.pop("kept")
        return [
            Boxes3D(frame=self.frame, **{name: value[i][use] for name, value in rows.items()})
            for i, use in enumerate(kept)
        ]


# ---------------------------------------------------------------------------------------------------------------- KITTI


def from_kitti(
    hwl: Float[Tensor, "n 3"], bottom: Float[Tensor, "n 3"], rotation_y: Float[Tensor, "n"], label: Int[Tensor, "n"],
    **image_fields: Tensor | None,
) -> Boxes3D:  # fmt: skip
    """KITTI's label geometry (height, width, length; bottom centre; rotation_y) as camera-frame boxes.

    ``image_fields`` may hold ``box2d``, ``alpha`` and ``score`` as in ``Boxes3D``.
    """
    centre, size, yaw = kitti_rows(hwl, bottom, rotation_y)
    return Boxes3D(centre, size, yaw, label, "camera", **image_fields)


def kitti_rows(
    hwl: Float[Tensor, "*b 3"], bottom: Float[Tensor, "*b 3"], rotation_y: Float[Tensor, "*b"]
) -> tuple[Float[Tensor, "*b 3"], Float[Tensor, "*b 3"], Float[Tensor, "*b"]]:
    """``from_kitti`` of the geometry alone, for any leading dimensions: centre, size (m), yaw (rad)."""
    return bottom - F.pad(hwl[..., :1] / 2, (1, 1)), hwl.flip(-1), -rotation_y


def to_kitti(boxes: Boxes3D) -> tuple[Tensor, Tensor, Tensor]:
    """Camera-frame boxes as KITTI writes them: hwl (n, 3), bottom centre (n, 3), rotation_y (n,) in [-pi, pi].

    Raises:
        ValueError: the boxes are not in the camera frame.
    """
    if boxes.frame != "camera":
        raise ValueError(f"KITTI labels are in the camera frame, these boxes in the {boxes.frame} frame")
    bottom = boxes.centre.clone()
    bottom[:, 1] += boxes.size[:, 2] / 2
    return boxes.size.flip(-1), bottom, wrap_angle(-boxes.yaw)


def camera_to_lidar(boxes: Boxes3D, rect_to_lidar: Float[Tensor, "4 4"]) -> Boxes3D:
    """Camera-frame boxes in the LiDAR frame, as OpenPCDet converts them (pcdet/utils/box_utils.py).

    The bottom centre is carried over exactly; the yaw is turned by the nominal quarter turn between the two frames,
    which neglects the small tilt between the LiDAR's z and the camera's -y.
    """
    if boxes.frame != "camera":
        raise ValueError(f"expected boxes in the camera frame, got the {boxes.frame} frame")
    rows = lidar_rows(boxes.centre, boxes.size, boxes.yaw, rect_to_lidar)
    return replace(boxes, centre=rows[:, :3], yaw=rows[:, 6], frame="lidar")


def lidar_rows(
    centre: Float[Tensor, "*b n 3"], size: Float[Tensor, "*b n 3"], yaw: Float[Tensor, "*b n"],
    rect_to_lidar: Float[Tensor, "*b 4 4"],
) -> Float[Tensor, "*b n 7"]:  # fmt: skip
    """``camera_to_lidar`` of the geometry alone, for any leading dimensions: x, y, z of the centre, length, width,
    height (m), yaw (rad, in [-pi, pi)) in the LiDAR frame."""
    pose, half = rect_to_lidar.to(centre), size[..., 2] / 2
    bottom = torch.stack((centre[..., 0], centre[..., 1] + half, centre[..., 2]), dim=-1)
    moved = bottom @ pose[..., :3, :3].transpose(-1, -2) + pose[..., None, :3, 3]
    lifted = torch.stack((moved[..., 0], moved[..., 1], moved[..., 2] + half), dim=-1)
    return torch.cat((lifted, size, wrap_angle(yaw - math.pi / 2)[..., None]), dim=-1)


def lidar_to_camera(boxes: Boxes3D, lidar_to_rect: Float[Tensor, "4 4"]) -> Boxes3D:
    """The inverse of ``camera_to_lidar``.

    Raises:
        ValueError: the boxes are not in the LiDAR frame.
    """
    if boxes.frame != "lidar":
        raise ValueError(f"expected boxes in the lidar frame, got the {boxes.frame} frame")
    centre, yaw = camera_rows(boxes.centre, boxes.size, boxes.yaw, lidar_to_rect)
    return replace(boxes, centre=centre, yaw=yaw, frame="camera")


def camera_rows(
    centre: Float[Tensor, "*b n 3"], size: Float[Tensor, "*b n 3"], yaw: Float[Tensor, "*b n"],
    lidar_to_rect: Float[Tensor, "*b 4 4"],
) -> tuple[Float[Tensor, "*b n 3"], Float[Tensor, "*b n"]]:  # fmt: skip
    """``lidar_to_camera`` of the geometry alone, for any leading dimensions: centre (m) and yaw (rad, in [-pi, pi))."""
    pose, half = lidar_to_rect.to(centre), size[..., 2] / 2
    bottom = torch.stack((centre[..., 0], centre[..., 1], centre[..., 2] - half), dim=-1)
    moved = bottom @ pose[..., :3, :3].transpose(-1, -2) + pose[..., None, :3, 3]
    lifted = torch.stack((moved[..., 0], moved[..., 1] - half, moved[..., 2]), dim=-1)
    return lifted, wrap_angle(yaw + math.pi / 2)


# ------------------------------------------------------------------------------------------------------------- nuScenes


def from_nuscenes(
    translation: Float[Tensor, "n 3"], wlh: Float[Tensor, "n 3"], quaternion: Float[Tensor, "n 4"],
    label: Int[Tensor, "n"], frame: Frame = "global", **more: Tensor | None,
) -> Boxes3D:  # fmt: skip
    """nuScenes' annotation geometry (centre; width, length, height; quaternion w, x, y, z) as boxes.

    The heading is the box's own x axis projected to the ground, as the official devkit reads the yaw.
    """
    w, x, y, z = quaternion.unbind(-1)
    forward_x = 1 - 2 * (y * y + z * z)  # first column of the rotation matrix
    forward_y = 2 * (x * y + w * z)
    return Boxes3D(translation, wlh[:, [1, 0, 2]], torch.atan2(forward_y, forward_x), label, frame, **more)


def to_nuscenes(boxes: Boxes3D) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes as nuScenes writes them: translation (n, 3), wlh (n, 3), quaternion (n, 4) = (w, x, y, z), a turn about up.

    Raises:
        ValueError: the boxes are in the camera frame, whose up axis is not z.
    """
    if boxes.frame == "camera":
        raise ValueError("nuScenes boxes turn about z; convert camera-frame boxes to another frame first")
    zero = torch.zeros_like(boxes.yaw)
    quaternion = torch.stack(((boxes.yaw / 2).cos(), zero, zero, (boxes.yaw / 2).sin()), dim=-1)
    return boxes.centre, boxes.size[:, [1, 0, 2]], quaternion
