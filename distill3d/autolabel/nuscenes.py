"""Labels in nuScenes' layout: tables of the same version, in which the chosen samples' annotations are a detector's.

    <out>/<version>/sample_annotation.json, instance.json     the detector's, those of other samples as they were
    <out>/<version>/category.json, attribute.json             with the names that these need
    <out>/<version>/...                                       links to the other tables
    <out>/samples, sweeps, maps                               links
    <out>/splits/auto.txt                                     the samples that were labelled; other splits are links
    <out>/autolabels/<sample token>.json                      the boxes of each sample with their scores

Velocities are not annotated but follow from an object's way, so boxes of neighbouring samples are joined to tracks:
each is moved by its own velocity, and joined to the nearest box of its class that is no nearer to another one and not
beyond ``REACH`` (the tracker of CenterPoint, Yin et al., CVPR 2021; tianweiy/CenterPoint tools/nusc_tracking).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from distill3d.autolabel.sets import Found, LabelledSet, link
from distill3d.boxes import NUSCENES_ATTRIBUTES, Boxes3D
from distill3d.data.autolabels import SPLIT
from distill3d.data.nuscenes.dataset import CLASS_OF_CATEGORY, SECONDS, NuScenesDataset
from distill3d.data.nuscenes.tables import ANNOTATION, table_file
from distill3d.data.surround import SurroundBatch
from distill3d.errors import UserError
from distill3d.evaluate.nuscenes_submission import SubmissionBox, sample_records
from distill3d.files import read_bytes, write_atomically, write_text

BOXES = "autolabels"
#: How far (m) a box may lie from where the one before was going; 1 m for classes that do not drive.
REACH = {"car": 4.0, "truck": 4.0, "bus": 5.5, "trailer": 3.0, "pedestrian": 1.0, "motorcycle": 13.0, "bicycle": 3.0}
SHORT_REACH = 1.0
#: The category by which a class is written, the first of several.
CATEGORY_OF_CLASS = {name: category for category, name in reversed(CLASS_OF_CATEGORY.items())}
#: Points in a box: those of a detector are not counted, and data sets leave out objects without any.
POINTS = 1

Record = dict[str, Any]


class _OfSample(msgspec.Struct):
    token: str
    sample_token: str
    instance_token: str
    prev: str
    next: str


class _Instance(msgspec.Struct):
    token: str
    first_annotation_token: str = ""
    last_annotation_token: str = ""


class SurroundSet(LabelledSet):
    """Samples of a nuScenes version."""

    dataset: NuScenesDataset

    def __init__(self, dataset: NuScenesDataset, identity: str, most: int | None) -> None:
        self.dataset, self.identity = dataset, identity
        self.frames = dataset.frame_ids[:most]
        self.root, self.tables = dataset.root, dataset.tables.folder

    def link(self, out: Path) -> None:
        for name in ("samples", "sweeps", "maps"):
            if (self.root / name).is_dir():
                link(out / name, self.root / name)
        written = {table_file(self.tables, name).name for name in (ANNOTATION, "instance", "category", "attribute")}
        for path in sorted(self.tables.iterdir()):
            if path.name not in written and path.is_file() and not path.name.startswith("."):
                link(out / self.tables.name / path.name, path)
        for path in sorted((self.root / "splits").glob("*.txt")):
            if path.stem != SPLIT:
                link(out / "splits" / path.name, path)

    def is_done(self, out: Path, frame: str) -> bool:
        return _path(out, frame).exists()

    def write(self, out: Path, batch: SurroundBatch, boxes: Boxes3D) -> None:
        (token,) = batch.frame_ids
        found = sample_records(token, boxes, batch.ego_to_global[0].cpu(), self.dataset.classes)
        write_text(_path(out, token), json.dumps([msgspec.to_builtins(box) for box in found], indent=0), flush=False)

    def finish(self, out: Path) -> None:
        boxes = {token: _read(out, token) for token in self.frames}
        instances, annotations = self._records(boxes)
        folder = out / self.tables.name
        kept = _kept(self.tables, set(self.frames))
        _write_table(folder / "instance.json", [*kept.instances, *map(msgspec.json.encode, instances)])
        _write_table(folder / f"{ANNOTATION}.json", [*kept.annotations, *map(msgspec.json.encode, annotations)])
        names = {"category": tuple(CATEGORY_OF_CLASS.values()), "attribute": NUSCENES_ATTRIBUTES}
        for name, wanted in names.items():
            records = _all_records(self.tables, name)
            there = {record["name"] for record in records}
            records += [{"token": _token(name, n), "name": n, "description": ""} for n in wanted if n not in there]
            _write_table(folder / f"{name}.json", list(map(msgspec.json.encode, records)))
        write_text(out / "splits" / f"{SPLIT}.txt", "".join(f"{token}\n" for token in self.frames))

    def found(self, out: Path) -> Iterator[Found]:
        for index, token in enumerate(self.frames):
            here = self.dataset.ego_to_global(index)[:2, 3].numpy()
            for box in _read(out, token):
                distance = float(np.hypot(*(np.array(box.translation[:2]) - here)))
                yield Found(box.detection_name, distance, float(box.detection_score))

    def _records(self, boxes: Mapping[str, list[SubmissionBox]]) -> tuple[list[Record], list[Record]]:
        """Records of instances and annotations, by sample."""
        tables = self.dataset.tables
        category = {r["name"]: r["token"] for r in _all_records(self.tables, "category")}
        attribute = {r["name"]: r["token"] for r in _all_records(self.tables, "attribute")}
        visible = [r["token"] for r in _all_records(self.tables, "visibility")][-1:]
        rows = {tables.sample_row(token): token for token in boxes}
        open_tracks: list[_Track] = []
        tracks: list[_Track] = []
        for row in sorted(rows):
            token, seconds = rows[row], float(tables.samples.timestamp[row]) * SECONDS
            before = open_tracks if int(tables.samples.prev[row]) in rows else []
            joined = joined_boxes(
                [t.boxes[-1] for t in before], boxes[token], seconds - (before[0].seconds if before else 0)
            )
            open_tracks = []
            for number, (box, former) in enumerate(zip(boxes[token], joined, strict=True)):
                if former is None:
                    tracks.append(_Track([], [], seconds))
                track = tracks[-1] if former is None else before[former]
                track.boxes.append(box)
                track.tokens.append(_token("annotation", token, number))
                track.seconds = seconds
                open_tracks.append(track)
        instances: list[Record] = []
        annotations: list[Record] = []
        for track in tracks:
            name = track.boxes[0].detection_name
            of_class = CATEGORY_OF_CLASS[name]
            instance = _token("instance", track.tokens[0])
            instances.append({
                "token": instance, "category_token": category.get(of_class, _token("category", of_class)),
                "nbr_annotations": len(track.tokens), "first_annotation_token": track.tokens[0],
                "last_annotation_token": track.tokens[-1],
            })  # fmt: skip
            neighbours = zip(track.tokens, ["", *track.tokens], [*track.tokens[1:], ""], track.boxes, strict=False)
            for token, former, later, box in neighbours:
                said = box.attribute_name
                annotations.append({
                    "token": token, "sample_token": box.sample_token, "instance_token": instance,
                    "visibility_token": visible[0] if visible else "",
                    "attribute_tokens": [attribute.get(said, _token("attribute", said))] if said else [],
                    "translation": box.translation, "size": box.size, "rotation": box.rotation, "prev": former,
                    "next": later, "num_lidar_pts": POINTS, "num_radar_pts": 0,
                })  # fmt: skip
        return instances, annotations


@dataclass
class _Track:
    """One object in neighbouring samples."""

    boxes: list[SubmissionBox]
    tokens: list[str]
    seconds: float  # of its last box


def joined_boxes(before: Sequence[SubmissionBox], now: Sequence[SubmissionBox], seconds: float) -> list[int | None]:
    """For each box of a sample the one of the sample before, ``seconds`` earlier, that is the same object."""
    if not before or not now:
        return [None] * len(now)
    going = np.array([np.add(b.translation[:2], np.multiply(b.velocity, seconds)) for b in before])
    way = np.linalg.norm(going[:, None] - np.array([b.translation[:2] for b in now])[None], axis=2)
    names = [np.array([b.detection_name for b in boxes]) for boxes in (before, now)]
    reach = np.array([REACH.get(b.detection_name, SHORT_REACH) for b in now])
    way[(names[0][:, None] != names[1][None]) | (way > reach[None])] = np.inf
    nearest, mutual = way.argmin(axis=0), way.argmin(axis=1)
    return [
        int(former) if np.isfinite(way[former, i]) and mutual[former] == i else None for i, former in enumerate(nearest)
    ]


# -------------------------------------------------------------------------------------------------------------- tables


def _path(out: Path, token: str) -> Path:
    return out / BOXES / f"{token}.json"


def _read(out: Path, token: str) -> list[SubmissionBox]:
    path = _path(out, token)
    try:
        return msgspec.json.decode(read_bytes(path), type=list[SubmissionBox])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: holds no boxes ({error}): remove it, and the same command writes it anew") from None


def _token(*names: object) -> str:
    """32 hexadecimal digits, as nuScenes' tokens have, that stand for a readable name."""
    return hashlib.blake2b("/".join(map(str, ("autolabel", *names))).encode(), digest_size=16).hexdigest()


def _write_table(path: Path, records: Sequence[bytes | msgspec.Raw]) -> None:
    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.write(b"[\n")
            for number, record in enumerate(records):
                file.write((b",\n" if number else b"") + bytes(record))
            file.write(b"\n]\n")

    write_atomically(path, write)


def _raw_records(folder: Path, name: str) -> list[msgspec.Raw]:
    """The records of a table as they stand in its file; none where there is no such table."""
    path = table_file(folder, name)
    if not path.is_file():
        return []
    data = read_bytes(path)
    if path.suffix == ".gz":
        import gzip

        data = gzip.decompress(data)
    try:
        return msgspec.json.decode(data, type=list[msgspec.Raw])
    except msgspec.DecodeError as error:
        raise UserError(f"{path}: is no list of records ({error})") from None


def _all_records(folder: Path, name: str) -> list[Record]:
    return [msgspec.json.decode(raw) for raw in _raw_records(folder, name)]


@dataclass
class _Kept:
    """Records of other samples; most of them as they stand in their files."""

    annotations: list[Any]
    instances: list[Any]


def _kept(folder: Path, labelled: set[str]) -> _Kept:
    """What people annotated in samples that are not ``labelled``; tracks end where they lead into those."""
    raws = _raw_records(folder, ANNOTATION)
    heads = [msgspec.json.decode(raw, type=_OfSample) for raw in raws]
    tokens = {head.token for head in heads if head.sample_token not in labelled}
    annotations: list[Any] = []
    of_instance: dict[str, list[_OfSample]] = defaultdict(list)
    for head, raw in zip(heads, raws, strict=True):
        if head.token not in tokens:
            continue
        lost = [name for name in ("prev", "next") if getattr(head, name) and getattr(head, name) not in tokens]
        annotations.append(msgspec.json.encode(msgspec.json.decode(raw) | dict.fromkeys(lost, "")) if lost else raw)
        of_instance[head.instance_token].append(head)
    instances: list[Any] = []
    for raw in _raw_records(folder, "instance"):
        head = msgspec.json.decode(raw, type=_Instance)
        if head.token not in of_instance:
            continue
        if {head.first_annotation_token, head.last_annotation_token} <= tokens:
            instances.append(raw)
            continue
        kept = of_instance[head.token]
        first = next(one for one in kept if one.prev not in tokens)
        last = next(one for one in reversed(kept) if one.next not in tokens)
        instances.append(msgspec.json.encode(msgspec.json.decode(raw) | {
            "nbr_annotations": len(kept), "first_annotation_token": first.token, "last_annotation_token": last.token,
        }))  # fmt: skip
    return _Kept(annotations, instances)
