"""Batches and the order of an epoch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill3d.data.augment.image import AugmentConfig
from distill3d.data.collate import EpochSampler, batches, collate
from distill3d.data.kitti.dataset import KittiConfig, KittiDataset
from distill3d.data.sample import Batch
from distill3d.errors import UserError

FRAMES = 9  # 6 of them in the split


@pytest.fixture(scope="module")
def dataset(write_kitti: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> KittiDataset:
    root = write_kitti(tmp_path_factory.mktemp("data") / "kitti", FRAMES)
    config = KittiConfig(root, "train", canvas=(64, 20), depth="lidar", points=True, augment=AugmentConfig())
    return KittiDataset(config)


def same(a: Batch, b: Batch) -> bool:
    assert a.depth is not None and b.depth is not None and a.points is not None and b.points is not None
    assert a.objects is not None and b.objects is not None
    return (
        a.frame_ids == b.frame_ids
        and torch.equal(a.image, b.image)
        and torch.equal(a.depth, b.depth)
        and torch.equal(a.objects.box2d, b.objects.box2d)
        and all(torch.equal(p, q) for p, q in zip(a.points, b.points, strict=True))
    )


def test_collate(dataset: KittiDataset) -> None:
    batch = collate([dataset.get(0), dataset.get(1)])
    assert batch.frame_ids == ["000000", "000001"] and batch.image.shape == (2, 3, 20, 64)
    assert batch.camera.projection.shape == (2, 3, 4) and batch.camera.projection.dtype == torch.float64
    assert batch.affine.matrix.shape == (2, 2, 3)
    assert batch.objects is not None and batch.objects.present.tolist() == [[True] * 3] * 2
    assert batch.objects.centre.dtype == torch.float32 and not batch.objects.centre.isnan().any()
    assert batch.depth is not None and batch.depth.shape == (2, 1, 20, 64)
    assert batch.points is not None and [p.shape for p in batch.points] == [(600, 4)] * 2
    bare = collate([replace(dataset.get(i), objects=None, depth=None, points=None) for i in range(2)])
    assert bare.objects is None and bare.depth is None and bare.points is None


def test_a_batch_says_which_images_have_labels(dataset: KittiDataset) -> None:
    first, second = dataset.get(0), dataset.get(1)
    assert collate([first, second]).labelled is None
    mixed = collate([first, replace(second, objects=None)])
    assert mixed.labelled is not None and mixed.labelled.tolist() == [True, False]
    assert mixed.objects is not None and not mixed.objects.present[1].any()
    assert first.objects is not None and mixed.objects.present[0].sum() == len(first.objects)


def test_collate_refuses_what_does_not_fit(dataset: KittiDataset) -> None:
    first, second = dataset.get(0), dataset.get(1)
    narrow = KittiDataset(replace(dataset.config, canvas=(60, 20))).get(1)
    with pytest.raises(UserError, match=r"64 x 20 \(frame 000000\), 60 x 20 \(frame 000001\)"):
        collate([first, narrow])
    for name in ("depth", "points"):
        with pytest.raises(UserError, match=f"frame 000001 has no {name}"):
            collate([first, replace(second, **{name: None})])


@given(
    length=st.integers(1, 60), local=st.integers(1, 4), world=st.integers(1, 4), epoch=st.integers(0, 5),
    shuffle=st.booleans(), drop_last=st.booleans(),
)  # fmt: skip
def test_shards_cover_an_epoch_once(
    length: int, local: int, world: int, epoch: int, shuffle: bool, drop_last: bool
) -> None:
    batch = local * world
    if drop_last and length < batch:
        with pytest.raises(UserError, match="fewer than one batch"):
            EpochSampler(length, batch, seed=1)
        return
    one = EpochSampler(length, batch, 1, shuffle, drop_last)
    shards = [EpochSampler(length, batch, 1, shuffle, drop_last, rank, world) for rank in range(world)]
    orders = [s.order(epoch) for s in shards]
    together = sorted(i for order in orders for i in order)
    whole = one.order(epoch)
    assert together == sorted(whole) and len(set(whole)) == len(whole)
    assert len(whole) == (length // batch * batch if drop_last else length) and set(whole) <= set(range(length))
    assert one.steps == -(-len(whole) // batch) and whole == one.order(epoch)
    for step in range(length // batch):  # the same frames meet in one step
        parts = [i for order in orders for i in order[step * local : (step + 1) * local]]
        assert parts == whole[step * batch : (step + 1) * batch]


def test_orders_differ_by_epoch_and_seed() -> None:
    orders = {tuple(EpochSampler(50, 5, seed).order(epoch)) for seed in range(3) for epoch in range(4)}
    assert len(orders) == 12
    assert EpochSampler(7, 2, 0, shuffle=False, drop_last=False).order(3) == list(range(7))


@pytest.mark.parametrize(("batch_size", "world"), [(0, 1), (-2, 1), (5, 2)])
def test_batch_size_must_be_shared_equally(batch_size: int, world: int) -> None:
    with pytest.raises(UserError, match="batch_size"):
        EpochSampler(50, batch_size, 0, world=world)


def test_batches_do_not_depend_on_workers_or_start(dataset: KittiDataset) -> None:
    order = EpochSampler(len(dataset), 2, seed=3).order(1)
    before = torch.get_rng_state()
    plain = list(batches(dataset, order, 2, seed=3, epoch=1))
    loaded = list(batches(dataset, order, 2, seed=3, epoch=1, workers=2))
    resumed = list(batches(dataset, order, 2, seed=3, epoch=1, start=1))
    assert torch.equal(before, torch.get_rng_state())
    assert len(plain) == len(loaded) == 3 and len(resumed) == 2
    assert all(same(a, b) for a, b in zip(plain, loaded, strict=True))
    assert all(same(a, b) for a, b in zip(plain[1:], resumed, strict=True))
    assert not any(same(a, b) for a, b in zip(plain, batches(dataset, order, 2, seed=3, epoch=2), strict=True))


def test_batches_without_seed_are_not_augmented(dataset: KittiDataset) -> None:
    (batch,) = batches(dataset, [0, 1], 2, seed=None, epoch=0)
    assert torch.equal(batch.image[1], dataset.get(1).image)
    assert len(list(batches(dataset, [0, 1, 2], 2, seed=None, epoch=0))) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_user_errors_come_through_as_they_are(
    write_kitti: Callable[..., Path], tmp_path: Path, workers: int
) -> None:  # fmt: skip
    root = write_kitti(tmp_path / "kitti")
    path = root / "training/label_2/000001.txt"
    path.write_text("Bus\n")
    dataset = KittiDataset(KittiConfig(root, "train", canvas=(64, 20)))
    with pytest.raises(UserError) as error:
        list(batches(dataset, [0, 1], 1, seed=None, epoch=0, workers=workers))
    assert str(error.value).startswith(f"{path}:1: unknown class 'Bus'") and "\n" not in str(error.value)
