"""A small made-up nuScenes version: two scenes, two sensors, sweeps, three tracks, in an order that is no order."""

import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Records = dict[str, list[dict[str, Any]]]

START = 1_600_000_000_000_000  # us
#: Times (s) of the samples of each scene.
TIMES = ((0.0, 0.5, 1.0), (100.0, 100.5))
SWEEP_LEAD = 0.1  # s, of a sweep before its sample
MODALITIES = {"CAM_FRONT": "camera", "LIDAR_TOP": "lidar"}
SIZE = (32, 16)  # px
ENDINGS = {"camera": "png", "lidar": "pcd.bin"}
QUARTER_TURN = (0.5**0.5, 0.0, 0.0, 0.5**0.5)
CATEGORIES, ATTRIBUTES = ("vehicle.car", "animal"), ("vehicle.moving", "vehicle.parked")


def token(*name: object) -> str:
    return hashlib.md5(repr(name).encode()).hexdigest()


def made_up_tables(times: Sequence[Sequence[float]] = TIMES) -> Records:
    """Records of all tables, by table. In scene s a track ``(s, 0)`` is seen throughout; ``(0, 1)`` once."""
    records: Records = {
        "scene": [], "sample": [], "sample_data": [], "ego_pose": [], "sample_annotation": [], "instance": [],
        "calibrated_sensor": [
            {
                "token": token("calibrated", channel), "sensor_token": token("sensor", channel),
                "translation": [1.5, 0.25 * i, 1.75], "rotation": [1, 0, 0, 0],
                "camera_intrinsic": [[30.0, 0, 16.5], [0, 31.0, 8.5], [0, 0, 1]] if modality == "camera" else [],
            }
            for i, (channel, modality) in enumerate(MODALITIES.items())
        ],
        "sensor": [{"token": token("sensor", c), "channel": c, "modality": m} for c, m in MODALITIES.items()],
        "category": [{"token": token(name), "name": name, "description": "},{"} for name in CATEGORIES],
        "attribute": [{"token": token(name), "name": name, "description": ""} for name in ATTRIBUTES],
    }  # fmt: skip
    for scene, of_scene in enumerate(times):
        count = len(of_scene)
        records["scene"].append({
            "token": token("scene", scene), "name": f"scene-{scene:04d}", "first_sample_token": token(scene, 0),
            "last_sample_token": token(scene, count - 1), "nbr_samples": count,
            "description": 'a "quoted" }, {"token": 1}, [',
        })  # fmt: skip
        for i, time in enumerate(of_scene):
            records["sample"].append({
                "token": token(scene, i), "timestamp": microseconds(time), "scene_token": token("scene", scene),
                **neighbours(i, count, scene),
            })  # fmt: skip
            for channel in MODALITIES:
                records["sample_data"] += [sensor_data(scene, i, time, count, channel, key) for key in (False, True)]
        records["instance"].append({"token": token("track", scene, 0), "category_token": token(CATEGORIES[0])})
        records["sample_annotation"] += [
            annotation(scene, 0, i, (scene + 2.0 * time, i**2, 1.0), neighbours(i, count, "track", scene, 0))
            for i, time in enumerate(of_scene)
        ]
    records["instance"].append({"token": token("track", 0, 1), "category_token": token(CATEGORIES[1])})
    records["sample_annotation"].append(
        annotation(0, 1, min(1, len(times[0]) - 1), (5.0, 5.0, 1.0), {"prev": "", "next": ""})
    )
    records["sample_annotation"][-1]["attribute_tokens"] = []
    records["ego_pose"] = [
        {
            "token": d["ego_pose_token"], "timestamp": d["timestamp"], "rotation": list(QUARTER_TURN),
            "translation": [(d["timestamp"] - START) / 1e6, 20.0, 0.0],
        }
        for d in records["sample_data"]
    ]  # fmt: skip
    for name in ("sample", "sample_data", "ego_pose", "sample_annotation"):
        records[name].sort(key=lambda r: r["token"])  # tokens are hashes: as good as shuffled
    return records


def microseconds(time: float) -> int:
    return START + round(time * 1e6)


def neighbours(i: int, count: int, *name: object) -> dict[str, str]:
    """Tokens of the records before and after the i-th of a chain."""
    return {"prev": token(*name, i - 1) if i > 0 else "", "next": token(*name, i + 1) if i + 1 < count else ""}


def sensor_data(scene: int, i: int, time: float, count: int, channel: str, key: bool) -> dict[str, Any]:
    modality = MODALITIES[channel]
    chain = ("data", scene, channel)
    at = microseconds(time if key else time - SWEEP_LEAD)
    width, height = SIZE if modality == "camera" else (0, 0)
    return {
        "token": token(*chain, 2 * i + key), "sample_token": token(scene, i),
        "ego_pose_token": token("pose", *chain, 2 * i + key), "calibrated_sensor_token": token("calibrated", channel),
        "filename": f"{'samples' if key else 'sweeps'}/{channel}/{scene}_{i}__{at}.{ENDINGS[modality]}",
        "timestamp": at, "is_key_frame": key, "width": width, "height": height, "fileformat": ENDINGS[modality][:3],
        **neighbours(2 * i + key, 2 * count, *chain),
    }  # fmt: skip


def annotation(
    scene: int, track: int, i: int, translation: tuple[float, float, float], links: dict[str, str]
) -> dict[str, Any]:
    return {
        "token": token("track", scene, track, i), "sample_token": token(scene, i),
        "instance_token": token("track", scene, track), "attribute_tokens": [token(ATTRIBUTES[i % 2])],
        "translation": list(translation), "size": [1.8, 4.5, 1.5], "rotation": [1.0, 0.0, 0.0, 0.0],
        "num_lidar_pts": 10 * i + track, "num_radar_pts": 1, "visibility_token": "", **links,
    }  # fmt: skip


def write_tables(folder: Path, records: Records, packed: bool = False) -> Path:
    """Writes the tables, a key per line as the official files are, into ``folder``; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in records.items():
        text = json.dumps(rows, indent=0).encode()
        path = folder / f"{name}.json{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(text) if packed else text)
    return folder
