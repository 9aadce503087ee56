"""Augmentation of scans: points stay in their boxes, pasted objects stand free, nothing is random but the generator."""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Polygon
from streets import CANVAS
from torch import Tensor

from distill3d.boxes import IGNORE, KITTI_CLASSES, Boxes3D, camera_to_lidar, lidar_to_camera, wrap_angle
from distill3d.camera import Camera, ImageAffine
from distill3d.data.augment.image import AugmentConfig, frame_generator
from distill3d.data.augment.lidar import (
    LidarAugmentConfig,
    LidarScene,
    Motion,
    ObjectDatabase,
    augment_lidar,
    bev_overlap,
    carry,
    draw_objects,
    field_of_view,
    lidar_objects,
    on_road,
    projected_boxes,
)
from distill3d.data.kitti.dataset import KittiConfig, KittiDataset
from distill3d.data.kitti.scans import read_plane
from distill3d.data.sample import EASY, HARD, UNKNOWN, Objects, Sample
from distill3d.errors import UserError
from distill3d.settings import check_settings

SIZE = (1242, 375)
CAMERA = Camera(torch.tensor([[721.5, 0, 609.6, 44.9], [0, 721.5, 172.9, 0.2], [0, 0, 1, 0]], dtype=torch.float64))
#: A LiDAR that is tilted and displaced as KITTI's is.
POSE = torch.tensor(
    [[0.0075, -0.9999717, -0.0006, -0.004], [0.0148, 0.0007, -0.99989, -0.076], [0.99986, 0.0075, 0.0148, -0.272],
     [0, 0, 0, 1]], dtype=torch.float64,
)  # fmt: skip
POSE[:3, :3] = torch.linalg.qr(POSE[:3, :3]).Q * torch.linalg.qr(POSE[:3, :3]).R.diagonal().sign()
CAR, PEDESTRIAN = KITTI_CLASSES.index("Car"), KITTI_CLASSES.index("Pedestrian")
STILL = LidarAugmentConfig(flip_y=0, rotation=0, scale=(1, 1), counts=(), shuffle=False)
seeds = st.integers(0, 2**31)
styles = st.sampled_from(["released", "intended"])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_boxes(seed: int, n: int, spread: float = 30.0) -> Boxes3D:
    """Cars and pedestrians in the LiDAR's frame, in front of it."""
    g = generator(seed)
    centre = torch.rand(n, 3, generator=g, dtype=torch.float64) * torch.tensor([spread, spread, 0.5])
    centre += torch.tensor([4.0, -spread / 2, -1.0])
    size = 0.5 + torch.rand(n, 3, generator=g, dtype=torch.float64) * torch.tensor([4.0, 1.5, 1.0])
    yaw = (torch.rand(n, generator=g, dtype=torch.float64) - 0.5) * 2 * math.pi
    label = torch.where(torch.rand(n, generator=g) < 0.5, CAR, PEDESTRIAN)
    return Boxes3D(centre, size, yaw, label, "lidar", box2d=torch.zeros(n, 4).double(), alpha=torch.zeros(n).double())


def fill(boxes: Boxes3D, seed: int, each: int = 12, others: int = 400) -> Tensor:
    """Points well inside the boxes, and others anywhere; float64."""
    g = generator(seed + 1)
    share = 0.98 * (torch.rand(len(boxes), each, 3, generator=g, dtype=torch.float64) - 0.5)
    along = boxes.heading()
    axes = torch.stack((along, torch.stack((-along[:, 1], along[:, 0], along[:, 2]), 1), along.new_tensor([[0, 0, 1]])
                        .expand_as(along)), 1)  # fmt: skip
    inside = (boxes.centre[:, None] + (share * boxes.size[:, None]) @ axes).flatten(0, 1)
    anywhere = torch.rand(others, 3, generator=g, dtype=torch.float64) * 40 - torch.tensor([0, 20.0, 3])
    xyz = torch.cat((inside, anywhere))
    return torch.cat((xyz, torch.rand(len(xyz), 1, generator=g, dtype=torch.float64)), 1)


def objects_of(boxes: Boxes3D) -> Objects:
    zero = torch.zeros(len(boxes), dtype=torch.int64)
    return Objects(boxes, zero.double(), zero, zero + HARD)


def some_database(seed: int, n: int, spread: float = 30.0) -> ObjectDatabase:
    boxes = some_boxes(seed, n, spread)
    return ObjectDatabase.build([LidarScene(fill(boxes, seed).float(), objects_of(boxes))], least_points=5)


def some_sample(seed: int, n: int = 4) -> Sample:
    """A frame in the camera's frame whose last label line has no 3D box."""
    boxes = some_boxes(seed, n + 1)
    points = carry(fill(boxes[:-1], seed), POSE)
    seen = lidar_to_camera(boxes, POSE)
    for value in (seen.centre, seen.size, seen.yaw):
        value[-1] = math.nan
    seen.label[-1] = IGNORE
    image = torch.zeros(3, SIZE[1], SIZE[0])
    return Sample("000042", image, CAMERA, ImageAffine.crop(SIZE, SIZE), objects_of(seen), None, points, POSE)


def shared_ground(a: Boxes3D, b: Boxes3D) -> list[list[float]]:
    shapes = [[Polygon(c[:4, :2].tolist()) for c in boxes.corners()] for boxes in (a, b)]
    return [[p.intersection(q).area for q in shapes[1]] for p in shapes[0]]


def rows(boxes: Boxes3D) -> Tensor:
    return torch.cat((boxes.centre, boxes.size, boxes.yaw[:, None]), 1)


# ------------------------------------------------------------------------------------------------------------- geometry


@given(seeds, st.sampled_from(["flip", "turn", "scale", "all", "none"]))
def test_points_stay_in_their_boxes(seed: int, kind: str) -> None:
    """The very same points, so also as many of them, lie in each box before and after."""
    on = {name: kind in (name, "all") for name in ("flip", "turn", "scale")}
    config = LidarAugmentConfig(
        flip_y=float(on["flip"]), rotation=math.pi if on["turn"] else 0, scale=(0.5, 2) if on["scale"] else (1, 1)
    )  # fmt: skip
    motion = Motion.draw(config, generator(seed))
    boxes = some_boxes(seed, 5)
    points = fill(boxes, seed)
    moved, moved_points = motion.boxes(boxes), motion.points(points)
    before = boxes.contains(points[:, :3])
    assert torch.equal(before, moved.contains(moved_points[:, :3])) and (before.sum(1) >= 12).all()
    assert torch.equal(points[:, 3], moved_points[:, 3]) and (moved.yaw.abs() <= math.pi).all()
    assert torch.allclose(moved.size, boxes.size * motion.scale) and torch.equal(moved.label, boxes.label)
    if kind == "none":
        assert torch.equal(moved_points, points) and torch.allclose(moved.yaw, boxes.yaw)


@pytest.mark.parametrize(
    ("motion", "point", "yaw"),
    [
        (Motion(True, 0.0, 1.0), (3.0, -1.0, 2.0), -0.3),
        (Motion(False, math.pi / 2, 1.0), (-1.0, 3.0, 2.0), 0.3 + math.pi / 2),
        (Motion(False, 0.0, 2.0), (6.0, 2.0, 4.0), 0.3),
        (Motion(True, math.pi / 2, 1.0), (1.0, 3.0, 2.0), math.pi / 2 - 0.3),  # mirrored first, then turned
        (Motion(False, math.pi, 0.5), (-1.5, -0.5, 1.0), 0.3 - math.pi),
    ],
)
def test_motions(motion: Motion, point: tuple[float, ...], yaw: float) -> None:
    box = Boxes3D(torch.tensor([[3.0, 1, 2]]).double(), torch.tensor([[4.0, 2, 1]]).double(),
                  torch.tensor([0.3]).double(), torch.tensor([CAR]), "lidar",
                  velocity=torch.tensor([[3.0, 1]]).double())  # fmt: skip
    moved = motion.boxes(box)
    assert moved.centre[0].tolist() == pytest.approx(point) and moved.yaw[0].item() == pytest.approx(yaw)
    assert moved.velocity is not None and moved.velocity[0].tolist() == pytest.approx(point[:2])
    assert motion.points(torch.tensor([[3.0, 1, 2, 0.7]]))[0].tolist() == pytest.approx((*point, 0.7))
    with pytest.raises(ValueError, match="lidar frame"):
        motion.boxes(replace(box, frame="camera"))


@given(seeds)
def test_draws_stay_in_range_and_do_not_depend_on_each_other(seed: int) -> None:
    config = LidarAugmentConfig()
    motion = Motion.draw(config, generator(seed))
    assert abs(motion.angle) <= math.pi / 4 and 0.95 <= motion.scale <= 1.05
    other = Motion.draw(replace(config, flip_y=1 - motion.flip, scale=(2, 3)), generator(seed))
    assert other.angle == motion.angle and other.flip != motion.flip and 2 <= other.scale <= 3


def test_draws_cover_their_range() -> None:
    motions = [Motion.draw(LidarAugmentConfig(), generator(seed)) for seed in range(400)]
    assert 150 < sum(m.flip for m in motions) < 250
    assert min(m.angle for m in motions) < -0.7 and max(m.angle for m in motions) > 0.7
    assert min(m.scale for m in motions) < 0.952 and max(m.scale for m in motions) > 1.048


@given(seeds)
def test_overlap_is_that_of_the_polygons(seed: int) -> None:
    a, b = some_boxes(seed, 6, spread=8.0), some_boxes(seed + 1, 7, spread=8.0)
    area = torch.tensor(shared_ground(a, b))
    overlap = bev_overlap(rows(a), rows(b))
    clear = (area == 0) | (area > 1e-9)
    assert torch.equal(overlap[clear], (area > 0)[clear]) and overlap.shape == (6, 7)


@pytest.mark.parametrize(
    ("x", "y", "yaw", "expected"),
    [
        (0, 0, 0, True),
        (1.9, 0.9, 0, True),
        (2, 0, 0, False),  # they touch
        (0, 1, 0, False),
        (1.4, 0, math.pi / 2, True),
        (1.6, 0, math.pi / 2, False),
        (1.8, 1.2, math.pi / 4, False),  # apart only along an axis of the turned one
        (0, 0, 1, True),
    ],
)
def test_overlap_table(x: float, y: float, yaw: float, expected: bool) -> None:
    a = torch.tensor([[0.0, 0, 0, 2, 1, 1, 0]], dtype=torch.float64)
    b = torch.tensor([[x, y, 50, 2, 1, 1, yaw]], dtype=torch.float64)
    assert bev_overlap(a, b).item() is expected and bev_overlap(b, a).item() is expected
    assert bev_overlap(a, b[:0]).shape == (1, 0) and bev_overlap(a[:0], b).shape == (0, 1)


@pytest.mark.parametrize(
    ("point", "inside"),
    [((0, 0, 10), True), ((0, 0, -10), False), ((0, 0, 0), False), ((-9, 0, 10), False), ((9, 0, 10), False),
     ((0, -3, 10), False), ((0, 3, 10), False), ((-8.5, 0, 10), True), ((8, 2.5, 10), True)],
)  # fmt: skip
def test_field_of_view(point: tuple[float, ...], inside: bool) -> None:
    assert field_of_view(torch.tensor([[*point, 0.5]]).float(), CAMERA, SIZE).tolist() == [inside]
    assert field_of_view(torch.zeros(0, 4), CAMERA, SIZE).shape == (0,)


def test_projected_boxes_are_clipped() -> None:
    centre = torch.tensor([[0.0, 1, 20], [-15, 1, 20], [0, 1, 1], [300, 1, 20]], dtype=torch.float64)
    boxes = Boxes3D(centre, torch.tensor([[4.0, 2, 1.5]]).double().expand(4, 3), torch.zeros(4).double(),
                    torch.zeros(4).long(), "camera")  # fmt: skip
    box2d = projected_boxes(boxes, CAMERA, SIZE)
    uv = CAMERA.project(boxes.corners()[0])[0]
    assert torch.allclose(box2d[0], torch.cat((uv.amin(0), uv.amax(0))))
    assert box2d[1, 0] == 0 and 0 < box2d[1, 2] < 300
    assert box2d[2].tolist() == pytest.approx([0, box2d[2, 1].item(), SIZE[0] - 1, SIZE[1] - 1])
    assert box2d[3, [0, 2]].tolist() == [SIZE[0] - 1] * 2
    assert projected_boxes(boxes[:0], CAMERA, SIZE).shape == (0, 4)


@given(seeds)
def test_objects_stand_on_the_road(seed: int) -> None:
    boxes = rows(some_boxes(seed, 5))
    a, c, d = (torch.rand(3, generator=generator(seed), dtype=torch.float64) * 0.1).tolist()
    plane = torch.tensor([a, -1.0, c, 1.6 + d], dtype=torch.float64)
    moved = on_road(boxes, plane, POSE)
    assert torch.equal(moved[:, [0, 1, 3, 4, 5, 6]], boxes[:, [0, 1, 3, 4, 5, 6]])
    assert torch.allclose(on_road(boxes, -3 * plane, POSE), moved)
    # As released the height is read off where the camera sees the old centre, so it is exact up to the LiDAR's tilt.
    bottom = carry(moved[:, :3] - torch.stack((torch.zeros(5), torch.zeros(5), boxes[:, 5] / 2), 1), POSE)
    assert (bottom @ plane[:3] + plane[3]).abs().max() < 0.1
    level = on_road(boxes, plane, torch.tensor([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]).double())
    x, y, z = -level[:, 1], -(level[:, 2] - level[:, 5] / 2), level[:, 0]
    assert torch.allclose(a * x - y + c * z + 1.6 + d, torch.zeros(5).double(), atol=1e-9)


# ------------------------------------------------------------------------------------------------- objects to be pasted


@given(seeds, styles)
def test_pasted_objects_never_share_ground(seed: int, style) -> None:
    scene, database = some_boxes(seed, 6), some_database(seed + 1, 40)
    config = LidarAugmentConfig(counts=(("Car", 12), ("Pedestrian", 9)), style=style)
    chosen = draw_objects(database, scene, KITTI_CLASSES, config, generator(seed))
    r = database.boxes[chosen]
    pasted = Boxes3D(r[:, :3], r[:, 3:6], r[:, 6], database.label[chosen], "lidar")
    assert len(set(chosen.tolist())) == len(chosen)
    for area in shared_ground(pasted, scene):
        assert max(area) <= 1e-9
    for i, area in enumerate(shared_ground(pasted, pasted)):
        assert max([*area[:i], *area[i + 1 :], 0]) <= 1e-9
    for name, count in config.counts:
        label = KITTI_CLASSES.index(name)
        found = int((scene.label == label).sum())
        assert int((database.label[chosen] == label).sum()) <= max(0, count - found)


@pytest.mark.parametrize(("style", "pasted"), [("released", 1), ("intended", 2)])
def test_candidates_that_clash(style, pasted: int) -> None:
    """Two cars in one place and one elsewhere: the released code drops both, the intended rule keeps the first."""
    boxes = some_boxes(0, 3)
    boxes = replace(boxes, centre=torch.tensor([[10.0, 0, 0], [10.5, 0, 0], [30, 0, 0]]).double(),
                    label=torch.full((3,), CAR))  # fmt: skip
    database = ObjectDatabase.build([LidarScene(fill(boxes, 0).float(), objects_of(boxes))], 5)
    config = LidarAugmentConfig(counts=(("Car", 3),), style=style)
    for seed in range(6):
        chosen = draw_objects(database, boxes[:0], KITTI_CLASSES, config, generator(seed)).tolist()
        assert len(chosen) == pasted and 2 in chosen
    scene = replace(boxes[2:], label=torch.tensor([PEDESTRIAN]))
    assert len(draw_objects(database, scene, KITTI_CLASSES, config, generator(0))) == pasted - 1


def test_first_of_a_chain_stays() -> None:
    """Of three in a row, the middle touching both, the first and the last go together: which is first decides."""
    boxes = replace(some_boxes(0, 3), centre=torch.tensor([[10.0, 0, 0], [13, 0, 0], [16, 0, 0]]).double(),
                    size=torch.tensor([[4.0, 2, 1.5]]).double().expand(3, 3), yaw=torch.zeros(3).double(),
                    label=torch.full((3,), CAR))  # fmt: skip
    database = ObjectDatabase.build([LidarScene(fill(boxes, 0).float(), objects_of(boxes))], 5)
    config = LidarAugmentConfig(counts=(("Car", 3),), style="intended")
    drawn = {
        tuple(draw_objects(database, boxes[:0], KITTI_CLASSES, config, generator(s)).sort()[0].tolist())
        for s in range(12)
    }
    assert drawn == {(0, 2), (1,)}


@pytest.mark.parametrize(
    ("counts", "less_existing", "wanted"),
    [((("Car", 3),), True, 1), ((("Car", 3),), False, 3), ((("Car", 2),), True, 0), ((("Car", 0),), False, 0),
     ((), True, 0), ((("Cyclist", 5),), True, 0), ((("Car", 99),), True, 10)],
)  # fmt: skip
def test_how_many_are_drawn(counts: tuple, less_existing: bool, wanted: int) -> None:
    """Two cars stand in the scene and ten in the database, all far from each other."""
    boxes = replace(some_boxes(1, 10), label=torch.full((10,), CAR))
    boxes = replace(boxes, centre=torch.arange(10).double()[:, None] * torch.tensor([10.0, 0, 0]))
    database = ObjectDatabase.build([LidarScene(fill(boxes, 0).float(), objects_of(boxes))], 5)
    scene = replace(boxes[:2], centre=boxes.centre[:2] - 500)
    config = LidarAugmentConfig(counts=counts, less_existing=less_existing)
    assert len(draw_objects(database, scene, KITTI_CLASSES, config, generator(3))) == wanted


@given(seeds)
def test_database_holds_each_objects_points(seed: int) -> None:
    boxes = some_boxes(seed, 6)
    points = fill(boxes, seed).float()
    objects = objects_of(boxes)
    objects.difficulty[0] = UNKNOWN
    boxes.label[1] = IGNORE
    inside = boxes.to(torch.float32).contains(points[:, :3])
    least = int(inside.sum(1).median())
    scene = LidarScene(points, objects)
    database = ObjectDatabase.build([scene, LidarScene(points, None), scene], least)
    kept = [i for i in range(2, 6) if inside[i].sum() >= least] * 2
    assert database.count.tolist() == [int(inside[i].sum()) for i in kept] and len(database) == len(kept)
    assert torch.allclose(database.boxes, rows(boxes)[kept]) and (database.difficulty == HARD).all()
    chosen = torch.arange(len(database)).flip(0)
    found = database.points_of(chosen, database.boxes[chosen, :3])
    expected = [points[inside[kept[i]]] for i in chosen.tolist()]
    assert torch.allclose(found, torch.cat([*expected, points[:0]]), atol=1e-5)


# -------------------------------------------------------------------------------------------------------------- samples


def test_without_motion_nothing_changes() -> None:
    sample = some_sample(3)
    same = augment_lidar(sample, STILL, generator(0))
    assert sample.objects is not None and same.objects is not None
    assert sample.points is not None and same.points is not None
    assert torch.allclose(same.points, sample.points, atol=1e-9)
    for name in ("centre", "size", "yaw"):
        a, b = getattr(sample.objects.boxes, name), getattr(same.objects.boxes, name)
        assert torch.allclose(a, b, atol=1e-9, equal_nan=True)
    assert same.image is sample.image and same.camera is sample.camera and same.lidar_to_camera is POSE


@given(seeds)
def test_pasting(seed: int) -> None:
    """Label lines of the scene come first and stay as they are; pasted ones hold their own points alone."""
    sample, database = some_sample(seed), some_database(seed + 1, 30)
    config = replace(STILL, counts=LidarAugmentConfig().counts)
    out = augment_lidar(sample, config, generator(seed), database, KITTI_CLASSES)
    assert sample.objects is not None and out.objects is not None and out.points is not None
    assert sample.points is not None
    n = len(sample.objects)
    pasted = out.objects[n:]
    assert torch.equal(out.objects.boxes.label[:n], sample.objects.boxes.label)
    assert torch.allclose(out.objects.boxes.centre[:n], sample.objects.boxes.centre, atol=1e-9, equal_nan=True)
    assert not pasted.truncation.any() and not pasted.occlusion.any() and (pasted.difficulty == HARD).all()
    boxes = camera_to_lidar(pasted.boxes, torch.linalg.inv(POSE))
    distance = (boxes.centre[:, None] - database.boxes[None, :, :3]).norm(dim=-1)
    source = distance.argmin(1) if len(boxes) else torch.zeros(0, dtype=torch.int64)
    assert len(boxes) == 0 or distance.amin(1).max() < 1e-6
    inside = boxes.contains(carry(out.points, torch.linalg.inv(POSE))[:, :3], margin=1e-6).sum(1)
    assert torch.equal(inside, database.count[source])
    assert torch.isin(out.points[int(database.count[source].sum()) :, 3], sample.points[:, 3]).all()
    box2d, alpha = pasted.boxes.box2d, pasted.boxes.alpha
    assert box2d is not None and alpha is not None
    assert (box2d >= 0).all() and (box2d[:, 2:] >= box2d[:, :2]).all()
    assert (box2d[:, 2] <= SIZE[0] - 1).all() and (box2d[:, 3] <= SIZE[1] - 1).all()
    ray = torch.atan2(pasted.boxes.centre[:, 0], pasted.boxes.centre[:, 2])
    assert wrap_angle(alpha + pasted.boxes.yaw + ray).abs().sum() < 1e-6


@settings(max_examples=25)
@given(seeds, styles)
def test_the_generator_decides_everything(seed: int, style) -> None:
    sample, database = some_sample(seed), some_database(seed + 1, 30)
    config = LidarAugmentConfig(style=style)
    first = augment_lidar(sample, config, generator(seed), database, KITTI_CLASSES)
    torch.rand(1)  # the global generator has no say
    same = augment_lidar(sample, config, generator(seed), database, KITTI_CLASSES)
    other = augment_lidar(sample, config, generator(seed + 1), database, KITTI_CLASSES)
    assert first.points is not None and same.points is not None and other.points is not None
    assert first.objects is not None and same.objects is not None
    assert torch.equal(first.points, same.points)
    assert torch.equal(first.objects.boxes.centre.nan_to_num(), same.objects.boxes.centre.nan_to_num())
    assert first.points.shape != other.points.shape or not torch.equal(first.points, other.points)


def test_shuffling_keeps_the_points() -> None:
    sample = some_sample(0)
    out = augment_lidar(sample, replace(STILL, shuffle=True), generator(0))
    assert sample.points is not None and out.points is not None
    order, expected = out.points[:, 3].argsort(), sample.points[:, 3].argsort()
    assert not torch.equal(out.points[:, 3], sample.points[:, 3])
    assert torch.allclose(out.points[order], sample.points[expected], atol=1e-9)


@pytest.mark.parametrize("case", ["no points", "no objects", "no labels", "no candidates", "only DontCare"])
def test_nothing_there(case: str) -> None:
    sample, database = some_sample(0), some_database(1, 20)
    points, objects = sample.points, sample.objects
    assert points is not None and objects is not None
    if case == "no candidates":
        database = ObjectDatabase.build([], 5)
    else:
        changed = {
            "no points": {"points": points[:0]}, "no labels": {"objects": None},
            "no objects": {"objects": objects[:0]}, "only DontCare": {"objects": objects[-1:]},
        }  # fmt: skip
        sample = replace(sample, **changed[case])
    out = augment_lidar(sample, LidarAugmentConfig(), generator(0), database, KITTI_CLASSES)
    assert out.points is not None and sample.points is not None and (out.objects is None) == (case == "no labels")
    before, after = (0 if o.objects is None else len(o.objects) for o in (sample, out))
    if case in ("no labels", "no candidates"):
        assert out.points.shape == sample.points.shape and after == before
    else:
        assert after > before and len(out.points) > 0


def test_what_cannot_be_augmented() -> None:
    sample = some_sample(0)
    with pytest.raises(ValueError, match="000042 has no points"):
        augment_lidar(replace(sample, points=None), STILL, generator(0))
    with pytest.raises(UserError, match="names class 'Bus', expected one of Pedestrian"):
        config = LidarAugmentConfig(counts=(("Bus", 1),))
        augment_lidar(sample, config, generator(0), some_database(0, 3), KITTI_CLASSES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"flip_y": 1.5}, "flip_y is 1.5"),
        ({"rotation": -0.1}, "rotation is -0.1"),
        ({"scale": (1.1, 0.9)}, "ascending order"),
        ({"scale": (0.0, 0.9)}, "scale.0 is 0.0, expected a number above 0"),
        ({"least_points": 0}, "least_points is 0"),
        ({"counts": (("Car", -1),)}, "counts.0.1 is -1"),
    ],
)
def test_malformed_settings(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_settings(LidarAugmentConfig(**changes))


# ------------------------------------------------------------------------------------------------------------- data set


def street_config(root: Path, **changes) -> KittiConfig:
    config = KittiConfig(
        root, "train", canvas=CANVAS, points=True, min_height_scale=CANVAS[0] / 1242,
        lidar_augment=LidarAugmentConfig(), augment=AugmentConfig(), in_memory=True,
    )  # fmt: skip
    return replace(config, **changes)


def test_database_of_a_split(streets: Path) -> None:
    dataset = KittiDataset(street_config(streets))
    database = dataset.object_database
    assert len(database) > 5 and (database.count >= 5).all() and (database.difficulty >= EASY).all()
    assert int(database.count.sum()) == len(database.points) and {CAR} <= set(database.label.tolist())
    # Each object's points lie in its box, about the origin.
    owner = torch.repeat_interleave(torch.arange(len(database)), database.count)
    b = database.boxes
    own = Boxes3D(torch.zeros_like(b[:, :3]), b[:, 3:6], b[:, 6], database.label, "lidar")
    inside = own.contains(database.points[:, :3].double(), margin=1e-4)
    assert inside[owner, torch.arange(len(owner))].all()
    # And it holds all that the split's labels allow.
    expected = 0
    for index in range(len(dataset)):
        sample = dataset.get(index)
        assert sample.objects is not None and sample.points is not None and sample.lidar_to_camera is not None
        chosen = (sample.objects.difficulty != UNKNOWN) & (sample.objects.boxes.label != IGNORE)
        boxes = lidar_objects(sample.objects[chosen], sample.lidar_to_camera).boxes
        points = carry(sample.points, torch.linalg.inv(sample.lidar_to_camera))[:, :3]
        expected += int((boxes.contains(points).sum(1) >= 5).sum())
    assert abs(len(database) - expected) <= 1  # float32 may move a point over a border


def test_database_is_kept_in_a_file(streets: Path, tmp_path: Path) -> None:
    config = street_config(streets, in_memory=False, cache=tmp_path)
    in_memory = KittiDataset(street_config(streets)).object_database
    for database in (KittiDataset(config).object_database, KittiDataset(config).object_database):
        assert len(list(tmp_path.iterdir())) == 1
        for name in ObjectDatabase.__dataclass_fields__:
            assert torch.equal(getattr(database, name), getattr(in_memory, name))
    (file,) = tmp_path.glob("objects-train-*.npz")
    file.write_bytes(file.read_bytes()[:300])
    assert torch.equal(KittiDataset(config).object_database.points, in_memory.points)
    np.load(file).close()
    fewer = replace(config, lidar_augment=LidarAugmentConfig(least_points=50))
    assert len(KittiDataset(fewer).object_database) < len(in_memory) and len(list(tmp_path.iterdir())) == 2
    scan = streets / "training/velodyne/000000.bin"
    stamp = scan.stat()
    try:
        os.utime(scan, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
        _ = KittiDataset(config).object_database
    finally:
        os.utime(scan, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert len(list(tmp_path.iterdir())) == 3


def test_frames_are_augmented_without_their_picture(streets: Path) -> None:
    dataset = KittiDataset(street_config(streets))
    plain = KittiDataset(street_config(streets, augment=None, lidar_augment=None))
    for index in range(len(dataset)):
        before, out = plain.get(index), dataset.get(index, frame_generator(0, 0, index))
        again = dataset.get(index, frame_generator(0, 0, index))
        assert torch.equal(out.image, before.image) and not out.affine.flip and out.affine.zoom == 1
        assert torch.equal(out.camera.projection, before.camera.projection)
        assert before.lidar_to_camera is not None and out.lidar_to_camera is not None
        assert torch.equal(out.lidar_to_camera, before.lidar_to_camera)
        assert out.points is not None and again.points is not None and torch.equal(out.points, again.points)
        assert out.objects is not None and before.objects is not None and len(out.objects) > len(before.objects)
        assert out.objects.boxes.centre.dtype == torch.float32 and out.points.dtype == torch.float32
        unaugmented = dataset.get(index)
        assert unaugmented.points is not None and before.points is not None
        assert torch.equal(unaugmented.points, before.points) and torch.equal(unaugmented.image, before.image)


def test_scenes_move_with_their_points(streets: Path) -> None:
    """Points well inside a box before lie inside it afterwards, and none from well outside has come in."""
    margin = 0.02  # m
    moving = LidarAugmentConfig(counts=(), shuffle=False, flip_y=1)
    dataset = KittiDataset(street_config(streets, lidar_augment=moving))
    for index in range(len(dataset)):
        before, after = dataset.get(index), dataset.get(index, frame_generator(0, 0, index))
        assert before.points is not None and after.points is not None
        assert before.objects is not None and after.objects is not None
        real = before.objects.boxes.label != IGNORE
        a, b = before.objects.boxes[real], after.objects.boxes[real]
        p, q = before.points[:, :3], after.points[:, :3]
        assert not torch.allclose(p, q, atol=0.1)
        assert (b.contains(q, margin) | ~a.contains(p, -margin)).all()
        assert (~b.contains(q, -margin) | a.contains(p, margin)).all()


def test_road_planes(streets: Path, tmp_path: Path) -> None:
    """Where the data set has planes, pasted objects stand on them."""
    root = tmp_path / "with_planes"
    root.mkdir()
    (root / "ImageSets").symlink_to(streets / "ImageSets")
    (root / "training/planes").mkdir(parents=True)
    for folder in (streets / "training").iterdir():
        (root / "training" / folder.name).symlink_to(folder)
    pasting = replace(STILL, counts=LidarAugmentConfig().counts)
    config = street_config(root, lidar_augment=pasting)
    with pytest.raises(UserError, match=r"planes/000000\.txt: no such file"):
        KittiDataset(config).get(0, frame_generator(0, 0, 0))
    for frame in KittiDataset(config).frame_ids:
        (root / f"training/planes/{frame}.txt").write_text("# Matrix\nWIDTH 4\nHEIGHT 1\n0 -1 0 7.5\n")
    dataset = KittiDataset(config)
    off = KittiDataset(replace(config, lidar_augment=replace(pasting, road_planes=False)))
    for data, on_plane in ((dataset, True), (off, False)):
        before, after = data.get(0), data.get(0, frame_generator(0, 0, 0))
        assert before.objects is not None and after.objects is not None and after.points is not None
        pasted = after.objects.boxes[len(before.objects) :]
        bottom = pasted.centre[:, 1] + pasted.size[:, 2] / 2
        assert len(pasted) > 0 and ((bottom - 7.5).abs() < 0.3).all().item() is on_plane
        assert (pasted.contains(after.points[:, :3], margin=0.1).sum(1) >= 5).all()


@pytest.mark.parametrize("text", ["", "1\n2\n3\n", "\n\n\n0 1 2", "\n\n\n0 0 1 2", "\n\n\n0 x 1 2", "\n\n\n0 nan 1 2"])
def test_malformed_planes(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(UserError, match=r"p\.txt:4: expected the four numbers"):
        read_plane(tmp_path / "p.txt")


def test_field_of_view_holds_with_and_without_augmentation(streets: Path) -> None:
    cut = KittiDataset(street_config(streets, field_of_view=True, lidar_augment=STILL))
    whole = KittiDataset(street_config(streets, lidar_augment=STILL))
    for draw in (None, frame_generator(0, 0, 0)):
        few, all_ = cut.get(0, draw), whole.get(0, draw)
        assert few.points is not None and all_.points is not None
        seen = field_of_view(all_.points, all_.camera, CANVAS)
        assert 0 < len(few.points) <= len(all_.points) and abs(len(few.points) - int(seen.sum())) <= 2


def test_settings_that_contradict_each_other(streets: Path) -> None:
    with pytest.raises(UserError, match="lidar_augment is set but points is not"):
        street_config(streets, points=False)


@pytest.mark.real
def test_real_frames(real_data: Path) -> None:
    """Pasted objects stand free and hold their points; the camera sees as many points as are known to be in view."""
    root = real_data / "kitti_mini"
    config = KittiConfig(
        root, "trainval", points=True, divide="homogeneous", lidar_augment=replace(STILL, counts=(("Car", 20),)),
        placement="corner", canvas=SIZE, in_memory=True,
    )  # fmt: skip
    dataset = KittiDataset(config)
    database = dataset.object_database
    assert 30 <= len(database) <= 55
    known = {"000000": 20285, "000010": 16464, "000021": 19824}
    for index, frame in enumerate(dataset.frame_ids):
        plain = dataset.get(index)
        out = dataset.get(index, frame_generator(0, 0, index))
        assert plain.points is not None and plain.objects is not None and plain.lidar_to_camera is not None
        assert out.points is not None and out.objects is not None
        if frame in known:
            width, height = (int(s) for s in plain.affine.source_size.tolist())
            seen = field_of_view(plain.points, plain.camera, (width, height), "homogeneous")
            assert int(seen.sum()) == known[frame]
        back = torch.linalg.inv(plain.lidar_to_camera)
        boxes = lidar_objects(out.objects[out.objects.boxes.label != IGNORE], plain.lidar_to_camera).boxes
        pasted = boxes[int((plain.objects.boxes.label != IGNORE).sum()) :]
        assert len(pasted) > 0 and (pasted.contains(carry(out.points, back)[:, :3], 0.01).sum(1) >= 5).all()
        clashes = bev_overlap(rows(pasted).double(), rows(boxes).double())
        assert int(clashes.sum()) == len(pasted)  # each with itself
