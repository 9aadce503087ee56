"""DID-M3D against recorded tensors of the released code (set ``monoskd``)."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from golden import golden_file
from test_gupnet_golden import (
    by_slot,
    check_boxes,
    check_gradients,
    check_losses,
    group,
    recorded_batch,
    recorded_heads,
    recorded_peaks,
    recorded_rois,
    recorded_targets,
)
from test_monodle_golden import close, load

from distill3d.detectors import did_m3d, gupnet
from distill3d.detectors.did_m3d import GRID_HEADS, POOLED_HEADS, DIDM3DConfig, DIDM3DTargets
from distill3d.detectors.gupnet import Trained
from distill3d.layers.image.roi import grid_head, pooled_head

pytestmark = pytest.mark.golden

#: Our names of what stands on the RoI grid, by recorded name.
GRIDS = {
    "vis_depth": "visual_depth", "vis_depth_uncer": "visual_depth_log_variance", "att_depth": "attribute_depth",
    "att_depth_uncer": "attribute_depth_log_variance", "ins_depth": "depth", "ins_depth_uncer": "depth_log_variance",
}  # fmt: skip
CONFIDENCES: tuple[Literal["ada", "max"], ...] = ("ada", "max")


@golden_file("monoskd/did_roi_depth")
def test_roi_depth(path: Path) -> None:
    g = load(path)
    maps, _, rois = recorded_rois(g)
    heads = recorded_heads(g, tuple(POOLED_HEADS), pooled_head)
    heads |= recorded_heads(g, GRID_HEADS, lambda channels_in, channels, _: grid_head(channels_in, channels))
    said = did_m3d.describe_rois(heads, rois)
    recorded = GRIDS | {name: name for name in POOLED_HEADS}
    for name, ours in recorded.items():
        close(said[ours], g[f"out.{name}"], 1e-9, 1e-12)
    torch.stack([(said[ours] * g[f"in.cotangent.{name}"]).sum() for name, ours in recorded.items()]).sum().backward()
    check_gradients(g, maps, heads)


@golden_file("monoskd/did_loss")
def test_loss(path: Path) -> None:
    g = load(path)
    leaves = {name: value.clone().requires_grad_() for name, value in group(g, "in.pred.").items()}
    targets = DIDM3DTargets(
        **recorded_targets(g), visual_depth=g["in.target.vis_depth"], attribute_depth=g["in.target.att_depth"],
        surface=g["in.target.depth_mask"].bool(),
    )  # fmt: skip
    predictions = {name: leaves[name] for name in gupnet.MAP_HEADS}
    predictions |= {f"roi_{ours}": leaves[name] for name, ours in (GRIDS | {n: n for n in POOLED_HEADS}).items()}
    trained = Trained.select(by_slot(predictions, targets), targets, "zero")
    check_losses(g, did_m3d.detection_losses(trained, "nan"), leaves)


@golden_file("monoskd/did_decode")
def test_decode(path: Path) -> None:
    g = load(path)
    count, (height, width) = g["out.dets_ada"].shape[1], g["in.heatmap"].shape[-2:]
    rois = {name: g[f"in.{name}"] for name in POOLED_HEADS}
    rois |= {"depth": g["in.vis_depth"] + g["in.att_depth"], "depth_log_variance": g["in.ins_depth_uncer"]}
    batch, outputs = recorded_batch(g), recorded_peaks(g, rois, count)
    for confidence in CONFIDENCES:
        peaks = did_m3d.merged_slots(outputs, batch.affine.zoom, confidence)
        rows = torch.cat(
            (peaks.label[..., None], peaks.score[..., None], peaks.centre_2d, peaks.size_2d, peaks.heading,
             peaks.size_3d, peaks.centre_3d, peaks.depth[..., None], peaks.confidence[..., None]), dim=-1,
        )  # fmt: skip
        close(rows, g[f"out.dets_{confidence}"], 1e-9, 1e-12)
    config = DIDM3DConfig.styled(
        "released", top_k=count, score_threshold=float(g["in.threshold"]),
        class_sizes=tuple(map(tuple, g["in.cls_mean_size"].tolist())),
    )  # fmt: skip
    peaks = did_m3d.merged_slots(outputs, batch.affine.zoom, config.confidence)
    check_boxes(g, batch, gupnet.slots_to_boxes(peaks, batch, config, (width, height)))
