"""One scene of a nuScenes folder: what the sensors see along a drive, as files, and the records that describe it.

Every reading is taken at its own time and from its own pose. A LiDAR sweep is one instant, as if it had been corrected
for the motion during its turn; a camera fires a little before the scan's time, when the beam passes its middle.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import write_atomically, write_text
from ..instances import STEP, mask_file
from . import sensors, surround_rig
from .drive import Drive, random_drive
from .labels import identity_map, label_objects
from .nuscenes_records import CATEGORY_OF_KIND, CLASS_NUMBER, VERSION, Record, attribute_of, link, token, visibility_of
from .settings import SurroundStreetConfig
from .surround_rig import LIDAR, Calibration, modalities

FIRST_TIME, SCENE_SPACING = 1_577_836_800_000_000, 600_000_000  # us: 2020-01-01 UTC; time between scenes
LOCATION, VEHICLE, DATE = "synthetic", "synth", "2020-01-01"
SITE = (300.0, 1700.0)  # m, range of the global coordinates of a scene's origin
JPEG_QUALITY, PNG_COMPRESSION = 95, 1
DECIMALS = 3  # boxes are given in whole millimetres, as in nuScenes


def scene_name(index: int) -> str:
    """Name of a scene; unlike any official one, whose names stand for official splits."""
    return f"synth-{index:04d}"


def record_path(out: Path, index: int) -> Path:
    """Where the records of one scene are kept; the file is written last and so vouches for the scene's other files."""
    return out / VERSION / ".scenes" / f"{scene_name(index)}.json"


def is_complete(out: Path, index: int) -> bool:
    """Whether a scene's records and all files that they name are there."""
    path = record_path(out, index)
    if not path.exists():
        return False
    records = json.loads(path.read_text(encoding="utf-8"))
    return all((out / data["filename"]).exists() for data in records["sample_data"])


@dataclass(frozen=True)
class Reading:
    """One firing of one sensor. time: us from the scene's first key frame; sample: the key frame at or after it."""

    channel: str
    sample: int
    is_key_frame: bool
    time: int


def readings(config: SurroundStreetConfig) -> list[Reading]:
    """All readings of a scene by sensor and time; each sensor begins with the first key frame."""
    found, mounts = [], config.mounts
    for channel in modalities(config):
        rate = config.lidar_rate if channel == LIDAR else config.camera_rate
        per_key = round(rate * config.key_interval)
        delay = 0.0 if channel == LIDAR else mounts[channel].delay
        for k in range((config.frames_per_scene - 1) * per_key + 1):
            time = round(1e6 * (k * config.key_interval / per_key - delay))
            found.append(Reading(channel, -(-k // per_key), k % per_key == 0, time))
    return found


@dataclass(frozen=True)
class Site:
    """Where a scene's world lies in the global frame: rotation (3, 3) about z, and offset (3,), m."""

    rotation: np.ndarray
    offset: np.ndarray

    def of(self, points: np.ndarray) -> np.ndarray:
        """World points (..., 3), m, in the global frame."""
        return points @ self.rotation.T + self.offset


@dataclass(frozen=True)
class Boxes:
    """All objects of a scene at one time, in the global frame: centre (N, 3), size (N, 3) length, width, height, m;
    yaw (N,), rad."""

    centre: np.ndarray
    size: np.ndarray
    yaw: np.ndarray

    def count(self, points: np.ndarray) -> np.ndarray:
        """How many of global points (M, 3) lie in each box, faces included, (N,)."""
        x, y, z = (points[None, :, axis] - self.centre[:, None, axis] for axis in range(3))
        c, s = np.cos(self.yaw)[:, None], np.sin(self.yaw)[:, None]
        length, width, height = (self.size[:, None, axis] / 2 for axis in range(3))
        inside = (np.abs(c * x + s * y) <= length) & (np.abs(c * y - s * x) <= width) & (np.abs(z) <= height)
        return inside.sum(1)


def boxes_at(drive: Drive, site: Site, time: float) -> Boxes:
    """The boxes of all objects at a time, s."""
    things = drive.objects_at(time)
    size = np.array([thing.size for thing in things]).reshape(-1, 3)
    bottom = np.array([thing.position for thing in things]).reshape(-1, 3)
    forward = np.array([site.rotation @ thing.axes[:, 0] for thing in things]).reshape(-1, 3)
    centre = site.of(bottom) + size[:, 2:] * (0.0, 0.0, 0.5)
    return Boxes(centre.round(DECIMALS), size.round(DECIMALS), np.arctan2(forward[:, 1], forward[:, 0]))


@dataclass(frozen=True)
class World:
    """All that is drawn for one scene before its sensors see anything."""

    drive: Drive
    site: Site
    rig: dict[str, Calibration]
    exposure: sensors.Exposure
    lidar: sensors.Lidar


def streams(seed: int, index: int) -> list[np.random.Generator]:
    """Random numbers for street, motion, rig, cameras, LiDAR and its thinning: what one draws leaves the others as they
    are."""
    return [np.random.default_rng(s) for s in np.random.SeedSequence([seed, index]).spawn(6)]


def random_world(seed: int, index: int, config: SurroundStreetConfig) -> World:
    """The world of scene `index` of the set with a seed."""
    for_street, for_motion, for_rig, _, _, for_thinning = streams(seed, index)
    drive = random_drive(for_street, for_motion, config)
    rig = surround_rig.random_calibrations(for_rig, config)
    exposure = sensors.random_exposure(for_rig, config)
    turn = surround_rig.turn_about(2, float(for_rig.uniform(-180, 180)))
    lidar = sensors.thinned(surround_rig.lidar(config), config, for_thinning)
    return World(drive, Site(turn, np.array([*for_rig.uniform(*SITE, 2), 0.0])), rig, exposure, lidar)


def write_scene(out: Path, seed: int, index: int, config: SurroundStreetConfig) -> None:
    """Write one scene's files, each atomically, and last of all its records."""
    world = random_world(seed, index, config)
    drive, site = world.drive, world.site
    for_cameras, for_lidar = streams(seed, index)[3:5]
    names = Names(seed, index, config)

    boxes = [boxes_at(drive, site, k * config.key_interval) for k in range(config.frames_per_scene)]
    points_inside = np.zeros((config.frames_per_scene, len(drive.motions)), int)
    visible = np.zeros(points_inside.shape)
    for reading in readings(config):
        time, path, sensor = reading.time / 1e6, out / names.file(reading), world.rig[reading.channel]
        scene, caster = drive.at(time)
        rotation, position = drive.ego_pose(time)
        if reading.channel == LIDAR:
            axes = surround_rig.velodyne_axes(rotation @ sensor.rotation)
            origin = rotation @ sensor.position + position
            seen, beam, _ = sensors.sweep(scene, caster, origin, axes, world.lidar, for_lidar)
            points = _lidar_top(seen, beam)
            write_atomically(path, lambda part, points=points: part.write_bytes(points.tobytes()), flush=False)
            if reading.is_key_frame:
                on_vehicle = points[:, :3].astype(float) @ sensor.rotation.T + sensor.position
                inside = boxes[reading.sample].count(site.of(on_vehicle @ rotation.T + position))
                points_inside[reading.sample] = inside
        else:
            camera = surround_rig.camera_rig(sensor, rotation, position, config)
            image = sensors.take_picture(scene, caster, camera, config.rays_per_pixel_side, world.exposure, for_cameras)
            _save_image(path, image, config)
            if reading.is_key_frame:
                _save_mask(mask_file(out, path), identity_map(scene, caster, camera), [t.kind for t in scene.objects])
                for label in label_objects(scene, caster, camera):
                    visible[reading.sample, label.object] += label.visible * (1 - label.truncated)
    records = {
        **_frame_records(names, world),
        **_object_records(names, drive, boxes, points_inside, visible),
    }
    write_text(record_path(out, index), json.dumps(records) + "\n", flush=False)


def _lidar_top(points: np.ndarray, beam: np.ndarray) -> np.ndarray:
    """Points (N, 5) float32 in LIDAR_TOP's axes: x, y, z (m), intensity 0..255, ring; from points (N, 4) of a sweep
    and their beams (N,)."""
    ahead, left, up, intensity = points.T
    return np.stack([-left, ahead, up, np.round(255 * intensity), beam], 1).astype(np.float32)


def _save_image(path: Path, image: np.ndarray, config: SurroundStreetConfig) -> None:
    picture = Image.fromarray(image)
    if config.image_format == "png":
        options = {"format": "PNG", "compress_level": PNG_COMPRESSION}
    else:
        options = {"format": "JPEG", "quality": JPEG_QUALITY, "subsampling": 0}
    write_atomically(path, lambda part: picture.save(part, **options), flush=False)


def _save_mask(path: Path, things: np.ndarray, kinds: list[str]) -> None:
    """The mask of what each pixel shows: things (H, W), indices into kinds or -1."""
    number = np.array([STEP * CLASS_NUMBER[kind] + i % STEP for i, kind in enumerate(kinds)] + [0], np.uint16)
    picture = Image.fromarray(number[things])
    write_atomically(path, lambda part: picture.save(part, format="PNG"), flush=False)


# ------------------------------------------------------------------------------------------------------------- Records


@dataclass(frozen=True)
class Names:
    """Tokens, times and file names of one scene."""

    seed: int
    index: int
    config: SurroundStreetConfig

    @property
    def log(self) -> str:
        return f"synth-{self.seed}-{self.index:04d}"

    def token(self, *parts: object) -> str:
        return token("scene", self.seed, self.index, *parts)

    def sample(self, k: int) -> str:
        return self.token("sample", k)

    def data(self, reading: Reading) -> str:
        return self.token(reading.channel, reading.time)

    def annotation(self, thing: int, k: int) -> str:
        return self.token("annotation", thing, k)

    def timestamp(self, time: int) -> int:
        """us; time: us from the first key frame."""
        return FIRST_TIME + self.index * SCENE_SPACING + time

    def file(self, reading: Reading) -> str:
        """Path of a reading's file below the data set's root."""
        ending = "pcd.bin" if reading.channel == LIDAR else self.config.image_format
        room = "samples" if reading.is_key_frame else "sweeps"
        name = f"{self.log}__{reading.channel}__{self.timestamp(reading.time)}.{ending}"
        return f"{room}/{reading.channel}/{name}"


def _frame_records(names: Names, world: World) -> dict[str, list[Record]]:
    """Log, scene, samples, sensor data, poses and calibrations."""
    config = names.config
    samples: list[Record] = [
        {
            "token": names.sample(k),
            "timestamp": names.timestamp(round(1e6 * k * config.key_interval)),
            "prev": "",
            "next": "",
            "scene_token": names.token(),
        }
        for k in range(config.frames_per_scene)
    ]
    link(samples)
    poses: list[Record] = []
    data: dict[str, list[Record]] = {channel: [] for channel in modalities(config)}
    for reading in readings(config):
        rotation, position = world.drive.ego_pose(reading.time / 1e6)
        stamp, is_camera = names.timestamp(reading.time), reading.channel != LIDAR
        poses.append(
            {
                "token": names.data(reading),  # as in nuScenes, where a pose has the token of its reading
                "timestamp": stamp,
                "rotation": surround_rig.quaternion(world.site.rotation @ rotation).tolist(),
                "translation": world.site.of(position).tolist(),
            }
        )
        data[reading.channel].append(
            {
                "token": names.data(reading),
                "sample_token": names.sample(reading.sample),
                "ego_pose_token": names.data(reading),
                "calibrated_sensor_token": names.token("calibration", reading.channel),
                "timestamp": stamp,
                "fileformat": config.image_format if is_camera else "pcd",
                "is_key_frame": reading.is_key_frame,
                "height": config.height if is_camera else 0,
                "width": config.width if is_camera else 0,
                "filename": names.file(reading),
                "prev": "",
                "next": "",
            }
        )
    for chain in data.values():
        link(chain)
    return {
        "log": [
            {
                "token": names.token("log"),
                "logfile": names.log,
                "vehicle": VEHICLE,
                "date_captured": DATE,
                "location": LOCATION,
            }
        ],
        "scene": [
            {
                "token": names.token(),
                "log_token": names.token("log"),
                "nbr_samples": len(samples),
                "first_sample_token": names.sample(0),
                "last_sample_token": names.sample(len(samples) - 1),
                "name": scene_name(names.index),
                "description": world.drive.description,
            }
        ],
        "sample": samples,
        "sample_data": [record for chain in data.values() for record in chain],
        "ego_pose": poses,
        "calibrated_sensor": [
            {
                "token": names.token("calibration", channel),
                "sensor_token": token("sensor", channel),
                "translation": sensor.position.tolist(),
                "rotation": surround_rig.quaternion(sensor.rotation).tolist(),
                "camera_intrinsic": [] if sensor.intrinsics is None else sensor.intrinsics.tolist(),
            }
            for channel, sensor in world.rig.items()
        ],
    }


def _object_records(
    names: Names, drive: Drive, boxes: list[Boxes], points_inside: np.ndarray, visible: np.ndarray
) -> dict[str, list[Record]]:
    """Tracks and their annotations: from the first key frame to the last in which a thing holds LiDAR points.

    points_inside, visible (K, N): LiDAR points in the box, and share that the cameras see, of N things in K key frames.
    """
    instances: list[Record] = []
    annotations: list[Record] = []
    for i, (thing, motion) in enumerate(zip(drive.scene.objects, drive.motions, strict=True)):
        held = np.flatnonzero(points_inside[:, i])
        if not len(held):
            continue
        attribute = attribute_of(thing.kind, motion.doing, motion.speed)
        track: list[Record] = []
        for k in range(held[0], held[-1] + 1):
            length, width, height = boxes[k].size[i].tolist()
            yaw = boxes[k].yaw[i]
            track.append(
                {
                    "token": names.annotation(i, k),
                    "sample_token": names.sample(k),
                    "instance_token": names.token("instance", i),
                    "visibility_token": visibility_of(visible[k, i]),
                    "attribute_tokens": [token("attribute", attribute)],
                    "translation": boxes[k].centre[i].tolist(),
                    "size": [width, length, height],
                    "rotation": [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))],
                    "prev": "",
                    "next": "",
                    "num_lidar_pts": int(points_inside[k, i]),
                    "num_radar_pts": 0,
                }
            )
        link(track)
        annotations += track
        instances.append(
            {
                "token": names.token("instance", i),
                "category_token": token("category", CATEGORY_OF_KIND[thing.kind]),
                "nbr_annotations": len(track),
                "first_annotation_token": track[0]["token"],
                "last_annotation_token": track[-1]["token"],
            }
        )
    return {"instance": instances, "sample_annotation": annotations}
