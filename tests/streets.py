"""A few synthetic frames and a recipe that trains on them within seconds, for end-to-end tests."""

from dataclasses import replace
from pathlib import Path

from distill3d.layers.dla import DLAConfig
from distill3d.layers.resnet import ResNetConfig
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
