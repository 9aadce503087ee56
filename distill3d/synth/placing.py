"""Putting things into a street: placed meshes, free ground, and what the camera will see of a place.

World frame: x right, y ahead, z up, metres; the origin is on the ground under the camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import buildings, shapes
from .road import Road
from .settings import KITTI_FOCAL, KITTI_WIDTH, StreetConfig

MATERIALS = range(7)  # how a surface is shaded
GROUND, MATTE, CAR, FACADE, ROOF, LEAF, METAL = MATERIALS
NO_OBJECT = -1
SPOT_GAP = 0.05  # m kept free about posts and trees


@dataclass(frozen=True)
class StreetObject:
    """One labelled thing. size (3,): length, width, height, m; axes (3, 3): columns forward, left, up in the world;
    position (3,): bottom centre; mesh: its shape in a unit box."""

    kind: str
    size: np.ndarray
    axes: np.ndarray
    position: np.ndarray
    mesh: shapes.Mesh

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3) from the unit box to world offsets from `position`."""
        return self.axes * self.size


def turn(heading: float) -> np.ndarray:
    """Rotation (3, 3) about the up axis that takes x to the heading: angle from the world's x towards y, rad."""
    c, s = np.cos(heading), np.sin(heading)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def standing(heading: float, up: np.ndarray) -> np.ndarray:
    """Axes (3, 3), columns forward, left, up, of a thing that heads somewhere on ground with normal `up` (3,)."""
    forward = np.array([np.cos(heading), np.sin(heading), 0.0])
    forward = shapes.unit(forward - up * (forward @ up))
    return np.stack([forward, np.cross(up, forward), up], 1)


@dataclass(frozen=True)
class Place:
    """A candidate place for a thing: d and y in road coordinates, m; heading, rad from the world's x; kind: what the
    thing does there."""

    kind: str
    d: float
    y: float
    heading: float


class Footprints:
    """Ground already taken, as chains of discs: cheap to test and good enough for cars."""

    def __init__(self) -> None:
        self._discs = np.zeros((0, 3))

    @staticmethod
    def discs(x: float, y: float, heading: float, length: float, width: float) -> np.ndarray:
        """The ground of a thing, m and rad, as discs (N, 3): x, y, radius."""
        radius = width / 2
        reach = max(length / 2 - radius, 0.0)
        along = np.linspace(-reach, reach, max(1, int(np.ceil(length / width)) + 1))
        return np.stack([x + along * np.cos(heading), y + along * np.sin(heading), np.full_like(along, radius)], 1)

    def free(self, discs: np.ndarray, margin: float) -> bool:
        """Whether the ground of discs (N, 3), widened by margin m, is free."""
        gaps = np.hypot(discs[:, None, 0] - self._discs[None, :, 0], discs[:, None, 1] - self._discs[None, :, 1])
        return not (gaps < discs[:, None, 2] + self._discs[None, :, 2] + margin).any()

    def take(self, discs: np.ndarray) -> None:
        """Take the ground of discs (N, 3)."""
        self._discs = np.concatenate([self._discs, discs])

    def claim(self, x: float, y: float, heading: float, length: float, width: float, margin: float) -> bool:
        """Take the ground of a thing, m and rad, if it is free."""
        discs = self.discs(x, y, heading, length, width)
        if not self.free(discs, margin):
            return False
        self.take(discs)
        return True


@dataclass(frozen=True)
class View:
    """What the camera will see, roughly: enough to choose places and levels of detail."""

    focal: float
    half_tangent: float
    distance: tuple[float, float]
    behind: float = -6.0
    """y from which on trees stand, m: their shadows and crowns reach into the image."""

    @staticmethod
    def of(config: StreetConfig) -> View:
        focal = KITTI_FOCAL * config.width / KITTI_WIDTH
        return View(focal, 0.5 * config.width / focal, config.distance)

    def holds(self, x: float, y: float) -> bool:
        """Whether a thing at (x, y), m, is to be placed at all; it may stick out of the image."""
        near, far = self.distance
        return near <= y <= far and abs(x) < self.half_tangent * y + 0.6

    def some_y(self, rng: np.random.Generator) -> float:
        """y of a person, m: nearer more often than even over the distance, for far people are a handful of pixels."""
        near, far = self.distance
        return near + (far - near) * float(rng.random()) ** 1.4

    def nears(self, x: float, y: float, margin: float) -> bool:
        """Whether (x, y) lies in the image's sector, widened by margin m."""
        return abs(x) < self.half_tangent * y + margin

    def detailed(self, x: float, y: float, extent: float, pixels: float) -> bool:
        """Whether a thing of some extent (m) fills at least so many pixels."""
        return self.focal * extent > pixels * max(float(np.hypot(x, y)), 1.0)


class Builder:
    """Collects what stands in one street; the only mutable thing in the making of a scene."""

    def __init__(self, street: Road, view: View) -> None:
        self.street, self.view = street, view
        self.meshes: list[shapes.Mesh] = []
        self.colours: list[np.ndarray] = []
        self.materials: list[np.ndarray] = []
        self.owners: list[np.ndarray] = []
        self.objects: list[StreetObject] = []
        self.facades: list[buildings.Facade] = []
        self.taken = Footprints()

    def add(
        self,
        mesh: shapes.Mesh,
        matrix: np.ndarray,
        position: np.ndarray,
        palette: np.ndarray,
        materials: Sequence[int],
        owner: int = NO_OBJECT,
    ) -> None:
        """Place a mesh; palette (S, 3) and materials (S,) by slot."""
        self.meshes.append(mesh.moved(matrix, position))
        self.colours.append(np.asarray(palette, np.float32)[mesh.slot] * mesh.tint[:, None])
        self.materials.append(np.asarray(materials, np.uint8)[mesh.slot])
        self.owners.append(np.full(len(mesh), owner, np.int16))

    def add_ground(self, mesh: shapes.Mesh) -> None:
        """Lay the ground; its shader knows its colours."""
        self.add(mesh, np.eye(3), np.zeros(3), np.full((1, 3), 0.1), (GROUND,))

    def add_object(self, thing: StreetObject, palette: np.ndarray, materials: Sequence[int]) -> None:
        """Place a labelled thing."""
        self.add(thing.mesh, thing.matrix, thing.position, palette, materials, len(self.objects))
        self.objects.append(thing)

    def claim(self, place: Place, x: float, size: np.ndarray, gap: float) -> bool:
        """Take the ground of a thing of size (3,) that is to stand at a place, its x being known, if it is free."""
        return self.taken.claim(x, place.y, place.heading, size[0], size[1], gap)

    def claim_spot(self, position: np.ndarray, diameter: float) -> bool:
        """Take a round spot of ground about a position (3,) if it is free."""
        return self.taken.claim(float(position[0]), float(position[1]), 0.0, diameter, diameter, SPOT_GAP)
