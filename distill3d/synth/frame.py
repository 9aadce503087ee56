"""One frame of a synthetic set: drawn, seen and labelled, from nothing but a seed, a number and the settings."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from . import labels, sensors
from .labels import Label
from .scene import Scene, random_scene
from .sensors import RayCaster, Rig
from .settings import StreetConfig

STEPS = ("scene", "render", "lidar", "labels")


@dataclass(frozen=True)
class Frame:
    """What the sensors saw, and the truth. image (H, W, 3) uint8; points (N, 4) float32 x, y, z, intensity in the
    velodyne frame; point_object_ids (N,): index into scene.objects, -1 for none; seconds: processor time per step."""

    image: np.ndarray
    points: np.ndarray
    point_object_ids: np.ndarray
    labels: tuple[Label, ...]
    rig: Rig
    scene: Scene
    seconds: dict[str, float]


def render_frame(seed: int, index: int, config: StreetConfig | None = None) -> Frame:
    """Frame `index` of the set with a seed: always the same, whichever other frames are made."""
    config = config or StreetConfig()
    # One stream per step: a change in how the camera draws noise leaves the streets as they are.
    for_scene, for_rig, for_camera, for_lidar, for_thinning = np.random.SeedSequence([seed, index]).spawn(5)
    marks = [time.process_time()]
    scene = random_scene(np.random.default_rng(for_scene), config)
    rig = sensors.random_rig(np.random.default_rng(for_rig), scene, config)
    marks.append(time.process_time())
    caster = RayCaster(scene.corners)
    camera_rng = np.random.default_rng(for_camera)
    exposure = sensors.random_exposure(camera_rng, config)
    image = sensors.take_picture(scene, caster, rig, config.rays_per_pixel_side, exposure, camera_rng)
    marks.append(time.process_time())
    lidar = sensors.thinned(sensors.hdl64(config), config, np.random.default_rng(for_thinning))
    points, owners = sensors.scan(scene, caster, rig, lidar, np.random.default_rng(for_lidar))
    marks.append(time.process_time())
    found = labels.label_objects(scene, caster, rig)
    marks.append(time.process_time())
    seconds: dict[str, float] = dict(zip(STEPS, np.diff(marks).tolist(), strict=True))
    return Frame(image, points, owners, tuple(found), rig, scene, seconds)
