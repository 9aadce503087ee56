"""From samples to batches: the order of an epoch, and batches that do not depend on the number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from distill3d.camera import Camera, ImageAffine
from distill3d.data.augment.image import frame_generator
from distill3d.data.batching import given_by_all
from distill3d.data.sample import Batch, Dataset, ObjectBatch, Sample
from distill3d.data.surround import SurroundBatch, SurroundSample, collate_surround
from distill3d.errors import UserError

#: In place of a frame's index, the random stream that shuffles an epoch.
SHUFFLE_STREAM = -1


def collate(samples: list[Sample]) -> Batch:
    """Samples of one canvas size as a batch.

    ``objects``, ``depth``, ``points`` and ``lidar_to_camera`` are None in the batch where all samples lack them.
    Where only some samples have labels, ``labelled`` says which, and the others have no rows.

    Raises:
        UserError: the canvas sizes differ, or only some samples have depth, points or a LiDAR.
    """
    sizes = {(s.image.shape[-1], s.image.shape[-2]): s.frame_id for s in samples}
    if len(sizes) > 1:
        listed = ", ".join(f"{w} x {h} (frame {frame})" for (w, h), frame in sizes.items())
        raise UserError(f"images of one batch must have one size, got {listed}; set `canvas`")

    depth, points, lidar_to_camera = (
        given_by_all(samples, name, "frame") for name in ("depth", "points", "lidar_to_camera")
    )
    objects = [s.objects for s in samples if s.objects is not None]
    some = 0 < len(objects) < len(samples)
    nothing = objects[0][:0] if some else None
    rows = [s.objects if s.objects is not None else nothing for s in samples]
    return Batch(
        frame_ids=[s.frame_id for s in samples],
        image=torch.stack([s.image for s in samples]),
        camera=Camera(torch.stack([s.camera.projection for s in samples])),
        affine=ImageAffine.stack([s.affine for s in samples]),
        objects=ObjectBatch.pad([o for o in rows if o is not None]) if objects else None,
        depth=None if depth is None else torch.stack(depth),
        points=points,
        lidar_to_camera=None if lidar_to_camera is None else torch.stack(lidar_to_camera),
        labelled=torch.tensor([s.objects is not None for s in samples]) if some else None,
        mirrored=[bool(s.affine.flip) for s in samples],
    )


@dataclass(frozen=True)
class EpochSampler:
    """The frame order of each epoch, for process ``rank`` of ``world``.

    ``batch_size`` is the global batch: each process takes its share of every global batch, so the same frames meet
    in one step whatever the number of processes.  Without ``drop_last`` the last global batch may be short, and leave
    some processes fewer frames than others or none: meant for one process.

    Raises:
        UserError: the batch cannot be shared equally, or there is less than one batch.
    """

    length: int  # frames of the data set
    batch_size: int
    seed: int
    shuffle: bool = True
    drop_last: bool = True
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.world:
            raise UserError(f"batch_size is {self.batch_size}, expected a positive multiple of {self.world} processes")
        if self.drop_last and self.length < self.batch_size:
            raise UserError(f"the split has {self.length} frames, fewer than one batch of {self.batch_size}")

    @property
    def local_batch(self) -> int:
        """Frames per step of this process."""
        return self.batch_size // self.world

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.length // self.batch_size if self.drop_last else -(-self.length // self.batch_size)

    def order(self, epoch: int) -> list[int]:
        """Frame indices of this process in the epoch; ``local_batch`` of them make a step."""
        order = torch.arange(self.length)
        if self.shuffle:
            order = torch.randperm(self.length, generator=frame_generator(self.seed, epoch, SHUFFLE_STREAM))
        chosen = order[: self.steps * self.batch_size].tolist()
        first = self.rank * self.local_batch
        starts = range(first, len(chosen), self.batch_size)
        return [index for start in starts for index in chosen[start : start + self.local_batch]]


def batches(
    dataset: Dataset, order: list[int], batch_size: int, seed: int | None, epoch: int, workers: int = 0, start: int = 0
) -> Iterator[Any]:
    """The batches of an epoch from step ``start`` on, each a ``Batch`` or, of a surround-view data set, a
    ``SurroundBatch``; the same whatever the number of workers.

    Args:
        order: frame indices, as ``EpochSampler.order`` gives them.
        batch_size: frames per step of this process (``EpochSampler.local_batch``).
        seed: of the augmentation, which is drawn per frame and epoch; None for no augmentation.
        workers: processes that load ahead; 0 loads here.

    Raises:
        UserError: a file of the data set is malformed.
    """
    steps = _Steps(dataset, order, batch_size, seed, epoch)
    pending = range(start, len(steps))
    # Without a generator of its own the loader would draw from the global one, and only where there are workers.
    loader = (
        DataLoader(steps, batch_size=None, sampler=pending, num_workers=workers, generator=torch.Generator())
        if workers
        else map(steps.__getitem__, pending)
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


class _Steps(MapDataset):
    """The batches of an epoch by step."""

    def __init__(self, dataset: Dataset, order: list[int], batch_size: int, seed: int | None, epoch: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, epoch
        self.parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, step: int) -> Batch | SurroundBatch | UserError:
        """One batch; a user's error is handed over rather than raised, for a worker would wrap it in a traceback."""
        try:
            samples = [self.dataset.get(index, self._generator(index)) for index in self.parts[step]]
            return collate_surround(samples) if isinstance(samples[0], SurroundSample) else collate(samples)
        except UserError as error:
            return error

    def _generator(self, index: int) -> torch.Generator | None:
        return None if self.seed is None else frame_generator(self.seed, self.epoch, index)
