"""The road: its course, its slopes, its cross-section, and where every spot of ground lies.

World frame: x right, y ahead, z up, metres; the origin is on the ground under the camera. Road coordinates: s = y
(roads bend so gently that the arc length needs no correction) and d, the signed distance from the centre line, right
positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from . import shapes

NEAREST, FARTHEST = -12.0, 260.0  # m, extent of the ground along the road
FAR_SIDE = 90.0  # m, extent of the ground to each side
KERB_WIDTH = 0.15  # m


@dataclass(frozen=True)
class Side:
    """What lies beside the carriageway on one side. Widths in metres."""

    kerb: float
    """Height of the kerb."""
    pavement: float
    """Width of the pavement."""
    verge: float
    """Width of the green strip between pavement and plots, 0 for none."""
    slope: float
    """Rise of the ground beyond the pavement, m per m."""
    paved: bool
    """Ground beyond the pavement is paved, not grass."""
    parking: float
    """Width of the parking lane, 0 for none."""


def _scalar(value: float) -> np.ndarray:
    """One number for the functions of many; numpy is faster with its scalars than with arrays of no dimension."""
    return np.array(value)[()]


@dataclass(frozen=True)
class Road:
    """One straight or gently bent road with at most one side street."""

    offset: float
    """d of the camera's lane centre, which is x = 0, m; right-hand traffic makes it positive."""
    heading: float
    """Direction of the road at the origin against the y axis, rad, right positive."""
    curvature: float
    """1 / m, right positive; the bend ends at `bend_end`."""
    bend_end: float
    lane: float
    """Width of a driving lane, m."""
    left: Side
    right: Side
    grade: float
    """Slope that the road takes up ahead, m per m."""
    grade_reach: float
    """Distance over which it does, m."""
    wave: tuple[float, float, float]
    """Undulation: amplitude (m), length (m), phase (rad)."""
    bank: float
    """Cross-fall of the whole section, m per m."""
    junction: tuple[float, float] | None
    """Near and far edge of a side street along s, m."""
    zebra: float | None
    """Near edge of a zebra crossing along s, m."""
    dash: tuple[float, float]
    """Length and gap of the centre line's dashes, m; a gap of 0 is a solid line."""
    edge_lines: bool
    asphalt: tuple[float, float, float]
    """Linear albedo of the carriageway."""
    paving: tuple[float, float, float]
    """Linear albedo of the pavement."""
    slab: float
    """Side of the pavement's slabs, m."""
    grass: tuple[float, float, float]
    """Linear albedo of the green."""
    texture_shift: tuple[float, float]
    """Where in the noise textures this street looks, m."""

    @property
    def half_right(self) -> float:
        """d of the right kerb, m."""
        return self.lane + self.right.parking

    @property
    def half_left(self) -> float:
        """-d of the left kerb, m."""
        return self.lane + self.left.parking

    def centre(self, y: np.ndarray) -> np.ndarray:
        """x of the centre line at y, any shape, m."""
        bend = np.minimum(np.maximum(y, NEAREST), self.bend_end)
        x = -self.offset + self.heading * y + 0.5 * self.curvature * bend * bend
        return x + self.curvature * self.bend_end * np.maximum(y - self.bend_end, 0)

    def direction(self, y: np.ndarray) -> np.ndarray:
        """Heading of the road at y against the y axis, rad, right positive."""
        return np.arctan(self.heading + self.curvature * np.minimum(np.maximum(y, NEAREST), self.bend_end))

    def to_road(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """d of points (x, y), any shape, m."""
        return (x - self.centre(y)) * np.cos(self.direction(y))

    def to_world(self, d: np.ndarray, y: np.ndarray) -> np.ndarray:
        """x of points (d, y), any shape, m."""
        return self.centre(y) + d / np.cos(self.direction(y))

    def base(self, d: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Height of the smooth surface, without kerbs and verges, m."""
        amplitude, length, phase = self.wave
        rise = self.grade * (np.sqrt(y * y + self.grade_reach**2) - self.grade_reach)
        turn = 2 * np.pi / length
        wave = amplitude * (
            np.sin(turn * y + phase) - np.sin(phase) - turn * y * np.cos(phase) * np.exp(-((y / 20) ** 2))
        )
        return rise + wave + self.bank * (d - self.offset)

    @cached_property
    def section(self) -> tuple[np.ndarray, np.ndarray]:
        """Knots of the cross-section: d (K,) rising, and height above the smooth surface (K,), m."""
        knots = []
        for sign, side, half in ((-1.0, self.left, self.half_left), (1.0, self.right, self.half_right)):
            back = half + KERB_WIDTH + side.pavement + side.verge
            arm = [(half, 0.0), (half + 0.02, side.kerb), (half + KERB_WIDTH, side.kerb), (back, side.kerb + 0.01)]
            arm += [(back + 6, side.kerb + 6 * side.slope), (back + 14, side.kerb + 10 * side.slope)]
            arm += [(FAR_SIDE, side.kerb + 12 * side.slope)]
            knots += [(sign * d, h) for d, h in arm]
        knots.append((0.0, 0.0))
        d, h = zip(*sorted(knots), strict=True)
        return np.array(d), np.array(h)

    def in_junction(self, y: np.ndarray | float, margin: float = 0.0) -> np.ndarray | bool:
        """Whether y lies in the side street, widened by margin m; bool of y's shape."""
        if self.junction is None:
            return np.zeros(np.shape(y), bool)
        return (y > self.junction[0] - margin) & (y < self.junction[1] + margin)

    def height(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Height of the ground at (x, y), any shape, m; kerbs end at the side street."""
        d = self.to_road(x, y)
        step = np.interp(d, *self.section)
        return self.base(d, y) + np.where(self.in_junction(y), 0.0, step)

    def spot(self, d: float, y: float) -> np.ndarray:
        """World position (3,) of the ground at road coordinates (d, y), m."""
        x = self.to_world(_scalar(d), _scalar(y))
        return np.array([x, y, self.height(x, _scalar(y))])

    def distance_from_centre(self, x: float, y: float) -> float:
        """d of one world point, m."""
        return float(self.to_road(_scalar(x), _scalar(y)))

    def bearing(self, y: float) -> float:
        """Heading of the road at one y against the y axis, rad, right positive."""
        return float(self.direction(_scalar(y)))

    def traffic_heading(self, y: float, onwards: bool) -> float:
        """Heading at one y, rad from the world's x axis towards y, of traffic with the camera, or against it."""
        return np.pi / 2 - self.bearing(y) + (0.0 if onwards else np.pi)

    def normal(self, x: float, y: float, reach: float = 1.0) -> np.ndarray:
        """Unit normal (3,) of the smooth surface about (x, y), fitted over +-reach m."""
        around_x = np.array([x + reach, x - reach, x, x])
        around_y = np.array([y, y, y + reach, y - reach])
        z = self.base(self.to_road(around_x, around_y), around_y)
        return shapes.unit(np.array([z[1] - z[0], z[3] - z[2], 2 * reach]))

    def mesh(self, nearest: float = NEAREST) -> shapes.Mesh:
        """The ground from y = nearest (m) on as triangles; steps along the road are short near the camera."""
        near = np.arange(nearest, 60.0, 3.0)
        far = np.array([60, 64, 68, 73, 79, 86, 95, 106, 120, 140, 165, 200, FARTHEST])
        stations = np.concatenate([near, far])
        if self.junction:
            edges = np.array([self.junction[0], self.junction[0] + 0.05, self.junction[1] - 0.05, self.junction[1]])
            stations = np.unique(np.concatenate([stations, edges]))
        d, _ = self.section
        grid_d, grid_y = np.meshgrid(d, stations)
        x = self.to_world(grid_d, grid_y)
        points = np.stack([x, grid_y, self.height(x, grid_y)], -1)
        corners = shapes.grid_triangles(points)
        normals = shapes.unit(shapes.face_normals(corners))
        up = np.where(normals[:, 2:] < 0, -normals, normals)
        return shapes.soup(corners, np.repeat(up[:, None], 3, 1))


def _tone(rng: np.random.Generator, low: tuple[float, ...], high: tuple[float, ...]) -> tuple[float, float, float]:
    """A colour between two."""
    a, b = np.array(low), np.array(high)
    red, green, blue = a + (b - a) * rng.random()
    return float(red), float(green), float(blue)


def _random_side(rng: np.random.Generator, urban: bool) -> Side:
    green = rng.random() < (0.15 if urban else 0.6)
    return Side(
        kerb=rng.uniform(0.06, 0.14),
        pavement=rng.uniform(1.6, 3.6) if urban else rng.uniform(1.2, 2.4),
        verge=rng.uniform(1.0, 2.8) if green else 0.0,
        slope=0.0 if urban else float(np.clip(rng.normal(0.0, 0.05), -0.05, 0.14)),
        paved=urban and rng.random() < 0.8,
        parking=2.15 if rng.random() < 0.6 else 0.0,
    )


def random_road(rng: np.random.Generator, urban: tuple[bool, bool], grade_sigma: float, grade_limit: float) -> Road:
    """A road between sides that are urban or not (left, right)."""
    lane = rng.uniform(2.8, 3.6)
    junction = None
    if rng.random() < 0.45:
        start = rng.uniform(11, 38)
        junction = (start, start + rng.uniform(5.5, 9.0))
    zebra = None
    if rng.random() < 0.25:
        zebra = junction[0] - 4.5 if junction else rng.uniform(9, 30)
    curvature = float(np.clip(rng.normal(0, 0.0022), -0.005, 0.005))
    return Road(
        offset=lane / 2 + rng.normal(0, 0.2),
        heading=float(np.clip(rng.normal(0, 0.02), -0.045, 0.045)),
        curvature=curvature,
        bend_end=rng.uniform(60, 120),
        lane=lane,
        left=_random_side(rng, urban[0]),
        right=_random_side(rng, urban[1]),
        grade=float(np.clip(rng.normal(0, grade_sigma), -grade_limit, grade_limit)),
        grade_reach=rng.uniform(10, 35),
        wave=(rng.uniform(0, 0.05), rng.uniform(30, 70), rng.uniform(0, 2 * np.pi)),
        bank=float(np.clip(rng.normal(0, 0.008), -0.02, 0.02)),
        junction=junction,
        zebra=zebra,
        dash=((3.0, 6.0), (6.0, 4.0), (1.0, 0.0), (0.0, 9.0))[rng.choice(4, p=(0.35, 0.2, 0.12, 0.33))],
        edge_lines=bool(rng.random() < 0.35),
        asphalt=_tone(rng, (0.082, 0.082, 0.083), (0.20, 0.195, 0.185)),
        paving=_tone(rng, (0.13, 0.125, 0.12), (0.30, 0.28, 0.25)),
        slab=float(rng.choice((0.3, 0.5, 1.0))),
        grass=_tone(rng, (0.045, 0.075, 0.018), (0.115, 0.115, 0.045)),
        texture_shift=(rng.uniform(0, 400), rng.uniform(0, 400)),
    )
