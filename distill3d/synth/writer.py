"""Write synthetic streets as a KITTI folder: in parallel, reproducibly, and so that a killed run can go on.

Source of the layout and the text formats: the KITTI object development kit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import write_atomically, write_text
from ..settings import check_settings
from . import folder
from .folder import available_cores
from .frame import Frame, render_frame
from .sensors import R0_RECT, TR_IMU_TO_VELO, TR_VELO_TO_CAM, Rig
from .settings import StreetConfig

LAYOUT_VERSION = 1
PNG_COMPRESSION = 1  # zlib level: noise does not compress, higher levels only cost time
JPEG_QUALITY = 92
CHUNK = 4  # frames per task: small enough for a smooth progress bar


def calibration_text(rig: Rig) -> str:
    """The calib file of a frame."""

    def row(name: str, matrix: np.ndarray) -> str:
        return f"{name}: " + " ".join(f"{v:.12e}" for v in matrix.ravel())

    rows = [row(name, matrix) for name, matrix in rig.projections.items()]
    rows += [row("R0_rect", R0_RECT), row("Tr_velo_to_cam", TR_VELO_TO_CAM), row("Tr_imu_to_velo", TR_IMU_TO_VELO)]
    return "\n".join(rows) + "\n\n"


def frame_paths(out: Path, index: int, config: StreetConfig | None = None, seed: int = 0) -> dict[str, Path]:
    """The files of a frame; the image comes last because it is written last and so vouches for the others."""
    name, config = f"{index:06d}", config or StreetConfig()
    training = out / "training"
    paths = {
        "label_2": training / "label_2" / f"{name}.txt",
        "calib": training / "calib" / f"{name}.txt",
        "velodyne": training / "velodyne" / f"{name}.bin",
        "image_2": training / "image_2" / f"{name}.{config.image_format}",
    }
    if not _has_scan(seed, index, config):
        del paths["velodyne"]
    return paths


def _has_scan(seed: int, index: int, config: StreetConfig) -> bool:
    return config.scan_share == 1 or float(np.random.default_rng((seed, index)).random()) < config.scan_share


def write_frame(out: Path, index: int, frame: Frame, config: StreetConfig | None = None, seed: int = 0) -> None:
    """Write the files of a frame, each atomically, the image last."""
    config = config or StreetConfig()
    paths, names = frame_paths(out, index, config, seed), config.renamed
    labels = (replace(label, kind=names.get(label.kind, label.kind)) for label in frame.labels)
    write_text(paths["label_2"], "".join(label.line() + "\n" for label in labels), flush=False)
    write_text(paths["calib"], calibration_text(frame.rig), flush=False)
    if "velodyne" in paths:
        write_atomically(paths["velodyne"], lambda part: part.write_bytes(frame.points.tobytes()), flush=False)
    picture = Image.fromarray(frame.image)
    kind = {"format": "JPEG", "quality": JPEG_QUALITY} if config.image_format == "jpg" else {
        "format": "PNG", "compress_level": PNG_COMPRESSION}  # fmt: skip
    write_atomically(paths["image_2"], lambda part: picture.save(part, **kind), flush=False)


def _make(out: Path, seed: int, configs: Sequence[StreetConfig], indices: list[int]) -> int:
    for index in indices:
        write_frame(out, index, render_frame(seed, index, configs[index]), configs[index], seed)
    return len(indices)


def _write_classes(out: Path, configs: Sequence[StreetConfig]) -> None:
    """Which classes there are, where they are not KITTI's."""
    if any(config.large or config.label_names for config in configs):
        from ..data.kitti.names import (  # with torch, which drawing needs not wait for
            CLASSES_FILE,
            DONT_CARE,
            LabelNames,
        )

        lines = (path.read_text(encoding="utf-8") for path in (out / "training" / "label_2").glob("*.txt"))
        names = {line.split()[0] for text in lines for line in text.splitlines() if line}
        write_text(out / CLASSES_FILE, LabelNames(tuple(sorted(names - {DONT_CARE}))).text)


def _write_image_sets(out: Path, splits: Mapping[str, int]) -> None:
    image_sets = out / "ImageSets"
    image_sets.mkdir(exist_ok=True)
    sets = folder.split_ranges(splits)
    trainval = [i for name, indices in sets.items() if name in ("train", "val") for i in indices]
    for name, indices in {**sets, "trainval": trainval}.items():
        write_text(image_sets / f"{name}.txt", "".join(f"{i:06d}\n" for i in indices))


def write_kitti(
    out: Path,
    *,
    frames: int | None = None,
    seed: int,
    config: StreetConfig | None = None,
    val_share: float = 1 / 3,
    splits: Mapping[str, int] | None = None,
    configs: Mapping[str, StreetConfig] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a KITTI folder of synthetic streets and return its path.

    frames: number of frames, the first round(frames * (1 - val_share)) of them for training, the rest for validation;
    or splits: frames per split in order, e.g. {"train": 400, "val": 200}. configs: settings of splits that differ from
    config, e.g. {"test": StreetConfig(haze=(0.0, 0.02))}; all frames lie under training, with labels. workers:
    processes, None for one per available core; 1 works in this process. Frame i of a seed does not depend on workers or
    on the other frames. A call that was cut short is completed by the same call; complete frames are kept.

    Raises UserError if a setting lies outside its range, if the folder holds streets of other settings, of another
    generator, or other data, and where configs names a split that there is not.
    """
    out, config = Path(out), config or StreetConfig()
    check_settings(folder.Writing(seed, workers))
    for name, settings in {"": config, **(configs or {})}.items():
        check_settings(settings, name)
    sizes = folder.split_sizes(frames, val_share, splits, writer="write_kitti", unit="frames")
    by_frame = folder.settings_in_order(config, configs, sizes, writer="write_kitti")
    own = {name: asdict(configs[name]) for name in sizes if configs and name in configs}
    record = {"layout": LAYOUT_VERSION, "seed": seed, "splits": sizes, "config": asdict(config), "configs": own}
    with folder.claimed(out, record, ("training",)):
        for path in frame_paths(out, 0).values():
            path.parent.mkdir(parents=True, exist_ok=True)
        total = sum(sizes.values())
        files = (frame_paths(out, i, by_frame[i], seed).values() for i in range(total))
        missing = [i for i, paths in enumerate(files) if not all(path.exists() for path in paths)]
        folder.make_all(
            partial(_make, out, seed, by_frame), missing, total=total, chunk=CHUNK,
            workers=workers or available_cores(), unit="frames", progress=progress,
        )  # fmt: skip
        _write_classes(out, by_frame)
        # Written last: a folder with ImageSets is complete.
        _write_image_sets(out, sizes)
    return out
