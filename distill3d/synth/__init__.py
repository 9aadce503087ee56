"""Synthetic streets: camera images, LiDAR and annotations, ray cast from one and the same geometry."""

from .folder import content_hash
from .frame import Frame, render_frame
from .nuscenes_writer import write_nuscenes
from .settings import StreetConfig, SurroundStreetConfig
from .writer import write_kitti

__all__ = [
    "Frame",
    "StreetConfig",
    "SurroundStreetConfig",
    "content_hash",
    "render_frame",
    "write_kitti",
    "write_nuscenes",
]
