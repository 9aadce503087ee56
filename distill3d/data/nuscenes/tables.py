"""nuScenes' tables as columns: read from the official JSON files, joined by row number, kept in a cache.

The official files are lists of records that name each other by token (nutonomy/nuscenes-devkit,
docs/schema_nuscenes.md).  The full set has 2.6 million records of sensor data, each with a vehicle pose: as Python
objects they take gigabytes, so the files are parsed piece by piece, straight into numpy columns, and tokens become row
numbers (int32, -1 for none).

Order of rows: scenes, sensor data, poses and calibrations as in their files; samples by scene, then by time;
annotations by sample, within a sample as in the file.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from distill3d.data.cache import cache_folder, cache_key, store_arrays, stored_arrays
from distill3d.data.nuscenes.json_columns import RecordFault, empty_columns, read_columns
from distill3d.errors import UserError

#: Row number that stands for nothing: no neighbour in time, no attribute.
NONE = -1
#: A velocity over a longer time is unknown (s); twice as long where an object has neighbours on both sides
#: (nutonomy/nuscenes-devkit python-sdk/nuscenes/nuscenes.py, box_velocity).
MAX_VELOCITY_TIME = 1.5
MICROSECOND = 1e-6  # s
#: A rotation's quaternion may differ from unit length by this much; the official ones do by 1e-6 or less.
UNIT_TOLERANCE = 1e-3
#: To be raised whenever the columns change, so that caches of before are not read.
CACHE_FORMAT = 2
#: Faults of one kind listed singly; a file that lacks half its records would otherwise fill the screen for hours.
MOST_LISTED = 1000

Row = int | np.integer


@dataclass(frozen=True)
class Scenes:
    """Drives of about 20 s; n rows."""

    token: np.ndarray  # (n,) bytes
    name: np.ndarray  # (n,) bytes, as b"scene-0103"
    first_sample: Int32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.token)


@dataclass(frozen=True)
class Samples:
    """Key frames (2 Hz), ordered by scene and then by time; n rows."""

    token: np.ndarray  # (n,) bytes
    timestamp: Int64[np.ndarray, " n"]  # us
    scene: Int32[np.ndarray, " n"]
    prev: Int32[np.ndarray, " n"]  # row of the sample before in the scene, NONE at its start
    next: Int32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.token)


@dataclass(frozen=True)
class SampleData:
    """Images and scans, those of key frames and those between; n rows."""

    token: np.ndarray  # (n,) bytes
    #: The sample that it belongs to; data between key frames names the sample that follows it.
    sample: Int32[np.ndarray, " n"]
    ego_pose: Int32[np.ndarray, " n"]  # the vehicle at the moment of exposure
    calibrated_sensor: Int32[np.ndarray, " n"]
    filename: np.ndarray  # (n,) bytes, relative to the data set's root
    timestamp: Int64[np.ndarray, " n"]  # us
    is_key_frame: Bool[np.ndarray, " n"]
    prev: Int32[np.ndarray, " n"]  # row of the data before from the same sensor, NONE at the scene's start
    next: Int32[np.ndarray, " n"]
    width: Int32[np.ndarray, " n"]  # px; 0 for what is no image
    height: Int32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.token)


@dataclass(frozen=True)
class EgoPoses:
    """Poses of the vehicle, vehicle to global; n rows."""

    translation: Float64[np.ndarray, "n 3"]  # m
    rotation: Float64[np.ndarray, "n 4"]  # quaternion w, x, y, z
    timestamp: Int64[np.ndarray, " n"]  # us

    def __len__(self) -> int:
        return len(self.timestamp)


@dataclass(frozen=True)
class CalibratedSensors:
    """Sensors as calibrated for a drive, sensor to vehicle; n rows."""

    token: np.ndarray  # (n,) bytes
    channel: Int32[np.ndarray, " n"]  # index into ``Tables.channels``
    translation: Float64[np.ndarray, "n 3"]  # m
    rotation: Float64[np.ndarray, "n 4"]  # quaternion w, x, y, z
    camera_intrinsic: Float64[np.ndarray, "n 3 3"]  # px; NaN for what is no camera

    def __len__(self) -> int:
        return len(self.token)


@dataclass(frozen=True)
class Annotations:
    """Annotated objects of the samples, in the global frame, ordered by sample; n rows, 0 in a test split."""

    token: np.ndarray  # (n,) bytes
    sample: Int32[np.ndarray, " n"]
    instance: Int32[np.ndarray, " n"]  # number of the track
    category: Int32[np.ndarray, " n"]  # index into ``Tables.categories``
    attribute: Int32[np.ndarray, " n"]  # index into ``Tables.attributes``, the first of several; NONE without any
    attribute_count: Int32[np.ndarray, " n"]  # 0 or 1 in the official data
    translation: Float64[np.ndarray, "n 3"]  # m, centre of the box
    wlh: Float64[np.ndarray, "n 3"]  # m, (width, length, height)
    rotation: Float64[np.ndarray, "n 4"]  # quaternion w, x, y, z
    num_lidar_pts: Int32[np.ndarray, " n"]
    num_radar_pts: Int32[np.ndarray, " n"]
    prev: Int32[np.ndarray, " n"]  # row of the same object in the sample before, NONE at the track's start
    next: Int32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.token)


@dataclass(frozen=True)
class Tables:
    """All that is needed of a nuScenes version. Columns may be read-only views of the cache's files."""

    folder: Path  # of the tables, as <root>/v1.0-mini
    channels: tuple[str, ...]  # sensors' names, as "CAM_FRONT"
    modalities: tuple[str, ...]  # of each channel: "camera", "lidar" or "radar"
    categories: tuple[str, ...]  # as "vehicle.bus.rigid"
    attributes: tuple[str, ...]  # as "vehicle.moving"
    scenes: Scenes
    samples: Samples
    sample_data: SampleData
    ego_poses: EgoPoses
    calibrated_sensors: CalibratedSensors
    annotations: Annotations

    @property
    def annotated(self) -> bool:
        """Whether the version has any annotation; a test split has none."""
        return len(self.annotations) > 0

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the camera sensors."""
        return tuple(name for name, kind in zip(self.channels, self.modalities, strict=True) if kind == "camera")

    def sample_row(self, token: str) -> int:
        """The row of a sample.

        Raises:
            UserError: no sample has this token.
        """
        row = self._sample_rows.get(token.encode())
        if row is None:
            raise UserError(f"{self.folder / 'sample.json'}: no sample has the token {token!r}")
        return row

    def sample_token(self, sample: Row) -> str:
        """The token of a sample row."""
        return self.samples.token[sample].decode()

    def scene_name(self, scene: Row) -> str:
        """The name of a scene row, as "scene-0103"."""
        return self.scenes.name[scene].decode()

    def scene_samples(self, scene: Row) -> range:
        """Rows of a scene's samples in order of time."""
        return range(int(self._scene_start[scene]), int(self._scene_start[scene + 1]))

    def key_data(self, sample: Row) -> dict[str, int]:
        """Rows of the sensor data of a key frame, by channel."""
        rows = self._key_rows[self._key_start[sample] : self._key_start[sample + 1]]
        return {self.channel(row): int(row) for row in rows}

    def annotations_of(self, sample: Row) -> slice:
        """Rows of the annotations of a sample, in the file's order."""
        return slice(int(self._annotation_start[sample]), int(self._annotation_start[sample + 1]))

    def channel(self, sample_data: Row) -> str:
        """The channel of a row of sensor data, as "CAM_FRONT"."""
        return self.channels[self.calibrated_sensors.channel[self.sample_data.calibrated_sensor[sample_data]]]

    def file(self, sample_data: Row) -> Path:
        """The file of a row of sensor data."""
        return self.folder.parent / self.sample_data.filename[sample_data].decode()

    def pose(self, sample_data: Row) -> Float64[np.ndarray, "4 4"]:
        """Vehicle to global at the moment of a row of sensor data."""
        row = self.sample_data.ego_pose[sample_data]
        return pose_matrices(self.ego_poses.translation[row], self.ego_poses.rotation[row])

    def sensor_pose(self, calibrated_sensor: Row) -> Float64[np.ndarray, "4 4"]:
        """Sensor to vehicle of a calibration."""
        sensors = self.calibrated_sensors
        return pose_matrices(sensors.translation[calibrated_sensor], sensors.rotation[calibrated_sensor])

    def velocities(self) -> Float64[np.ndarray, "n 3"]:
        """Velocity (m/s, global frame) of every annotation; NaN where it is unknown.

        (p_next - p_prev) / (t_next - t_prev) along the object's track, one-sided at its ends.  Unknown for a single
        annotation and where the time between is not positive or longer than ``MAX_VELOCITY_TIME`` (twice that where
        two-sided): nutonomy/nuscenes-devkit python-sdk/nuscenes/nuscenes.py, box_velocity.
        """
        a = self.annotations
        rows = np.arange(len(a), dtype=np.int32)
        first = np.where(a.prev == NONE, rows, a.prev)
        last = np.where(a.next == NONE, rows, a.next)
        # Seconds first, difference then, as the devkit rounds.
        seconds = (MICROSECOND * self.samples.timestamp)[a.sample]
        time = seconds[last] - seconds[first]
        longest = np.where((a.prev != NONE) & (a.next != NONE), 2 * MAX_VELOCITY_TIME, MAX_VELOCITY_TIME)
        known = (time > 0) & (time <= longest)
        way = a.translation[last] - a.translation[first]
        return np.divide(way, time[:, None], out=np.full_like(way, np.nan), where=known[:, None])

    @cached_property
    def _sample_rows(self) -> dict[bytes, int]:
        return {token: row for row, token in enumerate(self.samples.token.tolist())}

    @cached_property
    def _scene_start(self) -> np.ndarray:
        return np.searchsorted(self.samples.scene, np.arange(len(self.scenes) + 1))

    @cached_property
    def _annotation_start(self) -> np.ndarray:
        return np.searchsorted(self.annotations.sample, np.arange(len(self.samples) + 1))

    @cached_property
    def _key_rows(self) -> np.ndarray:
        """Rows of the sensor data of key frames, by sample."""
        rows = np.flatnonzero(self.sample_data.is_key_frame)
        return rows[np.argsort(self.sample_data.sample[rows], kind="stable")]

    @cached_property
    def _key_start(self) -> np.ndarray:
        return np.searchsorted(self.sample_data.sample[self._key_rows], np.arange(len(self.samples) + 1))


def pose_matrices(
    translation: Float64[np.ndarray, "*n 3"], rotation: Float64[np.ndarray, "*n 4"]
) -> Float64[np.ndarray, "*n 4 4"]:
    """Rigid motions (..., 4, 4) from translations (..., 3) in m and quaternions (..., 4) = (w, x, y, z).

    The quaternions are normalised.
    """
    w, x, y, z = np.moveaxis(rotation / np.linalg.norm(rotation, axis=-1, keepdims=True), -1, 0)
    matrix = np.zeros((*translation.shape[:-1], 4, 4))
    matrix[..., 0, :3] = np.stack((1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)), axis=-1)
    matrix[..., 1, :3] = np.stack((2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)), axis=-1)
    matrix[..., 2, :3] = np.stack((2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)), axis=-1)
    matrix[..., :3, 3] = translation
    matrix[..., 3, 3] = 1
    return matrix


# -------------------------------------------------------------------------------------------------------------- reading

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]


class _Scene(msgspec.Struct, gc=False):
    token: str
    name: str
    first_sample_token: str


class _Sample(msgspec.Struct, gc=False):
    token: str
    timestamp: int
    scene_token: str
    prev: str
    next: str


class _SampleData(msgspec.Struct, gc=False):
    token: str
    sample_token: str
    ego_pose_token: str
    calibrated_sensor_token: str
    filename: str
    timestamp: int
    is_key_frame: bool
    prev: str
    next: str
    width: int
    height: int


class _EgoPose(msgspec.Struct, gc=False):
    token: str
    translation: Vector
    rotation: Quaternion
    timestamp: int


class _CalibratedSensor(msgspec.Struct, gc=False):
    token: str
    sensor_token: str
    translation: Vector
    rotation: Quaternion
    camera_intrinsic: list[Vector]


class _Sensor(msgspec.Struct, gc=False):
    token: str
    channel: str
    modality: str


class _Named(msgspec.Struct, gc=False):
    token: str
    name: str


class _Instance(msgspec.Struct, gc=False):
    token: str
    category_token: str


class _Annotation(msgspec.Struct, gc=False):
    token: str
    sample_token: str
    instance_token: str
    attribute_tokens: list[str]
    translation: Vector
    size: Vector
    rotation: Quaternion
    num_lidar_pts: int
    num_radar_pts: int
    prev: str
    next: str


#: The tables of every version, and those that only annotations need (nuScenes' others: visibility, log, map).
REQUIRED = {
    "scene": _Scene, "sample": _Sample, "sample_data": _SampleData, "ego_pose": _EgoPose,
    "calibrated_sensor": _CalibratedSensor, "sensor": _Sensor,
}  # fmt: skip
_FOR_ANNOTATIONS = {"instance": _Instance, "category": _Named, "attribute": _Named}
ANNOTATION = "sample_annotation"
#: Which table each token of a record names.
_REFERENCES = {
    "scene": {"first_sample_token": "sample"},
    "sample": {"scene_token": "scene", "prev": "sample", "next": "sample"},
    "sample_data": {
        "sample_token": "sample", "ego_pose_token": "ego_pose", "calibrated_sensor_token": "calibrated_sensor",
        "prev": "sample_data", "next": "sample_data",
    },
    "calibrated_sensor": {"sensor_token": "sensor"},
    "instance": {"category_token": "category"},
    "sample_annotation": {
        "sample_token": "sample", "instance_token": "instance", "attribute_tokens": "attribute",
        "prev": "sample_annotation", "next": "sample_annotation",
    },
}  # fmt: skip
#: The tables with a translation and a rotation.
_POSES = ("ego_pose", "calibrated_sensor", ANNOTATION)
_MAY_BE_EMPTY = ("prev", "next", "attribute_tokens")
Columns = dict[str, np.ndarray]
#: Whole numbers whose columns have 32 bits.
_SMALL_NUMBERS = {"sample_data": ("width", "height"), ANNOTATION: ("num_lidar_pts", "num_radar_pts")}
_NAMES_AT_ONCE = 1 << 16
_INT32 = np.iinfo(np.int32)
_FLOAT32_MAX, _FLOAT32_LEAST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
#: Multiplier and shift of the hash of a token's 8-byte words (the multiplier is MurmurHash3's 64-bit finaliser's).
_HASH_FACTOR = np.uint64(0xFF51AFD7ED558CCD)
_HASH_SHIFT = np.uint64(33)


def load_tables(root: Path, version: str, cache: bool = True) -> Tables:
    """The tables of ``root/version``.

    The files may be .json or .json.gz.  Without ``sample_annotation`` (or with an empty one) there are no annotations,
    and the tables that only they need may be absent; ``visibility``, ``log`` and ``map`` are never looked at.

    Args:
        root: the data set's folder, which holds ``samples`` and the versions' folders.
        version: name of the tables' folder, as "v1.0-trainval".
        cache: keep the columns in the data set's cache folder (or, where that cannot be written, in the user's) and
            take them from there as long as the files' names, sizes and times of change stay as they are.

    Raises:
        UserError: a file is absent or malformed, a record lacks a key, names another that is not there, or has the
            same token as another.
    """
    folder = root / version
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder, expected nuScenes' tables (sample.json, sample_data.json, ...)")
    place = _cache_place(root, folder) if cache else None
    arrays = None if place is None else stored_arrays(place)
    if arrays is not None:
        try:
            return _from_arrays(folder, arrays)
        except KeyError:
            pass  # a file of the cache was lost
    tables, faults = read_tables(folder)
    if tables is None or faults:
        more = f" (and {len(faults) - 1} more; `distill3d check` names them all)" if len(faults) > 1 else ""
        raise UserError(f"{faults[0]}{more}")
    if place is not None:
        try:
            store_arrays(place, _to_arrays(tables))
        except OSError as error:
            warnings.warn(f"{place}: cannot be written ({error.strerror}); the tables are read anew", stacklevel=2)
        _remove_stale(place)
    return tables


def version_in(root: Path, named: str) -> str:
    """The folder of tables that is meant where nobody says: the one ``named`` by a recipe, else the only one.

    Raises:
        UserError: there are several others.
    """
    there = sorted({path.parent.name for path in root.glob("*/sample.json*")})
    if named not in there and len(there) > 1:
        raise UserError(f"{root}: holds the tables {', '.join(there)}, and no {named}: give one of them as --version")
    return there[0] if named not in there and there else named


def read_tables(folder: Path) -> tuple[Tables | None, list[RecordFault]]:
    """The tables in a version's folder, as far as they are sound, and everything that is wrong with them.

    References that lead nowhere are ``NONE``, and records that lack a key are left out.  There are no tables where a
    file as a whole is absent or malformed.
    """
    tables: dict[str, Columns] = {}
    faults: list[RecordFault] = []
    unsound: set[str] = set()  # tables whose records are not all there

    def read(name: str, record: type[msgspec.Struct]) -> None:
        columns, found = read_columns(table_file(folder, name), record)
        faults.extend(found)
        if found:
            unsound.add(name)
        if columns is not None:
            tables[name] = columns

    for name, record in REQUIRED.items():
        read(name, record)
    if table_file(folder, ANNOTATION).is_file():
        read(ANNOTATION, _Annotation)
    annotated = len(tables[ANNOTATION]["token"]) > 0 if ANNOTATION in tables else ANNOTATION in unsound
    for name, record in _FOR_ANNOTATIONS.items():
        if annotated:
            read(name, record)
        else:
            tables[name] = empty_columns(record)
    if not annotated:
        tables[ANNOTATION] = empty_columns(_Annotation)
    faults += _resolve(folder, tables, unsound)
    if len(tables) < len(REQUIRED) + 1 + len(_FOR_ANNOTATIONS):
        return None, faults
    faults += _value_faults(folder, tables)
    for name in _POSES:
        path, columns = table_file(folder, name), tables[name]
        faults += _pose_faults(path, columns["token"], columns["translation"], columns["rotation"])
    built, found = _assemble(folder, tables)
    return built, faults + found


def table_file(folder: Path, name: str) -> Path:
    """The file of a table in a version's folder: .json, or .json.gz where only that is there."""
    plain, packed = folder / f"{name}.json", folder / f"{name}.json.gz"
    return packed if packed.is_file() and not plain.is_file() else plain


def listed(path: Path, tokens: np.ndarray, rows: np.ndarray, sentence: Callable[[int], str]) -> Iterator[RecordFault]:
    """One fault for each of the rows, the first ``MOST_LISTED`` by token and the others by their number."""
    for row in rows[:MOST_LISTED].tolist():
        yield RecordFault(path, f"token {tokens.item(row).decode()}", sentence(row))
    if len(rows) > MOST_LISTED:
        yield RecordFault(path, None, f"{len(rows) - MOST_LISTED} more records with the same fault")


def _value_faults(folder: Path, tables: dict[str, Columns]) -> Iterator[RecordFault]:
    """Numbers that mean nothing or that their columns cannot hold, and files outside the data set's folder."""
    for name, keys in _SMALL_NUMBERS.items():
        path, columns = table_file(folder, name), tables[name]
        for key in keys:
            values = columns[key]
            large = np.flatnonzero((values < _INT32.min) | (values > _INT32.max))
            yield from listed(
                path, columns["token"], large, lambda r, k=key, v=values: f"{k} is {v[r]}, expected 32 bits at most"
            )
    path, objects = table_file(folder, ANNOTATION), tables[ANNOTATION]
    size, tokens = objects["size"], objects["token"]
    wrong = np.flatnonzero(~((size >= _FLOAT32_LEAST) & (size <= _FLOAT32_MAX)).all(axis=-1))
    yield from listed(path, tokens, wrong, lambda r: f"size is {size[r].tolist()} m, expected positive numbers")
    for key in _SMALL_NUMBERS[ANNOTATION]:
        negative = np.flatnonzero(objects[key] < 0)
        yield from listed(path, tokens, negative, lambda r, k=key: f"{k} is {objects[k][r]}")
    data = tables["sample_data"]
    yield from listed(
        table_file(folder, "sample_data"), data["token"], outside(data["filename"]),
        lambda r: f"filename {data['filename'].item(r).decode()!r} is no name inside the data set's folder",
    )  # fmt: skip


def outside(names: np.ndarray) -> np.ndarray:
    """Rows of names (n,) bytes that lead out of a folder: empty, absolute or with a part ``..``."""
    if len(names) == 0:
        return np.zeros(0, np.int64)
    first = np.ascontiguousarray(names).view(np.uint8).reshape(len(names), -1)[:, 0]
    rows = set(np.flatnonzero((first == 0) | (first == ord("/"))).tolist())
    for begin in range(0, len(names), _NAMES_AT_ONCE):
        part = names[begin : begin + _NAMES_AT_ONCE]
        if b".." in part.tobytes():
            rows |= {begin + r for r, name in enumerate(part.tolist()) if b".." in name.split(b"/")}
    return np.array(sorted(rows), np.int64)


def _pose_faults(
    path: Path, tokens: np.ndarray, translation: np.ndarray, rotation: np.ndarray
) -> Iterator[RecordFault]:
    lost = np.flatnonzero(~(np.abs(translation) <= _FLOAT32_MAX).all(axis=-1))
    yield from listed(path, tokens, lost, lambda row: "translation is not finite, or larger than 3.4e38")
    length = np.linalg.norm(rotation, axis=-1)
    bent = np.flatnonzero(~(np.abs(length - 1) <= UNIT_TOLERANCE))
    yield from listed(
        path, tokens, bent, lambda row: f"rotation has length {length[row]:g}, expected a unit quaternion"
    )


# -------------------------------------------------------------------------------------------------------------- joining


class _TokenRows:
    """Finds the rows of a table by token: a sorted index of 64-bit hashes, of the tokens where two hashes are equal."""

    def __init__(self, tokens: np.ndarray) -> None:
        self._tokens = tokens
        self._hashed = True
        self._sort()
        if (self._sorted[1:] == self._sorted[:-1]).any():
            self._hashed = False
            self._sort()

    def _sort(self) -> None:
        keys = self._keys(self._tokens)
        # Equal tokens must keep their order; equal hashes do not occur.
        self._order = np.argsort(keys, kind=None if self._hashed else "stable")
        self._sorted = keys[self._order]

    def _keys(self, tokens: np.ndarray) -> np.ndarray:
        if not self._hashed:
            return tokens
        words = max(-(-self._tokens.itemsize // 8), 1)
        # A token too long is cut here and told apart by ``find``.
        parts = np.ascontiguousarray(tokens.astype(f"S{8 * words}", copy=False)).view(np.uint64).reshape(-1, words)
        keys = np.zeros(len(tokens), np.uint64)
        for i in range(words):
            keys = (keys ^ parts[:, i]) * _HASH_FACTOR
            keys ^= keys >> _HASH_SHIFT
        return keys

    def repeated(self) -> np.ndarray:
        """Rows whose token stands in an earlier row."""
        if self._hashed:
            return np.zeros(0, np.int64)
        return np.sort(self._order[1:][self._sorted[1:] == self._sorted[:-1]])

    def find(self, tokens: np.ndarray) -> Int32[np.ndarray, " n"]:
        """The first row of each token, NONE where there is none."""
        if len(self._tokens) == 0:
            return np.full(len(tokens), NONE, np.int32)
        keys = self._keys(tokens)
        place = _search_spread(self._sorted, keys) if self._hashed else np.searchsorted(self._sorted, keys)
        rows = self._order[np.minimum(place, len(self._order) - 1)].astype(np.int32)
        rows[self._tokens[rows] != tokens] = NONE
        return rows


def _search_spread(ordered: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """``np.searchsorted`` of 64-bit keys that are spread evenly, as hashes are.

    A table of where each leading bit pattern begins leads within a few places of the answer: for millions of keys more
    than ten times as fast as bisection, which misses the processor's caches at every step.
    """
    shift = np.uint64(64 - max(len(ordered).bit_length(), 1))
    patterns = np.arange(np.uint64(1) << (np.uint64(64) - shift), dtype=np.uint64)
    begin = np.searchsorted(ordered >> shift, patterns)
    bounded = np.append(ordered, np.iinfo(np.uint64).max)
    place = begin[keys >> shift]
    before = np.flatnonzero(bounded[place] < keys)
    while len(before):
        place[before] += 1
        before = before[bounded[place[before]] < keys[before]]
    return place


def _resolve(folder: Path, tables: dict[str, Columns], unsound: set[str]) -> list[RecordFault]:
    """Replaces the tokens that name other records by row numbers; returns what is wrong with tokens."""
    faults: list[RecordFault] = []
    for target, columns in tables.items():
        path, tokens = table_file(folder, target), columns["token"]
        index = _TokenRows(tokens)
        faults += listed(path, tokens, index.repeated(), lambda row: "stands twice, expected a token of its own")
        if (tokens == b"").any():
            faults.append(RecordFault(path, f"record {np.argmax(tokens == b'') + 1}", "the token is empty"))
        for name, references in _REFERENCES.items():
            for field in [f for f, t in references.items() if t == target and name in tables]:
                named = tables[name][field]
                rows = index.find(named.reshape(-1)).reshape(named.shape)
                tables[name][field] = rows
                lost = rows == NONE
                if field in _MAY_BE_EMPTY:
                    rows[named == b""] = NONE
                    lost &= named != b""
                if target not in unsound:
                    faults += _dangling(table_file(folder, name), tables[name]["token"], field, named, lost, path.name)
    return faults


def _dangling(
    path: Path, tokens: np.ndarray, field: str, named: np.ndarray, lost: np.ndarray, expected: str
) -> Iterator[RecordFault]:
    """Faults for records of ``path`` whose ``field`` names (where ``lost``) a token that is not in ``expected``."""

    def sentence(row: int) -> str:
        token = (named.item(row) if named.ndim == 1 else named.item(row, int(np.argmax(lost[row])))).decode()
        return f"{field} {token} is not in {expected}" if token else f"{field} is empty, expected a token of {expected}"

    return listed(path, tokens, np.flatnonzero(lost if lost.ndim == 1 else lost.any(axis=-1)), sentence)


def _assemble(folder: Path, tables: dict[str, Columns]) -> tuple[Tables, list[RecordFault]]:
    """Puts samples and annotations in order, and the columns into their groups."""
    scene, sample, data, annotation = (tables[name] for name in ("scene", "sample", "sample_data", ANNOTATION))
    sensor, calibration = tables["sensor"], tables["calibrated_sensor"]
    sample_order = np.lexsort((sample["timestamp"], sample["scene_token"]))
    sample_rows = _inverse(sample_order)
    annotation_sample = sample_rows[annotation["sample_token"]]
    annotation_order = np.argsort(annotation_sample, kind="stable")
    annotation_rows = _inverse(annotation_order)
    annotation = {name: column[annotation_order] for name, column in annotation.items()}
    names = [name.decode() for name in sensor["channel"].tolist()]
    modality = dict(zip(names, sensor["modality"].tolist(), strict=True))
    channels = tuple(modality)
    channel_of = np.array([channels.index(name) for name in names] + [NONE], np.int32)
    intrinsic, faults = _intrinsics(table_file(folder, "calibrated_sensor"), calibration)
    category_of = np.append(tables["instance"]["category_token"], np.int32(NONE))
    attributes = annotation["attribute_tokens"]
    built = Tables(
        folder=folder,
        channels=channels,
        modalities=tuple(modality[channel].decode() for channel in channels),
        categories=tuple(name.decode() for name in tables["category"]["name"].tolist()),
        attributes=tuple(name.decode() for name in tables["attribute"]["name"].tolist()),
        scenes=Scenes(token=scene["token"], name=scene["name"], first_sample=sample_rows[scene["first_sample_token"]]),
        samples=Samples(
            token=sample["token"][sample_order],
            timestamp=sample["timestamp"][sample_order],
            scene=sample["scene_token"][sample_order],
            prev=sample_rows[sample["prev"][sample_order]],
            next=sample_rows[sample["next"][sample_order]],
        ),
        sample_data=SampleData(
            token=data["token"],
            sample=sample_rows[data["sample_token"]],
            ego_pose=data["ego_pose_token"],
            calibrated_sensor=data["calibrated_sensor_token"],
            filename=data["filename"],
            timestamp=data["timestamp"],
            is_key_frame=data["is_key_frame"],
            prev=data["prev"],
            next=data["next"],
            width=data["width"].astype(np.int32),
            height=data["height"].astype(np.int32),
        ),
        ego_poses=EgoPoses(
            translation=tables["ego_pose"]["translation"],
            rotation=tables["ego_pose"]["rotation"],
            timestamp=tables["ego_pose"]["timestamp"],
        ),
        calibrated_sensors=CalibratedSensors(
            token=calibration["token"],
            channel=channel_of[calibration["sensor_token"]],
            translation=calibration["translation"],
            rotation=calibration["rotation"],
            camera_intrinsic=intrinsic,
        ),
        annotations=Annotations(
            token=annotation["token"],
            sample=annotation_sample[annotation_order],
            instance=annotation["instance_token"],
            category=category_of[annotation["instance_token"]],
            attribute=attributes[:, 0],
            attribute_count=(attributes != NONE).sum(-1, dtype=np.int32),
            translation=annotation["translation"],
            wlh=annotation["size"],
            rotation=annotation["rotation"],
            num_lidar_pts=annotation["num_lidar_pts"].astype(np.int32),
            num_radar_pts=annotation["num_radar_pts"].astype(np.int32),
            prev=annotation_rows[annotation["prev"]],
            next=annotation_rows[annotation["next"]],
        ),
    )
    return built, faults


def _inverse(order: np.ndarray) -> Int32[np.ndarray, " n1"]:
    """New row of each old row, and at the end (where NONE points) NONE."""
    rows = np.full(len(order) + 1, NONE, np.int32)
    rows[order] = np.arange(len(order), dtype=np.int32)
    return rows


def _intrinsics(path: Path, calibration: Columns) -> tuple[Float64[np.ndarray, "n 3 3"], list[RecordFault]]:
    """Camera matrices, NaN where a sensor has none, and those that are no 3 x 3 matrix."""
    given = calibration["camera_intrinsic"]
    rows = np.array([len(matrix) for matrix in given], np.int64)
    intrinsic = np.full((len(given), 3, 3), np.nan)
    intrinsic[rows == 3] = np.array([matrix for matrix in given if len(matrix) == 3]).reshape(-1, 3, 3)
    bad = np.flatnonzero((rows != 0) & (rows != 3))
    return intrinsic, list(
        listed(path, calibration["token"], bad, lambda r: f"camera_intrinsic has {rows[r]} rows, expected 3 or none")
    )


# ---------------------------------------------------------------------------------------------------------------- cache

_GROUPS = {
    "scenes": Scenes, "samples": Samples, "sample_data": SampleData, "ego_poses": EgoPoses,
    "calibrated_sensors": CalibratedSensors, "annotations": Annotations,
}  # fmt: skip
_NAMES = ("channels", "modalities", "categories", "attributes")


def _cache_place(root: Path, folder: Path) -> Path | None:
    """The folder for the columns of exactly these files; None where nothing can be written."""
    try:
        base = cache_folder(root)
    except UserError:
        return None
    files = [table_file(folder, name) for name in (*REQUIRED, ANNOTATION, *_FOR_ANNOTATIONS)]
    stamps = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    # The user's cache folder serves several data sets, whose versions may have one name.
    data_set = cache_key(str(folder.resolve()))[:8]
    return base / f"tables-{folder.name}-{data_set}-{cache_key(CACHE_FORMAT, stamps)}"


def _remove_stale(place: Path) -> None:
    """Removes the columns of former states of the same files; processes that have them open keep them."""
    family = place.name.rpartition("-")[0]
    for other in place.parent.glob("tables-*"):
        if other.name.startswith(f"{family}-") and other != place:
            shutil.rmtree(other, ignore_errors=True)


def _to_arrays(tables: Tables) -> dict[str, np.ndarray]:
    arrays = {name: np.array(getattr(tables, name), np.str_) for name in _NAMES}
    for group, kind in _GROUPS.items():
        arrays |= {f"{group}.{f.name}": getattr(getattr(tables, group), f.name) for f in fields(kind)}
    return arrays


def _from_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> Tables:
    groups = {g: kind(**{f.name: arrays[f"{g}.{f.name}"] for f in fields(kind)}) for g, kind in _GROUPS.items()}
    return Tables(folder=folder, **{name: tuple(arrays[name].tolist()) for name in _NAMES}, **groups)
