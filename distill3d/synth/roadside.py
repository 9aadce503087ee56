"""What lines the street: houses, trees, front gardens, posts, and the backdrop at its end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import buildings, plants, shapes
from .placing import FACADE, LEAF, MATTE, METAL, ROOF, Builder, turn
from .road import KERB_WIDTH

KINDS = ("urban", "houses", "park")
TREE_DETAIL = (40.0, 120.0, 420.0)  # px of height above which a tree takes the next of plants.LEVELS
BUSH_DETAIL = 65.0  # px of height above which the finer bush or hedge is used
TRUNK, POST = 0.6, 0.3  # m of ground that trees and posts keep free
STREET_TREES = {"urban": 0.4, "houses": 0.5, "park": 0.9}  # share of street sides with a row of trees
GARDEN_END, FURNITURE_END, TREES_END, HOUSES_END = 75.0, 110.0, 115.0, 165.0  # m along the road


def _add_tree(rng: np.random.Generator, build: Builder, d: float, y: float, height: float, habit: int) -> None:
    position = build.street.spot(d, y)
    if not build.view.nears(position[0], y, 9) or y < build.view.behind or not build.claim_spot(position, TRUNK):
        return
    level = sum(build.view.detailed(position[0], y, height, pixels) for pixels in TREE_DETAIL)
    mesh = plants.tree(habit, int(rng.integers(plants.VARIANTS)), level)
    matrix = turn(rng.uniform(0, 2 * np.pi)) * (height * rng.uniform(0.88, 1.14, 3))
    build.add(mesh, matrix, position, plants.random_palette(rng), (MATTE, LEAF))


def _add_bush(rng: np.random.Generator, build: Builder, d: float, y: float, size: float) -> None:
    position = build.street.spot(d, y)
    mesh = plants.bush(int(rng.integers(plants.VARIANTS)), build.view.detailed(position[0], y, size, BUSH_DETAIL))
    build.add(mesh, turn(rng.uniform(0, 2 * np.pi)) * size, position, plants.random_palette(rng), (MATTE, LEAF))


def _any_habit(rng: np.random.Generator, conifers: bool = True) -> int:
    return int(rng.integers(len(plants.HABITS) if conifers else len(plants.HABITS) - 1))


def _any_house(rng: np.random.Generator, urban: bool) -> buildings.House:
    return buildings.from_pool(urban, int(rng.integers(buildings.POOL)))


def _add_house(
    rng: np.random.Generator, build: Builder, sign: float, y: float, setback: float, house: buildings.House, urban: bool
) -> None:
    """A house with its front `setback` m from the centre line on a side (-1 left, 1 right), centred at y."""
    build.facades.append(buildings.random_facade(rng, house.eaves, urban))
    layer = np.where(house.mesh.layer < 0, -1, len(build.facades) - 1).astype(np.int16)
    # The front looks at the road: local +y points to -sign; or a gable does.
    gable = not urban and rng.random() < 0.35
    heading = sign * np.pi / 2 - build.street.bearing(y) + (np.pi / 2 if gable else 0.0)
    middle = build.street.spot(sign * (setback + 0.5 * (house.length if gable else house.depth)), y)
    position = middle - turn(heading) @ np.array([0.0, -0.5 * house.depth, 0.1])
    tiles, bricks = (colours[rng.integers(len(colours))] for colours in (buildings.TILES, buildings.BRICKS))
    palette = np.array([(1.0, 1.0, 1.0), tiles, bricks]) * rng.uniform(0.8, 1.15)
    build.add(replace(house.mesh, layer=layer), turn(heading), position, palette, (FACADE, ROOF, MATTE))


def add_side(rng: np.random.Generator, build: Builder, sign: float, kind: str) -> None:
    """Everything beyond the carriageway on one side (-1 left, 1 right) of a kind of KINDS."""
    street = build.street
    side, half = (street.left, street.half_left) if sign < 0 else (street.right, street.half_right)
    back = half + KERB_WIDTH + side.pavement + side.verge
    if rng.random() < STREET_TREES[kind]:
        d = back - 0.6 if side.verge else half + 0.6
        if kind == "park" and rng.random() < 0.6:
            d = back + rng.uniform(0.5, 2.5)
        _add_tree_row(rng, build, sign * d, rng.uniform(5.5, 9.5) if kind == "urban" else rng.uniform(6, 13))
    if kind == "park":
        _add_park(rng, build, sign, back)
    else:
        setback = back + (rng.uniform(0.0, 0.4) if kind == "urban" else rng.uniform(2.5, 7.0))
        _add_house_row(rng, build, sign, setback, urban=kind == "urban")
        if kind == "houses":
            _add_front_gardens(rng, build, sign, back, setback)
    _add_furniture(rng, build, sign, half, side.pavement)


def _add_tree_row(rng: np.random.Generator, build: Builder, d: float, height: float) -> None:
    """Street trees of one species."""
    habit, spacing, y = _any_habit(rng, conifers=False), rng.uniform(7, 13), rng.uniform(2, 11)
    while y < TREES_END:
        if not build.street.in_junction(y, 2.5) and rng.random() < 0.86:
            _add_tree(rng, build, d, y, height * rng.uniform(0.85, 1.15), habit)
        y += spacing * rng.uniform(0.85, 1.2) * (1.0 if y < 60 else 1.7)


def _add_park(rng: np.random.Generator, build: Builder, sign: float, back: float) -> None:
    for _ in range(int(rng.integers(9, 15))):
        d, y = sign * (back + rng.uniform(3.5, 30)), rng.uniform(8, 120)
        _add_tree(rng, build, d, y, rng.uniform(6, 15), _any_habit(rng))
    for _ in range(int(rng.integers(0, 7))):
        _add_bush(rng, build, sign * (back + rng.uniform(1, 8)), rng.uniform(7, 60), rng.uniform(0.8, 2.2))
    y = rng.uniform(20, 50)
    while y < HOUSES_END:
        if rng.random() < 0.5:
            urban = bool(rng.random() < 0.4)
            _add_house(rng, build, sign, y, back + rng.uniform(22, 45), _any_house(rng, urban), urban)
        y += rng.uniform(22, 40)


def _add_house_row(rng: np.random.Generator, build: Builder, sign: float, setback: float, urban: bool) -> None:
    street, y = build.street, rng.uniform(-14, -4)
    while y < HOUSES_END:
        house = _any_house(rng, urban)
        length = house.length
        if street.junction is not None and street.junction[0] - 1.5 - length < y < street.junction[1] + 1.5:
            y = street.junction[1] + 2.0
            continue
        seen = build.view.nears(street.spot(sign * setback, y + length)[0], y + length, 14)
        if seen:
            _add_house(rng, build, sign, y + length / 2, setback + (0 if urban else rng.uniform(0, 2)), house, urban)
        gap = 0.0 if urban and rng.random() < 0.8 else rng.uniform(3, 7)
        if gap and seen and rng.random() < 0.8:
            d = sign * (setback + rng.uniform(1, 6))
            _add_tree(rng, build, d, y + length + gap / 2, rng.uniform(4, 9), _any_habit(rng))
        y += length + gap


def _add_front_gardens(rng: np.random.Generator, build: Builder, sign: float, back: float, setback: float) -> None:
    street, y = build.street, rng.uniform(-4, 4)
    usual = int(rng.choice(3))  # one street prefers hedges, another walls, another fences
    while y < GARDEN_END:
        length = rng.uniform(5, 10)
        middle = y + length / 2
        spot = street.spot(sign * (back + 0.55), middle)
        open_ground = not street.in_junction(middle, length / 2 + 1)
        if open_ground and build.view.nears(spot[0], y + length, 1) and rng.random() < 0.85:
            before, after = (street.spot(sign * (back + 0.55), end)[2] for end in (y, y + length))
            shear = np.array([[1.0, 0, 0], [0, 1, 0], [(after - before) / length, 0, 1]])
            matrix = turn(street.traffic_heading(middle, True)) @ shear @ np.diag([length, 1, 1])
            style = usual if rng.random() < 0.7 else int(rng.choice(3))
            _add_boundary(rng, build, style, matrix, spot - (0, 0, 0.05), length)
        if open_ground and setback - back > 2.5 and rng.random() < 0.6:
            _add_bush(rng, build, sign * rng.uniform(back + 1.2, setback - 0.8), middle, rng.uniform(0.8, 2.4))
        y += length + (rng.uniform(2.5, 4) if rng.random() < 0.4 else 0.1)


def _add_boundary(
    rng: np.random.Generator, build: Builder, style: int, matrix: np.ndarray, position: np.ndarray, length: float
) -> None:
    """A hedge (style 0), wall (1) or fence (2) of unit length, taken to the street by matrix (3, 3)."""
    if style == 0:
        mesh = plants.hedge(
            int(rng.integers(plants.VARIANTS)), build.view.detailed(position[0], position[1], 1.5, BUSH_DETAIL)
        )
        stretched = matrix @ np.diag([1, 0.9, rng.uniform(0.9, 1.9)])
        build.add(mesh, stretched, position, plants.random_palette(rng), (MATTE, LEAF))
    elif style == 1:
        wall = shapes.box((-0.5, -0.12, 0), (0.5, 0.12, rng.uniform(0.5, 1.3)))
        stone = np.array([buildings.STONES[rng.integers(len(buildings.STONES))]]) * rng.uniform(0.8, 1.5)
        build.add(wall, matrix, position, stone, (MATTE,))
    else:
        close = build.view.detailed(position[0], position[1], 1.0, BUSH_DETAIL)
        mesh = buildings.fence(round(length / (0.5 if close else 1.6)), 0.02 / length)
        paint = np.full((1, 3), rng.choice((0.05, 0.3, 0.6)))
        build.add(mesh, matrix @ np.diag([1, 1, rng.uniform(0.8, 1.2)]), position, paint, (MATTE,))


POST_PALETTE = np.array([[0.22, 0.23, 0.23], [0.6, 0.6, 0.6], [0.55, 0.55, 0.5]])
SIGN_COLOURS = ((0.55, 0.03, 0.03), (0.03, 0.09, 0.40), (0.6, 0.6, 0.58))
LID_COLOURS = ((0.05, 0.05, 0.05), (0.02, 0.08, 0.2), (0.4, 0.3, 0.03))


def _add_furniture(rng: np.random.Generator, build: Builder, sign: float, half: float, pavement: float) -> None:
    street = build.street
    if rng.random() < 0.5:
        y = rng.uniform(6, 24)
        lamp = buildings.lamp_post(float(rng.choice((6.0, 7.5, 9.0))), float(rng.choice((0.8, 1.6))))
        while y < FURNITURE_END:
            position = street.spot(sign * (half + 0.45), y)
            if build.claim_spot(position, POST):
                build.add(lamp, turn(np.pi if sign > 0 else 0.0), position, POST_PALETTE, (METAL, MATTE, MATTE))
            y += rng.uniform(22, 30)
    for _ in range(int(rng.integers(0, 4))):
        y = rng.uniform(7, 50)
        upright_sign = rng.random() < 0.65
        position = street.spot(sign * (half + (0.5 if upright_sign else 0.3 + 0.8 * pavement)), y)
        if street.in_junction(y) or not build.claim_spot(position, POST):
            continue
        if upright_sign:
            palette = np.array([POST_PALETTE[0], SIGN_COLOURS[rng.integers(3)], POST_PALETTE[2]])
            mesh, heading = buildings.sign_post(bool(rng.random() < 0.6)), street.traffic_heading(y, sign > 0)
            build.add(mesh, turn(heading), position, palette, (METAL, MATTE, MATTE))
        else:
            palette = np.array([(0.03, 0.035, 0.035), (0.0, 0.0, 0.0), LID_COLOURS[rng.integers(3)]])
            build.add(buildings.refuse_bin(), turn(rng.uniform(0, 6.3)), position, palette, (MATTE, MATTE, MATTE))


def add_backdrop(rng: np.random.Generator, build: Builder) -> None:
    """Trees and houses where the street ends, so that little bare horizon shows."""
    for _ in range(int(rng.integers(10, 16))):
        y = float(rng.uniform(120, 235))
        d = build.street.distance_from_centre(rng.uniform(-0.75, 0.75) * y, y)
        if abs(d) > build.street.half_right + 5 or y > 190:
            _add_tree(rng, build, d, y, rng.uniform(10, 20), _any_habit(rng))
    for _ in range(int(rng.integers(2, 6))):
        y, setback, urban = float(rng.uniform(150, 240)), rng.uniform(16, 80), bool(rng.random() < 0.6)
        _add_house(rng, build, float(rng.choice((-1.0, 1.0))), y, setback, _any_house(rng, urban), urban)


def close_behind(rng: np.random.Generator, build: Builder, near: float, far: float) -> None:
    """Trees and houses at y from near to far, m, where the street ends behind a camera that looks there."""
    for _ in range(int(rng.integers(10, 16))):
        y = float(rng.uniform(near, far))
        d = float(rng.uniform(-60, 60))
        if abs(d) > build.street.half_right + 5 or y < (near + far) / 2:
            _add_tree(rng, build, d, y, rng.uniform(10, 20), _any_habit(rng))
    for sign in (-1.0, 1.0):
        for _ in range(int(rng.integers(1, 4))):
            setback, urban = float(rng.uniform(12, 50)), bool(rng.random() < 0.6)
            _add_house(rng, build, sign, float(rng.uniform(near, far)), setback, _any_house(rng, urban), urban)
