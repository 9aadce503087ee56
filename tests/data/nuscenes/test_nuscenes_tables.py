"""The tables' columns equal the records as ``json`` reads them, whatever the way; each planted fault is named."""

import gzip
import json
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_tables import ATTRIBUTES, CATEGORIES, MODALITIES, Records, made_up_tables, token, write_tables

from distill3d.data.nuscenes import tables as nuscenes_tables
from distill3d.data.nuscenes.json_columns import read_columns
from distill3d.data.nuscenes.tables import NONE, Tables, load_tables, pose_matrices, read_tables
from distill3d.errors import UserError

VERSION = "v1.0-made"
#: The recorded velocities of the real tables have this many decimals.
RECORDED_DECIMALS = 4


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_tables(tmp_path / VERSION, made_up_tables())
    return tmp_path


def records_of(folder: Path) -> Records:
    """The records of every table, read by the standard library."""

    def read(path: Path) -> Any:
        return json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())

    return {path.name.partition(".")[0]: read(path) for path in sorted(folder.glob("*.json*"))}


def assert_equal(a: Tables, b: Tables) -> None:
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, tuple):
            assert x == y
        elif field.name != "folder":
            for column in fields(x):
                np.testing.assert_array_equal(getattr(x, column.name), getattr(y, column.name), f"{column.name}")


def assert_as_recorded(tables: Tables, records: Records) -> None:
    """Every column against the records, references by the tokens that they name."""

    def texts(column: np.ndarray) -> list[str]:
        return [value.decode() for value in column.tolist()]

    def named(tokens: np.ndarray, rows: np.ndarray) -> list[str]:
        of_row = [*texts(tokens), ""]  # NONE is the last
        return [of_row[row] for row in rows]

    assert len(tables.ego_poses) == len(records["ego_pose"])
    rows: dict[str, list[dict[str, Any]]] = {"ego_pose": records["ego_pose"]}
    groups = {
        "scene": tables.scenes, "sample": tables.samples, "sample_data": tables.sample_data,
        "calibrated_sensor": tables.calibrated_sensors,
        "sample_annotation": tables.annotations,
    }  # fmt: skip
    for name, group in groups.items():
        by_token = {record["token"]: record for record in records.get(name, [])}
        assert len(group) == len(by_token)
        rows[name] = [by_token[t] for t in texts(group.token)]
    for name in ("scene", "sample_data", "calibrated_sensor"):
        assert rows[name] == records[name]

    def column(name: str, key: str) -> list[Any]:
        return [record[key] for record in rows[name]]

    s, d, e, a = tables.samples, tables.sample_data, tables.ego_poses, tables.annotations
    assert texts(tables.scenes.name) == column("scene", "name")
    assert texts(d.filename) == column("sample_data", "filename")
    poses = np.array([record["token"].encode() for record in records["ego_pose"]])
    for name, tokens, references, key in (
        ("scene", s.token, tables.scenes.first_sample, "first_sample_token"),
        ("sample", tables.scenes.token, s.scene, "scene_token"),
        ("sample", s.token, s.prev, "prev"),
        ("sample", s.token, s.next, "next"),
        ("sample_data", s.token, d.sample, "sample_token"),
        ("sample_data", poses, d.ego_pose, "ego_pose_token"),
        ("sample_data", tables.calibrated_sensors.token, d.calibrated_sensor, "calibrated_sensor_token"),
        ("sample_data", d.token, d.prev, "prev"),
        ("sample_data", d.token, d.next, "next"),
        ("sample_annotation", s.token, a.sample, "sample_token"),
        ("sample_annotation", a.token, a.prev, "prev"),
        ("sample_annotation", a.token, a.next, "next"),
    ):
        assert named(tokens, references) == column(name, key), (name, key)
    for name, values, key in (
        ("sample", s.timestamp, "timestamp"),
        ("sample_data", d.timestamp, "timestamp"),
        ("sample_data", d.is_key_frame, "is_key_frame"),
        ("sample_data", d.width, "width"),
        ("sample_data", d.height, "height"),
        ("ego_pose", e.translation, "translation"),
        ("ego_pose", e.rotation, "rotation"),
        ("ego_pose", e.timestamp, "timestamp"),
        ("calibrated_sensor", tables.calibrated_sensors.translation, "translation"),
        ("calibrated_sensor", tables.calibrated_sensors.rotation, "rotation"),
        ("sample_annotation", a.translation, "translation"),
        ("sample_annotation", a.wlh, "size"),
        ("sample_annotation", a.rotation, "rotation"),
        ("sample_annotation", a.num_lidar_pts, "num_lidar_pts"),
        ("sample_annotation", a.num_radar_pts, "num_radar_pts"),
    ):
        assert values.tolist() == column(name, key), (name, key)

    names = {name: {r["token"]: r.get("name", r.get("channel")) for r in rs} for name, rs in records.items()}
    category = {r["token"]: names["category"][r["category_token"]] for r in records.get("instance", [])}
    assert [tables.categories[c] for c in a.category] == [
        category[t] for t in column("sample_annotation", "instance_token")
    ]
    attributes = [[names["attribute"][t] for t in ts] for ts in column("sample_annotation", "attribute_tokens")]
    assert [tables.attributes[i] if i != NONE else None for i in a.attribute] == [
        t[0] if t else None for t in attributes
    ]
    assert a.attribute_count.tolist() == [len(t) for t in attributes]
    sensors = tables.calibrated_sensors
    assert [tables.channels[c] for c in sensors.channel] == [
        names["sensor"][t] for t in column("calibrated_sensor", "sensor_token")
    ]
    for matrix, given_matrix in zip(
        sensors.camera_intrinsic, column("calibrated_sensor", "camera_intrinsic"), strict=True
    ):
        assert matrix.tolist() == given_matrix if given_matrix else np.isnan(matrix).all()


# ------------------------------------------------------------------------------------------------------------ real data


@pytest.mark.real
@pytest.mark.parametrize(
    ("folder", "version", "samples", "annotations"),
    [("nuscenes_mini_val_tables", "v1.0-mini", 81, 4514), ("nuscenes_one", "v1.0-one", 1, 69)],
)
def test_real_tables(real_data: Path, folder: str, version: str, samples: int, annotations: int) -> None:
    tables = load_tables(real_data / folder, version, cache=False)
    assert (len(tables.samples), len(tables.annotations)) == (samples, annotations)
    assert_as_recorded(tables, records_of(real_data / folder / version))
    for sample in range(samples):
        assert set(tables.key_data(sample)) == set(tables.channels)


@pytest.mark.real
def test_real_velocities(real_data: Path) -> None:
    root = real_data / "nuscenes_mini_val_tables"
    tables = load_tables(root, "v1.0-mini", cache=False)
    recorded = json.loads(gzip.decompress((root / "extra/velocity_global.json.gz").read_bytes()))
    expected = np.array([recorded[t.decode()] or (np.nan, np.nan) for t in tables.annotations.token])
    assert np.isnan(expected[:, 0]).sum() == 8
    np.testing.assert_allclose(tables.velocities()[:, :2], expected, rtol=0, atol=0.5001 * 10**-RECORDED_DECIMALS)


# ------------------------------------------------------------------------------------------------------------- contents


@pytest.mark.parametrize("packed", [False, True], ids=["json", "json.gz"])
def test_columns_as_recorded(tmp_path: Path, packed: bool) -> None:
    records = made_up_tables()
    write_tables(tmp_path / VERSION, records, packed)
    assert_as_recorded(load_tables(tmp_path, VERSION), records)


def test_order_and_lookups(root: Path) -> None:
    tables = load_tables(root, VERSION)
    assert [tables.sample_token(i) for i in range(5)] == [token(s, i) for s, n in ((0, 3), (1, 2)) for i in range(n)]
    assert [tables.sample_row(token(s, i)) for s, n in ((0, 3), (1, 2)) for i in range(n)] == [0, 1, 2, 3, 4]
    assert [tables.scene_name(scene) for scene in (0, 1)] == ["scene-0000", "scene-0001"]
    assert [tables.scene_samples(scene) for scene in (0, 1)] == [range(0, 3), range(3, 5)]
    assert tables.channels == tuple(MODALITIES) and tables.modalities == tuple(MODALITIES.values())
    assert tables.categories == CATEGORIES and tables.attributes == ATTRIBUTES
    tokens = tables.annotations.token
    assert [set(tokens[tables.annotations_of(i)].tolist()) for i in (0, 1, 3)] == [
        {token("track", 0, 0, 0).encode()},
        {token("track", 0, 0, 1).encode(), token("track", 0, 1, 1).encode()},
        {token("track", 1, 0, 0).encode()},
    ]
    for sample, (scene, i) in enumerate(((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))):
        rows = tables.key_data(sample)
        expected = {c: token("data", scene, c, 2 * i + 1).encode() for c in MODALITIES}
        assert {c: tables.sample_data.token[row] for c, row in rows.items()} == expected
        assert all(
            tables.channel(row) == c and tables.file(row).parent == root / "samples" / c for c, row in rows.items()
        )
    with pytest.raises(UserError, match=r"sample\.json: no sample has the token 'unknown'"):
        tables.sample_row("unknown")


def test_poses(root: Path) -> None:
    tables = load_tables(root, VERSION)
    row = tables.key_data(1)["LIDAR_TOP"]
    # A quarter turn to the left, 0.5 m along the global x.
    expected = [[0, -1, 0, 0.5], [1, 0, 0, 20], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(tables.pose(row), expected, atol=1e-12)
    sensor = tables.sensor_pose(tables.sample_data.calibrated_sensor[row])
    np.testing.assert_array_equal(sensor[:3, 3], [1.5, 0.25, 1.75])


@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4).filter(lambda q: sum(v * v for v in q) > 1e-3))
def test_pose_matrices_turn_as_their_quaternions(quaternion: list[float]) -> None:
    """Against v + 2 r x (r x v + w v) / |q|^2, r the quaternion's vector part."""
    q, shift = np.array(quaternion), np.array([1.0, -2.0, 3.0])
    matrix = pose_matrices(shift, q)
    for v in np.eye(3):
        turned = v + 2 * np.cross(q[1:], np.cross(q[1:], v) + q[0] * v) / (q @ q)
        np.testing.assert_allclose(matrix @ [*v, 1], [*(turned + shift), 1], atol=1e-12)
    np.testing.assert_array_equal(pose_matrices(np.stack((shift, shift)), np.stack((q, 2 * q)))[0], matrix)


@pytest.mark.parametrize(
    ("times", "known"),
    [
        ([0.0], [False]),
        ([0.0, 1.4], [True, True]),
        ([0.0, 1.6], [False, False]),  # longer than 1.5 s on one side
        ([0.0, 1.4, 2.8], [True, True, True]),
        ([0.0, 1.4, 3.0], [True, True, False]),  # two-sided up to 3 s
        ([0.0, 1.6, 3.2], [False, False, False]),
    ],
    ids=lambda v: "-".join(map(str, v)),
)
def test_velocity_rule(tmp_path: Path, times: list[float], known: list[bool]) -> None:
    write_tables(tmp_path / VERSION, made_up_tables([times, (100.0, 100.5)] if len(times) > 1 else [(0.0, 0.5), times]))
    tables = load_tables(tmp_path, VERSION, cache=False)
    track = np.isin(
        tables.annotations.token,
        [token("track", int(len(times) == 1), 0, i).encode() for i in range(len(times))],
    )
    velocity = tables.velocities()[track]
    assert (~np.isnan(velocity)).all(-1).tolist() == known
    # The track moves at 2 m/s along x; across, its place is the square of its number.
    np.testing.assert_allclose(velocity[known, 0], 2, rtol=1e-6)
    if len(times) > 2:
        np.testing.assert_allclose(velocity[1, 1], 4 / (times[2] - times[0]) if known[1] else np.nan, rtol=1e-6)


@pytest.mark.parametrize("how", ["absent", "empty"])
def test_without_annotations(root: Path, how: str) -> None:
    folder = root / VERSION
    for name in ("instance", "category", "attribute", "sample_annotation"):
        (folder / f"{name}.json").unlink()
    if how == "empty":
        (folder / "sample_annotation.json").write_text("[]")
    tables = load_tables(root, VERSION)
    assert not tables.annotated and len(tables.annotations) == 0 and tables.velocities().shape == (0, 3)
    assert tables.annotations_of(2) == slice(0, 0)
    assert len(tables.key_data(2)) == 2
    assert_equal(tables, load_tables(root, VERSION))


# ---------------------------------------------------------------------------------------------------------------- cache


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nuscenes_tables, "read_tables", lambda folder: pytest.fail("read the tables anew"))


def test_cache_equals_fresh_tables(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = load_tables(root, VERSION)
    forbid_reading(monkeypatch)
    cached = load_tables(root, VERSION)
    assert_equal(fresh, cached)
    assert cached.key_data(1) == fresh.key_data(1)
    np.testing.assert_array_equal(cached.velocities(), fresh.velocities())
    assert not cached.samples.timestamp.flags.writeable


def test_without_cache_nothing_is_written(root: Path) -> None:
    load_tables(root, VERSION, cache=False)
    assert [path.name for path in root.iterdir()] == [VERSION]


@pytest.mark.parametrize("change", ["size", "time", "packed"])
def test_stale_cache_is_rebuilt(root: Path, change: str) -> None:
    load_tables(root, VERSION)
    records = made_up_tables()
    moved = records["ego_pose"][0]["translation"]
    moved[1] = 20.125 if change == "size" else 30.0  # "time": the same length as before
    write_tables(root / VERSION, records, packed=change == "packed")
    if change == "packed":
        for path in (root / VERSION).glob("*.json"):
            path.unlink()
    status = (root / VERSION / f"ego_pose.json{'.gz' if change == 'packed' else ''}").stat()
    os.utime(root / VERSION, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert load_tables(root, VERSION).ego_poses.translation[0].tolist() == moved
    assert load_tables(root, VERSION).ego_poses.translation[0].tolist() == moved
    assert len(list((root / ".distill3d_cache").iterdir())) == 1  # that of before is gone


@pytest.mark.parametrize(
    "spoil",
    [lambda p: p.write_bytes(p.read_bytes()[:-40]), lambda p: p.write_bytes(b""), Path.unlink],
    ids=["cut", "emptied", "lost"],
)
@pytest.mark.parametrize("column", ["ego_poses.rotation", "channels"])
def test_broken_cache_is_rebuilt(
    root: Path, spoil: Callable[[Path], object], column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = load_tables(root, VERSION)
    (path,) = (root / ".distill3d_cache").rglob(f"{column}.npy")
    spoil(path)
    assert_equal(load_tables(root, VERSION), fresh)
    forbid_reading(monkeypatch)
    assert_equal(load_tables(root, VERSION), fresh)


def test_cache_elsewhere_where_the_folder_cannot_be_written(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = tmp_path_factory.mktemp("user")
    monkeypatch.setenv("XDG_CACHE_HOME", str(user))
    (root / ".distill3d_cache").write_text("no folder can be made here")
    other = tmp_path_factory.mktemp("other")
    write_tables(other / VERSION, made_up_tables([(0.0,)]))
    (other / ".distill3d_cache").write_text("")
    with pytest.warns(UserWarning, match="cannot be written"):
        first, second = load_tables(root, VERSION), load_tables(other, VERSION)
        forbid_reading(monkeypatch)  # both are kept, though their versions have one name
        assert_equal(load_tables(root, VERSION), first)
        assert_equal(load_tables(other, VERSION), second)


def test_cache_nowhere(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / ".distill3d_cache").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / ".distill3d_cache"))
    assert_as_recorded(load_tables(root, VERSION), made_up_tables())


# --------------------------------------------------------------------------------------------------------------- faults


def change(table: str, row: int, **values: object) -> Callable[[Records], None]:
    return lambda records: records[table][row].update(values)


def drop(table: str, row: int, key: str) -> Callable[[Records], object]:
    return lambda records: records[table][row].pop(key)


LOST = token("nothing has this token")
FAULTS = [
    ("scene", change("scene", 1, first_sample_token=LOST), f"first_sample_token {LOST} is not in sample.json"),
    ("sample", change("sample", 1, scene_token=LOST), f"scene_token {LOST} is not in scene.json"),
    ("sample", change("sample", 1, next=LOST), f"next {LOST} is not in sample.json"),
    ("sample", change("sample", 1, scene_token=""), "scene_token is empty, expected a token of scene.json"),
    ("sample_data", change("sample_data", 1, sample_token=LOST), f"sample_token {LOST} is not in sample.json"),
    ("sample_data", change("sample_data", 1, ego_pose_token=LOST), f"ego_pose_token {LOST} is not in ego_pose.json"),
    (
        "sample_data",
        change("sample_data", 1, calibrated_sensor_token=LOST),
        f"calibrated_sensor_token {LOST} is not in calibrated_sensor.json",
    ),
    ("sample_data", change("sample_data", 1, prev=LOST), f"prev {LOST} is not in sample_data.json"),
    ("calibrated_sensor", change("calibrated_sensor", 1, sensor_token="x"), "sensor_token x is not in sensor.json"),
    (
        "calibrated_sensor",
        change("calibrated_sensor", 1, camera_intrinsic=[[1, 0, 0]] * 2),
        "camera_intrinsic has 2 rows",
    ),
    ("calibrated_sensor", change("calibrated_sensor", 1, camera_intrinsic=[[1]] * 3), "camera_intrinsic"),
    ("instance", change("instance", 1, category_token=LOST), f"category_token {LOST} is not in category.json"),
    ("sample_annotation", change("sample_annotation", 1, sample_token=LOST), f"sample_token {LOST} is not in"),
    (
        "sample_annotation",
        change("sample_annotation", 1, instance_token=LOST * 2),
        f"instance_token {LOST * 2} is not in",
    ),
    (
        "sample_annotation",
        change("sample_annotation", 1, attribute_tokens=[token(ATTRIBUTES[0]), LOST]),
        f"attribute_tokens {LOST} is not in attribute.json",
    ),
    ("sample_annotation", change("sample_annotation", 1, size=[1, 2]), "size: expected array of length 3"),
    ("sample_annotation", change("sample_annotation", 1, rotation=None), "rotation: expected array, got null"),
    ("sample_annotation", change("sample_annotation", 1, translation=[1, 2, "3"]), "translation[2]: expected float"),
    ("ego_pose", change("ego_pose", 1, rotation=[0, 0, 0, 0]), "rotation has length 0, expected a unit quaternion"),
    ("sample_annotation", drop("sample_annotation", 1, "num_lidar_pts"), "lacks the key num_lidar_pts"),
    ("sample", drop("sample", 1, "timestamp"), "lacks the key timestamp"),
    ("sample", change("sample", 1, timestamp="soon"), "timestamp: expected int, got str"),
    ("sample_data", change("sample_data", 1, is_key_frame=1), "is_key_frame: expected bool, got int"),
    ("scene", drop("scene", 1, "name"), "lacks the key name"),
]


@pytest.mark.parametrize(("table", "plant", "sentence"), FAULTS, ids=[f"{t}: {s}" for t, _, s in FAULTS])
def test_fault_in_a_record_names_file_and_token(
    tmp_path: Path, table: str, plant: Callable[[Records], object], sentence: str
) -> None:
    records = made_up_tables()
    plant(records)
    folder = write_tables(tmp_path / VERSION, records)
    with pytest.raises(UserError) as caught:
        load_tables(tmp_path, VERSION)
    assert str(caught.value).startswith(f"{folder / table}.json: token {records[table][1]['token']}: {sentence}")


@pytest.mark.parametrize("table", sorted(made_up_tables()))
def test_same_token_twice(tmp_path: Path, table: str) -> None:
    records = made_up_tables()
    records[table].append(dict(records[table][0]))
    folder = write_tables(tmp_path / VERSION, records)
    twice = f"{folder / table}.json: token {records[table][0]['token']}: stands twice"
    with pytest.raises(UserError) as caught:
        load_tables(tmp_path, VERSION)
    assert str(caught.value).startswith(twice)
    assert sum(str(fault).startswith(twice) for fault in read_tables(folder)[1]) == 1


@pytest.mark.parametrize("key", ["token", None], ids=["no token", "no object"])
def test_record_without_a_token_is_named_by_number(tmp_path: Path, key: str | None) -> None:
    records: Any = made_up_tables()
    if key is None:
        records["ego_pose"][3] = 7
    else:
        del records["ego_pose"][3][key]
    folder = write_tables(tmp_path / VERSION, records)
    with pytest.raises(UserError, match="record 4: (lacks the key token|expected object, got int)") as caught:
        load_tables(tmp_path, VERSION)
    assert str(caught.value).startswith(f"{folder / 'ego_pose.json'}: record 4: ")


def test_empty_token(tmp_path: Path) -> None:
    records = made_up_tables()
    records["sensor"].append({"token": "", "channel": "RADAR_FRONT", "modality": "radar"})
    write_tables(tmp_path / VERSION, records)
    with pytest.raises(UserError, match=r"sensor\.json: record 3: the token is empty"):
        load_tables(tmp_path, VERSION)


NO_LIST = "is not a JSON list of records: "


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no such file or directory"),
        (b"", NO_LIST + "input data was truncated after record 0"),
        (b"{}", NO_LIST + "expected array, got object after record 0"),
        (b'[{"token": "a"}', NO_LIST + "input data was truncated after record 0"),
        (b"[1, 2,]", NO_LIST),
        (b"[] x", NO_LIST + "JSON is malformed: trailing characters"),
        (b'[{"token": "\xff"}]', "is not UTF-8 text after record 0"),
        (b'[{"token": "a", "timestamp": NaN}]', NO_LIST + "JSON is malformed"),
        (b"[" + b"1" * 30 + b"]", "record 1: expected object, got float"),
    ],
    ids=["absent", "empty", "object", "cut", "comma", "trailing", "not UTF-8", "NaN", "numbers"],
)
def test_malformed_file(root: Path, content: bytes | None, sentence: str) -> None:
    path = root / VERSION / "ego_pose.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_tables(root, VERSION)
    assert str(caught.value).startswith(f"{path}: {sentence}")


def test_number_too_large(tmp_path: Path) -> None:
    records = made_up_tables()
    records["sample"][0]["timestamp"] = 2**63
    write_tables(tmp_path / VERSION, records)
    with pytest.raises(UserError, match=r"sample\.json: holds a whole number of more than 64 bits"):
        load_tables(tmp_path, VERSION)


@pytest.mark.parametrize("spoil", [lambda d: d[:-20], lambda d: b"plain text", lambda d: d[:40] + b"\0" * 9 + d[49:]])
def test_damaged_gzip(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = write_tables(tmp_path / VERSION, made_up_tables(), packed=True) / "sample_data.json.gz"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError) as caught:
        load_tables(tmp_path, VERSION)
    assert str(caught.value).startswith(f"{path}: cannot be unpacked")


def test_version_absent(root: Path) -> None:
    with pytest.raises(UserError, match="v1.0-none: no such folder, expected nuScenes' tables"):
        load_tables(root, "v1.0-none")


def test_all_faults_are_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = made_up_tables()
    for record in records["sample_data"]:
        record["sample_token"] = LOST
    records["scene"][0]["first_sample_token"] = LOST
    del records["category"][0]["name"]
    folder = write_tables(tmp_path / VERSION, records)
    count = len(records["sample_data"]) + 2
    assert len(read_tables(folder)[1]) == count
    with pytest.raises(UserError, match=f"and {count - 1} more; `distill3d check` names them all"):
        load_tables(tmp_path, VERSION)
    monkeypatch.setattr(nuscenes_tables, "MOST_LISTED", 3)
    sentences = [str(fault) for fault in read_tables(folder)[1]]
    assert len(sentences) == 6
    assert (
        f"{folder / 'sample_data.json'}: {len(records['sample_data']) - 3} more records with the same fault"
        in sentences
    )


# --------------------------------------------------------------------------------------------------- pieces and hashing


@given(chunk=st.integers(1, 5000), indent=st.sampled_from([None, 0, 1]), packed=st.booleans())
def test_any_chunk_size_gives_the_same_columns(
    tmp_path_factory: pytest.TempPathFactory, chunk: int, indent: int | None, packed: bool
) -> None:
    """Descriptions hold what looks like the border of two records; nested objects are no border either."""
    path = tmp_path_factory.mktemp("cut") / f"scene.json{'.gz' if packed else ''}"
    rows = made_up_tables([(float(i),) for i in range(12)])["scene"]
    for i, row in enumerate(rows):
        row["nested"] = [{"token": "a"}, {"token": "b"}] if i % 3 == 0 else None
        row["name"] += "é}, {" * (i % 5)
    text = json.dumps(rows, indent=indent, ensure_ascii=False).encode()
    path.write_bytes(gzip.compress(text) if packed else text)
    columns, faults = read_columns(path, nuscenes_tables.REQUIRED["scene"], chunk)
    assert not faults and columns is not None
    assert [name.decode() for name in columns["name"].tolist()] == [row["name"] for row in rows]
    for key in ("token", "first_sample_token"):
        assert columns[key].tolist() == [row[key].encode() for row in rows]


@given(chunk=st.integers(1, 3000), bad=st.integers(0, 11))
def test_any_chunk_size_names_the_same_record(tmp_path_factory: pytest.TempPathFactory, chunk: int, bad: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "scene.json"
    rows = made_up_tables([(float(i),) for i in range(12)])["scene"]
    for key in ("token", "name"):
        del rows[bad][key]
    path.write_text(json.dumps(rows, indent=0))
    columns, faults = read_columns(path, nuscenes_tables.REQUIRED["scene"], chunk)
    assert [str(fault) for fault in faults] == [f"{path}: record {bad + 1}: lacks the key token"]
    assert columns is not None and len(columns["token"]) == 11


@given(chunk=st.integers(1, 3000), cut=st.integers(1, 3000))
def test_any_chunk_size_finds_a_file_cut_short(tmp_path_factory: pytest.TempPathFactory, chunk: int, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "scene.json"
    text = json.dumps(made_up_tables([(float(i),) for i in range(12)])["scene"], indent=0)
    path.write_text(text[: -min(cut, len(text))])
    columns, faults = read_columns(path, nuscenes_tables.REQUIRED["scene"], chunk)
    assert columns is None
    assert len(faults) == 1 and NO_LIST in str(faults[0])


@given(
    ordered=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50).map(sorted),
    keys=st.lists(st.integers(0, 2**64 - 1), max_size=20),
)
def test_search_by_leading_bits_equals_bisection(ordered: list[int], keys: list[int]) -> None:
    values, wanted = np.array(ordered, np.uint64), np.array([*keys, *ordered[::3], 2**64 - 1], np.uint64)
    np.testing.assert_array_equal(nuscenes_tables._search_spread(values, wanted), np.searchsorted(values, wanted))


def test_equal_hashes_are_told_apart(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = load_tables(root, VERSION, cache=False)
    monkeypatch.setattr(nuscenes_tables, "_HASH_FACTOR", np.uint64(0))
    assert_equal(load_tables(root, VERSION, cache=False), fresh)


def test_tokens_of_any_length(tmp_path: Path) -> None:
    """Tokens need not be 32 hexadecimal digits."""
    records = json.loads(json.dumps(made_up_tables()).replace(token(0, 1), "x").replace(token(1, 0), "é" * 40))
    write_tables(tmp_path / VERSION, records)
    tables = load_tables(tmp_path, VERSION)
    assert (tables.sample_row("x"), tables.sample_row("é" * 40), tables.sample_token(3)) == (1, 3, "é" * 40)
    assert_as_recorded(tables, records)
    assert_equal(replace(tables, folder=Path()), load_tables(tmp_path, VERSION))
