"""LiDAR detectors on scans as they may come: empty, far away, damaged, huge; and what a map's geometry says."""

from dataclasses import replace

import pytest
import torch
from made_up import LIDAR_TO_CAMERA, cars, make_batch
from torch import Tensor

from distill3d.data.sample import Batch
from distill3d.detectors import build_detector, caddn, pointpillars, second
from distill3d.detectors.base import Detector
from distill3d.distill.context import comparable
from distill3d.errors import UserError
from distill3d.layers.ground.bev_second import BevBackboneConfig
from distill3d.layers.heads.anchor_head import focal_head
from distill3d.layers.heads.anchors import KITTI_ANCHORS
from distill3d.layers.points.voxels import VoxelGrid

#: Two levels that come out at half the resolution of the map that they begin with.
HALVED = focal_head(classes=KITTI_ANCHORS[:1], backbone=BevBackboneConfig((1, 1), (8, 8), (2, 2), (8, 8), (1, 2)))
CONFIGS = {
    "second": second.tiny(),
    "plain": second.tiny(backbone=replace(second.tiny().backbone, block="plain", blocks=2, outputs=24)),
    "pointpillars": pointpillars.tiny(),
    "filled": pointpillars.tiny(norm_slots="filled"),
    "halved": pointpillars.tiny(channels=8, stride=1, head=HALVED),
}


@pytest.fixture(params=CONFIGS)
def detector(request: pytest.FixtureRequest) -> Detector:
    torch.manual_seed(0)
    return build_detector(CONFIGS[request.param])


def batch_with(*scans: Tensor) -> Batch:
    """One image for each scan; the scans in the LiDAR's frame."""
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([cars(2, generator) for _ in scans], generator)
    pose = LIDAR_TO_CAMERA.float()
    return replace(batch, points=[torch.cat((s[:, :3] @ pose[:3, :3].T + pose[:3, 3], s[:, 3:]), 1) for s in scans])


def street(count: int, seed: int = 0) -> Tensor:
    """Points of the ground and above it, in the LiDAR's frame."""
    unit = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
    return unit * torch.tensor([50.0, 60.0, 3.0, 1.0]) - torch.tensor([0.0, 30.0, 2.0, 0.0])


def damaged(count: int) -> Tensor:
    scan = street(count)
    scan[::3, 0], scan[1::7, 3], scan[2::11, 2] = torch.nan, torch.nan, torch.inf
    return scan


SCANS = {
    "no point": torch.zeros(0, 4),
    "one point": torch.tensor([[10.0, 0.0, -1.0, 0.5]]),
    "all outside": street(500) + torch.tensor([500.0, 0.0, 0.0, 0.0]),
    "NaN and infinite": damaged(600),
    "all NaN": torch.full((50, 4), torch.nan),
    "half a million": street(500_000),
}


@pytest.mark.parametrize(
    ("name", "others"),
    [
        pytest.param(name, others, marks=pytest.mark.thorough if others and name not in ("no point", "all NaN") else [],
                     id=f"{name}, {'beside another' if others else 'alone'}")
        for name in SCANS for others in (0, 1)
    ],
)  # fmt: skip
def test_any_scan_trains_and_decodes(detector: Detector, name: str, others: int) -> None:
    batch = batch_with(SCANS[name], *[street(2000)] * others)
    outputs = detector.train()(batch)
    losses = detector.loss(outputs, batch)
    sum(losses.values()).backward()
    assert all(v.isfinite() for v in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())
    detector.eval()
    assert len(detector.decode(detector(batch), batch)) == len(batch)


def test_an_empty_scan_leaves_its_map_empty_and_others_as_they_are(detector: Detector) -> None:
    detector.eval()
    with torch.no_grad():
        alone = detector(batch_with(street(2000))).features["bev"].tensor
        both = detector(batch_with(torch.zeros(0, 4), street(2000), torch.zeros(0, 4))).features["bev"].tensor
    assert both.shape[0] == 3
    torch.testing.assert_close(both[1], alone[0], rtol=1e-4, atol=1e-5)
    if isinstance(detector, second.SECOND):
        assert not both[0].any() and not both[2].any()
    assert torch.equal(both[0], both[2])


def test_points_that_are_not_finite_count_as_none(detector: Detector) -> None:
    detector.eval()
    scan = damaged(900)
    with torch.no_grad():
        a = detector(batch_with(scan)).features["bev"].tensor
        b = detector(batch_with(scan[scan.isfinite().all(1)])).features["bev"].tensor
    assert torch.equal(a, b)


@pytest.mark.parametrize("size", ["paper", "tiny"])
@pytest.mark.parametrize("teacher", [second, pointpillars], ids=["second", "pointpillars"])
def test_teachers_and_students_maps_are_comparable(teacher, size: str) -> None:
    """Their taps lie on one grid, as wide as one another, so that CMKD can compare them."""
    if size == "tiny":
        configs = teacher.tiny(), caddn.tiny()
    else:
        kinds = {second: second.SECONDConfig, pointpillars: pointpillars.PointPillarsConfig}
        configs = kinds[teacher](), caddn.CaDDNConfig()
    given, student = build_detector(configs[0]), build_detector(configs[1])
    assert given.tap_channels["bev"] == student.tap_channels["bev"]
    assert given.geometry == configs[1].geometry
    assert given.head.anchors.shape == student.head.anchors.shape
    if size == "tiny":
        generator = torch.Generator().manual_seed(0)
        batch = make_batch([cars(1, generator)], generator)
        with torch.no_grad():
            comparable("bev", student.eval()(batch), given.eval()(batch))


def test_paper_sizes() -> None:
    assert sum(p.numel() for p in build_detector(second.SECONDConfig()).parameters()) == 1_219_296 + 4_429_312 + 36_936


@pytest.mark.parametrize(
    ("grid", "words"),
    [(VoxelGrid(second.STUDENT_RANGE, (0.08, 0.16, 0.2)), "square"),
     (VoxelGrid((0.0, -4.0, -3.0, 4.2, 4.0, 1.0), (0.1, 0.1, 0.2)), "multiple of the stride")],
    ids=["oblong", "odd"],
)  # fmt: skip
def test_grids_that_do_not_fit_are_refused(grid: VoxelGrid, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_detector(second.tiny(voxels=grid))


def test_without_points_or_lidar(detector: Detector) -> None:
    batch = batch_with(street(10))
    for lacking in (replace(batch, points=None), replace(batch, lidar_to_camera=None)):
        with pytest.raises(ValueError, match="needs scans and where the LiDAR is"):
            detector(lacking)
