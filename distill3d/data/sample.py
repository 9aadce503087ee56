"""The contract between data sets and detectors: one moment (``Sample``) and a padded stack of them (``Batch``).

A data set yields raw boxes and knows nothing of detectors; each detector encodes its own targets from a ``Batch``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill3d.boxes import IGNORE, Boxes3D
from distill3d.camera import Camera, ImageAffine
from distill3d.data.batching import moved_to, padded
from distill3d.transfers import inverse

#: KITTI's training difficulties as numbers; UNKNOWN objects are not trained on.
EASY, MODERATE, HARD, UNKNOWN = 0, 1, 2, -1


@dataclass(frozen=True)
class Objects:
    """The N label lines of one image, in file order.

    ``boxes`` are in the camera frame and carry ``box2d`` (px of the image that ``Sample.image`` holds) and ``alpha``.
    Rows without a 3D box (KITTI's DontCare) have label ``IGNORE`` and NaN geometry, but a 2D box.
    """

    boxes: Boxes3D
    truncation: Float[Tensor, "n"]  # share outside the image, 0..1; -1 unknown
    occlusion: Int[Tensor, "n"]  # 0 visible, 1 partly, 2 largely, 3 unknown
    difficulty: Int[Tensor, "n"]  # EASY, MODERATE, HARD or UNKNOWN, judged on the image file (data/kitti/labels.py)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor | slice) -> Objects:
        """The label lines selected by a boolean mask (n,), an index tensor or a slice."""
        return Objects(self.boxes[index], self.truncation[index], self.occlusion[index], self.difficulty[index])


@dataclass(frozen=True)
class Sample:
    """One image with all that is known of that moment."""

    frame_id: str  # unique within the data set, e.g. "000042"
    image: Float[Tensor, "3 h w"]  # RGB in 0..1
    camera: Camera  # projects camera-frame points into ``image``; (3, 4) float64
    affine: ImageAffine  # from the image file to ``image``
    objects: Objects | None = None  # None where the frame has no labels
    depth: Float[Tensor, "1 h w"] | None = None  # m along the optical axis in ``image``'s pixels; 0 = unknown
    points: Float[Tensor, "m 4"] | None = None  # camera-frame x, y, z (m) and intensity 0..1
    #: From the LiDAR's frame (x forward, y left, z up) to the camera's, float64; both mirrored where the image is.
    lidar_to_camera: Float[Tensor, "4 4"] | None = None


@runtime_checkable
class Dataset(Protocol):
    """What the train loop needs of a data set. ``get`` is deterministic: all randomness comes from ``generator``."""

    frame_ids: list[str]
    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def get(self, index: int, generator: torch.Generator | None = None) -> Any:
        """Frame ``index``, a ``Sample`` or (data/surround.py) a ``SurroundSample``.

        Augmented with draws from ``generator``, or not augmented where it is None.
        """
        ...


class JointDataset:
    """The frames of several data sets one after another, as one."""

    def __init__(self, parts: tuple[Dataset, ...]) -> None:
        self.parts, self.classes = parts, parts[0].classes
        self.frame_ids = [frame for part in parts for frame in part.frame_ids]

    def __len__(self) -> int:
        return len(self.frame_ids)

    def get(self, index: int, generator: torch.Generator | None = None) -> Sample:
        """Frame ``index``, counted through all parts."""
        for part in self.parts:
            if index < len(part):
                return part.get(index, generator)
            index -= len(part)
        raise IndexError(f"there are only {len(self)} frames")


@dataclass(frozen=True)
class ObjectBatch:
    """Objects of B images padded to M rows. Padding rows have label ``IGNORE``, ``present`` False and zeros elsewhere.

    Rows without a 3D box are ``present`` with label ``IGNORE``; their geometry is 0 here (never NaN).
    """

    centre: Float[Tensor, "b m 3"]  # camera frame, m
    size: Float[Tensor, "b m 3"]  # (length, width, height), m
    yaw: Float[Tensor, "b m"]  # rad about up
    label: Int[Tensor, "b m"]
    box2d: Float[Tensor, "b m 4"]  # canvas px
    alpha: Float[Tensor, "b m"]
    truncation: Float[Tensor, "b m"]
    occlusion: Int[Tensor, "b m"]
    difficulty: Int[Tensor, "b m"]
    present: Bool[Tensor, "b m"]  # a label line stands here

    @classmethod
    def pad(cls, objects: list[Objects]) -> ObjectBatch:
        """Stacks label lines of several images; M is the largest count, at least 1."""
        rows = max([len(o) for o in objects] + [1])

        def stack(values: list[Tensor], fill: float = 0) -> Tensor:
            return padded([v.nan_to_num(0.0) if v.is_floating_point() else v for v in values], rows, fill)

        boxes = [o.boxes for o in objects]
        box2d, alpha = [b.box2d for b in boxes if b.box2d is not None], [b.alpha for b in boxes if b.alpha is not None]
        if len(box2d) < len(boxes) or len(alpha) < len(boxes):
            raise ValueError("labelled objects of an image need box2d and alpha")
        return cls(
            centre=stack([b.centre for b in boxes]),
            size=stack([b.size for b in boxes]),
            yaw=stack([b.yaw for b in boxes]),
            label=stack([b.label for b in boxes], IGNORE),
            box2d=stack(box2d),
            alpha=stack(alpha),
            truncation=stack([o.truncation for o in objects]),
            occlusion=stack([o.occlusion for o in objects]),
            difficulty=stack([o.difficulty for o in objects], UNKNOWN),
            present=stack([torch.ones(len(o), dtype=torch.bool) for o in objects]),
        )

    def overlaid(self, other: ObjectBatch, where: Bool[Tensor, "b"]) -> ObjectBatch:
        """These objects, but those of ``other`` in the images ``where`` it says so."""
        rows = max(self.label.shape[1], other.label.shape[1])

        def joined(name: str) -> Tensor:
            fill = {"label": IGNORE, "difficulty": UNKNOWN}.get(name, 0)
            ours, theirs = (padded(list(getattr(o, name)), rows, fill) for o in (self, other))
            return torch.where(where.view(-1, *[1] * (ours.dim() - 1)), theirs, ours)

        return ObjectBatch(**{f.name: joined(f.name) for f in fields(self)})


@dataclass(frozen=True)
class Batch:
    """B samples of equal canvas size. All floating-point geometry is float32, cameras and affines float64."""

    frame_ids: list[str]
    image: Float[Tensor, "b 3 h w"]  # RGB in 0..1, not normalised: that is the detector's business
    camera: Camera  # behind the canvas, projection (B, 3, 4)
    affine: ImageAffine  # stacked
    objects: ObjectBatch | None = None
    depth: Float[Tensor, "b 1 h w"] | None = None
    points: list[Float[Tensor, "_ 4"]] | None = None  # of scan lengths of their own
    lidar_to_camera: Float[Tensor, "b 4 4"] | None = None
    #: Which images have labels, where some of the batch have none (None: all, or with ``objects`` None no image has).
    labelled: Bool[Tensor, "b"] | None = None
    #: ``affine.flip`` for the host, which need not ask the device; None where nobody has told it.
    mirrored: list[bool] | None = None

    def __len__(self) -> int:
        return len(self.frame_ids)

    @property
    def source_camera(self) -> Camera:
        """The cameras behind the (un-mirrored) image files, (B, 3, 4): where detections are reported."""
        p, m = self.camera.projection, self.affine.matrix.to(self.camera.projection)
        undone = inverse(m[..., :2])
        back = torch.cat((undone, -undone @ m[..., 2:]), -1)
        flipped = Camera(p).warped(back)
        width = self.affine.source_size[..., 0, None].to(p)
        return Camera(torch.where(self.affine.flip[..., None, None], flipped.mirrored(width).projection,
                                  flipped.projection))  # fmt: skip

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        return moved_to(self, device)
