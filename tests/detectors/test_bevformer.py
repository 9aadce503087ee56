"""BEVFormer as a whole: sizes, taps, motion between frames, what each moment and camera counts for, and learning."""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from drives import assert_learns
from test_bevdepth import DIRECTIONS, REACH, assert_same, cameras, one_of, parameters, scene
from torch import Tensor

from distill3d.boxes import wrap_angle
from distill3d.data.batching import picked
from distill3d.data.nuscenes.dataset import NuScenesConfig, NuScenesDataset
from distill3d.data.surround import SurroundBatch, collate_surround
from distill3d.detectors import build_detector
from distill3d.detectors.base import BevGeometry, Outputs
from distill3d.detectors.bevdepth import BEVDepthConfig
from distill3d.detectors.bevformer import (
    CODE,
    DRIVEN,
    HEADING,
    STYLES,
    TURNED,
    BEVFormer,
    BEVFormerConfig,
    box_targets,
    ground_shift,
    ground_to_image,
    in_metres,
    match,
    pillars,
    released_base,
    released_small,
    released_tiny,
    seen_points,
    tiny,
    turned,
    vehicle_signals,
    views_of,
)
from distill3d.errors import UserError
from distill3d.layers.ground.voxel_pooling import camera_pixels
from distill3d.layers.heads.matching import UNMATCHED
from distill3d.layers.image.deformable_attention import DeformableAttention
from distill3d.layers.image.resnet import ResNetConfig
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.settings import from_plain, to_plain
from distill3d.train.learnable import nuscenes_counts

CANVAS = (96, 64)
CELL = 3.2
CELLS = round(2 * REACH / CELL)


def small(**changed: Any) -> BEVFormerConfig:
    """``tiny`` on a ground half as long and wide, with fewer channels."""
    fewer = {
        "trunk": ResNetConfig("basic", (1, 1, 1, 1), (8, 8, 16, 16)), "channels": 16, "feed_forward": 32,
        "attention_heads": 2, "encoder_layers": 2, "queries": 12,
        "grid": VoxelGrid((-REACH, -REACH, -5.0, REACH, REACH, 3.0), (CELL, CELL, 8.0)),
    }  # fmt: skip
    return tiny(**{**fewer, **changed})


CONFIGS = {
    "plain": small(),
    "three frames": small(frames=3),
    "four levels": small(strides=(8, 16, 32), extra_levels=1),
    "aligned": small(spatial_alignment=True, fusion="ffm", frames=2),
    "let in": small(spatial_alignment=True, fusion="skip"),
    "nothing told": small(told="nothing", cameras=0, frames=2),
    "released": BEVFormerConfig.styled("released", **{f.name: getattr(small(), f.name) for f in fields(small())
                                                      if f.name not in STYLES["released"]}),
}  # fmt: skip


def build(config: BEVFormerConfig, seed: int = 0) -> BEVFormer:
    torch.manual_seed(seed)
    return BEVFormer(config)


def stirred(config: BEVFormerConfig) -> BEVFormer:
    """In evaluation, as if trained: where its queries look depends on what they hold, which it does not at first."""
    model = build(config).eval()
    for module in model.modules():
        if isinstance(module, DeformableAttention):
            torch.nn.init.normal_(module.offset.weight, std=0.3)
            torch.nn.init.normal_(module.weight.weight, std=0.3)
    return model


def moments(*counts: int, frames: int = 1, canvas: tuple[int, int] = CANVAS, seed: int = 0) -> SurroundBatch:
    return scene(*counts, frames=frames, canvas=canvas, seed=seed)


def turn_by(degrees: float) -> Tensor:
    angle = math.radians(degrees)
    turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return torch.tensor(turn, dtype=torch.float64)


def driven(batch: SurroundBatch, ahead: float, left: float, degrees: float) -> SurroundBatch:
    """The vehicle moved so, in its own axes, and turned to the left between any two frames."""
    before = torch.eye(4, dtype=torch.float64)  # the vehicle's pose in the frame before, seen from the one behind it
    before[:2, :2] = turn_by(-degrees)
    before[:2, 3] = -torch.tensor([ahead, left], dtype=torch.float64)
    poses, pose = [], torch.eye(4, dtype=torch.float64)
    for _ in range(batch.camera_to_ego.shape[1]):
        poses.append(pose @ cameras())
        pose = pose @ before
    return replace(batch, camera_to_ego=torch.stack(poses).expand_as(batch.camera_to_ego))


# ---------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("make", "cells", "levels", "frames"),
    [(released_tiny, 50, 1, 3), (released_small, 150, 1, 3), (released_base, 200, 4, 4)],
)
def test_sizes_of_the_release(make: Callable[..., BEVFormerConfig], cells: int, levels: int, frames: int) -> None:
    config = make()
    assert config.trunk.pretrained and config.trunk.frozen
    config = replace(config, trunk=replace(config.trunk, pretrained=False))
    with torch.device("meta"):
        model = BEVFormer(config)
    assert (config.size, config.levels, config.frames) == ((cells, cells), levels, frames)
    assert model.encoder.query.weight.shape == (cells * cells, 256) and len(model.decoder) == 6
    assert model.tap_channels == {"bev_neck": 256}
    # the weights of a decoder layer: self-attention, deformable attention, feed-forward net, three norms
    attention, deformable = 4 * (256 * 256 + 256), 2 * (256 * 256 + 256) + 257 * 8 * 4 * 3
    assert parameters(model.decoder[0]) == attention + deformable + 2 * 256 * 512 + 512 + 256 + 3 * 512


def test_tiny_is_small() -> None:
    assert parameters(build(tiny())) < 0.6e6


def test_settings_survive_files() -> None:
    for config in (*CONFIGS.values(), released_base()):
        assert from_plain(BEVFormerConfig, to_plain(config), "here") == config


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"channels": 18}, "heads"), ({"fusion": "ffm"}, "spatial_alignment"),
     ({"image_points": 6}, "pillar_points"), ({"strides": (8, 16)}, "strides"),
     ({"code_weights": (1.0,)}, "code weights"), ({"trunk": ResNetConfig(finest=4)}, "finest"),
     ({"grid": VoxelGrid((-10.0, -10.0, -5.0, 10.0, 10.0, 3.0), (3.0, 3.0, 8.0))}, "whole number")],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        build_detector(small(**changed))


def test_batches_that_do_not_fit_are_refused() -> None:
    model = build(small(frames=2))
    with pytest.raises(UserError, match="2 frames, the data set gives 1"):
        model(moments(1))
    with pytest.raises(UserError, match="multiples of 32 px, not 96 x 48"):
        model(moments(1, frames=2, canvas=(96, 48)))
    with pytest.raises(UserError, match="gives none"):
        model(replace(moments(1, frames=2), images=None))
    with pytest.raises(UserError, match="4 cameras, the data set gives 6"):
        build(small(cameras=4))(moments(1))


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("name", "counts", "bf16"),
    [*((name, (0, 3), False) for name in CONFIGS), ("plain", (0,), False), ("plain", (1,), False),
     ("plain", (200,), False), ("three frames", (2,), True)],
)  # fmt: skip
def test_losses_are_finite_and_trainable(name: str, counts: tuple[int, ...], bf16: bool) -> None:
    config = CONFIGS[name]
    batch, model = moments(*counts, frames=config.frames), build(config).train()
    losses = assert_learns(model, batch, bf16, {"class", "box", "class_0", "box_0"})
    if not any(counts):
        assert losses["box"] == 0 and losses["class"] > 0


def test_predictions_and_taps() -> None:
    model, batch = build(small()), moments(1, 2)
    outputs = model(batch)
    tap = outputs.features["bev_neck"]
    assert tap.geometry == BevGeometry((-REACH, -REACH, REACH, REACH), CELL, "ego", ("y", "x"))
    assert tap.tensor.shape == (2, 16, CELLS, CELLS) and model.tap_channels == {"bev_neck": 16}
    assert {name: tuple(p.shape) for name, p in outputs.predictions.items()} == {
        "logits": (2, 2, 12, 4), "codes": (2, 2, 12, CODE), "references": (2, 2, 12, 3),
    }  # fmt: skip
    places = in_metres(outputs.predictions["references"], model.config.grid)
    torch.testing.assert_close(places[:, 1], outputs.predictions["codes"][:, 0][..., [0, 1, 4]])
    second = picked(outputs.predictions, [1])
    assert torch.equal(second["codes"], outputs.predictions["codes"][1:])
    targets = model.encode(batch)
    torch.testing.assert_close(picked(targets, [1]).code, targets.code[1:], rtol=0, atol=0, equal_nan=True)
    assert model.encode(replace(batch, objects=None)) is None
    assert model.loss(outputs, replace(batch, objects=None)) == {}


def test_the_second_map_is_let_in_from_nothing() -> None:
    """With ``skip`` the decoder sees the ground itself at first; with ``ffm`` what is made of both."""
    batch = moments(1, 2)
    for fusion, same in (("skip", True), ("ffm", False)):
        model = build(small(spatial_alignment=True, fusion=fusion)).eval()
        maps = model(batch).features
        assert set(maps) == set(model.tap_channels) == {"bev", "bev_spatial", "bev_neck"}
        assert {m.geometry for m in maps.values()} == {model.config.geometry}
        assert torch.equal(maps["bev"].tensor, maps["bev_neck"].tensor) == same
        assert maps["bev_spatial"].tensor.min() >= 0


def test_unknown_velocities_are_left_out() -> None:
    """A box whose velocity nobody knows still teaches its place, and its velocity's entries nothing."""
    batch, model = moments(1), build(small())
    assert batch.objects.velocity.isnan().all()
    outputs = model(batch)
    codes = outputs.predictions["codes"]
    codes.retain_grad()
    model.loss(outputs, batch)["box"].backward()
    assert codes.grad[..., :8].any() and not codes.grad[..., 8:].any()


def test_objects_off_the_ground_are_not_trained() -> None:
    objects = moments(3).objects
    centre = objects.centre.clone()
    centre[0, 0, 0] = REACH + 1
    targets = box_targets(replace(objects, centre=centre), small().grid, 4)
    assert targets.mask[0].tolist() == [False, True, True] and not targets.code[0, 0].any()
    logits, codes = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, CODE)
    matched = match(logits, codes, targets)[0, 0]
    assert matched[0] == UNMATCHED and sorted(matched[1:].tolist()) == [0, 1]


def test_decode_undoes_encode() -> None:
    """Also through a turned, mirrored and enlarged ground: boxes come back in the vehicle's frame."""
    batch, model = moments(4, seed=2), build(small())
    targets = model.encode(batch)
    logits = torch.full((1, 1, 4, 4), -9.0)
    logits[0, 0, torch.arange(4), targets.label[0]] = 9.0
    codes = torch.where(targets.code.isnan(), 0, targets.code)[:, None]
    affine = torch.diag(torch.tensor([1.1, -1.1, 1.1, 1.0], dtype=torch.float64))[None]
    for back in (torch.eye(4, dtype=torch.float64)[None], affine):
        (found,) = model.decode(Outputs({}, {"logits": logits, "codes": codes}), replace(batch, bev_affine=back))
        sure = found[found.score > 0.5]
        assert len(sure) == 4
        objects = batch.objects
        centre = objects.centre[0].double() @ back[0, :3, :3].inverse().T
        order = torch.cdist(sure.centre.double(), centre).argmin(1)
        torch.testing.assert_close(sure.centre.double(), centre[order], rtol=0, atol=1e-4)
        torch.testing.assert_close(sure.size, objects.size[0][order] / back[0, 0, 0].float(), rtol=0, atol=1e-4)
        turn = objects.yaw[0][order] * back[0, 1, 1].sign()
        assert wrap_angle(sure.yaw - turn).abs().max() < 1e-4 and torch.equal(sure.label, objects.label[0][order])


def test_what_there_is_to_learn_is_counted(real_data: Path) -> None:
    """On the same ground as much as BEVDepth has."""
    data = NuScenesDataset(
        NuScenesConfig(
            root=real_data / "nuscenes_mini_val_tables", version="v1.0-mini", split="mini_val", images=False,
            in_memory=True,
        )
    )  # fmt: skip
    ours, theirs = (
        {count.name: count for count in nuscenes_counts(config, data)}
        for config in (BEVFormerConfig(), BEVDepthConfig())
    )
    assert ours == theirs and sum(count.left for count in ours.values()) > 0


def test_tiny_overfits_a_moment() -> None:
    batch, model = scene(3, canvas=(96, 64)), build(tiny(dropout=0.0)).train()
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    history = []
    for _ in range(60):
        optimiser.zero_grad()
        losses = model.loss(model(batch), batch)
        loss = torch.stack([*losses.values()]).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35.0)
        optimiser.step()
        history.append({name: value.item() for name, value in losses.items()})
    first, last = history[0], history[-1]
    assert last["box"] < 0.3 * first["box"] and last["class"] < 0.3 * first["class"], (first, last)
    with torch.no_grad():
        outputs = model(batch)
        (found,) = model.decode(outputs, batch)
    best = found[:3]
    assert torch.cdist(batch.objects.centre[0], best.centre).amin(1).max() < 2.0
    assert best.label.sort().values.tolist() == batch.objects.label[0].sort().values.tolist()


# -------------------------------------------------------------------------------------------------- moments and cameras


@pytest.mark.parametrize("name", ["plain", "three frames", "nothing told"])
def test_a_moment_is_seen_alike_in_any_batch(name: str) -> None:
    config = CONFIGS[name]
    model, batch = stirred(config), moments(2, 3, frames=config.frames)
    # each moment's cameras look elsewhere, so that others' cells show
    poses = batch.camera_to_ego.clone()
    poses[1, :, :3] = poses[0, :, 3:]
    batch = replace(batch, camera_to_ego=poses)
    with torch.no_grad():
        together = model(batch)
        for i in range(2):
            alone = model(one_of(batch, i))
            for prediction in ("logits", "codes"):
                ours = together.predictions[prediction][i : i + 1]
                torch.testing.assert_close(ours, alone.predictions[prediction], rtol=1e-3, atol=1e-3)


def test_the_release_mixes_moments_up() -> None:
    """By both of its rows: the first moment is seen as alone, the second is not."""
    batch = moments(1, 1, frames=2)
    poses = batch.camera_to_ego.clone()
    poses[1, :, :3] = poses[0, :, 3:]  # the second moment sees other cells
    batch = replace(batch, camera_to_ego=poses)
    for row in ("history_of", "visible_in"):
        model = stirred(small(frames=2, **{row: STYLES["released"][row]}))
        with torch.no_grad():
            together = model(batch).features["bev_neck"].tensor
            alone = [model(one_of(batch, i)).features["bev_neck"].tensor for i in (0, 1)]
        torch.testing.assert_close(together[:1], alone[0], rtol=1e-4, atol=1e-4)
        assert (together[1:] - alone[1]).abs().max() > 1e-2, row


def test_the_order_of_cameras_does_not_matter() -> None:
    """But for the code of each, which moves with it."""
    batch, order = moments(2, frames=2), torch.tensor([3, 1, 5, 0, 2, 4])
    model = stirred(small(frames=2))
    shuffled = replace(
        batch, images=batch.images[:, :, order], intrinsics=batch.intrinsics[:, :, order],
        camera_to_ego=batch.camera_to_ego[:, :, order], image_affine=batch.image_affine[:, order],
    )  # fmt: skip
    with torch.no_grad():
        before = model(batch).predictions["codes"]
        without = model(shuffled).predictions["codes"]
        model.encoder.camera.weight.copy_(model.encoder.camera.weight[order])
        after = model(shuffled).predictions["codes"]
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
    assert (before - without).abs().max() > 1e-3


def test_mirrored_cameras_and_ground_project_alike() -> None:
    """A mirrored ground with the same images: each of its points falls where the one that it mirrors fell."""
    batch = moments(1)
    mirrored = replace(batch, bev_affine=torch.diag(torch.tensor([1.0, -1, 1, 1], dtype=torch.float64))[None])
    points = in_metres(pillars(small().grid, 4, torch.zeros(())), small().grid)
    size = (CANVAS[1], CANVAS[0])
    ours, seen = seen_points(points, ground_to_image(batch, 0), size)
    theirs, also = seen_points(points * torch.tensor([1.0, -1, 1]), ground_to_image(mirrored, 0), size)
    assert torch.equal(seen, also) and seen.any()
    torch.testing.assert_close(ours[seen], theirs[seen], rtol=1e-4, atol=1e-5)


def test_points_fall_where_cameras_see_them() -> None:
    """As the shared projection says, also in scaled and moved pictures."""
    batch = moments(1)
    affine = torch.eye(4, dtype=torch.float64).repeat(1, 6, 1, 1)
    affine[..., :2, :2] = torch.tensor([[0.8, 0.1], [-0.1, 0.9]])
    affine[..., :2, 3] = torch.tensor([5.0, -3.0])
    batch = replace(batch, image_affine=affine)
    points = in_metres(pillars(small().grid, 3, torch.zeros(())), small().grid)
    shares, seen = seen_points(points, ground_to_image(batch, 0), (CANVAS[1], CANVAS[0]))
    pixels, depth = camera_pixels(
        points.flatten(0, 1)[None], affine, batch.intrinsics[:, 0], batch.camera_to_ego[:, 0], batch.bev_affine
    )
    inside = (depth > 0) & (pixels > 0).all(-1) & (pixels < pixels.new_tensor(CANVAS)).all(-1)
    assert torch.equal(seen.flatten(2), inside) and seen.any()
    expected = (pixels / pixels.new_tensor(CANVAS))[inside]
    torch.testing.assert_close(shares.flatten(2, 3)[inside].double(), expected, rtol=0, atol=1e-4)


def test_cells_that_nobody_sees_cost_nothing() -> None:
    points, visible = torch.zeros(1, 2, 6, 4, 2), torch.zeros(1, 2, 6, 4, dtype=torch.bool)
    visible[0, 0, 2, 1] = visible[0, 1, 2, 0] = visible[0, 0, 4] = True
    views = views_of(points, visible)
    assert views.index[0, 0].tolist() == [2, 4] and views.asked[0].tolist() == [[True, True], [True, False]]
    assert views.cameras[0].tolist() == [1, 1, 2, 1, 1, 1]
    nothing = views_of(points, torch.zeros_like(visible))
    assert not nothing.asked.any() and nothing.index.shape[-1] == 1


# --------------------------------------------------------------------------------------------------------------- motion


@pytest.mark.parametrize(("ahead", "left", "degrees"), [(4.0, 0.0, 0.0), (3.0, 1.0, 30.0), (0.0, -2.0, -90.0)])
def test_motion_follows_from_poses(ahead: float, left: float, degrees: float) -> None:
    """Also on a turned and enlarged ground, in which the vehicle drives farther along other axes."""
    batch = driven(moments(1, 1, frames=3), ahead, left, degrees)
    for turn, scale in ((0.0, 1.0), (25.0, 1.5)):
        affine = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
        affine[:, :2, :2] = scale * turn_by(turn)
        signals = vehicle_signals(replace(batch, bev_affine=affine))
        moved = affine[0, :2, :2] @ torch.tensor([ahead, left], dtype=torch.float64)
        expected = moved / torch.tensor([20.0, 40.0], dtype=torch.float64)
        for frame in (0, 1):
            shift = ground_shift(signals[:, frame], (20.0, 40.0))
            torch.testing.assert_close(shift, expected.expand_as(shift), rtol=0, atol=1e-9)
            assert (signals[:, frame, TURNED] - degrees).abs().max() < 1e-9
        assert not signals[:, 2, DRIVEN].any() and not signals[:, 2, TURNED].any()
        change = wrap_angle(signals[:, 0, HEADING] - signals[:, 1, HEADING]).rad2deg()
        assert (change - degrees).abs().max() < 1e-9


def test_motion_of_real_drives(real_data: Path) -> None:
    """Cameras see the vehicle where its own poses have it, but for the milliseconds between pictures and scan."""
    dataset = NuScenesDataset(
        NuScenesConfig(
            root=real_data / "nuscenes_mini_val_tables", version="v1.0-mini", split="mini_val", past=(1,),
            images=False, in_memory=True, nan_velocity="keep",
        )
    )  # fmt: skip
    samples = [dataset.get(i) for i in range(len(dataset))]
    signals = vehicle_signals(collate_surround(samples))
    pose = torch.stack([s.ego_to_global for s in samples])
    heading = torch.atan2(pose[:, 1, 0], pose[:, 0, 0])
    torch.testing.assert_close(signals[:, 0, HEADING], heading)
    # samples stand in the order of their scenes; a scene's first repeats itself and has not moved
    follows = signals[1:, 0, DRIVEN].norm(dim=-1) > 0.5
    assert follows.sum() > 40
    way = (pose[1:] - pose[:-1])[follows, :2, 3]
    torch.testing.assert_close(signals[1:, 0, DRIVEN][follows], way, rtol=0, atol=0.02)
    change = wrap_angle(heading[1:] - heading[:-1])[follows].rad2deg()
    torch.testing.assert_close(signals[1:, 0, TURNED][follows], change, rtol=0, atol=0.1)


def test_history_lies_where_things_stood_before() -> None:
    """A post that stands still is read, turned and shifted, from the cell where it stood in the map before."""
    size, degrees, ahead, left = (40, 40), 90.0, 6.0, -2.0
    post = torch.tensor([10.0, 4.0])  # m in the present frame; cells of 1 m, the vehicle in the middle
    before = turn_by(degrees).float() @ (
        post + torch.tensor([ahead, left])
    )  # the present axes as the vehicle had them before its turn
    maps = torch.zeros(1, 1, *size)
    column, row = (before + 20).floor().long().tolist()
    maps[0, 0, row, column] = 1
    seen = turned(maps, torch.tensor([degrees]), (20.0, 20.0))
    column, row = (post + torch.tensor([ahead, left]) + 20).floor().long().tolist()
    near = seen[0, 0, row - 1 : row + 2, column - 1 : column + 2]
    assert near.sum() == 1 and seen.sum() == 1


def test_the_encoder_is_given_the_map_before_turned_and_where_it_has_moved() -> None:
    model, given, before = build(small(frames=2)).eval(), [], []
    model.encoder.register_forward_hook(lambda module, inputs, out: before.append(out))
    for layer in model.encoder.layers:
        layer.temporal.register_forward_pre_hook(lambda module, inputs: given.append(inputs))
    model(driven(moments(1, frames=2), 4.0, -1.0, 90.0))
    assert [inputs[2] is None for inputs in given] == [True, True, False, False]  # first the frame before
    (query, _, history, reference, _), (_, _, later, _, _) = given[2:]
    shift = torch.tensor([4.0, -1.0]) / (2 * REACH)
    torch.testing.assert_close(reference[0, :, 0] - reference[0, :, 1], shift.expand(CELLS**2, -1), rtol=0, atol=1e-6)
    assert torch.equal(history[:, 1], query) and torch.equal(later, history)
    assert [out.requires_grad for out in before] == [False, True]
    torch.testing.assert_close(history[:, 0], model.encoder.turned(before[0], torch.tensor([90.0]).double()))


def test_a_turn_moves_rows_to_columns() -> None:
    """A quarter turn to the left: what was ahead (right in the map) is now to the right (low rows)."""
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    ours = turned(maps, torch.tensor([90.0]), (2.0, 2.0))[0, 0]
    torch.testing.assert_close(ours, torch.rot90(maps[0, 0], 1, (0, 1)))


def test_maps_in_half_precision_turn_as_exactly() -> None:
    maps = torch.arange(200.0).expand(1, 1, 200, -1)
    degrees, centre = torch.tensor([7.3], dtype=torch.float64), (100.0, 100.0)
    with torch.autocast("cpu", torch.bfloat16):
        halves = turned(maps.bfloat16(), degrees, centre)
    assert halves.dtype == torch.bfloat16 and torch.equal(halves.float(), turned(maps, degrees, centre))


def test_earlier_frames_get_no_gradient_and_no_dropout() -> None:
    """They pass as in evaluation, leave batch norms alone, and everything is in its own mode behind them."""
    model = build(small(frames=3)).train()
    modes = {name: m.training for name, m in model.named_modules()}
    batch = moments(1, frames=3)
    images = batch.images.clone().requires_grad_()
    torch.manual_seed(0)
    model(replace(batch, images=images)).features["bev_neck"].tensor.sum().backward()
    assert images.grad[:, 0].any() and not images.grad[:, 1:].any()
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert model.backbone.body.bn1.num_batches_tracked == 1


def test_earlier_frames_are_seen() -> None:
    model, batch = build(small(frames=2)).eval(), moments(1, frames=2)
    other = batch.images.clone()
    other[:, 1] = 1 - other[:, 1]
    with torch.no_grad():
        plain, changed, moved = (
            model(b).features["bev_neck"].tensor
            for b in (batch, replace(batch, images=other), driven(batch, 6.0, 0.0, 20.0))
        )
    assert (plain - changed).abs().max() > 1e-3 and (plain - moved).abs().max() > 1e-3


def test_labels_are_for_training_only() -> None:
    batch, model = moments(2), build(small()).eval()
    with torch.no_grad():
        assert_same(model(batch), model(replace(batch, depth=None, objects=None)))


def test_six_cameras_stand_in_these_tests() -> None:
    assert small().cameras == len(DIRECTIONS)
