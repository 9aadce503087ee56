"""distill3d: camera-only 3D object detectors, taught by LiDAR, depth and labels at training time."""

__version__ = "0.1.0"
