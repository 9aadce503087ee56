"""What is measured with: the recipes' own detectors and batches, on generated streets and drives of the real size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import torch

from distill3d.data.collate import batches
from distill3d.data.sample import Batch
from distill3d.data.surround import SurroundBatch
from distill3d.detectors import DetectorConfig, build_detector
from distill3d.detectors.base import POINT_INPUTS, Detector
from distill3d.recipes import get_recipe
from distill3d.synth.nuscenes_records import VERSION
from distill3d.synth.nuscenes_writer import write_nuscenes
from distill3d.synth.settings import NUSCENES_HEIGHT, NUSCENES_WIDTH, StreetConfig, SurroundStreetConfig
from distill3d.synth.writer import write_kitti
from distill3d.train.precision import Precision
from distill3d.train.recipe import Recipe, StageConfig, SurroundDatasetConfig
from distill3d.train.sources import source_of

from .task import PrecisionName

#: A stage of a recipe, by their names.
Place = tuple[str, str]
BATCH_SIZE, SEED = 2, 0
#: Methods on surround views whose recipe has their name.
FAMILY = ("distillbev", "unidistill", "tig_bev", "bevdistill", "simdistill", "uvtr_kd", "x3kd", "vcd")


@dataclass(frozen=True)
class Size:
    """Which recipe's stage stands for each detector and each method, and the pictures' and scans' size."""

    detectors: dict[str, Place]
    methods: dict[str, Place]
    streets: StreetConfig
    drives: SurroundStreetConfig
    frames: int  # of the streets


#: KITTI's and nuScenes' pictures and scans; rays between pixels change no time but the generator's.
PAPER = Size(
    detectors={
        "monodle": ("monodle", "baseline"),
        "gupnet": ("gupnet", "baseline"),
        "did_m3d": ("did_m3d", "baseline"),
        "monodetr": ("monodetr", "baseline"),
        "monocon": ("monocon", "baseline"),
        "caddn": ("caddn", "baseline"),
        "bevdepth": ("bevdepth", "baseline"),
        "bevdet": ("distillbev", "baseline"),
        "bevformer": ("bevformer", "baseline"),
        "bevfusion": ("unidistill_fusion", "teacher"),
        "second": ("second", "teacher"),
        "pointpillars": ("pointpillars", "teacher"),
        "centerpoint": ("centerpoint_voxels", "teacher"),
        "label_encoder": ("labeldistill", "label_encoder"),
    },
    methods={
        "monodistill": ("monodistill_monodle", "student"),
        "monoskd": ("monoskd_monodle", "student"),
        "monostl": ("monostl_monodle", "student"),
        "cmkd": ("cmkd_second", "cmkd"),
        "monotakd": ("monotakd", "student"),
        "sgm3d": ("sgm3d", "student"),
        "add_style": ("add_style_monodle", "student"),
        "labeldistill": ("labeldistill_2key", "student"),
        **{name: (name, "student") for name in FAMILY},
    },
    streets=StreetConfig(width=1242, height=375, rays_per_pixel_side=1),
    drives=SurroundStreetConfig(
        width=NUSCENES_WIDTH, height=NUSCENES_HEIGHT, rays_per_pixel_side=1, frames_per_scene=3, lidar_rate=20.0,
        lidar_step=0.33,
    ),
    frames=8,
)  # fmt: skip
SMOKE = Size(
    detectors={
        **{name: (f"tiny_{name}", "baseline") for name in ("monodle", "gupnet", "did_m3d", "monodetr", "monocon")},
        "caddn": ("tiny_bev", "baseline"),
        "bevdepth": ("tiny_labeldistill", "baseline"),
        "bevdet": ("tiny_bevdet", "baseline"),
        "bevformer": ("tiny_bevformer", "baseline"),
        "bevfusion": ("tiny_surround_family", "fusion"),
        "second": ("tiny_lidar", "second"),
        "pointpillars": ("tiny_lidar", "pointpillars"),
        "centerpoint": ("tiny_labeldistill", "teacher"),
        "label_encoder": ("tiny_labeldistill", "label_encoder"),
    },
    methods={
        **{name: ("tiny_monodle", name) for name in ("monodistill", "monoskd", "monostl")},
        **{name: ("tiny_bev", name) for name in ("cmkd", "monotakd")},
        "sgm3d": ("tiny_sgm3d", "sgm3d"),
        "add_style": ("tiny_add_style", "add_style"),
        "labeldistill": ("tiny_labeldistill", "labeldistill"),
        **{name: ("tiny_surround_family", name) for name in FAMILY},
    },
    streets=StreetConfig(rays_per_pixel_side=1),
    drives=SurroundStreetConfig(rays_per_pixel_side=1, frames_per_scene=3, lidar_rate=4.0),
    frames=3,
)


class Setting:
    """How all tasks run, and recipes with data in a folder, where it is generated when it is first asked for."""

    def __init__(self, size: Size, folder: Path, device: torch.device, threads: int, backend: str) -> None:
        self.size, self.folder, self.device, self.threads = size, folder, device, threads
        self.backend = backend  # of ``torch.compile``; "aot_eager" finds the graphs and generates no code for them
        self.training_batch = cache(self._training_batch)

    def autocast(self, precision: PrecisionName) -> torch.autocast:
        return Precision(precision).autocast(self.device)

    @cached_property
    def streets(self) -> Path:
        splits = {"train": self.size.frames, "val": 1}
        return write_kitti(
            self.folder / "streets", seed=SEED, config=self.size.streets, splits=splits, workers=1, progress=False
        )

    @cached_property
    def drives(self) -> Path:
        splits = {"train": 1, "val": 1}
        return write_nuscenes(
            self.folder / "drives", seed=SEED, config=self.size.drives, splits=splits, workers=1, progress=False
        )

    def recipe(self, name: str) -> Recipe:
        """A recipe on the generated data; all weights are random, for nothing is downloaded."""
        recipe = get_recipe(name)
        stages = tuple(replace(s, detector=untrained(s.detector), class_balanced=False) for s in recipe.stages)
        if isinstance(recipe.dataset, SurroundDatasetConfig):
            return replace(recipe, stages=stages, dataset=replace(recipe.dataset, root=self.drives, version=VERSION))
        return replace(recipe, stages=stages, dataset=replace(recipe.dataset, root=self.streets))

    def stage(self, place: Place) -> tuple[Recipe, StageConfig]:
        recipe = self.recipe(place[0])
        return recipe, recipe.stage(place[1])

    def _training_batch(self, place: Place) -> Batch | SurroundBatch:
        """Two frames as a stage learns from them."""
        recipe, stage = self.stage(place)
        data = source_of(recipe).training(stage)
        return next(batches(data, list(range(BATCH_SIZE)), BATCH_SIZE, SEED, 0)).to(self.device)

    def single(self, place: Place) -> Batch | SurroundBatch:
        """One moment as a stage's detector sees it at test time."""
        recipe, stage = self.stage(place)
        data = source_of(recipe).evaluation(stage, recipe.dataset.train_split)
        return next(batches(data, [0], 1, None, 0)).to(self.device)

    def detector(self, place: Place, memory_format: torch.memory_format = torch.channels_last) -> Detector:
        """A stage's detector with random weights, by default in memory as in training."""
        torch.manual_seed(SEED)
        detector = build_detector(self.stage(place)[1].detector)
        return detector.to(self.device, memory_format=memory_format)  # pyright: ignore[reportCallIssue]


def untrained(config: DetectorConfig) -> DetectorConfig:
    """The settings with a trunk that starts at random: nothing is downloaded."""
    trunk = getattr(config, "trunk", None)
    return replace(config, trunk=replace(trunk, pretrained=False)) if hasattr(trunk, "pretrained") else config  # pyright: ignore


def described(setting: Setting, place: Place, batch: Batch | SurroundBatch | None = None) -> str:
    """How large the input of a stage's detector is, by default in training."""
    batch = batch or setting.training_batch(place)
    looks_at, scans = setting.stage(place)[1].detector.input, ""
    if looks_at in POINT_INPUTS:
        assert batch.points is not None
        scans = f"{len(batch)} scans, {sum(map(len, batch.points)):,} points"
    if looks_at == "points":
        return scans
    if looks_at == "labels":
        assert batch.objects is not None
        return f"{len(batch)} moments, {int(batch.objects.present.sum())} boxes"
    pictures = batch.images if isinstance(batch, SurroundBatch) else batch.image
    assert pictures is not None
    *counts, _, height, width = pictures.shape
    return f"{' x '.join(map(str, counts))} pictures, {width} x {height} px{scans and f', {scans}'}"
