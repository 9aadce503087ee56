"""Frames of both layouts, from their files and from the generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from distill3d.data.augment.image import frame_generator
from distill3d.data.kitti.dataset import KittiDataset
from distill3d.data.nuscenes.dataset import NuScenesDataset
from distill3d.data.sample import Dataset
from distill3d.synth.nuscenes_writer import write_nuscenes
from distill3d.synth.settings import StreetConfig, SurroundStreetConfig
from distill3d.synth.writer import write_kitti
from distill3d.train.sources import kitti_config, nuscenes_config

from .inputs import SEED, Setting
from .task import Task, Work

DECODING = "decoding its pictures alone"
GENERATED = 4  # frames that are generated to be timed


def loading_tasks(setting: Setting) -> Iterator[Task]:
    """What can be read of a frame, augmented as in training, beside decoding alone; and generated frames."""
    yield from kitti_tasks(setting)
    yield from nuscenes_tasks(setting)
    street, drive = StreetConfig(), SurroundStreetConfig(frames_per_scene=GENERATED)
    for layout, write, config, units in (
        ("KITTI", write_kitti, street, GENERATED),
        ("nuScenes", write_nuscenes, drive, 1),
    ):
        size = f"{config.width} x {config.height} px, all files"
        yield Task(f"generated {layout} frame", size, partial(generate, write, config, units), items=GENERATED,
                   unit="frame")  # fmt: skip


def kitti_tasks(setting: Setting) -> Iterator[Task]:
    recipe, stage = setting.stage(setting.size.detectors["monodle"])
    plain = replace(kitti_config(recipe, stage, "train", train=True), in_memory=False)
    frames = len(KittiDataset(plain))
    pictures = sorted(setting.streets.glob("training/image_2/*.png"))[:frames]
    task = partial(Task, "KITTI frame", picture_size(pictures[0]), items=frames, unit="frame")
    yield task(partial(decode, pictures), DECODING)
    for way, config in {
        "picture and labels": plain,
        "with sparse depth": replace(plain, depth="lidar"),
        "with completed depth, kept on disk": replace(plain, depth="completed"),
        "with scan": replace(plain, points=True),
    }.items():
        yield task(partial(load_all, KittiDataset, config), way, at_least=DECODING)
        yield task(partial(load_all, KittiDataset, replace(config, in_memory=True)), f"{way}, in memory")


def nuscenes_tasks(setting: Setting) -> Iterator[Task]:
    recipe, stage = setting.stage(setting.size.detectors["bevdepth"])
    cameras = nuscenes_config(recipe, stage, "train", train=True)
    samples = len(NuScenesDataset(cameras))
    pictures = sorted(setting.drives.glob("samples/CAM_*/*"))
    per_sample = len({path.parent for path in pictures}) * (1 + len(cameras.past))
    size = f"{per_sample} x {picture_size(pictures[0])}"
    task = partial(Task, "nuScenes sample", size, items=samples, unit="sample")
    yield task(partial(decode, list(islice(cycle(pictures), samples * per_sample))), DECODING)
    yield task(partial(load_all, NuScenesDataset, replace(cameras, in_memory=False)), "pictures and depth",
               at_least=DECODING)  # fmt: skip
    yield task(partial(load_all, NuScenesDataset, replace(cameras, in_memory=True)), "pictures and depth, in memory")
    scans = replace(cameras, images=False, depth=False, points=True, in_memory=False)
    yield task(partial(load_all, NuScenesDataset, scans), "scan and sweeps")


def picture_size(path: Path) -> str:
    with Image.open(path) as picture:
        return f"{picture.width} x {picture.height} px"


def decode(pictures: list[Path]) -> Work:
    def run() -> None:
        for path in pictures:
            with Image.open(path) as picture:
                picture.convert("RGB")

    return Work(run)


def load_all(build: Callable[[Any], Dataset], config: Any) -> Work:
    data = build(config)

    def run() -> None:
        for index in range(len(data)):
            data.get(index, frame_generator(SEED, 0, index))

    return Work(run)


def generate(write: Callable[..., Path], config: Any, units: int) -> Work:
    def run() -> None:
        with TemporaryDirectory() as folder:
            write(Path(folder), seed=SEED, config=config, splits={"train": units}, workers=1, progress=False)

    return Work(run)
