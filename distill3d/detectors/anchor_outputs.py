"""What detectors with an anchor head answer: their taps and the head's raw maps."""

from __future__ import annotations

from torch import Tensor

from distill3d.detectors.base import BevGeometry, FeatureMap, Outputs
from distill3d.layers.heads.anchor_head import AnchorHead

#: What the head's read-outs see, (B, C, Y, X) with one cell for those of the anchors; offered where
#: ``AnchorHeadConfig.offers_map`` asks for it, as teachers that remember their answers would keep it for nothing.
HEAD_TAP = "bev_head"


def anchor_outputs(
    head: AnchorHead, bev: Tensor, features: dict[str, FeatureMap], predictions: dict[str, Tensor] | None = None
) -> Outputs:
    """The head's answers to a map (B, C, Y, X) of the ground, beside a detector's own taps and ``predictions``."""
    seen = head.backbone(bev)
    if head.config.offers_map:
        (geometry,) = {f.geometry for f in features.values()}
        assert isinstance(geometry, BevGeometry)
        coarser = BevGeometry(
            geometry.extent, round(geometry.cell * head.config.backbone.stride, 6), geometry.frame, geometry.axes
        )
        features = features | {HEAD_TAP: FeatureMap(seen, coarser)}
    return Outputs(features, head.read(seen) | (predictions or {}))


def head_channels(head: AnchorHead) -> dict[str, int]:
    """The channels of ``HEAD_TAP``, where it is offered."""
    return {HEAD_TAP: head.backbone.channels_out} if head.config.offers_map else {}
