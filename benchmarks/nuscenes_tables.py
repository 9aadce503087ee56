"""Time and memory of nuScenes' tables: json.load of the files, the first load, and a load from the cache.

The set is made up, with the size of v1.0-trainval's training part: 28,130 samples, 2.6 million records
of sensor data with a pose each, 1.2 million annotations.  Each way is measured in a process of its own; json.load keeps
all tables, as whoever works with them so must.  "use" is what a data set then asks: the key data and annotations of
every sample, and all velocities.

    python benchmarks/nuscenes_tables.py [--samples 28130]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, TextIO

SAMPLES = 28130
SAMPLES_PER_SCENE = 40
TRACKS_PER_SCENE = 43  # 1.2 million annotations in all
#: Records of sensor data per sample, by modality; with these cameras, radars and one LiDAR, 92 in all.
RATES = {"camera": 7, "radar": 8, "lidar": 10}
CHANNELS = {
    "CAM_FRONT": "camera", "CAM_FRONT_RIGHT": "camera", "CAM_BACK_RIGHT": "camera", "CAM_BACK": "camera",
    "CAM_BACK_LEFT": "camera", "CAM_FRONT_LEFT": "camera", "LIDAR_TOP": "lidar", "RADAR_FRONT": "radar",
    "RADAR_FRONT_LEFT": "radar", "RADAR_FRONT_RIGHT": "radar", "RADAR_BACK_LEFT": "radar", "RADAR_BACK_RIGHT": "radar",
}  # fmt: skip
ENDINGS = {"camera": "jpg", "radar": "pcd", "lidar": "pcd.bin"}
LOG = "n015-2018-07-24-11-22-45+0800"
START, PERIOD = 1_532_402_927_647_951, 500_000  # us
CATEGORIES, ATTRIBUTES = 23, 8
VERSION = "v1.0-trainval"
WAYS = ("json", "first", "cached")
SEED = 0
RESULTS = Path(__file__).parent / "results" / "nuscenes_tables.json"

Record = dict[str, Any]


class Table:
    """A JSON file of records, written as the official ones are: a key or a number per line."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file: TextIO = (folder / f"{name}.json").open("w")
        self._file.write("[\n")
        self.rows = 0

    def add(self, record: Record) -> None:
        self._file.write((",\n" if self.rows else "") + json.dumps(record, indent=0))
        self.rows += 1

    def close(self) -> None:
        self._file.write("\n]")
        self._file.close()


def write_set(folder: Path, samples: int) -> dict[str, int]:
    """Writes the tables of a version; returns how many records of each."""
    names = ("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor", "category", "attribute",
             "instance", "sample_annotation")  # fmt: skip
    tables = {name: Table(folder, name) for name in names}
    rng = Random(SEED)
    sensors = {channel: new_token(rng) for channel in CHANNELS}
    for channel, token in sensors.items():
        tables["sensor"].add({"token": token, "channel": channel, "modality": CHANNELS[channel]})
    named = {"category": CATEGORIES, "attribute": ATTRIBUTES}
    tokens = {name: [new_token(rng) for _ in range(count)] for name, count in named.items()}
    for name in named:
        for i, token in enumerate(tokens[name]):
            tables[name].add({"token": token, "name": f"{name}.{i}", "description": ""})
    for first in range(0, samples, SAMPLES_PER_SCENE):
        count = min(SAMPLES_PER_SCENE, samples - first)
        scene, keys = new_token(rng), [new_token(rng) for _ in range(count)]
        times = [START + (first + i) * PERIOD for i in range(count)]
        tables["scene"].add({
            "token": scene, "log_token": new_token(rng), "nbr_samples": count, "first_sample_token": keys[0],
            "last_sample_token": keys[-1], "name": f"scene-{tables['scene'].rows:04d}", "description": "made up",
        })  # fmt: skip
        for token, (prev, following), at in zip(keys, neighbours(keys), times, strict=True):
            tables["sample"].add(
                {"token": token, "timestamp": at, "prev": prev, "next": following, "scene_token": scene}
            )
        for channel in CHANNELS:
            write_channel(tables, channel, sensors[channel], keys, times, rng)
        for _ in range(TRACKS_PER_SCENE):
            write_track(tables, keys, rng.choice(tokens["category"]), rng.choice(tokens["attribute"]), rng)
    for table in tables.values():
        table.close()
    return {name: table.rows for name, table in tables.items()}


def write_channel(
    tables: dict[str, Table], channel: str, sensor: str, keys: list[str], times: list[int], rng: Random
) -> None:
    """The data of one sensor in one scene, and the vehicle's pose at each moment."""
    modality = CHANNELS[channel]
    camera, rate, calibration = modality == "camera", RATES[modality], new_token(rng)
    intrinsic = [[1266.417203046554, 0.0, 816.2670197447984], [0.0, 1266.417203046554, 491.50706579294757], [0, 0, 1.0]]
    tables["calibrated_sensor"].add({
        "token": calibration, "sensor_token": sensor, "translation": floats(rng, 3), "rotation": unit(rng),
        "camera_intrinsic": intrinsic if camera else [],
    })  # fmt: skip
    tokens = [new_token(rng) for _ in range(len(keys) * rate)]
    for i, (token, (prev, following)) in enumerate(zip(tokens, neighbours(tokens), strict=True)):
        # Data between two key frames names the later one.
        sample, before = divmod(i, rate)
        key = before == rate - 1
        at = times[sample] - (rate - 1 - before) * PERIOD // rate
        folder = "samples" if key else "sweeps"
        tables["sample_data"].add({
            "token": token, "sample_token": keys[sample], "ego_pose_token": token,
            "calibrated_sensor_token": calibration, "timestamp": at, "fileformat": ENDINGS[modality][:3],
            "is_key_frame": key, "height": 900 if camera else 0, "width": 1600 if camera else 0,
            "filename": f"{folder}/{channel}/{LOG}__{channel}__{at}.{ENDINGS[modality]}", "prev": prev,
            "next": following,
        })  # fmt: skip
        tables["ego_pose"].add(
            {"token": token, "timestamp": at, "rotation": unit(rng), "translation": [*floats(rng, 2), 0.0]}
        )


def write_track(tables: dict[str, Table], keys: list[str], category: str, attribute: str, rng: Random) -> None:
    """One object annotated throughout a scene."""
    instance, tokens = new_token(rng), [new_token(rng) for _ in keys]
    tables["instance"].add({
        "token": instance, "category_token": category, "nbr_annotations": len(tokens),
        "first_annotation_token": tokens[0], "last_annotation_token": tokens[-1],
    })  # fmt: skip
    size = [round(rng.uniform(0.5, 5), 3) for _ in range(3)]
    for token, (prev, following), sample in zip(tokens, neighbours(tokens), keys, strict=True):
        tables["sample_annotation"].add({
            "token": token, "sample_token": sample, "instance_token": instance, "visibility_token": "4",
            "attribute_tokens": [attribute], "translation": [round(v, 3) for v in floats(rng, 3)], "size": size,
            "rotation": unit(rng), "prev": prev, "next": following, "num_lidar_pts": rng.randrange(50),
            "num_radar_pts": rng.randrange(3),
        })  # fmt: skip


def new_token(rng: Random) -> str:
    return f"{rng.getrandbits(128):032x}"


def floats(rng: Random, count: int) -> list[float]:
    return [rng.uniform(0, 2000) for _ in range(count)]


def unit(rng: Random) -> list[float]:
    values = [rng.gauss(0, 1) for _ in range(4)]
    length = sum(v * v for v in values) ** 0.5
    return [v / length for v in values]


def neighbours(tokens: list[str]) -> Iterator[tuple[str, str]]:
    """The token before and after each; empty at the ends."""
    return zip(["", *tokens[:-1]], [*tokens[1:], ""], strict=True)


def measure(way: str, root: Path) -> dict[str, float]:
    """Seconds, processor seconds and peak memory (MB) of one way, in this process."""
    if way == "json":
        with timed() as figures:
            tables = {path.stem: json.loads(path.read_text()) for path in sorted((root / VERSION).glob("*.json"))}
        return figures | {"peak_mb": peak_mb(), "records": sum(map(len, tables.values()))}
    from distill3d.data.nuscenes.tables import load_tables

    with timed() as figures:
        tables = load_tables(root, VERSION)
    figures["peak_mb"] = peak_mb()
    with timed() as used:
        for sample in range(len(tables.samples)):
            tables.key_data(sample)
            tables.annotations_of(sample)
        tables.velocities()
    return figures | {"use_seconds": used["seconds"], "use_peak_mb": peak_mb()}


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    figures: dict[str, float] = {}
    start, start_cpu = time.perf_counter(), time.process_time()
    yield figures
    figures["seconds"] = round(time.perf_counter() - start, 3)
    figures["cpu_seconds"] = round(time.process_time() - start_cpu, 3)


def peak_mb() -> float:
    """Most memory that this process ever held (MB).

    The kernel's own count of this program's pages where there is one: the portable figure also counts the parent's
    before the program began.
    """
    status = Path("/proc/self/status")
    if status.exists():
        held = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(held.split()[1]) / 1024, 1)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return round(kilobytes / 1024, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.root)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / VERSION
        folder.mkdir()
        rows = write_set(folder, options.samples)
        figures: dict[str, Any] = {
            "rows": rows,
            "table_mb": round(sum(path.stat().st_size for path in folder.iterdir()) / 2**20, 1),
        }
        for way in WAYS:
            command = [sys.executable, __file__, "--measure", way, "--root", name]
            figures[way] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            print(way, figures[way], flush=True)
        cached = Path(name) / ".distill3d_cache"
        figures["cache_mb"] = round(sum(p.stat().st_size for p in cached.rglob("*.npy")) / 2**20, 1)
    for way in WAYS[1:]:
        figures[f"{way}_to_json"] = {
            key: round(figures[way][key] / figures["json"][key], 3) for key in ("seconds", "cpu_seconds", "peak_mb")
        }
    # Not at the top of the file: the process that measures json.load must not hold PyTorch.
    from machine import describe_machine

    figures["machine"] = describe_machine()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
