"""Pictures of any camera: what a detector says depends on the scene, not on how many pixels it was taken with."""

from dataclasses import replace

import pytest
import torch

from distill3d.camera import Camera
from distill3d.detectors import build_detector
from distill3d.detectors.monodle import HEAT_CLASSES
from distill3d.predict import predict_image
from distill3d.recipes.synthetic import TINY

CARD = {"canvas": (320, 96), "focal": 186.0, "file_focal": 721.5}


@pytest.mark.parametrize("name", TINY)
def test_pixels_do_not_matter(name: str) -> None:
    """The same view with two, three times the resolution; a grey picture, which looks the same at any."""
    torch.manual_seed(0)
    detector = build_detector(replace(TINY[name], score_threshold=0.0, classes=HEAT_CLASSES)).eval()
    found = []
    for size in (1, 2, 3):
        camera = Camera.from_intrinsics(93.0 * size, 93.0 * size, 80.0 * size, 20.0 * size)
        found.append(predict_image(detector, CARD, torch.full((3, 64 * size, 160 * size), 0.5), camera))
    assert len(found[0])
    for size, boxes in zip((2, 3), found[1:], strict=True):
        for field in ("centre", "size", "yaw", "score"):
            ours, theirs = getattr(boxes, field), getattr(found[0], field)
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
        torch.testing.assert_close(boxes.box2d, size * found[0].box2d, rtol=1e-3, atol=0.1 * size)
