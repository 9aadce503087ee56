"""Synthetic streets: camera images, LiDAR and KITTI labels, ray cast from one and the same geometry."""

from .frame import Frame, render_frame
from .settings import StreetConfig
from .writer import write_kitti

__all__ = ["Frame", "StreetConfig", "render_frame", "write_kitti"]
