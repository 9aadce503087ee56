"""nuScenes' tables: what a record of each holds, and the terms that all sets share.

Source: nutonomy/nuscenes-devkit docs/schema_nuscenes.md. Tokens are MD5 sums of readable names: the same seed gives the
same tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

VERSION = "v1.0-synth"
TABLES = (
    "category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log", "scene",
    "sample", "sample_data", "sample_annotation", "map",
)  # fmt: skip

CATEGORIES = (
    "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.wheelchair", "human.pedestrian.stroller",
    "human.pedestrian.personal_mobility", "human.pedestrian.police_officer", "human.pedestrian.construction_worker",
    "animal", "vehicle.car", "vehicle.motorcycle", "vehicle.bicycle", "vehicle.bus.bendy", "vehicle.bus.rigid",
    "vehicle.truck", "vehicle.construction", "vehicle.emergency.ambulance", "vehicle.emergency.police",
    "vehicle.trailer", "movable_object.barrier", "movable_object.trafficcone", "movable_object.pushable_pullable",
    "movable_object.debris", "static_object.bicycle_rack",
)  # fmt: skip
ATTRIBUTES = (
    "vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider",
    "pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving",
)  # fmt: skip
VISIBILITIES = {"1": "v0-40", "2": "v40-60", "3": "v60-80", "4": "v80-100"}
VISIBLE_STEPS = (0.4, 0.6, 0.8)  # visible share above which the token is 2, 3, 4

#: Category of each kind of thing in the streets. Panel vans are made to haul cargo, hence trucks.
CATEGORY_OF_KIND = {
    "Car": "vehicle.car",
    "Van": "vehicle.truck",
    "Pedestrian": "human.pedestrian.adult",
    "Cyclist": "vehicle.bicycle",
}

#: Their numbers in masks, see ``instances.py``: 1 + the place among nuScenes' ten classes.
CLASS_NUMBER = {"Car": 1, "Van": 2, "Pedestrian": 9, "Cyclist": 8}

Record = dict[str, object]


def token(*names: object) -> str:
    """32 hexadecimal digits that stand for a readable name."""
    return hashlib.md5("/".join(map(str, names)).encode(), usedforsecurity=False).hexdigest()


def terms(modalities: Mapping[str, str]) -> dict[str, list[Record]]:
    """The tables that are the same for all sets with these sensors: modality ("camera", "lidar") by channel."""
    return {
        "category": [{"token": token("category", n), "name": n, "description": ""} for n in CATEGORIES],
        "attribute": [{"token": token("attribute", n), "name": n, "description": ""} for n in ATTRIBUTES],
        "visibility": [{"token": t, "level": level, "description": ""} for t, level in VISIBILITIES.items()],
        "sensor": [{"token": token("sensor", c), "channel": c, "modality": m} for c, m in modalities.items()],
    }


def attribute_of(kind: str, doing: str, speed: float) -> str:
    """The attribute of a thing: its kind, what it is doing where it is (Place.kind), and its speed, m/s."""
    if kind == "Cyclist":
        return "cycle.with_rider"
    if kind == "Pedestrian":
        return "pedestrian.moving" if speed > 0 else "pedestrian.standing"
    if speed > 0:
        return "vehicle.moving"
    return "vehicle.stopped" if doing == "driving" else "vehicle.parked"


def visibility_of(share: float) -> str:
    """The token of a visible share 0..1."""
    return str(1 + sum(share > step for step in VISIBLE_STEPS))


def link(records: list[Record]) -> None:
    """Fill prev and next of records that follow one another."""
    for k, record in enumerate(records):
        record["prev"] = records[k - 1]["token"] if k > 0 else ""
        record["next"] = records[k + 1]["token"] if k + 1 < len(records) else ""
