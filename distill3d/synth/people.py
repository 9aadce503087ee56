"""Pedestrians and cyclists of rounded limbs, in many poses.

Templates are unit boxes (x, y in [-0.5, 0.5], z in [0, 1]; x forward), cached per pose; the size drawn for a person
picks the pose whose natural proportions fit it best, so that little stretching is left.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from . import shapes

SKIN, HAIR, TOP, TROUSERS, SHOES, BAG, BIKE, TYRE = range(8)
SLOT_COUNT = 8

# Lengths of an adult of 1.75 m, metres.
HIP, SHOULDER, HEAD = 0.93, 1.43, 1.635
THIGH, SHIN, UPPER_ARM, FOREARM = 0.44, 0.42, 0.29, 0.26
HIP_HALF, SHOULDER_HALF = 0.090, 0.182
WHEEL_RADIUS, HALF_WHEELBASE = 0.34, 0.52

# Poses: stride (rad, largest angle of the legs), spread of the arms (rad), outfit.
STRIDES = (0.06, 0.22, 0.36, 0.50, 0.62)
SPREADS = (0.10, 0.32, 0.55)
OUTFITS = ("plain", "coat", "skirt", "backpack")
LEANS = (0.30, 0.55, 0.80)  # rad, the torso of a cyclist
CRANKS = (0.3, 1.6)  # rad, the pedals


def _polar(angle: float, length: float) -> np.ndarray:
    """A limb's offset: hanging down at angle 0, forward at positive angles."""
    return np.array([np.sin(angle) * length, 0.0, -np.cos(angle) * length])


def _head(at: np.ndarray, sides: int, long_hair: bool) -> list[shapes.Mesh]:
    x, y, z = at
    parts = [
        shapes.ellipsoid((x, y, z), (0.098, 0.078, 0.122), sides, SKIN),
        shapes.ellipsoid((x - 0.022, y, z + 0.032), (0.100, 0.088, 0.108), sides, HAIR),
        shapes.capsule((x - 0.02, y, z - 0.20), (x - 0.005, y, z - 0.08), 0.058, 0.052, sides, SKIN),
    ]
    if long_hair:
        parts.append(shapes.ellipsoid((x - 0.06, y, z - 0.08), (0.055, 0.09, 0.16), sides, HAIR))
    return parts


def _torso(base: np.ndarray, lean: float, sides: int, hem: float) -> shapes.Mesh:
    """Trunk from the hips (3,) upwards, leaning forward by `lean` rad; `hem` is how far the top hangs down, m."""
    rings = []
    profile = (
        (-hem, 0.122 + 0.15 * max(hem - 0.1, 0), 0.178 + 0.16 * max(hem - 0.1, 0)),
        (0.03, 0.128, 0.178),
        (0.17, 0.105, 0.150),
        (0.32, 0.122, 0.172),
        (0.43, 0.112, 0.186),
        (0.485, 0.092, 0.160),
        (0.53, 0.066, 0.105),
        (0.57, 0.050, 0.056),
    )
    for up, rx, ry in profile:
        rings.append(((base[0] + np.sin(lean) * up, base[1], base[2] + np.cos(lean) * up), rx, ry))
    return shapes.loft(rings, sides, TOP)


@cache
def pedestrian(stride: int, spread: int, outfit: int, detailed: bool) -> tuple[shapes.Mesh, np.ndarray]:
    """Unit-box mesh and natural extent (length, width, height), m, of a pose.

    stride, spread, outfit: indices into STRIDES, SPREADS, OUTFITS.
    """
    sides = 8 if detailed else 4
    angle, arm_spread, dress = STRIDES[stride], SPREADS[spread], OUTFITS[outfit]
    parts = []
    for sign in (-1.0, 1.0):
        lead = angle * sign  # the right leg is behind
        bend = 0.10 + (0.55 * angle if lead < 0 else 0.0)
        hip = np.array([0.0, HIP_HALF * sign, HIP])
        knee = hip + _polar(lead + 0.35 * bend, THIGH)
        ankle = knee + _polar(lead - bend, SHIN)
        toe = ankle + np.array([0.17, 0.015 * sign, -0.035 + (0.05 * angle if lead > 0 else -0.06 * angle)])
        cloth = SKIN if dress == "skirt" else TROUSERS
        parts += [
            shapes.capsule(hip, knee, 0.082, 0.058, sides, cloth),
            shapes.capsule(knee, ankle, 0.060, 0.042, sides, cloth),
            shapes.capsule(ankle + np.array((-0.03, 0, -0.03)), toe, 0.046, 0.036, sides, SHOES),
        ]
        swing = -0.75 * lead
        shoulder = np.array([0.0, SHOULDER_HALF * sign, SHOULDER - 0.045])
        outward = np.array([0.0, np.sin(arm_spread) * sign, 0.0])
        elbow = shoulder + _polar(swing - 0.05, UPPER_ARM) * np.cos(arm_spread) + outward * UPPER_ARM
        hand = elbow + _polar(swing + 0.35, FOREARM) * np.cos(0.6 * arm_spread) + 0.6 * outward * FOREARM
        parts += [
            shapes.capsule(shoulder, elbow, 0.050, 0.042, sides, TOP),
            shapes.capsule(elbow, hand, 0.041, 0.031, sides, TOP),
            shapes.ellipsoid(hand + np.array((0.02, 0, -0.06)), (0.035, 0.026, 0.062), sides, SKIN),
        ]
    hem = {"coat": 0.36, "skirt": 0.04}.get(dress, 0.08)
    parts.append(_torso(np.array([0.0, 0.0, HIP]), 0.04, 10 if detailed else 6, hem))
    if dress == "skirt":
        rings = [((0, 0, z), rx, ry) for z, rx, ry in ((0.52, 0.235, 0.235), (0.75, 0.17, 0.205), (0.98, 0.13, 0.172))]
        parts.append(shapes.loft(rings, 10 if detailed else 6, TROUSERS))
    if dress == "backpack":
        parts.append(shapes.ellipsoid((-0.17, 0.0, 1.24), (0.10, 0.15, 0.22), sides, BAG))
    parts += _head(np.array([0.035, 0.0, HEAD]), sides, long_hair=dress in ("skirt", "coat"))
    return shapes.to_unit_box(shapes.join(parts))


def _knee(hip: np.ndarray, foot: np.ndarray) -> np.ndarray:
    """Where the knee goes between hip and foot (3,), bent forward."""
    reach = foot - hip
    distance = min(float(np.linalg.norm(reach)), 0.999 * (THIGH + SHIN))
    share = (THIGH**2 - SHIN**2 + distance**2) / (2 * distance)
    height = np.sqrt(max(THIGH**2 - share**2, 0.0))
    along = reach / np.linalg.norm(reach)
    forward = np.array([-along[2], 0.0, along[0]])
    return hip + share * along + height * forward


@cache
def cyclist(lean: int, crank: int, detailed: bool) -> tuple[shapes.Mesh, np.ndarray]:
    """Unit-box mesh and natural extent (length, width, height), m, of a rider: indices into LEANS and CRANKS."""
    sides = 8 if detailed else 4
    turn = np.linspace(0, 2 * np.pi, 17 if detailed else 11)
    parts = []
    for x in (-HALF_WHEELBASE, HALF_WHEELBASE):
        ring = np.stack([x + WHEEL_RADIUS * np.cos(turn), 0 * turn, WHEEL_RADIUS * (1 + np.sin(turn))], -1)
        inner = np.stack(
            [x + 0.87 * WHEEL_RADIUS * np.cos(turn), 0 * turn, WHEEL_RADIUS * (1 + 0.87 * np.sin(turn))], -1
        )
        flank, tread = np.array((0, 0.018, 0)), np.array((0, 0.012, 0))
        band = np.stack([inner + flank, ring + tread, ring - tread, inner - flank])
        parts.append(shapes.soup(shapes.grid_triangles(band), slot=TYRE))
        if detailed:
            for spoke in np.arange(4) * np.pi / 4:
                out = np.array([np.cos(spoke), 0.0, np.sin(spoke)]) * WHEEL_RADIUS * 0.9
                hub = np.array([x, 0.0, WHEEL_RADIUS])
                parts.append(
                    shapes.tube(np.stack([hub - out, hub + out]), np.array([0.004, 0.004]), 3, BIKE, capped=False)
                )
    bottom, saddle, head_tube = np.array([-0.06, 0, 0.29]), np.array([-0.20, 0, 0.93]), np.array([0.36, 0, 0.86])
    rear, front, bar = np.array([-0.52, 0, 0.34]), np.array([0.52, 0, 0.34]), np.array([0.33, 0, 1.04])
    for a, b in ((bottom, saddle), (bottom, head_tube), (saddle * 0.85 + bottom * 0.15, head_tube), (bottom, rear),
                 (saddle * 0.8 + bottom * 0.2, rear), (front, head_tube), (head_tube, bar)):  # fmt: skip
        parts.append(shapes.tube(np.stack([a, b]), np.array([0.019, 0.019]), 4, BIKE, capped=False))
    parts.append(shapes.ellipsoid(saddle + np.array((0, 0, 0.03)), (0.13, 0.07, 0.035), sides, TYRE))
    parts.append(shapes.tube(np.array([[0.33, -0.27, 1.05], [0.33, 0.27, 1.05]]), np.array([0.017, 0.017]), 4, BIKE))
    lean_angle, crank_angle = LEANS[lean], CRANKS[crank]
    hips = saddle + np.array([0.0, 0.0, 0.08])
    shoulders = hips + np.array([np.sin(lean_angle), 0.0, np.cos(lean_angle)]) * 0.47
    for sign in (-1.0, 1.0):
        pedal = bottom + 0.17 * np.array([np.cos(crank_angle) * sign, 0.0, np.sin(crank_angle) * sign])
        foot = pedal + np.array([-0.03, 0.11 * sign, 0.09])
        hip = hips + np.array([0.0, HIP_HALF * sign, 0.0])
        knee = _knee(hip, foot)
        shoulder = shoulders + np.array([0.0, SHOULDER_HALF * sign, 0.0])
        hand = np.array([0.32, 0.23 * sign, 1.08])
        elbow = (shoulder + hand) / 2 + np.array([-0.02, 0.06 * sign, -0.07])
        parts += [
            shapes.capsule(hip, knee, 0.082, 0.060, sides, TROUSERS),
            shapes.capsule(knee, foot, 0.060, 0.042, sides, TROUSERS if lean != 2 else SKIN),
            shapes.capsule(
                foot + np.array((-0.04, 0, -0.03)), foot + np.array((0.15, 0, -0.05)), 0.046, 0.036, sides, SHOES
            ),
            shapes.capsule(shoulder, elbow, 0.050, 0.042, sides, TOP),
            shapes.capsule(elbow, hand, 0.041, 0.033, sides, TOP if lean == 0 else SKIN),
        ]
    parts.append(_torso(hips - (0, 0, 0.05), lean_angle, 10 if detailed else 6, 0.06))
    parts += _head(shoulders + np.array([0.07, 0.0, 0.21]), sides, long_hair=crank == 1 and lean == 0)
    return shapes.to_unit_box(shapes.join(parts))


CLOTHES = np.array(
    [
        [0.02, 0.02, 0.025], [0.03, 0.04, 0.09], [0.35, 0.34, 0.32], [0.62, 0.61, 0.58], [0.30, 0.03, 0.03],
        [0.05, 0.13, 0.28], [0.10, 0.16, 0.07], [0.42, 0.28, 0.06], [0.09, 0.075, 0.06], [0.12, 0.12, 0.13],
        [0.40, 0.13, 0.18], [0.08, 0.25, 0.25],
    ],
    np.float32,
)  # fmt: skip
LEGWEAR = np.array(
    [
        [0.02, 0.02, 0.024],
        [0.035, 0.05, 0.10],
        [0.07, 0.10, 0.17],
        [0.17, 0.14, 0.10],
        [0.10, 0.10, 0.11],
        [0.22, 0.21, 0.19],
    ],
    np.float32,
)
SKINS = np.array([[0.50, 0.31, 0.22], [0.42, 0.25, 0.17], [0.28, 0.15, 0.09], [0.12, 0.06, 0.04]], np.float32)
HAIRS = np.array([[0.015, 0.012, 0.01], [0.06, 0.035, 0.018], [0.20, 0.13, 0.06], [0.25, 0.24, 0.23]], np.float32)


def random_palette(rng: np.random.Generator) -> np.ndarray:
    """Colours (SLOT_COUNT, 3) of one person, linear albedo."""
    colours = np.empty((SLOT_COUNT, 3), np.float32)
    colours[SKIN] = SKINS[rng.choice(4, p=(0.45, 0.35, 0.12, 0.08))]
    colours[HAIR] = HAIRS[rng.integers(4)]
    colours[TOP] = CLOTHES[rng.integers(len(CLOTHES))]
    colours[TROUSERS] = LEGWEAR[rng.integers(len(LEGWEAR))]
    colours[SHOES] = (0.03, 0.028, 0.026) if rng.random() < 0.7 else (0.5, 0.5, 0.48)
    colours[BAG] = CLOTHES[rng.integers(len(CLOTHES))]
    colours[BIKE] = CLOTHES[rng.integers(len(CLOTHES))]
    colours[TYRE] = (0.018, 0.018, 0.018)
    colours[[TOP, TROUSERS, BAG, BIKE]] *= rng.uniform(0.8, 1.2, (4, 1))
    return colours


PEDESTRIAN_SIZE = ((1.76, 0.66, 0.84), (0.11, 0.14, 0.23))  # KITTI: mean and sd of height, width, length, m
CYCLIST_SIZE = ((1.74, 0.60, 1.76), (0.10, 0.12, 0.18))


def _random_size(rng: np.random.Generator, moments: tuple[tuple[float, ...], tuple[float, ...]]) -> np.ndarray:
    mean, sd = np.array(moments[0]), np.array(moments[1])
    height, width, length = mean + sd * np.clip(rng.standard_normal(3), -2, 2)
    return np.array([length, width, height])


def _closest(extents: list[np.ndarray], size: np.ndarray) -> int:
    """The pose that needs the least stretching to become size (length, width, height)."""
    shape = np.log(np.array(extents)) - np.log(size)
    shape -= shape[:, 2:]
    return int(np.abs(shape).sum(1).argmin())


@cache
def _pedestrian_extents(outfit: int) -> list[np.ndarray]:
    return [pedestrian(a, b, outfit, False)[1] for a in range(len(STRIDES)) for b in range(len(SPREADS))]


def random_pedestrian(rng: np.random.Generator, detailed: bool) -> tuple[shapes.Mesh, np.ndarray]:
    """Unit-box mesh and size (length, width, height), m, of a random pedestrian."""
    size = _random_size(rng, PEDESTRIAN_SIZE)
    outfit = int(rng.choice(len(OUTFITS), p=(0.5, 0.2, 0.12, 0.18)))
    pose = _closest(_pedestrian_extents(outfit), size)
    return pedestrian(pose // len(SPREADS), pose % len(SPREADS), outfit, detailed)[0], size


def random_cyclist(rng: np.random.Generator, detailed: bool) -> tuple[shapes.Mesh, np.ndarray]:
    """Unit-box mesh and size (length, width, height), m, of a random cyclist."""
    size = _random_size(rng, CYCLIST_SIZE)
    return cyclist(int(rng.integers(len(LEANS))), int(rng.integers(len(CRANKS))), detailed)[0], size
