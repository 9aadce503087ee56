"""The generated data: streets and drives that are hard on purpose, and which frames each seed learns from.

Training, validation and test frames are drawn from one range of light, haze, pitch and LiDAR; a part of the test frames
also shows car bodies that no training frame holds, in thicker air.  Seeds learn from frames of their own, so that the
spread over seeds is that of weights *and* training data; all are judged on the same test frames.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from distill3d.recipes.demo import STREETS as EASY_STREETS
from distill3d.synth.folder import RECORD, content_hash
from distill3d.synth.nuscenes_writer import write_nuscenes
from distill3d.synth.settings import CAR_BODIES, StreetConfig, SurroundStreetConfig
from distill3d.synth.writer import write_kitti

from .sizes import FEW, MANY, Size

#: The seed of the generator; that of a training is another thing.
GENERATOR_SEED = 2026
#: Bodies that only test frames show.
UNSEEN_BODIES = ("suv", "city car", "pickup")
SEEN_BODIES = tuple(body for body in CAR_BODIES if body not in UNSEEN_BODIES)
#: Low sun, mist, dim and noisy pictures.
SIGHT = {"overcast_share": 0.35, "sun_elevation": (8.0, 62.0), "haze": (0.0, 0.006), "exposure": (0.03, 0.17),
         "noise": (1.0, 7.0)}  # fmt: skip
#: A LiDAR with few beams and returns: with 16 of 64 beams and more, depth images at this size are nearly perfect.
SPARSE = {"lidar_keep": (0.2, 0.6), "lidar_dropout": 0.15, "lidar_range_sigma": 0.04}
#: Thicker mist than in training, and bodies that training lacks.
HARSH = {"haze": (0.01, 0.03), "car_bodies": UNSEEN_BODIES}

STREETS = replace(
    EASY_STREETS, pedestrians=(0, 3), cyclists=(0, 3), pitch_sigma=0.8, car_bodies=SEEN_BODIES,
    lidar_beam_strides=(4, 8), **SIGHT, **SPARSE,
)  # fmt: skip
DRIVES = SurroundStreetConfig(car_bodies=SEEN_BODIES, lidar_beam_strides=(1, 2), **SIGHT)

#: From which data a group's frames are, of one camera and of six.
KINDS = {False: "streets", True: "drives"}
#: Splits of either layout; "test" is both of these together.
FAMILIAR, UNFAMILIAR = "test_familiar", "test_unfamiliar"


def harsh(config: StreetConfig | SurroundStreetConfig) -> StreetConfig | SurroundStreetConfig:
    """The same streets with bodies that were never seen, in harsher conditions."""
    return replace(config, **HARSH)


def write_worlds(size: Size, out: Path) -> dict[str, dict[str, object]]:
    """Writes what is missing of both data sets; how each was made, and its hash, by layout.

    The hash is that of the files, which another processor rounds otherwise; that of the settings and the generator's
    source says that they are the same.
    """
    pool = {"pool": size.pool, "val": size.val_frames}
    streets = {**pool, FAMILIAR: size.test_frames, UNFAMILIAR: size.test_frames}
    folder = streets_folder(out)
    write_kitti(folder, seed=GENERATOR_SEED, config=STREETS, splits=streets, configs={UNFAMILIAR: harsh(STREETS)})
    _write_slices(folder / "ImageSets", kitti_slices(size) | unlabelled_slices(size))
    _write_unions(folder / "ImageSets", size)
    scenes = {"pool": size.seeds * size.drives, FAMILIAR: size.test_drives, UNFAMILIAR: size.test_drives}
    drives = replace(DRIVES, frames_per_scene=size.drive_frames)
    folder = drives_folder(out)
    write_nuscenes(folder, seed=GENERATOR_SEED, config=drives, splits=scenes, configs={UNFAMILIAR: harsh(drives)})
    _write_slices(
        folder / "splits", {drive_split(seed): (seed * size.drives, size.drives) for seed in range(size.seeds)}
    )
    return {
        kind: {"splits": splits, "settings": hash_of(folder / RECORD), "hash": content_hash(folder)}
        for kind, splits, folder in (("streets", streets, streets_folder(out)), ("drives", scenes, drives_folder(out)))
    }


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def streets_folder(out: Path) -> Path:
    return out / "streets"


def drives_folder(out: Path) -> Path:
    return out / "drives"


def train_split(frames: int, seed: int) -> str:
    """The name of a seed's training split on streets."""
    return f"train_{frames}_{seed}"


def unlabelled_split(seed: int) -> str:
    """The name of a seed's split of streets whose labels are not looked at."""
    return f"unlabelled_{seed}"


def all_split(seed: int) -> str:
    """The name of the split that holds a seed's ``FEW`` frames and its unlabelled ones."""
    return f"all_{seed}"


def unlabelled_slices(size: Size) -> dict[str, tuple[int, int]]:
    """The splits without labels: behind every seed's labelled frames; those of several seeds overlap.  None where the
    pool is too small."""
    if not size.has_many:
        return {}
    first = size.seeds * FEW
    apart = (size.pool - first - MANY) // max(1, size.seeds - 1)
    return {unlabelled_split(seed): (first + seed * apart, MANY) for seed in range(size.seeds)}


def drive_split(seed: int) -> str:
    """The name of a seed's training split of drives."""
    return f"train_{seed}"


def kitti_slices(size: Size) -> dict[str, tuple[int, int]]:
    """Every training split of streets: its first place in the pool and its length.

    Seeds do not share a frame as long as the pool holds enough for all of them.
    """
    counts = {size.frames, size.bev_frames, *size.sweep, *([FEW] if size.has_many else [])}
    return {
        train_split(count, seed): (min(seed * count, size.pool - count), count)
        for count in sorted(counts) for seed in range(size.seeds + size.search_seeds)
    }  # fmt: skip


def _write_slices(folder: Path, slices: dict[str, tuple[int, int]]) -> None:
    """Training splits as slices of the pool, and "test" as both halves together."""

    def lines(name: str) -> list[str]:
        return (folder / f"{name}.txt").read_text().split()

    names = {name: lines("pool")[first : first + count] for name, (first, count) in slices.items()}
    names["test"] = lines(FAMILIAR) + lines(UNFAMILIAR)
    for name, entries in names.items():
        (folder / f"{name}.txt").write_text("".join(f"{entry}\n" for entry in entries))


def _write_unions(folder: Path, size: Size) -> None:
    """The splits with a seed's few labelled frames and its unlabelled ones together."""
    for seed in range(size.seeds if size.has_many else 0):
        parts = (train_split(FEW, seed), unlabelled_split(seed))
        text = "".join((folder / f"{name}.txt").read_text() for name in parts)
        (folder / f"{all_split(seed)}.txt").write_text(text)
