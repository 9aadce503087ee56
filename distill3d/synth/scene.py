"""One street: which things stand where, as one triangle soup with colours and materials.

World frame: x right, y ahead, z up, metres; the origin is on the ground under the camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import buildings, road, roadside, shapes, traffic
from .light import Light, random_light
from .placing import Builder, StreetObject, View
from .road import Road
from .settings import StreetConfig


@dataclass(frozen=True)
class ContactShade:
    """How much sky light reaches the ground near things: grid (rows along y, columns along x) of factors 0..1, with
    its lowest (x, y) and the side of a cell in metres."""

    low: tuple[float, float]
    cell: float
    grid: np.ndarray

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Factor at points (x, y) of one shape; 1 outside the grid."""
        column = ((x - self.low[0]) / self.cell).astype(np.int32)
        row = ((y - self.low[1]) / self.cell).astype(np.int32)
        rows, columns = self.grid.shape
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        return np.where(inside, self.grid[np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1)], np.float32(1))


@dataclass(frozen=True)
class Scene:
    """Triangles and what they are. corners, normals (T, 3, 3); uv (T, 3, 2); colour (T, 3) linear albedo; material,
    object and layer (T,), object being an index into objects or NO_OBJECT."""

    corners: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    colour: np.ndarray
    material: np.ndarray
    object: np.ndarray
    layer: np.ndarray
    curved: np.ndarray
    """(T,): the corner normals differ and are to be interpolated."""
    flat_normals: np.ndarray
    """(T, 3): unit normal of the first corner."""
    objects: tuple[StreetObject, ...]
    road: Road
    light: Light
    facades: tuple[np.ndarray, np.ndarray]
    contact: ContactShade


CONTACT_CELL = 0.2  # m
CONTACT_AREA = (-26.0, 26.0, 0.0, 60.0)  # m: lowest and highest x, lowest and highest y
CONTACT_REACH = 0.7  # m beyond a thing's outline


def contact_shade(
    objects: Sequence[StreetObject], area: tuple[float, float, float, float] = CONTACT_AREA
) -> ContactShade:
    """Shade on the ground under and about things: ambient light is cast without rays, so this stands in for them.

    area: lowest and highest x, lowest and highest y, m.
    """
    x0, x1, y0, y1 = area
    grid = np.ones((int((y1 - y0) / CONTACT_CELL), int((x1 - x0) / CONTACT_CELL)), np.float32)
    for thing in objects:
        length, width, _ = thing.size
        thin = thing.kind in ("Pedestrian", "Cyclist")
        half = {"Pedestrian": (0.15, 0.15), "Cyclist": (0.46 * length, 0.05)}.get(
            thing.kind, (0.46 * length, 0.44 * width)
        )
        reach = float(np.hypot(*half)) + CONTACT_REACH
        x_at, y_at = thing.position[:2]
        first = np.clip(((y_at - reach - y0) / CONTACT_CELL, (x_at - reach - x0) / CONTACT_CELL), 0, grid.shape).astype(
            int
        )
        last = np.clip(((y_at + reach - y0) / CONTACT_CELL, (x_at + reach - x0) / CONTACT_CELL), 0, grid.shape).astype(
            int
        )
        y = ((np.arange(first[0], last[0]) + 0.5) * CONTACT_CELL + y0 - y_at)[:, None]
        x = ((np.arange(first[1], last[1]) + 0.5) * CONTACT_CELL + x0 - x_at)[None]
        forward, left = thing.axes[:2, 0], thing.axes[:2, 1]
        along = np.abs(x * forward[0] + y * forward[1]) - half[0]
        across = np.abs(x * left[0] + y * left[1]) - half[1]
        outside = np.hypot(np.maximum(along, 0), np.maximum(across, 0))
        deep = np.clip(-np.maximum(along, across) / 0.3, 0, 1)
        depth = 0.55 if thin else 0.62 + 0.32 * deep
        shade = 1 - depth * np.clip(1 - outside / CONTACT_REACH, 0, 1) ** 2
        grid[first[0] : last[0], first[1] : last[1]] *= shade.astype(np.float32)
    return ContactShade((x0, y0), CONTACT_CELL, grid)


SIDE_SHARES = (0.36, 0.36, 0.28)  # of roadside.KINDS
SAME_SIDES = 0.6  # share of streets with one kind on both sides
OWN_CAR = (4.5, 2.0)  # m, length and width of the ground that the camera's own car takes


def random_sides(rng: np.random.Generator) -> tuple[str, str]:
    """What lines the street on the left and on the right, of roadside.KINDS."""
    first = int(rng.choice(len(SIDE_SHARES), p=SIDE_SHARES))
    second = first if rng.random() < SAME_SIDES else int(rng.choice(len(SIDE_SHARES)))
    left, right = (roadside.KINDS[k] for k in rng.permutation([first, second]))
    return left, right


def furnish(rng: np.random.Generator, build: Builder, config: StreetConfig, sides: tuple[str, str]) -> None:
    """Put traffic and what lines it into a street that has its ground; sides: left and right, of roadside.KINDS."""
    traffic.add_long(rng, build, config)
    traffic.add_cars(rng, build, config)
    traffic.add_people(rng, build, config)
    roadside.add_side(rng, build, -1.0, sides[0])
    roadside.add_side(rng, build, 1.0, sides[1])
    roadside.add_backdrop(rng, build)


def assembled(build: Builder, daylight: Light) -> Scene:
    """All that was built, in one light."""
    whole = shapes.join(build.meshes)
    return Scene(
        corners=whole.corners,
        normals=whole.normals,
        uv=whole.uv,
        colour=np.concatenate(build.colours),
        material=np.concatenate(build.materials),
        object=np.concatenate(build.owners),
        layer=whole.layer,
        curved=(whole.normals != whole.normals[:, :1]).any((1, 2)),
        flat_normals=shapes.unit(whole.normals[:, 0]),
        objects=tuple(build.objects),
        road=build.street,
        light=daylight,
        facades=buildings.numbers(build.facades),
        contact=contact_shade(build.objects),
    )


def random_scene(rng: np.random.Generator, config: StreetConfig) -> Scene:
    """A street, drawn from rng."""
    sides = random_sides(rng)
    street = road.random_road(rng, (sides[0] == "urban", sides[1] == "urban"), config.grade_sigma, config.grade_limit)
    build = Builder(street, View.of(config))
    build.taken.claim(0.0, 0.0, np.pi / 2, *OWN_CAR, 0.0)
    build.add_ground(street.mesh())
    furnish(rng, build, config, sides)
    return assembled(build, random_light(rng, config))
