"""Every problem of a data set in nuScenes' layout, with file and token."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from distill3d.boxes import NUSCENES_ATTRIBUTES, NUSCENES_CLASSES
from distill3d.camera import Camera, misfit
from distill3d.data.nuscenes.dataset import (
    CAMERAS,
    CLASS_OF_CATEGORY,
    OTHER_CATEGORIES,
    SCAN_COLUMNS,
    refuse_no_rig,
    unknown_cameras,
)
from distill3d.data.nuscenes.json_columns import RecordFault
from distill3d.data.nuscenes.tables import (
    ANNOTATION,
    NONE,
    REQUIRED,
    Tables,
    listed,
    outside,
    read_tables,
    table_file,
)
from distill3d.data.pictures import SIDEWAYS, opened_picture, orientation, picture_size
from distill3d.data.scans import glance_at_rows, read_rows
from distill3d.errors import UserError


def check_nuscenes(
    root: Path, scan_columns: int = SCAN_COLUMNS, cameras: Sequence[str] | None = None
) -> list[RecordFault]:
    """All problems of a data set in nuScenes' layout; empty where it is sound.

    Every version's folder of tables is checked, and the files that they name: those of key frames are read, of those
    between only presence and size are looked at.

    Args:
        root: the folder that holds ``samples`` and the versions' folders.
        scan_columns: of the scans' files.
        cameras: the rig, whose cameras every version must have, and those alone are looked at; by default all there
            are.

    Raises:
        UserError: the folder is absent, or no rig has such cameras.
    """
    if cameras is not None:
        refuse_no_rig(cameras)
    if not os.path.isdir(root):
        raise UserError(f"{root}: no such folder")
    versions = _versions(root)
    if not versions:
        return [RecordFault(root, None, "holds no folder of nuScenes' tables (v1.0-trainval, v1.0-mini, ...)")]
    return [fault for folder in versions for fault in _version_faults(folder, scan_columns, cameras)]


def nuscenes_cameras(root: Path) -> Iterator[str]:
    """Which cameras each version has whose tables can be read, whatever is wrong with it."""
    for folder in _versions(root):
        tables, _ = read_tables(folder)
        if tables is not None:
            yield from _camera_lines(tables)


def _camera_lines(t: Tables) -> Iterator[str]:
    """A line of a version's cameras, with the size of their pictures and in how many samples they are; another where
    these are not nuScenes' own."""
    yield f"{t.folder.name}: cameras: {', '.join(_described_cameras(t)) or 'none'}"
    if t.cameras and not set(CAMERAS) <= set(t.cameras):
        yield f"{t.folder.name}: not nuScenes' six: train with --dataset.cameras {' '.join(t.cameras)}"


def _described_cameras(t: Tables) -> Iterator[str]:
    data, channel = t.sample_data, _channels_of_data(t)
    for name in t.cameras:
        own = channel == t.channels.index(name)
        samples = len(np.unique(data.sample[own & data.is_key_frame & (data.sample != NONE)]))
        sizes = np.unique(np.stack((data.width, data.height), 1)[own].astype(np.int64), axis=0).tolist()
        pictures = " and ".join(f"{width} x {height} px" for width, height in sizes) or "no pictures"
        yield f"{name} ({pictures}, in {samples} of {len(t.samples)} samples)"


def nuscenes_contents(root: Path) -> Iterator[str]:
    """Of each version of a sound data set its cameras, and a line for each class: how many objects there are, and how
    many of them hold points; a warning for categories with objects that nuScenes does not have."""
    for folder in _versions(root):
        tables, _ = read_tables(folder)
        if tables is not None:
            yield from _camera_lines(tables)
        if tables is None or not tables.annotated:
            yield f"{folder.name}: no annotations"
            continue
        annotations = tables.annotations
        held = annotations.num_lidar_pts.astype(np.int64) + annotations.num_radar_pts > 0
        of = np.array([CLASS_OF_CATEGORY.get(name, "") for name in tables.categories])[annotations.category]
        for name in NUSCENES_CLASSES:
            total = int((of == name).sum())
            if total:
                yield f"{folder.name}: {name}: {int((held & (of == name)).sum())} of {total} objects hold points"
        for attribute in tables.attributes:
            if attribute not in NUSCENES_ATTRIBUTES:
                yield (
                    f"warning: {table_file(folder, 'attribute')}: {attribute!r} is no attribute of nuScenes', "
                    "so nothing can be evaluated on this data"
                )
        for number, category in enumerate(tables.categories):
            count = int((annotations.category == number).sum())
            if count and category not in CLASS_OF_CATEGORY and category not in OTHER_CATEGORIES:
                yield (
                    f"warning: {table_file(folder, 'category')}: {category!r} is no category of nuScenes', "
                    f"its {count} objects are not learnt: {_likely_category(category)}"
                )


def _likely_category(name: str) -> str:
    """What another's own name of a category probably means, as ``vehicle.car`` for ``car``; or else all known ones."""
    lower = name.lower()
    for category, label in CLASS_OF_CATEGORY.items():
        if lower in (label, category.rpartition(".")[2], category):
            return f"did you mean {category}?"
    near = difflib.get_close_matches(lower, (*CLASS_OF_CATEGORY, *OTHER_CATEGORIES), n=1, cutoff=0.8)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(CLASS_OF_CATEGORY)}"


def _versions(root: Path) -> list[Path]:
    """The folders of tables."""
    return [f for f in sorted(root.iterdir()) if f.is_dir() and any(table_file(f, t).is_file() for t in REQUIRED)]


def _version_faults(folder: Path, scan_columns: int, cameras: Sequence[str] | None) -> Iterator[RecordFault]:
    tables, faults = read_tables(folder)
    yield from faults
    if tables is not None:
        unknown = None if cameras is None else unknown_cameras(tables, cameras)
        if unknown is not None:
            yield RecordFault(table_file(folder, "sensor"), None, unknown)
        yield from table_faults(tables, cameras)
        left_out = np.append(~_looked_at(tables, cameras), False)[_channels_of_data(tables)]
        yield from file_faults(tables, np.flatnonzero(~left_out).tolist(), scan_columns)


def table_faults(tables: Tables, cameras: Sequence[str] | None = None) -> Iterator[RecordFault]:
    """What is wrong between the records of tables that could be read; of cameras outside the rig ``cameras`` their
    calibration, and where they lack pictures, are nobody's concern."""
    looked_at = _looked_at(tables, cameras)
    yield from _scene_faults(tables)
    yield from _sample_faults(tables, looked_at, cameras or ())
    yield from _sample_data_faults(tables, looked_at)
    yield from _calibration_faults(tables, looked_at)
    yield from _annotation_faults(tables)


def _looked_at(t: Tables, cameras: Sequence[str] | None) -> np.ndarray:
    """Of each channel, whether it is of the rig, or no camera; all where there is no rig."""
    outside = set() if cameras is None else set(t.cameras) - set(cameras)
    return np.array([channel not in outside for channel in t.channels], bool)


def _scene_faults(t: Tables) -> Iterator[RecordFault]:
    path, scenes = table_file(t.folder, "scene"), t.scenes
    row = np.arange(len(scenes))
    start, end = (np.searchsorted(t.samples.scene, row, side) for side in ("left", "right"))
    yield from listed(path, scenes.token, np.flatnonzero(start == end), lambda r: "no sample belongs to this scene")
    late = (start < end) & (scenes.first_sample != NONE) & (scenes.first_sample != start)
    yield from listed(
        path, scenes.token, np.flatnonzero(late),
        lambda r: f"first_sample_token is not the scene's earliest sample, {t.sample_token(start[r])}",
    )  # fmt: skip


def _sample_faults(t: Tables, looked_at: np.ndarray, rig: Sequence[str]) -> Iterator[RecordFault]:
    path, samples, data = table_file(t.folder, "sample"), t.samples, t.sample_data
    yield from _link_faults(path, samples.token, samples.prev, samples.next, samples.timestamp, samples.scene, "scene")
    follows = np.append(samples.scene[1:] == samples.scene[:-1], False)
    yield from listed(
        path, samples.token, np.flatnonzero(follows & (samples.next == NONE)),
        lambda r: f"next is empty, but sample {t.sample_token(r + 1)} follows in its scene",
    )  # fmt: skip
    known = data.is_key_frame & (data.sample != NONE) & (data.calibrated_sensor != NONE)
    channel = t.calibrated_sensors.channel[data.calibrated_sensor[known]]
    count = np.zeros((len(samples), len(t.channels)), np.int64)
    np.add.at(count, (data.sample[known][channel != NONE], channel[channel != NONE]), 1)
    for name, of_channel, looked in zip(t.channels, count.T, looked_at, strict=True):
        if looked and (of_channel.any() or name in rig):
            none, several = np.flatnonzero(of_channel == 0), np.flatnonzero(of_channel > 1)
            yield from listed(path, samples.token, none, lambda r, n=name: f"has no key frame of {n}")
            yield from listed(path, samples.token, several, lambda r, n=name: f"has more than one key frame of {n}")


def _sample_data_faults(t: Tables, looked_at: np.ndarray) -> Iterator[RecordFault]:
    path, data = table_file(t.folder, "sample_data"), t.sample_data
    channel = _channels_of_data(t)
    yield from _link_faults(path, data.token, data.prev, data.next, data.timestamp, channel, "sensor")
    camera = _is_camera(t, looked_at)[channel]
    flat = np.flatnonzero(camera & ((data.width <= 0) | (data.height <= 0)))
    yield from listed(
        path, data.token, flat, lambda r: f"is {data.width[r]} x {data.height[r]} px, expected the size of an image"
    )


def _is_camera(t: Tables, looked_at: np.ndarray) -> np.ndarray:
    """Of each channel, whether it is a camera that is looked at; the last, False, is NONE's."""
    return np.append(looked_at & np.array([m == "camera" for m in t.modalities], bool), False)


def _calibration_faults(t: Tables, looked_at: np.ndarray) -> Iterator[RecordFault]:
    path, sensors = table_file(t.folder, "calibrated_sensor"), t.calibrated_sensors
    camera = _is_camera(t, looked_at)[sensors.channel]
    focal = sensors.camera_intrinsic[:, (0, 1), (0, 1)]
    blind = np.flatnonzero(camera & ~(focal > 0).all(-1))  # NaN where there is no matrix
    yield from listed(path, sensors.token, blind, lambda r: "camera_intrinsic has no positive focal lengths")
    data, sees = t.sample_data, np.append(camera & (focal > 0).all(-1), False)
    taken = sees[data.calibrated_sensor] & (data.width > 0) & (data.height > 0)
    sizes = np.unique(np.stack((data.calibrated_sensor, data.width, data.height), 1)[taken].astype(np.int64), axis=0)
    misfits: dict[int, str] = {}
    for row, width, height in sizes.tolist():
        (fx, _, cx), (_, fy, cy), _ = sensors.camera_intrinsic[row].tolist()
        fault = misfit(Camera.from_intrinsics(fx, fy, cx, cy), (width, height))
        if fault is not None:
            misfits.setdefault(row, fault)
    yield from listed(path, sensors.token, np.array(sorted(misfits), np.int64), lambda r: misfits[r])


def _annotation_faults(t: Tables) -> Iterator[RecordFault]:
    path, a = table_file(t.folder, ANNOTATION), t.annotations
    time = np.append(t.samples.timestamp, 0)[a.sample]
    yield from _link_faults(path, a.token, a.prev, a.next, time, a.instance, "object")
    yield from listed(
        path, a.token, np.flatnonzero(a.attribute_count > 1),
        lambda r: f"has {a.attribute_count[r]} attributes, expected at most one",
    )  # fmt: skip


def _link_faults(
    path: Path, tokens: np.ndarray, prev: np.ndarray, following: np.ndarray, time: np.ndarray, group: np.ndarray,
    kind: str,
) -> Iterator[RecordFault]:  # fmt: skip
    """Faults of a chain in time: a neighbour that does not link back, is not later or belongs to another ``group``."""
    row = np.arange(len(tokens))

    def of(link: np.ndarray, wrong: np.ndarray, sentence: str) -> Iterator[RecordFault]:
        rows = np.flatnonzero((link != NONE) & wrong)
        return listed(path, tokens, rows, lambda r: sentence.format(tokens.item(link.item(r)).decode()))

    if len(tokens) == 0:
        return
    yield from of(following, prev[following] != row, "next is {}, whose prev is another")
    yield from of(prev, following[prev] != row, "prev is {}, whose next is another")
    yield from of(following, time[following] <= time, "next is {}, which is not later")
    yield from of(following, group[following] != group, f"next is {{}}, which is of another {kind}")


def _channels_of_data(t: Tables) -> np.ndarray:
    """Index of the channel of every row of sensor data, NONE where its calibration is lost."""
    return np.append(t.calibrated_sensors.channel, NONE)[t.sample_data.calibrated_sensor]


def file_faults(t: Tables, rows: Sequence[int], scan_columns: int, quick: bool = False) -> Iterator[RecordFault]:
    """What is wrong with the files of some rows of sensor data; ``quick``: of pictures and scans as much is read as
    tells what they are."""
    data, channel, root = t.sample_data, _channels_of_data(t), t.folder.parent
    by_folder: dict[str, list[tuple[int, str]]] = {}
    filenames = data.filename.tolist()
    elsewhere = set(outside(data.filename).tolist())  # told with the tables, and nothing to look at
    for row in rows:
        if row in elsewhere:
            continue
        folder, _, name = filenames[row].decode().rpartition("/")
        by_folder.setdefault(folder, []).append((row, name))
    table = table_file(t.folder, "sample_data").name
    for folder, files in sorted(by_folder.items()):
        place = root / folder
        if not os.path.isdir(place):
            yield RecordFault(place, None, f"no such folder, expected {len(files)} files that {table} names")
            continue
        present = set(os.listdir(place))
        for row, name in files:
            if name not in present:
                yield RecordFault(
                    place / name, None, f"no such file, but token {data.token[row].decode()} of {table} names it"
                )
                continue
            modality = "" if channel[row] == NONE else t.modalities[channel[row]]
            size = (int(data.width[row]), int(data.height[row]))
            look = _quick_fault if quick else _content_fault
            sentence = look(place / name, modality, size, bool(data.is_key_frame[row]), scan_columns)
            if sentence is not None:
                yield RecordFault(place / name, None, sentence)


def _content_fault(path: Path, modality: str, size: tuple[int, int], key: bool, scan_columns: int) -> str | None:
    """What is wrong with a file of sensor data; ``size`` is what the tables say of an image (px)."""
    if not path.is_file():
        return "is no file"
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        return "is empty"
    try:
        if modality == "lidar":
            if not key and size_bytes % (4 * scan_columns) == 0:
                return None
            lost = ~np.isfinite(read_rows(path, scan_columns)).all(-1)
            if lost.any():
                return f"{lost.sum()} points hold NaN or Inf, the first is point {np.argmax(lost)} (from 0)"
        elif modality == "camera" and key:
            return _image_fault(path, size)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def _quick_fault(path: Path, modality: str, size: tuple[int, int], key: bool, scan_columns: int) -> str | None:
    """What ``_content_fault`` says, as far as headers and first points tell."""
    try:
        if modality == "lidar":
            if not np.isfinite(glance_at_rows(path, scan_columns)).all():
                return _content_fault(path, modality, size, key, scan_columns)
        elif modality == "camera" and key:
            return _size_fault(picture_size(path), size)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def _image_fault(path: Path, size: tuple[int, int]) -> str | None:
    with opened_picture(path) as image:
        # An eighth of the resolution is decoded: a fraction of the time, and a file cut short still shows.
        width, height = image.size
        image.draft("RGB", (size[0] // 8, size[1] // 8))
        image.load()
        if orientation(image) in SIDEWAYS:
            width, height = height, width
    return _size_fault((width, height), size)


def _size_fault(found: tuple[int, int], size: tuple[int, int]) -> str | None:
    return None if found == size else f"is {found[0]} x {found[1]} px, its record says {size[0]} x {size[1]}"
