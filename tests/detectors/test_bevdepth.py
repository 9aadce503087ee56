"""BEVDepth as a whole: published sizes, taps, what is trained by what, frames, and what the assistant sees."""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from drives import assert_learns
from torch import Tensor

from distill3d.boxes import Boxes3D
from distill3d.camera import DepthBins
from distill3d.data.augment.surround import BevAugmentConfig, ImageAugmentConfig
from distill3d.data.batching import picked
from distill3d.data.nuscenes.dataset import NuScenesConfig, NuScenesDataset, SweepConfig
from distill3d.data.surround import SurroundBatch, SurroundObjects, SurroundSample, collate_surround
from distill3d.detectors.base import BevGeometry, Outputs
from distill3d.detectors.bevdepth import (
    STRIDE,
    UNSEEN,
    BEVDepth,
    BEVDepthConfig,
    best_view,
    tiny,
)
from distill3d.errors import UserError
from distill3d.layers.ground.camera_lift import lifted_cells, normalised_frames
from distill3d.layers.ground.simulated_lift import SimulatedBranchConfig
from distill3d.layers.ground.voxel_pooling import camera_pixels, frustum, frustum_points, ground_cells
from distill3d.layers.heads.centre_head import CentreHeadConfig, CentreTargets, tiny_head
from distill3d.layers.image.depth_net import depth_log_scales
from distill3d.layers.image.resnet import ResNetConfig
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.settings import from_plain, to_plain

#: Where six cameras look (degrees to the left of straight ahead), in the order of nuScenes' networks.
DIRECTIONS = (55, 0, -55, 110, 180, -110)
#: The canvas (width, height), and the cameras' focal length, px.
CANVAS, FOCAL = (96, 48), 60.0
#: From a camera that looks ahead (x right, y down, z forward) to the vehicle (x forward, y left, z up).
AHEAD = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)

#: The ground in front of these tests: 48 x 48 cells.
REACH = 19.2


def small_head(**changed: Any) -> CentreHeadConfig:
    return tiny_head(**{"extent": (-REACH, -REACH, REACH, REACH), **changed})


def small(**changed: Any) -> BEVDepthConfig:
    """``tiny`` on a ground half as long and wide."""
    grid = VoxelGrid((-REACH, -REACH, -5.0, REACH, REACH, 3.0), (0.8, 0.8, 8.0))
    return tiny(**{"head": small_head(), "grid": grid, **changed})


CONFIGS = {
    "plain": small(),
    "assistant": small(input="rgb+gt_depth"),
    "two frames": small(frames=2),
    "past at rest": small(frames=3, past_norm="eval", past_camera="own"),
    "aggregated": small(depth_aggregation=True, context_channels=8, bins=DepthBins(2.0, 58.0, 14, "UD")),
    "frozen stem": small(frozen_stem=True),
    "released": BEVDepthConfig.styled("released", **{f.name: getattr(small(), f.name) for f in fields(small())
                                                     if f.name not in ("positions", "rounding", "channel_order")}),
    "centres": small(positions="centres", rounding="floor"),
    "collapsed assistant": small(input="rgb+gt_depth", bev_channels=10),
    "two branches": small(simulated=SimulatedBranchConfig(points=2, fused_channels=10)),
    "two branches, convolutions": small(simulated=SimulatedBranchConfig("convolutions", views="shared")),
    "two branches, released": small(input="rgb+gt_depth", simulated=SimulatedBranchConfig.styled("released", points=2)),
    "aligned": small(bev_channels=10, spatial_alignment=True, fusion="ffm", frames=2),
}  # fmt: skip


def cameras(forward: float = 0.0) -> Tensor:
    """Each camera's pose in a vehicle that stands ``forward`` m ahead of the key frame's."""
    poses = []
    for degrees in DIRECTIONS:
        angle, pose = math.radians(degrees), torch.eye(4, dtype=torch.float64)
        pose[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        pose[:3, 3] = torch.tensor([forward, 0.0, 1.5])
        poses.append(pose @ AHEAD)
    return torch.stack(poses)


def objects(count: int, generator: torch.Generator) -> SurroundObjects:
    """Objects around the vehicle, of the first four classes in turn; every other has no known velocity."""
    centre = (torch.rand(count, 3, generator=generator) - 0.5) * torch.tensor([2 * REACH, 2 * REACH, 1.0])
    size = 1 + 3 * torch.rand(count, 3, generator=generator)
    velocity = torch.randn(count, 2, generator=generator)
    velocity[::2] = torch.nan
    yaw = 6 * torch.rand(count, generator=generator) - 3
    label = torch.arange(count) % 4
    return SurroundObjects(Boxes3D(centre, size, yaw, label, "ego", velocity=velocity), torch.ones_like(label))


def scene(*counts: int, frames: int = 1, canvas: tuple[int, int] = CANVAS, seed: int = 0) -> SurroundBatch:
    """Noise as pictures, a tenth of the pixels with depth, and that many objects in each sample."""
    generator = torch.Generator().manual_seed(seed)
    width, height = canvas
    intrinsics = torch.eye(4, dtype=torch.float64)
    intrinsics[0, 0] = intrinsics[1, 1] = FOCAL
    intrinsics[:2, 2] = torch.tensor([width / 2, height / 2])
    n, eye = len(DIRECTIONS), torch.eye(4, dtype=torch.float64)
    samples = []
    for i, count in enumerate(counts):
        depth = 70 * torch.rand(n, height, width, generator=generator)
        samples.append(
            SurroundSample(
                frame_id=str(i), intrinsics=intrinsics.expand(frames, n, 4, 4),
                camera_to_ego=torch.stack([cameras(-2.0 * s) for s in range(frames)]),
                image_affine=eye.expand(n, 4, 4), bev_affine=eye, ego_to_global=eye,
                images=torch.rand(frames, n, 3, height, width, generator=generator),
                objects=objects(count, generator),
                depth=torch.where(torch.rand(depth.shape, generator=generator) < 0.1, depth, 0),
            )
        )  # fmt: skip
    return collate_surround(samples)


def build(config: BEVDepthConfig, seed: int = 0) -> BEVDepth:
    torch.manual_seed(seed)
    return BEVDepth(config)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---------------------------------------------------------------------------------------------------------------- sizes

#: Frames and context channels of released configurations; parameters of the network on the ground and of its neck.
PUBLISHED = {
    "one frame": (1, 80, 17_944_000, 2_995_712), "two key frames": (2, 80, 18_571_200, 3_000_832),
    "labeldistill, two past": (3, 150, 67_476_000, 5_635_712),
    "labeldistill, four past": (5, 150, 71_886_000, 5_654_912),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    frames, context, trunk, neck = PUBLISHED[name]
    with torch.device("meta"):
        model = BEVDepth(BEVDepthConfig(frames=frames, context_channels=context))
    assert (parameters(model.trunk), parameters(model.neck), parameters(model.head)) == (trunk, neck, 1_519_686)
    stages = {f"bev_stage{i + 1}": 2 * context * 2**i for i in range(3)}
    assert model.tap_channels == {"bev": frames * context, **stages, "bev_neck": 256}


def test_tiny_is_small() -> None:
    assert parameters(build(tiny())) < 1.6e6


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("name", "counts", "bf16"),
    [*((name, counts, False) for name in CONFIGS for counts in ((0,), (0, 3))),
     *((name, (2,), True) for name in ("plain", "two frames", "aggregated")), ("plain", (200,), False)],
)  # fmt: skip
def test_losses_are_finite_and_trainable(name: str, counts: tuple[int, ...], bf16: bool) -> None:
    config = CONFIGS[name]
    batch, model = scene(*counts, frames=config.frames), build(config).train()
    stem = ("backbone.img_backbone.body.conv1.", "backbone.img_backbone.body.bn1.") if config.frozen_stem else ("-",)
    assert_learns(model, batch, bf16, {"heat", "box"} | ({"depth"} if config.trains_depth else set()), stem)


def test_taps_lie_on_the_ground() -> None:
    outputs = build(small())(scene(1, 2))
    extent = (-REACH, -REACH, REACH, REACH)
    stages = (("bev_stage1", 1.6, 24), ("bev_stage2", 3.2, 12), ("bev_stage3", 6.4, 6))
    assert len(outputs.features) == 2 + len(stages)
    for tap, cell, cells in (("bev", 0.8, 48), *stages, ("bev_neck", 0.8, 48)):
        found = outputs.features[tap]
        assert found.geometry == BevGeometry(extent, cell, "ego", ("y", "x"))
        assert found.tensor.shape[-2:] == (cells, cells)
    assert outputs.predictions["depth"].shape == (12, 56, CANVAS[1] // STRIDE, CANVAS[0] // STRIDE)


@pytest.mark.parametrize("canvas", [(16, 16), (80, 48), (64, 32), (128, 96)])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_any_multiple_of_the_stride(canvas: tuple[int, int], block: str) -> None:
    trunk = ResNetConfig(block, (1, 1, 1, 1), (8, 8, 8, 8), finest=4)
    outputs = build(small(trunk=trunk, depth_channels=16)).train()(scene(1, canvas=canvas))
    assert outputs.predictions["depth"].shape[-2:] == (canvas[1] // STRIDE, canvas[0] // STRIDE)


def test_a_sample_is_seen_alike_in_any_batch() -> None:
    model = build(small()).eval()
    batch = scene(2, 3)
    with torch.no_grad():
        together = model(batch)
        alone = model(one_of(batch, 1))
    for name in ("heatmap", "box"):
        torch.testing.assert_close(together.predictions[name][1:], alone.predictions[name], rtol=1e-3, atol=1e-3)


def one_of(batch: SurroundBatch, i: int) -> SurroundBatch:
    one = slice(i, i + 1)
    told = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name not in ("objects", "points")}
    kept = {name: None if value is None else value[one] for name, value in told.items()}
    return replace(batch, **kept, objects=None)


def test_terms_follow_settings_and_batch() -> None:
    batch = scene(2, 2)
    cases = {
        ("heat", "box", "depth"): (small(), batch),
        ("heat", "box"): (small(), replace(batch, depth=None)),
        ("depth",): (small(), replace(batch, objects=None)),
        (): (small(depth_weight=0.0), replace(batch, objects=None)),
    }
    for names, (config, seen) in cases.items():
        model = build(config)
        assert tuple(model.loss(model(seen), seen)) == names
    assert BEVDepth.also_trained_on(small()) == {"depth"}
    assert BEVDepth.also_trained_on(small(depth_weight=0.0)) == set()
    assert BEVDepth.also_trained_on(small(input="rgb+gt_depth")) == set()


def test_no_labelled_depth_costs_nothing() -> None:
    batch, model = scene(2), build(small())
    batch = replace(batch, depth=torch.zeros_like(batch.depth))
    loss = model.loss(model(batch), batch)["depth"]
    loss.backward()
    assert loss == 0


def test_depth_weight() -> None:
    batch, model = scene(2), build(small())
    outputs = model(batch)
    plain = model.loss(outputs, batch)
    model.config = replace(model.config, depth_weight=6.0)
    heavier = model.loss(outputs, batch)
    torch.testing.assert_close(heavier["depth"], 2 * plain["depth"])
    assert torch.equal(heavier["heat"], plain["heat"])


def test_depth_and_labels_are_for_training_only() -> None:
    batch, model = scene(2, frames=2), build(small(frames=2)).eval()
    with torch.no_grad():
        assert_same(model(batch), model(replace(batch, depth=None, objects=None)))


def assert_same(a: Outputs, b: Outputs) -> None:
    assert a.features.keys() == b.features.keys() and a.predictions.keys() == b.predictions.keys()
    assert all(torch.equal(a.features[k].tensor, b.features[k].tensor) for k in a.features)
    assert all(torch.equal(a.predictions[k], b.predictions[k]) for k in a.predictions)


def test_targets_can_be_cut_to_one_sample() -> None:
    batch, model = scene(1, 3), build(small())
    targets = model.encode(batch)
    assert isinstance(targets.centres, CentreTargets)
    second = picked(targets, [1])
    assert torch.equal(second.centres.heatmap, targets.centres.heatmap[1:])
    assert torch.equal(second.seen_at, targets.seen_at[1:]) and torch.equal(second.depth_bins, targets.depth_bins[1:])


# --------------------------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("past_norm", ["train", "eval"])
def test_earlier_frames_get_no_gradient(past_norm: str) -> None:
    """Their part of the map behaves as a constant; the key frame's gradient is that of one frame alone."""
    batch, model = scene(1, frames=2), build(small(frames=2, past_norm=past_norm)).train()
    bev = model(batch).features["bev"].tensor
    half = bev.shape[1] // 2
    (bev[:, half:].square().sum() + 0 * bev[:, :half].sum()).backward()
    assert not any(p.grad.any() for p in model.backbone.parameters() if p.grad is not None)


@pytest.mark.parametrize(("past_norm", "updates"), [("train", 3), ("eval", 1)])
def test_norms_while_earlier_frames_pass(past_norm: str, updates: int) -> None:
    """As released each frame updates the running statistics; at rest only the key frame does, and modes return."""
    model = build(small(frames=3, past_norm=past_norm, frozen_stem=True)).train()
    modes = {name: m.training for name, m in model.named_modules()}
    model(scene(1, frames=3))
    assert model.backbone.depth_net.bn.num_batches_tracked == updates
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert model.backbone.img_backbone.body.bn1.num_batches_tracked == 0
    assert not model.backbone.img_backbone.body.bn1.training and model.backbone.img_backbone.body.layer1.training


def test_an_earlier_frame_that_is_the_key_frame_gives_its_map() -> None:
    """As where a scene begins: in evaluation both halves of the map agree."""
    batch, model = scene(1, frames=2), build(small(frames=2)).eval()
    same = {name: getattr(batch, name)[:, :1].expand_as(getattr(batch, name))
            for name in ("images", "intrinsics", "camera_to_ego")}  # fmt: skip
    with torch.no_grad():
        key, past = model(replace(batch, **same)).features["bev"].tensor.chunk(2, dim=1)
        moved = model(batch).features["bev"].tensor.chunk(2, dim=1)
    assert torch.equal(key, past) and torch.equal(moved[0], key) and not torch.equal(moved[1], key)


@pytest.mark.parametrize(("past_camera", "differs"), [("key", False), ("own", True)])
def test_whose_numbers_the_network_is_told(past_camera: str, differs: bool) -> None:
    """Of two frames with the same picture, one taken elsewhere: the depth that is predicted for it."""
    batch, model = scene(1, frames=2), build(small(frames=2, past_camera=past_camera)).eval()
    told: list[Tensor] = []
    model.backbone.depth_net.register_forward_pre_hook(lambda module, inputs: told.append(inputs[1]))
    model(batch)
    assert len(told) == 2 and torch.equal(*told) != differs


# ----------------------------------------------------------------------------------------------------- what it looks at


def test_assistant_lifts_by_the_true_depth() -> None:
    """Features land at the given depth ahead of each camera and nowhere else; without depth nothing is lifted."""
    batch, model = scene(1, 1), build(CONFIGS["assistant"]).eval()
    batch = replace(batch, depth=torch.stack((torch.full_like(batch.depth[0], 10.0), torch.zeros_like(batch.depth[1]))))
    with torch.no_grad():
        lifted = (model(batch).features["bev"].tensor != 0).any(1)
    assert lifted[0].any() and not lifted[1].any()
    row, column = lifted[0].nonzero().unbind(1)
    x, y = ((index + 0.5) * 0.8 - REACH for index in (column, row))
    angle = torch.tensor(DIRECTIONS).deg2rad()
    ahead = x[:, None] * angle.cos() + y[:, None] * angle.sin()
    assert ((ahead - 10).abs() < 0.8).any(1).all()
    assert not any(name.startswith("backbone.depth_net.depth") for name in model.state_dict())
    assert "depth" not in model(batch).predictions


def test_student_lifts_by_what_it_predicts() -> None:
    """With the true depth as its prediction, the student's map is the assistant's, all else equal."""
    batch, student, assistant = scene(1, 2), build(small()).eval(), build(CONFIGS["assistant"], 1).eval()
    assistant.load_state_dict({k: v for k, v in student.state_dict().items() if k in assistant.state_dict()})
    batch = replace(batch, depth=torch.full_like(batch.depth, 15.0))
    logits = torch.where(assistant.true_depth(batch) == 1, 100.0, -100.0)
    student.backbone.depth_net.depth_conv.forward = lambda x: logits
    with torch.no_grad():
        torch.testing.assert_close(student(batch).features["bev"], assistant(batch).features["bev"])


def test_colours_as_released_are_swapped() -> None:
    batch = scene(1)
    settings = [small(channel_order=order) for order in ("rgb", "bgr_with_rgb_means")]
    plain, swapped = (normalised_frames(batch, config, 1, "bevdepth") for config in settings)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    shape = (3, 1, 1)
    torch.testing.assert_close(plain * std.view(shape) + mean.view(shape), batch.images)
    torch.testing.assert_close(swapped * std.view(shape) + mean.view(shape), batch.images.flip(-3))


@pytest.mark.parametrize("axis", [0, 1])
def test_mirrored_ground_gives_the_mirrored_map(axis: int) -> None:
    """With rounding as intended and cameras of which the network is told nothing new."""
    batch, model = scene(1), build(small(rounding="floor")).eval()
    mirror, affine = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    mirror[axis, axis] = -1
    affine[:2, 3] = torch.tensor([0.137, 0.291])  # so that no point lies on the edge of a cell
    model.backbone.depth_net.bn.forward = torch.zeros_like
    with torch.no_grad():
        plain, mirrored = (
            model(replace(batch, bev_affine=m[None])).features["bev"].tensor for m in (affine, mirror @ affine)
        )
    torch.testing.assert_close(mirrored.flip(-1 - axis), plain, rtol=1e-4, atol=1e-5)
    assert plain.any()


def test_boxes_come_without_the_augmentation() -> None:
    """What is found on a turned and mirrored ground lies in the vehicle's own frame."""
    batch, model = scene(3), build(small(head=small_head(score_threshold=0.0))).eval()
    angle, affine = 0.3, torch.eye(4, dtype=torch.float64)
    affine[:2, :2] = torch.tensor([[-math.cos(angle), math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    with torch.no_grad():
        outputs = model(batch)
        plain, turned = (model.decode(outputs, replace(batch, bev_affine=m[None]))[0] for m in (torch.eye(4), affine))
    assert len(plain) > 10 and torch.equal(plain.score, turned.score)
    torch.testing.assert_close(turned.centre @ affine[:3, :3].T.float(), plain.centre, rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------------------------- MonoTAKD's maps

#: What each of the options adds to the network, the later ones beside the earlier ones.
ADDED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "nothing": ({}, set()),
    "collapse": ({"bev_channels": 10}, {"collapse"}),
    "alignment": ({"bev_channels": 10, "spatial_alignment": True}, {"collapse", "spatial_collapse", "alignment"}),
    "fusion": (
        {"bev_channels": 10, "spatial_alignment": True, "fusion": "ffm"},
        {"collapse", "spatial_collapse", "alignment", "fusion"},
    ),
}


@pytest.mark.parametrize("name", ADDED)
def test_what_the_options_add_to_the_network(name: str) -> None:
    """Whole new parts; of the others only what reads the map on the ground changes its width."""
    changed, expected = ADDED[name]
    plain, other = (build(config).state_dict() for config in (small(), small(**changed)))
    assert {key.split(".")[0] for key in plain} == {"backbone", "trunk", "neck", "head"}
    assert {key.split(".")[0] for key in other.keys() - plain.keys()} == expected and plain.keys() <= other.keys()
    resized = {key for key in plain if plain[key].shape != other[key].shape}
    assert resized == ({"trunk.conv1.weight", "neck.deblocks.0.0.weight"} if expected else set())
    if not expected:
        assert all(torch.equal(plain[key], other[key]) for key in plain)


def test_the_maps_that_are_imitated() -> None:
    """Both are as wide as asked, not negative, and lie on the ground as the frames' maps do."""
    outputs = build(CONFIGS["aligned"])(scene(1, 2, frames=2))
    for tap in ("bev", "bev_spatial"):
        found = outputs.features[tap]
        assert found.tensor.shape == (2, 10, 48, 48) and (found.tensor >= 0).all()
        assert found.geometry == CONFIGS["plain"].geometry


@pytest.mark.parametrize(("fusion", "reached"), [("none", False), ("ffm", True)])
def test_the_second_map_reaches_the_head_through_fusion_alone(fusion: str, reached: bool) -> None:
    model = build(small(bev_channels=10, spatial_alignment=True, fusion=fusion))
    model(scene(1)).predictions["heatmap"].sum().backward()
    parts = (model.spatial_collapse, model.alignment)
    assert all((p.grad is not None) == reached for part in parts for p in part.parameters())
    assert all(p.grad is not None for p in model.collapse.parameters())


def test_the_assistant_sees_the_key_frame_of_however_many() -> None:
    batch, model = scene(2, frames=3), build(CONFIGS["collapsed assistant"]).eval()
    key = {name: getattr(batch, name)[:, :1] for name in ("images", "intrinsics", "camera_to_ego")}
    with torch.no_grad():
        assert_same(model(batch), model(replace(batch, **key)))


# ------------------------------------------------------------------------------------------------- uncertainty of depth


@pytest.mark.parametrize("positions", ["ends", "centres"])
def test_objects_are_read_where_they_are_seen(positions: str) -> None:
    """An object at the place of a pixel at some depth, for every camera: that cell of that camera, or of a neighbour
    that shows it nearer to its middle; nothing where no camera looks."""
    width, height = CANVAS[0] // STRIDE, CANVAS[1] // STRIDE
    bins, batch = DepthBins(4.0, 20.0, 2, "UD"), scene(1)
    geometry = (batch.image_affine, batch.intrinsics[:, 0], batch.camera_to_ego[:, 0], batch.bev_affine)
    points = frustum_points(frustum(CANVAS, STRIDE, bins, positions), *geometry)[0]  # (N, D, h, w, 3)
    middle = points[:, 1, height // 2, width // 2 - 1]
    count = len(middle) + 1
    boxes = objects(count, torch.Generator()).boxes
    boxes = replace(boxes, centre=torch.cat((middle, torch.tensor([[0.0, 0.0, 50.0]]))).float())
    batch = collate_surround([replace(sample_of(batch), objects=SurroundObjects(boxes, torch.ones_like(boxes.label)))])
    found = best_view(batch, positions)[0].tolist()
    expected = [(n * height + height // 2) * width + width // 2 - 1 for n in range(len(DIRECTIONS))]
    assert found == [*expected, UNSEEN]


def sample_of(batch: SurroundBatch) -> SurroundSample:
    names = ("intrinsics", "camera_to_ego", "image_affine", "bev_affine", "ego_to_global", "images")
    return SurroundSample(frame_id="0", **{name: getattr(batch, name)[0] for name in names})


def test_depth_log_scale() -> None:
    batch, model = scene(40, 3), build(small()).eval()
    with torch.no_grad():
        outputs = model(batch)
    targets = model.encode(batch)
    scales = model.depth_log_scale(outputs, batch, targets)
    assert scales.shape == batch.objects.label.shape and scales.isfinite().all()
    seen = targets.seen_at != UNSEEN
    assert not seen[1, 3:].any() and 0 < seen[0].sum() and not scales[~seen].any()
    maps = depth_log_scales(outputs.predictions["depth"], model.config.bins).view(2, -1)
    for b, m in seen.nonzero().tolist():
        assert scales[b, m] == maps[b, targets.seen_at[b, m]]


def test_assistant_says_nothing_of_its_depth() -> None:
    batch, model = scene(1), build(CONFIGS["assistant"])
    with pytest.raises(NotImplementedError, match="bevdepth"):
        model.depth_log_scale(model(batch), batch, model.encode(batch))


# ------------------------------------------------------------------------------------------------------------- settings


BAD_BATCHES: dict[str, tuple[BEVDepthConfig, Callable[[SurroundBatch], SurroundBatch], str]] = {
    "no images": (small(), lambda b: replace(b, images=None), "looks at images"),
    "frames": (small(frames=3), lambda b: b, "set to 3 frames, the data set gives 1"),
    "size": (
        small(),
        lambda b: replace(b, images=b.images[..., :90], depth=None),
        "multiples of 16 px, not 90 x 48 px",
    ),
    "no depth": (CONFIGS["assistant"], lambda b: replace(b, depth=None), "needs depth images"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_batches_that_lack_something(name: str) -> None:
    config, change, message = BAD_BATCHES[name]
    with pytest.raises(UserError, match=message):
        build(config)(change(scene(1)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"head": small_head(cell=1.6)}, "cells of 1.6 m"), ({"classes": ("car",)}, "the data set only car"),
     ({"input": "rgb+gt_depth", "frames": 2}, "key frame only"), ({"frames": 0}, "0 frames"),
     ({"trunk": ResNetConfig()}, "set trunk.finest to 4"), ({"spatial_alignment": True}, "set bev_channels"),
     ({"bev_channels": 8, "fusion": "ffm"}, "fuses what spatial_alignment gives"),
     ({"simulated": SimulatedBranchConfig(), "frames": 2}, "of one frame"),
     ({"simulated": SimulatedBranchConfig(), "input": "rgb+gt_depth"}, "'forbidden', which goes with the input 'rgb'"),
     ({"simulated": SimulatedBranchConfig.styled("released")}, "'read', which goes with the input 'rgb.gt_depth'")],
    ids=["cells", "classes", "assistant", "frames", "trunk", "alignment", "fusion", "branches", "forbidden", "read"],
)  # fmt: skip
def test_settings_that_do_not_go_together(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BEVDepth(small(**changed))


def test_who_reads_depth_at_test_time() -> None:
    """Of SimDistill's students the released one, of which no answer comes without; the intended one never does."""
    batch = scene(1)
    bare = replace(batch, depth=None, objects=None)
    with torch.no_grad():
        intended = build(CONFIGS["two branches"]).eval()
        assert_same(intended(batch), intended(bare))
        released = build(CONFIGS["two branches, released"]).eval()
        moved = replace(batch, depth=batch.depth.flip(-1))
        assert not torch.equal(released(batch).features["bev"].tensor, released(moved).features["bev"].tensor)
        with pytest.raises(UserError, match="depth_at_test is 'read'.*the data set gives none"):
            released(bare)


@pytest.mark.parametrize(("views", "alike"), [("own", False), ("shared", True)])
def test_branches_of_one_view_begin_alike(views, alike: bool) -> None:
    """Before the compensation: without what its attention gathers, the second map is the first."""
    model = build(small(simulated=SimulatedBranchConfig(views=views, points=2))).eval()
    torch.nn.init.zeros_(model.backbone.compensation.attention.output.weight)
    torch.nn.init.zeros_(model.backbone.compensation.attention.output.bias)
    with torch.no_grad():
        maps = model(scene(1)).features
    assert torch.equal(maps["bev_camera"].tensor, maps["bev_simulated"].tensor) == alike
    assert {maps[tap].geometry for tap in ("bev_camera", "bev_simulated", "bev")} == {model.config.geometry}


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_survive_as_plain_data(name: str) -> None:
    assert from_plain(BEVDepthConfig, to_plain(CONFIGS[name]), "card") == CONFIGS[name]


def test_styles() -> None:
    released, intended = (BEVDepthConfig.styled(style) for style in ("released", "intended"))
    assert released.head.output_init == "default" and intended.head.output_init == "prior"
    rows = ("channel_order", "positions", "rounding", "past_camera", "past_norm", "head")
    assert all(getattr(released, row) != getattr(intended, row) for row in rows)
    assert replace(released, **{row: getattr(intended, row) for row in rows}) == intended
    assert BEVDepthConfig.styled("released", past_norm="eval").past_norm == "eval"


@pytest.mark.real
@pytest.mark.parametrize("augmented", [False, True], ids=["plain", "augmented"])
def test_real_frame(real_data: Path, augmented: bool) -> None:
    """A real scan on the ground: cameras see its points where the depth labels have them, and what is lifted by
    those labels lies at its points."""
    pictures, ground = (ImageAugmentConfig(), BevAugmentConfig(scale_point_heights=True)) if augmented else (None, None)
    config = small(input="rgb+gt_depth", bins=DepthBins(2.0, 58.0, 112, "UD"))
    dataset = NuScenesDataset(
        NuScenesConfig(
            root=real_data / "nuscenes_one", version="v1.0-one", split="train", classes=config.classes,
            canvas=(352, 128), points=True, depth=True, in_memory=True, image_augment=pictures, bev_augment=ground,
            sweeps=SweepConfig(past=0, future=0, scans=1),
        )
    )  # fmt: skip
    batch = collate_surround([dataset.get(0, torch.Generator().manual_seed(0) if augmented else None)])
    points = batch.points[0][:, :3]
    pixel, depth = camera_pixels(
        points[None], batch.image_affine, batch.intrinsics[:, 0], batch.camera_to_ego[:, 0], batch.bev_affine
    )
    shown = (depth > 0) & (pixel >= 0).all(-1) & (pixel < torch.tensor([352, 128])).all(-1)
    column, row = pixel[shown].long().unbind(-1)
    labels = batch.depth[0, shown.nonzero()[:, 1], row, column]
    assert len(labels) > 1000 and ((labels - depth[shown]).abs() < 0.05).double().mean() > 0.95
    with torch.no_grad():
        lifted = build(config).eval()(batch).features["bev"].tensor[0].any(0).nonzero()
    centres = (lifted.flip(-1) + 0.5) * 0.8 - REACH
    assert len(centres) > 50 and torch.cdist(centres, points[:, :2]).amin(1).quantile(0.95) < 0.8 * math.sqrt(2)


def test_what_falls_below_the_first_cell() -> None:
    """As released it is counted into the first cell, otherwise it is dropped."""
    batch = scene(1)
    counted = {}
    for rounding in ("trunc", "floor"):
        config = small(rounding=rounding)
        cells = lifted_cells(batch, config)
        points = frustum_points(
            frustum(CANVAS, STRIDE, config.bins), batch.image_affine, batch.intrinsics[:, 0],
            batch.camera_to_ego[:, 0], batch.bev_affine,
        )  # fmt: skip
        assert torch.equal(cells, ground_cells(points, config.grid, rounding))
        counted[rounding] = (cells >= 0).sum()
    assert counted["trunc"] > counted["floor"]
