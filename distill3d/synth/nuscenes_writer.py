"""Write synthetic streets as a nuScenes folder: in parallel, reproducibly, and so that a killed run can go on.

Source of the layout: nutonomy/nuscenes-devkit docs/schema_nuscenes.md. The official devkit reads the folder as version
v1.0-synth; its evaluation finds the splits, as synth_train and so on, in v1.0-synth/splits.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from PIL import Image

from ..errors import UserError
from ..files import write_atomically, write_text
from ..instances import FOLDER
from ..settings import check_settings
from . import folder
from .folder import available_cores
from .nuscenes_records import TABLES, VERSION, Record, terms, token
from .nuscenes_scene import is_complete, readings, record_path, scene_name, write_scene
from .settings import SurroundStreetConfig
from .surround_rig import LIDAR, modalities

LAYOUT = "nuscenes 1"
MAP_SIDE = 64  # px of the black image that stands for the map, which the devkit asks for


def write_nuscenes(
    out: Path,
    *,
    scenes: int | None = None,
    seed: int,
    config: SurroundStreetConfig | None = None,
    val_share: float = 1 / 3,
    splits: Mapping[str, int] | None = None,
    configs: Mapping[str, SurroundStreetConfig] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a nuScenes folder of synthetic streets, version v1.0-synth, and return its path.

    scenes: number of scenes, the first round(scenes * (1 - val_share)) of them for training, the rest for validation;
    or splits: scenes per split in order, e.g. {"train": 20, "val": 10}; splits/<name>.txt lists the scenes' names.
    configs: settings of splits that differ from config, e.g. {"val": SurroundStreetConfig(haze=(0.0, 0.02))}. workers:
    processes, None for one per available core; 1 works in this process. Scene i of a seed does not depend on workers or
    on the other scenes. A call that was cut short is completed by the same call; complete scenes are kept.

    Raises UserError if a setting lies outside its range, if the folder holds streets of other settings, of another
    generator, or other data, and where configs names a split that there is not or has other cameras than config.
    """
    out, config = Path(out), config or SurroundStreetConfig()
    check_settings(folder.Writing(seed, workers))
    for name, settings in {"": config, **(configs or {})}.items():
        check_settings(settings, name)
    sizes = folder.split_sizes(scenes, val_share, splits, writer="write_nuscenes", unit="scenes")
    _refuse_other_cameras(config, configs or {})
    by_scene = folder.settings_in_order(config, configs, sizes, writer="write_nuscenes")
    own = {name: asdict(configs[name]) for name in sizes if configs and name in configs}
    record = {"layout": LAYOUT, "seed": seed, "splits": sizes, "config": asdict(config), "configs": own}
    with folder.claimed(out, record, ("samples", "sweeps", FOLDER, VERSION)):
        taken = {reading for settings in by_scene for reading in readings(settings)}
        rooms = {out / ("samples" if r.is_key_frame else "sweeps") / r.channel for r in taken}
        masks = {out / FOLDER / r.channel for r in taken if r.is_key_frame and r.channel != LIDAR}
        for room in (*rooms, *masks, record_path(out, 0).parent, out / "maps", out / "splits"):
            room.mkdir(parents=True, exist_ok=True)
        total = sum(sizes.values())
        missing = [index for index in range(total) if not is_complete(out, index)]
        folder.make_all(
            partial(_make, out, seed, by_scene), missing, total=total, chunk=1, workers=workers or available_cores(),
            unit="scenes", progress=progress,
        )  # fmt: skip
        _write_tables(out, total, modalities(config))
        # Written last: a folder with splits is complete.
        names = {name: [scene_name(i) for i in indices] for name, indices in folder.split_ranges(sizes).items()}
        custom = {f"synth_{name}": scenes for name, scenes in names.items()}
        write_text(out / VERSION / "splits.json", json.dumps(custom, indent=0) + "\n")
        for name, scene_names in names.items():
            write_text(out / "splits" / f"{name}.txt", "".join(f"{scene}\n" for scene in scene_names))
    return out


def _make(out: Path, seed: int, configs: Sequence[SurroundStreetConfig], indices: list[int]) -> int:
    for index in indices:
        write_scene(out, seed, index, configs[index])
    return len(indices)


def _refuse_other_cameras(config: SurroundStreetConfig, configs: Mapping[str, SurroundStreetConfig]) -> None:
    """A folder is of one rig."""
    for name, other in configs.items():
        if other.cameras != config.cameras:
            raise UserError(
                f"cameras of split {name!r} are {', '.join(other.cameras)}, of the others {', '.join(config.cameras)}: "
                "a folder has one rig"
            )


def _write_tables(out: Path, scenes: int, sensors: Mapping[str, str]) -> None:
    """Join the scenes' records into the official tables."""
    tables: dict[str, list[Record]] = {name: [] for name in TABLES} | terms(sensors)
    for index in range(scenes):
        for name, records in json.loads(record_path(out, index).read_text(encoding="utf-8")).items():
            tables[name] += records
    map_token = token("map")
    filename = f"maps/{map_token}.png"
    write_atomically(out / filename, lambda part: Image.new("L", (MAP_SIDE, MAP_SIDE)).save(part, format="PNG"))
    tables["map"] = [
        {
            "category": "semantic_prior",
            "token": map_token,
            "filename": filename,
            "log_tokens": [log["token"] for log in tables["log"]],
        }
    ]
    for name, records in tables.items():
        write_text(out / VERSION / f"{name}.json", json.dumps(records, indent=0) + "\n")
