"""What surfaces look like: procedural albedo and gloss of ground, facades, roofs, cars and leaves.

All functions are vectorised over hits and return linear albedo (N, 3) float32 and gloss (N,): the reflectance of the
clear coat at normal incidence, 0 for matt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import cars, noise
from .placing import CAR, FACADE, GROUND, LEAF, METAL, ROOF
from .road import KERB_WIDTH, Road
from .scene import Scene

PAINT_GLOSS, GLASS_GLOSS, METAL_GLOSS, WINDOW_GLOSS = 0.05, 0.10, 0.12, 0.08
WHITE_LINE = np.array([0.58, 0.58, 0.55], np.float32)
EARTH = np.array([0.13, 0.10, 0.065], np.float32)
LINE_WIDTH = 0.13  # m
ZEBRA_DEPTH, ZEBRA_PERIOD = 3.4, 1.0  # m
TEXTURE_FADE = 14.0  # m; fine grain fades into its mean beyond, as a camera would average it
WALL_COLOUR, PLINTH_COLOUR, FRAME_COLOUR, SHUTTER_COLOUR = range(4)  # columns of buildings.numbers()
COURSE, BRICK_LENGTH = 0.16, 0.42  # m; larger than true bricks, which no camera here resolves
RECESS, LEAST_COSINE = 0.10, 0.25  # m from a wall's face to its windows; limit of the slant at which it is looked into


def albedo(
    scene: Scene,
    parts: Sequence[slice],
    triangle: np.ndarray,
    position: np.ndarray,
    uv: np.ndarray,
    rays: np.ndarray,
    distance: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Albedo (N, 3) and gloss (N,) of hits.

    parts: the slice of the hits that lie on each material; triangle (N,), position (N, 3) m, uv (N, 2), unit rays
    (N, 3), distance (N,) m.
    """
    colour = scene.colour[triangle]
    gloss = np.zeros(len(triangle), np.float32)
    hit = parts[GROUND]
    colour[hit] = _ground(scene.road, position[hit, 0].copy(), position[hit, 1].copy(), distance[hit])
    hit = parts[CAR]
    colour[hit], gloss[hit] = _car(colour[hit], scene.layer[triangle[hit]], uv[hit])
    hit = parts[FACADE]
    normal = scene.normals[triangle[hit], 0]
    colour[hit], gloss[hit] = _facade(
        scene.facades, scene.layer[triangle[hit]], uv[hit], rays[hit], normal, distance[hit]
    )
    hit = parts[ROOF]
    colour[hit] = _roof(colour[hit], uv[hit], distance[hit])
    hit = parts[LEAF]
    spot = position[hit]
    grain = noise.sample(0.4, spot[:, 0] + 0.7 * spot[:, 2], spot[:, 1] + spot[:, 2], 9.0)
    colour[hit] *= (1 + 0.22 * grain)[:, None].clip(0.4, 1.7)
    gloss[parts[METAL]] = METAL_GLOSS
    return colour, gloss


def _grey(values: np.ndarray) -> np.ndarray:
    return values[:, None].astype(np.float32)


def _ground(road: Road, x: np.ndarray, y: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Albedo (N, 3) of ground at x, y (N,), m."""
    d = road.to_road(x, y).astype(np.float32)
    beyond = np.abs(d) - np.where(d < 0, road.half_left, road.half_right).astype(np.float32)
    crossing = road.in_junction(y) & (beyond < 60)
    u, v = x + np.float32(road.texture_shift[0]), y + np.float32(road.texture_shift[1])
    fine = np.clip(TEXTURE_FADE / np.maximum(distance, TEXTURE_FADE), 0, 1)
    broad, grain = noise.sample(1.3, u, v, 2.0), noise.sample(0.35, u, v, 23.0) * fine

    colour = np.empty((len(x), 3), np.float32)
    asphalt = (beyond < 0) | crossing
    hit = np.flatnonzero(asphalt)
    colour[hit] = _asphalt(road, d[hit], x[hit], y[hit], broad[hit], grain[hit], beyond[hit], crossing[hit])
    hit = np.flatnonzero(~asphalt)
    colour[hit] = _roadside(road, d[hit], y[hit], u[hit], v[hit], broad[hit], grain[hit], beyond[hit])
    return colour


def _asphalt(
    road: Road,
    d: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    broad: np.ndarray,
    grain: np.ndarray,
    beyond: np.ndarray,
    crossing: np.ndarray,
) -> np.ndarray:
    tone = 1 + 0.09 * broad + 0.13 * grain
    lane_middle = np.abs(np.abs(d) - road.lane / 2)
    tone += 0.07 * np.exp(-(((lane_middle - 0.75) / 0.3) ** 2)) - 0.06 * np.exp(-((lane_middle / 0.35) ** 2))
    # Repairs: some rectangles of newer, darker asphalt.
    row, column = np.floor(y / 5.3), np.floor(d / 1.7)
    inside = np.flatnonzero((y / 5.3 - row > 0.12) & (d / 1.7 - column > 0.08))
    street = np.full(len(inside), int(road.texture_shift[0] * 10))
    patch = noise.hashed(row[inside].astype(np.int32), column[inside].astype(np.int32), street)
    tone[inside[patch < 0.07]] *= 0.72
    tone[(np.abs(broad + 0.35) < 0.028) & (grain > -1.2)] *= 0.62  # cracks follow a contour of the noise
    tone *= 1 - 0.25 * np.clip(1 + beyond / 0.35, 0, 1)  # the gutter is dirty
    paint = np.zeros(len(d), bool)
    dash, gap = road.dash
    if dash > 0:
        paint |= (np.abs(d) < LINE_WIDTH / 2) & (np.mod(y, dash + gap) < dash)
    if road.edge_lines:
        paint |= np.abs(np.abs(d) - (road.lane - 0.12)) < LINE_WIDTH / 2
    for sign, side in ((-1, road.left), (1, road.right)):
        if side.parking > 0:
            bay = sign * d - road.lane
            paint |= (bay > 0) & (np.mod(y, 5.6) < 0.1) & (bay < side.parking) & (y > 0)
            tone[bay > 0] *= 0.9
    paint &= ~crossing
    if road.zebra is not None:
        across = (y > road.zebra) & (y < road.zebra + ZEBRA_DEPTH) & ~crossing
        paint = np.where(across, (np.mod(d, ZEBRA_PERIOD) < ZEBRA_PERIOD / 2) & (beyond < -0.3), paint)
    colour = np.array(road.asphalt, np.float32) * _grey(np.clip(tone, 0.3, 1.8))
    hit = np.flatnonzero(paint)
    worn = np.clip(0.85 + 0.16 * broad[hit] + 0.15 * grain[hit], 0.25, 1)
    colour[hit] += _grey(worn) * (WHITE_LINE - colour[hit])
    return colour


def _roadside(
    road: Road,
    d: np.ndarray,
    y: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    broad: np.ndarray,
    grain: np.ndarray,
    beyond: np.ndarray,
) -> np.ndarray:
    left = d < 0
    past = beyond - KERB_WIDTH - np.where(left, np.float32(road.left.pavement), np.float32(road.right.pavement))
    verge = np.where(left, np.float32(road.left.verge), np.float32(road.right.verge))
    paved = np.where(left, road.left.paved, road.right.paved)
    green = (past > 0) & ((past < verge) | ~paved)
    colour = np.empty((len(d), 3), np.float32)

    hit = np.flatnonzero(~green)
    row, column = y[hit] / road.slab, d[hit] / road.slab
    slab = noise.hashed(np.floor(column).astype(np.int32), np.floor(row).astype(np.int32))
    joint = 0.022 / road.slab
    tone = (1 + 0.06 * broad[hit] + 0.07 * grain[hit]) * (0.90 + 0.2 * slab)
    tone[(column - np.floor(column) < joint) | (row - np.floor(row) < joint)] *= 0.72
    colour[hit] = np.array(road.paving, np.float32) * _grey(tone)

    hit = np.flatnonzero(green)
    tufts = noise.sample(0.8, u[hit], v[hit], 9.0)
    grass = np.array(road.grass, np.float32) * _grey(
        np.clip(1 + 0.30 * tufts + 0.16 * broad[hit] + 0.25 * grain[hit], 0.3, 2.2)
    )
    colour[hit] = grass + _grey(np.clip(0.5 * broad[hit] - 0.55, 0, 0.7)) * (EARTH - grass)

    hit = np.flatnonzero(beyond < KERB_WIDTH)
    stone = 0.30 * (1 + 0.06 * grain[hit])
    stone[np.mod(y[hit], 1.0) < 0.03] *= 0.66  # joints between kerb stones of one metre
    colour[hit] = _grey(stone)
    return colour


def _car(colour: np.ndarray, layer: np.ndarray, uv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Painted slots replace the body's colour, except where the slot is paint itself."""
    column = np.clip((uv[:, 0] * cars.PANEL_COLUMNS).astype(np.int32), 0, cars.PANEL_COLUMNS - 1)
    row = np.clip((uv[:, 1] * cars.PANEL_ROWS).astype(np.int32), 0, cars.PANEL_ROWS - 1)
    page = np.maximum(layer, 0).astype(np.int32)
    slot = cars.panels()[(page * cars.PANEL_ROWS + row) * cars.PANEL_COLUMNS + column]
    slot = np.where(layer < 0, cars.PAINT, slot)
    painted = np.where((slot == cars.PAINT)[:, None], colour, cars.SLOT_COLOURS[slot])
    painted = np.where((slot == cars.SEAM)[:, None], 0.25 * colour, painted)
    gloss = np.full(len(slot), PAINT_GLOSS, np.float32)
    gloss[slot == cars.GLASS] = GLASS_GLOSS
    gloss[(slot == cars.TRIM) | (slot == cars.WELL)] = 0.0
    return painted, gloss


def _roof(colour: np.ndarray, uv: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Courses of tiles along the eaves."""
    fade = np.clip(25 / np.maximum(distance, 1), 0, 1)
    course = np.mod(uv[:, 1], 0.36) / 0.36
    tile = noise.hashed(np.floor(uv[:, 0] / 0.25).astype(np.int32), np.floor(uv[:, 1] / 0.36).astype(np.int32))
    stain = noise.sample(1.2, uv[:, 0], uv[:, 1], 3.0)
    return colour * _grey(np.clip(1 + fade * (0.30 * (tile - 0.5) - 0.45 * (course < 0.15)) + 0.12 * stain, 0.3, 1.6))


def _facade(
    facades: tuple[np.ndarray, np.ndarray],
    layer: np.ndarray,
    uv: np.ndarray,
    rays: np.ndarray,
    normal: np.ndarray,
    distance: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Walls with recessed windows, frames, shutters, doors, shop fronts, plinths and courses of bricks."""
    if len(layer) == 0:
        return np.zeros((0, 3), np.float32), np.zeros(0, np.float32)
    table, colours = facades
    # Rows of the transposed table are contiguous per quantity, which keeps all that follows fast.
    storey, pitch, width, tall, sill, plinth, shutters, shop, bricks, eaves, cornice = table.T[:, layer]
    u, v = np.ascontiguousarray(uv.T)
    floor, bay = np.floor(v / storey), np.floor(u / pitch)
    up, along = v - floor * storey, u - (bay + 0.5) * pitch
    floor_key, bay_key = floor.astype(np.int32), bay.astype(np.int32)
    luck = noise.hashed(floor_key, bay_key, layer.astype(np.int32))
    ground_floor = floor_key == 0
    as_shop = ground_floor & (shop > 0)
    door = ground_floor & ~as_shop & (noise.hashed(bay_key, layer.astype(np.int32)) < 0.16)
    half = np.where(as_shop, 0.46 * pitch, width / 2)
    low = np.where(as_shop, 0.35, np.where(door, 0.05, sill))
    high = np.where(as_shop, np.minimum(2.75, storey - 0.4), np.where(door, 2.15, sill + tall))
    half = np.where(door, 0.5, half)
    glazed = (floor_key >= 0) & ((floor + 1) * storey < eaves + 0.25)
    glazed |= (eaves - floor * storey > high + 0.15) & (floor_key >= 0) & (v < eaves)
    inside = glazed & (np.abs(along) < half) & (up > low) & (up < high)

    # The pane lies RECESS behind the wall: where the ray meets it is shifted along the wall.
    tangent = np.stack([-normal[:, 1], normal[:, 0]], 1)
    depth = RECESS / np.maximum(-np.einsum("ij,ij->i", rays, normal), LEAST_COSINE)
    pane_along = along - np.einsum("ij,ij->i", rays[:, :2], tangent) * depth
    pane_up = up + rays[:, 2] * depth
    on_pane = inside & (np.abs(pane_along) < half) & (pane_up > low) & (pane_up < high)
    border = np.minimum(half - np.abs(pane_along), np.minimum(pane_up - low, high - pane_up))
    bars = ~as_shop & ((np.abs(pane_along) < 0.035) | (np.abs(pane_up - low - 0.68 * (high - low)) < 0.03))
    framed = on_pane & ((border < 0.07) | bars)
    curtain = np.where(luck < 0.30, 0.22 * np.clip(1.3 - 1.1 * np.abs(pane_along) / half, 0.2, 1), 0.02)
    lowered = pane_up > high - (high - low) * np.where(luck > 0.82, 0.5 + 0.5 * (luck - 0.82) / 0.18, 0)
    behind = np.where(lowered, 0.35, curtain)

    colour = colours[layer, WALL_COLOUR]
    tone = 1 + 0.07 * noise.sample(1.4, u + 37.0 * layer, v, 4.0)
    tone *= np.clip(0.72 + 0.28 * (eaves - v) / 0.7, 0.6, 1)  # in the lee of the eaves
    rough = np.flatnonzero((bricks > 0) & ~inside & (v >= plinth))
    tone[rough] *= _courses(u[rough], v[rough], bricks[rough], np.clip(22 / np.maximum(distance[rough], 1), 0, 1))
    ornate = (cornice > 0) & (floor_key > 0) & (np.abs(up - storey * 0.02) < 0.09)
    close = glazed & ~inside & (np.abs(along) < half + 0.14)
    ornate |= close & (cornice > 0) & (up > low - 0.14) & (up < high + 0.16)
    hit = np.flatnonzero(ornate)
    colour[hit] = np.minimum(1.22 * colour[hit] + 0.05, 0.75)
    beside = glazed & ~inside & ~as_shop & ~door
    colour[np.flatnonzero(beside & (np.abs(along) < half + 0.08) & (up > low - 0.07) & (up <= low))] = 0.32
    hit = np.flatnonzero(v < plinth)
    colour[hit] = colours[layer[hit], PLINTH_COLOUR]
    hit = np.flatnonzero(
        beside & (shutters > 0) & (np.abs(along) < 1.95 * half) & (up > low) & (up < high) & (np.abs(along) > half)
    )
    slats = np.where(distance[hit] < TEXTURE_FADE, 0.75 + 0.35 * (np.mod(up[hit], 0.09) < 0.06), 0.98)
    colour[hit] = colours[layer[hit], SHUTTER_COLOUR] * _grey(slats)
    colour *= _grey(tone)
    hit = np.flatnonzero(inside)
    colour[hit] *= 0.42  # the reveals of windows lie in shade
    hit = np.flatnonzero(on_pane)
    colour[hit] = behind[hit, None]
    hit = np.flatnonzero(framed)
    colour[hit] = colours[layer[hit], FRAME_COLOUR]
    hit = np.flatnonzero(on_pane & door)
    colour[hit] = 0.9 * colours[layer[hit], SHUTTER_COLOUR]
    gloss = np.where(on_pane & ~framed & ~door, np.float32(WINDOW_GLOSS), np.float32(0))
    hit = np.flatnonzero(as_shop & (up > high + 0.05) & (up < storey - 0.05))
    letters = 0.7 + 0.6 * (noise.sample(0.2, u[hit], v[hit], 5.0) > 1.0)
    house = layer[hit].astype(np.int32)
    tint = [0.12 + 0.5 * noise.hashed(house, np.full_like(house, k)) ** 2 for k in (1, 2, 3)]
    colour[hit] = np.stack(tint, 1) * _grey(letters)
    return colour, gloss


def _courses(u: np.ndarray, v: np.ndarray, contrast: np.ndarray, fade: np.ndarray) -> np.ndarray:
    """Factor (N,) of bricks or stones in courses at u, v (N,), m."""
    row = np.floor(v / COURSE)
    shifted = u / BRICK_LENGTH + 0.5 * np.mod(row, 2)
    brick = noise.hashed(row.astype(np.int32), np.floor(shifted).astype(np.int32))
    mortar = (v - row * COURSE < 0.02) | (shifted - np.floor(shifted) < 0.05)
    return 1 + fade * contrast * (1.6 * (brick - 0.5) + 1.2 * mortar)
