"""A few synthetic frames and a recipe that trains on them within seconds, for end-to-end tests."""

from dataclasses import replace
from pathlib import Path

from distill3d.camera import DepthBins
from distill3d.detectors.caddn import CaDDNConfig, DepthTrunkConfig
from distill3d.detectors.pointpillars import PointPillarsConfig
from distill3d.detectors.second import SECONDConfig
from distill3d.layers.heads.anchor_head import BevBackboneConfig
from distill3d.layers.image.dla import DLAConfig
from distill3d.layers.image.resnet import ResNetConfig
from distill3d.layers.points.sparse_conv import SparseResNetConfig
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.recipes import get_recipe
from distill3d.recipes.demo import demo
from distill3d.synth.writer import StreetConfig, write_kitti
from distill3d.train.recipe import Recipe

CANVAS = (160, 64)
#: The smallest trunk that still has six levels.
TRUNK = DLAConfig(levels=(1, 1, 1, 1, 1, 1), channels=(8, 8, 16, 16, 16, 16), stem_stride=2)
#: What makes each preset's net still smaller.
SMALLER = {
    "monodetr": {
        "trunk": ResNetConfig(block="basic", layers=(1, 1, 1, 1), channels=(16, 16, 32, 32)),
        "channels": 32, "feed_forward": 32, "groups": 2, "queries": 12,
    },
}  # fmt: skip


def write_streets(folder: Path, train: int = 8, val: int = 4, seed: int = 0) -> Path:
    """A KITTI-layout folder of small streets."""
    config = StreetConfig(width=CANVAS[0], height=CANVAS[1], rays_per_pixel_side=1)
    write_kitti(
        folder,
        frames=train + val,
        seed=seed,
        config=config,
        splits={"train": train, "val": val},
        workers=1,
        progress=False,
    )
    return folder


def small_recipe(root: Path, epochs: int = 2, batch_size: int = 4, **stage_fields: object) -> Recipe:
    """The demo's stages with a very small net and few epochs, in float32."""
    recipe = demo()
    stages = tuple(
        replace(
            stage,
            detector=replace(stage.detector, trunk=TRUNK, head_channels=8),
            schedule=replace(stage.schedule, epochs=epochs, batch_size=batch_size),
            **stage_fields,
        )
        for stage in recipe.stages
    )
    dataset = replace(recipe.dataset, root=root, canvas=CANVAS, min_height_scale=CANVAS[0] / 1242)
    return replace(recipe, stages=stages, dataset=dataset, precision="fp32")


def small_preset(base: str, root: Path) -> Recipe:
    """A base detector's tiny preset with a still smaller net and one epoch, in float32."""
    recipe = get_recipe(f"tiny_{base}")
    smaller = SMALLER.get(base, {"trunk": TRUNK, "head_channels": 8})
    stages = tuple(
        replace(
            stage, detector=replace(stage.detector, **smaller),
            schedule=replace(stage.schedule, epochs=1, batch_size=4),
        )
        for stage in recipe.stages
    )  # fmt: skip
    dataset = replace(recipe.dataset, root=root, canvas=CANVAS, min_height_scale=CANVAS[0] / 1242)
    return replace(recipe, stages=stages, dataset=dataset, precision="fp32")


#: The ground of the smallest detectors of the bird's-eye-view family: 24 x 24 cells of 1.28 m.
GROUND = (2.0, -15.36, -3.0, 32.72, 15.36, 1.0)
SMALL_BACKBONE = BevBackboneConfig(layers=(1, 1), channels=(8, 8), up_channels=(8, 8))
SMALL_SPARSE = SparseResNetConfig(channels=(4, 8, 8, 8), padding_z=(1, 1, 1), blocks=1, outputs=8)


def small_bev_detector(
    config: SECONDConfig | PointPillarsConfig | CaDDNConfig,
) -> SECONDConfig | PointPillarsConfig | CaDDNConfig:
    """The same detector, as small as it can be."""
    head = replace(config.head, backbone=SMALL_BACKBONE)
    if isinstance(config, SECONDConfig):
        return replace(config, voxels=VoxelGrid(GROUND, (0.16, 0.16, 0.2)), backbone=SMALL_SPARSE, head=head)
    if isinstance(config, PointPillarsConfig):
        return replace(config, pillars=VoxelGrid(GROUND, (0.64, 0.64, 4.0)), channels=8, head=head)
    return replace(
        config, voxels=VoxelGrid(GROUND, (1.28, 1.28, 0.8)), bins=DepthBins(2.0, 46.8, 20), lift_channels=8,
        bev_channels=8, trunk=DepthTrunkConfig("small", channels=(8, 8, 16, 16), width=8), head=head,
    )  # fmt: skip


def small_bev_preset(root: Path, name: str = "tiny_bev") -> Recipe:
    """A tiny preset of the bird's-eye-view family with still smaller nets and one epoch, in float32."""
    recipe = get_recipe(name)
    stages = tuple(
        replace(
            stage, detector=small_bev_detector(stage.detector),
            schedule=replace(stage.schedule, epochs=1, batch_size=4),
        )
        for stage in recipe.stages
    )  # fmt: skip
    dataset = replace(recipe.dataset, root=root, canvas=CANVAS, min_height_scale=CANVAS[0] / 1242)
    return replace(recipe, stages=stages, dataset=dataset, precision="fp32")
