"""Settings of the synthetic streets."""

from __future__ import annotations

from dataclasses import dataclass

KITTI_FOCAL, KITTI_WIDTH = 721.5377, 1242  # px


@dataclass(frozen=True)
class StreetConfig:
    """What is drawn and how it is seen. Ranges are (lowest, highest), both included."""

    width: int = 320
    """Image width, px. Intrinsics are KITTI's, scaled by width / 1242."""
    height: int = 96
    """Image height, px."""
    rays_per_pixel_side: int = 2
    """Camera rays per pixel and axis: 2 casts 2 x 2 rays."""
    distance: tuple[float, float] = (4.0, 42.0)
    """Distance ahead of the camera at which objects stand, m."""
    cars: tuple[int, int] = (5, 12)
    """Cars per frame; fewer where the street is full."""
    vans: tuple[int, int] = (0, 1)
    """Vans per frame: labelled Van, which the official evaluation neither asks for nor punishes."""
    pedestrians: tuple[int, int] = (0, 2)
    """Pedestrians per frame."""
    cyclists: tuple[int, int] = (0, 2)
    """Cyclists per frame."""
    random_yaw_share: float = 0.08
    """Share of cars at any heading; the others are parked or drive along the road."""
    grade_sigma: float = 0.022
    """Standard deviation of the slope that the road takes up ahead, m per m."""
    grade_limit: float = 0.045
    """Largest such slope. KITTI boxes turn about the camera's y axis only, so steep roads make labels inexact."""
    camera_height: float = 1.65
    """Mean height of the camera above the ground, m (KITTI)."""
    camera_height_sigma: float = 0.03
    """Its standard deviation from frame to frame, m."""
    pitch_sigma: float = 0.6
    """Standard deviation of the camera's pitch, degrees."""
    roll_sigma: float = 0.4
    """Standard deviation of the camera's roll, degrees."""
    overcast_share: float = 0.25
    """Share of frames without sun."""
    lidar_azimuth: tuple[float, float] = (-45.0, 45.0)
    """LiDAR sector about the forward axis, degrees, left positive."""
    lidar_step: float = 0.18
    """Azimuth step, degrees (HDL-64E at 10 Hz: 0.16 to 0.2)."""
    lidar_beam_stride: int = 1
    """Keep every n-th of the 64 beams: 2 gives 32 beams, 4 gives 16."""
    lidar_keep: float = 1.0
    """Share of the returns that are kept, drawn at random after drop-out."""
    lidar_dropout: float = 0.08
    """Share of returns lost on bright surfaces seen head on; dark and glancing ones lose more."""
    lidar_range_sigma: float = 0.02
    """Standard deviation of the measured range, m."""
    lidar_max_range: float = 80.0
    """Longest range with a return, m."""

    def __post_init__(self) -> None:
        for name in ("distance", "cars", "vans", "pedestrians", "cyclists", "lidar_azimuth"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the lowest value {low} is above the highest value {high}")
        for name in ("width", "height", "rays_per_pixel_side", "lidar_beam_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.distance[0] <= 0 or self.lidar_step <= 0:
            raise ValueError("distance and lidar_step must be above 0")
        for name in ("random_yaw_share", "overcast_share", "lidar_keep", "lidar_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, not {getattr(self, name)}")
