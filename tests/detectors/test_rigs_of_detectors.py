"""Every surround detector on rigs of one, three and six cameras, and on six in another order."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from drives import CANVAS, small_surround_detector, write_drives

from distill3d.boxes import Boxes3D
from distill3d.data.nuscenes.dataset import CAMERAS, NuScenesConfig, NuScenesDataset
from distill3d.data.surround import SurroundBatch, collate_surround
from distill3d.detectors import DetectorConfig, bevdepth, bevdet, bevformer, bevfusion, build_detector
from distill3d.detectors.base import Detector
from distill3d.errors import UserError
from distill3d.layers.ground.simulated_lift import SimulatedBranchConfig
from distill3d.synth.nuscenes_records import VERSION

DETECTORS: dict[str, DetectorConfig] = {
    "bevdepth": bevdepth.tiny(),
    "bevdepth, two frames": bevdepth.tiny(frames=2, past_camera="own"),
    "bevdepth, two branches": bevdepth.tiny(simulated=SimulatedBranchConfig()),
    "bevdepth, true depth": bevdepth.tiny(input="rgb+gt_depth"),
    "bevdet": bevdet.tiny(),
    "bevdet, two frames": bevdet.tiny(frames=2),
    "bevfusion": bevfusion.tiny(),
    "bevformer": bevformer.tiny(),
    "bevformer, two frames": bevformer.tiny(frames=2, cameras=0),
}
PERMUTED = tuple(CAMERAS[i] for i in (4, 2, 0, 5, 1, 3))
RIGS = [("CAM_FRONT",), ("CAM_BACK", "CAM_FRONT", "CAM_FRONT_LEFT")]
#: Of the largest magnitude.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drives(tmp_path_factory.mktemp("drives"))


def batch_of(root: Path, config: DetectorConfig, cameras: tuple[str, ...]) -> SurroundBatch:
    """Two moments as a detector is given them."""
    frames = getattr(config, "frames", 1)
    data = NuScenesDataset(
        NuScenesConfig(
            root=root, version=VERSION, split="train", canvas=CANVAS, cameras=cameras, depth=True, points=True,
            past=tuple(range(1, frames)), in_memory=True, classes=("car", "truck", "bicycle", "pedestrian"),
        )
    )  # fmt: skip
    return collate_surround([data.get(i) for i in (2, 3)])


def built(config: DetectorConfig, cameras: int = 6) -> Detector:
    config = small_surround_detector(config)
    if isinstance(config, bevformer.BEVFormerConfig) and config.cameras:
        config = replace(config, cameras=cameras)
    torch.manual_seed(0)
    return build_detector(config).eval()


def other_order(detector: Detector) -> Detector:
    """The detector for ``PERMUTED``: codes of cameras go with their cameras."""
    weights = detector.state_dict()
    for name in weights:
        if name.endswith("encoder.camera.weight"):
            weights[name] = weights[name][[CAMERAS.index(camera) for camera in PERMUTED]]
    other = build_detector(detector.config).eval()
    other.load_state_dict(weights)
    return other


def farthest(boxes: Boxes3D, others: Boxes3D) -> float:
    """The largest of the distances from boxes to the nearest of others, in all numbers."""
    rows = [
        torch.cat((b.centre, b.size, b.yaw.sin()[:, None], b.yaw.cos()[:, None], b.score[:, None], b.label[:, None]), 1)
        for b in (boxes, others)
        if b.score is not None
    ]
    return float(torch.cdist(rows[0], rows[1], p=torch.inf, compute_mode="donot_use_mm_for_euclid_dist").amin(1).max())


@pytest.mark.parametrize("name", DETECTORS)
def test_the_order_of_cameras_plays_no_role(name: str, drives: Path) -> None:
    detector = built(DETECTORS[name])
    batches = [batch_of(drives, DETECTORS[name], cameras) for cameras in (CAMERAS, PERMUTED)]
    with torch.no_grad():
        found = [d(b) for d, b in zip((detector, other_order(detector)), batches, strict=True)]
    for key, value in found[0].predictions.items():
        if key != "depth":  # camera after camera
            other = found[1].predictions[key]
            assert (value - other).abs().max() <= TOLERANCE * value.abs().max(), key
    boxes = [detector.decode(outputs, batch) for outputs, batch in zip(found, batches, strict=True)]
    for here, there in zip(*boxes, strict=True):
        assert len(here) == len(there) > 0
        sure = here[: len(here) // 2]  # of the last, rounding decides which come up
        assert farthest(sure, there) < 1e-2
    assert not torch.equal(batches[0].images[:, 0, 0], batches[1].images[:, 0, 0])  # they were permuted


@pytest.mark.parametrize("cameras", RIGS, ids=len)
@pytest.mark.parametrize("name", DETECTORS)
def test_fewer_cameras(name: str, cameras: tuple[str, ...], drives: Path) -> None:
    """Losses and their gradients are finite, boxes are found, and a camera less is another answer."""
    detector, batch = built(DETECTORS[name], len(cameras)), batch_of(drives, DETECTORS[name], cameras)
    detector.train()
    outputs = detector(batch)
    total = torch.stack(list(detector.loss(outputs, batch, detector.encode(batch)).values())).sum()
    total.backward()
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    assert bool(total.isfinite()) and gradients and all(bool(g.isfinite().all()) for g in gradients)
    detector.eval()
    with torch.no_grad():
        assert all(len(boxes) > 0 for boxes in detector.decode(detector(batch), batch))
        dark = detector(replace(batch, images=torch.zeros_like(batch.images)))
        seen = detector(batch)
    assert any(not torch.equal(value, dark.predictions[key]) for key, value in seen.predictions.items())


def test_codes_are_for_a_number_of_cameras(drives: Path) -> None:
    config = bevformer.tiny()
    with pytest.raises(UserError, match="set to 6 cameras, the data set gives 3"):
        built(config)(batch_of(drives, config, RIGS[1]))
