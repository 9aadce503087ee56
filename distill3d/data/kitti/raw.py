"""KITTI's raw drives: frames without labels, and which of them are frames of the object data.

Two layouts (KITTI raw's own; Cc-Hy/CMKD data/kitti/raw):

    <root>/<date>/<date>_drive_NNNN_sync/{image_02,velodyne_points}/data/NNNNNNNNNN.{png,bin}
    <root>/<date>/calib_{cam_to_cam,velo_to_cam}.txt

    <root>/KITTI_Raw/<date>/<date>_drive_NNNN_sync/...      the same
    <root>/calib/<date>.txt                                 in the object data's style

Lists name a frame by where its image lies, without the ending, one per line:
``2011_09_30/2011_09_30_drive_0034_sync/image_02/data/0000000756``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from distill3d.data.faults import refuse_faults
from distill3d.data.kitti.calibration import Calibration, parse_calibration, read_calibration
from distill3d.data.kitti.dataset import FrameConfig, FrameDataset
from distill3d.data.splits import read_split
from distill3d.errors import UserError
from distill3d.files import read_text, write_output_text

#: The identity of raw frames in what cards say of training frames; object frames are listed under the recipe's.
RAW_IDENTITY = "kitti-raw"
RAW_ID = re.compile(r"(?P<date>\d{4}_\d\d_\d\d)/(?P<drive>(?P=date)_drive_\d{4}_sync)/image_02/data/(?P<frame>\d{10})")
EXAMPLE = "2011_09_30/2011_09_30_drive_0034_sync/image_02/data/0000000756"
IMAGES, SCANS = "image_02", "velodyne_points"

#: Lines of the raw calibration files that are read, and how many numbers each has.
CAMERA_LINES = {"P_rect_02": 12, "R_rect_00": 9}
LIDAR_LINES = {"R": 9, "T": 3}

MAPPING, ORDER = "train_mapping.txt", "train_rand.txt"
MAPPING_LINE = re.compile(r"(?P<date>\d{4}_\d\d_\d\d) (?P<drive>(?P=date)_drive_\d{4}_sync) (?P<frame>\d{10})")
MOST_DIGITS = 10  # of an index; Python refuses to read those of thousands
OBJECT_ID = re.compile(r"\d{6}")


# ----------------------------------------------------------------------------------------------------- frames and lists


def is_raw_id(frame: str) -> bool:
    """Whether a frame is named as the raw data's are."""
    return RAW_ID.fullmatch(frame) is not None


def drive_of(raw_id: str) -> str:
    """The drive of a raw frame, such as ``2011_09_30_drive_0034_sync``."""
    return raw_id.split("/")[1]


def frames_folder(root: Path) -> Path:
    """The folder of the dates, in either layout."""
    return root / "KITTI_Raw" if (root / "KITTI_Raw").is_dir() else root


def list_raw_frames(root: Path) -> list[str]:
    """All frames of the folder that have an image and a scan, in ascending order.

    Raises:
        UserError: there is none.
    """
    folder = frames_folder(root)
    images = {path.with_suffix("").relative_to(folder).as_posix() for path in folder.glob(f"*/*/{IMAGES}/data/*.png")}
    scans = {path.with_suffix("").relative_to(folder).as_posix() for path in folder.glob(f"*/*/{SCANS}/data/*.bin")}
    frames = sorted(f for f in images if is_raw_id(f) and f.replace(IMAGES, SCANS) in scans)
    if not frames:
        raise UserError(f"{root}: holds no frame with image and scan, expected KITTI raw's layout ({EXAMPLE}.png, ...)")
    return frames


def read_list(path: Path) -> list[str]:
    """A list of raw frames, one per line; blank lines do not count.

    Raises:
        UserError: the file is absent, names no frame or one twice, or a line is no raw frame.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip() and not is_raw_id(line.strip()):
            raise UserError(f"{path}:{number}: {line.strip()!r} is no raw frame, expected one such as {EXAMPLE}")
    return read_split(path)


def write_list(path: Path, frames: Iterable[str], without: Collection[str] = ()) -> list[str]:
    """Writes a list of those ``frames`` that are not of the drives ``without``, and gives it back.

    Raises:
        UserError: none is left.
    """
    left = [frame for frame in frames if drive_of(frame) not in without]
    if not left:
        raise UserError(f"{path}: no frame is left for this list")
    write_output_text(path, "".join(f"{frame}\n" for frame in left))
    return left


# ----------------------------------------------------------------------------------------------- object and raw frames


@dataclass(frozen=True)
class RawMapping:
    """Which raw frame each frame of the object data's training folder is (KITTI's devkit for the object data)."""

    raw_ids: tuple[str, ...]  # of object frames 000000, 000001, ...

    @classmethod
    def read(cls, folder: Path) -> RawMapping:
        """``train_mapping.txt`` (lines `date drive frame`) and ``train_rand.txt`` (indices with commas between them).

        Object frame i is the line whose number, from 1, is index i of the second file.

        Raises:
            UserError: a file is absent or malformed, or they do not belong together.
        """
        mapping, order = folder / MAPPING, folder / ORDER
        frames: list[str] = []
        for number, line in enumerate(read_text(mapping).rstrip("\n").split("\n"), 1):
            match = MAPPING_LINE.fullmatch(line.strip())
            if match is None:
                raise UserError(f"{mapping}:{number}: expected `date drive frame`, found {line.strip()!r}")
            frames.append(f"{match['date']}/{match['drive']}/{IMAGES}/data/{match['frame']}")
        indices: list[int] = []
        seen: set[int] = set()
        for number, line in enumerate(read_text(order).splitlines(), 1):
            for word in line.replace(",", " ").split():
                if len(word) > MOST_DIGITS or not word.isdecimal() or not 1 <= int(word) <= len(frames):
                    raise UserError(
                        f"{order}:{number}: {word!r} is no line of {MAPPING}, expected a number from 1 to {len(frames)}"
                    )
                if int(word) in seen:
                    raise UserError(f"{order}:{number}: names line {word} of {MAPPING} twice")
                indices.append(int(word))
                seen.add(int(word))
        if len(indices) != len(frames):
            raise UserError(f"{order}: has {len(indices)} indices, expected one for each of {len(frames)} frames")
        return cls(tuple(frames[i - 1] for i in indices))

    def to_raw(self, object_id: str) -> str:
        """The raw frame that an object frame such as ``000042`` is.

        Raises:
            UserError: it is not in the mapping.
        """
        if not OBJECT_ID.fullmatch(object_id) or int(object_id) >= len(self.raw_ids):
            raise UserError(
                f"frame {object_id!r} is not in the mapping to raw frames, which knows "
                f"{0:06d} to {len(self.raw_ids) - 1:06d}"
            )
        return self.raw_ids[int(object_id)]

    def to_object(self, raw_id: str) -> str | None:
        """The object frame that a raw frame is; None for raw frames that the object data does not have."""
        return self._object_ids.get(raw_id)

    def drives(self, object_ids: Iterable[str]) -> set[str]:
        """The drives that object frames, those of a split for instance, come from.

        Raises:
            UserError: a frame is not in the mapping.
        """
        return {drive_of(self.to_raw(frame)) for frame in object_ids}

    @cached_property
    def _object_ids(self) -> dict[str, str]:
        return {raw_id: f"{i:06d}" for i, raw_id in enumerate(self.raw_ids)}


def clean_frames(raw_ids: Iterable[str], mapping: RawMapping, eval_ids: Iterable[str]) -> list[str]:
    """The raw frames of drives from which no evaluation frame comes: frames of one drive are near copies of each other.

    Args:
        eval_ids: frames of the object data.

    Raises:
        UserError: an evaluation frame is not in the mapping.
    """
    drives = mapping.drives(eval_ids)
    return [frame for frame in raw_ids if drive_of(frame) not in drives]


# ------------------------------------------------------------------------------------------------------------- data set


def read_raw_calibration(folder: Path) -> Calibration:
    """A date's calibration: P_rect_02 and R_rect_00 of ``calib_cam_to_cam.txt``, [R|T] of ``calib_velo_to_cam.txt``.

    Raises:
        UserError: a file is absent, lacks one of these lines, or the line is malformed.
    """
    matrices: dict[str, torch.Tensor] = {}
    for name, lines in (("calib_cam_to_cam.txt", CAMERA_LINES), ("calib_velo_to_cam.txt", LIDAR_LINES)):
        found, _, faults = parse_calibration(read_text(folder / name), lines, tuple(lines))
        refuse_faults(folder / name, faults)
        matrices |= found
    velo_to_cam = torch.cat((matrices["R"], matrices["T"]), dim=1)
    path = folder / "calib_cam_to_cam.txt"
    return Calibration(matrices["P_rect_02"], matrices["R_rect_00"], velo_to_cam, path)


@dataclass(frozen=True)
class KittiRawConfig(FrameConfig):
    """Which frames of KITTI's raw drives are read, and how they come out.

    Scans are not augmented beyond the picture's mirror: without labels they only tell a teacher what the camera sees.
    """

    root: Path
    frames: Path | tuple[str, ...]  # a list of frames, see ``read_list``, or its file
    mapping: Path | None = None  # folder of train_mapping.txt and train_rand.txt
    depth: Literal["none", "lidar", "completed"] = field(default="none", kw_only=True)


class KittiRawDataset(FrameDataset[KittiRawConfig]):
    """Frames of KITTI's raw drives as samples without labels.

    Raises:
        UserError: the folder is absent, the list is absent or malformed, or (when a frame is read) one of its files is.
    """

    def __init__(self, config: KittiRawConfig) -> None:
        root = Path(config.root)
        self.folder = frames_folder(root)
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder, expected KITTI raw's layout ({EXAMPLE}.png, ...)")
        listed = config.frames
        super().__init__(config, root, list(listed) if isinstance(listed, tuple) else read_list(Path(listed)))
        self._calibrations: dict[str, Calibration] = {}

    @cached_property
    def mapping(self) -> RawMapping | None:
        """Which of the frames the object data also has, if the settings give the mapping's folder."""
        return None if self.config.mapping is None else RawMapping.read(Path(self.config.mapping))

    def calibration(self, date: str) -> Calibration:
        """A date's calibration: the object-style file where there is one, else the raw data's own."""
        if date not in self._calibrations:
            path = self.root / "calib" / f"{date}.txt"
            read = read_calibration(path) if path.is_file() else read_raw_calibration(self.folder / date)
            self._calibrations[date] = read
        return self._calibrations[date]

    def _read(self, index: int):
        frame = self.frame_ids[index]
        return self._frame(
            frame, self.folder / f"{frame}.png", self.calibration(frame.split("/")[0]),
            self.folder / f"{frame.replace(IMAGES, SCANS)}.bin",
        )  # fmt: skip
