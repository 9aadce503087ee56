"""KITTI labels of the things in a street: 2D box, truncation, occlusion, and the yaw-only 3D box.

KITTI boxes turn about the camera's y axis only. The labelled box shares the true box's centre, size and projected
heading: its corners then differ from the tilted truth by at most half the length (height) times the tilt, whichever
way the ground slopes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .placing import StreetObject
from .scene import Scene
from .sensors import RayCaster, Rig

PROBE = 28  # rays per side of an object's full extent in the image
VISIBLE_STEPS = (0.85, 0.5, 0.15)  # visible share above which occlusion is 0, 1, 2; else 3
DONT_CARE_BELOW = 0.03  # visible share under which a thing is only a DontCare region
NEAR_PLANE = 0.3  # m; nothing nearer is projected
WIDEST_VIEW = 2.0  # image sizes beyond the image that truncation looks at
SMALLEST_SIDE = 1.0  # px; smaller boxes are no labels


@dataclass(frozen=True)
class Label:
    """One line of a label file. Units as KITTI's: px, m, rad; location is the bottom centre in the camera frame."""

    kind: str
    truncated: float
    occluded: int
    alpha: float
    box: tuple[float, float, float, float]
    size: tuple[float, float, float]
    """Height, width, length."""
    location: tuple[float, float, float]
    yaw: float
    object: int
    """Index into the scene's objects."""
    visible: float
    """Share of the thing's part inside the image that nothing hides."""

    def line(self) -> str:
        """The label in KITTI's text form."""
        box = " ".join(f"{v:.2f}" for v in self.box)
        if self.kind == "DontCare":
            return f"DontCare -1 -1 -10 {box} -1 -1 -1 -1000 -1000 -1000 -10"
        rest = " ".join(f"{v:.2f}" for v in (*self.size, *self.location, self.yaw))
        return f"{self.kind} {self.truncated:.2f} {self.occluded} {self.alpha:.2f} {box} {rest}"


def wrap(angle: float) -> float:
    """The angle in [-pi, pi), rad."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def yaw_only_box(thing: StreetObject, rig: Rig) -> tuple[np.ndarray, float]:
    """Bottom centre (3,) in the camera frame and rotation_y, rad, of the label box of a thing."""
    height = thing.size[2]
    centre = rig.to_camera((thing.position + 0.5 * height * thing.axes[:, 2])[None])[0]
    forward = rig.rotation.T @ thing.axes[:, 0]
    return centre + np.array([0.0, height / 2, 0.0]), float(np.arctan2(-forward[2], forward[0]))


def silhouette(thing: StreetObject, rig: Rig) -> np.ndarray | None:
    """Pixels x1, y1, x2, y2 (4,) that the mesh of a thing spans, not clipped to the image; None behind the camera."""
    world = thing.mesh.corners.reshape(-1, 3) @ thing.matrix.T + thing.position
    points = rig.to_camera(world).reshape(-1, 3, 3)
    depth = points[..., 2]
    if (depth <= NEAR_PLANE).all():
        return None
    if (depth <= NEAR_PLANE).any():
        # Cut the edges at the near plane: vertices behind the camera do not project.
        a, b = points.reshape(-1, 3), points[:, [1, 2, 0]].reshape(-1, 3)
        crossing = (a[:, 2] > NEAR_PLANE) != (b[:, 2] > NEAR_PLANE)
        share = (NEAR_PLANE - a[crossing, 2]) / (b[crossing, 2] - a[crossing, 2])
        cut = a[crossing] + share[:, None] * (b[crossing] - a[crossing])
        points = np.concatenate([a[a[:, 2] > NEAR_PLANE], cut])
    pixels = rig.project(points.reshape(-1, 3))
    return np.concatenate([pixels.min(0), pixels.max(0)])


def label_objects(scene: Scene, caster: RayCaster, rig: Rig) -> list[Label]:
    """Labels of everything that the image shows, in the order of the scene's objects."""
    extents = [silhouette(thing, rig) for thing in scene.objects]
    size = np.array([rig.width, rig.height], float)
    candidates = []
    for index, extent in enumerate(extents):
        if extent is None or (extent[:2] > size - 1).any() or (extent[2:] < 0).any():
            continue
        candidates.append(index)
    if not candidates:
        return []
    margin = WIDEST_VIEW * size
    grid = (np.arange(PROBE) + 0.5) / PROBE
    probes = []
    for index in candidates:
        extent = extents[index]
        assert extent is not None
        low, high = np.maximum(extent[:2], -margin), np.minimum(extent[2:], size + margin)
        u, v = np.meshgrid(low[0] + grid * (high[0] - low[0]), low[1] + grid * (high[1] - low[1]))
        probes.append(np.stack([u, v], -1).reshape(-1, 2))
    pixels = np.concatenate(probes)
    origin, rays = rig.pixel_rays(pixels)
    rays = rays.astype(np.float32)
    first = caster.cast(np.broadcast_to(origin, rays.shape), rays)["primID"]
    owner = np.where(first >= 0, scene.object[first], -1)
    inside = np.all((pixels > -0.5) & (pixels < size - 0.5), axis=1)
    labels = []
    for k, index in enumerate(candidates):
        mine = slice(k * PROBE * PROBE, (k + 1) * PROBE * PROBE)
        solo = _solo_hits(scene.objects[index], origin, rays[mine])
        label = _label(scene, rig, index, extents[index], solo, solo & (owner[mine] == index), inside[mine])
        if label is not None:
            labels.append(label)
    return labels


def identity_map(scene: Scene, caster: RayCaster, rig: Rig) -> np.ndarray:
    """Which of the scene's objects the middle of each pixel shows, (H, W); -1 for none."""
    u, v = np.meshgrid(np.arange(rig.width, dtype=np.float32), np.arange(rig.height, dtype=np.float32))
    origin, rays = rig.pixel_rays(np.stack([u, v], -1).reshape(-1, 2))
    rays = rays.astype(np.float32)
    first = caster.cast(np.broadcast_to(origin, rays.shape), rays)["primID"]
    return np.where(first >= 0, scene.object[first], -1).reshape(rig.height, rig.width)


_SOLO_CASTERS: dict[int, tuple[object, RayCaster]] = {}


def _solo_hits(thing: StreetObject, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Whether world rays (N, 3) from origin (3,) meet the thing when it stands alone; bool (N,).

    Rays are taken into the unit box of the thing's template, whose Embree scene is kept per process.
    """
    key = id(thing.mesh)
    if key not in _SOLO_CASTERS:
        _SOLO_CASTERS[key] = (thing.mesh, RayCaster(thing.mesh.corners))  # holding the mesh keeps its id unique
    inverse = np.linalg.inv(thing.matrix)
    start = inverse @ (origin - thing.position)
    turned = rays @ inverse.T
    return _SOLO_CASTERS[key][1].blocked(np.broadcast_to(start, turned.shape), turned)


def _label(
    scene: Scene,
    rig: Rig,
    index: int,
    extent: np.ndarray | None,
    solo: np.ndarray,
    seen: np.ndarray,
    inside: np.ndarray,
) -> Label | None:
    """solo, seen, inside: bool per probe ray: meets the thing alone, meets it in the scene, lies in the image."""
    assert extent is not None
    in_image = int((solo & inside).sum())
    if in_image == 0:
        return None
    thing = scene.objects[index]
    visible = float((seen & inside).sum() / in_image)
    truncated = 1 - in_image / max(int(solo.sum()), 1)
    last = np.array([rig.width - 1, rig.height - 1] * 2, float)
    box = np.clip(extent, 0, last)
    if (box[2:] - box[:2] < SMALLEST_SIDE).any():
        return None
    location, yaw = yaw_only_box(thing, rig)
    location = np.round(location, 2)
    yaw = wrap(yaw)
    alpha = wrap(yaw - np.arctan2(location[0], location[2]))
    length, width, height = thing.size
    occluded = sum(visible <= step for step in VISIBLE_STEPS)
    kind = thing.kind if visible >= DONT_CARE_BELOW else "DontCare"
    x1, y1, x2, y2 = (float(b) for b in box)
    x, y, z = (float(c) for c in location)
    return Label(
        kind, truncated, occluded, alpha, (x1, y1, x2, y2), (height, width, length), (x, y, z), yaw, index, visible
    )
