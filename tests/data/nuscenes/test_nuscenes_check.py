"""Each planted fault of a nuScenes data set is reported with its file and token, and nothing else is."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_tables import ATTRIBUTES, SIZE, Records, made_up_tables, microseconds, token, write_tables
from PIL import Image

from distill3d.data.check import run_check
from distill3d.data.nuscenes.check import check_nuscenes, nuscenes_contents
from distill3d.data.nuscenes.tables import load_tables
from distill3d.errors import UserError

VERSION = "v1.0-made"
POINT = np.array([[1, 2, 3, 40, 7]], "<f4")


def write_set(root: Path, records: Records, version: str = VERSION) -> Path:
    """The tables, and a file for each record of sensor data."""
    write_tables(root / version, records)
    for data in made_up_tables()["sample_data"]:
        path = root / data["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)).save(path)
        else:
            np.repeat(POINT, 9, axis=0).tofile(path)
    return root


def found(root: Path) -> list[tuple[str, str | None, str]]:
    """File (relative), record and sentence of every fault."""
    return [(str(f.file.relative_to(root)), f.record, f.sentence) for f in check_nuscenes(root)]


def row_of(records: Records, table: str, name: str) -> dict[str, Any]:
    return next(record for record in records[table] if record["token"] == name)


def test_sound_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_check(write_set(tmp_path, made_up_tables()), "nuscenes") == 0
    *counts, last = capsys.readouterr().out.splitlines()
    assert last == "sound" and counts and not any(line.startswith("warning") for line in counts)


def test_names_of_its_own_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = made_up_tables()
    records["category"][0]["name"] = "car"
    records["attribute"][0]["name"] = "vehicle.reversing"
    assert run_check(write_set(tmp_path, records), "nuscenes") == 0
    out = capsys.readouterr().out
    assert re.search(
        "warning: .*category.json: 'car' is no category of nuScenes', its [0-9]+ objects are not learnt", out
    )
    assert re.search("warning: .*attribute.json: 'vehicle.reversing' is no attribute of nuScenes'", out)


@pytest.mark.real
def test_real_set_is_sound(real_data: Path) -> None:
    assert check_nuscenes(real_data / "nuscenes_one") == []


@pytest.mark.real
def test_real_tables_lack_nothing_but_files(real_data: Path) -> None:
    root = real_data / "nuscenes_mini_val_tables"
    faults = found(root)
    assert len(faults) == 7  # six cameras and a LiDAR
    assert all(
        file.startswith("samples/") and sentence == "no such folder, expected 81 files that sample_data.json.gz names"
        for file, _, sentence in faults
    )


# Tokens of records that are spoilt below.
SAMPLE, LAST, NEXT_SCENE = token(0, 1), token(0, 2), token(1, 0)
TRACK, SEEN, ONCE = token("track", 0, 0, 0), token("track", 0, 0, 1), token("track", 0, 1, 1)
IMAGE, SCAN = token("data", 0, "CAM_FRONT", 3), token("data", 0, "LIDAR_TOP", 3)
SWEEP, AFTER = token("data", 0, "CAM_FRONT", 2), token("data", 0, "LIDAR_TOP", 5)
CAMERA = token("calibrated", "CAM_FRONT")
POSE = token("pose", "data", 0, "CAM_FRONT", 3)

RECORD_FAULTS = [
    ("scene", token("scene", 0), {"first_sample_token": SAMPLE},
     [("scene", token("scene", 0), f"first_sample_token is not the scene's earliest sample, {token(0, 0)}")]),
    ("sample", token(0, 0), {"next": ""},
     [("sample", SAMPLE, f"prev is {token(0, 0)}, whose next is another"),
      ("sample", token(0, 0), f"next is empty, but sample {SAMPLE} follows in its scene")]),
    ("sample", LAST, {"next": NEXT_SCENE},
     [("sample", LAST, f"next is {NEXT_SCENE}, whose prev is another"),
      ("sample", LAST, f"next is {NEXT_SCENE}, which is of another scene")]),
    ("sample", SAMPLE, {"timestamp": microseconds(1.2)},  # after the scene's last
     [("sample", SAMPLE, f"next is {LAST}, which is not later"),
      ("sample", LAST, f"next is empty, but sample {SAMPLE} follows in its scene"),
      ("sample_annotation", SEEN, f"next is {token('track', 0, 0, 2)}, which is not later")]),
    ("sample_data", IMAGE, {"is_key_frame": False}, [("sample", SAMPLE, "has no key frame of CAM_FRONT")]),
    ("sample_data", SWEEP, {"is_key_frame": True}, [("sample", SAMPLE, "has more than one key frame of CAM_FRONT")]),
    ("sample_data", IMAGE, {"next": AFTER},
     [("sample_data", IMAGE, f"next is {AFTER}, whose prev is another"),
      ("sample_data", token("data", 0, "CAM_FRONT", 4), f"prev is {IMAGE}, whose next is another"),
      ("sample_data", IMAGE, f"next is {AFTER}, which is of another sensor")]),
    ("sample_data", IMAGE, {"timestamp": 0},
     [("sample_data", SWEEP, f"next is {IMAGE}, which is not later")]),
    ("sample_data", SWEEP, {"width": 0}, [("sample_data", SWEEP, "is 0 x 16 px, expected the size of an image")]),
    ("ego_pose", POSE, {"rotation": [0.5, 0, 0, 0]},
     [("ego_pose", POSE, "rotation has length 0.5, expected a unit quaternion")]),
    ("ego_pose", POSE, {"rotation": [0, 0, 0, 0]},
     [("ego_pose", POSE, "rotation has length 0, expected a unit quaternion")]),
    ("calibrated_sensor", CAMERA, {"rotation": [2, 0, 0, 0]},
     [("calibrated_sensor", CAMERA, "rotation has length 2, expected a unit quaternion")]),
    ("calibrated_sensor", CAMERA, {"camera_intrinsic": []},
     [("calibrated_sensor", CAMERA, "camera_intrinsic has no positive focal lengths")]),
    ("calibrated_sensor", CAMERA, {"camera_intrinsic": [[30, 0, 33], [0, 30, 17], [0, 0, 1]]},
     [("calibrated_sensor", CAMERA, "the principal point (x = 33 px) does not fit an image of 32 x 16 px")]),
    ("calibrated_sensor", CAMERA, {"camera_intrinsic": [[1, 0, 0], [0, -1, 0], [0, 0, 1]]},
     [("calibrated_sensor", CAMERA, "camera_intrinsic has no positive focal lengths")]),
    ("sample_annotation", SEEN, {"size": [1, 0, 2]},
     [("sample_annotation", SEEN, "size is [1.0, 0.0, 2.0] m, expected positive numbers")]),
    ("sample_annotation", SEEN, {"rotation": [1, 1, 0, 0]},
     [("sample_annotation", SEEN, "rotation has length 1.41421, expected a unit quaternion")]),
    ("sample_annotation", SEEN, {"num_lidar_pts": -1}, [("sample_annotation", SEEN, "num_lidar_pts is -1")]),
    ("sample_annotation", SEEN, {"num_radar_pts": -2}, [("sample_annotation", SEEN, "num_radar_pts is -2")]),
    ("sample_annotation", SEEN, {"attribute_tokens": [token(a) for a in ATTRIBUTES]},
     [("sample_annotation", SEEN, "has 2 attributes, expected at most one")]),
    ("sample_annotation", TRACK, {"next": ONCE},
     [("sample_annotation", TRACK, f"next is {ONCE}, whose prev is another"),
      ("sample_annotation", SEEN, f"prev is {TRACK}, whose next is another"),
      ("sample_annotation", TRACK, f"next is {ONCE}, which is of another object")]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("table", "name", "values", "expected"), RECORD_FAULTS, ids=[f"{t}: {e[0][2]}" for t, _, _, e in RECORD_FAULTS]
)
def test_fault_in_a_record(
    tmp_path: Path, table: str, name: str, values: dict[str, Any], expected: list[tuple[str, str, str]]
) -> None:
    records = made_up_tables()
    row_of(records, table, name).update(values)
    faults = found(write_set(tmp_path, records))
    sizes = "px, its record says"  # an image whose record was spoilt differs from it
    assert [f for f in faults if sizes not in f[2]] == [
        (f"{VERSION}/{t}.json", f"token {n}", s) for t, n, s in expected
    ]


VALUE_FAULTS = [
    ("sample_data", IMAGE, {"filename": "../secret.png"}, "filename '../secret.png' is no name inside"),
    ("sample_data", IMAGE, {"filename": "/etc/passwd"}, "filename '/etc/passwd' is no name inside"),
    ("sample_data", IMAGE, {"filename": ""}, "filename '' is no name inside"),
    ("sample_data", IMAGE, {"filename": "a\0b"}, "holds a NUL character"),
    ("sample_data", IMAGE, {"width": 2**40}, f"width is {2**40}, expected 32 bits at most"),
    ("sample_annotation", SEEN, {"num_lidar_pts": 2**32 + 5}, f"num_lidar_pts is {2**32 + 5}, expected 32 bits"),
    ("sample_annotation", SEEN, {"size": [1, 1e308, 2]}, "expected positive numbers"),
    ("sample_annotation", SEEN, {"size": [1, 0, 2]}, "expected positive numbers"),
    ("sample_annotation", SEEN, {"size": [1, 1e-320, 2]}, "expected positive numbers"),
    ("ego_pose", POSE, {"translation": [1e308, 0, 0]}, "translation is not finite, or larger than 3.4e38"),
]


@pytest.mark.parametrize(("table", "name", "values", "sentence"), VALUE_FAULTS)
def test_values_that_readers_refuse_too(
    tmp_path: Path, table: str, name: str, values: dict[str, Any], sentence: str
) -> None:
    records = made_up_tables()
    row_of(records, table, name).update(values)
    write_set(tmp_path, records)
    assert any(sentence in fault for _, _, fault in found(tmp_path))
    with pytest.raises(UserError, match=re.escape(sentence)):
        load_tables(tmp_path, VERSION)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("car", "its 5 objects are not learnt: did you mean vehicle.car?"),
        ("Vehicle.Car", "did you mean vehicle.car?"),
        ("vehicle.cars", "did you mean vehicle.car?"),
        ("spaceship", "known are vehicle.car, vehicle.truck"),
    ],
)
def test_own_names_of_categories(tmp_path: Path, name: str, hint: str) -> None:
    records = made_up_tables()
    next(record for record in records["category"] if record["name"] == "vehicle.car")["name"] = name
    (warning,) = [line for line in nuscenes_contents(write_set(tmp_path, records)) if line.startswith("warning")]
    assert f"{VERSION}/category.json: {name!r} is no category" in warning and hint in warning


def nested(text: bytes) -> bytes:
    return text.rstrip().removesuffix(b"]") + b',{"token": "t", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]"


@pytest.mark.parametrize(
    ("spoilt", "sentence"),
    [
        (nested, "is nested too deeply"),
        (lambda text: text.replace(b"vehicle.car", b"vehicle.c\xe4r"), "UTF-8"),
        (lambda text: b"\xef\xbb\xbf" + text, None),
    ],
)
def test_other_texts(tmp_path: Path, spoilt: Callable[[bytes], bytes], sentence: str | None) -> None:
    path = write_set(tmp_path, made_up_tables()) / VERSION / "category.json"
    path.write_bytes(spoilt(path.read_bytes()))
    faults = [fault for _, _, fault in found(tmp_path)]
    assert not faults if sentence is None else sentence.lower() in faults[0].lower()


def test_scene_without_samples(tmp_path: Path) -> None:
    records = made_up_tables()
    records["scene"].append({"token": "bare", "name": "scene-0002", "first_sample_token": token(0, 0)})
    assert found(write_set(tmp_path, records)) == [
        (f"{VERSION}/scene.json", "token bare", "no sample belongs to this scene")
    ]


def test_every_fault_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Broken references do not hide what else is wrong, and a record that is left out is named once, by itself."""
    records = made_up_tables()
    row_of(records, "sample_data", IMAGE)["ego_pose_token"] = "lost"
    row_of(records, "sample_annotation", SEEN)["instance_token"] = "lost"
    row_of(records, "sample_annotation", ONCE)["size"] = [1, 1, -1]
    del row_of(records, "calibrated_sensor", CAMERA)["rotation"]
    write_set(tmp_path, records)
    (tmp_path / row_of(records, "sample_data", SCAN)["filename"]).unlink()
    faults = found(tmp_path)
    lost_file = f"no such file, but token {SCAN} of sample_data.json names it"
    expected = [
        (f"{VERSION}/calibrated_sensor.json", f"token {CAMERA}", "lacks the key rotation"),
        (f"{VERSION}/sample_data.json", f"token {IMAGE}", "ego_pose_token lost is not in ego_pose.json"),
        (f"{VERSION}/sample_annotation.json", f"token {SEEN}", "instance_token lost is not in instance.json"),
        (f"{VERSION}/sample_annotation.json", f"token {ONCE}", "size is [1.0, 1.0, -1.0] m, expected positive numbers"),
        (row_of(records, "sample_data", SCAN)["filename"], None, lost_file),
    ]  # fmt: skip
    links = "of another object"  # the track was broken with its instance
    assert sorted(f for f in faults if links not in f[2]) == sorted(expected, key=str)
    assert run_check(tmp_path, "nuscenes") == 2
    printed = capsys.readouterr().out.splitlines()
    assert (
        f"{tmp_path}/{VERSION}/sample_data.json: token {IMAGE}: ego_pose_token lost is not in ego_pose.json" in printed
    )
    assert printed[-1].startswith(f"{len(faults)} problems in 4 files")


@pytest.mark.parametrize("table", ["scene", "sample_data", "category"])
def test_table_absent(tmp_path: Path, table: str) -> None:
    write_set(tmp_path, made_up_tables())
    (tmp_path / VERSION / f"{table}.json").unlink()
    assert found(tmp_path) == [(f"{VERSION}/{table}.json", None, "no such file or directory")]


def spoil(value: float) -> Callable[[Path], object]:
    return lambda path: np.concatenate((POINT, np.full((2, 5), value, "<f4"))).tofile(path)


def cut(keep: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:keep])


KEY_IMAGE, KEY_SCAN = row_of(made_up_tables(), "sample_data", IMAGE), row_of(made_up_tables(), "sample_data", SCAN)
PAST_SCAN = row_of(made_up_tables(), "sample_data", token("data", 0, "LIDAR_TOP", 2))
FILE_FAULTS = [
    (KEY_IMAGE, Path.unlink, f"no such file, but token {IMAGE} of sample_data.json names it"),
    (PAST_SCAN, Path.unlink, f"no such file, but token {PAST_SCAN['token']} of sample_data.json names it"),
    (KEY_IMAGE, cut(0), "is empty"),
    (KEY_IMAGE, cut(300), "cannot be read as an image (image file is truncated)"),
    (KEY_IMAGE, lambda path: Image.new("RGB", (8, 4)).save(path), "is 8 x 4 px, its record says 32 x 16"),
    (KEY_SCAN, cut(0), "is empty"),
    (KEY_SCAN, cut(39), "39 bytes are no multiple of the 20 bytes of a point"),
    (PAST_SCAN, cut(39), "39 bytes are no multiple of the 20 bytes of a point"),
    (KEY_SCAN, spoil(np.nan), "2 points hold NaN or Inf, the first is point 1 (from 0)"),
    (KEY_SCAN, spoil(np.inf), "2 points hold NaN or Inf, the first is point 1 (from 0)"),
]


@pytest.mark.parametrize(("data", "plant", "sentence"), FILE_FAULTS, ids=[f"{s}" for _, _, s in FILE_FAULTS])
def test_fault_in_a_file(tmp_path: Path, data: dict[str, Any], plant: Callable[[Path], object], sentence: str) -> None:
    write_set(tmp_path, made_up_tables())
    plant(tmp_path / data["filename"])
    assert found(tmp_path) == [(data["filename"], None, sentence)]


def test_pictures_are_turned_upright_before_their_size_is_looked_at(tmp_path: Path) -> None:
    path, exif = write_set(tmp_path, made_up_tables()) / KEY_IMAGE["filename"], Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (SIZE[1], SIZE[0])).save(path, exif=exif)
    assert found(tmp_path) == []
    Image.new("RGB", SIZE).save(path, exif=exif)
    assert found(tmp_path) == [(KEY_IMAGE["filename"], None, "is 16 x 32 px, its record says 32 x 16")]


def test_scans_of_other_columns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(0, (10, 10, 1, 1), (600, 4)).astype("<f4")
    rows[:, 3] = rng.uniform(0, 200, 600)
    write_set(tmp_path, made_up_tables())
    for path in tmp_path.rglob("*.bin"):
        rows.tofile(path)
    sentence = "looks like 4 columns of float32: set --dataset.scan-columns 4 (of check: --scan-columns)"
    assert {found for _, _, found in found(tmp_path)} == {sentence}
    assert check_nuscenes(tmp_path, scan_columns=4) == []


def test_jpeg_cut_short(tmp_path: Path) -> None:
    """JPEG files are decoded at a fraction of their size, which must not hide a missing end."""
    records = made_up_tables()
    row_of(records, "sample_data", IMAGE).update(filename="samples/CAM_FRONT/a.jpg", width=640, height=480)
    lens = {**row_of(records, "calibrated_sensor", CAMERA), "token": token("lens")}
    records["calibrated_sensor"].append({**lens, "camera_intrinsic": [[600, 0, 320], [0, 600, 240], [0, 0, 1]]})
    row_of(records, "sample_data", IMAGE).update(calibrated_sensor_token=lens["token"])
    write_set(tmp_path, records)
    path = tmp_path / "samples/CAM_FRONT/a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)).save(path)
    assert found(tmp_path) == []
    cut(path.stat().st_size * 9 // 10)(path)
    ((file, _, sentence),) = found(tmp_path)
    assert file == "samples/CAM_FRONT/a.jpg" and sentence.startswith("cannot be read as an image (")


def test_every_version_is_checked(tmp_path: Path) -> None:
    records = made_up_tables()
    row_of(records, "sample_annotation", SEEN)["num_lidar_pts"] = -1
    write_set(tmp_path, made_up_tables())
    write_set(tmp_path, records, "v1.0-other")
    assert found(tmp_path) == [("v1.0-other/sample_annotation.json", f"token {SEEN}", "num_lidar_pts is -1")]


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        check_nuscenes(tmp_path / "none")
    assert [f.sentence for f in check_nuscenes(tmp_path)] == [
        "holds no folder of nuScenes' tables (v1.0-trainval, v1.0-mini, ...)"
    ]
