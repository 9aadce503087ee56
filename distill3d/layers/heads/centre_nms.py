"""Suppression of boxes whose centres stand close together, without a loop over boxes.

Sources: open-mmlab/mmdetection3d mmdet3d/models/layers/box3d_nms.py, circle_nms; sanmin0312/LabelDistill
labeldistill/layers/heads/kd_head.py, size_aware_circle_nms; HuangJunJie2017/BEVDet mmdet3d/models/dense_heads/
centerpoint_head.py, get_task_detections.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from distill3d.layers.ground.rotated import bev_iou_table


def circles_near(centre: Float[Tensor, "*b n 2"], threshold: float) -> Bool[Tensor, "*b n n"]:
    """Which centres (m) lie so close that the SQUARED distance is at most ``threshold`` (m^2)."""
    dx, dy = (centre[..., :, None, :] - centre[..., None, :, :]).unbind(-1)
    return dx * dx + dy * dy <= threshold


def footprints_near(
    centre: Float[Tensor, "*b n 2"], size: Float[Tensor, "*b n 2"], yaw: Float[Tensor, "*b n"], scale: float
) -> Bool[Tensor, "*b n n"]:
    """Which axis-aligned rectangles around the (length, width) footprints touch, each scaled about its centre."""
    extent = footprint_extent(size, yaw)
    reach = scale * (extent[..., :, None, :] + extent[..., None, :, :]) / 2
    return ((centre[..., :, None, :] - centre[..., None, :, :]).abs() <= reach).all(-1)


def scaled_near(
    rows: Float[Tensor, "*b n _"], factor: Float[Tensor, "*b n"], threshold: float
) -> Bool[Tensor, "*b n n"]:
    """Which footprints of boxes (x, y, z, length, width, height, yaw, ...), their sides times ``factor``, overlap by an
    IoU above ``threshold``."""
    one = torch.ones_like(factor)
    scaled = rows[..., :7] * torch.stack((one, one, one, factor, factor, one, one), dim=-1)
    return bev_iou_table(scaled) > threshold


def footprint_extent(size: Float[Tensor, "*b n 2"], yaw: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n 2"]:
    """Sides along x and y of the axis-aligned rectangle about each turned (length, width) footprint."""
    along, across = yaw.cos().abs(), yaw.sin().abs()
    length, width = size.unbind(-1)
    return torch.stack((length * along + width * across, length * across + width * along), dim=-1)


def first_kept(near: Bool[Tensor, "*b n n"], usable: Bool[Tensor, "*b n"], limit: int) -> Bool[Tensor, "*b n"]:
    """Greedy suppression: of usable boxes, best first, those near no better one that is kept; the first ``limit``.

    Starts with all and strikes out repeatedly.  After i rounds the first i boxes are final, and what no round changes
    is the greedy choice; it takes as many rounds as the longest chain of boxes that decide over one another.
    """
    near = near.triu(1)
    if torch.compiler.is_exporting():  # the same as a loop of the graph, which carries the last two rounds
        rounds = torch.while_loop(
            lambda last: (last[0] != last[1]).any(),
            lambda last: (torch.stack((last[1], usable & ~(near & last[1][..., :, None]).any(-2))),),
            (torch.stack((~usable, usable)),),
        )
        kept = rounds[0][1]
        return kept & (kept.cumsum(-1) <= limit)
    kept = usable
    while True:
        struck = usable & ~(near & kept[..., :, None]).any(-2)
        if torch.equal(struck, kept):
            return kept & (kept.cumsum(-1) <= limit)
        kept = struck
