"""Imported MonoDLE, GUPNet, DID-M3D, MonoDistill, MonoSTL and MonoSKD answer as the authors' code does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from golden import constants, golden_file
from made_checkpoints import imported, input_of, recorded
from torch import Tensor

from distill3d.boxes import Boxes3D
from distill3d.camera import Camera, ImageAffine
from distill3d.data.sample import Batch
from distill3d.detectors.base import Outputs
from distill3d.detectors.monodle import HEAT_CLASSES, STRIDE, MonoDLE
from distill3d.layers.image.roi import RoISlots

pytestmark = pytest.mark.golden

#: Relative to the largest value, as the index states; of decoded rows.
TOLERANCE, OF_ROWS = 1e-8, 1e-7
#: The recording's names of what is read in regions, where they are not ours.
NAMES = {
    "visual_depth": "vis_depth", "visual_depth_log_variance": "vis_depth_uncer",
    "attribute_depth": "att_depth", "attribute_depth_log_variance": "att_depth_uncer",
    "depth": "ins_depth", "depth_log_variance": "ins_depth_uncer", "height_log_variance": "h3d_log_variance",
}  # fmt: skip


def batch_of(g: dict[str, Any], path: Path) -> Batch:
    about = constants(path)
    height, width = about["H"], about["W"]
    source = g["in.bbox_downsample_ratio"] * torch.tensor([width, height]) / STRIDE
    n = len(source)
    identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64).expand(n, 2, 3)
    affine = ImageAffine(identity, torch.zeros(n, dtype=torch.bool), torch.ones(n).double(), source, source)
    blank = torch.zeros(n, 3, height, width, dtype=torch.float64)
    return Batch([str(i) for i in g["in.img_id"].tolist()], blank, Camera(g["in.P2"]), affine)


def answers(detector: MonoDLE, image: Tensor, batch: Batch) -> Outputs:
    """From the normalised input on."""
    outputs = detector.forward_image(image)
    if type(detector) is MonoDLE:
        return outputs
    slots = RoISlots.at_peaks(outputs.predictions["heatmap"], detector.config.top_k)
    return detector._look(outputs, batch, slots)


def rows(images: Tensor, found: list[Boxes3D]) -> Tensor:
    """Boxes as the recorded rows have them."""
    kept = []
    for image, boxes in zip(images, found, strict=True):
        hwl, bottom = boxes.size.flip(-1), boxes.centre + boxes.size[:, 2:] * torch.tensor([0, 0.5, 0])
        kept.append(torch.cat((image.expand(len(boxes), 1), boxes.label[:, None], boxes.alpha[:, None], boxes.box2d,
                               hwl, bottom, -boxes.yaw[:, None], boxes.score[:, None]), -1))  # fmt: skip
    return torch.cat(kept)


@torch.no_grad()
@golden_file(
    *(f"released/{s}/whole_forward" for s in ("monodle", "gupnet", "did_m3d", "monodistill", "monostl", "monoskd"))
)
def test_whole_network(path: Path, tmp_path: Path) -> None:
    system, g, about = path.parent.name, recorded(path), constants(path)
    batch = batch_of(g, path)
    for part, prefix, number in (("student", "", 900001), ("teacher", "teacher.", 900008)):
        if f"in.{prefix}threshold" not in g:
            continue
        detector = imported(
            path, system, part, tmp_path / part, classes=HEAT_CLASSES, top_k=about["K"],
            score_threshold=float(g[f"in.{prefix}threshold"]),
        )  # fmt: skip
        image = input_of(path, tuple(batch.image.shape), number)
        torch.testing.assert_close(image.flatten()[:8], g[f"in.{prefix.replace('.', '_')}input_first8"])
        outputs = answers(detector, image, batch)
        for name, said in outputs.predictions.items():
            expected = expectation(g, prefix, name)
            close(said.reshape(expected.shape), expected, TOLERANCE)
        found = detector.decode(outputs, batch)
        order = [int(i) for image in g["in.img_id"] for i in (g[f"out.{prefix}rows"][:, 0] == image).nonzero()]
        close(rows(g["in.img_id"], found), g[f"out.{prefix}rows"][order], OF_ROWS)


def expectation(g: dict[str, Any], prefix: str, name: str) -> Tensor:
    """What is recorded of a prediction of ours."""
    plain = name.removeprefix("roi_")
    both = g.get("out.roi.depth")  # GUPNet's depth and its deviation
    if both is not None and plain in ("depth", "depth_log_variance"):
        return both[..., int(plain != "depth")]
    theirs = NAMES.get(plain, plain) if name.startswith("roi_") else plain
    return g[f"out.{prefix}{theirs}"] if f"out.{prefix}{theirs}" in g else g[f"out.roi.{theirs}"]


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = float(expected[expected.isfinite()].abs().max())
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * scale)
