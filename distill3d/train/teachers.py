"""Frozen teachers: loading them, keeping them frozen, refusing those that saw the answers, caching what they say."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill3d.camera import Camera, ImageAffine
from distill3d.data.augment import AugmentConfig
from distill3d.data.sample import Batch
from distill3d.detectors.base import Detector, FeatureMap, Outputs
from distill3d.distill.context import detached
from distill3d.errors import UserError
from distill3d.train.checkpoint import load_detector


def trained_on(identity: str, frame_ids: list[str], teachers: list[dict]) -> dict:
    """What a card says of the frames behind a model's weights: its own and, through distillation, its teachers'."""
    own = {f"{identity}/{frame}" for frame in frame_ids}
    frames = sorted(own.union(*(t["frames"] for t in teachers)))
    digest = hashlib.sha256("\n".join(frames).encode()).hexdigest()
    return {"identity": identity, "count": len(frames), "sha256": digest, "frames": frames}


def refuse_overlap(card: dict, where: str, identity: str, eval_ids: list[str], allowed: bool) -> None:
    """Refuses weights whose training frames are among those to be evaluated.

    Raises:
        UserError: there is an overlap and it was not allowed.
    """
    overlap = sorted({f"{identity}/{frame}" for frame in eval_ids} & set(card["trained_on"]["frames"]))
    if overlap and not allowed:
        raise UserError(
            f"{where} was trained on {len(overlap)} of the {len(eval_ids)} evaluation frames ({overlap[0]}, ...): "
            "choose another split, or allow it with --allow-overlap"
        )


class Teacher(nn.Module):
    """A frozen detector that answers batches; not a part of the student's checkpoint.

    ``batch_norm`` is ``eval``, or ``train`` to reproduce released code that left its teachers in train mode.
    With ``repeatable`` augmentation (nothing but mirroring moves pixels) each frame's answer is computed once and kept:
    one image at a time, so that it does not depend on the batch it first appeared in.
    """

    def __init__(self, path: Path, batch_norm: str = "eval", repeatable: bool = False) -> None:
        super().__init__()
        detector, self.card = load_detector(path)
        self.detector: Detector = detector.requires_grad_(False)
        self.batch_norm = batch_norm
        self._answers: dict[tuple[str, bool], Outputs] | None = {} if repeatable and batch_norm == "eval" else None
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stays as frozen as it was made, whatever ``mode``."""
        super().train(False)
        self.detector.train(self.batch_norm == "train")
        return self

    @torch.no_grad()
    def forward(self, batch: Batch, targets: Any) -> Outputs:
        """The teacher's outputs at the student's ``targets``, cut from the graph."""
        if self._answers is None:
            return detached(self.detector.forward_at(batch, targets))
        keys = list(zip(batch.frame_ids, batch.affine.flip.tolist(), strict=True))
        for i, key in enumerate(keys):
            if key not in self._answers:
                self._answers[key] = detached(self.detector.forward_at(single(batch, i), slots_of(targets, i)))
        return _join([self._answers[key] for key in keys])


def is_repeatable(augment: AugmentConfig | None, modality: str) -> bool:
    """Whether a frame takes at most two forms, plain and mirrored, in the eyes of a teacher with this input."""
    return augment is None or (augment.crop == 0 and not (modality == "rgb" and augment.photometric))


def single(batch: Batch, i: int) -> Batch:
    """Image ``i`` of a batch as a batch of its own, without its labels."""
    one = slice(i, i + 1)
    affine = ImageAffine(*(getattr(batch.affine, name)[one] for name in ImageAffine.__dataclass_fields__))
    return replace(
        batch, frame_ids=batch.frame_ids[one], image=batch.image[one], camera=Camera(batch.camera.projection[one]),
        affine=affine, objects=None, depth=None if batch.depth is None else batch.depth[one],
        points=None if batch.points is None else batch.points[one],
    )  # fmt: skip


def slots_of(targets: Any, i: int) -> Any:
    """The targets of image ``i`` alone; ``targets`` is a dataclass of tensors (B, ...)."""
    return replace(targets, **{f.name: getattr(targets, f.name)[i : i + 1] for f in fields(targets)})


def _join(answers: list[Outputs]) -> Outputs:
    def cat(tensors: list[Tensor]) -> Tensor:
        memory_format = torch.channels_last if tensors[0].dim() == 4 else torch.contiguous_format
        return torch.cat(tensors).contiguous(memory_format=memory_format)

    features = {
        name: FeatureMap(cat([a.features[name].tensor for a in answers]), first.geometry)
        for name, first in answers[0].features.items()
    }
    return Outputs(features, {name: cat([a.predictions[name] for a in answers]) for name in answers[0].predictions})
