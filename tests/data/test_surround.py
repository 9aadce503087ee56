"""The contract of surround views: what becomes of several moments in one batch."""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill3d.boxes import IGNORE, Boxes3D
from distill3d.data.surround import (
    SurroundBatch,
    SurroundObjectBatch,
    SurroundObjects,
    SurroundSample,
    collate_surround,
)
from distill3d.errors import UserError

FRAMES, VIEWS, SIZE = 2, 3, (6, 4)


def some_objects(count: int, seed: int = 0) -> SurroundObjects:
    g = torch.Generator().manual_seed(seed)
    draw = torch.rand(count, 9, generator=g) + 0.1
    velocity = draw[:, 7:].clone()
    velocity[:1] = math.nan
    label = torch.randint(0, 10, (count,), generator=g)
    boxes = Boxes3D(draw[:, :3] * 50, draw[:, 3:6], draw[:, 6], label, "ego", velocity=velocity)
    return SurroundObjects(boxes, torch.arange(count) + 1)


def moment(name: str, objects: int = 2, points: int = 5) -> SurroundSample:
    g = torch.Generator().manual_seed(sum(map(ord, name)))

    def matrices(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, 4, 4, generator=g, dtype=torch.float64)

    return SurroundSample(
        name, matrices(FRAMES, VIEWS), matrices(FRAMES, VIEWS), matrices(VIEWS), matrices(), matrices(),
        images=torch.rand(FRAMES, VIEWS, 3, *SIZE, generator=g), objects=some_objects(objects),
        depth=torch.rand(VIEWS, *SIZE, generator=g), points=torch.rand(points, 5, generator=g),
    )  # fmt: skip


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_objects_are_padded_and_found_again(counts: list[int]) -> None:
    objects = [some_objects(count, seed) for seed, count in enumerate(counts)]
    batch = SurroundObjectBatch.pad(objects)
    assert tuple(batch.present.shape) == (len(counts), max(*counts, 1))
    assert batch.present.sum(1).tolist() == counts
    for i, (count, given_objects) in enumerate(zip(counts, objects, strict=True)):
        boxes = given_objects.boxes
        for name in ("centre", "size", "yaw", "label", "velocity"):
            assert torch.equal(getattr(batch, name)[i, :count].nan_to_num(-9), getattr(boxes, name).nan_to_num(-9))
        assert torch.equal(batch.sensor_points[i, :count], given_objects.sensor_points)
    padding = ~batch.present
    assert bool((batch.label[padding] == IGNORE).all())
    for f in fields(batch):
        if f.name not in ("label", "present"):
            assert bool((getattr(batch, f.name)[padding] == 0).all())


def test_unknown_velocities_stay_unknown() -> None:
    batch = SurroundObjectBatch.pad([some_objects(2), some_objects(1)])
    assert batch.velocity.isnan().any(-1).tolist() == [[True, False], [True, False]]


def test_objects_need_a_velocity() -> None:
    objects = some_objects(1)
    with pytest.raises(ValueError, match="need a velocity"):
        SurroundObjectBatch.pad([SurroundObjects(replace(objects.boxes, velocity=None), objects.sensor_points)])


def test_objects_are_selected_together() -> None:
    chosen = some_objects(4)[torch.tensor([False, True, False, True])]
    assert len(chosen) == len(chosen.boxes) == 2 and chosen.sensor_points.tolist() == [2, 4]


def test_moments_become_a_batch() -> None:
    samples = [moment("a", 0, 7), moment("b", 3, 0)]
    batch = collate_surround(samples)
    assert batch.frame_ids == ["a", "b"] and len(batch) == 2
    for name in ("intrinsics", "camera_to_ego", "image_affine", "bev_affine", "ego_to_global", "images", "depth"):
        stacked = getattr(batch, name)
        assert all(torch.equal(stacked[i], getattr(sample, name)) for i, sample in enumerate(samples))
    assert batch.points is not None and [len(points) for points in batch.points] == [7, 0]
    assert batch.objects is not None and batch.objects.present.sum(1).tolist() == [0, 3]


@pytest.mark.parametrize("name", ["images", "objects", "depth", "points"])
def test_what_nobody_has_is_left_out(name: str) -> None:
    samples = [moment("a"), moment("b")]
    lacking = [replace(sample, **{name: None}) for sample in samples]
    assert getattr(collate_surround(lacking), name) is None
    with pytest.raises(UserError, match=f"sample b has no {name}, but other samples of its batch have"):
        collate_surround([samples[0], lacking[1]])


def test_pictures_of_other_sizes_are_refused() -> None:
    samples = [moment("a"), moment("b")]
    other = replace(samples[1], images=torch.zeros(FRAMES, VIEWS, 3, 8, 8), depth=None)
    with pytest.raises(UserError, match=r"must agree in frames, cameras and size.*\(sample b\)"):
        collate_surround([samples[0], other])


def test_a_batch_moves_as_a_whole() -> None:
    moved = collate_surround([moment("a"), moment("b")]).to("meta")
    assert isinstance(moved, SurroundBatch) and moved.frame_ids == ["a", "b"]
    assert moved.objects is not None and moved.points is not None and moved.images is not None
    everything = [moved.images, moved.intrinsics, moved.objects.centre, moved.objects.present, *moved.points]
    assert all(tensor.is_meta for tensor in everything)
