"""Every problem of a data set in KITTI's layout, with file and line."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from torch import Tensor

from distill3d.camera import Camera, misfit
from distill3d.data.depth import read_depth
from distill3d.data.faults import Fault
from distill3d.data.kitti.calibration import CAMERA_LINE, LIDAR_LINES, parse_calibration
from distill3d.data.kitti.dataset import frame_file
from distill3d.data.kitti.labels import UNKNOWN_CLASS, faults_behind, parse_labels
from distill3d.data.kitti.names import CLASSES_FILE, KITTI_NAMES, LabelNames, names_of, parse_classes
from distill3d.data.kitti.scans import VELODYNE_COLUMNS, glance_at_points, read_points
from distill3d.data.pictures import ENDINGS as PICTURES
from distill3d.data.pictures import picture_size, read_image
from distill3d.errors import UserError
from distill3d.files import inner_name, names_below, read_text

#: Files of a frame: folder and endings.  The labels are the training folder's only; depth_2 is optional.
FRAME_FILES = {"image_2": PICTURES, "calib": (".txt",), "velodyne": (".bin",), "label_2": (".txt",)}
#: Without these there is no frame; without the others some stages cannot learn from it.
NEEDED = ("image_2", "calib")
T = TypeVar("T")


class Look(NamedTuple):
    """How closely the files of a frame are looked at; each raises a UserError where one is faulty."""

    size: Callable[[Path], tuple[int, int]]  # of a picture, (width, height) px
    scan: Callable[[Path], object]
    depth_size: Callable[[Path], tuple[int, int]]
    names: LabelNames = KITTI_NAMES  # in label files


#: The split whose frames lie in the testing folder.
TEST_SPLIT = "test"


def thorough(scan_columns: int = VELODYNE_COLUMNS) -> Look:
    """Everything is read and decoded."""
    return Look(lambda p: _size(read_image(p)), lambda p: read_points(p, scan_columns), lambda p: _size(read_depth(p)))


def quick(scan_columns: int = VELODYNE_COLUMNS) -> Look:
    """Texts are parsed, of pictures and scans as much is read as tells what they are: for every start of a training."""
    return Look(picture_size, lambda p: glance_at_points(p, scan_columns), picture_size)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set."""

    file: Path
    line: int | None  # from 1; None where the file as a whole is meant
    sentence: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.sentence}" if self.line else f"{self.file}: {self.sentence}"


def check_kitti(
    root: Path, splits: list[str] | None = None, scan_columns: int = VELODYNE_COLUMNS, names: LabelNames | None = None
) -> list[Problem]:  # fmt: skip
    """All problems of a data set in KITTI's layout; empty where it is sound.

    Args:
        root: the folder that holds ``training`` and ``ImageSets``.
        splits: names of split files; None for all, where ``test`` counts only if there is a ``testing`` folder.
        scan_columns: of the scans' files.
        names: in label files; by default as ``names_of`` has them.  Where ``classes.txt`` is faulty, its faults are
            problems, too, and what label files call their objects is not judged.

    Raises:
        UserError: the folder is absent.
    """
    if not os.path.isdir(root):
        raise UserError(f"{root}: no such folder")
    look, faults = thorough(scan_columns), [] if names is not None else classes_problems(root)
    if not faults:
        return list(_problems(root, splits, look._replace(names=names or names_of(root))))
    return faults + [p for p in _problems(root, splits, look) if not p.sentence.startswith(UNKNOWN_CLASS)]


def classes_problems(root: Path) -> list[Problem]:
    """What is wrong with a data set's ``classes.txt``; nothing where there is none."""
    path = root / CLASSES_FILE
    return list(_text_problems(path, lambda text: parse_classes(text)[1])) if path.is_file() else []


def present_files(folder: Path) -> dict[str, list[str]]:
    """The frames that have a file, by its kind; a frame with two pictures stands there twice."""
    return {
        kind: [name for ending in endings for name in names_below(folder / kind, ending)]
        for kind, endings in FRAME_FILES.items() if (folder / kind).is_dir()
    }  # fmt: skip


def _problems(root: Path, splits: list[str] | None, look: Look) -> Iterator[Problem]:
    if not (root / "training").is_dir():
        yield Problem(root / "training", None, "no such folder, expected KITTI's layout (training/image_2, ...)")
    if splits is None:
        found = sorted(p.stem for p in (root / "ImageSets").glob("*.txt"))
        splits = [s for s in found if s != TEST_SPLIT or (root / "testing").is_dir()]
        if not found:
            yield Problem(root / "ImageSets", None, "holds no split file (train.txt, val.txt, ...)")
    for part in ("training", "testing"):
        folder = root / part
        if not folder.is_dir():
            continue
        listed = present_files(folder)
        if part == "testing":
            listed.pop("label_2", None)
        for kind in NEEDED:
            if kind not in listed:
                yield Problem(folder / kind, None, "no such folder")
        present = {kind: set(names) for kind, names in listed.items()}
        for frame, count in Counter(listed.get("image_2", ())).items():
            if count > 1:
                yield Problem(folder / "image_2", None, f"holds {count} pictures of frame {frame}")
        frames = sorted(set().union(*present.values()))
        for split in splits:
            if (split == TEST_SPLIT) == (part == "testing"):
                yield from _split_problems(root / "ImageSets" / f"{split}.txt", set(frames), folder)
        for frame in frames:
            yield from frame_problems(folder, frame, [kind for kind in present if frame in present[kind]], look)
            for kind in [k for k in NEEDED if k in present and frame not in present[k]]:
                yield Problem(frame_file(folder, kind, frame), None, f"frame {frame} lacks this file")


def _split_problems(path: Path, frames: set[str], folder: Path) -> Iterator[Problem]:
    try:
        lines = read_text(path).split("\n")
    except UserError as error:
        yield _from_error(path, error)
        return
    seen: Counter[str] = Counter()
    for number, frame in enumerate((line.strip() for line in lines), 1):
        if not frame:
            continue
        seen[frame] += 1
        if seen[frame] == 2:
            yield Problem(path, number, f"names frame {frame} twice")
        try:
            inner_name(frame, f"{path}:{number}")
        except UserError as error:
            yield _from_error(path, error)
            continue
        if frame not in frames and seen[frame] == 1:
            yield Problem(path, number, f"names frame {frame}, of which {folder} holds no file")
    if not seen:
        yield Problem(path, None, "names no frame")


def frame_problems(folder: Path, frame: str, kinds: Iterable[str], look: Look) -> Iterator[Problem]:
    """Problems inside the files that the frame has; ``kinds``: their folders."""
    paths = {kind: frame_file(folder, kind, frame) for kind in kinds}
    size = None
    if "image_2" in paths:
        size, problems = _attempt(look.size, paths["image_2"])
        yield from problems
    if "velodyne" in paths:
        yield from _attempt(look.scan, paths["velodyne"])[1]
    if "label_2" in paths:
        yield from _text_problems(paths["label_2"], lambda text: _label_faults(text, look.names))
    if "calib" in paths:
        required = (CAMERA_LINE, *(LIDAR_LINES if "velodyne" in paths else ()))
        yield from _text_problems(paths["calib"], lambda text: _calibration_faults(text, required, size))
    depth_path = folder / "depth_2" / f"{frame}.png"
    if depth_path.is_file():
        depth_size, problems = _attempt(look.depth_size, depth_path)
        yield from problems
        if depth_size is not None and size is not None and depth_size != size:
            sentence = f"is {depth_size[0]} x {depth_size[1]} px, its image {size[0]} x {size[1]}"
            yield Problem(depth_path, None, sentence)


def _size(values: Tensor) -> tuple[int, int]:
    """Width and height of what ends in (..., h, w)."""
    return values.shape[-1], values.shape[-2]


def _label_faults(text: str, names: LabelNames) -> list[Fault]:
    """Faults of the lines, and boxes behind the camera."""
    lines, faults = parse_labels(text, scored=False, known=names)
    return faults + faults_behind(lines)


def _calibration_faults(text: str, required: tuple[str, ...], size: tuple[int, int] | None) -> list[Fault]:
    """Faults of the file itself, and a camera that cannot have taken an image of ``size`` px."""
    matrices, lines, faults = parse_calibration(text, required=required)
    if CAMERA_LINE in matrices and size is not None and lines[CAMERA_LINE] not in {fault.line for fault in faults}:
        sentence = misfit(Camera(matrices[CAMERA_LINE]), size)
        if sentence is not None:
            faults.append(Fault(lines[CAMERA_LINE], sentence))
    return faults


def _text_problems(path: Path, faults: Callable[[str], list[Fault]]) -> Iterator[Problem]:
    text, problems = _attempt(read_text, path)
    yield from problems
    if text is not None:
        yield from (
            Problem(path, fault.line, fault.sentence) for fault in sorted(faults(text), key=lambda f: f.line or 0)
        )


def _attempt(read: Callable[[Path], T], path: Path) -> tuple[T | None, list[Problem]]:
    """What a reader gives, or the problem that it met."""
    try:
        return read(path), []
    except UserError as error:
        return None, [_from_error(path, error)]


def _from_error(path: Path, error: UserError) -> Problem:
    """A reader's sentence, which begins with the path and perhaps the line, as a problem."""
    rest = str(error).removeprefix(f"{path}:")
    line, colon, sentence = rest.partition(":")
    if colon and line.isdecimal():
        return Problem(path, int(line), sentence.strip())
    return Problem(path, None, rest.strip())
