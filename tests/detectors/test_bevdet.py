"""BEVDet as a whole: published sizes, taps, what is trained by what, frames and their motion, and depth labels."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from drives import assert_learns
from test_bevdepth import CANVAS, REACH, assert_same, one_of, parameters, scene, small_head
from torch import Tensor

from distill3d.camera import DepthBins
from distill3d.data.surround import SurroundBatch
from distill3d.detectors.base import BevGeometry
from distill3d.detectors.bevdepth import STRIDE, UNSEEN
from distill3d.detectors.bevdet import BEVDet, BEVDetConfig, bevdepth4d, tiny
from distill3d.errors import UserError
from distill3d.layers.ground.bev_residual import ResidualStages, TwoLevelNeck, planar_motion, shift_map
from distill3d.layers.image.depth_net import depth_loss
from distill3d.layers.image.lift_nets import mean_depth_loss
from distill3d.layers.image.resnet import ResNetConfig
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.settings import from_plain, to_plain

#: Cells of the ground in front of these tests, and their side (m).
CELLS, CELL = 48, 0.8


def small(**changed: Any) -> BEVDetConfig:
    """``tiny`` on a ground half as long and wide."""
    grid = VoxelGrid((-REACH, -REACH, -10.0, REACH, REACH, 10.0), (CELL, CELL, 20.0))
    return tiny(**{"head": small_head(), "grid": grid, **changed})


SMALL = {name: getattr(small(), name) for name in (
    "classes", "trunk", "neck_channels", "depth_channels", "depth_layers", "context_channels", "grid", "bev_channels",
    "bev_layers", "bev_neck_channels")}  # fmt: skip
CONFIGS = {
    "depth network": small(),
    "lift and splat": small(view="lss"),
    "two frames": small(frames=2),
    "past at rest": small(frames=3, past_norm="eval", moved_by="middle"),
    "fine stages": small(bev_strides=(1, 2, 2)),
    "normed neck": small(bev_neck_norm=True, view="lss", frames=2),
    "true depth": small(input="rgb+gt_depth"),
    "adapted": small(frames=2, adapted_channels=40),
    "two stages": small(bev_channels=(16, 24), bev_layers=(1, 2), bev_strides=(2, 2), view="lss"),
    "released": BEVDetConfig.styled("released", view="bevdepth", head=small_head(), **SMALL),
    "intended": BEVDetConfig.styled("intended", view="bevdepth", head=small_head(), **SMALL),
}


def build(config: BEVDetConfig, seed: int = 0) -> BEVDet:
    torch.manual_seed(seed)
    return BEVDet(config)


# ---------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(("name", "config"), [("one frame", BEVDetConfig()), ("two frames", bevdepth4d())])
def test_published_form(name: str, config: BEVDetConfig) -> None:
    """The maps and widths of bevdet-r50 and bevdepth4d-r50: 128 @ 64, 256 @ 32, 512 @ 16, 256 @ 128 cells."""
    with torch.device("meta"):
        model = BEVDet(config)
    stages = {"bev_stage1": 128, "bev_stage2": 256, "bev_stage3": 512}
    assert model.tap_channels == {"bev": 64 * config.frames, **stages, "bev_neck": 256}
    extent = (-51.2, -51.2, 51.2, 51.2)
    cells = {"bev": 0.8, "bev_stage1": 1.6, "bev_stage2": 3.2, "bev_stage3": 6.4, "bev_neck": 0.8}
    assert model.geometries == {tap: BevGeometry(extent, cell, "ego", ("y", "x")) for tap, cell in cells.items()}
    assert config.bins.depth(torch.tensor([0, 58])).tolist() == [1, 59]
    widths = (64 * config.frames, 128, 256, 512)
    blocks = sum(basic(i, o) + basic(o, o) for i, o in zip(widths, widths[1:], strict=False))
    shortcuts = sum(9 * i * o + o for i, o in zip(widths, widths[1:], strict=False))  # 3x3, with bias
    assert parameters(model.stages) == blocks + shortcuts
    assert (model.of_frame is None) == (config.frames == 1)


def basic(channels_in: int, channels: int) -> int:
    """Parameters of two 3x3 convolutions and their norms."""
    return 9 * channels * (channels_in + channels) + 4 * channels


def test_tiny_is_small() -> None:
    assert parameters(build(tiny(frames=2))) < 1.3e6


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("name", "counts", "bf16"),
    [*((name, counts, False) for name in CONFIGS for counts in ((0,), (0, 3))),
     *((name, (2,), True) for name in ("depth network", "two frames", "normed neck")),
     ("depth network", (200,), False)],
)  # fmt: skip
def test_losses_are_finite_and_trainable(name: str, counts: tuple[int, ...], bf16: bool) -> None:
    config = CONFIGS[name]
    batch, model = scene(*counts, frames=config.frames), build(config).train()
    assert_learns(model, batch, bf16, {"heat", "box"} | ({"depth"} if config.trains_depth else set()))


@pytest.mark.parametrize("view", ["lss", "bevdepth"])
def test_boxes_alone_reach_the_trunk(view: str) -> None:
    """Through lifting, features and depth are taught by the head."""
    batch, model = scene(3), build(small(view=view)).train()
    model.loss(model(batch), batch)["box"].backward()
    for part in (model.backbone.trunk.body.conv1, model.backbone.view.depthnet):
        assert part.weight.grad.any() and part.weight.grad.isfinite().all()


def test_tiny_learns_in_a_few_steps() -> None:
    batch, model = scene(4), build(small()).train()
    targets = model.encode(batch)
    optimiser, history = torch.optim.AdamW(model.parameters(), lr=2e-3), []
    for _ in range(12):
        losses = model.loss(model(batch), batch, targets)
        optimiser.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        optimiser.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    for name, share in {"heat": 0.7, "box": 0.5, "depth": 0.95}.items():
        assert history[-1][name] < share * history[0][name], name
    with torch.no_grad():
        score = model(batch).predictions["heatmap"].sigmoid()
    heat = targets.centres.heatmap
    assert score[heat == 1].mean() > 2 * score[heat == 0].mean()


@pytest.mark.parametrize("name", ["depth network", "two frames", "fine stages", "two stages"])
def test_taps_lie_on_the_ground(name: str) -> None:
    config = CONFIGS[name]
    outputs = build(config)(scene(1, 2, frames=config.frames))
    expected, stride = {"bev": 1}, 1
    for i, step in enumerate(config.bev_strides, start=1):
        stride *= step
        expected[f"bev_stage{i}"] = stride
    expected["bev_neck"] = 1
    assert list(outputs.features) == list(expected)
    for tap, stride in expected.items():
        found = outputs.features[tap]
        assert found.geometry == BevGeometry((-REACH, -REACH, REACH, REACH), CELL * stride, "ego", ("y", "x"))
        assert found.tensor.shape[-2:] == (CELLS // stride, CELLS // stride)
        assert "stage" not in tap or found.tensor.min() >= 0
    bins = config.bins.count
    assert outputs.predictions["depth"].shape == (12, bins, CANVAS[1] // STRIDE, CANVAS[0] // STRIDE)


@pytest.mark.parametrize("canvas", [(16, 16), (80, 48), (128, 96)])
def test_any_multiple_of_the_stride(canvas: tuple[int, int]) -> None:
    trunk = ResNetConfig("bottleneck", (1, 1, 1, 1), (8, 8, 8, 8))
    outputs = build(small(trunk=trunk, depth_channels=8)).train()(scene(1, canvas=canvas))
    assert outputs.predictions["depth"].shape[-2:] == (canvas[1] // STRIDE, canvas[0] // STRIDE)


def test_a_sample_is_seen_alike_in_any_batch() -> None:
    model, batch = build(small(frames=2)).eval(), scene(2, 3, frames=2)
    with torch.no_grad():
        together, alone = model(batch), model(one_of(batch, 1))
    for name in ("heatmap", "box"):
        torch.testing.assert_close(together.predictions[name][1:], alone.predictions[name], rtol=1e-3, atol=1e-3)


def test_terms_follow_settings_and_batch() -> None:
    batch = scene(2, 2)
    cases = {
        ("heat", "box", "depth"): (small(), batch),
        ("heat", "box"): (small(), replace(batch, depth=None)),
        ("depth",): (small(), replace(batch, objects=None)),
        (): (small(view="lss"), replace(batch, objects=None)),
    }
    for names, (config, seen) in cases.items():
        model = build(config)
        assert tuple(model.loss(model(seen), seen)) == names
    assert BEVDet.also_trained_on(small()) == {"depth"}
    assert BEVDet.also_trained_on(small(depth_weight=0.0)) == BEVDet.also_trained_on(small(view="lss")) == set()


def test_depth_and_labels_are_for_training_only() -> None:
    batch, model = scene(2, frames=2), build(small(frames=2)).eval()
    with torch.no_grad():
        assert_same(model(batch), model(replace(batch, depth=None, objects=None)))


# ---------------------------------------------------------------------------------------------------------------- depth


def test_a_point_labels_the_cell_nearest_to_it_or_its_block() -> None:
    """Depth 10.5 m at one pixel; the nearer of two is taken, and one out of range hides nothing."""
    batch, (row, column) = (
        scene(1),
        (20, 26),
    )  # 26 / 16 rounds to 2, the block is 1; 20 / 16 rounds to 1, the block is 1
    depth = torch.zeros_like(batch.depth)
    depth[0, 3, row, column], depth[0, 3, row, column + 1], depth[0, 3, row, column + 2] = 10.5, 30.0, 0.5
    for cells, expected in (("nearest", (1, 2)), ("block", (1, 1))):
        bins = build(small(depth_cells=cells)).encode(replace(batch, depth=depth)).depth_bins
        labelled = bins < 59
        assert labelled.nonzero().tolist() == [[0, 3, *expected]] and bins[labelled].tolist() == [9]


def test_pixels_that_round_beyond_the_last_cell_are_dropped() -> None:
    batch = scene(1)
    depth = torch.zeros_like(batch.depth)
    depth[..., -STRIDE // 2 :, :], depth[..., :, -STRIDE // 2 :] = 20.0, 20.0
    dropped, kept = (build(small(depth_cells=c)).encode(replace(batch, depth=depth)) for c in ("nearest", "block"))
    assert not (dropped.depth_bins < 59).any() and (kept.depth_bins < 59).any()


def test_depth_losses() -> None:
    """The mean over all bins of all cells, of sigmoids; BEVDepth's own is another setting."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 3, 4, generator=generator, requires_grad=True)
    target = torch.randint(0, 6, (2, 3, 4), generator=generator)  # 5: none
    expected = torch.zeros(())
    for n, row, column in (target < 5).nonzero().tolist():
        p, hot = logits[n, :, row, column].sigmoid(), torch.eye(5)[target[n, row, column]]
        expected = expected - (hot * p.log() + (1 - hot) * (1 - p).log()).sum()
    loss = mean_depth_loss(logits, target)
    torch.testing.assert_close(loss, expected / logits.numel())
    empty = mean_depth_loss(logits, torch.full_like(target, 5))
    (gradient,) = torch.autograd.grad(empty, logits)
    assert empty == 0 and not gradient.any()

    batch = scene(2)
    for mean, of in (("all", mean_depth_loss), ("labelled", depth_loss)):
        model = build(small(depth_mean=mean, depth_weight=7.0))
        targets, outputs = model.encode(batch), model(batch)
        own = of(outputs.predictions["depth"], targets.depth_bins.flatten(0, 1))
        torch.testing.assert_close(model.loss(outputs, batch, targets)["depth"], 7 * own)


def test_depth_log_scale() -> None:
    """As BEVDepth's: what is seen has a scale, the rest means nothing."""
    batch, model = scene(40, 3), build(small()).eval()
    with torch.no_grad():
        outputs = model(batch)
    targets = model.encode(batch)
    scales, seen = model.depth_log_scale(outputs, batch, targets), targets.seen_at != UNSEEN
    assert seen.any() and not scales[~seen].any() and scales[seen].all() and scales.isfinite().all()


def test_a_depth_that_nothing_supervises_has_no_uncertainty() -> None:
    batch, model = scene(1), build(small(view="lss"))
    with pytest.raises(NotImplementedError, match="view 'lss' predicts a depth that nothing supervises"):
        model.depth_log_scale(model(batch), batch, model.encode(batch))


def test_true_depth_lifts() -> None:
    """One point at 10.5 m: features land about as far from the vehicle, and nowhere without it."""
    batch, model = scene(1), build(small(input="rgb+gt_depth")).eval()
    depth = torch.zeros_like(batch.depth)
    with torch.no_grad():
        assert not model(replace(batch, depth=depth)).features["bev"].tensor.any()
        depth[0, :, 32, 48] = 10.5
        seen = model(replace(batch, depth=depth))
    assert "depth" not in seen.predictions
    row, column = seen.features["bev"].tensor[0].abs().sum(0).nonzero().unbind(1)
    away = torch.hypot((row + 0.5) * CELL - REACH, (column + 0.5) * CELL - REACH)
    assert len(away) == batch.depth.shape[1] and (away - 10.5).abs().max() < 2.5
    with pytest.raises(UserError, match="needs depth images"):
        model(replace(batch, depth=None))
    with pytest.raises(ValueError, match="key frame only"):
        build(small(input="rgb+gt_depth", frames=2))


# --------------------------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("past_norm", ["train", "eval"])
def test_earlier_frames_get_no_gradient(past_norm: str) -> None:
    batch, model = scene(1, frames=2), build(small(frames=2, past_norm=past_norm)).train()
    bev = model(batch).features["bev"].tensor
    half = bev.shape[1] // 2
    (bev[:, half:].square().sum() + 0 * bev[:, :half].sum()).backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("past_norm", "updates"), [("train", 3), ("eval", 1)])
def test_norms_while_earlier_frames_pass(past_norm: str, updates: int) -> None:
    model = build(small(frames=3, past_norm=past_norm)).train()
    model(scene(1, frames=3))
    assert model.backbone.view.se.fc[0].num_batches_tracked == updates
    assert model.of_frame.layers[0][0].bn1.num_batches_tracked == updates
    assert model.stages.layers[0][0].bn1.num_batches_tracked == 1 and all(m.training for m in model.modules())


def with_past(batch: SurroundBatch, motion: Tensor) -> SurroundBatch:
    """The key frame twice; the earlier time the vehicle stood where ``motion`` (4, 4) leads from its place of today."""
    images, intrinsics, poses = batch.images[:, :1], batch.intrinsics[:, :1], batch.camera_to_ego[:, :1]
    return replace(
        batch, images=torch.cat((images, images), dim=1), intrinsics=torch.cat((intrinsics, intrinsics), dim=1),
        camera_to_ego=torch.cat((poses, motion @ poses), dim=1),
    )  # fmt: skip


def test_a_vehicle_that_stands_sees_the_same_map_twice() -> None:
    batch, model = scene(2), build(small(frames=2)).eval()
    with torch.no_grad():
        key, past = model(with_past(batch, torch.eye(4).double())).features["bev"].tensor.chunk(2, dim=1)
    torch.testing.assert_close(past, key, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("moved_by", ["corner", "middle"])
def test_an_earlier_map_is_moved_with_the_vehicle(moved_by: str) -> None:
    """The vehicle stood 3 cells behind and 2 to the right: what it saw then lies as much behind and to the right."""
    batch, model = scene(1), build(small(frames=2, moved_by=moved_by)).eval()
    motion = torch.eye(4).double()
    motion[:2, 3] = torch.tensor([-3 * CELL, -2 * CELL])
    with torch.no_grad():
        key, past = model(with_past(batch, motion)).features["bev"].tensor.chunk(2, dim=1)
    torch.testing.assert_close(past[..., :-2, :-3], key[..., 2:, 3:], rtol=1e-3, atol=1e-3)
    assert not past[..., -1, :].any() and not past[..., -1].any() and key[..., -1].any()


@pytest.mark.parametrize("point", ["corner", "middle"])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_about_what_stands_for_cells(point: str, turns: int) -> None:
    """About the ground's middle the middles of cells come to lie on middles; corners on corners, one cell aside."""
    generator = torch.Generator().manual_seed(0)
    bev, side = torch.randn(2, 3, 6, 6, generator=generator), 0.5
    angle = turns * math.pi / 2
    motion = torch.eye(3).double().repeat(2, 1, 1)
    motion[:, :2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    moved = shift_map(bev, motion, (-1.5, -1.5), side, point)  # pyright: ignore[reportArgumentType]
    # What lay at the turned place: rows run along y, columns along x.
    turned = torch.rot90(bev, turns, (2, 3))
    if point == "middle":
        torch.testing.assert_close(moved, turned, rtol=1e-5, atol=1e-5)
    else:
        inner = torch.rot90(bev[..., 1:, 1:], turns, (2, 3))
        torch.testing.assert_close(moved[..., 1:, 1:], inner, rtol=1e-5, atol=1e-5)


def test_motion_leaves_height_out() -> None:
    """Of a vehicle that moved and nodded: what a turn about the vertical axis and a way on the ground say."""
    before, now = torch.eye(4).double()[None], torch.eye(4).double()[None].clone()
    now[0, :3, 3] = torch.tensor([2.0, -1.0, 5.0])
    torch.testing.assert_close(
        planar_motion(now, before)[0], torch.tensor([[1.0, 0, 2], [0, 1, -1], [0, 0, 1]]).double()
    )


def test_augmented_ground_moves_alike() -> None:
    """On a ground that is turned and mirrored as a whole, an earlier map moves with it."""
    batch, model = scene(1), build(small(frames=2, moved_by="middle", rounding="floor")).eval()
    model.backbone.view.se.fc[0].forward = torch.zeros_like  # nothing told of the camera
    model.of_frame = None  # a network that treats directions alike
    motion, affine, mirror = (torch.eye(4).double() for _ in range(3))
    motion[:2, 3], mirror[1, 1] = torch.tensor([-2.3, 0.9]), -1
    affine[:2, 3] = torch.tensor([0.137, 0.291])  # so that no point lies on the edge of a cell
    batch = with_past(batch, motion)
    with torch.no_grad():
        plain, mirrored = (
            model(replace(batch, bev_affine=m[None])).features["bev"].tensor for m in (affine, mirror @ affine)
        )
    torch.testing.assert_close(mirrored.flip(-2), plain, rtol=1e-4, atol=1e-4)
    assert plain.chunk(2, dim=1)[1].any()


# --------------------------------------------------------------------------------------------------------------- layers


def test_neck_without_raising() -> None:
    neck = TwoLevelNeck(3, 5, 7, 4, last_up=False)
    assert neck(torch.randn(1, 3, 8, 8), torch.randn(1, 5, 2, 2)).shape == (1, 7, 8, 8)
    with pytest.raises(ValueError, match="last_norm follows"):
        TwoLevelNeck(3, 5, 7, 4, last_up=False, last_norm=True)


def test_stages_shrink_by_their_strides() -> None:
    stages = ResidualStages(3, (4, 5, 6), (1, 2, 1), (1, 2, 4))
    shapes = [tuple(m.shape) for m in stages(torch.randn(1, 3, 16, 24))]
    assert shapes == [(1, 4, 16, 24), (1, 5, 8, 12), (1, 6, 2, 3)]


# ------------------------------------------------------------------------------------------------------------- settings


BAD_BATCHES: dict[str, tuple[BEVDetConfig, Callable[[SurroundBatch], SurroundBatch], str]] = {
    "no images": (small(), lambda b: replace(b, images=None), "bevdet looks at images"),
    "frames": (small(frames=3), lambda b: b, "bevdet is set to 3 frames, the data set gives 1"),
    "size": (small(), lambda b: replace(b, images=b.images[..., :90], depth=None), "16 px, not 90 x 48 px"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_batches_that_lack_something(name: str) -> None:
    config, change, message = BAD_BATCHES[name]
    with pytest.raises(UserError, match=message):
        build(config)(change(scene(1)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"head": small_head(cell=1.6)}, "cells of 1.6 m"), ({"classes": ("car",)}, "the data set only car"),
     ({"bev_strides": (4, 2, 2)}, "begin with 4, expected 1 or 2"), ({"bev_strides": (2, 2, 5)}, "no multiple"),
     ({"bev_strides": (1, 2, 2), "bev_neck_norm": True}, "last_norm")],
    ids=["cells", "classes", "first stride", "grid", "norm"],
)  # fmt: skip
def test_settings_that_do_not_go_together(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BEVDet(small(**changed))


@pytest.mark.parametrize("changed", [{"bev_layers": (1, 1)}, {"bev_channels": (8,), "bev_layers": (1,),
                                                              "bev_strides": (2,)}])  # fmt: skip
def test_stages_need_one_number_each(changed: dict) -> None:
    with pytest.raises(UserError, match="one number for each of two stages or more"):
        small(**changed)


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_survive_as_plain_data(name: str) -> None:
    assert from_plain(BEVDetConfig, to_plain(CONFIGS[name]), "card") == CONFIGS[name]


def test_styles() -> None:
    released, intended = (BEVDetConfig.styled(style) for style in ("released", "intended"))
    rows = ("channel_order", "positions", "rounding", "past_norm", "moved_by", "depth_cells", "depth_mean",
            "depth_weight", "head")  # fmt: skip
    assert all(getattr(released, row) != getattr(intended, row) for row in rows)
    assert replace(released, **{row: getattr(intended, row) for row in rows}) == intended
    assert BEVDetConfig.styled("released", past_norm="eval", bins=DepthBins(1.0, 60.0, 118, "UD")).bins.count == 118
