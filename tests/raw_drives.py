"""A raw drive made of a few synthetic frames."""

import shutil
from pathlib import Path

from distill3d.train.recipe import UnlabelledConfig


def raw_drives(streets: Path, folder: Path, frames: int = 4) -> UnlabelledConfig:
    """Training frames of the streets as unlabelled frames of a raw drive, and a mapping by which the others, those of
    the evaluation included, come from another drive."""
    date, drive = "2011_09_26", "2011_09_26_drive_0001_sync"
    ids = [f"{date}/{drive}/image_02/data/{i:010}" for i in range(frames)]
    for kind, source, ending in (("image_02", "image_2", "png"), ("velodyne_points", "velodyne", "bin")):
        target = folder / date / drive / kind / "data"
        target.mkdir(parents=True)
        for i in range(frames):
            shutil.copy(streets / "training" / source / f"{i:06}.{ending}", target / f"{i:010}.{ending}")
    (folder / "calib").mkdir()
    shutil.copy(streets / "training" / "calib" / "000000.txt", folder / "calib" / f"{date}.txt")
    (folder / "list.txt").write_text("".join(f"{frame}\n" for frame in ids))
    count = 12
    lines = [f"{date} {drive if i < frames else drive.replace('0001', '0002')} {i:010}" for i in range(count)]
    (folder / "train_mapping.txt").write_text("".join(f"{line}\n" for line in lines))
    (folder / "train_rand.txt").write_text(",".join(str(i + 1) for i in range(count)))
    return UnlabelledConfig(folder, folder / "list.txt", folder)
