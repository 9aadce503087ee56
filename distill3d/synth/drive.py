"""A drive along a street: everything may move, and the vehicle that looks around is somewhere in the middle.

World frame as in scene.py. Things keep their speed and follow the road; ground that one will take at any time of the
drive is given to no other, so that nobody runs into anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import road, roadside
from .light import random_light
from .mounts import NUSCENES_FOCAL
from .placing import SPOT_GAP, Builder, Footprints, Place, StreetObject, View, standing
from .road import Road
from .scene import Scene, assembled, contact_shade, furnish, random_sides
from .sensors import AddedCaster, RayCaster
from .settings import NUSCENES_WIDTH, SurroundStreetConfig
from .shapes import Mesh, unit

UP = np.array([0.0, 0.0, 1.0])
CLAIM_STEP = 0.25  # s between the moments at which ground is claimed: less than a car's length of way
WALKING, CYCLING = (0.8, 1.7), (3.0, 6.0)  # m/s
STANDING_PEOPLE = 0.2  # share of pedestrians that stand
SPEED_SPREAD = 0.1  # of each car about the speed of its side of the road


@dataclass(frozen=True)
class Motion:
    """Way of one thing at constant speed in road coordinates."""

    d: float
    """Signed distance from the centre line at time 0, m, right positive."""
    y: float
    """Place along the road at time 0, m."""
    turned: float
    """Heading relative to that of the road, rad, left positive."""
    speed: float = 0.0
    """m/s along the heading."""
    doing: str = "standing"
    """What the thing is doing where it is: the kind of its Place."""

    def at(self, street: Road, time: float) -> tuple[np.ndarray, float]:
        """Position on the ground (3,), m, and heading, rad from the world's x axis, at a time, s."""
        y, d = self.y, self.d
        if self.speed != 0:
            y += self.speed * np.cos(self.turned) * np.cos(street.bearing(self.y)) * time
            d -= self.speed * np.sin(self.turned) * time
        return street.spot(d, y), street.traffic_heading(y, True) + self.turned


@dataclass(frozen=True)
class AllRoundView(View):
    """A view to all sides from a way along y."""

    way: tuple[float, float] = (0.0, 0.0)
    """Lowest and highest y of the eye, m."""

    def holds(self, x: float, y: float) -> bool:
        return self.distance[0] <= y <= self.distance[1]

    def some_y(self, rng: np.random.Generator) -> float:
        return float(rng.uniform(*self.distance))

    def nears(self, x: float, y: float, margin: float) -> bool:
        return True

    def detailed(self, x: float, y: float, extent: float, pixels: float) -> bool:
        return super().detailed(x, y - min(max(y, self.way[0]), self.way[1]), extent, pixels)


class MovingBuilder(Builder):
    """A builder that sets things going and keeps their ways apart."""

    def __init__(
        self, street: Road, view: View, duration: float, flow: tuple[float, float], rng: np.random.Generator
    ) -> None:
        """flow: speed of traffic with the vehicle, and against it, m/s; rng: for the speeds."""
        super().__init__(street, view)
        self.motions: list[Motion] = []
        self._times = np.arange(0.0, duration + CLAIM_STEP, CLAIM_STEP)
        self._taken_at = [Footprints() for _ in self._times]
        self._flow, self._rng = flow, rng
        self._moving: list[tuple[Mesh, np.ndarray, Sequence[int], int]] = []

    def claim(self, place: Place, x: float, size: np.ndarray, gap: float) -> bool:
        motion = self._some_motion(place)
        free = self.claim_way(motion, size[0], size[1], gap)
        if free:
            self.motions.append(motion)  # of the object that is added next
        return free

    def claim_spot(self, position: np.ndarray, diameter: float) -> bool:
        y = float(position[1])
        spot = Motion(self.street.distance_from_centre(float(position[0]), y), y, 0.0)
        return self.claim_way(spot, diameter, diameter, SPOT_GAP)

    def claim_way(self, motion: Motion, length: float, width: float, gap: float) -> bool:
        """Take the ground of a moving thing, gap m kept free about it, if it is free at all times."""
        ways = (motion.at(self.street, t) for t in self._times)
        discs = [Footprints.discs(spot[0], spot[1], heading, length, width) for spot, heading in ways]
        if not all(taken.free(d, gap) for taken, d in zip(self._taken_at, discs, strict=True)):
            return False
        for taken, ground in zip(self._taken_at, discs, strict=True):
            taken.take(ground)
        return True

    def _some_motion(self, place: Place) -> Motion:
        """What a thing at a place does. Those that move head along the road or straight across it."""
        turned = place.heading - self.street.traffic_heading(place.y, True)
        turned = float(np.arctan2(np.sin(turned), np.cos(turned)))
        onwards, speed, rng = abs(turned) < np.pi / 2, 0.0, self._rng
        if place.kind == "driving":
            speed = self._flow[0 if onwards else 1] * rng.uniform(1 - SPEED_SPREAD, 1 + SPEED_SPREAD)
        elif place.kind == "cycling":
            speed = rng.uniform(*CYCLING)
        elif place.kind in ("pavement", "crossing") and rng.random() >= STANDING_PEOPLE:
            speed = rng.uniform(*WALKING)
        if speed > 0:
            turned = float(np.round(turned / (np.pi / 2)) * (np.pi / 2))
        return Motion(place.d, place.y, turned, float(speed), place.kind)

    def add_object(self, thing: StreetObject, palette: np.ndarray, materials: Sequence[int]) -> None:
        if self.motions[-1].speed == 0:
            super().add_object(thing, palette, materials)
            return
        self._moving.append((thing.mesh, palette, materials, len(self.objects)))
        self.objects.append(thing)

    def add_moving(self) -> int:
        """Put what moves behind all other triangles, once everything is placed; returns the number of the others."""
        first = sum(len(mesh) for mesh in self.meshes)
        for mesh, palette, materials, index in self._moving:
            thing = self.objects[index]
            self.add(mesh, thing.matrix, thing.position, palette, materials, index)
        return first


@dataclass(frozen=True)
class Drive:
    """A street and all ways along it during one scene."""

    scene: Scene
    """At time 0."""
    still: RayCaster
    """The triangles of `scene` below `first_moving`; the others move."""
    first_moving: int
    motions: tuple[Motion, ...]
    """Of the scene's objects."""
    ego: Motion
    """Of the vehicle's origin, the middle of its rear axle on the ground."""
    description: str

    def ego_pose(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Rotation (3, 3), vehicle (x ahead, y left, z up) to world, and position (3,), m, at a time, s."""
        position, heading = self.ego.at(self.scene.road, time)
        return standing(heading, UP), position * (1, 1, 0)

    def objects_at(self, time: float) -> tuple[StreetObject, ...]:
        """The objects where they are at a time, s, level as nuScenes' boxes are."""
        things = []
        for thing, motion in zip(self.scene.objects, self.motions, strict=True):
            position, heading = motion.at(self.scene.road, time)
            things.append(replace(thing, axes=standing(heading, UP), position=position))
        return tuple(things)

    def at(self, time: float) -> tuple[Scene, RayCaster]:
        """The scene at a time, s, and what casts rays into it."""
        objects = self.objects_at(time)
        low = np.floor(self.ego.at(self.scene.road, time)[0][:2] - CONTACT_REACH)
        area = (low[0], low[0] + 2 * CONTACT_REACH[0], low[1], low[1] + 2 * CONTACT_REACH[1])
        scene = replace(self.scene, objects=objects, contact=contact_shade(objects, area))
        moved = [
            thing.mesh.moved(thing.matrix, thing.position)
            for thing, motion in zip(objects, self.motions, strict=True)
            if motion.speed != 0
        ]
        if not moved:
            return scene, self.still
        corners, normals = (
            np.concatenate([getattr(self.scene, name)[: self.first_moving], *(getattr(m, name) for m in moved)])
            for name in ("corners", "normals")
        )
        flat = unit(normals[self.first_moving :, 0])
        flat = np.concatenate([self.scene.flat_normals[: self.first_moving], flat])
        caster = AddedCaster(self.still, self.first_moving, corners[self.first_moving :])
        return replace(scene, corners=corners, normals=normals, flat_normals=flat), caster


CONTACT_REACH = (30.0, 60.0)  # m about the vehicle within which things shade the ground: across the road and along it
START = (50.0, 58.0)  # m along the street where the vehicle starts: as much of it lies behind as is ever seen
EGO_AHEAD = 1.3  # m from the rear axle to the middle of the vehicle
EGO_ROOM = (12.0, 2.0)  # m, length and width of the ground about the vehicle that others keep clear of
GROUND_FROM, BACKDROP_BEHIND = -150.0, (-90.0, -45.0)  # m along the street
NO_WAVE = (0.0, 50.0, 0.0)  # amplitude, length, phase
JUNCTION_SHIFT = (-6.0, 60.0)  # m: side streets lie before, at or behind the vehicle


def random_drive(rng: np.random.Generator, motion_rng: np.random.Generator, config: SurroundStreetConfig) -> Drive:
    """A street with its traffic, drawn from rng, and all speeds, drawn from motion_rng."""
    sides = random_sides(rng)
    street = _level(rng, road.random_road(rng, (sides[0] == "urban", sides[1] == "urban"), 0.0, 0.0))
    stands = motion_rng.random() < config.standing_share
    speed = 0.0 if stands else float(motion_rng.uniform(*config.ego_speed))
    ego = Motion(street.lane / 2, float(motion_rng.uniform(*START)), 0.0, speed)
    end = ego.y + speed * config.duration
    traffic = config.street(ego.y - config.reach, end + config.reach)
    view = AllRoundView(
        NUSCENES_FOCAL * config.width / NUSCENES_WIDTH, np.inf, traffic.distance, BACKDROP_BEHIND[0], (ego.y, end)
    )
    flow = (speed, float(motion_rng.uniform(*config.traffic_speed)))
    build = MovingBuilder(street, view, config.duration, flow, motion_rng)
    build.claim_way(replace(ego, y=ego.y + EGO_AHEAD), *EGO_ROOM, 0.0)
    build.add_ground(street.mesh(GROUND_FROM))
    furnish(rng, build, traffic, sides)
    roadside.close_behind(rng, build, *BACKDROP_BEHIND)
    first_moving = build.add_moving()
    scene = assembled(build, random_light(rng, config))
    weather = "sun" if scene.light.sun_colour.any() else "overcast"
    weather += ", fog" if scene.light.fog > 0 else ""
    words = f"{sides[0]} on the left, {sides[1]} on the right, {weather}, vehicle at {speed:.1f} m/s"
    return Drive(scene, RayCaster(scene.corners[:first_moving]), first_moving, tuple(build.motions), ego, words)


def _level(rng: np.random.Generator, street: Road) -> Road:
    """The street without slopes, and with its side street anywhere along the vehicle's way."""
    shift = float(rng.uniform(*JUNCTION_SHIFT))
    junction, zebra = street.junction, street.zebra
    return replace(
        street,
        grade=0.0,
        wave=NO_WAVE,
        bank=0.0,
        junction=None if junction is None else (junction[0] + shift, junction[1] + shift),
        zebra=None if zebra is None else zebra + shift,
    )
