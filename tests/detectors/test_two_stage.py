"""GUPNet, DID-M3D and their RoIs beyond what was recorded: geometry through mirror and crop, holes, empty cases."""

import math
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_registered import CAMERA, CANVAS, SIZE, cars, make_batch
from torch import Tensor

from distill3d.boxes import wrap_angle
from distill3d.camera import Camera, ImageAffine
from distill3d.data.augment.image import place_objects
from distill3d.data.sample import Batch, ObjectBatch, Objects
from distill3d.detectors import build_detector, did_m3d, gupnet
from distill3d.detectors.base import Outputs
from distill3d.detectors.gupnet import MAP_HEADS, file_camera
from distill3d.detectors.monodle import HEADING_BINS, HEAT_CLASSES, STRIDE, MonoDLETargets
from distill3d.detectors.released import from_released, to_released
from distill3d.layers.image.roi import ROI_SIZE, MapWindow, RoISlots, look_at

MAP_SIZE = (CANVAS[0] // STRIDE, CANVAS[1] // STRIDE)
AFFINES = [(1.0, False), (0.8, False), (1.2, True), (1.0, True)]
BOTH = pytest.mark.parametrize("detector", [gupnet, did_m3d], ids=["gupnet", "did_m3d"])
THROUGH = pytest.mark.parametrize(("zoom", "flip"), AFFINES)


def seen_through(zoom: float, flip: bool) -> tuple[Objects, Batch]:
    """Cars of the image file, and a float64 batch that shows them mirrored and cropped."""
    generator = torch.Generator().manual_seed(3)
    objects = cars(6, generator)
    affine = ImageAffine.crop(SIZE, CANVAS, zoom, (0.02, 0.01), flip)
    batch = make_batch([objects], generator)
    assert batch.depth is not None
    return objects, replace(
        batch, camera=Camera(affine.camera(CAMERA).projection[None]), affine=ImageAffine.stack([affine]),
        objects=ObjectBatch.pad([place_objects(objects, affine)]), image=batch.image.double(),
        depth=batch.depth.double(),
    )  # fmt: skip


def perfect_maps(targets: MonoDLETargets) -> dict[str, Tensor]:
    """The maps of the three 2D heads that say what the targets say."""
    batch, classes, height, width = targets.heatmap.shape
    image, slot = targets.mask_2d.nonzero(as_tuple=True)
    cell = targets.indices[image, slot]
    maps = {"heatmap": torch.where(targets.heatmap == 1, 9.0, -9.0).double().flatten(2)}
    for name in ("offset_2d", "size_2d"):
        maps[name] = torch.zeros(batch, 2, height * width).double()
        maps[name][image, :, cell] = getattr(targets, name)[image, slot].double()
    return {name: maps[name].view(batch, -1, height, width) for name in MAP_HEADS}


def at_peaks(maps: dict[str, Tensor], targets: MonoDLETargets, count: int) -> Outputs:
    """Perfect outputs: at each peak what the targets say of the object there, with next to no doubt."""
    slots = RoISlots.at_peaks(maps["heatmap"], count)
    match = (slots.index[..., None] == targets.indices[:, None]) & targets.mask_2d[:, None]
    slot = match.to(torch.uint8).argmax(-1)

    def said(value: Tensor) -> Tensor:
        return torch.stack([value[i, slot[i]] for i in range(len(slot))]).double()

    bins = said(targets.heading_bin).long()
    heading = torch.zeros(*bins.shape, 2 * HEADING_BINS).double()
    heading.scatter_(-1, bins[..., None], 5.0)
    heading.scatter_(-1, HEADING_BINS + bins[..., None], said(targets.heading_residual)[..., None])
    rois = {
        "roi_depth": said(targets.depth), "roi_depth_log_variance": torch.full(bins.shape, -20.0).double(),
        "roi_offset_3d": said(targets.offset_3d), "roi_size_3d": said(targets.size_3d), "roi_heading": heading,
    }  # fmt: skip
    return Outputs({}, maps | rois, slots)


@THROUGH
@BOTH
def test_decode_undoes_encode(detector: ModuleType, zoom: float, flip: bool) -> None:
    objects, batch = seen_through(zoom, flip)
    model = build_detector(detector.tiny()).double()
    targets = model.encode(batch)
    shown = targets.mask_2d[0, : len(objects)]
    assert shown.sum() >= 2
    outputs = at_peaks(perfect_maps(targets), targets, model.config.top_k)
    if detector is did_m3d:
        for name in ("roi_depth", "roi_depth_log_variance"):
            outputs.predictions[name] = outputs.predictions[name][..., None, None].expand(-1, -1, ROI_SIZE, ROI_SIZE)
    (found,) = model.decode(outputs, batch)
    truth = objects.boxes[shown]
    assert len(found) == len(truth)
    match = torch.cdist(found.centre, truth.centre).argmin(1)
    torch.testing.assert_close(found.centre, truth.centre[match], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.size, truth.size[match], rtol=0, atol=1e-6)
    assert wrap_angle(found.yaw - truth.yaw[match]).abs().max() < 1e-5
    torch.testing.assert_close(found.box2d, truth.box2d[match], rtol=0, atol=1e-3)


@THROUGH
def test_rois_lie_where_the_file_shows_the_objects(zoom: float, flip: bool) -> None:
    """Heights in px, focal lengths and viewing rays are those of the image file, whatever the crop."""
    objects, batch = seen_through(zoom, flip)
    targets = build_detector(gupnet.tiny()).double().encode(batch)
    assert isinstance(targets, MonoDLETargets)
    shown = targets.mask_2d[0, : len(objects)]
    maps = perfect_maps(targets)
    slots = RoISlots.at_targets(targets.indices, targets.label, targets.mask_2d)
    window = MapWindow.of(batch.affine, MAP_SIZE)
    neck = torch.randn(1, 5, MAP_SIZE[1], MAP_SIZE[0]).double()
    rois = look_at(neck, maps["offset_2d"], maps["size_2d"], slots, window, file_camera(batch), len(HEAT_CLASSES))
    truth = objects.boxes.box2d[shown]
    if flip:
        truth = torch.stack((SIZE[0] - truth[:, 2], truth[:, 1], SIZE[0] - truth[:, 0], truth[:, 3]), -1)
    torch.testing.assert_close(rois.source_box, truth, rtol=0, atol=1e-6)
    torch.testing.assert_close(rois.focal, CAMERA.projection[0, 0].expand(len(truth)))
    assert rois.features.shape[1] == 5 + 2 + len(HEAT_CLASSES)
    assert (rois.features[:, -len(HEAT_CLASSES) + HEAT_CLASSES.index("Car")] == 1).all()
    # the middle of the coordinate maps is the ray through the middle of the box, which carries the box's points
    z = targets.depth[0, : len(objects)][shown]
    point = file_camera(batch).back_project(((truth[:, :2] + truth[:, 2:]) / 2)[None], torch.ones_like(z)[None])[0]
    middle = rois.features[:, 5:7, ROI_SIZE // 2, ROI_SIZE // 2]
    torch.testing.assert_close(middle, point[:, :2])
    torch.testing.assert_close(z, objects.boxes.centre[shown, 2])  # not times the zoom
    mean = torch.tensor(gupnet.MEAN_SIZE).double()[HEAT_CLASSES.index("Car")]
    residual = targets.size_3d[0, : len(objects)][shown]
    torch.testing.assert_close(residual + mean, objects.boxes.size[shown].flip(-1))


def test_the_released_window_is_the_whole_file() -> None:
    """Where nothing is cropped; the exact one is lower by what the canvas cuts off."""
    affine = ImageAffine.stack([ImageAffine.crop(SIZE, CANVAS)])
    released = MapWindow.of(affine, MAP_SIZE, "per_axis")
    whole = released.to_source(torch.tensor([[0.0, 0.0, *MAP_SIZE]]).double(), torch.tensor([0]))
    torch.testing.assert_close(whole, torch.tensor([[0.0, 0.0, *SIZE]]).double())
    exact = MapWindow.of(affine, MAP_SIZE)
    cells = torch.rand(1, 7, 2).double() * 20
    boxes = exact.to_source(torch.cat((cells, cells), -1)[0], torch.zeros(7, dtype=torch.int64))
    torch.testing.assert_close(boxes[:, :2], affine.invert(cells * STRIDE)[0])


@given(height=st.floats(0.5, 4), z=st.floats(2, 80), focal=st.floats(300, 2000), log_variance=st.floats(-3, 3))
def test_depth_from_height_inverts_projection(height: float, z: float, focal: float, log_variance: float) -> None:
    h, f, s = (torch.tensor([v], dtype=torch.float64) for v in (height, focal, log_variance))
    box = h * f / z
    depth, variance = gupnet.depth_from_height(h, s, box, f)
    torch.testing.assert_close(depth[0], torch.tensor(z if box >= 1 else height * focal, dtype=torch.float64))
    # an error of the height by one standard deviation moves the depth by its own standard deviation
    deviation = torch.exp(s / 2)
    moved, _ = gupnet.depth_from_height(h + deviation, s, box, f)
    torch.testing.assert_close(moved - depth, torch.exp(variance / 2))


@BOTH
def test_outputs_of_the_wrong_forward_are_refused(detector: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([cars(2, generator)], generator)
    model = build_detector(detector.tiny()).eval()
    targets = model.encode(batch)
    with pytest.raises(ValueError, match="forward_at"):
        model.loss(model(batch), batch, targets)
    with pytest.raises(ValueError, match=r"forward\(batch\)"):
        model.decode(model.forward_at(batch, targets), batch)


@BOTH
def test_what_is_said_of_an_object_does_not_depend_on_its_companions(detector: ModuleType) -> None:
    """In eval mode; slots without an object hold zeros."""
    generator = torch.Generator().manual_seed(1)
    batch = make_batch([cars(3, generator), cars(0, generator), cars(5, generator)], generator)
    model = build_detector(detector.tiny()).double().eval()
    batch = replace(batch, image=batch.image.double())
    targets = model.encode(batch)
    outputs = model.forward_at(batch, targets)
    kept = targets.mask_2d.clone()
    kept[:, ::2] = False
    fewer = model.forward_at(batch, replace(targets, mask_2d=kept))
    assert 0 < kept.sum() < targets.mask_2d.sum()
    for name, value in outputs.predictions.items():
        if name.startswith("roi_"):
            assert value.shape[:2] == targets.mask_2d.shape
            torch.testing.assert_close(value[kept], fewer.predictions[name][kept])
            assert (value[~targets.mask_2d] == 0).all() and (fewer.predictions[name][~kept] == 0).all()


@BOTH
def test_depth_log_scale_has_a_value_for_each_trained_slot(detector: ModuleType) -> None:
    generator = torch.Generator().manual_seed(1)
    batch = make_batch([cars(3, generator), cars(0, generator)], generator)
    model = build_detector(detector.tiny()).eval()
    targets = model.encode(batch)
    scale = model.depth_log_scale(model.forward_at(batch, targets), batch, targets)
    assert scale.shape == targets.mask_2d.shape
    assert scale.isfinite().all() and (scale[targets.mask_2d] != 0).all() and (scale[~targets.mask_2d] == 0).all()


# ------------------------------------------------------------------------------------------------------------- DID-M3D


def whole(shape: tuple[int, int]) -> Tensor:
    """A box (1, 4) in cells from which every sample lies inside the map."""
    return torch.tensor([[1.0, 1.0, shape[1] - 2, shape[0] - 2]])


@pytest.mark.parametrize("holes", ["skip", "mix"])
def test_surface_depth_of_a_dense_map_is_its_depth(holes: str) -> None:
    depth = torch.linspace(5, 50, 64)[:, None].expand(1, 1, 64, 64)
    grid = did_m3d.surface_depth(depth, whole((16, 16)), torch.tensor([0]), holes)
    assert torch.allclose(grid[0, :, 0], grid[0, :, -1])
    steps = grid[0, :, 0].diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-4, atol=0)
    assert steps[0] > 0 and grid.min() > 5 and grid.max() < 50


def test_holes_and_the_edge_of_the_map_do_not_pull_depth_down() -> None:
    depth = torch.full((1, 1, 64, 64), 20.0)
    depth[..., ::3] = 0
    depth[..., :20, :] = 0
    over_the_edge = torch.tensor([[4.0, 8.0, 20.0, 20.0]])
    image = torch.tensor([0])
    skipped = did_m3d.surface_depth(depth, over_the_edge, image, "skip")
    mixed = did_m3d.surface_depth(depth, over_the_edge, image, "mix")
    torch.testing.assert_close(skipped[skipped > 0], torch.full_like(skipped[skipped > 0], 20.0))
    assert (skipped > 0).any() and (mixed < 20).all()
    nothing = did_m3d.surface_depth(torch.zeros(1, 1, 64, 64), over_the_edge, image, "skip")
    assert (nothing == 0).all()


def test_depth_is_split_where_the_surface_is_within_three_metres() -> None:
    seen = torch.zeros(1, ROI_SIZE, ROI_SIZE)
    seen[0, 0] = torch.tensor([17.0, 17.001, 20.0, 22.999, 23.0, 0.0, 60.0])
    visual, attribute, surface = did_m3d.split_depth(torch.tensor([20.0]), seen)
    assert surface[0, 0].tolist() == [False, True, True, True, False, False, False]
    assert not surface[0, 1:].any()
    torch.testing.assert_close(visual + attribute, torch.full_like(visual, 20.0))
    assert (visual[~surface] == 0).all() and torch.equal(visual[surface], seen[surface])
    _, _, near = did_m3d.split_depth(torch.tensor([2.0]), torch.zeros(1, ROI_SIZE, ROI_SIZE))
    assert not near.any()  # 0 m is unknown, not a surface


@pytest.mark.parametrize("confidence", ["ada", "max"])
def test_merging_depths(confidence: str) -> None:
    depth = torch.randn(3, ROI_SIZE, ROI_SIZE).double() + 30
    for s in (-4.0, 0.0, 30.0):  # the last one is 3 km: p is 0 even in float64
        merged, log_confidence = did_m3d.merge_depth(depth, torch.full_like(depth, s), confidence)
        torch.testing.assert_close(merged, depth.mean((-1, -2)))
        torch.testing.assert_close((-log_confidence).log(), torch.full((3,), s / 2).double())
    sure = torch.full_like(depth, 8.0)
    sure[:, 2, 3] = -8.0
    merged, _ = did_m3d.merge_depth(depth, sure, confidence)
    torch.testing.assert_close(merged, depth[:, 2, 3])


def test_visual_depth_is_undone_by_the_zoom_of_the_canvas() -> None:
    """Objects without pixels on the canvas or in the file are taken to have one."""
    box = torch.tensor([[0.0, 0.0, 4.0, 6.0], [0.0, 0.0, 1.0, 0.1], [0.0, 5.0, 1.0, 2.0]])
    source = torch.tensor([[0.0, 0.0, 9.0, 12.0], [0.0, 0.0, 1.0, 0.2], [0.0, 9.0, 1.0, 3.0]])
    rois = did_m3d.RoIs(torch.zeros(3, 1, ROI_SIZE, ROI_SIZE), box, source, torch.zeros(3).long(), torch.ones(3))
    grids = {name: lambda x: x * 0 - math.log(7) for name in did_m3d.GRID_HEADS}
    pooled = {name: lambda x, n=n: x.new_zeros(len(x), n, 1, 1) for name, n in did_m3d.POOLED_HEADS.items()}
    visual = did_m3d.describe_rois(grids | pooled, rois)["visual_depth"]
    torch.testing.assert_close(visual[:, 0, 0], 7 * torch.tensor([2.0, 1.0, 1.0]))
    assert did_m3d.describe_rois(grids | pooled, rois, 0.0)["visual_depth"].max() == 2


def test_training_needs_depth_images() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = replace(make_batch([cars(2, generator)], generator), depth=None)
    with pytest.raises(ValueError, match="depth images"):
        build_detector(did_m3d.tiny()).encode(batch)


@pytest.mark.parametrize(("mask", "finite"), [("zero", True), ("nan", False)])
def test_objects_without_a_visible_surface(mask: str, finite: bool) -> None:
    """The released code divides by no cells; with no object at all it does not."""
    generator = torch.Generator().manual_seed(0)
    model = build_detector(did_m3d.tiny(empty_depth_mask=mask))
    for count, expected in ((2, finite), (0, True)):
        batch = make_batch([cars(count, generator)], generator)
        batch = replace(batch, depth=torch.zeros_like(batch.depth))
        targets = model.encode(batch)
        losses = model.loss(model.forward_at(batch, targets), batch, targets)
        assert bool(losses["depth"].isfinite()) == expected


# --------------------------------------------------------------------------------------------------------- the networks

#: Parameters of the released networks that ours lack: classifier and projections of nested trees, class means.
UNUSED = 513_000 + (64 * 128 + 2 * 128) + (128 * 256 + 2 * 256) + 9


@pytest.mark.parametrize(
    ("config", "released"), [(gupnet.GUPNetConfig(), 20_871_368), (did_m3d.DIDM3DConfig(), 21_348_809)],
    ids=["gupnet", "did_m3d"],
)  # fmt: skip
def test_released_parameter_count(config, released: int) -> None:
    assert sum(p.numel() for p in build_detector(config).parameters()) + UNUSED == released


def test_released_class_means_become_a_setting() -> None:
    config = gupnet.tiny()
    form, own = gupnet.released_form(config), build_detector(config).state_dict()
    theirs = to_released(own, form, config)
    assert theirs.keys() >= {"backbone.fc.weight", "feat_up.ida_0.up_1.weight", "mean_size"}
    assert from_released(theirs, form, own, config).config == config
    other = from_released(theirs | {"mean_size": 2 * theirs["mean_size"]}, form, own, config)
    assert other.config.class_sizes[1][0] == pytest.approx(2 * config.class_sizes[1][0], rel=1e-6)
    assert all(torch.equal(other.weights[name], value) for name, value in own.items())
