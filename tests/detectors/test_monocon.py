"""MonoCon beyond what was recorded: what is for training alone, geometry through mirror and crop, empty cases."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import CAMERA, CANVAS, SIZE, cars, make_batch
from torch import Tensor

from distill3d.boxes import wrap_angle
from distill3d.camera import Camera, Divide, ImageAffine
from distill3d.data.augment.image import place_objects
from distill3d.data.sample import Batch, ObjectBatch, Objects
from distill3d.detectors import build_detector, monocon
from distill3d.detectors.base import Outputs
from distill3d.detectors.monocon import AUXILIARY, KEYPOINTS, MonoConConfig, MonoConTargets
from distill3d.detectors.monodle import HEADING_BINS, HEAT_CLASSES, STRIDE, depth_logit
from distill3d.layers.image.attentive_norm import AttentiveNorm
from distill3d.layers.image.heatmap import gaussian_radius

#: A camera whose third row ends in a number, as KITTI's does, and which stands 6 cm beside the first.
SHIFTED = Camera(torch.cat((CAMERA.projection[:, :3], torch.tensor([[44.9], [0.2], [0.003]]).double()), 1))


def some_batch(*counts: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return make_batch([cars(n, generator) for n in counts], generator)


def seen_through(zoom: float = 1.0, flip: bool = False) -> tuple[Objects, Batch]:
    """Cars of the image file, and a float64 batch that shows them mirrored, cropped and moved."""
    generator = torch.Generator().manual_seed(3)
    objects = cars(6, generator)
    affine = ImageAffine.crop(SIZE, CANVAS, zoom, (0.02, 0.01), flip)
    batch = make_batch([objects], generator)
    return objects, replace(
        batch, camera=Camera(affine.camera(SHIFTED).projection[None]), affine=ImageAffine.stack([affine]),
        objects=ObjectBatch.pad([place_objects(objects, affine)]), image=batch.image.double(),
    )  # fmt: skip


def perfect_outputs(targets: MonoConTargets) -> Outputs:
    """Maps that say what the targets say, in the cells of 2D centres."""
    batch, _, height, width = targets.heatmap.shape
    image, slot = targets.mask_2d.nonzero(as_tuple=True)
    cell = targets.indices[image, slot]
    maps = {"heatmap": torch.where(targets.heatmap == 1, 9.0, -9.0).double().flatten(2)}
    for name, value in {
        "offset_2d": targets.offset_2d, "size_2d": targets.size_2d, "offset_3d": targets.offset_3d,
        "size_3d": targets.size_3d,
        "depth": torch.stack((depth_logit(targets.depth, monocon.DEPTH_EPSILON), torch.zeros_like(targets.depth)), -1),
        "heading": torch.cat((9.0 * torch.nn.functional.one_hot(targets.heading_bin, HEADING_BINS),
                              targets.heading_residual[..., None].expand(-1, -1, HEADING_BINS)), -1),
    }.items():  # fmt: skip
        maps[name] = torch.zeros(batch, value.shape[-1], height * width).double()
        maps[name][image, :, cell] = value[image, slot].double()
    return Outputs({}, {name: value.view(batch, -1, height, width) for name, value in maps.items()})


# ------------------------------------------------------------------------------------------------ for training alone


def test_what_is_for_training_alone_changes_no_answer() -> None:
    """Without these branches, and without the weights of the corners, all answers are what they were."""
    torch.manual_seed(0)
    model, batch = build_detector(monocon.tiny(score_threshold=0.0)).eval(), some_batch(2, 1)
    model.train()
    taught = model(batch).predictions
    assert taught["corners"].shape[1] == 2 * (KEYPOINTS - 1) and taught["keypoint_heatmap"].shape[1] == KEYPOINTS
    model.eval()
    with torch.no_grad():
        whole = model(batch)
        assert set(taught) - set(whole.predictions) == {"corners", *AUXILIARY}
        found = model.decode(whole, batch)
        for name in AUXILIARY:
            delattr(model, name)
        model.keypoints[-1].weight[:-2] = torch.nan
        less = model(batch)
        again = model.decode(less, batch)
    assert whole.predictions.keys() == less.predictions.keys()
    assert all(torch.equal(value, less.predictions[name]) for name, value in whole.predictions.items())
    assert len(found[0]) > 0
    for before, after in zip(found, again, strict=True):
        assert torch.equal(before.centre, after.centre) and torch.equal(before.score, after.score)
        assert torch.equal(before.box2d, after.box2d)


def test_the_key_points_teach_the_trunk() -> None:
    model, batch = build_detector(monocon.tiny()).train(), some_batch(2, 1)
    losses = model.loss(model(batch), batch)
    for name in ("keypoints", "keypoint_heatmap", "keypoint_offset"):
        model.zero_grad()
        losses[name].backward(retain_graph=True)
        assert model.backbone.base_layer[0].weight.grad.abs().max() > 0, name


# ----------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("box2d", ["predicted", "projected"])
@pytest.mark.parametrize(("zoom", "flip"), [(1.0, False), (0.8, True)])
def test_decode_undoes_encode(zoom: float, flip: bool, box2d: str) -> None:
    objects, batch = seen_through(zoom, flip)
    model = build_detector(monocon.tiny(box2d=box2d)).double()
    targets = model.encode(batch)
    shown = targets.mask_2d[0, : len(objects)]
    assert shown.sum() >= 2
    (found,) = model.decode(perfect_outputs(targets), batch)
    truth = objects.boxes[shown]
    assert len(found) == len(truth)
    match = torch.cdist(found.centre, truth.centre).argmin(1)
    torch.testing.assert_close(found.centre, truth.centre[match], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.size, truth.size[match], rtol=0, atol=1e-9)
    assert wrap_angle(found.yaw - truth.yaw[match]).abs().max() < 1e-5
    expected = truth.box2d[match]
    if box2d == "projected":
        uv = SHIFTED.project(truth.corners()[match].flatten(0, 1), "homogeneous")[0].unflatten(0, (-1, 8))
        edge = torch.tensor(SIZE).double()
        low, high = (side.clamp(min=0).minimum(edge) for side in (uv.amin(1), uv.amax(1)))
        expected = torch.cat((low, high), 1)
        ray = torch.atan2(truth.centre[match, 0], truth.centre[match, 2])
        assert wrap_angle(found.alpha + truth.yaw[match] + ray).abs().max() < 1e-5
    torch.testing.assert_close(found.box2d, expected, rtol=0, atol=1e-3)


def test_key_points_are_the_corners_and_the_centre() -> None:
    boxes = cars(5, torch.Generator().manual_seed(0)).boxes
    points = monocon.box_keypoints(boxes.centre, boxes.size, -boxes.yaw)
    torch.testing.assert_close(points[:, -1], boxes.centre)
    distance = torch.cdist(points[:, :-1], boxes.corners())
    assert distance.amin(2).max() < 1e-9 and (distance.argmin(2).sort(1).values == torch.arange(8)).all()


def test_a_mirror_exchanges_the_sides() -> None:
    """Corners come in pairs along the width, of which a mirrored picture shows the other one."""
    (_, plain), (_, mirrored) = (seen_through(flip=flip) for flip in (False, True))
    model = build_detector(monocon.tiny()).double()
    ours, theirs = (where_they_are(model.encode(b)) for b in (plain, mirrored))
    order = [1, 0, 3, 2, 5, 4, 7, 6, 8]
    both = (ours[1] & theirs[1][..., order])[..., None].expand_as(ours[0])
    there = plain.affine.invert((STRIDE * ours[0]).flatten(1, 2)).view_as(ours[0])
    back = mirrored.affine.invert((STRIDE * theirs[0][..., order, :]).flatten(1, 2)).view_as(there)
    assert both.sum() > 2 * KEYPOINTS
    torch.testing.assert_close(there[both], back[both], rtol=0, atol=0.01)  # px; the mirror is of u -> width - u


def where_they_are(targets: MonoConTargets) -> tuple[Tensor, Tensor]:
    """Key points in cells (B, K, 9, 2), and which there are."""
    width = targets.heatmap.shape[-1]
    cell = torch.stack((targets.indices % width, targets.indices // width), -1)
    return targets.keypoints + cell[:, :, None], targets.keypoint_mask


def near_car(rotation: float = 0.0) -> Batch:
    """One car, two metres before the camera, whose rear corners are behind it."""
    generator = torch.Generator().manual_seed(0)
    car = cars(1, generator)
    boxes = replace(car.boxes, centre=torch.tensor([[0.3, 0.5, 2.5]]).double(), yaw=torch.tensor([rotation]).double(),
                    size=torch.tensor([[6.0, 1.8, 1.5]]).double(),
                    box2d=torch.tensor([[300.0, 60.0, 900.0, 370.0]]).double())  # fmt: skip
    return make_batch([replace(car, boxes=boxes)], generator)


def test_corners_behind_the_camera_are_no_key_points() -> None:
    """As released those are, whose mirrored image lies in the picture."""
    batch = near_car(torch.pi / 2)
    masks = {
        b: build_detector(monocon.tiny(behind=b)).encode(batch).keypoint_mask[0, 0] for b in ("hidden", "mirrored")
    }
    points = monocon.box_keypoints(batch.objects.centre, batch.objects.size, -batch.objects.yaw)[0, 0]
    assert 0 < (points[:, 2] <= 0).sum() < KEYPOINTS
    assert torch.equal(masks["hidden"], points[:, 2] > 0)
    assert (masks["mirrored"] | ~masks["hidden"]).all()


def test_a_key_point_just_outside_the_map_has_no_cell() -> None:
    """Rounding towards zero takes it in."""
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([cars(200, generator, border=True)], generator)
    shown = {}
    for rule in ("floor", "truncate"):
        targets = build_detector(monocon.tiny(keypoint_cell=rule)).encode(batch)
        shown[rule] = targets.keypoint_shown
        least = targets.keypoint_offset[targets.keypoint_shown].min()
        assert (least >= 0) == (rule == "floor")
    assert (shown["truncate"] | ~shown["floor"]).all() and shown["truncate"].sum() > shown["floor"].sum()


# ----------------------------------------------------------------------------------------------- losses and their ends


def test_nothing_to_learn() -> None:
    """Without objects all terms but the heat maps are 0, or as released nothing; all have gradients."""
    batch = some_batch(0, 0)
    for style, finite in (("intended", True), ("released", False)):
        model = build_detector(MonoConConfig.styled(style, trunk=monocon.TINY_TRUNK)).train()
        losses = model.loss(model(batch), batch)
        assert losses["size_2d"].isfinite() == finite
        for name, value in losses.items():
            assert value.requires_grad
            if "heatmap" not in name and finite:
                assert value == 0, name


def test_sizes_below_nothing_count_by_their_magnitude() -> None:
    """Whatever divides, the term is the plain mean; as released some sizes are then taught the wrong way."""
    model, batch = build_detector(monocon.tiny()).train(), some_batch(3)
    targets, outputs = model.encode(batch), model(batch)
    said = torch.tensor([-0.5, 9.0, 9.0])[:, None, None].expand_as(outputs.predictions["size_3d"])
    for divisor, right in (("magnitude", True), ("signed", False)):
        outputs.predictions["size_3d"] = size = said.clone().requires_grad_()
        config = replace(model.config, size_divisor=divisor)
        loss = monocon.detection_losses(outputs.predictions, targets, config)["size_3d"]
        error = said[0, :, 0, 0] - targets.size_3d[targets.mask_2d]
        torch.testing.assert_close(loss, error.abs().mean())
        loss.backward()
        assert size.grad is not None
        taught = size.grad.sum((0, 2, 3)).sign()
        assert torch.equal(taught, error.sum(0).sign()) == right


def test_absent_key_points_teach_no_offset() -> None:
    """The port pulls the offset of cell 0 to 0 instead."""
    model, batch = build_detector(monocon.tiny()).train(), some_batch(3)
    targets, outputs = model.encode(batch), model(batch)
    hidden = replace(targets, keypoint_shown=torch.zeros_like(targets.keypoint_shown),
                     keypoint_index=torch.zeros_like(targets.keypoint_index))  # fmt: skip
    for rows, silent in (("masked", True), ("all", False)):
        config = replace(model.config, keypoint_rows=rows)
        loss = monocon.detection_losses(outputs.predictions, hidden, config)["keypoint_offset"]
        assert bool(loss == 0) == silent and loss.isfinite()


def test_depth_log_scale_is_read_where_the_depth_is() -> None:
    model, batch = build_detector(monocon.tiny()).eval(), some_batch(3, 0)
    targets, outputs = model.encode(batch), model(batch)
    scale = model.depth_log_scale(outputs, batch, targets)
    image, slot = targets.mask_2d.nonzero(as_tuple=True)
    expected = outputs.predictions["depth"].flatten(2)[image, 1, targets.indices[image, slot]]
    assert len(image) > 0 and torch.equal(scale[image, slot], expected)
    assert (scale[~targets.on_map] == 0).all()


def test_labels_are_needed() -> None:
    with pytest.raises(ValueError, match="this batch has none"):
        build_detector(monocon.tiny()).encode(replace(some_batch(1), objects=None))


# ------------------------------------------------------------------------------------------------------------ the norm


@pytest.mark.parametrize("shape", [(1, 4, 6, 5), (3, 4, 1, 1), (2, 4, 3, 3)])
def test_the_norm_learns_from_few_images_and_small_maps(shape: tuple[int, ...]) -> None:
    """A batch of one image leaves the statistics of the shares alone; released code fails there."""
    norm = AttentiveNorm(4).train()
    before = norm.attention[1].running_var.clone()
    out = norm(torch.randn(shape).requires_grad_())
    out.square().sum().backward()
    assert out.shape == shape and out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in norm.parameters())
    assert torch.equal(norm.attention[1].running_var, before) == (shape[0] == 1)


def test_the_norm_answers_each_image_alone_in_evaluation() -> None:
    norm, x = AttentiveNorm(4).eval(), torch.randn(3, 4, 6, 5)
    torch.testing.assert_close(norm(x)[1:2], norm(x[1:2]))
    ten = AttentiveNorm(4).eval()
    assert not torch.allclose(ten(x), norm(x))  # drawn, not constant


def test_released_initial_weights() -> None:
    torch.manual_seed(0)
    model = build_detector(MonoConConfig(trunk=monocon.TINY_TRUNK))
    assert model.heatmap[-1].bias.tolist() == pytest.approx([monocon.HEAT_BIAS] * len(HEAT_CLASSES))
    assert (
        float(model.depth[0].weight.detach().std()) == pytest.approx(0.001, rel=0.05) and not model.depth[-1].bias.any()
    )
    assert float(model.direction[1].attention[0].weight.detach().std()) == pytest.approx(0.001, rel=0.1)
    assert model.keypoint_heatmap[0].weight.std() > 0.01


# ------------------------------------------------------------------------------------------------- what it shares


@given(height=st.floats(1, 60), width=st.floats(1, 60), overlap=st.floats(0.1, 0.9))
def test_the_exact_radius_keeps_the_overlap(height: float, width: float, overlap: float) -> None:
    """Of boxes whose corners are moved by it: both one way, both inwards, both outwards; one of them just so."""
    h, w = (torch.tensor([value], dtype=torch.float64) for value in (height, width))
    r = gaussian_radius(h, w, overlap, "exact")
    shared = (h - r) * (w - r)
    kept = torch.cat((shared / (2 * h * w - shared), (h - 2 * r) * (w - 2 * r) / (h * w),
                      h * w / ((h + 2 * r) * (w + 2 * r))))  # fmt: skip
    assert r >= 0 and float(kept.min()) == pytest.approx(overlap)


@pytest.mark.parametrize("divide", ["rect_z", "homogeneous"])
def test_back_projection_undoes_projection(divide: Divide) -> None:
    points = torch.rand(7, 3, dtype=torch.float64) * 20 + torch.tensor([-10.0, -10.0, 3.0])
    uv, z = SHIFTED.project(points, divide)
    depth = z if divide == "rect_z" else points[:, 2] + SHIFTED.projection[2, 3]
    torch.testing.assert_close(SHIFTED.back_project(uv, depth, divide), points)
