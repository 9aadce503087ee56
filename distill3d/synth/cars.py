"""Car bodies: lofts through the cross-sections of a side outline, with painted windows, lamps, seams and wheels.

A body is made in a unit box (x, y in [-0.5, 0.5], z in [0, 1]; x forward) and stretched to the size of each car.
What a triangle cannot show is painted on four panels per style (side, front, rear, top) as slot numbers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np

from . import shapes

PANEL_ROWS, PANEL_COLUMNS = 160, 384  # texels: about 1 cm on a car
SIDE, FRONT, REAR, TOP = range(4)

PAINT, GLASS, TRIM, HEADLAMP, TAIL_LAMP, PLATE, CHROME, SEAM, WELL, TYRE, RIM = range(11)
SLOT_COUNT = 11
# Linear albedo of the painted slots; PAINT is each car's own.
SLOT_COLOURS = np.array(
    [
        [0.50, 0.50, 0.50],
        [0.012, 0.014, 0.016],
        [0.02, 0.02, 0.022],
        [0.38, 0.39, 0.40],
        [0.42, 0.012, 0.012],
        [0.72, 0.72, 0.68],
        [0.30, 0.30, 0.31],
        [0.06, 0.06, 0.06],
        [0.008, 0.008, 0.008],
        [0.018, 0.018, 0.019],
        [0.20, 0.20, 0.205],
    ],
    np.float32,
)


@dataclass(frozen=True)
class Style:
    """A body style. Lengths along the car are shares of its length from the nose; heights are shares of its height."""

    name: str
    share: float
    """Share of this style in traffic."""
    size: tuple[float, float, float]
    """Mean height, width, length, m."""
    outline: tuple[tuple[float, float], ...]
    """Side view from nose to tail: (along, up)."""
    windscreen: tuple[float, float]
    """Lower and upper end of the windscreen along the car."""
    rear_window: tuple[float, float]
    """Upper and lower end of the rear window along the car."""
    belt: tuple[float, float]
    """Height of the windows' lower edge at the windscreen and at the rear window."""
    pillars: tuple[float, ...]
    """Door posts along the car."""
    wheels: tuple[float, float] = (0.19, 0.80)
    """Front and rear axle along the car."""
    last_side_glass: float = 1.0
    """Side windows end here: vans have closed sides."""
    deck: tuple[float, float] | None = None
    """Load bed of a pickup, along the car."""


# The shares and sizes together give KITTI's means of h, w, l = 1.53, 1.63, 3.88 m.
STYLES: tuple[Style, ...] = (
    Style(
        "hatchback", 0.32, (1.47, 1.60, 3.63),
        ((0, 0.36), (0.012, 0.46), (0.05, 0.52), (0.14, 0.59), (0.23, 0.64), (0.28, 0.67), (0.36, 0.83), (0.43, 0.95),
         (0.52, 0.99), (0.62, 1.0), (0.78, 0.975), (0.89, 0.92), (0.945, 0.76), (0.978, 0.64), (0.995, 0.55),
         (1, 0.40)),
        (0.28, 0.43), (0.89, 0.972), (0.63, 0.68), (0.54, 0.76),
    ),
    Style(
        "sedan", 0.20, (1.43, 1.63, 4.17),
        ((0, 0.38), (0.01, 0.48), (0.04, 0.54), (0.14, 0.61), (0.25, 0.655), (0.30, 0.68), (0.37, 0.84), (0.44, 0.955),
         (0.53, 1.0), (0.63, 0.99), (0.71, 0.95), (0.78, 0.83), (0.845, 0.735), (0.90, 0.715), (0.97, 0.69),
         (0.985, 0.60), (1, 0.40)),
        (0.30, 0.44), (0.71, 0.84), (0.64, 0.69), (0.53, 0.70),
    ),
    Style(
        "estate", 0.15, (1.48, 1.64, 4.17),
        ((0, 0.37), (0.01, 0.47), (0.045, 0.53), (0.14, 0.60), (0.24, 0.65), (0.29, 0.68), (0.36, 0.84), (0.43, 0.95),
         (0.52, 0.995), (0.64, 1.0), (0.80, 0.985), (0.925, 0.94), (0.96, 0.78), (0.985, 0.64), (0.995, 0.52),
         (1, 0.40)),
        (0.29, 0.43), (0.925, 0.982), (0.64, 0.67), (0.51, 0.70, 0.86),
    ),
    Style(
        "suv", 0.11, (1.72, 1.72, 4.12),
        ((0, 0.42), (0.015, 0.54), (0.05, 0.59), (0.14, 0.635), (0.22, 0.66), (0.27, 0.69), (0.33, 0.83), (0.40, 0.95),
         (0.49, 0.995), (0.62, 1.0), (0.80, 0.985), (0.91, 0.945), (0.95, 0.79), (0.978, 0.67), (0.99, 0.56),
         (1, 0.44)),
        (0.27, 0.40), (0.91, 0.974), (0.65, 0.69), (0.50, 0.71), (0.19, 0.79),
    ),
    Style(
        "people carrier", 0.12, (1.66, 1.65, 3.92),
        ((0, 0.34), (0.015, 0.45), (0.05, 0.51), (0.12, 0.57), (0.18, 0.62), (0.23, 0.67), (0.32, 0.83), (0.41, 0.955),
         (0.51, 1.0), (0.66, 1.0), (0.82, 0.985), (0.935, 0.94), (0.965, 0.77), (0.986, 0.62), (0.995, 0.50),
         (1, 0.38)),
        (0.21, 0.41), (0.935, 0.984), (0.60, 0.62), (0.50, 0.72, 0.87), (0.18, 0.80),
    ),
    Style(
        "city car", 0.08, (1.50, 1.55, 3.09),
        ((0, 0.35), (0.015, 0.46), (0.06, 0.53), (0.13, 0.59), (0.20, 0.64), (0.25, 0.68), (0.34, 0.84), (0.43, 0.96),
         (0.53, 1.0), (0.68, 0.995), (0.83, 0.97), (0.93, 0.91), (0.963, 0.75), (0.985, 0.62), (0.995, 0.52),
         (1, 0.40)),
        (0.24, 0.43), (0.93, 0.982), (0.62, 0.66), (0.60,), (0.19, 0.82),
    ),
    Style(
        "pickup", 0.02, (1.70, 1.72, 4.61),
        ((0, 0.43), (0.012, 0.54), (0.04, 0.59), (0.14, 0.62), (0.24, 0.645), (0.28, 0.67), (0.34, 0.84), (0.39, 0.955),
         (0.46, 1.0), (0.57, 0.995), (0.605, 0.95), (0.63, 0.78), (0.65, 0.625), (0.68, 0.62), (0.98, 0.62),
         (0.992, 0.55), (1, 0.43)),
        (0.28, 0.39), (0.605, 0.645), (0.65, 0.66), (0.46,), (0.18, 0.77), deck=(0.67, 0.97),
    ),
)  # fmt: skip

VAN = Style(
    "van", 1.0, (2.15, 1.88, 4.95),
    ((0, 0.28), (0.01, 0.36), (0.035, 0.42), (0.09, 0.49), (0.13, 0.53), (0.17, 0.62), (0.235, 0.84), (0.28, 0.955),
     (0.34, 0.99), (0.5, 1.0), (0.8, 1.0), (0.96, 0.985), (0.988, 0.93), (0.994, 0.7), (0.997, 0.5), (1, 0.28)),
    (0.145, 0.28), (0.975, 0.9945), (0.53, 0.54), (0.33,), (0.17, 0.78), last_side_glass=0.36,
)  # fmt: skip

ALL_STYLES = (*STYLES, VAN)

WHEEL_DIAMETER = 0.62  # m
ARCH_GAP = 0.045  # m between tyre and wheel arch
CLEARANCE = 0.12  # share of the height under the floor
_PLAN = (
    (0, 0.76),
    (0.012, 0.84),
    (0.04, 0.93),
    (0.10, 0.98),
    (0.25, 1.0),
    (0.80, 1.0),
    (0.93, 0.97),
    (0.985, 0.92),
    (1, 0.84),
)


def _outline_at(style: Style, along: np.ndarray) -> np.ndarray:
    nodes = np.array(style.outline)
    return np.interp(along, nodes[:, 0], nodes[:, 1])


def _belt_at(style: Style, along: np.ndarray) -> np.ndarray:
    return np.interp(along, (style.windscreen[0], style.rear_window[1]), style.belt)


def _section(style: Style, along: float, half_points: int) -> np.ndarray:
    """Right half of the cross-section, (half_points, 2) of y (0..0.5) and z, from the floor's middle to the roof's."""
    nodes = np.array(_PLAN)
    plan = float(np.interp(along, nodes[:, 0], nodes[:, 1])) * 0.5
    top = float(_outline_at(style, np.array(along)))
    belt = min(float(_belt_at(style, np.array(along))), top - 0.035)
    cabin = np.clip((top - belt - 0.035) / (0.93 - belt), 0, 1)
    floor = CLEARANCE + 0.07 * max(0.0, 1 - along / 0.05) + 0.09 * max(0.0, 1 - (1 - along) / 0.06)
    edge = (0.925 * (1 - cabin) + 0.765 * cabin) * plan
    crown = 0.012 + 0.028 * cabin
    points = [
        (0.0, floor),
        (0.86 * plan, floor),
        (0.955 * plan, floor + 0.05),
        (1.0 * plan, min(0.37, top - 0.06)),
        (0.965 * plan, belt),
        (edge + 0.02 * plan, top - crown - 0.008),
        (0.90 * edge, top - 0.012),
        (0.45 * edge, top),
        (0.0, top + 0.002),
    ]
    keep = range(9) if half_points == 9 else (1, 3, 4, 5, 8)
    return np.array([points[i] for i in keep])


def _essential(outline: tuple[tuple[float, float], ...], tolerance: float = 0.02) -> list[float]:
    """Stations of an outline without those that lie on the line between their neighbours, within the tolerance."""
    kept = [outline[0]]
    for node, after in pairwise(outline[1:]):
        share = (node[0] - kept[-1][0]) / (after[0] - kept[-1][0])
        if abs(kept[-1][1] + share * (after[1] - kept[-1][1]) - node[1]) > tolerance:
            kept.append(node)
    return [x for x, _ in (*kept, outline[-1])]


def _body(style: Style, detailed: bool) -> np.ndarray:
    stations = sorted({*(x for x, _ in style.outline), 0.10, 0.18, 0.98}) if detailed else _essential(style.outline)
    half_points = 9 if detailed else 5
    rings = []
    for along in stations:
        half = _section(style, along, half_points)
        mirrored = half[-2::-1] * (-1, 1)
        whole = np.concatenate([half, mirrored, half[:1]])
        rings.append(np.concatenate([np.full((len(whole), 1), 0.5 - along), whole], 1))
    grid = np.stack(rings)
    middle = grid[[0, -1], 2:3].copy()
    middle[:, :, 1] = 0
    ends = np.repeat(middle, grid.shape[1], 1)
    return shapes.grid_triangles(np.concatenate([ends[:1], grid, ends[1:]]))


def _painted_uv(style_index: int, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Panel coordinates (T, 3, 2) in 0..1 and page (T,) of body triangles: each goes to the panel it faces most.

    Triangles under the car have page -1.
    """
    height, width, length = ALL_STYLES[style_index].size
    normal = shapes.unit(shapes.face_normals(corners * (length, width, height)))
    panel = np.full(len(corners), TOP)
    panel[np.abs(normal[:, 1]) > 0.62] = SIDE
    panel[normal[:, 0] > 0.75] = FRONT
    panel[normal[:, 0] < -0.60] = REAR
    x, y, z = corners[..., 0], corners[..., 1], corners[..., 2]
    u = np.where((panel == FRONT)[:, None] | (panel == REAR)[:, None], y + 0.5, 0.5 - x)
    v = np.where((panel == TOP)[:, None], y + 0.5, z)
    return np.stack([u, v], -1), np.where(normal[:, 2] < -0.45, -1, style_index * 4 + panel)


def _outward(corners: np.ndarray) -> np.ndarray:
    """Body triangles (T, 3, 3) in the order that makes their face normals point away from the car's long axis."""
    away = corners.mean(1) - (0.0, 0.0, 0.45)
    away[:, 0] *= 0.25  # the body is long: measure from its axis more than from its middle
    inward = (away * shapes.face_normals(corners)).sum(-1) < 0
    return np.where(inward[:, None, None], corners[:, ::-1], corners)


SPOKE_GAP_TINT = 0.25  # every other sector of a rim is a gap
RIM_SHARE = 0.68  # of the wheel's radius
TYRE_WIDTH = 0.20  # m


def _wheel(style: Style, along: float, sign: float, sides: int) -> list[shapes.Mesh]:
    """A wheel on one side (sign) of the unit-box body: tread, side wall and rim."""
    height, width, length = style.size
    turn = np.linspace(0, 2 * np.pi, sides + 1)
    circle = np.stack([np.cos(turn) / length, 0 * turn, np.sin(turn) / height], -1) * (WHEEL_DIAMETER / 2)
    hub = np.array([0.5 - along, 0.497 * sign, WHEEL_DIAMETER / 2 / height])
    inwards = np.array([0.0, -sign * TYRE_WIDTH / width, 0.0])
    parts = [shapes.soup(shapes.grid_triangles(np.stack([circle + hub + inwards, circle + hub])), slot=TYRE)]
    for share, slot, proud in ((1.0, TYRE, 0.0), (RIM_SHARE, RIM, 0.002)):
        middle = hub + np.array([0.0, sign * proud, 0.0])
        rim = share * circle + middle
        fan = np.stack([np.repeat(middle[None], sides, 0), rim[:-1], rim[1:]], 1)
        face = shapes.soup(fan, np.broadcast_to(np.array([0.0, sign, 0.0]), fan.shape), slot)
        gaps = (np.arange(sides) % 2 == 0) & (slot == RIM)
        parts.append(replace(face, tint=np.where(gaps, SPOKE_GAP_TINT, 1.0).astype(np.float32)))
    return parts


@cache
def template(style_index: int, detailed: bool) -> shapes.Mesh:
    """Unit-box mesh of a style of ALL_STYLES, with its wheels."""
    style = ALL_STYLES[style_index]
    corners = _outward(_body(style, detailed))
    uv, page = _painted_uv(style_index, corners)
    body = shapes.smooth(shapes.soup(corners, uv=uv))
    parts = [replace(body, layer=page.astype(np.int16), slot=np.where(page < 0, WELL, PAINT).astype(np.int16))]
    for along in style.wheels:
        for sign in (-1.0, 1.0):
            parts += _wheel(style, along, sign, sides=14 if detailed else 7)
    if detailed:
        at, up = style.windscreen[0] + 0.075, style.belt[0] + 0.05
        parts += [shapes.ellipsoid((0.5 - at, 0.495 * y, up), (0.016, 0.035, 0.035), 6, PAINT) for y in (-1.0, 1.0)]
    return shapes.join(parts)


@cache
def panels() -> np.ndarray:
    """Painted slots of all styles: (styles * 4 * PANEL_ROWS * PANEL_COLUMNS,) uint8; row 0 is low (or right)."""
    return np.concatenate([_paint(style).ravel() for style in ALL_STYLES])


def _paint(style: Style) -> np.ndarray:
    """The four panels of a style, (4, PANEL_ROWS, PANEL_COLUMNS) uint8 slots."""
    height, width, length = style.size
    pages = np.full((4, PANEL_ROWS, PANEL_COLUMNS), PAINT, np.uint8)
    along = ((np.arange(PANEL_COLUMNS) + 0.5) / PANEL_COLUMNS)[None, :]
    up = ((np.arange(PANEL_ROWS) + 0.5) / PANEL_ROWS)[:, None]
    top, belt = _outline_at(style, along), _belt_at(style, along)

    side = pages[SIDE]
    narrowest = np.minimum(top, np.minimum(_outline_at(style, along - 0.035), _outline_at(style, along + 0.035)))
    glazed = (up > belt + 0.012) & (up < narrowest - 0.055) & (along > style.windscreen[0] + 0.035)
    glazed &= along < min(style.last_side_glass, style.rear_window[1] - 0.02)
    side[glazed] = GLASS
    for at in style.pillars:
        side[glazed & (np.abs(along - at) < 0.011)] = TRIM
    doors = (style.windscreen[0] + 0.075, *style.pillars[:2])
    for at in doors:
        side[(np.abs(along - at) < 0.0032) & (up > 0.2) & (up < belt)] = SEAM
    for at in doors[1:]:
        side[(np.abs(along - at + 0.032) < 0.017) & (np.abs(up - belt + 0.085) < 0.012)] = TRIM
    side[np.broadcast_to(up < 0.185, side.shape)] = TRIM
    nose = style.outline[1][1] + 0.01
    side[(along < 0.085 - 0.6 * np.abs(up - nose)) & (np.abs(up - nose) < 0.045)] = HEADLAMP
    side[(along > 0.955) & (np.abs(up - 0.60) < 0.07)] = TAIL_LAMP
    if style.deck:
        side[(along > 0.96) & (np.abs(up - 0.55) < 0.06)] = TAIL_LAMP
    for at in style.wheels:
        reach = WHEEL_DIAMETER / 2 + ARCH_GAP
        centre = WHEEL_DIAMETER / 2 / height
        side[np.hypot((along - at) * length, (up - centre) * height) < reach] = WELL

    across = np.abs(along - 0.5) * 2
    front = pages[FRONT]
    nose = style.outline[1][1]
    front[(across < 0.46 - 1.5 * np.abs(up - nose + 0.03)) & (np.abs(up - nose + 0.03) < 0.032)] = TRIM
    front[(across < 0.07) & (np.abs(up - nose + 0.025) < 0.02)] = CHROME
    front[(across > 0.60) & (np.abs(up - nose - 0.005) < 0.02 + 0.06 * (across - 0.5))] = HEADLAMP
    front[(across < 0.62 - 1.2 * np.abs(up - 0.235)) & (np.abs(up - 0.235) < 0.04)] = TRIM
    front[np.broadcast_to(up < 0.17, front.shape)] = TRIM
    _paint_plate(front, 0.33, width, height)

    rear = pages[REAR]
    sill = style.belt[1] + 0.015
    if style.deck is None and style.rear_window[1] > 0.9:
        rear[(up > sill) & (up < 0.90) & (across < 0.74 - 0.22 * (up - sill))] = GLASS
    lamp_height = 0.60 if style.deck is None else 0.52
    rear[(across > 0.74) & (np.abs(up - lamp_height) < 0.085)] = TAIL_LAMP
    rear[(across > 0.80) & (np.abs(up - lamp_height + 0.055) < 0.012)] = CHROME
    _paint_plate(rear, 0.46, width, height)
    rear[np.broadcast_to(up < 0.21, rear.shape)] = TRIM
    rear[(across < 0.86) & (np.abs(up - 0.31) < 0.006)] = SEAM

    roof = pages[TOP]
    sideways = np.abs(((np.arange(PANEL_ROWS) + 0.5) / PANEL_ROWS)[:, None] - 0.5) * 2
    low, high = style.windscreen
    pane = (along > low + 0.006) & (along < high - 0.008)
    roof[pane & (sideways < 0.86 - 0.12 * (along - low) / (high - low))] = GLASS
    roof[(sideways < 0.86) & (along > low - 0.014) & (along <= low + 0.006)] = TRIM
    high, low = style.rear_window
    pane = (along > high + 0.008) & (along < low - 0.004)
    roof[pane & (sideways < 0.72 + 0.10 * (along - high) / (low - high))] = GLASS
    roof[(along < 0.04 + 0.05 * (sideways - 0.6)) & (sideways > 0.60)] = HEADLAMP
    roof[(np.abs(sideways - 0.80) < 0.008) & (along > 0.05) & (along < style.windscreen[0] - 0.02)] = SEAM
    if style.deck:
        roof[(along > style.deck[0]) & (along < style.deck[1]) & (sideways < 0.84)] = TRIM
    return pages


def _paint_plate(panel: np.ndarray, middle: float, width: float, height: float) -> None:
    """A European number plate of 0.52 x 0.11 m with dark letters, in place."""
    across = ((np.arange(PANEL_COLUMNS) + 0.5) / PANEL_COLUMNS - 0.5)[None, :] * width
    up = (((np.arange(PANEL_ROWS) + 0.5) / PANEL_ROWS)[:, None] - middle) * height
    panel[(np.abs(across) < 0.26) & (np.abs(up) < 0.055)] = PLATE
    letters = (np.abs(across) < 0.22) & (np.abs(up) < 0.033) & (np.mod(across + 0.22, 0.062) < 0.036)
    panel[letters & (np.abs(across + 0.02) > 0.025)] = TRIM


# Paint of European traffic: share, linear albedo, metallic share of the reflection.
PAINTS: tuple[tuple[float, tuple[float, float, float], float], ...] = (
    (0.20, (0.42, 0.43, 0.44), 0.6),
    (0.19, (0.018, 0.018, 0.020), 0.3),
    (0.13, (0.13, 0.135, 0.145), 0.6),
    (0.15, (0.74, 0.74, 0.72), 0.1),
    (0.10, (0.020, 0.045, 0.14), 0.4),
    (0.04, (0.06, 0.14, 0.30), 0.4),
    (0.08, (0.36, 0.022, 0.020), 0.2),
    (0.03, (0.16, 0.014, 0.022), 0.4),
    (0.03, (0.025, 0.09, 0.05), 0.4),
    (0.03, (0.40, 0.36, 0.28), 0.5),
    (0.02, (0.55, 0.38, 0.04), 0.1),
)


def random_paint(rng: np.random.Generator) -> np.ndarray:
    """Linear albedo (3,) of a car's paint."""
    shares = np.array([share for share, _, _ in PAINTS])
    colour = np.array(PAINTS[rng.choice(len(PAINTS), p=shares / shares.sum())][1])
    return (colour * rng.uniform(0.75, 1.2) * rng.uniform(0.94, 1.06, 3)).astype(np.float32)


# Spread of sizes inside a style: shared scale, then each of height, width, length on its own. With the styles'
# own spread this gives KITTI's standard deviations of .14, .10, .43 m.
SIZE_SPREAD = (0.055, 0.048, 0.075)


def random_car(rng: np.random.Generator, bodies: Collection[str]) -> tuple[int, np.ndarray]:
    """Index into ALL_STYLES and size (length, width, height) in metres of a random car of some bodies (Style.name)."""
    shares = np.array([s.share if s.name in bodies else 0.0 for s in STYLES])
    index = int(rng.choice(len(STYLES), p=shares / shares.sum()))
    height, width, length = np.array(STYLES[index].size) * (
        1 + np.clip(rng.standard_normal(3), -2.2, 2.2) * SIZE_SPREAD
    )
    return index, np.array([length, width, height])


def random_van(rng: np.random.Generator) -> tuple[int, np.ndarray]:
    """Index into ALL_STYLES and size (length, width, height) in metres of a random van."""
    height, width, length = np.array(VAN.size) * (1 + np.clip(rng.standard_normal(3), -2, 2) * (0.09, 0.04, 0.08))
    return len(ALL_STYLES) - 1, np.array([length, width, height])


def random_long(rng: np.random.Generator, mean: tuple[float, float, float]) -> tuple[int, np.ndarray]:
    """Index into ALL_STYLES and size (length, width, height) in metres of a long box body.

    ``mean``: height, width, length (m).
    """
    height, width, length = np.array(mean) * (1 + np.clip(rng.standard_normal(3), -2, 2) * (0.05, 0.02, 0.08))
    return len(ALL_STYLES) - 1, np.array([length, width, height])
