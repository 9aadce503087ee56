"""Houses and street furniture.

Walls carry facade coordinates in metres; the shader paints and recesses their windows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from . import shapes

WALL, ROOF, BRICK = range(3)


@dataclass(frozen=True)
class Facade:
    """Pattern of one house's walls. Lengths in metres, colours linear albedo."""

    wall: tuple[float, float, float]
    plinth: tuple[float, float, float]
    frame: tuple[float, float, float]
    shutter: tuple[float, float, float]
    storey: float
    pitch: float
    window_width: float
    window_height: float
    sill: float
    plinth_height: float
    shutters: bool
    shop: bool
    bricks: float
    """Contrast of courses of bricks or stones, 0 for plaster."""
    cornice: bool
    eaves: float
    """Height above which the wall has no windows."""
    seed: int


FACADE_NUMBERS = 11


def numbers(facades: list[Facade]) -> tuple[np.ndarray, np.ndarray]:
    """The facades as tables for the shader: numbers (N, 11) float32 and colours (N, 4, 3) float32."""
    rows = [
        (
            f.storey,
            f.pitch,
            f.window_width,
            f.window_height,
            f.sill,
            f.plinth_height,
            f.shutters,
            f.shop,
            f.bricks,
            f.eaves,
            f.cornice,
        )
        for f in facades
    ]
    colours = [(f.wall, f.plinth, f.frame, f.shutter) for f in facades]
    return np.array(rows, np.float32).reshape(-1, FACADE_NUMBERS), np.array(colours, np.float32).reshape(-1, 4, 3)


PLASTERS = (
    (0.62, 0.58, 0.50), (0.66, 0.64, 0.60), (0.55, 0.45, 0.30), (0.48, 0.36, 0.28), (0.40, 0.40, 0.39),
    (0.60, 0.52, 0.36), (0.45, 0.30, 0.24), (0.36, 0.40, 0.40), (0.70, 0.69, 0.66), (0.52, 0.47, 0.40),
)  # fmt: skip
BRICKS = ((0.23, 0.10, 0.065), (0.28, 0.15, 0.10), (0.30, 0.24, 0.17), (0.17, 0.085, 0.06))
TILES = ((0.24, 0.085, 0.045), (0.17, 0.07, 0.045), (0.09, 0.065, 0.055), (0.07, 0.07, 0.075), (0.28, 0.12, 0.07))
FRAMES = ((0.72, 0.72, 0.70), (0.72, 0.72, 0.70), (0.12, 0.07, 0.04), (0.25, 0.25, 0.25))
SHUTTERS = ((0.05, 0.12, 0.07), (0.16, 0.08, 0.04), (0.42, 0.41, 0.38), (0.08, 0.14, 0.22))
STONES = ((0.30, 0.27, 0.23), (0.22, 0.16, 0.13), (0.28, 0.28, 0.28))


def random_facade(rng: np.random.Generator, eaves: float, urban: bool) -> Facade:
    """Facade of a house whose walls end at `eaves` m."""
    brick = rng.random() < 0.25
    wall = np.array(BRICKS[rng.integers(len(BRICKS))] if brick else PLASTERS[rng.integers(len(PLASTERS))])
    storey = rng.uniform(2.9, 3.6) if urban else rng.uniform(2.6, 2.9)
    width = rng.uniform(0.95, 1.4)

    def colour(options: tuple[tuple[float, float, float], ...]) -> tuple[float, float, float]:
        return options[rng.integers(len(options))]

    return Facade(
        wall=tuple(wall * rng.uniform(0.75, 1.1) * rng.uniform(0.97, 1.03, 3)),
        plinth=colour(STONES), frame=colour(FRAMES), shutter=colour(SHUTTERS),
        storey=storey, pitch=width + rng.uniform(0.9, 2.0), window_width=width,
        window_height=min(rng.uniform(1.2, 1.9), storey - 1.25), sill=rng.uniform(0.85, 1.0),
        plinth_height=rng.uniform(0.3, 1.0), shutters=bool(rng.random() < 0.3), shop=bool(urban and rng.random() < 0.3),
        bricks=rng.uniform(0.15, 0.35) if brick else (0.12 if rng.random() < 0.15 else 0.0),
        cornice=bool(urban and rng.random() < 0.5), eaves=eaves, seed=int(rng.integers(1 << 16)),
    )  # fmt: skip


def _quad(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    return np.array([[a, b, c], [a, c, d]])


@dataclass(frozen=True)
class House:
    """A house of the pool: its mesh (layer 0) and measures in metres."""

    mesh: shapes.Mesh
    length: float
    depth: float
    eaves: float


POOL = 40  # houses of each kind; facades and colours are drawn anew for every place


@cache
def from_pool(urban: bool, number: int) -> House:
    """House `number` below POOL, in town or on the outskirts."""
    rng = np.random.default_rng([34, urban, number])
    storeys = int(rng.integers(3, 6)) if urban else int(rng.integers(1, 4))
    eaves = storeys * (3.25 if urban else 2.75) + rng.uniform(0.3, 1.0)
    length = rng.uniform(11, 22) if urban else rng.uniform(9, 15)
    depth = rng.uniform(9, 13)
    pitched = rng.random() < (0.6 if urban else 0.93)
    ridge = eaves + depth / 2 * rng.uniform(0.55, 1.0) if pitched else 0.0
    return House(house(length, depth, eaves, ridge, 0), length, depth, eaves)


def house(length: float, depth: float, eaves: float, ridge: float, layer: int, floor: float = -1.5) -> shapes.Mesh:
    """A house along x (length m), going back along -y from the front at y = 0, with walls up to `eaves` m.

    ridge: height of the ridge along x, m; at or below `eaves` the roof is flat with a parapet. layer: index of its
    Facade. Walls reach down to `floor`, below sloping ground.
    """
    half = length / 2
    p = np.array([[-half, 0], [half, 0], [half, -depth], [-half, -depth]])
    parts = []
    start = 0.0
    for k in range(4):
        a, b = p[k], p[(k + 1) % 4]
        run = float(np.linalg.norm(b - a))
        wall = _quad(np.array([*a, floor]), np.array([*b, floor]), np.array([*b, eaves]), np.array([*a, eaves]))
        uv = _quad(
            np.array([start, floor]),
            np.array([start + run, floor]),
            np.array([start + run, eaves]),
            np.array([start, eaves]),
        )
        facing = np.array([*np.cross([*(b - a), 0], [0, 0, 1])]) / run
        parts.append(shapes.soup(wall, np.broadcast_to(facing, wall.shape), WALL, uv))
        start += 40.0 if k % 2 == 0 else 53.0  # so that the four walls do not repeat one another's windows
    if ridge > eaves:
        over, middle = 0.45, -depth / 2
        low = eaves - over * (ridge - eaves) / (depth / 2)
        front, back = over, -depth - over
        left, right = -half - 0.25, half + 0.25
        for y, sign in ((front, 1.0), (back, -1.0)):
            corners = _quad(
                np.array([left, y, low]),
                np.array([right, y, low]),
                np.array([right, middle, ridge]),
                np.array([left, middle, ridge]),
            )
            run = np.hypot(depth / 2 + over, ridge - low)
            uv = _quad(np.array([left, 0]), np.array([right, 0]), np.array([right, run]), np.array([left, run]))
            normal = shapes.unit(np.array([0, sign * (ridge - low), depth / 2 + over]))
            parts.append(shapes.soup(corners, np.broadcast_to(normal, corners.shape), ROOF, uv))
        for x, sign in ((-half, -1.0), (half, 1.0)):
            gable = np.array([[[x, 0, eaves], [x, -depth, eaves], [x, middle, ridge]]])
            uv = np.array([[[20 * sign, eaves], [20 * sign + depth, eaves], [20 * sign + depth / 2, ridge]]])
            parts.append(shapes.soup(gable, np.broadcast_to([sign, 0.0, 0.0], gable.shape), WALL, uv))
        stack = shapes.box(
            (half * 0.4 - 0.3, middle - 0.9, eaves), (half * 0.4 + 0.3, middle - 0.3, ridge + 0.6), BRICK
        )
        parts.append(stack)
    else:
        parts.append(
            shapes.box((-half - 0.12, -depth - 0.12, eaves), (half + 0.12, 0.12, eaves + 0.35), BRICK, bottom=True)
        )
    mesh = shapes.join(parts)
    return replace(mesh, layer=np.where(mesh.slot == WALL, layer, -1).astype(np.int16))


POLE, SIGN_FACE, LAMP = range(3)


@cache
def lamp_post(height: float, arm: float) -> shapes.Mesh:
    """Street lamp with an arm along +x, m."""
    stem = np.array([[0, 0, 0], [0, 0, 0.92 * height], [0.35 * arm, 0, 0.985 * height], [arm, 0, height]])
    pole = shapes.tube(stem, np.array([0.09, 0.06, 0.045, 0.04]), 5, POLE)
    return shapes.join(
        [pole, shapes.box((arm - 0.1, -0.13, height - 0.06), (arm + 0.6, 0.13, height + 0.06), LAMP, bottom=True)]
    )


@cache
def sign_post(round_face: bool) -> shapes.Mesh:
    """Traffic sign, 2.5 m high, facing -x."""
    pole = shapes.tube(np.array([[0, 0, 0], [0, 0, 2.55]]), np.array([0.035, 0.035]), 5, POLE, capped=False)
    if round_face:
        face = shapes.disc((-0.045, 0, 2.3), 0.3, 0, 12, SIGN_FACE)
    else:
        face = shapes.box((-0.05, -0.28, 2.0), (-0.04, 0.28, 2.56), SIGN_FACE)
    return shapes.join([pole, face])


@cache
def refuse_bin() -> shapes.Mesh:
    """Wheeled refuse bin, 1.1 m high."""
    body = shapes.box((-0.27, -0.29, 0.06), (0.27, 0.29, 1.0), POLE)
    return shapes.join([body, shapes.box((-0.31, -0.31, 1.0), (0.31, 0.31, 1.07), LAMP, bottom=True)])


def fence(posts: int, half_post: float) -> shapes.Mesh:
    """Fence of unit length along x and height 1 with some posts, half_post wide in lengths, and two rails."""
    bars = [
        shapes.box((b - half_post, -0.02, 0), (b + half_post, 0.02, 1.0))
        for b in (np.arange(posts) + 0.5) / posts - 0.5
    ]
    return shapes.join([*bars, *(shapes.box((-0.5, -0.02, z), (0.5, 0.02, z + 0.07)) for z in (0.2, 0.85))])
