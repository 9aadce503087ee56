"""nuScenes' submission file: the predictions of many samples in one JSON object.

    {"meta": {"use_camera": true, ...},
     "results": {<sample token>: [{"sample_token", "translation": [x, y, z], "size": [w, l, h],
                                   "rotation": [w, x, y, z], "velocity": [vx, vy], "detection_name",
                                   "detection_score": 0..1, "attribute_name"}, ...], ...}}

All in the global frame, m and m/s; at most 500 boxes a sample; samples without a box hold an empty list.

The validation set with 300 boxes a sample is nearly a gigabyte. It is written and read sample by sample, so that only
one sample's boxes at a time are Python objects.

Source: nutonomy/nuscenes-devkit python-sdk/nuscenes/eval/detection/README.md, eval/common/loaders.py; the choice of
attributes is that of Megvii-BaseDetection/BEVDepth bevdepth/evaluators/det_evaluators.py.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from distill3d.boxes import NUSCENES_CLASSES, Boxes3D, to_nuscenes
from distill3d.errors import UserError
from distill3d.evaluate.nuscenes_boxes import (
    ATTRIBUTES,
    CLASSES,
    MAX_BOXES,
    NO_ATTRIBUTE,
    PREDICTED_POINTS,
    DetectionBoxes,
    yaw_of,
)
from distill3d.files import read_bytes, write_atomically

MOVING_SPEED = 0.2  # m/s; faster objects get the attribute of moving ones
MOVING_ATTRIBUTE = {
    "car": "vehicle.moving",
    "truck": "vehicle.moving",
    "construction_vehicle": "vehicle.moving",
    "bus": "vehicle.moving",
    "trailer": "vehicle.moving",
    "motorcycle": "cycle.with_rider",
    "bicycle": "cycle.with_rider",
    "pedestrian": "pedestrian.moving",
}
STILL_ATTRIBUTE = {
    "car": "vehicle.parked",
    "truck": "vehicle.parked",
    "construction_vehicle": "vehicle.parked",
    "bus": "vehicle.stopped",
    "trailer": "vehicle.parked",
    "motorcycle": "cycle.without_rider",
    "bicycle": "cycle.without_rider",
    "pedestrian": "pedestrian.standing",
}

Pair = tuple[float, float]
Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]


class SubmissionBox(msgspec.Struct, gc=False):
    """One entry of a sample's list, in the global frame."""

    sample_token: str
    translation: Vector  # m, centre
    size: Vector  # m, (width, length, height)
    rotation: Quaternion  # w, x, y, z
    velocity: Pair  # m/s
    detection_name: str
    detection_score: float | int  # an int where the file has no decimal point, which is refused
    attribute_name: str


@dataclass(frozen=True)
class SubmissionMeta:
    """What the predictions were made from, at test time."""

    use_camera: bool = True
    use_lidar: bool = False
    use_radar: bool = False
    use_map: bool = False
    use_external: bool = False


# ----------------------------------------------------------------------------------------------------------- writing


def attribute_name(detection_name: str, speed: float) -> str:
    """The likeliest attribute of an object that moves at ``speed`` (m/s); "" for a class without attributes."""
    return (MOVING_ATTRIBUTE if speed > MOVING_SPEED else STILL_ATTRIBUTE).get(detection_name, "")


def write_submission(
    path: Path,
    detections: Iterable[tuple[str, Boxes3D]],
    ego_to_global: Mapping[str, Float[Tensor, "4 4"]],
    classes: Sequence[str] = NUSCENES_CLASSES,
    meta: SubmissionMeta | None = None,
    put: Callable[[Path, Callable[[Path], object]], object] = write_atomically,
) -> None:
    """Write detections of the key ego frame as a submission.

    Args:
        path: the file, which is written beside its place first and then put there.
        detections: sample token and boxes with scores, in any order; of more than 500 those of highest score are kept,
            and a velocity that is absent or not finite is written as 0.
        ego_to_global: of every sample of the split; those without detections get an empty list.
        classes: what the boxes' labels index.
        meta: by default: camera only.
        put: how the file comes to its place, ``files.write_output`` where that is the user's.

    Raises:
        ValueError: a sample unknown to ``ego_to_global`` or given twice, boxes of another frame or without scores, or a
            score outside 0..1.
    """
    encode = msgspec.json.encode
    missing = dict.fromkeys(ego_to_global)

    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.write(b'{"meta": ' + encode(asdict(meta or SubmissionMeta())) + b', "results": {')
            separator = b"\n"
            for token, boxes in detections:
                if token not in missing:
                    raise ValueError(f"sample {token} has no pose, or was given before")
                del missing[token]
                records = sample_records(token, boxes, ego_to_global[token], classes)
                file.write(separator + encode(token) + b": " + encode(records))
                separator = b",\n"
            for token in missing:
                file.write(separator + encode(token) + b": []")
                separator = b",\n"
            file.write(b"\n}}\n")

    put(path, write)


def sample_records(
    token: str, boxes: Boxes3D, ego_to_global: Float[Tensor, "4 4"], classes: Sequence[str]
) -> list[SubmissionBox]:
    """The entries of one sample, by descending score.

    Raises:
        ValueError: as `write_submission`.
    """
    if boxes.frame != "ego" or boxes.score is None:
        raise ValueError(f"sample {token}: expected boxes of the ego frame with scores")
    if not ((boxes.score >= 0) & (boxes.score <= 1)).all():
        raise ValueError(f"sample {token}: scores must lie in 0..1")
    kept = boxes.score.argsort(descending=True, stable=True)[:MAX_BOXES]
    boxes, score = boxes[kept].to(torch.float64), boxes.score[kept]
    pose = ego_to_global.to(boxes.centre)
    centre, wlh, turn = to_nuscenes(boxes)
    velocity = torch.zeros_like(centre[:, :2])
    if boxes.velocity is not None:
        velocity = torch.where(boxes.velocity.isfinite().all(1, keepdim=True), boxes.velocity, 0.0)
    velocity = velocity @ pose[:2, :2].T
    names = [classes[label] for label in map(int, boxes.label.tolist())]
    attributes = map(attribute_name, names, velocity.norm(dim=1).tolist())
    columns = (
        (centre @ pose[:3, :3].T + pose[:3, 3]).tolist(),
        wlh.tolist(),
        _after(turn, _quaternion(np.array(pose[:3, :3].tolist()))).tolist(),
        velocity.tolist(),
        names,
        score.tolist(),
        attributes,
    )
    return [SubmissionBox(token, *values) for values in zip(*columns, strict=True)]


def _quaternion(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, " 4"]:
    """Unit quaternion w, x, y, z of a rotation matrix, up to sign.

    Four times the outer product of the quaternion with itself is linear in the matrix; its column of largest diagonal
    is the quaternion times a number that is safely not zero.
    """
    (a, b, c), (d, e, f), (g, h, i) = rotation
    product = np.array(
        (
            (1 + a + e + i, h - f, c - g, d - b),
            (h - f, 1 + a - e - i, b + d, c + g),
            (c - g, b + d, 1 - a + e - i, f + h),
            (d - b, c + g, f + h, 1 - a - e + i),
        )
    )
    column = product[product.diagonal().argmax()]
    return column / np.linalg.norm(column)


def _after(turn: Float[Tensor, "n 4"], pose: Float[np.ndarray, " 4"]) -> Float[Tensor, "n 4"]:
    """Quaternions (n, 4) of the rotation ``turn`` followed by the rotation ``pose``."""
    w, x, y, z = pose.tolist()
    left = turn.new_tensor(((w, -x, -y, -z), (x, w, -z, y), (y, z, w, -x), (z, -y, x, w)))
    return turn @ left.T


# ----------------------------------------------------------------------------------------------------------- reading


class _Submission(msgspec.Struct):
    results: dict[str, msgspec.Raw]


_LABELS = {name: label for label, name in enumerate(CLASSES)}
_ATTRIBUTES = {"": NO_ATTRIBUTE, **{name: index for index, name in enumerate(ATTRIBUTES)}}
_UNKNOWN = NO_ATTRIBUTE - 1  # stands for a name that is in neither table
_FLOAT32_MAX, _FLOAT32_LEAST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
_BOXES = msgspec.json.Decoder(list[SubmissionBox])


def read_submission(path: Path, tokens: Sequence[str] | None = None) -> DetectionBoxes:
    """The predictions of a submission file; their distances from the vehicle are still NaN.

    Args:
        path: the file.
        tokens: samples that the file must hold, neither more nor less; by default those that it holds.

    Raises:
        UserError: the file cannot be read or is malformed, a box is not as it must be, a sample has more than 500, or
            a sample is missing or superfluous; the sentence names the sample and what was expected.
    """
    results = _results(path)
    samples = tuple(results if tokens is None else tokens)
    index = {token: i for i, token in enumerate(samples)}
    superfluous = [token for token in results if token not in index]
    if superfluous:
        raise UserError(f"{path}: sample {superfluous[0]} is none of the {len(samples)} samples to evaluate")
    missing = [token for token in samples if token not in results]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of the {len(samples)} samples to evaluate are missing, the first is {missing[0]} "
            "(one without a box needs an empty list)"
        )
    parts = [_columns(token, _sample_boxes(path, token, entries)) for token, entries in results.items()]
    parts.append(_columns("", []))  # gives the columns their widths where there is no sample
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    counts = [len(part["detection_score"]) for part in parts[:-1]]
    sample = np.repeat(np.array([index[token] for token in results], dtype=np.int64), counts)

    for key, wrong, expected in _demands(columns):
        if wrong.any():
            row = int(wrong.argmax())
            token = samples[sample[row]]
            number = row - int((sample == sample[row]).argmax())
            value = getattr(_BOXES.decode(results[token])[number], key)
            raise UserError(f"{path}: sample {token}, box {number}: {key} must be {expected}, not {value!r}")
    return DetectionBoxes(
        samples=samples,
        classes=CLASSES,
        sample=sample,
        label=columns["detection_name"],
        translation=columns["translation"],
        wlh=columns["size"],
        yaw=yaw_of(columns["rotation"]),
        velocity=columns["velocity"],
        score=columns["detection_score"],
        attribute=columns["attribute_name"],
        num_pts=np.full(len(sample), PREDICTED_POINTS),
        ego_distance=np.full(len(sample), np.nan),
    )


def _results(path: Path) -> dict[str, msgspec.Raw]:
    """The entries of each sample, not yet decoded, in the file's order."""
    text = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    try:
        entries = msgspec.json.decode(text, type=_Submission).results
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is no submission: {_sentence(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(path, text, error) from None
    _refuse_repeated(path, text, entries)
    return entries


def _refuse_repeated(path: Path, text: bytes, entries: Mapping[str, msgspec.Raw]) -> None:
    """Keeps a sample from standing twice, of which the parser took the last: what lies between two values is then more
    than one key. The values are views of the text, so their places are known.

    Raises:
        UserError: one stands twice, or the results do.
    """
    begin = np.frombuffer(text, np.uint8).ctypes.data
    values = [np.frombuffer(value, np.uint8) for value in entries.values()]
    spans = sorted((value.ctypes.data - begin, len(value)) for value in values)
    end = 0
    for at, length in spans:
        between = text[max(end, at - _LONGEST_KEY) : at]
        if (_FIRST_KEY.search(between) if end == 0 else _NEXT_KEY.fullmatch(between)) is None:
            raise UserError(f"{path}: {_repeated(text[end:at], entries)} stands twice, expected each sample once")
        end = at + length
    if spans and len(_RESULTS.findall(text, 0, spans[0][0])) > 1:
        raise UserError(f"{path}: the key results stands twice")


def _repeated(between: bytes, entries: Mapping[str, msgspec.Raw]) -> str:
    """The sample whose first value lies here, and was replaced by a later one."""
    keys = (key.decode(errors="replace") for key in _SAMPLE_KEY.findall(between))
    return f"sample {next((key for key in keys if key in entries), 'a key')}"


def _sample_boxes(path: Path, token: str, entries: msgspec.Raw) -> list[SubmissionBox]:
    try:
        boxes = _BOXES.decode(entries)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: sample {token}: {_sentence(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: sample {token}: {_reason(error)}") from None
    if len(boxes) > MAX_BOXES:
        raise UserError(f"{path}: sample {token} has {len(boxes)} boxes, expected at most {MAX_BOXES}")
    return boxes


def _columns(token: str, boxes: list[SubmissionBox]) -> dict[str, np.ndarray]:
    """One sample's boxes column by column; what has no place in a column becomes NaN or ``_UNKNOWN``."""
    n = len(boxes)

    def rows(values: Iterable[tuple[float, ...]], width: int) -> np.ndarray:
        return np.fromiter(chain.from_iterable(values), np.float64, n * width).reshape(n, width)

    scores = [box.detection_score for box in boxes]
    return {
        "sample_token": np.fromiter((box.sample_token == token for box in boxes), bool, n),
        "translation": rows((box.translation for box in boxes), 3),
        "size": rows((box.size for box in boxes), 3),
        "rotation": rows((box.rotation for box in boxes), 4),
        "velocity": rows((box.velocity for box in boxes), 2),
        "detection_name": np.array([_LABELS.get(box.detection_name, _UNKNOWN) for box in boxes], dtype=np.int64),
        "detection_score": np.array([s if isinstance(s, float) else np.nan for s in scores], dtype=np.float64),
        "attribute_name": np.array([_ATTRIBUTES.get(box.attribute_name, _UNKNOWN) for box in boxes], dtype=np.int64),
    }


def _demands(columns: Mapping[str, np.ndarray]) -> Iterable[tuple[str, np.ndarray, str]]:
    """Key, which rows are wrong, and what was expected."""
    score = columns["detection_score"]
    yield "sample_token", ~columns["sample_token"], "the token of its sample"
    yield "detection_name", columns["detection_name"] == _UNKNOWN, f"one of {', '.join(CLASSES)}"
    yield "attribute_name", columns["attribute_name"] == _UNKNOWN, f"empty or one of {', '.join(ATTRIBUTES)}"
    yield "detection_score", ~((score >= 0) & (score <= 1)), "a float in 0..1, with a decimal point"
    for key in ("translation", "size", "rotation", "velocity"):
        yield key, (~(np.abs(columns[key]) <= _FLOAT32_MAX)).sum(axis=1) > 0, "finite, and at most 3.4e38"
    yield "size", (columns["size"] < _FLOAT32_LEAST).sum(axis=1) > 0, "positive"
    yield "rotation", np.abs(columns["rotation"]).sum(axis=1) < _FLOAT32_LEAST, "a quaternion of some length"


_PLACE = re.compile(r"^\$(?:\[(\d+)\])?\.?(.*)$")
_BYTE = re.compile(r" ?\(byte (\d+)\)")
_ONE_KEY = rb'\s*"(?:[^"\\]|\\.)*"\s*:\s*'
_FIRST_KEY, _NEXT_KEY = re.compile(rb"\{" + _ONE_KEY + rb"\Z"), re.compile(rb"\s*," + _ONE_KEY)
_RESULTS = re.compile(rb'"results"\s*:')
_LONGEST_KEY = 1 << 16  # bytes
_SAMPLE_KEY = re.compile(rb'"([^"]*)"\s*:\s*\[\s*(?=[\]{])')
_NOT_FINITE = re.compile(rb"NaN|Infinity")
_LONGEST_SAMPLE = 1 << 20  # bytes; 500 boxes take about a quarter of it


def _sentence(error: msgspec.ValidationError) -> str:
    """The parser's message, "Expected `float`, got `str` - at `$[3].size[0]`", as "box 3: size[0]: expected ..."."""
    what, _, where = str(error).replace("`", "").partition(" - at ")
    place = _PLACE.match(where)
    number, key = (place[1], place[2]) if place else (None, "")
    parts = [f"box {number}" if number is not None else "", key, what[:1].lower() + what[1:]]
    return ": ".join(part for part in parts if part)


def _reason(error: msgspec.DecodeError | UnicodeDecodeError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"byte 0x{error.object[error.start]:02x} is no UTF-8 text"
    return _BYTE.sub("", str(error)).removeprefix("JSON is malformed: ")


def _malformed(path: Path, text: bytes, error: msgspec.DecodeError | UnicodeDecodeError | RecursionError) -> UserError:
    """Names the sample in which a text stops being JSON."""
    if isinstance(error, RecursionError):
        return UserError(f"{path}: {_reason(error)}")
    place = _BYTE.search(str(error))
    at = int(place[1]) if place else len(text)
    keys = _SAMPLE_KEY.findall(text, max(0, at - _LONGEST_SAMPLE), at)
    where = f"{path}: sample {keys[-1].decode(errors='replace')}" if keys else f"{path}"
    number = _NOT_FINITE.match(text, at)
    if number is not None:
        return UserError(f"{where}: expected finite numbers, not {number[0].decode()} (byte {at})")
    return UserError(
        f"{where}: expected a submission in JSON, but the text is malformed at byte {at}: {_reason(error)}"
    )
