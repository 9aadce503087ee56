"""nuScenes folders of synthetic drives: tables, geometry of files and records, reproducibility, runs cut short."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill3d.boxes import NUSCENES_CLASSES
from distill3d.data.nuscenes.dataset import CLASS_OF_CATEGORY
from distill3d.errors import UserError
from distill3d.instances import FOLDER, STEP, mask_file
from distill3d.settings import check_settings
from distill3d.synth import SurroundStreetConfig, sensors, surround_rig, write_nuscenes
from distill3d.synth.nuscenes_records import CATEGORY_OF_KIND, CLASS_NUMBER, TABLES, VERSION
from distill3d.synth.nuscenes_scene import World, random_world

TINY = SurroundStreetConfig(
    width=64,
    height=24,
    rays_per_pixel_side=1,
    frames_per_scene=3,
    lidar_rate=4.0,
    lidar_step=1.0,
    standing_share=0.0,
    image_format="png",
)
SEED, SCENES = 3, 2

KEYS = {
    "category": "token name description",
    "attribute": "token name description",
    "visibility": "token level description",
    "instance": "token category_token nbr_annotations first_annotation_token last_annotation_token",
    "sensor": "token channel modality",
    "calibrated_sensor": "token sensor_token translation rotation camera_intrinsic",
    "ego_pose": "token timestamp rotation translation",
    "log": "token logfile vehicle date_captured location",
    "scene": "token log_token nbr_samples first_sample_token last_sample_token name description",
    "sample": "token timestamp prev next scene_token",
    "sample_data": "token sample_token ego_pose_token calibrated_sensor_token timestamp fileformat is_key_frame "
    "height width filename prev next",
    "sample_annotation": "token sample_token instance_token visibility_token attribute_tokens translation size "
    "rotation prev next num_lidar_pts num_radar_pts",
    "map": "category token filename log_tokens",
}
#: Table, key of its records, and the table whose records the key names; prev and next have a test of their own.
REFERENCES = [
    ("instance", "category_token", "category"),
    ("instance", "first_annotation_token", "sample_annotation"),
    ("instance", "last_annotation_token", "sample_annotation"),
    ("calibrated_sensor", "sensor_token", "sensor"),
    ("scene", "log_token", "log"),
    ("scene", "first_sample_token", "sample"),
    ("scene", "last_sample_token", "sample"),
    ("sample", "scene_token", "scene"),
    ("sample_data", "sample_token", "sample"),
    ("sample_data", "ego_pose_token", "ego_pose"),
    ("sample_data", "calibrated_sensor_token", "calibrated_sensor"),
    ("sample_annotation", "sample_token", "sample"),
    ("sample_annotation", "instance_token", "instance"),
    ("sample_annotation", "visibility_token", "visibility"),
    ("sample_annotation", "attribute_tokens", "attribute"),
    ("map", "log_tokens", "log"),
]


def write(out: Path, **changes) -> Path:
    settings = {"scenes": SCENES, "seed": SEED, "config": TINY, "workers": 1, "progress": False}
    return write_nuscenes(out, **{**settings, **changes})


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("drives") / "set")


@cache
def world(index: int) -> World:
    return random_world(SEED, index, TINY)


@cache
def places(index: int, time: float) -> np.ndarray:
    """Bottom centres (N, 3) of all things of a scene in the global frame, time s."""
    shown = world(index)
    return shown.site.of(np.array([thing.position for thing in shown.drive.objects_at(time)]))


class Database:
    """The tables by token, and the devkit's geometry written out once more."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tables = {name: json.loads((root / VERSION / f"{name}.json").read_text()) for name in TABLES}
        self.by_token = {name: {r["token"]: r for r in records} for name, records in self.tables.items()}

    def channel(self, data: dict) -> str:
        sensor = self.by_token["calibrated_sensor"][data["calibrated_sensor_token"]]["sensor_token"]
        return self.by_token["sensor"][sensor]["channel"]

    def poses(self, data: dict) -> tuple[np.ndarray, np.ndarray]:
        """Sensor to vehicle and vehicle to global, (4, 4) each."""
        calibration = self.by_token["calibrated_sensor"][data["calibrated_sensor_token"]]
        return pose(calibration), pose(self.by_token["ego_pose"][data["ego_pose_token"]])

    def points(self, data: dict) -> np.ndarray:
        """LiDAR points (N, 3) in the global frame."""
        points = np.fromfile(self.root / data["filename"], np.float32).reshape(-1, 5)[:, :3].astype(float)
        to_vehicle, to_global = self.poses(data)
        return moved(to_global, moved(to_vehicle, points))

    def annotations(self, sample_token: str) -> list[dict]:
        return [a for a in self.tables["sample_annotation"] if a["sample_token"] == sample_token]

    def scene_index(self, sample_token: str) -> int:
        scene = self.by_token["sample"][sample_token]["scene_token"]
        return int(self.by_token["scene"][scene]["name"].split("-")[1])

    def key(self, sample_token: str, channel: str) -> dict:
        data = [d for d in self.tables["sample_data"] if d["sample_token"] == sample_token and d["is_key_frame"]]
        (found,) = (d for d in data if self.channel(d) == channel)
        return found


@pytest.fixture(scope="module")
def database(written: Path) -> Database:
    return Database(written)


def rotation_of(quaternion: list[float]) -> np.ndarray:
    w, x, y, z = quaternion
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


def pose(record: dict) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation_of(record["rotation"]), record["translation"]
    return matrix


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def inside(annotation: dict, points: np.ndarray, margin: float = 0.0, shift: np.ndarray | float = 0.0) -> np.ndarray:
    """Which points (N, 3) lie in an annotated box, moved by shift (3,) and widened by margin, m."""
    local = (points - annotation["translation"] - shift) @ rotation_of(annotation["rotation"])
    width, length, height = annotation["size"]
    return (np.abs(local) <= np.array([length, width, height]) / 2 + margin).all(1)


def test_all_tables_have_the_official_keys(database: Database) -> None:
    assert set(database.tables) == set(KEYS)
    assert len(KEYS) == 13
    for name, records in database.tables.items():
        assert records
        assert {tuple(sorted(r)) for r in records} == {tuple(sorted(KEYS[name].split()))}
        assert len(database.by_token[name]) == len(records)
        if name != "visibility":
            assert all(len(r["token"]) == 32 and set(r["token"]) <= set("0123456789abcdef") for r in records)
    counts = {name: len(database.tables[name]) for name in ("category", "attribute", "visibility", "sensor", "scene")}
    assert counts == {"category": 23, "attribute": 8, "visibility": 4, "sensor": 7, "scene": SCENES}


@pytest.mark.parametrize(("table", "key", "other"), REFERENCES)
def test_references_lead_somewhere(database: Database, table: str, key: str, other: str) -> None:
    for record in database.tables[table]:
        tokens = record[key] if isinstance(record[key], list) else [record[key]]
        assert all(token in database.by_token[other] for token in tokens)


@pytest.mark.parametrize(
    ("table", "group", "count"),
    [
        ("sample", lambda r: r["scene_token"], SCENES),
        ("sample_data", lambda r: r["calibrated_sensor_token"], 7 * SCENES),
        ("sample_annotation", lambda r: r["instance_token"], None),
    ],
)
def test_chains_run_through_each_group_in_time(database: Database, table: str, group, count: int | None) -> None:
    time = {name: {r["token"]: r["timestamp"] for r in database.tables[name]} for name in ("sample", "sample_data")}
    groups: dict[str, list[dict]] = {}
    for record in database.tables[table]:
        groups.setdefault(group(record), []).append(record)
    assert count is None or len(groups) == count
    for records in groups.values():
        (walked,) = ([r] for r in records if r["prev"] == "")
        while walked[-1]["next"]:
            following = database.by_token[table][walked[-1]["next"]]
            assert following["prev"] == walked[-1]["token"]
            walked.append(following)
        assert len(walked) == len(records)
        stamps = [time[table][r["token"]] if table in time else time["sample"][r["sample_token"]] for r in walked]
        assert (np.diff(stamps) > 0).all()


def test_scenes_and_tracks_know_their_ends(database: Database) -> None:
    for scene in database.tables["scene"]:
        samples = [s for s in database.tables["sample"] if s["scene_token"] == scene["token"]]
        assert scene["nbr_samples"] == len(samples) == TINY.frames_per_scene
        assert database.by_token["sample"][scene["first_sample_token"]]["prev"] == ""
        assert database.by_token["sample"][scene["last_sample_token"]]["next"] == ""
    for track in database.tables["instance"]:
        own = [a for a in database.tables["sample_annotation"] if a["instance_token"] == track["token"]]
        assert track["nbr_annotations"] == len(own)
        assert database.by_token["sample_annotation"][track["first_annotation_token"]]["prev"] == ""
        assert database.by_token["sample_annotation"][track["last_annotation_token"]]["next"] == ""


def test_readings_belong_to_the_sample_that_follows(database: Database) -> None:
    per_key = round(TINY.lidar_rate * TINY.key_interval)
    for sample in database.tables["sample"]:
        data = [d for d in database.tables["sample_data"] if d["sample_token"] == sample["token"]]
        sweeps = [d for d in data if database.channel(d) == "LIDAR_TOP"]
        assert len(sweeps) == (per_key if sample["prev"] else 1)
        assert max(d["timestamp"] for d in sweeps) == sample["timestamp"]
        keys = {database.channel(d): d for d in data if d["is_key_frame"]}
        assert set(keys) == set(surround_rig.modalities(SurroundStreetConfig()))
        lags = {c: sample["timestamp"] - d["timestamp"] for c, d in keys.items()}
        order = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT")
        assert sorted(order, key=lags.__getitem__, reverse=True) == list(order)
        assert lags["LIDAR_TOP"] == lags["CAM_BACK_LEFT"] == 0
        assert lags["CAM_FRONT_LEFT"] == 42361  # 305 of 360 degrees of a turn of 50 ms


def test_files_are_what_the_tables_say(database: Database) -> None:
    for data in database.tables["sample_data"]:
        path = database.root / data["filename"]
        assert path.parts[-3] == ("samples" if data["is_key_frame"] else "sweeps")
        assert path.parts[-2] == database.channel(data)
        assert str(data["timestamp"]) in path.name
        if data["fileformat"] == "pcd":
            points = np.fromfile(path, np.float32).reshape(-1, 5)
            assert len(points) > 3000
            assert np.isfinite(points).all()
            assert 0 <= points[:, 3].min() < 64 < points[:, 3].max() <= 255
            assert set(np.unique(points[:, 4])) <= set(range(32))
            elevation = np.degrees(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
            assert np.abs(elevation - surround_rig.LIDAR_BEAMS[points[:, 4].astype(int)]).max() < 0.01
        else:
            with Image.open(path) as image:
                assert image.size == (data["width"], data["height"]) == (TINY.width, TINY.height)
                assert np.asarray(image).std() > 5
    assert (database.root / database.tables["map"][0]["filename"]).exists()


def test_vehicle_and_boxes_are_level(database: Database) -> None:
    for record in database.tables["ego_pose"]:
        assert record["translation"][2] == 0
    for record in (*database.tables["ego_pose"], *database.tables["sample_annotation"]):
        assert np.abs(record["rotation"][1:3]).max() < 1e-12
    for record in (*database.tables["ego_pose"], *database.tables["calibrated_sensor"]):
        assert abs(np.linalg.norm(record["rotation"]) - 1) < 1e-12


@pytest.mark.parametrize("channel", surround_rig.CAMERAS)
def test_cameras_look_where_nuscenes_cameras_look(database: Database, channel: str) -> None:
    mount = surround_rig.CAMERAS[channel]
    sensors = {r["channel"]: r["token"] for r in database.tables["sensor"]}
    for record in database.tables["calibrated_sensor"]:
        if record["sensor_token"] != sensors[channel]:
            continue
        right, down, ahead = rotation_of(record["rotation"]).T
        angle = np.degrees(np.arctan2(ahead[1], ahead[0])) - mount.yaw
        assert abs((angle + 180) % 360 - 180) < 1.5
        assert down[2] < -0.99
        assert np.allclose(np.cross(right, down), ahead)
        matrix = np.array(record["camera_intrinsic"])
        assert matrix[0, 0] == matrix[1, 1] == pytest.approx(mount.focal * TINY.width / 1600)
        assert matrix[1, 2] == pytest.approx(491 * 0.04 - (36 - 24))  # the lowest 24 of 36 rows


def test_annotated_numbers_of_points_are_those_in_the_boxes(database: Database) -> None:
    total = 0
    for sample in database.tables["sample"]:
        points = database.points(database.key(sample["token"], "LIDAR_TOP"))
        for annotation in database.annotations(sample["token"]):
            assert annotation["num_lidar_pts"] == inside(annotation, points).sum()
            assert annotation["num_radar_pts"] == 0
            total += annotation["num_lidar_pts"]
    assert total > 500


def test_tracks_begin_and_end_with_points(database: Database) -> None:
    for track in database.tables["instance"]:
        for end in ("first_annotation_token", "last_annotation_token"):
            assert database.by_token["sample_annotation"][track[end]]["num_lidar_pts"] > 0


def test_sweeps_of_things_line_up_when_carried_along(database: Database) -> None:
    """A box moved with its velocity holds about as many points of the sweep before as of the key frame."""
    near, before = 0, 0
    for sample in database.tables["sample"]:
        key = database.key(sample["token"], "LIDAR_TOP")
        if not key["prev"]:
            continue
        earlier = database.by_token["sample_data"][key["prev"]]
        lag = (key["timestamp"] - earlier["timestamp"]) / 1e6
        points = database.points(earlier)
        for annotation in database.annotations(sample["token"]):
            if annotation["num_lidar_pts"] >= 20:
                near += annotation["num_lidar_pts"]
                before += inside(annotation, points, shift=-lag * velocity(database, annotation)).sum()
    assert near > 300
    assert 0.9 < before / near < 1.1


def velocity(database: Database, annotation: dict) -> np.ndarray:
    """(3,) m/s by the devkit's rule: between the neighbours in time, or from one neighbour at the track's ends."""
    table, samples = database.by_token["sample_annotation"], database.by_token["sample"]
    first, last = table.get(annotation["prev"], annotation), table.get(annotation["next"], annotation)
    time = (samples[last["sample_token"]]["timestamp"] - samples[first["sample_token"]]["timestamp"]) / 1e6
    if time == 0:
        return np.zeros(3)
    return (np.array(last["translation"]) - first["translation"]) / time


def truth(database: Database, annotation: dict) -> tuple[int, int, float]:
    """Scene, object and time (s) of an annotation, found by its place."""
    sample = database.by_token["sample"][annotation["sample_token"]]
    index = database.scene_index(sample["token"])
    first = database.by_token["scene"][sample["scene_token"]]["first_sample_token"]
    time = (sample["timestamp"] - database.by_token["sample"][first]["timestamp"]) / 1e6
    offset = np.hypot(*(places(index, time) - annotation["translation"])[:, :2].T)
    assert offset.min() < 0.002
    return index, int(offset.argmin()), time


def test_velocity_from_neighbours_is_the_true_velocity(database: Database) -> None:
    moving = 0
    for annotation in database.tables["sample_annotation"]:
        if not annotation["prev"] and not annotation["next"]:
            continue
        index, thing, time = truth(database, annotation)
        true = ((places(index, time + 0.01) - places(index, time - 0.01))[thing] / 0.02)[:2]
        found = velocity(database, annotation)[:2]
        # Where the road bends one-sided differences lag by half an interval.
        assert np.abs(found - true).max() < 0.02 + 0.03 * np.linalg.norm(true)
        if np.linalg.norm(true) > 0.5:
            moving += 1
            ahead = rotation_of(annotation["rotation"])[:2, 0]
            assert found @ ahead > 0.99 * np.linalg.norm(found)
    assert moving > 5


def test_attributes_tell_what_moves(database: Database) -> None:
    seen = set()
    for annotation in database.tables["sample_annotation"]:
        index, thing, _ = truth(database, annotation)
        (attribute,) = (database.by_token["attribute"][t]["name"] for t in annotation["attribute_tokens"])
        instance = database.by_token["instance"][annotation["instance_token"]]
        category = database.by_token["category"][instance["category_token"]]["name"]
        group = {"vehicle.bicycle": "cycle", "human.pedestrian.adult": "pedestrian"}.get(category, "vehicle")
        assert attribute.startswith(group)
        if group != "cycle":
            assert attribute.endswith(".moving") == (world(index).drive.motions[thing].speed > 0)
        seen.add(category)
    assert seen >= {"vehicle.car", "vehicle.truck", "human.pedestrian.adult"}


def test_masks_show_which_thing_each_pixel_is(database: Database) -> None:
    """Pixel by pixel what a ray meets, by classes and numbers; each key picture has a mask, and no other file is."""
    kinds = {CLASS_NUMBER[kind]: category for kind, category in CATEGORY_OF_KIND.items()}
    assert {number: CLASS_OF_CATEGORY[name] for number, name in kinds.items()} == {
        number: NUSCENES_CLASSES[number - 1] for number in kinds
    }
    pictures = [d for d in database.tables["sample_data"] if d["is_key_frame"] and d["fileformat"] != "pcd"]
    files = {mask_file(database.root, database.root / d["filename"]): d for d in pictures}
    assert set(files) == {p for p in (database.root / FOLDER).rglob("*") if p.is_file()}
    pixels = np.stack(np.meshgrid(np.arange(TINY.width), np.arange(TINY.height)), -1).reshape(-1, 2)
    homogeneous = np.concatenate([pixels, np.ones((len(pixels), 1))], 1)
    sample, shown_pixels = database.tables["sample"][0], 0
    for path, data in files.items():
        if data["sample_token"] != sample["token"]:
            continue
        calibration = database.by_token["calibrated_sensor"][data["calibrated_sensor_token"]]
        to_vehicle, to_global = database.poses(data)
        camera, shown = to_global @ to_vehicle, world(0)
        scene, caster = shown.drive.at((data["timestamp"] - sample["timestamp"]) / 1e6)
        rays = homogeneous @ np.linalg.inv(calibration["camera_intrinsic"]).T @ camera[:3, :3].T
        origin = (camera[:3, 3] - shown.site.offset) @ shown.site.rotation
        hit = caster.cast(np.broadcast_to(origin, rays.shape), rays @ shown.site.rotation)["primID"]
        thing = np.where(hit >= 0, scene.object[hit], -1)
        expected = [STEP * CLASS_NUMBER[scene.objects[t].kind] + t if t >= 0 else 0 for t in thing.tolist()]
        with Image.open(path) as mask:
            assert (np.asarray(mask).ravel() == expected).mean() > 0.999  # of edges a ray may see either side
        shown_pixels += (thing >= 0).sum()
    assert shown_pixels > 100


def test_pixels_of_things_lie_in_their_boxes(database: Database) -> None:
    """What a ray through a pixel, made from the tables alone, meets in the world belongs to the box around it."""
    pixels = np.stack(np.meshgrid(np.arange(TINY.width), np.arange(TINY.height)), -1).reshape(-1, 2)
    homogeneous = np.concatenate([pixels, np.ones((len(pixels), 1))], 1)
    held = total = 0
    for sample in database.tables["sample"][:2]:
        annotations = [(truth(database, a), a) for a in database.annotations(sample["token"])]
        for channel in surround_rig.CAMERAS:
            data = database.key(sample["token"], channel)
            calibration = database.by_token["calibrated_sensor"][data["calibrated_sensor_token"]]
            to_vehicle, to_global = database.poses(data)
            camera = to_global @ to_vehicle
            rays = homogeneous @ np.linalg.inv(calibration["camera_intrinsic"]).T @ camera[:3, :3].T
            (index, _, time), _ = annotations[0]
            shown = world(index)
            rays = rays / np.linalg.norm(rays, axis=1, keepdims=True)
            lag = (sample["timestamp"] - data["timestamp"]) / 1e6
            scene, caster = shown.drive.at(time - lag)
            origin = (camera[:3, 3] - shown.site.offset) @ shown.site.rotation
            hits = caster.cast(np.broadcast_to(origin, rays.shape), rays @ shown.site.rotation)
            seen = np.where(hits["primID"] >= 0, scene.object[hits["primID"]], -1)
            met = camera[:3, 3] + rays * hits["tfar"][:, None]
            for (_, thing, _), annotation in annotations:
                own = met[seen == thing]
                total += len(own)
                held += inside(annotation, own, margin=0.06, shift=-lag * velocity(database, annotation)).sum()
    assert total > 300
    assert held >= 0.99 * total


@pytest.mark.parametrize("channel", surround_rig.CAMERAS)
def test_images_are_taken_from_where_the_tables_say(database: Database, channel: str) -> None:
    """A picture taken once more, through a camera made from the tables alone, is the same but for its noise."""
    sample = database.tables["sample"][1]
    data = database.key(sample["token"], channel)
    shown = world(database.scene_index(sample["token"]))
    first = database.by_token["sample"][sample["prev"]]["timestamp"]
    scene, caster = shown.drive.at((data["timestamp"] - first) / 1e6)
    to_vehicle, to_global = database.poses(data)
    camera = to_global @ to_vehicle
    matrix = database.by_token["calibrated_sensor"][data["calibrated_sensor_token"]]["camera_intrinsic"]
    rotation = shown.site.rotation.T @ camera[:3, :3]
    position = (camera[:3, 3] - shown.site.offset) @ shown.site.rotation
    kept = np.asarray(Image.open(database.root / data["filename"])).astype(float)

    def difference(pixels_aside: float) -> float:
        projection = np.array(matrix) + [[0, 0, pixels_aside], [0, 0, 0], [0, 0, 0]]
        matrices = {"P2": np.concatenate([projection, np.zeros((3, 1))], 1)}
        rig = sensors.Rig(rotation, position, matrices, TINY.width, TINY.height)
        again = sensors.take_picture(scene, caster, rig, 1, shown.exposure, np.random.default_rng(0))
        return float(np.abs(again - kept).mean())

    assert difference(0.0) < 0.5 * min(difference(-1.0), difference(1.0))


def test_visibility_takes_all_values(database: Database) -> None:
    tokens = {a["visibility_token"] for a in database.tables["sample_annotation"]}
    assert tokens == {"1", "2", "3", "4"}


def test_splits_name_the_scenes(written: Path) -> None:
    assert (written / "splits/train.txt").read_text() == "synth-0000\n"
    assert (written / "splits/val.txt").read_text() == "synth-0001\n"
    custom = json.loads((written / VERSION / "splits.json").read_text())
    assert custom == {"synth_train": ["synth-0000"], "synth_val": ["synth-0001"]}


def test_number_of_workers_changes_nothing(written: Path, tmp_path: Path) -> None:
    assert hashes(write(tmp_path / "set", workers=2)) == hashes(written)


def test_scenes_do_not_depend_on_one_another(written: Path, tmp_path: Path) -> None:
    alone = hashes(write(tmp_path / "set", scenes=None, splits={"val": 1}))
    same = {name: digest for name, digest in hashes(written).items() if "synth-3-0000" in name}
    assert same
    assert {name: digest for name, digest in alone.items() if "synth-3-0000" in name} == same


def test_cut_short_run_is_completed(written: Path, tmp_path: Path) -> None:
    out = write(tmp_path / "set")
    (kept,) = (out / "samples/CAM_BACK").glob("synth-3-0000__*__1577836800490278.png")
    stamp = kept.stat().st_mtime_ns
    next((out / "sweeps/LIDAR_TOP").glob("synth-3-0001__*")).unlink()
    (out / "splits/val.txt").unlink()
    (out / VERSION / "sample.json").unlink()
    (out / "samples/LIDAR_TOP/.distill3d-0-1-0-0.part").write_bytes(b"half")
    write(out)
    assert hashes(out) == hashes(written)
    assert kept.stat().st_mtime_ns == stamp
    (out / VERSION / ".scenes/synth-0000.json").unlink()
    write(out)
    assert hashes(out) == hashes(written)
    assert kept.stat().st_mtime_ns > stamp


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "another seed"),
        ({"config": replace(TINY, lidar_step=2.0)}, "another config"),
        ({"scenes": 3}, "another splits"),
        ({"configs": {"val": replace(TINY, haze=(0.02, 0.02))}}, "another configs"),
        ({"configs": {"test": TINY}}, "configs names the split 'test'; the splits are train, val"),
    ],
)
def test_other_settings_are_refused(written: Path, changes: dict, message: str) -> None:
    before = hashes(written)
    with pytest.raises(UserError, match=message):
        write(written, **changes)
    assert hashes(written) == before


def test_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    foreign = tmp_path / "samples" / "CAM_FRONT"
    foreign.mkdir(parents=True)
    (foreign / "a.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="nothing was written"):
        write(tmp_path)
    assert hashes(tmp_path) == {"samples/CAM_FRONT/a.jpg": hashlib.sha256(b"mine").hexdigest()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cars": (5, 2)}, "cars"),
        ({"width": 0}, "width"),
        ({"width": 64, "height": 40}, "height"),
        ({"lidar_rate": 3.0}, "lidar_rate"),
        ({"camera_rate": 1.0}, "camera_rate"),
        ({"overcast_share": 1.5}, "overcast_share"),
        ({"frames_per_scene": 41}, "room"),
        ({"image_format": "bmp"}, "image_format"),
    ],
)
def test_settings_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_settings(SurroundStreetConfig(**changes))


def test_nothing_runs_into_anything() -> None:
    """Ways are kept apart: at no time do the middles of two things come closer than the narrower one is wide."""
    for index in range(SCENES):
        drive = world(index).drive
        for time in np.linspace(0, TINY.duration, 9):
            things = drive.objects_at(time)
            spots = np.array([t.position[:2] for t in things])
            widths = np.array([t.size[1] for t in things])
            apart = np.hypot(*(spots[:, None] - spots[None]).transpose(2, 0, 1)) + 1e3 * np.eye(len(things))
            assert (apart > np.minimum(widths[:, None], widths[None])).all()


def test_splits_have_settings_of_their_own(written: Path, tmp_path: Path) -> None:
    """A split of its own settings leaves the others' files as they are; and what it alone asks for has its folder."""
    hard = replace(TINY, lidar_beam_strides=(4,), camera_rate=4.0, haze=(0.05, 0.05))
    out = write(tmp_path / "set", configs={"val": hard})
    usual, found = hashes(written), hashes(out)
    own = {name for name in found if "synth-3-0001__" in name}
    files = {name for name in found if name.startswith(("samples", "sweeps"))}
    assert all(found[name] == usual[name] for name in files - own)
    assert {name.split("/")[1] for name in own if name.startswith("sweeps")} == {"LIDAR_TOP", *surround_rig.CAMERAS}
    for name in own:
        if name.endswith(".pcd.bin"):
            assert set(np.fromfile(out / name, np.float32).reshape(-1, 5)[:, 4]) <= set(range(0, 32, 4))
    scenes = json.loads((out / VERSION / "scene.json").read_text())
    assert [", fog" in scene["description"] for scene in scenes] == [False, True]


def test_jpeg_and_camera_sweeps_are_settings(tmp_path: Path) -> None:
    config = replace(TINY, image_format="jpg", camera_rate=4.0, lidar_rate=2.0, frames_per_scene=2)
    out = write(tmp_path / "set", scenes=1, config=config, val_share=0.0)
    assert len(list((out / "samples/CAM_BACK").glob("*.jpg"))) == 2
    assert len(list((out / "sweeps/CAM_BACK").glob("*.jpg"))) == 1
    assert len(list((out / "samples/LIDAR_TOP").iterdir())) == 2
    assert not (out / "sweeps/LIDAR_TOP").exists()
    assert (out / "splits/train.txt").read_text() == "synth-0000\n"
