"""Trees, bushes and hedges: crowns of many small leaf cards around dark cores, so that light and LiDAR pass between."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from . import shapes

BARK, LEAF = 0, 1


@dataclass(frozen=True)
class Habit:
    """How a kind of tree grows. Lengths are shares of the tree's height."""

    trunk: float
    """Height of the lowest leaves."""
    spread: float
    """Radius of the crown."""
    blobs: int
    """Lobes of the crown."""
    cone: float
    """0: round crown; 1: narrows to a tip, as conifers do."""


HABITS = (
    Habit(0.30, 0.30, 9, 0.0),
    Habit(0.24, 0.36, 11, 0.1),
    Habit(0.34, 0.24, 7, 0.2),
    Habit(0.20, 0.22, 9, 0.55),
    Habit(0.10, 0.20, 8, 1.0),
)
VARIANTS = 3  # individuals per habit
LEVELS = ((45, 0.095), (150, 0.058), (620, 0.030), (2200, 0.0165))  # leaf cards per tree and their half width


def _cards(rng: np.random.Generator, centres: np.ndarray, outward: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Random triangles (N, 3, 3) about centres (N, 3), leaning to face outward (N, 3), of half widths size (N,)."""
    facing = shapes.unit(outward + 0.8 * rng.standard_normal(outward.shape))
    across = shapes.unit(np.cross(facing, rng.standard_normal(facing.shape)))
    second = np.cross(facing, across)
    turn = rng.uniform(0, 2 * np.pi, (len(centres), 1)) + np.array([0.0, 2.1, 4.2])
    reach = size[:, None] * rng.uniform(0.7, 1.5, (len(centres), 3))
    return centres[:, None] + (
        (reach * np.cos(turn))[..., None] * across[:, None] + (reach * np.sin(turn))[..., None] * second[:, None]
    )


def _leaves(
    rng: np.random.Generator, blobs: np.ndarray, radii: np.ndarray, count: int, size: float, squash: float = 0.85
) -> shapes.Mesh:
    """Leaf cards on the shells of blobs (B, 3) with radii (B,)."""
    share = radii**2 / (radii**2).sum()
    owner = rng.choice(len(blobs), count, p=share)
    direction = shapes.unit(rng.standard_normal((count, 3)))
    shell = radii[owner] * rng.uniform(0.62, 1.08, count)
    centres = blobs[owner] + direction * shell[:, None] * (1, 1, squash)
    outward = shapes.unit(0.55 * direction + 0.45 * shapes.unit(centres - blobs.mean(0)))
    corners = _cards(rng, centres, outward, size * rng.uniform(0.7, 1.25, count))
    mesh = shapes.soup(corners, np.repeat(outward[:, None], 3, 1), LEAF)
    depth = np.clip((shell / radii[owner] - 0.62) / 0.46, 0, 1)
    bright = (0.45 + 0.55 * depth) * (0.80 + 0.30 * outward[:, 2]) * rng.uniform(0.75, 1.25, count)
    return replace(mesh, tint=bright.astype(np.float32))


CORE_TINT = 0.33  # the inside of a crown lies in its own shade
CORE_SHARE = 0.66  # of the radius of a blob


def _cores(blobs: np.ndarray, radii: np.ndarray, squash: float = 0.85) -> shapes.Mesh:
    """Dark insides of blobs (B, 3) with radii (B,), so that crowns are not see-through."""
    inner = CORE_SHARE * radii
    cores = [shapes.ellipsoid(b, (r, r, r * squash), 5, LEAF) for b, r in zip(blobs, inner, strict=True)]
    return shapes.join(cores).with_slot(LEAF, CORE_TINT)


@cache
def tree(habit_index: int, variant: int, level: int) -> shapes.Mesh:
    """A tree of height 1: index into HABITS, individual below VARIANTS, index into LEVELS."""
    habit = HABITS[habit_index]
    rng = np.random.default_rng([31, habit_index, variant])
    crown = 1 - habit.trunk
    height = habit.trunk + crown * np.linspace(0.16, 0.86, habit.blobs) + rng.normal(0, 0.03, habit.blobs)
    along = (height - habit.trunk) / crown
    round_width = np.sqrt(np.clip(1 - (2 * along - 0.85) ** 2, 0.12, 1))
    width = habit.spread * ((1 - habit.cone) * round_width + habit.cone * np.clip(1.05 - along, 0.1, 1))
    bearing = rng.uniform(0, 2 * np.pi) + 2.4 * np.arange(habit.blobs) + rng.normal(0, 0.3, habit.blobs)
    offset = width * rng.uniform(0.35, 0.62, habit.blobs) * (1 - 0.7 * habit.cone)
    blobs = np.stack([offset * np.cos(bearing), offset * np.sin(bearing), height], -1)
    radii = np.clip(width * rng.uniform(0.50, 0.74, habit.blobs), 0.05, None)
    radii = np.where(habit.cone > 0.9, width * 0.95, radii)
    leaves = _leaves(rng, blobs, radii, *LEVELS[level])
    detailed = level >= 2
    if detailed:
        core = _cores(blobs, radii)
    else:  # one core stands for all
        spread = 0.75 * (blobs.max(0) - blobs.min(0)) / 2 + 0.4 * radii.mean()
        core = shapes.ellipsoid(blobs.mean(0), spread, 5, LEAF).with_slot(LEAF, CORE_TINT)
    sides = 6 if detailed else 3
    bend = rng.normal(0, 0.012, 2)
    stem = np.array([[0, 0, -0.02], [*(bend * 0.5), habit.trunk * 0.6], [*bend, habit.trunk + 0.25 * crown]])
    parts = [leaves, core, shapes.tube(stem, np.array([0.026, 0.019, 0.012]), sides, BARK, capped=False)]
    if detailed and habit.cone < 0.5:
        for blob in blobs[:5]:
            limb = np.stack([stem[1] * 0.6 + stem[2] * 0.4, blob])
            parts.append(shapes.tube(limb, np.array([0.012, 0.005]), 3, BARK, capped=False))
    return shapes.join(parts)


@cache
def bush(variant: int, detailed: bool) -> shapes.Mesh:
    """A bush of height 1 and about as wide."""
    rng = np.random.default_rng([32, variant])
    blobs = np.concatenate([rng.uniform(-0.28, 0.28, (5, 2)), rng.uniform(0.3, 0.6, (5, 1))], 1)
    radii = rng.uniform(0.26, 0.40, 5)
    return shapes.join(
        [_leaves(rng, blobs, radii, *((700, 0.032) if detailed else (110, 0.080))), _cores(blobs[:3], radii[:3])]
    )


@cache
def hedge(variant: int, detailed: bool) -> shapes.Mesh:
    """A hedge segment that fills x, y in [-0.5, 0.5], z in [0, 1]; stretched to metres by its user."""
    rng = np.random.default_rng([33, variant])
    core = shapes.box((-0.5, -0.38, 0), (0.5, 0.38, 0.93), LEAF).with_slot(LEAF, 0.40)
    count, size = (1100, 0.045) if detailed else (150, 0.105)
    face = rng.choice(3, count, p=(0.4, 0.4, 0.2))
    across, along, up = rng.uniform(-0.42, 0.42, count), rng.uniform(-0.5, 0.5, count), rng.uniform(0.02, 0.96, count)
    centres = np.stack(
        [along, np.where(face == 2, across, np.where(face == 0, -0.42, 0.42)), np.where(face == 2, 0.95, up)], -1
    )
    outward = np.eye(3)[[1, 1, 2]][face] * np.where(face == 0, -1, 1)[:, None]
    # Cards are drawn in the stretched frame of a hedge about 5 m long, 0.9 m deep and 1.4 m high.
    stretch = np.array([5.0, 0.9, 1.4])
    corners = _cards(rng, centres * stretch, outward, size * rng.uniform(0.65, 1.35, count)) / stretch
    cards = shapes.soup(corners, np.repeat(shapes.unit(outward + np.array((0, 0, 0.3)))[:, None], 3, 1), LEAF)
    tint = rng.uniform(0.6, 1.2, count) * np.where(face == 2, 1.1, 0.55 + 0.45 * up)
    return shapes.join([core, replace(cards, tint=tint.astype(np.float32))])


GREENS = np.array(
    [[0.055, 0.085, 0.020], [0.040, 0.070, 0.018], [0.080, 0.105, 0.026], [0.035, 0.060, 0.026], [0.105, 0.115, 0.030]],
    np.float32,
)
AUTUMN = np.array([[0.20, 0.12, 0.020], [0.17, 0.065, 0.018], [0.21, 0.16, 0.035]], np.float32)
BARKS = np.array([[0.075, 0.060, 0.045], [0.11, 0.10, 0.085], [0.05, 0.042, 0.035]], np.float32)
AUTUMN_SHARE = 0.10


def random_palette(rng: np.random.Generator) -> np.ndarray:
    """Colours (2, 3) of bark and leaves, linear albedo."""
    leaves = AUTUMN if rng.random() < AUTUMN_SHARE else GREENS
    return np.stack([BARKS[rng.integers(len(BARKS))], leaves[rng.integers(len(leaves))] * rng.uniform(0.8, 1.25)])
