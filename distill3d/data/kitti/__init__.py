"""KITTI's layout: its files, its data sets, and what is wrong with them."""

from distill3d.data.kitti.scans import read_points
from distill3d.data.pictures import read_image

__all__ = ["read_image", "read_points"]
