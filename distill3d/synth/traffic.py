"""Cars, pedestrians and cyclists: who is in the street and where."""

from __future__ import annotations

import numpy as np

from . import cars, people
from .placing import CAR, MATTE, METAL, Builder, Place, StreetObject, standing
from .road import Road
from .settings import StreetConfig

CAR_DETAIL, PERSON_DETAIL = 26.0, 24.0  # px of height above which the finer mesh is used
CAR_MATERIALS = [CAR] * cars.SLOT_COUNT
CAR_MATERIALS[cars.TYRE] = MATTE
CAR_MATERIALS[cars.RIM] = METAL
PERSON_MATERIALS = [MATTE] * people.SLOT_COUNT

FROM_KERB = 1.08  # m from the kerb to the middle of a parked car
PARKED_GAP, DRIVING_GAP, PERSON_GAP = 0.35, 0.6, 0.15  # m kept free around things
KEEP_CLEAR = 2.5  # m before and after side streets without parked cars
FRONT_GAP = 8.0  # m to the car ahead in the camera's lane
WHITE_VAN_SHARE, WHITE = 0.5, np.array([0.70, 0.70, 0.68])


def _driving(rng: np.random.Generator, street: Road, low: float, high: float) -> Place:
    y, onwards = float(rng.uniform(low, high)), bool(rng.random() < 0.5)
    d = street.lane * (0.5 if onwards else -0.5) + float(rng.normal(0, 0.18))
    return Place("driving", d, y, street.traffic_heading(y, onwards) + float(rng.normal(0, 0.025)))


def _parked_rows(rng: np.random.Generator, street: Road, near: float, far: float) -> list[Place]:
    rows = []
    for sign, side, half in ((-1.0, street.left, street.half_left), (1.0, street.right, street.half_right)):
        y = near + rng.uniform(-1.0, 3.0)
        density = rng.uniform(0.35, 0.95) if side.parking else rng.uniform(0.15, 0.5)
        while y < far:
            if rng.random() < density and not street.in_junction(y, KEEP_CLEAR):
                onwards = (sign > 0) == (rng.random() < 0.85)  # most park in the direction of their lane
                d = sign * (half - FROM_KERB + float(rng.normal(0, 0.08)))
                rows.append(Place("parked", d, y, street.traffic_heading(y, onwards) + float(rng.normal(0, 0.02))))
            y += rng.uniform(4.9, 6.6)
    order = rng.permutation(len(rows))
    return [rows[k] for k in order]


def _car_places(rng: np.random.Generator, street: Road, config: StreetConfig, count: int) -> list[Place]:
    """Places for `count` cars and spares, in the order in which they are tried."""
    near, far = config.distance
    any_yaw = int(rng.binomial(count, config.random_yaw_share))
    driving = int(rng.binomial(count - any_yaw, rng.uniform(0.12, 0.5)))
    turned = []
    for _ in range(any_yaw):
        d = float(rng.uniform(-street.half_left - 0.8, street.half_right + 0.8))
        turned.append(Place("any", d, float(rng.uniform(near + 2, far)), float(rng.uniform(-np.pi, np.pi))))
    moving = [_driving(rng, street, near + 3, far) for _ in range(driving)]
    spares = [_driving(rng, street, near + 3, far) for _ in range(30)]
    return [*turned, *moving, *_parked_rows(rng, street, near, far), *spares]


def add_cars(rng: np.random.Generator, build: Builder, config: StreetConfig) -> None:
    """Vans and cars, parked, driving, and some at any heading."""
    vans = int(rng.integers(config.vans[0], config.vans[1] + 1))
    count = int(rng.integers(config.cars[0], config.cars[1] + 1)) + vans
    placed = 0
    for place in _car_places(rng, build.street, config, count):
        if placed == count:
            break
        is_van = placed < vans
        style, size = cars.random_van(rng) if is_van else cars.random_car(rng, config.car_bodies)
        position = build.street.spot(place.d, place.y)
        x, y = float(position[0]), place.y
        in_front = place.kind == "driving" and place.d > 0 and y < FRONT_GAP
        gap = PARKED_GAP if place.kind == "parked" else DRIVING_GAP
        if in_front or not build.view.holds(x, y) or not build.claim(place, x, size, gap):
            continue
        placed += 1
        mesh = cars.template(style, build.view.detailed(x, y, 1.6, CAR_DETAIL))
        axes = standing(place.heading, build.street.normal(x, y))
        palette = cars.SLOT_COLOURS.copy()
        palette[cars.PAINT] = WHITE if is_van and rng.random() < WHITE_VAN_SHARE else cars.random_paint(rng)
        palette[cars.RIM] *= rng.choice((0.25, 1.0, 1.2))
        build.add_object(StreetObject("Van" if is_van else "Car", size, axes, position, mesh), palette, CAR_MATERIALS)


def add_long(rng: np.random.Generator, build: Builder, config: StreetConfig) -> None:
    """Long vehicles, on the road."""
    bodies = config.bodies
    if not bodies:
        return
    near, far = config.distance
    wanted = int(rng.integers(config.large_count[0], config.large_count[1] + 1))
    for _ in range(12 * wanted):  # tries; a full street gets fewer
        if wanted == 0:
            return
        name = str(rng.choice(list(bodies)))
        style, size = cars.random_long(rng, bodies[name])
        place = _driving(rng, build.street, near + size[0], max(far, near + size[0] + 1))
        position = build.street.spot(place.d, place.y)
        x, y = float(position[0]), place.y
        if not build.view.holds(x, y) or not build.claim(place, x, size, DRIVING_GAP):
            continue
        wanted -= 1
        mesh = cars.template(style, build.view.detailed(x, y, size[2], CAR_DETAIL))
        palette = cars.SLOT_COLOURS.copy()
        palette[cars.PAINT] = cars.random_paint(rng)
        axes = standing(place.heading, build.street.normal(x, y))
        build.add_object(StreetObject(name, size, axes, position, mesh), palette, CAR_MATERIALS)


def _pedestrian_place(rng: np.random.Generator, street: Road, y: float) -> Place:
    """On the pavement, or crossing the road, where there is a zebra most often there."""
    sign = float(rng.choice((-1.0, 1.0)))
    side, half = (street.left, street.half_left) if sign < 0 else (street.right, street.half_right)
    heading = street.traffic_heading(y, bool(rng.random() < 0.5)) + float(rng.normal(0, 0.25))
    if rng.random() < 0.75:
        return Place(
            "pavement", sign * (half + 0.4 + rng.uniform(0, max(side.pavement + side.verge - 0.3, 0.3))), y, heading
        )
    if street.zebra is not None and rng.random() < 0.7:
        y = street.zebra + float(rng.uniform(0.4, 2.8))
    return Place("crossing", float(rng.uniform(-half, half)), y, heading + np.pi / 2)


def _cyclist_place(rng: np.random.Generator, street: Road, y: float) -> Place:
    """Along the edge of the lane, or on the pavement."""
    sign = float(rng.choice((-1.0, 1.0)))
    if rng.random() < 0.75:
        d = sign * (street.lane - 0.75 + float(rng.normal(0, 0.25)))
        return Place("cycling", d, y, street.traffic_heading(y, sign > 0) + float(rng.normal(0, 0.08)))
    half = street.half_left if sign < 0 else street.half_right
    heading = (
        float(rng.uniform(-np.pi, np.pi)) if rng.random() < 0.3 else street.traffic_heading(y, bool(rng.random() < 0.5))
    )
    return Place("resting", sign * (half + 0.5 + float(rng.uniform(0, 1.2))), y, heading)


def add_people(rng: np.random.Generator, build: Builder, config: StreetConfig) -> None:
    """Pedestrians and cyclists."""
    for kind, span in (("Pedestrian", config.pedestrians), ("Cyclist", config.cyclists)):
        wanted = int(rng.integers(span[0], span[1] + 1))
        for _ in range(12 * wanted):  # tries; a full street gets fewer people
            if wanted == 0:
                break
            y = build.view.some_y(rng)
            place = (_pedestrian_place if kind == "Pedestrian" else _cyclist_place)(rng, build.street, y)
            position = build.street.spot(place.d, place.y)
            x, y = float(position[0]), place.y
            detailed = build.view.detailed(x, y, 1.7, PERSON_DETAIL)
            mesh, size = (people.random_pedestrian if kind == "Pedestrian" else people.random_cyclist)(rng, detailed)
            free = build.view.holds(x, y) and build.claim(place, x, size, PERSON_GAP)
            if not free:
                continue
            wanted -= 1
            up = np.array([0.0, 0.0, 1.0]) if kind == "Pedestrian" else build.street.normal(x, y, 0.5)
            thing = StreetObject(kind, size, standing(place.heading, up), position, mesh)
            build.add_object(thing, people.random_palette(rng), PERSON_MATERIALS)
