"""Write synthetic streets as a KITTI folder: in parallel, reproducibly, and so that a killed run can go on.

Source of the layout and the text formats: the KITTI object development kit.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..errors import UserError
from .frame import Frame, render_frame
from .sensors import R0_RECT, TR_IMU_TO_VELO, TR_VELO_TO_CAM, Rig
from .settings import StreetConfig

RECORD = "synth.json"
LAYOUT_VERSION = 1
PNG_COMPRESSION = 1  # zlib level: noise does not compress, higher levels only cost time
PART = ".part"  # ending of files that are being written
CHUNK = 4  # frames per task: small enough for a smooth progress bar


def generator_hash() -> str:
    """Hash of the source of this package: frames of one hash are comparable."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def calibration_text(rig: Rig) -> str:
    """The calib file of a frame."""

    def row(name: str, matrix: np.ndarray) -> str:
        return f"{name}: " + " ".join(f"{v:.12e}" for v in matrix.ravel())

    rows = [row(name, matrix) for name, matrix in rig.projections.items()]
    rows += [row("R0_rect", R0_RECT), row("Tr_velo_to_cam", TR_VELO_TO_CAM), row("Tr_imu_to_velo", TR_IMU_TO_VELO)]
    return "\n".join(rows) + "\n\n"


def frame_paths(out: Path, index: int) -> dict[str, Path]:
    """The files of a frame; the image comes last because it is written last and so vouches for the others."""
    name = f"{index:06d}"
    folder = out / "training"
    return {
        "label_2": folder / "label_2" / f"{name}.txt",
        "calib": folder / "calib" / f"{name}.txt",
        "velodyne": folder / "velodyne" / f"{name}.bin",
        "image_2": folder / "image_2" / f"{name}.png",
    }


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write through a temporary file, so that no half-written file ever carries the name."""
    part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    write(part)
    os.replace(part, path)


def write_frame(out: Path, index: int, frame: Frame) -> None:
    """Write the four files of a frame, each atomically, the image last."""
    paths = frame_paths(out, index)
    lines = "".join(label.line() + "\n" for label in frame.labels)
    _replace(paths["label_2"], lambda part: part.write_text(lines, encoding="ascii", newline="\n"))
    _replace(paths["calib"], lambda part: part.write_text(calibration_text(frame.rig), encoding="ascii", newline="\n"))
    _replace(paths["velodyne"], lambda part: part.write_bytes(frame.points.tobytes()))
    picture = Image.fromarray(frame.image)
    _replace(paths["image_2"], lambda part: picture.save(part, format="PNG", compress_level=PNG_COMPRESSION))


def _make(out: Path, seed: int, indices: list[int], config: StreetConfig) -> int:
    for index in indices:
        write_frame(out, index, render_frame(seed, index, config))
    return len(indices)


def _claim(out: Path, seed: int, config: StreetConfig, splits: Mapping[str, int]) -> None:
    """Record the settings in the folder, or refuse one that was made with others."""
    record = {
        "layout": LAYOUT_VERSION,
        "generator": generator_hash(),
        "seed": seed,
        "splits": dict(splits),
        "config": asdict(config),
    }
    record = json.loads(json.dumps(record))  # tuples become lists, as they come back from the file
    path = out / RECORD
    if path.exists():
        try:
            former = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: not a readable record of synthetic streets; choose another folder.") from error
        for key in record:
            if former.get(key) != record[key]:
                raise UserError(
                    f"{path}: the folder was made with another {key}; choose another folder or delete this one."
                )
        return
    if (out / "training").exists() and any((out / "training").iterdir()):
        raise UserError(f"{out}: holds a training folder without {RECORD}; choose another folder, nothing was written.")
    out.mkdir(parents=True, exist_ok=True)
    _replace(path, lambda part: part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8"))


def _split_sizes(frames: int | None, val_share: float, splits: Mapping[str, int] | None) -> dict[str, int]:
    if splits is None:
        if frames is None:
            raise UserError("write_kitti: give either frames or splits.")
        if not 0 <= val_share <= 1:
            raise UserError(f"write_kitti: val_share must lie in 0..1, not {val_share}.")
        train = round(frames * (1 - val_share))
        splits = {"train": train, "val": frames - train}
    elif frames is not None and frames != sum(splits.values()):
        raise UserError(f"write_kitti: the splits hold {sum(splits.values())} frames, but frames is {frames}.")
    if any(size < 0 for size in splits.values()) or sum(splits.values()) < 1:
        raise UserError("write_kitti: at least one frame is needed, and no split may be negative.")
    return dict(splits)


def _write_image_sets(out: Path, splits: Mapping[str, int]) -> None:
    folder = out / "ImageSets"
    folder.mkdir(exist_ok=True)
    sets, start = {}, 0
    for name, size in splits.items():
        sets[name] = range(start, start + size)
        start += size
    sets["trainval"] = range(start)
    for name, indices in sets.items():
        text = "".join(f"{i:06d}\n" for i in indices)
        _replace(folder / f"{name}.txt", lambda part, text=text: part.write_text(text, encoding="ascii", newline="\n"))


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_kitti(
    out: Path,
    *,
    frames: int | None = None,
    seed: int,
    config: StreetConfig | None = None,
    val_share: float = 1 / 3,
    splits: Mapping[str, int] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a KITTI folder of synthetic streets and return its path.

    frames: number of frames, the first round(frames * (1 - val_share)) of them for training, the rest for validation;
    or splits: frames per split in order, e.g. {"train": 400, "val": 200}. workers: processes, None for one per
    available core; 1 works in this process. Frame i of a seed does not depend on workers or on the other frames.
    A call that was cut short is completed by the same call; complete frames are kept.

    Raises UserError if the folder holds streets of other settings, of another generator, or other data.
    """
    out, config = Path(out), config or StreetConfig()
    sizes = _split_sizes(frames, val_share, splits)
    total = sum(sizes.values())
    _claim(out, seed, config, sizes)
    for folder in frame_paths(out, 0).values():
        folder.parent.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(total) if not all(path.exists() for path in frame_paths(out, i).values())]
    workers = min(workers or available_cores(), max(len(missing), 1))
    bar = Progress(
        TextColumn("synthetic streets"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(), TimeRemainingColumn(), console=Console(file=sys.stderr), disable=not progress,
    )  # fmt: skip
    with bar:
        task = bar.add_task("frames", total=total, completed=total - len(missing), rate="")
        for made in _run(out, seed, missing, config, workers):
            bar.advance(task, made)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:.1f} frames/s" if speed else "")
    for leftover in (out / "training").glob(f"*/.*{PART}"):  # of runs that were killed
        leftover.unlink(missing_ok=True)
    # Written last: a folder with ImageSets is complete.
    _write_image_sets(out, sizes)
    return out


def _run(out: Path, seed: int, indices: list[int], config: StreetConfig, workers: int) -> Iterator[int]:
    """Make frames in this process or in others; yields how many were finished at a time."""
    if workers <= 1:
        for index in indices:
            yield _make(out, seed, [index], config)
        return
    chunks = [indices[i : i + CHUNK] for i in range(0, len(indices), CHUNK)]
    # "spawn" because the caller may hold threads (a training framework does), which a fork would not survive.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        tasks = [pool.submit(_make, out, seed, chunk, config) for chunk in chunks]
        try:
            for task in as_completed(tasks):
                yield task.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
