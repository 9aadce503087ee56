"""Settings of the synthetic streets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ..errors import UserError
from ..settings import Ascending, Between, Share, Stride, is_in_range
from . import cars
from .mounts import CAMERAS, Mount, mounts_of

CLEAR_HAZE = 0.0014  # 1 / m, visibility 2.8 km: what is above it counts as fog, and sun and LiDAR suffer
LOW_SUN = 22.0  # degrees: below it the sun's way through the air counts
#: What stands in streets, as KITTI's labels call it.
KINDS = ("Car", "Van", "Pedestrian", "Cyclist")
CAR_BODIES = tuple(style.name for style in cars.STYLES)
PictureSide = Annotated[int, Between(1, 4096)]  # px
RaysPerSide = Annotated[int, Between(1, 8)]
#: Camera rays of one picture: more would not fit into memory.
MOST_RAYS = 40_000_000
Crowd = Annotated[int, Between(0, 1000)]
Rate = Annotated[float, Between(0.01, 100)]  # Hz
Speed = Annotated[float, Between(0, 60)]  # m/s
AzimuthStep = Annotated[float, Between(0.01, 90)]  # degrees
LidarRange = Annotated[float, Between(0, 1000, above=True)]  # m


@dataclass(frozen=True)
class Conditions:
    """Light, air, car bodies and returns: what makes the streets of either layout easier or harder.

    Ranges are (lowest, highest), both included; one value is drawn for each frame of a street or scene of a drive.
    """

    overcast_share: Share = 0.25
    """Share of frames or scenes without sun."""
    sun_elevation: Annotated[tuple[float, float], Between(1, 90), Ascending()] = (LOW_SUN, 62.0)
    """The sun's elevation, degrees; the lower below 22, the dimmer and redder its light."""
    haze: Annotated[tuple[Share, Share], Ascending()] = (0.0002, CLEAR_HAZE)
    """Extinction of the air, 1 / m: things are seen up to 3.912 / haze metres (Koschmieder), in fog of 0.02 up to 200.
    Above 0.0014 the sun fades, too, and LiDAR loses returns."""
    exposure: Annotated[tuple[float, float], Between(0.001, 1), Ascending()] = (0.085, 0.17)
    """Mean brightness that a camera's exposure aims at, before the tone curve; 0.02 is dim."""
    noise: Annotated[tuple[float, float], Between(0, 64), Ascending()] = (1.0, 3.5)
    """Standard deviation of a camera's noise at mid grey, 8-bit steps."""
    car_bodies: tuple[str, ...] = CAR_BODIES
    """Bodies of the cars, in their usual proportion; vans are not among them."""
    lidar_keep: Annotated[tuple[Share, Share], Ascending()] = (1.0, 1.0)
    """Share of the returns that are kept, at random after drop-out."""
    lidar_beam_strides: tuple[Stride, ...] = (1,)
    """One of them is drawn: n keeps every n-th beam, of 64 (KITTI) or 32 (nuScenes)."""
    lidar_dropout: Share = 0.08
    """Share of returns lost on bright surfaces seen head on; dark and glancing ones lose more."""
    lidar_range_sigma: Annotated[float, Between(0, 10)] = 0.02
    """Standard deviation of the measured range, m."""

    def __post_init__(self) -> None:
        if not is_in_range(self):
            return
        unknown = [name for name in self.car_bodies if name not in CAR_BODIES]
        if unknown or not self.car_bodies:
            given = repr(unknown[0]) if unknown else "none"
            raise UserError(f"car_bodies: expected some of {', '.join(CAR_BODIES)}, not {given}")
        if not self.lidar_beam_strides:
            raise UserError("lidar_beam_strides are none, expected at least one")


def _refuse_rays(config: StreetConfig | SurroundStreetConfig) -> None:
    rays = config.width * config.height * config.rays_per_pixel_side**2 if is_in_range(config) else 0
    if rays > MOST_RAYS:
        raise UserError(
            f"width, height and rays_per_pixel_side ask for {rays} rays for each picture, expected at most {MOST_RAYS}"
        )


KITTI_FOCAL, KITTI_WIDTH, KITTI_HEIGHT = 721.5377, 1242, 375  # px


@dataclass(frozen=True)
class StreetConfig(Conditions):
    """What is drawn and how it is seen. Ranges are (lowest, highest), both included."""

    width: PictureSide = 320
    """Image width, px. Intrinsics are KITTI's, scaled by width / 1242; the horizon of higher pictures lies lower."""
    height: PictureSide = 96
    """Image height, px."""
    rays_per_pixel_side: RaysPerSide = 2
    """Camera rays per pixel and axis: 2 casts 2 x 2 rays."""
    distance: Annotated[tuple[float, float], Between(0, 1000, above=True), Ascending()] = (4.0, 42.0)
    """Distance ahead of the camera at which objects stand, m."""
    cars: Annotated[tuple[Crowd, Crowd], Ascending()] = (5, 12)
    """Cars per frame; fewer where the street is full."""
    vans: Annotated[tuple[Crowd, Crowd], Ascending()] = (0, 1)
    """Vans per frame: labelled Van, which the official evaluation neither asks for nor punishes."""
    pedestrians: Annotated[tuple[Crowd, Crowd], Ascending()] = (0, 2)
    """Pedestrians per frame."""
    cyclists: Annotated[tuple[Crowd, Crowd], Ascending()] = (0, 2)
    """Cyclists per frame."""
    random_yaw_share: Share = 0.08
    """Share of cars at any heading; the others are parked or drive along the road."""
    grade_sigma: Annotated[float, Between(0, 1)] = 0.022
    """Standard deviation of the slope that the road takes up ahead, m per m."""
    grade_limit: Annotated[float, Between(0, 1)] = 0.045
    """Largest such slope. KITTI boxes turn about the camera's y axis only, so steep roads make labels inexact."""
    camera_height: Annotated[float, Between(0, 100, above=True)] = 1.65
    """Mean height of the camera above the ground, m (KITTI)."""
    camera_height_sigma: Annotated[float, Between(0, 10)] = 0.03
    """Its standard deviation from frame to frame, m."""
    pitch_sigma: Annotated[float, Between(0, 45)] = 0.6
    """Standard deviation of the camera's pitch, degrees. Label boxes do not pitch: at 1 degree they overlap the upright
    ones by an IoU of 0.97 on average, at 2 by 0.96, at 3 by 0.94."""
    roll_sigma: Annotated[float, Between(0, 45)] = 0.4
    """Standard deviation of the camera's roll, degrees."""
    lidar_azimuth: Annotated[tuple[float, float], Between(-180, 180), Ascending()] = (-45.0, 45.0)
    """LiDAR sector about the forward axis, degrees, left positive."""
    lidar_step: AzimuthStep = 0.18
    """Azimuth step, degrees (HDL-64E at 10 Hz: 0.16 to 0.2)."""
    lidar_max_range: LidarRange = 80.0
    """Longest range with a return, m."""
    large: tuple[str, ...] = ()
    """Long vehicles beside the cars, each by its label and its mean height, width and length, m: Bus=3,2.5,10."""
    large_count: Annotated[tuple[Crowd, Crowd], Ascending()] = (1, 3)
    """Of these per frame, where there are any; fewer where the street is full."""
    label_names: tuple[str, ...] = ()
    """Other names of things in the labels, as Van=Transporter."""
    image_format: Literal["png", "jpg"] = "png"
    """png as in KITTI, or jpg."""
    scan_share: Share = 1.0
    """Share of the frames that have a scan, at random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_rays(self)
        if is_in_range(self):
            _ = self.bodies, self.renamed

    @property
    def bodies(self) -> dict[str, tuple[float, float, float]]:
        """Mean height, width and length (m) of the long vehicles, by label.

        Raises:
            UserError: one of them is not told as it should be.
        """
        found = {}
        for text in self.large:
            name, _, sizes = text.partition("=")
            try:
                height, width, length = map(float, sizes.split(","))
            except ValueError:
                height = width = length = 0.0
            if not (name.isidentifier() and all(0.3 <= side <= 20 for side in (height, width, length))):
                raise UserError(f"large: {text!r}, expected a name and height, width, length in m, as Bus=3,2.5,10")
            found[name] = (height, width, length)
        return found

    @property
    def renamed(self) -> dict[str, str]:
        """Names in labels by kind.

        Raises:
            UserError: a kind is not known, or a name is no word.
        """
        known = (*KINDS, *self.bodies)
        found = {}
        for text in self.label_names:
            kind, _, name = text.partition("=")
            if kind not in known or not name.isidentifier():
                raise UserError(f"label_names: {text!r}, expected one of {', '.join(known)} and a name, as Van=Bus")
            found[kind] = name
        return found


NUSCENES_WIDTH, NUSCENES_HEIGHT = 1600, 900  # px, of the image files
LONGEST_WAY = 90.0  # m that a street built for one camera has room for, with things before and behind


@dataclass(frozen=True)
class SurroundStreetConfig(Conditions):
    """What is drawn and how a vehicle with cameras, by default nuScenes' six, and LiDAR sees it. Ranges are (lowest,
    highest).

    The road is flat and level, for nuScenes' boxes turn about the global z axis only and its vehicle poses have z = 0;
    kerbs, pavements and what lies beyond rise as on the other streets.
    """

    cameras: tuple[str, ...] = tuple(CAMERAS)
    """The rig: names of nuScenes' cameras, and own ones as NAME=yaw,x,y,z or NAME=yaw,x,y,z,focal: yaw in degrees, left
    positive; place in m, x ahead, y left, z up from the ground under the rear axle; focal length in px at 1600 px."""
    width: PictureSide = 256
    """Image width, px: all of a camera's view, so that intrinsics are nuScenes', scaled by width / 1600."""
    height: PictureSide = 96
    """Image height, px: the lowest rows of the scaled image, as BEVDepth crops it; at most width * 900 / 1600."""
    rays_per_pixel_side: RaysPerSide = 2
    """Camera rays per pixel and axis: 2 casts 2 x 2 rays."""
    image_format: Literal["jpg", "png"] = "jpg"
    """jpg as in nuScenes, or png without loss at about three times the size."""
    frames_per_scene: Annotated[int, Between(1, 1000)] = 8
    """Key frames (samples) per scene."""
    key_interval: Annotated[float, Between(0.01, 60)] = 0.5
    """Time between key frames, s (nuScenes: 2 Hz)."""
    lidar_rate: Rate = 10.0
    """LiDAR sweeps per second, key frames among them: a multiple of the key frames' rate (nuScenes: 20 Hz)."""
    camera_rate: Rate = 2.0
    """Images per second and camera: a multiple of the key frames' rate, 2 Hz for key frames only (nuScenes: 12 Hz)."""
    reach: Annotated[float, Between(0, 1000, above=True)] = 45.0
    """Distance before and behind the vehicle's way on which objects stand, m."""
    cars: Annotated[tuple[Crowd, Crowd], Ascending()] = (10, 24)
    """Cars per scene, along the whole street; fewer where it is full."""
    vans: Annotated[tuple[Crowd, Crowd], Ascending()] = (1, 4)
    """Panel vans per scene, annotated as vehicle.truck: vehicles made to haul cargo."""
    pedestrians: Annotated[tuple[Crowd, Crowd], Ascending()] = (3, 10)
    """Pedestrians per scene."""
    cyclists: Annotated[tuple[Crowd, Crowd], Ascending()] = (1, 5)
    """Cyclists per scene."""
    random_yaw_share: Share = 0.05
    """Share of cars at any heading; the others are parked or drive along the road."""
    ego_speed: Annotated[tuple[Speed, Speed], Ascending()] = (2.0, 8.0)
    """Speed of the vehicle, one per scene, m/s."""
    standing_share: Share = 0.15
    """Share of scenes in which the vehicle, and the traffic on its side of the road, stands."""
    traffic_speed: Annotated[tuple[Speed, Speed], Ascending()] = (3.0, 10.0)
    """Speed of the traffic on the other side of the road, one per scene, m/s; each car deviates by up to a tenth."""
    mount_sigma: Annotated[float, Between(0, 45)] = 0.3
    """Standard deviation of the sensors' mounting angles from scene to scene, degrees."""
    lidar_step: AzimuthStep = 0.6
    """Azimuth step, degrees (nuScenes' HDL-32E at 20 Hz: 0.33)."""
    lidar_max_range: LidarRange = 70.0
    """Longest range with a return, m."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_in_range(self):
            return
        _refuse_rays(self)
        mounts_of(self.cameras)
        if self.height * NUSCENES_WIDTH > self.width * NUSCENES_HEIGHT:
            raise UserError(f"height {self.height} is above width * 900 / 1600; the cameras see no more")
        for name in ("lidar_rate", "camera_rate"):
            per_key = getattr(self, name) * self.key_interval
            if per_key < 1 or abs(per_key - round(per_key)) > 1e-6:
                raise UserError(f"{name} {getattr(self, name)} Hz is no multiple of {1 / self.key_interval:g} Hz")
        if self.ego_speed[1] * self.duration > LONGEST_WAY:
            raise UserError(
                f"ego_speed and frames_per_scene: the vehicle may drive {self.ego_speed[1] * self.duration:g} m, "
                f"but the street has room for {LONGEST_WAY:g} m"
            )

    @property
    def mounts(self) -> dict[str, Mount]:
        """The cameras by name, in order."""
        return mounts_of(self.cameras)

    @property
    def duration(self) -> float:
        """Time from the first key frame of a scene to its last, s."""
        return (self.frames_per_scene - 1) * self.key_interval

    def street(self, near: float, far: float) -> StreetConfig:
        """Settings of the traffic of a street, with objects from near to far (m) along it."""
        return StreetConfig(
            distance=(near, far), cars=self.cars, vans=self.vans, pedestrians=self.pedestrians,
            cyclists=self.cyclists, random_yaw_share=self.random_yaw_share, car_bodies=self.car_bodies,
        )  # fmt: skip
