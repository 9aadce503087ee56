"""Where a vehicle's cameras sit: nuScenes' six, and others that a text describes.

Vehicle x ahead, y left, z up, origin under the middle of the rear axle. Figures: calibration of nuScenes' vehicle n015,
rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UserError

NUSCENES_FOCAL = 1266.0  # px, of the front camera in images 1600 px wide
BACK_FOCAL = 809.0  # px; the rear camera sees wider
TURN = 0.05  # s that the LiDAR takes for a turn, clockwise seen from above
TURN_END = 110.0  # degrees, left positive: where a scan ends, and the time that it carries
FARTHEST, LEAST_FOCAL, GREATEST_FOCAL = 20.0, 100.0, 20_000.0  # m from the origin; px
LIDAR = "LIDAR_TOP"
OWN = "NAME=yaw,x,y,z or NAME=yaw,x,y,z,focal (degrees, left positive; m; px in images 1600 px wide)"


@dataclass(frozen=True)
class Mount:
    """Where a camera sits: yaw in degrees, left positive; position in the vehicle frame, m; focal length at 1600 px."""

    yaw: float
    position: tuple[float, float, float]
    focal: float = NUSCENES_FOCAL

    @property
    def delay(self) -> float:
        """Time from the exposure to the time of the scan, s: the camera fires as the beam passes its middle."""
        return TURN * (1 - ((TURN_END - self.yaw) % 360 or 360) / 360)


CAMERAS = {
    "CAM_FRONT": Mount(0.0, (1.70, 0.0, 1.51)),
    "CAM_FRONT_RIGHT": Mount(-55.0, (1.55, -0.49, 1.50)),
    "CAM_BACK_RIGHT": Mount(-110.0, (1.01, -0.48, 1.56)),
    "CAM_BACK": Mount(180.0, (0.03, 0.0, 1.58), BACK_FOCAL),
    "CAM_BACK_LEFT": Mount(110.0, (1.04, 0.48, 1.59)),
    "CAM_FRONT_LEFT": Mount(55.0, (1.52, 0.49, 1.51)),
}


def mounts_of(cameras: Sequence[str]) -> dict[str, Mount]:
    """The cameras that texts name or describe, by name and in their order.

    Raises:
        UserError: there is none, one is named twice, or a text is neither a name of nuScenes' nor as ``OWN`` says.
    """
    if not cameras:
        raise UserError(f"cameras is empty, expected some of {', '.join(CAMERAS)}, or {OWN}")
    found: dict[str, Mount] = {}
    for text in cameras:
        name, described, numbers = text.partition("=")
        mount = _described(numbers) if described else CAMERAS.get(name)
        if mount is None or not name.isascii() or not name.isidentifier() or name == LIDAR:
            raise UserError(f"cameras: {text!r}, expected one of {', '.join(CAMERAS)}, or {OWN}")
        if name in found:
            raise UserError(f"cameras names {name} more than once")
        found[name] = mount
    return found


def _described(numbers: str) -> Mount | None:
    try:
        yaw, *place = (float(number) for number in numbers.split(","))
    except ValueError:
        return None
    if len(place) not in (3, 4) or not all(map(math.isfinite, (yaw, *place))):
        return None
    x, y, z, *focal = place
    mount = Mount(yaw, (x, y, z), *focal)
    fits = max(map(abs, mount.position)) <= FARTHEST and z > 0 and abs(yaw) <= 360
    return mount if fits and LEAST_FOCAL <= mount.focal <= GREATEST_FOCAL else None
