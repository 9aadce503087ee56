"""The sensors of a surround-view drive: cameras, nuScenes' six or others, and a LiDAR on one vehicle.

Frames: vehicle x ahead, y left, z up, origin under the middle of the rear axle; camera x right, y down, z ahead;
LIDAR_TOP x right, y ahead, z up. Figures: calibration of nuScenes' vehicle n015, rounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .mounts import CAMERAS, LIDAR
from .sensors import Lidar, Rig
from .settings import NUSCENES_HEIGHT, NUSCENES_WIDTH, SurroundStreetConfig

CENTRE = (816.0, 491.0)  # px, principal point in images of 1600 x 900
LIDAR_POSITION = (0.94, 0.0, 1.84)  # m
LIDAR_BEAMS = np.linspace(-30.67, 10.67, 32)  # degrees; ring 0 looks down

_VEHICLE_FROM_CAMERA = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
_VEHICLE_FROM_LIDAR = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Calibration:
    """A sensor on its vehicle: rotation (3, 3) and position (3,), m, sensor to vehicle; intrinsics (3, 3), px."""

    rotation: np.ndarray
    position: np.ndarray
    intrinsics: np.ndarray | None = None


def turn_about(axis: int, degrees: float) -> np.ndarray:
    """Rotation (3, 3) about an axis (0, 1, 2), right-handed."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
    return matrix


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternion (w, x, y, z), w >= 0, of a rotation (3, 3): the main eigenvector of Bar-Itzhack's matrix
    (Journal of Guidance, Control, and Dynamics 23(6), 2000), which has no special cases."""
    r = rotation
    k = np.array(
        [
            [r[0, 0] + r[1, 1] + r[2, 2], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]],
            [r[0, 2] - r[2, 0], r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], r[1, 2] + r[2, 1]],
            [r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1]],
        ]
    )
    main = np.linalg.eigh(k)[1][:, -1]
    return main * (np.sign(main[np.flatnonzero(np.abs(main) > 1e-9)[0]]))


def modalities(config: SurroundStreetConfig) -> dict[str, str]:
    """What each sensor is, by channel: the cameras in their order, then the LiDAR."""
    return {**dict.fromkeys(config.mounts, "camera"), LIDAR: "lidar"}


def random_calibrations(rng: np.random.Generator, config: SurroundStreetConfig) -> dict[str, Calibration]:
    """All sensors of one vehicle by channel, with small errors of mounting.

    nuScenes' six have theirs whether or not they are mounted, so that vehicles with other cameras drive through the
    same world, and those which they share look the same way.
    """
    (for_own,) = rng.spawn(1)
    tilts = {channel: _random_tilt(rng, config) for channel in (*CAMERAS, LIDAR)}
    tilts |= {channel: _random_tilt(for_own, config) for channel in config.mounts if channel not in tilts}
    sensors = {}
    for channel, mount in config.mounts.items():
        rotation = turn_about(2, mount.yaw) @ tilts[channel] @ _VEHICLE_FROM_CAMERA
        sensors[channel] = Calibration(rotation, np.array(mount.position), intrinsics(mount.focal, config))
    return sensors | {LIDAR: Calibration(tilts[LIDAR] @ _VEHICLE_FROM_LIDAR, np.array(LIDAR_POSITION))}


def _random_tilt(rng: np.random.Generator, config: SurroundStreetConfig) -> np.ndarray:
    tilt = np.eye(3)
    for axis, angle in enumerate(config.mount_sigma * np.clip(rng.standard_normal(3), -2.5, 2.5)):
        tilt = turn_about(axis, float(angle)) @ tilt
    return tilt


def intrinsics(focal: float, config: SurroundStreetConfig) -> np.ndarray:
    """Camera matrix (3, 3), px, of images scaled to the configured width, their upper rows cut off."""
    scale = config.width / NUSCENES_WIDTH
    cut = NUSCENES_HEIGHT * scale - config.height
    return np.array([[focal * scale, 0, CENTRE[0] * scale], [0, focal * scale, CENTRE[1] * scale - cut], [0, 0, 1]])


def camera_rig(
    camera: Calibration, ego_rotation: np.ndarray, ego_position: np.ndarray, config: SurroundStreetConfig
) -> Rig:
    """A camera in the world, the vehicle being at a pose (3, 3), (3,), as the renderer and the labels want it."""
    assert camera.intrinsics is not None
    return Rig(
        ego_rotation @ camera.rotation,
        ego_rotation @ camera.position + ego_position,
        {"P2": np.concatenate([camera.intrinsics, np.zeros((3, 1))], 1)},
        config.width,
        config.height,
    )


def lidar(config: SurroundStreetConfig) -> Lidar:
    """The LiDAR: a full turn of all 32 beams."""
    return Lidar(
        LIDAR_BEAMS, (-180.0, 180.0), config.lidar_step, config.lidar_dropout, config.lidar_range_sigma,
        config.lidar_max_range,
    )  # fmt: skip


def velodyne_axes(rotation: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) of axes x ahead, y left, z up, in which a sweep is cast, for one of LIDAR_TOP's axes."""
    return rotation @ _VEHICLE_FROM_LIDAR.T
