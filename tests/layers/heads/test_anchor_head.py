"""The anchor head: targets, losses against full tensors, and boxes back in the camera frame."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from made_up import CAMERA, cars
from torch import Tensor

from distill3d.boxes import IGNORE, KITTI_CLASSES, Boxes3D, lidar_to_camera
from distill3d.camera import ImageAffine
from distill3d.data.augment.image import mirror_pose, place_objects
from distill3d.data.augment.lidar import projected_boxes
from distill3d.data.collate import collate
from distill3d.data.kitti.dataset import KittiConfig, KittiDataset
from distill3d.data.sample import EASY, Batch, Objects, Sample
from distill3d.errors import UserError
from distill3d.layers.ground.rotated import iou_3d
from distill3d.layers.heads.anchor_head import (
    AnchorHead,
    AnchorHeadConfig,
    AnchorTargets,
    BevBackboneConfig,
    focal_head,
)
from distill3d.layers.heads.anchors import BACKGROUND, IGNORED, KITTI_ANCHORS, decode, direction_bin, encode

SIZE = (1242, 375)
EXTENT = (2.0, -16.0, -3.0, 34.0, 16.0, 1.0)
CELLS = (64, 64)
#: A LiDAR 1.7 m above the road and 0.3 m behind the camera, slightly tilted.
TILT = 0.01
POSE = torch.tensor(
    [[0, -1, 0, 0.05], [math.sin(TILT), 0, -math.cos(TILT), -0.08], [math.cos(TILT), 0, math.sin(TILT), -0.3],
     [0, 0, 0, 1]], dtype=torch.float64,
)  # fmt: skip
SMALL = BevBackboneConfig((1, 1), (8, 8), (1, 2), (8, 8), (1, 2))
#: Its levels come out at half the resolution of the map.
HALVING = BevBackboneConfig((1, 0, 1), (8, 8, 8), (2, 2, 2), (8, 8, 4), (1, 2, 4))


def make_head(config: AnchorHeadConfig | None = None, extent=EXTENT, cells=CELLS, backbone=SMALL) -> AnchorHead:
    torch.manual_seed(0)
    return AnchorHead(4, extent, cells, replace(config or AnchorHeadConfig(), backbone=backbone))


def objects(rows: list[tuple[str, tuple]]) -> Objects:
    """Label lines from class names and LiDAR rows."""
    values = torch.tensor([row for _, row in rows], dtype=torch.float64).reshape(-1, 7)
    label = torch.tensor([KITTI_CLASSES.index(name) for name, _ in rows], dtype=torch.int64)
    lidar = Boxes3D(values[:, :3], values[:, 3:6], values[:, 6], label, "lidar")
    boxes = replace(
        lidar_to_camera(lidar, POSE), box2d=torch.zeros(len(rows), 4).double(), alpha=torch.zeros(len(rows)).double()
    )
    zero = torch.zeros(len(rows), dtype=torch.int64)
    return Objects(boxes, zero.double(), zero, torch.full_like(zero, EASY))


def make_batch(images: list[Objects | None], mirrored: tuple[int, ...] = ()) -> Batch:
    samples = []
    for i, of_image in enumerate(images):
        affine = ImageAffine.crop(SIZE, (320, 96), flip=i in mirrored)
        pose = mirror_pose(POSE) if i in mirrored else POSE
        placed = None if of_image is None else place_objects(of_image, affine)
        samples.append(Sample(f"{i:06}", torch.zeros(3, 96, 320), affine.camera(CAMERA), affine, placed,
                              lidar_to_camera=pose))  # fmt: skip
    return collate(samples)


CAR = ("Car", (15.2, 3.1, -0.9, 4.1, 1.7, 1.5, 0.3))
SCENE = [
    CAR,
    ("Cyclist", (9.3, -4.2, -0.6, 1.8, 0.6, 1.7, -2.0)),
    ("Pedestrian", (20.1, 7.7, -0.7, 0.8, 0.7, 1.8, 1.4)),
    ("Car", (28.6, -9.1, -1.0, 3.8, 1.6, 1.6, -1.6)),
]


def predict(head: AnchorHead, batch: Batch) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return head(torch.randn(len(batch), 4, *CELLS, generator=generator))


# -------------------------------------------------------------------------------------------------------------- targets


def test_targets_are_lidar_rows_of_the_heads_classes() -> None:
    other = [("Van", (12.0, 0, -0.8, 5, 2, 2, 0)), ("DontCare", (12.0, 0, -0.8, 5, 2, 2, 0))]
    batch = make_batch([objects([other[0], *SCENE, other[1]]), objects([CAR])])
    targets = make_head().targets(batch)
    assert targets.classes.tolist() == [[IGNORE, 0, 2, 1, 0, IGNORE], [0] + [IGNORE] * 5]
    expected = torch.tensor([row for _, row in SCENE])
    torch.testing.assert_close(targets.boxes[0, 1:5], expected, rtol=0, atol=1e-5)
    assert (targets.boxes[targets.classes == IGNORE] == 0).all()
    foreground = targets.labels > BACKGROUND
    assert (targets.labels[0][foreground[0]] == 1 + targets.classes[0, targets.matched[0][foreground[0]]]).all()
    assert set(targets.matched[0][foreground[0]].tolist()) == {1, 2, 3, 4}  # every object has an anchor


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        ((33.9, 0, -1, 4, 1.6, 1.5, 0), True),
        ((35.9, 0, -1, 4, 1.6, 1.5, 0), True),  # its rear end is inside
        ((36.1, 0, -1, 4, 1.6, 1.5, 0), False),
        ((35.9, 0, -1, 4, 1.6, 1.5, math.pi / 2), False),
        ((10, -17.9, -1, 4, 1.6, 1.5, math.pi / 2), True),
        ((10, -17.9, -1, 4, 1.6, 1.5, 0), False),
        ((10, 0, 1.7, 4, 1.6, 1.5, 0), True),
        ((10, 0, 1.8, 4, 1.6, 1.5, 0), False),
    ],
)
def test_objects_need_a_corner_within_the_extent(row: tuple, kept: bool) -> None:
    targets = make_head().targets(make_batch([objects([("Car", row)])]))
    assert bool((targets.classes == 0).any()) == kept
    assert bool((targets.labels > BACKGROUND).any()) == kept


def test_mirrored_images_have_mirrored_targets() -> None:
    batch = make_batch([objects(SCENE), objects(SCENE)], mirrored=(1,))
    plain, mirrored = make_head().targets(batch).boxes
    expected = plain * torch.tensor([1, -1, 1, 1, 1, 1, -1])
    torch.testing.assert_close(mirrored, expected, rtol=0, atol=1e-5)


def test_without_a_lidar_the_error_says_so() -> None:
    batch = replace(make_batch([objects(SCENE)]), lidar_to_camera=None)
    head = make_head()
    for call in (lambda: head.targets(batch), lambda: head.detections(predict(head, batch), batch)):
        with pytest.raises(ValueError, match="does not know the way to the camera"):
            call()


# --------------------------------------------------------------------------------------------------------------- losses


def slow_losses(head: AnchorHead, predictions: dict[str, Tensor], targets: AnchorTargets) -> dict[str, Tensor]:
    """The terms with targets for every anchor, image by image, as the released head computes them."""
    config, images = head.config, len(targets.labels)
    anchors = head.anchors.reshape(-1, 7)
    total = {name: torch.zeros(()) for name in ("cls", "loc", "dir")}
    for b in range(images):
        s, p, d = (predictions[k][b].reshape(len(anchors), -1) for k in ("cls", "box", "dir"))
        labels, positive = targets.labels[b], (targets.labels[b] > 0).float()
        count = positive.sum().clamp(min=1)
        code = encode(targets.boxes[b][targets.matched[b]], anchors)
        sine_p = torch.cat((p[:, :6], p[:, 6:].sin() * code[:, 6:].cos()), 1)
        sine_t = torch.cat((code[:, :6], p[:, 6:].cos() * code[:, 6:].sin()), 1)
        gap = (sine_p - sine_t).abs()
        l1 = torch.where(gap < 1 / 9, 0.5 * gap**2 * 9, gap - 0.5 / 9).sum(1)
        total["loc"] = total["loc"] + 2.0 * (positive * torch.where(positive > 0, l1, 0)).sum() / count / images
        entropy = F.cross_entropy(d, direction_bin(code[:, 6] + anchors[:, 6]), reduction="none")
        total["dir"] = total["dir"] + 0.2 * (positive * torch.where(positive > 0, entropy, 0)).sum() / count / images
        chance = s.sigmoid()
        if config.classification == "focal":
            hot = F.one_hot(labels.clamp(min=0), 4)[:, 1:].float()
            weight = hot * 0.25 + (1 - hot) * 0.75
            wrong = hot * (1 - chance) + (1 - hot) * chance
            bce = F.binary_cross_entropy_with_logits(s, hot, reduction="none")
            loss = (weight * wrong**2 * bce)[labels >= 0].sum() / count / images
        else:
            with torch.no_grad():
                rows = targets.boxes[b]  # rows of padding included, as released
                best, row = iou_3d(decode(p, anchors), rows).max(1)
                hot = torch.zeros_like(s)
                hit = best > 0
                hot[hit, targets.classes[b][row[hit]]] = best[hit]
            bce = F.binary_cross_entropy_with_logits(s, hot, reduction="none")
            loss = 8.0 * ((chance - hot).abs() ** 2 * bce).sum() / hit.sum().clamp(min=1)
            loss = loss / images if config.quality_batch == "mean" else loss
        total["cls"] = total["cls"] + (loss if targets.labelled[b] else 0)
    return total


CONFIGS = {
    "focal": focal_head(),
    "quality": AnchorHeadConfig(),
    "quality mean": AnchorHeadConfig(quality_batch="mean", claimed="claiming"),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_losses_and_gradients_equal_full_tensors(config: AnchorHeadConfig) -> None:
    batch = make_batch([objects(SCENE), objects([]), None, objects([SCENE[1]])], mirrored=(3,))
    head = make_head(config)
    targets = head.targets(batch)
    assert batch.labelled is not None and targets.labelled.tolist() == [True, True, False, True]
    leaves = {k: (v + 0.1 * torch.randn_like(v)).detach().requires_grad_() for k, v in predict(head, batch).items()}
    losses, expected = head.losses(leaves, targets), slow_losses(head, leaves, targets)
    for name in expected:
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-5, atol=1e-7)
        assert losses[name] > 0
    ours, theirs = (torch.autograd.grad(torch.stack(list(v.values())).sum(), list(leaves.values()))
                    for v in (losses, expected))  # fmt: skip
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("images", [[None], [[]], [None, []], [[CAR]], [[("Car", (100.0, 0, 0, 4, 2, 1, 0))]]],
                         ids=["unlabelled", "empty", "both", "one", "out of range"])  # fmt: skip
def test_every_batch_has_finite_losses_and_reaches_every_weight(config: AnchorHeadConfig, images: list) -> None:
    batch = make_batch([None if o is None else objects(o) for o in images])
    head = make_head(config)
    losses = head.losses(predict(head, batch), head.targets(batch))
    torch.stack(list(losses.values())).sum().backward()
    assert all(v.isfinite() for v in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    if not any(images):
        assert losses["loc"] == losses["dir"] == 0
    if all(o is None for o in images):
        assert losses["cls"] == 0


def test_labels_of_unlabelled_images_are_ignored() -> None:
    batch = make_batch([objects(SCENE), objects(SCENE)])
    batch = replace(batch, labelled=torch.tensor([True, False]))
    targets = make_head().targets(batch)
    assert (targets.labels[1] == IGNORED).all() and (targets.classes[1] == IGNORE).all()
    assert (targets.labels[0] > BACKGROUND).any()


def test_200_objects() -> None:
    many = cars(200, torch.Generator().manual_seed(0))
    batch = make_batch([many])
    for config in CONFIGS.values():
        head = make_head(config)
        targets = head.targets(batch)
        assert (targets.classes == 0).sum() > 50
        assert all(v.isfinite() and v > 0 for v in head.losses(predict(head, batch), targets).values())


def test_maps_and_losses_are_float32_under_autocast() -> None:
    batch = make_batch([objects(SCENE)])
    for config in CONFIGS.values():
        head = make_head(config)
        exact = head.losses(predict(head, batch), head.targets(batch))
        with torch.autocast("cpu", torch.bfloat16):
            predictions = predict(head, batch)
            losses = head.losses(predictions, head.targets(batch))
        assert {v.dtype for v in (*predictions.values(), *losses.values())} == {torch.float32}
        for name, value in losses.items():
            torch.testing.assert_close(value, exact[name], rtol=0.05, atol=0.01)


def test_runaway_codes_do_not_spoil_the_quality() -> None:
    head = make_head()
    batch = make_batch([objects(SCENE)])
    predictions = predict(head, batch)
    wild = predictions["box"].detach().clone()
    wild[..., 3:6] += 100 * torch.randn(wild[..., 3:6].shape, generator=torch.Generator().manual_seed(0))
    losses = head.losses(predictions | {"box": wild}, head.targets(batch))
    assert losses["cls"].isfinite()


# ---------------------------------------------------------------------------------------------------------------- boxes


def perfect(head: AnchorHead, targets: AnchorTargets, half_turns: int = 0) -> dict[str, Tensor]:
    """Maps in which the foreground anchors say exactly what they should."""
    anchors = head.anchors.reshape(-1, 7)
    batch, count = targets.labels.shape
    cls = torch.full((batch, count, len(head.config.classes)), -10.0)
    box, turn = torch.zeros(batch, count, 7), torch.zeros(batch, count, 2)
    image, anchor = (targets.labels > BACKGROUND).nonzero(as_tuple=True)
    rows = targets.boxes[image, targets.matched[image, anchor]]
    cls[image, anchor, targets.labels[image, anchor] - 1] = 2.0
    code = encode(rows, anchors[anchor])
    code[:, 6] += half_turns * math.pi
    box[image, anchor] = code
    turn[image, anchor, direction_bin(rows[:, 6])] = 1.0
    cells = head.anchors.shape[:2]
    return {name: v.reshape(batch, *cells, -1) for name, v in (("cls", cls), ("box", box), ("dir", turn))}


def test_a_coarser_map_has_the_anchors_of_its_own_cells() -> None:
    head, batch = make_head(cells=(128, 64), backbone=HALVING), make_batch([objects(SCENE), objects([CAR])])
    assert HALVING.stride == 2 and SMALL.stride == 1
    assert torch.equal(head.anchors, make_head(cells=(64, 32)).anchors)
    predictions = head(torch.randn(2, 4, 128, 64, generator=torch.Generator().manual_seed(0)))
    assert {m.shape[:3] for m in predictions.values()} == {(2, 64, 32)}
    torch.stack([*head.losses(predictions, head.targets(batch)).values()]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("half_turns", [0, 1])
@pytest.mark.parametrize("backbone", [SMALL, HALVING], ids=["as fine", "halved"])
@pytest.mark.parametrize("mirrored", [(), (0,)], ids=["plain", "mirrored"])
def test_perfect_maps_give_the_objects_back(
    mirrored: tuple[int, ...], backbone: BevBackboneConfig, half_turns: int
) -> None:
    scene = objects(SCENE)
    batch = make_batch([scene, objects([]), None], mirrored)
    head = make_head(cells=tuple(side * backbone.stride for side in CELLS), backbone=backbone)
    found = head.detections(perfect(head, head.targets(batch), half_turns), batch)
    assert [len(f) for f in found] == [len(SCENE), 0, 0]
    boxes, truth = found[0], scene.boxes
    assert boxes.frame == "camera" and boxes.box2d is not None and boxes.alpha is not None and boxes.score is not None
    order = (truth.centre[:, None].float() - boxes.centre).norm(dim=-1).argmin(1)
    boxes = boxes[order]
    torch.testing.assert_close(boxes.centre, truth.centre.float(), rtol=0, atol=2e-5)
    torch.testing.assert_close(boxes.size, truth.size.float(), rtol=0, atol=2e-5)
    torch.testing.assert_close((boxes.yaw - truth.yaw).cos().float(), torch.ones(len(SCENE)), rtol=0, atol=1e-6)
    assert torch.equal(boxes.label, truth.label)
    torch.testing.assert_close(boxes.score, torch.full((len(SCENE),), 2.0).sigmoid())

    uv = CAMERA.project(truth.corners().flatten(0, 1))[0].view(-1, 8, 2)
    last = torch.tensor(SIZE) - 1
    box2d = torch.cat((uv.amin(1), uv.amax(1)), 1).clamp(min=0).minimum(last.repeat(2))
    assert boxes.box2d is not None and boxes.alpha is not None
    torch.testing.assert_close(boxes.box2d.double(), box2d, rtol=0, atol=0.01)
    lidar = torch.tensor([row for _, row in SCENE], dtype=torch.float64)
    alpha = -torch.atan2(-lidar[:, 1], lidar[:, 0]) - truth.yaw
    torch.testing.assert_close((boxes.alpha - alpha).cos(), torch.ones(len(SCENE)).double(), rtol=0, atol=1e-6)


def test_detections_obey_threshold_suppression_and_limit() -> None:
    scene = objects(SCENE)
    batch = make_batch([scene])
    head = make_head()
    maps = perfect(head, head.targets(batch))
    maps["cls"] = torch.where(maps["cls"] > 0, torch.logit(torch.tensor(0.0999)), maps["cls"])
    assert len(head.detections(maps, batch)[0]) == 0
    maps["cls"] = torch.where(maps["cls"] > -5, torch.logit(torch.tensor(0.1001)), maps["cls"])
    assert len(head.detections(maps, batch)[0]) == len(SCENE)

    torch.manual_seed(0)
    maps["cls"] = maps["cls"] + torch.rand(maps["cls"].shape) * (maps["cls"] > -5)
    best = head.detections(maps, batch)[0]
    assert best.score is not None and (best.score.diff() <= 0).all()
    head.config = replace(head.config, max_detections=2)
    limited = head.detections(maps, batch)[0]
    assert limited.score is not None and torch.equal(limited.score, best.score[:2])
    head.config = replace(head.config, max_detections=500, nms_threshold=1.0)
    assert len(head.detections(maps, batch)[0]) > len(SCENE)


def test_boxes_without_a_size_are_left_out() -> None:
    batch = make_batch([objects(SCENE)])
    head = make_head()
    maps = perfect(head, head.targets(batch))
    for value in (-1000.0, 1000.0, math.nan):
        assert len(head.detections(maps | {"box": torch.full_like(maps["box"], value)}, batch)[0]) == 0


def test_boxes_beside_the_camera_stay_on_their_side() -> None:
    """A box that reaches behind the camera on the left encloses nothing right of where it is seen."""
    row = torch.tensor([[1.5, 3.0, -0.9, 4.0, 1.6, 1.5, 0.0]])
    boxes = lidar_to_camera(Boxes3D(row[:, :3], row[:, 3:6], row[:, 6], torch.tensor([1]), "lidar"), POSE)
    left, _, right, _ = projected_boxes(boxes, CAMERA, torch.tensor(SIZE).double())[0].tolist()
    assert left == 0 and right < SIZE[0] / 2


# ----------------------------------------------------------------------------------------------------------------- size


def test_the_released_sizes() -> None:
    head = AnchorHead(128, (2, -30.08, -3, 46.8, 30.08, 1), (188, 140), AnchorHeadConfig())
    count = sum(p.numel() for p in head.backbone.parameters())
    assert count == 4_429_312
    assert [getattr(head, n).out_channels for n in ("conv_cls", "conv_box", "conv_dir_cls")] == [18, 42, 12]
    assert not any("anchors" in name for name in head.state_dict())


@pytest.mark.parametrize(
    ("cells", "config", "message"),
    [
        ((63, 64), {}, "63 x 64 cells: both must be multiples of 2"),
        (CELLS, {"classes": (replace(KITTI_ANCHORS[0], name="Horse"),)}, "unknown classes Horse"),
    ],
)
def test_impossible_heads_are_refused(cells: tuple[int, int], config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_head(AnchorHeadConfig(**config), cells=cells)


def test_impossible_backbones_are_refused() -> None:
    with pytest.raises(UserError, match="one number for each level"):
        BevBackboneConfig(layers=(5,))
    with pytest.raises(UserError, match="must return to the resolution"):
        BevBackboneConfig(up_strides=(1, 1))
    with pytest.raises(UserError, match="must return to the resolution"):
        BevBackboneConfig(up_strides=(2, 4))
    with pytest.raises(UserError, match="a whole number of times coarser"):
        BevBackboneConfig(strides=(3, 1), up_strides=(2, 2))


@pytest.mark.real
def test_real_labels_come_back(real_data: Path) -> None:
    """Labels of real frames, coded and decoded, are the labels again; their boxes project near the labelled ones."""
    dataset = KittiDataset(KittiConfig(real_data / "kitti_mini", "trainval", placement="corner", divide="homogeneous"))
    head = AnchorHead(4, (2, -30.08, -3, 46.8, 30.08, 1), (188, 140), AnchorHeadConfig(backbone=SMALL))
    compared = 0
    for index in range(len(dataset)):
        batch = collate([dataset.get(index)])
        targets = head.targets(batch)
        assert batch.objects is not None
        (found,) = head.detections(perfect(head, targets), batch)
        wanted = targets.classes[0] >= 0
        assert set(targets.matched[targets.labels > 0].tolist()) == set(wanted.nonzero()[:, 0].tolist())
        truth = batch.objects
        assert len(found) <= int(wanted.sum())
        if not len(found):
            continue
        assert found.box2d is not None
        gap = (found.centre[:, None] - truth.centre[0][wanted]).norm(dim=-1)
        nearest = gap.argmin(1)
        assert gap.min(1).values.max() < 1e-4
        assert torch.equal(found.label, truth.label[0][wanted][nearest])
        turn = (found.yaw - truth.yaw[0][wanted][nearest]).cos()
        assert turn.min() > 1 - 1e-5
        whole = (truth.truncation[0][wanted][nearest] == 0) & (truth.occlusion[0][wanted][nearest] == 0)
        edges = (found.box2d - truth.box2d[0][wanted][nearest]).abs().amax(1)[whole]
        compared += len(edges)
        assert (edges < 12).all()  # px: labelled 2D boxes were drawn by hand
    assert compared > 5
