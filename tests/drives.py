"""A few synthetic drives with six cameras and a recipe that trains on them within seconds, for end-to-end tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from distill3d.camera import DepthBins
from distill3d.data.collate import batches
from distill3d.data.nuscenes.dataset import SweepConfig
from distill3d.data.surround import SurroundBatch
from distill3d.detectors import DetectorConfig
from distill3d.detectors.base import Detector
from distill3d.detectors.bevdepth import BEVDepthConfig
from distill3d.detectors.bevdet import BEVDetConfig
from distill3d.detectors.bevformer import BEVFormerConfig
from distill3d.detectors.bevfusion import BEVFusionConfig
from distill3d.detectors.centerpoint import CenterPointConfig, PillarEncoderConfig
from distill3d.detectors.label_encoder import LabelEncoderConfig
from distill3d.layers.ground.bev_second import SECONDBlocksConfig, SECONDFPNConfig
from distill3d.layers.heads.centre_head import CentreHeadConfig, tiny_head
from distill3d.layers.image.resnet import ResNetConfig
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.recipes import get_recipe
from distill3d.synth.nuscenes_writer import write_nuscenes
from distill3d.synth.settings import SurroundStreetConfig
from distill3d.train.checkpoint import load_detector
from distill3d.train.recipe import Recipe
from distill3d.train.sources import source_of

CANVAS = (64, 32)
KEY_FRAMES = 4
#: The ground of the smallest detectors: 16 x 16 cells of 1.6 m.
REACH, CELL = 12.8, 1.6
LOW, HIGH = -5.0, 3.0
NECK = SECONDFPNConfig(channels=(8, 8))
#: The smallest parts that look at points, and at pictures.
LIDAR: dict[str, Any] = {
    "pillars": PillarEncoderConfig(
        VoxelGrid((-REACH, -REACH, LOW, REACH, REACH, HIGH), (0.8, 0.8, HIGH - LOW)), max_points=4, features=8,
        channels=(8,),
    ),
    "backbone": SECONDBlocksConfig(layers=(1, 1), channels=(8, 8)), "neck": NECK,
}  # fmt: skip
LIFT: dict[str, Any] = {
    "trunk": ResNetConfig("basic", (1, 1, 1, 1), (8, 8, 8, 8), finest=4), "neck_channels": 8,
    "bins": DepthBins(2.0, 26.0, 12, "UD"), "depth_channels": 8, "context_channels": 8,
    "grid": VoxelGrid((-REACH, -REACH, LOW, REACH, REACH, HIGH), (CELL, CELL, HIGH - LOW)),
}  # fmt: skip


def write_drives(folder: Path, seed: int = 0) -> Path:
    """A nuScenes-layout folder of two short drives, one to train on and one to evaluate on."""
    config = SurroundStreetConfig(
        width=CANVAS[0], height=CANVAS[1], rays_per_pixel_side=1, frames_per_scene=KEY_FRAMES, lidar_rate=4.0,
        lidar_step=3.0, cars=(8, 8), reach=15.0,
    )  # fmt: skip
    return write_nuscenes(folder, seed=seed, config=config, splits={"train": 1, "val": 1}, workers=1, progress=False)


def small_head(head: CentreHeadConfig) -> CentreHeadConfig:
    changed = tiny_head(extent=(-REACH, -REACH, REACH, REACH), cell=CELL, shared_channels=8, branch_channels=8)
    return replace(changed, code_weights=head.code_weights)


def small_surround_detector(config: DetectorConfig) -> DetectorConfig:
    """The same detector, as small as it can be."""
    if isinstance(config, CenterPointConfig):
        return replace(config, **LIDAR, head=small_head(config.head))
    if isinstance(config, BEVFusionConfig):
        return replace(config, **LIFT, **LIDAR, fused_channels=8, head=small_head(config.head))
    if isinstance(config, LabelEncoderConfig):
        return replace(config, hidden=8, channels=(8, 8), neck=NECK, head=small_head(config.head))
    if isinstance(config, BEVDetConfig):
        return replace(
            config, trunk=ResNetConfig("basic", (1, 1, 1, 1), (8, 8, 8, 8)), neck_channels=8, depth_channels=8,
            bins=DepthBins(1.0, 25.0, 12, "UD"), context_channels=8, bev_channels=(8, 8, 8), bev_neck_channels=8,
            grid=VoxelGrid((-REACH, -REACH, LOW, REACH, REACH, HIGH), (CELL, CELL, HIGH - LOW)),
            head=small_head(config.head),
        )  # fmt: skip
    if isinstance(config, BEVFormerConfig):
        grid = VoxelGrid((-REACH, -REACH, LOW, REACH, REACH, HIGH), (2 * CELL, 2 * CELL, HIGH - LOW))
        trunk = ResNetConfig("basic", (1, 1, 1, 1), (8, 8, 8, 8))
        return replace(config, trunk=trunk, channels=8, feed_forward=16, attention_heads=2, queries=12, grid=grid)
    assert isinstance(config, BEVDepthConfig)
    simulated = config.simulated and replace(config.simulated, points=2, fused_channels=8)
    return replace(
        config, **LIFT, simulated=simulated, bev_base=8, bev_channels=config.bev_channels and 8, bev_neck_channels=8,
        head=small_head(config.head),
    )  # fmt: skip


def small_surround_preset(name: str, root: Path) -> Recipe:
    """A preset for synthetic drives with still smaller nets and one epoch, in float32."""
    recipe = get_recipe(name)
    stages = tuple(
        replace(
            stage, detector=small_surround_detector(stage.detector),
            schedule=replace(stage.schedule, epochs=1, batch_size=2),
        )
        for stage in recipe.stages
    )  # fmt: skip
    dataset = replace(recipe.dataset, root=root, canvas=CANVAS, sweeps=SweepConfig(past=1, future=0, scans=2))
    return replace(recipe, stages=stages, dataset=dataset, precision="fp32")


def work_of(recipe: Recipe, folder: Path, name: str) -> int:
    """Operations of a trained stage's network for one frame of the evaluation."""
    detector = load_detector(folder / name)[0].requires_grad_(False)  # the counter asks where gradients come from
    data = source_of(recipe).evaluation(recipe.stage(name), recipe.dataset.eval_split)
    (batch,) = batches(data, [0], 1, None, 0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        detector(batch)
    return counter.get_total_flops()


def assert_learns(
    model: Detector, batch: SurroundBatch, bf16: bool, expected: set[str], frozen: tuple[str, ...] = ("-",)
) -> dict[str, Tensor]:
    """The ``expected`` losses of a batch, which are finite and teach every parameter but those that begin so; the taps
    have the widths that the detector tells, and each moment has its boxes in the key ego frame."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        targets = model.encode(batch)
        outputs = model.forward_at(batch, targets)
        losses = model.loss(outputs, batch, targets)
    assert {p.dtype for p in (*outputs.predictions.values(), *losses.values())} == {torch.float32}
    assert set(losses) == expected
    assert all(v.isfinite() for v in losses.values()), losses
    torch.stack([*losses.values()]).sum().backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert without == {n for n, _ in model.named_parameters() if n.startswith(frozen)}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert {t: f.tensor.shape[1] for t, f in outputs.features.items()} == model.tap_channels
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = model.decode(model(batch), batch)
    assert len(found) == len(batch) and {b.frame for b in found} == {"ego"}
    return losses
