"""Centre head against recorded tensors of the released code (set ``labeldistill``)."""

from pathlib import Path

import pytest
import torch
from golden import constants, golden_file, recorded_objects
from test_gupnet_golden import group
from test_monodle_golden import close, load

from distill3d.boxes import NUSCENES_CLASSES
from distill3d.layers.heads.centre_head import CentreHeadConfig, centre_targets, task_candidates
from distill3d.layers.heads.centre_nms import circles_near, first_kept, footprints_near

pytestmark = pytest.mark.golden


@golden_file("labeldistill/centerpoint_targets")
def test_targets(path: Path) -> None:
    g, c = load(path), constants(path)
    reach, cell, size = c["range"], c["voxel"] * c["stride"], c["size"]
    config = CentreHeadConfig(
        tasks=tuple(map(tuple, c["tasks"])), extent=(-reach, -reach, reach, reach), cell=cell,
        max_objects=c["max_objs"], radius_overlap=c["overlap"], min_radius=c["min_radius"],
    )  # fmt: skip
    assert config.cells == (size, size)
    objects = recorded_objects(g)
    targets = centre_targets(config, objects, NUSCENES_CLASSES)
    heatmaps = targets.heatmap.split([len(task) for task in config.tasks], dim=1)
    for t, heatmap in enumerate(heatmaps):
        recorded = group(g, f"out.task{t}.")
        close(heatmap, recorded["heatmap"], 0, 1e-5)
        assert torch.equal(heatmap == 1, recorded["heatmap"] == 1)
        assert torch.equal(targets.mask[:, t], recorded["mask"].bool())
        assert torch.equal(targets.index[:, t], recorded["ind"])
        torch.testing.assert_close(targets.box[:, t], recorded["anno_box"], rtol=0, atol=1e-5, equal_nan=True)


@golden_file("labeldistill/centerpoint_decode")
def test_decode(path: Path) -> None:
    g, c = load(path), constants(path)
    x0, y0, _, x1, y1, _ = c["pc_range"]
    config = CentreHeadConfig(
        extent=(x0, y0, x1, y1), cell=c["voxel"] * c["stride"], candidates=c["K"],
        score_threshold=c["score_threshold"], post_extent=tuple(c["post_center_range"]),
    )  # fmt: skip
    box = torch.cat([g["in.reg"], g["in.height"], g["in.dim"].log(), g["in.rot"], g["in.vel"]], dim=1)
    found = task_candidates(g["in.heatmap"], box, config)
    for i, use in enumerate(found.usable):
        recorded = group(g, f"out.sample{i}.")
        close(found.rows[i][use], recorded["boxes"], 0, 1e-5)
        close(found.score[i][use], recorded["scores"], 0, 1e-5)
        assert torch.equal(found.kind[i][use].float(), recorded["labels"])


#: (threshold, maximum) and (scale, maximum) of the recorded lists, in their order.
CIRCLES = ((4, 83), (0.85, 83), (0.175, 20), (12, 83))
SIZE_AWARE = ((1, 83), (0.5, 83), (0.7, 10))


@golden_file("labeldistill/nms")
def test_suppression(path: Path) -> None:
    g = load(path)
    assert len(CIRCLES) + len(SIZE_AWARE) == sum(name.startswith("out.") for name in g)
    order = g["in.dets"][:, 5].argsort(descending=True)
    centre, size, yaw, _ = g["in.dets"][order].split((2, 2, 1, 1), dim=1)
    near = {f"circle{i}": (circles_near(centre, value), limit) for i, (value, limit) in enumerate(CIRCLES)}
    near |= {
        f"size_aware{i}": (footprints_near(centre, size, yaw[:, 0], value), limit)
        for i, (value, limit) in enumerate(SIZE_AWARE)
    }
    usable = torch.ones_like(order, dtype=torch.bool)
    for name, (pairs, limit) in near.items():
        assert torch.equal(order[first_kept(pairs, usable, limit)], g[f"out.{name}"]), name
