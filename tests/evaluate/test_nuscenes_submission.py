"""Submission files: written and read back, refused with one sentence, and evaluated against real annotations."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up_tables import Records, annotation, made_up_tables, token, write_tables

from distill3d.boxes import NUSCENES_CLASSES, Boxes3D
from distill3d.data.nuscenes.dataset import CLASS_OF_CATEGORY
from distill3d.data.nuscenes.tables import NONE, Tables, load_tables, pose_matrices
from distill3d.errors import UserError
from distill3d.evaluate.nuscenes import evaluate, evaluated_tokens, ground_truth, run_eval_nuscenes
from distill3d.evaluate.nuscenes_boxes import ATTRIBUTES, CLASSES, NO_ATTRIBUTE
from distill3d.evaluate.nuscenes_submission import (
    SubmissionMeta,
    attribute_name,
    read_submission,
    sample_records,
    write_submission,
)

TILTED = np.array([0.8, 0.05, -0.03, 0.6])  # w, x, y, z of a vehicle that turned, pitched and rolled


def pose(rotation: np.ndarray = TILTED, translation: tuple[float, ...] = (600.0, 1600.0, 0.5)) -> torch.Tensor:
    return torch.from_numpy(pose_matrices(np.array(translation), np.array(rotation)))


def detected(count: int, seed: int = 0, **change: Any) -> Boxes3D:
    generator = torch.Generator().manual_seed(seed)
    values = {
        "centre": torch.randn(count, 3, generator=generator) * 20,
        "size": torch.rand(count, 3, generator=generator) + 0.5,
        "yaw": torch.randn(count, generator=generator),
        "label": torch.randint(len(NUSCENES_CLASSES), (count,), generator=generator),
        "frame": "ego",
        "score": torch.rand(count, generator=generator),
        "velocity": torch.randn(count, 2, generator=generator),
    }
    return Boxes3D(**{**values, **change})


# ----------------------------------------------------------------------------------------------------------- writing


def test_what_is_written_is_read_back_in_the_global_frame(tmp_path: Path) -> None:
    poses = {"a": pose(), "b": pose(np.array([0.0, 0.0, 0.0, 1.0])), "c": pose()}
    found = detected(7)
    write_submission(tmp_path / "out" / "s.json", [("b", detected(3, 1)), ("a", found)], poses)
    read = read_submission(tmp_path / "out" / "s.json", ("a", "b", "c"))
    assert read.samples == ("a", "b", "c") and read.classes == NUSCENES_CLASSES
    assert read.sample.tolist() == [1] * 3 + [0] * 7  # in the file's order
    ours = read[read.sample == 0]
    found = found[found.score.argsort(descending=True)].to(torch.float64)
    rotation, translation = poses["a"][:3, :3], poses["a"][:3, 3]
    np.testing.assert_allclose(ours.translation, found.centre @ rotation.T + translation, atol=1e-9)
    np.testing.assert_allclose(ours.wlh, found.size[:, [1, 0, 2]], atol=1e-12)
    np.testing.assert_allclose(ours.velocity, found.velocity @ rotation[:2, :2].T, atol=1e-12)
    np.testing.assert_allclose(ours.score, found.score, atol=1e-12)
    heading = found.heading() @ rotation.T
    np.testing.assert_allclose(ours.yaw, torch.atan2(heading[:, 1], heading[:, 0]), atol=1e-12)
    assert ours.label.tolist() == found.label.tolist()
    assert np.isnan(read.ego_distance).all()


@given(st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(v * v for v in q) > 0.01), st.floats(-3, 3))
def test_rotations_are_the_box_s_followed_by_the_vehicle_s(quaternion: tuple[float, ...], yaw: float) -> None:
    vehicle = pose(np.array(quaternion))
    box = detected(1, yaw=torch.tensor([yaw]))
    written = np.array(sample_records("a", box, vehicle, NUSCENES_CLASSES)[0].rotation)
    turn = np.array([math.cos(box.yaw.item() / 2), 0, 0, math.sin(box.yaw.item() / 2)])
    expected = vehicle[:3, :3].numpy() @ pose_matrices(np.zeros(3), turn)[:3, :3]
    assert np.linalg.norm(written) == pytest.approx(1)
    np.testing.assert_allclose(pose_matrices(np.zeros(3), written)[:3, :3], expected, atol=1e-6)


def test_every_sample_is_there_and_says_what_was_used(tmp_path: Path) -> None:
    write_submission(tmp_path / "s.json", [], {"a": pose(), "b": pose()}, meta=SubmissionMeta(use_lidar=True))
    written = json.loads((tmp_path / "s.json").read_text())
    assert written["results"] == {"a": [], "b": []}
    assert written["meta"] == {
        "use_camera": True, "use_lidar": True, "use_radar": False, "use_map": False, "use_external": False,
    }  # fmt: skip
    assert len(read_submission(tmp_path / "s.json")) == 0


def test_of_more_than_500_boxes_the_surest_are_kept(tmp_path: Path) -> None:
    found = detected(600)
    write_submission(tmp_path / "s.json", [("a", found)], {"a": pose()})
    scores = read_submission(tmp_path / "s.json").score
    np.testing.assert_allclose(scores, np.sort(found.score.double().numpy())[::-1][:500])


def test_the_classes_of_a_smaller_data_set(tmp_path: Path) -> None:
    found = detected(2, label=torch.tensor([0, 1]), score=torch.tensor([0.9, 0.8]))
    write_submission(tmp_path / "s.json", [("a", found)], {"a": pose()}, classes=("pedestrian", "car"))
    assert [CLASSES[label] for label in read_submission(tmp_path / "s.json").label] == ["pedestrian", "car"]


@pytest.mark.parametrize("velocity", [None, torch.tensor([[math.nan, 1.0]])])
def test_an_unknown_velocity_is_written_as_standing(tmp_path: Path, velocity: torch.Tensor | None) -> None:
    found = detected(1, velocity=velocity, label=torch.tensor([0]))
    write_submission(tmp_path / "s.json", [("a", found)], {"a": pose()})
    read = read_submission(tmp_path / "s.json")
    assert read.velocity.tolist() == [[0, 0]] and ATTRIBUTES[read.attribute[0]] == "vehicle.parked"


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        ([("x", detected(1))], "sample x has no pose"),
        ([("a", detected(1)), ("a", detected(1))], "given before"),
        ([("a", detected(1, frame="global"))], "ego frame"),
        ([("a", detected(1, score=None))], "scores"),
        ([("a", detected(1, score=torch.tensor([1.5])))], "0..1"),
    ],
)
def test_unfit_detections_are_refused_and_no_file_is_left(
    tmp_path: Path, detections: list[tuple[str, Boxes3D]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_submission(tmp_path / "s.json", detections, {"a": pose()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "still", "moving"),
    [
        ("car", "vehicle.parked", "vehicle.moving"),
        ("truck", "vehicle.parked", "vehicle.moving"),
        ("construction_vehicle", "vehicle.parked", "vehicle.moving"),
        ("bus", "vehicle.stopped", "vehicle.moving"),
        ("trailer", "vehicle.parked", "vehicle.moving"),
        ("motorcycle", "cycle.without_rider", "cycle.with_rider"),
        ("bicycle", "cycle.without_rider", "cycle.with_rider"),
        ("pedestrian", "pedestrian.standing", "pedestrian.moving"),
        ("barrier", "", ""),
        ("traffic_cone", "", ""),
    ],
)
def test_attributes(name: str, still: str, moving: str) -> None:
    assert (attribute_name(name, 0.2), attribute_name(name, 0.21)) == (still, moving)


# ----------------------------------------------------------------------------------------------------------- reading

BOX = {
    "sample_token": "a", "translation": [1, 2.0, 3.0], "size": [1.0, 2.0, 3.0], "rotation": [1.0, 0.0, 0.0, 0.0],
    "velocity": [0.0, 0.0], "detection_name": "car", "detection_score": 0.5, "attribute_name": "vehicle.moving",
}  # fmt: skip


def submission(boxes: list[dict[str, Any]]) -> dict[str, Any]:
    return {"meta": {"use_camera": True}, "results": {"b": [], "a": boxes}}


def lacking(key: str) -> dict[str, Any]:
    return {name: value for name, value in BOX.items() if name != key}


def test_boxes_are_read_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(submission([BOX, {**BOX, "attribute_name": "", "more": 1}]), indent=2))
    read = read_submission(path)
    assert read.samples == ("b", "a") and read.sample.tolist() == [1, 1]
    assert read.translation.tolist() == [[1, 2, 3]] * 2 and read.attribute.tolist() == [0, NO_ATTRIBUTE]
    assert read.num_pts.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (json.dumps(submission([BOX] * 501)), "sample a has 501 boxes, expected at most 500"),
        (json.dumps(submission([BOX, {**BOX, "sample_token": "b"}])), "sample a, box 1: sample_token must be"),
        (json.dumps(submission([{**BOX, "detection_name": "van"}])), "box 0: detection_name must be one of car, "),
        (json.dumps(submission([{**BOX, "attribute_name": "fast"}])), "box 0: attribute_name must be empty or one of"),
        (json.dumps(submission([{**BOX, "detection_score": 1.5}])), "detection_score must be a float in 0..1"),
        (json.dumps(submission([{**BOX, "detection_score": -0.1}])), "detection_score must be a float in 0..1"),
        (
            json.dumps(submission([{**BOX, "detection_score": 1}])),
            "in 0..1, with a decimal point, not 1",
        ),
        (json.dumps(submission([{**BOX, "detection_score": "1"}])), "sample a: box 0: detection_score: expected"),
        (json.dumps(submission([{**BOX, "size": [1.0, 0.0, 1.0]}])), "size must be positive"),
        (json.dumps(submission([{**BOX, "size": [1.0, 1e-320, 1.0]}])), "size must be positive"),
        (json.dumps(submission([{**BOX, "rotation": [0.0] * 4}])), "rotation must be a quaternion"),
        (json.dumps(submission([{**BOX, "rotation": [1e-320] * 4}])), "rotation must be a quaternion"),
        (json.dumps(submission([BOX, {**BOX, "rotation": [1.0] * 3}])), "box 1: rotation: expected array of length 4"),
        (json.dumps(submission([{**BOX, "translation": "here"}])), "box 0: translation: expected array"),
        (json.dumps(submission([lacking("velocity")])), "sample a: box 0: object missing required field velocity"),
        (json.dumps(submission([{**BOX, "velocity": [0.0, math.nan]}])), "sample a: expected finite numbers, not NaN"),
        (json.dumps(submission([{**BOX, "size": [1, -math.inf, 1]}])), "expected finite numbers, not Infinity"),
        (json.dumps(submission([BOX])).replace("2.0", "2.0.0"), "sample a: expected a submission in JSON"),
        (json.dumps(submission([BOX]))[:-20], "expected a submission in JSON"),
        ("", "expected a submission in JSON"),
        ("[]", "is no submission: expected object, got array"),
        ('{"meta": {}}', "is no submission: object missing required field results"),
        ('{"results": {"a": 3, "b": []}}', "sample a: expected array, got int"),
        ('{"results": {"b": []}}', "1 of the 2 samples to evaluate are missing, the first is a"),
        ('{"results": {"a": [], "b": [], "c": []}}', "sample c is none of the 2 samples to evaluate"),
    ],
)
def test_unfit_files_are_refused_in_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        read_submission(path, ("a", "b"))
    assert words in str(raised.value) and str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


LIST = json.dumps([BOX]).encode()


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (b'{"a": %s, "b": [], "a": []}' % LIST, "sample a stands twice"),
        (b'{"b": [], "a": [],"a":%s}' % LIST, "sample a stands twice"),
        (b'{"a": [], "b": []}, "results": {"b": [], "a": %s}' % LIST, "the key results stands twice"),
        (b'{"b": [], "a": %s}' % LIST.replace(b"car", b"c\xe4r"), "sample a: byte 0xe4 is no UTF-8 text"),
        (b'{"b": [], "\xe4": []}', "byte 0xe4 is no UTF-8 text"),
        (b'{"b": [], "a": %s}' % LIST.replace(b"3.0", b"1e308"), "translation must be finite, and at most 3.4e38"),
        (b'{"b": [], "a": %s}' % LIST.replace(b"3.0", b"1e999"), "number out of range"),
        (b'{"b": [], "a": %s}' % (b"[" * 100_000), "is nested too deeply"),
        (b'{"b": [], "a": [{"x": %s}]}' % (b"[" * 9000 + b"]" * 9000), "is nested too deeply"),
    ],
)
def test_files_that_no_writer_makes_are_refused(tmp_path: Path, results: bytes, words: str) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(b'{"meta": {}, "results": %s}' % results)
    with pytest.raises(UserError) as raised:
        read_submission(path, ("a", "b"))
    assert words in str(raised.value) and str(raised.value).startswith(f"{path}: ")


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(submission([BOX])).encode())
    assert len(read_submission(path)) == 1


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-submission.json"
    for text in (data, b'{"results": {"a": ' + data + b"}}"):
        path.write_bytes(text)
        try:
            read_submission(path)
        except UserError as error:
            assert str(error).startswith(str(path))


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.json: no such file"):
        read_submission(tmp_path / "none.json")


# ------------------------------------------------------------------------------------------------------ made-up tables

RACK = "static_object.bicycle_rack"


def with_rack() -> Records:
    """The made-up tables and a bicycle rack in the second sample of the first scene."""
    records = made_up_tables()
    records["category"].append({"token": token(RACK), "name": RACK})
    records["instance"].append({"token": token("track", 0, 2), "category_token": token(RACK)})
    rack = annotation(0, 2, 1, (9.0, 8.0, 0.5), {"prev": "", "next": ""})
    records["sample_annotation"].append({**rack, "attribute_tokens": [], "rotation": [0.0, 0.0, 0.0, 1.0]})
    return records


def test_annotations_of_the_tables(tmp_path: Path) -> None:
    write_tables(tmp_path / "v", with_rack())
    tokens = [token(1, 1), token(0, 1)]
    truth = ground_truth(load_tables(tmp_path, "v"), tokens)
    boxes = truth.boxes
    assert boxes.samples == tuple(tokens) and boxes.sample.tolist() == [0, 1]
    assert [CLASSES[label] for label in boxes.label] == ["car", "car"]  # neither the animal nor the rack
    np.testing.assert_allclose(boxes.translation, [[1 + 2 * 100.5, 1, 1], [1, 1, 1]])
    assert boxes.wlh.tolist() == [[1.8, 4.5, 1.5]] * 2 and boxes.num_pts.tolist() == [11, 11]
    # Two-sided in the first scene, one-sided at the end of the second; y goes as the square of the sample's number.
    np.testing.assert_allclose(boxes.velocity, [[2, 2], [2, 4]], atol=1e-6)
    assert [ATTRIBUTES[i] for i in boxes.attribute] == ["vehicle.parked"] * 2
    np.testing.assert_allclose(truth.ego_position, [[100.5, 20, 0], [0.5, 20, 0]])
    np.testing.assert_allclose(boxes.ego_distance, [math.hypot(101.5, 19), math.hypot(0.5, 19)])
    assert truth.racks.sample.tolist() == [1] and truth.racks.wlh.tolist() == [[1.8, 4.5, 1.5]]
    expected = np.diag([-1.0, -1, 1, 1])
    expected[:3, 3] = 9, 8, 0.5
    np.testing.assert_allclose(truth.racks.pose[0], expected, atol=1e-12)


def two_attributes(records: Records) -> None:
    records["sample_annotation"][0]["attribute_tokens"] *= 2


def no_scan(records: Records) -> None:
    kept = [d for d in records["sample_data"] if not (d["is_key_frame"] and "LIDAR_TOP" in d["filename"])]
    records["sample_data"] = [{**d, "prev": "", "next": ""} for d in kept]


def strange_attribute(records: Records) -> None:
    records["attribute"][0]["name"] = "vehicle.flying"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (two_attributes, "has several attributes"),
        (no_scan, "has no LIDAR_TOP"),
        (strange_attribute, "has the attribute 'vehicle.flying'"),
        (lambda records: records["sample_annotation"].clear(), "has no annotations"),
    ],
)
def test_unfit_tables_are_refused(tmp_path: Path, change: Callable[[Records], None], message: str) -> None:
    records = made_up_tables()
    change(records)
    write_tables(tmp_path / "v", records)
    tables = load_tables(tmp_path, "v")
    with pytest.raises(UserError, match=message):
        ground_truth(tables, evaluated_tokens(tables, tmp_path, None))


def test_an_evaluation_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tables(tmp_path / "v", made_up_tables())
    car = {**BOX, "translation": [1.0, 1.0, 1.0], "size": [1.8, 4.5, 1.5], "sample_token": token(0, 1)}
    results = {token(0, i): [car] if i == 1 else [] for i in range(3)}
    (tmp_path / "s.json").write_text(json.dumps({"meta": {}, "results": results}))
    (tmp_path / "some.txt").write_text("scene-0000\n" + token(0, 2))
    run_eval_nuscenes(tmp_path, "v", tmp_path / "s.json", tmp_path / "some.txt", tmp_path / "r.json", ("car",))
    written = json.loads((tmp_path / "r.json").read_text())
    # One of three cars is found, so precision is 1 up to recall 1/3.
    assert written["mean_ap"] == pytest.approx((33 - 10) / 90)
    assert written["settings"]["samples"] == 3 and written["settings"]["official"] is False
    printed = capsys.readouterr().out
    assert "mAP 0.2556" in printed and "Not the official mAP and NDS" in printed
    with pytest.raises(UserError, match="2 of the 5 samples to evaluate are missing"):
        run_eval_nuscenes(tmp_path, "v", tmp_path / "s.json", None, None)


# --------------------------------------------------------------------------------------------------------- real tables


def entries(tables: Tables) -> dict[str, list[dict[str, Any]]]:
    """The annotations of the ten classes as a submission's results, the annotation's token beside each."""
    a, velocities = tables.annotations, np.nan_to_num(tables.velocities())
    results: dict[str, list[dict[str, Any]]] = {}
    for sample in range(len(tables.samples)):
        token = tables.sample_token(sample)
        results[token] = []
        for row in range(*tables.annotations_of(sample).indices(len(a))):
            name = CLASS_OF_CATEGORY.get(tables.categories[a.category[row]])
            if name is None:
                continue
            annotation = bytes(a.token[row]).decode()
            box = {
                "sample_token": token,
                "translation": a.translation[row].tolist(),
                "size": a.wlh[row].tolist(),
                "rotation": a.rotation[row].tolist(),
                "velocity": velocities[row, :2].tolist(),
                "detection_name": name,
                "detection_score": int(annotation[:8], 16) / 2**32,
                "attribute_name": "" if a.attribute[row] == NONE else tables.attributes[a.attribute[row]],
                "token": annotation,
                "points": int(a.num_lidar_pts[row] + a.num_radar_pts[row]),
            }
            results[token].append(box)
    return results


def noised(box: dict[str, Any]) -> dict[str, Any]:
    """0.7 m to the side, a tenth larger, turned by 0.1 rad about up, 0.3 m/s faster."""
    w, x, y, z = box["rotation"]
    c, s = math.cos(0.05), math.sin(0.05)
    changed = copy.deepcopy(box)
    changed["translation"][0] += 0.7
    changed["size"] = [1.1 * v for v in box["size"]]
    changed["rotation"] = [c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w]
    changed["velocity"][0] += 0.3
    return changed


CASES = {
    "a": (
        lambda box: [box] if box["points"] else [],
        {"mean_ap": 0.7, "nd_score": 0.706667},
        (0.3, 0.3, 0.333333, 0.25, 0.25),
        {},
    ),
    "b": (
        lambda box: [noised(box)] if box["points"] and box["token"][-1] not in "012" else [],
        {"mean_ap": 0.408089, "nd_score": 0.459235},
        (0.789287, 0.477376, 0.443664, 0.478083, 0.259688),
        {
            "car": 0.590525, "truck": 0.641667, "bus": 0.591667, "pedestrian": 0.556016, "motorcycle": 0.507619,
            "bicycle": 0.583333, "traffic_cone": 0.610058,
        },
    ),
    "c": (
        lambda box: [noised(box)] if box["token"][-1] not in "012" else [],
        {"mean_ap": 0.384537, "nd_score": 0.446818},
        None,
        {},
    ),
}  # fmt: skip
PRINTED = 1e-6  # decimals of the recorded numbers


@pytest.mark.real
@pytest.mark.parametrize("case", CASES)
def test_equals_the_official_program_on_real_tables(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    root = real_data / "nuscenes_mini_val_tables"
    if not root.is_dir():
        pytest.skip(f"no nuScenes tables at {root}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    choose, means, errors, aps = CASES[case]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "v1.0-mini").symlink_to(root / "v1.0-mini")
    results = entries(load_tables(tmp_path / "data", "v1.0-mini"))
    chosen = {token: [new for box in boxes for new in choose(box)] for token, boxes in results.items()}
    (tmp_path / "s.json").write_text(json.dumps({"meta": {}, "results": chosen}))
    run_eval_nuscenes(tmp_path / "data", "v1.0-mini", tmp_path / "s.json", "mini_val", tmp_path / "out" / "r.json")
    ours = json.loads((tmp_path / "out" / "r.json").read_text())
    for key, value in means.items():
        assert ours[key] == pytest.approx(value, abs=PRINTED), key
    if errors is not None:
        assert list(ours["tp_errors"].values()) == pytest.approx(list(errors), abs=PRINTED)
    for name, value in aps.items():
        assert ours["mean_dist_aps"][name] == pytest.approx(value, abs=PRINTED), name
    counted = {"given": 4441, "in_range": 3785, "with_points": 3393, "outside_racks": 3393}
    assert ours["counts"]["ground_truth"] == counted
    kept = {name: pair[0] for name, pair in ours["kept_per_class"].items() if pair[0]}
    assert kept == {
        "car": 1913, "pedestrian": 1067, "motorcycle": 214, "truck": 95, "bicycle": 36, "traffic_cone": 35, "bus": 33,
    }  # fmt: skip
    assert ours["settings"]["official"] is True


@pytest.mark.real
def test_equals_the_official_program_on_one_real_sample(real_data: Path) -> None:
    root = real_data / "nuscenes_one"
    if not root.is_dir():
        pytest.skip(f"no nuScenes sample at {root}")
    tables = load_tables(root, "v1.0-one", cache=False)
    truth = ground_truth(tables, evaluated_tokens(tables, root, None))
    found = replace(truth.boxes, velocity=np.zeros_like(truth.boxes.velocity))
    result = evaluate(truth.boxes, found, racks=truth.racks)
    assert {name: pair[0] for name, pair in result.kept.items() if pair[0]} == {
        "barrier": 14, "pedestrian": 10, "car": 4, "traffic_cone": 3, "truck": 2,
    }  # fmt: skip
    assert (result.mean_ap, result.nds) == (pytest.approx(0.5), pytest.approx(0.431944, abs=PRINTED))


@pytest.mark.real
def test_the_samples_of_a_file(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "nuscenes_mini_val_tables"
    if not root.is_dir():
        pytest.skip(f"no nuScenes tables at {root}")
    tables = load_tables(root, "v1.0-mini", cache=False)
    everything = evaluated_tokens(tables, root, None)
    assert len(everything) == 81 and evaluated_tokens(tables, root, "mini_val") == everything
    listed = tmp_path / "some.txt"
    listed.write_text(f"{everything[50]}\nscene-0103\n")
    assert evaluated_tokens(tables, root, listed) == [everything[50], *everything[:40]]
    with pytest.raises(UserError, match="no split 'nowhere'"):
        evaluated_tokens(tables, root, "nowhere")
    # A subset of the samples is evaluated alone.
    some = ground_truth(tables, everything[:3])
    assert some.boxes.samples == tuple(everything[:3]) and 0 < len(some.boxes) < 300
    assert evaluate(some.boxes, some.boxes, racks=some.racks).samples == 3
