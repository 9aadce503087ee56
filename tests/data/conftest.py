"""A small data set in KITTI's layout, with everything that the readers look at."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZE = (64, 20)  # width, height in px
CALIBRATION = """P0: 36 0 31 0 0 36 9 0 0 0 1 0
P1: 36 0 31 0 0 36 9 0 0 0 1 0
P2: 36 0 31 2.3 0 36 9 0.01 0 0 1 0.003
P3: 36 0 31 0 0 36 9 0 0 0 1 0
R0_rect: 1 0 0 0 1 0 0 0 1
Tr_velo_to_cam: 0 -1 0 0.01 0 0 -1 -0.08 1 0 0 -0.27
Tr_imu_to_velo: 1 0 0 -0.8 0 1 0 0.3 0 0 1 -0.8

"""
LABELS = """Car 0.00 0 1.85 20.00 5.00 34.00 14.00 1.50 1.60 3.90 -1.00 1.60 12.00 1.77
Pedestrian 0.10 1 -0.20 40.00 4.00 46.00 16.00 1.75 0.60 0.80 2.00 1.50 8.00 0.04
DontCare -1 -1 -10 1.00 2.00 7.00 8.00 -1 -1 -1 -1000 -1000 -1000 -10
"""


@pytest.fixture(scope="session")
def write_kitti() -> Callable[..., Path]:
    """``write(root, frames)`` writes that many frames, the first two thirds of them in the split ``train``."""

    def write(root: Path, frames: int = 3) -> Path:
        rng = np.random.default_rng(0)
        training = root / "training"
        for kind in ("image_2", "label_2", "calib", "velodyne"):
            (training / kind).mkdir(parents=True)
        names = [f"{i:06d}" for i in range(frames)]
        for name in names:
            pixels = rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(training / "image_2" / f"{name}.png")
            points = rng.uniform((2, -15, -2, 0), (40, 15, 1, 1), (600, 4)).astype(np.float32)
            points.tofile(training / "velodyne" / f"{name}.bin")
            (training / "calib" / f"{name}.txt").write_text(CALIBRATION)
            (training / "label_2" / f"{name}.txt").write_text(LABELS)
        (root / "ImageSets").mkdir()
        first = frames * 2 // 3
        (root / "ImageSets" / "train.txt").write_text("\n".join(names[:first]) + "\n")
        (root / "ImageSets" / "val.txt").write_text("\n".join(names[first:]))  # no newline at the end, as official ones
        return root

    return write


@pytest.fixture
def kitti_root(write_kitti: Callable[..., Path], tmp_path: Path) -> Path:
    return write_kitti(tmp_path / "kitti")
