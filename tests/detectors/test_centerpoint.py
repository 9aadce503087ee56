"""CenterPoint on scans as they may come, and how its maps, settings and published sizes fit together."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distill3d.boxes import NUSCENES_CLASSES, Boxes3D
from distill3d.data.surround import SurroundBatch, SurroundObjectBatch, SurroundObjects
from distill3d.detectors import centerpoint
from distill3d.detectors.base import BevGeometry
from distill3d.detectors.centerpoint import (
    TINY_RANGE,
    TINY_VOXELS,
    CenterPoint,
    CenterPointConfig,
    PillarEncoderConfig,
    VoxelEncoderConfig,
    tiny,
    with_pillars,
)
from distill3d.errors import UserError
from distill3d.layers.ground.bev_second import SECONDFPN, SECONDBlocksConfig, SECONDFPNConfig
from distill3d.layers.heads.centre_head import tiny_head
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.settings import from_plain, to_plain

CONFIGS = {
    "pillars": tiny(),
    "voxels": tiny(pillars=None, voxels=TINY_VOXELS),
    "filled": tiny(pillars=replace(tiny().pillars, norm_slots="filled")),
}


@pytest.fixture(params=CONFIGS)
def detector(request: pytest.FixtureRequest) -> CenterPoint:
    torch.manual_seed(0)
    return CenterPoint(CONFIGS[request.param])


def street(count: int, seed: int = 0) -> Tensor:
    """Points around the vehicle: x, y, z (m), intensity, time (s)."""
    unit = torch.rand(count, 5, generator=torch.Generator().manual_seed(seed))
    return unit * torch.tensor([90.0, 90.0, 4.0, 255.0, 0.45]) - torch.tensor([45.0, 45.0, 2.0, 0.0, 0.0])


def some_objects(count: int, seed: int = 0) -> SurroundObjects:
    """Objects of the first four classes at random places, every other of unknown velocity."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(count, 9, generator=generator)
    velocity = 5 * unit[:, 7:]
    velocity[::2] = torch.nan
    label = torch.arange(count) % 4
    boxes = Boxes3D(80 * unit[:, :3] - 40, 0.5 + 4 * unit[:, 3:6], 6 * unit[:, 6] - 3, label, "ego", velocity=velocity)
    return SurroundObjects(boxes, torch.ones_like(label))


def batch_with(scans: Sequence[Tensor], objects: Sequence[SurroundObjects] | None = None) -> SurroundBatch:
    n = len(scans)
    objects = [some_objects(3) for _ in scans] if objects is None else objects
    eye = torch.eye(4, dtype=torch.float64)
    cameras = eye.expand(n, 1, 6, 4, 4)
    return SurroundBatch(
        [str(i) for i in range(n)], cameras, cameras, eye.expand(n, 6, 4, 4), eye.expand(n, 4, 4), eye.expand(n, 4, 4),
        objects=SurroundObjectBatch.pad(objects), points=list(scans),
    )  # fmt: skip


def damaged(count: int) -> Tensor:
    scan = street(count)
    scan[::3, 0], scan[1::7, 3], scan[2::11, 2], scan[4::13, 4] = torch.nan, torch.nan, torch.inf, torch.nan
    return scan


SCANS = {
    "no point": torch.zeros(0, 5),
    "one point": torch.tensor([[10.0, 0.0, -1.0, 20.0, 0.1]]),
    "all outside": street(500) + torch.tensor([500.0, 0.0, 0.0, 0.0, 0.0]),
    "NaN and infinite": damaged(600),
    "all NaN": torch.full((50, 5), torch.nan),
}


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("others", [0, 1], ids=["alone", "behind another"])
def test_any_scan_trains_and_decodes(detector: CenterPoint, name: str, others: int) -> None:
    batch = batch_with([*[street(2000)] * others, SCANS[name]])
    outputs = detector.train()(batch)
    losses = detector.loss(outputs, batch)
    assert set(losses) == {"heat", "box"}
    sum(losses.values()).backward()
    assert all(v.isfinite() for v in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())
    detector.eval()
    with torch.no_grad():
        assert len(detector.decode(detector(batch), batch)) == len(batch)


@pytest.mark.parametrize("counts", [[0], [1], [0, 3], [200]], ids=str)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_any_number_of_objects(detector: CenterPoint, counts: list[int], bf16: bool) -> None:
    batch = batch_with([street(1500, i) for i in range(len(counts))], [some_objects(n) for n in counts])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        targets = detector.encode(batch)
        outputs = detector.train().forward_at(batch, targets)
        losses = detector.loss(outputs, batch, targets)
    assert {p.dtype for p in (*outputs.predictions.values(), *losses.values())} == {torch.float32}
    assert all(v.isfinite() for v in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    assert {name: f.tensor.shape[1] for name, f in outputs.features.items()} == detector.tap_channels


def test_taps_lie_where_their_geometry_says(detector: CenterPoint) -> None:
    with torch.no_grad():
        outputs = detector.eval()(batch_with([street(1500)]))
    levels = {"bev_0": 0.8, "bev_1": 1.6}
    stages = {"bev_stage1": "bev_0", "bev_stage2": "bev_1"}
    cells = {"bev_low": 0.8, **levels, **{stage: levels[level] for stage, level in stages.items()}, "bev_neck": 0.8}
    assert set(outputs.features) == set(detector.geometries) == set(cells)
    assert all(outputs.features[stage].tensor is outputs.features[level].tensor for stage, level in stages.items())
    for name, cell in cells.items():
        feature = outputs.features[name]
        assert feature.geometry == BevGeometry((-38.4, -38.4, 38.4, 38.4), cell, "ego", ("y", "x"))
        side = round(76.8 / cell)
        assert feature.tensor.shape[-2:] == (side, side)
        assert feature.tensor.min() >= 0
    assert outputs.predictions["heatmap"].shape == (1, 4, 96, 96)


@pytest.mark.parametrize("place", [(20.0, -30.0), (-38.0, 38.0), (3.0, 0.5)])
def test_points_light_up_the_cell_that_they_stand_in(place: tuple[float, float]) -> None:
    """Rows run along y and columns along x, from the lower bounds up."""
    torch.manual_seed(0)
    detector = CenterPoint(CONFIGS["voxels"]).eval()
    points = torch.tensor([[*place, -1.0, 50.0, 0.0]]).repeat(5, 1)
    with torch.no_grad():
        low = detector(batch_with([points])).features["bev_low"].tensor
    _, row, column = low[0].nonzero().T
    assert len(row) > 0
    for cells, metres in ((column, place[0]), (row, place[1])):
        assert (cells - (metres + 38.4) / 0.8).abs().max() <= 2


def test_an_empty_scan_leaves_others_as_they_are(detector: CenterPoint) -> None:
    detector.eval()
    nothing = torch.zeros(0, 5)
    with torch.no_grad():
        alone = detector(batch_with([street(2000)])).features["bev_0"].tensor
        both = detector(batch_with([nothing, street(2000), nothing])).features["bev_0"].tensor
    assert both.shape[0] == 3
    torch.testing.assert_close(both[1], alone[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(both[0], both[2])


def test_points_that_are_not_finite_count_as_none(detector: CenterPoint) -> None:
    detector.eval()
    scan = damaged(900)
    with torch.no_grad():
        a, b = (
            detector(batch_with([points])).features["bev_1"].tensor for points in (scan, scan[scan.isfinite().all(1)])
        )
    assert torch.equal(a, b)


def test_intensity_may_be_scaled() -> None:
    scan = street(10)
    batch = batch_with([scan])
    raw, unit = (centerpoint.ego_scans(batch, kind)[0] for kind in ("raw", "unit"))
    assert torch.equal(raw, scan)
    torch.testing.assert_close(unit, scan / torch.tensor([1, 1, 1, 255, 1]))


def test_scores_rise_where_the_objects_are() -> None:
    """A few steps on one sample: the heat map learns to tell the cells of centres from others."""
    torch.manual_seed(0)
    detector = CenterPoint(CONFIGS["pillars"]).train()
    objects = some_objects(4)
    inside = objects.boxes.centre[:, None] + torch.rand(4, 60, 3) - 0.5
    points = torch.cat((inside.flatten(0, 1), torch.full((240, 2), 0.5)), dim=1)
    batch = batch_with([torch.cat((points, street(1000)))], [objects])
    targets = detector.encode(batch)
    centres = targets.heatmap == 1
    optimiser = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    for _ in range(15):
        optimiser.zero_grad()
        sum(detector.loss(detector(batch), batch, targets).values()).backward()
        optimiser.step()
    with torch.no_grad():
        score = detector(batch).predictions["heatmap"].sigmoid()
    assert score[centres].mean() > 5 * score[targets.heatmap == 0].mean()


# ------------------------------------------------------------------------------------------------------- published form


def test_published_voxel_network() -> None:
    config = CenterPointConfig()
    assert config.voxels is not None
    shape = config.voxels.grid.sparse_shape
    assert shape == (41, 1024, 1024)
    shapes = []
    for kernel in config.voxels.network.kernels:
        shape = kernel.output_shape(shape)
        shapes.append(shape)
    assert shapes == [(21, 512, 512), (11, 256, 256), (5, 128, 128), (2, 128, 128)]
    detector = CenterPoint(config)
    levels = {"bev_0": 128, "bev_1": 256, "bev_stage1": 128, "bev_stage2": 256}
    assert detector.tap_channels == {"bev_low": 256, **levels, "bev_neck": 512}
    assert detector.neck.channels_out == 512
    biased = {name for name, _ in detector.named_parameters() if name.endswith("bias")}
    normed = {name for name, m in detector.named_modules() if hasattr(m, "running_mean")}
    assert not [b for b in biased if b.startswith("encoder") and b.removesuffix(".bias") not in normed]
    norms = [m for part in (detector.encoder, detector.backbone, detector.neck) for m in part.modules()]
    assert {(m.eps, m.momentum) for m in norms if hasattr(m, "running_mean")} == {(1e-3, 0.01)}


def test_pillars_give_the_maps_of_voxels() -> None:
    voxels, pillars = CenterPoint(CenterPointConfig()), CenterPoint(with_pillars())
    assert voxels.tap_channels == pillars.tap_channels
    assert voxels.geometries == pillars.geometries
    for part in ("backbone", "neck", "head"):
        ours, theirs = (getattr(d, part).state_dict() for d in (voxels, pillars))
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("strides", [(1, 2), (0.5, 1), (2, 4)])
def test_the_neck_resizes_and_stacks(strides: tuple[float, float]) -> None:
    neck = SECONDFPN((3, 5), SECONDFPNConfig(channels=(4, 6), strides=strides))
    out = neck([torch.randn(2, 3, 8, 12), torch.randn(2, 5, 4, 6)])
    assert out.shape == (2, 10, int(8 * strides[0]), int(12 * strides[0]))
    first = neck([torch.randn(2, 3, 8, 12), torch.zeros(2, 5, 4, 6)])[:, 4:]
    assert torch.equal(first, neck([torch.zeros(2, 3, 8, 12), torch.zeros(2, 5, 4, 6)])[:, 4:])


@pytest.mark.parametrize("config", [CenterPointConfig(), with_pillars(), *CONFIGS.values()])
def test_settings_survive_being_written(config: CenterPointConfig) -> None:
    plain = json.loads(json.dumps(to_plain(config)))
    assert from_plain(CenterPointConfig, plain, "here") == config


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pillars": None}, "exactly one"),
        ({"voxels": VoxelEncoderConfig()}, "exactly one"),
        ({"head": tiny_head(cell=1.6)}, "cells of 1.6 m"),
        ({"head": tiny_head(extent=(-40.0, -40.0, 40.0, 40.0))}, "over"),
        ({"neck": SECONDFPNConfig((48, 48), (1, 1))}, "out of the neck"),
        ({"neck": SECONDFPNConfig((48,), (1,))}, "joins 1 levels, got 2"),
        ({"classes": NUSCENES_CLASSES[1:]}, "'car'"),
        ({"backbone": SECONDBlocksConfig((1, 1), (8, 8), (1, 64))}, "multiple of the backbone's stride"),
        ({"pillars": PillarEncoderConfig(VoxelGrid(TINY_RANGE, (0.4, 0.8, 8.0)))}, "square"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields: dict, words: str) -> None:
    with pytest.raises((ValueError, UserError), match=words):
        CenterPoint(tiny(**fields))


def test_without_points_or_annotations() -> None:
    detector = CenterPoint(tiny())
    batch = batch_with([street(10)])
    with pytest.raises(ValueError, match="needs scans"):
        detector(replace(batch, points=None))
    with pytest.raises(UserError, match="needs annotations"):
        detector.encode(replace(batch, objects=None))
